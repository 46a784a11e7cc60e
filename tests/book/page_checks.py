"""What must be true of a rendered page, as functions that return the problems they find.

Each function gets a page in a real browser, or its parsed HTML, and returns a list of sentences; an empty
list means that all is well. The tests hold the built book against them, and pages that are broken on purpose.
"""

from __future__ import annotations

import functools
import gzip
import http.server
import importlib.util
import io
import os
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import unquote, urldefrag, urljoin, urlsplit

import pytest
from bs4 import BeautifulSoup
from PIL import Image
from playwright.sync_api import Browser, Locator, Page, Request, Response, Route

PHONE, DESKTOP, SHEET = 390, 1280, 794  # widths in CSS pixels; SHEET is that of A4
# What a page may ask for: requests, and bytes as a server that compresses them would send them.
MOST_REQUESTS, MOST_BYTES, MOST_BYTES_WITH_MATH = 20, 300_000, 1_000_000
# Rules of axe that hold whatever their grade; the last one has to be asked for.
ALWAYS = ("region", "empty-table-header", "label-content-name-mismatch")


def unavailable(message: str) -> None:
    """Skip on a developer's machine; fail in continuous integration, where nothing may go unchecked."""
    if os.environ.get("CI"):
        pytest.fail(message, pytrace=False)
    pytest.skip(message)


@dataclass
class Visit:
    """A page that was opened, and what happened meanwhile."""

    page: Page
    outside: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    answers: list[Response] = field(default_factory=list)

    def problems(self) -> list[str]:
        """Requests to third parties, files that are missing, script errors."""
        return [
            *(f"asks a third party for {url}" for url in self.outside),
            *(f"cannot load {url}" for url in self.failed),
            *(f"script error: {text}" for text in self.errors),
        ]

    def weight(self) -> dict[str, int]:
        """What the page asked a server for, by address, in bytes when compressed."""
        return {
            answer.url: len(gzip.compress(answer.body(), mtime=0))
            for answer in self.answers
            if answer.status == 200 and answer.url.startswith("http")
        }


@contextmanager
def visit(browser: Browser, url: str, *, width: int = DESKTOP, dark: bool = False) -> Iterator[Visit]:
    """Open a page; whatever it wants from another host is noted and refused."""
    home = urlsplit(url)
    context = browser.new_context(
        viewport={"width": width, "height": 900}, color_scheme="dark" if dark else "light"
    )
    page = context.new_page()
    seen = Visit(page)

    def at_home(address: str) -> bool:
        parts = urlsplit(address)
        return parts.scheme in ("data", "blob", "about") or (parts.scheme, parts.netloc) == (
            home.scheme,
            home.netloc,
        )

    def route(route: Route) -> None:
        if at_home(route.request.url):
            route.continue_()
        else:
            seen.outside.append(route.request.url)
            route.abort()

    def failed(request: Request) -> None:
        # a request that the browser drops because it moves on to another page is nobody's fault; a file that
        # is missing has an answer (404), and a server that breaks off has an error of its own
        if at_home(request.url) and request.failure != "net::ERR_ABORTED":
            seen.failed.append(request.url)

    context.route("**/*", route)
    page.on("requestfailed", failed)
    page.on("response", lambda response: seen.failed.append(response.url) if response.status >= 400 else None)
    page.on("response", lambda response: seen.answers.append(response))
    page.on("pageerror", lambda error: seen.errors.append(str(error)))
    page.on("console", lambda said: seen.errors.append(said.text) if said.type == "error" else None)
    try:
        page.goto(url, wait_until="load")
        page.evaluate("async () => { if (window.MathJax?.startup) await MathJax.startup.promise }")
        page.evaluate("() => document.fonts.ready.then(() => true)")
        yield seen
    finally:
        context.close()


class _Quiet(http.server.SimpleHTTPRequestHandler):
    """A handler that does not write a line for each request."""

    def log_message(self, format: str, *args: object) -> None:
        pass


