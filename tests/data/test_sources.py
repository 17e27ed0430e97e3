import io
import json
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cnn_research.data.sources import open_source
from cnn_research.data.splits import parse_split, split_range
from cnn_research.errors import UserError, suggest


def labels_of(source):
    return [example["label"] for example in source.__getitems__(range(len(source)))]


def images_of(source):
    return np.stack([example["image"] for example in source.__getitems__(range(len(source)))])


def error_of(function, *arguments):
    """Calls, and returns the message of the UserError, which must be one line."""
    with pytest.raises(UserError) as error:
        function(*arguments)
    assert "\n" not in str(error.value)
    return str(error.value)


# Digits ---------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def load_digits():
    from sklearn import datasets

    return datasets.load_digits()


def test_digits_are_those_of_scikit_learn(load_digits):
    expected = sorted(
        (np.rint(image / 16 * 255).astype(np.uint8).tobytes(), int(label))
        for image, label in zip(load_digits.images, load_digits.target, strict=True)
    )
    sources = [open_source("digits", split) for split in ("train", "test")]
    found = [
        (example["image"].tobytes(), example["label"]) for s in sources for example in s.__getitems__(range(len(s)))
    ]
    assert sorted(found) == expected  # so the two splits are disjoint and leave nothing out


@pytest.mark.parametrize(("split", "size", "share"), [("train", 1437, 0.8), ("test", 360, 0.2)])
def test_digits_split(load_digits, split, size, share):
    source = open_source("digits", split)
    assert (source.name, source.split, len(source)) == ("digits", split, size)
    assert source.image_shape == (8, 8, 1) and source.classes == tuple("0123456789")
    images = images_of(source)
    assert images.shape == (size, 8, 8, 1) and images.dtype == np.uint8 and (images.min(), images.max()) == (0, 255)
    counts = np.bincount(labels_of(source), minlength=10)
    assert np.all(np.abs(counts - share * np.bincount(load_digits.target)) <= 1)  # stratified
    example = source[np.int64(3)]
    np.testing.assert_array_equal(example["image"], images[3])
    assert type(example["label"]) is int
    with pytest.raises(ValueError, match="read-only"):
        example["image"][:] = 0


@pytest.mark.parametrize("split", ["train[:10%]", "train[90%:]", "test[50%:]"])
def test_digits_parts_are_fair_samples(load_digits, split):
    # In the file the scans stand writer by writer, so a tenth of it would be the hands of a few people. The places of a
    # fair sample are uniform over the file: mean 898, sd 519 / sqrt(n); 5 sd.
    place = {np.rint(image / 16 * 255).astype(np.uint8).tobytes(): i for i, image in enumerate(load_digits.images)}
    assert len(place) == 1797
    places = [place[image.tobytes()] for image in images_of(open_source("digits", split))]
    assert abs(np.mean(places) - 898) < 5 * 519 / len(places) ** 0.5
    assert places != sorted(places)


def test_digits_do_not_import_scikit_learn():
    code = "import sys; from cnn_research.data.sources import open_source; open_source('digits', 'train')[0]; "
    code += "print({'sklearn', 'tensorflow_datasets', 'jax'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "set()\n"


# Sub-splits -----------------------------------------------------------------------------------------------------------

SUB_SPLITS = ["[:90%]", "[90%:]", "[10%:20%]", "[:0.5%]", "[33.3%:66.7%]", "[-10%:]", "[:-10%]", "[-30%:-10%]"]
SUB_SPLITS += ["", "[100:]", "[:100]", "[-100:]", "[:-100]", "[100:101]", "[20:-20]", "[:100%]", "[0:]"]


@pytest.mark.parametrize("num_examples", [101, 125, 1437, 1281167])
@pytest.mark.parametrize("sub_split", SUB_SPLITS)
def test_ranges_are_those_of_tfds(sub_split, num_examples):
    import tensorflow_datasets as tfds

    template = tfds.core.ShardedFileTemplate(
        data_dir="/", dataset_name="d", split="train", filetype_suffix="array_record"
    )
    info = tfds.core.SplitInfo(name="train", shard_lengths=[num_examples], num_bytes=0, filename_template=template)
    (expected,) = tfds.core.ReadInstruction.from_spec("train" + sub_split).to_absolute({"train": info})
    _, first, last = parse_split("train" + sub_split)
    start, stop = split_range("train" + sub_split, first, last, num_examples)
    assert (start, stop) == (expected.from_ or 0, num_examples if expected.to is None else expected.to)


