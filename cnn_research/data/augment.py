"""Augmentations: pure functions of (key, image) that run on the device, inside the compiled step.

Each operation maps a key and one image uint8[H, W, C] to an image uint8[H', W', C] and works under `jit` and `vmap`.
`parse` builds a pipeline from text such as "pad_and_crop(4)|flip", `apply` runs it over a batch. Operations that change
colours stand in `color`, those that draw one of many in `policies`.

Pixels stay uint8 between operations too: the half of a level that is lost to rounding matters to no network.
"""

import inspect
import math
import re
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from cnn_research.data.color import color_jitter, lighting
from cnn_research.data.policies import randaugment, trivialaugment
from cnn_research.errors import UserError, suggest

Augmentation = Callable[..., jax.Array]  # (key, image), and an Example where it `knows_example`


def pad_and_crop(padding: int) -> Augmentation:
    """Pads `padding` zero pixels on each side and crops the original size at a uniformly random place.

    The usual training augmentation of CIFAR, with padding 4: He et al. 2016, "Deep residual learning for image
    recognition", section 4.2.
    """
    return _random_translation(padding, "constant", "padding")


def shift(pixels: int) -> Augmentation:
    """Translates by a uniformly random whole number of pixels in [-pixels, pixels] along each axis.

    The border that the image no longer covers repeats the edge: unlike zeros, it suits scans whose background isn't
    black.
    """
    return _random_translation(pixels, "edge", "pixels")


def random_crop(size: int) -> Augmentation:
    """Crops size x size pixels at a uniformly random place: Krizhevsky et al. 2012, section 4.1."""
    _check_whole("size", size, 1)

    def augment(key, image):
        height, width, channels = image.shape
        if size > min(height, width):
            raise ValueError(f"random_crop({size}): the images have only {height}x{width} pixels")
        top, left = _random_below(key, (height - size + 1, width - size + 1))
        return jax.lax.dynamic_slice(image, (top, left, 0), (size, size, channels))

    return augment


