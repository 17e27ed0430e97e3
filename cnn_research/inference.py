"""Predictions: a run, one of its checkpoints or a published network -> classes with confidences, for any images.

    predictor = Predictor.from_workdir("runs/convnet_cifar10")
    for prediction in predictor.predict("photos/*.jpg"):
        print(prediction.name, prediction.top(2))             # photos/rex.jpg [("dog", 0.71), ("cat", 0.2)]

Images are decoded, resized, cut into views and normalised as evaluation does it: how, stands in the checkpoint.
"""

import concurrent.futures
import dataclasses
import functools
import json
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from flax import linen as nn
from PIL import Image

from cnn_research import config as configs
from cnn_research.data import decode, sources, views
from cnn_research.data.image_files import find_images
from cnn_research.data.resize import HOW, resize
from cnn_research.errors import UserError, suggest
from cnn_research.models import registry, torch_file, torchvision
from cnn_research.training import parallel, step
from cnn_research.training import workdir as files
from cnn_research.training.pretrained import read_run
from cnn_research.training.setup import evaluation_views

# So many pixels are computed at once unless evaluation takes fewer: batches of 1024 images of CIFAR-10, 20 photographs.
_PIXELS_AT_ONCE = 2**20

# torchvision's protocol for its weights: the shorter side to 256, of which the network sees the central 224.
_SCALE = 256 / 224


@dataclasses.dataclass(frozen=True, eq=False)
class Prediction:
    """What a network says of one image.

    Attributes:
        name: the path of the image, or "image 3" of an array.
        image: as evaluation is given it, before it is cut and normalised: uint8[H, W, C].
        logits: float32[K].
        classes: the K names.
    """

    name: str
    image: np.ndarray
    logits: np.ndarray
    classes: tuple[str, ...]

    @functools.cached_property
    def confidences(self) -> np.ndarray:
        """The softmax of the logits, float64[K], which sums to 1; of several views the mean of theirs."""
        exponentials = np.exp(self.logits.astype(np.float64) - self.logits.max())
        return exponentials / exponentials.sum()

    @functools.cached_property
    def ranking(self) -> np.ndarray:
        """The numbers of the classes, the most likely first; of equal ones the lower first. int64[K]."""
        return np.argsort(-self.logits, kind="stable")

    def top(self, count: int = 5) -> list[tuple[str, float]]:
        """The most likely classes with their confidences."""
        return [(self.classes[index], float(self.confidences[index])) for index in self.ranking[:count]]


