"""The built book, page by page, in a real browser; and the checks themselves, on pages broken on purpose."""

from __future__ import annotations

import json
import random
import re
from pathlib import Path

import pytest
import yaml
from bs4 import BeautifulSoup
from page_checks import (
    DESKTOP,
    PHONE,
    Site,
    access_problems,
    contrast_problems,
    dark_figure_problems,
    foreign_asset_problems,
    heading_problems,
    image_problems,
    math_problems,
    print_problems,
    reach_problems,
    repository_link_problems,
    serve,
    table_problems,
    text_problems,
    unavailable,
    visit,
    weight_problems,
    width_problems,
    wrap_problems,
)
from playwright.sync_api import Browser

from book._ext.repository_address import BRANCH, repository_url
from recsys_lib.chapter.results import ChapterResults, Result

ROOT = Path(__file__).resolve().parents[2]


def contents() -> list[str]:
    """The pages of the table of contents."""
    toc = yaml.safe_load((ROOT / "_toc.yml").read_text("utf8"))
    pages = [toc["root"]]
    for part in toc["parts"]:
        for chapter in part["chapters"]:
            pages.append(chapter["file"])
            pages += [section["file"] for section in chapter.get("sections", [])]
    return pages


PAGES = contents()
NOTEBOOKS = [name for name in PAGES if (ROOT / f"{name}.ipynb").exists()]


def source_of(name: str) -> Path:
    """The committed source of a page."""
    return next(path for end in ("ipynb", "md") if (path := ROOT / f"{name}.{end}").exists())


# ---- all pages ----


def test_all_pages_and_no_others_are_built(html: Path) -> None:
    built = {path.relative_to(html).with_suffix("").as_posix() for path in html.rglob("*.html")}
    built -= {"index", "search"}
    built = {name for name in built if not name.startswith("_static/")}
    assert built == set(PAGES)
    assert set(NOTEBOOKS) == {f"notebooks/{path.stem}" for path in (ROOT / "notebooks").glob("*.ipynb")}


def test_first_page_leads_to_the_book(html: Path) -> None:
    first = BeautifulSoup((html / "index.html").read_text("utf8"), "html.parser")
    refresh = first.find("meta", attrs={"http-equiv": re.compile("refresh", re.IGNORECASE)})
    assert refresh is not None
    assert (html / str(refresh["content"]).split("url=")[1].strip()).is_file()


def test_nothing_built_names_another_host(html: Path) -> None:
    found = []
    for sheet in html.rglob("*.css"):
        for match in re.finditer(
            r"(?:@import|url\()\s*[\"']?(?:https?:)?//[^\"')\s]+", sheet.read_text("utf8")
        ):
            found.append(f"{sheet.relative_to(html)}: {match[0]}")
    assert not found
    assert not list(html.rglob("*thebe*"))


@pytest.mark.parametrize("name", [*PAGES, "search"])
class TestPage:
    def test_opens_from_a_folder_on_a_phone(self, name: str, html: Path, browser: Browser) -> None:
        with visit(browser, (html / f"{name}.html").as_uri(), width=PHONE) as seen:
            problems = math_problems(seen.page) + width_problems(seen.page)
            problems += reach_problems(seen.page) + heading_problems(seen.page) + wrap_problems(seen.page)
        assert not seen.problems() + problems

    def test_opens_from_a_server(self, name: str, server: str, browser: Browser) -> None:
        with visit(browser, f"{server}/{name}.html") as seen:
            problems = math_problems(seen.page) + width_problems(seen.page) + contrast_problems(seen.page)
            problems += reach_problems(seen.page) + heading_problems(seen.page) + weight_problems(seen)
            assert seen.page.evaluate("document.documentElement.lang") == "en"
        assert not seen.problems() + problems

    def test_reads_well_in_the_dark(self, name: str, html: Path, browser: Browser) -> None:
        with visit(browser, (html / f"{name}.html").as_uri(), dark=True) as seen:
            problems = contrast_problems(seen.page)
            for image in seen.page.locator("article figure img").all():
                if not image.is_visible():
                    continue  # the picture of a figure that a script draws, kept for paper
                classes = (image.get_attribute("class") or "").split()
                for problem in dark_figure_problems(image, as_it_is="as-it-is" in classes):
                    problems.append(f"{image.get_attribute('alt')}: {problem}")
        assert not problems

    @pytest.mark.parametrize(("width", "dark"), [(DESKTOP, False), (DESKTOP, True), (PHONE, False)])
    def test_is_open_to_everybody(
        self, width: int, dark: bool, name: str, html: Path, browser: Browser
    ) -> None:
        with visit(browser, (html / f"{name}.html").as_uri(), width=width, dark=dark) as seen:
            assert not access_problems(seen.page)

    def test_prints_whole(self, name: str, html: Path, browser: Browser) -> None:
        with visit(browser, (html / f"{name}.html").as_uri()) as seen:
            assert not print_problems(seen.page)

    def test_links_lead_somewhere(self, name: str, site: Site) -> None:
        path = site.root / f"{name}.html"
        links = repository_link_problems(site.soup(path), repository_url(ROOT), BRANCH, ROOT)
        assert not site.link_problems(path) + links

    def test_text(self, name: str, site: Site) -> None:
        soup = site.soup(site.root / f"{name}.html")
        assert not (
            image_problems(soup) + text_problems(soup) + table_problems(soup) + foreign_asset_problems(soup)
        )


