import random
from collections import defaultdict
from collections.abc import Callable

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from recsys_lib.data import (
    Interactions,
    MovieLens,
    Split,
    cold_item_split,
    leave_last_out,
    random_split,
    temporal_split,
)

SPLITS: dict[str, Callable[[Interactions], Split]] = {
    "leave 1 out": leave_last_out,
    "leave 3 out": lambda inter: leave_last_out(inter, 3),
    "leave a fifth out": lambda inter: leave_last_out(inter, 0.2),
    "random ties": lambda inter: leave_last_out(inter, ties="random", seed=5),
    "ties by item": lambda inter: leave_last_out(inter, 2, ties=inter.items),
    "temporal": temporal_split,
    "random": lambda inter: random_split(inter, seed=5),
    "cold items": lambda inter: cold_item_split(inter, 0.3, seed=5),
}


@st.composite
def events(draw: st.DrawFn) -> pd.DataFrame:
    """Histories with many tied times, some repeats, some users with a single time."""
    event = st.tuples(
        st.integers(0, 4), st.integers(0, 7), st.sampled_from([1.0, 4.0, float("nan")]), st.integers(0, 5)
    )
    rows = draw(st.lists(event, min_size=12, max_size=60))
    return pd.DataFrame(rows, columns=["user_id", "item_id", "rating", "timestamp"])


def parts(split: Split) -> tuple[Interactions, Interactions, Interactions]:
    return split.train, split.validation, split.test


def contents(part: Interactions) -> list[tuple[float, ...]]:
    """The events, without the rows they came from."""
    columns = (part.users, part.items, part.timestamps, part.ratings.nan_to_num(nan=-1))
    return list(zip(*(column.tolist() for column in columns), strict=True))


def try_split(cut: Callable[[Interactions], Split], inter: Interactions) -> Split:
    """The split, or no example at all where the events are too few for it."""
    try:
        return cut(inter)
    except ValueError:
        assume(False)
        raise


# ---------------------------------------------------------------------- what holds for every split


@pytest.mark.parametrize("cut", SPLITS.values(), ids=SPLITS)
@given(frame=events(), seed=st.integers(0, 1000))
@settings(max_examples=25, deadline=None)
def test_every_split_parts_the_events_whatever_the_order_of_rows(
    cut: Callable[[Interactions], Split], frame: pd.DataFrame, seed: int
) -> None:
    inter = Interactions.from_frame(frame)
    split = try_split(cut, inter)
    rows = [row for part in parts(split) for row in part.rows.tolist()]
    assert sorted(rows) == list(range(len(frame)))  # every event in one part, and only one
    assert len(split.train) > 0
    assert len(split.test) > 0
    for part in (*parts(split), split.history):
        assert (part.n_users, part.n_items) == (inter.n_users, inter.n_items)
        assert contents(part) == sorted(contents(part), key=lambda e: (e[0], e[2], e[1], e[3]))
    assert sorted(split.history.rows.tolist()) == sorted(
        split.train.rows.tolist() + split.validation.rows.tolist()
    )

    shuffled = cut(Interactions.from_frame(frame.sample(frac=1, random_state=seed)))
    for a, b in zip(parts(split), parts(shuffled), strict=True):
        assert contents(a) == contents(b)
    assert split.rule == shuffled.rule


def test_the_rule_says_what_was_done(small: Interactions) -> None:
    assert leave_last_out(small).rule == (
        "the last event of each user's history for test, the last event before for validation; "
        "events with the same timestamp stay together"
    )
    assert "the last 12.5%" in leave_last_out(small, 0.125).rule
    assert "the last 2 events" in leave_last_out(small, 2, ties="random", seed=9).rule
    assert "seed 9" in leave_last_out(small, 2, ties="random", seed=9).rule
    text = repr(leave_last_out(small))
    assert "train 5 events of 4 users, validation 2 events of 2 users, test 4 events of 3 users" in text


# ---------------------------------------------------------------------- leave last out


