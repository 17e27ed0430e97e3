"""Runs the scripts as people do: in a process of their own."""

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TIMEOUT = 300  # seconds for a script; a machine may have much else to do
TINY = ["--config", str(Path(__file__).parent / "tiny.py")]


class Script:
    """Starts a script of experiments/ with a number of simulated devices, one after the other or side by side."""

    tiny = TINY

    def __init__(self, folder: Path):
        self._cache = folder
        self._warm: subprocess.Popen | None = None

    def start(self, name: str, *flags: str, devices: int = 1, **options) -> subprocess.Popen:
        """Starts a script in a Python of its own; a train.py uses this session's own caches, not the user's."""
        return subprocess.Popen(
            [sys.executable, *self._command(name, flags)],
            env=self._environment(devices),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            **options,
        )

    def _command(self, name: str, flags: tuple[str, ...]) -> list[str]:
        caches = {"compilation_cache": self._cache / "xla", "dataset.cache": self._cache / "data"}
        given = {flag.partition("=")[0] for flag in flags}
        cache = [f"--config.{field}={path}" for field, path in caches.items() if f"--config.{field}" not in given]
        cache = cache if any("--config" in flag for flag in flags) else []
        return [str(ROOT / "experiments" / f"{name}.py"), *flags, *cache]

    def _environment(self, devices: int) -> dict[str, str]:
        return os.environ | {"JAX_NUM_CPU_DEVICES": str(devices)}

    def run(self, name: str, *flags: str, devices: int = 1, code: int = 0) -> tuple[str, str]:
        """Runs a script to its end, requires its exit code and returns (stdout, stderr).

        It is a fork of a process that has imported already what it will (warm.py).
        """
        if self._warm is None:
            command = [sys.executable, str(Path(__file__).with_name("warm.py"))]
            # A session of its own, so that whatever hangs can be ended with all that it has started.
            self._warm = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1, start_new_session=True
            )
        out, err = self._cache / "out", self._cache / "err"
        order = {"argv": self._command(name, flags), "environment": self._environment(devices)}
        self._warm.stdin.write(json.dumps(order | {"out": str(out), "err": str(err)}) + "\n")
        ready, _, _ = select.select([self._warm.stdout], [], [], TIMEOUT)
        answer = self._warm.stdout.readline() if ready else ""
        if not answer:
            self.close()
        told = f"{out.read_text()}\n{err.read_text()}" if out.exists() and err.exists() else ""
        assert answer, f"not done after {TIMEOUT} s, or the process that forks it ended\n{told}"
        assert int(answer) == code, f"exit {answer}{told}"
        return out.read_text(), err.read_text()

    def close(self) -> None:
        """Ends what `run` uses."""
        if self._warm is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._warm.pid, signal.SIGKILL)
            self._warm.communicate()
            self._warm = None


def rows(workdir: Path, split: str | None = None) -> list[dict]:
    """The rows of metrics.jsonl."""
    path = workdir / "metrics.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    return [row for row in map(json.loads, lines) if split in (None, row["split"])]


def _wait_for_step(process: subprocess.Popen, workdir: Path, step: int) -> None:
    """Waits until a run has written a row of at least this step."""
    deadline = time.monotonic() + TIMEOUT
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
def script(tmp_path_factory) -> Iterator[Script]:
    script = Script(tmp_path_factory.mktemp("caches"))
    yield script
    script.close()


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
