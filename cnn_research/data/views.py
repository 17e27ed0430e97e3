"""Views of evaluation images: crops and mirror images of which the predictions are averaged."""

import jax
import jax.numpy as jnp

CROPS = ("centre", "ten")


def make_views(
    images: jax.Array, crop_size: int = 0, crops: str = "centre", flip: bool = False, shift: int = 0
) -> jax.Array:
    """Cuts each image of a batch into its views. Pure: for use inside the compiled step.

    Args:
      images: uint8[N, H, W, C], or any other type.
      crop_size: c, pixels of each side of the crops; 0 = the whole image.
      crops: "centre" is the central crop; "ten" are the four corners and the centre, and then their mirror images:
        Krizhevsky et al. 2012, section 4.1.
      flip: the mirror image of every view too.
      shift: pixels: each view also moved by so many, once up and left, once down and right; what comes in from outside
        the view is its reflection. Jordan 2024, "94% on CIFAR-10 in 3.29 seconds on a single GPU", section 3.5.

    Returns:
      [V, N, c, c, C] of the type of `images`, V being 1 or 10, twice as many with `flip`, three times with `shift`.

    Raises:
      ValueError: for a crop that is larger than the images, unknown `crops`, ten crops of no size, or a shift that is
        not smaller than the crops.
    """
    height, width = images.shape[1:3]
    if crop_size > min(height, width):
        raise ValueError(f"crops of {crop_size}x{crop_size} pixels don't fit into images of {height}x{width}")
    if crops not in CROPS or (crops == "ten" and not crop_size):
        raise ValueError(f"there are no crops {crops!r} of size {crop_size}")
    if crop_size:
        bottom, right = height - crop_size, width - crop_size
        corners = [(0, 0), (0, right), (bottom, 0), (bottom, right)] if crops == "ten" else []
        views = [
            images[:, top : top + crop_size, left : left + crop_size]
            for top, left in [*corners, (bottom // 2, right // 2)]
        ]
    else:
        views = [images]
    seen = views[0].shape[1:3]
    if shift >= min(seen):
        raise ValueError(f"a shift by {shift} pixels leaves nothing of views of {seen[0]}x{seen[1]}")
    if shift:
        views += [_moved(view, step) for view in views for step in (shift, -shift)]
    for mirrored in (crops == "ten", flip):
        if mirrored:
            views += [view[:, :, ::-1] for view in views]
    return jnp.stack(views)


def _moved(images: jax.Array, pixels: int) -> jax.Array:
    """Moves images up and left by a number of pixels, or down and right by a negative one, and reflects the rest."""
    height, width = images.shape[1:3]
    reach = abs(pixels)
    padded = jnp.pad(images, ((0, 0), (reach, reach), (reach, reach), (0, 0)), mode="reflect")
    start = reach + pixels
    return padded[:, start : start + height, start : start + width]


def average(logits: jax.Array) -> jax.Array:
    """The log of the mean, over the views, of the softmax probabilities: the papers average these, not the logits.

    Args:
      logits: float32[V, N, K].

    Returns:
      float32[N, K]. With a single view the logits as they are; else their softmax is the mean of the softmaxes.
    """
    if len(logits) == 1:
        return logits[0]
    return jax.nn.logsumexp(jax.nn.log_softmax(logits), axis=0) - jnp.log(len(logits))
