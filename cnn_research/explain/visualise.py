"""Feature visualisation: images that are made to excite a channel, from noise, by following its gradient.

Olah, Mordvintsev & Schubert 2017, "Feature visualization", Distill: optimised in the Fourier basis, where neighbouring
pixels move together, and jittered, so that no single pixel's place counts.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn

from cnn_research.explain import layers


def visualise(
    model: nn.Module,
    variables: layers.Variables,
    path: str,
    channels: Sequence[int],
    image_shape: tuple[int, int, int],
    *,
    key: jax.Array,
    mean: Any = 0.5,
    std: Any = 0.25,
    steps: int = 128,
    rate: float = 0.05,
    jitter: int | None = None,
) -> np.ndarray:
    """One image for each channel of a layer, or for each class of the last one.

    Args:
        model, variables: of the network.
        path: of the layer, whose value is maps [N, h, w, c] (the mean over the places is what grows) or [N, c].
        channels: of it.
        image_shape: (H, W, C).
        key: of the first images and the jitter.
        mean, std: of the network's preprocessing, in units of the whole range: input = (pixels - mean) / std.
        steps: of Adam.
        rate: Adam's learning rate.
        jitter: pixels by which an image is shifted at most, round its border; None is an eighth of its side.

    Returns:
        float32[len(channels), H, W, C] in [0, 1].

    Raises:
        ValueError: the network has no such layer, or the layer no such channel.
    """
    channels = np.asarray(channels, int)
    height, width, depth = image_shape
    jitter = max(1, min(height, width) // 8) if jitter is None else jitter
    count = len(channels)
    shape = jax.ShapeDtypeStruct((count, *image_shape), jnp.float32)
    size = jax.eval_shape(lambda v, x: layers.activations(model, v, x, [path])[path], variables, shape).shape[-1]
    if not all(0 <= channel < size for channel in channels):
        raise ValueError(f"{path} has channels 0 to {size - 1}, got {channels.tolist()}")
    # Natural images have energy in inverse proportion to frequency; so does what is drawn from these coefficients.
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width))
    scale = 1 / np.maximum(frequency, 1 / max(height, width))
    scale = (scale * np.sqrt(height * width) / np.sqrt((scale**2).mean()))[..., None].astype(np.float32)

    def pixels(coefficients: jax.Array) -> jax.Array:
        spectrum = scale * jax.lax.complex(coefficients[..., 0], coefficients[..., 1])
        return nn.sigmoid(jnp.fft.irfft2(spectrum, s=(height, width), axes=(1, 2)))

    def score(coefficients: jax.Array, variables: layers.Variables, shift: jax.Array) -> jax.Array:
        images = (jnp.roll(pixels(coefficients), shift, (1, 2)) - mean) / std
        values = layers.activations(model, variables, images.astype(jnp.float32), [path])[path]
        each = values.reshape(count, -1, size).mean(1)
        return each[jnp.arange(count), channels].sum()

    optimizer = optax.adam(rate)

    @jax.jit
    def step(coefficients: jax.Array, state: Any, variables: layers.Variables, key: jax.Array) -> tuple[Any, Any]:
        shift = jax.random.randint(key, (2,), -jitter, jitter + 1)
        gradient = jax.grad(score)(coefficients, variables, shift)
        updates, state = optimizer.update(-gradient, state)
        return optax.apply_updates(coefficients, updates), state

    first, *keys = jax.random.split(key, steps + 1)
    coefficients = 0.1 * jax.random.normal(first, (count, height, width // 2 + 1, depth, 2))
    state = optimizer.init(coefficients)
    for each in keys:  # no lax.scan: on a CPU, convolutions' gradients are slow in a loop
        coefficients, state = step(coefficients, state, variables, each)
    return np.asarray(jax.jit(pixels)(coefficients))
