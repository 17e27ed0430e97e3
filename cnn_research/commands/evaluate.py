"""Evaluates a checkpoint of a run on any split of its dataset."""

import json

from absl import flags

from cnn_research.commands import launch
from cnn_research.training import loop

_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run.")
_SPLIT = flags.DEFINE_string("split", "", 'Such as "train" or "test[:50%]"; by default the run\'s own test split.')
_CHECKPOINT = flags.DEFINE_enum("checkpoint", "latest", ("latest", "best"), "Which checkpoint.")
_DATA_DIR = flags.DEFINE_string("data_dir", None, "Where the dataset is now, if not where it was in training.")


def run() -> None:
    """Runs the command."""
    launch.run(main, required=("workdir",))


def main() -> None:
    """Evaluates and prints the metrics as JSON."""
    values = loop.evaluate(_WORKDIR.value, _SPLIT.value, _CHECKPOINT.value, _DATA_DIR.value)
    print(json.dumps(values, indent=2))
