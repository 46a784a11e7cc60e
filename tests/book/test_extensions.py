"""The Sphinx extensions, on a small book of two notebooks that is built, changed and built again."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from bs4 import BeautifulSoup
from fontTools.ttLib import TTFont
from sphinx.errors import ConfigError, ExtensionError

from book._ext import bundles, front_page, offline_assets, readable_markup
from book._ext.book_data import (
    BadDataError,
    chapter_results,
    dataset,
    day,
    duration,
    hardware,
    memory,
    run_metadata,
)
from book._ext.chapter_numbers import by_chapter, chapter_number
from book._ext.dress import boxed, dressed, slug
from book._ext.repository_address import pages_url, repository_url, stamped
from book._ext.result_tables import ICONS, as_sentence
from book.dependencies import Package
from book.execute import Layout, digest, inputs
from recsys_lib.chapter.results import VERDICTS, Result

ROOT = Path(__file__).resolve().parents[2]
RUN = "from jupyter_book.cli.main import main; main()"
HOSTILE = "<script>alert(1)</script> & {ref}`x` $y$ [z](javascript:1) **bold**"

TOC = """\
format: jb-book
root: book/index
parts:
  - caption: Chapters
    chapters:
      - file: notebooks/01_first
      - file: notebooks/04_second
  - caption: Results
    chapters:
      - file: book/claims
      - file: book/status
      - file: book/notation
      - file: book/references
