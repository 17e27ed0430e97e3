"""Parameters to the unit and multiply-adds to the third decimal, of every network in every published form.

Counts are those of the papers' tables, of torchvision's and Keras' pages, or follow from the papers by hand.
"""

import jax
import jax.numpy as jnp
import pytest

from cnn_research.models import registry
from cnn_research.models.layer_table import layer_table

pytestmark = pytest.mark.zoo

NO_HEADS = {"auxiliary_heads": False}
V1 = {"stride_in_1x1": True}
B = {"shortcut": "B"}
CIFAR = {"stem": "cifar"}

# name, fields, side and channels of the image, classes, parameters, 10^9 multiply-adds (None: not published)
ROWS = [
    ("convnet", {}, (28, 1), 10, 421_642, 0.00424),  # 28*28*32*9 + 14*14*64*288 + 3136*128 + 128*10
    ("lenet5", {}, (28, 1), 10, 61_706, 0.00042),
    ("lenet5", {}, (32, 1), 10, 61_706, 0.00042),
    ("lenet5_paper", {}, (32, 1), 10, 60_000, None),
    ("alexnet", {}, (227, 3), 1000, 60_965_224, 0.724),
    ("alexnet", {}, (224, 3), 1000, 60_965_224, 0.724),  # padded to the same
    ("alexnet_one_tower", {}, (227, 3), 1000, 62_378_344, 1.135),
    ("alexnet_owt", {}, (224, 3), 1000, 61_100_840, 0.714),
    ("zfnet", {}, (224, 3), 1000, 62_357_608, 1.168),
    ("zfnet_wide", {}, (224, 3), 1000, 107_627_624, 2.477),
    ("vgg11", {}, (224, 3), 1000, 132_863_336, 7.609),
    ("vgg13", {}, (224, 3), 1000, 133_047_848, 11.308),
    ("vgg16_c", {}, (224, 3), 1000, 133_638_952, 11.771),
    ("vgg16", {}, (224, 3), 1000, 138_357_544, 15.470),
    ("vgg19", {}, (224, 3), 1000, 143_667_240, 19.632),
    ("vgg11_bn", {}, (224, 3), 1000, 132_868_840, 7.609),
    ("vgg13_bn", {}, (224, 3), 1000, 133_053_736, 11.308),
    ("vgg16_bn", {}, (224, 3), 1000, 138_365_992, 15.470),
    ("vgg19_bn", {}, (224, 3), 1000, 143_678_248, 19.632),
    ("vgg11_bn_cifar", {}, (32, 3), 10, 9_231_114, 0.153),
    ("vgg13_bn_cifar", {}, (32, 3), 10, 9_416_010, 0.228),
    ("vgg16_bn_cifar", {}, (32, 3), 10, 14_728_266, 0.313),
    ("vgg19_bn_cifar", {}, (32, 3), 10, 20_040_522, 0.398),
    ("googlenet", {}, (224, 3), 1000, 13_378_280, 1.583),
    ("googlenet", NO_HEADS, (224, 3), 1000, 6_998_552, 1.583),
    ("googlenet_bn", {}, (224, 3), 1000, 13_004_888, 1.498),
    ("googlenet_bn", NO_HEADS, (224, 3), 1000, 6_624_904, 1.498),
    ("resnet18", {}, (224, 3), 1000, 11_689_512, 1.814),
    ("resnet34", {}, (224, 3), 1000, 21_797_672, 3.664),
    ("resnet50", {}, (224, 3), 1000, 25_557_032, 4.089),
    ("resnet50", V1, (224, 3), 1000, 25_557_032, 3.858),
    ("resnet101", {}, (224, 3), 1000, 44_549_160, 7.801),
    ("resnet101", V1, (224, 3), 1000, 44_549_160, 7.570),
    ("resnet152", {}, (224, 3), 1000, 60_192_808, 11.514),
    ("resnet152", V1, (224, 3), 1000, 60_192_808, 11.282),
    ("resnet18", CIFAR, (32, 3), 10, 11_173_962, 0.555),
    ("resnet34", CIFAR, (32, 3), 10, 21_282_122, 1.159),
    ("resnet50", CIFAR, (32, 3), 10, 23_520_842, 1.298),
    ("resnet101", CIFAR, (32, 3), 10, 42_512_970, 2.510),
    ("resnet152", CIFAR, (32, 3), 10, 58_156_618, 3.722),
    ("resnet20", {}, (32, 3), 10, 269_722, 0.0406),
    ("resnet20", {}, (32, 3), 100, 275_572, None),
    ("resnet20", B, (32, 3), 10, 272_474, None),
    ("resnet32", {}, (32, 3), 10, 464_154, 0.0689),
    ("resnet32", {}, (32, 3), 100, 470_004, None),
    ("resnet32", B, (32, 3), 10, 466_906, None),
    ("resnet44", {}, (32, 3), 10, 658_586, 0.0972),
    ("resnet44", {}, (32, 3), 100, 664_436, None),
    ("resnet44", B, (32, 3), 10, 661_338, None),
    ("resnet56", {}, (32, 3), 10, 853_018, 0.1255),
    ("resnet56", {}, (32, 3), 100, 858_868, None),
    ("resnet56", B, (32, 3), 10, 855_770, None),
    ("resnet110", {}, (32, 3), 10, 1_727_962, 0.2529),
    ("resnet110", {}, (32, 3), 100, 1_733_812, None),
    ("resnet110", B, (32, 3), 10, 1_730_714, None),
    ("densenet121", {}, (224, 3), 1000, 7_978_856, 2.834),
    ("densenet161", {}, (224, 3), 1000, 28_681_000, 7.728),
    ("densenet169", {}, (224, 3), 1000, 14_149_480, 3.360),
    ("densenet201", {}, (224, 3), 1000, 20_013_928, 4.291),
    ("densenet264", {}, (224, 3), 1000, 33_337_704, 5.752),
    ("densenet_40_12", {}, (32, 3), 10, 1_019_722, 0.265),
    ("densenet_40_12", {}, (32, 3), 100, 1_060_132, None),
    ("densenet_100_12", {}, (32, 3), 10, 6_979_642, 1.770),
    ("densenet_100_12", {}, (32, 3), 100, 7_084_852, None),
    ("densenet_100_24", {}, (32, 3), 10, 27_249_082, 6.889),
    ("densenet_100_24", {}, (32, 3), 100, 27_457_972, None),
    ("densenet_bc_100_12", {}, (32, 3), 10, 769_162, 0.288),
    ("densenet_bc_100_12", {}, (32, 3), 100, 800_032, None),
    ("densenet_bc_190_40", {}, (32, 3), 10, 25_624_430, 9.302),
    ("densenet_bc_190_40", {}, (32, 3), 100, 25_821_620, None),
    ("densenet_bc_250_24", {}, (32, 3), 10, 15_324_406, 5.419),
    ("densenet_bc_250_24", {}, (32, 3), 100, 15_480_556, None),
    # 24*13 + 9*(24*64 + 64*64 + 64*256 + 3*256*256) + 2*64 + 4*256 + 256*10
    ("speednet", {}, (32, 3), 10, 1_971_640, 0.118),
]


