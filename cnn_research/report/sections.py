"""What a report says of one run, as plain values for the template: numbers, texts and pictures."""

import itertools
import json
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cnn_research import config as configs
from cnn_research.explain import figures, metrics, style
from cnn_research.models.layer_table import Layer, LayerTable, layer_table
from cnn_research.report.pictures import data_uri, drawn, thumbnail
from cnn_research.report.run import Run
from cnn_research.training.writers import duration

_TABLE_CLASSES = 20  # more, and the confusion matrix is a picture, with the most confused pairs in a list
_GALLERIES = 100  # at most: those of ten classes
_GALLERY_IMAGES = 12
_THUMBNAIL = 64  # pixels


def headline(run: Run) -> dict[str, Any]:
    """Who, how good, at what price, and the command that repeats it."""
    accuracy = metrics.accuracy(run.probabilities, run.labels)
    table = _table(run)
    results = run.results or {}
    environment = run.environment
    facts = {
        "parameters": f"{table.parameters:,}",
        "multiply-adds": f"{table.macs:,} an image",
        "loss": f"{metrics.losses(run.probabilities, run.labels).mean():.4f}",
    }
    if len(run.classes) > 10:
        facts["top-5"] = style.percent(metrics.accuracy(run.probabilities, run.labels, k=5).value)
    if results:
        facts |= {
            "trained": f"{results['epochs']:.3g} epochs, {results['steps']:,} steps",
            "time": duration(results["train_seconds"]),
        }
        if results.get("examples_per_second"):
            facts["speed"] = f"{results['examples_per_second']:,.0f} images/s"
    facts["seed"] = str(run.config.seed)
    if environment:
        facts["on"] = f"{environment['devices']} {environment['device_kind']} device(s)"
    return {
        "model": run.config.model.name,
        "dataset": run.config.dataset.name,
        "name": run.name,
        "split": run.split,
        "step": run.step,
        "finished": bool(results),
        "accuracy": accuracy,
        "facts": facts,
        "command": command(environment),
    }


def command(environment: dict[str, Any]) -> str:
    """The command line of a run, as one would type it: without the place of the program, a line for each flag."""
    words = environment.get("command", [])
    if [Path(word).name for word in words[1:2]] == ["cnn-research"]:  # starts its interpreter itself
        words = words[1:]
    if not words:
        return ""
    words = [shlex.quote(word) for word in [Path(words[0]).name, *words[1:]]]
    program = list(itertools.takewhile(lambda word: not word.startswith("--"), words))
    return " \\\n    ".join([" ".join(program), *words[len(program) :]])


def curves(runs: dict[str, Sequence[dict[str, Any]]]) -> str:
    """Learning curves as SVG; "" where there is nothing to draw."""
    runs = {name: rows for name, rows in runs.items() if rows}
    return style.svg(figures.learning_curves(runs)) if runs else ""


def confusion(run: Run, matrix: np.ndarray) -> dict[str, Any]:
    """The confusion matrix, whose cells lead to galleries of their images.

    Returns:
        {"rows": for each class its name and cells; of many classes [], and there is a "picture" instead; "pairs": the
        most confused ones; "galleries"; "some": whether there are cells without one}.
    """
    size = len(run.classes)
    shares = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    worst = max((shares * (1 - np.eye(size))).max(), 1e-9)
    shown = _gallery_pairs(matrix)
    rows = []
    for true in range(size) if size <= _TABLE_CLASSES else ():
        cells = []
        for predicted in range(size):
            scale = 1 if true == predicted else worst
            cells.append(
                {
                    "count": int(matrix[true, predicted]),
                    "tone": round(0.08 + 0.62 * shares[true, predicted] / scale, 3),
                    "right": true == predicted,
                    "share": style.percent(shares[true, predicted]),
                    "predicted": run.classes[predicted],
                    "link": gallery_id(true, predicted) if (true, predicted) in shown else "",
                }
            )
        rows.append({"name": run.classes[true], "cells": cells})
    pairs = [
        {
            "true": run.classes[pair.true],
            "predicted": run.classes[pair.predicted],
            "count": pair.count,
            "share": style.percent(pair.share),
            "link": gallery_id(pair.true, pair.predicted),
        }
        for pair in metrics.most_confused(matrix, 10 if rows else 30)
    ]
    some = any(cell["count"] and not cell["link"] for row in rows for cell in row["cells"])
    found = {"rows": rows, "pairs": pairs, "some": some, "galleries": [_gallery(run, *pair) for pair in shown]}
    if not rows:
        found["picture"] = drawn(figures.confusion(matrix, run.classes), f"Confusion matrix of {size} classes")
    return found


def gallery_id(true: int, predicted: int) -> str:
    """The anchor of the images of one class that were taken for another, or for what they are."""
    return f"pair-{true}-{predicted}"


def _gallery_pairs(matrix: np.ndarray) -> list[tuple[int, int]]:
    """The pairs of classes whose images are shown: the most confused; those that are right, if a table leads there."""
    right = np.flatnonzero(np.diag(matrix)).tolist() if len(matrix) <= _TABLE_CLASSES else []
    wrong = metrics.most_confused(matrix, _GALLERIES - len(right))
    return [(pair.true, pair.predicted) for pair in wrong] + [(index, index) for index in right]


