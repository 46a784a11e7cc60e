"""The indexes against brute force, through additions, removals, exclusions and ties; files; errors."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import save_file
from sklearn.neighbors import NearestNeighbors
from torch import Tensor

from recsys_lib.data import Interactions
from recsys_lib.ranking import rank_topk
from recsys_lib.retrieval import ExactIndex, FaissIndex, Index, exact
from recsys_lib.retrieval import index as base

ROOT = Path(__file__).resolve().parents[2]
KINDS = ("exact", "flat", "ivf", "hnsw", "pq")
# Those that miss nothing: all lists are looked through; of few vectors HNSW's walk gives way to a scan.
COMPLETE = {"exact": {}, "flat": {}, "ivf": {"n_lists": 3, "n_probe": 3}, "hnsw": {}}


def make(kind: str, metric: str = "dot", **options: Any) -> Index:
    """An index; the test is skipped where it needs FAISS and there is none."""
    if kind == "exact":
        return ExactIndex(metric)
    pytest.importorskip("faiss")
    return FaissIndex(kind, metric, **options)


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def small_integers(*shape: int, seed: int = 0) -> Tensor:
    """Vectors whose products are computed without rounding, so that many tie; none is zero."""
    x = torch.randint(-2, 3, shape, generator=torch.Generator().manual_seed(seed)).float()
    x[(x == 0).all(dim=1)] = 1
    return x


def clustered(n: int, d: int = 16, seed: int = 0) -> Tensor:
    """Vectors around a hundred centers, of lengths that differ."""
    centers = randn(100, d, seed=seed)
    member = torch.randint(0, 100, (n,), generator=torch.Generator().manual_seed(seed + 1))
    lengths = (0.3 * randn(n, 1, seed=seed + 2)).exp()
    return (centers[member] + 0.5 * randn(n, d, seed=seed + 3)) * lengths


def recall(found: Tensor, right: Tensor) -> float:
    return (found[:, :, None] == right[:, None]).any(dim=1).float().mean().item()


def brute(held: dict[int, Tensor], queries: Tensor, k: int, exclude: Any, users: Any, seed: int) -> Any:
    """What the evaluator would list: the whole catalog scored in one matrix, and ranked."""
    scores = torch.full((len(queries), max(held) + 1), -torch.inf)
    for i, vector in held.items():
        scores[:, i] = queries @ vector
    for row, ids in enumerate(exclude or ()):
        for i in ids:
            if i <= max(held):
                scores[row, i] = -torch.inf
    wide = torch.nn.functional.pad(scores, (0, k), value=-torch.inf)  # fewer items than k are a padded list
    return rank_topk(wide, k, users=None if users is None else torch.tensor(users), seed=seed)


# ------------------------------------------------------------------------------------------ right answers


@pytest.mark.parametrize("kind", COMPLETE)
@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_search_is_brute_force_whatever_was_added_and_removed(kind: str, data: st.DataObject) -> None:
    """Integer vectors of two features: nearly everything ties, and nothing is rounded."""
    vectors = lambda n: torch.tensor(  # noqa: E731
        data.draw(st.lists(st.tuples(*[st.integers(-1, 1)] * 2), min_size=n, max_size=n))
    ).float()
    n = data.draw(st.integers(3, 20))
    ids = data.draw(st.lists(st.integers(0, 60), min_size=n, max_size=n, unique=True))
    held = dict(zip(ids, vectors(n), strict=True))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(exact, "_SCORES_CPU", 8)  # blocks of a few vectors, batches of two queries
        patch.setattr(exact, "_QUERIES_CPU", 2)
        index = make(kind, **COMPLETE[kind]).build(torch.stack([*held.values()]), ids)
        for _ in range(data.draw(st.integers(1, 5))):
            what = data.draw(st.sampled_from(["add", "remove", "search"]))
            if what == "add":
                free = sorted(set(range(70)) - set(held))
                new = data.draw(st.lists(st.sampled_from(free), max_size=8, unique=True))
                more = vectors(len(new)).reshape(len(new), 2)
                index.add(more, new)
                held |= dict(zip(new, more, strict=True))
            elif what == "remove" and held:
                gone = data.draw(st.lists(st.sampled_from(sorted(held)), max_size=len(held), unique=True))
                index.remove(gone)
                held = {i: vector for i, vector in held.items() if i not in gone}
            assert len(index) == len(held)
            if not held:
                continue
            queries = vectors(data.draw(st.integers(1, 5)))
            k = data.draw(st.integers(1, len(held)))
            seed = data.draw(st.integers(0, 3))
            lists = st.lists(st.integers(0, 75), max_size=30)
            exclude = data.draw(st.none() | st.lists(lists, min_size=len(queries), max_size=len(queries)))
            numbers = st.lists(st.integers(0, 99), min_size=len(queries), max_size=len(queries))
            users = data.draw(st.none() | numbers)
            found, scores = index.search(queries, k, exclude=exclude, users=users, seed=seed)
            items, values = brute(held, queries, k, exclude, users, seed)
            assert torch.equal(found, items)
            assert torch.equal(scores, values)


@pytest.mark.parametrize("metric", ["dot", "cosine"])
@pytest.mark.parametrize("n_queries", [1, 2, 16, 17, 300])
def test_exact_search_agrees_with_scikit_learn(n_queries: int, metric: str, device: torch.device) -> None:
    x, queries = randn(4000, 24), randn(n_queries, 24, seed=1)
    ids, scores = ExactIndex(metric).build(x.to(device)).search(queries.to(device), 10)
    assert ids.device == scores.device == queries.to(device).device
    if metric == "cosine":
        distance, right = NearestNeighbors(metric="cosine", algorithm="brute").fit(x).kneighbors(queries, 10)
        expected = 1 - torch.from_numpy(distance).float()
    else:
        expected, right = (queries.double() @ x.double().mT).topk(10)
    torch.testing.assert_close(scores.cpu(), expected.float(), atol=1e-5, rtol=1e-5)
    assert recall(ids.cpu(), torch.as_tensor(right)) > 0.999


@pytest.mark.parametrize("metric", ["dot", "cosine"])
@pytest.mark.parametrize("n_queries", [1, 40])
def test_faiss_flat_is_exact(metric: str, n_queries: int) -> None:
    x, queries = clustered(3000), clustered(n_queries, seed=7)
    ids, scores = make("flat", metric).build(x).search(queries, 10)
    right, expected = ExactIndex(metric).build(x).search(queries, 10)
    torch.testing.assert_close(scores, expected)
    assert recall(ids, right) > 0.999


@pytest.mark.parametrize("kind", ["exact", "flat", "ivf", "hnsw"])
def test_ties_at_the_border_are_broken_as_the_evaluator_breaks_them(kind: str) -> None:
    """2,000 vectors, 10 different ones: any list ends within a group of 200 that tie."""
    x = small_integers(10, 4).repeat(200, 1)
    queries, users = small_integers(30, 4, seed=1), torch.arange(100, 130)
    index = make(kind, **({"n_lists": 5, "n_probe": 5} if kind == "ivf" else {})).build(x)
    items, values = rank_topk(queries @ x.mT, 7, users=users, seed=3)
    found, scores = index.search(queries, 7, users=users, seed=3)
    assert torch.equal(found, items)
    assert torch.equal(scores, values)
    assert not torch.equal(index.search(queries, 7, users=users, seed=4)[0], items)


def test_scores_held_at_once_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    held = []

    def products(queries: Tensor, vectors: Tensor) -> Tensor:
        held.append(len(queries) * len(vectors))
        return queries @ vectors.mT

    monkeypatch.setattr(exact, "_products", products)
    monkeypatch.setattr(exact, "_SCORES_CPU", 1000)
    monkeypatch.setattr(exact, "_QUERIES_CPU", 10)
    x, queries = small_integers(2357, 4), small_integers(33, 4, seed=1)
    ids, _ = ExactIndex().build(x).search(queries, 5)
    assert max(held) <= 1000
    assert sum(held) == 2357 * 33
    assert torch.equal(ids, rank_topk(queries @ x.mT, 5)[0])


@pytest.mark.parametrize("kind", KINDS)
def test_an_index_keeps_its_own_vectors(kind: str) -> None:
    x, queries = clustered(400), clustered(5, seed=5)
    index = make(kind).build(x)
    before = index.search(queries, 3)
    x.zero_()
    assert torch.equal(index.search(queries, 3)[0], before[0])
    assert isinstance(index.search(queries.requires_grad_(), 3)[1].grad_fn, type(None))


def test_no_tensor_is_made_without_a_device(explicit_devices: Any) -> None:
    with explicit_devices:
        for kind in ("exact", "hnsw"):
            if kind == "hnsw":
                pytest.importorskip("faiss")
            index = ExactIndex() if kind == "exact" else FaissIndex("hnsw")
            index.build(small_integers(30, 4))
            index.remove([3])
            index.add(small_integers(3, 4))
            index.search(small_integers(3, 4), 5, exclude=[[1], [], [2]])


# ------------------------------------------------------------------------------------------- approximation


@pytest.mark.parametrize("metric", ["dot", "cosine"])
@pytest.mark.parametrize(
    ("kind", "generous", "stingy", "floor"),
    [
        ("ivf", {"n_lists": 64, "n_probe": 24}, {"n_probe": 1}, 0.97),
        ("hnsw", {"ef_search": 128}, {"ef_search": 1}, 0.97),
        ("pq", {"n_lists": 64, "n_probe": 64, "code_bytes": 16}, {"n_probe": 1}, 0.9),
    ],
)
def test_recall_has_a_floor_and_grows_with_effort(
    kind: str, generous: dict[str, int], stingy: dict[str, int], floor: float, metric: str
) -> None:
    x, queries = clustered(4000), clustered(100, seed=9)
    right, _ = ExactIndex(metric).build(x).search(queries, 10)
    index = make(kind, metric, **generous).build(x)
    much = recall(index.search(queries, 10)[0], right)
    for name, value in stingy.items():
        setattr(index, name, value)
    assert much >= floor
    assert recall(index.search(queries, 10)[0], right) < much


def test_shorter_codes_cost_recall_and_less_memory(tmp_path: Path) -> None:
    x, queries = clustered(2000), clustered(100, seed=9)
    right, _ = ExactIndex().build(x).search(queries, 10)
    recalls, sizes = [], []
    for code_bytes in (2, 16):
        index = make("pq", n_lists=8, n_probe=8, code_bytes=code_bytes).build(x)
        recalls.append(recall(index.search(queries, 10)[0], right))
        index.save(tmp_path / "index")
        sizes.append((tmp_path / "index").stat().st_size)
    assert recalls[0] < recalls[1] - 0.2
    assert sizes[1] - sizes[0] == pytest.approx(2000 * 14, rel=0.05)


@pytest.mark.parametrize("kind", KINDS)
def test_k_remain_whatever_is_excluded(kind: str) -> None:
    """For each query its own best 300 of 600, so that a list that was cut afterwards would be empty."""
    x, queries = clustered(600), clustered(20, seed=4)
    best, _ = ExactIndex().build(x).search(queries, 300)
    index = make(kind).build(x)
    exclude = [row.tolist() if i % 2 else [] for i, row in enumerate(best)]
    ids, scores = index.search(queries, 10, exclude=exclude)
    assert (ids >= 0).all()
    assert (scores.diff(dim=1) <= 0).all()
    assert all(len(set(row)) == 10 for row in ids.tolist())
    assert not any(set(row) & set(gone) for row, gone in zip(ids.tolist(), exclude, strict=True))
    # A query's answer does not depend on what the others exclude.
    alone, _ = index.search(queries, 10)
    assert torch.equal(ids[::2], alone[::2])


@pytest.mark.parametrize("kind", KINDS)
def test_fewer_than_k_are_padded(kind: str) -> None:
    x = clustered(300)
    exclude = [range(297), range(300), [-1]]
    ids, scores = make(kind).build(x).search(clustered(3, seed=2), 5, exclude=exclude)
    assert sorted(ids[0].tolist()) == [-1, -1, 297, 298, 299]
    assert ids[0, 3:].tolist() == [-1, -1]
    assert ids[1].tolist() == [-1] * 5
    assert (ids[2] >= 0).all()
    assert torch.equal(scores == -torch.inf, ids == -1)


@pytest.mark.parametrize("kind", KINDS)
def test_what_was_removed_is_not_found_and_may_come_back(kind: str) -> None:
    x, queries = clustered(2000), clustered(20, seed=6)
    index = make(kind).build(x)
    first = index.search(queries, 10)[0]
    gone = first.unique()
    index.remove(gone)
    assert len(index) == 2000 - len(gone)
    found = index.search(queries, 10)[0]
    assert (found >= 0).all()
    assert not torch.isin(found, gone).any()
    index.add(x[gone], gone)
    assert recall(index.search(queries, 10)[0], first) > 0.97


def test_hnsw_is_built_anew_where_more_is_removed_than_is_left() -> None:
    x, queries = clustered(1000), clustered(20, seed=6)
    index = make("hnsw").build(x)
    index.remove(range(500))
    assert index._index.ntotal == 1000
    index.remove([500])
    assert index._index.ntotal == len(index) == 499
    right, _ = ExactIndex().build(x[501:], range(501, 1000)).search(queries, 10)
    assert recall(index.search(queries, 10)[0], right) > 0.97
    index.remove([999])  # rows have moved with the rest
    assert not (index.search(queries, 498)[0] == 999).any()


@pytest.mark.parametrize("kind", KINDS)
def test_an_emptied_index_can_be_filled_again(kind: str) -> None:
    x = clustered(300)
    index = make(kind).build(x)
    index.remove(range(300))
    with pytest.raises(ValueError, match="empty"):
        index.search(x[:1], 1)
    index.add(x[:50])
    ids, _ = index.search(x[:1], 50)
    assert sorted(ids[0].tolist()) == list(range(300, 350))  # a number is not given twice


def test_numbering_goes_on_from_the_greatest_id() -> None:
    index = ExactIndex().build(small_integers(2, 4), [7, 3])
    index.add(small_integers(1, 4), [1])
    index.remove([7])
    index.add(small_integers(2, 4))
    assert sorted(index.search(Q[:1], 4)[0][0].tolist()) == [1, 3, 8, 9]


@pytest.mark.parametrize("kind", ["exact", "flat"])
def test_no_id_is_not_taken_for_the_greatest(kind: str) -> None:
    index = make(kind).build(small_integers(3, 4), [0, 5, 2**31 - 1])
    ids, _ = index.search(Q, 3, exclude=[[], [-1]])
    assert ids.sort().values.tolist() == [[0, 5, 2**31 - 1]] * 2
    ids, _ = index.search(Q, 3, exclude=[[2**31 - 1], []])
    assert (ids == 2**31 - 1).sum(dim=1).tolist() == [0, 1]


def test_interactions_say_what_each_user_has_seen(small: Interactions) -> None:
    x = small_integers(5, 3)
    index = ExactIndex().build(x)
    users = [2, 0, 2]
    seen = [small.items[small.users == user].tolist() for user in users]
    queries = small_integers(3, 3, seed=1)
    given_events = index.search(queries, 5, exclude=small, users=users)
    given_lists = index.search(queries, 5, exclude=seen, users=users)
    assert torch.equal(given_events[0], given_lists[0])
    assert (given_events[0][1] >= 0).sum() == 1  # ann has four of the five
    padded = torch.nn.utils.rnn.pad_sequence([torch.tensor(x) for x in seen], True, padding_value=-1)
    assert torch.equal(index.search(queries, 5, exclude=padded, users=users)[0], given_lists[0])


# --------------------------------------------------------------------------------------------- determinism


@pytest.mark.parametrize("kind", ["ivf", "hnsw", "pq"])
def test_same_seed_same_index(kind: str) -> None:
    faiss = pytest.importorskip("faiss")
    x, queries = clustered(600), clustered(50, seed=3)
    options = {} if kind == "hnsw" else {"n_probe": 1}
    before = faiss.omp_get_max_threads()
    try:
        faiss.omp_set_num_threads(2)
        found = [FaissIndex(kind, **options).build(x).search(queries, 10) for _ in range(2)]
        assert faiss.omp_get_max_threads() == 2
    finally:
        faiss.omp_set_num_threads(before)
    assert torch.equal(found[0][0], found[1][0])
    assert torch.equal(found[0][1], found[1][1])
    if kind != "hnsw":
        other = FaissIndex(kind, seed=1, **options).build(x).search(queries, 10)
        assert not torch.equal(found[0][1], other[1])


@pytest.mark.parametrize(("deterministic", "threads"), [(True, 1), (False, 2)])
def test_a_graph_that_is_to_be_the_same_is_built_on_one_thread(
    deterministic: bool, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    faiss = pytest.importorskip("faiss")
    used, before = [], faiss.omp_get_max_threads()
    add = faiss.IndexHNSWFlat.add

    def watched(graph: Any, x: np.ndarray) -> None:
        used.append(faiss.omp_get_max_threads())
        add(graph, x)

    monkeypatch.setattr(faiss.IndexHNSWFlat, "add", watched)
    try:
        faiss.omp_set_num_threads(2)
        index = FaissIndex("hnsw", deterministic=deterministic).build(small_integers(30, 4))
        index.add(small_integers(3, 4))
    finally:
        faiss.omp_set_num_threads(before)
    assert used == [threads, threads]


def test_torch_and_faiss_search_in_one_process_on_several_threads() -> None:
    """Both bring a library of OpenMP, and two of them in one process have been known to end it."""
    pytest.importorskip("faiss")
    script = """
