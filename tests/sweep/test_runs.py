import json
import re

import pytest
from etils import epath

from cnn_research.config import base_config, set_field, to_json
from cnn_research.errors import UserError
from cnn_research.sweep import runs
from cnn_research.training import workdir as files


@pytest.mark.parametrize(
    ("values", "name"),
    [
        ({"seed": 0, "optimizer.learning_rate": 0.1}, "optimizer.learning_rate=0.1,seed=0"),
        ({"optimizer.learning_rate": 1e-5}, "optimizer.learning_rate=1e-05"),
        ({"seed": 3, "batch_size": 64, "augment": "flip"}, "augment=flip,batch_size=64,seed=3"),
        ({"model.filters": (4, 8), "schedule.boundaries": ("10ep", "50%")},
         "model.filters=4+8,schedule.boundaries=10ep+50%"),
        ({"model.dropout_rate": None, "evaluation.flip": True}, "evaluation.flip=True,model.dropout_rate=None"),
        ({"augment": ""}, "augment="),
        ({}, "base"),
    ],
)  # fmt: skip
def test_name(values, name):
    assert runs.run_name(values) == name
    assert runs.run_name(dict(reversed(values.items()))) == name, "the order of the flags must not matter"


@pytest.mark.parametrize(
    "pair",
    [
        ({"augment": "shift(1)"}, {"augment": "shift-1-"}),
        ({"augment": "a|b"}, {"augment": "a/b"}),
        ({"schedule.boundaries": ("1ep", "2ep")}, {"schedule.boundaries": ("1ep+2ep",)}),
        ({"augment": "x" * 300}, {"augment": "x" * 299 + "y"}),
        ({"dataset.train_split": "train[:90%]"}, {"dataset.train_split": "train[90%:]"}),
        ({"dataset.name": "a,seed=1"}, {"dataset.name": "a", "seed": 1}),
    ],
)
def test_other_values_have_another_name_that_needs_no_quotes(pair):
    names = [runs.run_name(values) for values in pair]
    assert names[0] != names[1]
    for name in names:
        assert len(name) <= 150 and re.fullmatch(r"[\w.=,+%-]+", name)
        assert name == runs.run_name(pair[names.index(name)])


def test_values_are_read_as_on_the_command_line(make):
    made = make(
        "schedule.boundaries='10ep,50%',30%",
        "model.pool_size=2,(2,3)",
        "evaluation.flip=true",
        model__activation="gelu",
    )
    assert len(made) == 4
    config = made[1].config
    assert config.schedule.boundaries == ("10ep", "50%") and config.model.pool_size == (2, 3)
    assert made[0].config.model.pool_size == (2,) and made[3].config.schedule.boundaries == ("30%",)
    assert config.evaluation.flip is True and config.model.activation == "gelu"
    assert made[1].name == "evaluation.flip=True,model.pool_size=2+3,schedule.boundaries=10ep+50%"
    assert made[1].overrides == (
        "--config.model.activation=gelu", "--config.schedule.boundaries=10ep,50%", "--config.model.pool_size=(2,3)",
        "--config.evaluation.flip=true",
    )  # fmt: skip


def test_equal_values_are_one_run(make):
    assert [run.name for run in make("optimizer.learning_rate=0.1,1e-1,0.10")] == ["optimizer.learning_rate=0.1"]


def test_base_texts_give_the_same_config_again(make):
    config = base_config()
    fields = {"model.filters": (4, 8), "batch_size": 7, "evaluation.flip": True, "augment": "", "duration": "3st",
              "optimizer.epsilon": 1e-12, "dataset.mean": (0.5,)}  # fmt: skip
    for field, value in fields.items():
        set_field(config, field, value)
    texts = runs.base_texts(base_config(), config)
    assert texts.keys() == fields.keys() - {"augment"}
    assert make("seed=0", **texts)[0].config.model.filters == (4, 8)


