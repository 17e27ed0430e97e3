"""What a network does to an image, layer by layer: shapes, parameters, multiply-adds, receptive field, memory.

    table = layer_table(create_model("alexnet", 1000), (227, 227, 3))
    table.layers[0].size_formula        # 'floor((227 + 2*0 - 11)/4) + 1 = 55'

The figures are read off the network's own trace, so they can't differ from what it computes, and any Flax module that
maps images to logits has a table. Nothing is compiled and no parameter is made.
"""

import dataclasses
import functools
import math
import re
from collections.abc import Collection, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import traverse_util

from cnn_research.models.trace import HEIGHT, Step, Trace, needed_steps, views_of

_FLOAT32 = 4  # bytes


@dataclasses.dataclass
class Layer:
    """One row of the table.

    Attributes:
        path: of the module in the network, or what a layer without variables is called: "layer1_0/conv1".
        kind: "convolution", "fully connected", "max pool", "average pool", "sum pool", "global average pool", "adaptive
            average pool", "local response norm", "batch norm"; of another module that has parameters, its class.
        output: the shape without the batch: (H, W, C), or (D,).
        kernel, stride: (height, width) in pixels, None where there is no window.
        padding: ((top, bottom), (left, right)) in pixels; likewise.
        size_formula: the output's height from the input's: "floor((227 + 2*0 - 11)/4) + 1 = 55", or "".
        parameters: of this layer alone.
        macs: multiply-adds of convolutions and fully-connected layers for one image; biases don't count.
        receptive_field: side in pixels of the square of the image, padding included, that one output sees; None where
            it is the whole image.
        jump: pixels of the image from the centre of one output's receptive field to that of the next; likewise.
        training_only: the logits don't depend on it (auxiliary heads).
    """

    path: str
    kind: str
    output: tuple[int, ...] = ()
    kernel: tuple[int, int] | None = None
    stride: tuple[int, int] | None = None
    padding: tuple[tuple[int, int], tuple[int, int]] | None = None
    size_formula: str = ""
    parameters: int = 0
    macs: int = 0
    receptive_field: int | None = None
    jump: int | None = None
    training_only: bool = True


@dataclasses.dataclass(frozen=True)
class LayerTable:
    """A network at one input size.

    Attributes:
        input: (H, W, C).
        num_classes: the number of logits.
        layers: in the order of computation.
        parameters: of all layers, those that only training uses included.
        macs: of one image in evaluation.
        training_bytes_per_image: activations that the backward pass reads, each once: what enters convolutions,
            fully-connected layers, normalisations and max pools, in the type that the network computes in.
        inference_bytes_per_image: the most activations alive at one time.
    """

    input: tuple[int, ...]
    num_classes: int
    layers: tuple[Layer, ...]
    parameters: int
    macs: int
    training_bytes_per_image: int
    inference_bytes_per_image: int

    def training_bytes(self, batch_size: int, optimizer_slots: int = 1) -> int:
        """Estimated memory of training: weights, gradients, optimizer state and the activations of a batch.

        A backend needs more for its own work: with XLA on a GPU, the workspace of the convolutions above all.

        Args:
            batch_size: images on one device.
            optimizer_slots: copies of the weights that the optimizer keeps: SGD none, momentum one, Adam two.
        """
        return self.parameters * _FLOAT32 * (2 + optimizer_slots) + batch_size * self.training_bytes_per_image

    def inference_bytes(self, batch_size: int) -> int:
        """Estimated memory of evaluation: weights and the activations of a batch."""
        return self.parameters * _FLOAT32 + batch_size * self.inference_bytes_per_image


