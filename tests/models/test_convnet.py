"""The configurable network: counts by hand, one stage against loops in numpy, every value that a field may have."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cnn_research.models import layers
from cnn_research.models.convnet import ConvNet
from cnn_research.models.registry import init_variables

SMALL = {"filters": (3, 4), "dense": (5,)}


def images(*shape):
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


def sizes(model, image_shape):
    """Parameters of each layer, without computing any."""
    shape = jax.eval_shape(model.init, jax.random.key(0), jax.ShapeDtypeStruct((1, *image_shape), jnp.float32))
    return {layer: sum(leaf.size for leaf in leaves.values()) for layer, leaves in shape["params"].items()}


@pytest.mark.parametrize(
    ("fields", "image_shape", "expected"),
    [
        (
            {},
            (28, 28, 1),
            {"conv1": 9 * 32 + 32, "conv2": 9 * 32 * 64 + 64, "dense1": 7 * 7 * 64 * 128 + 128, "output": 1290},
        ),
        ({"filters": (), "dense": ()}, (28, 28, 1), {"output": 7850}),
        ({"filters": (), "dense": (300, 100)}, (28, 28, 1), {"dense1": 235500, "dense2": 30100, "output": 1010}),
        (  # a normalised convolution has no bias; a scale and a bias per channel instead
            {"filters": (8,), "dense": (), "batch_norm": "after_conv"},
            (32, 32, 3),
            {"conv1": 9 * 3 * 8, "norm1": 16, "output": 16 * 16 * 8 * 10 + 10},
        ),
        (
            {"filters": (8,), "dense": (), "batch_norm": "after_pool"},
            (32, 32, 3),
            {"conv1": 9 * 3 * 8 + 8, "norm1": 16, "output": 16 * 16 * 8 * 10 + 10},
        ),
        (  # 20 -> 9 (k 5, s 2, p 1) -> 4 (pool 3/2) -> 4 (k 1) -> no pool -> 2 (valid k 3)
            {
                "filters": (2, 3, 4),
                "kernel_size": (5, 1, 3),
                "stride": (2, 1, 1),
                "padding": ("1", "same", "valid"),
                "pool": ("max", "none", "none"),
                "pool_size": (3,),
                "dense": (),
            },
            (20, 20, 1),
            {"conv1": 25 * 2 + 2, "conv2": 2 * 3 + 3, "conv3": 9 * 3 * 4 + 4, "output": 2 * 2 * 4 * 10 + 10},
        ),
        ({"filters": 4, "dense": 6}, (4, 4, 1), {"conv1": 40, "dense1": 2 * 2 * 4 * 6 + 6, "output": 70}),
    ],
)
def test_parameters_of_each_layer(fields, image_shape, expected):
    assert sizes(ConvNet(10, **fields), image_shape) == expected


def test_defaults_have_the_documented_number_of_parameters():
    assert sum(sizes(ConvNet(10), (28, 28, 1)).values()) == 421_642


def numpy_stage(x, params, batch_norm, pool):
    """3x3 convolution padded by 1, ReLU, 2x2 pooling, normalisation by the batch where it is due; loops, float64."""
    kernel = params["conv1"]["kernel"]
    padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    out = np.zeros((*x.shape[:3], kernel.shape[-1]))
    for i, j in np.ndindex(x.shape[1:3]):
        out[:, i, j] = np.tensordot(padded[:, i : i + 3, j : j + 3], kernel, 3)

    def normalise(x):
        x = (x - x.mean((0, 1, 2))) / np.sqrt(x.var((0, 1, 2)) + 1e-5)
        return x * params["norm1"]["scale"] + params["norm1"]["bias"]

    out = normalise(out) if batch_norm == "after_conv" else out + params["conv1"]["bias"]
    out = np.maximum(out, 0)
    pooled = np.zeros((len(x), x.shape[1] // 2, x.shape[2] // 2, out.shape[-1]))
    for i, j in np.ndindex(pooled.shape[1:3]):
        pooled[:, i, j] = pool(out[:, 2 * i : 2 * i + 2, 2 * j : 2 * j + 2], axis=(1, 2))
    return normalise(pooled) if batch_norm == "after_pool" else pooled


@pytest.mark.parametrize("batch_norm", ["none", "after_conv", "after_pool"])
@pytest.mark.parametrize(("pool", "reduce"), [("max", np.max), ("average", np.mean), ("sum", np.sum)])
def test_logits_are_those_of_the_loops(batch_norm, pool, reduce):
    x = images(3, 4, 6, 2)
    model = ConvNet(5, filters=(3,), padding=(1,), pool=(pool,), batch_norm=batch_norm, dense=())
    shapes = jax.eval_shape(model.init, jax.random.key(0), x)
    rng = np.random.default_rng(1)
    params = jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype(np.float32), shapes["params"])
    logits = model.apply({"params": params}, x, train=True, mutable=["batch_stats"])[0]
    features = numpy_stage(x, params, batch_norm, reduce).reshape(3, -1)
    np.testing.assert_allclose(logits, features @ params["output"]["kernel"] + params["output"]["bias"], atol=1e-4)


def some_variables(model, x):
    """Variables from numpy: the tests below don't ask how they start, and compiling the initialisers takes seconds."""
    shapes = jax.eval_shape(model.init, jax.random.key(0), x)
    rng = np.random.default_rng(1)
    variables = jax.tree.map(lambda leaf: rng.normal(scale=0.3, size=leaf.shape).astype(np.float32), shapes)
    if "batch_stats" in variables:
        variables["batch_stats"] = jax.tree.map(np.abs, variables["batch_stats"])  # variances are not negative
    return variables


