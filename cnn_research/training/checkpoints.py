"""Checkpoints: the only file that knows orbax.

A checkpoint holds numpy trees, so it restores on any number of devices and hosts and on any platform:

    network   {"params", "batch_stats"}: all that evaluation and inference need; with ema_decay the moving averages
    training  step, optimizer state and so on: what continuing needs besides (`TrainState.training`)
    about     JSON: the config, facts of the dataset (classes, mean, std, size), version, time spent, the best so far,
              and the digests of all three parts

The newest ones are kept, each with the one that was the best at its time. Writing happens in the background; a kill at
any instant leaves the finished checkpoints whole, and a half-written one is never seen again. Whatever is read is
compared with its digest: a damaged checkpoint is told from a whole one, and the one before it is used.
"""

import contextlib
import hashlib
import json
import logging
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import jax
import numpy as np
import orbax.checkpoint as ocp
from absl import logging as absl_logging
from etils import epath
from flax.serialization import to_state_dict
from ml_collections import ConfigDict

from cnn_research.errors import UserError
from cnn_research.training import parallel
from cnn_research.training.state import TrainState, digest

T = TypeVar("T")


def _not_told_twice(record: logging.LogRecord) -> bool:
    """Drops log records of orbax with tracebacks: it raises those exceptions as well."""
    return not (record.exc_info and "orbax" in Path(record.pathname).parts)


absl_logging.get_absl_logger().addFilter(_not_told_twice)


def _not_of_siblings(record: logging.LogRecord) -> bool:
    """Drops what asyncio says of arrays whose failure nobody waited for.

    orbax reads and writes all arrays at once in an event loop of its own, raises the first failure and stops the loop.
    Those that failed in the same moment are told, with tracebacks, when they are garbage-collected: at any later time,
    in any thread. They are known by orbax's code, or by TensorStore's words, which name its kind of database.
    """
    error = record.exc_info and record.exc_info[1]
    if not error or "exception was never retrieved" not in record.getMessage().partition("\n")[0]:
        return True
    files = [frame.f_code.co_filename for frame, _ in traceback.walk_tb(error.__traceback__)]
    return "OCDBT database" not in str(error) and not any("orbax" in Path(file).parts for file in files)


logging.getLogger("asyncio").addFilter(_not_of_siblings)


def _ignore_stragglers(unraisable: Any, others: Callable = sys.unraisablehook) -> None:
    """Where one array can't be read or written, orbax stops listening, and Python would print the others' failures."""
    if "Event loop is closed" not in str(unraisable.exc_value):
        others(unraisable)


sys.unraisablehook = _ignore_stragglers


def any_in(directory: epath.PathLike) -> bool:
    """Whether a folder has checkpoints, whole or damaged. What a kill left half-written is none.

    Their names don't tell: on an object store, which can't rename, what is half-written has its final name already.
    """
    directory = epath.Path(directory)
    return directory.exists() and bool(ocp.utils.checkpoint_steps(directory))


class Damaged(UserError):
    """A checkpoint can't be read, or not what was written."""


