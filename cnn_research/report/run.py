"""A run opened for reading: what it was, how it went, and what its network says of the test images."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from etils import epath
from ml_collections import ConfigDict

from cnn_research.data.resize import resize
from cnn_research.data.sources import open_source
from cnn_research.errors import UserError
from cnn_research.inference import Predictor
from cnn_research.training import workdir as files
from cnn_research.training.feeds import Feed, open_feeds
from cnn_research.training.writers import read_metrics


@dataclasses.dataclass(frozen=True)
class Run:
    """One run.

    Attributes:
        name: of its folder.
        config: of the experiment.
        results: of results.json; None while it isn't finished.
        environment: of environment.json: the command line, versions, devices; {} where there is none.
        history: the rows of metrics.jsonl: "step", "epoch", "split" and values.
        step: of the checkpoint.
        predictor: its network.
        split: whose images follow.
        indices: int[N], which examples of the split these are: all but those that can't be read.
        labels: int[N].
        probabilities: float32[N, K], as evaluation has them.
        images: examples of these N -> uint8[n, H, W, C], as evaluation reads them.
    """

    name: str
    config: ConfigDict
    results: dict[str, Any] | None
    environment: dict[str, Any]
    history: list[dict[str, Any]]
    step: int
    predictor: Predictor
    split: str
    indices: np.ndarray
    labels: np.ndarray
    probabilities: np.ndarray
    images: Callable[[Sequence[int]], np.ndarray]

    @property
    def classes(self) -> tuple[str, ...]:
        """K names."""
        return self.predictor.classes

    @property
    def right(self) -> np.ndarray:
        """bool[N]: which of the images are recognised."""
        return self.probabilities.argmax(axis=1) == self.labels

    def central_views(self, chosen: Sequence[int]) -> tuple[np.ndarray, jax.Array]:
        """What the network sees of some of the images: uint8[n, h, w, C], and as its input float32[n, h, w, C]."""
        return self.predictor.central_views(self.images(chosen))


def open_run(workdir: epath.PathLike, split: str = "", data_dir: str | None = None) -> Run:
    """Reads a run's files and its newest checkpoint, and predicts every image of a split.

    Args:
        workdir: folder of the run.
        split: of the run's dataset, such as "test[:2000]"; "" = its dataset.test_split.
        data_dir: where the dataset is now; None = where it was in training.

    Raises:
        UserError: the folder holds no run or no checkpoint, or the split can't be read or has no image that can.
    """
    workdir = files.resolved(workdir)
    config = files.load_config(workdir)
    if data_dir is not None:
        config.dataset.data_dir = data_dir
    predictor = Predictor.from_workdir(workdir)
    split = split or config.dataset.test_split
    feed = open_feeds(config, (split,))[split]
    if feed.image_shape != predictor.image_shape:
        seen, needed = ("x".join(map(str, shape)) for shape in (feed.image_shape, predictor.image_shape))
        raise UserError(f"the images of {split!r} have {seen} values, but the network takes {needed}")
    indices, labels, probabilities = _predictions(predictor, feed)
    if not len(indices):
        raise UserError(f"none of the images of {config.dataset.name!r} {split} can be read")
    metrics = workdir / "metrics.jsonl"
    return Run(
        name=workdir.name,
        config=config,
        results=files.read_json(workdir / "results.json"),
        environment=files.read_json(workdir / "environment.json") or {},
        history=read_metrics(metrics) if metrics.exists() else [],
        step=predictor.step,
        predictor=predictor,
        split=split,
        indices=indices,
        labels=labels,
        probabilities=probabilities,
        images=_images(config, feed, split, indices),
    )


def _predictions(predictor: Predictor, feed: Feed) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Which examples could be read: int[N]; their labels: int[N]; probabilities: float32[N, K]."""
    parts = []
    for number, batch in enumerate(feed.eval_batches(predictor.batch_size)):
        mask = batch["mask"]
        batch = jax.tree.map(np.asarray, feed.gather(feed.arrays, batch))
        probabilities = np.asarray(jax.nn.softmax(predictor.logits(batch["image"])))
        examples = number * predictor.batch_size + np.flatnonzero(mask)
        parts.append((examples, batch["label"][mask], probabilities[mask]))
    indices, labels, probabilities = (np.concatenate(column) for column in zip(*parts, strict=True))
    return indices, labels, probabilities


def _images(config: ConfigDict, feed: Feed, split: str, indices: np.ndarray) -> Callable[[Sequence[int]], np.ndarray]:
    """Random access to the images, which a streaming feed doesn't give."""
    if feed.arrays:
        return lambda chosen: feed.arrays["image"][indices[chosen]]
    dataset = config.dataset
    source = open_source(dataset.name, split, dataset.data_dir)
    size = config.evaluation.image_size or dataset.image_size

    def read(chosen: Sequence[int]) -> np.ndarray:
        images = [example["image"] for example in source.__getitems__(indices[chosen].tolist())]
        return np.stack([resize(i, size, dataset.resize, dataset.interpolation) if size else i for i in images])

    return read
