"""VGG against the published counts and table 1, and against whole networks written out in numpy."""

import jax
import numpy as np
import pytest

from cnn_research.models import vgg
from cnn_research.models.registry import create_model
from cnn_research.models.vgg import VGG, VGGCifar

pytestmark = pytest.mark.zoo


@pytest.fixture
def few_units(monkeypatch):
    monkeypatch.setattr(vgg, "UNITS", 32)


COUNTS = {  # 1,000 classes; 10 for the small images
    "vgg11": 132_863_336,
    "vgg11_bn": 132_868_840,
    "vgg13": 133_047_848,
    "vgg13_bn": 133_053_736,
    "vgg16_c": 133_638_952,
    "vgg16": 138_357_544,
    "vgg16_bn": 138_365_992,
    "vgg19": 143_667_240,
    "vgg19_bn": 143_678_248,
    "vgg11_bn_cifar": 9_231_114,
    "vgg13_bn_cifar": 9_416_010,
    "vgg16_bn_cifar": 14_728_266,
    "vgg19_bn_cifar": 20_040_522,
}


@pytest.mark.parametrize("name", list(COUNTS))
def test_parameters_to_the_unit(name, param_counts):
    model = create_model(name, 10 if name.endswith("cifar") else 1000)
    for size in (32, 48) if name.endswith("cifar") else (224, 32):
        counted = param_counts(model, (size, size, 3))
        assert sum(counted.values()) == COUNTS[name]
    if not name.endswith("cifar"):
        fully_connected = {layer: counted[layer] for layer in ("fc6", "fc7", "output")}
        assert fully_connected == {"fc6": 102_764_544, "fc7": 16_781_312, "output": 4_097_000}


def test_other_channels_classes_and_sizes(param_counts):
    counted = param_counts(VGG(7), (40, 250, 1))
    assert (counted["conv1_1"], counted["output"]) == (9 * 64 + 64, 4096 * 7 + 7)
    assert sum(counted.values()) == COUNTS["vgg16"] - 2 * 9 * 64 - 4097 * 993
    counted = param_counts(VGGCifar(100), (64, 40, 4))
    assert sum(counted.values()) == COUNTS["vgg16_bn_cifar"] + 9 * 64 + 513 * 90


# Table 1, column by column, as printed: conv<kernel>-<channels>.
TABLE_1 = {
    "vgg11": "3-64 M 3-128 M 3-256 3-256 M 3-512 3-512 M 3-512 3-512 M",
    "vgg13": "3-64 3-64 M 3-128 3-128 M 3-256 3-256 M 3-512 3-512 M 3-512 3-512 M",
    "vgg16_c": "3-64 3-64 M 3-128 3-128 M 3-256 3-256 1-256 M 3-512 3-512 1-512 M 3-512 3-512 1-512 M",
    "vgg16": "3-64 3-64 M 3-128 3-128 M 3-256 3-256 3-256 M 3-512 3-512 3-512 M 3-512 3-512 3-512 M",
    "vgg19": (
        "3-64 3-64 M 3-128 3-128 M 3-256 3-256 3-256 3-256 M 3-512 3-512 3-512 3-512 M 3-512 3-512 3-512 3-512 M"
    ),
}


@pytest.mark.parametrize("name", list(TABLE_1))
@pytest.mark.parametrize("suffix", ["", "_bn", "_bn_cifar"])
def test_is_its_column_of_table_1(name, suffix, output_shapes, param_counts):
    if name == "vgg16_c" and suffix:
        return
    size = 32 if suffix == "_bn_cifar" else 224
    shapes, stage, number, channels, expected, parameters = size, 1, 0, 3, {}, {}
    for word in TABLE_1[name].split():
        if word == "M":
            shapes //= 2
            expected[f"pool{stage}"] = (shapes, shapes, channels)
            stage, number = stage + 1, 0
            continue
        kernel, filters = map(int, word.split("-"))
        number += 1
        parameters[f"conv{stage}_{number}"] = kernel**2 * channels * filters + filters
        if suffix:
            parameters[f"norm{stage}_{number}"] = 2 * filters
        channels = filters
        expected[f"conv{stage}_{number}"] = (shapes, shapes, channels)
    if suffix != "_bn_cifar":
        expected["average_pool"] = (7, 7, 512)
    model = create_model(name + suffix, 1000)
    assert list(output_shapes(model, (size, size, 3)).items()) == list(expected.items())
    counted = param_counts(model, (size, size, 3))
    assert {layer: count for layer, count in counted.items() if layer[:4] in ("conv", "norm")} == parameters


