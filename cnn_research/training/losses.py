"""Losses: (logits, labels or probabilities) -> the loss of each example."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from ml_collections import ConfigDict

from cnn_research.errors import UserError

Loss = Callable[[jax.Array, jax.Array], jax.Array]


def softmax_cross_entropy(logits: jax.Array, labels: jax.Array, label_smoothing: float = 0.0) -> jax.Array:
    """Cross-entropy of the softmax; with smoothing, against (1 - s) of the label and s spread over all K classes.

    Label smoothing: Szegedy et al. 2016, "Rethinking the Inception Architecture", section 7. With two classes this is
    logistic regression on the difference of the logits.

    Args:
        logits: float32[N, K].
        labels: int32[N], or probabilities float32[N, K], such as those of mixed images.
        label_smoothing: s in [0, 1).

    Returns:
        float32[N], in nats.
    """
    return optax.softmax_cross_entropy(logits, _targets(logits, labels, label_smoothing))


def sigmoid_cross_entropy(logits: jax.Array, labels: jax.Array, label_smoothing: float = 0.0) -> jax.Array:
    """Mean over the K classes of the binary cross-entropy of each: "is it this class or not?".

    As in Wightman, Touvron & Jégou 2021, "ResNet strikes back", section 3.1. Two classes are two logistic regressions,
    one for each.

    Args:
        logits, labels, label_smoothing: as in `softmax_cross_entropy`.

    Returns:
        float32[N], in nats.
    """
    targets = _targets(logits, labels, label_smoothing)
    return jnp.mean(optax.sigmoid_binary_cross_entropy(logits, targets), axis=-1)


def multiclass_hinge(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """The hinge loss of a multiclass support vector machine: sum_{k != y} max(0, 1 + z_k - z_y) / K.

    Weston & Watkins 1999, "Support vector machines for multi-class pattern recognition", over K as in PyTorch, by which
    untrained logits have the gradient of the cross-entropy and learning rates carry over. (With Crammer & Singer's, the
    largest z_k alone, gradient descent left LeNet-5 at chance.) Of probabilities q, the mean over labels:
    sum_y q_y loss(z, y).

    Args:
        logits: z, float32[N, K].
        labels: y, int32[N], or probabilities float32[N, K].

    Returns:
        float32[N].
    """

    def of_labels(scores: jax.Array, of: jax.Array) -> jax.Array:
        """[K] and the scores [M] of M labels -> the losses of these labels, [M]; k = y has been counted as 1."""
        return (jnp.sum(jax.nn.relu(scores - of[:, None] + 1), axis=-1) - 1) / scores.size

    if labels.ndim == 1:
        return jax.vmap(of_labels)(logits, jnp.take_along_axis(logits, labels[:, None], axis=-1))[:, 0]

    @jax.checkpoint
    def mixed(example: tuple[jax.Array, jax.Array]) -> jax.Array:
        scores, probabilities = example
        return jnp.sum(probabilities * of_labels(scores, scores))

    # K x K numbers an example, which for a whole batch of ImageNet would be gigabytes.
    return jax.lax.map(mixed, (logits, labels), batch_size=max(1, 2**22 // logits.shape[-1] ** 2))


def squared_error(logits: jax.Array, labels: jax.Array, label_smoothing: float = 0.0) -> jax.Array:
    """Half the squared distance between the softmax and the target: sum_k (q_k - p_k)^2 / 2.

    Half of Brier's score (1950), and what tutorials train their first network with. Its gradient vanishes where a wrong
    answer is certain.

    Args:
        logits, labels, label_smoothing: as in `softmax_cross_entropy`.

    Returns:
        float32[N], from 0 to 1.
    """
    errors = _targets(logits, labels, label_smoothing) - jax.nn.softmax(logits)
    return jnp.sum(errors**2, axis=-1) / 2


def focal(logits: jax.Array, labels: jax.Array, label_smoothing: float = 0.0, gamma: float = 2.0) -> jax.Array:
    """Cross-entropy that cares less about what is right already: -sum_k q_k (1 - p_k)^gamma log p_k.

    Lin et al. 2017, "Focal loss for dense object detection", equation 4, for many classes by the softmax; its alpha is
    `class_weights`.

    Args:
        logits, labels, label_smoothing: as in `softmax_cross_entropy`.
        gamma: at least 0, which is cross-entropy.

    Returns:
        float32[N].
    """
    log_p = jax.nn.log_softmax(logits)
    # Not quite zero, where the slope of a power below 1 is infinite.
    wrong = jnp.maximum(-jnp.expm1(log_p), jnp.finfo(jnp.float32).tiny)
    return -jnp.sum(_targets(logits, labels, label_smoothing) * wrong**gamma * log_p, axis=-1)


def map_criterion(
    logits: jax.Array, labels: jax.Array, label_smoothing: float = 0.0, rubbish: float = 10.0
) -> jax.Array:
    """Cross-entropy with one class more, of rubbish, whose logit is fixed: -z_label + log(e^-j + sum_k e^z_k).

    LeCun et al. 1998, equation 9, for logits z that are minus the squared distances to the classes' codes. Without the
    rubbish class only their differences count, and a network whose states never come near a code has no loss to lose:
    one of saturating units stays where these are linear. With it an image is pulled to the code of its class from
    anywhere, and pushed from those that are nearer than about j.

    Args:
        logits, labels, label_smoothing: as in `softmax_cross_entropy`.
        rubbish: j, at least 0.

    Returns:
        float32[N], in nats.
    """
    pulled = jnp.sum(_targets(logits, labels, label_smoothing) * logits, axis=-1)
    return jnp.logaddexp(jax.nn.logsumexp(logits, axis=-1), -rubbish) - pulled


def create_loss(config: ConfigDict, num_classes: int) -> Loss:
    """Returns the loss of `config.loss`.

    With class weights, an example's loss is multiplied by the weight of its class, or by the mean of their weights if
    its target is a mixture; the mean over a batch is of these products, and isn't divided by the sum of the weights.

    Raises:
        UserError: there are neither one class weight nor as many as classes.
    """
    smoothing = {"label_smoothing": config.label_smoothing}
    loss = {
        "softmax_cross_entropy": functools.partial(softmax_cross_entropy, **smoothing),
        "sigmoid": functools.partial(sigmoid_cross_entropy, **smoothing),
        "hinge": multiclass_hinge,
        "squared_error": functools.partial(squared_error, **smoothing),
        "focal": functools.partial(focal, **smoothing, gamma=config.gamma),
        "map": functools.partial(map_criterion, **smoothing, rubbish=config.rubbish),
    }[config.name]
    weights = tuple(config.class_weights)
    if len(weights) not in (1, num_classes):
        raise UserError(
            f"config.loss.class_weights={weights}: the dataset has {num_classes} classes, "
            f"so 1 or {num_classes} values are needed, not {len(weights)}"
        )
    if weights == (1.0,):
        return loss

    def weighted(logits: jax.Array, labels: jax.Array) -> jax.Array:
        targets = _targets(logits, labels)
        return loss(logits, labels) * jnp.sum(targets * jnp.array(weights, jnp.float32), axis=-1)

    return weighted


def _targets(logits: jax.Array, labels: jax.Array, label_smoothing: float = 0.0) -> jax.Array:
    """Labels as probabilities: float32[N, K]."""
    targets = labels if labels.ndim == 2 else jax.nn.one_hot(labels, logits.shape[-1], dtype=jnp.float32)
    return optax.smooth_labels(targets, label_smoothing)
