"""A network's trace made flat: every operation on something that depends on the image, one after the other, and what
each result sees of the image. `layer_table` reads it."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

HEIGHT, WIDTH = 1, 2  # axes of [N, H, W, C]


@dataclasses.dataclass(frozen=True)
class Step:
    """One operation.

    Attributes:
        name, parameters: of the primitive.
        shapes: of all operands.
        inputs: numbers of the operands that depend on the image.
        outputs: numbers of the results.
        scope: the names around it, from the outside in.
        remat: the number of the region that the backward pass computes again, or None.
    """

    name: str
    parameters: dict[str, Any]
    shapes: tuple[tuple[int, ...], ...]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    scope: tuple[str, ...]
    remat: int | None

    @property
    def spatial_window(self) -> tuple[tuple[int, int], tuple[int, int], tuple[tuple[int, int], ...]] | None:
        """(kernel, stride, padding), each for height and width, of what slides over the image."""
        p = self.parameters
        if self.name == "conv_general_dilated":
            _, _, *axes = p["dimension_numbers"].rhs_spec
            dilated = zip(axes, p["rhs_dilation"], strict=True)
            kernel = tuple((self.shapes[1][axis] - 1) * dilation + 1 for axis, dilation in dilated)
            return kernel, tuple(p["window_strides"]), tuple(p["padding"])
        if self.name.startswith("reduce_window") and len(self.shapes[0]) == 4:
            kernel = tuple(p["window_dimensions"][HEIGHT : WIDTH + 1])
            strides, padding = p["window_strides"], p["padding"]
            if kernel != (1, 1):
                return kernel, tuple(strides[HEIGHT : WIDTH + 1]), tuple(padding[HEIGHT : WIDTH + 1])
        return None

    @property
    def kind(self) -> str:
        """What a layer is called that does this, or ""."""
        if self.name == "conv_general_dilated":
            return "convolution"
        if self.name == "dot_general" and len(self.inputs) == 1:
            return "fully connected"
        if self.name == "reduce_window_max":
            return "max pool"
        if self.name == "reduce_window_sum":
            return "sum pool" if self.spatial_window else "local response norm"
        if self.name == "reduce_sum" and len(self.shapes[0]) == 4:
            axes = {HEIGHT, WIDTH} & set(self.parameters["axes"])
            return {2: "global average pool", 1: "adaptive average pool", 0: ""}[len(axes)]
        return ""


class Trace:
    """A jaxpr made flat.

    Attributes:
        steps: in order.
        shapes, sizes: of each value, by its number: the shape, and the size in bytes. Value 0 is the image.
        result: the number of the jaxpr's first result, the logits.
    """

    def __init__(self, jaxpr: Any):
        self.steps: list[Step] = []
        self.shapes: list[tuple[int, ...]] = []
        self.sizes: list[int] = []
        self._regions = 0
        *others, image = jaxpr.invars
        self.result = self._run(jaxpr, [None] * len(others) + [self._number(image.aval)], (), None)[0]

    def _number(self, aval: Any) -> int:
        self.shapes.append(tuple(aval.shape))
        self.sizes.append(math.prod(aval.shape) * getattr(aval.dtype, "itemsize", 0))
        return len(self.shapes) - 1

    def _run(self, jaxpr: Any, given: Sequence[int | None], scope: tuple[str, ...], remat: int | None) -> list:
        """Numbers, or None for what doesn't depend on the image: of the operands -> of the results."""
        numbers = dict(zip(jaxpr.invars, given, strict=True))

        def look_up(atom: Any) -> int | None:
            return None if hasattr(atom, "val") else numbers.get(atom)  # a literal has a value and no hash

        for equation in jaxpr.eqns:
            operands = [look_up(atom) for atom in equation.invars]
            if all(number is None for number in operands):
                continue
            names = [name for name in str(equation.source_info.name_stack).split("/") if name]
            # Flax writes the methods that a module calls on itself as "Class.method".
            here = scope + tuple(name for name in names if "." not in name)
            inner = _inner_jaxpr(equation)
            if inner is None:
                results = [self._number(var.aval) for var in equation.outvars]
                inputs = tuple(number for number in operands if number is not None)
                shapes = tuple(tuple(atom.aval.shape) for atom in equation.invars)
                self.steps.append(
                    Step(equation.primitive.name, equation.params, shapes, inputs, tuple(results), here, remat)
                )
            else:
                region = remat
                if remat is None and equation.primitive.name in ("remat2", "remat", "checkpoint"):
                    self._regions += 1
                    region = self._regions
                results = self._run(inner, operands, here, region)
            numbers.update(zip(equation.outvars, results, strict=True))
        return [look_up(atom) for atom in jaxpr.outvars]