def layer_table(model: nn.Module, image_shape: Sequence[int]) -> LayerTable:
    """The table of a network that maps float[N, H, W, C] to logits [N, K].

    Loops and conditionals (`lax.scan`, `lax.cond`) count as one operation each, whatever they compute inside.

    Args:
        model: from `create_model`, or any Flax module that can be called with images alone.
        image_shape: (H, W, C).

    Raises:
        ValueError: the images are too small for a layer, which the message names with its arithmetic, a field of the
            model isn't one of its allowed values, or the model has a transposed convolution.
    """
    classes: dict[tuple[str, ...], str] = {}

    def look(call, args, kwargs, context):
        module = context.module
        classes[module.path] = type(module).__name__
        # No initial value is needed, and to trace how they are drawn takes as long as all the rest.
        for field in dataclasses.fields(module):
            if field.name.endswith("_init") and callable(getattr(module, field.name)):
                object.__setattr__(module, field.name, _zeros)
        return call(*args, **kwargs)

    key = jax.eval_shape(jax.random.key, 0)  # a real one would start the backend, which takes a GPU's memory
    image = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)
    with nn.intercept_methods(look):
        init = jax.make_jaxpr(_with_short_norms(model).init_with_output, return_shape=True)
        closed, (logits, variables) = init(key, image)
    params = {path: leaf.size for path, leaf in traverse_util.flatten_dict(variables.get("params", {})).items()}

    trace = Trace(closed.jaxpr)
    rows = _rows(trace, params, classes)
    return LayerTable(
        input=tuple(image_shape),
        num_classes=logits.shape[-1],
        layers=tuple(rows),
        parameters=sum(params.values()),
        macs=sum(row.macs for row in rows if not row.training_only),
        training_bytes_per_image=_saved_bytes(trace, [path for path, name in classes.items() if "Norm" in name]),
        inference_bytes_per_image=_peak_bytes(trace),
    )


# -- shortcuts through what says nothing about shapes


