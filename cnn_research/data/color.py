"""Augmentations of colour, for `augment`: brightness, contrast, saturation, hue and AlexNet's lighting.

As all augmentations they map a key and an image uint8[H, W, C] to an image uint8[H, W, C].
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp

# ImageNet's colours in [0, 1], as published with Facebook's fb.resnet.torch (datasets/imagenet.lua): eigenvalues, and
# in columns the eigenvectors, of red, green and blue.
_EIGENVALUES = (0.2175, 0.0188, 0.0045)
_EIGENVECTORS = ((-0.5675, 0.7192, 0.4009), (-0.5808, -0.0045, -0.8140), (-0.5836, -0.6948, 0.4203))

_GREY = (0.299, 0.587, 0.114)  # ITU-R BT.601, as in Pillow and torchvision


def lighting(std: float) -> Callable[[jax.Array, jax.Array], jax.Array]:
    """Adds a random amount of each principal component of ImageNet's colours, the same to all pixels.

    Krizhevsky et al. 2012, section 4.1: eigenvector times eigenvalue times a factor drawn from N(0, std^2), for each of
    the three components. They have a standard deviation of 0.1. Images must be RGB.
    """
    _check_at_least_0("std", std)

    def augment(key, image):
        _require_rgb("lighting", image)
        components = 255 * jnp.array(_EIGENVECTORS) * jnp.array(_EIGENVALUES)
        # Summed without a matrix product, which a TPU would compute in 8 bits.
        change = jnp.sum(components * (std * jax.random.normal(key, (3,))), axis=1)
        return _to_pixels(image + change)

    return augment


def color_jitter(
    brightness: float, contrast: float, saturation: float, hue: float = 0.0
) -> Callable[[jax.Array, jax.Array], jax.Array]:
    """Changes brightness, contrast, saturation and hue by random amounts in random order, as torchvision's ColorJitter.

    Brightness mixes the image with black, contrast with its mean grey, saturation with its own greys; each keeps a
    factor drawn uniformly from [max(0, 1 - strength), 1 + strength] of the image, and factors above 1 go beyond it. The
    hue turns by up to `hue` of the circle, at most 0.5, either way. Howard 2013, "Some improvements on deep
    convolutional neural network based image classification", takes strengths of 0.5 for the first three.

    Saturation and hue ask for RGB images.
    """
    strengths = {"brightness": brightness, "contrast": contrast, "saturation": saturation, "hue": hue}
    for name, strength in strengths.items():
        _check_at_least_0(name, strength)
    if hue > 0.5:
        raise ValueError(f"hue must be at most 0.5, half of the circle, but is {hue!r}")
    adjust = {
        "brightness": lambda image, factor: image * factor,
        "contrast": lambda image, factor: _blend(image, jnp.mean(_grey(image)), factor),
        "saturation": lambda image, factor: _blend(image, _grey(image), factor),
        "hue": lambda image, turn: _turn_hue(image, turn),
    }
    used = [name for name, strength in strengths.items() if strength > 0]

    def augment(key, image):
        if saturation or hue:
            _require_rgb("color_jitter with saturation or hue", image)
        order_key, amount_key = jax.random.split(key)
        amounts = jax.random.uniform(amount_key, (len(used),), minval=-1.0)
        steps = []
        for name, amount in zip(used, amounts, strict=True):
            low, high = (-hue, hue) if name == "hue" else (max(0.0, 1 - strengths[name]), 1 + strengths[name])
            value = low + (amount + 1) / 2 * (high - low)
            steps.append(lambda x, name=name, value=value: jnp.clip(adjust[name](x, value), 0.0, 255.0))
        pixels = image.astype(jnp.float32)
        for number in jax.random.permutation(order_key, len(used)):
            pixels = jax.lax.switch(number, steps, pixels)
        return _to_pixels(pixels)

    return augment


def _blend(image: jax.Array, other: jax.Array, factor: jax.Array) -> jax.Array:
    return other + factor * (image - other)


def _grey(image: jax.Array) -> jax.Array:
    """float[H, W, C] -> float[H, W, 1]."""
    return jnp.sum(image * jnp.array(_GREY), axis=-1, keepdims=True) if image.shape[-1] == 3 else image


def _turn_hue(image: jax.Array, turn: jax.Array) -> jax.Array:
    """Adds to the hue of HSV: float[H, W, 3] in any range, the turn as a share of the circle."""
    red, green, blue = image[..., 0], image[..., 1], image[..., 2]
    value = jnp.max(image, axis=-1)
    chroma = value - jnp.min(image, axis=-1)
    divisor = jnp.where(chroma == 0, 1.0, chroma)
    hue = jnp.where(
        value == red,
        (green - blue) / divisor,
        jnp.where(value == green, (blue - red) / divisor + 2, (red - green) / divisor + 4),
    )  # in sixths of the circle
    sector = (jnp.array([5.0, 3.0, 1.0]) + (hue + 6 * turn)[..., None]) % 6
    return value[..., None] - chroma[..., None] * jnp.clip(jnp.minimum(sector, 4 - sector), 0.0, 1.0)


def _to_pixels(values: jax.Array) -> jax.Array:
    return jnp.clip(jnp.round(values), 0, 255).astype(jnp.uint8)


def _require_rgb(name: str, image: jax.Array) -> None:
    if image.shape[-1] != 3:
        raise ValueError(f"{name} needs the three channels red, green and blue, but the images have {image.shape[-1]}")


def _check_at_least_0(name: str, value: float) -> None:
    if not (value >= 0 and math.isfinite(value)):
        raise ValueError(f"{name} must be at least 0, but is {value!r}")
