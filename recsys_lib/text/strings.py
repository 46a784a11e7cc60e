"""What a caller gives as texts, as a list of strings."""

import warnings
from collections.abc import Iterable, Mapping
from typing import Any

import pandas as pd

__all__ = ["as_strings"]


def as_strings(texts: Iterable[Any]) -> list[str]:
    """A list of strings that can be encoded; missing ones (``None``, NaN) are empty, with a warning.

    Raises:
        TypeError: One string instead of a list of them, a table, a mapping, a set, or something that is no
            text.
    """
    if isinstance(texts, str | bytes):
        raise TypeError(f"texts must be a list of strings, got one {type(texts).__name__}; write [text]")
    # Going through these gives something else than the texts, or gives them in an order that nobody chose.
    kind = type(texts).__name__
    if isinstance(texts, pd.DataFrame):
        raise TypeError(f'texts must be a list of strings, got a {kind}; pass a column, such as df["title"]')
    if isinstance(texts, Mapping):
        raise TypeError(f"texts must be a list of strings, got a {kind}; pass its values, list(d.values())")
    if isinstance(texts, set | frozenset):
        raise TypeError(f"texts must be a list of strings, got a {kind}, which has no order; pass a list")
    strings, missing = [], []
    for i, text in enumerate(texts):
        if isinstance(text, str):
            # Half a surrogate pair, which a badly read file can hold, is no character to any tokenizer.
            strings.append(text.encode("utf-8", "replace").decode("utf-8"))
        elif pd.api.types.is_scalar(text) and pd.isna(text):
            strings.append("")
            missing.append(i)
        else:
            raise TypeError(f"text {i} is a {type(text).__name__}, not a string: {text!r:.60}")
    if missing:
        warnings.warn(
            f"{len(missing)} of {len(strings)} texts are missing, the first is number {missing[0]}; "
            "they count as empty texts, so all of them get the same vector",
            stacklevel=3,
        )
    return strings
