"""ResNet: counts to the unit, blocks against plain numpy, what each field changes."""

import functools
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from cnn_research.models import layers, resnet
from cnn_research.models.registry import create_model

pytestmark = pytest.mark.zoo


@functools.cache
def shapes(model, image_shape):
    """The variables, as shapes. Initial values of 0 are traced twice as fast as random ones."""
    x = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)
    with mock.patch.dict(layers.INITIALIZERS, dict.fromkeys(layers.INITIALIZERS, nn.initializers.zeros_init())):
        return jax.eval_shape(model.init, jax.random.key(0), x)


def size(tree):
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


def outputs(model, image_shape):
    """{module: shape of its output without N} of the modules in the network itself."""

    def run(variables, x):
        return model.apply(variables, x, capture_intermediates=True)[1]

    x = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)
    seen = jax.eval_shape(run, shapes(model, image_shape), x)["intermediates"]
    return {name: values["__call__"][0].shape[1:] for name, values in seen.items() if "__call__" in values}


# The number of parameters doesn't depend on the image's size, but for what is here the paper's sizes are taken.
IMAGENET, CIFAR = (224, 224, 3), (32, 32, 3)


@pytest.mark.parametrize(
    ("name", "fields", "num_classes", "image_shape", "expected"),
    [
        ("resnet18", {}, 1000, IMAGENET, 11_689_512),
        ("resnet34", {}, 1000, IMAGENET, 21_797_672),
        ("resnet50", {}, 1000, IMAGENET, 25_557_032),
        ("resnet101", {}, 1000, IMAGENET, 44_549_160),
        ("resnet152", {}, 1000, IMAGENET, 60_192_808),
        ("resnet50", {"stride_in_1x1": True}, 1000, IMAGENET, 25_557_032),
        # 16 blocks more of 2 C^2 / 16 + C / 16 + C: C = 256 three times, 512 four, 1024 six, 2048 three times.
        ("resnet50", {"squeeze_excitation": True}, 1000, IMAGENET, 25_557_032 + 2_530_992),
        ("resnet18", {"stem": "cifar"}, 10, CIFAR, 11_173_962),
        ("resnet34", {"stem": "cifar"}, 10, CIFAR, 21_282_122),
        ("resnet50", {"stem": "cifar"}, 10, CIFAR, 23_520_842),
        ("resnet101", {"stem": "cifar"}, 10, CIFAR, 42_512_970),
        ("resnet152", {"stem": "cifar"}, 10, CIFAR, 58_156_618),
        # Without the three projections: 64 x 128 + 128 x 256 + 256 x 512 weights, two parameters a normalised channel.
        ("resnet18", {"stem": "cifar", "shortcut": "A"}, 10, CIFAR, 11_173_962 - 172_032 - 2 * 896),
        ("resnet20", {}, 100, CIFAR, 275_572),
    ],
)
def test_parameters_to_the_unit(name, fields, num_classes, image_shape, expected):
    assert size(shapes(create_model(name, num_classes, **fields), image_shape)["params"]) == expected


@pytest.mark.parametrize(
    ("depth", "with_a", "with_b", "with_a_and_100_classes"),
    [
        (20, 269_722, 272_474, 275_572),
        (32, 464_154, 466_906, 470_004),
        (44, 658_586, 661_338, 664_436),
        (56, 853_018, 855_770, 858_868),
        (110, 1_727_962, 1_730_714, 1_733_812),
    ],
)
def test_parameters_of_the_cifar_networks(depth, with_a, with_b, with_a_and_100_classes):
    params = shapes(create_model(f"resnet{depth}", 10), CIFAR)["params"]
    assert size(params) == with_a
    assert params["output"]["kernel"].shape == (64, 10)
    assert size(params) + 90 * (64 + 1) == with_a_and_100_classes
    # Two projections: 16 x 32 + 32 x 64 weights, two parameters a normalised channel.
    assert with_b - with_a == 2560 + 2 * 96
    assert size(shapes(create_model(f"resnet{depth}", 10, shortcut="B"), CIFAR)["params"]) == with_b


def test_another_number_of_channels_changes_the_first_layer_alone():
    three, one = (shapes(create_model("resnet18", 10), (32, 32, channels))["params"] for channels in (3, 1))
    assert size(three) - size(one) == 2 * 7 * 7 * 64
    assert one["conv1"]["kernel"].shape == (7, 7, 1, 64)


# State dicts of torchvision hold this many tensors, num_batches_tracked left out.
@pytest.mark.parametrize(("name", "tensors"), [("resnet18", 102), ("resnet50", 267)])
def test_as_many_tensors_as_torchvision(name, tensors):
    assert len(jax.tree.leaves(shapes(create_model(name, 1000), IMAGENET))) == tensors


