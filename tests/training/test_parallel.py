import jax
import jax.numpy as jnp
import numpy as np
import pytest

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


def test_shard_gives_each_process_its_part(monkeypatch):
    monkeypatch.setattr(jax, "local_device_count", lambda: 2)
    parts = []
    for process in range(4):
        monkeypatch.setattr(jax, "process_index", lambda process=process: process)
        assert parallel.is_main() == (process == 0)
        parts.append(parallel.shard({"index": np.arange(24)})["index"])
    assert [part.shape for part in parts] == [(2, 3)] * 4
    np.testing.assert_array_equal(np.concatenate(parts).ravel(), np.arange(24))


@pytest.mark.parametrize("size", [1, 7, 9, 20])
def test_shard_refuses_what_cannot_be_shared(size):
    with pytest.raises(ValueError):
        parallel.shard({"index": np.arange(size)})


@pytest.mark.parametrize(("size", "rounded"), [(1, 8), (7, 8), (8, 8), (9, 16), (512, 512), (513, 520)])
def test_round_up(size, rounded):
    assert parallel.round_up(size) == rounded
