"""The most popular items, the same for everyone: the bar that any personal model must clear."""

from torch import Tensor

from recsys_lib.data import Interactions
from recsys_lib.models.base import Recommender

__all__ = ["Popularity"]

_DAY = 86_400


class Popularity(Recommender):
    """Scores an item by the number of distinct users who chose it, perhaps only of late.

    Answers for every user, with or without training events.

    Args:
        window_days: count only events within this many days before the last event of the training data, both
            ends included; None counts all. Items without an event in the window score zero.
    """

    counts: Tensor  # (n_items,) float32

    def __init__(self, window_days: float | None = None) -> None:
        super().__init__()
        if window_days is not None and not window_days > 0:
            raise ValueError(f"window_days must be above zero or None, got {window_days}")
        self.window_days = window_days

    def _fit(self, interactions: Interactions, validation: Interactions | None, progress: bool) -> None:
        events = interactions
        if self.window_days is not None:
            age = events.timestamps.max() - events.timestamps  # (E,) seconds
            events = events[age <= round(self.window_days * _DAY)]
        self._keep("counts", events.item_counts().float())

    def _score(self, users: Tensor) -> Tensor:
        return self.counts.expand(len(users), -1).clone()  # (B, n_items)
