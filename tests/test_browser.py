"""Every page as a reader sees it: in Debian's Chromium, on a wide screen and on a phone, light and dark.

Looks at the built book if there is one, and always at a small book made here from the committed pages.
"""

import contextlib
import functools
import http.server
import re
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import nbformat
import numpy as np
import pandas as pd
import pytest
import xarray as xr

import phantomlib as ph
from phantombook.build import BUILDER
from phantombook.figures import explorer
from phantombook.markup import markdown_table

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe-playwright-python is not installed")

ROOT = Path(__file__).parents[1]
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
WIDE, PHONE = {"width": 1440, "height": 900}, {"width": 390, "height": 844}
GRAVE = {"serious", "critical"}  # axe's impacts
AXE = {"resultTypes": ["violations"], "preload": False}  # it would fetch the style sheets again, from wrong addresses
# Definitions, rows and entries that are like the one before, and formulas: axe takes minutes over hundreds of them.
ALIKE = "dl.py ~ dl.py, tbody tr:nth-child(n+4), .genindextable li:nth-child(n+3), .toc-entry li:nth-child(n+3), mjx-container"
REMOVE = f"document.querySelectorAll('{ALIKE}').forEach(element => element.remove())"
SETTLES = 400  # ms after a resize until the theme has looked again at what scrolls
REACHES = """() => {  // how far the page can be moved sideways, and what makes it so wide
  const width = document.documentElement.clientWidth, page = document.scrollingElement;
  if (page.scrollWidth <= width) return "";
  const outside = [...document.querySelectorAll("body *")].filter(e => e.getBoundingClientRect().right > width + 1);
  const names = outside.slice(-3).map(e => `<${e.tagName.toLowerCase()} class="${e.className}">`);
  return `${page.scrollWidth} px on a screen of ${width}: ${names.join(" ")}`;
}"""

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium; install the package 'chromium'")


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as engine:
        chromium = engine.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])  # tests may run as root
        yield chromium
        chromium.close()


def look_at(browser, site: Path) -> list[str]:
    """What is wrong with the pages of a site: one line per page, screen and fault."""
    pages = sorted(p.relative_to(site).as_posix() for p in site.rglob("*.html") if "_static" not in p.parts)
    pages.remove("index.html")  # it only leads to the first page
    with _served(site) as here, browser.new_context() as context:
        return [f"{name}: {fault}" for name in pages for fault in _faults(context, here, name)]


@contextlib.contextmanager
def _served(site: Path):
    """The address of a site while it is served."""
    handler = functools.partial(_Quiet, directory=str(site))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/"
        finally:
            server.shutdown()


def _faults(context, here: str, name: str) -> list[str]:
    """What is wrong with one page, loaded once and then looked at on two screens in two schemes."""
    found = []
    page = context.new_page()
    page.on("console", lambda said: found.append(f"console: {said.text}") if said.type == "error" else None)
    page.on("pageerror", lambda error: found.append(f"script: {error}"))
    page.on("request", lambda request: found.append(f"asks {request.url}") if _is_outside(request, here) else None)
    page.on("response", lambda answer: found.append(f"lacks {answer.url}") if answer.status >= 400 else None)
    page.set_viewport_size(WIDE)
    page.goto(here + name, wait_until="load")
    page.evaluate("async () => { await window.MathJax?.startup?.promise }")
    for screen, scheme in ((WIDE, "light"), (WIDE, "dark"), (PHONE, "dark"), (PHONE, "light")):
        _turn(page, screen, scheme)
        if page.locator("html").get_attribute("data-theme") != scheme:
            found.append(f"does not turn {scheme}")
        if reach := page.evaluate(REACHES):
            found.append(f"{scheme}, sideways {reach}")
    if page.locator(".explorer-figure").count():
        found += _explorer_faults(page)
    page.evaluate(REMOVE)
    # dark changes contrast alone; a narrow screen what scrolls, and how large what is touched is
    contrast, narrow = {"runOnly": ["color-contrast"]}, {"runOnly": ["scrollable-region-focusable", "target-size"]}
    for screen, scheme, rules in ((PHONE, "light", narrow), (WIDE, "light", {}), (WIDE, "dark", contrast)):
        _turn(page, screen, scheme)
        for violation in axe.Axe().run(page, options=AXE | rules).response["violations"]:
            if violation["impact"] in GRAVE:
                where = f"{len(violation['nodes'])} × {violation['nodes'][0]['html'][:150]}"
                found.append(f"{scheme}, {screen['width']} px, {violation['id']} ({violation['impact']}), {where}")
    page.close()
    return list(dict.fromkeys(found))


def _turn(page, screen: dict, scheme: str) -> None:
    page.set_viewport_size(screen)
    page.emulate_media(color_scheme=scheme)
    page.wait_for_timeout(SETTLES)


def _explorer_faults(page) -> list[str]:
    """After each of two resizes, as by a phone that is turned."""
    found = []
    for screen in (WIDE, PHONE):
        page.set_viewport_size(screen)
        page.wait_for_timeout(SETTLES)
        drawing = page.locator(".explorer-figure .main-svg")
        box = drawing.first.bounding_box() if drawing.count() else None
        if not box or box["height"] < 300 or not 200 < box["width"] <= screen["width"]:
            found.append(f"the explorer is drawn in {box} after a resize to {screen['width']} px")
    return found


