"""experiments/benchmark.py, as people run it. What it measures is the machine's; here it is only that it measures."""

import json
import sys

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
    # The ratios are of neighbours, of which there were two; each number is rounded.
    assert 0.99 * loop["least"] / step["most"] <= 1 + overhead["least"]
    assert 1 + overhead["most"] <= 1.01 * loop["most"] / step["least"]


@pytest.mark.parametrize("what", ["step", "inference"])
def test_steps(script, what):
    out, _ = script.run("benchmark", what, *script.tiny, "--repeats=2", "--json", devices=2)
    found = json.loads(out)
    assert found["devices"] == (2 if what == "step" else 1)
    step = found["step_ms"]
    assert 0 < step["least"] <= step["median"] <= step["most"]
    assert found["images_per_second"] == pytest.approx(1e3 * found["batch_size"] / step["median"], rel=0.01)
    assert found["trace_seconds"] > 0 and found["compile_seconds"] > 0 and found["memory_bytes"] > 1e5


# Speaks the protocol of experiments/rivals/pytorch.py, which is run itself in tests/parity.
RIVAL = """
import json, sys
spec = json.loads(sys.stdin.readline())
assert spec["train"] and spec["network"] == "convnet" and spec["batch_size"] == 32, spec
print(json.dumps({"torch": "0", "device": "none"}), flush=True)
for line in sys.stdin:
    print(0.5 if int(line) > 0 else None, flush=True)
"""


def test_against_a_rival(script, tmp_path):
    python = tmp_path / "python"
    python.write_text(f"#!{sys.executable}\n{RIVAL}")
    python.chmod(0o755)
    flags = ["--against=torch", f"--python={python}", "--repeats=2"]
    found = json.loads(script.run("benchmark", "step", *script.tiny, *flags, "--json")[0])
    assert found["rival_ms"] == {"median": 500, "least": 500, "most": 500}
    assert found["ratio"]["median"] == pytest.approx(found["step_ms"]["median"] / 500, abs=0.001)


def test_startup(script):
    found = json.loads(script.run("benchmark", "startup", *script.tiny, "--repeats=1", "--json")[0])
    for which in ("cold", "warm"):
        seconds = {stage: spread["median"] for stage, spread in found[which].items()}
        assert seconds.keys() == {"import", "data", "init", "step", "all"}
        assert min(seconds.values()) > 0
        assert seconds.pop("all") == pytest.approx(sum(seconds.values()), abs=0.05)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "step, inference, startup, loop, data"),
        (["date"], "Did you mean 'data'"),
        (["step", "--against=pytorch"], "there is torch"),
        (["loop", "--against=torch"], "for step and inference"),
        (["step", "--against=torch", "--python=/bin/cat"], "ended: "),
        (["step", "--against=torch", "--python=/no/such/python"], "No such file"),
    ],
)
def test_what_is_not_measured(script, arguments, says):
    _, err = script.run("benchmark", *arguments, *script.tiny, code=2)
    assert says in err and err.splitlines()[-1].startswith("error:") and "Traceback" not in err
