"""RESULTS.md, and the table in README.md, made of what is kept in results/ and of nothing else."""

import shlex
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from cnn_research.errors import UserError
from cnn_research.results import published
from cnn_research.results.kept import DATA_DIR, FOLDER, FREE, Entry, Run

PAGE, README, PICTURE = "RESULTS.md", "README.md", "docs/images/results.svg"
BEGIN, END = "<!-- made by experiments/results.py: edit nothing from here -->", "<!-- to here -->"
# What datasets are called, and in which order they come; others follow, as they are called in configs.
DATASETS = {
    "digits": "digits of scikit-learn",
    "mnist": "MNIST",
    "cifar10": "CIFAR-10",
    "imagenet2012": "ImageNet",
    "shapes": "generated shapes",
    "folder": "images of one's own",
}
_BUILT_IN = ("digits", "shapes")
_SPACE = "\N{NO-BREAK SPACE}"  # within a figure: columns are narrow

_INTRODUCTION = f"""# Results

Made by `python experiments/results.py` of the files in `{FOLDER}/` and `experiments/configs/`; `make lint` finds what
differs from them. Nothing here is typed by hand.

Accuracies are of the weights at the end of training, on the whole test set, never of the best checkpoint: mean ± sample
standard deviation over n seeds. Times are the mean of a run's, with the evaluations in between. `{DATA_DIR}` stands for
a folder of prepared TFDS datasets (README.md says how). Fields under a config's name say in what a run is another than
its file asks for. A run of yours joins with `python experiments/results.py --add=WORKDIR`.
"""


def dataset_title(config: ConfigDict) -> str:
    """What a config's dataset is called."""
    kind = config.dataset.name.partition(":")[0]
    return DATASETS.get(kind, kind)


# ------------------------------------------------------------------------------------------------------ page


def render(entries: Sequence[Entry], files: Mapping[str, ConfigDict], figures: Mapping[str, published.Figure]) -> str:
    """Returns the text of RESULTS.md: a section for each dataset, in it first what was run.

    Args:
        entries: what is kept.
        files: what the files in experiments/configs give, by their names without ".py".
        figures: published ones, by config, of `published.read`.
    """
    rows: dict[str, list[Entry | str]] = {title: [] for title in DATASETS.values()}
    for entry in entries:
        rows.setdefault(dataset_title(entry.runs[0].config), []).append(entry)
    for name in sorted(files.keys() - {entry.name for entry in entries}):
        rows.setdefault(dataset_title(files[name]), []).append(name)
    parts = [_INTRODUCTION]
    if any(entry.whole for entry in entries):
        parts.append(
            f"![Test errors in the course of training, as each config asks for it: means over seeds]({PICTURE})\n"
        )
    for title, section in rows.items():
        if section:
            parts.append(_section(title, section, files, figures))
    return "\n".join(parts)


def _section(
    title: str, rows: Sequence[Entry | str], files: Mapping[str, ConfigDict], figures: Mapping[str, published.Figure]
) -> str:
    notes, lines, details = _Notes(), [], []
    sizes = sorted({run.results["test"]["num_examples"] for row in rows if isinstance(row, Entry) for run in row.runs})
    for row in rows:
        if isinstance(row, Entry):
            lines.append(_entry_row(row, files, figures, notes))
            details.append(_entry_details(row))
        else:
            lines.append(_waiting_row(row, files[row], figures, notes))
            details.append(_waiting_details(row, files[row]))
    head = f"## {title[0].upper()}{title[1:]}\n"
    if sizes:
        head += f"\nTested on {' or '.join(f'{size:,}' for size in sizes)} images.\n"
    columns = ("config", "network", "test accuracy", "test error", "published error", "n", "epochs")
    table = _table([*columns, "parameters", "training", "hardware"], lines)
    listed = "".join(f"{number}. {text}\n" for number, text in enumerate(notes.texts, 1))
    return "\n".join([head, table, *([listed] if listed else []), *details])


class _Notes:
    """Numbered remarks below a table."""

    def __init__(self):
        self.texts: list[str] = []

    def mark(self, *texts: str) -> str:
        """Returns the numbers of remarks as a superscript, to stand beside what they are about."""
        self.texts += [text for text in dict.fromkeys(texts) if text not in self.texts]
        numbers = sorted({self.texts.index(text) + 1 for text in texts})
        return f"<sup>{', '.join(map(str, numbers))}</sup>" if numbers else ""


