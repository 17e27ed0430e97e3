import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from cnn_research.explain import features, visualise
from cnn_research.models.registry import create_model


class Network(nn.Module):
    """Not of the zoo: a strided convolution with padding, a pooling, a branch, and a dense layer.

    There is no maximum, by which a NaN may be lost: a test below looks where it gets to.
    """

    @nn.compact
    def __call__(self, x, deterministic: bool):
        x = nn.tanh(nn.Conv(4, (5, 5), (2, 2), ((2, 2), (2, 2)), name="first")(x))
        x = nn.avg_pool(x, (2, 2), (2, 2))
        x = nn.Conv(6, (3, 3), name="second")(x) + nn.Conv(6, (1, 1), name="shortcut")(x)
        x = Halved(name="halved")(nn.tanh(x))
        return nn.Dense(3, name="head")(x.reshape(len(x), -1))


class Halved(nn.Module):
    """Every second pixel, after a border of one at the top: a slice and a padding of its own."""

    def __call__(self, x):
        x = jnp.pad(x, ((0, 0), (1, 0), (0, 0), (0, 0)))
        # Spelt x[:, 1::2, ::2], it is a gather in JAX 0.7, which a trace can't follow.
        return jax.lax.slice(x, (0, 1, 0, 0), x.shape, (1, 2, 2, 1))


IMAGES = np.random.default_rng(0).normal(size=(7, 24, 20, 3)).astype(np.float32)


@pytest.fixture(scope="module")
def network():
    model = Network()
    variables = model.init(jax.random.key(0), IMAGES, deterministic=True)
    return model, jax.tree.map(np.asarray, variables)


def test_filters(network):
    variables = network[1]
    np.testing.assert_array_equal(features.filters(variables, "second"), variables["params"]["second"]["kernel"])
    for path in ("head", "thrid"):
        with pytest.raises(ValueError, match=f"no convolution '{path}' among first, second, shortcut"):
            features.filters(variables, path)


def test_strongest_channels():
    maps = np.zeros((2, 3, 4))
    maps[0, 0, 2], maps[..., 0], maps[1, 1, 3] = -9, 1, 2  # mean squares 1, 0, 81 / 6, 4 / 6
    assert features.strongest_channels(maps).tolist() == [2, 0, 3, 1]
    assert features.strongest_channels(maps, 2).tolist() == [2, 0]


def test_gradients_of_the_loss(network):
    model, variables = network
    labels = np.arange(7) % 3
    found = features.values_and_gradients(model, variables, IMAGES, labels, ["second", "head", "first"])
    assert list(found) == ["second", "head", "first"]
    logits, gradients = found["head"]
    shares = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    np.testing.assert_allclose(gradients, shares - np.eye(3)[labels], atol=1e-5)  # of cross-entropy: p - y
    assert found["second"][0].shape == found["second"][1].shape == (7, 6, 5, 6)


def test_silence_counts_images_on_which_a_unit_never_fires(network):
    model, variables = network
    # A bias decides: one unit never fires, one always, one on the images whose largest response is above it.
    kernel = variables["params"]["first"]["kernel"]
    plain = np.asarray(
        nn.Conv(4, (5, 5), (2, 2), ((2, 2), (2, 2))).apply(
            {"params": {"kernel": kernel, "bias": np.zeros(4, np.float32)}}, IMAGES
        )
    )
    peaks = plain.max((1, 2))
    bias = np.array([-1e3, 1e3, -np.sort(peaks[:, 2])[4] - 1e-4, 0], np.float32)
    params = variables["params"] | {"first": {"kernel": kernel, "bias": bias}}
    for size in (3, 64):  # 3 does not divide 7
        found = features.silence(model, {"params": params}, IMAGES, ["first", "head"], size)
        np.testing.assert_allclose(found["first"][:3], [1, 0, 5 / 7])
        assert found["head"].shape == (3,)


