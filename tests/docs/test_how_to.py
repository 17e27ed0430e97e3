"""The examples of docs/how_to/ are applied to a copy of the code, and their commands run."""

import re
import shlex
import shutil

import pytest
from markdown_for_tests import ROOT, Block, blocks, commands
from place_for_tests import Place

pytestmark = pytest.mark.docs

HOW_TO = sorted((ROOT / "docs" / "how_to").glob("*.md"))


@pytest.mark.parametrize("page", HOW_TO, ids=lambda page: page.stem)
def test_how_to(page, tmp_path):
    """Applies a page to a copy of the code, block by block."""
    for name in ("cnn_research", "experiments", "tests"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md"):
        shutil.copy(ROOT / name, tmp_path)
    place, written = Place(tmp_path, PYTHONPATH=str(tmp_path)), []
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
