"""What a chapter defines, without what it measures and shows."""

import ast
from contextlib import suppress
from types import SimpleNamespace

from phantombook.project import find_notebook, find_root


def chapter(number: str, **given) -> SimpleNamespace:
    """Imports, functions and constants of a chapter, executed from its source, with ``given`` beside them."""
    body = ast.parse(find_notebook(find_root(), number).read_text(encoding="utf-8")).body
    kept = [
        node
        for node in body
        if isinstance(node, ast.ImportFrom | ast.Import | ast.FunctionDef)
        or isinstance(node, ast.Assign)
        and getattr(node.targets[0], "id", "").isupper()
    ]
    names = dict(given)
    for node in kept:
        with suppress(NameError):  # a constant that rests on what the chapter measures
            exec(compile(ast.Module([node], []), f"chapter {number}", "exec"), names)
    names |= given
    return SimpleNamespace(**names)
