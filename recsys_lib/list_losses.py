"""Losses of whole lists whose items carry labels: pairwise, listwise, and those that look at a metric.

``losses`` compares one chosen item with others. Here a list has any number of items, each with a label, its
gain: 0 and 1 for disliked and liked, or grades such as stars. All functions take scores, that is logits, and
return a scalar: the mean over the lists that can teach anything. A list whose items all have one gain teaches
none of the pairwise losses anything, and a list without a gain above zero has no NDCG; such lists are left
out. Where none is left the loss is zero, and so is its gradient.

Shapes: B lists of C items. Lists of different lengths are padded, and ``present`` says what is there.
"""

import torch
from torch import Tensor
from torch.nn import functional

__all__ = [
    "approx_ndcg_loss",
    "lambdarank_loss",
    "listmle_loss",
    "listnet_loss",
    "pairwise_hinge_loss",
    "pairwise_logistic_loss",
]


def pairwise_logistic_loss(scores: Tensor, gains: Tensor, present: Tensor | None = None) -> Tensor:
    """RankNet: of each two items of a list with different gains, the one with more should score higher.

        L = mean over lists of the mean over pairs with g_i > g_j of -log sigma(s_i - s_j)

    With one liked item a list it is ``losses.bpr_loss``.

    Args:
        scores: (B, C).
        gains: (B, C), at least 0.
        present: (B, C) bool, False at padding; all by default.

    Raises:
        ValueError: shapes that do not fit, or a gain that is negative or not finite.

    Source: Burges, Shaked, Renshaw, Lazier, Deeds, Hamilton, Hullender 2005, "Learning to Rank using Gradient
    Descent", section 3, for target probabilities of 1.
    """
    scores, gains, present = _checked(scores, gains, present)
    margins, better = _pairs(scores, gains, present)  # (B, C, C), (B, C, C)
    return _mean_over_pairs(-functional.logsigmoid(margins), better)


def pairwise_hinge_loss(
    scores: Tensor, gains: Tensor, present: Tensor | None = None, margin: float = 1.0
) -> Tensor:
    """The better item of a pair should score higher by a margin; beyond it nothing is gained.

        L = mean over lists of the mean over pairs with g_i > g_j of max(0, margin - (s_i - s_j))

    Args:
        scores: (B, C).
        gains: (B, C), at least 0.
        present: (B, C) bool, False at padding; all by default.
        margin: above 0.

    Raises:
        ValueError: a margin that is not above zero, and as ``pairwise_logistic_loss``.

    Source: Herbrich, Graepel, Obermayer 2000, "Large Margin Rank Boundaries for Ordinal Regression".
    """
    if not margin > 0:
        raise ValueError(f"margin must be above 0, got {margin}")
    scores, gains, present = _checked(scores, gains, present)
    margins, better = _pairs(scores, gains, present)  # (B, C, C), (B, C, C)
    return _mean_over_pairs((margin - margins).clamp(min=0), better)


def listnet_loss(scores: Tensor, gains: Tensor, present: Tensor | None = None) -> Tensor:
    """ListNet, top one: the softmax of the scores should be the softmax of the gains.

        P_g(j) = exp(g_j) / sum_c exp(g_c),   P_s likewise
        L      = mean over lists of -sum_j P_g(j) log P_s(j)

    P(j) is the probability that item j stands first. The loss is at its least, the entropy of P_g, where
    scores equal gains up to a constant: unlike the pairwise losses it says how far apart the scores are to
    be. An item of gain 0 keeps a share of P_g.

    Args:
        scores: (B, C).
        gains: (B, C), at least 0.
        present: (B, C) bool, False at padding; all by default.

    Raises:
        ValueError: as ``pairwise_logistic_loss``.

    Source: Cao, Qin, Liu, Tsai, Li 2007, "Learning to Rank: From Pairwise Approach to Listwise Approach",
    section 4 and eq. 3.
    """
    scores, gains, present = _checked(scores, gains, present)
    counted = present.any(dim=1)  # (B,)
    wanted = gains.masked_fill(~present, -torch.inf)[counted].softmax(dim=1)  # (b, C)
    found = scores.masked_fill(~present, -torch.inf)[counted].log_softmax(dim=1)  # (b, C)
    # At padding 0 times -inf, which is no number: nothing stands there.
    return _mean_of(-(wanted * found.masked_fill(~present[counted], 0.0)).sum(dim=1), scores)


