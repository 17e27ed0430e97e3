import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from cnn_research.explain import layers
from cnn_research.models.registry import create_model


class Block(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.softplus(nn.Conv(4, (3, 3), name="conv")(inputs=x))


class Network(nn.Module):
    """Not of the zoo: a block that is computed again in the backward pass, and one that is called twice."""

    @nn.compact
    def __call__(self, x, training: bool):
        x = nn.remat(Block)(name="first")(x)
        shared = Block(name="shared")
        x = shared(x=shared(x))
        x = nn.Dropout(0.5, deterministic=not training)(x)
        return nn.Dense(3, name="head")(jnp.mean(x, (1, 2)))


@pytest.fixture(scope="module")
def network():
    images = jax.random.normal(jax.random.key(1), (2, 6, 6, 3))
    model = Network()
    return model, model.init(jax.random.key(0), images, training=False), images


def conv_softplus(x, params):
    """In plain numpy: 3x3, stride 1, padding 1."""
    padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), (1, 2))  # [N, H, W, C, 3, 3]
    return np.log1p(np.exp(np.einsum("nhwcij,ijco->nhwo", windows, params["kernel"]) + params["bias"]))


def test_layers_in_order_with_shapes(network):
    maps = dict.fromkeys(
        ["first/conv", "first", "shared/conv", "shared", "shared/conv#2", "shared#2", "Dropout_0"], (6, 6, 4)
    )
    found = layers.list_layers(*network)
    assert found == maps | {"head": (3,)} and list(found) == [*maps, "head"]


def test_values_are_those_of_numpy(network):
    model, variables, images = network
    params = jax.tree.map(np.asarray, variables["params"])
    first = conv_softplus(np.asarray(images), params["first"]["conv"])
    once = conv_softplus(first, params["shared"]["conv"])
    twice = conv_softplus(once, params["shared"]["conv"])
    paths = ["head:input", "shared#2", "shared", "shared#2:input", "first", "first:input"]
    found = jax.jit(lambda v, x: layers.activations(model, v, x, paths))(variables, images)
    expected = [twice.mean((1, 2)), twice, once, once, first, images]
    for path, values in zip(paths, expected, strict=True):
        np.testing.assert_allclose(found[path], values, atol=1e-5, err_msg=path)


@pytest.mark.parametrize("path", ["first", "first/conv", "shared", "shared#2", "shared/conv#2:input", "head:input"])
def test_gradients_are_finite_differences(network, path):
    model, variables, images = network
    score = lambda logits: logits[:, 1] ** 2  # noqa: E731
    take = jax.jit(lambda v, x: layers.value_and_gradient(model, v, x, path, score))
    result, value, gradient = take(variables, images)
    np.testing.assert_allclose(result, layers.apply(model, variables, images), atol=1e-6)
    np.testing.assert_allclose(value, layers.activations(model, variables, images, [path])[path], atol=1e-6)

    place, wanted, calls = path.partition(":")[0].partition("#"), path.endswith(":input"), []
    direction = np.asarray(jax.random.normal(jax.random.key(2), value.shape))

    def moved(step):
        def move(call, args, kwargs, context):
            if context.method_name != "__call__" or "/".join(context.module.path) != place[0]:
                return call(*args, **kwargs)
            calls.append(1)
            if len(calls) != int(place[2] or 1):
                return call(*args, **kwargs)
            if wanted:
                (given,) = (*args, *kwargs.values())
                return call(given + step * direction)
            return call(*args, **kwargs) + step * direction

        calls.clear()
        with nn.intercept_methods(move):
            return float(score(layers.apply(model, variables, images)).sum())

    difference = (moved(1e-2) - moved(-1e-2)) / 2e-2
    assert difference == pytest.approx(float(jnp.sum(gradient * direction)), rel=1e-3, abs=1e-4)


@pytest.mark.parametrize(
    ("path", "words"), [("frist", "Did you mean 'first'?"), ("shared#3", "'shared#2'"), ("", "head")]
)
def test_a_layer_that_is_not_there(network, path, words):
    for look in (
        lambda: layers.activations(*network, [path]),
        lambda: layers.value_and_gradient(*network, path, jnp.sum),
    ):
        with pytest.raises(ValueError, match="the network has no layer") as error:
            look()
        assert words in str(error.value) and "first/conv, first, shared/conv, shared" in str(error.value)


class Told(nn.Module):
    """Returns whether it is called as in evaluation, by any name of that."""

    def __call__(self, x, train, training, is_train, is_training, deterministic, *, use_running_average):
        return [train, training, is_train, is_training, deterministic, use_running_average]


class Labelled(nn.Module):
    def __call__(self, x, labels, *more, scale=1.0, mask, train):
        return x


def test_called_as_in_evaluation():
    images = jnp.zeros((2, 6, 6, 3))
    assert layers.apply(Told(), {}, images) == [False, False, False, False, True, True]
    with pytest.raises(ValueError, match="Labelled needs labels, mask besides images: wrap it in a module that"):
        layers.apply(Labelled(), {}, images)


@pytest.mark.parametrize(
    ("shapes", "path"),
    [
        ({"a": (14, 14, 8), "b": (7, 7, 8), "c": (3, 3, 8), "d": (8,)}, "b"),
        ({"a": (6, 6, 8), "b": (2, 2, 8), "c": (1, 1, 8), "d": (8,)}, "b"),
    ],
)
def test_last_maps(shapes, path):
    assert layers.last_maps(shapes) == path
    with pytest.raises(ValueError, match="the layers are d"):
        layers.last_maps({"d": (8,)})


@pytest.mark.parametrize("remat", [False, True])
def test_a_network_of_the_zoo(remat):
    model = create_model("densenet_40_12", 10, remat=remat)
    images = jax.ShapeDtypeStruct((2, 32, 32, 3), jnp.float32)
    variables = jax.eval_shape(model.init, jax.random.key(0), images)
    found = layers.list_layers(model, variables, images)
    assert found["output"] == (10,) and layers.last_maps(found) in found
    assert (8, 8, 448) in found.values()  # 16 + 36 layers of 12 channels
