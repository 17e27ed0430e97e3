"""Figures and players: what is written and drawn in them, read back out of matplotlib and out of the HTML."""

import base64
import io
import itertools
import re

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from cnn_research.explain import board, lab
from cnn_research.explain.sample import boat

# The example by which a widely read tutorial explains convolution (Stanford's UFLDL), and its printed result.
IMAGE = np.array([[1, 1, 1, 0, 0], [0, 1, 1, 1, 0], [0, 0, 1, 1, 1], [0, 0, 1, 1, 0], [0, 1, 1, 0, 0]], np.float32)
KERNEL = np.array([[1, 0, 1], [0, 1, 0], [1, 0, 1]], np.float32)
RESULT = ["4", "3", "4", "2", "4", "3", "2", "3", "4"]


def numbers(axes):
    return [text.get_text() for text in axes.texts]


def frames(player):
    """The pictures in a player."""
    found = re.findall(r'frames\[\d+\] = "data:image/png;base64,([^"]*)"', player.html)
    return [np.asarray(Image.open(io.BytesIO(base64.b64decode(frame.replace("\\\n", ""))))) for frame in found]


@pytest.mark.parametrize(
    ("step", "sum_", "shown"),
    [(0, "1 + 1 + 1 + 1 = 4", 1), (4, "1 + 1 + 1 + 1 = 4", 5), (-1, "1 + 1 + 1 + 1 = 4", 9), (3, "1 + 1 = 2", 4)],
)
def test_a_step_shows_its_numbers(step, sum_, shown):
    figure = lab.convolution_step(IMAGE, KERNEL, step)
    image, kernel, products, output = figure.axes
    assert numbers(image) == [f"{value:.0f}" for value in IMAGE.flat]
    assert numbers(kernel) == ["1", "0", "1", "0", "1", "0", "1", "0", "1"]
    assert numbers(products).count("1") == int(sum_[-1])
    assert numbers(output) == RESULT[:shown] + [""] * (9 - shown)
    assert figure.get_suptitle() == sum_
    row, column = divmod(step % 9, 3)
    assert image.patches[0].get_xy() == (column - 0.5, row - 0.5)
    assert (image.patches[0].get_width(), output.patches[0].get_xy()) == (3, (column - 0.5, row - 0.5))


def test_a_rounded_sum_is_not_called_equal():
    # The last window holds six ones: 6/9, of products that round to 0.11.
    assert lab.convolution_step(IMAGE, "box_blur", -1).get_suptitle() == " + ".join(["0.11"] * 6) + " ≈ 0.67"


def test_a_step_that_is_not_there_is_told():
    with pytest.raises(ValueError, match="step=9: there are 9 positions, 0 to 8"):
        lab.convolution_step(IMAGE, KERNEL, 9)


@pytest.mark.parametrize(
    ("padding", "title"),
    [
        (1, "floor((8 + 2*1 - 3)/2) + 1 = 4"),
        (0, "floor((8 + 2*0 - 3)/2) + 1 = 3"),
        ("same", "floor((8 + 0 + 1 - 3)/2) + 1 = 4"),
    ],
)
def test_the_size_formula_stands_above(padding, title, monkeypatch):
    monkeypatch.setattr(board, "play", lambda figure, draw, frames, seconds, alt: (figure, draw, frames))
    figure, draw, frames_ = lab.animate_size(8, 3, 2, padding)
    assert figure.get_suptitle() == title
    side = int(title[-1])
    assert frames_ == side**2
    draw(frames_ - 1)  # the last position: bottom right
    assert figure.axes[0].patches[0].get_xy() == (2 * (side - 1) - 0.5,) * 2
    assert np.asarray(figure.axes[1].images[0].get_array()).min() == pytest.approx(0.55)  # the output is full


def test_pooling_shows_each_kind(monkeypatch):
    monkeypatch.setattr(board, "play", lambda figure, draw, frames, seconds, alt: (figure, draw))
    figure, draw = lab.animate_pooling(np.array([[1, 2, 5, 6], [3, 4, 7, 8]], np.float32))
    draw(0)
    assert [numbers(axes) for axes in figure.axes[1:]] == [["4", ""], ["2.50", ""], ["10", ""]]
    draw(1)
    assert [numbers(axes) for axes in figure.axes[1:]] == [["4", "8"], ["2.50", "6.50"], ["10", "26"]]
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["image", "max", "average", "sum"]


@pytest.mark.parametrize(
    ("player", "count"),
    [
        (lambda: lab.animate_convolution(IMAGE, KERNEL), 9),
        (lambda: lab.animate_size(7, 3, 2, 1), 16),
        (lambda: lab.animate_pooling(np.arange(16.0).reshape(4, 4)), 4),
    ],
    ids=["convolution", "size", "pooling"],
)
def test_players_hold_all_they_need(player, count):
    player = player()
    pictures = frames(player)
    assert player.frames == len(pictures) == count
    assert all(not np.array_equal(a, b) for a, b in itertools.pairwise(pictures))
    assert player._repr_html_() is player.html
    for loaded_from_elsewhere in ("http:", "https:", "<link", "<script src", "@import", "url("):
        assert loaded_from_elsewhere not in player.html
    assert 'class="fa' not in player.html
    assert all(f"{button}</button>" in player.html for button in board._BUTTONS.values())
    assert len(re.findall(r'<img alt="[^"]{20,}"', player.html)) == 1


