"""What a model does that has a vector for every user and one for every item: scores, and the vectors."""

from abc import abstractmethod
from collections.abc import Sequence
from typing import TypeVar

import pandas as pd
import torch
from torch import Tensor
from torch.nn import functional

from recsys_lib.data import Interactions
from recsys_lib.data.ragged import offsets
from recsys_lib.devices import in_float32
from recsys_lib.models.core.checks import check_histories, check_indices
from recsys_lib.models.core.histories import HistoryReader
from recsys_lib.models.core.options import learned, option
from recsys_lib.models.core.trained import TrainedRecommender
from recsys_lib.models.core.windows import kept_histories
from recsys_lib.similarity import cosine

__all__ = ["TwoSides"]

Examples = TypeVar("Examples")

_ITEMS_AT_ONCE = 512  # encoded at a time for the whole catalog; an encoder's activations are held meanwhile
_USERS_AT_ONCE = 1024  # encoded at a time


class TwoSides(TrainedRecommender[Examples], HistoryReader):
    """A model whose score is the dot product of a user's vector and an item's.

    The vectors of all items are computed once, at the end of ``fit``. Of a user it knows the number or the
    history. Users of whom nothing is known get the logarithm of each item's share of the events as scores;
    their vectors, and those of items of which nothing was learned, are refused by name.

    A subclass implements ``item_side``, ``text_side`` and ``user_side``, says whether it ``reads_histories``,
    and keeps ``log_popularity``, ``item_known``, and ``user_known`` or the histories, in ``prepare``.
    """

    normalize: bool = option("vectors of length 1, so that a score is a cosine", default=True)

    item_vectors: Tensor = learned("(n_items, d) float32, as they are compared")
    item_known: Tensor = learned("(n_items,) bool, items of which something was learned")
    user_known: Tensor = learned("(n_users,) bool, users with events, where they are known by number")
    log_popularity: Tensor = learned("(n_items,) float32")
    history_crow: Tensor = learned("(n_users + 1,) int64 offsets, where users are known by their history")
    history_items: Tensor = learned("(E,) int64, user after user, oldest first")

    @property
    @abstractmethod
    def reads_histories(self) -> bool:
        """Whether a user is known by the history; if not, by number."""

    @property
    def reads_texts(self) -> bool:
        """Whether ``encode_items`` makes vectors of texts that are new to it."""
        return False

    @abstractmethod
    def item_side(self, items: Tensor) -> Tensor:
        """Vectors of items (N,) int64, not normalized: (N, d)."""

    @abstractmethod
    def text_side(self, texts: Tensor | Sequence[str]) -> Tensor:
        """Vectors of items that may be new, by their texts, or by vectors (N, D) of these: (N, d)."""

    @abstractmethod
    def user_side(self, users: Tensor) -> Tensor:
        """Vectors of users by number, (B,) int64, not normalized: (B, d)."""

    @abstractmethod
    def history_side(self, items: Tensor, starts: Tensor, lengths: Tensor) -> Tensor:
        """Vectors of users by their histories, not normalized.

        Args:
            items: (E,) int64, histories one after another, each oldest first.
            starts: (B,) int64, where each begins.
            lengths: (B,) int64, one or more.

        Returns:
            (B, d)
        """

    def scaled(self, vectors: Tensor) -> Tensor:
        """Vectors (N, d) as they are compared."""
        return functional.normalize(vectors, dim=1) if self.normalize else vectors

    def forget(self) -> None:
        """Lets go of what an earlier fit has left, which ``build`` does not make anew."""
        for name in ("item_vectors", "item_known", "user_known", "history_crow", "history_items"):
            self._buffers.pop(name, None)

    def _fit(self, interactions: Interactions, validation: Interactions | None, progress: bool) -> None:
        super()._fit(interactions, validation, progress)
        self.eval()
        self._keep("item_vectors", self._catalog_vectors())

    # Vectors and scores.

    @torch.no_grad()
    def _catalog_vectors(self) -> Tensor:
        """All items as they are compared: (n_items, d) float32."""
        if "item_vectors" in self._buffers:
            return self.item_vectors
        everything = torch.arange(self.n_items, device=self.device)  # (n_items,)
        parts = [self.scaled(self.item_side(part).float()) for part in everything.split(_ITEMS_AT_ONCE)]
        return torch.cat(parts)  # (n_items, d)

    def _user_vectors(self, items: Tensor, starts: Tensor, lengths: Tensor) -> Tensor:
        """Histories of one event or more as they are compared: (B, d) float32."""
        parts = zip(starts.split(_USERS_AT_ONCE), lengths.split(_USERS_AT_ONCE), strict=True)
        found = [self.scaled(self.history_side(items, begin, n).float()) for begin, n in parts]
        return torch.cat(found)  # (B, d)

    def _scores(self, vectors: Tensor, known: Tensor) -> Tensor:
        """Scores (B, n_items): of the users that are known, (B,) bool, whose vectors (U, d) are given."""
        scores = self.log_popularity.repeat(len(known), 1)  # (B, n_items)
        scores[known] = vectors @ self._catalog_vectors().mT
        return scores

    def _score(self, users: Tensor) -> Tensor:
        if not self.reads_histories:
            known = self.user_known[users]  # (B,)
            return self._scores(self.scaled(self.user_side(users[known]).float()), known)
        starts, lengths = self.history_crow[users], self.history_crow.diff()[users]  # (B,), (B,)
        return self._score_stretches(self.history_items, starts, lengths)

    def _score_stretches(self, items: Tensor, starts: Tensor, lengths: Tensor) -> Tensor:
        known = lengths > 0  # (B,)
        if not bool(known.any()):
            return self.log_popularity.repeat(len(known), 1)
        return self._scores(self._user_vectors(items, starts[known], lengths[known]), known)

    def _keep_histories(self, interactions: Interactions) -> None:
        self._check_reading()
        crow, items = kept_histories(interactions, self.seed)  # (n_users + 1,), (E,)
        self._keep("history_crow", crow)
        self._keep("history_items", items)

    def _check_reading(self) -> None:
        if not self.reads_histories:
            raise ValueError(
                f"this {type(self).__name__} knows users by number and reads no histories; take a user tower "
                f"that does"
            )

    @torch.no_grad()
    @in_float32()
    def score_histories(self, histories: Sequence[Tensor | Sequence[int]]) -> Tensor:
        """Scores every item for users given by their histories, known to the model or not.

        Args:
            histories: B lists or tensors of item indices, each oldest first; may be empty. Only the most
                recent ``max_history`` events of each are read.

        Returns:
            (B, n_items) float32 on the histories' device; for lists of numbers, on the model's.

        Raises:
            NotFittedError: before ``fit``.
            TypeError: not a list of item indices each.
            ValueError: no history at all, one that is not one-dimensional, or a model that reads none.
            IndexError: an item that the model does not know; the message names it.
        """
        items, lengths = self._checked_histories(histories)  # (E,), (B,)
        starts, here = offsets(lengths)[:-1], self.device  # (B,)
        scores = self._score_stretches(items.to(here), starts.to(here), lengths.to(here))  # (B, n_items)
        return scores.to(device=items.device, dtype=torch.float32)

    def _checked_histories(self, histories: Sequence[Tensor | Sequence[int]]) -> tuple[Tensor, Tensor]:
        self._check_fitted()
        self._check_reading()
        return check_histories(histories, self.n_items, self.device)

    @torch.no_grad()
    @in_float32()
    def encode_users(self, users: Tensor | Sequence[Tensor | Sequence[int]]) -> Tensor:
        """The vectors of users, to search with among those of ``encode_items``.

        Args:
            users: (B,) integer indices of users of ``fit``; or histories, as for ``score_histories``, of
                anyone.

        Returns:
            (B, dim) float32 on the users' device; for lists of numbers, on the model's. Their dot products
            with ``encode_items()`` are the scores.

        Raises:
            NotFittedError, TypeError, IndexError: as ``score`` and ``score_histories``.
            ValueError: a user without events, or an empty history: nothing is known of them, and a vector
                would only pretend. ``score`` gives them what is popular.
        """
        if not isinstance(users, Tensor):
            items, lengths = self._checked_histories(users)  # (E,), (B,)
            if not bool((lengths > 0).all()):
                empty = int((lengths == 0).nonzero()[0, 0])
                raise ValueError(f"history {empty} is empty, so there is nothing to make a vector of")
            starts, here = offsets(lengths)[:-1], self.device  # (B,)
            return self._user_vectors(items.to(here), starts.to(here), lengths.to(here)).to(items.device)
        indices = self._check_users(users).to(self.device)  # (B,)
        known = (self.history_crow.diff() > 0 if self.reads_histories else self.user_known)[indices]  # (B,)
        if not bool(known.all()):
            user = int(indices[~known][0])
            name = _named(self.user_ids, user)
            raise ValueError(f"user {user}{name} has no events, so there is nothing to make a vector of")
        if self.reads_histories:
            starts, lengths = self.history_crow[indices], self.history_crow.diff()[indices]  # (B,), (B,)
            vectors = self._user_vectors(self.history_items, starts, lengths)  # (B, d)
        else:
            vectors = self.scaled(self.user_side(indices).float())  # (B, d)
        return vectors.to(users.device)

    @torch.no_grad()
    @in_float32()
    def encode_items(self, items: Tensor | Sequence[str] | None = None) -> Tensor:
        """The vectors of items, to be searched.

        Args:
            items: (N,) integer indices; or N texts of items that may be new; or (N, D) vectors of such texts,
                made as those of ``text`` were. None takes the catalog, in which items of which nothing was
                learned are zero (see ``item_known``).

        Returns:
            (N, dim) float32 on the items' device; for texts and for the catalog, on the model's.

        Raises:
            NotFittedError: before ``fit``.
            IndexError: an item that the model does not know.
            ValueError: an item without events of which only the number is read; texts for a tower that reads
                none; vectors of another width; or texts, where the encoder is not at hand.
        """
        self._check_fitted()
        if items is None:
            return self._catalog_vectors().clone()
        if isinstance(items, Tensor) and not items.is_floating_point():
            indices = check_indices(items, self.n_items, "item").to(self.device)  # (N,)
            unknown = indices[~self.item_known[indices]]  # (U,)
            if len(unknown):
                item = int(unknown[0])
                raise ValueError(
                    f"item {item}{_named(self.item_ids, item)} had no events in fit, and this "
                    f"{type(self).__name__} knows items by their events only; take an item tower that reads "
                    f"texts"
                )
            return self._catalog_vectors()[indices].to(items.device)
        vectors = self.scaled(self.text_side(items).float())  # (N, d)
        return vectors.to(items.device) if isinstance(items, Tensor) else vectors

    def _similarities(self, items: Tensor) -> Tensor:
        vectors = self._catalog_vectors()  # (n_items, d)
        return cosine(vectors[items], vectors)  # (B, n_items)


def _named(ids: pd.Index | None, place: int) -> str:
    """The caller's own id in brackets, as Python shows it: a number of numpy would name its type."""
    return "" if ids is None else f" ({ids[place : place + 1].tolist()[0]!r})"
