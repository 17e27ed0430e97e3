"""Writes report.html for a run, or the comparison of several."""

from absl import flags

from cnn_research.commands import launch


def run() -> None:
    """Runs the command."""
    flags.DEFINE_multi_string("workdir", None, "Folder of the run; of several, repeated: their comparison.")
    flags.DEFINE_string("output", "", "The file; else report.html in the workdir, comparison.html beside several.")
    flags.DEFINE_string("split", "", 'Such as "test[:2000]"; by default the run\'s own test split.')
    flags.DEFINE_string("data_dir", None, "Where the dataset is now, if not where it was in training.")
    launch.run(main, required=("workdir",))


def main() -> None:
    """Writes the page and says where it is."""
    from cnn_research.report.page import write_report  # takes a second, which mistakes in the flags shouldn't cost

    given = flags.FLAGS
    path = write_report(given.workdir, given.output, given.split, given.data_dir)
    print(f"{path} ({path.stat().length / 1e6:.1f} MB)")
