"""The package as people install it: built, put into an environment of its own, and used in an empty folder."""

import json
import os
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import cnn_research
from cnn_research.data.sources import open_source

pytestmark = pytest.mark.wheel

ROOT = Path(__file__).parents[2]
# Of this process: the checkout, and what tests/conftest.py sets to make tests fast.
OURS = ("PYTHONPATH", "VIRTUAL_ENV", "XLA_FLAGS", "JAX_NUM_CPU_DEVICES")


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """The folder of the source distribution and of the wheel that is built from it, not from the checkout."""
    folder = tmp_path_factory.mktemp("dist")
    subprocess.run([sys.executable, "-m", "build", "--outdir", folder, ROOT], check=True, capture_output=True)
    return folder


@pytest.fixture(scope="module")
def wheel(built):
    (path,) = built.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    """The environment variables of a shell in which the wheel is installed, and nothing else; an empty home too."""
    folder = tmp_path_factory.mktemp("environment")
    environment = {name: value for name, value in os.environ.items() if name not in OURS}
    subprocess.run([sys.executable, "-m", "venv", folder], check=True, env=environment)
    # Without constraints, as people do: a release that breaks something shows here.
    install = [folder / "bin" / "python", "-m", "pip", "install", "--quiet", "--prefer-binary", "--no-compile", wheel]
    subprocess.run(install, check=True, env=environment)
    home = tmp_path_factory.mktemp("home")
    return environment | {"PATH": f"{folder / 'bin'}{os.pathsep}{environment['PATH']}", "HOME": str(home)}


@pytest.fixture(scope="module")
def run(installed, tmp_path_factory):
    """Runs a command line in one folder, empty at first; returns (stdout, stderr)."""
    folder = tmp_path_factory.mktemp("folder")

    def run(*command, code=0):
        done = subprocess.run(command, cwd=folder, env=installed, capture_output=True, text=True, timeout=300)
        assert done.returncode == code, f"{done.stdout}\n{done.stderr}"
        return done.stdout, done.stderr

    run.folder = folder
    return run


@pytest.fixture(scope="module")
def trained(run):
    """What `make train` does; its folder."""
    out, _ = run("cnn-research", "train", "--config=lenet5_digits", "--workdir=runs/lenet5_digits")
    assert "cnn-research report --workdir=runs/lenet5_digits" in out
    return run.folder / "runs" / "lenet5_digits"


def test_wheel_holds_the_package_and_its_experiments(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    expected = {
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / "cnn_research").rglob("*")
        if path.is_file() and path.suffix not in (".pyc", ".pyo")
    }
    for folder in ("configs", "rivals"):
        files = (ROOT / "experiments" / folder).glob("*.py")
        expected |= {f"cnn_research/{folder}/{path.name}" for path in files}
    assert {name for name in names if ".dist-info/" not in name} == expected
    assert {Path(name).suffix for name in expected} >= {".py", ".html", ".css", ".js", ".bash", ".zsh"}
    assert wheel.name == f"cnn_research-{cnn_research.__version__}-py3-none-any.whl"


def test_source_distribution_is_what_git_has(built):
    (path,) = built.glob("*.tar.gz")
    with tarfile.open(path) as archive:
        files = {"/".join(Path(member.name).parts[1:]) for member in archive if member.isfile()}
    files = {name for name in files if name not in ("PKG-INFO", "setup.cfg") and ".egg-info/" not in name}
    command = ["git", "-C", ROOT, "ls-files", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("not a git checkout")
    known = {name for name in listed.stdout.splitlines() if (ROOT / name).exists()}
    assert files - known == set(), "settings of one's own, or results"
    needed = ("cnn_research/", "docs/", "experiments/", "results/", "tests/", "constraints/", ".github/")
    missing = {name for name in known - files if name.startswith(needed)}
    assert {name for name in missing if not name.startswith("docs/images/")} == set()
    assert {"Makefile", "README.md", "LICENSE", "CITATION.cff", "pyproject.toml", ".ci/run"} <= files


def test_it_is_the_installed_package_that_runs(run):
    out, _ = run("python", "-c", "import cnn_research; print(cnn_research.__file__)")
    assert "site-packages" in out and str(ROOT) not in out
    assert run("cnn-research", "--version")[0] == f"cnn-research {cnn_research.__version__}\n"


def test_trains(trained):
    results = json.loads((trained / "results.json").read_text())
    assert results["test"]["num_examples"] == 360 and results["test"]["accuracy"] >= 0.985
    environment = json.loads((trained / "environment.json").read_text())
    assert environment["git_commit"] is None
    assert Path(environment["command"][1]).name == "cnn-research"
    assert environment["command"][2:] == ["train", "--config=lenet5_digits", "--workdir=runs/lenet5_digits"]


def test_predicts(run, trained):
    (run.folder / "images").mkdir()
    source = open_source("digits", "test")
    for number in range(10):
        example = source[number]
        image = Image.fromarray(np.squeeze(example["image"], -1))
        image.save(run.folder / "images" / f"{number}_{example['label']}.png")
    out, _ = run("cnn-research", "predict", f"--workdir={trained}", "images/*.png", "--json")
    found = [(each["image"][-5], each["top"][0]["class"]) for each in json.loads(out)["images"]]
    assert len(found) == 10 and sum(label == name for label, name in found) >= 9


def test_reports(run, trained):
    run("cnn-research", "report", f"--workdir={trained}")
    page = (trained / "report.html").read_text()
    assert '<pre class="command">cnn-research train' in page and len(page) > 1e6


def test_describes(run):
    lines = run("cnn-research", "describe", "lenet5")[0].splitlines()
    assert any(line.split()[:3] == ["C1", "convolution", "28x28x6"] for line in lines)


def test_another_config_in_processes(run):
    """The workers import the program that started them, which is the console's script here."""
    flags = [f"--config.dataset.{setting}" for setting in ("feed=streaming", "worker_kind=processes", "workers=1")]
    run("cnn-research", "train", "--config=lenet5_mnist:smoke", "--workdir=runs/smoke", *flags)
    assert json.loads((run.folder / "runs" / "smoke" / "results.json").read_text())["steps"] == 2


def test_sweeps(run):
    flags = ["--config=lenet5_digits:smoke", "--workdir=runs/seeds", "--grid=seed=1"]
    run("cnn-research", "sweep", *flags)
    assert json.loads((run.folder / "runs" / "seeds" / "seed=1" / "results.json").read_text())["seed"] == 1


def test_finds_the_rival_and_says_what_it_lacks(run):
    flags = ["--config=lenet5_digits:smoke", "--against=torch", "--repeats=1"]
    _, err = run("cnn-research", "benchmark", "step", *flags, code=2)
    assert "has no torch: install it there, or name a Python that has it by --python=" in err


@pytest.mark.parametrize(
    ("line", "expected"),
    [("tr", "train"), ("train --config=lenet5_m", "lenet5_mnist"), ("report --work", "--workdir=")],
)
def test_completes(run, line, expected):
    typed = f"cnn-research {line}"
    script = f'eval "$(cnn-research completion bash)"; COMP_LINE="{typed}" COMP_POINT={len(typed)}; _cnn_research'
    assert run("bash", "-c", f'{script}; echo "${{COMPREPLY[*]}}"')[0] == f"{expected}\n"
