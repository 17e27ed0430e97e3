import inspect
import json
import re
from contextlib import closing

import jax
import numpy as np
import optax
import pytest

from cnn_research import config as configs
from cnn_research.config import CHOICES, RESUMABLE, base_config, differences, from_json, to_json, to_steps, validate
from cnn_research.data import resize, views
from cnn_research.data.resident import ResidentFeed
from cnn_research.data.sources import open_source
from cnn_research.data.streaming import StreamingFeed
from cnn_research.errors import UserError
from cnn_research.models import layers, registry, resnet
from cnn_research.training import losses, metrics, optimizers
from cnn_research.training.checkpoints import Checkpoints
from cnn_research.training.setup import Experiment, open_feeds


def set_field(config, field, value):
    *sections, name = field.split(".")
    for section in sections:
        config = config[section]
    config[name] = value


def changed(**fields):
    """The base config with fields set: `optimizer__name="sgd"`."""
    config = base_config()
    for field, value in fields.items():
        set_field(config, field.replace("__", "."), value)
    return config


def problems(config, num_devices=1):
    with pytest.raises(UserError) as caught:
        validate(config, num_devices)
    return str(caught.value).splitlines()


# ----------------------------------------------------------------------------------------------- durations


# 1000 examples in batches of 64 are 15.625 steps an epoch.
@pytest.mark.parametrize(
    ("text", "steps"),
    [
        ("1ep", 16),  # 15.625
        ("2ep", 31),  # 31.25
        ("20ep", 312),  # 312.5 goes to the even neighbour
        ("0.5ep", 8),  # 7.8125
        ("0.01ep", 1),  # 0.16, but a duration above nothing is at least one step
        ("0ep", 0),
        ("5000st", 5000),
        ("1st", 1),
        ("0st", 0),
        ("0.2st", 1),
        ("64ex", 1),
        ("95ex", 1),  # 1.48
        ("97ex", 2),  # 1.52
        ("1000000ex", 15625),
        ("0ex", 0),
        ("10%", 20),
        ("2.3%", 5),  # 4.6
        ("0.1%", 1),
        ("0%", 0),
        ("100%", 200),
        (" 7st ", 7),
    ],
)
def test_to_steps(text, steps):
    assert to_steps(text, batch_size=64, num_examples=1000, total_steps=200) == steps


@pytest.mark.parametrize(
    "text",
    ["", "5", "ep", "5 ep", "5epochs", "5EP", "-5ep", "+5ep", ".5ep", "5.ep", "1e3st", "5ep5st", "1,000st", "nan%"],
)
def test_to_steps_refuses(text):
    with pytest.raises(UserError) as caught:
        to_steps(text, batch_size=64, num_examples=1000, total_steps=200)
    message = str(caught.value)
    assert repr(text) in message and '"5000st"' in message and '"10%"' in message and "\n" not in message


def test_to_steps_refuses_a_percentage_of_nothing():
    with pytest.raises(UserError) as caught:
        to_steps("10%", batch_size=64, num_examples=1000)
    assert "'10%'" in str(caught.value) and '"10%"' not in str(caught.value)


# ---------------------------------------------------------------------------------------------- validation


def test_base_config_is_valid_and_locked():
    config = base_config()
    validate(config)
    with pytest.raises(AttributeError):
        config.batchsize = 1
    with pytest.raises(AttributeError):
        config.optimizer.lr = 1.0
    assert base_config() is not config


