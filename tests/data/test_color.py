import colorsys
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image, ImageEnhance
from scipy import stats

from cnn_research.data import augment
from cnn_research.errors import UserError

KEY = jax.random.key(3)

# Of red, green and blue in [0, 255], as other codebases publish them (Classy Vision multiplies by 255).
EIGENVALUES = np.array([0.2175, 0.0188, 0.0045])
EIGENVECTORS = np.array([[-144.7125, 183.396, 102.2295], [-148.104, -1.1475, -207.57], [-148.818, -177.174, 107.1765]])


@functools.cache
def compiled(text):
    return jax.jit(functools.partial(augment.apply, augment.parse(text)))


def draws(text, image, count):
    """uint8[count, H, W, C]: the same image, augmented at so many positions."""
    return np.asarray(compiled(text)(KEY, jnp.arange(count, dtype=jnp.uint32), np.repeat(image[None], count, axis=0)))


def random_image(low, high, shape=(16, 16, 3), seed=0):
    return np.random.default_rng(seed).integers(low, high, shape, dtype=np.uint8)


# -------------------------------------------------------------------------------------------------- lighting


def test_lighting_has_the_published_components():
    grey = np.full((2, 2, 3), 128, np.uint8)  # from which nothing is cut off: 128 is 5 standard deviations
    results = draws("lighting(0.4)", grey, 4000).astype(float)
    assert (results == results[:, :1, :1]).all(), "the same change for all pixels"
    change = results[:, 0, 0] - 128
    amounts = change @ EIGENVECTORS / 255**2 / EIGENVALUES  # the eigenvectors are orthonormal
    # Of variance 0.16, and what rounding adds. That of 4,000 draws has a standard deviation of 2.2 %.
    rounding = 1 / 12 / (255 * EIGENVALUES) ** 2
    np.testing.assert_allclose(amounts.var(axis=0), 0.16 + rounding, rtol=0.11)
    assert np.abs(np.corrcoef(amounts.T) - np.eye(3)).max() < 0.08
    assert np.abs(amounts[:, 0].mean()) < 5 * 0.4 / 4000**0.5
    assert stats.kstest(amounts[:, 0] / 0.4, "norm").pvalue > 1e-4


def test_lighting_of_nothing_and_at_the_limits():
    image = random_image(0, 256)
    np.testing.assert_array_equal(draws("lighting(0)", image, 3), np.stack([image] * 3))
    extremes = np.stack([np.zeros((4, 4, 3), np.uint8), np.full((4, 4, 3), 255, np.uint8)], axis=0).reshape(8, 4, 3)
    results = draws("lighting(0.4)", extremes, 100)
    assert (results[:, :4] < 128).all() and (results[:, 4:] > 127).all(), "nothing wraps around"


# ---------------------------------------------------------------------------------------------- color_jitter


def grey(image):
    return image @ np.array([0.299, 0.587, 0.114])


def slope(x, y):
    x = x - x.mean()
    return (x * (y - y.mean())).sum() / (x * x).sum()


@pytest.mark.parametrize(
    ("text", "enhance", "base"),
    [
        ("color_jitter(0.4,0,0)", ImageEnhance.Brightness, lambda x: x),
        ("color_jitter(0,0.4,0)", ImageEnhance.Contrast, lambda x: x),
        ("color_jitter(0,0,0.4)", ImageEnhance.Color, lambda x: x - grey(x)[..., None]),
    ],
)
def test_does_what_pillow_does(text, enhance, base):
    image = random_image(60, 170)  # nothing reaches 0 or 255
    x = image.astype(float)
    factors = []
    for result in draws(text, image, 200):
        factors.append(slope(base(x), result - (x - base(x))))
        expected = np.asarray(enhance(Image.fromarray(image)).enhance(factors[-1]))
        assert np.abs(result.astype(int) - expected).max() <= 2  # Pillow rounds greys first, and rounds down
    assert stats.kstest(factors, "uniform", (0.6, 0.8)).pvalue > 1e-4  # uniform from 0.6 to 1.4


def test_strong_brightness_is_never_negative():
    image = np.full((2, 2, 3), 100, np.uint8)
    factors = draws("color_jitter(1.5,0,0)", image, 500)[:, 0, 0, 0] / 100
    assert stats.kstest(factors, "uniform", (0, 2.5)).pvalue > 1e-4  # from max(0, 1 - 1.5) to 1 + 1.5


def test_hue_turns_as_in_hsv():
    image = random_image(0, 256, (6, 6, 3))
    image[0, 0], image[0, 1:4] = (255, 0, 0), [[90, 90, 90], [0, 0, 0], [200, 10, 200]]
    turns = []
    for result in draws("color_jitter(0,0,0,0.2)", image, 200):
        turn = colorsys.rgb_to_hsv(*result[0, 0] / 255)[0]
        turns.append(turn - (turn > 0.5))
        for before, after in zip(image.reshape(-1, 3), result.reshape(-1, 3), strict=True):
            h, s, v = colorsys.rgb_to_hsv(*before / 255)
            expected = 255 * np.array(colorsys.hsv_to_rgb((h + turn) % 1, s, v))
            assert np.abs(after - expected).max() <= 1.5  # the turn is known to half a level of red's
    assert stats.kstest(turns, "uniform", (-0.2, 0.4)).pvalue > 1e-4


def test_order_is_random():
    """Where the result is cut off, brighter and then flatter isn't flatter and then brighter."""
    image = np.zeros((2, 2, 3), np.uint8)
    image[0] = 255
    results = draws("color_jitter(0.5,0.5,0)", image, 4000).astype(int)
    light, dark = results[:, 0, 0, 0], results[:, 1, 0, 0]
    # Brightened, which white can't be, and then flattened around the middle: the sum stays 255. The other way round all
    # is brightened, and the sum is larger. Where it became darker the sum is smaller, whatever the order.
    first, second = (dark > 8) & (abs(light + dark - 255) <= 1), (dark > 8) & (light + dark > 256)
    assert first.sum() + second.sum() > 600
    assert abs(first.sum() / (first.sum() + second.sum()) - 0.5) < 0.1


def test_on_grey_images():
    image = random_image(60, 170, (8, 8, 1))
    for text in ("color_jitter(0.4,0,0)", "color_jitter(0,0.4,0)"):
        results = draws(text, image, 20)
        colour = draws(text, np.repeat(image, 3, axis=2), 20)
        np.testing.assert_allclose(results.astype(int), colour[..., :1], atol=1)


def test_no_jitter_changes_nothing():
    image = random_image(0, 256)
    np.testing.assert_array_equal(draws("color_jitter(0,0,0)", image, 2), np.stack([image] * 2))


@pytest.mark.parametrize("text", ["lighting(0.1)", "color_jitter(0,0,0.1)", "color_jitter(0,0,0,0.1)"])
def test_needs_three_channels(text):
    with pytest.raises(ValueError, match=f"{text.split('(')[0]}.* red, green and blue, but the images have 1"):
        augment.output_shape(augment.parse(text), (8, 8, 1))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("lighting(-0.1)", "std must be at least 0"),
        ("lighting(nan)", "std must be at least 0"),
        ("color_jitter(0.4)", "contrast"),
        ("color_jitter(0.4,-1,0)", "contrast must be at least 0"),
        ("color_jitter(0.4,inf,0)", "contrast must be at least 0"),
        ("color_jitter(0,0,0,0.6)", "hue must be at most 0.5"),
    ],
)
def test_errors(text, says):
    with pytest.raises(UserError, match=says):
        augment.parse(text)
