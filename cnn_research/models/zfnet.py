"""ZFNet: Zeiler & Fergus, "Visualizing and understanding convolutional networks", ECCV 2014 (arXiv 1311.2901v3, 2013).

AlexNet in one tower with a finer first layer, 7x7 with stride 2 in place of 11x11 with stride 4: made visible,
AlexNet's first layer showed "little coverage of the mid frequencies" and its second showed aliasing. Parameters at
224x224x3 and 1,000 classes:

    layer         zfnet    zfnet_wide   output at 224x224
    conv1        14,208        14,208   110x110x96,  pool1 55x55
    conv2       614,656       614,656   26x26x256,   pool2 13x13
    conv3       885,120     1,180,160   13x13x384,   wide 512
    conv4     1,327,488     4,719,616   13x13x384,   wide 1,024
    conv5       884,992     4,719,104   13x13x256,   wide 512; pool5 6x6
    fc6      37,752,832    75,501,568   4,096
    fc7      16,781,312    16,781,312   4,096
    output    4,097,000     4,097,000   1,000
    total    62,357,608   107,627,624

`zfnet` is the paper's figure 3. `zfnet_wide` is model (b) of its ImageNet results, with 512, 1,024 and 512 maps in
layers 3 to 5.
"""

import functools

import jax.numpy as jnp
from flax import linen as nn

from cnn_research.models import initializers, layers

UNITS = 4096  # of fc6 and fc7


class ZFNet(nn.Module):
    """Five convolutions, contrast normalisation after pool1 and pool2, three fully-connected layers.

    What the paper leaves open, and how it is settled here:

    * Its sizes at 224x224, from 110 to 55, 26, 13, 13, 13 and 6, follow with one zero around conv1's input, none around
      conv2's, one around those of conv3 to conv5, and pooling that takes partly filled windows along (ceil_mode), as
      Caffe and GoogLeNet do: one rule for the three poolings, 110 -> 55, 26 -> 13 and 13 -> 6. No padding gives all
      three when such windows are left out.
    * "Contrast normalized across feature maps" is AlexNet's local response normalisation with AlexNet's constants; no
      others are given.
    * "All weights are initialized to 10^-2" is N(0, 0.01^2), as AlexNet's: equal weights would give equal units for
      ever. Biases start at 0.

    In training the paper also scales each filter of a convolution whose RMS is above 0.1 back to 0.1 after a step.
    That is for the optimizer to do; nothing of it is in here.

    Images may have any size from 47x47; fc6 grows with them.

    Attributes:
        num_classes: K, the number of logits.
        filters: maps of conv3, conv4 and conv5.
        dropout_rate: share of units dropped after fc6 and fc7, in training.
        kernel_init: "paper": N(0, 0.01^2); or one of `layers.INITIALIZERS`. Biases start at 0.
        dtype: compute type.
        conv: convolution module, of `nn.Conv`'s signature.
    """

    num_classes: int
    filters: tuple[int, int, int] = (384, 384, 256)
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
        layers.check_choice("kernel_init", self.kernel_init, ("paper", *layers.INITIALIZERS))
        kernel_init = {**layers.INITIALIZERS, "paper": initializers.normal(0.01)}[self.kernel_init]
        conv = functools.partial(layers.conv, module=self.conv, kernel_init=kernel_init, dtype=self.dtype)
        pool = functools.partial(layers.pool, kind="max", size=3, stride=2, ceil_mode=True)
        dense = functools.partial(
            layers.hidden_dense,
            features=UNITS,
            activation="relu",
            dropout_rate=self.dropout_rate,
            train=train,
            kernel_init=kernel_init,
            dtype=self.dtype,
        )

        x = jnp.asarray(x, self.dtype)
        x = nn.relu(conv(x, 96, 7, name="conv1", stride=2, padding=1))
        x = pool(x, name="pool1")
        x = layers.local_response_norm(x, name="norm1")
        x = nn.relu(conv(x, 256, 5, name="conv2", stride=2))
        x = pool(x, name="pool2")
        x = layers.local_response_norm(x, name="norm2")
        for number, filters in enumerate(self.filters, start=3):
            x = nn.relu(conv(x, filters, 3, name=f"conv{number}", padding=1))
        x = pool(x, name="pool5")
        x = layers.flatten(x)
        x = dense(x, name="fc6")
        x = dense(x, name="fc7")
        return layers.output_dense(x, self.num_classes, kernel_init=kernel_init)
