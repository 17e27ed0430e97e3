"""DenseNet: counts to the unit, who sees what, rematerialisation that changes nothing but memory."""

import functools
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from cnn_research.models import densenet, layers
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


IMAGENET, CIFAR = (224, 224, 3), (32, 32, 3)


@pytest.mark.parametrize(
    ("name", "features", "expected"),
    [
        ("densenet121", 1024, 7_978_856),
        ("densenet161", 2208, 28_681_000),
        ("densenet169", 1664, 14_149_480),
        ("densenet201", 1920, 20_013_928),
        ("densenet264", 2688, 33_337_704),
    ],
)
def test_parameters_to_the_unit(name, features, expected):
    params = shapes(create_model(name, 1000), IMAGENET)["params"]
    assert size(params) == expected
    assert params["output"]["kernel"].shape == (features, 1000)


@pytest.mark.parametrize(
    ("name", "expected", "with_100_classes"),
    [
        ("densenet_40_12", 1_019_722, 1_060_132),
        ("densenet_100_12", 6_979_642, 7_084_852),
        ("densenet_100_24", 27_249_082, 27_457_972),
        ("densenet_bc_100_12", 769_162, 800_032),
        ("densenet_bc_250_24", 15_324_406, 15_480_556),
        ("densenet_bc_190_40", 25_624_430, 25_821_620),
    ],
)
def test_parameters_of_the_cifar_networks(name, expected, with_100_classes):
    params = shapes(create_model(name, 10), CIFAR)["params"]
    assert size(params) == expected
    features, _ = params["output"]["kernel"].shape
    assert size(params) + 90 * (features + 1) == with_100_classes


def test_names_and_as_many_tensors_as_torchvision():
    variables = shapes(create_model("densenet121", 1000), IMAGENET)
    assert len(jax.tree.leaves(variables)) == 606  # a state dict without num_batches_tracked
    params = variables["params"]
    dense_layers = {
        f"denseblock{block}_layer{layer}"
        for block, count in enumerate((6, 12, 24, 16), start=1)
        for layer in range(1, count + 1)
    }
    transitions = {"transition1", "transition2", "transition3"}
    assert set(params) == {"conv0", "norm0", "norm5", "output"} | transitions | dense_layers
    assert all(set(params[name]) == {"norm1", "conv1", "norm2", "conv2"} for name in dense_layers)
    assert all(set(params[name]) == {"norm", "conv"} for name in transitions)
    assert set(params["conv0"]) == {"kernel"}
    plain = shapes(create_model("densenet_40_12", 10), CIFAR)["params"]
    assert set(plain["denseblock3_layer12"]) == {"norm1", "conv1"} and "norm0" not in plain and "norm4" in plain


def test_every_layer_sees_all_before_it_and_transitions_halve():
    params = shapes(create_model("densenet121", 1000), (29, 29, 1))["params"]  # the smallest image
    start = 64
    for block, count in enumerate((6, 12, 24, 16), start=1):
        for layer in range(1, count + 1):
            kernels = params[f"denseblock{block}_layer{layer}"]
            assert kernels["conv1"]["kernel"].shape == (1, 1, start + 32 * (layer - 1), 128)
            assert kernels["conv2"]["kernel"].shape == (3, 3, 128, 32)
        end = start + 32 * count
        if block < 4:
            assert params[f"transition{block}"]["conv"]["kernel"].shape == (1, 1, end, end // 2)
        start = end // 2
    assert params["norm5"]["scale"].shape == (end,) == (1024,)
    assert params["conv0"]["kernel"].shape == (7, 7, 1, 64)


@pytest.mark.parametrize(
    ("name", "image_shape", "expected"),
    [
        (
            "densenet121",
            IMAGENET,
            {
                "conv0": (112, 112, 64),
                "denseblock1_layer6": (56, 56, 32),
                "transition1": (28, 28, 128),
                "transition2": (14, 14, 256),
                "transition3": (7, 7, 512),
                "denseblock4_layer16": (7, 7, 32),
                "norm5": (7, 7, 1024),
            },
        ),
        (
            "densenet_40_12",
            CIFAR,
            {
                "conv0": (32, 32, 16),
                "denseblock1_layer12": (32, 32, 12),
                "transition1": (16, 16, 160),
                "transition2": (8, 8, 304),
                "norm4": (8, 8, 448),
            },
        ),
    ],
)
def test_shapes(name, image_shape, expected):
    model = create_model(name, 7)

    def run(variables, x):
        return model.apply(variables, x, capture_intermediates=True)[1]

    x = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)
    seen = jax.eval_shape(run, shapes(model, image_shape), x)["intermediates"]
    assert {layer: seen[layer]["__call__"][0].shape[1:] for layer in expected} == expected


