import os
import socket

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cnn_research.errors import UserError
from cnn_research.training import parallel

DEVICES = 8


def double(state, batch):
    total = jax.lax.psum(jnp.sum(batch["x"]), parallel.AXIS)
    return {"w": state["w"] * 2, "n": state["n"] + 1}, total


@pytest.fixture
def state():
    return {"w": np.arange(6, dtype=np.float32).reshape(2, 3), "n": np.int32(5)}


def test_there_are_eight_devices_and_one_process():
    assert parallel.device_count() == DEVICES and parallel.is_main()


def test_replicate_and_to_host(state):
    replicated = parallel.replicate(state)
    assert replicated["w"].shape == (DEVICES, 2, 3) and replicated["n"].shape == (DEVICES,)
    assert replicated["w"].sharding.device_set == set(jax.devices())
    assert all(shard.data.size == 6 for shard in replicated["w"].addressable_shards)
    host = parallel.to_host(replicated)
    for name, leaf in state.items():
        assert type(host[name]) is np.ndarray and host[name].dtype == leaf.dtype
        np.testing.assert_array_equal(host[name], leaf)


def test_to_host_of_what_a_step_returns(state):
    step = parallel.pmap_step(double, donate_state=False)
    new, total = step(parallel.replicate(state), parallel.shard({"x": np.arange(16.0, dtype=np.float32)}))
    host = parallel.to_host([new, {"total": total}])
    np.testing.assert_array_equal(host[0]["w"], state["w"] * 2)
    assert host[0]["n"].shape == () and host[0]["n"] == 6
    assert host[1]["total"] == 120  # of all devices together


def test_a_step_is_compiled_once(state):
    # What replicate and prefetch put on the devices is laid out as what a step returns.
    compiled = []
    jax.monitoring.register_event_duration_secs_listener(lambda event, *_, **__: compiled.append(event))
    step = parallel.pmap_step(double, donate_state=True)
    batches = parallel.prefetch(iter([{"x": np.ones(8, np.float32)}] * 4), 2)
    new, total = step(parallel.replicate(state), next(batches))
    first = sum("backend_compile" in event for event in compiled)
    for batch in batches:
        new, total = step(new, batch)
    jax.block_until_ready(new)
    assert first > 0 and sum("backend_compile" in event for event in compiled) == first


def test_to_host_takes_the_first_device():
    each = jax.pmap(lambda x: x * 10)(np.arange(DEVICES, dtype=np.float32))
    assert parallel.to_host(each) == 0


def test_donation_takes_the_state_and_leaves_the_host_copy(state):
    step = parallel.pmap_step(double, donate_state=True)
    replicated, batch = parallel.replicate(state), parallel.shard({"x": np.ones(8, np.float32)})
    host = parallel.to_host(replicated)
    new, _ = step(replicated, batch)
    jax.block_until_ready(new)
    assert replicated["w"].is_deleted() and replicated["n"].is_deleted()
    with pytest.raises(RuntimeError, match="deleted|donated"):
        np.asarray(replicated["w"])
    np.testing.assert_array_equal(host["w"], state["w"])
    assert host["n"] == 5

    # Many steps over, which reuse the memory again and again.
    copies = []
    for _ in range(5):
        copies.append(parallel.to_host(new))
        new, _ = step(new, batch)
    jax.block_until_ready(new)
    for k, copy in enumerate(copies):
        np.testing.assert_array_equal(copy["w"], state["w"] * 2 ** (k + 1))
        assert copy["n"] == 6 + k


def test_no_donation_leaves_the_state(state):
    replicated = parallel.replicate(state)
    new, _ = parallel.pmap_step(double, donate_state=False)(replicated, parallel.shard({"x": np.ones(8, np.float32)}))
    jax.block_until_ready(new)
    np.testing.assert_array_equal(parallel.to_host(replicated)["w"], state["w"])


def test_shard_cuts_in_order():
    batch = {"image": np.arange(16 * 2 * 3).reshape(16, 2, 3), "index": np.arange(16)}
    shares = parallel.shard(batch)
    assert shares["image"].shape == (DEVICES, 2, 2, 3)
    np.testing.assert_array_equal(shares["index"], np.arange(16).reshape(DEVICES, 2))
    np.testing.assert_array_equal(shares["image"].reshape(16, 2, 3), batch["image"])


