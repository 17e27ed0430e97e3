"""What pyproject.toml promises, and the rules of the source tree that import-linter can't see."""

import ast
import importlib.metadata
import os
import re
import sys
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import Version

import cnn_research
from cnn_research.commands.__main__ import COMMANDS

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "cnn_research"
EXPERIMENTS = ROOT / "experiments"
FILES = sorted(PACKAGE.rglob("*.py"))
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
CORE = [Requirement(line) for line in PROJECT["project"]["dependencies"]]
EXTRAS = [Requirement(line) for name in ("cuda", "tpu") for line in PROJECT["project"]["optional-dependencies"][name]]

# What the extra `explain` brings, by the name that it is imported by; absent, it is missed only by whoever asks for it.
OPTIONAL = {"umap": "umap-learn", "saliency": "saliency"}

# The places, as prefixes of the path in the package, where each of these may be used.
PLACES = {
    "jax.pmap": "training/parallel.py",
    "jax.distributed": "training/parallel.py",
    "jax.experimental.multihost_utils": "training/parallel.py",
    "flax.jax_utils": "training/parallel.py",
    **dict.fromkeys(OPTIONAL, "explain/"),
    "print": "commands/",
    "sys.exit": "commands/",
    "absl.app": "commands/",
    "absl.flags": ("commands/", "data/streaming.py"),  # Grain's processes refuse to start with unparsed flags
}


def pins(name: str) -> dict[str, Version]:
    """The versions in a file of constraints/ by canonical name."""
    found = {}
    for line in (ROOT / "constraints" / name).read_text().splitlines():
        if text := line.split("#")[0].strip():
            requirement = Requirement(text)
            (specifier,) = requirement.specifier
            assert specifier.operator == "==" and canonicalize_name(requirement.name) not in found, line
            found[canonicalize_name(requirement.name)] = Version(specifier.version)
    return found


def needed(requirements: list[Requirement], known: dict[str, Version]) -> set[str]:
    """What these and theirs ask for, here, by canonical name; those of a version that is not known are not asked."""
    todo, seen = list(requirements), set()
    while todo:
        requirement = todo.pop()
        name = canonicalize_name(requirement.name)
        if (name, *sorted(requirement.extras)) not in seen:
            seen.add((name, *sorted(requirement.extras)))
            if known.get(name) != Version(importlib.metadata.version(name)):
                continue
            for line in importlib.metadata.requires(name) or []:
                marker = Requirement(line).marker
                if not marker or any(marker.evaluate({"extra": extra}) for extra in ("", *requirement.extras)):
                    todo.append(Requirement(line))
    return {name for name, *_ in seen}


def dotted(node: ast.expr, aliases: dict[str, str]) -> str | None:
    """The full name that an expression such as `jnp.linalg.norm` stands for; None if it is more than dots and names."""
    if isinstance(node, ast.Name):
        return aliases.get(node.id, node.id)
    if isinstance(node, ast.Attribute) and (base := dotted(node.value, aliases)):
        return f"{base}.{node.attr}"
    return None


def imports(tree: ast.AST) -> dict[str, str]:
    """Full name of everything that is imported anywhere in a file, by the name it has there."""
    aliases = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                # `import a.b as c` binds c to a.b, but `import a.b` binds a: then a.b gets a key that no name equals.
                aliases[alias.asname or alias.name] = alias.name
                if not alias.asname:
                    top = alias.name.split(".")[0]
                    aliases[top] = top
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            aliases |= {alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names}
    return aliases


def used_names(source: str) -> set[str]:
    """Full names of everything that a file imports or mentions."""
    tree = ast.parse(source)
    aliases = imports(tree)
    mentioned = {dotted(node, aliases) for node in ast.walk(tree) if isinstance(node, ast.Name | ast.Attribute)}
    return {name for name in mentioned if name} | set(aliases.values())


def uses(source: str, name: str) -> bool:
    return any(used == name or used.startswith(f"{name}.") for used in used_names(source))


@pytest.mark.parametrize("requirement", CORE + EXTRAS, ids=str)
def test_lower_bound_is_the_oldest_tested_version(requirement):
    bounds = [Version(specifier.version) for specifier in requirement.specifier if specifier.operator == ">="]
    assert bounds == [pins("oldest.txt")[canonicalize_name(requirement.name)]]


def test_oldest_pins_only_what_is_a_dependency():
    oldest = pins("oldest.txt")
    assert set(oldest) == {canonicalize_name(requirement.name) for requirement in CORE} | {"jaxlib"}
    assert oldest["jaxlib"] == oldest["jax"]


@pytest.mark.parametrize("requirement", CORE, ids=str)
def test_newest_pins_fit_the_bounds(requirement):
    name = canonicalize_name(requirement.name)
    assert pins("newest.txt")[name] in requirement.specifier
    assert pins("newest.txt")[name] >= pins("oldest.txt")[name]


def test_newest_pins_everything_that_is_installed_with_it():
    if sys.platform != "linux" or sys.version_info < (3, 12):
        pytest.skip("they are those of Linux and newer Pythons")
    newest = pins("newest.txt")
    assert needed(CORE, newest) <= set(newest)