"""

RECORDED = {
    "title": "", "dataset": "100k", "seed": 7, "device": "cpu", "hardware": "cpu: x", "seconds": 190.0,
    "peak_memory_mb": None, "versions": {}, "results": [], "numbers": {}, "headline_numbers": {},
    "claims": [],
}  # fmt: skip

PAPER = "[Sun et al. (2019)](https://doi.org/10.1145/3357384.3357895)"
STREAM = {"output_type": "stream", "name": "stdout", "text": "x"}
SVG = "<svg xmlns='http://www.w3.org/2000/svg' width='9' height='9'><rect width='9' height='9'/></svg>"


def markdown(text: str, *tags: str) -> dict[str, Any]:
    return {"cell_type": "markdown", "metadata": {"tags": list(tags)} if tags else {}, "source": text}


def code(source: str, outputs: list[dict[str, Any]], **metadata: Any) -> dict[str, Any]:
    cell = {"cell_type": "code", "metadata": metadata, "source": source, "execution_count": 1}
    return {**cell, "outputs": outputs}


def said(*texts: str, tags: tuple[str, ...] = ("say", "remove-input")) -> dict[str, Any]:
    outputs = [
        {"output_type": "display_data", "data": {"text/markdown": text, "text/plain": text}, "metadata": {}}
        for text in texts
    ]
    return code("# @title Text\nchapter.say('hidden')", outputs, tags=list(tags))


def figure(name: str) -> dict[str, Any]:
    output = {"output_type": "display_data", "data": {"image/svg+xml": SVG}, "metadata": {}}
    settings = {
        "figure": {"caption": f"Figure {name}.", "name": name},
        "image": {"alt": f"A square, {name}."},
    }
    return code("plot()", [output], mystnb=settings)


class Book:
    """A small book in a folder of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.html = folder / "_build" / "html"
        shutil.copytree(ROOT / "book", folder / "book", ignore=shutil.ignore_patterns("__pycache__", "*.md"))
        # the extensions read results through the library
        unwanted = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / "recsys_lib", folder / "recsys_lib", ignore=unwanted)
        shutil.copyfile(ROOT / "_config.yml", folder / "_config.yml")
        self.write("_toc.yml", TOC)
        self.write("pyproject.toml", '[project.urls]\nRepository = "https://github.com/me/small-book"\n')
        self.write("book/index.md", "# A small book\n\n$x^2$\n")
        self.write("book/claims.md", "# Claims\n\n```{claims}\n```\n")
        self.write("book/status.md", "# Status\n\n```{status}\n```\n")
        self.write("book/notation.md", '# Notation\n\n<a id="term-clear"></a>**Clear.** Not zero.\n')
        self.write("book/references.md", "# References\n\n```{bibliography}\n:all:\n```\n")
        self.first(0.25)
        self.second()

    def write(self, name: str, text: str) -> None:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf8")

    def notebook(self, name: str, cells: list[dict[str, Any]], results: dict[str, Any]) -> None:
        """Write a notebook, its executed copy and its results, as the runner leaves them."""
        layout = Layout(self.folder)
        kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
        whole = {"nbformat": 4, "nbformat_minor": 5, "metadata": kernel}
        cells = [{"id": f"c{place}", **cell} for place, cell in enumerate(cells)]
        clean = [
            {**cell, "outputs": [], "execution_count": None} if "outputs" in cell else cell for cell in cells
        ]
        path = layout.notebooks / f"{name}.ipynb"
        self.write(f"notebooks/{name}.ipynb", json.dumps({**whole, "cells": clean}))
        recorded = json.dumps({**RECORDED, "chapter": name, **results})
        self.write(f"_build/results/{name}.json", recorded)
        made_from = inputs(path, layout, Package(self.folder))
        run = {
            "hash": digest(json.dumps(made_from, sort_keys=True)),
            "inputs": made_from,
            "seconds": 200.0,
            "peak_memory_mb": 1500,
            "device": "cpu",
            "hardware": f"cpu: {HOSTILE}",
            "date": "2026-11-21T10:00:00+00:00",
            "python": "3.11.2",
            "versions": {"torch": "2.13.0", "numpy": f"2.4.6 {HOSTILE}"},
            "results_sha256": hashlib.sha256(recorded.encode()).hexdigest(),
        }
        copy = {**whole, "metadata": {**kernel, "recsys_book": run}, "cells": cells}
        self.write(f"_build/executed/notebooks/{name}.ipynb", json.dumps(copy))

    def first(self, value: float, verdict: str = "holds", **claim: str) -> None:
        claims = [
            {"id": "one", "statement": f"One. {HOSTILE}", "verdict": verdict, "evidence": HOSTILE,
             "condition": "", "chapter": "01_first", **claim},
            {"id": "two", "statement": "Two.", "verdict": "depends", "evidence": "e",
             "condition": f"only now {HOSTILE}", "chapter": "01_first"},
        ]  # fmt: skip
        cells = [
            markdown("# 1. First\n\nText."),
            code("show()", [{"output_type": "stream", "name": "stdout", "text": f"executed {value}\n"}]),
            figure("fig-a"),
            figure("fig-b"),
            markdown("Here, see {numref}`fig-b`. $$ a $$"),
        ]
        self.notebook("01_first", cells, {"claims": claims})

    def second(self, *more: dict[str, Any], **results: Any) -> None:
        colab = "[Open this chapter on Colab](https://colab.research.google.com/x)"
        cells = [
            markdown(f"# 4. Second\n\nIntroduced.\n\n{colab}"),
            figure("fig-c"),
            said(
                f"It gains **+0.5**, $x^2$: {PAPER}, [the figure](#fig-c), [that](01_first.ipynb#fig-b).\n\n"
                "| a |\n|---|\n| b |",
                "And [chapter 1](01_first.ipynb), [clear](../book/notation.md#term-clear).",
            ),
            markdown("### What do you expect?\n\nWhich wins?", "guess"),
            markdown("## What goes wrong\n\nSorting.", "mistake"),
            markdown("By hand: 0.5.", "toy"),
            markdown("### Exercise: Add *one*\n\n*Easy.* To two.", "exercise"),
            markdown("### Solution\n\nThree.", "solution"),
            code("2 + 1", [], tags=["solution"]),
            said("It is 3.", tags=("solution", "say", "remove-input")),
            markdown("### Exercise: Again\n\n*Hard.* To four.", "exercise"),
            markdown("### Solution\n\nFive.", "solution"),
            markdown("## Sources\n\nThe [exercise](#exercise-again)."),
            *more,
        ]
        self.notebook("04_second", cells, results)

    def build(self, **environment: str) -> subprocess.CompletedProcess[str]:
        """Build the pages, as `make book` does, but on top of what is there."""
        kept = {name: value for name, value in os.environ.items() if name != "GITHUB_REPOSITORY"}
        return subprocess.run(
            [sys.executable, "-c", RUN, "build", ".", "-W", "--keep-going", "-n"],
            cwd=self.folder,
            env={**kept, "PYTHONPATH": str(self.folder), "NO_COLOR": "1", **environment},
            capture_output=True,
            text=True,
            check=False,
        )

    def page(self, name: str) -> BeautifulSoup:
        """A page, parsed, in which spaces of both kinds read alike."""
        text = (self.html / f"{name}.html").read_text("utf8").replace("\N{NO-BREAK SPACE}", " ")
        return BeautifulSoup(text, "html.parser")


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Book:
    """A book that is built once; tests only read it."""
    book = Book(tmp_path_factory.mktemp("book"))
    done = book.build()
    assert done.returncode == 0, done.stdout + done.stderr
    return book


@pytest.fixture
def book(built: Book, tmp_path: Path) -> Book:
    """A copy of the built book, to change and to build again; its first build reads everything anew."""
    shutil.copytree(built.folder, tmp_path / "book")
    copy = object.__new__(Book)
    copy.folder = tmp_path / "book"
    copy.html = copy.folder / "_build" / "html"
    return copy


def scored(model: str, value: float, seconds: float | None) -> dict[str, Any]:
    """A row of the scoreboard, as a chapter records it."""
    return {
        "name": slug(model) or "x", "value": value, "low": value - 0.01, "high": value + 0.01, "n": 9,
        "metric": "ndcg@10", "model": model, "family": "f", "seed": 0, "fit_seconds": seconds,
        "headline": False, "scoreboard": True, "deterministic": False,
    }  # fmt: skip


def plain(text: str) -> str:
    """Text with ordinary spaces."""
    return " ".join(text.split())


# ---- a build ----


def test_page_shows_the_copy_and_offers_the_source(built: Book) -> None:
    assert "executed 0.25" in built.page("notebooks/01_first").get_text()
    download = built.html / "_sources" / "notebooks" / "01_first.ipynb"
    assert download.read_bytes() == (built.folder / "notebooks" / "01_first.ipynb").read_bytes()
    assert "executed 0.25" not in download.read_text("utf8")


