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
    out, err = process.communicate(timeout=60)
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
            "--config.duration=100st", "--config.log_every=1st", "--config.optimizer.name=nesterov",
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
    assert len(curves[0]) == 100
    np.testing.assert_allclose(curves[0], curves[1], atol=1e-4, rtol=0)
    assert results(eight)["devices"] == 8 and results(eight)["test"]["num_examples"] == 60
    # What eight devices saved, one evaluates.
    values = json.loads(script.run("evaluate", f"--workdir={eight}")[0])
    assert values["accuracy"] == pytest.approx(results(eight)["test"]["accuracy"])
    assert values["loss"] == pytest.approx(results(eight)["test"]["loss"], rel=1e-5)


def test_divergence_stops_the_run_and_leaves_the_last_good_checkpoint(script, tmp_path):
    workdir = tmp_path / "run"
    flags = [
        *script.tiny, f"--workdir={workdir}", "--config.optimizer.name=sgd", "--config.model.batch_norm=none",
        "--config.optimizer.learning_rate=1e6", "--config.checkpoint.every=1st", "--config.log_every=1st",
        # Dead rectifiers would stop the divergence, and the first step of the warm-up leaves something finite to save.
        "--config.model.activation=leaky_relu", "--config.schedule.warmup=10st",
    ]  # fmt: skip
    _, err = script.run("train", *flags, code=3)
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
