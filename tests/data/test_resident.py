import logging
import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from cnn_research.data import order
from cnn_research.data.decode import BrokenImage
from cnn_research.data.resident import ResidentFeed
from cnn_research.data.sources import open_source
from cnn_research.errors import UserError


@pytest.fixture(scope="module")
def digits():
    return open_source("digits", "test")


@pytest.fixture(scope="module")
def feed(digits):
    return ResidentFeed(digits, seed=7)


def batch_number(feed, step, batch_size):
    return next(feed.train_batches(step, batch_size))


@pytest.fixture(scope="module")
def photographs(prepare_tfds, tmp_path_factory):
    """Colour images of three sizes, and 40 of one large size, as a data_dir; the label numbers the image."""
    import tensorflow_datasets as tfds

    data_dir = str(tmp_path_factory.mktemp("photographs"))
    rng = np.random.default_rng(0)

    def examples(*sizes):
        images = [Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8)) for height, width in sizes]
        return [{"image": image, "label": label} for label, image in enumerate(images)]

    features = {"image": tfds.features.Image(), "label": tfds.features.ClassLabel(num_classes=40)}
    splits = {"mixed": examples((5, 7), (9, 6), (8, 8)), "large": examples(*[(130, 140)] * 40)}
    prepare_tfds(data_dir, "photographs", splits, features)
    return data_dir, splits


def test_arrays_hold_the_source():
    source = open_source("digits", "train")  # more than is read at once
    feed = ResidentFeed(source)
    assert {key: (a.dtype, a.shape) for key, a in feed.arrays.items()} == {
        "image": (np.uint8, (1437, 8, 8, 1)),
        "label": (np.int32, (1437,)),
    }
    for index, example in enumerate(source):
        np.testing.assert_array_equal(feed.arrays["image"][index], example["image"])
        assert feed.arrays["label"][index] == example["label"]
    assert (feed.num_examples, feed.image_shape, feed.classes) == (1437, (8, 8, 1), source.classes)


def test_arrays_hold_a_tfds_sub_split(tiny_tfds):
    source = open_source("tiny_digits", "train[20:50]", tiny_tfds)
    feed = ResidentFeed(source)
    assert feed.num_examples == 30 and feed.image_shape == (28, 28, 1)
    for index, example in enumerate(source):
        np.testing.assert_array_equal(feed.arrays["image"][index], example["image"])
        assert feed.arrays["label"][index] == example["label"]


@pytest.mark.parametrize(
    ("interpolation", "resampling"),
    [
        ("bilinear", Image.Resampling.BILINEAR),
        ("nearest", Image.Resampling.NEAREST),
        ("bicubic", Image.Resampling.BICUBIC),
    ],
)
def test_resizes_as_pillow_does(digits, photographs, interpolation, resampling):
    feed = ResidentFeed(digits, image_size=12, interpolation=interpolation)
    assert feed.image_shape == (12, 12, 1)
    for index in (0, 359):
        expected = Image.fromarray(digits[index]["image"][..., 0]).resize((12, 12), resampling)
        np.testing.assert_array_equal(feed.arrays["image"][index, ..., 0], np.asarray(expected))

    data_dir, splits = photographs
    feed = ResidentFeed(open_source("photographs", "mixed", data_dir), image_size=8, interpolation=interpolation)
    assert feed.image_shape == (8, 8, 3)
    for image, label in zip(feed.arrays["image"], feed.arrays["label"], strict=True):
        expected = splits["mixed"][label]["image"].resize((8, 8), resampling)
        np.testing.assert_array_equal(image, np.asarray(expected))


def test_an_image_of_the_right_size_is_left_alone(digits):
    same = ResidentFeed(digits, image_size=8, interpolation="bicubic").arrays["image"]
    np.testing.assert_array_equal(same, np.stack([example["image"] for example in digits]))


def test_large_images(photographs):
    data_dir, splits = photographs
    feed = ResidentFeed(open_source("photographs", "large", data_dir))
    assert feed.image_shape == (130, 140, 3) and sorted(feed.arrays["label"]) == list(range(40))
    for image, label in zip(feed.arrays["image"], feed.arrays["label"], strict=True):
        np.testing.assert_array_equal(image, np.asarray(splits["large"][label]["image"]))


