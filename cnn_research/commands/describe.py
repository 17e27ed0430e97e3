"""Describes a network layer by layer, lists all networks, or draws what a network will see in training."""

import ast
import dataclasses
import json
from collections.abc import Sequence
from typing import Any

from absl import flags

from cnn_research import config as configs
from cnn_research.commands import launch
from cnn_research.errors import UserError
from cnn_research.models import layers, registry
from cnn_research.models.layer_table import Layer, LayerTable, layer_table

_BATCH = 128  # of the memory estimate


def run() -> None:
    """Runs the command."""
    flags.DEFINE_bool("list", False, 'All networks, or those that match the pattern given: --list "resnet*".')
    flags.DEFINE_integer("image_size", None, "Side of the square image in pixels.", lower_bound=1)
    flags.DEFINE_integer("channels", None, "Of the image.", lower_bound=1)
    flags.DEFINE_integer("num_classes", None, "How many logits.", lower_bound=1)
    flags.DEFINE_multi_string("field", [], "A field of the network, such as --field=stem=cifar; may be repeated.")
    flags.DEFINE_bool("json", False, "JSON instead of a table.")
    flags.DEFINE_string("augment", None, "Name or file of an experiment, whose augmented training images are drawn.")
    flags.DEFINE_string("output", "augment.png", "With --augment: the picture to write.")
    flags.DEFINE_string("data_dir", None, "With --augment: where the dataset is, if not where the experiment says.")
    launch.run(main, arguments=1)


def main(name: str = "") -> None:
    """Prints the layer table of the named network, or the list of networks that match it, or draws images."""
    if flags.FLAGS.augment:
        _draw_images(flags.FLAGS.augment, flags.FLAGS.output)
    elif flags.FLAGS.list:
        print(_listing(name or "*"))
    elif name:
        print(_description(name))
    else:
        raise UserError("which network? describe NAME describes one, describe --list shows their names")


def _draw_images(path: str, output: str) -> None:
    from cnn_research.training import feeds  # takes a second more than all the rest
    from cnn_research.validation import validate

    config = launch.load_config(path)
    if flags.FLAGS.data_dir is not None:
        config.dataset.data_dir = flags.FLAGS.data_dir
    validate(config)
    picture = feeds.draw_contact_sheet(config)
    try:
        picture.save(output)
    except (OSError, ValueError) as error:
        raise UserError(f"--output={output}: can't be written: {error}") from None
    print(f"{output}: {picture.width}x{picture.height} pixels, each row an image of {config.dataset.name} and what")
    print(f"becomes of it by augment={config.augment!r}, mix={config.mix!r}")


def _description(name: str) -> str:
    given = flags.FLAGS
    try:
        facts = registry.model_facts(name)
    except ValueError as error:
        raise UserError(str(error)) from None
    try:
        size = [given.image_size] * 2 if given.image_size else facts.image_shape[:2]
        channels = given.channels or facts.image_shape[2]
        num_classes = given.num_classes or facts.num_classes
        fields = dict(_parsed(field) for field in given.field)
        for field, value in fields.items():
            fields[field] = _checked(name, field, value)
        table = layer_table(registry.create_model(name, num_classes, **fields), (*size, channels))
    except ValueError as error:
        raise UserError(f"{name}: {error}") from None
    if given.json:
        return _as_json(name, table)
    published = not fields and (table.input, table.num_classes) == (facts.image_shape, facts.num_classes)
    return _as_text(name, table, published)


def _parsed(text: str) -> tuple[str, Any]:
    field, equals, value = text.partition("=")
    if not equals:
        raise UserError(f"--field={text}: a field and its value are needed, such as --field=dropout_rate=0.1")
    words = {"true": True, "false": False}
    try:
        return field, words[value.lower()] if value.lower() in words else ast.literal_eval(value)
    except (ValueError, SyntaxError):
        return field, tuple(value.split(",")) if "," in value else value


def _checked(name: str, field: str, value: Any) -> Any:
    """Requires that the network has the field, and that the value is of the type that a config would want."""
    known = registry.model_fields(name)
    if field not in known:  # neither has it what only code can give: modules
        raise ValueError(f"no field {field!r}{layers.suggest(field, known)}; fields: {', '.join(known) or 'none'}")
    kind = configs.base_config().model.get_type(field)
    if kind is tuple:
        return value if isinstance(value, tuple) else (value,)
    if not isinstance(value, (int, float) if kind is float else kind) or (kind is float and isinstance(value, bool)):
        raise ValueError(f"--field={field}={value}: a {kind.__name__} is needed")
    return value


