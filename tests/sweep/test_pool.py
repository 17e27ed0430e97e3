"""The pool with real processes, which are not trainings."""

import json
import os
import signal
import sys
import threading
import time

import pytest

from cnn_research.errors import UserError
from cnn_research.sweep import pool, runs
from cnn_research.sweep.pool import Devices
from cnn_research.training.preemption import Preemption

GPU = "CUDA_VISIBLE_DEVICES"
TPU = "TPU_VISIBLE_CHIPS"


@pytest.mark.parametrize(
    ("here", "parallel", "environ", "name", "visible", "each"),
    [
        (Devices("cpu", 8, 8), 3, {}, GPU, [None] * 3, 8),
        (Devices("gpu", 4, 4), 1, {}, GPU, [None], 4),
        (Devices("gpu", 4, 4), 2, {}, GPU, ["0,1", "2,3"], 2),
        (Devices("gpu", 4, 4), 4, {}, GPU, ["0", "1", "2", "3"], 1),
        (Devices("gpu", 5, 5), 2, {}, GPU, ["0,1", "2,3"], 2),
        (Devices("gpu", 2, 2), 2, {GPU: "3,5"}, GPU, ["3", "5"], 1),
        (Devices("gpu", 2, 2), 2, {GPU: "GPU-a,GPU-b"}, GPU, ["GPU-a", "GPU-b"], 1),
        (Devices("gpu", 2, 2), 3, {}, GPU, ["0", "1", "0"], 1),
        (Devices("gpu", 1, 1), 3, {}, GPU, ["0", "0", "0"], 1),
        (Devices("tpu", 4, 4), 1, {}, TPU, [None], 4),
        (Devices("tpu", 4, 4), 4, {}, TPU, ["0", "1", "2", "3"], 1),
        (Devices("tpu", 8, 4), 2, {}, TPU, ["0,1", "2,3"], 4),
        (Devices("tpu", 8, 8), 3, {}, TPU, ["0,1", "2,3", "4,5"], 2),
        (Devices("tpu", 2, 2), 2, {TPU: "2,3"}, TPU, ["2", "3"], 1),
    ],
)
def test_devices_are_divided(here, parallel, environ, name, visible, each):
    environments, devices = pool.slots(here, parallel, environ)
    assert [environment.get(name) for environment in environments] == visible
    assert devices == each


@pytest.mark.parametrize(("parallel", "fraction"), [(2, None), (4, 0.45), (5, 0.3)])
def test_runs_that_share_a_gpu_share_its_memory(parallel, fraction):
    environments, _ = pool.slots(Devices("gpu", 2, 2), parallel, {})
    given = {environment.get("XLA_PYTHON_CLIENT_MEM_FRACTION") for environment in environments}
    assert given == {None if fraction is None else f"{fraction:.3f}"}


def test_a_part_of_a_tpu_host_is_told_its_shape():
    environments, _ = pool.slots(Devices("tpu", 4, 4), 2, {})
    assert environments[1] == {
        "TPU_VISIBLE_CHIPS": "2,3",
        "TPU_CHIPS_PER_PROCESS_BOUNDS": "1,2,1",
        "TPU_PROCESS_BOUNDS": "1,1,1",
    }


def test_a_tpu_chip_takes_one_run():
    with pytest.raises(UserError, match="--parallel=5: .*, there are 4"):
        pool.slots(Devices("tpu", 8, 4), 5, {})


# ---------------------------------------------------------------------------------------------- processes

BODIES = {
    "finishes": "done()",
    "diverges": "print('noise'); print('error: diverged: loss not finite at step 3', file=sys.stderr); sys.exit(3)",
    "is mistaken": "print('error: one\\nerror: two', file=sys.stderr); sys.exit(2)",
    "crashes": "raise ValueError('a defect')",
    "is killed": "os.kill(os.getpid(), signal.SIGKILL)",
    "is terminated": "os.kill(os.getpid(), signal.SIGTERM)",
    "is preempted": "(here / 'config.json').write_text(config)",
}
HEAD = """
import json, os, pathlib, signal, sys, time
here, config = pathlib.Path(sys.argv[1]), sys.argv[2]
def done():
    (here / 'config.json').write_text(config)
    results = {"steps": 1, "test": {"accuracy": 0.5}, "best": {"accuracy": 0.5, "step": 1}}
    (here / 'results.json').write_text(json.dumps(results))
"""


