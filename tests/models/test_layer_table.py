"""The layer table against the papers' figures, published receptive fields, and small networks worked out by hand."""

import jax
import jax.numpy as jnp
import pytest
from flax import linen as nn

from cnn_research.models import registry
from cnn_research.models.layer_table import layer_table, size_formula


def table_of(name, side, channels=3, classes=10, **fields):
    return layer_table(registry.create_model(name, classes, **fields), (side, side, channels))


def by_path(table):
    return {layer.path: layer for layer in table.layers}


# Of the last feature map. Araujo, Norris & Sim 2019, "Computing receptive fields of convolutional neural networks",
# Distill; their ResNets stride in the first 1x1 convolution. AlexNet there is the one of 2014, with equal windows.
@pytest.mark.parametrize(
    ("name", "fields", "field"),
    [
        ("alexnet_owt", {}, 195),
        ("vgg16", {}, 212),
        pytest.param("resnet50", {"stride_in_1x1": True}, 483, marks=pytest.mark.zoo),
        pytest.param("resnet101", {"stride_in_1x1": True}, 1027, marks=pytest.mark.zoo),
        pytest.param("resnet152", {"stride_in_1x1": True}, 1507, marks=pytest.mark.zoo),
    ],
)
def test_receptive_field_is_the_published_one(name, fields, field):
    rows = [layer for layer in table_of(name, 224, **fields).layers if layer.receptive_field]
    assert (rows[-1].receptive_field, rows[-1].jump) == (field, 32)


def test_alexnet_has_the_papers_numbers():
    """Figure 2 and section 3.5 of the paper; multiply-adds are those of the widely-copied layer table."""
    rows = by_path(table_of("alexnet", 227, classes=1000))
    assert list(rows) == [
        "conv1",
        "norm1",
        "pool1",
        "conv2",
        "norm2",
        "pool2",
        "conv3",
        "conv4",
        "conv5",
        "pool5",
        "fc6",
        "fc7",
        "output",
    ]
    assert rows["conv1"].size_formula == "floor((227 + 2*0 - 11)/4) + 1 = 55"
    assert rows["conv1"].output == (55, 55, 96)
    assert (rows["conv1"].kernel, rows["conv1"].stride, rows["conv1"].padding) == ((11, 11), (4, 4), ((0, 0), (0, 0)))
    assert {path: row.macs for path, row in rows.items() if row.macs} == {
        "conv1": 105_415_200,
        "conv2": 223_948_800,
        "conv3": 149_520_384,
        "conv4": 112_140_288,
        "conv5": 74_760_192,
        "fc6": 37_748_736,
        "fc7": 16_777_216,
        "output": 4_096_000,
    }
    assert rows["conv2"].parameters == 307_456
    assert [rows[path].kind for path in ("norm1", "pool1", "fc6")] == [
        "local response norm",
        "max pool",
        "fully connected",
    ]
    assert rows["fc6"].receptive_field is rows["fc6"].jump is None


def test_auxiliary_heads_cost_nothing_in_evaluation():
    with_heads, without = (table_of("googlenet", 224, classes=1000, auxiliary_heads=heads) for heads in (True, False))
    heads = [layer.path for layer in with_heads.layers if layer.training_only]
    assert heads == [f"aux{n}/{part}" for n in (1, 2) for part in (f"aux{n}_pool", "conv", "fc1", "fc2")]
    assert with_heads.macs == without.macs
    assert with_heads.parameters - without.parameters == 6_379_728  # the paper's table plus its section 5
    rows = by_path(with_heads)
    # 112 -> 56 with windows over the edge: one column more at the end than at the beginning.
    assert rows["pool1"].size_formula == "floor((112 + 0 + 1 - 3)/2) + 1 = 56"
    assert rows["aux1/aux1_pool"].kind == "average pool"
    assert rows["aux1/aux1_pool"].output == (4, 4, 512)


