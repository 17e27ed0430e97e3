"""Evaluates a checkpoint of a run on any split of its dataset."""

import json

from absl import flags

from cnn_research.commands import hosts, launch
from cnn_research.config import CHOICES
from cnn_research.training import loop, parallel

_PROTOCOL = ("image_size", "crop_size", "crops", "flip", "shift")
_INSTEAD = "Instead of the run's own"


def run() -> None:
    """Runs the command."""
    flags.DEFINE_string("workdir", None, "Folder of the run.")
    flags.DEFINE_string("split", "", 'Such as "train" or "test[:50%]"; by default the run\'s own test split.')
    flags.DEFINE_string("checkpoint", "latest", "Of the run: latest, best or a step.")
    flags.DEFINE_string("data_dir", None, "Where the dataset is now, if not where it was in training.")
    flags.DEFINE_integer("image_size", None, f"{_INSTEAD} config.evaluation.image_size: pixels.", lower_bound=0)
    flags.DEFINE_integer("crop_size", None, f"{_INSTEAD} config.evaluation.crop_size: pixels.", lower_bound=0)
    flags.DEFINE_enum("crops", None, CHOICES["evaluation.crops"], f"{_INSTEAD} config.evaluation.crops.")
    flags.DEFINE_bool("flip", None, f"{_INSTEAD} config.evaluation.flip: mirrored views too.")
    flags.DEFINE_integer("shift", None, f"{_INSTEAD} config.evaluation.shift: pixels.", lower_bound=0)
    hosts.define_flags()
    launch.run(main, required=("workdir",))


def main() -> None:
    """Evaluates and prints the metrics as JSON."""
    given = flags.FLAGS
    protocol = {name: given[name].value for name in _PROTOCOL if given[name].value is not None}
    if protocol.get("crops") == "ten":
        protocol.setdefault("flip", False)  # ten crops have their mirror images among them
    hosts.connect()
    values = loop.evaluate(given.workdir, given.split, given.checkpoint, given.data_dir, protocol)
    if parallel.is_main():
        print(json.dumps(values, indent=2))