def test_card_follows_the_title(built: Book) -> None:
    card = built.page("notebooks/01_first").select_one("h1 + aside.run-card")
    facts = {fact.dt.get_text(): fact.dd.get_text(strip=True) for fact in card.select(".run-fact")}
    assert facts["Data"] == "MovieLens-100K"
    assert facts["Seed"] == "7"
    assert facts["Run time"] == "3 min 20 s"
    assert facts["Peak memory"] == "1.5 GB"
    assert facts["Run on"] == "2026-11-21"
    assert facts["Versions"].startswith("python 3.11.2 · torch 2.13.0")
    links = {link.get_text(): link["href"] for link in card.find_all("a")}
    colab = "https://colab.research.google.com/github/me/small-book/blob/main/notebooks/01_first.ipynb"
    assert links["Open in Colab"] == colab
    assert links["Download the notebook"] == "../_sources/notebooks/01_first.ipynb"
    assert built.page("book/index").select_one(".run-card") is None


def test_recorded_text_is_never_markup(built: Book) -> None:
    for name, place in (
        ("notebooks/01_first", ".run-card"),
        ("book/claims", ".claims-table"),
        ("book/status", ".versions-table"),
    ):
        part = built.page(name).select_one(place)
        assert HOSTILE in part.get_text()
        assert part.find("script") is None
        assert part.find(["strong", "b"]) is None
        assert not [link for link in part.find_all("a") if "javascript" in link["href"]]


@pytest.mark.parametrize(
    ("recorded", "shown"),
    [
        ("gap -0.44; 2e-07 of (-1)", "gap \N{MINUS SIGN}0.44; 2e\N{MINUS SIGN}07 of (\N{MINUS SIGN}1)."),
        ("all-MiniLM-L6-v2, NDCG@10, 5-10 of x-1.", "all-MiniLM-L6-v2, NDCG@10, 5-10 of x-1."),
        ("Is it?", "Is it?"),
        ("", ""),
    ],
)
def test_evidence_is_a_sentence(recorded: str, shown: str) -> None:
    assert as_sentence(recorded) == shown


def test_claims_are_listed(built: Book) -> None:
    rows = built.page("book/claims").select(".claims-table tbody tr")
    assert [row.select_one(".verdict").get_text() for row in rows] == ["✓ holds", "◐ depends"]
    assert "only now" in rows[1].get_text()
    assert [row.find("a")["href"] for row in rows] == ["../notebooks/01_first.html"] * 2
    assert rows[0].find(id="claim-one") is not None
    heads = [head.get_text(strip=True) for head in built.page("book/claims").select(".claims-table th")]
    assert heads == ["Claim", "Verdict", "Evidence", "Chapter"]


def test_status_lists_runs_and_versions(built: Book) -> None:
    rows = built.page("book/status").select(".status-table tbody tr")
    cells = [[cell.get_text(strip=True) for cell in row.find_all("td")] for row in rows]
    assert cells[0] == ["1. First", "3 min 20 s", "1.5 GB", "2026-11-21"]
    assert cells[2][:3] == ["Together", "6 min 40 s", "1.5 GB"]
    versions = built.page("book/status").select_one(".versions-table").get_text(" ", strip=True)
    assert "torch 2.13.0 all notebooks" in versions


def test_figures_are_numbered_by_chapter(built: Book) -> None:
    def numbers(name: str) -> list[str]:
        return [part.get_text(strip=True) for part in built.page(name).select("figcaption .caption-number")]

    assert numbers("notebooks/01_first") == ["Figure 1.1", "Figure 1.2"]
    assert numbers("notebooks/04_second") == ["Figure 4.1"]
    assert "see Figure 1.2" in built.page("notebooks/01_first").get_text()


def test_mathjax_is_served_where_it_is_used(built: Book) -> None:
    copy = built.html / "_static" / "mathjax" / "tex-svg-full.js"
    whole = offline_assets.mathjax_files()[0].read_text("utf8")
    assert copy.read_text("utf8") == offline_assets.without_letters(whole, "x^2")
    assert copy.with_name("LICENSE").is_file()

    def scripts(name: str) -> str:
        return " ".join(script.get("src", "") for script in built.page(name).find_all("script"))

    assert "mathjax/tex-svg-full.js" in scripts("book/index")
    assert "mathjax" not in scripts("book/status")


def test_pages_ask_for_one_style_sheet_and_one_script(built: Book) -> None:
    names = set()
    for name in ("book/index", "book/status", "notebooks/01_first", "search"):
        page = built.page(name)
        names |= {sheet["href"].split("/")[-1] for sheet in page.find_all("link", rel="stylesheet")}
        scripts = [script for script in page.find_all("script", src=True) if "mathjax" not in script["src"]]
        own = [script for script in scripts if name != "search" or "bundle" in script["src"]]
        names |= {script["src"].split("/")[-1] for script in own}
        assert len(own) == 1
        assert all(script.has_attr("defer") for script in page.find_all("script", src=True))
        assert not page.find("link", rel="preload")
    assert sorted(name.partition("?")[0][-3:] for name in names) == [".js", "css"]
    for name in names:
        assert built.html.joinpath("_static", name.partition("?")[0]).stat().st_size > 1000
    assert not list(built.html.rglob("*fontawesome*.js"))
    assert "searchtools.js" in str(built.page("search"))


