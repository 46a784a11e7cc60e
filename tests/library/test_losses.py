import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from recsys_lib.losses import (
    bce_loss,
    bpr_loss,
    gbce_loss,
    in_batch_softmax_loss,
    nt_xent_loss,
    sampled_softmax_loss,
    softmax_loss,
)

quick = settings(max_examples=20, deadline=None)
shapes = st.tuples(st.integers(1, 6), st.integers(1, 5), st.integers(0, 2**31))


def pair(shape):
    """Random scores: positives (B,), negatives (B, K), in float64."""
    n, k, seed = shape
    generator = torch.Generator().manual_seed(seed)
    return (
        3 * torch.randn(n, generator=generator, dtype=torch.float64),
        3 * torch.randn(n, k, generator=generator, dtype=torch.float64),
    )


def gradients(loss, *inputs):
    inputs = [x.detach().requires_grad_() for x in inputs]
    return torch.autograd.grad(loss(*inputs), inputs)


# Values and gradients against the formulas.


@quick
@given(shapes)
def test_bpr_is_the_mean_negative_log_probability_of_the_right_order(shape):
    positive, negative = pair(shape)
    expected = sum(
        -math.log(1 / (1 + math.exp(-(p - n))))
        for p, row in zip(positive.tolist(), negative.tolist(), strict=True)
        for n in row
    ) / len(negative.flatten())
    assert bpr_loss(positive, negative).item() == pytest.approx(expected, rel=1e-12)


@quick
@given(shapes)
def test_bpr_gradient_is_the_probability_of_the_wrong_order(shape):
    # d/ds of -log sigma(s) is -(1 - sigma(s)): the worse the pair is ordered, the harder the push.
    positive, negative = pair(shape)
    wrong = 1 - (positive[:, None] - negative).sigmoid()  # (B, K)
    by_hand = -wrong.sum(1) / wrong.numel(), wrong / wrong.numel()
    for found, expected in zip(gradients(bpr_loss, positive, negative), by_hand, strict=True):
        torch.testing.assert_close(found, expected)


@quick
@given(shapes)
def test_bce_gradient_is_the_error_of_the_probability(shape):
    positive, negative = pair(shape)
    scale = len(positive) * (negative.shape[1] + 1)
    by_hand = (positive.sigmoid() - 1) / scale, negative.sigmoid() / scale
    for found, expected in zip(gradients(bce_loss, positive, negative), by_hand, strict=True):
        torch.testing.assert_close(found, expected)


@quick
@given(shapes)
def test_bce_is_torchs_binary_cross_entropy(shape):
    positive, negative = pair(shape)
    scores = torch.cat([positive[:, None], negative], 1)
    labels = torch.zeros_like(scores)
    labels[:, 0] = 1
    torch.testing.assert_close(
        bce_loss(positive, negative), functional.binary_cross_entropy_with_logits(scores, labels)
    )


@quick
@given(shapes)
def test_gbce_without_calibration_is_bce(shape):
    positive, negative = pair(shape)
    torch.testing.assert_close(gbce_loss(positive, negative, 50, t=0.0), bce_loss(positive, negative))


@quick
@given(shapes, st.floats(0, 1))
def test_gbce_weighs_the_positive_by_beta(shape, t):
    positive, negative = pair(shape)
    k, n_items = negative.shape[1], 50
    alpha = k / (n_items - 1)
    # The paper's eq. 9, rearranged so that it is not a copy of the code: linear from 1 at t=0 to alpha at
    # t=1.
    beta = 1 + t * (alpha - 1)
    sigma = torch.sigmoid
    expected = -(beta * sigma(positive).log() + (1 - sigma(negative)).log().sum(1)).mean() / (k + 1)
    torch.testing.assert_close(gbce_loss(positive, negative, n_items, t), expected)


