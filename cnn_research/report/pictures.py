"""Pictures as text that a page can hold: data URIs, as small as they come."""

import base64
import io

import matplotlib
import numpy as np
from PIL import Image

_HEAT = matplotlib.colormaps["inferno"]

_WEBP_QUALITY = 90  # a 32 x 32 photograph takes half a kilobyte, a quarter of what PNG needs


def data_uri(pixels: np.ndarray) -> str:
    """An image as the address of itself: WebP for colours, PNG for shades of grey, which it holds without loss.

    Args:
        pixels: uint8[H, W, 1] or [H, W, 3].
    """
    grey = pixels.shape[2] == 1
    buffer = io.BytesIO()
    if grey:
        Image.fromarray(pixels[..., 0]).save(buffer, "PNG", optimize=True)
    else:
        Image.fromarray(pixels).save(buffer, "WEBP", quality=_WEBP_QUALITY, method=6)
    return address(buffer.getvalue(), "png" if grey else "webp")


def address(file: bytes, kind: str) -> str:
    """The data URI of an image file of this kind, such as "png"."""
    return f"data:image/{kind};base64,{base64.b64encode(file).decode()}"


def thumbnail(pixels: np.ndarray, side: int) -> np.ndarray:
    """An image uint8[H, W, C] of at most `side` pixels each way; a smaller one as it is."""
    if max(pixels.shape[:2]) <= side:
        return pixels
    image = Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels)
    image.thumbnail((side, side), Image.Resampling.LANCZOS)
    return np.asarray(image).reshape(image.height, image.width, -1)


def heated(pixels: np.ndarray, heat: np.ndarray, side: int) -> np.ndarray:
    """An image under a heat map, the more opaque the hotter, so that what it shows stays to be seen.

    Args:
        pixels: uint8[H, W, 1 or 3].
        heat: float[h, w] >= 0, which is smoothed up to the image's size; its largest value is the hottest colour.
        side: pixels to which a smaller image is enlarged, by a whole number.

    Returns:
        uint8[n H, n W, 3]; without colour where there is no heat at all.
    """
    factor = max(1, side // max(pixels.shape[:2]))
    image = np.repeat(np.repeat(pixels, factor, axis=0), factor, axis=1).astype(np.float32)
    scaled = Image.fromarray(np.asarray(heat / (heat.max() or 1), np.float32))
    scaled = np.asarray(scaled.resize(image.shape[1::-1], Image.Resampling.BILINEAR))[..., None]
    opacity = 0.75 * scaled
    return np.rint((1 - opacity) * image + opacity * 255 * _HEAT(scaled[..., 0])[..., :3]).astype(np.uint8)
