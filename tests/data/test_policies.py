import functools
import inspect

import jax
import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageOps
from scipy import stats
from scipy.sparse import csgraph
from scipy.spatial import distance

from cnn_research.data import augment, policies
from cnn_research.errors import UserError

KEY = jax.random.key(8)
ENHANCERS = {
    "brightness": ImageEnhance.Brightness,
    "color": ImageEnhance.Color,
    "contrast": ImageEnhance.Contrast,
    "sharpness": ImageEnhance.Sharpness,
}
SPACES = {"randaugment": policies.RANDAUGMENT, "trivialaugment": policies.TRIVIALAUGMENT_WIDE}


def published_magnitudes(space, width, height):
    """The tables of torchvision's RandAugment and TrivialAugmentWide with 31 bins, by operation."""
    shear, turn, enhance = (0.3, 30, 0.9) if space == "randaugment" else (0.99, 135, 0.99)
    across, down = (150 / 331 * width, 150 / 331 * height) if space == "randaugment" else (32, 32)
    bits = 4 if space == "randaugment" else 6
    ends = {"shear_x": shear, "shear_y": shear, "translate_x": across, "translate_y": down, "rotate": turn}
    ends |= dict.fromkeys(ENHANCERS, enhance)
    tables = {name: np.linspace(0, end, 31) for name, end in ends.items()}
    tables["posterize"] = 8 - np.round(np.arange(31) / (30 / bits)).astype(int)
    tables["solarize"] = np.linspace(255, 0, 31)
    return tables


def by_pillow(image, space, name, strength, sign):
    """What torchvision does to a PIL image."""
    height, width, channels = image.shape
    picture = Image.fromarray(image if channels == 3 else image[..., 0])
    table = published_magnitudes(space, width, height).get(name)
    amount = 0.0 if table is None else table[strength]
    signed = -amount if sign else amount

    def affine(*matrix):
        return picture.transform(picture.size, Image.Transform.AFFINE, matrix, Image.Resampling.NEAREST, fillcolor=0)

    result = {
        "identity": lambda: picture,
        "shear_x": lambda: affine(1, signed, 0, 0, 1, 0),
        "shear_y": lambda: affine(1, 0, 0, signed, 1, 0),
        "translate_x": lambda: affine(1, 0, -int(signed), 0, 1, 0),
        "translate_y": lambda: affine(1, 0, 0, 0, 1, -int(signed)),
        "rotate": lambda: picture.rotate(signed, Image.Resampling.NEAREST, fillcolor=0),
        "posterize": lambda: ImageOps.posterize(picture, int(amount)),
        "solarize": lambda: ImageOps.solarize(picture, amount),
        "autocontrast": lambda: ImageOps.autocontrast(picture),
        "equalize": lambda: ImageOps.equalize(picture),
    } | {name: lambda make=make: make(picture).enhance(1 + signed) for name, make in ENHANCERS.items()}
    return np.asarray(result[name]()).reshape(image.shape)


def random_image(shape=(24, 20, 3), low=30, high=221, seed=0):
    return np.random.default_rng(seed).integers(low, high, shape, dtype=np.uint8)


def smooth_image(shape=(24, 20, 3)):
    y, x = np.mgrid[: shape[0], : shape[1]]
    waves = [np.sin(x / 7 + c) * np.cos(y / (5 + c)) + (x + y) / 60 for c in range(shape[2])]
    return np.clip(120 + 70 * np.stack(waves, axis=-1), 0, 255).astype(np.uint8)


@functools.cache
def compiled_operation(space):
    return jax.jit(
        jax.vmap(
            lambda image, *numbers: policies.apply_operation(image, SPACES[space], *numbers), in_axes=(None, 0, 0, 0)
        )
    )


def ours(image, space, name, cases):
    strengths, signs = np.array(cases, np.int32).T
    numbers = np.full_like(strengths, policies.OPERATIONS.index(name))
    return np.asarray(compiled_operation(space)(image, numbers, strengths, signs))


@functools.cache
def compiled(text):
    return jax.jit(functools.partial(augment.apply, augment.parse(text)))


def draws(text, image, count, key=KEY):
    """uint8[count, H, W, C]: the same image, augmented at so many positions; 500 at a time, so as to compile once."""
    images, positions = np.repeat(image[None], 500, axis=0), np.arange(count, dtype=np.uint32).reshape(-1, 500)
    return np.concatenate([np.asarray(compiled(text)(key, part, images)) for part in positions])


# ------------------------------------------------------------------------------------------ operation by operation

CASES = [(strength, sign) for strength in (0, 1, 9, 14, 20, 30) for sign in (0, 1)]
RGB, GREY = (24, 20, 3), (24, 20, 1)  # few shapes, as each is compiled for itself


