"""GoogLeNet: counts and shapes of every module, the heads, what tells the paper's form from torchvision's."""

import functools
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from cnn_research.models import googlenet, layers
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


IMAGENET = (224, 224, 3)
HEADS = ("googlenet", "googlenet_bn")


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        (create_model("googlenet", 1000), 13_378_280),
        (create_model("googlenet", 1000, auxiliary_heads=False), 6_998_552),
        (create_model("googlenet_bn", 1000), 13_004_888),
        (create_model("googlenet_bn", 1000, auxiliary_heads=False), 6_624_904),
        (googlenet.GoogLeNetBN(1000, large_kernel_size=5), 13_385_816),
        (googlenet.GoogLeNetBN(1000, large_kernel_size=5, auxiliary_heads=False), 7_005_832),
    ],
)
def test_parameters_to_the_unit(model, expected):
    assert size(shapes(model, IMAGENET)["params"]) == expected


def test_parameters_of_each_layer():
    params = shapes(create_model("googlenet", 1000), IMAGENET)["params"]
    assert {layer: size(leaves) for layer, leaves in params.items()} == {
        "conv1": 7 * 7 * 3 * 64 + 64,
        "conv2": 64 * 64 + 64,
        "conv3": 9 * 64 * 192 + 192,
        "inception3a": 163_696,
        "inception3b": 388_736,
        "inception4a": 376_176,
        "inception4b": 449_160,
        "inception4c": 510_104,
        "inception4d": 605_376,
        "inception4e": 868_352,
        "inception5a": 1_043_456,
        "inception5b": 1_444_080,
        "aux1": 512 * 128 + 128 + 2048 * 1024 + 1024 + 1024 * 1000 + 1000,
        "aux2": 528 * 128 + 128 + 2048 * 1024 + 1024 + 1024 * 1000 + 1000,
        "output": 1024 * 1000 + 1000,
    }


@pytest.mark.parametrize(("name", "side"), [("googlenet", 5), ("googlenet_bn", 3)])
def test_branches(name, side):
    params = shapes(create_model(name, 1000), IMAGENET)["params"]
    kernels = {layer: leaves["kernel"].shape for layer, leaves in params["inception4a"].items() if "kernel" in leaves}
    assert kernels == {
        "branch1": (1, 1, 480, 192),
        "branch2_0": (1, 1, 480, 96),
        "branch2_1": (3, 3, 96, 208),
        "branch3_0": (1, 1, 480, 16),
        "branch3_1": (side, side, 16, 48),
        "branch4_1": (1, 1, 480, 64),
    }
    biased = {layer for layer, leaves in params["inception4a"].items() if "kernel" in leaves and "bias" in leaves}
    normalised = {layer.removesuffix("_norm") for layer in params["inception4a"] if layer.endswith("_norm")}
    assert (biased, normalised) == ((set(kernels), set()) if side == 5 else (set(), set(kernels)))


def run_in_training(model, image_shape, mutable):
    """Shapes of (logits, updated) of a training step's forward pass."""
    variables = shapes(model, image_shape)

    def run(variables, x):
        return model.apply(variables, x, train=True, mutable=mutable, rngs={"dropout": jax.random.key(0)})

    return jax.eval_shape(run, variables, jax.ShapeDtypeStruct((2, *image_shape), jnp.float32))


@pytest.mark.parametrize("name", HEADS)
def test_shapes(name, monkeypatch):
    pools, pool = {}, layers.pool

    def record(x, *args, **fields):
        out = pool(x, *args, **fields)
        pools[fields["name"]] = out.shape[1:]
        return out

    monkeypatch.setattr(layers, "pool", record)
    model = create_model(name, 7)

    def run(variables, x):
        rngs = {"dropout": jax.random.key(0)}
        return model.apply(
            variables, x, train=True, capture_intermediates=True, mutable=["batch_stats", "intermediates"], rngs=rngs
        )[1]

    x = jax.ShapeDtypeStruct((2, *IMAGENET), jnp.float32)
    seen = jax.eval_shape(run, shapes(model, IMAGENET), x)["intermediates"]
    expected = {
        "conv1": (112, 112, 64),
        "conv2": (56, 56, 64),
        "conv3": (56, 56, 192),
        "inception3a": (28, 28, 256),
        "inception3b": (28, 28, 480),
        "inception4a": (14, 14, 512),
        "inception4b": (14, 14, 512),
        "inception4c": (14, 14, 512),
        "inception4d": (14, 14, 528),
        "inception4e": (14, 14, 832),
        "inception5a": (7, 7, 832),
        "inception5b": (7, 7, 1024),
        "aux1": (7,),
        "aux2": (7,),
        "output": (7,),
    }
    assert {layer: seen[layer]["__call__"][0].shape[1:] for layer in expected} == expected
    assert all(seen[head]["conv"]["__call__"][0].shape[1:] == (4, 4, 128) for head in ("aux1", "aux2"))
    assert {layer: pools[layer] for layer in ("pool1", "pool2", "pool3", "pool4")} == {
        "pool1": (56, 56, 64),
        "pool2": (28, 28, 192),
        "pool3": (14, 14, 480),
        "pool4": (7, 7, 832),
    }


