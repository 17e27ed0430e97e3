"""Weights of torchvision's networks, and of timm's, as variables of the Flax networks of the same form.

    model = create_model("resnet50", num_classes=10)
    variables = init_variables(model, jax.random.key(0), image_shape=(224, 224, 3))
    state_dict = read_state_dict("resnet50-0676ba61.pth")                        # of torch_file.py
    variables, report = import_weights("resnet50", state_dict, variables)
    print(report)              # 265 tensors loaded; dropped: fc.weight, fc.bias (another number of classes)

The same weights give the same logits for the same images. What images the weights were trained on, the file doesn't
say: torchvision's and most of timm's expect RGB in [0, 1] less the ImageNet mean, by its standard deviation, (0.485,
0.456, 0.406) and (0.229, 0.224, 0.225). torchvision's GoogLeNet expects RGB in [-1, 1]: its `transform_input` makes
that of the above. Its trained file has auxiliary heads too, but those were never trained.

Layouts: PyTorch's convolution kernels are [O, I, H, W], Flax's [H, W, I, O]; fully-connected [O, I] and [I, O]. PyTorch
flattens [N, C, H, W], Flax [N, H, W, C], so the layer after a flattening needs its rows in another order. In training,
PyTorch's running variance averages the unbiased variance of each batch, n / (n - 1) times what Flax's averages;
momentum 0.1 there is 0.9 here.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from cnn_research.models import registry, vgg

Rules = Sequence[tuple[str, str]]  # regular expressions and what to put for them, one after the other


@dataclass(frozen=True)
class Report:
    """What became of the tensors, by name: as in the file, and as in torchvision for those that it lacks.

    Attributes:
        loaded: they are in the variables now.
        missing: the network has them and the file doesn't: they kept their initial values.
        unexpected: the file has them and the network doesn't.
        dropped: of the last layers, where the file has another number of classes; they kept their initial values.

    PyTorch's counters of batches (`num_batches_tracked`) aren't mentioned.
    """

    loaded: tuple[str, ...]
    missing: tuple[str, ...] = ()
    unexpected: tuple[str, ...] = ()
    dropped: tuple[str, ...] = ()

    def __str__(self) -> str:
        parts = [f"{len(self.loaded)} tensors loaded"]
        if self.dropped:
            parts.append(f"dropped: {', '.join(self.dropped)} (another number of classes)")
        if self.missing:
            parts.append(f"not in the file: {', '.join(self.missing)}")
        if self.unexpected:
            parts.append(f"not in the network: {', '.join(self.unexpected)}")
        return "; ".join(parts)


# -- names


@dataclass(frozen=True)
class _Family:
    """How torchvision names the layers of a family of networks.

    Attributes:
        layers: from our name of a layer, such as "layer1_0.conv1", to torchvision's, "layer1.0.conv1".
        heads: our layers with one output for each class.
        flattened: our layers whose input is a flattened map, and its height and width.
        aliases: from other names that files have to torchvision's.
        optional: beginnings of torchvision's names of what is needed only in training, and may be missing.
    """

    layers: Rules
    heads: tuple[str, ...] = ("output",)
    flattened: Mapping[str, int] = field(default_factory=dict)
    aliases: Rules = ()
    optional: tuple[str, ...] = ()


def _vgg(configuration: str, batch_norm: bool) -> _Family:
    """Convolution, normalisation if any, rectifier, and after each stage a pool have one number each."""
    layers, number = [], 0
    for stage, kernel_sizes in enumerate(vgg.CONFIGURATIONS[configuration], start=1):
        for index in range(1, len(kernel_sizes) + 1):
            layers.append((f"^conv{stage}_{index}$", f"features.{number}"))
            layers.append((f"^norm{stage}_{index}$", f"features.{number + 1}"))
            number += 3 if batch_norm else 2
        number += 1
    return _Family(
        layers=[*layers, ("^fc6$", "classifier.0"), ("^fc7$", "classifier.3"), ("^output$", "classifier.6")],
        flattened={"fc6": 7},
        # timm's fc1 and fc2 are convolutions, 7x7 and 1x1.
        aliases=[
            (r"^pre_logits\.fc1\.", "classifier.0."),
            (r"^pre_logits\.fc2\.", "classifier.3."),
            (r"^head\.fc\.", "classifier.6."),
        ],
    )


_ALEXNET = _Family(
    layers=[
        ("^conv1$", "features.0"),
        ("^conv2$", "features.3"),
        ("^conv3$", "features.6"),
        ("^conv4$", "features.8"),
        ("^conv5$", "features.10"),
        ("^fc6$", "classifier.1"),
        ("^fc7$", "classifier.4"),
        ("^output$", "classifier.6"),
    ],
    flattened={"fc6": 6},
)

_GOOGLENET = _Family(
    layers=[
        (r"(branch\d)_(\d)", r"\1.\2"),
        (r"(conv\d?|branch\d(\.\d)?)$", r"\1.conv"),
        (r"_norm$", ".bn"),
        (r"^output$", "fc"),
    ],
    heads=("output", "aux1.fc2", "aux2.fc2"),
    flattened={"aux1.fc1": 4, "aux2.fc1": 4},
    optional=("aux1.", "aux2."),
)

_RESNET = _Family(
    layers=[
        (r"^(layer\d)_(\d+)", r"\1.\2"),
        (r"downsample_conv$", "downsample.0"),
        (r"downsample_norm$", "downsample.1"),
        (r"norm(\d)$", r"bn\1"),
        (r"^output$", "fc"),
    ],
)

_DENSENET = _Family(
    layers=[
        (r"^(denseblock\d)_layer(\d+)", r"\1.denselayer\2"),
        (r"^(?!output$)", "features."),
        (r"^output$", "classifier"),
    ],
    # Files from before torchvision 0.2: a point in front of the number.
    aliases=[(r"^(.*denselayer\d+\.(?:norm|conv))\.(\d\.)", r"\1\2")],
)

_FAMILIES: dict[str, _Family] = {
    "alexnet_owt": _ALEXNET,
    **{name: _vgg(**registry.MODELS[name][1]) for name in ("vgg11", "vgg13", "vgg16", "vgg19")},
    **{name: _vgg(**registry.MODELS[name][1]) for name in ("vgg11_bn", "vgg13_bn", "vgg16_bn", "vgg19_bn")},
    "googlenet_bn": _GOOGLENET,
    **dict.fromkeys(("resnet18", "resnet34", "resnet50", "resnet101", "resnet152"), _RESNET),
    **dict.fromkeys(("densenet121", "densenet161", "densenet169", "densenet201"), _DENSENET),
}

_LEAVES = {"kernel": "weight", "scale": "weight", "mean": "running_mean", "var": "running_var"}  # bias is bias


def importable_models() -> list[str]:
    """The names of the networks that torchvision has too, sorted. alexnet_owt is its alexnet, googlenet_bn its
    googlenet; the others have the same names there.
    """
    return sorted(_FAMILIES)


def _rename(name: str, rules: Rules) -> str:
    for pattern, replacement in rules:
        name = re.sub(pattern, replacement, name)
    return name


# -- tensors


@dataclass(frozen=True)
class _Target:
    """A leaf of the variables: the tensor of that name, shape and layout is wanted from the file."""

    index: int  # among the leaves
    layer: str
    shape: tuple[int, ...]  # Flax's

    @property
    def torch_shape(self) -> tuple[int, ...]:
        if len(self.shape) == 4:
            height, width, inputs, outputs = self.shape
            return (outputs, inputs, height, width)
        return self.shape[::-1]

    def to_flax(self, array: np.ndarray, flattened: Mapping[str, int]) -> np.ndarray:
        """Of torch_shape -> float32 of shape, a copy: PyTorch changes its own in place."""
        if len(self.shape) == 2 and self.layer in flattened:
            size = flattened[self.layer]
            array = array.reshape(len(array), -1, size, size)
        array = array.transpose(2, 3, 1, 0) if array.ndim == 4 else array.T
        return np.array(array.reshape(self.shape), np.float32, order="C")


def import_weights(
    name: str, state_dict: Mapping[str, Any], variables: Mapping[str, Any], *, strict: bool = True
) -> tuple[dict[str, Any], Report]:
    """The variables with the state_dict's values, float32 NumPy arrays, in place of the initial ones.

    If the file has another number of classes, the last layer keeps its initial values, and so do its auxiliary
    counterparts in GoogLeNet, whose heads the file or the network may also lack.

    Args:
        name: one of importable_models().
        state_dict: arrays by torchvision's names, or timm's, or those of old DenseNet files: see `read_state_dict`.
        variables: of the named network, as from `init_variables`. Where all values come from the file, shapes are
            enough: `jax.eval_shape(model.init, ...)`. They aren't changed.
        strict: refuse tensors that the network lacks or the file; otherwise they are only reported. (A network with
            squeeze-and-excitation blocks can so start from one without.)

    Raises:
        ValueError: torchvision has no such network; or the file is another network's, or for images of other channels:
            the message names the first tensor that doesn't fit, its shape, and the shape expected.
    """
    family = _family(name)
    paths, tree = jax.tree_util.tree_flatten_with_path(variables)
    leaves = [leaf for _, leaf in paths]
    targets = {}
    for index, (path, leaf) in enumerate(paths):
        _, *layers, kind = (key.key for key in path)
        target = _Target(index, ".".join(layers), tuple(leaf.shape))
        targets[f"{_rename(target.layer, family.layers)}.{_LEAVES.get(kind, kind)}"] = target

    # A head is dropped as a whole, should only one of its tensors tell another number of classes.
    other_heads = set()
    for theirs, value in state_dict.items():
        target = targets.get(_rename(theirs, family.aliases))
        if target and target.layer in family.heads:
            array = _as_matrix(np.asarray(value), target)
            if _differ_only(0, array.shape, target.torch_shape):
                other_heads.add(target.layer)

    found: dict[str, str] = {}  # torchvision's name -> the file's
    loaded, unexpected, dropped = [], [], []
    for theirs, value in state_dict.items():
        tensor, array = _rename(theirs, family.aliases), np.asarray(value)
        if tensor.endswith(".num_batches_tracked"):
            continue
        if tensor in found:
            raise ValueError(f"{name}: {found[tensor]!r} and {theirs!r} are two names of the same tensor")
        found[tensor] = theirs
        if tensor not in targets:
            if strict and not tensor.startswith(family.optional):
                raise ValueError(f"{name}: has no tensor {theirs!r} of shape {array.shape}: {_OTHER}")
            unexpected.append(theirs)
            continue
        target = targets[tensor]
        array = _as_matrix(array, target)
        if target.layer in other_heads:
            dropped.append(theirs)
            continue
        _check(name, theirs, array, target.torch_shape)
        leaves[target.index] = target.to_flax(array, family.flattened)
        loaded.append(theirs)

    missing = [tensor for tensor in targets if tensor not in found]
    for tensor in missing:
        if strict and not tensor.startswith(family.optional):
            shape = targets[tensor].torch_shape
            raise ValueError(f"{name}: tensor {tensor!r} of shape {shape} is missing: {_OTHER}")
    for tensor, target in targets.items():
        if isinstance(leaves[target.index], jax.ShapeDtypeStruct):
            raise ValueError(f"{name}: {tensor!r} doesn't come from the file, so variables must have initial values")
    report = Report(tuple(loaded), tuple(missing), tuple(unexpected), tuple(dropped))
    return jax.tree_util.tree_unflatten(tree, leaves), report


def import_network(name: str, state_dict: Mapping[str, Any]) -> tuple[nn.Module, dict[str, Any]]:
    """The network with the file's weights, and with as many classes as the file has.

    Without heads that only training needs: the file may or may not have them.

    Args:
        name, state_dict: as for `import_weights`.

    Returns:
        The network, and its variables.

    Raises:
        ValueError: as `import_weights`.
    """
    facts = registry.model_facts(name)
    fields = {"auxiliary_heads": False} if "auxiliary_heads" in registry.model_fields(name) else {}
    images = jax.ShapeDtypeStruct((1, *facts.image_shape), jnp.float32)
    num_classes = facts.num_classes
    while True:
        model = registry.create_model(name, num_classes, **fields)
        like = jax.eval_shape(model.init, jax.random.key(0), images)
        zeros = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), like)
        variables, report = import_weights(name, state_dict, zeros)
        if not report.dropped:
            return model, variables
        num_classes = len(state_dict[report.dropped[0]])


_OTHER = "is the file another network's?"


def _family(name: str) -> _Family:
    registry.model_fields(name)  # raises if no network has this name
    if name not in _FAMILIES:
        raise ValueError(f"torchvision has no counterpart of {name}; it has of {', '.join(importable_models())}")
    return _FAMILIES[name]


def _as_matrix(array: np.ndarray, target: _Target) -> np.ndarray:
    """A fully-connected layer that is written as a convolution -> [O, I]; anything else as it is."""
    return array.reshape(len(array), -1) if array.ndim == 4 and len(target.shape) == 2 else array


def _differ_only(axis: int, shape: tuple[int, ...], expected: tuple[int, ...]) -> bool:
    if len(shape) != len(expected):
        return False
    return [a == b for a, b in zip(shape, expected, strict=True)] == [i != axis for i in range(len(shape))]


def _check(name: str, tensor: str, array: np.ndarray, expected: tuple[int, ...]) -> None:
    if array.shape != expected:
        reason = _OTHER
        # Only the first convolution has so few inputs.
        if array.ndim == 4 and _differ_only(1, array.shape, expected) and min(array.shape[1], expected[1]) < 8:
            reason = f"the file is for images of {array.shape[1]} channels, the network for {expected[1]}"
        raise ValueError(f"{name}: tensor {tensor!r} has shape {array.shape}, expected is {expected}: {reason}")
    if not jnp.issubdtype(array.dtype, jnp.floating):
        raise ValueError(f"{name}: tensor {tensor!r} has the type {array.dtype}, expected are floating-point numbers")