def test_core_dependencies_stay_light():
    heavy = {"tensorflow", "tensorflow-cpu", "torch", "torchvision", "clu", "opencv-python", "opencv-python-headless"}
    assert not heavy & {canonicalize_name(requirement.name) for requirement in CORE}


def test_core_dependencies_bring_everything_that_is_imported():
    distributions = importlib.metadata.packages_distributions()
    declared = {canonicalize_name(requirement.name) for requirement in CORE}
    undeclared = set()
    for file in FILES:
        modules = {name.split(".")[0] for name in imports(ast.parse(file.read_text())).values()}
        for module in modules - sys.stdlib_module_names - {"cnn_research", *OPTIONAL}:
            if not declared & {canonicalize_name(name) for name in distributions.get(module, [])}:
                undeclared.add(f"{module} in {file.relative_to(ROOT)}")
    assert not undeclared


def test_optional_packages_are_those_of_the_extra():
    extra = PROJECT["project"]["optional-dependencies"]["explain"]
    assert set(OPTIONAL.values()) == {canonicalize_name(Requirement(line).name) for line in extra}


def test_optional_packages_are_imported_by_the_functions_that_need_them():
    for file in FILES:
        body = [node for node in ast.parse(file.read_text()).body if isinstance(node, ast.Import | ast.ImportFrom)]
        assert not {name.split(".")[0] for name in imports(ast.Module(body, [])).values()} & set(OPTIONAL), file


def test_every_package_directory_is_listed():
    directories = {".".join(file.parent.relative_to(ROOT).parts) for file in FILES}
    moved = PROJECT["tool"]["setuptools"]["package-dir"]
    assert directories | set(moved) == set(PROJECT["tool"]["setuptools"]["packages"])
    for name in directories:
        assert (ROOT / name.replace(".", "/") / "__init__.py").is_file(), name
    # The name in the wheel is what commands/experiments.py looks for; what is directly in experiments/ starts commands.
    of_experiments = {file.parent for file in EXPERIMENTS.rglob("*.py") if file.parent != EXPERIMENTS}
    assert {f"cnn_research.{folder.name}": folder for folder in of_experiments} == {
        name: ROOT / folder for name, folder in moved.items()
    }


def test_every_other_file_of_the_package_is_installed():
    listed = {
        file
        for name, patterns in PROJECT["tool"]["setuptools"]["package-data"].items()
        for pattern in patterns
        for file in (ROOT / name.replace(".", "/")).glob(pattern)
    }
    others = {file for file in PACKAGE.rglob("*") if file.is_file() and file.suffix not in (".py", ".pyc")}
    assert others == listed


