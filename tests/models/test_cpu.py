"""The forms that are faster on a CPU compute what XLA's and Flax's own do, in value and gradient."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from jax import lax

from cnn_research.models import cpu, cpu_forms, registry

NONE, ONE = ((0, 0), (0, 0)), ((1, 1), (1, 1))


def normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def expect_same(ours, theirs, *arrays, tolerance=2e-6):
    """Values and all gradients, with a random cotangent, each against its own largest number."""
    found, expected = [], []
    for function, results in ((ours, found), (theirs, expected)):
        values, pull_back = jax.vjp(function, *arrays)
        cotangents = jax.tree.map(lambda y: jnp.asarray(normal(*y.shape, seed=1)), values)
        results += jax.tree.leaves((values, pull_back(cotangents)))
    for a, b in zip(found, expected, strict=True):
        assert a.shape == b.shape
        np.testing.assert_allclose(a, b, atol=tolerance * float(jnp.abs(b).max(initial=1e-30)), rtol=0)


# -- each form alone


KERNELS, STRIDES = ((1, 1), (3, 3), (2, 5), (7, 7)), ((1, 1), (2, 2), (3, 1))
PADDINGS = (NONE, ONE, ((0, 1), (2, 0)), ((3, 3), (3, 3)))


@pytest.mark.parametrize("stride", STRIDES)
@pytest.mark.parametrize("kernel", KERNELS)
def test_convolution(kernel, stride):
    for padding in PADDINGS:
        if all(max(padding[axis]) < kernel[axis] for axis in range(2)):
            expect_same(
                functools.partial(_conv, cpu_forms.conv, stride, padding),
                functools.partial(_conv, _lax_conv, stride, padding),
                normal(2, 8, 11, 3),
                normal(*kernel, 3, 4),
            )


@pytest.mark.parametrize("stride", STRIDES)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_convolution_whose_gradient_is_large(stride, dtype, monkeypatch):
    """The kernel's gradient is a sum over five images, here some at a time, rounded once."""
    x, kernel = normal(5, 8, 11, 3).astype(dtype), normal(3, 3, 3, 4).astype(dtype)
    g = normal(*_lax_conv(x, kernel, stride, ONE).shape, seed=1).astype(dtype)

    def gradient(function, x, kernel, g):
        return jax.vjp(functools.partial(_conv, function, stride, ONE), x, kernel)[1](g)[1]

    def convolutions():
        text = str(jax.make_jaxpr(lambda *arrays: gradient(cpu_forms.conv, *arrays))(x, kernel, g))
        return text.count("conv_general_dilated[")

    at_once = convolutions()
    monkeypatch.setattr(cpu_forms, "_LARGEST", g.size // 2)
    assert convolutions() == at_once + 1
    found = gradient(cpu_forms.conv, x, kernel, g)
    expected = gradient(_lax_conv, *(array.astype(np.float32) for array in (x, kernel, g)))
    assert found.dtype == dtype
    rounding = 2e-6 if dtype == "float32" else 2**-8
    np.testing.assert_allclose(found.astype(np.float32), expected, rtol=rounding, atol=2e-6 * np.abs(expected).max())


@pytest.mark.parametrize("stride", [(1, 1), (2, 2)])
@pytest.mark.parametrize("size", [(1, 1), (2, 2), (1, 2), (4, 3)])
def test_convolution_with_few_positions(size, stride):
    # Not 2x5 among them: XLA's own gradient ends the process with it.
    for kernel in ((2, 2), (3, 3), (7, 7)):
        for padding in (NONE, ONE, ((3, 2), (3, 3))):
            if all(size[axis] + sum(padding[axis]) >= kernel[axis] for axis in range(2)):
                expect_same(
                    functools.partial(_conv, cpu_forms.small_conv, stride, padding),
                    functools.partial(_conv, _lax_conv, stride, padding),
                    normal(2, *size, 3),
                    normal(*kernel, 3, 4),
                )


def test_few_positions_in_half_precision():
    x, kernel = (normal(*shape).astype(jnp.bfloat16) for shape in ((4, 2, 2, 64), (3, 3, 64, 8)))
    y, pull_back = jax.vjp(lambda x, kernel: cpu_forms.small_conv(x, kernel, (1, 1), ONE), x, kernel)
    assert {y.dtype, *(gradient.dtype for gradient in pull_back(y))} == {jnp.dtype(jnp.bfloat16)}
    exact = _lax_conv(x.astype(np.float32), kernel.astype(np.float32), (1, 1), ONE)
    # Rounded once: by at most half of the last of eight bits.
    np.testing.assert_allclose(y.astype(np.float32), exact, rtol=2**-8, atol=1e-5)


@pytest.mark.parametrize(("size", "replaced"), [(1, True), (2, True), (3, False)])
def test_only_convolutions_with_few_positions_become_products(size, replaced):
    function = cpu.accelerate(lambda x, kernel: _lax_conv(x, kernel, (1, 1), ONE))
    names = primitives(function, normal(2, size, size, 16), normal(3, 3, 16, 16))
    assert ("conv_general_dilated" not in names) == replaced


def _conv(function, stride, padding, x, kernel):
    return function(x, kernel, stride, padding)


def _lax_conv(x, kernel, stride, padding):
    return lax.conv_general_dilated(x, kernel, stride, padding, dimension_numbers=("NHWC", "HWIO", "NHWC"))


POOLS = [
    ((2, 2), (2, 2), NONE),
    ((3, 3), (2, 2), NONE),
    ((3, 3), (2, 2), ONE),
    ((3, 3), (1, 1), ONE),
    ((3, 2), (3, 2), NONE),
    ((2, 2), (3, 3), NONE),
    ((3, 3), (2, 2), ((0, 1), (1, 2))),
]


@pytest.mark.parametrize(("window", "strides", "padding"), POOLS)
@pytest.mark.parametrize("values", ["different", "many equal"])
def test_max_pooling(window, strides, padding, values):
    """Of equal numbers the first of a window has the gradient, as in XLA."""
    x = normal(2, 11, 10, 3)
    x = np.round(np.maximum(x, 0)) if values == "many equal" else x
    expect_same(
        lambda x: cpu_forms.max_pool(x, window, strides, padding),
        lambda x: nn.max_pool(x, window, strides, padding),
        x,
        tolerance=3e-7,  # where windows overlap, gradients are added up in another order
    )


def test_max_pooling_shows_what_is_no_number():
    x = normal(1, 4, 4, 1)
    x[0, 1, 2, 0] = np.nan
    pooled = cpu_forms.max_pool(x, (2, 2), (2, 2), NONE)
    assert np.isnan(pooled).sum() == 1 and np.isnan(pooled[0, 0, 1, 0])


PADDED = (NONE, ((2, 2), (2, 2)), ((0, 1), (1, 0)))


# Each pooling meets each kernel and each padding, and each kernel each padding: any two of the three, not all at once,
# which would take three times as long to compile.
@pytest.mark.parametrize(
    ("pool", "kernel", "padding"),
    [
        (pool, kernel, PADDED[(row + column) % 3])
        for row, pool in enumerate([(2, 2), (3, 3), (2, 3)])
        for column, kernel in enumerate([(5, 5), (3, 3), (4, 2), (11, 11)])
    ],
)
@pytest.mark.parametrize("inputs", [1, 3])
def test_convolution_with_its_pooling(pool, kernel, padding, inputs):
    """The image's size leaves rows and columns over that no window of the pooling covers."""

    def theirs(x, k):
        return nn.max_pool(_lax_conv(x, k, (1, 1), padding), pool, pool)

    ours = functools.partial(cpu_forms.conv_pool, padding=padding, pool=pool)
    expect_same(lambda x, k: ours(x, k), theirs, normal(2, 14, 15, inputs), normal(*kernel, inputs, 4))


def test_concatenation():
    arrays = [normal(2, 3, 3, channels) for channels in (1, 4, 2)]
    expect_same(
        lambda *parts: cpu_forms.concatenate(parts, 3) ** 2, lambda *parts: jnp.concatenate(parts, 3) ** 2, *arrays
    )


@pytest.mark.parametrize(
    ("of", "dtype", "barriers"),
    [
        (lambda function: function, np.float32, 1),
        (jax.grad, np.float32, 2),  # around the gradient too
        (lambda function: function, np.int32, 0),
    ],
)
def test_nothing_is_joined_with_a_concatenation(of, dtype, barriers):
    def run(*parts):
        return jnp.sum(jnp.square(jnp.concatenate(parts, -1)))

    arrays = [normal(2, 8, 8, 4).astype(dtype) for _ in range(3)]
    assert str(jax.make_jaxpr(of(cpu.accelerate(run)))(*arrays)).count("optimization_barrier") == barriers
    assert "optimization_barrier" not in str(jax.make_jaxpr(of(run))(*arrays))


# -- batch normalisation


class Normalised(nn.Module):
    axis_name: str | None = None
    train: bool = True

    @nn.compact
    def __call__(self, x):
        norm = functools.partial(nn.BatchNorm, not self.train, axis_name=self.axis_name)
        x = norm(momentum=0.8, epsilon=1e-3)(x) ** 2 + norm(use_scale=False)(x) ** 2
        return x + norm(use_bias=False)(x) ** 2  # one not of the usual form


def normalise(axis_name):
    model, variables = Normalised(axis_name), Normalised().init(jax.random.key(0), normal(2, 3, 3, 4))
    variables = jax.tree.map(lambda leaf: leaf + 0.3 * normal(*leaf.shape, seed=leaf.size), variables)

    def run(params, x):
        y, updates = model.apply(variables | {"params": params}, x, mutable=["batch_stats"])
        return y, updates["batch_stats"]

    return run, variables["params"]


def test_batch_normalisation():
    run, params = normalise(None)

    def without_statistics(function):
        return lambda params, x: function(params, x)[0]

    x = 2 * normal(4, 5, 5, 4) + 1
    expect_same(without_statistics(cpu.accelerate(run)), without_statistics(run), params, x)
    for ours, theirs in zip(*(jax.tree.leaves(f(params, x)[1]) for f in (cpu.accelerate(run), run)), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-6, atol=2e-7)  # means of numbers of about 1, rounded


def test_batch_normalisation_over_devices():
    """Two with different images, whose statistics are averaged: values, statistics and gradients."""
    run, params = normalise("device")
    x = normal(2, 4, 5, 5, 4) + np.array([0.0, 3.0]).reshape(2, 1, 1, 1, 1).astype(np.float32)

    def gradients(function):
        def loss(params, x):
            y, statistics = function(params, x)
            return jnp.sum(y * normal(*y.shape, seed=3)), statistics

        grad = jax.grad(loss, (0, 1), has_aux=True)
        return jax.pmap(grad, axis_name="device", in_axes=(None, 0), devices=jax.devices()[:2])(params, x)

    for ours, theirs in zip(*map(jax.tree.leaves, (gradients(cpu.accelerate(run)), gradients(run))), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)


def test_batch_normalisation_in_evaluation_stays_as_it_is():
    model = Normalised(train=False)
    variables = model.init(jax.random.key(0), normal(2, 3, 3, 4))
    run = functools.partial(model.apply, variables)
    np.testing.assert_array_equal(cpu.accelerate(run)(normal(2, 3, 3, 4)), run(normal(2, 3, 3, 4)))


# -- whole functions


class AllSorts(nn.Module):
    """What must come through as it is: groups, dilation, rematerialisation, loops, dropout, other windows."""

    @nn.compact
    def __call__(self, x, train=True):
        x = nn.Conv(4, (3, 3), name="first")(x)
        y = nn.relu(x)  # of a convolution that is used twice
        x = nn.max_pool(y, (2, 2), (2, 2)) + nn.avg_pool(x, (2, 2), (2, 2))
        x = nn.Conv(4, (3, 3), name="one")(x) + nn.Conv(4, (3, 3), name="other")(x)
        x = nn.Conv(4, (3, 3), name="twice")(x)
        x = x + x
        x = nn.Conv(4, (3, 3), feature_group_count=2, name="groups")(x)
        x = nn.Conv(4, (3, 3), kernel_dilation=2, name="dilated")(x)
        x = nn.remat(nn.Conv)(4, (3, 3), name="again")(jnp.tanh(x))
        x = nn.max_pool(nn.sigmoid(x), (2, 2), (2, 2))
        x = lax.fori_loop(0, 2, lambda _, x: nn.max_pool(x, (2, 2), (1, 1), "SAME"), x)
        x = nn.Dropout(0.5, deterministic=not train)(x)
        return nn.Dense(3)(x.reshape(len(x), -1))


def test_a_function_of_all_sorts():
    model, x = AllSorts(), normal(2, 12, 12, 2)
    variables = model.init({"params": jax.random.key(0), "dropout": jax.random.key(1)}, x)

    def run(params, x):
        return {"logits": model.apply({"params": params}, x, rngs={"dropout": jax.random.key(2)}), "nothing": None}

    expect_same(cpu.accelerate(run), run, variables["params"], x)


def test_rematerialisation_keeps_convolutions_where_its_policy_says_so():
    class Layer(nn.Module):
        @nn.compact
        def __call__(self, x):
            return jnp.tanh(nn.Conv(16, (3, 3))(jnp.tanh(x)))

    class Twice(nn.Module):
        @nn.compact
        def __call__(self, x):
            layer = nn.remat(Layer, policy=jax.checkpoint_policies.dots_saveable)
            return layer()(layer()(x))

    model, x = Twice(), normal(2, 8, 8, 16)
    variables = model.init(jax.random.key(0), x)

    def run(variables, x):
        return jnp.sum(model.apply(variables, x))

    def convolutions(function):
        text = jax.jit(jax.grad(function, (0, 1))).lower(variables, x).as_text()
        return text.count("stablehlo.convolution(")

    assert convolutions(cpu.accelerate(run)) == convolutions(run) == 6  # forwards, and two gradients of each


@jax.custom_jvp
def straight_through(x):
    return jnp.maximum(x, 0)


straight_through.defjvp(lambda values, tangents: (straight_through(*values), tangents[0]))


def test_gradients_of_its_own_stay_a_rectifiers():
    def run(x, kernel):
        return nn.max_pool(straight_through(_lax_conv(x, kernel, (1, 1), NONE)), (2, 2), (2, 2))

    expect_same(cpu.accelerate(run), run, normal(2, 6, 6, 1), normal(3, 3, 1, 2))


def test_whole_numbers_are_pooled_as_they_were():
    run = functools.partial(nn.max_pool, window_shape=(2, 2), strides=(2, 2), padding="SAME")
    x = np.arange(18, dtype=np.int32).reshape(2, 3, 3, 1)
    np.testing.assert_array_equal(cpu.accelerate(run)(x), run(x))


def test_operations_keep_the_names_of_their_layers():
    model = registry.create_model("convnet", 3, filters=(16, 3), dense=())
    variables = model.init(jax.random.key(0), normal(1, 8, 8, 16))
    run = jax.jit(jax.grad(cpu.accelerate(lambda params, x: model.apply({"params": params}, x).sum())))
    text = run.lower(variables["params"], normal(1, 8, 8, 16)).compile().as_text()
    for layer in ("conv1", "conv2"):
        assert re.search(rf'op_name="[^"]*{layer}[^"]*conv_general_dilated', text), layer


def primitives(function, *arrays):
    """All operations of a function's trace, whatever calls them."""
    names = set()

    def collect(jaxpr):
        for equation in jaxpr.eqns:
            names.add(equation.primitive.name)
            for value in equation.params.values():
                for inner in value if isinstance(value, (tuple, list)) else (value,):
                    if hasattr(inner, "eqns"):
                        collect(getattr(inner, "jaxpr", inner))

    collect(jax.make_jaxpr(function)(*arrays).jaxpr)
    return names


@pytest.mark.usefixtures("few_units", "few_blocks")
@pytest.mark.parametrize(
    ("name", "shape"),
    [("lenet5", (28, 28, 1)), ("convnet", (28, 28, 1)), ("alexnet_owt", (63, 63, 3)), ("resnet20", (8, 8, 3))]
    + [("vgg16_bn_cifar", (32, 32, 3))]
    + [pytest.param("resnet50", (33, 33, 3), marks=pytest.mark.zoo)]
    + [pytest.param("densenet121", (64, 64, 3), marks=pytest.mark.zoo)]
    + [pytest.param("googlenet", (79, 79, 3), marks=pytest.mark.zoo)],
)
def test_networks_have_the_same_gradients_and_none_of_the_slow_operations(name, shape):
    model = registry.create_model(name, 5)
    variables = registry.init_variables(model, jax.random.key(0), shape)
    x = normal(3, *shape)

    def run(params, x):
        rngs = {"dropout": jax.random.key(1)}
        logits, updates = model.apply(variables | {"params": params}, x, train=True, mutable=True, rngs=rngs)
        return jnp.sum(logits * normal(*logits.shape, seed=2)), updates

    ours, theirs = cpu.accelerate(run), run
    assert "select_and_scatter_add" not in primitives(jax.grad(ours, has_aux=True), variables["params"], x)
    found, expected = (jax.jit(jax.value_and_grad(f, has_aux=True))(variables["params"], x) for f in (ours, theirs))
    # What a normalisation that follows takes away again, such as an offset, has a gradient of nothing but rounding.
    largest = max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(expected[1]))
    for a, b in zip(*map(jax.tree.leaves, (found, expected)), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=max(2e-4 * float(jnp.abs(b).max()), 1e-5 * largest))
