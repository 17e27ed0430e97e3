"""Why a network chose a class: which parts of an image its logit rests on.

    heat = grad_cam(model, variables, images)           # float[N, h, w], of the predicted class
    heat = grad_cam(model, variables, images, layer="layer3_5", classes=jnp.array([3, 5]))

All functions take any Flax Linen module, its variables and preprocessed images float[N, H, W, C], explain the logit of
a class (not its probability, which changes with all the others), and may be called within `jax.jit`. They normalise
nothing: a map of zeros stays one, and `overlay` says so. They raise ValueError where images aren't float[N, H, W, C],
where the network returns no logits, and where it has no such class, unless the classes are traced.
"""

import functools
import inspect
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from cnn_research.explain import layers, rectifiers
from cnn_research.explain.compiled import Function, compiled

Variables = layers.Variables
Score = Callable[[jax.Array], jax.Array]


def _of_classes(*static: str) -> Callable[[Function], Function]:
    """`compiled`, for a function of a network, images and classes: with ValueError for a class that isn't there.

    Classes that are traced, within the caller's `jax.jit`, can't be checked.
    """

    def decorate(function: Function) -> Function:
        signature, compiled_function = inspect.signature(function), compiled(*static)(function)

        @functools.wraps(function)
        def call(*args: Any, **kwargs: Any) -> jax.Array:
            given = signature.bind(*args, **kwargs).arguments
            if given.get("classes") is not None:
                check_classes(given["model"], given["variables"], given["images"], given["classes"])
            return compiled_function(*args, **kwargs)

        return call

    return decorate


# -- class activation maps


@_of_classes("layer")
def grad_cam(
    model: nn.Module, variables: Variables, images: jax.Array, layer: str | None = None, classes: Any = None
) -> jax.Array:
    """Grad-CAM: Selvaraju et al. 2017, section 3: ReLU of a layer's maps, each weighted by its mean gradient.

    Args:
        model, variables: of the network.
        images: float[N, H, W, C].
        layer: path of a layer that gives maps; None is `layers.last_maps`.
        classes: int[N], or one for all; None are the predicted ones.

    Returns:
        float[N, h, w] >= 0, of the layer's size.

    Raises:
        ValueError: no such layer, or its value isn't maps.
    """
    maps, gradients = _maps_and_gradients(model, variables, images, layer, classes)
    weights = gradients.mean((1, 2), keepdims=True)
    return nn.relu((weights * maps).sum(-1))


@_of_classes("layer")
def grad_cam_plus_plus(
    model: nn.Module, variables: Variables, images: jax.Array, layer: str | None = None, classes: Any = None
) -> jax.Array:
    """Grad-CAM++: Chattopadhay et al. 2018, equations 10 to 12 and 19, which finds several objects of a class better.

    A map's weight is the sum of its positive gradients, weighted by alpha. The score is exp(logit), whose factor
    exp(logit) is left out: it scales an image's whole map.

    Args, returns, raises: as `grad_cam`.
    """
    maps, gradients = _maps_and_gradients(model, variables, images, layer, classes)
    squares = gradients**2
    divisor = 2 * squares + maps.sum((1, 2), keepdims=True) * gradients**3
    alphas = jnp.where(divisor != 0, squares / jnp.where(divisor != 0, divisor, 1), 0)
    weights = (alphas * nn.relu(gradients)).sum((1, 2), keepdims=True)
    return nn.relu((weights * maps).sum(-1))


def _maps_and_gradients(
    model: nn.Module, variables: Variables, images: jax.Array, layer: str | None, classes: Any
) -> tuple[jax.Array, jax.Array]:
    """A layer's maps [N, h, w, c] in float32, and the gradient of the classes' logits."""
    if layer is None:
        layer = layers.last_maps(layers.list_layers(model, variables, images))
    _, maps, gradients = layers.value_and_gradient(model, variables, images, layer, _score(classes))
    if maps.ndim != 4:
        known = layers.list_layers(model, variables, images).items()
        choices = ", ".join(path for path, shape in known if len(shape) == 3)
        raise ValueError(f"{layer} gives {list(maps.shape[1:])} and no maps [h, w, c]. Those give maps: {choices}")
    return maps.astype(jnp.float32), gradients.astype(jnp.float32)


# -- gradients with respect to the pixels


@_of_classes()
def saliency(model: nn.Module, variables: Variables, images: jax.Array, classes: Any = None) -> jax.Array:
    """The largest absolute gradient of a pixel's channels: Simonyan et al. 2014, section 3.1.

    Args:
        model, variables: of the network.
        images: float[N, H, W, C].
        classes: int[N], or one for all; None are the predicted ones.

    Returns:
        float[N, H, W] >= 0.
    """
    return jnp.abs(_pixel_gradients(model, variables, images, _score(classes))).max(-1)


