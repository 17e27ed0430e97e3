"""Sources of examples: `open_source(name, split)` gives random access to {"image", "label"}, whatever the dataset.

    digits           the 1,797 scans that scikit-learn ships: nothing to download
    shapes           circles, squares, triangles and crosses that are drawn as they are read; "shapes:96" for 96x96
    any TFDS name    "mnist", "mnist:3.0.1", "dataset/config:1.0.0", prepared as array_record; TensorFlow isn't needed

This is the only file that knows TensorFlow Datasets. It is imported lazily, because that takes half a second.
"""

import dataclasses
import functools
import importlib.util
import io
import json
import operator
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from PIL import Image

from cnn_research.data import order, shapes
from cnn_research.errors import UserError, suggest

Example = dict[str, Any]


class Source(Protocol):
    """Random access to the labelled images of one split. Every source can be pickled, so worker processes can read it.

    Attributes:
      name: the dataset, as the user wrote it.
      split: the split, as the user wrote it, such as "train[:90%]".
      classes: the name of each label.
      image_shape: (H, W, C); H and W are None where the images differ in size. C is 1 or 3.
    """

    name: str
    split: str
    classes: tuple[str, ...]
    image_shape: tuple[int | None, int | None, int]

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Example:
        """Returns {"image": uint8[H, W, C], "label": int}; the image is read-only.

        Raises:
          IndexError: unless 0 <= index < len(self).
          UserError: for an image that can't be decoded.
        """
        ...

    def __getitems__(self, indices: Sequence[int]) -> list[Example]:
        """Returns the examples of `indices`: for many at once, much faster than one by one."""
        ...


def open_source(name: str, split: str, data_dir: str = "") -> Source:
    """Opens one split of a dataset.

    Args:
      name: "digits"; "shapes" or "shapes:96"; or the name of a TFDS dataset: "mnist", "mnist:3.0.1",
        "dataset/config:1.0.0". Without a version the newest one that is prepared is read.
      split: a split's name and optionally a range of it in percent or examples: "train", "train[:90%]", "train[-500:]".
        Percentages are rounded to the closest example, so "train[:90%]" and "train[90%:]" neither overlap nor leave
        a gap.
      data_dir: the TFDS folder, also gs://...; by default $TFDS_DATA_DIR, else ~/tensorflow_datasets. The digits need
        and the shapes need none.

    Raises:
      UserError: for a dataset that isn't prepared or can't be read as labelled images, an unknown split, or a range
        that is malformed, empty or reaches beyond the split.
    """
    base_split, first, last = parse_split(split)
    if name == "digits":
        source = _open_digits(base_split)
    elif shapes.is_shapes(name):
        source = shapes.open_shapes(name, base_split)
    else:
        source = _open_tfds(name, base_split, data_dir)
    start, stop = split_range(split, first, last, len(source))
    if start >= stop:
        raise UserError(f"The split {split!r} of {name!r} is empty: {base_split!r} has {len(source)} examples.")
    return source if split == base_split else _Range(source, split, start, stop)


# Sub-splits -----------------------------------------------------------------------------------------------------------

_SPLIT = re.compile(r"(?P<name>[\w-]+)(?P<range>\[(?P<first>[^:\[\]]*):(?P<last>[^:\[\]]*)\])?")
_BOUND = re.compile(r"-?\d+|-?\d+(\.\d+)?%|")


def parse_split(text: str) -> tuple[str, str, str]:
    """Splits "train[10%:90%]" into ("train", "10%", "90%"); a bound that isn't given is "".

    The syntax is that of TFDS, without its sums ("train+test") and shards.

    Raises:
      UserError: if the text doesn't follow the syntax.
    """
    match = _SPLIT.fullmatch(text)
    first, last = (match["first"] or "", match["last"] or "") if match else ("", "")
    bounds = [bound for bound in (first, last) if bound]
    # TFDS reads "[10%:500]" as percentages on both sides, which is hardly what anyone means.
    mixed = len({bound.endswith("%") for bound in bounds}) == 2
    if not match or not all(_BOUND.fullmatch(bound) for bound in bounds) or mixed:
        raise UserError(
            f"Can't read the split {text!r}: write a name and at most one range, in percent or in examples, "
            "such as 'train', 'train[:90%]', 'train[90%:]', 'train[100:200]' or 'train[-500:]'."
        )
    return match["name"], first, last


def split_range(text: str, first: str, last: str, num_examples: int) -> tuple[int, int]:
    """Returns the range [start, stop) of examples that the bounds of a sub-split stand for.

    Args:
      text: the whole split, for messages.
      first: lower bound: "", "100", "-500", "10%" or "-10%"; negative ones count from the end.
      last: upper bound, likewise.
      num_examples: of the whole split.

    Raises:
      UserError: if a bound reaches beyond the split.
    """

    def position(bound: str, default: int) -> int:
        if not bound:
            return default
        if bound.endswith("%"):
            # The rounding of TFDS ("closest"): Python's, halves to even.
            offset = round(float(bound[:-1]) * num_examples / 100)
        else:
            offset = int(bound)
        if abs(offset) > num_examples:
            raise UserError(f"The split {text!r} reaches beyond the {num_examples} examples that it is a part of.")
        return num_examples + offset if bound.startswith("-") else offset

    return position(first, 0), position(last, num_examples)


