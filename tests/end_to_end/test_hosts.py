"""Runs of several processes that find each other through jax.distributed, as on several hosts."""

import json
import shutil
import signal
import socket
import time
from contextlib import contextmanager

import numpy as np
import pytest

from cnn_research.config import base_config
from cnn_research.training import parallel
from cnn_research.training.checkpoints import Checkpoints

pytestmark = pytest.mark.slow

# Network, its flags, and how far the losses of the first 20 steps may be apart: sums over devices in another order.
NETWORKS = {
    "lenet5": (
        [
            "--config.model.name=lenet5", "--config.model.filters=None", "--config.model.dense=None",
            "--config.model.batch_norm=None", "--config.model.dropout_rate=0.0", "--config.dataset.image_size=32",
            "--config.duration=40st", "--config.eval_every=20st", "--config.checkpoint.every=10st",
        ],
        1e-6,
    ),
    "resnet20": (
        [
            "--config.model.name=resnet20", "--config.model.filters=None", "--config.model.dense=None",
            "--config.model.batch_norm=None", "--config.model.dropout_rate=None", "--config.dataset.name=shapes:32",
            "--config.dataset.train_split=train[:512]", "--config.dataset.eval_split=test[:90]",
            "--config.dataset.test_split=test[:90]", "--config.duration=40st", "--config.eval_every=20st",
            "--config.checkpoint.every=10st",
            "--config.dataset.feed=streaming",  # each host decodes its share
            # The first losses are equal to the bit and the second ones to 1e-7, but twenty normalised layers blow the
            # rounding of other sums up: slowly at this rate.
            "--config.optimizer.name=nesterov", "--config.optimizer.learning_rate=0.0001",
            "--config.schedule.name=constant", "--config.schedule.warmup=0st",
        ],
        1e-4,
    ),
}  # fmt: skip
full = pytest.mark.full
EACH = ["lenet5", pytest.param("resnet20", marks=full)]
HOSTS, DEVICES = 2, 2


@contextmanager
def hosts(script, *flags, count=HOSTS, command="train"):
    """Starts the processes of a run; none is left behind."""
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        address = f"localhost:{probe.getsockname()[1]}"
    common = [*flags, f"--coordinator_address={address}", f"--num_processes={count}"]
    processes = [script.start(command, *common, f"--process_id={i}", devices=DEVICES) for i in range(count)]
    try:
        yield processes
    finally:
        for process in processes:
            process.kill()
            process.wait()


def finish(processes, timeout=180):
    """Waits for all; returns their exit codes, what they printed and what they logged."""
    deadline = time.monotonic() + timeout
    told = [process.communicate(timeout=max(1, deadline - time.monotonic())) for process in processes]
    # Gloo, JAX's transport between CPUs, prints how it connects.
    outs = ["".join(line for line in out.splitlines(True) if not line.startswith("[Gloo]")) for out, _ in told]
    return [process.returncode for process in processes], outs, [err for _, err in told]


def run_on_hosts(script, *flags, **options):
    with hosts(script, *flags, **options) as processes:
        codes, outs, errs = finish(processes)
    assert codes == [0] * len(codes), "\n".join(errs)
    return outs, errs


@pytest.fixture(scope="module")
def flags_of(script):
    return lambda name: [*script.tiny, *NETWORKS[name][0]]


@pytest.fixture(scope="module")
def whole(script, flags_of, tmp_path_factory):
    """The workdir of a run on two hosts that nothing interrupted, for each network once; and what the hosts said."""
    made = {}

    def make(name):
        if name not in made:
            workdir = tmp_path_factory.mktemp("hosts") / name
            made[name] = workdir, *run_on_hosts(script, *flags_of(name), f"--workdir={workdir}")
        return made[name]

    return make


@pytest.mark.parametrize("name", EACH)
def test_two_hosts_learn_as_one_does(script, whole, flags_of, read_rows, results, tmp_path, name):
    workdir, outs, errs = whole(name)
    alone = tmp_path / "alone"
    script.run("train", *flags_of(name), f"--workdir={alone}", devices=HOSTS * DEVICES)
    told = [read_rows(w) for w in (alone, workdir)]
    assert [r["step"] for r in told[0]] == [r["step"] for r in told[1]]
    losses = [[row["loss"] for row in rows if row["step"] <= 20] for rows in told]
    print(f"{name}: losses differ by up to {max(abs(a / b - 1) for a, b in zip(*losses, strict=True)):.1e}, relatively")
    assert len(losses[0]) == 3  # of two intervals and an evaluation
    np.testing.assert_allclose(*losses, rtol=NETWORKS[name][1])
    together, one = results(workdir), results(alone)
    for field in ("num_examples", "accuracy", "top5"):  # a sum of whole numbers has no rounding
        assert together["test"][field] == one["test"][field], field
    assert together["devices"] == one["devices"] == HOSTS * DEVICES
    environment = json.loads((workdir / "environment.json").read_text())
    assert environment["processes"] == HOSTS and environment["devices"] == HOSTS * DEVICES
    # The first process alone writes and sums up.
    assert "test accuracy" in outs[0] and "test accuracy" not in outs[1]
    assert len(list(workdir.glob("events*"))) == 1
    assert sorted(p.name for p in workdir.iterdir() if not p.name.startswith("events")) == [
        ".lock", "checkpoints", "config.json", "environment.json", "metrics.jsonl", "results.json",
    ]  # fmt: skip


@full
def test_evaluation_on_two_hosts_is_exact(script, whole, results):
    workdir, _, _ = whole("lenet5")
    outs, _ = run_on_hosts(script, f"--workdir={workdir}", "--split=test[:97]", command="evaluate")
    assert outs[1] == ""
    # 97 examples are no even share for 4 devices.
    alone = json.loads(script.run("evaluate", f"--workdir={workdir}", "--split=test[:97]")[0])
    together = json.loads(outs[0])
    assert together == alone | {"loss": pytest.approx(alone["loss"], rel=1e-6)} and together["num_examples"] == 97


