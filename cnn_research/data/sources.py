"""Sources of examples: `open_source(name, split)` gives random access to {"image", "label"}, whatever the dataset.

    digits           the 1,797 scans that scikit-learn ships: nothing to download
    folder:PATH      one's own images, in a folder for each class or with a labels.csv
    shapes           circles, squares, triangles and crosses that are drawn as they are read; "shapes:96" for 96x96
    any TFDS name    "mnist", "mnist:3.0.1", "dataset/config:1.0.0", prepared as array_record; TensorFlow isn't needed

Here stand the contract, parts of splits, and the digits; the others have files of their own.
"""

import dataclasses
import functools
import importlib.util
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from absl import logging
from PIL import Image

from cnn_research.data import decode, folder, order, shapes, tfds
from cnn_research.data.decode import BrokenImage
from cnn_research.data.splits import check_split, checked, parse_split, split_range
from cnn_research.errors import UserError

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
          BrokenImage: for an image that is missing or can't be decoded.
        """
        ...

    def __getitems__(self, indices: Sequence[int]) -> list[Example]:
        """Returns the examples of `indices`: for many at once, much faster than one by one."""
        ...

    # Sources whose images are files also have
    #
    #     read_images(indices) -> list[tuple[PIL.Image.Image, int]]: the same, before the pixels become an array;
    #     read_bytes(indices) -> list[bytes]: the files, for measurements;
    #     where(index) -> str: the path of an image, or another name for it;
    #     identity() -> Any: JSON that changes whenever the pixels or labels do, so that they can be cached.


def read_images(source: Source, indices: Sequence[int]) -> list[tuple[Image.Image, int]]:
    """Reads examples as (image of mode "L" or "RGB", label), for those who resize the images before all else.

    Making an array of a photograph and an image of that again would take a tenth of the time of decoding and resizing.

    Raises:
      BrokenImage: as `Source.__getitem__`.
    """
    if hasattr(source, "read_images"):
        return source.read_images(indices)
    return [(decode.from_array(example["image"]), example["label"]) for example in source.__getitems__(indices)]


def read_bytes(source: Source, indices: Sequence[int]) -> list[bytes]:
    """Returns the encoded images; [] of a source that has none, as those that are made by computing."""
    return source.read_bytes(indices) if hasattr(source, "read_bytes") else []


def where(source: Source, index: int) -> str:
    """Returns an image's path, or another name for it, for messages."""
    return source.where(index) if hasattr(source, "where") else f"{index} of {source.name!r} {source.split}"


def identity(source: Source) -> Any:
    """Returns JSON that changes whenever the pixels or labels of a source do; None if it isn't worth caching."""
    return source.identity() if hasattr(source, "identity") else None


def check_label(source: Source, index: int, label: int) -> None:
    """Raises UserError for a label without a class, such as the -1 by which TFDS marks what a test set withholds."""
    if not 0 <= label < len(source.classes):
        raise UserError(
            f"Example {index} of {source.name!r} {source.split} has the label {label}, but the labels "
            f"of {len(source.classes)} classes are 0 to {len(source.classes) - 1}. Choose a split with labels."
        )


def read_or_skip(source: Source, index: int, on_error: str) -> tuple[Image.Image, int] | None:
    """Reads one example as `read_images` does; None if it can't be read and on_error is "skip"."""
    try:
        return read_images(source, [index])[0]
    except BrokenImage:
        if on_error != "skip":
            raise
        return None


def next_readable(source: Source, index: int, on_error: str) -> tuple[int, Image.Image, int]:
    """Returns the first example from `index` on, cyclically, that can be read: it stands in for a broken one.

    Returns:
      (index, image, label).

    Raises:
      UserError: none can.
    """
    for offset in range(len(source)):
        found = (index + offset) % len(source)
        example = read_or_skip(source, found, on_error)
        if example:
            return found, *example
    raise UserError(f"None of the {len(source)} images of {source.name!r} {source.split} can be read.")


