"""Read what the executed notebooks recorded, and put it into words.

Two products are read: the metadata ``recsys_book`` of an executed copy, written by ``book/execute.py``, and
the results file of a chapter, whose schema is ``recsys_lib.chapter.results``. Both are treated as text:
nothing in them is ever interpreted as markup.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from recsys_lib.chapter.results import ChapterResults, ResultsError

# What a chapter's parameter `dataset` means, in full.
DATASETS = {
    "100k": "MovieLens-100K",
    "1m": "MovieLens-1M",
    "20m": "MovieLens-20M",
    "latest-small": "MovieLens latest-small",
}


class BadDataError(ValueError):
    """A recorded file does not have the agreed shape; the message names the file and what to do."""


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        BadDataError: the file is not a JSON object.
    """
    try:
        data = json.loads(path.read_text("utf8"))
    except ValueError as error:
        raise BadDataError(f"{path} is not valid JSON ({error}); run its notebook again") from error
    if not isinstance(data, dict):
        raise BadDataError(f"{path} does not hold a JSON object; run its notebook again")
    return data


def run_metadata(copy: Path) -> dict[str, Any]:
    """Return the metadata ``recsys_book`` of an executed copy.

    Raises:
        BadDataError: the copy was not written by ``book/execute.py``.
    """
    metadata = read_json(copy).get("metadata", {}).get("recsys_book")
    if not isinstance(metadata, dict):
        raise BadDataError(f"{copy} has no metadata 'recsys_book'; run `make book`")
    return metadata


def chapter_results(path: Path) -> ChapterResults | None:
    """Return what a chapter recorded, or None if it has no results file.

    Raises:
        BadDataError: the file is not what a chapter writes.
    """
    try:
        return ChapterResults.read(path) if path.is_file() else None
    except ResultsError as error:
        raise BadDataError(str(error)) from error


def duration(seconds: float) -> str:
    """Put a duration into words: ``0.4 s``, ``42 s``, ``3 min 20 s``, ``1 h 5 min``."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60} min"


def memory(megabytes: float) -> str:
    """Put an amount of memory into words: ``640 MB``, ``1.5 GB``."""
    return f"{megabytes:.0f} MB" if megabytes < 999.5 else f"{megabytes / 1000:.1f} GB"


def day(date: str) -> str:
    """Return the day of an ISO 8601 date or time; anything else is returned as it is."""
    match = re.match(r"\d{4}-\d{2}-\d{2}", date)
    return match[0] if match else date


def amount(value: object, words: Any) -> str:
    """Apply `words` (`duration` or `memory`) to a number; anything else gives an empty text."""
    return words(float(value)) if isinstance(value, int | float) and value >= 0 else ""


def dataset(name: str) -> str:
    """Return the full name of a data set; a name that is not known is returned as it is."""
    return DATASETS.get(name, name)


def hardware(metadata: dict[str, Any]) -> str:
    """Return what a notebook ran on: the name of the hardware, or else of the device."""
    return str(metadata.get("hardware") or metadata.get("device") or "")
