"""The directives ``recorded`` and ``history``: tables and sentences made from recorded runs, on a page
without code.

``{recorded} peers quality`` shows one part of ``book/recorded/peers.json``. No number of such a page is
typed, and no sentence that depends on one; what was not recorded is not shown. All texts of a record stay
texts.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util import logging
from sphinx.util.docutils import SphinxDirective

from book._ext.book_data import duration
from book._ext.result_tables import table
from book.history import HISTORY, read, summary
from recsys_lib.chapter.runs import RecordedRun, RecordedRunError

logger = logging.getLogger(__name__)

OURS = "ours"
_MINUS = "\N{MINUS SIGN}"
_UNSURE = 0.5  # the standard error of an exponent from which on it says nothing
_MODELS = {
    "Popularity": "popularity",
    "ItemKNN": "item-kNN",
    "UserKNN": "user-kNN",
    "BiasedMF": "biased MF",
    "RatingALS": "ALS of ratings",
    "CompiledBPR": "BPR, compiled",
    "MatrixFactorization": "MF with softmax",
}
_FAULTS = {
    "RecTools": "EASE is documented as Steck (2019), where a user's scores are x B; the lists follow x times "
    "B transposed.",
    "RecBole": "Pop adds one for an item and batch, not for each of its events; so its counts depend on the "
    "size of the batch.",
    "Cornac": "UserKNN and ItemKNN average ratings; where all ratings are the same, as in implicit feedback, "
    "all scores of a user are the same.",
}


# ------------------------------------------------------------------------------------------------- words


def shown(model: str) -> str:
    """A model's name as the book writes it."""
    return _MODELS.get(model, model)


def signed(value: float, places: int = 4) -> str:
    """A difference with its sign; a zero has none."""
    text = f"{value:+.{places}f}"
    return text[1:] if not text.strip("+-0.") else text.replace("-", _MINUS)


def interval(of: Mapping[str, float], places: int = 4) -> str:
    """The ends of an interval."""
    return f"[{of['low']:.{places}f}, {of['high']:.{places}f}]".replace("-", _MINUS)


def gap(of: Mapping[str, float] | None) -> str:
    """A difference with its interval."""
    if not of:
        return ""
    return f"{signed(of['mean'])} [{signed(of['low'])}, {signed(of['high'])}]"


def amount(value: float) -> str:
    """A number of three digits: ``0.00304``, ``1.28``, ``2,910``."""
    if value == 0:
        return "0"
    if value >= 100:
        return f"{value:,.0f}"
    text = f"{value:.3g}"
    return f"{value:.6f}".rstrip("0") if "e" in text else text


def spread(of: Mapping[str, Any]) -> list[str]:
    """A median, and the least and the greatest repetition."""
    return [amount(of["median"]), f"{amount(of['low'])} to {amount(of['high'])}"]


def ratio(of: float, to: float | None) -> str:
    """How many times as much as ours."""
    return "" if not to else f"{of / to:.2f}"


def marked(text: str) -> list[nodes.Node]:
    """The little Markdown of a record's label: code, strong and emphasized words."""
    found: list[nodes.Node] = []
    kinds = {"`": nodes.literal, "**": nodes.strong, "*": nodes.emphasis}
    for piece in re.split(r"(`[^`]+`|\*\*[^*]+\*\*|\*[^*]+\*)", text):
        mark = next((mark for mark in ("`", "**", "*") if piece.startswith(mark) and len(piece) > 2), None)
        found.append(nodes.Text(piece) if mark is None else kinds[mark]("", piece[len(mark) : -len(mark)]))
    return [node for node in found if node.astext()]


def listed(sentences: Sequence[str]) -> list[nodes.Node]:
    """A list of sentences; none for none."""
    if not sentences:
        return []
    items = [nodes.list_item("", nodes.paragraph("", sentence)) for sentence in sentences]
    return [nodes.bullet_list("", *items)]


def rows_table(
    headings: Sequence[str], rows: Sequence[Sequence[str]], caption: str, *, texts: Sequence[int] = (0, 1)
) -> list[nodes.Node]:
    """A table of which all columns but some hold numbers; none without rows."""
    if not rows:
        return []
    return [
        table(
            headings,
            rows,
            caption=caption,
            widths=[1] * len(headings),
            classes=["recorded-table"],
            numeric=[place for place in range(len(headings)) if place not in texts],
        )
    ]


