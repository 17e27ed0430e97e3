"""What the figures of attributions and features say and show; how they look is judged by eye."""

import io

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from cnn_research.explain import feature_figures, overlay
from cnn_research.explain.features import Exciting

RNG = np.random.default_rng(0)
PHOTOS = RNG.integers(0, 256, (2, 16, 12, 3), np.uint8)


def drawn(figure):
    """All words of a figure, once it has been drawn."""
    assert isinstance(figure, Figure)
    file = io.BytesIO()
    figure.savefig(file, format="png")
    pixels = np.asarray(Image.open(file).convert("RGB"))
    assert pixels.std() > 1
    return [text.get_text() for text in figure.findobj(lambda artist: hasattr(artist, "get_text"))]


def test_strip_of_methods():
    heat = np.zeros((2, 4, 3), np.float32)
    heat[0, 1, 1] = 5
    signed = RNG.normal(size=(2, 16, 12)).astype(np.float32)
    picture = RNG.normal(size=(2, 16, 12, 3)).astype(np.float32)
    maps = {"Grad-CAM": heat, "gradients": signed, "guided": picture}
    figure = overlay.attributions(PHOTOS, maps, ["cat 71 %", "dog 9 %"], [True, False])
    words = drawn(figure)
    assert words.count("no positive\nevidence") == 1 and words.count("4×3 → 16×12") == 1
    assert {"Grad-CAM", "gradients", "guided", "cat 71 %", "dog 9 %"} <= set(words)
    colours = {axes.get_title(): axes.title.get_color() for axes in figure.axes}
    assert colours["cat 71 %"] != colours["dog 9 %"]
    grey = overlay.attributions(PHOTOS[..., :1] / 255.0, {"Grad-CAM": heat})
    assert "4×3 → 16×12" in drawn(grey)


@pytest.mark.parametrize(
    ("maps", "words"), [(np.zeros((3, 4, 4)), "3 maps for 2 photographs"), (np.full((2, 4, 4), np.nan), "finite")]
)
def test_strip_refuses(maps, words):
    with pytest.raises(ValueError, match=words):
        overlay.attributions(PHOTOS, {"CAM": maps})


def test_blend_leaves_the_photograph_where_there_is_no_heat():
    heat = np.zeros((16, 12), np.float32)
    np.testing.assert_array_equal(overlay.blend(PHOTOS[0], heat), PHOTOS[0])
    heat[5:9, 4:8] = 1
    found = overlay.blend(PHOTOS[0], heat)
    changed = (found != PHOTOS[0]).any(-1)
    np.testing.assert_array_equal(changed, heat > 0)
    assert found.shape == (16, 12, 3) and found[6, 6, 0] > found[6, 6, 2]  # the hot end is yellow


@pytest.mark.parametrize(
    ("shape", "words"),
    [
        ((3, 3, 3, 70), "conv1 · 64 of 70 filters"),
        ((5, 5, 1, 6), "conv1 · 6 filters"),
        ((3, 3, 20, 8), "conv1 · 8 filters (rows), 16 of 20 channels (columns)"),
    ],
)
def test_filters(shape, words):
    assert words in drawn(feature_figures.filters(RNG.normal(size=shape), "conv1"))


def test_feature_maps_are_the_strongest_on_one_scale():
    maps = RNG.normal(size=(8, 8, 20)) * np.arange(20)
    figure = feature_figures.feature_maps(maps, "conv2")
    words = drawn(figure)
    assert "conv2 · 16 of 20 channels by energy, 8×8" in words and "19" in words and "0" not in words[:40]
    limits = {image.get_clim() for axes in figure.axes for image in axes.images if image.get_array().shape == (8, 8)}
    ((low, high),) = limits
    assert low == -high


def test_other_figures():
    words = drawn(feature_figures.histograms({"a": np.maximum(RNG.normal(size=999), 0), "b": np.ones(3)}, "values"))
    assert any(word.startswith("a · ") and word.endswith("% zeros") for word in words) and "b" in words
    assert "conv: 2 of 3 dead" in drawn(feature_figures.silence({"conv": [1.0, 0.5, 1.0]}, "silence"))
    assert "conv: 4×5" in drawn(feature_figures.receptive_fields(PHOTOS[0], {"conv": (2, 3, 6, 8)}))
    boxes = np.tile([0, 0, 8, 8], (2, 2, 1))
    found = Exciting(np.array([4, 7]), np.array([[0, 1], [1, 0]]), np.array([[2.5, 1], [3, 2]]), boxes)
    for crop in (True, False):
        assert {"channel 4", "channel 7", "2.5"} <= set(drawn(feature_figures.exciting(PHOTOS, found, crop=crop)))
    assert {"cat", "dog"} <= set(drawn(feature_figures.pictures(PHOTOS, ["cat", "dog"])))
