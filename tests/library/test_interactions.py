import datetime as dt
import pickle
import re
import warnings
from collections import Counter
from decimal import Decimal
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse

from recsys_lib.data import Interactions, MovieLens, check_same_catalog, merge

FIELDS = ("users", "items", "ratings", "timestamps")


def same(a: Interactions, b: Interactions, *, rows: bool = False) -> bool:
    """Equal in everything that means something; in ``rows`` too where asked."""
    fields = (*FIELDS, "rows") if rows else FIELDS
    return all(
        torch.equal(getattr(a, name).nan_to_num(nan=-1), getattr(b, name).nan_to_num(nan=-1))
        for name in fields
    ) and (a.user_ids.equals(b.user_ids) and a.item_ids.equals(b.item_ids))


@st.composite
def frames(draw: st.DrawFn, max_size: int = 40) -> pd.DataFrame:
    """Events of few users on few items at few times: ties and repeats abound."""
    ids = st.sampled_from(["u1", "u10", "u2", "é", "Z"])
    event = st.tuples(
        ids, st.integers(-3, 4), st.sampled_from([float("nan"), 1.0, 2.5, 5.0, -0.0, 0.0]), st.integers(-2, 3)
    )
    events = draw(st.lists(event, min_size=1, max_size=max_size))
    return pd.DataFrame(events, columns=["user_id", "item_id", "rating", "timestamp"])


# ---------------------------------------------------------------------- meaning


def test_canonical_order_by_hand() -> None:
    frame = pd.DataFrame(
        {
            "user_id": ["b", "a", "a", "a", "b"],
            "item_id": [7, 9, 7, 7, 9],
            "rating": [1.0, 2.0, 5.0, np.nan, 4.0],
            "timestamp": [100, 50, 50, 50, 99],
        }
    )
    inter = Interactions.from_frame(frame)
    assert inter.users.tolist() == [0, 0, 0, 1, 1]
    assert inter.items.tolist() == [0, 0, 1, 1, 0]
    assert inter.ratings.isnan().tolist() == [True, False, False, False, False]
    assert inter.ratings[1:].tolist() == [5, 2, 4, 1]
    assert inter.timestamps.tolist() == [50, 50, 50, 99, 100]
    assert inter.rows.tolist() == [3, 2, 1, 4, 0]
    assert (inter.n_users, inter.n_items, len(inter)) == (2, 2, 5)
    assert list(inter.user_ids) == ["a", "b"]
    assert list(inter.item_ids) == [7, 9]
    assert [t.dtype for t in (inter.users, inter.items, inter.timestamps, inter.rows)] == [torch.int64] * 4
    assert inter.ratings.dtype == torch.float32


@given(frames(), st.randoms(use_true_random=False))
@settings(max_examples=60, deadline=None)
def test_the_order_of_rows_does_not_matter(frame: pd.DataFrame, rng: object) -> None:
    order = list(range(len(frame)))
    rng.shuffle(order)
    shuffled = frame.iloc[order]
    a, b = Interactions.from_frame(frame), Interactions.from_frame(shuffled)
    assert same(a, b)
    for inter, source in ((a, frame), (b, shuffled)):  # rows lead back to the frame, every row once
        assert sorted(inter.rows.tolist()) == list(range(len(frame)))
        rows = inter.rows.numpy()
        assert list(inter.user_ids[inter.users.numpy()]) == source["user_id"].iloc[rows].tolist()
        assert inter.timestamps.tolist() == source["timestamp"].iloc[rows].tolist()


@given(frames(), st.sampled_from(["keep", "first", "last"]))
@settings(max_examples=40, deadline=None)
def test_a_frame_goes_in_and_out_unchanged(frame: pd.DataFrame, duplicates: str) -> None:
    inter = Interactions.from_frame(frame, duplicates=duplicates)
    again = Interactions.from_frame(inter.to_frame(), user_ids=inter.user_ids, item_ids=inter.item_ids)
    assert same(inter, again)


@given(frames())
@settings(max_examples=40, deadline=None)
def test_views_agree_with_plain_counting(frame: pd.DataFrame) -> None:
    inter = Interactions.from_frame(frame)
    sets: dict[int, set[int]] = {u: set() for u in range(inter.n_users)}
    lists: dict[int, list[int]] = {u: [] for u in range(inter.n_users)}
    for u, i in zip(inter.users.tolist(), inter.items.tolist(), strict=True):
        sets[u].add(i)
        lists[u].append(i)
    crow, items = inter.csr()
    assert [items[crow[u] : crow[u + 1]].tolist() for u in sets] == [sorted(sets[u]) for u in sets]
    assert [h.tolist() for h in inter.histories()] == list(lists.values())
    assert inter.user_counts().tolist() == [len(h) for h in lists.values()]
    counts = Counter(i for items_ in sets.values() for i in items_)
    assert inter.item_counts().tolist() == [counts[i] for i in range(inter.n_items)]
    dense = torch.zeros(inter.n_users, inter.n_items)
    weights = torch.arange(1.0, len(inter) + 1)
    dense.index_put_((inter.users, inter.items), weights, accumulate=True)
    assert torch.equal(inter.matrix(weights).to_dense(), dense)
    assert torch.equal(inter.matrix().to_dense(), (dense > 0).float())


