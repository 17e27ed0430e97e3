"""Forms of convolution, max pooling, concatenation and batch normalisation that XLA compiles well for a CPU.

They compute the same as Flax's and XLA's own, and their gradients too. `cpu.accelerate` puts them where they fit; what
each is worth stands in docs/performance.md.
"""

import functools
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

_NHWC = ("NHWC", "HWIO", "NHWC")
Pads = tuple[tuple[int, int], tuple[int, int]]
_LARGEST = 2**21  # numbers


# -- convolution


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def conv(x: jax.Array, kernel: jax.Array, strides: tuple[int, int], padding: Pads) -> jax.Array:
    """A convolution whose gradients are written as convolutions of XLA's favourite layout.

    Args:
        x: [N, H, W, I].
        kernel: [h, w, I, O].
        strides: of height and width.
        padding: before and after, of height and width.
    """
    return lax.conv_general_dilated(x, kernel, strides, padding, dimension_numbers=_NHWC)


def _conv_forward(x: jax.Array, kernel: jax.Array, strides: tuple[int, int], padding: Pads) -> Any:
    # Not `conv` once more: a policy of rematerialisation, such as DenseNet's, must see that it is a convolution.
    y = lax.conv_general_dilated(x, kernel, strides, padding, dimension_numbers=_NHWC)
    return y, (x, kernel)


