"""What training changes: the step, the parameters, the batch statistics and the optimizer's state."""

import hashlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn
from flax import struct
from flax.traverse_util import flatten_dict

from cnn_research.models import registry

LARGEST_LOSS_SCALE = 2.0**15  # a power of two, which loses no digit; float16 reaches to 65,504


class TrainState(struct.PyTreeNode):
    """One device's copy of the state; all copies are equal.

    There is no random state and no iterator state: everything random or ordered is a function of (seed, step).
    """

    # int32[]: how many updates have been made.
    step: Any
    # float32 tree.
    params: Any
    # float32 tree, {} for networks without batch normalisation.
    batch_stats: Any
    opt_state: Any
    # float32[]: what the schedule's rate is multiplied by, lowered on a plateau or a rollback.
    learning_rate_scale: Any = np.float32(1)
    # Moving averages {"params", "batch_stats"}; {} without ema_decay.
    averaged: Any = struct.field(default_factory=dict)
    # float16: {"scale": float32[], "good_steps": int32[]}; else {}.
    loss_scale: Any = struct.field(default_factory=dict)

    @property
    def variables(self) -> dict[str, Any]:
        """What is being trained: {"params", "batch_stats"}."""
        return {"params": self.params, "batch_stats": self.batch_stats}

    @property
    def network(self) -> dict[str, Any]:
        """What evaluation and inference use, {"params", "batch_stats"}: the moving averages, if there are any."""
        return self.averaged or self.variables

    @property
    def training(self) -> dict[str, Any]:
        """Everything beside `network` that going on with training needs."""
        rest = {name: getattr(self, name) for name in ("step", "opt_state", "learning_rate_scale", "loss_scale")}
        return rest | ({"variables": self.variables} if self.averaged else {})

    @classmethod
    def from_parts(cls, network: dict[str, Any], training: dict[str, Any]) -> "TrainState":
        """Puts `network` and `training` together again."""
        training = dict(training)
        variables = training.pop("variables", None)
        return cls(**(variables or network), **training, averaged=network if variables else {})


def create_state(
    model: nn.Module,
    optimizer: optax.GradientTransformation,
    seed: int,
    image_shape: tuple[int, int, int],
    *,
    averaging: bool = False,
    loss_scaling: bool = False,
    change: Callable[[dict[str, Any]], dict[str, Any]] | None = None,
) -> TrainState:
    """Initialises a network and its optimizer.

    Args:
        model: a network with the contract `apply(variables, x, train=...)`.
        optimizer: its optimizer.
        seed: of the initial parameters.
        image_shape: (H, W, C) of the images it will see.
        averaging: keep moving averages of parameters and batch statistics.
        loss_scaling: multiply the loss, for gradients that float16 can hold.
        change: of the initial {"params", "batch_stats"}.

    Raises:
        ValueError: the images are too small for the network; the message names the layer and its arithmetic.
    """
    variables = registry.init_variables(model, jax.random.key(seed), image_shape)
    variables = {"params": variables["params"], "batch_stats": variables.get("batch_stats", {})}
    variables = change(variables) if change else variables
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        **variables,
        opt_state=jax.jit(optimizer.init)(variables["params"]),  # one program instead of one for each parameter
        learning_rate_scale=jnp.ones((), jnp.float32),
        averaged=variables if averaging else {},
        loss_scale={"scale": jnp.float32(LARGEST_LOSS_SCALE), "good_steps": jnp.int32(0)} if loss_scaling else {},
    )


def count_parameters(params: Any) -> int:
    """Returns the number of trainable parameters."""
    return sum(leaf.size for leaf in jax.tree.leaves(params))


def digest(variables: Any) -> str:
    """Returns the SHA-256 of parameters and batch statistics, so that two runs can be compared to the bit.

    Args:
        variables: {"params", "batch_stats"} with numpy leaves.

    Returns:
        Hexadecimal digits. Leaves count in the order of their sorted paths, each with its path, type and shape.
    """
    sha = hashlib.sha256()
    for path, leaf in sorted(flatten_dict(variables, sep="/").items()):
        sha.update(f"{path} {leaf.dtype} {leaf.shape}\n".encode())
        sha.update(np.ascontiguousarray(leaf).tobytes())
    return sha.hexdigest()
