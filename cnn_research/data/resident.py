"""The resident feed: the whole dataset lives in device memory as uint8 and is gathered inside the compiled step.

For a set that fits (MNIST is 47 MB, CIFAR-10 is 154 MB) this removes the input pipeline: a batch costs the host a few
microseconds of indices, and nothing but these travels to the device.
"""

import concurrent.futures
import math
import os
import time
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from tqdm import tqdm

from cnn_research.data import order
from cnn_research.data.resize import INTERPOLATIONS, resize
from cnn_research.data.sources import Source
from cnn_research.errors import UserError

# Pillow decodes outside Python's global lock, but for a small image most of the time goes into the Python code around
# that, and threads that fight for the lock are slower than one: by 30 % at 28 x 28 and at 32 x 32. From this size on
# they are not, even on two busy cores.
_PIXELS_WORTH_THREADS = 128 * 128

# Examples that are read at once. Reading amortises over many small ones; photographs take half a megabyte each, times
# the number of threads.
_CHUNK_OF_SMALL, _CHUNK_OF_LARGE = 1024, 32


class ResidentFeed:
    """Decodes a source once; hands out batches of indices into it.

    The feed knows nothing of devices: the caller puts a copy of `arrays` on each device, passes it to the step as an
    argument (never closed over, which would bake it into the compiled program) and shards the batches.

    Attributes:
      arrays: {"image": uint8[N, H, W, C], "label": int32[N]}, numpy.
      num_examples: N.
      image_shape: (H, W, C).
      classes: the name of each label.
    """

    def __init__(
        self,
        source: Source,
        *,
        seed: int = 0,
        image_size: int = 0,
        how: str = "stretch",
        interpolation: str = "bilinear",
    ):
        """Reads the whole source into memory.

        Args:
          source: where the examples come from.
          seed: of the training order, 0 <= seed < 2**63.
          image_size: resize to a square of that many pixels, on the host, with Pillow; 0 keeps the images' own size.
          how: "stretch" or "crop": see `resize.resize`.
          interpolation: "bilinear", "nearest" or "bicubic".

        Raises:
          UserError: for images of several sizes without an image_size, a label without a class, or an unknown
            interpolation.
        """
        if interpolation not in INTERPOLATIONS:
            raise UserError(f"Unknown interpolation {interpolation!r}: choose one of {', '.join(INTERPOLATIONS)}.")
        self.seed = seed
        self.arrays = _load(source, image_size, how, interpolation)
        self.num_examples = len(source)
        self.image_shape = self.arrays["image"].shape[1:]
        self.classes = source.classes

    def train_batch(self, step: int, batch_size: int) -> dict[str, np.ndarray]:
        """Returns global batch number `step`: the stream positions [step * batch_size, (step + 1) * batch_size).

        Returns:
          {"index": int32[B], the examples, "position": uint32[B], their stream positions modulo 2**32}.
        """
        start = int(step) * batch_size  # not of a fixed width: a long run must not overflow
        index = order.example_indices(self.seed, start, batch_size, self.num_examples)
        position = np.arange(batch_size, dtype=np.int64) + start % 2**32
        return {"index": index.astype(np.int32), "position": position.astype(np.uint32)}  # the cast wraps around

    def eval_batches(self, batch_size: int) -> Iterator[dict[str, np.ndarray]]:
        """Yields every example exactly once, in order.

        Yields:
          {"index": int32[B], "mask": bool[B]}; where the mask is False, in the last batch, index is 0: padding.
        """
        for start in range(0, self.num_examples, batch_size):
            index = np.arange(start, start + batch_size)
            mask = index < self.num_examples
            yield {"index": np.where(mask, index, 0).astype(np.int32), "mask": mask}

    @staticmethod
    def gather(arrays: dict[str, jax.Array], batch: dict[str, jax.Array]) -> dict[str, jax.Array]:
        """Looks the examples of one device's share of a batch up. Pure: for use inside the compiled step.

        Args:
          arrays: the feed's `arrays`, on the device.
          batch: {"index": int32[b], ...}.

        Returns:
          {"image": uint8[b, H, W, C], "label": int32[b], and what else the batch holds}.
        """
        examples = {key: jnp.take(values, batch["index"], axis=0, mode="clip") for key, values in arrays.items()}
        return examples | {key: values for key, values in batch.items() if key != "index"}


def _load(source: Source, image_size: int, how: str, interpolation: str) -> dict[str, np.ndarray]:
    began = time.monotonic()
    height, width, channels = source.image_shape
    shape = (image_size, image_size, channels) if image_size else source[0]["image"].shape
    images = np.empty((len(source), *shape), np.uint8)
    labels = np.empty(len(source), np.int32)

    small = height is not None and width is not None and height * width < _PIXELS_WORTH_THREADS
    workers, chunk = (1, _CHUNK_OF_SMALL) if small else (min(os.cpu_count() or 1, 16), _CHUNK_OF_LARGE)

    def load_chunk(start: int) -> int:
        """Fills one chunk; returns its size."""
        indices = range(start, min(start + chunk, len(source)))
        for index, example in zip(indices, source.__getitems__(indices), strict=True):
            image, label = example["image"], example["label"]
            if image.shape != shape:
                if not image_size:
                    raise UserError(
                        f"The images of {source.name!r} {source.split} differ in size: example 0 has "
                        f"{_size(shape)} pixels, example {index} {_size(image.shape)}. Set image_size to resize them."
                    )
                image = resize(image, image_size, how, interpolation)
            if not 0 <= label < len(source.classes):
                raise UserError(
                    f"Example {index} of {source.name!r} {source.split} has the label {label}, but the labels "
                    f"of {len(source.classes)} classes are 0 to {len(source.classes) - 1}. Choose a split with labels."
                )
            images[index], labels[index] = image, label
        return len(indices)

    bar = tqdm(
        total=len(source), desc=f"{source.name} {source.split}", unit=" images", delay=2, leave=False, disable=None
    )
    with bar, concurrent.futures.ThreadPoolExecutor(workers) as pool:
        try:
            for loaded in pool.map(load_chunk, range(0, len(source), chunk)):
                bar.update(loaded)
        except BaseException:
            pool.shutdown(cancel_futures=True)  # one broken image shouldn't cost the time of reading all the others
            raise
    logging.info(
        "%s %s: %d images of %s (%.1f MB) in %.1f s",
        source.name,
        source.split,
        len(source),
        "x".join(map(str, shape)),
        math.prod(images.shape) / 1e6,
        time.monotonic() - began,
    )
    return {"image": images, "label": labels}


def _size(shape: tuple[int, ...]) -> str:
    return f"{shape[0]}x{shape[1]}"
