import ast
import logging
from pathlib import Path

import pytest

import cnn_research
from cnn_research.commands import experiments, launch
from cnn_research.errors import UserError

CONFIGS = Path(__file__).parents[2] / "experiments" / "configs"
TINY = str(Path(__file__).parents[1] / "end_to_end" / "tiny.py")


@pytest.mark.parametrize("config", [[f"--config={TINY}"], ["--config", TINY]])
@pytest.mark.parametrize(
    ("field", "text", "value"),
    [
        ("schedule.boundaries", "10ep,50%", ("10ep", "50%")),
        ("schedule.boundaries", "2st, 3st", ("2st", "3st")),
        ("schedule.boundaries", "('2st', '3st')", ("2st", "3st")),
        ("schedule.boundaries", "30%", ("30%",)),
        ("model.pool", "max,average", ("max", "average")),
        ("model.padding", "same,1", ("same", "1")),
        ("model.pool", "(max,average)", ("max", "average")),
        ("model.pool", "(max,)", ("max",)),
        ("optimizer.freeze", "(conv)|(norm)", ("(conv)|(norm)",)),
        ("model.kernel_size", "3,5", (3, 5)),
        ("dataset.mean", "0.5", 0.5),
    ],
)
def test_several_values_are_written_as_python_has_them(config, field, text, value):
    for override in ([f"--config.{field}={text}"], [f"--config.{field}", text]):
        before = ["train.py", *override, *config, "--workdir=w"]
        after = launch._checked_overrides(before)
        changed = " ".join(after[1 : 1 + len(override)]).replace(f"--config.{field}", "", 1)[1:]
        assert ast.literal_eval(changed) == value
        assert after[1 + len(override) :] == [*config, "--workdir=w"]
        assert before[1 : 1 + len(override)] == override, "the caller's command line goes into environment.json"


@pytest.mark.parametrize("override", ["--config.schedule=cosine", "--config.init=1"])
def test_a_section_is_not_set(override):
    with pytest.raises(UserError, match=r"a section has no value of its own.* such as --config\.(schedule|init)\.\w+="):
        launch._checked_overrides(["train.py", f"--config={TINY}", override])


def test_text_fields_are_left_alone():
    argv = ["train.py", f"--config={TINY}", "--config.augment=pad_and_crop(4)|flip", "--config.dataset.name=a,b"]
    assert launch._checked_overrides(argv) == argv


@pytest.mark.parametrize(
    "body",
    ["pass", "return {'batch_size': 3}", "from ml_collections import ConfigDict\n    return ConfigDict({'a': 1})"],
)
def test_config_file_that_returns_something_else(tmp_path, body):
    (tmp_path / "mine.py").write_text(f"def get_config():\n    {body}\n")
    with pytest.raises(UserError, match=r"mine\.py: get_config\(\) must return a base_config\(\)"):
        launch._checked_overrides(["train.py", f"--config={tmp_path}/mine.py"])


@pytest.mark.parametrize("mode", ["", ":smoke"])
@pytest.mark.parametrize("name", ["lenet5_digits", "resnet18_cifar10"])
def test_config_by_name(tmp_path, monkeypatch, name, mode):
    monkeypatch.chdir(tmp_path)  # wherever the command is started
    path = f"{CONFIGS / name}.py{mode}"
    assert launch.load_config(f"{name}{mode}") == launch.load_config(path)
    assert launch.overridden_config(f"{name}{mode}", {"seed": "3"}).seed == 3
    for config in ([f"--config={name}{mode}"], ["--config", f"{name}{mode}"]):
        after = launch._checked_overrides(["train.py", *config, "--config.seed=3", "--workdir=w"])
        assert " ".join(after[1:]).replace(" ", "=", len(config) - 1) == f"--config={path} --config.seed=3 --workdir=w"


def test_a_file_comes_before_the_config_of_its_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = (CONFIGS / "lenet5_digits.py").read_text().replace('"40ep"', '"3ep"')
    (tmp_path / "mine.py").write_text(text)
    (tmp_path / "lenet5_mnist").mkdir()  # such as a folder of results
    assert launch.load_config("mine.py").duration == "3ep"
    assert launch.load_config("lenet5_mnist").duration == "12ep"
    (tmp_path / "lenet5_digits").write_text(text)
    assert experiments.find_config("lenet5_digits") == "lenet5_digits"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("lenet5_digit", "Did you mean lenet5_digits or"),
        ("lenet5_digit:smoke", "Did you mean lenet5_digits or"),
        ("elsewhere/lenet5_digits.py", "Did you mean lenet5_digits or"),
        ("lenet5_digits.py", "Did you mean lenet5_digits or"),
        ("{tmp}/mime.py", "Did you mean {tmp}/mine.py?"),
        ("/", "By name there are alexnet_imagenet, "),
        ("", "By name there are alexnet_imagenet, "),
        ("../configs/lenet5_digits", "no config of this name"),
    ],
)
def test_no_such_config(tmp_path, monkeypatch, text, expected):
    (tmp_path / "mine.py").touch()
    monkeypatch.chdir(tmp_path)
    for argv in ([f"--config={text}".format(tmp=tmp_path), "--workdir=w"], ["--config", text.format(tmp=tmp_path)]):
        with pytest.raises(UserError, match="there is no such file") as error:
            launch._checked_overrides(["train.py", *argv])
        assert expected.format(tmp=tmp_path) in str(error.value) and "\n" not in str(error.value)


def test_mode_that_the_config_does_not_have():
    path = CONFIGS / "lenet5_digits.py"
    assert launch.load_config(f"{path}:smoke").duration == "2st"
    with pytest.raises(UserError, match=r"lenet5_digits\.py, line \d+: .*no mode 'smok'") as error:
        launch.load_config(f"{path}:smok")
    assert "\n" not in str(error.value)


def test_console_shows_this_package_and_warnings(capsys):
    """A checkout may stand in a folder of the package's name, with the environment of all others inside."""
    root = logging.getLogger()
    handlers, level = root.handlers, logging.getLogger("absl").level
    package = Path(cnn_research.__file__).parent
    others = package.parent / ".venv" / "cnn_research" / "site-packages" / "orbax.py"
    try:
        launch._log_to_console()
        for path, number, text in [
            (package / "training" / "loop.py", logging.INFO, "ours"),
            (others, logging.INFO, "chatter"),
            (others, logging.WARNING, "warning"),
        ]:
            root.handle(logging.LogRecord("absl", number, str(path), 1, text, None, None))
    finally:
        root.handlers = handlers
        logging.getLogger("absl").setLevel(level)
    assert capsys.readouterr().err == "ours\nwarning\n"


@pytest.mark.parametrize("field", ["model.filters", "model.auxiliary_heads", "model.dropout_rate", "model.activation"])
@pytest.mark.parametrize("equals", [True, False])
def test_none_is_kept_from_ml_collections(monkeypatch, field, equals):
    monkeypatch.setattr(launch, "_unset", [])
    override = [f"--config.{field}=None"] if equals else [f"--config.{field}", "None"]
    argv = ["train.py", f"--config={TINY}", *override, "--workdir=w"]
    assert launch._checked_overrides(argv) == ["train.py", f"--config={TINY}", "--workdir=w"]
    assert launch._unset == [field]


def test_another_pipe_than_the_output_is_no_reason_to_be_quiet(capfd):
    assert not launch._is_unread(failed=True)
