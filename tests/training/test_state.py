import copy

import jax
import numpy as np
import optax
import pytest

from cnn_research.models import registry
from cnn_research.training.state import count_parameters, create_state, digest

MODEL = registry.create_model("convnet", 3, filters=(2,), batch_norm="after_conv", dense=(4,))
OPTIMIZER = optax.sgd(0.1, momentum=0.9)


@pytest.fixture(scope="module")
def state():
    return create_state(MODEL, OPTIMIZER, seed=1, image_shape=(6, 6, 1))


@pytest.fixture
def variables():
    rng = np.random.default_rng(0)
    return {
        "params": {
            "conv": {"kernel": rng.normal(size=(3, 2)).astype(np.float32), "bias": np.zeros(2, np.float32)},
            "scale": np.array(1.5, np.float32),
        },
        "batch_stats": {"norm": {"mean": rng.normal(size=6).astype(np.float32)}},
    }


def test_state(state):
    assert state.step == 0 and state.step.dtype == np.int32 and state.step.shape == ()
    assert set(state.params) == {"conv1", "norm1", "dense1", "output"} and set(state.batch_stats) == {"norm1"}
    assert state.variables == {"params": state.params, "batch_stats": state.batch_stats}
    assert {leaf.dtype for leaf in jax.tree.leaves(state.variables)} == {np.dtype("float32")}
    for leaf in jax.tree.leaves(optax.tree.get(state.opt_state, "trace")):
        assert (leaf == 0).all()


def test_network_without_batch_statistics():
    assert create_state(registry.create_model("convnet", 3, filters=()), OPTIMIZER, 0, (4, 4, 1)).batch_stats == {}


def test_initial_state_depends_on_the_seed_alone(state):
    assert digest_of(create_state(MODEL, optax.adam(0.1), seed=1, image_shape=(6, 6, 1))) == digest_of(state)
    # The kernels of the convolution don't depend on the size of the images either.
    larger = create_state(MODEL, OPTIMIZER, seed=1, image_shape=(8, 8, 1))
    np.testing.assert_array_equal(larger.params["conv1"]["kernel"], state.params["conv1"]["kernel"])
    others = [create_state(MODEL, OPTIMIZER, seed=seed, image_shape=(6, 6, 1)) for seed in (0, 2**32 - 1)]
    assert len({digest_of(other) for other in [state, *others]}) == 3


def test_initial_state_does_not_run_what_is_too_small():
    with pytest.raises(ValueError, match="conv1"):
        create_state(registry.create_model("convnet", 3, padding=("valid",)), OPTIMIZER, 0, (2, 2, 1))


def test_parameter_count(state):
    # conv 3x3x1x2 + 2 - its bias, which the normalisation takes over; norm 2 + 2; 3x3x2 inputs x 4 + 4; 4 x 3 + 3
    assert count_parameters(state.params) == 18 + 4 + 76 + 15
    lenet = registry.create_model("lenet5", 10)
    assert count_parameters(create_state(lenet, OPTIMIZER, 0, (32, 32, 1)).params) == 61_706
    assert count_parameters({}) == 0


def digest_of(state):
    return digest(jax.tree.map(np.asarray, state.variables))


def test_digest_is_a_sha256(variables):
    assert len(digest(variables)) == 64 and int(digest(variables), 16) >= 0
    assert digest(copy.deepcopy(variables)) == digest(variables)


def test_digest_changes_with_any_bit(variables):
    seen = {digest(variables)}
    flips = 0
    for leaf in jax.tree.leaves(variables):
        raw = leaf.reshape(-1).view(np.uint32)
        for element in range(raw.size):
            for bit in (0, 22, 31):  # the last place of the mantissa, its first, the sign
                raw[element] ^= np.uint32(1 << bit)
                seen.add(digest(variables))
                flips += 1
                raw[element] ^= np.uint32(1 << bit)
    assert len(seen) == flips + 1 == 3 * (6 + 2 + 1 + 6) + 1


def swap(old, new):
    def change(variables):
        variables["params"]["conv"][new] = variables["params"]["conv"].pop(old)

    return change


def set_kernel(function):
    def change(variables):
        variables["params"]["conv"]["kernel"] = function(variables["params"]["conv"]["kernel"])

    return change


@pytest.mark.parametrize(
    "change",
    [
        swap("kernel", "Kernel"),
        swap("bias", "biases"),
        set_kernel(lambda k: k.astype(np.float64)),
        set_kernel(lambda k: k.view(np.int32)),  # the same bytes
        set_kernel(lambda k: k.reshape(2, 3)),
        set_kernel(lambda k: k.reshape(3, 2, 1)),
        set_kernel(lambda k: np.ascontiguousarray(k.T).reshape(3, 2)),
        lambda v: v["params"].pop("scale"),
        lambda v: v["batch_stats"].update(extra=np.zeros(0, np.float32)),
        lambda v: v.update(params=v["batch_stats"], batch_stats=v["params"]),
    ],
)
def test_digest_changes_with_name_type_and_shape(variables, change):
    before = digest(variables)
    change(variables)
    assert digest(variables) != before


def test_digest_does_not_change_with_order_or_memory_layout(variables):
    def reverse(tree):
        return {k: reverse(v) for k, v in reversed(tree.items())} if isinstance(tree, dict) else tree

    backwards = reverse(variables)
    assert list(backwards) == ["batch_stats", "params"]
    assert digest(backwards) == digest(variables)
    fortran = jax.tree.map(lambda leaf: leaf.copy(order="F"), variables)
    assert not fortran["params"]["conv"]["kernel"].flags.c_contiguous and digest(fortran) == digest(variables)
