"""A folder in which the commands of the documentation run."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path


class Place:
    """A folder in which commands run, each once, with caches of its own."""

    def __init__(self, folder: Path, **environment: str):
        """In an environment like this one, with other values for some of its variables."""
        self._folder = folder
        self._said: dict[str, tuple[str, str]] = {}
        # A reader's machine has one device, not those that the tests simulate.
        ours = {name: value for name, value in os.environ.items() if name != "JAX_NUM_CPU_DEVICES"}
        self._environment = ours | {"HOME": str(folder / "home")} | environment

    def run(self, command: str, code: int = 0) -> tuple[str, str]:
        """Runs a command line, requires its exit code and returns (stdout, stderr)."""
        if command not in self._said:
            words, environment = shlex.split(command), dict(self._environment)
            while re.match(r"[A-Z_]+=", words[0]):
                name, _, environment[name] = words.pop(0).partition("=")
            ours = {"python": [sys.executable], "cnn-research": [sys.executable, "-m", "cnn_research.commands"]}
            words[:1] = ours.get(words[0], words[:1])
            result = subprocess.run(
                words,
                cwd=self._folder,
                env=environment,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=300,  # a machine may have much else to do
            )
            assert result.returncode == code, f"exit {result.returncode}: {command}\n{result.stdout}\n{result.stderr}"
            self._said[command] = result.stdout, result.stderr
        return self._said[command]
