"""ResNet: He, Zhang, Ren & Sun, "Deep residual learning for image recognition", CVPR 2016, table 1 and section 4.2.

Parameters with 1000 classes and, with the stem for small images, with 10:
    ResNet-18 11,689,512 (11,173,962), -34 21,797,672 (21,282,122), -50 25,557,032 (23,520,842), -101 44,549,160
    (42,512,970), -152 60,192,808 (58,156,618).
Parameters of the CIFAR networks with 10 classes and shortcuts A (B):
    ResNet-20 269,722 (272,474), -32 464,154 (466,906), -44 658,586 (661,338), -56 853,018 (855,770), -110 1,727,962
    (1,730,714).

Layers carry torchvision's names (conv1, layer1_0, ...), with "norm" for "bn" and with "downsample_conv" and
"downsample_norm" for the two parts of a projection; the last layer is `output`.
"""

import functools
from collections.abc import Callable, Sequence

import jax.numpy as jnp
from flax import linen as nn

from cnn_research.models import layers

# Depth -> blocks in each of the four stages: table 1. From 50 on a block is a bottleneck.
STAGES = {
    18: (2, 2, 2, 2),
    34: (3, 4, 6, 3),
    50: (3, 4, 6, 3),
    101: (3, 4, 23, 3),
    152: (3, 8, 36, 3),
}

STEMS = ("imagenet", "cifar")
SHORTCUTS = ("A", "B")

_EXPANSION = 4  # a bottleneck's last convolution has four times the channels of the others
_REDUCTION = 16  # a squeeze has a sixteenth of the channels: r of Hu et al. 2018


