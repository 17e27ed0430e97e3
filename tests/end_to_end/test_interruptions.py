"""Many runs that are killed or asked to leave at random moments of every phase; by hand, it takes a quarter of an hour.

make test-full ARGS="tests/end_to_end/test_interruptions.py -s" prints the figures.
"""

import json
import random
import shutil
import signal
import time

import pytest

from cnn_research.config import base_config
from cnn_research.training.checkpoints import Checkpoints

pytestmark = pytest.mark.full

PHASES = ("start", "compile", "step", "save", "evaluation")
KILLS, TERMINATIONS, CUTS = 30, 10, 20
STEPS = 400
FLAGS = [f"--config.duration={STEPS}st"]


@pytest.fixture(scope="module")
def whole(script, tmp_path_factory):
    """The workdir of the run that nothing interrupted."""
    workdir = tmp_path_factory.mktemp("whole") / "run"
    script.run("train", *script.tiny, *FLAGS, f"--workdir={workdir}")
    return workdir


def layout(workdir):
    """What is in a workdir, but for TensorBoard's files, of which each start leaves one."""
    files = [path.relative_to(workdir) for path in (*workdir.iterdir(), *(workdir / "checkpoints").iterdir())]
    return sorted(str(path) for path in files if not path.name.startswith("events"))


def wait_for_phase(phase, process, workdir, read_rows, moments):
    """Waits for a random moment of a phase, or the end of the run."""

    def reached():
        if phase == "start":
            return True
        if phase == "compile":
            return (workdir / "config.json").exists()
        if phase == "save":
            return any("tmp" in path.name for path in (workdir / "checkpoints").glob("*"))
        try:
            last = [(row["step"], row["split"]) for row in read_rows(workdir)[-1:]]
        except json.JSONDecodeError:  # the last line is being written
            return False
        return (
            bool(last) and last[0][0] >= after and (phase == "step" or (last[0][0] % 40 == 0 and last[0][1] == "train"))
        )

    after = moments.randrange(0, STEPS - 40, 10)
    if phase == "save":
        # Any of the saves: the first ones come first.
        time.sleep(moments.uniform(2, 5))
    while process.poll() is None and not reached():
        time.sleep(0.001)
    time.sleep(moments.uniform(0, {"start": 3, "compile": 1}.get(phase, 0.05)))


def start(script, phase, workdir):
    # Without a cache it does compile.
    flags = ["--config.compilation_cache="] if phase == "compile" else []
    return script.start("train", *script.tiny, *FLAGS, *flags, f"--workdir={workdir}")


def assert_ends_as(script, workdir, whole, results, read_rows):
    script.run("train", *script.tiny, *FLAGS, f"--workdir={workdir}")
    for name in ("digest", "test", "best", "steps"):
        assert results(workdir)[name] == results(whole)[name], name
    assert layout(workdir) == layout(whole)
    # A run that was asked to leave has told its loss there, and so of fewer steps in the row after that.
    rows = [[(row["step"], row["split"]) for row in read_rows(w) if row["step"] % 10 == 0] for w in (workdir, whole)]
    assert rows[0] == rows[1]


@pytest.mark.parametrize("number", range(KILLS))
def test_killed(script, whole, results, read_rows, tmp_path, number):
    phase, moments, workdir = PHASES[number % len(PHASES)], random.Random(number), tmp_path / "run"
    process = start(script, phase, workdir)
    wait_for_phase(phase, process, workdir, read_rows, moments)
    process.kill()
    process.communicate()
    at = read_rows_safely(read_rows, workdir)
    folder = workdir / "checkpoints"
    saved = sorted(path.name for path in folder.iterdir()) if folder.exists() else []
    print(f"kill {number}: {phase}, exit {process.returncode}, after step {at}, checkpoints {saved}")
    assert_ends_as(script, workdir, whole, results, read_rows)


def read_rows_safely(read_rows, workdir):
    try:
        return max((row["step"] for row in read_rows(workdir)), default=0)
    except json.JSONDecodeError:
        return "?"


@pytest.mark.parametrize("number", range(TERMINATIONS))
def test_asked_to_leave(script, whole, results, read_rows, tmp_path, number):
    # Before it compiles it has nothing to save, and ends as any program does.
    phase, moments, workdir = PHASES[1 + number % 4], random.Random(number), tmp_path / "run"
    process = start(script, phase, workdir)
    wait_for_phase(phase, process, workdir, read_rows, moments)
    process.send_signal(signal.SIGTERM)
    began = time.monotonic()
    _, err = process.communicate(timeout=180)
    took = time.monotonic() - began
    with Checkpoints(workdir / "checkpoints", base_config().checkpoint, read_only=True) as checkpoints:
        saved = checkpoints.latest_step
    print(f"SIGTERM {number}: {phase}, exit {process.returncode} after {took:.1f} s, saved at step {saved}")
    assert process.returncode == 0 and took < 10
    assert saved == (int(err.split("preempted at step ")[1].split()[0]) if "preempted" in err else STEPS)
    assert_ends_as(script, workdir, whole, results, read_rows)


@pytest.mark.parametrize("number", range(CUTS))
def test_newest_checkpoint_cut_short(script, whole, results, read_rows, tmp_path, number):
    places, workdir = random.Random(number), shutil.copytree(whole, tmp_path / "run")
    newest = max((workdir / "checkpoints").iterdir(), key=lambda path: int(path.name))
    files = sorted(path for path in newest.rglob("*") if path.is_file() and path.stat().st_size)
    file = places.choices(files, [path.stat().st_size for path in files])[0]  # each byte is as likely
    offset = places.randrange(file.stat().st_size)
    file.write_bytes(file.read_bytes()[:offset])
    _, err = script.run("train", *script.tiny, *FLAGS, f"--workdir={workdir}")
    told = f"using checkpoint {STEPS - 20} instead" in err
    print(f"cut {number}: {file.relative_to(newest)} at {offset}: {'noticed' if told else 'harmless'}")
    assert told == (f"Steps {STEPS - 20} to" in err) and told == (workdir / f"damaged_checkpoint_{STEPS}").exists()
    assert "Steps 0 to" not in err and "Traceback" not in err
    for name in ("digest", "test", "best", "steps"):
        assert results(workdir)[name] == results(whole)[name], name
