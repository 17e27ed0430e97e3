"""The filters and their arithmetic against SciPy, Pillow's and scipy.ndimage's own filters, and JAX's shapes."""

import itertools

import numpy as np
import pytest
from scipy import ndimage, signal

from cnn_research.explain import kernels
from cnn_research.models import layers


def random(*shape):
    return np.random.default_rng(0).uniform(size=shape).astype(np.float32)


@pytest.mark.parametrize("name", kernels.FILTERS)
@pytest.mark.parametrize(("padding", "mode"), [("same", "same"), ("valid", "valid"), (0, "valid")])
def test_every_filter_is_scipys_cross_correlation_and_convolution(name, padding, mode):
    image, weights = random(17, 20), kernels.FILTERS[name].weights.astype(np.float64)
    for function, flip in ((signal.correlate2d, False), (signal.convolve2d, True)):
        expected = function(image.astype(np.float64), weights, mode=mode)
        found = kernels.filter_image(image, name, padding=padding, flip=flip)
        np.testing.assert_allclose(found, expected, atol=1e-6 * max(1, np.abs(weights).sum() / 16), rtol=0)
        walk = kernels.walk_through(image, name, padding=padding, flip=flip)
        np.testing.assert_allclose(walk.output, expected, atol=1e-12, rtol=0)


# As the tutorials print them.
@pytest.mark.parametrize(
    ("name", "rows", "divisor"),
    [
        ("identity", "0 0 0; 0 1 0; 0 0 0", 1),
        ("edges_1", "1 0 -1; 0 0 0; -1 0 1", 1),
        ("edges_2", "0 1 0; 1 -4 1; 0 1 0", 1),
        ("laplacian", "0 1 0; 1 -4 1; 0 1 0", 1),
        ("edges_3", "-1 -1 -1; -1 8 -1; -1 -1 -1", 1),
        ("sharpen", "0 -1 0; -1 5 -1; 0 -1 0", 1),
        ("box_blur", "1 1 1; 1 1 1; 1 1 1", 9),
        ("gaussian_blur", "1 2 1; 2 4 2; 1 2 1", 16),
        ("gaussian_blur_5", "1 4 6 4 1; 4 16 24 16 4; 6 24 36 24 6; 4 16 24 16 4; 1 4 6 4 1", 256),
        ("unsharp_5", "-1 -4 -6 -4 -1; -4 -16 -24 -16 -4; -6 -24 476 -24 -6; -4 -16 -24 -16 -4; -1 -4 -6 -4 -1", 256),
        ("emboss", "-2 -1 0; -1 1 1; 0 1 2", 1),
    ],
)
def test_weights_are_those_of_the_tutorials(name, rows, divisor):
    expected = np.array([[float(n) for n in row.split()] for row in rows.split(";")]) / divisor
    np.testing.assert_allclose(kernels.FILTERS[name].weights, expected, rtol=1e-6)


@pytest.mark.parametrize(
    ("name", "function"),
    [
        ("sobel_x", lambda x: ndimage.sobel(x, axis=1)),
        ("sobel_y", lambda x: ndimage.sobel(x, axis=0)),
        ("prewitt_x", lambda x: ndimage.prewitt(x, axis=1)),
        ("prewitt_y", lambda x: ndimage.prewitt(x, axis=0)),
        ("laplacian", ndimage.laplace),
        ("box_blur_5", lambda x: ndimage.uniform_filter(x, 5)),
    ],
)
def test_filters_mean_what_scipy_means_by_their_names(name, function):
    image = random(12, 15)
    inside = (slice(2, -2),) * 2  # at the border, SciPy reflects the image
    np.testing.assert_allclose(kernels.filter_image(image, name)[inside], function(image)[inside], atol=2e-6)


@pytest.mark.parametrize("name", kernels.FILTERS)
def test_weights_add_up_to_one_or_to_zero(name):
    weights = kernels.FILTERS[name].weights
    assert min(abs(weights.sum()), abs(weights.sum() - 1)) < 1e-6
    assert not weights.flags.writeable
    assert len(weights) == (5 if name.endswith("_5") else 3)


def test_convolution_turns_the_kernel():
    impulse = np.zeros((5, 5), np.float32)
    impulse[2, 2] = 1
    weights = np.arange(9, dtype=np.float32).reshape(3, 3)
    # Of a single point, convolution draws the kernel; cross-correlation draws it turned by 180 degrees.
    np.testing.assert_array_equal(kernels.filter_image(impulse, weights, flip=True)[1:4, 1:4], weights)
    np.testing.assert_array_equal(kernels.filter_image(impulse, weights)[1:4, 1:4], weights[::-1, ::-1])