def _is_outside(request, here: str) -> bool:
    return not request.url.startswith((here, "data:", "blob:"))


PAGES = (
    "definitions",
    "paper-and-ours",
    "your-model",
    "data-set",
    "train-it-here",
    "extend",
    "bibliography",
)  # those that need no notebook


@pytest.fixture(scope="module")
def small_book(tmp_path_factory) -> Path:
    """Committed pages, and one page as a notebook leaves it: an explorer, a wide table, folded code."""
    root = tmp_path_factory.mktemp("small")
    shutil.copy(ROOT / "_config.yml", root)
    (root / "_toc.yml").write_text(
        "format: jb-book\nroot: book/definitions\nchapters:\n"
        + "".join(f"  - file: book/{name}\n" for name in (*PAGES[1:], "generated/20_explorer"))
    )
    for folder in ("_ext", "_static", "_templates"):
        shutil.copytree(ROOT / "book" / folder, root / "book" / folder)
    for name in (*(f"{page}.md" for page in PAGES), "references.bib"):
        shutil.copy(ROOT / "book" / name, root / "book")
    for name in ("diagnosis.txt", "scan.txt"):
        shutil.copy(ROOT / "book" / name, root / "book")
    (root / "book/generated").mkdir()
    nbformat.write(_notebook(), root / "book/generated/20_explorer.ipynb")
    # without warnings as errors: these pages link to chapters that are not here
    built = subprocess.run([sys.executable, "-c", BUILDER, "build", str(root)], capture_output=True, text=True)
    assert built.returncode == 0, built.stderr[-2000:]
    return root / "_build/html"


def _notebook():
    steps, rates = np.arange(5), np.array([[0.5, 2.0]])
    curve = ("context", "rate", "seed", "step"), np.linspace(-1, 1, 10).reshape(1, 2, 1, 5)
    ds = xr.Dataset(
        {name: curve for name in explorer.SHOWN},
        {
            "context": ["shame"],
            "rate": [0, 1],
            "seed": [0],
            "step": steps,
            "learning_rate": (("context", "rate"), rates),
        },
    )
    ds = ds.assign_coords(correct=("context", ["shame"]), competitor=("context", ["guilt"]))
    page = explorer.page({"gpt2-s": {"full, Adam": ds}}, [0.5, 2.0])
    table = pd.DataFrame({f"a long column {n}": [1.23456] for n in range(9)})
    new = nbformat.v4
    outputs = [
        new.new_output("display_data", {"text/html": page}),
        new.new_output("display_data", {"text/markdown": markdown_table(table)}),
        new.new_output("display_data", {"text/html": table.to_html()}),
    ]
    code = new.new_code_cell("figure", outputs=outputs, metadata={"tags": ["hide-input"]})
    return new.new_notebook(cells=[new.new_markdown_cell("# Explorer\n\nSome text."), code])


def test_a_small_book(browser, small_book):
    assert not look_at(browser, small_book)


def test_a_model_is_trained_in_the_page(browser, small_book):
    """By keyboard, on a phone: loaded on a click, nothing from outside; the gaps are those of the engine."""
    model = ph.load("zoo:gpt2-s")
    context, wrong = ph.resolve(ph.load_contexts()[0], model.tokenizer), []
    with _served(small_book) as here:
        page = browser.new_page(viewport=PHONE)
        page.on("console", lambda said: wrong.append(said.text) if said.type == "error" else None)
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("request", lambda request: wrong.append(request.url) if _is_outside(request, here) else None)
        page.goto(here + "book/train-it-here.html")
        page.locator("#live-load").press("Enter")
        said = page.locator("#live-said")
        playwright.expect(said).to_contain_text("nats and the gap ends at", timeout=60_000)
        predicted = float(page.locator("#live-predicted").get_attribute("title"))
        run = ph.finetune(model, [context], [predicted], ph.Recipe(steps=20)).isel(context=0, rate=0, seed=0)
        ends = float(re.search(r"the gap ends at (-?[\d.]+):", said.inner_text())[1])
        assert ends == pytest.approx(float(run.logit_gap[-1]), abs=1e-3)
        page.locator("#live-pair").press("Enter")
        playwright.expect(said).to_contain_text("at 1.02 times it", timeout=60_000)
        assert page.locator("#live-pictures svg").count() == 5
        assert page.evaluate(REACHES) == "" and wrong == []
        page.close()


def test_faults_are_seen(browser, tmp_path):
    (tmp_path / "index.html").touch()
    (tmp_path / "bad.html").write_text(
        '<html data-theme="light"><body style="color: #ccc; background: #fff"><p style="width: 3000px">pale and wide</p>'
        '<img src="http://192.0.2.1/x.png"><div class="explorer-figure"></div><script>nothing()</script></body></html>'
    )
    found = "\n".join(look_at(browser, tmp_path))
    for fault in ("sideways 3", "asks http://192.0.2.1/x.png", "nothing is not defined", "does not turn dark"):
        assert fault in found
    for fault in ("color-contrast (serious)", "image-alt (critical)", "the explorer is drawn in None"):
        assert fault in found


@pytest.mark.slow
def test_the_built_book(browser):
    site = ROOT / "_build/html"
    if not (site / "index.html").is_file():
        pytest.skip("there is no built book; 'make book' builds one")
    assert not look_at(browser, site)
