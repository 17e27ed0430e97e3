"""What the layers of a network look for, and what they find: numbers; `feature_figures` draws them.

Each function takes any Flax Linen module, its variables, preprocessed images float[N, H, W, C] and the path of a layer
(`layers.list_layers`).
"""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax.traverse_util import flatten_dict

from cnn_research.explain import layers
from cnn_research.explain.compiled import compiled
from cnn_research.models.trace import Trace, View, views_of

Variables = layers.Variables


def filters(variables: Variables, path: str) -> np.ndarray:
    """The kernel of a convolution: float[kh, kw, in, out].

    Args:
        variables: of the network.
        path: of the convolution.

    Raises:
        ValueError: no convolution has this path.
    """
    leaves = flatten_dict(variables.get("params", {}), sep="/")
    kernels = {name.rpartition("/")[0]: leaf for name, leaf in leaves.items() if name.endswith("kernel")}
    maps = {name: leaf for name, leaf in kernels.items() if np.ndim(leaf) == 4}
    if path not in maps:
        raise ValueError(f"there is no convolution {path!r} among {', '.join(maps) or 'the parameters'}")
    return np.asarray(maps[path], np.float32)


def strongest_channels(maps: Any, most: int = 16) -> np.ndarray:
    """The channels with the largest mean square, largest first: int[at most `most`].

    Args:
        maps: float[..., c], of one image or several.
        most: so many.
    """
    maps = np.asarray(maps, np.float32)
    energy = (maps.reshape(-1, maps.shape[-1]) ** 2).mean(0)
    return np.argsort(-energy, kind="stable")[:most]


def values_and_gradients(
    model: nn.Module, variables: Variables, images: jax.Array, labels: jax.Array, paths: Sequence[str]
) -> dict[str, tuple[jax.Array, jax.Array]]:
    """Of each layer, its values and the gradient of each image's cross-entropy with respect to them.

    Args:
        model, variables: of the network, which returns logits [N, K].
        images: float[N, H, W, C].
        labels: int[N].
        paths: of the layers.

    Returns:
        {path: (values [N, ...], gradients [N, ...])}, in the order of `paths`.

    Raises:
        ValueError: the network has no such layer, or doesn't return logits.
    """
    found = _values_and_gradients(model, variables, images, jnp.asarray(labels), tuple(paths))
    return dict(zip(paths, found, strict=True))


@compiled("paths")
def _values_and_gradients(
    model: nn.Module, variables: Variables, images: jax.Array, labels: jax.Array, paths: tuple[str, ...]
) -> list[tuple[jax.Array, jax.Array]]:
    """As a list, because `jax.jit` sorts dictionaries."""

    def loss(logits: jax.Array) -> jax.Array:
        layers.check_logits(logits)
        return -jnp.take_along_axis(nn.log_softmax(logits), labels[:, None], axis=-1)[:, 0]

    return [layers.value_and_gradient(model, variables, images, path, loss)[1:] for path in paths]


def silence(
    model: nn.Module, variables: Variables, images: Any, paths: Sequence[str], batch_size: int = 64
) -> dict[str, np.ndarray]:
    """Of each unit, the share of the images on which it never fires: {path: float[c]}. One that has 1 is dead.

    A unit is a channel, and it fires where its value is above 0, which is where a rectifier that follows lets it pass.

    Args:
        model, variables: of the network.
        images: float[N, H, W, C]; in batches they may be many.
        paths: of the layers.
        batch_size: images at a time.

    Raises:
        ValueError: the network has no such layer.
    """

    @jax.jit
    def fires(images: jax.Array) -> dict[str, jax.Array]:
        found = layers.activations(model, variables, images, paths)
        return {path: (values > 0).any(tuple(range(1, values.ndim - 1))) for path, values in found.items()}

    batches = [fires(batch) for batch in _batches(images, batch_size)]
    return {path: 1 - np.concatenate([b[path] for b in batches])[: len(images)].mean(0) for path in paths}


# -- where a unit looks


