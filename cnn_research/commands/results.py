"""Keeps the results of runs, and makes RESULTS.md and the table in README.md of what is kept."""

from collections.abc import Callable
from pathlib import Path

from absl import flags
from ml_collections import ConfigDict

from cnn_research.commands import launch
from cnn_research.errors import UserError
from cnn_research.results import curves, kept, page

_CONFIGS = Path("experiments/configs")
_AGAIN = "python experiments/results.py makes it again"


def run() -> None:
    """Runs the command."""
    flags.DEFINE_multi_string("add", [], "Folder of a finished run, whose results are to be kept; may be repeated.")
    flags.DEFINE_string("name", "", "Of their folder in results/; by default that of the config's file.")
    flags.DEFINE_multi_string("note", [], "What a reader must know of the added runs' figures; may be repeated.")
    flags.DEFINE_bool("check", False, "Write nothing: exit with 2 if the pages aren't what the files in results/ give.")
    launch.run(main)


def main() -> None:
    """Adds, then writes or checks."""
    given, root = flags.FLAGS, Path()
    if (given.name or given.note) and not given.add:
        raise UserError("--name and --note say something of runs that are added; --add=WORKDIR is missing")
    if given.check and given.add:
        raise UserError("--check writes nothing, --add does: one after the other")
    for workdir in given.add:
        folder = kept.add(Path(workdir).expanduser(), root, configs(root), given.name, given.note)
        print(f"kept {folder}")
    differing = stale(root)
    if given.check and differing:
        raise UserError("\n".join(f"{name} is not what the files in results/ give: {_AGAIN}" for name in differing))
    for name, text in differing.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text())
        print(f"wrote {name}")


def stale(root: Path) -> dict[str, Callable[[], str]]:
    """Returns the pages of a checkout that are not what its files give, each with what makes its text.

    Raises:
        UserError: what is kept is broken, or README.md has no place for the table.
    """
    files = configs(root)
    entries = kept.read_all(root, files)
    found = {}
    for name, text in page.made(root, entries, files).items():
        if not (root / name).exists() or (root / name).read_text() != text:
            found[name] = lambda text=text: text
    points, picture = curves.curves(entries), root / page.PICTURE
    drawn = curves.digest_of(picture.read_text()) if picture.exists() else ""
    if points and drawn != curves.digest(points):
        found[page.PICTURE] = lambda: curves.svg(points)
    return found


def configs(root: Path) -> dict[str, ConfigDict]:
    """Returns what the config files of a checkout give, by their names without ".py".

    Raises:
        UserError: there are none, or one can't be run.
    """
    files = sorted((root / _CONFIGS).glob("*.py"))
    if not files:
        raise UserError(f"there are no configs in {_CONFIGS}: start this at the root of a checkout")
    return {file.stem: launch.load_config(str(file)) for file in files}
