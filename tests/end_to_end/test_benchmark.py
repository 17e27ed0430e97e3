"""experiments/benchmark.py, as people run it. What it measures is the machine's; here it is only that it measures."""

import json

import pytest

ALWAYS = {"source", "feed", "transfer", "augment", "together"}
QUICK = ["--repeats=2", "--seconds=0.05"]


def check(rates, names):
    assert rates.keys() == names
    for name, rate in rates.items():
        assert 0 < rate["least"] <= rate["median"] <= rate["most"], name


def test_data_of_a_resident_feed(script):
    out, _ = script.run("benchmark", "data", *script.tiny, *QUICK, "--json", devices=2)
    found = json.loads(out)
    assert (found["feed"], found["devices"], found["batch_size"]) == ("resident", 2, 32)
    check(found["rates"], ALWAYS)


@pytest.mark.parametrize("json_too", [True, False])
def test_data_of_a_streaming_feed(script, tiny_tfds, json_too):
    flags = [
        *script.tiny, *QUICK, "--config.dataset.name=tiny_digits", f"--config.dataset.data_dir={tiny_tfds}",
        "--config.dataset.feed=streaming", "--config.dataset.workers=2", "--config.dataset.image_size=20",
    ]  # fmt: skip
    out, _ = script.run("benchmark", "data", *flags, *["--json"] * json_too)
    if json_too:
        found = json.loads(out)
        assert (found["feed"], found["workers"]) == ("streaming", 2)
        check(found["rates"], ALWAYS | {"read", "decode_limit", "pillow_limit", "host_1_thread"})
    else:
        assert "streaming feed, batches of 32" in out and "the feed, 2 workers" in out


def test_loop(script):
    out, _ = script.run("benchmark", "loop", *script.tiny, "--repeats=2", "--steps=15", "--json")
    found = json.loads(out)
    assert found["steps"] == 20, "whole intervals of log_every=10st"
    for name in ("loop_ms", "step_ms", "overhead"):
        assert found[name]["least"] <= found[name]["median"] <= found[name]["most"]
    loop, step, overhead = (found[name] for name in ("loop_ms", "step_ms", "overhead"))
    assert min(step.values()) > 0
    # The ratios are of neighbours, of which there were two.
    assert loop["least"] / step["most"] - 1.001 <= overhead["least"]
    assert overhead["most"] <= loop["most"] / step["least"] - 0.999


@pytest.mark.parametrize("arguments", [[], ["date"]])
def test_what_is_not_measured(script, arguments):
    _, err = script.run("benchmark", *arguments, *script.tiny, code=2)
    assert "data" in err and err.startswith("error:") and "Traceback" not in err
