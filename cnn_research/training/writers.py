"""What a run tells: metrics.jsonl, TensorBoard, a progress bar, a profile. The only file that knows TensorBoard."""

import json
import os
import re
import sys
import time
from typing import Any

import jax
from absl import logging
from etils import epath
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.proto.summary_pb2 import Summary
from tensorboardX.record_writer import directory_check
from tqdm import tqdm

from cnn_research.errors import UserError
from cnn_research.training import parallel
from cnn_research.training import workdir as files

# Seconds for which rows may wait before others can see them: locally those of TensorBoard alone, while an object store
# takes whole files each time.
_LOCAL_INTERVAL, _REMOTE_INTERVAL = 10, 60


class _Appended:
    """Lines at the end of a file; on an object store, which can't append, the file is written anew with all lines."""

    def __init__(self, path: epath.Path, lines: list[str]):
        """Replaces what is there by `lines`."""
        self._path, self._remote = path, files.is_remote(path)
        self._lines = lines if self._remote else []
        if lines or path.exists():
            files.write_text(path, "".join(lines))
        self._file = None if self._remote else path.open("a")
        self._flushed = time.monotonic()

    def write(self, line: str) -> None:
        """Others can read the line at once; on an object store a minute later, or after `flush`."""
        if self._remote:
            self._lines.append(line)
            if time.monotonic() - self._flushed > _REMOTE_INTERVAL:
                self.flush()
        else:
            self._file.write(line)
            self._file.flush()

    def flush(self) -> None:
        if self._remote:
            files.write_text(self._path, "".join(self._lines))
            self._flushed = time.monotonic()

    def close(self) -> None:
        self.flush()
        if self._file:
            self._file.close()


class _Events:
    """TensorBoard's file of scalars.

    Not tensorboardX's SummaryWriter: its thread dies when the disk is full, and who hands it rows then waits for ever.
    """

    def __init__(self, workdir: epath.Path, purge_step: int):
        """Starts a file; TensorBoard hides what others in the folder hold from `purge_step` on."""
        directory_check(str(workdir))
        try:
            self._writer = EventsWriter(os.path.join(str(workdir), "events"))
        except ImportError as error:  # of the package for this kind of storage
            raise UserError(f"workdir {workdir}: {error}") from None
        self._interval = _REMOTE_INTERVAL if files.is_remote(workdir) else _LOCAL_INTERVAL
        self._writer.write_event(Event(step=purge_step, session_log=SessionLog(status=SessionLog.START)))
        self._flushed = 0.0

    def write(self, step: int, values: dict[str, float]) -> None:
        summary = Summary(value=[Summary.Value(tag=tag, simple_value=value) for tag, value in values.items()])
        self._writer.write_event(Event(step=step, wall_time=time.time(), summary=summary))
        if time.monotonic() - self._flushed > self._interval:
            self.flush()

    def flush(self) -> None:
        self._writer.flush()
        self._flushed = time.monotonic()

    def close(self) -> None:
        self._writer.close()


class Writer:
    """Writes rows of metrics to metrics.jsonl and TensorBoard. Use as a context manager."""

    def __init__(self, workdir: epath.Path, first_step: int, steps_per_epoch: float):
        """Opens the files, in the main process alone; rows after `first_step`, of a run that was killed, go.

        Args:
            workdir: of the run.
            first_step: the step from which training goes on.
            steps_per_epoch: to name the epoch beside the step.
        """
        self._steps_per_epoch = steps_per_epoch
        self._rows = self._events = None
        self._written = set()
        if not parallel.is_main():
            return
        path = workdir / "metrics.jsonl"
        rows = read_metrics(path) if path.exists() else []
        kept = [row for row in rows if row["step"] <= first_step]
        self._written = {(row["step"], row["split"]) for row in kept}
        self._rows = _Appended(path, [json.dumps(row) + "\n" for row in kept])
        # A run that was killed before its first checkpoint has left rows too: so for first_step 0 as for any other.
        self._events = _Events(workdir, purge_step=first_step + 1)

    def __enter__(self) -> "Writer":
        return self

    def __exit__(self, *_) -> None:
        if self._rows:
            self._rows.close()
            self._events.close()

    def write(self, step: int, split: str, values: dict[str, float]) -> None:
        """Writes one row: {"step", "epoch", "split", values}, at once readable by others (on an object store, later).

        A row that is there is not written again: a finished run may be evaluated once more at its last step.

        Raises:
            OSError: the disk is full.
        """
        if not self._rows or (step, split) in self._written:
            return
        row = {"step": step, "epoch": round(step / self._steps_per_epoch, 4), "split": split, **values}
        self._rows.write(json.dumps(row) + "\n")
        tag = re.sub(r"[^\w:%]+", "-", split).strip("-")  # TensorBoard's tags allow no brackets
        self._events.write(step, {f"{tag}/{name}": value for name, value in values.items()})

    def flush(self) -> None:
        """Makes sure that the rows so far outlast a kill. To be called before a checkpoint is saved: a run that goes on
        from it writes only those after it."""
        if self._rows:
            self._rows.flush()
            self._events.flush()


