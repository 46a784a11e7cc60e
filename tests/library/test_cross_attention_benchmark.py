"""The benchmark of cross-attention and its ablations at a small size, and its recorded run."""

import importlib.util
import sys
from pathlib import Path

import pytest
import torch

from recsys_lib.attention import MultiHeadAttention
from recsys_lib.chapter.runs import RecordedRun, code_hash

ROOT = Path(__file__).resolve().parents[2]
RECORDED = ROOT / "book" / "recorded" / "cross_attention.json"
LONG = RECORDED.with_name("cross_attention_long.json")


@pytest.fixture(scope="module")
def benchmark():
    spec = importlib.util.spec_from_file_location(
        "benchmark_cross", ROOT / "benchmarks" / "cross_attention.py"
    )
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where the types of a model's options are looked up
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


def test_averaged_heads_are_the_mean_of_the_heads(benchmark):
    torch.manual_seed(0)
    attention, averaged = MultiHeadAttention(8, 2), benchmark.MeanOfHeads(8, 2)
    heads = torch.randn(5, 8)
    expected = averaged.one(heads.unflatten(-1, (2, 4)).mean(dim=-2))
    torch.testing.assert_close(averaged(heads), expected)
    # Pooled or not, the model reads the same map.
    attention.output = averaged
    x, context, shares = torch.randn(4, 8), torch.randn(3, 8), torch.rand(4)
    pooled = attention.pooled(x, context, shares)
    torch.testing.assert_close(pooled, (shares[:, None] * attention(x, context)).sum(dim=0))


@pytest.mark.slow
def test_the_benchmark_compares_what_the_recorded_run_compares(benchmark):
    found = benchmark.run(epochs=1, only=40, every=4)
    recorded = RecordedRun.read(RECORDED)
    assert found["values"].keys() == recorded.values.keys()
    assert found["settings"].keys() == recorded.settings.keys()
    assert found["inputs"] == recorded.inputs
    for part in ("ndcg@10", "minus_full", "cpu_seconds", "strangers"):
        assert found["values"][part].keys() == recorded.values[part].keys()
    assert all(0 <= value < 1 for value in found["values"]["ndcg@10"].values())
    assert "people never trained on" in benchmark.table(found)
    assert all(code_hash(name) for name in benchmark.CODE)


@pytest.mark.slow
def test_the_longer_benchmark_compares_what_its_recorded_run_compares(benchmark):
    found = benchmark.long_run(only=40, every=4, epochs=1)
    recorded = RecordedRun.read(LONG)
    assert found["values"].keys() == recorded.values.keys()
    assert found["settings"].keys() == recorded.settings.keys()
    assert found["inputs"] == recorded.inputs
    assert found["values"]["ndcg@10"].keys() == recorded.values["ndcg@10"].keys()
    assert all(code_hash(name) for name in benchmark.LONG_CODE)


def test_the_recorded_differences_are_those_of_the_scores(benchmark):
    values = RecordedRun.read(RECORDED).values
    for name, gap in values["minus_full"].items():
        expected = values["ndcg@10"][name] - values["ndcg@10"][benchmark.FULL]
        assert gap["mean"] == pytest.approx(expected, abs=2e-5)
        assert gap["low"] <= gap["mean"] <= gap["high"]
