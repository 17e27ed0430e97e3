"""What a training step may do besides: accumulate, average, scale the loss, leave statistics alone."""

import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from step_run import ARRAYS, BATCH, CLASSES, MEAN, STD, Run, assert_close, convnet, differ, linear, train_batch

from cnn_research.models import cpu
from cnn_research.training import parallel
from cnn_research.training.state import TrainState
from cnn_research.training.step import _adapted


@pytest.mark.parametrize("unroll", [True, False])
@pytest.mark.parametrize("accumulation", [2, 4])
def test_accumulation_is_the_large_batch(accumulation, unroll):
    batch = train_batch(size=256)
    whole, parts = (
        Run(convnet(batch_norm="none", dense=(5,)), **o) for o in ({}, dict(accumulation=accumulation, unroll=unroll))
    )
    (expected, expected_sums), (found, sums) = whole.devices(batch), parts.devices(batch)
    for path, leaf in jax.tree_util.tree_leaves_with_path(expected.params):
        other = found.params
        for key in path:
            other = other[key.key]
        assert np.linalg.norm(other - leaf) <= 1e-6 * np.linalg.norm(leaf), path
    assert_close(sums, expected_sums, rtol=1e-5)


def test_a_part_is_what_batch_normalisation_sees_under_accumulation():
    """The statistics after two parts are those of two steps, the second of which begins with those of the first."""
    run, parts = Run(convnet()), Run(convnet(), accumulation=2)
    batch = train_batch()
    half = [{name: values[part] for name, values in batch.items()} for part in (slice(0, 16), slice(16, 32))]
    one, _ = run.one(half[0])
    two, _ = run.one(half[1], run.initial.replace(batch_stats=one.batch_stats))
    found, _ = parts.one(batch)
    assert_close(found.batch_stats, two.batch_stats, rtol=1e-5)
    mean = jax.tree.map(lambda *p: np.mean(p, axis=0), one.params, two.params)  # SGD's first step is linear
    assert_close(found.params, mean, rtol=1e-4, atol=1e-6)


def test_moving_averages_by_numpy():
    run, state, average = Run(convnet(), ema_decay=0.3), None, None
    for step in range(4):
        state = parallel.to_host(run.devices(train_batch(step * BATCH), state)[0])
        decay = min(0.3, (1 + step) / (10 + step))
        average = run.initial.variables if average is None else average
        average = jax.tree.map(lambda old, new, d=decay: d * old + (1 - d) * new, average, state.variables)
        assert_close(state.averaged, average, rtol=1e-5, atol=1e-7)
    assert state.network is state.averaged and differ(state.averaged, state.variables)
    assert_close(TrainState.from_parts(state.network, state.training), state, rtol=0)


@pytest.mark.parametrize(
    ("scale", "good_steps", "finite", "expected"),
    [
        (1024.0, 7, True, (1024.0, 8)),
        (1024.0, 7, False, (512.0, 0)),
        (1024.0, 1999, True, (2048.0, 0)),
        (2.0**15, 1999, True, (2.0**15, 0)),  # float16 ends at 65,504
        (1.0, 3, False, (1.0, 0)),
    ],
)
def test_loss_scale(scale, good_steps, finite, expected):
    found = _adapted({"scale": jnp.float32(scale), "good_steps": jnp.int32(good_steps)}, jnp.bool_(finite))
    assert (float(found["scale"]), int(found["good_steps"])) == expected


def test_scaling_the_loss_changes_no_update():
    plain, scaled = Run(convnet()), Run(convnet(), loss_scaling=True)
    expected, found = (parallel.to_host(run.devices(train_batch())[0]) for run in (plain, scaled))
    assert_close(found.variables, expected.variables, rtol=1e-6)  # a power of two loses no digit
    assert found.loss_scale["good_steps"] == 1


def test_an_overflowing_gradient_changes_nothing_but_step_and_scale():
    run = Run(linear(), loss_scaling=True, ema_decay=0.9)
    scale = {"scale": np.float32(np.inf), "good_steps": np.int32(5)}
    state = run.initial.replace(loss_scale=scale)
    found, sums = run.devices(train_batch(), state)
    found = parallel.to_host(found)
    assert not np.isfinite(sums["gradient_norm"]) and np.isfinite(sums["loss"])
    assert found.step == 1 and found.loss_scale["good_steps"] == 0 and found.loss_scale["scale"] == 2.0**15
    for part in ("params", "batch_stats", "opt_state", "averaged"):
        assert not differ(getattr(found, part), getattr(state, part)), part


