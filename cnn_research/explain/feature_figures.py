"""What layers look for and what they find, drawn: `features` and `visualise` have the numbers."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from cnn_research.explain.features import Exciting, strongest_channels
from cnn_research.explain.overlay import draw_photo, photo_grid
from cnn_research.explain.style import scale_end

_CLIP = 99.8  # percent: outliers beyond have the colour of this
# Okabe & Ito's colours, which everybody can tell apart.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")


def filters(kernel: Any, title: str = "", most: int = 64) -> Figure:
    """The filters of a convolution: in colour where they see three channels, else red above 0 and blue below.

    All share one scale, which is written beside them. Where a layer sees more channels, a row is a filter and a column
    a channel that it sees, those with the largest weights first.

    Args:
        kernel: float[kh, kw, in, out], of `features.filters`.
        title: such as the layer's path.
        most: filters; and where they have rows of their own, channels.
    """
    kernel = np.asarray(kernel, np.float32)
    inputs, outputs = kernel.shape[2:]
    limit = scale_end(kernel, _CLIP)
    if inputs in (1, 3):
        order = strongest_channels(kernel, most)
        tiles = np.moveaxis(kernel[..., order], -1, 0)  # [out, kh, kw, in]
        columns = int(np.ceil(np.sqrt(len(tiles) * 1.6)))
        note = _of(len(order), outputs, "filters")
        tiles = 0.5 + 0.5 * np.clip(tiles / limit, -1, 1) if inputs == 3 else tiles[..., 0]
    else:
        most = min(most, 16)
        rows, seen = strongest_channels(kernel, most), strongest_channels(np.swapaxes(kernel, 2, 3), most)
        tiles = kernel[:, :, seen][..., rows].transpose(3, 2, 0, 1).reshape(-1, *kernel.shape[:2])
        columns = len(seen)
        note = f"{_of(len(rows), outputs, 'filters')} (rows), {_of(len(seen), inputs, 'channels')} (columns)"
    mosaic = _mosaic(tiles, columns)
    width = min(7.0, 0.45 * columns + 1.0)
    figure = Figure(
        figsize=(width, (width - 0.6) * mosaic.shape[0] / mosaic.shape[1] + 0.6), dpi=144, layout="constrained"
    )
    axes = figure.subplots()
    shown = axes.imshow(mosaic, cmap="RdBu_r", vmin=-limit, vmax=limit, interpolation="nearest")
    _bare(axes)
    if inputs == 3:
        axes.set_xlabel(f"grey is 0, the range is ±{limit:.2g}", fontsize=7)
    else:
        figure.colorbar(shown, ax=axes, shrink=0.8, aspect=30).ax.tick_params(labelsize=7)
    figure.suptitle(_joined(title, note), fontsize=9)
    return figure


def feature_maps(maps: Any, title: str = "", most: int = 16) -> Figure:
    """The maps of one image at a layer, those with the most energy first, on one scale centred at 0.

    Args:
        maps: float[h, w, c].
        title: such as the layer's path.
        most: maps.
    """
    maps = np.asarray(maps, np.float32)
    order = strongest_channels(maps, most)
    limit = scale_end(maps[..., order], _CLIP)
    columns = min(8, len(order))
    rows = -(-len(order) // columns)
    figure, grid = photo_grid(rows, columns, panel=0.95, above=0.17, aside=0.5, head=0.25)
    for axes, channel in zip(grid.flat, order, strict=False):
        shown = axes.imshow(maps[..., channel], cmap="RdBu_r", vmin=-limit, vmax=limit, interpolation="nearest")
        axes.set_title(str(channel), fontsize=7, pad=2)
    bar = figure.add_axes((1 - 0.42 / figure.get_figwidth(), 0.12, 0.08 / figure.get_figwidth(), 0.68))
    figure.colorbar(shown, cax=bar).ax.tick_params(labelsize=6)
    note = f"{_of(len(order), maps.shape[-1], 'channels')} by energy, {maps.shape[0]}×{maps.shape[1]}"
    figure.suptitle(_joined(title, note), fontsize=9)
    return figure


def histograms(values: Mapping[str, Any], title: str = "", bins: int = 60) -> Figure:
    """A histogram for each layer: of activations, or of gradients, with the share of zeros.

    Args:
        values: {path: array of any shape}.
        title: such as "activations".
        bins: of each.
    """
    figure = Figure(figsize=(6.5, 0.75 * len(values) + 0.6), dpi=144, layout="constrained")
    grid = figure.subplots(len(values), 1, squeeze=False)[:, 0]
    for axes, (path, each) in zip(grid, values.items(), strict=True):
        flat = np.asarray(each, np.float32).ravel()
        low, high = np.percentile(flat, [100 - _CLIP, _CLIP])
        edges = np.linspace(low, high, bins + 1) if low < high else np.linspace(low - 1, high + 1, bins + 1)
        axes.hist(np.clip(flat, edges[0], edges[-1]), edges, color=_COLOURS[0], log=True)
        axes.axvline(0, color="black", linewidth=0.6)
        zeros = (flat == 0).mean()
        axes.set_title(f"{path} · {zeros:.0%} zeros" if zeros > 0 else path, fontsize=7, loc="left", pad=2)
        axes.tick_params(labelsize=6)
        axes.set_yticks([])
        axes.minorticks_off()
        axes.spines[["top", "right", "left"]].set_visible(False)
    note = "counts on a logarithmic scale, what lies outside at the ends"
    figure.suptitle(_joined(title, note), fontsize=9)
    return figure


def silence(shares: Mapping[str, Any], title: str = "") -> Figure:
    """How often the units of each layer are silent, sorted: a curve of each layer, and the number of dead ones.

    Args:
        shares: {path: float[c]}, of `features.silence`.
        title: of the figure.
    """
    figure = Figure(figsize=(6.5, 3.2), dpi=144, layout="constrained")
    axes = figure.subplots()
    styles = ("-", "--", ":")
    for number, (path, each) in enumerate(shares.items()):
        each = np.sort(np.asarray(each))[::-1]
        style = styles[number // len(_COLOURS) % len(styles)]
        place = (np.arange(len(each)) + 0.5) / len(each)
        label = f"{path}: {int((each == 1).sum())} of {len(each)} dead"
        axes.plot(place, each, style, color=_COLOURS[number % len(_COLOURS)], label=label, linewidth=1.4)
    axes.set(xlim=(0, 1), ylim=(-0.02, 1.02))
    axes.set_xlabel("units of the layer, the most silent first", fontsize=8)
    axes.set_ylabel("share of images\nwithout a response", fontsize=8)
    axes.tick_params(labelsize=7)
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside right upper", fontsize=7, frameon=False)
    figure.suptitle(title, fontsize=9)
    return figure


def receptive_fields(photo: Any, boxes: Mapping[str, Sequence[int]], title: str = "") -> Figure:
    """What single units see of an image, as frames on it.

    Args:
        photo: uint8[H, W, C] or float in [0, 1].
        boxes: {path: top, left, bottom, right}, of `features.seen_box`.
        title: of the figure.
    """
    figure = Figure(figsize=(5.2, 3.4), dpi=144, layout="constrained")
    axes = figure.subplots()
    draw_photo(axes, photo)
    for number, (path, (top, left, bottom, right)) in enumerate(boxes.items()):
        label = f"{path}: {bottom - top}×{right - left}"
        colour = _COLOURS[number % len(_COLOURS)]
        frame = (left - 0.5, top - 0.5), right - left, bottom - top
        axes.add_patch(Rectangle(*frame, fill=False, edgecolor="white", linewidth=3.0))
        axes.add_patch(Rectangle(*frame, fill=False, edgecolor=colour, linewidth=1.8, label=label))
    height, width = np.shape(photo)[:2]
    axes.set(xlim=(-1, width), ylim=(height, -1))
    figure.legend(loc="outside right upper", fontsize=7, frameon=False, title="sees, in pixels", title_fontsize=7)
    figure.suptitle(title, fontsize=9)
    return figure


def exciting(photos: Any, found: Exciting, title: str = "", crop: bool = True) -> Figure:
    """The images that most excite each channel, a row for each.

    Args:
        photos: uint8[N, H, W, C] or float in [0, 1], in the order that `features.most_exciting` had them in.
        found: of that function.
        title: such as the layer's path.
        crop: to what the channel sees; else that is framed.
    """
    rows, columns = found.indices.shape
    figure, grid = photo_grid(rows, columns, panel=0.8, above=0.17, aside=0.2, head=0.25)
    for row, channel in enumerate(found.channels):
        for column, index in enumerate(found.indices[row]):
            axes = grid[row, column]
            top, left, bottom, right = found.boxes[row, column]
            draw_photo(axes, photos[index][top:bottom, left:right] if crop else photos[index])
            if not crop:
                frame = (left - 0.5, top - 0.5), right - left, bottom - top
                axes.add_patch(Rectangle(*frame, fill=False, edgecolor=_COLOURS[1], linewidth=1.2))
            axes.set_title(f"{found.values[row, column]:.2g}", fontsize=6, pad=2)
        grid[row, 0].set_ylabel(f"channel {channel}", fontsize=7)
    figure.suptitle(_joined(title, "largest value on the image above it"), fontsize=9)
    return figure


def pictures(images: Any, names: Sequence[str], title: str = "") -> Figure:
    """Images side by side, such as those of `visualise.visualise`.

    Args:
        images: uint8[N, H, W, C] or float in [0, 1].
        names: of the images.
        title: of the figure.
    """
    columns = min(8, len(images))
    rows = -(-len(images) // columns)
    figure, grid = photo_grid(rows, columns, panel=1.1, above=0.2, head=0.25)
    for axes, image, name in zip(grid.flat, images, names, strict=False):
        draw_photo(axes, image)
        axes.set_title(name, fontsize=7, pad=2)
    figure.suptitle(title, fontsize=9)
    return figure


def _mosaic(tiles: np.ndarray, columns: int) -> np.ndarray:
    """Tiles [n, h, w] or [n, h, w, 3] in rows, with a gap of one white pixel."""
    rows = -(-len(tiles) // columns)
    height, width = tiles.shape[1:3]
    blank = np.nan if tiles.ndim == 3 else 1.0
    mosaic = np.full((rows * (height + 1) - 1, columns * (width + 1) - 1, *tiles.shape[3:]), blank, np.float32)
    for number, tile in enumerate(tiles):
        y, x = (number // columns) * (height + 1), (number % columns) * (width + 1)
        mosaic[y : y + height, x : x + width] = tile
    return mosaic


def _bare(axes: Axes) -> None:
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set_visible(False)


def _of(shown: int, there: int, what: str) -> str:
    return f"{shown} of {there} {what}" if shown < there else f"{there} {what}"


def _joined(*parts: str) -> str:
    return " · ".join(part for part in parts if part)
