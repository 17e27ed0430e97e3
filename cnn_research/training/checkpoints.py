"""Checkpoints: the only file that knows orbax.

A checkpoint holds numpy trees, so it restores on any number of devices and on any platform:

    network   {"params", "batch_stats"}: all that evaluation and inference need
    training  {"step", "opt_state"}: what continuing needs besides
    about     JSON: the config, facts of the dataset (classes, mean, std, size), version, time spent

The newest ones and the best one are kept. Writing happens in the background; a kill at any instant leaves the finished
checkpoints whole, and a half-written one is never seen again.
"""

from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from ml_collections import ConfigDict
from orbax.checkpoint import checkpoint_managers as policies

from cnn_research.training.state import TrainState


class Checkpoints:
    """The checkpoints of one workdir. Use as a context manager: leaving it waits for the last write."""

    def __init__(self, directory: epath.PathLike, config: ConfigDict):
        """Opens (and creates) the folder.

        Args:
            directory: local path or gs://.
            config: `config.checkpoint`, of which `keep` and `best_metric` count here.
        """
        self._best_metric = config.best_metric
        self._sign = -1 if config.best_metric == "loss" else 1
        # By default BestN keeps for ever what has no metrics.
        best = policies.BestN(get_metric_fn=self._goodness, n=1, keep_checkpoints_without_metrics=False)
        self._manager = ocp.CheckpointManager(
            epath.Path(directory).absolute(),
            options=ocp.CheckpointManagerOptions(
                preservation_policy=policies.AnyPreservationPolicy([policies.LatestN(config.keep), best]),
                best_fn=self._goodness,
                cleanup_tmp_directories=True,
                enable_background_delete=True,
            ),
            item_handlers={
                "network": ocp.StandardCheckpointHandler(),
                "training": ocp.StandardCheckpointHandler(),
                "about": ocp.JsonCheckpointHandler(),
            },
        )

        step = self._manager.best_step()
        metrics = None if step is None else self._manager.metrics(step)
        self._best = None if metrics is None else {"step": step, **metrics}

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
        """Whether nothing saved is better. The newer of two equals counts as better, as it does in orbax's BestN."""
        return self._best is None or self._goodness(metrics) >= self._goodness(self._best)

    def _goodness(self, metrics: dict[str, float]) -> float:
        return self._sign * metrics[self._best_metric]

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
                network=ocp.args.StandardSave({"params": state.params, "batch_stats": state.batch_stats}),
                training=ocp.args.StandardSave({"step": state.step, "opt_state": state.opt_state}),
                about=ocp.args.JsonSave(about),
            ),
            metrics=metrics,
        )

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
                network=ocp.args.StandardRestore({"params": like.params, "batch_stats": like.batch_stats}),
                training=ocp.args.StandardRestore({"step": like.step, "opt_state": like.opt_state}),
                about=ocp.args.JsonRestore(),
            ),
        )
        return TrainState(**items["network"], **items["training"]), items["about"]

    def restore_network(self, step: int) -> Any:
        """Reads {"params", "batch_stats"} alone, as numpy leaves; neither optimizer nor dataset need be known."""
        like = _numpy_like(self._manager.item_metadata(step)["network"].tree)
        return self._manager.restore(step, args=ocp.args.Composite(network=ocp.args.StandardRestore(like)))["network"]


def _numpy_like(tree: Any) -> Any:
    """Numpy targets, because orbax would otherwise insist on the devices that a checkpoint was written with."""
    return jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), tree)
