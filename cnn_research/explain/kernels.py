"""The filters of the tutorials, and what a convolution computes with them, number by number.

    edges = filter_image(image, "sobel_x")                       # by name, or any array of weights
    walk = walk_through(image, "sharpen", padding=1)             # every position of the window, with its products

What networks call convolution is cross-correlation: the kernel is laid on the image as it is written. Mathematicians
turn it by 180 degrees first (`flip=True`), which matters for all kernels that such a turn changes, and for a network
not at all: it learns the turned weights.
"""

import dataclasses
from collections.abc import Sequence

import jax
import numpy as np
from jax import lax

from cnn_research.models import layers

# ------------------------------------------------------------------------------------------------------- filters


@dataclasses.dataclass(frozen=True, eq=False)
class Filter:
    """A kernel that has a name.

    Attributes:
        weights: float32[k, k], read-only, as they are laid on the image. They add up to 1, which keeps the brightness,
            or to 0, which makes every even surface 0.
        effect: what it does to a picture.
    """

    weights: np.ndarray
    effect: str


def _filter(rows: Sequence[Sequence[float]], effect: str, divisor: float = 1) -> Filter:
    weights = np.array(rows, np.float32) / np.float32(divisor)
    weights.flags.writeable = False
    return Filter(weights, effect)


def _binomial(order: int) -> np.ndarray:
    """Row `order` of Pascal's triangle times itself: what a Gaussian is on so few pixels."""
    row = np.ones(1)
    for _ in range(order):
        row = np.convolve(row, [1, 1])
    return np.outer(row, row)


_SOBEL_X = [[-1, 0, 1], [-2, 0, 2], [-1, 0, 1]]
_PREWITT_X = [[-1, 0, 1], [-1, 0, 1], [-1, 0, 1]]
_CENTRE_5 = np.outer([0, 0, 1, 0, 0], [0, 0, 1, 0, 0])

FILTERS: dict[str, Filter] = {
    "identity": _filter([[0, 0, 0], [0, 1, 0], [0, 0, 0]], "the image itself"),
    "edges_1": _filter([[1, 0, -1], [0, 0, 0], [-1, 0, 1]], "corners, and edges along the diagonals"),
    "edges_2": _filter([[0, 1, 0], [1, -4, 1], [0, 1, 0]], "edges, by the four neighbours (Laplacian)"),
    "edges_3": _filter([[-1, -1, -1], [-1, 8, -1], [-1, -1, -1]], "edges, by all eight neighbours"),
    "sharpen": _filter([[0, -1, 0], [-1, 5, -1], [0, -1, 0]], "the image plus its edges"),
    "unsharp_5": _filter(512 * _CENTRE_5 - _binomial(4), "the image plus what a blur takes away", 256),
    "box_blur": _filter(np.ones((3, 3)), "the mean of 3x3 pixels", 9),
    "box_blur_5": _filter(np.ones((5, 5)), "the mean of 5x5 pixels", 25),
    "gaussian_blur": _filter(_binomial(2), "a mean of 3x3 pixels in which near ones count more", 16),
    "gaussian_blur_5": _filter(_binomial(4), "a mean of 5x5 pixels in which near ones count more", 256),
    "emboss": _filter([[-2, -1, 0], [-1, 1, 1], [0, 1, 2]], "a relief lit from the top left"),
    "sobel_x": _filter(_SOBEL_X, "brighter to the right: vertical edges"),
    "sobel_y": _filter(np.transpose(_SOBEL_X), "brighter below: horizontal edges"),
    "prewitt_x": _filter(_PREWITT_X, "vertical edges, each row counting the same"),
    "prewitt_y": _filter(np.transpose(_PREWITT_X), "horizontal edges, each column counting the same"),
    "laplacian_of_gaussian_5": _filter(
        [[0, 0, -1, 0, 0], [0, -1, -2, -1, 0], [-1, -2, 16, -2, -1], [0, -1, -2, -1, 0], [0, 0, -1, 0, 0]],
        "edges of what is left after a blur",
    ),
}
FILTERS["laplacian"] = FILTERS["edges_2"]  # its own name, which others look for


