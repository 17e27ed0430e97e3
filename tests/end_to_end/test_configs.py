"""Every config of experiments/configs as people launch it, on a few generated images: `:smoke`.

Nearly all of the time is XLA's. Two run at once, each in a process of its own, which also returns a large network's
memory. XLA optimises less than usual, which halves the time; nothing here depends on speed or on the last digit.
"""

import concurrent.futures
import json
import math
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CONFIGS = sorted(path.stem for path in (ROOT / "experiments" / "configs").glob("*.py"))
TIMEOUT = 900  # seconds for one


def smoke(name, workdir):
    """Trains, and returns the exit code, stderr, results.json and the rows of metrics.jsonl."""
    config = f"--config={ROOT}/experiments/configs/{name}.py:smoke"
    command = [sys.executable, str(ROOT / "experiments" / "train.py"), config, f"--workdir={workdir}"]
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_backend_optimization_level=0"
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "1", "XLA_FLAGS": flags}
    done = subprocess.run(
        [*command, "--config.compilation_cache="], env=environment, capture_output=True, text=True, timeout=TIMEOUT
    )
    results, rows = workdir / "results.json", workdir / "metrics.jsonl"
    results = json.loads(results.read_text()) if results.exists() else None
    rows = [json.loads(line) for line in rows.read_text().splitlines()] if rows.exists() else []
    shutil.rmtree(workdir, ignore_errors=True)  # the checkpoint of a VGG takes a gigabyte
    return done.returncode, done.stderr, results, rows


@pytest.fixture(scope="module")
def runs(request, tmp_path_factory):
    """{name: future of `smoke`} of the selected tests."""
    names = [item.callspec.params["name"] for item in request.session.items if "runs" in item.fixturenames]
    # The two largest, of 5 GB each, shall not meet: the one begins first, the other stands near the end.
    names.sort(key=lambda name: name != "vgg16_imagenet")
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        yield {name: pool.submit(smoke, name, tmp_path_factory.mktemp(name) / "run") for name in names}


@pytest.mark.smoke
@pytest.mark.parametrize("name", CONFIGS)
def test_smoke(runs, name):
    code, err, results, rows = runs[name].result()
    assert code == 0, err
    assert results["steps"] == 2 and results["dataset"].startswith("shapes:") and results["devices"] == 1
    assert results["test"]["num_examples"] == 24 and math.isfinite(results["test"]["loss"])
    assert 0 <= results["test"]["accuracy"] <= results["test"]["top5"] == 1.0  # there are four classes
    train = [row for row in rows if row["split"].startswith("train")]
    assert [row["step"] for row in train] == [1, 2] and {row["num_examples"] for row in train} == {16}
    assert all(math.isfinite(row["loss"]) for row in train)
