"""The resident feed: the whole dataset lives in device memory as uint8 and is gathered inside the compiled step.

For a set that fits (MNIST is 47 MB, CIFAR-10 is 154 MB) this removes the input pipeline: a batch costs the host a few
microseconds of indices, and nothing but these travels to the device.
"""

import concurrent.futures
import itertools
import math
import time
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import PIL
from absl import logging
from tqdm import tqdm

from cnn_research.data import cache as disk_cache
from cnn_research.data import order, sources
from cnn_research.data.decode import BrokenImage
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
      ahead: how many steps the host may run ahead of the devices; None for any number, as batches take no memory.
      prefetch: how many batches to copy to the devices before they are needed.
      skipped: the paths of the images that could not be read. In training the next example that can be takes the place
        of each, so that nothing else moves; evaluation masks them out.
    """

    ahead = None
    prefetch = 0

    def __init__(
        self,
        source: Source,
        *,
        seed: int = 0,
        image_size: int = 0,
        how: str = "stretch",
        interpolation: str = "bilinear",
        on_error: str = "stop",
        cache: str = "",
    ):
        """Reads the whole source into memory.

        Args:
          source: where the examples come from.
          seed: of the training order, 0 <= seed < 2**63.
          image_size: resize to a square of that many pixels, on the host, with Pillow; 0 keeps the images' own size.
          how: "stretch" or "crop": see `resize.resize`.
          interpolation: "bilinear", "nearest" or "bicubic".
          on_error: what an image that can't be read does: "stop" or "skip".
          cache: folder in which the decoded set is kept for the next start; "" for none.

        Raises:
          UserError: for images of several sizes without an image_size, a label without a class, or an unknown
            interpolation.
          BrokenImage: for an image that can't be read, unless on_error is "skip".
        """
        if interpolation not in INTERPOLATIONS:
            raise UserError(f"Unknown interpolation {interpolation!r}: choose one of {', '.join(INTERPOLATIONS)}.")
        self.seed = seed
        # Everything that decides the arrays but the source itself.
        recipe = {"image_size": image_size, "how": how, "interpolation": interpolation}
        loaded = _load_cached(source, recipe, on_error, cache)
        broken = loaded.pop("broken")
        if broken.size:
            sources.report_skipped(source, broken)
        self.arrays = loaded
        self.skipped = [sources.where(source, index) for index in broken.tolist()]
        self._readable = np.ones(len(source), bool)
        self._readable[broken] = False
        self.num_examples = len(source)
        self.image_shape = self.arrays["image"].shape[1:]
        self.classes = source.classes

    def train_batches(
        self, first_step: int, batch_size: int, share: slice = slice(None)
    ) -> Iterator[dict[str, np.ndarray]]:
        """Yields global batches from number `first_step` on, without end: batch k has the stream positions
        [k * batch_size, (k + 1) * batch_size).

        Args:
          first_step: from 0 on, of any size.
          batch_size: of the global batch, B.
          share: the part of each batch that this process needs, b of the B.

        Yields:
          {"index": int32[b], the examples, "position": uint32[b], their stream positions modulo 2**32}.
        """
        for step in itertools.count(int(first_step)):  # not of a fixed width: a long run must not overflow
            start = step * batch_size
            index = order.example_indices(self.seed, start, batch_size, self.num_examples)
            position = order.stream_positions(start, batch_size)
            yield {"index": index.astype(np.int32)[share], "position": position[share]}

    def eval_batches(self, batch_size: int, share: slice = slice(None)) -> Iterator[dict[str, np.ndarray]]:
        """Yields every example exactly once, in order.

        Args:
          batch_size: of the global batch, B.
          share: the part of each batch that this process needs, b of the B.

        Yields:
          {"index": int32[b], "mask": bool[b]}; where the mask is False there is nothing to count: in the last batch
          padding, whose index is 0, and the images that were skipped.
        """
        for start in range(0, self.num_examples, batch_size):
            index = np.arange(start, start + batch_size)
            index = np.where(index < self.num_examples, index, 0)
            mask = self._readable[index]
            mask[self.num_examples - start :] = False
            yield {"index": index.astype(np.int32)[share], "mask": mask[share]}

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
        return examples | batch


def _load_cached(source: Source, recipe: dict[str, Any], on_error: str, cache: str) -> dict[str, np.ndarray]:
    """`_load`, or what it left in the cache."""
    identity = sources.identity(source) if cache else None
    if identity is None:
        return _load(source, recipe, on_error)
    began = time.monotonic()
    key = {"source": identity, "recipe": recipe, "pillow": PIL.__version__}
    path = disk_cache.entry(cache, f"{source.name}-{source.split}", key)
    arrays = disk_cache.load(path)
    # With broken images among it, only a run that skips them may use it; another shall hear of them.
    if arrays is None or (arrays["broken"].size and on_error != "skip"):
        arrays = _load(source, recipe, on_error)
        disk_cache.save(path, arrays)
        return arrays
    logging.info("%s in %.1f s, decoded before: %s", _description(source, arrays), time.monotonic() - began, path)
    return arrays


def _load(source: Source, recipe: dict[str, Any], on_error: str) -> dict[str, np.ndarray]:
    """Decodes a whole source.

    Returns:
      {"image": uint8[N, H, W, C], "label": int32[N], "broken": int64[M], the examples that could not be read and are
      copies of others}.
    """
    began = time.monotonic()
    image_size = recipe["image_size"]
    height, width, _ = source.image_shape
    shape = sources.shape_of(source, image_size, on_error)
    images = np.empty((len(source), *shape), np.uint8)
    labels = np.empty(len(source), np.int32)
    broken = []

    small = height is not None and width is not None and height * width < _PIXELS_WORTH_THREADS
    workers, chunk = (1, _CHUNK_OF_SMALL) if small else (min(sources.count_cores(), 16), _CHUNK_OF_LARGE)

    def load_chunk(start: int) -> int:
        """Fills one chunk; returns its size."""
        indices = range(start, min(start + chunk, len(source)))
        count = len(indices)
        try:
            examples = source.__getitems__(indices)
        except BrokenImage:
            if on_error != "skip":
                raise
            readable = [index for index in indices if sources.read_or_skip(source, index, on_error)]
            broken.extend(set(indices) - set(readable))
            indices, examples = readable, source.__getitems__(readable)
        for index, example in zip(indices, examples, strict=True):
            image, label = example["image"], example["label"]
            if image.shape != shape:
                if not image_size:
                    raise UserError(
                        f"The images of {source.name!r} {source.split} differ in size: the first has "
                        f"{_size(shape)} pixels, example {index} {_size(image.shape)}. Set image_size to resize them."
                    )
                image = resize(image, image_size, recipe["how"], recipe["interpolation"])
            sources.check_label(source, index, label)
            images[index], labels[index] = image, label
        return count

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
    arrays = {"image": images, "label": labels, "broken": np.array(sorted(broken), np.int64)}
    for index in broken:
        readable, _, _ = sources.next_readable(source, index, on_error)
        images[index], labels[index] = images[readable], labels[readable]
    logging.info("%s in %.1f s", _description(source, arrays), time.monotonic() - began)
    return arrays


def _description(source: Source, arrays: dict[str, np.ndarray]) -> str:
    shape = "x".join(map(str, arrays["image"].shape[1:]))
    size = math.prod(arrays["image"].shape) / 1e6
    return f"{source.name} {source.split}: {len(source)} images of {shape} ({size:.1f} MB)"


def _size(shape: tuple[int, ...]) -> str:
    return f"{shape[0]}x{shape[1]}"
