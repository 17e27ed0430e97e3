import statistics

import pytest

from cnn_research.errors import UserError
from cnn_research.results import kept, page, published

ACCURACIES = (0.99, 0.992, 0.9895)


@pytest.fixture
def entries(workdir, files, tmp_path):
    """Three seeds of lenet5_mnist, and one of a shorter resnet20_cifar10."""
    for seed, accuracy in enumerate(ACCURACIES):
        kept.add(workdir(accuracy, seed), tmp_path, files)
    short = workdir(
        0.8,
        seed=4,
        config="resnet20_cifar10",
        fields={
            **{"duration": "10ep", "augment": "pad_and_crop(4)|flip", "evaluation.flip": True, "evaluation.shift": 2},
            "log_every": "7st",  # no difference that a reader must know of
        },
        environment={"git_commit": "fedcba9876543210 (changed)", "processor": "", "cores": 8},
        results={"train_seconds": 612.0, "parameters": 269_722},
    )
    kept.add(short, tmp_path, files, "resnet20_cifar10-10min", ["images once JPEG", "shared with other work."])
    return kept.read_all(tmp_path, files)


def row(text, name):
    (line,) = [line for line in text.splitlines() if line.startswith(f"| `{name}`")]
    line = line.replace("\\|", "¦").replace("\N{NO-BREAK SPACE}", " ")
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_row_of_several_seeds(entries, files):
    text = page.render(entries, files, {})
    # By hand: around the mean 0.9905, squares of 0.25e-6, 2.25e-6 and 1e-6, over n - 1 = 2; the root of 1.75e-6.
    assert statistics.fmean(ACCURACIES) == pytest.approx(0.9905)
    assert row(text, "lenet5_mnist") == [
        *("`lenet5_mnist`", "lenet5", "0.9905 ± 0.0013", "0.95 ± 0.13 %", "none", "3", "12", "61,706"),
        *("70 s", "2 CPU cores (Model 7)"),
    ]
    assert "Tested on 10,000 images." in text
    assert "**[`lenet5_mnist`](results/lenet5_mnist)**: seeds 0, 1, 2; commit 0123456789ab; Python 3.12.1;" in text
    assert "jax 0.9.1; flax 0.12.0; optax 0.2.8;" in text


def test_row_that_differs_from_its_file(entries, files):
    text = page.render(entries, files, {})
    cells = row(text, "resnet20_cifar10-10min")
    assert (
        cells[0]
        == "`resnet20_cifar10-10min`<br>`augment=pad_and_crop(4)¦flip`<br>`duration=10ep`<br>`evaluation.flip=True`"
        "<br>`evaluation.shift=2`"
    )
    assert cells[1:] == [
        *("resnet20", "0.8000<sup>1, 2, 3, 4</sup>", "20.00 %<sup>1, 2, 3, 4</sup>", "8.75 %<sup>5</sup>", "1", "12"),
        *("269,722", "10 min", "8 CPU cores"),
    ]
    notes = [line for line in text.splitlines() if line[:2] in ("1.", "2.", "3.", "4.", "5.")]
    assert notes == [
        "1. Mean over each image and its mirror image, unmoved and moved by 2 px up and left, down and right.",
        "2. Some files differed from the commit.",
        "3. images once JPEG.",
        "4. shared with other work.",
        "5. Published: He et al. 2016, Deep residual learning for image recognition; table 6.",
    ]


@pytest.mark.parametrize(
    ("fields", "remark"),
    [
        ({}, []),
        ({"flip": True}, ["Mean over each image and its mirror image."]),
        ({"shift": 2}, ["Mean over each image, unmoved and moved by 2 px up and left, down and right."]),
        ({"crops": "ten", "crop_size": 20}, ["Mean over ten crops of each image."]),
    ],
)
def test_views_are_told(workdir, files, tmp_path, fields, remark):
    fields = {f"evaluation.{field}": value for field, value in fields.items()}
    kept.add(workdir(fields=fields), tmp_path, files, name="lenet5_mnist-views" if fields else "")
    (entry,) = kept.read_all(tmp_path, files)
    assert page.remarks(entry) == remark


def test_commands_are_exact(entries, files):
    text = page.render(entries, files, {})
    assert (
        "python experiments/train.py --config=experiments/configs/lenet5_mnist.py --workdir=runs/lenet5_mnist "
        "--config.seed=0 --config.dataset.data_dir=DATA_DIR\n"
    ) in text
    assert (
        "python experiments/train.py --config=experiments/configs/resnet20_cifar10.py "
        "--workdir=runs/resnet20_cifar10-10min --config.seed=4 '--config.augment=pad_and_crop(4)|flip' "
        "--config.dataset.data_dir=DATA_DIR --config.duration=10ep --config.evaluation.flip=True "
        "--config.evaluation.shift=2 --config.log_every=7st\n"
    ) in text


def test_what_was_not_run(entries, files):
    text = page.render(entries, files, {})
    assert row(text, "resnet20_cifar10") == [
        *("`resnet20_cifar10`", "resnet20", "not run", "–", "8.75 %<sup>5</sup>", "0", "64,000 steps", "–", "–", "–")
    ]
    assert "**`resnet20_cifar10`**: not run, needs cifar10, prepared as array_record in DATA_DIR.\n" in text
    assert (
        "python experiments/train.py --config=experiments/configs/resnet20_cifar10.py --workdir=runs/resnet20_cifar10 "
        "--config.dataset.data_dir=DATA_DIR\n"
    ) in text


def test_accuracy_of_several_classes_counts_the_published_ones(entries, files):
    figures = {"lenet5_mnist": published.Figure((1.5, 0.25), "somebody, page 3")}
    cells = row(page.render(entries, files, figures), "lenet5_mnist")
    assert cells[3:5] == ["0.95 ± 0.13 % / 0.10 ± 0.00 %", "1.5 % / 0.25 %<sup>1</sup>"]


def test_readme(entries):
    table = page.extract(entries)
    assert table.count("\n") == 3
    assert "resnet20_cifar10-10min" not in table  # less than its config's file asks for
    assert (
        "| `lenet5_mnist` | lenet5, 61,706 parameters | MNIST, 10,000 test images | 0.9905\xa0±\xa00.0013 (n=3) |"
        in table
    )
    text = f"before\n{page.BEGIN}\nold\n{page.END}\nafter\n"
    assert page.into_readme(text, "NEW\n") == f"before\n{page.BEGIN}\n\nNEW\n\n{page.END}\nafter\n"
    assert page.into_readme(page.into_readme(text, "1\n"), "NEW\n") == page.into_readme(text, "NEW\n")


@pytest.mark.parametrize("text", ["no marks\n", f"{page.BEGIN}\n", f"{page.END}\n{page.BEGIN}\n"])
def test_readme_without_a_place(text):
    with pytest.raises(UserError, match=r"README\.md has no line"):
        page.into_readme(text, "table")
