"""Give plain chapters what only the book can: boxes, folded solutions, citations, numbers of figures.

A chapter's Markdown is CommonMark, tables and dollar math (``book/plain.py``), and reads the same everywhere.
Before the book parses an executed copy, cells are dressed by their tags:

* a code cell tagged ``say`` becomes the text that it said;
* ``guess``, ``check``, ``mistake`` and ``note`` become boxes, ``toy`` gets a line at its side;
* ``exercise`` and the ``solution`` cells after it become a numbered exercise and its folded solution.

After the parsing, ordinary links are dressed by where they lead:

* to a paper of ``references.bib``: to its entry in the bibliography; to a paper that is not there: a warning;
* to a figure, ``[text](#fig-x)``: its number, "Figure 4.2";
* to any place of another page that has an id, ``[term](../book/notation.md#term-x)``: that place.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from docutils import nodes
from sphinx import addnodes
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.util import logging
from sphinxcontrib.bibtex.domain import BibtexDomain

from book import papers
from book.plain import (
    BOXES,
    EXERCISE,
    EXERCISE_HEADING,
    SOLUTION,
    SOLUTION_HEADING,
    unknown_papers,
    without_colab_link,
)

logger = logging.getLogger(__name__)

# The look of each box, by the theme's names.
LOOKS = {"guess": "tip", "check": "hint", "mistake": "warning", "note": "note"}
_FIGURE = "fig-"


def tags(cell: dict[str, Any]) -> list[str]:
    """Return a cell's tags."""
    return list(cell["metadata"].get("tags", []))


def text_of(cell: dict[str, Any]) -> str:
    """Return a cell's source, which nbformat may keep as lines."""
    return "".join(cell["source"])


def dressed(cells: list[dict[str, Any]]) -> tuple[list[dict[str, Any]], list[str]]:
    """Return a chapter's cells as the book parses them, and what is wrong with them, by the cell's number."""
    problems: list[str] = []
    done: list[dict[str, Any]] = []
    label, solving = "", False
    for number, original in enumerate(cells, 1):
        cell, wrong = said(original)
        if number == 1:
            cell = {**cell, "source": without_colab_link(text_of(cell))}  # the page has its card
        problems += [f"cell {number}: {problem}" for problem in wrong]
        own = tags(cell)
        is_text = cell["cell_type"] == "markdown"
        if is_text:
            problems += [f"cell {number}: {problem}" for problem in unknown_papers(text_of(cell))]
        if solving and SOLUTION not in own:
            done.append(markdown(_fence("solution-end", "", ""), id=f"end-{number}"))
            solving = False
        if is_text and EXERCISE in own:
            cell, label = exercise(cell)
        elif is_text and SOLUTION in own and not solving and SOLUTION_HEADING.match(text_of(cell)):
            if not label:
                problems.append(f"cell {number}: a solution without an exercise above it")
            done.append(markdown(_fence("solution-start", label, ":class: dropdown"), id=f"start-{number}"))
            cell, solving = (
                {**cell, "source": SOLUTION_HEADING.sub("", text_of(cell), count=1).strip("\n")},
                True,
            )
        elif is_text and (tag := next((tag for tag in own if tag in (*BOXES, "toy")), "")):
            cell = boxed(cell, tag)
        done.append(cell)
    if solving:
        done.append(markdown(_fence("solution-end", "", ""), id="end"))
    return done, problems