@pytest.mark.parametrize("name", HEADS)
def test_heads_are_sown_in_training_only(name):
    model = create_model(name, 7)
    variables = shapes(model, (96, 96, 1))
    assert "auxiliary" not in variables and {"aux1", "aux2"} <= set(variables["params"])
    logits, updated = run_in_training(model, (96, 96, 1), ["batch_stats", "auxiliary"])
    assert logits.shape == (2, 7) and set(updated["auxiliary"]) == {"aux1_logits", "aux2_logits"}
    for (head,) in updated["auxiliary"].values():
        assert head.shape == (2, 7) and head.dtype == jnp.float32
    assert "auxiliary" not in run_in_training(model, (96, 96, 1), ["batch_stats"])[1]

    def evaluate(variables, x):
        return model.apply(variables, x, mutable=["auxiliary"])

    # Another image size is no trouble, because the heads don't run.
    logits, updated = jax.eval_shape(evaluate, variables, jax.ShapeDtypeStruct((2, 64, 64, 1), jnp.float32))
    assert logits.shape == (2, 7) and not updated

    without = create_model(name, 7, auxiliary_heads=False)
    assert not {"aux1", "aux2"} & set(shapes(without, (96, 96, 1))["params"])


def test_initialised_in_training_mode_the_variables_are_the_same():
    model, x = create_model("googlenet_bn", 7), jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)
    rngs = {"params": jax.random.key(0), "dropout": jax.random.key(1)}
    assert jax.eval_shape(functools.partial(model.init, train=True), rngs, x) == shapes(model, (32, 32, 3))


def test_a_head_trains_what_lies_before_it(monkeypatch):
    """With few modules of few channels; and evaluation leaves the batch statistics alone."""
    monkeypatch.setattr(googlenet, "MODULES", {"4a": (1, 2, 3, 4, 5, 6), "5b": (2,) * 6})
    model = create_model("googlenet_bn", 5)
    x = np.random.default_rng(0).normal(size=(4, 15, 15, 2)).astype(np.float32)
    draw = lambda leaf: np.abs(np.random.default_rng(1).normal(scale=0.2, size=leaf.shape)).astype(np.float32)  # noqa: E731
    variables = jax.tree.map(draw, shapes.__wrapped__(model, (15, 15, 2)))

    def loss(params):
        rngs, mutable = {"dropout": jax.random.key(0)}, ["batch_stats", "auxiliary"]
        _, updated = model.apply({**variables, "params": params}, x, train=True, mutable=mutable, rngs=rngs)
        (head,) = updated["auxiliary"]["aux1_logits"]
        return (head[:, 0] - head[:, 1]).sum(), updated["batch_stats"]

    def run(params):
        evaluated = model.apply({**variables, "params": params}, x, mutable=["batch_stats", "auxiliary"])
        return jax.grad(loss, has_aux=True)(params), evaluated

    options = {"xla_backend_optimization_level": 0}  # compilation is most of this test
    (grads, stats), (logits, updated) = jax.jit(run, compiler_options=options)(variables["params"])
    reached = {layer: [np.any(grad != 0) for grad in jax.tree.leaves(leaves)] for layer, leaves in grads.items()}
    after = {"inception5b", "output"}
    assert all(all(leaves) for layer, leaves in reached.items() if layer not in after)
    assert not any(any(reached[layer]) for layer in after)

    jax.tree.map(np.testing.assert_array_equal, updated["batch_stats"], variables["batch_stats"])
    for path, change in jax.tree_util.tree_leaves_with_path(jax.tree.map(np.subtract, stats, variables["batch_stats"])):
        assert np.any(change != 0), path
    assert "auxiliary" not in updated
    assert logits.shape == (4, 5) and logits.dtype == jnp.float32 and np.isfinite(logits).all()


