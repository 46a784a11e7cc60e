"""The chapters' headline results are within the accepted bands; and the check that says so can fail."""

import copy
import json

import pytest

from book.accept import ACCEPTED as FILE
from book.accept import ADVICE, layout_of, problems, read_accepted, renew
from book.execute import ROOT, Layout, stale
from recsys_lib.chapter.results import ChapterResults, read_all

LAYOUT = Layout(ROOT)


def test_every_chapter_is_executed_and_its_results_are_accepted():
    waiting = {path.stem: reason for path in LAYOUT.sources() if (reason := stale(path))}
    assert not waiting, f"run `make execute` first: {waiting}"
    found = problems(read_accepted(), read_all(LAYOUT.results))
    assert not found, "\n" + "\n".join([*found, ADVICE])


def test_the_file_is_as_make_accept_writes_it():
    bands = read_accepted()
    assert FILE.read_text() == layout_of(bands)
    assert list(bands) == sorted(bands)
    for chapter, named in bands.items():
        assert list(named) == sorted(named), chapter
        assert all(set(band) == {"value", "rel"} for band in named.values()), chapter


def test_a_line_for_each_result():
    bands = {"01_a": {"x": {"value": 0.5, "rel": 0.1}, "y": {"value": 2.0, "rel": 0.02}}, "02_b": {}}
    assert json.loads(layout_of(bands)) == bands
    assert '\n  "y": {"value": 2.0, "rel": 0.02}\n' in layout_of(bands)


def record(value=0.1, **more):
    row = {
        "name": "ease", "value": value, "low": None, "high": None, "n": 9, "metric": "ndcg@10",
        "model": "EASE", "family": "linear", "seed": 0, "fit_seconds": None, "headline": True,
        "scoreboard": False, "deterministic": True,
    }  # fmt: skip
    other = row | {"name": "aside", "value": 5.0, "headline": False, "deterministic": False}
    made = {
        "chapter": "01_a", "title": "A", "dataset": "100k", "seed": 0, "device": "cpu", "hardware": "cpu: x",
        "seconds": 1.0, "peak_memory_mb": None, "versions": {}, "results": [row | more, other],
        "numbers": {"rmse": 0.9, "users": 942}, "headline_numbers": {"rmse": False},
        "claims": [],
    }  # fmt: skip
    return {"01_a": ChapterResults.from_json(made)}


ACCEPTED = {"01_a": {"ease": {"value": 0.1, "rel": 0.02}, "rmse": {"value": 0.9, "rel": 0.1}}}


def test_headlines_are_what_was_marked():
    assert record()["01_a"].headlines == {"ease": (0.1, True), "rmse": (0.9, False)}


@pytest.mark.parametrize("value", [0.1, 0.0981, 0.1019])
def test_within_the_band_nothing_is_said(value):
    assert problems(ACCEPTED, record(value)) == []


@pytest.mark.parametrize("value", [0.0, 0.0979, 0.1021, -0.1, 1e9])
def test_outside_the_band_it_fails(value):
    (problem,) = problems(ACCEPTED, record(value))
    assert "01_a: 'ease' is" in problem
    assert "off 0.1 ± 2%" in problem


def test_a_zero_never_passes_however_wide_the_band():
    wide = copy.deepcopy(ACCEPTED)
    wide["01_a"]["ease"]["rel"] = 0.5
    assert problems(wide, record(0.0))
    wide["01_a"]["ease"]["rel"] = 1.0
    assert "must be within 50% of a value not zero" in problems(wide, record(0.1))[0]
    wide["01_a"]["ease"] = {"value": 0.0, "rel": 0.1}
    assert "must be within 50% of a value not zero" in problems(wide, record(0.0))[0]


def test_what_is_missing_or_new_is_named():
    assert "'ease' is missing" in problems(ACCEPTED, record(headline=False))[0]
    assert "'ease' is a new headline result (0.1)" in problems({}, record())[0]
    assert "01_a: has accepted results but recorded none" in problems(ACCEPTED, {})[0]


def test_renewing_keeps_the_widths_that_were_chosen_and_is_stable():
    assert renew({}, record()) == ACCEPTED
    chosen = copy.deepcopy(ACCEPTED)
    chosen["01_a"]["ease"]["rel"] = 0.05
    renewed = renew(chosen, record(0.123456))
    assert renewed["01_a"]["ease"] == {"value": 0.1235, "rel": 0.05}
    assert renew(renewed, record(0.123456)) == renewed
    assert problems(renewed, record(0.123456)) == []
    assert renew(ACCEPTED, {}) == {}


@pytest.mark.parametrize("value", [0.0, 1.7976e308])  # the last, rounded, is infinite
def test_what_has_no_band_cannot_be_accepted(value):
    with pytest.raises(ValueError, match="cannot be accepted"):
        renew({}, record(value))
