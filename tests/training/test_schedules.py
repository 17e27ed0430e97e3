import json
import math

import jax
import numpy as np
import pytest

from cnn_research.config import CHOICES
from cnn_research.training.schedules import Plateau, create_schedule

PEAK, FACTOR = 0.4, 0.3


def rates(name, total, warmup, **fields):
    schedule = create_schedule(name, PEAK, total_steps=total, warmup_steps=warmup, **{"factor": FACTOR} | fields)
    # As in training: compiled, with the step as an int32 on the device.
    actual = np.array(jax.jit(jax.vmap(schedule))(np.arange(total, dtype=np.int32)))
    assert actual.dtype == np.float32
    return actual


def after_warmup(name, t, total, step, boundaries=(), multipliers=(), period=1, power=1.0, end=0.0):
    """The rate t steps after the warm-up, of `total` steps that follow it."""
    match name:
        case "constant" | "plateau":
            return PEAK
        case "step":
            return PEAK * FACTOR ** sum(step >= b for b in boundaries)
        case "piecewise":
            return PEAK * (1.0, *multipliers)[sum(step >= b for b in boundaries)]
        case "exponential":
            return PEAK * max(end, FACTOR ** (t / period))
        case "cosine":  # Loshchilov & Hutter 2017, equation 5, one period
            return PEAK * (end + (1 - end) * (1 + np.cos(np.pi * t / total)) / 2)
        case "linear":
            return PEAK * (end + (1 - end) * (1 - t / total))
        case "polynomial":
            return PEAK * (end + (1 - end) * (1 - t / total) ** power)
        case "warm_restarts":
            t = t % period
            return PEAK * (end + (1 - end) * (1 + np.cos(np.pi * t / period)) / 2)


@pytest.mark.parametrize("warmup", [0, 1, 7])
@pytest.mark.parametrize(
    ("name", "fields"),
    [
        ("constant", {}),
        ("plateau", {}),
        ("step", {}),
        ("step", {"boundaries": (20, 30)}),
        ("step", {"boundaries": (25, 25, 39)}),
        ("piecewise", {"boundaries": (20, 30), "multipliers": (0.5, 2.0)}),
        ("piecewise", {"boundaries": (25, 25, 39), "multipliers": (0.5, 0.0, 0.7)}),
        ("piecewise", {}),
        ("exponential", {"period": 5}),
        ("exponential", {"period": 3, "end": 0.1}),
        ("exponential", {"period": 3, "factor": 1.0}),
        ("cosine", {}),
        ("cosine", {"end": 0.25}),
        ("linear", {}),
        ("linear", {"end": 0.25}),
        ("polynomial", {"power": 2.0}),
        ("polynomial", {"power": 0.5, "end": 0.01}),
        ("warm_restarts", {"period": 10}),
        ("warm_restarts", {"period": 6, "end": 0.1}),
        ("warm_restarts", {"period": 1}),
        ("warm_restarts", {"period": 100}),
    ],
    ids=str,
)
def test_schedule(name, fields, warmup):
    total = 40
    formula = {key: value for key, value in fields.items() if key != "factor"}
    expected = [
        PEAK * (step + 1) / warmup
        if step < warmup
        else PEAK
        if fields.get("factor") == 1
        else after_warmup(name, step - warmup, total - warmup, step, **formula)
        for step in range(total)
    ]
    actual = rates(name, total, warmup, **fields)
    np.testing.assert_allclose(actual, expected, rtol=2e-6, atol=1e-7 * PEAK)
    assert actual[0] > 0 and (name == "piecewise" or actual.max() == np.float32(PEAK))


@pytest.mark.parametrize("name", CHOICES["schedule.name"])
def test_every_schedule_is_a_finite_rate_at_every_step(name):
    actual = rates(name, 30, 4, boundaries=(10,), multipliers=(0.5,), period=3, period_multiplier=1.5)
    assert np.isfinite(actual).all() and (actual >= 0).all() and (np.diff(actual[:4]) > 0).all()


@pytest.mark.parametrize(
    ("name", "fields", "points"),
    [
        ("step", {"boundaries": (8, 12)}, {4: 1.0, 7: 1.0, 8: 0.3, 11: 0.3, 12: 0.09}),
        ("piecewise", {"boundaries": (8, 12), "multipliers": (0.5, 0.75)}, {7: 1.0, 8: 0.5, 11: 0.5, 12: 0.75}),
        ("exponential", {"period": 4}, {4: 1.0, 8: 0.3, 10: 0.3**1.5, 12: 0.09}),
        ("exponential", {"period": 4, "end": 0.2}, {8: 0.3, 12: 0.2, 19: 0.2}),
        ("cosine", {"end": 0.5}, {4: 1.0, 12: 0.75}),
        ("linear", {"end": 0.5}, {4: 1.0, 8: 0.875, 12: 0.75}),
        ("polynomial", {"power": 2.0}, {4: 1.0, 8: 0.5625, 12: 0.25}),
        ("warm_restarts", {"period": 4}, {4: 1.0, 6: 0.5, 8: 1.0, 10: 0.5, 12: 1.0, 16: 1.0}),
        # T_0 = 2, T_mult = 2: restarts after 2, 2 + 4 and 2 + 4 + 8 steps.
        (
            "warm_restarts",
            {"period": 2, "period_multiplier": 2.0},
            {4: 1.0, 5: 0.5, 6: 1.0, 8: 0.5, 10: 1.0, 14: 0.5, 18: 1.0, 19: (1 + np.cos(np.pi / 16)) / 2},
        ),
        # Lengths 3, 4.5 and 6.75, each rounded to steps (to the even one, where two are as near).
        ("warm_restarts", {"period": 3, "period_multiplier": 1.5}, {4: 1.0, 7: 1.0, 9: 0.5, 11: 1.0, 18: 1.0}),
    ],
    ids=str,
)
def test_named_steps(name, fields, points):
    """Fractions of the peak after a warm-up of 4 steps, of 20, worked out by hand."""
    actual = rates(name, 20, 4, **fields)
    np.testing.assert_allclose([actual[step] for step in points], PEAK * np.array([*points.values()]), rtol=2e-6)
    np.testing.assert_allclose(actual[:4], PEAK * np.array([0.25, 0.5, 0.75, 1]), rtol=2e-6)


