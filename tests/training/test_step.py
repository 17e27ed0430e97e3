import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from step_run import (
    ARRAYS,
    BATCH,
    CLASSES,
    DEVICES,
    MEAN,
    RNG,
    SHAPE,
    STD,
    Run,
    assert_close,
    assert_replicas_agree,
    convnet,
    differ,
    first,
    linear,
    train_batch,
)

from cnn_research.data import augment, views
from cnn_research.data.resident import ResidentFeed
from cnn_research.training import parallel
from cnn_research.training.state import create_state
from cnn_research.training.step import eval_step, normalise


@pytest.fixture(autouse=True, scope="module")
def eight_devices():
    assert jax.device_count() == DEVICES


# ------------------------------------------------------------------------------------------------- normalise


@pytest.mark.parametrize(
    ("channels", "mean", "std"), [(1, (0.3,), (0.35,)), (3, (0.5,), (2.0,)), (3, (0.1, 0.2, 0.3), (0.4, 0.5, 0.6))]
)
def test_normalise(channels, mean, std):
    images = RNG.integers(0, 256, (2, 5, 4, channels), dtype=np.uint8)
    images[0, 0, 0], images[0, 0, 1] = 0, 255
    actual = jax.jit(lambda x: normalise(x, mean, std))(images)
    assert actual.dtype == jnp.float32
    expected = (images.astype(np.float64) / 255 - np.array(mean)) / np.array(std)
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-6)


