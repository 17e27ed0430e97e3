"""Runs the scripts as people do: in a process of their own."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TINY = ["--config", str(Path(__file__).parent / "tiny.py")]


class Script:
    """Starts a script of experiments/ with a number of simulated devices, one after the other or side by side."""

    tiny = TINY

    def __init__(self, cache: Path):
        self._cache = cache

    def start(self, name: str, *flags: str, devices: int = 1, **options) -> subprocess.Popen:
        """Starts a script; a train.py uses this session's own caches, not the user's."""
        caches = {"compilation_cache": self._cache / "xla", "dataset.cache": self._cache / "data"}
        given = {flag.partition("=")[0] for flag in flags}
        cache = [f"--config.{field}={path}" for field, path in caches.items() if f"--config.{field}" not in given]
        cache = cache if any("--config" in flag for flag in flags) else []
        return subprocess.Popen(
            [sys.executable, str(ROOT / "experiments" / f"{name}.py"), *flags, *cache],
            env=os.environ | {"JAX_NUM_CPU_DEVICES": str(devices)},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            **options,
        )

    def run(self, name: str, *flags: str, devices: int = 1, code: int = 0) -> tuple[str, str]:
        """Runs a script to its end, requires its exit code and returns (stdout, stderr)."""
        process = self.start(name, *flags, devices=devices)
        out, err = process.communicate(timeout=180)
        assert process.returncode == code, f"exit {process.returncode}\n{out}\n{err}"
        return out, err


def rows(workdir: Path, split: str | None = None) -> list[dict]:
    """The rows of metrics.jsonl."""
    path = workdir / "metrics.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    return [row for row in map(json.loads, lines) if split in (None, row["split"])]


def _wait_for_step(process: subprocess.Popen, workdir: Path, step: int) -> None:
    """Waits until a run has written a row of at least this step."""
    deadline = time.monotonic() + 120
    while process.poll() is None and time.monotonic() < deadline:
        try:
            if any(row["step"] >= step for row in rows(workdir)):
                return
        except json.JSONDecodeError:  # the last line is being written
            pass
        time.sleep(0.002)
    pytest.fail(f"the run ended before step {step}: {process.communicate()}")


@pytest.fixture(scope="session")
def wait_for_step() -> Callable:
    return _wait_for_step


@pytest.fixture(scope="session")
def script(tmp_path_factory) -> Script:
    return Script(tmp_path_factory.mktemp("caches"))


@pytest.fixture(scope="session")
def read_rows() -> Callable:
    return rows


@pytest.fixture(scope="session")
def reference(script, tmp_path_factory) -> Path:
    """The workdir of a tiny run that nothing interrupted."""
    workdir = tmp_path_factory.mktemp("reference") / "run"
    script.run("train", *TINY, f"--workdir={workdir}")
    return workdir


@pytest.fixture(scope="session")
def results() -> Callable[[Path], dict]:
    return lambda workdir: json.loads((workdir / "results.json").read_text())
