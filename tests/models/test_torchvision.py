"""torchvision's names and shapes, written down here from its source, against what the networks have.

tests/parity compares logits with torchvision's own networks.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from flax import traverse_util

from cnn_research.models import alexnet, vgg
from cnn_research.models.registry import create_model, list_models
from cnn_research.models.torch_file import read_state_dict
from cnn_research.models.torchvision import import_weights, importable_models

# -- torchvision's networks: {name: shape}, in its order


def layer(name, *weight, bias=True):
    return {f"{name}.weight": weight, **({f"{name}.bias": weight[:1]} if bias else {})}


def batch_norm(name, channels):
    leaves = ("weight", "bias", "running_mean", "running_var")
    return {**{f"{name}.{leaf}": (channels,) for leaf in leaves}, f"{name}.num_batches_tracked": ()}


def alexnet_tensors(units, classes):
    features = {0: (64, 3, 11, 11), 3: (192, 64, 5, 5), 6: (384, 192, 3, 3), 8: (256, 384, 3, 3), 10: (256, 256, 3, 3)}
    tensors = {}
    for number, shape in features.items():
        tensors |= layer(f"features.{number}", *shape)
    for number, shape in {1: (units, 256 * 36), 4: (units, units), 6: (classes, units)}.items():
        tensors |= layer(f"classifier.{number}", *shape)
    return tensors


# The convolutions' places among the features, and their channels.
VGG = {
    "vgg11": ([0, 3, 6, 8, 11, 13, 16, 18], [64, 128, 256, 256, 512, 512, 512, 512]),
    "vgg11_bn": ([0, 4, 8, 11, 15, 18, 22, 25], [64, 128, 256, 256, 512, 512, 512, 512]),
    "vgg13": ([0, 2, 5, 7, 10, 12, 15, 17, 20, 22], [64, 64, 128, 128, 256, 256, 512, 512, 512, 512]),
    "vgg13_bn": ([0, 3, 7, 10, 14, 17, 21, 24, 28, 31], [64, 64, 128, 128, 256, 256, 512, 512, 512, 512]),
    "vgg16": (
        [0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28],
        [64, 64, 128, 128, 256, 256, 256, 512, 512, 512, 512, 512, 512],
    ),
    "vgg16_bn": (
        [0, 3, 7, 10, 14, 17, 20, 24, 27, 30, 34, 37, 40],
        [64, 64, 128, 128, 256, 256, 256, 512, 512, 512, 512, 512, 512],
    ),
    "vgg19": (
        [0, 2, 5, 7, 10, 12, 14, 16, 19, 21, 23, 25, 28, 30, 32, 34],
        [64, 64, 128, 128, 256, 256, 256, 256, 512, 512, 512, 512, 512, 512, 512, 512],
    ),
    "vgg19_bn": (
        [0, 3, 7, 10, 14, 17, 20, 23, 27, 30, 33, 36, 40, 43, 46, 49],
        [64, 64, 128, 128, 256, 256, 256, 256, 512, 512, 512, 512, 512, 512, 512, 512],
    ),
}


def vgg_tensors(name, units, classes):
    tensors, inputs = {}, 3
    for number, channels in zip(*VGG[name], strict=True):
        tensors |= layer(f"features.{number}", channels, inputs, 3, 3)
        if name.endswith("_bn"):
            tensors |= batch_norm(f"features.{number + 1}", channels)
        inputs = channels
    for number, shape in {0: (units, 512 * 49), 3: (units, units), 6: (classes, units)}.items():
        tensors |= layer(f"classifier.{number}", *shape)
    return tensors


def basic_conv(name, inputs, channels, size):
    return {**layer(f"{name}.conv", channels, inputs, size, size, bias=False), **batch_norm(f"{name}.bn", channels)}


def googlenet_tensors(classes, heads=True):
    inceptions = {  # inputs, then the paper's table 1
        "3a": (192, 64, 96, 128, 16, 32, 32),
        "3b": (256, 128, 128, 192, 32, 96, 64),
        "4a": (480, 192, 96, 208, 16, 48, 64),
        "4b": (512, 160, 112, 224, 24, 64, 64),
        "4c": (512, 128, 128, 256, 24, 64, 64),
        "4d": (512, 112, 144, 288, 32, 64, 64),
        "4e": (528, 256, 160, 320, 32, 128, 128),
        "5a": (832, 256, 160, 320, 32, 128, 128),
        "5b": (832, 384, 192, 384, 48, 128, 128),
    }
    tensors = {**basic_conv("conv1", 3, 64, 7), **basic_conv("conv2", 64, 64, 1), **basic_conv("conv3", 64, 192, 3)}
    for name, (inputs, b1, b2_0, b2_1, b3_0, b3_1, b4) in inceptions.items():
        tensors |= basic_conv(f"inception{name}.branch1", inputs, b1, 1)
        tensors |= basic_conv(f"inception{name}.branch2.0", inputs, b2_0, 1)
        tensors |= basic_conv(f"inception{name}.branch2.1", b2_0, b2_1, 3)
        tensors |= basic_conv(f"inception{name}.branch3.0", inputs, b3_0, 1)
        tensors |= basic_conv(f"inception{name}.branch3.1", b3_0, b3_1, 3)
        tensors |= basic_conv(f"inception{name}.branch4.1", inputs, b4, 1)
    for head, inputs in {"aux1": 512, "aux2": 528}.items() if heads else ():
        tensors |= basic_conv(f"{head}.conv", inputs, 128, 1)
        tensors |= layer(f"{head}.fc1", 1024, 2048)
        tensors |= layer(f"{head}.fc2", classes, 1024)
    return tensors | layer("fc", classes, 1024)


def resnet_tensors(blocks, bottleneck, classes):
    tensors = {**layer("conv1", 64, 3, 7, 7, bias=False), **batch_norm("bn1", 64)}
    inputs = 64
    for stage, count in enumerate(blocks, start=1):
        width = 32 * 2**stage
        outputs = width * 4 if bottleneck else width
        for block in range(count):
            prefix = f"layer{stage}.{block}"
            if bottleneck:
                kernels = [(width, inputs, 1, 1), (width, width, 3, 3), (outputs, width, 1, 1)]
            else:
                kernels = [(width, inputs, 3, 3), (width, width, 3, 3)]
            for number, kernel in enumerate(kernels, start=1):
                tensors |= layer(f"{prefix}.conv{number}", *kernel, bias=False)
                tensors |= batch_norm(f"{prefix}.bn{number}", kernel[0])
            if inputs != outputs:
                tensors |= layer(f"{prefix}.downsample.0", outputs, inputs, 1, 1, bias=False)
                tensors |= batch_norm(f"{prefix}.downsample.1", outputs)
            inputs = outputs
    return tensors | layer("fc", classes, inputs)


def densenet_tensors(blocks, growth, classes):
    channels = 2 * growth
    tensors = {
        **layer("features.conv0", channels, 3, 7, 7, bias=False),
        **batch_norm("features.norm0", channels),
    }
    for block, count in enumerate(blocks, start=1):
        for number in range(1, count + 1):
            prefix = f"features.denseblock{block}.denselayer{number}"
            tensors |= batch_norm(f"{prefix}.norm1", channels)
            tensors |= layer(f"{prefix}.conv1", 4 * growth, channels, 1, 1, bias=False)
            tensors |= batch_norm(f"{prefix}.norm2", 4 * growth)
            tensors |= layer(f"{prefix}.conv2", growth, 4 * growth, 3, 3, bias=False)
            channels += growth
        if block < 4:
            tensors |= batch_norm(f"features.transition{block}.norm", channels)
            tensors |= layer(f"features.transition{block}.conv", channels // 2, channels, 1, 1, bias=False)
            channels //= 2
    return {**tensors, **batch_norm("features.norm5", channels), **layer("classifier", classes, channels)}


UNITS = 4096
NETWORKS = {  # (units of the hidden fully-connected layers, classes) -> tensors
    "alexnet_owt": alexnet_tensors,
    **{name: lambda units, classes, name=name: vgg_tensors(name, units, classes) for name in VGG},
    "googlenet_bn": lambda units, classes: googlenet_tensors(classes),
    "resnet18": lambda units, classes: resnet_tensors((2, 2, 2, 2), False, classes),
    "resnet34": lambda units, classes: resnet_tensors((3, 4, 6, 3), False, classes),
    "resnet50": lambda units, classes: resnet_tensors((3, 4, 6, 3), True, classes),
    "resnet101": lambda units, classes: resnet_tensors((3, 4, 23, 3), True, classes),
    "resnet152": lambda units, classes: resnet_tensors((3, 8, 36, 3), True, classes),
    "densenet121": lambda units, classes: densenet_tensors((6, 12, 24, 16), 32, classes),
    "densenet161": lambda units, classes: densenet_tensors((6, 12, 36, 24), 48, classes),
    "densenet169": lambda units, classes: densenet_tensors((6, 12, 32, 32), 32, classes),
    "densenet201": lambda units, classes: densenet_tensors((6, 12, 48, 32), 32, classes),
}

# Parameters with 1,000 classes, from torchvision's documentation.
PARAMETERS = {
    "alexnet_owt": 61_100_840,
    "vgg11": 132_863_336,
    "vgg11_bn": 132_868_840,
    "vgg13": 133_047_848,
    "vgg13_bn": 133_053_736,
    "vgg16": 138_357_544,
    "vgg16_bn": 138_365_992,
    "vgg19": 143_667_240,
    "vgg19_bn": 143_678_248,
    "googlenet_bn": 13_004_888,
    "resnet18": 11_689_512,
    "resnet34": 21_797_672,
    "resnet50": 25_557_032,
    "resnet101": 44_549_160,
    "resnet152": 60_192_808,
    "densenet121": 7_978_856,
    "densenet161": 28_681_000,
    "densenet169": 14_149_480,
    "densenet201": 20_013_928,
}
# Tensors in the published files without and with num_batches_tracked.
TENSORS = {"resnet18": (102, 122), "resnet50": (267, 320)}


@pytest.fixture
def few_units(monkeypatch):
    """Of AlexNet's and VGG's hidden layers: at their own size they take a second and half a gigabyte."""
    monkeypatch.setattr(alexnet, "UNITS", 32)
    monkeypatch.setattr(vgg, "UNITS", 32)
    return 32


def shapes(name, num_classes=1000, channels=3, **fields):
    return _shapes(name, num_classes, channels, tuple(fields.items()), (alexnet.UNITS, vgg.UNITS))


@functools.cache
def _shapes(name, num_classes, channels, fields, units):
    model = create_model(name, num_classes, **dict(fields))
    return jax.eval_shape(model.init, jax.random.key(0), jax.ShapeDtypeStruct((1, 64, 64, channels), jnp.float32))


def numbered(tensors):
    """Each tensor filled with a number of its own; takes no memory."""
    return {name: np.broadcast_to(np.float32(i), shape) for i, (name, shape) in enumerate(tensors.items())}


def random(tensors):
    rng = np.random.default_rng(0)
    return {name: rng.normal(size=shape).astype(np.float32) for name, shape in tensors.items()}


def leaf(variables, path):
    return traverse_util.flatten_dict(variables, sep="/")[path]


# -- names


def test_the_networks_that_torchvision_has():
    assert importable_models() == sorted(NETWORKS) == sorted(PARAMETERS)


@pytest.mark.parametrize("name", list(NETWORKS))
def test_takes_all_tensors_of_the_published_network(name, few_units):
    tensors = NETWORKS[name](UNITS, 1000)
    counted = {key: shape for key, shape in tensors.items() if not key.endswith(("_mean", "_var", "_tracked"))}
    assert sum(int(np.prod(shape)) for shape in counted.values()) == PARAMETERS[name]
    wanted = [key for key in tensors if not key.endswith("num_batches_tracked")]
    if name in TENSORS:
        assert (len(wanted), len(tensors)) == TENSORS[name]

    state_dict = numbered(NETWORKS[name](few_units, 1000))
    targets = shapes(name)
    variables, report = import_weights(name, state_dict, targets)
    assert report.loaded == tuple(wanted)
    assert (report.missing, report.unexpected, report.dropped) == ((), (), ())
    assert jax.tree.structure(variables) == jax.tree.structure(targets)
    values = []
    for value, target in zip(jax.tree.leaves(variables), jax.tree.leaves(targets), strict=True):
        assert (value.shape, value.dtype) == (target.shape, np.float32)
        values.append(value.flat[0])
    assert sorted(values) == [i for i, key in enumerate(state_dict) if key in wanted]  # each came to one place


@pytest.mark.parametrize(
    ("name", "path", "tensor"),
    [
        ("alexnet_owt", "params/conv5/bias", "features.10.bias"),
        ("alexnet_owt", "params/fc7/kernel", "classifier.4.weight"),
        ("alexnet_owt", "params/output/bias", "classifier.6.bias"),
        ("vgg16_bn", "params/conv3_3/kernel", "features.20.weight"),
        ("vgg16_bn", "params/norm3_3/scale", "features.21.weight"),
        ("vgg16_bn", "batch_stats/norm3_3/mean", "features.21.running_mean"),
        ("vgg16_bn", "batch_stats/norm5_1/var", "features.35.running_var"),
        ("vgg19", "params/conv5_4/bias", "features.34.bias"),
        ("vgg19", "params/fc7/bias", "classifier.3.bias"),
        ("googlenet_bn", "params/conv2/kernel", "conv2.conv.weight"),
        ("googlenet_bn", "params/conv2_norm/bias", "conv2.bn.bias"),
        ("googlenet_bn", "params/inception4d/branch1/kernel", "inception4d.branch1.conv.weight"),
        ("googlenet_bn", "params/inception4d/branch3_0/kernel", "inception4d.branch3.0.conv.weight"),
        ("googlenet_bn", "batch_stats/inception5b/branch4_1_norm/var", "inception5b.branch4.1.bn.running_var"),
        ("googlenet_bn", "params/aux2/conv/kernel", "aux2.conv.conv.weight"),
        ("googlenet_bn", "batch_stats/aux2/conv_norm/mean", "aux2.conv.bn.running_mean"),
        ("googlenet_bn", "params/aux1/fc2/bias", "aux1.fc2.bias"),
        ("googlenet_bn", "params/output/kernel", "fc.weight"),
        ("resnet101", "params/norm1/scale", "bn1.weight"),
        ("resnet101", "params/layer3_22/conv3/kernel", "layer3.22.conv3.weight"),
        ("resnet101", "params/layer3_22/norm3/bias", "layer3.22.bn3.bias"),
        ("resnet101", "params/layer2_0/downsample_conv/kernel", "layer2.0.downsample.0.weight"),
        ("resnet101", "batch_stats/layer2_0/downsample_norm/var", "layer2.0.downsample.1.running_var"),
        ("densenet169", "params/conv0/kernel", "features.conv0.weight"),
        ("densenet169", "params/denseblock4_layer32/norm2/scale", "features.denseblock4.denselayer32.norm2.weight"),
        ("densenet169", "params/denseblock1_layer2/conv1/kernel", "features.denseblock1.denselayer2.conv1.weight"),
        ("densenet169", "batch_stats/transition3/norm/mean", "features.transition3.norm.running_mean"),
        ("densenet169", "params/norm5/bias", "features.norm5.bias"),
        ("densenet169", "params/output/kernel", "classifier.weight"),
    ],
)
def test_where_tensors_go(name, path, tensor, few_units):
    state_dict = numbered(NETWORKS[name](few_units, 1000))
    variables, _ = import_weights(name, state_dict, shapes(name))
    assert set(leaf(variables, path).flat) == set(state_dict[tensor].flat)


# -- layouts


def test_kernels_and_matrices_are_transposed():
    state_dict = random(resnet_tensors((2, 2, 2, 2), False, 1000))
    variables, _ = import_weights("resnet18", state_dict, shapes("resnet18"))
    kernel = leaf(variables, "params/layer2_0/conv1/kernel")
    for o, i, h, w in [(0, 0, 0, 0), (127, 3, 0, 2), (5, 63, 2, 1)]:
        assert kernel[h, w, i, o] == state_dict["layer2.0.conv1.weight"][o, i, h, w]
    assert leaf(variables, "params/output/kernel")[510, 77] == state_dict["fc.weight"][77, 510]


@pytest.mark.parametrize(
    ("name", "path", "tensor", "channels", "size"),
    [
        ("alexnet_owt", "params/fc6/kernel", "classifier.1.weight", 256, 6),
        ("vgg11", "params/fc6/kernel", "classifier.0.weight", 512, 7),
        ("googlenet_bn", "params/aux1/fc1/kernel", "aux1.fc1.weight", 128, 4),
        ("googlenet_bn", "params/aux2/fc1/kernel", "aux2.fc1.weight", 128, 4),
    ],
)
def test_rows_after_a_flattening(name, path, tensor, channels, size, few_units):
    """The same number for a map, flattened channels first and with PyTorch's rows, or channels last and with ours."""
    state_dict = random(NETWORKS[name](few_units, 1000))
    variables, _ = import_weights(name, state_dict, shapes(name))
    x = np.random.default_rng(1).normal(size=(channels, size, size))
    np.testing.assert_allclose(
        x.transpose(1, 2, 0).reshape(-1) @ leaf(variables, path).astype(np.float64),
        state_dict[tensor].astype(np.float64) @ x.reshape(-1),
        rtol=1e-9,
        atol=1e-9,
    )


