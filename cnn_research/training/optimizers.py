"""Optimizers and learning-rate schedules, from their names in the config."""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from ml_collections import ConfigDict


def create_schedule(
    name: str,
    peak: float,
    *,
    total_steps: int,
    warmup_steps: int,
    boundaries: tuple[int, ...] = (),
    factor: float = 0.1,
) -> optax.Schedule:
    """Returns the learning rate as a function of the step, from 0 to total_steps - 1.

    Args:
        name: constant | cosine | linear | step | one_cycle.
        peak: the highest learning rate.
        total_steps: the length of training.
        warmup_steps: w; the rate rises linearly over the first w steps, from peak / w to the peak.
            one_cycle (Smith & Topin 2018): the length of its rise from peak / 25; then it falls to peak / 250,000.
        boundaries: step: the steps at which the rate is multiplied by `factor`.
        factor: see `boundaries`.
    """
    if name == "one_cycle":
        # What optax.cosine_onecycle_schedule does, which however wants the rise as a fraction and rounds it down.
        end = max(total_steps, warmup_steps + 1)
        return optax.piecewise_interpolate_schedule("cosine", peak / 25, {warmup_steps: 25.0, end: 1 / 250_000})
    decay_steps = max(1, total_steps - warmup_steps)
    # Counted from the start of training, as papers do, not from the end of the warm-up. Several may fall on one step.
    drops = [max(0, b - warmup_steps) for b in boundaries]
    after = {
        "constant": lambda: optax.constant_schedule(peak),
        "cosine": lambda: optax.cosine_decay_schedule(peak, decay_steps),
        "linear": lambda: optax.linear_schedule(peak, 0.0, decay_steps),
        "step": lambda: optax.piecewise_constant_schedule(peak, {d: factor ** drops.count(d) for d in drops}),
    }[name]()
    if warmup_steps == 0:
        return after
    # The first step already learns: a warm-up from 0 would waste it.
    warmup = optax.linear_schedule(peak / warmup_steps, peak, max(1, warmup_steps - 1))
    return optax.join_schedules([warmup, after], [warmup_steps])


def create_optimizer(config: ConfigDict, schedule: optax.Schedule) -> optax.GradientTransformation:
    """Returns the optimizer of `config.optimizer`.

    Weight decay is coupled (added to the gradient, so momentum and Adam's scaling apply to it) except for adamw
    (Loshchilov & Hutter 2019: the weights shrink by learning rate x decay).
    """
    mask = kernels if config.decay == "kernels" else None
    adam = {"b1": config.beta1, "b2": config.beta2, "eps": config.epsilon}
    if config.name == "adamw":
        return optax.adamw(schedule, **adam, weight_decay=config.weight_decay, mask=mask)
    optimizer = {
        "sgd": lambda: optax.sgd(schedule),
        "momentum": lambda: optax.sgd(schedule, momentum=config.momentum),
        "nesterov": lambda: optax.sgd(schedule, momentum=config.momentum, nesterov=True),
        "adam": lambda: optax.adam(schedule, **adam),
    }[config.name]()
    if config.weight_decay == 0:
        return optimizer
    return optax.chain(optax.add_decayed_weights(config.weight_decay, mask), optimizer)


def kernels(params: Any) -> Any:
    """Marks what weight decay is meant for: kernels, not biases and not the scales of normalisation (vectors)."""
    return jax.tree.map(lambda p: jnp.ndim(p) > 1, params)
