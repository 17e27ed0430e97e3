"""Datasets that TensorFlow Datasets has prepared as array_record, read without TensorFlow.

This is the only file that knows TensorFlow Datasets. It is imported when the first record is read and not before,
because that takes a third of a second: what a dataset is stands in JSON files, and its decoded images may be cached.
"""

import dataclasses
import functools
import importlib.util
import json
import os
import re
import shlex
from collections.abc import Sequence
from typing import Any

from PIL import Image

from cnn_research.data import decode
from cnn_research.data.splits import check_split, checked
from cnn_research.errors import UserError, suggest

_TFDS_NAME = re.compile(r"(?P<dataset>[a-zA-Z_]\w*)(/(?P<config>[\w.+-]+))?(:(?P<version>\d+\.\d+\.\d+))?")
_VERSION = re.compile(r"\d+\.\d+\.\d+")


@dataclasses.dataclass(frozen=True, eq=False)
class Tfds:
    """A split of a TFDS dataset, decoded by ourselves.

    TFDS's own decoder, when TensorFlow is absent, is wrong for palette, RGBA and CMYK images, and unpacks a record ten
    times slower than this does.
    """

    name: str
    split: str
    classes: tuple[str, ...]
    image_shape: tuple[int | None, int | None, int]
    folder: Any  # epath.Path of the prepared dataset
    num_examples: int

    @functools.cached_property
    def records(self) -> Any:
        """array_record's data source: serialised tf.train.Example protos."""
        import tensorflow_datasets as tfds

        return tfds.builder_from_directory(self.folder).as_data_source(self.split).data_source

    def __len__(self) -> int:
        return self.num_examples

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[dict[str, Any]]:
        images = self.read_images(indices)
        return [{"image": decode.to_array(image), "label": label} for image, label in images]

    def read_images(self, indices: Sequence[int]) -> list[tuple[Image.Image, int]]:
        indices = [checked(index, len(self)) for index in indices]
        if not indices:
            return []
        return [self._decode(*pair) for pair in zip(self.records.__getitems__(indices), indices, strict=True)]

    def read_bytes(self, indices: Sequence[int]) -> list[bytes]:
        """Returns the encoded images as they are."""
        return [_unpack(record)[0] for record in self.records.__getitems__(list(indices))]

    def where(self, index: int) -> str:
        return f"{index} of {self.name!r} {self.split}"

    def identity(self) -> Any:
        """The version is part of the folder's name; the files' sizes and times tell one prepared anew."""

        def facts(file) -> list:
            if "://" in os.fspath(file):  # an object store, whose times are in seconds
                return [file.name, file.stat().length, file.stat().mtime]
            return [file.name, os.stat(file).st_size, os.stat(file).st_mtime_ns]

        files = [facts(file) for file in sorted(self.folder.iterdir())]
        return {"folder": os.fspath(self.folder), "split": self.split, "files": files}

    def _decode(self, record: bytes, index: int) -> tuple[Image.Image, int]:
        data, label = _unpack(record)
        return decode.open_image(data, self.image_shape[2], self.where(index)), label


def _unpack(record: bytes) -> tuple[bytes, int]:
    """Returns the encoded image of a record, and its label."""
    features = _tf_example().FromString(record).features.feature
    return features["image"].bytes_list.value[0], features["label"].int64_list.value[0]


@functools.cache
def _tf_example():
    from tensorflow_datasets.proto import tf_example_pb2  # the tf.train.Example proto without TensorFlow

    return tf_example_pb2.Example


def open_tfds(name: str, split: str, data_dir: str) -> Tfds:
    """Opens one split of a prepared dataset; see `sources.open_source`."""
    folder = _prepared_folder(name, data_dir)
    info, features = (json.loads((folder / f"{file}.json").read_text()) for file in ("dataset_info", "features"))
    sizes = {part["name"]: sum(map(int, part.get("shardLengths", []))) for part in info["splits"]}
    check_split(name, split, list(sizes))
    if sizes[split] == 0:
        raise UserError(f"The split {split!r} of {name!r} is empty.")

    features = features["featuresDict"]["features"] if "featuresDict" in features else {"": features}
    kinds = {key: feature["pythonClassName"].rpartition(".")[2] for key, feature in features.items()}
    classes = _classes(folder, features["label"]) if kinds.get("label") == "ClassLabel" else ()
    if kinds.get("image") != "Image" or not classes:
        raise UserError(
            f"{name!r} isn't a dataset of labelled images: it needs a feature 'image' (an image) and a feature 'label' "
            f"(a class), but has {', '.join(f'{key} ({kind})' for key, kind in kinds.items())}."
        )
    image = features["image"]["image"]
    if image.get("dtype", "uint8") != "uint8":
        raise UserError(f"The images of {name!r} are {image['dtype']}; only uint8 images are supported.")
    height, width, channels = (None if size == "-1" else int(size) for size in image["shape"]["dimensions"])
    if importlib.util.find_spec("array_record") is None:
        raise UserError(f"Reading {name!r} needs array_record: pip install array_record.")
    return Tfds(name, split, classes, (height, width, 1 if channels == 1 else 3), folder, sizes[split])


