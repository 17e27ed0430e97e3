import hashlib
import json
import math
import statistics

import pytest

from cnn_research.errors import UserError
from cnn_research.sweep import plan
from cnn_research.sweep.plan import Distribution


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("0.01,0.03,0.1", ["0.01", "0.03", "0.1"]),
        ("0, 1 ,2", ["0", "1", "2"]),
        ("cosine", ["cosine"]),
        ("10ep,5000st", ["10ep", "5000st"]),
        ("(4,8),(8,16)", ["(4,8)", "(8,16)"]),
        ("flip,random_crop(24,24)|flip", ["flip", "random_crop(24,24)|flip"]),
        ("'10ep,50%','30%'", ["10ep,50%", "30%"]),
        ('"a,b",c', ["a,b", "c"]),
        ("('10ep','50%'),('30%',)", ["('10ep','50%')", "('30%',)"]),
        (",flip", ["", "flip"]),
        ("'',flip", ["", "flip"]),
        ("[1,2],3", ["[1,2]", "3"]),
    ],
)
def test_values_are_split_at_outer_commas(text, values):
    assert plan.split_values(text) == values


@pytest.mark.parametrize("text", ["(1,2", "1,2)(", "1)", "'a,b", '"a'])
def test_brackets_and_quotes_that_do_not_match(text):
    with pytest.raises(UserError, match="not closed|not open"):
        plan.split_values(text)


def test_grid_is_every_combination_in_order():
    runs = plan.expand(grid=["optimizer.learning_rate=0.1,1", "config.seed=0,1"])
    assert runs == [
        {"optimizer.learning_rate": "0.1", "seed": "0"},
        {"optimizer.learning_rate": "0.1", "seed": "1"},
        {"optimizer.learning_rate": "1", "seed": "0"},
        {"optimizer.learning_rate": "1", "seed": "1"},
    ]


def test_list_trials_and_grid_combine():
    listed = [{"model.name": "lenet5"}, {"model.name": "resnet20", "batch_size": "64"}]
    runs = plan.expand(["seed=0,1,2"], ["optimizer.learning_rate=log(1e-3,1)"], 4, 0, listed)
    assert len(runs) == len({tuple(run.items()) for run in runs}) == 2 * 4 * 3
    assert {run["model.name"] for run in runs if "batch_size" in run} == {"resnet20"}
    assert len({run["optimizer.learning_rate"] for run in runs}) == 4, "seeds and lines share the trials"


