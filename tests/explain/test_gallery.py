"""Galleries: the caption of each picture, and pictures of one size."""

import numpy as np
import pytest

from cnn_research.explain import style
from cnn_research.explain.gallery import Caption, captions, gallery


def test_captions_say_what_and_how_surely_and_what_it_is():
    probabilities = np.array([[0.71, 0.29], [0.2, 0.8]])
    found = captions(probabilities, np.array([1, 1]), ("dog", "cat"))
    assert found == [Caption("dog 71 %\ntrue: cat", right=False), Caption("cat 80 %", right=True)]


def test_gallery_keeps_pictures_of_one_size_and_colours_captions():
    images = [np.zeros((8, 8, 3), np.uint8), np.zeros((100, 100), np.uint8), np.zeros((9, 9, 1), np.uint8)]
    notes = [Caption("dog 71 %\ntrue: cat", False), Caption("a very long name of a class 99 %", True), Caption("first")]
    figure = gallery(images, notes, columns=2, title="Largest losses")
    figure.draw_without_rendering()
    sizes = {tuple(np.round(axes.get_window_extent().size, 3)) for axes in figure.axes}
    assert len(sizes) == 1
    under = [axes.texts[0] for axes in figure.axes]
    assert [text.get_color() for text in under] == [style.WRONG, style.RIGHT, style.INK]
    boxes = [text.get_window_extent() for text in under]
    assert all(figure.bbox.x0 <= box.x0 and figure.bbox.y0 <= box.y0 for box in boxes)
    assert not boxes[0].overlaps(boxes[1])
    assert figure.texts[0].get_text() == "Largest losses"


@pytest.mark.parametrize(("images", "notes"), [([], []), ([np.zeros((8, 8))], [])])
def test_gallery_needs_a_caption_for_each_picture(images, notes):
    with pytest.raises(ValueError, match="a caption for each"):
        gallery(images, notes)