def test_float16_learns_what_float32_does():
    runs = Run(convnet()), Run(convnet(dtype="float16"), loss_scaling=True)
    states, sums = zip(*(run.one(train_batch()) for run in runs), strict=True)
    assert {x.dtype for x in jax.tree.leaves(states[1].variables)} == {np.dtype("float32")}
    assert sums[1]["loss_scale"] == 2.0**15
    difference = abs(sums[0]["loss"] - sums[1]["loss"]) / sums[0]["loss"]
    assert 1e-7 < difference < 2e-3  # 11 bits
    moved = [
        jax.flatten_util.ravel_pytree(jax.tree.map(np.subtract, state.params, run.initial.params))[0]
        for state, run in zip(states, runs, strict=True)
    ]
    assert np.dot(*moved) / np.prod([np.linalg.norm(m) for m in moved]) > 0.999


def test_norms_by_numpy():
    run = Run(linear())
    state, sums = run.devices(train_batch())
    after = parallel.to_host(state).params

    def norm(tree):
        return np.sqrt(sum(np.sum(np.square(leaf, dtype=np.float64)) for leaf in jax.tree.leaves(tree)))

    update = norm(jax.tree.map(np.subtract, after, run.initial.params))
    np.testing.assert_allclose(sums["update_norm"], update, rtol=1e-4)
    np.testing.assert_allclose(sums["gradient_norm"], update / 0.5, rtol=1e-4)  # the first step's rate is 0.5
    np.testing.assert_allclose(sums["parameter_norm"], norm(after), rtol=1e-5)


def test_frozen_parameters_have_no_gradient_and_count_in_no_norm():
    def frozen(params):
        return jax.tree_util.tree_map_with_path(lambda path, _: path[0].key == "conv1", params)

    plain, run = Run(convnet()), Run(convnet(), frozen=frozen)
    (expected, plain_sums), (found, sums) = plain.devices(train_batch()), run.devices(train_batch())
    before, expected, found = run.initial.params, parallel.to_host(expected).params, parallel.to_host(found).params
    assert not differ(found.pop("conv1"), before["conv1"]) and differ(expected.pop("conv1"), before["conv1"])
    assert_close(found, expected, rtol=1e-5, atol=1e-7)
    moved = jax.tree.map(lambda old, new: np.sum((new - old) ** 2), {name: before[name] for name in found}, found)
    norm = np.sqrt(sum(jax.tree.leaves(moved))) / 0.5  # the first step's rate
    np.testing.assert_allclose(sums["gradient_norm"], norm, rtol=1e-4)
    assert sums["gradient_norm"] < plain_sums["gradient_norm"]


@pytest.mark.parametrize("options", [{}, {"accelerate": cpu.accelerate}])
def test_frozen_batch_normalisation_is_that_of_evaluation(options):
    model = convnet(axis_name=None)
    run, batch = Run(model, is_frozen=lambda path: path == "norm1", **options), train_batch()
    stats = {"norm1": {"mean": np.float32([0.3, -0.2, 0.1]), "var": np.float32([0.5, 2.0, 1.0])}}
    state = run.initial.replace(batch_stats=stats)
    found = parallel.to_host(run.devices(batch, state)[0])
    assert not differ(found.batch_stats, stats)

    def loss(params):
        images = (ARRAYS["image"][batch["index"]] / 255 - MEAN[0]) / STD[0]
        logits = model.apply({"params": params, "batch_stats": stats}, jnp.float32(images), train=False)
        labels = jax.nn.one_hot(ARRAYS["label"][batch["index"]], CLASSES)
        return optax.softmax_cross_entropy(logits, labels).mean()

    expected = jax.tree.map(lambda p, g: p - 0.5 * g, run.initial.params, jax.grad(loss)(run.initial.params))
    assert_close(found.params, expected, rtol=1e-4, atol=1e-6)
    thawed = parallel.to_host(Run(model, is_frozen=lambda path: False).devices(batch, state)[0])
    assert differ(thawed.batch_stats, stats)
