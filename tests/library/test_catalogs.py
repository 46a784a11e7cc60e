import io
import re

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from recsys_lib.data import Interactions, ids_at
from recsys_lib.data.catalogs import difference_of_ids

# ---------------------------------------------------------------------- from indices to ids

CATALOGS = {
    "int": pd.Index([30, 10, 20]),
    "text": pd.Index(["c", "a", "b"]),
    "objects": pd.Index([(1, "x"), (2, "y"), (0, "z")], tupleize_cols=False),
    "Arrow": pd.Index(["c", "a", "b"], dtype="string[pyarrow]"),
    "nullable": pd.Index([30, 10, 20], dtype="Int64"),
    "dates": pd.DatetimeIndex(["2020-01-01", "2021-01-01", "2019-01-01"], tz="UTC"),
    "range": pd.RangeIndex(3),
}


@pytest.mark.parametrize("catalog", CATALOGS.values(), ids=CATALOGS)
@given(
    indices=st.lists(st.integers(-1, 2), max_size=12),
    shape=st.sampled_from([(-1,), (1, -1), (-1, 1), (1, -1, 1)]),
)
@settings(max_examples=25, deadline=None)
def test_ids_stand_where_their_indices_stood(
    catalog: pd.Index, indices: list[int], shape: tuple[int, ...]
) -> None:
    tensor = torch.tensor(indices, dtype=torch.int64).reshape(shape if indices else (0,))
    ids = ids_at(catalog, tensor)
    assert ids.shape == tuple(tensor.shape)
    expected = [None if i == -1 else catalog[i] for i in indices]
    assert all(
        (a is None and b is None) or a == b for a, b in zip(ids.ravel().tolist(), expected, strict=True)
    ) or [pd.Timestamp(i) for i in ids.ravel()] == [pd.Timestamp(i) for i in expected]
    assert ids_at(catalog, indices).ravel().tolist() == ids.ravel().tolist()
    assert ids_at(catalog, tensor.numpy()).tolist() == ids.tolist()
    if -1 not in indices and indices:
        assert ids.dtype == catalog.to_numpy().dtype


def test_padding_is_never_an_item(small: Interactions) -> None:
    items = torch.tensor([[4, 0], [1, -1]])
    assert small.item_ids_at(items).tolist() == [["e", "a"], ["b", None]]
    assert small.user_ids_at(torch.tensor([3, -1])).tolist() == ["dan", None]
    assert small.user_ids_at(2) == "cat"
    assert small.user_ids_at(torch.tensor(-1)) is None
    assert small.item_ids_at([]).tolist() == []
    assert small.item_ids_at(torch.zeros(2, 0, dtype=torch.int64)).shape == (2, 0)
    for bad, role in ((5, "item 5"), (-2, "item -2")):
        with pytest.raises(IndexError, match=f"^{role} is out of range for 5 items"):
            small.item_ids_at(torch.tensor([0, bad]))
    with pytest.raises(IndexError, match="user 4 is out of range for 4 users"):
        small.user_ids_at([4])
    for wrong in (torch.tensor([True]), torch.tensor([1.0]), [0.5], ["a"], [None]):
        with pytest.raises(TypeError, match="the indices of items must be integers"):
            small.item_ids_at(wrong)


@given(st.lists(st.integers(0, 4), max_size=8))
@settings(max_examples=20, deadline=None)
def test_there_and_back(indices: list[int]) -> None:
    catalog = ["007", "7", "07", "", "x"]
    frame = pd.DataFrame({"user_id": 1, "item_id": catalog})
    inter = Interactions.from_frame(frame, item_ids=catalog)
    assert inter.item_index(inter.item_ids_at(indices)).tolist() == indices


# ---------------------------------------------------------------------- a shop's export

EXPORT = """customer,sku,qty,day
00042,0007,1,2020-04-07
00042,07,1,2020-04-08
0042,7,2,2020-04-09
"""
RANGE = """sku,title
7,Seven
07,Zero seven
007,Never bought
0007,Three zeros
"""


def test_leading_zeros_survive_exactly_and_what_was_never_bought_is_in_the_catalog() -> None:
    frame = pd.read_csv(io.StringIO(EXPORT), dtype=str)
    catalog = pd.read_csv(io.StringIO(RANGE), dtype=str)
    inter = Interactions.from_frame(frame, "customer", "sku", timestamp="day", item_ids=catalog["sku"])
    assert inter.n_items == 4
    assert inter.item_ids.tolist() == ["7", "07", "007", "0007"]
    assert inter.user_ids.tolist() == ["00042", "0042"]
    assert inter.item_counts().tolist() == [1, 1, 0, 1]
    back = inter.to_frame()
    assert back["user_id"].tolist() == ["00042", "00042", "0042"]
    assert back["item_id"].tolist() == ["0007", "07", "7"]
    assert catalog["title"].iloc[inter.item_index("007")].tolist() == ["Never bought"]
    assert inter.item_ids_at(torch.tensor([[2, -1]])).tolist() == [["007", None]]


