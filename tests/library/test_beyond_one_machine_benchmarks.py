"""The index built in pieces and the catalog embedded in shards, at a tiny size, and their recorded runs."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from recsys_lib.chapter.runs import RecordedRun

faiss = pytest.importorskip("faiss")
pytest.importorskip("faiss.contrib.ondisk")

from benchmarks import catalog_in_shards, index_in_pieces  # noqa: E402 - it needs FAISS
from benchmarks.index_in_pieces import K, Plan, build, drawn, exact  # noqa: E402

RECORDED = Path(__file__).resolve().parents[2] / "book" / "recorded"
TINY = Plan(
    pieces=3,
    size=2_000,
    lists=16,
    probes=(1, 4, 16, 64),
    sample=1_500,
    queries=30,
    rounds=1,
    centers=(10, 200),
)


def shape(value: Any) -> Any:
    """What a run holds, without the values."""
    if isinstance(value, dict):
        return {name: shape(part) for name, part in value.items()}
    return [shape(part) for part in value] if isinstance(value, list) else None


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("pieces")


@pytest.fixture(scope="module")
def tiny(folder: Path) -> dict[str, Any]:
    return index_in_pieces.run(TINY, folder)


def test_a_tiny_run_measures_all_that_the_recorded_one_does(tiny: dict[str, Any]) -> None:
    recorded = RecordedRun.read(RECORDED / "index_in_pieces.json")
    for name in ("settings", "values", "inputs"):
        assert shape(tiny[name]) == shape(getattr(recorded, name))


def test_the_recorded_run_held_less_than_the_vectors() -> None:
    values = RecordedRun.read(RECORDED / "index_in_pieces.json").values
    assert values["vectors"] == 10_000_000
    assert max(values["peak_mb"], values["search_peak_mb"]) < values["float32_mb"]
    assert all(index["shards_largest_gap"] < 1e-5 for index in values["indexes"])


def test_comparing_piece_by_piece_is_comparing_with_all() -> None:
    everything = np.concatenate([drawn(TINY, number, TINY.size) for number in range(TINY.pieces)])
    queries = drawn(TINY, -1, TINY.queries)
    right = np.argsort(-(queries @ everything.T), axis=1)[:, :K]
    assert np.array_equal(exact(TINY, queries), right)


def test_the_joined_lists_hold_every_vector_once_and_more_lists_find_more(tiny, folder) -> None:
    index = faiss.read_index(str(folder / "whole-16.index"))
    lists = [
        faiss.rev_swig_ptr(index.invlists.get_ids(number), index.invlists.list_size(number)).copy()
        for number in range(TINY.lists)
    ]
    assert sorted(np.concatenate(lists).tolist()) == list(range(TINY.pieces * TINY.size))
    for row in tiny["values"]["indexes"]:
        assert row["bytes_a_vector"] == pytest.approx(row["code_bytes"] + 8, rel=0.3)  # the id takes eight
        assert row["shards_largest_gap"] < 1e-5
        again = [s["recall"]["mean"] for s in row["searches"] if s["ranked_again"]]
        assert again[0] <= again[-1]
        assert again[-1] > 0.95  # all lists, and the vectors themselves


def test_a_run_that_was_killed_goes_on_with_the_pieces_that_are_not_there(tiny, folder, tmp_path) -> None:
    del tiny
    last = folder / "piece-0002-16.index"
    kept = folder / "piece-0001-16.index"
    before, content = kept.stat().st_mtime_ns, last.read_bytes()
    last.unlink()
    again = build(TINY, folder)
    assert kept.stat().st_mtime_ns == before
    assert last.read_bytes() == content
    assert [row["vectors"] for row in again["indexes"]] == [6_000, 6_000]


def test_the_catalogs_benchmark_counts_all_texts() -> None:
    tiny = catalog_in_shards.run([60], [1], rounds=1)
    recorded = RecordedRun.read(RECORDED / "catalog_in_shards.json")
    assert shape(tiny["values"]["rows"][0]) == shape(recorded.values["rows"][0])
    assert shape(tiny["settings"]) == shape(recorded.settings)
    assert {row["texts"] for row in recorded.values["rows"]} >= {10_000, 100_000, 1_000_000}