def _entry_row(
    entry: Entry, files: Mapping[str, ConfigDict], figures: Mapping[str, published.Figure], notes: _Notes
) -> list[str]:
    config, runs = entry.runs[0].config, entry.runs
    figure = published.of_run(entry.experiment, config, files[entry.experiment], dataset_title(config), figures)
    five = figure is not None and figure.error[1] is not None
    mark = notes.mark(*remarks(entry))
    errors = [
        _spread(runs, lambda run, key=key: 100 * (1 - run.results["test"][key]), 2) for key in ("accuracy", "top5")
    ]
    return [
        "<br>".join([f"`{entry.name}`", *(f"`{field}={text}`" for field, text in changed(entry).items())]),
        config.model.name,
        f"{_spread(runs, _accuracy, 4)}{mark}",
        " / ".join(f"{error}{_SPACE}%" for error in errors[: 2 if five else 1]) + mark,
        _published(figure, notes),
        str(len(runs)),
        _joined(f"{run.results['epochs']:.1f}".removesuffix(".0") for run in runs),
        _joined(f"{run.results['parameters']:,}" for run in runs),
        training_time(entry),
        hardware(entry),
    ]


def _waiting_row(name: str, config: ConfigDict, figures: Mapping[str, published.Figure], notes: _Notes) -> list[str]:
    figure = published.of_run(name, config, config, dataset_title(config), figures)
    duration = config.duration.removesuffix("ep")
    length = f"{int(duration[:-2]):,} steps" if duration.endswith("st") else duration
    return [f"`{name}`", config.model.name, "not run", "–", _published(figure, notes), "0", length, "–", "–", "–"]


def _published(figure: published.Figure | None, notes: _Notes) -> str:
    if figure is None:
        return "none"
    one, five = figure.error
    texts = ["–" if error is None else f"{error:g}{_SPACE}%" for error in ((one,) if five is None else (one, five))]
    return " / ".join(texts) + notes.mark(f"Published: {figure.source}.")


def _entry_details(entry: Entry) -> str:
    runs, seeds = entry.runs, ", ".join(map(str, entry.seeds))
    facts = [
        f"seed{'s' if len(runs) > 1 else ''} {seeds}",
        f"commit {_joined((run.environment['git_commit'] or 'unknown')[:12] for run in runs)}",
        f"Python {_joined(run.environment['python'] for run in runs)}",
        *(
            f"{package} {_joined(run.environment['versions'][package] for run in runs)}"
            for package in ("jax", "flax", "optax")
        ),
        f"cnn-research {_joined(run.environment['cnn_research'] for run in runs)}",
    ]
    likewise = f" The command is that of seed {entry.seeds[0]}." if len(runs) > 1 else ""
    return f"**[`{entry.name}`]({FOLDER}/{entry.name})**: {'; '.join(facts)}.{likewise}\n\n{_code(command(entry))}"


def _waiting_details(name: str, config: ConfigDict) -> str:
    needs, fields = [], {}
    kind = config.dataset.name.partition(":")[0]
    if kind == "folder":
        needs.append("a folder of images")
        fields["dataset.name"] = "folder:IMAGES"
    elif kind not in _BUILT_IN:
        needs.append(f"{kind}, prepared as array_record in {DATA_DIR}")
        fields["dataset.data_dir"] = DATA_DIR
    if config.init.weights:
        needs.append(f"the file {config.init.weights}")
    needed = f", needs {' and '.join(needs)}" if needs else ""
    return f"**`{name}`**: not run{needed}.\n\n{_code(_train(name, name, fields))}"


# ----------------------------------------------------------------------------------------------------- facts


def changed(entry: Entry) -> dict[str, str]:
    """The fields, as texts, in which an entry is another experiment than its config's file asks for."""
    return {field: text for field, text in entry.overrides.items() if field not in {*FREE, "dataset.data_dir"}}


def command(entry: Entry) -> str:
    """The command line that makes an entry's first run again."""
    return _train(entry.experiment, entry.name, {"seed": str(entry.seeds[0])} | dict(entry.overrides))


def _train(experiment: str, name: str, fields: Mapping[str, str]) -> str:
    texts = [f"--config.{field}={text}" for field, text in fields.items()]
    config = f"--config=experiments/configs/{experiment}.py"
    return shlex.join(["python", "experiments/train.py", config, f"--workdir=runs/{name}", *texts])


