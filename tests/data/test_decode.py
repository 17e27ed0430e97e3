import io
import pickle
import warnings

import numpy as np
import pytest
from PIL import Image, ImageFile

from cnn_research.data import decode

RNG = np.random.default_rng(0)
NOISE = RNG.integers(0, 256, (6, 9, 4), dtype=np.uint8)


def encoded(image, file_format, **options):
    buffer = io.BytesIO()
    image.save(buffer, file_format, **options)
    return buffer.getvalue()


def pixels(data, channels=3):
    return decode.to_array(decode.open_image(data, channels, "x.png"))


def drawn(mode):
    """A 9x6 image of noise with as many bands as the mode has."""
    if mode == "P":
        image = Image.fromarray(NOISE[..., :3]).quantize(16)
        image.info["transparency"] = bytes(range(0, 256, 16))
        return image
    if mode == "1":
        return Image.fromarray(NOISE[..., 0]).convert("1")
    bands = len(Image.new(mode, (1, 1)).getbands())
    return Image.frombytes(mode, (9, 6), np.ascontiguousarray(NOISE[..., :bands]).tobytes())


ZOO = [
    ("L", "PNG", {}),
    ("1", "PNG", {}),
    ("P", "PNG", {}),
    ("LA", "PNG", {}),
    ("RGBA", "PNG", {}),
    ("RGB", "PNG", {}),
    ("L", "JPEG", {}),
    ("RGB", "JPEG", {}),
    ("RGB", "JPEG", {"progressive": True}),
    ("CMYK", "JPEG", {}),
    ("RGB", "WEBP", {"lossless": True}),
    ("RGBA", "WEBP", {"lossless": True, "exact": True}),
    ("RGB", "BMP", {}),
    ("P", "BMP", {}),
    ("1", "BMP", {}),
    ("P", "GIF", {"transparency": 3}),
    ("RGB", "TIFF", {}),
    ("RGB", "TIFF", {"compression": "tiff_lzw"}),
    ("CMYK", "TIFF", {}),
    ("LA", "TIFF", {}),
]


@pytest.mark.parametrize(("mode", "channels"), [("RGB", 3), ("L", 1)])
@pytest.mark.parametrize(("source", "file_format", "options"), ZOO, ids=lambda x: str(x))
def test_the_zoo_is_what_pillow_makes_of_it(source, file_format, options, mode, channels):
    data = encoded(drawn(source), file_format, **options)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow warns of a palette with transparency
        expected = np.asarray(Image.open(io.BytesIO(data)).convert(mode)).reshape(6, 9, channels)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = pixels(data, channels)
    assert found.dtype == np.uint8 and not found.flags.writeable
    np.testing.assert_array_equal(found, expected)


def test_transparency_is_dropped_and_not_blended():
    image = Image.new("RGBA", (2, 1), (10, 200, 30, 0))
    np.testing.assert_array_equal(pixels(encoded(image, "PNG"))[0, 0], [10, 200, 30])


def test_cmyk_of_adobe_is_not_inverted():
    """Adobe stores CMYK in JPEG inverted. A full red is a full red all the same."""
    red = Image.new("CMYK", (16, 16), (0, 255, 255, 0))
    data = encoded(red, "JPEG", quality=100)
    np.testing.assert_allclose(pixels(data)[8, 8], [255, 0, 0], atol=3)


@pytest.mark.parametrize("file_format", ["PNG", "TIFF"])
def test_16_bits_are_scaled(file_format):
    values = np.array([[0, 255, 256, 257, 40000, 65535]], np.uint16)
    data = encoded(Image.fromarray(values), file_format)
    np.testing.assert_array_equal(pixels(data, 1)[0, :, 0], [0, 0, 1, 1, 156, 255])
    np.testing.assert_array_equal(pixels(data, 3)[0], [[v] * 3 for v in (0, 0, 1, 1, 156, 255)])