BAD = [
    ("model.name", "lenet6", "lenet5"),
    ("model.filters", (8,), "lenet5 has no such field"),
    ("dataset.feed", "ressident", "resident"),
    ("dataset.interpolation", "cubic", "bicubic"),
    ("dataset.train_crop", "resized", "random_resized_crop"),
    ("dataset.train_crop", "random_resized_crop", "image_size"),
    ("dataset.on_error", "skipp", "skip"),
    ("dataset.worker_kind", "process", "processes"),
    ("dataset.workers", -2, "at least -1"),
    ("dataset.image_size", -1, "at least 0"),
    ("dataset.resize", "centre", "crop"),
    ("evaluation.image_size", -1, "at least 0"),
    ("evaluation.crop_size", -1, "at least 0"),
    ("evaluation.crops", "five", "ten"),
    ("evaluation.crops", "ten", "evaluation.crop_size"),
    ("evaluation.flip", None, "must be set"),
    ("dataset.mean", (), "one value"),
    ("dataset.mean", (float("nan"),), "one value"),
    ("dataset.mean", (0.5, float("inf"), 0.5), "one value"),
    ("dataset.std", (), "one value"),
    ("dataset.std", (0.5, 0.0, 0.5), "above 0"),
    ("dataset.std", (-1.0,), "above 0"),
    ("dataset.std", (float("nan"),), "above 0"),
    ("dataset.std", (float("inf"),), "above 0"),
    ("dataset.mean", ("a", "b"), "numbers"),
    ("dataset.mean", (0.1, None), "numbers"),
    ("dataset.std", ("a",), "numbers"),
    ("dataset.std", None, "must be set"),
    ("mix", "mixop(0.2)", "mixup"),
    ("mix", "cutmix(0)", "alpha"),
    ("augment", None, "must be set"),
    ("augment", "flipp", "flip"),
    ("augment", "shift", "shift"),
    ("augment", "shift(-1)", "shift"),
    ("seed", -1, "at least 0"),
    ("seed", 2**32, "below 2**32"),
    ("batch_size", 0, "at least 1"),
    ("batch_size", -8, "at least 1"),
    ("eval_batch_size", 0, "at least 1"),
    ("duration", "20", "unit"),
    ("duration", None, "must be set"),
    ("duration", "50%", "unit"),
    ("duration", "0ep", "longer"),
    ("optimizer.name", "adamW", "adamw"),
    ("optimizer.name", None, "must be set"),
    ("optimizer.learning_rate", 0.0, "above 0"),
    ("optimizer.learning_rate", -0.1, "above 0"),
    ("optimizer.learning_rate", float("nan"), "above 0"),
    ("optimizer.learning_rate", float("inf"), "above 0"),
    ("optimizer.momentum", 1.0, "below 1"),
    ("optimizer.momentum", -0.1, "below 1"),
    ("optimizer.beta1", 1.0, "below 1"),
    ("optimizer.beta2", 1.5, "below 1"),
    ("optimizer.beta2", float("nan"), "below 1"),
    ("optimizer.epsilon", 0.0, "above 0"),
    ("optimizer.weight_decay", -1e-4, "at least 0"),
    ("optimizer.weight_decay", float("inf"), "at least 0"),
    ("optimizer.decay", "kernel", "kernels"),
    ("schedule.name", "onecycle", "one_cycle"),
    ("schedule.warmup", "5", "unit"),
    ("schedule.boundaries", ("50%", "75"), "'75'"),
    ("schedule.boundaries", (5,), "texts"),
    ("schedule.factor", 0.0, "above 0"),
    ("schedule.factor", 1.1, "at most 1"),
    ("loss.name", "cross_entropy", "softmax_cross_entropy"),
    ("loss.auxiliary_weight", -0.1, "at least 0"),
    ("loss.label_smoothing", 1.0, "below 1"),
    ("loss.label_smoothing", -0.1, "below 1"),
    ("precision", "float16", "float32"),
    ("batch_norm", "sync", "global"),
    ("checkpoint.every", "often", "unit"),
    ("checkpoint.every", "0st", "longer"),
    ("checkpoint.keep", 0, "at least 1"),
    ("checkpoint.best_metric", "acuracy", "accuracy"),
    ("log_every", "50", "unit"),
    ("log_every", "0st", "longer"),
    ("eval_every", "1", "unit"),
    ("eval_every", "0%", "longer"),
]


@pytest.mark.parametrize(("field", "value", "what"), BAD, ids=lambda x: str(x)[:24])
def test_validate_names_the_bad_field_in_one_line(field, value, what):
    config = base_config()
    set_field(config, field, value)
    (line,) = problems(config)
    # A name that isn't another's beginning: "config.batch_size", not "config.batch_size_of_something".
    assert re.match(r"config\.([\w.]+)", line)[1] == field
    assert what in line.removeprefix(f"config.{field}")


def test_every_field_with_a_limit_is_in_the_table_of_bad_values():
    free = {"dataset.name", "dataset.data_dir", "dataset.cache", "compilation_cache", "schedule.name"}
    free |= {f"dataset.{use}_split" for use in ("train", "eval", "test")}
    fields = {f for f in configs.flatten(base_config().to_dict()) if not f.startswith("model.")}
    assert fields - free <= {field for field, _, _ in BAD}