def kernel_weights(kernel: str | np.ndarray | Sequence[Sequence[float]]) -> np.ndarray:
    """Returns the weights of a filter by its name, or those that are given, as float32[k, k].

    Raises:
        ValueError: there is no filter of that name, or the weights are no square.
    """
    if isinstance(kernel, str):
        layers.check_choice("kernel", kernel, FILTERS)
        return FILTERS[kernel].weights
    weights = np.asarray(kernel, np.float32)
    if weights.ndim != 2 or weights.shape[0] != weights.shape[1] or not weights.size:
        raise ValueError(f"kernel: a square of weights [k, k] is needed, got {weights.shape}")
    return weights


# -------------------------------------------------------------------------------------------------- whole images


def to_floats(image: np.ndarray) -> np.ndarray:
    """An image as float32 of the same shape; uint8 becomes [0, 1], everything else keeps its values.

    Raises:
        ValueError: it is neither [H, W] nor [H, W, C].
    """
    image = np.asarray(image)
    if image.ndim not in (2, 3):
        raise ValueError(f"image: [H, W] or [H, W, C] is needed, got {image.shape}")
    return image.astype(np.float32) / (255 if image.dtype == np.uint8 else 1)


def to_grey(image: np.ndarray) -> np.ndarray:
    """An image as float32[H, W]: one channel as it is, three weighed by how bright they look (ITU-R BT.601).

    Raises:
        ValueError: it has another number of channels.
    """
    image = to_floats(image)
    if image.ndim == 2 or image.shape[-1] == 1:
        return image.reshape(image.shape[:2])
    if image.shape[-1] != 3:
        raise ValueError(f"image: 1 or 3 channels are needed, got {image.shape}")
    return image @ np.array([0.299, 0.587, 0.114], np.float32)


def filter_image(
    image: np.ndarray,
    kernel: str | np.ndarray,
    *,
    stride: int = 1,
    padding: int | str = "same",
    flip: bool = False,
) -> np.ndarray:
    """Lays a kernel on every position of an image, each channel by itself, and adds up the products.

    Args:
        image: [H, W] or [H, W, C]; uint8 is divided by 255.
        kernel: a name in FILTERS, or weights [k, k].
        stride: pixels from one position to the next.
        padding: zeros on each side, as in `models.layers.conv`: a number, "valid" (none), or "same".
        flip: turn the kernel by 180 degrees first: convolution in the mathematicians' sense.

    Returns:
        float32[H', W'] or [H', W', C], with H' = floor((H + 2p - k) / s) + 1.

    Raises:
        ValueError: an unknown name, weights that are no square, or an image that is too small.
    """
    image, weights = to_floats(image), kernel_weights(kernel)
    weights = weights[::-1, ::-1] if flip else weights
    channels_first = image[None] if image.ndim == 2 else np.moveaxis(image, -1, 0)
    layers.check_window("filter", (1, *image.shape[:2], 1), len(weights), stride, padding)
    pads = _pads(image.shape[:2], len(weights), stride, padding)
    out = lax.conv_general_dilated(  # the channels stand where a batch has its images: none sees another
        channels_first[..., None],
        weights[:, :, None, None],
        (stride, stride),
        pads,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        precision=lax.Precision.HIGHEST,
    )
    out = np.asarray(out)[..., 0]
    return out[0] if image.ndim == 2 else np.moveaxis(out, 0, -1)