def shape_of(source: Source, image_size: int = 0, on_error: str = "stop") -> tuple[int, int, int]:
    """Returns the (H, W, C) of a source's images when they are resized to a square of `image_size`, 0 for not at all.

    Where the images have sizes of their own, that of the first one is taken for all.

    Raises:
      UserError: as `next_readable`.
    """
    height, width, channels = source.image_shape
    if image_size:
        height = width = image_size
    elif height is None or width is None:
        _, image, _ = next_readable(source, 0, on_error)
        height, width = image.height, image.width
    return height, width, channels


def report_skipped(source: Source, indices: Sequence[int]) -> None:
    """Logs that images were left out."""
    paths = ", ".join(where(source, index) for index in list(indices)[:5])
    more = f" and {len(indices) - 5} more" if len(indices) > 5 else ""
    logging.warning("skipped %d image(s) that can't be read: %s%s", len(indices), paths, more)


def count_cores() -> int:
    """Returns the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def open_source(name: str, split: str, data_dir: str = "") -> Source:
    """Opens one split of a dataset.

    Args:
      name: "digits"; "shapes" or "shapes:96"; "folder:PATH", see `folder.open_folder`; or the name of a TFDS dataset:
        "mnist", "mnist:3.0.1", "dataset/config:1.0.0". Without a version the newest one that is prepared is read.
      split: a split's name and optionally a range of it in percent or examples: "train", "train[:90%]", "train[-500:]".
        Percentages are rounded to the closest example, so "train[:90%]" and "train[90%:]" neither overlap nor leave
        a gap.
      data_dir: the TFDS folder, also gs://...; by default $TFDS_DATA_DIR, else ~/tensorflow_datasets. A folder's PATH
        is relative to it. The digits and the shapes need none.

    Raises:
      UserError: for a dataset that isn't prepared or can't be read as labelled images, an unknown split, or a range
        that is malformed, empty or reaches beyond the split; or for storage that takes a package to be installed.
    """
    base_split, first, last = parse_split(split)
    if name == "digits":
        source = _open_digits(base_split)
    elif shapes.is_shapes(name):
        source = shapes.open_shapes(name, base_split)
    elif name.startswith(folder.PREFIX):
        source = folder.open_folder(name, base_split, data_dir)
    else:
        try:
            source = tfds.open_tfds(name, base_split, data_dir)
        except ImportError as error:  # of the package that reads this kind of storage
            raise UserError(f"data_dir {data_dir}: {error}") from None
    start, stop = split_range(split, first, last, len(source))
    if start >= stop:
        raise UserError(f"The split {split!r} of {name!r} is empty: {base_split!r} has {len(source)} examples.")
    return source if split == base_split else Range(source, split, start, stop)


@dataclasses.dataclass(frozen=True)
class Range:
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
        return self.source[self.start + checked(index, len(self))]

    def __getitems__(self, indices: Sequence[int]) -> list[Example]:
        return self.source.__getitems__([self.start + checked(index, len(self)) for index in indices])

    def read_images(self, indices: Sequence[int]) -> list[tuple[Image.Image, int]]:
        return read_images(self.source, [self.start + checked(index, len(self)) for index in indices])

    def read_bytes(self, indices: Sequence[int]) -> list[bytes]:
        return read_bytes(self.source, [self.start + checked(index, len(self)) for index in indices])

    def where(self, index: int) -> str:
        return where(self.source, self.start + index)

    def identity(self) -> Any:
        whole = identity(self.source)
        return whole and [whole, self.start, self.stop]


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
        index = checked(index, len(self))
        return {"image": self.images[index], "label": int(self.labels[index])}

    def __getitems__(self, indices: Sequence[int]) -> list[Example]:
        return [self[index] for index in indices]


def _open_digits(split: str) -> _Digits:
    check_split("digits", split, ["train", "test"])
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