@pytest.mark.parametrize("dtype", [np.int32, np.float32])
def test_32_bits_have_no_range(dtype):
    with pytest.raises(decode.BrokenImage, match=r"x\.png.*32 bits"):
        pixels(encoded(Image.fromarray(np.ones((2, 2), dtype)), "TIFF"))


@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(file_format, orientation):
    """An F that was photographed in eight ways is one F. What each way does is EXIF's table, not Pillow's code."""
    upright = np.zeros((20, 12), np.uint8)
    upright[2:18, 2:5] = upright[2:5, 2:10] = upright[9:12, 2:8] = 255
    stored = {
        1: upright,
        2: upright[:, ::-1],  # the first row at the top, the first column on the right
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.T,
        6: np.rot90(upright, 1),  # shown by turning it to the right, so it lies turned to the left
        7: upright.T[::-1, ::-1],
        8: np.rot90(upright, -1),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"JPEG": {"quality": 100}, "WEBP": {"lossless": True}}.get(file_format, {})
    data = encoded(Image.fromarray(np.ascontiguousarray(stored)).convert("RGB"), file_format, exif=exif, **options)
    found = pixels(data, 1)[..., 0]
    assert found.shape == (20, 12)
    np.testing.assert_allclose(found.astype(int), upright, atol=12 if file_format == "JPEG" else 0)


def test_a_broken_exif_block_is_ignored():
    data = encoded(drawn("RGB"), "JPEG", exif=b"Exif\x00\x00not at all what belongs here")
    assert pixels(data).shape == (6, 9, 3)


@pytest.mark.parametrize("file_format", ["GIF", "WEBP"])
def test_of_an_animation_the_first_frame(file_format):
    frames = [Image.new("RGB", (8, 8), colour) for colour in ((255, 0, 0), (0, 255, 0), (0, 0, 255))]
    options = {"lossless": True} if file_format == "WEBP" else {}
    data = encoded(frames[0], file_format, save_all=True, append_images=frames[1:], **options)
    assert (pixels(data) == [255, 0, 0]).all()


@pytest.mark.parametrize("size", [(1, 1), (6000, 4000)])
def test_sizes(size):
    image = Image.new("RGB", size, (1, 2, 3))
    found = pixels(encoded(image, "PNG", compress_level=1))
    assert found.shape == (size[1], size[0], 3) and (found[-1, -1] == [1, 2, 3]).all()


WHOLE = encoded(Image.effect_noise((64, 64), 50), "JPEG")
PNG = encoded(drawn("RGB"), "PNG")


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "the file is empty"),
        (b"these are my notes\n", "not an image in one of the formats JPEG, PNG"),
        (WHOLE[: len(WHOLE) // 2], "truncated"),
        (PNG[:60], ""),
        (PNG[:40] + b"xxxx" + PNG[44:], ""),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not an image"),
    ],
    ids=["empty", "text", "truncated jpeg", "truncated png", "broken png", "eps"],
)
def test_broken_files_are_named(data, says):
    with pytest.raises(decode.BrokenImage) as error:
        decode.open_image(data, 3, "cats/tom.jpg")
    message = str(error.value)
    assert "cats/tom.jpg" in message and says in message and "skip" in message and "\n" not in message
    assert "BytesIO" not in message
    again = pickle.loads(pickle.dumps(error.value))  # it comes out of worker processes
    assert str(again) == message and again.where == "cats/tom.jpg"


def test_a_bomb_is_refused(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 20)
    with pytest.raises(decode.BrokenImage, match=r"x\.png.*decompression bomb"):
        pixels(PNG)


def test_truncated_images_are_not_filled_up():
    assert ImageFile.LOAD_TRUNCATED_IMAGES is False


def test_array_and_back():
    for channels in (1, 3):
        values = NOISE[..., :channels]
        np.testing.assert_array_equal(decode.to_array(decode.from_array(values)), values)