class Predictor:
    """A network that is ready for images. Make one by `from_workdir` or `from_zoo`.

    Attributes:
        name: what it is, for titles and files: of folders only the last part, so that it may leave this machine.
        model, variables: the Flax module, and {"params", "batch_stats"} on the device: for the functions of `explain`.
        classes: the names of the K logits.
        image_shape: (H, W, C) of the images that `logits` and `preprocess` take.
        mean, std: of `normalise`; one value or one a channel.
        make_views: uint8[N, H, W, C] -> [V, N, h, w, C], of which the predictions are averaged; h and w
            are the size that the network sees.
        resizing: what brings images to `image_shape`: {"how", "interpolation"} of `data.resize`; None for nothing.
        batch_size: how many images are computed at once; fewer are padded to as many.
        step: of the run's checkpoint; None for weights of a file.
    """

    def __init__(
        self,
        name: str,
        model: nn.Module,
        variables: Any,
        classes: Sequence[str],
        *,
        image_shape: Sequence[int],
        mean: Sequence[float],
        std: Sequence[float],
        make_views: Callable[[jax.Array], jax.Array] = views.make_views,
        resizing: dict[str, str] | None = None,
        batch_size: int = 32,
        step: int | None = None,
        matmul_precision: str = "default",
    ):
        """Takes the attributes.

        Args:
            matmul_precision: as config.matmul_precision.
        """
        self.name = name
        self.model = model
        self.variables = jax.device_put(variables)
        self.classes = tuple(classes)
        self.image_shape = tuple(image_shape)
        self.mean, self.std = tuple(mean), tuple(std)
        self.make_views = make_views
        self.resizing = resizing
        self.batch_size = batch_size
        self.step = step
        self.matmul_precision = None if matmul_precision == "default" else matmul_precision
        self._logits = jax.jit(functools.partial(self.compute, accelerate=parallel.accelerate))

    @classmethod
    def from_workdir(
        cls, workdir: epath.PathLike, checkpoint: str | int = "latest", *, resizing: str = "", batch_size: int = 0
    ) -> "Predictor":
        """Takes the network of a run, with the preprocessing of its evaluation.

        Args:
            workdir: folder of the run; of it only the checkpoints are needed.
            checkpoint: latest | best, or a step.
            resizing: "stretch" or "crop" (see `data.resize`), for images of other sizes; "" = as the run does. A run
                whose images all had one size does not resize.
            batch_size: 0 = that of evaluation, by which logits are evaluation's to the bit on the same kind of device
                (a GPU needs config.deterministic); but fewer if these are more than a million pixels.

        Raises:
            UserError: there is no such checkpoint, or it is damaged or a later version's.
        """
        path = files.locate(workdir)
        number, variables, about = read_run(path, str(checkpoint))
        config = configs.from_json(json.dumps(about["config"]))
        parallel.initialise(config.compilation_cache, config.deterministic)
        dataset, evaluation = about["dataset"], config.evaluation
        shape = dataset.get("read_shape", dataset["image_shape"])  # older checkpoints lack the first
        size = evaluation.image_size or config.dataset.image_size
        if size:
            shape = size, size, shape[2]
        how = resizing or (config.dataset.resize if size else "")
        if resizing and shape[0] != shape[1]:
            raise UserError(f"resizing by {resizing} makes squares, but {path} takes images of {_size(shape)} pixels")
        model = registry.create_model(
            config.model.name, len(dataset["classes"]), dtype=config.precision, **configs.model_fields(config)
        )
        return cls(
            f"{config.model.name} of {files.resolved(path).name} at step {number}",
            model,
            variables,
            dataset["classes"],
            image_shape=shape,
            mean=dataset["mean"],
            std=dataset["std"],
            make_views=evaluation_views(evaluation),
            resizing=_resizing(how, config.dataset.interpolation),
            batch_size=batch_size or _batch_size(shape, config.eval_batch_size),
            step=number,
            matmul_precision=config.matmul_precision,
        )

    @classmethod
    def from_zoo(
        cls,
        name: str,
        weights: epath.PathLike,
        classes: Sequence[str] = (),
        *,
        resizing: str = "crop",
        batch_size: int = 0,
    ) -> "Predictor":
        """Takes a network of the registry with weights of torchvision's or timm's, by torchvision's protocol.

        The shorter side of an image becomes 256 pixels and the network sees the central 224, normalised as
        `models.facts` says (for other networks in this proportion).

        Args:
            name: one of `torchvision.importable_models()`.
            weights: a .pth or .safetensors file.
            classes: as many names as the file has classes; none for "class 17".
            resizing: "crop", or "stretch" to see all of an image.
            batch_size: 0 = as many as make a million pixels.

        Raises:
            UserError: an unknown network, a file that is missing, broken or another network's, or too few names.
        """
        path = epath.Path(weights).expanduser()
        try:
            facts = registry.model_facts(name)
            model, variables = torchvision.import_network(name, torch_file.read_state_dict(path))
        except (ValueError, OSError, ImportError) as error:
            raise UserError(f"{name} with the weights {path}: {error}") from None
        if classes and len(classes) != model.num_classes:
            raise UserError(f"{len(classes)} names of classes are given, but {path} has {model.num_classes} classes")
        crop_size, _, channels = facts.image_shape
        size = round(crop_size * _SCALE)
        return cls(
            f"{name} with the weights {path.name}",
            model,
            variables,
            classes or [f"class {index}" for index in range(model.num_classes)],
            image_shape=(size, size, channels),
            mean=facts.mean,
            std=facts.std,
            make_views=functools.partial(views.make_views, crop_size=crop_size),
            resizing=_resizing(resizing, "bilinear"),
            batch_size=batch_size or _batch_size((size, size)),
        )

    def predict(self, images: Any) -> list[Prediction]:
        """Says what images show.

        Args:
            images: an array uint8[N, H, W, C] or [H, W, C], of NumPy, JAX or alike; several [H, W, C], which may differ
                in size; or what `find_images` takes. Of any size if the predictor resizes, else of `image_shape`;
                channels as the network has them, or of files any.

        Raises:
            UserError: there are none, or one can't be read or used. `stream` goes on with the others.
        """
        return list(self.stream(images))

    def stream(self, images: Any, on_error: Callable[[UserError], None] | None = None) -> Iterator[Prediction]:
        """Says what images show, one after the other, decoding the next batch while the device computes.

        Args:
            images: as for `predict`.
            on_error: is given what is wrong with an image, which is then left out; None raises it.
        """
        items, before = _items(images), None
        with concurrent.futures.ThreadPoolExecutor(min(sources.count_cores(), 16)) as pool:
            for start in range(0, len(items), self.batch_size):
                part = items[start : start + self.batch_size]
                # An image that can't be read leaves its place empty, as in evaluation: the others keep theirs.
                batch, found = np.zeros((self.batch_size, *self.image_shape), np.uint8), []
                for place, image in enumerate(pool.map(self._try_fit, part)):
                    if isinstance(image, UserError):
                        if on_error is None:
                            raise image
                        on_error(image)
                    else:
                        batch[place] = image
                        found.append((place, part[place][0]))
                logits = self._dispatch(batch)
                if before:
                    yield from self._predictions(*before)
                before = found, batch, logits
        if before:
            yield from self._predictions(*before)

    def _predictions(self, found: list[tuple[int, str]], batch: np.ndarray, logits: jax.Array) -> Iterator[Prediction]:
        logits = np.asarray(logits)
        for place, name in found:
            yield Prediction(name, batch[place], logits[place], self.classes)

    def logits(self, images: np.ndarray) -> np.ndarray:
        """Computes the logits of images uint8[N, *image_shape]: float32[N, K]; of several views the log of the mean
        confidences.

        Raises:
            UserError: they are of another shape or type.
        """
        images, parts = self._checked(images), []
        for start in range(0, len(images), self.batch_size):
            part = images[start : start + self.batch_size]
            batch = np.zeros((self.batch_size, *self.image_shape), np.uint8)
            batch[: len(part)] = part
            parts.append(self._dispatch(batch)[: len(part)])
        return np.concatenate(parts) if parts else np.zeros((0, len(self.classes)), np.float32)

    def preprocess(self, images: np.ndarray) -> jax.Array:
        """Makes of images uint8[N, *image_shape] the network's input float32[N, h, w, C]: the central view, normalised.

        Raises:
            UserError: they are of another shape or type.
        """
        return self.central_views(images)[1]

    def central_views(self, images: np.ndarray) -> tuple[np.ndarray, jax.Array]:
        """Cuts out what the network sees of images uint8[N, *image_shape]: for pictures beside what `explain` finds.

        Returns:
            The central views uint8[N, h, w, C], and as the network's input: normalised, float32[N, h, w, C].

        Raises:
            UserError: they are of another shape or type.
        """
        images = self._checked(images)
        height, width = jax.eval_shape(self.make_views, images).shape[2:4]
        top, left = (images.shape[1] - height) // 2, (images.shape[2] - width) // 2
        pixels = images[:, top : top + height, left : left + width]
        return pixels, step.normalise(jnp.asarray(pixels), self.mean, self.std)

    def compute(
        self, variables: Any, images: jax.Array, accelerate: Callable[[Callable], Callable] = step.as_it_is
    ) -> jax.Array:
        """`step.predict` with this network's settings: (variables, uint8[N, *image_shape]) -> logits float32[N, K].

        Pure, to be compiled as part of something else; by default in forms that suit any device.
        """
        return step.predict(
            variables,
            images,
            mean=self.mean,
            std=self.std,
            model=self.model,
            make_views=self.make_views,
            accelerate=accelerate,
        )

    def read(self, path: epath.PathLike) -> np.ndarray:
        """Decodes an image file and brings it to `image_shape`: uint8.

        Raises:
            UserError: it can't be read, or has another size and the predictor doesn't resize.
        """
        try:
            data = Path(path).read_bytes()
            return self._fit(decode.open_image(data, self.image_shape[2], str(path)), str(path))
        except OSError as error:
            raise UserError(f"{path}: {error.strerror or error}") from None
        except decode.BrokenImage as error:
            raise UserError(f"{path}: {error.reason}") from None

    def _try_fit(self, item: tuple[str, str | np.ndarray]) -> np.ndarray | UserError:
        name, image = item
        try:
            if not isinstance(image, np.ndarray):
                return self.read(image)
            if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != self.image_shape[2]:
                raise UserError(f"{name}: {_kind(image)}, but uint8[H, W, {self.image_shape[2]}] is needed")
            return self._fit(decode.from_array(image), name)
        except UserError as error:
            return error

    def _fit(self, image: Image.Image, name: str) -> np.ndarray:
        if (image.height, image.width) == self.image_shape[:2]:
            return decode.to_array(image)
        if not self.resizing:
            sizes = f"it has {image.height}x{image.width} pixels, but the network takes {_size(self.image_shape)}"
            raise UserError(f"{name}: {sizes}; --resize={' or '.join(HOW)} would bring it there (in Python resizing=)")
        return resize(image, self.image_shape[0], **self.resizing)

    def _dispatch(self, batch: np.ndarray) -> jax.Array:
        """Starts computing logits, without waiting for them."""
        with jax.default_matmul_precision(self.matmul_precision):
            return self._logits(self.variables, batch)

    def _checked(self, images: Any) -> np.ndarray:
        images = np.asarray(images)
        if images.shape[1:] != self.image_shape or images.dtype != np.uint8:
            wanted = ", ".join(map(str, self.image_shape))
            raise UserError(f"images are {_kind(images)}, but uint8[N, {wanted}] is needed")
        return images


