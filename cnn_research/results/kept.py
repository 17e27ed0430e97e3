"""What is kept of a run: results/NAME/seed-K with config.json, environment.json, metrics.jsonl and results.json.

NAME is that of the config's file, with a suffix where the run is another than the file's, such as
resnet20_cifar10-10min. What says where things are on one machine is not kept: `neutral`, `_ENVIRONMENT`.
"""

import dataclasses
import json
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from cnn_research import config as configs
from cnn_research.config import get_field, set_field
from cnn_research.errors import UserError, suggest
from cnn_research.sweep.runs import base_texts

FOLDER = "results"
FILES = ("config.json", "environment.json", "metrics.jsonl", "results.json")
DATA_DIR, WEIGHTS, IMAGES = "DATA_DIR", "WEIGHTS", "folder:IMAGES"  # stand for paths of the user's
# Of environment.json; the command line has paths, and follows from the config.
_ENVIRONMENT = (
    *("cnn_research", "git_commit", "python", "system", "versions", "platform"),
    *("device_kind", "devices", "processes", "processor", "cores"),
)
# Where a machine keeps what it computed before: no result depends on it.
_CACHES = ("dataset.cache", "compilation_cache")
# Fields in which a run may differ from its config's file and still bear its name.
FREE = {"seed", *configs.RESUMABLE} - {"duration", "early_stopping"}
_LARGEST = 200_000  # bytes of a metrics.jsonl
_PATH = re.compile(r"(?:^|[\s\"'=:,])(?:[A-Za-z]:\\|/[\w.-]+/|~/|\w+://)")


@dataclasses.dataclass(frozen=True)
class Run:
    """What is kept of one run: its four files, read."""

    config: ConfigDict
    environment: Mapping[str, Any]
    metrics: Sequence[Mapping[str, Any]]
    results: Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Entry:
    """The runs of one experiment, which differ in their seeds alone.

    Attributes:
        name: of its folder.
        experiment: name of its config's file, without ".py".
        runs: ordered by their seeds, at least one.
        overrides: by which the command line makes the first run's config of the file, as texts.
    """

    name: str
    experiment: str
    runs: Sequence[Run]
    overrides: Mapping[str, str]

    @property
    def seeds(self) -> list[int]:
        """Of the runs."""
        return [run.config.seed for run in self.runs]

    @property
    def whole(self) -> bool:
        """Whether the runs are what the config's file asks for, and not a shorter or another form of it."""
        return self.name == self.experiment


# ---------------------------------------------------------------------------------------------------- adding


def add(workdir: Path, root: Path, files: Mapping[str, ConfigDict], name: str = "", notes: Sequence[str] = ()) -> Path:
    """Keeps a finished run.

    Args:
        workdir: its folder.
        root: of the checkout.
        files: what the files in experiments/configs give, by their names without ".py".
        name: of the entry; "" = that of the config's file on the run's command line.
        notes: what a reader must know of this run's figures, kept in environment.json.

    Returns:
        The folder results/NAME/seed-K. What was kept there before is replaced.

    Raises:
        UserError: the folder holds no finished run, or its files contradict each other, the name or the runs that are
            kept there already.
    """
    missing = [file for file in FILES if not (workdir / file).is_file()]
    if missing:
        unfinished = "the run is not finished" if missing == ["results.json"] else "is it a run's folder?"
        raise UserError(f"workdir {workdir} has no {' and no '.join(missing)}: {unfinished}")
    environment, results = (_read_json(workdir / file) for file in ("environment.json", "results.json"))
    name = name or _config_name(workdir, environment)
    base = files[_experiment(name, files)]
    config = neutral(_read_config(workdir), base)
    lines = _thinned((workdir / "metrics.jsonl").read_text().splitlines())
    environment["system"] = environment["system"].partition("-")[0]
    texts = {
        "config.json": configs.to_json(config),
        "environment.json": _to_json({key: environment.get(key) for key in _ENVIRONMENT} | {"notes": list(notes)}),
        "metrics.jsonl": "\n".join(lines) + "\n",
        "results.json": _to_json(
            results | {"dataset": config.dataset.name, "skipped": results["skipped"] | {"paths": []}}
        ),
    }
    run = Run(
        config, json.loads(texts["environment.json"]), list(map(json.loads, lines)), json.loads(texts["results.json"])
    )
    folder = root / FOLDER / name / f"seed-{config.seed}"
    others = [_read(path) for path in _seed_folders(folder.parent) if path != folder]
    problems = [*_contradictions(run), *_paths(texts), *_misnamed(name, config, base), *_strangers([*others, run])]
    if problems:
        raise UserError("\n".join(f"workdir {workdir}: {problem}" for problem in problems))
    folder.mkdir(parents=True, exist_ok=True)
    for file, text in texts.items():
        (folder / file).write_text(text)
    return folder


