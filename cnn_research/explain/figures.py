"""Evaluation in figures, from plain arrays: curves, classes, calibration, what is taken for what.

What they show is computed in `explain.metrics`; how they look is said in `explain.style`.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib import ticker
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from cnn_research.explain import style
from cnn_research.explain.metrics import Accuracy, Calibration, ClassScores, Confusion, most_confused, wilson_interval

_NUMBERED = 20  # classes: more, and the cells of a matrix are too small for numbers
_NAMED = 40  # classes: more, and there is no room for their names along a matrix
_ROWS = 30  # of a figure with a row for each class
_MARKED = 12  # pairs, in a matrix without names

# From the paper's white to a colour that white digits can be read on. A matrix of cells keeps its light ground on a
# dark page, as a photograph does.
_HITS = LinearSegmentedColormap.from_list("hits", ["#f4f6f8", "#b9d3ee", "#2f7fd1", "#123f73"])
_MISSES = LinearSegmentedColormap.from_list("misses", ["#f4f6f8", "#f6c9a8", "#d4493a", "#7a1710"])


@style.styled
def learning_curves(runs: Mapping[str, Sequence[Mapping[str, Any]]]) -> Figure:
    """Loss, accuracy and learning rate over the epochs, the runs over each other: a colour for each.

    What was measured in training is dashed: the mean over the steps before, of a network that changed meanwhile, with
    augmentation and label smoothing where there are any. Evaluations are solid.

    Args:
        runs: by name, the rows of their metrics.jsonl, which hold "epoch", "split", and of "loss", "accuracy" and
            "learning_rate" those that there are; rows with a learning rate are training's.

    Raises:
        ValueError: there are no rows.
    """
    if not any(runs.values()):
        raise ValueError("there are no rows to draw curves of")
    figure = style.figure(11, 3.5)
    panels = dict(zip(("loss", "accuracy", "learning_rate"), figure.subplots(1, 3), strict=True))
    lines = {}
    for index, (name, rows) in enumerate(runs.items()):
        for split in dict.fromkeys(row["split"] for row in rows):
            curve = [row for row in rows if row["split"] == split]
            trained = "learning_rate" in curve[-1]
            look = {"linestyle": (0, (4, 1.5)), "linewidth": 1} if trained else {}
            for key, axes in panels.items():
                # What isn't finite is no point of a curve.
                points = [(row["epoch"], row[key]) for row in curve if math.isfinite(row.get(key, math.nan))]
                if points:
                    axes.plot(
                        *zip(*points, strict=True), color=style.color(index), **({} if key == "learning_rate" else look)
                    )
            last = f"{split} {style.percent(curve[-1].get('accuracy', math.nan))}"
            lines[f"{name} · {last}" if len(runs) > 1 else last] = Line2D([], [], color=style.color(index), **look)
    for axes, title in zip(panels.values(), ("Loss", "Accuracy", "Learning rate"), strict=True):
        axes.set_title(title)
        axes.set_xlabel("epoch")
        axes.set_xlim(left=0)
        axes.grid(True, axis="y")
    loss = panels["loss"]
    loss.set_yscale("log")
    loss.yaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5), numticks=12))
    loss.yaxis.set_major_formatter("{x:g}")
    loss.yaxis.set_minor_locator(ticker.NullLocator())
    style.percent_axis(panels["accuracy"].yaxis)
    panels["learning_rate"].set_ylim(bottom=0)
    figure.legend(lines.values(), lines.keys(), loc="outside lower center", ncols=min(4, len(lines)))
    return figure


@style.styled
def confusion(matrix: np.ndarray, classes: Sequence[str]) -> Figure:
    """What is taken for what: right answers in blue, mistakes in red, each with a scale of its own.

    On one scale a good network's mistakes would all be white. Up to 20 classes have their counts in the cells, up to 40
    their names along the sides; of more, the cells with the most mistakes are numbered and listed.

    Args:
        matrix: int[K, K] of counts, a row for each true class, from `metrics.confusion_matrix`.
        classes: K names.
    """
    size = len(classes)
    shares = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    right = np.eye(size, dtype=bool)
    worst = max(shares[~right].max(initial=0), 1e-9)
    pixels = np.where(right[..., None], _HITS(shares), _MISSES(shares / worst))
    side = min(max(3.4, 0.55 * size + 1.2), 8)
    figure = style.figure(side if size <= _NAMED else side + 2.4, side)
    axes = figure.add_subplot()
    axes.imshow(pixels, interpolation="nearest")
    axes.set(xlabel="predicted", ylabel="true")
    axes.set_title(f"{style.percent(np.trace(matrix) / matrix.sum())} of {matrix.sum():,} right")
    axes.spines[:].set_visible(False)
    axes.tick_params(which="both", length=0)
    if size <= _NUMBERED:
        _write_counts(axes, matrix, pixels)
    if size <= _NAMED:
        _name_sides(axes, classes)
    else:
        _mark(axes, most_confused(matrix, _MARKED), classes)
    return figure


def _write_counts(axes: Axes, matrix: np.ndarray, pixels: np.ndarray) -> None:
    for row, column in zip(*np.nonzero(matrix), strict=True):
        luma = pixels[row, column, :3] @ (0.299, 0.587, 0.114)
        color = "white" if luma < 0.55 else "#333333"
        text = axes.text(column, row, f"{matrix[row, column]:,}", ha="center", va="center", color=color)
        text.set_fontsize(8 if len(matrix) <= 12 else 6)


def _name_sides(axes: Axes, classes: Sequence[str]) -> None:
    size = len(classes)
    look = {"rotation": 45, "ha": "right", "rotation_mode": "anchor"} if size * max(map(len, classes)) > 40 else {}
    axes.set_xticks(range(size), classes, fontsize=8 if size <= 20 else 6, **look)
    axes.set_yticks(range(size), classes, fontsize=8 if size <= 20 else 6)
    between = np.arange(size - 1) + 0.5
    axes.set_xticks(between, minor=True)
    axes.set_yticks(between, minor=True)
    axes.grid(which="minor", color="white", alpha=1, linewidth=1)


def _mark(axes: Axes, pairs: Sequence[Confusion], classes: Sequence[str]) -> None:
    """Numbers the cells of pairs and lists them at the right."""
    for number, pair in enumerate(pairs, start=1):
        at = (pair.predicted, pair.true)
        axes.plot(*at, "o", markersize=11, markerfacecolor="none", markeredgecolor="#333333", markeredgewidth=0.8)
        axes.annotate(str(number), at, (8, 0), textcoords="offset points", fontsize=7, color="#333333", va="center")
    lines = [f"{n:2d}  {_arrow(pair, classes)}  {pair.count}" for n, pair in enumerate(pairs, start=1)]
    axes.text(1.03, 1, "\n".join(["most confused", "", *lines]), transform=axes.transAxes, va="top", linespacing=1.5)


def _arrow(pair: Confusion, classes: Sequence[str]) -> str:
    return f"{classes[pair.true]} → {classes[pair.predicted]}"


@style.styled
def confused_pairs(pairs: Sequence[Confusion], classes: Sequence[str]) -> Figure:
    """The pairs of classes that are confused most, as bars.

    Args:
        pairs: from `metrics.most_confused`, most frequent first.
        classes: names.
    """
    figure = style.figure(6, 0.28 * max(len(pairs), 1) + 0.9)
    axes = figure.add_subplot()
    if not pairs:
        return _say(figure, axes, "no mistakes")
    rows = range(len(pairs))
    bars = axes.barh(rows, [pair.count for pair in pairs], height=0.7, color=style.WRONG)
    notes = [f"{pair.count:,} · {style.percent(pair.share)} of {classes[pair.true]}" for pair in pairs]
    axes.bar_label(bars, notes, padding=4, fontsize=8, color=style.INK)
    axes.set_yticks(rows, [_arrow(pair, classes) for pair in pairs])
    axes.invert_yaxis()
    axes.set_xlim(right=1.5 * max(pair.count for pair in pairs))
    axes.set_title("Most confused: true → predicted")
    axes.spines[["bottom", "left"]].set_visible(False)
    axes.tick_params(length=0, labelbottom=False)
    return figure


@style.styled
def class_scores(scores: Sequence[ClassScores]) -> Figure:
    """Precision, recall and F1 of each class, a row for each; of more than 30 classes the 30 with the lowest F1.

    Args:
        scores: from `metrics.per_class`.
    """
    shown = scores
    if len(scores) > _ROWS:
        # NaN, a class without examples, last; then in the order of the classes again.
        worst = sorted(range(len(scores)), key=lambda i: (math.isnan(scores[i].f1), scores[i].f1))[:_ROWS]
        shown = [scores[i] for i in worst]
    figure = style.figure(6.4, 0.26 * len(shown) + 1.1)
    axes = figure.add_subplot()
    rows = np.arange(len(shown))
    precision, recall, f1 = (np.array([getattr(s, key) for s in shown]) for key in ("precision", "recall", "f1"))
    axes.hlines(rows, precision, recall, color=style.INK, linewidth=1)
    axes.plot(f1, rows, "|", color=style.INK, markersize=13, markeredgewidth=1.6, label="F1")
    axes.plot(recall, rows, "o", color=style.color(0), markersize=5.5, label="recall")
    axes.plot(precision, rows, "D", color=style.color(1), markersize=4.5, label="precision")
    low = np.nanmin([precision, recall], initial=1)
    # Dots need not start at zero, as bars must.
    start = max(0, 1 - 1.15 * max(1 - low, 0.02)) if low > 0.3 else 0
    axes.set_xlim(start - 0.01 * (1 - start), 1 + 0.01 * (1 - start))
    for row, score in enumerate(shown):
        if math.isnan(score.f1) or math.isnan(score.precision):
            note = "no examples" if not score.support else "never predicted"
            axes.text(start, row, f"  {note}", va="center", fontsize=7, style="italic")
    axes.set_yticks(rows, [f"{score.name}  ({score.support:,})" for score in shown])
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    axes.set_ylim(len(shown) - 0.5, -0.5)
    style.percent_axis(axes.xaxis)
    axes.grid(True)
    axes.set_axisbelow(True)
    axes.set_title("By class" if shown is scores else f"The {_ROWS} of {len(scores)} classes with the lowest F1")
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=3)
    return figure


@style.styled
def reliability(calibration: Calibration, accuracy: Accuracy) -> Figure:
    """Reliability diagram: how often what is said with some confidence is right, and how often it is said.

    Guo et al. 2017, figure 1, with the 95 % interval of each bar; a perfectly calibrated network's bars end at the
    diagonal.

    Args:
        calibration: from `metrics.calibration`.
        accuracy: of the same examples.
    """
    figure = style.figure(4.6, 5.2)
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    full = calibration.counts > 0
    counts, hits = calibration.counts[full], calibration.accuracy[full]
    left, widths = calibration.edges[:-1][full], np.diff(calibration.edges)[full]
    centres = left + widths / 2
    bars = {"width": 0.94 * widths, "align": "center"}
    upper.plot([0, 1], [0, 1], color=style.INK, linewidth=1, linestyle=(0, (4, 3)), zorder=5)
    upper.bar(centres, hits, color=style.color(0), label="accuracy", **bars)
    gap = calibration.confidence[full] - hits
    hatched = {"facecolor": "none", "edgecolor": style.WRONG, "hatch": "////"}
    upper.bar(centres, gap, bottom=hits, label="gap to the confidence", **hatched, **bars)
    ends = np.array([wilson_interval(round(c * h), int(c)) for c, h in zip(counts, hits, strict=True)]).T
    errors = np.abs(ends - hits)
    upper.errorbar(centres, hits, errors, fmt="none", ecolor=style.INK, elinewidth=1, capsize=2, zorder=6)
    upper.set(xlim=(0, 1), ylim=(0, 1.02), ylabel="accuracy")
    upper.set_title(f"Calibration error {style.percent(calibration.error)}")
    upper.legend(loc="upper left")
    mean = float(np.nansum(calibration.counts * np.nan_to_num(calibration.confidence)) / calibration.counts.sum())
    lower.bar(centres, counts / counts.sum(), color=style.INK, alpha=0.5, **bars)
    lower.axvline(accuracy.value, color=style.color(0), label=f"accuracy {style.percent(accuracy.value)}")
    lower.axvline(mean, color=style.WRONG, linestyle=(0, (4, 2)), label=f"mean confidence {style.percent(mean)}")
    lower.set(xlabel="confidence", ylabel="examples")
    for axis in (upper.xaxis, upper.yaxis, lower.yaxis):
        style.percent_axis(axis)
    figure.legend(*lower.get_legend_handles_labels(), loc="outside lower center", ncols=2)
    return figure


def _say(figure: Figure, axes: Axes, text: str) -> Figure:
    """An empty figure that says why it is empty."""
    axes.set_axis_off()
    axes.text(0.5, 0.5, text, ha="center", va="center")
    return figure
