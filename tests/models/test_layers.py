"""Blocks against numpy written out, and against numbers worked out by hand."""

import itertools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from cnn_research.models import layers


class Block(nn.Module):
    """Runs a function that creates layers, as a network would."""

    function: Callable

    @nn.compact
    def __call__(self, x):
        return self.function(x)


def random(*shape):
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


def windows(x, size, stride, padding, fill):
    """[N, H, W, C] -> {(i, j): window [N, size, size, C]}, by hand."""
    x = np.pad(x, ((0, 0), (padding, padding), (padding, padding), (0, 0)), constant_values=fill)
    rows = range(0, x.shape[1] - size + 1, stride)
    columns = range(0, x.shape[2] - size + 1, stride)
    return {
        (i, j): x[:, top : top + size, left : left + size]
        for i, top in enumerate(rows)
        for j, left in enumerate(columns)
    }


@pytest.mark.parametrize(
    ("size", "kernel", "stride", "padding", "expected"),
    [
        (32, 5, 1, 0, 28),  # LeNet-5, C1
        (28, 2, 2, 0, 14),  # LeNet-5, S2
        (227, 11, 4, 0, 55),  # AlexNet, conv1
        (55, 3, 2, 0, 27),  # AlexNet, overlapping pool
        (224, 7, 2, 3, 112),  # ResNet, conv1
        (112, 3, 2, 1, 56),  # ResNet, pool
        (7, 3, 2, "same", 4),
        (8, 3, 2, "same", 4),
        (8, 3, 2, "valid", 3),
        (8, 3, 2, "1", 4),
        (3, 5, 1, 0, -1),
        (1, 2, 2, 0, 0),
    ],
)
def test_output_size(size, kernel, stride, padding, expected):
    assert layers.output_size(size, kernel, stride, padding) == expected


@pytest.mark.parametrize("padding", [0, 1, 2, "same", "valid"])
def test_output_size_is_what_the_layers_return(padding):
    for size, kernel, stride in itertools.product((5, 6, 7), (3, 4), (1, 2, 3)):
        expected = (1, *[layers.output_size(n, kernel, stride, padding) for n in (size, size + 2)], 2)
        image = jax.ShapeDtypeStruct((1, size, size + 2, 2), jnp.float32)

        def conv(x, kernel=kernel, stride=stride):
            return layers.conv(x, 2, kernel, name="conv", stride=stride, padding=padding)

        def pool(x, kernel=kernel, stride=stride):
            return layers.pool(x, "average", kernel, name="pool", stride=stride, padding=padding)

        out, _ = jax.eval_shape(Block(conv).init_with_output, jax.random.key(0), image)
        assert out.shape == expected
        assert jax.eval_shape(pool, image).shape == expected


@pytest.mark.parametrize(
    ("padding", "parsed"), [(0, 0), (3, 3), ("1", 1), (" 2 ", 2), ("same", "same"), ("VALID", "valid")]
)
def test_padding_is_read(padding, parsed):
    assert layers.parse_padding(padding) == parsed


@pytest.mark.parametrize("padding", [-1, "-1", 1.5, "1.5", "full", "", None, True, (1, 1)])
def test_padding_is_refused(padding):
    with pytest.raises(ValueError, match="neither a whole number >= 0 nor 'same' nor 'valid'"):
        layers.parse_padding(padding)


@pytest.mark.parametrize(
    ("value", "stages", "expected"),
    [((3,), 3, (3, 3, 3)), (3, 2, (3, 3)), ("max", 2, ("max", "max")), ([1, 2], 2, (1, 2)), ((5,), 0, ()), ((), 0, ())],
)
def test_per_stage(value, stages, expected):
    assert layers.per_stage("stride", value, stages) == expected


@pytest.mark.parametrize(("value", "stages"), [((1, 2), 3), ((), 1), ((1, 2, 3), 2), ((1, 2), 0)])
def test_per_stage_of_a_wrong_length_names_the_field_and_both_lengths(value, stages):
    with pytest.raises(ValueError, match=f"^stride has {len(value)} values .* for {stages} stages"):
        layers.per_stage("stride", value, stages)


