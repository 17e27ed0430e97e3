"""Learning-rate schedules: the rate as a function of the step, and the one that listens to evaluations."""

import dataclasses
from typing import Any

import jax.numpy as jnp
import optax


def create_schedule(
    name: str,
    peak: float,
    *,
    total_steps: int,
    warmup_steps: int,
    boundaries: tuple[int, ...] = (),
    multipliers: tuple[float, ...] = (),
    factor: float = 0.1,
    period: int = 1,
    period_multiplier: float = 1.0,
    power: float = 1.0,
    end: float = 0.0,
) -> optax.Schedule:
    """Returns the learning rate as a function of the step, from 0 to total_steps - 1.

    With P the peak, w the warm-up, t the steps since its end and T those that it leaves to training:

        constant, plateau   P; for plateau, `Plateau` says what to multiply it by
        step                P factor^i after i boundaries
        piecewise           P m_i after i boundaries, and P before the first
        exponential         P factor^(t / period), at least P end
        cosine              P (end + (1 - end) (1 + cos(pi t / T)) / 2)       Loshchilov & Hutter 2017, equation 5
        linear              P (end + (1 - end) (1 - t / T))
        polynomial          P (end + (1 - end) (1 - t / T)^power)
        warm_restarts       cosine over period, then anew over each following one    Loshchilov & Hutter 2017
        one_cycle           from P / 25 to P in w steps, then to P / 250,000, both as a cosine    Smith & Topin 2018

    Args:
        name: one of these.
        peak: the highest learning rate.
        total_steps: the length of training.
        warmup_steps: w; the rate rises linearly over the first w steps, from peak / w to the peak.
        boundaries: step, piecewise: in steps from the start of training. Those inside the warm-up count when it ends.
        multipliers: piecewise: m_i, one for each boundary, which must then be in ascending order.
        factor: step, exponential.
        period: exponential, warm_restarts: in steps, at least 1.
        period_multiplier: warm_restarts: the length of a period over that of the one before it, at least 1.
        power: polynomial.
        end: fraction of the peak.
    """
    if name == "one_cycle":
        # What optax.cosine_onecycle_schedule does, which however wants the rise as a fraction and rounds it down.
        last = max(total_steps, warmup_steps + 1)
        return optax.piecewise_interpolate_schedule("cosine", peak / 25, {warmup_steps: 25.0, last: 1 / 250_000})
    decay_steps = max(1, total_steps - warmup_steps)
    # Counted from the start of training, as papers do, not from the end of the warm-up. Several may fall on one step.
    drops = [max(0, b - warmup_steps) for b in boundaries]
    after = {
        "constant": lambda: optax.constant_schedule(peak),
        "plateau": lambda: optax.constant_schedule(peak),
        "step": lambda: optax.piecewise_constant_schedule(peak, {d: factor ** drops.count(d) for d in drops}),
        "piecewise": lambda: _piecewise(peak, drops, multipliers),
        "exponential": lambda: lambda t: peak * jnp.maximum(end, factor ** (t / period)),
        "cosine": lambda: optax.cosine_decay_schedule(peak, decay_steps, end),
        "linear": lambda: optax.linear_schedule(peak, peak * end, decay_steps),
        "polynomial": lambda: optax.polynomial_schedule(peak, peak * end, power, decay_steps),
        "warm_restarts": lambda: _warm_restarts(peak, period, period_multiplier, end, decay_steps),
    }[name]()
    if warmup_steps == 0:
        return after
    # The first step already learns: a warm-up from 0 would waste it.
    warmup = optax.linear_schedule(peak / warmup_steps, peak, max(1, warmup_steps - 1))
    return optax.join_schedules([warmup, after], [warmup_steps])


def _piecewise(peak: float, boundaries: list[int], multipliers: tuple[float, ...]) -> optax.Schedule:
    rates = jnp.array([peak, *(peak * m for m in multipliers)], jnp.float32)
    # optax.piecewise_constant_schedule multiplies what was there before, from which 0 has no way back.
    return lambda t: rates[jnp.searchsorted(jnp.array(boundaries, jnp.int32), t, side="right")]


def _warm_restarts(peak: float, period: int, multiplier: float, end: float, steps: int) -> optax.Schedule:
    # The lengths are rounded to steps one by one, so that no floating-point logarithm decides where a period begins.
    starts, length = [0], float(period)
    while starts[-1] <= steps:
        starts.append(starts[-1] + round(length))
        length *= multiplier

    def schedule(t):
        table = jnp.array(starts, jnp.int32)
        number = jnp.clip(jnp.searchsorted(table, t, side="right") - 1, 0, len(starts) - 2)
        fraction = (t - table[number]) / (table[number + 1] - table[number])
        return peak * (end + (1 - end) * (1 + jnp.cos(jnp.pi * fraction)) / 2)

    return schedule


@dataclasses.dataclass
class Plateau:
    """Says when the learning rate falls because evaluations no longer get better; it lives on the host.

    Attributes:
        factor: in (0, 1], by which the rate is multiplied.
        patience: evaluations in a row without a new best, after which it is.
        minimum: fraction of the first rate below which this doesn't go.
        lowest: whether the lowest value is the best one (a loss), not the highest (an accuracy).
        best: of all evaluations so far, None before the first.
        waited: evaluations since the best one, or since the rate last fell.
        scale: the product of all factors so far.
    """

    factor: float
    patience: int
    minimum: float = 0.0
    lowest: bool = False
    best: float | None = None
    waited: int = 0
    scale: float = 1.0

    def evaluated(self, value: float) -> float:
        """Takes note of an evaluation; returns what to multiply the learning rate by, 1.0 where it stays."""
        if self.best is None or (value < self.best if self.lowest else value > self.best):
            self.best, self.waited = float(value), 0
            return 1.0
        self.waited += 1
        if self.waited < self.patience:
            return 1.0
        before, self.waited = self.scale, 0
        self.scale = min(before, max(before * self.factor, self.minimum))
        return self.scale / before

    @property
    def state(self) -> dict[str, Any]:
        """What a checkpoint has to keep, JSON values, to be given back as arguments."""
        return {"best": self.best, "waited": self.waited, "scale": self.scale}
