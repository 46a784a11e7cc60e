"""The benchmark of the service at a tiny size, and its recorded run."""

import importlib.util
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from recsys_lib.chapter.runs import RecordedRun, code_hash

ROOT = Path(__file__).resolve().parents[2]
RECORDED = ROOT / "book" / "recorded" / "serve.json"
ROWS = {(name, n) for name in ("service", "bare") for n in (1, 20)}


@pytest.mark.slow
def test_the_benchmark_measures_both_and_nothing_fails():
    pytest.importorskip("fastapi", reason="needs the extra serve")
    spec = importlib.util.spec_from_file_location("benchmark_serve", ROOT / "benchmarks" / "serve.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    with ThreadPoolExecutor(1) as thread:  # a browser of other tests may hold this thread's event loop
        found = thread.submit(module.run, rounds=1, requests=25).result()
    rows = found["values"]["rows"]
    assert {(row["of"], row["at_a_time"]) for row in rows} == ROWS
    for row in rows:
        assert row["failed"] == 0
        assert 0 < row["p50_ms"] <= row["p99_ms"]
    assert "without HTTP" in module.table(found)
    recorded = RecordedRun.read(RECORDED)
    assert found["values"].keys() == recorded.values.keys()
    assert found["settings"].keys() == recorded.settings.keys()
    assert all(code_hash(name) for name in module.CODE)


def test_no_request_of_the_recorded_run_failed():
    found = RecordedRun.read(RECORDED)
    rows = found.values["rows"]
    assert {(row["of"], row["at_a_time"]) for row in rows} == ROWS
    assert found.settings["requests"] == 200
    assert [row["failed"] for row in rows] == [0] * 4