def of_ours(rows: Sequence[Mapping[str, Any]], model: str, **alike: Any) -> Mapping[str, Any] | None:
    """Our row of a model; where there are several, the quickest."""
    own = [
        row
        for row in rows
        if row["library"] == OURS
        and row.get("model", model) == model
        and all(row[name] == value for name, value in alike.items())
    ]
    return min(own, key=lambda row: row.get("cpu_s", {}).get("median", 0.0), default=None)


# ------------------------------------------------------------------------------------------------- parts


def measured(row: Mapping[str, Any], metric: str) -> list[str]:
    """A model in a library: what it reached, how far ours is from it, and what fitting took."""
    return [
        shown(row["model"]),
        row["library"],
        f"{row[metric]['value']:.4f}",
        interval(row[metric]),
        gap(row.get("ours_minus_it")),
        amount(sum(row["fit_cpu_s"]) / len(row["fit_cpu_s"])),
    ]


def quality(values: Mapping[str, Any]) -> list[nodes.Node]:
    """NDCG@10 of each model in each library."""
    rows = [measured(row, "ndcg@10") for row in values["quality"]]
    return rows_table(
        ["Model", "Library", "NDCG@10", "95 % interval", "Ours minus it", "Fit, CPU s"],
        rows,
        "Ranking on the headline split, everyone tuned alike and scored by one evaluator. The difference is "
        "paired over users, with its 95 % interval.",
    )


def settings(values: Mapping[str, Any]) -> list[nodes.Node]:
    """What was chosen for each."""
    rows = []
    for row in (*values["quality"], *values["ratings"]):
        options = ", ".join(
            f"{name} {option:g}" if isinstance(option, float) else f"{name} {option}"
            for name, option in row["options"].items()
        )
        if row["options"]:
            edges = ", ".join(row["edges"]) or "none"
            rows.append(
                [shown(row["model"]), row["library"], options, str(row["epochs"]), str(row["trials"]), edges]
            )
    return rows_table(
        ["Model", "Library", "Setting", "Epochs", "Trials", "Ends of the first grid"],
        rows,
        "What was chosen on validation. Where the best value lay at an end of the first grid, the second "
        "went beyond.",
        texts=(0, 1, 2, 5),
    )


def ratings(values: Mapping[str, Any]) -> list[nodes.Node]:
    """RMSE of the rating models."""
    rows = [measured(row, "rmse") for row in values["ratings"]]
    return rows_table(
        ["Model", "Library", "RMSE", "95 % interval", "Squared error, ours minus it", "Fit, CPU s"],
        rows,
        "Predicted ratings on the random split; less is better. The interval is over ratings; ours in the "
        "difference is the one that was better on validation.",
    )


def evaluators(values: Mapping[str, Any]) -> list[nodes.Node]:
    """Whether others compute the same, and what it takes them."""
    found = values["evaluators"]
    agree = [
        [row["library"], f"{row['users']:,}", *(f"{row[name]:.0e}" for name in ("ndcg", "recall", "mrr"))]
        for row in found["agreement"]
        if row["library"] != OURS
    ]
    first = rows_table(
        ["Library", "Users", "NDCG@10", "recall@10", "MRR@10"],
        agree,
        "The same lists measured by other evaluators: the largest difference of any user.",
        texts=(0,),
    )
    own = {row["lists"]: row["cpu_s"]["median"] for row in found["times"] if row["library"] == OURS}
    times = [
        [
            f"{row['lists']:,}",
            row["library"],
            *spread(row["cpu_s"]),
            ratio(row["cpu_s"]["median"], own.get(row["lists"])),
        ]
        for row in sorted(found["times"], key=lambda row: (row["lists"], row["cpu_s"]["median"]))
    ]
    second = rows_table(
        ["Lists", "Library", "CPU s", "Least to greatest", "To ours"],
        times,
        "Three metrics of finished lists.",
        texts=(1,),
    )
    return [*first, *second]


def epoch(values: Mapping[str, Any]) -> list[nodes.Node]:
    """An epoch of BPR."""
    own = of_ours(values["epoch_of_bpr"], "")
    rows = [
        [
            row["library"],
            ", ".join(f"{name} {value}" for name, value in row["options"].items()) or "as it comes",
            *spread(row["cpu_s"]),
            ratio(row["cpu_s"]["median"], own["cpu_s"]["median"] if own else None),
            amount(row["once_s"]["median"]),
        ]
        for row in sorted(values["epoch_of_bpr"], key=lambda row: row["cpu_s"]["median"])
    ]
    events = values["epoch_of_bpr"][0]["events"] if rows else 0
    return rows_table(
        ["Library", "Options", "CPU s an epoch", "Least to greatest", "To our quickest", "Once a process, s"],
        rows,
        f"Training by BPR, 64 factors, {events:,} positives.",
    )


