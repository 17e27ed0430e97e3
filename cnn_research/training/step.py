"""The training step and the evaluation step: pure functions of one device's share of a batch."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn

from cnn_research.data import augment, mix, views
from cnn_research.training import metrics
from cnn_research.training.losses import Loss, softmax_cross_entropy
from cnn_research.training.state import TrainState

Batch = dict[str, jax.Array]


def normalise(images: jax.Array, mean: tuple[float, ...], std: tuple[float, ...]) -> jax.Array:
    """Turns pixels into the network's input.

    Args:
        images: uint8[N, H, W, C].
        mean: of the pixels scaled to [0, 1], one value or C.
        std: likewise.

    Returns:
        float32[N, H, W, C].
    """
    return (images.astype(jnp.float32) / 255 - jnp.array(mean, jnp.float32)) / jnp.array(std, jnp.float32)


def train_step(
    state: TrainState,
    arrays: Any,
    batch: Batch,
    key: jax.Array,
    *,
    gather: Callable[[Any, Batch], Batch],
    augmentation: augment.Augmentation,
    num_examples: int = 0,
    mixing: mix.Mix | None = None,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    model: nn.Module,
    loss: Loss,
    auxiliary_weight: float,
    optimizer: optax.GradientTransformation,
    schedule: optax.Schedule,
    axis_name: str,
) -> tuple[TrainState, dict[str, jax.Array]]:
    """Makes one update from one device's share of the global batch.

    Args:
        state: this device's copy, equal to all others'.
        arrays: the feed's arrays that live on the device.
        batch: what `gather` turns into {"image": uint8[b, H, W, C], "label": int32[b], "index": int32[b], "position":
            uint32[b]}.
        key: the run's key. Augmentation is keyed by an image's position in the training stream, dropout by step and
            device, so nothing here depends on what ran before.
        gather: the feed's; pure.
        augmentation: of the uint8 images.
        num_examples: of an epoch; from it and the position follows the epoch.
        mixing: of pairs of normalised images, each with the one before it in the global batch; None for none.
        mean, std: of `normalise`.
        model, loss, optimizer, schedule: of the run.
        auxiliary_weight: of the loss of each auxiliary head (logits that the model sows into "auxiliary").
        axis_name: the axis over which devices are averaged.

    Returns:
        The new state, and the global batch's metric sums (`metrics.batch_sums`) with the learning rate of this update.
    """
    augment_key, dropout_key = jax.random.split(key)
    dropout_key = jax.random.fold_in(jax.random.fold_in(dropout_key, state.step), jax.lax.axis_index(axis_name))
    batch = gather(arrays, batch)
    images = augment.apply(
        augmentation, augment_key, batch["position"], batch["image"], batch.get("index"), num_examples
    )
    images, targets = normalise(images, mean, std), batch["label"]
    if mixing is not None:
        targets = jax.nn.one_hot(targets, model.num_classes, dtype=jnp.float32)
        partners = _ones_before((images, targets), axis_name)
        mix_key = jax.random.fold_in(key, 2)  # the two of `split` are folds of 0 and 1
        images, targets = mix.apply(mixing, mix_key, batch["position"], images, targets, partners)

    def loss_fn(params: Any) -> tuple[jax.Array, Any]:
        variables = {"params": params, "batch_stats": state.batch_stats}
        rngs = {"dropout": dropout_key}
        logits, updates = model.apply(variables, images, train=True, mutable=["batch_stats", "auxiliary"], rngs=rngs)
        losses = loss(logits, targets)
        heads = jax.tree.leaves(updates.get("auxiliary", {}))
        auxiliary = sum(jnp.mean(loss(head, targets)) for head in heads)
        # The heads pull on the gradient alone; what is logged is the loss of the network that will be used.
        return jnp.mean(losses) + auxiliary_weight * auxiliary, (logits, losses, updates.get("batch_stats", {}))

    grads, (logits, losses, batch_stats) = jax.grad(loss_fn, has_aux=True)(state.params)
    # Every device holds as many examples, so the mean of the devices' means is the global batch's mean. With
    # batch_norm="local" each device normalised by statistics of its own; the running ones are averaged all the same,
    # so that there is one network to save.
    grads, batch_stats = jax.lax.pmean((grads, batch_stats), axis_name)
    updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
    new_state = TrainState(
        step=state.step + 1,
        params=optax.apply_updates(state.params, updates),
        batch_stats=batch_stats,
        opt_state=opt_state,
    )
    everything = jnp.ones_like(batch["label"], bool)
    sums = jax.lax.psum(metrics.batch_sums(logits, batch["label"], losses, everything), axis_name)
    return new_state, sums | {"learning_rate": jnp.asarray(schedule(state.step), jnp.float32)}


def _ones_before(tree: Any, axis_name: str) -> Any:
    """Shifts the global batch by one: [b, ...] -> [b, ...], of which the first is the last of the device before."""
    devices = jax.lax.psum(1, axis_name)
    to_next = [(device, (device + 1) % devices) for device in range(devices)]

    def shift(x: jax.Array) -> jax.Array:
        return jnp.concatenate([jax.lax.ppermute(x[-1:], axis_name, to_next), x[:-1]])

    return jax.tree.map(shift, tree)


def eval_step(
    variables: Any,
    arrays: Any,
    batch: Batch,
    *,
    gather: Callable[[Any, Batch], Batch],
    mean: tuple[float, ...],
    std: tuple[float, ...],
    model: nn.Module,
    axis_name: str,
    make_views: Callable[[jax.Array], jax.Array] = views.make_views,
) -> dict[str, jax.Array]:
    """Evaluates one device's share of a global batch.

    Args:
        variables: {"params", "batch_stats"}; the running statistics are used and nothing is changed.
        arrays, gather, mean, std, model, axis_name: as in `train_step`.
        batch: what `gather` turns into {"image", "label", "mask": bool[b]}.
        make_views: uint8[N, H, W, C] -> [V, N, h, w, C], of which the predictions are averaged (`data.views`).

    Returns:
        The global batch's metric sums. The loss is the cross-entropy, whatever the training loss was, so that
        evaluations of different recipes can be compared.
    """
    batch = gather(arrays, batch)

    def predict(images: jax.Array) -> jax.Array:
        return model.apply(variables, normalise(images, mean, std), train=False)

    images = make_views(batch["image"])
    # One view after the other: together, ten crops would need ten times the memory, or one time to compile for each.
    # A loop makes convolutions slow on a CPU, but not much unless they are differentiated.
    logits = views.average(predict(images[0])[None] if len(images) == 1 else jax.lax.map(predict, images))
    losses = softmax_cross_entropy(logits, batch["label"])
    return jax.lax.psum(metrics.batch_sums(logits, batch["label"], losses, batch["mask"]), axis_name)
