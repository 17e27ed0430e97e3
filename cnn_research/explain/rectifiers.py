"""Another gradient for the rectifiers of a function, which stays as it is.

    jax.grad(replace(score, guided))(images)

The function is traced, and its trace is run with max(x, 0) under a rule of our own, wherever it stands: in `nn.relu`
and `nn.relu6`, as jnp.maximum(x, 0), jnp.where(x > 0, x, 0) or x * (x > 0), inside `jax.jit`, `nn.remat` and loops.
Nothing is patched, so it may be compiled and differentiated like any other function.
"""

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

Rule = Callable[[jax.Array], jax.Array]  # computes max(x, 0), and has its own gradient


@jax.custom_vjp
def guided(x: jax.Array) -> jax.Array:
    """max(x, 0), back through which goes what is positive, where x is: Springenberg et al. 2015, section 3.4."""
    return jnp.maximum(x, 0)


guided.defvjp(lambda x: (guided(x), x > 0), lambda fired, g: (jnp.where(fired, jnp.maximum(g, 0), 0),))


@jax.custom_vjp
def deconvolved(x: jax.Array) -> jax.Array:
    """max(x, 0), back through which goes what is positive, wherever: Zeiler & Fergus 2014, section 2.1."""
    return jnp.maximum(x, 0)


deconvolved.defvjp(lambda x: (deconvolved(x), None), lambda _, g: (jnp.maximum(g, 0),))


def replace(function: Callable[..., Any], rule: Rule) -> Callable[..., Any]:
    """The same function of arrays, with the rule's gradient for its rectifiers.

    What Flax's normalisations compute inside stays out of it: they keep a variance above 0 by a maximum too.

    Args:
        function: of (trees of) arrays -> a tree of arrays.
        rule: `guided`, `deconvolved` or another function that computes max(x, 0).
    """

    def replaced(*args: Any) -> Any:
        with nn.intercept_methods(_mark_normalisation):
            closed, shapes = jax.make_jaxpr(function, return_shape=True)(*args)
        values = [_Value(leaf) for leaf in jax.tree.leaves(args)]
        results = _run(closed, values, rule)
        return jax.tree.unflatten(jax.tree.structure(shapes), [result.array for result in results])

    return replaced


_NORMALISATIONS = (nn.BatchNorm, nn.LayerNorm, nn.GroupNorm, nn.InstanceNorm, nn.RMSNorm)
_MARK = "(normalisation)"  # a name of operations that no module has
_CALLS = frozenset({"jit", "pjit", "closed_call", "core_call", "remat", "remat2", "checkpoint"})
_OWN_GRADIENT = frozenset({"custom_jvp_call", "custom_vjp_call", "custom_vjp_call_jaxpr"})
# What a rectifier consists of, capped or not. Others have a maximum with 0 as a part, such as softplus.
_PARTS = frozenset({"max", "min", "gt", "ge", "select_n", "mul", "convert_element_type", "broadcast_in_dim"})


def _mark_normalisation(call: Callable, args: Any, kwargs: Any, context: Any) -> Any:
    if isinstance(context.module, _NORMALISATIONS):
        with jax.named_scope(_MARK):
            return call(*args, **kwargs)
    return call(*args, **kwargs)


@dataclasses.dataclass(frozen=True)
class _Value:
    """An array, and what is known of it: that it is 0, or that it says where another one is positive."""

    array: Any
    zero: bool = False
    positive: Any = None


def _run(closed: Any, operands: Sequence[_Value], rule: Rule) -> list[_Value]:
    """Computes a closed jaxpr, with the rule for its rectifiers."""
    jaxpr = closed.jaxpr
    known = dict(zip(jaxpr.constvars, map(_Value, closed.consts), strict=True))
    known.update(zip(jaxpr.invars, operands, strict=True))

    def look_up(atom: Any) -> _Value:
        if hasattr(atom, "val"):  # a literal
            return _Value(atom.val, zero=bool(np.all(np.asarray(atom.val) == 0)))
        return known[atom]

    for equation in jaxpr.eqns:
        known.update(zip(equation.outvars, _step(equation, [look_up(a) for a in equation.invars], rule), strict=True))
    return [look_up(atom) for atom in jaxpr.outvars]