class SqueezeExcitation(nn.Module):
    """Scales each channel by a number in (0, 1) that depends on the means of all: [N, H, W, C] -> [N, H, W, C].

    Hu, Shen & Sun 2018, "Squeeze-and-excitation networks".

    Attributes:
        kernel_init: of both fully-connected layers.
        dtype: compute type.
    """

    kernel_init: nn.initializers.Initializer
    dtype: layers.Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: layers.Array) -> layers.Array:
        channels = x.shape[-1]
        dense = functools.partial(nn.Dense, kernel_init=self.kernel_init, dtype=self.dtype)
        scale = layers.global_average_pool(x)
        scale = nn.relu(dense(max(1, channels // _REDUCTION), name="squeeze")(scale))
        scale = nn.sigmoid(dense(channels, name="excite")(scale))
        return x * scale[:, None, None, :]


class ResidualBlock(nn.Module):
    """relu(shortcut(x) + residual(x)): [N, H, W, C] -> [N, ceil(H / stride), ceil(W / stride), C'].

    The residual is two 3x3 convolutions of `features` channels, or, as a bottleneck, 1x1 and 3x3 of `features` and 1x1
    of 4 `features`; each is normalised, and rectified but for the last. The shortcut is the identity unless the
    shape changes.

    Attributes:
        features: see above.
        bottleneck: see above.
        conv: `layers.conv` with all settings that the network's convolutions share.
        norm: a normalisation module with likewise.
        stride: of the block, pixels.
        stride_in_1x1: a bottleneck strides in its first 1x1 convolution rather than in the 3x3.
        shortcut: where the shape changes, "A": every stride-th pixel, and zeros for the new channels, which come last;
            no parameters. "B": a strided 1x1 convolution, normalised.
        zero_init_residual: the last normalisation's scale starts at 0, so that the block starts as its shortcut.
        excite: a module to put after the residual, or None.
        drop: what stochastic depth does to the residual.
    """

    features: int
    bottleneck: bool
    conv: Callable[..., layers.Array]
    norm: layers.ModuleDef
    stride: int = 1
    stride_in_1x1: bool = False
    shortcut: str = "B"
    zero_init_residual: bool = False
    excite: layers.ModuleDef | None = None
    drop: Callable[[layers.Array], layers.Array] = lambda x: x

    @nn.compact
    def __call__(self, x: layers.Array) -> layers.Array:
        if self.bottleneck:
            convolutions = [(self.features, 1), (self.features, 3), (self.features * _EXPANSION, 1)]
        else:
            convolutions = [(self.features, 3), (self.features, 3)]
        strided = 2 if self.bottleneck and not self.stride_in_1x1 else 1
        last = len(convolutions)

        y = x
        for number, (features, kernel_size) in enumerate(convolutions, start=1):
            stride = self.stride if number == strided else 1
            y = self.conv(y, features, kernel_size, name=f"conv{number}", stride=stride, padding=kernel_size // 2)
            zeros = {"scale_init": nn.initializers.zeros_init()} if self.zero_init_residual and number == last else {}
            y = self.norm(name=f"norm{number}", **zeros)(y)
            if number < last:
                y = nn.relu(y)
        if self.excite is not None:
            y = self.excite(name="squeeze_excitation")(y)
        return nn.relu(self._shortcut(x, y.shape[-1]) + self.drop(y))

    def _shortcut(self, x: layers.Array, features: int) -> layers.Array:
        if self.stride == 1 and x.shape[-1] == features:
            return x
        if self.shortcut == "A":
            x = x[:, :: self.stride, :: self.stride]
            return jnp.pad(x, ((0, 0), (0, 0), (0, 0), (0, features - x.shape[-1])))
        x = self.conv(x, features, 1, name="downsample_conv", stride=self.stride)
        return self.norm(name="downsample_norm")(x)


class _ResNet(nn.Module):
    """What both forms have in common: see `ResNet`."""

    num_classes: int
    depth: int
    shortcut: str = "B"
    zero_init_residual: bool = False
    squeeze_excitation: bool = False
    stochastic_depth_rate: float = 0.0
    dropout_rate: float = 0.0
    kernel_init: str = "he"
    dtype: layers.Dtype = jnp.float32
    conv: layers.ModuleDef = nn.Conv
    norm: layers.ModuleDef = layers.BatchNorm

    def _stages(
        self,
        x: layers.Array,
        train: bool,
        blocks: Sequence[int],
        width: int,
        *,
        bottleneck: bool = False,
        stride_in_1x1: bool = False,
    ) -> layers.Array:
        """[N, H, W, C] -> logits. `blocks` in each stage; `width` channels in the first, twice as many in each next."""
        layers.check_choice("shortcut", self.shortcut, SHORTCUTS)
        conv, norm = layers.conv_and_norm(self, train)
        kernel_init = layers.INITIALIZERS[self.kernel_init]
        excite = None
        if self.squeeze_excitation:
            excite = functools.partial(SqueezeExcitation, kernel_init=kernel_init, dtype=self.dtype)
        number = 0
        for stage, count in enumerate(blocks):
            for index in range(count):
                number += 1
                # Huang et al. 2016, equation 4: early features are needed by all that follows, so they are safer.
                rate = self.stochastic_depth_rate * number / sum(blocks)
                x = ResidualBlock(
                    features=width * 2**stage,
                    bottleneck=bottleneck,
                    conv=conv,
                    norm=norm,
                    stride=2 if stage > 0 and index == 0 else 1,
                    stride_in_1x1=stride_in_1x1,
                    shortcut=self.shortcut,
                    zero_init_residual=self.zero_init_residual,
                    excite=excite,
                    drop=functools.partial(
                        layers.dropout, rate=rate, train=train, field="stochastic_depth_rate", whole_examples=True
                    ),
                    name=f"layer{stage + 1}_{index}",
                )(x)
        x = layers.global_average_pool(x)
        x = layers.dropout(x, self.dropout_rate, train=train)
        return layers.output_dense(x, self.num_classes, kernel_init=kernel_init)


class ResNet(_ResNet):
    """ResNet-18 to -152: table 1 of the paper, with torchvision's placement of the strides.

    Stem, four stages of residual blocks that halve the image three times, global average pool, one fully-connected
    layer. Any image size from 1x1 upwards. No convolution has a bias: the normalisation would subtract it again.

    Attributes:
        num_classes: K, the number of logits.
        depth: one of STAGES.
        shortcut: where the shape changes, "B": 1x1 convolution, normalised; "A": subsampled and padded with zeros.
            (Table 3: ResNet-34 has a top-1 error of 24.52 % with B, 25.03 % with A.)
        zero_init_residual: the scale of each block's last normalisation starts at 0 (Goyal et al. 2017, section 5.1).
        squeeze_excitation: every residual is followed by Hu et al. 2018's block, with a reduction of 16.
        stochastic_depth_rate: probability in [0, 1) of dropping the last block's residual, in training; block l of L
            has l / L of it (Huang et al. 2016). Each image draws for itself, and what is kept is divided by its
            probability, so that evaluation needs no factor; the paper drops for the whole batch and multiplies in
            evaluation.
        dropout_rate: share of the averaged features dropped before the last layer, in training.
        kernel_init: of all kernels, one of `layers.INITIALIZERS`. "he" is the paper's: variance 2 / fan_in. (The
            authors' Torch code and torchvision take fan_out; they differ only where a convolution has another number
            of channels than its input, and there the normalisation makes up for it.)
        dtype: compute type.
        conv: convolution module, of `nn.Conv`'s signature.
        norm: normalisation module, of `nn.BatchNorm`'s signature.
        stem: "imagenet": 7x7 convolution with stride 2, 3x3 max pool with stride 2; "cifar", for small images: 3x3
            convolution with stride 1, no pool.
        stride_in_1x1: from depth 50 on, blocks stride in the first 1x1 convolution, as the paper (3.858 GMACs for
            ResNet-50), rather than in the 3x3, as torchvision and most others (4.089 GMACs, about half a percent
            better). No other number of parameters.
    """

    stem: str = "imagenet"
    stride_in_1x1: bool = False

    @nn.compact
    def __call__(self, x: layers.Array, train: bool = False) -> layers.Array:
        """x: float[N, H, W, C] -> logits float32[N, num_classes].

        Raises:
            ValueError: a field is not one of its allowed values, or the input is no image batch.
        """
        if self.depth not in STAGES:
            raise ValueError(f"depth={self.depth!r} is not one of {', '.join(map(str, STAGES))}")
        layers.check_choice("stem", self.stem, STEMS)
        bottleneck = self.depth >= 50
        if self.stride_in_1x1 and not bottleneck:
            raise ValueError(f"stride_in_1x1: ResNet-{self.depth} has only 3x3 convolutions in its blocks")
        conv, norm = layers.conv_and_norm(self, train)
        x = jnp.asarray(x, self.dtype)
        if self.stem == "imagenet":
            x = conv(x, 64, 7, name="conv1", stride=2, padding=3)
        else:
            x = conv(x, 64, 3, name="conv1", padding=1)
        x = nn.relu(norm(name="norm1")(x))
        if self.stem == "imagenet":
            x = layers.pool(x, "max", 3, name="maxpool", stride=2, padding=1)
        return self._stages(x, train, STAGES[self.depth], 64, bottleneck=bottleneck, stride_in_1x1=self.stride_in_1x1)


class CifarResNet(_ResNet):
    """ResNet-20 to -110 and any other of depth 6n + 2: section 4.2 of the paper.

    A 3x3 convolution, then three stages of n blocks with 16, 32 and 64 channels, at full, half and quarter size.

    Attributes:
        depth: 6n + 2.
        shortcut: "A" is the paper's: "in all cases", so that it has as many parameters as the plain network.
        others: as in `ResNet`.
    """

    shortcut: str = "A"

    @nn.compact
    def __call__(self, x: layers.Array, train: bool = False) -> layers.Array:
        """x: float[N, H, W, C] -> logits float32[N, num_classes].

        Raises:
            ValueError: a field is not one of its allowed values, or the input is no image batch.
        """
        blocks, remainder = divmod(self.depth - 2, 6)
        if blocks < 1 or remainder:
            raise ValueError(f"depth={self.depth!r} is not 6n + 2 with n >= 1: 20, 32, 44, 56, 110, ...")
        conv, norm = layers.conv_and_norm(self, train)
        x = conv(jnp.asarray(x, self.dtype), 16, 3, name="conv1", padding=1)
        x = nn.relu(norm(name="norm1")(x))
        return self._stages(x, train, (blocks,) * 3, 16)
