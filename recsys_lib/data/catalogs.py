"""Catalogs: the caller's ids in the order of the contiguous indices, and the ways between the two."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from recsys_lib.data.columns import first, named, plain, show, where

__all__ = ["difference_of_ids", "encode_ids", "ids_at", "positions_of"]


def encode_ids(column: pd.Series, catalog: Any, argument: str) -> tuple[np.ndarray, pd.Index]:
    """Contiguous indices of a column of ids, and the catalog they point into.

    Args:
        column: (E,) ids.
        catalog: The ids in the order of their indices, or ``None`` for the sorted ids of the column.
        argument: The name under which the caller gave the catalog.

    Returns:
        (E,) int64, and the catalog.

    Raises:
        TypeError: The catalog is no list of ids.
        ValueError: An id is missing, infinite or of another type than the rest, or the
            catalog holds one twice.
        KeyError: An id is not in the catalog.
    """
    missing = column.isna().to_numpy(dtype=bool)
    if missing.any():
        raise ValueError(f"{where(column, first(missing))}: the id is missing")
    if pd.api.types.is_float_dtype(column.dtype):
        infinite = np.isinf(column.to_numpy(dtype=np.float64))
        if infinite.any():
            raise ValueError(f"{where(column, first(infinite))}: the id is infinite")
    if column.dtype == object:
        _refuse_mixed_types(column)
    if catalog is None:
        try:
            known = pd.Index(column.unique(), tupleize_cols=False).sort_values()
        except (TypeError, NotImplementedError) as error:  # the latter from Arrow, of lists
            raise ValueError(
                f"column {named(column.name)}: its ids cannot be put in order ({error}); "
                "use integers or strings"
            ) from error
    else:
        known = _given_catalog(catalog, argument)
    given = pd.Index(column, tupleize_cols=False)
    codes = known.get_indexer(given).astype(np.int64, copy=False)  # (E,)
    unknown = codes < 0
    if unknown.any():
        at = first(unknown)
        raise KeyError(
            f"{where(column, at)}: the id {show(column.iloc[at])} is not in {argument}"
            + _other_kind(given, known, argument)
        )
    return codes, known


def positions_of(catalog: pd.Index, ids: Any, role: str) -> Tensor:
    """Contiguous indices (B,) int64, on the CPU, of one id or several.

    Raises:
        KeyError: An id is not in the catalog; the message names it.
    """
    if isinstance(ids, Tensor):
        ids = ids.cpu().numpy()
    alone = isinstance(ids, (str, bytes)) or np.ndim(ids) == 0
    wanted = pd.Index([ids] if alone else ids, tupleize_cols=False)
    codes = catalog.get_indexer(wanted)
    if (codes < 0).any():
        unknown = show(wanted[first(codes < 0)])
        raise KeyError(f"unknown {role} id {unknown}{_other_kind(wanted, catalog, 'the catalog')}")
    return torch.as_tensor(codes.astype(np.int64, copy=False), device="cpu")


def ids_at(catalog: pd.Index, indices: Tensor | np.ndarray | Sequence[int] | int, role: str = "item") -> Any:
    """The caller's ids that stand at contiguous indices.

    The way back from what a model returns: indexing the catalog itself would take -1, which pads a short
    row, for its last id.

    Args:
        catalog: (N,) ids.
        indices: Integers of any shape, ``-1 .. N - 1``; -1 is padding.
        role: What the ids are of, for the message.

    Returns:
        A NumPy array of the indices' shape. With padding it is one of objects, and ``None`` stands for it;
        otherwise it has the catalog's own type. For a single index, the id itself.

    Raises:
        TypeError: The indices are not integers.
        IndexError: An index is out of range.
    """
    places = indices.detach().cpu().numpy() if isinstance(indices, Tensor) else np.asarray(indices)
    if places.size == 0 and not isinstance(indices, (Tensor, np.ndarray)):
        places = places.astype(np.int64)  # an empty list has no integer type of its own
    if places.dtype.kind not in "iu":
        raise TypeError(f"the indices of {role}s must be integers, got {places.dtype}")
    wrong = (places < -1) | (places >= len(catalog))
    if wrong.any():
        raise IndexError(f"{role} {places[wrong][0]} is out of range for {len(catalog)} {role}s")
    if places.ndim == 0:
        return None if places == -1 else catalog[int(places)]
    padding = places == -1
    if not padding.any():
        return catalog.to_numpy()[places]
    ids = np.empty(places.shape, dtype=object)  # filled with None
    ids[~padding] = catalog.to_numpy(dtype=object)[places[~padding]]
    return ids


def difference_of_ids(one: pd.Index, other: pd.Index, role: str) -> str:
    """Words for how two catalogs differ, with an example; empty if they hold the same ids in the same order.

    Comparing an index with itself costs nothing. How the ids are stored does not matter.

    Args:
        one: Ids.
        other: Ids.
        role: What they are of: ``"user"`` or ``"item"``.
    """
    if one is other or one.equals(other):
        return ""
    ours, theirs = one.tolist(), other.tolist()
    if ours == theirs:
        return ""
    at = next((k for k, pair in enumerate(zip(ours, theirs, strict=False)) if pair[0] != pair[1]), None)
    if len(ours) != len(theirs):
        counts = f"{len(ours):,} {role}s against {len(theirs):,}"
    elif set(ours) == set(theirs):
        counts = f"the same {role}s in another order"
    else:
        counts = f"{len(ours):,} {role}s each, but not the same"
    if at is None:  # one is the beginning of the other
        at = min(len(ours), len(theirs))
        longer, which = (ours, "first") if len(ours) > at else (theirs, "second")
        return f"{counts}, {role} {at} is {show(longer[at])} in the {which} and not in the other"
    return f"{counts}, {role} {at} is {show(ours[at])} in the first and {show(theirs[at])} in the second"


# ---------------------------------------------------------------------- helpers


def _given_catalog(catalog: Any, argument: str) -> pd.Index:
    """The catalog as an index of distinct ids."""
    if isinstance(catalog, Tensor):
        catalog = catalog.detach().cpu().numpy()
    if isinstance(catalog, pd.DataFrame):
        raise TypeError(f'{argument} must be the ids alone: give one column of the frame, catalog["item_id"]')
    wanted = (
        f"{argument} must be ids in the order of their indices: a list, an array, a pandas Series or Index"
    )
    if isinstance(catalog, (str, bytes, Mapping, AbstractSet)) or hasattr(catalog, "item_ids"):
        raise TypeError(f"{wanted}; got {type(catalog).__name__}")
    if getattr(catalog, "ndim", 1) != 1:
        raise TypeError(f"{wanted}; got {type(catalog).__name__} of shape {tuple(catalog.shape)}")
    try:
        known = pd.Index(catalog, tupleize_cols=False)
    except (TypeError, ValueError) as error:
        raise TypeError(f"{wanted}; got {type(catalog).__name__} ({error})") from error
    if known.hasnans:
        raise ValueError(f"{argument} holds a missing id, at position {first(known.isna())}")
    twice = known.duplicated()
    if twice.any():
        raise ValueError(
            f"{argument} holds {show(known[twice][0])} more than once; "
            "drop the repeats, for example with .drop_duplicates()"
        )
    return pd.Index(plain(pd.Series(known)), tupleize_cols=False, name=known.name)


def _refuse_mixed_types(column: pd.Series) -> None:
    """Ids of several types have no order, and True == 1 == 1.0 would make one id of three."""

    def kind(value: Any) -> type:
        if isinstance(value, (int, np.integer)) and not isinstance(value, bool):
            return int
        return str if isinstance(value, str) else type(value)

    kinds = column.map(kind)
    mixed = (kinds != kinds.iloc[0]).to_numpy()
    if mixed.any():
        at = first(mixed)
        raise ValueError(
            f"{where(column, at)}: the ids are of mixed types, {kinds.iloc[0].__name__} in row 0 "
            f"but {kinds.iloc[at].__name__} here; convert the column to one type"
        )


def _other_kind(given: pd.Index, known: pd.Index, argument: str) -> str:
    """A hint where the two hold ids of different kinds, as after reading "007" once as text, once as 7."""
    ours, theirs = (pd.api.types.infer_dtype(index, skipna=False) for index in (given, known))
    if ours == theirs or {ours, theirs} <= {"integer", "floating"} or "empty" in (ours, theirs):
        return ""
    return f", which holds ids of type {theirs} and not {ours}; read both alike, as text with dtype=str"
