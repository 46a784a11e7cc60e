from itertools import combinations

import pandas as pd
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from recsys_lib.data import Interactions, MovieLens, k_core, leave_last_out, min_counts

Pairs = list[tuple[int, int]]


@st.composite
def purchases(draw: st.DrawFn) -> Interactions:
    """Few users and items with repeats, in catalogs that hold some without an event."""
    pairs = draw(st.lists(st.tuples(st.integers(1, 5), st.integers(11, 15)), min_size=1, max_size=25))
    frame = pd.DataFrame(pairs, columns=["user_id", "item_id"])
    return Interactions.from_frame(
        frame.assign(timestamp=range(len(frame))), user_ids=[5, 9, 1, 2, 3, 4], item_ids=range(10, 16)
    )


def counted(events: Pairs, count: str) -> Pairs:
    return sorted(set(events)) if count == "distinct" else sorted(events)


def enough(events: Pairs, users: int, items: int, count: str) -> bool:
    """Whether every user and every item that occurs has its minimum."""
    pairs = counted(events, count)
    return all(sum(p[0] == u for p in pairs) >= users for u, _ in pairs) and all(
        sum(p[1] == i for p in pairs) >= items for _, i in pairs
    )


def in_own_ids(inter: Interactions) -> Pairs:
    frame = inter.to_frame()
    return list(zip(frame["user_id"], frame["item_id"], strict=True))


MINIMA = (st.integers(0, 3), st.integers(0, 3), st.sampled_from(["distinct", "events"]))


@given(purchases(), *MINIMA)
@settings(max_examples=60, deadline=None)
def test_a_core_has_its_minimum_and_no_larger_part_has(
    inter: Interactions, users: int, items: int, count: str
) -> None:
    everything = in_own_ids(inter)
    who = sorted({u for u, _ in everything})
    what = sorted({i for _, i in everything})
    # The core is the union of all parts, spanned by some users and some items, that have their minimum.
    largest: Pairs = []
    for some_users in (set(c) for n in range(len(who) + 1) for c in combinations(who, n)):
        for some_items in (set(c) for n in range(len(what) + 1) for c in combinations(what, n)):
            part = [p for p in everything if p[0] in some_users and p[1] in some_items]
            if len(part) > len(largest) and enough(part, users, items, count):
                largest = part
    if not largest:
        with pytest.raises(ValueError, match="no event is left"):
            k_core(inter, users, items, count=count)
        return
    core = k_core(inter, users, items, count=count)
    assert in_own_ids(core) == sorted(
        in_own_ids(core), key=lambda p: core.user_ids.get_loc(p[0])
    )  # canonical order
    assert sorted(in_own_ids(core)) == sorted(largest)
    assert enough(in_own_ids(core), users, items, count)


@given(purchases(), *MINIMA)
@settings(max_examples=60, deadline=None)
def test_minimum_counts_are_counted_once_on_all_events(
    inter: Interactions, users: int, items: int, count: str
) -> None:
    everything = in_own_ids(inter)
    pairs = counted(everything, count)
    expected = [
        p
        for p in everything
        if sum(q[0] == p[0] for q in pairs) >= users and sum(q[1] == p[1] for q in pairs) >= items
    ]
    if not expected:
        with pytest.raises(ValueError, match="no event is left"):
            min_counts(inter, users=users, items=items, count=count)
        return
    assert in_own_ids(min_counts(inter, users=users, items=items, count=count)) == expected


