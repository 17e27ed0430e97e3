"""Networks by name.

    model = create_model("lenet5", num_classes=10, activation="tanh")
    variables = init_variables(model, jax.random.key(0), image_shape=(28, 28, 1))
    logits = model.apply(variables, images)

`list_models("lenet*")` says which there are, `model_fields("lenet5")` what can be set on one, `model_facts("lenet5")`
what is published about it.
"""

import dataclasses
import fnmatch
import functools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from cnn_research.models import (
    alexnet,
    convnet,
    densenet,
    googlenet,
    initializers,
    layers,
    lenet,
    resnet,
    speednet,
    vgg,
    zfnet,
)
from cnn_research.models.facts import FACTS, Facts

# Name -> (class, the fields that the name stands for). A size variant is a line.
MODELS: dict[str, tuple[type[nn.Module], Mapping[str, Any]]] = {
    "convnet": (convnet.ConvNet, {}),
    "lenet5": (lenet.LeNet5, {}),
    "lenet5_paper": (lenet.LeNet5Paper, {}),
    "alexnet": (alexnet.AlexNet, {"towers": 2}),
    "alexnet_one_tower": (alexnet.AlexNet, {"towers": 1}),
    "alexnet_owt": (alexnet.AlexNetOWT, {}),
    "zfnet": (zfnet.ZFNet, {"filters": (384, 384, 256)}),
    "zfnet_wide": (zfnet.ZFNet, {"filters": (512, 1024, 512)}),
    "vgg11": (vgg.VGG, {"configuration": "A", "batch_norm": False}),
    "vgg13": (vgg.VGG, {"configuration": "B", "batch_norm": False}),
    "vgg16_c": (vgg.VGG, {"configuration": "C", "batch_norm": False}),
    "vgg16": (vgg.VGG, {"configuration": "D", "batch_norm": False}),
    "vgg19": (vgg.VGG, {"configuration": "E", "batch_norm": False}),
    "vgg11_bn": (vgg.VGG, {"configuration": "A", "batch_norm": True}),
    "vgg13_bn": (vgg.VGG, {"configuration": "B", "batch_norm": True}),
    "vgg16_bn": (vgg.VGG, {"configuration": "D", "batch_norm": True}),
    "vgg19_bn": (vgg.VGG, {"configuration": "E", "batch_norm": True}),
    "vgg11_bn_cifar": (vgg.VGGCifar, {"configuration": "A"}),
    "vgg13_bn_cifar": (vgg.VGGCifar, {"configuration": "B"}),
    "vgg16_bn_cifar": (vgg.VGGCifar, {"configuration": "D"}),
    "vgg19_bn_cifar": (vgg.VGGCifar, {"configuration": "E"}),
    "googlenet": (googlenet.GoogLeNet, {}),
    "googlenet_bn": (googlenet.GoogLeNetBN, {"large_kernel_size": 3}),
    "resnet18": (resnet.ResNet, {"depth": 18}),
    "resnet34": (resnet.ResNet, {"depth": 34}),
    "resnet50": (resnet.ResNet, {"depth": 50}),
    "resnet101": (resnet.ResNet, {"depth": 101}),
    "resnet152": (resnet.ResNet, {"depth": 152}),
    "resnet20": (resnet.CifarResNet, {"depth": 20}),
    "resnet32": (resnet.CifarResNet, {"depth": 32}),
    "resnet44": (resnet.CifarResNet, {"depth": 44}),
    "resnet56": (resnet.CifarResNet, {"depth": 56}),
    "resnet110": (resnet.CifarResNet, {"depth": 110}),
    "densenet121": (densenet.DenseNet, {"depth": 121, "growth_rate": 32, **densenet.BC}),
    "densenet161": (densenet.DenseNet, {"depth": 161, "growth_rate": 48, **densenet.BC}),
    "densenet169": (densenet.DenseNet, {"depth": 169, "growth_rate": 32, **densenet.BC}),
    "densenet201": (densenet.DenseNet, {"depth": 201, "growth_rate": 32, **densenet.BC}),
    "densenet264": (densenet.DenseNet, {"depth": 264, "growth_rate": 32, **densenet.BC}),
    "densenet_40_12": (densenet.CifarDenseNet, {"depth": 40, "growth_rate": 12, **densenet.PLAIN}),
    "densenet_100_12": (densenet.CifarDenseNet, {"depth": 100, "growth_rate": 12, **densenet.PLAIN}),
    "densenet_100_24": (densenet.CifarDenseNet, {"depth": 100, "growth_rate": 24, **densenet.PLAIN}),
    "densenet_bc_100_12": (densenet.CifarDenseNet, {"depth": 100, "growth_rate": 12, **densenet.BC}),
    "densenet_bc_190_40": (densenet.CifarDenseNet, {"depth": 190, "growth_rate": 40, **densenet.BC}),
    "densenet_bc_250_24": (densenet.CifarDenseNet, {"depth": 250, "growth_rate": 24, **densenet.BC}),
    "speednet": (speednet.SpeedNet, {}),
}