def test_crops_the_central_square(photographs):
    data_dir, splits = photographs
    feed = ResidentFeed(open_source("photographs", "mixed", data_dir), image_size=5, how="crop")
    assert feed.image_shape == (5, 5, 3)
    # 5x7 stays as it is; 9x6 becomes int(5 * 9 / 6) = 7 high; 8x8 becomes 5x5.
    for label, (width, height), (left, top) in [(0, (7, 5), (1, 0)), (1, (5, 7), (0, 1)), (2, (5, 5), (0, 0))]:
        (image,) = feed.arrays["image"][feed.arrays["label"] == label]
        expected = splits["mixed"][label]["image"].resize((width, height), Image.Resampling.BILINEAR)
        np.testing.assert_array_equal(image, np.asarray(expected)[top : top + 5, left : left + 5])


@pytest.mark.parametrize("batch_size", [1, 64, 100, 360, 800])
def test_train_batches_are_the_stream(feed, batch_size):
    for step in (0, 1, 7, 10**6):
        batch = batch_number(feed, step, batch_size)
        assert set(batch) == {"index", "position"}
        assert batch["index"].dtype == np.int32 and batch["position"].dtype == np.uint32
        positions = [step * batch_size + i for i in range(batch_size)]
        np.testing.assert_array_equal(batch["position"], positions)
        np.testing.assert_array_equal(batch["index"], order.example_indices(7, positions[0], batch_size, 360))


def test_every_example_once_an_epoch(feed):
    epoch = np.concatenate([batch_number(feed, step, 48)["index"] for step in range(15)])  # two epochs of 7.5 batches
    np.testing.assert_array_equal(np.bincount(epoch, minlength=360), np.full(360, 2))


