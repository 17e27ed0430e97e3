"""A sweep as people run it: interrupted, repeated, extended, and with a run that diverges."""

import csv
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
DIGITS = f"--config={ROOT}/experiments/configs/lenet5_digits.py"
# Held out: the best is chosen on images that are not the test's.
FLAGS = [
    DIGITS, "--config.dataset.train_split=train[:80%]", "--config.dataset.eval_split=train[80%:]",
    "--config.duration=120st", "--config.batch_size=16", "--config.log_every=5st",
    "--config.eval_every=60st", "--config.checkpoint.every=20st",
]  # fmt: skip
GRID = ["--grid=optimizer.learning_rate=0.05,0.02,1e6", "--grid=seed=0,1"]
DIVERGES = [f"optimizer.learning_rate=1000000.0,seed={seed}" for seed in (0, 1)]
FINISHES = [f"optimizer.learning_rate={rate},seed={seed}" for rate in (0.02, 0.05) for seed in (0, 1)]


def finished(workdir):
    """What may not change of the runs that are finished."""
    return {path.parent.name: (path.stat().st_mtime_ns, path.read_text()) for path in workdir.glob("*/results.json")}


def table(workdir, name="sweep.csv"):
    return list(csv.DictReader((workdir / name).open()))


@pytest.fixture(scope="module")
def sweep(script, tmp_path_factory):
    """The folder of a sweep of six runs that was interrupted in the third and then ran to its end, two at a time."""
    workdir = tmp_path_factory.mktemp("sweeps") / "rates"
    flags = [*FLAGS, *GRID, f"--workdir={workdir}"]
    order = ("0.05,seed=0", "0.05,seed=1", "0.02,seed=0")
    first, second, third = (workdir / f"optimizer.learning_rate={name}" for name in order)

    process = script.start("sweep", *flags, start_new_session=True)
    deadline = time.monotonic() + 150
    while not list(third.glob("checkpoints/20/about")):
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGINT)  # as Ctrl-C does on a terminal: to the sweep and to its runs
    _, err = process.communicate(timeout=180)
    assert process.returncode == 0 and "left early: 2 finished, 1 unfinished, 3 waiting" in err, err
    assert "preempted at step" in (third / "output.log").read_text() and "Traceback" not in err
    before = finished(workdir)
    assert before.keys() == {first.name, second.name}
    assert [row["state"] for row in table(workdir)] == ["finished"] * 2 + ["unfinished"] + ["waiting"] * 3

    script.run("sweep", *flags, "--parallel=2")
    assert finished(workdir).items() >= before.items(), "a finished run was repeated"
    starts = [line for line in (third / "output.log").read_text().splitlines() if " Steps " in line]
    assert len(starts) == 2 and "Steps 0 to" not in starts[1], "an interrupted run goes on from its checkpoint"
    return workdir


def test_table_is_complete(sweep):
    rows = {row["run"]: row for row in table(sweep)}
    assert rows.keys() == {*FINISHES, *DIVERGES}
    for name in FINISHES:
        results = json.loads((sweep / name / "results.json").read_text())
        row = rows[name]
        assert row["state"] == "finished" and row["step"] == "120" and row["message"] == ""
        assert float(row["test_accuracy"]) == results["test"]["accuracy"]
        assert float(row["best_accuracy"]) == results["best"]["accuracy"]
        assert results["seed"] == int(row["seed"]) and results["test"]["num_examples"] == 360
    for name in DIVERGES:
        assert rows[name]["state"] == "diverged" and "not finite at step" in rows[name]["message"]
        assert not (sweep / name / "results.json").exists()
    means = {row["optimizer.learning_rate"]: row for row in table(sweep, "sweep_seeds.csv")}
    assert {rate: (row["n"], row["runs"]) for rate, row in means.items()} == {
        "0.05": ("2", "2"), "0.02": ("2", "2"), "1000000.0": ("0", "2"),
    }  # fmt: skip
    accuracies = [float(rows[f"optimizer.learning_rate=0.05,seed={seed}"]["test_accuracy"]) for seed in (0, 1)]
    assert float(means["0.05"]["test_accuracy_mean"]) == pytest.approx(sum(accuracies) / 2)
    assert all(run["state"] in ("finished", "diverged") for run in page_data(sweep)["runs"])


def page_data(workdir):
    text = (workdir / "sweep.html").read_text()
    return json.loads(text.partition('id="data">')[2].partition("</script>")[0])


