"""The networks of the zoo side by side: what accuracy costs in multiply-adds and parameters."""

import dataclasses
import itertools
from collections.abc import Iterable, Sequence

import numpy as np
from matplotlib import ticker
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.transforms import Bbox

from cnn_research.explain import style
from cnn_research.models import registry

_LARGEST = 30  # points: the diameter of the network with the most parameters
# Where a name may stand, from the middle of its disc: angles in degrees, the preferred first.
_ANGLES = (0, 180, 90, 270, 30, 330, 150, 210, 60, 300, 120, 240)


@dataclasses.dataclass(frozen=True)
class Network:
    """A disc of the chart.

    Attributes:
        name: beside the disc.
        family: has a colour; networks of one paper, say.
        accuracy: 0 to 1.
        gmacs: 10^9 multiply-adds for one image.
        parameters: the disc's area.
    """

    name: str
    family: str
    accuracy: float
    gmacs: float
    parameters: int


def published(names: Iterable[str], dataset: str = "ImageNet") -> list[Network]:
    """Those of the named networks of the registry whose top-1 error on the dataset is published, with that accuracy.

    Protocols differ (crops, augmentation, epochs): see `registry.model_facts(name).source`.

    Raises:
        ValueError: no network has one of the names.
    """
    facts = {name: registry.model_facts(name) for name in names}
    return [
        Network(name, fact.paper.split(",")[0], 1 - fact.error[0] / 100, fact.gmacs, fact.parameters)
        for name, fact in facts.items()
        if fact.dataset == dataset and fact.error[0] is not None
    ]


@style.styled
def chart(networks: Sequence[Network], title: str = "Accuracy and what it costs") -> Figure:
    """Accuracy over multiply-adds, discs as large as the networks have parameters, a colour for each family.

    Args:
        networks: of one dataset.
        title: of the figure.

    Raises:
        ValueError: there are no networks.
    """
    if not networks:
        raise ValueError("there are no networks to chart")
    figure = style.figure(8, 5.4)
    axes = figure.add_subplot()
    families = list(dict.fromkeys(network.family for network in networks))
    colors = [style.color(families.index(network.family)) for network in networks]
    most = max(network.parameters for network in networks)
    diameters = [_LARGEST * (network.parameters / most) ** 0.5 for network in networks]
    macs = [network.gmacs for network in networks]
    accuracies = [network.accuracy for network in networks]
    axes.scatter(macs, accuracies, s=np.square(diameters), c=colors, alpha=0.45, linewidths=0)
    axes.scatter(macs, accuracies, s=6, c=colors)
    axes.set_xscale("log")
    axes.margins(0.14)
    axes.xaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_locator(ticker.NullLocator())
    style.percent_axis(axes.yaxis)
    axes.grid(True)
    axes.set_axisbelow(True)
    axes.set(xlabel="multiply-adds for one image, 10⁹ (FLOPs: twice as many)", ylabel="accuracy")
    axes.set_title(f"{title}; area: parameters, up to {most / 1e6:.3g} M")
    handles = [Line2D([], [], marker="o", linestyle="", color=style.color(i)) for i in range(len(families))]
    figure.legend(handles, families, loc="outside lower center", ncols=min(4, len(families)))
    _name(axes, networks, diameters)
    return figure


def _name(axes: Axes, networks: Sequence[Network], diameters: Sequence[float]) -> None:
    """Writes each name beside its disc, at the place round about where it covers least of discs and other names."""
    figure = axes.figure
    figure.draw_without_rendering()
    pixels = figure.dpi / 72
    centres = axes.transData.transform([(network.gmacs, network.accuracy) for network in networks])
    # A disc's inner square stands for it.
    halves = 0.35 * pixels * np.array(diameters)[:, None]
    discs = [Bbox(corners) for corners in np.stack([centres - halves, centres + halves], axis=1)]
    names = []
    # The largest last: they are found by their discs, while small ones have nothing but a name close by.
    for index in np.argsort(diameters):
        network = networks[index]
        look = {"fontsize": 7, "ha": "center", "va": "center"}
        text = axes.annotate(network.name, (network.gmacs, network.accuracy), (0, 0), "data", "offset points", **look)
        size = np.array(text.get_window_extent().size) / pixels
        places = []
        for distance, angle in itertools.product((2, 9), np.radians(_ANGLES)):
            direction = np.array([np.cos(angle), np.sin(angle)])
            # From the disc's edge to the nearest side or corner of the text.
            offset = direction * (diameters[index] / 2 + distance) + np.round(direction) * size / 2
            corners = centres[index] + pixels * (offset + np.array([-size, size]) / 2)
            box = Bbox(corners).padded(pixels)
            outside = box.x0 < axes.bbox.x0 or box.x1 > axes.bbox.x1 or box.y1 > axes.bbox.y1
            covered = 3 * _overlap(box, names) + _overlap(box, discs) + 1e9 * outside
            places.append((covered, len(places), offset, box))
        _, _, offset, box = min(places)
        text.set_position(offset)
        names.append(box)


def _overlap(box: Bbox, others: Iterable[Bbox]) -> float:
    """The area, in square pixels, that a box shares with others."""
    common = [Bbox.intersection(box, other) for other in others]
    return sum(part.width * part.height for part in common if part)