@pytest.mark.parametrize("path", ["first", "second", "halved", "head", "second:input"])
def test_receptive_field_is_where_nan_comes_from(network, path):
    """A unit sees a pixel if and only if it isn't finite once that pixel isn't."""
    model, variables = network
    look = jax.jit(lambda x: features.layers.activations(model, variables, x, [path])[path])
    shape = look(IMAGES[:1]).shape[1:]
    view = features.receptive_field(model, variables, IMAGES, path)
    positions = [(0, 0), (shape[0] - 1, shape[1] - 1), (shape[0] // 2, 1)] if len(shape) == 3 else [(0, 0)]
    seen = np.zeros((len(positions), 24, 20), bool)
    for axis, size in ((0, 24), (1, 20)):
        spoilt = np.repeat(IMAGES[:1], size, 0)
        for at in range(size):
            spoilt[(at, at, slice(None)) if axis == 0 else (at, slice(None), at)] = np.nan
        values = np.isnan(look(spoilt))
        for number, position in enumerate(positions):
            hit = values[(slice(None), *position)] if len(shape) == 3 else values
            hit = hit.any(-1)
            seen[number] = hit[:, None] if axis == 0 else seen[number] & hit
    for position, expected in zip(positions, seen, strict=True):
        top, left, bottom, right = features.seen_box(view, position, (24, 20))
        found = np.zeros((24, 20), bool)
        found[top:bottom, left:right] = True
        np.testing.assert_array_equal(found, expected)


@pytest.mark.zoo
def test_receptive_field_of_a_paper():
    """Araujo, Norris & Sim 2019, "Computing receptive fields of convolutional neural networks": 483 pixels at the end
    of ResNet-50, whose bottlenecks stride in their first convolution."""
    model = create_model("resnet50", 10, stride_in_1x1=True)
    image = jax.ShapeDtypeStruct((1, 224, 224, 3), jnp.float32)
    variables = jax.eval_shape(model.init, jax.random.key(0), image)
    view = features.receptive_field(model, variables, image, "layer4_2")
    assert view.jump == (32, 32) and view.extent == (483, 483)


def test_most_exciting(network):
    model, variables = network
    values = np.asarray(features.layers.activations(model, variables, IMAGES, ["second"])["second"])
    found = features.most_exciting(model, variables, IMAGES, "second", [4, 1], most=3, batch_size=2)
    assert found.indices.shape == (2, 3) and found.boxes.shape == (2, 3, 4)
    view = features.receptive_field(model, variables, IMAGES, "second")
    for row, channel in enumerate((4, 1)):
        peaks = values[..., channel].reshape(7, -1)
        assert found.indices[row].tolist() == np.argsort(-peaks.max(1))[:3].tolist()
        np.testing.assert_allclose(found.values[row], np.sort(peaks.max(1))[::-1][:3], rtol=1e-5)
        place = np.unravel_index(peaks[found.indices[row, 0]].argmax(), values.shape[1:3])
        assert tuple(found.boxes[row, 0]) == features.seen_box(view, place, (24, 20))
    classes = features.most_exciting(model, variables, IMAGES, "head")
    assert classes.indices.shape == (3, 7) and (classes.boxes == [0, 0, 24, 20]).all()
    with pytest.raises(ValueError, match="second has channels 0 to 5, got \\[6\\]"):
        features.most_exciting(model, variables, IMAGES, "second", [6])


def test_visualised_channels_are_excited(network):
    model, variables = network
    options = {"key": jax.random.key(1), "steps": 20}
    found = visualise.visualise(model, variables, "second", [0, 3], (24, 20, 3), **options)
    assert found.shape == (2, 24, 20, 3) and found.min() >= 0 and found.max() <= 1

    def excitement(pixels):
        values = features.layers.activations(model, variables, (jnp.asarray(pixels) - 0.5) / 0.25, ["second"])
        return np.asarray(values["second"]).mean((1, 2))[[0, 1], [0, 3]]

    first = visualise.visualise(model, variables, "second", [0, 3], (24, 20, 3), **options | {"steps": 0})
    assert (excitement(found) > excitement(first) + 0.1).all()
    with pytest.raises(ValueError, match="second has channels 0 to 5, got \\[9\\]"):
        visualise.visualise(model, variables, "second", [9], (24, 20, 3), **options)
