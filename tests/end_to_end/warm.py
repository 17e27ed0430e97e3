"""A Python that has imported what the scripts import, and runs each as a fork of itself: to import takes two seconds.

Reads orders from stdin, one JSON object a line, and answers each with the exit code of the script, which is otherwise a
process of its own: own flags, environment, files and interpreter exit. Only its modules were imported before, so of
JAX's variables only those count that are read again below.
"""

import json
import os
import runpy
import sys

import jax

# Not the commands: each defines its flags when it is imported, and two may define the same.
import cnn_research.commands.launch
import cnn_research.inference
import cnn_research.report.run
import cnn_research.training.loop
import cnn_research.training.preview  # noqa: F401

# What JAX reads from the environment when it is imported, and tests set for each script.
JAX_OPTIONS = ("jax_platforms", "jax_num_cpu_devices")


def run(order: dict) -> None:
    """Becomes the script: {"argv", "environment", "out", "err"}, the last two being paths."""
    os.environ.clear()
    os.environ.update(order["environment"])
    for option in JAX_OPTIONS:
        if (value := os.environ.get(option.upper())) is not None:
            jax.config.update(option, int(value) if value.isdigit() else value)
    for path, flags, number in (
        (os.devnull, os.O_RDONLY, 0),
        (order["out"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 1),
        (order["err"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 2),
    ):
        os.dup2(os.open(path, flags), number)
    sys.argv[:] = order["argv"]
    sys.orig_argv[:] = [sys.executable, *order["argv"]]
    sys.path[0] = os.path.dirname(sys.argv[0])
    runpy.run_path(sys.argv[0], run_name="__main__")


def main() -> None:
    assert "jax" in sys.modules and not jax._src.xla_bridge._backends, "threads of a backend would not survive a fork"
    while line := sys.stdin.readline():
        child = os.fork()
        if not child:
            return run(json.loads(line))
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)


if __name__ == "__main__":
    main()
