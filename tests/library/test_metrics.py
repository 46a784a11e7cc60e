"""Metrics against independent implementations."""

import itertools
import math
from collections.abc import Callable
from typing import Any

import ir_measures
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from ir_measures import AP, RR, P, R, Success, nDCG
from scipy import stats
from sklearn import metrics as sk
from torch import Tensor

from recsys_lib import metrics as m

quick = settings(max_examples=40, deadline=None)
seeds = st.integers(0, 2**31 - 1)

RANKING = [
    (m.recall, R),
    (m.precision, P),
    (m.hit_rate, Success),
    (m.ndcg, nDCG),
    (m.mrr, RR),
    (m.average_precision, AP),
]


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def within_chance(successes: float, n: int, p: float) -> bool:
    """Is a count of n independent trials within 4.5 standard deviations of what p gives?"""
    return abs(successes - n * p) <= 4.5 * math.sqrt(n * p * (1 - p)) + 1e-9


# -------------------------------------------------------------------------------------- ranking metrics


def random_lists(seed: int, n_users: int, n_items: int, k: int) -> tuple[Tensor, Tensor, Tensor]:
    """Lists (U, k), what is relevant (U, N), with at least one item each, and the hits (U, k)."""
    g = generator(seed)
    relevant = torch.rand(n_users, n_items, generator=g) < torch.rand(n_users, 1, generator=g)
    relevant[torch.arange(n_users), torch.randint(n_items, (n_users,), generator=g)] = True
    items = torch.rand(n_users, n_items, generator=g).argsort(dim=1)[:, :k]
    return items, relevant, relevant.gather(1, items)


@quick
@given(seed=seeds, n_users=st.integers(1, 5), n_items=st.integers(1, 30), data=st.data())
def test_ranking_metrics_equal_trec_eval(seed: int, n_users: int, n_items: int, data: st.DataObject) -> None:
    k = data.draw(st.integers(1, n_items))
    items, relevant, hits = random_lists(seed, n_users, n_items, k)
    qrels = [ir_measures.Qrel(str(u), str(i), 1) for u, i in relevant.nonzero().tolist()]
    run = [
        ir_measures.ScoredDoc(str(u), str(i), float(-rank))
        for u, listed in enumerate(items.tolist())
        for rank, i in enumerate(listed)
    ]
    theirs = {
        (value.query_id, value.measure): value.value
        for value in ir_measures.iter_calc([measure @ k for _, measure in RANKING], qrels, run)
    }
    for ours, measure in RANKING:
        values = ours(hits, relevant.sum(dim=1))
        expected = [theirs[str(u), measure @ k] for u in range(n_users)]
        assert values.shape == (n_users,)
        assert values.tolist() == pytest.approx(expected, abs=1e-6), measure


def test_ranking_metrics_by_hand() -> None:
    """Hits at ranks 2 and 4 of a list of 5; three items were relevant."""
    hits, n_relevant = torch.tensor([[False, True, False, True, False]]), torch.tensor([3])
    gain = 1 / math.log2(3) + 1 / math.log2(5)
    ideal = 1 + 1 / math.log2(3) + 1 / 2
    expected = {
        m.recall: 2 / 3,
        m.precision: 2 / 5,
        m.hit_rate: 1,
        m.ndcg: gain / ideal,
        m.mrr: 1 / 2,
        m.average_precision: (1 / 2 + 2 / 4) / 3,
    }
    for metric, value in expected.items():
        assert metric(hits, n_relevant).item() == pytest.approx(value, abs=1e-12)


@pytest.mark.parametrize("metric", [metric for metric, _ in RANKING])
def test_ranking_metrics_are_finite_and_zero_with_nothing_relevant(
    metric: Callable[[Tensor, Tensor], Tensor],
) -> None:
    hits = torch.tensor([[False, False], [True, False]])
    values = metric(hits, torch.tensor([0, 1]))
    assert values[0] == 0
    assert values[1] > 0
    assert metric(hits[:0], torch.tensor([], dtype=torch.int64)).shape == (0,)


def test_ranking_metrics_refuse_what_makes_no_sense() -> None:
    hits = torch.tensor([[True, True]])
    with pytest.raises(ValueError, match="repeat an item"):
        m.recall(hits, torch.tensor([1]))
    with pytest.raises(ValueError, match="bool"):
        m.ndcg(hits.float(), torch.tensor([2]))
    with pytest.raises(ValueError, match="one a list"):
        m.mrr(hits, torch.tensor([2, 2]))


