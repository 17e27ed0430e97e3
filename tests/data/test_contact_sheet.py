"""The sheet of augmented images, for the first images of the stream."""

import functools

import numpy as np

from cnn_research.data import augment, contact_sheet, mix, order
from cnn_research.data.sources import open_source
from cnn_research.data.streaming import StreamingFeed

GAP, LABEL, SCALE = 4, 14, 12  # 8x8 digits, enlarged to 96


def draw(augmentation="", mixing="", rows=3, columns=4, seed=5):
    source = open_source("digits", "train")
    sheet = contact_sheet.draw(
        source,
        functools.partial(StreamingFeed, seed=seed, workers=0),
        augment.parse(augmentation),
        mix.parse(mixing),
        seed=seed,
        rows=rows,
        columns=columns,
    )
    pixels = np.asarray(sheet)
    side = 8 * SCALE
    height, width = side + GAP + LABEL, side + GAP
    assert pixels.shape == (rows * height + GAP, columns * width + GAP, 3)
    grid = [
        [pixels[y * height + LABEL :, x * width + GAP :][:side:SCALE, :side:SCALE, 0] for x in range(columns)]
        for y in range(rows)
    ]
    indices = order.example_indices(seed, 0, rows, len(source))
    return np.array(grid), np.array([source[int(index)]["image"][..., 0] for index in indices])


def test_rows_begin_with_the_images_of_the_first_batch():
    grid, images = draw()
    for column in range(4):
        np.testing.assert_array_equal(grid[:, column], images)


def test_the_other_columns_are_augmented_each_in_its_own_way():
    grid, images = draw("shift(3)|flip")
    np.testing.assert_array_equal(grid[:, 0], images)
    assert len({picture.tobytes() for picture in grid[0]}) > 2


def test_pictures_are_mixed_with_those_of_the_row_above():
    grid, images = draw(mixing="cutmix(1)")
    for row in range(3):
        for picture in grid[row, 1:]:
            assert np.all((picture == images[row]) | (picture == images[row - 1]))
    assert any(not np.array_equal(picture, images[0]) for picture in grid[0, 1:])