def _items(images: Any) -> list[tuple[str, str | np.ndarray]]:
    """Of what `Predictor.predict` takes each image, or its path, with its name."""
    if _is_array(images):
        arrays = np.asarray(images)
        if arrays.ndim not in (3, 4):
            raise UserError(f"images are {_kind(arrays)}, but uint8[N, H, W, C] or uint8[H, W, C] is needed")
        arrays = arrays if arrays.ndim == 4 else arrays[None]
    else:
        arrays = [images] if isinstance(images, str | os.PathLike) else list(images)
        if not any(map(_is_array, arrays)):
            return [(path, path) for path in find_images(arrays)]
    return [(f"image {index}", np.asarray(array)) for index, array in enumerate(arrays)]


def _is_array(value: Any) -> bool:
    """Whether it is one of NumPy, JAX or alike; NumPy's strings have dimensions too."""
    return hasattr(value, "ndim") and not isinstance(value, str)


def read_classes(path: epath.PathLike) -> list[str]:
    """Reads the names of classes from a text file, one a line.

    Raises:
        UserError: it can't be read, is empty or has an empty line before others.
    """
    try:
        lines = [line.strip() for line in epath.Path(path).expanduser().read_text().rstrip().splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"names of classes can't be read from {path}: {error}") from None
    for number, line in enumerate(lines or [""], start=1):
        if not line:
            raise UserError(f"{path}, line {number}: the name of a class is missing")
    return lines


def _resizing(how: str, interpolation: str) -> dict[str, str] | None:
    if how and how not in HOW:
        raise UserError(f"there is no resizing {how!r}, only {' and '.join(HOW)}.{suggest(how, HOW)}")
    return {"how": how, "interpolation": interpolation} if how else None


def _batch_size(image_shape: Sequence[int], wanted: int = _PIXELS_AT_ONCE) -> int:
    return min(wanted, max(1, _PIXELS_AT_ONCE // (image_shape[0] * image_shape[1])))


def _size(shape: Sequence[int]) -> str:
    return f"{shape[0]}x{shape[1]}"


def _kind(array: np.ndarray) -> str:
    return f"{array.dtype}[{', '.join(map(str, array.shape))}]"