def test_only_icons_in_use_are_served(built: Book) -> None:
    sheet = next((built.html / "_static").glob("bundle-*.css")).read_text("utf8")
    used = re.findall(r"\bfa-[a-z-]+", str(built.page("notebooks/01_first").select(".bd-main")))
    assert {"fa-rocket", "fa-download"} <= set(used)
    assert ".fa-rocket:before" in sheet
    assert ".fa-dragon" not in sheet
    fonts = re.findall(r"data:font/woff;base64,([^)]+)", sheet)
    faces = [TTFont(io.BytesIO(base64.b64decode(font))) for font in fonts]
    held = {code for face in faces for code in face.getBestCmap()}
    assert {0xF135, 0xF019, 0xF09B} <= held  # rocket, download, GitHub
    assert len(held) < 100
    assert all("Font Awesome" in str(face["name"].getDebugName(0)) for face in faces)  # the notice stays


def test_pages_are_mended_for_everybody(built: Book) -> None:
    page = built.page("notebooks/01_first")
    assert page.select_one("#pst-primary-sidebar")["role"] == "complementary"
    search = page.select_one(".search-button-field")
    assert not search.has_attr("aria-label")
    assert search.select_one(".search-button__kbd-shortcut")["aria-hidden"] == "true"
    assert page.select(".highlight pre .line")
    assert not built.page("book/references").select('[role="doc-biblioentry"]')


def test_thebe_and_networks_are_gone(built: Book) -> None:
    for path in built.html.rglob("*.html"):
        text = path.read_text("utf8")
        for name in ("thebe", "unpkg.com", "jsdelivr", "cdnjs", "require.min.js"):
            assert name not in text.lower(), f"{path.name} names {name}"


def test_what_the_run_said_is_text_of_the_page(built: Book) -> None:
    page = built.page("notebooks/04_second")
    assert "hidden" not in page.article.get_text()
    paragraph = next(part for part in page.find_all("p") if part.get_text().startswith("It gains"))
    assert paragraph.find("strong").get_text() == "+0.5"
    assert paragraph.select_one(".math") is not None
    assert paragraph.find_parent(class_="cell_output") is None
    assert paragraph.find_next("th").get_text() == "a"


def test_ordinary_links_are_dressed(built: Book) -> None:
    page = built.page("notebooks/04_second")
    links = {link.get_text(): link["href"] for link in page.article.find_all("a")}
    target, _, place = links["Sun et al. (2019)"].partition("#")
    assert target == "../book/references.html"
    assert "BERT4Rec" in built.page("book/references").find(id=place).get_text()
    assert links["Figure 4.1"] == "#fig-c"
    assert links["Figure 1.2"] == "01_first.html#fig-b"
    assert links["chapter 1"] == "01_first.html"
    assert links["clear"] == "../book/notation.html#term-clear"
    assert built.page("book/notation").find(id="term-clear") is not None
    assert links["exercise"] == "#exercise-again"
    assert "Open this chapter on Colab" not in page.article.get_text()


def test_cells_are_dressed_by_their_tags(built: Book) -> None:
    page = built.page("notebooks/04_second")
    guess, mistake = page.select_one(".box-guess"), page.select_one(".box-mistake")
    assert guess.select_one(".admonition-title").get_text() == "What do you expect?"
    assert "Which wins?" in guess.get_text()
    assert mistake.select_one(".admonition-title").get_text() == "A classical mistake"
    assert mistake.find_previous("h2").get_text().startswith("What goes wrong")
    assert page.select_one("div.toy").get_text(strip=True) == "By hand: 0.5."


def test_exercises_are_numbered_and_solutions_folded(built: Book) -> None:
    page = built.page("notebooks/04_second")
    posed, solved = page.select("div.exercise"), page.select("div.solution")
    titles = [part.select_one(".admonition-title").get_text(" ", strip=True) for part in posed]
    assert [title.split("(")[0].strip() for title in titles] == ["Exercise 4.1", "Exercise 4.2"]
    assert "Add one" in " ".join(titles[0].split())
    assert posed[0]["id"] == "exercise-add-one"
    assert all("dropdown" in part["class"] for part in solved)
    assert solved[0].select_one(".admonition-title").get_text(strip=True).startswith("Solution to")
    assert "Three." in solved[0].get_text()
    assert "2 + 1" in solved[0].get_text()
    assert "It is 3." in solved[0].get_text()
    assert "Five." in solved[1].get_text()
    assert "Sources" not in solved[1].get_text()


# ---- a second build ----


