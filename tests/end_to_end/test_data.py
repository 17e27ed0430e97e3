"""Runs on a folder of images: both feeds, killed and resumed, with broken images among them."""

import json
import os
import shutil
import signal
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """120 images of several sizes in two classes: 96 for training, 24 for testing."""
    root, rng = tmp_path_factory.mktemp("folder"), np.random.default_rng(0)
    for number in range(120):
        path = root / ("dark", "light")[number % 2] / f"{number:03}.png"
        path.parent.mkdir(exist_ok=True)
        low = 120 * (number % 2)
        pixels = rng.integers(low, low + 130, (*rng.integers(10, 30, 2), 3), dtype=np.uint8)
        Image.fromarray(pixels).save(path)
    return root


@pytest.fixture(scope="module")
def run(script, results, tmp_path_factory):
    """Trains on a folder; returns the workdir, or what a mistake says."""

    def train(folder, *flags, workdir=None, code=0):
        workdir = workdir or tmp_path_factory.mktemp("run") / "run"
        _, err = script.run("train", *script.tiny, *flags_for(folder), f"--workdir={workdir}", *flags, code=code)
        return err if code else workdir

    return train


def flags_for(folder):
    return [
        f"--config.dataset.name=folder:{folder}", "--config.dataset.image_size=12", "--config.duration=40st",
        "--config.eval_every=20st", "--config.checkpoint.every=10st", "--config.dataset.feed=streaming",
    ]  # fmt: skip


@pytest.fixture(scope="module")
def whole(run, folder):
    """A streaming run that nothing interrupted."""
    return run(folder, "--config.dataset.workers=2")


def assert_same(found, expected):
    for name in ("digest", "test", "best", "skipped"):
        assert found[name] == expected[name], name


def test_the_feed_does_not_change_the_run(run, results, whole, folder):
    assert results(whole)["test"]["num_examples"] == 24 and results(whole)["skipped"] == {"images": 0, "paths": []}
    assert_same(results(run(folder, "--config.dataset.feed=resident")), results(whole))


def test_killed_and_resumed_with_other_workers(run, script, results, read_rows, whole, folder, tmp_path):
    process = script.start("train", *script.tiny, *flags_for(folder), f"--workdir={tmp_path / 'run'}")
    deadline = time.monotonic() + 240
    while not read_rows(tmp_path / "run") and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    process.communicate()
    run(folder, "--config.dataset.workers=0", workdir=tmp_path / "run")
    assert_same(results(tmp_path / "run"), results(whole))


def test_a_signal_to_all_processes_of_a_run_lets_it_save(script, read_rows, folder, tmp_path):
    """As Ctrl-C in a terminal: the workers get it too."""
    flags = [*flags_for(folder), "--config.dataset.workers=1", "--config.dataset.worker_kind=processes"]
    flags += ["--config.duration=100000st", f"--workdir={tmp_path / 'run'}"]
    process = script.start("train", *script.tiny, *flags, start_new_session=True)
    deadline = time.monotonic() + 240
    while not read_rows(tmp_path / "run") and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGINT)
    _, err = process.communicate(timeout=180)
    assert process.returncode == 0 and "preempted at step" in err and "Traceback" not in err, err
    with pytest.raises(ProcessLookupError):  # nobody is left of the group, at latest after a moment
        while time.monotonic() < deadline + 60:
            os.killpg(process.pid, 0)
            time.sleep(0.05)


def test_broken_images(run, results, folder, tmp_path):
    folder = shutil.copytree(folder, tmp_path / "folder")
    for path in ("dark/004.png", "light/011.png", "light/055.png", "dark/086.png"):
        (folder / path).write_bytes((folder / path).read_bytes()[:60])
    broken = sorted(str(path) for path in folder.rglob("*.png") if path.stat().st_size == 60)
    (line,) = [line for line in run(folder, code=2).splitlines() if line.startswith("error: ")]
    assert any(path in line for path in broken)
    skip = "--config.dataset.on_error=skip"
    workdirs = [run(folder, skip, f"--config.dataset.feed={f}") for f in ("streaming", "resident")]
    streaming, resident = map(results, workdirs)
    assert_same(streaming, resident)
    assert streaming["skipped"] == {"images": 4, "paths": broken}
    assert 20 <= streaming["test"]["num_examples"] <= 24
    # One step more sees a third of the images; those that were skipped before it are not forgotten.
    run(folder, skip, "--config.duration=41st", workdir=workdirs[0])
    assert results(workdirs[0])["skipped"] == streaming["skipped"]


def test_eight_devices_evaluate_each_image_once(script, results, whole):
    values = json.loads(script.run("evaluate", f"--workdir={whole}", devices=8)[0])
    assert values["num_examples"] == 24 and values["accuracy"] == results(whole)["test"]["accuracy"]