def test_each_process_has_its_share(monkeypatch):
    monkeypatch.setattr(jax, "local_device_count", lambda: 2)
    parts = []
    for process in range(4):
        monkeypatch.setattr(jax, "process_index", lambda process=process: process)
        assert parallel.is_main() == (process == 0)
        batch = {"index": np.arange(24)[parallel.share(24)]}
        parts.append(parallel.shard(batch)["index"])
    assert [part.shape for part in parts] == [(2, 3)] * 4
    np.testing.assert_array_equal(np.concatenate(parts).ravel(), np.arange(24))


@pytest.mark.parametrize("size", [1, 7, 9, 20])
def test_share_refuses_what_cannot_be_shared(size):
    with pytest.raises(ValueError, match=f"{size} examples can't be split over 8 devices"):
        parallel.share(size)


def test_prefetch_puts_batches_on_the_devices_in_order():
    asked = []

    def batches():
        for k in range(5):
            asked.append(k)
            yield {"image": np.full((16, 2, 3), k, np.uint8), "label": np.arange(16)}

    result = parallel.prefetch(batches(), 2)
    first = next(result)
    assert asked == [0, 1]  # one is ready while the first is used
    assert first["image"].shape == (8, 2, 2, 3)
    assert {shard.device for shard in first["image"].addressable_shards} == set(jax.devices())
    np.testing.assert_array_equal(first["label"].reshape(16), np.arange(16))
    assert [int(batch["image"][0, 0, 0, 0]) for batch in result] == [1, 2, 3, 4]
    total = parallel.pmap_step(lambda batch: jax.lax.psum(batch["label"].sum(), parallel.AXIS), donate_state=False)
    assert parallel.to_host(total(first)) == sum(range(16))


def test_prefetch_of_nothing_leaves_batches_on_the_host():
    batches = [{"index": np.arange(16) + k} for k in range(3)]
    found = list(parallel.prefetch(iter(batches), 0))
    assert all(type(batch["index"]) is np.ndarray and batch["index"].shape == (8, 2) for batch in found)
    assert [batch["index"][0, 0] for batch in found] == [0, 1, 2]


def test_limit_ahead_waits_for_the_step_before():
    class Result:
        waited = False

        def block_until_ready(self):
            self.waited = True

    results = [Result() for _ in range(6)]
    parallel.limit_ahead(results, None)
    parallel.limit_ahead(results[:4], 4)
    assert not any(result.waited for result in results)
    parallel.limit_ahead(results, 4)
    assert [result.waited for result in results] == [False, True, False, False, False, False]


def test_total_and_memory():
    assert parallel.total(7) == 7
    assert 2**27 < parallel.device_memory() < 2**50


@pytest.mark.parametrize("size", [1, 7, 9, 20])
def test_shard_refuses_what_cannot_be_shared(size):
    with pytest.raises(ValueError):
        parallel.shard({"index": np.arange(size)})


@pytest.mark.parametrize(("size", "rounded"), [(1, 8), (7, 8), (8, 8), (9, 16), (512, 512), (513, 520)])
def test_round_up(size, rounded):
    assert parallel.round_up(size) == rounded


# ---------------------------------------------------------------------------------------------------- many hosts


@pytest.fixture
def asked(monkeypatch):
    """What jax.distributed.initialize is asked for; in a process that stands on no cluster."""
    for name in ("TPU_ML_PLATFORM", "SLURM_NTASKS", "SLURM_STEP_NODELIST"):
        monkeypatch.delenv(name, raising=False)
    calls = []
    monkeypatch.setattr(jax.distributed, "initialize", lambda **given: calls.append(given))
    return calls


@pytest.fixture
def port():
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return probe.getsockname()[1]


TIMEOUTS = {"initialization_timeout": 300, "heartbeat_timeout_seconds": 30}


def test_a_process_alone_asks_nobody(asked):
    parallel.connect()
    parallel.connect(num_processes=1)
    parallel.connect("10.0.0.1:1234", 1, 0)
    assert asked == [] and not parallel.is_connected()


def test_the_coordinator_and_another_process(asked, port):
    parallel.connect(f"localhost:{port}", 2, 0)
    with socket.create_server(("localhost", port)):
        parallel.connect(f"localhost:{port}", 2, 1, local_device_ids=[0, 1])
    common = {"coordinator_address": f"localhost:{port}", "num_processes": 2} | TIMEOUTS
    assert asked == [common | {"process_id": 0}, common | {"process_id": 1, "local_device_ids": [0, 1]}]


