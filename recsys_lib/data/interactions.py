"""Who did what with which item, when: the one form in which every model and metric takes its data.

An :class:`Interactions` holds events as tensors of equal length with contiguous ids. Its order is
canonical, so nothing that is computed from it can depend on the order of the rows it came from.
"""

from __future__ import annotations

import dataclasses
import math
import numbers
import warnings
from collections.abc import Callable, Hashable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from recsys_lib.data.catalogs import difference_of_ids, encode_ids, ids_at, positions_of
from recsys_lib.data.columns import column_of, first, show, where
from recsys_lib.data.ragged import offsets, sort_by
from recsys_lib.data.times import read_times

Duplicates = Literal["keep", "first", "last", "error"]


class _Usual(str):
    """A column name that was left at its default: such a column may be absent."""

    __slots__ = ()


_USUAL_RATING = _Usual("rating")
_USUAL_TIMESTAMP = _Usual("timestamp")


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Interactions:
    """Events between users and items, in canonical order.

    The events are sorted by (user, timestamp, item, rating), a missing rating before any given one.
    Two frames that hold the same events in another order therefore give the same tensors; only
    ``rows`` differs. Build one with :meth:`from_frame`.

    Attributes:
        users: (E,) int64, user of each event, ``0 .. n_users - 1``.
        items: (E,) int64, item of each event, ``0 .. n_items - 1``.
        ratings: (E,) float32. NaN where the frame has a rating column but the cell is empty; 1.0
            everywhere when there is no rating column.
        timestamps: (E,) int64, seconds since 1970-01-01 UTC; 0 everywhere when there is no timestamp
            column.
        rows: (E,) int64, position of the event in the frame it came from.
        n_users: Size of the user catalog; users without an event count.
        n_items: Size of the item catalog; items without an event count.
        user_ids: Contiguous user id -> the caller's id.
        item_ids: Contiguous item id -> the caller's id. For tensors of ids, padded ones too, there are
            :meth:`item_ids_at` and :meth:`user_ids_at`.
    """

    users: Tensor
    items: Tensor
    ratings: Tensor
    timestamps: Tensor
    rows: Tensor
    n_users: int
    n_items: int
    user_ids: pd.Index
    item_ids: pd.Index
    # The lowest and the highest rating of all events that these are a part of; None if none has a rating.
    _scale: tuple[float, float] | None = dataclasses.field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        """Refuse tensors that do not belong together."""
        expected = {
            "users": torch.int64,
            "items": torch.int64,
            "ratings": torch.float32,
            "timestamps": torch.int64,
            "rows": torch.int64,
        }
        for name, dtype in expected.items():
            tensor: Tensor = getattr(self, name)
            if tensor.ndim != 1 or tensor.dtype != dtype or len(tensor) != len(self.users):
                raise ValueError(
                    f"{name} must be a 1-D {dtype} tensor with one value an event ({len(self.users)}), "
                    f"got {tensor.dtype} of shape {tuple(tensor.shape)}"
                )
        if len(self.user_ids) != self.n_users or len(self.item_ids) != self.n_items:
            raise ValueError(
                f"the catalogs hold {len(self.user_ids)} users and {len(self.item_ids)} items, "
                f"but n_users is {self.n_users} and n_items is {self.n_items}"
            )
        if self._scale is None and self.ratings.device.type != "meta":
            given = self.ratings[~self.ratings.isnan()]
            if len(given):
                object.__setattr__(self, "_scale", (float(given.min()), float(given.max())))

    # ------------------------------------------------------------------ in and out

    @classmethod
    def from_frame(
        cls,
        frame: pd.DataFrame,
        user: Hashable = "user_id",
        item: Hashable = "item_id",
        rating: Hashable | None = _USUAL_RATING,
        timestamp: Hashable | None = _USUAL_TIMESTAMP,
        *,
        user_ids: pd.Index | Sequence[Any] | None = None,
        item_ids: pd.Index | Sequence[Any] | None = None,
        duplicates: Duplicates = "keep",
    ) -> Interactions:
        """Read events from a data frame, one event a row, in any order.

        Args:
            frame: The events. It is not changed.
            user: Name of the column of user ids, a string or whatever the frame calls its columns. Ids of
                one sortable type: integers, strings, ...
            item: Name of the column of item ids.
            rating: Name of the column of ratings, numbers or missing. Left at its default, the column
                may be absent; then, and with ``None``, every event gets the rating 1.0.
            timestamp: Name of the column of times: integers or floats (seconds since 1970-01-01 UTC,
                floats are rounded down), datetimes (without a time zone they are UTC) or strings that
                state a date without doubt. Left at its default, the column may be absent; then, and
                with ``None``, every event gets the time 0.
            user_ids: The user catalog, in the order of the contiguous ids. By default the sorted ids
                of the frame. Give another ``Interactions``' ``user_ids`` to share its mapping.
            item_ids: The item catalog, likewise. It may hold items without an event: a shop's whole range.
            duplicates: What to do with several events of one user and one item: keep all, keep the
                ``"first"`` or the ``"last"`` in canonical order (the earliest or latest; at the same
                time the lowest or highest rating), or raise an ``"error"``.

        Returns:
            The events in canonical order, on the CPU.

        Raises:
            TypeError: ``frame`` is not a data frame, or a catalog is no list of ids.
            KeyError: A column is missing, or an id is not in the catalog given.
            ValueError: The frame is empty, or a cell makes no sense: a missing id, ids of mixed types,
                a rating that is infinite or not a number, a time that is missing or cannot be read. The
                message names the column and a row. Or a catalog holds an id twice.

        Warns:
            UserWarning: The times are hardly seconds; see :func:`recsys_lib.data.times.check_seconds`.
        """
        if not isinstance(frame, pd.DataFrame):
            raise TypeError(
                f"frame must be a pandas DataFrame, got {type(frame).__name__}; {_way_to_a_frame(frame)}"
            )
        if duplicates not in ("keep", "first", "last", "error"):
            raise ValueError(f'duplicates must be "keep", "first", "last" or "error", got {duplicates!r}')
        user_column = column_of(frame, user, "user")
        item_column = column_of(frame, item, "item")
        rating_column = _optional_column(frame, rating, "rating")
        time_column = _optional_column(frame, timestamp, "timestamp")
        if len(frame) == 0:
            raise ValueError("the frame is empty: it has no row to take an event from")

        users, user_catalog = encode_ids(user_column, user_ids, "user_ids")
        items, item_catalog = encode_ids(item_column, item_ids, "item_ids")
        events = cls(
            users=torch.from_numpy(users),
            items=torch.from_numpy(items),
            ratings=torch.ones(len(frame)) if rating_column is None else _encode_ratings(rating_column),
            timestamps=(
                torch.zeros(len(frame), dtype=torch.int64)
                if time_column is None
                else torch.from_numpy(read_times(time_column))
            ),
            rows=torch.arange(len(frame)),
            n_users=len(user_catalog),
            n_items=len(item_catalog),
            user_ids=user_catalog,
            item_ids=item_catalog,
        )
        order = _canonical_order(events)
        events = events._replace(lambda tensor: tensor[order])
        return events if duplicates == "keep" else _without_duplicates(events, duplicates)

    def to_frame(self) -> pd.DataFrame:
        """The events as a data frame with the caller's ids, in canonical order.

        Returns:
            Columns ``user_id``, ``item_id``, ``rating``, ``timestamp`` (seconds); one row an event.
        """
        return pd.DataFrame(
            {
                "user_id": self.user_ids.take(self.users.cpu().numpy()),
                "item_id": self.item_ids.take(self.items.cpu().numpy()),
                "rating": self.ratings.cpu().numpy(),
                "timestamp": self.timestamps.cpu().numpy(),
            }
        )

    def to(self, device: torch.device | str) -> Interactions:
        """The same events with their tensors on ``device``."""
        return self._replace(lambda tensor: tensor.to(device))

    def __len__(self) -> int:
        """Number of events."""
        return len(self.users)

    def __repr__(self) -> str:
        parts = [
            _count(len(self), "event"),
            _count(self.n_users, "user"),
            _count(self.n_items, "item"),
        ]
        if len(self) and self.users.device.type != "meta":
            given = self.ratings[~self.ratings.isnan()]
            if len(given) and given.min() != given.max():
                parts.append(f"ratings {given.min():g} to {given.max():g}")
            first, last = int(self.timestamps.min()), int(self.timestamps.max())
            if first != last:
                parts.append(f"{_date(first)} to {_date(last)}")
        return f"Interactions({', '.join(parts)})"

    # ------------------------------------------------------------------ parts of it

    def __getitem__(self, index: Tensor | np.ndarray | Sequence[int] | slice) -> Interactions:
        """Some of the events; ids, ``n_users`` and ``n_items`` stay as they are.

        Args:
            index: A boolean mask (E,) or a tensor of positions, both over the events in canonical order (a
                mask over the rows of the frame becomes one over the events by ``mask[inter.rows]``).
                Positions may repeat. The result is in canonical order, whatever the order of the positions.

        Raises:
            TypeError: The index is a pandas Series or another table's column. It does not say whether it is
                in the order of the frame or in that of the events.
            IndexError: The mask has another length, or a position is out of range.
        """
        if not isinstance(index, (slice, Tensor, np.ndarray, Sequence, numbers.Integral)):
            raise TypeError(
                f"a {type(index).__name__} is in the order of its frame, and the events are in their own: "
                "use inter[mask.to_numpy()[inter.rows]] for a mask over the rows of the frame that was read, "
                "and inter[mask.to_numpy()] for one over those of inter.to_frame()"
            )
        device = self.users.device
        if isinstance(index, slice):
            positions = torch.arange(len(self), device=device)[index]
        else:
            positions = torch.as_tensor(_writable(index), device=device)
            if positions.ndim != 1:
                raise IndexError(f"the index must be 1-D, got shape {tuple(positions.shape)}")
            if positions.dtype == torch.bool:
                if len(positions) != len(self):
                    raise IndexError(f"the mask has {len(positions)} values for {len(self)} events")
                positions = positions.nonzero().squeeze(1)
            elif len(positions) == 0:
                positions = positions.long()  # an empty list has no integer type of its own
            elif positions.is_floating_point() or positions.is_complex():
                raise IndexError(f"the index must be a boolean mask or integers, got {positions.dtype}")
            else:
                positions = positions.long()
                if int(positions.min()) < -len(self) or int(positions.max()) >= len(self):
                    raise IndexError(f"a position is out of range for {len(self)} events")
                positions = positions.remainder(len(self)).sort()[0]
        return self._replace(lambda tensor: tensor[positions])

    def positives(self, min_rating: float | None = 4.0) -> Interactions:
        """The events that count as liked: a rating of ``min_rating`` or more.

        Args:
            min_rating: The threshold. A missing rating is never positive under one. With ``None`` every
                event is positive, as with purchases or clicks.

        Returns:
            The positive events; ids, ``n_users`` and ``n_items`` keep their meaning. A part of the events,
            such as one user's, may well have none.

        Raises:
            ValueError: No event can be positive: all ratings of the frame that was read lie below the
                threshold (there was no rating column, or the scale is another), or none is given.

        Warns:
            UserWarning: Some ratings are missing; their events are left out.
        """
        if min_rating is None:
            return self
        given: Any = min_rating
        if isinstance(given, bool) or not isinstance(given, numbers.Real) or math.isnan(given):
            raise ValueError(f"min_rating must be a number or None, got {min_rating!r}")
        way_out = "positives(None) takes every event, positives(x) those rated x or more"
        if self._scale is None:
            if len(self):
                raise ValueError(f"no event has a rating, so none can be positive; {way_out}")
            return self
        low, high = self._scale
        with np.errstate(over="ignore"):
            none_can = np.float32(high) < np.float32(min_rating)  # in the precision of the ratings
        if none_can:
            found = f"go from {low:g} to {high:g}"
            if low == high:
                found = f"are all {low:g}" + (", as without a rating column" if low == 1 else "")
            raise ValueError(f"no event has a rating of {min_rating:g} or more: they {found}; {way_out}")
        missing = int(self.ratings.isnan().sum())
        if missing:
            warnings.warn(
                f"{missing:,} of {len(self):,} events have no rating and are left out, as not positive",
                stacklevel=2,
            )
        return self[self.ratings >= min_rating]

    # ------------------------------------------------------------------ views of it

    @cached_property
    def _user_ends(self) -> Tensor:
        """(n_users + 1,) int64: user u's events are ``_user_ends[u] : _user_ends[u + 1]``."""
        return offsets(torch.bincount(self.users, minlength=self.n_users))

    @cached_property
    def _distinct(self) -> tuple[Tensor, Tensor, Tensor]:
        """The distinct pairs as CSR, and for each event the position of its pair in it."""
        keys, inverse = torch.unique(
            self.users * self.n_items + self.items, return_inverse=True
        )  # (E',), (E,)
        users = keys.div(max(self.n_items, 1), rounding_mode="floor")  # (E',)
        crow = offsets(torch.bincount(users, minlength=self.n_users))  # (n_users + 1,)
        return crow, keys - users * self.n_items, inverse

    def csr(self) -> tuple[Tensor, Tensor]:
        """The distinct items of every user, sorted, as a compressed list. Computed once.

        Returns:
            ``crow`` (n_users + 1,) int64 and ``items`` (E',) int64: user u's items are
            ``items[crow[u] : crow[u + 1]]``.
        """
        crow, items, _ = self._distinct
        return crow, items

    def matrix(self, values: Literal["binary", "ratings"] | Tensor = "binary") -> Tensor:
        """The user-item matrix.

        Args:
            values: ``"binary"``: 1 where the user has an event with the item, however many.
                ``"ratings"``: the rating, summed over repeated events. A tensor (E,): these values,
                summed over repeated events.

        Returns:
            (n_users, n_items) float32, sparse CSR.

        Raises:
            ValueError: Some rating is missing, or ``values`` has another shape.
            TypeError: ``values`` is neither a tensor nor one of the words.
        """
        crow, items, inverse = self._distinct
        if isinstance(values, str) and values == "binary":
            data = torch.ones(len(items), device=self.users.device)  # (E',)
        else:
            if isinstance(values, str):
                if values != "ratings":
                    raise ValueError(f'values must be "binary", "ratings" or a tensor, got {values!r}')
                weights = self.ratings
                missing = int(weights.isnan().sum())
                if missing:
                    raise ValueError(
                        f"{missing} of {len(self)} events have no rating; "
                        "take the others first: inter[~inter.ratings.isnan()]"
                    )
            else:
                if not isinstance(values, Tensor):
                    raise TypeError(
                        f'values must be "binary", "ratings" or a tensor, got {type(values).__name__}'
                    )
                weights = values.to(device=self.users.device, dtype=torch.float32)
                if weights.shape != self.users.shape:
                    raise ValueError(
                        f"values must have one value an event, shape ({len(self)},), "
                        f"got {tuple(weights.shape)}"
                    )
            data = torch.zeros(len(items), device=self.users.device).index_add_(0, inverse, weights)  # (E',)
        with warnings.catch_warnings():
            # PyTorch says once that its sparse CSR support is in beta; what is used here is long stable.
            warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta")
            return torch.sparse_csr_tensor(
                crow, items, data, size=(self.n_users, self.n_items), check_invariants=False
            )

    def histories(self, users: Tensor | Sequence[int] | None = None) -> list[Tensor]:
        """The items of each user, oldest first (canonical order), with repeats.

        Args:
            users: Contiguous user ids (B,); all users by default.

        Returns:
            One int64 tensor a user, empty for a user without events.

        Raises:
            TypeError: The users are not integers; a mask is none either.
            IndexError: A user is out of range.
        """
        wanted = range(self.n_users) if users is None else torch.as_tensor(_writable(users)).tolist()
        if any(not isinstance(u, int) or isinstance(u, bool) for u in wanted):
            raise TypeError(
                "users must be contiguous ids, integers; of a mask, give mask.nonzero().squeeze(1), "
                "and of your own ids inter.user_index(ids)"
            )
        for u in wanted:
            if not 0 <= u < self.n_users:
                raise IndexError(f"user {u} is out of range for {self.n_users} users")
        ends = self._user_ends.tolist()
        return [self.items[ends[u] : ends[u + 1]] for u in wanted]

    def item_counts(self) -> Tensor:
        """(n_items,) int64: how many distinct users each item has."""
        return torch.bincount(self.csr()[1], minlength=self.n_items)

    def user_counts(self) -> Tensor:
        """(n_users,) int64: how many events each user has."""
        return self._user_ends.diff()

    def user_index(self, ids: Any) -> Tensor:
        """The caller's user ids (one, or several) -> contiguous ids (B,) int64.

        Raises:
            KeyError: An id is not in the catalog; the message names it.
        """
        return positions_of(self.user_ids, ids, "user").to(self.users.device)

    def item_index(self, ids: Any) -> Tensor:
        """The caller's item ids (one, or several) -> contiguous ids (B,) int64.

        Raises:
            KeyError: An id is not in the catalog; the message names it.
        """
        return positions_of(self.item_ids, ids, "item").to(self.items.device)

    def user_ids_at(self, users: Tensor | np.ndarray | Sequence[int] | int) -> Any:
        """Contiguous user ids, of any shape -> the caller's ids, in that shape.

        Args:
            users: Integers; -1 is padding.

        Returns:
            An array of the ids, with ``None`` for padding; see :func:`recsys_lib.data.catalogs.ids_at`.

        Raises:
            TypeError: The indices are not integers.
            IndexError: One is out of range.
        """
        return ids_at(self.user_ids, users, "user")

    def item_ids_at(self, items: Tensor | np.ndarray | Sequence[int] | int) -> Any:
        """Contiguous item ids, of any shape -> the caller's ids, in that shape.

        What ``recommend`` returns is read this way: ``item_ids[items]`` would take the padding of a short
        row, -1, for the last item.

        Args:
            items: Integers; -1 is padding.

        Returns:
            An array of the ids, with ``None`` for padding; see :func:`recsys_lib.data.catalogs.ids_at`.

        Raises:
            TypeError: The indices are not integers.
            IndexError: One is out of range.
        """
        return ids_at(self.item_ids, items, "item")

    def _replace(self, change: Callable[[Tensor], Tensor]) -> Interactions:
        """A copy with ``change`` applied to every event tensor."""
        return dataclasses.replace(
            self,
            users=change(self.users),
            items=change(self.items),
            ratings=change(self.ratings),
            timestamps=change(self.timestamps),
            rows=change(self.rows),
        )