def neutral(config: ConfigDict, base: ConfigDict) -> ConfigDict:
    """A copy of a run's config without the paths of its machine: DATA_DIR, WEIGHTS and folder:IMAGES in their place.

    Folders of caches become those of `base`, the config's file, and so does what is as it stands there.
    """
    config = configs.from_json(configs.to_json(config))
    for field in _CACHES:
        set_field(config, field, get_field(base, field))
    places = {"dataset.data_dir": DATA_DIR, "init.weights": WEIGHTS}
    if config.dataset.name.startswith("folder:"):
        places["dataset.name"] = IMAGES
    for field, place in places.items():
        if get_field(config, field) not in ("", get_field(base, field)):
            set_field(config, field, place)
    return config


def _config_name(workdir: Path, environment: Mapping[str, Any]) -> str:
    command = environment.get("command", [])
    for argument, following in zip(command, [*command[1:], ""], strict=True):
        flag, _, value = argument.partition("=")
        if flag in ("--config", "-config"):
            return Path((value or following).partition(":")[0]).stem
    raise UserError(f"workdir {workdir}: the command in environment.json names no config; --name=NAME says which it is")


def _thinned(lines: Sequence[str]) -> list[str]:
    """The lines of metrics.jsonl, of training's only every second, third, ... where they would be too large.

    The last of training stays, and all of evaluations.
    """
    training = [i for i, line in enumerate(lines) if "learning_rate" in json.loads(line)]
    every, kept = 1, list(lines)
    while sum(len(line) + 1 for line in kept) > _LARGEST and every < len(training):
        every += 1
        left_out = {place for i, place in enumerate(reversed(training)) if i % every}
        kept = [line for i, line in enumerate(lines) if i not in left_out]
    return kept


# --------------------------------------------------------------------------------------------------- reading


def read_all(root: Path, files: Mapping[str, ConfigDict]) -> list[Entry]:
    """Reads all that is kept, ordered by name.

    Args:
        root: of the checkout.
        files: as for `add`.

    Raises:
        UserError: one line for each folder that is broken, contradicts itself or belongs to no config.
    """
    entries, problems = [], []
    for folder in sorted(path for path in (root / FOLDER).glob("*") if path.is_dir()):
        try:
            entries.append(_entry(folder, files))
        except UserError as error:
            problems += [
                line if line.startswith(FOLDER) else f"{FOLDER}/{folder.name}: {line}"
                for line in str(error).splitlines()
            ]
    if problems:
        raise UserError("\n".join(problems))
    return entries


def _entry(folder: Path, files: Mapping[str, ConfigDict]) -> Entry:
    experiment = _experiment(folder.name, files)
    base, runs, problems = files[experiment], [], []
    for path in _seed_folders(folder):
        place = f"{FOLDER}/{folder.name}/{path.name}"
        try:
            run = _read(path)
        except UserError as error:
            problems.append(f"{place}: {error}")
            continue
        texts = {file: (path / file).read_text() for file in FILES}
        found = [*_contradictions(run), *_paths(texts), *_misnamed(folder.name, run.config, base)]
        if path.name != f"seed-{run.config.seed}":
            found.append(f"config.json has the seed {run.config.seed}")
        problems += [f"{place}: {problem}" for problem in found]
        runs.append(run)
    if not runs and not problems:
        problems = ["there is no folder seed-K of a run in it"]
    runs.sort(key=lambda run: run.config.seed)
    problems = problems or _strangers(runs)
    if problems:
        raise UserError("\n".join(problems))
    return Entry(folder.name, experiment, runs, base_texts(base, runs[0].config))


