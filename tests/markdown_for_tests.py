"""What README.md and docs/ say in code: fenced blocks, and the commands in them."""

import re
import shlex
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
_FENCE = re.compile(
    r'^```(?P<language>\w*)(?: title="(?P<title>[^"]*)")?\n(?P<text>.*?)^```$', re.MULTILINE | re.DOTALL
)
_INLINE = re.compile(r"`((?:python experiments/|make [a-z]|pip install )[^`\n]*)`")
# What a line of a block without a language begins with, if it is a command and not the output of one.
_COMMAND = re.compile(r"(\w+=\S* )*(python experiments/|make |pip |cp |experiments/\S+\.sh|cnn-research )")


class Block(NamedTuple):
    """A fenced block."""

    language: str
    title: str  # the file that it stands for
    text: str


def blocks(page: Path) -> list[Block]:
    """The fenced blocks of a page, in order."""
    return [
        Block(match["language"], match["title"] or "", match["text"]) for match in _FENCE.finditer(page.read_text())
    ]


def commands(block: Block) -> list[str]:
    """The command lines of a block of shell or of no language, without comments."""
    if block.language not in ("", "bash"):
        return []
    lines = [shlex.join(words) for words in map(_words, block.text.replace("\\\n", " ").splitlines()) if words]
    return [line for line in lines if block.language or _COMMAND.match(line)]


def inline_commands(page: Path) -> list[str]:
    """The commands that stand within sentences."""
    return [shlex.join(_words(text)) for text in _INLINE.findall(_FENCE.sub("", page.read_text()))]


def _words(line: str) -> list[str]:
    try:
        return shlex.split(line, comments=True)
    except ValueError:  # an apostrophe: this is no command but the output of one
        return []
