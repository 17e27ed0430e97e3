"""Devices and processes: the only file that knows pmap, so that another way of sharding changes this file alone."""

import contextlib
import hashlib
import importlib.util
import inspect
import itertools
import json
import os
import resource
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
from absl import logging
from etils import epath
from flax import jax_utils
from jax.experimental import multihost_utils

from cnn_research.errors import UserError
from cnn_research.models import cpu

# Multiplications and additions a second of one device with 16-bit numbers, dense, as its maker states it. Device kinds
# as JAX names them; of TPU v2 and v3 a device is one of a chip's two cores.
PEAK_FLOPS = {
    "NVIDIA H200": 989e12,
    "NVIDIA H100 80GB HBM3": 989e12,
    "NVIDIA H100 PCIe": 756e12,
    "NVIDIA A100-SXM4-40GB": 312e12,
    "NVIDIA A100-SXM4-80GB": 312e12,
    "NVIDIA L4": 121e12,
    "Tesla T4": 65e12,
    "Tesla V100-SXM2-16GB": 125e12,
    "TPU v2": 22.5e12,
    "TPU v3": 61.5e12,
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,
    "TPU v5p": 459e12,
    "TPU v6 lite": 918e12,
}

AXIS = "device"  # the name of the axis over which gradients, metrics and batch statistics are averaged

# Newer Flax names the axis when it puts arrays on the devices. Unless it is the name that pmap gives to its results, a
# step is traced and compiled twice: for the first state, and for all those that it returns.
_AS_PMAP = {"axis_name": AXIS} if "axis_name" in inspect.signature(jax_utils.replicate).parameters else {}

# Seconds in which every process must have come: the hosts of a pod start minutes apart.
START_TIMEOUT = 300
# Seconds after which a process that gives no sign of life counts as dead, and all others are ended. It is given by a
# thread of its own, whatever the process computes or compiles, so that only a stopped machine or network is silent.
HEARTBEAT_TIMEOUT = 30
# Seconds for which a process that must leave early waits for the others, which may be leaving for the same reason.
_LEAVE_TIMEOUT = 5

# Of XLA:GPU: only algorithms that give the same bits in every run, chosen without timing them. Others ignore it.
_DETERMINISTIC = "--xla_gpu_deterministic_ops=true"


def connect(
    coordinator_address: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
    local_device_ids: Sequence[int] | None = None,
) -> None:
    """Joins the processes of a run on several hosts, one process a host. Must come before JAX is used for anything.

    Without arguments JAX finds the other processes by itself on Cloud TPU and under SLURM; elsewhere the process
    is alone.

    Args:
        coordinator_address: "HOST:PORT" of process 0, a free port there that all hosts can reach.
        num_processes: of the whole run; 1 is a process alone, whatever could be found.
        process_id: of this one, from 0.
        local_device_ids: the GPUs that it uses; None for all (under SLURM: for the one of its rank on the host).

    Raises:
        UserError: only some of the first three are given, they make no sense, devices are chosen for a process that is
            alone, or the coordinator can't be reached.
    """
    given = {"coordinator_address": coordinator_address, "num_processes": num_processes, "process_id": process_id}
    devices = {"local_device_ids": list(local_device_ids)} if local_device_ids else {}
    nothing_given = all(value is None for value in given.values())
    if num_processes == 1 or (nothing_given and not _is_cluster()):
        if devices:
            ids = ",".join(map(str, local_device_ids))
            raise UserError(f"--local_device_ids={ids} is for several hosts; alone, set CUDA_VISIBLE_DEVICES={ids}")
        return
    if nothing_given:
        return _connect_detected(devices)
    missing = [f"--{name}" for name, value in given.items() if value is None]
    if missing:
        raise UserError(f"{' and '.join(missing)} must be given too: --{', --'.join(given)} belong together")
    if num_processes < 1 or not 0 <= process_id < num_processes:
        wrong = f"--process_id={process_id} --num_processes={num_processes}"
        raise UserError(f"{wrong}: processes are numbered from 0 to num_processes - 1")
    host, _, port = coordinator_address.rpartition(":")
    if not host or not port.isdigit() or not 0 < int(port) < 2**16:
        raise UserError(f"--coordinator_address={coordinator_address}: must be HOST:PORT, such as 10.0.0.1:8476")
    # JAX would abort the process with a C++ stack.
    if process_id == 0:
        _check_free(coordinator_address, int(port))
    else:
        _await_coordinator(coordinator_address, host.strip("[]"), int(port))
    logging.info(f"waiting up to {START_TIMEOUT} s for all {num_processes} processes to come to {coordinator_address}")
    jax.distributed.initialize(
        **given, **devices, initialization_timeout=START_TIMEOUT, heartbeat_timeout_seconds=HEARTBEAT_TIMEOUT
    )


