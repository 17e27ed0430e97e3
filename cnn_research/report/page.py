"""Writes report.html."""

import functools
import importlib.resources
from collections.abc import Sequence
from typing import Any

import jinja2
import plotly.offline
from etils import epath

import cnn_research
from cnn_research.errors import UserError
from cnn_research.explain import metrics
from cnn_research.report import comparison, evidence, inside, sections
from cnn_research.report.run import Run, open_run
from cnn_research.training import workdir as files


def write_report(
    workdirs: Sequence[epath.PathLike], output: epath.PathLike = "", split: str = "", data_dir: str | None = None
) -> epath.Path:
    """Writes the report of a run, or the comparison of several: one page that opens offline.

    Args:
        workdirs: folders of the runs.
        output: the file; "" = report.html in the workdir, comparison.html beside the first of several.
        split: of the runs' datasets, to be looked at instead of their test_split.
        data_dir: where the datasets are now; None = where they were in training.

    Returns:
        The path of the file.

    Raises:
        UserError: a folder holds no run or no checkpoint, two have the same name, the split can't be read, or the file
            can't be written.
    """
    folders = {folder.name: folder for folder in map(files.resolved, workdirs)}
    if len(folders) < len(workdirs):
        raise UserError(f"workdirs of one name: {', '.join(map(str, workdirs))}; runs are told apart by their folders'")
    first = next(iter(folders.values()))
    if output and not (parent := files.locate(output).parent).exists() and not files.is_remote(parent):
        raise UserError(f"{output} cannot be written: there is no folder {parent}")  # rather now than in a minute
    runs = {name: open_run(folder, split, data_dir) for name, folder in folders.items()}
    if len(runs) > 1:
        path, text = first.parent / "comparison.html", render_comparison(runs)
    else:
        path, text = first / "report.html", render(runs[first.name])
    path = files.locate(output) if output else path
    try:
        files.write_text(path, text)
    except OSError as error:
        raise UserError(f"{path} cannot be written ({error.strerror or error})") from None
    return path


def render(run: Run) -> str:
    """The page of a run."""
    matrix = metrics.confusion_matrix(run.probabilities, run.labels)
    return _template("report.html").render(
        **_common(),
        headline=sections.headline(run),
        curves=sections.curves({run.name: run.history}),
        classes=sections.class_rows(run),
        confusion=sections.confusion(run, matrix),
        mistakes=evidence.mistakes(run, matrix),
        calibration=sections.calibration(run),
        inside=inside.inside(run),
        layers=sections.layer_rows(run),
        settings=sections.settings(run),
        environment=sections.environment(run),
        plotly=inside.packed(plotly.offline.get_plotlyjs()),
        script=_read("network3d.js"),
    )


def render_comparison(runs: dict[str, Run]) -> str:
    """The page of several runs, by name."""
    return _template("comparison.html").render(
        **_common(),
        rows=comparison.overview(runs),
        curves=sections.curves({name: run.history for name, run in runs.items()}),
        classes=comparison.class_rows(runs),
        galleries=comparison.disagreements(runs),
        settings=comparison.settings(runs),
    )


def _common() -> dict[str, Any]:
    return {"css": _read("style.css"), "version": cnn_research.__version__}


def _read(name: str) -> str:
    return importlib.resources.files("cnn_research.report").joinpath(name).read_text()


@functools.cache
def _environment() -> jinja2.Environment:
    return jinja2.Environment(
        loader=jinja2.FunctionLoader(_read), autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True
    )


def _template(name: str) -> jinja2.Template:
    return _environment().get_template(name)