def _experiment(name: str, files: Mapping[str, ConfigDict]) -> str:
    """The config of a name: all of it before "-"."""
    experiment = name.partition("-")[0]
    if not re.fullmatch(r"[\w.-]+", name) or experiment not in files:
        raise UserError(
            f"{name!r} is not the name of a config in experiments/configs, nor one with a suffix such as "
            f"lenet5_mnist-10min.{suggest(experiment, files)}"
        )
    return experiment


def _seed_folders(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("*") if path.is_dir())


def _read(folder: Path) -> Run:
    missing = [file for file in FILES if not (folder / file).is_file()]
    if missing:
        raise UserError(f"there is no {' and no '.join(missing)}")
    try:
        metrics = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    except ValueError as error:
        raise UserError(f"metrics.jsonl is not readable as JSON: {error}") from None
    environment, results = (_read_json(folder / file) for file in ("environment.json", "results.json"))
    return Run(_read_config(folder), environment, metrics, results)


def _read_config(folder: Path) -> ConfigDict:
    return configs.from_json((folder / "config.json").read_text())


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text())
    except ValueError as error:
        raise UserError(f"{path.name} is not readable as JSON: {error}") from None


def _to_json(value: Any) -> str:
    return json.dumps(value, indent=2) + "\n"


# -------------------------------------------------------------------------------------------------- checking


def _contradictions(run: Run) -> list[str]:
    """In what a run's files say different things."""
    config, results, problems = run.config, run.results, []
    try:
        for key, value in {"model": config.model.name, "dataset": config.dataset.name, "seed": config.seed}.items():
            if results[key] != value:
                problems.append(f"results.json has {key}={results[key]!r}, config.json {value!r}")
        tested = [row for row in run.metrics if row["split"] == config.dataset.test_split]
        if not tested or tested[-1]["step"] != results["steps"]:
            return [*problems, f"metrics.jsonl has no test at step {results['steps']}, the last of results.json"]
        for key, value in results["test"].items():
            # An evaluation on other devices may have rewritten results.json: what it counts is the same.
            same = math.isclose(tested[-1][key], value, rel_tol=1e-4) if key == "loss" else tested[-1][key] == value
            if not same:
                problems.append(
                    f"results.json has a test {key} of {value}, the last test in metrics.jsonl {tested[-1][key]}"
                )
        if not run.environment["versions"] or not isinstance(run.environment["notes"], list):
            problems.append("environment.json has no versions or no notes")
    except (KeyError, TypeError) as error:
        problems.append(f"something is missing in its files: {error}")
    return problems


def _misnamed(name: str, config: ConfigDict, base: ConfigDict) -> list[str]:
    """That a run bears the bare name of a config from which it differs."""
    changed = [f"{k}={v}" for k, v in base_texts(base, neutral(config, base)).items() if k not in FREE]
    if not changed or "-" in name:
        return []
    return [
        f"it is another run than experiments/configs/{name}.py asks for ({', '.join(changed[:3])}"
        f"{', ...' if changed[3:] else ''}): its name needs a suffix, such as {name}-10min"
    ]


def _strangers(runs: Sequence[Run]) -> list[str]:
    """In what the runs of an entry differ besides their seeds."""
    first = configs.flatten(runs[0].config.to_dict())
    for run in runs[1:]:
        other = configs.flatten(run.config.to_dict())
        differing = [field for field in first if field != "seed" and first[field] != other[field]]
        if differing:
            return [f"its runs differ in more than their seeds: {', '.join(differing)}"]
    return []


def _paths(texts: Mapping[str, str]) -> list[str]:
    """Which strings in JSON files are paths of a machine's."""

    def strings(value: Any) -> list[str]:
        if isinstance(value, dict | list):
            return [s for part in (value.values() if isinstance(value, dict) else value) for s in strings(part)]
        return [value] if isinstance(value, str) else []

    known = {get_field(configs.base_config(), field) for field in _CACHES}
    found = []
    for file in ("config.json", "environment.json", "results.json"):
        paths = [text for text in strings(json.loads(texts[file])) if _PATH.search(text) and text not in known]
        found += [f"{file} has a path of one machine's: {text!r}" for text in paths]
    return found
