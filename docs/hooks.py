"""What MkDocs calls while it builds the site: adds pages that lie elsewhere or are generated, and mends links."""

import posixpath
import re

import generate
from generate import ROOT

REPOSITORY = "https://github.com/cnn-research/cnn-research/blob/main/"
# Pages of the root's own, by their place in the site. One that isn't there is left out.
ROOT_PAGES = {"RESULTS.md": "results.md", "CHANGELOG.md": "changelog.md", "CONTRIBUTING.md": "contributing.md"}
_PLACEHOLDER = re.compile(r"^<!-- generated: (\w+) -->$", re.MULTILINE)
_LINK = re.compile(r"(?<=\]\()(?![a-z]+:|#)([^)\s#]+)(#[^)\s]*)?(?=\))")
_CODE = re.compile(r"^(```+).*?^\1$|`[^`\n]+`", re.MULTILINE | re.DOTALL)


def on_config(config):
    """Leaves pages of the root that aren't there out of the navigation, and lists those of the reference."""
    absent = {page for file, page in ROOT_PAGES.items() if not (ROOT / file).is_file()}
    reference = [{page.split("/")[1].removesuffix(".md"): page} for page in generate.api_pages()]

    def kept(entries):
        for entry in entries:
            ((title, inside),) = entry.items()
            if isinstance(inside, list):
                yield {title: list(kept(inside))}
            elif inside not in absent:
                yield {title: reference if inside == "api" else inside}

    config.nav = list(kept(config.nav))
    return config


def on_files(files, config):
    """Adds the pages that lie in the root, and those of the reference."""
    from mkdocs.structure.files import File  # not where the tests run

    texts = {page: (ROOT / file).read_text() for file, page in ROOT_PAGES.items() if (ROOT / file).is_file()}
    for page, text in (texts | generate.api_pages()).items():
        files.append(File.generated(config, page, content=text))
    return files


def on_page_markdown(markdown, page, config, files):
    """Fills in what a page asks for, and points its links to their places."""
    places = {site: file for file, site in ROOT_PAGES.items()}
    markdown = rehomed(markdown, places.get(page.file.src_uri, f"docs/{page.file.src_uri}"))
    return _PLACEHOLDER.sub(lambda match: generate.GENERATED[match[1]](), markdown)


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
