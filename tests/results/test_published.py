import json

import pytest
from configs_for_tests import changed

from cnn_research.errors import UserError
from cnn_research.results import published

SOURCE = "somebody 1999, table 2"


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"lenet5_mist": {}}, r"'lenet5_mist' is no config .*Did you mean 'lenet5_mnist'\?"),
        ({"lenet5_mnist": {"error": [1.0, None]}}, "lenet5_mnist needs"),
        ({"lenet5_mnist": {"error": [1.0, None], "source": ""}}, "lenet5_mnist needs"),
        ({"lenet5_mnist": {"error": 1.0, "source": SOURCE}}, "lenet5_mnist needs"),
        ({"lenet5_mnist": {"error": [101, None], "source": SOURCE}}, "lenet5_mnist needs"),
        ({"lenet5_mnist": {"error": ["1 %", None], "source": SOURCE}}, "lenet5_mnist needs"),
    ],
)
def test_mistakes(files, tmp_path, value, message):
    (tmp_path / "results").mkdir()
    (tmp_path / published.FILE).write_text(json.dumps(value))
    with pytest.raises(UserError, match=message):
        published.read(tmp_path, files)


def test_not_json(files, tmp_path):
    (tmp_path / "results").mkdir()
    (tmp_path / published.FILE).write_text("{")
    with pytest.raises(UserError, match="not readable as JSON"):
        published.read(tmp_path, files)


@pytest.mark.parametrize(
    ("run", "experiment", "dataset", "error"),
    [
        ({}, "lenet5_mnist", "MNIST", 1.0),  # of the table
        ({"seed": 3, "duration": "1ep"}, "lenet5_mnist", "MNIST", 1.0),
        ({"model__activation": "gelu"}, "lenet5_mnist", "MNIST", None),  # another network
        ({"model__name": "lenet5_paper"}, "lenet5_mnist", "MNIST", 0.95),  # of models/facts.py
        ({"model__name": "lenet5_paper"}, "lenet5_mnist", "digits", None),  # measured on MNIST
        ({"model__name": "resnet20"}, "other", "CIFAR-10", 8.75),
        ({"model__name": "resnet20", "model__squeeze_excitation": True}, "other", "CIFAR-10", None),
        ({"model__name": "convnet"}, "other", "MNIST", None),  # no paper
    ],
)
def test_which_figure_belongs_to_a_run(run, experiment, dataset, error):
    figures = {"lenet5_mnist": published.Figure((1.0, None), SOURCE)}
    figure = published.of_run(experiment, changed(**run), changed(), dataset, figures)
    assert (figure.error[0] if figure else None) == error
    assert figure is None or figure.source
