"""What is known of users or items beside their numbers, as named fields of numbers."""

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

__all__ = ["Features", "field_table", "fields_of", "widths_of"]

Features = pd.DataFrame | Mapping[str, Tensor]
"""Fields by name: columns of a frame, see ``fields_of``, or (n, V) matrices."""


def fields_of(frame: pd.DataFrame) -> dict[str, Tensor]:
    """Makes fields of numbers from the columns of a frame, a row a user or an item.

    - numbers become one column, with mean 0 and standard deviation 1;
    - texts, categories and truth values one column a value, 1 where it is the row's;
    - lists of texts (genres) one column a value, 1 / n for each of the row's n values.

    What is missing is all zeros: it says nothing. Values are in ascending order, so that neither the order of
    rows nor that of columns matters. A number that is a code, such as a zip code, is better given as text.

    Args:
        frame: a row a user, or an item, in the order of their contiguous indices.

    Returns:
        Name to (n, V) float32 on the CPU.

    Raises:
        TypeError: something that is no frame, or a column that holds none of these.
        ValueError: a column that is missing everywhere, or a number that is infinite.
    """
    if not isinstance(frame, pd.DataFrame):
        raise TypeError(f"features must be a DataFrame or map names to matrices; got {type(frame).__name__}")
    return {str(name): _field(str(name), frame[name]) for name in frame.columns}


def _field(name: str, column: pd.Series) -> Tensor:
    there = column.notna().to_numpy()
    if not there.any():
        raise ValueError(f"features[{name!r}] is missing in every row; leave it out")
    if pd.api.types.is_numeric_dtype(column) and not pd.api.types.is_bool_dtype(column):
        known = column[there].to_numpy(dtype=np.float64)
        if not np.isfinite(known).all():
            raise ValueError(f"features[{name!r}] holds an infinite number")
        found = np.zeros((len(column), 1), dtype=np.float32)
        spread = known.std()
        found[there, 0] = (known - known.mean()) / (spread if spread > 0 else 1.0)
        return torch.from_numpy(found)
    listed = [tuple(value) if isinstance(value, tuple | list | set | frozenset) else (value,)
              for value in column[there]]  # fmt: skip
    try:
        values = sorted({value for row in listed for value in row})
        place = {value: number for number, value in enumerate(values)}
    except TypeError as error:
        raise TypeError(
            f"features[{name!r}] must hold numbers, texts, truth values or lists of texts ({error})"
        ) from error
    found = np.zeros((len(column), max(1, len(values))), dtype=np.float32)
    for row, its in zip(there.nonzero()[0], listed, strict=True):
        for value in its:
            found[row, place[value]] += 1 / len(its)
    return torch.from_numpy(found)


def field_table(features: Features, n: int, whose: str) -> tuple[Tensor, str]:
    """All fields side by side, in the order of their names.

    Args:
        features: of ``n`` users or items.
        n: how many there are.
        whose: ``"user"`` or ``"item"``, for messages.

    Returns:
        (n, V) float32 on the CPU, and the fields' widths by name, as JSON, which ``widths_of`` reads.

    Raises:
        TypeError: as ``fields_of``.
        ValueError: no field, another number of rows, or numbers that are not finite; and as ``fields_of``.
    """
    named: Mapping[str, Any] = features if isinstance(features, Mapping) else fields_of(features)
    if not named:
        raise ValueError(f"{whose}_features has no field; leave it out")
    fields = {name: torch.as_tensor(named[name]).detach().float().cpu() for name in sorted(named)}
    for name, field in fields.items():
        if field.ndim != 2 or len(field) != n or not field.shape[1]:
            raise ValueError(
                f"{whose}_features[{name!r}] must be ({n}, V), a row for each {whose}, got "
                f"{tuple(field.shape)}"
            )
        if not bool(field.isfinite().all()):
            row = int((~field.isfinite()).any(dim=1).nonzero()[0, 0])
            raise ValueError(f"{whose}_features[{name!r}] is not finite for {whose} {row}; 0 says nothing")
    table = torch.cat(list(fields.values()), dim=1)  # (n, V)
    return table, json.dumps({name: field.shape[1] for name, field in fields.items()})


def widths_of(fields: str | None) -> list[int]:
    """The widths that ``field_table`` wrote down, in order; none for None."""
    return [] if fields is None else [int(width) for width in json.loads(fields).values()]