@contextmanager
def serve(folder: Path) -> Iterator[str]:
    """Serve a folder on this machine; gives the address, without a slash at its end."""
    handler = functools.partial(_Quiet, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as httpd:
        threading.Thread(target=httpd.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{httpd.server_address[1]}"
        httpd.shutdown()


# ---- in the browser ----


def math_problems(page: Page) -> list[str]:
    """Formulas that were not drawn, or that were drawn as an error."""
    return page.evaluate(
        r"""() => {
          const found = [];
          for (const formula of document.querySelectorAll('.math')) {
            const drawn = formula.querySelector('mjx-container svg');
            const text = formula.textContent.trim().slice(0, 80);
            if (!drawn || !drawn.getBoundingClientRect().width) found.push(`a formula is not drawn: ${text}`);
          }
          for (const wrong of document.querySelectorAll('mjx-merror, [data-mml-node="merror"]'))
            found.push(`a formula has an error: ${wrong.textContent.trim().slice(0, 80)}`);
          for (const formula of document.querySelectorAll('mjx-container')) {
            // an empty group is drawn as an empty letter, so the formula's text has the last word
            const meant = [...formula.querySelectorAll('mjx-assistive-mml :is(mi, mn)')];
            const drawn = formula.querySelectorAll('svg :is([data-mml-node="mi"], [data-mml-node="mn"])');
            drawn.forEach((letter, place) => {
              if (!letter.childElementCount && meant[place]?.textContent.trim())
                found.push(`a letter is not drawn: ${meant[place].textContent}`);
            });
          }
          // a macro that MathJax does not know is no error to it: it shows the name in red
          for (const wrong of document.querySelectorAll('mjx-container [fill="red"]')) {
            const formula = wrong.closest('mjx-container');
            found.push(`a formula is red: ${formula.textContent.trim().slice(0, 80)}`);
          }
          return found;
        }"""
    )


@functools.cache
def axe() -> str:
    """The script of axe-core, as the package ``axe-playwright-python`` carries it."""
    spec = importlib.util.find_spec("axe_playwright_python")
    if spec is None or not spec.submodule_search_locations:
        unavailable("axe-playwright-python is not installed; run `make env`")
    return Path(spec.submodule_search_locations[0], "axe.min.js").read_text("utf8")


def access_problems(page: Page) -> list[str]:
    """What keeps people who do not see the page, or use no mouse, from reading it, by the rules of axe.

    Violations of serious or critical grade, and those of `ALWAYS`.
    """
    # a color on its way from one theme to the other is neither: axe would judge what nobody reads
    page.add_style_tag(content="*, ::before, ::after { transition: none !important }")
    page.evaluate(axe())
    # Most elements of a chapter are words of code. `contrast_problems` judges them all in half a second. Axe
    # takes half a minute, and of most it cannot tell: for it they are plain text.
    page.evaluate(
        """() => {
          for (const word of document.querySelectorAll('pre span:not(:has(*))')) {
            word.replaceWith(word.textContent);
          }
        }"""
    )
    found = page.evaluate(
        """always => axe.run(document, {
          resultTypes: ['violations'],
          rules: {'label-content-name-mismatch': {enabled: true}},
        }).then(({violations}) => violations
          .filter(({id, impact}) => ['serious', 'critical'].includes(impact) || always.includes(id))
          .map(({id, nodes}) => `${id}, ${nodes.length} times: ${nodes[0].html.slice(0, 120)}`))""",
        list(ALWAYS),
    )
    return [str(problem) for problem in found]


def weight_problems(seen: Visit) -> list[str]:
    """A page that asks for more than a reader on a slow network should wait for."""
    weight = seen.weight()
    math = seen.page.locator(".math").count() > 0
    most = MOST_BYTES_WITH_MATH if math else MOST_BYTES
    heavy = sorted(weight, key=weight.__getitem__, reverse=True)[:3]
    found = []
    if len(weight) > MOST_REQUESTS:
        found.append(f"it asks for {len(weight)} files, more than {MOST_REQUESTS}")
    if sum(weight.values()) > most:
        found.append(f"it weighs {sum(weight.values()):,} bytes, more than {most:,}; most of it are {heavy}")
    if not math and any("mathjax" in address for address in weight):
        found.append("it asks for MathJax and has no formula")
    return found


def heading_problems(page: Page) -> list[str]:
    """Headings that weigh as much as one of a higher level: as large and as bold, or larger."""
    return page.evaluate(
        """() => {
          const found = [];
          let above = null;
          for (const level of ['h1', 'h2', 'h3', 'h4']) {
            const heading = document.querySelector(`article ${level}:not(.onlyprint *)`);
            if (!heading) continue;
            const {fontSize, fontWeight} = getComputedStyle(heading);
            const look = {level, size: parseFloat(fontSize), bold: parseFloat(fontWeight)};
            if (above && (look.size >= above.size || look.bold > above.bold))
              found.push(`${level} outweighs ${above.level}`);
            above = look;
          }
          return found;
        }"""
    )


def reach_problems(page: Page) -> list[str]:
    """Code that is scrolled sideways, captions and arrows off the screen, and wide boxes that look whole."""
    return page.evaluate(
        """() => {
          const found = [];
          const article = document.querySelector('article, main') || document.body;
          const wide = element => element.scrollWidth > element.clientWidth + 1 && element.checkVisibility();
          for (const code of article.querySelectorAll('pre'))
            if (wide(code)) found.push(`a line is cut: ${code.textContent.trim().slice(0, 60)}`);
          const right = document.documentElement.clientWidth;
          for (const caption of article.querySelectorAll('caption, figcaption'))
            if (caption.checkVisibility() && caption.getBoundingClientRect().right > right)
              found.push(`a caption is cut: ${caption.textContent.trim().slice(0, 60)}`);
          const boxes = '.pst-scrollable-table-container, .output.text_html, div.math mjx-container';
          for (const box of article.querySelectorAll(boxes))
            if (wide(box) && !getComputedStyle(box).maskImage.includes('gradient'))
              found.push(`what is cut does not look so: ${box.textContent.trim().slice(0, 60)}`);
          for (const arrow of document.querySelectorAll('.prev-next-area i'))
            if (arrow.checkVisibility() && arrow.getBoundingClientRect().right > right)
              found.push(`an arrow is cut: ${arrow.closest('a').textContent.trim().slice(0, 60)}`);
          return found.slice(0, 5);
        }"""
    )


def wrap_problems(page: Page) -> list[str]:
    """Lines that begin with what belongs to the end of the one above: a sign behind a formula, a unit."""
    return page.evaluate(
        r"""() => {
          const found = [];
          const article = document.querySelector('article, main') || document.body;
          const walker = document.createTreeWalker(article, NodeFilter.SHOW_TEXT);
          const range = document.createRange();
          const at = (node, place) => {
            range.setStart(node, place);
            range.setEnd(node, place + 1);
            return range.getBoundingClientRect();
          };
          while (walker.nextNode()) {
            const node = walker.currentNode;
            if (node.parentElement.closest('pre, code, script, style, svg, mjx-container')) continue;
            if (!node.parentElement.checkVisibility()) continue;
            const text = node.textContent;
            const before = node.previousSibling;
            if (before?.classList?.contains('math') && /^[.,:;?!)]/.test(text)) {
              if (at(node, 0).top > before.getBoundingClientRect().bottom - 2)
                found.push(`a line begins with ${text.slice(0, 20)}`);
            }
            for (const unit of text.matchAll(/(?<=\d)\s(?=%|(?:ms|s|min|h|KB|MB|GB)\b)/g))
              if (at(node, unit.index + 1).top > at(node, unit.index - 1).bottom - 2)
                found.push(`a line begins with ${text.slice(unit.index, unit.index + 20).trim()}`);
          }
          return found.slice(0, 5);
        }"""
    )


def width_problems(page: Page) -> list[str]:
    """What makes a page scroll sideways, or is cut off at its right edge."""
    return page.evaluate(
        """() => {
          const width = document.documentElement.clientWidth;
          const found = [];
          const wide = document.scrollingElement.scrollWidth;
          if (wide > width) found.push(`the page is ${wide} pixels wide on a screen of ${width}`);
          const scrolls = element => {
            for (let e = element; e && e !== document.body; e = e.parentElement)
              if (['auto', 'scroll'].includes(getComputedStyle(e).overflowX)) return true;
            return false;
          };
          const article = document.querySelector('article, main') || document.body;
          for (const element of article.querySelectorAll('*')) {
            if (element.closest('mjx-assistive-mml, svg, .visually-hidden')) continue;
            if (!element.checkVisibility()) continue;
            const box = element.getBoundingClientRect();
            if (box.width > 1 && box.right > width + 1 && !scrolls(element))
              found.push(`<${element.localName} class="${element.className}"> ends at ${box.right | 0}`);
          }
          return found.slice(0, 5);
        }"""
    )


def print_problems(page: Page) -> list[str]:
    """What paper would lose: lines that are cut, content that is folded away or left blank."""
    page.set_viewport_size({"width": SHEET, "height": 1123})
    page.emulate_media(media="print")
    page.wait_for_timeout(50)
    try:
        return page.evaluate(
            """() => {
              const found = [];
              const article = document.querySelector('article, main') || document.body;
              for (const code of article.querySelectorAll('pre'))
                if (code.scrollWidth > code.clientWidth + 1)
                  found.push(`a line is cut: ${code.textContent.trim().slice(0, 60)}`);
              const visible = {contentVisibilityAuto: true, opacityProperty: true, visibilityProperty: true};
              for (const content of article.querySelectorAll('details > :not(summary)'))
                if (!content.checkVisibility(visible))
                  found.push(`a cell stays folded: ${content.textContent.trim().slice(0, 60)}`);
              return found;
            }"""
        )
    finally:
        page.emulate_media(media="screen")


def contrast_problems(page: Page, scope: str = "article", least: float = 4.5) -> list[str]:
    """Visible texts whose contrast with what is behind them is below WCAG's level AA."""
    return page.evaluate(
        """([scope, least]) => {
          const parse = color => {
            const canvas = document.createElement('canvas');
            canvas.width = canvas.height = 1;
            const context = canvas.getContext('2d', {willReadFrequently: true});
            context.fillStyle = color;
            context.fillRect(0, 0, 1, 1);
            const [r, g, b, a] = context.getImageData(0, 0, 1, 1).data;
            return [r, g, b, a / 255];
          };
          const cache = new Map();
          const read = color => cache.get(color) || (cache.set(color, parse(color)), cache.get(color));
          const over = (top, below) => below.map((c, i) => i < 3 ? top[i] * top[3] + c * (1 - top[3]) : 1);
          const light = color => {
            const [r, g, b] = color.slice(0, 3).map(c => {
              const part = c / 255;
              return part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4;
            });
            return 0.2126 * r + 0.7152 * g + 0.0722 * b;
          };
          const background = element => {
            const layers = [];
            for (let e = element; e; e = e.parentElement) {
              const color = read(getComputedStyle(e).backgroundColor);
              if (color[3] > 0) layers.push(color);
              if (color[3] === 1) break;
            }
            return layers.reverse().reduce((below, top) => over(top, below), [255, 255, 255, 1]);
          };
          const found = new Set();
          const root = document.querySelector(scope) || document.body;
          const walker = document.createTreeWalker(root, NodeFilter.SHOW_TEXT);
          while (walker.nextNode()) {
            const element = walker.currentNode.parentElement;
            const text = walker.currentNode.textContent.trim();
            if (!text || element.closest('svg, mjx-container, .headerlink, button, .visually-hidden'))
              continue;
            if (!element.checkVisibility({opacityProperty: true, visibilityProperty: true})) continue;
            const behind = background(element);
            const ink = over(read(getComputedStyle(element).color), behind);
            const [high, low] = [light(ink), light(behind)].sort((a, b) => b - a);
            const ratio = (high + 0.05) / (low + 0.05);
            if (ratio < least)
              found.add(
                `contrast ${ratio.toFixed(2)}, <${element.localName} class="${element.className}">: ` +
                  text.slice(0, 40)
              );
          }
          return [...found].slice(0, 8);
        }""",
        [scope, least],
    )


def _luminance(color: tuple[int, ...]) -> float:
    """Relative luminance by WCAG 2.2, from 0 (black) to 1 (white)."""
    linear = [
        c / 255 / 12.92 if c / 255 <= 0.04045 else ((c / 255 + 0.055) / 1.055) ** 2.4 for c in color[:3]
    ]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def dark_figure_problems(figure: Locator, *, as_it_is: bool) -> list[str]:
    """Problems of an image in the dark theme: a glaring ground, or ink that does not stand out from it."""
    figure.scroll_into_view_if_needed()
    picture = Image.open(io.BytesIO(figure.screenshot())).convert("RGB")
    counted = picture.getcolors(picture.width * picture.height) or []
    ground = _luminance(max(counted)[1])
    total = picture.width * picture.height
    problems = []
    if ground > 0.2 and not as_it_is:
        problems.append(f"its ground is bright in the dark theme (luminance {ground:.2f})")
    bright, dim = 0, 0
    for count, color in counted:
        high, low = sorted((_luminance(color), ground), reverse=True)
        if (high + 0.05) / (low + 0.05) >= 4.5:
            bright += count
        else:
            dim += count
    if bright < 0.001 * total:
        problems.append("hardly anything on it stands out from its ground in the dark theme")
    return problems


# ---- in the text of a page ----


def image_problems(soup: BeautifulSoup) -> list[str]:
    """Images without alternative text, figures without a caption, images outside a figure."""
    article = soup.find("article") or soup
    found = []
    for image in article.find_all(["img", "object"]):
        name = str(image.get("src") or image.get("data"))[:80]
        alt = str(image.get("alt") or image.get("aria-label") or "").strip()
        if not alt or alt == name or re.search(r"\.(svg|png|webp|jpe?g)$|_images/", alt):
            found.append(f"{name} has no alternative text")
        if image.find_parent("figure") is None:
            found.append(f"{name} is in no figure, so it has no caption")
    for figure in article.find_all("figure"):
        caption = figure.find("figcaption")
        if caption is None or not caption.get_text(strip=True):
            found.append(f"the figure {figure.get('id')} has no caption")
    return found


def text_problems(soup: BeautifulSoup) -> list[str]:
    """Markup that was not resolved, and tracebacks."""
    page = BeautifulSoup(str(soup.find("article") or soup), "html.parser")
    found = []
    for output in page.select(".cell_output, .output"):
        if "Traceback (most recent call last)" in output.get_text():
            found.append("an output holds a traceback")
            break
    for code in page.find_all(["pre", "code", "script", "style"]):
        code.decompose()
    for mark in page.select(".problematic, .system-message"):
        found.append(f"markup was not understood: {mark.get_text()[:80]}")
    text = page.get_text()
    for match in re.finditer(r"\{[a-z][\w:-]*\}`[^`]*`?|:::|\[\]\(|\{(?:glue|cite)[:}]", text):
        found.append(f"markup was not resolved: {match[0][:80]}")
    return found


def table_problems(soup: BeautifulSoup) -> list[str]:
    """Tables without headings."""
    article = soup.find("article") or soup
    return [
        f"a table has no headings: {table.get_text(' ', strip=True)[:60]}"
        for table in article.find_all("table")
        if table.find("th") is None
    ]


def foreign_asset_problems(soup: BeautifulSoup) -> list[str]:
    """Assets of other hosts that a page names, whether they are asked for now or only on a click."""
    found = []
    for tag in soup.find_all(["script", "img", "iframe", "source", "video", "audio", "embed", "object"]):
        address = str(tag.get("src") or tag.get("data") or "")
        if re.match(r"(https?:)?//", address):
            found.append(f"<{tag.name}> of another host: {address}")
    for tag in soup.find_all("link"):
        kinds = {str(kind) for kind in tag.get("rel") or []}
        if re.match(r"(https?:)?//", str(tag.get("href") or "")) and kinds - {"canonical"}:
            found.append(f"<link rel={' '.join(sorted(kinds))}> of another host: {tag.get('href')}")
    for tag in soup.find_all("script", src=False):
        if re.search(r"https?://[^\"' ]+\.js\b|unpkg|jsdelivr|cdnjs", tag.get_text()):
            found.append(f"a script names another host: {tag.get_text()[:80]}")
    return found


class Site:
    """A folder of pages, for following links between them."""

    def __init__(self, root: Path) -> None:
        self.root = root.resolve()
        self._soups: dict[Path, BeautifulSoup] = {}
        self._anchors: dict[Path, set[str]] = {}

    def pages(self) -> list[Path]:
        """Return all pages."""
        return sorted(self.root.rglob("*.html"))

    def soup(self, path: Path) -> BeautifulSoup:
        """Return a page, parsed."""
        if path not in self._soups:
            self._soups[path] = BeautifulSoup(path.read_text("utf8"), "html.parser")
        return self._soups[path]

    def anchors(self, path: Path) -> set[str]:
        """Return what a link into a page may point at."""
        if path not in self._anchors:
            soup = self.soup(path)
            ids = {str(tag["id"]) for tag in soup.find_all(id=True)}
            self._anchors[path] = ids | {str(tag["name"]) for tag in soup.find_all("a", attrs={"name": True})}
        return self._anchors[path]

    def link_problems(self, path: Path) -> list[str]:
        """Return the links and assets of a page that lead nowhere."""
        found = []
        for tag, attribute in (("a", "href"), ("link", "href"), ("script", "src"), ("img", "src")):
            for element in self.soup(path).find_all(tag, attrs={attribute: True}):
                address = str(element[attribute])
                if urlsplit(address).scheme or address.startswith("//"):
                    continue
                whole, fragment = urldefrag(urljoin(path.as_uri(), address))
                target = Path(unquote(urlsplit(whole).path))
                if target.is_dir():
                    target /= "index.html"
                if not target.is_file():
                    found.append(f"{address} leads to no file")
                elif not target.resolve().is_relative_to(self.root):
                    found.append(f"{address} leads out of the book")
                elif fragment and target.suffix == ".html" and unquote(fragment) not in self.anchors(target):
                    found.append(f"{address} leads to no such place on its page")
        return found


def repository_link_problems(soup: BeautifulSoup, repository: str, branch: str, tree: Path) -> list[str]:
    """Links into the repository, or to Colab, whose path is not in the tree or whose branch is another."""
    owner_and_name = repository.removeprefix("https://github.com/")
    shapes = (
        re.compile(rf"{re.escape(repository)}/(?:edit|blob|raw|tree)/(?P<branch>[^/]+)/(?P<path>[^?#]+)"),
        re.compile(
            rf"https://colab\.research\.google\.com/github/{re.escape(owner_and_name)}/blob/(?P<branch>[^/]+)/(?P<path>[^?#]+)"
        ),
    )
    found = []
    for link in soup.find_all("a", href=True):
        address = str(link["href"])
        if "colab.research.google.com" in address and not shapes[1].fullmatch(address):
            found.append(f"{address} is not of the repository {repository}")
        for shape in shapes:
            match = shape.match(address)
            if match and match["branch"] != branch:
                found.append(f"{address} is not of the branch {branch}")
            elif match and not (tree / unquote(match["path"])).exists():
                found.append(f"{address} is not in the tree")
    return found
