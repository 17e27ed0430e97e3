"""What training changes: the step, the parameters, the batch statistics and the optimizer's state."""

import hashlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn
from flax import struct
from flax.traverse_util import flatten_dict

from cnn_research.models import registry


class TrainState(struct.PyTreeNode):
    """One device's copy of the state; all copies are equal.

    There is no random state and no iterator state: everything random or ordered is a function of (seed, step).
    """

    step: Any  # int32[]: how many updates have been made
    params: Any  # float32 tree
    batch_stats: Any  # float32 tree, {} for networks without batch normalisation
    opt_state: Any

    @property
    def variables(self) -> dict[str, Any]:
        """What the network is applied with: {"params", "batch_stats"}."""
        return {"params": self.params, "batch_stats": self.batch_stats}


def create_state(
    model: nn.Module, optimizer: optax.GradientTransformation, seed: int, image_shape: tuple[int, int, int]
) -> TrainState:
    """Initialises a network and its optimizer.

    Args:
        model: a network with the contract `apply(variables, x, train=...)`.
        optimizer: its optimizer.
        seed: of the initial parameters.
        image_shape: (H, W, C) of the images it will see.

    Raises:
        ValueError: the images are too small for the network; the message names the layer and its arithmetic.
    """
    variables = registry.init_variables(model, jax.random.key(seed), image_shape)
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=variables["params"],
        batch_stats=variables.get("batch_stats", {}),
        opt_state=jax.jit(optimizer.init)(variables["params"]),  # one program instead of one for each parameter
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
