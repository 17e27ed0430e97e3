"""Runs of a sweep of the tiny experiment, with results as a test wants them."""

from collections.abc import Callable
from pathlib import Path

import pytest
from etils import epath

from cnn_research.commands import launch
from cnn_research.sweep import plan, runs

TINY = str(Path(__file__).parents[1] / "end_to_end" / "tiny.py")


@pytest.fixture
def make(tmp_path) -> Callable[..., list[runs.Run]]:
    """Makes the runs of a grid, in folders below tmp_path / "sweep"."""

    def make(*grid: str, **base: str) -> list[runs.Run]:
        base = {field.replace("__", "."): text for field, text in base.items()}
        return runs.make_runs(
            base,
            plan.expand(grid=grid),
            lambda texts: launch.overridden_config(TINY, texts),
            epath.Path(tmp_path / "sweep"),
        )

    return make


@pytest.fixture
def finished() -> Callable[[float, float], runs.Status]:
    """The status of a finished run of these accuracies: of its best checkpoint and at the end."""

    def finished(best: float, test: float) -> runs.Status:
        results = {
            "test": {"accuracy": test, "top5": 1.0, "loss": 0.5},
            "best": {"accuracy": best, "step": 80},
            "parameters": 1234,
            "train_seconds": 2.5,
            "steps": 120,
        }
        return runs.Status("finished", 120, 1.0, best, results=results)

    return finished
