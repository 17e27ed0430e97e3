"""Completion as it is typed: in a shell on a terminal, whose `cnn-research` says what it was called with."""

import os
import pty
import select
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from absl import flags

from cnn_research import config as configs
from cnn_research.commands import completion, launch
from cnn_research.commands.__main__ import COMMANDS

ROOT = Path(__file__).parents[2]
START = {"bash": ["bash", "--norc", "--noprofile", "-i"], "zsh": ["zsh", "-f", "-i"]}
# Typed up to a tab -> the words that the command gets, less the slash of a folder, which zsh takes back.
LINES = {
    "tr": ["train"],
    "  sw": ["sweep"],
    "pre": ["pre"],  # predict, prepare
    "prep": ["prepare"],
    "completion z": ["completion", "zsh"],
    "train --prev": ["train", "--preview"],
    "train --workd": ["train", "--workdir="],
    "predict --checkp": ["predict", "--checkpoint="],  # of the flags that it shares with export
    "evaluate --coord": ["evaluate", "--coordinator_address="],
    "train --config=lenet5_d": ["train", "--config=lenet5_digits"],
    "describe --augment=lenet5_d": ["describe", "--augment=lenet5_digits"],
    "train --config.opt": ["train", "--config.optimizer."],
    "train --config=lenet5_digits --config.optimizer.learning_rate_": [
        *("train", "--config=lenet5_digits", "--config.optimizer.learning_rate_multipliers="),
    ],
    "train --config.optimizer.name=mu": ["train", "--config.optimizer.name=muon"],
    "train --config=fol": ["train", "--config=folder"],  # files, where no name fits
    "train --workdir=folder/on": ["train", "--workdir=folder/one.txt"],
    "predict fol": ["predict", "folder"],
    "report --config": ["report", "--config"],  # has none
    "evaluate --split=train --check": ["evaluate", "--split=train", "--checkpoint="],
}


def read_until(terminal, text, seconds=20):
    said, deadline = "", time.monotonic() + seconds
    while text not in said:
        ready, _, _ = select.select([terminal], [], [], max(0, deadline - time.monotonic()))
        assert ready, f"no {text!r} in {said!r}"
        said += os.read(terminal, 65536).decode()
    return said


@pytest.fixture(scope="module", params=START)
def typed(request, tmp_path_factory):
    """Returns what types a line up to a tab, then return, and says which words the command got."""
    shell = request.param
    if not shutil.which(shell):
        pytest.skip(f"there is no {shell} here")
    folder = tmp_path_factory.mktemp(shell)
    (folder / "folder").mkdir()
    (folder / "folder" / "one.txt").touch()
    command = [sys.executable, "-m", "cnn_research.commands", "completion", shell]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "TERM": "dumb", "HOME": str(folder), "ZDOTDIR": str(folder)}
    script = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout
    (folder / "script").write_text(script)
    # A function of the name may stand for the program.
    (folder / "setup").write_text(
        "PS1='ready: '\neval \"$(cat script)\"\ncnn-research() { printf '%s\\n' \"${@%/}\" >got; echo END; }\n"
    )
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        START[shell], cwd=folder, env=environment, stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True
    )
    os.close(theirs)
    os.write(ours, b". ./setup; printf 'set %s\\n' up\r")
    read_until(ours, "set up")

    def enter(line):
        os.write(ours, f"cnn-research {line}\t\r".encode())
        read_until(ours, "END\r\n")
        return (folder / "got").read_text().splitlines()

    yield enter
    process.kill()
    process.wait()
    os.close(ours)


@pytest.mark.parametrize("line", LINES)
def test_completes(typed, line):
    assert typed(line) == LINES[line]


@pytest.mark.parametrize("command", sorted(COMMANDS.keys() - {"completion"}))
def test_words_are_the_flags(monkeypatch, command):
    """What is read off the source is what the command defines, and nothing is missing."""
    module = __import__(f"cnn_research.commands.{command}", fromlist=["run"])
    before = set(flags.FLAGS)
    monkeypatch.setattr(launch, "run", lambda *_, **__: None)
    try:
        module.run()
        defined = {f"--{name}" if flags.FLAGS[name].boolean else f"--{name}=" for name in set(flags.FLAGS) - before}
    finally:
        for name in set(flags.FLAGS) - before:
            delattr(flags.FLAGS, name)
    words = completion.words(command)
    assert {word for word in words if word.partition("=")[2] == "" and not word.startswith("--config.")} == {
        "--help",
        *defined,
    }
    fields = {word.removeprefix("--config.").partition("=")[0] for word in words if word.startswith("--config.")}
    assert fields == (set(configs.flatten(configs.base_config().to_dict())) if "--config=" in defined else set())


def test_starts_without_jax():
    """And without what takes long otherwise, for it is started with each shell."""
    heavy = "('jax', 'flax', 'numpy', 'tensorflow_datasets', 'matplotlib', 'rich')"
    for flag in ("['--help']", "['--version']", "['completion', 'bash']"):
        program = (
            f"import sys; sys.argv = ['cnn-research', *{flag}]\n"
            "from cnn_research.commands.__main__ import main\nmain()\n"
            f"print([name for name in {heavy} if name in sys.modules])"
        )
        out = subprocess.run(
            [sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT
        ).stdout
        assert out.splitlines()[-1] == "[]"


@pytest.mark.parametrize(("shell", "expected"), [("zhs", "Did you mean 'zsh'?"), ("fish", "neither"), ("", "neither")])
def test_another_shell(shell, expected):
    command = [sys.executable, "-m", "cnn_research.commands", "completion", *[shell] * bool(shell)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 2 and done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: ") and expected in line
