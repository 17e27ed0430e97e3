"""What came out of a sweep: a row for each run, means over seeds, and which was the best, by what."""

import csv
import dataclasses
import io
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from cnn_research.config import get_field
from cnn_research.sweep.runs import Run, Status

SEED = "seed"
# The columns of a run after its fields, with the accuracy of the best checkpoint on dataset.eval_split first.
OUTCOMES = (
    "state",
    "step",
    "best_accuracy",
    "best_step",
    "test_accuracy",
    "test_top5",
    "test_loss",
    "parameters",
    "train_seconds",
    "message",
)


@dataclasses.dataclass(frozen=True)
class Table:
    """The results of a sweep.

    Attributes:
        fields: that are swept, in the order of the plan.
        rows: one a run: "run", the fields' values, OUTCOMES; None where there is nothing.
        seeds: one for each setting of the other fields, where seeds are swept: those fields, "n" of "runs" that
            finished, and mean and standard deviation (divided by n - 1; None for n < 2) of the accuracies.
        best: says which setting is the best and by what it was chosen.
    """

    fields: Sequence[str]
    rows: Sequence[Mapping[str, Any]]
    seeds: Sequence[Mapping[str, Any]]
    best: Sequence[str]


def tabulate(runs: Sequence[Run], statuses: Mapping[str, Status]) -> Table:
    """Makes the table of runs and of their statuses by name."""
    fields = list(dict.fromkeys(field for run in runs for field in run.values))
    rows = [_row(run, fields, statuses[run.name]) for run in runs]
    seeds = _over_seeds(rows, fields) if SEED in fields else []
    return Table(fields, rows, seeds, _best(runs, fields, rows, seeds))


def _row(run: Run, fields: Sequence[str], status: Status) -> dict[str, Any]:
    row = {"run": run.name} | {field: get_field(run.config, field) for field in fields} | dict.fromkeys(OUTCOMES)
    row |= {"state": status.state, "step": status.step, "message": status.message or None}
    if status.results:
        test, best = status.results["test"], status.results["best"]
        row |= {"best_accuracy": best["accuracy"], "best_step": best["step"]}
        row |= {f"test_{name}": test[name] for name in ("accuracy", "top5", "loss")}
        row |= {name: status.results[name] for name in ("parameters", "train_seconds")}
    return row


def _over_seeds(rows: Sequence[Mapping[str, Any]], fields: Sequence[str]) -> list[dict[str, Any]]:
    others = [field for field in fields if field != SEED]
    settings: dict[tuple, list[Mapping[str, Any]]] = {}
    for row in rows:
        settings.setdefault(tuple(row[field] for field in others), []).append(row)
    means = []
    for setting, group in settings.items():
        finished = [row for row in group if row["state"] == "finished"]
        line = dict(zip(others, setting, strict=True)) | {"n": len(finished), "runs": len(group)}
        for name in ("best_accuracy", "test_accuracy"):
            values = [row[name] for row in finished]
            line[f"{name}_mean"] = statistics.fmean(values) if values else None
            line[f"{name}_std"] = statistics.stdev(values) if len(values) > 1 else None
        means.append(line)
    return means


def _best(
    runs: Sequence[Run],
    fields: Sequence[str],
    rows: Sequence[Mapping[str, Any]],
    seeds: Sequence[Mapping[str, Any]],
) -> list[str]:
    """Lines of text: the best setting, the accuracy that chose it, and the test accuracy beside it."""
    splits = sorted({run.config.dataset.eval_split for run in runs})
    chosen_on = " and ".join(map(repr, splits))
    if seeds:
        # A setting that lost some of its seeds would be judged by its luckier ones.
        whole = [line for line in seeds if line["n"] == line["runs"]]
        if not whole:
            return ["No setting has finished all of its seeds: none is called the best."]
        best = max(whole, key=lambda line: line["best_accuracy_mean"])
        chosen, test = (mean_and_deviation(best, f"{name}_accuracy") for name in ("best", "test"))
        by = "mean accuracy over seeds of the best checkpoints"
    else:
        finished = [row for row in rows if row["state"] == "finished"]
        if not finished:
            return ["No run has finished: none is called the best."]
        best = max(finished, key=lambda row: row["best_accuracy"])
        chosen, test = (f"{best[f'{name}_accuracy']:.4f}" for name in ("best", "test"))
        by = "accuracy of the best checkpoint"
    what = ", ".join(f"{field}={best[field]}" for field in fields if field in best)
    lines = [
        f"Best by dataset.eval_split, {chosen_on}: {what or 'the only setting'}",
        f"{by} there {chosen}; of the final weights on dataset.test_split {test}",
    ]
    if any(run.config.dataset.eval_split == run.config.dataset.test_split for run in runs):
        lines.append(
            "Chosen on the test set itself, so both accuracies flatter it. Hold out a part of the training set to "
            "choose by: --config.dataset.train_split=train[:90%] --config.dataset.eval_split=train[90%:]"
        )
    return lines


def mean_and_deviation(line: Mapping[str, Any], name: str) -> str:
    """Writes a mean over seeds: "0.9912 ± 0.0021 (n=3)", "0.9912 (n=1)", or "" where no run has finished."""
    mean, deviation = line[f"{name}_mean"], line[f"{name}_std"]
    if mean is None:
        return ""
    return f"{mean:.4f}{'' if deviation is None else f' ± {deviation:.4f}'} (n={line['n']})"


def to_csv(rows: Sequence[Mapping[str, Any]]) -> str:
    """Writes rows, all with the same columns, as CSV with a head."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()