def test_names():
    params = shapes(create_model("resnet50", 1000), IMAGENET)["params"]
    blocks = {f"layer{stage}_{index}" for stage, count in enumerate((3, 4, 6, 3), start=1) for index in range(count)}
    assert set(params) == {"conv1", "norm1", "output"} | blocks
    inside = {"conv1", "norm1", "conv2", "norm2", "conv3", "norm3"}
    for block in blocks:
        projection = {"downsample_conv", "downsample_norm"} if block.endswith("_0") else set()
        assert set(params[block]) == inside | projection
    assert set(params["layer1_0"]["conv1"]) == {"kernel"}


def test_projections_only_where_the_shape_changes():
    """ResNet-18's first stage changes nothing; that of ResNet-50 has four times the channels."""
    params = shapes(create_model("resnet18", 1000), IMAGENET)["params"]
    projections = [name for name in sorted(params) if "downsample_conv" in params[name]]
    assert projections == ["layer2_0", "layer3_0", "layer4_0"]
    kernel = shapes(create_model("resnet50", 1000), IMAGENET)["params"]["layer1_0"]["downsample_conv"]["kernel"]
    assert kernel.shape == (1, 1, 64, 256)


@pytest.mark.parametrize(
    ("name", "fields", "image_shape", "expected"),
    [
        (
            "resnet50",
            {},
            IMAGENET,
            {
                "conv1": (112, 112, 64),
                "layer1_0": (56, 56, 256),
                "layer2_3": (28, 28, 512),
                "layer3_5": (14, 14, 1024),
                "layer4_2": (7, 7, 2048),
                "output": (7,),
            },
        ),
        (
            "resnet18",
            {"stem": "cifar"},
            CIFAR,
            {
                "conv1": (32, 32, 64),
                "layer1_1": (32, 32, 64),
                "layer2_1": (16, 16, 128),
                "layer3_1": (8, 8, 256),
                "layer4_1": (4, 4, 512),
            },
        ),
        (
            "resnet20",
            {},
            CIFAR,
            {"conv1": (32, 32, 16), "layer1_2": (32, 32, 16), "layer2_2": (16, 16, 32), "layer3_2": (8, 8, 64)},
        ),
        ("resnet20", {"shortcut": "B"}, (9, 7, 1), {"layer2_0": (5, 4, 32), "layer3_0": (3, 2, 64)}),
        ("resnet20", {"shortcut": "A"}, (9, 7, 1), {"layer2_0": (5, 4, 32), "layer3_0": (3, 2, 64)}),
        ("resnet18", {}, (1, 1, 3), {"conv1": (1, 1, 64), "layer4_1": (1, 1, 512)}),
    ],
)
def test_shapes(name, fields, image_shape, expected):
    seen = outputs(create_model(name, 7, **fields), image_shape)
    assert {layer: seen[layer] for layer in expected} == expected


@pytest.mark.parametrize(("in_1x1", "first", "second"), [(False, (16, 16), (8, 8)), (True, (8, 8), (8, 8))])
def test_where_a_bottleneck_strides(in_1x1, first, second):
    """layer2_0 gets 16x16 of an image of 64x64."""
    model, x = create_model("resnet50", 10, stride_in_1x1=in_1x1), jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.float32)

    def run(variables, x):
        return model.apply(variables, x, capture_intermediates=True)[1]["intermediates"]["layer2_0"]

    seen = jax.eval_shape(run, shapes(model, (64, 64, 3)), x)
    assert seen["conv1"]["__call__"][0].shape[1:3] == first
    assert seen["conv2"]["__call__"][0].shape[1:3] == second


def images(*shape):
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


def numpy_init(key, shape, dtype=jnp.float32):
    """An initialiser that needs no compilation."""
    return jnp.asarray(np.random.default_rng(shape).normal(size=shape), dtype)


def block(features=4, *, train=False, **fields):
    conv = functools.partial(layers.conv, use_bias=False, kernel_init=numpy_init)
    norm = functools.partial(layers.BatchNorm, use_running_average=not train)
    return resnet.ResidualBlock(features, fields.pop("bottleneck", False), conv, norm, **fields)