def _as_json(name: str, table: LayerTable) -> str:
    layers = [dataclasses.asdict(layer) for layer in table.layers]
    totals = {field.name: getattr(table, field.name) for field in dataclasses.fields(table) if field.name != "layers"}
    return json.dumps({"name": name, **totals, "layers": layers}, indent=2)


def _as_text(name: str, table: LayerTable, published: bool) -> str:
    facts = registry.model_facts(name)
    header = ("layer", "kind", "output", "kernel", "stride", "padding", "size", "parameters", "MACs", "field", "jump")
    lines = _aligned([header, *map(_row, table.layers)], left=7)
    if any(layer.training_only for layer in table.layers):
        lines.append("* in training only")
    mib = 2**20
    training, inference = table.training_bytes(_BATCH), table.inference_bytes(_BATCH)
    totals = {
        "input": _times(table.input),
        "classes": f"{table.num_classes:,}",
        "parameters": f"{table.parameters:,} ({table.parameters * 4 / mib:,.1f} MiB in float32)",
        "MACs": f"{table.macs:,} an image ({table.macs / 1e9:.3g} G)",
        "training": f"about {training / mib:,.0f} MiB with momentum at a batch of {_BATCH}, of which "
        f"{table.training_bytes_per_image / mib:,.1f} MiB an image; convolutions' workspace comes on top",
        "inference": f"about {inference / mib:,.0f} MiB at a batch of {_BATCH}",
        "paper": facts.paper,
        "error": _error(facts) if published else "",
    }
    width = max(map(len, totals))
    summary = [f"{key:<{width}}  {value}" for key, value in totals.items() if value]
    return "\n".join([name, "", *lines, "", *summary])


def _row(layer: Layer) -> tuple[str, ...]:
    return (
        layer.path + " *" * layer.training_only,
        layer.kind,
        _times(layer.output),
        _times(layer.kernel or ()),
        _one(layer.stride or ()),
        ", ".join(dict.fromkeys(_one(axis) for axis in layer.padding or ())),
        layer.size_formula,
        f"{layer.parameters:,}" if layer.parameters else "",
        f"{layer.macs:,}" if layer.macs else "",
        "all" if layer.receptive_field is None else str(layer.receptive_field),
        "" if layer.jump is None else str(layer.jump),
    )


def _listing(pattern: str) -> str:
    names = registry.list_models(pattern)
    if not names:
        raise UserError(f"no network matches {pattern!r}; --list alone shows all {len(registry.MODELS)}")
    if flags.FLAGS.json:
        return json.dumps({name: dataclasses.asdict(registry.model_facts(name)) for name in names}, indent=2)
    rows = [("name", "paper", "input", "classes", "parameters", "GMACs", "error: top-1, top-5")]
    for name in names:
        facts = registry.model_facts(name)
        author = facts.paper.split(",")[0].split(":")[0]
        numbers = (f"{facts.num_classes:,}", f"{facts.parameters:,}", f"{facts.gmacs:.5g}")
        rows.append((name, author, _times(facts.image_shape), *numbers, _error(facts)))
    return "\n".join(_aligned(rows, left=3, last_left=True))


def _error(facts: Any) -> str:
    if not facts.source:
        return ""
    top1, top5 = ("-" if error is None else f"{error:.2f} %" for error in facts.error)
    return f"{top1}, {top5} on {facts.dataset} ({facts.source})"


def _times(numbers: Sequence[int]) -> str:
    return "x".join(map(str, numbers))


def _one(numbers: Sequence[int]) -> str:
    """One number where all are equal: (2, 2) -> "2", (0, 1) -> "0+1"."""
    return str(numbers[0]) if len(set(numbers)) == 1 else "+".join(map(str, numbers))


def _aligned(rows: Sequence[Sequence[str]], left: int, last_left: bool = False) -> list[str]:
    """Lines of equal columns: the first `left` flush left, the others flush right. Columns that are empty stay out."""
    columns = [column for column in zip(*rows, strict=True) if any(column[1:])]
    kept = [index for index, column in enumerate(zip(*rows, strict=True)) if any(column[1:])]
    flush_left = [index < left or (last_left and index == len(rows[0]) - 1) for index in kept]
    widths = [max(map(len, column)) for column in columns]
    return [
        "  ".join(
            text.ljust(width) if to_left else text.rjust(width)
            for text, width, to_left in zip(line, widths, flush_left, strict=True)
        ).rstrip()
        for line in zip(*columns, strict=True)
    ]
