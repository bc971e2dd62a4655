"""One interactive figure: choose an architecture, a context, a method and a learning rate, and see everything move.

The page holds the numbers and plotly's own script, so nothing is fetched when it is read.
"""

import json
import re
from importlib import resources

import numpy as np
import plotly.graph_objects as go
import xarray as xr
from plotly.offline import get_plotlyjs
from plotly.subplots import make_subplots

from phantombook.figures import palette
from phantombook.figures.escaping import json_in_page

SHOWN = {  # variable -> (row of the figure, label, colour)
    "cross_entropy": (1, "cross-entropy", palette.LOSS),
    "logit_gap": (2, "logit gap Δ", palette.CORRECT),
    "signal": (3, "signal S", palette.SIGNAL),
    "drag": (3, "drag D", palette.DRAG),
    "phi": (3, "Φ = S + D", palette.PHI),
}
AXES = ("cross-entropy (nat)", "logit gap (nat)", "order parameter")
DIGITS = 4  # significant digits of what a page holds


def page(runs: dict[str, dict[str, xr.Dataset]], multiples: list[float]) -> str:
    """The explorer as HTML.

    Args:
        runs: by model and by method, datasets of the store whose rates are ``multiples`` of each context's critical one.
        multiples: their learning rates in units of the critical one of full fine-tuning.
    """
    data = {
        "multiples": multiples,
        "series": list(SHOWN),
        "runs": {
            model: {method: _contexts(ds) for method, ds in by_method.items()} for model, by_method in runs.items()
        },
    }
    figure = _figure(next(iter(next(iter(runs.values())).values())))
    template = resources.files("phantombook.figures").joinpath("explorer.html").read_text(encoding="utf-8")
    parts = {"DATA": json_in_page(data), "FIGURE": json_in_page(json.loads(figure.to_json())), "PLOTLY": get_plotlyjs()}
    return re.sub(r"/\*(DATA|FIGURE|PLOTLY)\*/", lambda marker: parts[marker[1]], template)


def _contexts(ds: xr.Dataset) -> dict:
    """Words, learning rates and the series (rate, step) of every context."""
    found = {}
    for name in ds.context.values:
        one = ds.sel(context=name).isel(seed=0).transpose("rate", "step", ...)
        found[str(name)] = {
            "words": [str(one.correct.values), str(one.competitor.values)],
            "rates": _short(one.learning_rate.values),
            "series": [[_short(row) for row in one[variable].values] for variable in SHOWN],
        }
    return found


def _short(values) -> list[float | None]:
    return [float(f"{v:.{DIGITS}g}") if np.isfinite(v) else None for v in np.asarray(values, dtype=float)]


def _figure(ds: xr.Dataset) -> go.Figure:
    """Empty curves in three panels over a common step axis; the page fills them."""
    figure = make_subplots(rows=3, cols=1, shared_xaxes=True, vertical_spacing=0.05, row_heights=[0.26, 0.3, 0.44])
    for row, label, colour in SHOWN.values():
        dash = "dash" if label.startswith("Φ") else "solid"
        line = {"color": colour, "width": 2.2, "dash": dash}
        figure.add_scatter(x=ds.step.values.tolist(), y=[], name=label, line=line, mode="lines", row=row, col=1)
    for row, title in enumerate(AXES, 1):
        figure.update_yaxes(title_text=title, row=row, col=1)
    for row in (2, 3):
        figure.add_hline(y=0, line={"color": palette.REFERENCE, "width": 1}, row=row, col=1)
    # room below the axis, or the lowest label of the vertical axis runs into the first of the horizontal one
    figure.update_xaxes(title_text="step", ticks="outside", ticklen=8, tickcolor="rgba(0,0,0,0)", row=3, col=1)
    figure.update_layout(
        template="none",
        height=640,
        margin={"l": 62, "r": 12, "t": 36, "b": 44},
        hovermode="x unified",
        legend={"orientation": "h", "y": 1.02, "yanchor": "bottom"},
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
    )
    return figure
