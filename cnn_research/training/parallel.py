"""Devices and processes: the only file that knows pmap, so that another way of sharding changes this file alone."""

import contextlib
import os
import resource
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
from etils import epath
from flax import jax_utils
from jax.experimental import multihost_utils

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


def share(batch_size: int) -> slice:
    """Returns which examples of a global batch are this process's: those of its devices.

    Raises:
        ValueError: the batch size is not a multiple of the number of devices.
    """
    if batch_size % device_count():
        raise ValueError(f"{batch_size} examples can't be split over {device_count()} devices evenly")
    size = batch_size // device_count() * jax.local_device_count()
    return slice(jax.process_index() * size, (jax.process_index() + 1) * size)


def shard(batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Cuts this process's share of a batch, of b examples: [b, ...] -> [local devices, b / local devices, ...].

    Raises:
        ValueError: b is not a multiple of the number of local devices.
    """
    return {name: x.reshape(jax.local_device_count(), -1, *x.shape[1:]) for name, x in batch.items()}


def prefetch(batches: Iterable[dict[str, np.ndarray]], count: int) -> Iterator[dict[str, Any]]:
    """Cuts batches (of this process's share) and copies them to the devices before they are needed.

    Args:
        batches: on the host.
        count: how many batches are on the devices, that in use included: 2 for images, whose copying takes longer than
            asking for it does. 0 leaves it to the step: for a few numbers the asking would take half a millisecond.
    """
    shards = map(shard, batches)
    return jax_utils.prefetch_to_device(shards, count) if count else shards


def limit_ahead(results: Sequence[Any], ahead: int | None) -> None:
    """Waits until at most `ahead` of the steps are under way whose results these are, in order; None for no limit.

    A step that waits for its turn holds its batch in the devices' memory.
    """
    if ahead is not None and len(results) > ahead:
        jax.block_until_ready(results[-1 - ahead])


def total(count: int) -> int:
    """Returns the sum of a number over all processes."""
    return count if jax.process_count() == 1 else int(multihost_utils.process_allgather(np.int64(count)).sum())


def device_memory() -> int:
    """Returns the memory of one device, in bytes: for CPU devices, an even part of what this process may use."""
    device = jax.local_devices()[0]
    limit = (device.memory_stats() or {}).get("bytes_limit")
    if limit:
        return limit
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    with contextlib.suppress(OSError, ValueError):  # a container's limit, where there is one ("max" is none)
        memory = min(memory, int(epath.Path("/sys/fs/cgroup/memory.max").read_text()))
    return memory // jax.local_device_count()


def round_up(batch_size: int) -> int:
    """Returns the next batch size that the devices can share evenly."""
    return -(-batch_size // device_count()) * device_count()


def peak_memory() -> int:
    """Returns the most memory that one device has held so far, in bytes; for CPU devices, that this process has."""
    stats = jax.local_devices()[0].memory_stats() or {}
    # Linux counts in KiB, macOS in bytes.
    unit = 1 if sys.platform == "darwin" else 1024
    return stats.get("peak_bytes_in_use") or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def set_matmul_precision(name: str) -> None:
    """Sets with how many bits devices multiply float32 from now on: default | high | highest."""
    jax.config.update("jax_default_matmul_precision", None if name == "default" else name)
