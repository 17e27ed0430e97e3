import itertools
import json
import shutil

import pytest

from cnn_research.config import flatten, from_json
from cnn_research.errors import UserError
from cnn_research.results import kept


def texts(folder):
    return {file: (folder / file).read_text() for file in kept.FILES}


def test_a_run_is_kept_without_what_belongs_to_its_machine(workdir, files, tmp_path):
    fields = {"dataset.cache": "/home/someone/cache", "compilation_cache": "~/elsewhere"}
    source = workdir(fields=fields, results={"skipped": {"images": 1, "paths": ["/home/someone/broken.png"]}})
    folder = kept.add(source, tmp_path, files, notes=["shared with other work"])
    assert folder == tmp_path / "results" / "lenet5_mnist" / "seed-0"
    assert sorted(path.name for path in folder.iterdir()) == sorted(kept.FILES)
    everything = "".join(texts(folder).values())
    for word in ("someone", "elsewhere", "this-host", "command"):
        assert word not in everything
    before, after = (flatten(from_json((at / "config.json").read_text()).to_dict()) for at in (source, folder))
    placed = {"dataset.data_dir": "DATA_DIR"}
    placed |= {field: flatten(files["lenet5_mnist"].to_dict())[field] for field in fields}
    assert after == before | placed
    environment = json.loads((folder / "environment.json").read_text())
    assert environment["system"] == "Linux" and environment["notes"] == ["shared with other work"]
    assert environment["git_commit"] == "0123456789abcdef0123456789abcdef01234567" and environment["cores"] == 2
    assert (folder / "metrics.jsonl").read_text() == (source / "metrics.jsonl").read_text()

    (entry,) = kept.read_all(tmp_path, files)
    assert (entry.name, entry.experiment, entry.seeds) == ("lenet5_mnist", "lenet5_mnist", [0])
    assert entry.overrides == {"dataset.data_dir": "DATA_DIR"}
    assert entry.runs[0].results["test"]["accuracy"] == 0.99


def test_seeds_are_ordered_as_numbers(workdir, files, tmp_path):
    for seed in (10, 9, 0):
        kept.add(workdir(seed=seed), tmp_path, files)
    (entry,) = kept.read_all(tmp_path, files)
    assert entry.seeds == [0, 9, 10]


def test_what_was_kept_is_replaced(workdir, files, tmp_path):
    kept.add(workdir(0.9), tmp_path, files)
    kept.add(workdir(0.8), tmp_path, files)
    (entry,) = kept.read_all(tmp_path, files)
    assert [run.results["test"]["accuracy"] for run in entry.runs] == [0.8]


def test_paths_of_the_users_images_and_weights(workdir, files, tmp_path):
    fields = {"dataset.name": "folder:/home/someone/images", "init.weights": "/home/someone/resnet20.pth"}
    kept.add(workdir(fields=fields), tmp_path, files, name="lenet5_mnist-mine")
    (entry,) = kept.read_all(tmp_path, files)
    assert entry.overrides == {
        "dataset.name": "folder:IMAGES",
        "init.weights": "WEIGHTS",
        "dataset.data_dir": "DATA_DIR",
    }
    assert entry.runs[0].results["dataset"] == "folder:IMAGES"


@pytest.mark.parametrize(
    ("missing", "message"),
    [
        (["results.json"], "has no results.json: the run is not finished"),
        (["config.json", "results.json"], "has no config.json and no results.json: is it a run's folder"),
    ],
)
def test_an_unfinished_run_is_refused(workdir, files, tmp_path, missing, message):
    source = workdir()
    for name in missing:
        (source / name).unlink()
    with pytest.raises(UserError, match=message):
        kept.add(source, tmp_path, files)
    assert not (tmp_path / "results").exists()


@pytest.mark.parametrize(
    ("options", "given", "message"),
    [
        ({}, {"name": "lenet5_mist"}, r"'lenet5_mist' is not the name of a config.*Did you mean 'lenet5_mnist'\?"),
        ({}, {"name": "../lenet5_mnist"}, "is not the name of a config"),
        (
            {},
            {"name": "resnet20_cifar10"},
            r"another run than .*resnet20_cifar10.py asks for \(dataset.name=mnist, duration=12ep, model.name=lenet5\)",
        ),
        ({"fields": {"duration": "1ep"}}, {}, r"asks for \(duration=1ep\): its name needs a suffix"),
        ({"environment": {"command": ["train.py"]}}, {}, "names no config; --name=NAME says which it is"),
        ({"results": {"steps": 21}}, {}, "metrics.jsonl has no test at step 21"),
        ({"results": {"model": "vgg16"}}, {}, "results.json has model='vgg16', config.json 'lenet5'"),
        ({"fields": {"dataset.test_split": "validation"}}, {"name": "lenet5_mnist-v"}, "no test at step 20"),
        ({"environment": {"processor": "of /home/someone"}}, {}, "environment.json has a path of one machine's"),
        ({"fields": {"profile": "/home/someone/x"}}, {"name": "lenet5_mnist-p"}, "config.json has a path"),
    ],
)
def test_what_contradicts_itself_is_refused(workdir, files, tmp_path, options, given, message):
    with pytest.raises(UserError, match=message):
        kept.add(workdir(**options), tmp_path, files, **given)
    assert not (tmp_path / "results").exists()


