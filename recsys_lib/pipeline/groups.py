"""Groups of items, such as genres: how many of one a list may hold, and what two items have in common."""

from collections.abc import Iterable, Sequence
from typing import Any

import pandas as pd
import torch
from torch import Tensor

__all__ = ["as_groups", "at_most_of_a_group", "lists_with_at_most", "shared_groups"]


def at_most_of_a_group(items: Sequence[int], groups: Sequence[frozenset[Any]], at_most: int) -> list[int]:
    """The places of a list that stay where no group may have more than so many.

    From the top down, an item stays if none of its groups is full.

    Args:
        items: n items, best first.
        groups: of every item of the catalog, the groups that it belongs to; perhaps none.
        at_most: of each group.
    """
    count: dict[Any, int] = {}
    kept = []
    for place, item in enumerate(items):
        mine = groups[item]
        if all(count.get(group, 0) < at_most for group in mine):
            kept.append(place)
            for group in mine:
                count[group] = count.get(group, 0) + 1
    return kept


def lists_with_at_most(
    items: Tensor, values: Tensor, k: int, groups: Sequence[frozenset[Any]], at_most: int
) -> tuple[Tensor, Tensor, bool]:
    """Lists in which no group has too many.

    Args:
        items: (B, L), best first, -1 for padding at the end of a row.
        values: (B, L) their scores.
        k: length of the lists.
        groups: of every item of the catalog.
        at_most: of each group.

    Returns:
        Items (B, k) and their scores (B, k), -1 and ``-inf`` where one came out short; and whether none did.
    """
    found = torch.full((len(items), k), -1, device=items.device)  # (B, k)
    scores = torch.full((len(items), k), -torch.inf, device=items.device)  # (B, k)
    filled = True
    for row, mine in enumerate(items.tolist()):
        n = next((place for place, item in enumerate(mine) if item < 0), len(mine))
        kept = at_most_of_a_group(mine[:n], groups, at_most)[:k]
        filled &= len(kept) == k
        place = torch.tensor(kept, dtype=torch.int64, device=items.device)  # (n,)
        found[row, : len(kept)], scores[row, : len(kept)] = items[row, place], values[row, place]
    return found, scores, filled


def as_groups(value: Any) -> frozenset[Any]:
    """An item's groups: a list of them, or a text with "|" between."""
    if value is None or (isinstance(value, float) and pd.isna(value)):
        return frozenset()
    if isinstance(value, str):
        return frozenset(name for name in value.split("|") if name)
    return frozenset(value) if isinstance(value, Iterable) else frozenset([value])


def shared_groups(groups: Sequence[frozenset[Any]]) -> Tensor:
    """The share of groups that two items have in common (Jaccard), (n, n); an item without any is alone."""
    names = {name: i for i, name in enumerate(sorted(frozenset().union(*groups), key=str))}
    has = torch.zeros(len(groups), max(1, len(names)), device="cpu")  # (n, g)
    for row, mine in enumerate(groups):
        has[row, [names[name] for name in mine]] = 1.0
    common, count = has @ has.mT, has.sum(dim=1)  # (n, n), (n,)
    return common / (count[:, None] + count - common).clamp(min=1)
