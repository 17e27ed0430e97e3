"""Mistakes of the user: exit 2, one clear line for each, no traceback, nothing lost."""

import pytest

MISTAKES = {
    "misspelt field": (["--config.optimizer.learning_rat=0.1"], ["learning_rat", "learning_rate"]),
    "misspelt section": (["--config.optimiser.learning_rate=0.1"], ["optimiser", "optimizer"]),
    "field of a single value": (["--config.seed.x=1"], ["config.seed", "single value"]),
    "batch of nothing": (["--config.batch_size=0"], ["config.batch_size=0", "at least 1"]),
    "batch of a wrong type": (["--config.batch_size=many"], ["config.batch_size", "many"]),
    "duration without a unit": (["--config.duration=20"], ["config.duration", "20ep", "5000st"]),
    "dataset that is not prepared": (
        ["--config.dataset.name=mnist", "--config.dataset.data_dir={tmp}"],
        ["mnist", "{tmp}", "cnn-research prepare mnist"],
    ),
    "unknown split": (["--config.dataset.train_split=training"], ["training", "train", "test"]),
    "unknown network": (["--config.model.name=lenet"], ["lenet", "lenet5"]),
    "field of another network": (
        ["--config.model.name=lenet5", "--config.model.dense=None", "--config.model.batch_norm=None"],
        ["config.model.filters=(4, 8)", "lenet5", "activation"],
    ),
    "images too small": (["--config.model.padding=valid", "--config.model.kernel_size=9"], ["conv1", "8x8", "9x9"]),
    "crop larger than the images": (["--config.evaluation.crop_size=9"], ["evaluation.crop_size=9", "8x8"]),
    "crop of a size that isn't trained on": (["--config.evaluation.crop_size=6"], ["6x6", "convnet", "8x8"]),
    "training crop larger than the images": (["--config.augment=random_crop(9)"], ["random_crop(9)", "8x8"]),
    "statistics for other channels": (["--config.dataset.mean=0.1,0.2,0.3"], ["dataset.mean", "1 channel"]),
    "unwritable workdir": (["--workdir={file}/run"], ["{file}/run", "cannot be written"]),
    "no such config": (["--config={tmp}/tiny.py"], ["{tmp}/tiny.py", "no such file"]),
    "config with a misspelt field": (["--config={config}"], ["{config}", "line 4", "momentun"]),
    "unknown flag": (["--wrkdir=x"], ["wrkdir"]),
    "flag without dashes": (["workdir=x"], ["workdir=x"]),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistake(script, tmp_path, name):
    flags, expected = MISTAKES[name]
    (tmp_path / "file").write_text("")
    (tmp_path / "config.py").write_text(
        "from cnn_research.config import base_config\n"
        "def get_config():\n    config = base_config()\n    config.optimizer.momentun = 0.5\n    return config\n"
    )
    places = {"tmp": tmp_path, "file": tmp_path / "file", "config": tmp_path / "config.py"}
    before = sorted(tmp_path.rglob("*"))
    flags = [flag.format(**places) for flag in flags]
    config = [] if any(flag.startswith("--config=") for flag in flags) else script.tiny
    workdir = [] if any(flag.startswith("--workdir=") for flag in flags) else [f"--workdir={tmp_path}/run"]
    _, err = script.run("train", *config, *workdir, *flags, code=2)
    errors = [line for line in err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1, err
    for text in expected:
        assert text.format(**places) in errors[0]
    assert "Traceback" not in err
    assert [path for path in sorted(tmp_path.rglob("*")) if "__pycache__" not in str(path)] == before


def test_several_mistakes_are_reported_at_once(script, tmp_path):
    flags = ["--config.batch_size=0", "--config.duration=long", "--config.optimizer.name=sdg", "--config.seed=-1"]
    _, err = script.run("train", *script.tiny, f"--workdir={tmp_path}/run", *flags, code=2)
    assert err.count("error: ") == 4
    for text in ("batch_size", "duration", "Did you mean 'sgd'", "seed"):
        assert text in err


def test_workdir_of_another_network(script, reference):
    before = {path: path.stat().st_mtime_ns for path in reference.rglob("*")}
    lenet = [
        "--config.model.name=lenet5", "--config.model.filters=None", "--config.model.dense=None",
        "--config.model.batch_norm=None", "--config.dataset.image_size=32",
    ]  # fmt: skip
    _, err = script.run("train", *script.tiny, f"--workdir={reference}", *lenet, code=2)
    assert str(reference) in err and "model.name: 'convnet' -> 'lenet5'" in err and "Traceback" not in err
    assert {path: path.stat().st_mtime_ns for path in reference.rglob("*")} == before


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ([], ["--workdir", "must be given"]),
        (["--workdir={tmp}"], ["holds no run"]),
        (["--workdir={reference}", "--split=validation"], ["validation", "train", "test"]),
        (["--workdir={reference}", "--checkpoint=first"], ["checkpoint", "latest", "best"]),
        (["--workdir={reference}", "--crops=ten"], ["evaluation.crops='ten'", "evaluation.crop_size"]),
        (["--workdir={reference}", "--crop_size=6"], ["6x6", "convnet", "8x8"]),
    ],
    ids=["no workdir", "no run", "no such split", "no such checkpoint", "crops of no size", "another size"],
)
def test_evaluate_mistakes(script, reference, tmp_path, flags, expected):
    flags = [flag.format(tmp=tmp_path, reference=reference) for flag in flags]
    _, err = script.run("evaluate", *flags, code=2)
    assert len([line for line in err.splitlines() if line.startswith("error: ")]) == 1 and "Traceback" not in err
    for text in expected:
        assert text in err
