"""What surrounds the text of a page: its description, the ways out in the header, names that a screen reader can use."""

import itertools
import re
import shutil
import subprocess
from pathlib import Path

from docutils import nodes

PAPER = "https://arxiv.org/abs/2606.07559"
DESCRIPTION_LENGTH = 200
# A fold is named by what it shows, a list holds items, and what scrolls can be reached with the keyboard.
BETTER = {
    ' aria-label="Toggle hidden content"': "",
    ' role="doc-biblioentry"': ' role="listitem"',
    ' class="dataframe"': ' class="dataframe" tabindex="0"',
}
BRANCH = re.compile(r">([^<>]+)</a>(<details[^>]*>)<summary>")  # of the list of pages in the sidebar
CARDS = re.compile(r'<div class="cards\b.*?</table>', re.DOTALL)


def frame(app, page, template, context, doctree):
    """Add to the context of a page what the templates show around it."""
    for old, new in BETTER.items():
        context["body"] = context.get("body", "").replace(old, new)
    context["body"] = CARDS.sub(_named_cells, context["body"])
    context["description"] = _description(doctree)
    context["ways_out"] = [
        (title, address, download)
        for title, address, download in (
            ("Paper (arXiv)", PAPER, False),
            ("Repository", app.config.repository, False),
            ("How to cite", context["pathto"]("book/bibliography").rstrip("#") + "#how-to-cite", False),
            ("Source of this notebook", _source(app, page, context), True),
            ("This notebook, executed", _executed(page, context), True),
        )
        if address
    ]


def _description(doctree) -> str:
    """The beginning of a page's first paragraph, to whole words."""
    paragraph = next(iter(doctree.findall(nodes.paragraph)), None) if doctree else None
    text = re.sub(r"\s+", " ", paragraph.astext()).strip() if paragraph else ""
    return text if len(text) <= DESCRIPTION_LENGTH else text[:DESCRIPTION_LENGTH].rsplit(" ", 1)[0] + " …"


def name_branches(app, page, template, context, doctree):
    """In the list of pages, the button that opens a branch says whose pages it opens."""
    listed = context["generate_toctree_html"]
    named = r'>\1</a>\2<summary aria-label="Pages of \1">'
    context["generate_toctree_html"] = lambda **options: BRANCH.sub(named, str(listed(**options)))


def _named_cells(found) -> str:
    """A table whose cells carry the names of their columns, which a narrow screen shows beside them."""
    names = [re.sub("<[^>]+>", "", name) for name in re.findall(r"<th\b[^>]*>(.*?)</th>", found[0], re.DOTALL)]
    numbers = itertools.count()
    return re.sub("<td", lambda _: f'<td data-name="{names[next(numbers) % len(names)]}"', found[0])


def _source(app, page: str, context) -> str:
    """A copy of the notebook as it is edited, beside the pages."""
    source = Path(app.confdir) / "notebooks" / f"{Path(page).name}.py"
    if "/generated/" not in page or not source.is_file():
        return ""
    target = Path(app.outdir) / "_sources" / "notebooks" / source.name
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)
    return context["pathto"](f"_sources/notebooks/{source.name}", 1)


def _executed(page: str, context) -> str:
    return context["pathto"](f"_sources/{page}.ipynb", 1) if "/generated/" in page else ""


def _repository(root: str) -> str:
    """The address of the repository these pages are built in, as its remote ``origin`` says; empty without one."""
    command = ["git", "-C", root, "remote", "get-url", "origin"]
    try:
        found = subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
    except OSError:  # no git here
        return ""
    address = re.sub(r"^(?:ssh://)?git@([^:/]+)[:/]", r"https://\1/", found).removesuffix(".git")
    return address if address.startswith("https://") else ""


def find_repository(app, config):
    config.repository = _repository(app.confdir)


def setup(app):
    app.add_config_value("repository", "", "html")
    app.connect("config-inited", find_repository)
    app.connect("html-page-context", frame)
    app.connect("html-page-context", name_branches, priority=900)  # after the theme has put its list there
    return {"parallel_read_safe": True, "parallel_write_safe": True}
