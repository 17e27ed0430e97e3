"""Reports as people see them: in a browser without a network, wide and narrow, light and dark.

REPORTS="FILE ..." in the environment names other reports to look at, such as those of long runs.
"""

import io
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from runs_for_tests import COLOURED, GREY, train

from cnn_research.report.page import write_report

pytestmark = pytest.mark.browser

GIVEN = os.environ.get("REPORTS", "").split()
WIDTHS = {"desktop": (1280, 800), "phone": (390, 844)}


@pytest.fixture(scope="module", params=GIVEN or ["grey", "coloured"])
def report(request, tmp_path_factory):
    """A report's file."""
    if GIVEN:
        return Path(request.param).resolve()
    fields = {"grey": GREY, "coloured": COLOURED}[request.param]
    return Path(write_report([train(tmp_path_factory.mktemp("runs") / request.param, **fields)]))


class Visit:
    """A page that is open, with what it asked for and what it complained of."""

    def __init__(self, browser, file, size="desktop", scheme="light", **options):
        width, height = WIDTHS[size]
        self.context = browser.new_context(
            offline=True, viewport={"width": width, "height": height}, color_scheme=scheme, **options
        )
        self.page = self.context.new_page()
        self.requests, self.complaints = [], []
        self.page.on("request", lambda request: self.requests.append(request.url.split(":", 1)[0]))
        self.page.on("console", lambda said: self.complaints.extend([said.text] if said.type == "error" else []))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.goto(file.as_uri())

    def draw(self):
        """Scrolls to the 3D view, waits until it is drawn and returns it."""
        view = self.page.locator("#network3d")
        view.scroll_into_view_if_needed()
        self.page.wait_for_function("document.querySelector('#network3d canvas') !== null", timeout=60_000)
        self.page.wait_for_function("document.getElementById('network3d')._fullData !== undefined")
        self.page.wait_for_timeout(1500)
        return view

    def pixels(self, view):
        return np.asarray(Image.open(io.BytesIO(view.screenshot())).convert("RGB"), np.int16)

    def overflow(self):
        return self.page.evaluate("document.documentElement.scrollWidth - window.innerWidth")


@pytest.fixture
def visit(chromium, report):
    visits = []

    def open_page(*args, **options):
        visits.append(Visit(chromium, report, *args, **options))
        return visits[-1]

    yield open_page
    for each in visits:
        each.context.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", WIDTHS)
def test_page_is_whole(visit, size, scheme):
    """No complaint, no request but for the file itself, nothing wider than the screen, the colours of the theme."""
    seen = visit(size, scheme)
    seen.draw()
    assert seen.overflow() <= 0
    assert seen.requests.count("file") == 1 and set(seen.requests) <= {"file", "data", "blob"}
    paper, ink = seen.page.evaluate(
        "(s => [s.backgroundColor, s.color].map(c => c.match(/\\d+/g).map(Number)))(getComputedStyle(document.body))"
    )
    assert (
        (np.mean(paper) < 60 and np.mean(ink) > 200) if scheme == "dark" else np.mean(paper) > 240 > 60 > np.mean(ink)
    )
    assert seen.complaints == []


def test_file_is_small(report):
    assert report.stat().st_size < 8e6


def test_every_image_is_drawn_and_described(visit):
    images = visit().page.eval_on_selector_all("img", "all => all.map(i => [i.alt, i.complete && i.naturalWidth])")
    assert images and all(alt and width > 0 for alt, width in images)


def test_every_link_leads_somewhere(visit):
    lost = visit().page.evaluate(
        "[...document.querySelectorAll('a')].map(a => a.getAttribute('href'))"
        ".filter(h => !h.startsWith('#') || !document.getElementById(h.slice(1)))"
    )
    assert lost == []


def test_a_cell_shows_its_images(visit):
    page = visit().page
    cells = page.locator("table.matrix a")
    shown = page.locator(".gallery:visible")
    assert shown.count() == 1  # of the most confused pair
    for number in (0, cells.count() - 1):
        cells.nth(number).click()
        assert shown.count() == 1 and f"#{shown.get_attribute('id')}" == cells.nth(number).get_attribute("href")
        assert shown.locator("img").first.is_visible()


@pytest.mark.parametrize("size", WIDTHS)
def test_network_is_drawn_and_turns(visit, size):
    seen = visit(size)
    view = seen.draw()
    assert seen.page.evaluate("document.getElementById('network3d')._fullData.every(t => t.type === 'mesh3d')")
    before = seen.pixels(view)
    drawn = np.abs(before - before[5, 5]).max(axis=-1) > 24
    assert 0.03 < drawn.mean() < 0.7 and before[drawn].std() > 30  # neither blank nor one patch
    box = view.bounding_box()
    middle = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    seen.page.mouse.move(*middle)
    seen.page.mouse.down()
    for step in range(1, 6):
        seen.page.mouse.move(middle[0] + 0.05 * step * box["width"], middle[1] + 4 * step)
    seen.page.mouse.up()
    seen.page.wait_for_timeout(700)
    changed = np.abs(seen.pixels(view) - before).max(axis=-1) > 24
    assert changed.mean() > 0.02
    assert seen.complaints == []


def test_without_scripts_only_the_3d_view_is_missing(visit):
    page = visit(java_script_enabled=False).page
    assert page.get_by_text("The network in 3D needs JavaScript.").is_visible()
    assert page.locator(".gallery:visible").count() == 1 and page.locator("svg").first.is_visible()
