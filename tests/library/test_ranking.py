"""From scores to lists: the rule for ties against chance, what is left out, what is to be found."""

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from torch import Tensor

from recsys_lib import ranking
from recsys_lib.data import Interactions
from recsys_lib.ranking import HeldOut, rank_candidates, rank_topk, score_batches, seen_in, top_lists

quick = settings(max_examples=40, deadline=None)
seeds = st.integers(0, 2**31 - 1)


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def within_chance(successes: float, n: int, p: float) -> bool:
    """Is a count of n independent trials within 4.5 standard deviations of what p gives?"""
    return abs(successes - n * p) <= 4.5 * math.sqrt(n * p * (1 - p)) + 1e-9


# --- the top of a row


@quick
@given(
    seed=seeds,
    n_rows=st.integers(1, 6),
    n_items=st.integers(1, 40),
    levels=st.integers(1, 50),
    data=st.data(),
)
def test_rank_topk_is_a_sorted_list_of_the_best(
    seed: int, n_rows: int, n_items: int, levels: int, data: st.DataObject
) -> None:
    k = data.draw(st.integers(1, n_items))
    g = generator(seed)
    scores = torch.randint(levels, (n_rows, n_items), generator=g).float()
    scores[torch.rand(n_rows, n_items, generator=g) < 0.2] = -torch.inf
    before = scores.clone()
    items, values = rank_topk(scores, k, seed=seed)

    assert torch.equal(scores, before)
    assert items.dtype == torch.int64
    assert torch.equal(values, scores.sort(dim=1, descending=True)[0][:, :k])
    for row, listed, value in zip(scores, items, values, strict=True):
        n_candidates = int((row > -torch.inf).sum())
        assert ((listed >= 0) == (torch.arange(k) < n_candidates)).all()
        listed = listed[listed >= 0]
        assert len(listed.unique()) == len(listed)
        assert torch.equal(row[listed], value[: len(listed)])
    # A shorter list is the head of a longer one, also where ties are cut.
    whole, _ = rank_topk(scores, n_items, seed=seed)
    assert torch.equal(items, whole[:, :k])


DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int64]


@quick
@given(seed=seeds, levels=st.sampled_from([1, 2, 5, 1000]), dtype=st.sampled_from(DTYPES))
def test_rank_topk_does_not_depend_on_batches(seed: int, levels: int, dtype: torch.dtype) -> None:
    scores = torch.randint(levels, (9, 30), generator=generator(seed)).to(dtype)
    users = torch.randperm(100, generator=generator(seed))[:9]
    whole, _ = rank_topk(scores, 5, users=users, seed=seed)
    rows = [rank_topk(scores[i : i + 1], 5, users=users[i : i + 1], seed=seed)[0] for i in range(9)]
    assert torch.equal(whole, torch.cat(rows))


def test_rank_topk_does_not_depend_on_the_block_of_tied_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    scores = torch.randint(3, (50, 40), generator=generator(0)).float()
    whole, _ = rank_topk(scores, 10)
    for block in (100, 1):  # one row at a time, if need be
        monkeypatch.setattr(ranking, "_BLOCK", block)
        assert torch.equal(rank_topk(scores, 10)[0], whole)


def test_rank_topk_order_of_ties_is_part_of_the_contract() -> None:
    """A stored result must stay reproducible: the same on every device and in every later version."""
    items, _ = rank_topk(torch.zeros(2, 8), 5, users=torch.tensor([3, 2**40]), seed=7)
    assert items.tolist() == [[5, 0, 3, 1, 4], [2, 5, 6, 0, 7]]
    assert not torch.equal(items, rank_topk(torch.zeros(2, 8), 5, users=torch.tensor([3, 2**40]), seed=8)[0])


