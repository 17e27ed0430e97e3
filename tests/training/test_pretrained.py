"""Weights to start from: which tensors are taken, adapted, left new or refused."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import safetensors.numpy
from configs_for_tests import changed
from flax.traverse_util import flatten_dict

from cnn_research.data.resident import ResidentFeed
from cnn_research.data.sources import open_source
from cnn_research.errors import UserError
from cnn_research.models import registry
from cnn_research.training import parallel, pretrained
from cnn_research.training.checkpoints import Checkpoints
from cnn_research.training.setup import Experiment
from cnn_research.training.state import TrainState, create_state


def make(name, classes, shape, seed):
    fields = {"filters": (4,), "dense": (6,), "batch_norm": "after_conv"} if name == "convnet" else {}
    model = registry.create_model(name, classes, **fields)
    return model, jax.tree.map(np.asarray, create_state(model, optax.sgd(0.1), seed, shape).variables)


@pytest.fixture
def earlier(tmp_path):
    """A run of a convnet on grey images of 10 classes, with two checkpoints of which the older is the best."""
    config = changed(checkpoint__keep=2).checkpoint
    states = {}
    with Checkpoints(tmp_path / "checkpoints", config) as checkpoints:
        for step, accuracy in ((1, 0.9), (2, 0.5)):
            _, variables = make("convnet", 10, (8, 8, 1), seed=step)
            states[step] = variables
            state = TrainState(step=np.int32(step), **variables, opt_state={})
            checkpoints.save(state, {"config": {}}, {"accuracy": accuracy, "loss": 1.0})
            checkpoints.wait()
    return tmp_path, states


def load(weights, name, model, variables, size=(8, 8), **init):
    config = changed(init__weights=str(weights), **{f"init__{key}": value for key, value in init.items()}).init
    return flatten_dict(pretrained.load(config, name, model, size, variables), sep="/")


def assert_taken(found, source, but=()):
    source = flatten_dict(source, sep="/")
    assert found.keys() == source.keys()
    for path in source.keys() - set(but):
        np.testing.assert_array_equal(found[path], source[path], err_msg=path)


HEAD = ("params/output/kernel", "params/output/bias")


@pytest.mark.parametrize(("checkpoint", "step"), [("latest", 2), ("best", 1)])
def test_a_run_of_the_same_network(earlier, checkpoint, step):
    folder, states = earlier
    model, variables = make("convnet", 10, (8, 8, 1), seed=7)
    assert_taken(load(folder, "convnet", model, variables, checkpoint=checkpoint), states[step])


@pytest.mark.parametrize(("classes", "head"), [(3, "keep"), (3, "new"), (10, "new")])
def test_a_new_head_has_its_initial_values(earlier, classes, head, caplog):
    folder, states = earlier
    model, variables = make("convnet", classes, (8, 8, 1), seed=7)
    with caplog.at_level("INFO"):
        found = load(folder, "convnet", model, variables, head=head)
    assert_taken(found, states[2], but=HEAD)
    for path in HEAD:
        np.testing.assert_array_equal(found[path], flatten_dict(variables, sep="/")[path])
    assert "new: params/output" in caplog.text


@pytest.mark.parametrize("channels", [2, 3])
def test_images_of_other_channels(earlier, channels):
    folder, states = earlier
    model, variables = make("convnet", 10, (8, 8, channels), seed=7)
    found = load(folder, "convnet", model, variables)
    assert_taken(found, states[2], but=["params/conv1/kernel"])
    # Equal channels give what the grey image gave.
    grey = np.random.default_rng(0).normal(size=(1, 8, 8, 1)).astype(np.float32)
    same = {"window_strides": (1, 1), "padding": "SAME", "dimension_numbers": ("NHWC", "HWIO", "NHWC")}
    expected = jax.lax.conv_general_dilated(grey, states[2]["params"]["conv1"]["kernel"], **same)
    coloured = np.repeat(grey, channels, axis=-1)
    response = jax.lax.conv_general_dilated(coloured, found["params/conv1/kernel"], **same)
    np.testing.assert_allclose(response, expected, rtol=1e-4, atol=1e-5)


def test_storage_whose_package_is_not_installed(monkeypatch):
    class InBucket:
        def __init__(self, path): ...

        def expanduser(self):
            return self

        def is_dir(self):
            raise ImportError("Please install gcsfs")

    model, variables = make("convnet", 10, (8, 8, 1), seed=7)
    monkeypatch.setattr(pretrained.epath, "Path", InBucket)
    with pytest.raises(UserError, match=r"config\.init\.weights='gs://bucket/run': Please install gcsfs"):
        load("gs://bucket/run", "convnet", model, variables)


@pytest.mark.parametrize(
    ("name", "shape", "words"),
    [
        ("lenet5", (32, 32, 1), "there is no params/C1"),
        ("convnet", (12, 12, 1), "params/dense1/kernel has the shape"),
    ],
)
def test_another_network(earlier, name, shape, words):
    folder, _ = earlier
    model, variables = make(name, 10, shape, seed=7)
    with pytest.raises(UserError, match=r"^config\.init\.weights=") as error:
        load(folder, name, model, variables, size=shape[:2])
    assert words in str(error.value) and "another network's" in str(error.value)


@pytest.mark.parametrize(("weights", "words"), [("nothing", "neither a folder"), (".", "no latest checkpoint")])
def test_nothing_to_load(tmp_path, weights, words):
    model, variables = make("convnet", 10, (8, 8, 1), seed=7)
    with pytest.raises(UserError, match=words):
        load(tmp_path / weights, "convnet", model, variables)


def resnet18_file(path):
    """A file as torchvision's, of random numbers."""
    rng, tensors = np.random.default_rng(0), {}

    def conv(name, *shape):
        tensors[f"{name}.weight"] = rng.normal(size=shape, scale=0.1).astype(np.float32)

    def norm(name, channels):
        for leaf in ("weight", "bias", "running_mean", "running_var"):
            tensors[f"{name}.{leaf}"] = rng.uniform(0.5, 1.5, channels).astype(np.float32)

    conv("conv1", 64, 3, 7, 7)
    norm("bn1", 64)
    inputs = 64
    for stage, channels in enumerate((64, 128, 256, 512), 1):
        for block in range(2):
            base = f"layer{stage}.{block}"
            conv(f"{base}.conv1", channels, inputs, 3, 3)
            conv(f"{base}.conv2", channels, channels, 3, 3)
            norm(f"{base}.bn1", channels)
            norm(f"{base}.bn2", channels)
            if stage > 1 and block == 0:
                conv(f"{base}.downsample.0", channels, inputs, 1, 1)
                norm(f"{base}.downsample.1", channels)
            inputs = channels
    conv("fc", 1000, 512)
    tensors["fc.bias"] = rng.normal(size=1000).astype(np.float32)
    safetensors.numpy.save_file(tensors, path)
    return tensors


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_a_file_of_torchvisions(tmp_path, channels):
    tensors = resnet18_file(tmp_path / "resnet18.safetensors")
    model = registry.create_model("resnet18", 5)
    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 64, 64, channels)))
    variables = jax.tree.map(lambda leaf: np.full(leaf.shape, 7.0, leaf.dtype), shapes)
    found = load(tmp_path / "resnet18.safetensors", "resnet18", model, variables, size=(64, 64))
    expected = tensors["conv1.weight"].transpose(2, 3, 1, 0)
    expected = {1: expected.sum(2, keepdims=True), 3: expected, 4: expected[:, :, [0, 1, 2, 0]] * 0.75}[channels]
    np.testing.assert_allclose(found["params/conv1/kernel"], expected, rtol=1e-5)
    assert (found["params/output/kernel"] == 7).all() and found["params/output/kernel"].shape == (512, 5)
    changed_leaves = sum(not (leaf == 7).any() for leaf in found.values())
    assert changed_leaves == len(tensors) - 2
    # No tensor of the network is left as it was but the head.
    assert {path for path, leaf in found.items() if (leaf == 7).all()} == set(HEAD)


