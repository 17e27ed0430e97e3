"""Prediction cards: a picture, and bars of what a network takes it for."""

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

from cnn_research.explain import style

# Letters that fit.
_LONGEST = 28  # of a class's name
_LONGEST_TITLE = 44


@style.styled
def draw_card(image: np.ndarray, top: Sequence[tuple[str, float]], truth: str | None = None) -> Figure:
    """Draws an image beside the confidences of its most likely classes.

    Args:
        image: uint8[H, W, C], grey or RGB; the pixels of a small one are shown as squares.
        top: (class, confidence in [0, 1]), the most likely first, at least one.
        truth: the right class, which the title then tells, in green or red; None where it isn't known.

    Returns:
        The figure.

    Raises:
        ValueError: no class is given, or something that isn't an image.
    """
    if not top:
        raise ValueError("a card needs at least one class with its confidence")
    if image.ndim != 3 or image.shape[2] not in (1, 3):
        raise ValueError(f"a card needs an image uint8[H, W, 1 or 3], not one of shape {image.shape}")
    figure = style.figure(5.6, max(2.3, 1.0 + 0.27 * len(top)))
    picture, bars = figure.subplots(1, 2, width_ratios=(1, 1.3))
    style.show_image(picture, image)

    name, confidence = top[0]
    right = truth in (None, name)
    title = f"{style.shortened(name, _LONGEST)} {100 * confidence:.0f} %"
    if not right:
        true = f"true: {style.shortened(truth, _LONGEST)}"
        title += ("\n" if len(title + true) > _LONGEST_TITLE else " · ") + true
    figure.suptitle(title, color=style.INK if truth is None else style.RIGHT if right else style.WRONG)
    values, places = [value for _, value in top], np.arange(len(top))
    drawn = bars.barh(places, values, color=[style.color(0)] + [style.INK] * (len(top) - 1), height=0.66)
    bars.bar_label(drawn, [style.percent(value) for value in values], padding=3, fontsize=8)
    bars.set_yticks(places, [style.shortened(name, _LONGEST) for name, _ in top])
    bars.set_ylim(max(len(top), 3) - 0.4, -0.6)  # the most likely on top; a single bar stays a bar
    bars.set_xlim(0, 1.18)  # room for the label of a full bar
    bars.set_xticks([])
    bars.tick_params(axis="y", length=0)
    bars.spines[["top", "right", "bottom"]].set_visible(False)
    return figure