MISTAKES = {
    "nothing": ({}, ["what is swept?"]),
    "no values": ({"grid": ["seed"]}, ["--grid=seed:", "seed=0,1,2"]),
    "no field": ({"grid": ["=1"]}, ["--grid==1:"]),
    "twice": ({"grid": ["seed=0", "config.seed=1"]}, ["seed is swept twice"]),
    "twice, in the list": ({"grid": ["seed=0"], "listed": [{}, {"seed": "1"}]}, ["seed is swept twice"]),
    "how many": ({"random": ["seed=integer(0,9)"]}, ["--trials=20"]),
    "of what": ({"grid": ["seed=0"], "trials": 3}, ["--trials: of what?"]),
    "unknown kind": ({"random": ["seed=integers(0,9)"], "trials": 1}, ["integer(1,8)", "Did you mean 'integer'?"]),
    "no kind": ({"random": ["seed=0.1"], "trials": 1}, ["uniform(0,0.5)"]),
    "one end": ({"random": ["a=uniform(1)"], "trials": 1}, ["two numbers", "uniform(0,0.5)"]),
    "no whole number": ({"random": ["a=integer(1,2.5)"], "trials": 1}, ["two whole numbers"]),
    "wrong order": ({"random": ["a=uniform(2,1)"], "trials": 1}, ["first end must be below"]),
    "log of zero": ({"random": ["a=log(0,1)"], "trials": 1}, ["both above 0"]),
    "no end": ({"random": ["a=uniform(0,inf)"], "trials": 1}, ["first end must be below"]),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistake(name):
    arguments, expected = MISTAKES[name]
    with pytest.raises(UserError) as error:
        plan.expand(**arguments)
    assert "\n" not in str(error.value)
    for text in expected:
        assert text in str(error.value)


def test_all_mistakes_at_once():
    with pytest.raises(UserError) as error:
        plan.expand(grid=["seed", "a=(1"], random=["b=log(0,1)"], trials=0)
    assert len(str(error.value).splitlines()) == 4


# ------------------------------------------------------------------------------------------- random trials


def draws(text, count=4000, field="f"):
    return [Distribution.parse(text).draw(field, 0, trial) for trial in range(count)]


def test_a_trial_is_a_function_of_seed_number_and_field():
    one = plan.expand(random=["a=uniform(0,1)"], trials=5, sweep_seed=3)
    more = plan.expand(random=["b=log(1,9)", "a=uniform(0,1)"], trials=9, sweep_seed=3)
    assert [run["a"] for run in one] == [run["a"] for run in more[:5]]
    other = plan.expand(random=["a=uniform(0,1)"], trials=5, sweep_seed=4)
    assert {run["a"] for run in one}.isdisjoint(run["a"] for run in other)
    share = int(hashlib.sha256(b"3/2/a").hexdigest()[:16], 16) / 2**64
    assert float(one[2]["a"]) == pytest.approx(share, abs=5e-5)


# Means over 4000 draws; the tolerances are five standard errors.
@pytest.mark.parametrize(
    ("text", "low", "high", "transform", "mean", "tolerance"),
    [
        ("uniform(-1,3)", -1, 3, float, 1, 5 * 4 / math.sqrt(12 * 4000)),
        ("log(1e-3,10)", 1e-3, 10, lambda text: math.log10(float(text)), -1, 5 * 4 / math.sqrt(12 * 4000)),
        ("integer(2,5)", 2, 5, int, 3.5, 5 * math.sqrt(15 / 12 / 4000)),
    ],
)
def test_distribution(text, low, high, transform, mean, tolerance):
    values = draws(text)
    assert all(low <= float(value) <= high for value in values)
    assert statistics.fmean(map(transform, values)) == pytest.approx(mean, abs=tolerance)


def test_integers_reach_both_ends_and_choices_are_all_taken():
    assert {value: draws("integer(2,5)").count(value) > 900 for value in "2345"} == dict.fromkeys("2345", True)
    assert all(draws("choice(relu,'',(4,8))").count(value) > 1200 for value in ("relu", "", "(4,8)"))


def test_numbers_have_four_digits_and_stay_within_the_ends():
    assert all(len(value.partition("e")[0].replace(".", "").lstrip("0")) <= 4 for value in draws("log(1e-6,1)", 300))
    narrow = {float(value) for value in draws("uniform(0.99999,0.999999)", 50)}
    assert all(0.99999 <= value <= 0.999999 for value in narrow), "rounding must not leave the interval"


# -------------------------------------------------------------------------------------------------- lists


def test_list_of_json_lines(tmp_path):
    rows = [
        {"optimizer.learning_rate": 0.1, "config.seed": 1},
        {"model.filters": [4, 8], "duration": "10ep", "evaluation.flip": True, "model.dropout_rate": None},
        {"schedule.boundaries": ["10ep", "50%"], "augment": ""},
    ]
    path = tmp_path / "runs.jsonl"
    path.write_text("\n\n".join(map(json.dumps, rows)) + "\n")
    assert plan.read_list(str(path)) == [
        {"optimizer.learning_rate": "0.1", "seed": "1"},
        {"model.filters": "(4, 8)", "duration": "10ep", "evaluation.flip": "True", "model.dropout_rate": "None"},
        {"schedule.boundaries": "('10ep', '50%')", "augment": ""},
    ]


def test_list_of_csv(tmp_path):
    path = tmp_path / "runs.csv"
    path.write_text('optimizer.learning_rate, config.seed, model.filters\n0.1, 1,\n\n0.2,, "4,8"\n')
    assert plan.read_list(str(path)) == [
        {"optimizer.learning_rate": "0.1", "seed": "1"},
        {"optimizer.learning_rate": "0.2", "model.filters": "4,8"},
    ]


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("runs.jsonl", '{"seed": 1}\n{"seed": }\n[1]\n', ["line 2", "line 3"]),
        ("runs.csv", "seed\n1,2\n", ["line 2", "2 cells under 1 fields"]),
        ("runs.csv", "seed\n", ["no run in it"]),
        ("runs.jsonl", "", ["no run in it"]),
        ("README.md", "a\n" * 100, ["line 3", "97 more lines like these"]),
    ],
)
def test_list_that_cannot_be_read(tmp_path, name, text, expected):
    (tmp_path / name).write_text(text)
    with pytest.raises(UserError) as error:
        plan.read_list(str(tmp_path / name))
    assert all(part in str(error.value) for part in [name, *expected])
    assert len(str(error.value).splitlines()) <= 4


def test_list_that_is_not_there(tmp_path):
    with pytest.raises(UserError, match="none.csv: No such file"):
        plan.read_list(str(tmp_path / "none.csv"))
