"""ZFNet against the published counts and sizes, and against the whole network written out in numpy."""

import jax
import numpy as np
import pytest

from cnn_research.models import zfnet
from cnn_research.models.registry import create_model
from cnn_research.models.zfnet import ZFNet

pytestmark = pytest.mark.zoo


@pytest.fixture
def few_units(monkeypatch):
    monkeypatch.setattr(zfnet, "UNITS", 32)


COUNTS = {
    "zfnet": (
        62_357_608,
        {"conv1": 14_208, "conv2": 614_656, "conv3": 885_120, "conv4": 1_327_488, "conv5": 884_992, "fc6": 37_752_832},
    ),
    "zfnet_wide": (
        107_627_624,
        {
            **{"conv1": 14_208, "conv2": 614_656, "conv3": 1_180_160, "conv4": 4_719_616, "conv5": 4_719_104},
            "fc6": 75_501_568,
        },
    ),
}


@pytest.mark.parametrize("name", list(COUNTS))
def test_parameters_to_the_unit(name, param_counts):
    total, expected = COUNTS[name]
    counted = param_counts(create_model(name, 1000), (224, 224, 3))
    assert counted == {**expected, "fc7": 16_781_312, "output": 4_097_000}
    assert sum(counted.values()) == total


def test_other_channels_classes_and_sizes(param_counts):
    # 64 -> 30 -> 15 -> 6 -> 3 -> 1; 80 -> 38 -> 19 -> 8 -> 4 -> 2
    counted = param_counts(create_model("zfnet", 7), (64, 80, 1))
    assert counted["conv1"] == 49 * 96 + 96
    assert counted["fc6"] == 2 * 256 * 4096 + 4096
    assert counted["output"] == 4096 * 7 + 7


@pytest.mark.parametrize(("name", "filters"), [("zfnet", (384, 384, 256)), ("zfnet_wide", (512, 1024, 512))])
def test_sizes_of_figure_3(name, filters, output_shapes):
    assert list(output_shapes(create_model(name, 1000), (224, 224, 3)).items()) == [
        ("conv1", (110, 110, 96)),
        ("pool1", (55, 55, 96)),
        ("norm1", (55, 55, 96)),
        ("conv2", (26, 26, 256)),
        ("pool2", (13, 13, 256)),
        ("norm2", (13, 13, 256)),
        ("conv3", (13, 13, filters[0])),
        ("conv4", (13, 13, filters[1])),
        ("conv5", (13, 13, filters[2])),
        ("pool5", (6, 6, filters[2])),
    ]


def test_is_the_network_in_numpy(few_units, random_variables, in_numpy):
    model, x = ZFNet(5), np.random.default_rng(0).normal(size=(2, 51, 60, 3)).astype(np.float32)
    variables = random_variables(model, (51, 60, 3))
    params = variables["params"]
    params["conv1"]["kernel"] *= 50  # squares of several thousand: with small ones the normalisation would do nothing
    conv, relu = in_numpy.conv, in_numpy.relu

    def pool(x):
        """3x3 with stride 2, partly filled windows included: the row and column beyond the edge never win."""
        odd = [(0, 0), *((0, 1 - n % 2) for n in x.shape[1:3]), (0, 0)]
        return in_numpy.max_pool(np.pad(x, odd, constant_values=-np.inf), 3, 2)

    out = in_numpy.local_response_norm(pool(relu(conv(x, params["conv1"], stride=2, padding=1))))
    out = in_numpy.local_response_norm(pool(relu(conv(out, params["conv2"], stride=2))))
    for layer in ("conv3", "conv4", "conv5"):
        out = relu(conv(out, params[layer], padding=1))
    out = relu(in_numpy.dense(pool(out), params["fc6"]))
    out = relu(in_numpy.dense(out, params["fc7"]))
    expected = in_numpy.dense(out, params["output"])
    np.testing.assert_allclose(jax.jit(model.apply)(variables, x), expected, rtol=1e-3, atol=1e-3 * np.ptp(expected))


@pytest.mark.parametrize("kernel_init", ["paper", "he", "xavier", "lecun"])
def test_initial_values(kernel_init, initial_values):
    values = initial_values(ZFNet(10, kernel_init=kernel_init), (47, 47, 3))
    assert list(values) == ["conv1", "conv2", "conv3", "conv4", "conv5", "fc6", "fc7", "output"]
    variance = {"paper": 1e-4, "he": 2 / 180, "xavier": 2 / (180 + 450), "lecun": 1 / 180}[kernel_init]
    for kernel, bias in values.values():
        np.testing.assert_allclose(np.var(kernel), variance, rtol=5 * np.sqrt(2 / kernel.size))
        assert abs(np.mean(kernel)) < 5 * np.sqrt(variance / kernel.size)
        assert not np.any(bias)


def test_dropout_follows_layers_6_and_7(dense_and_dropout):
    assert dense_and_dropout(ZFNet(10), (47, 47, 3)) == ["fc6", 0.5, "fc7", 0.5, "output"]
    assert dense_and_dropout(ZFNet(10, dropout_rate=0.1), (47, 47, 3)) == ["fc6", 0.1, "fc7", 0.1, "output"]


@pytest.mark.parametrize(
    ("fields", "size", "message"),
    [
        ({}, 4, "conv1: input 4x4 is too small for kernel 7x7, stride 2, padding 1"),
        ({}, 12, "conv2: input 2x2 is too small for kernel 5x5, stride 2, padding 0"),
        ({}, 46, "pool5: input 1x1 is too small for kernel 3x3, stride 2, padding 0"),
        ({"kernel_init": "glorot"}, 47, "kernel_init='glorot' is not one of paper, he, xavier, lecun"),
        ({"dropout_rate": 2.0}, 47, "dropout_rate=2.0 is a fraction"),
    ],
)
def test_mistakes_name_the_layer_or_the_field(fields, size, message, param_counts):
    with pytest.raises(ValueError) as error:
        param_counts(ZFNet(10, **fields), (size, size, 3))
    assert str(error.value).startswith(message) and "\n" not in str(error.value)
