import numpy as np
import optax
import pytest
from configs_for_tests import changed
from flax.traverse_util import flatten_dict

from cnn_research.errors import UserError
from cnn_research.training import parameters
from cnn_research.training.optimizers import create_optimizer

PARAMS = {
    "stem": {"conv1": {"kernel": np.ones((3, 3, 1, 2)), "bias": np.ones(2)}, "norm1": {"scale": np.ones(2)}},
    "layer1": {"conv10": {"kernel": np.ones((2, 2))}},
    "head": {"kernel": np.ones((2, 2)), "bias": np.ones(2), "slope": np.ones(())},
}
STATISTICS = {"stem": {"norm1": {"mean": np.ones(2), "var": np.ones(2)}}, "layer1": {"norm": {"mean": np.ones(2)}}}


def paths(marked):
    """The paths of what is marked, sorted."""
    return sorted(path for path, mark in flatten_dict(marked, sep="/").items() if mark)


def test_kernels_are_what_has_more_than_one_axis():
    assert paths(parameters.kernels(PARAMS)) == ["head/kernel", "layer1/conv10/kernel", "stem/conv1/kernel"]


@pytest.mark.parametrize(
    ("patterns", "found"),
    [
        ((), []),
        (("conv1",), ["layer1/conv10/kernel", "stem/conv1/bias", "stem/conv1/kernel"]),
        (("conv1/",), ["stem/conv1/bias", "stem/conv1/kernel"]),
        (("^conv1/",), []),
        (("^head/kernel$", "scale"), ["head/kernel", "stem/norm1/scale"]),
        (("^(?!head)",), ["layer1/conv10/kernel", "stem/conv1/bias", "stem/conv1/kernel", "stem/norm1/scale"]),
    ],
    ids=str,
)
def test_frozen(patterns, found):
    assert paths(parameters.frozen(PARAMS, patterns)) == found


def test_frozen_statistics():
    assert paths(parameters.frozen(STATISTICS, ("^stem/",))) == ["stem/norm1/mean", "stem/norm1/var"]
    assert paths(parameters.frozen(STATISTICS, ("^(?!head)",))) == sorted(flatten_dict(STATISTICS, sep="/"))
    assert parameters.frozen({}, ("conv",)) == {}


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"freeze": ("^stem/", "layr1")}, "config.optimizer.freeze: 'layr1' is .*; near are .*layer1"),
        ({"freeze": ("conv1/kernal",)}, "freeze: 'conv1/kernal' .*; near are .*stem/conv1/kernel"),
        ({"freeze": ("^zzz",)}, r"freeze: '\^zzz' .*; there are head, layer1, stem$"),
        ({"learning_rate_multipliers": ("^head=10", "haed=2")}, "learning_rate_multipliers: 'haed' .* near are .*head"),
        ({"freeze": ("^(?!head)", "^head")}, "freeze=.* leaves no parameter to train"),
        ({"freeze": ("",)}, "leaves no parameter to train"),
        # What is frozen may well have a multiplier, so that freezing more needs no other change.
        ({"freeze": ("^stem",), "learning_rate_multipliers": ("^stem=0.1",)}, None),
    ],
    ids=str,
)
def test_patterns_that_say_nothing_about_the_network(fields, says):
    optimizer = create_optimizer(
        changed(**{f"optimizer__{k}": v for k, v in fields.items()}).optimizer, optax.constant_schedule(0.1)
    )
    if says is None:
        optimizer.init(PARAMS)
        return
    with pytest.raises(UserError, match=says) as caught:
        optimizer.init(PARAMS)
    assert len(str(caught.value).splitlines()) == 1


def test_multipliers():
    found = parameters.multipliers(PARAMS, ("^head/b=2", "head=1e-1", "kernel|norm1=0.5"))
    assert found["head"] == {"kernel": 0.1, "bias": 2.0, "slope": 0.1}
    assert found["stem"] == {"conv1": {"kernel": 0.5, "bias": 1.0}, "norm1": {"scale": 0.5}}