def test_convnet_by_hand():
    """6x8 pixels of 2 channels; conv 3x3 to 3 channels and stride 1, prelu, average pool 2, dense of 5."""
    fields = {"filters": (3,), "activation": "prelu", "pool": ("average",), "dense": (), "batch_norm": "after_pool"}
    model = registry.create_model("convnet", 5, **fields)
    table = layer_table(model, (6, 8, 2))
    rows = [(r.path, r.kind, r.output, r.parameters, r.macs, r.receptive_field, r.jump) for r in table.layers]
    assert rows == [
        ("conv1", "convolution", (6, 8, 3), 3 * 3 * 2 * 3 + 3, 6 * 8 * 3 * 18, 3, 1),
        ("conv1_prelu", "PReLU", (6, 8, 3), 1, 0, 3, 1),
        ("pool1", "average pool", (3, 4, 3), 0, 0, 4, 2),
        ("norm1", "batch norm", (3, 4, 3), 6, 0, 4, 2),
        ("output", "fully connected", (5,), 36 * 5 + 5, 36 * 5, None, None),
    ]
    assert (table.input, table.num_classes) == ((6, 8, 2), 5)
    assert table.parameters == 57 + 1 + 6 + 185
    assert table.macs == 6 * 8 * 3 * 18 + 180
    # The backward pass reads what enters conv1, norm1 and output: 96, 36 and 36 floats. The prelu is not looked into.
    assert table.training_bytes_per_image == 4 * (96 + 36 + 36)
    # The most is alive while conv1 writes 144 floats from 96.
    assert table.inference_bytes_per_image >= 4 * (96 + 144)
    assert table.training_bytes(10, optimizer_slots=2) == 4 * 4 * table.parameters + 10 * 4 * 168
    assert table.inference_bytes(10) == 4 * table.parameters + 10 * table.inference_bytes_per_image


class Branches(nn.Module):
    """A 5x5 convolution beside two of 3x3 with stride 2, summed: what one output sees is the larger of both."""

    @nn.compact
    def __call__(self, x):
        a = nn.Conv(4, (5, 5), strides=2, padding=2, name="wide")(x)
        b = nn.Conv(4, (3, 3), strides=1, padding=1, name="first")(x)
        b = nn.Conv(4, (3, 3), strides=2, padding=1, name="second")(b)
        y = nn.Conv(4, (1, 3), kernel_dilation=2, padding=(0, 2), name="dilated")(a + b)
        y = nn.BatchNorm(use_running_average=True, name="norm")(y)
        return nn.Dense(3, name="head")(y[:, ::2, ::2].reshape(len(x), -1))


def test_any_flax_module_has_a_table():
    table = layer_table(Branches(), (8, 8, 1))
    rows = by_path(table)
    assert {path: row.receptive_field for path, row in rows.items()} == {
        "wide": 5,
        "first": 3,
        "second": 5,
        "dilated": 5 + 4 * 2,  # three taps two apart, each a jump of 2
        "norm": 13,
        "head": None,
    }
    assert rows["dilated"].kernel == (1, 5) and rows["dilated"].size_formula == "floor((4 + 2*0 - 1)/1) + 1 = 4"
    assert rows["norm"].kind == "batch norm" and rows["norm"].parameters == 8
    assert rows["head"].macs == 2 * 2 * 4 * 3


@pytest.mark.parametrize(
    ("name", "side", "fields"),
    [("resnet20", 32, {}), ("resnet18", 32, {"stem": "cifar"}), ("densenet_40_12", 32, {}), ("googlenet_bn", 32, {})],
)
def test_the_short_norm_has_the_parameters_of_the_real_one(name, side, fields):
    model = registry.create_model(name, 10, **fields)
    image = jax.ShapeDtypeStruct((1, side, side, 3), jnp.float32)
    params = jax.eval_shape(model.init, jax.random.key(0), image)["params"]
    expected = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        owner = "/".join(key.key for key in path[:-1])
        expected[owner] = expected.get(owner, 0) + leaf.size
    table = layer_table(model, (side, side, 3))
    assert {layer.path: layer.parameters for layer in table.layers if layer.parameters} == expected


