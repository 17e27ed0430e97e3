"""`cnn-research`, as people type it. How an installed one does is in end_to_end/test_wheel.py."""

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

import cnn_research
from cnn_research.commands.__main__ import COMMANDS

ROOT = Path(__file__).parents[2]


def console(*arguments, code=0):
    command = [sys.executable, "-m", "cnn_research.commands", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == code, done.stderr
    return done.stdout, done.stderr


@pytest.mark.parametrize("arguments", [[], ["--help"], ["-h"]])
def test_lists_the_commands_with_a_line_each(arguments):
    lines = [line.split(maxsplit=1) for line in console(*arguments)[0].splitlines()]
    for name, (does, _) in COMMANDS.items():
        assert [name, does] in lines


def test_version():
    assert console("--version")[0] == f"cnn-research {cnn_research.__version__}\n"


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["trian"], "no command 'trian'. Did you mean 'train'?"),
        (["Report", "--workdir=x"], "Did you mean 'report'?"),
        (["xyz"], "There are train, evaluate, "),
        (["--config=lenet5_digits"], "There are train, evaluate, "),
        (["train.py"], "Did you mean 'train'?"),
        (["launch"], "no command 'launch'"),  # a module that is no command
    ],
)
def test_unknown_command(arguments, expected):
    out, err = console(*arguments, code=2)
    assert out == "" and err.startswith("error: ") and err.count("\n") == 1 and expected in err


@pytest.mark.parametrize(
    ("name", "flags"),
    [("train", ["--config", "--workdir", "--[no]preview"]), ("predict", ["--top", "--workdir"]), ("completion", [])],
)
def test_help_of_a_command(name, flags):
    out, _ = console(name, "--help")
    does, example = COMMANDS[name]
    assert out.splitlines()[0] == f"cnn-research {name} {does}: cnn-research {name} {example}"
    for flag in flags:
        assert f"\n  {flag}: " in out


def test_flags_reach_the_command():
    assert "C1" in console("describe", "lenet5", "--image_size=32")[0]
    _, err = console("describe", "lenet5", "--image_sise=32", code=2)
    assert "image_sise" in err and "Traceback" not in err


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize(
    "arguments",
    [["describe", "--list"], ["describe", "googlenet"], ["train", "--help"]],
    ids=["what fits into a buffer", "more than that", "help"],
)
def test_a_command_whose_output_nobody_reads_any_more_ends_quietly(arguments, unbuffered):
    """As by `| head`; a shell says 128 + SIGPIPE of programs that end by it."""
    reading, writing = os.pipe()
    os.close(reading)
    command = [sys.executable, "-m", "cnn_research.commands", *arguments]
    environment = os.environ | {"PYTHONUNBUFFERED": unbuffered}
    done = subprocess.run(command, stdout=writing, stderr=subprocess.PIPE, text=True, cwd=ROOT, env=environment)
    os.close(writing)
    assert (done.returncode, done.stderr) == (141, "")


def test_a_command_without_an_output():
    command = f"{shlex.quote(sys.executable)} -m cnn_research.commands describe lenet5 >&-"
    done = subprocess.run(["bash", "-c", command], stderr=subprocess.PIPE, text=True, cwd=ROOT)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("name", ["preview", "config.freeze_batch_stats"])
def test_a_flag_that_is_on_or_off(name):
    _, err = console("train", "--config=lenet5_digits", f"--{name}=yes", code=2)
    assert err == f"error: flag --{name}=yes: must be true or false\n"
