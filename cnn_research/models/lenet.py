"""LeNet-5: LeCun, Bottou, Bengio & Haffner, "Gradient-based learning applied to document recognition", Proc. IEEE
86(11), 1998, section II-B.

`LeNet5` is the form in use today: 61,706 parameters at 32x32x1 and 10 classes
    (C1 156, C3 2,416, C5 48,120, F6 10,164, output 850).
`LeNet5Paper` is the network of the paper: 60,000 trainable parameters and 340,908 connections
    (C1 156, S2 12, C3 1,516, S4 32, C5 48,120, F6 10,164; the output layer's 840 weights are fixed).

Layers carry the paper's names: C convolution, S subsampling, F fully connected.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from cnn_research.models import layers


class LeNet5(nn.Module):
    """The modern LeNet-5: C3 sees all maps of S2, plain pooling, a linear output layer for softmax cross-entropy.

    28x28 images (MNIST as it is distributed) are padded by 2 to the paper's 32x32, by C1's own zero padding; all other
    sizes are taken as they are, from 16x16 upwards. C5, in the paper a convolution whose input is exactly one kernel
    large, is a fully-connected layer here, the same at 32x32; at other sizes its parameter count follows the input.

    Attributes:
        num_classes: K, the number of logits.
        activation: one of `layers.ACTIVATIONS`.
        pool: of S2 and S4, 2x2 with stride 2: "max", "average" or "sum"; a tuple of one for both, or of one each.
        dropout_rate: share of units dropped after C5 and F6, in training.
        kernel_init: of all kernels, one of `layers.INITIALIZERS`; biases start at 0.
        dtype: compute type.
        conv: convolution module, of `nn.Conv`'s signature.
    """

    num_classes: int
    activation: str = "relu"
    pool: str | tuple[str, ...] = "max"
    dropout_rate: float = 0.0
    kernel_init: str = "lecun"
    dtype: layers.Dtype = jnp.float32
    conv: layers.ModuleDef = nn.Conv

    @nn.compact
    def __call__(self, x: layers.Array, train: bool = False) -> layers.Array:
        """x: float[N, H, W, C] -> logits float32[N, num_classes].

        Raises:
            ValueError: the input is too small for a layer, or a field is not one of its allowed values.
        """
        layers.check_choice("kernel_init", self.kernel_init, layers.INITIALIZERS)
        settings = {"kernel_init": layers.INITIALIZERS[self.kernel_init], "dtype": self.dtype}
        hidden = {"activation": self.activation, "dropout_rate": self.dropout_rate, "train": train, **settings}
        s2, s4 = layers.per_stage("pool", self.pool, 2)

        x = jnp.asarray(x, self.dtype)
        padding = 2 if x.shape[1:3] == (28, 28) else 0
        x = layers.conv(x, 6, 5, name="C1", padding=padding, module=self.conv, **settings)
        x = layers.activate(x, self.activation, name="C1")
        x = layers.pool(x, s2, 2, name="S2")
        x = layers.conv(x, 16, 5, name="C3", module=self.conv, **settings)
        x = layers.activate(x, self.activation, name="C3")
        x = layers.pool(x, s4, 2, name="S4")
        x = layers.flatten(x)
        x = layers.hidden_dense(x, 120, name="C5", **hidden)
        x = layers.hidden_dense(x, 84, name="F6", **hidden)
        return layers.output_dense(x, self.num_classes, kernel_init=settings["kernel_init"])


# Table I of the paper: row = map of S2, column = map of C3, X = connected. Three and four neighbouring maps, then four
# in two pairs, then all; no two maps of C3 see the same ones, which "forces a break of symmetry", and the connections
# stay few enough for 1998.
_TABLE_I = """
    X...XXX..XXXX.XX
    XX...XXX..XXXX.X
    XXX...XXX..X.XXX
    .XXX..XXXX..X.XX
    ..XXX..XXXX.XX.X
    ...XXX..XXXX.XXX
