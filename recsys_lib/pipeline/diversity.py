"""Lists whose items differ from each other: maximal marginal relevance."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from recsys_lib.arguments import whole_number

__all__ = ["diversified", "maximal_marginal_relevance", "share"]


def maximal_marginal_relevance(relevance: Tensor, similarity: Tensor, k: int, diversity: float) -> Tensor:
    """Picks items one by one: relevant, and unlike those that were picked before.

        argmax over i not in S of  (1 - diversity) Rel(i) - diversity max over j in S of Sim(i, j)

    with S what was picked; the first is the most relevant. Carbonell and Goldstein (1998), The use of MMR,
    diversity-based reranking for reordering documents and producing summaries, section 2; their lambda is
    1 - diversity. Of equal items the one that stands first is taken.

    Args:
        relevance: (C,) of each item, in the unit of ``similarity``.
        similarity: (C, C) of each pair.
        k: how many to pick, at most C.
        diversity: from 0, the order of relevance, to 1, which asks for relevance only once.

    Returns:
        (k,) int64 places in ``relevance``, in the order they were picked.

    Raises:
        TypeError: ``k`` is no whole number.
        ValueError: other shapes, or a k or a diversity out of range.
    """
    n, k = len(relevance), whole_number(k, "k", at_least=1)
    if relevance.ndim != 1 or similarity.shape != (n, n):
        raise ValueError(
            f"similarity must be (C, C) for the C = {n} relevances, got {tuple(similarity.shape)}"
        )
    if k > n:
        raise ValueError(f"k must be at most the {n} items there are, got {k}")
    share(diversity, "diversity")
    if not k or not n:
        return torch.zeros(0, dtype=torch.int64, device=relevance.device)
    picked = [int(relevance.argmax())]
    nearest = similarity[:, picked[0]].clone()  # (C,) to what was picked
    free = torch.ones(n, dtype=torch.bool, device=relevance.device)  # (C,)
    while len(picked) < k:
        free[picked[-1]] = False
        gain = (1 - diversity) * relevance - diversity * nearest  # (C,)
        picked.append(int(gain.masked_fill(~free, -torch.inf).argmax()))
        nearest = torch.maximum(nearest, similarity[:, picked[-1]])
    return torch.tensor(picked, device=relevance.device)  # (k,)


def diversified(
    items: Tensor, values: Tensor, diversity: float, similarity: Callable[[Tensor], Tensor]
) -> tuple[Tensor, Tensor]:
    """Each list in the order of maximal marginal relevance; relevance is the score, stretched to 0 to 1.

    Args:
        items: (B, P), best first, -1 for padding at the end of a row.
        values: (B, P) their scores.
        diversity: see ``maximal_marginal_relevance``.
        similarity: items (n,) -> how alike they are, (n, n).

    Returns:
        Items (B, P) and their scores (B, P), which then do not descend.
    """
    order = torch.arange(items.shape[1], device=items.device).repeat(len(items), 1)  # (B, P)
    for row, mine in enumerate(items):
        n = int((mine >= 0).sum())
        if n < 2:
            continue
        score = values[row, :n]  # (n,)
        spread = (score.max() - score.min()).clamp(min=torch.finfo(score.dtype).tiny)  # ()
        relevance = (score - score.min()) / spread  # (n,)
        order[row, :n] = maximal_marginal_relevance(relevance, similarity(mine[:n]), n, diversity)
    return items.gather(1, order), values.gather(1, order)


def share(value: Any, name: str) -> float:
    """The number if it is one from 0 to 1.

    Raises:
        ValueError: it is not; the message names it.
    """
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
        raise ValueError(f"{name} must be a number from 0 to 1, got {value!r}")
    return float(value)
