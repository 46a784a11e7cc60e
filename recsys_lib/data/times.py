"""Times, read as seconds since 1970-01-01 UTC: from numbers, datetimes and texts, and no guess among them.

A unit cannot be seen in a number. What no one can have meant as seconds is refused; what hardly anyone can
have meant so gives a warning. Numbers that only count the events, from near 0, are as good as seconds.
"""

from __future__ import annotations

import datetime as dt
import re
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from recsys_lib.data.columns import first, show, where

__all__ = ["check_seconds", "read_times"]

# Seconds up to the year 9999. Larger integers are milliseconds or finer, not seconds.
_LATEST_SECOND = 253_402_300_799
# NaT is the least integer of 64 bits. In nanoseconds that is the year 1677; as seconds it is no time at all.
_EARLIEST_SECOND = -9_223_372_036
_NAT = -(2**63)
# Where events of users lie, if they are in seconds: from 1980 to 2100.
_USUAL = (315_532_800, 4_102_444_800)
# A column that numbers its events, or counts seconds from its first one, begins about here.
_NEAR_ZERO = 10**6
_A_MONTH = 31 * 86_400
_DAYS_OF_MONTH = np.array([0, 31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31])
_TICKS = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}


def check_seconds(seconds: Tensor, where: str) -> Tensor:
    """Times as whole seconds, if that is what they can be; refuses what ``from_frame`` refuses.

    Args:
        seconds: (E,) integers or floats, seconds since 1970-01-01 UTC or any counter that begins near 0.
        where: Who asks, for the message: ``"EASE.score_histories"``.

    Returns:
        (E,) int64 on the same device; floats are rounded down.

    Raises:
        TypeError: They are booleans or complex.
        ValueError: A time is missing or infinite, lies after the year 9999 or before 1678 (milliseconds, or a
            missing date cast to an integer), or all are dates written as numbers, such as 20200407.

    Warns:
        UserWarning: Times outside the years 1980 to 2100 that do not look like a counter, or floats too
            short to hold seconds.
    """
    if seconds.dtype == torch.bool or seconds.is_complex():
        raise TypeError(f"{where}: timestamps must be seconds, got {seconds.dtype}")
    values = seconds.detach().cpu()
    array = (values.float() if values.dtype == torch.bfloat16 else values).numpy()
    whole = _whole_seconds(
        array, lambda at: f"{where}, event {at}: the timestamp {show(array[at])}", array.dtype, stacklevel=3
    )
    return torch.as_tensor(whole, dtype=torch.int64, device=seconds.device)


def read_times(column: pd.Series) -> np.ndarray:
    """Times (E,) int64 of a column, seconds since 1970-01-01 UTC, rounded down.

    Args:
        column: Numbers (seconds), datetimes (without a time zone they are UTC) or texts.

    Raises:
        ValueError: A cell makes no sense; the message names the column and the row.

    Warns:
        UserWarning: As in :func:`check_seconds`, or dates that are all in January 1970.
    """
    missing = column.isna().to_numpy(dtype=bool)
    if missing.any():
        raise ValueError(f"{where(column, first(missing))}: the timestamp is missing")
    kind = pd.api.types.infer_dtype(column, skipna=False) if column.dtype == object else None
    if pd.api.types.is_bool_dtype(column.dtype) or kind == "boolean":
        raise ValueError(f"{_timestamp(column, 0)} is neither seconds nor a date")
    if pd.api.types.is_numeric_dtype(column.dtype) or kind in ("integer", "floating", "mixed-integer-float"):
        whole_numbers = pd.api.types.is_integer_dtype(column.dtype)
        values = column.to_numpy() if whole_numbers else column.to_numpy(dtype=np.float64)
        dtype: Any = column.dtype
        stored = np.dtype(getattr(dtype, "numpy_dtype", dtype))
        return _whole_seconds(values, lambda at: _timestamp(column, at), stored, stacklevel=4)
    if column.dtype.kind == "m":
        raise ValueError(f"{where(column, 0)}: the timestamp is a duration, not a point in time")
    were_datetimes = column.dtype.kind == "M"
    if isinstance(column.dtype, pd.PeriodDtype):
        column = column.dt.to_timestamp()
    dates = column if column.dtype.kind == "M" else _parse_dates(column)
    moments = pd.DatetimeIndex(pd.to_datetime(dates, utc=True)).tz_localize(None).to_numpy()
    ticks = _TICKS[np.datetime_data(moments.dtype)[0]]
    seconds = np.floor_divide(moments.view(np.int64), ticks)
    if were_datetimes and len(seconds) and seconds.min() >= 0 and seconds.max() < _A_MONTH:
        warnings.warn(
            f"{where(column, 0)}: every timestamp lies in January 1970. If they come from numbers, "
            'pd.to_datetime took those for nanoseconds: name their unit, pd.to_datetime(..., unit="s")',
            stacklevel=3,
        )
    return seconds


