import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from recsys_lib.list_losses import (
    approx_ndcg_loss,
    lambdarank_loss,
    listmle_loss,
    listnet_loss,
    pairwise_hinge_loss,
    pairwise_logistic_loss,
)
from recsys_lib.losses import bpr_loss

quick = settings(max_examples=25, deadline=None)
shapes = st.tuples(st.integers(1, 4), st.integers(2, 6), st.integers(0, 2**31))
labelled = [
    pairwise_logistic_loss,
    pairwise_hinge_loss,
    listnet_loss,
    lambdarank_loss,
    approx_ndcg_loss,
]


def lists(shape):
    """Random scores and gains of 0 to 3, (B, C) each, float64."""
    n, c, seed = shape
    generator = torch.Generator().manual_seed(seed)
    scores = 2 * torch.randn(n, c, generator=generator, dtype=torch.float64)
    return scores, torch.randint(4, (n, c), generator=generator).double()


def softplus(x):
    return math.log1p(math.exp(-abs(x))) + max(x, 0.0)


def mean(values):
    values = list(values)
    return sum(values) / len(values) if values else 0.0


def ideal_dcg(gains, k=None):
    best = sorted(gains, reverse=True)[:k]
    return sum((2**g - 1) / math.log2(2 + r) for r, g in enumerate(best))


def by_pairs(loss):
    """The mean over lists of the mean over pairs, in loops."""

    def slow(scores, gains):
        rows = []
        for s, g in zip(scores.tolist(), gains.tolist(), strict=True):
            pairs = [(a, b) for a, b in itertools.permutations(range(len(s)), 2) if g[a] > g[b]]
            if pairs:
                rows.append(mean(loss(s[a] - s[b]) for a, b in pairs))
        return mean(rows)

    return slow


def slow_listnet(scores, gains):
    def shares(row):
        total = sum(math.exp(x) for x in row)
        return [math.exp(x) / total for x in row]

    return mean(
        -sum(p * math.log(q) for p, q in zip(shares(g), shares(s), strict=True))
        for s, g in zip(scores.tolist(), gains.tolist(), strict=True)
    )


def slow_lambdarank(scores, gains):
    rows = []
    for s, g in zip(scores.tolist(), gains.tolist(), strict=True):
        if not ideal_dcg(g):
            continue
        rank = {i: 1 + r for r, i in enumerate(sorted(range(len(s)), key=lambda i: -s[i]))}

        def dcg(rank, g=g):
            return sum((2 ** g[i] - 1) / math.log2(1 + rank[i]) for i in rank)

        total = 0.0
        for a, b in itertools.permutations(range(len(s)), 2):
            if g[a] > g[b]:
                exchanged = {**rank, a: rank[b], b: rank[a]}
                total += abs(dcg(exchanged) - dcg(rank)) / ideal_dcg(g) * softplus(s[b] - s[a])
        rows.append(total)
    return mean(rows)


def slow_approx_ndcg(scores, gains):
    rows = []
    for s, g in zip(scores.tolist(), gains.tolist(), strict=True):
        if not ideal_dcg(g):
            continue
        rank = [
            1 + sum(1 / (1 + math.exp(s[i] - x)) for j, x in enumerate(s) if j != i) for i in range(len(s))
        ]
        rows.append(
            1 - sum((2**a - 1) / math.log2(1 + r) for a, r in zip(g, rank, strict=True)) / ideal_dcg(g)
        )
    return mean(rows)


@pytest.mark.parametrize(
    ("loss", "slow"),
    [
        (pairwise_logistic_loss, by_pairs(lambda margin: softplus(-margin))),
        (pairwise_hinge_loss, by_pairs(lambda margin: max(0.0, 1 - margin))),
        (listnet_loss, slow_listnet),
        (lambdarank_loss, slow_lambdarank),
        (approx_ndcg_loss, slow_approx_ndcg),
    ],
    ids=lambda function: getattr(function, "__name__", ""),
)
@quick
@given(shapes)
def test_each_equals_its_formula_in_loops(loss, slow, shape):
    scores, gains = lists(shape)
    assert loss(scores, gains).item() == pytest.approx(slow(scores, gains), rel=1e-9, abs=1e-12)


@quick
@given(shapes)
def test_listmle_is_the_likelihood_of_drawing_the_order(shape):
    scores, _ = lists(shape)
    order = torch.stack([torch.randperm(scores.shape[1]) for _ in scores])
    expected = 0.0
    for s, places in zip(scores.tolist(), order.tolist(), strict=True):
        for r, place in enumerate(places):
            expected += -s[place] + math.log(sum(math.exp(s[p]) for p in places[r:]))
    assert listmle_loss(scores, order).item() == pytest.approx(expected / len(scores), rel=1e-9)