def test_full_calibration_recovers_the_true_probability():
    # One item of N is the right one, K of N - 1 are sampled. With t=1 the minimizer is the true logit,
    # whatever K; plain BCE overestimates it. Expected gradient at a logit s shared by all items, each
    # right with 1/N:
    n_items, k = 11, 2
    score = torch.tensor(-math.log(n_items - 1), dtype=torch.float64)  # the logit of 1/N
    positive, negative = score.expand(1), score.expand(1, k)
    slope = sum(g.sum() for g in gradients(lambda p, n: gbce_loss(p, n, n_items, 1.0), positive, negative))
    assert slope.item() == pytest.approx(0, abs=1e-12)
    slope = sum(g.sum() for g in gradients(bce_loss, positive, negative))
    assert slope.item() < -0.1


@quick
@given(shapes)
def test_softmax_is_torchs_cross_entropy(shape):
    _, scores = pair(shape)
    targets = torch.arange(len(scores)) % scores.shape[1]
    torch.testing.assert_close(softmax_loss(scores, targets), functional.cross_entropy(scores, targets))


@pytest.mark.parametrize(
    "loss", [bpr_loss, bce_loss, lambda p, n: gbce_loss(p, n, 9, 0.7), sampled_softmax_loss]
)
@pytest.mark.parametrize("k", [1, 4])
def test_gradients_are_the_finite_differences(loss, k):
    positive, negative = (x.requires_grad_() for x in pair((3, k, 5)))
    assert torch.autograd.gradcheck(loss, (positive, negative))


@quick
@given(shapes)
def test_one_negative_may_come_without_its_dimension(shape):
    positive, negative = pair((shape[0], 1, shape[2]))
    flat = negative.squeeze(1)
    for loss in (bpr_loss, bce_loss, sampled_softmax_loss):
        assert loss(positive, flat) == loss(positive, negative)
    log_q = flat * 0.1
    assert sampled_softmax_loss(positive, flat, None, log_q) == sampled_softmax_loss(
        positive, negative, None, log_q[:, None]
    )


# Sampled softmax.


