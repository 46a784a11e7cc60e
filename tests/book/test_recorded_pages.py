"""The tables that a page makes from recorded runs, and the history of the book's own cost."""

import json
from pathlib import Path

import pytest
from docutils import nodes

from book import history
from book._ext import recorded_runs as tables
from book._ext.recorded_runs import PARTS, ahead, amount, gap, marked, signed
from book._ext.recorded_runs import history as history_tables
from recsys_lib.chapter.runs import RecordedRun

ROOT = Path(__file__).resolve().parents[2]


def times(median, *, low=None, high=None):
    return {"median": median, "low": low or median, "high": high or median, "all": [median]}


def row(library, value, difference=None):
    found = {"library": library, "model": "EASE", "ndcg@10": {"value": value, "low": value, "high": value}}
    found |= {"fit_cpu_s": [0.5], "options": {"l2": 400.0}, "epochs": 1, "trials": 8, "edges": []}
    return found | ({"ours_minus_it": difference} if difference else {})


@pytest.fixture
def values():
    none = {"mean": -0.001, "low": -0.004, "high": 0.002}
    worse = {"mean": -0.01, "low": -0.02, "high": -0.005}
    served = {"data": "100K", "model": "EASE", "events": 10, "users": 2, "items": 3, "above_mb": times(1.0)}
    lists = {"lists": 941}
    before = {"load_s": times(2.0), "prepare_s": times(0.02), "once_s": times(0.1)}
    level = {"model": "BPR", "level": 0.14, "epochs": 3, "best": 0.15, **before}
    epoch = {"events": 31_012, "options": {}, "once_s": times(0.1)}
    ranking = {"users": 5, "items": 5, "factors": 2, "peak_mb": times(9.0)}
    return {
        "quality": [row("ours", 0.167), row("Slower", 0.168, none), row("Better", 0.178, worse)],
        "ratings": [],
        "evaluators": {
            "agreement": [{"library": "ranx", "users": 941, "ndcg": 1e-16, "recall": 0.0, "mrr": 0.0}],
            "times": [{"library": "ours", "cpu_s": times(0.002), **lists}],
        },
        "epoch_of_bpr": [
            {"library": "ours", "cpu_s": times(0.018), **epoch},
            {"library": "Quick", "cpu_s": times(0.003), **epoch},
        ],
        "bpr_to_levels": [
            {"library": "ours", "cpu_s": times(0.1), "whole_s": times(2.22), **level},
            {"library": "Late", "cpu_s": times(0.2), "whole_s": times(2.32), **level},
            {"library": "Never", "model": "BPR", "level": 0.14, "best": 0.13},
        ],
        "served": [
            {"library": "ours", "fit_cpu_s": times(0.3), "fit_and_lists_cpu_s": times(0.5), "own_lists": 1}
            | served,
            {"library": "Tied", "fit_cpu_s": times(0.3), "fit_and_lists_cpu_s": times(0.5), "own_lists": 0}
            | served,
        ],
        "ranking": [
            {"library": "ours", "cpu_s": times(2.0), **ranking},
            {"library": "numpy", "cpu_s": times(1.0), **ranking},
        ],
        "faults": [{"library": "RecBole", "script": "recbole_pop.py", "shown": 1, "said": "counted 1"}],
        "not_run": [{"library": "RecBole", "model": "SASRec", "why": "slow"}],
        "environments": [{"name": "x", "installed": 0, "problem": "<b>no wheel</b>"}],
        "failed": {"tune/X/Y": "it ended without a result"},
        "versions": {"numpy": "1.26.4, 2.4.6"},
        "cells": 300,
        "cpu_seconds": 1_800.0,
        "clock_seconds": 3_000.0,
    }


def text(found):
    return " ".join(node.astext() for node in found)


