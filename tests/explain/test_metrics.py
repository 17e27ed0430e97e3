"""The numbers of an evaluation, against hand computations, published values and plain loops."""

import math

import numpy as np
import pytest

from cnn_research.explain import metrics

CLASSES = ("cat", "dog", "boat")
# Six examples: cats at 0, 1, 2; dogs at 3, 4; a boat at 5.
LABELS = np.array([0, 0, 0, 1, 1, 2])
PROBABILITIES = np.array(
    [
        [0.70, 0.20, 0.10],  # cat
        [0.10, 0.80, 0.10],  # called dog
        [0.30, 0.60, 0.10],  # called dog
        [0.05, 0.90, 0.05],  # dog
        [0.97, 0.02, 0.01],  # called cat
        [0.50, 0.25, 0.25],  # called cat
    ]
)


@pytest.mark.parametrize(
    ("right", "total", "expected"),
    [
        # Newcombe 1998, Two-sided confidence intervals for the single proportion, table I, method 3.
        (81, 263, (0.2553, 0.3662)),
        (15, 148, (0.0624, 0.1605)),
        (0, 20, (0.0, 0.1611)),
        (1, 29, (0.0061, 0.1718)),
        (20, 20, (0.8389, 1.0)),
    ],
)
def test_interval_is_the_published_one(right, total, expected):
    assert metrics.wilson_interval(right, total) == pytest.approx(expected, abs=5e-5)


def test_interval_narrows_with_less_confidence():
    wide, narrow = metrics.wilson_interval(90, 100, 0.99), metrics.wilson_interval(90, 100, 0.5)
    assert wide[0] < narrow[0] < 0.9 < narrow[1] < wide[1]


def test_accuracy():
    found = metrics.accuracy(PROBABILITIES, LABELS)
    assert (found.right, found.total, found.value) == (2, 6, 2 / 6)
    assert (found.low, found.high) == metrics.wilson_interval(2, 6)


@pytest.mark.parametrize(("k", "right"), [(1, 2), (2, 5), (3, 6)])
def test_accuracy_among_the_k_most_probable(k, right):
    # The boat is as probable as a dog, which comes before it: it is third.
    assert metrics.accuracy(PROBABILITIES, LABELS, k=k).right == right


def test_confusion_matrix():
    np.testing.assert_array_equal(
        metrics.confusion_matrix(PROBABILITIES, LABELS),
        [[1, 2, 0], [1, 1, 0], [1, 0, 0]],
    )


def test_per_class():
    cat, dog, boat = metrics.per_class(PROBABILITIES, LABELS, CLASSES)
    assert (cat.name, cat.support, dog.support, boat.support) == ("cat", 3, 2, 1)
    assert (cat.precision, cat.recall, cat.f1) == pytest.approx((1 / 3, 1 / 3, 1 / 3))
    assert (dog.precision, dog.recall, dog.f1) == pytest.approx((1 / 3, 1 / 2, 2 / 5))
    assert math.isnan(boat.precision)  # nothing is called a boat
    assert (boat.recall, boat.f1) == (0, 0)


def test_per_class_without_examples():
    absent = metrics.per_class(PROBABILITIES[:5], LABELS[:5], CLASSES)[2]
    assert absent.support == 0
    assert all(math.isnan(value) for value in (absent.precision, absent.recall, absent.f1))


def test_most_confused():
    pairs = metrics.most_confused(metrics.confusion_matrix(PROBABILITIES, LABELS))
    assert [(pair.true, pair.predicted, pair.count) for pair in pairs] == [(0, 1, 2), (1, 0, 1), (2, 0, 1)]
    assert [pair.share for pair in pairs] == pytest.approx([2 / 3, 1 / 2, 1])
    assert metrics.most_confused(np.diag([5, 3])) == []
    assert len(metrics.most_confused(metrics.confusion_matrix(PROBABILITIES, LABELS), n=1)) == 1