class Checkpoints:
    """The checkpoints of one workdir. Use as a context manager: leaving it waits for the last write.

    Of several processes each reads for itself, and the main one alone writes: no process waits for another.
    """

    def __init__(self, directory: epath.PathLike, config: ConfigDict, *, read_only: bool = False):
        """Opens (and creates) the folder.

        Args:
            directory: local path or gs://, the same storage for all processes.
            config: `config.checkpoint`, of which `keep` and `best_metric` count here.
            read_only: changes nothing in the folder, in which a training may be writing at the same time: what it has
                half-written looks like what a kill has left.
        """
        directory = epath.Path(directory)
        if not directory.is_absolute():  # orbax insists on it; gs:// is, and `resolve` would make a local path of it
            directory = directory.resolve()
        self._directory = directory
        self._keep = config.keep
        self._best_metric = config.best_metric
        self._writes = not read_only and parallel.is_main()
        self._damaged: dict[int, str] = {}  # step: what is wrong with it
        if self._writes:
            directory.mkdir(parents=True, exist_ok=True)
        process = parallel.process_index()
        self._manager = ocp.CheckpointManager(
            directory,
            options=ocp.CheckpointManagerOptions(
                preservation_policy=self,
                # Not orbax's own read_only, which does no more and warns of it.
                create=False,
                cleanup_tmp_directories=self._writes,  # what a kill left half-written
                multiprocessing_options=ocp.options.MultiprocessingOptions(
                    primary_host=process, active_processes={process}, barrier_sync_key_prefix=f"process{process}"
                ),
            ),
            item_handlers={
                "network": ocp.StandardCheckpointHandler(),
                "training": ocp.StandardCheckpointHandler(),
                "about": ocp.JsonCheckpointHandler(),
            },
        )
        # Every checkpoint says which was the best when it was saved.
        self._bests = {step: self._best_when_saved(step) for step in self._manager.all_steps()}
        newest = self._newest_whole(self.about)
        self._best = newest[1]["best"] if newest else None

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> list[bool]:
        """orbax's PreservationPolicy: the newest stay, each with what was the best when it was saved; all others go.

        orbax's own best-N policy would warn at every save that was not evaluated, and keeps such saves for ever.
        """
        preserved = self._preserved([checkpoint.step for checkpoint in checkpoints])
        return [checkpoint.step in preserved for checkpoint in checkpoints]

    def _preserved(self, steps: Sequence[int]) -> set[int]:
        newest = sorted(steps)[-self._keep :]
        # Not the best of the very newest alone: who goes back to the one before would have none any more.
        return {*newest, *(self._bests[step] for step in newest if self._bests.get(step))}

    def _best_when_saved(self, step: int) -> int | None:
        try:
            best = self.about(step)["best"]
        except Damaged:
            return None
        return best and best["step"]

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, kind: type | None, *_) -> None:
        if kind is None and self._writes:
            self._manager.wait_until_finished()
            self._tidy()
        self._manager.close()

    @property
    def steps(self) -> list[int]:
        """The steps of the checkpoints that aren't known to be damaged, in order."""
        return sorted(self._whole_steps())

    @property
    def latest_step(self) -> int | None:
        """The step of the newest checkpoint that isn't known to be damaged, None where there is none."""
        return max(self._whole_steps(), default=None)

    @property
    def best(self) -> dict[str, Any] | None:
        """{"step", metrics} of the best checkpoint, None where none was evaluated."""
        return self._best

    def is_best(self, metrics: dict[str, float]) -> bool:
        """Whether nothing saved so far is as good."""
        if self._best is None:
            return True
        new, old = metrics[self._best_metric], self._best[self._best_metric]
        return new < old if self._best_metric == "loss" else new > old

    def save(self, state: TrainState, about: dict[str, Any], metrics: dict[str, float] | None) -> None:
        """Starts writing a checkpoint and returns.

        Args:
            state: numpy leaves that nobody changes afterwards, as `parallel.to_host` gives them.
            about: see the file's head; JSON values.
            metrics: of the evaluation at this step, None where there was none.

        Raises:
            Exception: this one or the one before could not be written; `workdir.full_disk_told` knows some reasons.
        """
        step = int(state.step)
        if metrics is not None and self.is_best(metrics):
            self._best = {"step": step, **metrics}
        self._bests[step] = self._best and self._best["step"]
        if not self._writes:
            return
        self._set_damaged_aside()
        about = about | {"best": self._best}
        digests = {"network": _digest(state.network), "training": _digest(state.training), "about": _json_digest(about)}
        self._manager.save(
            step,
            args=ocp.args.Composite(
                network=ocp.args.StandardSave(state.network),
                training=ocp.args.StandardSave(state.training),
                about=ocp.args.JsonSave(about | {"digests": digests}),
            ),
        )

    def forget_latest(self) -> None:
        """Deletes the newest checkpoint, unless there is no other."""
        *earlier, latest = sorted(self._whole_steps())
        if not earlier:
            return
        if self._best and self._best["step"] == latest:
            self._best = self.about(earlier[-1])["best"]
        if self._writes:
            # Not by orbax: what a kill leaves under this name is cleaned away, and not a damaged checkpoint.
            forgotten = self._directory / f"{latest}.orbax-checkpoint-tmp"
            (self._directory / str(latest)).rename(forgotten).rmtree()
            self._manager.reload()
        self.wait()

    def check(self) -> None:
        """Raises what went wrong in the background since the last call of `save`, as the next one would."""
        self._manager.check_for_errors()

    def wait(self) -> None:
        """Waits, in all processes, until everything is written and what is no longer kept deleted, and all know it."""
        self._manager.wait_until_finished()
        parallel.agree("written")
        if not self._writes:
            self._manager.reload()
        parallel.agree("seen")  # nothing may be deleted while others look

    def about(self, step: int) -> dict[str, Any]:
        """Reads what a checkpoint says of itself, without its arrays.

        Raises:
            Damaged: it can't be read or is not what was written.
        """
        return self._about_and_digests(step)[0]

    def restore(self, step: int, like: TrainState) -> tuple[TrainState, dict[str, Any]]:
        """Reads a whole checkpoint.

        Args:
            step: of the checkpoint.
            like: a state of the same structure, shapes and types.

        Returns:
            The state with numpy leaves, and what the checkpoint says of itself.

        Raises:
            Damaged: it can't be read or is not what was written.
        """
        about, digests = self._about_and_digests(step)
        like = _numpy_like(like)
        args = {
            "network": ocp.args.StandardRestore(like.network),
            "training": ocp.args.StandardRestore(like.training),
        }
        parts = self._read(step, digests, **args)
        return TrainState.from_parts(parts["network"], parts["training"]), about

    def restore_latest(self, like: TrainState) -> tuple[TrainState, dict[str, Any]] | None:
        """Reads the newest checkpoint that is whole, the same in all processes; None where there is none at all.

        Args:
            like: as for `restore`, whose result it gives.

        Raises:
            UserError: there are checkpoints, but none of them is whole, or processes see different ones.
        """
        found = self._newest_whole(lambda step: self.restore(step, like))
        self._require_agreement(found and found[0])
        if not found:
            return None
        state, about = found[1]
        self._best = about["best"]
        return state, about

    def restore_network(self, step: int) -> Any:
        """Reads {"params", "batch_stats"} alone, as numpy leaves; neither optimizer nor dataset need be known.

        Raises:
            Damaged: it can't be read or is not what was written.
        """
        _, digests = self._about_and_digests(step)
        with _reading(f"the metadata of checkpoint {step}"):
            like = _numpy_like(self._manager.item_metadata(step)["network"].tree)
        return self._read(step, digests, network=ocp.args.StandardRestore(like))["network"]

    def restore_latest_network(self) -> tuple[int, Any] | None:
        """Reads what `restore_network` gives for the newest checkpoint that is whole, and its step; None for none.

        Raises:
            UserError: there are checkpoints, but none of them is whole, or processes see different ones.
        """
        found = self._newest_whole(self.restore_network)
        self._require_agreement(found and found[0])
        return found

    def restore_best_network(self) -> tuple[int, Any] | None:
        """Likewise for the best checkpoint; None where none was evaluated.

        Raises:
            UserError: it is damaged, or processes see different ones.
        """
        step = self._best and self._best["step"]
        self._require_agreement(step)
        return step and (step, self.restore_network(step))

    def restore_network_at(self, step: int) -> tuple[int, Any] | None:
        """Likewise for a step; None where it has no checkpoint.

        Raises:
            UserError: it is damaged, or processes see different ones.
        """
        found = step if step in self.steps else None
        self._require_agreement(found)
        return found and (found, self.restore_network(found))

    def _require_agreement(self, step: int | None) -> None:
        try:
            seen = f"{step} {step and self._about_and_digests(step)[1]}"
        except Damaged as error:
            seen = str(error)  # told when it is read, if all have the same; the others must not wait for this process
        if not parallel.agree(seen):
            raise UserError(
                f"{self._directory}: the hosts see different checkpoints there (this one: {step}); the workdir must be "
                "on storage that all of them share"
            )

    def _newest_whole(self, read: Callable[[int], T]) -> tuple[int, T] | None:
        """Returns the newest step whose reading succeeds, and what was read."""
        new = []
        for step in sorted(self._whole_steps(), reverse=True):
            try:
                found = read(step)
            except Damaged as error:
                self._damaged[step] = str(error)
                new.append(str(error))
                continue
            for error in new:
                absl_logging.warning("%s: %s; using checkpoint %d instead", self._directory, error, step)
            return step, found
        if self._damaged:
            reason = self._damaged[max(self._damaged)]
            raise UserError(
                f"{self._directory}: none of the checkpoints there is whole ({reason}); put a copy back in its place, "
                "or delete the folder to train from the beginning"
            )
        return None

    def _whole_steps(self) -> list[int]:
        return [step for step in self._manager.all_steps() if step not in self._damaged]

    def _about_and_digests(self, step: int) -> tuple[dict[str, Any], dict[str, str]]:
        """What a checkpoint says of itself, and the digests of its parts; none in one of an older version."""
        about = self._read(step, {}, about=ocp.args.JsonRestore())["about"]
        if not isinstance(about, dict):
            raise Damaged(f"what checkpoint {step} says of itself is damaged")
        digests = about.pop("digests", {})
        if digests and digests.get("about") != _json_digest(about):
            raise Damaged(f"what checkpoint {step} says of itself is damaged")
        return about, digests

    def _read(self, step: int, digests: dict[str, str], **args: ocp.args.CheckpointArgs) -> dict[str, Any]:
        """Reads parts of a checkpoint and compares them with their digests."""
        with _reading(f"checkpoint {step}"):
            parts = self._manager.restore(step, args=ocp.args.Composite(**args))
            parts = {name: parts[name] for name in args}
        for name in parts:
            if name in digests and digests[name] != _digest(parts[name]):
                raise Damaged(f"the arrays of checkpoint {step} ({name}) are not those that were written")
        return parts

    def _set_damaged_aside(self) -> None:
        """Moves what is damaged out of orbax's sight, which would count it and refuse to save its step again."""
        for step in self._damaged:
            aside = self._directory.parent / f"damaged_checkpoint_{step}"
            if aside.exists():
                aside.rmtree()
            (self._directory / str(step)).rename(aside)
            absl_logging.warning("moved damaged checkpoint %d to %s", step, aside)
        if self._damaged:
            self._damaged.clear()
            self._manager.reload()

    def _tidy(self) -> None:
        """Deletes what orbax was killed in the middle of deleting."""
        self._set_damaged_aside()
        steps = self._manager.all_steps()
        for step in set(steps) - self._preserved(steps):
            self._manager.delete(step)


def _digest(tree: Any) -> str:
    """The SHA-256 of any tree of arrays; of a network the same as in results.json."""
    return digest(to_state_dict(tree))


def _json_digest(value: Any) -> str:
    # Through JSON once, as it will be read: tuples become lists.
    return hashlib.sha256(json.dumps(json.loads(json.dumps(value)), sort_keys=True).encode()).hexdigest()


@contextlib.contextmanager
def _reading(what: str) -> Iterator[None]:
    """Within it, whatever orbax and TensorStore are led to by a broken file is a `Damaged`."""
    try:
        yield
    except Exception as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise Damaged(f"{what} can't be read ({reason[:120]})") from error


def _numpy_like(tree: Any) -> Any:
    """Numpy targets, because orbax would otherwise insist on the devices that a checkpoint was written with."""
    return jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), tree)
