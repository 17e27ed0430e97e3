"""Maps: which pictures they show, and where."""

import base64
import io
import itertools
import json
import re

import numpy as np
from PIL import Image

from cnn_research.explain import style
from cnn_research.explain.embedding_map import embedding_html, embedding_map

CLASSES = ("dog", "cat")
POINTS = np.random.default_rng(0).normal(size=(200, 2)).astype(np.float32)
LABELS = np.arange(200) % 2
# The first image is red, the others are blue.
IMAGES = np.zeros((200, 12, 12, 3), np.uint8)
IMAGES[:, ..., 2] = 200
IMAGES[0] = (200, 0, 0)


def test_every_point_is_there_in_the_colour_of_its_class():
    figure = embedding_map(POINTS, LABELS, CLASSES)
    dogs, cats = figure.axes[0].collections
    np.testing.assert_array_equal(dogs.get_offsets(), POINTS[LABELS == 0])
    np.testing.assert_array_equal(cats.get_offsets(), POINTS[LABELS == 1])
    assert (dogs.get_label(), cats.get_label()) == CLASSES
    assert not figure.axes[0].images


def test_thumbnails_stand_at_their_points_and_cover_no_other():
    axes = embedding_map(POINTS, LABELS, CLASSES, IMAGES).axes[0]
    boxes = [image.get_extent() for image in axes.images]
    centres = np.array([((l + r) / 2, (b + t) / 2) for l, r, b, t in boxes])  # noqa: E741
    indices = [int(np.abs(POINTS - centre).sum(axis=1).argmin()) for centre in centres]
    np.testing.assert_allclose(centres, POINTS[indices], atol=1e-5)
    for one, other in itertools.combinations(boxes, 2):
        assert one[1] <= other[0] or other[1] <= one[0] or one[3] <= other[2] or other[3] <= one[2]
    for index, image, frame in zip(indices, axes.images, axes.patches, strict=True):
        np.testing.assert_array_equal(image.get_array(), IMAGES[index])
        assert frame.get_edgecolor()[:3] == tuple(
            int(style.color(LABELS[index])[i : i + 2], 16) / 255 for i in (1, 3, 5)
        )
    # No point without a picture has room for one.
    half = (boxes[0][1] - boxes[0][0]) / 2
    assert all(np.abs(centres - point).max(axis=1).min() < 2.4 * half for point in POINTS)


def test_a_thumbnail_is_as_high_as_wide():
    figure = embedding_map(POINTS * (3, 1), LABELS, CLASSES, IMAGES)
    figure.draw_without_rendering()
    box = figure.axes[0].patches[0].get_window_extent()
    assert box.width > 20
    np.testing.assert_allclose(box.width, box.height, rtol=0.05)


def test_many_classes_have_markers_and_no_legend():
    labels = np.arange(200) % 25
    figure = embedding_map(POINTS, labels, [f"class {i}" for i in range(25)])
    assert not figure.legends
    first, eleventh = (figure.axes[0].collections[i] for i in (0, 10))
    np.testing.assert_array_equal(first.get_facecolor(), eleventh.get_facecolor())
    assert len(first.get_paths()[0]) != len(eleventh.get_paths()[0])


def test_all_points_in_one_place():
    embedding_map(np.zeros((5, 2)), LABELS[:5], CLASSES, IMAGES).draw_without_rendering()


def test_html_holds_every_point_and_its_picture():
    page = embedding_html(POINTS, LABELS, CLASSES, IMAGES)
    assert "{plot_id}" not in page
    assert "http" not in re.sub(r"https://plot\.ly", "", page.replace("http://www.w3.org", ""))
    sheet = json.loads(re.search(r"sheet = (\{.*?\});", page).group(1))
    assert (sheet["columns"], sheet["rows"]) == (15, 14)
    with Image.open(io.BytesIO(base64.b64decode(sheet["url"].partition(",")[2]))) as picture:
        assert picture.size == (15 * 12, 14 * 12)
        colours = np.asarray(picture.convert("RGB"))
    assert colours[6, 6, 0] > 150 > colours[6, 18, 0]  # red, then blue
    assert colours[6, 18, 2] > 150 > colours[6, 6, 2]
    assert len(page) < 40_000


def test_grey_pictures_in_html():
    page = embedding_html(POINTS, LABELS, CLASSES, np.full((200, 12, 12, 1), 0.5, np.float32))
    assert "data:image/webp" in page


def test_html_brings_plotly_where_it_is_asked_to():
    assert len(embedding_html(POINTS, LABELS, CLASSES, IMAGES, include_plotlyjs=True)) > 3_000_000
