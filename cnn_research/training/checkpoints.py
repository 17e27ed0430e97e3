"""Checkpoints: the only file that knows orbax.

A checkpoint holds numpy trees, so it restores on any number of devices and on any platform:

    network   {"params", "batch_stats"}: all that evaluation and inference need; with ema.decay the moving averages
    training  step, optimizer state and so on: what continuing needs besides (`TrainState.training`)
    about     JSON: the config, facts of the dataset (classes, mean, std, size), version, time spent, the best so far

The newest ones and the best one are kept. Writing happens in the background; a kill at any instant leaves the finished
checkpoints whole, and a half-written one is never seen again.
"""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from ml_collections import ConfigDict

from cnn_research.training.state import TrainState


class Checkpoints:
    """The checkpoints of one workdir. Use as a context manager: leaving it waits for the last write."""

    def __init__(self, directory: epath.PathLike, config: ConfigDict, *, read_only: bool = False):
        """Opens (and creates) the folder.

        Args:
            directory: local path or gs://.
            config: `config.checkpoint`, of which `keep` and `best_metric` count here.
            read_only: changes nothing in the folder, in which a training may be writing at the same time: what it has
                half-written looks like what a kill has left.
        """
        directory = epath.Path(directory)
        if not directory.is_absolute():  # orbax insists on it; gs:// is, and `resolve` would make a local path of it
            directory = directory.resolve()
        self._keep = config.keep
        self._best_metric = config.best_metric
        self._manager = ocp.CheckpointManager(
            directory,
            options=ocp.CheckpointManagerOptions(
                preservation_policy=self,
                # Not orbax's own read_only, which does no more and warns of it.
                create=not read_only,
                cleanup_tmp_directories=not read_only,  # what a kill left half-written
                enable_background_delete=True,
            ),
            item_handlers={
                "network": ocp.StandardCheckpointHandler(),
                "training": ocp.StandardCheckpointHandler(),
                "about": ocp.JsonCheckpointHandler(),
            },
        )
        # Every checkpoint says which was the best when it was saved.
        self._best = self.about(self.latest_step)["best"] if self.latest_step else None

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> list[bool]:
        """orbax's PreservationPolicy: the newest and the best stay, everything else goes.

        orbax's own best-N policy would warn at every save that was not evaluated, and keeps such saves for ever.
        """
        newest = sorted(checkpoint.step for checkpoint in checkpoints)[-self._keep :]
        best = self._best["step"] if self._best else None
        return [checkpoint.step in newest or checkpoint.step == best for checkpoint in checkpoints]

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *_) -> None:
        self._manager.close()

    @property
    def latest_step(self) -> int | None:
        """The newest checkpoint's step, None where there is none."""
        return self._manager.latest_step()

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
        """
        step = int(state.step)
        if metrics is not None and self.is_best(metrics):
            self._best = {"step": step, **metrics}
        self._manager.save(
            step,
            args=ocp.args.Composite(
                network=ocp.args.StandardSave(state.network),
                training=ocp.args.StandardSave(state.training),
                about=ocp.args.JsonSave(about | {"best": self._best}),
            ),
        )

    def wait(self) -> None:
        """Waits until everything is written."""
        self._manager.wait_until_finished()

    def about(self, step: int) -> dict[str, Any]:
        """Reads what a checkpoint says of itself, without its arrays."""
        return self._manager.restore(step, args=ocp.args.Composite(about=ocp.args.JsonRestore()))["about"]

    def restore(self, step: int, like: TrainState) -> tuple[TrainState, dict[str, Any]]:
        """Reads a whole checkpoint.

        Args:
            step: of the checkpoint.
            like: a state of the same structure, shapes and types.

        Returns:
            The state with numpy leaves, and what the checkpoint says of itself.
        """
        like = _numpy_like(like)
        items = self._manager.restore(
            step,
            args=ocp.args.Composite(
                network=ocp.args.StandardRestore(like.network),
                training=ocp.args.StandardRestore(like.training),
                about=ocp.args.JsonRestore(),
            ),
        )
        return TrainState.from_parts(items["network"], items["training"]), items["about"]

    def restore_network(self, step: int) -> Any:
        """Reads {"params", "batch_stats"} alone, as numpy leaves; neither optimizer nor dataset need be known."""
        like = _numpy_like(self._manager.item_metadata(step)["network"].tree)
        return self._manager.restore(step, args=ocp.args.Composite(network=ocp.args.StandardRestore(like)))["network"]


def _numpy_like(tree: Any) -> Any:
    """Numpy targets, because orbax would otherwise insist on the devices that a checkpoint was written with."""
    return jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), tree)