@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=full)])
@pytest.mark.parametrize("name", EACH)
def test_one_is_asked_to_leave_and_all_do(script, wait_for_step, whole, flags_of, results, tmp_path, name, number):
    workdir = tmp_path / "run"
    # No checkpoint is due before the end: the one that is found afterwards was saved on the way out.
    flags = [*flags_of(name), f"--workdir={workdir}", "--config.checkpoint.every=100%", "--config.log_every=1st"]
    flags += ["--config.eval_every=100%", "--config.duration=2000st"]
    with hosts(script, *flags) as processes:
        wait_for_step(processes[0], workdir, 5)
        processes[1].send_signal(number)
        sent = time.monotonic()
        codes, _, errs = finish(processes, timeout=180)
        assert codes == [0, 0], "\n".join(errs)
        assert time.monotonic() - sent < 30
    steps = {err.split("preempted at step ")[1].split()[0] for err in errs}
    assert len(steps) == 1, "they should leave at the same step"
    with Checkpoints(workdir / "checkpoints", base_config().checkpoint, read_only=True) as checkpoints:
        assert checkpoints.latest_step == int(steps.pop())


def test_all_go_back_together_after_a_divergence(script, flags_of, tmp_path):
    """Twice to the same checkpoint, which is then forgotten, and all the others have seen it before it is deleted."""
    flags = [
        *flags_of("lenet5"), f"--workdir={tmp_path}", "--config.on_divergence=rollback", "--config.max_rollbacks=2",
        "--config.schedule.name=piecewise", "--config.schedule.boundaries=24st", "--config.schedule.multipliers=1e37",
        "--config.schedule.warmup=0st", "--config.log_every=5st",
    ]  # fmt: skip
    with hosts(script, *flags) as processes:
        codes, _, errs = finish(processes, timeout=180)
    assert codes == [3, 3], "\n".join(errs)
    for err in errs:
        starts = [line.split("Steps ")[1].split()[0] for line in err.splitlines() if "Steps " in line]
        assert starts == ["0", "20", "10"] and "again after 2 rollbacks" in err


@pytest.mark.parametrize("name", EACH)
# Without the first process, which coordinates, the others end at once; without another after HEARTBEAT_TIMEOUT.
@pytest.mark.parametrize(("killed", "within"), [(0, 15), pytest.param(1, parallel.HEARTBEAT_TIMEOUT + 15, marks=full)])
def test_one_is_killed_and_all_stop(
    script, wait_for_step, whole, flags_of, read_rows, results, tmp_path, name, killed, within
):
    workdir = tmp_path / "run"
    flags = [*flags_of(name), f"--workdir={workdir}"]
    with hosts(script, *flags) as processes:
        wait_for_step(processes[0], workdir, 20)
        processes[killed].kill()
        began = time.monotonic()
        codes, _, _ = finish(processes, timeout=within)
        print(f"{name}: the other stopped {time.monotonic() - began:.1f} s after the kill")
    assert codes[killed] == -signal.SIGKILL and codes[1 - killed] not in (0, None)
    assert not (workdir / "results.json").exists()

    _, errs = run_on_hosts(script, *flags)
    assert "Steps 0 to" not in errs[0], "it should have gone on from a checkpoint"
    ended = whole(name)[0]
    for field in ("digest", "test", "best", "steps"):
        assert results(workdir)[field] == results(ended)[field], field
    assert [row["step"] for row in read_rows(workdir)] == [row["step"] for row in read_rows(ended)]


@full
def test_the_number_of_hosts_may_change(script, whole, flags_of, read_rows, results, tmp_path):
    """Begun on two hosts, continued on a single device, ended on two hosts again."""
    workdir = tmp_path / "run"
    flags = [
        *flags_of("lenet5"),
        f"--workdir={workdir}",
        "--config.schedule.name=constant",
        "--config.schedule.warmup=0st",
    ]
    run_on_hosts(script, *flags, "--config.duration=20st")
    script.run("train", *flags, "--config.duration=40st")
    run_on_hosts(script, *flags)
    alone = tmp_path / "alone"
    script.run("train", *flags, f"--workdir={alone}")
    curves = [[(row["step"], row["loss"]) for row in read_rows(w, "train")] for w in (alone, workdir)]
    np.testing.assert_allclose(*curves, rtol=1e-4)


# --------------------------------------------------------------------------------------------------- mistakes


@full
def test_a_mistake_on_one_host_ends_all(script, whole, flags_of, tmp_path):
    """Only the first process writes, and so only it sees that it can't."""
    workdir = shutil.copytree(whole("lenet5")[0], tmp_path / "run")
    for step in (workdir / "checkpoints").iterdir():
        shutil.rmtree(step)
    (workdir / "results.json").unlink()
    (workdir / ".lock").unlink()
    (workdir / ".lock").mkdir()
    with hosts(script, *flags_of("lenet5"), f"--workdir={workdir}") as processes:
        codes, _, errs = finish(processes, timeout=180)
    assert codes[0] == 2 and "error: " in errs[0] and "cannot be written" in errs[0] and "Traceback" not in errs[0]
    assert codes[1] not in (0, None)


def test_flags_that_make_no_sense(script, tmp_path):
    _, err = script.run("train", *script.tiny, f"--workdir={tmp_path}/run", "--process_id=0", code=2)
    errors = [line for line in err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and "Traceback" not in err and "--coordinator_address and --num_processes" in errors[0]
    assert not list(tmp_path.iterdir())
