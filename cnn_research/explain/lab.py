"""Pictures of the convolution laboratory: filters, steps with their numbers, stride and padding, pooling, activations.

Figures are returned and neither shown nor saved. Animations are returned as a `Player`: HTML with its frames inside,
which shows itself in a notebook and works in a page without a network.
"""

from collections.abc import Callable, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from cnn_research.explain import board, kernels, style
from cnn_research.explain.board import GREY, SIGNED, Player
from cnn_research.models import layers
from cnn_research.models.layer_table import size_formula

GALLERY = (
    *("identity", "edges_1", "edges_2", "edges_3", "sharpen", "emboss", "box_blur_5", "gaussian_blur_5"),
    *("sobel_x", "sobel_y", "laplacian_of_gaussian_5", "unsharp_5"),
)


# ------------------------------------------------------------------------------------------------------- filters


@style.styled
def filter_gallery(
    image: np.ndarray, filters: Sequence[str] | Mapping[str, np.ndarray] = GALLERY, *, columns: int = 4
) -> Figure:
    """What filters make of an image, each beside its weights.

    A filter whose weights add up to 0 sees brightness alone: red is positive, blue negative, white 0. Its scale ends
    where all but half a percent of the pixels lie, and is written below.

    Args:
        image: [H, W] or [H, W, C]; uint8, or floats in [0, 1].
        filters: names in `kernels.FILTERS`, or one's own weights [k, k] by name.
        columns: pictures side by side.

    Raises:
        ValueError: there is no filter of that name, weights are no square, or the image has another shape.
    """
    rows = -(-len(filters) // columns)
    figure = style.figure(3.6 * columns, 3.05 * rows)
    grid = figure.add_gridspec(rows, 2 * columns, width_ratios=[3, 1] * columns)
    for number, name in enumerate(filters):
        row, column = divmod(number, columns)
        picture, weights = (board.bare(figure.add_subplot(grid[row, 2 * column + side])) for side in (0, 1))
        picture.set_title(name)
        own = isinstance(filters, Mapping)
        chosen = kernels.kernel_weights(filters[name] if own else name)
        notes = "" if own else kernels.FILTERS[name].effect, _draw_filtered(picture, image, chosen)
        picture.set_xlabel("; ".join(filter(None, notes)), fontsize=8, loc="left")
        _draw_weights(weights, chosen)
    return figure


@style.styled
def correlation_and_convolution(image: np.ndarray, kernel: str | np.ndarray) -> Figure:
    """An image, the kernel as it is and turned by 180 degrees, and what cross-correlation and convolution make of it.

    Args:
        image: [H, W] or [H, W, C]; uint8, or floats in [0, 1].
        kernel: a name in `kernels.FILTERS`, or weights [k, k].

    Raises:
        ValueError: as `kernels.filter_image`.
    """
    figure = style.figure(11, 3.2)
    grid = figure.add_gridspec(1, 5, width_ratios=[3, 1, 3, 1, 3])
    axes = [board.bare(figure.add_subplot(grid[0, column])) for column in range(5)]
    board.titled(axes[0], "image").imshow(
        kernels.to_floats(image).squeeze(), cmap=GREY, vmin=0, vmax=1, interpolation="nearest"
    )
    weights = kernels.kernel_weights(kernel)
    for side, flip, name in ((1, False, "cross-correlation,\nwhat networks compute"), (3, True, "convolution")):
        _draw_weights(axes[side], weights[::-1, ::-1] if flip else weights)
        axes[side + 1].set_xlabel(_draw_filtered(board.titled(axes[side + 1], name), image, weights, flip), fontsize=8)
    return figure


def _draw_filtered(axes: Axes, image: np.ndarray, weights: np.ndarray, flip: bool = False) -> str:
    """Draws the result without what the padding would spoil; returns the scale, or "" of a picture."""
    settings = {"padding": "valid", "flip": flip}
    if abs(float(weights.sum())) > 1e-6:
        result = np.clip(kernels.filter_image(image, weights, **settings), 0, 1)
        axes.imshow(result.squeeze(), cmap=GREY, vmin=0, vmax=1, interpolation="nearest")
        return ""
    result = kernels.filter_image(kernels.to_grey(image), weights, **settings)
    limit = max(float(np.quantile(np.abs(result), 0.995)), 1e-6)
    axes.imshow(result, cmap=SIGNED, vmin=-limit, vmax=limit, interpolation="nearest")
    return f"±{limit:.2g}"


def _draw_weights(axes: Axes, weights: np.ndarray) -> None:
    """The weights in their places; those of a mean as whole numbers over a common divisor."""
    divisor = next((d for d in range(1, 257) if np.allclose(weights * d, np.round(weights * d), atol=1e-4)), 1)
    limit = float(np.abs(weights).max()) or 1.0
    axes.imshow(weights, cmap=SIGNED, vmin=-1.6 * limit, vmax=1.6 * limit)  # paler, for the numbers
    for (row, column), weight in np.ndenumerate(weights * divisor):
        text = axes.text(column, row, board.format_number(weight), ha="center", va="center", color="black")
        text.set_fontsize(24 / len(weights))
    if divisor > 1:
        axes.set_xlabel(f"/ {divisor}", fontsize=9)


@style.styled
def convolution_relu_pool(image: np.ndarray, kernel: str | np.ndarray, size: int = 4) -> Figure:
    """What the first layers of a network make of an image: convolution, rectifier, maximum of size x size pixels.

    Args:
        image: [H, W] or [H, W, C]; uint8, or floats in [0, 1]; its brightness is looked at.
        kernel: a name in `kernels.FILTERS`, or weights [k, k].
        size: of the pooling's windows.

    Raises:
        ValueError: as `kernels.filter_image`.
    """
    grey = kernels.to_grey(image)
    convolved = kernels.filter_image(grey, kernel, padding="valid")
    rectified = np.asarray(layers.ACTIVATIONS["relu"](convolved))
    pooled = kernels.pool_image(rectified, "max", size)
    figure = style.figure(13, 3.5)
    limit = max(float(np.quantile(np.abs(convolved), 0.995)), 1e-6)
    first, *others = figure.subplots(1, 4)
    board.titled(first, _sized("image", grey)).imshow(grey, cmap=GREY, vmin=0, vmax=1, interpolation="nearest")
    for axes, name, result in zip(
        others, ("convolution", "ReLU", f"max of {size}×{size}"), (convolved, rectified, pooled), strict=True
    ):
        board.titled(axes, _sized(name, result))
        drawn = axes.imshow(result, cmap=SIGNED, vmin=-limit, vmax=limit, interpolation="nearest")
    figure.colorbar(drawn, ax=others, shrink=0.7, pad=0.01)
    return figure


def _sized(name: str, image: np.ndarray) -> str:
    return f"{name}, {image.shape[0]}×{image.shape[1]}"


# -------------------------------------------------------------------------------------------------- step by step


@style.styled
def convolution_step(
    image: np.ndarray,
    kernel: str | np.ndarray,
    step: int = 0,
    *,
    stride: int = 1,
    padding: int | str = 0,
    flip: bool = False,
) -> Figure:
    """One position of the kernel: the window, its products with the weights, their sum, and the output until then.

    Args:
        image: [H, W], of ten pixels a side at most to be readable.
        kernel, stride, padding, flip: as in `kernels.walk_through`.
        step: of the positions in reading order; negative from the last.

    Raises:
        ValueError: as `kernels.walk_through`, or there is no such step.
    """
    walk = kernels.walk_through(image, kernel, stride=stride, padding=padding, flip=flip)
    if not -len(walk.steps) <= step < len(walk.steps):
        raise ValueError(f"step={step}: there are {len(walk.steps)} positions, 0 to {len(walk.steps) - 1}")
    pictures = _WalkFigure(walk)
    pictures.show(step % len(walk.steps))
    return pictures.figure


@style.styled
def animate_convolution(
    image: np.ndarray,
    kernel: str | np.ndarray,
    *,
    stride: int = 1,
    padding: int | str = 0,
    flip: bool = False,
    seconds: float = 1.0,
) -> Player:
    """All positions of the kernel, one after the other, as `convolution_step` draws them.

    Args:
        image, kernel, stride, padding, flip: as in `convolution_step`.
        seconds: that each is seen.

    Raises:
        ValueError: as `kernels.walk_through`.
    """
    walk = kernels.walk_through(image, kernel, stride=stride, padding=padding, flip=flip)
    pictures = _WalkFigure(walk)
    return board.play(
        pictures.figure,
        pictures.show,
        len(walk.steps),
        seconds,
        "A kernel moves over an image: its products with the pixels below it, and their sums",
    )


class _WalkFigure:
    """Image, weights, products and output side by side, with the numbers of one step."""

    def __init__(self, walk: kernels.Walk):
        self._walk = walk
        size = len(walk.weights)
        widths = [walk.padded.shape[1], size, size, walk.output.shape[1]]
        self.figure = style.figure(0.42 * sum(widths) + 2.4, 0.42 * max(len(walk.padded), len(walk.output)) + 1.2)
        axes = self.figure.subplots(1, 4, width_ratios=widths)
        # Half as much again as the largest: the darkest colours are too dark for numbers.
        outputs, weights = (1.5 * float(np.abs(values).max()) or 1.0 for values in (walk.output, walk.weights))
        products = 1.5 * max(float(np.abs(step.products).max()) for step in walk.steps) or 1.0
        low, high = float(walk.padded.min()), float(walk.padded.max())
        board.Numbers(board.titled(axes[0], "image"), walk.padded.shape, GREY, low, high + 1e-6).show(walk.padded)
        board.Numbers(board.titled(axes[1], "× kernel"), (size, size), SIGNED, -weights, weights).show(walk.weights)
        self._products = board.Numbers(board.titled(axes[2], "= products"), (size, size), SIGNED, -products, products)
        self._output = board.Numbers(
            board.titled(axes[3], "sum → output"), walk.output.shape, SIGNED, -outputs, outputs
        )
        self._windows = [board.outline(axes[0], size), board.outline(axes[3], 1)]
        if np.any(walk.pads):
            axes[0].set_title("image in its zeros")
            (top, bottom), (left, right) = walk.pads
            height, width = walk.padded.shape
            frame = Rectangle((left - 0.5, top - 0.5), width - left - right, height - top - bottom, fill=False)
            frame.set(edgecolor=style.color(0), linestyle="--", linewidth=1.5)
            axes[0].add_patch(frame)

    def show(self, number: int) -> None:
        step = self._walk.steps[number]
        seen = np.full(self._walk.output.size, np.nan)
        seen[: number + 1] = self._walk.output.reshape(-1)[: number + 1]
        self._products.show(step.products)
        self._output.show(seen.reshape(self._walk.output.shape))
        self._windows[0].set_xy((step.left - 0.5, step.top - 0.5))
        self._windows[1].set_xy((step.column - 0.5, step.row - 0.5))
        terms = [board.format_number(product) for product in step.products.flat if product]
        shown = " + ".join(terms).replace("+ −", "− ") or "0"
        equals = "=" if np.allclose(step.products, np.round(step.products, 2), atol=1e-6) else "≈"
        self.figure.suptitle(f"{shown} {equals} {board.format_number(step.total)}")


# -------------------------------------------------------------------------------------------- stride and padding


@style.styled
def animate_size(size: int, kernel: int, stride: int = 1, padding: int | str = 0, *, seconds: float = 0.5) -> Player:
    """Where a window goes on a square input, and the output that grows with it; the size formula stands above.

    Args:
        size: n, of the input, twelve at most to be readable.
        kernel, stride, padding: k, s and p, as in `models.layers.conv`.
        seconds: that each position is seen.

    Raises:
        ValueError: the window doesn't fit.
    """
    ones = np.ones((size, size)), np.ones((kernel, kernel))
    walk = kernels.walk_through(*ones, stride=stride, padding=padding)
    pads, out = walk.pads[0], len(walk.output)
    figure = style.figure(0.34 * (len(walk.padded) + out) + 1.6, 0.34 * len(walk.padded) + 1.3)
    figure.suptitle(size_formula(size, kernel, stride, pads, out), fontfamily="monospace")
    axes = figure.subplots(1, 2, width_ratios=[len(walk.padded), out])
    board.titled(axes[0], f"input {size}×{size}" + (f", padding {padding}" if any(pads) else ""))
    reached = np.zeros_like(walk.padded, bool)
    for step in walk.steps:
        reached[step.top : step.top + kernel, step.left : step.left + kernel] = True
    colours = np.where(walk.padded > 0, 0.55, 0.12) * np.where(reached, 1, 0.45)  # what no window reaches is pale
    board.cells(axes[0], colours.shape).set_data(colours)
    output = board.cells(board.titled(axes[1], f"output {out}×{out}"), walk.output.shape)
    windows = board.outline(axes[0], kernel), board.outline(axes[1], 1)

    def draw(number: int) -> None:
        step = walk.steps[number]
        seen = np.full(walk.output.size, 0.05)
        seen[: number + 1] = 0.55
        output.set_data(seen.reshape(walk.output.shape))
        windows[0].set_xy((step.left - 0.5, step.top - 0.5))
        windows[1].set_xy((step.column - 0.5, step.row - 0.5))

    alt = f"A window of {kernel}×{kernel} moves over an input of {size}×{size}; the output grows to {out}×{out}"
    return board.play(figure, draw, len(walk.steps), seconds, alt)


# ------------------------------------------------------------------------------------------------------- pooling


@style.styled
def animate_pooling(
    image: np.ndarray,
    size: int = 2,
    *,
    stride: int | None = None,
    kinds: Sequence[str] = ("max", "average", "sum"),
    seconds: float = 1.0,
) -> Player:
    """A window that goes over an image, and what each kind of pooling makes of it.

    Args:
        image: [H, W], of ten pixels a side at most to be readable.
        size, stride: of the window, as in `kernels.pool_image`.
        kinds: max | average | sum.
        seconds: that each position is seen.

    Raises:
        ValueError: as `kernels.pool_image`.
    """
    image, stride = kernels.to_floats(image), size if stride is None else stride
    results = {kind: kernels.pool_image(image, kind, size, stride=stride) for kind in kinds}
    out = next(iter(results.values())).shape
    widths = [image.shape[1], *[max(out[1], 2.5)] * len(results)]
    figure = style.figure(0.42 * sum(widths) + 2, 0.42 * len(image) + 1.2)
    first, *others = figure.subplots(1, len(widths), width_ratios=widths)
    figure.suptitle(f"{size}×{size} windows, stride {stride}")
    board.Numbers(board.titled(first, "image"), image.shape, GREY, float(image.min()), float(image.max()) + 1e-6).show(
        image
    )
    pooled = [
        board.Numbers(board.titled(axes, kind), out, GREY, min(0.0, float(result.min())), float(result.max()) + 1e-6)
        for axes, (kind, result) in zip(others, results.items(), strict=True)
    ]
    window, *cells = board.outline(first, size), *[board.outline(axes, 1) for axes in others]

    def draw(number: int) -> None:
        row, column = divmod(number, out[1])
        for numbers, result in zip(pooled, results.values(), strict=True):
            seen = np.full(result.size, np.nan)
            seen[: number + 1] = result.reshape(-1)[: number + 1]
            numbers.show(seen.reshape(out))
        window.set_xy((column * stride - 0.5, row * stride - 0.5))
        for cell in cells:
            cell.set_xy((column - 0.5, row - 0.5))

    return board.play(
        figure,
        draw,
        out[0] * out[1],
        seconds,
        f"A {size}×{size} window moves over an image: {', '.join(kinds)} pooling",
    )


@style.styled
def pooled_pictures(
    image: np.ndarray, sizes: Sequence[int] = (2, 4, 8), kinds: Sequence[str] = ("max", "average", "sum")
) -> Figure:
    """What is left of a picture after pooling: a row for each kind, a column for each size of the windows.

    Sums are drawn from 0 to the largest possible one, so that they look like averages: they differ by a factor only.

    Args:
        image: [H, W] or [H, W, C]; uint8, or floats in [0, 1].
        sizes: of the windows, which touch and don't overlap.
        kinds: max | average | sum.

    Raises:
        ValueError: as `kernels.pool_image`.
    """
    figure = style.figure(2.4 * (len(sizes) + 1), 2.6 * len(kinds))
    for row, kind in zip(figure.subplots(len(kinds), len(sizes) + 1, squeeze=False), kinds, strict=True):
        for axes, size in zip(row, (1, *sizes), strict=True):
            result = kernels.pool_image(image, kind, size) / (size**2 if kind == "sum" else 1)
            title = _sized("image" if size == 1 else f"{kind} of {size}×{size}", result)
            board.titled(axes, title).imshow(result.squeeze(), cmap=GREY, vmin=0, vmax=1, interpolation="nearest")
    return figure


# --------------------------------------------------------------------------------------------------- activations

# PReLU's slope is learned; this is the one that it starts with (He et al. 2015).
ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "ReLU": layers.ACTIVATIONS["relu"],
    "leaky ReLU, slope 0.01": layers.ACTIVATIONS["leaky_relu"],
    "PReLU, slope 0.25 at first": lambda x: jnp.where(x >= 0, x, 0.25 * x),
    "sigmoid": layers.ACTIVATIONS["sigmoid"],
    "tanh": layers.ACTIVATIONS["tanh"],
    "softplus": jax.nn.softplus,
}


