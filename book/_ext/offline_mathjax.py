"""Serve MathJax from the pip package sphinx-mathjax-offline, so that pages with formulas request nothing from outside.

Used as an extension, that package would copy 31 MB; pages need these parts.
"""

import shutil
from importlib.metadata import files
from pathlib import Path

PARTS = (
    "startup.js",
    "core.js",
    "input/tex-base.js",
    "input/tex/extensions/ams.js",
    "output/chtml.js",
    "output/chtml/fonts/",
    "a11y/assistive-mml.js",
)
WANTED = tuple(f"static/mathjax/{part}" for part in PARTS)


def copy(app, exception):
    if exception or app.builder.format != "html":
        return
    for file in files("sphinx-mathjax-offline"):
        inside = "/".join(file.parts[1:])
        if inside.startswith(WANTED):
            target = Path(app.outdir) / "_static" / Path(*file.parts[2:])
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file.locate(), target)


def setup(app):
    app.connect("build-finished", copy)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
