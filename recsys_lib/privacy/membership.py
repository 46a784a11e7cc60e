"""Was this person in the training data? What an attacker measures who knows the person's history."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from recsys_lib.arguments import whole_number

__all__ = ["how_well_found", "log_rank"]

_AT_ONCE = 1024  # histories scored at once


def how_well_found(
    score_histories: Callable[[list[Tensor]], Tensor],
    histories: Sequence[Tensor],
    *,
    folds: int = 5,
    seed: int = 0,
) -> Tensor:
    """How far up a model puts a part of a person's items when it is shown the rest: high for who was learned.

    A person's items are cut into ``folds`` parts at random. Each part is hidden in turn, and the statistic is
    the mean over hidden items of minus the logarithm of the rank, ``log_rank``.

    A model finds the items of those it was fitted on better: that is what an attack of membership uses
    (Shokri, Stronati, Song, Shmatikov 2017, "Membership Inference Attacks Against Machine Learning Models").
    Some people are easy for any model, so an attacker takes off what a *reference* model says that was fitted
    on other people (Watson, Guo, Cormode, Sablayrolles 2022, "On the Importance of Difficulty Calibration in
    Membership Inference Attacks"): subtract the two statistics, made with the same seed.

    Args:
        score_histories: histories -> scores of all items, (B, n_items): a model's method, or a function.
        histories: one a person, (L,) distinct item indices each, L at least 2, in the model's order.
        folds: parts; a person with fewer items has one part an item.
        seed: of the parts.

    Returns:
        (B,) float64 on the CPU, at most 0.

    Raises:
        TypeError: ``folds`` or ``seed`` is no whole number.
        ValueError: a history of fewer than two items, or with an item twice; or scores that are NaN.
    """
    folds = whole_number(folds, "folds", at_least=2)
    generator = torch.Generator().manual_seed(whole_number(seed, "seed"))
    questions: list[tuple[int, Tensor, Tensor]] = []  # person, shown, hidden
    for person, history in enumerate(histories):
        history = history.cpu()
        n = len(history)
        if n < 2 or len(history.unique()) < n:
            raise ValueError(
                f"history {person} needs two or more items, none of them twice; it has {n}, of which "
                f"{len(history.unique())} differ"
            )
        part = torch.randperm(n, generator=generator) % min(folds, n)  # (L,)
        questions += [(person, history[part != f], history[part == f]) for f in range(min(folds, n))]
    total = torch.zeros(len(histories), dtype=torch.float64)  # (B,)
    for start in range(0, len(questions), _AT_ONCE):
        block = questions[start : start + _AT_ONCE]
        scores = score_histories([shown for _, shown, _ in block]).cpu()  # (b, n_items)
        if scores.isnan().any():
            raise ValueError("score_histories gave NaN, which has no rank")
        for row, (person, shown, hidden) in zip(scores, block, strict=True):
            total[person] += log_rank(row, hidden, torch.cat([shown, hidden])).sum()
    return total / torch.tensor([len(history) for history in histories])


def log_rank(scores: Tensor, hidden: Tensor, own: Tensor) -> Tensor:
    """Minus the logarithm of each hidden item's rank among the items that are not the person's.

    Args:
        scores: (n_items,).
        hidden: (h,) items that are ranked, each by itself.
        own: (L,) the person's items, which do not compete.

    Returns:
        (h,) float64: 0 for the first place. A tie counts one half.
    """
    other = torch.ones(len(scores), dtype=torch.bool, device=scores.device)
    other[own] = False
    rivals = scores[other].sort().values  # (R,)
    asked = scores[hidden]  # (h,)
    not_above = torch.searchsorted(rivals, asked, right=True) + torch.searchsorted(rivals, asked)
    return -(1 + len(rivals) - not_above.double() / 2).log()  # (h,)