def test_gallery_shows_each_filter_beside_its_weights():
    picture = boat(32)
    figure = lab.filter_gallery(picture, ("identity", "gaussian_blur", "sobel_x"), columns=2)
    identity, _, blur, weights, sobel, _ = figure.axes
    np.testing.assert_allclose(identity.images[0].get_array(), picture[1:-1, 1:-1] / 255, atol=1e-6)
    assert numbers(weights) == ["1", "2", "1", "2", "4", "2", "1", "2", "1"]
    assert (weights.get_xlabel(), blur.get_title(loc="left")) == ("/ 16", "gaussian_blur")
    low, high = sobel.images[0].get_clim()
    assert low == -high < 0  # white is 0
    assert sobel.get_xlabel().endswith(f"±{high:.2g}")


def test_gallery_shows_ones_own_weights():
    figure = lab.filter_gallery(boat(32), {"mine": np.array([[1, -1], [0, 0]])})
    assert numbers(figure.axes[1]) == ["1", "−1", "0", "0"]
    assert figure.axes[0].get_title(loc="left") == "mine"


def test_stages_of_a_layer_follow_from_each_other():
    figure = lab.convolution_relu_pool(boat(34), "sobel_y", size=4)
    convolved, rectified, pooled = (np.asarray(axes.images[0].get_array()) for axes in figure.axes[1:4])
    assert convolved.shape == (32, 32) and convolved.min() < 0
    np.testing.assert_array_equal(rectified, np.maximum(convolved, 0))
    np.testing.assert_array_equal(pooled, rectified.reshape(8, 4, 8, 4).max(axis=(1, 3)))
    assert [axes.get_title(loc="left") for axes in figure.axes[:4]] == [
        "image, 34×34",
        "convolution, 32×32",
        "ReLU, 32×32",
        "max of 4×4, 8×8",
    ]


def test_pooled_pictures_by_numpy():
    picture = boat(32)
    figure = lab.pooled_pictures(picture, sizes=(4,))
    blocks = (picture / 255).reshape(8, 4, 8, 4, 3)
    for axes, expected in zip(
        figure.axes[1::2], (blocks.max(axis=(1, 3)), blocks.mean(axis=(1, 3)), blocks.mean(axis=(1, 3))), strict=True
    ):
        np.testing.assert_allclose(axes.images[0].get_array(), expected, atol=1e-6)


@pytest.mark.parametrize("shape", [(32, 32), (32, 32, 1), (32, 32, 3)])
def test_gallery_takes_grey_and_colour(shape):
    image = np.random.default_rng(0).integers(0, 256, shape).astype(np.uint8)
    lab.filter_gallery(image, ("sharpen", "edges_3")).savefig(io.BytesIO())


def test_convolution_of_sobel_is_the_opposite_of_its_correlation():
    figure = lab.correlation_and_convolution(boat(32), "sobel_x")
    correlation, convolution = (figure.axes[n].images[0].get_array() for n in (2, 4))
    np.testing.assert_allclose(correlation, -convolution, atol=1e-6)
    assert np.abs(correlation).max() > 1


def test_derivatives_are_those_of_the_textbook():
    x = jnp.array([-2.0, -0.5, 0.5, 2.0])
    sigmoid, positive = 1 / (1 + np.exp(-x)), np.asarray(x > 0, np.float32)
    expected = {
        "ReLU": positive,
        "leaky ReLU, slope 0.01": np.where(x > 0, 1, 0.01),
        "PReLU, slope 0.25 at first": np.where(x > 0, 1, 0.25),
        "sigmoid": sigmoid * (1 - sigmoid),
        "tanh": 1 - np.tanh(x) ** 2,
        "softplus": sigmoid,
    }
    assert list(expected) == list(lab.ACTIVATIONS)
    for name, values in expected.items():
        np.testing.assert_allclose(lab.derivative(lab.ACTIVATIONS[name])(x), values, atol=1e-6, err_msg=name)


def test_activations_are_drawn_with_their_derivatives():
    figure = lab.activation_functions()
    shown = [axes for axes in figure.axes if axes.get_visible()]
    assert [axes.get_title(loc="left") for axes in shown] == list(lab.ACTIVATIONS)
    x, y = shown[3].lines[-1].get_data()
    assert np.max(y) == pytest.approx(0.25, abs=1e-4)  # the sigmoid's slope at 0, its greatest
    assert abs(float(x[np.argmax(y)])) < 0.02


@pytest.mark.parametrize(("value", "text"), [(3.0, "3"), (-0.004, "0"), (0.125, "0.12"), (-1.5, "−1.50"), (-2.0, "−2")])
def test_numbers_are_short(value, text):
    assert board.format_number(value) == text


def test_the_boat_is_the_same_at_every_size():
    small, large = (np.asarray(boat(size), np.float32) for size in (32, 128))
    assert large.shape == (128, 128, 3)
    means = large.reshape(32, 4, 32, 4, 3).mean(axis=(1, 3))
    assert np.abs(small - means).mean() < 6
    assert large.std() > 40
    with pytest.raises(ValueError, match="size=8: at least 16"):
        boat(8)
