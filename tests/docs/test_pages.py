"""The reference has every field, network and flag, and what the pages' commands name is there."""

import re
import shlex
import tomllib

import generate
import hooks
import pytest
from markdown_for_tests import ROOT, blocks, commands, inline_commands

from cnn_research.config import CHOICES, RESUMABLE, base_config, flatten
from cnn_research.models import registry

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
FIELDS = flatten(base_config().to_dict())
# Fields that a page misspells on purpose.
MISSPELT = {"optimizer.learning_rat"}
# Other programs that pages may call. What they do is not for us to check.
OTHERS = {"cp", "rm", "gcloud", "tensorboard", "jupytext"}
PLACEHOLDERS = {"...", "FILE", "NAME"}


# --------------------------------------------------------------------------------------------- generated pages


def test_every_field_has_its_comment_and_default():
    fields = generate.config_fields()
    assert {field for field, (default, _) in fields.items() if default} == set(FIELDS)
    for field, (default, comment) in fields.items():
        if default:
            assert comment or field in CHOICES, f"{field} has no comment"
            value = eval(default, {})
            assert value == FIELDS[field] and isinstance(value, type(FIELDS[field])), field


def test_every_field_and_its_choices_are_in_the_reference():
    text = generate.config()
    terms = {match[1]: match[2] for match in re.finditer(r"^`([\w.]+)`\{.*\n:   (.*)$", text, re.MULTILINE)}
    assert set(terms) == set(FIELDS)
    for field, choices in CHOICES.items():
        assert all(f"`{choice}`" in terms[field] for choice in choices)
    assert {field for field, about in terms.items() if "when a run goes on" in about} == set(RESUMABLE)


def test_a_comment_above_belongs_to_the_fields_below():
    fields = generate.config_fields()
    assert fields["optimizer.beta2"] == ("0.999", fields["optimizer.beta1"][1])
    assert fields["dataset"] == ("", "")  # not that of the field before it
    assert "for each stage" in fields["model"][1] and "stage" not in fields["model.name"][1]


@pytest.mark.parametrize("name", registry.list_models())
def test_every_network_is_in_the_zoo(name):
    (row,) = [line for line in generate.zoo().splitlines() if line.startswith(f"| `{name}` |")]
    facts = registry.model_facts(name)
    assert f"{facts.parameters:,}" in row and facts.paper in generate.zoo()
    if facts.source:
        assert facts.source in row


def test_every_command_and_flag_is_in_the_reference():
    text, scripts = generate.commands(), generate.command_flags()
    assert {"train", "evaluate", "predict", "report", "describe", "sweep", "benchmark", "prepare", "export"} <= set(
        scripts
    )
    for script, flags in scripts.items():
        assert f"\n## {script}\n" in f"\n{text}"
        for flag in flags:
            assert f"`--{flag}`{{ #{script}--{flag} }}" in text
    assert {"config", "workdir", "preview", "num_processes"} == set(scripts["train"]) & {
        *("config", "workdir", "preview", "num_processes", "grid")
    }
    assert str(ROOT) not in text and "/bin/python" not in text


def test_links_lead_into_the_site_or_the_repository():
    assert hooks.rehomed("[a](docs/data.md#x) [b](CHANGELOG.md)", "README.md") == "[a](data.md#x) [b](changelog.md)"
    assert hooks.rehomed("[c](../Makefile)", "docs/x.md") == f"[c]({hooks.REPOSITORY}Makefile)"
    assert hooks.rehomed("[d](../data.md)", "docs/how_to/x.md") == "[d](../data.md)"
    kept = "`[e](../Makefile)` [f](https://example.org/) [g](#here)"
    assert hooks.rehomed(kept, "docs/x.md") == kept


# --------------------------------------------------------------------------------------------------- commands


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_commands_are_of_things_that_exist(page):
    fenced = [command for block in blocks(page) for command in commands(block)]
    for command in [*fenced, *inline_commands(page)]:
        check(command)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_fields_exist(page):
    for field in re.findall(r"--config\.([a-z]\w*(?:\.\w+)*)", page.read_text()):
        assert field in FIELDS or field in MISSPELT, field


def test_pages_have_commands():
    assert sum(len(commands(block)) for page in PAGES for block in blocks(page)) > 30


def check(command):
    """Fails unless what a command names is there: the script, its flags, the config, the target, the extra."""
    words = shlex.split(command)
    while re.match(r"[A-Z_]+=", words[0]):
        del words[0]
    program, *rest = words
    if words == ["cnn-research"]:  # lists its commands
        return
    if program == "python" or program == "cnn-research":
        script = rest[0].removeprefix("experiments/").removesuffix(".py")
        if program == "cnn-research" and script not in generate.command_flags():  # one that no script stands for
            assert (ROOT / "cnn_research" / "commands" / f"{script}.py").is_file(), command
            return
        if script.startswith("rivals/"):  # they know nothing of this package, nor have they flags
            assert (ROOT / rest[0]).is_file(), command
            return
        known = generate.command_flags()
        assert script in known, command
        for word in rest[1:]:
            if word.startswith("--"):
                check_flag(word, known[script], command)
    elif program == "make":
        targets = set(re.findall(r"^([a-z-]+):.*## ", (ROOT / "Makefile").read_text(), re.MULTILINE))
        variables = set(re.findall(r"^([A-Z_]+) \??= ?", (ROOT / "Makefile").read_text(), re.MULTILINE))
        assert {word for word in rest if "=" not in word} <= targets, command
        assert {word.partition("=")[0] for word in rest if "=" in word} <= variables, command
    elif program == "pip":
        extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
        assert set(re.findall(r"[a-z]+", "".join(re.findall(r"\.\[(.*?)\]", command)))) <= set(extras), command
    elif program.startswith("experiments/"):
        assert (ROOT / program).is_file(), command
        for word in rest[rest.index("--") + 1 :] if "--" in rest else []:
            check_flag(word, generate.command_flags()["train"], command)
    else:
        assert program in OTHERS, f"how is {program} to be checked? {command}"
        assert program != "cp" or (ROOT / rest[0]).is_file(), command


def check_flag(word, flags, command):
    name, _, value = word.removeprefix("--").partition("=")
    if name.startswith("config."):
        return  # test_fields_exist
    assert name in flags or (name.startswith("no") and flags[name[2:]].boolean) or name == "flagfile", command
    if name in ("config", "augment") and value not in PLACEHOLDERS:
        file, _, mode = value.partition(":")
        assert (ROOT / file).is_file() or (ROOT / "experiments" / "configs" / f"{file}.py").is_file(), command
        assert mode in ("", "smoke"), command


@pytest.mark.parametrize(
    "command",
    [
        *("python experiments/trian.py --config=experiments/configs/lenet5_digits.py", "make tset"),
        *(
            "python experiments/train.py --wrkdir=x",
            "python experiments/train.py --config=experiments/configs/lenet.py",
        ),
        *("pip install -e '.[tpus]'", "experiments/tpu/creat.sh", "cp experiments/tpu/none.env x", "wget x"),
    ],
)
def test_what_does_not_exist_is_noticed(command):
    with pytest.raises((AssertionError, KeyError)):
        check(command)
