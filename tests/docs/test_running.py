"""The short ones among the commands of README.md and docs/ really run, and so do the examples of docs/how_to/.

They run in a folder that looks like the checkout, with what they take for granted: images, and a run on CIFAR-10.
Experiments run as `:smoke`; what a page changes of them on the command line is changed here, too.
"""

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from markdown_for_tests import ROOT, Block, blocks, commands
from PIL import Image

from cnn_research.data.shapes import CLASSES, render

pytestmark = pytest.mark.docs

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
HOW_TO = sorted((ROOT / "docs" / "how_to").glob("*.md"))
# Parts of commands that don't run here, and why.
NOT_RUN = {
    "make ": "makes an environment; .ci/run runs these targets",
    "pip install": "changes the environment",
    "prepare.py": "downloads; tests/data/test_prepare.py",
    "experiments/tpu/": "needs Google Cloud; tests/test_tpu.py runs them against a stand-in for gcloud",
    "--coordinator_address": "several hosts; tests/end_to_end/test_hosts.py",
    "--config=...": "whatever the reader wants",
    "--against=torch": "needs PyTorch; tests/parity",
    "finetune_resnet50.py": "needs a file of torchvision's; tests/end_to_end/test_fine_tuning.py",
    "densenet121_imagenet.py": "compiles for a minute; tests/end_to_end/test_configs.py",
    "resnet18_cifar10.py": "compiles for half a minute; tests/end_to_end/test_configs.py",
    "startup": "starts several processes with nothing compiled; tests/end_to_end/test_benchmark.py",
}
# The Python of pages that needs what isn't here.
PYTHON_NOT_RUN = {"read_state_dict": "a file of torchvision's; tests/parity"}


class Place:
    """A folder in which commands run, each once, with caches of its own."""

    def __init__(self, folder: Path):
        self.folder = folder
        self._said: dict[str, tuple[str, str]] = {}
        simulated = ("JAX_NUM_CPU_DEVICES", "PYTHONPATH")
        kept = {name: value for name, value in os.environ.items() if name not in simulated}
        self._environment = kept | {"HOME": str(folder / "home"), "PYTHONPATH": os.environ.get("PYTHONPATH", "")}

    def run(self, command: str, code: int = 0) -> tuple[str, str]:
        """Runs a command line, requires its exit code and returns (stdout, stderr)."""
        if command not in self._said:
            words, environment = shlex.split(command), dict(self._environment)
            while re.match(r"[A-Z_]+=", words[0]):
                name, _, environment[name] = words.pop(0).partition("=")
            words[0] = sys.executable if words[0] == "python" else words[0]
            result = subprocess.run(
                words,
                cwd=self.folder,
                env=environment,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=180,
            )
            assert result.returncode == code, f"exit {result.returncode}: {command}\n{result.stdout}\n{result.stderr}"
            self._said[command] = result.stdout, result.stderr
        return self._said[command]


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Place:
    folder = tmp_path_factory.mktemp("docs")
    for name in ("experiments", "docs", "notebooks", "tests", "pyproject.toml"):
        (folder / name).symlink_to(ROOT / name)
    for number in range(160):
        shape = CLASSES[number % 4]
        path = folder / "path" / "to" / "images" / shape / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(render(number, 32, shape)).save(path)
    (folder / "images").mkdir()
    for name in ("frog.png", "bird.png", "images/cat.png"):
        Image.fromarray(render(7, 16, "cross")).save(folder / name)
    place = Place(folder)
    place.run(
        "python experiments/train.py --config=experiments/configs/convnet_cifar10.py:smoke --workdir=runs/convnet_cifar10"
    )
    return place


def shortened(command: str) -> str:
    """The command, made short: two steps, one measurement, no runs of a sweep."""
    command = re.sub(r"(--(?:config|augment)=experiments/configs/\w+\.py)(?!:)", r"\1:smoke", command)
    if "experiments/sweep.py" in command and "--dry_run" not in command:
        command += " --dry_run"
    return command + " --repeats=1 --seconds=0.1" * ("experiments/benchmark.py" in command)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_page(place, page):
    found = blocks(page)
    for block, following in zip(found, [*found[1:], Block("", "", "")], strict=True):
        shown = following.text if following.language == "text" else ""
        mistake = shown.startswith("error: ")
        for command in commands(block):
            if any(part in command for part in NOT_RUN):
                continue
            short = command if mistake else shortened(command)
            out, err = place.run(short, code=2 if mistake else 0)
            if mistake:
                told = [line for line in err.splitlines() if line.startswith("error: ")]
                assert re.fullmatch(pattern(shown.strip()), told[0]) and len(told) == 1, f"{command}\n{err}"
            elif short == command:  # what it says depends on nothing, and so the page can show it
                for line in shown.splitlines():
                    assert re.search(f"^{pattern(line)}$", out, re.MULTILINE), f"{command} doesn't say {line!r}:\n{out}"
        if block.language == "python" and not any(part in block.text for part in PYTHON_NOT_RUN):
            place.run(shlex.join(["python", "-c", block.text]))


def pattern(text: str) -> str:
    """A regular expression for what a page shows, where ... stands for anything."""
    return re.escape(text).replace(r"\.\.\.", ".*")


def test_what_does_not_run_is_there():
    """A reason without its command would hide the next one like it."""
    said = [command for page in PAGES for block in blocks(page) for command in commands(block)]
    for part in NOT_RUN:
        assert any(part in command for command in said), part
    text = "".join(block.text for page in PAGES for block in blocks(page) if block.language == "python")
    assert all(part in text for part in PYTHON_NOT_RUN)


# ----------------------------------------------------------------------------------------------------- how to


@pytest.mark.parametrize("page", HOW_TO, ids=lambda page: page.stem)
def test_how_to(page, tmp_path):
    """Applies a page to a copy of the code, block by block."""
    for name in ("cnn_research", "experiments", "tests"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md"):
        shutil.copy(ROOT / name, tmp_path)
    place, written = Place(tmp_path), []
    place._environment["PYTHONPATH"] = str(tmp_path)
    for block in blocks(page):
        target = tmp_path / block.title
        if block.language == "python":
            target.write_text(block.text)
            written.append(block.title)
        elif block.language == "diff":
            target.write_text(edited(target.read_text(), block))
        for command in commands(block):
            place.run(command)
    assert written
    place.run(shlex.join(["python", "-m", "ruff", "check", *written]))
    place.run(shlex.join(["python", "-m", "ruff", "format", "--check", *written]))


def edited(text: str, block: Block) -> str:
    """Applies a diff. Its old lines must be there once, however they are wrapped."""
    lines = block.text.splitlines()
    old, new = (" ".join(line[1:].strip() for line in lines if line[0] in kinds) for kinds in (" -", " +"))
    place = re.compile(r"\s+".join(map(re.escape, old.split())))
    assert len(place.findall(text)) == 1, f"{block.title}: {old!r} is there {len(place.findall(text))} times"
    if all(line[0] in "-+" for line in lines):  # words within a line
        return place.sub(lambda _: new, text)
    match = place.search(text)
    start = text.rindex("\n", 0, match.start()) + 1
    added = "".join(f"{line[1:]}\n" for line in lines if line[0] in " +")
    return text[:start] + added + text[text.index("\n", match.end()) + 1 :]