def _unreached(row: Mapping[str, Any]) -> str:
    """Why there is no time: it never came so far, or it did and was not timed."""
    return "never" if row["best"] < row["level"] else "not timed"


def levels(values: Mapping[str, Any]) -> list[nodes.Node]:
    """Training until validation reaches a level."""
    rows = []
    for row in sorted(
        values["bpr_to_levels"], key=lambda row: (row["level"], row.get("cpu_s", {"median": 1e9})["median"])
    ):
        own = of_ours(
            [one for one in values["bpr_to_levels"] if "cpu_s" in one], row["model"], level=row["level"]
        )
        cells = (
            [
                *spread(row["cpu_s"]),
                ratio(row["cpu_s"]["median"], own["cpu_s"]["median"] if own else None),
                str(row["epochs"]),
            ]
            if "cpu_s" in row
            else [_unreached(row), f"at best {row['best']:.4f}", "", ""]
        )
        rows.append([f"{row['level']:.4f}", row["library"], shown(row["model"]), *cells])
    return rows_table(
        ["NDCG@10", "Library", "Model", "CPU s", "Least to greatest", "To ours", "Epochs"],
        rows,
        "Training until NDCG@10 on validation reaches a level, with the setting of the tuning that "
        "was there first.",
        texts=(1, 2),
    )


_BEFORE = {"load_s": "Loading", "prepare_s": "Reading", "once_s": "First fit"}


def whole(values: Mapping[str, Any]) -> list[nodes.Node]:
    """A process that trains once: what comes before the training, and all of it."""
    reached = [row for row in values["bpr_to_levels"] if "whole_s" in row]
    rows = []
    for row in sorted(reached, key=lambda row: (row["level"], row["whole_s"]["median"])):
        times = [amount(row[name]["median"]) for name in ("whole_s", *_BEFORE, "cpu_s")]
        rows.append([f"{row['level']:.4f}", row["library"], shown(row["model"]), *times])
    return rows_table(
        ["NDCG@10", "Library", "Model", "In all", *_BEFORE.values(), "Training"],
        rows,
        "A process that trains one model to a level and ends, CPU s. Loading: Python and the library, with "
        "all that it imports. Reading: the events, into its own data set. First fit: what the first fit "
        "takes and a later one does not.",
        texts=(1, 2),
    )


def fit(values: Mapping[str, Any]) -> list[nodes.Node]:
    """Fitting, and fitting with everyone's list."""
    found: list[nodes.Node] = []
    for data in dict.fromkeys(row["data"] for row in values["served"]):
        part = [row for row in values["served"] if row["data"] == data]
        rows = []
        for row in sorted(part, key=lambda row: (row["model"], row["fit_and_lists_cpu_s"]["median"])):
            own = of_ours(part, row["model"])
            whole = row["fit_and_lists_cpu_s"]
            rows.append(
                [
                    shown(row["model"]),
                    row["library"] + ("" if row["own_lists"] else " *"),
                    amount(row["fit_cpu_s"]["median"]),
                    *spread(whole),
                    ratio(whole["median"], own["fit_and_lists_cpu_s"]["median"] if own else None),
                    amount(row["above_mb"]["median"]),
                ]
            )
        size = part[0]
        found += rows_table(
            ["Model", "Library", "Fit, CPU s", "Fit and lists", "Least to greatest", "To ours", "MB"],
            rows,
            f"{data}: {size['events']:,} events of {size['users']:,} users and {size['items']:,} items; "
            "fitting, and fitting and the best ten for every user. MB is the peak above what the process "
            "held with the data. * its scores were sorted by numpy, since its own lists are made one user "
            "at a time.",
        )
    return found


