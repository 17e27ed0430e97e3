"""Decoding: the bytes of an image file -> pixels, by Pillow, in one way for every source and feed."""

import io

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError

from cnn_research.errors import UserError

# Pillow knows many more, some of which start other programs (EPS) or have been a source of security holes. JPEG stands
# for MPO too, which telephones write into a .jpg: several JPEG images, of which the first counts.
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF")

# What has to be done to an image for each value of EXIF's orientation; 1 is upright.
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class BrokenImage(UserError):
    """An image that is missing or can't be decoded.

    Attributes:
      where: its path, or its number in a dataset without paths.
      reason: what is wrong with it.
    """

    def __init__(self, where: str, reason: str):
        super().__init__(where, reason)  # both, so that it can be pickled on its way out of a worker process
        self.where, self.reason = where, reason

    def __str__(self) -> str:
        advice = 'Mend or remove it, or leave such images out with dataset.on_error="skip".'
        return f"Can't read the image {self.where}: {self.reason}. {advice}"


def open_image(data: bytes, channels: int, where: str) -> Image.Image:
    """Decodes an image.

    The result is what Pillow's own `convert` makes of it: palettes are looked up, CMYK is converted, the first frame of
    an animation is taken, and an alpha channel is dropped, as torchvision's and TFDS's readers drop it, not blended
    over some background. Beyond that, it is turned upright as its EXIF orientation says, and 16 bits are scaled to 8 by
    dropping the lower ones (which is what Pillow does to colour images; grey ones it would clip at 255).

    Args:
      data: a file of one of `FORMATS`.
      channels: 1 (grey) or 3 (RGB), whatever the file has.
      where: the path or another name of the image, for messages.

    Returns:
      An image of mode "L" or "RGB", loaded.

    Raises:
      BrokenImage: nothing can be made of it; or it has so many pixels that Pillow suspects an attack
        (`PIL.Image.MAX_IMAGE_PIXELS` times two, 179 million).
    """
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
        image.load()
        if image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PNG"):
            upright = _upright(image)
            image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
            image = image if upright is None else image.transpose(upright)
        else:
            if image.mode in ("I", "F"):
                raise ValueError(
                    f"pixels of 32 bits (mode {image.mode!r}) have no range that could be scaled to 8 bits"
                )
            upright = _upright(image)
            image.info.pop("transparency", None)  # of which `convert` would warn that it goes
            image = image if upright is None else image.transpose(upright)
        mode = "L" if channels == 1 else "RGB"
        return image if image.mode == mode else image.convert(mode)
    except UnidentifiedImageError:
        what = "not an image in one of the formats JPEG, PNG, WebP, BMP, GIF and TIFF" if data else "the file is empty"
        raise BrokenImage(where, what) from None
    except MemoryError:
        raise
    except Exception as error:  # broken files make Pillow's readers raise almost anything
        raise BrokenImage(where, " ".join(str(error).split()).rstrip(".") or type(error).__name__) from error


def to_array(image: Image.Image) -> np.ndarray:
    """Returns the pixels of an image of mode "L" or "RGB": uint8[H, W, C], read-only.

    Twice as fast as np.asarray for small images.
    """
    channels = 1 if image.mode == "L" else 3
    return np.frombuffer(image.tobytes(), np.uint8).reshape(image.height, image.width, channels)


def from_array(pixels: np.ndarray) -> Image.Image:
    """Returns the image of mode "L" or "RGB" with the pixels uint8[H, W, C]."""
    return Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels)  # grey ones have no channel axis there


def _upright(image: Image.Image) -> Image.Transpose | None:
    """What turns a loaded image upright; None for nothing. (Pillow turns TIFF files itself when it loads them.)"""
    try:
        return _UPRIGHT.get(image.getexif().get(ExifTags.Base.Orientation))
    except Exception:  # a broken EXIF block is no reason to refuse the image
        return None