def _gallery(run: Run, true: int, predicted: int) -> dict[str, Any]:
    """The most confident mistakes of a pair; of what is right, the least confident."""
    there = np.flatnonzero((run.labels == true) & (run.probabilities.argmax(axis=1) == predicted))
    confidences = run.probabilities[there, predicted]
    right = true == predicted
    chosen = there[np.argsort(confidences if right else -confidences, kind="stable")][:_GALLERY_IMAGES]
    what = (
        f"{run.classes[true]}, taken for {run.classes[predicted]}" if not right else f"{run.classes[true]}, recognised"
    )
    order = "least" if right else "most"
    more = f"the {len(chosen)} {order} confident of {len(there):,}" if len(there) > len(chosen) else f"all {len(there)}"
    images = [
        {
            **picture(image),
            "alt": f"{run.split} image {run.indices[index]}: {what}, {percent(run.probabilities[index, predicted])}",
            "caption": percent(run.probabilities[index, predicted]),
        }
        for index, image in zip(chosen.tolist(), run.images(chosen), strict=True)
    ]
    return {
        "id": gallery_id(true, predicted),
        "true": run.classes[true],
        "predicted": run.classes[predicted],
        "right": right,
        "count": more,
        "images": images,
    }


def picture(image: np.ndarray, side: int = _THUMBNAIL) -> dict[str, Any]:
    """A thumbnail for a page: {"src", "width", "height", "crisp"}; small images are to be enlarged in whole pixels."""
    small = thumbnail(image, side)
    height, width = small.shape[:2]
    factor = max(1, side // max(height, width))
    return {
        "src": data_uri(small),
        "width": width * factor,
        "height": height * factor,
        "crisp": max(height, width) < 64,
    }


def percent(share: float) -> str:
    """Whole percents: what a caption has room for."""
    return f"{100 * share:.0f}\N{NO-BREAK SPACE}%"


def class_rows(run: Run) -> list[dict[str, Any]]:
    """Precision, recall and F1 of each class, as texts and as the lengths of bars in percent."""
    rows = []
    for scores in metrics.per_class(run.probabilities, run.labels, run.classes):
        values = {name: getattr(scores, name) for name in ("precision", "recall", "f1")}
        bars = {name: bar(value) for name, value in values.items()}
        rows.append({"name": scores.name, "support": f"{scores.support:,}", "bars": bars})
    return rows


def bar(share: float) -> tuple[str, float]:
    """A share, which may be NaN, as text and as the length of a bar in percent."""
    return style.percent(share), round(100 * float(np.nan_to_num(share)), 1)


def calibration(run: Run) -> dict[str, Any]:
    """The expected calibration error with its diagram, and whether the network claims too much."""
    found = metrics.calibration(run.probabilities, run.labels)
    accuracy = metrics.accuracy(run.probabilities, run.labels)
    confidence = float(run.probabilities.max(axis=1).mean())
    claim = "neither too much nor too little"  # what lies within the interval need be no fault
    if not accuracy.low <= confidence <= accuracy.high:
        claim = "too much" if confidence > accuracy.value else "too little"
    return {
        "svg": style.svg(figures.reliability(found, accuracy)),
        "error": style.percent(found.error),
        "confidence": style.percent(confidence),
        "accuracy": style.percent(accuracy.value),
        "claim": claim,
    }


def _table(run: Run) -> LayerTable:
    return layer_table(run.predictor.model, run.central_views([0])[1].shape[1:])


def layer_rows(run: Run) -> list[dict[str, str]]:
    """The layer table."""
    return [_layer_row(layer) for layer in _table(run).layers]


def _layer_row(layer: Layer) -> dict[str, str]:
    return {
        "layer": layer.path,
        "kind": layer.kind + (", in training only" if layer.training_only else ""),
        "output": "×".join(map(str, layer.output)),
        "size": layer.size_formula,
        "parameters": f"{layer.parameters:,}" if layer.parameters else "",
        "multiply-adds": f"{layer.macs:,}" if layer.macs else "",
        "sees": "all" if layer.receptive_field is None else f"{layer.receptive_field} px",
    }


def settings(run: Run) -> dict[str, Any]:
    """The config: what differs from the defaults, with these; and all of it as JSON."""
    defaults = configs.flatten(configs.base_config().to_dict())
    own = configs.flatten(run.config.to_dict())
    changed = {field: value for field, value in own.items() if value != defaults.get(field)}
    rows = [(field, shown(value), shown(defaults.get(field))) for field, value in changed.items()]
    return {"changed": rows, "json": configs.to_json(run.config)}


def shown(value: Any) -> str:
    """A value of a config as a table has it."""
    if isinstance(value, tuple | list):
        return ", ".join(map(shown, value))
    return "unset" if value is None else '""' if value == "" else str(value)


def environment(run: Run) -> list[tuple[str, str]]:
    """Versions, devices, commit."""
    known = {k: v for k, v in run.environment.items() if k not in ("command", "versions")}
    known |= run.environment.get("versions", {})
    return [(name.replace("_", " "), v if isinstance(v, str) else json.dumps(v)) for name, v in known.items()]