def test_the_result_shares_no_memory_and_can_be_written():
    state_dict = random(resnet_tensors((2, 2, 2, 2), False, 10))
    variables, _ = import_weights("resnet18", state_dict, shapes("resnet18", 10))
    before = {key: value.copy() for key, value in state_dict.items()}
    for value in jax.tree.leaves(variables):
        value += 1.0
    for key, value in before.items():
        np.testing.assert_array_equal(state_dict[key], value)


def test_other_precisions():
    values = random(resnet_tensors((2, 2, 2, 2), False, 10))
    expected, _ = import_weights("resnet18", values, shapes("resnet18", 10))
    for dtype in (np.float64, jnp.bfloat16):
        state_dict = {key: value.astype(dtype) for key, value in values.items()}
        variables, _ = import_weights("resnet18", state_dict, shapes("resnet18", 10))
        for value, reference in zip(jax.tree.leaves(variables), jax.tree.leaves(expected), strict=True):
            assert value.dtype == np.float32
            np.testing.assert_array_equal(value, reference.astype(dtype).astype(np.float32))


# -- other names


def test_old_densenet_files():
    tensors = NETWORKS["densenet121"](UNITS, 1000)
    new = numbered({key: shape for key, shape in tensors.items() if not key.endswith("num_batches_tracked")})
    old = {}
    for key, value in new.items():
        if "denselayer" in key:
            for part in ("norm1", "norm2", "conv1", "conv2"):
                key = key.replace(f".{part}.", f".{part[:-1]}.{part[-1]}.")
        old[key] = value
    assert "features.denseblock3.denselayer24.conv.2.weight" in old
    targets = shapes("densenet121")
    variables, report = import_weights("densenet121", old, targets)
    assert report.loaded == tuple(old)
    expected, _ = import_weights("densenet121", new, targets)
    assert jax.tree.all(jax.tree.map(np.array_equal, variables, expected))