@_of_classes("samples")
def smooth_grad(
    model: nn.Module,
    variables: Variables,
    images: jax.Array,
    classes: Any = None,
    *,
    key: jax.Array,
    samples: int = 32,
    noise: float = 0.15,
) -> jax.Array:
    """`saliency` of the gradient's mean over noisy copies of an image: SmoothGrad, Smilkov et al. 2017.

    All copies go through the network at once, so its memory is that of N * `samples` images.

    Args:
        model, variables, images, classes: as in `saliency`; the predicted class is that of the image without noise.
        key: of the noise.
        samples: copies of each image.
        noise: standard deviation, as a share of the image's range.

    Returns:
        float[N, H, W] >= 0.
    """
    classes = _chosen(layers.apply(model, variables, images), classes)
    spread = images.max((1, 2, 3), keepdims=True) - images.min((1, 2, 3), keepdims=True)
    copies = images + noise * spread * jax.random.normal(key, (samples, *images.shape), images.dtype)
    return jnp.abs(_gradients_of_copies(model, variables, copies, classes).mean(0)).max(-1)


@_of_classes("steps")
def integrated_gradients(
    model: nn.Module,
    variables: Variables,
    images: jax.Array,
    classes: Any = None,
    *,
    baseline: Any = 0.0,
    steps: int = 64,
) -> jax.Array:
    """The mean gradient on the way from a baseline, times the way: Sundararajan et al. 2017, equation 1.

    The pixels' shares add up to logit(image) - logit(baseline); `completeness_error` says how exactly. All images on
    the way go through the network at once, so its memory is that of N * `steps` images.

    Args:
        model, variables, images, classes: as in `saliency`.
        baseline: what an image without evidence is, in the network's input: 0 is the mean colour where images are
            normalised. A number, or an array that broadcasts to `images`.
        steps: points of the integral, in the middles of equal parts.

    Returns:
        float[N, H, W], positive for what speaks for the class: the sum over channels.
    """
    classes = _chosen(layers.apply(model, variables, images), classes)
    way = images - baseline
    shares = ((np.arange(steps) + 0.5) / steps).astype(np.float32)[:, None, None, None, None]
    gradients = _gradients_of_copies(model, variables, baseline + shares * way, classes)
    return (way * gradients.mean(0)).sum(-1)


@_of_classes()
def completeness_error(
    model: nn.Module,
    variables: Variables,
    images: jax.Array,
    attributions: jax.Array,
    classes: Any = None,
    *,
    baseline: Any = 0.0,
) -> jax.Array:
    """How far attributions [N, H, W] are from adding up to the difference of the logits, as a share of it: float[N].

    Sundararajan et al. 2017, proposition 1. Images, classes and baseline as in `integrated_gradients`.
    """
    logits = layers.apply(model, variables, images)
    classes = _chosen(logits, classes)
    score = _score(classes)
    origin = jnp.broadcast_to(jnp.asarray(baseline, images.dtype), images.shape)
    difference = score(logits) - score(layers.apply(model, variables, origin))
    return jnp.abs(attributions.sum((1, 2)) - difference) / jnp.abs(difference)


@_of_classes("layer", "channel")
def guided_backpropagation(
    model: nn.Module,
    variables: Variables,
    images: jax.Array,
    classes: Any = None,
    *,
    layer: str | None = None,
    channel: int | None = None,
) -> jax.Array:
    """What made a class's logit or a unit large: gradients go back where they are positive and a rectifier fired.

    Springenberg et al. 2015, "Striving for simplicity", section 3.4. Sharp pictures, but much of what they show is
    the image's own edges: `sanity.randomisation_check`.

    Args:
        model, variables, images, classes: as in `saliency`.
        layer, channel: instead of a class, the strongest place of this channel of the layer at this path.

    Returns:
        float[N, H, W, C].

    Raises:
        ValueError: no such layer or channel, one of them without the other, or a network without rectifiers.
    """
    return _rectified_gradients(model, variables, images, classes, layer, channel, rectifiers.guided)


@_of_classes("layer", "channel")
def deconvnet(
    model: nn.Module,
    variables: Variables,
    images: jax.Array,
    classes: Any = None,
    *,
    layer: str | None = None,
    channel: int | None = None,
) -> jax.Array:
    """The part of an image that drives a class's logit or a unit, as the deconvolutional network of ZFNet projects it.

    Zeiler & Fergus 2014, section 2.1: back through the transposed filters and the places of the maxima, which are what
    gradients of convolution and max pooling are, rectified on the way at every rectifier. Other layers, such as
    normalisations, give their gradients.

    Args, returns, raises: as `guided_backpropagation`.
    """
    return _rectified_gradients(model, variables, images, classes, layer, channel, rectifiers.deconvolved)


