"""Grad-CAM finds evidence that was planted: networks of three families, trained to tell shapes on a noisy ground."""

import jax
import numpy as np
import optax
import pytest

from cnn_research.data import shapes
from cnn_research.explain import attribution, layers, sanity
from cnn_research.models import densenet
from cnn_research.models.registry import create_model, init_variables

SIZE = 32
SQUARE = 14  # pixels of the side of the square that holds the evidence: a fifth of the image
CLASSES = ("circle", "cross", "nothing")  # without the last, one shape's evidence could be the lack of the other's

NETWORKS = {
    "VGG": create_model("vgg11_bn_cifar", len(CLASSES)),
    "ResNet": create_model("resnet20", len(CLASSES)),
    "DenseNet": densenet.CifarDenseNet(len(CLASSES), depth=16, growth_rate=12, **densenet.PLAIN),
}


def planted(count, seed):
    """(images, classes, boxes): a generated shape, in white, at a random place of a noisy background."""
    rng = np.random.default_rng(seed)
    images = rng.normal(0, 0.5, (count, SIZE, SIZE, 3)).astype(np.float32)
    labels = rng.integers(0, len(CLASSES), count)
    corners = rng.integers(0, SIZE - SQUARE + 1, (count, 2))
    for image, label, (top, left) in zip(images, labels, corners, strict=True):
        if label < 2:
            picture = shapes.render(int(rng.integers(10_000)), SQUARE, CLASSES[label])
            image[top : top + SQUARE, left : left + SQUARE][(picture != picture[0, 0]).any(-1)] = 2
    return images, labels, np.concatenate([corners, corners + SQUARE], 1)


def train(model, steps, batch=32):
    variables = init_variables(model, jax.random.key(0), (SIZE, SIZE, 3))
    optimizer = optax.adam(optax.cosine_decay_schedule(2e-3, steps))

    @jax.jit
    def step(params, stats, state, images, labels):
        def loss(params):
            logits, updated = model.apply(
                {"params": params, "batch_stats": stats}, images, train=True, mutable=["batch_stats"]
            )
            return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean(), updated["batch_stats"]

        gradients, stats = jax.grad(loss, has_aux=True)(params)
        updates, state = optimizer.update(gradients, state)
        return optax.apply_updates(params, updates), stats, state

    params, stats = variables["params"], variables["batch_stats"]
    state = optimizer.init(params)
    for number in range(steps):
        images, labels, _ = planted(batch, number)
        params, stats, state = step(params, stats, state, images, labels)
    return {"params": params, "batch_stats": stats}


@pytest.mark.full
@pytest.mark.parametrize("model", NETWORKS.values(), ids=NETWORKS)
def test_energy_inside_the_planted_box(model):
    variables = train(model, 150)
    images, labels, boxes = planted(64, 10**6)
    right = np.asarray(layers.apply(model, variables, images).argmax(-1)) == labels
    assert right.mean() > 0.9
    images, boxes = images[right & (labels < 2)], boxes[right & (labels < 2)]
    shares = {}
    for method in (attribution.grad_cam, attribution.grad_cam_plus_plus, attribution.integrated_gradients):
        shares[method.__name__] = sanity.energy_inside(method(model, variables, images), boxes, (SIZE, SIZE))
    print(right.mean(), {name: (float(np.nanmean(s)), int(np.isnan(s).sum())) for name, s in shares.items()})
    assert np.mean(shares["grad_cam"]) > 0.7
    # A network that has learned nothing doesn't know where to look.
    untrained = init_variables(model, jax.random.key(1), (SIZE, SIZE, 3))
    assert np.nanmean(sanity.energy_inside(attribution.grad_cam(model, untrained, images), boxes, (SIZE, SIZE))) < 0.5
    alike = sanity.randomisation_check(attribution.grad_cam, model, variables, images, key=jax.random.key(2), most=4)
    print(alike)
    assert list(alike.values())[-1] < 0.5

    found = attribution.integrated_gradients(model, variables, images)
    error = attribution.completeness_error(model, variables, images, found)
    print("completeness", float(error.max()))
    assert np.median(error) < 0.01
