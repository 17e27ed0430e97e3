"""Notices losses and parameters that are no longer finite, and decides where to go on from."""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from absl import logging
from ml_collections import ConfigDict

from cnn_research.errors import Diverged
from cnn_research.training.checkpoints import Checkpoints


def require_finite(values: Sequence[float], first_step: int, what: str, checkpoints: Checkpoints) -> None:
    """Checks one value for each step from `first_step`.

    Raises:
        Diverged: one is NaN or infinite; the message names the steps and the checkpoint that is left.
    """
    bad = [first_step + i for i, value in enumerate(values) if not np.isfinite(value)]
    if bad:
        steps = f"step {bad[0]}" if len(bad) == 1 else f"steps {bad[0]} to {bad[-1]}"
        saved = checkpoints.latest_step
        left = f"the last checkpoint, of step {saved}, is finite" if saved else "there is no checkpoint yet"
        raise Diverged(f"diverged: {what} not finite at {steps}; {left}. A lower learning rate or a warm-up may help.")


def largest(tree: Any) -> float:
    """Returns a number that is finite if all of a tree's numpy leaves are."""
    return np.max([np.abs(leaf).max() for leaf in jax.tree.leaves(tree)])


class Rollbacks:
    """What `config.on_divergence` asks for: a rollback is a restart from an earlier checkpoint at a lower rate.

    Attributes:
        count: how many there have been, also before a restart of the process.
    """

    def __init__(self, config: ConfigDict):
        """None so far."""
        self.count = 0
        self._config = config
        self._gone_back_to = None

    def go_back(self, error: Diverged, checkpoints: Checkpoints) -> None:
        """Returns if training shall go on from the newest checkpoint.

        Raises:
            Diverged: it shall not, or has done so often enough, or there is no checkpoint.
        """
        checkpoints.wait()
        if self._config.on_divergence != "rollback" or not checkpoints.latest_step:
            raise error
        if checkpoints.latest_step == self._gone_back_to:  # finite, but perhaps past saving
            checkpoints.forget_latest()
        self._gone_back_to = checkpoints.latest_step
        self.count = 1 + max(self.count, checkpoints.about(checkpoints.latest_step)["rollbacks"])
        if self.count > self._config.max_rollbacks:
            raise Diverged(f"{error} It came again after {self._config.max_rollbacks} rollbacks.")
        logging.warning(f"{error} Rollback {self.count}: going on from there at a rate lower than before.")