@pytest.mark.parametrize("item_of", ["first", "last", "spread"])
def test_a_constant_scorer_earns_what_chance_earns(item_of: str) -> None:
    n_users, n_items, k = 20_000, 40, 10
    users = torch.arange(n_users)
    relevant = {"first": users * 0, "last": users * 0 + n_items - 1, "spread": users % n_items}[item_of]
    for seed in (0, 1):
        items, _ = rank_topk(torch.zeros(n_users, n_items), k, users=users, seed=seed)
        hits = items == relevant[:, None]
        assert within_chance(hits.sum().item(), n_users, k / n_items)
        for rank in range(k):  # not only in the list as often as chance has it, but at every rank
            assert within_chance(hits[:, rank].sum().item(), n_users, 1 / n_items)


def test_every_order_of_tied_items_is_equally_likely() -> None:
    n_users = 60_000
    items, _ = rank_topk(torch.zeros(n_users, 4), 4)
    code = (items * torch.tensor([64, 16, 4, 1])).sum(dim=1)
    counts = code.unique(return_counts=True)[1]
    assert len(counts) == math.factorial(4)
    assert stats.chisquare(counts.numpy()).pvalue > 1e-4


def test_neighboring_users_and_seeds_have_unrelated_orders() -> None:
    n = 4000
    a, _ = rank_topk(torch.zeros(n, 30), 30, seed=0)
    b, _ = rank_topk(torch.zeros(n, 30), 30, seed=1)
    for x, y in ((a[:-1], a[1:]), (a, b)):
        assert within_chance((x[:, 0] == y[:, 0]).sum().item(), len(x), 1 / 30)


