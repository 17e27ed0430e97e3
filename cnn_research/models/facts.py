"""What is published about each network of the registry: its input, its size, its paper, its error.

Counts and multiply-adds are those of the literature and of torchvision's pages, or follow by hand from the paper's
table; the tests compare them with what the networks here really have.
"""

import dataclasses

# Pixels from 0 to 255 less their mean: what the initial weights and the response normalisation of AlexNet and ZFNet
# expect.
_PIXELS_STD = (1 / 255, 1 / 255, 1 / 255)
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
CIFAR10_MEAN, CIFAR10_STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
MNIST_MEAN, MNIST_STD = (0.1307,), (0.3081,)


@dataclasses.dataclass(frozen=True)
class Facts:
    """A network as it is published.

    Attributes:
        parameters: at `image_shape` and `num_classes`; auxiliary heads, where there are any, included.
        gmacs: 10^9 multiply-adds of convolutions and fully-connected layers in evaluation, for one image.
        paper: first author, year, title.
        error: top-1 and top-5, percent, on the test set (ImageNet: validation set); None where none is published.
        source: of `error`: table, protocol.
        image_shape: (H, W, C) of the published figures.
        num_classes: likewise.
        mean, std: of the pixels scaled to [0, 1]: what is subtracted, and divided by, one value or one a channel.
        dataset: what `error` is measured on.
    """

    parameters: int
    gmacs: float
    paper: str
    error: tuple[float | None, float | None] = (None, None)
    source: str = ""
    image_shape: tuple[int, int, int] = (224, 224, 3)
    num_classes: int = 1000
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    dataset: str = "ImageNet"


_MNIST = {
    "image_shape": (28, 28, 1),
    "num_classes": 10,
    "mean": MNIST_MEAN,
    "std": MNIST_STD,
    "dataset": "MNIST",
}
_CIFAR = {
    "image_shape": (32, 32, 3),
    "num_classes": 10,
    "mean": CIFAR10_MEAN,
    "std": CIFAR10_STD,
    "dataset": "CIFAR-10",
}

_LENET = "LeCun et al. 1998, Gradient-based learning applied to document recognition"
_ALEXNET = "Krizhevsky et al. 2012, ImageNet classification with deep convolutional neural networks"
_OWT = "Krizhevsky 2014, One weird trick for parallelizing convolutional neural networks"
_ZFNET = "Zeiler & Fergus 2014, Visualizing and understanding convolutional networks"
_VGG = "Simonyan & Zisserman 2015, Very deep convolutional networks for large-scale image recognition"
_GOOGLENET = "Szegedy et al. 2015, Going deeper with convolutions"
_RESNET = "He et al. 2016, Deep residual learning for image recognition"
_DENSENET = "Huang et al. 2017, Densely connected convolutional networks"
_SPEEDNET = "Jordan 2024, 94% on CIFAR-10 in 3.29 seconds on a single GPU"

_TORCHVISION = "torchvision's weights (V1), one centre crop of 224"
_VGG_TABLE = "table 3, one scale"
_RESNET_TABLE = "tables 2 and 3, 10 crops"
_DENSENET_TABLE = "table 3, one crop"
_CIFAR_RESNET = "table 6"
_CIFAR_DENSENET = "table 2, with augmentation"

