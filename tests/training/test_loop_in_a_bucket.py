"""A run whose workdir is in an object store.

Two things are kept on the local disk here: the checkpoints' arrays, which TensorStore writes by its own driver for
gs://, and TensorBoard's file. Neither has ever been run with a real bucket by these tests.
"""

import jax
import pytest
from configs_for_tests import changed

from cnn_research.errors import UserError
from cnn_research.training import loop, parallel, pretrained, writers
from cnn_research.training import workdir as files
from cnn_research.training.checkpoints import Checkpoints, any_in


def test_train_resume_and_evaluate(bucket, tmp_path, monkeypatch):
    for module in (loop, pretrained):
        monkeypatch.setattr(module, "Checkpoints", lambda folder, *a, **k: Checkpoints(tmp_path / folder.name, *a, **k))
    monkeypatch.setattr(loop, "any_in", lambda folder: any_in(tmp_path / folder.name))
    events = writers.EventsWriter
    monkeypatch.setattr(writers, "EventsWriter", lambda prefix: events(str(tmp_path / "events")))
    monkeypatch.setitem(parallel.PEAK_FLOPS, jax.devices()[0].device_kind, 1e9)
    config = changed(
        model__name="convnet",
        model__filters=(2,),
        model__dense=(),
        duration="4st",
        batch_size=16,
        log_every="1st",
        eval_every="2st",
        checkpoint__every="2st",
        dataset__cache="",
        dataset__eval_split="test[:40]",
        dataset__test_split="test[:40]",
        schedule__name="constant",
        compilation_cache="",
    )
    loop.train(config, "gs://bucket/run")
    config.duration = "8st"
    results = loop.train(config, "gs://bucket/run")
    run = bucket / "run"
    assert sorted(path.name for path in run.iterdir()) == [
        ".lock", "config.json", "environment.json", "metrics.jsonl", "results.json",
    ]  # fmt: skip
    assert files.read_json(run / "results.json") == results and results["steps"] == 8
    written = writers.read_metrics(run / "metrics.jsonl")
    rows = [(row["step"], row["split"]) for row in written]
    assert [step for step, split in rows if split == "train"] == list(range(1, 9))
    assert [step for step, split in rows if split == "test[:40]"] == [2, 4, 6, 8]
    # An image takes 6 x (2 x 9 x 8 x 8 + 10 x 2 x 4 x 4) operations; the peak is 1e9 of each of 8 devices.
    for row in written[:1]:
        assert row["fraction_of_peak"] == pytest.approx(row["examples_per_second"] * 6 * 1472 / 8e9, abs=1e-4)
    values = loop.evaluate("gs://bucket/run")
    assert values == results["test"] | {"split": "test[:40]", "step": 8}
    config.seed = 1
    with pytest.raises(UserError, match="gs://bucket/run holds the run of another experiment"):
        loop.train(config, "gs://bucket/run")
