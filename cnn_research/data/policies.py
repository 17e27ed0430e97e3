"""RandAugment and TrivialAugment, for `augment`: one or more of 14 operations, drawn for each image.

As all augmentations they map a key and an image uint8[H, W, C] to an image uint8[H, W, C]; RGB, or grey.

An image's operation is known on the device alone, and under `vmap` a `lax.switch` would compute all 14 for every image.
Therefore every image goes through the same three steps, each a single pass over its pixels: a table from old to new
levels, a blend with a second image, and an affine warp. An operation is the numbers that it gives to these steps, most
of which then change nothing; they are computed once, when the step is traced. That costs what the dearest operations
cost together (one histogram, two gathers) instead of the sum over 14, of which 5 would gather for a warp.

All arithmetic on pixels is in whole numbers, so the result is the same on every device. It follows Pillow, which
torchvision calls for PIL images:

- Geometry maps each pixel of the result back into the image, centre to centre, takes the nearest pixel there and fills
  with 0 from outside, as `Image.transform` does with AFFINE and NEAREST: in the same steps of 1/65536 pixel.
- Posterize, solarize, equalize and autocontrast are those of `ImageOps`. In autocontrast a level that comes out as a
  whole number is that number, so that the lightest is 255; Pillow's double precision makes it one less now and then.
- Brightness, colour, contrast and sharpness are those of `ImageEnhance`, rounded down as there. Here too
  Pillow's single precision may make a level that comes out as a whole number one less.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

OPERATIONS = (
    *("identity", "shear_x", "shear_y", "translate_x", "translate_y", "rotate"),
    *("brightness", "color", "contrast", "sharpness"),
    *("posterize", "solarize", "autocontrast", "equalize"),
)
STRENGTHS = 31  # from 0, nothing, to 30, the strongest of the space
_NUMBER = {name: number for number, name in enumerate(OPERATIONS)}


class Space(NamedTuple):
    """How far the operations go at strength 30; strength s goes s / 30 of it, solarize from nothing to all levels."""

    shear: float  # pixels to the side a pixel
    translate: Callable[[int], float]  # pixels, from the image's side in that direction
    rotate: float  # degrees
    enhance: int  # thousandths that the image's share in the blend lies above or below 1
    posterize: int  # bits that are dropped


# As torchvision publishes them, with num_magnitude_bins = 31. The translations of the former are those that AutoAugment
# used on images of 331 pixels.
RANDAUGMENT = Space(shear=0.3, translate=lambda side: 150 * side / 331, rotate=30.0, enhance=900, posterize=4)
TRIVIALAUGMENT_WIDE = Space(shear=0.99, translate=lambda side: 32.0, rotate=135.0, enhance=990, posterize=6)


def randaugment(num_ops: int = 2, magnitude: int = 9) -> Callable[[jax.Array, jax.Array], jax.Array]:
    """Applies `num_ops` operations, each uniformly one of the 14, all at the same strength.

    Cubuk et al. 2020, "RandAugment: Practical automated data augmentation with a reduced search space". Operations and
    strengths are those of torchvision's RandAugment: directions are random, and so is the sign of what brightness,
    colour, contrast and sharpness change.

    Args:
      num_ops: how many, one after the other; the same one may come again.
      magnitude: of all of them, from 0 to 30.
    """
    if not isinstance(num_ops, int) or num_ops < 1:
        raise ValueError(f"num_ops must be a whole number, 1 or more, but is {num_ops!r}")
    if not isinstance(magnitude, int) or not 0 <= magnitude < STRENGTHS:
        raise ValueError(f"magnitude must be a whole number from 0 to {STRENGTHS - 1}, but is {magnitude!r}")

    def augment(key, image):
        _require_rgb_or_grey("randaugment", image)
        operations, signs = _random_below(key, num_ops, (len(OPERATIONS), 2))
        for operation, sign in zip(operations, signs, strict=True):
            image = apply_operation(image, RANDAUGMENT, operation, magnitude, sign)
        return image

    return augment


def trivialaugment() -> Callable[[jax.Array, jax.Array], jax.Array]:
    """Applies one operation, uniformly one of the 14, at a uniformly random one of 31 strengths.

    Müller & Hutter 2021, "TrivialAugment: Tuning-free yet state-of-the-art data augmentation", with their wide space as
    torchvision's TrivialAugmentWide has it. Its translations go up to 32 pixels whatever the image's size: of 32x32
    pixels the strongest leave nothing.
    """

    def augment(key, image):
        _require_rgb_or_grey("trivialaugment", image)
        (operation,), (strength,), (sign,) = _random_below(key, 1, (len(OPERATIONS), STRENGTHS, 2))
        return apply_operation(image, TRIVIALAUGMENT_WIDE, operation, strength, sign)

    return augment


def apply_operation(
    image: jax.Array, space: Space, operation: int | jax.Array, strength: int | jax.Array, sign: int | jax.Array
) -> jax.Array:
    """Applies one operation.

    Args:
      image: uint8[H, W, C], of 8 million pixels at most, and a side of 10,000: sums are int32.
      space: whose strengths are meant.
      operation: its place in OPERATIONS.
      strength: from 0 to 30. Identity, autocontrast and equalize know none.
      sign: 0 = right, down, anticlockwise, more; 1 = the opposite. Only geometry and blends have one.

    Returns:
      uint8[H, W, C].
    """
    height, width, _ = image.shape
    numbers = jnp.asarray(_numbers(space, height, width))[operation, strength, sign]
    matrix, (factor, threshold, mask) = numbers[:6], numbers[6:]
    pixels = _map_levels(image, operation, threshold, mask)
    pixels = _blend(pixels, operation, factor)
    return _warp(pixels, matrix).astype(jnp.uint8)


def _numbers(space: Space, height: int, width: int) -> np.ndarray:
    """Returns int32[14 operations, 31 strengths, 2 signs, 9], what they give to the three steps.

    To the warp 6 entries of a matrix in 1/65536, to the blend a factor in thousandths, to the table the threshold of
    solarize and the mask of posterize.
    """
    share = np.arange(STRENGTHS)[:, None] / (STRENGTHS - 1)
    sign = np.array([1, -1])

    # A pixel of the result at (x, y) comes from (a x + b y + c, d x + e y + f).
    matrix = np.tile(np.array([1.0, 0, 0, 0, 1, 0]), (len(OPERATIONS), STRENGTHS, 2, 1))
    matrix[_NUMBER["shear_x"], ..., 1] = sign * space.shear * share
    matrix[_NUMBER["shear_y"], ..., 3] = sign * space.shear * share
    matrix[_NUMBER["translate_x"], ..., 2] = -sign * np.floor(space.translate(width) * share)
    matrix[_NUMBER["translate_y"], ..., 5] = -sign * np.floor(space.translate(height) * share)
    angle = np.radians(-sign * space.rotate * share)
    cos, sin, x, y = np.cos(angle), np.sin(angle), width / 2, height / 2
    rotation = [cos, sin, x - cos * x - sin * y, -sin, cos, y + sin * x - cos * y]
    matrix[_NUMBER["rotate"]] = np.stack(rotation, axis=-1)
    matrix[..., 2] += (matrix[..., 0] + matrix[..., 1]) / 2  # x and y are 1/2 in the centre of the first pixel
    matrix[..., 5] += (matrix[..., 3] + matrix[..., 4]) / 2

    numbers = np.empty((*matrix.shape[:-1], 9), np.int32)
    numbers[..., :6] = np.floor(matrix * 65536 + 0.5)
    numbers[..., 6:] = [1000, 256, 255]
    for name in ("brightness", "color", "contrast", "sharpness"):
        numbers[_NUMBER[name], ..., 6] = np.round(1000 + sign * space.enhance * share)
    numbers[_NUMBER["solarize"], ..., 7] = np.ceil(255 - 255 * share)
    numbers[_NUMBER["posterize"], ..., 8] = 256 - 2 ** np.round(space.posterize * share).astype(int)
    return numbers


def _map_levels(image: jax.Array, operation: jax.Array, threshold: jax.Array, mask: jax.Array) -> jax.Array:
    """Posterize, solarize, autocontrast and equalize: uint8[H, W, C] -> int32[H, W, C]."""
    channels = image.shape[-1]
    places = image.astype(jnp.int32) + 256 * jnp.arange(channels)  # in a table of 256 levels a channel
    histogram = jnp.zeros(256 * channels, jnp.int32).at[places].add(1).reshape(channels, 256)
    levels = jnp.arange(256)
    table = jnp.where(levels >= threshold, 255 - levels, levels) & mask

    lowest = jnp.argmax(histogram > 0, axis=1)[:, None]
    highest = 255 - jnp.argmax(histogram[:, ::-1] > 0, axis=1)[:, None]
    stretched = jnp.clip(255 * (levels - lowest) // jnp.maximum(highest - lowest, 1), 0, 255)
    autocontrast = jnp.where(highest > lowest, stretched, levels)

    below = jnp.cumsum(histogram, axis=1) - histogram
    step = jnp.take_along_axis(below, highest, axis=1) // 255  # pixels a level; the highest one's are left out
    equal = jnp.minimum((step // 2 + below) // jnp.maximum(step, 1), 255)
    equalize = jnp.where(step > 0, equal, levels)

    table = jnp.where(operation == _NUMBER["autocontrast"], autocontrast, table)
    table = jnp.where(operation == _NUMBER["equalize"], equalize, table)
    return table.reshape(-1)[places]


def _blend(image: jax.Array, operation: jax.Array, factor: jax.Array) -> jax.Array:
    """Brightness, colour, contrast and sharpness: int32[H, W, C] -> int32[H, W, C].

    factor / 1000 of the image, the rest of black, its greys, their mean or the smoothed image. Factors above 1000 go
    beyond the image; at 1000 it stays as it is.
    """
    height, width, channels = image.shape
    # ITU-R BT.601 in 1/65536, as in Pillow. Of a grey image it is the image.
    red_green_blue = jnp.array([19595, 38470, 7471])
    grey = (jnp.sum(image * red_green_blue, axis=-1, keepdims=True) + 32768) >> 16 if channels == 3 else image
    mean = (jnp.sum(grey) + height * width // 2) // (height * width)
    other = jnp.zeros_like(image)
    other = jnp.where(operation == _NUMBER["color"], grey, other)
    other = jnp.where(operation == _NUMBER["contrast"], mean, other)
    other = jnp.where(operation == _NUMBER["sharpness"], _smooth(image), other)
    return jnp.clip((factor * image + (1000 - factor) * other) // 1000, 0, 255)


def _smooth(image: jax.Array) -> jax.Array:
    """Means of 3x3 pixels, the central one with weight 5, as Pillow's filter SMOOTH; pixels at the border stay."""
    height, width, _ = image.shape
    if min(height, width) < 3:
        return image
    rows = image[:-2] + image[1:-1] + image[2:]
    total = rows[:, :-2] + rows[:, 1:-1] + rows[:, 2:] + 4 * image[1:-1, 1:-1]
    return image.at[1:-1, 1:-1].set((2 * total + 13) // 26)


def _warp(image: jax.Array, matrix: jax.Array) -> jax.Array:
    """Shears, translations and rotation: the result's pixel at (x, y) is the image's at the matrix times (x, y, 1).

    Nearest interpolation, 0 outside. The matrix is int32[6], in 1/65536 of a pixel.
    """
    height, width, channels = image.shape
    x, y = jnp.arange(width)[None, :], jnp.arange(height)[:, None]
    from_x, from_y = ((matrix[i] * x + matrix[i + 1] * y + matrix[i + 2]) >> 16 for i in (0, 3))
    inside = (from_x >= 0) & (from_x < width) & (from_y >= 0) & (from_y < height)
    place = jnp.where(inside, from_y * width + from_x, 0)
    return jnp.where(inside[..., None], image.reshape(-1, channels)[place], 0)


def _random_below(key: jax.Array, count: int, bounds: tuple[int, ...]) -> jax.Array:
    """int32[len(bounds), count]: uniformly random, each at least 0 and below its bound."""
    bits = jax.random.bits(key, (len(bounds), count), jnp.uint32)
    return (bits % jnp.array(bounds, jnp.uint32)[:, None]).astype(jnp.int32)


def _require_rgb_or_grey(name: str, image: jax.Array) -> None:
    if image.shape[-1] not in (1, 3):
        raise ValueError(
            f"{name} needs the three channels red, green and blue, or a single one, but the images have "
            f"{image.shape[-1]}"
        )