def test_complementary_ranges_neither_overlap_nor_leave_a_gap():
    for num_examples in range(1, 300):
        for percent in ("0.5%", "10%", "33%", "50%", "90%", "-10%"):
            assert split_range("", "", percent, num_examples)[1] == split_range("", percent, "", num_examples)[0]


@pytest.mark.parametrize("name", ["digits", "tiny_digits"])
@pytest.mark.parametrize(
    ("split", "part"),
    [("test[:100%]", slice(None)), ("test[20:50]", slice(20, 50)), ("test[-7:]", slice(-7, None))]
    + [("test[50%:]", lambda n: slice(n // 2, n))],  # both have an even number
)
def test_sub_split_holds_the_examples_of_its_range(tiny_tfds, name, split, part):
    whole = open_source(name, "test", tiny_tfds)
    part = part(len(whole)) if callable(part) else part
    images, labels = images_of(whole)[part], labels_of(whole)[part]
    source = open_source(name, split, tiny_tfds)
    assert len(source) == len(images)
    np.testing.assert_array_equal(images_of(source), images)
    np.testing.assert_array_equal(source[2]["image"], images[2])
    assert labels_of(source) == labels
    assert (source.name, source.classes, source.image_shape) == (name, whole.classes, whole.image_shape)
    assert source.split == split
    for outside in (len(source), -1):
        with pytest.raises(IndexError):
            source[outside]
        with pytest.raises(IndexError):
            source.__getitems__([0, outside])


@pytest.mark.parametrize(
    "text",
    [
        "",
        "train[",
        "train[10]",
        "train[a:]",
        "train[1.5:]",
        "train[:10%%]",
        "train[10%:500]",
        "train[::2]",
        "train[:5][:2]",
    ]
    + ["train+test", "train[:1e3]", "train [:5]", "train[+5:]"],
)
def test_malformed_split(text):
    assert repr(text) in error_of(open_source, "digits", text)


@pytest.mark.parametrize(
    ("split", "says"),
    [
        ("trian", ["it has train, test", "Did you mean 'train'?"]),
        ("train[1437:]", ["'train[1437:]'", "empty", "1437 examples"]),
        ("train[50%:50%]", ["empty"]),
        ("train[20:10]", ["empty"]),
        ("train[:1438]", ["'train[:1438]'", "beyond the 1437 examples"]),
        ("train[-1438:]", ["beyond"]),
        ("train[:101%]", ["beyond"]),
    ],
)
def test_impossible_split(split, says):
    message = error_of(open_source, "digits", split)
    assert all(part in message for part in says), message


# TensorFlow Datasets --------------------------------------------------------------------------------------------------


def test_tfds_images_and_labels(tiny_tfds):
    for split, size in (("train", 200), ("test", 60)):
        source = open_source("tiny_digits", split, tiny_tfds)
        assert (len(source), source.image_shape, source.classes) == (size, (28, 28, 1), tuple("0123456789"))
        digits = open_source("digits", split).__getitems__(range(size))  # what the dataset was made of
        expected = sorted(
            (
                np.asarray(Image.fromarray(d["image"][..., 0]).resize((28, 28), Image.Resampling.BILINEAR)).tobytes(),
                d["label"],
            )
            for d in digits
        )
        assert sorted(zip([image.tobytes() for image in images_of(source)], labels_of(source), strict=True)) == expected
        assert source[0]["image"].dtype == np.uint8 and type(source[0]["label"]) is int
        assert source.__getitems__([]) == []


def test_tfds_examples_are_those_of_tfds(tiny_tfds):
    import tensorflow_datasets as tfds

    theirs = tfds.builder_from_directory(f"{tiny_tfds}/tiny_digits/1.0.0").as_data_source("train")
    ours = open_source("tiny_digits", "train", tiny_tfds)
    for index in (0, 57, 199):
        np.testing.assert_array_equal(ours[index]["image"], theirs[index]["image"])
        assert ours[index]["label"] == theirs[index]["label"]


def test_tfds_is_read_without_tensorflow(tiny_tfds):
    code = (
        "import sys; from cnn_research.data.sources import open_source; "
        f"open_source('tiny_digits', 'train', {tiny_tfds!r})[0]; print({{'tensorflow', 'jax'}} & set(sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "set()\n"


@pytest.mark.parametrize("name", ["digits", "tiny_digits"])
@pytest.mark.parametrize("split", ["train", "train[50%:]"])
def test_can_be_pickled(tiny_tfds, name, split):
    source = open_source(name, split, tiny_tfds)
    first = source[1]  # the file is open by now
    copy = pickle.loads(pickle.dumps(source))
    np.testing.assert_array_equal(copy[1]["image"], first["image"])
    assert len(copy) == len(source) and copy.classes == source.classes


def test_iteration_ends(tiny_tfds):
    assert sum(1 for _ in open_source("tiny_digits", "test[:5]", tiny_tfds)) == 5


def coloured(mode):
    """An 9x6 image of `mode` with colours, and transparency where the mode has it."""
    values = np.random.default_rng(0).integers(0, 256, (6, 9, 4), dtype=np.uint8)
    if mode == "P":
        image = Image.fromarray(values[..., :3]).quantize(16)
        image.info["transparency"] = 3
        return image
    return Image.frombytes(
        mode, (9, 6), np.ascontiguousarray(values[..., : len(Image.new(mode, (1, 1)).getbands())]).tobytes()
    )


def encoded(image, file_format):
    buffer = io.BytesIO()
    image.save(buffer, file_format)
    return buffer.getvalue()


@pytest.fixture(scope="module")
def odd_images():
    formats = [
        ("P", "PNG"),
        ("RGBA", "PNG"),
        ("RGB", "PNG"),
        ("L", "PNG"),
        ("LA", "PNG"),
        ("CMYK", "JPEG"),
        ("RGB", "JPEG"),
    ]
    return [encoded(coloured(mode), file_format) for mode, file_format in formats]


@pytest.mark.parametrize(("channels", "mode"), [(3, "RGB"), (1, "L")])
def test_images_decode_to_what_pillow_makes_of_them(prepare_tfds, tmp_path, odd_images, channels, mode):
    import tensorflow_datasets as tfds

    examples = [{"image": image, "label": label} for label, image in enumerate(odd_images)]
    features = {
        "image": tfds.features.Image(shape=(None, None, channels)),
        "label": tfds.features.ClassLabel(names=[f"class {i}" for i in range(len(examples))]),
    }
    prepare_tfds(str(tmp_path), "odd", {"train": examples}, features)
    source = open_source("odd", "train", str(tmp_path))
    assert source.image_shape == (None, None, channels)
    assert source.classes == tuple(f"class {i}" for i in range(len(examples)))
    assert sorted(labels_of(source)) == list(range(len(examples)))
    for example in source:
        expected = np.asarray(Image.open(io.BytesIO(odd_images[example["label"]])).convert(mode)).reshape(
            6, 9, channels
        )
        np.testing.assert_array_equal(example["image"], expected)


def test_broken_image_is_named(prepare_tfds, tmp_path):
    import tensorflow_datasets as tfds

    features = {"image": tfds.features.Image(), "label": tfds.features.ClassLabel(num_classes=2)}
    whole = encoded(coloured("RGB"), "PNG")
    for number, broken in enumerate([b"not an image", whole[:60], whole[:40] + b"xxxx" + whole[44:]]):
        data_dir = str(tmp_path / str(number))
        prepare_tfds(data_dir, "broken", {"train": [{"image": broken, "label": 1}]}, features)
        message = error_of(open_source("broken", "train", data_dir).__getitem__, 0)
        assert "image 0 of 'broken' train" in message


@pytest.fixture(scope="module")
def library(prepare_tfds, tmp_path_factory):
    """A data_dir with several versions and configs. Each holds as many examples as its name says."""
    import tensorflow_datasets as tfds

    root = tmp_path_factory.mktemp("library")
    features = {"image": tfds.features.Image(shape=(8, 8, 1)), "label": tfds.features.ClassLabel(num_classes=10)}

    def add(name, count, **version):
        example = {"image": Image.new("L", (8, 8)), "label": 0}
        return prepare_tfds(str(root), name, {"train": [example] * count}, features, **version)

    add("versions", 2, version="2.0.0")
    add("versions", 10, version="10.0.0")
    (root / "versions" / "11.0.0.incompleteABC").mkdir()
    add("one_config", 3, config="only")
    add("two_configs", 4, config="first")
    add("two_configs", 5, config="second")
    old = Path(add("as_tfrecord", 1))
    info = json.loads((old / "dataset_info.json").read_text())
    (old / "dataset_info.json").write_text(json.dumps(info | {"fileFormat": "tfrecord"}))
    none = Path(add("no_examples", 1))
    info = json.loads((none / "dataset_info.json").read_text())
    info["splits"][0]["shardLengths"] = []
    (none / "dataset_info.json").write_text(json.dumps(info))
    (root / "downloads").mkdir(exist_ok=True)
    return root


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("versions", 10),  # the newest, and not the last by alphabet
        ("versions:2.0.0", 2),
        ("one_config", 3),
        ("one_config/only", 3),
        ("two_configs/first", 4),
        ("two_configs/second:1.0.0", 5),
    ],
)
def test_finds_the_prepared_folder(library, monkeypatch, tmp_path, name, size):
    assert len(open_source(name, "train", str(library))) == size
    monkeypatch.setenv("TFDS_DATA_DIR", str(library))
    assert len(open_source(name, "train")) == size
    monkeypatch.delenv("TFDS_DATA_DIR")
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "tensorflow_datasets").symlink_to(library)
    assert len(open_source(name, "train")) == size
    assert len(open_source(name, "train", "~/tensorflow_datasets")) == size


@pytest.mark.parametrize(
    ("name", "split", "says"),
    [
        (
            "version",
            "train",
            ["not prepared in {root} (there is as_tfrecord, no_examples, one_config, two_configs, versions)."],
        ),
        ("version", "train", ["Did you mean 'versions'?", "cnn-research prepare version --data_dir={root}"]),
        ("digit", "train", ["Did you mean 'digits'?"]),
        ("versions:3.0.0", "train", ["not prepared", "versions 2.0.0, 10.0.0", "prepare versions:3.0.0"]),
        ("versions/other", "train", ["not prepared"]),
        ("two_configs", "train", ["two_configs/first, two_configs/second"]),
        ("as_tfrecord", "train", ["stored as tfrecord", "{root}/as_tfrecord/1.0.0", "prepare as_tfrecord"]),
        ("versions", "tset", ["Unknown split 'tset' of 'versions'", "it has train"]),
        ("versions", "train[10:]", ["empty"]),
        ("no_examples", "train", ["The split 'train' of 'no_examples' is empty"]),
        ("versions:new", "train", ["Can't read the dataset name 'versions:new'"]),
        ("../versions", "train", ["Can't read the dataset name"]),
    ],
)
def test_dataset_errors(library, name, split, says):
    message = error_of(open_source, name, split, str(library))
    for part in says:
        assert part.format(root=library) in message


def test_missing_data_dir(tmp_path):
    assert f"not prepared in {tmp_path}/none (there is no dataset)" in error_of(
        open_source, "mnist", "train", f"{tmp_path}/none"
    )


def test_datasets_that_are_not_labelled_images(prepare_tfds, tmp_path):
    import tensorflow_datasets as tfds

    image, label = tfds.features.Image(shape=(8, 8, 1)), tfds.features.ClassLabel(num_classes=2)
    picture = Image.new("L", (8, 8))
    deep = Image.fromarray(np.zeros((8, 8), np.uint16))
    table = [
        ("no_label", {"image": image}, {"image": picture}, "has image (Image)"),
        ("no_image", {"label": label}, {"label": 1}, "has label (ClassLabel)"),
        ("number", {"image": image, "label": np.int64}, {"image": picture, "label": 1}, "label (Tensor)"),
        ("deep", {"image": tfds.features.Image(shape=(8, 8, 1), dtype=np.uint16), "label": label}, None, "uint16"),
    ]
    for name, features, example, says in table:
        example = example or {"image": encoded(deep, "PNG"), "label": 0}
        prepare_tfds(str(tmp_path), name, {"train": [example]}, features)
        message = error_of(open_source, name, "train", str(tmp_path))
        assert repr(name) in message and says in message


def test_array_record_missing(tiny_tfds):
    code = (
        "import sys; sys.modules['array_record'] = None; from cnn_research.data.sources import open_source\n"
        f"try: open_source('tiny_digits', 'train', {tiny_tfds!r})\n"
        "except Exception as error: print(type(error).__name__, error)"
    )
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert "UserError Reading 'tiny_digits' needs array_record: pip install array_record" in output


def test_suggest():
    assert suggest("Resnet18", ["resnet18", "lenet"]) == " Did you mean 'resnet18'?"
    assert suggest("resnet18", ["ResNet18"]) == " Did you mean 'ResNet18'?"
    assert suggest("zzz", ["resnet18", "lenet"]) == ""


def test_storage_whose_package_is_not_installed(monkeypatch):
    def open_tfds(*_):
        raise ImportError("Please install gcsfs")

    monkeypatch.setattr("cnn_research.data.tfds.open_tfds", open_tfds)
    with pytest.raises(UserError, match="data_dir gs://bucket/tfds: Please install gcsfs"):
        open_source("mnist", "train", "gs://bucket/tfds")
