"""Augmentations: pure functions of (key, image) that run on the device, inside the compiled step.

Each operation maps a key and one image uint8[H, W, C] to an image of the same shape and dtype and works under `jit` and
`vmap`. `parse` builds a pipeline from text such as "pad_and_crop(4)|flip", `apply` runs it over a batch.
"""

import inspect
import re
from collections.abc import Callable

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


def flip() -> Augmentation:
    """Mirrors left and right with probability 1/2."""

    def augment(key, image):
        return jnp.where(jax.random.bernoulli(key), image[:, ::-1], image)

    return augment


def _random_translation(reach: int, pad_mode: str, name: str) -> Augmentation:
    if not isinstance(reach, int) or reach < 0:
        raise ValueError(f"{name} must be a whole number of pixels, 0 or more, but is {reach!r}")

    def augment(key, image):
        # Raw bits instead of `randint`, which draws twice and takes longer to run and to compile than the crop itself.
        # The modulo favours some offsets by less than (2 * reach + 1) / 2**32.
        offsets = (jax.random.bits(key, (2,), jnp.uint32) % (2 * reach + 1)).astype(jnp.int32)
        padded = jnp.pad(image, ((reach, reach), (reach, reach), (0, 0)), mode=pad_mode)
        return jax.lax.dynamic_slice(padded, (offsets[0], offsets[1], 0), image.shape)

    return augment


# The operations by the name they have in a pipeline's text.
OPERATIONS: dict[str, Callable[..., Augmentation]] = {
    "pad_and_crop": pad_and_crop,
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