def listmle_loss(scores: Tensor, order: Tensor) -> Tensor:
    """ListMLE: the likelihood of the one right order, drawn item by item from what is left.

        L = mean over lists of -sum_r [s_(r) - log sum_{q >= r} exp(s_(q))],   (r) the item of rank r

    Items of one gain have no right order among them: shuffle them, anew in each epoch.

    Args:
        scores: (B, C).
        order: (B, C') int64, the places of a list's items in their right order, best first; -1 at the end of
            a short list. C' is at most C, and what it leaves out takes no part.

    Raises:
        ValueError: shapes that do not fit, a place twice in one list, or padding before an item.
        IndexError: a place that the list does not have.

    Source: Xia, Liu, Wang, Zhang, Li 2008, "Listwise Approach to Learning to Rank: Theory and Algorithm",
    section 4.2 and eq. 9; the model of orders is that of Plackett and Luce.
    """
    if scores.ndim != 2 or order.ndim != 2 or len(order) != len(scores) or order.shape[1] > scores.shape[1]:
        raise ValueError(
            "expected scores (B, C) and order (B, C') with C' of C or less, got "
            f"{tuple(scores.shape)} and {tuple(order.shape)}"
        )
    there = order >= 0  # (B, C')
    if order.numel() and (int(order.max()) >= scores.shape[1] or int(order.min()) < -1):
        raise IndexError(f"order names places from 0 to {scores.shape[1] - 1}, and -1 for none")
    if bool((there[:, 1:] & ~there[:, :-1]).any()):
        raise ValueError("order has -1 before an item; padding stands at the end of a list")
    times = torch.zeros(scores.shape, dtype=torch.int64, device=scores.device)  # (B, C)
    times = times.scatter_add(1, order.clamp(min=0), there.long())  # (B, C)
    if bool((times > 1).any()):
        row, place = (times > 1).nonzero()[0].tolist()
        raise ValueError(f"order names place {place} of list {row} more than once")
    ranked = _at_least_float32(scores).gather(1, order.clamp(min=0))  # (B, C')
    # The sum over what is left at each rank runs from the end of the list to its start.
    left = ranked.masked_fill(~there, -torch.inf).flip(1).logcumsumexp(dim=1).flip(1)  # (B, C')
    terms = torch.where(there, left - ranked, 0.0)  # (B, C')
    return _mean_of(terms.sum(dim=1)[there.any(dim=1)], scores)


def lambdarank_loss(
    scores: Tensor, gains: Tensor, present: Tensor | None = None, k: int | None = None
) -> Tensor:
    """LambdaRank: each pair counts by what its exchange would change in NDCG.

        L = mean over lists of sum over pairs with g_i > g_j of |delta NDCG_ij| * -log sigma(s_i - s_j)
        |delta NDCG_ij| = |2^g_i - 2^g_j| |d(rank_i) - d(rank_j)| / ideal DCG,   d(r) = 1 / log2(1 + r)

    Ranks are those of the present scores and count as constants, so the gradient is the paper's lambda. The
    value itself is no bound of NDCG, and a step may raise it: ranks move.

    Args:
        scores: (B, C).
        gains: (B, C), at least 0.
        present: (B, C) bool, False at padding; all by default.
        k: NDCG at this cutoff: d(r) is 0 beyond it. None takes the whole list.

    Raises:
        ValueError: k below 1, and as ``pairwise_logistic_loss``.

    Source: Burges 2010, "From RankNet to LambdaRank to LambdaMART: An Overview", sections 3 and 4.
    """
    scores, gains, present = _checked(scores, gains, present)
    k = _cutoff(k, scores)
    margins, better = _pairs(scores, gains, present)  # (B, C, C), (B, C, C)
    with torch.no_grad():
        ordered = scores.masked_fill(~present, -torch.inf).argsort(dim=1, descending=True, stable=True)
        rank = ordered.argsort(dim=1) + 1  # (B, C)
        discount = torch.where(rank <= k, 1 / (1 + rank).to(scores.dtype).log2(), 0.0)  # (B, C)
        worth = _worth(gains)  # (B, C)
        change = (worth[:, :, None] - worth[:, None, :]) * (discount[:, :, None] - discount[:, None, :])
        ideal = _ideal_dcg(gains, present, k)  # (B,)
        weight = change.abs() * better / ideal.clamp(min=torch.finfo(ideal.dtype).tiny)[:, None, None]
    return _mean_of((-functional.logsigmoid(margins) * weight).sum(dim=(1, 2))[ideal > 0], scores)