def test_every_line_where_a_peer_is_ahead_is_said_and_no_other(values):
    (said,) = ahead(values)
    lines = [item.astext() for item in said.children]
    assert len(lines) == 2
    assert lines[0].startswith("Better's EASE ranks better: ours minus it \N{MINUS SIGN}0.0100")
    assert lines[1] == "Quick is quicker: an epoch of BPR, 0.003 s, ours 0.018 s (6.0 times)."
    values["quality"].pop()
    values["epoch_of_bpr"].pop()
    assert "No peer is ahead" in text(ahead(values))


def test_a_peer_that_is_fitted_sooner_with_its_own_setting_is_said(values):
    mine, its = row("ours", 0.15), row("Soon", 0.14)
    for one, seconds in ((mine, 6.0), (its, 2.0)):
        one |= {"model": "BPR", "epochs": 20, "fit_cpu_s": [seconds, seconds]}
    values["quality"] += [mine, its]
    assert "Soon's BPR is fitted sooner, each with its own setting: 2 s, ours 6 s (3.0 times)." in text(
        ahead(values)
    )
    its["fit_cpu_s"] = [7.0]
    assert "fitted sooner" not in text(ahead(values))


def test_a_process_that_trains_once_is_compared_as_a_whole(values):
    own, late, _ = values["bpr_to_levels"]
    rows = list(PARTS["peers"]["whole"](values)[0].findall(nodes.row))
    assert [cell.astext() for cell in rows[1]] == [
        *("0.1400", "ours", "BPR", "2.22", "2", "0.02", "0.1", "0.1")
    ]
    assert rows[2][1].astext() == "Late"
    late["whole_s"] = times(1.11)
    said = "Late is quicker: a process that trains once, to 0.1400, 1.11 s, ours 2.22 s (2.0 times)."
    assert said in text(ahead(values))
    # Ours is whichever of our models is soonest as a whole, not the one that trains soonest.
    values["bpr_to_levels"].append({**own, "model": "MatrixFactorization", "whole_s": times(1.0)})
    assert said[:40] not in text(ahead(values))


def test_a_quicker_peer_is_told_of_our_other_model_that_is_quicker_still(values):
    level = values["bpr_to_levels"]
    level[0]["cpu_s"] = times(0.3)
    level.append({**level[0], "model": "MatrixFactorization", "cpu_s": times(0.05)})
    assert "Late is quicker: BPR to 0.1400 on validation, 0.2 s, ours 0.3 s (1.5 times)" in text(
        ahead(values)
    )
    assert "MF with softmax takes 0.05 s" in text(ahead(values))


def test_a_peers_bpr_is_held_against_the_quicker_of_ours(values):
    level = values["bpr_to_levels"]
    level[0]["cpu_s"] = times(0.3)
    assert "BPR to 0.1400" in text(ahead(values))
    level.append({**level[0], "model": "CompiledBPR", "cpu_s": times(0.05)})
    assert "BPR to 0.1400" not in text(ahead(values))


@pytest.mark.parametrize("part", PARTS["peers"])
def test_every_part_is_made_of_nodes(values, part):
    found = PARTS["peers"][part](values)
    assert found or part == "ratings"
    for node in found:
        assert node.astext()
        for entry in node.findall(nodes.table):
            columns = {len(line.children) for line in entry.findall(nodes.row)}
            assert len(columns) == 1


def test_a_level_that_was_reached_and_not_timed_is_not_called_never(values):
    values["bpr_to_levels"][-1]["best"] = 0.15
    assert "never" not in text(tables.levels(values))
    assert "not timed" in text(tables.levels(values))


def test_an_exponent_that_is_too_unsure_is_not_shown():
    law = {"model": "EASE", "against": "items", "least": 10, "most": 40}
    law |= {"time": {"value": -0.2, "error": 0.1}, "memory": {"value": 5.58, "error": 3.01}}
    said = text(tables.growth({"exponents": [law], "largest": []}))
    assert "\N{MINUS SIGN}0.20 ± 0.10" in said
    assert "5.58" not in said


def test_what_the_run_took_is_said(values):
    assert text(tables.took(values)) == (
        "The 300 processes of this run took 30 min 0 s of processor time, and 50 min 0 s on the clock."
    )