def test_only_what_changed_is_done_again(book: Book) -> None:
    assert book.build().returncode == 0
    done = book.build()
    assert done.returncode == 0, done.stderr
    assert "no targets are out of date" in done.stdout

    book.first(0.75, verdict="fails")
    os.utime(book.folder / "notebooks" / "01_first.ipynb", (0, 0))  # only what was made from it is newer
    done = book.build()
    assert done.returncode == 0, done.stdout + done.stderr
    assert "executed 0.75" in book.page("notebooks/01_first").get_text()
    assert "fails" in book.page("book/claims").select_one(".verdict").get_text()
    assert "book/index" not in done.stdout.split("writing output")[-1]

    copy = book.folder / "_build" / "executed" / "notebooks" / "01_first.ipynb"
    copy.write_text(copy.read_text("utf8").replace("executed 0.75", "done"), encoding="utf8")
    book.write("book/status.md", "# Runs\n\n```{status}\n```\n")
    assert book.build().returncode == 0
    assert "done" in book.page("notebooks/01_first").select_one(".cell_output").get_text()
    assert "Runs" in book.page("notebooks/04_second").select_one(".bd-sidebar-primary").get_text()


def test_a_changed_style_sheet_is_taken_up_by_pages_that_are_not_written(book: Book) -> None:
    assert book.build().returncode == 0
    before = book.page("book/status").find("link", rel="stylesheet")["href"]
    book.write("book/_static/book.css", "p { color: rebeccapurple }\n")
    book.write("book/notation.md", '# Notation\n\n<a id="term-clear"></a>**Clear.** New.\n')
    done = book.build()
    assert done.returncode == 0, done.stderr
    assert "book/status" not in done.stdout.split("writing output")[-1]
    after = book.page("book/status").find("link", rel="stylesheet")["href"]
    name, _, version = after.partition("?v=")
    assert name == before.partition("?v=")[0]
    assert after != before
    assert version
    assert "rebeccapurple" in (book.html / "book" / name).read_text("utf8")


def test_first_page_repeats_what_was_recorded(book: Book) -> None:
    book.write("book/index.md", "# A small book\n\n```{headline}\n```\n\n```{board}\n```\n")
    costs = {"Slow <b>": (0.2, 40.0), "Quick": (0.25, 0.5), "Best": (0.3, 60.0)}
    results = [scored(model, value, seconds) for model, (value, seconds) in costs.items()]
    book.second(results=results)
    done = book.build()
    # the small book has no scoreboard to link to
    assert "notebooks/99_scoreboard" in done.stderr
    page = book.page("book/index")
    assert plain(page.select_one("p.headline").get_text()) == (
        "Cheap is hard to beat. On MovieLens-100K, Quick (f) is fitted in 0.5 s and reaches NDCG@10 "
        "0.250 [0.240, 0.260]. Slow <b> (f) takes 80 times as long and reaches 0.200 [0.190, 0.210]. "
        "The best of the 3 models on the scoreboard is Best, at 0.300 [0.290, 0.310]."
    )
    image = page.select_one("figure.board img")
    assert "Quick, Best" in image["alt"]
    assert (book.html / "book" / image["src"]).is_file()


def test_missing_copy_fails_every_build(book: Book) -> None:
    (book.folder / "_build" / "executed" / "notebooks" / "01_first.ipynb").unlink()
    for _ in range(2):
        done = book.build()
        assert done.returncode != 0
        assert "not executed yet" in done.stderr


def test_warning_fails_until_it_is_mended(book: Book) -> None:
    book.write("book/index.md", "# A small book\n\n{ref}`nowhere`\n")
    for _ in range(2):  # the second build finds no page changed, and must fail all the same
        done = book.build()
        assert done.returncode != 0
        assert "nowhere" in done.stderr
    book.write("book/index.md", "# A small book\n")
    assert book.build().returncode == 0


def test_stale_copy_fails(book: Book) -> None:
    source = book.folder / "notebooks" / "01_first.ipynb"
    source.write_text(source.read_text("utf8").replace("show()", "show(2)"), encoding="utf8")
    done = book.build()
    assert done.returncode != 0
    assert "the executed copy cannot be shown: the notebook's code" in done.stderr


@pytest.mark.parametrize(
    ("claim", "sign"),
    [
        ({"verdict": "perhaps"}, "claim 'one': verdict 'perhaps' is not one of holds, fails, depends"),
        ({"id": "two"}, "the claim 'two' is made more than once"),
    ],
)
def test_bad_claim_fails(claim: dict[str, str], sign: str, book: Book) -> None:
    book.first(0.25, **claim)
    done = book.build()
    assert done.returncode != 0
    assert sign in done.stderr


def test_what_a_plain_chapter_gets_wrong_fails(book: Book) -> None:
    book.second(
        markdown("[X](https://doi.org/10.1/unknown)"),
        said("[X](https://arxiv.org/abs/9999.1)"),
        code("chapter.say('a'); x", [STREAM], tags=["say"]),
        markdown("[X](#fig-none)"),
        markdown("[X](../book/notation.md#term-none)"),
    )
    book.write("book/status.md", f"# S\n\n{PAPER}, [X](https://doi.org/10.1/page)\n")
    done = book.build()
    assert done.returncode != 0
    for sign in (
        "cell 14: https://doi.org/10.1/unknown leads to a paper",
        "cell 15: https://arxiv.org/abs/9999.1 leads to a paper",
        "cell 16: a cell that calls chapter.say shows something else",
        "fig-none",
        "term-none",
        "https://doi.org/10.1/page leads to a paper",
    ):
        assert sign in done.stderr


