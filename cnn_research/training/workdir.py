"""The files of a run beside its checkpoints: config.json, environment.json, results.json."""

import contextlib
import errno
import fcntl
import importlib.metadata
import json
import os
import platform
import subprocess
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import IO, Any

import jax
from etils import epath
from ml_collections import ConfigDict

import cnn_research
from cnn_research import config as configs
from cnn_research.errors import UserError
from cnn_research.training import parallel

PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "tensorflow-datasets", "ml_collections", "numpy")

# What a system says of storage that takes no more. Programs in other languages pass on the words alone.
_FULL = [os.strerror(number) for number in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)]


def locate(workdir: epath.PathLike) -> epath.Path:
    """Returns the path of a workdir: a local folder or gs://.

    Raises:
        UserError: the package that reads this kind of storage isn't installed.
    """
    path = epath.Path(workdir).expanduser()
    try:
        path.exists()
    except ImportError as error:
        raise UserError(f"workdir {path}: {error}") from None
    return path


def resolved(workdir: epath.PathLike) -> epath.Path:
    """The path of a workdir, whose last part is the name of the run."""
    path = locate(workdir)
    return path if is_remote(path) else path.resolve()


def is_remote(path: epath.Path) -> bool:
    """Whether a path is in an object store. There files appear whole when they are closed, and can't be appended to."""
    return "://" in str(path)


@contextlib.contextmanager
def full_disk_told(workdir: epath.Path) -> Iterator[None]:
    """Within it, a disk that is full (or over quota, or suddenly read-only) is a mistake that the user can mend.

    Raises:
        UserError: something in the workdir could not be written. Files are then as they were before, or half-written
            where the next start cleans up.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        reasons = [words for words in _FULL if words in str(error)]
        if not reasons:
            raise
        raise UserError(
            f"workdir {workdir} cannot be written any more ({reasons[0]}); its finished checkpoints are whole: "
            "make room, and start again to go on from the last one"
        ) from error


def check_same_run(workdir: epath.Path, config: ConfigDict) -> None:
    """Makes sure that a workdir is new or holds a run of this experiment.

    Raises:
        UserError: it holds another experiment's run; the message names the fields that differ.
    """
    if not (workdir / "config.json").exists():
        return
    differences = configs.differences(load_config(workdir), config)
    if differences:
        shown = "; ".join(differences[:3]) + (f"; and {len(differences) - 3} more" if len(differences) > 3 else "")
        raise UserError(
            f"workdir {workdir} holds the run of another experiment ({shown}): choose another --workdir, or delete it"
        )


def claim(workdir: epath.Path) -> AbstractContextManager:
    """Creates a workdir if need be, makes sure that it can be written, and keeps other trainings out.

    Returns:
        The lock, for a with statement. The system lets go of it when the process ends, however it ends.

    Raises:
        UserError: it can't be written, or another process is training in it.
    """
    if not parallel.is_main():
        return contextlib.nullcontext()
    return lock(workdir, ".lock", "another process is training in it; choose another")


def lock(workdir: epath.Path, name: str, holder: str) -> IO:
    """Creates a workdir if need be, makes sure that it can be written, and locks a file there until that is closed.

    Args:
        workdir: the folder.
        name: of the file.
        holder: who else may have locked it, for the message.

    Raises:
        UserError: it can't be written, or is locked.
    """
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        file = (workdir / name).open("w")
        if not is_remote(workdir):  # an object store has no locks
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return file
    except BlockingIOError:
        raise UserError(f"workdir {workdir} is in use: {holder}") from None
    except OSError as error:
        raise UserError(f"workdir {workdir} cannot be written ({error.strerror or error}): choose another") from None


def describe(workdir: epath.Path, config: ConfigDict) -> None:
    """Writes config.json and environment.json: from now on the workdir is this experiment's.

    Results of a shorter run go: a run has results when it is whole.
    """
    if parallel.is_main():
        write_text(workdir / "config.json", configs.to_json(config))
        write_json(workdir / "environment.json", environment())
        (workdir / "results.json").unlink(missing_ok=True)


def load_config(workdir: epath.Path) -> ConfigDict:
    """Reads the config of a run.

    Raises:
        UserError: the folder holds no run, or the run of a version whose config is not understood.
    """
    try:
        return configs.from_json((workdir / "config.json").read_text())
    except OSError:
        raise UserError(f"workdir {workdir} holds no run: there is no config.json in it") from None
    except UserError as error:
        raise UserError(f"{workdir}/{error}") from None


def environment() -> dict[str, Any]:
    """Returns what a run depends on besides its config: versions, devices, command line, code."""
    devices = jax.devices()
    return {
        "cnn_research": cnn_research.__version__,
        "git_commit": _git_commit(),
        "command": [sys.executable, *sys.orig_argv[1:]],
        "python": platform.python_version(),
        "system": platform.platform(),
        "versions": versions(),
        "platform": devices[0].platform,
        "device_kind": devices[0].device_kind,
        "devices": len(devices),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "processes": jax.process_count(),
    }


def versions() -> dict[str, str]:
    """Returns the versions of the packages that results depend on."""
    return {name: importlib.metadata.version(name) for name in PACKAGES}


def _processor() -> str:
    """The model of the CPU, whose device_kind is "cpu" whatever it is; "" where the system doesn't say."""
    with contextlib.suppress(OSError):  # Linux, where platform.processor() is empty as a rule
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor()


def _git_commit() -> str | None:
    """The checkout's commit, marked when files differ from it; None for an installed package."""
    package = Path(cnn_research.__file__).resolve().parent

    def git(*arguments: str) -> str:
        # Without locks: a run that is killed here must not leave one behind in the user's checkout.
        command = ["git", "--no-optional-locks", "-C", package, *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout

    try:
        if Path(git("rev-parse", "--show-toplevel").strip()).resolve() != package.parent:
            return None  # installed somewhere below another project's checkout
        return git("rev-parse", "HEAD").strip() + (" (changed)" if git("status", "--porcelain", "-uno") else "")
    except (OSError, subprocess.CalledProcessError):
        return None


def write_json(path: epath.Path, value: Any) -> None:
    """Writes a JSON file so that a kill leaves the old one or the new one, never half of one."""
    write_text(path, json.dumps(value, indent=2) + "\n")


def write_text(path: epath.Path, text: str) -> None:
    """Likewise for text."""
    if is_remote(path):
        path.write_text(text)
        return
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(text)
    temporary.replace(path)


def read_json(path: epath.Path) -> Any:
    """Reads a JSON file; None where there is none."""
    return json.loads(path.read_text()) if path.exists() else None
