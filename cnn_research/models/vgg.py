"""VGG: Simonyan & Zisserman, "Very deep convolutional networks for large-scale image recognition", ICLR 2015, table 1.

Parameters with three channels and 1,000 classes, the same at every input size:

    vgg11    (A)  132,863,336    vgg11_bn  132,868,840
    vgg13    (B)  133,047,848    vgg13_bn  133,053,736
    vgg16_c  (C)  133,638,952    16 layers, three of the convolutions 1x1
    vgg16    (D)  138,357,544    vgg16_bn  138,365,992
    vgg19    (E)  143,667,240    vgg19_bn  143,678,248

Table 2 of the paper rounds them to 133, 133, 134, 138 and 144 million. fc6, fc7 and output hold 123,642,856 of them.
Batch normalisation, younger than the paper, is torchvision's addition; so is the average pooling to 7x7.

The forms for small images, with 10 classes (in no paper, but common for CIFAR):

    vgg11_bn_cifar   9,231,114    vgg16_bn_cifar  14,728,266
    vgg13_bn_cifar   9,416,010    vgg19_bn_cifar  20,040,522
"""

import jax.numpy as jnp
from flax import linen as nn

from cnn_research.models import layers

# Table 1, a row for each column of it: the kernel sizes of the convolutions between one max-pooling and the next.
CONFIGURATIONS = {
    "A": ((3,), (3,), (3, 3), (3, 3), (3, 3)),
    "B": ((3, 3), (3, 3), (3, 3), (3, 3), (3, 3)),
    "C": ((3, 3), (3, 3), (3, 3, 1), (3, 3, 1), (3, 3, 1)),
    "D": ((3, 3), (3, 3), (3, 3, 3), (3, 3, 3), (3, 3, 3)),
    "E": ((3, 3), (3, 3), (3, 3, 3, 3), (3, 3, 3, 3), (3, 3, 3, 3)),
}
FILTERS = (64, 128, 256, 512, 512)  # of each stage, in all of them
UNITS = 4096  # of fc6 and fc7


def _initializer(kernel_init: str) -> nn.initializers.Initializer:
    """The paper trained its shallowest network first and started the others from it. Its final remark, that Glorot &
    Bengio's initialisation makes this unnecessary, is what "paper" stands for: the same as "xavier".
    """
    layers.check_choice("kernel_init", kernel_init, ("paper", *layers.INITIALIZERS))
    return layers.INITIALIZERS["xavier" if kernel_init == "paper" else kernel_init]


def _convolutions(
    x: layers.Array,
    configuration: str,
    *,
    train: bool,
    conv: layers.ModuleDef,
    norm: layers.ModuleDef | None,
    kernel_init: nn.initializers.Initializer,
    dtype: layers.Dtype,
) -> layers.Array:
    """Five stages of convolutions, each ending in a 2x2 max-pooling: conv1_1, norm1_1, ..., pool1, conv2_1, ..., pool5.

    [N, H, W, C] -> [N, H/32, W/32, 512]. A convolution keeps its bias where normalisation (`norm`, unless None) follows
    and subtracts it again: torchvision's weights have it, and the published counts include it.
    """
    layers.check_choice("configuration", configuration, CONFIGURATIONS)
    x = jnp.asarray(x, dtype)
    for stage, (filters, kernel_sizes) in enumerate(zip(FILTERS, CONFIGURATIONS[configuration], strict=True), start=1):
        for number, kernel_size in enumerate(kernel_sizes, start=1):
            x = layers.conv(
                x,
                filters,
                kernel_size,
                name=f"conv{stage}_{number}",
                padding=kernel_size // 2,
                module=conv,
                kernel_init=kernel_init,
                dtype=dtype,
            )
            if norm is not None:
                x = norm(use_running_average=not train, dtype=dtype, name=f"norm{stage}_{number}")(x)
            x = nn.relu(x)
        x = layers.pool(x, "max", 2, name=f"pool{stage}")
    return x


