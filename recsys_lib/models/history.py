"""Models that know a user by what the user did: the histories they keep, and scoring from any history."""

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from recsys_lib.data import Interactions
from recsys_lib.models.base import HistoryReader, check_histories, ragged

__all__ = ["DistinctEvents", "HistoryRecommender", "distinct", "recency_weights"]

_DAY = 86_400


@dataclass(frozen=True)
class DistinctEvents:
    """Each user's distinct items, by user and then by item.

    Attributes:
        users: (E,) int64.
        items: (E,) int64.
        timestamps: (E,) int64, the latest event of the pair.
        crow: (n_users + 1,) int64, where each user begins.
    """

    users: Tensor
    items: Tensor
    timestamps: Tensor
    crow: Tensor


def distinct(users: Tensor, items: Tensor, timestamps: Tensor, n_users: int, n_items: int) -> DistinctEvents:
    """Merges the events of a user with an item into one, keeping the latest time.

    Args:
        users: (E,) int64 below ``n_users``.
        items: (E,) int64 below ``n_items``.
        timestamps: (E,) int64.
        n_users: number of users, with or without events.
        n_items: size of the catalog.
    """
    keys, place = (users * n_items + items).unique(return_inverse=True)  # (E',), (E,)
    latest = torch.zeros_like(keys).scatter_reduce(0, place, timestamps, "amax", include_self=False)  # (E',)
    users = keys.div(n_items, rounding_mode="floor")  # (E',)
    counts = torch.bincount(users, minlength=n_users)  # (n_users,)
    crow = torch.cat([counts.new_zeros(1), counts.cumsum(0)])  # (n_users + 1,)
    return DistinctEvents(users, keys - users * n_items, latest, crow)


def recency_weights(events: DistinctEvents, recency: float, half_life_days: float | None) -> Tensor:
    """How much each event still says about its user's taste.

        weight = (1 + number of the user's events that came strictly later) ** -recency
                 * 0.5 ** (days before the user's last event / half_life_days)

    The first factor forgets by events, the second by the clock; with 0 and None every event weighs 1.
    Events of the same second weigh the same, so that no order among them is made up. A user's last event
    always weighs 1, so the weights do not shrink with the time since then.

    Returns:
        (E,) float32.
    """
    weights = torch.ones(len(events.items), dtype=torch.float32, device=events.items.device)  # (E,)
    if not len(weights) or (recency == 0.0 and half_life_days is None):
        return weights
    # Sort by user, then time; stable sorts from the last key to the first do that.
    order = events.timestamps.argsort(stable=True)
    order = order[events.users[order].argsort(stable=True)]  # (E,)
    users, timestamps = events.users[order], events.timestamps[order]  # (E,)
    if recency != 0.0:
        starts = torch.ones_like(users, dtype=torch.bool)  # (E,) does a new user or second begin here?
        starts[1:] = (users.diff() != 0) | (timestamps.diff() != 0)
        group = starts.cumsum(0) - 1  # (E,)
        end = torch.bincount(group).cumsum(0)[group]  # (E,) where the event's second ends
        later = events.crow[users + 1] - end  # (E,)
        weights *= (1 + later).float() ** -recency
    if half_life_days is not None:
        last = timestamps[events.crow[users + 1] - 1]  # (E,)
        weights *= 0.5 ** ((last - timestamps).float() / (_DAY * half_life_days))
    return torch.empty_like(weights).scatter_(0, order, weights)


class HistoryRecommender(HistoryReader):
    """A model whose scores are a function of a user's history alone.

    It keeps the histories of the users it was fitted on, and scores histories of anyone else as well. Users
    without events have an empty history.

    A subclass calls ``_keep_histories`` in ``_fit`` and implements ``_score_histories``.

    Args:
        recency: exponent of the power law by which older events count less; 0 counts all alike.
            See ``recency_weights``.
        half_life_days: the age in days, before the user's last event, at which an event counts half.
    """

    history_crow: Tensor  # (n_users + 1,) int64
    history_items: Tensor  # (E,) int64, distinct items, user after user
    history_weights: Tensor  # (E,) float32

    def __init__(self, recency: float = 0.0, half_life_days: float | None = None) -> None:
        super().__init__()
        if not recency >= 0:
            raise ValueError(f"recency must be 0 or more, got {recency}")
        if half_life_days is not None and not half_life_days > 0:
            raise ValueError(f"half_life_days must be above zero or None, got {half_life_days}")
        self.recency, self.half_life_days = recency, half_life_days

    def _keep_histories(self, interactions: Interactions) -> DistinctEvents:
        """Stores every user's distinct items and their weights; returns them."""
        events = distinct(
            interactions.users,
            interactions.items,
            interactions.timestamps,
            interactions.n_users,
            interactions.n_items,
        )
        self._keep("history_crow", events.crow)
        self._keep("history_items", events.items)
        self._keep("history_weights", recency_weights(events, self.recency, self.half_life_days))
        return events

    @abstractmethod
    def _score_histories(self, crow: Tensor, items: Tensor, weights: Tensor) -> Tensor:
        """Scores B histories: crow (B + 1,), items (E,) and weights (E,) float32 -> (B, n_items)."""

    def _score(self, users: Tensor) -> Tensor:
        place, _ = ragged(self.history_crow, users)  # (E,)
        lengths = self.history_crow.diff()[users]  # (B,)
        crow = torch.cat([lengths.new_zeros(1), lengths.cumsum(0)])  # (B + 1,)
        return self._score_histories(crow, self.history_items[place], self.history_weights[place])

    @torch.no_grad()
    def score_histories(
        self,
        histories: Sequence[Tensor | Sequence[int]],
        timestamps: Sequence[Tensor | Sequence[int]] | None = None,
    ) -> Tensor:
        """Scores every item for users given by their histories, known to the model or not.

        Args:
            histories: B lists or tensors of item indices, each (L_b,) oldest first; may be empty. Repeats
                count once, at their last place.
            timestamps: B lists or tensors of seconds, each (L_b,), when the events happened. Without them
                the order stands in: every event is later than the one before it. A model with
                ``half_life_days`` needs them.

        Returns:
            (B, n_items) float32 on the histories' device; for lists of numbers, on the model's.

        Raises:
            NotFittedError: before ``fit``.
            TypeError, ValueError, IndexError: histories that are no lists of known items, or timestamps that
                do not match them.
        """
        self._check_fitted()
        items, lengths = check_histories(histories, self.n_items, self.device)  # (E,), (B,)
        if timestamps is None:
            if self.half_life_days is not None:
                raise ValueError(
                    f"this {type(self).__name__} forgets by the clock, half_life_days={self.half_life_days}: "
                    f"give the events' timestamps"
                )
            times = torch.arange(len(items), device=items.device)  # (E,)
        else:
            if [len(t) for t in timestamps] != [len(history) for history in histories]:
                raise ValueError("timestamps must have one entry for each item of each history")
            given = [torch.as_tensor(t, dtype=torch.int64, device=items.device) for t in timestamps]
            times = torch.cat(given)  # (E,)
        device = items.device
        row = torch.repeat_interleave(torch.arange(len(lengths), device=device), lengths)  # (E,)
        events = distinct(row, items, times, len(lengths), self.n_items)
        weights = recency_weights(events, self.recency, self.half_life_days)  # (E',)
        scores = self._score_histories(
            events.crow.to(self.device), events.items.to(self.device), weights.to(self.device)
        )  # (B, n_items)
        return scores.to(device=device, dtype=torch.float32)
