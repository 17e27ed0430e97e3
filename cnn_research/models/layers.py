"""What the families of networks share: size arithmetic, convolution, pooling, activations, fully-connected layers.

The functions here are called inside an `@nn.compact` method: a layer that they create belongs to the module being run
and takes the given name, so variable trees, error messages and tables all speak of `conv1`, `C3` or `dense1`. What has
no variables carries its name as a `jax.named_scope`, which layer tables and profiles show.
"""

import difflib
import functools
import numbers
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import lax

from cnn_research.models.initializers import variance_scaling

Array = jax.Array
Dtype = Any
ModuleDef = Callable[..., nn.Module]

# Flax's momentum is what the running average keeps: 0.9 here is PyTorch's (and the ResNet paper's) 0.1.
BatchNorm = functools.partial(nn.BatchNorm, momentum=0.9, epsilon=1e-5)

INITIALIZERS: dict[str, nn.initializers.Initializer] = {
    "he": variance_scaling(2.0, "fan_in", "truncated_normal"),  # He et al. 2015: keeps the variance through rectifiers
    "xavier": variance_scaling(1.0, "fan_avg", "uniform"),  # Glorot & Bengio 2010
    "lecun": variance_scaling(1.0, "fan_in", "truncated_normal"),  # LeCun et al. 1998, "Efficient BackProp"
}


def suggest(word: object, known: Iterable[str]) -> str:
    """` (did you mean 'relu'?)` with the names nearest to a mistyped one, or an empty string when nothing is near."""
    nearest = difflib.get_close_matches(str(word), sorted(known), n=3)
    return f" (did you mean {' or '.join(map(repr, nearest))}?)" if nearest else ""


def check_choice(field: str, value: object, choices: Iterable[str]) -> None:
    """Raises ValueError, naming the field and all it may be, unless `value` is one of `choices`."""
    choices = list(choices)
    if value not in choices:
        raise ValueError(f"{field}={value!r} is not one of {', '.join(choices)}{suggest(value, choices)}")


def check_count(name: str, field: str, value: Any) -> None:
    """Raises ValueError, naming the layer and the field, unless `value` is a whole number of at least 1."""
    if not isinstance(value, numbers.Integral) or value < 1:
        raise ValueError(f"{name}: {field} must be a whole number of at least 1, got {value!r}")


def per_stage(field: str, value: Any, num_stages: int) -> tuple:
    """One value for each of `num_stages` stages.

    Configs hold these fields as tuples: a tuple of one, or a bare value, applies to every stage; otherwise there is one
    for each.

    Raises:
        ValueError: any other length.
    """
    values = tuple(value) if isinstance(value, (tuple, list)) else (value,)
    if len(values) == 1:
        values *= num_stages
    if len(values) != num_stages:
        raise ValueError(
            f"{field} has {len(values)} values {values} for {num_stages} stages: give one, or one per stage"
        )
    return values


# -- size arithmetic


def parse_padding(padding: int | str) -> int | str:
    """Padding as a config may spell it (2, "2", "same", "valid") -> an int >= 0, or "same" / "valid".

    A tuple of a config has one type of element, hence numbers may come as strings: ("same", "1").

    Raises:
        ValueError: anything else.
    """
    word = str(padding).strip().lower()
    if word in ("same", "valid"):
        return word
    # No bool: True would silently be a padding of 1. isdecimal refuses signs, points and blanks.
    if isinstance(padding, bool) or not (word.isascii() and word.isdecimal()):
        raise ValueError(f"padding={padding!r} is neither a whole number >= 0 nor 'same' nor 'valid'")
    return int(word)