def test_validate_reports_everything_at_once():
    config = base_config()
    fields = {field for field, _, _ in BAD} - {"model.filters"}  # nobody knows the fields of an unknown network
    for field, value, _ in BAD:
        if field in fields:
            set_field(config, field, value)
    named = [re.match(r"config\.([\w.]+)", line)[1] for line in problems(config)]
    assert sorted(named) == sorted(fields)


def test_one_cycle_needs_a_rise():
    (line,) = problems(changed(schedule__name="one_cycle"))
    assert line.startswith("config.schedule.warmup='0st'") and "30%" in line
    validate(changed(schedule__name="one_cycle", schedule__warmup="30%"))


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"dataset__image_size": 40, "evaluation__crop_size": 41}, "crop_size=41: is larger .*dataset.image_size=40"),
        ({"evaluation__image_size": 40, "evaluation__crop_size": 41}, "crop_size=41: .*evaluation.image_size=40"),
        (
            {"dataset__image_size": 48, "evaluation__image_size": 40, "evaluation__crop_size": 44},
            "crop_size=44: .*evaluation.image_size=40",
        ),
        (
            {"evaluation__crop_size": 28, "evaluation__crops": "ten", "evaluation__flip": True},
            "flip=True: ten crops have their mirror images",
        ),
        ({"dataset__image_size": 40, "evaluation__crop_size": 40}, None),
        ({"dataset__image_size": 40, "evaluation__image_size": 48, "evaluation__crop_size": 44}, None),
        ({"evaluation__crop_size": 28, "evaluation__crops": "ten"}, None),
        ({"evaluation__flip": True}, None),
    ],
    ids=str,
)
def test_evaluation_protocols(fields, expected):
    if expected is None:
        return validate(changed(**fields))
    (line,) = problems(changed(**fields))
    assert re.match(f"config.evaluation.{expected}", line)


@pytest.mark.parametrize(
    ("batch_size", "devices", "nearest"),
    [(100, 8, "96 or 104"), (7, 8, "; 8 can"), (9, 8, "8 or 16"), (1, 2, "; 2 can")],
)
def test_batch_that_the_devices_cannot_share(batch_size, devices, nearest):
    (line,) = problems(changed(batch_size=batch_size), devices)
    assert line.startswith(f"config.batch_size={batch_size}") and f"{devices} devices" in line and nearest in line
    validate(changed(batch_size=batch_size))
    validate(changed(batch_size=batch_size * devices), devices)


# ------------------------------------------------------------------------- what the lists of choices promise


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


def use_optimizer(value, digits, tmp_path):
    config = changed(optimizer__name=value).optimizer
    assert isinstance(optimizers.create_optimizer(config, optax.constant_schedule(0.1)), optax.GradientTransformation)


def use_decay(value, digits, tmp_path):
    """Two parameters of which one is a vector tell the choices apart."""
    config = changed(optimizer__name="sgd", optimizer__weight_decay=1.0, optimizer__decay=value).optimizer
    optimizer = optimizers.create_optimizer(config, optax.constant_schedule(1.0))
    params = {"kernel": np.ones((2, 2), np.float32), "bias": np.ones(2, np.float32)}
    updates, _ = optimizer.update(jax.tree.map(np.zeros_like, params), optimizer.init(params), params)
    assert (updates["bias"] != 0).all() == (value == "all") and (updates["kernel"] == -1).all()


def use_schedule(value, digits, tmp_path):
    schedule = optimizers.create_schedule(value, 0.1, total_steps=10, warmup_steps=3, boundaries=(5,), factor=0.1)
    assert 0 < schedule(4) <= 0.1


def use_loss(value, digits, tmp_path):
    assert losses.create_loss(value, 0.1)(np.zeros((2, 3), np.float32), np.zeros(2, np.int32)).shape == (2,)


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


