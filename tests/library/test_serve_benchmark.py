"""The benchmark of the service at a tiny size, and its recorded run."""

import importlib.util
import json
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
RECORDED = ROOT / "book" / "recorded" / "serve.json"
ROWS = {(name, n) for name in ("service", "bare") for n in (1, 20)}


@pytest.mark.slow
def test_the_benchmark_measures_both_and_nothing_fails():
    pytest.importorskip("fastapi", reason="needs the extra serve")
    spec = importlib.util.spec_from_file_location("benchmark_serve", ROOT / "benchmarks" / "serve.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    found = module.run(rounds=1, requests=25)
    assert {(row["of"], row["at_a_time"]) for row in found["rows"]} == ROWS
    for row in found["rows"]:
        assert row["failed"] == 0
        assert 0 < row["p50_ms"] <= row["p99_ms"]
    assert "without HTTP" in module.table(found)
    assert found.keys() == json.loads(RECORDED.read_text("utf8")).keys()


def test_no_request_of_the_recorded_run_failed():
    found = json.loads(RECORDED.read_text("utf8"))
    assert {(row["of"], row["at_a_time"]) for row in found["rows"]} == ROWS
    assert found["requests"] == 200
    assert [row["failed"] for row in found["rows"]] == [0] * 4