def test_matrix_of_ratings_sums_repeats_and_refuses_gaps(small: Interactions) -> None:
    given_only = small[~small.ratings.isnan()]
    matrix = given_only.matrix("ratings")
    assert matrix.layout == torch.sparse_csr
    assert matrix.shape == (4, 5)
    assert matrix.to_dense()[0].tolist() == [5, 4, 2, 5, 0]
    twice = Interactions.from_frame(pd.DataFrame({"user_id": [1, 1], "item_id": [1, 1]}))
    assert twice.matrix("ratings").to_dense().tolist() == [[2]]
    assert twice.matrix().to_dense().tolist() == [[1]]
    with pytest.raises(ValueError, match="1 of 11 events have no rating"):
        small.matrix("ratings")
    with pytest.raises(ValueError, match=r"shape \(11,\), got \(3,\)"):
        small.matrix(torch.ones(3))
    with pytest.raises(ValueError, match="binary"):
        small.matrix("count")


def test_positives_never_take_a_missing_rating_and_say_how_many_there_are(small: Interactions) -> None:
    words = "1 of 11 events have no rating and are left out"
    with pytest.warns(UserWarning, match=words) as caught:
        positives = small.positives(4.0)
    assert caught[0].filename == __file__
    assert len(positives) == 7
    assert (positives.n_users, positives.n_items) == (4, 5)
    assert positives.ratings.min() == 4
    with pytest.warns(UserWarning, match=words):
        assert len(small.positives(-1e30)) == 10
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(small.positives(None)) == 11
        assert len(positives.positives()) == 7


def test_a_threshold_that_no_rating_can_reach_is_refused_with_the_reason(small: Interactions) -> None:
    with pytest.raises(
        ValueError, match=r"rating of 9 or more: they go from 1 to 5; positives\(None\) takes"
    ):
        small.positives(9)
    bare = pd.DataFrame({"user_id": [1, 1, 2], "item_id": [1, 2, 1]})
    with pytest.raises(ValueError, match="of 4 or more: they are all 1, as without a rating column"):
        Interactions.from_frame(bare).positives()
    shares = Interactions.from_frame(bare.assign(rating=[0.25, 0.5, 1.0]))
    with pytest.raises(ValueError, match=r"go from 0\.25 to 1; "):
        shares.positives(4.0)
    with pytest.raises(ValueError, match="no event has a rating, so none can be positive"):
        Interactions.from_frame(bare.assign(rating=np.nan)).positives(-1)
    for nothing in (float("nan"), True, "4"):
        with pytest.raises(ValueError, match="min_rating must be a number or None"):
            small.positives(nothing)


def test_a_part_without_positives_is_empty_and_silent_where_the_whole_has_some(small: Interactions) -> None:
    low = small.ratings < 4
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        parts = (small[low], small[low].to("cpu"), merge(small[low], small[[]]), pickle_copy(small[low]))
        for part in parts:
            assert len(part) == 3
            assert len(part.positives()) == 0
        assert len(small[[]].positives()) == 0
        assert len(small[small.ratings.isnan()][[]].positives()) == 0
    for part in (small[low], merge(small[low], small[low])):
        with pytest.raises(ValueError, match="they go from 1 to 5"):
            part.positives(9)


def test_a_threshold_is_compared_in_the_precision_of_the_ratings() -> None:
    frame = pd.DataFrame({"user_id": [1, 2], "item_id": 1, "rating": [4.1, 0.1]})
    assert len(Interactions.from_frame(frame).positives(4.1)) == 1


def pickle_copy(inter: Interactions) -> Interactions:
    return pickle.loads(pickle.dumps(inter))


def test_without_ratings_and_timestamps_every_event_counts_one() -> None:
    frame = pd.DataFrame(
        {"who": [1, 1, 2], "what": ["x", "y", "x"], "rating": [9, 9, 9], "timestamp": [3, 2, 1]}
    )
    inter = Interactions.from_frame(frame, user="who", item="what", rating=None, timestamp=None)
    assert inter.ratings.tolist() == [1, 1, 1]
    assert inter.timestamps.tolist() == [0, 0, 0]
    bare = Interactions.from_frame(frame[["who", "what"]], user="who", item="what")
    assert same(inter, bare)
    assert Interactions.from_frame(frame, user="who", item="what").ratings.tolist() == [9, 9, 9]


def test_the_frame_is_left_alone() -> None:
    frame = pd.DataFrame(
        {"user_id": [2, 1], "item_id": ["x", "y"], "rating": [1, 2], "timestamp": ["2020-01-01"] * 2}
    )
    before = frame.copy(deep=True)
    Interactions.from_frame(frame)
    pd.testing.assert_frame_equal(frame, before)


# ---------------------------------------------------------------------- ids