def _step(equation: Any, operands: list[_Value], rule: Rule) -> list[_Value]:
    name, parameters = equation.primitive.name, equation.params
    bound = {}
    if _MARK not in str(equation.source_info.name_stack):
        rectified = _rectified(name, operands)
        if rectified is not None:
            return [_Value(rule(rectified))]
        inner = {key: value for key, value in parameters.items() if _holds_jaxprs(value)}
        if name in _CALLS:
            return _run(_closed(next(iter(inner.values()))), operands, rule)
        if name in _OWN_GRADIENT:
            body = _closed(next(iter(inner.values())))
            if _primitives(body) <= _PARTS and _rectifies(body):
                return _run(body, operands, rule)
        else:  # loops and conditionals
            bound = {key: _rewritten(value, rule) for key, value in inner.items()}
    binding = equation.primitive.get_bind_params(parameters)
    # JAX 0.7 gives the functions of a custom derivative apart, later ones among the parameters.
    functions, settings = binding if isinstance(binding, tuple) else ((), binding)
    arrays = equation.primitive.bind(*functions, *(value.array for value in operands), **(settings | bound))
    arrays = arrays if equation.primitive.multiple_results else [arrays]
    if name in ("convert_element_type", "broadcast_in_dim"):
        return [dataclasses.replace(operands[0], array=arrays[0])]
    if name in ("gt", "ge") and operands[1].zero:
        return [_Value(arrays[0], positive=operands[0].array)]
    return [_Value(array) for array in arrays]


def _rectified(name: str, operands: list[_Value]) -> Any:
    """The x of an operation that is max(x, 0), or None."""
    if name == "max":
        for one, other in (operands, operands[::-1]):
            if other.zero and not one.zero:
                return one.array
    if name == "mul":
        for one, other in (operands, operands[::-1]):
            if other.positive is not None and other.positive is one.array:
                return one.array
    if name == "select_n" and len(operands) == 3:
        which, otherwise, then = operands
        if which.positive is not None and which.positive is then.array and otherwise.zero:
            return then.array
    return None


def _rewritten(value: Any, rule: Rule) -> Any:
    """The jaxpr or jaxprs of a loop or a conditional, with the rule."""
    if isinstance(value, (tuple, list)):
        return type(value)(_rewritten(each, rule) for each in value)
    if not _rectifies(value):
        return value
    arguments = [jax.ShapeDtypeStruct(a.shape, a.dtype, weak_type=a.weak_type) for a in value.in_avals]
    return jax.make_jaxpr(lambda *arrays: [v.array for v in _run(value, [*map(_Value, arrays)], rule)])(*arguments)


def _rectifies(closed: Any) -> bool:
    """Whether a closed jaxpr has a rectifier."""
    found = []

    def note(x: jax.Array) -> jax.Array:
        found.append(True)
        return jnp.maximum(x, 0)

    arguments = [jax.ShapeDtypeStruct(a.shape, a.dtype) for a in closed.in_avals]
    jax.eval_shape(lambda *arrays: [v.array for v in _run(closed, [*map(_Value, arrays)], note)], *arguments)
    return bool(found)


def _primitives(closed: Any) -> set[str]:
    """The operations of a closed jaxpr and of what it calls, by name."""
    names = set()
    for equation in closed.jaxpr.eqns:
        inner = [body for value in equation.params.values() for body in _jaxprs(value)]
        names.update(*(_primitives(_closed(body)) for body in inner))
        if equation.primitive.name not in _CALLS:
            names.add(equation.primitive.name)
    return names


def _jaxprs(value: Any) -> Iterable[Any]:
    values = value if isinstance(value, (tuple, list)) else (value,)
    return [each for each in values if hasattr(each, "eqns")]


def _holds_jaxprs(value: Any) -> bool:
    return bool(_jaxprs(value))


def _closed(jaxpr: Any) -> Any:
    """remat's jaxpr has no constants and isn't closed."""
    return jaxpr if hasattr(jaxpr, "consts") else jax.extend.core.ClosedJaxpr(jaxpr, ())