def convolutions_in_numpy(x, variables, configuration, in_numpy):
    for stage, kernel_sizes in enumerate(vgg.CONFIGURATIONS[configuration], start=1):
        for number, kernel_size in enumerate(kernel_sizes, start=1):
            layer = f"{stage}_{number}"
            x = in_numpy.conv(x, variables["params"][f"conv{layer}"], padding=kernel_size // 2)
            if "batch_stats" in variables:
                norm, stats = variables["params"][f"norm{layer}"], variables["batch_stats"][f"norm{layer}"]
                x = (x - stats["mean"]) / np.sqrt(stats["var"] + 1e-5) * norm["scale"] + norm["bias"]
            x = in_numpy.relu(x)
        x = in_numpy.max_pool(x, 2, 2)
    return x


@pytest.mark.parametrize(
    ("configuration", "batch_norm", "image_shape"), [("A", True, (34, 66, 3)), ("C", False, (32, 32, 3))]
)
def test_is_the_network_in_numpy(configuration, batch_norm, image_shape, few_units, random_variables, in_numpy):
    model = VGG(5, configuration=configuration, batch_norm=batch_norm)
    x = np.random.default_rng(0).normal(size=(2, *image_shape)).astype(np.float32)
    variables = random_variables(model, image_shape)
    params = variables["params"]
    out = in_numpy.adaptive_average_pool(convolutions_in_numpy(x, variables, configuration, in_numpy), 7)
    out = in_numpy.relu(in_numpy.dense(out, params["fc6"]))
    out = in_numpy.relu(in_numpy.dense(out, params["fc7"]))
    expected = in_numpy.dense(out, params["output"])
    np.testing.assert_allclose(jax.jit(model.apply)(variables, x), expected, rtol=1e-3, atol=1e-3 * np.ptp(expected))


def test_form_for_small_images_is_the_network_in_numpy(random_variables, in_numpy):
    model, x = VGGCifar(5, configuration="A"), np.random.default_rng(0).normal(size=(2, 32, 64, 3)).astype(np.float32)
    variables = random_variables(model, (32, 64, 3))
    out = convolutions_in_numpy(x, variables, "A", in_numpy).mean((1, 2))
    expected = in_numpy.dense(out, variables["params"]["output"])
    np.testing.assert_allclose(jax.jit(model.apply)(variables, x), expected, rtol=1e-3, atol=1e-3 * np.ptp(expected))


@pytest.mark.parametrize("kernel_init", ["paper", "he", "xavier", "lecun"])
@pytest.mark.parametrize("model", [VGG, VGGCifar])
def test_initial_values(model, kernel_init, initial_values):
    values = initial_values(model(10, configuration="A", kernel_init=kernel_init), (32, 32, 3))
    assert len(values) == {VGG: 11, VGGCifar: 9}[model]
    variance = {"paper": 2 / (180 + 450), "he": 2 / 180, "xavier": 2 / (180 + 450), "lecun": 1 / 180}[kernel_init]
    for kernel, bias in values.values():
        np.testing.assert_allclose(np.var(kernel), variance, rtol=5 * np.sqrt(2 / kernel.size))
        assert not np.any(bias)
        if kernel_init == "paper":  # uniform: Glorot & Bengio's equation 16
            assert np.abs(kernel).max() <= np.sqrt(3 * variance) * (1 + 1e-6)


def test_dropout_stands_where_the_paper_has_it(dense_and_dropout):
    assert dense_and_dropout(VGG(10), (32, 32, 3)) == ["fc6", 0.5, "fc7", 0.5, "output"]
    assert dense_and_dropout(VGG(10, dropout_rate=0.0), (32, 32, 3)) == ["fc6", "fc7", "output"]
    assert dense_and_dropout(VGGCifar(10), (32, 32, 3)) == ["output"]
    assert dense_and_dropout(VGGCifar(10, dropout_rate=0.3), (32, 32, 3)) == [0.3, "output"]


def test_normalisation_is_injected_where_there_is_any(param_counts):
    names = []

    def norm(*, name, **kwargs):
        names.append(name)
        return vgg.layers.BatchNorm(name=name, **kwargs)

    param_counts(VGG(10, configuration="A", batch_norm=True, norm=norm), (32, 32, 3))
    assert names == ["norm1_1", "norm2_1", "norm3_1", "norm3_2", "norm4_1", "norm4_2", "norm5_1", "norm5_2"]
    names.clear()
    param_counts(VGG(10, configuration="A", norm=norm), (32, 32, 3))
    assert not names


@pytest.mark.parametrize("module", [VGG, VGGCifar])
@pytest.mark.parametrize(
    ("fields", "size", "message"),
    [
        (
            {},
            31,
            "pool5: input 1x1 is too small for kernel 2x2, stride 2, padding 0: floor((1 + 2*0 - 2)/2) + 1 = 0",
        ),
        ({}, 1, "pool1: input 1x1 is too small"),
        ({"kernel_init": "kaiming"}, 32, "kernel_init='kaiming' is not one of paper, he, xavier, lecun"),
        ({"configuration": "F"}, 32, "configuration='F' is not one of A, B, C, D, E"),
        ({"dropout_rate": 1.0}, 32, "dropout_rate=1.0 is a fraction"),
    ],
)
def test_mistakes_name_the_layer_or_the_field(module, fields, size, message, param_counts):
    with pytest.raises(ValueError) as error:
        param_counts(module(10, **fields), (size, size, 3))
    assert str(error.value).startswith(message) and "\n" not in str(error.value)
