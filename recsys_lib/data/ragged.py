"""Rows of unequal length in flat tensors: the events of users, the items of histories, tied groups.

``crow`` is the row pointer of the compressed sparse row format: n + 1 offsets. Row r owns the entries
``crow[r]`` to ``crow[r + 1]``, so that crow[0] = 0 and crow[n] = E, the number of entries.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = [
    "DistinctEvents",
    "distinct_events",
    "offsets",
    "row_blocks",
    "row_of_each",
    "run_starts",
    "sort_by",
    "take_rows",
    "within_rows",
]


def offsets(lengths: Tensor) -> Tensor:
    """Where rows of these lengths begin, and where the last one ends.

    Args:
        lengths: (n,) int64, entries in each row.

    Returns:
        (n + 1,) int64, ``crow``.
    """
    return torch.cat([lengths.new_zeros(1), lengths.cumsum(0)])  # (n + 1,)


def row_of_each(crow: Tensor) -> Tensor:
    """The row that each entry belongs to: (n + 1,) offsets -> (E,) int64, ascending."""
    rows = torch.arange(len(crow) - 1, device=crow.device)  # (n,)
    return rows.repeat_interleave(crow.diff())  # (E,)


def within_rows(crow: Tensor) -> Tensor:
    """The place of each entry in its row, from 0: (n + 1,) offsets -> (E,) int64."""
    row = row_of_each(crow)  # (E,)
    return torch.arange(len(row), device=crow.device) - crow[row]  # (E,)


def take_rows(crow: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
    """Where the entries of some rows stand.

    Args:
        crow: (n + 1,) int64 offsets.
        rows: (B,) int64, the rows wanted, in any order; a row may be wanted more than once.

    Returns:
        place (E',), indices of their entries, row after row; row (E',), which of the B each belongs to.
    """
    taken = offsets(crow[rows + 1] - crow[rows])  # (B + 1,)
    row = row_of_each(taken)  # (E',)
    return crow[rows][row] + within_rows(taken), row


def row_blocks(lengths: Tensor, budget: int) -> list[slice]:
    """Cuts rows into blocks of about as many entries, so that work on a block takes bounded memory.

    Args:
        lengths: (n,) int64, entries in each row.
        budget: entries in a block; the row that begins within it and ends beyond still belongs to it.

    Returns:
        Slices of the rows, in order; together they are all n. None is empty.
    """
    begins = lengths.cumsum(0) - lengths  # (n,)
    sizes = begins.div(budget, rounding_mode="floor").unique_consecutive(return_counts=True)[1]  # (blocks,)
    ends = sizes.cumsum(0).tolist()
    return [slice(start, stop) for start, stop in zip([0, *ends], ends, strict=False)]


def run_starts(*keys: Tensor) -> Tensor:
    """Which entries begin a run, that is, differ from the one before in some key.

    With users and timestamps of sorted events, the runs are the groups of events that are tied in time.
    ``run_starts(...).cumsum(0) - 1`` numbers the runs.

    Args:
        *keys: (E,) each, sorted so that equal entries stand together.

    Returns:
        (E,) bool; the first entry begins a run.
    """
    starts = torch.ones_like(keys[0], dtype=torch.bool)  # (E,)
    if len(starts):
        starts[1:] = torch.stack([key[1:] != key[:-1] for key in keys]).any(dim=0)
    return starts


def sort_by(*keys: Tensor) -> Tensor:
    """The order that sorts by the first key, then by the second, and so on; equal entries keep their order.

    Args:
        *keys: (E,) each, the most important one first.

    Returns:
        (E,) int64 positions.
    """
    # Stable sorts from the last key to the first.
    order = keys[-1].argsort(stable=True)  # (E,)
    for key in keys[-2::-1]:
        order = order[key[order].argsort(stable=True)]
    return order


@dataclass(frozen=True)
class DistinctEvents:
    """Each row's distinct items, by row and then by item.

    Attributes:
        users: (E,) int64, the row: a user, or the number of a history.
        items: (E,) int64.
        timestamps: (E,) int64, the latest event of the pair.
        crow: (n_users + 1,) int64 offsets.
    """

    users: Tensor
    items: Tensor
    timestamps: Tensor
    crow: Tensor


def distinct_events(
    users: Tensor, items: Tensor, timestamps: Tensor, n_users: int, n_items: int
) -> DistinctEvents:
    """Merges the events of a user with an item into one, keeping the latest time.

    Args:
        users: (E,) int64 below ``n_users``, in any order.
        items: (E,) int64 below ``n_items``.
        timestamps: (E,) int64.
        n_users: number of users, with or without events.
        n_items: size of the catalog.
    """
    keys, place = (users * n_items + items).unique(return_inverse=True)  # (E',), (E,)
    latest = torch.zeros_like(keys).scatter_reduce(0, place, timestamps, "amax", include_self=False)  # (E',)
    users = keys.div(n_items, rounding_mode="floor")  # (E',)
    crow = offsets(torch.bincount(users, minlength=n_users))  # (n_users + 1,)
    return DistinctEvents(users, keys - users * n_items, latest, crow)