def test_runs_of_a_name_differ_in_their_seeds_alone(workdir, files, tmp_path):
    kept.add(workdir(fields={"duration": "1ep"}), tmp_path, files, name="lenet5_mnist-1ep")
    with pytest.raises(UserError, match="its runs differ in more than their seeds: batch_size, duration"):
        kept.add(
            workdir(seed=1, fields={"duration": "2ep", "batch_size": 64}), tmp_path, files, name="lenet5_mnist-1ep"
        )
    kept.add(workdir(seed=1, fields={"duration": "1ep"}), tmp_path, files, name="lenet5_mnist-1ep")
    (entry,) = kept.read_all(tmp_path, files)
    assert entry.seeds == [0, 1] and entry.overrides == {"duration": "1ep", "dataset.data_dir": "DATA_DIR"}


def test_where_and_how_often_may_differ_from_the_file(workdir, files, tmp_path):
    kept.add(workdir(fields={"eval_every": "2ep", "dataset.workers": 3}), tmp_path, files)
    (entry,) = kept.read_all(tmp_path, files)
    assert entry.overrides == {"eval_every": "2ep", "dataset.workers": "3", "dataset.data_dir": "DATA_DIR"}


def test_long_metrics_are_thinned(workdir, files, tmp_path):
    training = [
        {"step": step, "split": "train", "loss": step / 7, "learning_rate": 0.1, "note": "x" * 60}
        for step in range(3000)
    ]
    tests = [{"step": step, "epoch": step / 100, "split": "test", "accuracy": 0.5} for step in range(0, 3000, 100)]
    last = {"step": 3000, "epoch": 30.0, "split": "test", "accuracy": 0.99, "loss": 0.04, "top5": 0.999}
    last |= {"num_examples": 10_000}
    rows = sorted([*training, *tests], key=lambda row: row["step"]) + [last]
    source = workdir(rows=rows, results={"steps": 3000})
    assert (source / "metrics.jsonl").stat().st_size > 300_000
    folder = kept.add(source, tmp_path, files)
    found = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert (folder / "metrics.jsonl").stat().st_size <= 200_000
    assert [row for row in found if row["split"] == "test"] == [*tests, last]
    steps = [row["step"] for row in found if row["split"] == "train"]
    assert steps[-1] == 2999 and len({b - a for a, b in itertools.pairwise(steps)}) == 1 and len(steps) >= 1000
    first = texts(folder)
    assert texts(kept.add(source, tmp_path, files)) == first


@pytest.mark.parametrize(
    ("file", "old", "new", "message"),
    [
        ("results.json", '"accuracy": 0.99', '"accuracy": 0.999', "test accuracy of 0.999, the last test .* 0.99"),
        ("results.json", '"loss": 0.04', '"loss": 0.05', "test loss of 0.05"),
        ("results.json", '"num_examples": 10000', '"num_examples": 9999', "test num_examples of 9999"),
        ("results.json", '"steps": 20', '"steps": 10', "no test at step 10"),
        ("results.json", "{", "[", "results.json is not readable as JSON"),
        ("results.json", '"steps"', '"stops"', "something is missing in its files: 'steps'"),
        ("metrics.jsonl", '"accuracy": 0.99,', '"accuracy": 0.995,', "the last test in metrics.jsonl 0.995"),
        ("metrics.jsonl", "}", "", "metrics.jsonl is not readable as JSON"),
        ("config.json", '"seed": 0', '"seed": 3', "results.json has seed=0, config.json 3"),
        ("config.json", '"seed"', '"sed"', "field 'sed' that this version doesn't"),
        ("config.json", '"momentum": 0.9', '"momentum": 0.8', r"asks for \(optimizer.momentum=0.8\)"),
        ("config.json", "DATA_DIR", "/home/someone/tfds", "config.json has a path of one machine's"),
        ("environment.json", "Model 7", "see /home/someone", "environment.json has a path of one machine's"),
        ("environment.json", '"notes"', '"note"', "something is missing in its files: 'notes'"),
    ],
)
def test_tampering_is_noticed(workdir, files, tmp_path, file, old, new, message):
    path = kept.add(workdir(), tmp_path, files) / file
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))
    with pytest.raises(UserError, match=f"^results/lenet5_mnist/seed-0: .*{message}"):
        kept.read_all(tmp_path, files)


def test_broken_folders(workdir, files, tmp_path):
    folder = kept.add(workdir(), tmp_path, files)
    shutil.copytree(folder, folder.with_name("seed-1"))
    (tmp_path / "results" / "gone_mnist").mkdir()
    (tmp_path / "results" / "resnet20_cifar10").mkdir()
    (tmp_path / "results" / "lenet5_mnist-1ep" / "seed-0").mkdir(parents=True)
    with pytest.raises(UserError) as error:
        kept.read_all(tmp_path, files)
    lines = str(error.value).splitlines()
    assert len(lines) == 4
    assert lines[0].startswith("results/gone_mnist: 'gone_mnist' is not the name of a config")
    assert lines[1] == "results/lenet5_mnist/seed-1: config.json has the seed 0"
    assert lines[2].startswith("results/lenet5_mnist-1ep/seed-0: there is no config.json and no environment.json")
    assert lines[3] == "results/resnet20_cifar10: there is no folder seed-K of a run in it"


def test_a_config_that_has_changed_since(workdir, files, tmp_path):
    kept.add(workdir(), tmp_path, files)
    files["lenet5_mnist"].batch_size = 64
    with pytest.raises(UserError, match=r"another run than .*lenet5_mnist.py asks for \(batch_size=128\)"):
        kept.read_all(tmp_path, files)
