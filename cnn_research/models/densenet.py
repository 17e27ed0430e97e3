"""DenseNet: Huang, Liu, van der Maaten & Weinberger, "Densely connected convolutional networks", CVPR 2017, table 1.

Parameters with 1000 classes, growth rate k = 32 but for -161, which has 48:
    DenseNet-121 7,978,856, -161 28,681,000, -169 14,149,480, -201 20,013,928, -264 33,337,704.
Parameters of the CIFAR networks (table 2) with 10 classes:
    depth 40, k = 12: 1,019,722; 100, 12: 6,979,642; 100, 24: 27,249,082;
    BC, with bottlenecks and compression: 100, 12: 769,162; 250, 24: 15,324,406; 190, 40: 25,624,430.

Layers carry torchvision's names (conv0, norm0, denseblock1_layer1 with norm1, conv1, norm2, conv2, transition1 with
norm, conv; the last normalisation is norm5, and norm4 after three blocks); the last layer is `output`.
"""

import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from flax import linen as nn

from cnn_research.models import layers

# Depth -> layers in each of the four blocks: table 1.
BLOCKS = {
    121: (6, 12, 24, 16),
    161: (6, 12, 36, 24),
    169: (6, 12, 32, 32),
    201: (6, 12, 48, 32),
    264: (6, 12, 64, 48),
}

# What "BC" in a name stands for, and what its absence does.
BC = {"bottleneck": True, "compression": 0.5}
PLAIN = {"bottleneck": False, "compression": 1.0}

_BOTTLENECK = 4  # a bottleneck has 4k channels


class DenseLayer(nn.Module):
    """H_l of the paper: all earlier features, each [N, H, W, C_i], -> k new ones, [N, H, W, k].

    Normalise, rectify, 3x3 convolution; with a bottleneck, the same with a 1x1 convolution to 4k channels before that.

    The features are concatenated in here, so that rematerialisation can throw the concatenation away and keep only the
    pieces, which every layer shares.

    Attributes:
        growth_rate: k.
        bottleneck: see above.
        conv: `layers.conv` with all settings that the network's convolutions share, and dropout.
        norm: a normalisation module with likewise.
    """

    growth_rate: int
    bottleneck: bool
    conv: Callable[..., layers.Array]
    norm: layers.ModuleDef

    @nn.compact
    def __call__(self, *features: layers.Array) -> layers.Array:
        x = jnp.concatenate(features, axis=-1)
        number = 1
        if self.bottleneck:
            x = nn.relu(self.norm(name="norm1")(x))
            x = self.conv(x, _BOTTLENECK * self.growth_rate, 1, name="conv1")
            number = 2
        x = nn.relu(self.norm(name=f"norm{number}")(x))
        return self.conv(x, self.growth_rate, 3, name=f"conv{number}", padding=1)


class Transition(nn.Module):
    """Between two blocks: features, each [N, H, W, C_i], m channels together, -> [N, H/2, W/2, floor(theta m)].

    Normalise, rectify, 1x1 convolution, 2x2 average pool.

    Attributes:
        compression: theta.
        conv: `layers.conv` with all settings that the network's convolutions share, and dropout.
        norm: a normalisation module with likewise.
    """

    compression: float
    conv: Callable[..., layers.Array]
    norm: layers.ModuleDef

    @nn.compact
    def __call__(self, *features: layers.Array) -> layers.Array:
        x = jnp.concatenate(features, axis=-1)
        channels = int(self.compression * x.shape[-1])
        x = nn.relu(self.norm(name="norm")(x))
        x = self.conv(x, channels, 1, name="conv")
        return layers.pool(x, "average", 2, name=f"{self.name}_pool")