def test_timms_vgg(few_units):
    theirs = random(vgg_tensors("vgg11_bn", few_units, 10))
    expected, _ = import_weights("vgg11_bn", theirs, shapes("vgg11_bn", 10))
    timm = {}
    for key, value in theirs.items():
        key = key.replace("classifier.0", "pre_logits.fc1").replace("classifier.3", "pre_logits.fc2")
        key = key.replace("classifier.6", "head.fc")
        if key == "pre_logits.fc1.weight":
            value = value.reshape(few_units, 512, 7, 7)
        elif key == "pre_logits.fc2.weight":
            value = value.reshape(few_units, few_units, 1, 1)
        timm[key] = value
    variables, report = import_weights("vgg11_bn", timm, shapes("vgg11_bn", 10))
    assert {"pre_logits.fc1.weight", "pre_logits.fc2.bias", "head.fc.weight"} < set(report.loaded)
    assert jax.tree.all(jax.tree.map(np.array_equal, variables, expected))


def test_from_a_file_to_logits(tmp_path):
    """By way of safetensors, with half as many bits, to a network that runs."""
    state_dict = random(resnet_tensors((2, 2, 2, 2), False, 10))
    state_dict = {key: np.abs(value) if key.endswith("running_var") else value for key, value in state_dict.items()}
    path = tmp_path / "model.safetensors"
    safetensors.numpy.save_file({f"module.{key}": value.astype(np.float16) for key, value in state_dict.items()}, path)
    model = create_model("resnet18", 10)
    variables, report = import_weights("resnet18", read_state_dict(path), shapes("resnet18", 10))
    assert len(report.loaded) == 102
    forward = jax.jit(model.apply, compiler_options={"xla_backend_optimization_level": 0})
    logits = forward(variables, np.ones((2, 32, 32, 3), np.float32))
    assert logits.shape == (2, 10) and bool(jnp.isfinite(logits).all())


