"""What every way from text to vector has in common."""

from collections.abc import Iterable
from typing import Any, Protocol, runtime_checkable

from torch import Tensor

__all__ = ["TextVectors"]


@runtime_checkable
class TextVectors(Protocol):
    """One vector a text: ``TfidfEncoder``, ``StaticEncoder``, ``TextEncoder``, and what you write yourself.

    Attributes:
        name: What tables and figures call it.
    """

    name: str

    @property
    def dim(self) -> int:
        """The number of features of a vector."""

    def encode(self, texts: Iterable[Any], *, progress: bool = True) -> Tensor:
        """(N, dim) float32, in the order of the texts. A missing text counts as empty, with a warning."""