# Each row is a compilation, so each tries a value of several fields; the longest column has every activation.
POOLS = itertools.cycle((*layers.POOLS, "none"))
NORMS = itertools.cycle(("none", "after_conv", "after_pool"))
ROWS = list(zip(layers.ACTIVATIONS, POOLS, NORMS, strict=False))


@pytest.mark.parametrize(("activation", "pool", "batch_norm"), ROWS)
def test_every_value_trains(activation, pool, batch_norm):
    model = ConvNet(3, **SMALL, activation=activation, pool=pool, batch_norm=batch_norm, dropout_rate=0.2)
    x, rngs = images(4, 8, 8, 1), {"dropout": jax.random.key(1)}
    variables = some_variables(model, x)

    def loss(params):
        logits, _ = model.apply({**variables, "params": params}, x, train=True, mutable=["batch_stats"], rngs=rngs)
        return jnp.mean((logits - 1.0) ** 2)

    grads = jax.jit(jax.grad(loss))(variables["params"])
    for path, grad in jax.tree_util.tree_leaves_with_path(grads):
        assert np.isfinite(grad).all() and np.any(grad != 0), path


@pytest.mark.parametrize("name", list(layers.INITIALIZERS))
def test_kernel_init_is_applied_to_every_kernel(name):
    model = ConvNet(20, filters=(40,), dense=(50,), kernel_init=name)
    params = init_variables(model, jax.random.key(0), (4, 4, 20))["params"]
    fans = {"conv1": (9 * 20, 9 * 40), "dense1": (2 * 2 * 40, 50), "output": (50, 20)}
    for layer, (fan_in, fan_out) in fans.items():
        variance = {"he": 2 / fan_in, "xavier": 2 / (fan_in + fan_out), "lecun": 1 / fan_in}[name]
        np.testing.assert_allclose(np.var(params[layer]["kernel"]), variance, rtol=0.15)  # 1,000 draws: 4.5 %
        assert not np.any(params[layer]["bias"])