# ---- buttons ----


@pytest.mark.parametrize("name", PAGES)
def test_page_can_be_edited_and_downloaded(name: str, site: Site) -> None:
    soup = site.soup(site.root / f"{name}.html")
    source = source_of(name)
    links = {str(link["href"]) for link in soup.find_all("a", href=True)}
    assert f"{repository_url(ROOT)}/edit/{BRANCH}/{source.relative_to(ROOT).as_posix()}" in links
    download = site.root / "_sources" / source.relative_to(ROOT)
    assert any(link.endswith(f"_sources/{source.relative_to(ROOT).as_posix()}") for link in links)
    assert download.read_bytes() == source.read_bytes()


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_chapter_has_its_card(name: str, site: Site) -> None:
    soup = site.soup(site.root / f"{name}.html")
    card = soup.select_one("h1 + .run-card, h1 ~ .run-card")
    assert card is not None
    facts = {fact.dt.get_text(): fact.dd.get_text(strip=True) for fact in card.select(".run-fact")}
    assert {"Device", "Run time", "Run on", "Versions", "Data", "Seed"} <= facts.keys()
    assert all(facts.values())
    assert "torch" in facts["Versions"]
    colab = f"https://colab.research.google.com/github/{repository_url(ROOT)[19:]}/blob/{BRANCH}/{name}.ipynb"
    assert colab in {str(link["href"]) for link in card.find_all("a")}
    # the theme's own launch button agrees with the card's
    assert colab in {str(link["href"]) for link in soup.select(".dropdown-launch-buttons a")}


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_chapter_shows_what_was_executed(name: str, site: Site) -> None:
    copy = json.loads((ROOT / "_build" / "executed" / f"{name}.ipynb").read_text("utf8"))
    shown = [
        cell
        for cell in copy["cells"]
        if cell.get("outputs") and "remove" not in str(cell["metadata"].get("tags"))
    ]
    outputs = site.soup(site.root / f"{name}.html").select(".cell_output")
    assert bool(outputs) == bool(shown)


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_chapter_is_numbered_like_its_file(name: str, site: Site) -> None:
    number = int(Path(name).name[:2])
    title = site.soup(site.root / f"{name}.html").find("h1").get_text().rstrip("#")
    written = re.match(r"(\d+)[.:]? ", title)
    assert number == 99 or (written and int(written[1]) == number), f"{title!r} is chapter {number}"
    for caption in site.soup(site.root / f"{name}.html").select("figcaption .caption-number"):
        assert caption.get_text().startswith(f"Figure {number}."), caption.get_text()


# ---- the first page and the scoreboard ----


def board() -> list[Result]:
    """The rows of the scoreboard, best first."""
    paths = [ROOT / "_build" / "results" / f"{Path(name).name}.json" for name in NOTEBOOKS]
    read = [ChapterResults.read(path) for path in paths if path.is_file()]
    rows = [row for results in read for row in results.results if row.scoreboard]
    return sorted(rows, key=lambda row: -row.value)


