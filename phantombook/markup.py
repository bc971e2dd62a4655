"""How sentences, figures and tables are written into an executed notebook, for the book and for Jupyter."""

import base64
import html
import io
import math
import os
import re
import string

from phantombook.figures.escaping import csv_of, in_markdown
from phantombook.figures.stacked import in_one_column
from phantombook.parameters import FITTING


class _Words(string.Formatter):
    """``str.format``, but nan and inf are written in words, per cent after a space, and no text is taken for HTML."""

    def format_field(self, value, spec: str) -> str:
        if isinstance(value, float) and not math.isfinite(value):
            return "undefined" if math.isnan(value) else f"{'−' if value < 0 else ''}∞"
        text = format(in_markdown(value) if isinstance(value, str) else value, spec)
        return f"{text[:-1]} %" if spec.endswith("%") else text


def fill(template: str, *rows) -> str:
    """Put values into ``{name:.2f}``; an undefined number (nan) reads "undefined". Literal braces are doubled: ``g_{{ck}}``.

    A value that is text is shown as it was written, whatever it holds; markup belongs in the template. Without values, the
    template as it is. ``rows``: mappings, rows of a pandas table, or None.
    """
    values = {name: value for row in rows if row is not None for name, value in row.items()}
    return _Words().vformat(template, (), values) if values else template


def in_words(number: int) -> str:
    """A whole number as a sentence writes it: up to twelve as a word."""
    words = "none one two three four five six seven eight nine ten eleven twelve".split()  # noqa: SIM905
    return words[number] if number < len(words) else str(number)


SYMBOLS = {  # as the plain text of the ledger writes them, the longer ones first
    "t* ~ (eta/eta_c - 1)^-nu for eta/eta_c": r"$t^* \sim (\eta/\eta_c - 1)^{-\nu}$ for $\eta/\eta_c$",
    "rho times (Pi_c - Pi_k)": r"$\rho$ times $(\Pi_c - \Pi_k)$",
    "sqrt(1 - g_ck^2)": r"$\sqrt{1 - g_{ck}^2}$",
    "exponent nu": r"exponent $\nu$",
    "dDelta/ds": r"$d\Delta/ds$",
    "eta t*": r"$\eta t^*$",
    "|Delta_0| / (T v_0)": r"$|\Delta_0| / (T v_0)$",
    "g_ck": "$g_{ck}$",
    "N_c": "$N_c$",
    "log B": r"$\log B$",
}


def with_symbols(text: str) -> str:
    """A text of the ledger with its symbols as formulas."""
    for plain, formula in SYMBOLS.items():
        text = text.replace(plain, formula)
    return text


PLACES = re.compile(r' (?:d|x|y)="[^"]*"')  # of an SVG: coordinates


def figure(drawing, name: str, caption: str, alt: str) -> dict[str, str]:
    """A matplotlib figure, by MIME type: MyST, from which the book numbers it, and HTML, which Jupyter shows.

    The pictures are part of the text, so that a notebook that is passed on is complete. A page has two, the second for
    phones: the same panels one below the other. The drawing is left in that shape.
    """
    caption, alt = (" ".join(text.split()) for text in (caption, alt))
    wide = _source(drawing)
    in_one_column(drawing)
    narrow = f"```{{image}} {_source(drawing)}\n:alt: {alt}\n:class: only-narrow\n```"
    options = f":name: {name}\n:alt: {alt}\n:class: only-wide\n:width: 100%"
    return {
        "text/markdown": f"{narrow}\n\n::::{{figure}} {wide}\n{options}\n\n{caption}\n::::",
        "text/html": f'<figure><img src="{wide}" alt="{html.escape(alt)}"><figcaption>{caption}</figcaption></figure>',
        "text/plain": caption,
    }


def _source(drawing) -> str:
    """A drawing as the address of a picture."""
    image = io.StringIO()
    drawing.savefig(image, format="svg", metadata={"Date": None})
    # matplotlib writes millionths of a point, and indents: a hundredth cannot be seen
    text = PLACES.sub(lambda places: re.sub(r"(\.\d\d)\d+", r"\1", places[0]), image.getvalue())
    text = re.sub(r">\s+<", "><", text)
    return f"data:image/svg+xml;base64,{base64.b64encode(text.encode()).decode()}"


def download(name: str, frame) -> str:
    """A link that holds a pandas table itself, so that it works offline and in a notebook that is passed on."""
    text = csv_of(frame).encode()
    address = f"data:text/csv;charset=utf-8;base64,{base64.b64encode(text).decode()}"
    return f'<a download="{name}" href="{address}">{name}</a> ({len(text) / 1000:.0f} kB)'


def markdown_table(frame, digits: int = 3) -> str:
    """A pandas table as Markdown, floats with ``digits`` decimals, undefined ones as a dash."""
    cells = frame.map(lambda value: _cell(value, digits))
    align = ["right" if column.dtype.kind in "iuf" else "left" for _, column in frame.items()]
    return cells.to_markdown(index=False, disable_numparse=True, colalign=align)


def _cell(value, digits: int) -> str:
    if not isinstance(value, float):
        return in_markdown(str(value))
    return "–" if value != value else f"{value:.{digits}f}"


def typed(value) -> str:
    """A parameter as one would type it; paths relative to the working folder, so no page names a machine's folders."""
    if isinstance(value, str):
        prefix = FITTING if value.startswith(FITTING) else ""
        path = value.removeprefix(prefix)
        value = prefix + os.path.relpath(path) if os.path.isabs(path) else value
    if isinstance(value, list):
        return f"[{', '.join(typed(item) for item in value)}]"
    return str(value)


def code(text: str) -> str:
    return f"<code>{html.escape(text)}</code>" if text else ""
