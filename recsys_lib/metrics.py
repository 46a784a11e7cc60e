"""What a list of recommendations is worth: pure functions on tensors.

Three steps lead from scores to a number:

1. ``ranking.rank_topk`` turns scores (B, N) into lists (B, k), with a fair rule for ties;
2. a metric turns the hits of each list (B, k) into one value per user (B,);
3. ``bootstrap_interval`` and ``paired_test`` say how far the mean of those values can be trusted.

A new metric is a function here and a line in ``RANKING`` or ``BEYOND_ACCURACY``, from which ``evaluate`` and
``tune`` take its name.

The ranking metrics follow trec_eval (https://github.com/usnistgov/trec_eval). Results live on the inputs'
device, in float64 where the device has it.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from recsys_lib.arguments import refuse_not_finite, whole_number

# ------------------------------------------------------------------ one list, one value: (B, k) -> (B,)


def recall(hits: Tensor, n_relevant: Tensor) -> Tensor:
    """The share of a user's relevant items that are in the list: hits / n_relevant.

    Args:
        hits: (B, k) bool in rank order: is the item at this rank relevant?
        n_relevant: (B,) int, how many relevant items the user has in all, in the list or not. A user
            without any gets 0 from every metric; leave such users out before averaging.

    Returns:
        (B,) in [0, 1]. With k below n_relevant, 1 is out of reach.
    """
    hits, n_relevant = _checked(hits, n_relevant)
    return hits.sum(dim=1) / n_relevant


def precision(hits: Tensor, n_relevant: Tensor) -> Tensor:
    """The share of the list that is relevant: hits / k. Arguments as for ``recall``; returns (B,)."""
    hits, _ = _checked(hits, n_relevant)
    return hits.mean(dim=1)


def hit_rate(hits: Tensor, n_relevant: Tensor) -> Tensor:
    """1 if anything in the list is relevant, else 0. Arguments as for ``recall``; returns (B,)."""
    hits, _ = _checked(hits, n_relevant)
    return hits.amax(dim=1)


def ndcg(hits: Tensor, n_relevant: Tensor) -> Tensor:
    """Normalized discounted cumulative gain: hits count 1 / log2(rank + 1), relative to the best list.

    The best list has min(n_relevant, k) hits at its top, so a perfect list scores 1 for every user.
    Jarvelin and Kekalainen (2002), Cumulated gain-based evaluation of IR techniques, with binary gains.
    Arguments as for ``recall``; returns (B,) in [0, 1].
    """
    hits, n_relevant = _checked(hits, n_relevant)
    k = hits.shape[1]
    discount = 1 / torch.arange(2, k + 2, device=hits.device, dtype=hits.dtype).log2()  # (k,)
    ideal = discount.cumsum(0)[n_relevant.clamp(max=k).long() - 1]  # (B,)
    return hits @ discount / ideal


def mrr(hits: Tensor, n_relevant: Tensor) -> Tensor:
    """Reciprocal rank: 1 / rank of the first hit, else 0. Arguments as for ``recall``; returns (B,)."""
    hits, _ = _checked(hits, n_relevant)
    return (hits / _ranks(hits)).amax(dim=1)


def average_precision(hits: Tensor, n_relevant: Tensor) -> Tensor:
    """Mean over the relevant items of the precision at their rank; an item outside the list counts 0.

    The divisor is n_relevant, as in trec_eval's ``map_cut``; some libraries divide by min(n_relevant, k).
    Arguments as for ``recall``; returns (B,) in [0, 1].
    """
    hits, n_relevant = _checked(hits, n_relevant)
    precision_at_rank = hits.cumsum(dim=1) / _ranks(hits)  # (B, k)
    return (hits * precision_at_rank).sum(dim=1) / n_relevant


def _checked(hits: Tensor, n_relevant: Tensor) -> tuple[Tensor, Tensor]:
    """Hits as real numbers (B, k), and n_relevant (B,) with at least 1, so that nothing is divided by 0."""
    if hits.ndim != 2 or hits.shape[1] == 0 or hits.dtype != torch.bool:
        raise ValueError(f"hits must be (B, k) bool with k >= 1; got {tuple(hits.shape)} {hits.dtype}")
    if n_relevant.shape != hits.shape[:1]:
        raise ValueError(f"n_relevant must be ({len(hits)},), one a list; got {tuple(n_relevant.shape)}")
    if (hits.sum(dim=1) > n_relevant).any():
        raise ValueError("a list has more hits than its user has relevant items: does it repeat an item?")
    return hits.to(_real(hits)), n_relevant.clamp(min=1)


def _ranks(hits: Tensor) -> Tensor:
    """(k,) the ranks 1 to k."""
    return torch.arange(1, hits.shape[1] + 1, device=hits.device, dtype=hits.dtype)


def _real(x: Tensor) -> torch.dtype:
    """The widest floating type of the tensor's device; Apple's GPUs have no float64."""
    return torch.float32 if x.device.type == "mps" else torch.float64


# ------------------------------------------------------------------------- all scores, not just the top


def auc(scores: Tensor, relevant: Tensor, candidate: Tensor | None = None) -> Tensor:
    """Area under the ROC curve: how often a relevant item scores above another one. A tie counts one half.

    Computed from ranks (the Mann-Whitney U statistic), which sorts each row.

    Args:
        scores: (B, N).
        relevant: (B, N) bool.
        candidate: (B, N) bool, the items that take part; all by default. Relevant items must be candidates.

    Returns:
        (B,) in [0, 1]; NaN for a row whose candidates are all relevant or all not, where it is undefined.
    """
    if scores.ndim != 2 or relevant.shape != scores.shape or relevant.dtype != torch.bool:
        raise ValueError("auc needs scores (B, N) and relevant (B, N) bool of the same shape")
    if candidate is None:
        candidate = torch.ones_like(relevant)
    if (relevant & ~candidate).any():
        raise ValueError("auc: some relevant items are not candidates")
    refuse_nan(scores, torch.arange(len(scores), device=scores.device))
    n_relevant, n_candidates = relevant.sum(dim=1), candidate.sum(dim=1)  # (B,), (B,)
    # For every item, how many candidates are below it and how many are not above it. Others sort last.
    ordered = scores.masked_fill(~candidate, torch.inf).sort(dim=1).values  # (B, N)
    below = torch.searchsorted(ordered, scores)  # (B, N)
    not_above = torch.searchsorted(ordered, scores, right=True).minimum(n_candidates[:, None])  # (B, N)
    wins = ((below + not_above) * relevant).sum(dim=1).to(_real(scores)) / 2  # (B,) against all candidates
    wins -= n_relevant**2 / 2  # relevant items against each other and themselves
    return wins / (n_relevant * (n_candidates - n_relevant))  # 0 / 0 is NaN


# ----------------------------------------------------------------------------------- rating prediction


def rmse(predictions: Tensor, targets: Tensor) -> Tensor:
    """Root mean squared error of predicted ratings, in stars. Tensors of one shape; returns a scalar."""
    return _errors(predictions, targets).square().mean().sqrt()


def mae(predictions: Tensor, targets: Tensor) -> Tensor:
    """Mean absolute error of predicted ratings, in stars. Tensors of one shape; returns a scalar."""
    return _errors(predictions, targets).abs().mean()


def refuse_nan(scores: Tensor, users: Tensor) -> None:
    """One pass, no temporary: a NaN makes its row's sum NaN. So may an overflow, hence the second look."""
    for row in scores.sum(dim=1).isnan().nonzero().flatten().tolist():
        if n := int(scores[row].isnan().sum()):
            raise ValueError(
                f"the scores of user {int(users[row])} are NaN for {n} of {scores.shape[1]} items: "
                "they cannot be ranked. Look for a division by zero or a training run that diverged."
            )


