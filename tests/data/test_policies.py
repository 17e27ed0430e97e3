import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageOps
from scipy import stats

from cnn_research.data import augment, policies
from cnn_research.errors import UserError

KEY = jax.random.key(8)
GEOMETRIC = ("shear_x", "shear_y", "translate_x", "translate_y", "rotate")
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
    """uint8[count, H, W, C]: the same image, augmented at so many positions."""
    return np.asarray(compiled(text)(key, jnp.arange(count, dtype=jnp.uint32), np.repeat(image[None], count, axis=0)))


# ------------------------------------------------------------------------------------------ operation by operation

CASES = [(strength, sign) for strength in (0, 1, 9, 14, 20, 30) for sign in (0, 1)]
IMAGES = {
    "random": random_image(),
    "smooth": smooth_image(),
    "square": smooth_image((21, 21, 3)),
    "grey": random_image((24, 20, 1), seed=1),
}


@pytest.mark.parametrize("image", IMAGES.values(), ids=IMAGES)
@pytest.mark.parametrize("space", SPACES)
def test_does_what_pillow_does(space, image):
    for name in policies.OPERATIONS:
        results = ours(image, space, name, CASES)
        assert results.dtype == np.uint8 and results.shape == (len(CASES), *image.shape)
        for (strength, sign), result in zip(CASES, results, strict=True):
            expected = by_pillow(image, space, name, strength, sign)
            where = f"{name} at {strength}, sign {sign}"
            if name in GEOMETRIC:
                same = np.all(result == expected, axis=-1)
                assert same.mean() >= 0.99, where
            elif name in ENHANCERS or name == "autocontrast":
                assert np.abs(result.astype(int) - expected).max() <= 1, where
            else:
                np.testing.assert_array_equal(result, expected, err_msg=where)


def test_autocontrast_is_exact_where_pillow_does_not_round():
    """A pixel that comes out as a whole number is left to the rounding of double precision there."""
    for low, high in [(0, 255), (3, 4), (10, 61), (13, 200), (30, 159), (77, 250)]:
        image = np.clip(np.arange(16 * 16).reshape(16, 16, 1), low, high).astype(np.uint8)
        (result,), expected = ours(image, "trivialaugment", "autocontrast", [(0, 0)]), ImageOps.autocontrast(
            Image.fromarray(image[..., 0])
        )
        whole = 255 * (image[..., 0].astype(int) - low) % (high - low) == 0
        np.testing.assert_array_equal(result[..., 0][~whole], np.asarray(expected)[~whole])
        assert result.min() == 0 and result.max() == 255
