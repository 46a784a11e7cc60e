"""The benchmark of the cross-encoder at a tiny size, and its recorded run."""

import importlib.util
from pathlib import Path

import pytest

from recsys_lib.chapter.runs import RecordedRun, code_hash

ROOT = Path(__file__).resolve().parents[2]
RECORDED = ROOT / "book" / "recorded" / "cross_encoder.json"
WORK = ("answering", "learning, theirs as they come", "learning, theirs of like length")
ROWS = {(work, texts) for work in WORK for texts in ("titles", "texts")}


def alike(values) -> bool:
    """Whether both sides computed the same."""
    return values["largest_difference_of_scores"] <= 1e-5 and values["difference_of_losses"] <= 1e-5


@pytest.mark.slow
def test_the_benchmark_measures_both_on_the_same_work():
    pytest.importorskip("sentence_transformers")
    spec = importlib.util.spec_from_file_location(
        "benchmark_cross_encoder", ROOT / "benchmarks" / "cross_encoder.py"
    )
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    found = module.run(rounds=1, n_pairs=6)
    rows = found["values"]["rows"]
    assert {(row["of"], row["texts"]) for row in rows} == ROWS
    assert alike(found["values"])
    assert all(row["ours_s"] > 0 < row["theirs_s"] for row in rows)
    assert "least to greatest" in module.table(found)
    recorded = RecordedRun.read(RECORDED)
    assert found["values"].keys() == recorded.values.keys()
    assert found["settings"].keys() == recorded.settings.keys()
    assert all(code_hash(name) for name in module.CODE)


def test_the_recorded_run_is_of_equal_scores():
    found = RecordedRun.read(RECORDED)
    assert {(row["of"], row["texts"]) for row in found.values["rows"]} == ROWS
    assert alike(found.values)
    assert found.settings["rounds"] >= 5