# Modules that code, not a config, may replace: create_model accepts them where a network has them.
_INJECTED = frozenset({"conv", "norm"})
_NOT_FOR_USERS = _INJECTED | {"num_classes", "dtype", "parent", "name"}


def list_models(pattern: str = "*", exclude: str | Sequence[str] = ()) -> list[str]:
    """The names that match a shell pattern ("resnet*") and none of the patterns in `exclude`, sorted."""
    exclude = (exclude,) if isinstance(exclude, str) else exclude
    names = fnmatch.filter(MODELS, pattern)
    return sorted(name for name in names if not any(fnmatch.fnmatchcase(name, out) for out in exclude))


def model_fields(name: str) -> dict[str, Any]:
    """The fields that a user may set on the named network, with their defaults, in the order of the class.

    Fields that the name itself stands for aren't among them: another value would make another network under the same
    name.

    Raises:
        ValueError: no network has this name.
    """
    module, fixed = _entry(name)
    return {
        field.name: field.default
        for field in dataclasses.fields(module)
        if field.name not in _NOT_FOR_USERS and field.name not in fixed
    }


def model_facts(name: str) -> Facts:
    """The input, normalisation, size, paper and published error of the named network.

    Raises:
        ValueError: no network has this name.
    """
    _entry(name)
    return FACTS[name]


def create_model(
    name: str, num_classes: int, *, dtype: Any = jnp.float32, axis_name: str | None = None, **overrides: Any
) -> nn.Module:
    """The named network, ready for `init` and `apply`: x: float[N, H, W, C] -> logits float32[N, num_classes].

    Args:
        name: one of list_models().
        num_classes: K >= 1.
        dtype: compute type, float32, bfloat16 or float16, as a type or its name. Parameters and logits are float32 in
            any case.
        axis_name: the pmap axis over which normalisation layers average their batch statistics; None for each device
            its own.
        **overrides: fields of the network: see model_fields(name). Also `conv` and `norm`, modules to use in place of
            the network's own.

    Raises:
        ValueError: an unknown name, field or dtype, or a number of classes below 1; the message names what is nearest
            and what there is.
    """
    module, fixed = _entry(name)
    fields = model_fields(name)
    defaults = {field.name: field.default for field in dataclasses.fields(module)}
    for field in overrides:
        if field in fixed:
            raise ValueError(
                f"{name}: {field} is {fixed[field]!r} by the model's name and can't be set; fields: {_join(fields)}"
            )
        if field not in fields and not (field in _INJECTED and field in defaults):
            raise ValueError(f"{name} has no field {field!r}{layers.suggest(field, fields)}; fields: {_join(fields)}")
    if num_classes < 1:
        raise ValueError(f"{name}: num_classes must be at least 1, got {num_classes}")
    dtype_name = dtype if isinstance(dtype, str) else jnp.dtype(dtype).name
    if dtype_name not in ("float32", "bfloat16", "float16"):
        raise ValueError(f"{name}: dtype must be float32, bfloat16 or float16, got {dtype_name}")
    fields = {**fixed, **overrides}
    if axis_name is not None and "norm" in defaults:
        fields["norm"] = functools.partial(fields.get("norm", defaults["norm"]), axis_name=axis_name)
    return module(num_classes=num_classes, dtype=jnp.dtype(dtype_name), **fields)


def init_variables(model: nn.Module, key: jax.Array, image_shape: Sequence[int]) -> dict[str, Any]:
    """The initial variables, {"params": ...} and {"batch_stats": ...} where there are any, without a forward pass.

    Args:
        model: from create_model.
        key: typed PRNG key.
        image_shape: (H, W, C).

    Raises:
        ValueError: the images are too small for a layer, or a field of the model isn't one of its allowed values.
    """
    return initializers.init(model, key, image_shape)


def _entry(name: str) -> tuple[type[nn.Module], Mapping[str, Any]]:
    if name not in MODELS:
        raise ValueError(f"no model is named {name!r}{layers.suggest(name, MODELS)}; models: {_join(list_models())}")
    return MODELS[name]


def _join(names: Iterable[str]) -> str:
    return ", ".join(names) or "none"