def check_same_catalog(first: Interactions, second: Interactions, where: str) -> None:
    """Refuse events over other users or items: equal counts do not make them the same ones.

    Parts of one ``Interactions`` share their catalogs; comparing those costs nothing.

    Args:
        first: Events.
        second: Events.
        where: Who asks, for the message: ``"evaluate"``.

    Raises:
        ValueError: The catalogs differ. The message says which, and gives an example.
    """
    differences = [
        difference_of_ids(first.user_ids, second.user_ids, "user"),
        difference_of_ids(first.item_ids, second.item_ids, "item"),
    ]
    if any(differences):
        raise ValueError(
            f"{where}: the two do not share their catalogs: {'; '.join(filter(None, differences))}. Read the "
            "second with user_ids=first.user_ids, item_ids=first.item_ids, or both from one frame"
        )


def merge(first: Interactions, second: Interactions) -> Interactions:
    """The events of both, in canonical order.

    Args:
        first: Events.
        second: Events over the same users and items.

    Raises:
        ValueError: The two do not share their catalogs.
    """
    check_same_catalog(first, second, "merge")

    def joined(name: str) -> Tensor:
        return torch.cat([getattr(first, name), getattr(second, name)])

    scales = [part._scale for part in (first, second) if part._scale is not None]
    both = dataclasses.replace(
        first,
        users=joined("users"),
        items=joined("items"),
        ratings=joined("ratings"),
        timestamps=joined("timestamps"),
        rows=joined("rows"),
        _scale=(min(low for low, _ in scales), max(high for _, high in scales)) if scales else None,
    )
    order = _canonical_order(both)
    return both._replace(lambda tensor: tensor[order])


