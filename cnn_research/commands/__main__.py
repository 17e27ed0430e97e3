"""The console command `cnn-research`; where it isn't on the path, `python -m cnn_research.commands` is the same."""

import importlib
import sys

import cnn_research
from cnn_research.errors import suggest

# Each is a module of this folder with a run(): what it does, and an example of its flags. None is imported before it is
# chosen, so that neither --help nor a shell's completion waits for JAX.
COMMANDS = {
    "train": ("trains a network, or goes on with a run", "--config=lenet5_digits --workdir=runs/lenet5_digits"),
    "evaluate": ("evaluates a run's checkpoint", "--workdir=runs/lenet5_digits --split=test"),
    "predict": ("says what images show", "--workdir=runs/lenet5_digits 'images/*.png' --top=4"),
    "report": ("writes a run's report, or compares several runs", "--workdir=runs/lenet5_digits"),
    "describe": ("describes a network layer by layer, or lists all networks", "lenet5 --image_size=32"),
    "sweep": ("runs variations of an experiment", "--config=lenet5_digits --workdir=runs/seeds --grid=seed=0,1,2"),
    "benchmark": ("measures how fast the parts of an experiment are", "step --config=lenet5_digits"),
    "prepare": ("prepares a TFDS dataset, once", "mnist --data_dir=path/to/tensorflow_datasets"),
    "export": ("writes a network to a file for JAX alone", "--workdir=runs/lenet5_digits --output=lenet5.zip"),
    "results": ("keeps the results of runs, and makes RESULTS.md of them", "--add=runs/lenet5_digits"),
    "completion": ("prints a script by which bash or zsh completes these commands", "bash"),
}


def main() -> None:
    """Hands over to the command that is named, or lists the commands."""
    name, *rest = sys.argv[1:] or ["--help"]
    if name in ("--help", "-h"):
        print(_listing())
    elif name == "--version":
        print(f"cnn-research {cnn_research.__version__}")
    elif name in COMMANDS:
        does, example = COMMANDS[name]
        # Where absl looks for what its --help begins with.
        sys.modules["__main__"].__doc__ = f"cnn-research {name} {does}: cnn-research {name} {example}"
        sys.argv = [f"cnn-research {name}", *rest]
        importlib.import_module(f"cnn_research.commands.{name}").run()
    else:
        hint = suggest(name, COMMANDS) or f" There are {', '.join(COMMANDS)}."
        print(f"error: cnn-research has no command {name!r}.{hint}", file=sys.stderr)
        sys.exit(2)


def _listing() -> str:
    width = max(map(len, COMMANDS))
    lines = [f"  {name:<{width}}  {does}" for name, (does, _) in COMMANDS.items()]
    return "\n".join(
        [
            f"{cnn_research.__doc__}\n",
            "usage: cnn-research COMMAND [flags]\n",
            *lines,
            "\ncnn-research COMMAND --help shows the flags of a command, cnn-research --version the version.",
        ]
    )


if __name__ == "__main__":
    main()
