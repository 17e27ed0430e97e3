"""The training step, the evaluation step and prediction: pure functions of one device's share of a batch."""

import contextlib
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn

from cnn_research.data import augment, mix, views
from cnn_research.training import metrics
from cnn_research.training.losses import Loss, softmax_cross_entropy
from cnn_research.training.state import LARGEST_LOSS_SCALE, TrainState

Batch = dict[str, jax.Array]


def as_it_is(function: Callable[..., Any]) -> Callable[..., Any]:
    """Returns the same function: for devices that compute it well as it is written."""
    return function


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


def network_input(
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
    num_classes: int,
    axis_name: str,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Makes of one device's share of a training batch what the network and the loss are given.

    Args:
        arrays: the feed's arrays that live on the device.
        batch: what `gather` turns into {"image": uint8[b, H, W, C], "label": int32[b], "index": int32[b], "position":
            uint32[b]}.
        key: the run's key; what is drawn for an image is keyed by its position in the training stream.
        gather: the feed's; pure.
        augmentation: of the uint8 images.
        num_examples: of an epoch; from it and the position follows the epoch.
        mixing: of pairs of normalised images, each with the one before it in the global batch; None for none.
        mean, std: of `normalise`.
        num_classes: K.
        axis_name: of the devices.

    Returns:
        Images float32[b, h, w, C]; targets, which are the labels int32[b] or with `mixing` probabilities float32[b, K];
        and the labels.
    """
    augment_key = jax.random.split(key)[0]
    batch = gather(arrays, batch)
    labels = batch["label"]
    images = augment.apply(
        augmentation, augment_key, batch["position"], batch["image"], batch.get("index"), num_examples
    )
    images = normalise(images, mean, std)
    if mixing is None:
        return images, labels, labels
    targets = jax.nn.one_hot(labels, num_classes, dtype=jnp.float32)
    partners = _ones_before((images, targets), axis_name)
    mix_key = jax.random.fold_in(key, 2)  # the two of `split` are folds of 0 and 1
    images, targets = mix.apply(mixing, mix_key, batch["position"], images, targets, partners)
    return images, targets, labels


def train_step(
    state: TrainState,
    arrays: Any,
    batch: Batch,
    key: jax.Array,
    *,
    make_input: Callable[[Any, Batch, jax.Array], tuple[jax.Array, jax.Array, jax.Array]],
    model: nn.Module,
    loss: Loss,
    auxiliary_weight: float,
    optimizer: optax.GradientTransformation,
    schedule: optax.Schedule,
    axis_name: str,
    accumulation: int = 1,
    unroll: bool = False,
    ema_decay: float = 0.0,
    frozen: Callable[[Any], Any] | None = None,
    is_frozen: Callable[[str], bool] | None = None,
    accelerate: Callable[[Callable], Callable] = as_it_is,
) -> tuple[TrainState, dict[str, jax.Array]]:
    """Makes one update from one device's share of the global batch.

    Args:
        state: this device's copy, equal to all others'.
        arrays, batch: of `make_input`.
        key: the run's key. Augmentation is keyed by an image's position in the training stream, dropout by step and
            device, so nothing here depends on what ran before.
        make_input: `network_input` with the run's settings.
        model, loss, optimizer, schedule: of the run.
        auxiliary_weight: of the loss of each auxiliary head (logits that the model sows into "auxiliary").
        axis_name: the axis over which devices are averaged.
        accumulation: into how many parts, one after the other, the share is cut to save memory. The gradient is that of
            the whole batch; but batch normalisation sees one part at a time (of all devices, or of each), and its
            running statistics are updated once for each.
        unroll: write the parts out instead of looping: a loop makes gradients of convolutions slow on a CPU.
        ema_decay: d of the moving averages, d average + (1 - d) value; lower in the beginning: (1 + t) / (10 + t) at
            step t, so that the initial values are soon forgotten. 0 = the state has none.
        frozen: marks the parameters that the optimizer leaves as they are, for which no gradient is computed, nor for
            what lies before them if nothing there is trained; None for none.
        is_frozen: whether the batch normalisation of a path, such as "layer1_0/norm1", uses its running statistics and
            leaves them as they are; None for none.
        accelerate: makes of the loss an equal function whose gradient is faster to compute on these devices.

    Returns:
        The new state, and the global batch's metric sums (`metrics.batch_sums`) with the learning rate of this update
        and the norms of gradient, update and parameters.
    """
    dropout_key = jax.random.split(key)[1]
    dropout_key = jax.random.fold_in(jax.random.fold_in(dropout_key, state.step), jax.lax.axis_index(axis_name))
    images, targets, labels = make_input(arrays, batch, key)
    scale = state.loss_scale["scale"] if state.loss_scale else 1.0

    @accelerate
    def loss_fn(params: Any, batch_stats: Any, images: jax.Array, targets: jax.Array, key: jax.Array) -> Any:
        if frozen:
            params = jax.tree.map(lambda p, stays: jax.lax.stop_gradient(p) if stays else p, params, frozen(params))
        variables = {"params": params, "batch_stats": batch_stats}
        logits, updates = model.apply(
            variables, images, train=True, mutable=["batch_stats", "auxiliary"], rngs={"dropout": key}
        )
        losses = loss(logits, targets)
        heads = jax.tree.leaves(updates.get("auxiliary", {}))
        auxiliary = sum(jnp.mean(loss(head, targets)) for head in heads)
        # The heads pull on the gradient alone; what is logged is the loss of the network that will be used.
        total = jnp.mean(losses) + auxiliary_weight * auxiliary
        return total * scale, (logits, losses, updates.get("batch_stats", {}))

    def gradients(*args: Any) -> Any:
        # Around `accelerate`, which must see what the normalisations have become.
        with nn.intercept_methods(_use_running_statistics(is_frozen)) if is_frozen else contextlib.nullcontext():
            return jax.grad(loss_fn, has_aux=True)(*args)

    def add_part(so_far: tuple[Any, Any], part: Any) -> tuple[tuple[Any, Any], tuple[jax.Array, jax.Array]]:
        grads, batch_stats = so_far
        new_grads, (logits, losses, batch_stats) = gradients(state.params, batch_stats, *part)
        return (jax.tree.map(jnp.add, grads, new_grads), batch_stats), (logits, losses)

    if accumulation == 1:
        grads, (logits, losses, batch_stats) = gradients(state.params, state.batch_stats, images, targets, dropout_key)
    else:
        parts = jax.tree.map(lambda x: x.reshape(accumulation, -1, *x.shape[1:]), (images, targets))
        (grads, batch_stats), outputs = jax.lax.scan(
            add_part,
            (jax.tree.map(jnp.zeros_like, state.params), state.batch_stats),
            (*parts, jax.random.split(dropout_key, accumulation)),
            unroll=accumulation if unroll else 1,
        )
        logits, losses = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), outputs)
    if accumulation > 1 or state.loss_scale:
        grads = jax.tree.map(lambda g: g / (accumulation * scale), grads)

    # Every device holds as many examples, so the mean of the devices' means is the global batch's mean. With
    # batch_norm="local" each device normalised by statistics of its own; the running ones are averaged all the same,
    # so that there is one network to save.
    grads, batch_stats = jax.lax.pmean((grads, batch_stats), axis_name)
    if is_frozen:  # the mean of equal numbers need not be equal to them in the last bit
        batch_stats = jax.tree_util.tree_map_with_path(
            lambda path, old, new: old if is_frozen("/".join(key.key for key in path[:-1])) else new,
            state.batch_stats,
            batch_stats,
        )
    updates, opt_state = optax.with_extra_args_support(optimizer).update(
        grads, state.opt_state, state.params, learning_rate_scale=state.learning_rate_scale
    )
    new_state = state.replace(
        params=optax.apply_updates(state.params, updates), batch_stats=batch_stats, opt_state=opt_state
    )
    if ema_decay:
        decay = jnp.minimum(ema_decay, (1 + state.step) / (10 + state.step))
        # In this form what stays the same stays so to the bit: frozen parameters.
        average = functools.partial(jax.tree.map, lambda old, new: old + (1 - decay) * (new - old))
        new_state = new_state.replace(averaged=average(state.averaged, new_state.variables))
    numbers = {
        "learning_rate": jnp.asarray(schedule(state.step) * state.learning_rate_scale, jnp.float32),
        "gradient_norm": metrics.norm(grads),
        "update_norm": metrics.norm(updates),
        "parameter_norm": metrics.norm(new_state.params),
    }
    if state.loss_scale:
        finite = jnp.isfinite(numbers["gradient_norm"])
        # A gradient beyond float16: nothing is learned from this batch, and the next one's loss is scaled less.
        new_state = jax.tree.map(functools.partial(jnp.where, finite), new_state, state)
        new_state = new_state.replace(loss_scale=_adapted(state.loss_scale, finite))
        numbers["loss_scale"] = scale
    everything = jnp.ones_like(labels, bool)
    sums = jax.lax.psum(metrics.batch_sums(logits, labels, losses, everything), axis_name)
    return new_state.replace(step=state.step + 1), sums | numbers


def train_steps(
    state: TrainState,
    arrays: Any,
    batches: Batch,
    key: jax.Array,
    *,
    one: Callable[[TrainState, Any, Batch, jax.Array], tuple[TrainState, dict[str, jax.Array]]],
) -> tuple[TrainState, dict[str, jax.Array]]:
    """Makes one update, or several one after the other without the host.

    Args:
        state, arrays, key: as in `train_step`.
        batches: as in `train_step`, of one update; or the shares of S updates, each array [S, b, ...].
        one: `train_step` with the run's settings.

    Returns:
        The last state, and what `one` tells of its update or, each array with an axis S in front, of all.
    """
    if batches["position"].ndim == 1:
        return one(state, arrays, batches, key)
    return jax.lax.scan(lambda state, batch: one(state, arrays, batch, key), state, batches)


def _adapted(loss_scale: dict[str, jax.Array], finite: jax.Array) -> dict[str, jax.Array]:
    """Halves the scale after a gradient that wasn't finite; doubles it after 2,000 that were.

    Micikevicius et al. 2018, "Mixed precision training", section 3.2.
    """
    good_steps = jnp.where(finite, loss_scale["good_steps"] + 1, 0)
    grow = good_steps == 2000
    scale = loss_scale["scale"] * jnp.where(finite, jnp.where(grow, 2.0, 1.0), 0.5)
    return {"scale": jnp.clip(scale, 1.0, LARGEST_LOSS_SCALE), "good_steps": jnp.where(grow, 0, good_steps)}


def _use_running_statistics(is_frozen: Callable[[str], bool]) -> Callable[..., Any]:
    """An interceptor of Flax's methods that makes the batch normalisation of some paths behave as in evaluation."""

    def intercept(call: Callable[..., Any], args: Any, kwargs: Any, context: Any) -> Any:
        module = context.module
        if isinstance(module, nn.BatchNorm) and is_frozen("/".join(module.path)):
            # Modules can't be changed while they run, nor may an argument contradict this field.
            object.__setattr__(module, "use_running_average", True)
        return call(*args, **kwargs)

    return intercept


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
    accelerate: Callable[[Callable], Callable] = as_it_is,
) -> dict[str, jax.Array]:
    """Evaluates one device's share of a global batch.

    Args:
        variables: {"params", "batch_stats"}; the running statistics are used and nothing is changed.
        arrays, gather, mean, std, axis_name: as in `network_input`.
        model: of the run.
        batch: what `gather` turns into {"image", "label", "mask": bool[b]}.
        make_views: uint8[N, H, W, C] -> [V, N, h, w, C], of which the predictions are averaged (`data.views`).
        accelerate: makes of the network an equal function that is faster to compute on these devices.

    Returns:
        The global batch's metric sums. The loss is the cross-entropy, whatever the training loss was, so that
        evaluations of different recipes can be compared.
    """
    batch = gather(arrays, batch)
    logits = predict(
        variables, batch["image"], mean=mean, std=std, model=model, make_views=make_views, accelerate=accelerate
    )
    losses = softmax_cross_entropy(logits, batch["label"])
    return jax.lax.psum(metrics.batch_sums(logits, batch["label"], losses, batch["mask"]), axis_name)


def predict(
    variables: Any,
    images: jax.Array,
    *,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    model: nn.Module,
    make_views: Callable[[jax.Array], jax.Array] = views.make_views,
    accelerate: Callable[[Callable], Callable] = as_it_is,
) -> jax.Array:
    """Computes what a network says of images: the one way, of evaluation, of predictions and of exported networks.

    Args:
        variables, mean, std, model, make_views, accelerate: as in `eval_step`.
        images: uint8[N, H, W, C].

    Returns:
        Logits float32[N, K]. On one kind of device they depend, in the last bits, on N and `accelerate`, and on nothing
        around it.
    """
    # The compiler must not join this with where the images come from or what becomes of the logits: in another
    # program it would then round differently.
    images = jax.lax.optimization_barrier(make_views(images))

    @accelerate
    def one_view(view: jax.Array) -> jax.Array:
        return model.apply(variables, normalise(view, mean, std), train=False)

    # One view after the other: together, ten crops would need ten times the memory, or one time to compile for each.
    # A loop makes convolutions slow on a CPU, but not much unless they are differentiated.
    logits = views.average(one_view(images[0])[None] if len(images) == 1 else jax.lax.map(one_view, images))
    return jax.lax.optimization_barrier(logits)
