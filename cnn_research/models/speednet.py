"""SpeedNet: a network made to learn CIFAR-10 in the least time.

Jordan 2024, "94% on CIFAR-10 in 3.29 seconds on a single GPU", section 3, as that author's later record with Muon has
it, which descends from Page 2019, "How to train your ResNet", and from the network hlb-CIFAR10:

    input        32x32x3
    whiten       2x2, 24 filters     31x31x24   fixed: see `SpeedNet.fit_to_data`
    block 1      3x3, 64, twice      15x15x64
    block 2      3x3, 256, twice      7x7x256
    block 3      3x3, 256, twice      3x3x256
    maximum                               256   of each channel
    output                                 10

A block is convolution, 2x2 max pooling, normalisation, activation, convolution, normalisation, activation. With ten
classes 1,971,640 parameters, of which 288 are fixed.
"""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from cnn_research.models import layers
from cnn_research.models.initializers import Scaled, normal, variance_scaling

# Of the whitening convolution.
_WINDOW = 2
_EPSILON = 5e-4  # added to the variance along each axis: the weakest are mostly noise

# Logits are so small a share of the last layer's products. Its kernel is larger in turn, which makes one learning rate
# suit it and the biases.
_LOGIT_SCALE = 1 / 72

# Running statistics follow fast, as training takes only a few hundred steps.
BatchNorm = functools.partial(nn.BatchNorm, use_scale=False, momentum=0.6, epsilon=1e-12)


def identity(key: jax.Array, shape: Sequence[int], dtype: Any = jnp.float32) -> jax.Array:
    """Kernels [h, w, I, O] whose first I filters give the input's channels on, one each; the others are random.

    Zagoruyko & Komodakis 2017, "DiracNets". The random ones are uniform, of PyTorch's default size.
    """
    *window, inputs, outputs = shape
    kernel = variance_scaling(1 / 3, "fan_in", "uniform")(key, shape)
    count = min(inputs, outputs)
    kept = np.zeros((*window, inputs, count), np.float32)
    kept[window[0] // 2, window[1] // 2, range(count), range(count)] = 1
    return kernel.at[..., :count].set(kept).astype(dtype)


class SpeedNet(nn.Module):
    """The network above; any image size from 9x9 upwards.

    Attributes:
        num_classes: K, the number of logits.
        filters: of the convolutions in each block.
        activation: one of `layers.ACTIVATIONS`.
        dtype: compute type.
        norm: normalisation module, of `nn.BatchNorm`'s signature.
    """

    num_classes: int
    filters: tuple[int, ...] = (64, 256, 256)
    activation: str = "gelu"
    dtype: layers.Dtype = jnp.float32
    norm: layers.ModuleDef = BatchNorm

    @nn.compact
    def __call__(self, x: layers.Array, train: bool = False) -> layers.Array:
        """x: float[N, H, W, C] -> logits float32[N, num_classes].

        Raises:
            ValueError: the images are too small, or `activation` is unknown.
        """

        def finish(x: layers.Array, name: str) -> layers.Array:
            norm = self.norm(use_running_average=not train, dtype=self.dtype, name=name)
            return layers.activate(norm(x), self.activation, name=name)

        x = jnp.asarray(x, self.dtype)
        fan_in = _WINDOW**2 * x.shape[-1]
        bias_init = Scaled("uniform", lambda shape: np.float32(fan_in**-0.5))
        x = layers.conv(x, 2 * fan_in, _WINDOW, name="whiten", dtype=self.dtype, bias_init=bias_init)
        x = layers.activate(x, self.activation, name="whiten")
        for number, features in enumerate(self.filters, 1):
            for half in (1, 2):
                name = f"{number}_{half}"
                x = layers.conv(
                    x,
                    features,
                    3,
                    name=f"conv{name}",
                    padding=1,
                    use_bias=False,
                    kernel_init=identity,
                    dtype=self.dtype,
                )
                if half == 1:
                    x = layers.pool(x, "max", 2, name=f"pool{number}")
                x = finish(x, f"norm{name}")
        with jax.named_scope("maximum"):
            x = jnp.max(x, axis=(1, 2))
        # The logits start as a sum of the features times N(0, 1), divided by their number.
        kernel_init = normal(stddev=1 / (_LOGIT_SCALE * x.shape[-1]))
        return _LOGIT_SCALE * layers.output_dense(x, self.num_classes, use_bias=False, kernel_init=kernel_init)

    @staticmethod
    def fit_to_data(variables: dict[str, Any], images: np.ndarray) -> dict[str, Any]:
        """Makes of the initial variables those that suit the data: the first layer's kernel whitens 2x2 patches.

        Its filters are the principal axes of the patches, divided by the deviation along each, and the same with the
        other sign, since what follows is a rectifier. Meant to be frozen ("^whiten/kernel").

        Args:
            variables: {"params", ...}, which isn't changed.
            images: float32[N, H, W, C], normalised; some thousands are enough.

        Returns:
            Variables of the same shapes.
        """
        patches = np.lib.stride_tricks.sliding_window_view(images, (_WINDOW, _WINDOW), axis=(1, 2))
        patches = np.moveaxis(patches, 3, -1).reshape(-1, _WINDOW**2 * images.shape[-1])  # h, w, C, as a kernel has it
        moments = patches.T @ patches / len(patches)
        variances, axes = np.linalg.eigh(moments.astype(np.float64))
        filters = axes / np.sqrt(variances + _EPSILON)
        kernel = np.concatenate([filters, -filters], axis=1).astype(np.float32)
        kernel = jnp.asarray(kernel.reshape(_WINDOW, _WINDOW, images.shape[-1], -1))
        whiten = variables["params"]["whiten"] | {"kernel": kernel}
        return variables | {"params": variables["params"] | {"whiten": whiten}}
