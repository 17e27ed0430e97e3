import xml.etree.ElementTree

from cnn_research.results import curves, kept


def test_mean_over_seeds_at_common_steps(workdir, files, tmp_path):
    kept.add(workdir(0.99, seed=0), tmp_path, files)
    rows = [{"step": 20, "epoch": 12.0, "split": "test", "accuracy": 0.97, "loss": 0.04, "top5": 0.999}]
    rows[0]["num_examples"] = 10_000
    kept.add(workdir(0.97, seed=1, rows=rows), tmp_path, files)
    short = {"duration": "1ep"}
    kept.add(workdir(0.9, fields=short), tmp_path, files, name="lenet5_mnist-1ep")
    found = curves.curves(kept.read_all(tmp_path, files))
    assert found == {"MNIST": {"lenet5_mnist": [(12.0, 0.02)]}}


def test_picture_knows_its_points():
    found = {"MNIST": {"a": [(1.0, 0.1), (2.0, 0.0), (3.0, 0.05)]}, "CIFAR-10": {"b": [(1.0, 0.5), (2.0, 0.4)]}}
    text = curves.svg(found)
    assert curves.digest_of(text) == curves.digest(found)
    assert curves.digest({**found, "MNIST": {"a": [(1.0, 0.1)]}}) != curves.digest(found)
    assert curves.digest_of("<svg/>") == ""
    words = " ".join(xml.etree.ElementTree.fromstring(text).itertext())
    assert "MNIST: error" in words and "CIFAR-10: error" in words and "currentColor" not in text
    assert len(text) < 60_000