def read_metrics(path: epath.Path) -> list[dict[str, Any]]:
    """Reads metrics.jsonl; a last line that a kill cut short is left out."""
    rows = []
    for line in path.read_text().splitlines():
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return rows


def duration(seconds: float) -> str:
    """Such as "29 s", "4 min 05 s", "3 h 20 min"."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02} min"


class Progress:
    """The progress bar (on a terminal) and the clock of a run. Use as a context manager."""

    def __init__(self, first_step: int, total_steps: int, batch_size: int, before: dict[str, Any]):
        """Starts the clock.

        Args:
            first_step: the step from which training goes on.
            total_steps: of the whole run.
            batch_size: global.
            before: the `totals` of the run until `first_step`.
        """
        self._total_steps = total_steps
        self._batch_size = batch_size
        self._before = before
        self._start = self._resumed = time.perf_counter()
        self._step = first_step
        self._timed_steps, self._timed_seconds = 0, 0.0
        self._compiling = True
        self._bar = tqdm(
            total=total_steps,
            initial=first_step,
            disable=not (sys.stderr.isatty() and parallel.is_main()),
            dynamic_ncols=True,
            bar_format="{percentage:3.0f}% |{bar}| step {n}/{total}{postfix}",
        )

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *_) -> None:
        self._bar.close()

    def trained(self, step: int, loss: float) -> dict[str, float]:
        """Counts the steps since the last call; their results must be there.

        Returns:
            {"examples_per_second": of these steps, "seconds": `totals`' own}.
        """
        now = time.perf_counter()
        steps, seconds = step - self._step, now - self._resumed
        if not self._compiling:
            self._timed_steps += steps
            self._timed_seconds += seconds
        self._step, self._compiling = step, False
        rate = round(steps * self._batch_size / seconds, 1)
        self._bar.set_postfix_str(f"{rate:,.0f} images/s, loss {loss:.4f}{self._left(step)}", refresh=False)
        self._bar.update(step - self._bar.n)
        return {"examples_per_second": rate, "seconds": self.totals()["seconds"]}

    def resume(self) -> None:
        """Leaves what was done since `trained`, evaluating and saving, out of the images a second."""
        self._resumed = time.perf_counter()

    def totals(self) -> dict[str, Any]:
        """Returns what the run took so far.

        {"seconds": wall-clock time of the loop over all restarts, compiling, evaluating and saving included;
        "device_seconds": this times the number of devices, which may change at a restart;
        "examples_per_second": of the training steps alone since the last start, without the first interval, which
        compiles; None before a second interval has passed}.
        """
        seconds = time.perf_counter() - self._start
        rate = self._before["examples_per_second"]
        if self._timed_steps:
            rate = round(self._timed_steps * self._batch_size / self._timed_seconds, 1)
        return {
            "seconds": round(self._before["seconds"] + seconds, 3),
            "device_seconds": round(self._before["device_seconds"] + seconds * parallel.device_count(), 3),
            "examples_per_second": rate,
        }

    def _left(self, step: int) -> str:
        """The time left, where it is known and there is some."""
        rate, steps = self.totals()["examples_per_second"], self._total_steps - step
        return f", {steps * self._batch_size / rate:.0f} s left" if rate and steps else ""

    def evaluated(self, step: int, split: str, values: dict[str, float]) -> None:
        """Logs how an evaluation went, with the time left."""
        width = len(str(self._total_steps))
        logging.info(
            f"step {step:{width}}/{self._total_steps}  {split}: "
            f"accuracy {values['accuracy']:.4f}, loss {values['loss']:.4f}{self._left(step)}"
        )


class Profiler:
    """Records what the devices and the host do during some steps, for TensorBoard. Use as a context manager."""

    def __init__(self, workdir: epath.Path, span: tuple[int, int] | None):
        """Records nothing yet.

        Args:
            workdir: of the run; the profile goes to its folder `profile`.
            span: the steps before which to begin and to end; None for none.
        """
        self._folder = str(workdir / "profile")
        self._span = span
        self._recording = False

    def __enter__(self) -> "Profiler":
        return self

    def __exit__(self, *_) -> None:
        if self._recording:
            self._stop()

    def before(self, step: int, results: Any) -> None:
        """Begins or ends the recording, if it is time.

        Args:
            step: about to be made, counted from 0.
            results: of the steps before, which are waited for so that their work is on the right side.
        """
        if self._span is None:
            return
        first, end = self._span
        if self._recording and step >= end:
            jax.block_until_ready(results)
            self._stop()
        elif not self._recording and first <= step < end:
            jax.block_until_ready(results)
            jax.profiler.start_trace(self._folder)
            self._recording = True

    def _stop(self) -> None:
        jax.profiler.stop_trace()
        self._recording = False
        self._span = None
        logging.info("profile in %s: tensorboard (with the plugin xprof) shows it", self._folder)