def remarks(entry: Entry) -> list[str]:
    """What a reader must know of an entry's figures: of its evaluation, of its runs, and the notes given with them."""
    views, texts = entry.runs[0].config.evaluation, []
    seen = "ten crops of each image" if views.crops == "ten" else "each image"
    seen += " and its mirror image" * views.flip
    if views.shift:
        seen += f", unmoved and moved by {views.shift} px up and left, down and right"
    if seen != "each image":
        texts.append(f"Mean over {seen}.")
    for run in entry.runs:
        commit = run.environment["git_commit"]
        if commit is None:
            texts.append("Not from a checkout: the commit is unknown.")
        elif "changed" in commit:
            texts.append("Some files differed from the commit.")
        if run.results.get("stopped_early"):
            texts.append("Some runs were stopped early.")
        if skipped := run.results.get("skipped", {}).get("images"):
            texts.append(f"{skipped:,} images could not be read and were skipped.")
        texts += [note if note.endswith(".") else f"{note}." for note in run.environment["notes"]]
    return list(dict.fromkeys(texts))


def training_time(entry: Entry) -> str:
    """The mean of its runs, evaluations in between included."""
    seconds = statistics.fmean(run.results["train_seconds"] for run in entry.runs)
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


def hardware(entry: Entry) -> str:
    """What its runs were made on."""

    def of(environment: Mapping[str, Any]) -> str:
        if environment["platform"] != "cpu":
            return f"{environment['devices']} {environment['device_kind']}"
        cores = f"{environment.get('cores') or 'some'} CPU cores"
        return f"{cores} ({environment['processor']})" if environment.get("processor") else cores

    return _joined(of(run.environment) for run in entry.runs)


def _accuracy(run: Run) -> float:
    return run.results["test"]["accuracy"]


def _spread(runs: Sequence[Run], value: Callable[[Run], float], digits: int) -> str:
    """Mean and sample standard deviation, or the value of a single run."""
    values = [value(run) for run in runs]
    deviation = f"{_SPACE}±{_SPACE}{statistics.stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):.{digits}f}{deviation}"


def _joined(texts: Iterable[str]) -> str:
    return ", ".join(dict.fromkeys(texts))


def _code(text: str) -> str:
    return f"```\n{text}\n```\n"


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    # Bars in overrides such as pad_and_crop(4)|flip would end their cells.
    lines = [columns, ["---"] * len(columns), *([cell.replace("|", "\\|") for cell in row] for row in rows)]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


# ---------------------------------------------------------------------------------------------------- README


def extract(entries: Sequence[Entry]) -> str:
    """Returns the table of README.md: what was run as its config's file asks for, in the order of RESULTS.md."""
    titles = list(DATASETS.values())

    def place(entry: Entry) -> int:
        title = dataset_title(entry.runs[0].config)
        return titles.index(title) if title in titles else len(titles)

    rows = []
    for entry in sorted((entry for entry in entries if entry.whole), key=place):
        config, results = entry.runs[0].config, entry.runs[0].results
        seeds = f"(n={len(entry.runs)})"
        rows.append(
            [
                f"`{entry.name}`",
                f"{config.model.name}, {results['parameters']:,} parameters",
                f"{dataset_title(config)}, {results['test']['num_examples']:,} test images",
                f"{_spread(entry.runs, _accuracy, 4)} {seeds}",
                training_time(entry),
                hardware(entry),
                " ".join(remarks(entry)),
            ]
        )
    columns = ("config", "network", "data", "test accuracy", "time", "hardware", "notes")
    return _table(columns, rows) if rows else "No whole run is kept yet.\n"


def into_readme(text: str, table: str) -> str:
    """Returns the text of README.md with this table between the marks.

    Raises:
        UserError: the marks are not there.
    """
    before, begin, rest = text.partition(f"{BEGIN}\n")
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise UserError(
            f"{README} has no line {BEGIN!r} and after it {END!r}, between which the table of results stands"
        )
    return f"{before}{begin}\n{table}\n{end}{after}"


# ------------------------------------------------------------------------------------------------------ both


def made(root: Path, entries: Sequence[Entry], files: Mapping[str, ConfigDict]) -> dict[str, str]:
    """Returns the texts of RESULTS.md and README.md as they should be, by their names.

    Raises:
        UserError: results/published.json is broken, README.md has no place for the table.
    """
    figures = published.read(root, files)
    readme = into_readme((root / README).read_text(), extract(entries))
    return {PAGE: render(entries, files, figures), README: readme}
