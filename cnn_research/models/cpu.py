"""The same networks, faster on a CPU.

    logits = accelerate(model.apply)(variables, images)

XLA compiles the forward pass of most convolutions well for a CPU, and much of the rest badly: gradients of
convolutions, max pooling's gradient, convolutions with few channels or few positions, what reads concatenations, batch
normalisation. `accelerate` traces a function and runs its trace with the forms of `cpu_forms`, which compute the same.
The networks know nothing of it; for GPUs and TPUs they stay as they are. What each form is worth stands in
docs/performance.md.
"""

import contextlib
import ctypes
import functools
import math
import sys
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax import lax

from cnn_research.models import cpu_forms
from cnn_research.models.cpu_forms import Pads


def accelerate(function: Callable[..., Any]) -> Callable[..., Any]:
    """The same function of arrays, also for backward differentiation, with the forms of `cpu_forms` wherever they fit.

    What isn't known here, such as grouped or dilated convolutions and loops, is computed as it was written.

    Args:
        function: of (trees of) arrays -> a tree of arrays.
    """

    def accelerated(*args: Any) -> Any:
        with nn.intercept_methods(_replace_batch_norm):
            closed, shapes = jax.make_jaxpr(function, return_shape=True)(*args)
        results = _run(closed.jaxpr, closed.consts, jax.tree.leaves(args))
        return jax.tree.unflatten(jax.tree.structure(shapes), map(_computed, results))

    return accelerated


class _Convolution:
    """A convolution, and what is done to each of its numbers, that waits to see whether max pooling follows.

    Everything that waits grows with its argument, so that it may as well come after the pooling.
    """

    def __init__(self, x: Any, kernel: Any, padding: Pads, then: tuple[Callable[[Any], Any], ...] = ()):
        self._parts = x, kernel, padding
        self._then = then
        self.features = kernel.shape[-1]

    def followed_by(self, function: Callable[[Any], Any]) -> "_Convolution":
        return _Convolution(*self._parts, (*self._then, function))

    @functools.cached_property
    def computed(self) -> Any:
        x, kernel, padding = self._parts
        return self._finish(cpu_forms.conv(x, kernel, (1, 1), padding))

    def pooled(self, pool: tuple[int, int]) -> Any:
        return self._finish(cpu_forms.conv_pool(*self._parts, pool))

    def _finish(self, y: Any) -> Any:
        return functools.reduce(lambda y, function: function(y), self._then, y)


def _computed(value: Any) -> Any:
    return value.computed if isinstance(value, _Convolution) else value


def _run(jaxpr: Any, consts: Sequence[Any], operands: Sequence[Any]) -> list[Any]:
    known = dict(zip(jaxpr.constvars, consts, strict=True))
    known.update(zip(jaxpr.invars, operands, strict=True))

    def look_up(atom: Any) -> Any:
        return atom.val if hasattr(atom, "val") else known[atom]

    for equation in jaxpr.eqns:
        with _scope(equation):
            results = _step(equation, [look_up(atom) for atom in equation.invars])
        known.update(zip(equation.outvars, results, strict=True))
    return [look_up(atom) for atom in jaxpr.outvars]


def _scope(equation: Any) -> Any:
    """The names of the layers around an operation, which profiles show."""
    names = str(equation.source_info.name_stack)
    return jax.named_scope(names) if names else contextlib.nullcontext()


def _step(equation: Any, operands: list[Any]) -> list[Any]:
    name, parameters = equation.primitive.name, equation.params
    if name in ("jit", "pjit", "closed_call", "core_call"):
        inner = parameters.get("jaxpr", parameters.get("call_jaxpr"))
        return _run(getattr(inner, "jaxpr", inner), getattr(inner, "consts", ()), operands)
    if any(isinstance(value, _Convolution) for value in operands):
        result = _continue(equation, operands)
        if result is not None:
            return [result]
        operands = [_computed(value) for value in operands]
    if name == "conv_general_dilated" and _is_plain(equation):
        x, kernel, strides, padding = *operands, parameters["window_strides"], parameters["padding"]
        if strides == (1, 1) and _is_narrow(kernel):
            return [_Convolution(x, kernel, padding)]
        positions = cpu_forms.positions(x.shape, kernel.shape, strides, padding)
        if math.prod(kernel.shape[:2]) > 1 and 0 < max(positions) <= 2:
            return [cpu_forms.small_conv(x, kernel, strides, padding)]
        return [cpu_forms.conv(x, kernel, strides, padding)]
    if name == "reduce_window_max" and (window := _pooling(equation)):
        return [cpu_forms.max_pool(*operands, *window)]
    if name == "concatenate" and _is_of_images(equation):
        return [cpu_forms.concatenate(operands, parameters["dimension"])]
    if name in ("remat2", "remat", "checkpoint"):
        inner = functools.partial(_run, parameters["jaxpr"], ())
        again = jax.checkpoint(
            lambda *operands: [_computed(value) for value in inner(operands)],
            prevent_cse=parameters["prevent_cse"],
            policy=parameters["policy"],
        )
        return again(*operands)
    binding = equation.primitive.get_bind_params(parameters)
    # JAX 0.7 gives the functions of a custom derivative apart, later ones among the parameters.
    functions, settings = binding if isinstance(binding, tuple) else ((), binding)
    results = equation.primitive.bind(*functions, *operands, **settings)
    return results if equation.primitive.multiple_results else [results]