def test_first_screen_shows_what_was_found(html: Path, browser: Browser) -> None:
    with visit(browser, (html / f"{PAGES[0]}.html").as_uri()) as seen:
        headline = seen.page.locator("article p.headline")
        figure = seen.page.locator("article figure img").first.bounding_box()
        best = board()[0]
        assert best.model in headline.inner_text()
        assert f"{best.value:.3f}" in headline.inner_text()
        assert figure["y"] + figure["height"] <= 900


def test_scoreboard_fits_a_phone(html: Path, browser: Browser) -> None:
    with visit(browser, (html / "notebooks" / "99_scoreboard.html").as_uri(), width=PHONE) as seen:
        table = seen.page.locator("table", has_text="95 % interval").first
        for column in ("model", "95 % interval", "fit, s"):
            box = table.locator("th", has_text=column).first.bounding_box()
            assert 0 <= box["x"] < box["x"] + box["width"] <= PHONE, column


# ---- what readers do ----


def test_theme_can_be_switched(html: Path, browser: Browser) -> None:
    with visit(browser, (html / f"{PAGES[0]}.html").as_uri()) as seen:
        page = seen.page
        ground = "getComputedStyle(document.body).backgroundColor"
        met = {}
        for _ in range(3):
            page.locator("button.theme-switch-button:visible").first.click()
            met[page.evaluate("document.documentElement.dataset.mode")] = page.evaluate(ground)
        assert {"light", "dark"} <= met.keys()
        assert met["light"] != met["dark"]
    assert not seen.problems()


@pytest.mark.parametrize("dark", [False, True])
def test_theme_follows_the_system(dark: bool, html: Path, browser: Browser) -> None:
    with visit(browser, (html / f"{PAGES[0]}.html").as_uri(), dark=dark) as seen:
        assert seen.page.evaluate("document.documentElement.dataset.theme") == ("dark" if dark else "light")


def test_search_finds_pages(server: str, browser: Browser) -> None:
    with visit(browser, f"{server}/{PAGES[0]}.html") as seen:
        page = seen.page
        page.locator("button.search-button-field:visible, button.search-button:visible").first.click()
        page.locator("input[type=search]:visible").first.fill("notation")
        page.keyboard.press("Enter")
        page.wait_for_url("**/search.html?q=notation*")
        page.locator("#search-results ul.search li a").first.wait_for(timeout=15_000)
        found = page.eval_on_selector_all("#search-results ul.search li a", "all => all.map(a => a.href)")
        assert any("/book/notation.html" in address for address in found)
        page.goto(found[0])
    assert not seen.problems()


def test_search_finds_pages_from_a_folder(html: Path, browser: Browser) -> None:
    with visit(browser, (html / "search.html").as_uri() + "?q=notation") as seen:
        seen.page.locator("#search-results ul.search li a").first.wait_for(timeout=15_000)
    assert not seen.outside


def test_printing_unfolds_and_puts_back(html: Path, browser: Browser) -> None:
    name = (NOTEBOOKS or PAGES)[0]
    with visit(browser, (html / f"{name}.html").as_uri(), dark=True) as seen:
        state = """() => [document.documentElement.dataset.theme,
                          [...document.querySelectorAll('details')].map(d => d.open)]"""
        before = seen.page.evaluate(state)
        seen.page.evaluate("dispatchEvent(new Event('beforeprint'))")
        theme, opened = seen.page.evaluate(state)
        assert theme == "light"
        assert all(opened)
        seen.page.evaluate("dispatchEvent(new Event('afterprint'))")
        assert seen.page.evaluate(state) == before


def test_keyboard_reaches_the_text(html: Path, browser: Browser) -> None:
    with visit(browser, (html / f"{PAGES[0]}.html").as_uri(), width=DESKTOP) as seen:
        seen.page.keyboard.press("Tab")
        assert "skip" in seen.page.evaluate("document.activeElement.textContent").lower()
        shown = "(({outlineStyle: line, boxShadow: ring}) => line != 'none' || ring != 'none')"
        for _ in range(12):
            seen.page.keyboard.press("Tab")
            if seen.page.evaluate("document.activeElement.localName") == "a":
                assert seen.page.evaluate(f"{shown}(getComputedStyle(document.activeElement))")


