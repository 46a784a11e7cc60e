"""The directives ``claims`` and ``status``: tables made from what the executed chapters recorded.

The tables are built as document nodes, so that a text from a results file is always a text. A page that uses
one of them is read again as soon as any recorded file changes.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, ClassVar

from docutils import nodes
from sphinx import addnodes
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.util import logging
from sphinx.util.docutils import SphinxDirective

from book._ext.book_data import (
    BadDataError,
    amount,
    chapter_results,
    day,
    duration,
    hardware,
    memory,
    run_metadata,
)
from book._ext.executed_copies import copy_of, is_notebook, results_of
from recsys_lib.chapter.results import Claim

logger = logging.getLogger(__name__)

# An icon beside the word, so that color is never the only sign.
ICONS = {"holds": "✓", "fails": "✗", "depends": "◐"}


def notebooks(app: Sphinx) -> list[str]:
    """Return the notebooks among the book's pages, in the order of their names."""
    return sorted(docname for docname in app.env.found_docs if is_notebook(app.env, docname))


def digest(app: Sphinx) -> str:
    """Return a hash of everything that the tables are made from."""
    total = hashlib.sha256()
    for docname in notebooks(app):
        for path in (copy_of(app, docname), results_of(app, docname)):
            total.update(docname.encode() + b"\0")
            total.update(hashlib.sha256(path.read_bytes()).digest() if path.is_file() else b"absent")
    return total.hexdigest()


def outdated(
    app: Sphinx, env: BuildEnvironment, added: set[str], changed: set[str], removed: set[str]
) -> list[str]:
    """Return the pages with tables if anything recorded has changed (``env-get-outdated``)."""
    made_from: dict[str, str] = vars(env).get("book_tables", {})
    now = digest(app)
    return [docname for docname, then in made_from.items() if then != now]


def forget(app: Sphinx, env: BuildEnvironment, docname: str) -> None:
    """Forget a page that is gone or read anew (``env-purge-doc``)."""
    vars(env).setdefault("book_tables", {}).pop(docname, None)


def merge(app: Sphinx, env: BuildEnvironment, docnames: Iterable[str], other: BuildEnvironment) -> None:
    """Join what parallel readers found (``env-merge-info``)."""
    found = vars(other).get("book_tables", {})
    vars(env).setdefault("book_tables", {}).update({name: found[name] for name in docnames if name in found})


def page_link(docname: str, here: str, text: str = "") -> nodes.paragraph:
    """Return a paragraph with a link to a page: its title, or `text`."""
    link = addnodes.pending_xref(
        "",
        nodes.inline("", text or docname),
        refdomain="std",
        reftype="doc",
        reftarget=f"/{docname}",
        refdoc=here,
        refexplicit=bool(text),
        refwarn=True,
    )
    return nodes.paragraph("", "", link)


def table(
    headings: Sequence[str],
    rows: Sequence[Sequence[nodes.Node | str]],
    *,
    caption: str,
    widths: Sequence[int],
    classes: Sequence[str],
    numeric: Sequence[int] = (),
) -> nodes.table:
    """Return a table with a caption and a row of headings.

    Args:
        headings: one a column.
        rows: cells are nodes, or plain text.
        caption: what the table shows.
        widths: relative widths of the columns.
        classes: for the style sheet.
        numeric: the columns that hold numbers, which are set flush right.
    """

    def row_of(cells: Sequence[nodes.Node | str]) -> nodes.row:
        row = nodes.row()
        for column, cell in enumerate(cells):
            content = nodes.paragraph("", cell) if isinstance(cell, str) else cell
            row += nodes.entry("", content, classes=["number"] if column in numeric else [])
        return row

    group = nodes.tgroup("", cols=len(headings))
    group += [nodes.colspec(colwidth=width) for width in widths]
    group += nodes.thead("", row_of(headings))
    group += nodes.tbody("", *(row_of(row) for row in rows))
    return nodes.table("", nodes.title("", caption), group, classes=list(classes))


def verdict_badge(verdict: str) -> nodes.paragraph:
    """Return a verdict as an icon and a word."""
    badge = nodes.inline("", f"{ICONS[verdict]} {verdict}", classes=["verdict", f"verdict-{verdict}"])
    return nodes.paragraph("", "", badge)


class RecordedTable(SphinxDirective):
    """What both directives share: they note that the page depends on everything recorded."""

    has_content = False

    def run(self) -> list[nodes.Node]:
        """Make the nodes, or warn of a file that cannot be read."""
        vars(self.env).setdefault("book_tables", {})[self.env.docname] = digest(self.env.app)
        try:
            return self.make(self.env.app)
        except BadDataError as error:
            logger.warning("%s", error, location=self.get_location(), type="book")
            return []

    def make(self, app: Sphinx) -> list[nodes.Node]:
        """Make the nodes."""
        raise NotImplementedError


