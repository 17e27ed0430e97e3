"""AlexNet against the published counts and sizes, and against the whole network written out in numpy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cnn_research.models import alexnet, layers
from cnn_research.models.alexnet import AlexNet, AlexNetOWT
from cnn_research.models.registry import create_model

pytestmark = pytest.mark.zoo


@pytest.fixture
def few_units(monkeypatch):
    monkeypatch.setattr(alexnet, "UNITS", 32)


FULLY_CONNECTED = {"fc6": 37_752_832, "fc7": 16_781_312, "output": 4_097_000}
COUNTS = {
    "alexnet": (60_965_224, {"conv1": 34_944, "conv2": 307_456, "conv3": 885_120, "conv4": 663_936, "conv5": 442_624}),
    "alexnet_one_tower": (
        62_378_344,
        {"conv1": 34_944, "conv2": 614_656, "conv3": 885_120, "conv4": 1_327_488, "conv5": 884_992},
    ),
    "alexnet_owt": (
        61_100_840,
        {"conv1": 23_296, "conv2": 307_392, "conv3": 663_936, "conv4": 884_992, "conv5": 590_080},
    ),
}


@pytest.mark.parametrize(
    ("name", "size"),
    [
        *[("alexnet", 227), ("alexnet", 224), ("alexnet_one_tower", 227), ("alexnet_one_tower", 224)],
        *[("alexnet_owt", 224), ("alexnet_owt", 63), ("alexnet_owt", 300)],
    ],
)
def test_parameters_to_the_unit(name, size, param_counts):
    total, convolutions = COUNTS[name]
    counted = param_counts(create_model(name, 1000), (size, size, 3))
    assert counted == {**convolutions, **FULLY_CONNECTED}
    assert sum(counted.values()) == total


def test_other_channels_classes_and_sizes(param_counts):
    # 75x91 -> 17x21 -> 8x10 -> 3x4 -> 1x1
    expected = {**COUNTS["alexnet"][1], **FULLY_CONNECTED}
    expected |= {"conv1": 121 * 2 * 96 + 96, "fc6": 256 * 4096 + 4096, "output": 4096 * 7 + 7}
    assert param_counts(AlexNet(7), (75, 91, 2)) == expected
    expected = {**COUNTS["alexnet_owt"][1], **FULLY_CONNECTED}
    expected |= {"conv1": 121 * 1 * 64 + 64, "output": 4096 * 7 + 7}
    assert param_counts(AlexNetOWT(7), (75, 91, 1)) == expected


@pytest.mark.parametrize("size", [227, 224])
@pytest.mark.parametrize("towers", [1, 2])
def test_sizes_of_the_paper(size, towers, output_shapes):
    assert list(output_shapes(AlexNet(1000, towers=towers), (size, size, 3)).items()) == [
        ("conv1", (55, 55, 96)),
        ("norm1", (55, 55, 96)),
        ("pool1", (27, 27, 96)),
        ("conv2", (27, 27, 256)),
        ("norm2", (27, 27, 256)),
        ("pool2", (13, 13, 256)),
        ("conv3", (13, 13, 384)),
        ("conv4", (13, 13, 384)),
        ("conv5", (13, 13, 256)),
        ("pool5", (6, 6, 256)),
    ]


@pytest.mark.parametrize(("size", "last"), [(224, 6), (63, 1), (448, 13)])
def test_sizes_of_torchvision(size, last, output_shapes):
    shapes = output_shapes(AlexNetOWT(1000), (size, size, 3))
    assert shapes["pool5"] == (last, last, 256)
    assert shapes["average_pool"] == (6, 6, 256)
    if size == 224:
        assert [shapes[layer][0] for layer in ("conv1", "pool1", "conv2", "pool2", "conv5")] == [55, 27, 27, 13, 13]


@pytest.mark.parametrize("towers", [1, 2])
def test_is_the_network_in_numpy(towers, few_units, random_variables, in_numpy):
    model, x = AlexNet(5, towers=towers), np.random.default_rng(0).normal(size=(2, 67, 71, 3)).astype(np.float32)
    variables = random_variables(model, (67, 71, 3))
    params = variables["params"]
    params["conv1"]["kernel"] *= 50  # squares of several thousand: with small ones the normalisation would do nothing
    conv, relu = in_numpy.conv, in_numpy.relu

    out = in_numpy.local_response_norm(relu(conv(x, params["conv1"], stride=4)))
    out = in_numpy.max_pool(out, 3, 2)
    out = in_numpy.local_response_norm(relu(conv(out, params["conv2"], padding=2, groups=towers)))
    out = in_numpy.max_pool(out, 3, 2)
    out = relu(conv(out, params["conv3"], padding=1))
    out = relu(conv(out, params["conv4"], padding=1, groups=towers))
    out = in_numpy.max_pool(relu(conv(out, params["conv5"], padding=1, groups=towers)), 3, 2)
    out = relu(in_numpy.dense(out, params["fc6"]))
    out = relu(in_numpy.dense(out, params["fc7"]))
    expected = in_numpy.dense(out, params["output"])
    np.testing.assert_allclose(jax.jit(model.apply)(variables, x), expected, rtol=1e-3, atol=1e-3 * np.ptp(expected))


def test_torchvisions_form_is_the_network_in_numpy(few_units, random_variables, in_numpy):
    model, x = AlexNetOWT(5), np.random.default_rng(0).normal(size=(2, 64, 70, 3)).astype(np.float32)
    variables = random_variables(model, (64, 70, 3))
    params = variables["params"]
    conv, relu = in_numpy.conv, in_numpy.relu

    out = in_numpy.max_pool(relu(conv(x, params["conv1"], stride=4, padding=2)), 3, 2)
    out = in_numpy.max_pool(relu(conv(out, params["conv2"], padding=2)), 3, 2)
    for layer in ("conv3", "conv4", "conv5"):
        out = relu(conv(out, params[layer], padding=1))
    out = in_numpy.adaptive_average_pool(in_numpy.max_pool(out, 3, 2), 6)
    out = relu(in_numpy.dense(out, params["fc6"]))
    out = relu(in_numpy.dense(out, params["fc7"]))
    expected = in_numpy.dense(out, params["output"])
    np.testing.assert_allclose(jax.jit(model.apply)(variables, x), expected, rtol=1e-3, atol=1e-3 * np.ptp(expected))


def test_the_towers_meet_in_conv3_and_in_the_fully_connected_layers_only(few_units, random_variables):
    """Another half of a layer's channels reaches the same half of the next tower layer, and all of a layer that sees
    both. The local response normalisation looks two channels over the border, so there the change starts two later.
    """
    model, x = AlexNet(5), np.random.default_rng(0).normal(size=(1, 67, 67, 3)).astype(np.float32)
    variables = random_variables(model, (67, 67, 3))
    run = jax.jit(lambda variables: model.apply(variables, x, capture_intermediates=True)[1]["intermediates"])

    def changed(layer, channels):
        """Which outputs of each layer change with the biases of these channels."""
        params = dict(variables["params"])
        bias = params[layer]["bias"].copy()
        bias[channels] += 1.0
        params[layer] = {**params[layer], "bias": bias}
        before, after = run(variables), run({"params": params})
        return {
            name: np.any(before[name]["__call__"][0] != after[name]["__call__"][0], axis=(0, *range(1, axes)))
            for name, axes in {"conv2": 3, "conv3": 3, "conv4": 3, "conv5": 3, "fc6": 1}.items()
        }

    for layer, channels, tower_layer, both in [
        ("conv1", slice(50, 96), "conv2", "conv3"),
        ("conv1", slice(0, 46), "conv2", "conv3"),
        ("conv3", slice(192, 384), "conv4", "fc6"),
        ("conv4", slice(0, 192), "conv5", "fc6"),
    ]:
        halves = np.split(changed(layer, channels)[tower_layer], 2)
        mine, other = halves if channels.start == 0 else halves[::-1]
        assert mine.mean() > 0.9 and not other.any()
        assert changed(layer, channels)[both].mean() > 0.9


@pytest.mark.parametrize("kernel_init", ["paper", "he", "xavier", "lecun"])
@pytest.mark.parametrize("model", [AlexNet, AlexNetOWT])
def test_initial_values(model, kernel_init, initial_values):
    values = initial_values(model(10, kernel_init=kernel_init), (67, 67, 3))
    assert list(values) == ["conv1", "conv2", "conv3", "conv4", "conv5", "fc6", "fc7", "output"]
    variance = {"paper": 1e-4, "he": 2 / 180, "xavier": 2 / (180 + 450), "lecun": 1 / 180}[kernel_init]
    for layer, (kernel, bias) in values.items():
        np.testing.assert_allclose(np.var(kernel), variance, rtol=5 * np.sqrt(2 / kernel.size))
        assert abs(np.mean(kernel)) < 5 * np.sqrt(variance / kernel.size)
        one = kernel_init == "paper" and layer in ("conv2", "conv4", "conv5", "fc6", "fc7")
        np.testing.assert_array_equal(bias, float(one))


def test_dropout_stands_where_the_paper_and_torchvision_have_it(dense_and_dropout):
    assert dense_and_dropout(AlexNet(10), (67, 67, 3)) == ["fc6", 0.5, "fc7", 0.5, "output"]
    assert dense_and_dropout(AlexNetOWT(10), (67, 67, 3)) == [0.5, "fc6", 0.5, "fc7", "output"]
    assert dense_and_dropout(AlexNet(10, dropout_rate=0.0), (67, 67, 3)) == ["fc6", "fc7", "output"]
    assert dense_and_dropout(AlexNetOWT(10, dropout_rate=0.2), (67, 67, 3)) == [0.2, "fc6", 0.2, "fc7", "output"]


@pytest.mark.parametrize(
    ("model", "size", "message"),
    [
        (AlexNet(10), 10, "conv1: input 10x10 is too small for kernel 11x11, stride 4, padding 0"),
        (AlexNet(10), 66, "pool5: input 2x2 is too small for kernel 3x3, stride 2, padding 0"),
        (AlexNetOWT(10), 62, "pool5: input 2x2 is too small for kernel 3x3, stride 2, padding 0"),
        (AlexNetOWT(10), 6, "conv1: input 6x6 is too small for kernel 11x11, stride 4, padding 2"),
        (
            AlexNet(10, kernel_init="papr"),
            67,
            "kernel_init='papr' is not one of paper, he, xavier, lecun (did you mean",
        ),
        (AlexNetOWT(10, kernel_init="normal"), 67, "kernel_init='normal' is not one of paper, he, xavier, lecun"),
        (AlexNet(10, dropout_rate=1.0), 67, "dropout_rate=1.0 is a fraction"),
        (AlexNetOWT(10, dropout_rate=-0.5), 67, "dropout_rate=-0.5 is a fraction"),
    ],
)
def test_mistakes_name_the_layer_or_the_field(model, size, message, param_counts):
    with pytest.raises(ValueError) as error:
        param_counts(model, (size, size, 3))
    assert str(error.value).startswith(message) and "\n" not in str(error.value)


def test_bfloat16_is_normalised_in_float32(in_numpy):
    x = np.random.default_rng(0).normal(scale=400, size=(1, 2, 2, 9))
    out = layers.local_response_norm(jnp.asarray(x, jnp.bfloat16), name="norm1")
    assert out.dtype == jnp.bfloat16
    expected = in_numpy.local_response_norm(np.asarray(jnp.asarray(x, jnp.bfloat16), np.float64))
    np.testing.assert_allclose(np.asarray(out, np.float64), expected, rtol=2**-8)  # half a unit of the last place


@pytest.mark.parametrize("constants", [{}, {"size": 3}, {"size": 1, "k": 1.0, "alpha": 0.5, "beta": 1.0}, {"size": 9}])
def test_local_response_norm_is_its_formula(constants, in_numpy):
    x = np.random.default_rng(0).normal(scale=100, size=(2, 3, 4, 7)).astype(np.float32)
    out = layers.local_response_norm(jnp.asarray(x), name="norm1", **constants)
    np.testing.assert_allclose(out, in_numpy.local_response_norm(x.astype(np.float64), **constants), rtol=1e-5)


@pytest.mark.parametrize("size", [0, 4, -3])
def test_local_response_norm_needs_a_middle(size):
    with pytest.raises(ValueError, match=f"^norm1: size={size} must be an odd number"):
        layers.local_response_norm(jnp.zeros((1, 2, 2, 5)), name="norm1", size=size)


@pytest.mark.parametrize(
    ("shape", "size"), [((13, 13), 6), ((7, 7), 7), ((3, 3), 7), ((14, 7), 7), ((1, 1), 6), ((5, 9), 6), ((6, 8), 1)]
)
def test_adaptive_average_pool_is_its_definition(shape, size, in_numpy):
    x = np.random.default_rng(0).normal(size=(2, *shape, 3)).astype(np.float32)
    out = jax.jit(lambda x: layers.adaptive_average_pool(x, size, name="average_pool"))(x)
    np.testing.assert_allclose(out, in_numpy.adaptive_average_pool(x.astype(np.float64), size), rtol=1e-4, atol=1e-6)


def test_adaptive_average_pool_by_hand():
    row = jnp.arange(5.0).reshape(1, 1, 5, 1) * jnp.ones((1, 5, 1, 1))
    pool = jax.jit(lambda x: layers.adaptive_average_pool(x, 3, name="p")[0, 0, :, 0])
    np.testing.assert_allclose(pool(row), [0.5, 2.0, 3.5])  # of 5 columns: [0, 2), [1, 4), [3, 5)
    np.testing.assert_allclose(pool(row[:, :2, :2]), [0.0, 0.5, 1.0])  # of 2: [0, 1), [0, 2), [1, 2)
    with pytest.raises(ValueError, match="^p: kernel must be a whole number of at least 1, got 0"):
        layers.adaptive_average_pool(row, 0, name="p")