def _conv_backward(strides: tuple[int, int], padding: Pads, saved: Any, g: jax.Array) -> Any:
    x, kernel = saved
    # Without the barriers XLA computes what comes before, such as the gradient of a batch normalisation, within the
    # transpositions below, whose order of access suits it badly.
    x, g = lax.optimization_barrier(x), lax.optimization_barrier(g)
    if kernel.shape[:2] == (1, 1) and not any(map(any, padding)):
        return _pointwise_backward(strides, x, kernel, g)
    size, window, out = x.shape[1:3], kernel.shape[:2], g.shape[1:3]
    spread = [(out[i] - 1) * strides[i] + 1 for i in range(2)]
    low = [window[i] - 1 - padding[i][0] for i in range(2)]
    high = [size[i] + window[i] - 1 - spread[i] - low[i] for i in range(2)]
    flipped = jnp.transpose(kernel[::-1, ::-1], (0, 1, 3, 2))
    dx = lax.conv_general_dilated(
        g, flipped, (1, 1), tuple(zip(low, high, strict=True)), lhs_dilation=strides, dimension_numbers=_NHWC
    )
    tail = [window[i] - 1 + spread[i] - size[i] - padding[i][0] for i in range(2)]
    around = tuple((padding[i][0], tail[i]) for i in range(2))
    # XLA takes up to twice as long where the gradient, here a kernel, is a large one: some images at a time.
    parts = min(len(g), -(-g.size // _LARGEST)) if g.size >= 2 * _LARGEST else 1
    wide = g.dtype if parts == 1 else jnp.promote_types(g.dtype, jnp.float32)  # else each part would be rounded
    dk = sum(
        lax.conv_general_dilated(
            jnp.transpose(some, (3, 1, 2, 0)),
            jnp.transpose(of_some, (1, 2, 0, 3)),
            (1, 1),
            around,
            rhs_dilation=strides,
            dimension_numbers=_NHWC,
            preferred_element_type=wide,
        )
        for some, of_some in zip(jnp.array_split(x, parts), jnp.array_split(g, parts), strict=True)
    )
    return dx, jnp.transpose(dk, (1, 2, 0, 3)).astype(kernel.dtype)


def _pointwise_backward(strides: tuple[int, int], x: jax.Array, kernel: jax.Array, g: jax.Array) -> Any:
    """The gradients of a 1x1 convolution, which is a matrix product of pixels and kernel."""
    size, (inputs, outputs) = x.shape[1:3], kernel.shape[2:]
    pixels, gradients = x[:, :: strides[0], :: strides[1]].reshape(-1, inputs), g.reshape(-1, outputs)
    dk = lax.dot_general(pixels, gradients, (((0,), (0,)), ((), ())))
    dx = (gradients @ kernel[0, 0].T).reshape(*g.shape[:3], inputs)
    if strides != (1, 1):
        ends = [size[i] - (g.shape[1 + i] - 1) * strides[i] - 1 for i in range(2)]
        inside = [(0, ends[i], strides[i] - 1) for i in range(2)]
        dx = lax.pad(dx, np.array(0, dx.dtype), ((0, 0, 0), *inside, (0, 0, 0)))
    return dx, dk[None, None]


conv.defvjp(_conv_forward, _conv_backward)


def small_conv(x: jax.Array, kernel: jax.Array, strides: tuple[int, int], padding: Pads) -> jax.Array:
    """A convolution with few positions, as a sum of matrix products: one for each number of the window that meets any.

    XLA's own, and its gradients, take ten to a hundred times as long where one or two positions a side come out.

    Args:
        x, kernel, strides, padding: as in `conv`.
    """
    out = positions(x.shape, kernel.shape, strides, padding)
    wide = jnp.promote_types(x.dtype, jnp.float32)  # in half precision each product would be rounded before the sum
    y = jnp.zeros((x.shape[0], *out, kernel.shape[-1]), wide)
    for tap in np.ndindex(kernel.shape[:2]):
        offset = [tap[i] - padding[i][0] for i in range(2)]  # from a position's corner to the pixel it meets
        first = [max(0, math.ceil(-offset[i] / strides[i])) for i in range(2)]
        last = [min(out[i] - 1, (x.shape[1 + i] - 1 - offset[i]) // strides[i]) for i in range(2)]
        if all(first[i] <= last[i] for i in range(2)):
            rows, columns = (
                slice(first[i] * strides[i] + offset[i], last[i] * strides[i] + offset[i] + 1, strides[i])
                for i in range(2)
            )
            around = [(first[i], out[i] - 1 - last[i]) for i in range(2)]
            product = jnp.matmul(x[:, rows, columns], kernel[tap], preferred_element_type=wide)
            y += jnp.pad(product, ((0, 0), *around, (0, 0)))
    return y.astype(x.dtype)


def positions(x: Sequence[int], kernel: Sequence[int], strides: tuple[int, int], padding: Pads) -> list[int]:
    """Height and width of what comes out of a convolution, of the shapes of its arrays."""
    return [(x[1 + i] + sum(padding[i]) - kernel[i]) // strides[i] + 1 for i in range(2)]


# -- max pooling


@jax.custom_jvp
def _first_max(a: jax.Array, b: jax.Array) -> jax.Array:
    """max(a, b), whose gradient goes to `a` where they are equal: to the first of a window, as XLA's own does."""
    return jnp.maximum(a, b)


@_first_max.defjvp
def _first_max_jvp(values: Any, tangents: Any) -> Any:
    a, b = values
    return jnp.maximum(a, b), jnp.where(a >= b, *tangents)


def max_pool(x: jax.Array, window: tuple[int, int], strides: tuple[int, int], padding: Pads) -> jax.Array:
    """Max pooling of [N, H, W, C] as a maximum of slices, along the width and then along the height."""
    if any(map(any, padding)):
        lowest = np.array(-np.inf, x.dtype)
        x = lax.pad(x, lowest, ((0, 0, 0), *((low, high, 0) for low, high in padding), (0, 0, 0)))
    for axis in (2, 1):
        size, stride = window[axis - 1], strides[axis - 1]
        count = (x.shape[axis] - size) // stride + 1
        if size == stride:
            x = lax.slice_in_dim(x, 0, count * size, axis=axis)
            x = x.reshape(*x.shape[:axis], count, size, *x.shape[axis + 1 :])
            parts = [lax.index_in_dim(x, i, axis + 1, keepdims=False) for i in range(size)]
        else:
            parts = [lax.slice_in_dim(x, i, i + (count - 1) * stride + 1, stride, axis) for i in range(size)]
        x = functools.reduce(_first_max, parts)
    return x


# -- a convolution and the max pooling after it


def _phases(kernel: jax.Array, pool: tuple[int, int]) -> jax.Array:
    """[h, w, I, O] -> [h', w', p q I, p q O]: of images whose p x q pixels are channels, all p x q results at once."""
    h, w, inputs, outputs = kernel.shape
    p, q = pool
    rows, columns = -(-(h + p - 1) // p), -(-(w + q - 1) // q)
    shifted = [
        jnp.pad(kernel, ((a, rows * p - h - a), (b, columns * q - w - b), (0, 0), (0, 0)))
        for a in range(p)
        for b in range(q)
    ]
    blocks = jnp.concatenate(shifted, -1).reshape(rows, p, columns, q, inputs, -1)
    return blocks.transpose(0, 2, 1, 3, 4, 5).reshape(rows, columns, p * q * inputs, p * q * outputs)


def conv_pool(x: jax.Array, kernel: jax.Array, padding: Pads, pool: tuple[int, int]) -> jax.Array:
    """Convolution of stride 1, then max pooling over windows that touch: [N, H, W, I] -> [N, H', W', O].

    The pixels of a pooling window become channels, and one convolution computes the window's results side by side: it
    multiplies more (5x5 before 2x2: 1.44 times), but is wide enough for vector units where there are few channels, and
    the maximum over a window is one over groups of channels.
    """
    (p, q), (n, *size, inputs) = pool, x.shape
    counts = [(size[i] + sum(padding[i]) - kernel.shape[i] + 1) // pool[i] for i in range(2)]
    grid = [counts[i] - 1 + -(-(kernel.shape[i] + pool[i] - 1) // pool[i]) for i in range(2)]  # blocks of pixels
    config = [(padding[i][0], grid[i] * pool[i] - size[i] - padding[i][0], 0) for i in range(2)]
    x = lax.pad(x, np.array(0, x.dtype), ((0, 0, 0), *config, (0, 0, 0)))
    x = x.reshape(n, grid[0], p, grid[1], q, inputs).transpose(0, 1, 3, 2, 4, 5)
    x = x.reshape(n, *grid, p * q * inputs)
    y = conv(x, _phases(kernel, pool), (1, 1), ((0, 0), (0, 0)))
    return functools.reduce(_first_max, jnp.split(y, p * q, -1))


# -- concatenation


def concatenate(parts: Sequence[jax.Array], axis: int) -> jax.Array:
    """A concatenation that is computed on its own, and so is its gradient.

    XLA else computes its numbers anew, choosing among the parts for each, in every loop that reads them: for the mean,
    the variance and the result of a batch normalisation. (That of jax 0.7 may still do so, forwards.)
    """
    return _alone(lax.concatenate(parts, axis))


@jax.custom_vjp
def _alone(x: jax.Array) -> jax.Array:
    return lax.optimization_barrier(x)


_alone.defvjp(lambda x: (_alone(x), None), lambda _, g: (lax.optimization_barrier(g),))


# -- batch normalisation


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def batch_norm(
    x: jax.Array, scale: jax.Array, bias: jax.Array, epsilon: float, axis_name: str | None
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Normalises float32[..., C] by its own mean and variance. Returns the result, the mean and the variance.

    Ioffe & Szegedy 2015. Nothing of the images' size is kept for the gradient but `x`, and each pass over the images is
    one fused loop. Mean and variance have no gradient of their own: they are for the running statistics.

    Args:
        x: of one device.
        scale, bias: float32[C].
        epsilon: added to the variance.
        axis_name: of the devices over which the statistics are averaged, if they are.
    """
    return _batch_norm_forward(x, scale, bias, epsilon, axis_name)[0]


def _batch_norm_forward(x: jax.Array, scale: jax.Array, bias: jax.Array, epsilon: float, axis_name: str | None) -> Any:
    axes = tuple(range(x.ndim - 1))
    mean, mean_of_squares = jnp.mean(x, axes), jnp.mean(x * x, axes)
    if axis_name is not None:
        mean, mean_of_squares = lax.pmean((mean, mean_of_squares), axis_name)
    variance = jnp.maximum(mean_of_squares - mean * mean, 0)
    inverse = lax.rsqrt(variance + epsilon)
    y = (x - mean) * (inverse * scale) + bias
    return (y, mean, variance), (x, mean, inverse, scale)


def _batch_norm_backward(epsilon: float, axis_name: str | None, saved: Any, cotangents: Any) -> Any:
    (x, mean, inverse, scale), g = saved, cotangents[0]
    axes, count = tuple(range(x.ndim - 1)), x.size // x.shape[-1]
    d_bias = jnp.sum(g, axes)
    d_scale = (jnp.sum(g * x, axes) - mean * d_bias) * inverse
    of_bias, of_scale = (d_bias, d_scale) if axis_name is None else lax.pmean((d_bias, d_scale), axis_name)
    by_x = -scale * inverse * inverse * of_scale / count
    dx = g * (scale * inverse) + (x - mean) * by_x - scale * inverse * of_bias / count
    return dx, d_scale, d_bias


batch_norm.defvjp(_batch_norm_forward, _batch_norm_backward)
