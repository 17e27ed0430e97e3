"""Measures how fast the parts of an experiment are on this machine."""

import json
import sys

from absl import flags
from ml_collections import config_flags

from cnn_research.commands import experiments, launch
from cnn_research.errors import UserError, suggest

_WHAT = ("step", "inference", "startup", "loop", "data")
_STEPS = {"step": "training step", "inference": "evaluation of a batch"}
_DATA = {
    "read": "read the files, 1 thread",
    "decode_limit": "Pillow's bare decoding, 1 thread",
    "source": "read, decode and convert, 1 thread",
    "pillow_limit": "Pillow's decoding and resizing alone, {workers} threads",
    "host_1_thread": "all of the host's work, 1 thread",
    "feed": "the feed, {workers} workers",
    "transfer": "copy to the devices",
    "augment": "augment on the devices",
    "together": "all together, without a network",
}


def run() -> None:
    """Runs the command."""
    config_flags.DEFINE_config_file("config", None, "Name or file of the experiment.", lock_config=True)
    flags.DEFINE_integer("repeats", 10, "How often everything is measured, in turn.", lower_bound=1)
    flags.DEFINE_float("seconds", 1.0, "data: how long each measurement takes.", lower_bound=0.01)
    flags.DEFINE_integer("steps", 50, "loop: how many steps at a time.", lower_bound=1)
    flags.DEFINE_string("against", "", "step, inference: torch, to measure the same in plain PyTorch, in turn.")
    flags.DEFINE_string("python", sys.executable, "against: a Python that has torch, and torchvision for its networks.")
    flags.DEFINE_bool("json", False, "JSON instead of a table.")
    launch.run(main, required=("config",), arguments=1)


def main(what: str = "") -> None:
    """Measures and prints a table: `step` and `inference`, how fast the compiled steps are; `startup`, what passes
    before the first of them; `loop`, what training costs beyond them; `data`, images a second of every stage."""
    given = flags.FLAGS
    if what not in _WHAT:
        raise UserError(f"benchmark what? {what!r} is not one of {', '.join(_WHAT)}.{suggest(what, _WHAT)}")
    if given.against not in ("", "torch") or (given.against and what not in _STEPS):
        raise UserError(f"--against={given.against}: there is torch, for {' and '.join(_STEPS)}")
    # After the flags have been looked at: it takes a second.
    from cnn_research.training import benchmark, benchmark_step, parallel

    config = launch.given_config()
    parallel.initialise(config.compilation_cache)
    rival = [given.python, str(experiments.folder("rivals") / "pytorch.py")] if given.against else []
    if what == "step":
        found = benchmark_step.measure_step(config, given.repeats, rival)
        lines = _step_table(found, _STEPS[what])
    elif what == "inference":
        found = benchmark_step.measure_inference(config, given.repeats, rival)
        lines = _step_table(found, _STEPS[what])
    elif what == "startup":
        found = benchmark_step.measure_startup(config, given.repeats)
        lines = _startup_table(found)
    elif what == "data":
        found = benchmark.measure_data(config, given.repeats, given.seconds)
        lines = _data_table(found)
    else:
        found = benchmark.measure_loop(config, given.repeats, given.steps)
        lines = [_times(name, found[key]) for name, key in (("bare step", "step_ms"), ("the whole loop", "loop_ms"))]
        median, least, most = (100 * found["overhead"][which] for which in ("median", "least", "most"))
        lines.append(
            f"overhead of the loop: {median:.1f} % ({least:.1f} to {most:.1f}), {found['steps']} steps at a time"
        )
    print(json.dumps(found, indent=2) if given.json else "\n".join(lines))


def _times(name: str, found: dict) -> str:
    return f"{name}: {found['median']:.3f} ms a step ({found['least']:.3f} to {found['most']:.3f})"


def _step_table(found: dict, name: str) -> list[str]:
    memory, peak = found["memory_bytes"], found["fraction_of_peak"]
    lines = [
        f"{found['devices']} x {found['device']}, {found['precision']}, batches of {found['batch_size']}, "
        f"jax {found['jax']}; median (least to most), {found['steps']} steps at a time",
        f"traced in {found['trace_seconds']:.2f} s, compiled in {found['compile_seconds']:.2f} s",
        _times(name, found["step_ms"]),
        f"{found['images_per_second']:,.0f} images/s, {found['flops_per_image'] / 1e9:.3f} GFLOP an image, "
        f"{found['tflops']:.3f} TFLOP/s" + (f", {peak:.1%} of the devices' peak" if peak else ""),
    ]
    if memory:
        lines.append(f"memory of a device: {memory / 1e9:.2f} GB")
    if "rival" in found:
        rival, ratio = found["rival"], found["ratio"]
        lines.append(_times(f"PyTorch {rival['torch']} on {rival['device']}", found["rival_ms"]))
        lines.append(
            f"ratio: {ratio['median']:.3f} ({ratio['least']:.3f} to {ratio['most']:.3f}); below 1, ours is faster"
        )
    return lines


def _startup_table(found: dict) -> list[str]:
    lines = ["seconds from the start of a process to the end of its first step: median (least to most)"]
    for which, about in (("cold", "nothing compiled before"), ("warm", "with the compilation cache")):
        lines.append(f"{which}, {about}:")
        for stage, t in found[which].items():
            lines.append(f"  {stage:<7} {t['median']:>6.2f}  ({t['least']:.2f} to {t['most']:.2f})")
    return lines


def _data_table(found: dict) -> list[str]:
    lines = [
        f"{found['feed']} feed, batches of {found['batch_size']}, {found['devices']} device(s), {found['cores']} cores;"
        " images a second: median (least to most)"
    ]
    for name, rate in found["rates"].items():
        label = _DATA[name].format(workers=found["workers"])
        lines.append(f"  {label:<51} {rate['median']:>12,.0f}  ({rate['least']:,.0f} to {rate['most']:,.0f})")
    return lines