@pytest.mark.parametrize("height", [6, 7])
def test_shortcut_a_is_every_second_pixel_and_zeros(height):
    x = images(2, height, 5, 3)
    out, variables = block(8, stride=2, shortcut="A", zero_init_residual=True).init_with_output(jax.random.key(0), x)
    expected = np.zeros((2, -(-height // 2), 3, 8), np.float32)
    for i in range(expected.shape[1]):
        for j in range(3):
            expected[:, i, j, :3] = np.maximum(x[:, 2 * i, 2 * j], 0)
    np.testing.assert_array_equal(out, expected)
    assert set(variables["params"]) == {"conv1", "norm1", "conv2", "norm2"}


def test_shortcut_b_is_a_normalised_product_with_every_second_pixel():
    x = images(2, 6, 5, 3)
    out, variables = block(8, stride=2, shortcut="B", zero_init_residual=True).init_with_output(jax.random.key(0), x)
    kernel = variables["params"]["downsample_conv"]["kernel"][0, 0]
    expected = np.maximum(x[:, ::2, ::2] @ np.asarray(kernel) / np.sqrt(1 + 1e-5), 0)
    np.testing.assert_allclose(out, expected, atol=1e-5)


def convolve(x, kernel, stride):
    """3x3 convolution with one zero on every side, in numpy."""
    x = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    windows = np.lib.stride_tricks.sliding_window_view(x, (3, 3), axis=(1, 2))
    return np.einsum("nhwcij,ijco->nhwo", windows, kernel)[:, ::stride, ::stride]


def test_block_is_its_formula():
    x, scale = images(2, 5, 5, 4), np.sqrt(1 + 1e-5)
    out, variables = block(4, shortcut="A").init_with_output(jax.random.key(0), x)
    first, second = (np.asarray(variables["params"][name]["kernel"]) for name in ("conv1", "conv2"))
    residual = convolve(np.maximum(convolve(x, first, 1) / scale, 0), second, 1) / scale
    np.testing.assert_allclose(out, np.maximum(x + residual, 0), atol=1e-4)


@pytest.mark.parametrize("bottleneck", [False, True])
@pytest.mark.parametrize("train", [False, True])
def test_zero_init_makes_a_block_the_identity(bottleneck, train):
    x = np.abs(images(3, 4, 4, 8))
    fields = {"bottleneck": bottleneck, "features": 2 if bottleneck else 8, "train": train}
    out, _ = block(zero_init_residual=True, **fields).init_with_output(jax.random.key(0), x)
    np.testing.assert_array_equal(out, x)
    out, _ = block(zero_init_residual=False, **fields).init_with_output(jax.random.key(0), x)
    assert np.abs(out - x).max() > 0.1


@pytest.mark.parametrize(("name", "last"), [("resnet18", "norm2"), ("resnet50", "norm3"), ("resnet20", "norm2")])
def test_zero_init_is_of_the_last_scale_alone(name, last):
    seen = {}

    def norm(**fields):
        seen.setdefault(fields["name"], set()).add(fields.get("scale_init", "ones"))
        return layers.BatchNorm(**fields)

    shapes(create_model(name, 10, zero_init_residual=True, norm=norm), CIFAR)
    (init,) = seen.pop(last)
    assert init(None, (2,)).tolist() == [0, 0]
    assert set().union(*seen.values()) == {"ones"}
    seen.clear()
    shapes(create_model(name, 10, norm=norm), CIFAR)
    assert set().union(*seen.values()) == {"ones"}


def test_squeeze_excitation_is_its_formula():
    module = resnet.SqueezeExcitation(numpy_init)
    x = images(2, 3, 4, 32)
    out, variables = module.init_with_output(jax.random.key(0), x)
    squeeze, excite = (np.asarray(variables["params"][name]["kernel"]) for name in ("squeeze", "excite"))
    assert squeeze.shape == (32, 2) and excite.shape == (2, 32)
    scale = 1 / (1 + np.exp(-np.maximum(x.mean((1, 2)) @ squeeze, 0) @ excite))
    np.testing.assert_allclose(out, x * scale[:, None, None], atol=1e-5)
    narrow = shapes(resnet.SqueezeExcitation(numpy_init), (3, 4, 8))
    assert narrow["params"]["squeeze"]["kernel"].shape == (8, 1)


def test_stochastic_depth_drops_whole_examples_and_keeps_the_mean():
    count, rate = 4000, 0.3
    x = np.abs(np.tile(images(1, 1, 1, 4), (count, 1, 1, 1)))
    drop = functools.partial(layers.dropout, rate=rate, train=True, whole_examples=True)
    plain = block()
    variables = plain.init(jax.random.key(0), x)
    # Positive residuals, so that the last rectifier changes nothing.
    variables = jax.tree.map(jnp.abs, variables)
    residual = np.asarray(plain.apply(variables, x) - x)
    out = np.asarray(block(drop=drop).apply(variables, x, rngs={"dropout": jax.random.key(1)}))
    kept = np.any(out != x, axis=(1, 2, 3))
    np.testing.assert_allclose(out[kept], (x + residual / (1 - rate))[kept], rtol=1e-5)
    assert abs(kept.mean() - (1 - rate)) < 4 * np.sqrt(rate * (1 - rate) / count)
    np.testing.assert_allclose(out.mean(0), (x + residual)[0], rtol=0.1)


def test_stochastic_depth_grows_linearly(monkeypatch):
    rates, dropout = [], layers.dropout

    def record(x, rate, *, train, **fields):
        if fields:
            assert fields == {"field": "stochastic_depth_rate", "whole_examples": True}
            rates.append(rate)
        return dropout(x, rate, train=train, **fields)

    monkeypatch.setattr(layers, "dropout", record)
    shapes.__wrapped__(create_model("resnet20", 10, stochastic_depth_rate=0.45), CIFAR)
    np.testing.assert_allclose(rates, [0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4, 0.45])


def test_evaluation_changes_and_draws_nothing_and_training_moves_every_statistic():
    """With ResNet-8, the smallest of the family."""
    model = resnet.CifarResNet(5, 8, squeeze_excitation=True, stochastic_depth_rate=0.9, dropout_rate=0.5)
    x = images(4, 8, 8, 2)
    draw = lambda leaf: np.abs(np.random.default_rng(1).normal(scale=0.2, size=leaf.shape)).astype(np.float32)  # noqa: E731
    variables = jax.tree.map(draw, shapes(model, (8, 8, 2)))

    def run(variables, x, key):
        calm = model.clone(stochastic_depth_rate=0.0, dropout_rate=0.0)
        return {
            "evaluated": model.apply(variables, x, mutable=["batch_stats"]),  # without a key for dropout
            "calm": calm.apply(variables, x),
            "trained": calm.apply(variables, x, train=True, mutable=["batch_stats"]),  # likewise: rates of 0
            "random": model.apply(variables, x, train=True, mutable=["batch_stats"], rngs={"dropout": key})[0],
        }

    options = {"xla_backend_optimization_level": 0}  # compilation is most of this test
    out = jax.jit(run, compiler_options=options)(variables, x, jax.random.key(0))
    logits, updated = out["evaluated"]
    assert logits.shape == (4, 5) and logits.dtype == jnp.float32 and np.isfinite(logits).all()
    np.testing.assert_array_equal(logits, out["calm"])
    jax.tree.map(np.testing.assert_array_equal, updated["batch_stats"], variables["batch_stats"])
    moved = jax.tree.map(np.subtract, out["trained"][1]["batch_stats"], variables["batch_stats"])
    for path, change in jax.tree_util.tree_leaves_with_path(moved):
        assert np.any(change != 0), path
    assert np.abs(out["random"] - out["trained"][0]).max() > 1e-3


@pytest.mark.parametrize(
    ("name", "fields", "image_shape", "message"),
    [
        (
            "resnet18",
            {},
            (0, 4, 3),
            "conv1: input 0x4 is too small for kernel 7x7, stride 2, padding 3: floor((0 + 2*3 - 7)/2) + 1 = 0",
        ),
        ("resnet18", {}, (4, 3), "conv1: images have the shape [N, H, W, C], got (1, 4, 3)"),
        (
            "resnet18",
            {"stem": "imagnet"},
            CIFAR,
            "stem='imagnet' is not one of imagenet, cifar (did you mean 'imag",
        ),
        ("resnet34", {"stride_in_1x1": True}, CIFAR, "stride_in_1x1: ResNet-34 has only 3x3 convolutions in its"),
        ("resnet20", {"shortcut": "C"}, CIFAR, "shortcut='C' is not one of A, B"),
        ("resnet20", {"kernel_init": "xaver"}, CIFAR, "kernel_init='xaver' is not one of he, xavier, lecun"),
        ("resnet20", {"dropout_rate": 1.0}, CIFAR, "dropout_rate=1.0 is a fraction of units"),
        ("resnet20", {"stochastic_depth_rate": 1.0}, CIFAR, "stochastic_depth_rate=1.0 is a fraction of examples"),
        ("resnet20", {"stochastic_depth_rate": -0.9}, CIFAR, "stochastic_depth_rate=-0.1 is a fraction of examples"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(name, fields, image_shape, message):
    with pytest.raises(ValueError) as error:
        shapes(create_model(name, 10, **fields), image_shape)
    assert str(error.value).startswith(message) and "\n" not in str(error.value)


@pytest.mark.parametrize(("module", "depth"), [(resnet.ResNet, 20), (resnet.CifarResNet, 18), (resnet.CifarResNet, 2)])
def test_depths_that_do_not_exist(module, depth):
    with pytest.raises(ValueError, match=f"^depth={depth} is not "):
        shapes(module(10, depth), CIFAR)
