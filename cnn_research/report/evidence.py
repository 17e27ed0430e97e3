"""Mistakes with what speaks for the answer and what for the truth: Grad-CAM on the image."""

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from cnn_research.explain import layers, metrics
from cnn_research.explain.attribution import grad_cam
from cnn_research.explain.overlay import blend
from cnn_research.report import sections
from cnn_research.report.pictures import enlarged, thumbnail
from cnn_research.report.run import Run

_CARDS = 8  # of either kind
_SIDE = 112  # pixels: of the pictures, in which a heat map is smooth


def mistakes(run: Run, matrix: np.ndarray) -> dict[str, Any] | None:
    """Cards of the images with the highest loss, and of one for each of the most confused pairs.

    Args:
        run: the run.
        matrix: int[K, K], its confusion matrix.

    Returns:
        {"layer", "size", "groups": [{"title", "cards"}]}; None where nothing is wrong or the network has no maps.
    """
    wrong = ~run.right
    if not wrong.any():
        return None
    predictor = run.predictor
    shapes = layers.list_layers(predictor.model, predictor.variables, run.central_views([0])[1])
    try:
        layer = layers.last_maps(shapes)
    except ValueError:
        return None
    worst = [index for index in metrics.top_losses(run.probabilities, run.labels, _CARDS).tolist() if wrong[index]]
    typical = []
    for pair in metrics.most_confused(matrix, 2 * _CARDS):
        there = np.flatnonzero((run.labels == pair.true) & (run.probabilities.argmax(axis=1) == pair.predicted))
        surest = there[np.argmax(run.probabilities[there, pair.predicted])]
        if surest not in worst:
            typical.append(int(surest))
    cards = _cards(run, [*worst, *typical[:_CARDS]], layer)
    groups = [("The highest losses", cards[: len(worst)]), ("The most confused pairs", cards[len(worst) :])]
    return {
        "layer": layer,
        "size": "×".join(map(str, shapes[layer][:2])),
        "groups": [{"title": title, "cards": found} for title, found in groups if found],
    }


def _cards(run: Run, indices: Sequence[int], layer: str) -> list[dict[str, Any]]:
    pixels, seen = run.central_views(indices)
    cards = []
    columns = run.probabilities[indices].argmax(axis=1), run.labels[indices]
    network = run.predictor.model, run.predictor.variables
    heats = [np.asarray(grad_cam(*network, seen, layer, jnp.asarray(classes))) for classes in columns]
    for place, index in enumerate(indices):
        predicted, true = (int(column[place]) for column in columns)
        where = f"{run.split} image {run.indices[index]}"
        large = enlarged(thumbnail(pixels[place], _SIDE), _SIDE)
        image = {"alt": f"{where}: {run.classes[true]}", "caption": "image"}
        images = [sections.picture(pixels[place], _SIDE) | image]
        for kind, heat in zip((predicted, true), heats, strict=True):
            name, found = run.classes[kind], heat[place].max() > 0
            alt = f"{where}: what speaks for {name}" if found else f"{where}: nothing speaks for {name}"
            caption = f"for {name}" if found else f"nothing for {name}"
            images.append(sections.picture(blend(large, heat[place]), _SIDE) | {"alt": alt, "caption": caption})
        cards.append(
            {
                "images": images,
                "true": run.classes[true],
                "predicted": run.classes[predicted],
                "confidence": f"with {sections.percent(run.probabilities[index, predicted])}; "
                f"{run.classes[true]} {sections.percent(run.probabilities[index, true])}",
            }
        )
    return cards