def test_activations_reach_the_hidden_fully_connected_layers():
    params = {
        "dense1": {"kernel": jnp.array([[1.0]]), "bias": jnp.zeros(1)},
        "output": {"kernel": jnp.array([[1.0]]), "bias": jnp.zeros(1)},
    }
    model = ConvNet(1, filters=(), dense=(1,))
    np.testing.assert_array_equal(model.apply({"params": params}, jnp.array([[[[-2.0]]], [[[2.0]]]])), [[0.0], [2.0]])


@pytest.mark.parametrize("batch_norm", ["after_conv", "after_pool"])
def test_evaluation_leaves_the_statistics_alone_and_training_moves_them(batch_norm):
    model = ConvNet(3, **SMALL, batch_norm=batch_norm)
    x = images(4, 8, 8, 1)
    variables = some_variables(model, x)
    before = jax.tree.leaves(variables["batch_stats"])
    for train in (False, True):
        _, after = model.apply(variables, x, train=train, mutable=["batch_stats"])
        moved = [bool(np.any(a != b)) for a, b in zip(before, jax.tree.leaves(after["batch_stats"]), strict=True)]
        assert moved == [train] * 4  # mean and variance of two layers


def test_normalisation_computes_in_bfloat16_and_keeps_its_statistics_in_float32():
    model = ConvNet(3, filters=(3,), dense=(), batch_norm="after_conv", dtype=jnp.bfloat16)
    x = images(4, 8, 8, 1)

    def run(variables, x):
        return model.apply(
            variables, x, train=True, mutable=["batch_stats", "intermediates"], capture_intermediates=True
        )

    variables = jax.eval_shape(model.init, jax.random.key(0), x)
    logits, updated = jax.eval_shape(run, variables, x)
    assert updated["intermediates"]["norm1"]["__call__"][0].dtype == jnp.bfloat16
    kept = jax.tree.leaves((variables, updated["batch_stats"], logits))
    assert {leaf.dtype for leaf in kept} == {jnp.dtype("float32")}


def test_dropout_is_drawn_in_training_only():
    model = ConvNet(3, **SMALL, dropout_rate=0.5)
    x = images(4, 8, 8, 1)
    variables = some_variables(model, x)
    train = [model.apply(variables, x, train=True, rngs={"dropout": jax.random.key(seed)}) for seed in (1, 1, 2)]
    np.testing.assert_array_equal(train[0], train[1])
    assert np.any(train[0] != train[2])
    np.testing.assert_array_equal(model.apply(variables, x), model.apply(variables, x))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"stride": (1, 1, 1)}, "stride has 3 values (1, 1, 1) for 2 stages: give one, or one per stage"),
        ({"pool": ("max", "max", "none")}, "pool has 3 values"),
        ({"activation": "relo"}, "activation='relo' is not one of relu, prelu, leaky_relu"),
        ({"activation": "relo"}, "did you mean 'relu'"),
        ({"pool": ("median",)}, "pool='median' is not one of max, average, sum, none"),
        ({"batch_norm": "before"}, "batch_norm='before' is not one of none, after_conv, after_pool"),
        ({"kernel_init": "kaiming"}, "kernel_init='kaiming' is not one of he, xavier, lecun"),
        ({"padding": ("half",)}, "padding='half' is neither"),
        ({"dropout_rate": 1.5}, "dropout_rate=1.5"),
        (
            {"kernel_size": (9,), "padding": (0,)},
            "conv1: input 8x8 is too small for kernel 9x9, stride 1, padding 0: floor((8 + 2*0 - 9)/1) + 1 = 0",
        ),
        (
            {"filters": (2, 2, 2, 2)},
            "pool4: input 1x1 is too small for kernel 2x2, stride 2, padding 0: floor((1 + 2*0 - 2)/2) + 1 = 0",
        ),
    ],
)
def test_mistakes_name_the_field_or_the_layer(fields, message):
    with pytest.raises(ValueError) as error:
        sizes(ConvNet(3, **{**SMALL, **fields}), (8, 8, 1))
    assert message in str(error.value) and "\n" not in str(error.value)