def test_listmle_gives_all_orders_a_probability_of_one_together():
    scores = torch.tensor([[0.3, -1.0, 2.0]], dtype=torch.float64)
    orders = [torch.tensor([order]) for order in itertools.permutations(range(3))]
    assert sum(math.exp(-listmle_loss(scores, order).item()) for order in orders) == pytest.approx(1.0)


def test_values_by_hand():
    # Two films, the liked one behind by one: the pair loss is log(1 + e), the hinge 1 + 1.
    scores, gains = torch.tensor([[0.0, 1.0]]), torch.tensor([[1.0, 0.0]])
    assert pairwise_logistic_loss(scores, gains).item() == pytest.approx(math.log(1 + math.e))
    assert pairwise_hinge_loss(scores, gains).item() == pytest.approx(2.0)
    assert listmle_loss(scores, torch.tensor([[0, 1]])).item() == pytest.approx(math.log(1 + math.e))
    # Exchanging them takes the gain of 1 from rank 2 to rank 1: 1 - 1 / log2(3), of an ideal DCG of 1.
    change = 1 - 1 / math.log2(3)
    assert lambdarank_loss(scores, gains).item() == pytest.approx(change * math.log(1 + math.e))
    # Beyond the cutoff nothing counts, and at k = 1 the exchange brings all there is.
    assert lambdarank_loss(scores, gains, k=1).item() == pytest.approx(math.log(1 + math.e))
    # A smooth rank of 1 + sigma(1).
    rank = 1 + 1 / (1 + math.exp(-1))
    assert approx_ndcg_loss(scores, gains).item() == pytest.approx(1 - 1 / math.log2(1 + rank))


def test_one_liked_item_makes_the_pairwise_loss_bpr():
    scores = torch.randn(5, 7, dtype=torch.float64)
    gains = torch.zeros(5, 7)
    gains[:, 0] = 1.0
    expected = bpr_loss(scores[:, 0], scores[:, 1:])
    torch.testing.assert_close(pairwise_logistic_loss(scores, gains), expected)


