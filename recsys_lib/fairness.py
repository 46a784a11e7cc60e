"""Who is served how well, what is shown how often, and lists re-ranked to match a person's tastes."""

import math
from statistics import NormalDist

import torch
from torch import Tensor

from recsys_lib.arguments import whole_number
from recsys_lib.evaluation import Comparison

__all__ = ["between_groups", "calibrated", "exposure", "head_items", "miscalibration", "tastes"]


def head_items(counts: Tensor, share: float = 0.5) -> Tensor:
    """The fewest items that have a share of all events: (n_items,) counts -> (n_items,) bool."""
    order = counts.argsort(descending=True, stable=True)  # (n_items,)
    before = counts[order].double().cumsum(0) - counts[order]  # (n_items,) events of more popular items
    head = torch.zeros(len(counts), dtype=torch.bool, device=counts.device)
    head[order[before < share * counts.sum()]] = True
    return head


def exposure(lists: Tensor, group: Tensor) -> Tensor:
    """The share of each person's list that is of a group of items, each place by how many look at it.

    The place j counts 1 / log2(1 + j), as in NDCG (Singh and Joachims 2018, "Fairness of Exposure in
    Rankings").

    Args:
        lists: (U, k) item indices, -1 for padding.
        group: (n_items,) bool.

    Returns:
        (U,) float64 in [0, 1]; 0 for an empty list.
    """
    looks = 1 / torch.arange(2, lists.shape[1] + 2, device=lists.device).double().log2()  # (k,)
    there = (lists >= 0) * looks  # (U, k)
    total = there.sum(dim=1)  # (U,)
    return (there * group[lists.clamp(min=0)]).sum(dim=1) / total.clamp(min=1e-12)


def between_groups(first: Tensor, second: Tensor, level: float = 0.95) -> Comparison:
    """The difference of two groups' means, different people in each: the first minus the second.

    Args:
        first: (m,) one value a person.
        second: (n,) likewise; two or more in each.
        level: the interval's coverage.

    Returns:
        A ``Comparison`` by the normal approximation, with each group's own variance.

    Source: Welch 1947, "The Generalization of 'Student's' Problem when Several Different Population Variances
    are Involved"; with groups of some dozens the normal stands in for his t.
    """
    a, b = first.double(), second.double()
    if min(len(a), len(b)) < 2:
        raise ValueError(f"needs two or more people in each group, got {len(a)} and {len(b)}")
    gap = float(a.mean() - b.mean())
    error = math.sqrt(float(a.var()) / len(a) + float(b.var()) / len(b))
    half = NormalDist().inv_cdf((1 + level) / 2) * error
    certain = 1.0 if gap == 0 else 0.0  # where nobody differs within a group
    p_value = 2 * NormalDist().cdf(-abs(gap) / error) if error > 0 else certain
    n = len(a) + len(b)
    return Comparison(gap, gap - half, gap + half, p_value, n, error * math.sqrt(n))


# ------------------------------------------------------------------------------------------ calibrated lists


def tastes(histories: Tensor, features: Tensor) -> Tensor:
    """How people's items spread over genres: (U, n_items) and (n_items, G) -> (U, G), rows that sum to 1.

    Args:
        histories: (U, n_items), 0 or 1, or how much an event counts.
        features: (n_items, G) each item's spread over genres, p(g | i); rows sum to 1, or are 0 for an item
            without any.

    Source: Steck 2018, "Calibrated Recommendations", section 3.
    """
    spread = histories.to(features.dtype) @ features  # (U, G)
    return spread / spread.sum(dim=1, keepdim=True).clamp(min=torch.finfo(spread.dtype).tiny)


def miscalibration(taste: Tensor, lists: Tensor, features: Tensor, mix: float = 0.01) -> Tensor:
    """How far lists are from tastes: KL(p || (1 - mix) q + mix p), with q the spread of the list.

    Args:
        taste: (U, G) p of each person.
        lists: (U, k) items, -1 for padding.
        features: (n_items, G) as for ``tastes``.
        mix: keeps it finite where a genre is missing from the list.

    Returns:
        (U,) at least 0; 0 where the list has the person's own shares.

    Source: Steck 2018, section 3.
    """
    q = features[lists.clamp(min=0)] * (lists >= 0)[:, :, None]  # (U, k, G)
    return _divergence(taste, q.sum(dim=1), mix)


def _divergence(p: Tensor, total: Tensor, mix: float) -> Tensor:
    """KL of p (..., G) and a list's sum of spreads (..., G): (...)."""
    q = total / total.sum(dim=-1, keepdim=True).clamp(min=torch.finfo(total.dtype).tiny)
    q = (1 - mix) * q + mix * p
    ratio = torch.where(p > 0, p / q.clamp(min=torch.finfo(q.dtype).tiny), 1.0)
    return (p * ratio.log()).sum(dim=-1)


def calibrated(
    items: Tensor, scores: Tensor, taste: Tensor, features: Tensor, k: int, weight: float, mix: float = 0.01
) -> Tensor:
    """Lists picked item by item: good ones, whose genres have the shares that the person's likes have.

        argmax over i of  (1 - weight) sum of s in the list with i  -  weight KL(p || list with i)

    Args:
        items: (U, C) candidates, best first, -1 for padding.
        scores: (U, C) theirs, s; put them on one scale, such as 0 to 1 within a person.
        taste: (U, G) from ``tastes``.
        features: (n_items, G) as there.
        k: length of the lists, at most C.
        weight: from 0, the order of the scores, to 1, the tastes alone.
        mix: as in ``miscalibration``.

    Returns:
        (U, k) int64, -1 where a person has fewer candidates.

    Source: Steck 2018, which shows the greedy search to be within 1 - 1/e of the best.
    """
    k = whole_number(k, "k", at_least=1)
    if k > items.shape[1] or not 0 <= weight <= 1:
        raise ValueError(f"needs k of at most {items.shape[1]} and weight from 0 to 1, got {k} and {weight}")
    rows = torch.arange(len(items), device=items.device)  # (U,)
    spread = features[items.clamp(min=0)] * (items >= 0)[:, :, None]  # (U, C, G)
    free, total = items >= 0, spread.new_zeros(len(items), features.shape[1])  # (U, C), (U, G)
    picked = []
    for _ in range(k):
        away = _divergence(taste[:, None], total[:, None] + spread, mix)  # (U, C)
        gain = (1 - weight) * scores - weight * away  # (U, C)
        best = gain.masked_fill(~free, -torch.inf).argmax(dim=1)  # (U,)
        some = free.any(dim=1)  # (U,)
        picked.append(torch.where(some, items[rows, best], -1))
        total = total + spread[rows, best] * some[:, None]
        free[rows, best] = False
    return torch.stack(picked, dim=1)  # (U, k)