def _timestamp(column: pd.Series, at: int) -> str:
    return f"{where(column, at)}: the timestamp {show(column.iloc[at])}"


# ---------------------------------------------------------------------- numbers


def _whole_seconds(
    values: np.ndarray, name: Callable[[int], str], stored: np.dtype, stacklevel: int
) -> np.ndarray:
    """Seconds (E,) int64 from integers or floats; ``name`` says which time is at a position."""
    if len(values) == 0:
        return values.astype(np.int64)
    if values.dtype.kind == "f":
        for fault, mask in (("missing", np.isnan(values)), ("infinite", np.isinf(values))):
            if mask.any():
                raise ValueError(f"{name(first(mask))} is {fault}")
        values = np.floor(values.astype(np.float64))
    written = _written_as_number(values)
    if written:
        raise ValueError(
            f"{name(0)} is a date written as a number, and so are all the others; "
            f'convert them with pd.to_datetime(..., format="{written}")'
        )
    for mask, fault in (
        (values <= _EARLIEST_SECOND, "lies before the year 1678"),
        (values > _LATEST_SECOND, "lies after the year 9999"),
    ):
        if mask.any():
            at = first(mask)
            if _is_nat(int(values[at])):
                raise ValueError(f"{name(at)} is NaT, a missing date, that was cast to an integer")
            raise ValueError(
                f"{name(at)} {fault} if it is in seconds; divide milliseconds by 1000, "
                "or convert with pd.to_datetime(..., unit=...)"
            )
    doubt = _doubt(values, name, stored)
    if doubt:
        warnings.warn(doubt, stacklevel=stacklevel)
    return values.astype(np.int64)


