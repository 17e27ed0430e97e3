"""SpeedNet against its description: the shapes of its layers, what its initial values do, its size."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cnn_research.models import registry, speednet

RNG = np.random.default_rng(0)


def test_shapes(output_shapes):
    model = registry.create_model("speednet", 10)
    assert output_shapes(model, (32, 32, 3)) == {
        "whiten": (31, 31, 24),
        **{"conv1_1": (31, 31, 64), "pool1": (15, 15, 64), "conv1_2": (15, 15, 64)},
        **{"conv2_1": (15, 15, 256), "pool2": (7, 7, 256), "conv2_2": (7, 7, 256)},
        **{"conv3_1": (7, 7, 256), "pool3": (3, 3, 256), "conv3_2": (3, 3, 256)},
    }


@pytest.mark.parametrize(("inputs", "outputs"), [(2, 5), (4, 4), (5, 3)])
def test_the_first_filters_pass_the_channels_on(inputs, outputs):
    kernel = speednet.identity(jax.random.key(0), (3, 3, inputs, outputs))
    x = RNG.normal(size=(2, 6, 7, inputs)).astype(np.float32)
    y = jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
    passed = min(inputs, outputs)
    np.testing.assert_array_equal(y[..., :passed], x[..., :passed])
    # The others are uniform between -1 and 1 over the root of what a filter sees.
    others = np.asarray(kernel[..., passed:])
    assert others.size == 0 or 0.9 < np.abs(others).max() * np.sqrt(9 * inputs) <= 1


@pytest.mark.parametrize("channels", [1, 3])
def test_the_first_layer_whitens_patches(channels):
    """Of images whose neighbours are alike, the filters' answers are neither correlated nor of different sizes."""
    mixing = RNG.normal(size=(channels, channels))
    images = np.cumsum(np.cumsum(RNG.normal(size=(200, 12, 12, channels)), axis=1), axis=2) @ mixing
    images = (images / images.std()).astype(np.float32)
    model = registry.create_model("speednet", 10)
    initial = registry.init_variables(model, jax.random.key(0), images.shape[1:])
    fitted = model.fit_to_data(initial, images)
    kernel = np.asarray(fitted["params"]["whiten"]["kernel"], np.float64)
    half = 4 * channels
    assert kernel.shape == initial["params"]["whiten"]["kernel"].shape == (2, 2, channels, 2 * half)
    np.testing.assert_array_equal(kernel[..., half:], -kernel[..., :half])

    patches = np.lib.stride_tricks.sliding_window_view(images.astype(np.float64), (2, 2), axis=(1, 2))
    answers = np.einsum("nhwcij,ijco->nhwo", patches, kernel[..., :half]).reshape(-1, half)
    moments = answers.T @ answers / len(answers)
    variances = np.linalg.eigvalsh(np.cov(patches.reshape(-1, half).T, bias=True))
    assert variances.max() > 50 * variances.min()  # else there would be nothing to do
    np.testing.assert_allclose(moments - np.diag(np.diag(moments)), 0, atol=2e-3)
    assert (np.diag(moments) > 0.3).all() and (np.diag(moments) < 1.001).all()  # below 1 where 5e-4 counts

    # Nothing else is another, and what was given is as it was.
    changed = jax.tree.map(lambda a, b: bool(np.any(a != b)), initial, fitted)
    assert [path for path, differs in jax.tree_util.tree_leaves_with_path(changed) if differs] == [
        (jax.tree_util.DictKey("params"), jax.tree_util.DictKey("whiten"), jax.tree_util.DictKey("kernel"))
    ]


def test_initial_logits():
    """About the length of the features, over their number, times N(0, 1): far from any certainty."""
    model = registry.create_model("speednet", 10)
    variables = registry.init_variables(model, jax.random.key(0), (32, 32, 3))
    assert np.std(variables["params"]["output"]["kernel"]) == pytest.approx(72 / 256, rel=0.05)
    images = RNG.normal(size=(8, 32, 32, 3)).astype(np.float32)
    logits, _ = jax.jit(lambda x: model.apply(variables, x, train=True, mutable=["batch_stats"]))(images)
    assert 0.005 < np.std(logits) < 0.5


@pytest.mark.parametrize(("side", "message"), [(8, "pool3: input 1x1 is too small"), (1, "whiten: input 1x1")])
def test_images_that_are_too_small(side, message):
    model = registry.create_model("speednet", 10)
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, side, side, 3)))
