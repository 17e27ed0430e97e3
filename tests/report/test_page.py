"""The page of a run, read as a browser without JavaScript would: what it says, and that nothing is missing."""

import base64
import gzip
import html.parser
import io
import json
import re

import numpy as np
import pytest
from PIL import Image
from sklearn.metrics import confusion_matrix

from cnn_research.report import page, sections
from cnn_research.report.run import open_run


class Page(html.parser.HTMLParser):
    """Elements as (tag, attributes), the text in them, and that of scripts and styles by id, or else tag."""

    def __init__(self, path):
        super().__init__()
        self.elements, self.text, self.scripts, self._inside = [], "", {}, None
        self.size = len(path.read_bytes())
        self.feed(path.read_text())

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.text += " "
        self.elements.append((tag, attributes))
        self._inside = (tag, attributes.get("id", tag))

    def handle_endtag(self, tag):
        self._inside = None

    def handle_data(self, data):
        if self._inside and self._inside[0] in ("script", "style"):
            self.scripts[self._inside[1]] = data
        else:
            self.text += data

    def all(self, tag):
        return [attributes for name, attributes in self.elements if name == tag]


@pytest.fixture(scope="module")
def run(coloured):
    return open_run(coloured)


@pytest.fixture(scope="module", params=["grey", "coloured"])
def report(request):
    """The page of each run."""
    return Page(page.write_report([request.getfixturevalue(request.param)]))


@pytest.fixture(scope="module")
def coloured_report(coloured):
    return Page(page.write_report([coloured]))


def test_every_image_is_in_the_page_and_described(report):
    images = report.all("img")
    assert len(images) > 40
    for image in images:
        kind, data = re.fullmatch(r"data:image/(png|webp);base64,(.+)", image["src"]).groups()
        pixels = Image.open(io.BytesIO(base64.b64decode(data)))
        assert pixels.format == kind.upper() and len(image["alt"]) > 5
        ratio = int(image["width"]) / pixels.width
        assert int(image["height"]) == pytest.approx(pixels.height * ratio, abs=1)


def test_every_link_leads_somewhere(report):
    targets = {attributes["id"] for _, attributes in report.elements if "id" in attributes}
    links = [attributes["href"] for attributes in report.all("a")]
    assert len(links) > 20 and {link.removeprefix("#") for link in links} <= targets


def test_nothing_is_loaded_from_elsewhere(report):
    for tag, attributes in report.elements:
        for name in ("src", "href", "data", "poster", "srcset", "action"):
            assert attributes.get(name, "").split(":")[0] in ("", "data") or attributes[name].startswith("#"), tag
    assert not re.search(r"@import|url\((?!#)", report.scripts["style"] + json.dumps(report.all("svg")))
    assert report.size < 8e6


def test_ids_are_unique(report):
    ids = [attributes["id"] for _, attributes in report.elements if "id" in attributes]
    figures = [identifier for identifier in ids if identifier.startswith(("pair-", "network3d", "plotly"))]
    assert len(figures) == len(set(figures)) and len(figures) > 10


def test_it_says_the_numbers(coloured_report, coloured, run):
    results = json.loads((coloured / "results.json").read_text())
    text = " ".join(coloured_report.text.split())
    assert f"{100 * results['test']['accuracy']:.2f} %" in text and f"{results['parameters']:,}" in text
    assert f"{results['test']['loss']:.4f}" in text and "of 200 images of test[:200] are right" in text
    assert "model.filters 4, 8" in text and "optimizer.learning_rate 0.01 0.05" in text
    for name, version in results["versions"].items():
        assert f"{name.replace('_', ' ')} {version}" in text


def test_cells_have_the_counts_and_lead_to_that_many_images(coloured_report, run):
    matrix = confusion_matrix(run.labels, run.probabilities.argmax(axis=1), labels=range(4))
    cells = re.findall(r'<a class="(right|wrong)"[^>]*href="#pair-(\d+)-(\d+)"[^>]*>(\d+)</a>', page.render(run))
    found = np.zeros((4, 4), int)
    for kind, true, predicted, count in cells:
        assert (kind == "right") == (true == predicted)
        found[int(true), int(predicted)] = count
    assert np.array_equal(found, matrix)
    galleries = {gallery["id"]: gallery for gallery in sections.confusion(run, matrix)["galleries"]}
    for true in range(4):
        for predicted in range(4):
            shown = galleries.get(f"pair-{true}-{predicted}", {"images": []})["images"]
            assert len(shown) == min(matrix[true, predicted], 12)


def test_a_gallery_shows_the_surest_mistakes(run):
    matrix = confusion_matrix(run.labels, run.probabilities.argmax(axis=1), labels=range(4))
    gallery = sections.confusion(run, matrix)["galleries"][0]
    true, predicted = np.unravel_index(np.argmax(matrix - np.diag(np.diag(matrix))), (4, 4))
    there = (run.labels == true) & (run.probabilities.argmax(axis=1) == predicted)
    surest = np.flatnonzero(there)[np.argmax(run.probabilities[there, predicted])]
    assert gallery["id"] == f"pair-{true}-{predicted}"
    assert gallery["images"][0]["alt"].startswith(
        f"test[:200] image {surest}: {run.classes[true]}, taken for {run.classes[predicted]}, "
    )


def test_what_is_packed_can_be_unpacked(report):
    figure, script = (
        gzip.decompress(base64.b64decode(report.scripts[name])).decode() for name in ("network3d-figure", "plotly")
    )
    names = [trace["name"] for trace in json.loads(figure)["data"]]
    assert names[0] == "image" and "conv1" in names and names[-1] == "classes"
    assert "plotly.js" in script[:300]


def test_names_cannot_bring_markup(run):
    """Of classes and folders, which come from other people's data sets."""
    evil = '<script>alert("1")</script>&'
    run.predictor.classes, classes = (evil, *run.classes[1:]), run.classes
    try:
        text = page.render(run)
    finally:
        run.predictor.classes = classes
    assert "<script>alert" not in text and "&lt;script&gt;alert" in text


def test_many_classes_have_a_picture_for_a_matrix(run, monkeypatch):
    monkeypatch.setattr(sections, "_TABLE_CLASSES", 3)
    text = page.render(run)
    assert 'class="matrix"' not in text and "Confusion matrix of 4 classes" in text and 'href="#pair-' in text


def test_with_many_classes_all_that_is_right_and_the_most_confused_have_a_gallery():
    # 15 classes: 225 cells, but only 100 galleries.
    matrix = np.arange(225).reshape(15, 15) + 1
    pairs = sections._gallery_pairs(matrix)
    assert len(pairs) == 100 and {(k, k) for k in range(15)} <= set(pairs) and (14, 13) in pairs
    # Of 30 classes there is a picture instead of a table: nothing leads to what is right.
    assert all(true != predicted for true, predicted in sections._gallery_pairs(np.ones((30, 30), int)))


@pytest.mark.parametrize(
    ("words", "typed"),
    [
        (["/a/bin/python", "experiments/train.py", "--config=x"], "python experiments/train.py|--config=x"),
        (["/a/bin/python", "/a/bin/cnn-research", "train", "--config=x"], "cnn-research train|--config=x"),
        (["/a/b c/python3", "-m", "cnn_research.commands", "train"], "python3 -m cnn_research.commands train"),
        (["python", "--config=two words", "--workdir=w"], "python '--config=two words'|--workdir=w"),
        ([], ""),
    ],
)
def test_command_as_it_is_typed(words, typed):
    assert sections.command({"command": words}) == typed.replace("|", " \\\n    ")
