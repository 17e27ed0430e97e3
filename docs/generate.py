"""What the documentation site says of the code, read off the code whenever the site is built.

A page asks for it by a line such as `<!-- generated: zoo -->`. MkDocs calls the functions that begin with `on_`
(`hooks` in mkdocs.yml); the others need no MkDocs, and the tests call them.
"""

import ast
import functools
import importlib
import posixpath
import re
import sys
import tomllib
from pathlib import Path
from unittest import mock

from absl import flags

from cnn_research import config as configs
from cnn_research.commands import launch
from cnn_research.models import registry

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "cnn_research"
REPOSITORY = "https://github.com/cnn-research/cnn-research/blob/main/"
# Pages of the root's own, by their place in the site. One that isn't there is left out.
ROOT_PAGES = {"RESULTS.md": "results.md", "CHANGELOG.md": "changelog.md", "CONTRIBUTING.md": "contributing.md"}

_PLACEHOLDER = re.compile(r"^<!-- generated: (\w+) -->$", re.MULTILINE)
_LINK = re.compile(r"(?<=\]\()(?![a-z]+:|#)([^)\s#]+)(#[^)\s]*)?(?=\))")
_CODE = re.compile(r"^(```+).*?^\1$|`[^`\n]+`", re.MULTILINE | re.DOTALL)


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
        own = " ".join([*leading, beside]).strip()
        above = " ".join(leading) or (
            "" if own else above
        )  # of two fields in a row, the comment may be above the first
        value = ast.unparse(statement.value)
        default = "" if value == "ConfigDict()" else "None" if value.startswith("placeholder") else value
        fields[ast.unparse(statement.targets[0]).removeprefix("config.")] = default, own or above
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
    listed = all(re.search(rf"\b{choice}\b", comment) for choice in choices)
    more = "" if listed else f" One of {', '.join(f'`{choice}`' for choice in choices)}."
    more += " *May change when a run goes on.*" if field in configs.RESUMABLE else ""
    return [f"`{field}`{{ #{field} }} = `{default}`", f":   {_sentence(_plain(comment))}{more}", ""]


def _plain(text: str) -> str:
    """Text as it is, whatever Markdown would make of its letters."""
    return re.sub(r"[\\`*_{}\[\]<>|#&~^=]", lambda match: f"&#{ord(match[0])};", text)


def _sentence(text: str) -> str:
    return text if text.endswith((".", ":", "?")) else f"{text}."


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


def console() -> str:
    """What an installation brings beside the scripts."""
    name = "cnn-research"
    if name not in tomllib.loads((ROOT / "pyproject.toml").read_text())["project"].get("scripts", {}):
        return ""
    return f"An installed package has them as one command, which finds configs by name: `{name} train --config=NAME`."


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


# ------------------------------------------------------------------------------------------------------- links


def rehomed(text: str, path: str) -> str:
    """Points the links of a Markdown file to where they lead in the site, or in the repository what isn't in the site.

    Args:
        text: of the file.
        path: of the file, from the root of the repository.
    """

    def place(file: str) -> str:
        return ROOT_PAGES.get(file, file.removeprefix("docs/"))

    def target(match: re.Match) -> str:
        file = posixpath.normpath(posixpath.join(posixpath.dirname(path), match[1]))
        anchor = match[2] or ""
        if not file.startswith("docs/") and file not in ROOT_PAGES and (ROOT / file).exists():
            return REPOSITORY + file + anchor
        return posixpath.relpath(place(file), posixpath.dirname(place(path)) or ".") + anchor

    # What stands in code is no link.
    parts, end = [], 0
    for code in _CODE.finditer(text):
        parts += [_LINK.sub(target, text[end : code.start()]), code[0]]
        end = code.end()
    return "".join([*parts, _LINK.sub(target, text[end:])])


# ------------------------------------------------------------------------------------------------------- hooks


def on_config(config):
    """Leaves pages of the root that aren't there out of the navigation."""
    absent = {page for file, page in ROOT_PAGES.items() if not (ROOT / file).is_file()}

    def kept(entries):
        for entry in entries:
            if isinstance(entry, dict):
                (title, inside), *_ = entry.items()
                if inside not in absent if isinstance(inside, str) else True:
                    yield {title: inside if isinstance(inside, str) else list(kept(inside))}
            elif entry not in absent:
                yield entry

    config.nav = list(kept(config.nav))
    return config


def on_files(files, config):
    """Adds the pages that lie in the root, and those of the reference."""
    from mkdocs.structure.files import File

    texts = {page: (ROOT / file).read_text() for file, page in ROOT_PAGES.items() if (ROOT / file).is_file()}
    for page, text in (texts | api_pages()).items():
        files.append(File.generated(config, page, content=text))
    return files


def on_page_markdown(markdown, page, config, files):
    """Fills in what a page asks for, and points its links to their places."""
    places = {site: file for file, site in ROOT_PAGES.items()}
    markdown = rehomed(markdown, places.get(page.file.src_uri, f"docs/{page.file.src_uri}"))
    return _PLACEHOLDER.sub(lambda match: _GENERATED[match[1]](), markdown)


# The functions by the names by which pages ask for them.
_GENERATED = {"config": config, "zoo": zoo, "console": console, "commands": commands}