def _is_nat(value: int) -> bool:
    """Whether this is what NaT becomes as an integer, and then divided down to seconds."""
    return any(value in (_NAT // ticks, -(-_NAT // ticks)) for ticks in _TICKS.values())


def _doubt(values: np.ndarray, name: Callable[[int], str], stored: np.dtype) -> str:
    """Why these seconds are hardly meant as they stand; empty where they may well be."""
    low, high = int(values.min()), int(values.max())
    if stored.kind == "f" and max(-low, high) > 2 ** (np.finfo(stored).nmant + 1):
        step = float(np.spacing(np.asarray(max(-low, high), dtype=stored)))
        return (
            f"{name(0)} and the others are {stored}, which holds times as late as these only to {step:g} s; "
            "read them as int64 or float64"
        )
    if _USUAL[0] <= low and high < _USUAL[1]:
        return ""
    if abs(low) <= _NEAR_ZERO and high < _USUAL[0]:
        return ""  # a counter
    unusual = (values < _USUAL[0]) | (values >= _USUAL[1])
    at = first(unusual)
    year = np.datetime64(int(values[at]), "s").astype("datetime64[Y]")
    return (
        f"{name(at)} is in the year {year} if it is in seconds, and {int(unusual.sum()):,} of "
        f"{len(values):,} lie before 1980 or after 2100. Other units, milliseconds that overflowed 32 bits "
        "and a 0 for a missing date look like this; convert with pd.to_datetime(..., unit=...)"
    )


def _written_as_number(values: np.ndarray) -> str:
    """The format by which all values are dates of 1900 to 2100 in digits, such as 20200407; else empty."""
    low, high = int(values.min()), int(values.max())
    for digits, format_ in ((8, "%Y%m%d"), (10, "%Y%m%d%H"), (12, "%Y%m%d%H%M"), (14, "%Y%m%d%H%M%S")):
        if not (1900 * 10 ** (digits - 4) <= low and high < 2101 * 10 ** (digits - 4)):
            continue
        whole = values.astype(np.int64)
        clock = whole % 10 ** (digits - 8)
        days = whole // 10 ** (digits - 8)
        years, months, days = days // 10_000, days // 100 % 100, days % 100
        leap = (years % 4 == 0) & ((years % 100 != 0) | (years % 400 == 0))
        lengths = _DAYS_OF_MONTH[np.where(months > 12, 0, months)]
        valid = (days >= 1) & (days <= lengths + (leap & (months == 2)))
        for left in range(digits - 10, -1, -2):  # hours, then minutes, then seconds
            valid &= clock // 10**left % 100 < (24 if left == digits - 10 else 60)
        return format_ if valid.all() else ""
    return ""


# ---------------------------------------------------------------------- texts

_CLOCK = re.compile(
    r"(?<![\d:])\d{1,2}:\d{2}(?!\d)(?::\d{2}(?!\d)(?:[.,]\d+)?)?(?!:)(?:\s*[ap]\.?m\b\.?)?(?:\s*[+-]\d{2}$)?"
    r"|(?<!\d)\d{1,2}\s*[ap]\.?m\b\.?",
    re.IGNORECASE,
)
_YEAR_FIRST = re.compile(r"(?<!\d)\d{4}([-/. ])\d{1,2}\1\d{1,2}(?!\d)")
_SHORT_NUMBER = re.compile(r"(?<!\d)\d{1,2}(?!\d)")
_MONTH = re.compile(r"(?<![a-z])(jan|feb|mar|apr|may|jun|jul|aug|sep|oct|nov|dec)|q\d", re.IGNORECASE)


def _parse_dates(column: pd.Series) -> pd.Series:
    """Datetimes in UTC from strings or date objects, each read by itself.

    Pandas guesses one format from the first cell. Then the order of the rows would decide what
    "03/04/2020" means, so a date that can be read in two ways is refused.
    """
    is_text = column.map(lambda value: isinstance(value, str)).to_numpy(bool)
    is_date = column.map(lambda value: isinstance(value, (dt.date, np.datetime64))).to_numpy(bool)
    texts = pd.Series(np.where(is_text, column.astype(str), ""), dtype="str").str.strip()
    parsed = pd.to_datetime(column, utc=True, errors="coerce", format="ISO8601")
    rest = parsed.isna().to_numpy()  # what is not ISO 8601, which has one reading
    doubts = texts.map({text: _fault_of(text) for text in texts[rest & is_text].unique()})
    # Of several faults the first in this order is named.
    faults = {
        "is neither seconds nor a date": ~is_text & ~is_date,
        "is a number written as text; convert the column with pd.to_numeric": (
            texts.str.fullmatch(r"[+-]?\d+(\.\d*)?") & (texts.str.len() != len("19970920"))
        ).to_numpy(bool),
        _AMBIGUOUS: (doubts == _AMBIGUOUS).to_numpy(bool),
        _NO_MONTH: (doubts == _NO_MONTH).to_numpy(bool),
        "names no year of four digits": is_text & ~texts.str.contains(r"\d{4}").to_numpy(bool),
    }
    for fault, mask in faults.items():
        if mask.any():
            raise ValueError(f"{_timestamp(column, first(mask))} {fault}")
    if rest.any():
        parsed = parsed.where(~rest, pd.to_datetime(column, utc=True, errors="coerce", format="mixed"))
    unread = parsed.isna().to_numpy()
    if unread.any():
        raise ValueError(f"{_timestamp(column, first(unread))} cannot be read as a date")
    return parsed


_AMBIGUOUS = "can be read in more than one way; convert the column with pd.to_datetime(..., format=...)"
_NO_MONTH = "cannot be read as a date: it names no month"


def _fault_of(text: str) -> str:
    """Why a text that is not ISO 8601 has no sure reading; empty where it has one.

    A clock's time and a date that begins with its year are sure. Of what is left, one short number is a day,
    beside a month's name, or a month, beside a year. Two can be day and month or month and day, wherever
    they stand and whatever stands between them.
    """
    left, n_dates = _YEAR_FIRST.subn(" ", _CLOCK.sub(" ", text))
    n_short = len(_SHORT_NUMBER.findall(left))
    if n_short + n_dates > 1:
        return _AMBIGUOUS
    if re.search(r"\d{4}", left) and not (n_short or n_dates or _MONTH.search(left)):
        return _NO_MONTH
    return ""
