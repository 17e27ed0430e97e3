"""A headless browser, wherever it comes from."""

import os
import shutil
import sys

import pytest

NAMES = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome")
INSTALL = (
    "these tests need a browser: apt-get install --no-install-recommends chromium-headless-shell, or "
    f"{sys.executable} -m playwright install --with-deps --only-shell chromium"
)


@pytest.fixture(scope="session")
def chromium():
    """A running Chromium. Without a GPU it draws WebGL by its own means, if it is told to."""
    playwright = pytest.importorskip("playwright.sync_api", reason="make test-browser installs it").sync_playwright()
    with playwright as started:
        own = started.chromium.executable_path
        path = next(filter(None, map(shutil.which, NAMES)), own if os.path.exists(own) else None)
        if path is None:
            pytest.exit(INSTALL, returncode=2)
        browser = started.chromium.launch(executable_path=path, args=["--no-sandbox", "--enable-unsafe-swiftshader"])
        yield browser
        browser.close()
