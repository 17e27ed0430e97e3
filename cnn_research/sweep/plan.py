"""What the runs of a sweep are: for each the fields that it sets, as texts such as the command line has them.

    grid    every combination of some values
    random  trials, each a pure function of the sweep's seed and its own number: more trials later leave the first as
            they are, and another field changes no other field's values (Bergstra & Bengio 2012)
    list    a file with one run a line

What is given together is combined: every line of the list, with every trial, with every point of the grid.
"""

import csv
import dataclasses
import hashlib
import itertools
import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from cnn_research.errors import UserError, suggest

# The kinds of random values, with what they are drawn from.
RANDOM = {
    "uniform": "uniform(0,0.5)",
    "log": "log(1e-3,1)",
    "integer": "integer(1,8)",
    "choice": "choice(relu,gelu)",
}


def expand(
    grid: Sequence[str] = (),
    random: Sequence[str] = (),
    trials: int | None = None,
    sweep_seed: int = 0,
    listed: Sequence[Mapping[str, str]] = (),
) -> list[dict[str, str]]:
    """Returns the fields that each run sets, as texts.

    Args:
        grid: such as "optimizer.learning_rate=0.01,0.1"; brackets and quotes keep together what has commas inside.
        random: such as "optimizer.learning_rate=log(1e-3,1)"; see RANDOM.
        trials: how many, where there are random fields.
        sweep_seed: of the trials.
        listed: what `read_list` gives.

    Raises:
        UserError: one line for each mistake.
    """
    problems, axes, drawn = [], {}, {}

    def attempt(parse: Callable[[str], Any], flag: str, text: str, into: dict[str, Any]) -> None:
        field, equals, value = text.partition("=")
        try:
            if not equals or not field.strip():
                raise UserError("a field and its values are needed, such as seed=0,1,2")
            field = field.strip().removeprefix("config.")
            if field in axes or field in drawn or any(field in row for row in listed):
                raise UserError(f"{field} is swept twice")
            into[field] = parse(value)
        except UserError as error:
            problems.append(f"--{flag}={text}: {error}")

    for text in grid:
        attempt(split_values, "grid", text, axes)
    for text in random:
        attempt(Distribution.parse, "random", text, drawn)
    if random and (trials is None or trials < 1):
        problems.append("--random: how many? --trials=20 draws twenty")
    if trials is not None and not random:
        problems.append("--trials: of what? --random='optimizer.learning_rate=log(1e-3,1)' says so")
    if not (grid or random or listed):
        problems.append("what is swept? --grid='seed=0,1,2', --random or --list says so")
    if problems:
        raise UserError("\n".join(problems))

    numbers = range(trials) if drawn else [0]
    samples = [{field: drawn[field].draw(field, sweep_seed, number) for field in drawn} for number in numbers]
    points = [dict(zip(axes, values, strict=True)) for values in itertools.product(*axes.values())]
    return [{**row, **sample, **point} for row in listed or [{}] for sample in samples for point in points]


def split_values(text: str) -> list[str]:
    """Splits at the commas that stand outside of brackets and quotes: "(4,8),(8,16)" -> ["(4,8)", "(8,16)"].

    Raises:
        UserError: brackets or quotes that don't match.
    """
    values, depth, quote, start = [], 0, "", 0
    for place, letter in enumerate(text):
        if quote:
            quote = "" if letter == quote else quote
        elif letter in "'\"":
            quote = letter
        elif letter in "([":
            depth += 1
        elif letter in ")]":
            depth -= 1
            if depth < 0:
                raise UserError("a bracket is closed that is not open")
        elif letter == "," and depth == 0:
            values.append(text[start:place])
            start = place + 1
    if quote or depth:
        raise UserError(f"{quote or 'a bracket'} is not closed")
    values = [value.strip() for value in [*values, text[start:]]]
    return [value[1:-1] if re.fullmatch(r"'[^']*'|\"[^\"]*\"", value) else value for value in values]