@quick
@given(st.integers(2, 8), st.integers(0, 2**31))
def test_sampled_softmax_over_every_other_item_is_the_full_softmax(n_items, seed):
    scores = torch.randn(5, n_items, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    targets = torch.randint(n_items, (5,), generator=torch.Generator().manual_seed(seed))
    others = torch.ones_like(scores, dtype=torch.bool).scatter_(1, targets[:, None], False)
    positive, negative = scores.gather(1, targets[:, None])[:, 0], scores[others].view(5, -1)
    full = softmax_loss(scores, targets)
    torch.testing.assert_close(sampled_softmax_loss(positive, negative), full)
    # Drawn uniformly from the others, each of the K = N - 1 draws gives any of them with 1/K: expected once.
    uniform = torch.full_like(negative, -math.log(n_items - 1))
    torch.testing.assert_close(sampled_softmax_loss(positive, negative, None, uniform), full)


def test_corrected_sum_is_right_in_expectation_and_the_uncorrected_is_not():
    # Every sample of K = 2 negatives out of three others, with its probability under a skewed q.
    scores = torch.tensor([0.3, 1.2, -0.7, 2.0], dtype=torch.float64)  # the first is the chosen item
    q = torch.tensor([0.6, 0.3, 0.1], dtype=torch.float64)
    expected = {True: 0.0, False: 0.0}
    for sample in itertools.product(range(3), repeat=2):
        index = torch.tensor(sample)
        probability = q[index].prod().item()
        for corrected in expected:
            log_q = q[index].log()[None] if corrected else None
            loss = sampled_softmax_loss(scores[:1], scores[1:][index][None], None, log_q)
            expected[corrected] += probability * (loss + scores[0]).exp().item()  # exp(L + s+) is the sum
    assert expected[True] == pytest.approx(scores.exp().sum().item(), rel=1e-12)
    assert expected[False] != pytest.approx(scores.exp().sum().item(), rel=0.1)


def test_a_batch_as_its_own_negatives_is_the_papers_formula():
    # Yi et al. 2019, eq. 4: logits s_ij - log p_j for every column of the batch, the row's own included.
    generator = torch.Generator().manual_seed(1)
    scores = torch.randn(6, 6, generator=generator, dtype=torch.float64)
    log_p = torch.rand(6, generator=generator, dtype=torch.float64).log()
    paper = functional.cross_entropy(scores - log_p, torch.arange(6))
    others = ~torch.eye(6, dtype=torch.bool)
    ours = sampled_softmax_loss(
        scores.diagonal(), scores[others].view(6, 5), log_p, log_p.expand(6, 6)[others].view(6, 5)
    )
    torch.testing.assert_close(ours, paper)


def test_an_entry_of_minus_infinity_is_left_out():
    positive, negative = pair((2, 3, 0))
    hidden = negative.clone()
    hidden[:, 1] = -torch.inf
    torch.testing.assert_close(
        sampled_softmax_loss(positive, hidden), sampled_softmax_loss(positive, negative[:, [0, 2]])
    )
    assert all(g.isfinite().all() for g in gradients(sampled_softmax_loss, positive, hidden))


# A batch as its own negatives.


def a_batch(n: int, n_items: int, seed: int):
    """Scores (B, B), items (B,) with repeats, log q (B,), in float64."""
    generator = torch.Generator().manual_seed(seed)
    items = torch.randint(n_items, (n,), generator=generator)
    q = torch.rand(n_items, generator=generator, dtype=torch.float64).softmax(0)
    return torch.randn(n, n, generator=generator, dtype=torch.float64), items, q.log()[items]


def enumerated(p: list[list[float]], q: list[float], size: int):
    """All batches of one row with ``size`` - 1 items of other rows: probability, user, items of the columns.

    The row's user has the distribution p of its row, each user is as likely, q is the mean of the rows.
    """
    for user, row in enumerate(p):
        for own, probability in enumerate(row):
            for others in itertools.product(range(len(q)), repeat=size - 1):
                chance = probability / len(p) * math.prod(q[item] for item in others)
                yield chance, user, torch.tensor([own, *others])


P = [[0.7, 0.2, 0.1], [0.5, 0.1, 0.4]]
Q = [(a + b) / 2 for a, b in zip(*P, strict=True)]


def expected_gradient(scores: torch.Tensor, size: int, **options) -> torch.Tensor:
    """Of the loss of a row in a batch of ``size``, for scores (2, 3) of users and items."""
    scores = scores.clone().requires_grad_()
    log_q = torch.tensor(Q, dtype=torch.float64).log()
    corrected = options.pop("corrected", True)
    total = sum(
        chance
        * in_batch_softmax_loss(
            scores[user, items][None], log_q=log_q[items] if corrected else None, **options
        )
        for chance, user, items in enumerated(P, Q, size)
    )
    return torch.autograd.grad(total, scores)[0]


@pytest.mark.parametrize("size", [2, 4])
def test_corrected_the_true_probabilities_are_the_minimum_whatever_the_size_of_the_batch(size):
    log_p = torch.tensor(P, dtype=torch.float64).log()
    log_q = torch.tensor(Q, dtype=torch.float64).log()
    shift = torch.tensor([[0.3], [-2.0]])  # of a user's scores, which a softmax does not see
    zero = torch.zeros_like(log_p)
    torch.testing.assert_close(expected_gradient(log_p + shift, size), zero)
    # Without it, popularity is taken away from what is learned.
    torch.testing.assert_close(expected_gradient(log_p - log_q, size, corrected=False), zero)
    assert expected_gradient(log_p, size, corrected=False).abs().max() > 0.01


@pytest.mark.parametrize("size", [2, 3, 4])
def test_with_the_own_term_as_it_is_the_sum_over_the_catalog_is_right_in_expectation(size):
    scores = torch.tensor([[0.3, 1.2, -0.7], [2.0, 0.0, 0.5]], dtype=torch.float64)
    log_q = torch.tensor(Q, dtype=torch.float64).log()
    found = torch.zeros(2, 3, dtype=torch.float64)  # by user and own item
    weight = torch.zeros(2, 3, dtype=torch.float64)
    for chance, user, items in enumerated(P, Q, size):
        row = scores[user, items][None]
        loss = in_batch_softmax_loss(row, items, log_q[items], correct_positive=False)
        found[user, items[0]] += chance * (loss + row[0, 0]).exp()  # exp(L + s+) is the sum
        weight[user, items[0]] += chance
    torch.testing.assert_close(found / weight, scores.exp().sum(1, keepdim=True).expand(2, 3))


@quick
@given(st.integers(1, 6), st.integers(0, 2**31))
def test_a_batch_that_is_the_catalog_gives_the_full_softmax(n_items, seed):
    scores, _, _ = a_batch(n_items, n_items, seed)
    items = torch.randperm(n_items, generator=torch.Generator().manual_seed(seed))
    full = softmax_loss(scores, items)  # scores in the order of the catalog
    uniform = torch.full((n_items,), -math.log(max(1, n_items - 1)), dtype=torch.float64)
    for options in ({}, {"log_q": uniform}, {"log_q": uniform, "correct_positive": False}):
        torch.testing.assert_close(in_batch_softmax_loss(scores[:, items], items, **options), full)


@quick
@given(st.integers(1, 6), st.integers(1, 6), st.floats(0.05, 3), st.booleans(), st.integers(0, 2**31))
def test_in_batch_softmax_is_torchs_cross_entropy_on_logits_made_by_hand(n, n_items, tau, both, seed):
    scores, items, log_q = a_batch(n, n_items, seed)
    logits = torch.empty_like(scores)
    for b, c in itertools.product(range(n), range(n)):
        logits[b, c] = scores[b, c] / tau
        if b == c and both:
            logits[b, c] -= log_q[c] + math.log(max(1, n - 1))
        if b != c:
            hit = items[b] == items[c]
            logits[b, c] = -math.inf if hit else logits[b, c] - log_q[c] - math.log(n - 1)
    found = in_batch_softmax_loss(scores, items, log_q, temperature=tau, correct_positive=both)
    torch.testing.assert_close(found, functional.cross_entropy(logits, torch.arange(n)))


def test_the_gradient_is_the_probability_less_the_one_that_is_right():
    scores, _, log_q = a_batch(4, 9, 3)
    (found,) = gradients(lambda s: in_batch_softmax_loss(s, None, log_q, temperature=0.2), scores)
    weights = (scores / 0.2).exp() / log_q.exp()  # (B, B)
    probability = weights / weights.sum(1, keepdim=True)
    torch.testing.assert_close(found, (probability - torch.eye(4)) / (4 * 0.2))


def test_what_is_left_out_may_as_well_not_be_there():
    scores, items, log_q = a_batch(4, 9, 5)
    items = torch.tensor([7, 3, 7, 1])
    left_out = torch.zeros(4, 4, dtype=torch.bool)
    left_out[1, 3] = left_out[2, 2] = True  # and the own column counts, whatever is said of it
    total = 0.0
    for row, kept in enumerate([[0, 1, 3], [1, 0, 2], [2, 1, 3], [3, 0, 1, 2]]):
        logits = scores[row, kept] - log_q[kept]
        total += functional.cross_entropy(logits[None], torch.tensor([0])) / 4
    found = in_batch_softmax_loss(scores, items, log_q, left_out=left_out)
    torch.testing.assert_close(found, total)
    (gradient,) = gradients(lambda s: in_batch_softmax_loss(s, items, log_q, left_out=left_out), scores)
    assert gradient[0, 2] == gradient[2, 0] == gradient[1, 3] == 0
    assert gradient[0, 1] != 0
    assert in_batch_softmax_loss(scores, items, log_q) != in_batch_softmax_loss(scores, None, log_q)


def test_columns_may_stand_in_any_order_and_rows_may_own_some_of_them():
    scores, items, log_q = a_batch(5, 9, 8)
    columns = torch.tensor([3, 0, 4, 1, 2])
    whole = in_batch_softmax_loss(scores, items, log_q)
    moved = in_batch_softmax_loss(
        scores[:, columns], items[columns], log_q[columns], targets=columns.argsort()
    )
    torch.testing.assert_close(moved, whole)
    # Further negatives stand behind the columns that rows own.
    few = in_batch_softmax_loss(scores[:2], items, log_q)
    torch.testing.assert_close(few, in_batch_softmax_loss(scores[:2], items, log_q, targets=torch.arange(2)))
    rows = [in_batch_softmax_loss(scores[b : b + 1], items, log_q, targets=torch.tensor([b])) for b in (0, 1)]
    torch.testing.assert_close(few, sum(rows) / 2)


def test_in_batch_softmax_refuses_what_does_not_fit():
    scores, items, log_q = a_batch(3, 9, 0)
    with pytest.raises(ValueError, match=r"expected scores \(B, C\)"):
        in_batch_softmax_loss(scores[0])
    with pytest.raises(ValueError, match=r"3 rows do not each own one of 2 columns; say which in targets"):
        in_batch_softmax_loss(scores[:, :2])
    with pytest.raises(ValueError, match=r"items must have shape \(3,\), got \(2,\)"):
        in_batch_softmax_loss(scores, items[:2])
    with pytest.raises(ValueError, match=r"log_q must have shape \(3,\), got \(1, 3\)"):
        in_batch_softmax_loss(scores, items, log_q[None])
    with pytest.raises(ValueError, match=r"left_out must have shape \(3, 3\)"):
        in_batch_softmax_loss(scores, left_out=scores[0] > 0)
    with pytest.raises(ValueError, match="temperature must be above 0, got 0"):
        in_batch_softmax_loss(scores, temperature=0)


def two_views(n: int, d: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    a, b = torch.randn(2, n, d, generator=generator, dtype=torch.float64)
    return a, b


@quick
@given(st.integers(1, 5), st.integers(1, 4), st.floats(0.1, 2), st.integers(0, 2**31))
def test_nt_xent_is_the_papers_sum(n, d, tau, seed):
    a, b = two_views(n, d, seed)
    z = [v / v.norm() for pair in zip(a, b, strict=True) for v in pair]  # 2k and 2k + 1 are one thing
    total = 0.0
    for i, j in itertools.chain(*(((2 * k, 2 * k + 1), (2 * k + 1, 2 * k)) for k in range(n))):
        others = sum(math.exp(z[i] @ z[k] / tau) for k in range(2 * n) if k != i)
        total -= math.log(math.exp(z[i] @ z[j] / tau) / others)
    assert nt_xent_loss(a, b, tau).item() == pytest.approx(total / (2 * n), rel=1e-9, abs=1e-12)
    torch.testing.assert_close(nt_xent_loss(b, a, tau), nt_xent_loss(a, b, tau))
    torch.testing.assert_close(nt_xent_loss(3 * a, 0.1 * b, tau), nt_xent_loss(a, b, tau))


def test_nt_xent_refuses_what_does_not_fit():
    a, b = two_views(3, 2, 0)
    for views in ((a, b[:2]), (a[0], b[0]), (a[:0], b[:0])):
        with pytest.raises(ValueError, match=r"expected two views \(B, d\)"):
            nt_xent_loss(*views)
    with pytest.raises(ValueError, match=r"temperature must be above 0, got -1"):
        nt_xent_loss(a, b, -1)


# Numerics.

LOSSES = {
    "bpr": bpr_loss,
    "bce": bce_loss,
    "gbce": lambda p, n: gbce_loss(p, n, 100, 0.75),
    "softmax": lambda p, n: softmax_loss(
        torch.cat([p[:, None], n], 1), torch.zeros(len(p), dtype=torch.int64)
    ),
    "sampled_softmax": sampled_softmax_loss,
    "in_batch_softmax": lambda p, n: in_batch_softmax_loss(
        torch.cat([p[:, None], n], 1), targets=torch.zeros_like(p, dtype=torch.int64)
    ),
}


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("sign", [1, -1])
def test_extreme_scores_stay_finite_and_linear(name, sign):
    positive, negative = torch.tensor([sign * 1e4]), torch.tensor([[-sign * 1e4]])
    loss = LOSSES[name](positive, negative)
    if sign > 0:
        assert loss.item() == pytest.approx(0, abs=1e-6)
    else:  # as wrong as can be: the loss grows like the margin, and does not overflow
        assert 5e3 < loss.item() < 2.1e4
    for gradient in gradients(LOSSES[name], positive, negative):
        assert gradient.isfinite().all()
        assert sign > 0 or gradient.abs().max() > 0.1


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_single(name, dtype):
    # exp(30) is beyond float16.
    positive, negative = torch.tensor([30.0, -20.0], dtype=dtype), torch.tensor([[25.0], [11.5]], dtype=dtype)
    loss = LOSSES[name](positive, negative)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, LOSSES[name](positive.float(), negative.float()))
    for gradient in gradients(LOSSES[name], positive, negative):
        assert gradient.dtype == dtype
        assert gradient.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_nt_xent_is_computed_in_single(dtype):
    a, b = (x.to(dtype) for x in two_views(4, 3, 1))
    loss = nt_xent_loss(a, b, 0.01)  # logits of up to 100
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, nt_xent_loss(a.float(), b.float(), 0.01))
    for gradient in gradients(lambda a, b: nt_xent_loss(a, b, 0.01), a, b):
        assert gradient.dtype == dtype
        assert gradient.isfinite().all()
    assert nt_xent_loss(torch.empty(4, 3, device="meta"), torch.empty(4, 3, device="meta")).shape == ()


