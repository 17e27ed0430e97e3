"""Folders of images as a dataset: "folder:PATH". The classes are the names of folders, or a column of labels.csv."""

import collections
import csv
import dataclasses
import functools
import hashlib
import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from absl import logging
from PIL import Image

from cnn_research.data import decode
from cnn_research.data.image_files import image_files
from cnn_research.data.splits import checked
from cnn_research.errors import UserError, suggest

PREFIX = "folder:"
LABELS = "labels.csv"

# The names of the folder beside train/ that isn't test/.
_VALIDATION = ("validation", "val", "valid")
_TEST_SHARE = 0.2  # of each class, where a dataset doesn't say itself what is for testing

# An example: the name of its class, and its path below the root with "/".
_Member = tuple[str, str]


@dataclasses.dataclass(frozen=True, eq=False)
class Folder:
    """The images of one split, opened one by one. A `sources.Source`; see there for the contract."""

    name: str
    split: str
    classes: tuple[str, ...]
    root: str
    paths: tuple[str, ...]  # below the root
    labels: np.ndarray  # int32[N]
    image_shape: tuple[None, None, int] = (None, None, 3)

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> dict[str, Any]:
        image, label = self.read_images([index])[0]
        return {"image": decode.to_array(image), "label": label}

    def __getitems__(self, indices: Sequence[int]) -> list[dict[str, Any]]:
        return [self[index] for index in indices]

    def read_images(self, indices: Sequence[int]) -> list[tuple[Image.Image, int]]:
        """Returns the decoded images and their labels."""
        indices = [checked(index, len(self)) for index in indices]
        return [(self._image(index), int(self.labels[index])) for index in indices]

    def read_bytes(self, indices: Sequence[int]) -> list[bytes]:
        """Returns the files as they are. Raises BrokenImage for one that can't be read."""
        return [self._bytes(checked(index, len(self))) for index in indices]

    def _bytes(self, index: int) -> bytes:
        path = self.where(index)
        try:
            with open(path, "rb") as file:
                return file.read()
        except OSError as error:
            raise decode.BrokenImage(path, error.strerror or str(error)) from None

    def _image(self, index: int) -> Image.Image:
        """Reads and decodes one image. Raises BrokenImage, which names its path."""
        return decode.open_image(self._bytes(index), self.image_shape[2], self.where(index))

    def where(self, index: int) -> str:
        """The path of an image."""
        return os.path.join(self.root, self.paths[index])

    def identity(self) -> Any:
        """Everything that decides the pixels and labels, for the cache: of every file its path, size and time."""
        digest = hashlib.sha256()
        for index, label in enumerate(self.labels):
            try:
                stat = os.stat(self.where(index))
            except OSError:  # a missing image will be told, or skipped, by whoever reads it
                digest.update(f"{self.paths[index]!r} {label} missing\n".encode())
                continue
            digest.update(f"{self.paths[index]!r} {label} {stat.st_size} {stat.st_mtime_ns}\n".encode())
        return {"folder": self.root, "classes": self.classes, "files": digest.hexdigest()}


def open_folder(name: str, split: str, data_dir: str = "") -> Folder:
    """Opens one split of a folder.

    Three layouts are read; hidden files, and files whose extension is not an image's, are passed over:

        PATH/labels.csv               path,label[,split]: a header, then one line an image, relative to PATH
        PATH/train/CLASS/**/*.jpg     and PATH/test/ or PATH/val/ (also validation/, valid/) likewise
        PATH/CLASS/**/*.jpg

    Where nothing is set apart for testing, a fifth of each class is, chosen by the images' paths alone. A validation
    set stands in for a test set that isn't there. Examples come in an order that is a function of their paths and as
    good as random, so that a part of a split such as "train[:90%]" is a fair sample; adding or removing a file leaves
    the order, and the side of the split, of all others as it is (but for one that may change sides to keep the share).

    Args:
      name: "folder:PATH", relative to `data_dir`, or to the working directory without one.
      split: "train", "test", "validation" or another name in labels.csv, where it exists.
      data_dir: folder of datasets.

    Raises:
      UserError: for a missing folder or split, a folder without images, an empty class, a class that the training split
        lacks, or a labels.csv that can't be read or names a missing file.
    """
    root = (Path(data_dir).expanduser() / Path(name.removeprefix(PREFIX)).expanduser()).absolute()
    if "://" in name + str(data_dir) or not name.removeprefix(PREFIX):
        raise UserError(f"Can't read the dataset name {name!r}: write folder:PATH, with the path of a local folder.")
    if not root.is_dir():
        raise UserError(f"{name!r}: there is no folder {root}.")

    layout = _layout(root)
    divided = len(layout.splits) > 1  # otherwise nothing is set apart for testing
    own = split
    if split == "test" and not divided:
        own = "train"
    elif split in ("test", *_VALIDATION) and split not in layout.splits:
        own = next((name for name in _VALIDATION if name in layout.splits), split)
    if own not in layout.splits:
        have = [*layout.splits] if divided else ["train", "test"]
        raise UserError(f"Unknown split {split!r} of {name!r}: it has {', '.join(have)}.{suggest(split, have)}")
    if divided and split == "test" != own:
        logging.info("%s has no test images: %r stands in for them", name, own)

    members = layout.splits[own]()
    if not members:
        raise UserError(f"{name!r}: there are no images for the split {own!r} in {root / own}.")
    if not divided:
        members = _stratified(members)[split]
        if not members:
            raise UserError(f"{name!r}: its classes have one image each, so none can be set apart for testing.")
    classes = layout.classes
    if len(classes) < 2:
        raise UserError(
            f"{name!r}: there is one class only, {classes[0]!r} in {layout.place}; two or more are needed, "
            "each in a folder of its own directly below that one."
        )
    label_of = {each: label for label, each in enumerate(classes)}
    unknown = sorted({each for each, _ in members} - set(classes))
    if unknown:
        raise UserError(
            f"{name!r}: the split {own!r} has the class {unknown[0]!r}, which 'train' lacks "
            f"(it has {_shortened(classes)}).{suggest(unknown[0], classes)}"
        )
    members.sort(key=_draw)
    labels = np.array([label_of[each] for each, _ in members], np.int32)
    return Folder(name, split, classes, str(root), tuple(path for _, path in members), labels)


