"""Models that know a user by what the user did: the histories they keep, and scoring from any history."""

import inspect
from abc import abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Self

import pandas as pd
import torch
from torch import Tensor

from recsys_lib.data import Interactions, check_seconds
from recsys_lib.data.ragged import (
    DistinctEvents,
    distinct_events,
    offsets,
    row_of_each,
    run_starts,
    sort_by,
    take_rows,
)
from recsys_lib.devices import in_float32
from recsys_lib.models.core.checks import (
    check_candidates,
    check_catalog,
    check_histories,
    check_interactions,
)
from recsys_lib.models.core.contract import Recommender
from recsys_lib.models.core.frames import histories_frame
from recsys_lib.models.core.options import learned, option
from recsys_lib.ranking import rank_candidates

__all__ = ["HistoryReader", "RecencyWeighted", "recency_weights", "times_of", "with_times"]

_DAY = 86_400


class HistoryReader(Recommender):
    """A model to which a user is a history: it keeps one for each user of ``fit``, and reads any other.

    A subclass implements ``_keep_histories``, which it also calls in ``_fit``, and ``score_histories``.
    """

    @abstractmethod
    def _keep_histories(self, interactions: Interactions) -> object:
        """Stores what ``score`` reads of every user."""

    @abstractmethod
    def score_histories(self, histories: Sequence[Tensor | Sequence[int]]) -> Tensor:
        """Scores every item for users given by their histories: (B, n_items)."""

    @torch.no_grad()
    @in_float32()
    def rank_histories(
        self,
        histories: Sequence[Tensor | Sequence[int]],
        candidates: Tensor,
        timestamps: Sequence[Tensor | Sequence[int]] | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Puts candidates in order for people given by their histories; ``rank`` does so for users.

        Args:
            histories: B lists or tensors of item indices, each oldest first; may be empty.
            candidates: (B, C) integer item indices, a row for each history; -1 pads a short row.
            timestamps: B lists or tensors of seconds, for a model that reads the time.

        Returns:
            Items (B, C) int64, best first, and their scores (B, C) float32, on the candidates' device;
            padding and ties as for ``rank``.

        Raises:
            NotFittedError, TypeError, ValueError, IndexError: as ``score_histories``, and as ``rank`` for the
                candidates.
        """
        self._check_fitted()
        # Checked before any work; the model's own method reads what was given.
        check_histories(histories, self.n_items, self.device)
        candidates = check_candidates(candidates, len(histories), self.n_items, "history")  # (B, C)
        device = candidates.device
        row, column = (candidates >= 0).nonzero(as_tuple=True)  # (N,), (N,)
        asked = candidates[row, column]  # (N,)
        scores = torch.full(candidates.shape, -torch.inf, device=device)  # (B, C)
        if len(row):
            found = self._predict_histories(histories, timestamps, row, asked)  # (N,)
            scores[row, column] = found.to(device, torch.float32)
        return rank_candidates(scores, candidates, users=torch.arange(len(histories), device=device))

    def _predict_histories(
        self,
        histories: Sequence[Tensor | Sequence[int]],
        timestamps: Sequence[Tensor | Sequence[int]] | None,
        row: Tensor,
        items: Tensor,
    ) -> Tensor:
        """Scores of N pairs, history ``row`` (N,) and item (N,): (N,); those of ``score_histories``."""
        scores = with_times(self.score_histories, histories, timestamps=timestamps)  # (B, n_items)
        return scores[row.to(scores.device), items.to(scores.device)]

    def recommend_histories(
        self,
        histories: Mapping[Any, Sequence[Any]] | Sequence[Sequence[Any]],
        k: int = 10,
        *,
        items: pd.DataFrame | None = None,
        allowed: Iterable[Any] | None = None,
        repeat: bool = False,
    ) -> pd.DataFrame:
        """The ``k`` best items for people never seen, from what they did, in the caller's own ids.

        ::

            model.recommend_histories({"a visitor": ["SKU-1", "SKU-7"]}, k=5, items=catalog)

        Args:
            histories: a name for each person and the ids of the person's items, oldest first; or a list of
                such lists, which are named 0, 1, ...
            k: length of each list.
            items: as for ``recommend_frame``.
            allowed: as for ``recommend``.
            repeat: whether an item of the history may be recommended again.

        Returns:
            As ``recommend_frame``, with the names in ``user_id``.

        Raises:
            KeyError: an item that the model does not know.
        """
        self._check_fitted()
        return histories_frame(self, histories, k, items=items, allowed=allowed, repeat=repeat)

    def _similarities(self, items: Tensor) -> Tensor:
        return self.score_histories([item[None] for item in items])  # (B, n_items)

    @torch.no_grad()
    @in_float32()
    def update_histories(self, interactions: Interactions) -> Self:
        """Replaces the histories that ``score`` reads. What was learned stays as it is.

        For the time between two fits: new events count at once, at the cost of no training.

        Args:
            interactions: all events of all users, by the user and item indices of ``fit``. Users without
                events get an empty history.

        Returns:
            The model itself.

        Raises:
            NotFittedError: before ``fit``.
            TypeError: not ``Interactions``.
            ValueError: they count other users or items than the model.
        """
        self._check_fitted()
        where = f"{type(self).__name__}.update_histories"
        check_interactions(interactions, where)
        check_catalog(interactions, (self.n_users, self.n_items), self.user_ids, self.item_ids, where)
        self._keep_histories(interactions.to(self.device))
        return self


class RecencyWeighted(HistoryReader):
    """A model of the set of a user's items, in which recent ones can weigh more.

    Its scores are a function of the distinct items of a history and of their weights; the order counts only
    through these. It keeps the histories of the users it was fitted on, and scores those of anyone else.
    Users without events have an empty history.

    A subclass calls ``_keep_histories`` in ``_fit`` and implements ``_score_histories``.
    """

    recency: float = option(
        "exponent of the power law by which older events count less; 0 counts all alike",
        default=0.0,
        at_least=0,
    )
    half_life_days: float | None = option(
        "age in days, before the user's last event, at which an event counts half", default=None, above=0
    )

    history_crow: Tensor = learned("(n_users + 1,) int64 offsets")
    history_items: Tensor = learned("(E,) int64, distinct items, user after user")
    history_weights: Tensor = learned("(E,) float32")

    def _keep_histories(self, interactions: Interactions) -> DistinctEvents:
        """Stores every user's distinct items and their weights; returns them."""
        users, items, times = interactions.users, interactions.items, interactions.timestamps
        events = distinct_events(users, items, times, interactions.n_users, interactions.n_items)
        self._keep("history_crow", events.crow)
        self._keep("history_items", events.items)
        self._keep("history_weights", recency_weights(events, self.recency, self.half_life_days))
        return events

    @abstractmethod
    def _score_histories(self, crow: Tensor, items: Tensor, weights: Tensor) -> Tensor:
        """Scores B histories: crow (B + 1,), items (E,) and weights (E,) float32 -> (B, n_items)."""

    def _similarities(self, items: Tensor) -> Tensor:
        crow = torch.arange(len(items) + 1, device=items.device)  # (B + 1,) histories of one item
        weights = torch.ones(len(items), dtype=torch.float32, device=items.device)  # (B,)
        return self._score_histories(crow, items, weights)  # (B, n_items)

    def _score(self, users: Tensor) -> Tensor:
        place, _ = take_rows(self.history_crow, users)  # (E,)
        crow = offsets(self.history_crow.diff()[users])  # (B + 1,)
        return self._score_histories(crow, self.history_items[place], self.history_weights[place])

    @torch.no_grad()
    @in_float32()
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
        crow, items, weights, device = self._read(histories, timestamps, "score_histories")
        scores = self._score_histories(crow, items, weights)  # (B, n_items)
        return scores.to(device=device, dtype=torch.float32)

    def _read(
        self,
        histories: Sequence[Tensor | Sequence[int]],
        timestamps: Sequence[Tensor | Sequence[int]] | None,
        method: str,
    ) -> tuple[Tensor, Tensor, Tensor, torch.device]:
        """Histories, checked, as the model keeps its own.

        Args:
            histories: as for ``score_histories``.
            timestamps: as for ``score_histories``.
            method: that was called, for the errors.

        Returns:
            crow (B + 1,) int64, distinct items (E,) int64 and their weights (E,) float32 on the model's
            device; and the device that the answer belongs on.
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
            given = [torch.as_tensor(t, device=items.device) for t in timestamps]
            filled = [t for t in given if len(t)]  # an empty list has no type of its own
            where = f"{type(self).__name__}.{method}"
            times = check_seconds(torch.cat(filled), where) if filled else items[:0]  # (E,)
        row = row_of_each(offsets(lengths))  # (E,)
        events = distinct_events(row, items, times, len(lengths), self.n_items)
        weights = recency_weights(events, self.recency, self.half_life_days)  # (E',)
        to = self.device
        return events.crow.to(to), events.items.to(to), weights.to(to), items.device


def with_times(ask: Callable[..., Any], *given: Any, timestamps: Sequence[Any] | None) -> Any:
    """Asks a method of a model with the times of the events, where it reads them."""
    if timestamps is None or "timestamps" not in inspect.signature(ask).parameters:
        return ask(*given)
    return ask(*given, timestamps=timestamps)


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
    order = sort_by(events.users, events.timestamps)  # (E,)
    users, timestamps = events.users[order], events.timestamps[order]  # (E,)
    if recency != 0.0:
        second = run_starts(users, timestamps).cumsum(0) - 1  # (E,) the tied group of each event
        end = torch.bincount(second).cumsum(0)[second]  # (E,) where the event's second ends
        later = events.crow[users + 1] - end  # (E,)
        weights *= (1 + later).float() ** -recency
    if half_life_days is not None:
        last = timestamps[events.crow[users + 1] - 1]  # (E,)
        weights *= 0.5 ** ((last - timestamps).float() / (_DAY * half_life_days))
    return torch.empty_like(weights).scatter_(0, order, weights)


def times_of(
    items: Tensor, lengths: Tensor, timestamps: Sequence[Any] | None, now: Tensor, where: str
) -> Tensor:
    """When the events of histories happened.

    Args:
        items: (E,) of all histories, one after another.
        lengths: (B,) of each.
        timestamps: B lists or tensors of seconds. Without them each event is a second later than the one
            before it, and the last is at ``now``.
        now: () int64.
        where: the method that was called.

    Returns:
        (E,) int64 on the items' device.

    Raises:
        TypeError, ValueError: timestamps that do not match the histories.
    """
    if timestamps is None:
        crow = offsets(lengths)  # (B + 1,)
        left = crow[1:][row_of_each(crow)] - 1 - torch.arange(len(items), device=items.device)  # (E,)
        return now.to(items.device) - left
    if [len(t) for t in timestamps] != lengths.tolist():
        raise ValueError("timestamps must have one entry for each item of each history")
    filled = [torch.as_tensor(t, device=items.device) for t in timestamps if len(t)]
    return check_seconds(torch.cat(filled), where) if filled else items[:0]
