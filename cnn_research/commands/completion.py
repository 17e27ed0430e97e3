"""Prints a script by which a shell completes `cnn-research`: commands, flags, configs by name, a config's fields."""

import ast
import sys
from pathlib import Path

from cnn_research import config as configs
from cnn_research.commands.__main__ import COMMANDS
from cnn_research.commands.experiments import config_names
from cnn_research.errors import suggest

SHELLS = {"bash": "~/.bashrc", "zsh": "~/.zshrc"}
_FOLDER = Path(__file__).parent
_USAGE = "\n".join(
    f'{shell}: add to {file} the line  eval "$(cnn-research completion {shell})"' for shell, file in SHELLS.items()
)


def run() -> None:
    """Runs the command; without launch.py, which takes JAX along."""
    given = sys.argv[1:]
    if given in (["--help"], ["-h"]):
        print(f"{sys.modules['__main__'].__doc__}\n{_USAGE}")
    elif len(given) == 1 and given[0] in SHELLS:
        print(script(given[0]), end="")
    else:
        shell = " ".join(given)
        print(f"error: completion for bash or zsh? {shell!r} is neither.{suggest(shell, SHELLS)}", file=sys.stderr)
        sys.exit(2)


def script(shell: str) -> str:
    """Returns the lines for a shell to evaluate: the words that complete each command, and the shell's own part."""
    cases = [f"    {name}) printf '%s\\n' {' '.join(words(name))} ;;" for name in COMMANDS]
    table = [
        "_cnn_research_words() {",
        "  case $1 in",
        *cases,
        f"    *) printf '%s\\n' {' '.join(COMMANDS)} ;;",
        "  esac",
        "}",
    ]
    return "\n".join([*table, (_FOLDER / f"completion.{shell}").read_text()])


def words(command: str) -> list[str]:
    """Returns what may stand after a command, such as "--json", "--workdir=", "--config.optimizer.name=sgd"."""
    if command == "completion":
        return list(SHELLS)
    found = ["--help", *_flags(command)]
    if "--config=" in found:
        for field in configs.flatten(configs.base_config().to_dict()):
            values = configs.CHOICES.get(field, ("",))
            found += [f"--config.{field}={value}" for value in values]
    for flag in {"--config=", "--augment="} & set(found):
        found += [f"{flag}{name}" for name in config_names()]
    return sorted(found)


def _flags(module: str) -> list[str]:
    """The flags that a module's source defines; it is not imported, which would take JAX's second for each command."""
    found = []
    for node in ast.walk(ast.parse((_FOLDER / f"{module}.py").read_text())):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            if node.func.attr == "define_flags":  # of flags that commands share
                found += _flags(node.func.value.id)
            elif node.func.attr.startswith("DEFINE_"):
                found.append(f"--{node.args[0].value}" + "=" * (node.func.attr != "DEFINE_bool"))
    return found
