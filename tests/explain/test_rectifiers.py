import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from jax import lax

from cnn_research.explain import rectifiers

SPELLINGS = {
    "nn.relu": nn.relu,
    "nn.relu6": lambda x: 10 * jax.nn.relu6(x / 10),  # none of the values below is capped
    "maximum": lambda x: jnp.maximum(x, 0),
    "maximum, the other way round": lambda x: jnp.maximum(0.0, x),
    "clip": lambda x: jnp.clip(x, 0, 100),
    "where": lambda x: jnp.where(x > 0, x, 0),
    "where, of an array": lambda x: jnp.where(x >= 0, x, jnp.zeros_like(x)),
    "product": lambda x: x * (x > 0),
    "compiled": jax.jit(lambda x: jnp.maximum(x, 0)),
    "computed again": jax.checkpoint(nn.relu),
    "in a loop": lambda x: lax.scan(lambda c, row: (c, nn.relu(row)), jnp.zeros(()), x)[1],
    "in a conditional": lambda x: lax.cond(x.sum() > -1e9, nn.relu, lambda x: x, x),
}
X = np.array([[1.0, -2.0, 3.0, -4.0]], np.float32)
FACTORS = np.array([[5.0, 6.0, -7.0, -8.0]], np.float32)  # what comes from behind
GRADIENTS = {rectifiers.guided: [[5.0, 0.0, 0.0, 0.0]], rectifiers.deconvolved: [[5.0, 6.0, 0.0, 0.0]]}


@pytest.mark.parametrize("rule", GRADIENTS)
@pytest.mark.parametrize("spelling", SPELLINGS)
def test_every_spelling_has_the_rule(spelling, rule):
    score = lambda x: (SPELLINGS[spelling](x) * FACTORS).sum()  # noqa: E731
    value, gradient = jax.jit(jax.value_and_grad(rectifiers.replace(score, rule)))(X)
    assert value == 1 * 5 - 3 * 7
    np.testing.assert_array_equal(gradient, GRADIENTS[rule])
    np.testing.assert_array_equal(jax.grad(score)(X), [[5, 0, -7, 0]])  # and nothing was patched


@pytest.mark.parametrize(
    "function",
    [
        nn.softplus,  # its own gradient, and a maximum with 0 inside
        nn.elu,
        nn.leaky_relu,
        nn.gelu,
        nn.softmax,
        jnp.abs,
        lambda x: jnp.maximum(x, 1),
        lambda x: jnp.where(x > 0, x, -1.0),
        lambda x: jnp.where(x > 0, 0.0, x),
        lambda x: x[::-1] * (x > 0),
    ],
)
def test_what_is_no_rectifier_keeps_its_gradient(function):
    score = lambda x: (function(x) * FACTORS).sum()  # noqa: E731
    found = jax.grad(rectifiers.replace(score, rectifiers.deconvolved))(X)
    np.testing.assert_allclose(found, jax.grad(score)(X), rtol=1e-6)


@pytest.mark.parametrize("norm", [nn.LayerNorm, functools.partial(nn.GroupNorm, 2), nn.RMSNorm, nn.InstanceNorm])
def test_the_variance_of_a_normalisation_is_left_alone(norm):
    x = jax.random.normal(jax.random.key(0), (2, 5, 5, 4))
    module = norm()
    variables = module.init(jax.random.key(1), x)
    score = lambda x: (module.apply(variables, x) ** 3).sum()  # noqa: E731
    found = jax.grad(rectifiers.replace(score, rectifiers.guided))(x)
    np.testing.assert_allclose(found, jax.grad(score)(x), atol=1e-5)


def test_two_layers_by_hand():
    rng = np.random.default_rng(0)
    x, first, second = rng.normal(size=(3, 4)), rng.normal(size=(4, 5)), rng.normal(size=(5, 2))

    def score(x, first, second):
        return (nn.relu(nn.relu(x @ first) @ second)).sum()

    before = x @ first
    hidden = np.maximum(before, 0)
    ahead = hidden @ second
    for rule, back in {
        rectifiers.guided: lambda g, x: np.maximum(g, 0) * (x > 0),
        rectifiers.deconvolved: lambda g, x: np.maximum(g, 0),
    }.items():
        expected = back(back(np.ones_like(ahead), ahead) @ second.T, before) @ first.T
        found = jax.grad(rectifiers.replace(score, rule))(x, first, second)
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