@dataclasses.dataclass(frozen=True)
class Distribution:
    """What a random field is drawn from."""

    kind: str  # of RANDOM
    values: tuple[Any, ...]  # of a choice its texts, else the two ends

    @classmethod
    def parse(cls, text: str) -> "Distribution":
        """Reads "log(1e-3,1)".

        Raises:
            UserError: another kind, or ends that are none.
        """
        match = re.fullmatch(r"\s*(\w+)\s*\((.*)\)\s*", text)
        if not match or match[1] not in RANDOM:
            near = suggest(re.match(r"\w*", text.strip())[0], RANDOM)
            raise UserError(f"not one of {', '.join(RANDOM.values())}.{near}")
        kind, values = match[1], tuple(split_values(match[2]))
        if kind == "choice":
            return cls(kind, values)
        try:
            low, high = map(int if kind == "integer" else float, values)
        except ValueError:
            number = "whole numbers" if kind == "integer" else "numbers"
            raise UserError(f"{kind} needs two {number}, such as {RANDOM[kind]}") from None
        if not (low < high and math.isfinite(high - low) and (kind != "log" or low > 0)):
            above = " and both above 0" if kind == "log" else ""
            raise UserError(f"{kind}: the first end must be below the second{above}, such as {RANDOM[kind]}")
        return cls(kind, (low, high))

    def draw(self, field: str, sweep_seed: int, trial: int) -> str:
        """Returns the text of one trial: a pure function of the arguments.

        Numbers are rounded to four digits, so that names and commands stay readable and are exactly what was run.
        """
        digest = hashlib.sha256(f"{sweep_seed}/{trial}/{field}".encode()).digest()
        share = int.from_bytes(digest[:8], "big") / 2**64  # in [0, 1)
        if self.kind == "choice":
            return self.values[int(share * len(self.values))]
        low, high = self.values
        if self.kind == "integer":
            return str(low + int(share * (high - low + 1)))
        value = low + share * (high - low)
        if self.kind == "log":
            value = math.exp(math.log(low) + share * (math.log(high) - math.log(low)))
        return repr(min(max(float(f"{value:.4g}"), low), high))


def read_list(path: str) -> list[dict[str, str]]:
    """Reads a file with one run a line.

    Args:
        path: of .csv, whose head names the fields and whose empty cells leave a field as it is; of anything else, with
            JSON objects {field: value} and empty lines.

    Raises:
        UserError: no such file, or one line for each line that can't be read.
    """
    try:
        text = Path(path).read_text()
    except OSError as error:
        raise UserError(f"--list={path}: {error.strerror}") from None
    rows, problems = [], []
    if path.endswith(".csv"):
        lines = csv.reader(text.splitlines(), skipinitialspace=True)
        head = [field.strip().removeprefix("config.") for field in next(lines, [])]
        for cells in lines:
            if len(cells) > len(head):
                problems.append(f"--list={path}, line {lines.line_num}: {len(cells)} cells under {len(head)} fields")
            elif any(cells):
                rows.append({field: cell for field, cell in zip(head, cells, strict=False) if cell})
    else:
        for number, line in enumerate(text.splitlines(), 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
                if not isinstance(row, dict):
                    raise ValueError("not an object")
                rows.append({field.removeprefix("config."): as_text(value) for field, value in row.items()})
            except ValueError as error:
                example = '{"optimizer.learning_rate": 0.1, "seed": 1}'
                problems.append(f"--list={path}, line {number}: {error}; one run a line is needed, such as {example}")
    if not rows and not problems:
        problems.append(f"--list={path}: there is no run in it")
    if problems:
        more = [f"--list={path}: {len(problems) - 3} more lines like these"] if len(problems) > 3 else []
        raise UserError("\n".join([*problems[:3], *more]))
    return rows


def as_text(value: Any) -> str:
    """Writes a value of JSON or of a config as the command line would have it."""
    if isinstance(value, str):
        return value
    return repr(tuple(value) if isinstance(value, list) else value)