def derivative(function: Callable[[jax.Array], jax.Array]) -> Callable[[jax.Array], jax.Array]:
    """The derivative of an elementwise function, as training computes it: x: float[N] -> float[N]."""
    return jax.vmap(jax.grad(function))


@style.styled
def activation_functions(functions: dict[str, Callable[[jax.Array], jax.Array]] = ACTIVATIONS) -> Figure:
    """Activation functions from -4 to 4, each with its derivative, by which gradients are multiplied on the way back.

    Args:
        functions: elementwise functions by the name to write.
    """
    rows = -(-len(functions) // 3)
    figure = style.figure(10, 2.9 * rows)
    x = jnp.linspace(-4.0, 4.0, 402)  # an even number: 0, where some have a corner, is not among them
    grid = figure.subplots(rows, 3, sharex=True, sharey=True, squeeze=False)
    for axes, (name, function) in zip(grid.flat, functions.items(), strict=False):
        axes.axhline(0, color=style.INK, linewidth=0.5)
        axes.axvline(0, color=style.INK, linewidth=0.5)
        axes.plot(x, function(x), color=style.color(0), linewidth=2, label="f(x)")
        # Dots don't join what a jump separates.
        axes.plot(x, derivative(function)(x), ".", color=style.color(1), markersize=2, label="f′(x)")
        axes.set_title(name)
        axes.set_ylim(-1.3, 2.3)
    for axes in grid.flat[len(functions) :]:
        axes.set_visible(False)
    grid.flat[0].legend(loc="upper left", markerscale=5)
    return figure
