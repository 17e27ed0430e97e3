"""What every network owes its callers, for each name in the registry; and the registry's own answers."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from cnn_research.models import initializers, layers, registry
from cnn_research.models.convnet import ConvNet

pytestmark = pytest.mark.usefixtures("few_units", "few_blocks")

IMAGE_SHAPE = (28, 28, 1)

# What is compiled and run, at what size: the cheapest network of each class, and more where a field changes its course.
# The others are the same code with other numbers; of those, here and in their own tests, only shapes are computed.
RUN = {
    "convnet": IMAGE_SHAPE,
    "lenet5": IMAGE_SHAPE,
    "lenet5_paper": IMAGE_SHAPE,
    "alexnet": (67, 67, 3),
    "alexnet_owt": (63, 63, 3),
    "zfnet": (47, 47, 3),
    "vgg11": (32, 32, 3),
    "vgg11_bn_cifar": (32, 32, 3),
    "googlenet": (31, 31, 3),
    "googlenet_bn": (15, 15, 3),
    "resnet18": (17, 17, 3),
    "resnet50": (17, 17, 3),  # bottlenecks
    "resnet20": (8, 8, 3),
    "densenet121": (29, 29, 3),
    "densenet_40_12": (8, 8, 3),
    "speednet": (9, 9, 3),
}

# In evaluation no gradient reaches the auxiliary heads; their own tests train them.
FIELDS = {"googlenet": {"auxiliary_heads": False}, "googlenet_bn": {"auxiliary_heads": False}}


def marked(names):
    """The large ones belong to `make test-zoo`."""
    return [name if RUN.get(name) == IMAGE_SHAPE else pytest.param(name, marks=pytest.mark.zoo) for name in names]


def test_every_class_is_run():
    assert {registry.MODELS[name][0] for name in RUN} == {module for module, _ in registry.MODELS.values()}


@functools.cache
def case(name):
    """The network with 7 classes, its initial variables and a batch of two images."""
    model = registry.create_model(name, 7, **FIELDS.get(name, {}))
    variables = registry.init_variables(model, jax.random.key(0), RUN[name])
    x = np.random.default_rng(0).normal(size=(2, *RUN[name])).astype(np.float32)
    return model, variables, x


@pytest.mark.parametrize("name", marked(registry.list_models()))
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_any_classes_and_channels(name, dtype):
    """Shapes alone, but for every name."""
    size = 32 if name.startswith("lenet") else 224
    x = jax.ShapeDtypeStruct((2, size, size, 5), jnp.float32)
    model = registry.create_model(name, 3, dtype=dtype)

    def run(x, train):
        rngs = {"params": jax.random.key(0), "dropout": jax.random.key(1)}
        return model.init_with_output(rngs, x, train=train)

    for train in (False, True):
        logits, variables = jax.eval_shape(functools.partial(run, train=train), x)
        assert logits.shape == (2, 3)
        assert {leaf.dtype for leaf in jax.tree.leaves((logits, variables))} == {jnp.dtype("float32")}


@pytest.mark.parametrize("name", marked(RUN))
def test_logits_gradients_and_types(name):
    model, variables, x = case(name)

    def difference(params):
        logits = model.apply({**variables, "params": params}, x)
        return logits[:, 0].sum() - logits[:, 1].sum(), logits

    options = {"xla_backend_optimization_level": 0}  # compilation is most of this test
    run = jax.jit(jax.value_and_grad(difference, has_aux=True), compiler_options=options)
    (_, logits), grads = run(variables["params"])
    assert logits.shape == (2, 7) and logits.dtype == jnp.float32 and np.isfinite(logits).all()
    for path, grad in jax.tree_util.tree_leaves_with_path(grads):
        assert np.isfinite(grad).all() and np.any(grad != 0), path
    np.testing.assert_array_equal(run(variables["params"])[0][1], logits)


@pytest.mark.parametrize("name", marked(RUN))
def test_bfloat16_computes_nearly_the_same_and_keeps_float32_outside(name):
    model, variables, x = case(name)
    half = registry.create_model(name, 7, dtype="bfloat16", **FIELDS.get(name, {}))
    assert half == registry.create_model(name, 7, dtype=jnp.bfloat16, **FIELDS.get(name, {})) != model
    shapes = jax.eval_shape(half.init, jax.random.key(0), x)
    assert {leaf.dtype for leaf in jax.tree.leaves(shapes)} == {jnp.dtype("float32")}

    def run(model):
        logits, seen = jax.jit(functools.partial(model.apply, capture_intermediates=True))(variables, x)
        return logits, {
            layer: values["__call__"][0] for layer, values in seen["intermediates"].items() if "__call__" in values
        }

    (logits, _), (half_logits, half_seen) = run(model), run(half)
    assert half_logits.dtype == jnp.float32
    # Every layer but the output really is in bfloat16.
    kinds = {layer: value.dtype for layer, value in half_seen.items() if layer != "output"}
    assert set(kinds.values()) == {jnp.dtype("bfloat16")}, kinds
    assert np.any(half_logits != logits)
    np.testing.assert_allclose(half_logits, logits, rtol=0.05, atol=0.05 * float(np.abs(logits).max()))


@pytest.mark.parametrize("name", registry.list_models())
def test_no_field_hides_a_method_of_flax(name):
    """A field called `init` would replace the method, and nothing could be initialised."""
    module, _ = registry.MODELS[name]
    own = {field.name for field in dataclasses.fields(module)} - {"parent", "name"}
    assert not own & set(dir(nn.Module))


@pytest.mark.parametrize("name", marked(RUN))
def test_init_variables_are_those_of_init(name):
    model, variables, _ = case(name)
    expect_initial(model, variables, RUN[name])


class OwnInitializers(nn.Module):
    """Initial values of every kind: of Flax's own, drawn in a method, and within transformations that hide the key."""

    @nn.compact
    def __call__(self, x, train=False):
        x = nn.Conv(3, (3, 3), kernel_init=nn.initializers.orthogonal(), bias_init=nn.initializers.normal(0.5))(x)
        x = x * self.param("scale", layers.INITIALIZERS["xavier"], (2, 3))[0]
        x = nn.PReLU()(x) + self.param("number", nn.initializers.constant(0.1), ())
        self.variable("counters", "steps", lambda: jnp.int32(7))
        x = nn.remat(nn.Conv)(4, (3, 3), kernel_init=layers.INITIALIZERS["he"], name="again")(x)
        return nn.Dense(2, kernel_init=layers.INITIALIZERS["lecun"], param_dtype=jnp.float16)(x.mean((1, 2)))


