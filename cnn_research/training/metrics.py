"""Metrics as sums over examples, so that any number of batches, devices and hosts adds up to the exact mean."""

from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

NAMES = ("loss", "accuracy", "top5")


def batch_sums(logits: jax.Array, labels: jax.Array, losses: jax.Array, mask: jax.Array) -> dict[str, jax.Array]:
    """Sums each metric over the examples of a batch that count.

    Args:
        logits: float32[N, K].
        labels: int32[N].
        losses: float32[N].
        mask: bool[N]; padding is False.

    Returns:
        float32 sums for each of NAMES, and "count", int32.
    """
    labels = labels[:, None]
    classes = jnp.arange(logits.shape[-1])
    own = jnp.take_along_axis(logits, labels, axis=-1)
    # How many classes are placed before the right one; of equal ones those of lower index are, as argmax has it.
    # Written as "not at most" so that NaN counts as wrong: the right class then has all K before it, itself included.
    ahead = jnp.sum(~(logits <= own) | ((logits == own) & (classes < labels)), axis=-1)
    right = {
        "loss": losses,
        "accuracy": ahead == 0,
        "top5": ahead < min(5, len(classes)),
    }
    sums = {name: jnp.sum(jnp.where(mask, values, 0.0)) for name, values in right.items()}
    return sums | {"count": jnp.sum(mask, dtype=jnp.int32)}


def norm(tree: Any) -> jax.Array:
    """The Euclidean norm of all of a tree's arrays together: float32[].

    Small ones are laid end to end first: hundreds of sums of their own would take a quarter of DenseNet's compilation.
    """
    leaves = jax.tree.leaves(tree)
    arrays = [leaf for leaf in leaves if leaf.size >= 2**18]
    small = [leaf.ravel() for leaf in leaves if leaf.size < 2**18]
    if small:
        # The barrier keeps XLA from computing each piece inside the loop that joins them.
        arrays.append(jnp.concatenate(jax.lax.optimization_barrier(small)))
    return jnp.sqrt(sum(jnp.sum(jnp.square(array)) for array in arrays))


def by_step(sums: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Takes what calls of `step.train_steps` tell apart: [S] numbers of several updates each, or those of one.

    Returns:
        The numbers of each update, in order.
    """
    return [
        {name: values[i] for name, values in of_call.items()} if np.ndim(of_call["count"]) else of_call
        for of_call in sums
        for i in range(np.size(of_call["count"]))
    ]


def means(sums: Iterable[dict[str, Any]]) -> dict[str, float]:
    """Adds up the sums of several batches in float64 and divides once.

    Returns:
        The mean of each of NAMES, and "num_examples".
    """
    sums = list(sums)
    count = sum(int(s["count"]) for s in sums)
    means = {name: float(np.sum([np.float64(s[name]) for s in sums]) / count) for name in NAMES}
    return means | {"num_examples": count}


def latest(sums: dict[str, Any]) -> dict[str, float]:
    """Returns what a step tells besides sums, such as the learning rate, as far as it is finite."""
    numbers = {name: float(value) for name, value in sums.items() if name not in (*NAMES, "count")}
    return {name: value for name, value in numbers.items() if np.isfinite(value)}