FACTS: dict[str, Facts] = {
    "convnet": Facts(421_642, 0.00424, "the tutorials' network: no paper", **_MNIST),
    "lenet5": Facts(61_706, 0.00042, _LENET, **_MNIST),
    # The paper scales pixels so that the background is -0.1 and ink 1.175. C3 is computed as a dense convolution; along
    # its connections alone there are 0.00033 G multiply-adds.
    "lenet5_paper": Facts(
        60_000,
        0.00042,
        _LENET,
        (0.95, None),
        "section III-B, without distortions",
        **{**_MNIST, "image_shape": (32, 32, 1), "mean": (0.1 / 1.275,), "std": (1 / 1.275,)},
    ),
    "alexnet": Facts(
        60_965_224, 0.724, _ALEXNET, (40.7, 18.2), "table 2, one network, 10 crops", (227, 227, 3), std=_PIXELS_STD
    ),
    "alexnet_one_tower": Facts(62_378_344, 1.135, _ALEXNET, image_shape=(227, 227, 3), std=_PIXELS_STD),
    "alexnet_owt": Facts(61_100_840, 0.714, _OWT, (43.478, 20.934), _TORCHVISION),
    "zfnet": Facts(62_357_608, 1.168, _ZFNET, (38.4, 16.5), "table 2, one network, 10 crops", std=_PIXELS_STD),
    "zfnet_wide": Facts(107_627_624, 2.477, _ZFNET, (37.5, 16.0), "table 2, model (b), 10 crops", std=_PIXELS_STD),
    "vgg11": Facts(132_863_336, 7.609, _VGG, (29.6, 10.4), _VGG_TABLE),
    "vgg13": Facts(133_047_848, 11.308, _VGG, (28.7, 9.9), _VGG_TABLE),
    "vgg16_c": Facts(133_638_952, 11.771, _VGG, (27.3, 8.8), f"{_VGG_TABLE}, trained at several"),
    "vgg16": Facts(138_357_544, 15.470, _VGG, (25.6, 8.1), f"{_VGG_TABLE}, trained at several"),
    "vgg19": Facts(143_667_240, 19.632, _VGG, (25.5, 8.0), f"{_VGG_TABLE}, trained at several"),
    "vgg11_bn": Facts(132_868_840, 7.609, _VGG, (29.630, 10.190), _TORCHVISION),
    "vgg13_bn": Facts(133_053_736, 11.308, _VGG, (28.414, 9.626), _TORCHVISION),
    "vgg16_bn": Facts(138_365_992, 15.470, _VGG, (26.640, 8.484), _TORCHVISION),
    "vgg19_bn": Facts(143_678_248, 19.632, _VGG, (25.782, 8.158), _TORCHVISION),
    "vgg11_bn_cifar": Facts(9_231_114, 0.153, _VGG, **_CIFAR),
    "vgg13_bn_cifar": Facts(9_416_010, 0.228, _VGG, **_CIFAR),
    "vgg16_bn_cifar": Facts(14_728_266, 0.313, _VGG, **_CIFAR),
    "vgg19_bn_cifar": Facts(20_040_522, 0.398, _VGG, **_CIFAR),
    "googlenet": Facts(13_378_280, 1.583, _GOOGLENET, (None, 10.07), "table 3, one network, one crop"),
    # Its trained weights expect pixels in [-1, 1].
    "googlenet_bn": Facts(
        13_004_888, 1.498, _GOOGLENET, (30.222, 10.470), _TORCHVISION, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5)
    ),
    "resnet18": Facts(11_689_512, 1.814, _RESNET, (27.88, None), _RESNET_TABLE),
    "resnet34": Facts(21_797_672, 3.664, _RESNET, (24.52, 7.46), _RESNET_TABLE),
    "resnet50": Facts(25_557_032, 4.089, _RESNET, (22.85, 6.71), _RESNET_TABLE),
    "resnet101": Facts(44_549_160, 7.801, _RESNET, (21.75, 6.05), _RESNET_TABLE),
    "resnet152": Facts(60_192_808, 11.514, _RESNET, (21.43, 5.71), _RESNET_TABLE),
    "resnet20": Facts(269_722, 0.0406, _RESNET, (8.75, None), _CIFAR_RESNET, **_CIFAR),
    "resnet32": Facts(464_154, 0.0689, _RESNET, (7.51, None), _CIFAR_RESNET, **_CIFAR),
    "resnet44": Facts(658_586, 0.0972, _RESNET, (7.17, None), _CIFAR_RESNET, **_CIFAR),
    "resnet56": Facts(853_018, 0.1255, _RESNET, (6.97, None), _CIFAR_RESNET, **_CIFAR),
    "resnet110": Facts(1_727_962, 0.2529, _RESNET, (6.43, None), f"{_CIFAR_RESNET}, best of 5 runs", **_CIFAR),
    "densenet121": Facts(7_978_856, 2.834, _DENSENET, (25.02, 7.71), _DENSENET_TABLE),
    "densenet161": Facts(28_681_000, 7.728, _DENSENET, (22.862, 6.440), _TORCHVISION),
    "densenet169": Facts(14_149_480, 3.360, _DENSENET, (23.80, 6.85), _DENSENET_TABLE),
    "densenet201": Facts(20_013_928, 4.291, _DENSENET, (22.58, 6.34), _DENSENET_TABLE),
    "densenet264": Facts(33_337_704, 5.752, _DENSENET, (22.15, 6.12), _DENSENET_TABLE),
    "densenet_40_12": Facts(1_019_722, 0.265, _DENSENET, (5.24, None), _CIFAR_DENSENET, **_CIFAR),
    "densenet_100_12": Facts(6_979_642, 1.770, _DENSENET, (4.10, None), _CIFAR_DENSENET, **_CIFAR),
    "densenet_100_24": Facts(27_249_082, 6.889, _DENSENET, (3.74, None), _CIFAR_DENSENET, **_CIFAR),
    "densenet_bc_100_12": Facts(769_162, 0.288, _DENSENET, (4.51, None), _CIFAR_DENSENET, **_CIFAR),
    "densenet_bc_190_40": Facts(25_624_430, 9.302, _DENSENET, (3.46, None), _CIFAR_DENSENET, **_CIFAR),
    "densenet_bc_250_24": Facts(15_324_406, 5.419, _DENSENET, (3.62, None), _CIFAR_DENSENET, **_CIFAR),
    "speednet": Facts(1_971_640, 0.118, _SPEEDNET, (5.99, None), "the record with Muon, 8 epochs, 6 views", **_CIFAR),
}