def pool_image(image: np.ndarray, kind: str, size: int = 2, *, stride: int | None = None) -> np.ndarray:
    """Pools an image as networks do: `models.layers.pool` for one picture.

    Args:
        image: [H, W] or [H, W, C]; uint8 is divided by 255.
        kind: max | average | sum.
        size: pixels of the window's side.
        stride: pixels from one position to the next; None for windows that touch and don't overlap.

    Returns:
        float32[H', W'] or [H', W', C], with H' = floor((H - k) / s) + 1.

    Raises:
        ValueError: another kind, or an image that is too small.
    """
    image = to_floats(image)
    batch = image.reshape(1, *image.shape[:2], -1)
    out = np.asarray(layers.pool(batch, kind, size, name="pool", stride=stride))[0]
    return out[..., 0] if image.ndim == 2 else out


def _pads(shape: Sequence[int], kernel: int, stride: int, padding: int | str) -> list[tuple[int, int]]:
    """Zeros before and after, for each axis."""
    padding = layers.parse_padding(padding)
    if isinstance(padding, int):
        return [(padding, padding)] * 2
    return [(int(a), int(b)) for a, b in lax.padtype_to_pads(shape, (kernel,) * 2, (stride,) * 2, padding.upper())]


# ---------------------------------------------------------------------------------------------------- step by step


@dataclasses.dataclass(frozen=True, eq=False)
class Step:
    """One position of the kernel.

    Attributes:
        row, column: of the output's pixel.
        top, left: of the window in the padded image.
        window: float64[k, k], the pixels under the kernel.
        products: float64[k, k], the window times the weights, one by one.
        total: their sum, which is the output's pixel.
    """

    row: int
    column: int
    top: int
    left: int
    window: np.ndarray
    products: np.ndarray
    total: float


@dataclasses.dataclass(frozen=True, eq=False)
class Walk:
    """A convolution written out.

    Attributes:
        padded: float64[H + 2p, W + 2p], the image with its zeros.
        pads: how many zeros are (before, after) it, for each axis.
        weights: float32[k, k], as they are laid on it: turned already, if they are to be.
        steps: from left to right, then from top to bottom.
        output: float64[H', W'].
    """

    padded: np.ndarray
    pads: tuple[tuple[int, int], ...]
    weights: np.ndarray
    steps: tuple[Step, ...]
    output: np.ndarray


def walk_through(
    image: np.ndarray,
    kernel: str | np.ndarray,
    *,
    stride: int = 1,
    padding: int | str = 0,
    flip: bool = False,
) -> Walk:
    """What `filter_image` computes for a grey image, as the loops of a textbook: for small images.

    Args:
        image: [H, W].
        kernel, stride, padding, flip: as in `filter_image`.

    Raises:
        ValueError: as `filter_image`, or the image has channels.
    """
    image, weights = to_floats(image), kernel_weights(kernel)
    if image.ndim != 2:
        raise ValueError(f"image: [H, W] is needed, got {image.shape}; to_grey makes one of three channels")
    weights = weights[::-1, ::-1] if flip else weights
    size = len(weights)
    layers.check_window("filter", (1, *image.shape, 1), size, stride, padding)
    pads = _pads(image.shape, size, stride, padding)
    padded = np.pad(image.astype(np.float64), pads)
    output = np.empty([layers.output_size(n, size, stride, padding) for n in image.shape])
    steps = []
    for row, column in np.ndindex(*output.shape):
        top, left = row * stride, column * stride
        window = padded[top : top + size, left : left + size]
        products = window * weights
        output[row, column] = products.sum()
        steps.append(Step(row, column, top, left, window, products, float(output[row, column])))
    return Walk(padded, tuple(pads), weights, tuple(steps), output)


def jax_output_size(size: int, kernel: int, stride: int = 1, padding: int | str = 0) -> int:
    """What JAX says the size of a convolution's output is along one axis; nothing is computed.

    To hold against the formula, `models.layers.output_size`.
    """
    pads = _pads((size, size), kernel, stride, padding)
    image = jax.ShapeDtypeStruct((1, 1, size, size), np.float32)
    weights = jax.ShapeDtypeStruct((1, 1, kernel, kernel), np.float32)
    return jax.eval_shape(lambda x, w: lax.conv_general_dilated(x, w, (stride, stride), pads), image, weights).shape[-1]
