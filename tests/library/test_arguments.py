"""What callers pass in: what is taken, as what, and how the rest is refused."""

import numpy as np
import pandas as pd
import pytest
import torch

from recsys_lib.arguments import integer_indices, refuse_not_finite, whole_number


@pytest.mark.parametrize("value", [3, np.int64(3), np.uint8(3), np.array([3])[0]])
def test_whole_numbers_become_pythons(value: object) -> None:
    found = whole_number(value, "k", at_least=3)
    assert (found, type(found)) == (3, int)


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (2.0, r"2\.0"),
        (True, "True"),
        (np.True_, "True"),
        (np.float64(2), r"2\.0"),
        (None, "None"),
        ("2", "'2'"),
        (torch.tensor(2), "tensor"),
    ],
)
def test_other_than_whole_numbers_are_refused(value: object, shown: str) -> None:
    with pytest.raises(TypeError, match=rf"^k must be a whole number, got .*{shown}"):
        whole_number(value, "k")


def test_a_whole_number_out_of_range_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^k must be at least 1, got 0$"):
        whole_number(0, "k", at_least=1)


@pytest.mark.parametrize(
    "values",
    [
        [2, 0],
        (2, 0),
        range(2, -1, -2),
        [np.int32(2), 0],
        np.array([2, 0], dtype=np.uint8),
        np.array([0, 2])[::-1],
        pd.Series([2, 0], index=[7, 8]),
        pd.Index([2, 0]),
        torch.tensor([2, 0], dtype=torch.int32),
    ],
    ids=lambda values: type(values).__name__,
)
def test_indices_become_an_int64_tensor(values: object) -> None:
    with torch.device("meta"):  # nothing is made on the default device
        found = integer_indices(values, "users")
    assert found.tolist() == [2, 0]
    assert found.dtype == torch.int64


@pytest.mark.parametrize("values", [[], (), np.zeros(0), torch.zeros(0)])
def test_no_indices_at_all_are_fine(values: object) -> None:
    found = integer_indices(values, "users")
    assert (found.shape, found.dtype) == ((0,), torch.int64)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([True, False], r"got a boolean mask; pass mask\.nonzero\(\)"),
        (np.array([True, False]), "got a boolean mask"),
        (torch.tensor([True, False]), "got a boolean mask"),
        (torch.zeros(0, dtype=torch.bool), "got a boolean mask"),
        (pd.Series([True, False]), "got a boolean mask"),
        ([1, 1.9], "got float64"),
        (np.array([1.0]), "got float64"),
        (torch.tensor([1.9]), "got float32"),
        (torch.tensor([1j]), "got complex64"),
        (["a"], "got <U1"),
        ([[1, 2], [3]], "a list of whole numbers \\("),
        ("12", "an array of whole numbers, got str"),
        (3, "an array of whole numbers, got int"),
        (None, "an array of whole numbers, got NoneType"),
        ({1, 2}, "an array of whole numbers, got set"),
    ],
)
def test_other_than_indices_are_refused(values: object, message: str) -> None:
    with pytest.raises(TypeError, match=rf"^users must be .*{message}"):
        integer_indices(values, "users")


@pytest.mark.parametrize("values", [[[1], [2]], torch.tensor(3), np.zeros((2, 2), dtype=np.int64)])
def test_indices_are_one_dimensional(values: object) -> None:
    with pytest.raises(ValueError, match=r"^users must be one-dimensional, got shape"):
        integer_indices(values, "users")


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    ("hole", "name"), [(torch.nan, "NaN"), (torch.inf, "infinity"), (-torch.inf, "infinity")]
)
def test_the_first_row_with_a_hole_is_named(dtype: torch.dtype, hole: float, name: str) -> None:
    x = torch.ones(4, 3, dtype=dtype, requires_grad=True)
    with torch.no_grad():
        x[2, 1] = x[3, 0] = hole
    with pytest.raises(ValueError, match=f"^item 2 of features holds {name}"):
        refuse_not_finite(x, "features", "item")


def test_finite_rows_pass_also_where_their_sum_overflows() -> None:
    for x in (torch.full((2, 3), 3e38), torch.full((2, 9), 6e4, dtype=torch.float16), torch.zeros(0, 3)):
        refuse_not_finite(x, "x")
    refuse_not_finite(torch.tensor([[1, 2]]), "x")
    refuse_not_finite(torch.empty(2, 3, device="meta"), "x")
    # Both infinities together have no sum either.
    with pytest.raises(ValueError, match="row 0 of x holds infinity"):
        refuse_not_finite(torch.tensor([[torch.inf, -torch.inf]]), "x")
