"""What every model is: fit, score, predict, rank, recommend.

A model implements ``_fit`` and ``_score``; this module does the rest once for all of them: checks, timing,
random state, devices, lists.
"""

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Self, dataclass_transform

import pandas as pd
import torch
from torch import Tensor, nn

from recsys_lib.data import Interactions
from recsys_lib.devices import in_float32, isolated_rng, resolve_device
from recsys_lib.models.core.checks import (
    check_candidates,
    check_catalog,
    check_indices,
    check_interactions,
    check_length,
)
from recsys_lib.models.core.frames import left_out_of, similar_frame, users_frame, write_parquet
from recsys_lib.models.core.options import check_options, data, declare, learned, option, preset
from recsys_lib.models.core.saving import Saved
from recsys_lib.ranking import rank_candidates, score_batches, top_lists

__all__ = ["NotFittedError", "Recommender"]


class NotFittedError(RuntimeError):
    """The model has to be fitted first."""


@dataclass_transform(eq_default=False, kw_only_default=True, field_specifiers=(option, data, preset, learned))
class Recommender(Saved, ABC):
    """Base class of all models.

    A subclass declares its arguments with ``option`` and ``data``, and what it learns with ``learned``
    (see ``options``), and implements

    - ``_fit(interactions, validation, progress)``: learn from events that are on ``interactions.device``,
      and keep the result as parameters or, with ``_keep``, as buffers;
    - ``_score(users)``: (B,) valid indices on the model's device -> (B, n_items), no gradient recorded;
    - ``build()``, only where parameters or submodules are made: makes them for ``self.n_users`` and
      ``self.n_items``. Their values come from ``_fit`` or from a file.

    Random numbers: ``build`` and ``_fit`` run with the global random state seeded by the option ``seed`` and
    put back afterwards, so that any layer, seeded or not, gives the same numbers for the same seed.
    """

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Makes the constructor from the declared options; the hub's mixin then reads its signature."""
        declare(cls)
        super().__init_subclass__(**kwargs)

    def __new__(cls, *args: Any, **kwargs: Any) -> Self:
        """Makes it a module before the constructor sets the first option."""
        instance = super().__new__(cls, *args, **kwargs)
        nn.Module.__init__(instance)
        instance._n_users = instance._n_items = None
        instance.user_ids = instance.item_ids = None
        instance.max_seconds = None
        instance.fit_seconds = float("nan")
        return instance

    def __post_init__(self) -> None:
        """Checks the options; a subclass adds what concerns several of them."""
        check_options(self)

    # What a model is asked.

    @property
    def fitted(self) -> bool:
        """Whether ``fit`` or ``from_pretrained`` has run."""
        return self._n_items is not None

    @property
    def n_users(self) -> int:
        """Users that the model knows, as counted by the interactions of ``fit``."""
        self._check_fitted()
        assert self._n_users is not None
        return self._n_users

    @property
    def n_items(self) -> int:
        """Size of the catalog."""
        self._check_fitted()
        assert self._n_items is not None
        return self._n_items

    @property
    def device(self) -> torch.device:
        """Where the model's tensors live; the CPU before ``fit``."""
        for tensors in (self.parameters(), self.buffers()):
            for tensor in tensors:
                return tensor.device
        return torch.device("cpu")

    def fit(
        self,
        interactions: Interactions,
        validation: Interactions | None = None,
        *,
        device: str | torch.device = "auto",
        max_seconds: float | None = None,
        progress: bool = True,
    ) -> Self:
        """Learns from interactions; a second call starts over.

        Models that train in epochs can be stopped, by ``max_seconds`` or by Ctrl-C, and keep the best that
        they have found so far; ``stopped_by`` says what ended them.

        Args:
            interactions: training events. Models of implicit feedback take every event as a positive: pass
                ``interactions.positives(4.0)`` where ratings say otherwise.
            validation: events of the same users and items. Models that train in epochs stop early by the
                NDCG@10 on them; others ignore them.
            device: where it runs and where the model lives afterwards. ``"auto"``: models that train in
                epochs take an accelerator where there is one, the others stay where the events are.
            max_seconds: a budget of time for training in epochs; the step under way is finished, and with a
                validation set a last look is taken. Models that do not train in epochs take what they need.
            progress: show a bar on long work.

        Returns:
            The model itself.

        Raises:
            TypeError: not ``Interactions``.
            ValueError: no events, a validation set over other users or items, or a device that is not here.
            KeyboardInterrupt: Ctrl-C before there was anything to keep.
        """
        name = type(self).__name__
        check_options(self)  # an attribute may have been set since
        for given in (interactions, *([] if validation is None else [validation])):
            check_interactions(given, f"{name}.fit")
        if not len(interactions):
            raise ValueError(f"{name}.fit needs at least one event, got none")
        sizes = (interactions.n_users, interactions.n_items)
        if validation is not None:
            try:
                ids = (interactions.user_ids, interactions.item_ids)
                check_catalog(validation, sizes, *ids, "validation")
            except ValueError as error:
                raise ValueError(f"{name}.fit: both must come from one split ({error})") from error
        place = self._place(interactions) if device == "auto" else resolve_device(device)
        ids = (interactions.user_ids, interactions.item_ids)
        learn = lambda: self._fit(interactions.to(place), validation, progress)  # noqa: E731
        self._learn(learn, place, sizes, ids, max_seconds)
        return self

    def _learn(
        self,
        learn: Callable[[], None],
        place: torch.device,
        sizes: tuple[int, int],
        ids: tuple[pd.Index | None, pd.Index | None],
        max_seconds: float | None,
    ) -> None:
        """Makes the model anew and lets it learn; what all ways of fitting have in common.

        Args:
            learn: fills it with what it learns.
            place: where it lives.
            sizes: of users and items.
            ids: of users and items.
            max_seconds: as for ``fit``.
        """
        if max_seconds is not None and not max_seconds > 0:
            raise ValueError(f"max_seconds must be above 0 or None, got {max_seconds}")
        start = time.perf_counter()
        self._n_users, self._n_items = sizes
        self.user_ids, self.item_ids = ids
        self.max_seconds = max_seconds
        # Training needs gradients, whatever the caller's code is in the middle of.
        gradients = torch.inference_mode(False), torch.enable_grad()
        with isolated_rng(getattr(self, "seed", 0), place), in_float32(), gradients[0], gradients[1]:
            try:
                self.train()
                self.build()
                self.to(place)
                learn()
            except BaseException:
                self._n_users = self._n_items = None  # half a fit must not answer
                self.user_ids = self.item_ids = None
                raise
        self.eval()
        self.fit_seconds = time.perf_counter() - start

    @torch.no_grad()
    @in_float32()
    def score(self, users: Tensor) -> Tensor:
        """Scores every item for each user; higher is better, and only the order within a row means something.

        Args:
            users: (B,) integer indices, on any device.

        Returns:
            (B, n_items) float32 on the users' device, detached from any graph.

        Raises:
            NotFittedError: before ``fit``.
            TypeError: not an integer tensor.
            ValueError: not one-dimensional.
            IndexError: a user that the model does not know.
        """
        users = self._check_users(users)
        if not len(users):
            return torch.zeros(0, self.n_items, device=users.device)
        return self._score(users.to(self.device)).to(device=users.device, dtype=torch.float32)

    @torch.no_grad()
    @in_float32()
    def predict(self, users: Tensor, items: Tensor) -> Tensor:
        """What the model says of pairs: their scores, or for a model of ratings the expected ratings.

        Args:
            users: (N,) integer indices.
            items: (N,) integer indices.

        Returns:
            (N,) float32 on the users' device.

        Raises:
            NotFittedError, TypeError, ValueError, IndexError: as ``score``, for users and for items.
        """
        users = self._check_users(users)
        items = check_indices(items, self.n_items, "item").to(users.device)
        if users.shape != items.shape:
            raise ValueError(f"users and items must have one length, got {len(users)} and {len(items)}")
        if not len(users):
            return torch.zeros(0, device=users.device)
        here = self.device
        return self._predict(users.to(here), items.to(here)).to(device=users.device, dtype=torch.float32)

    @torch.no_grad()
    @in_float32()
    def rank(self, users: Tensor, candidates: Tensor) -> tuple[Tensor, Tensor]:
        """Puts each user's candidates in order, best first: the second stage after a retrieval.

        Args:
            users: (B,) integer indices.
            candidates: (B, C) integer item indices, a row for each user; -1 pads a short row.

        Returns:
            Items (B, C) int64, best first, and their scores (B, C) float32 as ``predict`` gives them, on the
            users' device. Padding comes last, as item -1 with score -inf. Equal scores are in the fair order
            of ``ranking.rank_topk``.

        Raises:
            NotFittedError, TypeError, IndexError: as ``score``.
            ValueError: a row too many or too few, or a row that names an item twice.
        """
        users = self._check_users(users)
        candidates = check_candidates(candidates, len(users), self.n_items).to(users.device)
        row, column = (candidates >= 0).nonzero(as_tuple=True)  # (N,), (N,)
        scores = torch.full(candidates.shape, -torch.inf, device=users.device)  # (B, C)
        scores[row, column] = self.predict(users[row], candidates[row, column])
        return rank_candidates(scores, candidates, users=users)

    def recommend(
        self,
        users: Tensor,
        k: int = 10,
        exclude: Interactions | None = None,
        *,
        allowed: Iterable[Any] | None = None,
        progress: bool = True,
    ) -> tuple[Tensor, Tensor]:
        """The ``k`` best items for each user, best first, by index; ``recommend_frame`` speaks in ids.

        Args:
            users: (B,) integer indices; scored in batches, so that memory does not grow with B x n_items.
            k: length of the list, at most ``n_items``.
            exclude: events whose items are left out of their user's list, as a rule what the user has seen.
            allowed: the caller's ids of the items that may be in a list, such as those in stock; ids that the
                model does not know are passed over. None allows all.
            progress: show a bar on long work.

        Returns:
            Items (B, k) int64 and their scores (B, k) float32, on the users' device. Where a user has
            fewer than ``k`` items left, the rest of the row is item -1 with score -inf.

        Raises:
            TypeError: ``k`` is not a whole number, or ``exclude`` no ``Interactions``.
            ValueError: ``k`` below 1 or above ``n_items``, ``exclude`` over other users or items, or no
                item that is allowed.
        """
        users = self._check_users(users)
        k = check_length(k, self.n_items)
        if exclude is not None:
            where = f"{type(self).__name__}.recommend(exclude=...)"
            check_interactions(exclude, where)
            check_catalog(exclude, (self.n_users, self.n_items), self.user_ids, self.item_ids, where)
        return top_lists(self, users, k, left_out_of(self, exclude, allowed), progress=progress)

    def recommend_frame(
        self,
        users: Iterable[Any] | Any,
        k: int = 10,
        *,
        items: pd.DataFrame | None = None,
        exclude: Interactions | None = None,
        allowed: Iterable[Any] | None = None,
        progress: bool = True,
    ) -> pd.DataFrame:
        """The ``k`` best items for each user, in the caller's own ids.

        ::

            model.recommend_frame(["C000588"], k=5, items=catalog, exclude=bought, allowed=in_stock)

        Args:
            users: ids of users, or one id.
            k: length of each list.
            items: a row an item, with its id in the column ``item_id`` or in the index; its other columns,
                such as the title, are added to the result.
            exclude: as for ``recommend``.
            allowed: as for ``recommend``.
            progress: show a bar on long work.

        Returns:
            A row a recommendation: ``user_id``, ``rank`` from 1, ``item_id``, ``score``, and the columns of
            ``items``. A user with fewer items left has fewer rows.

        Raises:
            KeyError: a user that the model does not know.
            TypeError, ValueError: as for ``recommend``, or ``items`` that do not fit.
        """
        self._check_fitted()
        return users_frame(self, users, k, items=items, exclude=exclude, allowed=allowed, progress=progress)

    def recommend_to_parquet(
        self,
        path: str | Path,
        k: int = 10,
        *,
        users: Iterable[Any] | None = None,
        exclude: Interactions | None = None,
        allowed: Iterable[Any] | None = None,
        progress: bool = True,
    ) -> Path:
        """Writes the lists of all users, or of some, to a Parquet file, a few thousand users at a time.

        Memory does not grow with the number of users. The file appears whole or not at all.

        Args:
            path: of the file; its folder must exist.
            k: length of each list.
            users: ids of users; None takes all.
            exclude: as for ``recommend``.
            allowed: as for ``recommend``.
            progress: show a bar on long work.

        Returns:
            The path. The file has the columns ``user_id``, ``rank``, ``item_id``, ``score``.
        """
        self._check_fitted()
        return write_parquet(self, path, k, users=users, exclude=exclude, allowed=allowed, progress=progress)

    def similar_items(
        self,
        of: Iterable[Any] | Any,
        k: int = 10,
        *,
        items: pd.DataFrame | None = None,
        allowed: Iterable[Any] | None = None,
    ) -> pd.DataFrame:
        """The items most like given ones, in the caller's own ids: "more like this".

        What alike means is the model's own: the cosine of factors, or what a history of that one item asks
        for.

        Args:
            of: ids of items, or one id.
            k: length of each list.
            items: as for ``recommend_frame``.
            allowed: as for ``recommend``.

        Returns:
            A row a pair: ``item_id``, ``rank`` from 1, ``similar_id``, ``score``, and the columns of
            ``items`` for the similar item. An item is never its own neighbor.

        Raises:
            TypeError: the model has no such notion.
            KeyError: an item that it does not know.
        """
        self._check_fitted()
        return similar_frame(self, of, k, items=items, allowed=allowed)

    # What a subclass implements.

    @abstractmethod
    def _fit(self, interactions: Interactions, validation: Interactions | None, progress: bool) -> None:
        """Learns; see the class."""

    @abstractmethod
    def _score(self, users: Tensor) -> Tensor:
        """(B,) checked indices on the model's device -> (B, n_items)."""

    def _predict(self, users: Tensor, items: Tensor) -> Tensor:
        """(N,), (N,) checked indices on the model's device -> (N,); the scores of the pairs by default.

        A user is scored once, however many pairs it has.
        """
        distinct, place = users.unique(return_inverse=True)  # (U,), (N,)
        order = place.argsort(stable=True)  # (N,) the pairs, user by user
        ends = place.bincount(minlength=len(distinct)).cumsum(0).tolist()
        found = torch.zeros(len(users), device=users.device)  # (N,)
        start, done = 0, 0
        for asked, scores in score_batches(self, distinct, progress=False):
            done += len(asked)
            mine = order[start : ends[done - 1]]  # (n,) pairs of the users in this batch
            found[mine] = scores[place[mine] - (done - len(asked)), items[mine]]
            start = ends[done - 1]
        return found

    def _similarities(self, items: Tensor) -> Tensor:
        """(B,) checked indices on the model's device -> (B, n_items): how alike all items are to each."""
        raise TypeError(f"{type(self).__name__} compares users, not items: it has no similar items")

    def _place(self, interactions: Interactions) -> torch.device:
        """Where ``fit`` runs with ``device="auto"``."""
        return interactions.items.device

    # Help for subclasses.

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Moves and converts, as ``to`` and ``half`` do; what was counted rather than learned stays float32.

        Neighbors and counts gain nothing from another type, and sparse products exist in few.
        """
        kept = {name: b for name, b in self._buffers.items() if b is not None and b.dtype == torch.float32}
        super()._apply(fn, recurse)
        for name, before in kept.items():
            after = self._buffers[name]
            if after is not None and after.dtype != torch.float32:
                self._buffers[name] = before.to(after.device)
        return self

    def _keep(self, name: str, tensor: Tensor) -> None:
        """Registers or replaces a buffer: it is saved, loaded and moved with the model."""
        self.register_buffer(name, tensor.detach().contiguous())

    def _check_fitted(self) -> None:
        if not self.fitted:
            name = type(self).__name__
            raise NotFittedError(
                f"this {name} is not fitted; call fit(interactions) or {name}.from_pretrained(...)"
            )

    def _check_users(self, users: Tensor) -> Tensor:
        self._check_fitted()
        return check_indices(users, self.n_users, "user")

    def _save_pretrained(self, save_directory: Any) -> None:
        self._check_fitted()
        super()._save_pretrained(save_directory)