class FlaxExample(nn.Module):
    """The network of Flax's MNIST example, with its unnamed poolings, and a normalisation over the channels."""

    @nn.compact
    def __call__(self, x):
        x = nn.avg_pool(nn.relu(nn.Conv(32, (3, 3))(x)), (2, 2), strides=(2, 2))
        x = nn.avg_pool(nn.relu(nn.LayerNorm()(nn.Conv(64, (3, 3))(x))), (2, 2), strides=(2, 2))
        x = nn.max_pool(x, (3, 3), strides=(2, 2))
        return nn.Dense(10)(x.reshape(len(x), -1))


def test_layers_without_names_have_rows_of_their_own():
    rows = layer_table(FlaxExample(), (28, 28, 1)).layers
    assert [(r.path, r.kind, r.output, r.receptive_field, r.jump) for r in rows] == [
        ("Conv_0", "convolution", (28, 28, 32), 3, 1),
        ("pool 1", "average pool", (14, 14, 32), 4, 2),
        ("Conv_1", "convolution", (14, 14, 64), 8, 2),
        ("LayerNorm_0", "LayerNorm", (14, 14, 64), 8, 2),
        ("pool 2", "average pool", (7, 7, 64), 10, 4),
        ("pool 3", "max pool", (3, 3, 64), 18, 8),
        ("Dense_0", "fully connected", (10,), None, None),
    ]


class Transposed(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.ConvTranspose(3, (2, 2), strides=(2, 2), name="up")(x).mean((1, 2))


def test_transposed_convolutions_are_refused_by_name():
    with pytest.raises(ValueError, match="^up: .*transposed"):
        layer_table(Transposed(), (8, 8, 1))


def test_shortcut_a_strides_without_a_layer():
    rows = by_path(table_of("resnet20", 32))
    assert rows["layer2_0/conv2"].jump == rows["layer2_1/conv1"].jump == 2
    assert not any("downsample" in path for path in rows)


def test_squeeze_and_excitation_sees_everything():
    rows = by_path(table_of("resnet18", 64, squeeze_excitation=True))
    assert rows["layer1_0/conv2"].receptive_field == 27
    assert rows["layer1_1/conv1"].receptive_field is None


def test_bins_of_adaptive_pooling():
    rows = by_path(table_of("vgg11", 100))
    assert rows["average_pool"].kind == "adaptive average pool" and rows["average_pool"].output == (7, 7, 512)
    assert "average_pool" not in by_path(table_of("vgg11", 224)), "7x7 already"


@pytest.mark.zoo
def test_rematerialisation_keeps_less():
    plain, remat = (table_of("densenet121", 224, remat=remat) for remat in (False, True))
    assert [layer.path for layer in plain.layers] == [layer.path for layer in remat.layers]
    assert (plain.macs, plain.parameters) == (remat.macs, remat.parameters)
    assert remat.training_bytes_per_image < plain.training_bytes_per_image / 3


def test_computing_in_bfloat16_halves_the_activations():
    full, half = (
        layer_table(registry.create_model("vgg11", 10, dtype=t), (32, 32, 3)) for t in ("float32", "bfloat16")
    )
    assert half.training_bytes_per_image < 0.52 * full.training_bytes_per_image
    assert half.training_bytes(0) == full.training_bytes(0)


@pytest.mark.parametrize(
    ("numbers", "text"),
    [
        ((227, 11, 4, (0, 0), 55), "floor((227 + 2*0 - 11)/4) + 1 = 55"),
        ((224, 7, 2, (3, 3), 112), "floor((224 + 2*3 - 7)/2) + 1 = 112"),
        ((112, 3, 2, (0, 1), 56), "floor((112 + 0 + 1 - 3)/2) + 1 = 56"),
    ],
)
def test_size_formula(numbers, text):
    assert size_formula(*numbers) == text
    size, kernel, stride, padding, output = numbers
    assert (size + sum(padding) - kernel) // stride + 1 == output


@pytest.mark.parametrize(
    ("name", "side", "message"),
    [
        ("googlenet", 20, "aux1_pool: input 1x1 is too small for kernel 5x5, stride 3"),
        ("alexnet", 60, r"pool5: input 2x2 is too small for kernel 3x3.*floor\(\(2 \+ 2\*0 - 3\)/2\) \+ 1 = 0"),
    ],
)
def test_too_small_an_image_names_the_layer(name, side, message):
    with pytest.raises(ValueError, match=message):
        table_of(name, side)
