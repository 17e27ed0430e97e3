"""Losses: (logits, labels or probabilities) -> the loss of each example."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

Loss = Callable[[jax.Array, jax.Array], jax.Array]


def softmax_cross_entropy(logits: jax.Array, labels: jax.Array, label_smoothing: float = 0.0) -> jax.Array:
    """Cross-entropy of the softmax; with smoothing, against (1 - s) of the label and s spread over all K classes.

    Label smoothing: Szegedy et al. 2016, "Rethinking the Inception Architecture", section 7.

    Args:
        logits: float32[N, K].
        labels: int32[N], or probabilities float32[N, K], such as those of mixed images.
        label_smoothing: s in [0, 1).

    Returns:
        float32[N], in nats.
    """
    targets = labels if labels.ndim == 2 else jax.nn.one_hot(labels, logits.shape[-1], dtype=jnp.float32)
    return optax.softmax_cross_entropy(logits, optax.smooth_labels(targets, label_smoothing))


def create_loss(name: str, label_smoothing: float) -> Loss:
    """Returns the named loss (`config.loss`)."""
    losses = {
        "softmax_cross_entropy": lambda logits, labels: softmax_cross_entropy(logits, labels, label_smoothing),
    }
    return losses[name]