def _inner_jaxpr(equation: Any) -> Any:
    """The jaxpr of a call (jit, remat, custom derivatives), or None for an operation, a loop or a conditional."""
    for parameter in ("jaxpr", "call_jaxpr", "fun_jaxpr"):
        inner = equation.params.get(parameter)
        inner = getattr(inner, "jaxpr", inner)
        if inner is not None and len(inner.invars) == len(equation.invars) and equation.primitive.name != "scan":
            return inner
    return None


@dataclasses.dataclass(frozen=True)
class View:
    """What one element of an array sees of the image: for height and width, in pixels, or all of it.

    Attributes:
        extent: of the rectangle that it sees, padding included.
        jump: from the rectangle of one element to that of the next.
        start: of the first element's rectangle; negative in the padding.
        whole: it sees all of the image, and the others say nothing.
    """

    extent: tuple[int, int] = (1, 1)
    jump: tuple[int, int] = (1, 1)
    start: tuple[int, int] = (0, 0)
    whole: bool = False


def views_of(trace: Trace) -> list[View]:
    """Of each value. Of several operands, as in a sum of branches, the result sees what any of them sees."""
    views = [View()] * len(trace.shapes)
    for step in trace.steps:
        given = [views[number] for number in step.inputs]
        start = [min(view.start[axis] for view in given) for axis in (0, 1)]
        extent = [max(view.start[axis] + view.extent[axis] for view in given) - start[axis] for axis in (0, 1)]
        jump = [max(view.jump[axis] for view in given) for axis in (0, 1)]
        if (window := step.spatial_window) is not None:
            for axis, (kernel, stride, (before, _)) in enumerate(zip(*window, strict=True)):
                start[axis] -= before * jump[axis]
                extent[axis] += (kernel - 1) * jump[axis]
                jump[axis] *= stride
        elif step.name in ("slice", "pad") and len(step.shapes[0]) == 4:
            for axis, (first, stride) in enumerate(_first_and_stride(step)[HEIGHT : WIDTH + 1]):
                start[axis] += first * jump[axis]
                jump[axis] *= stride
        for number in step.outputs:
            whole = any(view.whole for view in given) or _joins_positions(step, trace.shapes[number])
            views[number] = View(tuple(extent), tuple(jump), tuple(start), whole)
    return views


def _first_and_stride(step: Step) -> list[tuple[int, int]]:
    """Of each axis of a slice or a padding: where in the operand the result begins, and its elements' distance."""
    if step.name == "pad":
        return [(-low, 1) for low, _, _ in step.parameters["padding_config"]]
    starts = step.parameters["start_indices"]
    return list(zip(starts, step.parameters["strides"] or [1] * len(starts), strict=True))


def _joins_positions(step: Step, output: tuple[int, ...]) -> bool:
    """Whether an element of the result has seen all positions of an operand: it is flattened or averaged."""
    if step.kind.endswith(" average pool"):  # global or adaptive
        return True
    if max(map(len, step.shapes)) == len(output) == 4 and step.name != "reshape":
        return False
    # What keeps height and width where they are, such as the mean over the channels, joins nothing.
    return any(len(shape) > 2 and shape[1:3] != output[1:3] for shape in step.shapes) or len(output) < 3


def needed_steps(trace: Trace) -> list[bool]:
    """Of each step, whether the logits depend on it."""
    numbers, needed = {trace.result}, []
    for step in reversed(trace.steps):
        needed.append(not numbers.isdisjoint(step.outputs))
        if needed[-1]:
            numbers.update(step.inputs)
    return needed[::-1]