import torch
from recsys_lib.retrieval import ExactIndex, FaissIndex
torch.set_num_threads(2)
x = torch.randn(3000, 16, generator=torch.Generator().manual_seed(0))
right = ExactIndex().build(x).search(x[:64], 5)[0]
for kind in ("flat", "ivf", "hnsw", "pq"):
    index = FaissIndex(kind).build(x)
    for _ in range(3):
        index.search(x[:64], 5)
        assert torch.equal(ExactIndex().build(x).search(x[:64], 5)[0], right)
print("done")
"""
    environment = {**os.environ, "OMP_NUM_THREADS": "2", "PYTHONPATH": str(ROOT)}
    run = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True)
    assert (run.returncode, run.stdout.strip(), run.stderr) == (0, "done", "")


def test_without_faiss_the_error_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(ImportError, match=r"recsys-lib\[search\].*ExactIndex"):
        FaissIndex()
    assert len(ExactIndex().build(small_integers(4, 2))) == 4


# -------------------------------------------------------------------------------------------------- errors


def _search(*arguments: Any, **options: Any) -> Callable[[Index], Any]:
    return lambda index: index.search(*arguments, **options)


Q = torch.ones(2, 4)
REFUSED: dict[str, tuple[Callable[[Index], Any], type[Exception], str]] = {
    "a list": (lambda index: index.build([[1.0]]), TypeError, "vectors must be a tensor, got list"),
    "double vectors": (lambda index: index.build(Q.double()), TypeError, "float32, got float64"),
    "integer vectors": (lambda index: index.add(Q.long()), TypeError, "float32, got int64"),
    "one vector": (lambda index: index.build(Q[0]), ValueError, r"\(N, d\), got shape \(4,\); .*x\[None\]"),
    "no vectors": (lambda index: index.build(Q[:0]), ValueError, "nothing to search"),
    "no features": (lambda index: index.build(Q[:, :0]), ValueError, "nothing to search"),
    "NaN": (lambda index: index.add(Q / torch.tensor([[1.0], [0.0]]) * 0), ValueError, "row 1 of vectors"),
    "infinity": (lambda index: index.build(Q / 0), ValueError, "row 0 of vectors holds infinity"),
    "too long": (lambda index: index.build(Q * 1e30), ValueError, "row 0 of vectors is longer"),
    "add of another width": (lambda index: index.add(Q[:, :3]), ValueError, r"\(N, 4\), got shape \(2, 3\)"),
    "ids repeated": (lambda index: index.add(Q, [900, 900]), ValueError, "900 is given more than once"),
    "ids held": (lambda index: index.add(Q, [900, 7]), ValueError, "id 7 is in the index already"),
    "too few ids": (lambda index: index.add(Q, [900]), ValueError, "one a vector, 2; got 1"),
    "a negative id": (lambda index: index.build(Q, [0, -1]), ValueError, "got -1"),
    "an id too great": (lambda index: index.add(Q, [900, 2**31]), ValueError, "between 0 and 2147483647"),
    "ids of floats": (lambda index: index.add(Q, [1.5, 2.5]), TypeError, "whole numbers"),
    "unknown removed": (lambda index: index.remove([3, 900]), ValueError, "900 is not in the index"),
    "removed twice": (lambda index: index.remove([3, 3]), ValueError, "3 is given more than once"),
    "remove a mask": (lambda index: index.remove(torch.ones(300) > 0), TypeError, "boolean mask"),
    "query too wide": (_search(torch.ones(2, 5), 1), ValueError, r"queries must be \(N, 4\).*\(2, 5\)"),
    "query of one dimension": (_search(Q[0], 1), ValueError, r"x\[None\]"),
    "half a query": (_search(Q.half(), 1), TypeError, "queries must be float32, got float16"),
    "a query that is NaN": (_search(Q * torch.nan, 1), ValueError, "row 0 of queries holds NaN"),
    "k of zero": (_search(Q, 0), ValueError, "between 1 and the number of vectors, 300; got 0"),
    "k too great": (_search(Q, 301), ValueError, "between 1 and the number of vectors, 300; got 301"),
    "k of 1.0": (_search(Q, 1.0), TypeError, "k must be a whole number"),
    "users too few": (_search(Q, 1, users=[1]), ValueError, "users must be one a query, 2; got 1"),
    "lists too few": (_search(Q, 1, exclude=[[1]]), ValueError, "a list a query, 2; got 1"),
    "one list": (_search(Q, 1, exclude=[1, 2]), TypeError, r"exclude\[0\]"),
    "exclude by name": (_search(Q, 1, exclude=["ab", "cd"]), TypeError, r"exclude\[0\]"),
    "exclude a dictionary": (_search(Q, 1, exclude={0: [1]}), TypeError, "got dict"),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("case", REFUSED)
def test_what_makes_no_sense_is_refused_and_changes_nothing(kind: str, case: str) -> None:
    action, error, message = REFUSED[case]
    index = make(kind, **({"code_bytes": 2} if kind == "pq" else {})).build(small_integers(300, 4))
    before = index.search(Q, 10)
    with pytest.raises(error, match=message):
        action(index)
    assert len(index) == 300
    assert all(torch.equal(a, b) for a, b in zip(index.search(Q, 10), before, strict=True))


@pytest.mark.parametrize("kind", ["exact", "flat"])
def test_the_cosine_of_nothing_is_refused(kind: str) -> None:
    zero = torch.tensor([[1.0, 2.0], [0.0, -0.0]])
    index = make(kind, "cosine")
    with pytest.raises(ValueError, match="row 1 of vectors is zero"):
        index.build(zero)
    index.build(zero[:1])
    with pytest.raises(ValueError, match="row 1 of queries is zero"):
        index.search(zero, 1)
    ids, scores = index.search(torch.tensor([[1e-30, 2e-30], [1e30, 2e30]]), 1)  # directions, however long
    assert ids.tolist() == [[0], [0]]
    torch.testing.assert_close(scores, torch.ones(2, 1))
    assert make(kind).build(zero).search(zero, 1)[0].shape == (2, 1)


@pytest.mark.parametrize("kind", KINDS)
def test_before_build_there_is_nothing_to_do(kind: str, tmp_path: Path) -> None:
    index = make(kind)
    assert len(index) == 0
    for action in (lambda: index.search(Q, 1), lambda: index.add(Q), lambda: index.save(tmp_path / "x")):
        with pytest.raises(ValueError, match="index is empty"):
            action()
    with pytest.raises(ValueError, match="id 0 is not in the index"):
        index.remove([0])


def test_interactions_need_users_that_they_know(small: Interactions) -> None:
    index = ExactIndex().build(small_integers(5, 4))
    with pytest.raises(ValueError, match="with users="):
        index.search(Q, 1, exclude=small)
    with pytest.raises(ValueError, match="users must be between 0 and 3, as exclude has them; got 4"):
        index.search(Q, 1, exclude=small, users=[0, 4])


def test_the_metric_has_two_names() -> None:
    with pytest.raises(ValueError, match='"dot" or "cosine", got \'l2\''):
        ExactIndex("l2")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"kind": "lsh"}, ValueError, "one of flat, ivf, hnsw, pq; got 'lsh'"),
        ({"kind": "flat", "n_probe": 3}, ValueError, "n_probe is an option of ivf and pq; kind 'flat'"),
        ({"kind": "hnsw", "code_bytes": 8}, ValueError, "code_bytes is an option of pq"),
        ({"kind": "ivf", "deterministic": False}, ValueError, "deterministic is an option of hnsw"),
        ({"kind": "ivf", "n_probe": 0}, ValueError, "n_probe must be at least 1"),
        ({"kind": "ivf", "n_lists": 2.0}, TypeError, "n_lists must be a whole number"),
        ({"kind": "hnsw", "deterministic": 1}, TypeError, "True or False"),
        ({"kind": "ivf", "seed": -1}, ValueError, "seed must be at least 0"),
    ],
)
def test_options_that_a_kind_does_not_have_are_refused(
    options: dict[str, Any], error: type[Exception], message: str
) -> None:
    pytest.importorskip("faiss")
    with pytest.raises(error, match=message):
        FaissIndex(**options)


def test_too_few_vectors_to_learn_from_are_refused() -> None:
    with pytest.raises(ValueError, match="n_lists is 9, but there are only 8"):
        make("ivf", n_lists=9).build(randn(8, 4))
    with pytest.raises(ValueError, match="256 codes and needs as many vectors; there are 255"):
        make("pq").build(randn(255, 4))
    with pytest.raises(ValueError, match="divide the width of the vectors, 6: one of 1, 2, 3, 6; got 4"):
        make("pq", code_bytes=4).build(randn(300, 6))


def test_an_option_set_between_searches_is_checked() -> None:
    index = make("ivf").build(randn(100, 4))
    index.n_probe = 0
    with pytest.raises(ValueError, match="n_probe must be at least 1"):
        index.search(Q, 1)


def test_building_prints_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    for kind in KINDS:
        make(kind).build(clustered(300)).search(clustered(2), 3)
    assert capfd.readouterr() == ("", "")


# --------------------------------------------------------------------------------------------------- files


@pytest.mark.parametrize("metric", ["dot", "cosine"])
@pytest.mark.parametrize("kind", KINDS)
def test_an_index_comes_back_as_it_was(kind: str, metric: str, tmp_path: Path) -> None:
    x, queries = clustered(500), clustered(20, seed=8)
    index = make(kind, metric).build(x, range(1000, 1500))
    index.remove([1499, 1003])
    index.save(tmp_path / "index")
    back = type(index).load(tmp_path / "index")
    (tmp_path / "index").unlink()
    assert repr(back) == repr(index)
    for one in (index, back):
        one.add(clustered(3, seed=30))
        one.remove([1000])
    assert len(back) == len(index) == 500
    for a, b in zip(index.search(queries, 20), back.search(queries, 20), strict=True):
        assert torch.equal(a, b)
    assert back.search(queries, 500)[0].max() == 1502  # numbering goes on where it was


def test_an_exact_index_comes_back_on_a_device(device: torch.device, tmp_path: Path) -> None:
    index = ExactIndex().build(small_integers(20, 4).to(device))
    index.save(tmp_path / "index")
    back = ExactIndex.load(tmp_path / "index", device=device)
    assert back.device == index.device
    assert torch.equal(back.search(Q, 5)[0], index.search(Q, 5)[0])


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    path = tmp_path / "index"
    ExactIndex().build(small_integers(40, 4)).save(path)
    return path


def test_a_file_that_was_cut_short_is_refused(saved: Path) -> None:
    content = saved.read_bytes()
    for length in (0, 1, 7, 8, 100, len(content) // 2, len(content) - 1):
        saved.write_bytes(content[:length])
        with pytest.raises(ValueError, match="damaged"):
            ExactIndex.load(saved)
    saved.write_bytes(content + b"x")
    with pytest.raises(ValueError, match="damaged"):
        ExactIndex.load(saved)


def test_a_file_with_any_changed_byte_is_refused(saved: Path) -> None:
    content = saved.read_bytes()
    for place in range(0, len(content), 5):
        changed = bytearray(content)
        changed[place] ^= 1
        saved.write_bytes(bytes(changed))
        with pytest.raises(ValueError, match=r"damaged|no saved index"):
            ExactIndex.load(saved)


@pytest.mark.parametrize(
    "change", [{"options": {"metric": "cosine"}}, {"next_id": 0}, {"class": "FaissIndex"}]
)
def test_a_changed_description_is_refused(saved: Path, change: dict[str, Any]) -> None:
    with safe_open(saved, framework="pt") as file:
        metadata, state = file.metadata(), {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
    metadata["index"] = json.dumps(json.loads(metadata["index"]) | change, sort_keys=True)
    save_file(state, saved, metadata=metadata)
    with pytest.raises(ValueError, match="not what was saved, by its checksum"):
        ExactIndex.load(saved)


def test_other_files_are_refused_by_what_they_are(saved: Path, tmp_path: Path, monkeypatch: Any) -> None:
    with pytest.raises(FileNotFoundError, match="there is no file"):
        ExactIndex.load(tmp_path / "nowhere")
    save_file({"x": torch.ones(1)}, tmp_path / "weights")
    with pytest.raises(ValueError, match="is no saved index"):
        ExactIndex.load(tmp_path / "weights")
    with pytest.raises(ValueError, match="holds a ExactIndex, not a FaissIndex"):
        FaissIndex.load(saved)
    monkeypatch.setattr(base, "_FORMAT", "2")
    with pytest.raises(ValueError, match="another version of the library"):
        ExactIndex.load(saved)


def test_a_writer_that_is_killed_leaves_the_former_file(saved: Path) -> None:
    """It dies when the new content is written and not yet in place."""
    script = f"""