def test_calibration_by_hand():
    # Confidences .7 right, .8 wrong, .6 wrong, .9 right, .97 wrong, .5 wrong, in bins of a quarter: (.25, .5] holds .5,
    # (.5, .75] holds .7 and .6, (.75, 1] the others.
    found = metrics.calibration(PROBABILITIES, LABELS, bins=4)
    np.testing.assert_array_equal(found.counts, [0, 1, 2, 3])
    np.testing.assert_allclose(found.edges, [0, 0.25, 0.5, 0.75, 1])
    np.testing.assert_allclose(found.accuracy, [np.nan, 0, 1 / 2, 1 / 3])
    np.testing.assert_allclose(found.confidence, [np.nan, 0.5, 0.65, 0.89])
    assert found.error == pytest.approx((1 * 0.5 + 2 * 0.15 + 3 * (0.89 - 1 / 3)) / 6)


def test_calibration_by_the_formula_of_guo():
    rng = np.random.default_rng(0)
    probabilities = rng.dirichlet(np.full(5, 0.4), size=2000)
    probabilities[:3] = [[1, 0, 0, 0, 0], [0.2, 0.2, 0.2, 0.2, 0.2], [0.6, 0.4, 0, 0, 0]]  # on edges of fifteenths
    labels = rng.integers(0, 5, size=2000)
    expected = 0.0
    for m in range(1, 16):
        inside = [i for i in range(2000) if (m - 1) / 15 < max(probabilities[i]) <= m / 15]
        if inside:
            right = sum(int(np.argmax(probabilities[i]) == labels[i]) for i in inside) / len(inside)
            sure = sum(max(probabilities[i]) for i in inside) / len(inside)
            expected += len(inside) / 2000 * abs(right - sure)
    found = metrics.calibration(probabilities, labels)
    assert found.error == pytest.approx(expected, rel=1e-12)
    assert found.counts.sum() == 2000


def test_a_probability_that_float32_rounds_above_one_is_counted():
    found = metrics.calibration(np.array([[1 + 1e-7, 0.0]]), np.array([0]))
    assert found.counts[-1] == 1
    assert found.error == pytest.approx(0, abs=1e-6)


def test_losses_and_the_top_of_them():
    losses = metrics.losses(PROBABILITIES, LABELS)
    np.testing.assert_allclose(losses, [-math.log(p) for p in (0.7, 0.1, 0.3, 0.9, 0.02, 0.25)])
    np.testing.assert_array_equal(metrics.top_losses(PROBABILITIES, LABELS, n=3), [4, 1, 5])
    assert len(metrics.top_losses(PROBABILITIES, LABELS)) == 6


def test_the_loss_of_an_impossible_label_is_finite():
    losses = metrics.losses(np.array([[1, 0], [1e-30, 1]], np.float32), np.array([1, 0]))
    assert 69 < losses[1] < losses[0] < 88


def test_confident_mistakes_are_ordered_by_what_is_said_not_by_the_label():
    # 1 says .8, 2 says .6, 4 says .97, 5 says .5; by loss it would be 4, 1, 5, 2.
    np.testing.assert_array_equal(metrics.confident_mistakes(PROBABILITIES, LABELS), [4, 1, 2, 5])
    np.testing.assert_array_equal(metrics.confident_mistakes(PROBABILITIES, LABELS, n=1), [4])


@pytest.mark.parametrize(
    ("probabilities", "labels", "message"),
    [
        (np.full((4, 2), 0.5), np.zeros(3, int), r"probabilities \[N, K\] and labels \[N\], got \(4, 2\) and \(3,\)"),
        (np.zeros((0, 2)), np.zeros(0, int), "no examples"),
        (np.array([[0.5, 0.5], [3.0, -2.0]]), np.zeros(2, int), "1 of 2 examples, the first of them example 1"),
        (np.array([[0.5, 0.5], [np.nan, 0.5]]), np.zeros(2, int), "example 1.*softmax"),
        (np.array([[0.5, 0.5]]), np.array([2]), "example 0 has label 2, of 2 classes"),
        (np.array([[0.5, 0.5]]), np.array([-1]), "example 0 has label -1, of 2 classes"),
    ],
)
@pytest.mark.parametrize(
    "function",
    [metrics.accuracy, metrics.calibration, metrics.losses, metrics.confident_mistakes, metrics.confusion_matrix],
)
def test_what_is_no_evaluation_is_refused(function, probabilities, labels, message):
    with pytest.raises(ValueError, match=message):
        function(probabilities, labels)


def test_class_names_must_be_as_many_as_classes():
    with pytest.raises(ValueError, match="3 probabilities for each example, but 2 class names"):
        metrics.per_class(PROBABILITIES, LABELS, ("cat", "dog"))