# -- what doesn't fit


@pytest.mark.parametrize(
    ("name", "dropped"),
    [
        ("alexnet_owt", ("classifier.6.weight", "classifier.6.bias")),
        ("vgg11", ("classifier.6.weight", "classifier.6.bias")),
        (
            "googlenet_bn",
            ("aux1.fc2.weight", "aux1.fc2.bias", "aux2.fc2.weight", "aux2.fc2.bias", "fc.weight", "fc.bias"),
        ),
        ("resnet18", ("fc.weight", "fc.bias")),
        ("densenet121", ("classifier.weight", "classifier.bias")),
    ],
)
def test_another_number_of_classes_drops_the_head(name, dropped, few_units):
    targets = shapes(name, 10)
    initial = jax.tree.map(lambda leaf: np.full(leaf.shape, -7.0, np.float32), targets)
    state_dict = numbered(NETWORKS[name](few_units, 1000))
    variables, report = import_weights(name, state_dict, initial)
    assert report.dropped == dropped
    assert set(report.loaded) == {key for key in state_dict if not key.endswith("tracked")} - set(dropped)
    assert str(report).startswith(f"{len(report.loaded)} tensors loaded; dropped: {dropped[0]}, ")
    kept = [value for value in jax.tree.leaves(variables) if (value == -7.0).all()]
    assert len(kept) == len(dropped)
    assert all((value == -7.0).all() for value in jax.tree.leaves(initial))
    with pytest.raises(ValueError, match="initial values"):
        import_weights(name, state_dict, targets)


