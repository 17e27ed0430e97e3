"""Runs a sweep, or goes on where it stopped: grids, random trials and lists of any config fields."""

import os
import shlex
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

from absl import flags, logging
from etils import epath
from ml_collections import config_flags
from rich.console import Console, Group
from rich.live import Live
from rich.markup import escape
from rich.table import Table as Grid

from cnn_research.commands import launch
from cnn_research.errors import Preempted, UserError
from cnn_research.sweep import page, plan, pool, runs, table
from cnn_research.training import workdir as files
from cnn_research.training.preemption import Preemption
from cnn_research.validation import validate

_REFRESH = 1.0  # seconds between two looks at the metrics of the runs under way
_WIDEST = 60  # letters of a printed cell
_STYLES = {"running": "bold", "finished": "green", "diverged": "yellow", "failed": "red"}


def run() -> None:
    """Runs the command."""
    config_flags.DEFINE_config_file(
        "config",
        None,
        "Name or file of the experiment; --config.batch_size=256 sets a field of all runs.",
        lock_config=True,
    )
    flags.DEFINE_string("workdir", None, "Folder of the sweep, with a folder for each run.")
    flags.DEFINE_multi_string(
        "grid", [], "A field and its values, 'optimizer.learning_rate=0.01,0.1'; repeated: every combination."
    )
    kinds = ", ".join(plan.RANDOM.values())
    flags.DEFINE_multi_string("random", [], f"A field and what its values are drawn from: {kinds}; may be repeated.")
    flags.DEFINE_integer("trials", None, "How many random trials; more later run the new ones alone.")
    flags.DEFINE_integer("sweep_seed", 0, "Of the random trials.")
    flags.DEFINE_string("list", None, "File with one run a line: .jsonl of {field: value}, or .csv headed by fields.")
    flags.DEFINE_integer("parallel", 1, "How many runs at a time, among which GPUs or TPU chips are divided.", 1)
    flags.DEFINE_bool("retry", False, "Run again what diverged or failed.")
    flags.DEFINE_bool("dry_run", False, "Start nothing: print the commands of the runs that are not finished.")
    flags.DEFINE_bool("table_only", False, "Start nothing: write and print the tables of what is there.")
    launch.run(main, required=("config", "workdir"))


def main() -> None:
    """Runs what is left to run, then writes and prints the tables."""
    given = flags.FLAGS
    if files.is_remote(epath.Path(given.workdir)) and not (given.dry_run or given.table_only):
        raise UserError(
            f"--workdir={given.workdir}: runs started here keep their output in local files. Give a local folder, or "
            "run the commands that --dry_run prints; --table_only makes the tables"
        )
    workdir = files.locate(given.workdir)
    planned = _planned_runs(workdir)
    statuses = {run.name: runs.status(run) for run in planned}
    skipped = {"finished"} if given.retry else {"finished", "diverged", "failed"}
    left = [run for run in planned if statuses[run.name].state not in skipped]
    logging.info("%d run(s): %s", len(planned), _count(statuses))

    if given.dry_run:
        for run in left:
            print(shlex.join(_command(run)))
        return
    if given.table_only:
        _report(planned, statuses, workdir)
        return
    with runs.claim(workdir):
        elsewhere = [run for run in left if runs.in_use(run)]
        for run in elsewhere:
            logging.warning("%s: another process is training in it; left alone", run.name)
        left = [run for run in left if run not in elsewhere]
        leaving = _run(planned, left, statuses) if left else False
        _report(planned, statuses, workdir)
    if leaving:
        raise Preempted(f"left early: {_count(statuses)}. The same command goes on from there.")
    failed = [run for run in planned if statuses[run.name].state == "failed"]
    if failed:
        lines = [f"{run.name}: {statuses[run.name].message} ({run.workdir / runs.LOG})" for run in failed]
        raise UserError("\n".join([*lines, f"{len(failed)} run(s) failed; --retry runs them again"]))


def _planned_runs(workdir: epath.Path) -> list[runs.Run]:
    """The runs that the flags ask for, each checked."""
    given = flags.FLAGS
    file = given["config"].config_filename
    listed = plan.read_list(given.list) if given.list else []
    texts = plan.expand(given.grid, given.random, given.trials, given.sweep_seed, listed)
    base = runs.base_texts(launch.load_config(file), launch.given_config())
    return runs.make_runs(base, texts, lambda fields: launch.overridden_config(file, fields), workdir)


def _command(run: runs.Run) -> list[str]:
    """The command line of a run, which an installed package and a checkout have alike."""
    config = f"--config={flags.FLAGS['config'].config_filename}"
    return [sys.executable, "-m", "cnn_research.commands", "train", config, f"--workdir={run.workdir}", *run.overrides]


