"""The most popular items, the same for everyone: the bar that any personal model must clear."""

from torch import Tensor

from recsys_lib.data import Interactions
from recsys_lib.models.core.contract import Recommender
from recsys_lib.models.core.options import learned, option

__all__ = ["Popularity"]

_DAY = 86_400


class Popularity(Recommender):
    """Scores an item by the number of distinct users who chose it, perhaps only of late.

    Answers for every user, with or without training events. Items without an event in the window score zero.
    """

    window_days: float | None = option(
        "count only events within this many days before the last one, both ends included",
        default=None,
        above=0,
    )

    counts: Tensor = learned("(n_items,) float32")

    def _fit(self, interactions: Interactions, validation: Interactions | None, progress: bool) -> None:
        events = interactions
        if self.window_days is not None:
            age = events.timestamps.max() - events.timestamps  # (E,) seconds
            events = events[age <= round(self.window_days * _DAY)]
        self._keep("counts", events.item_counts().float())

    def _score(self, users: Tensor) -> Tensor:
        return self.counts.expand(len(users), -1).clone()  # (B, n_items)