def test_a_catalog_read_otherwise_than_the_events_is_named_as_the_cause() -> None:
    frame = pd.read_csv(io.StringIO(EXPORT), dtype=str)
    numbers = pd.read_csv(io.StringIO("sku\n8\n9\n"))["sku"]
    words = (
        r'column "sku", row 0: the id \'0007\' is not in item_ids, which holds ids of type integer and not '
        "string; read both alike, as text with dtype=str"
    )
    with pytest.raises(KeyError) as caught:
        Interactions.from_frame(frame, "customer", "sku", item_ids=numbers)
    assert re.search(words, caught.value.args[0])
    inter = Interactions.from_frame(frame, "customer", "sku")
    with pytest.raises(KeyError, match="unknown item id 7, which holds") as caught:
        inter.item_index([7])
    assert "type string and not integer" in caught.value.args[0]
    with pytest.raises(KeyError) as caught:
        Interactions.from_frame(frame, "customer", "sku", item_ids=["07"])
    assert caught.value.args[0] == "column \"sku\", row 0: the id '0007' is not in item_ids"


def test_catalogs_that_are_none() -> None:
    frame = pd.DataFrame({"user_id": [1, 2], "item_id": ["a", "b"]})

    def read(item_ids: object) -> Interactions:
        return Interactions.from_frame(frame, item_ids=item_ids)

    with pytest.raises(ValueError, match=r"item_ids holds 'a' more than once; drop the repeats.*drop_dup"):
        read(["a", "b", "a"])
    with pytest.raises(ValueError, match="item_ids holds a missing id, at position 1"):
        read(pd.Series(["a", None, "b"]))
    with pytest.raises(TypeError, match=r"item_ids must be the ids alone.*catalog\[\"item_id\"\]"):
        read(pd.DataFrame({"sku": ["a", "b"]}))
    for wrong, name in (
        ("ab", "str"),
        ({"a", "b"}, "set"),
        ({"a": 0, "b": 1}, "dict"),
        (5, "int"),
        (np.array([["a", "b"]]), "ndarray"),
        (Interactions.from_frame(frame), "Interactions"),
    ):
        with pytest.raises(
            TypeError, match=f"item_ids must be ids in the order of their indices.*got {name}"
        ):
            read(wrong)


@pytest.mark.parametrize(
    "catalog",
    [
        pd.Series(["b", "c", "a"], name="sku", index=[5, 5, 5]),
        pd.Series(["b", "c", "a"], dtype="category"),
        pd.Series(["b", "c", "a"], dtype="string[pyarrow]"),
        pd.Index(["b", "c", "a"]),
        np.array(["b", "c", "a"]),
        np.array(["b", "c", "a"], dtype=object),
        ("b", "c", "a"),
        (letter for letter in "bca"),
        dict.fromkeys("bca").keys() and list("bca"),
    ],
    ids=lambda catalog: type(catalog).__name__,
)
def test_catalogs_of_any_kind(catalog: object) -> None:
    frame = pd.DataFrame({"user_id": [1, 2], "item_id": ["a", "b"]})
    inter = Interactions.from_frame(frame, item_ids=catalog)
    assert inter.items.tolist() == [2, 0]
    assert inter.item_ids_at([0, 1, 2]).tolist() == ["b", "c", "a"]
    assert not isinstance(inter.item_ids, pd.CategoricalIndex)
    numbers = Interactions.from_frame(frame.assign(item_id=[7, 8]), item_ids=torch.tensor([8, 9, 7]))
    assert numbers.items.tolist() == [2, 0]


@given(
    st.lists(st.sampled_from("abcd"), unique=True, max_size=4),
    st.lists(st.sampled_from("abcd"), unique=True, max_size=4),
)
@settings(max_examples=60, deadline=None)
def test_a_difference_is_found_exactly_where_there_is_one(one: list[str], other: list[str]) -> None:
    words = difference_of_ids(pd.Index(one, dtype=object), pd.Index(other, dtype=object), "item")
    assert bool(words) == (one != other)
    if words:
        place = int(re.search(r"item (\d+) is", words)[1])
        assert one[:place] == other[:place]
        assert one[place : place + 1] != other[place : place + 1]
        assert ("another order" in words) == (sorted(one) == sorted(other))
