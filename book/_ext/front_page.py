"""The directives ``headline`` and ``board``: what the book found, for its first page.

No number of them is typed: when the pages are built, the sentence compares the models that the scoreboard
compares, and the figure draws them.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pandas as pd
from docutils import nodes
from sphinx.application import Sphinx

from book._ext.book_data import chapter_results, dataset, duration
from book._ext.executed_copies import results_of
from book._ext.result_tables import RecordedTable, notebooks, page_link
from recsys_lib.chapter.board import quality_against_cost, undominated
from recsys_lib.chapter.results import Result
from recsys_lib.chapter.show import figure_style

FIGURE = "_build/figures/board.svg"
# How much cheaper a model must be, for its being no worse to be a surprise.
CHEAPER = 10.0


def board_rows(app: Sphinx) -> tuple[str, list[Result]]:
    """Return the scoreboard's data set and its rows, best first: those of the data set that most rows are of.

    Raises:
        BadDataError: a results file is not what a chapter writes.
    """
    rows: dict[str, list[Result]] = {}
    for docname in notebooks(app):
        if results := chapter_results(results_of(app, docname)):
            rows.setdefault(results.dataset, []).extend(row for row in results.results if row.scoreboard)
    name = max(rows, key=lambda key: len(rows[key]), default="")
    return name, sorted(rows.get(name, []), key=lambda row: -row.value)


def surprise(rows: Sequence[Result]) -> tuple[Result, Result] | None:
    """Return a cheap model, and the best one that costs far more and does not rank above it; or None.

    Args:
        rows: of one metric, best first.
    """
    timed = [row for row in rows if row.fit_seconds and row.low is not None]
    for costly in timed:
        cheap = [row for row in timed if (row.fit_seconds or 0) * CHEAPER <= (costly.fit_seconds or 0)]
        if cheap and cheap[0].value >= costly.value:
            return cheap[0], costly
    return None


def measured(row: Result) -> str:
    """Return a row's value, with its interval if it has one, without a place to break the line."""
    interval = (
        "" if row.low is None else f"\N{NO-BREAK SPACE}[{row.low:.3f},\N{NO-BREAK SPACE}{row.high:.3f}]"
    )
    return f"{row.value:.3f}{interval}"


def sentences(data: str, rows: Sequence[Result]) -> list[tuple[str, bool]]:
    """Return what the headline says, in pieces that are strong or not."""
    metric, best = rows[0].metric.upper(), rows[0]
    pieces: list[tuple[str, bool]] = []
    if pair := surprise(rows):
        cheap, costly = pair
        times = (costly.fit_seconds or 0) / (cheap.fit_seconds or 1)
        fitted = f"is fitted in {duration(cheap.fit_seconds or 0)}"
        pieces += [
            (f"Cheap is hard to beat. On {dataset(data)}, ", False),
            (cheap.model, True),
            (f" ({cheap.family}) {fitted} and reaches {metric} {measured(cheap)}. ", False),
            (costly.model, True),
            (f" ({costly.family}) takes {times:,.0f} times as long and reaches {measured(costly)}. ", False),
        ]
    pieces += [
        (f"The best of the {len(rows)} models on the scoreboard is ", False),
        (best.model, True),
        (f", at {measured(best)}.", False),
    ]
    return pieces


class Headline(RecordedTable):
    """``{headline}``: a cheap model that a costly one does not outrank, and the best, with intervals."""

    def make(self, app: Sphinx) -> list[nodes.Node]:
        """Make the paragraph."""
        data, rows = board_rows(app)
        if not rows:
            return [nodes.paragraph("", "No chapter has recorded a result yet.")]
        words = nodes.paragraph("", classes=["headline"])
        for text, strong in sentences(data, rows):
            words += nodes.strong("", text) if strong else nodes.Text(text)
        return [words]


class Board(RecordedTable):
    """``{board}``: the scoreboard's figure, naming the models that no other beats in quality and cost."""

    def make(self, app: Sphinx) -> list[nodes.Node]:
        """Make the figure."""
        data, rows = board_rows(app)
        drawn = [row for row in rows if row.low is not None and row.fit_seconds is not None]
        if not drawn:
            return []
        draw(drawn, Path(app.srcdir, FIGURE))
        named = [drawn[place].model for place in undominated(frame(drawn))]
        alt = (
            f"Scatter plot of {len(drawn)} models: seconds to fit on a logarithmic horizontal axis, "
            f"{drawn[0].metric.upper()} with its interval on the vertical axis, "
            "a color and a shape for each family. "
            f"From cheap to costly, no other model is better and cheaper than {', '.join(named)}."
        )
        caption = nodes.caption(
            "",
            f"Ranking quality against the time to fit, on {dataset(data)}, with 95 % intervals over users. "
            "Named are the models that no other one beats in both. All of them: ",
        )
        link = page_link("notebooks/99_scoreboard", self.env.docname, "the scoreboard")
        caption += [*link.children, nodes.Text(".")]
        image = nodes.image(uri=f"/{FIGURE}", alt=alt)
        return [nodes.figure("", image, caption, ids=["fig-board"], classes=["board"])]


def frame(rows: Sequence[Result]) -> pd.DataFrame:
    """Return rows as the table that the figure is drawn from."""
    columns = ("model", "family", "metric", "value", "low", "high", "fit_seconds")
    return pd.DataFrame([{column: getattr(row, column) for column in columns} for row in rows])


def draw(rows: Sequence[Result], path: Path) -> None:
    """Draw the figure into a file, whose bytes depend on the rows alone."""
    import matplotlib as mpl

    mpl.use("agg")
    import matplotlib.pyplot as plt

    figure_style()
    scores = frame(rows)
    axes = quality_against_cost(
        scores, {row: scores.model[row] for row in undominated(scores)}, size=(5.2, 3.5)
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    plt.savefig(path, bbox_inches="tight", metadata={"Date": None})
    plt.close(axes.figure)  # type: ignore[arg-type]


def setup(app: Sphinx) -> dict[str, bool | int]:
    """Register the extension."""
    app.add_directive("headline", Headline)
    app.add_directive("board", Board)
    return {"parallel_read_safe": True, "parallel_write_safe": True, "env_version": 1}