def reference_groups(frame: pd.DataFrame, n: int | float) -> dict[int, list[set[int]]]:
    """The rule for ties="group", spelled out user by user: row numbers in train, validation and test."""
    result = {}
    for user, history in frame.groupby("user_id"):
        groups = [
            set(group.index) for _, group in sorted(history.groupby("timestamp"), key=lambda pair: pair[0])
        ]
        if isinstance(n, float):
            wanted = next(k for k in range(1, len(history) + 1) if k >= n * len(history) - 1e-9)
        else:
            wanted = n
        held: list[set[int]] = []
        for _ in ("test", "validation"):
            taken: set[int] = set()
            while len(taken) < wanted and len(groups) > 1:
                taken |= groups.pop()
            held.append(taken)
        result[user] = [set().union(*groups), held[1], held[0]]
    return result


@given(events(), st.sampled_from([1, 2, 5, 0.1, 0.2, 0.5, 0.9]))
@settings(max_examples=60, deadline=None)
def test_whole_groups_are_held_out_as_the_rule_says(frame: pd.DataFrame, n: int | float) -> None:
    split = try_split(lambda inter: leave_last_out(inter, n), Interactions.from_frame(frame))
    got: dict[int, list[set[int]]] = defaultdict(lambda: [set(), set(), set()])
    for k, part in enumerate(parts(split)):
        for user, row in zip(part.user_ids[part.users.numpy()], part.rows.tolist(), strict=True):
            got[user][k].add(row)
    assert got == reference_groups(frame, n)


@given(events(), st.sampled_from([1, 3, 0.2]))
@settings(max_examples=40, deadline=None)
def test_no_tie_crosses_a_border(frame: pd.DataFrame, n: int | float) -> None:
    split = try_split(lambda inter: leave_last_out(inter, n), Interactions.from_frame(frame))
    for user in range(split.train.n_users):
        train, validation, test = (part.timestamps[part.users == user] for part in parts(split))
        assert len(train) > 0  # everyone keeps something
        for earlier, later in ((train, validation), (validation, test), (train, test)):
            if len(earlier) and len(later):
                assert earlier.max() < later.min()


def test_by_hand(small: Interactions) -> None:
    split = leave_last_out(small)
    # ann's last two are tied: both go to test, b to validation.
    # cat has two times: the later goes to test, the tied pair stays. dan's only event stays.
    assert split.test.to_frame()[["user_id", "item_id"]].to_numpy().tolist() == [
        ["ann", "c"],
        ["ann", "d"],
        ["bob", "d"],
        ["cat", "b"],
    ]
    assert split.validation.to_frame()[["user_id", "item_id"]].to_numpy().tolist() == [
        ["ann", "b"],
        ["bob", "b"],
    ]
    assert len(split.train) == 5


@given(events(), st.integers(1, 4), st.sampled_from(["random", "keys"]))
@settings(max_examples=40, deadline=None)
def test_with_keys_exactly_n_events_are_held_out(frame: pd.DataFrame, n: int, kind: str) -> None:
    inter = Interactions.from_frame(frame)
    keys = torch.tensor(random.Random(n).choices(range(3), k=len(inter)))
    split = try_split(lambda i: leave_last_out(i, n, ties="random" if kind == "random" else keys), inter)
    counts = inter.user_counts()
    assert torch.equal(split.test.user_counts(), (counts - 1).clamp(0, n))
    assert torch.equal(split.validation.user_counts(), (counts - 1 - split.test.user_counts()).clamp(0, n))
    key_of_row = dict(zip(inter.rows.tolist(), keys.tolist(), strict=True))
    for user in range(inter.n_users):
        order = [
            [
                (time, key_of_row[row] if kind == "keys" else 0)
                for time, row in zip(
                    p.timestamps[p.users == user].tolist(), p.rows[p.users == user].tolist(), strict=True
                )
            ]
            for p in parts(split)
        ]
        for earlier, later in ((order[0], order[1]), (order[1], order[2]), (order[0], order[2])):
            assert not earlier or not later or max(earlier) <= min(later)


