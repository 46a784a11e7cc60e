"""Who did what with which item, when: the one form in which every model and metric takes its data.

An :class:`Interactions` holds events as tensors of equal length with contiguous ids. Its order is
canonical, so nothing that is computed from it can depend on the order of the rows it came from.
"""

from __future__ import annotations

import dataclasses
import datetime as dt
import numbers
import warnings
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from recsys_lib.data.ragged import offsets, sort_by

Duplicates = Literal["keep", "first", "last", "error"]

# Seconds up to the year 9999. Larger integers are milliseconds or finer, not seconds.
_LATEST_SECOND = 253_402_300_799


class _Usual(str):
    """A column name that was left at its default: such a column may be absent."""

    __slots__ = ()


_USUAL_RATING = _Usual("rating")
_USUAL_TIMESTAMP = _Usual("timestamp")
_TICKS = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}


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
        item_ids: Contiguous item id -> the caller's id.
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

    # ------------------------------------------------------------------ in and out

    @classmethod
    def from_frame(
        cls,
        frame: pd.DataFrame,
        user: str = "user_id",
        item: str = "item_id",
        rating: str | None = _USUAL_RATING,
        timestamp: str | None = _USUAL_TIMESTAMP,
        *,
        user_ids: pd.Index | Sequence[Any] | None = None,
        item_ids: pd.Index | Sequence[Any] | None = None,
        duplicates: Duplicates = "keep",
    ) -> Interactions:
        """Read events from a data frame, one event a row, in any order.

        Args:
            frame: The events. It is not changed.
            user: Name of the column of user ids. Ids of one sortable type: integers, strings, ...
            item: Name of the column of item ids.
            rating: Name of the column of ratings, numbers or missing. Left at its default, the column
                may be absent; then, and with ``None``, every event gets the rating 1.0.
            timestamp: Name of the column of times: integers or floats (seconds since 1970-01-01 UTC,
                floats are rounded down), datetimes (without a time zone they are UTC) or strings that
                state a date without doubt. Left at its default, the column may be absent; then, and
                with ``None``, every event gets the time 0.
            user_ids: The user catalog, in the order of the contiguous ids. By default the sorted ids
                of the frame. Give another ``Interactions``' ``user_ids`` to share its mapping.
            item_ids: The item catalog, likewise.
            duplicates: What to do with several events of one user and one item: keep all, keep the
                ``"first"`` or the ``"last"`` in canonical order (the earliest or latest; at the same
                time the lowest or highest rating), or raise an ``"error"``.

        Returns:
            The events in canonical order, on the CPU.

        Raises:
            TypeError: ``frame`` is not a data frame.
            KeyError: A column is missing, or an id is not in the catalog given.
            ValueError: The frame is empty, or a cell makes no sense: a missing id, ids of mixed types,
                a rating that is infinite or not a number, a time that is missing or cannot be read. The
                message names the column and a row.
        """
        if not isinstance(frame, pd.DataFrame):
            raise TypeError(
                f"frame must be a pandas DataFrame, got {type(frame).__name__}; "
                "convert it first, for example with .to_pandas()"
            )
        if duplicates not in ("keep", "first", "last", "error"):
            raise ValueError(f'duplicates must be "keep", "first", "last" or "error", got {duplicates!r}')
        user_column = _column(frame, user, "user")
        item_column = _column(frame, item, "item")
        rating_column = _optional_column(frame, rating, "rating")
        time_column = _optional_column(frame, timestamp, "timestamp")
        if len(frame) == 0:
            raise ValueError("the frame is empty: it has no row to take an event from")

        users, user_catalog = _encode_ids(user_column, user, user_ids, "user_ids")
        items, item_catalog = _encode_ids(item_column, item, item_ids, "item_ids")
        events = cls(
            users=torch.from_numpy(users),
            items=torch.from_numpy(items),
            ratings=torch.ones(len(frame)) if rating_column is None else _encode_ratings(rating_column),
            timestamps=(
                torch.zeros(len(frame), dtype=torch.int64)
                if time_column is None
                else _encode_times(time_column)
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
            IndexError: The mask has another length, or a position is out of range.
        """
        device = self.users.device
        if isinstance(index, slice):
            positions = torch.arange(len(self), device=device)[index]
        else:
            positions = torch.as_tensor(index, device=device)
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
            The positive events; ids, ``n_users`` and ``n_items`` keep their meaning.
        """
        if min_rating is None:
            return self
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
        """
        wanted = range(self.n_users) if users is None else torch.as_tensor(users).tolist()
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
        return _lookup(self.user_ids, ids, "user").to(self.users.device)

    def item_index(self, ids: Any) -> Tensor:
        """The caller's item ids (one, or several) -> contiguous ids (B,) int64.

        Raises:
            KeyError: An id is not in the catalog; the message names it.
        """
        return _lookup(self.item_ids, ids, "item").to(self.items.device)

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


def merge(first: Interactions, second: Interactions) -> Interactions:
    """The events of both, in canonical order.

    Args:
        first: Events.
        second: Events over the same users and items.

    Raises:
        ValueError: The two do not share their catalogs.
    """
    if not (first.user_ids.equals(second.user_ids) and first.item_ids.equals(second.item_ids)):
        raise ValueError("the two have different users or items; they cannot be merged")

    def joined(name: str) -> Tensor:
        return torch.cat([getattr(first, name), getattr(second, name)])

    both = dataclasses.replace(
        first,
        users=joined("users"),
        items=joined("items"),
        ratings=joined("ratings"),
        timestamps=joined("timestamps"),
        rows=joined("rows"),
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


def _column(frame: pd.DataFrame, name: str, role: str) -> pd.Series:
    """The column, or an error that lists the columns there are."""
    if name not in frame.columns:
        raise KeyError(f'the frame has no {role} column "{name}"; its columns are {list(frame.columns)}')
    column = frame[name]
    if not isinstance(column, pd.Series):
        raise ValueError(f'the frame has several columns "{name}"')
    return column


def _optional_column(frame: pd.DataFrame, name: str | None, role: str) -> pd.Series | None:
    """The column; left at its default name it may be absent, asked for by name it may not."""
    if name is None or (isinstance(name, _Usual) and name not in frame.columns):
        return None
    return _column(frame, str(name), role)


def _where(column: pd.Series, position: int) -> str:
    """Words that lead the reader to a cell: its column, its row and, where it differs, its label."""
    label = column.index[position]
    at = f'column "{column.name}", row {position}'
    return at if label == position else f"{at} (index {label!r})"


def _show(value: object) -> str:
    """The value as one would type it: 7, not np.int64(7)."""
    return repr(value.item() if isinstance(value, np.generic) else value)


def _first(mask: np.ndarray) -> int:
    """Position of the first True."""
    return int(np.flatnonzero(mask)[0])


def _encode_ids(
    column: pd.Series, name: str, catalog: pd.Index | Sequence[Any] | None, argument: str
) -> tuple[np.ndarray, pd.Index]:
    """Contiguous ids (E,) int64 of a column, and the catalog they point into."""
    if isinstance(column.dtype, pd.CategoricalDtype):
        column = column.astype(column.cat.categories.dtype)
    missing = column.isna().to_numpy()
    if missing.any():
        raise ValueError(f"{_where(column, _first(missing))}: the id is missing")
    if pd.api.types.is_float_dtype(column.dtype):
        infinite = np.isinf(column.to_numpy(dtype=np.float64))
        if infinite.any():
            raise ValueError(f"{_where(column, _first(infinite))}: the id is infinite")
    if column.dtype == object:
        _refuse_mixed_types(column)
    if catalog is None:
        try:
            known = pd.Index(column.unique(), tupleize_cols=False).sort_values()
        except TypeError as error:
            raise ValueError(
                f'column "{name}": its ids cannot be put in order ({error}); use integers or strings'
            ) from error
    else:
        known = pd.Index(catalog, tupleize_cols=False)
        if known.hasnans:
            raise ValueError(f"{argument} holds a missing id")
        if not known.is_unique:
            raise ValueError(f"{argument} holds {_show(known[known.duplicated()][0])} more than once")
    codes = known.get_indexer(pd.Index(column, tupleize_cols=False)).astype(np.int64, copy=False)
    unknown = codes < 0
    if unknown.any():
        at = _first(unknown)
        raise KeyError(f"{_where(column, at)}: the id {_show(column.iloc[at])} is not in {argument}")
    return codes, known


def _refuse_mixed_types(column: pd.Series) -> None:
    """Ids of several types have no order, and True == 1 == 1.0 would make one id of three."""

    def kind(value: Any) -> type:
        if isinstance(value, (int, np.integer)) and not isinstance(value, bool):
            return int
        return str if isinstance(value, str) else type(value)

    kinds = column.map(kind)
    mixed = (kinds != kinds.iloc[0]).to_numpy()
    if mixed.any():
        at = _first(mixed)
        raise ValueError(
            f"{_where(column, at)}: the ids are of mixed types, {kinds.iloc[0].__name__} in row 0 "
            f"but {kinds.iloc[at].__name__} here; convert the column to one type"
        )


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
            at = _first(wrong)
            raise ValueError(f"{_where(column, at)}: the rating {_show(column.iloc[at])} is not a number")
        column = column.where(~missing, np.nan).astype(np.float64)
    elif not pd.api.types.is_numeric_dtype(column.dtype) or pd.api.types.is_complex_dtype(column.dtype):
        present = column.notna().to_numpy()
        at = _first(present) if present.any() else 0
        raise ValueError(
            f"{_where(column, at)}: the rating {_show(column.iloc[at])} is not a number "
            f"(the column's type is {column.dtype}); convert it with pd.to_numeric"
        )
    with np.errstate(over="ignore"):
        values = column.to_numpy(dtype=np.float64, na_value=np.nan).astype(np.float32)
    infinite = np.isinf(values)
    if infinite.any():
        at = _first(infinite)
        raise ValueError(f"{_where(column, at)}: the rating {_show(column.iloc[at])} is not finite")
    values[np.isnan(values)] = np.nan  # one bit pattern for "missing",
    return torch.from_numpy(values + np.float32(0))  # and one for zero: -0.0 becomes 0.0


def _encode_times(column: pd.Series) -> Tensor:
    """Times (E,) int64, seconds since 1970-01-01 UTC, rounded down."""
    missing = column.isna().to_numpy()
    if missing.any():
        raise ValueError(f"{_where(column, _first(missing))}: the timestamp is missing")
    kind = pd.api.types.infer_dtype(column, skipna=False) if column.dtype == object else None
    if pd.api.types.is_bool_dtype(column.dtype) or kind == "boolean":
        raise ValueError(
            f"{_where(column, 0)}: the timestamp {_show(column.iloc[0])} is neither seconds nor a date"
        )
    if pd.api.types.is_numeric_dtype(column.dtype) or kind in ("integer", "floating", "mixed-integer-float"):
        return torch.from_numpy(_seconds_from_numbers(column))
    if isinstance(column.dtype, (pd.PeriodDtype, pd.CategoricalDtype)):
        column = column.astype(str)
    if pd.api.types.is_timedelta64_dtype(column.dtype):
        raise ValueError(f"{_where(column, 0)}: the timestamp is a duration, not a point in time")
    if not isinstance(column.dtype, pd.DatetimeTZDtype) and not pd.api.types.is_datetime64_dtype(
        column.dtype
    ):
        column = _parse_dates(column)
    moments = pd.DatetimeIndex(pd.to_datetime(column, utc=True)).tz_localize(None).to_numpy()
    ticks = _TICKS[np.datetime_data(moments.dtype)[0]]
    return torch.from_numpy(np.floor_divide(moments.view(np.int64), ticks))


def _seconds_from_numbers(column: pd.Series) -> np.ndarray:
    """Seconds (E,) int64 from integers or floats."""
    if pd.api.types.is_integer_dtype(column.dtype):
        seconds = column.to_numpy()
    else:
        seconds = column.to_numpy(dtype=np.float64)
        infinite = np.isinf(seconds)
        if infinite.any():
            raise ValueError(f"{_where(column, _first(infinite))}: the timestamp is infinite")
        seconds = np.floor(seconds)
    late = seconds > _LATEST_SECOND
    if late.any():
        at = _first(late)
        raise ValueError(
            f"{_where(column, at)}: the timestamp {_show(column.iloc[at])} lies after the year 9999 if it is "
            "in seconds; divide milliseconds by 1000, or convert with pd.to_datetime(..., unit=...)"
        )
    return seconds.astype(np.int64)


def _parse_dates(column: pd.Series) -> pd.Series:
    """Datetimes in UTC from strings or date objects, each read by itself.

    Pandas guesses one format from the first cell. Then the order of the rows would decide what
    "03/04/2020" means, so a date that can be read in two ways is refused.
    """
    is_text = column.map(lambda value: isinstance(value, str)).to_numpy(bool)
    is_date = column.map(lambda value: isinstance(value, (dt.date, np.datetime64))).to_numpy(bool)
    texts = pd.Series(np.where(is_text, column.astype(str), ""), dtype="str").str.strip()
    faults = {
        "is neither seconds nor a date": ~is_text & ~is_date,
        "is a number written as text; convert the column with pd.to_numeric": (
            texts.str.fullmatch(r"[+-]?\d+(\.\d*)?") & (texts.str.len() != len("19970920"))
        ).to_numpy(bool),
        "can be read in more than one way; convert the column with pd.to_datetime(..., format=...)": (
            texts.str.match(r"\d{1,2}[./ -]\d{1,2}[./ -]\d").to_numpy(bool)
        ),
        "names no year of four digits": is_text & ~texts.str.contains(r"\d{4}").to_numpy(bool),
    }
    for fault, mask in faults.items():
        if mask.any():
            at = _first(mask)
            raise ValueError(f"{_where(column, at)}: the timestamp {_show(column.iloc[at])} {fault}")
    parsed = pd.to_datetime(column, utc=True, errors="coerce", format="ISO8601")
    rest = parsed.isna()
    if rest.any():
        parsed = parsed.where(~rest, pd.to_datetime(column, utc=True, errors="coerce", format="mixed"))
    unread = parsed.isna().to_numpy()
    if unread.any():
        at = _first(unread)
        raise ValueError(
            f"{_where(column, at)}: the timestamp {_show(column.iloc[at])} cannot be read as a date"
        )
    return parsed


def _without_duplicates(events: Interactions, keep: Duplicates) -> Interactions:
    """The events with one left of each user-item pair."""
    pairs = pd.Series((events.users * events.n_items + events.items).numpy())
    repeated = torch.tensor(pairs.duplicated(keep="last" if keep == "last" else "first").to_numpy())
    if keep == "error" and repeated.any():
        at = int(repeated.nonzero()[0])
        user, item = events.user_ids[int(events.users[at])], events.item_ids[int(events.items[at])]
        raise ValueError(
            f"row {int(events.rows[at])}: user {_show(user)} has several events with item {_show(item)}; "
            'choose duplicates="keep", "first" or "last"'
        )
    return events[~repeated]


# ---------------------------------------------------------------------- small helpers


def _lookup(catalog: pd.Index, ids: Any, role: str) -> Tensor:
    """Positions (B,) int64 of ids in a catalog."""
    if isinstance(ids, Tensor):
        ids = ids.cpu().numpy()
    wanted = pd.Index([ids] if isinstance(ids, (str, bytes)) or np.ndim(ids) == 0 else ids)
    codes = catalog.get_indexer(wanted)
    if (codes < 0).any():
        raise KeyError(f"unknown {role} id {_show(wanted[_first(codes < 0)])}")
    return torch.from_numpy(codes.astype(np.int64, copy=False))


def _count(n: int, noun: str) -> str:
    return f"{n:,} {noun}" if n == 1 else f"{n:,} {noun}s"


def _date(seconds: int) -> str:
    return str(np.datetime64(seconds, "s").astype("datetime64[D]"))
