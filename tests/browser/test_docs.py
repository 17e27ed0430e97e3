"""The documentation opens from the disk, on a phone and on a desk, light and dark, and asks nobody for anything."""

import subprocess
import sys

import pytest
from markdown_for_tests import ROOT

pytestmark = pytest.mark.browser

PAGES = [path.relative_to(ROOT / "docs").with_suffix(".html").as_posix() for path in (ROOT / "docs").rglob("*.md")]
PAGES += [f"api/{name}.html" for name in ("data", "models", "explain")]


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    pytest.importorskip("mkdocs", reason="make docs installs it")
    folder = tmp_path_factory.mktemp("site")
    subprocess.run([sys.executable, "-m", "mkdocs", "build", "--quiet", "-d", folder], cwd=ROOT, check=True)
    return folder


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280])
def test_pages_fit_and_ask_nobody(chromium, site, width, scheme):
    page = chromium.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
    asked, errors = [], []
    page.on("request", lambda request: asked.append(request.url))
    page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: errors.append(str(error)))
    for name in PAGES:
        page.goto(f"{site.as_uri()}/{name}")
        assert page.evaluate("document.documentElement.scrollWidth - innerWidth") <= 0, name
        assert page.evaluate("[...document.images].filter((image) => !image.naturalWidth).length") == 0, name
        # What is wider than the page may be moved sideways within its own box.
        wide = "[...document.querySelectorAll('.md-content :is(p, li, dt, dd, img, h1, h2, h3, h4)')]"
        wide += ".filter((e) => e.getBoundingClientRect().right > innerWidth + 1 && !e.closest('pre, table'))"
        assert page.evaluate(f"{wide}.map((e) => e.textContent)") == [], name
    assert not errors
    assert [url for url in asked if not url.startswith((site.as_uri(), "data:", "blob:"))] == []


def test_search_finds_a_field_from_the_disk(chromium, site):
    page = chromium.new_page(viewport={"width": 1280, "height": 900})
    page.goto(f"{site.as_uri()}/index.html")
    page.fill(".md-search__input", "stochastic_depth_rate")
    page.wait_for_selector(".md-search-result__link[href*='config.html']")
