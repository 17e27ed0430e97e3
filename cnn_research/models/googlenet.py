"""GoogLeNet: Szegedy et al., "Going deeper with convolutions", CVPR 2015, table 1 and figure 3.

`GoogLeNet` is the paper's: 6,998,552 parameters with 1000 classes, 13,378,280 with the two auxiliary heads. (The
"params" column of the paper's table does not follow from its own numbers of channels; its "ops" column does.)
`GoogLeNetBN` is torchvision's, batch-normalised and with 3x3 in place of 5x5: 6,624,904, and 13,004,888 with the heads.

Layers carry torchvision's names: conv1, conv2, conv3, inception3a with branch1, branch2_0, branch2_1, ..., aux1 and
aux2 with conv, fc1 and fc2. A convolution's normalisation has its name and "_norm"; the last layer is `output`.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from flax import linen as nn

from cnn_research.models import layers

# Module -> channels of: 1x1; 1x1 before the 3x3, 3x3; 1x1 before the 5x5, 5x5; 1x1 after the pool. Table 1.
MODULES = {
    "3a": (64, 96, 128, 16, 32, 32),
    "3b": (128, 128, 192, 32, 96, 64),
    "4a": (192, 96, 208, 16, 48, 64),
    "4b": (160, 112, 224, 24, 64, 64),
    "4c": (128, 128, 256, 24, 64, 64),
    "4d": (112, 144, 288, 32, 64, 64),
    "4e": (256, 160, 320, 32, 128, 128),
    "5a": (256, 160, 320, 32, 128, 128),
    "5b": (384, 192, 384, 48, 128, 128),
}

_HEADS = {"4a": "aux1", "4d": "aux2"}  # an auxiliary head looks at the output of this module
_HEAD_DROPOUT = 0.7

# x, features, kernel_size, name=, stride=, padding= -> convolution, normalisation if any, rectifier.
Unit = Callable[..., layers.Array]


class Inception(nn.Module):
    """Four branches side by side: [N, H, W, C] -> [N, H, W, sum of the branches' channels].

    Attributes:
        channels: a value of MODULES.
        unit: the network's convolution.
        large_kernel_size: of the third branch, 5 in the paper.
    """

    channels: tuple[int, ...]
    unit: Unit
    large_kernel_size: int = 5

    @nn.compact
    def __call__(self, x: layers.Array) -> layers.Array:
        ones, reduce_small, small, reduce_large, large, projection = self.channels
        size = self.large_kernel_size
        y1 = self.unit(x, ones, 1, name="branch1")
        y2 = self.unit(x, reduce_small, 1, name="branch2_0")
        y2 = self.unit(y2, small, 3, name="branch2_1", padding=1)
        y3 = self.unit(x, reduce_large, 1, name="branch3_0")
        y3 = self.unit(y3, large, size, name="branch3_1", padding=size // 2)
        y4 = layers.pool(x, "max", 3, name=f"{self.name}_pool", stride=1, padding=1)
        y4 = self.unit(y4, projection, 1, name="branch4_1")
        return jnp.concatenate([y1, y2, y3, y4], axis=-1)


class AuxiliaryHead(nn.Module):
    """A small classifier that brings the loss nearer to the early layers: [N, H, W, C] -> logits float32[N, K].

    Pool, 1x1 convolution of 128 channels, fully-connected layer of 1024 units, dropout of 70 %, the output.

    Attributes:
        num_classes: K.
        unit: the network's convolution.
        pool: to 4x4 of the maps of the network's usual image size.
        kernel_init: of the fully-connected layers.
        dtype: compute type.
    """

    num_classes: int
    unit: Unit
    pool: Callable[..., layers.Array]
    kernel_init: nn.initializers.Initializer
    dtype: layers.Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: layers.Array, train: bool) -> layers.Array:
        try:
            x = self.pool(x, name=f"{self.name}_pool")
        except ValueError as error:
            raise ValueError(f"{error}; auxiliary_heads=False leaves the head out") from None
        x = layers.flatten(self.unit(x, 128, 1, name="conv"))
        settings = {"kernel_init": self.kernel_init, "dtype": self.dtype}
        x = layers.hidden_dense(
            x, 1024, name="fc1", activation="relu", dropout_rate=_HEAD_DROPOUT, train=train, **settings
        )
        return nn.Dense(self.num_classes, dtype=jnp.float32, kernel_init=self.kernel_init, name="fc2")(x)


class _GoogLeNet(nn.Module):
    """What both forms have in common: see `GoogLeNet`."""

    num_classes: int
    auxiliary_heads: bool = True
    dropout_rate: float = 0.4
    kernel_init: str = "he"
    dtype: layers.Dtype = jnp.float32
    conv: layers.ModuleDef = nn.Conv

    def _settings(self) -> dict[str, Any]:
        """Of every layer but the outputs."""
        layers.check_choice("kernel_init", self.kernel_init, layers.INITIALIZERS)
        return {"kernel_init": layers.INITIALIZERS[self.kernel_init], "dtype": self.dtype}

    def _forward(
        self,
        x: layers.Array,
        train: bool,
        *,
        unit: Unit,
        respond: Callable[..., layers.Array],
        large_kernel_size: int,
        last_pool_size: int,
        head_pool: Callable[..., layers.Array],
    ) -> layers.Array:
        """float[N, H, W, C] -> logits float32[N, K].

        Args:
            unit, large_kernel_size: see `Inception`.
            respond: the local response normalisation, or nothing; takes a name.
            last_pool_size: of the pool before 5a.
            head_pool: see `AuxiliaryHead`.
        """
        # 112 -> 56 -> 28 -> 14 -> 7: nothing is dropped, as windows may reach over the bottom and the right edge.
        halve = functools.partial(layers.pool, kind="max", stride=2, ceil_mode=True)

        x = unit(jnp.asarray(x, self.dtype), 64, 7, name="conv1", stride=2, padding=3)
        x = respond(halve(x, size=3, name="pool1"), name="lrn1")
        x = unit(x, 64, 1, name="conv2")
        x = unit(x, 192, 3, name="conv3", padding=1)
        x = halve(respond(x, name="lrn2"), size=3, name="pool2")
        for module, channels in MODULES.items():
            if module == "4a":
                x = halve(x, size=3, name="pool3")
            elif module == "5a":
                x = halve(x, size=last_pool_size, name="pool4")
            x = Inception(channels, unit, large_kernel_size, name=f"inception{module}")(x)
            if self.auxiliary_heads and module in _HEADS:
                self._run_head(x, train, _HEADS[module], unit, head_pool)
        x = layers.global_average_pool(x)
        x = layers.dropout(x, self.dropout_rate, train=train)
        return layers.output_dense(x, self.num_classes, kernel_init=self._settings()["kernel_init"])

    def _run_head(self, x: layers.Array, train: bool, name: str, unit: Unit, pool: Callable[..., layers.Array]) -> None:
        # In evaluation nobody reads the heads. At initialisation they must run all the same, to have parameters, but
        # must not sow, or their logits would be among the variables.
        if train or self.is_initializing():
            logits = AuxiliaryHead(self.num_classes, unit, pool, name=name, **self._settings())(x, train)
            if not self.is_initializing():
                self.sow("auxiliary", f"{name}_logits", logits)


class GoogLeNet(_GoogLeNet):
    """GoogLeNet as published: biases, 5x5 convolutions, local response normalisation, two auxiliary heads.

    Where the paper is silent: local response normalisation has AlexNet's constants, and kernels start as He et al. 2015
    have it, biases at 0. Through 21 rectified layers that keeps what tells images apart; with Xavier's kernels and
    Caffe's biases of 0.2 the first logits differ thirty to fifty times less from image to image.

    The smallest image is 31x31, and 79x79 with auxiliary heads, whose 5x5 average pool with stride 3 needs maps of 5x5.
    It makes 4x4 of the paper's 14x14; at other image sizes fc1 has other inputs, and another number of parameters.

    Attributes:
        num_classes: K, the number of logits.
        auxiliary_heads: with the two heads. In training they `sow` their logits, float32[N, K] each, into the
            collection "auxiliary" as aux1_logits and aux2_logits: `apply` returns them if it may change that
            collection. The paper adds their losses with a weight of 0.3. In evaluation they aren't computed.
        dropout_rate: share of the averaged features dropped before the last layer, in training; the heads' own rate is
            0.7.
        kernel_init: of all kernels, one of `layers.INITIALIZERS`.
        dtype: compute type.
        conv: convolution module, of `nn.Conv`'s signature.
    """

    @nn.compact
    def __call__(self, x: layers.Array, train: bool = False) -> layers.Array:
        """x: float[N, H, W, C] -> logits float32[N, num_classes].

        Raises:
            ValueError: the input is too small for a layer, or a field is not one of its allowed values.
        """

        def unit(x: layers.Array, features: int, kernel_size: int, **kwargs) -> layers.Array:
            return nn.relu(layers.conv(x, features, kernel_size, module=self.conv, **self._settings(), **kwargs))

        return self._forward(
            x,
            train,
            unit=unit,
            respond=layers.local_response_norm,
            large_kernel_size=5,
            last_pool_size=3,
            head_pool=functools.partial(layers.pool, kind="average", size=5, stride=3),
        )


class GoogLeNetBN(_GoogLeNet):
    """torchvision's GoogLeNet: batch normalisation after every convolution, no biases, 3x3 for 5x5 convolutions.

    There is no local response normalisation, the last pool is 2x2, and the heads pool to 4x4 whatever the image size.
    The smallest image is 15x15. (torchvision's trained weights expect images in [-1, 1].)

    Attributes:
        large_kernel_size: of the third branch: 3 as torchvision, or 5 as the paper (7,005,832 parameters with 1000
            classes, 13,385,816 with the heads).
        norm: normalisation module, of `nn.BatchNorm`'s signature.
        others: as in `GoogLeNet`.
    """

    dropout_rate: float = 0.2
    large_kernel_size: int = 3
    norm: layers.ModuleDef = functools.partial(layers.BatchNorm, epsilon=1e-3)

    @nn.compact
    def __call__(self, x: layers.Array, train: bool = False) -> layers.Array:
        """x: float[N, H, W, C] -> logits float32[N, num_classes].

        Raises:
            ValueError: the input is too small for a layer, or a field is not one of its allowed values.
        """

        def unit(x: layers.Array, features: int, kernel_size: int, *, name: str, **kwargs) -> layers.Array:
            settings = {"module": self.conv, "use_bias": False, **self._settings(), **kwargs}
            x = layers.conv(x, features, kernel_size, name=name, **settings)
            x = self.norm(use_running_average=not train, dtype=self.dtype, name=f"{name}_norm")(x)
            return nn.relu(x)

        return self._forward(
            x,
            train,
            unit=unit,
            respond=lambda x, name: x,
            large_kernel_size=self.large_kernel_size,
            last_pool_size=2,
            head_pool=functools.partial(layers.adaptive_average_pool, size=4),
        )
