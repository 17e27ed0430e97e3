"""The runs of a sweep: their names, their configs, and what their folders say of them."""

import contextlib
import dataclasses
import fcntl
import hashlib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import IO, Any

from etils import epath
from ml_collections import ConfigDict

from cnn_research.config import flatten, get_field, to_steps
from cnn_research.errors import UserError
from cnn_research.sweep.plan import as_text
from cnn_research.training import workdir as files
from cnn_research.training import writers
from cnn_research.validation import validate

LOG = "output.log"  # what a run printed, in its folder
OUTCOME = "outcome.json"  # how it ended, if not well
_LONGEST_NAME = 150


@dataclasses.dataclass(frozen=True)
class Run:
    """One run of a sweep.

    Attributes:
        name: of its folder.
        values: of the fields that it sets.
        config: the whole of it.
        overrides: by which the command line makes this config of the file.
        workdir: its folder.
    """

    name: str
    values: Mapping[str, Any]
    config: ConfigDict
    overrides: tuple[str, ...]
    workdir: epath.Path


@dataclasses.dataclass(frozen=True)
class Status:
    """What a run's folder says.

    Attributes:
        state: waiting, running (started by this sweep), unfinished (interrupted, or training in a process that isn't
            ours), finished, diverged or failed.
        step: the last that was written, None before the first.
        share: of the training that is done, in [0, 1]; None where it isn't known.
        accuracy: of the last evaluation on its config's dataset.eval_split.
        message: why it diverged or failed.
        results: of a finished run, results.json.
    """

    state: str
    step: int | None = None
    share: float | None = None
    accuracy: float | None = None
    message: str = ""
    results: Mapping[str, Any] | None = None


def make_runs(
    base: Mapping[str, str],
    planned: Sequence[Mapping[str, str]],
    read: Callable[[Mapping[str, str]], ConfigDict],
    workdir: epath.Path,
) -> list[Run]:
    """Makes the runs of a plan; those that come to the same config are one. Nothing is written.

    Args:
        base: fields that all runs set, as texts; a run's own come before them.
        planned: fields that each run sets besides.
        read: makes the config of fields.
        workdir: of the sweep.

    Raises:
        UserError: one line for each mistake in a config, and for each folder with another experiment's run.
    """
    problems: dict[str, list[str]] = {}  # a mistake that all runs share is told once
    runs: dict[str, Run] = {}
    for texts in planned:
        try:
            config = read({**base, **texts})
            values = {field: get_field(config, field) for field in texts}
            run = Run(
                name=run_name(values),
                values=values,
                config=config,
                overrides=tuple(f"--config.{field}={text}" for field, text in {**base, **texts}.items()),
                workdir=workdir / run_name(values),
            )
            validate(config)
            files.check_same_run(run.workdir, config)
            runs.setdefault(run.name, run)
        except UserError as error:
            name = ",".join(f"{field}={text}" for field, text in texts.items())
            for line in str(error).splitlines():
                problems.setdefault(line, []).append(name)
    raise_problems(problems)
    return list(runs.values())


def raise_problems(problems: Mapping[str, Sequence[str]]) -> None:
    """Raises a UserError, if there are any, with a line for each problem and the runs that have it."""
    if problems:
        more = {line: f" and {len(names) - 1} more" if len(names) > 1 else "" for line, names in problems.items()}
        raise UserError("\n".join(f"run {names[0]}{more[line]}: {line}" for line, names in problems.items()))


def base_texts(file: ConfigDict, given: ConfigDict) -> dict[str, str]:
    """Returns as texts the fields in which a command line's config differs from its file's."""
    file, given = flatten(file.to_dict()), flatten(given.to_dict())
    return {field: as_text(given[field]) for field in given if given[field] != file[field]}


def run_name(values: Mapping[str, Any]) -> str:
    """Returns "optimizer.learning_rate=0.1,seed=0", whatever the order in which the fields were given.

    Names need no quotes in a shell. What is too long or has other characters is marked by a hash of the values.
    """
    fields = sorted(values, key=lambda field: (field == "seed", field))
    full = ",".join(f"{field}={_value_name(values[field])}" for field in fields)
    name = re.sub(r"[^\w.=,+%-]+", "-", full, flags=re.ASCII)
    if name == full and len(name) <= _LONGEST_NAME:
        return name or "base"
    digest = hashlib.sha256(json.dumps({field: values[field] for field in fields}).encode()).hexdigest()[:8]
    return f"{name[: _LONGEST_NAME - 9].strip('-')}-{digest}"


def _value_name(value: Any) -> str:
    if isinstance(value, tuple):
        return "+".join(map(_value_name, value))
    # A plus or comma of the value's own must not look like ours.
    return re.sub(r"[,+=]", "~", value) if isinstance(value, str) else str(value)


def status(run: Run) -> Status:
    """Reads what a run's folder says."""
    before = _read_json(run.workdir / "config.json")
    # A sweep whose duration has grown goes on where its runs ended.
    same_length = before and before.get("duration") == run.config.duration
    progress = _progress(run)
    results = _read_json(run.workdir / "results.json")
    if results and same_length:
        accuracy = results["test"]["accuracy"] if progress.accuracy is None else progress.accuracy
        return Status("finished", results["steps"], 1.0, accuracy, results=results)
    outcome = _read_json(run.workdir / OUTCOME)
    if outcome:
        return dataclasses.replace(progress, state=outcome["state"], message=outcome["message"])
    begun = (run.workdir / "config.json").exists()
    return dataclasses.replace(progress, state="unfinished" if begun else "waiting")


def under_way(run: Run) -> Status:
    """Reads how far a run is that this process has started."""
    return dataclasses.replace(_progress(run), state="running")


def _progress(run: Run) -> Status:
    """The steps and the accuracy that metrics.jsonl tells; the state is the caller's to know."""
    rows = []
    with contextlib.suppress(OSError):  # it may be replaced at this moment
        rows = writers.read_metrics(run.workdir / "metrics.jsonl")
    if not rows:
        return Status("")
    last, batch_size = rows[-1], run.config.batch_size
    share = None
    if last["epoch"]:
        total = to_steps(
            run.config.duration, batch_size=batch_size, num_examples=last["step"] * batch_size / last["epoch"]
        )
        share = min(1.0, last["step"] / total)
    accuracies = [row["accuracy"] for row in rows if row["split"] == run.config.dataset.eval_split]
    return Status("", last["step"], share, accuracies[-1] if accuracies else None)


def _read_json(path: epath.Path) -> Any:
    """Reads a JSON file; None where there is none, or none that is whole."""
    try:
        return files.read_json(path)
    except (OSError, ValueError):
        return None


def in_use(run: Run) -> bool:
    """Whether a process of this machine is training in a run's folder.

    To see it, the lock that `training.workdir.claim` takes is taken for a moment: so never ask while the run may be
    starting, which would be turned away.
    """
    lock = run.workdir / ".lock"
    if not lock.exists():
        return False
    try:
        with lock.open() as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    return False


def claim(workdir: epath.Path) -> IO:
    """Creates a sweep's folder if need be and keeps other sweeps out until the file that is returned is closed.

    Raises:
        UserError: it can't be written, or another sweep is running in it.
    """
    return files.lock(workdir, ".sweep.lock", "another sweep is running in it")
