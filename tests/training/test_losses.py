import jax
import jax.numpy as jnp
import numpy as np
import pytest
from configs_for_tests import changed

from cnn_research.config import CHOICES
from cnn_research.errors import UserError
from cnn_research.training.losses import create_loss, softmax_cross_entropy

RNG = np.random.default_rng(0)
SMOOTH = [name for name in CHOICES["loss.name"] if name != "hinge"]


def log_softmax(logits):
    logits = np.asarray(logits, np.float64)
    highest = logits.max(-1, keepdims=True)
    return logits - highest - np.log(np.exp(logits - highest).sum(-1, keepdims=True))


def hinge(scores, label):
    return np.maximum(0, 1 + np.delete(scores, label) - scores[label]).sum() / len(scores)


def expected(name, logits, q, gamma=2.0):
    """The loss of each example in float64, from the papers; q: probabilities [N, K]."""
    z, log_p = np.asarray(logits, np.float64), log_softmax(logits)
    p = np.exp(log_p)
    match name:
        case "softmax_cross_entropy":
            return -(q * log_p).sum(-1)
        case "sigmoid":  # Wightman et al. 2021, section 3.1; log sigmoid(z) = -log(1 + e^-z)
            return (q * np.logaddexp(0, -z) + (1 - q) * np.logaddexp(0, z)).mean(-1)
        case "hinge":  # Weston & Watkins 1999
            return np.array([sum(w * hinge(row, k) for k, w in enumerate(qs)) for row, qs in zip(z, q, strict=True)])
        case "squared_error":
            return ((q - p) ** 2).sum(-1) / 2
        case "focal":  # Lin et al. 2017, equation 4
            return -(q * (1 - p) ** gamma * log_p).sum(-1)
        case "map":  # LeCun et al. 1998, equation 9, with y = -z and j = 10
            return (q * -z).sum(-1) + np.log(np.exp(-10.0) + np.exp(z).sum(-1))


def onehot(labels, classes, smoothing=0.0):
    """Szegedy et al. 2016, section 7: q = (1 - s) onehot + s / K."""
    return (1 - smoothing) * np.eye(classes)[labels] + smoothing / classes


def create(name, num_classes, **fields):
    return create_loss(changed(loss__name=name, **{f"loss__{k}": v for k, v in fields.items()}).loss, num_classes)


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.99])
@pytest.mark.parametrize("classes", [2, 10, 1000])
@pytest.mark.parametrize("name", CHOICES["loss.name"])
def test_loss(name, classes, smoothing):
    if smoothing and name not in SMOOTH:
        return
    logits = RNG.normal(scale=4, size=(16, classes)).astype(np.float32)
    labels = RNG.integers(0, classes, 16).astype(np.int32)
    actual = jax.jit(create(name, classes, label_smoothing=smoothing, gamma=1.5))(logits, labels)
    assert actual.dtype == jnp.float32 and actual.shape == (16,)
    q = onehot(labels, classes, smoothing)
    np.testing.assert_allclose(actual, expected(name, logits, q, gamma=1.5), rtol=2e-5, atol=1e-6)


@pytest.mark.parametrize("classes", [3, 1000])
@pytest.mark.parametrize("name", CHOICES["loss.name"])
def test_probabilities_in_place_of_labels(name, classes):
    logits = RNG.normal(size=(6, classes)).astype(np.float32)
    mixed = RNG.dirichlet([0.5] * classes, size=6).astype(np.float32)
    smoothing = 0.2 if name in SMOOTH else 0.0
    loss = jax.jit(create(name, classes, label_smoothing=smoothing))
    q = (1 - smoothing) * mixed + smoothing / classes
    np.testing.assert_allclose(loss(logits, mixed), expected(name, logits, q), rtol=1e-5, atol=1e-6)
    # Certain probabilities are labels.
    labels = np.array([0, 1, 2, 2, 1, 0])
    certain = np.eye(classes, dtype=np.float32)[labels]
    np.testing.assert_allclose(loss(logits, certain), loss(logits, labels), rtol=1e-6)


QUARTERS = [np.log(3), 0.0]  # p = (3/4, 1/4)