def numpy_init(key, shape, dtype=jnp.float32):
    """An initialiser that needs no compilation."""
    return jnp.asarray(np.random.default_rng(shape).normal(size=shape), dtype)


def images(*shape):
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


CONV = functools.partial(layers.conv, use_bias=False, kernel_init=numpy_init)
NORM = functools.partial(layers.BatchNorm, use_running_average=True)


def test_layer_is_its_formula():
    """The earliest features come first; normalise, rectify, convolve, twice."""
    first, second, scale = images(2, 4, 3, 2), images(2, 4, 3, 5), np.sqrt(1 + 1e-5)
    out, variables = densenet.DenseLayer(3, True, CONV, NORM).init_with_output(jax.random.key(0), first, second)
    kernel1, kernel2 = (np.asarray(variables["params"][name]["kernel"]) for name in ("conv1", "conv2"))
    x = np.maximum(np.concatenate([first, second], axis=-1) / scale, 0) @ kernel1[0, 0]
    x = np.pad(np.maximum(x / scale, 0), ((0, 0), (1, 1), (1, 1), (0, 0)))
    windows = np.lib.stride_tricks.sliding_window_view(x, (3, 3), axis=(1, 2))
    np.testing.assert_allclose(out, np.einsum("nhwcij,ijco->nhwo", windows, kernel2), rtol=1e-3, atol=1e-3)


def test_transition_is_its_formula():
    first, second = images(2, 4, 5, 2), images(2, 4, 5, 5)
    module = densenet.Transition(0.5, CONV, NORM, name="transition1")
    out, variables = module.init_with_output(jax.random.key(0), first, second)
    kernel = np.asarray(variables["params"]["conv"]["kernel"])[0, 0]
    assert kernel.shape == (7, 3)  # floor(7 / 2)
    x = np.maximum(np.concatenate([first, second], axis=-1) / np.sqrt(1 + 1e-5), 0) @ kernel
    expected = x[:, :, :4].reshape(2, 2, 2, 2, 2, 3).mean((2, 4))  # the fifth column is left over
    np.testing.assert_allclose(out, expected, rtol=1e-4, atol=1e-5)


def test_dropout_follows_every_convolution_but_the_first(monkeypatch):
    rates = []

    def record(x, rate, *, train):
        rates.append((x.shape[-1], rate, train))
        return x

    monkeypatch.setattr(layers, "dropout", record)
    # Blocks of one layer, 4k = 8 and k = 2 channels; transitions from 4 + 2 to 3 and from 3 + 2 to 2.
    model = densenet.CifarDenseNet(10, 10, 2, dropout_rate=0.2)
    shapes.__wrapped__(model, (8, 8, 3))
    assert rates == [(channels, 0.2, False) for channels in (8, 2, 3, 8, 2, 2, 8, 2)]


