import collections
import logging
import pickle
import random
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cnn_research.data import sources
from cnn_research.data.decode import BrokenImage
from cnn_research.errors import UserError


def make(root, paths):
    """Writes tiny images whose colour is a number of their own; returns {path: number}."""
    numbers = {}
    for number, path in enumerate(paths):
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (3, 2), (number // 256, number % 256, 7)).save(root / path, format="PNG")
        numbers[path] = number
    return numbers


def contents(source):
    """{number: label} of all examples."""
    found = {}
    for example in source.__getitems__(range(len(source))):
        red, green, _ = example["image"][0, 0].tolist()
        found[red * 256 + green] = example["label"]
    assert len(found) == len(source)
    return found


def open_folder(root, split):
    return sources.open_source(f"folder:{root}", split)


def error_of(function, *arguments):
    with pytest.raises(UserError) as error:
        function(*arguments)
    assert "\n" not in str(error.value)
    return str(error.value)


SPLIT = [f"train/{name}/{i}.png" for name in ("cat", "ant", "bee") for i in range(10)]
SPLIT += [f"test/{name}/{i}.png" for name in ("bee", "cat") for i in range(3)]


def test_train_and_test_folders(tmp_path):
    numbers = make(tmp_path, SPLIT)
    for split, size in (("train", 30), ("test", 6)):
        source = open_folder(tmp_path, split)
        assert (source.classes, source.image_shape, len(source)) == (("ant", "bee", "cat"), (None, None, 3), size)
        expected = {n: source.classes.index(p.split("/")[1]) for p, n in numbers.items() if p.startswith(split)}
        assert contents(source) == expected
        assert source[0]["image"].shape == (2, 3, 3) and type(source[0]["label"]) is int


def test_every_extension_and_nothing_else(tmp_path, caplog):
    names = [
        "a.jpg",
        "b.JPEG",
        "c.png",
        "d.webp",
        "e.bmp",
        "f.gif",
        "g.tif",
        "h.TIFF",
        "deep/er/i.png",
        "with space.png",
    ]
    numbers = make(tmp_path, [f"{each}/{name}" for each in "xy" for name in names])
    make(tmp_path, ["x/.hidden.png", "x/.thumbs/a.png", ".git/a.png", "__MACOSX/x/a.png", "x/__MACOSX/b.png"])
    (tmp_path / "x" / "notes.txt").write_text("not an image")
    (tmp_path / "x" / "Thumbs.db").write_text("nor this")
    (tmp_path / "README").write_text("")
    with caplog.at_level(logging.WARNING, logger="absl"):
        train, test = (open_folder(tmp_path, split) for split in ("train", "test"))
    assert train.classes == ("x", "y")
    assert set(train.paths) | set(test.paths) == set(numbers)
    assert "notes.txt" in caplog.text and "Thumbs.db" not in caplog.text


def test_links_are_followed_but_not_in_circles(tmp_path):
    make(tmp_path, ["a/1.png", "b/2.png", "elsewhere/3.png", "elsewhere/4.png"])
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "a").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "set" / "b").symlink_to(tmp_path / "b")
    (tmp_path / "b" / "again").symlink_to(tmp_path / "b")
    everything = [path for split in ("train",) for path in open_folder(tmp_path / "set", split).paths]
    assert "b/2.png" in everything and not any("again" in path for path in everything)


def tree(sizes):
    return [f"{name}/{i:04}.png" for name, size in sizes.items() for i in range(size)]


def test_stratified_split(tmp_path):
    sizes = {"a": 50, "b": 13, "c": 2, "d": 1}
    numbers = make(tmp_path, tree(sizes))
    train, test = (open_folder(tmp_path, split) for split in ("train", "test"))
    assert sorted([*contents(train), *contents(test)]) == sorted(numbers.values())  # disjoint, and nothing left out
    counts = [collections.Counter(train.classes[label] for label in contents(s).values()) for s in (train, test)]
    assert counts == [{"a": 40, "b": 10, "c": 1, "d": 1}, {"a": 10, "b": 3, "c": 1}]
    again = open_folder(tmp_path, "train")
    assert again.paths == train.paths
    # Neither side follows the names, as what was photographed on one day would.
    places = [int(path[2:6]) for path in test.paths if path.startswith("a")]
    assert places != sorted(places) and 10 < np.mean(places) < 40


def test_the_split_follows_the_names_alone(tmp_path):
    names = tree({"a": 40, "b": 40})
    make(tmp_path / "one", names)
    shuffled = list(names)
    random.Random(0).shuffle(shuffled)
    make(tmp_path / "two", shuffled)  # other contents, times and order in the directory
    for split in ("train", "test"):
        assert open_folder(tmp_path / "one", split).paths == open_folder(tmp_path / "two", split).paths