def test_frozen_parameters_and_statistics_stay_to_the_bit(earlier):
    """As in fine-tuning: the convolution and its normalisation come from an earlier run and stay, the rest learns."""
    folder, states = earlier
    config = changed(
        model__name="convnet", model__filters=(4,), model__dense=(6,), model__batch_norm="after_conv",
        init__weights=str(folder), optimizer__freeze=("^conv1/", "^norm1/"), optimizer__weight_decay=0.1,
        batch_size=32, ema_decay=0.5,
    )  # fmt: skip
    feed = ResidentFeed(open_source("digits", "train"))

    def after_three_steps(freeze_batch_stats):
        config.freeze_batch_stats = freeze_batch_stats
        experiment = Experiment(config, feed)
        step, state = experiment.train_step(), parallel.replicate(experiment.initial_state())
        arrays, key = parallel.replicate(feed.arrays), parallel.replicate(jax.random.key(0))
        for _, batch in zip(range(3), feed.train_batches(0, 32), strict=False):
            state, _ = step(state, arrays, parallel.shard(batch), key)
        return parallel.to_host(state)

    for freeze_batch_stats in (True, False):
        state = after_three_steps(freeze_batch_stats)
        for variables in (state.variables, state.averaged):
            found = flatten_dict(variables, sep="/")
            for path, before in flatten_dict(states[2], sep="/").items():
                stays = "1/" in path and "dense1" not in path and (freeze_batch_stats or "params" in path)
                assert np.array_equal(found[path], before) == stays, path
