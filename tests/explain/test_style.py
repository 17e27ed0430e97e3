"""What readers need of colours, and what pages need of embedded figures."""

import io
import itertools
import xml.etree.ElementTree as ElementTree

import matplotlib
import numpy as np
import pytest
from matplotlib.colors import to_rgb
from PIL import Image

from cnn_research.explain import style

WHITE, DARK = "#ffffff", "#121212"
# Machado, Oliveira & Fernandes 2009, A physiologically-based model for simulation of color vision deficiency, severity
# 1: what people without red or without green cones see, for linear RGB.
DEFICIENCIES = {
    "deuteranopia": [
        [0.367322, 0.860646, -0.227968],
        [0.280085, 0.672501, 0.047413],
        [-0.011820, 0.042940, 0.968881],
    ],
    "protanopia": [
        [0.152286, 1.052583, -0.204868],
        [0.114503, 0.786281, 0.099216],
        [-0.003882, -0.048116, 1.051998],
    ],
}


def linear(color):
    rgb = np.array(to_rgb(color))
    return np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)


def contrast(one, other):
    """WCAG 2.1's ratio."""
    light, dark = sorted((linear(c) @ (0.2126, 0.7152, 0.0722) for c in (one, other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def lab(rgb):
    """CIE 1976 of linear sRGB."""
    xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]) @ np.clip(rgb, 0, 1)
    ratio = xyz / (0.9505, 1, 1.089)
    x, y, z = np.where(ratio > 0.008856, np.cbrt(ratio), 7.787 * ratio + 16 / 116)
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


@pytest.mark.parametrize("ground", [WHITE, DARK])
@pytest.mark.parametrize("color", [*style.PALETTE, style.RIGHT, style.WRONG])
def test_lines_stand_out_from_light_and_dark_grounds(color, ground):
    assert contrast(color, ground) >= 3


@pytest.mark.parametrize("ground", [WHITE, DARK])
def test_text_stands_out_from_light_and_dark_grounds(ground):
    assert contrast(style.INK, ground) >= 4


@pytest.mark.parametrize("matrix", DEFICIENCIES.values(), ids=DEFICIENCIES)
@pytest.mark.parametrize(
    ("colors", "least"), [(style.PALETTE[:6], 20), (style.PALETTE, 14), ((style.RIGHT, style.WRONG), 20)]
)
def test_colors_differ_for_colour_blind_people(colors, least, matrix):
    seen = [lab(np.array(matrix) @ linear(color)) for color in colors]
    assert min(np.linalg.norm(a - b) for a, b in itertools.combinations(seen, 2)) >= least


def test_colors_come_again():
    assert style.color(0) == style.color(len(style.PALETTE)) != style.color(1)


@pytest.mark.parametrize(
    ("share", "text"),
    [(0.9912, "99.1 %"), (1, "100 %"), (0, "0 %"), (0.9999, "99.99 %"), (0.0001, "0.01 %"), (float("nan"), "–")],
)
def test_percent(share, text):
    assert style.percent(share) == text


@style.styled
def some_figure():
    figure = style.figure(2, 1)
    axes = figure.add_subplot()
    axes.plot([0, 1], [0, 1], color=style.color(0))
    axes.set_title("a title")
    return figure


def test_the_settings_of_the_caller_stay():
    before = dict(matplotlib.rcParams)
    some_figure()
    assert dict(matplotlib.rcParams) == before


def test_svg_takes_the_colour_of_the_page_and_keeps_its_text():
    text = style.svg(some_figure())
    root = ElementTree.fromstring(text)
    assert root.tag.endswith("svg")
    assert "currentColor" in text
    assert style.INK not in text.lower()
    assert style.color(0) in text
    assert "a title" in [element.text for element in root.iter("{http://www.w3.org/2000/svg}text")]


def test_svg_of_the_same_figure_is_the_same():
    assert style.svg(some_figure()) == style.svg(some_figure())


def test_png_has_a_transparent_ground():
    with Image.open(io.BytesIO(style.png(some_figure(), dpi=100))) as picture:
        assert picture.size == (200, 100)
        assert picture.convert("RGBA").getpixel((0, 0))[3] == 0


@pytest.mark.parametrize("shape", [(8, 8), (8, 8, 1), (8, 8, 3)])
def test_small_images_are_shown_in_blocks(shape):
    """Half black, half white: smoothing would make greys at the border."""
    image = np.zeros(shape, np.uint8)
    image[:, 4:] = 255
    figure = style.figure(1, 1)
    figure.set_layout_engine("none")
    style.show_image(figure.add_axes((0, 0, 1, 1)), image)
    with Image.open(io.BytesIO(style.png(figure, dpi=80))) as picture:
        assert set(np.unique(np.asarray(picture.convert("RGB")))) == {0, 255}


def test_a_dim_image_is_shown_dim():
    figure = style.figure(1, 1)
    figure.set_layout_engine("none")
    style.show_image(figure.add_axes((0, 0, 1, 1)), np.full((4, 4), 100, np.uint8))
    with Image.open(io.BytesIO(style.png(figure, dpi=80))) as picture:
        assert picture.convert("RGB").getpixel((40, 40)) == (100, 100, 100)


@pytest.mark.parametrize(
    ("values", "end"),
    [
        (np.arange(-100, 1), 99),  # of 0 to 100 the 99th hundredth
        (np.array([-30.0] + [0.0] * 999), 30),  # not 1, which has nothing to do with it
        (np.zeros((2, 3)), 1),
    ],
)
def test_scales_end_at_the_values(values, end):
    assert style.scale_end(values, 99) == pytest.approx(end)


@pytest.mark.parametrize(("text", "fits"), [("abcde", "abcde"), ("abcdef", "abcd…")])
def test_shortened(text, fits):
    assert style.shortened(text, 5) == fits
