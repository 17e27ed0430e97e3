"""What the documentation site says of the code, read off the code whenever the site is built.

A page asks for it by a line such as `<!-- generated: zoo -->`, which hooks.py replaces. Nothing here needs MkDocs.
"""

import ast
import functools
import importlib
import re
import sys
from pathlib import Path
from unittest import mock

from absl import flags

from cnn_research import config as configs
from cnn_research.commands import launch
from cnn_research.models import registry

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "cnn_research"


# ----------------------------------------------------------------------------------------------- configuration


def config_fields() -> dict[str, tuple[str, str]]:
    """Reads base_config(): {field: (its default as it is written, its comment)}, sections too, whose default is ""."""
    source = (PACKAGE / "config.py").read_text()
    function = next(node for node in ast.parse(source).body if getattr(node, "name", "") == "base_config")
    lines, fields, above = source.splitlines(), {}, ""
    for statement in function.body:
        if not isinstance(statement, ast.Assign) or not ast.unparse(statement).startswith("config."):
            continue
        first, last = statement.lineno - 1, statement.end_lineno
        leading, row = [], first - 1
        while lines[row].strip().startswith("#"):
            leading.insert(0, lines[row].strip().removeprefix("# "))
            row -= 1
        beside = lines[last - 1][statement.end_col_offset :].strip().removeprefix("# ")
        name = ast.unparse(statement.targets[0]).removeprefix("config.")
        if beside == " | ".join(configs.CHOICES.get(name, ())):  # they are listed in any case
            beside = ""
        own = "; ".join(filter(None, [" ".join(leading), beside])).replace(".; ", ". ")
        # Of two fields in a row, the comment may stand above the first.
        above = " ".join(leading) or ("" if own or not lines[first - 1].strip() else above)
        value = ast.unparse(statement.value)
        default = "" if value == "ConfigDict()" else "None" if value.startswith("placeholder") else value
        fields[name] = default, own or above
        above = above if default else ""  # a section's is not its first field's
    return fields


def config() -> str:
    """Every field with its default, what it may be, and its comment, section by section."""
    text = ["## Of the experiment", ""]
    fields = config_fields()
    for field, (default, comment) in sorted(fields.items(), key=lambda item: "." in item[0] or not item[1][0]):
        if not default:
            text += [f"## {field}", "", _plain(comment), ""]
            text += [line for inner in fields if inner.startswith(f"{field}.") for line in _field(inner, fields[inner])]
        elif "." not in field:
            text += _field(field, (default, comment))
    return "\n".join(text)


def _field(field: str, about: tuple[str, str]) -> list[str]:
    default, comment = about
    choices = configs.CHOICES.get(field, ())
    more = f" One of {', '.join(f'`{choice}`' for choice in choices)}." if choices else ""
    more += " *May change when a run goes on.*" if field in configs.RESUMABLE else ""
    return [f"`{field}`{{ #{field} }} = `{default}`", f":   {_sentence(_plain(comment))}{more}".rstrip(), ""]


def _plain(text: str) -> str:
    """Text as it is, whatever Markdown would make of its letters."""
    return re.sub(r"[\\`*_{}\[\]<>|#&~^=]", lambda match: f"&#{ord(match[0])};", text)


def _sentence(text: str) -> str:
    return text if not text or text.endswith((".", ":", "?")) else f"{text}."


# ---------------------------------------------------------------------------------------------------- networks


def zoo() -> str:
    """A table of each family: size, image and published error, and the fields that can be set."""
    families: dict[str, list[str]] = {}
    for name, (module, _) in registry.MODELS.items():
        families.setdefault(module.__module__, []).append(name)
    text = [f"{len(registry.MODELS)} networks. The errors are those of the papers and of torchvision, not ours.", ""]
    for module, names in families.items():
        title = importlib.import_module(module).__doc__.splitlines()[0].split(":")[0].rstrip(".")
        facts = {name: registry.model_facts(name) for name in names}
        text += [f"## {title}", "", *dict.fromkeys(f"- {each.paper}" for each in facts.values()), ""]
        text += [
            "| name | parameters | GMACs | image | top-1 error | top-5 error | of |",
            "|---|--:|--:|---|--:|--:|---|",
        ]
        for name, each in facts.items():
            image = "×".join(map(str, each.image_shape))
            errors = ("" if error is None else f"{error:.2f} %" for error in each.error)
            source = f"{each.dataset}: {each.source}" if each.source else ""
            cells = (f"`{name}`", f"{each.parameters:,}", f"{each.gmacs:.5g}", image, *errors, source)
            text.append(f"| {' | '.join(cells)} |")
        text += ["", *_settable(names), ""]
    return "\n".join(text)


def _settable(names: list[str]) -> list[str]:
    groups: dict[tuple[str, ...], list[str]] = {}
    for name in names:
        groups.setdefault(tuple(registry.model_fields(name)), []).append(f"`{name}`")
    lines = []
    for fields, those in groups.items():
        whose = "" if len(groups) == 1 else f" of {', '.join(those)}"
        linked = ", ".join(f"[`{field}`](config.md#model.{field})" for field in fields)
        lines += [f"Fields{whose}: {linked or 'none'}", ""]
    return lines


# ---------------------------------------------------------------------------------------------------- commands


@functools.cache
def command_flags() -> dict[str, dict[str, flags.Flag]]:
    """The flags of each command, those that its run() defines: {"train": {"workdir": Flag, ...}, ...}."""
    found = {}
    for script in sorted((ROOT / "experiments").glob("*.py")):
        if not (PACKAGE / "commands" / script.name).is_file():
            continue
        before = set(flags.FLAGS)
        with mock.patch.object(launch, "run"):
            importlib.import_module(f"cnn_research.commands.{script.stem}").run()
        new = [name for name in flags.FLAGS if name not in before]
        found[script.stem] = {name: flags.FLAGS[name] for name in new}
        flags.FLAGS.remove_flag_values(new)  # the next command may have a flag of the same name
    return found


def commands() -> str:
    """Each command with its flags, their defaults and meanings."""
    text = []
    for command, its_flags in command_flags().items():
        about = importlib.import_module(f"cnn_research.commands.{command}").__doc__
        text += [f"## {command}", "", _plain(" ".join(about.split())), ""]
        for name, flag in sorted(its_flags.items()):
            default = "" if flag.default in (None, "", [], sys.executable) or flag.boolean else f" = `{flag.default}`"
            values = ", ".join(getattr(flag.parser, "enum_values", ()))
            help_text = flag.help.split(";\n")[0]  # absl adds to it that a flag may be repeated
            text.append(f"`--{name}`{{ #{command}--{name} }}{default}")
            text += [f":   {_plain(help_text)}{f' One of {values}.' if values else ''}", ""]
    return "\n".join(text)


# --------------------------------------------------------------------------------------------------- reference


def api_pages() -> dict[str, str]:
    """A page of the reference for each package, {"api/data.md": its text}, that mkdocstrings fills in."""
    pages = {"api/cnn_research.md": _reference("cnn_research", PACKAGE.glob("*.py"))}
    for package in sorted(PACKAGE.glob("*/__init__.py")):
        name = package.parent.name
        pages[f"api/{name}.md"] = _reference(f"cnn_research.{name}", package.parent.glob("*.py"))
    return pages


def _reference(package: str, files) -> str:
    modules = sorted(file.stem for file in files if not file.stem.startswith("_"))
    return "\n\n".join([f"# {package}", *(f"::: {package}.{module}" for module in modules)])


# The functions by the names by which pages ask for them.
GENERATED = {"config": config, "zoo": zoo, "commands": commands}
