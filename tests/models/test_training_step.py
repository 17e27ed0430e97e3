"""One step of training and two of evaluation with every network: at its full depth for `make test-full`, which takes
a quarter of an hour, and with a few blocks of each kind for `make test-zoo`."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cnn_research.models import registry

# Images by the beginning of the name: small, but batch normalisation needs more than one value of each.
SIZES = {
    "alexnet": 67,
    "zfnet": 47,
    "vgg": 64,
    "googlenet_bn": 64,
    "googlenet": 79,
    "densenet_": 8,
    "densenet": 64,
    "resnet18": 64,
    "resnet34": 64,
    "resnet50": 64,
    "resnet101": 64,
    "resnet152": 64,
}
SMALL = 16

# A network of each class, and more where a field changes its course.
ONE_OF_EACH = ["convnet", "lenet5", "lenet5_paper", "alexnet", "alexnet_owt", "zfnet", "vgg11", "vgg11_bn"]
ONE_OF_EACH += ["vgg11_bn_cifar", "googlenet", "googlenet_bn", "resnet18", "resnet50", "resnet20", "densenet121"]
ONE_OF_EACH += ["densenet_40_12", "speednet"]

# Of the gradients in bfloat16 and in float32. bfloat16 keeps 8 bits; each layer rounds, forwards and backwards, and
# normalisation over few values blows that up, so the deeper a network is, the more of its gradient is rounding.
COSINE, COSINE_AT_FULL_DEPTH = 0.9, 0.5

# Compilation takes most of the time, and this level least of that.
OPTIONS = {"xla_backend_optimization_level": 0}


def image_shape(name):
    if name.startswith("lenet"):
        return (32, 32, 1)
    side = next((size for start, size in SIZES.items() if name.startswith(start)), SMALL)
    return (side, side, 3)


def random_variables(model, shape):
    """He's initial values with some noise in the rest, from numpy: compiling the initialisers would take seconds.

    The residuals of a ResNet are made small. At full size, ResNet-101 blows rounding up so much at its start that even
    in float32 a change of the images by 1 part in 512 leaves nothing of the gradient's direction.
    """
    rng = np.random.default_rng(1)

    def draw(path, leaf):
        noise = rng.normal(size=leaf.shape)
        if path[-1].key == "kernel":
            return (noise * np.sqrt(2 / np.prod(leaf.shape[:-1]))).astype(np.float32)
        values = 0.1 * noise + (path[-1].key in ("scale", "var", "coefficient"))
        residual = path[1].key.startswith("layer") and path[-2].key in ("norm2", "norm3") and path[-1].key == "scale"
        return (values * (0.2 if residual else 1)).astype(np.float32)

    image = jnp.zeros((1, *shape))
    return jax.tree_util.tree_map_with_path(draw, jax.eval_shape(model.init, jax.random.key(0), image))


def flat(tree):
    return np.concatenate([np.ravel(np.asarray(leaf, np.float64)) for leaf in jax.tree.leaves(tree)])


def check(name, least_cosine):
    shape = image_shape(name)
    rng = np.random.default_rng(0)
    images = rng.normal(size=(16, *shape)).astype(np.float32)
    labels = jax.nn.one_hot(np.arange(16) % 7, 7)
    steps = {}
    for dtype in ("float32", "bfloat16"):
        model = registry.create_model(name, 7, dtype=dtype)
        variables = random_variables(model, shape)
        stats = variables.get("batch_stats", {})

        def loss(params, stats, model=model):
            rngs, mutable = {"dropout": jax.random.key(1)}, ["batch_stats", "auxiliary"]
            logits, updates = model.apply(
                {"params": params, "batch_stats": stats}, images, train=True, mutable=mutable, rngs=rngs
            )
            all_logits = [logits, *jax.tree.leaves(updates.get("auxiliary", {}))]
            losses = [-jnp.mean(jnp.sum(labels * jax.nn.log_softmax(each), axis=-1)) for each in all_logits]
            return sum(losses), updates.get("batch_stats", {})

        step = jax.jit(jax.value_and_grad(loss, has_aux=True), compiler_options=OPTIONS)
        (value, new_stats), grads = step(variables["params"], stats)
        for path, grad in jax.tree_util.tree_leaves_with_path((grads, new_stats)):
            assert grad.dtype == jnp.float32 and np.isfinite(grad).all(), path
        for path, grad in jax.tree_util.tree_leaves_with_path(grads):
            assert np.any(grad != 0), path
        assert jax.tree.structure(new_stats) == jax.tree.structure(stats)
        for (path, new), old in zip(
            jax.tree_util.tree_leaves_with_path(new_stats), jax.tree.leaves(stats), strict=True
        ):
            assert np.any(new != old), path
        steps[dtype] = float(value), flat(grads)

        def evaluate(variables, model=model):
            return model.apply(variables, images[:2], train=False, mutable=["batch_stats"])

        evaluate = jax.jit(evaluate, compiler_options=OPTIONS)
        (logits, after), (again, _) = evaluate(variables), evaluate(variables)
        np.testing.assert_array_equal(logits, again)
        for new, old in zip(jax.tree.leaves(after), jax.tree.leaves(stats), strict=True):
            np.testing.assert_array_equal(new, old)

    (value, grads), (half_value, half_grads) = steps.values()
    assert half_value == pytest.approx(value, rel=0.1)
    cosine = grads @ half_grads / np.linalg.norm(grads) / np.linalg.norm(half_grads)
    print(f"{name}: loss {value:.4f} {half_value:.4f}, cosine of the gradients {cosine:.4f}")
    assert cosine > least_cosine


@pytest.mark.zoo
@pytest.mark.parametrize("name", ONE_OF_EACH)
def test_with_few_blocks(name, few_units, few_blocks):
    check(name, COSINE)


@pytest.mark.full
@pytest.mark.parametrize("name", registry.list_models())
def test_at_full_depth(name, few_units):
    check(name, COSINE_AT_FULL_DEPTH)


def test_every_class_has_its_turn():
    assert {registry.MODELS[name][0] for name in ONE_OF_EACH} == {module for module, _ in registry.MODELS.values()}
