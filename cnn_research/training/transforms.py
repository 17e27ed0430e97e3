"""Parts of optimizers that optax doesn't have, or not as their papers have them."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

Mask = Callable[[Any], Any]  # tree -> tree of bool


def scale_by_learning_rate(
    schedule: optax.Schedule, multipliers: Callable[[Any], Any]
) -> optax.GradientTransformationExtraArgs:
    """Turns a direction of ascent into an update: times minus the learning rate.

    Its update takes one more argument, `learning_rate_scale`: a float32 scalar, 1.0 by default, by which the learning
    rate of this update is multiplied.

    Args:
        schedule: number of updates made -> learning rate.
        multipliers: of the learning rate, tree -> tree of float.
    """

    def init(params: Any) -> optax.ScaleByScheduleState:
        return optax.ScaleByScheduleState(count=jnp.zeros((), jnp.int32))

    def update(updates, state, params=None, *, learning_rate_scale=1.0, **_):
        rate = -schedule(state.count) * learning_rate_scale
        updates = jax.tree.map(lambda u, m: jnp.asarray(rate * m, u.dtype) * u, updates, multipliers(updates))
        return updates, optax.ScaleByScheduleState(count=optax.safe_increment(state.count))

    return optax.GradientTransformationExtraArgs(init, update)


# The root mean square of the directions that `orthogonalise` gives, whatever the kernel's shape: about that of Adam's
# (Liu et al. 2025, "Muon is scalable for LLM training", section 2.2).
_MUON_SIZE = 0.2


def orthogonalise() -> optax.GradientTransformation:
    """Muon (Jordan et al. 2024): replaces a matrix U S V^T by about U V^T, times 0.2 sqrt(max(rows, columns)).

    By five Newton-Schulz steps, after which singular values that were not tiny are about 1. A convolution kernel
    [h, w, i, o] is the matrix [h w i, o]. The factor gives an update of any shape the root mean square 0.2, so that
    kernels and what is left to Adam can share one learning rate and one decay.
    """

    def one(kernel: jax.Array) -> jax.Array:
        matrix = kernel.reshape(-1, kernel.shape[-1])
        rows, columns = matrix.shape
        x = matrix.T if rows > columns else matrix  # the smaller of the two products
        x = x / (jnp.linalg.norm(x) + 1e-7)
        for _ in range(5):
            a = x @ x.T
            x = 3.4445 * x + (-4.7750 * a + 2.0315 * a @ a) @ x
        x = x.T if rows > columns else x
        return (_MUON_SIZE * max(rows, columns) ** 0.5 * x).reshape(kernel.shape)

    return optax.stateless(lambda updates, _: jax.tree.map(one, updates))


def renormalise() -> optax.GradientTransformation:
    """Scales parameters to the root mean square 0.2 of `orthogonalise` before an update is added to them.

    Jordan 2024, in the CIFAR-10 speed record with Muon. Kernels that would grow, as every step is at right angles to
    them where a normalisation follows, keep their size, and a learning rate its meaning. Comes after all that makes the
    update.
    """

    def one(update: jax.Array, weight: jax.Array) -> jax.Array:
        size = jnp.sqrt(jnp.mean(jnp.square(weight)))
        return update + weight * jnp.where(size > 0, _MUON_SIZE / size - 1, 0)

    return optax.stateless(lambda updates, params: jax.tree.map(one, updates, params))


def scale_by_lars(coefficient: float, weight_decay: float, adapted: Mask) -> optax.GradientTransformation:
    """LARS (You, Gitman & Ginsburg 2017, equation 6): (g + d w) c ||w|| / (||g|| + d ||w||) for each kernel w.

    optax.lars divides by ||g + d w||.

    Args:
        coefficient: c, the trust coefficient.
        weight_decay: d.
        adapted: which parameters; the gradient of others stays as it is, and they don't decay.
    """

    def one(gradient: jax.Array, weight: jax.Array, adapt: bool) -> jax.Array:
        if not adapt:
            return gradient
        size, slope = jnp.linalg.norm(weight), jnp.linalg.norm(gradient)
        ratio = coefficient * size / (slope + weight_decay * size)
        # Where either is zero, nothing can be said about their ratio, and zero weights would stay zero for ever.
        ratio = jnp.where((size > 0) & (slope > 0), ratio, 1.0)
        return ratio * (gradient + weight_decay * weight)

    return optax.stateless(lambda updates, params: jax.tree.map(one, updates, params, adapted(updates)))


def freeze(optimizer: optax.GradientTransformation, frozen: Mask) -> optax.GradientTransformationExtraArgs:
    """Keeps an optimizer from seeing some parameters: they get no update and no state, and count in no norm.

    Args:
        optimizer: of the others.
        frozen: marks them.
    """

    def trained(tree: Any) -> Any:
        return jax.tree.map(lambda is_frozen: not is_frozen, frozen(tree))

    # Minus zero, because adding it changes no bit: -0.0 + 0.0 is 0.0.
    nothing = optax.stateless(lambda updates, _: jax.tree.map(lambda u: jnp.full_like(u, -0.0), updates))
    return optax.chain(optax.masked(optimizer, trained), optax.masked(nothing, frozen))


class LookaheadState(NamedTuple):
    """What `lookahead` keeps: the number of updates, the slow weights, the state of the optimizer inside."""

    count: jax.Array
    slow: Any
    inner: Any


def lookahead(
    optimizer: optax.GradientTransformation, steps: int, alpha: float
) -> optax.GradientTransformationExtraArgs:
    """Lookahead (Zhang, Lucas, Hinton & Ba 2019, algorithm 1), with the state of the optimizer inside left as it is.

    Every so many updates slow weights move towards the trained (fast) ones, slow += alpha (fast - slow), and training
    goes on from there.

    Args:
        optimizer: of the fast weights.
        steps: how many of its updates, at least 1.
        alpha: in (0, 1].
    """
    optimizer = optax.with_extra_args_support(optimizer)

    def init(params: Any) -> LookaheadState:
        # Copied, so that parameters and state can be donated to a step without being one buffer.
        return LookaheadState(jnp.zeros((), jnp.int32), jax.tree.map(jnp.copy, params), optimizer.init(params))

    def update(updates, state, params, **extra):
        updates, inner = optimizer.update(updates, state.inner, params, **extra)
        count = optax.safe_increment(state.count)
        meeting = count % steps == 0
        fast = optax.apply_updates(params, updates)
        slow = jax.tree.map(lambda s, f: jnp.where(meeting, s + alpha * (f - s), s), state.slow, fast)
        updates = jax.tree.map(lambda u, s, p: jnp.where(meeting, s - p, u), updates, slow, params)
        return updates, LookaheadState(count, slow, inner)

    return optax.GradientTransformationExtraArgs(init, update)
