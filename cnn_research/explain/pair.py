"""Attributions of PAIR's `saliency` package for any Flax module: XRAI, Guided IG, Blur IG (the extra `explain`).

They take and give what `attribution`'s functions do, but compute with NumPy, one image after the other, and can't be
compiled. `call_model` is what any other method of that package needs.
"""

import inspect
from collections.abc import Callable
from types import ModuleType
from typing import Any

import jax
import numpy as np
from flax import linen as nn

from cnn_research.explain import layers
from cnn_research.explain.attribution import check_classes

Variables = layers.Variables


def xrai(model: nn.Module, variables: Variables, images: Any, classes: Any = None, **options: Any) -> np.ndarray:
    """XRAI: Kapishnikov et al. 2019: integrated gradients summed over segments of the image, which are ranked.

    Args:
        model, variables: of the network.
        images: float[N, H, W, C].
        classes: int[N], or one for all; None are the predicted ones.
        **options: of `saliency.core.XRAI().GetMask`.

    Returns:
        float32[N, H, W].

    Raises:
        ModuleNotFoundError: the package isn't installed.
        ValueError: as `attribution`'s functions.
    """
    return _masks("XRAI", model, variables, images, classes, options)


def guided_ig(model: nn.Module, variables: Variables, images: Any, classes: Any = None, **options: Any) -> np.ndarray:
    """Guided integrated gradients: Kapishnikov et al. 2021: a way from black to the image that avoids noisy gradients.

    Args, returns, raises: as `xrai`, and NotImplementedError where the package is too old for NumPy; options are those
    of `saliency.core.GuidedIG().GetMask`.
    """
    if "interpolation" not in inspect.signature(np.quantile).parameters:
        # An argument that saliency 0.2.1 gives, and that NumPy had deprecated for long.
        raise NotImplementedError(
            f"the package 'saliency' can't compute Guided IG with NumPy {np.__version__}: take xrai or blur_ig, or an "
            "older NumPy"
        )
    return _masks("GuidedIG", model, variables, images, classes, options)


def blur_ig(model: nn.Module, variables: Variables, images: Any, classes: Any = None, **options: Any) -> np.ndarray:
    """Blur IG: Xu et al. 2020: integrated gradients from a blurred image to the sharp one.

    Args, returns, raises: as `xrai`; options are those of `saliency.core.BlurIG().GetMask`.
    """
    return _masks("BlurIG", model, variables, images, classes, options)


def call_model(model: nn.Module, variables: Variables) -> Callable[..., dict[str, np.ndarray]]:
    """The function by which that package's methods ask a network for gradients with respect to its input.

    Their `call_model_args` are {"class": the class whose logit is explained}.

    Raises:
        ModuleNotFoundError: the package isn't installed.
    """
    key = _saliency().INPUT_OUTPUT_GRADIENTS

    @jax.jit
    def gradients(images: jax.Array, chosen: jax.Array) -> jax.Array:
        return jax.grad(lambda x: layers.check_logits(layers.apply(model, variables, x))[:, chosen].sum())(images)

    def call(images: Any, call_model_args: Any = None, expected_keys: Any = None) -> dict[str, np.ndarray]:
        if expected_keys and set(expected_keys) != {key}:
            raise ValueError(f"only {key} can be computed, asked for {', '.join(expected_keys)}")
        return {key: np.asarray(gradients(np.asarray(images, np.float32), call_model_args["class"]))}

    return call


def _masks(
    method: str, model: nn.Module, variables: Variables, images: Any, classes: Any, options: dict[str, Any]
) -> np.ndarray:
    saliency = _saliency()
    images = np.asarray(images)
    if classes is None:
        classes = np.asarray(layers.check_logits(layers.apply(model, variables, images))).argmax(-1)
    else:
        check_classes(model, variables, images, classes)
    classes = np.broadcast_to(np.asarray(classes), len(images))
    call = call_model(model, variables)
    # What XRAI and Blur IG return has no channels; what Guided IG does is of the image's shape, and adds up.
    masks = [
        getattr(saliency, method)().GetMask(image, call, {"class": int(number)}, **options)
        for image, number in zip(images, classes, strict=True)
    ]
    return np.stack([mask.sum(-1) if mask.ndim == 3 else mask for mask in masks]).astype(np.float32)


def _saliency() -> ModuleType:
    try:
        import saliency.core
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "XRAI, Guided IG and Blur IG need the package 'saliency': pip install saliency"
        ) from error
    return saliency.core
