"""Published errors, to stand beside ours: of models/facts.py, and of results/published.json where these don't fit.

A paper may have been measured with other crops than a config's, or a network be in no paper and its figure be of
somebody's repository: such figures stand in results/published.json, by config, each with its source.
"""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path

from ml_collections import ConfigDict

from cnn_research import config as configs
from cnn_research.errors import UserError, suggest
from cnn_research.models.facts import FACTS

FILE = "results/published.json"


@dataclasses.dataclass(frozen=True)
class Figure:
    """An error as it is published.

    Attributes:
        error: top-1 and top-5, percent; None where there is none.
        source: of both: authors, year, title or address, table, protocol.
    """

    error: tuple[float | None, float | None]
    source: str


def read(root: Path, files: Mapping[str, ConfigDict]) -> dict[str, Figure]:
    """Reads results/published.json: {config: {"error": [top-1, top-5], "source": text}}.

    Args:
        root: of the checkout.
        files: configs by their names.

    Raises:
        UserError: an entry belongs to no config, or is not of this form.
    """
    path = root / FILE
    try:
        values = json.loads(path.read_text()) if path.exists() else {}
    except ValueError as error:
        raise UserError(f"{FILE} is not readable as JSON: {error}") from None
    figures, problems = {}, []
    for name, value in values.items():
        if name not in files:
            problems.append(f"{FILE}: {name!r} is no config in experiments/configs.{suggest(name, files)}")
            continue
        try:
            one, five = value["error"]
            if not value["source"] or not all(each is None or 0 < each < 100 for each in (one, five)):
                raise ValueError
            figures[name] = Figure((one, five), value["source"])
        except (KeyError, TypeError, ValueError):
            problems.append(f'{FILE}: {name} needs "error": [top-1, top-5], in percent or null, and its "source"')
    if problems:
        raise UserError("\n".join(problems))
    return figures


def of_run(
    experiment: str, config: ConfigDict, file: ConfigDict, dataset: str, figures: Mapping[str, Figure]
) -> Figure | None:
    """Returns what is published about a run's network on its dataset; None where nothing is.

    Args:
        experiment: name of the config's file.
        config: of the run.
        file: what the config's file gives.
        dataset: its title, as in models/facts.py.
        figures: of `read`.
    """
    ours, theirs = (configs.flatten(each.model.to_dict()) for each in (config, file))
    other = [field for field in ours if ours[field] != theirs[field]]
    if not other and config.dataset.name == file.dataset.name and experiment in figures:
        return figures[experiment]
    facts = FACTS.get(config.model.name)
    if not facts or facts.dataset != dataset or facts.error == (None, None) or other not in ([], ["name"]):
        return None
    return Figure(facts.error, f"{facts.paper}; {facts.source}")