def test_remat_changes_no_name_and_no_value_but_keeps_less():
    plain = densenet.CifarDenseNet(5, 10, 4, dropout_rate=0.2)
    remat = plain.clone(remat=True)
    x = images(4, 8, 8, 2)
    draw = lambda leaf: np.abs(np.random.default_rng(1).normal(scale=0.2, size=leaf.shape)).astype(np.float32)  # noqa: E731
    variables = jax.tree.map(draw, shapes(plain, (8, 8, 2)))
    assert jax.tree.map(jnp.shape, variables) == jax.tree.map(jnp.shape, shapes(remat, (8, 8, 2)))

    def loss(model, params):
        rngs = {"dropout": jax.random.key(0)}
        logits, updated = model.apply(
            {**variables, "params": params}, x, train=True, mutable=["batch_stats"], rngs=rngs
        )
        return (logits[:, 0] - logits[:, 1]).sum(), (logits, updated["batch_stats"])

    def run(params, variables):
        eval_logits, updated = plain.apply(variables, x, mutable=["batch_stats"])
        steps = [jax.grad(functools.partial(loss, model), has_aux=True)(params) for model in (plain, remat)]
        return steps, (eval_logits, updated["batch_stats"])

    options = {"xla_backend_optimization_level": 0}  # compilation is most of this test
    compiled = jax.jit(run, compiler_options=options)
    (expected, actual), (eval_logits, eval_stats) = compiled(variables["params"], variables)
    for path, leaf in jax.tree_util.tree_leaves_with_path(expected):
        assert np.isfinite(leaf).all() and np.any(leaf != 0), path
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5), actual, expected)

    # Evaluation leaves the statistics alone; training moves each.
    jax.tree.map(np.testing.assert_array_equal, eval_stats, variables["batch_stats"])
    moved = jax.tree.map(np.subtract, expected[1][1], variables["batch_stats"])
    for path, change in jax.tree_util.tree_leaves_with_path(moved):
        assert np.any(change != 0), path
    assert eval_logits.shape == (4, 5) and eval_logits.dtype == jnp.float32 and np.isfinite(eval_logits).all()


def test_remat_keeps_little_more_than_the_results_of_convolutions():
    """What the forward pass hands to the backward pass of three blocks of three layers, k = 4, in numbers."""

    def kept(model):
        def forward(params, rest):
            run = lambda params: model.apply({"params": params, **rest}, x, train=True, mutable=["batch_stats"])[0]  # noqa: E731
            return jax.vjp(run, params)[1]

        variables = shapes(model, (32, 32, 3))
        x = jnp.zeros((2, 32, 32, 3))
        return size(jax.eval_shape(forward, variables["params"], {"batch_stats": variables["batch_stats"]}))

    plain = densenet.CifarDenseNet(10, 22, 4)
    convolutions = 2 * 32 * 32 * (8 + 3 * 20 + 10)  # the first, three layers of 4k and k, the transition to 10
    convolutions += 2 * 16 * 16 * (3 * 20 + 11) + 2 * 8 * 8 * (3 * 20)
    assert kept(plain) > 5 * convolutions
    assert convolutions < kept(plain.clone(remat=True)) < 1.1 * convolutions


@pytest.mark.parametrize(
    ("name", "fields", "image_shape", "message"),
    [
        (
            "densenet121",
            {},
            (28, 28, 3),
            "transition3_pool: input 1x1 is too small for kernel 2x2, stride 2, padding 0: "
            "floor((1 + 2*0 - 2)/2) + 1 = 0",
        ),
        ("densenet_40_12", {}, (3, 4, 3), "transition2_pool: input 1x2 is too small for kernel 2x2"),
        ("densenet_40_12", {"remat": True}, (3, 4, 3), "transition2_pool: input 1x2 is too small for kernel 2x2"),
        ("densenet121", {}, (32, 3), "conv0: images have the shape [N, H, W, C], got (1, 32, 3)"),
        ("densenet121", {"kernel_init": "hee"}, CIFAR, "kernel_init='hee' is not one of he, xavier, lecun"),
        ("densenet121", {"dropout_rate": -0.1}, CIFAR, "dropout_rate=-0.1 is a fraction of units"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(name, fields, image_shape, message):
    with pytest.raises(ValueError) as error:
        shapes(create_model(name, 10, **fields), image_shape)
    assert str(error.value).startswith(message) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("module", "fields"),
    [
        (densenet.DenseNet, {"depth": 100}),
        (densenet.CifarDenseNet, {"depth": 121}),
        (densenet.CifarDenseNet, {"depth": 4}),
        (densenet.CifarDenseNet, {"depth": 41, **densenet.PLAIN}),
    ],
)
def test_depths_that_do_not_exist(module, fields):
    with pytest.raises(ValueError, match=f"^depth={fields['depth']} is not "):
        shapes(module(10, growth_rate=4, **fields), CIFAR)
