"""The imported networks against torchvision's own, with the same random weights and the same images.

Logits agree within max |a - b| <= 1e-4 max |b|, in float32.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

from cnn_research.models import googlenet
from cnn_research.models.registry import create_model
from cnn_research.models.torch_file import read_state_dict
from cnn_research.models.torchvision import import_weights

pytestmark = pytest.mark.parity

TOLERANCE = 1e-4
# 75x106: not square, so that height and width can't be mistaken for each other; odd, so that every pool and every
# strided convolution has something left over; and adaptive pooling gets maps that are smaller than its output.
SIZES = ((224, 224), (75, 106))
# Ours -> torchvision's, where they differ.
NAMES = {"alexnet_owt": "alexnet", "googlenet_bn": "googlenet"}


def random_network_of(random_network, name):
    # googlenet: otherwise it warns, and draws initial values for a minute.
    return random_network(NAMES.get(name, name), **({"init_weights": False} if name == "googlenet_bn" else {}))


def initial_shapes(model):
    return jax.eval_shape(model.init, jax.random.key(0), jax.ShapeDtypeStruct((1, 224, 224, 3), jnp.float32))


def apply(model, variables, images, **kwargs):
    # At this level XLA compiles in seconds what it runs once, and computes the same.
    forward = jax.jit(
        lambda variables, images: model.apply(variables, images, **kwargs),
        compiler_options={"xla_backend_optimization_level": 0},
    )
    return jax.tree.map(np.asarray, forward(variables, images))


def channels_first(torch, images):
    return torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2)))


def assert_close(ours, theirs):
    assert ours.shape == theirs.shape
    assert np.isfinite(theirs).all()
    assert np.std(theirs) > 0.05 * np.abs(theirs).max() > 0  # something other than one constant
    assert np.abs(ours - theirs).max() <= TOLERANCE * np.abs(theirs).max()


@pytest.mark.parametrize(
    "name",
    [
        "alexnet_owt",
        "vgg11",
        "vgg16_bn",
        "vgg19",
        "googlenet_bn",
        "resnet18",
        "resnet34",
        "resnet50",
        "resnet101",
        "resnet152",
        "densenet121",
        "densenet161",
        "densenet169",
        "densenet201",
    ],
)
def test_logits_are_torchvisions(name, torch, random_network, random_images, record_property):
    network = random_network_of(random_network, name)
    model = create_model(name, 1000)
    variables, report = import_weights(name, network.state_dict(), initial_shapes(model))
    assert (report.missing, report.unexpected, report.dropped) == ((), (), ())
    counters = [key for key in network.state_dict() if key.endswith("num_batches_tracked")]
    assert len(report.loaded) == len(network.state_dict()) - len(counters)
    for size in SIZES:
        images = random_images(2, *size)
        with torch.inference_mode():
            theirs = network(channels_first(torch, images)).numpy()
        ours = apply(model, variables, images)
        record_property(f"difference_{size[0]}x{size[1]}", float(np.abs(ours - theirs).max() / np.abs(theirs).max()))
        assert_close(ours, theirs)


def test_auxiliary_logits_are_torchvisions(torch, random_network, random_images, monkeypatch):
    """In training, as heads run only there, but without dropout."""
    network = random_network_of(random_network, "googlenet_bn")
    for module in network.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    monkeypatch.setattr(googlenet, "_HEAD_DROPOUT", 0.0)
    model = create_model("googlenet_bn", 1000, dropout_rate=0.0)
    variables, _ = import_weights("googlenet_bn", network.state_dict(), initial_shapes(model))
    images = random_images(4, *SIZES[1])
    with torch.no_grad():
        theirs = network.train()(channels_first(torch, images))
    logits, changed = apply(model, variables, images, train=True, mutable=["batch_stats", "auxiliary"])
    assert_close(logits, theirs.logits.numpy())
    assert_close(changed["auxiliary"]["aux1_logits"][0], theirs.aux_logits1.numpy())
    assert_close(changed["auxiliary"]["aux2_logits"][0], theirs.aux_logits2.numpy())


def test_statistics_after_a_step_in_training(torch, random_network, random_images):
    """PyTorch: running = 0.9 running + 0.1 batch's, where the batch's variance is the unbiased one, n / (n - 1) times
    the one that normalises. Flax averages the latter.
    """
    network = random_network("resnet18")
    model = create_model("resnet18", 1000)
    before, _ = import_weights("resnet18", network.state_dict(), initial_shapes(model))

    counts = {}  # of the values that each normalisation averages
    for name, module in network.named_modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.register_forward_hook(
                lambda module, inputs, output, name=name: counts.update({name: inputs[0][:, 0].numel()})
            )
    images = random_images(4, 64, 96)
    with torch.no_grad():
        logits = network.train()(channels_first(torch, images)).numpy()
    ours, changed = apply(model, before, images, train=True, mutable=["batch_stats"])
    assert_close(ours, logits)

    after, _ = import_weights("resnet18", network.state_dict(), before)
    in_place_of_variances = {
        key: torch.full_like(value, counts[key.removesuffix(".running_var")]) if key.endswith("running_var") else value
        for key, value in network.state_dict().items()
    }
    n, _ = import_weights("resnet18", in_place_of_variances, before)
    old, theirs, n, ours = (traverse_util.flatten_dict(tree["batch_stats"]) for tree in (before, after, n, changed))
    assert len(ours) == 40
    for path, value in ours.items():
        factor = n[path] / (n[path] - 1) if path[-1] == "var" else 1.0
        expected = 0.9 * old[path] + (value - 0.9 * old[path]) * factor
        np.testing.assert_allclose(expected, theirs[path], rtol=0, atol=1e-5 * np.abs(theirs[path]).max())


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize("wrapped", [False, True], ids=["state_dict", "checkpoint"])
def test_reads_what_torch_saves(zipped, protocol, wrapped, torch, tmp_path):
    generator = torch.Generator().manual_seed(0)
    base = torch.randn(4, 6, generator=generator)
    layers = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4), torch.nn.Linear(5, 6))
    tensors = {
        **layers.state_dict(),
        "transposed": base.T,
        "part of the same storage": base[1:, 2::2],
        "channels last": torch.randn(2, 3, 4, 5, generator=generator).to(memory_format=torch.channels_last),
        "parameter": torch.nn.Parameter(base[0].clone()),
        "float64": base.double(),
        "float16": base.half(),
        "bfloat16": base.bfloat16(),
        "int8": torch.tensor([-1, 2], dtype=torch.int8),
        "bool": base > 0,
        "number": torch.tensor(2.5),
        "empty": torch.zeros(0, 3),
    }
    saved = tensors
    if wrapped:
        state_dict = {f"module.{name}": tensor for name, tensor in tensors.items()}
        saved = {"epoch": 90, "lr": 0.1, "best": None, "state_dict": state_dict, "optimizer": {"steps": [base, 1]}}
    path = tmp_path / "saved.pth"
    torch.save(saved, path, pickle_protocol=protocol, _use_new_zipfile_serialization=zipped)
    read = read_state_dict(path)
    assert list(read) == list(tensors)
    for name, tensor in tensors.items():
        expected = tensor.detach().float() if name in ("float16", "bfloat16") else tensor.detach()
        assert read[name].dtype == expected.numpy().dtype, name
        np.testing.assert_array_equal(read[name], expected.numpy(), name, strict=True)


def test_refuses_a_saved_module(torch, tmp_path):
    path = tmp_path / "module.pth"
    torch.save(torch.nn.Linear(2, 3), path)
    with pytest.raises(ValueError, match="torch.nn.modules.linear.Linear"):
        read_state_dict(path)
