"""The chart of networks: what is published of them, and names that can be read."""

import itertools

import pytest

from cnn_research.explain import zoo
from cnn_research.models import registry


def test_published_facts():
    by_name = {
        network.name: network for network in zoo.published(["resnet50", "lenet5_paper", "resnet20", "googlenet"])
    }
    # He et al. 2016, table 4: 22.85 % top-1 error; torchvision's page: 25,557,032 parameters, 4.09 GFLOPS.
    assert list(by_name) == ["resnet50"]  # of ImageNet alone, and GoogLeNet's top-1 error isn't published
    network = by_name["resnet50"]
    assert network.accuracy == pytest.approx(0.7715)
    assert (network.family, network.gmacs, network.parameters) == ("He et al. 2016", 4.089, 25_557_032)


def test_published_on_another_dataset():
    # Table 6 of the same paper: 8.75 %.
    (network,) = zoo.published(["resnet50", "resnet20"], "CIFAR-10")
    assert (network.name, network.accuracy) == ("resnet20", pytest.approx(0.9125))


@pytest.mark.parametrize("dataset", ["ImageNet", "CIFAR-10"])
def test_names_cover_nothing_and_stay_inside(dataset):
    networks = zoo.published(registry.list_models(), dataset)
    figure = zoo.chart(networks)
    (axes,) = figure.axes
    figure.draw_without_rendering()
    assert sorted(text.get_text() for text in axes.texts) == sorted(network.name for network in networks)
    boxes = [text.get_window_extent() for text in axes.texts]
    assert not any(one.overlaps(other) for one, other in itertools.combinations(boxes, 2))
    assert all(axes.bbox.x0 <= box.x0 and box.x1 <= axes.bbox.x1 and box.y1 <= axes.bbox.y1 for box in boxes)


def test_areas_are_parameters():
    networks = [zoo.Network("a", "x", 0.5, 1.0, 10**6), zoo.Network("b", "y", 0.6, 2.0, 4 * 10**6)]
    figure = zoo.chart(networks)
    small, large = figure.axes[0].collections[0].get_sizes()
    assert large == pytest.approx(4 * small)
    assert figure.axes[0].collections[0].get_offsets().tolist() == [[1.0, 0.5], [2.0, 0.6]]


def test_no_networks():
    with pytest.raises(ValueError, match="no networks"):
        zoo.chart([])