@pytest.mark.parametrize(
    "ids",
    [
        [30, 4, 30],
        ["b", "a", "b"],
        pd.array([30, 4, 30], dtype="Int64"),
        pd.array([30, 4, 30], dtype="int8"),
        pd.Series(["b", "a", "b"], dtype="string"),
        pd.Series(["b", "a", "b"], dtype=object),
        pd.Categorical(["b", "a", "b"], categories=["c", "b", "a"]),
        pd.to_datetime(["2020-02-02", "2020-01-01", "2020-02-02"]),
        [1.5, 0.5, 1.5],
        pd.Series([np.int64(3), 2, np.int32(3)], dtype=object),
        pd.Series([(2, "x"), (1, "y"), (2, "x")]),
        [b"b", b"a", b"b"],
    ],
    ids=lambda ids: str(getattr(ids, "dtype", type(ids[0]).__name__)),
)
def test_ids_of_any_one_sortable_type(ids: object) -> None:
    frame = pd.DataFrame({"user_id": ids, "item_id": [1, 2, 3]})
    inter = Interactions.from_frame(frame)
    assert inter.n_users == 2  # only those that occur, sorted
    assert inter.users.tolist() == [0, 1, 1]
    assert inter.rows.tolist() == [1, 0, 2]
    first = frame["user_id"].iloc[0]
    assert inter.user_ids[1] == first
    assert inter.user_index([first]).tolist() == [1]


def test_looking_ids_up(small: Interactions) -> None:
    assert small.user_index(["cat", "ann"]).tolist() == [2, 0]
    assert small.item_index("e").tolist() == [4]
    assert small.item_index([]).tolist() == []
    with pytest.raises(KeyError, match="unknown user id 'eve'"):
        small.user_index(["ann", "eve"])
    numbers = Interactions.from_frame(pd.DataFrame({"user_id": [10, 20], "item_id": [7, 8]}))
    assert numbers.user_index(torch.tensor([20, 10])).tolist() == [1, 0]
    assert numbers.item_index(8).tolist() == [1]
    with pytest.raises(KeyError, match="unknown item id 9"):
        numbers.item_index(np.array([7, 9]))
    with pytest.raises(KeyError, match="unknown item id '7'"):
        numbers.item_index("7")


def test_a_catalog_keeps_its_order_and_its_absent_ids() -> None:
    frame = pd.DataFrame({"user_id": ["x", "y"], "item_id": [1, 2]})
    inter = Interactions.from_frame(frame, user_ids=["y", "x", "z"], item_ids=pd.Index([3, 2, 1]))
    assert inter.user_ids.tolist() == ["y", "x", "z"]
    assert (inter.n_users, inter.n_items) == (3, 3)
    assert inter.users.tolist() == [0, 1]
    assert inter.items.tolist() == [1, 2]
    assert inter.user_counts().tolist() == [1, 1, 0]
    assert inter.item_counts().tolist() == [0, 1, 1]
    with pytest.raises(KeyError, match=r'column "item_id", row 1: the id 2 is not in item_ids'):
        Interactions.from_frame(frame, item_ids=[1])
    with pytest.raises(ValueError, match="user_ids holds 'x' more than once"):
        Interactions.from_frame(frame, user_ids=["x", "y", "x"])
    with pytest.raises(ValueError, match="user_ids holds a missing id"):
        Interactions.from_frame(frame, user_ids=["x", "y", None])


# ---------------------------------------------------------------------- times

SECOND = 874_724_710  # 1997-09-20 03:05:10 UTC


@pytest.mark.parametrize(
    "value",
    [
        SECOND,
        np.int32(SECOND),
        float(SECOND) + 0.75,
        "1997-09-20T03:05:10Z",
        "1997-09-20 03:05:10",
        "1997-09-20 05:05:10.9+02:00",
        "19970920T030510",
        "20 Sep 1997 03:05:10",
        "Sat, 20 Sep 1997 03:05:10 GMT",
        pd.Timestamp("1997-09-20 03:05:10"),
        pd.Timestamp("1997-09-20 03:05:10.999999999"),
        pd.Timestamp("1997-09-19 22:05:10", tz="America/Chicago"),
        np.datetime64("1997-09-20T03:05:10"),
        dt.datetime(1997, 9, 20, 3, 5, 10),  # a naive time is UTC
        dt.datetime(1997, 9, 20, 3, 5, 10, tzinfo=dt.UTC),
    ],
    ids=repr,
)
def test_one_moment_in_many_forms(value: object) -> None:
    frame = pd.DataFrame({"user_id": [1, 1], "item_id": [1, 2], "timestamp": [value, value]})
    assert Interactions.from_frame(frame).timestamps.tolist() == [SECOND, SECOND]
    as_objects = frame.astype({"timestamp": object})
    assert Interactions.from_frame(as_objects).timestamps.tolist() == [SECOND, SECOND]