class Claims(RecordedTable):
    """``{claims}``: every claim that a chapter settled, with its verdict, evidence and chapter."""

    headings: ClassVar = ["Claim", "Verdict", "Evidence", "Chapter"]

    def make(self, app: Sphinx) -> list[nodes.Node]:
        """Make the table."""
        found: list[tuple[str, Claim]] = []
        for docname in notebooks(app):
            if results := chapter_results(results_of(app, docname)):
                found += [(docname, claim) for claim in results.claims]
        ids = [claim.id for _, claim in found]
        twice = sorted({id_ for id_ in ids if ids.count(id_) > 1})
        if twice:
            raise BadDataError(
                f"the claim {twice[0]!r} is made more than once; a claim's id is used once in the book"
            )
        if not found:
            return [nodes.paragraph("", "No chapter has recorded a claim yet.")]
        return [
            table(
                self.headings,
                [self.row(docname, claim) for docname, claim in found],
                caption="Claims that the chapters settled by measuring.",
                widths=[32, 12, 38, 18],
                classes=["claims-table"],
            )
        ]

    def row(self, docname: str, claim: Claim) -> list[nodes.Node]:
        """Return the cells of one claim."""
        statement = nodes.paragraph("", claim.statement, ids=[nodes.make_id(f"claim-{claim.id}")])
        evidence = nodes.paragraph("", as_sentence(claim.evidence))
        verdict = verdict_badge(claim.verdict)
        if claim.condition:
            verdict += nodes.inline("", f" {claim.condition}", classes=["condition"])
        return [statement, verdict, evidence, page_link(docname, self.env.docname)]


def as_sentence(text: str) -> str:
    """Return evidence with true minus signs, at which no line is broken, and a full stop."""
    text = re.sub(r"(?<![\w)\]])-(?=[\d.])|(?<=\de)-(?=\d)", "\N{MINUS SIGN}", text.rstrip())
    return text if not text or text.endswith((".", "!", "?")) else f"{text}."


class Status(RecordedTable):
    """``{status}``: run time, memory and day of each notebook, and the hardware and versions it ran with."""

    headings: ClassVar = ["Notebook", "Run time", "Peak memory", "Day"]

    def make(self, app: Sphinx) -> list[nodes.Node]:
        """Make the tables."""
        runs = {
            name: run_metadata(copy_of(app, name)) for name in notebooks(app) if copy_of(app, name).is_file()
        }
        if not runs:
            return [nodes.paragraph("", "No notebook has been executed yet.")]
        rows: list[list[nodes.Node | str]] = [
            [
                page_link(docname, self.env.docname),
                amount(run.get("seconds"), duration),
                amount(run.get("peak_memory_mb"), memory),
                day(str(run.get("date") or "")),
            ]
            for docname, run in runs.items()
        ]
        seconds = [run["seconds"] for run in runs.values() if amount(run.get("seconds"), duration)]
        most = [run["peak_memory_mb"] for run in runs.values() if amount(run.get("peak_memory_mb"), memory)]
        rows.append(["Together", duration(sum(seconds)), memory(max(most)) if most else "", ""])
        return [
            table(
                self.headings,
                rows,
                caption="The run that made these pages. Memory is the largest amount held at once.",
                widths=[40, 20, 20, 20],
                classes=["status-table"],
                numeric=(1, 2),
            ),
            self.versions(runs),
        ]

    def versions(self, runs: dict[str, dict[str, Any]]) -> nodes.table:
        """Return the table of hardware and versions: one row for each version in use."""
        columns = {
            docname: {
                "hardware": hardware(run),
                "python": str(run.get("python") or ""),
                **{k: str(v) for k, v in (run.get("versions") or {}).items()},
            }
            for docname, run in runs.items()
        }
        packages = list(dict.fromkeys(package for column in columns.values() for package in column))
        rows = []
        for package in packages:
            by_version: dict[str, list[str]] = {}
            for docname, column in columns.items():
                if column.get(package):
                    by_version.setdefault(column[package], []).append(Path(docname).name)
            for version, names in by_version.items():
                used = "all notebooks" if len(names) == len(columns) else ", ".join(names)
                rows.append([package, version, used])
        return table(
            ["Component", "Version", "Used by"],
            rows,
            caption="What the notebooks ran with.",
            widths=[30, 30, 40],
            classes=["versions-table"],
        )


def setup(app: Sphinx) -> dict[str, bool | int]:
    """Register the extension."""
    app.add_directive("claims", Claims)
    app.add_directive("status", Status)
    app.connect("env-get-outdated", outdated)
    app.connect("env-purge-doc", forget)
    app.connect("env-merge-info", merge)
    return {"parallel_read_safe": True, "parallel_write_safe": True, "env_version": 1}