class _DenseNet(nn.Module):
    """What both forms have in common: see `DenseNet`."""

    num_classes: int
    depth: int
    growth_rate: int
    bottleneck: bool = True
    compression: float = 0.5
    dropout_rate: float = 0.0
    remat: bool = False
    kernel_init: str = "he"
    dtype: layers.Dtype = jnp.float32
    conv: layers.ModuleDef = nn.Conv
    norm: layers.ModuleDef = layers.BatchNorm

    def _blocks(self, x: layers.Array, train: bool, blocks: Sequence[int]) -> layers.Array:
        """[N, H, W, C] -> logits. `blocks`: layers in each."""
        plain_conv, norm = layers.conv_and_norm(self, train)

        def conv(*args, **kwargs) -> layers.Array:
            return layers.dropout(plain_conv(*args, **kwargs), self.dropout_rate, train=train)

        dense_layer, transition = DenseLayer, Transition
        if self.remat:
            # The policy keeps the results of convolutions: to repeat those would cost time, not only memory traffic.
            remat = functools.partial(nn.remat, policy=jax.checkpoint_policies.dots_saveable)
            dense_layer, transition = remat(DenseLayer), remat(Transition)

        features = [x]
        for block, num_layers in enumerate(blocks, start=1):
            if block > 1:
                features = [transition(self.compression, conv, norm, name=f"transition{block - 1}")(*features)]
            for layer in range(1, num_layers + 1):
                name = f"denseblock{block}_layer{layer}"
                features.append(dense_layer(self.growth_rate, self.bottleneck, conv, norm, name=name)(*features))
        x = jnp.concatenate(features, axis=-1)
        x = nn.relu(norm(name=f"norm{len(blocks) + 1}")(x))
        x = layers.global_average_pool(x)
        return layers.output_dense(x, self.num_classes, kernel_init=layers.INITIALIZERS[self.kernel_init])


class DenseNet(_DenseNet):
    """DenseNet-121 to -264: table 1 of the paper.

    7x7 convolution with stride 2 to 2k channels, 3x3 max pool with stride 2, four blocks in which every layer sees all
    those before it, transitions between them that halve the image, global average pool, one fully-connected layer. No
    convolution has a bias. The smallest image is 29x29.

    Attributes:
        num_classes: K, the number of logits.
        depth: one of BLOCKS.
        growth_rate: k, the channels that each layer adds.
        bottleneck: B of "DenseNet-BC": a 1x1 convolution to 4k channels before each 3x3.
        compression: theta, C of "DenseNet-BC": the share of the channels that a transition keeps.
        dropout_rate: share of units dropped after each convolution but the first, in training. The paper: 0.2 for
            CIFAR and SVHN without data augmentation, otherwise 0.
        remat: the backward pass concatenates, normalises and rectifies once more instead of keeping the results: they
            are what makes a plain DenseNet's memory grow with the square of its depth (Pleiss et al. 2017,
            "Memory-efficient implementation of DenseNets"). DenseNet-121 at 224x224 then keeps 39 MiB an image in
            float32 instead of 300. Convolutions are not repeated. Changes no value and no name.
        kernel_init: of all kernels, one of `layers.INITIALIZERS`; "he" is the paper's.
        dtype: compute type.
        conv: convolution module, of `nn.Conv`'s signature.
        norm: normalisation module, of `nn.BatchNorm`'s signature.
    """

    @nn.compact
    def __call__(self, x: layers.Array, train: bool = False) -> layers.Array:
        """x: float[N, H, W, C] -> logits float32[N, num_classes].

        Raises:
            ValueError: the input is too small for a layer, or a field is not one of its allowed values.
        """
        if self.depth not in BLOCKS:
            raise ValueError(f"depth={self.depth!r} is not one of {', '.join(map(str, BLOCKS))}")
        conv, norm = layers.conv_and_norm(self, train)
        x = conv(jnp.asarray(x, self.dtype), 2 * self.growth_rate, 7, name="conv0", stride=2, padding=3)
        x = nn.relu(norm(name="norm0")(x))
        x = layers.pool(x, "max", 3, name="pool0", stride=2, padding=1)
        return self._blocks(x, train, BLOCKS[self.depth])


class CifarDenseNet(_DenseNet):
    """The paper's networks for CIFAR and SVHN, section 4.2: 3x3 convolution, three blocks of equally many layers.

    The smallest image is 4x4.

    Attributes:
        depth: 3n + 4, and with bottlenecks 6n + 4, for n layers in a block.
        bottleneck: with it the first convolution has 2k channels, without it 16.
        others: as in `DenseNet`.
    """

    @nn.compact
    def __call__(self, x: layers.Array, train: bool = False) -> layers.Array:
        """x: float[N, H, W, C] -> logits float32[N, num_classes].

        Raises:
            ValueError: the input is too small for a layer, or a field is not one of its allowed values.
        """
        convolutions = 6 if self.bottleneck else 3  # of three layers, one in each block
        num_layers, remainder = divmod(self.depth - 4, convolutions)
        if num_layers < 1 or remainder:
            raise ValueError(f"depth={self.depth!r} is not {convolutions}n + 4 with n >= 1")
        conv, _ = layers.conv_and_norm(self, train)
        channels = 2 * self.growth_rate if self.bottleneck else 16
        x = conv(jnp.asarray(x, self.dtype), channels, 3, name="conv0", padding=1)
        return self._blocks(x, train, (num_layers,) * 3)
