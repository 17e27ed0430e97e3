"""Runs that are killed, asked to leave, spread over devices, or diverge."""

import json
import random
import shutil
import signal
import time

import numpy as np
import pytest

from cnn_research.config import base_config
from cnn_research.training.checkpoints import Checkpoints


def test_sigkill_three_times_gives_the_same_digest(script, wait_for_step, reference, results, read_rows, tmp_path):
    workdir = tmp_path / "run"
    moments = random.Random(0)
    # One kill in each third of the run; the extra moment puts it anywhere between two rows, a save included.
    for first, last in ((10, 40), (40, 80), (80, 110)):
        process = script.start("train", *script.tiny, f"--workdir={workdir}")
        wait_for_step(process, workdir, moments.randrange(first, last, 10))
        time.sleep(moments.uniform(0, 0.05))
        process.kill()
        assert process.wait() == -signal.SIGKILL
        process.communicate()
        assert not (workdir / "results.json").exists()
    _, err = script.run("train", *script.tiny, f"--workdir={workdir}")
    assert "Steps 0 to" not in err, "the last run should have gone on from a checkpoint"

    whole, pieces = results(reference), results(workdir)
    for name in ("digest", "test", "best", "steps"):
        assert pieces[name] == whole[name], name
    assert [row["step"] for row in read_rows(workdir)] == [row["step"] for row in read_rows(reference)]


def test_the_same_seed_gives_the_same_digest(script, reference, results, tmp_path):
    """On a CPU always: what config.deterministic asks of XLA is for GPUs, but XLA must know it everywhere."""
    script.run("train", *script.tiny, f"--workdir={tmp_path}/run", "--config.deterministic=true")
    assert results(tmp_path / "run")["digest"] == results(reference)["digest"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_run_that_is_asked_to_leave_saves_and_goes_on_later(
    script, wait_for_step, reference, results, tmp_path, number
):
    workdir = tmp_path / "run"
    # No checkpoint is due before the end: the one that is found afterwards was saved on the way out.
    flags = [*script.tiny, f"--workdir={workdir}", "--config.checkpoint.every=120st", "--config.eval_every=120st"]
    process = script.start("train", *flags)
    wait_for_step(process, workdir, 20)
    process.send_signal(number)
    out, err = process.communicate(timeout=180)
    assert process.returncode == 0, err
    step = int(err.split("preempted at step ")[1].split()[0])
    with Checkpoints(workdir / "checkpoints", base_config().checkpoint) as checkpoints:
        assert checkpoints.latest_step == step
    assert not (workdir / "results.json").exists()
    if number == signal.SIGTERM:
        cut = shutil.copytree(workdir, tmp_path / "cut")
        script.run("train", *flags, f"--workdir={cut}", f"--config.duration={step}st")
        assert results(cut)["steps"] == results(cut)["best"]["step"] == step, "it ends where nothing was evaluated yet"
    script.run("train", *flags)
    assert results(workdir)["digest"] == results(reference)["digest"]


def test_an_impatient_scheduler_does_not_cost_the_checkpoint(script, wait_for_step, tmp_path):
    workdir = tmp_path / "run"
    flags = ["--config.checkpoint.every=100%", "--config.eval_every=100%", "--config.duration=100000st"]
    process = script.start("train", *script.tiny, f"--workdir={workdir}", *flags)
    wait_for_step(process, workdir, 20)
    while process.poll() is None:
        process.send_signal(signal.SIGTERM)
        time.sleep(0.01)
    process.communicate()
    with Checkpoints(workdir / "checkpoints", base_config().checkpoint) as checkpoints:
        assert checkpoints.latest_step


def test_a_finished_run_can_be_prolonged(script, reference, results, tmp_path):
    workdir = shutil.copytree(reference, tmp_path / "copy")
    flags = [*script.tiny, f"--workdir={workdir}"]
    script.run("train", *flags, "--config.duration=130st")
    assert results(workdir)["steps"] == 130
    _, err = script.run("train", *flags, "--config.duration=100st", code=2)
    assert "step 130" in err and "100" in err
    assert json.loads((workdir / "config.json").read_text())["duration"] == "130st", "a refused run must change nothing"


@pytest.fixture(scope="module")
def on_devices(script, tiny_tfds, tmp_path_factory):
    """The same run of LeNet-5 and of a batch-normalised network on 1 and on 8 devices."""

    def run(devices, name, *flags):
        workdir = tmp_path_factory.mktemp(name) / f"devices{devices}"
        flags = [
            *script.tiny, "--config.dataset.name=tiny_digits", f"--config.dataset.data_dir={tiny_tfds}",
            "--config.duration=60st", "--config.log_every=1st", "--config.optimizer.name=nesterov",
            # Slow enough that training doesn't blow up the rounding of sums taken in another order.
            "--config.optimizer.learning_rate=0.002", "--config.augment=shift(2)", f"--workdir={workdir}", *flags,
        ]  # fmt: skip
        script.run("train", *flags, devices=devices)
        return workdir

    return run


LENET = [
    "--config.model.name=lenet5", "--config.model.filters=None", "--config.model.dense=None",
    "--config.model.batch_norm=None", "--config.model.dropout_rate=0.0",
]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "flags"),
    [
        ("lenet5", LENET),
        # Slower still: Flax takes a variance as a difference of means, which loses digits. Statistics of each device's
        # own four images would be off by 0.06. No dropout, which is keyed by the device.
        ("convnet", ["--config.model.dropout_rate=0.0", "--config.optimizer.learning_rate=0.0005"]),
    ],
    ids=["lenet5", "batch_norm"],
)
def test_eight_devices_learn_as_one_does(on_devices, script, read_rows, results, name, flags):
    one, eight = (on_devices(devices, name, *flags) for devices in (1, 8))
    curves = [[row["loss"] for row in read_rows(w, "train")] for w in (one, eight)]
    assert len(curves[0]) == 60
    np.testing.assert_allclose(curves[0], curves[1], atol=1e-4, rtol=0)
    assert results(eight)["devices"] == 8 and results(eight)["test"]["num_examples"] == 60
    # What eight devices saved, one evaluates.
    values = json.loads(script.run("evaluate", f"--workdir={eight}")[0])
    assert values["accuracy"] == pytest.approx(results(eight)["test"]["accuracy"])
    assert values["loss"] == pytest.approx(results(eight)["test"]["loss"], rel=1e-5)


