"""AlexNet: Krizhevsky, Sutskever & Hinton, "ImageNet classification with deep convolutional neural networks", NIPS
2012, and torchvision's form of it.

Parameters with three channels and 1,000 classes (for the first two: at 227x227, or 224x224, see `AlexNet`):

    alexnet            60,965,224   the paper's figure 2: two towers, one per GPU; "60 million parameters"
    alexnet_one_tower  62,378,344   the same with every convolution seeing all maps below it
    alexnet_owt        61,100,840   torchvision's `alexnet`

    layer    alexnet     one tower   owt
    conv1        34,944      34,944      23,296
    conv2       307,456     614,656     307,392
    conv3       885,120     885,120     663,936
    conv4       663,936   1,327,488     884,992
    conv5       442,624     884,992     590,080
    fc6      37,752,832  37,752,832  37,752,832   9,216 = 6 x 6 x 256 inputs
    fc7      16,781,312  16,781,312  16,781,312
    output    4,097,000   4,097,000   4,097,000
"""

import functools

import jax.numpy as jnp
from flax import linen as nn

from cnn_research.models import initializers, layers

UNITS = 4096  # of fc6 and fc7


def _initializers(kernel_init: str) -> tuple[nn.initializers.Initializer, nn.initializers.Initializer]:
    """For all kernels, and for the biases of conv2, conv4, conv5, fc6 and fc7; the other biases start at 0.

    Section 5: N(0, 0.01^2) and 1, which speeds up the start by giving the rectifiers positive inputs.
    """
    layers.check_choice("kernel_init", kernel_init, ("paper", *layers.INITIALIZERS))
    if kernel_init == "paper":
        return initializers.normal(0.01), nn.initializers.ones_init()
    return layers.INITIALIZERS[kernel_init], nn.initializers.zeros_init()


class AlexNet(nn.Module):
    """The network of 2012: local response normalisation, overlapping max-pooling, two towers.

    A tower is half of the maps, and what one GPU of 3 GB could hold. conv2, conv4 and conv5 see their own tower's maps
    only: the first half of the channels is one tower, the second the other. conv3 and the fully-connected layers see
    both.

    The paper says 224x224, but its arithmetic needs 227: floor((227 - 11) / 4) + 1 = 55. Images of 224x224 are
    therefore padded, by conv1's own zero padding of 2 on each side, and give 55x55 too. All other sizes are taken as
    they are, from 67x67 upwards; fc6 grows with the input.

    Normalisation and pooling follow the activation (section 3.5). The sum of the normalisation runs over all maps of
    the layer, as the paper's formula says, so at the middle it reaches across the towers.

    On a CPU, XLA is slow at the gradient of grouped convolutions: that of conv2's kernel took four times as long with
    two towers as with one, at half the arithmetic. To train there, take `alexnet_one_tower`.

    Attributes:
        num_classes: K, the number of logits.
        towers: 2, or 1 for convolutions that see all maps.
        dropout_rate: share of units dropped after fc6 and fc7, in training. What is kept is scaled up then, where the
            paper scales all down in evaluation.
        kernel_init: "paper": N(0, 0.01^2), with the paper's biases of 1; or one of `layers.INITIALIZERS`, with biases
            of 0.
        dtype: compute type.
        conv: convolution module, of `nn.Conv`'s signature.
    """

    num_classes: int
    towers: int = 2
    dropout_rate: float = 0.5
    kernel_init: str = "paper"
    dtype: layers.Dtype = jnp.float32
    conv: layers.ModuleDef = nn.Conv

    @nn.compact
    def __call__(self, x: layers.Array, train: bool = False) -> layers.Array:
        """x: float[N, H, W, C] -> logits float32[N, num_classes].

        Raises:
            ValueError: the input is too small for a layer, or a field is not one of its allowed values.
        """
        kernel_init, one = _initializers(self.kernel_init)
        conv = functools.partial(layers.conv, module=self.conv, kernel_init=kernel_init, dtype=self.dtype)
        tower_conv = functools.partial(conv, feature_group_count=self.towers, bias_init=one)
        pool = functools.partial(layers.pool, kind="max", size=3, stride=2)
        dense = functools.partial(
            layers.hidden_dense,
            features=UNITS,
            activation="relu",
            dropout_rate=self.dropout_rate,
            train=train,
            kernel_init=kernel_init,
            bias_init=one,
            dtype=self.dtype,
        )

        x = jnp.asarray(x, self.dtype)
        padding = 2 if x.shape[1:3] == (224, 224) else 0
        x = nn.relu(conv(x, 96, 11, name="conv1", stride=4, padding=padding))
        x = layers.local_response_norm(x, name="norm1")
        x = pool(x, name="pool1")
        x = nn.relu(tower_conv(x, 256, 5, name="conv2", padding=2))
        x = layers.local_response_norm(x, name="norm2")
        x = pool(x, name="pool2")
        x = nn.relu(conv(x, 384, 3, name="conv3", padding=1))
        x = nn.relu(tower_conv(x, 384, 3, name="conv4", padding=1))
        x = nn.relu(tower_conv(x, 256, 3, name="conv5", padding=1))
        x = pool(x, name="pool5")
        x = layers.flatten(x)
        x = dense(x, name="fc6")
        x = dense(x, name="fc7")
        return layers.output_dense(x, self.num_classes, kernel_init=kernel_init)


