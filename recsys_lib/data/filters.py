"""Leaving out users and items with too few events.

Cut before splitting: a minimum that holds of all events need not hold of a part of them. What is measured
on a k-core is measured on its users and items, who are easier to serve than the rest.
"""

from __future__ import annotations

import dataclasses
import numbers
from typing import Any, Literal

import pandas as pd
import torch
from torch import Tensor

from recsys_lib.data.interactions import Interactions
from recsys_lib.data.ragged import row_of_each

__all__ = ["k_core", "min_counts"]

Count = Literal["distinct", "events"]


def min_counts(
    inter: Interactions,
    *,
    users: int = 0,
    items: int = 0,
    count: Count = "distinct",
    keep_catalog: bool = False,
) -> Interactions:
    """The events of users and items that have enough of them, counted once.

    Both are counted on the events given, before any is left out. Afterwards a user may have fewer than the
    minimum, because some of its items are gone; :func:`k_core` goes on until that is not so.

    Args:
        inter: The events.
        users: The least a user must have; 0 for no minimum.
        items: The least an item must have, likewise.
        count: ``"distinct"``: a user counts its distinct items, an item its distinct users, so that buying
            one thing five times counts once. ``"events"``: all events count.
        keep_catalog: Leave ``n_users``, ``n_items`` and the ids as they are. By default the users and items
            that miss their minimum leave the catalogs as well, and the contiguous ids close up in the same
            order. Without a minimum nobody leaves: items that were never bought stay where ``items`` is 0.

    Returns:
        The events that are left; ``rows`` leads to the frame as before.

    Raises:
        ValueError: A minimum is no count, or nothing is left.
    """
    return _cut(inter, users, items, count, keep_catalog, repeat=False)


def k_core(
    inter: Interactions,
    k_users: int,
    k_items: int | None = None,
    *,
    count: Count = "distinct",
    keep_catalog: bool = False,
) -> Interactions:
    """The largest part of the events in which every user and every item has enough of them.

    Users and items that have too few are left out, which takes events from others, and so on until all that
    are left have their minimum (Seidman, 1983, *Network structure and minimum degree*). The result does not
    depend on the order of the steps.

    Args:
        inter: The events.
        k_users: The least a user must have in the result; 0 for no minimum.
        k_items: The least an item must have in the result; as ``k_users`` by default.
        count: What is counted, as in :func:`min_counts`. ``"distinct"``, the default, does not count repeats.
        keep_catalog: As in :func:`min_counts`: by default who is left out leaves the catalogs, too.

    Returns:
        The events that are left; ``rows`` leads to the frame as before.

    Raises:
        ValueError: A minimum is no count, or nothing is left.
    """
    return _cut(inter, k_users, k_users if k_items is None else k_items, count, keep_catalog, repeat=True)


def _cut(
    inter: Interactions, least_user: int, least_item: int, count: Count, keep_catalog: bool, repeat: bool
) -> Interactions:
    least: Any
    for role, least in (("users", least_user), ("items", least_item)):
        if isinstance(least, bool) or not isinstance(least, numbers.Integral) or least < 0:
            raise ValueError(f"the minimum of {role} must be a whole number, 0 or more, got {least!r}")
    if count == "distinct":
        crow, items = inter.csr()
        users = row_of_each(crow)  # (E',)
    elif count == "events":
        users, items = inter.users, inter.items  # (E',)
    else:
        raise ValueError(f'count must be "distinct" or "events", got {count!r}')
    if not len(inter):
        raise ValueError("there are no events to choose from")

    while True:
        user_counts = torch.bincount(users, minlength=inter.n_users)  # (n_users,)
        item_counts = torch.bincount(items, minlength=inter.n_items)  # (n_items,)
        user_stays, item_stays = user_counts >= least_user, item_counts >= least_item
        stays = user_stays[users] & item_stays[items]  # (E',)
        if not repeat or bool(stays.all()):
            break
        users, items = users[stays], items[stays]

    left = inter[user_stays[inter.users] & item_stays[inter.items]]
    if not len(left):
        most_user, most_item = _largest(inter, count)
        raise ValueError(
            f"no event is left with at least {least_user} a user and {least_item} an item; "
            f"in all events a user has at most {most_user} and an item at most {most_item}"
        )
    return left if keep_catalog else _closed_up(left, user_stays, item_stays)


def _largest(inter: Interactions, count: Count) -> tuple[int, int]:
    """The most that a user has, and that an item has."""
    if count == "events":
        return int(inter.user_counts().max()), int(torch.bincount(inter.items).max())
    return int(inter.csr()[0].diff().max()), int(inter.item_counts().max())


def _closed_up(inter: Interactions, user_stays: Tensor, item_stays: Tensor) -> Interactions:
    """The events over smaller catalogs, in which those that stay keep their order."""
    new_user, new_item = user_stays.cumsum(0) - 1, item_stays.cumsum(0) - 1  # (n_users,), (n_items,)

    def remaining(ids: pd.Index, stays: Tensor) -> pd.Index:
        return ids if bool(stays.all()) else ids[stays.cpu().numpy()]

    return dataclasses.replace(
        inter,
        users=new_user[inter.users],
        items=new_item[inter.items],
        n_users=int(user_stays.sum()),
        n_items=int(item_stays.sum()),
        user_ids=remaining(inter.user_ids, user_stays),
        item_ids=remaining(inter.item_ids, item_stays),
    )
