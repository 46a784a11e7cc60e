"""The benchmark of the cross-encoder at a tiny size, and its recorded run."""

import importlib.util
import json
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
RECORDED = ROOT / "book" / "recorded" / "cross_encoder.json"
WORK = ("answering", "learning, theirs as they come", "learning, theirs of like length")
ROWS = {(work, texts) for work in WORK for texts in ("titles", "texts")}


def alike(found) -> bool:
    """Whether both sides computed the same."""
    return found["largest_difference_of_scores"] <= 1e-5 and found["difference_of_losses"] <= 1e-5


@pytest.mark.slow
def test_the_benchmark_measures_both_on_the_same_work():
    pytest.importorskip("sentence_transformers")
    spec = importlib.util.spec_from_file_location(
        "benchmark_cross_encoder", ROOT / "benchmarks" / "cross_encoder.py"
    )
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    found = module.run(rounds=1, n_pairs=6)
    assert {(row["of"], row["texts"]) for row in found["rows"]} == ROWS
    assert alike(found)
    assert all(row["ours_s"] > 0 < row["theirs_s"] for row in found["rows"])
    assert "least to greatest" in module.table(found)
    assert found.keys() == json.loads(RECORDED.read_text("utf8")).keys()


def test_the_recorded_run_is_of_equal_scores():
    found = json.loads(RECORDED.read_text("utf8"))
    assert {(row["of"], row["texts"]) for row in found["rows"]} == ROWS
    assert alike(found)
    assert found["rounds"] >= 5
