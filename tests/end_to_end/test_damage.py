"""Storage that fails: damaged checkpoints, full disks; and checkpoints on other machines."""

import contextlib
import io
import json
import os
import resource
import shutil
import subprocess
import sys

import pytest

from cnn_research.config import base_config
from cnn_research.training.checkpoints import Checkpoints


@pytest.fixture
def interrupted(script, reference, tmp_path):
    """The workdir of a run of which two checkpoints are left, of step 100 and 120, and its results are not."""
    workdir = shutil.copytree(reference, tmp_path / "run")
    (workdir / "results.json").unlink()
    return workdir


def damage(step):
    (arrays,) = (step / "network" / "d").iterdir()
    content = bytearray(arrays.read_bytes())
    content[len(content) // 2] ^= 1
    arrays.write_bytes(content)


def test_a_damaged_checkpoint_costs_one_interval(script, interrupted, reference, results):
    damage(interrupted / "checkpoints" / "120")
    _, err = script.run("train", *script.tiny, f"--workdir={interrupted}")
    assert "using checkpoint 100 instead" in err and "Steps 100 to 120" in err and "Traceback" not in err
    assert results(interrupted)["digest"] == results(reference)["digest"]
    # And what was the best when 100 was saved.
    kept = {path.name for path in (interrupted / "checkpoints").iterdir()}
    assert {"100", "120"} <= kept and len(kept) <= 3


def test_nothing_is_begun_anew_when_all_are_damaged(script, interrupted):
    for step in (interrupted / "checkpoints").iterdir():
        damage(step)
    before = sorted(interrupted.rglob("*"))
    _, err = script.run("train", *script.tiny, f"--workdir={interrupted}", code=2)
    (error,) = [line for line in err.splitlines() if line.startswith("error: ")]
    assert str(interrupted) in error and "none of the checkpoints" in error and "Traceback" not in err
    assert sorted(interrupted.rglob("*")) == before


@pytest.mark.skipif(not hasattr(resource, "prlimit"), reason="only Linux limits the files of another process")
def test_a_full_disk_stops_the_run_and_leaves_the_last_checkpoint(script, interrupted, results):
    """The system forbids files of more than some kilobytes: what a run writes fits, but for a checkpoint's arrays."""
    flags = [*script.tiny, f"--workdir={interrupted}", "--config.duration=140st"]
    process = script.start("train", *flags)
    resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (5000, 5000))
    _, err = process.communicate(timeout=300)
    assert process.returncode == 2, err
    (error,) = [line for line in err.splitlines() if line.startswith("error: ")]
    assert f"{interrupted} cannot be written any more (File too large)" in error and "Traceback" not in err
    with Checkpoints(interrupted / "checkpoints", base_config().checkpoint, read_only=True) as checkpoints:
        assert checkpoints.restore_latest_network()[0] == 120
    assert not (interrupted / "results.json").exists()


@pytest.mark.full
@pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount a small disk")
@pytest.mark.parametrize("kilobytes", [4, 12, 24, 60, 100, 160, 250])
def test_a_disk_that_is_really_full(script, reference, results, tmp_path, kilobytes):
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={kilobytes}k", "tmpfs", str(disk)]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("mounting isn't permitted here")
    try:
        flags = [*script.tiny, f"--workdir={disk}/run"]
        _, err = script.run("train", *flags, code=2)
        (error,) = [line for line in err.splitlines() if line.startswith("error: ")]
        assert "No space left on device" in error and "Traceback" not in err
        subprocess.run(["mount", "-o", "remount,size=10m", str(disk)], check=True)
        _, err = script.run("train", *flags)
        print(kilobytes, [line for line in err.splitlines() if "Steps" in line])
        assert results(disk / "run")["digest"] == results(reference)["digest"]
    finally:
        subprocess.run(["umount", str(disk)], check=True)


@pytest.mark.full
@pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount")
def test_a_disk_that_is_read_only(script, reference, tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "tmpfs", str(disk)], capture_output=True).returncode:
        pytest.skip("mounting isn't permitted here")
    try:
        shutil.copytree(reference, disk / "run")
        subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
        for name in ("run", "new"):
            _, err = script.run("train", *script.tiny, f"--workdir={disk}/{name}", code=2)
            (error,) = [line for line in err.splitlines() if line.startswith("error: ")]
            assert "cannot be written (Read-only file system)" in error and "Traceback" not in err
        values = json.loads(script.run("evaluate", f"--workdir={disk}/run", "--split=test[:50%]")[0])  # that may
        assert values["num_examples"] == 180
    finally:
        subprocess.run(["umount", str(disk)], check=True)


# What a resumed run does: the state of a checkpoint goes to all devices. One line tells a single array to the bit.
RESTORE = """
import hashlib, jax
from etils import epath
from cnn_research.training import parallel, workdir
from cnn_research.training.checkpoints import Checkpoints
from cnn_research.training.feeds import open_feeds
from cnn_research.training.setup import Experiment
folder = epath.Path(folder)
config = workdir.load_config(folder)
config.dataset.cache = ""
split = config.dataset.train_split
state = Experiment(config, open_feeds(config, (), split)[split]).initial_state()
with Checkpoints(folder / "checkpoints", config.checkpoint, read_only=True) as checkpoints:
    state, _ = checkpoints.restore_latest(state)
state = parallel.replicate(state)
assert all(len(leaf.sharding.device_set) == devices for leaf in jax.tree.leaves(state))
for path, leaf in jax.tree_util.tree_leaves_with_path(parallel.to_host(state)):
    print(jax.tree_util.keystr(path), leaf.dtype, leaf.shape, hashlib.sha256(leaf.tobytes()).hexdigest())
"""


@pytest.mark.parametrize(
    "devices", [2, pytest.param(1, marks=pytest.mark.full), pytest.param(4, marks=pytest.mark.full)]
)
def test_a_state_of_eight_devices_is_the_same_on_fewer(of_eight, devices):
    workdir, saved = of_eight
    program = f"folder, devices = {str(workdir)!r}, {devices}\n{RESTORE}"
    environment = os.environ | {"JAX_NUM_CPU_DEVICES": str(devices)}
    done = subprocess.run([sys.executable, "-c", program], env=environment, check=True, capture_output=True, text=True)
    assert done.stdout == saved and saved.count("\n") > 20


@pytest.fixture(scope="module")
def of_eight(script, tmp_path_factory):
    """The workdir of a run on eight devices, and what is in its checkpoint."""
    workdir = tmp_path_factory.mktemp("eight") / "run"
    script.run("train", *script.tiny, f"--workdir={workdir}", "--config.duration=20st", devices=8)
    told = io.StringIO()
    with contextlib.redirect_stdout(told):  # these tests have eight devices too
        exec(RESTORE, {"folder": workdir, "devices": 8})
    return workdir, told.getvalue()
