"""LeNet-5 against the numbers printed in the paper, and against the whole network written out in numpy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cnn_research.models import lenet
from cnn_research.models.lenet import LeNet5, LeNet5Paper
from cnn_research.models.registry import init_variables

# Section II-B in words: which maps of S2 each map of C3 sees.
SEEN_BY_C3 = [
    *[{i % 6, (i + 1) % 6, (i + 2) % 6} for i in range(6)],  # "every contiguous subset of three"
    *[{i % 6, (i + 1) % 6, (i + 2) % 6, (i + 3) % 6} for i in range(6)],  # "every contiguous subset of four"
    *[{0, 1, 3, 4}, {1, 2, 4, 5}, {0, 2, 3, 5}],  # "some discontinuous subsets of four"
    {0, 1, 2, 3, 4, 5},  # "all S2 feature maps"
]


def images(*shape):
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


def shapes_of(model, image_shape):
    return jax.eval_shape(model.init, jax.random.key(0), jax.ShapeDtypeStruct((1, *image_shape), jnp.float32))["params"]


def sizes(model, image_shape):
    return {
        layer: sum(leaf.size for leaf in leaves.values()) for layer, leaves in shapes_of(model, image_shape).items()
    }


def some_params(model, image_shape, scale):
    rng = np.random.default_rng(2)
    draw = lambda leaf: rng.normal(scale=scale, size=leaf.shape).astype(np.float32)  # noqa: E731
    return jax.tree.map(draw, shapes_of(model, image_shape))


@pytest.mark.parametrize("image_shape", [(32, 32, 1), (28, 28, 1)])
@pytest.mark.parametrize(
    ("model", "expected", "total"),
    [
        (LeNet5(10), {"C1": 156, "C3": 2416, "C5": 48120, "F6": 10164, "output": 850}, 61_706),
        (LeNet5Paper(10), {"C1": 156, "S2": 12, "C3": 1516, "S4": 32, "C5": 48120, "F6": 10164}, 60_000),
    ],
)
def test_parameters_to_the_unit(model, expected, total, image_shape):
    counted = sizes(model, image_shape)
    assert counted == expected
    assert sum(counted.values()) == total


def test_modern_form_takes_other_sizes_and_classes():
    # 16 -> 12 -> 6 -> 2 -> 1: C5 sees 16 numbers.
    expected = {"C1": 25 * 3 * 6 + 6, "C3": 2416, "C5": 16 * 120 + 120, "F6": 10164, "output": 84 * 5 + 5}
    assert sizes(LeNet5(5), (16, 16, 3)) == expected


@pytest.mark.parametrize(
    ("size", "message"),
    [
        (4, "C1: input 4x4 is too small for kernel 5x5, stride 1, padding 0: floor((4 + 2*0 - 5)/1) + 1 = 0"),
        (10, "C3: input 3x3 is too small for kernel 5x5, stride 1, padding 0: floor((3 + 2*0 - 5)/1) + 1 = -1"),
        (14, "S4: input 1x1 is too small for kernel 2x2, stride 2, padding 0: floor((1 + 2*0 - 2)/2) + 1 = 0"),
    ],
)
def test_modern_form_names_the_layer_that_an_image_is_too_small_for(size, message):
    with pytest.raises(ValueError) as error:
        shapes_of(LeNet5(10), (size, size, 1))
    assert str(error.value) == message


def test_modern_form_pads_28_to_32_with_zeros():
    model, x = LeNet5(10), images(2, 28, 28, 1)
    params = some_params(model, (28, 28, 1), 0.1)
    padded = np.pad(x, ((0, 0), (2, 2), (2, 2), (0, 0)))
    apply = jax.jit(model.apply)
    np.testing.assert_allclose(apply({"params": params}, x), apply({"params": params}, padded), rtol=1e-4, atol=1e-4)


def convolve(x, kernel):
    """[N, H, W, I], [5, 5, I, O] -> [N, H-4, W-4, O]."""
    windows = np.lib.stride_tricks.sliding_window_view(x, (5, 5), axis=(1, 2))
    return np.einsum("nhwcij,ijco->nhwo", windows, kernel)


def blocks(x):
    """[N, H, W, C] -> [N, H/2, W/2, C, 4]: the pixels of each 2x2 window."""
    return np.stack([x[:, i::2, j::2] for i in (0, 1) for j in (0, 1)], axis=-1)


@pytest.mark.parametrize(
    ("pool", "reduce2", "reduce4"),
    [("max", np.max, np.max), (("average",), np.mean, np.mean), (("sum", "max"), np.sum, np.max)],
)
def test_modern_form_is_the_network_in_numpy(pool, reduce2, reduce4):
    model, x = LeNet5(10, pool=pool, activation="tanh"), images(2, 32, 32, 1)
    params = some_params(model, (32, 32, 1), 0.2)
    out = reduce2(blocks(np.tanh(convolve(x, params["C1"]["kernel"]) + params["C1"]["bias"])), axis=-1)
    out = reduce4(blocks(np.tanh(convolve(out, params["C3"]["kernel"]) + params["C3"]["bias"])), axis=-1)
    out = out.reshape(2, 400)
    for layer in ("C5", "F6"):
        out = np.tanh(out @ params[layer]["kernel"] + params[layer]["bias"])
    out = out @ params["output"]["kernel"] + params["output"]["bias"]
    np.testing.assert_allclose(jax.jit(model.apply)({"params": params}, x), out, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"pool": "none"}, "S2: pool='none' is not one of max, average, sum"),
        ({"pool": ("max", "max", "max")}, "pool has 3 values"),
        ({"kernel_init": "normal"}, "kernel_init='normal' is not one of he, xavier, lecun"),
        ({"activation": "tan"}, "did you mean 'tanh'"),
    ],
)
def test_modern_form_refuses_unknown_values(fields, message):
    with pytest.raises(ValueError) as error:
        shapes_of(LeNet5(10, **fields), (28, 28, 1))
    assert message in str(error.value)


def test_table_of_connections():
    table = lenet.CONNECTIONS
    assert table.shape == (6, 16) and table.sum() == 60
    assert [set(np.flatnonzero(column)) for column in table.T] == SEEN_BY_C3
    assert table.sum(axis=1).tolist() == [10] * 6  # each map of S2 is seen by ten
    assert len({tuple(column) for column in table.T}) == 16  # no two maps of C3 see the same


def test_connections_of_each_layer():
    model = LeNet5Paper(10)

    def run(params, x):
        return model.apply({"params": params}, x, capture_intermediates=True, mutable=["intermediates"])[1]

    seen = jax.eval_shape(run, shapes_of(model, (32, 32, 1)), jax.ShapeDtypeStruct((1, 32, 32, 1), jnp.float32))
    outputs = {layer: seen["intermediates"][layer]["__call__"][0].shape[1:] for layer in ("C1", "S2", "C3", "S4")}
    assert outputs == {"C1": (28, 28, 6), "S2": (14, 14, 6), "C3": (10, 10, 16), "S4": (5, 5, 16)}

    parameters = sizes(model, (32, 32, 1))
    connections = {  # a shared weight counts once per position; a subsampling unit has four inputs and a bias
        layer: np.prod(shape) * 5 if layer.startswith("S") else np.prod(shape[:2]) * parameters[layer]
        for layer, shape in outputs.items()
    }
    connections.update({layer: parameters[layer] for layer in ("C5", "F6")}, output=lenet.rbf_codes(10).size)
    assert connections == {
        "C1": 122_304,
        "S2": 5_880,
        "C3": 151_600,
        "S4": 2_000,
        "C5": 48_120,
        "F6": 10_164,
        "output": 840,
    }
    assert sum(connections.values()) == 340_908


@pytest.mark.parametrize("num_classes", [10, 4])
def test_paper_form_is_the_network_in_numpy(num_classes):
    model, x = LeNet5Paper(num_classes), images(2, 32, 32, 1)
    params = some_params(model, (32, 32, 1), 0.2)

    def squash(a):
        return 1.7159 * np.tanh(2 * a / 3)

    def subsample(x, layer):
        return squash(blocks(x).sum(-1) * params[layer]["coefficient"] + params[layer]["bias"])

    out = squash(convolve(x, params["C1"]["kernel"]) + params["C1"]["bias"])
    out = subsample(out, "S2")
    # The 60 kernels lie in the order of the table's rows: map of S2 first, then map of C3.
    order = [(source, target) for source in range(6) for target in range(16) if source in SEEN_BY_C3[target]]
    c3 = np.zeros((2, 10, 10, 16)) + params["C3"]["bias"]
    for number, (source, target) in enumerate(order):
        kernel = params["C3"]["kernel"][:, :, number, None, None]
        c3[..., target] += convolve(out[..., source : source + 1], kernel)[..., 0]
    out = subsample(squash(c3), "S4").reshape(2, 400)
    for layer in ("C5", "F6"):
        out = squash(out @ params[layer]["kernel"] + params[layer]["bias"])
    codes = lenet.rbf_codes(num_classes)
    expected = [[-sum((out[n] - codes[k]) ** 2) for k in range(num_classes)] for n in range(2)]
    np.testing.assert_allclose(jax.jit(model.apply)({"params": params}, x), expected, rtol=1e-3)


def test_paper_form_pads_28_to_32_with_the_edge():
    model, x = LeNet5Paper(10), images(2, 28, 28, 1)
    params = some_params(model, (28, 28, 1), 0.1)
    index = np.clip(np.arange(-2, 30), 0, 27)  # each of the two outer rows and columns three times
    padded = x[:, index][:, :, index]
    apply = jax.jit(model.apply)
    np.testing.assert_allclose(apply({"params": params}, x), apply({"params": params}, padded), rtol=1e-5)


@pytest.mark.parametrize("shape", [(1, 30, 30, 1), (1, 28, 32, 1), (28, 28, 1)])
def test_paper_form_takes_no_other_size(shape):
    with pytest.raises(ValueError, match=r"C1: the paper's LeNet-5 takes images \[N, 32, 32, C\] or \[N, 28, 28, C\]"):
        jax.eval_shape(LeNet5Paper(10).init, jax.random.key(0), jax.ShapeDtypeStruct(shape, jnp.float32))


def test_digits_are_ten_different_pictures_in_the_right_order():
    codes = lenet.rbf_codes(10)
    assert codes.shape == (10, 84) and codes.dtype == np.float32 and set(codes.ravel()) == {-1.0, 1.0}
    pictures = codes.reshape(10, 12, 7) > 0
    distances = (codes[:, None] != codes[None]).sum(-1)
    assert distances[~np.eye(10, dtype=bool)].min() > 0
    for digit in (0, 8):  # symmetric about a vertical line
        np.testing.assert_array_equal(pictures[digit], pictures[digit][:, ::-1])
    assert [digit for digit in range(10) if pictures[digit, 0].all()] == [5, 7]  # a bar at the top
    assert [digit for digit in range(10) if pictures[digit, -1].all()] == [2]  # a bar at the foot
    assert pictures[7, 1:].sum() == 11  # a 7 is a bar and one pixel a row
    assert [digit for digit in range(10) if pictures[digit, 6].all()] == [4]  # the bar across a 4


def test_random_codes_stay_the_same():
    codes = lenet.rbf_codes(50)
    assert codes.shape == (50, 84) and set(codes.ravel()) == {-1.0, 1.0}
    # No checkpoint holds the codes: another seed or generator would ruin every network trained with these.
    np.testing.assert_array_equal(codes > 0, np.random.RandomState(1998).random_sample((50, 84)) < 0.5)
    np.testing.assert_array_equal(codes[:3], lenet.rbf_codes(3))
    distances = (codes[:, None] != codes[None]).sum(-1)[~np.eye(50, dtype=bool)]
    assert distances.min() > 84 / 4 and abs(distances.mean() - 42) < 1  # binomial(84, 1/2)


def test_codes_are_the_targets():
    """A unit's logit is 0, its largest value, where F6 shows its code, and falls by 4 with each pixel turned over."""
    codes = lenet.rbf_codes(10)
    logits = np.asarray(lenet.RadialBasisOutput(10).apply({}, jnp.asarray(codes)))
    np.testing.assert_array_equal(logits, -4.0 * (codes[:, None] != codes[None]).sum(-1))


def test_weights_start_uniform_by_the_inputs_of_a_unit():
    params = init_variables(LeNet5Paper(10), jax.random.key(0), (32, 32, 1))["params"]
    inputs = {"C1": 25, "S2": 4, "S4": 4, "C5": 400, "F6": 120}
    for layer, fan_in in inputs.items():
        weights = params[layer]["coefficient" if layer.startswith("S") else "kernel"]
        assert np.abs(weights).max() <= 2.4 / fan_in
        assert np.ptp(weights) > 2.4 / fan_in  # at least half of the range
    order = [target for source in range(6) for target in range(16) if source in SEEN_BY_C3[target]]
    for target in range(16):
        mine = [number for number, of in enumerate(order) if of == target]
        bound = 2.4 / (25 * len(SEEN_BY_C3[target]))
        largest = np.abs(params["C3"]["kernel"][:, :, np.array(mine)]).max()
        assert 0.9 * bound < largest <= bound
    assert not any(np.any(leaves["bias"]) for leaves in params.values())
