"""The map of a set of images in a browser: the picture under the pointer is shown, without a network."""

import io

import numpy as np
import pytest
from PIL import Image

from cnn_research.explain.embedding_map import embedding_html

pytestmark = pytest.mark.browser


@pytest.mark.parametrize("width", [390, 1280])
def test_the_picture_under_the_pointer_is_shown(chromium, tmp_path, width):
    points = np.array([[0, 0], [1, 1], [0, 1], [1, 0]], np.float32)
    colours = np.array([[220, 0, 0], [0, 220, 0], [0, 0, 220], [220, 220, 0]], np.uint8)
    images = np.broadcast_to(colours[:, None, None], (4, 16, 16, 3))
    page_file = tmp_path / "map.html"
    page_file.write_text(embedding_html(points, np.array([0, 1, 0, 1]), ("dog", "cat"), images, include_plotlyjs=True))
    context = chromium.new_context(offline=True, viewport={"width": width, "height": 700})
    page = context.new_page()
    problems = []
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("console", lambda message: problems.append(message.text) if message.type == "error" else None)
    page.goto(page_file.as_uri())
    page.wait_for_selector(".plotly-graph-div .point", state="attached")
    # In the order of the traces: dogs 0 and 2, then cats 1 and 3.
    for dot, index in zip(page.query_selector_all(".plotly-graph-div .points .point"), (0, 2, 1, 3), strict=True):
        box = dot.bounding_box()
        page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
        window = page.locator(".plotly-graph-div > div").last
        window.wait_for(state="visible")
        page.wait_for_timeout(200)
        with Image.open(io.BytesIO(window.screenshot())) as shot:
            assert np.abs(np.asarray(shot.convert("RGB"))[50, 50] - colours[index].astype(int)).max() < 40
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert not problems
    context.close()