@dataclasses.dataclass(frozen=True)
class _Range:
    """The examples [start, stop) of another source."""

    source: Source
    split: str
    start: int
    stop: int

    @property
    def name(self) -> str:
        return self.source.name

    @property
    def classes(self) -> tuple[str, ...]:
        return self.source.classes

    @property
    def image_shape(self) -> tuple[int | None, int | None, int]:
        return self.source.image_shape

    def __len__(self) -> int:
        return self.stop - self.start

    def __getitem__(self, index: int) -> Example:
        return self.source[self.start + _checked(index, len(self))]

    def __getitems__(self, indices: Sequence[int]) -> list[Example]:
        return self.source.__getitems__([self.start + _checked(index, len(self)) for index in indices])


def _check_split(name: str, split: str, splits: list[str]) -> None:
    if split not in splits:
        raise UserError(f"Unknown split {split!r} of {name!r}: it has {', '.join(splits)}.{suggest(split, splits)}")


def _checked(index: int, length: int) -> int:
    """Returns `index` as a Python int. Raises IndexError out of [0, length), which also ends a plain `for` loop."""
    index = operator.index(index)
    if not 0 <= index < length:
        raise IndexError(f"Example {index} of a source with {length} examples.")
    return index


# Digits ---------------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, eq=False)
class _Digits:
    """The optical recognition of handwritten digits (Alpaydin and Kaynak 1998), as scikit-learn ships it."""

    split: str
    images: np.ndarray  # uint8[N, 8, 8, 1]
    labels: np.ndarray  # uint8[N]
    name: str = "digits"
    classes: tuple[str, ...] = tuple("0123456789")
    image_shape: tuple[int, int, int] = (8, 8, 1)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> Example:
        index = _checked(index, len(self))
        return {"image": self.images[index], "label": int(self.labels[index])}

    def __getitems__(self, indices: Sequence[int]) -> list[Example]:
        return [self[index] for index in indices]


def _open_digits(split: str) -> _Digits:
    _check_split("digits", split, ["train", "test"])
    images, labels = _read_digits()
    # A fixed shuffle: the scans come writer by writer, and a sub-split such as train[90%:] should be a fair sample.
    shuffled = order.epoch_permutation(0, 0, len(labels))
    # Every fifth of the shuffled scans sorted by class is a stratified 20 %: 360 scans, each class to within one.
    test = np.sort(np.argsort(labels[shuffled], kind="stable")[::5])
    chosen = shuffled[test] if split == "test" else np.delete(shuffled, test)
    images, labels = images[chosen], labels[chosen]
    images.flags.writeable = False  # examples are views into it
    return _Digits(split, images, labels)


@functools.cache
def _read_digits() -> tuple[np.ndarray, np.ndarray]:
    """Returns (uint8[1797, 8, 8, 1], uint8[1797]) in the file's order.

    Read from scikit-learn's data file: importing `sklearn.datasets` for its `load_digits` takes more than a second.
    """
    package = importlib.util.find_spec("sklearn")
    if package is None:
        raise UserError("The dataset 'digits' is read from scikit-learn's files: pip install scikit-learn.")
    path = Path(package.submodule_search_locations[0]) / "datasets" / "data" / "digits.csv.gz"
    table = np.loadtxt(path, dtype=np.uint8, delimiter=",")  # 64 intensities from 0 to 16, then the label
    images = np.round(table[:, :64] * (255 / 16)).astype(np.uint8)
    return images.reshape(-1, 8, 8, 1), table[:, 64]


# TensorFlow Datasets --------------------------------------------------------------------------------------------------

_TFDS_NAME = re.compile(r"(?P<dataset>[a-zA-Z_]\w*)(/(?P<config>[\w.+-]+))?(:(?P<version>\d+\.\d+\.\d+))?")
_VERSION = re.compile(r"\d+\.\d+\.\d+")


