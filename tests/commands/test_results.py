"""Keeps a real run and makes the pages of a checkout, as people do."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from cnn_research.commands import launch, results
from cnn_research.config import base_config
from cnn_research.errors import UserError
from cnn_research.results import kept, page

ROOT = Path(__file__).parents[2]
SMALL = '''
"""LeNet-5 for two steps."""

from cnn_research.config import base_config, shrink


def get_config(mode: str = ""):
    config = base_config()
    config.model.name = "lenet5"
    return shrink(config, image_size=16)
'''
README = f"# Mine\n\n{page.BEGIN}\n{page.END}\n"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Runs a script of experiments/ in a small checkout that has two of the configs and another; returns its output."""
    checkout = tmp_path_factory.mktemp("checkout")
    (checkout / "experiments" / "configs").mkdir(parents=True)
    for name in ("lenet5_digits.py", "resnet20_cifar10.py"):
        shutil.copy(ROOT / "experiments" / "configs" / name, checkout / "experiments" / "configs")
    (checkout / "experiments" / "configs" / "small_digits.py").write_text(SMALL.lstrip())
    (checkout / "README.md").write_text(README)
    environment = os.environ | {"PYTHONPATH": str(ROOT), "JAX_NUM_CPU_DEVICES": "1"}

    def run(script: str, *flags: str, code: int = 0) -> str:
        command = [sys.executable, str(ROOT / "experiments" / f"{script}.py"), *flags]
        done = subprocess.run(command, cwd=checkout, env=environment, capture_output=True, text=True)
        assert done.returncode == code, f"{done.stdout}\n{done.stderr}"
        return done.stdout + done.stderr

    run.checkout = checkout
    return run


@pytest.fixture(scope="module")
def trained(run):
    """The checkout with a smoke run of lenet5_digits and a whole one of small_digits, kept, and its pages."""
    flags = ("--config.seed=3", "--config.compilation_cache=", "--config.dataset.cache=")
    run("train", "--config=experiments/configs/lenet5_digits.py:smoke", "--workdir=runs/smoke", *flags)
    run("train", "--config=experiments/configs/small_digits.py", "--workdir=runs/whole", *flags)
    said = run("results", "--add=runs/smoke", "--name=lenet5_digits-smoke", "--note=Two steps")
    assert "kept results/lenet5_digits-smoke/seed-3" in said and "wrote RESULTS.md" in said
    assert "No whole run is kept yet." in (run.checkout / "README.md").read_text()
    assert "kept results/small_digits/seed-3" in run("results", "--add=runs/whole")
    return run.checkout


def test_run_is_kept_and_checked(trained, run):
    text = (trained / "RESULTS.md").read_text()
    accuracy = json.loads((trained / "runs/smoke/results.json").read_text())["test"]["accuracy"]
    (line,) = [line for line in text.splitlines() if line.startswith("| `lenet5_digits-smoke`")]
    assert f"| {accuracy:.4f}<sup>" in line and "`duration=2st`" in line and "Two steps." in text
    accuracy = json.loads((trained / "runs/whole/results.json").read_text())["test"]["accuracy"]
    (line,) = [line for line in (trained / "README.md").read_text().splitlines() if "_digits" in line]
    assert line.startswith("| `small_digits` | lenet5, ") and f"| {accuracy:.4f} (n=1) |" in line
    assert "| `lenet5_digits` | lenet5 | not run |" in text
    assert (trained / page.PICTURE).read_text().startswith("<!-- of ")
    run("results", "--check")
    before = {name: (trained / name).stat().st_mtime_ns for name in ("RESULTS.md", "README.md", page.PICTURE)}
    run("results")
    assert {name: (trained / name).stat().st_mtime_ns for name in before} == before


def test_the_command_makes_the_same_config(trained):
    """What RESULTS.md says, read as the command line reads it, is the run's config."""
    file = trained / "experiments/configs/lenet5_digits.py"
    names = ("lenet5_digits", "small_digits")
    files = {name: launch.load_config(str(trained / f"experiments/configs/{name}.py")) for name in names}
    entry, _ = kept.read_all(trained, files)
    overrides = [word.partition("=") for word in page.command(entry).replace("'", "").split() if ".seed" in word]
    assert overrides == [("--config.seed", "=", "3")]
    made = launch.overridden_config(str(file), entry.overrides)
    assert made.to_dict() == entry.runs[0].config.to_dict()
    assert made.dataset.cache == base_config().dataset.cache  # the run's own was another


@pytest.mark.parametrize(
    ("file", "old", "new", "message"),
    [
        ("RESULTS.md", "not run", "ran", "RESULTS.md is stale"),
        ("README.md", "(n=1)", "(n=2)", "README.md is stale"),
        (page.PICTURE, "<!-- of ", "<!-- not ", "docs/images/results.svg is stale"),
        (
            "results/lenet5_digits-smoke/seed-3/results.json",
            '"step',
            '"Step',
            "results/lenet5_digits-smoke/seed-3: ",
        ),
        ("README.md", "to here", "to there", "README.md has no line"),
        ("experiments/configs/resnet20_cifar10.py", "64000st", "3ep", "RESULTS.md is stale"),
    ],
)
def test_check_notices(trained, run, file, old, new, message):
    path = trained / file
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))
    try:
        try:
            said = "\n".join(f"{name} is stale" for name in results.stale(trained))
        except UserError as error:
            said = str(error)
        assert message in said
        if file == "RESULTS.md":
            assert "error: RESULTS.md is not what the files in results/ give" in run("results", "--check", code=2)
    finally:
        path.write_text(text)
    assert not results.stale(trained)


def test_config_that_is_gone(trained):
    path = trained / "experiments/configs/lenet5_digits.py"
    text = path.read_text()
    path.unlink()
    try:
        with pytest.raises(UserError, match="'lenet5_digits-smoke' is not the name of a config"):
            results.stale(trained)
    finally:
        path.write_text(text)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--name=x"], "--add=WORKDIR is missing"),
        (["--check", "--add=runs/smoke"], "one after the other"),
        (["--add=runs/smoke"], "its name needs a suffix"),
    ],
)
def test_mistakes(trained, run, flags, message):
    said = run("results", *flags, code=2)
    assert message in said and "Traceback" not in said


def test_outside_of_a_checkout(tmp_path):
    with pytest.raises(UserError, match="start this at the root of a checkout"):
        results.stale(tmp_path)


def test_our_own_pages():
    """RESULTS.md, README.md and the picture of this checkout are what its files give."""
    assert not results.stale(ROOT)


def test_what_make_train_says_in_our_own_readme():
    """It is what the run of seed 0 that is kept gave, on the machine that it was kept on."""
    found = json.loads((ROOT / "results/lenet5_digits/seed-0/results.json").read_text())
    test, best, readme = found["test"], found["best"], (ROOT / "README.md").read_text()
    for line in (
        f"  network        lenet5, {found['parameters']:,} parameters",
        f"  test accuracy  {test['accuracy']:.4f} (top-5 {test['top5']:.4f}, loss {test['loss']:.4f})",
        f"  best           {best['accuracy']:.4f} at step {best['step']}",
        f"  digest         {found['digest'][:16]}",
    ):
        assert f"{line}\n" in readme


def test_our_own_results_hold_no_paths_of_a_machine():
    texts = [path.read_text() for path in (ROOT / "results").rglob("*") if path.is_file()]
    texts.append((ROOT / "RESULTS.md").read_text())
    for word in ("/home/", "/root/", "/tmp/", "/work/", "/Users/", "hostname"):
        assert not any(word in text for text in texts), word
