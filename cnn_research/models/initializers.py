"""Initial values of parameters: their distributions, and how a whole network's are drawn at once.

A `Scaled` initializer is one of Flax's kind. What sets it apart is that `init` knows what it would compute: compiling a
chain of random numbers for the shape of every parameter takes longer than all the rest of a deep network's start, so
the numbers of many parameters are drawn by one program, and cut and scaled on the host. They are those of Flax's own
`init`; XLA may round the two programs differently in the last bit.
"""

import dataclasses
import functools
import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

# Distributions without a scale: (key, shape) -> float32.
_STANDARD: Mapping[str, Callable[..., jax.Array]] = {
    "normal": jax.random.normal,
    "truncated_normal": lambda key, shape: jax.random.truncated_normal(key, -2, 2, shape),
    "uniform": lambda key, shape: jax.random.uniform(key, shape, minval=-1),
}

_TRUNCATED_STDDEV = 0.87962566103423978  # of the normal distribution between -2 and 2

_MANY = 2**18  # numbers: from here on to draw more than needed costs more than another program


@dataclasses.dataclass(frozen=True)
class Scaled:
    """Numbers of a standard distribution times a factor.

    Attributes:
        distribution: "normal", "truncated_normal" (between -2 and 2) or "uniform" (between -1 and 1).
        factor: of a shape.
    """

    distribution: str
    factor: Callable[[Sequence[int]], np.float32]

    def __call__(self, key: jax.Array, shape: Sequence[int], dtype: Any = jnp.float32) -> jax.Array:
        """Draws one array, as Flax asks an initializer to."""
        return jnp.asarray(_STANDARD[self.distribution](key, tuple(shape)) * self.factor(shape), dtype)


def normal(stddev: float) -> Scaled:
    """N(0, stddev^2)."""
    return Scaled("normal", lambda shape: np.float32(stddev))


def variance_scaling(scale: float, mode: str, distribution: str) -> Scaled:
    """Kernels [..., inputs, outputs] of the variance scale / n: He et al. 2015, Glorot & Bengio 2010.

    Args:
        scale: see above.
        mode: what n is: "fan_in", the weights of a unit, or "fan_avg", the mean of them and of those that an input has.
        distribution: "truncated_normal" or "uniform".
    """

    def factor(shape: Sequence[int]) -> np.float32:
        *window, inputs, outputs = shape
        fan = {"fan_in": inputs, "fan_avg": (inputs + outputs) / 2}[mode] * math.prod(window)
        variance = np.float32(scale / fan)
        if distribution == "uniform":
            return np.sqrt(np.float32(3) * variance)
        return np.sqrt(variance) / np.float32(_TRUNCATED_STDDEV)

    return Scaled(distribution, factor)


