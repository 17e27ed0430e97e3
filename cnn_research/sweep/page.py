"""sweep.html: parallel coordinates of a sweep, in one file that needs nothing from a network."""

import importlib.resources
import json
import math
from collections.abc import Mapping
from typing import Any

from cnn_research.sweep.table import Table

# Results that have an axis, after those of the fields.
_AXES = ("train_seconds", "best_accuracy", "test_accuracy")


def render(table: Table, title: str) -> str:
    """Returns the page of a table: page.html with the data in it."""
    shown = [name for name in _AXES if any(row[name] is not None for row in table.rows)]
    data = {
        "title": title,
        "notes": list(table.best),
        "fields": list(table.fields),
        "axes": [*table.fields, *shown],
        "runs": [_plain(row) for row in table.rows],
        "seeds": [_plain(line) for line in table.seeds],
    }
    # A text of the data must not end the script element that it stands in.
    text = json.dumps(data, allow_nan=False).replace("<", "\\u003c")
    page = importlib.resources.files("cnn_research.sweep").joinpath("page.html").read_text()
    return page.replace("SWEEP_DATA", text)


def _plain(row: Mapping[str, Any]) -> dict[str, Any]:
    """Numbers and texts alone: what JSON and the page's axes know."""
    kept = {}
    for name, value in row.items():
        number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
        kept[name] = value if number or value is None else str(value)
    return kept
