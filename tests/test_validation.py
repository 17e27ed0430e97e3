import re

import pytest
from configs_for_tests import changed

from cnn_research import config as configs
from cnn_research.config import base_config, set_field
from cnn_research.errors import UserError
from cnn_research.validation import validate


def problems(config, num_devices=1):
    with pytest.raises(UserError) as caught:
        validate(config, num_devices)
    return str(caught.value).splitlines()


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
    ("evaluation.shift", -1, "at least 0"),
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
    ("deterministic", None, "must be set"),
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
    ("optimizer.rest", "adan", "adam"),
    ("optimizer.renormalise", True, "muon"),
    ("optimizer.beta2", 1.5, "below 1"),
    ("optimizer.beta2", float("nan"), "below 1"),
    ("optimizer.epsilon", 0.0, "above 0"),
    ("optimizer.weight_decay", -1e-4, "at least 0"),
    ("optimizer.weight_decay", float("inf"), "at least 0"),
    ("optimizer.decay", "kernel", "kernels"),
    ("optimizer.decay_kind", "decuopled", "decoupled"),
    ("optimizer.trust_coefficient", 0.0, "above 0"),
    ("optimizer.clip", "norm", "global_norm"),
    ("optimizer.clip_threshold", 0.0, "above 0"),
    ("optimizer.clip_threshold", float("inf"), "above 0"),
    ("optimizer.freeze", (1,), "texts"),
    ("optimizer.freeze", ("conv", "norm(1"), "'norm(1' is not a regular expression"),
    ("optimizer.learning_rate_multipliers", (10.0,), "texts"),
    ("optimizer.learning_rate_multipliers", ("head",), '"^output=10"'),
    ("optimizer.learning_rate_multipliers", ("head=", "conv=2"), "'head='"),
    ("optimizer.learning_rate_multipliers", ("=2",), "'=2'"),
    ("optimizer.learning_rate_multipliers", ("head=0",), "above 0"),
    ("optimizer.learning_rate_multipliers", ("head=inf",), "above 0"),
    ("optimizer.learning_rate_multipliers", ("*head=2",), "'*head' is not a regular expression"),
    ("optimizer.lookahead_steps", -1, "at least 0"),
    ("optimizer.lookahead_alpha", 0.0, "above 0"),
    ("optimizer.lookahead_alpha", 1.1, "at most 1"),
    ("schedule.name", "onecycle", "one_cycle"),
    ("schedule.warmup", "5", "unit"),
    ("schedule.boundaries", ("50%", "75"), "'75'"),
    ("schedule.boundaries", (5,), "texts"),
    ("schedule.multipliers", (0.1, -0.1), "at least 0"),
    ("schedule.multipliers", ("0.1",), "numbers"),
    ("schedule.period", "0ep", "longer"),
    ("schedule.period", "10", "unit"),
    ("schedule.period_multiplier", 0.5, "at least 1"),
    ("schedule.period_multiplier", float("inf"), "at least 1"),
    ("schedule.power", 0.0, "above 0"),
    ("schedule.end", -0.1, "at least 0"),
    ("schedule.end", 1.1, "at most 1"),
    ("schedule.patience", 0, "at least 1"),
    ("schedule.factor", 0.0, "above 0"),
    ("schedule.factor", 1.1, "at most 1"),
    ("loss.name", "cross_entropy", "softmax_cross_entropy"),
    ("loss.gamma", -0.5, "at least 0"),
    ("loss.rubbish", -1.0, "at least 0"),
    ("loss.class_weights", (), "one value"),
    ("loss.class_weights", (1.0, -1.0), "at least 0"),
    ("loss.class_weights", (0.0, 0.0), "not only zeros"),
    ("loss.class_weights", (float("nan"),), "one value"),
    ("loss.auxiliary_weight", -0.1, "at least 0"),
    ("loss.label_smoothing", 1.0, "below 1"),
    ("loss.label_smoothing", -0.1, "below 1"),
    ("precision", "float64", "float32"),
    ("matmul_precision", "low", "high"),
    ("init.checkpoint", "newest", "latest"),
    ("init.head", "drop", "new"),
    ("freeze_batch_stats", True, "nothing is frozen"),
    ("accumulation", 0, "at least 1"),
    ("steps_per_call", 0, "at least 1"),
    ("ema_decay", 1.0, "below 1"),
    ("on_divergence", "roll_back", "rollback"),
    ("rollback_factor", 1.0, "below 1"),
    ("max_rollbacks", 0, "at least 1"),
    ("early_stopping", "10", "unit"),
    ("profile", "100st", "a later end"),
    ("profile", "10st:5st", "a later end"),
    ("profile", "1:5st", "unit"),
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
    free |= {"init.weights"}  # what can be loaded is known when it is read
    free |= {"report"}  # yes or no
    free |= {f"dataset.{use}_split" for use in ("train", "eval", "test")}
    fields = {f for f in configs.flatten(base_config().to_dict()) if not f.startswith("model.")}
    assert fields - free <= {field for field, _, _ in BAD}


def test_validate_reports_everything_at_once():
    config = base_config()
    # Nobody knows the fields of an unknown network, and the pattern that is none freezes something, perhaps.
    fields = {field for field, _, _ in BAD} - {"model.filters", "freeze_batch_stats"}
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
        (
            {"schedule__name": "piecewise", "schedule__boundaries": ("1ep",)},
            "schedule.multipliers=(0.1, 0.01): piecewise needs one for each of the 1 config.schedule.boundaries",
        ),
        ({"schedule__name": "piecewise", "schedule__boundaries": ("1ep",), "schedule__multipliers": (0.0,)}, None),
        ({"loss__name": "hinge", "loss__label_smoothing": 0.1}, "loss.label_smoothing=0.1: the hinge loss has no"),
        ({"loss__name": "focal", "loss__label_smoothing": 0.1, "loss__gamma": 0.0}, None),
        ({"optimizer__freeze": ("^conv", "(?<!head/)bias"), "optimizer__lookahead_steps": 5}, None),
        ({"optimizer__learning_rate_multipliers": ("(?=head)=1e-2", "a=b=3")}, None),
    ],
    ids=str,
)
def test_recipes(fields, expected):
    if expected is None:
        return validate(changed(**fields))
    (line,) = problems(changed(**fields))
    assert line.startswith(f"config.{expected}")


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
