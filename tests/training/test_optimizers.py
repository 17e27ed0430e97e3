import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from cnn_research.config import base_config
from cnn_research.training.optimizers import create_optimizer, create_schedule, kernels

PEAK, FACTOR = 0.4, 0.3


def rates(name, total, warmup, boundaries=()):
    schedule = create_schedule(name, PEAK, total_steps=total, warmup_steps=warmup, boundaries=boundaries, factor=FACTOR)
    # As in training: compiled, with the step as an int32 on the device.
    return np.array(jax.jit(jax.vmap(schedule))(jnp.arange(total, dtype=jnp.int32)))


def after_warmup(name, t, total, boundaries, step):
    """The rate t steps after the warm-up, of `total` steps that follow it."""
    match name:
        case "constant":
            return PEAK
        case "cosine":  # Loshchilov & Hutter 2017, equation 5, one period down to 0
            return PEAK * (1 + np.cos(np.pi * t / total)) / 2
        case "linear":
            return PEAK * (1 - t / total)
        case "step":
            return PEAK * FACTOR ** sum(step >= b for b in boundaries)


@pytest.mark.parametrize("warmup", [0, 1, 2, 7, 20])
@pytest.mark.parametrize(
    ("name", "boundaries"),
    [("constant", ()), ("cosine", ()), ("linear", ()), ("step", ()), ("step", (20, 30)), ("step", (25, 25, 39))],
)
def test_schedule(name, boundaries, warmup):
    total = 40
    expected = [
        PEAK * (step + 1) / warmup
        if step < warmup
        else after_warmup(name, step - warmup, total - warmup, boundaries, step)
        for step in range(total)
    ]
    actual = rates(name, total, warmup, boundaries)
    assert actual.dtype == np.float32
    np.testing.assert_allclose(actual, expected, rtol=2e-6, atol=1e-7 * PEAK)
    assert actual[0] > 0 and actual.max() == np.float32(PEAK)


def test_schedule_boundaries_inside_the_warm_up_count_when_it_ends():
    np.testing.assert_allclose(
        rates("step", 10, 4, (1, 3, 4, 8)),
        PEAK * np.array([0.25, 0.5, 0.75, 1] + 4 * [FACTOR**3] + 2 * [FACTOR**4]),
        rtol=1e-6,
    )


@pytest.mark.parametrize(("name", "end"), [("cosine", 0.0), ("linear", 0.0), ("one_cycle", PEAK / 250_000)])
def test_schedule_ends(name, end):
    schedule = create_schedule(name, PEAK, total_steps=20, warmup_steps=5)
    np.testing.assert_allclose([schedule(20), schedule(25)], end, atol=1e-9)
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


@pytest.mark.parametrize("name", ["constant", "cosine", "linear", "step", "one_cycle"])
@pytest.mark.parametrize(("total", "warmup"), [(1, 1), (2, 2), (3, 5)])
def test_training_shorter_than_the_warm_up_only_rises(name, total, warmup):
    actual = rates(name, total, warmup, (1, 2))
    assert (np.diff(actual) > 0).all() and actual[0] > 0 and actual[-1] <= np.float32(PEAK)


# ---------------------------------------------------------------------------------------------- optimizers

MU, BETA1, BETA2, EPSILON, DECAY = 0.8, 0.85, 0.95, 1e-3, 0.1
SHAPES = {"conv": {"kernel": (2, 2, 1, 3), "bias": (3,)}, "norm": {"scale": (3,)}, "dense": {"kernel": (3, 2)}}


def decays(path, mask):
    return mask == "all" or path.endswith("kernel")


def one_update(name, p, g, m, v, k, rate, decay):
    """Update k (from 0) of one array in float64: returns the new parameter and moments."""
    if name != "adamw":
        g = g + decay * p
    match name:
        case "sgd":
            return p - rate * g, m, v
        case "momentum":  # Sutskever et al. 2013 in the form of PyTorch: the rate stands outside the velocity
            m = MU * m + g
            return p - rate * m, m, v
        case "nesterov":
            m = MU * m + g
            return p - rate * (g + MU * m), m, v
        case "adam" | "adamw":  # Kingma & Ba 2015, algorithm 1; Loshchilov & Hutter 2019, algorithm 2
            m = BETA1 * m + (1 - BETA1) * g
            v = BETA2 * v + (1 - BETA2) * g**2
            step = (m / (1 - BETA1 ** (k + 1))) / (np.sqrt(v / (1 - BETA2 ** (k + 1))) + EPSILON)
            return p - rate * (step + (decay * p if name == "adamw" else 0)), m, v


@pytest.mark.parametrize("mask", ["kernels", "all"])
@pytest.mark.parametrize("decay", [0.0, DECAY])
@pytest.mark.parametrize("name", ["sgd", "momentum", "nesterov", "adam", "adamw"])
def test_optimizer(name, decay, mask):
    config = base_config().optimizer
    config.update(name=name, momentum=MU, beta1=BETA1, beta2=BETA2, epsilon=EPSILON, weight_decay=decay, decay=mask)
    steps = 5
    schedule = create_schedule("linear", 0.3, total_steps=steps, warmup_steps=2)
    learning_rates = [0.15, 0.3, 0.3, 0.2, 0.1]
    optimizer = create_optimizer(config, schedule)

    rng = np.random.default_rng(0)
    flat = {(layer, leaf): rng.normal(size=shape) for layer, of in SHAPES.items() for leaf, shape in of.items()}
    gradients = [{path: rng.normal(size=p.shape) for path, p in flat.items()} for _ in range(steps)]

    def nested(values):
        tree = {layer: {} for layer in SHAPES}
        for (layer, leaf), value in values.items():
            tree[layer][leaf] = jnp.asarray(value, jnp.float32)
        return tree

    params = nested(flat)
    state = optimizer.init(params)
    update = jax.jit(optimizer.update)
    for gradient in gradients:
        updates, state = update(nested(gradient), state, params)
        params = optax.apply_updates(params, updates)

    for path, p in flat.items():
        m = v = np.zeros_like(p)
        for k, (gradient, rate) in enumerate(zip(gradients, learning_rates, strict=True)):
            p, m, v = one_update(name, p, gradient[path], m, v, k, rate, decay if decays(path[1], mask) else 0.0)
        np.testing.assert_allclose(params[path[0]][path[1]], p, rtol=1e-5, atol=1e-6, err_msg=str(path))


def test_kernels_are_what_has_more_than_one_axis():
    params = {"conv": {"kernel": np.ones((3, 3, 1, 2)), "bias": np.ones(2)}, "prelu": np.ones(()), "d": np.ones((2, 2))}
    assert kernels(params) == {"conv": {"kernel": True, "bias": False}, "prelu": False, "d": True}
