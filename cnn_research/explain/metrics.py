"""The numbers of an evaluation: how good, how sure of it, which classes, which examples.

Everything takes plain arrays: `probabilities` float[N, K], each row of which adds up to 1, and `labels` int[N], from 0
to K - 1. The predicted class is the most probable one, of equal ones the first, as in training and evaluation.
"""

import dataclasses
import statistics
from collections.abc import Sequence

import numpy as np
from sklearn import metrics

BINS = 15  # of the calibration error, as in Guo et al. 2017


@dataclasses.dataclass(frozen=True)
class Accuracy:
    """A share of right answers, and where the share on endless data of this kind lies.

    Attributes:
        value: right / total.
        low, high: ends of the interval.
        right, total: examples.
        confidence: with which the interval holds the true share, such as 0.95.
    """

    value: float
    low: float
    high: float
    right: int
    total: int
    confidence: float


@dataclasses.dataclass(frozen=True)
class ClassScores:
    """How well one class is told from the others.

    Attributes:
        name: of the class.
        precision: share of what is called this class that is of it; NaN if nothing is called so.
        recall: share of the class that is called so; NaN if the class has no examples.
        f1: their harmonic mean; NaN if the class has no examples and nothing is called so.
        support: examples of the class.
    """

    name: str
    precision: float
    recall: float
    f1: float
    support: int


@dataclasses.dataclass(frozen=True)
class Calibration:
    """Whether what is said with 80 % confidence is right in 80 % of cases: examples in equal bins of confidence.

    Attributes:
        error: the expected calibration error, 0 to 1: |accuracy - confidence| of each bin, averaged over examples.
        edges: float[bins + 1] from 0 to 1; bin b holds edges[b] < confidence <= edges[b + 1].
        counts: int[bins], examples.
        accuracy: float[bins]; NaN where a bin is empty.
        confidence: float[bins], the mean of the bin; NaN where it is empty.
    """

    error: float
    edges: np.ndarray
    counts: np.ndarray
    accuracy: np.ndarray
    confidence: np.ndarray


@dataclasses.dataclass(frozen=True)
class Confusion:
    """A class taken for another one.

    Attributes:
        true, predicted: indices of the classes.
        count: examples of `true` that are called `predicted`.
        share: of all examples of `true`.
    """

    true: int
    predicted: int
    count: int
    share: float


def check(probabilities: np.ndarray, labels: np.ndarray, classes: Sequence[str] | None = None) -> None:
    """Refuses arrays that are no probabilities and labels of the same examples and of these classes.

    Raises:
        ValueError: what is wrong, and with the first example concerned.
    """
    if probabilities.ndim != 2 or labels.shape != probabilities.shape[:1]:
        raise ValueError(f"expected probabilities [N, K] and labels [N], got {probabilities.shape} and {labels.shape}")
    if not len(labels):
        raise ValueError("there are no examples to evaluate")
    if classes is not None and len(classes) != probabilities.shape[1]:
        raise ValueError(f"{probabilities.shape[1]} probabilities for each example, but {len(classes)} class names")
    # Written as "not close" so that NaN is refused.
    wrong = ~(np.abs(probabilities.sum(axis=1, dtype=np.float64) - 1) < 1e-3) | (probabilities < 0).any(axis=1)
    if wrong.any():
        raise ValueError(
            f"the probabilities of {wrong.sum()} of {len(labels)} examples, the first of them example "
            f"{wrong.argmax()}, don't add up to 1 or are negative: logits need a softmax first"
        )
    outside = (labels < 0) | (labels >= probabilities.shape[1])
    if outside.any():
        first = outside.argmax()
        raise ValueError(f"example {first} has label {labels[first]}, of {probabilities.shape[1]} classes")


def accuracy(probabilities: np.ndarray, labels: np.ndarray, k: int = 1, confidence: float = 0.95) -> Accuracy:
    """The share of examples whose label is among the k most probable classes, with its Wilson interval.

    The score interval of Wilson 1927 holds the true share as often as it says even near 0 and 1 and for few examples,
    where the textbooks' p ± 1.96 sqrt(p (1 - p) / n) doesn't (Brown, Cai & DasGupta 2001, Interval estimation for a
    binomial proportion).

    Args:
        probabilities: float[N, K].
        labels: int[N].
        k: 1 for accuracy, 5 for top-5 accuracy.
        confidence: of the interval.

    Raises:
        ValueError: the arrays aren't probabilities and labels.
    """
    check(probabilities, labels)
    own = probabilities[np.arange(len(labels)), labels][:, None]
    # Of equally probable classes the first is placed first, as argmax has it.
    before = np.arange(probabilities.shape[1]) < labels[:, None]
    ahead = ((probabilities > own) | ((probabilities == own) & before)).sum(axis=1)
    right, total = int((ahead < k).sum()), len(labels)
    low, high = wilson_interval(right, total, confidence)
    return Accuracy(right / total, low, high, right, total, confidence)