def _errors(predictions: Tensor, targets: Tensor) -> Tensor:
    if predictions.shape != targets.shape or predictions.numel() == 0:
        raise ValueError(
            "predictions and targets must have the same shape and at least one element; "
            f"got {tuple(predictions.shape)} and {tuple(targets.shape)}"
        )
    return predictions.to(_real(predictions)) - targets.to(_real(targets))


# ---------------------------------------------------- beyond accuracy: what the lists do to a catalog


def catalog_coverage(items: Tensor, n_items: int) -> float:
    """The share of the catalog that is in at least one list. items: (B, k) int64, ``-1`` is no item."""
    return float((_exposure(items, n_items) > 0).double().mean())


def gini(items: Tensor, n_items: int) -> float:
    """How unequally the lists expose the catalog: 0 shows every item equally often, 1 - 1/n shows only one.

    With exposures x_1 <= ... <= x_n of the n items, sum_i (2 i - n - 1) x_i / (n sum_i x_i).

    Args:
        items: (B, k) int64 lists, ``-1`` is no item; or (n_items,) how often each item was shown.
        n_items: the catalog's size; items that were never shown count.

    Returns:
        The coefficient; NaN where nothing is shown at all, for there is nothing to share out.
    """
    exposure = _exposure(items, n_items) if items.ndim == 2 else items  # (n_items,)
    shown = exposure.cpu().double().sort().values  # (n_items,)
    if shown.shape != (n_items,) or not shown.isfinite().all() or (shown < 0).any():
        raise ValueError(f"gini needs lists (B, k), or counts ({n_items},) that are finite and not negative")
    rank = torch.arange(1, n_items + 1, device=shown.device)  # (n_items,)
    return float(((2 * rank - n_items - 1) * shown).sum() / (n_items * shown.sum()))  # 0 / 0 is NaN