def test_every_name_is_counted():
    assert {row[0] for row in ROWS} == set(registry.list_models())


def label(row):
    name, fields, (side, _), classes = row[:4]
    return "-".join([name, *map(str, fields.values()), str(side), str(classes)])


@pytest.mark.parametrize(("name", "fields", "image", "classes", "parameters", "gmacs"), ROWS, ids=map(label, ROWS))
def test_count(name, fields, image, classes, parameters, gmacs):
    side, channels = image
    model = registry.create_model(name, classes, **fields)
    variables = jax.eval_shape(
        model.init, jax.random.key(0), jax.ShapeDtypeStruct((1, side, side, channels), jnp.float32)
    )
    assert sum(leaf.size for leaf in jax.tree.leaves(variables["params"])) == parameters
    if gmacs is None:
        return
    table = layer_table(model, (side, side, channels))
    assert table.parameters == parameters == sum(layer.parameters for layer in table.layers)
    decimals = len(str(gmacs).split(".")[1])
    assert round(table.macs / 1e9, max(3, decimals)) == gmacs


@pytest.mark.parametrize("name", registry.list_models())
def test_published_facts_are_the_counted_ones(name):
    facts = registry.model_facts(name)
    image = (facts.image_shape[0], facts.image_shape[2])
    assert facts.image_shape[0] == facts.image_shape[1]
    (row,) = [row for row in ROWS if row[:4] == (name, {}, image, facts.num_classes)]
    assert (facts.parameters, facts.gmacs) == (row[4], row[5] or facts.gmacs)
    assert len(facts.mean) == len(facts.std) == facts.image_shape[2]
    assert (facts.error == (None, None)) == (not facts.source)
