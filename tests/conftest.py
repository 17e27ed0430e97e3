"""What all tests share: eight simulated CPU devices, and tiny datasets written by TFDS itself."""

import os

# JAX reads these when it is first imported, which must therefore not have happened yet. What the caller sets wins.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
if "xla_force_host_platform_device_count" not in os.environ.get("XLA_FLAGS", ""):
    os.environ.setdefault("JAX_NUM_CPU_DEVICES", "8")
# Most of the tests' time goes into compiling what is run once. XLA optimises less here, which takes a third of it away;
# `make train` and everything by hand is compiled as usual.
os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=1")

from collections.abc import Callable, Iterable
from typing import ClassVar

import fsspec
import numpy as np
import pytest
from etils import epath
from fsspec.implementations.memory import MemoryFileSystem
from PIL import Image

from cnn_research.data.sources import open_source


def _prepare_tfds(
    data_dir: str,
    name: str,
    splits: dict[str, Iterable[dict]],
    features: dict,
    *,
    config: str = "",
    version: str = "1.0.0",
) -> str:
    """Writes a dataset with TFDS, as array_record, without TensorFlow.

    Args:
      data_dir: where to write it.
      name: in snake_case.
      splits: the examples of each split. An image is a PIL image or encoded bytes, never an array: to encode an array,
        TFDS imports TensorFlow.
      features: of TFDS.
      config: its config, if it is to have one.
      version: of the dataset.

    Returns:
      The folder of the dataset.
    """
    import tensorflow_datasets as tfds

    class Dataset(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        VERSION = tfds.core.Version(version)
        BUILDER_CONFIGS = [tfds.core.BuilderConfig(name=config, version=version)] if config else []

        def _info(self):
            return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

        def _split_generators(self, dl_manager):
            return {split: self._generate_examples(examples) for split, examples in splits.items()}

        def _generate_examples(self, examples):
            yield from enumerate(examples)

    Dataset.name = name
    builder = Dataset(data_dir=data_dir, file_format="array_record")
    builder.download_and_prepare()
    return str(builder.data_path)


@pytest.fixture(scope="session")
def prepare_tfds() -> Callable[..., str]:
    """The function that writes a tiny dataset with TFDS."""
    return _prepare_tfds


@pytest.fixture(scope="session")
def tiny_tfds(tmp_path_factory) -> str:
    """A TFDS data_dir that holds `tiny_digits`: 200 train and 60 test scans of 28x28x1, in 10 classes."""
    import tensorflow_datasets as tfds

    def examples(split, count):
        for example in open_source("digits", split).__getitems__(range(count)):
            image = Image.fromarray(np.squeeze(example["image"], -1)).resize((28, 28), Image.Resampling.BILINEAR)
            yield {"image": image, "label": example["label"]}

    data_dir = str(tmp_path_factory.mktemp("tfds"))
    features = {
        "image": tfds.features.Image(shape=(28, 28, 1)),
        "label": tfds.features.ClassLabel(num_classes=10),
    }
    _prepare_tfds(data_dir, "tiny_digits", {"train": examples("train", 200), "test": examples("test", 60)}, features)
    return data_dir


class _Bucket(MemoryFileSystem):
    """Stands for Google Cloud Storage: files are written whole, and no process but this one sees them."""

    protocol = ("gs", "gcs")
    store: ClassVar[dict] = {}
    pseudo_dirs: ClassVar[list] = []

    @classmethod
    def _strip_protocol(cls, path):
        return super()._strip_protocol(str(path).removeprefix("gs://").removeprefix("gcs://"))

    def _open(self, path, mode="rb", **options):
        if mode not in ("rb", "wb"):
            raise NotImplementedError(f"an object store has no mode {mode!r}")
        return super()._open(path, mode, **options)


@pytest.fixture
def bucket(monkeypatch):
    """A bucket gs://bucket, empty, that epath reads and writes."""
    for protocol in _Bucket.protocol:
        fsspec.register_implementation(protocol, _Bucket, clobber=True)
    _Bucket.store.clear()
    _Bucket.pseudo_dirs[:] = ["", "/bucket"]
    monkeypatch.setenv("EPATH_USE_TF", "false")
    return epath.Path("gs://bucket")
