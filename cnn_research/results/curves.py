"""The picture of RESULTS.md: test errors in the course of training."""

import hashlib
import json
import re
import statistics
from collections.abc import Mapping, Sequence

from matplotlib.figure import Figure

from cnn_research.explain import style
from cnn_research.results.kept import Entry
from cnn_research.results.page import dataset_title

Curve = Sequence[tuple[float, float]]
_DIGEST = re.compile(r"<!-- of ([0-9a-f]{64}) -->")


def curves(entries: Sequence[Entry]) -> dict[str, dict[str, Curve]]:
    """Returns by dataset and by entry (epoch, mean error over the seeds), at the epochs that all seeds have.

    Without those that are something else than their config's file asks for, such as its first minutes.
    """
    found: dict[str, dict[str, Curve]] = {}
    for entry in (entry for entry in entries if entry.whole):
        split = entry.runs[0].config.dataset.eval_split
        runs = [{row["step"]: row for row in run.metrics if row["split"] == split} for run in entry.runs]
        common = sorted(set.intersection(*map(set, runs)))
        points = [
            (runs[0][step]["epoch"], round(statistics.fmean(1 - run[step]["accuracy"] for run in runs), 6))
            for step in common
        ]
        if points:
            found.setdefault(dataset_title(entry.runs[0].config), {})[entry.name] = points
    return found


@style.styled
def draw(found: Mapping[str, Mapping[str, Curve]]) -> Figure:
    """A panel for each dataset, a line for each entry; errors on a logarithmic axis, where none has no place."""
    figure = style.figure(3.6 * len(found), 3)
    for axes, (title, lines) in zip(figure.subplots(1, len(found), squeeze=False)[0], found.items(), strict=True):
        for index, (name, points) in enumerate(lines.items()):
            alone = "o" if len(points) == 1 else None  # a line would not be seen
            seen = [(x, y) for x, y in points if y > 0]
            axes.plot(*zip(*seen, strict=True), color=style.color(index), label=name, marker=alone)
        axes.set_yscale("log")
        axes.set_title(f"{title}: error")
        axes.set_xlabel("epoch")
        axes.set_xlim(left=0)
        axes.grid(True, axis="y")
        axes.yaxis.set_major_formatter(lambda share, _: f"{100 * share:g} %")
        axes.yaxis.set_minor_formatter(lambda share, _: f"{100 * share:g} %" if f"{share:e}"[0] in "25" else "")
        axes.tick_params(axis="y", which="minor", labelsize=8)
        axes.legend()
    return figure


def digest(found: Mapping[str, Mapping[str, Curve]]) -> str:
    """SHA-256 of the points: another version of matplotlib draws them a little differently."""
    return hashlib.sha256(json.dumps(found).encode()).hexdigest()


def svg(found: Mapping[str, Mapping[str, Curve]]) -> str:
    """The picture as a file, with the digest of its points in its first line."""
    # A picture in a page of its own doesn't know the colour of the text around it.
    return f"<!-- of {digest(found)} -->\n" + style.svg(draw(found)).replace("currentColor", style.INK)


def digest_of(text: str) -> str:
    """The digest in a picture's file; "" if there is none."""
    match = _DIGEST.search(text)
    return match[1] if match else ""