def ranking(values: Mapping[str, Any]) -> list[nodes.Node]:
    """A large catalog ranked for everyone."""
    own = of_ours(values["ranking"], "")
    rows = [
        [
            row["library"],
            *spread(row["cpu_s"]),
            ratio(row["cpu_s"]["median"], own["cpu_s"]["median"] if own else None),
            amount(row["peak_mb"]["median"]),
        ]
        for row in sorted(values["ranking"], key=lambda row: row["cpu_s"]["median"])
    ]
    size = values["ranking"][0] if rows else {"users": 0, "items": 0, "factors": 0}
    return rows_table(
        ["Library", "CPU s", "Least to greatest", "To ours", "Peak MB"],
        rows,
        f"The best ten of {size['items']:,} items for each of {size['users']:,} users, from "
        f"{size['factors']} factors, what was seen left out. Ours computes every default metric as well; "
        "the others make lists alone.",
        texts=(0,),
    )


def ahead(values: Mapping[str, Any]) -> list[nodes.Node]:
    """Every line where a peer is ahead of ours."""
    found = []
    for row in values["quality"]:
        difference = row.get("ours_minus_it")
        if difference and difference["high"] < 0:
            found.append(
                f"{row['library']}'s {shown(row['model'])} ranks better: ours minus it {gap(difference)}."
            )
    for row in values["ratings"]:
        difference = row.get("ours_minus_it")
        if difference and difference["low"] > 0:
            found.append(
                f"{row['library']}'s {shown(row['model'])} predicts ratings better: squared error, ours "
                f"minus it {gap(difference)}."
            )

    def slower(what: str, row: Mapping[str, Any], name: str, own: Mapping[str, Any] | None) -> None:
        if row["library"] in (OURS, "numpy") or own is None or name not in row or name not in own:
            return
        theirs, mine = row[name]["median"], own[name]["median"]
        if theirs < mine:
            found.append(
                f"{row['library']} is quicker: {what}, {amount(theirs)} s, ours {amount(mine)} s "
                f"({mine / theirs:.1f} times)."
            )

    timed = {row["model"] for row in values["served"]}  # those have a table of their own
    for row in values["quality"]:
        own = of_ours(values["quality"], row["model"])
        if row["epochs"] > 1 and row["model"] not in timed and row["library"] != OURS and own:
            theirs, mine = (sum(one["fit_cpu_s"]) / len(one["fit_cpu_s"]) for one in (row, own))
            if theirs < mine:
                found.append(
                    f"{row['library']}'s {shown(row['model'])} is fitted sooner, each with its own setting: "
                    f"{amount(theirs)} s, ours {amount(mine)} s ({mine / theirs:.1f} times)."
                )
    for row in values["epoch_of_bpr"]:
        slower("an epoch of BPR", row, "cpu_s", of_ours(values["epoch_of_bpr"], ""))
    reached = [row for row in values["bpr_to_levels"] if "cpu_s" in row]
    for row in reached:
        before = len(found)
        # A model of ours that is BPR in another loop is BPR.
        alike = [{**one, "model": "BPR"} if one["model"] == "CompiledBPR" else one for one in reached]
        own = of_ours(alike, row["model"], level=row["level"])
        slower(f"BPR to {row['level']:.4f} on validation", row, "cpu_s", own)
        others = [one for one in reached if one["library"] == OURS and one["level"] == row["level"]]
        best = min(others, key=lambda one: one["cpu_s"]["median"], default=None)
        if len(found) > before and best and best["cpu_s"]["median"] < row["cpu_s"]["median"]:
            found[-1] += f" Our {shown(best['model'])} takes {amount(best['cpu_s']['median'])} s."
    processes = [row for row in reached if "whole_s" in row]
    for row in processes:
        others = [one for one in processes if one["library"] == OURS and one["level"] == row["level"]]
        best = min(others, key=lambda one: one["whole_s"]["median"], default=None)
        slower(f"a process that trains once, to {row['level']:.4f}", row, "whole_s", best)
    for row in values["served"]:
        own = of_ours(values["served"], row["model"], data=row["data"])
        slower(f"{shown(row['model'])}, fit and lists, {row['data']}", row, "fit_and_lists_cpu_s", own)
    for row in values["evaluators"]["times"]:
        own = of_ours(values["evaluators"]["times"], "", lists=row["lists"])
        slower(f"metrics of {row['lists']:,} lists", row, "cpu_s", own)
    for row in values["ranking"]:
        slower(
            f"ranking {row['items']:,} items for {row['users']:,} users",
            row,
            "cpu_s",
            of_ours(values["ranking"], ""),
        )
    if not found:
        return [nodes.paragraph("", "No peer is ahead in any line of the tables above.")]
    return listed(found)


