"""Every notebook runs from start to end, and its two files say the same."""

import os
import re
from pathlib import Path

import jupytext
import nbformat
import pytest
from nbclient import NotebookClient

FOLDER = Path(__file__).parents[2] / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
TWINS = sorted(FOLDER.glob("*.py"))

pytestmark = pytest.mark.notebook


def cells(path):
    """What the two files of a pair have in common."""
    notebook = jupytext.read(path)
    return [(cell.cell_type, cell.source, cell.metadata.get("tags", [])) for cell in notebook.cells]


def test_notebooks_come_in_pairs():
    assert NOTEBOOKS
    assert [path.stem for path in NOTEBOOKS] == [path.stem for path in TWINS]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_twins_agree(path):
    assert cells(path) == cells(path.with_suffix(".py")), f"run: jupytext --sync {path.with_suffix('.py')}"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_has_what_all_have(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert all(not cell.outputs and cell.execution_count is None for cell in code)  # no outputs in the repository
    assert [cell for cell in code if cell.metadata.get("tags") == ["parameters"]]
    assert 'find_spec("cnn_research") is None' in code[0].source  # installs only where there is nothing
    badge = f"https://colab.research.google.com/github/cnn-research/cnn-research/blob/main/notebooks/{path.name}"
    assert badge in notebook.cells[0].source
    assert any(re.search("^## Try it yourself", cell.source) for cell in notebook.cells)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_runs(path, tmp_path):
    notebook = nbformat.read(path, as_version=4)
    # A user's machine has one device, not those that the tests simulate.
    simulated = ("JAX_NUM_CPU_DEVICES", "XLA_FLAGS")
    environment = {name: value for name, value in os.environ.items() if name not in simulated}
    client = NotebookClient(notebook, timeout=600, kernel_name="python3", resources={"metadata": {"path": tmp_path}})
    client.execute(env=environment)  # raises CellExecutionError, with the traceback, where a cell does
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    assert not [output for output in outputs if output.output_type == "error"]
    shown = {kind for output in outputs for kind in output.get("data", {})}
    assert shown & {"image/png", "text/html"}
