"""What any Flax Linen module computes inside: its layers by path, their values and gradients.

    list_layers(model, variables, images)["layer4_1"]                        # (7, 7, 512)
    activations(model, variables, images, ["layer4_1"])["layer4_1"].shape     # (N, 7, 7, 512)

A layer is a module that the network calls; its path are the names around it, as in its parameters. Its value is what
the call returns: "layer4_1"; or, with ":input" after the path, what the call is given: "output:input" is what the last
layer sees of an image. "conv#2" is the second call of a module that is called more than once. The network isn't edited,
and all of this may be jitted and differentiated: values travel in Flax's collections, so that lifted modules
(`nn.remat`) give theirs too.
"""

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax.errors
import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.traverse_util import flatten_dict, unflatten_dict

from cnn_research.errors import suggest

Variables = Mapping[str, Any]

# In the collections; no module can have such a name, as theirs are Python's.
_INPUT, _OUTPUT, _TAP = "(input)", "(output)", "(tap)"
# What networks call the choice between training and evaluation, and which value means evaluation.
_EVALUATION = {
    **dict.fromkeys(("train", "training", "is_train", "is_training"), False),
    **dict.fromkeys(("deterministic", "use_running_average"), True),
}


def apply(model: nn.Module, variables: Variables, images: jax.Array, **kwargs: Any) -> Any:
    """Calls a network as in evaluation: with images, and with `train=False` or the like where it has such an argument.

    Args:
        model: any module whose first argument are images.
        variables: {"params", ...}.
        images: float[N, H, W, C], preprocessed.
        **kwargs: of `model.apply`.

    Raises:
        ValueError: the images aren't float[N, H, W, C], the network's weights are for images of another size, or it
            needs further arguments.
    """
    check_images(images)
    arguments = inspect.signature(model.__call__).parameters
    flags = {name: value for name, value in _EVALUATION.items() if name in arguments}
    further = [
        name
        for name, argument in list(arguments.items())[1:]
        if argument.default is argument.empty
        and argument.kind not in (argument.VAR_POSITIONAL, argument.VAR_KEYWORD)
        and name not in flags
    ]
    if further:
        raise ValueError(
            f"{type(model).__name__} needs {', '.join(further)} besides images: wrap it in a module that is called "
            "with images alone and passes the rest to it"
        )
    try:
        return model.apply(variables, images, **flags, **kwargs)
    except flax.errors.ScopeParamShapeError as error:
        reason = str(error).split(" (https")[0]
        raise ValueError(f"images of {images.shape[1:]} don't fit the network's weights. {reason}") from error


def check_images(images: Any) -> None:
    """Raises ValueError unless images are float[N, H, W, C]."""
    if images.ndim != 4 or not jnp.issubdtype(images.dtype, jnp.floating):
        raise ValueError(f"images are float[N, H, W, C], preprocessed; got {images.dtype}{list(images.shape)}")


def check_logits(result: Any) -> jax.Array:
    """What a network returns, if it is logits [N, K]; else raises ValueError."""
    if not isinstance(result, jax.Array) or result.ndim != 2:
        what = f"an array {list(result.shape)}" if isinstance(result, jax.Array) else f"a {type(result).__name__}"
        raise ValueError(f"the network returns {what}; wrap it in a module that returns logits [N, K]")
    return result


def list_layers(model: nn.Module, variables: Variables, images: Any) -> dict[str, tuple[int, ...]]:
    """The layers whose value is an array, in the order in which they finish. Nothing is computed.

    Args:
        model, variables: of the network.
        images: float[N, H, W, C], or a `jax.ShapeDtypeStruct` of the kind.

    Returns:
        {path: shape without the batch}, which is (h, w, c) for maps.
    """
    order: list[str] = []
    _, values = jax.eval_shape(lambda v, x: _look(model, v, x, order), variables, images)
    return {path: values[path].shape[1:] for path in order}


def last_maps(layers: Mapping[str, tuple[int, ...]], size: int = 7) -> str:
    """The path of the last layer whose maps are at least `size` x `size`, or else of the last of more than one pixel.

    The deepest maps say most about classes, but of small images they have only some pixels.

    Args:
        layers: of `list_layers`.
        size: of the smallest maps that are worth looking at.

    Raises:
        ValueError: no layer has maps.
    """
    for least in (size, 2):
        for path, shape in reversed(layers.items()):
            if len(shape) == 3 and min(shape[:2]) >= least:
                return path
    raise ValueError(f"no layer has maps [h, w, c]; the layers are {', '.join(layers) or 'none'}")


