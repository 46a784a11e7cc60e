"""The benchmark of retrieval at a tiny size, and its recorded run."""

import importlib.util
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from recsys_lib.chapter.runs import RecordedRun, code_hash

ROOT = Path(__file__).resolve().parents[2]
RECORDED = ROOT / "book" / "recorded" / "retrieval.json"


@pytest.fixture(scope="module")
def benchmark() -> ModuleType:
    pytest.importorskip("faiss")
    spec = importlib.util.spec_from_file_location("benchmark_retrieval", ROOT / "benchmarks" / "retrieval.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def tiny(benchmark: ModuleType) -> dict[str, Any]:
    return benchmark.run(vectors=600, rounds=2, queries=20, one_by_one=2, epochs=1)


@pytest.fixture
def recorded() -> RecordedRun:
    return RecordedRun.read(RECORDED)


def recalls(measured: dict[str, Any]) -> dict[tuple[str, int], float]:
    """By index and what was set."""
    found = {}
    for row in measured["settings"]:
        option = row.get("n_probe", row.get("ef_search", 0))
        found[row["index"], option] = row["recall"]["mean"]
    return found


def shape(value: Any) -> Any:
    """What a run holds, without the values."""
    if isinstance(value, dict):
        return {name: shape(part) for name, part in value.items()}
    return [shape(part) for part in value] if isinstance(value, list) else None


def test_a_tiny_run_measures_all_that_the_recorded_one_does(
    tiny: dict[str, Any], recorded: RecordedRun, benchmark: ModuleType
) -> None:
    assert {name: shape(tiny[name]) for name in ("settings", "values", "inputs")} == {
        "settings": shape(recorded.settings),
        "values": shape(recorded.values),
        "inputs": shape(recorded.inputs),
    }
    assert json.loads(json.dumps(tiny, allow_nan=False)) == tiny
    assert tuple(recorded.code) == benchmark.CODE
    assert all(code_hash(name) for name in benchmark.CODE)
    assert "ef_search=256" in benchmark.table(tiny)


def test_what_looks_at_everything_finds_everything(tiny: dict[str, Any]) -> None:
    for measured in tiny["values"]["sets"].values():
        found = recalls(measured)
        for complete in (("exact", 0), ("FAISS itself", 0), ("flat", 0), ("ivf", 64)):
            assert found[complete] > 0.99
        assert found["pq", 64] < 0.99


def test_a_million_vectors_have_the_spectrum_of_the_items(benchmark: ModuleType) -> None:
    generator = torch.Generator().manual_seed(0)
    items = torch.randn(200, 64, generator=generator) * torch.linspace(2, 0.1, 64) + 1
    many = benchmark.spread_around(items, 100_000)
    torch.testing.assert_close(many.mean(dim=0), items.mean(dim=0), atol=0.03, rtol=0)
    torch.testing.assert_close(many.T.cov(), items.T.cov(), atol=0.1, rtol=0)
    assert (torch.cdist(many[:100], items).amin(dim=1) > 1).all()  # beside the items, not on them


def test_the_recorded_run_says_what_it_should(recorded: RecordedRun) -> None:
    assert recorded.values["sets"]["million"]["vectors"] == 1_000_000
    for measured in recorded.values["sets"].values():
        found, indexes = recalls(measured), measured["indexes"]
        assert found["exact", 0] == 1
        assert all(0 <= recall <= 1 for recall in found.values())
        assert found["ivf", 1] < found["ivf", 16] <= found["ivf", 64]
        assert indexes["pq"]["bytes_a_vector"] < indexes["exact"]["bytes_a_vector"] / 2
        assert indexes["hnsw"]["bytes_a_vector"] > indexes["exact"]["bytes_a_vector"]


@pytest.mark.slow
def test_the_recorded_recalls_come_out_again(benchmark: ModuleType, recorded: RecordedRun) -> None:
    """Of MovieLens' own items, which take seconds; times are another machine's."""
    items, users = benchmark.movielens(recorded.settings["epochs"])
    before = recorded.values["sets"]["movielens"]
    asked = users[torch.linspace(0, len(users) - 1, before["queries"]).long()]
    now = recalls(benchmark.measure(items, asked, rounds=1, one_by_one=1))
    assert now == pytest.approx(recalls(before), abs=0.05)
