"""What a chapter defines for itself, to be tested like a module."""

import ast
from types import SimpleNamespace

from phantombook.project import find_notebook, find_root


def chapter(number: str, **given) -> SimpleNamespace:
    """Imports and functions of a chapter, executed from its source, and what they find there of the chapter's names."""
    body = ast.parse(find_notebook(find_root(), number).read_text(encoding="utf-8")).body
    kept = [node for node in body if isinstance(node, ast.ImportFrom | ast.Import | ast.FunctionDef)]
    names: dict = {}
    exec(compile(ast.Module(kept, []), f"chapter {number}", "exec"), names)
    names |= given  # the functions look their names up in this very dictionary
    return SimpleNamespace(**names)
