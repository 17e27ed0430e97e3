"""What the pictures of the laboratory are made of: cells with numbers, frames around them, and players."""

import dataclasses
import html
import re
from collections.abc import Callable, Sequence

import numpy as np
from matplotlib import colormaps
from matplotlib.animation import FuncAnimation
from matplotlib.axes import Axes
from matplotlib.colors import Colormap
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.patches import Rectangle
from matplotlib.text import Text
from matplotlib.ticker import NullLocator

from cnn_research.explain import style

SIGNED = colormaps[style.DIVERGING].with_extremes(bad="#eeeeee")  # centred at 0
GREY = colormaps["Greys_r"].with_extremes(bad="#eeeeee")  # black is 0, as in a picture
WINDOW = style.color(1)  # on neither colour map
_PLAYER_DPI = 96  # a player holds every frame


def bare(axes: Axes) -> Axes:
    """Takes the frame and the ticks away."""
    axes.xaxis.set_major_locator(NullLocator())
    axes.yaxis.set_major_locator(NullLocator())
    axes.spines[:].set_visible(False)
    return axes


def titled(axes: Axes, title: str) -> Axes:
    """The same, with a title."""
    bare(axes).set_title(title)
    return axes


def outline(axes: Axes, size: int) -> Rectangle:
    """The frame of a window of `size` cells, to be moved."""
    patch = Rectangle((-0.5, -0.5), size, size, fill=False, edgecolor=WINDOW, linewidth=2.5, zorder=3)
    patch.set_clip_on(False)  # at the border, half of the line is outside
    return axes.add_patch(patch)


def _lines(axes: Axes, shape: Sequence[int], colour: str, width: float) -> None:
    """Lines around the cells of an image."""
    axes.set_xticks(np.arange(shape[1] + 1) - 0.5, minor=True)
    axes.set_yticks(np.arange(shape[0] + 1) - 0.5, minor=True)
    axes.grid(which="minor", color=colour, linewidth=width, alpha=1, clip_on=False)
    axes.tick_params(which="minor", length=0)


class Numbers:
    """Cells with numbers in them, which can be changed without drawing anew; NaN is an empty one."""

    def __init__(self, axes: Axes, shape: Sequence[int], cmap: Colormap, low: float, high: float):
        self._image: AxesImage = axes.imshow(np.full(shape, np.nan), cmap=cmap, vmin=low, vmax=high)
        _lines(axes, shape, "#cccccc", 0.6)
        self._texts: list[Text] = [
            axes.text(column, row, "", ha="center", va="center", fontsize=9) for row, column in np.ndindex(*shape)
        ]

    def show(self, values: np.ndarray) -> None:
        """Writes other numbers, [H, W]."""
        self._image.set_data(np.ma.masked_invalid(values))
        for text, value in zip(self._texts, np.asarray(values).flat, strict=True):
            text.set_text("" if np.isnan(value) else format_number(value))
            red, green, blue, _ = self._image.cmap(self._image.norm(0.0 if np.isnan(value) else value))
            text.set_color("white" if 0.3 * red + 0.59 * green + 0.11 * blue < 0.5 else "black")


def format_number(value: float) -> str:
    """Short enough for a cell: whole numbers as such, others with two decimals; with a true minus sign."""
    rounded = round(float(value), 2)
    if rounded == int(rounded):
        return str(int(rounded)).replace("-", "−")
    return f"{rounded:.2f}".replace("-", "−")


def cells(axes: Axes, shape: tuple[int, ...]) -> AxesImage:
    """Cells with lines between them, coloured from 0 (white) to 1."""
    image = axes.imshow(np.zeros(shape), cmap="Blues", vmin=0, vmax=1)
    _lines(axes, shape, "white", 1.5)
    return image


@dataclasses.dataclass(frozen=True)
class Player:
    """An animation to play, stop and step through in a browser.

    Attributes:
        html: everything it needs, frames included; nothing is loaded from elsewhere.
        frames: how many there are.
    """

    html: str
    frames: int

    def _repr_html_(self) -> str:
        """What a notebook shows."""
        return self.html


# matplotlib's player takes the pictures on its buttons from a font that it loads from the web.
_BUTTONS = {
    "fa-minus": "−",
    "fa-plus": "+",
    "fa-fast-backward": "|◀",
    "fa-step-backward": "‹",
    "fa-play fa-flip-horizontal": "◀",
    "fa-pause": "❚❚",
    "fa-play": "▶",
    "fa-step-forward": "›",
    "fa-fast-forward": "▶|",
}


def play(figure: Figure, draw: Callable[[int], None], frames: int, seconds: float, alt: str) -> Player:
    """Makes a player of what a figure shows.

    Args:
        figure: to be drawn.
        draw: changes it to frame 0, 1, ...
        frames: how many there are.
        seconds: that each is seen.
        alt: what there is to see, for those who can't.
    """
    figure.set_dpi(_PLAYER_DPI)
    animation = FuncAnimation(figure, lambda frame: draw(frame), frames=frames, init_func=lambda: None)
    page = animation.to_jshtml(fps=1 / seconds, default_mode="loop")
    page = re.sub(r"<link\b[^>]*>", "", page)
    page = re.sub(r'<i class="fa ([a-z -]+)"></i>', lambda icon: _BUTTONS[icon[1]], page)
    page = page.replace("<img id=", f'<img alt="{html.escape(alt)}" id=')
    page += "<style>.animation, .animation img, .animation .anim-slider {max-width: 100%}</style>"
    return Player(page, frames)
