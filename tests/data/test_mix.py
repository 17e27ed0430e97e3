"""Mixup and cutmix against their papers: what is drawn, what comes out, that key and position alone decide."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cnn_research.data import mix
from cnn_research.errors import UserError

N, SHAPE = 4000, (16, 24, 1)


@functools.cache
def compiled(text):
    return jax.jit(functools.partial(mix.apply, mix.parse(text)))


@functools.cache
def mixed(text, key=0, n=N):
    """Ones mixed with zeros: images float[n, H, W, 1], and targets [n, 2] of class 0 mixed with class 1."""
    ones, zeros = jnp.ones((n, *SHAPE)), jnp.zeros((n, *SHAPE))
    first, second = jnp.tile(jnp.array([[1.0, 0.0]]), (n, 1)), jnp.tile(jnp.array([[0.0, 1.0]]), (n, 1))
    positions = jnp.arange(n, dtype=jnp.uint32)
    images, targets = compiled(text)(jax.random.key(key), positions, ones, first, (zeros, second))
    return np.asarray(images), np.asarray(targets)


@pytest.mark.parametrize("text", ["mixup(0.2)", "mixup(1)", "cutmix(1)", "mixup(0.4)|cutmix(1)"])
def test_targets_add_to_one_and_weigh_what_is_seen(text):
    images, targets = mixed(text)
    np.testing.assert_allclose(targets.sum(1), 1, atol=1e-6)
    assert targets.min() >= 0
    # Of ones and zeros, the mean is the share of the first image, however it was mixed.
    np.testing.assert_allclose(images.mean((1, 2, 3)), targets[:, 0], atol=1e-5)


@pytest.mark.parametrize("alpha", [0.2, 1.0, 3.0])
def test_mixup_weighs_all_pixels_by_beta(alpha):
    images, targets = mixed(f"mixup({alpha})")
    assert np.ptp(images, axis=(1, 2, 3)).max() == 0
    share = targets[:, 0]
    # Mean and variance of Beta(a, a): 1/2 and 1 / (4 (2a + 1)).
    assert share.mean() == pytest.approx(0.5, abs=4 * float(share.std()) / N**0.5)
    assert share.var() == pytest.approx(1 / (4 * (2 * alpha + 1)), rel=0.08)


def test_cutmix_pastes_one_box():
    images, targets = mixed("cutmix(1)")
    pasted = images[..., 0] == 0
    assert set(np.unique(images)) == {0, 1}
    sides = []
    for box in pasted[:500]:
        rows, columns = box.any(1), box.any(0)
        assert box.sum() == rows.sum() * columns.sum(), "a rectangle"
        assert (np.diff(np.flatnonzero(rows)) == 1).all() and (np.diff(np.flatnonzero(columns)) == 1).all()
        sides.append((rows.sum(), columns.sum()))
    # Every part of the image is hidden now and then, the middle most: boxes are cut off at the edges.
    often = pasted.mean(0)
    assert often.min() > 0.1 and often[8, 12] > often.max() - 0.05
    # Before boxes are cut off, their area is uniform for alpha = 1: half of it on average; the cut takes 4/9 away.
    # E[min(c + s/2, 1) - max(c - s/2, 0)] = s - s^2 / 4 for a side s, whose square is uniform: along two axes
    # E[(s - s^2 / 4)^2] = E[s^2] - E[s^3] / 2 + E[s^4] / 16 = 1/2 - 1/5 + 1/48.
    assert 1 - float(targets[:, 0].mean()) == pytest.approx(1 / 2 - 1 / 5 + 1 / 48, abs=0.03)
    heights, widths = np.array(sides).T
    inner = (heights < 8) & (widths < 12)
    assert np.abs(widths[inner] / 24 - heights[inner] / 16).max() < 0.5


def test_each_image_draws_one_of_several():
    images, _ = mixed("mixup(1)|cutmix(1)")
    boxes = np.isin(images, (0, 1)).all((1, 2, 3))
    assert boxes.mean() == pytest.approx(0.5, abs=0.04)


def test_is_a_function_of_key_and_position():
    once, other = mixed("cutmix(1)"), mixed("cutmix(1)", key=1)
    assert not np.array_equal(once[0], other[0])
    assert len({image.tobytes() for image in once[0][:8]}) > 4
    np.testing.assert_array_equal(mixed("cutmix(1)", n=4)[1], once[1][:4])


def test_nothing_is_mixed_by_default():
    assert mix.parse("") is None and mix.parse("  ") is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("mixup", "Can't read 'mixup' in the mix 'mixup'; known are mixup(alpha) and cutmix(alpha)"),
        ("mixop(0.2)", "Did you mean 'mixup'?"),
        ("mixup(0)", "alpha must be above 0"),
        ("cutmix(-1)", "Can't read 'cutmix(-1)'"),
        ("mixup(0.2)|", "Can't read ''"),
        ("mixup(1..2)", "could not convert string to float"),
    ],
)
def test_mistakes(text, message):
    with pytest.raises(UserError) as error:
        mix.parse(text)
    assert message in str(error.value) and "\n" not in str(error.value)
