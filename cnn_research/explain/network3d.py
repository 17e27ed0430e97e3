"""The network in 3D: an image, what every layer makes of it, and the classes at the end, to be turned with the mouse.

network3d(model, variables, image, classes=classes).write_html("network.html")
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import plotly.graph_objects as go
from flax import linen as nn

from cnn_research.explain import layers as explain_layers
from cnn_research.explain import style
from cnn_research.explain.features import strongest_channels

_LEVELS = 255  # of colour: an activation as a byte keeps the figure small, and no eye sees more
_SIDE = 32  # pixels: larger maps are averaged down to this
_CLIP = 99  # percentile of the magnitudes at which a layer's colours end
_GAP = 0.06  # between the tiles of a layer, of a tile's side
_HEIGHT = 1.0  # of every layer, in units of the scene
_SPACING = 1.6  # from layer to layer, likewise
_MOST_CLASSES = 10
_BAR = 0.15  # of the height: a class, with its gap
_MOST_LAYERS = 6

# Matplotlib's "RdBu" reversed, as plotly draws it in 3D: negative is blue, zero is white, positive is red.
_SIGNED = ("#2166ac", "#67a9cf", "#d1e5f0", "#f7f7f7", "#fddbc7", "#ef8a62", "#b2182b")
_POSITIVE = ("#000004", "#3b0f70", "#8c2981", "#de4968", "#fe9f6d", "#fcfdbf")  # magma
_LIKELY, _UNLIKELY = "#e0662a", "#7d93a8"


def network3d(
    model: nn.Module,
    variables: Mapping[str, Any],
    image: jax.Array,
    *,
    layers: Sequence[str] | None = None,
    channels: int = 9,
    classes: Sequence[str] | None = None,
    picture: np.ndarray | None = None,
) -> go.Figure:
    """Draws the activations of one image on its way through a network.

    Every layer is one trace, with two triangles for each pixel: crisp where a surface would blur. Of its channels those
    of most energy (the mean square) are shown, strongest first; layers without maps are one tile of units. Each layer
    has a scale of its own, from blue through white at zero to red, or from black where nothing is negative.

    Args:
        model: any module that maps float[N, H, W, C] to logits [N, K].
        variables: {"params", ...}.
        image: float[H, W, C], preprocessed.
        layers: paths, as of `list_layers`; by default `default_layers`.
        channels: how many of each layer at most.
        classes: K names; by default their numbers.
        picture: uint8[H, W, C], the image as people see it; by default made of `image`, stretched to the full range.

    Returns:
        A figure on a transparent background. It has a trace for the image, one for each layer and one for the classes,
        named by their paths.

    Raises:
        ValueError: the network has no such layer, the names don't fit the logits, or `image` isn't one image.
    """
    if np.ndim(image) != 3:
        raise ValueError(f"one image [H, W, C] is needed, not an array of shape {np.shape(image)}")
    batch = jnp.asarray(image)[None]
    paths = list(layers) if layers is not None else default_layers(model, variables, batch)
    values = explain_layers.activations(model, variables, batch, paths)
    logits = explain_layers.check_logits(explain_layers.apply(model, variables, batch))
    probabilities = np.asarray(jax.nn.softmax(logits, axis=-1))[0]
    names = [str(name) for name in (classes if classes is not None else range(len(probabilities)))]
    if len(names) != len(probabilities):
        raise ValueError(f"{len(names)} names were given for the network's {len(probabilities)} classes")

    traces = [_image_trace(_picture(np.asarray(image)) if picture is None else picture)]
    labels = [("image", _times(np.shape(image)[:2]))]
    for place, (path, value) in enumerate(values.items(), start=1):
        value = np.asarray(value[0], np.float32)
        tiles = _map_tiles(value, channels) if value.ndim == 3 else _unit_tile(value)
        traces.append(_layer_trace(path, place, tiles))
        shown = (
            f"{len(tiles)} of {value.shape[-1]}, {_times(value.shape[:2])}"
            if value.ndim == 3
            else f"{value.size} units"
        )
        labels.append((path, shown))
    end, annotations = _class_trace(len(traces), probabilities, names)
    traces.append(end)
    annotations += [_label(place, *texts) for place, texts in enumerate(labels)]
    return go.Figure(traces, _layout(len(traces), annotations))


def default_layers(model: nn.Module, variables: Mapping[str, Any], images: Any) -> list[str]:
    """The first layer with maps, the last of every size of maps, and the last hidden layer without any: at most six.

    Args:
        model, variables: of the network.
        images: float[N, H, W, C], or a `jax.ShapeDtypeStruct` of the kind.

    Returns:
        Paths, in the order of computation.
    """
    shapes = explain_layers.list_layers(model, variables, images)
    maps = [path for path, shape in shapes.items() if len(shape) == 3 and min(shape[:2]) > 1]
    last_of_size = {shapes[path][:2]: path for path in maps}
    # In evaluation dropout does nothing: the layer before it has a name that says more.
    units = [
        path for path, shape in shapes.items() if len(shape) == 1 and not path.split("/")[-1].startswith("Dropout")
    ]
    chosen = {*maps[:1], *list(last_of_size.values())[-(_MOST_LAYERS - 2) :], *units[-2:-1]}
    return [path for path in shapes if path in chosen]


# -- traces: x is the depth of a layer, y is across to the right, z is up


def _image_trace(picture: np.ndarray) -> go.Mesh3d:
    """The image itself, a face for each half of a pixel."""
    picture = np.repeat(picture, 3, axis=-1) if picture.shape[-1] == 1 else picture
    pixels = _shrunk(np.moveaxis(picture, -1, 0).astype(np.float32))
    colours = np.moveaxis(np.rint(pixels), 0, -1).astype(np.uint8).reshape(-1, 3)
    faces = np.repeat([f"#{red:02x}{green:02x}{blue:02x}" for red, green, blue in colours.tolist()], 2)
    return go.Mesh3d(**_mesh(0, pixels[:1]), facecolor=faces, name="image", **_FLAT)


def _layer_trace(path: str, place: int, tiles: np.ndarray) -> go.Mesh3d:
    """The maps of a layer, [n, h, w], in a square of tiles."""
    tiles = _shrunk(tiles)
    signed = tiles.min() < 0
    top = style.scale_end(tiles, _CLIP)  # a few extremes would leave all else pale
    bottom = -top if signed else 0.0
    levels = np.rint(np.clip((tiles - bottom) / (top - bottom), 0, 1) * _LEVELS).astype(np.uint8)
    colours = _SIGNED if signed else _POSITIVE
    return go.Mesh3d(
        **_mesh(place, tiles),
        intensity=np.repeat(levels.reshape(-1), 2),
        intensitymode="cell",
        cmin=0,
        cmax=_LEVELS,
        colorscale=[[i / (len(colours) - 1), colour] for i, colour in enumerate(colours)],
        showscale=False,
        name=path,
        **_FLAT,
    )


def _class_trace(place: int, probabilities: np.ndarray, names: Sequence[str]) -> tuple[go.Mesh3d, list[dict[str, Any]]]:
    """A bar for each of the likeliest classes, as long as its probability, and their names."""
    shown = np.argsort(-probabilities, kind="stable")[:_MOST_CLASSES]
    shown = np.sort(shown) if len(probabilities) <= _MOST_CLASSES else shown  # all of them keep their own order
    best, row = int(np.argmax(probabilities)), _BAR
    corners, faces, colours, annotations = [], [], [], []
    for number, index in enumerate(shown):
        top = (len(shown) / 2 - number) * row
        length = max(0.02, float(probabilities[index])) * _HEIGHT
        left = -_HEIGHT / 2
        faces += [(4 * number + a, 4 * number + b, 4 * number + c) for a, b, c in ((0, 1, 2), (0, 2, 3))]
        corners += [(left, top), (left + length, top), (left + length, top - 0.8 * row), (left, top - 0.8 * row)]
        colours += [_LIKELY if index == best else _UNLIKELY] * 2
        text = f"{names[index]} · {100 * probabilities[index]:.0f} %"
        annotations.append(
            {
                **_TEXT,
                "x": place * _SPACING,
                "y": left + length,
                "z": top - 0.4 * row,
                "text": f"<b>{text}</b>" if index == best else text,
                "xanchor": "left",
                "xshift": 4,
                "font": {"size": 11},
            }
        )
    y, z = np.array(corners, np.float32).T
    i, j, k = np.array(faces, np.uint16).T
    x = np.full_like(y, place * _SPACING)
    return go.Mesh3d(x=x, y=y, z=z, i=i, j=j, k=k, facecolor=colours, name="classes", **_FLAT), annotations


# Light and shade would change the colours, which are numbers.
_FLAT = {
    "flatshading": True,
    "hoverinfo": "skip",
    "lighting": {"ambient": 1.0, "diffuse": 0.0, "specular": 0.0, "fresnel": 0.0},
}
_TEXT = {"showarrow": False, "bgcolor": "rgba(0,0,0,0)"}


def _mesh(place: int, tiles: np.ndarray) -> dict[str, np.ndarray]:
    """Corners and triangles of n tiles of h x w pixels in a square; row by row, as the tiles are in memory."""
    count, height, width = tiles.shape
    across = math.ceil(math.sqrt(count))
    side = _HEIGHT / across
    inner = side * (1 - _GAP) if count > 1 else side
    tile, row, column = np.meshgrid(np.arange(count), np.arange(height + 1), np.arange(width + 1), indexing="ij")
    scale = inner / max(height, width)
    y = -_HEIGHT / 2 + (tile % across) * side + column * scale
    z = math.ceil(count / across) * side / 2 - (tile // across) * side - row * scale  # centred, where rows are fewer
    corner = np.arange(tile.size).reshape(tile.shape)
    a, b, c, d = corner[:, :-1, :-1], corner[:, :-1, 1:], corner[:, 1:, 1:], corner[:, 1:, :-1]
    triangles = np.stack([np.stack([a, b, c], -1), np.stack([a, c, d], -1)], -2).reshape(-1, 3)
    i, j, k = triangles.astype(np.uint16 if corner.size < 2**16 else np.uint32).T
    y, z = (np.round(values.reshape(-1), 4).astype(np.float32) for values in (y, z))
    return {"x": np.full_like(y, place * _SPACING), "y": y, "z": z, "i": i, "j": j, "k": k}


def _shrunk(tiles: np.ndarray) -> np.ndarray:
    """Averages [n, h, w] over squares of pixels until neither side is longer than _SIDE; a rest at the edge is cut."""
    factor = math.ceil(max(tiles.shape[1:]) / _SIDE)
    height, width = (max(1, size // factor) for size in tiles.shape[1:])
    if factor == 1:
        return tiles
    cut = tiles[:, : height * factor, : width * factor]
    return cut.reshape(len(tiles), height, min(factor, cut.shape[1]), width, min(factor, cut.shape[2])).mean((2, 4))


def _map_tiles(maps: np.ndarray, most: int) -> np.ndarray:
    """The channels of most energy: [h, w, c] -> [at most `most`, h, w], the strongest first."""
    return np.moveaxis(maps[..., strongest_channels(maps, most)], -1, 0)


def _unit_tile(values: np.ndarray) -> np.ndarray:
    """A vector of units as one nearly square tile [1, h, w]; what is left of the last row is zero."""
    values = values.reshape(-1)
    width = math.ceil(math.sqrt(values.size))
    padded = np.zeros(width * math.ceil(values.size / width), values.dtype)
    padded[: values.size] = values
    return padded.reshape(1, -1, width)


def _picture(image: np.ndarray) -> np.ndarray:
    """Pixels for people from a preprocessed image."""
    low, high = float(image.min()), float(image.max())
    return np.rint((image - low) / ((high - low) or 1.0) * 255)


# -- layout


def _label(place: int, name: str, what: str) -> dict[str, Any]:
    """Above and below in turn, so that narrow pages have room for them."""
    above = place % 2 == 0
    return {
        **_TEXT,
        "x": place * _SPACING,
        "y": 0.0,
        "z": (0.5 if above else -0.5) * _HEIGHT,
        "text": f"<b>{name}</b><br>{what}",
        "yanchor": "bottom" if above else "top",
        "yshift": 14 if above else -14,
        "font": {"size": 11},
    }


def _layout(count: int, annotations: list[dict[str, Any]]) -> dict[str, Any]:
    hidden = {"visible": False, "showspikes": False}
    length = (count - 1) * _SPACING
    zoom = min(1.0, 7.8 / (length + 3.4))  # in plotly's units: three times as wide as high, it fills its frame
    return {
        "scene": {
            "xaxis": {**hidden, "range": [-0.6, length + 1.2]},  # the names of the classes need room
            "yaxis": {**hidden, "range": [-0.6, 0.6]},
            "zaxis": {**hidden, "range": [-0.8, 0.8]},
            "aspectmode": "manual",
            "aspectratio": {"x": zoom * (length + 1.8), "y": zoom * 1.2, "z": zoom * 1.6},
            "camera": {
                "projection": {"type": "orthographic"},
                "eye": {"x": 4.5, "y": -4.2, "z": 0.9},
                "up": {"x": 0, "y": 0, "z": 1},
            },
            "dragmode": "orbit",
            "annotations": annotations,
        },
        "margin": {"l": 0, "r": 0, "t": 0, "b": 0},
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "font": {"color": style.INK},  # legible on light and on dark pages
        "showlegend": False,
        "height": 420,
    }


def _times(numbers: Sequence[int]) -> str:
    return "×".join(map(str, numbers))