# -------------------------------------------------------------------------------------------- all scores


@quick
@given(seed=seeds, n_items=st.integers(2, 40), levels=st.sampled_from([2, 4, 10**6]))
def test_auc_equals_scikit_learn(seed: int, n_items: int, levels: int) -> None:
    g = generator(seed)
    scores = torch.randint(levels, (8, n_items), generator=g).float()
    candidate = torch.rand(8, n_items, generator=g) < 0.8
    relevant = candidate & (torch.rand(8, n_items, generator=g) < 0.3)
    for row, value in enumerate(m.auc(scores, relevant, candidate).tolist()):
        truth, score = relevant[row, candidate[row]].numpy(), scores[row, candidate[row]].numpy()
        if truth.all() or not truth.any():
            assert math.isnan(value)
        else:
            assert value == pytest.approx(sk.roc_auc_score(truth, score), abs=1e-6)


def test_auc_of_a_constant_scorer_is_one_half() -> None:
    relevant = torch.tensor([[True, False, True, False]])
    assert m.auc(torch.full((1, 4), 3.0), relevant).item() == 0.5
    assert m.auc(torch.tensor([[1.0, -torch.inf, 1.0, -torch.inf]]), relevant).item() == 1
    highest = torch.tensor([[torch.inf, 0.0, torch.inf, 9.0]])
    assert m.auc(highest, relevant, torch.tensor([[True, True, True, False]])).item() == 1


def test_auc_refuses_what_makes_no_sense() -> None:
    relevant = torch.tensor([[True, False]])
    with pytest.raises(ValueError, match="not candidates"):
        m.auc(torch.zeros(1, 2), relevant, ~relevant)
    with pytest.raises(ValueError, match="same shape"):
        m.auc(torch.zeros(1, 3), relevant)
    with pytest.raises(ValueError, match="NaN"):
        m.auc(torch.tensor([[1.0, torch.nan]]), relevant)


@quick
@given(
    pairs=st.lists(st.tuples(st.floats(0, 6, width=32), st.floats(1, 5, width=32)), min_size=1, max_size=50)
)
def test_rating_errors_equal_scikit_learn(pairs: list[tuple[float, float]]) -> None:
    predictions, targets = torch.tensor(pairs).unbind(dim=1)
    p, t = predictions.double().numpy(), targets.double().numpy()
    assert m.rmse(predictions, targets).item() == pytest.approx(sk.root_mean_squared_error(t, p), abs=1e-6)
    assert m.mae(predictions, targets).item() == pytest.approx(sk.mean_absolute_error(t, p), abs=1e-6)


def test_rating_errors_refuse_other_shapes() -> None:
    # (3,) against (3, 1) would quietly compare all pairs.
    for a, b in ((torch.zeros(3), torch.zeros(3, 1)), (torch.zeros(0), torch.zeros(0))):
        with pytest.raises(ValueError, match="same shape"):
            m.rmse(a, b)


# -------------------------------------------------------------------------------------- beyond accuracy


