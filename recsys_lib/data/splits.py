"""Cutting events into train, validation and test, by rules that the order of rows cannot influence."""

from __future__ import annotations

import math
import numbers
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from recsys_lib.data.interactions import Interactions, merge
from recsys_lib.data.ragged import run_starts, sort_by

# The constants of SplitMix64, as signed integers.
_MIX = (0x9E3779B97F4A7C15 - (1 << 64), 0xBF58476D1CE4E5B9 - (1 << 64), 0x94D049BB133111EB - (1 << 64))


@dataclass(frozen=True, eq=False, repr=False)
class Split:
    """Three disjoint parts of one set of events, over the same users and items.

    Attributes:
        train: What a model is fitted on while its hyper-parameters are chosen.
        validation: What they are chosen on.
        test: What the chosen model is reported on.
        rule: One sentence that says how the parts were cut.
    """

    train: Interactions
    validation: Interactions
    test: Interactions
    rule: str

    @cached_property
    def history(self) -> Interactions:
        """Train and validation together: what a reported model is refitted on."""
        return merge(self.train, self.validation)

    def __repr__(self) -> str:
        sizes = ", ".join(
            f"{name} {len(part):,} events of {int((part.user_counts() > 0).sum()):,} users"
            for name, part in (("train", self.train), ("validation", self.validation), ("test", self.test))
        )
        return f"Split({sizes}: {self.rule})"


def leave_last_out(
    inter: Interactions,
    n: int | float = 1,
    *,
    ties: Literal["group", "random"] | Tensor = "group",
    seed: int = 0,
) -> Split:
    """Hold out the end of every user's history: the last part for test, the part before for validation.

    Many events share their timestamp with another of the same user. No order among them is more
    right than another, so by default (``ties="group"``) such a group is never cut: the test part is
    the fewest latest groups that hold at least ``n`` events, the validation part the fewest latest
    groups of the rest that hold at least ``n``. Nothing in them is older than, or as old as, what
    stays in train.

    A user always keeps at least one group in train. A user with too few groups gives to test before
    validation; one with a single group gives nothing.

    Args:
        inter: The events.
        n: How many events a user gives to test, and again to validation: a number, or a fraction in
            (0, 1) of the user's history, rounded up.
        ties: ``"group"`` as above. ``"random"``: order tied events by seeded random keys and cut exactly
            ``n`` events. The keys belong to the events' content, so they do not depend on the order of
            rows. A tensor (E,) of keys: order tied events by it (then by item) and cut exactly ``n``;
            for showing what an arbitrary order does, as ``inter.items`` or ``inter.rows`` would.
        seed: Seed of the random keys.

    Returns:
        The split.

    Raises:
        ValueError: There are no events, no user has two (or two groups) to part, or an argument makes no
            sense.
    """
    wanted = _wanted(inter, n)  # (n_users,) events to hold out
    _check_some(inter)
    rule = f"{_amount(n)} of each user's history for test, {_amount(n)} before for validation; "
    if isinstance(ties, Tensor):
        if ties.shape != inter.users.shape:
            raise ValueError(
                f"ties must have one key an event, shape ({len(inter)},), got {tuple(ties.shape)}"
            )
        if ties.isnan().any():
            raise ValueError("ties holds a key that is not a number")
        keys = ties.to(inter.users.device)
        rule += "tied timestamps ordered by the keys given"
    elif ties == "random":
        keys = _content_keys(inter, seed)
        rule += f"tied timestamps in random order, seed {seed}"
    elif ties == "group":
        keys = torch.zeros_like(inter.users)
        rule += "events with the same timestamp stay together"
    else:
        raise ValueError(f'ties must be "group", "random" or a tensor of keys, got {ties!r}')

    # Sort the events of each user by (time, key); equal keys stay in canonical order.
    order = sort_by(inter.users, inter.timestamps, keys)  # (E,)
    users, times = inter.users[order], inter.timestamps[order]  # (E,)

    # A unit is what must not be cut: a tied group, or a single event.
    if not isinstance(ties, Tensor) and ties == "group":
        opens = run_starts(users, times)  # (E,) the event opens a unit
    else:
        opens = torch.ones_like(users, dtype=torch.bool)  # (E,)
    unit = opens.cumsum(0) - 1  # (E,)
    unit_size = torch.bincount(unit)  # (G,)
    unit_end = unit_size.cumsum(0)  # (G,)
    unit_user = users[opens]  # (G,)
    counts = inter.user_counts()  # (n_users,)
    user_end = counts.cumsum(0)  # (n_users,)
    later = user_end[unit_user] - unit_end  # (G,) events of the user after the unit
    user_start = user_end - counts  # (n_users,)
    may_leave = unit_end - unit_size > user_start[unit_user]  # (G,) not the user's first unit

    in_test = may_leave & (later < wanted[unit_user])
    n_test = torch.zeros_like(counts).index_add_(0, unit_user[in_test], unit_size[in_test])  # (n_users,)
    in_validation = may_leave & ~in_test & (later - n_test[unit_user] < wanted[unit_user])
    if not bool(in_test.any()):
        raise ValueError(_why_none(inter))
    part = (in_validation.long() + 2 * in_test.long())[unit]  # (E,) 0 train, 1 validation, 2 test
    return _split(inter, torch.empty_like(part).scatter_(0, order, part), rule)


