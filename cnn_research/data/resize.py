"""Resizing to a square, on the host, with Pillow: what every feed does to the images of a source."""

import numpy as np
from PIL import Image

from cnn_research.data import decode

INTERPOLATIONS = {
    "bilinear": Image.Resampling.BILINEAR,
    "nearest": Image.Resampling.NEAREST,
    "bicubic": Image.Resampling.BICUBIC,
}
HOW = ("stretch", "crop")


def resize(
    image: Image.Image | np.ndarray, size: int, how: str = "stretch", interpolation: str = "bilinear"
) -> np.ndarray:
    """Resizes an image to size x size pixels.

    "stretch" scales both sides on their own, so that nothing is lost and proportions change. "crop" scales the shorter
    side to `size`, keeping proportions, and takes the central square: Krizhevsky et al. 2012, section 2. It rounds as
    torchvision's Resize(size) and CenterCrop(size) do: the longer side down, the crop's place to the nearest pixel,
    halves to even.

    Pillow's filters widen when they shrink an image, so that fine patterns don't alias ("nearest" excepted).

    Args:
      image: uint8[H, W, C] with one or three channels, or a PIL image of mode L or RGB.
      size: pixels of each side.
      how: "stretch" or "crop".
      interpolation: one of INTERPOLATIONS.

    Returns:
      uint8[size, size, C]; an array that has this size already is returned as it is.

    Raises:
      ValueError: for an unknown `how` or `interpolation`.
    """
    if how not in HOW or interpolation not in INTERPOLATIONS:
        raise ValueError(f"no resizing is known as {how!r} with {interpolation!r}")
    if isinstance(image, np.ndarray):
        if image.shape[:2] == (size, size):
            return image
        image = decode.from_array(image)
    resampling = INTERPOLATIONS[interpolation]
    if how == "stretch":
        image = image.resize((size, size), resampling)
    else:
        shorter = min(image.size)
        width, height = (size * side // shorter for side in image.size)
        left, top = round((width - size) / 2), round((height - size) / 2)
        image = image.resize((width, height), resampling).crop((left, top, left + size, top + size))
    return np.asarray(image).reshape(size, size, -1)