def test_a_head_is_dropped_as_a_whole(few_units):
    """A bias that happens to fit doesn't go with a kernel that doesn't."""
    initial = jax.tree.map(lambda leaf: np.full(leaf.shape, -7.0, np.float32), shapes("resnet18", 10))
    state_dict = numbered(NETWORKS["resnet18"](few_units, 1000))
    state_dict["fc.bias"] = np.ones(10, np.float32)
    variables, report = import_weights("resnet18", state_dict, initial)
    assert report.dropped == ("fc.weight", "fc.bias")
    assert all((value == -7.0).all() for value in variables["params"]["output"].values())


def test_googlenets_heads_may_be_missing_on_either_side():
    with_heads, without = numbered(googlenet_tensors(1000)), numbered(googlenet_tensors(1000, heads=False))
    heads = [key for key in with_heads if key.startswith("aux") and not key.endswith("tracked")]
    _, report = import_weights("googlenet_bn", with_heads, shapes("googlenet_bn", auxiliary_heads=False))
    assert (report.unexpected, report.missing) == (tuple(heads), ())
    assert "not in the network: aux1.conv.conv.weight" in str(report)
    initial = jax.tree.map(lambda leaf: np.zeros(leaf.shape, np.float32), shapes("googlenet_bn"))
    _, report = import_weights("googlenet_bn", without, initial)
    assert (sorted(report.missing), report.unexpected) == (sorted(heads), ())
    assert "not in the file: aux1" in str(report)


