import io

import pytest
from rich.console import Console

from cnn_research.commands import sweep
from cnn_research.config import base_config
from cnn_research.sweep.runs import Run, Status


def shown(grid, width=100):
    console = Console(file=io.StringIO(), width=width)
    console.print(grid)
    return [line.split() for line in console.file.getvalue().splitlines()]


@pytest.fixture
def planned():
    return [Run(f"seed={seed}", {"seed": seed}, base_config(), (), None) for seed in range(20)]


def test_live_table_shows_what_runs_first_and_fits_the_terminal(planned):
    statuses = {run.name: Status("waiting") for run in planned}
    statuses |= {"seed=0": Status("finished", 898, 1.0, 0.9917), "seed=1": Status("diverged", 40, 0.05, message="why")}
    statuses["seed=7"] = Status("running", 1200, 0.25, 0.875)
    title, head, *rows = shown(sweep._live_table(planned, statuses, height=10))
    assert " ".join(title) == "20 runs: 1 finished, 1 diverged, 17 waiting, 1 running"
    assert head == ["run", "state", "step", "done", "accuracy"]
    assert rows[:4] == [
        ["seed=7", "running", "1,200", "25%", "0.8750"],
        ["seed=0", "finished", "898", "100%", "0.9917"],
        ["seed=1", "diverged", "40", "5%"],
        ["seed=2", "waiting"],
    ]
    assert len(rows) == 6


def test_printed_table_leaves_out_empty_columns_and_shortens_messages():
    rows = [
        {"optimizer.learning_rate": 1e-5, "model.filters": ("[bold]", 8), "test_accuracy": 0.99, "message": None},
        {"optimizer.learning_rate": 0.05, "model.filters": None, "test_accuracy": 1.0, "message": "m" * 200},
        {"optimizer.learning_rate": 1e6, "model.filters": "", "test_accuracy": None, "message": None},
    ]
    empty = [row | {"step": None} for row in rows]
    head, *lines = shown(sweep._results([*rows[0], "step"], empty), width=200)
    assert head == ["optimizer.learning_rate", "model.filters", "test_accuracy", "message"]
    assert lines == [["1e-05", "('[bold]',", "8)", "0.9900"], ["0.05", "1.0000", "m" * 59 + "…"], ["1e+06"]]