def _classes(folder: Any, label: dict[str, Any]) -> tuple[str, ...]:
    """The names of a label's classes, or their numbers where it has none."""
    file = folder / "label.labels.txt"
    if file.exists():
        return tuple(name.strip() for name in file.read_text().split("\n") if name.strip())
    return tuple(map(str, range(int(label["classLabel"].get("numClasses", 0)))))


def _prepared_folder(name: str, data_dir: str):
    """Returns the `epath.Path` of a dataset's folder, data_dir/dataset[/config]/version, prepared as array_record."""
    found = locate(name, data_dir)
    command = f"cnn-research prepare {shlex.quote(name)} --data_dir={shlex.quote(os.fspath(found.root))}"
    if found.folder is None:
        has = f"versions {', '.join(found.versions)}" if found.versions else ", ".join(found.datasets) or "no dataset"
        dataset = _TFDS_NAME.fullmatch(name)["dataset"]
        hint = "" if found.versions else suggest(dataset, ["digits", "shapes", *found.datasets])
        raise UserError(
            f"The dataset {name!r} is not prepared in {found.root} (there is {has}).{hint} "
            f"Prepare it once with: {command}"
        )
    if stored_as(found.folder) != "array_record":
        raise UserError(
            f"The dataset {name!r} in {found.folder} is stored as {stored_as(found.folder)}, which can't be read "
            f"without TensorFlow. Convert it once with: {command}"
        )
    return found.folder


@dataclasses.dataclass(frozen=True)
class Location:
    """Where a dataset is.

    Attributes:
      root: `epath.Path` of the folder of datasets.
      folder: `epath.Path` of the dataset, root/dataset[/config]/version; None if it isn't there.
      versions: those that are there, oldest first.
      datasets: the names of all datasets that are there.
    """

    root: Any
    folder: Any
    versions: list[str]
    datasets: list[str]


def locate(name: str, data_dir: str) -> Location:
    """Looks for a dataset in whatever format.

    Raises:
      UserError: for a name that can't be one, or that leaves the choice between several configs open.
    """
    from etils import epath

    match = _TFDS_NAME.fullmatch(name)
    if not match:
        raise UserError(
            f"Can't read the dataset name {name!r}: write 'digits', 'shapes', 'folder:PATH' or the name of a TFDS "
            "dataset, such as 'mnist', 'mnist:3.0.1' or 'dataset/config:1.0.0'."
        )
    dataset, config, version = match["dataset"], match["config"], match["version"]
    root = epath.Path(data_dir or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets").expanduser()
    folder = root / dataset

    if not config and not _versions(folder):
        # A dataset with configs has one more level of folders. Which config is the default only its code knows.
        configs = [child.name for child in _children(folder) if _versions(child)]
        if len(configs) > 1:
            choices = ", ".join(f"{dataset}/{choice}" for choice in configs)
            raise UserError(f"{name!r} in {root} has several configs; choose one of {choices}.")
        config = configs[0] if configs else None
    if config:
        folder = folder / config

    versions = _versions(folder)
    there = versions and (not version or version in versions)
    datasets = [child.name for child in _children(root) if any(map(_versions, [child, *_children(child)]))]
    return Location(root, folder / (version or versions[-1]) if there else None, versions, datasets)


def stored_as(folder) -> str:
    """Returns the format of a prepared dataset, such as "array_record"."""
    # An absent field stands for the oldest format.
    return json.loads((folder / "dataset_info.json").read_text()).get("fileFormat") or "tfrecord"


def _children(folder) -> list:
    """Returns the subfolders, by name; none where the folder doesn't exist."""
    return sorted((c for c in folder.iterdir() if c.is_dir()), key=lambda c: c.name) if folder.is_dir() else []


def _versions(folder) -> list[str]:
    """Returns the prepared versions in a dataset's folder, oldest first."""
    names = [c.name for c in _children(folder) if _VERSION.fullmatch(c.name) and (c / "dataset_info.json").exists()]
    return sorted(names, key=lambda version: tuple(map(int, version.split("."))))
