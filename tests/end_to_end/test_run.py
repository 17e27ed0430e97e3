"""What a run leaves behind, and what evaluating it says."""

import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
from sklearn.datasets import load_digits

RESULTS = {
    "model": "convnet",
    "dataset": "digits",
    # 3x3x1x4 + 2x4 | 3x3x4x8 + 2x8 | (2x2x8 + 1) x 16 | 17 x 10: no biases where batch normalisation follows
    "parameters": 36 + 8 + 288 + 16 + 528 + 170,
    "steps": 120,
    "epochs": round(120 * 32 / 1437, 4),
    "devices": 1,
    "platform": "cpu",
    "seed": 0,
}


def test_results(reference, results):
    found = results(reference)
    assert {name: found[name] for name in RESULTS} == RESULTS
    keys = {"train_seconds", "device_seconds", "examples_per_second", "peak_memory_bytes"}
    keys |= {"test", "best", "versions", "digest", "skipped", "rollbacks", "stopped_early"}
    assert set(found) == set(RESULTS) | keys
    assert set(found["test"]) == {"accuracy", "top5", "loss", "num_examples"}
    assert found["test"]["num_examples"] == len(load_digits().target) - 1437 == 360
    assert 0.3 < found["test"]["accuracy"] <= found["test"]["top5"] <= 1, "it should have learned something"
    assert found["best"]["accuracy"] >= found["test"]["accuracy"]
    assert len(found["digest"]) == 64 and found["skipped"] == {"images": 0, "paths": []}
    assert found["device_seconds"] == found["train_seconds"] > 0 and found["peak_memory_bytes"] > 50e6
    assert (found["rollbacks"], found["stopped_early"]) == (0, False)
    assert found["examples_per_second"] > 0


def test_metrics(reference, read_rows):
    train, test = read_rows(reference, "train"), read_rows(reference, "test")
    assert [row["step"] for row in train] == list(range(10, 121, 10))
    assert [row["step"] for row in test] == [40, 80, 120]
    assert {row["num_examples"] for row in train} == {10 * 32} and {row["num_examples"] for row in test} == {360}
    assert train[-1]["loss"] < train[0]["loss"]
    np.testing.assert_allclose([row["epoch"] for row in test], [s * 32 / 1437 for s in (40, 80, 120)], atol=1e-4)
    # Warm-up over 12 steps to 0.01, then half a cosine over the other 108.
    assert train[0]["learning_rate"] == pytest.approx(0.01 * 10 / 12)
    assert train[5]["learning_rate"] == pytest.approx(0.01 * (1 + np.cos(np.pi * (59 - 12) / 108)) / 2)


def test_config_and_environment(reference):
    config = json.loads((reference / "config.json").read_text())
    assert config["model"]["filters"] == [4, 8] and config["duration"] == "120st"
    environment = json.loads((reference / "environment.json").read_text())
    assert environment["devices"] == 1 and environment["platform"] == "cpu"
    assert any("train.py" in part for part in environment["command"])
    assert {"jax", "flax", "optax", "numpy"} <= set(environment["versions"])


def test_summary_says_where_everything_is(script, reference, results):
    out, _ = script.run("train", *script.tiny, f"--workdir={reference}")  # finished already: nothing is trained again
    for text in ("test accuracy", f"{results(reference)['test']['accuracy']:.4f}", f"{reference}/results.json"):
        assert text in out


def test_evaluate_rewrites_test_alone(script, reference, results, tmp_path):
    workdir = shutil.copytree(reference, tmp_path / "copy")
    before = results(workdir)
    (workdir / "results.json").write_text(json.dumps(before | {"test": None}))
    printed = json.loads(script.run("evaluate", f"--workdir={workdir}", "--noflip")[0])  # the run's own protocol
    after = results(workdir)
    assert after == before  # the same weights on other batches give the same figures, to the bit
    assert printed == before["test"] | {"split": "test", "step": 120}


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (["--split=train"], {"split": "train", "num_examples": 1437, "step": 120}),
        (["--split=test[:50%]"], {"split": "test[:50%]", "num_examples": 180, "step": 120}),
        (["--checkpoint=best"], {"split": "test", "num_examples": 360}),
        (["--checkpoint=100"], {"split": "test", "num_examples": 360, "step": 100}),
        (["--flip"], {"split": "test", "num_examples": 360, "step": 120}),
    ],
)
def test_evaluate_something_else(script, reference, results, flags, expected):
    before = results(reference)
    values = json.loads(script.run("evaluate", f"--workdir={reference}", *flags)[0])
    assert {name: values[name] for name in expected} == expected
    if "--flip" in flags:  # by a protocol that isn't the run's own: other figures, and no others in results.json
        assert values["loss"] != before["test"]["loss"]
    if "--checkpoint=best" in flags:
        assert {name: values[name] for name in ("step", "accuracy")} == before["best"]
    assert results(reference) == before


def test_evaluate_on_fewer_images_than_the_warmup_takes(script, results, tmp_path):
    workdir = tmp_path / "run"
    flags = ["--config.duration=1ep", "--config.schedule.warmup=20st", "--config.eval_every=1ep"]
    script.run("train", *script.tiny, f"--workdir={workdir}", *flags)
    values = json.loads(script.run("evaluate", f"--workdir={workdir}")[0])  # an epoch of the 360 are 11 steps
    assert values == results(workdir)["test"] | {"split": "test", "step": 45}


def test_tensorflow_is_never_imported(tiny_tfds, tmp_path):
    """A TensorFlow that fails on import stands ready: reading a TFDS dataset and training must not touch it."""
    trap = tmp_path / "trap" / "tensorflow"
    trap.mkdir(parents=True)
    (trap / "__init__.py").write_text("raise SystemExit('TensorFlow was imported')")
    program = f"""
import sys
sys.path.insert(0, {str(trap.parent)!r})
from cnn_research.commands import evaluate, train
from cnn_research.config import base_config
from cnn_research.training import loop
config = base_config()
config.dataset.name, config.dataset.data_dir = "tiny_digits", {tiny_tfds!r}
config.duration, config.compilation_cache, config.dataset.cache = "2st", "", ""
assert loop.train(config, {str(tmp_path / "run")!r})["test"]["num_examples"] == 60
assert "tensorflow" not in sys.modules
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_a_preview_leaves_nothing_behind(script, tmp_path):
    out, _ = script.run("train", *script.tiny, "--preview", f"--workdir={tmp_path / 'run'}")
    for words in ("convnet, 1,046 parameters", "GFLOPs", "MiB a device", "120 steps", "3 evaluations", "cpu"):
        assert words in out, words
    assert not (tmp_path / "run").exists()