def _run(planned: Sequence[runs.Run], left: Sequence[runs.Run], statuses: dict[str, runs.Status]) -> bool:
    """Runs what is left, with a live table on a terminal, and keeps the statuses. Returns whether it left early."""
    parallel = min(flags.FLAGS.parallel, len(left))
    here = pool.local_devices()
    environments, devices = pool.slots(here, parallel, os.environ)
    problems: dict[str, list[str]] = {}
    for run in left:
        try:
            validate(run.config, devices)
        except UserError as error:
            for line in str(error).splitlines():
                problems.setdefault(line, []).append(run.name)
    runs.raise_problems(problems)
    logging.info(f"{len(left)} to run, {parallel} at a time, on {devices} {here.platform} device(s) each")

    console = Console(stderr=True)
    seen = 0.0
    # The lines that are logged meanwhile appear above the table.
    with (
        Preemption() as preemption,
        Live(console=console, auto_refresh=False, transient=True, redirect_stderr=console.is_terminal) as live,
    ):

        def watch(under_way: Sequence[runs.Run], ended: Mapping[str, runs.Status]) -> None:
            nonlocal seen
            statuses.update(ended)
            if not console.is_terminal or time.monotonic() < seen + _REFRESH:
                return
            seen = time.monotonic()
            statuses.update({run.name: runs.under_way(run) for run in under_way})
            live.update(_live_table(planned, statuses, console.height), refresh=True)

        def alone(run: runs.Run) -> list[str]:
            # Whatever cluster this machine belongs to: runs at the same time are not processes of one run.
            return [*_command(run), "--num_processes=1"]

        statuses.update(pool.run_all(left, alone, environments, preemption, watch))
        return preemption.requested


def _live_table(planned: Sequence[runs.Run], statuses: Mapping[str, runs.Status], height: int) -> Group:
    """What is running first, then what has ended last and what comes next, as many as the terminal has lines."""
    ranks = {"running": 0, "finished": 1, "diverged": 1, "failed": 1}
    shown = sorted(planned, key=lambda run: ranks.get(statuses[run.name].state, 2))[: max(3, height - 4)]
    grid = Grid(box=None)
    for name in ("run", "state", "step", "done", "accuracy"):
        grid.add_column(name, justify="left" if name in ("run", "state") else "right", no_wrap=name != "run")
    for run in shown:
        now = statuses[run.name]
        grid.add_row(
            escape(run.name),
            f"[{_STYLES.get(now.state, 'dim')}]{now.state}[/]",
            "" if now.step is None else f"{now.step:,}",
            "" if now.share is None else f"{now.share:.0%}",
            "" if now.accuracy is None else f"{now.accuracy:.4f}",
        )
    return Group(f"{len(planned)} runs: {_count(statuses)}", grid)


def _report(planned: Sequence[runs.Run], statuses: Mapping[str, runs.Status], workdir: epath.Path) -> None:
    """Writes sweep.csv, sweep_seeds.csv and sweep.html, and prints them as tables."""
    made = table.tabulate(planned, statuses)
    workdir.mkdir(parents=True, exist_ok=True)
    written = {"sweep.csv": table.to_csv(made.rows), "sweep.html": page.render(made, f"Sweep {workdir.name}")}
    if made.seeds:
        written["sweep_seeds.csv"] = table.to_csv(made.seeds)
    for name, text in written.items():
        files.write_text(workdir / name, text)
    columns = [*made.fields, "state", "step", "best_accuracy", "test_accuracy", "message"]
    console = Console(width=None if sys.stdout.isatty() else 200)
    console.print()
    console.print(_results(columns, made.rows))
    if made.seeds:
        others = [field for field in made.fields if field != table.SEED]
        lines = [
            {field: line[field] for field in others}
            | {"finished": f"{line['n']} of {line['runs']}"}
            | {name: table.mean_and_deviation(line, name) for name in ("best_accuracy", "test_accuracy")}
            for line in made.seeds
        ]
        console.print()
        console.print(_results([*others, "finished", "best_accuracy", "test_accuracy"], lines))
    print("\n" + "\n".join(f"  {line}" for line in made.best))
    print("\n" + "\n".join(f"  {workdir / name}" for name in sorted(written)) + "\n")


def _results(columns: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> Grid:
    """A table of the columns that have something in them."""
    grid = Grid(box=None, pad_edge=False)
    kept = [name for name in columns if any(row[name] is not None for row in rows)]
    for name in kept:
        grid.add_column(name, justify="left" if name in ("state", "message") else "right", overflow="fold")
    for row in rows:
        grid.add_row(*("" if row[name] is None else _cell(name, row[name]) for name in kept))
    return grid


def _cell(name: str, value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4f}" if name.endswith("accuracy") else f"{value:g}"
    text = str(value)
    return escape(text if len(text) <= _WIDEST else f"{text[: _WIDEST - 1]}…")  # sweep.csv has the whole of it


def _count(statuses: Mapping[str, runs.Status]) -> str:
    states = [status.state for status in statuses.values()]
    return ", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(states))