def test_times_of_several_zones_and_before_1970() -> None:
    times = [
        "2020-01-01T00:00:00+02:00",
        "2019-12-31T22:00:00Z",
        "2019-12-31T22:00:00",
        "1969-12-31T23:59:59.5Z",
    ]
    frame = pd.DataFrame({"user_id": 1, "item_id": [1, 2, 3, 4], "timestamp": times})
    assert Interactions.from_frame(frame).timestamps.tolist() == [-1, 1577829600, 1577829600, 1577829600]
    floats = pd.DataFrame({"user_id": 1, "item_id": [1, 2], "timestamp": [-0.5, 0.5]})
    assert Interactions.from_frame(floats).timestamps.tolist() == [-1, 0]
    dates = pd.DataFrame(
        {"user_id": 1, "item_id": [1, 2], "timestamp": [dt.date(1970, 1, 2), dt.date(1969, 12, 31)]}
    )
    assert Interactions.from_frame(dates).timestamps.tolist() == [-86400, 86400]
    for unit in ("s", "ms", "us", "ns"):
        stamps = pd.Series(["1970-02-01T00:00:07"]).astype(f"datetime64[{unit}]")
        frame = pd.DataFrame({"user_id": [1], "item_id": [1], "timestamp": stamps})
        assert Interactions.from_frame(frame).timestamps.tolist() == [31 * 86400 + 7]
    periods = pd.DataFrame(
        {"user_id": [1], "item_id": [1], "timestamp": pd.period_range("1970-01-02", periods=1)}
    )
    assert Interactions.from_frame(periods).timestamps.tolist() == [86400]


# ---------------------------------------------------------------------- what makes no sense

GOOD = {"user_id": ["a", "b", "c"], "item_id": [1, 2, 3], "rating": [1.0, 2.0, 3.0], "timestamp": [1, 2, 3]}
REFUSED = {
    "missing user": ({"user_id": ["a", None, "c"]}, 'column "user_id", row 1: the id is missing'),
    "NaN item": ({"item_id": [1.0, 2.0, np.nan]}, 'column "item_id", row 2: the id is missing'),
    "infinite id": ({"item_id": [1.0, np.inf, 2.0]}, 'column "item_id", row 1: the id is infinite'),
    "mixed ids": (
        {"user_id": ["a", "b", 3]},
        'column "user_id", row 2: the ids are of mixed types, str .* int',
    ),
    "1 and True": ({"user_id": pd.Series([1, True, 2], dtype=object)}, "row 1: .*mixed types, int .* bool"),
    "unsortable ids": ({"user_id": [{1}, {2}, {3}]}, 'column "user_id": its ids cannot be put in order'),
    "complex ids": ({"user_id": pd.Series([1j, 2j, 3j], dtype=object)}, "cannot be put in order"),
    "infinite rating": (
        {"rating": [1.0, -np.inf, 2.0]},
        'column "rating", row 1: the rating -inf is not finite',
    ),
    "rating out of float32": ({"rating": [1.0, 2.0, 1e39]}, "row 2: the rating 1e[+]39 is not finite"),
    "text rating": ({"rating": ["5", "4", "3"]}, "column \"rating\", row 0: the rating '5' is not a number"),
    "rating of objects": ({"rating": [1.0, "good", 2.0]}, "column \"rating\", row 1: the rating 'good'"),
    "complex rating": ({"rating": [1.0, 2j, 3.0]}, 'column "rating", row 0: .* is not a number'),
    "date as rating": (
        {"rating": pd.to_datetime(["2020"] * 3)},
        'column "rating", row 0: .* is not a number',
    ),
    "NaT": ({"timestamp": pd.to_datetime(["2020", None, "2021"])}, 'column "timestamp", row 1: .* missing'),
    "NaN time": ({"timestamp": [1.0, np.nan, 3.0]}, 'column "timestamp", row 1: the timestamp is missing'),
    "infinite time": ({"timestamp": [1.0, np.inf, 3.0]}, 'column "timestamp", row 1: .* infinite'),
    "milliseconds": ({"timestamp": [1, 874_724_710_000, 3]}, "row 1: .*; divide milliseconds by 1000"),
    "boolean time": (
        {"timestamp": [True, False, True]},
        'column "timestamp", row 0: .* neither seconds nor a date',
    ),
    "duration": ({"timestamp": pd.to_timedelta([1, 2, 3], unit="s")}, "row 0: .* duration"),
    "ambiguous date": (
        {"timestamp": ["2020-01-01", "03/04/2020", "2020-01-01"]},
        "row 1: .*more than one way",
    ),
    "number as text": (
        {"timestamp": ["874724710", "874724711", "874724712"]},
        "row 0: .*number written as text",
    ),
    "not a date": (
        {"timestamp": ["2020-01-01", "soon in 2021", "2020-01-02"]},
        "row 1: .*cannot be read as a date",
    ),
    "now": ({"timestamp": ["2020-01-01", "2020-01-01", "now"]}, "row 2: .*'now' names no year"),
    "only a time": ({"timestamp": ["10:30", "2020-01-01", "2020-01-01"]}, "row 0: .*names no year"),
    "other objects": ({"timestamp": ["2020-01-01", {}, "2020-01-01"]}, "row 1: .*neither seconds nor a date"),
}


