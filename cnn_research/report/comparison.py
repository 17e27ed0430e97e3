"""What a report says of several runs beside each other, as plain values for the template."""

import itertools
from typing import Any

import numpy as np

from cnn_research import config as configs
from cnn_research.explain import metrics, style
from cnn_research.report import sections
from cnn_research.report.run import Run

_IMAGES = 24  # in a gallery


def overview(runs: dict[str, Run]) -> list[dict[str, Any]]:
    """A row for each run: its headline, the best one marked, and how it compares with that one."""
    best = max(runs, key=lambda name: runs[name].right.mean())
    rows = []
    for index, (name, run) in enumerate(runs.items()):
        headline = sections.headline(run)
        facts = headline["facts"]
        rows.append(
            {
                "name": name,
                "color": style.color(index),
                "headline": headline,
                "accuracy": headline["accuracy"],
                "loss": facts["loss"],
                "calibration": style.percent(metrics.calibration(run.probabilities, run.labels).error),
                "parameters": facts["parameters"],
                "trained": facts.get("trained", "not finished"),
                "time": facts.get("time", ""),
                "best": name == best,
                "chance": _chance(runs[best], run) if name != best and same_images(runs.values()) else "",
            }
        )
    return rows


def same_images(runs: Any) -> bool:
    """Whether the runs have predicted the same images, of the same classes: then each can be compared."""
    facts = [(r.config.dataset.name, r.split, r.classes, r.indices.tobytes(), r.labels.tobytes()) for r in runs]
    return all(fact == facts[0] for fact in facts)


def mcnemar(first: np.ndarray, second: np.ndarray) -> float:
    """How likely two networks that are equally good differ as much as these on the same images.

    The exact test of McNemar 1947: of the images that one alone has right, either would have as many.

    Args:
        first, second: bool[N], what each has right.

    Returns:
        The two-sided probability.
    """
    alone = int(np.sum(first & ~second)), int(np.sum(~first & second))
    total, ways, tail = sum(alone), 1, 0
    for heads in range(min(alone) + 1):  # of so many throws of a coin: in whole numbers, which can't overflow
        tail += ways
        ways = ways * (total - heads) // (heads + 1)
    return min(1.0, 2 * tail / 2**total)


def _chance(best: Run, other: Run) -> str:
    chance = mcnemar(best.right, other.right)
    return "< 0.001" if chance < 0.001 else f"{chance:.3f}"


def class_rows(runs: dict[str, Run]) -> list[dict[str, Any]]:
    """The recall of each class by each run; [] unless their classes are the same."""
    first = next(iter(runs.values()))
    if any(run.classes != first.classes for run in runs.values()):
        return []
    scores = [metrics.per_class(run.probabilities, run.labels, run.classes) for run in runs.values()]
    return [
        {
            "name": row[0].name,
            "bars": [sections.bar(score.recall) for score in row],
        }
        for row in zip(*scores, strict=True)
    ]


def disagreements(runs: dict[str, Run]) -> list[dict[str, Any]]:
    """The images that none recognises, and those that one alone does; [] unless all have seen the same ones."""
    if not same_images(runs.values()):
        return []
    right = np.stack([run.right for run in runs.values()])
    groups = {"recognised by none": ~right.any(axis=0)}
    for index, name in enumerate(runs):
        groups[f"by {name} alone"] = right[index] & (right.sum(axis=0) == 1)
    first = next(iter(runs.values()))
    galleries = []
    for number, (title, mask) in enumerate(groups.items()):
        there = np.flatnonzero(mask)
        chosen = there[:: max(1, len(there) // _IMAGES)][:_IMAGES]  # from all over the set
        images = [
            {
                **sections.picture(image),
                "alt": f"{first.split} image {first.indices[index]}: {first.classes[first.labels[index]]}, {title}",
                "caption": first.classes[first.labels[index]],
            }
            for index, image in zip(chosen.tolist(), first.images(chosen) if len(chosen) else (), strict=True)
        ]
        galleries.append({"id": f"group-{number}", "title": title, "count": f"{len(there):,}", "images": images})
    return galleries


def settings(runs: dict[str, Run]) -> list[tuple[str, list[str]]]:
    """The fields of the configs that aren't the same everywhere: a name, and its value in each run."""
    flat = [configs.flatten(run.config.to_dict()) for run in runs.values()]
    fields = dict.fromkeys(itertools.chain.from_iterable(flat))
    rows = [(field, [config.get(field) for config in flat]) for field in fields]
    return [(field, list(map(sections.shown, values))) for field, values in rows if values.count(values[0]) < len(flat)]
