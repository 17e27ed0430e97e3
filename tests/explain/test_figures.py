"""Figures of an evaluation: what they say is in the artists that matplotlib draws."""

import numpy as np
import pytest

from cnn_research.explain import figures, metrics, style

CLASSES = ("dog", "cat", "boat", "bird")
NAN = float("nan")


def texts(figure):
    """Everything that is written in a figure, once it is laid out."""
    figure.draw_without_rendering()
    return [
        text.get_text() for text in figure.findobj(lambda artist: hasattr(artist, "get_text")) if text.get_visible()
    ]


def rows(split, accuracies, **values):
    return [
        {"step": 10 * e, "epoch": e, "split": split, "accuracy": accuracy, "loss": 1 - accuracy} | values
        for e, accuracy in enumerate(accuracies, start=1)
    ]


def test_learning_curves_of_one_run():
    run = rows("train", [0.5, 0.75], learning_rate=0.1) + rows("test", [0.6, 0.875])
    figure = figures.learning_curves({"run": run})
    loss, accuracy, rate = figure.axes
    assert [line.get_ydata().tolist() for line in accuracy.lines] == [[0.5, 0.75], [0.6, 0.875]]
    assert [line.get_ydata().tolist() for line in loss.lines] == [[0.5, 0.25], [0.4, 0.125]]
    assert [line.get_ydata().tolist() for line in rate.lines] == [[0.1, 0.1]]
    assert {"train 75.0 %", "test 87.5 %"} <= set(texts(figure))
    assert accuracy.lines[0].get_linestyle() != accuracy.lines[1].get_linestyle()


def test_learning_curves_of_several_runs_have_a_colour_each():
    figure = figures.learning_curves({"a": rows("test", [0.5, 0.9]), "b": rows("test", [0.4, 0.8])})
    assert [line.get_color() for line in figure.axes[1].lines] == [style.color(0), style.color(1)]
    assert {"a · test 90.0 %", "b · test 80.0 %"} <= set(texts(figure))


def test_learning_curves_leave_out_what_is_not_finite():
    run = rows("test", [0.5, NAN, 0.7])
    assert figures.learning_curves({"a": run}).axes[1].lines[0].get_xdata().tolist() == [1, 3]


@pytest.mark.parametrize("runs", [{}, {"a": []}])
def test_learning_curves_need_rows(runs):
    with pytest.raises(ValueError, match="no rows"):
        figures.learning_curves(runs)


def confusion(size, seed=0):
    rng = np.random.default_rng(seed)
    return rng.poisson(3, (size, size)) * (rng.random((size, size)) < 0.2) + np.diag(rng.integers(80, 100, size))


def test_confusion_of_a_few_classes_shows_every_count_and_name():
    matrix = np.array([[50, 2, 0, 0], [1, 1234, 0, 0], [0, 0, 9, 1], [0, 3, 0, 40]])
    found = texts(figures.confusion(matrix, CLASSES))
    for expected in ("50", "2", "1", "1,234", "9", "3", "40", "predicted", "true", *CLASSES):
        assert expected in found
    assert "0" not in found  # an empty cell is white
    assert "99.5 % of 1,340 right" in found


def test_the_worst_mistake_has_the_strongest_colour_however_rare():
    matrix = np.diag([10_000, 10_000, 10_000])
    matrix[0, 1], matrix[1, 2] = 2, 1
    pixels = figures.confusion(matrix, ("a", "b", "c")).axes[0].images[0].get_array()
    assert pixels[0, 1, 1] < pixels[1, 2, 1] < pixels[2, 0, 1]  # green: darker, and redder
    np.testing.assert_array_equal(pixels[2, 0], pixels[2, 1])


@pytest.mark.parametrize("size", [2, 10, 20, 40])
def test_names_along_a_matrix_do_not_cover_each_other(size):
    figure = figures.confusion(confusion(size), [f"class {i}" for i in range(size)])
    figure.draw_without_rendering()
    axes = figure.axes[0]
    for labels in (axes.get_xticklabels(), axes.get_yticklabels()):
        assert len(labels) == size
    # Turned labels' boxes overlap though their letters don't, so the lines' distance must exceed a letter's height.
    step = axes.transData.transform([(1, 0)])[0, 0] - axes.transData.transform([(0, 0)])[0, 0]
    label = axes.get_xticklabels()[0]
    height = label.get_fontsize() * figure.dpi / 72
    assert step * (np.sin(np.pi / 4) if label.get_rotation() else 1) > height


def test_confusion_of_many_classes_lists_the_worst_pairs():
    matrix = np.diag(np.full(100, 50))
    matrix[47, 52] = 30
    found = "\n".join(texts(figures.confusion(matrix, [f"class {i}" for i in range(100)])))
    assert "class 47 → class 52  30" in found
    assert "class 46" not in found


def test_confused_pairs():
    pairs = [metrics.Confusion(1, 0, 30, 0.15), metrics.Confusion(0, 1, 10, 0.05)]
    figure = figures.confused_pairs(pairs, CLASSES)
    assert [bar.get_width() for bar in figure.axes[0].patches] == [30, 10]
    assert {"cat → dog", "dog → cat", "30 · 15.0 % of cat", "10 · 5.0 % of dog"} <= set(texts(figure))


def test_no_mistakes_are_said_not_drawn():
    assert "no mistakes" in texts(figures.confused_pairs([], CLASSES))
    assert "100 % of 4 right" in texts(figures.confusion(np.eye(4, dtype=int), CLASSES))


def test_class_scores():
    scores = [metrics.ClassScores("dog", 0.9, 0.6, 0.72, 100), metrics.ClassScores("cat", NAN, 0.0, 0.0, 20)]
    figure = figures.class_scores([*scores, metrics.ClassScores("boat", NAN, NAN, NAN, 0)])
    found = texts(figure)
    assert {"dog  (100)", "cat  (20)", "boat  (0)"} <= set(found)
    assert {"  never predicted", "  no examples"} <= set(found)
    drawn = {line.get_label(): line.get_xdata() for line in figure.axes[0].lines}
    np.testing.assert_array_equal(drawn["recall"], [0.6, 0.0, NAN])
    np.testing.assert_array_equal(drawn["precision"], [0.9, NAN, NAN])
    np.testing.assert_array_equal(drawn["F1"], [0.72, 0.0, NAN])


def test_of_many_classes_the_worst_are_shown():
    scores = [metrics.ClassScores(f"c{i}", 0.5, 0.5, i / 100, 10) for i in range(50)]
    found = texts(figures.class_scores(scores))
    assert {"c0  (10)", "c29  (10)", "The 30 of 50 classes with the lowest F1"} <= set(found)
    assert "c30  (10)" not in found


def test_reliability():
    # Confidence .7 right, .6 wrong: one bin of accuracy 1/2 and confidence .65; .9 right.
    probabilities = np.array([[0.7, 0.3], [0.4, 0.6], [0.9, 0.1]])
    labels = np.array([0, 0, 0])
    calibration = metrics.calibration(probabilities, labels, bins=4)
    figure = figures.reliability(calibration, metrics.accuracy(probabilities, labels))
    upper, lower = figure.axes
    hits, gaps = upper.containers[0], upper.containers[1]
    assert [bar.get_height() for bar in hits] == pytest.approx([0.5, 1])
    assert [bar.get_height() for bar in gaps] == pytest.approx([0.15, -0.1])
    assert [bar.get_height() for bar in lower.containers[0]] == pytest.approx([2 / 3, 1 / 3])
    assert {"Calibration error 13.3 %", "accuracy 66.7 %", "mean confidence 73.3 %"} <= set(texts(figure))
