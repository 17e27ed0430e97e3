"""Several runs beside each other."""

import numpy as np
import pytest
from runs_for_tests import COLOURED, train
from scipy.stats import binomtest

from cnn_research.errors import UserError
from cnn_research.report import comparison, page
from cnn_research.report.run import open_run

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def runs(coloured, tmp_path_factory):
    other = train(tmp_path_factory.mktemp("runs") / "wider", **COLOURED | {"model__dense": (24,), "seed": 3})
    return {"coloured": open_run(coloured), "wider": open_run(other)}


@pytest.mark.parametrize(("first", "second"), [(0, 0), (1, 0), (9, 2), (5, 5), (40, 80), (3000, 3300)])
def test_mcnemar(first, second):
    """Against scipy's binomial test of the images that one alone has right."""
    right = np.repeat([True, False, True, False], [first, second, 7, 3])
    other = np.repeat([False, True, True, False], [first, second, 7, 3])
    expected = binomtest(first, first + second).pvalue if first + second else 1.0
    assert comparison.mcnemar(right, other) == pytest.approx(expected, rel=1e-9)


def test_page(runs, coloured, tmp_path):
    text = page.render_comparison(runs)
    for run in runs.values():
        assert f"{100 * run.right.mean():.2f} %" in text
    assert "<code>model.dense</code></th><td" in text and "<code>seed</code>" in text
    assert "model.filters" not in text  # it is the same in both


def test_images_that_one_alone_recognises(runs):
    first, second = (run.right for run in runs.values())
    groups = {gallery["title"]: int(gallery["count"]) for gallery in comparison.disagreements(runs)}
    assert groups == {
        "recognised by none": np.sum(~first & ~second),
        "by coloured alone": np.sum(first & ~second),
        "by wider alone": np.sum(second & ~first),
    }


def test_runs_of_other_data_are_compared_by_their_numbers_alone(runs, grey):
    mixed = runs | {"grey": open_run(grey)}
    assert comparison.disagreements(mixed) == comparison.class_rows(mixed) == []
    assert [row["chance"] for row in comparison.overview(mixed)] == ["", "", ""]
    assert "3 runs compared" in page.render_comparison(mixed)


def test_two_runs_of_one_name(runs, coloured):
    with pytest.raises(UserError, match="workdirs of one name: .*coloured"):
        page.write_report([coloured, coloured])


def test_it_is_written_beside_the_first_run(coloured, runs, tmp_path):
    path = page.write_report([coloured], tmp_path / "own.html")
    assert str(path) == str(tmp_path / "own.html") and path.exists()
    with pytest.raises(UserError, match="cannot be written"):
        page.write_report([coloured], tmp_path / "missing" / "own.html")
