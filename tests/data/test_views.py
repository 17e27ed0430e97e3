import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cnn_research.data.views import average, make_views

IMAGES = np.random.default_rng(0).integers(0, 256, (2, 9, 12, 3), dtype=np.uint8)
CENTRE = IMAGES[:, 2:7, 3:8]
CORNERS = [IMAGES[:, :5, :5], IMAGES[:, :5, 7:], IMAGES[:, 4:, :5], IMAGES[:, 4:, 7:]]


def mirrored(views):
    return [view[:, :, ::-1] for view in views]


def moved(view, pixels):
    """Up and left, then down and right; what comes in is a reflection about the outermost row and column."""
    padded = np.pad(view, ((0, 0), (pixels, pixels), (pixels, pixels), (0, 0)), mode="reflect")
    return [padded[:, 2 * pixels :, 2 * pixels :], padded[:, : -2 * pixels, : -2 * pixels]]


@pytest.mark.parametrize(
    ("protocol", "expected"),
    [
        ({}, [IMAGES]),
        ({"flip": True}, [IMAGES, *mirrored([IMAGES])]),
        ({"crop_size": 5}, [CENTRE]),
        ({"crop_size": 5, "flip": True}, [CENTRE, *mirrored([CENTRE])]),
        ({"crop_size": 5, "crops": "ten"}, [*CORNERS, CENTRE, *mirrored([*CORNERS, CENTRE])]),
        ({"crop_size": 9}, [IMAGES[:, :, 1:10]]),
        ({"shift": 2}, [IMAGES, *moved(IMAGES, 2)]),
        ({"shift": 1, "flip": True}, [*(seen := [IMAGES, *moved(IMAGES, 1)]), *mirrored(seen)]),
        ({"crop_size": 5, "shift": 1}, [CENTRE, *moved(CENTRE, 1)]),
    ],
    ids=str,
)
def test_views(protocol, expected):
    result = jax.jit(lambda x: make_views(x, **protocol))(IMAGES)
    assert result.dtype == jnp.uint8
    np.testing.assert_array_equal(result, np.stack(expected))


@pytest.mark.parametrize(
    ("protocol", "says"),
    [
        ({"crop_size": 10}, "10x10 pixels don't fit into images of 9x12"),
        ({"crops": "ten"}, "'ten' of size 0"),
        ({"crops": "five", "crop_size": 5}, "'five'"),
        ({"shift": 9}, "shift by 9 pixels leaves nothing of views of 9x12"),
    ],
)
def test_refuses(protocol, says):
    with pytest.raises(ValueError, match=says):
        make_views(IMAGES, **protocol)


def test_average_is_that_of_the_probabilities():
    logits = np.random.default_rng(1).normal(0, 4, (10, 7, 5)).astype(np.float32)
    exponentials = np.exp(logits.astype(np.float64))
    mean = (exponentials / exponentials.sum(-1, keepdims=True)).mean(0)
    np.testing.assert_allclose(jax.nn.softmax(average(logits)), mean, rtol=1e-5)
    np.testing.assert_allclose(average(logits), np.log(mean), rtol=1e-5, atol=1e-5)
    # The mean of the logits is something else, so the two can't be taken for each other here.
    assert np.abs(jax.nn.softmax(logits.mean(0)) - mean).max() > 0.1


def test_average_of_one_is_itself_to_the_bit():
    logits = np.random.default_rng(2).normal(0, 40, (1, 7, 5)).astype(np.float32)
    np.testing.assert_array_equal(average(logits), logits[0])


def test_average_of_improbable_classes_is_finite():
    # exp(-1000) is 0 in float32, and in float64 too: a mean that is taken before the logarithm would be -inf.
    logits = np.array([[[0.0, -1000.0]], [[0.0, -1001.0]]], np.float32)
    expected = -1000 + np.log((1 + np.exp(-1.0)) / 2)
    np.testing.assert_allclose(average(logits)[0], [0.0, expected], rtol=1e-6)
