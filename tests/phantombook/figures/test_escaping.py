"""What stands on a page is what was written, whatever was written."""

import html
import io
import json
import re

import numpy as np
import pandas as pd
from hypothesis import given
from hypothesis import strategies as st

from phantombook.figures.escaping import csv_of, in_figure, in_markdown, json_in_page


@given(st.text() | st.sampled_from(["</script>", "<!--<script>", "]]>", "\u2028", "é🙂", "__proto__"]))
def test_any_text_in_json_is_the_same_value_and_no_markup(text):
    written = json_in_page({text: [text, 1.5, None]})
    assert "<" not in written and json.loads(written) == {text: [text, 1.5, None]}


def half(found):
    """What Markdown makes of backslashes before a mark: every second one."""
    assert len(found[1]) % 2 == 1  # the mark itself is escaped
    return "\\" * (len(found[1]) // 2) + found[2]


@given(st.text() | st.text("\\\\|`a <"))
def test_markdown_holds_no_markup_and_one_line(text):
    written = in_markdown(text)
    assert "<" not in written and ">" not in written and len(written.splitlines()) <= 1
    assert html.unescape(re.sub(r"(\\+)([|`])", half, written)).split() == text.split()


def test_a_figure_reads_no_formula():
    assert in_figure("$x$") == r"\$x\$"


def test_downloads_hold_no_formula_and_numbers_as_they_are():
    texts = ["=HYPERLINK(1)", "+1", "-1", "@x", "\tx", "a\r=1", "plain", "a=b"]
    frame = pd.DataFrame({"=column": texts, "number": np.linspace(-2.5, 1, 8), "whole": np.arange(8) - 4})
    written = csv_of(frame)
    back = pd.read_csv(io.StringIO(written))
    assert list(back.columns) == ["'=column", "number", "whole"]
    assert back["'=column"].tolist() == [*[f"'{t}" for t in texts[:5]], "a =1", "plain", "a=b"]
    np.testing.assert_allclose(back.number, frame.number)
    assert back.whole.tolist() == frame.whole.tolist()
    assert not any(line.startswith(("=", "+", "@", "-")) for line in written.splitlines())