@pytest.mark.parametrize(
    ("name", "file", "message"),
    [
        (
            "resnet18",
            "resnet50",
            "resnet18: tensor 'layer1.0.conv1.weight' has shape (64, 64, 1, 1), expected is (64, 64, 3, 3)",
        ),
        (
            "resnet50",
            "resnet18",
            "resnet50: tensor 'layer1.0.conv1.weight' has shape (64, 64, 3, 3), expected is (64, 64, 1, 1)",
        ),
        ("resnet18", "resnet34", "resnet18: has no tensor 'layer1.2.conv1.weight' of shape (64, 64, 3, 3)"),
        ("resnet34", "resnet18", "resnet34: tensor 'layer1.2."),
        ("resnet50", "vgg16", "resnet50: has no tensor 'features.0.weight' of shape (64, 3, 3, 3)"),
        ("vgg16", "vgg16_bn", "vgg16: has no tensor 'features.1.weight' of shape (64,)"),
        ("vgg16_bn", "vgg16", "vgg16_bn: has no tensor 'features.2.weight' of shape (64, 64, 3, 3)"),
        (
            "densenet161",
            "densenet121",
            "densenet161: tensor 'features.conv0.weight' has shape (64, 3, 7, 7), expected is (96, 3, 7, 7)",
        ),
    ],
)
def test_refuses_another_networks_file(name, file, message, few_units):
    with pytest.raises(ValueError) as refusal:
        import_weights(name, numbered(NETWORKS[file](few_units, 1000)), shapes(name))
    assert str(refusal.value).startswith(message)
    assert "another network's" in str(refusal.value) and "\n" not in str(refusal.value)


