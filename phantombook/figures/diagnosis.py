"""The figure of one diagnosis."""

import math
import os
from pathlib import Path

import matplotlib.pyplot as plt
from matplotlib.backend_bases import FigureCanvasBase
from matplotlib.figure import Figure

from phantombook.figures import palette, style
from phantombook.figures.escaping import in_figure
from phantomlib.diagnosis import Diagnosis
from phantomlib.errors import ParameterError, shown
from phantomlib.files import replacing


def diagnosis_figure(diagnosis: Diagnosis, measured: float | None = None) -> Figure:
    """Left: where the probability is, and the parts of Φ. Right: learning rates, predicted and measured (None: it was not)."""
    d = diagnosis
    fig, (left, right) = plt.subplots(1, 2, figsize=(style.WIDTH, 2.8), layout="constrained", width_ratios=(2, 3))
    names = [f"“{in_figure(d.correct)}”", f"“{in_figure(d.competitor)}”", "all others", "$S$", "$D$", r"$\Phi$"]
    values = [d.p_correct, d.p_competitor, d.bulk_mass, d.signal, d.drag, d.phi]
    colours = [palette.CORRECT, palette.COMPETITOR, palette.REFERENCE, palette.SIGNAL, palette.DRAG, palette.PHI]
    left.barh(names, values, color=colours)
    left.axvline(0, color="black", linewidth=0.6)
    left.invert_yaxis()
    left.set(title="Before training", xlabel="probability; order parameter")
    right.set(xscale="log", yticks=[], ylim=(0, 1), xlabel=f"learning rate of {d.optimizer}", title="Learning rates")
    if math.isfinite(d.critical.rate):
        marks = [d.critical.rate] + [x for x in (d.learning_rate, measured) if x and math.isfinite(x)]
        right.set_xlim(min(marks) / 4, max(marks) * 4)
        style.log_ticks(right.xaxis)
        right.axvspan(d.critical.low, d.critical.high, color="#DDDDDD")
        right.axvline(d.critical.rate, color=palette.REFERENCE)
        low, high = right.get_xlim()
        right.text(low * 1.1, 0.05, "never preferred", color=palette.COMPETITOR, fontsize="small")
        right.text(high / 1.1, 0.05, "overtakes", color=palette.CORRECT, fontsize="small", ha="right")
        style.label_line(right, d.critical.rate, 0.88, "predicted critical", palette.REFERENCE)
        if d.learning_rate is not None:
            right.plot(d.learning_rate, 0.3, "o", color=palette.PHI)
            style.label_line(right, d.learning_rate, 0.3, " yours", palette.PHI)
        if measured is not None and math.isfinite(measured):
            right.plot(measured, 0.6, "D", color=palette.SIGNAL)
            style.label_line(right, measured, 0.6, " measured critical", palette.SIGNAL)
    return fig


def check_plot(path: Path) -> None:
    """Raise ParameterError unless a figure can be written to ``path``."""
    if path.suffix[1:].lower() not in FigureCanvasBase.get_supported_filetypes():
        raise ParameterError(f"{shown(str(path))} does not name a kind of figure; end it with .png, .svg or .pdf.")
    folder = path.absolute().parent
    if os.path.isdir(path) or not os.path.isdir(folder) or not os.access(folder, os.W_OK):  # which cope with any name
        raise ParameterError(f"{shown(str(path))} cannot be written; choose a file in a folder that exists.")


def write_plot(path: Path, diagnosis: Diagnosis, measured: float | None = None) -> None:
    """Write the figure in one move."""
    plt.switch_backend("Agg")  # no window
    style.use_style()
    try:
        with replacing(path) as fresh:
            diagnosis_figure(diagnosis, measured).savefig(fresh, format=path.suffix.removeprefix("."), dpi=200)
    except OSError as error:
        raise ParameterError(f"{shown(str(path))} could not be written ({error.strerror}). Choose another.") from None
