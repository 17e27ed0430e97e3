"""Measures how fast the parts of an experiment are on this machine."""

import json

from absl import flags
from ml_collections import config_flags

from cnn_research.commands import launch
from cnn_research.errors import UserError, suggest

_WHAT = ("data", "loop")
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
    config_flags.DEFINE_config_file("config", None, "File of the experiment.", lock_config=True)
    flags.DEFINE_integer("repeats", 10, "How often everything is measured, in turn.", lower_bound=1)
    flags.DEFINE_float("seconds", 1.0, "data: how long each measurement takes.", lower_bound=0.01)
    flags.DEFINE_integer("steps", 50, "loop: how many steps at a time.", lower_bound=1)
    flags.DEFINE_bool("json", False, "JSON instead of a table.")
    launch.run(main, required=("config",), arguments=1)


def main(what: str = "") -> None:
    """Measures and prints a table: `data`, images a second of every stage; `loop`, what it costs beyond its steps."""
    if what not in _WHAT:
        raise UserError(f"benchmark what? {what!r} is not one of {', '.join(_WHAT)}.{suggest(what, _WHAT)}")
    from cnn_research.training import benchmark, parallel  # after the flags have been looked at: it takes a second

    config, given = launch.given_config(), flags.FLAGS
    parallel.initialise(config.compilation_cache)
    if what == "data":
        found = benchmark.measure_data(config, given.repeats, given.seconds)
        lines = _data_table(found)
    else:
        found = benchmark.measure_loop(config, given.repeats, given.steps)
        lines = [
            f"{name}: {found[key]['median']:.3f} ms a step ({found[key]['least']:.3f} to {found[key]['most']:.3f})"
            for name, key in (("bare compiled step", "step_ms"), ("the whole loop", "loop_ms"))
        ]
        median, least, most = (100 * found["overhead"][which] for which in ("median", "least", "most"))
        lines.append(
            f"overhead of the loop: {median:.1f} % ({least:.1f} to {most:.1f}), {found['steps']} steps at a time"
        )
    print(json.dumps(found, indent=2) if given.json else "\n".join(lines))


def _data_table(found: dict) -> list[str]:
    lines = [
        f"{found['feed']} feed, batches of {found['batch_size']}, {found['devices']} device(s), {found['cores']} cores;"
        " images a second: median (least to most)"
    ]
    for name, rate in found["rates"].items():
        label = _DATA[name].format(workers=found["workers"])
        lines.append(f"  {label:<51} {rate['median']:>12,.0f}  ({rate['least']:,.0f} to {rate['most']:,.0f})")
    return lines