def wilson_interval(right: int, total: int, confidence: float = 0.95) -> tuple[float, float]:
    """The score interval of a share of `right` in `total` > 0 (Wilson 1927), as (low, high)."""
    z = statistics.NormalDist().inv_cdf((1 + confidence) / 2)
    share = right / total
    centre = share + z**2 / (2 * total)
    half = z * (share * (1 - share) / total + z**2 / (4 * total**2)) ** 0.5
    scale = 1 + z**2 / total
    return max(0.0, (centre - half) / scale), min(1.0, (centre + half) / scale)


def per_class(probabilities: np.ndarray, labels: np.ndarray, classes: Sequence[str]) -> list[ClassScores]:
    """Precision, recall and F1 of each class, in the order of `classes`.

    Args:
        probabilities: float[N, K].
        labels: int[N].
        classes: K names.

    Raises:
        ValueError: the arrays aren't probabilities and labels of these classes.
    """
    check(probabilities, labels, classes)
    scores = metrics.precision_recall_fscore_support(
        labels, probabilities.argmax(axis=1), labels=range(len(classes)), zero_division=np.nan
    )
    columns = [column.tolist() for column in scores]
    return [ClassScores(name, *row) for name, *row in zip(classes, *columns, strict=True)]


def confusion_matrix(probabilities: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Counts examples: int[K, K], a row for each true class, a column for each predicted one.

    Args:
        probabilities: float[N, K].
        labels: int[N].

    Raises:
        ValueError: the arrays aren't probabilities and labels.
    """
    check(probabilities, labels)
    return metrics.confusion_matrix(labels, probabilities.argmax(axis=1), labels=range(probabilities.shape[1]))


def most_confused(matrix: np.ndarray, n: int = 10) -> list[Confusion]:
    """The pairs of classes with the most mistakes, most frequent first; those without any are left out.

    Args:
        matrix: int[K, K], from `confusion_matrix`.
        n: at most so many.
    """
    mistakes = matrix - np.diag(np.diag(matrix))
    shares = mistakes / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    order = np.argsort(-mistakes, axis=None, kind="stable")[: min(n, np.count_nonzero(mistakes))]
    return [
        Confusion(int(true), int(predicted), int(mistakes[true, predicted]), float(shares[true, predicted]))
        for true, predicted in zip(*np.unravel_index(order, matrix.shape), strict=True)
    ]


def calibration(probabilities: np.ndarray, labels: np.ndarray, bins: int = BINS) -> Calibration:
    """The expected calibration error and the bins of a reliability diagram.

    Guo et al. 2017, On calibration of modern neural networks, section 2: confidence is the probability of the predicted
    class, and bin b of B holds the examples with (b - 1) / B < confidence <= b / B.

    Args:
        probabilities: float[N, K].
        labels: int[N].
        bins: B, of equal width.

    Raises:
        ValueError: the arrays aren't probabilities and labels.
    """
    check(probabilities, labels)
    confidences = probabilities.max(axis=1).astype(np.float64)
    right = probabilities.argmax(axis=1) == labels
    edges = np.linspace(0, 1, bins + 1)
    # By the inner edges alone: a confidence of 1 + 1e-7, as float32 has it, belongs to the last bin.
    index = np.searchsorted(edges[1:-1], confidences, side="left")
    counts = np.bincount(index, minlength=bins)
    with np.errstate(invalid="ignore"):
        accuracies = np.bincount(index, weights=right, minlength=bins) / counts
        means = np.bincount(index, weights=confidences, minlength=bins) / counts
    error = np.nansum(counts * np.abs(accuracies - means)) / len(labels)
    return Calibration(float(error), edges, counts, accuracies, means)


def losses(probabilities: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """The cross-entropy of each example in nats, -log p(label): float64[N], at most 87, where float32 ends.

    Args:
        probabilities: float[N, K].
        labels: int[N].

    Raises:
        ValueError: the arrays aren't probabilities and labels.
    """
    check(probabilities, labels)
    own = probabilities[np.arange(len(labels)), labels].astype(np.float64)
    # The probability of a class may be 0 in float32, and the largest loss should still be a number.
    return -np.log(np.clip(own, np.finfo(np.float32).tiny, 1))


def top_losses(probabilities: np.ndarray, labels: np.ndarray, n: int = 16) -> np.ndarray:
    """The examples with the largest cross-entropy, largest first: int[min(n, N)].

    Args:
        probabilities: float[N, K].
        labels: int[N].
        n: at most so many.

    Raises:
        ValueError: the arrays aren't probabilities and labels.
    """
    return np.argsort(-losses(probabilities, labels), kind="stable")[:n]


def confident_mistakes(probabilities: np.ndarray, labels: np.ndarray, n: int = 16) -> np.ndarray:
    """The examples that are predicted wrongly, the most confident first: int[at most n].

    Args:
        probabilities: float[N, K].
        labels: int[N].
        n: at most so many.

    Raises:
        ValueError: the arrays aren't probabilities and labels.
    """
    check(probabilities, labels)
    wrong = np.flatnonzero(probabilities.argmax(axis=1) != labels)
    return wrong[np.argsort(-probabilities[wrong].max(axis=1), kind="stable")][:n]