# ------------------------------------------------------------------------------------------------ train_step


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_update_of_a_linear_network_by_numpy(smoothing):
    run = Run(linear(), smoothing=smoothing)
    w, b = (np.asarray(run.initial.params["output"][k], np.float64) for k in ("kernel", "bias"))
    velocity, state = [np.zeros_like(w), np.zeros_like(b)], None
    for step in range(3):
        batch = train_batch(start=step * BATCH)
        images, labels = (ARRAYS[k][batch["index"]] for k in ("image", "label"))
        x = (images.reshape(BATCH, -1).astype(np.float64) / 255 - MEAN[0]) / STD[0]
        logits = x @ w + b
        p = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
        q = (1 - smoothing) * np.eye(CLASSES)[labels] + smoothing / CLASSES
        loss, right = -(q * np.log(p)).sum(), (logits.argmax(-1) == labels).sum()
        gradients = x.T @ (p - q) / BATCH, (p - q).mean(0)
        rate = 0.5 * (1 - step / 10)
        velocity = [0.9 * v + g for v, g in zip(velocity, gradients, strict=True)]
        w, b = w - rate * velocity[0], b - rate * velocity[1]

        replicas, sums = run.devices(batch, state)
        assert_replicas_agree(replicas)
        state = parallel.to_host(replicas)
        assert state.step == step + 1 and state.step.dtype == np.int32
        np.testing.assert_allclose(state.params["output"]["kernel"], w, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(state.params["output"]["bias"], b, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(sums["loss"], loss, rtol=1e-5)
        np.testing.assert_allclose(sums["learning_rate"], rate, rtol=1e-6)
        assert (sums["accuracy"], sums["top5"], sums["count"]) == (right, BATCH, BATCH)
        assert state.batch_stats == {}


class TwoHeads(nn.Module):
    """A linear network with an auxiliary head, of the zoo's contract: its logits are sown in training alone."""

    @nn.compact
    def __call__(self, x, train=False):
        x = x.reshape(x.shape[0], -1)
        auxiliary = nn.Dense(CLASSES, name="aux")(x)
        if train and not self.is_initializing():
            self.sow("auxiliary", "aux_logits", auxiliary)
        return nn.Dense(CLASSES, name="output")(x)


def test_auxiliary_heads_pull_with_their_weight_by_numpy():
    run, batch = Run(TwoHeads()), train_batch()
    replicas, sums = run.devices(batch)
    before, after = run.initial.params, parallel.to_host(replicas).params
    images, labels = (ARRAYS[name][batch["index"]] for name in ("image", "label"))
    x = ((images / 255 - MEAN) / STD).reshape(BATCH, -1)
    for head, weight in (("output", 1.0), ("aux", 0.3)):
        logits = x @ np.asarray(before[head]["kernel"], np.float64) + before[head]["bias"]
        p = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
        gradient = weight * x.T @ (p - np.eye(CLASSES)[labels]) / BATCH
        expected = before[head]["kernel"] - 0.5 * gradient  # the schedule begins at 0.5; no momentum yet
        np.testing.assert_allclose(after[head]["kernel"], expected, rtol=1e-4, atol=1e-5)
        if head == "output":  # the loss that is told is that of the network that will be used
            np.testing.assert_allclose(sums["loss"] / BATCH, -np.log(p[np.arange(BATCH), labels]).mean(), rtol=1e-5)


@pytest.fixture(scope="module")
def normalised():
    return Run(convnet())


def test_eight_devices_do_what_one_does(normalised):
    run, state, reference = normalised, None, None
    for step in range(3):
        batch = train_batch(start=step * BATCH)
        replicas, sums = run.devices(batch, state)
        reference, reference_sums = run.one(batch, reference)
        assert_replicas_agree(replicas)
        state = parallel.to_host(replicas)
        assert jax.tree.leaves(state.batch_stats) and differ(state.batch_stats, run.initial.batch_stats)
        assert_close(state, reference, rtol=2e-5, atol=2e-6)
        assert_close(sums, reference_sums, rtol=1e-5)


def test_local_batch_norm_averages_what_each_device_does_alone(normalised):
    batch = train_batch()
    local = Run(convnet(axis_name=None))
    replicas, sums = local.devices(batch)
    assert_replicas_agree(replicas)
    state = parallel.to_host(replicas)

    # The first step of SGD is linear in the gradients, so their mean shows as the mean of the parameters.
    shares = parallel.shard(batch)
    alone = [local.one({k: v[device] for k, v in shares.items()}) for device in range(DEVICES)]
    mean = jax.tree.map(lambda *leaves: np.mean(leaves, axis=0), *(s.variables for s, _ in alone))
    assert_close(state.variables, mean, rtol=2e-5, atol=2e-6)
    np.testing.assert_allclose(sums["loss"], sum(s["loss"] for _, s in alone), rtol=1e-5)
    assert differ(alone[0][0].batch_stats, alone[1][0].batch_stats)

    everyone, global_sums = normalised.one(batch)
    assert not np.allclose(state.params["conv1"]["kernel"], everyone.params["conv1"]["kernel"], rtol=1e-3)
    assert abs(global_sums["loss"] - sums["loss"]) > 1e-2


@pytest.fixture(scope="module")
def dropout():
    return Run(convnet(filters=(), dense=(5,), dropout_rate=0.5))


def test_dropout_repeats_for_the_same_seed_and_step(dropout):
    batch = train_batch()
    (a, sums_a), (b, sums_b) = dropout.devices(batch), dropout.devices(batch)
    assert not differ(a, b) and not differ(sums_a, sums_b)
    assert differ(sums_a, dropout.devices(batch, seed=1)[1])


def test_dropout_differs_between_steps(dropout):
    later = dropout.initial.replace(step=dropout.initial.step + 1)
    losses = [float(dropout.devices(train_batch(), state)[1]["loss"]) for state in (dropout.initial, later)]
    assert abs(losses[0] - losses[1]) > 1e-3


def test_dropout_differs_between_devices(dropout):
    # All devices see the same four examples. If they dropped the same units, they would all have the loss of the first.
    share = np.arange(BATCH // DEVICES)
    everywhere = dropout.devices(train_batch(index=np.tile(share, DEVICES)))[1]["loss"] / DEVICES
    alone = dropout.one(train_batch(index=share, size=len(share)))[1]["loss"]
    assert abs(everywhere - alone) > 1e-3


@pytest.fixture(scope="module")
def shifted():
    return Run(linear(), augmentation="shift(2)|flip")


def test_augmentation_depends_on_the_position_not_on_device_or_step(shifted):
    batch = train_batch()
    expected = shifted.devices(batch)
    # The same examples with their positions, dealt to the devices in another order.
    order = RNG.permutation(BATCH)
    dealt = shifted.devices({name: values[order] for name, values in batch.items()})
    assert_close(parallel.to_host(dealt[0]), parallel.to_host(expected[0]), rtol=1e-5, atol=1e-6)
    assert_close(dealt[1], expected[1], rtol=1e-5)

    later = shifted.initial.replace(step=shifted.initial.step + 5)
    np.testing.assert_allclose(shifted.devices(batch, later)[1]["loss"], expected[1]["loss"], rtol=1e-6)


def test_augmentation_is_another_at_another_position_and_seed(shifted):
    batch = train_batch()
    moved = batch | {"position": batch["position"] + np.uint32(50)}
    loss = shifted.devices(batch)[1]["loss"]
    assert abs(shifted.devices(moved)[1]["loss"] - loss) > 1e-2
    assert abs(shifted.devices(batch, seed=1)[1]["loss"] - loss) > 1e-2
    # One position given to all examples: all images are changed alike, not each in a way of its own.
    image = ARRAYS["image"][:BATCH]
    alike = augment.apply(augment.parse("shift(2)|flip"), jax.random.key(0), np.zeros(BATCH, np.uint32), image)
    own = augment.apply(augment.parse("shift(2)|flip"), jax.random.key(0), batch["position"], image)
    assert differ(alike, own)


def test_bfloat16_keeps_what_is_kept_in_float32(normalised):
    runs = normalised, Run(convnet(dtype="bfloat16"))
    states, sums = zip(*(run.one(train_batch()) for run in runs), strict=True)
    assert jax.tree.map(lambda x: x.dtype, states[1]) == jax.tree.map(lambda x: x.dtype, states[0])
    assert {x.dtype for x in jax.tree.leaves(states[1].variables)} == {np.dtype("float32")}
    assert {name: x.dtype.name for name, x in sums[1].items() if name != "count"} == dict.fromkeys(
        ("loss", "accuracy", "top5", "learning_rate", "gradient_norm", "update_norm", "parameter_norm"), "float32"
    )
    # The computation itself is in bfloat16: near, with its 8 bits, but not the same.
    difference = abs(sums[0]["loss"] - sums[1]["loss"]) / sums[0]["loss"]
    assert 1e-6 < difference < 0.02


# ------------------------------------------------------------------------------------------------- eval_step


def evaluate(model, variables, batch, **kwargs):
    step = functools.partial(
        eval_step, gather=ResidentFeed.gather, mean=MEAN, std=STD, model=model, axis_name=parallel.AXIS, **kwargs
    )
    on_devices = parallel.replicate(variables)
    sums = parallel.pmap_step(step, donate_state=False)(on_devices, parallel.replicate(ARRAYS), parallel.shard(batch))
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves(on_devices))
    assert not differ(parallel.to_host(on_devices), variables)
    return parallel.to_host(sums)


def test_eval_step_counts_what_the_mask_lets_through():
    # Running statistics that differ from the batch's, and dropout: both would show if the network ran as in training.
    model = convnet(dense=(5,), dropout_rate=0.5)
    initial = create_state(model, optax.sgd(0.1), 0, SHAPE).variables
    variables = jax.tree.map(np.asarray, initial)
    variables["batch_stats"] = jax.tree.map(lambda x: x + np.float32(0.5), variables["batch_stats"])
    mask = RNG.random(BATCH) < 0.6
    batch = {"index": np.where(mask, np.arange(BATCH), 0).astype(np.int32), "mask": mask}
    sums = evaluate(model, variables, batch)

    images, labels = ARRAYS["image"][:BATCH][mask], ARRAYS["label"][:BATCH][mask]
    x = ((images.astype(np.float64) / 255 - MEAN[0]) / STD[0]).astype(np.float32)
    logits = np.asarray(model.apply(variables, x, train=False), np.float64)
    log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    np.testing.assert_allclose(sums["loss"], -log_p[np.arange(len(labels)), labels].sum(), rtol=1e-5)
    assert sums["accuracy"] == (logits.argmax(-1) == labels).sum()
    assert sums["count"] == mask.sum() == sums["top5"]


@pytest.mark.parametrize("crop_size", [0, 4])
def test_eval_step_averages_the_probabilities_of_the_views(crop_size):
    """Four corners, the centre and their mirror images, each normalised and predicted by NumPy; or the whole image."""
    model, ten = linear(), {"crop_size": 4, "crops": "ten"} if crop_size else {"flip": True}
    shape = (crop_size, crop_size, 1) if crop_size else SHAPE
    variables = jax.tree.map(np.asarray, create_state(model, optax.sgd(0.1), 0, shape).variables)
    variables["params"]["output"]["kernel"] = 8 * variables["params"]["output"]["kernel"]  # views that disagree
    batch = {"index": np.arange(BATCH, dtype=np.int32), "mask": np.ones(BATCH, bool)}
    sums = evaluate(model, variables, batch, make_views=functools.partial(views.make_views, **ten))

    images, labels = ARRAYS["image"][:BATCH], ARRAYS["label"][:BATCH]
    size = shape[0]
    places = [(0, 0), (0, 2), (2, 0), (2, 2), (1, 1)] if crop_size else [(0, 0)]
    crops = [images[:, top : top + size, left : left + size] for top, left in places]
    probabilities = []
    for view in [*crops, *(crop[:, :, ::-1] for crop in crops)]:
        x = ((view.astype(np.float64) / 255 - MEAN[0]) / STD[0]).reshape(BATCH, -1)
        logits = x @ variables["params"]["output"]["kernel"] + variables["params"]["output"]["bias"]
        probabilities.append(np.exp(logits) / np.exp(logits).sum(-1, keepdims=True))
    mean = np.mean(probabilities, axis=0)
    np.testing.assert_allclose(sums["loss"], -np.log(mean[np.arange(BATCH), labels]).sum(), rtol=1e-5)
    assert sums["accuracy"] == (mean.argmax(-1) == labels).sum() and sums["count"] == BATCH
    mean_of_logs = np.mean(np.log(probabilities), axis=0)
    assert abs(-mean_of_logs[np.arange(BATCH), labels].sum() / sums["loss"] - 1) > 0.01, "a mean that can be told apart"


def test_eval_step_of_nothing_but_padding():
    model = linear()
    variables = jax.tree.map(np.asarray, create_state(model, optax.sgd(0.1), 0, SHAPE).variables)
    batch = {"index": np.zeros(DEVICES, np.int32), "mask": np.zeros(DEVICES, bool)}
    assert evaluate(model, variables, batch) == {"loss": 0, "accuracy": 0, "top5": 0, "count": 0}


def test_mixing_pairs_each_image_with_the_one_before_it_on_any_number_of_devices():
    """With mixup, a linear network's logits are those of the mixed images; the weights are read off the mix itself."""
    run = Run(linear(), mixing="mixup(1)")
    batch = train_batch()
    (state, sums), (expected, expected_sums) = run.devices(batch), run.one(batch)
    for a, b in zip(jax.tree.leaves(first(state)), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)
    np.testing.assert_allclose(sums["loss"], expected_sums["loss"], rtol=1e-5)

    key = jax.random.fold_in(jax.random.key(0), 2)
    share = np.array(
        [jax.random.beta(jax.random.fold_in(key, position), 1.0, 1.0) for position in batch["position"]], np.float64
    )[:, None]
    images = np.asarray(normalise(ARRAYS["image"][batch["index"]], MEAN, STD), np.float64).reshape(BATCH, -1)
    targets = np.eye(CLASSES)[ARRAYS["label"][batch["index"]]]
    images, targets = (share * x + (1 - share) * np.roll(x, 1, axis=0) for x in (images, targets))
    layer = jax.tree.map(lambda x: np.asarray(x, np.float64), run.initial.params["output"])
    logits = images @ layer["kernel"] + layer["bias"]
    log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    np.testing.assert_allclose(sums["loss"], -(targets * log_p).sum(), rtol=1e-5)
