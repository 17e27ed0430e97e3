import numpy as np
import pytest
from PIL import Image

from cnn_research.data.resize import HOW, INTERPOLATIONS, resize


def image_of(height, width, channels):
    return np.random.default_rng(0).integers(0, 256, (height, width, channels), dtype=np.uint8)


def as_pillow(image):
    return Image.fromarray(image.squeeze(-1) if image.shape[2] == 1 else image)


# Height, width, size -> the resized height and width, and the crop's top and left, by torchvision's formulas
# int(size * longer / shorter) and round((longer - size) / 2).
CROPS = [
    ((300, 200), 100, (150, 100), (25, 0)),
    ((200, 333), 100, (100, 166), (0, 33)),
    ((375, 500), 256, (256, 341), (0, 42)),  # 42.5 goes to the even neighbour
    ((500, 351), 224, (319, 224), (48, 0)),  # 47.5 likewise
    ((20, 30), 40, (40, 60), (0, 10)),
    ((64, 64), 32, (32, 32), (0, 0)),
]


@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(("shape", "size", "resized", "corner"), CROPS, ids=str)
def test_is_what_pillow_does(shape, size, resized, corner, channels, interpolation):
    image = image_of(*shape, channels)
    pillow, resampling = as_pillow(image), Image.Resampling[interpolation.upper()]
    (top, left), (height, width) = corner, resized
    expected = {
        "stretch": np.asarray(pillow.resize((size, size), resampling)),
        "crop": np.asarray(pillow.resize((width, height), resampling))[top : top + size, left : left + size],
    }
    for how in HOW:
        for given in (image, pillow):
            result = resize(given, size, how, interpolation)
            assert result.dtype == np.uint8 and result.shape == (size, size, channels)
            np.testing.assert_array_equal(result.squeeze(), expected[how])


def test_crop_keeps_proportions_and_stretch_keeps_everything():
    image = np.zeros((60, 90, 1), np.uint8)
    image[20:40, 35:55] = 255  # a square in the middle
    image[:, :5] = 100  # a stripe that only the central square leaves out
    crop, stretch = resize(image, 30, "crop", "nearest"), resize(image, 30, "stretch", "nearest")
    assert (crop == 255).any(axis=(0, 2)).sum() == (crop == 255).any(axis=(1, 2)).sum() == 10
    assert not (crop == 100).any() and (stretch == 100).any()


@pytest.mark.parametrize("how", HOW)
def test_an_image_of_the_right_size_is_left_alone(how):
    image = image_of(16, 16, 3)
    assert resize(image, 16, how, "bicubic") is image
    np.testing.assert_array_equal(resize(as_pillow(image), 16, how, "bicubic"), image)


@pytest.mark.parametrize(("how", "interpolation"), [("squash", "bilinear"), ("crop", "cubic")])
def test_unknown(how, interpolation):
    with pytest.raises(ValueError, match=f"{how}.*{interpolation}"):
        resize(image_of(8, 8, 3), 4, how, interpolation)
