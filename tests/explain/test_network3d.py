"""The network in 3D: which layers, which channels, and that every pixel has its two triangles and its colour."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from cnn_research.explain.network3d import default_layers, network3d


class Net(nn.Module):
    """Nobody's: a class of a test."""

    @nn.compact
    def __call__(self, x, train=False):
        x = nn.Conv(4, (3, 3), name="first")(x)  # 40 x 48: averaged down by 2
        x = nn.relu(nn.Conv(3, (3, 3), name="second")(x))
        x = nn.max_pool(x, (8, 8), (8, 8))
        x = nn.Conv(12, (1, 1), name="third")(x)  # 5 x 6
        x = x.reshape(len(x), -1)
        x = nn.relu(nn.Dense(7, name="hidden")(x))
        x = nn.Dropout(0.5, deterministic=not train)(x)
        return nn.Dense(3, name="output")(x)


CLASSES = ("cat", "dog", "boat")


@pytest.fixture(scope="module")
def network():
    image = np.asarray(jax.random.normal(jax.random.key(1), (40, 48, 3)))
    return Net(), Net().init(jax.random.key(0), image[None]), image


def test_layers_by_default(network):
    """The first maps, the last of each of the two sizes, and the last hidden units."""
    model, variables, image = network
    assert default_layers(model, variables, image[None]) == ["first", "second", "third", "hidden"]


def test_a_trace_for_the_image_each_layer_and_the_classes(network):
    figure = network3d(*network, classes=CLASSES)
    assert [trace.name for trace in figure.data] == ["image", "first", "second", "third", "hidden", "classes"]
    triangles = [len(trace.i) for trace in figure.data]
    # Two for each pixel shown: 20 x 24 of the larger maps, 4, 3 and 9 channels, a square of 3 x 3 for 7 units, 3 bars.
    assert triangles == [2 * 20 * 24, 2 * 4 * 20 * 24, 2 * 3 * 20 * 24, 2 * 9 * 5 * 6, 2 * 9, 2 * 3]
    for trace in figure.data:
        assert max(map(max, (trace.i, trace.j, trace.k))) == len(trace.x) - 1 == len(trace.y) - 1 == len(trace.z) - 1
    assert figure.layout.scene.camera.projection.type == "orthographic"


def test_colours_are_the_values(network):
    """A linear map of the activations, the strongest channels first: zero in the middle of a signed scale."""
    model, variables, image = network
    trace = network3d(model, variables, image, layers=["third"], channels=12).data[1]
    x = nn.Conv(4, (3, 3)).apply({"params": variables["params"]["first"]}, image[None])
    x = nn.relu(nn.Conv(3, (3, 3)).apply({"params": variables["params"]["second"]}, x))
    x = nn.max_pool(x, (8, 8), (8, 8))[0] @ variables["params"]["third"]["kernel"][0, 0]
    energy = np.mean(np.square(x), axis=(0, 1))
    best = np.moveaxis(np.asarray(x)[..., np.argsort(-energy)], -1, 0)
    top = np.percentile(np.abs(best), 99)
    expected = np.repeat(127.5 + 127.5 * np.clip(best, -top, top).reshape(-1) / top, 2)
    assert trace.intensitymode == "cell" and best.min() < 0
    np.testing.assert_allclose(np.asarray(trace.intensity, float), expected, atol=0.51)


def test_probabilities_stand_at_the_end(network):
    model, variables, image = network
    logits = model.apply(variables, image[None])[0]
    figure = network3d(model, variables, image, classes=CLASSES)
    texts = [annotation.text for annotation in figure.layout.scene.annotations]
    softmax = np.exp(logits - jnp.max(logits)) / np.exp(logits - jnp.max(logits)).sum()
    for index, name in enumerate(CLASSES):
        text = f"{name} · {100 * softmax[index]:.0f} %"
        assert (f"<b>{text}</b>" if index == softmax.argmax() else text) in texts
    bars = figure.data[-1]
    lengths = [bars.y[4 * index + 1] - bars.y[4 * index] for index in range(3)]
    np.testing.assert_allclose(lengths, np.maximum(softmax, 0.02), atol=1e-6)


def test_the_picture_keeps_its_colours(network):
    model, variables, image = network
    picture = np.zeros((40, 48, 3), np.uint8)
    picture[:, :24] = (255, 128, 0)
    faces = network3d(model, variables, image, layers=[], picture=picture).data[0].facecolor.tolist()
    assert faces[:2] == ["#ff8000", "#ff8000"] and faces[-1] == "#000000"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"layers": ["frist"]}, r"no layer 'frist'. Did you mean 'first'\? Its layers: first, second"),
        ({"classes": ["cat", "dog"]}, "2 names were given for the network's 3 classes"),
    ],
)
def test_mistakes(network, change, message):
    with pytest.raises(ValueError, match=message):
        network3d(*network, **change)


def test_a_batch_is_no_image(network):
    model, variables, image = network
    with pytest.raises(ValueError, match=r"one image \[H, W, C\] is needed, not an array of shape \(1, 40, 48, 3\)"):
        network3d(model, variables, image[None])
