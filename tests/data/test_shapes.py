import pickle
import time

import numpy as np
import pytest

from cnn_research.data import shapes
from cnn_research.data.sources import open_source
from cnn_research.errors import UserError


@pytest.mark.parametrize(
    ("name", "split", "count", "size"),
    [("shapes", "train", 10_000, 32), ("shapes:96", "test", 2_000, 96), ("shapes:8", "train[:64]", 64, 8)],
)
def test_source(name, split, count, size):
    source = open_source(name, split)
    assert (source.name, source.split, len(source), source.image_shape) == (name, split, count, (size, size, 3))
    assert source.classes == ("circle", "square", "triangle", "cross")
    example = source[np.int64(5)]
    assert example["image"].shape == (size, size, 3) and example["image"].dtype == np.uint8
    assert type(example["label"]) is int
    with pytest.raises(ValueError, match="read-only"):
        example["image"][:] = 0
    for index in (-1, count):
        with pytest.raises(IndexError):
            source[index]
    again = pickle.loads(pickle.dumps(source)).__getitems__([5, 7])
    np.testing.assert_array_equal(again[0]["image"], example["image"])
    assert not np.array_equal(again[0]["image"], again[1]["image"])


@pytest.mark.parametrize("split", ["train", "test", "train[:64]", "train[30%:]", "test[:2]", "test[501:]"])
def test_classes_are_balanced(split):
    source = open_source("shapes:8", split)
    counts = np.bincount([example["label"] for example in source.__getitems__(range(len(source)))], minlength=4)
    assert counts.max() - counts.min() <= 1


def test_splits_are_disjoint():
    images = [
        example["image"].tobytes()
        for split in ("train", "test")
        for example in open_source("shapes:16", split).__getitems__(range(2000))
    ]
    assert len(set(images)) == 4000
    np.testing.assert_array_equal(
        open_source("shapes", "train[64:]")[0]["image"], open_source("shapes", "train")[64]["image"]
    )


def test_words_of_the_generator_are_those_that_numpy_promises():
    """The known-answer test of Philox 4x64 (Salmon et al. 2011, Random123's kat_vectors): key 0, counter 0."""
    words = np.random.Philox(key=np.zeros(2, np.uint64), counter=np.full(4, 2**64 - 1, np.uint64)).random_raw(4)
    assert [hex(word) for word in words] == [
        "0x16554d9eca36314c", "0xdb20fe9d672d0fdc", "0xd7e772cee186176b", "0x7e68b68aec7ba23b",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("shape", "area", "reach"),
    # Of radius 1: the area by the formulas of school, and how near to the centre the outline comes.
    [
        ("circle", np.pi, 1.0),
        ("square", 2.0, 0.5**0.5),
        ("triangle", 0.75 * 3**0.5, 0.5),
        ("cross", 5 * 0.4, 0.2**0.5),
    ],
)
def test_drawn_shapes_have_their_geometry(shape, area, reach):
    for number in range(12):
        size = 256
        image = shapes.render(number, size, shape).astype(int)
        corners = image[[0, 0, -1, -1], [0, -1, 0, -1]]
        background = corners[0]
        assert (corners == background).all(), "the whole shape lies inside"
        difference = np.abs(image - background)
        colour = difference.max(axis=(0, 1))
        assert (colour >= 64).all()
        inside = (difference / colour).mean(axis=2)
        radius = np.sqrt(inside.sum() / area)
        assert 0.15 * size - 1 < radius < 0.40 * size + 1
        y, x = np.mgrid[:size, :size] + 0.5
        # A circle, a square and a cross are symmetric; the triangle's centre is that of its area.
        centre_y, centre_x = ((inside * axis).sum() / inside.sum() for axis in (y, x))
        distance = np.hypot(y - centre_y, x - centre_x)
        assert abs(distance[inside > 0.5].max() - radius) < 2.5
        assert abs(distance[inside < 0.5].min() - reach * radius) < 2.5


def test_sizes_show_the_same_image():
    for number in range(8):
        large = shapes.render(number, 256, shapes.CLASSES[number % 4]).astype(float)
        small = shapes.render(number, 64, shapes.CLASSES[number % 4])
        shrunk = large.reshape(64, 4, 64, 4, 3).mean(axis=(1, 3))
        assert (
            np.abs(shrunk - small).mean() < 0.5 and np.abs(shrunk - small).max() < 64
        )  # the sharpest tips differ most


def test_size_place_and_angle_vary_over_their_ranges():
    radii, places = [], []
    for number in range(0, 1200, 4):
        image = shapes.render(number, 64, "circle").astype(int)
        difference = np.abs(image - image[0, 0]).max(axis=2)
        inside = difference / difference.max()
        radii.append(np.sqrt(inside.sum() / np.pi) / 64)
        y, x = np.mgrid[:64, :64] + 0.5
        place = [(inside * axis).sum() / inside.sum() / 64 for axis in (y, x)]
        places.append((np.array(place) - radii[-1]) / (1 - 2 * radii[-1]))
    # Uniform over [0.15, 0.40] and [0, 1]: of 300, the mean has a standard deviation of 0.0042 and 0.017.
    assert 0.14 < min(radii) < 0.16 and 0.39 < max(radii) < 0.41 and abs(np.mean(radii) - 0.275) < 0.02
    assert np.abs(np.mean(places, axis=0) - 0.5).max() < 0.08
    assert np.min(places) < 0.02 and np.max(places) > 0.98


@pytest.mark.parametrize(
    ("name", "split", "says"),
    [
        ("shapes:", "train", ["'shapes:'", "shapes:96", "8 to 4096"]),
        ("shapes:big", "train", ["'shapes:big'"]),
        ("shapes:7", "train", ["8 to 4096"]),
        ("shapes:4097", "train", ["8 to 4096"]),
        ("shapes:123456", "train", ["8 to 4096"]),
        ("shapes", "tset", ["'tset'", "train, test", "Did you mean 'test'?"]),
        ("shapes", "test[:3000]", ["beyond the 2000"]),
    ],
)
def test_errors(name, split, says):
    with pytest.raises(UserError) as error:
        open_source(name, split)
    assert "\n" not in str(error.value) and all(text in str(error.value) for text in says)


def test_is_cheap():
    source = open_source("shapes:64", "train")
    source[0]
    began = time.process_time()
    source.__getitems__(range(300))
    assert 300 / (time.process_time() - began) > 1000