@pytest.mark.parametrize("name", ["step", "piecewise"])
def test_boundaries_inside_the_warm_up_count_when_it_ends(name):
    multipliers = (FACTOR, FACTOR**2, FACTOR**3, FACTOR**4)
    np.testing.assert_allclose(
        rates(name, 10, 4, boundaries=(1, 3, 4, 8), multipliers=multipliers),
        PEAK * np.array([0.25, 0.5, 0.75, 1] + 4 * [FACTOR**3] + 2 * [FACTOR**4]),
        rtol=1e-6,
    )


@pytest.mark.parametrize(
    ("name", "fraction", "end"),
    [
        ("cosine", 0.0, 0.0),
        ("cosine", 0.1, 0.1 * PEAK),
        ("linear", 0.0, 0.0),
        ("linear", 0.1, 0.1 * PEAK),
        ("polynomial", 0.1, 0.1 * PEAK),
        ("one_cycle", 0.0, PEAK / 250_000),
    ],
)
def test_schedule_ends(name, fraction, end):
    schedule = create_schedule(name, PEAK, total_steps=20, warmup_steps=5, end=fraction)
    np.testing.assert_allclose([schedule(20), schedule(25)], end, rtol=1e-5, atol=1e-9)
    assert schedule(19) > end


# 15 / 22 * 22 is a little less than 15 in floating point, which used to shorten the rise.
@pytest.mark.parametrize(("total", "rise"), [(40, 12), (22, 15), (100, 30), (1000, 290), (5, 1), (3, 2)])
def test_one_cycle(total, rise):
    """Smith & Topin 2018; the cosine, the 25 and the 10,000 are those of fast.ai and PyTorch."""
    step = np.arange(total)
    up = PEAK / 25 + (PEAK - PEAK / 25) * (1 - np.cos(np.pi * step / rise)) / 2
    low = PEAK / 25 / 10_000
    down = low + (PEAK - low) * (1 + np.cos(np.pi * (step - rise) / (total - rise))) / 2
    actual = rates("one_cycle", total, rise)
    np.testing.assert_allclose(actual, np.where(step < rise, up, down), rtol=1e-5, atol=1e-7 * PEAK)
    np.testing.assert_allclose([actual[0], actual[rise]], [PEAK / 25, PEAK], rtol=1e-6)


@pytest.mark.parametrize("name", CHOICES["schedule.name"])
@pytest.mark.parametrize(("total", "warmup"), [(1, 1), (2, 2), (3, 5)])
def test_training_shorter_than_the_warm_up_only_rises(name, total, warmup):
    actual = rates(name, total, warmup, boundaries=(1, 2), multipliers=(0.5, 0.2))
    assert (np.diff(actual) > 0).all() and actual[0] > 0 and actual[-1] <= np.float32(PEAK)


# ------------------------------------------------------------------------------------------------- plateau


@pytest.mark.parametrize(
    ("fields", "values", "factors"),
    [
        ({}, [0.1, 0.2, 0.3, 0.4], [1, 1, 1, 1]),
        # The third in a row that is no better, an equal one included.
        ({}, [0.5, 0.4, 0.5, 0.3, 0.2], [1, 1, 1, 0.5, 1]),
        # Counted anew after a best one and after a fall.
        ({}, [0.5, 0.4, 0.4, 0.6, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5], [1, 1, 1, 1, 1, 1, 0.5, 1, 1, 0.5]),
        ({"lowest": True}, [0.5, 0.4, 0.4, 0.4, 0.41, 0.3], [1, 1, 1, 1, 0.5, 1]),
        ({"patience": 1}, [0.5, 0.5, 0.5, 0.6], [1, 0.5, 0.5, 1]),
        ({"patience": 1}, [0.5, math.nan, 0.6], [1, 0.5, 1]),
        # 1 -> 0.5 -> 0.3 and no further.
        ({"patience": 1, "minimum": 0.3}, [0.5] * 5, [1, 0.5, 0.6, 1, 1]),
        ({"patience": 1, "factor": 1.0}, [0.5] * 3, [1, 1, 1]),
    ],
    ids=str,
)
def test_plateau(fields, values, factors):
    settings = {"factor": 0.5, "patience": 3} | fields
    plateau = Plateau(**settings)
    np.testing.assert_allclose([plateau.evaluated(value) for value in values], factors)
    assert plateau.scale == pytest.approx(math.prod(factors))

    # The same again, by a process that is killed after each evaluation.
    state, again = Plateau(**settings).state, []
    for value in values:
        resumed = Plateau(**settings, **json.loads(json.dumps(state)))
        again.append(resumed.evaluated(value))
        state = resumed.state
    np.testing.assert_allclose(again, factors)
