"""The folders of experiments/ that commands need: a checkout has them beside the package, a wheel inside it."""

import difflib
from pathlib import Path

import cnn_research
from cnn_research.errors import UserError

_PACKAGE = Path(cnn_research.__file__).parent


def folder(name: str) -> Path:
    """Returns experiments/NAME, or what pyproject.toml makes of it in a wheel."""
    installed = _PACKAGE / name
    return installed if installed.is_dir() else _PACKAGE.parent / "experiments" / name


def config_names() -> list[str]:
    """Returns the names of the configs that come with the package."""
    return sorted(path.stem for path in folder("configs").glob("*.py"))


def find_config(text: str) -> str:
    """Returns the path of a config's file, with its mode after a colon if it is given one.

    Args:
        text: a file, or the name of one that comes with the package; such as "mine.py" or "lenet5_digits:smoke".

    Raises:
        UserError: there is neither.
    """
    given, colon, mode = text.partition(":")
    file = Path(given)
    if file.is_file():
        return text
    names = config_names()
    if given in names:
        return f"{folder('configs') / given}.py{colon}{mode}"
    # Of a file that is looked for in a folder, the neighbours there come first.
    there = {name: name for name in names} | {path.stem: str(path) for path in sorted(file.parent.glob("*.py"))}
    near = [there[stem] for stem in difflib.get_close_matches(file.stem, there, n=3)]
    hint = f" Did you mean {' or '.join(near)}?" if near else f" By name there are {', '.join(names)}."
    raise UserError(f"--config={text}: there is no such file, and no config of this name.{hint}")
