"""Devices and processes: the only file that knows pmap, so that another way of sharding changes this file alone."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from etils import epath
from flax import jax_utils

AXIS = "device"  # the name of the axis over which gradients, metrics and batch statistics are averaged


def initialise(compilation_cache: str) -> None:
    """Sets up JAX for this process.

    Args:
        compilation_cache: folder of XLA's persistent cache, "" for none. Everything is kept, the small programs of a
            start too: together they take seconds to compile.
    """
    if not compilation_cache:
        return
    jax.config.update("jax_compilation_cache_dir", str(epath.Path(compilation_cache).expanduser()))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


def device_count() -> int:
    """Returns the number of devices of all processes together."""
    return jax.device_count()


def is_main() -> bool:
    """Whether this process is the one that writes."""
    return jax.process_index() == 0


def pmap_step(step: Callable, *, donate_state: bool) -> Callable:
    """Compiles a step to run on all devices at once.

    Args:
        step: a function of one device's share, which may use AXIS.
        donate_state: whether the first argument's memory is reused for the result; it can't be used afterwards.
    """
    return jax.pmap(step, axis_name=AXIS, donate_argnums=(0,) if donate_state else ())


def replicate(tree: Any) -> Any:
    """Copies arrays to every local device, with a leading axis of devices."""
    return jax_utils.replicate(tree)


def to_host(tree: Any) -> Any:
    """Waits for a replicated tree and returns the first local device's copy of it as numpy arrays.

    No other device and no other process is asked. Copied, because on a CPU numpy may be given a view of the device's
    memory, which a step that is given the tree is free to reuse.
    """
    return jax.tree.map(lambda x: np.array(x.addressable_shards[0].data).reshape(x.shape[1:]), tree)


def shard(batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Cuts a global batch of B examples to this process's share: [B, ...] -> [local devices, B / devices, ...].

    Raises:
        ValueError: B is not a multiple of the number of devices.
    """

    def share(x: np.ndarray) -> np.ndarray:
        devices = x.reshape(device_count(), -1, *x.shape[1:])
        first = jax.process_index() * jax.local_device_count()
        return devices[first : first + jax.local_device_count()]

    return {name: share(x) for name, x in batch.items()}


def round_up(batch_size: int) -> int:
    """Returns the next batch size that the devices can share evenly."""
    return -(-batch_size // device_count()) * device_count()
