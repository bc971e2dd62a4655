"""Words of other people on a page: whatever they hold, they are text there, and never markup, code or a formula."""

import html
import re

from pydantic_core import to_json

FORMULA = ("=", "+", "-", "@", "\t")  # what a spreadsheet takes for the beginning of one


def json_in_page(value) -> str:
    """JSON that may stand in a ``<script>``: no text in it can end the script, or begin a comment."""
    return to_json(value, inf_nan_mode="null").decode().replace("<", "\\u003c")


def in_markdown(text: str) -> str:
    """Text for a sentence or a table cell of a page: in one line, HTML shown as it was written."""
    marked = re.sub(r"(\\*)([|`])", r"\1\1\\\2", html.escape(text, quote=False))  # a backslash in front counts twice
    return " ".join(marked.split())


def in_figure(text: str) -> str:
    """Text for a label of matplotlib, which would read what stands between dollars as a formula."""
    return text.replace("$", "\\$")


def csv_of(frame) -> str:
    """A pandas table as CSV; text that a spreadsheet would compute gets an apostrophe in front, numbers are as they are."""
    safe = frame.map(_no_formula).rename(columns=_no_formula)
    return safe.to_csv(index=False, float_format="%.7g")


def _no_formula(value):
    if not isinstance(value, str):
        return value
    line = " ".join(value.splitlines())  # a second line could begin with a formula
    return f"'{line}" if line.startswith(FORMULA) else line
