"""Chapters as a host shows them that knows nothing of the book: plain CommonMark and MathJax."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from bs4 import BeautifulSoup
from page_checks import math_problems, text_problems, visit, width_problems
from playwright.sync_api import Browser

from book.execute import ROOT, Layout
from book.plain_page import best_copy, page

LAYOUT = Layout(ROOT)
SOURCES = LAYOUT.sources()


def solution_problems(soup: BeautifulSoup) -> list[str]:
    """Solutions that stand below no heading of their own, so that a reader meets them before thinking."""
    found = []
    solving = False
    for section in soup.find_all("section"):
        tags = str(section["data-tags"]).split()
        if "solution" not in tags:
            solving = False
            continue
        heading = section.find("h3")
        solving = solving or bool(heading and heading.get_text().startswith("Solution"))
        if not solving:
            found.append(f"cell {section['data-cell']}: a solution without a heading of its own")
    return found


def plain_page_problems(browser: Browser, notebook: dict[str, Any], folder: Path) -> list[str]:
    """Everything that a reader on such a host would stumble over."""
    text = page(notebook)
    path = folder / "plain.html"
    path.write_text(text, encoding="utf8")
    soup = BeautifulSoup(text, "html.parser")
    with visit(browser, path.as_uri()) as seen:
        # MathJax has taken every formula; a dollar or a macro that is left was not one for it
        left = seen.page.evaluate(
            r"""() => {
              const article = document.querySelector('article');
              const walker = document.createTreeWalker(article, NodeFilter.SHOW_TEXT);
              const found = [];
              while (walker.nextNode()) {
                const parent = walker.currentNode.parentElement;
                if (parent.closest('pre, code, script, style, mjx-container, svg, .output')) continue;
                const mark = walker.currentNode.textContent.match(/\$\S+|\\[a-zA-Z(\[]+/);
                if (mark) found.push(`cell ${parent.closest('section').dataset.cell}: ${mark[0]} is left`);
              }
              return found;
            }"""
        )
        return [
            *seen.problems(),
            *math_problems(seen.page),
            *width_problems(seen.page),
            *left,
            *text_problems(soup),
            *solution_problems(soup),
        ]


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.stem)
def test_a_chapter_reads_well_without_the_book(path: Path, browser: Browser, tmp_path: Path) -> None:
    assert not plain_page_problems(browser, best_copy(path, LAYOUT), tmp_path)


def notebook(*cells: tuple[str, list[str]]) -> dict[str, Any]:
    return {
        "cells": [
            {"cell_type": "markdown", "metadata": {"tags": tags}, "source": source} for source, tags in cells
        ]
    }


@pytest.mark.parametrize(
    ("source", "tags", "sign"),
    [
        ("It is {glue:text}`x:.3f`.", [], "markup was not resolved"),
        (":::{note}\nx\n:::", [], "markup was not resolved"),
        ("A vector $\\vect{p}_u$.", [], "a formula is red"),
        ("A vector $\\frac{a}$.", [], "a formula has an error"),
        ("A price $ x $.", [], "is left"),
        ("It is \\\\alpha.", [], "is left"),
        ("So.", ["solution"], "cell 1: a solution without a heading"),
        ("![a](https://example.org/a.png)", [], "asks a third party"),
    ],
)
def test_what_reads_badly_is_found(
    source: str, tags: list[str], sign: str, browser: Browser, tmp_path: Path
) -> None:
    found = plain_page_problems(browser, notebook((source, tags)), tmp_path)
    assert any(sign in problem for problem in found), found


def test_a_plain_chapter_is_let_through(browser: Browser, tmp_path: Path) -> None:
    cells = notebook(
        ("# T\n\n$x_1 < \\mathbf{p}_u$ and\n\n$$\n\\begin{aligned}a &= b\\end{aligned}\n$$", []),
        ("| a | b |\n|---|---|\n| $x$ | `{glue}` |", []),
        ("### Exercise: T\n\n*Easy.* Do.", ["exercise"]),
        ("### Solution\n\nSo.", ["solution"]),
        ("And so.", ["solution"]),
    )
    assert not plain_page_problems(browser, cells, tmp_path)