def test_claim_of_two_chapters_fails(book: Book) -> None:
    claim = {"id": "two", "statement": "S.", "verdict": "holds", "evidence": "e", "condition": ""}
    book.second(claims=[{**claim, "chapter": "04_second"}])
    done = book.build()
    assert done.returncode != 0
    assert "the claim 'two' is made more than once" in done.stderr


def test_build_after_a_kill_starts_afresh(book: Book) -> None:
    """A build that was killed has pickled what it read, but not written the page: the next one must."""
    assert book.build().returncode == 0
    (book.folder / "_build" / ".doctrees" / "unfinished").touch()
    page = book.html / "notebooks" / "01_first.html"
    page.write_text("an older page", encoding="utf8")
    assert book.build().returncode == 0
    assert "executed 0.25" in page.read_text("utf8")


def test_fork_points_at_itself(book: Book) -> None:
    assert book.build(GITHUB_REPOSITORY="You/fork").returncode == 0
    links = {link["href"] for link in book.page("notebooks/01_first").find_all("a", href=True)}
    assert "https://github.com/You/fork/edit/main/notebooks/01_first.ipynb" in links
    assert "https://colab.research.google.com/github/You/fork/blob/main/notebooks/01_first.ipynb" in links
    assert not [link for link in links if "small-book" in link]
    canonical = book.page("notebooks/01_first").find("link", rel="canonical")
    assert canonical["href"] == "https://you.github.io/fork/notebooks/01_first.html"


# ---- the functions ----


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0.04, "0.0 s"),
        (9.94, "9.9 s"),
        (9.95, "10 s"),
        (59.4, "59 s"),
        (59.6, "1 min 0 s"),
        (200, "3 min 20 s"),
        (3599.4, "59 min 59 s"),
        (3599.6, "1 h 0 min"),
        (7260, "2 h 1 min"),
    ],
)
def test_durations_in_words(seconds: float, words: str) -> None:
    assert duration(seconds) == words


def test_other_words() -> None:
    assert [memory(640.2), memory(999.4), memory(999.6), memory(1549)] == [
        "640 MB",
        "999 MB",
        "1.0 GB",
        "1.5 GB",
    ]
    assert [day("2026-11-21T10:00:00Z"), day("yesterday"), day("")] == ["2026-11-21", "yesterday", ""]
    assert [dataset("1m"), dataset("my own")] == ["MovieLens-1M", "my own"]
    assert hardware({"device": "cuda"}) == "cuda"
    assert hardware({"device": "cpu", "hardware": "cpu: x, 1 thread"}) == "cpu: x, 1 thread"


def test_chapter_numbers() -> None:
    assert chapter_number("notebooks/04_bpr") == 4
    assert chapter_number("book/index") is None
    plain = {
        "notebooks/04_bpr": {"figure": {"b": (8,), "a": (7,)}, "exercise": {"e": (3,)}},
        "book/index": {"figure": {"map": (1,)}},
    }
    assert by_chapter(plain) == {
        "notebooks/04_bpr": {"figure": {"a": (4, 1), "b": (4, 2)}, "exercise": {"e": (4, 1)}},
        "book/index": {"figure": {"map": (1,)}},
    }


def test_a_solution_may_be_the_last_thing_or_the_first() -> None:
    solution = markdown("### Solution\n\nSo.", "solution")
    cells, problems = dressed([markdown("### Exercise: A\n\n*Easy.* Do.", "exercise"), solution])
    assert problems == []
    assert [cell["source"].split()[0] for cell in cells] == [
        "::::{exercise}",
        "::::{solution-start}",
        "So.",
        "::::{solution-end}",
    ]
    assert dressed([solution])[1] == ["cell 1: a solution without an exercise above it"]


def test_a_box_is_fenced_by_more_colons_than_its_text() -> None:
    assert boxed(markdown("a\n:::::\nb"), "note")["source"].startswith("::::::{admonition} Note\n")
    assert boxed(markdown("### Hm"), "note")["source"] == "### Hm"  # nothing to put into the box
    assert slug("Exercise: Add *one*, or 2") == "exercise-add-one-or-2"


