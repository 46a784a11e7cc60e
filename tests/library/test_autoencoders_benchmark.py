"""The run that searches the autoencoders and the neighbors alike, at a small size, and its record."""

import json
from pathlib import Path

import pytest

from benchmarks import autoencoders as benchmark
from recsys_lib.chapter.runs import RecordedRun, code_hash

ROOT = Path(__file__).resolve().parents[2]
RECORDED = ROOT / "book" / "recorded" / "autoencoders.json"
SMALL = {"a": (1, 2, 4, 8), "shrink": (0.0, 1.0, 3.0), "dropout": (0.1, 0.5, 0.9)}


def test_a_ladder_goes_on_in_its_ratio():
    whole = (64, 128, 256)
    assert [benchmark.rung(whole, i) for i in range(-2, 5)] == [16, 32, 64, 128, 256, 512, 1024]
    assert benchmark.rung((0.1, 0.2, 0.8), 3) == pytest.approx(3.2)
    assert benchmark.rung((0.1, 0.2, 0.8), -1) == pytest.approx(0.05)


def test_a_step_changes_one_option_and_stays_where_there_are_values():
    found = benchmark.steps((0, 0, 2), SMALL)
    assert found == [
        (1, 0, 2),
        (-1, 0, 2),
        (0, 1, 2),
        (0, 0, 1),
    ]  # no shrinkage, .9: ends


def test_inside_is_where_both_neighbors_were_tried():
    place = (1, 0, 1)
    beside = {(2, 0, 1), (0, 0, 1), (1, 1, 1), (1, 0, 2), (1, 0, 0)}
    assert benchmark.not_inside(place, beside, SMALL) == []
    assert benchmark.not_inside(place, beside - {(0, 0, 1)}, SMALL) == ["a"]
    assert benchmark.not_inside((1, 0, 2), beside, SMALL) == ["a", "shrink", "dropout"]


def test_a_search_goes_on_from_the_trials_that_were_kept(movielens, tmp_path, monkeypatch):
    split = benchmark.leave_last_out(movielens.interactions.positives(4.0), n=0.2)
    kept = tmp_path / "trials.jsonl"
    first = benchmark.searched("item-kNN", split, 3, kept=kept)
    assert len(first["trials"]) == len(kept.read_text("utf8").splitlines()) == 3

    def never(*arguments, **options):
        raise AssertionError("a trial that was kept was made again")

    monkeypatch.setattr(benchmark, "evaluate", never)
    assert benchmark.searched("item-kNN", split, 3, kept=kept) == first
    assert first["validation"] == max(trial["ndcg@10"] for trial in first["trials"])


@pytest.mark.slow
def test_the_benchmark_measures_what_the_recorded_run_measured(monkeypatch):
    monkeypatch.setattr(benchmark, "DRAWN", 1)
    found, recorded = benchmark.run(budget=2, epochs=5, seeds=2), RecordedRun.read(RECORDED)
    assert found["inputs"] == recorded.inputs
    assert found["settings"].keys() == recorded.settings.keys()
    assert found["values"].keys() == recorded.values.keys()
    assert found["values"]["test"].keys() == recorded.values["test"].keys()
    default, kept = (run["test"]["item-kNN, defaults"] for run in (found["values"], recorded.values))
    assert default["value"] == pytest.approx(kept["value"], abs=1e-4)
    assert all(code_hash(name) for name in benchmark.CODE)


def test_what_was_chosen_is_the_best_of_the_recorded_trials():
    values = RecordedRun.read(RECORDED).values
    for name, (_, ladders) in benchmark.SPACES.items():
        found = values["models"][name]
        best = max(found["trials"], key=lambda trial: trial["ndcg@10"])
        assert found["chosen"] == {key: best[key] for key in found["chosen"]}
        assert found["chosen"].keys() >= ladders.keys()
        assert len(found["trials"]) <= benchmark.BUDGET
        assert len({json.dumps(trial) for trial in found["trials"]}) == len(found["trials"])
    for cell in values["test"].values():
        assert cell["low"] <= cell["value"] <= cell["high"]
