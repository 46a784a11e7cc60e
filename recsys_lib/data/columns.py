"""Columns of a data frame: found by name, brought to plain values, and named in errors cell by cell."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

__all__ = ["column_of", "first", "named", "plain", "show", "where"]


def column_of(frame: pd.DataFrame, name: Hashable, role: str) -> pd.Series:
    """The column of that name, with plain values.

    Args:
        frame: The frame.
        name: The column's name: a string, a number, or whatever the frame calls it.
        role: What the column is for, in words for the error.

    Raises:
        KeyError: There is no such column; the message lists those that there are.
        ValueError: There are several.
    """
    if name not in frame.columns:
        raise KeyError(f"the frame has no {role} column {named(name)}; its columns are {list(frame.columns)}")
    column: Any = frame[name]
    if not isinstance(column, pd.Series):
        raise ValueError(f"the frame has several columns {named(name)}")
    return plain(column)


def plain(column: pd.Series) -> pd.Series:
    """The column with its values in place of codes for them: categories, and the dictionaries of Arrow."""
    dtype = column.dtype
    if isinstance(dtype, pd.CategoricalDtype):
        values = dtype.categories.dtype
        # Integers have no room for a missing value.
        return column.astype(object if values.kind in "iub" and column.hasnans else values)
    if isinstance(dtype, pd.ArrowDtype) and pa.types.is_dictionary(dtype.pyarrow_dtype):
        return column.astype(pd.ArrowDtype(dtype.pyarrow_dtype.value_type))
    return column


def named(name: Hashable) -> str:
    """A column's name as it stands in an error: "rating", or 2 where it is a number."""
    return f'"{name}"' if isinstance(name, str) else show(name)


def where(column: pd.Series, position: int) -> str:
    """Words that lead the reader to a cell: its column, its row and, where it differs, its label."""
    label = column.index[position]
    at = f"column {named(column.name)}, row {position}"
    return at if label == position else f"{at} (index {show(label)})"


def show(value: object) -> str:
    """The value as one would type it: 7, not np.int64(7)."""
    return repr(value.item() if isinstance(value, np.generic) else value)


def first(mask: np.ndarray) -> int:
    """Position of the first True."""
    return int(np.flatnonzero(mask)[0])