@dataclasses.dataclass(frozen=True, eq=False)
class _Tfds:
    """A split of a TFDS dataset, decoded by ourselves.

    TFDS's own decoder, when TensorFlow is absent, is wrong for palette, RGBA and CMYK images, and unpacks a record ten
    times slower than this does.
    """

    name: str
    split: str
    classes: tuple[str, ...]
    image_shape: tuple[int | None, int | None, int]
    records: Any  # array_record's data source: serialised tf.train.Example protos

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> Example:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[Example]:
        indices = [_checked(index, len(self)) for index in indices]
        if not indices:
            return []
        return [self._decode(*pair) for pair in zip(self.records.__getitems__(indices), indices, strict=True)]

    def _decode(self, record: bytes, index: int) -> Example:
        features = _tf_example().FromString(record).features.feature
        mode = "L" if self.image_shape[2] == 1 else "RGB"
        try:
            image = Image.open(io.BytesIO(features["image"].bytes_list.value[0]))
            image = image if image.mode == mode else image.convert(mode)
            # Twice as fast as np.asarray(image) for small images.
            pixels = np.frombuffer(image.tobytes(), np.uint8).reshape(image.height, image.width, self.image_shape[2])
        except (OSError, SyntaxError, IndexError) as error:  # Pillow reports broken PNG chunks as SyntaxError
            raise UserError(
                f"Can't decode image {index} of {self.name!r} {self.split}: {error}. Prepare it anew."
            ) from error
        return {"image": pixels, "label": features["label"].int64_list.value[0]}


@functools.cache
def _tf_example():
    from tensorflow_datasets.proto import tf_example_pb2  # the tf.train.Example proto without TensorFlow

    return tf_example_pb2.Example


def _open_tfds(name: str, split: str, data_dir: str) -> _Tfds:
    folder = _prepared_folder(name, data_dir)

    import tensorflow_datasets as tfds

    builder = tfds.builder_from_directory(folder)
    _check_split(name, split, list(builder.info.splits))
    if builder.info.splits[split].num_examples == 0:
        raise UserError(f"The split {split!r} of {name!r} is empty.")

    features = builder.info.features
    features = dict(features.items()) if isinstance(features, tfds.features.FeaturesDict) else {"": features}
    image, label = features.get("image"), features.get("label")
    if not isinstance(image, tfds.features.Image) or not isinstance(label, tfds.features.ClassLabel) or not label.names:
        raise UserError(
            f"{name!r} isn't a dataset of labelled images: it needs a feature 'image' (an image) and a feature 'label' "
            f"(a class), but has {', '.join(f'{key} ({type(f).__name__})' for key, f in features.items())}."
        )
    if image.np_dtype != np.uint8:  # `dtype` would import TensorFlow
        raise UserError(f"The images of {name!r} are {np.dtype(image.np_dtype)}; only uint8 images are supported.")
    height, width, channels = image.shape

    try:
        records = builder.as_data_source(split).data_source
    except ImportError as error:
        raise UserError(f"Reading {name!r} needs array_record: pip install array_record ({error}).") from error
    return _Tfds(name, split, tuple(label.names), (height, width, 1 if channels == 1 else 3), records)


def _prepared_folder(name: str, data_dir: str):
    """Returns the `epath.Path` of a dataset's folder, data_dir/dataset[/config]/version, prepared as array_record."""
    from etils import epath

    match = _TFDS_NAME.fullmatch(name)
    if not match:
        raise UserError(
            f"Can't read the dataset name {name!r}: write 'digits' or the name of a TFDS dataset, such as 'mnist', "
            "'mnist:3.0.1' or 'dataset/config:1.0.0'."
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
    if not versions or (version and version not in versions):
        datasets = [child.name for child in _children(root) if any(map(_versions, [child, *_children(child)]))]
        found = f"versions {', '.join(versions)}" if versions else ", ".join(datasets) or "no dataset"
        hint = "" if versions else suggest(dataset, ["digits", *datasets])
        raise UserError(
            f"The dataset {name!r} is not prepared in {root} (there is {found}).{hint} "
            f"Prepare it once with: {_prepare_command(name, root)}"
        )
    folder = folder / (version or versions[-1])

    # An absent field stands for the oldest format.
    stored_as = json.loads((folder / "dataset_info.json").read_text()).get("fileFormat") or "tfrecord"
    if stored_as != "array_record":
        raise UserError(
            f"The dataset {name!r} in {folder} is stored as {stored_as}, which can't be read without TensorFlow. "
            f"Remove that folder or choose another data_dir, and prepare it again with: {_prepare_command(name, root)}"
        )
    return folder


def _prepare_command(name: str, root) -> str:
    call = f"tfds.builder({name!r}, data_dir={os.fspath(root)!r}, file_format='array_record').download_and_prepare()"
    return f'python -c "import tensorflow_datasets as tfds; {call}" (only preparing needs: pip install tensorflow)'


def _children(folder) -> list:
    """Returns the subfolders, by name; none where the folder doesn't exist."""
    return sorted((c for c in folder.iterdir() if c.is_dir()), key=lambda c: c.name) if folder.is_dir() else []


def _versions(folder) -> list[str]:
    """Returns the prepared versions in a dataset's folder, oldest first."""
    names = [c.name for c in _children(folder) if _VERSION.fullmatch(c.name) and (c / "dataset_info.json").exists()]
    return sorted(names, key=lambda version: tuple(map(int, version.split("."))))