def paths_in_tree(text: str) -> set[str]:
    """The paths that a tree names: a file or several, or a folder with its "/", to the left of what it says of them."""
    paths, folders = set(), [""]
    for line in text.splitlines():
        indent, names = re.match(r"( *)(\S+(?: \S+)*)", line).groups()
        if len(indent) > 8:  # more of what is said of the line above
            continue
        del folders[len(indent) // 2 + 1 :]
        named = [folders[-1] + name for name in names.split()]
        paths.update(named)
        if named[0].endswith("/"):
            folders.append(named[0])
    return paths


def test_architecture_names_what_there_is():
    _, tree, text = (ROOT / "docs" / "architecture.md").read_text().split("```")
    named = paths_in_tree(tree.strip("\n"))
    modules = {file.relative_to(ROOT).as_posix() for file in FILES if file.name != "__init__.py"}
    assert modules - named == set() and {path for path in named if not (ROOT / path).exists()} == set()
    for module in re.findall(r"[\w/]+\.py\b", text):
        assert list(ROOT.glob(module)) or list(PACKAGE.rglob(module)), module


def test_the_tree_is_read_as_it_is_written():
    text = "a/  of one  and\n  b.py c.py     both\n  d/    x\n    e.py\n          more words\n  f.py\ng/"
    assert paths_in_tree(text) == {"a/", "a/b.py", "a/c.py", "a/d/", "a/d/e.py", "a/f.py", "g/"}


def test_console_has_every_command():
    """A command is a module of commands/ with a run() that takes nothing."""
    functions = {
        file.stem: [node for node in ast.parse(file.read_text()).body if isinstance(node, ast.FunctionDef)]
        for file in (PACKAGE / "commands").glob("*.py")
    }
    modules = {stem for stem, nodes in functions.items() for node in nodes if node.name == "run" and not node.args.args}
    assert modules == set(COMMANDS)
    # A checkout has a script for each too, but for what belongs to the console alone.
    assert {file.stem for file in EXPERIMENTS.glob("*.py")} == modules - {"completion"}
    for name in modules - {"completion"}:
        body = [node for node in ast.parse((EXPERIMENTS / f"{name}.py").read_text()).body[1:]]
        assert ast.unparse(ast.Module(body, [])).splitlines() == [
            f"from cnn_research.commands import {name}",
            "if __name__ == '__main__':",
            f"    {name}.run()",
        ]


@pytest.mark.parametrize(("name", "place"), PLACES.items())
def test_has_one_place(name, place):
    elsewhere = [file.relative_to(PACKAGE).as_posix() for file in FILES if uses(file.read_text(), name)]
    assert [path for path in elsewhere if not path.startswith(place)] == []


@pytest.mark.parametrize(
    ("source", "name", "expected"),
    [
        ("import jax\nf = jax.pmap(g)", "jax.pmap", True),
        ("import jax as j\nf = j.pmap(g)", "jax.pmap", True),
        ("from jax import pmap", "jax.pmap", True),
        ("import functools, jax\nf = functools.partial(jax.pmap, axis_name='device')", "jax.pmap", True),
        ("def f():\n    import jax.distributed", "jax.distributed", True),
        ("from jax import distributed as d", "jax.distributed", True),
        ("import jax\njax.distributed.initialize()", "jax.distributed", True),
        ("from jax.experimental.multihost_utils import sync_global_devices", "jax.experimental.multihost_utils", True),
        ("from flax import jax_utils", "flax.jax_utils", True),
        ("from flax.jax_utils import replicate", "flax.jax_utils", True),
        ("print('x')", "print", True),
        ("from functools import partial\nsay = partial(print, end='')", "print", True),
        ("import sys\nsys.exit(2)", "sys.exit", True),
        ("from absl import flags", "absl.flags", True),
        ("import jax\nf = jax.vmap(g)  # not jax.pmap", "jax.pmap", False),
        ("class A:\n    def print(self): self.print()", "print", False),
        ("from flax import linen as nn, traverse_util", "flax.jax_utils", False),
        ("import numpy as jax\njax.pmap", "jax.pmap", False),
    ],
)
def test_the_search_for_names_finds_them(source, name, expected):
    assert uses(source, name) is expected


def read_yaml(path):
    return yaml.safe_load((ROOT / path).read_text())


def test_python_versions_agree():
    """Of the package, of what `make` looks for, and of the workflow, which has the newest and the oldest."""
    prefix = "Programming Language :: Python :: "
    classifiers = PROJECT["project"]["classifiers"]
    versions = [line.removeprefix(prefix) for line in classifiers if line.startswith(prefix)]
    supported = SpecifierSet(PROJECT["project"]["requires-python"])
    assert [f"3.{minor}" for minor in range(8, 20) if Version(f"3.{minor}.1") in supported] == versions
    assert f"PYTHONS := {' '.join(reversed(versions))}\n" in (ROOT / "Makefile").read_text()
    (setup,) = [s for s in read_yaml(".github/workflows/ci.yml")["jobs"]["checks"]["steps"] if "with" in s]
    assert setup["with"]["python-version"].split() == [versions[0], versions[-1]]


def test_workflow_runs_the_same_as_everywhere():
    workflow = read_yaml(".github/workflows/ci.yml")
    assert set(workflow[True]) == {"push", "pull_request"}  # `on` is a truth value of YAML 1.1
    steps = [step for job in workflow["jobs"].values() for step in job["steps"]]
    assert [step["run"] for step in steps if "run" in step] == [".ci/run"]
    assert os.access(ROOT / ".ci" / "run", os.X_OK)


def test_targets_of_the_checks_exist():
    targets = set(re.findall(r"^([a-z-]+):.*## ", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for file in (".ci/run", "CONTRIBUTING.md", ".github/pull_request_template.md"):
        named = set(re.findall(r"(?:^|`)make ([a-z-]+)|`(test-[a-z]+)`", (ROOT / file).read_text(), re.M))
        assert {name for pair in named for name in pair if name} <= targets, file
    run = (ROOT / ".ci" / "run").read_text()
    # What takes an hour is for a person to start.
    assert {target for target in targets if target.startswith("test-")} - {"test-full"} <= set(
        re.findall(r"^make ([a-z-]+)", run, re.MULTILINE)
    )


def test_citation():
    citation = read_yaml("CITATION.cff")
    assert citation["cff-version"] == "1.2.0" and citation["message"] and citation["title"]
    assert citation["version"] == cnn_research.__version__
    assert citation["license"] == PROJECT["project"]["license"]
    assert citation["authors"] == [{"name": "cnn-research contributors"}]


def test_forms_for_issues():
    for name in ("bug", "feature"):
        form = read_yaml(f".github/ISSUE_TEMPLATE/{name}.yml")
        assert form["name"] and form["description"]
        identities = [field["id"] for field in form["body"]]
        assert len(set(identities)) == len(identities) and all(field["attributes"]["label"] for field in form["body"])


def test_hooks_use_the_environment_of_make():
    """And so its versions, of which pyproject.toml has the only list."""
    (repository,) = read_yaml(".pre-commit-config.yaml")["repos"]
    assert repository["repo"] == "local"
    for hook in repository["hooks"]:
        assert hook["language"] == "system" and hook["entry"].startswith(".venv/bin/"), hook["id"]
