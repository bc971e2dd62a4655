"""A page opened in Debian's Chromium, with all that it must not do while it is looked at."""

import shutil

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
WIDE, PHONE = {"width": 1440, "height": 900}, {"width": 390, "height": 844}
REACHES = """() => {  // how far the page can be moved sideways, and what makes it so wide
  const width = document.documentElement.clientWidth, page = document.scrollingElement;
  if (page.scrollWidth <= width) return "";
  const outside = [...document.querySelectorAll("body *")].filter(e => e.getBoundingClientRect().right > width + 1);
  const names = outside.slice(-3).map(e => `<${e.tagName.toLowerCase()} class="${e.className}">`);
  return `${page.scrollWidth} px on a screen of ${width}: ${names.join(" ")}`;
}"""


def open_page(browser, site: str, name: str, screen: dict):
    """The page, in a browser or a context of one, and a list that grows by a line for each error and each request elsewhere."""
    page, wrong = browser.new_page(), []
    page.set_viewport_size(screen)

    def on_request(request):
        if not request.url.startswith((site, "data:", "blob:")):
            wrong.append(f"asks {request.url}")

    page.on("request", on_request)
    page.on("console", lambda said: wrong.append(f"console: {said.text}") if said.type == "error" else None)
    page.on("pageerror", lambda error: wrong.append(f"script: {error}"))
    page.on("response", lambda answer: wrong.append(f"lacks {answer.url}") if answer.status >= 400 else None)
    page.goto(site + name, wait_until="load")
    return page, wrong
