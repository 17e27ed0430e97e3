"""Prepares a TFDS dataset as array_record, so that it can be read without TensorFlow."""

from absl import flags

from cnn_research.commands import launch
from cnn_research.data import prepare
from cnn_research.errors import UserError


def run() -> None:
    """Runs the command."""
    flags.DEFINE_string("data_dir", "", "Folder of datasets; by default TFDS_DATA_DIR or ~/tensorflow_datasets.")
    flags.DEFINE_string("output_dir", "", "Where to write a conversion from tfrecord, if not beside it.")
    launch.run(main, arguments=1)


def main(name: str = "") -> None:
    """Prepares the named dataset, such as mnist or cifar10:3.0.2, and says where it is."""
    if not name:
        raise UserError("which dataset? prepare NAME prepares one, such as mnist or cifar10:3.0.2")
    folder = prepare.prepare(name, flags.FLAGS.data_dir, flags.FLAGS.output_dir)
    print(f"{name} is ready: {folder}")