@pytest.mark.parametrize("name", LOSSES)
def test_shapes_and_devices_are_right_on_the_meta_device(name):
    loss = LOSSES[name](torch.empty(4, device="meta"), torch.empty(4, 3, device="meta"))
    assert loss.shape == ()
    assert loss.device.type == "meta"


# What makes no sense is refused.


@pytest.mark.parametrize("loss", [bpr_loss, bce_loss, sampled_softmax_loss])
@pytest.mark.parametrize(
    ("positive", "negative"), [((3,), (4,)), ((3, 1), (3, 2)), ((3,), (3, 0)), ((3,), (3, 2, 1)), ((), ())]
)
def test_shapes_that_do_not_fit_are_refused(loss, positive, negative):
    with pytest.raises(ValueError, match="expected positive scores"):
        loss(torch.zeros(positive), torch.zeros(negative))


def test_other_nonsense_is_refused():
    positive, negative = pair((3, 2, 0))
    with pytest.raises(ValueError, match="t must lie in"):
        gbce_loss(positive, negative, 10, 1.5)
    with pytest.raises(ValueError, match="fewer others"):
        gbce_loss(positive, negative, 2, 0.5)
    with pytest.raises(ValueError, match="would bias"):
        sampled_softmax_loss(positive, negative, log_q_positive=positive)
    with pytest.raises(ValueError, match="log_q_negative must have shape"):
        sampled_softmax_loss(positive, negative, None, negative[:, :1])
    with pytest.raises(ValueError, match="log_q_positive must have shape"):
        sampled_softmax_loss(positive, negative, positive[:2], negative)
    with pytest.raises(ValueError, match="expected scores"):
        softmax_loss(negative, torch.zeros(2, dtype=torch.int64))