def test_init_variables_of_a_network_with_initializers_of_its_own():
    model = OwnInitializers()
    expect_initial(model, registry.init_variables(model, jax.random.key(0), IMAGE_SHAPE), IMAGE_SHAPE)


def expect_initial(model, variables, image_shape):
    expected = jax.jit(lambda key: model.init(key, jnp.zeros((1, *image_shape))))(jax.random.key(0))
    assert jax.tree.structure(variables) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(variables), jax.tree.leaves(expected), strict=True):
        assert a.dtype == b.dtype
        # The numbers are the same; XLA may round the programs that make them differently, as with jax 0.7 on a CPU.
        np.testing.assert_allclose(a, b, rtol=2e-6, atol=1e-7)


def test_nothing_of_a_network_is_compiled_to_initialise_it(monkeypatch):
    monkeypatch.setattr(initializers, "_compiled", None)
    registry.init_variables(registry.create_model("resnet50", 2), jax.random.key(0), (17, 17, 3))


@pytest.mark.parametrize(
    ("own", "flax"),
    [
        (layers.INITIALIZERS["he"], nn.initializers.he_normal()),
        (layers.INITIALIZERS["xavier"], nn.initializers.glorot_uniform()),
        (layers.INITIALIZERS["lecun"], nn.initializers.lecun_normal()),
        (initializers.normal(0.01), nn.initializers.normal(0.01)),
    ],
)
def test_distributions_are_those_of_flax(own, flax):
    for shape in ((3, 5, 7, 11), (400, 120), (1, 1, 64, 3)):
        key = jax.random.key(sum(shape))
        np.testing.assert_allclose(own(key, shape), flax(key, shape), rtol=3e-7)  # XLA may join two factors


def test_init_variables_says_which_layer_an_image_is_too_small_for():
    with pytest.raises(ValueError, match=r"^C3: input 3x3 is too small"):
        registry.init_variables(registry.create_model("lenet5", 10), jax.random.key(0), (10, 10, 1))


def test_statistics_are_averaged_over_the_axis():
    """Two devices with half a batch each have the statistics, and the logits, of one device with all of it."""
    fields = {"filters": (3,), "dense": (), "batch_norm": "after_conv"}
    x = np.random.default_rng(0).normal(size=(2, 4, 6, 6, 1)).astype(np.float32)
    x[1] += 3.0
    whole = registry.create_model("convnet", 2, **fields)
    shared = registry.create_model("convnet", 2, axis_name="device", **fields)
    variables = registry.init_variables(shared, jax.random.key(0), (6, 6, 1))  # needs no axis

    def run(model):
        return lambda x: model.apply(variables, x, train=True, mutable=["batch_stats"])

    logits, updated = jax.jit(jax.vmap(run(shared), axis_name="device"))(x)
    expected_logits, expected = jax.jit(run(whole))(x.reshape(8, 6, 6, 1))
    alone = jax.jit(run(whole))(x[0])[1]
    np.testing.assert_allclose(logits.reshape(8, 2), expected_logits, atol=1e-4)
    for key in ("mean", "var"):
        stats = updated["batch_stats"]["norm1"][key]
        for device in (0, 1):
            np.testing.assert_allclose(stats[device], expected["batch_stats"]["norm1"][key], rtol=1e-4, atol=1e-5)
        assert np.abs(stats[0] - alone["batch_stats"]["norm1"][key]).max() > 1e-2