@given(purchases(), *MINIMA, st.booleans())
@settings(max_examples=60, deadline=None)
def test_who_misses_the_minimum_leaves_the_catalog_and_nobody_else(
    inter: Interactions, users: int, items: int, count: str, repeat: bool
) -> None:
    def cut(keep_catalog: bool) -> Interactions:
        if repeat:
            return k_core(inter, users, items, count=count, keep_catalog=keep_catalog)
        return min_counts(inter, users=users, items=items, count=count, keep_catalog=keep_catalog)

    try:
        kept, closed = cut(True), cut(False)
    except ValueError:
        assume(False)
    assert kept.user_ids is inter.user_ids
    assert kept.item_ids is inter.item_ids
    pd.testing.assert_frame_equal(kept.to_frame(), closed.to_frame())
    assert torch.equal(kept.rows, closed.rows)
    for minimum, ids, all_ids, column in (
        (users, closed.user_ids, inter.user_ids, 0),
        (items, closed.item_ids, inter.item_ids, 1),
    ):
        if minimum == 0:
            assert ids is all_ids  # those without an event stay as well
        elif repeat:
            assert set(ids) == {pair[column] for pair in in_own_ids(closed)}
        else:
            pairs = counted(in_own_ids(inter), count)
            assert ids.tolist() == [i for i in all_ids if sum(p[column] == i for p in pairs) >= minimum]
        assert ids.tolist() == [i for i in all_ids if i in set(ids)]  # in the same order
    if repeat:
        again = k_core(closed, users, items, count=count)
        pd.testing.assert_frame_equal(again.to_frame(), closed.to_frame())


def test_by_hand() -> None:
    # ann and bob share two items; cat hangs on by one of them, and dan bought one thing three times.
    pairs = [
        ("ann", "x"),
        ("ann", "y"),
        ("bob", "x"),
        ("bob", "y"),
        ("cat", "y"),
        ("cat", "z"),
        *[("dan", "z")] * 3,
    ]
    inter = Interactions.from_frame(
        pd.DataFrame(pairs, columns=["user_id", "item_id"]), item_ids=list("xyzw")
    )
    once = min_counts(inter, users=2, items=2)
    assert once.user_ids.tolist() == ["ann", "bob", "cat"]
    assert once.item_ids.tolist() == ["x", "y", "z"]  # z had cat and dan
    assert once.item_counts().tolist() == [2, 3, 1]
    core = k_core(inter, 2)
    assert core.user_ids.tolist() == ["ann", "bob"]
    assert core.item_ids.tolist() == ["x", "y"]
    assert core.users.tolist() == [0, 0, 1, 1]
    assert core.items.tolist() == [0, 1, 0, 1]
    assert core.rows.tolist() == [0, 1, 2, 3]
    by_events = k_core(inter, 2, count="events")
    assert by_events.user_ids.tolist() == ["ann", "bob", "cat", "dan"]
    assert by_events.item_ids.tolist() == ["x", "y", "z"]
    assert k_core(inter, 2, 0).item_ids.tolist() == ["x", "y", "z", "w"]  # w was never bought
    assert k_core(inter, 2, keep_catalog=True).n_users == 4
    words = "at least 4 a user and 4 an item; in all events a user has at most 2 and an item at most 3"
    with pytest.raises(ValueError, match=words):
        k_core(inter, 4)
    with pytest.raises(ValueError, match="a user has at most 3 and an item at most 4"):
        k_core(inter, 5, count="events")
    with pytest.raises(ValueError, match="there are no events to choose from"):
        min_counts(inter[[]], users=1)
    for wrong in (-1, 2.0, True, None, "5"):
        with pytest.raises(ValueError, match="the minimum of users must be a whole number, 0 or more"):
            min_counts(inter, users=wrong)
    with pytest.raises(ValueError, match='count must be "distinct" or "events"'):
        k_core(inter, 2, count="pairs")


def test_a_long_chain_unravels_to_its_end() -> None:
    # each user shares an item with the next, and the first has one item only
    chain = [(u, i) for u in range(200) for i in (u, u + 1)][1:]
    ring = [(u, i) for u in range(900, 903) for i in (900, 901, 902)]
    core = k_core(Interactions.from_frame(pd.DataFrame(chain + ring, columns=["user_id", "item_id"])), 2)
    assert core.user_ids.tolist() == [900, 901, 902]
    assert len(core) == 9


def test_movielens_has_a_core_that_splits(movielens: MovieLens) -> None:
    inter = movielens.interactions
    assert k_core(inter, 20, 0).n_users == 943  # as published: everyone has 20 ratings at least
    core = k_core(inter.positives(4.0), 10)
    assert int(core.user_counts().min()) >= 10
    assert int(core.item_counts().min()) >= 10
    assert (core.n_users, core.n_items) == (len(core.users.unique()), len(core.items.unique()))
    split = leave_last_out(core)
    assert split.train.item_ids is core.item_ids