def _canonical_order(events: Interactions) -> Tensor:
    """(E,) int64: the positions of the events, sorted by (user, timestamp, item, rating).

    ``rows`` settles equal events.
    """
    ratings = events.ratings.nan_to_num(nan=-torch.inf)  # missing before any given one
    keys = [events.users, events.timestamps, events.items, ratings]
    if not bool((events.rows.diff() > 0).all()):  # in a frame just read they are in order
        keys.append(events.rows)
    return sort_by(*keys)


# ---------------------------------------------------------------------- reading a frame


def _optional_column(frame: pd.DataFrame, name: Hashable | None, role: str) -> pd.Series | None:
    """The column; left at its default name it may be absent, asked for by name it may not."""
    if isinstance(name, _Usual):
        name = str(name)
        if name not in frame.columns:
            return None
    return None if name is None else column_of(frame, name, role)


def _way_to_a_frame(given: Any) -> str:
    """What to do with something that is no data frame but could become one."""
    if isinstance(given, pd.Series):
        return "of a Series with users and items in its index, .reset_index() is one"
    if isinstance(given, (str, Path)):
        return "read the file first, with pd.read_csv or pd.read_parquet"
    if hasattr(given, "to_pandas"):  # polars, pyarrow, datasets, cudf
        return "convert it first with .to_pandas()"
    if hasattr(given, "collect"):  # lazy polars
        return "convert it first with .collect().to_pandas()"
    if hasattr(given, "tocoo"):  # scipy.sparse
        return (
            "of a sparse user-item matrix, make one with coo = matrix.tocoo(); "
            'frame = pd.DataFrame({"user_id": coo.row, "item_id": coo.col, "rating": coo.data}), and give '
            "user_ids=range(matrix.shape[0]), item_ids=range(matrix.shape[1]) to keep empty rows and columns"
        )
    if isinstance(given, Tensor) and given.layout != torch.strided:
        return (
            "of a sparse user-item matrix, make one with coo = matrix.to_sparse_coo().coalesce().cpu(); "
            'frame = pd.DataFrame({"user_id": coo.indices()[0], "item_id": coo.indices()[1], '
            '"rating": coo.values()}), and give user_ids=range(matrix.shape[0]), '
            "item_ids=range(matrix.shape[1]) to keep empty rows and columns"
        )
    if isinstance(given, np.ndarray) and given.dtype.names:
        return "make one with pd.DataFrame(array)"
    if isinstance(given, (np.ndarray, Tensor)):
        return (
            "of an array with one event a row, make one with "
            'frame = pd.DataFrame(array, columns=["user_id", "item_id", ...]); of a dense user-item matrix, '
            "with users, items = np.nonzero(matrix); "
            'frame = pd.DataFrame({"user_id": users, "item_id": items, "rating": matrix[users, items]})'
        )
    return "make one of it with pd.DataFrame(...)"


