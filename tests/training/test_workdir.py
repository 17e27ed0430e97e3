import errno
import json
import os
import platform
import subprocess
import sys
from pathlib import Path

import jax
import pytest
from etils import epath

import cnn_research
from cnn_research.config import base_config, to_json
from cnn_research.errors import UserError
from cnn_research.training import parallel, workdir


@pytest.fixture
def folder(tmp_path):
    return epath.Path(tmp_path) / "runs" / "one"


def config(**fields):
    config = base_config()
    config.update_from_flattened_dict({name.replace("__", "."): value for name, value in fields.items()})
    return config


def claimed(folder, **fields):
    with workdir.claim(folder):
        workdir.describe(folder, config(**fields))


# ----------------------------------------------------------------------------------- whose a workdir is


def test_new_workdir(folder):
    workdir.check_same_run(folder, config())
    assert not folder.exists()  # looking leaves no trace
    workdir.claim(folder).close()
    assert [path.name for path in folder.iterdir()] == [".lock"]
    workdir.check_same_run(folder, config())  # nobody's yet
    workdir.describe(folder, config(seed=3))
    assert sorted(path.name for path in folder.iterdir()) == [".lock", "config.json", "environment.json"]
    assert workdir.load_config(folder).to_dict() == config(seed=3).to_dict()


@pytest.mark.parametrize("below", ["file", "file/sub", "file/sub/sub"])
def test_workdir_below_a_file(tmp_path, below):
    (tmp_path / "file").write_text("precious")
    folder = epath.Path(tmp_path) / below
    workdir.check_same_run(folder, config())
    with pytest.raises(UserError) as caught:
        workdir.claim(folder)
    assert str(folder) in str(caught.value) and "\n" not in str(caught.value)
    assert (tmp_path / "file").read_text() == "precious"


@pytest.mark.skipif(os.geteuid() == 0, reason="nothing is forbidden to root")
def test_workdir_that_is_read_only(tmp_path):
    tmp_path.chmod(0o500)
    try:
        for folder in (tmp_path, tmp_path / "new"):
            with pytest.raises(UserError, match="Permission denied"):
                workdir.claim(epath.Path(folder))
    finally:
        tmp_path.chmod(0o700)


def test_workdir_on_a_full_disk(folder, monkeypatch):
    """It exists and looks well, but nothing can be written there."""
    folder.mkdir(parents=True)

    def full(self, *args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(type(folder), "open", full)
    with pytest.raises(UserError, match="No space left on device"):
        workdir.claim(folder)


def test_claiming_again_keeps_what_is_there(folder):
    claimed(folder)
    (folder / "metrics.jsonl").write_text("{}\n")
    workdir.claim(folder).close()
    assert (folder / "metrics.jsonl").read_text() == "{}\n"
    assert sorted(path.name for path in folder.iterdir()) == [
        ".lock",
        "config.json",
        "environment.json",
        "metrics.jsonl",
    ]


def test_a_workdir_in_use_is_refused(folder):
    with workdir.claim(folder), pytest.raises(UserError, match="another process is training in it"):
        workdir.claim(folder)
    workdir.claim(folder).close()  # free again


def test_results_of_a_shorter_run_go(folder):
    claimed(folder)
    (folder / "results.json").write_text("{}")
    workdir.describe(folder, config(duration="99ep"))
    assert not (folder / "results.json").exists()


def test_same_run(folder):
    claimed(folder)
    workdir.check_same_run(folder, config())
    longer = config(duration="99ep", checkpoint__every="1st", eval_every="5%", dataset__data_dir="moved")
    workdir.check_same_run(folder, longer)
    workdir.describe(folder, longer)
    assert workdir.load_config(folder).duration == "99ep"


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"seed": 1}, ["seed: 0 -> 1"]),
        ({"optimizer__learning_rate": 0.1, "duration": "99ep"}, ["optimizer.learning_rate: 0.05 -> 0.1"]),
        ({"schedule__boundaries": ("50%",)}, ["schedule.boundaries: ('50%', '75%') -> ('50%',)"]),
        ({"model__filters": (4,)}, ["model.filters: None -> (4,)"]),
        (
            {"seed": 1, "batch_size": 1, "augment": "flip", "precision": "bfloat16", "model__name": "convnet"},
            ["model.name: 'lenet5' -> 'convnet'", "and 2 more"],
        ),
    ],
)
def test_another_experiments_run(folder, fields, words):
    claimed(folder)
    with pytest.raises(UserError) as caught:
        workdir.check_same_run(folder, config(**fields))
    message = str(caught.value)
    assert all(word in message for word in [*words, str(folder), "--workdir"]) and "\n" not in message
    assert "duration" not in message
    assert workdir.load_config(folder).to_dict() == config().to_dict()