@pytest.mark.parametrize(
    ("name", "logits", "fields", "value"),
    [
        ("softmax_cross_entropy", [0.0, 0.0, 0.0, 0.0], {}, np.log(4)),
        # Against even predictions, smoothing changes nothing.
        ("softmax_cross_entropy", [0.0, 0.0, 0.0, 0.0], {"label_smoothing": 0.3}, np.log(4)),
        ("softmax_cross_entropy", QUARTERS, {}, np.log(4 / 3)),
        (
            "softmax_cross_entropy",
            QUARTERS,
            {"label_smoothing": 0.2},
            0.9 * np.log(4 / 3) + 0.1 * np.log(4),
        ),
        ("softmax_cross_entropy", [1e4, 0.0], {}, 0.0),  # no overflow
        ("softmax_cross_entropy", [0.0, 1e4], {}, 1e4),
        ("sigmoid", [0.0, 0.0, 0.0], {}, np.log(2)),
        ("sigmoid", QUARTERS, {}, (np.log(4 / 3) + np.log(2)) / 2),
        ("sigmoid", [1e4, -1e4], {}, 0.0),
        ("sigmoid", [-1e4, -1e4], {}, 5e3),
        # The three images of Stanford's CS231n, lecture 3, whose losses are 2.9, 0 and 12.9 there, where they are sums.
        ("hinge", [3.2, 5.1, -1.7], {}, 2.9 / 3),
        ("hinge", [4.9, 1.3, 2.0], {}, 0.0),
        ("hinge", [-3.1, 2.2, 2.5], {}, 12.9 / 3),
        ("hinge", [0.0, 0.0, 0.0], {}, 2 / 3),
        ("hinge", [0.5, 0.0], {}, 0.25),
        ("hinge", [1e8, 0.0], {}, 0.0),
        ("squared_error", [0.0, 0.0, 0.0, 0.0], {}, (9 + 3) / 32),
        ("squared_error", QUARTERS, {}, 1 / 16),
        ("squared_error", [0.0, 1e4], {}, 1.0),
        ("focal", QUARTERS, {"gamma": 2.0}, np.log(4 / 3) / 16),
        ("focal", QUARTERS, {"gamma": 0.5}, np.log(4 / 3) / 2),
        ("focal", QUARTERS, {"gamma": 0.0}, np.log(4 / 3)),
        ("focal", [0.0, 1e4], {}, 1e4),
        ("focal", [1e4, 0.0], {"gamma": 0.5}, 0.0),
        ("map", [0.0, 0.0], {"rubbish": 0.0}, np.log(3)),  # of three classes, of which one is rubbish
        ("map", [-50.0, -1e4], {"rubbish": 2.0}, 48.0),  # far from all codes: the distance, less j
        ("map", QUARTERS, {"rubbish": 1e4}, np.log(4 / 3)),  # nothing is rubbish: cross-entropy
        ("map", [-1e4, 0.0], {}, 1e4),
    ],
    ids=str,
)
def test_by_hand(name, logits, fields, value):
    """Of an example of class 0."""
    loss = create(name, len(logits), **fields)
    actual, slope = jax.jit(jax.value_and_grad(lambda z: loss(z, np.array([0]))[0]))(np.array([logits], np.float32))
    np.testing.assert_allclose(actual, value, rtol=1e-6, atol=1e-7)
    assert np.isfinite(slope).all()


@pytest.mark.parametrize("name", CHOICES["loss.name"])
def test_gradient(name):
    """Against central differences of the formula in float64."""
    logits, q = RNG.normal(size=(1, 5)), onehot([2], 5)
    step = 1e-6 * np.eye(5)
    slopes = [(expected(name, logits + s, q) - expected(name, logits - s, q))[0] / 2e-6 for s in step]
    loss = create(name, 5)
    actual = jax.jit(jax.grad(lambda z: loss(z, np.array([2]))[0]))(logits.astype(np.float32))
    np.testing.assert_allclose(actual[0], slopes, rtol=1e-4, atol=1e-5)


def test_two_classes_are_logistic_regression():
    logits = RNG.normal(size=(8, 2)).astype(np.float32)
    labels = np.array([0, 1] * 4)
    margin = np.where(labels == 1, 1, -1) * (logits[:, 1] - logits[:, 0])
    np.testing.assert_allclose(softmax_cross_entropy(logits, labels), np.log1p(np.exp(-margin)), rtol=1e-5)


def test_class_weights():
    """One wrong answer of each class, and one that is half of two classes, at the same loss."""
    wrong, labels = np.zeros((4, 3), np.float32), np.array([0, 1, 2, 0], np.int32)
    loss = create("softmax_cross_entropy", 3, class_weights=(0.5, 1.0, 4.0))
    np.testing.assert_allclose(loss(wrong, labels), np.log(3) * np.array([0.5, 1, 4, 0.5]), rtol=1e-6)
    halves = np.array([[0.5, 0.5, 0.0], [0.0, 0.5, 0.5]], np.float32)
    np.testing.assert_allclose(loss(wrong[:2], halves), np.log(3) * np.array([0.75, 2.5]), rtol=1e-6)
    # Smoothing changes the target, not the weight.
    smooth = create("softmax_cross_entropy", 3, class_weights=(0.5, 1.0, 4.0), label_smoothing=0.3)
    np.testing.assert_allclose(smooth(wrong, labels), np.log(3) * np.array([0.5, 1, 4, 0.5]), rtol=1e-6)


@pytest.mark.parametrize("name", CHOICES["loss.name"])
def test_class_weights_of_every_loss(name):
    logits = RNG.normal(size=(6, 3)).astype(np.float32)
    labels = np.array([0, 1, 2, 2, 1, 0], np.int32)
    weights = np.array([0.5, 0.0, 3.0])
    weighted = create(name, 3, class_weights=tuple(weights))(logits, labels)
    np.testing.assert_allclose(weighted, weights[labels] * create(name, 3)(logits, labels), rtol=1e-6)
    np.testing.assert_allclose(
        create(name, 3, class_weights=(2.0,))(logits, labels), 2 * create(name, 3)(logits, labels), rtol=1e-6
    )


def test_class_weights_of_another_number_of_classes():
    with pytest.raises(UserError, match=r"^config.loss.class_weights=\(1.0, 2.0\): .* 3 classes, so 1 or 3 .* not 2$"):
        create("sigmoid", 3, class_weights=(1.0, 2.0))