@pytest.mark.parametrize(
    ("stride", "padding", "before"),
    [(1, 0, 0), (1, 1, 1), (2, 1, 1), (3, 2, 2), (1, "same", 1), (2, "valid", 0)],
)
def test_conv_is_a_sum_of_products(stride, padding, before):
    x, kernel, bias = random(2, 6, 7, 2), random(3, 3, 2, 4), random(4)
    block = Block(lambda x: layers.conv(x, 4, 3, name="conv", stride=stride, padding=padding))
    out = np.asarray(block.apply({"params": {"conv": {"kernel": kernel, "bias": bias}}}, x))
    expected = windows(x, 3, stride, before, 0.0)
    assert out.shape[1] * out.shape[2] == len(expected)
    for (i, j), window in expected.items():
        np.testing.assert_allclose(out[:, i, j], np.tensordot(window, kernel, 3) + bias, atol=1e-5)


def test_same_padding_at_stride_2_starts_one_pixel_later_than_symmetric_padding():
    x = np.arange(8.0, dtype=np.float32).reshape(1, 1, 8, 1) * np.ones((1, 8, 1, 1), np.float32)
    kernel = np.zeros((3, 3, 1, 1), np.float32)
    kernel[1, 0] = 1  # picks the pixel on the left of each window

    def left_pixels(padding):
        block = Block(lambda x: layers.conv(x, 1, 3, name="conv", stride=2, padding=padding, use_bias=False))
        return np.asarray(block.apply({"params": {"conv": {"kernel": kernel}}}, x))[0, 1, :, 0]

    np.testing.assert_array_equal(left_pixels("same"), [0, 2, 4, 6])
    np.testing.assert_array_equal(left_pixels(1), [0, 1, 3, 5])  # the first 0 is padding


@pytest.mark.parametrize("kind", list(layers.POOLS))
@pytest.mark.parametrize(
    ("size", "stride", "padding"), [(2, 2, 0), (2, None, 0), (3, 2, 0), (3, 2, 1), (2, 1, "valid")]
)
def test_pool_is_the_reduction_of_each_window(kind, size, stride, padding):
    x = random(2, 7, 6, 3) - 5.0  # all negative: zeros in the padding of a maximum would show
    reduce = {"max": np.max, "average": np.mean, "sum": np.sum}[kind]
    pad = 0 if padding == "valid" else padding
    expected = windows(x, size, stride or size, pad, -np.inf if kind == "max" else 0.0)
    out = np.asarray(layers.pool(jnp.asarray(x), kind, size, name="pool", stride=stride, padding=padding))
    assert out.shape[1] * out.shape[2] == len(expected)
    for (i, j), window in expected.items():
        np.testing.assert_allclose(out[:, i, j], reduce(window, axis=(1, 2)), rtol=1e-5)


@pytest.mark.parametrize(
    ("size", "kernel", "stride", "padding", "expected"),
    [
        # GoogLeNet: 112 -> 56 -> 28 -> 14 -> 7, where rounding down gives 55, 27, 13 and 6 of even sizes.
        (112, 3, 2, 0, 56),
        (56, 3, 2, 0, 28),
        (28, 3, 2, 0, 14),
        (14, 3, 2, 0, 7),
        (14, 2, 2, 0, 7),
        (7, 2, 2, 0, 4),
        (7, 3, 2, 0, 3),  # nothing left over: as without
        (2, 3, 2, 0, 1),  # the only window is not full
        (1, 3, 2, 0, 0),  # ceil(-2 / 2) + 1
        (6, 3, 2, 1, 4),  # starts at -1, 1, 3, 5
        (5, 2, 2, 1, 3),  # starts at -1, 1, 3; one at 5 would see the padding alone
        (3, 1, 2, 0, 2),
        (4, 1, 2, 0, 2),  # starts at 0, 2; one at 4 would lie outside
        (7, 3, 2, "same", 4),
        (8, 3, 2, "valid", 4),
    ],
)
def test_output_size_rounded_up(size, kernel, stride, padding, expected):
    assert layers.output_size(size, kernel, stride, padding, ceil_mode=True) == expected


@pytest.mark.parametrize("kind", list(layers.POOLS))
@pytest.mark.parametrize(("size", "stride", "padding"), [(3, 2, 0), (2, 2, 1), (3, 3, 1), (2, 2, "valid"), (3, 2, 1)])
def test_pool_with_ceil_mode_is_the_reduction_of_what_each_window_sees(kind, size, stride, padding):
    """Of the padding an average counts the zeros; of what lies beyond it, nothing."""
    x = random(2, 8, 7, 3) - 5.0
    pad = 0 if padding == "valid" else padding
    fill = -np.inf if kind == "max" else 0.0
    padded = np.pad(x, ((0, 0), (pad, pad), (pad, pad), (0, 0)), constant_values=fill)
    reduce = {"max": np.max, "average": np.mean, "sum": np.sum}[kind]
    starts = [range(0, n + pad, stride) for n in (8, 7)]  # inside the image or the padding before it
    # A window that starts within the last full one's reach is a new one only if something was left over.
    starts = [
        [start for start in axis if start - stride + size < n + 2 * pad] for axis, n in zip(starts, (8, 7), strict=True)
    ]
    out = np.asarray(
        layers.pool(jnp.asarray(x), kind, size, name="pool", stride=stride, padding=padding, ceil_mode=True)
    )
    assert out.shape[1:3] == tuple(len(axis) for axis in starts)
    for (i, top), (j, left) in itertools.product(*map(enumerate, starts)):
        window = padded[:, top : top + size, left : left + size]
        np.testing.assert_allclose(out[:, i, j], reduce(window, axis=(1, 2)), rtol=1e-5)


