"""Pictures in rows, each with a caption that says what it is and what it was taken for."""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

from cnn_research.explain import style

_PICTURE = 1.25  # inches: the side of one
_LETTERS = 19  # of a caption's line: more would run into the next picture


@dataclasses.dataclass(frozen=True)
class Caption:
    """What stands under a picture, and whether it is right (green) or wrong (red); None for neither."""

    text: str
    right: bool | None = None


def captions(probabilities: np.ndarray, labels: np.ndarray, classes: Sequence[str]) -> list[Caption]:
    """What each example was taken for and how surely: "dog 71 %", with "true: cat" below where that is wrong.

    Args:
        probabilities: float[N, K].
        labels: int[N].
        classes: K names.
    """
    found = []
    for row, label in zip(probabilities, labels, strict=True):
        predicted = int(row.argmax())
        said = f"{style.shortened(classes[predicted], 12)} {100 * row[predicted]:.0f} %"
        right = predicted == label
        found.append(Caption(said if right else f"{said}\ntrue: {style.shortened(classes[label], 12)}", right))
    return found


@style.styled
def gallery(images: Sequence[np.ndarray], captions: Sequence[Caption], *, columns: int = 8, title: str = "") -> Figure:
    """Pictures with captions, in rows.

    Args:
        images: at least one, each uint8[H, W, 1 or 3] or float in [0, 1]; sizes may differ.
        captions: one for each, such as from `captions`.
        columns: pictures in a row, at most.
        title: of all, such as "Largest losses".

    Raises:
        ValueError: no images, or not as many captions.
    """
    if not len(images) or len(images) != len(captions):
        raise ValueError(f"expected images and a caption for each, got {len(images)} and {len(captions)}")
    columns = min(columns, len(images))
    cell = _PICTURE + 0.08
    below = 0.06 + 0.15 * max(caption.text.count("\n") + 1 for caption in captions)
    head = 0.36 if title else 0.08
    width, height = columns * cell + 0.08, math.ceil(len(images) / columns) * (_PICTURE + below) + head
    figure = style.figure(width, height)
    # Places of their own instead of a layout, in which a long caption makes its picture smaller than its neighbours.
    figure.set_layout_engine("none")
    for index, (image, caption) in enumerate(zip(images, captions, strict=True)):
        row, column = divmod(index, columns)
        x, y = 0.08 + column * cell, height - head - row * (_PICTURE + below) - _PICTURE
        axes = figure.add_axes((x / width, y / height, _PICTURE / width, _PICTURE / height))
        style.show_image(axes, np.asarray(image))
        color = style.INK if caption.right is None else style.RIGHT if caption.right else style.WRONG
        text = "\n".join(style.shortened(line, _LETTERS) for line in caption.text.split("\n"))
        axes.text(0.5, -0.04, text, fontsize=7.5, color=color, ha="center", va="top", transform=axes.transAxes)
    if title:
        figure.text(0.08 / width, 1 - 0.08 / height, title, fontsize=10, fontweight="bold", va="top")
    return figure