def some_lists(seed: int, n_items: int, k: int) -> Tensor:
    items = torch.rand(7, n_items, generator=generator(seed)).argsort(dim=1)[:, :k]
    items[0] = -1  # a user who got nothing
    items[1, k // 2 :] = -1
    return items


@quick
@given(seed=seeds, n_items=st.integers(2, 30), data=st.data())
def test_beyond_accuracy_equals_the_definitions(seed: int, n_items: int, data: st.DataObject) -> None:
    k = data.draw(st.integers(2, n_items))
    items = some_lists(seed, n_items, k)
    lists = [[i for i in row if i >= 0] for row in items.tolist()]
    shown = np.bincount([i for row in lists for i in row], minlength=n_items)

    assert m.catalog_coverage(items, n_items) == pytest.approx((shown > 0).mean())

    mean_difference = np.abs(shown[:, None] - shown[None, :]).mean()
    expected = mean_difference / (2 * shown.mean())
    assert m.gini(items, n_items) == pytest.approx(expected, abs=1e-9)
    assert m.gini(torch.from_numpy(shown), n_items) == pytest.approx(expected, abs=1e-9)

    counts = torch.randint(1, 50, (n_items,), generator=generator(seed))
    expected = [np.mean([-math.log2(int(counts[i]) / 50) for i in row]) if row else 0 for row in lists]
    assert m.novelty(items, counts, 50).tolist() == pytest.approx(expected, abs=1e-9)

    features = torch.randn(n_items, 3, generator=generator(seed))
    features[0] = 0
    length = features.norm(dim=1).clamp(min=1e-9)
    cosines = (features @ features.T / length[:, None] / length).tolist()
    expected = [
        np.mean([1 - cosines[i][j] for i, j in itertools.combinations(row, 2)]) if len(row) > 1 else 0
        for row in lists
    ]
    assert m.intra_list_diversity(items, features).tolist() == pytest.approx(expected, abs=1e-5)


def test_beyond_accuracy_in_known_cases() -> None:
    everything = torch.arange(6).reshape(3, 2)
    assert m.catalog_coverage(everything, 6) == 1
    assert m.gini(everything, 6) == pytest.approx(0)
    same = torch.zeros(3, 1, dtype=torch.int64)
    assert m.catalog_coverage(same, 5) == pytest.approx(0.2)
    assert m.gini(same, 5) == pytest.approx(1 - 1 / 5)
    # Half of the users have item 0, a quarter have item 1, nobody has item 2: counted as one of eight.
    assert m.novelty(torch.tensor([[0, 1], [2, 2]]), torch.tensor([4, 2, 0]), 8).tolist() == [1.5, 3]
    features = torch.tensor([[1.0, 0], [0, 1], [2, 0], [-1, 0]])
    diversity = m.intra_list_diversity(torch.tensor([[0, 1], [0, 2], [0, 3], [0, -1]]), features)
    assert diversity.tolist() == pytest.approx([1, 0, 2, 0])


def test_beyond_accuracy_refuses_what_makes_no_sense() -> None:
    with pytest.raises(ValueError, match="item 9 is out of range"):
        m.catalog_coverage(torch.tensor([[1, 9]]), 5)
    for counts in (torch.ones(4), torch.tensor([1.0, 1, 1, 1, torch.nan]), torch.tensor([1.0, 1, 1, 1, -1])):
        with pytest.raises(ValueError, match=r"counts \(5,\) that are finite and not negative"):
            m.gini(counts, 5)
    features = torch.zeros(5, 2)
    features[3, 1] = torch.nan
    with pytest.raises(ValueError, match="item 3 of features holds NaN"):
        m.intra_list_diversity(torch.tensor([[0, 1]]), features)


def test_lists_without_any_item_have_no_gini_and_cover_nothing() -> None:
    nothing = torch.full((3, 2), -1)
    assert math.isnan(m.gini(nothing, 5))
    assert math.isnan(m.gini(torch.zeros(5), 5))
    assert m.catalog_coverage(nothing, 5) == 0
    assert m.novelty(nothing, torch.ones(5), 3).tolist() == [0, 0, 0]
    assert m.intra_list_diversity(nothing, torch.ones(5, 2)).tolist() == [0, 0, 0]


# ------------------------------------------------------------------------------------ how sure is the mean?


def test_bootstrap_interval_equals_scipy_and_theory() -> None:
    values = torch.rand(400, generator=generator(0)) ** 3
    low, high = m.bootstrap_interval(values, n_boot=20_000)
    theirs = stats.bootstrap((values.numpy(),), np.mean, n_resamples=20_000, method="percentile", rng=1)
    assert (low, high) == pytest.approx(tuple(theirs.confidence_interval), abs=0.002)
    half = 1.96 * values.std().item() / 20
    assert (low, high) == pytest.approx((values.mean().item() - half, values.mean().item() + half), abs=0.003)


def test_bootstrap_interval_covers_the_truth_as_often_as_it_says() -> None:
    covered = 0
    for seed in range(400):
        values = (torch.rand(200, generator=generator(seed)) < 0.3).float()
        low, high = m.bootstrap_interval(values, level=0.9, n_boot=500, seed=seed)
        covered += low <= 0.3 <= high
    assert within_chance(covered, 400, 0.9)


def test_intervals_do_not_depend_on_the_order_of_users() -> None:
    values = torch.randn(300, generator=generator(0), dtype=torch.float64)
    assert m.bootstrap_interval(values) == m.bootstrap_interval(values.flip(0))
    assert m.paired_test(values) == m.paired_test(values.flip(0))
    assert m.bootstrap_interval(values) != m.bootstrap_interval(values, seed=1)


def test_intervals_do_not_depend_on_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    assert m._block_sizes(2000, 10) == [2000]
    sizes = m._block_sizes(2000, 10**6)
    assert sum(sizes) == 2000
    assert max(sizes) * 10**6 <= 2**22
    assert m._block_sizes(3, 10**9) == [1, 1, 1]


@quick
@given(seed=seeds, n=st.integers(1, 10), levels=st.sampled_from([2, 3, 1000]))
def test_paired_test_equals_all_sign_flips(seed: int, n: int, levels: int) -> None:
    values = torch.randint(-levels, levels + 1, (n,), generator=generator(seed)).double() / 7
    signs = np.array(list(itertools.product([-1, 1], repeat=n)))
    exact = (np.abs(signs @ values.abs().numpy()) >= abs(values.sum().item()) - 1e-12).mean()
    result = m.paired_test(values, n_boot=10, n_flips=4000, seed=seed)
    assert result.mean == pytest.approx(values.mean().item())
    assert within_chance(result.p_value * 4001 - 1, 4000, exact)


def test_paired_test_rejects_no_difference_as_often_as_it_says() -> None:
    p = [
        m.paired_test(torch.randn(50, generator=generator(s)), n_boot=1, n_flips=199, seed=s).p_value
        for s in range(1000)
    ]
    assert within_chance(sum(x <= 0.05 for x in p), 1000, 0.05)
    assert stats.kstest(p, "uniform").pvalue > 1e-4


def test_paired_test_in_known_cases() -> None:
    zero = m.paired_test(torch.zeros(20))
    assert zero == (0, 0, 0, 1)
    clear = m.paired_test(torch.ones(40), n_flips=999)
    assert clear.p_value == pytest.approx(1 / 1000)  # never 0: the observed one is among the flips
    assert (clear.low, clear.high) == (1, 1)
    values = torch.randn(30, generator=generator(1))
    assert m.paired_test(values).p_value == m.paired_test(-values).p_value


@pytest.mark.parametrize("values", [torch.zeros(0), torch.zeros(2, 2), torch.tensor([1.0, torch.nan])])
def test_intervals_refuse_what_makes_no_sense(values: Tensor) -> None:
    for function in (m.bootstrap_interval, m.paired_test):
        with pytest.raises(ValueError, match="finite"):
            function(values)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"seed": None}, TypeError, "seed must be a whole number, got None"),
        ({"seed": -1}, ValueError, "seed must be at least 0, got -1"),
        ({"n_boot": 10.0}, TypeError, r"n_boot must be a whole number, got 10\.0"),
        ({"n_boot": 0}, ValueError, "n_boot must be at least 1"),
        ({"level": 95}, ValueError, r"level must be between 0 and 1, as in 0\.95; got 95"),
        ({"level": 1.0}, ValueError, "level must be between 0 and 1"),
        ({"level": 0}, ValueError, "level must be between 0 and 1"),
    ],
)
def test_intervals_refuse_settings_that_make_no_sense(
    change: dict[str, Any], error: type[Exception], message: str
) -> None:
    for function in (m.bootstrap_interval, m.paired_test):
        with pytest.raises(error, match=message):
            function(torch.rand(9, generator=generator(0)), **change)
    with pytest.raises(ValueError, match="n_flips must be at least 1"):
        m.paired_test(torch.zeros(9), n_flips=0)
    values = torch.rand(9, generator=generator(0))
    assert m.bootstrap_interval(values, seed=np.int64(3)) == m.bootstrap_interval(values, seed=3)


# --------------------------------------------------------------------------------------------- devices


def test_nothing_is_made_on_the_default_device() -> None:
    """Under another default device, a tensor made without its inputs' device could not be mixed with them."""
    scores = torch.randint(3, (6, 9), generator=generator(0)).float()
    hits, n_relevant = scores[:, :4] > 1, torch.full((6,), 9)
    counts, features = torch.arange(9), scores.T.contiguous()

    def everything() -> list[object]:
        values, items = scores.topk(4)
        tensors = [metric(hits, n_relevant) for metric, _ in RANKING]
        tensors += [items, values, m.auc(scores, scores > 1), m.novelty(items, counts, 9)]
        tensors += [m.intra_list_diversity(items, features), m.rmse(scores, scores + 1)]
        numbers = [m.gini(items, 9), m.catalog_coverage(items, 9), m.bootstrap_interval(values[:, 0])]
        return [t.tolist() for t in tensors] + [*numbers, m.paired_test(values[:, 0])]

    expected = everything()
    with torch.device("meta"):
        assert str(everything()) == str(expected)