def plain(text: str) -> str:
    """Undo the typesetting of quotation marks and dashes, and join the lines."""
    for typeset, typed in (("’", "'"), ("‘", "'"), ("“", '"'), ("”", '"'), ("…", "..."), ("–", "--")):
        text = text.replace(typeset, typed)
    return " ".join(text.split())


def test_claims_page_names_every_claim(site: Site) -> None:
    if "book/claims" not in PAGES:
        pytest.fail("the book has no claims page")
    results = [ROOT / "_build" / "results" / f"{Path(name).name}.json" for name in NOTEBOOKS]
    claims = [claim for path in results if path.is_file() for claim in ChapterResults.read(path).claims]
    rows = site.soup(site.root / "book/claims.html").select("table.claims-table tbody tr")
    assert len(rows) == len(claims)
    for row, claim in zip(rows, claims, strict=True):
        assert plain(claim.statement) in plain(row.get_text(" ", strip=True))
        assert claim.verdict in row.select_one(f".verdict-{claim.verdict}").get_text()
        assert row.find("a") is not None


def test_status_page_names_every_notebook(site: Site) -> None:
    rows = site.soup(site.root / "book/status.html").select("table.status-table tbody tr")
    targets = {str(row.find("a")["href"]) for row in rows if row.find("a")}
    assert targets == {f"../{name}.html" for name in NOTEBOOKS}


# ---- the checks themselves ----


