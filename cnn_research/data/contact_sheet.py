"""A picture of training images as the network will see them: a row for each image, the first as it is read."""

from collections.abc import Callable, Sequence

import jax
import numpy as np
from PIL import Image, ImageDraw

from cnn_research.data import augment, decode, mix, order, sources
from cnn_research.data.streaming import StreamingFeed

_SMALLEST = 96  # pixels of a picture on the sheet: smaller images are enlarged
_GAP = 4
_LABEL = 14  # pixels of height for a row's class


def draw(
    source: sources.Source,
    open_feed: Callable[[sources.Source], StreamingFeed],
    augmentation: augment.Augmentation,
    mixing: mix.Mix | None,
    *,
    seed: int,
    rows: int = 8,
    columns: int = 8,
) -> Image.Image:
    """Draws the first images of the training stream, each in several of its augmentations.

    Args:
      source: of the training images.
      open_feed: opens the streaming feed of a source, with the size and the crops of training.
      augmentation: from `augment.parse`.
      mixing: from `mix.parse`; an image's partner is the one in the row above.
      seed: of the run: the order is its, and so are the pictures' keys.
      rows: images.
      columns: pictures of each, the first of which is the image before the device augments it.

    Returns:
      RGB.
    """
    rows = min(rows, len(source))
    key = jax.random.key(seed)
    images, titles = [], []
    for index in order.example_indices(seed, 0, rows, len(source)).tolist():
        # Of a source with one example, the stream is that example again and again: at other places, cropped otherwise.
        feed = open_feed(sources.Range(source, source.split, index, index + 1))
        batch = next(feed.train_batches(0, columns))
        images.append(batch["image"])
        titles.append(source.classes[batch["label"][0]])

    # As `training.step` derives its keys. Rows differ in what is drawn for them as positions do in training.
    augment_key, mix_key = jax.random.split(key)[0], jax.random.fold_in(key, 2)
    positions = np.arange(rows * columns, dtype=np.uint32).reshape(rows, columns)
    run = jax.jit(lambda p, x: augment.apply(augmentation, augment_key, p.reshape(-1), x.reshape(-1, *x.shape[2:])))
    seen = run(positions, np.stack(images))
    if mixing is not None:
        pixels = seen.astype(np.float32)
        targets = np.zeros((len(seen), 1), np.float32)
        before = np.roll(np.asarray(pixels).reshape(rows, columns, *pixels.shape[1:]), 1, axis=0)
        partners = (before.reshape(pixels.shape), targets)
        seen, _ = jax.jit(lambda *a: mix.apply(mixing, mix_key, *a))(positions.reshape(-1), pixels, targets, partners)
    seen = np.clip(np.round(np.asarray(seen, np.float32)), 0, 255).astype(np.uint8)
    seen = seen.reshape(rows, columns, *seen.shape[1:])
    return _arrange([[image[0], *row[1:]] for image, row in zip(images, seen, strict=True)], titles)


def _arrange(grid: Sequence[Sequence[np.ndarray]], titles: Sequence[str]) -> Image.Image:
    scale = max(1, -(-_SMALLEST // max(grid[0][0].shape[0], grid[0][1].shape[0])))
    pictures = [[_picture(pixels, scale) for pixels in row] for row in grid]
    width = max(picture.width for row in pictures for picture in row) + _GAP
    height = max(picture.height for row in pictures for picture in row) + _GAP + _LABEL
    sheet = Image.new("RGB", (width * len(pictures[0]) + _GAP, height * len(pictures) + _GAP), "white")
    pen = ImageDraw.Draw(sheet)
    for y, (row, title) in enumerate(zip(pictures, titles, strict=True)):
        pen.text((_GAP, y * height + 1), title, fill="black")
        for x, picture in enumerate(row):
            sheet.paste(picture, (x * width + _GAP, y * height + _LABEL))
    return sheet


def _picture(pixels: np.ndarray, scale: int) -> Image.Image:
    picture = decode.from_array(pixels).convert("RGB")
    return picture.resize((picture.width * scale, picture.height * scale), Image.Resampling.NEAREST)