def faults(values: Mapping[str, Any]) -> list[nodes.Node]:
    """What small scripts show of the peers."""
    found = []
    for row in values["faults"]:
        if row["shown"] and row["library"] in _FAULTS:
            text = f"{row['library']}: {_FAULTS[row['library']]} {row['said'][:1].upper()}{row['said'][1:]}."
            words = nodes.paragraph("", text + " Shown by ")
            # A path is one word to a browser, and in one piece wider than a phone.
            words += [nodes.literal("", row["script"]), nodes.Text(" in ")]
            words += [nodes.literal("", "benchmarks/peers/faults"), nodes.Text(".")]
            found.append(nodes.list_item("", words))
    return [nodes.bullet_list("", *found)] if found else []


def took(values: Mapping[str, Any]) -> list[nodes.Node]:
    """What the run took, on the clock and of processor time."""
    said = (
        f"The {values['cells']:,} processes of this run took {duration(values['cpu_seconds'])} of processor "
        f"time, and {duration(values['clock_seconds'])} on the clock."
    )
    return [nodes.paragraph("", said)]


def missing(values: Mapping[str, Any]) -> list[nodes.Node]:
    """What was not run, not installed, or gave no result."""
    found = [f"{row['library']}, {row['model']}: {row['why']}; not run." for row in values["not_run"]]
    found += [
        f"The environment {row['name']} could not be made: {row['problem']}."
        for row in values["environments"]
        if not row["installed"]
    ]
    found += [f"{name} gave no result: {why}." for name, why in values["failed"].items()]
    return listed(found)


def versions(values: Mapping[str, Any]) -> list[nodes.Node]:
    """The versions of all packages that took part."""
    return rows_table(
        ["Package", "Version"],
        [[name, version] for name, version in values["versions"].items()],
        "What took part. More than one version: the environments differ.",
    )


def texts(values: Mapping[str, Any]) -> list[nodes.Node]:
    """The cross-encoder beside sentence-transformers."""
    rows = [
        [
            row["of"],
            row["texts"],
            amount(row["ours_s"]),
            amount(row["theirs_s"]),
            f"{row['ratio']['median']:.2f}",
            f"{row['ratio']['low']:.2f} to {row['ratio']['high']:.2f}",
        ]
        for row in values["rows"]
    ]
    return rows_table(
        ["Work", "Texts", "Ours, s", "Theirs, s", "Theirs to ours", "Least to greatest"],
        rows,
        "The cross-encoder beside that of sentence-transformers, on the same pairs.",
    )


def retrieval(values: Mapping[str, Any]) -> list[nodes.Node]:
    """Exact search beside FAISS."""
    rows = []
    for name, part in values["sets"].items():
        for row in part["settings"]:
            if row["index"] in ("exact", "FAISS itself"):
                rate, alone = row["queries_a_second"], row["ms_alone"]
                rows.append(
                    [
                        name,
                        f"{part['vectors']:,}",
                        "ours" if row["index"] == "exact" else "FAISS",
                        amount(rate["median"]),
                        f"{amount(rate['least'])} to {amount(rate['greatest'])}",
                        amount(alone["median"]),
                    ]
                )
    return rows_table(
        ["Vectors of", "Number", "Search", "Queries a second", "Least to greatest", "One alone, ms"],
        rows,
        "Exact search for the nearest vectors, many queries at once and one alone.",
        texts=(0, 2),
    )


def growth(values: Mapping[str, Any]) -> list[nodes.Node]:
    """How time and memory grow, and what one machine holds."""
    rows = [
        [
            shown(row["model"]),
            row["against"],
            *(
                f"{row[of]['value']:.2f} ± {row[of]['error']:.2f}".replace("-", _MINUS)
                if row.get(of) and row[of]["error"] <= _UNSURE
                else ""
                for of in ("time", "memory")
            ),
            f"{row['least']:,} to {row['most']:,}",
        ]
        for row in values["exponents"]
    ]
    first = rows_table(
        ["Model", "Against", "Exponent of time", "Of memory", "From and to"],
        rows,
        "How fitting grows: the exponent of a power law fitted to the upper half of the sizes, and its "
        "standard error. 1 is in proportion, 2 is with the square. A gap: too few sizes, or an exponent too "
        "unsure to be worth a number.",
    )
    largest = [
        [
            shown(row["model"]),
            f"{row['events']:,}",
            f"{row['users']:,}",
            f"{row['items']:,}",
            amount(row["cpu_s"]),
            amount(row["above_mb"]),
            row["stopped"],
        ]
        for row in values["largest"]
    ]
    second = rows_table(
        ["Model", "Events", "Users", "Items", "Fit, CPU s", "MB", "The next size"],
        largest,
        "The largest data that was fitted within the limits, and what kept the next size out.",
        texts=(0, 6),
    )
    return [*first, *second]


