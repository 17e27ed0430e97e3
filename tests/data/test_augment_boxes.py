"""The augmentations that crop, resize and erase boxes of random size or place."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from scipy import stats

from cnn_research.data import augment
from cnn_research.errors import UserError

KEY = jax.random.key(5)


@functools.cache
def compiled(text):
    return jax.jit(functools.partial(augment.apply, augment.parse(text)))


def draws(text, image, count):
    """uint8[count, H', W', C]: the same image, augmented at so many positions."""
    return np.asarray(compiled(text)(KEY, jnp.arange(count, dtype=jnp.uint32), np.repeat(image[None], count, axis=0)))


def random_image(shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def pillow_resize(image, size):
    pillow = Image.fromarray(image.squeeze(-1) if image.shape[2] == 1 else image)
    return np.asarray(pillow.resize((size, size), Image.Resampling.BILINEAR)).reshape(size, size, -1)


def assert_uniform(results, possible):
    """Every result is one of the possible ones, each as often as the others."""
    number = {image.tobytes(): i for i, image in enumerate(possible)}
    assert len(number) == len(possible), "they can be told apart"
    counts = np.bincount([number[result.tobytes()] for result in results], minlength=len(possible))
    assert stats.chisquare(counts).pvalue > 1e-4


# ---------------------------------------------------------------------------------------------------- crops


@pytest.mark.parametrize(("shape", "size"), [((7, 6, 3), 4), ((5, 5, 1), 1), ((6, 9, 3), 6)])
def test_random_crop_is_uniform_over_all_places(shape, size):
    image = random_image(shape)
    image[..., 0] = np.arange(shape[0] * shape[1]).reshape(shape[:2])  # every pixel is told from the others
    places = [(y, x) for y in range(shape[0] - size + 1) for x in range(shape[1] - size + 1)]
    results = draws(f"random_crop({size})", image, 100 * len(places))
    assert results.shape[1:] == (size, size, shape[2])
    assert_uniform(results, [image[y : y + size, x : x + size] for y, x in places])


def test_random_crop_of_too_small_an_image():
    with pytest.raises(ValueError, match=r"random_crop\(9\): the images have only 8x12 pixels"):
        augment.output_shape(augment.parse("flip|random_crop(9)"), (8, 12, 3))


@pytest.mark.parametrize("shape", [(40, 40, 3), (37, 53, 3), (100, 31, 1), (8, 8, 3), (5, 300, 3)])
@pytest.mark.parametrize("size", [8, 24, 61])
def test_resize_is_pillows(shape, size):
    image = random_image(shape)
    (result,) = draws(f"resize({size})", image, 1)
    assert np.abs(result.astype(int) - pillow_resize(image, size)).max() <= 1  # Pillow rounds after each direction


@pytest.mark.parametrize(
    ("shape", "box"),
    # Of all of the area no box fits but the whole of a square. Else the largest central box of 3/4 to 4/3 is taken.
    [
        ((30, 30, 3), (0, 0, 30, 30)),
        ((10, 40, 3), (0, 13, 10, 13)),  # 10 * 4/3 = 13.3 wide, from (40 - 13) // 2 on
        ((40, 9, 1), (14, 0, 12, 9)),  # 9 / (3/4) = 12 high
    ],
)
def test_random_resized_crop_falls_back_to_the_centre(shape, box):
    image = random_image(shape)
    top, left, height, width = box
    expected = pillow_resize(image[top : top + height, left : left + width], 12)
    results = draws("random_resized_crop(12, 1, 1)", image, 20).astype(int)
    assert np.abs(results - expected).max() <= 1


def torchvision_boxes(height, width, scale, ratio, count, seed=0):
    """RandomResizedCrop.get_params and, with its ratio and sizes turned around, RandomErasing.get_params."""
    rng = np.random.default_rng(seed)
    boxes = []
    while len(boxes) < count:
        for _ in range(10):
            area = height * width * rng.uniform(*scale)
            aspect = np.exp(rng.uniform(*np.log(ratio)))
            w, h = round((area * aspect) ** 0.5), round((area / aspect) ** 0.5)
            if 0 < w <= width and 0 < h <= height:
                top, left = rng.integers(0, height - h + 1), rng.integers(0, width - w + 1)
                boxes.append((top, left, h, w))
                break
    return np.array(boxes)


@pytest.mark.parametrize(("text", "scale"), [("9", (0.08, 1)), ("9, 0.2, 0.5", (0.2, 0.5))])
@pytest.mark.parametrize("shape", [(60, 60), (45, 62)])
def test_random_resized_crop_draws_as_torchvision(text, scale, shape):
    height, width = shape
    image = np.zeros((height, width, 3), np.uint8)
    image[..., 0], image[..., 1] = 4 * np.arange(height)[:, None], 4 * np.arange(width)[None, :]
    results = draws(f"random_resized_crop({text})", image, 3000).astype(float)
    # The resized ramps tell the box: their slope its size, their middle its centre.
    sides = np.round((results[:, 7, 7] - results[:, 1, 1])[:, :2] / 4 / 6 * 9)
    corners = np.round(results[:, 4, 4, :2] / 4 + 0.5 - sides / 2)
    assert (sides >= 1).all() and (corners >= 0).all() and (corners + sides <= shape).all()
    expected = torchvision_boxes(height, width, scale, (3 / 4, 4 / 3), 20_000)
    h, w = sides.T
    free = np.maximum(1, shape - sides)
    free_expected = np.maximum(1, shape - expected[:, 2:])
    for ours, theirs in [
        (h * w, expected[:, 2] * expected[:, 3]),
        (w / h, expected[:, 3] / expected[:, 2]),
        (corners[:, 0] / free[:, 0], expected[:, 0] / free_expected[:, 0]),
        (corners[:, 1] / free[:, 1], expected[:, 1] / free_expected[:, 1]),
    ]:
        assert stats.ks_2samp(ours, theirs).pvalue > 1e-4
    # And the result is that box, resized by Pillow.
    for result, (y, x), (h, w) in zip(results[:50], corners.astype(int), sides.astype(int), strict=False):
        assert np.abs(result - pillow_resize(image[y : y + h, x : x + w], 9)).max() <= 1


# -------------------------------------------------------------------------------------------------- erasing


@pytest.mark.parametrize(("shape", "size"), [((6, 6, 3), 3), ((5, 7, 1), 2), ((4, 4, 3), 1)])
def test_cutout_fills_a_square_around_a_uniformly_random_centre(shape, size):
    image = random_image(shape, seed=1)
    mean = np.round(image.astype(np.float64).mean(axis=(0, 1))).astype(np.uint8)
    possible = []
    for y in range(shape[0]):
        for x in range(shape[1]):
            top, left = y - size // 2, x - size // 2
            possible.append(image.copy())
            possible[-1][max(0, top) : top + size, max(0, left) : left + size] = mean
    assert_uniform(draws(f"cutout({size})", image, 100 * len(possible)), possible)


def test_random_erasing_draws_as_torchvision():
    height, width = 40, 50
    image = np.full((height, width, 3), 77, np.uint8)
    results = draws("random_erasing(0.3)", image, 6000)
    erased = np.any(results != 77, axis=-1)
    changed = erased.any(axis=(1, 2))
    assert abs(changed.sum() - 1800) < 5 * (6000 * 0.3 * 0.7) ** 0.5
    boxes = []
    for mask in erased[changed]:
        rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
        top, left, bottom, right = rows[0], columns[0], rows[-1] + 1, columns[-1] + 1
        assert mask[top:bottom, left:right].all()
        boxes.append((top, left, bottom - top, right - left))
    boxes = np.array(boxes)
    # torchvision draws height to width from 0.3 to 3.3, and wants both sides smaller than the image's.
    expected = torchvision_boxes(height, width, (0.02, 0.33), (1 / 3.3, 1 / 0.3), 20_000)
    expected = expected[(expected[:, 2] < height) & (expected[:, 3] < width)]
    for of in (
        lambda b: b[:, 2] * b[:, 3],
        lambda b: b[:, 3] / b[:, 2],
        lambda b: b[:, 0] / (height - b[:, 2]),
        lambda b: b[:, 1] / (width - b[:, 3]),
    ):
        assert stats.ks_2samp(of(boxes), of(expected)).pvalue > 1e-4
    noise = results[changed][erased[changed]]
    counts = np.bincount(noise.ravel(), minlength=256)
    assert np.abs(counts / counts.mean() - 1).max() < 0.05  # uniform over all levels
    assert abs(np.corrcoef(noise[:, 0], noise[:, 1])[0, 1]) < 0.01  # each channel for itself


@pytest.mark.parametrize(("text", "share"), [("random_erasing(0)", 0.0), ("random_erasing(1)", 1.0)])
def test_random_erasing_never_and_always(text, share):
    image = np.full((20, 20, 3), 77, np.uint8)
    assert (draws(text, image, 500) != 77).any(axis=(1, 2, 3)).mean() == share


def test_random_erasing_of_an_image_without_room():
    image = np.full((1, 1, 3), 77, np.uint8)
    np.testing.assert_array_equal(draws("random_erasing(1)", image, 20), np.stack([image] * 20))


# ----------------------------------------------------------------------------------------------- in general


PIPELINE = "random_resized_crop(6)|color_jitter(0.4,0.4,0.4)|lighting(0.1)|random_erasing(0.5)|cutout(2)"


def test_depends_on_key_and_position_alone():
    images = random_image((24, 12, 10, 3))
    positions = np.arange(100, 124, dtype=np.uint32)
    run = compiled(PIPELINE)
    whole = np.asarray(run(KEY, positions, images))
    assert whole.shape == (24, 6, 6, 3) and whole.dtype == np.uint8
    np.testing.assert_array_equal(run(KEY, positions, images), whole)
    parts = [run(KEY, positions[i : i + 8], images[i : i + 8]) for i in range(0, 24, 8)]
    assert np.abs(np.concatenate(parts).astype(int) - whole).max() <= 1  # floats may round otherwise in other programs
    backwards = np.asarray(run(KEY, positions[::-1], images[::-1]))
    np.testing.assert_array_equal(backwards[::-1], whole)
    assert not np.array_equal(run(jax.random.key(6), positions, images), whole)
    assert not np.array_equal(run(KEY, positions + np.uint32(1), images), whole)


@pytest.mark.parametrize(
    ("text", "shape"),
    [
        ("random_crop(5)|pad_and_crop(2)|flip", (5, 5, 3)),
        ("random_resized_crop(7)|shift(1)", (7, 7, 3)),
        ("resize(20)|random_crop(16)", (16, 16, 3)),
        ("cutout(3)|random_erasing(0.5)|lighting(0.1)|color_jitter(0.1,0.1,0.1)", (9, 8, 3)),
        ("", (9, 8, 3)),
    ],
)
def test_output_shape(text, shape):
    assert augment.output_shape(augment.parse(text), (9, 8, 3)) == shape
    assert draws(text, random_image((9, 8, 3)), 2).shape[1:] == shape


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("random_crop(0)", "size must be a whole number of pixels from 1 to 4096"),
        ("random_crop", "missing"),
        ("random_resized_crop(2.5)", "size must be a whole number"),
        ("random_resized_crop(8, 0)", "min_scale"),
        ("random_resized_crop(8, 0.5, 0.4)", "min_scale"),
        ("random_resized_crop(8, 0.5, 1.1)", "max_scale"),
        ("resize(0)", "size must be"),
        ("cutout(-3)", "size must be"),
        ("random_erasing(1.5)", "probability must be"),
        ("resize(100000)", "from 1 to 4096"),
        ("random_erasing(nan)", "probability must be"),
        ("random_resized_krop(8)", "Did you mean 'random_resized_crop'"),
    ],
)
def test_errors(text, says):
    with pytest.raises(UserError, match=says) as error:
        augment.parse(text)
    assert "\n" not in str(error.value)
