"""Whether an attribution says something about the network, and where it looks: two checks of any method.

randomisation_check(attribution.grad_cam, model, variables, images, key=jax.random.key(0))
# {"output": 0.31, "layer3_2/norm2": 0.07, ...}: the map follows the weights, as it should
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax.traverse_util import flatten_dict, unflatten_dict

from cnn_research.explain import layers

Variables = layers.Variables
Method = Callable[[nn.Module, Variables, jax.Array], jax.Array]

_APART = 0x5A17  # folded into the key: a network may have been trained from the very weights that the key itself gives


def randomisation_check(
    method: Method, model: nn.Module, variables: Variables, images: jax.Array, *, key: jax.Array, most: int = 8
) -> dict[str, float]:
    """How alike a method's maps stay while the network's layers are randomised one after the other, from the last on.

    Adebayo et al. 2018, "Sanity checks for saliency maps", section 3.1, cascading. A method whose maps stay alike shows
    the images, not what the network has learned. All maps are of the class that the intact network predicts.

    Args:
        method: of `attribution`, with its options bound: (model, variables, images, classes=...) -> [N, h, w] or
            [N, H, W, C].
        model, variables: of the network.
        images: float[N, H, W, C].
        key: of the new weights, drawn as the network initialises them.
        most: compare after so many of the steps, evenly spread, the first and the last among them.

    Returns:
        {path of the layer randomised last: Spearman's rank correlation with the intact network's maps}, of absolute
        values and as the mean over images; NaN where a map is constant, for all of them.
    """
    classes = jnp.argmax(layers.check_logits(layers.apply(model, variables, images)), -1)
    intact = method(model, variables, images, classes=classes)
    steps = list(cascade(model, variables, images, key=key))
    # The gaps between these are alike to within one.
    chosen = sorted({round(i * (len(steps) - 1) / max(1, most - 1)) for i in range(most)})
    alike = {}
    for path, randomised in (steps[number] for number in chosen):
        each = rank_correlation(intact, method(model, randomised, images, classes=classes))
        each = each[~np.isnan(each)]
        alike[path] = float(each.mean()) if len(each) else np.nan
    return alike


def cascade(
    model: nn.Module, variables: Variables, images: jax.Array, *, key: jax.Array
) -> Sequence[tuple[str, Variables]]:
    """The layers that have parameters, from the last on, each with variables that are random from there to the end.

    Args:
        model, variables: of the network.
        images: float[N, H, W, C], for their shape.
        key: of the weights, which are others than those that `model.init` draws with it.

    Returns:
        (path of a layer, variables); at the end, as "the rest", what is in no layer, such as the network's own
        parameters, if there is any.
    """

    def initialise(key: jax.Array, images: jax.Array) -> Any:
        return layers.apply(model, {}, images, rngs={"params": key}, mutable=True)[1]

    current = flatten_dict(dict(variables))
    initial = flatten_dict(jax.jit(initialise)(jax.random.fold_in(key, _APART), jnp.zeros_like(images[:1])))
    fresh = {place: initial[place] for place in current if place in initial}  # without what a network only sows
    owners = {path[1:-1] for path in current if path[0] == "params"}
    # A layer that is called twice has its place where it is called first.
    order = [path for path in layers.list_layers(model, variables, images) if "#" not in path]
    steps = []
    for path in reversed(order):
        if tuple(path.split("/")) not in owners:
            continue
        own = {place: fresh.pop(place) for place in current if place[1:-1] == tuple(path.split("/"))}
        current = current | own
        steps.append((path, unflatten_dict(current)))
    if fresh:
        steps.append(("the rest", unflatten_dict(current | fresh)))
    return steps


def rank_correlation(a: Any, b: Any) -> np.ndarray:
    """Spearman's, of absolute values, for each image: float[N]. NaN where one of them is constant.

    Args:
        a, b: float[N, ...] of the same shape.
    """
    x, y = (np.stack([_ranks(image) for image in np.abs(maps)]) for maps in (a, b))
    x, y = x - x.mean(1, keepdims=True), y - y.mean(1, keepdims=True)
    with np.errstate(invalid="ignore"):
        return (x * y).sum(1) / np.sqrt((x**2).sum(1) * (y**2).sum(1))


def _ranks(values: np.ndarray) -> np.ndarray:
    """From 1 on, of the flattened values; equal ones share the mean of theirs."""
    _, place, counts = np.unique(values.ravel(), return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[place]


def energy_inside(maps: jax.Array, boxes: Any, size: tuple[int, int]) -> jax.Array:
    """The share of each map's positive part that lies inside a box of the image: float[N], NaN for a map of zeros.

    Args:
        maps: float[N, h, w]; those smaller than the image are enlarged first, as `overlay` draws them.
        boxes: int[N, 4]: top, left, bottom, right in pixels, the last two exclusive.
        size: (H, W) of the images.
    """
    maps = jax.image.resize(nn.relu(maps), (len(maps), *size), "bilinear")
    top, left, bottom, right = jnp.asarray(boxes).T[:, :, None, None]
    y, x = jnp.arange(size[0])[:, None], jnp.arange(size[1])
    inside = (top <= y) & (y < bottom) & (left <= x) & (x < right)
    return jnp.where(inside, maps, 0).sum((1, 2)) / maps.sum((1, 2))
