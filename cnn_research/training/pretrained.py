"""Variables to start from: those of an earlier run, or of a file of torchvision's or timm's."""

import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from etils import epath
from flax import linen as nn
from flax.traverse_util import flatten_dict, unflatten_dict
from ml_collections import ConfigDict

from cnn_research.config import base_config
from cnn_research.errors import UserError
from cnn_research.models import torch_file, torchvision
from cnn_research.training.checkpoints import Checkpoints
from cnn_research.training.parameters import HEADS


def load(config: ConfigDict, name: str, model: nn.Module, image_size: tuple[int, int], variables: Any) -> Any:
    """Puts the values of an earlier training in the place of initial ones.

    A head for another number of classes keeps its initial values, and with `head` "new" in any case. A first
    convolution for images of other channels is adapted: for grey images its kernels are summed over the colours, which
    gives what an image of three equal channels gave; for more channels they are repeated and scaled down.

    Args:
        config: `config.init`: `weights` is the folder of a run, or a .pth or .safetensors file; `checkpoint` says which
            of a run; `head`.
        name: of the network.
        model: the network.
        image_size: (H, W) that it will see.
        variables: the initial {"params", "batch_stats"}, which aren't changed.

    Raises:
        UserError: there is nothing of the kind, or it belongs to another network; the message names the first tensor
            that doesn't fit.
    """
    path = epath.Path(config.weights).expanduser()
    try:
        if path.is_dir():
            _, found, _ = read_run(path, config.checkpoint)
        elif path.exists():
            found = _of_file(path, name, model, image_size, variables)
        else:
            raise ValueError("there is neither a folder of a run nor a file")
        return _fitted(found, variables, config.head)
    except (UserError, ValueError, OSError, ImportError) as error:  # the last: of the package for this kind of storage
        raise UserError(f"config.init.weights={config.weights!r}: {error}") from None


def read_run(workdir: epath.Path, which: str) -> tuple[int, Any, dict[str, Any]]:
    """Reads the network of a run, for which neither its config.json nor its dataset is needed.

    Args:
        workdir: folder of the run.
        which: latest | best, or the step of a checkpoint.

    Returns:
        The step, {"params", "batch_stats"}, and what the checkpoint says of itself (`Experiment.about`).

    Raises:
        UserError: there is no such folder or checkpoint, it is damaged, or processes see different ones.
    """
    if not workdir.is_dir():
        raise UserError(f"workdir {workdir}: there is no such folder")
    with Checkpoints(workdir / "checkpoints", base_config().checkpoint, read_only=True) as checkpoints:
        if which == "latest":
            found = checkpoints.restore_latest_network()
        elif which == "best":
            found = checkpoints.restore_best_network()
        else:
            found = checkpoints.restore_network_at(int(which)) if re.fullmatch("0|[1-9][0-9]*", which) else None
        if not found and not checkpoints.steps:
            raise UserError(f"workdir {workdir} has no {which} checkpoint yet: train it first")
        if not found:
            best = ["best"] if which != "best" else []  # none was evaluated yet
            there = ", ".join(["latest", *best, *map(str, checkpoints.steps)])
            raise UserError(f"workdir {workdir} has no {which} checkpoint among {there}")
        return *found, checkpoints.about(found[0])


def _of_file(path: epath.Path, name: str, model: nn.Module, image_size: tuple[int, int], variables: Any) -> Any:
    state_dict = torch_file.read_state_dict(path)
    own = _channels_of(variables)
    problem = None
    for channels in dict.fromkeys((own, 3, 1)):
        like = variables if channels == own else _for_channels(model, (*image_size, channels), variables)
        try:
            found, _ = torchvision.import_weights(name, state_dict, like)
            return found
        except ValueError as error:
            problem = problem or error  # the first: it is about the network as it is wanted
    raise problem


def _for_channels(model: nn.Module, image_shape: tuple[int, int, int], variables: Any) -> Any:
    """The variables with zeros in place of what has another shape for images of other channels."""
    images = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)
    like = flatten_dict(jax.eval_shape(model.init, jax.random.key(0), images), sep="/")
    own = flatten_dict(variables, sep="/")
    kept = {path: own[path] if own[path].shape == leaf.shape else np.zeros(leaf.shape) for path, leaf in like.items()}
    return unflatten_dict(kept, sep="/")


def _channels_of(variables: Any) -> int:
    """How many channels the network's images have: no other convolution has so few inputs."""
    return min((leaf.shape[2] for leaf in jax.tree.leaves(variables["params"]) if leaf.ndim == 4), default=0)


def _fitted(found: Any, variables: Any, head: str) -> Any:
    """The variables with what was found in their place, as far as it belongs there."""
    found, own = (flatten_dict(tree, sep="/") for tree in (found, variables))
    fitted, new, adapted = {}, [], []
    for path, initial in own.items():
        value = found.pop(path, None)
        other_classes = value is not None and value.shape[:-1] == initial.shape[:-1] and value.shape != initial.shape
        if HEADS.match(path.removeprefix("params/")) and (head == "new" or other_classes):
            fitted[path] = initial
            new.append(path)
        elif value is None:
            raise ValueError(f"there is no {path} of shape {initial.shape}: it is another network's")
        elif value.shape == initial.shape:
            fitted[path] = np.asarray(value, initial.dtype)
        elif value.ndim == 4 and (*value.shape[:2], value.shape[3]) == (*initial.shape[:2], initial.shape[3]):
            fitted[path] = _adapted(np.asarray(value), initial.shape[2]).astype(initial.dtype)
            adapted.append(path)
        else:
            raise ValueError(f"{path} has the shape {value.shape}, not {initial.shape}: it is another network's")
    if found:
        raise ValueError(f"it has {next(iter(found))}, which this network lacks: it is another network's")
    logging.info(
        f"{len(fitted) - len(new)} tensors loaded"
        + (f"; for images of other channels: {', '.join(adapted)}" if adapted else "")
        + (f"; new: {', '.join(new)}" if new else "")
    )
    return unflatten_dict(fitted, sep="/")


def _adapted(kernel: np.ndarray, channels: int) -> np.ndarray:
    """[h, w, C, O] -> [h, w, channels, O], of about the same response to images that look alike."""
    before = kernel.shape[2]
    if channels == 1:
        return kernel.sum(axis=2, keepdims=True)
    return np.take(kernel, np.arange(channels) % before, axis=2) * (before / channels)
