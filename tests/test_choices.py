import inspect
import re
from contextlib import closing

import jax
import numpy as np
import optax
import pytest
from configs_for_tests import changed

from cnn_research import config as configs
from cnn_research.config import CHOICES, base_config, set_field
from cnn_research.data import resize, views
from cnn_research.data.resident import ResidentFeed
from cnn_research.data.sources import open_source
from cnn_research.data.streaming import StreamingFeed
from cnn_research.errors import UserError
from cnn_research.models import layers, registry, resnet
from cnn_research.training import losses, metrics, optimizers, parallel, schedules
from cnn_research.training.checkpoints import Checkpoints
from cnn_research.training.feeds import open_feeds
from cnn_research.training.setup import Experiment


@pytest.fixture(scope="module")
def digits():
    return open_source("digits", "test")


def use_interpolation(value, digits, tmp_path):
    assert ResidentFeed(digits, image_size=9, interpolation=value).image_shape == (9, 9, 1)


def use_resize(value, digits, tmp_path):
    assert ResidentFeed(digits, image_size=9, how=value).image_shape == (9, 9, 1)


def use_feed(value, digits, tmp_path):
    (feed,) = open_feeds(changed(dataset__feed=value, dataset__cache=""), (), "test").values()
    assert type(feed) is (StreamingFeed if value == "streaming" else ResidentFeed)


def use_streaming(keyword):
    def use(value, digits, tmp_path):
        feed = StreamingFeed(digits, image_size=9, workers=1, **{keyword: value})
        with closing(feed.train_batches(0, 2)) as batches:
            assert next(batches)["image"].shape == (2, 9, 9, 1)

    return use


def use_crops(value, digits, tmp_path):
    assert len(views.make_views(np.zeros((1, 8, 8, 1), np.uint8), crop_size=6, crops=value)) in (1, 10)


def use_optimizer(value, digits, tmp_path, **fields):
    config = changed(optimizer__name=value, **fields).optimizer
    assert isinstance(optimizers.create_optimizer(config, optax.constant_schedule(0.1)), optax.GradientTransformation)


def use_decay(value, digits, tmp_path):
    """Two parameters of which one is a vector tell the choices apart."""
    config = changed(optimizer__name="sgd", optimizer__weight_decay=1.0, optimizer__decay=value).optimizer
    optimizer = optimizers.create_optimizer(config, optax.constant_schedule(1.0))
    params = {"kernel": np.ones((2, 2), np.float32), "bias": np.ones(2, np.float32)}
    updates, _ = optimizer.update(jax.tree.map(np.zeros_like, params), optimizer.init(params), params)
    assert (updates["bias"] != 0).all() == (value == "all") and (updates["kernel"] == -1).all()


def use_decay_kind(value, digits, tmp_path):
    """Adam's first step is as long as its learning rate, whatever is added to the gradient."""
    fields = {"optimizer__name": "adam", "optimizer__weight_decay": 3.0, "optimizer__decay_kind": value}
    optimizer = optimizers.create_optimizer(changed(**fields).optimizer, optax.constant_schedule(1.0))
    params = {"kernel": np.ones((2, 2), np.float32)}
    updates, _ = optimizer.update(params, optimizer.init(params), params)
    np.testing.assert_allclose(updates["kernel"], -4 if value == "decoupled" else -1, rtol=1e-5)


def use_clip(value, digits, tmp_path):
    """Gradients of 6 where weights are 1 tell the choices apart; the norm of four of them is 12."""
    fields = {"optimizer__name": "sgd", "optimizer__clip": value, "optimizer__clip_threshold": 2.0}
    optimizer = optimizers.create_optimizer(changed(**fields).optimizer, optax.constant_schedule(1.0))
    params = {"kernel": np.ones((2, 2), np.float32)}
    updates, _ = optimizer.update({"kernel": 6 * params["kernel"]}, optimizer.init(params), params)
    clipped = {"none": 6.0, "global_norm": 1.0, "value": 2.0, "adaptive": 2.0}[value]
    np.testing.assert_allclose(updates["kernel"], -clipped, rtol=1e-6)


def use_schedule(value, digits, tmp_path):
    lengths = {"total_steps": 10, "warmup_steps": 3, "boundaries": (5,), "multipliers": (0.5,)}
    assert 0 < schedules.create_schedule(value, 0.1, **lengths, factor=0.1)(4) <= 0.1


def use_loss(value, digits, tmp_path):
    loss = losses.create_loss(changed(loss__name=value).loss, 3)
    assert loss(np.zeros((2, 3), np.float32), np.zeros(2, np.int32)).shape == (2,)


def use_precision(value, digits, tmp_path):
    assert registry.create_model("lenet5", 10, dtype=value).dtype == np.dtype(value)