def test_few_score_levels_earn_exactly_their_expectation() -> None:
    """5 items score 2, 20 score 1, 25 score 0; lists of 10: the middle group shares 5 of its 20 places."""
    n_users, k = 20_000, 10
    levels = torch.tensor([2.0] * 5 + [1.0] * 20 + [0.0] * 25)
    order = torch.stack([torch.randperm(50, generator=generator(u)) for u in range(200)])  # numbering differs
    scores = levels[order].repeat(n_users // 200, 1)  # (U, 50)
    items, _ = rank_topk(scores, k)
    for target, expected in ((2.0, 1.0), (1.0, 5 / 20), (0.0, 0.0)):
        relevant = (scores == target).int().argmax(dim=1)  # the lowest-numbered item of the group
        hits = (items == relevant[:, None]).any(dim=1).sum().item()
        assert within_chance(hits, n_users, expected)


def test_rank_topk_names_the_user_of_a_nan() -> None:
    scores = torch.zeros(3, 5)
    scores[1, 2] = torch.nan
    with pytest.raises(ValueError, match="user 42 are NaN for 1 of 5"):
        rank_topk(scores, 2, users=torch.tensor([7, 42, 9]))


def test_rank_topk_takes_sums_that_overflow() -> None:
    scores = torch.tensor([[3e38, 3e38, -3e38, -3e38], [-torch.inf, 1.0, 2.0, 3.0]])
    assert rank_topk(scores, 2)[0][1].tolist() == [3, 2]
    assert rank_topk(torch.full((1, 3), -torch.inf), 2)[0].tolist() == [[-1, -1]]


@pytest.mark.parametrize("levels", [1, 2, 1000])
def test_rank_topk_of_parts_is_that_of_the_whole(levels: int) -> None:
    """A catalog that is scored in parts: the best of each, in the order of all."""
    scores = torch.randint(0, levels, (9, 30), generator=torch.Generator().manual_seed(0)).float()
    users, items = torch.arange(40, 49), torch.randperm(30, generator=torch.Generator().manual_seed(1))
    parts = [
        rank_topk(scores[:, part], 7, users=users, items=part, seed=2) for part in items.split([10, 13, 7])
    ]
    found, values = (torch.cat(lists, dim=1) for lists in zip(*parts, strict=True))
    merged, best = rank_candidates(values, found, users=users, seed=2)
    whole, expected = rank_topk(scores, 7, users=users, seed=2)
    assert torch.equal(merged[:, :7], whole)
    assert torch.equal(best[:, :7], expected)
    with pytest.raises(ValueError, match=r"items must be \(30,\)"):
        rank_topk(scores, 7, items=items[:3])


@pytest.mark.parametrize("k", [0, -1, 6])
def test_rank_topk_refuses_k_out_of_range(k: int) -> None:
    with pytest.raises(ValueError, match="between 1 and the number of items, 5"):
        rank_topk(torch.zeros(2, 5), k)


def test_rank_topk_refuses_wrong_shapes() -> None:
    with pytest.raises(ValueError, match=r"\(B, N\)"):
        rank_topk(torch.zeros(5), 1)
    with pytest.raises(ValueError, match="one a row"):
        rank_topk(torch.zeros(2, 5), 1, users=torch.arange(3))


@pytest.mark.parametrize("k", [2.0, True, None, "2"])
def test_lists_have_a_whole_number_of_places(k: object) -> None:
    with pytest.raises(TypeError, match="k must be a whole number"):
        rank_topk(torch.zeros(2, 5), k)  # type: ignore[arg-type]
    assert rank_topk(torch.zeros(2, 5), np.int64(2))[0].shape == (2, 2)


def test_ties_are_broken_by_a_seed() -> None:
    for seed in (None, 0.5, True):
        for function in (rank_topk, rank_candidates):
            given = 2 if function is rank_topk else torch.tensor([[0, 1, 2]])
            with pytest.raises(TypeError, match="seed must be a whole number"):
                function(torch.zeros(1, 3), given, seed=seed)  # type: ignore[operator]
    # Negative ones are seeds, too, and numpy's numbers.
    assert torch.equal(
        rank_topk(torch.zeros(9, 5), 5, seed=np.int64(3))[0], rank_topk(torch.zeros(9, 5), 5, seed=3)[0]
    )
    assert not torch.equal(
        rank_topk(torch.zeros(9, 5), 5, seed=-3)[0], rank_topk(torch.zeros(9, 5), 5, seed=3)[0]
    )


# --- given candidates


@quick
@given(seed=seeds, levels=st.sampled_from([1, 3, 100]))
def test_candidates_are_in_the_order_of_the_whole_list(seed: int, levels: int) -> None:
    scores = torch.randint(levels, (4, 12), generator=generator(seed)).float()
    users = torch.randperm(50, generator=generator(seed))[:4]
    candidates = torch.stack([torch.randperm(12, generator=generator(seed + i))[:7] for i in range(4)])
    candidates[1, 2] = -1
    given_scores = scores.gather(1, candidates.clamp(min=0))
    items, values = rank_candidates(given_scores, candidates, users=users, seed=seed)
    whole, _ = rank_topk(scores, 12, users=users, seed=seed)
    for row in range(4):
        mine = [i for i in candidates[row].tolist() if i >= 0]
        assert [i for i in items[row].tolist() if i >= 0] == [i for i in whole[row].tolist() if i in mine]
    assert items[1, -1] == -1
    assert values[1, -1] == -torch.inf
    with pytest.raises(ValueError, match="NaN"):
        rank_candidates(torch.full((1, 2), torch.nan), torch.tensor([[0, 1]]))


# --- what a model is asked


class Table(torch.nn.Module):
    """Scores from a table, which it hands out itself rather than a copy."""

    def __init__(self, scores: Tensor) -> None:
        super().__init__()
        self.scores, self.n_items = scores, scores.shape[1]
        self.asked: list[int] = []

    def score(self, users: Tensor) -> Tensor:
        assert not self.training
        self.asked.append(len(users))
        return self.scores if len(users) == len(self.scores) else self.scores[users]


def events(pairs: list[tuple[int, int]], n_users: int = 5, n_items: int = 8) -> Interactions:
    if not pairs:
        return events([(0, 0)], n_users, n_items)[:0]
    frame = pd.DataFrame(pairs, columns=["user_id", "item_id"])
    return Interactions.from_frame(frame, user_ids=range(n_users), item_ids=range(n_items))


def test_lists_leave_out_what_was_seen_and_the_model_is_left_as_it_was() -> None:
    table = torch.rand(5, 8, generator=generator(0))
    model, before = Table(table), table.clone()
    model.train()
    seen = events([(0, 1), (0, 2), (3, 7)])
    users = torch.tensor([3, 0, 4])
    for size in (None, 1, 2):
        items, values = top_lists(model, users, 8, seen_in(seen), batch_size=size)
        assert sorted(items[1].tolist()) == [-1, -1, 0, 3, 4, 5, 6, 7]
        assert (values[1, -2:] == -torch.inf).all()
        assert 7 not in items[0].tolist()
        assert sorted(items[2].tolist()) == list(range(8))
        torch.testing.assert_close(values[2], before[4].sort(descending=True).values)
    everyone, _ = top_lists(model, torch.arange(5), 3, seen_in(seen))
    assert torch.equal(table, before)
    assert model.training
    assert everyone.shape == (5, 3)
    assert model.asked == [3, 1, 1, 1, 2, 1, 5]
    assert top_lists(model, users[:0], 3)[0].shape == (0, 3)


def test_a_catalog_larger_than_a_chunk_is_scored_user_by_user(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ranking, "_CHUNK_CPU", 7)
    model = Table(torch.rand(5, 8, generator=generator(0))).eval()
    found, _ = top_lists(model, torch.arange(5), 3)
    assert model.asked == [1] * 5
    assert torch.equal(found, model.scores.topk(3).indices)


def test_scores_that_are_no_scores_are_refused() -> None:
    class Wrong(Table):
        def score(self, users: Tensor) -> Tensor:
            return torch.zeros(len(users), 3)

    with pytest.raises(ValueError, match=r"must return \(2, 8\) real scores for 2 users; got \(2, 3\)"):
        list(score_batches(Wrong(torch.zeros(2, 8)), torch.arange(2)))
    with pytest.raises(ValueError, match="batch_size must be at least 1"):
        list(score_batches(Table(torch.zeros(2, 8)), torch.arange(2), batch_size=0))


def test_users_may_be_listed_but_not_masked() -> None:
    model = Table(torch.rand(5, 8, generator=generator(0))).eval()
    expected = top_lists(model, torch.tensor([1, 3]), 4)
    for users in ([1, 3], np.array([1, 3])):
        for ours, theirs in zip(top_lists(model, users, 4), expected, strict=True):
            assert torch.equal(ours, theirs)
    for wrong in (torch.tensor([False, True, False, True, False]), torch.tensor([1.0, 3.0])):
        with pytest.raises(TypeError, match="users must be whole numbers"):
            top_lists(model, wrong, 4)
        with pytest.raises(TypeError, match="users must be whole numbers"):
            list(score_batches(model, wrong))
    with pytest.raises(TypeError, match=r"batch_size must be a whole number, got 2\.5"):
        top_lists(model, [1, 3], 4, batch_size=2.5)  # type: ignore[arg-type]


def test_scores_of_numpy_are_taken_as_they_are() -> None:
    class Arrays(Table):
        def score(self, users: Tensor) -> Any:
            return super().score(users).numpy()

    table = torch.rand(5, 8, generator=generator(0))
    before = table.clone()
    seen = seen_in(events([(0, 1), (3, 7)]))
    for dtype in (torch.float32, torch.float64):
        for kind in (Table, Arrays):
            (_, scores), *rest = score_batches(kind(table.to(dtype)).eval(), torch.arange(5), seen)
            assert not rest
            assert scores.dtype == dtype
            assert scores.isinf().nonzero().tolist() == [[0, 1], [3, 7]]
    assert torch.equal(table, before)  # what the model handed out is not written to


# --- what is to be found


def test_what_was_seen_is_not_to_be_found_again() -> None:
    held = HeldOut.of(events([(0, 1), (0, 1), (0, 5), (2, 3), (4, 0), (4, 7)]), events([(0, 5), (2, 3)]))
    assert held.users.tolist() == [0, 4]
    assert held.n_relevant.tolist() == [1, 2]
    lists = torch.tensor([[1, 5, -1], [7, 0, 3]])
    assert held.hits(lists).tolist() == [[True, False, False], [True, True, False]]
    row, item = held.pairs(torch.tensor([4, 0]))
    assert list(zip(row.tolist(), item.tolist(), strict=True)) == [(0, 0), (0, 7), (1, 1)]
    # No item is no hit, though its key would be that of the last item of the user before.
    last = HeldOut.of(events([(3, 7), (4, 0)]))
    assert last.hits(torch.tensor([[7, -1], [-1, 0]])).tolist() == [[True, False], [False, True]]
    only = HeldOut.of(events([(0, 1), (2, 3)]), users=torch.tensor([2]))
    assert only.users.tolist() == [2]


def test_nothing_to_find_is_an_error() -> None:
    with pytest.raises(ValueError, match="no user to evaluate"):
        HeldOut.of(events([(0, 1)]), events([(0, 1)]))
    with pytest.raises(ValueError, match="do not share their catalogs"):
        HeldOut.of(events([(0, 1)]), events([(0, 1)], n_users=6))
    for user in (9, 5, -1):
        with pytest.raises(ValueError, match=f"users must be between 0 and 4, got {user}"):
            HeldOut.of(events([(0, 1)]), users=torch.tensor([0, user]))
    assert HeldOut.of(events([(0, 1), (4, 2)]), users=[4, 0]).users.tolist() == [0, 4]


def test_the_fingerprint_tells_what_an_evaluation_is_over() -> None:
    def of(pairs: list[tuple[int, int]], seen: list[tuple[int, int]] | None = None, **sizes: int) -> Any:
        test = events(pairs, **sizes)
        other = None if seen is None else events(seen, **sizes)
        return HeldOut.of(test, other).fingerprint(test, other)

    same = of([(0, 1), (2, 3)], [(0, 2)])
    assert same == of([(2, 3), (0, 1), (0, 1)], [(0, 2), (0, 2)])
    assert same == of([(0, 1), (2, 3), (0, 2)], [(0, 2)])  # what was seen is not to be found
    assert of([(0, 1)]) == of([(0, 1)], [])

    def differs(other: Any) -> list[str]:
        return [name for name in same._fields if getattr(same, name) != getattr(other, name)]

    assert differs(of([(0, 1), (2, 4)], [(0, 2)])) == ["relevant"]
    assert differs(of([(0, 1), (2, 3)], [(0, 3)])) == ["seen"]
    assert differs(of([(0, 1), (2, 3)], [(1, 2)])) == ["seen"]
    assert differs(of([(0, 1), (2, 3)])) == ["seen"]
    assert differs(of([(0, 1), (2, 3)], [(0, 2)], n_users=6)) == ["catalog"]
    # The users, the items, and never a mixture of the two.
    test, seen = events([(0, 1), (2, 3)]), events([(0, 2)])
    for ids in ({"user_ids": list("abcde")}, {"item_ids": range(1, 9)}, {"item_ids": list("01234567")}):
        renamed = [replace(x, **{name: pd.Index(y) for name, y in ids.items()}) for x in (test, seen)]
        assert differs(HeldOut.of(*renamed).fingerprint(*renamed)) == ["catalog"]


def test_fingerprints_take_any_ids() -> None:
    catalogs = [
        pd.Index(list("abcde")),
        pd.MultiIndex.from_product([[0, 1, 2, 3, 4], ["x"]]),
        pd.Index([1, "a", (2, 3), 4.5, None], dtype=object),
        pd.date_range("2020-01-01", periods=5),
        pd.CategoricalIndex(list("vwxyz")),
    ]
    found = []
    for user_ids in catalogs:
        test = replace(events([(0, 1)]), user_ids=user_ids)
        found.append(HeldOut.of(test).fingerprint(test).catalog)
        assert found[-1] == HeldOut.of(test, test[:0]).fingerprint(test).catalog
    assert len(set(found)) == len(catalogs)