@pytest.mark.parametrize("text", ["", "{", "[]", '{"chapter": "x", "claims": []}'])
def test_damaged_results_are_refused_by_name(text: str, tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    assert chapter_results(path) is None
    path.write_text(text, encoding="utf8")
    with pytest.raises(BadDataError, match=r"x\.json: .*; run its notebook again"):
        chapter_results(path)


def test_every_verdict_has_its_icon() -> None:
    assert tuple(ICONS) == VERDICTS


def test_copy_of_another_tool_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.ipynb"
    path.write_text('{"metadata": {}, "cells": []}', encoding="utf8")
    with pytest.raises(BadDataError, match="make book"):
        run_metadata(path)


@pytest.mark.parametrize("address", ["", "https://example.org/a/b", "https://github.com/only-owner"])
def test_wrong_address_is_refused(address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GITHUB_REPOSITORY", raising=False)
    (tmp_path / "pyproject.toml").write_text(f'[project.urls]\nRepository = "{address}"\n', encoding="utf8")
    with pytest.raises(ConfigError, match=r"pyproject\.toml"):
        repository_url(tmp_path)


def test_addresses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GITHUB_REPOSITORY", raising=False)
    settings = '[project.urls]\nRepository = "https://github.com/Me/a.book.git"\n'
    (tmp_path / "pyproject.toml").write_text(settings, encoding="utf8")
    assert repository_url(tmp_path) == "https://github.com/Me/a.book"
    assert pages_url("https://github.com/Me/a.book") == "https://me.github.io/a.book/"
    assert pages_url("https://github.com/Me/me.github.io") == "https://me.github.io/"


def test_address_is_stamped_in_every_form() -> None:
    text = (
        "https://old.github.io/book/ https://github.com/Old/book. "
        "[c](https://colab.research.google.com/github/Old/book/blob/main/notebooks/x.ipynb)"
    )
    new = stamped(text, "https://github.com/New/other")
    assert new == (
        "https://new.github.io/other/ https://github.com/New/other. "
        "[c](https://colab.research.google.com/github/New/other/blob/main/notebooks/x.ipynb)"
    )
    assert stamped(new, "https://github.com/New/other") == new


# ---- what is made of the pages ----


def test_a_light_page() -> None:
    page = """<head>
<link rel="stylesheet" href="../_static/a.css?v=1" /><script>const x = 1</script>
<link rel="preload" as="script" href="../_static/b.js" />
<link rel="stylesheet" href="https://example.org/c.css" />
<link rel="stylesheet" href="../_static/b.css" />
<script src="../_static/b.js"></script>
<script src="../_static/searchtools.js"></script>
<script>window.MathJax = {"tex": {}}</script>
<script defer="defer" src="../_static/mathjax/tex-svg-full.js?v=2"></script>
<script src="../_static/design-tabs.js"></script>
</head>"""
    root = Path()
    light, styles, scripts = bundles.light_page(page, "book/a.html", root)
    assert styles == ["_static/a.css", "_static/b.css"]
    assert scripts == ["_static/b.js"]
    left = BeautifulSoup(light, "html.parser")
    sheet = f"../_static/{bundles.bundle_name(styles, 'css')}?v="
    assert [link["href"] for link in left.find_all("link")] == [sheet, "https://example.org/c.css"]
    assert [script.get("src") for script in left.find_all("script")] == [
        None,
        f"../_static/{bundles.bundle_name(scripts, 'js')}?v=",
    ]
    assert bundles.light_page(light, "book/a.html", root) == (light, [], [])  # once is enough

    marked = page + '<p class="math"></p><p class="sd-tab-set"></p>'
    kept = bundles.light_page(marked, "book/a.html", root)[0]
    assert "window.MathJax" in kept
    assert '<script defer="defer" src="../_static/mathjax' in kept
    assert '<script defer src="../_static/design-tabs.js">' in kept
    assert "searchtools.js" in bundles.light_page(page.replace("../", ""), "search.html", root)[0]


def test_style_sheets_are_joined_with_their_imports_and_addresses(tmp_path: Path) -> None:
    (tmp_path / "_static" / "styles").mkdir(parents=True)
    files = {
        "base.css": "b { background: url(file.png) }",
        "styles/theme.css": '/* note */ @import "../base.css"; a { background: url("../x/y.svg") }',
        "own.css": "c { background: url(data:image/png;base64,xx) } /*! licensed */",
    }
    for name, text in files.items():
        (tmp_path / "_static" / name).write_text(text, encoding="utf8")
    joined = bundles.joined_styles(["_static/styles/theme.css", "_static/own.css"], tmp_path)
    assert " ".join(joined.split()) == (
        "b { background: url(file.png) } a { background: url(x/y.svg) } "
        "c { background: url(data:image/png;base64,xx) } /*! licensed */"
    )


def test_joined_scripts_are_not_all_strict(tmp_path: Path) -> None:
    (tmp_path / "a.js").write_text('"use strict";\nlet a = 1', encoding="utf8")
    (tmp_path / "b.js").write_text("b = 2\n//# sourceMappingURL=b.js.map\n", encoding="utf8")
    joined = bundles.joined_scripts(["a.js", "b.js"], tmp_path)
    assert joined == 'void 0;\n"use strict";\nlet a = 1;\nb = 2'


def test_letters_of_mathjax_that_no_formula_uses_are_left_out() -> None:
    whole = offline_assets.mathjax_files()[0].read_text("utf8")

    def cut(formulas: str) -> str:
        return offline_assets.without_letters(whole, formulas)

    assert len(cut("x")) < len(whole) * 0.88
    every = r"\mathfrak{a} \mathsf{b} \mathtt{c} \oldstyle 1"
    assert cut(every) == whole
    assert len(cut("x")) < len(cut(r"\mathsf{b}")) < len(whole)
    assert cut("\N{MATHEMATICAL FRAKTUR SMALL A}") == cut(r"\mathfrak{a}")
    assert cut(r"\mathbf{x} \mathcal{U} \mathbb{R} \text{if}") == cut("x")
    with pytest.raises(ExtensionError, match="0 fonts 'normal'"):
        offline_assets.without_letters("", "x")


def test_code_is_made_of_lines() -> None:
    code = '<div class="highlight"><pre><span></span><span class="k">if</span> x:\n    y\n\n</pre></div>'
    lines = BeautifulSoup(readable_markup.readable(code), "html.parser").select("pre .line")
    assert [line.get_text() for line in lines] == ["if x:\n", "    y\n", "\n"]
    assert [line.get("style") for line in lines] == [None, "--in:4", None]
    assert BeautifulSoup(readable_markup.readable(code), "html.parser").pre.get_text() == "if x:\n    y\n\n"
    odd = '<div class="highlight"><pre><span>a\nb</span></pre></div>'
    assert readable_markup.readable(odd) == odd


@pytest.mark.parametrize(
    ("wrong", "right"),
    [
        ("<th></th><th>a</th>", "<td></td><th>a</th>"),
        ('<th class="head"><p></p></th>', '<td class="head"></td>'),
        ('<summary aria-label="Toggle hidden content"><p>Show</p>', "<summary><p>Show</p>"),
        ('<div role="doc-biblioentry">', '<div role="listitem">'),
        ("<thead></thead>", "<thead></thead>"),
        ("<td>-0.0020</td>", "<td>\N{MINUS SIGN}0.0020</td>"),
        ('<td class="x">-1e-05</td>', '<td class="x">\N{MINUS SIGN}1e-05</td>'),
        ("<td>-x, -1</td><p>-1</p>", "<td>-x, -1</td><p>-1</p>"),
        (
            "<p>95 % in 5 s, 3 min</p>",
            "<p>95\N{NO-BREAK SPACE}% in 5\N{NO-BREAK SPACE}s, 3\N{NO-BREAK SPACE}min</p>",
        ),
        ("<td>0.142–0.164</td>", "<td>0.142–\N{WORD JOINER}0.164</td>"),
        ("<td>0.148 ± 0.012</td>", "<td>0.148 ±\N{NO-BREAK SPACE}0.012</td>"),
        ('<p title="5 s">5 seconds: <code>5 %</code></p>', '<p title="5 s">5 seconds: <code>5 %</code></p>'),
        ('<span class="doc">8. Sequences</span>', '<span class="doc">8.\N{NO-BREAK SPACE}Sequences</span>'),
        (
            '<span class="std std-numref">Figure 1.4</span>',
            '<span class="std std-numref">Figure\N{NO-BREAK SPACE}1.4</span>',
        ),
        (
            '<p class="admonition-title">Solution to<a href="#e"> Exercise 1</a></p>',
            '<p class="admonition-title">Solution to <a href="#e">Exercise 1</a></p>',
        ),
    ],
)
def test_markup_is_mended(wrong: str, right: str) -> None:
    assert readable_markup.readable(wrong) == right
    assert readable_markup.readable(right) == right


def test_a_formula_keeps_the_sign_behind_it() -> None:
    formula = r'<span class="math notranslate nohighlight">\(2 s &lt; K\)</span>'
    first, last = (f'<span class="unbroken">{formula}{sign}</span>' for sign in ("),", "."))
    right = f"<p>({first} {formula} or {last}</p>"
    assert readable_markup.readable(f"<p>({formula}), {formula} or {formula}.</p>") == right
    assert readable_markup.readable(right) == right


def test_the_frame_names_a_chapter_in_one_piece() -> None:
    frame = '<p class="prev-next-title">8. Sequences</p>'
    assert readable_markup.framed(frame) == frame.replace(". ", ".\N{NO-BREAK SPACE}")


@pytest.mark.parametrize(
    ("rows", "pair"),
    [
        ([("a", 0.3, 1.0), ("b", 0.2, 10.0)], ("a", "b")),
        ([("a", 0.3, 1.0), ("b", 0.2, 9.9)], None),  # not that much cheaper
        ([("b", 0.3, 10.0), ("a", 0.2, 1.0)], None),  # cost pays
        ([("a", 0.3, None), ("b", 0.2, 10.0)], None),
        ([("c", 0.4, 99.0), ("a", 0.3, 1.0), ("b", 0.25, 50.0), ("d", 0.2, 70.0)], ("a", "b")),
        ([], None),
    ],
)
def test_a_surprise_is_a_cheap_model_that_is_no_worse(
    rows: list[tuple[str, float, float | None]], pair: tuple[str, str] | None
) -> None:
    found = front_page.surprise([Result(**scored(*row)) for row in rows])
    assert (found and (found[0].model, found[1].model)) == pair


def test_without_a_surprise_the_best_is_named() -> None:
    rows = [Result(**{**scored("a", 0.3, None), "low": None, "high": None})]
    assert "".join(text for text, _ in front_page.sentences("100k", rows)) == (
        "The best of the 1 models on the scoreboard is a, at 0.300."
    )


def test_other_build_of_mathjax_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(offline_assets, "SHA256", "0" * 64)
    with pytest.raises(ExtensionError, match="not the known build"):
        offline_assets.mathjax_files()
    monkeypatch.setattr(offline_assets, "PACKAGE", "no-such-package-anywhere")
    with pytest.raises(ExtensionError, match="is not installed"):
        offline_assets.mathjax_files()