def novelty(items: Tensor, item_counts: Tensor, n_users: int) -> Tensor:
    """Mean self-information of a list's items, in bits: -log2(the share of users who have the item).

    Zhou et al. (2010), Solving the apparent diversity-accuracy dilemma of recommender systems. An item that
    nobody has counts as if one user had it, which keeps the mean finite.

    Args:
        items: (B, k) int64, ``-1`` is no item.
        item_counts: (n_items,) distinct users of each item.
        n_users: all users.

    Returns:
        (B,) in bits; 0 for an empty list.
    """
    counts = item_counts.to(items.device)
    bits = -(counts.clamp(min=1).to(_real(counts)) / n_users).log2()  # (n_items,)
    listed = items >= 0  # (B, k)
    return (bits[items.clamp(min=0)] * listed).sum(dim=1) / listed.sum(dim=1).clamp(min=1)


def intra_list_diversity(items: Tensor, features: Tensor) -> Tensor:
    """Mean of 1 - cosine over the pairs of a list: 0 for items all alike, 1 for items at right angles.

    Ziegler et al. (2005), Improving recommendation lists through topic diversification. A zero vector has
    cosine 0 with everything.

    Args:
        items: (B, k) int64, ``-1`` is no item.
        features: (n_items, d) one vector an item.

    Returns:
        (B,) in [0, 2]; 0 for a list of fewer than two items.

    Raises:
        ValueError: a vector holds NaN or infinity; the message names the item.
    """
    refuse_not_finite(features, "features", "item")
    unit = torch.nn.functional.normalize(features.to(items.device).to(_real(items)), dim=1)  # (n_items, d)
    listed, filled = items >= 0, items.clamp(min=0)  # (B, k), (B, k)
    weights = listed.to(unit.dtype)  # (B, k)
    total = torch.nn.functional.embedding_bag(filled, unit, mode="sum", per_sample_weights=weights)  # (B, d)
    # The squared norm of the sum holds all ordered pairs; take away each vector's pair with itself.
    cosines = total.square().sum(dim=1) - (unit.square().sum(dim=1)[filled] * weights).sum(dim=1)  # (B,)
    n = listed.sum(dim=1)  # (B,)
    n_pairs = n * (n - 1)  # (B,) ordered
    return torch.where(n_pairs > 0, 1 - cosines / n_pairs.clamp(min=1), 0)


def _exposure(items: Tensor, n_items: int) -> Tensor:
    """(n_items,) in how many lists each item is."""
    listed = items[items >= 0]
    if listed.numel() and int(listed.max()) >= n_items:
        raise ValueError(f"item {int(listed.max())} is out of range for a catalog of {n_items}")
    return listed.bincount(minlength=n_items)


# --------------------------------------------------------------------------------- the metrics by their names


@dataclass(frozen=True)
class Lists:
    """Lists at one cutoff, and what a metric beyond accuracy may want to know of the data.

    Attributes:
        items: (U, k) int64, ``-1`` is no item.
        n_items: size of the catalog.
        n_users: all users, ranked or not.
        item_counts: (n_items,) distinct users of each item among the events seen, where those are known.
        item_features: (n_items, d) one vector an item, where there are any.
    """

    items: Tensor
    n_items: int
    n_users: int
    item_counts: Tensor | None = None
    item_features: Tensor | None = None


@dataclass(frozen=True)
class BeyondAccuracy:
    """A metric of what the lists do to a catalog.

    Attributes:
        measure: lists to one value for each user (U,), or to one for all lists together.
        needs: the argument of ``evaluate`` without which it cannot be had.
    """

    measure: Callable[[Lists], Tensor | float]
    needs: str | None = None


RANKING: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "ndcg": ndcg,
    "recall": recall,
    "hit_rate": hit_rate,
    "precision": precision,
    "mrr": mrr,
    "map": average_precision,
}
"""Metrics of hits (U, k) and n_relevant (U,): one value for each user (U,)."""