import os, signal, torch
from recsys_lib.retrieval import ExactIndex
index = ExactIndex().build(torch.ones(1000, 4))
os.fsync = lambda file: os.kill(os.getpid(), signal.SIGKILL)
index.save({str(saved)!r})
"""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    run = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True)
    assert run.returncode == -signal.SIGKILL
    assert len(ExactIndex.load(saved)) == 40


def test_a_disk_that_is_full_leaves_the_former_file(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(state: Any, path: Path, metadata: Any) -> None:
        path.write_bytes(b"half")
        raise OSError("no space left on device")

    monkeypatch.setattr(base, "save_file", full)
    with pytest.raises(OSError, match="no space left"):
        ExactIndex().build(small_integers(10, 4)).save(saved)
    assert len(ExactIndex.load(saved)) == 40
    assert [path.name for path in saved.parent.iterdir()] == ["index"]


def test_a_folder_that_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no folder .*nowhere"):
        ExactIndex().build(Q).save(tmp_path / "nowhere" / "index")


def test_ids_are_whole_numbers_of_any_library() -> None:
    x = small_integers(4, 4)
    for ids in ([5, 6, 7, 8], np.arange(5, 9, dtype=np.int32), torch.arange(5, 9), range(5, 9)):
        assert sorted(ExactIndex().build(x, ids).search(Q[:1], 4)[0][0].tolist()) == [5, 6, 7, 8]