@pytest.mark.parametrize(
    ("environment", "detected"),
    [
        ({"SLURM_STEP_NODELIST": "node[1-2]", "SLURM_NTASKS": "2"}, True),
        ({"SLURM_STEP_NODELIST": "node1", "SLURM_NTASKS": "1"}, False),  # one task
        ({"SLURM_NTASKS": "4"}, False),  # a batch script that starts Python without srun
        ({"TPU_ML_PLATFORM": "JAX"}, True),
        ({"KUBERNETES_SERVICE_HOST": "10.0.0.1", "OMPI_COMM_WORLD_SIZE": "2"}, False),
    ],
)
def test_clusters_are_left_to_jax(asked, monkeypatch, environment, detected):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    parallel.connect(local_device_ids=[0, 1] if detected else None)
    assert asked == ([{"local_device_ids": [0, 1]} | TIMEOUTS] if detected else [])
    parallel.connect(num_processes=1)  # alone in spite of it
    assert len(asked) == detected


@pytest.mark.parametrize(
    ("error", "told"), [(ValueError("coordinator_address should be defined."), False), (RuntimeError("no DNS"), True)]
)
def test_a_cluster_that_cannot_be_joined(asked, monkeypatch, error, told):
    def fail(**_):
        raise error

    monkeypatch.setattr(jax.distributed, "initialize", fail)
    monkeypatch.setenv("TPU_ML_PLATFORM", "JAX")
    if told:
        with pytest.raises(UserError, match=r"can't be joined \(no DNS\); --num_processes=1 trains on this one alone"):
            parallel.connect()
    else:
        parallel.connect()  # a machine with TPU chips of its own


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"process_id": 0}, "--coordinator_address and --num_processes must be given too"),
        ({"coordinator_address": "h:1", "num_processes": 2}, "--process_id must be given too"),
        ({"num_processes": 2, "process_id": 1}, "--coordinator_address must be given too"),
        ({"coordinator_address": "h", "num_processes": 2, "process_id": 1}, "HOST:PORT"),
        ({"coordinator_address": "h:", "num_processes": 2, "process_id": 1}, "HOST:PORT"),
        ({"coordinator_address": ":1", "num_processes": 2, "process_id": 1}, "HOST:PORT"),
        ({"coordinator_address": "h:70000", "num_processes": 2, "process_id": 1}, "HOST:PORT"),
        ({"coordinator_address": "h:1", "num_processes": 2, "process_id": 2}, "numbered from 0"),
        ({"coordinator_address": "h:1", "num_processes": 2, "process_id": -1}, "numbered from 0"),
        ({"coordinator_address": "h:1", "num_processes": 0, "process_id": 0}, "numbered from 0"),
        ({"local_device_ids": [0, 1]}, "alone, set CUDA_VISIBLE_DEVICES=0,1"),
        ({"num_processes": 1, "local_device_ids": [2]}, "alone, set CUDA_VISIBLE_DEVICES=2"),
    ],
)
def test_what_cannot_be_a_run_on_several_hosts(asked, given, words):
    with pytest.raises(UserError, match=words) as caught:
        parallel.connect(**given)
    assert "\n" not in str(caught.value) and asked == []


def test_a_coordinator_that_nobody_hears(asked, monkeypatch, port):
    monkeypatch.setattr(parallel, "START_TIMEOUT", 0.1)
    with pytest.raises(UserError, match=f"localhost:{port}: process 0 didn't answer within 0.1 s"):
        parallel.connect(f"localhost:{port}", 2, 1)
    assert asked == []


def test_a_port_that_is_taken(asked, port):
    with socket.create_server(("", port)), pytest.raises(UserError, match="can't listen there.*choose another port"):
        parallel.connect(f"localhost:{port}", 2, 0)
    assert asked == []


def test_one_process_agrees_with_itself():
    assert parallel.agree("anything")


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("", "--xla_gpu_deterministic_ops=true"),
        ("--xla_a=1", "--xla_a=1 --xla_gpu_deterministic_ops=true"),
        ("--xla_gpu_deterministic_ops=true --xla_a=1", "--xla_gpu_deterministic_ops=true --xla_a=1"),
    ],
)
def test_deterministic_gpus(monkeypatch, before, after):
    monkeypatch.setenv("XLA_FLAGS", before)
    parallel.initialise("")
    assert os.environ["XLA_FLAGS"] == before
    parallel.initialise("", deterministic=True)
    assert os.environ["XLA_FLAGS"] == after