def edited(**changes):
    tensors = numbered(resnet_tensors((2, 2, 2, 2), False, 1000))
    tensors.update({key.replace("__", "."): value for key, value in changes.items()})
    return {key: value for key, value in tensors.items() if value is not None}


@pytest.mark.parametrize(
    ("state_dict", "message"),
    {
        "one tensor less": (edited(bn1__bias=None), "tensor 'bn1.bias' of shape (64,) is missing"),
        "no statistics": (
            edited(layer4__1__bn2__running_var=None),
            "tensor 'layer4.1.bn2.running_var' of shape (512,) is missing",
        ),
        "one tensor more": (edited(fc2__bias=np.zeros(3)), "has no tensor 'fc2.bias' of shape (3,)"),
        "half a head": (edited(fc__bias=None), "tensor 'fc.bias' of shape (1000,) is missing"),
        "a head of other features": (
            edited(fc__weight=np.zeros((1000, 2048))),
            "tensor 'fc.weight' has shape (1000, 2048), expected is (1000, 512)",
        ),
        "quantised": (
            edited(conv1__weight=np.zeros((64, 3, 7, 7), np.int8)),
            "tensor 'conv1.weight' has the type int8",
        ),
        "another stem": (edited(conv1__weight=np.zeros((64, 3, 3, 3))), "expected is (64, 3, 7, 7)"),
        "nothing": ({}, "is missing"),
    }.values(),
)
def test_refuses_what_is_incomplete_or_other(state_dict, message):
    with pytest.raises(ValueError) as refusal:
        import_weights("resnet18", state_dict, shapes("resnet18"))
    assert str(refusal.value).startswith("resnet18: ") and message in str(refusal.value)


@pytest.mark.parametrize("channels", [1, 4])
def test_refuses_images_of_other_channels(channels):
    with pytest.raises(ValueError, match=f"for images of 3 channels, the network for {channels}"):
        import_weights("resnet18", edited(), shapes("resnet18", channels=channels))


def test_refuses_two_names_of_one_tensor():
    state_dict = numbered(NETWORKS["densenet121"](UNITS, 1000))
    state_dict["features.denseblock1.denselayer1.norm.1.bias"] = np.zeros(64, np.float32)
    with pytest.raises(ValueError, match="norm1.bias' and .*norm.1.bias' are two names"):
        import_weights("densenet121", state_dict, shapes("densenet121"))


def test_not_strict_a_variant_starts_from_what_fits():
    targets = shapes("resnet18", squeeze_excitation=True)
    with pytest.raises(ValueError, match="layer1.0.squeeze_excitation.excite.bias.* is missing"):
        import_weights("resnet18", edited(), targets)
    initial = jax.tree.map(lambda leaf: np.full(leaf.shape, -7.0, np.float32), targets)
    state_dict = edited(extra=np.zeros(1))
    variables, report = import_weights("resnet18", state_dict, initial, strict=False)
    assert (len(report.loaded), len(report.missing), report.unexpected) == (102, 8 * 4, ("extra",))
    assert all("squeeze_excitation" in tensor for tensor in report.missing)
    assert (leaf(variables, "params/layer1_0/squeeze_excitation/squeeze/kernel") == -7.0).all()
    with pytest.raises(ValueError, match="expected is"):  # other shapes are refused all the same
        import_weights("resnet18", edited(bn1__bias=np.zeros(3)), initial, strict=False)


@pytest.mark.parametrize("name", sorted(set(list_models()) - set(NETWORKS)))
def test_networks_that_torchvision_lacks(name):
    with pytest.raises(ValueError, match=f"no counterpart of {name}; it has of alexnet_owt, .*, vgg19_bn"):
        import_weights(name, {}, {})


def test_an_unknown_name_is_the_registrys_error():
    with pytest.raises(ValueError, match="no model is named 'resnet5O' .did you mean"):
        import_weights("resnet5O", {}, {})
