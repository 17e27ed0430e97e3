"""What a run would cost."""

import jax
import pytest
from configs_for_tests import changed

from cnn_research.commands import train
from cnn_research.models import registry
from cnn_research.models.layer_table import layer_table
from cnn_research.training import parallel
from cnn_research.training.preview import preview


@pytest.fixture(scope="module")
def config():
    return changed(
        model__name="convnet", model__filters=(4,), model__dense=(), dataset__name="shapes:16", batch_size=64,
        dataset__train_split="train[:160]", dataset__eval_split="test[:48]", eval_batch_size=16, duration="10ep",
        eval_every="2ep", dataset__cache="",
    )  # fmt: skip


@pytest.mark.parametrize("feed", ["resident", "streaming"])
def test_preview(config, feed, monkeypatch):
    monkeypatch.setitem(parallel.PEAK_FLOPS, jax.devices()[0].device_kind, 1e9)
    config.dataset.feed = feed
    cost = preview(config)
    table = layer_table(registry.create_model("convnet", 4, filters=(4,), dense=()), (16, 16, 3))
    assert (cost["model"], cost["parameters"], cost["devices"]) == ("convnet", table.parameters, 8)
    assert (cost["steps"], cost["epochs"], cost["evaluations"]) == (25, 10, 5)
    # 2 operations for each multiply-add, forward once and backward twice.
    assert cost["flops_per_step"] == 64 * 2 * 3 * table.macs
    # XLA leaves the gradient with respect to the images out, and counts the other operations too.
    assert 0.4 < cost["compiled_flops_per_step"] / cost["flops_per_step"] < 3
    images = (160 if feed == "resident" else 64 / 8) * 16 * 16 * 3  # bytes on each device
    assert images < cost["memory_bytes"] < images + 2e6
    assert cost["checkpoint_bytes"] > 2 * 4 * table.parameters, "parameters and momentum"
    assert cost["examples_per_second"] == pytest.approx(64 / cost["step_seconds"])
    expected = 25 * cost["step_seconds"] + 5 * cost["evaluation_seconds"]
    assert cost["total_seconds"] == pytest.approx(expected)
    assert cost["device_seconds"] == pytest.approx(8 * expected)
    assert cost["steps_per_call"] == 1
    assert cost["fraction_of_peak"] == pytest.approx(cost["flops_per_step"] / cost["step_seconds"] / 8e9)


@pytest.mark.parametrize(("on_cpu", "expected"), [(True, ""), (False, ", or less: the run makes 3 steps a call")])
def test_says_that_steps_of_one_call_are_timed_one_by_one(config, on_cpu, expected, monkeypatch, capsys):
    monkeypatch.setattr(parallel, "on_cpu", lambda: on_cpu)
    config = config.copy_and_resolve_references()
    config.update({"steps_per_call": 3, "compilation_cache": ""})
    config.dataset.feed = "resident"
    train._preview(config)
    (line,) = (line for line in capsys.readouterr().out.splitlines() if line.split()[:1] == ["time"])
    assert line.partition(" of one device")[2].partition(", here")[0] == expected