def test_all_mistakes_of_all_runs_at_once(make):
    with pytest.raises(UserError) as error:
        make("optimizer.learning_rate=0.1,0,fast", "optimizer.nam=sgd", "batch_size=0")
    lines = str(error.value).splitlines()
    assert len(lines) == 1 and "and 2 more: " in lines[0] and "Did you mean 'name'?" in lines[0]
    with pytest.raises(UserError) as error:
        make("optimizer.learning_rate=0.1,0,fast", "batch_size=0,8")
    lines = str(error.value).splitlines()
    assert len(lines) == 3
    assert any("run optimizer.learning_rate=0.1,batch_size=0 and 1 more: config.batch_size=0" in x for x in lines)
    assert any("run optimizer.learning_rate=0,batch_size=0 and 1 more: config.optimizer" in x for x in lines)
    assert any("run optimizer.learning_rate=fast" in x and "fast" in x.split(": ", 1)[1] for x in lines)


def test_folders_of_another_experiment_are_refused(make):
    run = make("seed=0")[0]
    run.workdir.mkdir(parents=True)
    (run.workdir / "config.json").write_text(to_json(run.config))
    assert make("seed=0,1"), "the same experiment goes on"
    assert make("seed=0,1", duration="9ep"), "and may be prolonged"
    with pytest.raises(UserError, match=r"run seed=0: workdir .*/seed=0 .*another experiment \(batch_size: 32 ->"):
        make("seed=0,1", batch_size="16")


# ------------------------------------------------------------------------------------------------- status

ROWS = [
    {"step": 20, "epoch": 0.4454, "split": "train", "loss": 1.0, "accuracy": 0.3},
    {"step": 40, "epoch": 0.8907, "split": "train", "loss": 0.9, "accuracy": 0.4},
    {"step": 40, "epoch": 0.8907, "split": "test", "loss": 0.9, "accuracy": 0.5},
    {"step": 60, "epoch": 1.3361, "split": "train", "loss": 0.8, "accuracy": 0.6},
]
RESULTS = {"steps": 120, "test": {"accuracy": 0.7}}


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, ("waiting", None, None, None, "")),
        ({"output.log": "starting"}, ("waiting", None, None, None, "")),
        ({"config.json": {}}, ("unfinished", None, None, None, "")),
        ({"config.json": {}, "metrics.jsonl": ROWS}, ("unfinished", 60, 0.5, 0.5, "")),
        ({"config.json": {}, "metrics.jsonl": ROWS, "outcome.json": {"state": "diverged", "message": "why"}},
         ("diverged", 60, 0.5, 0.5, "why")),
        ({"config.json": {}, "metrics.jsonl": ROWS, "results.json": RESULTS}, ("finished", 120, 1.0, 0.5, "")),
        ({"config.json": {}, "results.json": RESULTS}, ("finished", 120, 1.0, 0.7, "")),
        ({"config.json": {}, "results.json": '{"steps": 1'}, ("unfinished", None, None, None, "")),
        ({"config.json": {"duration": "60st"}, "results.json": RESULTS}, ("unfinished", None, None, None, "")),
    ],
)  # fmt: skip
def test_status(make, given, expected):
    """The tiny run has 120 steps of 32 out of 1,437 images, and is evaluated on "test"."""
    run = make("seed=0")[0]
    run.workdir.mkdir(parents=True)
    for name, content in given.items():
        if name == "config.json":
            content = run.config.to_dict() | content
        if name.endswith("l"):
            content = "\n".join(map(json.dumps, content))
        (run.workdir / name).write_text(content if isinstance(content, str) else json.dumps(content))
    status = runs.status(run)
    share = None if status.share is None else round(status.share, 3)
    assert (status.state, status.step, share, status.accuracy, status.message) == expected
    assert (status.results is not None) == (status.state == "finished")


def test_a_sweep_and_a_run_are_locked(make, tmp_path):
    run = make("seed=0")[0]
    assert not runs.in_use(run)
    with runs.claim(run.workdir.parent):
        with pytest.raises(UserError, match="another sweep"):
            runs.claim(run.workdir.parent)
        with files.claim(run.workdir):
            assert runs.in_use(run)
        assert not runs.in_use(run)
    runs.claim(run.workdir.parent).close()
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        runs.claim(epath.Path(tmp_path / "file" / "sweep"))