DIVERGES = [
    "--config.optimizer.name=sgd", "--config.model.batch_norm=none", "--config.optimizer.learning_rate=1e6",
    "--config.checkpoint.every=1st", "--config.log_every=1st",
    # Dead rectifiers would stop the divergence, and the first step of the warm-up leaves something finite to save.
    "--config.model.activation=leaky_relu", "--config.schedule.warmup=10st",
]  # fmt: skip


def test_divergence_stops_the_run_and_leaves_the_last_good_checkpoint(script, tmp_path):
    workdir = tmp_path / "run"
    _, err = script.run("train", *script.tiny, f"--workdir={workdir}", *DIVERGES, code=3)
    assert "diverged" in err and "not finite at step" in err
    with Checkpoints(workdir / "checkpoints", base_config().checkpoint) as checkpoints:
        step = checkpoints.latest_step
        assert f"the last checkpoint, of step {step}, is finite" in err
        leaves = checkpoints.restore_network(step)["params"]["output"].values()
    assert all(np.isfinite(leaf).all() for leaf in leaves)
    assert not (workdir / "results.json").exists()


def test_divergence_at_once(script, tmp_path):
    workdir = tmp_path / "run"
    flags = ["--config.optimizer.name=sgd", "--config.optimizer.learning_rate=1e6", "--config.model.batch_norm=none"]
    _, err = script.run("train", *script.tiny, f"--workdir={workdir}", *flags, code=3)
    assert "diverged" in err and "there is no checkpoint yet" in err and "Traceback" not in err


