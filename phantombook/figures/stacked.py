"""The same figure for a phone: its panels one below the other, its letters as large as the text around them."""

import string
import textwrap
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import AutoLocator, MaxNLocator

NARROW = 3.5  # inches: at the width of a phone, 9 points become 12 pixels
LETTERS = 44  # of a title or label, on one line of that width
HEIGHTS = (1.7, 2.5)  # inches, of one panel


def letter_panels(figure: Figure) -> None:
    """Write (a), (b), ... before the titles of the panels in reading order, once.

    A phone shows the panels one below the other, so a caption cannot call one of them "left".
    """
    for axes, letter in zip(_panels(figure), string.ascii_lowercase, strict=False):
        if not (title := axes.get_title()).startswith(f"({letter})"):
            axes.set_title(f"({letter}) {title}".rstrip())


def in_one_column(figure: Figure) -> None:
    """Rearrange a figure in place: one column of panels, two if it had three or more of panels that share their axes.

    Labels that a neighbour carried are written at each panel, long ones in two lines, and a legend above or below the
    panels gets as many columns as fit.
    """
    panels = _panels(figure)
    if not panels:
        return
    engine = ConstrainedLayoutEngine(h_pad=0.09)  # inches: a title keeps its distance from the panel above
    bars = any(axes.get_label() == "<colorbar>" for axes in figure.axes)
    if isinstance(figure.get_layout_engine(), ConstrainedLayoutEngine) or not bars:  # else it would refuse
        figure.set_layout_engine(engine)
    specs: list[Any] = [axes.get_subplotspec() for axes in panels]
    rows, before = specs[0].get_gridspec().nrows, specs[0].get_gridspec().ncols
    columns = 2 if before > 2 and all(panels[0].get_shared_y_axes().joined(panels[0], other) for other in panels) else 1
    places = {(spec.rowspan.start, spec.colspan.start): axes for axes, spec in zip(panels, specs, strict=True)}
    labels = {axes: _labels(places, place) for place, axes in places.items()}
    lines = -(-len(panels) // columns)
    if before > 1:
        grid = figure.add_gridspec(lines, columns)
        for number, axes in enumerate(panels):
            axes.set_subplotspec(grid[divmod(number, columns)])
            _label(axes, number, panels, columns, labels[axes])
    height = min(max((figure.get_figheight() - 0.4) / rows, HEIGHTS[0]), HEIGHTS[1]) if before > 1 else 0
    figure.set_size_inches(NARROW, height * lines + 0.5 if height else figure.get_figheight())
    for legend in figure.legends[:]:
        _narrower(figure, legend)
    for axis in (axes.xaxis for axes in panels):
        locator: Any = axis.get_major_locator()
        if columns > 1 and type(locator) in (MaxNLocator, AutoLocator):
            locator.set_params(nbins=4)
    for text in (*(axes.title for axes in panels), *(axes.xaxis.label for axes in panels)):
        text.set_text(_wrapped(text.get_text(), LETTERS // columns))
    if along := figure.get_supxlabel():
        figure.supxlabel(_wrapped(along, LETTERS // columns), fontsize="medium")


def _panels(figure: Figure) -> list[Axes]:
    """The panels in reading order; a colour bar is none."""
    return [axes for axes in figure.axes if axes.get_subplotspec()]


def _labels(places: dict, place: tuple[int, int]) -> tuple[str, str]:
    """What stands at the axes of a panel, or at those of the neighbour from which a reader had it: below, and to the left."""
    row, column = place
    here, wide = places[place], max(c for _, c in places) > 1  # where rows are named once, at their first panel
    x, y = here.get_shared_x_axes(), here.get_shared_y_axes()
    below = [axes.get_xlabel() for (r, c), axes in sorted(places.items()) if c == column and r >= row]
    left = [
        axes.get_ylabel()
        for (r, c), axes in sorted(places.items(), reverse=True)
        if r == row and c <= column and (wide or axes is here or y.joined(here, axes))
    ]
    along = [axes.get_xlabel() for axes in places.values() if x.joined(here, axes)]
    return next(filter(None, [*below, *along]), ""), next(filter(None, left), "")


def _label(axes: Axes, number: int, panels: list[Axes], columns: int, labels: tuple[str, str]) -> None:
    """Tick labels and labels of one panel in its new place, left out where the panel below or beside it has the same."""
    below = panels[number + columns : number + columns + 1]
    shares_x = bool(below) and axes.get_shared_x_axes().joined(axes, below[0])
    shares_y = number % columns > 0 and axes.get_shared_y_axes().joined(axes, panels[number - 1])
    axes.xaxis.set_tick_params(which="both", labelbottom=not shares_x)
    axes.yaxis.set_tick_params(which="both", labelleft=not shares_y)
    axes.set_xlabel("" if shares_x else labels[0])
    axes.set_ylabel("" if shares_y else labels[1])


def _narrower(figure: Figure, legend) -> None:
    """The same legend in as many columns as fit."""
    handles, texts = legend.legend_handles, [text.get_text() for text in legend.get_texts()]
    columns = max(1, min(len(texts), LETTERS // (max(map(len, texts), default=0) + 9)))
    place: Any = f"outside {legend._outside_loc or 'upper'} center"
    title, size = legend.get_title(), legend.get_texts()[0].get_fontsize() if texts else None
    options: dict[str, Any] = {"fontsize": size, "title_fontsize": title.get_fontsize()}
    legend.remove()
    named = _wrapped(title.get_text(), LETTERS) or None
    figure.legend(handles, texts, loc=place, ncols=columns, title=named, **options)


def _wrapped(text: str, width: int) -> str:
    """A text on lines of that many letters; a formula, whose letters cannot be counted, stays as it is."""
    return text if "$" in text or "\n" in text else "\n".join(textwrap.wrap(text, width, break_long_words=False))
