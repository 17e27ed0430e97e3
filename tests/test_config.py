import json

import pytest
from configs_for_tests import changed

from cnn_research import config as configs
from cnn_research.config import RESUMABLE, base_config, differences, from_json, set_field, to_json, to_steps
from cnn_research.errors import UserError
from cnn_research.validation import validate

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
    "steps_per_call": 8,
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
    "early_stopping": "1st",
    "on_divergence": "rollback",
    "rollback_factor": 0.1,
    "max_rollbacks": 1,
    "profile": "1st:2st",
    "checkpoint.every": "1st",
    "checkpoint.keep": 7,
    "report": True,
    "compilation_cache": "",
    "deterministic": True,
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
