"""How figures look: on a transparent ground, in colours that read on white paper and on a dark page alike.

A figure function is decorated with `styled`, makes its figure with `figure` and returns it. `svg` and `png` are for
those who embed it in a page.
"""

import functools
import io
import math
import re
from collections.abc import Callable
from typing import Any

import matplotlib
import numpy as np
from matplotlib import ticker
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure

# Text and axes: the grey whose contrast is the same with white and with the ground of dark pages, 4 to 1. As SVG they
# take the colour of the page's text, see `svg`.
INK = "#767676"
# Classes, runs and families, in this order everywhere. Each has a contrast of 3 to 1 or more with both grounds (WCAG
# 2.1, 1.4.11), and those who can't tell red from green can tell all of them apart, the first six easily.
PALETTE = (
    "#2f7fd1",  # blue
    "#d67a0a",  # orange
    "#089696",  # teal
    "#f26161",  # coral
    "#5e692a",  # olive
    "#3051f2",  # ultramarine
    "#9542a6",  # purple
    "#f23091",  # pink
    "#21a663",  # green
    "#875860",  # mauve
)
RIGHT, WRONG = "#15977f", "#d4493a"
DIVERGING = "RdBu_r"  # signed values, centred at 0
DPI = 144  # what a screen of two pixels a point shows without enlarging
_ENLARGED = 64  # pixels: the blocks of smaller images are shown as they are, without smoothing

RC = {
    "axes.edgecolor": INK,
    "axes.facecolor": "none",
    "axes.grid": False,
    "axes.labelcolor": INK,
    "axes.labelsize": 9,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlecolor": INK,
    "axes.titlelocation": "left",
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "figure.dpi": DPI,
    "figure.facecolor": "none",
    "figure.titlesize": 11,
    "figure.titleweight": "bold",
    "font.family": "sans-serif",
    "font.size": 9,
    "grid.alpha": 0.25,
    "grid.color": INK,
    "grid.linewidth": 0.6,
    "hatch.linewidth": 0.6,
    "legend.edgecolor": "none",
    "legend.facecolor": "none",
    "legend.fontsize": 8,
    "legend.frameon": False,
    "legend.labelcolor": INK,
    "lines.linewidth": 1.6,
    "patch.linewidth": 0.8,
    "text.color": INK,
    "xtick.color": INK,
    "xtick.labelsize": 8,
    "ytick.color": INK,
    "ytick.labelsize": 8,
}


def styled(draw: Callable[..., Any]) -> Callable[..., Any]:
    """Decorates a function that draws: the settings above hold inside it, and the caller's own are left as they are."""

    @functools.wraps(draw)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        with matplotlib.rc_context(RC):
            return draw(*args, **kwargs)

    return wrapper


def figure(width: float, height: float) -> Figure:
    """An empty figure, of so many inches, that lays itself out and belongs to no window; call under `styled`."""
    figure = Figure(figsize=(width, height), layout="constrained")
    figure.get_layout_engine().set(w_pad=0.08, h_pad=0.08)
    return figure


def color(index: int) -> str:
    """The colour of the class, run or family of this index; the eleventh is the first again."""
    return PALETTE[index % len(PALETTE)]


def percent(share: float) -> str:
    """0.9912 -> "99.1 %"; with a digit more where that tells it from 0 % or 100 %; NaN -> "–"."""
    if math.isnan(share):
        return "–"
    digits = 0 if share in (0, 1) else 1 if 0.0005 <= share < 0.9995 else 2
    return f"{100 * share:.{digits}f} %"


def shortened(text: str, letters: int) -> str:
    """The text, or as much of its beginning as fits into so many letters, and "…"."""
    return text if len(text) <= letters else f"{text[: letters - 1]}…"


def scale_end(values: np.ndarray, percent: float) -> float:
    """The magnitude at which a scale of colours ends: few are beyond it; the largest where most are 0, 1 where all are.

    Args:
        values: of any shape.
        percent: so many of the magnitudes are within.
    """
    magnitudes = np.abs(values)
    return float(np.percentile(magnitudes, percent)) or float(magnitudes.max()) or 1.0


def percent_axis(axis: Axis) -> None:
    """Labels an axis of shares in percent, at round numbers."""
    axis.set_major_locator(ticker.MaxNLocator(6, steps=[1, 2, 5, 10]))
    axis.set_major_formatter(lambda share, _: f"{100 * share:g} %")


def show_image(axes: Axes, image: np.ndarray, **look: Any) -> None:
    """Shows a picture without axes.

    Args:
        axes: where.
        image: uint8[H, W, 1 or 3] or [H, W], or float in [0, 1] of these shapes.
        **look: more of what matplotlib's `imshow` takes, such as `extent`.
    """
    grey = image.ndim == 2 or image.shape[2] == 1
    axes.imshow(
        image.reshape(image.shape[:2]) if grey else image,
        cmap="gray" if grey else None,
        vmin=0,
        vmax=255 if image.dtype == np.uint8 else 1,
        interpolation="nearest" if max(image.shape[:2]) <= _ENLARGED else "antialiased",
        **look,
    )
    axes.set_axis_off()


def svg(figure: Figure) -> str:
    """The figure as an SVG element to stand in a page, for line plots: images make it large.

    What is drawn in INK takes the colour of the text around it, so that it is as legible in a dark page as in a light
    one; letters are text that can be searched and copied. The same figure always gives the same text.
    """
    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "cnn_research"}):
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    text = buffer.getvalue()
    return re.sub(INK, "currentColor", text[text.index("<svg") :], flags=re.IGNORECASE)


def png(figure: Figure, dpi: int = DPI) -> bytes:
    """The figure as a PNG file with a transparent ground."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=dpi, transparent=True, metadata={"Software": None})
    return buffer.getvalue()