@pytest.mark.parametrize(
    ("space", "image"),
    [
        ("randaugment", random_image(RGB)),
        ("randaugment", smooth_image(RGB)),
        ("randaugment", random_image(GREY)),
        ("trivialaugment", random_image(RGB)),
        ("trivialaugment", smooth_image(RGB)),
        ("trivialaugment", random_image((21, 21, 3))),  # square: Pillow turns it by 90 degrees in another way
        ("trivialaugment", random_image((2, 5, 1))),  # too small to be smoothed
    ],
    ids=lambda value: value if isinstance(value, str) else "x".join(map(str, value.shape)),
)
def test_does_what_pillow_does(space, image):
    for name in policies.OPERATIONS:
        results = ours(image, space, name, CASES)
        assert results.dtype == np.uint8 and results.shape == (len(CASES), *image.shape)
        for (strength, sign), result in zip(CASES, results, strict=True):
            expected = by_pillow(image, space, name, strength, sign)
            where = f"{name} at {strength}, sign {sign}"
            if name in ENHANCERS or name == "autocontrast":
                assert np.abs(result.astype(int) - expected).max() <= 1, where
            else:
                np.testing.assert_array_equal(result, expected, err_msg=where)


def test_autocontrast_is_exact_where_pillow_does_not_round():
    """A pixel that comes out as a whole number is left to the rounding of double precision there."""
    for low, high in [(0, 255), (3, 4), (10, 61), (13, 200), (30, 159), (77, 250)]:
        image = np.clip(np.arange(24 * 20).reshape(GREY) % 256, low, high).astype(np.uint8)
        (result,) = ours(image, "randaugment", "autocontrast", [(0, 0)])
        expected = ImageOps.autocontrast(Image.fromarray(image[..., 0]))
        whole = 255 * (image[..., 0].astype(int) - low) % (high - low) == 0
        np.testing.assert_array_equal(result[..., 0][~whole], np.asarray(expected)[~whole])
        assert result.min() == 0 and result.max() == 255


@pytest.mark.parametrize("level", [0, 100, 255])
def test_images_of_one_colour(level):
    image = np.full(RGB, level, np.uint8)  # a range and a histogram of one level
    for name in ("autocontrast", "equalize", "contrast", "sharpness", "color"):
        np.testing.assert_array_equal(ours(image, "randaugment", name, CASES), np.stack([image] * len(CASES)))


def test_equalize_of_nearly_one_colour():
    image = np.full(GREY, 7, np.uint8)
    image[:16, :16] = 3  # 256 of the lower one: Pillow's table goes beyond 255 and is cut off
    expected = by_pillow(image, "randaugment", "equalize", 0, 0)
    np.testing.assert_array_equal(ours(image, "randaugment", "equalize", [(0, 0)])[0], expected)
    assert set(np.unique(expected)) == {0, 255}


# ------------------------------------------------------------------------------------- which, how strongly, how often


SMALL = (18, 18, 3)  # with enough pixels for equalize to do something


def frequencies(results, candidates, furthest):
    """How often each candidate was drawn and how often it must have been, where all are equally likely.

    A result is that candidate from which its levels differ least, on average by at most `furthest`. Candidates that
    differ by less than twice that are taken together.
    """
    distinct, weights = np.unique(candidates.reshape(len(candidates), -1), axis=0, return_counts=True)
    near = distance.cdist(distinct, distinct, "cityblock") / distinct.shape[1] <= 2 * furthest
    number, groups = csgraph.connected_components(near)
    drawn, times = np.unique(results.reshape(len(results), -1), axis=0, return_counts=True)
    away = distance.cdist(drawn, distinct, "cityblock") / distinct.shape[1]
    assert away.min(axis=1).max() <= furthest, "some result is none of the candidates"
    observed = np.bincount(groups[away.argmin(axis=1)], times, minlength=number)
    return observed, np.bincount(groups, weights) / len(candidates) * len(results)


def test_trivialaugment_draws_operation_strength_and_sign_uniformly():
    image = random_image(SMALL)
    cases = [(name, strength, sign) for name in policies.OPERATIONS for strength in range(31) for sign in (0, 1)]
    candidates = np.stack([by_pillow(image, "trivialaugment", *case) for case in cases])
    observed, expected = frequencies(draws("trivialaugment", image, 10000), candidates, furthest=0.2)
    assert len(expected) > 500 and expected.min() > 10  # 10,000 / 868 is 11.5
    assert stats.chisquare(observed, expected).pvalue > 1e-4


