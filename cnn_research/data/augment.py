"""Augmentations: pure functions of (key, image) that run on the device, inside the compiled step.

Each operation maps a key and one image uint8[H, W, C] to an image of the same shape and dtype and works under `jit` and
`vmap`. `parse` builds a pipeline from text such as "pad_and_crop(4)|flip", `apply` runs it over a batch.
"""

import inspect
import re
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp

from cnn_research.errors import UserError, suggest

Augmentation = Callable[[jax.Array, jax.Array], jax.Array]


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


def flip() -> Augmentation:
    """Mirrors left and right with probability 1/2."""

    def augment(key, image):
        return jnp.where(jax.random.bernoulli(key), image[:, ::-1], image)

    return augment


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


def _check_whole(name: str, value: int | float, least: int) -> None:
    if not isinstance(value, int) or value < least:
        raise ValueError(f"{name} must be a whole number of pixels, {least} or more, but is {value!r}")


# The operations by the name they have in a pipeline's text.
OPERATIONS: dict[str, Callable[..., Augmentation]] = {
    "pad_and_crop": pad_and_crop,
    "random_crop": random_crop,
    "flip": flip,
    "shift": shift,
}

_CALL = re.compile(r"\s*(?P<name>\w+)\s*(?:\((?P<arguments>[^()]*)\))?\s*")


def parse(text: str) -> Augmentation:
    """Builds a pipeline from text: operations joined by "|", applied from left to right; "" changes nothing.

    Args:
      text: such as "pad_and_crop(4)|flip". Arguments are numbers; an operation without arguments needs no parentheses.

    Returns:
      A pure function (key, image uint8[H, W, C]) -> uint8[H, W, C]. Each operation draws from a key of its own.

    Raises:
      UserError: for an unknown operation or arguments that don't fit it; the message lists what is known.
    """
    operations = [_parse_call(call, text) for call in text.split("|")] if text.strip() else []

    def pipeline(key, image):
        for number, operation in enumerate(operations):
            image = operation(jax.random.fold_in(key, number), image)
        return image

    return pipeline


def output_shape(pipeline: Augmentation, image_shape: Sequence[int]) -> tuple[int, int, int]:
    """Returns the (H, W, C) of what a pipeline makes of images of another (H, W, C), without running it.

    Raises:
      ValueError: if an operation can't be applied to such images; the message names it.
    """
    image = jax.ShapeDtypeStruct(tuple(image_shape), jnp.uint8)
    return jax.eval_shape(pipeline, jax.random.key(0), image).shape


def apply(pipeline: Augmentation, key: jax.Array, positions: jax.Array, images: jax.Array) -> jax.Array:
    """Augments a batch. An image's augmentation depends on (key, its position) alone.

    So it is the same for every batch size, number of devices and place in the batch.

    Args:
      pipeline: from `parse`.
      key: one key for the whole run.
      positions: uint32[b], each image's position in the training stream.
      images: uint8[b, H, W, C].

    Returns:
      uint8[b, H, W, C].
    """

    def augment_one(position, image):
        return pipeline(jax.random.fold_in(key, position), image)

    return jax.vmap(augment_one)(positions, images)


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