def _is_cluster() -> bool:
    """Whether JAX is worth asking: it knows more clusters, but by signs that single machines have too."""
    slurm = "SLURM_STEP_NODELIST" in os.environ and os.environ.get("SLURM_NTASKS", "1") != "1"
    return slurm or "TPU_ML_PLATFORM" in os.environ  # set by JAX itself on a machine with TPU chips


def _connect_detected(devices: dict[str, Any]) -> None:
    try:
        jax.distributed.initialize(
            **devices, initialization_timeout=START_TIMEOUT, heartbeat_timeout_seconds=HEARTBEAT_TIMEOUT
        )
    except ValueError:
        return  # JAX found none: a TPU machine of its own
    except Exception as error:
        reason = str(error).splitlines()[0]
        raise UserError(
            f"the other hosts of this cluster can't be joined ({reason}); --num_processes=1 trains on this one alone"
        ) from error


def _check_free(address: str, port: int) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("", port))
        except OSError as error:
            raise UserError(
                f"--coordinator_address={address}: process 0 can't listen there ({error.strerror}); choose another port"
            ) from None


def _await_coordinator(address: str, host: str, port: int) -> None:
    deadline = time.monotonic() + START_TIMEOUT
    while True:
        try:
            socket.create_connection((host, port), timeout=5).close()
            return
        except OSError as error:
            if time.monotonic() > deadline:
                raise UserError(
                    f"--coordinator_address={address}: process 0 didn't answer within {START_TIMEOUT} s "
                    f"({error.strerror or error}); is it running on that host, and is the port open?"
                ) from None
        time.sleep(0.5)


def is_connected() -> bool:
    """Whether this process has joined others by `connect`."""
    return jax.distributed.is_initialized()


def disconnect() -> None:
    """Leaves the other processes when this one ends early: politely for a few seconds, as they may wait for it.

    They are then ended within HEARTBEAT_TIMEOUT seconds. Afterwards the process must end without Python's usual
    clean-up, in which JAX would wait for the others for minutes.
    """
    thread = threading.Thread(target=jax.distributed.shutdown, daemon=True)
    thread.start()
    thread.join(_LEAVE_TIMEOUT)


def initialise(compilation_cache: str, deterministic: bool = False) -> None:
    """Sets up JAX for this process; after `connect`, before anything else is asked of JAX.

    Where it will compute on CPUs alone, the process from now on keeps the memory that it frees: `cpu.keep_memory`.

    Args:
        compilation_cache: folder of XLA's persistent cache, "" for none. Everything is kept, the small programs of a
            start too: together they take seconds to compile.
        deterministic: as config.deterministic. XLA reads it once, when it is first used: where that has happened, as in
            a notebook, it must have been in XLA_FLAGS from the start.
    """
    if deterministic and _DETERMINISTIC not in os.environ.get("XLA_FLAGS", ""):
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {_DETERMINISTIC}".strip()
    if compilation_cache:
        jax.config.update("jax_compilation_cache_dir", str(epath.Path(compilation_cache).expanduser()))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
        jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    if _is_for_cpus():
        cpu.keep_memory()


def _is_for_cpus() -> bool:
    """Whether JAX will have no devices but CPUs, without starting its backend: memory is kept only if told before."""
    platforms = jax.config.jax_platforms
    if platforms:
        return platforms == "cpu"
    return not any(map(importlib.util.find_spec, ("jax_plugins", "libtpu")))  # what GPUs and TPUs need


def device_count() -> int:
    """Returns the number of devices of all processes together."""
    return jax.device_count()


def on_cpu() -> bool:
    """Whether the devices are CPUs: XLA compiles loops badly for them, and some operations better in other forms."""
    return jax.default_backend() == "cpu"


def accelerate(function: Callable[..., Any]) -> Callable[..., Any]:
    """Returns an equal function that is faster on these devices: `cpu.accelerate` of it on CPUs, elsewhere itself."""
    return cpu.accelerate(function) if on_cpu() else function


def process_index() -> int:
    """Returns this process's number, from 0."""
    return jax.process_index()


def is_main() -> bool:
    """Whether this process is the one that writes."""
    return process_index() == 0


def pmap_step(step: Callable, *, donate_state: bool) -> Callable:
    """Compiles a step to run on all devices at once.

    Args:
        step: a function of one device's share, which may use AXIS.
        donate_state: whether the first argument's memory is reused for the result; it can't be used afterwards.
    """
    return jax.pmap(step, axis_name=AXIS, donate_argnums=(0,) if donate_state else ())


def replicate(tree: Any) -> Any:
    """Copies arrays to every local device, with a leading axis of devices."""

    def on_host(x: Any) -> Any:  # JAX's own arrays would be stacked on the device, which is compiled for each shape
        is_key = isinstance(x, jax.Array) and jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key)
        return x if is_key else np.asarray(x)

    return jax_utils.replicate(jax.tree.map(on_host, tree), **_AS_PMAP)


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


