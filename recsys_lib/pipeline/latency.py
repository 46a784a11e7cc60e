"""Where the time of lists goes."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields

__all__ = ["Stages"]


@dataclass
class Stages:
    """Where the time of lists went, in seconds. Calls that are given the same report add up in it.

    Attributes:
        retrieve: looking through the catalog.
        rerank: the second model, on the candidates.
        filter: what may be listed, and how many of a group.
        diversify: making the list less alike.
        lists: how many were made.
        candidates: how many the second model has scored.
    """

    retrieve: float = 0.0
    rerank: float = 0.0
    filter: float = 0.0
    diversify: float = 0.0
    lists: int = 0
    candidates: int = 0

    @property
    def total(self) -> float:
        """Seconds of all stages."""
        return sum(self.seconds().values())

    def seconds(self) -> dict[str, float]:
        """The seconds of each stage, by its name."""
        return {name: getattr(self, name) for name in ("retrieve", "rerank", "filter", "diversify")}

    def add(self, other: "Stages") -> None:
        """Adds what another report holds."""
        for field in fields(self):
            setattr(self, field.name, getattr(self, field.name) + getattr(other, field.name))

    def __str__(self) -> str:
        parts = ", ".join(f"{name} {1000 * spent:.1f} ms" for name, spent in self.seconds().items())
        return f"{self.lists} lists in {1000 * self.total:.1f} ms: {parts}"

    @contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        """Adds the time of the block to a stage."""
        start = time.perf_counter()
        try:
            yield
        finally:
            setattr(self, stage, getattr(self, stage) + time.perf_counter() - start)