def init(model: nn.Module, key: jax.Array, image_shape: Sequence[int]) -> dict[str, Any]:
    """Computes `model.init(key, images)`, up to its last bits, without a forward pass.

    Args:
        model: of images float[N, H, W, C].
        key: typed PRNG key.
        image_shape: (H, W, C).

    Raises:
        ValueError: of the model.
    """

    def variables(key: jax.Array) -> Any:
        return model.init(key, jnp.zeros((1, *image_shape)))

    draws: list[_Draw | None] = []  # of each leaf, where it is known

    def with_keys(key: jax.Array) -> Any:
        waiting: list[_Draw] = []
        with nn.intercept_methods(functools.partial(_put_off, waiting)):
            tree = variables(key)
        owner = {id(draw.stand_in): draw for draw in waiting}
        draws[:] = [owner.get(id(leaf)) for leaf in jax.tree.leaves(tree)]
        return tree, [draw.key for draw in draws if draw]

    closed, (shapes, _) = jax.make_jaxpr(with_keys, return_shape=True)(key)
    structure, count = jax.tree.structure(shapes), len(draws)
    made_by = {var: equation for equation in closed.jaxpr.eqns for var in equation.outvars}
    key_vars = iter(closed.jaxpr.outvars[count:])

    leaves: dict[int, Any] = {}
    groups: dict[tuple[str, int], dict[int, jax.Array]] = defaultdict(dict)  # of one program: leaves and their keys
    for number, (var, draw) in enumerate(zip(closed.jaxpr.outvars[:count], draws, strict=True)):
        if draw is None:
            value = _constant(var, made_by)
            if value is not None:
                leaves[number] = value
        elif (numbers := _folds(next(key_vars), closed.jaxpr.invars[0], made_by)) is not None:
            size = math.prod(draw.shape)
            if size < _MANY:  # a number depends on the key and its place, not on how many follow
                size = 1 << (size - 1).bit_length()
            own_key = functools.reduce(jax.random.fold_in, numbers, key)
            groups[draw.initializer.distribution, size][number] = own_key
    for (distribution, size), keys in groups.items():
        for number, row in zip(keys, np.asarray(_draw(distribution, size, jnp.stack([*keys.values()]))), strict=True):
            draw = draws[number]
            leaves[number] = row[: math.prod(draw.shape)].reshape(draw.shape) * draw.initializer.factor(draw.shape)
    if len(leaves) < count:  # other initializers, or some within a transformation, such as nn.remat
        others = [number for number in range(count) if number not in leaves]
        values = _compiled(lambda key: [jax.tree.leaves(variables(key))[number] for number in others])(key)
        leaves.update(zip(others, values, strict=True))
    return jax.device_put(jax.tree.unflatten(structure, [leaves[number] for number in range(count)]))


class _Draw(NamedTuple):
    """What an initializer was asked for, and what it gave in its trace instead."""

    initializer: Scaled
    key: jax.Array
    shape: tuple[int, ...]
    stand_in: jax.Array


def _put_off(waiting: list[_Draw], call: Callable, args: Any, kwargs: Any, context: Any) -> Any:
    """An interceptor of Flax's methods, in which `Scaled` initializers say only what they would draw."""

    def stand_in(initializer: Scaled, key: jax.Array, shape: Sequence[int], dtype: Any = jnp.float32) -> jax.Array:
        if dtype != jnp.float32:
            return initializer(key, shape, dtype)
        waiting.append(_Draw(initializer, key, tuple(shape), jax.lax.full(shape, 0, dtype)))
        return waiting[-1].stand_in

    for field in dataclasses.fields(context.module):
        value = getattr(context.module, field.name)
        if isinstance(value, Scaled):
            object.__setattr__(context.module, field.name, functools.partial(stand_in, value))
    return call(*args, **kwargs)


def _constant(var: Any, made_by: Mapping[Any, Any]) -> np.ndarray | None:
    """The value of an array that is one known number throughout: zeros, ones."""
    if hasattr(var, "val"):  # a literal
        return np.asarray(var.val, var.aval.dtype)
    equation = made_by.get(var)
    if equation is None or equation.primitive.name != "broadcast_in_dim" or not hasattr(equation.invars[0], "val"):
        return None
    return np.full(var.aval.shape, equation.invars[0].val, var.aval.dtype)


def _folds(var: Any, root: Any, made_by: Mapping[Any, Any]) -> tuple[int, ...] | None:
    """The numbers that were folded into a root key, one after the other, to get another key."""
    if var is root:
        return ()
    equation = None if hasattr(var, "val") else made_by.get(var)
    if equation is None or equation.primitive.name != "random_fold_in" or not hasattr(equation.invars[1], "val"):
        return None
    before = _folds(equation.invars[0], root, made_by)
    return None if before is None else (*before, int(equation.invars[1].val))


@functools.partial(jax.jit, static_argnums=(0, 1))
def _draw(distribution: str, size: int, keys: jax.Array) -> jax.Array:
    return jax.vmap(lambda key: _STANDARD[distribution](key, (size,)))(keys)


def _compiled(function: Callable) -> Callable:
    # XLA:CPU at its usual level takes 3 to 10 times longer to compile this, a chain of random bits per parameter (ten
    # convolutions: 14 s against 1.5 s of CPU time) for the same values. Other backends keep their default: untested
    # there.
    options = {"xla_backend_optimization_level": 1} if jax.default_backend() == "cpu" else None
    return jax.jit(function, compiler_options=options)