def test_another_image_moves_no_other(tmp_path):
    make(tmp_path, tree({"a": 60, "b": 60}))
    before = {split: open_folder(tmp_path, split).paths for split in ("train", "test")}
    make(tmp_path, ["a/new.png"])
    for split in ("train", "test"):
        after = [path for path in open_folder(tmp_path, split).paths if path != "a/new.png"]
        moved = set(before[split]) ^ set(after)
        assert len(moved) <= 1
        assert [p for p in after if p not in moved] == [p for p in before[split] if p not in moved]


def test_parts_are_fair_samples(tmp_path):
    make(tmp_path, tree({"a": 100, "b": 100}))
    whole, part = open_folder(tmp_path, "train"), open_folder(tmp_path, "train[:50%]")
    assert len(whole) == 160 and len(part) == 80
    labels = [example["label"] for example in part]
    assert labels != sorted(labels) and abs(sum(labels) - 40) < 5 * (80 / 4 / 2) ** 0.5
    assert part.where(3) == whole.where(3)


@pytest.mark.parametrize(
    ("folders", "asked", "found"),
    [
        (("train", "val"), "test", "val"),
        (("train", "val"), "validation", "val"),
        (("train", "validation"), "val", "validation"),
        (("train", "valid", "test"), "test", "test"),
        (("train", "valid", "test"), "validation", "valid"),
    ],
)
def test_names_of_the_validation_set(tmp_path, folders, asked, found):
    make(tmp_path, [f"{folder}/{each}/1.png" for folder in folders for each in "ab"])
    assert {path.split("/")[0] for path in open_folder(tmp_path, asked).paths} == {found}


def test_train_alone_is_divided(tmp_path):
    make(tmp_path, [f"train/{path}" for path in tree({"a": 10, "b": 10})])
    assert (len(open_folder(tmp_path, "train")), len(open_folder(tmp_path, "test"))) == (16, 4)


def test_a_class_may_be_called_train(tmp_path):
    make(tmp_path, tree({"train": 10, "car": 10}))
    assert open_folder(tmp_path, "train").classes == ("car", "train")


def write_csv(root, text):
    (root / "labels.csv").write_text(text)


@pytest.mark.parametrize("bom", ["", "\ufeff"])
def test_labels_csv(tmp_path, bom):
    numbers = make(tmp_path, ["x/1.png", "2.png", "deep/er/3.png", "4.png", "5.png"])
    write_csv(
        tmp_path,
        f'{bom}path,label,split\nx/1.png,wren,train\n2.png,"robin, red",train\n\ndeep/er/3.png,wren,train\n'
        "4.png,wren,val\n5.png , wren,test\n",
    )
    train = open_folder(tmp_path, "train")
    assert train.classes == ("robin, red", "wren")
    assert contents(train) == {numbers["x/1.png"]: 1, numbers["2.png"]: 0, numbers["deep/er/3.png"]: 1}
    assert contents(open_folder(tmp_path, "validation")) == {numbers["4.png"]: 1}
    assert contents(open_folder(tmp_path, "test")) == {numbers["5.png"]: 1}


def test_labels_csv_without_splits_and_with_numbers(tmp_path):
    paths = [f"{i}.png" for i in range(60)]
    make(tmp_path, paths)
    write_csv(tmp_path, "path,label\n" + "".join(f"{path},{i % 12}\n" for i, path in enumerate(paths)))
    train, test = (open_folder(tmp_path, split) for split in ("train", "test"))
    assert train.classes == tuple(map(str, range(12)))  # 10 after 9
    assert (len(train), len(test)) == (48, 12)
    assert all(number % 12 == label for source in (train, test) for number, label in contents(source).items())


def test_a_path_below_data_dir(tmp_path, monkeypatch):
    make(tmp_path / "pets", tree({"a": 5, "b": 5}))
    assert len(sources.open_source("folder:pets", "train", str(tmp_path))) == 8
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("folder:pets", "folder:./pets", "folder:~/pets", f"folder:{tmp_path}/pets"):
        assert len(sources.open_source(name, "train")) == 8


def nothing(root):
    pass


