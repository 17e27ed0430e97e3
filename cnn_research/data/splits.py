"""Splits of a dataset and parts of them: "train", "train[:90%]", "test[-500:]"."""

import operator
import re

from cnn_research.errors import UserError, suggest

_SPLIT = re.compile(r"(?P<name>[\w-]+)(?P<range>\[(?P<first>[^:\[\]]*):(?P<last>[^:\[\]]*)\])?")
_BOUND = re.compile(r"-?\d+|-?\d+(\.\d+)?%|")


def parse_split(text: str) -> tuple[str, str, str]:
    """Splits "train[10%:90%]" into ("train", "10%", "90%"); a bound that isn't given is "".

    The syntax is that of TFDS, without its sums ("train+test") and shards.

    Raises:
      UserError: if the text doesn't follow the syntax.
    """
    match = _SPLIT.fullmatch(text)
    first, last = (match["first"] or "", match["last"] or "") if match else ("", "")
    bounds = [bound for bound in (first, last) if bound]
    # TFDS reads "[10%:500]" as percentages on both sides, which is hardly what anyone means.
    mixed = len({bound.endswith("%") for bound in bounds}) == 2
    if not match or not all(_BOUND.fullmatch(bound) for bound in bounds) or mixed:
        raise UserError(
            f"Can't read the split {text!r}: write a name and at most one range, in percent or in examples, "
            "such as 'train', 'train[:90%]', 'train[90%:]', 'train[100:200]' or 'train[-500:]'."
        )
    return match["name"], first, last


def split_range(text: str, first: str, last: str, num_examples: int) -> tuple[int, int]:
    """Returns the range [start, stop) of examples that the bounds of a sub-split stand for.

    Args:
      text: the whole split, for messages.
      first: lower bound: "", "100", "-500", "10%" or "-10%"; negative ones count from the end.
      last: upper bound, likewise.
      num_examples: of the whole split.

    Raises:
      UserError: if a bound reaches beyond the split.
    """

    def position(bound: str, default: int) -> int:
        if not bound:
            return default
        if bound.endswith("%"):
            # The rounding of TFDS ("closest"): Python's, halves to even.
            offset = round(float(bound[:-1]) * num_examples / 100)
        else:
            offset = int(bound)
        if abs(offset) > num_examples:
            raise UserError(f"The split {text!r} reaches beyond the {num_examples} examples that it is a part of.")
        return num_examples + offset if bound.startswith("-") else offset

    return position(first, 0), position(last, num_examples)


def check_split(name: str, split: str, splits: list[str]) -> None:
    """Raises UserError if a dataset has no such split."""
    if split not in splits:
        raise UserError(f"Unknown split {split!r} of {name!r}: it has {', '.join(splits)}.{suggest(split, splits)}")


def checked(index: int, length: int) -> int:
    """Returns `index` as a Python int. Raises IndexError out of [0, length), which also ends a plain `for` loop."""
    index = operator.index(index)
    if not 0 <= index < length:
        raise IndexError(f"Example {index} of a source with {length} examples.")
    return index