def _zeros(key: jax.Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> jax.Array:
    return jax.lax.full(shape, 0, dtype)


class BatchNorm(nn.Module):
    """Flax's module of this name, with the same parameters and an eighth of its trace. (Its class names the row.)"""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        features = x.shape[-1:]
        scale = self.param("scale", _zeros, features) + self.param("bias", _zeros, features)
        return jax.lax.mul(x, jnp.broadcast_to(scale.astype(x.dtype), x.shape))


def _with_short_norms(model: nn.Module) -> nn.Module:
    """The model with the module above, where its normalisation can be chosen and is Flax's with both parameters."""
    norm = getattr(model, "norm", None)
    settings = norm.keywords if isinstance(norm, functools.partial) else {}
    module = norm.func if isinstance(norm, functools.partial) else norm
    if module is not nn.BatchNorm or settings.keys() & {"use_scale", "use_bias", "axis"}:
        return model
    return model.clone(norm=lambda *, name, **_: BatchNorm(name=name))


# -- what the trace says


def _rows(trace: Trace, params: dict[tuple[str, ...], int], classes: dict[tuple[str, ...], str]) -> list[Layer]:
    """A row for each module that has parameters itself, and for each pooling or normalisation without any."""
    owners: dict[tuple[str, ...], int] = {}
    for path, size in params.items():
        owners[path[:-1]] = owners.get(path[:-1], 0) + size
    rows: dict[tuple[str, ...], Layer] = {}
    sums: dict[int, Layer] = {}  # rows of sum pools, by the number of their result
    views = views_of(trace)
    for step, needed in zip(trace.steps, needed_steps(trace), strict=True):
        scope = step.scope[1:]  # without the network's own name
        parts = (scope[:length] for length in range(len(scope), -1, -1))
        owner = next((part for part in parts if part in owners), None)
        path = scope if owner is None else owner
        if owner is None and scope in classes:  # in a module of parts, with no name of its own
            if step.name in ("div", "mul") and step.inputs[0] in sums:
                sums[step.inputs[0]].kind = "average pool"
            if not step.kind:
                continue
            name = re.sub("^(max|sum) ", "", step.kind)  # a sum may turn out to be an average
            number = 1 + sum(other[:-1] == scope and other[-1].startswith(name) for other in rows)
            path = (*scope, f"{name} {number}")
        elif owner is None and not step.kind and scope not in rows:
            continue
        if path not in rows:
            kind = classes.get(path, "").replace("BatchNorm", "batch norm")
            rows[path] = Layer("/".join(path), kind, parameters=owners.get(path, 0))
        row = rows[path]
        row.output, view = trace.shapes[step.outputs[0]][1:], views[step.outputs[0]]
        row.receptive_field = None if view.whole else max(view.extent)
        row.jump = None if view.whole else max(view.jump)
        row.training_only = row.training_only and not needed
        if step.kind:
            row.kind = step.kind
            row.macs += _macs(step, trace.shapes[step.outputs[0]], row.path)
        elif row.kind == "sum pool" and step.name in ("div", "mul") and owner is None:
            row.kind = "average pool"  # the sum of the windows, divided
        if row.kind == "sum pool":
            sums[step.outputs[0]] = row
        if (window := step.spatial_window) is not None:
            row.kernel, row.stride, row.padding = window
            axes = (step.shapes[0][HEIGHT], *(pair[0] for pair in window), row.output[0])
            row.size_formula = size_formula(*axes)
    return list(rows.values())


def _macs(step: Step, output: tuple[int, ...], path: str) -> int:
    if step.name == "conv_general_dilated":
        if max(step.parameters["lhs_dilation"]) > 1:
            raise ValueError(f"{path}: a layer table has no arithmetic for transposed convolutions")
        kernel = step.shapes[1]
        return math.prod(output) * math.prod(kernel) // kernel[step.parameters["dimension_numbers"].rhs_spec[0]]
    if step.name == "dot_general":
        (contracted, _), _ = step.parameters["dimension_numbers"]
        return math.prod(output) * math.prod(step.shapes[0][axis] for axis in contracted)
    return 0


def size_formula(size: int, kernel: int, stride: int, padding: tuple[int, int], output: int) -> str:
    """The size of a convolution's or pooling's output along one axis, with its numbers filled in.

    Args:
        size: of the input, n.
        kernel, stride: k, s.
        padding: before and after, written 2*p where they are equal. That there is more after than before is what
            rounding the division up (ceil mode) amounts to.
        output: the result.
    """
    before, after = padding
    pad = f"2*{before}" if before == after else f"{before} + {after}"
    return f"floor(({size} + {pad} - {kernel})/{stride}) + 1 = {output}"


def _saved_bytes(trace: Trace, norms: Collection[tuple[str, ...]]) -> int:
    """What the backward pass reads: the operands of all that isn't linear or has a kernel or a scale, each once.

    Of a region that it computes again, it reads what enters the region, and the results of its convolutions, which this
    package's policy keeps.

    Args:
        norms: paths of the normalisations.
    """
    saved: set[int] = set()
    regions: dict[int, int | None] = {0: None}  # in which one a value was computed
    norms = set(norms)
    for step in trace.steps:
        regions.update(dict.fromkeys(step.outputs, step.remat))
        learns = step.kind in ("convolution", "fully connected")
        if step.remat is not None:
            saved.update(number for number in step.inputs if regions[number] != step.remat)
            saved.update(step.outputs if learns else ())
        elif learns or step.kind in ("max pool", "local response norm") or step.scope[1:] in norms:
            saved.update(step.inputs)
            norms.discard(step.scope[1:])  # a normalisation's first operation has read its operand
    return sum(trace.sizes[number] for number in saved)


def _peak_bytes(trace: Trace) -> int:
    """The most bytes alive at one time, if a value is freed after its last use and an elementwise operation writes over
    an operand that isn't used again."""
    last = {}
    steps = [step for step, needed in zip(trace.steps, needed_steps(trace), strict=True) if needed]
    for index, step in enumerate(steps):
        last.update(dict.fromkeys(step.inputs, index))
    alive, peak = {0}, trace.sizes[0]
    for index, step in enumerate(steps):
        ending = {number for number in step.inputs if last[number] == index}
        elementwise = not step.kind and len({trace.shapes[n] for n in (*step.inputs, *step.outputs)}) == 1
        if elementwise:
            alive -= ending
        alive.update(step.outputs)
        peak = max(peak, sum(trace.sizes[number] for number in alive))
        alive -= ending
    return peak