def approx_ndcg_loss(
    scores: Tensor, gains: Tensor, present: Tensor | None = None, temperature: float = 1.0
) -> Tensor:
    """One minus a smooth NDCG: ranks are counted by sigmoids in place of steps.

        rank_i = 1 + sum_{j != i} sigma((s_j - s_i) / temperature)
        L      = 1 - mean over lists of [sum_i (2^g_i - 1) / log2(1 + rank_i)] / ideal DCG

    As the temperature falls the loss nears 1 - NDCG, and its gradient nears zero almost everywhere.

    Args:
        scores: (B, C).
        gains: (B, C), at least 0.
        present: (B, C) bool, False at padding; all by default.
        temperature: above 0.

    Raises:
        ValueError: a temperature that is not above zero, and as ``pairwise_logistic_loss``.

    Source: Qin, Liu, Li 2010, "A General Approximation Framework for Direct Optimization of Information
    Retrieval Measures", section 4; its alpha is 1 / temperature.
    """
    if not temperature > 0:
        raise ValueError(f"temperature must be above 0, got {temperature}")
    scores, gains, present = _checked(scores, gains, present)
    ahead = ((scores[:, None, :] - scores[:, :, None]) / temperature).sigmoid()  # (B, C, C) j before i
    ahead = ahead * (present[:, None, :] & ~torch.eye(scores.shape[1], dtype=torch.bool, device=ahead.device))
    rank = 1 + ahead.sum(dim=2)  # (B, C)
    dcg = (_worth(gains) * present / (1 + rank).log2()).sum(dim=1)  # (B,)
    ideal = _ideal_dcg(gains, present, scores.shape[1])  # (B,)
    counted = ideal > 0  # (B,)
    return _mean_of(1 - dcg[counted] / ideal[counted], scores)


def _pairs(scores: Tensor, gains: Tensor, present: Tensor) -> tuple[Tensor, Tensor]:
    """s_i - s_j and whether item i is the better one of the two, each (B, C, C)."""
    both = present[:, :, None] & present[:, None, :]  # (B, C, C)
    return scores[:, :, None] - scores[:, None, :], both & (gains[:, :, None] > gains[:, None, :])


def _mean_over_pairs(losses: Tensor, better: Tensor) -> Tensor:
    """The mean over lists of the mean over their pairs: (B, C, C) and (B, C, C) bool to ()."""
    n_pairs = better.sum(dim=(1, 2))  # (B,)
    counted = n_pairs > 0  # (B,)
    totals = (losses * better).sum(dim=(1, 2))  # (B,)
    return _mean_of(totals[counted] / n_pairs[counted], losses)


def _mean_of(losses: Tensor, scores: Tensor) -> Tensor:
    """The mean of one loss a list; zero, with a gradient of zero, where no list is left."""
    return losses.mean() if len(losses) else _at_least_float32(scores).sum() * 0.0


def _worth(gains: Tensor) -> Tensor:
    """What an item of a gain adds to the DCG at rank 1 of discount 1: 2^g - 1."""
    return gains.exp2() - 1


def _ideal_dcg(gains: Tensor, present: Tensor, k: int) -> Tensor:
    """The DCG at k of the best order, (B,)."""
    best = _worth(gains).masked_fill(~present, 0.0).sort(dim=1, descending=True).values[:, :k]  # (B, k)
    ranks = torch.arange(1, best.shape[1] + 1, device=gains.device, dtype=best.dtype)  # (k,)
    return (best / (1 + ranks).log2()).sum(dim=1)


def _cutoff(k: int | None, scores: Tensor) -> int:
    if k is not None and k < 1:
        raise ValueError(f"k must be 1 or more, got {k}")
    return scores.shape[1] if k is None else k


def _checked(scores: Tensor, gains: Tensor, present: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """Scores and gains in one type, float32 or wider, zero at padding; and what is there."""
    if present is None:
        present = torch.ones_like(scores, dtype=torch.bool)
    if scores.ndim != 2 or gains.shape != scores.shape or present.shape != scores.shape:
        raise ValueError(
            "expected scores, gains and present of one shape (B, C), got "
            f"{tuple(scores.shape)}, {tuple(gains.shape)} and {tuple(present.shape)}"
        )
    if present.dtype != torch.bool:
        raise ValueError(f"present must be bool, got {present.dtype}")
    scores = _at_least_float32(scores).masked_fill(~present, 0.0)  # (B, C)
    gains = gains.to(scores.dtype).masked_fill(~present, 0.0)  # (B, C)
    if bool((gains < 0).any()) or not bool(gains.isfinite().all()):
        wrong = (gains < 0) | ~gains.isfinite()  # (B, C)
        row, place = wrong.nonzero()[0].tolist()
        raise ValueError(
            f"gains must be 0 or more and finite; that of list {row}, place {place} is "
            f"{float(gains[row, place]):g}"
        )
    return scores, gains, present


def _at_least_float32(x: Tensor) -> Tensor:
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
