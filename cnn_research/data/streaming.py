"""The streaming feed: images are decoded on the host, by threads or processes, while the devices compute.

For sets that are too large for device memory. A batch is a function of (seed, step) alone: Grain reads chunks of
batches by their number, so there is no state to save and the number of workers changes nothing. This is the only file
that knows Grain. It is imported lazily: sets that are resident need not wait for it.
"""

import dataclasses
import multiprocessing.connection
import os
import signal
import sys
import threading
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from absl import flags
from PIL import Image

from cnn_research.data import decode, order, sources
from cnn_research.data.decode import BrokenImage
from cnn_research.data.resize import resize
from cnn_research.data.sources import Source
from cnn_research.errors import UserError

# Examples that a worker reads at once: a batch of many is spread over the workers, and what is under way stays small.
_CHUNK = 32


class StreamingFeed:
    """Decodes a source again and again; hands out batches of images. The contract is that of `ResidentFeed`.

    Attributes:
      arrays: {}: nothing lives on the devices.
      num_examples: N.
      image_shape: (H, W, C).
      classes: the name of each label.
      ahead: how many steps the host may run ahead of the devices: each holds a batch of images in their memory.
      prefetch: how many batches to copy to the devices before they are needed.
      skipped: the paths of the images that could not be read so far.
      workers: how many decode at once.
    """

    ahead = 4
    prefetch = 2

    def __init__(
        self,
        source: Source,
        *,
        seed: int = 0,
        image_size: int = 0,
        how: str = "stretch",
        interpolation: str = "bilinear",
        crop: str = "none",
        on_error: str = "stop",
        workers: int = -1,
        worker_kind: str = "threads",
    ):
        """Looks at the first image, or at 64 where they may differ in size and shouldn't, and reads no more.

        Args:
          source: where the examples come from.
          seed: of the training order and crops, 0 <= seed < 2**63.
          image_size: resize to a square of that many pixels; 0 keeps the images' own size.
          how: "stretch" or "crop": see `resize.resize`.
          interpolation: "bilinear", "nearest" or "bicubic".
          crop: of training images: "none" (as `how` says) or "random_resized_crop".
          on_error: what an image that can't be read does: "stop", or "skip". In training the next example that can be
            read takes the place of each, so that nothing else moves; evaluation masks it out.
          workers: how many decode at once; 0 = none beside the thread that asks for batches, -1 = one for each core.
          worker_kind: "threads", or "processes": where augmentation in Python keeps threads waiting for each other.
            Processes take seconds to start, so evaluation has threads in either case.

        Raises:
          as `train_batches`; UserError for a random_resized_crop without an image_size.
        """
        if crop != "none" and not image_size:
            raise UserError(f"dataset.train_crop={crop!r} needs a dataset.image_size to resize the crops to.")
        self.workers = sources.count_cores() if workers < 0 else workers
        self._worker_kind = worker_kind
        shape = sources.shape_of(source, image_size, on_error)
        self._reader = _Reader(source, shape, seed, image_size, how, interpolation, crop, on_error)
        first, _, label = sources.next_readable(source, 0, on_error)
        sources.check_label(source, first, label)
        if not image_size and None in source.image_shape:
            # Rather now than in the middle of training. Nearly always these tell: they come in a random order.
            for index in range(min(len(source), 64)):
                example = sources.read_or_skip(source, index, on_error)
                if example:
                    self._reader.pixels(index, example[0], None)
        self.arrays = {}
        self.num_examples = len(source)
        self.image_shape = self._reader.shape
        self.classes = source.classes
        self._skipped = set()

    @property
    def skipped(self) -> list[str]:
        return [sources.where(self._reader.source, index) for index in sorted(self._skipped)]

    def train_batches(
        self, first_step: int, batch_size: int, share: slice = slice(None)
    ) -> Iterator[dict[str, np.ndarray]]:
        """Yields global batches from number `first_step` on, without end: batch k has the stream positions
        [k * batch_size, (k + 1) * batch_size).

        The workers stop when the iterator is closed.

        Args:
          first_step: from 0 on.
          batch_size: of the global batch, B.
          share: the part of each batch that this process needs, b of the B; no more is read.

        Yields:
          {"image": uint8[b, H, W, C], "label": int32[b], "index": int32[b], which example it is, "position": uint32[b],
          the stream positions modulo 2**32}.

        Raises:
          BrokenImage: for an image that can't be read, unless on_error is "skip".
          UserError: for images of several sizes without an image_size, or a label without a class.
        """
        chunks = _Chunks(self._reader, batch_size, *share.indices(batch_size)[:2], training=True)
        yield from self._batches(chunks, int(first_step), None, self._worker_kind)

    def eval_batches(self, batch_size: int, share: slice = slice(None)) -> Iterator[dict[str, np.ndarray]]:
        """Yields every example exactly once, in order.

        Args:
          batch_size: of the global batch, B.
          share: the part of each batch that this process needs, b of the B; no more is read.

        Yields:
          {"image": uint8[b, H, W, C], "label": int32[b], "mask": bool[b]}; where the mask is False there is nothing to
          count: padding in the last batch, and images that were skipped.

        Raises:
          BrokenImage, UserError: as `train_batches`.
        """
        chunks = _Chunks(self._reader, batch_size, *share.indices(batch_size)[:2], training=False)
        yield from self._batches(chunks, 0, -(-self.num_examples // batch_size), "threads")

    @staticmethod
    def gather(arrays: dict[str, jax.Array], batch: dict[str, jax.Array]) -> dict[str, jax.Array]:
        """Returns the batch, which holds its images already."""
        return batch

    def _batches(self, chunks: "_Chunks", first: int, stop: int | None, kind: str) -> Iterator[dict[str, np.ndarray]]:
        import grain  # takes a while

        per_batch = chunks.per_batch
        stop = sys.maxsize // per_batch if stop is None else stop
        dataset = grain.MapDataset.range(first * per_batch, stop * per_batch).map(chunks)
        workers = self.workers
        ahead = 2 * per_batch  # chunks that are kept ready beside those under way
        if workers and kind == "processes":
            if not flags.FLAGS.is_parsed():
                flags.FLAGS.mark_as_parsed()  # in a notebook nobody has; Grain asks for flags of its own here
            dataset = dataset.to_iter_dataset(grain.ReadOptions(num_threads=0, prefetch_buffer_size=0))
            # Through pipes and not shared memory, which is no faster with chunks of this size, and of which some stays
            # behind until the process ends whenever an iterator is closed.
            options = grain.experimental.DatasetOptions(min_shm_size=sys.maxsize)
            dataset = grain.experimental.WithOptionsIterDataset(dataset, options)
            options = grain.MultiprocessingOptions(num_workers=workers, per_worker_buffer_size=-(-ahead // workers))
            dataset = dataset.mp_prefetch(options, worker_init_fn=_start_worker)
        else:
            options = grain.ReadOptions(num_threads=workers, prefetch_buffer_size=workers and ahead + workers)
            dataset = dataset.to_iter_dataset(options)
        iterator = iter(dataset)
        try:
            for _ in range(first, stop):
                parts = [next(iterator) for _ in range(per_batch)]
                for part in parts:
                    if isinstance(part, UserError):
                        raise part
                    new = set(part.pop("broken").tolist()) - self._skipped
                    if new:
                        sources.report_skipped(self._reader.source, sorted(new))
                        self._skipped |= new
                yield {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
        finally:
            iterator.close()


def random_resized_crop(size: tuple[int, int], seed: int, position: int) -> tuple[int, int, int, int]:
    """Draws the crop of one training image: an area of 8 to 100 % and an aspect ratio of 3/4 to 4/3.

    Szegedy et al. 2015, section 6, with the details of torchvision's `RandomResizedCrop`: ten tries, and then the
    largest central crop with an allowed ratio.

    Args:
      size: (width, height) of the image.
      seed: 0 <= seed < 2**63.
      position: of the image in the training stream.

    Returns:
      (left, top, right, bottom): the crop is drawn from (seed, position) alone.
    """
    width, height = size
    # Raw words of a counter-based generator, as in order.py, whose own draws have another counter.
    key, counter = np.array([seed, position % 2**64], np.uint64), np.array([0, 0, 0, 1], np.uint64)
    words = np.random.Philox(key=key, counter=counter).random_raw(40)
    draws = iter(((words >> np.uint64(11)) * 2.0**-53).tolist())  # uniform in [0, 1)
    for area, ratio, across, down in zip(draws, draws, draws, draws, strict=True):
        area = width * height * (0.08 + area * (1 - 0.08))
        ratio = (3 / 4) ** (1 - 2 * ratio)  # log-uniform
        crop_width, crop_height = round((area * ratio) ** 0.5), round((area / ratio) ** 0.5)
        if 0 < crop_width <= width and 0 < crop_height <= height:
            left, top = int(across * (width - crop_width + 1)), int(down * (height - crop_height + 1))
            return left, top, left + crop_width, top + crop_height
    crop_width, crop_height = width, height
    if width / height < 3 / 4:
        crop_height = round(width / (3 / 4))
    elif width / height > 4 / 3:
        crop_width = round(height * (4 / 3))
    left, top = (width - crop_width) // 2, (height - crop_height) // 2
    return left, top, left + crop_width, top + crop_height


@dataclasses.dataclass(frozen=True)
class _Reader:
    """Reads examples. Can be pickled, for worker processes."""

    source: Source
    shape: tuple[int, int, int]
    seed: int
    image_size: int
    how: str
    interpolation: str
    crop: str
    on_error: str

    def read_all(self, indices: list[int]) -> Iterator[tuple[Image.Image, int] | None]:
        """Reads examples: small ones at once, which is much faster, large ones one after the other, to save memory."""
        height, width, _ = self.source.image_shape
        if height is not None and width is not None and height * width <= 128 * 128:
            try:
                yield from sources.read_images(self.source, indices)
                return
            except BrokenImage:
                if self.on_error != "skip":
                    raise
        for index in indices:
            yield sources.read_or_skip(self.source, index, self.on_error)

    def pixels(self, index: int, image: Image.Image, position: int | None) -> np.ndarray:
        """Brings an image to its final size: cropped at random if it has a position in the training stream."""
        if position is not None and self.crop == "random_resized_crop":
            image = image.crop(random_resized_crop(image.size, self.seed, position))
            return resize(image, self.image_size, "stretch", self.interpolation)
        if self.image_size:
            return resize(image, self.image_size, self.how, self.interpolation)
        if (image.height, image.width) != self.shape[:2]:
            name, (height, width) = f"{self.source.name!r} {self.source.split}", self.shape[:2]
            raise UserError(
                f"The images of {name} differ in size: the first has {height}x{width} pixels, example {index} "
                f"{image.height}x{image.width}. Set image_size to resize them."
            )
        return decode.to_array(image)


@dataclasses.dataclass(frozen=True)
class _Chunks:
    """The stream of a process's examples in chunks, by number: `per_batch` chunks are one batch.

    Attributes:
      reader: of the examples.
      batch_size: of the global batches.
      start, stop: the part of each global batch that is read.
      training: whether batches come in the order of training, without end, or as the source has them, once.
    """

    reader: _Reader
    batch_size: int
    start: int
    stop: int
    training: bool

    @property
    def per_batch(self) -> int:
        return -(-(self.stop - self.start) // _CHUNK)

    def __call__(self, number: int) -> dict[str, np.ndarray] | UserError:
        """Reads a chunk. A mistake of the user's is returned: on its way out of a process it would lose its type."""
        try:
            step, part = divmod(int(number), self.per_batch)
            first = self.start + part * _CHUNK
            return self._read(step * self.batch_size + first, min(_CHUNK, self.stop - first))
        except UserError as error:
            return error

    def _read(self, start: int, count: int) -> dict[str, np.ndarray]:
        reader, num_examples = self.reader, len(self.reader.source)
        positions = range(start, start + count)
        images, labels = np.zeros((count, *reader.shape), np.uint8), np.zeros(count, np.int32)
        if self.training:
            indices = order.example_indices(reader.seed, start, count, num_examples).tolist()
        else:
            indices = [position for position in positions if position < num_examples]
        mask, broken = np.zeros(count, bool), []
        for place, (index, example) in enumerate(zip(indices, reader.read_all(indices), strict=True)):
            if example is None:
                broken.append(index)
                if not self.training:
                    continue
                index, *example = sources.next_readable(reader.source, index, reader.on_error)
            image, label = example
            sources.check_label(reader.source, index, label)
            images[place] = reader.pixels(index, image, positions[place] if self.training else None)
            labels[place], mask[place] = label, True
        if self.training:
            extra = {"index": np.array(indices, np.int32), "position": order.stream_positions(start, count)}
        else:
            extra = {"mask": mask}
        return {"image": images, "label": labels, **extra, "broken": np.array(broken, np.int64)}


def _start_worker(*_: Any) -> None:
    """Prepares a worker process for the end of the process that it works for, which is the only one that ends it."""
    # Ctrl-C and many schedulers signal all processes of a run; the main one still needs batches until it has saved.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    parent = multiprocessing.parent_process()

    def watch() -> None:  # Grain's own worker would wait for ever for a parent that was killed
        multiprocessing.connection.wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