def prefetch(
    batches: Iterable[dict[str, np.ndarray]], count: int, calls: Iterable[int] | None = None
) -> Iterator[dict[str, Any]]:
    """Cuts batches (of this process's share) and copies them to the devices before they are needed.

    Args:
        batches: on the host.
        count: how many batches are on the devices, that in use included: 2 for images, whose copying takes longer than
            asking for it does. 0 leaves it to the step: for a few numbers the asking would take half a millisecond.
        calls: how many steps each call of the compiled function makes. The batches of S > 1 steps come as one, of
            [local devices, S, b / local devices, ...]. None: one each.
    """
    single = map(shard, batches)
    shards = single if calls is None else (_stack(list(itertools.islice(single, steps))) for steps in calls)
    return jax_utils.prefetch_to_device(shards, count, **_AS_PMAP) if count else shards


def _stack(shards: Sequence[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    first, *others = shards
    return {name: np.stack([s[name] for s in shards], axis=1) for name in first} if others else first


def limit_ahead(results: Sequence[Any], ahead: int | None) -> None:
    """Waits until at most `ahead` of the steps are under way whose results these are, in order; None for no limit.

    A step that waits for its turn holds its batch in the devices' memory.
    """
    if ahead is not None and len(results) > ahead:
        jax.block_until_ready(results[-1 - ahead])


def total(count: int) -> int:
    """Returns the sum of a number over all processes."""
    return count if jax.process_count() == 1 else int(multihost_utils.process_allgather(np.int64(count)).sum())


def union(texts: Iterable[str]) -> list[str]:
    """Returns what any of the processes says, sorted; all of them must ask."""
    own = sorted(set(texts))
    if jax.process_count() == 1:
        return own
    data = np.frombuffer(json.dumps(own).encode(), np.uint8)
    longest = int(multihost_utils.process_allgather(np.int64(len(data))).max())
    padded = np.pad(data, (0, longest - len(data)), constant_values=ord(" "))
    everyone = multihost_utils.process_allgather(padded)
    return sorted({text for row in everyone for text in json.loads(row.tobytes())})


def of_main(tree: Any) -> Any:
    """Returns what process 0 has, in all processes; all of them must ask, with trees of the same shapes."""
    return tree if jax.process_count() == 1 else multihost_utils.broadcast_one_to_all(tree)


def agree(text: str) -> bool:
    """Whether all processes say the same; all of them must ask."""
    digest = np.frombuffer(hashlib.sha256(text.encode()).digest(), np.uint8)
    return jax.process_count() == 1 or bool((multihost_utils.process_allgather(digest) == digest).all())


def reached_preemption(asked: int) -> bool:
    """Whether all processes leave now, as one of them was sent SIGTERM.

    JAX notices the signal, and the processes agree on a number that none has passed yet. All must ask in the same
    places. Only for processes that have joined by `connect`.

    Args:
        asked: how often this process has asked, this time included.
    """
    return multihost_utils.reached_preemption_sync_point(asked)


def device_memory() -> int:
    """Returns the memory of one device, in bytes: the least of all processes, so that all decide the same by it.

    For CPU devices, an even part of what a process may use.
    """
    memory = _local_device_memory()
    if jax.process_count() == 1:
        return memory
    as_bytes = np.array([memory]).view(np.uint8)  # JAX would cut integers to 32 bits
    return int(multihost_utils.process_allgather(as_bytes).view(np.int64).min())


def _local_device_memory() -> int:
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


def peak_flops() -> float | None:
    """Returns the most operations a second of one device, with 16-bit numbers; None where that is not known."""
    return PEAK_FLOPS.get(jax.devices()[0].device_kind)


def peak_memory() -> int:
    """Returns the most memory that one device has held so far, in bytes; for CPU devices, that this process has."""
    stats = jax.local_devices()[0].memory_stats() or {}
    # Linux counts in KiB, macOS in bytes.
    unit = 1 if sys.platform == "darwin" else 1024
    return stats.get("peak_bytes_in_use") or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def compiled_memory(compiled: Any) -> int | None:
    """Returns what one device needs for a compiled step's arguments, results and intermediate ones, in bytes.

    Memory of arguments that are donated is counted once. None where XLA doesn't say.
    """
    found = compiled.memory_analysis()
    if found is None:
        return None
    sizes = found.argument_size_in_bytes, found.output_size_in_bytes, found.temp_size_in_bytes
    return sum(sizes) - found.alias_size_in_bytes


def set_matmul_precision(name: str) -> None:
    """Sets with how many bits devices multiply float32 from now on: default | high | highest."""
    jax.config.update("jax_default_matmul_precision", None if name == "default" else name)
