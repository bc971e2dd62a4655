"""Every page as a reader sees it: in Debian's Chromium, on a wide screen and on a phone, light and dark.

Looks at the built book if there is one, and always at a small book made here from the committed pages.
"""

import functools
import http.server
import shutil
import threading
from pathlib import Path

import pytest

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe-playwright-python is not installed")

ROOT = Path(__file__).parents[1]
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
WIDE, PHONE = {"width": 1440, "height": 900}, {"width": 390, "height": 844}
GRAVE = {"serious", "critical"}  # axe's impacts
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
    handler = functools.partial(_Quiet, directory=str(site))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            here = f"http://127.0.0.1:{server.server_port}/"
            pages = sorted(p.relative_to(site).as_posix() for p in site.rglob("*.html") if "_static" not in p.parts)
            return [f for page in pages for scheme in ("light", "dark") for f in _faults(browser, here, page, scheme)]
        finally:
            server.shutdown()


def _faults(browser, here: str, name: str, scheme: str) -> list[str]:
    found = []
    with browser.new_context(viewport=WIDE, color_scheme=scheme) as context:
        page = context.new_page()
        page.on("console", lambda said: found.append(f"console: {said.text}") if said.type == "error" else None)
        page.on("pageerror", lambda error: found.append(f"script: {error}"))
        page.on("request", lambda request: found.append(f"asks {request.url}") if _is_outside(request, here) else None)
        page.goto(here + name, wait_until="load")
        page.wait_for_load_state("networkidle")
        for screen in (WIDE, PHONE):
            page.set_viewport_size(screen)
            at = f"{screen['width']} px"
            if reach := page.evaluate(REACHES):
                found.append(f"{at}: sideways {reach}")
            for violation in axe.Axe().run(page).response["violations"]:
                if violation["impact"] in GRAVE:
                    where = violation["nodes"][0]["html"][:150]
                    found.append(
                        f"{at}: {violation['id']} ({violation['impact']}), {len(violation['nodes'])} × {where}"
                    )
        if page.locator(".explorer-figure").count():
            for screen in (WIDE, PHONE):
                page.set_viewport_size(screen)
                page.wait_for_timeout(300)
                box = page.locator(".explorer-figure .main-svg").first.bounding_box()
                if not box or box["height"] < 300 or not 200 < box["width"] <= screen["width"]:
                    found.append(f"the explorer is drawn in {box} after a resize to {screen['width']} px")
    return [f"{name}, {scheme}: {fault}" for fault in dict.fromkeys(found)]


def _is_outside(request, here: str) -> bool:
    return not request.url.startswith((here, "data:", "blob:"))


def test_the_built_book(browser):
    site = ROOT / "_build/html"
    if not (site / "index.html").is_file():
        pytest.skip("there is no built book; 'make book' builds one")
    assert not look_at(browser, site)