def command(body):
    def command(run):
        text = body if isinstance(body, str) else body[run.config.seed]
        return [sys.executable, "-c", HEAD + text, str(run.workdir), json.dumps(run.config.to_dict())]

    return command


def run_all(made, body, environments=({},), watch=lambda *_: None):
    with Preemption() as preemption:
        return pool.run_all(made, command(body), environments, preemption, watch)


def test_how_runs_end(make):
    made = make(f"seed={','.join(map(str, range(len(BODIES))))}")
    ended = run_all(made, list(BODIES.values()), [{}, {}])
    found = {name: (ended[run.name].state, ended[run.name].message) for name, run in zip(BODIES, made, strict=True)}
    assert found == {
        "finishes": ("finished", ""),
        "diverges": ("diverged", "loss not finite at step 3"),
        "is mistaken": ("failed", "one; two"),
        "crashes": ("failed", "ValueError: a defect"),
        "is killed": ("failed", "killed by SIGKILL: out of memory?"),
        "is terminated": ("waiting", ""),
        "is preempted": ("unfinished", ""),
    }
    # A later sweep reads the same from the folders.
    assert {
        name: (runs.status(run).state, runs.status(run).message) for name, run in zip(BODIES, made, strict=True)
    } == found
    assert (made[1].workdir / runs.LOG).read_text().splitlines()[0] == "noise"


def test_a_second_attempt_forgets_the_first_and_keeps_its_log(make):
    made = make("seed=1")
    assert run_all(made, ["", BODIES["is mistaken"]])["seed=1"].message == "one; two"
    assert run_all(made, ["", "print('error: three'); sys.exit(2)"])["seed=1"].message == "three"
    assert run_all(made, "done()")["seed=1"].state == runs.status(made[0]).state == "finished"
    assert (made[0].workdir / runs.LOG).read_text().splitlines() == ["error: one", "error: two", "error: three"]


def test_as_many_at_a_time_as_there_are_environments(make):
    made = make("seed=0,1,2,3,4")
    body = "(here / 'who').write_text(os.environ['WHO']); time.sleep(0.3); done()"
    most = 0

    def watch(under_way, ended):
        nonlocal most
        most = max(most, len(under_way))
        assert len(under_way) + len(ended) <= 5

    ended = run_all(made, body, [{"WHO": "first"}, {"WHO": "second"}], watch)
    assert most == 2 and [status.state for status in ended.values()] == ["finished"] * 5
    assert {(run.workdir / "who").read_text() for run in made} == {"first", "second"}


SAVES = """
def save(*_):
    with open(here / 'saved', 'a') as file:
        file.write('saved')
    sys.exit(0)
signal.signal(signal.SIGTERM, save)
(here / 'config.json').write_text(config)
time.sleep(60)
"""


def test_asked_to_leave_it_asks_the_runs_once_and_starts_no_more(make):
    made = make("seed=0,1,2")
    seen = []

    def watch(under_way, ended):
        if len(under_way) == 2 and all((run.workdir / "config.json").exists() for run in under_way) and not seen:
            seen.append(under_way)
            threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGTERM)).start()

    start = time.monotonic()
    ended = run_all(made, SAVES, [{}, {}], watch)
    assert time.monotonic() - start < 50
    assert {name: status.state for name, status in ended.items()} == {"seed=0": "unfinished", "seed=1": "unfinished"}
    assert [(run.workdir / "saved").exists() and (run.workdir / "saved").read_text() for run in made[:2]] == [
        "saved"
    ] * 2
    assert not made[2].workdir.exists()


def test_no_run_outlives_a_second_interrupt(make):
    made = make("seed=0")
    process = []

    def watch(under_way, ended):
        if (made[0].workdir / "pid").exists():
            process.append(int((made[0].workdir / "pid").read_text()))
            raise KeyboardInterrupt

    body = "(here / 'pid.tmp').write_text(str(os.getpid())); (here / 'pid.tmp').rename(here / 'pid'); time.sleep(60)"
    with pytest.raises(KeyboardInterrupt):
        run_all(made, body, watch=watch)
    with pytest.raises(ProcessLookupError):
        os.kill(process[0], 0)