def test_no_run(folder):
    with pytest.raises(UserError, match="holds no run"):
        workdir.load_config(folder)


@pytest.mark.parametrize("text", ["", '{"seed": 0', '{"sead": 0}', '{"seed": "zero"}', "[]"])
def test_config_that_is_not_understood(folder, text):
    claimed(folder)
    (folder / "config.json").write_text(text)
    for use in (workdir.load_config, lambda folder: workdir.check_same_run(folder, config())):
        with pytest.raises(UserError) as caught:
            use(folder)
        assert str(folder / "config.json") in str(caught.value) and "\n" not in str(caught.value)


def test_other_processes_write_nothing(folder, monkeypatch):
    monkeypatch.setattr(parallel, "is_main", lambda: False)
    claimed(folder)
    assert not folder.exists()


# ----------------------------------------------------------------------------------------------- files


def test_write_text_and_json(tmp_path):
    path = epath.Path(tmp_path) / "file"
    workdir.write_text(path, "one\n")
    workdir.write_text(path, "ü\n")
    assert path.read_text() == "ü\n"
    workdir.write_json(path, {"a": [1, 0.1], "b": None})
    assert workdir.read_json(path) == {"a": [1, 0.1], "b": None} and path.read_text().endswith("}\n")
    assert [p.name for p in tmp_path.iterdir()] == ["file"]
    assert workdir.read_json(epath.Path(tmp_path) / "none") is None


@pytest.mark.parametrize("when", ["writing", "replacing"])
def test_a_failure_while_writing_leaves_the_old_file(tmp_path, monkeypatch, when):
    path = epath.Path(tmp_path) / "file"
    workdir.write_text(path, "old\n")
    write_text = type(path).write_text

    def killed(self, text="", *args, **kwargs):
        if when == "writing":
            write_text(self, text[: len(text) // 2])
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(type(path), "write_text" if when == "writing" else "replace", killed)
        with pytest.raises(OSError):
            workdir.write_text(path, "new, and much longer\n")
    assert path.read_text() == "old\n"
    workdir.write_text(path, "new\n")  # what was left does no harm
    assert path.read_text() == "new\n" and [p.name for p in tmp_path.iterdir()] == ["file"]


def test_json_that_cannot_be_written_leaves_the_old_file(tmp_path):
    path = epath.Path(tmp_path) / "file"
    workdir.write_json(path, 1)
    with pytest.raises(TypeError):
        workdir.write_json(path, {"a": object()})
    assert workdir.read_json(path) == 1


# ----------------------------------------------------------------------------------------------- environment


def test_environment(folder, monkeypatch):
    monkeypatch.setattr(sys, "orig_argv", ["python", "train.py", "--config=x.py", "--workdir=a b"])
    claimed(folder)
    environment = json.loads((folder / "environment.json").read_text())
    assert (
        environment
        | {
            "cnn_research": cnn_research.__version__,
            "command": [sys.executable, "train.py", "--config=x.py", "--workdir=a b"],
            "python": platform.python_version(),
            "platform": "cpu",
            "devices": 8,
            "processes": 1,
        }
        == environment
    )
    assert environment["cores"] == os.cpu_count()
    if Path("/proc/cpuinfo").exists() and "model name" in Path("/proc/cpuinfo").read_text():
        assert environment["processor"] and environment["processor"] in Path("/proc/cpuinfo").read_text()
    assert environment["device_kind"] == jax.devices()[0].device_kind and platform.system() in environment["system"]
    assert environment["versions"] == workdir.versions() and environment["versions"]["jax"] == jax.__version__
    assert set(environment["versions"]) == set(workdir.PACKAGES)


def git(folder, *arguments):
    identity = ["-c", "user.name=n", "-c", "user.email=e@example.org", "-c", "commit.gpgsign=false"]
    done = subprocess.run(["git", "-C", folder, *identity, *arguments], check=True, capture_output=True, text=True)
    return done.stdout.strip()


def test_git_commit(tmp_path, monkeypatch):
    package = tmp_path / "repository" / "package"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("")
    monkeypatch.setattr(cnn_research, "__file__", str(package / "__init__.py"))
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path))
    assert workdir.environment()["git_commit"] is None  # not a checkout
    git(package.parent, "init", "-q")
    assert workdir.environment()["git_commit"] is None  # nothing committed yet
    git(package.parent, "add", ".")
    git(package.parent, "commit", "-q", "-m", "one")
    commit = git(package, "rev-parse", "HEAD")
    assert len(commit) == 40 and workdir.environment()["git_commit"] == commit
    (package / "new.py").write_text("")
    assert workdir.environment()["git_commit"] == commit  # untracked files are notes, data, runs
    (package / "__init__.py").write_text("x = 1\n")
    assert workdir.environment()["git_commit"] == f"{commit} (changed)"
    installed = package / "environment" / "cnn_research"
    installed.mkdir(parents=True)
    monkeypatch.setattr(cnn_research, "__file__", str(installed / "__init__.py"))
    assert workdir.environment()["git_commit"] is None  # the commit of another project's checkout says nothing
    monkeypatch.setattr(cnn_research, "__file__", str(package / "__init__.py"))
    monkeypatch.setenv("PATH", str(tmp_path))
    assert workdir.environment()["git_commit"] is None  # no git