def _rectified_gradients(
    model: nn.Module,
    variables: Variables,
    images: jax.Array,
    classes: Any,
    layer: str | None,
    channel: int | None,
    rule: rectifiers.Rule,
) -> jax.Array:
    layers.check_images(images)
    if (layer is None) != (channel is None):
        raise ValueError(f"layer and channel go together, got layer={layer!r} and channel={channel!r}")
    found = []

    def noted(x: jax.Array) -> jax.Array:
        found.append(True)
        return rule(x)

    def score(images: jax.Array) -> jax.Array:
        if layer is None:
            return _score(classes)(layers.apply(model, variables, images)).sum()
        values = layers.activations(model, variables, images, [layer])[layer]
        if not 0 <= channel < values.shape[-1]:
            raise ValueError(f"{layer} has channels 0 to {values.shape[-1] - 1}, got channel={channel}")
        return values[..., channel].reshape(len(values), -1).max(-1).sum()

    gradients = jax.grad(rectifiers.replace(score, noted))(images)
    if not found:
        raise ValueError(f"{type(model).__name__} has no rectifiers, max(x, 0), and so these are its plain gradients")
    return gradients


def _pixel_gradients(model: nn.Module, variables: Variables, images: jax.Array, score: Score) -> jax.Array:
    """float[N, H, W, C]."""
    layers.check_images(images)
    return jax.grad(lambda x: score(layers.apply(model, variables, x)).sum())(images)


def _gradients_of_copies(model: nn.Module, variables: Variables, copies: jax.Array, classes: jax.Array) -> jax.Array:
    """Of [S, N, H, W, C], and of the same shape. No loop: on a CPU, convolutions' gradients are slow in one."""
    flat = copies.reshape(-1, *copies.shape[2:])
    return _pixel_gradients(model, variables, flat, _score(jnp.tile(classes, len(copies)))).reshape(copies.shape)


# -- occlusion


@_of_classes("size", "stride")
def occlusion(
    model: nn.Module,
    variables: Variables,
    images: jax.Array,
    classes: Any = None,
    *,
    size: int | None = None,
    stride: int | None = None,
    fill: float = 0.0,
) -> jax.Array:
    """How much of a class's logit is lost when a square hides a part of the image: Zeiler & Fergus 2014, section 4.2.

    The image is divided into cells of stride x stride pixels, and a square is put over the centre of each, cut off at
    the border.

    Args:
        model, variables, images, classes: as in `saliency`; the class is that of the whole image.
        size: of the square, in pixels; None is a quarter of the shorter side.
        stride: pixels from one place to the next; None is half of `size`.
        fill: the square's value in the network's input: 0 is the mean colour where images are normalised.

    Returns:
        float[N, ceil(H / stride), ceil(W / stride)], positive for what speaks for the class.

    Raises:
        ValueError: size or stride is below 1.
    """
    height, width = images.shape[1:3]
    size = max(1, min(height, width) // 4) if size is None else size
    stride = max(1, size // 2) if stride is None else stride
    if size < 1 or stride < 1:
        raise ValueError(f"size and stride are at least 1 pixel, got {size} and {stride}")
    logits = layers.apply(model, variables, images)
    score = _score(_chosen(logits, classes))
    rows, columns = -(-height // stride), -(-width // stride)
    y, x = jnp.arange(height)[:, None], jnp.arange(width)

    def lost(place: jax.Array) -> jax.Array:
        # Twice the distance from the cell's centre, so that all are whole numbers.
        dy, dx = (2 * at - (2 * cell + 1) * stride + 1 for at, cell in ((y, place // columns), (x, place % columns)))
        hidden = (-size < dy) & (dy <= size) & (-size < dx) & (dx <= size)
        return score(logits) - score(layers.apply(model, variables, jnp.where(hidden[..., None], fill, images)))

    drops = jax.lax.map(lost, jnp.arange(rows * columns))  # without gradients, a loop is as fast as anything
    return drops.T.reshape(-1, rows, columns)


# -- classes


@compiled()
def _logits(model: nn.Module, variables: Variables, images: jax.Array) -> jax.Array:
    return layers.check_logits(layers.apply(model, variables, images))


def check_classes(model: nn.Module, variables: Variables, images: jax.Array, classes: Any) -> None:
    """Raises ValueError if one isn't a class of the network: indices out of range would give NaN, or zeros."""
    if any(isinstance(each, jax.core.Tracer) for each in jax.tree.leaves(classes)):
        return
    count = jax.eval_shape(functools.partial(_logits, model), variables, images).shape[-1]
    wrong = [int(each) for each in np.ravel(classes) if not 0 <= each < count]
    if wrong:
        raise ValueError(f"there is no class {wrong[0]}: the network has {count}, from 0 to {count - 1}")


def _chosen(logits: jax.Array, classes: Any) -> jax.Array:
    """int[N]: those asked for, or the predicted ones."""
    layers.check_logits(logits)
    return jnp.argmax(logits, -1) if classes is None else jnp.broadcast_to(jnp.asarray(classes), logits.shape[:1])


def _score(classes: Any) -> Score:
    """Logits [N, K] -> those of the classes [N]."""
    return lambda logits: jnp.take_along_axis(logits, _chosen(logits, classes)[:, None], axis=-1)[:, 0]