def test_the_lambda_is_the_gradient():
    # Burges 2010, eq. 6: for the better item of a pair -|delta NDCG| / (1 + exp(s_i - s_j)).
    scores = torch.tensor([[0.2, 1.4]], dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(lambdarank_loss(scores, torch.tensor([[1.0, 0.0]])), scores)
    push = (1 - 1 / math.log2(3)) / (1 + math.exp(0.2 - 1.4))
    torch.testing.assert_close(gradient, torch.tensor([[-push, push]], dtype=torch.float64))


def test_approx_ndcg_nears_one_minus_ndcg_as_it_cools():
    scores, gains = torch.tensor([[3.0, 2.0, 1.0, 0.0]]), torch.tensor([[0.0, 3.0, 1.0, 0.0]])
    dcg = 7 / math.log2(3) + 1 / math.log2(4)
    expected = 1 - dcg / (7 + 1 / math.log2(3))
    assert approx_ndcg_loss(scores, gains, temperature=0.01).item() == pytest.approx(expected, abs=1e-5)
    assert abs(approx_ndcg_loss(scores, gains, temperature=5.0).item() - expected) > 0.02


@pytest.mark.parametrize("loss", labelled)
def test_scores_learn_the_order_of_the_gains(loss):
    torch.manual_seed(0)
    gains = torch.tensor([[0.0, 3.0, 1.0, 2.0, 0.0]])
    scores = torch.tensor([[0.5, -0.5, 0.3, 0.0, 0.2]], requires_grad=True)
    optimizer = torch.optim.Adam([scores], lr=0.05)
    for _ in range(300):
        optimizer.zero_grad()
        loss(scores, gains).backward()
        optimizer.step()
    assert scores[0].argsort(descending=True)[:3].tolist() == [1, 3, 2]


@pytest.mark.parametrize("loss", labelled)
@quick
@given(shapes)
def test_padding_changes_nothing_whatever_stands_there(loss, shape):
    scores, gains = lists(shape)
    wide = torch.cat([scores, torch.full((len(scores), 2), torch.nan, dtype=scores.dtype)], 1)
    wide.requires_grad_()
    more = torch.cat([gains, torch.full((len(gains), 2), 9.0, dtype=gains.dtype)], 1)
    present = torch.zeros(wide.shape, dtype=torch.bool)
    present[:, : scores.shape[1]] = True
    found = loss(wide, more, present)
    torch.testing.assert_close(found.detach(), loss(scores, gains))
    (gradient,) = torch.autograd.grad(found, wide)
    assert gradient.isfinite().all()
    assert not gradient[~present].any()


def test_padding_of_an_order_changes_nothing():
    scores = torch.randn(3, 5, dtype=torch.float64, requires_grad=True)
    short = torch.tensor([[2, 0, -1, -1], [4, 1, 3, -1], [-1, -1, -1, -1]])
    found = listmle_loss(scores, short)
    alone = [listmle_loss(scores[:1], short[:1, :2]), listmle_loss(scores[1:2], short[1:2, :3])]
    torch.testing.assert_close(found, sum(alone) / 2)
    (gradient,) = torch.autograd.grad(found, scores)
    assert gradient.isfinite().all()
    assert not gradient[2].any()
    assert not gradient[0, [1, 3, 4]].any()


@pytest.mark.parametrize("loss", labelled)
def test_lists_that_teach_nothing_are_left_out(loss):
    scores = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    gains = torch.zeros(3, 4)
    gains[0, 1] = 1.0
    if loss is not listnet_loss:  # which wants equal scores where gains are equal
        torch.testing.assert_close(loss(scores, gains), loss(scores[:1], gains[:1]))
        nothing = loss(scores, torch.zeros(3, 4))
        assert nothing.item() == 0.0
        assert not torch.autograd.grad(nothing, scores)[0].any()
    absent = torch.zeros(3, 4, dtype=torch.bool)
    assert loss(scores, gains, absent).item() == 0.0


@pytest.mark.parametrize("loss", labelled)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(loss, dtype):
    scores = torch.tensor([[30.0, -30.0, 12.0]], dtype=dtype, requires_grad=True)
    gains = torch.tensor([[0, 2, 1]])
    found = loss(scores, gains)
    assert found.dtype == torch.float32
    assert found.isfinite()
    (gradient,) = torch.autograd.grad(found, scores)
    assert gradient.dtype == dtype
    assert gradient.isfinite().all()


@pytest.mark.parametrize("loss", labelled)
def test_it_runs_where_the_scores_are(loss):
    scores = torch.randn(2, 3)
    present = torch.tensor([[True, True, False], [True, True, True]])
    assert loss(scores, torch.tensor([[1, 0, 0], [0, 2, 1]]), present).device == scores.device


@pytest.mark.parametrize("loss", labelled)
def test_wrong_input_is_named(loss):
    scores = torch.randn(2, 3)
    with pytest.raises(ValueError, match="of one shape"):
        loss(scores, torch.zeros(2, 4))
    with pytest.raises(ValueError, match="of one shape"):
        loss(scores[0], torch.zeros(3))
    with pytest.raises(ValueError, match="list 1, place 2 is -1"):
        loss(scores, torch.tensor([[0.0, 1, 1], [0, 1, -1]]))
    with pytest.raises(ValueError, match="list 0, place 1 is nan"):
        loss(scores, torch.tensor([[0.0, torch.nan, 1], [0, 1, 1]]))
    with pytest.raises(ValueError, match="present must be bool"):
        loss(scores, torch.zeros(2, 3), torch.ones(2, 3))


def test_wrong_options_and_orders_are_named():
    scores, gains = torch.randn(2, 3), torch.tensor([[1.0, 0, 0], [0, 1, 0]])
    with pytest.raises(ValueError, match="margin must be above 0"):
        pairwise_hinge_loss(scores, gains, margin=0.0)
    with pytest.raises(ValueError, match="temperature must be above 0"):
        approx_ndcg_loss(scores, gains, temperature=0.0)
    with pytest.raises(ValueError, match="k must be 1 or more"):
        lambdarank_loss(scores, gains, k=0)
    with pytest.raises(IndexError, match="places from 0 to 2"):
        listmle_loss(scores, torch.tensor([[0, 3], [1, 2]]))
    with pytest.raises(IndexError, match="-1 for none"):
        listmle_loss(scores, torch.tensor([[0, -2], [1, 2]]))
    with pytest.raises(ValueError, match="place 1 of list 1 more than once"):
        listmle_loss(scores, torch.tensor([[0, 1], [1, 1]]))
    with pytest.raises(ValueError, match="padding stands at the end"):
        listmle_loss(scores, torch.tensor([[-1, 1], [1, 0]]))
    with pytest.raises(ValueError, match="order \\(B, C'\\)"):
        listmle_loss(scores, torch.tensor([[0, 1, 2, 0]]))