def test_pool_with_ceil_mode_and_nothing_left_over_is_the_plain_pool():
    x = jnp.asarray(random(1, 7, 9, 2))
    for kind in layers.POOLS:
        plain, ceil = (layers.pool(x, kind, 3, name="pool", stride=2, ceil_mode=mode) for mode in (False, True))
        np.testing.assert_allclose(ceil, plain, rtol=1e-6)


def test_global_average_pool():
    x = random(2, 3, 4, 5)
    np.testing.assert_allclose(layers.global_average_pool(jnp.asarray(x)), x.mean((1, 2)), rtol=1e-4, atol=1e-6)
    # 300 ones: bfloat16 stops counting at 256.
    ones = layers.global_average_pool(jnp.ones((1, 20, 15, 1), jnp.bfloat16))
    assert ones.dtype == jnp.bfloat16 and ones[0, 0] == 1


def test_pools_follow_a_substitute_of_flax(monkeypatch):
    monkeypatch.setattr(nn, "max_pool", lambda x, **window: x[:, :1, :1])
    assert layers.pool(jnp.zeros((1, 4, 4, 1)), "max", 2, name="pool1").shape == (1, 1, 1, 1)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: layers.conv(jnp.zeros((1, 3, 3, 1)), 1, 5, name="C3"),
            "C3: input 3x3 is too small for kernel 5x5, stride 1, padding 0: floor((3 + 2*0 - 5)/1) + 1 = -1",
        ),
        (
            lambda: layers.conv(jnp.zeros((1, 9, 2, 1)), 1, 7, name="conv2", stride=2, padding=1),
            "conv2: input 9x2 is too small for kernel 7x7, stride 2, padding 1: floor((2 + 2*1 - 7)/2) + 1 = -1",
        ),
        (
            lambda: layers.pool(jnp.zeros((1, 1, 4, 1)), "max", 2, name="pool3", padding="valid"),
            "pool3: input 1x4 is too small for kernel 2x2, stride 2, padding 0: floor((1 + 2*0 - 2)/2) + 1 = 0",
        ),
        (
            lambda: layers.pool(jnp.zeros((1, 1, 4, 1)), "max", 3, name="pool3", stride=2, ceil_mode=True),
            "pool3: input 1x4 is too small for kernel 3x3, stride 2, padding 0: ceil((1 + 2*0 - 3)/2) + 1 = 0",
        ),
        (
            lambda: layers.pool(jnp.zeros((1, 4, 4, 1)), "min-max-plus", 2, name="pool1"),
            "pool1: pool='min-max-plus' is not one of max, average, sum",
        ),
        (
            lambda: layers.pool(jnp.zeros((1, 4, 4, 1)), "averge", 2, name="pool1"),
            "pool1: pool='averge' is not one of max, average, sum (did you mean 'average'?)",
        ),
        (
            lambda: layers.pool(jnp.zeros((1, 4, 4, 1)), "max", 2, name="pool1", padding=2),
            "pool1: padding 2 must be smaller than the pool's size 2",
        ),
        (
            lambda: layers.conv(jnp.zeros((1, 4, 4, 1)), 1, 3, name="conv1", stride=0),
            "conv1: stride must be a whole number of at least 1, got 0",
        ),
        (
            lambda: layers.conv(jnp.zeros((4, 4, 1)), 1, 3, name="conv1"),
            "conv1: images have the shape [N, H, W, C], got (4, 4, 1)",
        ),
    ],
)
def test_what_is_wrong_is_said_in_one_line(call, message):
    with pytest.raises(ValueError) as error:
        call()
    assert str(error.value) == message