def said(cell: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Return a cell that says something as the text that it said; any other cell as it is."""
    if cell["cell_type"] != "code" or "say" not in tags(cell):
        return cell, []
    texts, wrong = [], []
    for output in cell.get("outputs", []):
        text = output.get("data", {}).get("text/markdown")
        if text:
            texts.append("".join(text))
        elif "application/papermill.record/text/plain" not in output.get("data", {}):
            wrong.append(
                "a cell that calls chapter.say shows something else too; give that a cell of its own"
            )
    kept = [tag for tag in tags(cell) if tag not in ("say", "remove-input")]
    return markdown("\n\n".join(texts), id=str(cell.get("id", "")), tags=kept), wrong


def markdown(source: str, *, id: str, tags: Sequence[str] = ()) -> dict[str, Any]:
    """Return a Markdown cell."""
    return {"cell_type": "markdown", "id": id, "metadata": {"tags": list(tags)}, "source": source}


def exercise(cell: dict[str, Any]) -> tuple[dict[str, Any], str]:
    """Return an exercise in its box, under the label that its heading would have as an anchor."""
    source = text_of(cell)
    match = EXERCISE_HEADING.match(source)
    title = match["title"].strip() if match else ""
    body = source[match.end() :] if match else source
    label = slug(f"Exercise: {title}")
    return {**cell, "source": _fence("exercise", title, f":label: {label}\n\n{body.strip()}")}, label


def boxed(cell: dict[str, Any], tag: str) -> dict[str, Any]:
    """Return a cell in its box. A heading of the third level becomes the title, higher ones stand above."""
    source = text_of(cell)
    heading = re.match(r"(#{1,6}) +(.+)\n*", source)
    body = source[heading.end() :] if heading else source
    above, title = "", BOXES.get(tag, "")
    if heading and (tag == "toy" or len(heading[1]) < 3):
        above = f"{heading[0].strip()}\n\n"
    elif heading:
        title = heading[2].strip()
    if tag == "toy":
        box = _fence("div", "toy", body.strip())
    else:
        box = _fence("admonition", title, f":class: {LOOKS[tag]} box-{tag}\n\n{body.strip()}")
    return {**cell, "source": above + box} if body.strip() else cell


def slug(heading: str) -> str:
    """Return the anchor that GitHub gives to a heading."""
    return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")


def _fence(directive: str, argument: str, body: str) -> str:
    """Return a directive whose fence is longer than any in its body."""
    colons = ":" * (1 + max([3, *(len(run) for run in re.findall(r"^:{3,}", body, re.MULTILINE))]))
    return "\n".join(filter(None, [f"{colons}{{{directive}}} {argument}".rstrip(), body, colons]))


def dress(app: Sphinx, docname: str, source: list[str]) -> None:
    """Dress the executed copy of a notebook (``source-read``, after the copy was put in place)."""
    if Path(app.env.doc2path(docname)).suffix != ".ipynb":
        return
    try:
        notebook = json.loads(source[0])
        cells = notebook["cells"]
    except (ValueError, KeyError, TypeError):
        return  # the parser says what is wrong with it
    notebook["cells"], problems = dressed(cells)
    for problem in problems:
        logger.warning("%s", problem, location=docname, type="book")
    source[0] = json.dumps(notebook, ensure_ascii=False)


# ---- links ----


def dress_links(app: Sphinx, doctree: nodes.document) -> None:
    """Dress links by where they lead, and let other pages link to every id of this one (``doctree-read``)."""
    note_places(app.env, doctree)
    for link in list(doctree.findall(nodes.reference)):
        if str(link.get("refid", "")).startswith(_FIGURE):
            link.replace_self(figure_number(link["refid"], app.env.docname, link))
        elif key := papers.key_of(str(link.get("refuri", "")), bibliography(app)):
            # resolved when every page has been read, since the bibliography is one of them
            link.replace_self(
                addnodes.pending_xref(
                    "", *link.children, reftype="paper", reftarget=key, refuri=link["refuri"], refwarn=False
                )
            )
        elif papers.is_unknown(str(link.get("refuri", "")), bibliography(app)) and not from_notebook(app):
            logger.warning(
                "%s leads to a paper that book/references.bib does not know",
                link["refuri"],
                location=link,
                type="book",
            )
    for pending in list(doctree.findall(addnodes.pending_xref)):
        target = str(pending.get("reftargetid") or pending["reftarget"])
        if pending["reftype"] == "myst" and target.startswith(_FIGURE):
            pending.replace_self(figure_number(target, app.env.docname, pending))


def figure_number(name: str, docname: str, link: nodes.Element) -> addnodes.pending_xref:
    """Return a reference that will read "Figure 4.2"."""
    text = nodes.inline("", link.astext(), classes=["std", "std-numref"])
    return addnodes.pending_xref(
        "",
        text,
        refdomain="std",
        reftype="numref",
        reftarget=name,
        refdoc=docname,
        refexplicit=False,
        refwarn=True,
    )


def from_notebook(app: Sphinx) -> bool:
    """Tell whether the page is a notebook, whose papers are checked cell by cell."""
    return Path(app.env.doc2path(app.env.docname)).suffix == ".ipynb"


def bibliography(app: Sphinx) -> Path:
    """Return the book's file of references."""
    return Path(app.srcdir, app.config.bibtex_bibfiles[0])


def note_places(env: BuildEnvironment, doctree: nodes.document) -> None:
    """Let links of other pages find ``<a id="term-x"></a>`` and whatever else has a name on this page.

    MyST looks in a page's headings alone. An anchor in HTML is one that GitHub finds too.
    """
    places: dict[str, tuple[int, str, str]] = dict(env.metadata[env.docname].get("myst_slugs", {}))
    found = [
        id_ for raw in doctree.findall(nodes.raw) for id_ in re.findall(r'<a id="([^"]+)">', raw.astext())
    ]
    found += [doctree.nameids[name] for name, explicit in doctree.nametypes.items() if explicit]
    for id_ in filter(None, found):
        places.setdefault(id_, (0, id_, ""))
    if places:
        env.metadata[env.docname]["myst_slugs"] = places


def cite(
    app: Sphinx, env: BuildEnvironment, pending: addnodes.pending_xref, content: nodes.Element
) -> nodes.reference | None:
    """Link a citation to its entry in the bibliography (``missing-reference``).

    A book without a page of references keeps the link to the paper.
    """
    if pending.get("reftype") != "paper":
        return None
    domain = env.get_domain("cite")
    assert isinstance(domain, BibtexDomain)
    entry = next((entry for entry in domain.citations if entry.key == pending["reftarget"]), None)
    link = nodes.reference("", "", *pending.children, classes=["citation"])
    if entry is None:
        link["refuri"] = pending["refuri"]
        return link
    page = entry.bibliography_key.docname
    link["internal"] = True
    link["refuri"] = (
        f"{app.builder.get_relative_uri(pending.get('refdoc', env.docname), page)}#{entry.citation_id}"
    )
    return link


def setup(app: Sphinx) -> dict[str, bool | int]:
    """Register the extension."""
    app.connect("source-read", dress, priority=600)
    app.connect("doctree-read", dress_links)
    app.connect("missing-reference", cite)
    return {"parallel_read_safe": True, "parallel_write_safe": True, "env_version": 1}
