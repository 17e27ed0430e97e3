import csv
import html.parser
import io
import json

import numpy as np
import pytest

from cnn_research.sweep import page, runs, table


def statuses(made, given):
    return {run.name: given.get(i, runs.Status("waiting")) for i, run in enumerate(made)}


def test_rows(make, finished):
    made = make("optimizer.learning_rate=0.1,1", "model.filters=4,(4,8)")
    diverged = runs.Status("diverged", 3, message="not finite, at once")
    result = table.tabulate(made, statuses(made, {0: finished(0.9, 0.8), 2: diverged}))
    assert result.fields == ["optimizer.learning_rate", "model.filters"] and not result.seeds
    rows = list(csv.DictReader(io.StringIO(table.to_csv(result.rows))))
    assert [row["run"] for row in rows] == [run.name for run in made]
    assert [row["state"] for row in rows] == ["finished", "waiting", "diverged", "waiting"]
    assert rows[0] == {
        "run": "model.filters=4,optimizer.learning_rate=0.1", "optimizer.learning_rate": "0.1", "model.filters": "(4,)",
        "state": "finished", "step": "120", "best_accuracy": "0.9", "best_step": "80", "test_accuracy": "0.8",
        "test_top5": "1.0", "test_loss": "0.5", "parameters": "1234", "train_seconds": "2.5", "message": "",
    }  # fmt: skip
    assert rows[2]["message"] == "not finite, at once" and rows[2]["best_accuracy"] == ""


def test_a_field_that_a_run_does_not_set_has_its_config_value(make, finished):
    made = [make("seed=1,2")[1], make("batch_size=16", optimizer__name="sgd")[0]]
    rows = table.tabulate(made, statuses(made, {})).rows
    assert [(row["seed"], row["batch_size"]) for row in rows] == [(2, 32), (0, 16)]


def test_means_over_seeds(make, finished):
    made = make("optimizer.learning_rate=0.1,1", "seed=0,1,2")
    best, test = [0.90, 0.94, 0.92], [0.91, 0.93, 0.89]
    given = {i: finished(best[i], test[i]) for i in range(3)} | {3: finished(0.99, 0.99), 4: runs.Status("diverged", 3)}
    result = table.tabulate(made, statuses(made, given))
    whole, part = result.seeds
    assert (whole["optimizer.learning_rate"], whole["n"], whole["runs"]) == (0.1, 3, 3) and "seed" not in whole
    for name, values in (("best_accuracy", best), ("test_accuracy", test)):
        assert whole[f"{name}_mean"] == pytest.approx(np.mean(values))
        assert whole[f"{name}_std"] == pytest.approx(np.std(values, ddof=1))
    assert (part["n"], part["runs"], part["best_accuracy_mean"], part["best_accuracy_std"]) == (1, 3, 0.99, None)
    assert table.mean_and_deviation(whole, "best_accuracy") == "0.9200 ± 0.0200 (n=3)"
    assert table.mean_and_deviation(part, "best_accuracy") == "0.9900 (n=1)"
    # The setting with one lucky seed is not the best.
    assert "optimizer.learning_rate=0.1" in result.best[0] and "0.9200 ± 0.0200 (n=3)" in result.best[1]


def test_best_is_chosen_by_eval_split_and_says_so(make, finished):
    held_out = {"dataset__train_split": "train[:90%]", "dataset__eval_split": "train[90%:]"}
    made = make("optimizer.learning_rate=0.1,1", **held_out)
    given = {0: finished(best=0.9, test=0.7), 1: finished(best=0.8, test=0.99)}
    best = table.tabulate(made, statuses(made, given)).best
    assert best == [
        "Best by dataset.eval_split, 'train[90%:]': optimizer.learning_rate=0.1",
        "accuracy of the best checkpoint there 0.9000; of the final weights on dataset.test_split 0.7000",
    ]


def test_choosing_on_the_test_set_is_said(make, finished):
    made = make("seed=0,1")
    best = table.tabulate(made, statuses(made, {0: finished(0.9, 0.9), 1: finished(0.8, 0.8)})).best
    assert "the only setting" in best[0] and "Chosen on the test set itself" in best[2]


@pytest.mark.parametrize("field", ["seed", "batch_size"])
def test_without_results_none_is_the_best(make, field):
    made = make(f"{field}=8,16")
    result = table.tabulate(made, statuses(made, {}))
    assert len(result.best) == 1 and "none is called the best" in result.best[0]
    assert all(line["best_accuracy_mean"] is None for line in result.seeds)
    assert table.to_csv(result.rows).count("\n") == 3


# --------------------------------------------------------------------------------------------------- page


class Elements(html.parser.HTMLParser):
    """What an HTML page consists of."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.scripts, self._script = [], {}, None
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        self._script = dict(attributes).get("id", "code") if tag == "script" else None

    def handle_endtag(self, tag):
        self._script = None

    def handle_data(self, data):
        if self._script:
            self.scripts[self._script] = self.scripts.get(self._script, "") + data


@pytest.fixture
def rendered(make, finished):
    made = make("dataset.data_dir=</script><b>,x", "optimizer.learning_rate=0.1,1", "seed=0,1", "model.filters=4,(4,8)")
    given = {0: finished(0.9, 0.8), 1: runs.Status("failed", 3, message='<img src="x">')}
    return page.render(table.tabulate(made, statuses(made, given)), "Sweep <1>")


def test_page_holds_the_data(rendered):
    data = json.loads(Elements(rendered).scripts["data"])
    assert data["title"] == "Sweep <1>" and len(data["runs"]) == 16 and len(data["seeds"]) == 8
    assert data["axes"] == [*data["fields"], "train_seconds", "best_accuracy", "test_accuracy"]
    first, second = data["runs"][:2]
    assert first["dataset.data_dir"] == "</script><b>" and first["model.filters"] == "(4,)"
    assert (first["optimizer.learning_rate"], first["seed"], first["best_accuracy"]) == (0.1, 0, 0.9)
    assert (second["state"], second["message"], second["best_accuracy"]) == ("failed", '<img src="x">', None)


def test_page_needs_nothing_from_elsewhere(rendered):
    elements = Elements(rendered)
    assert [tag for tag, _ in elements.tags].count("script") == 2, "no text of the data may end its element"
    assert not [tag for tag, attributes in elements.tags if {"src", "href"} & attributes.keys()]
    assert "://" not in rendered and "url(" not in rendered and "import" not in elements.scripts["code"]


def test_page_of_a_sweep_without_results(make):
    made = make("optimizer.learning_rate=0.1,1")
    data = json.loads(Elements(page.render(table.tabulate(made, statuses(made, {})), "t")).scripts["data"])
    assert data["axes"] == ["optimizer.learning_rate"]