FORMULAS = {
    "relu": lambda x: max(x, 0.0),
    "prelu": lambda x: x if x >= 0 else 0.25 * x,
    "leaky_relu": lambda x: x if x >= 0 else 0.01 * x,
    "sigmoid": lambda x: 1 / (1 + math.exp(-x)),
    "tanh": math.tanh,
    "scaled_tanh": lambda x: 1.7159 * math.tanh(2 * x / 3),
    "gelu": lambda x: x * 0.5 * (1 + math.erf(x / math.sqrt(2))),
}


@pytest.mark.parametrize("name", sorted({*layers.ACTIVATIONS, *FORMULAS}))
def test_activation_is_its_formula(name):
    x = np.array([[-3.0, -1.0, -0.1, 0.0, 0.1, 1.0, 3.0]], np.float32)
    out, _ = Block(lambda x: layers.activate(x, name, name="conv1")).init_with_output(jax.random.key(0), x)
    np.testing.assert_allclose(out[0], [FORMULAS[name](float(value)) for value in x[0]], atol=1e-5)


def test_scaled_tanh_maps_one_to_one():
    np.testing.assert_allclose(layers.scaled_tanh(jnp.array([-1.0, 0.0, 1.0])), [-1.0, 0.0, 1.0], atol=1e-4)


def test_prelu_learns_its_slope_from_what_is_negative():
    block = Block(lambda x: layers.activate(x, "prelu", name="conv1"))
    x = jnp.array([[-2.0, 5.0, -0.5]])
    params = block.init(jax.random.key(0), x)["params"]
    grads = jax.grad(lambda params: block.apply({"params": params}, x).sum())(params)
    assert params["conv1_prelu"]["negative_slope"] == 0.25
    assert grads["conv1_prelu"]["negative_slope"] == -2.5


@pytest.mark.parametrize(("name", "variance"), [("he", 2 / 576), ("xavier", 2 / (576 + 1152)), ("lecun", 1 / 576)])
def test_initial_variance(name, variance):
    kernel = layers.INITIALIZERS[name](jax.random.key(0), (3, 3, 64, 128))  # fan_in 9 x 64, fan_out 9 x 128
    # 73,728 draws: the standard error of a variance is about 0.5 % of it.
    np.testing.assert_allclose(np.var(kernel), variance, rtol=0.03)
    assert abs(np.mean(kernel)) < 4 * math.sqrt(variance / kernel.size)


def test_batch_norm_keeps_nine_tenths_of_the_running_average():
    x = random(8, 2, 2, 3) * 2 + 1
    block = Block(lambda x: layers.BatchNorm(use_running_average=False, name="norm1")(x))
    variables = block.init(jax.random.key(0), x)
    out, updated = block.apply(variables, x, mutable=["batch_stats"])
    mean, variance = x.mean((0, 1, 2)), x.var((0, 1, 2))
    stats = updated["batch_stats"]["norm1"]
    np.testing.assert_allclose(stats["mean"], 0.9 * 0 + 0.1 * mean, rtol=1e-4)
    np.testing.assert_allclose(stats["var"], 0.9 * 1 + 0.1 * variance, rtol=1e-4)
    np.testing.assert_allclose(out, (x - mean) / np.sqrt(variance + 1e-5), atol=1e-4)


def test_dropout_zeroes_its_share_in_training_and_keeps_the_mean():
    block = Block(
        lambda x: layers.hidden_dense(x, 4000, name="dense1", activation="relu", dropout_rate=0.3, train=True)
    )
    params = {"dense1": {"kernel": jnp.zeros((1, 4000)), "bias": jnp.ones(4000)}}
    out = np.asarray(block.apply({"params": params}, jnp.ones((1, 1)), rngs={"dropout": jax.random.key(0)}))
    assert abs((out == 0).mean() - 0.3) < 4 * math.sqrt(0.3 * 0.7 / 4000)
    np.testing.assert_allclose(out[out != 0], 1 / 0.7, rtol=1e-6)


@pytest.mark.parametrize("rate", [-0.1, 1.0, 50])
def test_dropout_rate_is_a_fraction(rate):
    block = Block(lambda x: layers.hidden_dense(x, 2, name="d", activation="relu", dropout_rate=rate, train=False))
    with pytest.raises(ValueError, match="dropout_rate=.* at least 0 and below 1"):
        jax.eval_shape(block.init, jax.random.key(0), jnp.zeros((1, 2)))


def test_flatten_runs_through_channels_first():
    x = jnp.arange(2 * 2 * 3 * 4).reshape(2, 2, 3, 4)
    np.testing.assert_array_equal(layers.flatten(x), np.arange(48).reshape(2, 24))
