"""A checkout with two configs, and workdirs of runs that were never run."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from configs_for_tests import changed

from cnn_research.config import set_field, to_json

ENVIRONMENT = {
    "cnn_research": "0.1.0",
    "git_commit": "0123456789abcdef0123456789abcdef01234567",
    "command": [
        "/home/someone/python",
        "experiments/train.py",
        "--config=experiments/configs/lenet5_mnist.py",
        "--x=1",
    ],
    "python": "3.12.1",
    "system": "Linux-6.1.2-of-this-host-x86_64",
    "versions": {"jax": "0.9.1", "flax": "0.12.0", "optax": "0.2.8"},
    "platform": "cpu",
    "device_kind": "cpu",
    "devices": 1,
    "processes": 1,
    "processor": "Model 7",
    "cores": 2,
}
TRAINED = {"learning_rate": 0.1, "split": "train"}


@pytest.fixture
def files() -> dict:
    """What the files of the checkout give."""
    return {
        "lenet5_mnist": changed(dataset__name="mnist", duration="12ep"),
        "resnet20_cifar10": changed(dataset__name="cifar10", duration="64000st", model__name="resnet20"),
    }


@pytest.fixture
def workdir(tmp_path, files) -> Callable[..., Path]:
    """Makes the folder of a finished run of lenet5_mnist."""

    def make(
        accuracy: float = 0.99,
        seed: int = 0,
        fields: dict | None = None,
        environment: dict | None = None,
        results: dict | None = None,
        rows: list | None = None,
        config: str = "lenet5_mnist",
    ) -> Path:
        made = files[config].copy_and_resolve_references()
        for field, value in {"dataset.data_dir": "/home/someone/tfds", "seed": seed, **(fields or {})}.items():
            set_field(made, field, value)
        test = {"loss": 0.04, "accuracy": accuracy, "top5": 0.999, "num_examples": 10_000}
        found = {
            "model": made.model.name,
            "dataset": made.dataset.name,
            "parameters": 61_706,
            "steps": 20,
            "epochs": 12.0,
            "train_seconds": 60.0 + 10 * seed,
            "test": test,
            "skipped": {"images": 0, "paths": []},
            "seed": seed,
            "stopped_early": False,
        } | (results or {})
        rows = rows or [
            {"step": 10, "epoch": 6.0, "loss": 0.2, "accuracy": 0.9, "examples_per_second": 9.5} | TRAINED,
            {"step": 10, "epoch": 6.0, "split": "test", **test, "accuracy": accuracy - 0.01},
            {"step": 20, "epoch": 12.0, "loss": 0.1, "accuracy": 0.95, "examples_per_second": 9.5} | TRAINED,
            {"step": 20, "epoch": 12.0, "split": "test", **test},
        ]
        folder = tmp_path / "runs" / f"{config}-{seed}"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "config.json").write_text(to_json(made))
        (folder / "environment.json").write_text(json.dumps(ENVIRONMENT | (environment or {})))
        (folder / "metrics.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
        (folder / "results.json").write_text(json.dumps(found))
        return folder

    return make
