"""Every page as a reader sees it: in Debian's Chromium, on a wide screen and on a phone, light and dark.

Looks at the built book if there is one, and always at a small book made here from the committed pages.

Every page is loaded, on both screens: nothing fails, nothing is asked of another site, nothing reaches sideways, no figure
has small letters. Axe looks at every page in light and dark and on the phone, but for the reference: its pages are one
template filled with docstrings, and axe looks at the first few.
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

import matplotlib.pyplot as plt
import nbformat
import numpy as np
import pandas as pd
import pytest
from opened import PHONE, REACHES, WIDE, open_page

import phantomlib as ph
from phantombook import markup
from phantombook.build import BUILDER
from phantomlib.critical.step_zero import velocity

axe = pytest.importorskip("axe_playwright_python.base", reason="axe-playwright-python is not installed")
playwright = pytest.importorskip("playwright.sync_api")

ROOT = Path(__file__).parents[1]
AXE = {"resultTypes": ["violations"], "preload": False}  # it would fetch the style sheets again, from wrong addresses
LOOK = """([where, options]) => axe.run(where, options).then(({violations}) => violations
  .filter(found => ["serious", "critical"].includes(found.impact))
  .map(({id, impact, nodes}) => `${id} (${impact}), ${nodes.length} × ${nodes[0].html.slice(0, 150)}`))"""
# Definitions, rows and entries that are like the one before, and formulas: axe takes minutes over hundreds of them.
ALIKE = (
    "dl.py ~ dl.py, tbody tr:nth-child(n+4), .genindextable li:nth-child(n+3), .toc-entry li:nth-child(n+3), "
    "mjx-container:not(a *)"
)
# Of the thousands of coloured words of code, the first of each colour stays; the others become text of their line.
REMOVE = f"""() => {{
  document.querySelectorAll("{ALIKE}").forEach(element => element.remove());
  const seen = new Set();
  for (const word of document.querySelectorAll(".highlight span")) {{
    if (seen.has(word.className)) word.replaceWith(word.textContent);
    seen.add(word.className);
  }}
}}"""
REFERENCE, LOOKED_AT = "book/generated/reference/", 3  # of these pages
PARTS = 4  # of the built book, so that all workers of pytest share it
HEAVIEST, HEAVIEST_LIVE, SMALLEST, PAINTED = 1.5e6, 3.5e6, 11, 1000  # bytes, bytes after a click, px, ms
WEIGHT = """() => ["resource", "navigation"].flatMap(kind => performance.getEntriesByType(kind))
  .reduce((sum, entry) => sum + entry.decodedBodySize, 0)"""
PAINT = "() => performance.getEntriesByName('first-contentful-paint')[0]?.startTime ?? 0"
# matplotlib draws letters as paths of a hundred units, scaled to the size of the font
LETTERS = """async () => {
  const found = [];
  for (const image of document.querySelectorAll("article img[src$='.svg']")) {
    if (!image.clientWidth) continue;
    const text = await (await fetch(image.src)).text(), wide = text.match(/viewBox="0 0 ([\\d.]+)/);
    const sizes = [...text.matchAll(/<g id="text_\\d+">[^]*?scale\\(([\\d.]+) -/g)].map(letters => 100 * letters[1]);
    if (wide && sizes.length) found.push(Math.min(...sizes) * image.clientWidth / wide[1]);
  }
  return found;
}"""
SETTLES = 5000  # ms until the theme has surely looked again at the scheme, or at what scrolls
ICONS = """() => Math.max(0, ...[...document.querySelectorAll(".svg-inline--fa")]
  .map(icon => icon.getBoundingClientRect().height))"""
HIGHEST = 32  # px, of an icon beside letters
DARK = "document.documentElement.dataset.theme === 'dark'"
REACHED = """[...document.querySelectorAll("pre, .pst-scrollable-table-container")].every(
  element => element.scrollWidth <= element.clientWidth || element.tabIndex === 0)"""


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


@contextlib.contextmanager
def served(site: Path):
    """The address of a site while it is served."""
    handler = functools.partial(_Quiet, directory=str(site))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/"
        finally:
            server.shutdown()


def look_at(browser, site: Path, part: int = 0, parts: int = 1) -> list[str]:
    """What is wrong with the pages of a site, or a part of them: one line per page, screen and fault."""
    pages = sorted(p.relative_to(site).as_posix() for p in site.rglob("*.html") if "_static" not in p.parts)
    pages.remove("index.html")  # it only leads to the first page
    alike = [name for name in pages if name.startswith(REFERENCE)][LOOKED_AT:]
    where = dict.fromkeys(pages, "main") | dict.fromkeys(alike, "")
    where[pages[0]] = "html"  # the frame is that of every page
    with served(site) as here, browser.new_context() as context:
        return [f"{name}: {fault}" for name in pages[part::parts] for fault in faults(context, here, name, where[name])]


def settled(page, condition: str) -> bool:
    """Whether a page comes to this."""
    with contextlib.suppress(playwright.TimeoutError):
        page.wait_for_function(condition, timeout=SETTLES)
    return page.evaluate(condition)


def faults(context, here: str, name: str, where: str) -> list[str]:
    """What is wrong with one page, loaded once and then looked at on two screens; axe looks at ``where``, if anywhere."""
    page, found = open_page(context, here, name, WIDE)
    if (weight := page.evaluate(WEIGHT)) > HEAVIEST:
        found.append(f"loads {weight / 1e6:.2f} MB")
    if (height := page.evaluate(ICONS)) > HIGHEST:
        found.append(f"an icon {height:.0f} px high")
    page.evaluate("async () => { await window.MathJax?.startup?.promise }")
    found += turn(page, PHONE)
    if small := [size for size in page.evaluate(LETTERS) if size < SMALLEST]:
        found.append(f"phone, letters of {min(small):.1f} px in {len(small)} figures")
    found += turn(page, WIDE)
    if where:
        found += seen_by_axe(page, where)
    page.close()
    return list(dict.fromkeys(found))


def turn(page, screen: dict) -> list[str]:
    page.set_viewport_size(screen)
    reach = page.evaluate(REACHES)
    return [f"sideways {reach}"] if reach else []


def seen_by_axe(page, where: str) -> list[str]:
    """What axe finds on a wide page in light and dark, and on a phone."""

    def look(what, **rules):
        return [f"{what}, {fault}" for fault in page.evaluate(LOOK, [where, AXE | rules])]

    page.evaluate(REMOVE)
    page.add_style_tag(content="* { transition: none !important }")  # or a colour is looked at on its way to another
    page.evaluate(axe.AXE_SCRIPT)
    found = look("light, wide")
    page.emulate_media(color_scheme="dark")
    if not settled(page, DARK):
        found.append("does not turn dark")
    # dark changes contrast alone; a narrow screen what scrolls, and how large what is touched is
    found += look("dark, wide", runOnly=["color-contrast"])
    found += turn(page, PHONE)
    settled(page, REACHED)
    return found + look("dark, phone", runOnly=["scrollable-region-focusable", "target-size"])


# those that need no notebook
PAGES = ["definitions", "paper-and-ours", "your-model", "data-set", "train-it-here", "extend", "bibliography"]


@pytest.fixture(scope="module")
def small_book(tmp_path_factory) -> Path:
    """Committed pages, and one page as a notebook leaves it: a figure, wide tables, folded code."""
    root = tmp_path_factory.mktemp("small")
    shutil.copy(ROOT / "_config.yml", root)
    listed = "".join(f"  - file: book/{name}\n" for name in PAGES[1:])
    listed += "    sections:\n      - file: book/generated/01_page\n"
    (root / "_toc.yml").write_text(f"format: jb-book\nroot: book/{PAGES[0]}\nchapters:\n{listed}")
    for folder in ("_ext", "_static", "_templates"):
        shutil.copytree(ROOT / "book" / folder, root / "book" / folder)
    for name in (*(f"{page}.md" for page in PAGES), "references.bib", "diagnosis.txt", "scan.txt"):
        shutil.copy(ROOT / "book" / name, root / "book")
    figure, axes = plt.subplots()
    axes.plot([1, 2])
    wide, new = pd.DataFrame({f"a long column {n}": [1.23456] for n in range(9)}), nbformat.v4
    bundles = [
        markup.figure(figure, "fig-x", "A caption.", "A rising line."),
        {"text/markdown": markup.markdown_table(wide)},
        {"text/html": wide.to_html()},
    ]
    plt.close(figure)
    outputs = [new.new_output("display_data", bundle) for bundle in bundles]
    code = new.new_code_cell("figure", outputs=outputs, metadata={"tags": ["hide-input"]})
    notebook = new.new_notebook(cells=[new.new_markdown_cell("# A page\n\nSome text."), code])
    (root / "book/generated").mkdir()
    nbformat.write(notebook, root / "book/generated/01_page.ipynb")
    # without warnings as errors: these pages link to chapters that are not here
    built = subprocess.run([sys.executable, "-c", BUILDER, "build", str(root)], capture_output=True, text=True)
    assert built.returncode == 0, built.stderr[-2000:]
    return root / "_build/html"


def test_a_small_book(browser, small_book):
    assert not look_at(browser, small_book)


def test_a_model_is_trained_in_the_page(browser, small_book):
    """By keyboard, on a phone: loaded on a click, nothing from outside; the gap ends where the engine's does."""
    model = ph.load("zoo:gpt2-s")
    context = ph.resolve(ph.load_contexts()[0], model.tokenizer)
    with served(small_book) as here:
        page, wrong = open_page(browser, here, "book/train-it-here.html", PHONE)
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
        assert page.evaluate(WEIGHT) < HEAVIEST_LIVE
        page.close()


WORKER = """async ({heads, ids, correct, competitor, optimizer, rate}) => {
  const worker = new Worker("/_static/live/worker.js"), ask = message => new Promise((done, fail) => {
    worker.onerror = fail;
    worker.onmessage = ({data}) => { if (!("t" in data)) done(data); };
    worker.postMessage({id: 1, ...message});
  });
  const weights = await fetch("/_static/live/model.safetensors");
  await ask({ask: "load", buffer: await weights.arrayBuffer()});
  const {first} = await ask({ask: "sentence", heads, ids, correct, competitor});
  return {first: first[optimizer], steps: (await ask({ask: "train", optimizer, rate, steps: 20})).steps};
}"""
RECORDED = {
    "gap": "logit_gap",
    "loss": "cross_entropy",
    "pCorrect": "p_correct",
    "pCompetitor": "p_competitor",
    "phi": "phi",
}


@pytest.mark.parametrize("optimizer, rate", [("adam", 2e-5), ("adam", 1e-3), ("sgd", 2e-2)])
def test_twenty_steps_in_a_worker_are_those_of_the_engine(browser, small_book, optimizer, rate):
    model = ph.load("zoo:gpt2-s")
    context, recipe = ph.resolve(ph.load_contexts()[4], model.tokenizer), ph.Recipe(optimizer=optimizer, steps=20)
    words = {"ids": context.prompt_ids, "correct": context.correct_id, "competitor": context.competitor_id}
    asked = words | {"heads": model.module.config.n_head, "optimizer": optimizer, "rate": rate}
    with served(small_book) as here:
        page, wrong = open_page(browser, here, "book/bibliography.html", WIDE)
        told = page.evaluate(WORKER, asked)
        page.close()
    run = ph.finetune(model, [context], [rate], recipe).isel(context=0, rate=0, seed=0)
    for ours, recorded in RECORDED.items():
        np.testing.assert_allclose([step[ours] for step in told["steps"]], run[recorded], atol=1e-4)
    assert told["first"]["velocity"] == pytest.approx(float(velocity(model, [context], recipe).velocity[0]), rel=0.01)
    assert wrong == []


def test_faults_are_seen(browser, tmp_path):
    (tmp_path / "index.html").touch()
    (tmp_path / "bad.html").write_text(
        '<html data-theme="light"><body style="color: #ccc; background: #fff"><p style="width: 3000px">pale and wide</p>'
        '<img src="http://192.0.2.1/x.png"><script>nothing()</script></body></html>'
    )
    found = "\n".join(look_at(browser, tmp_path))
    for fault in ("sideways 3", "asks http://192.0.2.1/x.png", "nothing is not defined", "does not turn dark"):
        assert fault in found
    for fault in ("color-contrast (serious)", "image-alt (critical)"):
        assert fault in found


@pytest.fixture
def built_book() -> Path:
    site = ROOT / "_build/html"
    if not (site / "index.html").is_file():
        pytest.skip("there is no built book; 'make book' builds one")
    return site


@pytest.mark.slow
@pytest.mark.parametrize("part", range(PARTS))
def test_the_built_book(browser, built_book, part):
    assert not look_at(browser, built_book, part, PARTS)


@pytest.mark.slow
def test_the_built_book_is_painted_soon(browser, built_book):
    with served(built_book) as here:
        for name in ("book/intro.html", "book/definitions.html", "book/generated/02_silent_failure.html"):
            times = []
            for _ in range(3):  # the machine may be busy with something else
                page, _ = open_page(browser, here, name, PHONE)
                times.append(page.evaluate(PAINT))
                page.close()
            assert 0 < min(times) < PAINTED, name