class AlexNetOWT(nn.Module):
    """torchvision's AlexNet, after Krizhevsky, "One weird trick for parallelizing convolutional neural networks", 2014.

    One tower, with conv1 to conv5 of 64, 192, 384, 256 and 256 maps, and no local response normalisation. From
    torchvision: conv1 padded by 2 at 224x224 input, average pooling to 6x6 whatever the input, so that images of any
    size from 63x63 give the same parameters; dropout before each hidden fully-connected layer, not after it.

    "paper" initialises as the paper of 2012 does, of which this network is a variation. torchvision's own weights start
    as PyTorch's layers do by default: uniform with variance 1 / (3 fan_in), biases too.

    Attributes:
        num_classes: K, the number of logits.
        dropout_rate: share of units dropped in training before fc6, of what pool5 gives, and before fc7.
        kernel_init: as in `AlexNet`.
        dtype: compute type.
        conv: convolution module, of `nn.Conv`'s signature.
    """

    num_classes: int
    dropout_rate: float = 0.5
    kernel_init: str = "paper"
    dtype: layers.Dtype = jnp.float32
    conv: layers.ModuleDef = nn.Conv

    @nn.compact
    def __call__(self, x: layers.Array, train: bool = False) -> layers.Array:
        """x: float[N, H, W, C] -> logits float32[N, num_classes].

        Raises:
            ValueError: the input is too small for a layer, or a field is not one of its allowed values.
        """
        kernel_init, one = _initializers(self.kernel_init)
        conv = functools.partial(layers.conv, module=self.conv, kernel_init=kernel_init, dtype=self.dtype)
        pool = functools.partial(layers.pool, kind="max", size=3, stride=2)
        dense = functools.partial(
            layers.hidden_dense,
            features=UNITS,
            activation="relu",
            train=train,
            kernel_init=kernel_init,
            bias_init=one,
            dtype=self.dtype,
        )

        x = jnp.asarray(x, self.dtype)
        x = nn.relu(conv(x, 64, 11, name="conv1", stride=4, padding=2))
        x = pool(x, name="pool1")
        x = nn.relu(conv(x, 192, 5, name="conv2", padding=2, bias_init=one))
        x = pool(x, name="pool2")
        x = nn.relu(conv(x, 384, 3, name="conv3", padding=1))
        x = nn.relu(conv(x, 256, 3, name="conv4", padding=1, bias_init=one))
        x = nn.relu(conv(x, 256, 3, name="conv5", padding=1, bias_init=one))
        x = pool(x, name="pool5")
        x = layers.adaptive_average_pool(x, 6, name="average_pool")
        x = layers.flatten(x)
        x = layers.dropout(x, self.dropout_rate, train=train)
        x = dense(x, name="fc6", dropout_rate=self.dropout_rate)  # the dropout after fc6 is the one before fc7
        x = dense(x, name="fc7", dropout_rate=0.0)
        return layers.output_dense(x, self.num_classes, kernel_init=kernel_init)
