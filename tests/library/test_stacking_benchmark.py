"""The benchmark of the stacked ranker with one epoch, and its recorded run."""

import importlib.util
import sys
from pathlib import Path

import pytest

from recsys_lib.chapter.runs import RecordedRun, code_hash

ROOT = Path(__file__).resolve().parents[2]
RECORDED = ROOT / "book" / "recorded" / "stacking.json"


@pytest.fixture(scope="module")
def benchmark():
    spec = importlib.util.spec_from_file_location("benchmark_stacking", ROOT / "benchmarks" / "stacking.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where the types of a model's options are looked up
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


@pytest.mark.slow
def test_the_benchmark_compares_what_the_recorded_run_compares(benchmark):
    found = benchmark.run(seeds=1, epochs=1)
    recorded = RecordedRun.read(RECORDED)
    assert found["values"].keys() == recorded.values.keys()
    assert found["settings"].keys() == recorded.settings.keys()
    assert found["inputs"] == recorded.inputs
    pairs = [
        [(gap["a"], gap["b"]) for gap in run["differences"]] for run in (found["values"], recorded.values)
    ]
    assert pairs[0] == pairs[1]
    assert all(0 < value < 1 for row in found["values"]["ndcg@10"].values() for value in row)
    assert "processor time" in benchmark.table(found)
    assert all(code_hash(name) for name in benchmark.CODE)


def test_the_mean_of_the_recorded_differences_is_that_of_the_scores(benchmark):
    values = RecordedRun.read(RECORDED).values
    means = {name: sum(row) / len(row) for name, row in values["ndcg@10"].items()}
    for gap in values["differences"]:
        assert gap["mean"] == pytest.approx(means[gap["a"]] - means[gap["b"]], abs=2e-5)
        assert len(gap["by_seed"]) == len(values["ndcg@10"][benchmark.BAR]) >= 3
