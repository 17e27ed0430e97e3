"""Mixing pairs of training images and their labels: mixup and cutmix, inside the compiled step.

Which image is whose partner doesn't depend on the number of devices, and how they are mixed only on the position of the
first in the training stream: see `training.step`.
"""

import re
from collections.abc import Callable

import jax
import jax.numpy as jnp

from cnn_research.errors import UserError, suggest

# (key, image, partner) -> (the mixed image, the share of `image` in it). Images are float[H, W, C].
Mix = Callable[[jax.Array, jax.Array, jax.Array], tuple[jax.Array, jax.Array]]


def mixup(alpha: float) -> Mix:
    """The weighted sum of two images, the weight drawn from Beta(alpha, alpha).

    Zhang et al. 2018, "mixup: Beyond empirical risk minimization", who draw one weight for a batch and take alpha from
    0.1 to 0.4 for ImageNet and 1 for CIFAR. Here each image draws for itself.
    """
    _check_alpha(alpha)

    def mix(key, image, partner):
        share = jax.random.beta(key, alpha, alpha)
        return share * image + (1 - share) * partner, share

    return mix


def cutmix(alpha: float) -> Mix:
    """A box of the partner pasted into the image, of an area drawn as 1 - Beta(alpha, alpha) of the image's.

    Yun et al. 2019, "CutMix", algorithm 1, who take an alpha of 1: the box has the image's proportions and its centre
    anywhere, what reaches beyond the image is cut off, and the share is that of the pixels that are left.
    """
    _check_alpha(alpha)

    def mix(key, image, partner):
        share_key, place_key = jax.random.split(key)
        side = jnp.sqrt(1 - jax.random.beta(share_key, alpha, alpha))
        centre = jax.random.uniform(place_key, (2,))
        inside = []
        for axis, length in enumerate(image.shape[:2]):
            middle, half = centre[axis] * length, side * length / 2
            pixels = jnp.arange(length)
            inside.append((pixels >= jnp.round(middle - half)) & (pixels < jnp.round(middle + half)))
        box = inside[0][:, None] & inside[1][None, :]
        return jnp.where(box[..., None], partner, image), 1 - jnp.mean(box, dtype=jnp.float32)

    return mix


KINDS: dict[str, Callable[[float], Mix]] = {"mixup": mixup, "cutmix": cutmix}

_CALL = re.compile(r"\s*(?P<name>\w+)\s*\(\s*(?P<alpha>[\d.]+)\s*\)\s*")


def parse(text: str) -> Mix | None:
    """Builds what mixes from text: "mixup(0.2)", "cutmix(1)", or both with a bar between: each image then draws one.

    Returns:
      None for "".

    Raises:
      UserError: for anything else.
    """
    if not text.strip():
        return None
    kinds = []
    for call in text.split("|"):
        match = _CALL.fullmatch(call)
        if not match or match["name"] not in KINDS:
            word = call.split("(")[0].strip()
            known = " and ".join(f"{name}(alpha)" for name in KINDS)
            hint = f" {word} needs a number, such as {word}(0.2)." if word in KINDS else suggest(word, KINDS)
            raise UserError(f"Can't read {call.strip()!r} in the mix {text!r}; known are {known}.{hint}")
        try:
            kinds.append(KINDS[match["name"]](float(match["alpha"])))
        except ValueError as error:
            raise UserError(f"Bad argument of {call.strip()!r} ({error}) in the mix {text!r}") from None

    def mix(key, image, partner):
        if len(kinds) == 1:
            return kinds[0](key, image, partner)
        choice_key, key = jax.random.split(key)
        return jax.lax.switch(jax.random.randint(choice_key, (), 0, len(kinds)), kinds, key, image, partner)

    return mix


def apply(
    mix: Mix,
    key: jax.Array,
    positions: jax.Array,
    images: jax.Array,
    targets: jax.Array,
    partners: tuple[jax.Array, jax.Array],
) -> tuple[jax.Array, jax.Array]:
    """Mixes each image of a batch, and its target, with its partner's.

    Args:
      mix: from `parse`.
      key: one key for the whole run.
      positions: uint32[b], each image's position in the training stream.
      images: float[b, H, W, C].
      targets: float[b, K], probabilities.
      partners: images and targets of the partners.

    Returns:
      The mixed images and targets.
    """

    def mix_one(position, image, target, partner, partner_target):
        image, share = mix(jax.random.fold_in(key, position), image, partner)
        return image, share * target + (1 - share) * partner_target

    return jax.vmap(mix_one)(positions, images, targets, *partners)


def _check_alpha(alpha: float) -> None:
    if not 0 < alpha < float("inf"):
        raise ValueError(f"alpha must be above 0, but is {alpha!r}")
