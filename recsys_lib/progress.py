"""How far along it is: one bar for all long work."""

import sys
from collections.abc import Iterable
from typing import Any, TypeVar

from tqdm.auto import tqdm

__all__ = ["progress_bar"]

T = TypeVar("T")


def progress_bar(iterable: Iterable[T], description: str, *, enabled: bool, **options: Any) -> Iterable[T]:
    """A progress bar on standard error that vanishes when done; the bare iterable when not ``enabled``.

    Args:
        iterable: what is gone through.
        description: what is being done, in a word or two.
        enabled: False shows nothing.
        **options: tqdm's own, such as ``total``.
    """
    if not enabled:
        return iterable
    # The delay keeps short work silent.
    return tqdm(iterable, desc=description, leave=False, delay=1.0, file=sys.stderr, **options)
