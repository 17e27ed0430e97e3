"""A picture to try things on where none is at hand: a sailing boat, drawn, so that there is nothing to download."""

import numpy as np
from PIL import Image, ImageDraw

_FINE = 4  # drawn so many times larger, for smooth edges


def boat(size: int = 128) -> np.ndarray:
    """Draws a sailing boat on the sea.

    It has what filters react to: edges in all directions (sails, mast, hull), an even gradient (the sky), fine texture
    (the waves) and a round edge (the sun).

    Args:
        size: pixels of each side. The picture looks the same at every size.

    Returns:
        uint8[size, size, 3].

    Raises:
        ValueError: the size is below 16.
    """
    if size < 16:
        raise ValueError(f"size={size}: at least 16 pixels are needed for a boat")
    side = size * _FINE
    picture = Image.fromarray(_sky_and_sea(side))
    pen = ImageDraw.Draw(picture)

    def at(*points: tuple[float, float]) -> list[tuple[float, float]]:
        return [(x * side, y * side) for x, y in points]

    pen.ellipse(at((0.74, 0.09), (0.90, 0.25)), fill=(255, 226, 140))  # the sun
    pen.polygon(at((0.00, 0.60), (0.10, 0.50), (0.20, 0.53), (0.30, 0.60)), fill=(104, 128, 122))  # an island
    pen.polygon(at((0.47, 0.12), (0.47, 0.64), (0.16, 0.64)), fill=(248, 244, 232))  # the mainsail
    pen.polygon(at((0.53, 0.20), (0.53, 0.64), (0.76, 0.64)), fill=(226, 92, 66))  # the jib
    for share in (0.3, 0.5, 0.7, 0.88):  # seams of the mainsail
        height = 0.12 + 0.52 * share
        pen.line(at((0.47 - 0.31 * share, height), (0.47, height)), fill=(196, 190, 176), width=max(1, side // 160))
    pen.rectangle(at((0.49, 0.08), (0.51, 0.70)), fill=(92, 62, 40))  # the mast
    pen.polygon(at((0.51, 0.08), (0.62, 0.105), (0.51, 0.13)), fill=(52, 88, 168))  # the pennant
    pen.polygon(at((0.14, 0.68), (0.84, 0.68), (0.74, 0.81), (0.24, 0.81)), fill=(128, 70, 44))  # the hull
    pen.polygon(at((0.14, 0.68), (0.84, 0.68), (0.82, 0.705), (0.16, 0.705)), fill=(236, 214, 170))  # its rim
    for x in (0.34, 0.46, 0.58):  # portholes
        pen.ellipse(at((x, 0.73), (x + 0.045, 0.775)), fill=(236, 214, 170))
    return np.asarray(picture.resize((size, size), Image.Resampling.LANCZOS))


def _sky_and_sea(side: int) -> np.ndarray:
    """The sky brightens towards the horizon, 60 % of the way down; waves are longer and stronger where they are near.

    uint8[side, side, 3].
    """
    y, x = np.mgrid[:side, :side] / side
    depth = np.clip((y - 0.6) / 0.4, 0, 1)
    waves = np.sin(2 * np.pi * (10 * x + 1.5 * np.sin(7 * x + 40 * y)) / (0.4 + depth)) * np.sin(90 * np.sqrt(depth))
    sky = np.stack([110 + 130 * y, 165 + 95 * y, 225 + 20 * y], axis=-1)
    sea = np.stack([58 - 30 * depth, 124 - 50 * depth, 158 - 46 * depth], axis=-1)
    sea += ((6 + 30 * depth) * waves)[..., None]
    return np.clip(np.where((y < 0.6)[..., None], sky, sea), 0, 255).astype(np.uint8)