READERS = {
    "dataset.feed": use_feed,
    "dataset.train_crop": use_streaming("crop"),
    "dataset.worker_kind": use_streaming("worker_kind"),
    "dataset.on_error": use_streaming("on_error"),
    "dataset.interpolation": use_interpolation,
    "dataset.resize": use_resize,
    "evaluation.crops": use_crops,
    "optimizer.name": use_optimizer,
    "optimizer.decay": use_decay,
    "schedule.name": use_schedule,
    "loss.name": use_loss,
    "precision": use_precision,
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
    """{field: its line in base_config(), comment included, without what stands in parentheses}."""
    lines = {}
    for line in inspect.getsource(base_config).splitlines():
        if found := re.match(r"\s+config\.([\w.]+) = (?!ConfigDict)(.*)", line):
            lines[found[1]] = re.sub(r"\([^()]*\)", "", found[2])
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


# ----------------------------------------------------------------------------------------- to and from JSON


def types(config):
    return {field: type(value) for field, value in configs.flatten(config.to_dict()).items()}


@pytest.mark.parametrize(
    "config",
    [
        base_config(),
        changed(
            model__name="convnet",
            model__filters=(4, 8),
            model__padding=("same", "1"),
            model__dense=(),
            model__dropout_rate=0.25,
            dataset__mean=(0.1, 0.2, 0.3),
            schedule__boundaries=("10st", "1ep", "75%"),
            augment="pad_and_crop(4)|flip",
            optimizer__epsilon=1.2345678901234567e-8,
        ),
    ],
    ids=["base", "changed"],
)
def test_json_round_trip(config):
    again = from_json(to_json(config))
    assert again.to_dict() == config.to_dict() and types(again) == types(config)
    assert differences(config, again) == [] and to_json(again) == to_json(config)
    assert again.is_locked
    again.model.filters = (1, 2)  # an unset field can still be set after the round trip
    validate(config)


def test_json_is_complete_and_readable():
    text = to_json(base_config())
    assert set(configs.flatten(json.loads(text))) == set(configs.flatten(base_config().to_dict()))
    assert '\n  "batch_size": 128,\n' in text and text.endswith("}\n")


def test_json_without_a_field_takes_its_default():
    values = json.loads(to_json(changed(seed=5, loss__label_smoothing=0.3)))
    del values["loss"], values["optimizer"]["momentum"]
    config = from_json(json.dumps(values))
    assert (config.seed, config.loss.label_smoothing, config.optimizer.momentum) == (5, 0.0, 0.9)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (
            '{"optimizer": {"learning_rat": 0.1}}',
            ["'optimizer.learning_rat'", "Did you mean 'optimizer.learning_rate'?"],
        ),
        ('{"bach_size": 1}', ["'bach_size'", "Did you mean 'batch_size'?"]),
        ('{"seed": 1', ["not readable as JSON"]),
        ("", ["not readable as JSON"]),
        ("[1, 2]", ["config.json"]),
        ('{"batch_size": "many"}', ["batch_size", "many"]),
        ('{"batch_size": {"train": 1}}', ["batch_size"]),
        ('{"model": "lenet5"}', ["'model'"]),
    ],
)
def test_json_that_is_not_a_config(text, words):
    with pytest.raises(UserError) as caught:
        from_json(text)
    assert all(word in str(caught.value) for word in words) and "\n" not in str(caught.value)


ANOTHER = {
    "duration": "1st",
    "dataset.data_dir": "elsewhere",
    "dataset.feed": "streaming",
    "dataset.workers": 3,
    "dataset.worker_kind": "processes",
    "dataset.on_error": "skip",
    "dataset.cache": "",
    "eval_batch_size": 1,
    "log_every": "1st",
    "eval_every": "1st",
    "checkpoint.every": "1st",
    "checkpoint.keep": 7,
    "compilation_cache": "",
}


def test_differences_ignore_what_may_change_on_resuming():
    config = base_config()
    for field, value in ANOTHER.items():
        set_field(config, field, value)
    assert differences(base_config(), config) == []
    assert set(ANOTHER) == set(RESUMABLE)


def test_differences_see_every_other_field():
    for field, value in configs.flatten(base_config().to_dict()).items():
        if field in RESUMABLE:
            continue
        config = base_config()
        new = {int: 999, float: 0.123, str: "other", tuple: (0.7,), bool: not value}.get(type(value))
        if field == "schedule.boundaries":
            new = ("1st",)
        if value is None:
            new = next(x for x in ("other", 0.5, (1,), True) if accepts(field, x))
        set_field(config, field, new)
        assert differences(base_config(), config) == [f"{field}: {value!r} -> {new!r}"]


def accepts(field, value):
    try:
        set_field(base_config(), field, value)
    except TypeError:
        return False
    return True
