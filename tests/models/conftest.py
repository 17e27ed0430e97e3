"""What the tests of the large networks share: counts and shapes without computing, and layers written out in numpy."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from cnn_research.models import alexnet, densenet, googlenet, layers, registry, resnet, vgg, zfnet


def _param_counts(model, image_shape):
    image = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)
    params = jax.eval_shape(model.init, jax.random.key(0), image)["params"]
    return {layer: sum(leaf.size for leaf in jax.tree.leaves(leaves)) for layer, leaves in params.items()}


@pytest.fixture
def param_counts():
    """(model, (H, W, C)) -> {layer: its parameters}, without making any."""
    return _param_counts


@pytest.fixture
def output_shapes(monkeypatch):
    """(model, (H, W, C)) -> {layer: (H', W', C')}, in order, of all that convolves, normalises locally or pools."""
    shapes = {}

    def watch(function):
        def watched(*args, name, **kwargs):
            out = function(*args, name=name, **kwargs)
            shapes[name] = out.shape[1:]
            return out

        return watched

    def run(model, image_shape):
        with monkeypatch.context() as patch:
            for function in (layers.conv, layers.pool, layers.local_response_norm, layers.adaptive_average_pool):
                patch.setattr(layers, function.__name__, watch(function))
            _param_counts(model, image_shape)
        return dict(shapes)

    return run


@pytest.fixture
def dense_and_dropout():
    """(model, (H, W, C)) -> the fully-connected layers' names and the rates of dropout, in order of use in training."""

    def run(model, image_shape):
        seen = []

        def look(call, args, kwargs, context):
            if context.method_name == "__call__" and isinstance(context.module, nn.Dense):
                seen.append(context.module.name)
            if context.method_name == "__call__" and isinstance(context.module, nn.Dropout) and context.module.rate:
                assert not context.module.deterministic
                seen.append(context.module.rate)
            return call(*args, **kwargs)

        image = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)
        rngs = {"params": jax.random.key(0), "dropout": jax.random.key(1)}
        with nn.intercept_methods(look):
            jax.eval_shape(lambda image: model.init(rngs, image, train=True), image)
        return seen

    return run


@pytest.fixture
def initial_values():
    """(model, (H, W, C)) -> {layer: (kernel [3, 3, 20, 50], bias [50])}, drawn as each layer would draw its own.

    So much is enough to tell one distribution from another, and takes a tenth of the time of the layers' own sizes.
    """

    def run(model, image_shape):
        initializers = {}

        def look(call, args, kwargs, context):
            if context.method_name == "__call__" and isinstance(context.module, (nn.Conv, nn.Dense)):
                initializers[context.module.name] = (context.module.kernel_init, context.module.bias_init)
            return call(*args, **kwargs)

        with nn.intercept_methods(look):
            _param_counts(model, image_shape)
        key = jax.random.key(0)
        return {
            layer: (np.asarray(kernel_init(key, (3, 3, 20, 50))), np.asarray(bias_init(key, (50,))))
            for layer, (kernel_init, bias_init) in initializers.items()
        }

    return run


def _random_variables(model, image_shape):
    """Variables from numpy that keep the size of what passes through; compiling the initialisers would take seconds."""
    image = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)
    rng = np.random.default_rng(1)

    def draw(path, leaf):
        fan_in = np.prod(leaf.shape[:-1]) if path[-1].key == "kernel" else 100
        values = rng.normal(scale=np.sqrt(2 / fan_in), size=leaf.shape) + (path[-1].key in ("scale", "var"))
        return values.astype(np.float32)

    return jax.tree_util.tree_map_with_path(draw, jax.eval_shape(model.init, jax.random.key(0), image))


@pytest.fixture
def random_variables():
    return _random_variables


def _conv(x, params, stride=1, padding=0, groups=1):
    """[N, H, W, C] -> [N, H', W', K]: group g's kernels see group g's part of the channels only."""
    kernel, bias = params["kernel"], params["bias"]
    x = np.pad(x, ((0, 0), (padding, padding), (padding, padding), (0, 0)))
    windows = np.lib.stride_tricks.sliding_window_view(x, kernel.shape[:2], axis=(1, 2))[:, ::stride, ::stride]
    parts = [
        np.tensordot(channels, weights, ((4, 5, 3), (0, 1, 2)))
        for channels, weights in zip(np.split(windows, groups, 3), np.split(kernel, groups, 3), strict=True)
    ]
    return np.concatenate(parts, -1) + bias


def _max_pool(x, size, stride):
    """Windows that reach over the edge are left out."""
    windows = np.lib.stride_tricks.sliding_window_view(x, (size, size), axis=(1, 2))[:, ::stride, ::stride]
    return windows.max((4, 5))


def _local_response_norm(x, size=5, k=2.0, alpha=1e-4, beta=0.75):
    """The paper's formula, channel by channel."""
    out, channels, half = np.empty_like(x), x.shape[-1], size // 2
    for i in range(channels):
        total = np.zeros_like(x[..., i])
        for j in range(max(0, i - half), min(channels - 1, i + half) + 1):
            total += x[..., j] ** 2
        out[..., i] = x[..., i] / (k + alpha * total) ** beta
    return out


def _adaptive_average_pool(x, size):
    """PyTorch's definition, bin by bin."""
    out = np.empty((len(x), size, size, x.shape[-1]), x.dtype)
    height, width = x.shape[1:3]
    for i, j in np.ndindex(size, size):
        rows = slice(int(np.floor(i * height / size)), int(np.ceil((i + 1) * height / size)))
        columns = slice(int(np.floor(j * width / size)), int(np.ceil((j + 1) * width / size)))
        out[:, i, j] = x[:, rows, columns].mean((1, 2))
    return out


def _dense(x, params):
    return x.reshape(len(x), -1) @ params["kernel"] + params["bias"]


@pytest.fixture
def in_numpy():
    """Layers that share no code with the package: conv, max_pool, local_response_norm, adaptive_average_pool..."""
    return SimpleNamespace(
        conv=_conv,
        max_pool=_max_pool,
        local_response_norm=_local_response_norm,
        adaptive_average_pool=_adaptive_average_pool,
        dense=_dense,
        relu=lambda x: np.maximum(x, 0),
    )


@pytest.fixture
def few_units(monkeypatch):
    """Without 4,096 units in each of two layers, which make 100 million parameters and test nothing more."""
    for module in (alexnet, vgg, zfnet):
        monkeypatch.setattr(module, "UNITS", 64)


@pytest.fixture
def few_blocks(monkeypatch):
    """One of each kind at least: tracing and compiling takes its time for each."""
    monkeypatch.setattr(googlenet, "MODULES", {name: googlenet.MODULES[name] for name in ("3a", "4a", "5a")})
    monkeypatch.setattr(resnet, "STAGES", dict.fromkeys(resnet.STAGES, (2, 1, 1, 1)))
    monkeypatch.setattr(densenet, "BLOCKS", dict.fromkeys(densenet.BLOCKS, (2, 1, 1, 1)))
    depths = {resnet.CifarResNet: 8, densenet.CifarDenseNet: 10}
    for name, (module, fields) in registry.MODELS.items():
        if module in depths:
            monkeypatch.setitem(registry.MODELS, name, (module, {**fields, "depth": depths[module]}))