@pytest.mark.parametrize(("change", "words"), REFUSED.values(), ids=REFUSED)
def test_what_makes_no_sense_is_refused_by_column_and_row(change: dict, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Interactions.from_frame(pd.DataFrame({**GOOD, **change}))


def test_the_error_names_the_label_where_it_differs_from_the_row() -> None:
    frame = pd.DataFrame({**GOOD, "rating": [1, np.inf, 2]}, index=["r7", "r8", "r9"])
    with pytest.raises(ValueError, match=r'column "rating", row 1 \(index \'r8\'\)'):
        Interactions.from_frame(frame)


def test_frames_that_are_none() -> None:
    frame = pd.DataFrame(GOOD)
    with pytest.raises(KeyError, match=r'no user column "user".*user_id'):
        Interactions.from_frame(frame, user="user")
    with pytest.raises(KeyError, match='no rating column "stars"'):
        Interactions.from_frame(frame, rating="stars")
    with pytest.raises(KeyError, match='no timestamp column "timestamp"'):
        Interactions.from_frame(frame.drop(columns="timestamp"), timestamp="timestamp")
    with pytest.raises(ValueError, match="empty"):
        Interactions.from_frame(frame.iloc[:0])
    with pytest.raises(ValueError, match='several columns "rating"'):
        Interactions.from_frame(pd.concat([frame, frame[["rating"]]], axis=1))
    with pytest.raises(ValueError, match="duplicates must be"):
        Interactions.from_frame(frame, duplicates="drop")


@pytest.mark.parametrize(
    "ratings",
    [
        [1, None, 3],
        pd.array([1, None, 3], dtype="Int64"),
        pd.array([1, None, 3], dtype="Float32"),
        pd.Series([Decimal(1), None, 3.0], dtype=object),
        pd.Series([True, pd.NA, 3], dtype=object),
    ],
    ids=str,
)
def test_missing_ratings_stay_missing(ratings: object) -> None:
    inter = Interactions.from_frame(pd.DataFrame({**GOOD, "rating": ratings}))
    assert inter.ratings.isnan().tolist() == [False, True, False]
    assert inter.ratings[[0, 2]].tolist() == [1, 3]


def test_equal_ratings_have_equal_bits() -> None:
    odd_nan = np.array([0xFFC00001], dtype=np.uint32).view(np.float32)[0]
    frame = pd.DataFrame({"user_id": 1, "item_id": [1, 2, 3, 4], "rating": [-0.0, 0.0, odd_nan, np.nan]})
    bits = Interactions.from_frame(frame).ratings.view(torch.int32).tolist()
    assert bits[0] == bits[1]
    assert bits[2] == bits[3]


def test_duplicates() -> None:
    frame = pd.DataFrame(
        {
            "user_id": [1, 1, 1, 1, 2],
            "item_id": [5, 5, 5, 6, 5],
            "rating": [2.0, np.nan, 4.0, 1.0, 3.0],
            "timestamp": [20, 20, 10, 15, 5],
        }
    )
    for shuffled in (frame, frame.iloc[::-1], frame.iloc[[2, 4, 0, 3, 1]]):
        assert len(Interactions.from_frame(shuffled)) == 5
        first = Interactions.from_frame(shuffled, duplicates="first")
        last = Interactions.from_frame(shuffled, duplicates="last")
        assert first.to_frame()["rating"].tolist() == [4, 1, 3]
        assert last.to_frame()["rating"].tolist() == [1, 2, 3]
        with pytest.raises(ValueError, match="user 1 has several events with item 5"):
            Interactions.from_frame(shuffled, duplicates="error")
    assert len(Interactions.from_frame(frame.iloc[3:], duplicates="error")) == 2


# ---------------------------------------------------------------------- columns of other kinds


def test_columns_may_have_numbers_for_names() -> None:
    frame = pd.DataFrame([[7, "x", 4.0, 20], [3, "y", 5.0, 10]])
    inter = Interactions.from_frame(frame, user=0, item=1, rating=2, timestamp=3)
    assert inter.user_ids.tolist() == [3, 7]
    assert inter.ratings.tolist() == [5, 4]
    assert inter.timestamps.tolist() == [10, 20]
    assert Interactions.from_frame(frame, user=0, item=1).ratings.tolist() == [1, 1]
    with pytest.raises(KeyError, match=r"no rating column 9; its columns are \[0, 1, 2, 3\]"):
        Interactions.from_frame(frame, user=0, item=1, rating=9)
    with pytest.raises(ValueError, match="column 2, row 1: the rating inf is not finite"):
        Interactions.from_frame(frame.assign(**{}).replace({2: {5.0: np.inf}}), user=0, item=1, rating=2)
    nested = pd.DataFrame(
        [[7, "x"], [3, "y"]], columns=pd.MultiIndex.from_tuples([("who", "id"), ("what", "id")])
    )
    assert Interactions.from_frame(nested, user=("who", "id"), item=("what", "id")).n_users == 2


DICTIONARY = pd.ArrowDtype(pa.dictionary(pa.int32(), pa.string()))


def arrow(values: list[object], type_: object) -> pd.Series:
    return pd.Series(values, dtype=type_ if isinstance(type_, str) else pd.ArrowDtype(type_))


@pytest.mark.parametrize(
    "ids",
    [
        arrow(["b", "a", "b"], "string[pyarrow]"),
        arrow(["b", "a", "b"], pa.string()),
        arrow(["b", "a", "b"], pa.large_string()),
        arrow(["b", "a", "b"], DICTIONARY.pyarrow_dtype),
        arrow([2, 1, 2], pa.dictionary(pa.int8(), pa.int64())),
        arrow([2, 1, 2], "int64[pyarrow]"),
        arrow([2, 1, 2], "uint8[pyarrow]"),
        arrow([True, False, True], "bool[pyarrow]"),
        arrow([b"b", b"a", b"b"], pa.binary()),
        pd.Series(pd.Categorical([2, 1, 2])),
    ],
    ids=lambda ids: str(ids.dtype),
)
def test_ids_of_arrow_and_of_categories(ids: pd.Series) -> None:
    frame = pd.DataFrame({"user_id": ids, "item_id": ids})
    inter = Interactions.from_frame(frame)
    assert inter.users.tolist() == [0, 1, 1]
    assert inter.user_ids.tolist() == ids.tolist()[1::-1]
    assert inter.item_index(ids).tolist() == [1, 0, 1]
    assert inter.item_ids_at([1, 0, -1]).tolist() == [*ids.tolist()[:2], None]
    assert same(inter, Interactions.from_frame(inter.to_frame(), rating=None, timestamp=None))
    assert same(
        inter, Interactions.from_frame(frame, item_ids=inter.item_ids, user_ids=ids.drop_duplicates()[::-1])
    )
    gap = ids.astype(object).where([True, False, True], None)
    with pytest.raises(ValueError, match='column "user_id", row 1: the id is missing'):
        Interactions.from_frame(pd.DataFrame({"user_id": gap.astype(ids.dtype), "item_id": 1}))


def test_lists_are_no_ids() -> None:
    lists = arrow([["a"], ["b"], ["a"]], pa.list_(pa.string()))
    with pytest.raises(ValueError, match='column "user_id": its ids cannot be put in order'):
        Interactions.from_frame(pd.DataFrame({"user_id": lists, "item_id": 1}))


@pytest.mark.parametrize(
    "ratings",
    [
        arrow([1, None, 3], "int64[pyarrow]"),
        arrow([1, None, 3], "float[pyarrow]"),
        arrow([Decimal(1), None, Decimal(3)], pa.decimal128(5, 2)),
        arrow([1, None, 3], pa.dictionary(pa.int8(), pa.int64())),
        pd.Series(pd.Categorical([1, None, 3])),
        pd.Series(pd.Categorical([1.0, None, 3.0], ordered=True)),
    ],
    ids=lambda ratings: str(ratings.dtype),
)
def test_missing_ratings_of_arrow_and_of_categories_stay_missing(ratings: pd.Series) -> None:
    inter = Interactions.from_frame(pd.DataFrame({**GOOD, "rating": ratings}))
    assert inter.ratings.isnan().tolist() == [False, True, False]
    assert inter.ratings[[0, 2]].tolist() == [1, 3]


@pytest.mark.parametrize("kind", ["bool[pyarrow]", "boolean", object])
def test_booleans_rate_one_and_zero(kind: str) -> None:
    inter = Interactions.from_frame(
        pd.DataFrame({**GOOD, "rating": pd.Series([True, None, False], dtype=kind)})
    )
    assert inter.ratings[[0, 2]].tolist() == [1, 0]
    assert inter.ratings[1].isnan()


def test_categories_of_text_are_no_ratings() -> None:
    with pytest.raises(ValueError, match="row 0: the rating 'good' is not a number"):
        Interactions.from_frame(pd.DataFrame({**GOOD, "rating": pd.Categorical(["good", "bad", "good"])}))


# ---------------------------------------------------------------------- what is no frame


def code_in(message: str) -> str:
    """The statements that a message proposes."""
    return re.search(r"(coo = .*?\}\)|users, items = .*?\}\))", message)[1].replace("; ", "\n")


def test_matrices_and_tables_are_told_how_to_become_a_frame() -> None:
    dense = np.array([[0, 5, 0], [0, 0, 0], [3, 0, 4]])
    catalogs = {"user_ids": range(3), "item_ids": range(3)}
    expected = [(0, 1, 5.0), (2, 0, 3.0), (2, 2, 4.0)]
    matrices = [
        sparse.csr_matrix(dense),
        sparse.csc_array(dense),
        sparse.coo_matrix(dense),
        torch.tensor(dense).to_sparse(),
        torch.tensor(dense).to_sparse_csr(),
        dense,
    ]
    for matrix in matrices:
        with pytest.raises(TypeError, match="must be a pandas DataFrame, got") as caught:
            Interactions.from_frame(matrix)
        assert "to_pandas" not in str(caught.value)
        scope = {"pd": pd, "np": np, "matrix": matrix}
        exec(code_in(str(caught.value)), scope)
        inter = Interactions.from_frame(scope["frame"], **catalogs)
        assert (
            list(zip(inter.users.tolist(), inter.items.tolist(), inter.ratings.tolist(), strict=True))
            == expected
        )
        if matrix is not dense:
            assert "user_ids=range(matrix.shape[0])" in str(caught.value)

    class Lazy:
        def collect(self) -> None: ...

    for thing, words in (
        (pa.table({"user_id": [1]}), r"\.to_pandas\(\)$"),
        (Lazy(), r"\.collect\(\)\.to_pandas\(\)"),
        (pd.Series([1]), r"\.reset_index\(\)"),
        ("ratings.csv", r"pd\.read_csv"),
        (Path("ratings.csv"), r"pd\.read_csv"),
        (np.zeros(2, dtype=[("user_id", int)]), r"pd\.DataFrame\(array\)$"),
        (torch.zeros(2, 2), "one event a row"),
        ([(1, 2)], r"DataFrame, got list; make one of it with pd\.DataFrame"),
        ({"user_id": [1]}, r"got dict; make one of it with pd\.DataFrame"),
    ):
        with pytest.raises(TypeError, match=words):
            Interactions.from_frame(thing)


# ---------------------------------------------------------------------- parts


def test_parts_keep_ids_and_canonical_order(small: Interactions) -> None:
    mask = small.timestamps > 20
    part = small[mask]
    assert len(part) == int(mask.sum())
    assert (part.n_users, part.n_items) == (4, 5)
    assert part.user_ids is small.user_ids
    assert same(small[mask.numpy()], part, rows=True)
    backwards = mask.nonzero().squeeze(1).flip(0)
    assert same(small[backwards], part, rows=True)
    assert same(small[[-1, 0]], small[torch.tensor([0, 10])], rows=True)
    assert small[[3, 3]].rows.tolist() == [3, 3]
    assert len(small[[]]) == 0
    assert same(small[2:5], small[[2, 3, 4]], rows=True)
    assert small[torch.tensor([1], dtype=torch.int32)].rows.tolist() == [1]
    # the mask over the rows of the frame, as the documentation has it
    rows = torch.zeros(11, dtype=torch.bool)
    rows[7] = True
    assert small[rows[small.rows]].rows.tolist() == [7]


def test_indices_that_make_no_sense(small: Interactions) -> None:
    with pytest.raises(IndexError, match="mask has 3 values for 11 events"):
        small[torch.ones(3, dtype=torch.bool)]
    with pytest.raises(IndexError, match="out of range"):
        small[[11]]
    with pytest.raises(IndexError, match="out of range"):
        small[[-12]]
    with pytest.raises(IndexError, match="boolean mask or integers"):
        small[[0.5]]
    with pytest.raises(IndexError, match="1-D"):
        small[torch.zeros(2, 2, dtype=torch.long)]
    with pytest.raises(IndexError, match="user 4 is out of range"):
        small.histories([4])
    with pytest.raises(IndexError, match="user -1 is out of range"):
        small.histories(torch.tensor([-1]))
    for users in (torch.tensor([True, False, True, False]), [1.0], torch.tensor([1.9]), [True]):
        with pytest.raises(TypeError, match="users must be contiguous ids"):
            small.histories(users)


def test_views_of_a_part_are_its_own(small: Interactions) -> None:
    small.csr()
    small.histories()
    part = small[[0]]
    assert part.user_counts().tolist() == [1, 0, 0, 0]
    assert part.csr()[1].tolist() == [0]
    empty = small[[]]
    assert empty.matrix().to_dense().sum() == 0
    assert [len(h) for h in empty.histories()] == [0, 0, 0, 0]
    assert empty.item_counts().tolist() == [0] * 5
    assert [h.tolist() for h in small.histories([1, 0])] == [[0, 1, 3], [0, 1, 2, 3]]


@given(frames(), st.data())
@settings(max_examples=30, deadline=None)
def test_merging_the_parts_gives_the_whole(frame: pd.DataFrame, data: st.DataObject) -> None:
    inter = Interactions.from_frame(frame)
    mask = torch.tensor(data.draw(st.lists(st.booleans(), min_size=len(inter), max_size=len(inter))))
    assert same(merge(inter[mask], inter[~mask]), inter, rows=True)
    assert same(merge(inter[~mask], inter[mask]), inter, rows=True)


def test_merging_strangers_is_refused(small: Interactions) -> None:
    other = Interactions.from_frame(pd.DataFrame(GOOD))
    with pytest.raises(ValueError, match="merge: the two do not share their catalogs: 4 users against 3"):
        merge(small, other)


def test_a_series_as_index_is_refused_since_its_order_is_not_known(small: Interactions) -> None:
    frame = pd.DataFrame(
        {"user_id": [2, 1, 1], "item_id": [1, 2, 3], "rating": [5.0, 1.0, 4.0], "timestamp": [3, 2, 1]}
    )
    inter = Interactions.from_frame(frame)
    mask = frame["rating"] > 3
    with pytest.raises(TypeError, match=r"a Series .*inter\[mask\.to_numpy\(\)\[inter\.rows\]\]"):
        inter[mask]
    assert inter[mask.to_numpy()[inter.rows]].ratings.tolist() == [4, 5]  # what the message says
    ours = inter.to_frame()["rating"] > 3
    with pytest.raises(TypeError, match=r"inter\[mask\.to_numpy\(\)\] for one over .*to_frame"):
        inter[ours]
    assert inter[ours.to_numpy()].ratings.tolist() == [4, 5]
    for other in (frame.index[mask], mask.astype("boolean").array, frame[["rating"]], mask.to_dict(), {1}):
        with pytest.raises(TypeError, match="in the order of its frame"):
            inter[other]
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # pandas' arrays are read only
        assert inter[mask.to_numpy()].rows.tolist() == [2, 0]
        assert len(inter.histories(pd.Series([1, 0]).to_numpy())) == 2
    assert inter[mask.to_numpy()].rows.tolist() == [2, 0]  # an array is over the events: the first, the third
    assert inter[range(2)].rows.tolist() == inter[[0, 1]].rows.tolist()
    with pytest.raises(TypeError, match='"binary", "ratings" or a tensor, got Series'):
        inter.matrix(frame["rating"])


def test_catalogs_are_compared_by_their_ids(small: Interactions) -> None:
    frame = small.to_frame()

    def read(**catalogs: object) -> Interactions:
        return Interactions.from_frame(
            frame, **{"user_ids": small.user_ids, "item_ids": small.item_ids, **catalogs}
        )

    for same_ids in (small[[0]], small.positives(None), read(), read(item_ids=list("abcde"))):
        check_same_catalog(small, same_ids, "test")
        assert len(merge(small, same_ids)) == len(small) + len(same_ids)
    # as many users and items as in the first, but others
    for other, words in (
        (
            read(item_ids=list("abcdf")),
            "5 items each, but not the same, item 4 is 'e' in the first and 'f' in",
        ),
        (read(item_ids=list("bacde")), "the same items in another order, item 0 is 'a' in the first and 'b'"),
        (
            read(item_ids=list("abcdef")),
            "5 items against 6, item 5 is 'f' in the second and not in the other",
        ),
        (
            read(user_ids=["ann", "bob", "cat", "dan", "eve"]),
            "4 users against 5, user 4 is 'eve' in the second",
        ),
        (
            read(user_ids=["dan", "ann", "bob", "cat"], item_ids=list("eabcd")),
            "the same users in another order.*; the same items in another order",
        ),
    ):
        with pytest.raises(ValueError, match=f"^evaluate: the two do not share their catalogs: {words}"):
            check_same_catalog(small, other, "evaluate")
        with pytest.raises(ValueError, match=r"^merge: "):
            merge(other, small)


@pytest.mark.parametrize("kind", ["int64", "Int64", "int64[pyarrow]", "float64", "int8"])
def test_how_ids_are_stored_makes_no_other_catalog(kind: str) -> None:
    frame = pd.DataFrame({"user_id": [3, 1], "item_id": [7, 8]})
    check_same_catalog(Interactions.from_frame(frame), Interactions.from_frame(frame.astype(kind)), "test")
    with pytest.raises(ValueError, match="item 0 is 7 in the first and '7' in the second"):
        check_same_catalog(Interactions.from_frame(frame), Interactions.from_frame(frame.astype(str)), "test")


def test_tensors_that_do_not_belong_together(small: Interactions) -> None:
    fields = {
        name: getattr(small, name) for name in (*FIELDS, "rows", "n_users", "n_items", "user_ids", "item_ids")
    }
    with pytest.raises(ValueError, match="items must be a 1-D"):
        Interactions(**{**fields, "items": small.items[:3]})
    with pytest.raises(ValueError, match="ratings must be a 1-D"):
        Interactions(**{**fields, "ratings": small.ratings.double()})
    with pytest.raises(ValueError, match="n_users is 9"):
        Interactions(**{**fields, "n_users": 9})


def test_moving_to_a_device(small: Interactions) -> None:
    moved = small.to("meta")
    assert {getattr(moved, name).device.type for name in (*FIELDS, "rows")} == {"meta"}
    assert moved.n_users == 4
    assert "11 events" in repr(moved)


def test_repr(small: Interactions) -> None:
    assert repr(small) == (
        "Interactions(11 events, 4 users, 5 items, ratings 1 to 5, 1970-01-01 to 1970-01-01)"
    )
    assert repr(small[[0]]) == "Interactions(1 event, 4 users, 5 items)"
    assert repr(small[[]]) == "Interactions(0 events, 4 users, 5 items)"


def test_movielens_as_events(movielens: MovieLens) -> None:
    inter = movielens.interactions
    assert (len(inter), inter.n_users, inter.n_items) == (100_000, 943, 1_682)
    positives = inter.positives(4.0)
    assert len(positives) == 55_375
    assert int((positives.user_counts() > 0).sum()) == 942
    assert int((positives.item_counts() > 0).sum()) == 1_447
    assert repr(inter).endswith("ratings 1 to 5, 1997-09-20 to 1998-04-22)")
