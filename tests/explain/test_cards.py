import matplotlib
import numpy as np
import pytest

from cnn_research.explain import cards, style

TOP = [("dog", 0.71), ("cat", 0.2), ("a ship with a very, very long name", 0.05)]
IMAGE = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)


def test_shows_the_pixels_and_the_confidences():
    figure = cards.draw_card(IMAGE, TOP)
    picture, bars = figure.axes
    (shown,) = picture.images
    np.testing.assert_array_equal(shown.get_array(), IMAGE)
    assert shown.get_interpolation() == "nearest"
    assert [bar.get_width() for bar in bars.patches] == [share for _, share in TOP]
    names = [label.get_text() for label in bars.get_yticklabels()]
    assert names[:2] == ["dog", "cat"] and names[2].startswith("a ship") and names[2].endswith("…")
    # The most likely on top: of screen heights the largest.
    heights = [bars.transData.transform((0, bar.get_y()))[1] for bar in bars.patches]
    assert heights == sorted(heights, reverse=True)
    assert [text.get_text() for text in bars.texts] == ["71.0 %", "20.0 %", "5.0 %"]


@pytest.mark.parametrize(
    ("truth", "title", "color"),
    [
        (None, "dog 71 %", style.INK),
        ("dog", "dog 71 %", style.RIGHT),
        ("cat", "dog 71 % · true: cat", style.WRONG),
    ],
)
def test_title(truth, title, color):
    figure = cards.draw_card(IMAGE[..., :1], TOP, truth)
    assert figure.get_suptitle() == title
    assert matplotlib.colors.same_color(figure._suptitle.get_color(), color)


def test_fits_into_its_figure():
    """Whatever is written stays inside, with a full bar and the longest names."""
    top = [("a class with the longest name of all of them", 1.0), *((f"class {k}", 0.0) for k in range(9))]
    figure = cards.draw_card(IMAGE, top, truth="another class with as long a name as that")
    figure.draw_without_rendering()
    inside = figure.get_tightbbox()
    width, height = figure.get_size_inches()
    assert inside.x0 >= 0 and inside.y0 >= 0 and inside.x1 <= width and inside.y1 <= height


@pytest.mark.parametrize(("image", "top"), [(IMAGE, []), (IMAGE[0], TOP), (IMAGE[..., :2], TOP)])
def test_no_card(image, top):
    with pytest.raises(ValueError, match="a card needs"):
        cards.draw_card(image, top)