def test_what_is_done_is_not_done_again(sweep, script):
    before, logs = finished(sweep), [path.stat().st_mtime_ns for path in sweep.glob("*/output.log")]
    flags = [*FLAGS, *GRID, f"--workdir={sweep}"]
    out, err = script.run("sweep", *flags)
    assert finished(sweep) == before, "nothing is left to run, diverged runs neither"
    assert [path.stat().st_mtime_ns for path in sweep.glob("*/output.log")] == logs
    assert "Best by dataset.eval_split, 'train[80%:]'" in out and "Chosen on the test set" not in out
    assert "± " in out and "4 finished, 2 diverged" in err

    out, _ = script.run("sweep", *flags, "--retry", "--dry_run")
    assert [shlex.split(line)[5] for line in out.splitlines()] == [f"--workdir={sweep}/{name}" for name in DIVERGES]


def test_a_changed_experiment_is_refused(sweep, script):
    before = finished(sweep)
    _, err = script.run("sweep", *FLAGS, *GRID, f"--workdir={sweep}", "--config.batch_size=32", code=2)
    errors = [line for line in err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 6 and all("another experiment (batch_size: 16 -> 32)" in line for line in errors)
    assert finished(sweep) == before


def test_commands_of_a_dry_run_train_what_the_sweep_lacks(sweep, script, tmp_path):
    """A later sweep of the same folder, described by a file of flags, that has one seed more."""
    workdir = tmp_path / "two words"
    workdir.symlink_to(sweep)
    (tmp_path / "sweep.flags").write_text("--grid=optimizer.learning_rate=0.05\n# One more.\n--grid=seed=0,1,2\n")
    flags = [*FLAGS, f"--flagfile={tmp_path}/sweep.flags", f"--workdir={workdir}"]
    before = finished(sweep)
    (command,) = script.run("sweep", *flags, "--dry_run")[0].splitlines()
    assert shlex.split(command)[:4] == [sys.executable, "-m", "cnn_research.commands", "train"]
    assert finished(sweep) == before and not (sweep / "optimizer.learning_rate=0.05,seed=2").exists()
    subprocess.run(command, shell=True, check=True, timeout=120, stdin=subprocess.DEVNULL, capture_output=True)
    # What a cluster has run, tables are made of.
    out, _ = script.run("sweep", *flags, "--table_only")
    assert [(row["seed"], row["state"]) for row in table(sweep)] == [(seed, "finished") for seed in "012"]
    assert finished(sweep).items() > before.items() and "(n=3)" in out


def test_a_run_that_fails_is_reported(script, tmp_path):
    """The folder is missing, which shows when the data is opened: after the check of the configs."""
    flags = [*script.tiny, f"--grid=dataset.name=folder:{tmp_path}/none", f"--workdir={tmp_path}/sweep"]
    out, err = script.run("sweep", *flags, code=2)
    assert "failed" in out and "No run has finished" in out
    assert "1 run(s) failed; --retry" in err and f"{tmp_path}/none" in err and "output.log" in err
    assert "Traceback" not in err


MISTAKES = {
    "misspelt field": (["--grid=optimizer.learning_rat=0.1,0.2"], ["and 1 more", "Did you mean 'learning_rate'?"]),
    "a wrong value": (["--grid=batch_size=8,0"], ["run batch_size=0: config.batch_size=0: must be at least 1"]),
    "a workdir in a bucket": (["--grid=seed=0,1", "--workdir=gs://bucket/sweep"], ["--dry_run", "--table_only"]),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistake(script, tmp_path, name):
    given, expected = MISTAKES[name]
    flags = [f"--workdir={tmp_path}/sweep", *script.tiny, *(flag.format(tmp=tmp_path) for flag in given)]
    _, err = script.run("sweep", *flags, code=2)
    errors = [line for line in err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and "Traceback" not in err, err
    assert all(text in errors[0] for text in expected), err
    assert not (tmp_path / "sweep").exists()


def test_the_sweep_itself_takes_no_device(tmp_path):
    """A GPU or TPU would then be lost to its runs."""
    code = (
        "import sys\nfrom jax._src import xla_bridge\nfrom cnn_research.commands import sweep\n"
        "try:\n    sweep.run()\nfinally:\n    assert not xla_bridge.backends_are_initialized()\n    print('none')\n"
    )
    flags = [DIGITS, "--grid=seed=0,1", f"--workdir={tmp_path}/sweep", "--table_only"]
    run = subprocess.run([sys.executable, "-c", code, *flags], capture_output=True, text=True, timeout=180)
    assert run.returncode == 0 and run.stdout.endswith("none\n"), run.stderr
