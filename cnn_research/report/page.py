"""Writes report.html."""

import base64
import functools
import gzip
import importlib.resources
from collections.abc import Sequence
from typing import Any

import jinja2
import numpy as np
import plotly.offline
from etils import epath

import cnn_research
from cnn_research.errors import UserError
from cnn_research.explain import metrics
from cnn_research.explain.network3d import network3d
from cnn_research.report import comparison, evidence, sections
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
    first = files.locate(workdirs[0])
    first = first if files.is_remote(first) else first.resolve()
    several = len(workdirs) > 1
    path = epath.Path(output or (first.parent / "comparison.html" if several else first / "report.html"))
    if not path.parent.exists() and not files.is_remote(path):  # rather now than when all is computed
        raise UserError(f"{path} cannot be written: there is no folder {path.parent}")
    runs = [open_run(workdir, split, data_dir) for workdir in workdirs]
    text = render_comparison(comparison.named(runs)) if several else render(runs[0])
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
        figure3d=_figure3d(run),
        inside=[],
        layers=sections.layer_rows(run),
        settings=sections.settings(run),
        environment=sections.environment(run),
        plotly=_packed(plotly.offline.get_plotlyjs()),
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


def _figure3d(run: Run) -> dict[str, str]:
    """The network in 3D, with an image that it recognises as confidently as half of those that it does."""
    candidates = np.flatnonzero(run.right) if run.right.any() else np.arange(len(run.labels))
    order = np.argsort(run.probabilities[candidates].max(axis=1), kind="stable")
    index = candidates[order[len(order) // 2]]
    pixels, seen = run.central_views([index])
    network = run.predictor.model, run.predictor.variables
    figure = network3d(*network, seen[0], classes=run.classes, picture=pixels[0])
    name, share = run.classes[run.labels[index]], sections.percent(run.probabilities[index].max())
    return {
        "packed": _packed(figure.to_json()),
        "text": f"The strongest maps of some layers for {run.split} image {run.indices[index]}, of class {name}: "
        f"{'recognised' if run.right[index] else 'not recognised'}, with {share}.",
        "alt": f"The network in 3D, from an image of a {name} through its layers to the classes",
    }


def _packed(text: str) -> str:
    return base64.b64encode(gzip.compress(text.encode(), 9, mtime=0)).decode()


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
