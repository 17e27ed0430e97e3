import jax
import numpy as np
import pytest

from cnn_research.training import metrics

NAN, INF = float("nan"), float("inf")
RNG = np.random.default_rng(0)
batch_sums = jax.jit(metrics.batch_sums)


def sums_of_one(logits, label):
    logits = np.array([logits], np.float32)
    return batch_sums(logits, np.array([label], np.int32), np.zeros(1, np.float32), np.array([True]))


def test_sums_of_several_steps_are_taken_apart():
    single = {"loss": np.float32(1), "count": np.int32(2), "learning_rate": np.float32(0.5)}
    several = {"loss": np.array([3, 5]), "count": np.array([2, 4]), "learning_rate": np.array([0.25, 0.125])}
    apart = metrics.by_step([single, several, single])
    assert [step["loss"] for step in apart] == [1, 3, 5, 1] and apart[0] is single
    assert metrics.latest(apart[2]) == {"learning_rate": 0.125}


@pytest.mark.parametrize("classes", [2, 3, 5, 6, 10, 1000])
def test_against_numpy(classes):
    n = 64
    logits = RNG.normal(size=(n, classes)).astype(np.float32)
    labels = RNG.integers(0, classes, n).astype(np.int32)
    losses = RNG.exponential(size=n).astype(np.float32)
    mask = RNG.random(n) < 0.7
    sums = batch_sums(logits, labels, losses, mask)

    order = np.argsort(-logits, axis=-1)
    assert sums["accuracy"] == (order[:, 0] == labels)[mask].sum()
    assert sums["top5"] == (order[:, :5] == labels[:, None]).any(-1)[mask].sum()
    np.testing.assert_allclose(sums["loss"], losses[mask].astype(np.float64).sum(), rtol=1e-6)
    assert sums["count"] == mask.sum()
    types = {name: values.dtype.name for name, values in sums.items()}
    assert types == {"loss": "float32", "accuracy": "float32", "top5": "float32", "count": "int32"}


@pytest.mark.parametrize(
    ("logits", "label", "accuracy", "top5"),
    [
        # By its place in the order of the logits.
        ([7, 6, 5, 4, 3, 2, 1], 0, 1, 1),
        ([7, 6, 5, 4, 3, 2, 1], 1, 0, 1),
        ([7, 6, 5, 4, 3, 2, 1], 4, 0, 1),
        ([7, 6, 5, 4, 3, 2, 1], 5, 0, 0),
        ([-INF, -INF, 1, -INF, -INF, -INF], 2, 1, 1),
        # Fewer than five classes: the right one is always among them.
        ([1, 2], 0, 0, 1),
        ([1, 2, 3, 4], 0, 0, 1),
        ([3], 0, 1, 1),
        # Equal logits tell nothing. The first place is the lowest class's, as argmax and every sort have it; a network
        # that says the same of all classes must not look good.
        ([0] * 10, 0, 1, 1),
        ([0] * 10, 1, 0, 1),
        ([0] * 10, 4, 0, 1),
        ([0] * 10, 5, 0, 0),
        ([0] * 10, 9, 0, 0),
        ([1, 1], 1, 0, 1),
        # NaN counts as wrong, wherever it stands.
        ([NAN] * 10, 0, 0, 0),
        ([NAN] * 10, 9, 0, 0),
        ([NAN] * 3, 0, 0, 0),
        ([NAN] * 3, 2, 0, 0),
        ([NAN], 0, 0, 0),
        ([NAN, 1, 2], 0, 0, 0),
        ([1, NAN, 2], 1, 0, 0),
        ([3, NAN, 2], 0, 0, 1),  # its own logit is a number, the second place is its
        ([3, NAN, NAN, NAN, NAN, NAN], 0, 0, 0),
    ],
)
def test_by_hand(logits, label, accuracy, top5):
    sums = sums_of_one(logits, label)
    assert (sums["accuracy"], sums["top5"]) == (accuracy, top5)


def test_masked_examples_count_nowhere_even_when_they_are_nan():
    logits = np.array([[1, 0], [NAN, NAN], [0, 1], [INF, -INF]], np.float32)
    losses = np.array([0.5, NAN, 0.25, INF], np.float32)
    sums = batch_sums(logits, np.zeros(4, np.int32), losses, np.array([True, False, True, False]))
    assert sums == {"loss": 0.75, "accuracy": 1, "top5": 2, "count": 2}
    nothing = batch_sums(logits, np.zeros(4, np.int32), losses, np.zeros(4, bool))
    assert nothing == {"loss": 0, "accuracy": 0, "top5": 0, "count": 0}


def test_a_loss_of_nan_is_not_hidden():
    sums = batch_sums(
        np.ones((2, 3), np.float32), np.zeros(2, np.int32), np.array([1, NAN], np.float32), np.ones(2, bool)
    )
    assert np.isnan(sums["loss"]) and np.isnan(metrics.means([sums])["loss"])


def test_means_do_not_depend_on_how_the_examples_are_batched():
    n, classes = 1000, 10
    logits = RNG.normal(size=(n, classes)).astype(np.float32)
    labels = RNG.integers(0, classes, n).astype(np.int32)
    losses = RNG.integers(0, 2**10, n).astype(np.float32) / 2**10  # sums of these are exact in float32

    def means(batch):
        padding = -n % batch
        pad = lambda x: np.concatenate([x, np.repeat(x[:1], padding, axis=0)])  # noqa: E731
        mask = np.arange(n + padding) < n
        return metrics.means(
            batch_sums(
                pad(logits)[i : i + batch], pad(labels)[i : i + batch], pad(losses)[i : i + batch], mask[i : i + batch]
            )
            for i in range(0, n, batch)
        )

    order = np.argsort(-logits, axis=-1)
    expected = {
        "loss": losses.astype(np.float64).mean(),
        "accuracy": (order[:, 0] == labels).mean(),
        "top5": (order[:, :5] == labels[:, None]).any(-1).mean(),
        "num_examples": n,
    }
    for batch in (1000, 333, 64):
        assert means(batch) == expected


def test_means_add_up_in_float64():
    # In float32 the ones would vanish beside 2**24.
    batch = {
        "loss": np.float32(2**24),
        "accuracy": np.float32(2**24),
        "top5": np.float32(2**24),
        "count": np.int32(2**24),
    }
    one = {"loss": np.float32(1), "accuracy": np.float32(1), "top5": np.float32(1), "count": np.int32(1)}
    means = metrics.means([batch, one, one, one])
    assert means == {"loss": 1.0, "accuracy": 1.0, "top5": 1.0, "num_examples": 2**24 + 3}
    # More examples than int32 holds.
    assert metrics.means([batch] * 200)["num_examples"] == 200 * 2**24
    assert all(type(value) in (float, int) for value in means.values())  # so that JSON takes them