def output_size(size: int, kernel: int, stride: int = 1, padding: int | str = 0, *, ceil_mode: bool = False) -> int:
    """Size of a convolution's or pooling's output along one axis: floor((n + 2p - k) / s) + 1.

    "valid" is p = 0; "same" gives ceil(n / s). A result below 1 means that the input is too small; judging that is left
    to the caller.

    With `ceil_mode` the division rounds up: a last window that is only partly filled counts too, as in Caffe, provided
    that it starts inside the input or the padding before it (PyTorch's rule: else it would see nothing).
    """
    padding = parse_padding(padding)
    if padding == "same":
        return -(-size // stride)
    pad = 0 if padding == "valid" else padding
    steps = size + 2 * pad - kernel
    if not ceil_mode:
        return steps // stride + 1
    out = -(-steps // stride) + 1
    return out - 1 if (out - 1) * stride >= size + pad else out


def check_window(
    name: str, shape: Sequence[int], kernel: int, stride: int, padding: int | str, *, ceil_mode: bool = False
) -> None:
    """Raises ValueError, naming the layer and the arithmetic, unless a window fits into an input of `shape`."""
    if len(shape) != 4:
        raise ValueError(f"{name}: images have the shape [N, H, W, C], got {tuple(shape)}")
    for field, value in (("kernel", kernel), ("stride", stride)):
        check_count(name, field, value)
    height, width = shape[1:3]
    size = min(height, width)  # the window is square, so the shorter side decides
    out = output_size(size, kernel, stride, padding, ceil_mode=ceil_mode)
    if out < 1:
        pad = 0 if padding == "valid" else padding
        rounding = "ceil" if ceil_mode else "floor"
        raise ValueError(
            f"{name}: input {height}x{width} is too small for kernel {kernel}x{kernel}, stride {stride}, padding {pad}"
            f": {rounding}(({size} + 2*{pad} - {kernel})/{stride}) + 1 = {out}"
        )


def _lax_padding(padding: int | str) -> str | tuple[tuple[int, int], tuple[int, int]]:
    return padding.upper() if isinstance(padding, str) else ((padding, padding), (padding, padding))


# -- layers


def conv(
    x: Array,
    features: int,
    kernel_size: int,
    *,
    name: str,
    stride: int = 1,
    padding: int | str = 0,
    module: ModuleDef = nn.Conv,
    **kwargs: Any,
) -> Array:
    """Square convolution: [N, H, W, C] -> [N, H', W', features], with H' = floor((H + 2p - k) / s) + 1.

    Args:
        padding: p zeros on each of the four sides, as the papers and PyTorch count it; or "valid", none; or "same" as
            JAX and TensorFlow define it: H' = ceil(H / s). With stride 1 and an odd kernel, "same" is p = (k - 1) / 2.
            With stride 2 it is not: an even H then needs an odd total, and "same" puts the odd zero at the bottom right
            only, so the windows sit one pixel away from those of symmetric padding (k=3, s=2, H=8: zeros 0 before and 1
            after, against 1 and 1).
        module: `nn.Conv` or another of its signature (for instance with another gradient or standardised weights).
        **kwargs: passed to `module`: dtype, use_bias, kernel_init, feature_group_count...

    Raises:
        ValueError: the input is too small; the message names the layer and the arithmetic.
    """
    check_count(name, "the number of filters", features)
    padding = parse_padding(padding)
    check_window(name, x.shape, kernel_size, stride, padding)
    return module(
        features=features,
        kernel_size=(kernel_size, kernel_size),
        strides=(stride, stride),
        padding=_lax_padding(padding),
        name=name,
        **kwargs,
    )(x)


def conv_and_norm(network: Any, train: bool) -> tuple[Callable[..., Array], ModuleDef]:
    """`conv` and a network's normalisation, with all settings that are the same everywhere in it.

    Convolutions have no bias, which the normalisation after them would subtract again.

    Args:
        network: has the fields conv, norm, kernel_init and dtype.
        train: whether batches are normalised by their own statistics.

    Raises:
        ValueError: kernel_init is not one of INITIALIZERS.
    """
    check_choice("kernel_init", network.kernel_init, INITIALIZERS)
    settings = {"kernel_init": INITIALIZERS[network.kernel_init], "dtype": network.dtype}
    convolution = functools.partial(conv, module=network.conv, use_bias=False, **settings)
    return convolution, functools.partial(network.norm, use_running_average=not train, dtype=network.dtype)


def _sum_pool(x: Array, *, window_shape: tuple, strides: tuple, padding: Any) -> Array:
    return nn.pool(x, 0.0, lax.add, window_shape, strides, padding)


# Looked up when called, not bound here, so that a substitute for nn.max_pool (faster on some backend) reaches every
# network.
POOLS: dict[str, Callable[..., Array]] = {
    "max": lambda x, **window: nn.max_pool(x, **window),
    "average": lambda x, **window: nn.avg_pool(x, **window),
    "sum": _sum_pool,
}


def pool(
    x: Array,
    kind: str,
    size: int,
    *,
    name: str,
    stride: int | None = None,
    padding: int | str = 0,
    ceil_mode: bool = False,
) -> Array:
    """Pooling over square windows: [N, H, W, C] -> [N, H', W', C], with H' = floor((H + 2p - k) / s) + 1.

    Rows and columns that fill no whole window are dropped, unless `ceil_mode` is set.

    Args:
        kind: "max" (padding never wins), "average" (padding counts as zeros, as in PyTorch) or "sum".
        stride: `size` when None: windows that touch and do not overlap.
        padding: as in `conv`.
        ceil_mode: rows and columns left over at the bottom and on the right get windows of their own, which reach
            beyond the padding: see `output_size`. What lies beyond never wins, and doesn't count in an average, as in
            PyTorch. No effect with "same", which leaves nothing over.

    Raises:
        ValueError: an unknown kind, an input that is too small, or windows that could lie wholly in the padding.
    """
    check_choice(f"{name}: pool", kind, POOLS)
    stride = size if stride is None else stride
    padding = parse_padding(padding)
    check_window(name, x.shape, size, stride, padding, ceil_mode=ceil_mode)
    if isinstance(padding, int) and padding >= size:
        # The maximum over padding alone is -inf, which would surface much later as a loss of NaN.
        raise ValueError(f"{name}: padding {padding} must be smaller than the pool's size {size}")
    window: dict[str, Any] = {"window_shape": (size, size), "strides": (stride, stride)}
    if not ceil_mode or padding == "same":
        with jax.named_scope(name):
            return POOLS[kind](x, padding=_lax_padding(padding), **window)

    pad = 0 if padding == "valid" else padding
    outs = [output_size(n, size, stride, pad, ceil_mode=True) for n in x.shape[1:3]]
    beyond = [max(0, (out - 1) * stride + size - n - 2 * pad) for out, n in zip(outs, x.shape[1:3], strict=True)]
    if kind == "average":  # padding counts, what lies beyond doesn't: so the padding becomes part of the input
        x = jnp.pad(x, ((0, 0), (pad, pad), (pad, pad), (0, 0)))
        pad = 0
        window["count_include_pad"] = False
    with jax.named_scope(name):
        return POOLS[kind](x, padding=tuple((pad, pad + more) for more in beyond), **window)


def global_average_pool(x: Array) -> Array:
    """Mean of each channel over the image: [N, H, W, C] -> [N, C], in the type of `x` (summed in float32)."""
    with jax.named_scope("global_average_pool"):
        return jnp.mean(x, axis=(1, 2))


def scaled_tanh(x: Array) -> Array:
    """1.7159 tanh(2x / 3): LeCun et al. 1998, appendix A. f(1) = 1, f(-1) = -1, and the gain is near 1 in between."""
    return 1.7159 * jnp.tanh(2.0 / 3.0 * x)


ACTIVATIONS: dict[str, Callable[[Array], Array] | None] = {
    "relu": nn.relu,
    "prelu": None,  # has a parameter: see activate()
    "leaky_relu": functools.partial(nn.leaky_relu, negative_slope=0.01),  # Maas et al. 2013
    "sigmoid": nn.sigmoid,
    "tanh": nn.tanh,
    "scaled_tanh": scaled_tanh,
    "gelu": functools.partial(nn.gelu, approximate=False),  # the exact form, with erf: PyTorch's default too
}


def activate(x: Array, activation: str, *, name: str) -> Array:
    """Applies the named activation elementwise; any shape.

    "prelu" learns one slope for all channels (He et al. 2015, section 2.1, the channel-shared variant), 0.25 at first,
    under `name`_prelu.

    Raises:
        ValueError: the name is not one of ACTIVATIONS.
    """
    check_choice("activation", activation, ACTIVATIONS)
    if activation == "prelu":
        return nn.PReLU(negative_slope_init=0.25, name=f"{name}_prelu")(x)
    return ACTIVATIONS[activation](x)


def hidden_dense(
    x: Array, features: int, *, name: str, activation: str, dropout_rate: float, train: bool, **kwargs: Any
) -> Array:
    """Fully-connected layer, activation, dropout: [N, D] -> [N, features]. Further keywords go to `nn.Dense`."""
    check_count(name, "the number of units", features)
    x = nn.Dense(features, name=name, **kwargs)(x)
    x = activate(x, activation, name=name)
    return dropout(x, dropout_rate, train=train)


def dropout(x: Array, rate: float, *, train: bool, field: str = "dropout_rate", whole_examples: bool = False) -> Array:
    """In training, zeroes a share `rate` of the units at random and divides the others by 1 - rate; any shape.

    Args:
        field: what the user calls the rate.
        whole_examples: zeroes all units of an example or none (stochastic depth).

    Raises:
        ValueError: the rate is not in [0, 1).
    """
    if not 0.0 <= rate < 1.0:
        unit = "examples" if whole_examples else "units"
        raise ValueError(f"{field}={rate!r} is a fraction of {unit}: at least 0 and below 1")
    broadcast_dims = tuple(range(1, x.ndim)) if whole_examples else ()
    return nn.Dropout(rate, broadcast_dims=broadcast_dims, deterministic=not train)(x)


def output_dense(x: Array, num_classes: int, **kwargs: Any) -> Array:
    """The last layer: [N, D] -> logits float32[N, num_classes], under the name `output`.

    It computes in float32 whatever the rest does. It costs next to nothing, and logits rounded to bfloat16's 8 bits
    would tie.
    """
    return nn.Dense(num_classes, dtype=jnp.float32, name="output", **kwargs)(x)


def flatten(x: Array) -> Array:
    """[N, H, W, C] -> [N, H * W * C], channels fastest.

    PyTorch's order is C, H, W: imported weights of the layer that follows need their rows permuted.
    """
    return x.reshape(x.shape[0], -1)


# -- local response normalisation, adaptive pooling


def local_response_norm(
    x: Array, *, name: str, size: int = 5, k: float = 2.0, alpha: float = 1e-4, beta: float = 0.75
) -> Array:
    """b_i = a_i / (k + alpha * sum_j a_j^2)^beta over the `size` channels j around i: [N, H, W, C] -> the same shape.

    Krizhevsky, Sutskever & Hinton 2012, section 3.3, whose constants are the defaults. The sum stops at the first and
    the last channel. alpha multiplies the sum, as in the paper. In PyTorch and Caffe it multiplies the mean, so theirs
    is alpha * size; and their k is 1 by default.

    Sum and power are computed in float32: in bfloat16, 2 + alpha * sum is 2 for any sum below 78.

    Raises:
        ValueError: `size` is not an odd number.
    """
    if size < 1 or size % 2 == 0:
        raise ValueError(f"{name}: size={size} must be an odd number, so that a channel has as many on either side")
    same = ((0, 0), (0, 0), (0, 0), (size // 2, size // 2))
    with jax.named_scope(name):
        a = x.astype(jnp.float32)
        # A window that slides along the channels: its gradient is one more window, where that of a sum of shifted
        # slices took four times as long on a CPU.
        total = lax.reduce_window(a * a, 0.0, lax.add, (1, 1, 1, size), (1, 1, 1, 1), same)
        return (a * (k + alpha * total) ** -beta).astype(x.dtype)


def adaptive_average_pool(x: Array, size: int, *, name: str) -> Array:
    """The mean of each of size x size bins, whatever the input's size: [N, H, W, C] -> [N, size, size, C].

    PyTorch's definition: bin i covers the rows from floor(i * H / size) up to, not including, ceil((i + 1) * H / size);
    columns likewise. Bins overlap where H is no multiple of `size`. Where H is smaller than `size`, rows come more than
    once. H = size changes nothing, and size = 1 is the mean of the whole map.

    Raises:
        ValueError: no image batch or a `size` below 1.
    """
    check_window(name, x.shape, size, 1, "same")

    def pool_axis(x: Array, axis: int) -> Array:
        n = x.shape[axis]
        if n == size:
            return x
        bins = [(i * n // size, -(-(i + 1) * n // size)) for i in range(size)]
        means = [lax.slice_in_dim(x, start, end, axis=axis).mean(axis, keepdims=True) for start, end in bins]
        return jnp.concatenate(means, axis)

    # A bin is a rectangle, so its mean is the mean, over its columns, of the means over its rows.
    with jax.named_scope(name):
        return pool_axis(pool_axis(x, 1), 2)