def _draw(member: _Member) -> bytes:
    """What examples are ordered by: as good as random, and of each one's path alone."""
    return hashlib.blake2b(os.fsencode(member[1]), digest_size=8).digest() + os.fsencode(member[1])


def _stratified(members: list[_Member]) -> dict[str, list[_Member]]:
    """Sets a share of each class apart for testing: at least one of a class that has two."""
    by_class = collections.defaultdict(list)
    for member in sorted(members, key=_draw):
        by_class[member[0]].append(member)
    split = {"train": [], "test": []}
    for own in by_class.values():
        count = max(round(_TEST_SHARE * len(own)), 1) if len(own) > 1 else 0
        split["test"] += own[:count]
        split["train"] += own[count:]
    return split


@dataclasses.dataclass(frozen=True)
class _Layout:
    """How a folder is divided.

    Attributes:
      splits: for each split that the folder has itself, a function that lists it.
      classes: those of the training split.
      place: where they were found, for messages.
    """

    splits: dict[str, Callable[[], list[_Member]]]
    classes: tuple[str, ...]
    place: Path


def _layout(root: Path) -> _Layout:
    if (root / LABELS).is_file():
        return _csv_layout(root)
    folders = _subfolders(root)
    if not folders:
        count = len(image_files(root))
        has = f"the {count} images in it lie" if count else "nothing lies"
        raise UserError(f"folder:{root} holds no images in folders of classes ({has} directly in it).")
    # A class may be called "train" too, but then images lie in its folder, not folders of classes.
    if "train" not in folders or not _subfolders(root / "train"):
        return _Layout({"train": functools.partial(_tree, root, "")}, tuple(folders), root)
    splits = [name for name in ("train", "test", *_VALIDATION) if name in folders]
    if len(splits) < len(folders):
        passed_over = [name for name in folders if name not in splits]
        logging.warning("%s: passed over the folders beside train/: %s", root, _shortened(passed_over))
    classes = tuple(_subfolders(root / "train"))
    return _Layout({name: functools.partial(_tree, root, name) for name in splits}, classes, root / "train")


def _tree(root: Path, split: str) -> list[_Member]:
    """Lists the images of every class in the folder of a split, "" for the root."""
    members, others = [], []
    for each in _subfolders(root / split):
        images = image_files(root / split / each, others)
        # Among those that are for testing, a class may be missing.
        if not images and split in ("", "train"):
            where = root / split / each
            raise UserError(f"The class {each!r} is empty: there are no images in {where}. Add some or remove it.")
        members += [(each, "/".join(filter(None, (split, each, image)))) for image in images]
    if others:
        logging.warning("%s: passed over files that aren't images: %s", root / split, _shortened(others))
    return members


def _subfolders(folder: Path) -> list[str]:
    names = (entry.name for entry in os.scandir(folder) if entry.is_dir())
    return sorted(name for name in names if not name.startswith(".") and name != "__MACOSX")


def _csv_layout(root: Path) -> _Layout:
    file = root / LABELS
    splits = collections.defaultdict(list)
    seen = set()
    try:
        with open(file, newline="", encoding="utf-8-sig") as lines:
            reader = csv.DictReader(lines, skipinitialspace=True)
            columns = [(column or "").strip() for column in reader.fieldnames or []]
            if columns not in (["path", "label"], ["path", "label", "split"]):
                has = ",".join(columns)
                raise UserError(f"{file}, line 1: the header must be path,label or path,label,split, not {has!r}.")
            reader.fieldnames = columns
            for row in reader:
                where = f"{file}, line {reader.line_num}"
                if None in row or any(value is None or not value.strip() for value in row.values()):
                    raise UserError(f"{where}: a value for each of {','.join(columns)} is needed.")
                path, label, split = row["path"].strip(), row["label"].strip(), row.get("split", "train").strip()
                if not re.fullmatch(r"[\w-]+", split):
                    raise UserError(f"{where}: can't read the split {split!r}: write train, test or validation.")
                if path in seen:
                    raise UserError(f"{where}: {path!r} stands there for the second time.")
                if not (root / path).is_file():
                    raise UserError(f"{where}: there is no file {root / path}.")
                seen.add(path)
                splits[split].append((label, path))
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{file} can't be read as comma-separated text in UTF-8: {error}.") from None
    if not splits["train"]:
        raise UserError(f"{file} has no images for the split 'train'.")
    names = {label for label, _ in splits["train"]}
    numbers = all(name.isdecimal() for name in names)  # then 10 comes after 9, not after 1
    classes = tuple(sorted(names, key=lambda name: (int(name), name) if numbers else name))
    return _Layout({split: functools.partial(list, rows) for split, rows in splits.items()}, classes, file)


def _shortened(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