def test_keys_decide_among_ties() -> None:
    frame = pd.DataFrame({"user_id": 1, "item_id": [10, 11, 12, 13], "timestamp": [1, 9, 9, 9]})
    inter = Interactions.from_frame(frame)

    def last_item(keys: torch.Tensor) -> int:
        test = leave_last_out(inter, ties=keys).test
        return int(test.item_ids[int(test.items[0])])

    assert last_item(inter.items) == 13
    assert last_item(-inter.items) == 11
    assert last_item(torch.tensor([0.0, 1.0, 3.0, 2.0])) == 12
    backwards = Interactions.from_frame(frame.iloc[::-1])
    assert torch.equal(backwards.items, inter.items)
    test = leave_last_out(backwards, ties=backwards.rows).test  # the order of the file: what to avoid
    assert int(test.item_ids[int(test.items[0])]) == 11


def test_random_ties_are_fair_and_belong_to_the_content() -> None:
    frame = pd.DataFrame({"user_id": 1, "item_id": range(6), "rating": 4, "timestamp": [0, 5, 5, 5, 5, 5]})
    inter = Interactions.from_frame(frame)
    picks = torch.stack(
        [leave_last_out(inter, ties="random", seed=s).test.items for s in range(1000)]
    ).flatten()
    counts = torch.bincount(picks, minlength=6)
    assert counts[0] == 0
    assert counts[1:].min() > 200 - 6 * 13  # binomial(1000, 1/5): six standard deviations
    assert counts[1:].max() < 200 + 6 * 13
    # A user's draw is the same with others present or not.
    crowd = pd.concat([frame, frame.assign(user_id=2)])
    both = Interactions.from_frame(crowd)
    for seed in range(20):
        alone = leave_last_out(inter, ties="random", seed=seed).test.items
        together = leave_last_out(both, ties="random", seed=seed).test
        assert together.items[together.users == 0].tolist() == alone.tolist()
    several = [leave_last_out(both, ties="random", seed=seed).test.items for seed in range(50)]
    assert 2 < sum(int(a) == int(b) for a, b in several) < 25  # users draw independently: one in five agrees


def test_fractions_round_up_but_not_by_floating_point() -> None:
    frame = pd.DataFrame({"user_id": 1, "item_id": range(100), "timestamp": range(100)})
    inter = Interactions.from_frame(frame)
    assert len(leave_last_out(inter, 0.07).test) == 7  # 0.07 * 100 > 7 in floating point
    assert len(leave_last_out(inter, 0.071).test) == 8
    assert len(leave_last_out(inter, 0.001).test) == 1
    halves = leave_last_out(inter, 0.9)
    assert [len(part) for part in parts(halves)] == [1, 9, 90]


@pytest.mark.parametrize("n", [0, -1, 1.0, 0.0, 1.5, True, "1", None, float("nan")])
def test_amounts_that_make_no_sense(small: Interactions, n: object) -> None:
    with pytest.raises(ValueError, match="n must be"):
        leave_last_out(small, n)


def test_amounts_of_numpy(small: Interactions) -> None:
    assert len(leave_last_out(small, np.int64(1)).test) == len(leave_last_out(small).test)
    assert len(leave_last_out(small, np.float64(0.5)).test) == len(leave_last_out(small, 0.5).test)


def test_ties_that_make_no_sense(small: Interactions) -> None:
    with pytest.raises(ValueError, match=r"shape \(11,\), got \(3,\)"):
        leave_last_out(small, ties=torch.zeros(3))
    with pytest.raises(ValueError, match="not a number"):
        leave_last_out(small, ties=torch.full((11,), torch.nan))
    with pytest.raises(ValueError, match="ties must be"):
        leave_last_out(small, ties="item")