def test_modules_can_be_injected():
    calls = []

    def conv(**kwargs):
        calls.append(kwargs["name"])
        return nn.Conv(**kwargs)

    norm = functools.partial(nn.BatchNorm, momentum=0.5)
    model = registry.create_model(
        "convnet", 2, conv=conv, norm=norm, axis_name="device", filters=(3,), batch_norm="after_pool"
    )
    jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 4, 4, 1)))
    assert calls == ["conv1"]
    assert model.norm.keywords == {"momentum": 0.5, "axis_name": "device"}
    assert registry.create_model("convnet", 2).norm is layers.BatchNorm
    assert registry.create_model("lenet5", 2, axis_name="device").num_classes == 2  # no normalisation: nothing to bind


@pytest.fixture
def variants(monkeypatch):
    table = {"convnet": (ConvNet, {}), "convnet_s": (ConvNet, {"filters": (4,)}), "lenet5": registry.MODELS["lenet5"]}
    monkeypatch.setattr(registry, "MODELS", table)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({}, ["convnet", "convnet_s", "lenet5"]),
        ({"pattern": "conv*"}, ["convnet", "convnet_s"]),
        ({"pattern": "*net*", "exclude": "lenet*"}, ["convnet", "convnet_s"]),
        ({"exclude": ("*_s", "lenet5")}, ["convnet"]),
        ({"pattern": "resnet*"}, []),
    ],
)
def test_list_models(variants, arguments, expected):
    assert registry.list_models(**arguments) == expected


def test_the_first_networks_are_there():
    assert {"convnet", "lenet5", "lenet5_paper"} <= set(registry.list_models())


def test_fields_that_a_name_stands_for_are_set_and_closed(variants):
    assert registry.create_model("convnet_s", 3, dense=(5,)).filters == (4,)
    assert "filters" in registry.model_fields("convnet")
    assert "filters" not in registry.model_fields("convnet_s")
    with pytest.raises(
        ValueError, match=r"^convnet_s: filters is \(4,\) by the model's name and can't be set; fields:"
    ):
        registry.create_model("convnet_s", 3, filters=(8,))


def test_model_fields():
    assert registry.model_fields("lenet5") == {
        "activation": "relu",
        "pool": "max",
        "dropout_rate": 0.0,
        "kernel_init": "lecun",
    }
    assert registry.model_fields("lenet5_paper") == {}
    fields = registry.model_fields("convnet")
    assert fields["filters"] == (32, 64) and fields["batch_norm"] == "none"
    assert not {"num_classes", "dtype", "conv", "norm", "parent", "name"} & set(fields)
    assert registry.create_model("convnet", 3, **fields) == registry.create_model("convnet", 3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("lenet", 10), "no model is named 'lenet' (did you mean 'lenet5'"),
        (("lenet", 10), "models: convnet, convnet_s, lenet5"),
        (("zzz", 10), "no model is named 'zzz'; models: convnet, convnet_s, lenet5"),
        (("lenet5", 0), "lenet5: num_classes must be at least 1, got 0"),
    ],
)
def test_unknown_models(variants, arguments, message):
    with pytest.raises(ValueError) as error:
        registry.create_model(*arguments)
    assert message in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "fields", "message"),
    [
        (
            "lenet5",
            {"dropout": 0.5},
            "lenet5 has no field 'dropout' (did you mean 'dropout_rate'?); "
            "fields: activation, pool, dropout_rate, kernel_init",
        ),
        ("lenet5_paper", {"activation": "relu"}, "lenet5_paper has no field 'activation'; fields: none"),
        ("lenet5", {"parent": None}, "lenet5 has no field 'parent'"),
        ("lenet5_paper", {"conv": nn.Conv}, "lenet5_paper has no field 'conv'"),
        ("lenet5", {"dtype": "int8"}, "lenet5: dtype must be float32, bfloat16 or float16, got int8"),
        ("lenet5", {"dtype": np.float64}, "lenet5: dtype must be float32, bfloat16 or float16, got float64"),
    ],
)
def test_unknown_fields(name, fields, message):
    with pytest.raises(ValueError) as error:
        registry.create_model(name, 10, **fields)
    assert str(error.value).startswith(message) and "\n" not in str(error.value)