def test_randaugment_draws_operation_and_sign_uniformly_at_one_magnitude():
    image = random_image(SMALL)
    cases = [(name, 30, sign) for name in policies.OPERATIONS for sign in (0, 1)]
    candidates = np.stack([by_pillow(image, "randaugment", *case) for case in cases])
    observed, expected = frequencies(draws("randaugment(1,30)", image, 4000), candidates, furthest=0.2)
    assert len(expected) == 14 + 9  # nine operations have a sign
    assert stats.chisquare(observed, expected).pvalue > 1e-4


def test_randaugment_applies_operations_one_after_the_other():
    image = random_image(SMALL)
    cases = [(name, 9, sign) for name in policies.OPERATIONS for sign in (0, 1)]
    once = [by_pillow(image, "randaugment", *case) for case in cases]
    twice = np.stack([by_pillow(first, "randaugment", *case) for first in once for case in cases])
    observed, expected = frequencies(draws("randaugment(2,9)", image, 8000), twice, furthest=0.5)
    assert len(expected) > 250
    assert stats.chisquare(observed, expected).pvalue > 1e-4


def test_randaugment_of_no_magnitude():
    """Five operations are none of strength, and solarize starts with the level 255."""
    image = random_image(SMALL)
    candidates = np.stack([by_pillow(image, "randaugment", name, 0, 0) for name in policies.OPERATIONS])
    observed, expected = frequencies(draws("randaugment(1,0)", image, 2000), candidates, furthest=0.2)
    assert len(expected) == 3  # as it is, autocontrast and equalize
    assert stats.chisquare(observed, expected).pvalue > 1e-4


# ------------------------------------------------------------------------------------------------- as augmentations


@pytest.mark.parametrize("text", ["randaugment(2,9)", "trivialaugment"])
def test_depends_on_key_and_position_alone(text):
    images = np.random.default_rng(5).integers(0, 256, (500, *SMALL), dtype=np.uint8)
    positions = np.arange(50, 550, dtype=np.uint32)
    whole = np.asarray(compiled(text)(KEY, positions, images))
    assert whole.shape == images.shape and whole.dtype == np.uint8
    np.testing.assert_array_equal(compiled(text)(KEY, positions, images), whole)
    np.testing.assert_array_equal(compiled(text)(KEY, positions[::-1], images[::-1])[::-1], whole)
    one = jax.jit(augment.parse(text))(jax.random.fold_in(KEY, 57), images[7])  # without the batch
    np.testing.assert_array_equal(one, whole[7])
    for other in (compiled(text)(jax.random.key(1), positions, images), compiled(text)(KEY, positions[::-1], images)):
        assert np.mean(np.any(np.asarray(other) != whole, axis=(1, 2, 3))) > 0.8


def test_grey_images_are_treated_as_rgb_images_of_equal_channels():
    image = random_image((18, 18, 1))
    grey, colour = (draws("randaugment(2,9)", x, 500) for x in (image, np.repeat(image, 3, axis=2)))
    np.testing.assert_array_equal(colour, np.repeat(grey, 3, axis=3))
    assert len(np.unique(grey, axis=0)) > 100


def test_in_a_pipeline():
    image = random_image(SMALL)
    # Mirroring alone would leave the image or its mirror image, one operation alone one in 14 as it is.
    results = draws("trivialaugment|flip", image, 500)
    unchanged, mirrored = (np.all(results == x, axis=(1, 2, 3)).sum() for x in (image, image[:, ::-1]))
    assert results.dtype == np.uint8 and 5 < unchanged < 60 and 5 < mirrored < 60


def test_defaults_are_those_of_torchvision():
    assert str(inspect.signature(policies.randaugment)).startswith("(num_ops: int = 2, magnitude: int = 9)")


@pytest.mark.parametrize("text", ["randaugment(2,9)", "trivialaugment"])
@pytest.mark.parametrize("channels", [2, 4])
def test_needs_rgb_or_grey(text, channels):
    with pytest.raises(
        ValueError, match=f"{text.split('(')[0]}.* red, green and blue.* but the images have {channels}"
    ):
        augment.output_shape(augment.parse(text), (8, 8, channels))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("randaugment(0,9)", "num_ops must be a whole number"),
        ("randaugment(1.5,9)", "num_ops must be a whole number"),
        ("randaugment(2,31)", "magnitude must be a whole number from 0 to 30"),
        ("randaugment(2,-1)", "magnitude must be a whole number from 0 to 30"),
        ("randaugment(2,9.5)", "magnitude must be a whole number from 0 to 30"),
        ("randaugment(2,9,31)", "too many positional arguments"),
        ("trivialaugment(9)", "too many positional arguments"),
        ("trivialaugments", "Did you mean 'trivialaugment'?"),
    ],
)
def test_errors(text, says):
    with pytest.raises(UserError) as error:
        augment.parse(text)
    assert says in str(error.value)
