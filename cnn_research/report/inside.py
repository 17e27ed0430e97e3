"""The inside of a run's network: in 3D, its first filters, and what layers make of an image."""

import base64
import gzip
from typing import Any

import numpy as np

from cnn_research.explain import feature_figures, features, layers
from cnn_research.explain.network3d import default_layers, network3d
from cnn_research.report.pictures import drawn
from cnn_research.report.run import Run
from cnn_research.report.sections import percent


def inside(run: Run) -> dict[str, Any]:
    """The network at work on an image that it recognises as surely as half of those that it does.

    Returns:
        {"packed": the figure for the page's script, "text", "alt", "figures": with "title" and "text"}.
    """
    candidates = np.flatnonzero(run.right) if run.right.any() else np.arange(len(run.labels))
    order = np.argsort(run.probabilities[candidates].max(axis=1), kind="stable")
    index = candidates[order[len(order) // 2]]
    pixels, seen = run.central_views([index])
    network = run.predictor.model, run.predictor.variables
    paths = default_layers(*network, seen)
    figure = network3d(*network, seen[0], layers=paths, classes=run.classes, picture=pixels[0])
    name, share = run.classes[run.labels[index]], percent(run.probabilities[index].max())
    said = f"{name}, recognised with {share}" if run.right[index] else f"{name}, not recognised"
    return {
        "packed": packed(figure.to_json()),
        "text": f"The strongest maps of some layers for {run.split} image {run.indices[index]} ({said}).",
        "alt": f"The network in 3D, from an image of {name} through its layers to the classes",
        "figures": [*_filters(run, paths), *_maps(run, paths, seen, name)],
    }


def packed(text: str) -> str:
    """What the page's script unpacks: gzip in base64."""
    return base64.b64encode(gzip.compress(text.encode(), 9, mtime=0)).decode()


def _filters(run: Run, paths: list[str]) -> list[dict[str, Any]]:
    """The filters of the first of the layers, if it is a convolution."""
    try:
        kernel = features.filters(run.predictor.variables, paths[0])
    except (ValueError, IndexError):
        return []
    size = f"{kernel.shape[3]} filters of {kernel.shape[0]}×{kernel.shape[1]} pixels"
    picture = drawn(feature_figures.filters(kernel), f"The {size} of {paths[0]}")
    return [
        picture | {"title": "What it looks for first", "text": f"{paths[0]}: {size}, those with the largest weights."}
    ]


def _maps(run: Run, paths: list[str], seen: Any, name: str) -> list[dict[str, Any]]:
    """The strongest maps of the layers that have any."""
    values = layers.activations(run.predictor.model, run.predictor.variables, seen, paths)
    found = {path: np.asarray(value[0]) for path, value in values.items() if value.ndim == 4}
    pictures = [
        drawn(feature_figures.feature_maps(maps, path), f"Maps of {path} for an image of {name}")
        for path, maps in found.items()
    ]
    text = "The maps of the layers above, those with the most energy first; red is positive, blue negative."
    titles = [{"title": "What it finds", "text": text}, *[{"title": "", "text": ""}] * len(pictures)]
    return [picture | title for picture, title in zip(pictures, titles, strict=False)]
