"""Put a card under a chapter's title that says how the page was made.

Data and seed come from the chapter's results file; device, minutes, memory, day and versions come from the
metadata of its executed copy. Below them are the buttons that open the notebook on Colab and download it.
"""

from __future__ import annotations

import posixpath
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util import logging

from book._ext.book_data import (
    BadDataError,
    amount,
    chapter_results,
    dataset,
    day,
    duration,
    hardware,
    memory,
    run_metadata,
)
from book._ext.executed_copies import copy_of, is_notebook, results_of
from book._ext.repository_address import BRANCH
from recsys_lib.chapter.results import ChapterResults

logger = logging.getLogger(__name__)


class run_card(nodes.Admonition, nodes.Element):  # noqa: N801 - docutils names node classes in lower case
    """The card; an admonition, so that it is left out of a page's description."""


class run_fact(nodes.Part, nodes.Element):  # noqa: N801 - as above
    """A name and its value on the card, kept together."""


def visit_card(translator: Any, node: run_card) -> None:
    """Open the card in HTML."""
    translator.body.append('<aside class="run-card" aria-label="How this page was made">\n')


def depart_card(translator: Any, node: run_card) -> None:
    """Close the card in HTML."""
    translator.body.append("</aside>\n")


def visit_fact(translator: Any, node: run_fact) -> None:
    """Open a fact in HTML: a ``div`` may group a term with its definition."""
    translator.body.append(translator.starttag(node, "div", CLASS="run-fact"))


def depart_fact(translator: Any, node: run_fact) -> None:
    """Close a fact in HTML."""
    translator.body.append("</div>\n")


def skip_card(translator: Any, node: run_card) -> None:
    """Leave the card out of every other format."""
    raise nodes.SkipNode


def facts(metadata: dict[str, Any], results: ChapterResults | None) -> list[tuple[str, str]]:
    """Return the card's names and values; what was not recorded is left out."""
    versions = metadata.get("versions") or (results.versions if results else {})
    python = {"python": metadata["python"]} if metadata.get("python") else {}
    pairs = [
        ("Data", dataset(results.dataset) if results else ""),
        ("Seed", str(results.seed) if results else ""),
        ("Device", hardware(metadata)),
        ("Run time", amount(metadata.get("seconds"), duration)),
        ("Peak memory", amount(metadata.get("peak_memory_mb"), memory)),
        ("Run on", day(str(metadata.get("date") or ""))),
        ("Versions", " · ".join(f"{name} {version}" for name, version in {**python, **versions}.items())),
    ]
    return [(name, value) for name, value in pairs if value]


def colab_url(repository: str, docname: str) -> str:
    """Return the address that opens a notebook of the repository on Colab."""
    path = repository.removeprefix("https://github.com/")
    return f"https://colab.research.google.com/github/{path}/blob/{BRANCH}/{docname}.ipynb"


def button(text: str, target: str) -> nodes.reference:
    """Return a link that looks like a button."""
    return nodes.reference("", text, refuri=target, classes=["run-card-button"])


def make_card(
    app: Sphinx, docname: str, metadata: dict[str, Any], results: ChapterResults | None
) -> run_card:
    """Return the card of one chapter."""
    listed = nodes.definition_list()
    for name, value in facts(metadata, results):
        listed += run_fact(
            "",
            nodes.term("", name),
            nodes.definition("", nodes.paragraph("", value)),
            classes=[f"fact-{name.lower().replace(' ', '-')}"],
        )
    up = posixpath.relpath("_sources", posixpath.dirname(docname) or ".")
    buttons = nodes.paragraph(
        "",
        "",
        button("Open in Colab", colab_url(app.config.book_repository, docname)),
        nodes.Text(" "),
        button("Download the notebook", f"{up}/{docname}.ipynb"),
        classes=["run-card-buttons"],
    )
    return run_card("", *([listed] if listed.children else []), buttons)


def insert_card(app: Sphinx, doctree: nodes.document) -> None:
    """Insert the card after the title of a notebook's page (``doctree-read``)."""
    docname = app.env.docname
    if not is_notebook(app.env, docname):
        return
    copy, results = copy_of(app, docname), results_of(app, docname)
    try:
        metadata = run_metadata(copy) if copy.is_file() else {}
        recorded = chapter_results(results)
    except BadDataError as error:
        logger.warning("%s", error, location=docname, type="book")
        metadata, recorded = {}, None
    title = next(doctree.findall(nodes.title), None)
    if title is None or not isinstance(title.parent, nodes.section):
        logger.warning(
            "the notebook has no title: its first cell starts with '# '", location=docname, type="book"
        )
        return
    title.parent.insert(title.parent.index(title) + 1, make_card(app, docname, metadata, recorded))


def setup(app: Sphinx) -> dict[str, bool]:
    """Register the extension."""
    skip = (skip_card, None)
    app.add_node(run_card, html=(visit_card, depart_card), latex=skip, text=skip, man=skip, texinfo=skip)
    app.add_node(run_fact, html=(visit_fact, depart_fact))
    app.connect("doctree-read", insert_card)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
