"""Pictures as text that a page can hold: data URIs, as small as they come."""

import base64
import io
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from cnn_research.data.decode import from_array
from cnn_research.explain import style

_WEBP_QUALITY = 90  # a 32 x 32 photograph takes half a kilobyte, a quarter of what PNG needs


def data_uri(pixels: np.ndarray) -> str:
    """An image as the address of itself: WebP for colours, PNG for shades of grey, which it holds without loss.

    Args:
        pixels: uint8[H, W, 1] or [H, W, 3].
    """
    grey = pixels.shape[2] == 1
    buffer = io.BytesIO()
    if grey:
        from_array(pixels).save(buffer, "PNG", optimize=True)
    else:
        from_array(pixels).save(buffer, "WEBP", quality=_WEBP_QUALITY, method=6)
    return address(buffer.getvalue(), "png" if grey else "webp")


def address(file: bytes, kind: str) -> str:
    """The data URI of an image file of this kind, such as "png"."""
    return f"data:image/{kind};base64,{base64.b64encode(file).decode()}"


def thumbnail(pixels: np.ndarray, side: int) -> np.ndarray:
    """An image uint8[H, W, C] of at most `side` pixels each way; a smaller one as it is."""
    if max(pixels.shape[:2]) <= side:
        return pixels
    image = from_array(pixels)
    image.thumbnail((side, side), Image.Resampling.LANCZOS)
    return np.asarray(image).reshape(image.height, image.width, -1)


def enlarged(pixels: np.ndarray, side: int) -> np.ndarray:
    """An image uint8[H, W, C] whose pixels are repeated a whole number of times, to at most `side` pixels each way."""
    factor = max(1, side // max(pixels.shape[:2]))
    return np.repeat(np.repeat(pixels, factor, axis=0), factor, axis=1)


def drawn(figure: Figure, alt: str) -> dict[str, Any]:
    """A figure with images in it as the template's macro `image` takes it.

    Returns:
        {"src", "width" and "height" in CSS pixels, "crisp": False, "alt"}.
    """
    file = style.png(figure)
    width, height = Image.open(io.BytesIO(file)).size
    scale = 96 / style.DPI
    size = {"width": round(width * scale), "height": round(height * scale)}
    return {"src": address(file, "png"), **size, "crisp": False, "alt": alt}