def _continue(equation: Any, operands: list[Any]) -> Any:
    """What becomes of a convolution that waits: it goes on waiting, or is pooled. None for all other operations."""
    name = equation.primitive.name
    waiting, *others = sorted(operands, key=lambda value: not isinstance(value, _Convolution))
    if any(isinstance(value, _Convolution) for value in others):  # a sum of two
        return None
    if name == "add" and np.shape(others[0]) in ((), (1, 1, 1, waiting.features)):
        return waiting.followed_by(lambda y: y + others[0])
    if not others and (function := _rising(equation)):
        return waiting.followed_by(function)
    if name == "reduce_window_max" and (window := _pooling(equation)):
        size, strides, padding = window
        if size == strides and not any(map(any, padding)):
            return waiting.pooled(size)
    return None


def _rising(equation: Any) -> Callable[[Any], Any] | None:
    """The activation that an operation is, where it is one that grows with its argument."""
    if equation.primitive.name == "custom_jvp_call":
        body, name = equation.params["call_jaxpr"].jaxpr.eqns, ""
        while len(body) == 1 and body[0].primitive.name in ("jit", "pjit"):
            body, name = body[0].params["jaxpr"].jaxpr.eqns, body[0].params["name"]  # others have other gradients
        if name == "relu" and len(body) == 1 and body[0].primitive.name == "max":
            return jax.nn.relu
        return None
    return {"tanh": lax.tanh, "logistic": lax.logistic}.get(equation.primitive.name)


def _is_plain(equation: Any) -> bool:
    parameters = equation.params
    dimensions = parameters["dimension_numbers"]
    return (
        dimensions.lhs_spec == dimensions.out_spec == (0, 3, 1, 2)
        and dimensions.rhs_spec == (3, 2, 0, 1)
        and parameters["feature_group_count"] == parameters["batch_group_count"] == 1
        and {*parameters["lhs_dilation"], *parameters["rhs_dilation"]} == {1}
        and equation.outvars[0].aval.dtype == equation.invars[0].aval.dtype == equation.invars[1].aval.dtype
    )


def _is_of_images(equation: Any) -> bool:
    array = equation.outvars[0].aval
    return array.ndim == 4 and jnp.issubdtype(array.dtype, jnp.floating)


def _is_narrow(kernel: Any) -> bool:
    *_, inputs, outputs = kernel.shape
    return inputs <= 8 and math.prod(kernel.shape[:2]) > 1


def _pooling(equation: Any) -> tuple[tuple[int, int], tuple[int, int], Pads] | None:
    """(window, strides, padding) of max pooling [N, H, W, C]; None for other windows."""
    p = equation.params
    window, strides, padding = p["window_dimensions"], p["window_strides"], p["padding"]
    ends = (0, -1)
    plain = {*p["base_dilation"], *p["window_dilation"]} == {1} and len(window) == 4
    plain = plain and jnp.issubdtype(equation.invars[0].aval.dtype, jnp.floating)
    if not plain or any(window[i] != 1 or strides[i] != 1 or any(padding[i]) for i in ends):
        return None
    return tuple(window[1:3]), tuple(strides[1:3]), tuple(padding[1:3])


def _replace_batch_norm(call: Callable[..., Any], args: Any, kwargs: Any, context: Any) -> Any:
    """An interceptor of Flax's methods: the usual batch normalisation in training becomes `cpu_forms.batch_norm`."""
    module = context.module
    usual = (
        type(module) is nn.BatchNorm
        and context.method_name == "__call__"
        and (module.use_running_average, module.axis, module.axis_index_groups) == (False, -1, None)
        and module.use_bias
        and module.use_fast_variance
        and len(args) == 1
        and not kwargs
        and {args[0].dtype, jnp.dtype(module.dtype or jnp.float32), jnp.dtype(module.param_dtype)}
        == {jnp.dtype("float32")}
    )
    if not usual or module.is_initializing():
        return call(*args, **kwargs)
    bias = module.get_variable("params", "bias")
    scale = module.get_variable("params", "scale") if module.use_scale else jnp.ones_like(bias)
    y, mean, variance = cpu_forms.batch_norm(args[0], scale, bias, module.epsilon, module.axis_name)
    for name, value in (("mean", mean), ("var", variance)):
        running = module.get_variable("batch_stats", name)
        module.put_variable("batch_stats", name, module.momentum * running + (1 - module.momentum) * value)
    return y


# -- memory


def keep_memory() -> None:
    """Lets this process keep the memory that it frees, for good, on Linux with glibc's allocator; else does nothing.

    To be called before JAX's backend starts: threads that have got arenas of their own stay with them.

    XLA asks for the memory of a step's intermediate results anew in each step. The allocator would get such large
    blocks from the system and give them back each time, and the system clears them page by page: a third of the time of
    ResNet-50's step. The price: what has been used once is never given back, and blocks of several sizes may take up
    to twice the memory.
    """
    set_option = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if set_option is None:
        return
    one_arena, no_mapped_blocks, never_trim = (-8, 1), (-4, 0), (-1, -1)  # M_ARENA_MAX, M_MMAP_MAX, M_TRIM_THRESHOLD
    for option, value in (one_arena, no_mapped_blocks, never_trim):
        set_option(option, value)
