"""Attributions drawn on the photographs that they explain.

figure = attributions(photos, {"Grad-CAM": heat, "occlusion": drops}, titles=["boat 93 %"])
"""

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from cnn_research.explain.style import scale_end

_PANEL = 1.7  # inches
_FAINT, _STRONG = 0.0, 0.85  # opacity of no heat and of the most
_CLIP = 99.5  # percent: what is beyond has the colour of this
_SMOOTH = 256  # pixels, at least, of a map that is enlarged


def attributions(
    photos: Any,
    maps: Mapping[str, Any],
    titles: Sequence[str] | None = None,
    correct: Sequence[bool] | None = None,
) -> Figure:
    """A row for each photograph: as it is, then under each method's map.

    Heat shows by its colour and by how opaque it is: dark red to yellow where a map has no negative values; otherwise
    red for what speaks for the class and blue for what speaks against it. Each map has its own scale. Maps smaller than
    the photograph are enlarged bilinearly, and their size is written under them.

    Args:
        photos: uint8[N, H, W, C] or float in [0, 1], with one or three channels; not preprocessed.
        maps: by name of the method, [N, h, w]; or pictures [N, H, W, C], such as those of guided backpropagation.
        titles: of the rows, such as "dog 71 % · true: cat".
        correct: colours the titles green or red.

    Raises:
        ValueError: there aren't as many maps as photographs, or a map has values that aren't finite.
    """
    photos = np.asarray(photos)
    maps = {name: np.asarray(each, np.float32) for name, each in maps.items()}
    for name, each in maps.items():
        if len(each) != len(photos):
            raise ValueError(f"{name} has {len(each)} maps for {len(photos)} photographs")
        if not np.isfinite(each).all():
            raise ValueError(f"{name} has values that aren't finite")
    figure, grid = photo_grid(len(photos), 1 + len(maps), panel=_PANEL, above=0.25, below=0.2)
    for row, (photo, axes) in enumerate(zip(photos, grid, strict=True)):
        draw_photo(axes[0], photo)
        if titles is not None:
            colour = "black" if correct is None else "#1a7f37" if correct[row] else "#cf222e"
            axes[0].set_title(titles[row], fontsize=8, color=colour)
        for place, (name, each) in zip(axes[1:], maps.items(), strict=True):
            _draw_map(place, photo, each[row])
            if row == 0:
                place.set_title(name, fontsize=8)
            small, large = each.shape[1:3], photo.shape[:2]
            if row == len(photos) - 1 and small != large:
                place.set_xlabel(f"{small[0]}×{small[1]} → {large[0]}×{large[1]}", fontsize=7)
    return figure


def photo_grid(
    rows: int, columns: int, *, panel: float, above: float, below: float = 0.05, aside: float = 0.05, head: float = 0.0
) -> tuple[Figure, np.ndarray]:
    """A figure of square places for pictures: (figure, axes [rows, columns]), without ticks or frames.

    Placed by hand: matplotlib's own search for a layout takes seconds for some dozens of places.

    Args:
        rows, columns: of places.
        panel: side of one, in inches.
        above: for a title over each place, in inches.
        below, aside, head: margins of the figure at the bottom, at either side, and at the top for its title.
    """
    gap = 0.08
    width = columns * panel + (columns - 1) * gap + 2 * aside
    height = rows * (panel + above) + head + below
    figure = Figure(figsize=(width, height), dpi=144)
    edges = {"left": aside / width, "right": 1 - aside / width, "bottom": below / height}
    edges["top"] = 1 - (head + above) / height
    grid = figure.subplots(
        rows, columns, squeeze=False, gridspec_kw=edges | {"wspace": gap / panel, "hspace": above / panel}
    )
    for axes in grid.flat:
        axes.set(xticks=[], yticks=[])
        axes.spines[:].set_visible(False)
    return figure, grid


def draw_photo(axes: Axes, photo: np.ndarray, opacity: float = 1.0) -> None:
    """Draws one photograph [H, W, C], its pixels crisp, without ticks."""
    photo = np.asarray(photo)
    photo = photo[..., 0] if photo.ndim == 3 and photo.shape[-1] == 1 else photo
    limits = {"cmap": "gray", "vmin": 0, "vmax": 255 if photo.dtype == np.uint8 else 1} if photo.ndim == 2 else {}
    axes.imshow(photo, interpolation="nearest", alpha=opacity, **limits)
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set_visible(False)


def blend(photo: np.ndarray, heat: np.ndarray) -> np.ndarray:
    """A photograph under a map, as `attributions` draws it, for those who place pictures themselves.

    Args:
        photo: uint8[H, W, C], or float in [0, 1].
        heat: float[h, w].

    Returns:
        uint8[H, W, 3].
    """
    photo = np.asarray(photo)
    pixels = photo.astype(np.float32) / (255 if photo.dtype == np.uint8 else 1)
    layer = _heat_layer(_enlarged(np.asarray(heat, np.float32), photo.shape[:2]))
    mixed = pixels * (1 - layer[..., 3:]) + layer[..., :3] * layer[..., 3:]
    return np.uint8(np.round(255 * np.clip(mixed, 0, 1)))


def _draw_map(axes: Axes, photo: np.ndarray, heat: np.ndarray) -> None:
    if heat.ndim == 3:  # a picture
        draw_photo(axes, as_picture(heat))
        return
    nothing = not heat.any()
    draw_photo(axes, photo, opacity=0.35 if nothing else 1.0)
    if nothing:
        # As a map that is stretched from its least to its most, it would show rounding errors.
        axes.text(0.5, 0.5, "no positive\nevidence", transform=axes.transAxes, ha="center", va="center", fontsize=8)
        return
    height, width = photo.shape[:2]
    if heat.shape != (height, width):
        times = -(-_SMOOTH // max(height, width))
        heat = _enlarged(heat, (height * times, width * times))
    box = (-0.5, width - 0.5, height - 0.5, -0.5)
    axes.imshow(_heat_layer(heat), interpolation="nearest", extent=box)


def _heat_layer(heat: np.ndarray) -> np.ndarray:
    """Colours with opacity: float[h, w, 4]."""
    most = scale_end(heat, _CLIP)
    strength = np.clip(np.abs(heat) / most, 0, 1)
    if (heat < 0).any():
        layer = matplotlib.colormaps["RdBu_r"](0.5 + 0.5 * np.clip(heat / most, -1, 1))
    else:
        layer = matplotlib.colormaps["inferno"](strength)
    layer[..., 3] = _FAINT + (_STRONG - _FAINT) * strength
    return layer


def as_picture(values: np.ndarray) -> np.ndarray:
    """Values around 0, such as gradients [H, W, C], as colours around grey: float[H, W, C] in [0, 1]."""
    most = scale_end(values, _CLIP)
    return np.clip(0.5 + 0.5 * values / most, 0, 1)


def _enlarged(heat: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    if heat.shape == size:
        return heat
    return np.asarray(Image.fromarray(heat).resize(size[::-1], Image.Resampling.BILINEAR))