def test_positions_wrap_around(feed):
    batch = batch_number(feed, 2**32 // 16, 16)
    np.testing.assert_array_equal(batch["position"], range(16))
    batch = batch_number(feed, np.int32(2**31 - 1), 7)  # NumPy's int32 would overflow
    np.testing.assert_array_equal(batch["position"], [((2**31 - 1) * 7 + i) % 2**32 for i in range(7)])
    assert batch_number(feed, 2**62, 7)["position"].tolist() == list(range(7))  # beyond int64
    assert batch_number(feed, 2**32 // 7, 7)["position"].tolist() == [2**32 - 4 + i for i in range(4)] + [0, 1, 2]


@pytest.mark.parametrize("batch_size", [1, 7, 64, 120, 359, 360, 361, 1000])
def test_evaluation_counts_each_example_once(feed, batch_size):
    batches = list(feed.eval_batches(batch_size))
    assert len(batches) == -(-360 // batch_size)
    for batch in batches:
        assert {key: (a.dtype, a.shape) for key, a in batch.items()} == {
            "index": (np.int32, (batch_size,)),
            "mask": (np.bool_, (batch_size,)),
        }
        assert batch["index"].min() >= 0 and batch["index"].max() < 360
    seen = np.concatenate([batch["index"][batch["mask"]] for batch in batches])
    np.testing.assert_array_equal(seen, np.arange(360))
    assert all(batch["mask"].all() for batch in batches[:-1])


def test_gather_in_a_compiled_step(digits, feed):
    arrays = jax.device_put(feed.arrays)
    batch = batch_number(feed, 3, 50)
    result = jax.jit(ResidentFeed.gather)(arrays, batch)
    assert set(result) == {"image", "label", "index", "position"}
    assert (result["image"].dtype, result["label"].dtype) == (jnp.uint8, jnp.int32)
    expected = [digits[index] for index in batch["index"]]
    np.testing.assert_array_equal(result["image"], np.stack([example["image"] for example in expected]))
    np.testing.assert_array_equal(result["label"], [example["label"] for example in expected])
    np.testing.assert_array_equal(result["position"], batch["position"])


def test_gather_is_sharded_by_its_caller(feed):
    devices = jax.device_count()
    batch = batch_number(feed, 0, 4 * devices)
    shards = {key: values.reshape(devices, 4) for key, values in batch.items()}
    result = jax.pmap(ResidentFeed.gather, in_axes=(None, 0))(feed.arrays, shards)
    np.testing.assert_array_equal(result["image"], feed.arrays["image"][shards["index"]])


def test_mixed_sizes_are_named(photographs):
    data_dir, splits = photographs
    source = open_source("photographs", "mixed", data_dir)
    with pytest.raises(UserError) as error:
        ResidentFeed(source)
    sizes = ["x".join(map(str, splits["mixed"][example["label"]]["image"].size[::-1])) for example in source]
    assert f"'photographs' mixed differ in size: the first has {sizes[0]} pixels, example 1 {sizes[1]}." in str(
        error.value
    )
    assert "image_size" in str(error.value)


def test_unknown_interpolation(digits):
    with pytest.raises(UserError, match="'cubic': choose one of bilinear, nearest, bicubic"):
        ResidentFeed(digits, interpolation="cubic")


def test_split_without_labels(prepare_tfds, tmp_path):
    import tensorflow_datasets as tfds

    features = {"image": tfds.features.Image(shape=(4, 4, 1)), "label": tfds.features.ClassLabel(num_classes=2)}
    example = {"image": Image.new("L", (4, 4)), "label": -1}  # how TFDS marks the labels that a test set withholds
    prepare_tfds(str(tmp_path), "unlabelled", {"test": [example]}, features)
    with pytest.raises(UserError, match="Example 0 of 'unlabelled' test has the label -1"):
        ResidentFeed(open_source("unlabelled", "test", str(tmp_path)))


def test_reports_what_it_loaded(digits, caplog):
    with caplog.at_level(logging.INFO, logger="absl"):
        ResidentFeed(digits)
    assert "digits test: 360 images of 8x8x1 (0.0 MB) in" in caplog.text


@pytest.fixture
def with_broken(tmp_path):
    """A folder of 40 images of which three can't be read, two of them neighbours; returns its training source."""
    for number in range(50):
        path = tmp_path / "set" / "ab"[number % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 4), (number, 0, 0)).save(path)
    source = open_source(f"folder:{tmp_path}/set", "train")
    broken = [7, 8, 39]
    for index in broken[1:]:
        open(source.where(index), "w").close()
    os.remove(source.where(7))
    return source, broken


def test_a_broken_image_stops_or_is_skipped(with_broken, tmp_path, caplog):
    source, broken = with_broken
    with pytest.raises(BrokenImage) as error:
        ResidentFeed(source, cache=str(tmp_path / "cache"))
    assert any(source.where(index) in str(error.value) for index in broken)

    for _ in range(2):  # the second time from the cache
        feed = ResidentFeed(source, on_error="skip", cache=str(tmp_path / "cache"))
        assert feed.skipped == [source.where(index) for index in broken]
        assert feed.num_examples == 40 and source.where(39) in caplog.text
        for index in range(40):  # the next one that can be read stands in, and nothing else moves
            readable = {7: 9, 8: 9, 39: 0}.get(index, index)
            np.testing.assert_array_equal(feed.arrays["image"][index], source[readable]["image"])
            assert feed.arrays["label"][index] == source[readable]["label"]
        batches = list(feed.eval_batches(16))
        counted = np.concatenate([batch["index"][batch["mask"]] for batch in batches])
        np.testing.assert_array_equal(counted, [i for i in range(40) if i not in broken])
    with pytest.raises(BrokenImage):  # what was skipped once is told again
        ResidentFeed(source, cache=str(tmp_path / "cache"))


def test_nothing_but_broken_images(tmp_path):
    for name in ("a/1.png", "a/2.png", "b/1.png", "b/2.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("")
    for options in ({}, {"image_size": 4}):
        with pytest.raises(UserError, match="None of the 2 images of 'folder:.*' train can be read"):
            ResidentFeed(open_source(f"folder:{tmp_path}", "train"), on_error="skip", **options)


def test_shares_make_up_the_batch(feed):
    whole = next(feed.train_batches(3, 24))
    parts = [next(feed.train_batches(3, 24, slice(start, start + 8))) for start in (0, 8, 16)]
    for name in whole:
        np.testing.assert_array_equal(np.concatenate([part[name] for part in parts]), whole[name])
    parts = [list(feed.eval_batches(100, slice(start, start + 50))) for start in (0, 50)]
    for *pieces, batch in zip(*parts, feed.eval_batches(100), strict=True):
        for name in batch:
            np.testing.assert_array_equal(np.concatenate([piece[name] for piece in pieces]), batch[name])