"""
CONNECTIONS = np.array([[mark == "X" for mark in row] for row in _TABLE_I.split()])  # bool[6, 16]

# The targets of the output layer: each digit drawn on 7 x 12 pixels. A stylised picture instead of a one-hot code, says
# the paper, gives characters that look alike (0 and O, 1 and I) similar codes, and leaves F6's units in the range where
# they are most non-linear.
_DIGITS = """
    ..###..   ...#...   .#####.   .#####.   ....##.   #######   ..####.   #######   .#####.   .#####.
    .#...#.   ..##...   #.....#   #.....#   ...#.#.   #......   .#.....   ......#   #.....#   #.....#
    #.....#   .#.#...   ......#   ......#   ..#..#.   #......   #......   .....#.   #.....#   #.....#
    #.....#   ...#...   ......#   ......#   .#...#.   #......   #......   .....#.   #.....#   #.....#
    #.....#   ...#...   .....#.   .....#.   #....#.   #.####.   #.###..   ....#..   .#...#.   #....##
    #.....#   ...#...   ....#..   ..###..   #....#.   ##....#   ##...#.   ....#..   ..###..   .####.#
    #.....#   ...#...   ...#...   .....#.   #######   ......#   #.....#   ...#...   .#...#.   ......#
    #.....#   ...#...   ..#....   ......#   .....#.   ......#   #.....#   ...#...   #.....#   ......#
    #.....#   ...#...   .#.....   ......#   .....#.   ......#   #.....#   ..#....   #.....#   ......#
    #.....#   ...#...   #......   #.....#   .....#.   #.....#   #.....#   ..#....   #.....#   .....#.
    .#...#.   ...#...   #......   #.....#   .....#.   .#...#.   .#...#.   .#.....   #.....#   ....#..
    ..###..   .#####.   #######   .#####.   .....#.   ..###..   ..###..   .#.....   .#####.   .###...