def _encode_ratings(column: pd.Series) -> Tensor:
    """Ratings (E,) float32, NaN where missing."""
    if column.dtype == object:
        missing = column.isna().to_numpy()
        # Decimal is a Number too; complex is not Real and text is neither.
        wrong = ~missing & ~column.map(lambda value: isinstance(value, (numbers.Real, np.bool_))).to_numpy(
            bool
        )
        wrong &= ~column.map(lambda value: type(value).__name__ == "Decimal").to_numpy(bool)
        if wrong.any():
            at = first(wrong)
            raise ValueError(f"{where(column, at)}: the rating {show(column.iloc[at])} is not a number")
        column = column.where(~missing, np.nan).astype(np.float64)
    elif pd.api.types.is_bool_dtype(column.dtype):
        column = column.astype("boolean")  # Arrow's booleans are no numbers to pandas
    elif not pd.api.types.is_numeric_dtype(column.dtype) or pd.api.types.is_complex_dtype(column.dtype):
        present = column.notna().to_numpy()
        at = first(present) if present.any() else 0
        raise ValueError(
            f"{where(column, at)}: the rating {show(column.iloc[at])} is not a number "
            f"(the column's type is {column.dtype}); convert it with pd.to_numeric"
        )
    with np.errstate(over="ignore"):
        values = column.to_numpy(dtype=np.float64, na_value=np.nan).astype(np.float32)
    infinite = np.isinf(values)
    if infinite.any():
        at = first(infinite)
        raise ValueError(f"{where(column, at)}: the rating {show(column.iloc[at])} is not finite")
    values[np.isnan(values)] = np.nan  # one bit pattern for "missing",
    return torch.from_numpy(values + np.float32(0))  # and one for zero: -0.0 becomes 0.0


def _without_duplicates(events: Interactions, keep: Duplicates) -> Interactions:
    """The events with one left of each user-item pair."""
    pairs = pd.Series((events.users * events.n_items + events.items).numpy())
    repeated = torch.tensor(pairs.duplicated(keep="last" if keep == "last" else "first").to_numpy())
    if keep == "error" and repeated.any():
        at = int(repeated.nonzero()[0])
        user, item = events.user_ids[int(events.users[at])], events.item_ids[int(events.items[at])]
        raise ValueError(
            f"row {int(events.rows[at])}: user {show(user)} has several events with item {show(item)}; "
            'choose duplicates="keep", "first" or "last"'
        )
    return events[~repeated]


# ---------------------------------------------------------------------- small helpers


def _writable(values: Any) -> Any:
    """An array that PyTorch takes without a warning: those of pandas may be read only."""
    return values.copy() if isinstance(values, np.ndarray) and not values.flags.writeable else values


def _count(n: int, noun: str) -> str:
    return f"{n:,} {noun}" if n == 1 else f"{n:,} {noun}s"


def _date(seconds: int) -> str:
    return str(np.datetime64(seconds, "s").astype("datetime64[D]"))