PARTS: dict[str, dict[str, Callable[[Mapping[str, Any]], list[nodes.Node]]]] = {
    "peers": {
        part.__name__: part
        for part in (
            quality, settings, ratings, evaluators, epoch, levels, whole, fit, ranking, ahead, faults,
            missing, took, versions,
        )
    },
    "cross_encoder": {"texts": texts},
    "retrieval": {"search": retrieval},
    "growth": {"growth": growth},
}  # fmt: skip


class Recorded(SphinxDirective):
    """``{recorded} NAME PART``: a part of a recorded run, or its label."""

    required_arguments = 2
    has_content = False

    def run(self) -> list[nodes.Node]:
        """Make the nodes, or warn of a record that cannot be read."""
        name, part = self.arguments
        root = Path(self.env.app.srcdir)
        path = root / "book" / "recorded" / f"{name}.json"
        self.env.note_dependency(str(path))
        if part != "label" and part not in PARTS.get(name, {}):
            logger.warning(
                "no part %r of a recorded run %r", part, name, location=self.get_location(), type="book"
            )
            return []
        if not path.is_file():
            missing = nodes.paragraph("", "This has not been recorded yet: ")
            missing += [nodes.literal("", f"book/recorded/{name}.json"), nodes.Text(" is not here.")]
            return [missing] if part == "label" else []
        try:
            run = RecordedRun.read(path)
            if part == "label":
                return [nodes.paragraph("", "", *marked(run.label(root)))]
            return PARTS[name][part](run.values) or [nodes.paragraph("", "This run has no line of it.")]
        except (RecordedRunError, KeyError, TypeError, ValueError) as error:
            logger.warning(
                "%s: the part %r cannot be shown (%r)",
                path,
                part,
                error,
                location=self.get_location(),
                type="book",
            )
            return []


class History(SphinxDirective):
    """``{history}``: what making the book took over time, and the chapters of the newest entry."""

    has_content = False

    def run(self) -> list[nodes.Node]:
        """Make the tables, or warn of a file that cannot be read."""
        path = Path(self.env.app.srcdir) / HISTORY
        self.env.note_dependency(str(path))
        try:
            return history(read(path))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            logger.warning("%s", error, location=self.get_location(), type="book")
            return []


def history(entries: Sequence[Mapping[str, Any]]) -> list[nodes.Node]:
    """The entries, newest first, and the chapters of the newest."""
    if not entries:
        return [nodes.paragraph("", "Nothing has been written into it yet.")]
    rows = []
    for one in reversed(entries):
        of = summary(dict(one))
        times = [of[name] for name in ("chapters_s", "cold_book_s", "warm_book_s")]
        weights = [of[name] for name in ("median_bytes", "most_bytes")]
        rows.append(
            [
                one["date"],
                *("" if seconds is None else duration(seconds) for seconds in times),
                *("" if weight is None else f"{weight / 1_000:,.0f} kB" for weight in weights),
                "" if of["first_paint_ms"] is None else f"{of['first_paint_ms']:.0f} ms",
            ]
        )
    first = rows_table(
        ["Day", "All chapters", "Cold build", "Warm build", "Median page", "Heaviest page", "First paint"],
        rows,
        "What making the book took, and what pages weigh compressed. A gap was not measured that day.",
        texts=(0,),
    )
    newest = entries[-1]
    second = rows_table(
        ["Chapter", "Time", "Page"],
        [
            [
                name,
                duration(seconds),
                f"{newest['pages'][page]['bytes'] / 1_000:,.0f} kB"
                if (page := f"notebooks/{name}") in newest["pages"]
                else "",
            ]
            for name, seconds in newest["chapters_s"].items()
        ],
        f"The chapters on {newest['date']}, on the clock ({newest['hardware']}).",
        texts=(0,),
    )
    return [*first, *second]


def setup(app: Sphinx) -> dict[str, bool | int]:
    """Register the extension."""
    app.add_directive("recorded", Recorded)
    app.add_directive("history", History)
    return {"parallel_read_safe": True, "parallel_write_safe": True, "env_version": 1}