def test_channels_are_filtered_each_by_itself():
    image = random(9, 11, 3)
    found = kernels.filter_image(image, "sobel_x", stride=2, padding=1)
    assert found.shape == (5, 6, 3)
    for channel in range(3):
        expected = signal.correlate2d(image[..., channel], kernels.FILTERS["sobel_x"].weights, mode="same")[::2, ::2]
        np.testing.assert_allclose(found[..., channel], expected, atol=1e-5)


def test_bytes_become_fractions():
    image = np.array([[0, 51], [102, 255]], np.uint8)
    np.testing.assert_allclose(kernels.filter_image(image, "identity"), [[0, 0.2], [0.4, 1]], rtol=1e-6)
    np.testing.assert_allclose(kernels.pool_image(image, "sum"), [[1.6]], rtol=1e-6)


def test_steps_by_hand():
    image = np.array([[1, 2, 3], [4, 5, 6], [7, 8, 9]], np.float32)
    walk = kernels.walk_through(image, [[1, 0], [0, -1]], stride=2, padding=1)
    # 3 + 2 zeros = 5 pixels, of which a window of 2 with stride 2 reaches positions 0 and 2.
    np.testing.assert_array_equal(walk.output, [[-1, -3], [-7, 5 - 9]])
    last = walk.steps[-1]
    assert (last.row, last.column, last.top, last.left, last.total) == (1, 1, 2, 2, -4)
    np.testing.assert_array_equal(last.window, [[5, 6], [8, 9]])
    np.testing.assert_array_equal(last.products, [[5, 0], [0, -9]])
    np.testing.assert_array_equal(walk.padded[1:-1, 1:-1], image)


@pytest.mark.parametrize("padding", [0, 1, 2, "same"])
@pytest.mark.parametrize("stride", [1, 2, 3])
def test_steps_end_where_the_whole_image_does(stride, padding):
    image, weights = random(8, 7), random(3, 3)
    expected = kernels.filter_image(image, weights, stride=stride, padding=padding)
    walk = kernels.walk_through(image, weights, stride=stride, padding=padding)
    assert [(step.row, step.column) for step in walk.steps] == list(np.ndindex(*expected.shape))
    np.testing.assert_allclose(walk.output, expected, atol=1e-5)


def test_pooling_by_hand():
    image = np.array([[1, 2, 5, 6, 0], [3, 4, 7, 8, 0], [0, 0, 0, 0, 9]], np.float32)
    np.testing.assert_array_equal(kernels.pool_image(image, "max"), [[4, 8]])
    np.testing.assert_array_equal(kernels.pool_image(image, "average"), [[2.5, 6.5]])
    np.testing.assert_array_equal(kernels.pool_image(image, "sum"), [[10, 26]])
    np.testing.assert_array_equal(kernels.pool_image(image, "max", 3, stride=1), [[7, 8, 9]])
    assert kernels.pool_image(np.stack([image] * 3, axis=-1), "max").shape == (1, 2, 3)


def test_size_formula_is_jaxs_shape():
    grid = itertools.product(range(1, 13), range(1, 8), range(1, 5), (0, 1, 2, 3, "same", "valid"))
    compared = 0
    for size, kernel, stride, padding in grid:
        expected = layers.output_size(size, kernel, stride, padding)
        if expected >= 1:
            assert kernels.jax_output_size(size, kernel, stride, padding) == expected, (size, kernel, stride, padding)
            compared += 1
    assert compared > 1500


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: kernels.filter_image(random(5, 5), "sobel"), "kernel='sobel' is not one of identity, edges_1"),
        (lambda: kernels.filter_image(random(5, 5), "sobel_z"), "did you mean 'sobel_y' or 'sobel_x'"),
        (
            lambda: kernels.filter_image(random(5, 5), random(3, 2)),
            r"weights \[k, k\] is needed, got \(3, 2\)",
        ),
        (lambda: kernels.filter_image(random(5), "identity"), r"\[H, W\] or \[H, W, C\] is needed, got \(5,\)"),
        (lambda: kernels.filter_image(random(2, 5), "identity", padding=0), r"floor\(\(2 \+ 2\*0 - 3\)/1\) \+ 1 = 0"),
        (lambda: kernels.walk_through(random(5, 5, 3), "identity"), r"\[H, W\] is needed, got \(5, 5, 3\)"),
        (lambda: kernels.to_grey(random(5, 5, 4)), r"1 or 3 channels are needed, got \(5, 5, 4\)"),
        (lambda: kernels.pool_image(random(5, 5), "median"), "pool='median' is not one of max, average, sum"),
    ],
)
def test_mistakes_are_told(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_grey_is_how_bright_colours_look():
    colours = np.eye(3, dtype=np.float32)[None]
    np.testing.assert_allclose(kernels.to_grey(colours), [[0.299, 0.587, 0.114]], rtol=1e-6)
    np.testing.assert_allclose(kernels.to_grey(np.ones((1, 1, 3))), [[1]], rtol=1e-6)