def test_config_is_written_whole(folder):
    claimed(folder, seed=9)
    assert (folder / "config.json").read_text() == to_json(config(seed=9))


# ----------------------------------------------------------------------------------------------- other storage


def test_a_workdir_in_a_bucket(bucket):
    folder = workdir.locate("gs://bucket/runs/one")
    assert workdir.is_remote(folder) and str(folder) == "gs://bucket/runs/one"
    workdir.check_same_run(folder, config())
    claimed(folder, seed=3)
    assert workdir.load_config(folder).seed == 3
    workdir.write_json(folder / "results.json", {"a": 1})
    assert workdir.read_json(folder / "results.json") == {"a": 1}
    names = [".lock", "config.json", "environment.json", "results.json"]
    assert sorted(path.name for path in folder.iterdir()) == names
    claimed(folder, duration="30ep")
    assert sorted(path.name for path in folder.iterdir()) == names[:-1]
    with pytest.raises(UserError, match="seed: 3 -> 4|seed: 0 -> 4"):
        workdir.check_same_run(folder, config(seed=4))


def test_a_bucket_without_the_package_for_it(monkeypatch):
    def missing(self):
        raise ImportError("Please install gcsfs to access Google Storage")

    monkeypatch.setattr(type(epath.Path("gs://bucket")), "exists", missing)
    with pytest.raises(UserError, match="workdir gs://bucket/run: Please install gcsfs"):
        workdir.locate("gs://bucket/run")


@pytest.mark.parametrize("path", ["runs/a", "/runs/a:b", "~/a"])
def test_what_is_no_bucket(path):
    assert not workdir.is_remote(workdir.locate(path))


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), True),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), True),
        (ValueError("RESOURCE_EXHAUSTED: Failed writing: No space left on device [os_error_code='28']"), True),
        (OSError(errno.EROFS, "Read-only file system"), True),
        (OSError(errno.ENOENT, "No such file or directory"), False),
        (ValueError("No space for 3 axes"), False),
        (RuntimeError("a defect"), False),
        (UserError("cannot be written (Read-only file system)"), True),
    ],
)
def test_a_full_disk_is_told(folder, error, told):
    with pytest.raises(UserError if told else type(error)) as caught, workdir.full_disk_told(folder):
        raise error
    if told and not isinstance(error, UserError):
        message = str(caught.value)
        assert str(folder) in message and "make room" in message and "\n" not in message
    else:
        assert caught.value is error