"""


def rbf_codes(num_classes: int) -> np.ndarray:
    """The fixed targets of `LeNet5Paper`'s outputs: float32[num_classes, 84] of +1 (ink) and -1 (paper), row by row.

    Ten classes have the ten drawn digits, whatever the classes are. Any other number has random codes, which the paper
    allows. They are not parameters and no checkpoint holds them, so they come from numpy's RandomState: its stream is
    frozen for all versions.
    """
    if num_classes == 10:
        rows = [line.split() for line in _DIGITS.strip().splitlines()]
        ink = np.array([[pixel == "#" for row in rows for pixel in row[digit]] for digit in range(10)])
    else:
        ink = np.random.RandomState(1998).random_sample((num_classes, 84)) < 0.5
    return np.where(ink, 1.0, -1.0).astype(np.float32)


def _uniform(fan_in: np.ndarray | int) -> nn.initializers.Initializer:
    """Uniform in +-2.4 / fan_in (appendix A): `fan_in`, the inputs of one unit, broadcasts over the last axis."""

    def init(key: jax.Array, shape: tuple[int, ...], dtype: layers.Dtype = jnp.float32) -> jax.Array:
        return jax.random.uniform(key, shape, dtype, -1.0, 1.0) * jnp.asarray(2.4 / fan_in, dtype)

    return init


class Subsampling(nn.Module):
    """S2, S4: sum of each 2x2 window x the map's coefficient + its bias; [N, H, W, C] -> [N, H/2, W/2, C].

    2C parameters.
    """

    dtype: layers.Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: layers.Array) -> layers.Array:
        channels = x.shape[-1]
        coefficient = self.param("coefficient", _uniform(4), (channels,))
        bias = self.param("bias", nn.initializers.zeros_init(), (channels,))
        x = layers.pool(x, "sum", 2, name=self.name)
        return x * jnp.asarray(coefficient, self.dtype) + jnp.asarray(bias, self.dtype)


class TableConvolution(nn.Module):
    """C3: 5x5 convolution along the 60 connections of table I only; [N, H, W, 6] -> [N, H-4, W-4, 16].

    60 x 25 + 16 = 1,516 parameters. The 60 kernels, in the table's reading order, are put into their places in a dense
    [5, 5, 6, 16] kernel that is zero
    elsewhere: one convolution of 96 kernels is faster than sixteen of a few each, and the other 36 get no gradient
    because they aren't parameters.
    """

    dtype: layers.Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: layers.Array) -> layers.Array:
        source, target = np.nonzero(CONNECTIONS)
        fan_in = 25 * CONNECTIONS.sum(axis=0)[target]  # int[60]: a unit has 75, 100 or 150 inputs
        kernel = self.param("kernel", _uniform(fan_in), (5, 5, len(source)))
        bias = self.param("bias", nn.initializers.zeros_init(), (CONNECTIONS.shape[1],))
        dense = jnp.zeros((5, 5, *CONNECTIONS.shape), kernel.dtype).at[:, :, source, target].set(kernel)
        dense = jnp.asarray(dense, self.dtype)
        x = jax.lax.conv_general_dilated(x, dense, (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC"))
        return x + jnp.asarray(bias, self.dtype)


class RadialBasisOutput(nn.Module):
    """Euclidean radial basis functions: x: float[N, 84] -> logits float32[N, num_classes] = -sum_j (x_j - w_ij)^2.

    The codes w are fixed, not parameters. Computed in float32, and by differences: expanding the square would subtract
    numbers of several hundred.
    """

    num_classes: int

    @nn.compact
    def __call__(self, x: layers.Array) -> layers.Array:
        difference = x.astype(jnp.float32)[:, None, :] - rbf_codes(self.num_classes)
        return -jnp.sum(difference**2, axis=-1)


class LeNet5Paper(nn.Module):
    """LeNet-5 as published, 60,000 parameters: trainable subsampling, C3's connection table, radial basis outputs.

    * Images are 32x32 (with one channel; C1 grows with more). 28x28 ones (MNIST as it is distributed) are padded by
      repeating their edge: those pixels are background, and the network can't know which number the normalisation made
      of it (the paper: -0.1 for background, 1.175 for ink); a zero might draw a frame.
    * Every unit up to F6 squashes its weighted sum by 1.7159 tanh(2a / 3), the subsampling ones included (section
      II-B).
    * The output y_i is the squared distance of F6's states to a fixed code of class i: the smaller, the better. The
      logits are -y_i: `losses.map_criterion` is the paper's, y_correct + log(exp(-j) + sum_i exp(-y_i)) (equation 9),
      and softmax cross-entropy the same without exp(-j).
    * Weights start uniform in +-2.4 / fan_in (appendix A), a subsampling coefficient having four inputs; biases, on
      which the paper is silent, start at 0.

    Attributes:
        num_classes: K, the number of logits. Other than 10 gives seeded random codes: see `rbf_codes`.
        dtype: compute type.
    """

    num_classes: int
    dtype: layers.Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: layers.Array, train: bool = False) -> layers.Array:
        """x: float[N, 32, 32, C] or float[N, 28, 28, C] -> logits float32[N, num_classes]; `train` changes nothing.

        Raises:
            ValueError: another size.
        """
        if x.ndim != 4 or x.shape[1:3] not in ((28, 28), (32, 32)):
            raise ValueError(
                f"C1: the paper's LeNet-5 takes images [N, 32, 32, C] or [N, 28, 28, C], got {x.shape}; "
                "lenet5 takes other sizes"
            )
        x = jnp.asarray(x, self.dtype)
        if x.shape[1] == 28:
            x = jnp.pad(x, ((0, 0), (2, 2), (2, 2), (0, 0)), mode="edge")
        dense = functools.partial(nn.Dense, dtype=self.dtype)
        c1_init = _uniform(25 * x.shape[-1])
        x = layers.scaled_tanh(layers.conv(x, 6, 5, name="C1", kernel_init=c1_init, dtype=self.dtype))
        x = layers.scaled_tanh(Subsampling(self.dtype, name="S2")(x))
        x = layers.scaled_tanh(TableConvolution(self.dtype, name="C3")(x))
        x = layers.scaled_tanh(Subsampling(self.dtype, name="S4")(x))
        x = layers.flatten(x)
        x = layers.scaled_tanh(dense(120, kernel_init=_uniform(400), name="C5")(x))
        x = layers.scaled_tanh(dense(84, kernel_init=_uniform(120), name="F6")(x))
        return RadialBasisOutput(self.num_classes, name="output")(x)
