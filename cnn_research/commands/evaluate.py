"""Evaluates a checkpoint of a run on any split of its dataset."""

import json

from absl import flags

from cnn_research.commands import launch
from cnn_research.training import loop


def run() -> None:
    """Runs the command."""
    flags.DEFINE_string("workdir", None, "Folder of the run.")
    flags.DEFINE_string("split", "", 'Such as "train" or "test[:50%]"; by default the run\'s own test split.')
    flags.DEFINE_enum("checkpoint", "latest", ("latest", "best"), "Which checkpoint.")
    flags.DEFINE_string("data_dir", None, "Where the dataset is now, if not where it was in training.")
    launch.run(main, required=("workdir",))


def main() -> None:
    """Evaluates and prints the metrics as JSON."""
    given = flags.FLAGS
    values = loop.evaluate(given.workdir, given.split, given.checkpoint, given.data_dir)
    print(json.dumps(values, indent=2))