MISTAKES = {
    "no folder": (lambda root: root.rmdir(), "train", ["there is no folder {root}"]),
    "empty": (nothing, "train", ["{root} holds no images", "nothing lies directly in it"]),
    "no classes": (lambda root: make(root, ["1.png", "2.png"]), "train", ["folders of classes", "2 images"]),
    "one class": (lambda root: make(root, tree({"images": 3})), "train", ["one class only, 'images'"]),
    "empty class": (
        lambda root: (make(root, tree({"a": 3, "b": 3})), (root / "c").mkdir()),
        "train",
        ["The class 'c' is empty", "{root}/c"],
    ),
    "class of other files": (
        lambda root: (
            make(root, tree({"a": 3, "b": 3})),
            (root / "b2").mkdir(),
            (root / "b2" / "x.txt").write_text(""),
        ),
        "test",
        ["The class 'b2' is empty"],
    ),
    "class that train lacks": (
        lambda root: make(root, [*SPLIT, "test/cats/1.png"]),
        "test",
        ["'test' has the class 'cats', which 'train' lacks", "ant, bee, cat", "Did you mean 'cat'?"],
    ),
    "empty test": (
        lambda root: (make(root, [p for p in SPLIT if p.startswith("train")]), (root / "test").mkdir()),
        "test",
        ["no images for the split 'test' in {root}/test"],
    ),
    "unknown split": (lambda root: make(root, SPLIT), "tset", ["Unknown split 'tset'", "train, test", "'test'?"]),
    "no validation": (lambda root: make(root, SPLIT), "validation", ["Unknown split 'validation'", "train, test"]),
    "too few": (lambda root: make(root, tree({"a": 1, "b": 1})), "test", ["one image each"]),
    "csv header": (lambda root: write_csv(root, "file,label\n"), "train", ["labels.csv, line 1", "path,label"]),
    "csv empty": (lambda root: write_csv(root, "path,label\n"), "train", ["labels.csv has no images", "'train'"]),
    "csv missing file": (
        lambda root: (make(root, ["a.png"]), write_csv(root, "path,label\na.png,x\nb.png,y\n")),
        "train",
        ["labels.csv, line 3", "there is no file {root}/b.png"],
    ),
    "csv without label": (
        lambda root: (make(root, ["a.png"]), write_csv(root, "path,label\na.png,\n")),
        "train",
        ["labels.csv, line 2", "path,label is needed"],
    ),
    "csv too long a line": (
        lambda root: (make(root, ["a.png"]), write_csv(root, "path,label\na.png,x,y\n")),
        "train",
        ["labels.csv, line 2", "path,label is needed"],
    ),
    "csv twice": (
        lambda root: (make(root, ["a.png"]), write_csv(root, "path,label\na.png,x\na.png,y\n")),
        "train",
        ["labels.csv, line 3", "'a.png'", "second time"],
    ),
    "csv label that train lacks": (
        lambda root: (
            make(root, ["a.png", "b.png", "c.png"]),
            write_csv(root, "path,label,split\na.png,0,train\nb.png,1,train\nc.png,2,test\n"),
        ),
        "test",
        ["'test' has the class '2', which 'train' lacks"],
    ),
    "csv bad split": (
        lambda root: (make(root, ["a.png"]), write_csv(root, "path,label,split\na.png,x,train[:5]\n")),
        "train",
        ["labels.csv, line 2", "'train[:5]'"],
    ),
    "csv not text": (
        lambda root: (root / "labels.csv").write_bytes(b"path,label\n\xff\xfe\x00,x\n"),
        "train",
        ["labels.csv can't be read"],
    ),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_are_told_in_one_line(tmp_path, name):
    damage, split, says = MISTAKES[name]
    root = tmp_path / "set"
    root.mkdir()
    damage(root)
    message = error_of(open_folder, root, split)
    for part in says:
        assert part.format(root=root) in message


@pytest.mark.parametrize("name", ["folder:", "folder:gs://bucket/pets"])
def test_names_that_are_no_local_folder(name):
    assert repr(name) in error_of(sources.open_source, name, "train")


def test_broken_and_missing_images_are_named(tmp_path):
    make(tmp_path, tree({"a": 5, "b": 5}))
    source = open_folder(tmp_path, "train")
    first, second = source.where(0), source.where(1)
    open(first, "w").close()
    (tmp_path / source.paths[1]).unlink()
    for index, says in ((0, f"{first}: the file is empty"), (1, f"{second}: No such file")):
        with pytest.raises(BrokenImage) as error:
            source[index]
        assert says in str(error.value)


def test_can_be_pickled(tmp_path):
    make(tmp_path, tree({"a": 5, "b": 5}))
    source = open_folder(tmp_path, "train[2:6]")
    copy = pickle.loads(pickle.dumps(source))
    np.testing.assert_array_equal(copy[3]["image"], source[3]["image"])
    for outside in (-1, 4):
        with pytest.raises(IndexError):
            source[outside]


def test_identity_changes_with_the_files(tmp_path):
    make(tmp_path, tree({"a": 5, "b": 5}))

    def identity(split="train"):
        return str(sources.identity(open_folder(tmp_path, split)))

    first = identity()
    assert identity() == first
    assert len({first, identity("test"), identity("train[1:]"), identity("train[:1]")}) == 4
    path = tmp_path / open_folder(tmp_path, "train").paths[2]
    Image.new("RGB", (3, 2), (200, 100, 50)).save(path, format="BMP")
    second = identity()
    make(tmp_path, ["c/1.png", "c/2.png"])
    assert len({first, second, identity()}) == 3


def test_the_bytes_of_the_files(tmp_path):
    make(tmp_path, tree({"a": 5, "b": 5}))
    source = sources.open_source(f"folder:{tmp_path}", "train[2:5]")
    found = sources.read_bytes(source, [2, 0])
    assert found == [Path(source.where(index)).read_bytes() for index in (2, 0)]
    assert sources.read_bytes(sources.open_source("digits", "train"), [0]) == []