def receptive_field(model: nn.Module, variables: Variables, images: Any, path: str) -> View:
    """What an element of a layer's value sees of the image, read off the network's trace; nothing is computed.

    Args:
        model, variables: of the network.
        images: float[N, H, W, C], or a `jax.ShapeDtypeStruct` of the kind.
        path: of the layer.

    Returns:
        Extent, jump and start in pixels; see `seen_box`.

    Raises:
        ValueError: the network has no such layer.
    """

    def value(variables: Variables, images: jax.Array) -> jax.Array:
        return layers.activations(model, variables, images, [path])[path]

    image = jax.ShapeDtypeStruct((1, *images.shape[1:]), images.dtype)
    trace = Trace(jax.make_jaxpr(value)(variables, image).jaxpr)
    return views_of(trace)[trace.result]


def seen_box(view: View, position: Sequence[int], size: tuple[int, int]) -> tuple[int, int, int, int]:
    """The part of the image that the element at a position (row, column) sees.

    Args:
        view: of `receptive_field`.
        position: in the layer's maps; of no meaning where it sees the whole image.
        size: (H, W) of the image.

    Returns:
        top, left, bottom, right in pixels, the last two exclusive, without what lies in the padding.
    """
    if view.whole:
        return (0, 0, *size)
    first = [start + at * jump for start, at, jump in zip(view.start, position, view.jump, strict=True)]
    after = [min(begin + extent, end) for begin, extent, end in zip(first, view.extent, size, strict=True)]
    return (max(0, first[0]), max(0, first[1]), after[0], after[1])


class Exciting(NamedTuple):
    """The images of a set that most excite some channels, each channel's strongest first.

    Attributes:
        channels: int[c].
        indices: int[c, k], of the images.
        values: float[c, k], the channel's largest value on each.
        boxes: int[c, k, 4], what the channel sees there: top, left, bottom, right.
    """

    channels: np.ndarray
    indices: np.ndarray
    values: np.ndarray
    boxes: np.ndarray


def most_exciting(
    model: nn.Module,
    variables: Variables,
    images: Any,
    path: str,
    channels: Sequence[int] | None = None,
    most: int = 9,
    batch_size: int = 64,
) -> Exciting:
    """The images on which channels have their largest values, and where: Zeiler & Fergus 2014, figure 2.

    Args:
        model, variables: of the network.
        images: float[N, H, W, C]; in batches they may be many.
        path: of the layer.
        channels: of it; None are the eight whose largest value is largest.
        most: images for each channel, k, or all there are.
        batch_size: images at a time.

    Raises:
        ValueError: the network has no such layer, or the layer no such channel.
    """

    @jax.jit
    def largest(images: jax.Array) -> tuple[jax.Array, jax.Array]:
        values = layers.activations(model, variables, images, [path])[path]
        flat = values.reshape(len(values), -1, values.shape[-1])
        return flat.max(1), flat.argmax(1)

    found = [largest(batch) for batch in _batches(images, batch_size)]
    values, places = (np.concatenate(each)[: len(images)] for each in zip(*found, strict=True))
    if channels is None:
        channels = np.argsort(-values.max(0), kind="stable")[:8]
    channels = np.asarray(channels, int)
    if channels.size and not 0 <= channels.min() <= channels.max() < values.shape[1]:
        raise ValueError(f"{path} has channels 0 to {values.shape[1] - 1}, got {channels.tolist()}")
    indices = np.argsort(-values[:, channels], axis=0, kind="stable")[:most].T

    view = receptive_field(model, variables, images, path)
    shape = layers.list_layers(model, variables, images[:1]).get(path, ())
    width = shape[1] if len(shape) == 3 else 1
    boxes = [
        [seen_box(view, divmod(int(places[i, channel]), width), images.shape[1:3]) for i in row]
        for channel, row in zip(channels, indices, strict=True)
    ]
    strongest = np.take_along_axis(values[:, channels].T, indices, 1)
    return Exciting(channels, indices, strongest, np.asarray(boxes, int))


def _batches(images: Any, size: int) -> Iterator[np.ndarray]:
    """All of one size, so that one compilation serves: the last is filled up with its last image."""
    for first in range(0, len(images), size):
        batch = np.asarray(images[first : first + size])
        yield np.concatenate([batch, np.repeat(batch[-1:], min(size, len(images)) - len(batch), axis=0)])