def test_without_times_nothing_can_be_held_out_by_time() -> None:
    inter = Interactions.from_frame(pd.DataFrame({"user_id": [1, 1, 2], "item_id": [1, 2, 3]}))
    with pytest.raises(ValueError, match="no user has two events at different times"):
        leave_last_out(inter)
    with pytest.raises(ValueError, match="all events have the same time"):
        temporal_split(inter)
    assert len(leave_last_out(inter, ties="random").test) == 1
    with pytest.raises(ValueError, match=r"^all events have the same time, as without a timestamp column"):
        leave_last_out(inter)


@pytest.mark.parametrize("cut", SPLITS.values(), ids=SPLITS)
def test_nothing_to_split_is_not_blamed_on_the_times(
    small: Interactions, cut: Callable[[Interactions], Split]
) -> None:
    none = small[small.ratings < 2][[]]
    with pytest.raises(ValueError, match=r"^there are no events to split; .*positives\(...\)"):
        cut(none)


def test_the_reason_why_nothing_can_be_held_out_by_time() -> None:
    frame = pd.DataFrame({"user_id": [1, 2, 3], "item_id": [1, 1, 2], "timestamp": [10, 20, 30]})
    with pytest.raises(ValueError, match=r"no user has two events \(3 users have one each\)"):
        leave_last_out(Interactions.from_frame(frame))
    with pytest.raises(ValueError, match=r"no user has two events \(3 users have one each\)"):
        leave_last_out(Interactions.from_frame(frame), ties="random")
    tied = frame.assign(user_id=[1, 1, 2], timestamp=[10, 10, 30])
    with pytest.raises(
        ValueError, match=r"no user has two events at different times.*part events at the same"
    ):
        leave_last_out(Interactions.from_frame(tied))


# ---------------------------------------------------------------------- the other three


@given(events(), st.sampled_from([(0.8, 0.1, 0.1), (0.5, 0.25, 0.25), (0.5, 0.0, 0.5), (0.1, 0.1, 0.8)]))
@settings(max_examples=40, deadline=None)
def test_a_temporal_split_never_trains_on_the_future(
    frame: pd.DataFrame, fractions: tuple[float, float, float]
) -> None:
    split = try_split(lambda inter: temporal_split(inter, fractions), Interactions.from_frame(frame))
    train, validation, test = (part.timestamps for part in parts(split))
    assert train.max() < test.min()
    if len(validation):
        assert train.max() < validation.min()
        assert validation.max() < test.min()


def test_a_temporal_split_has_the_sizes_asked_for_where_nothing_is_tied() -> None:
    frame = pd.DataFrame({"user_id": 1, "item_id": range(100), "timestamp": range(100)})
    sizes = [len(part) for part in parts(temporal_split(Interactions.from_frame(frame), (0.7, 0.2, 0.1)))]
    assert sizes == [70, 20, 10]
    tied = frame.assign(timestamp=[0] * 30 + [1] * 60 + [2] * 10)
    sizes = [len(part) for part in parts(temporal_split(Interactions.from_frame(tied), (0.7, 0.2, 0.1)))]
    assert sizes == [90, 0, 10]  # both cuts moved to the nearest change of time
    two_times = frame.assign(timestamp=[0] * 99 + [1])
    assert [len(part) for part in parts(temporal_split(Interactions.from_frame(two_times)))] == [99, 0, 1]


def test_a_random_split_has_the_sizes_asked_for_and_follows_its_seed(movielens: MovieLens) -> None:
    inter = movielens.interactions
    split = random_split(inter, (0.8, 0.1, 0.1), seed=1)
    assert [len(part) for part in parts(split)] == [80_000, 10_000, 10_000]
    assert torch.equal(split.test.rows, random_split(inter, seed=1).test.rows)
    overlap = np.intersect1d(split.test.rows.numpy(), random_split(inter, seed=2).test.rows.numpy())
    assert 800 < len(overlap) < 1200  # independent seeds share a tenth of a tenth
    # The deal is blind to who, what and when: the parts look alike.
    for column in ("users", "items", "timestamps"):
        whole = getattr(inter, column).double()
        error = whole.std() / 100
        assert abs(getattr(split.test, column).double().mean() - whole.mean()) < 6 * error
    assert abs(split.test.ratings.mean() - inter.ratings.mean()) < 6 * inter.ratings.std() / 100