BEYOND_ACCURACY: dict[str, BeyondAccuracy] = {
    "coverage": BeyondAccuracy(lambda lists: catalog_coverage(lists.items, lists.n_items)),
    "gini": BeyondAccuracy(lambda lists: gini(lists.items, lists.n_items)),
    "novelty": BeyondAccuracy(
        lambda lists: novelty(lists.items, _given(lists.item_counts), lists.n_users), needs="seen"
    ),
    "diversity": BeyondAccuracy(
        lambda lists: intra_list_diversity(lists.items, _given(lists.item_features)), needs="item_features"
    ),
}
"""Metrics of the lists themselves."""


def _given(tensor: Tensor | None) -> Tensor:
    assert tensor is not None  # `needs` was checked
    return tensor


# ------------------------------------------------------------------------------ how sure is the mean?


class PairedTest(NamedTuple):
    """A mean difference, its interval, and how often chance alone would give one as large."""

    mean: float
    low: float
    high: float
    p_value: float


def bootstrap_interval(
    values: Tensor, level: float = 0.95, n_boot: int = 2000, seed: int = 0
) -> tuple[float, float]:
    """Percentile bootstrap interval of the mean over users (Efron 1979): what other users might have given.

    Args:
        values: (U,) one finite value a user, in any order.
        level: the interval's coverage.
        n_boot: resamples.
        seed: of the resampling.

    Returns:
        (low, high).

    Raises:
        TypeError: ``n_boot`` or ``seed`` is no whole number; without a seed nobody could repeat the result.
        ValueError: values that are not finite, or a level outside (0, 1).
    """
    if not 0 < level < 1:
        raise ValueError(f"level must be between 0 and 1, as in 0.95; got {level}")
    n_boot = whole_number(n_boot, "n_boot", at_least=1)
    array = _finite(values)  # (U,)
    rng = np.random.default_rng(whole_number(seed, "seed", at_least=0))
    n = len(array)
    means = [
        array[rng.integers(n, size=(rows, n), dtype=np.int32)].mean(axis=1)  # (rows,)
        for rows in _block_sizes(n_boot, n)
    ]
    low, high = np.quantile(np.concatenate(means), [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def paired_test(
    differences: Tensor, level: float = 0.95, n_boot: int = 2000, n_flips: int = 9999, seed: int = 0
) -> PairedTest:
    """Is the mean difference between two models over the same users more than chance?

    If the two models were interchangeable, each user's difference could as well have had the other sign. The
    p-value is the share of random sign flips whose mean is at least as far from 0 (two-sided), with the
    observed one counted in: (1 + extreme) / (1 + flips), so it is never 0. Smucker, Allan and Carterette
    (2007), A comparison of statistical significance tests for information retrieval evaluation.

    The interval is the bootstrap's, of the mean difference.

    Args:
        differences: (U,) value under one model minus value under the other, one a user.
        level: the interval's coverage.
        n_boot: resamples for the interval.
        n_flips: random sign flips for the p-value.
        seed: of both.

    Raises:
        TypeError, ValueError: as ``bootstrap_interval``.
    """
    n_flips = whole_number(n_flips, "n_flips", at_least=1)
    values = _finite(differences)  # (U,)
    rng = np.random.default_rng(whole_number(seed, "seed", at_least=0))
    size = np.sort(np.abs(values[values != 0]))  # (D,) a difference of 0 has no sign to flip
    total, extreme = size.sum(), 0
    observed = abs(values.sum()) - 1e-9 * total  # sums that are equal may differ in their last bits
    for rows in _block_sizes(n_flips, max(1, len(size))):
        n_bytes = math.ceil(len(size) / 8)  # a bit is a sign
        bits = np.frombuffer(rng.bytes(rows * n_bytes), np.uint8).reshape(rows, n_bytes)
        positive = np.unpackbits(bits, axis=1, count=len(size)).astype(np.float64)  # (rows, D)
        extreme += int((np.abs(2 * positive @ size - total) >= observed).sum())
    low, high = bootstrap_interval(differences, level, n_boot, seed)
    return PairedTest(float(values.mean()), low, high, (1 + extreme) / (1 + n_flips))


def _finite(values: Tensor) -> np.ndarray:
    """(U,) float64, checked, and sorted so that nothing can depend on the order of the users."""
    array = np.sort(values.detach().cpu().double().numpy())
    if array.ndim != 1 or len(array) == 0 or not np.isfinite(array).all():
        raise ValueError("needs a value for at least one user, (U,), and all of them finite")
    return array


def _block_sizes(n: int, width: int) -> list[int]:
    """Cut n rows into blocks of at most about 4 million elements, so that memory stays small."""
    step = max(1, 2**22 // width)
    return [min(step, n - start) for start in range(0, n, step)]