def temporal_split(inter: Interactions, fractions: tuple[float, float, float] = (0.8, 0.1, 0.1)) -> Split:
    """Cut all events at two points in time: nothing in train is later than anything held out.

    This is the only one of the four splits in which no user's future helps to predict another's past.
    Events at the same time stay on one side, so each cut is moved to the nearest change of time.

    Args:
        inter: The events, with timestamps.
        fractions: Shares of train, validation and test; they sum to 1.

    Raises:
        ValueError: There are no events, all have the same time, or the fractions make no sense.
    """
    _check_fractions(fractions)
    _check_some(inter)
    times, counts = torch.unique(inter.timestamps, return_counts=True)  # (T,) sorted
    if len(times) < 2:
        raise ValueError("all events have the same time, so no point in time can part them")
    before = counts.cumsum(0)[:-1]  # (T - 1,) events before each possible cut
    first = int((before - fractions[0] * len(inter)).abs().argmin())
    second = int((before - (fractions[0] + fractions[1]) * len(inter)).abs().argmin())
    first_time, second_time = times[first + 1], times[second + 1]
    part = (inter.timestamps >= first_time).long() + (inter.timestamps >= second_time).long()
    rule = (
        "all events before one point in time for train, all from a later one on for test, "
        "those between for validation"
    )
    return _split(inter, part, rule)


def random_split(
    inter: Interactions, fractions: tuple[float, float, float] = (0.8, 0.1, 0.1), seed: int = 0
) -> Split:
    """Deal the events at random. The past is predicted from the future, too: it flatters every model.

    Args:
        inter: The events.
        fractions: Shares of train, validation and test; they sum to 1.
        seed: Seed of the deal. It depends on the events' content, not on the order of rows.

    Raises:
        ValueError: The events are none or too few, or the fractions make no sense.
    """
    _check_fractions(fractions)
    _check_some(inter)
    n_train = round(fractions[0] * len(inter))
    n_held = round((fractions[0] + fractions[1]) * len(inter))
    if n_train < 1 or n_held >= len(inter):
        raise ValueError(f"{len(inter)} events are too few to deal out as {fractions}")
    order = _content_keys(inter, seed).argsort(stable=True)
    part = torch.full_like(order, 2)
    part[order[:n_held]] = 1
    part[order[:n_train]] = 0
    shares = " / ".join(f"{100 * share:g}%" for share in fractions)
    return _split(inter, part, f"events dealt at random, {shares}, seed {seed}")


def cold_item_split(
    inter: Interactions, fraction: float = 0.2, seed: int = 0, *, together: Sequence[Hashable] | None = None
) -> Split:
    """Hold out items, with all their events: what is tested has never been seen in training.

    Args:
        inter: The events.
        fraction: Share of the items (of those with events) that goes to test, and again to validation.
        seed: Seed of the choice.
        together: (n_items,) A label of each item, such as the family of near copies; items with one label
            are on one side. The share is then one of the labels.

    Raises:
        ValueError: Too few items to hold any out, or not a label for each item.
    """
    if not 0 < fraction < 0.5:
        raise ValueError(f"fraction must lie between 0 and 0.5 (it is taken twice), got {fraction}")
    _check_some(inter)
    known = (inter.item_counts() > 0).nonzero().squeeze(1).cpu()  # (M,)
    if together is not None:
        if len(together) != inter.n_items:
            raise ValueError(
                f"together must have a label for each of {inter.n_items} items, got {len(together)}"
            )
        label, _ = pd.factorize(np.asarray(together, dtype=object), use_na_sentinel=False)
        of_item = torch.from_numpy(label)  # (n_items,)
        known = of_item[known].unique()  # (M,)
    n_held = max(1, round(fraction * len(known)))
    if 2 * n_held >= len(known):
        what = "items" if together is None else "labels of items"
        raise ValueError(f"{len(known)} {what} with events are too few to hold out {100 * fraction:g}% twice")
    shuffled = known[torch.randperm(len(known), generator=torch.Generator().manual_seed(seed))]
    item_part = torch.zeros(inter.n_items, dtype=torch.long)
    item_part[shuffled[:n_held]] = 2
    item_part[shuffled[n_held : 2 * n_held]] = 1
    if together is not None:
        item_part = item_part[of_item]  # of the labels, until here
    rule = (
        f"all events of {100 * fraction:g}% of the items for test, "
        f"of another {100 * fraction:g}% for validation, seed {seed}"
    )
    return _split(inter, item_part.to(inter.items.device)[inter.items], rule)