def random_resized_crop(size: int, min_scale: float = 0.08, max_scale: float = 1.0) -> Augmentation:
    """Crops a box of random area, proportions and place, and resizes it to size x size pixels.

    Szegedy et al. 2015, "Going deeper with convolutions", section 6: between 8 and 100 % of the image's area, width to
    height between 3/4 and 4/3. Drawn as torchvision's RandomResizedCrop draws: the area uniformly, the proportions
    uniformly in their logarithm, up to ten times until the box fits into the image; should none fit, the largest
    central box of these proportions. Resized with the antialiased bilinear filter of Pillow, see `resize`.

    Args:
      size: of the result, pixels.
      min_scale, max_scale: bounds of the box's share of the image's area, 0 < min_scale <= max_scale <= 1.
    """
    _check_whole("size", size, 1)
    if not 0 < min_scale <= max_scale <= 1:
        raise ValueError(f"0 < min_scale <= max_scale <= 1 must hold, but they are {min_scale!r} and {max_scale!r}")

    def augment(key, image):
        height, width, _ = image.shape
        shape_key, place_key = jax.random.split(key)
        fits, boxes = _random_boxes(shape_key, height, width, (min_scale, max_scale), (3 / 4, 4 / 3))
        central = jnp.array([min(height, round(width / (3 / 4))), min(width, round(height * 4 / 3))])
        box = jnp.where(jnp.any(fits), boxes[jnp.argmax(fits)], central)
        free = jnp.array([height, width]) - box
        corner = jnp.where(jnp.any(fits), _random_below(place_key, free + 1), free // 2)
        return _resample(image, corner, box, size)

    return augment


def resize(size: int) -> Augmentation:
    """Resizes to size x size pixels with the antialiased bilinear filter, as Pillow and torchvision do.

    Where it shrinks, the filter is as wide as the step between the pixels of the result, so that fine patterns don't
    alias.
    """
    _check_whole("size", size, 1)

    def augment(key, image):
        return _resample(image, jnp.zeros(2, jnp.int32), jnp.array(image.shape[:2]), size)

    return augment


def cutout(size: int) -> Augmentation:
    """Fills a square of size x size pixels, whose centre is uniformly random, with the image's mean colour.

    DeVries & Taylor 2017, "Improved regularization of convolutional neural networks with cutout", who fill with zeros
    after normalisation, that is with the mean of the dataset. The square may reach beyond the image.
    """
    _check_whole("size", size, 1)

    def augment(key, image):
        height, width, _ = image.shape
        corner = _random_below(key, (height, width)) - size // 2
        mean = jnp.round(jnp.mean(image.astype(jnp.float32), axis=(0, 1))).astype(jnp.uint8)
        return jnp.where(_inside(image, corner, jnp.array([size, size])), mean, image)

    return augment


def random_erasing(probability: float) -> Augmentation:
    """With this probability fills a random box with random pixels.

    Zhong et al. 2020, "Random erasing data augmentation": the variant RE-R, their best, of one uniformly random value
    for each pixel and channel. The box is drawn as torchvision does: 2 to 33 % of the area, height to width between 0.3
    and 3.3, up to ten times until it is smaller than the image; should none be, nothing is erased.
    """
    if not 0 <= probability <= 1:
        raise ValueError(f"probability must be at least 0 and at most 1, but is {probability!r}")

    def augment(key, image):
        height, width, _ = image.shape
        chance_key, shape_key, place_key, noise_key = jax.random.split(key, 4)
        fits, boxes = _random_boxes(shape_key, height - 1, width - 1, (0.02, 0.33), (1 / 3.3, 1 / 0.3), height * width)
        box = boxes[jnp.argmax(fits)]
        corner = _random_below(place_key, jnp.maximum(jnp.array([height, width]) - box + 1, 1))
        erase = jnp.any(fits) & jax.random.bernoulli(chance_key, float(probability))
        noise = jax.random.bits(noise_key, image.shape, jnp.uint8)
        return jnp.where(erase & _inside(image, corner, box), noise, image)

    return augment


def flip() -> Augmentation:
    """Mirrors left and right with probability 1/2."""

    def augment(key, image):
        return jnp.where(jax.random.bernoulli(key), image[:, ::-1], image)

    return augment


def alternating_flip() -> Augmentation:
    """Mirrors left and right in every second epoch: which half of the images in the first epoch is random.

    Jordan 2024, "94% on CIFAR-10 in 3.29 seconds on a single GPU", section 3.6: in each two epochs the network sees
    both sides of every image, where `flip` shows half of them the same side twice.
    """

    def augment(key, image, example):
        mirrored = jax.random.bernoulli(key if example is None else example.key)
        odd = example is not None and example.epoch % 2 == 1
        return jnp.where(mirrored ^ odd, image[:, ::-1], image)

    augment.knows_example = True
    return augment


class Example(NamedTuple):
    """What an operation may know of the image beside its place in the stream, if it has `knows_example`.

    Attributes:
      key: the same each time that the example comes.
      epoch: how many times it has come before, uint32.
    """

    key: jax.Array
    epoch: jax.Array


def _random_translation(reach: int, pad_mode: str, name: str) -> Augmentation:
    _check_whole(name, reach, 0)

    def augment(key, image):
        offsets = _random_below(key, (2 * reach + 1, 2 * reach + 1))
        padded = jnp.pad(image, ((reach, reach), (reach, reach), (0, 0)), mode=pad_mode)
        return jax.lax.dynamic_slice(padded, (offsets[0], offsets[1], 0), image.shape)

    return augment


def _random_below(key: jax.Array, bounds: Sequence[int]) -> jax.Array:
    """Uniformly random integers, int32, each at least 0 and below its bound.

    From raw bits instead of `randint`, which draws twice and takes longer to run and to compile than a crop. The modulo
    favours some values by less than bound / 2**32.
    """
    bits = jax.random.bits(key, (len(bounds),), jnp.uint32)
    return (bits % jnp.asarray(bounds, jnp.uint32)).astype(jnp.int32)


def _random_boxes(
    key: jax.Array,
    height: int,
    width: int,
    scale: tuple[float, float],
    ratio: tuple[float, float],
    area: int | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Draws ten boxes: a uniformly random share of the area, and width to height uniformly random in its logarithm.

    Args:
      key: of the draw.
      height, width: what a box must fit into.
      scale, ratio: bounds.
      area: of which the box takes its share; None = height * width.

    Returns:
      bool[10], whether it fits, and int32[10, 2], height and width.
    """
    scale_key, ratio_key = jax.random.split(key)
    areas = (area or height * width) * jax.random.uniform(scale_key, (10,), minval=scale[0], maxval=scale[1])
    log_ratio = jax.random.uniform(ratio_key, (10,), minval=math.log(ratio[0]), maxval=math.log(ratio[1]))
    sides = jnp.sqrt(areas) * jnp.exp(jnp.array([[-0.5], [0.5]]) * log_ratio)
    boxes = jnp.round(sides).astype(jnp.int32).T
    return jnp.all((boxes > 0) & (boxes <= jnp.array([height, width])), axis=1), boxes


def _inside(image: jax.Array, corner: jax.Array, box: jax.Array) -> jax.Array:
    """bool[H, W, 1]: which pixels lie in a box of `box` = (height, width) at `corner` = (top, left)."""
    rows, columns = (
        (jnp.arange(n) >= start) & (jnp.arange(n) < start + length)
        for n, start, length in zip(image.shape[:2], corner, box, strict=True)
    )
    return (rows[:, None] & columns[None, :])[..., None]


def _resample(image: jax.Array, corner: jax.Array, box: jax.Array, size: int) -> jax.Array:
    """Resizes a box of an image to size x size: uint8[H, W, C] -> uint8[size, size, C]. The box need not be static.

    As Pillow crops and then resizes: the triangle filter, widened where it shrinks, sees the box alone.
    `jax.image.scale_and_translate` would let pixels beside the box in.
    """

    def weights(n: int, start: jax.Array, length: jax.Array) -> jax.Array:
        """float32[size, n]: of each input pixel in each output pixel."""
        step = length / size
        centres = start + (jnp.arange(size) + 0.5) * step
        pixels = jnp.arange(n)
        distance = jnp.abs(pixels[None, :] + 0.5 - centres[:, None]) / jnp.maximum(step, 1.0)
        triangle = jnp.where((pixels >= start) & (pixels < start + length), jnp.maximum(0.0, 1.0 - distance), 0.0)
        return triangle / jnp.sum(triangle, axis=1, keepdims=True)

    rows, columns = (weights(n, s, m) for n, s, m in zip(image.shape[:2], corner, box, strict=True))
    pixels = image.astype(jnp.float32)
    # Some devices would otherwise multiply with 8 bits, and the result would differ between devices by whole levels.
    pixels = jnp.einsum("yi,ijc->yjc", rows, pixels, precision=jax.lax.Precision.HIGHEST)
    pixels = jnp.einsum("xj,yjc->yxc", columns, pixels, precision=jax.lax.Precision.HIGHEST)
    return jnp.clip(jnp.round(pixels), 0, 255).astype(jnp.uint8)


_LARGEST = 4096  # pixels: more is a slip of the finger, and takes all memory


def _check_whole(name: str, value: int | float, least: int) -> None:
    if not isinstance(value, int) or not least <= value <= _LARGEST:
        raise ValueError(f"{name} must be a whole number of pixels from {least} to {_LARGEST}, but is {value!r}")


# The operations by the name they have in a pipeline's text.
OPERATIONS: dict[str, Callable[..., Augmentation]] = {
    "pad_and_crop": pad_and_crop,
    "shift": shift,
    "random_crop": random_crop,
    "random_resized_crop": random_resized_crop,
    "resize": resize,
    "flip": flip,
    "alternating_flip": alternating_flip,
    "color_jitter": color_jitter,
    "lighting": lighting,
    "cutout": cutout,
    "random_erasing": random_erasing,
    "randaugment": randaugment,
    "trivialaugment": trivialaugment,
}

_CALL = re.compile(r"\s*(?P<name>\w+)\s*(?:\((?P<arguments>[^()]*)\))?\s*")


def parse(text: str) -> Augmentation:
    """Builds a pipeline from text: operations joined by "|", applied from left to right; "" changes nothing.

    Args:
      text: such as "pad_and_crop(4)|flip". Arguments are numbers; an operation without arguments needs no parentheses.

    Returns:
      A pure function (key, image uint8[H, W, C]) -> uint8[H', W', C]. Each operation draws from a key of its own.

    Raises:
      UserError: for an unknown operation or arguments that don't fit it; the message lists what is known.
    """
    operations = [_parse_call(call, text) for call in text.split("|")] if text.strip() else []

    def pipeline(key, image, example=None):
        for number, operation in enumerate(operations):
            more = (example,) if getattr(operation, "knows_example", False) else ()
            image = operation(jax.random.fold_in(key, number), image, *more)
        return image

    return pipeline


def output_shape(pipeline: Augmentation, image_shape: Sequence[int]) -> tuple[int, int, int]:
    """Returns the (H, W, C) of what a pipeline makes of images of another (H, W, C), without running it.

    Raises:
      ValueError: if an operation can't be applied to such images; the message names it.
    """
    image = jax.ShapeDtypeStruct(tuple(image_shape), jnp.uint8)
    return jax.eval_shape(pipeline, jax.random.key(0), image).shape


def apply(
    pipeline: Augmentation,
    key: jax.Array,
    positions: jax.Array,
    images: jax.Array,
    indices: jax.Array | None = None,
    num_examples: int = 0,
) -> jax.Array:
    """Augments a batch. An image's augmentation depends on (key, its position) alone.

    So it is the same for every batch size, number of devices and place in the batch: to the bit what moves pixels, and
    to one level of 255, here and there, what resizes or changes colours, whose rounding is the compiler's affair.

    Args:
      pipeline: from `parse`.
      key: one key for the whole run.
      positions: uint32[b], each image's position in the training stream.
      images: uint8[b, H, W, C].
      indices: int32[b], which example each is, for `alternating_flip`; None: each image comes for the first time.
      num_examples: of an epoch, where there are indices. (After 2**32 images the count of epochs begins anew.)

    Returns:
      uint8[b, H', W', C].
    """
    # No position gets as far as that, or only after 2**32 images.
    example_key = jax.random.fold_in(key, jnp.uint32(2**32 - 1))

    def augment_one(position, image, index):
        example = None
        if index is not None:
            example = Example(jax.random.fold_in(example_key, index), position // jnp.uint32(num_examples))
        return pipeline(jax.random.fold_in(key, position), image, example)

    return jax.vmap(augment_one)(positions, images, indices)


def _parse_call(call: str, text: str) -> Augmentation:
    known = ", ".join(name + str(inspect.signature(make)).split(" ->")[0] for name, make in OPERATIONS.items())
    where = f"in the augmentation {text!r}; known are: {known}."
    match = _CALL.fullmatch(call)
    if not match:
        raise UserError(f"Can't read {call.strip()!r} {where}")
    name, arguments = match["name"], match["arguments"] or ""
    if name not in OPERATIONS:
        raise UserError(f"Unknown operation {name!r} {where}{suggest(name, OPERATIONS)}")
    try:
        values = [_number(argument) for argument in arguments.split(",")] if arguments.strip() else []
        inspect.signature(OPERATIONS[name]).bind(*values)
        return OPERATIONS[name](*values)
    except (TypeError, ValueError) as error:
        raise UserError(f"Bad arguments of {call.strip()!r} ({error}) {where}") from None


def _number(text: str) -> int | float:
    try:
        return int(text)
    except ValueError:
        pass
    try:
        return float(text)
    except ValueError:
        raise ValueError(f"{text.strip()!r} is not a number") from None