def use_experiment(value, digits, tmp_path, field):
    config = changed(model__name="convnet", model__batch_norm="after_conv")
    set_field(config, field, value)
    Experiment(config, ResidentFeed(digits)).train_step()


def use_best_metric(value, digits, tmp_path):
    assert value in metrics.NAMES
    with Checkpoints(tmp_path / "checkpoints", changed(checkpoint__best_metric=value).checkpoint) as checkpoints:
        assert checkpoints.is_best(dict.fromkeys(metrics.NAMES, 0.5))


def use_matmul_precision(value, digits, tmp_path):
    parallel.set_matmul_precision(value)
    np.testing.assert_allclose(jax.jit(lambda x: x @ x)(np.eye(3)), np.eye(3))
    parallel.set_matmul_precision("default")


def use_init(field):
    """What becomes of the weights is looked at in tests/training/test_pretrained.py."""

    def use(value, digits, tmp_path):
        config = changed(**{f"init__{field}": value, "init__weights": str(tmp_path / "none")})
        with pytest.raises(UserError, match="neither a folder"):
            Experiment(config, ResidentFeed(digits, image_size=32)).initial_state()

    return use


READERS = {
    "init.checkpoint": use_init("checkpoint"),
    "init.head": use_init("head"),
    "dataset.feed": use_feed,
    "dataset.train_crop": use_streaming("crop"),
    "dataset.worker_kind": use_streaming("worker_kind"),
    "dataset.on_error": use_streaming("on_error"),
    "dataset.interpolation": use_interpolation,
    "dataset.resize": use_resize,
    "evaluation.crops": use_crops,
    "optimizer.name": use_optimizer,
    "optimizer.decay": use_decay,
    "optimizer.rest": lambda value, *_: use_optimizer("muon", *_, optimizer__rest=value),
    "optimizer.decay_kind": use_decay_kind,
    "optimizer.clip": use_clip,
    "schedule.name": use_schedule,
    "loss.name": use_loss,
    "precision": use_precision,
    "matmul_precision": use_matmul_precision,
    # What a run does then is looked at in tests/end_to_end/test_survival.py.
    "on_divergence": lambda *args: None,
    "batch_norm": lambda *args: use_experiment(*args, "batch_norm"),
    "checkpoint.best_metric": use_best_metric,
}


@pytest.mark.parametrize(("field", "value"), [(field, value) for field in CHOICES for value in CHOICES[field]])
def test_every_choice_is_accepted_by_the_code_that_reads_it(field, value, digits, tmp_path):
    READERS[field](value, digits, tmp_path)


def test_choices_are_all_that_the_code_knows():
    assert set(CHOICES["dataset.interpolation"]) == set(resize.INTERPOLATIONS)
    assert CHOICES["dataset.resize"] == resize.HOW and CHOICES["evaluation.crops"] == views.CROPS
    assert set(CHOICES["checkpoint.best_metric"]) == set(metrics.NAMES)


def comments():
    """{field: its line in base_config() and the comment above it, without what stands in parentheses}."""
    lines, above = {}, ""
    for line in inspect.getsource(base_config).splitlines():
        if found := re.match(r"\s+config\.([\w.]+) = (?!ConfigDict)(.*)", line):
            lines[found[1]] = re.sub(r"\([^()]*\)", "", f"{above} {found[2]}")
        above = f"{above} {line.strip(' #')}" if line.strip().startswith("#") else ""
    return lines


@pytest.mark.parametrize(
    ("field", "names"),
    [
        *CHOICES.items(),
        ("model.activation", layers.ACTIVATIONS),
        ("model.kernel_init", ["paper", *layers.INITIALIZERS]),
        ("model.pool", [*layers.POOLS, "none"]),
        ("model.batch_norm", ["none", "after_conv", "after_pool"]),
        ("model.stem", resnet.STEMS),
        ("model.shortcut", resnet.SHORTCUTS),
    ],
)
def test_the_comments_list_the_same_names(field, names):
    line = comments()[field]
    words = re.findall(r"\w+", line)
    assert not set(names) - set(words)
    # An alternative that the comment lists and the code doesn't know. Before the first bar stands other text too.
    listed = [re.match(r"\s*(\w+)", part)[1] for part in line.split(" | ")[1:]]
    assert not set(listed) - set(names)


def test_the_network_fields_are_those_of_the_networks():
    known = {field for name in registry.list_models() for field in registry.model_fields(name)}
    assert set(base_config().model.to_dict()) - {"name"} == known


def test_model_fields_are_those_that_are_set():
    config = changed(model__name="convnet", model__filters=(4, 8), model__dropout_rate=0.0)
    assert configs.model_fields(config) == {"filters": (4, 8), "dropout_rate": 0.0}
    assert configs.model_fields(base_config()) == {}