def test_missing_browser_fails_only_in_continuous_integration(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CI", "true")
    with pytest.raises(pytest.fail.Exception, match="no browser"):
        unavailable("no browser")
    monkeypatch.delenv("CI")
    with pytest.raises(pytest.skip.Exception, match="no browser"):
        unavailable("no browser")


CLEAN = """<!doctype html><html lang="en"><head><title>t</title><style>{style}</style></head>
<body style="background: #fff; color: #222"><article>{body}</article></body></html>"""


def tiny(folder: Path, body: str, style: str = "") -> Path:
    path = folder / "page.html"
    path.write_text(CLEAN.format(body=body, style=style), encoding="utf8")
    return path


@pytest.mark.parametrize(
    ("body", "sign"),
    [
        ('<script src="https://example.org/a.js"></script>', "third party"),
        ('<img alt="a" src="http://example.org/a.png">', "third party"),
        ("<style>@import url(https://example.org/a.css);</style>", "third party"),
        ("<script>fetch('https://example.org/a')</script>", "third party"),
        ('<script src="missing.js"></script>', "cannot load"),
        ("<script>throw new Error('broken')</script>", "script error: broken"),
        ("<script>console.error('said')</script>", "script error: said"),
    ],
)
def test_requests_and_errors_are_noticed(body: str, sign: str, tmp_path: Path, browser: Browser) -> None:
    with visit(browser, tiny(tmp_path, body).as_uri()) as seen:
        seen.page.wait_for_timeout(200)
    assert any(sign in problem for problem in seen.problems())


@pytest.mark.parametrize(
    ("check", "body", "style"),
    [
        (math_problems, '<span class="math">\\(x\\)</span>', ""),
        (math_problems, '<div class="math"><mjx-merror>Undefined</mjx-merror></div>', ""),
        (math_problems, '<mjx-container><svg><g fill="red"></g></svg></mjx-container>', ""),
        (
            math_problems,
            '<mjx-container><svg><g data-mml-node="mi"></g></svg>'
            "<mjx-assistive-mml><math><mi>x</mi></math></mjx-assistive-mml></mjx-container>",
            "",
        ),
        (access_problems, '<img src="data:,">', ""),
        (access_problems, '<button aria-label="Find">Search</button>', ""),
        (
            access_problems,
            '<div style="overflow: auto; height: 20px"><p style="height: 99px">a</p></div>',
            "",
        ),
        (access_problems, "<table><tr><th></th><th>a</th></tr><tr><td>1</td><td>2</td></tr></table>", ""),
        (heading_problems, "<h1>a</h1><h2>b</h2><h3>c</h3>", "h3 { font-size: 2em }"),
        (heading_problems, "<h1>a</h1><h2>b</h2>", "h1 { font-weight: 400 }"),
        (reach_problems, "<pre style='overflow: auto'>" + "x" * 400 + "</pre>", ""),
        (
            reach_problems,
            '<div style="overflow: auto"><table style="width: 900px"><caption>c</caption></table></div>',
            "",
        ),
        (
            reach_problems,
            '<div class="output text_html"><p style="width: 900px">a</p></div>',
            ".output { overflow: auto }",
        ),
        (
            reach_problems,
            '<div class="prev-next-area"><a>Next<i style="margin-left: 400px">x</i></a></div>',
            "body { overflow-x: hidden }",
        ),
        (wrap_problems, "<p>It took 40 s.</p>", "p { width: 1px }"),
        (
            wrap_problems,
            '<p>To <span class="math">K</span>.</p>',
            ".math { display: inline-block } p { width: 1px }",
        ),
        (width_problems, '<div style="width: 600px">wide</div>', ""),
        (width_problems, '<div style="width: 600px">cut</div>', "body { overflow-x: hidden }"),
        (print_problems, "<pre>" + "x" * 400 + "</pre>", ""),
        (print_problems, "<details><summary>s</summary><p>folded</p></details>", ""),
        (
            print_problems,
            "<details open><summary>s</summary><p>blank</p></details>",
            "@media print { details > p { opacity: 0 } }",
        ),
        (contrast_problems, '<p style="color: #aaa">pale</p>', ""),
        (contrast_problems, '<p style="background: #333">dark on dark</p>', ""),
        (contrast_problems, '<p style="color: rgb(0 0 0 / 30%)">thin</p>', ""),
    ],
)
def test_checks_in_the_browser_can_fail(check, body, style, tmp_path: Path, browser: Browser) -> None:
    with visit(browser, tiny(tmp_path, body, style).as_uri(), width=PHONE) as seen:
        assert check(seen.page)


def test_checks_in_the_browser_can_pass(tmp_path: Path, browser: Browser) -> None:
    body = """<p>Plain text.</p>
    <div style="overflow-x: auto"><table style="width: 900px"><tr><th>a</th></tr></table></div>
    <pre>short</pre><details open><summary>s</summary><p>open</p></details>"""
    with visit(browser, tiny(tmp_path, body).as_uri(), width=PHONE) as seen:
        page = seen.page
        assert not seen.problems()
        assert not math_problems(page) + width_problems(page) + print_problems(page) + contrast_problems(page)
        assert not heading_problems(page) + reach_problems(page) + wrap_problems(page)


def test_accessible_page_passes(tmp_path: Path, browser: Browser) -> None:
    body = """<main><h1>Title</h1><img alt="A dot" src="data:,"><button>Search</button>
    <table><tr><td></td><th>a</th></tr><tr><th>b</th><td>2</td></tr></table></main>"""
    with visit(browser, tiny(tmp_path, body).as_uri()) as seen:
        assert not access_problems(seen.page)


@pytest.mark.parametrize(
    ("body", "sign"),
    [
        ('<script src="heavy.js"></script>', "bytes, more than 300,000"),
        ('<span class="math"></span><script src="heavy.js"></script>', ""),
        ('<script src="mathjax.js"></script>', "has no formula"),
        ("".join(f'<script src="small.js?{n}"></script>' for n in range(20)), "21 files"),
    ],
)
def test_weight_is_noticed(body: str, sign: str, tmp_path: Path, browser: Browser) -> None:
    noise = random.Random(0).randbytes(200_000).hex()
    for name, text in (("heavy", f"/*{noise}{noise[::-1]}*/"), ("mathjax", ""), ("small", "")):
        (tmp_path / f"{name}.js").write_text(text, encoding="utf8")
    tiny(tmp_path, body + '<link rel="icon" href="data:,">')
    with serve(tmp_path) as address, visit(browser, f"{address}/page.html") as seen:
        problems = weight_problems(seen)
    assert bool(problems) == bool(sign)
    assert all(sign in problem for problem in problems)


@pytest.mark.parametrize(
    ("ink", "ground", "good"), [("#eee", "#111", True), ("#eee", "#fff", False), ("#222", "#111", False)]
)
def test_dark_figures_are_looked_at(
    ink: str, ground: str, good: bool, tmp_path: Path, browser: Browser
) -> None:
    drawing = (
        f"<svg xmlns='http://www.w3.org/2000/svg' width='200' height='100'><rect width='200' height='100' "
        f"fill='{ground}'/><path d='M0 50H200' stroke='{ink}' stroke-width='4'/></svg>"
    )
    (tmp_path / "a.svg").write_text(drawing, encoding="utf8")
    with visit(browser, tiny(tmp_path, '<figure><img alt="a" src="a.svg"></figure>').as_uri()) as seen:
        problems = dark_figure_problems(seen.page.locator("img").first, as_it_is=False)
    assert bool(problems) != good


@pytest.mark.parametrize(
    ("check", "body"),
    [
        (image_problems, '<figure><img src="a.png"><figcaption>c</figcaption></figure>'),
        (
            image_problems,
            '<figure><img alt="../_images/a.png" src="a.png"><figcaption>c</figcaption></figure>',
        ),
        (image_problems, '<figure><img alt="a" src="a.png"></figure>'),
        (image_problems, '<figure><img alt="a" src="a.png"><figcaption> </figcaption></figure>'),
        (image_problems, '<img alt="a" src="a.png">'),
        (text_problems, "<p>The value is {glue:text}`mf_rmse:.3f`.</p>"),
        (text_problems, "<p>As {cite:p}`x` says.</p>"),
        (text_problems, "<p>:::note</p>"),
        (text_problems, '<div class="cell_output"><pre>Traceback (most recent call last):</pre></div>'),
        (text_problems, '<span class="problematic">`x`</span>'),
        (table_problems, "<table><tr><td>1</td></tr></table>"),
        (foreign_asset_problems, '<script src="//cdn.example.org/a.js"></script>'),
        (foreign_asset_problems, '<link rel="preconnect" href="https://fonts.example.org">'),
        (foreign_asset_problems, '<script>const U = "https://unpkg.com/thebe"</script>'),
    ],
)
def test_checks_of_text_can_fail(check, body: str) -> None:
    assert check(BeautifulSoup(CLEAN.format(body=body, style=""), "html.parser"))


def test_checks_of_text_can_pass() -> None:
    body = """<p>Plain, with a <code>{glue:text}`x`</code> shown.</p><pre>{cite}`x`</pre>
    <figure><img alt="Two lines" src="a.png"><figcaption>Two lines.</figcaption></figure>
    <table><tr><th>a</th></tr></table><a href="https://example.org">out</a>
    <link rel="canonical" href="https://example.org/page.html">"""
    soup = BeautifulSoup(CLEAN.format(body=body, style=""), "html.parser")
    assert (
        not image_problems(soup) + text_problems(soup) + table_problems(soup) + foreign_asset_problems(soup)
    )


@pytest.mark.parametrize("address", ["other.html", "page.html#nowhere", "#nowhere", "../out.html"])
def test_dead_links_are_noticed(address: str, tmp_path: Path) -> None:
    site = tmp_path / "site"
    site.mkdir()
    (tmp_path / "out.html").touch()
    page = tiny(site, f'<a href="{address}">x</a><p id="here">y</p>')
    assert Site(site).link_problems(page)


def test_live_links_are_let_pass(tmp_path: Path) -> None:
    page = tiny(tmp_path, '<a href="#here">x</a><a href="page.html#here">z</a><p id="here">y</p>')
    assert not Site(tmp_path).link_problems(page)


@pytest.mark.parametrize(
    "address",
    [
        "https://github.com/me/book/edit/main/notebooks/gone.ipynb",
        "https://github.com/me/book/edit/master/notebooks/here.ipynb",
        "https://colab.research.google.com/github/me/book/blob/main/notebooks/gone.ipynb",
        "https://colab.research.google.com/github/you/book/blob/main/notebooks/here.ipynb",
    ],
)
def test_dead_buttons_are_noticed(address: str, tmp_path: Path) -> None:
    (tmp_path / "notebooks").mkdir()
    (tmp_path / "notebooks" / "here.ipynb").touch()

    def problems(address: str) -> list[str]:
        soup = BeautifulSoup(f'<a href="{address}">x</a>', "html.parser")
        return repository_link_problems(soup, "https://github.com/me/book", "main", tmp_path)

    assert problems(address)
    assert not problems("https://colab.research.google.com/github/me/book/blob/main/notebooks/here.ipynb")
    assert not problems("https://github.com/me/book/edit/main/notebooks/here.ipynb")