def test_rollback_goes_on_at_a_lower_rate(script, results, read_rows, tmp_path):
    # The rate rises until training blows up, soon after step 40.
    flags = [
        *script.tiny, *DIVERGES, f"--workdir={tmp_path}", "--config.on_divergence=rollback",
        "--config.rollback_factor=0.001", "--config.optimizer.learning_rate=100", "--config.schedule.name=constant",
        "--config.schedule.warmup=100%", "--config.checkpoint.every=20st",
    ]  # fmt: skip
    _, err = script.run("train", *flags)
    assert err.count("Rollback") == 1 and "the last checkpoint, of step 40, is finite" in err
    rows = {row["step"]: row for row in read_rows(tmp_path, "train")}
    assert sorted(rows) == list(range(1, 121)), "no row is lost or there twice"
    assert rows[40]["learning_rate"] == pytest.approx(100 * 40 / 120)
    assert rows[60]["learning_rate"] == pytest.approx(100 * 60 / 120 * 0.001)
    assert results(tmp_path)["rollbacks"] == 1
    # The rate stays lowered in a run that goes on later.
    script.run("train", *flags, "--config.duration=125st")
    assert read_rows(tmp_path, "train")[-1]["learning_rate"] == pytest.approx(0.1)


def test_rollbacks_are_bounded(script, tmp_path):
    flags = ["--config.on_divergence=rollback", "--config.rollback_factor=0.99", "--config.max_rollbacks=2"]
    _, err = script.run("train", *script.tiny, *DIVERGES, *flags, f"--workdir={tmp_path}", code=3)
    assert "Rollback 2:" in err and "again after 2 rollbacks" in err and "Traceback" not in err
    assert not (tmp_path / "results.json").exists()


def test_early_stopping(script, results, read_rows, tmp_path):
    # Nothing can be learned at this rate, so nothing improves after the first evaluation, at step 40.
    flags = ["--config.optimizer.learning_rate=1e-12", "--config.checkpoint.best_metric=accuracy"]
    flags += ["--config.model.batch_norm=none", "--config.duration=1000st", "--config.early_stopping=60st"]
    _, err = script.run("train", *script.tiny, *flags, f"--workdir={tmp_path}")
    assert "stopped at step 120: no improvement since step 40" in err
    first = results(tmp_path)
    assert (first["steps"], first["stopped_early"], first["best"]["step"]) == (120, True, 40)
    # Started again, it has stopped already; with more patience, it goes on.
    script.run("train", *script.tiny, *flags, f"--workdir={tmp_path}")
    assert results(tmp_path)["steps"] == 120 and results(tmp_path)["digest"] == first["digest"]
    script.run("train", *script.tiny, *flags, f"--workdir={tmp_path}", "--config.early_stopping=100st")
    assert results(tmp_path)["steps"] == 160


def test_what_is_evaluated_and_kept_are_the_moving_averages(script, results, tmp_path):
    flags = ["--config.ema_decay=0.9", "--config.duration=60st"]
    script.run("train", *script.tiny, *flags, f"--workdir={tmp_path / 'run'}")
    values = json.loads(script.run("evaluate", f"--workdir={tmp_path / 'run'}")[0])
    assert values["loss"] == results(tmp_path / "run")["test"]["loss"]
    process = script.start("train", *script.tiny, *flags, f"--workdir={tmp_path / 'killed'}", "--config.log_every=1st")
    while not (tmp_path / "killed" / "checkpoints" / "20").exists() and process.poll() is None:
        time.sleep(0.005)
    process.kill()
    process.communicate()
    script.run("train", *script.tiny, *flags, f"--workdir={tmp_path / 'killed'}", "--config.log_every=10st")
    assert results(tmp_path / "killed")["digest"] == results(tmp_path / "run")["digest"]


def test_profile(script, tmp_path):
    flags = ["--config.profile=12st:15st", "--config.duration=20st", f"--workdir={tmp_path}"]
    script.run("train", *script.tiny, *flags)
    (trace,) = (tmp_path / "profile").rglob("*.xplane.pb")
    assert trace.stat().st_size > 1000
