import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cnn_research.training.losses import create_loss, softmax_cross_entropy

RNG = np.random.default_rng(0)


def expected(logits, labels, smoothing):
    """Szegedy et al. 2016, section 7: -sum_k q(k) log p(k) with q = (1 - s) onehot + s / K, in float64."""
    logits = np.asarray(logits, np.float64)
    highest = logits.max(-1, keepdims=True)
    log_p = logits - highest - np.log(np.exp(logits - highest).sum(-1, keepdims=True))
    q = np.full(logits.shape, smoothing / logits.shape[-1])
    q[np.arange(len(labels)), labels] += 1 - smoothing
    return -(q * log_p).sum(-1)


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.5, 0.99])
@pytest.mark.parametrize("classes", [2, 3, 10, 1000])
def test_softmax_cross_entropy(classes, smoothing):
    logits = RNG.normal(scale=4, size=(16, classes)).astype(np.float32)
    labels = RNG.integers(0, classes, 16).astype(np.int32)
    actual = jax.jit(softmax_cross_entropy)(logits, labels, smoothing)
    assert actual.dtype == jnp.float32 and actual.shape == (16,)
    np.testing.assert_allclose(actual, expected(logits, labels, smoothing), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("logits", "smoothing", "nats"),
    [
        ([0.0, 0.0, 0.0, 0.0], 0.0, np.log(4)),
        ([0.0, 0.0, 0.0, 0.0], 0.3, np.log(4)),  # against even predictions, smoothing changes nothing
        ([np.log(3), 0.0], 0.0, np.log(4 / 3)),  # p = (3/4, 1/4)
        ([np.log(3), 0.0], 0.2, 0.9 * np.log(4 / 3) + 0.1 * np.log(4)),
        ([1e4, 0.0], 0.0, 0.0),  # no overflow
        ([0.0, 1e4], 0.0, 1e4),
    ],
)
def test_by_hand(logits, smoothing, nats):
    loss = softmax_cross_entropy(jnp.array([logits], jnp.float32), jnp.array([0]), smoothing)
    np.testing.assert_allclose(loss, [nats], rtol=1e-6, atol=1e-7)


def test_gradient_is_the_difference_of_the_distributions():
    logits = RNG.normal(size=(1, 5)).astype(np.float32)
    p = np.exp(logits) / np.exp(logits).sum()
    q = np.full((1, 5), 0.04) + 0.8 * np.eye(5)[[2]]
    grads = jax.grad(lambda x: softmax_cross_entropy(x, jnp.array([2]), 0.2)[0])(logits)
    np.testing.assert_allclose(grads, p - q, atol=1e-6)


def test_create_loss_passes_the_smoothing_on():
    logits, labels = RNG.normal(size=(4, 3)).astype(np.float32), np.array([0, 1, 2, 0], np.int32)
    loss = create_loss("softmax_cross_entropy", 0.25)
    np.testing.assert_allclose(loss(logits, labels), expected(logits, labels, 0.25), rtol=1e-5)


def test_probabilities_in_place_of_labels():
    logits = RNG.normal(size=(4, 3)).astype(np.float32)
    halves = np.array([[0.5, 0.5, 0.0]] * 4, np.float32)
    both = [expected(logits, np.full(4, label), 0.2) for label in (0, 1)]
    np.testing.assert_allclose(softmax_cross_entropy(logits, halves, 0.2), np.mean(both, axis=0), rtol=1e-5)