class VGG(nn.Module):
    """Table 1: 3x3 convolutions of stride 1 all the way, three fully-connected layers.

    Before fc6 the maps are averaged to 7x7 bins, as in torchvision: images of 224x224 have 7x7 already, and all others,
    from 32x32 upwards, give the same parameters. (The paper tests larger images by turning fc6 to output into
    convolutions, which then slide over them.)

    Attributes:
        num_classes: K, the number of logits.
        configuration: the paper's letter, one of CONFIGURATIONS.
        batch_norm: normalise between each convolution and its activation.
        dropout_rate: share of units dropped after fc6 and fc7, in training.
        kernel_init: "paper": Glorot & Bengio's, the same as "xavier"; or one of `layers.INITIALIZERS`. torchvision
            starts the convolutions from "he", and the fully-connected layers from N(0, 0.01^2). Biases start at 0.
        dtype: compute type.
        conv: convolution module, of `nn.Conv`'s signature.
        norm: normalisation module, of `nn.BatchNorm`'s signature.
    """

    num_classes: int
    configuration: str = "D"
    batch_norm: bool = False
    dropout_rate: float = 0.5
    kernel_init: str = "paper"
    dtype: layers.Dtype = jnp.float32
    conv: layers.ModuleDef = nn.Conv
    norm: layers.ModuleDef = layers.BatchNorm

    @nn.compact
    def __call__(self, x: layers.Array, train: bool = False) -> layers.Array:
        """x: float[N, H, W, C] -> logits float32[N, num_classes].

        Raises:
            ValueError: the input is too small for a layer, or a field is not one of its allowed values.
        """
        settings = {"kernel_init": _initializer(self.kernel_init), "dtype": self.dtype}
        norm = self.norm if self.batch_norm else None
        x = _convolutions(x, self.configuration, train=train, conv=self.conv, norm=norm, **settings)
        x = layers.adaptive_average_pool(x, 7, name="average_pool")
        x = layers.flatten(x)
        hidden = {"activation": "relu", "dropout_rate": self.dropout_rate, "train": train, **settings}
        x = layers.hidden_dense(x, UNITS, name="fc6", **hidden)
        x = layers.hidden_dense(x, UNITS, name="fc7", **hidden)
        return layers.output_dense(x, self.num_classes, kernel_init=settings["kernel_init"])


class VGGCifar(nn.Module):
    """VGG for small images: normalised convolutions, their mean over the image, one linear layer.

    At 32x32 the last pooling leaves one position of 512 maps, and the mean is that position.

    Attributes:
        num_classes: K, the number of logits.
        configuration: the paper's letter, one of CONFIGURATIONS.
        dropout_rate: share of the 512 units dropped before the linear layer, in training.
        kernel_init: as in `VGG`.
        dtype: compute type.
        conv: convolution module, of `nn.Conv`'s signature.
        norm: normalisation module, of `nn.BatchNorm`'s signature.
    """

    num_classes: int
    configuration: str = "D"
    dropout_rate: float = 0.0
    kernel_init: str = "paper"
    dtype: layers.Dtype = jnp.float32
    conv: layers.ModuleDef = nn.Conv
    norm: layers.ModuleDef = layers.BatchNorm

    @nn.compact
    def __call__(self, x: layers.Array, train: bool = False) -> layers.Array:
        """x: float[N, H, W, C] -> logits float32[N, num_classes].

        Raises:
            ValueError: the input is too small for a layer, or a field is not one of its allowed values.
        """
        settings = {"kernel_init": _initializer(self.kernel_init), "dtype": self.dtype}
        x = _convolutions(x, self.configuration, train=train, conv=self.conv, norm=self.norm, **settings)
        x = layers.global_average_pool(x)
        x = layers.dropout(x, self.dropout_rate, train=train)
        return layers.output_dense(x, self.num_classes, kernel_init=settings["kernel_init"])