@given(events(), st.integers(0, 99))
@settings(max_examples=40, deadline=None)
def test_cold_items_are_in_one_part_only(frame: pd.DataFrame, seed: int) -> None:
    inter = Interactions.from_frame(frame)
    split = try_split(lambda i: cold_item_split(i, 0.25, seed), inter)
    train, validation, test = (set(part.items.tolist()) for part in parts(split))
    assert not train & test
    assert not train & validation
    assert not validation & test
    n_items = int((inter.item_counts() > 0).sum())
    assert len(test) == len(validation) == max(1, round(0.25 * n_items))


def test_cold_items_follow_their_seed(movielens: MovieLens) -> None:
    inter = movielens.interactions
    held = [set(cold_item_split(inter, 0.2, seed).test.items.tolist()) for seed in (0, 0, 1)]
    assert held[0] == held[1]
    assert len(held[0] & held[2]) < 0.3 * len(held[0])


def test_items_of_one_label_are_on_one_side(movielens: MovieLens) -> None:
    inter = movielens.interactions
    label = [f"family {item % 300}" for item in range(inter.n_items)]
    split = cold_item_split(inter, 0.2, seed=1, together=label)
    train, validation, test = ({int(i) % 300 for i in part.items} for part in parts(split))
    assert len(test) == len(validation) == 60
    assert not train & test
    assert not train & validation
    assert not validation & test
    # A label of its own for each item is no label.
    alone = cold_item_split(inter, 0.2, seed=1, together=range(inter.n_items))
    assert torch.equal(alone.test.items, cold_item_split(inter, 0.2, seed=1).test.items)
    with pytest.raises(ValueError, match=f"a label for each of {inter.n_items} items, got 3"):
        cold_item_split(inter, together=["a", "b", "c"])
    with pytest.raises(ValueError, match="2 labels of items with events are too few"):
        cold_item_split(inter, together=["a", "b"] * (inter.n_items // 2))


@pytest.mark.parametrize("fractions", [(0.8, 0.1, 0.2), (1.0, 0.0, 0.0), (0.0, 0.5, 0.5), (0.9, -0.1, 0.2)])
def test_fractions_that_make_no_sense(small: Interactions, fractions: tuple[float, float, float]) -> None:
    for cut in (temporal_split, random_split):
        with pytest.raises(ValueError, match="sum to 1"):
            cut(small, fractions)


def test_too_few_to_split(small: Interactions) -> None:
    with pytest.raises(ValueError, match="2 events are too few"):
        random_split(small[[0, 1]])
    for fraction in (0.0, 0.5, -0.1, 1.0):
        with pytest.raises(ValueError, match=r"between 0 and 0\.5"):
            cold_item_split(small, fraction)
    with pytest.raises(ValueError, match="2 items with events are too few"):
        cold_item_split(small[[0, 1]])


# ---------------------------------------------------------------------- on real data


def test_movielens_splits(movielens: MovieLens) -> None:
    positives = movielens.interactions.positives(4.0)

    def users(part: Interactions) -> int:
        return int((part.user_counts() > 0).sum())

    last = leave_last_out(positives)
    assert [len(part) for part in parts(last)] == [51_977, 1_636, 1_762]
    assert [users(part) for part in parts(last)] == [942, 937, 941]
    fifth = leave_last_out(positives, 0.2)
    assert [len(part) for part in parts(fifth)] == [31_012, 12_049, 12_314]
    assert [users(part) for part in parts(fifth)] == [942, 935, 941]
    cut = leave_last_out(positives, ties=positives.items)
    assert [len(part) for part in parts(cut)] == [53_491, 942, 942]
