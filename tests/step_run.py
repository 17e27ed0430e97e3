"""One training step of a tiny network, compiled for all devices and for one."""

import functools

import jax
import numpy as np
import optax

from cnn_research.data import augment, mix
from cnn_research.data.resident import ResidentFeed
from cnn_research.models import registry
from cnn_research.training import parallel
from cnn_research.training.losses import softmax_cross_entropy
from cnn_research.training.schedules import create_schedule
from cnn_research.training.state import create_state
from cnn_research.training.step import network_input, train_step

DEVICES, BATCH, CLASSES, SHAPE = 8, 32, 3, (6, 6, 1)
MEAN, STD = (0.4,), (0.3,)
RNG = np.random.default_rng(0)
ARRAYS = {
    "image": RNG.integers(0, 256, (50, *SHAPE), dtype=np.uint8),
    "label": RNG.integers(0, CLASSES, 50).astype(np.int32),
}


def linear():
    """Logits = x W + b: its update can be written down."""
    return registry.create_model("convnet", CLASSES, filters=(), dense=())


def convnet(axis_name=parallel.AXIS, **fields):
    fields = {"filters": (3,), "batch_norm": "after_conv", "dense": ()} | fields
    return registry.create_model("convnet", CLASSES, axis_name=axis_name, **fields)


class Run:
    """A network with its compiled step, on all devices or, as the reference, on one without pmap."""

    def __init__(self, model, *, augmentation="", mixing="", smoothing=0.0, std=STD, loss_scaling=False, **options):
        schedule = create_schedule("linear", 0.5, total_steps=10, warmup_steps=0)
        optimizer = optax.sgd(schedule, momentum=0.9)
        averaging = "ema_decay" in options
        self.initial = create_state(
            model, optimizer, seed=3, image_shape=SHAPE, averaging=averaging, loss_scaling=loss_scaling
        )
        make_input = functools.partial(
            network_input,
            gather=ResidentFeed.gather,
            augmentation=augment.parse(augmentation),
            mixing=mix.parse(mixing),
            mean=MEAN,
            std=std,
            num_classes=CLASSES,
            axis_name=parallel.AXIS,
        )
        step = functools.partial(
            train_step,
            make_input=make_input,
            model=model,
            loss=functools.partial(softmax_cross_entropy, label_smoothing=smoothing),
            auxiliary_weight=0.3,
            optimizer=optimizer,
            schedule=schedule,
            axis_name=parallel.AXIS,
            **options,
        )
        self.step = step
        self.on_devices = parallel.pmap_step(step, donate_state=False)
        self.on_one = jax.jit(jax.vmap(step, axis_name=parallel.AXIS))

    def devices(self, batch, state=None, seed=0):
        """One step on eight devices: the replicas of the state, and the metric sums."""
        state = jax_tree_copies(state or self.initial, DEVICES)
        state, sums = self.on_devices(
            state, parallel.replicate(ARRAYS), parallel.shard(batch), parallel.replicate(jax.random.key(seed))
        )
        return state, parallel.to_host(sums)

    def one(self, batch, state=None, seed=0):
        """One step on a single device that is given the whole batch as its share."""
        state, sums = self.on_one(
            jax_tree_copies(state or self.initial, 1),
            jax_tree_copies(ARRAYS, 1),
            jax_tree_copies(batch, 1),
            jax.random.key(seed)[None],
        )
        return first(state), first(sums)


def jax_tree_copies(tree, n):
    return jax.tree.map(lambda x: np.stack([np.asarray(x)] * n), tree)


def first(tree):
    return jax.tree.map(lambda x: np.asarray(x)[0], tree)


def train_batch(start=0, size=BATCH, index=None):
    index = (np.arange(size) * 7 + start) % 50 if index is None else index
    return {"index": index.astype(np.int32), "position": np.arange(start, start + size).astype(np.uint32)}


def assert_close(actual, expected, **tolerance):
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    paths = [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(expected)]
    for path, a, e in zip(paths, jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, e, err_msg=path, **tolerance)


def assert_replicas_agree(state):
    for leaf in jax.tree.leaves(state):
        leaf = np.asarray(leaf)
        np.testing.assert_array_equal(leaf, np.broadcast_to(leaf[:1], leaf.shape))


def differ(a, b):
    return not all(np.array_equal(x, y) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))