# ---------------------------------------------------------------------- helpers


def _split(inter: Interactions, part: Tensor, rule: str) -> Split:
    """The split in which ``part`` (E,) says 0 for train, 1 for validation, 2 for test."""
    return Split(inter[part == 0], inter[part == 1], inter[part == 2], rule)


def _check_some(inter: Interactions) -> None:
    if not len(inter):
        raise ValueError(
            "there are no events to split; if they were chosen, by positives(...), a mask or a minimum, "
            "nothing met the condition"
        )


def _why_none(inter: Interactions) -> str:
    """Why no event of these can be held out by time."""
    if int(inter.user_counts().max()) < 2:
        return f"no user has two events ({len(inter):,} users have one each), so none can be held out"
    if bool((inter.timestamps == inter.timestamps[0]).all()):
        return (
            "all events have the same time, as without a timestamp column, so no user has two events at "
            'different times; without timestamps use ties="random" or random_split'
        )
    return (
        "no user has two events at different times, so none can be held out; "
        'to part events at the same time use ties="random" or random_split'
    )


def _wanted(inter: Interactions, n: int | float) -> Tensor:
    """(n_users,) int64: how many events each user is to hold out."""
    counts = inter.user_counts()
    if _is_count(n):
        if n < 1:
            raise ValueError(f"n must be at least 1 event, got {n}")
        return torch.full_like(counts, int(n))
    if not isinstance(n, float) or not 0 < n < 1:
        raise ValueError(f"n must be a whole number of events or a fraction between 0 and 1, got {n!r}")
    # 0.07 * 100 is a hair above 7 in floating point; it must not round up to 8
    return (counts.double() * float(n) - 1e-9).ceil().long()


def _is_count(n: object) -> bool:
    return isinstance(n, numbers.Integral) and not isinstance(n, bool)


def _amount(n: int | float) -> str:
    """Words for what is held out: the last event, the last 3 events, the last 20%."""
    if not _is_count(n):
        return f"the last {100 * n:g}%"
    return "the last event" if n == 1 else f"the last {n} events"


def _check_fractions(fractions: tuple[float, float, float]) -> None:
    train, validation, test = fractions
    if not (
        train > 0
        and validation >= 0
        and test > 0
        and math.isclose(train + validation + test, 1, abs_tol=1e-6)
    ):
        raise ValueError(
            f"fractions must be three shares that sum to 1, train and test above 0, got {fractions}"
        )


def _content_keys(inter: Interactions, seed: int) -> Tensor:
    """(E,) int64 pseudo-random keys, a function of the seed and of what each event says.

    SplitMix64 (Steele, Lea and Flood, 2014) over user, item, time and rating. Equal events get equal
    keys, and it does not matter which of them is which.
    """
    state = torch.full_like(inter.users, seed)
    for field in (inter.users, inter.items, inter.timestamps, inter.ratings.view(torch.int32).long()):
        state = _mix(state + field)
    return state


def _mix(state: Tensor) -> Tensor:
    """One step of SplitMix64 on int64, whose products wrap around."""
    state = state + _MIX[0]
    state = (state ^ _shift(state, 30)) * _MIX[1]
    state = (state ^ _shift(state, 27)) * _MIX[2]
    return state ^ _shift(state, 31)


def _shift(state: Tensor, bits: int) -> Tensor:
    """Logical shift right: int64 shifts copy the sign bit in, the mask takes it out."""
    return (state >> bits) & ((1 << (64 - bits)) - 1)
