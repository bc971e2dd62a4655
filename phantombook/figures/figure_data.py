"""The numbers that a figure draws, as a table, so that a page can offer them beside the picture."""

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection, PathCollection, QuadMesh
from matplotlib.colors import to_hex
from matplotlib.container import BarContainer
from matplotlib.figure import Figure

COLUMNS = ["panel", "number", "kind", "series", "x", "y", "value"]


def drawn(figure: Figure) -> pd.DataFrame:
    """Lines, points, bars and cells of a figure.

    Returns:
        One row per point: ``panel`` (its title, or number), ``number`` of what is drawn in it, its ``kind``, ``series``
        (the label in the legend, or the colour), ``x``, ``y``, and ``value`` where a colour stands for a number. Of a
        line that spans its panel, ``x`` or ``y`` runs from 0 to 1.
    """
    rows = []
    for place, axes in enumerate((axes for axes in figure.axes if axes.get_label() != "<colorbar>"), 1):
        panel = axes.get_title() or axes.get_title("left") or f"panel {place}"
        for number, (kind, series, x, y, value) in enumerate(_parts(axes), 1):
            x, y, value = np.broadcast_arrays(np.ravel(x), np.ravel(y), np.ravel(value))
            rows += [(panel, number, kind, series, *point) for point in zip(x, y, value, strict=True)]
    return pd.DataFrame(rows, columns=COLUMNS)


def _parts(axes: Axes):
    """``(kind, series, x, y, value)`` of everything drawn in a panel."""
    for line in axes.lines:
        yield "line", _series(line, to_hex(line.get_color())), *line.get_data(orig=False), np.nan
    for collection in axes.collections:
        values, faces = collection.get_array(), np.asarray(collection.get_facecolor())
        series = _series(collection, to_hex(faces[0]) if values is None and len(faces) else "")
        if isinstance(collection, PathCollection):
            x, y = np.ma.getdata(collection.get_offsets()).T
            yield "points", series, x, y, np.nan if values is None else np.ma.getdata(values)
        elif isinstance(collection, LineCollection):
            for segment in collection.get_segments():
                yield "segment", series, segment[:, 0], segment[:, 1], np.nan
        elif isinstance(collection, QuadMesh) and values is not None:
            yield _cells(axes, np.ma.getdata(values).reshape(np.shape(collection.get_coordinates())[0] - 1, -1))
    for container in axes.containers:
        if isinstance(container, BarContainer):
            x0, y0, x1, y1 = np.reshape([patch.get_bbox().extents for patch in container], (-1, 4)).T
            ends = (x1, (y0 + y1) / 2) if container.orientation == "horizontal" else ((x0 + x1) / 2, y1)
            yield "bars", _series(container, ""), *ends, np.nan
    for image in axes.images:
        yield _cells(axes, np.ma.getdata(np.ma.asarray(image.get_array())))


def _cells(axes: Axes, values: np.ndarray):
    """A heat map: rows and columns by the labels of the ticks where there is one for each."""
    y, x = np.meshgrid(_labels(axes.yaxis, len(values)), _labels(axes.xaxis, values.shape[1]), indexing="ij")
    return "cells", "", x, y, values


def _labels(axis, count: int) -> list:
    labels = [label.get_text() for label in axis.get_ticklabels()]
    return labels if len(labels) == count and all(labels) else list(range(count))


def _series(artist, otherwise: str) -> str:
    label = str(artist.get_label() or "")
    return label if label and not label.startswith("_") else otherwise