@pytest.mark.parametrize(("name", "rates"), [("googlenet", (0.7, 0.7, 0.4)), ("googlenet_bn", (0.7, 0.7, 0.2))])
def test_dropout(name, rates, monkeypatch):
    seen, dropout = [], layers.dropout

    def record(x, rate, *, train):
        seen.append((x.shape[-1], rate, train))
        return dropout(x, rate, train=train)

    monkeypatch.setattr(layers, "dropout", record)
    run_in_training(create_model(name, 7), (96, 96, 1), ["batch_stats"])
    # Those of the initialisation, if it wasn't done before, come first.
    assert seen[-3:] == [(1024, rate, True) for rate in rates]


def test_where_the_paper_normalises_responses(monkeypatch):
    seen, normalise = [], layers.local_response_norm

    def record(x, *, name):
        seen.append((name, x.shape[1:]))
        return normalise(x, name=name)

    monkeypatch.setattr(layers, "local_response_norm", record)
    shapes.__wrapped__(create_model("googlenet", 7), IMAGENET)
    assert seen == [("lrn1", (56, 56, 64)), ("lrn2", (56, 56, 192))]
    shapes.__wrapped__(create_model("googlenet_bn", 7), IMAGENET)
    assert len(seen) == 2


def test_branches_stand_in_the_order_of_the_table():
    """Kernels of 0 leave each channel its bias, so the output shows whose it is."""
    module = googlenet.Inception((1, 2, 3, 4, 5, 6), layers.conv)
    params = jax.tree.map(lambda leaf: np.zeros(leaf.shape, np.float32), shapes(module, (3, 4, 2))["params"])
    for number, branch in enumerate(("branch1", "branch2_1", "branch3_1", "branch4_1"), start=1):
        params[branch]["bias"] += number
    out = module.apply({"params": params}, np.ones((1, 3, 4, 2), np.float32))
    assert out.shape == (1, 3, 4, 15)
    assert out[0, 1, 2].tolist() == [1] + [2] * 3 + [3] * 5 + [4] * 6


def test_torchvision_normalises_every_convolution_with_its_own_epsilon():
    model = create_model("googlenet_bn", 7, axis_name="device")
    assert model.norm.keywords == {"momentum": 0.9, "epsilon": 1e-3, "axis_name": "device"}
    variables = shapes(create_model("googlenet_bn", 7), (32, 32, 3))
    assert len(jax.tree.leaves(variables["batch_stats"])) == 2 * (3 + 9 * 6 + 2)


@pytest.mark.parametrize(
    ("name", "fields", "size", "message"),
    [
        (
            "googlenet",
            {"auxiliary_heads": False},
            30,
            "pool4: input 1x1 is too small for kernel 3x3, stride 2, padding 0: ceil((1 + 2*0 - 3)/2) + 1 = 0",
        ),
        (
            "googlenet",
            {},
            78,
            "aux1_pool: input 4x4 is too small for kernel 5x5, stride 3, padding 0: floor((4 + 2*0 - 5)/3) + 1 = 0; "
            "auxiliary_heads=False leaves the head out",
        ),
        (
            "googlenet_bn",
            {},
            14,
            "pool3: input 1x1 is too small for kernel 3x3, stride 2, padding 0: ceil((1 + 2*0 - 3)/2) + 1 = 0",
        ),
        ("googlenet", {"kernel_init": "hee"}, 96, "kernel_init='hee' is not one of he, xavier, lecun"),
        ("googlenet", {"dropout_rate": 1.5}, 96, "dropout_rate=1.5 is a fraction of units: at least 0 and below 1"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(name, fields, size, message):
    with pytest.raises(ValueError) as error:
        shapes(create_model(name, 10, **fields), (size, size, 3))
    assert str(error.value).startswith(message) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "fields", "size"),
    [("googlenet", {"auxiliary_heads": False}, 31), ("googlenet", {}, 79), ("googlenet_bn", {}, 15)],
)
def test_the_smallest_images(name, fields, size):
    shapes(create_model(name, 10, **fields), (size, size, 3))
