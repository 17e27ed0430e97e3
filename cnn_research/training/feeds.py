"""The feeds of an experiment, opened by its config."""

import math

from absl import logging
from ml_collections import ConfigDict
from PIL import Image

from cnn_research.data import augment, contact_sheet, mix
from cnn_research.data.resident import ResidentFeed
from cnn_research.data.sources import Source, open_source, shape_of
from cnn_research.data.streaming import StreamingFeed
from cnn_research.errors import UserError
from cnn_research.training import parallel

Feed = ResidentFeed | StreamingFeed  # they have one contract


def open_feeds(config: ConfigDict, eval_splits: tuple[str, ...], train_split: str | None = None) -> dict[str, Feed]:
    """Opens splits of the run's dataset, each once.

    Args:
        config: of the experiment.
        eval_splits: to evaluate on, with images of evaluation.image_size.
        train_split: to train on, with images of dataset.image_size; None where nothing is trained.

    Raises:
        UserError: the dataset or a split is missing, the splits don't fit together, or config.dataset doesn't fit them.
    """
    size = config.dataset.image_size
    sizes = {train_split: size} if train_split else {}
    sizes |= dict.fromkeys(eval_splits, config.evaluation.image_size or size)
    sources = {split: open_source(config.dataset.name, split, config.dataset.data_dir) for split in sizes}
    kind = config.dataset.feed
    if kind == "auto":
        kind = _choose_feed(config, sources, sizes, training=train_split is not None)
    feeds = {split: open_feed(config, kind, sources[split], size) for split, size in sizes.items()}
    first, *others = feeds.items()
    for split, feed in others:
        for what, of in {"classes": lambda f: f.classes, "channels": lambda f: f.image_shape[-1]}.items():
            if of(feed) != of(first[1]):
                raise UserError(
                    f"config.dataset: {what} of {split!r} are {of(feed)}, but of {first[0]!r} {of(first[1])}"
                )
    return feeds


def _choose_feed(config: ConfigDict, sources: dict[str, Source], sizes: dict[str, int], training: bool) -> str:
    """What dataset.feed="auto" stands for."""
    if training and config.dataset.train_crop != "none":
        logging.info(f"dataset.feed=auto: streaming, as dataset.train_crop={config.dataset.train_crop} needs it")
        return "streaming"
    total = sum(len(s) * math.prod(shape_of(s, sizes[k], config.dataset.on_error)) for k, s in sources.items())
    quarter = parallel.device_memory() // 4
    fits = total <= quarter
    logging.info(
        f"dataset.feed=auto: {'resident' if fits else 'streaming'}, as {total / 1e9:.3f} GB of decoded images "
        f"{'fit' if fits else 'do not fit'} into a quarter of a device's memory, {quarter / 1e9:.3f} GB"
    )
    return "resident" if fits else "streaming"


def open_feed(config: ConfigDict, kind: str, source: Source, image_size: int) -> Feed:
    """Opens a "resident" or "streaming" feed of a source, with the config's settings.

    Raises:
        UserError: the images can't be read, or config.dataset doesn't fit them.
    """
    dataset = config.dataset
    common = {
        "seed": config.seed,
        "image_size": image_size,
        "how": dataset.resize,
        "interpolation": dataset.interpolation,
        "on_error": dataset.on_error,
    }
    if kind == "resident":
        feed = ResidentFeed(source, cache=dataset.cache, **common)
    else:
        workers = {"workers": dataset.workers, "worker_kind": dataset.worker_kind}
        # Of the feeds, only that of the training split is ever asked for training batches; all may have an image_size.
        feed = StreamingFeed(source, crop=dataset.train_crop, **workers, **common)
    channels = feed.image_shape[-1]
    for field in ("mean", "std"):
        values = config.dataset[field]
        if len(values) not in (1, channels):
            raise UserError(
                f"config.dataset.{field}={values}: {config.dataset.name} has {channels} channel(s), "
                f"so {' or '.join(dict.fromkeys(('1', str(channels))))} values are needed, not {len(values)}"
            )
    return feed


def draw_contact_sheet(config: ConfigDict) -> Image.Image:
    """Draws the first training images of an experiment as the network will see them: see `contact_sheet.draw`.

    Raises:
        UserError: the dataset or the split is missing, or the augmentation doesn't fit the images.
    """
    dataset = config.dataset
    source = open_source(dataset.name, dataset.train_split, dataset.data_dir)

    def open_streaming(source: Source) -> StreamingFeed:
        return open_feed(config, "streaming", source, dataset.image_size)

    try:
        return contact_sheet.draw(
            source, open_streaming, augment.parse(config.augment), mix.parse(config.mix), seed=config.seed
        )
    except ValueError as error:
        raise UserError(f"config.augment={config.augment!r}: {error}") from None