def activations(
    model: nn.Module, variables: Variables, images: jax.Array, paths: Sequence[str]
) -> dict[str, jax.Array]:
    """The values of some layers.

    Args:
        model, variables: of the network.
        images: float[N, H, W, C].
        paths: of `list_layers`, or with ":input" after them.

    Returns:
        {path: [N, ...]}, in the order of `paths`.

    Raises:
        ValueError: the network has no such layer; the message names those that it has.
    """
    order: list[str] = []
    _, values = _look(model, variables, images, order)
    for path in paths:
        _check(path, values, order)
    return {path: values[path] for path in paths}


def value_and_gradient(
    model: nn.Module,
    variables: Variables,
    images: jax.Array,
    path: str,
    score: Callable[[jax.Array], jax.Array],
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """A layer's value, and how a score of the network's result changes with it.

    Args:
        model, variables: of the network.
        images: float[N, H, W, C].
        path: of the layer, as in `activations`.
        score: of what the network returns, such as logits [N, K] -> [N]. Each image's own: they are summed, as no image
            sees another one in evaluation.

    Returns:
        What the network returns; the layer's value [N, ...]; the gradient, of the same shape.

    Raises:
        ValueError: the network has no such layer; the message names those that it has.
    """
    order: list[str] = []
    _, shapes = jax.eval_shape(lambda v, x: _look(model, v, x, order), variables, images)
    _check(path, shapes, order)
    call_path, _, is_input = path.partition(":")
    module_path, _, number = call_path.partition("#")
    calls = 0

    def add_tap(call: Callable, args: Any, kwargs: Any, context: Any) -> Any:
        nonlocal calls
        module = context.module
        if not _is_layer(context) or "/".join(module.path) != module_path:
            return call(*args, **kwargs)
        calls += 1
        if calls != int(number or 1):
            return call(*args, **kwargs)
        if is_input:
            if args:
                return call(_tapped(module, args[0]), *args[1:], **kwargs)
            first = next(iter(kwargs))
            return call(**kwargs | {first: _tapped(module, kwargs[first])})
        return _tapped(module, call(*args, **kwargs))

    def scored(tap: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
        nonlocal calls
        calls = 0
        place = tuple(module_path.split("/"))
        taps = unflatten_dict({(*place, _TAP): tap})
        with nn.intercept_methods(add_tap):
            result, seen = apply(model, {**variables, "taps": taps}, images, mutable=["explain"])
        return jnp.sum(score(result)), (result, flatten_dict(seen["explain"])[(*place, _OUTPUT)][0])

    zeros = jnp.zeros(shapes[path].shape, shapes[path].dtype)
    gradient, (result, value) = jax.grad(scored, has_aux=True)(zeros)
    return result, value, gradient


def _tapped(module: nn.Module, value: jax.Array) -> jax.Array:
    """The value, plus a zero with respect to which one can differentiate."""
    module.sow("explain", _OUTPUT, value)
    return module.perturb(_TAP, value, collection="taps")


def _look(
    model: nn.Module, variables: Variables, images: jax.Array, order: list[str]
) -> tuple[Any, dict[str, jax.Array]]:
    """What the network returns, and all values of its layers by path. `order` gets the paths, but those of inputs."""
    calls: dict[str, int] = {}

    def look(call: Callable, args: Any, kwargs: Any, context: Any) -> Any:
        given = next(iter((*args, *kwargs.values())), None)  # by its place or by its name
        if not _is_layer(context) or not isinstance(given, jax.Array):
            return call(*args, **kwargs)
        value = call(*args, **kwargs)
        if isinstance(value, jax.Array):
            path = "/".join(context.module.path)
            calls[path] = calls.get(path, 0) + 1
            order.append(_numbered(path, calls[path]))
            context.module.sow("explain", _INPUT, given)
            context.module.sow("explain", _OUTPUT, value)
        return value

    with nn.intercept_methods(look):
        result, seen = apply(model, variables, images, mutable=["explain"])
    values = {}
    for (*place, kind), seen_there in flatten_dict(seen.get("explain", {})).items():
        for number, value in enumerate(seen_there, 1):
            path = _numbered("/".join(place), number)
            values[f"{path}:input" if kind == _INPUT else path] = value
    return result, values


def _is_layer(context: Any) -> bool:
    """Whether a call is one of a layer: not of the whole network, nor of a part of a module's own code."""
    return context.method_name == "__call__" and bool(context.module.path)


def _numbered(path: str, number: int) -> str:
    return path if number == 1 else f"{path}#{number}"


def _check(path: str, known: Mapping[str, Any], order: Sequence[str]) -> None:
    if path not in known:
        raise ValueError(f"the network has no layer {path!r}.{suggest(path, known)} Its layers: {', '.join(order)}")
