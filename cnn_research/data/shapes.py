"""The generated dataset "shapes": a circle, a square, a triangle or a cross on a plain background.

An image is a pure function of its number, so there is nothing to download and nothing to store, and every machine sees
the same images. It serves where real photographs aren't at hand: tests, first steps, `:smoke` runs. Size, place,
rotation and both colours are random, so that neither a pixel nor a colour tells the class.
"""

import dataclasses
import operator
import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from cnn_research.errors import UserError, suggest

CLASSES = ("circle", "square", "triangle", "cross")
# Numbers of the images, by split: no two splits have one in common.
SPLITS = {"train": range(10_000), "test": range(10_000, 12_000)}

_NAME = re.compile(r"shapes(:(?P<size>\d{1,5}))?")
_SIZES = range(8, 4097)  # on fewer pixels a square is a circle


@dataclasses.dataclass(frozen=True)
class Shapes:
    """A split of the dataset; what the attributes are is told in `sources.Source`."""

    name: str
    split: str
    size: int
    classes: tuple[str, ...] = CLASSES

    @property
    def image_shape(self) -> tuple[int, int, int]:
        return (self.size, self.size, 3)

    def __len__(self) -> int:
        return len(SPLITS[self.split])

    def __getitem__(self, index: int) -> dict[str, Any]:
        index = operator.index(index)
        if not 0 <= index < len(self):
            raise IndexError(f"Example {index} of a source with {len(self)} examples.")
        number = SPLITS[self.split][index]
        label = number % len(CLASSES)  # as many of each class in any range of examples, to within one
        return {"image": render(number, self.size, CLASSES[label]), "label": label}

    def __getitems__(self, indices: Sequence[int]) -> list[dict[str, Any]]:
        return [self[index] for index in indices]


def is_shapes(name: str) -> bool:
    """Whether this is a name of the dataset: "shapes" or "shapes:" and something."""
    return name == "shapes" or name.startswith("shapes:")


def open_shapes(name: str, split: str) -> Shapes:
    """Opens one split.

    Args:
      name: "shapes" for images of 32x32 pixels, "shapes:96" for 96x96.
      split: train (10,000 images) or test (2,000).

    Raises:
      UserError: for a size that can't be read or drawn, or an unknown split.
    """
    match = _NAME.fullmatch(name)
    size = int(match["size"] or 32) if match else 0
    if size not in _SIZES:
        raise UserError(
            f"Can't read the dataset name {name!r}: write 'shapes' or, with another size than 32 pixels, 'shapes:96'; "
            f"{_SIZES[0]} to {_SIZES[-1]} are possible."
        )
    if split not in SPLITS:
        raise UserError(f"Unknown split {split!r} of {name!r}: it has {', '.join(SPLITS)}.{suggest(split, SPLITS)}")
    return Shapes(name, split, size)


def render(number: int, size: int, shape: str) -> np.ndarray:
    """Draws a shape; everything else about the image follows from `number` alone.

    The radius (from the centre to the corners, or to the circle) is 15 to 40 % of the image's side, and the whole shape
    lies inside. In each channel its colour and the background's are at least 64 apart.

    Args:
      number: of the image.
      size: pixels of each side. An image looks the same at every size.
      shape: one of CLASSES.

    Returns:
      uint8[size, size, 3], read-only.
    """
    # The raw words of Philox are the same in every version of NumPy, which is not promised of its distributions.
    words = np.random.Philox(key=np.array([0, number], np.uint64)).random_raw(10)
    uniform = (words >> np.uint64(11)) * 2.0**-53  # in [0, 1)

    radius = size * (0.15 + 0.25 * uniform[0])
    centre_y, centre_x = radius + (size - 2 * radius) * uniform[1:3]
    angle = 2 * np.pi * uniform[3]
    background = np.floor(256 * uniform[4:7])
    colour = (background + 64 + np.floor(129 * uniform[7:10])) % 256

    pixels = np.arange(size, dtype=np.float32) + np.float32(0.5)
    y, x = (pixels - np.float32(centre_y))[:, None], (pixels - np.float32(centre_x))[None, :]
    sin, cos = np.float32(np.sin(angle)), np.float32(np.cos(angle))
    distance = _DISTANCES[shape](cos * x + sin * y, cos * y - sin * x, np.float32(radius))
    # Of a pixel that the outline crosses, about this much lies inside.
    coverage = np.clip(np.float32(0.5) - distance, 0, 1)
    image = np.empty((size, size, 3), np.uint8)
    for channel in range(3):  # three times as fast as one product with the colours along the last axis
        step = np.float32(colour[channel] - background[channel])
        image[..., channel] = coverage * step + np.float32(background[channel] + 0.5)
    image.flags.writeable = False
    return image


# (x, y) from the centre, the radius r -> how far outside of the shape a point lies, negative inside; all in pixels.


def _circle(x: np.ndarray, y: np.ndarray, r: np.float32) -> np.ndarray:
    return np.sqrt(x * x + y * y) - r


def _square(x: np.ndarray, y: np.ndarray, r: np.float32) -> np.ndarray:
    return np.maximum(np.abs(x), np.abs(y)) - r * np.float32(0.5**0.5)


def _triangle(x: np.ndarray, y: np.ndarray, r: np.float32) -> np.ndarray:
    """Equilateral: three lines at half the radius."""
    return np.maximum(np.abs(x) * np.float32(0.75**0.5) + y * np.float32(0.5), -y) - r * np.float32(0.5)


def _cross(x: np.ndarray, y: np.ndarray, r: np.float32) -> np.ndarray:
    """Two bars, three times as long as wide."""
    x, y = np.abs(x), np.abs(y)
    half_length, half_width = r * np.float32(0.9**0.5), r * np.float32(0.1**0.5)
    return np.maximum(np.minimum(x, y) - half_width, np.maximum(x, y) - half_length)


_DISTANCES = {"circle": _circle, "square": _square, "triangle": _triangle, "cross": _cross}
