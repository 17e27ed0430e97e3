"""The short ones among the commands of README.md and docs/ really run.

They run in a folder that looks like the checkout, with what they take for granted: images, and a run on CIFAR-10.
Experiments run as `:smoke`; what a page changes of them on the command line is changed here, too.
"""

import re
import shlex

import pytest
from markdown_for_tests import ROOT, Block, blocks, commands
from PIL import Image
from place_for_tests import Place

from cnn_research.data.shapes import CLASSES, render

pytestmark = pytest.mark.docs

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
# Parts of commands that don't run here, and why.
NOT_RUN = {
    "make ": "makes an environment; .ci/run runs these targets",
    "pip install": "changes the environment",
    "prepare.py": "downloads; tests/data/test_prepare.py",
    "experiments/tpu/": "needs Google Cloud; tests/test_tpu.py runs them against a stand-in for gcloud",
    "--coordinator_address": "several hosts; tests/end_to_end/test_hosts.py",
    "--config=...": "whatever the reader wants",
    "--against=torch": "needs PyTorch; tests/parity",
    "pytorch_mnist.py": "needs PyTorch and MNIST; tests/parity",
    "finetune_resnet50.py": "needs a file of torchvision's; tests/end_to_end/test_fine_tuning.py",
    "densenet121_imagenet": "compiles for a minute; tests/end_to_end/test_configs.py",
    "resnet18_cifar10.py": "compiles for half a minute; tests/end_to_end/test_configs.py",
    "benchmark.py startup": "starts several processes with nothing compiled; tests/end_to_end/test_benchmark.py",
    "benchmark.py loop": "hundreds of steps; tests/end_to_end/test_benchmark.py",
    "report.py --workdir=runs/lenet5_digits": "takes a dozen seconds; the report of another run is made",
}
# The Python of pages that needs what isn't here.
PYTHON_NOT_RUN = {"read_state_dict": "a file of torchvision's; tests/parity", "mnist.npz": "MNIST"}


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
        Image.fromarray(render(7, 32, "cross")).save(folder / name)
    place = Place(folder)
    train = "python experiments/train.py --config=experiments/configs/convnet_cifar10.py:smoke"
    place.run(f"{train} --workdir=runs/convnet_cifar10 --config.dataset.name=shapes:32")
    return place


def shortened(command: str) -> str:
    """The command, made short: two steps, one measurement, no runs of a sweep."""
    config = r"(--(?:config|augment)=(?:experiments/configs/\w+\.py|\w+))(?![:\w./])"
    command = re.sub(config, r"\1:smoke", command)
    if "experiments/sweep.py" in command and "--dry_run" not in command:
        command += " --dry_run"
    return command + " --repeats=1 --seconds=0.1" * ("experiments/benchmark.py" in command)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_page(place, page):
    found = blocks(page)
    for block, following in zip(found, [*found[1:], Block("", "", "")], strict=False):
        shown = following.text if following.language in ("text", "pytb") else ""
        mistake = following.language == "pytb"
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
