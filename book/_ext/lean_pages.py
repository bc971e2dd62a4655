"""A page loads what it shows: figures and data as files of their own, fetched when reached; icons, styles, MathJax in use.

In an executed notebook figures and data are part of the text, so that the notebook is complete; a page would carry them
whether they are looked at or not.
"""

import base64
import json
import re
from pathlib import Path
from xml.etree import ElementTree

DATA = re.compile(r'(<a download="([^"]+)" href=")data:text/[a-z]+;charset=utf-8;base64,([^"]*)"')
PICTURE = re.compile(r'<img (?=[^>]*src="[^"]*_images/([^"]+\.svg)")')
PLAIN = re.compile(r'<span class="[npw]">([^<]*)</span>')  # of code: names, brackets, blanks have the colour of text
ICONS = Path("_static/scripts/fontawesome.js")  # of the theme: 2,000 icons, and as many styles
ICON = re.compile(
    r'(?P<name>"[\w-]+"|\b\w+):\[(?P<width>\d+),(?P<height>\d+),\[(?P<others>[^\]]*)\],"[0-9a-f]+","(?P<path>[^"]*)"\]'
)
RULE = re.compile(
    r"((?:/\*.*?\*/|[^{}/]|/(?!\*))+)\{([^{}]*)\}", re.DOTALL
)  # of a style sheet, comments before it included
COMMENT, CLASS = re.compile(r"/\*.*?\*/", re.DOTALL), re.compile(r"\.([A-Za-z_-][\w-]*)")
DRAW = """for (const place of document.querySelectorAll(":is(i, span)[class*=' fa-']")) {
  const name = Object.keys(ICONS).find(name => place.classList.contains("fa-" + name)), picture = document.createElement("template");
  if (!name) continue;
  const [width, height, path] = ICONS[name];
  picture.innerHTML = `<svg viewBox="0 0 ${width} ${height}"><path fill="currentColor" d="${path}"/></svg>`;
  const svg = picture.content.firstChild;
  for (const {name, value} of place.attributes) svg.setAttribute(name, value);
  svg.classList.add("svg-inline--fa");
  svg.setAttribute("aria-hidden", "true");
  place.replaceWith(svg);
}
"""


def pictures_as_files(app):
    """Let Sphinx write what stands in the text as ``data:`` into files."""
    app.builder.supported_data_uri_images = False


def lean(app, page, template, context, doctree):
    """Data to download as files; pictures with their shape, so that nothing moves when they come."""
    sources = {name: Path(app.srcdir, source) for source, name in app.builder.images.items()}

    def with_file(found):
        target = Path(app.outdir, "_downloads", "data", found[2])
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(base64.b64decode(found[3]))
        return f'{found[1]}{context["pathto"](f"_downloads/data/{found[2]}", 1)}"'

    def with_shape(found):
        box = ElementTree.parse(sources[found[1]]).getroot().get("viewBox", "") if found[1] in sources else ""
        shape = 'width="{2}" height="{3}" '.format(*box.split()) if box else ""
        return f'<img loading="lazy" {shape}'

    body = PICTURE.sub(with_shape, DATA.sub(with_file, context.get("body", "")))
    context["body"] = PLAIN.sub(r"\1", body)
    if 'class="math ' not in context["body"]:
        scripts = context["script_files"]
        context["script_files"] = [
            script for script in scripts if "mathjax" not in str(getattr(script, "filename", ""))
        ]


def prune(app, exception):
    """Leave of icons and styles what the words of some page or script can name."""
    folder = Path(app.outdir, "_static")
    if exception or app.builder.format != "html":
        return
    scripts = [path for path in folder.rglob("*.js") if "mathjax" not in path.parts and path.name != ICONS.name]
    texts = [path.read_text(encoding="utf-8") for path in (*Path(app.outdir).rglob("*.html"), *scripts)]
    words = set().union(*(re.findall(r"[\w-]+", text) for text in (*texts, DRAW)))
    if (icons := Path(app.outdir, ICONS)).is_file():
        icons.write_text(icons_in_use(icons.read_text(encoding="utf-8"), words), encoding="utf-8")
    for sheet in folder.rglob("*.css"):
        sheet.write_text(styles_in_use(sheet.read_text(encoding="utf-8"), words), encoding="utf-8")


def icons_in_use(script: str, words: set[str]) -> str:
    """A script that draws icons, with those of a script of Font Awesome whose names (``fa-NAME``) are among the words."""
    known = {  # where a solid icon has the name of an outlined one, it comes later
        name: (int(icon["width"]), int(icon["height"]), icon["path"])
        for icon in ICON.finditer(script)
        for name in (icon["name"].strip('"'), *re.findall(r'"([^"]+)"', icon["others"]))
    }
    found = {name: known[name] for name in sorted(known) if f"fa-{name}" in words}
    return f"const ICONS = {json.dumps(found)};\n{DRAW}"


def styles_in_use(sheet: str, words: set[str]) -> str:
    """A style sheet without the rules for classes that are not among the words; what is not plain stays."""

    def kept(found):
        selectors, style = COMMENT.sub("", found[1]), found[2]
        if re.search(r"[(\\@]", selectors):
            return found[0]
        used = [one for one in selectors.split(",") if words.issuperset(CLASS.findall(one))]
        if any(".fa-" in one for one in used) and "content:" in style:
            used = []  # icons are drawn, not written in a font
        return (
            f"{''.join(COMMENT.findall(found[1]))}{','.join(used)}{{{style}}}"
            if used
            else "".join(COMMENT.findall(found[1]))
        )

    return RULE.sub(kept, sheet)


def setup(app):
    app.connect("builder-inited", pictures_as_files)
    app.connect("html-page-context", lean, priority=900)  # after MathJax has been added
    app.connect("build-finished", prune)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