def test_texts_of_a_record_stay_texts(values):
    assert "<b>no wheel</b>" in text(tables.missing(values))
    assert not any(isinstance(node, nodes.raw) for one in tables.missing(values) for node in one.findall())


def test_numbers_in_words():
    assert [amount(x) for x in (0.003041, 1.284, 2910.4, 0.0, 0.00001234)] == [
        "0.00304", "1.28", "2,910", "0", "0.000012",
    ]  # fmt: skip
    assert signed(-0.0056) == "\N{MINUS SIGN}0.0056"
    assert signed(-0.00001) == "0.0000"
    assert gap({"mean": 0.01, "low": -0.01, "high": 0.03}).startswith("+0.0100 [\N{MINUS SIGN}0.0100")
    assert [type(node) for node in marked("*Run*: `make x`. **Old.**")] == [
        nodes.emphasis, nodes.Text, nodes.literal, nodes.Text, nodes.strong,
    ]  # fmt: skip


@pytest.mark.parametrize("name", PARTS)
def test_the_records_that_are_here_can_be_shown(name):
    path = ROOT / "book" / "recorded" / f"{name}.json"
    if not path.is_file():
        pytest.skip(f"{name} has not been recorded")
    run = RecordedRun.read(path)
    found = [make(run.values) for make in PARTS[name].values()]
    assert found[0]
    assert all(node.astext() for part in found for node in part)


def entry(**changes):
    page = {"bytes": 100_000, "first_paint_ms": 300}
    found = {"date": "2026-01-31", "hardware": "cpu: x", "chapters_s": {"01_a": 60.0, "02_b": 30.0}}
    found |= {"cold_book_s": None, "warm_book_s": 20.0, "pages": {"notebooks/01_a": page}}
    return found | changes


def test_a_slowdown_is_seen_and_a_small_change_is_not():
    assert history.slowdowns([entry(), entry(chapters_s={"01_a": 70.0, "02_b": 33.0})]) == []
    slow = entry(chapters_s={"01_a": 120.0, "03_new": 500.0}, warm_book_s=50.0)
    slow["pages"] = {"notebooks/01_a": {"bytes": 200_000, "first_paint_ms": 300}}
    found = history.slowdowns([entry(), slow])
    assert [line.split(" ")[0] for line in found] == ["01_a", "a", "notebooks/01_a"]
    assert history.slowdowns([entry(hardware="cpu: another"), slow]) == []
    assert history.slowdowns([]) == []


def test_the_history_is_shown_newest_first(tmp_path):
    newest = entry(date="2026-02-28", warm_book_s=None)
    first, second = history_tables([entry(), newest])
    days = [line.children[0].astext() for line in first.findall(nodes.row)]
    assert days == ["Day", "2026-02-28", "2026-01-31"]
    assert "1 min 30 s" in first.astext()
    assert "100 kB" in second.astext()
    assert "Nothing" in text(history_tables([]))
    path = tmp_path / "history.json"
    path.write_text('{"date": 1}')
    with pytest.raises(ValueError, match="not a list of entries"):
        history.read(path)
    path.write_text(json.dumps([entry()]))
    assert history.summary(history.read(path)[0])["most_bytes"] == 100_000


def test_chapters_are_timed_from_their_copies(tmp_path):
    copies = tmp_path / "_build" / "executed" / "notebooks"
    copies.mkdir(parents=True)
    (tmp_path / "notebooks").mkdir()
    for name in ("01_a", "02_b"):
        (tmp_path / "notebooks" / f"{name}.ipynb").write_text("{}")
    run = {"metadata": {"recsys_book": {"seconds": 12.34, "hardware": "cpu: x"}}}
    (copies / "01_a.ipynb").write_text(json.dumps(run))
    assert history.chapters(tmp_path) == ({"01_a": 12.3}, "cpu: x")
    assert history.entry(tmp_path, 9.0)["warm_book_s"] == 9.0
    assert history.read(ROOT / history.HISTORY) is not None
