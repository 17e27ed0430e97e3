"""Maps of a set of images, from points in the plane (`embedding.project`): with thumbnails, and with a pointer."""

import base64
import io
import json
import math
from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from PIL import Image
from plotly import graph_objects

from cnn_research.explain import style

_THUMBNAIL = 0.038  # of the map's width
_NAMED = 20  # classes: more have no legend
_MARKERS = ("o", "s", "^", "D", "v", "P", "X")  # after the tenth class colours come again, with another marker
_SYMBOLS = ("circle", "square", "triangle-up", "diamond", "triangle-down", "cross", "x")  # likewise, in plotly
_SPRITE = 40  # pixels: larger images are made smaller


@style.styled
def embedding_map(
    points: np.ndarray, labels: np.ndarray, classes: Sequence[str], images: Sequence[np.ndarray] | None = None
) -> Figure:
    """Points in the plane in the colours of their classes, pictures at as many of them as there is room for.

    Args:
        points: float[N, 2].
        labels: int[N].
        classes: names.
        images: uint8[H, W, 1 or 3] or float in [0, 1] of each point; None for a map without pictures.
    """
    low, high = points.min(axis=0), points.max(axis=0)
    side = max(_THUMBNAIL * (high - low).max(), 1e-9)
    width, height = high - low + 2 * side
    figure = style.figure(9, 9 * min(max(height / width, 0.5), 1.2))
    axes = figure.add_subplot(aspect="equal")
    axes.set_axis_off()
    for label in np.unique(labels):
        here = labels == label
        marker = _MARKERS[label // len(style.PALETTE) % len(_MARKERS)]
        axes.scatter(*points[here].T, s=12, marker=marker, color=style.color(label), label=classes[label], linewidths=0)
    if images is not None:
        for index in _apart(points, 1.15 * side):
            x, y = points[index]
            extent = (x - side / 2, x + side / 2, y - side / 2, y + side / 2)
            style.show_image(axes, np.asarray(images[index]), extent=extent, zorder=3)
            look = {"fill": False, "edgecolor": style.color(labels[index]), "linewidth": 1.4, "zorder": 4}
            axes.add_patch(Rectangle((x - side / 2, y - side / 2), side, side, **look))
    axes.set(xlim=(low[0] - side, high[0] + side), ylim=(low[1] - side, high[1] + side))
    if len(classes) <= _NAMED:
        figure.legend(loc="outside lower center", ncols=min(10, len(classes)), markerscale=2)
    return figure


def _apart(points: np.ndarray, distance: float) -> list[int]:
    """Points of which no two are closer than `distance` along both axes; always the same ones."""
    chosen: list[int] = []
    for index in np.random.default_rng(0).permutation(len(points)):
        if not chosen or np.abs(points[chosen] - points[index]).max(axis=1).min() >= distance:
            chosen.append(int(index))
    return chosen


# The pictures are one sheet, of which a small window shows the one under the pointer, in the corner that is farther
# from it. {plot_id} is plotly's.
_HOVER = """
const plot = document.getElementById("{plot_id}"), sheet = SHEET;
const picture = document.createElement("div");
Object.assign(picture.style, {position: "absolute", top: "8px", pointerEvents: "none", display: "none",
  width: "96px", height: "96px", border: "3px solid", imageRendering: "pixelated", zIndex: 1,
  backgroundImage: `url(${sheet.url})`, backgroundSize: `${96 * sheet.columns}px ${96 * sheet.rows}px`});
plot.style.position = "relative";
plot.appendChild(picture);
plot.on("plotly_hover", event => {
  const point = event.points[0], index = point.customdata, box = plot.getBoundingClientRect();
  const onTheRight = event.event.clientX < box.left + box.width / 2;
  picture.style.left = onTheRight ? "" : "8px";
  picture.style.right = onTheRight ? "8px" : "";
  picture.style.backgroundPosition =
    `${-96 * (index % sheet.columns)}px ${-96 * Math.floor(index / sheet.columns)}px`;
  picture.style.borderColor = point.fullData.marker.color;
  picture.style.display = "block";
});
plot.on("plotly_unhover", () => { picture.style.display = "none"; });
"""


def embedding_html(
    points: np.ndarray,
    labels: np.ndarray,
    classes: Sequence[str],
    images: Sequence[np.ndarray],
    include_plotlyjs: bool | str = False,
) -> str:
    """The map as an element of a page, in which the picture under the pointer is shown.

    Half a kilobyte a point. In a notebook: `IPython.display.HTML(embedding_html(..., include_plotlyjs="cdn"))`.

    Args:
        points: float[N, 2].
        labels: int[N].
        classes: names.
        images: uint8[H, W, 1 or 3] or float in [0, 1] of each point.
        include_plotlyjs: as in plotly's `to_html`: False where the page has plotly.js already, True to put all of it
            in, "cdn" to load it.
    """
    figure = graph_objects.Figure()
    for label in np.unique(labels):
        here = np.flatnonzero(labels == label)
        figure.add_scatter(
            x=points[here, 0].round(3),
            y=points[here, 1].round(3),
            customdata=here,
            mode="markers",
            name=classes[label],
            marker={
                "color": style.color(label),
                "symbol": _SYMBOLS[label // len(style.PALETTE) % len(_SYMBOLS)],
                "size": 6,
            },
            hovertemplate=f"%{{customdata}}: {classes[label]}<extra></extra>",
        )
    figure.update_layout(
        height=560,
        margin={"l": 0, "r": 0, "t": 0, "b": 0},
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        font_color=style.INK,
        legend={"orientation": "h"},
        xaxis={"visible": False},
        yaxis={"visible": False, "scaleanchor": "x"},
    )
    return figure.to_html(
        full_html=False,
        include_plotlyjs=include_plotlyjs,
        post_script=_HOVER.replace("SHEET", json.dumps(_sheet(images))),
        config={"displayModeBar": False, "responsive": True},
    )


def _sheet(images: Sequence[np.ndarray]) -> dict[str, str | int]:
    """All pictures in one, as a data URI, with the number of its columns and rows."""
    side = min(_SPRITE, max(np.shape(images[0])[:2]))
    columns = math.ceil(len(images) ** 0.5)
    rows = math.ceil(len(images) / columns)
    sheet = Image.new("RGB", (columns * side, rows * side))
    for index, image in enumerate(images):
        pixels = np.asarray(image)
        pixels = pixels if pixels.dtype == np.uint8 else np.round(255 * pixels).astype(np.uint8)
        pixels = pixels.reshape(pixels.shape[:2]) if pixels.ndim == 2 or pixels.shape[2] == 1 else pixels
        picture = Image.fromarray(pixels).convert("RGB").resize((side, side))
        sheet.paste(picture, (index % columns * side, index // columns * side))
    buffer = io.BytesIO()
    sheet.save(buffer, "webp", quality=80)
    url = f"data:image/webp;base64,{base64.b64encode(buffer.getvalue()).decode()}"
    return {"url": url, "columns": columns, "rows": rows}
