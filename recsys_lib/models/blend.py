"""A weighted sum of recommenders, whose weights are found on events that they were not fitted on."""

import time
import warnings
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from recsys_lib.data import Interactions, leave_last_out, merge
from recsys_lib.data.ragged import offsets
from recsys_lib.devices import in_float32
from recsys_lib.metrics import ndcg
from recsys_lib.models.core.checks import check_histories
from recsys_lib.models.core.contract import Recommender
from recsys_lib.models.core.histories import with_times
from recsys_lib.models.core.options import data, learned, option
from recsys_lib.models.core.parts import MadeOfParts, changed_options
from recsys_lib.models.core.trained import TrainedRecommender
from recsys_lib.ranking import HeldOut, rank_topk, seen_in

__all__ = ["CUTOFF", "Blend", "standardized"]

_SHARES = (0.0, 0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.85, 0.9, 0.95, 1.0)
_SWEEPS = 5  # through the models; one without a change ends the search
CUTOFF = 10  # of the NDCG that weights are chosen by
_USERS_AT_ONCE = 512
_CELLS_KEPT = 2**28  # scores that are kept between the steps of the search, 1 GB


def standardized(scores: Tensor) -> Tensor:
    """Each row (B, n_items) to mean zero and variance one; a constant row to zeros."""
    centered = scores - scores.mean(dim=1, keepdim=True)  # (B, n_items)
    spread = centered.square().mean(dim=1, keepdim=True).sqrt()  # (B, 1)
    # What rounding leaves of a constant row is no difference.
    floor = 1e-6 * scores.abs().amax(dim=1, keepdim=True)  # (B, 1)
    return torch.where(spread > floor, centered / spread.clamp(min=1e-30), 0.0)


class Blend(MadeOfParts):
    """The weighted sum of several models' scores.

        s(u, i) = sum over m of w_m (s_m(u, i) - mean_m(u)) / deviation_m(u)        w_m >= 0, summing to one

    Mean and deviation are of the user's scores over the catalog, so that no model counts more because its
    scores are larger. Models that err differently gain from being added up.

    **Weights are found on events that no model has seen.** The models are fitted on the training events; the
    weights are those with the best NDCG@10 on the validation events, found one model's share at a time, from
    equal shares on. Then the models are fitted once more, on both together, and keep the weights: with
    ``refit=False`` they stay as they are. Without validation events the last ones of each training history
    serve (``holdout``).

    A model that stops early by the validation events is fitted for as many epochs the second time.

    It serves users of the fit, and people with a history where all models read histories
    (``reads_histories``). A user of whom no model knows anything is scored zero everywhere.
    """

    part_fields: ClassVar[tuple[str, ...]] = ("models",)
    part_folders: ClassVar[tuple[str, ...]] = ("model-*",)

    models: Sequence[Recommender] | None = data(
        "the models, at least one; fitted with the blend", default=None, kw_only=False
    )
    tune: bool = option("find the weights; else all models count alike", default=True)
    holdout: float = option(
        "share of each training history, its end, that serves as validation where none is given",
        default=0.2,
        above=0,
        below=1,
    )
    refit: bool = option("fit the models once more, on training and validation events", default=True)

    weights: Tensor = learned("(n_models,) float32, of each model")

    def __post_init__(self) -> None:
        """Takes the models in."""
        super().__post_init__()
        if isinstance(self.models, Recommender):
            raise TypeError(f"{type(self).__name__} takes a list of models; write [model]")
        given = list(self.models or [])
        wrong = next((one for one in given if not isinstance(one, Recommender)), None)
        if wrong is not None:
            kind = wrong.__name__ if isinstance(wrong, type) else type(wrong).__name__
            raise TypeError(f"models must be recommenders such as EASE(), got {kind}")
        if len({id(one) for one in given}) < len(given):
            raise ValueError("models holds one model more than once; make a second one, with another seed")
        self.models = nn.ModuleList(given)  # type: ignore[assignment]

    def parts(self) -> dict[str, Any]:
        """The models, numbered from zero."""
        return {f"model-{place:02}": model for place, model in enumerate(self._models)}

    @classmethod
    def parts_from(cls, loaded: dict[str, Recommender]) -> dict[str, Any]:
        """The models in their order."""
        if not loaded:
            raise LookupError("model-00")
        return {"models": [loaded[f"model-{place:02}"] for place in range(len(loaded))]}

    @property
    def _models(self) -> list[Recommender]:
        return list(self.models or [])

    # Learning.

    def _place(self, interactions: Interactions) -> torch.device:
        places = [model._place(interactions) for model in self._models]
        here = interactions.items.device
        return next((place for place in places if place.type != here.type), here)

    @property
    def learns(self) -> bool:
        """Whether there is anything to find out on events that the models have not seen."""
        return self.tune and len(self._models) > 1

    def _fit(self, interactions: Interactions, validation: Interactions | None, progress: bool) -> None:
        start = time.perf_counter()
        if not self._models:
            raise ValueError(
                f"{type(self).__name__} has no models: write {type(self).__name__}([EASE(), ...])"
            )
        n = len(self._models)
        self._keep("weights", torch.full((n,), 1 / n, device=interactions.items.device))
        if not self.learns:
            self._fit_all(interactions, validation, progress, start)
            return
        train, held_out = interactions, validation
        if held_out is None:
            parts = leave_last_out(interactions, self.holdout)
            train, held_out = parts.history, parts.test
        held_out = held_out.to(train.items.device)
        # A blend among the models must not be fitted on what is held out here.
        known = merge(train, held_out) if self.knows_answers else train
        with changed_options(self._models, Blend, {"refit": False}):
            self._fit_all(known, held_out, progress, start)
        self.learn(train, held_out)
        if self.refit:
            decided = {"epochs": lambda model: max(1, model.best_epoch)}
            with changed_options(self._models, TrainedRecommender, decided):
                self._fit_all(merge(train, held_out), None, progress, start)

    @property
    def knows_answers(self) -> bool:
        """Whether the models are fitted on what they are to find, which is a mistake."""
        return False

    def _fit_all(
        self, interactions: Interactions, validation: Interactions | None, progress: bool, start: float
    ) -> None:
        """Fits the models, and counts what it reads itself."""
        self._fit_parts(interactions, validation, progress, start)
        self._count(interactions)
        self._keep_past(interactions)

    def _count(self, interactions: Interactions) -> None:
        """Counts what it reads of training events itself; nothing here."""

    def _keep_past(self, interactions: Interactions) -> None:
        """Keeps what it reads of users' histories itself; nothing here."""

    @torch.no_grad()
    def learn(self, train: Interactions, held_out: Interactions) -> None:
        """Finds the weights on events that the models, fitted on ``train``, have not seen."""
        n = len(self._models)
        if not self.tune or n < 2 or (found := self._to_find(train, held_out)) is None:
            return
        shares = [1 / n] * n
        small = n * len(found.users) * self.n_items < _CELLS_KEPT
        kept = list(self._batches(found, train)) if small else None
        for _ in range(_SWEEPS):
            before = list(shares)
            for place in range(n):
                tried = [_with_share(shares, place, share) for share in _SHARES]
                tried = [shares, *tried]  # the first of equals wins
                values = self._values(kept or self._batches(found, train), found, tried)
                shares = tried[max(range(len(tried)), key=values.__getitem__)]
            if shares == before:
                break
        self._keep("weights", torch.tensor(shares, device=train.items.device))

    def _to_find(self, train: Interactions, held_out: Interactions) -> HeldOut | None:
        """What there is to find among held-out events, or None, with a warning, where there is nothing."""
        try:
            return HeldOut.of(held_out, train)
        except ValueError:
            warnings.warn(
                f"{type(self).__name__}: every held-out item is among its user's training events, so "
                f"there is nothing to learn from; all models count alike",
                stacklevel=4,
            )
            return None

    def _batches(self, found: HeldOut, train: Interactions) -> Iterator[tuple[Tensor, Tensor]]:
        """Of some users (b,) at a time the models' standardized scores (M, b, n_items), what was seen out."""
        left_out = seen_in(train)
        for users in found.users.to(self.device).split(_USERS_AT_ONCE):
            scores = torch.stack([standardized(one) for one in self._scores(users)])  # (M, b, I)
            for one in scores:
                one[left_out(users)] = -torch.inf
            yield users, scores

    def _values(
        self, batches: Iterable[tuple[Tensor, Tensor]], found: HeldOut, tried: list[list[float]]
    ) -> list[float]:
        """The mean NDCG@10 of each of several weightings."""
        lists: list[list[Tensor]] = [[] for _ in tried]
        for users, scores in batches:
            for shares, mine in zip(tried, lists, strict=True):
                mixed = sum(w * one for w, one in zip(shares, scores, strict=True) if w > 0)  # (b, I)
                assert isinstance(mixed, Tensor)
                mine.append(rank_topk(mixed, min(CUTOFF, self.n_items), users=users)[0])
        hits = [found.hits(torch.cat(mine)) for mine in lists]
        return [float(ndcg(one, found.n_relevant).mean()) for one in hits]

    # Answering.

    def _scores(self, users: Tensor) -> list[Tensor]:
        """The scores (B, n_items) of each model for users (B,)."""
        return [model.score(users) for model in self._models]

    def _scores_of_histories(
        self, histories: Sequence[Tensor], timestamps: Sequence[Any] | None
    ) -> list[Tensor]:
        """The same for people with histories."""
        models = self.parts().values()
        return [with_times(model.score_histories, histories, timestamps=timestamps) for model in models]

    def _blended(self, scores: Sequence[Tensor]) -> Tensor:
        """(B, n_items) of each model -> (B, n_items)."""
        mixed = torch.zeros_like(scores[0])  # (B, n_items)
        for weight, one in zip(self.weights.tolist(), scores, strict=True):
            if weight > 0:
                mixed += weight * standardized(one)
        return mixed

    def _score(self, users: Tensor) -> Tensor:
        return self._blended(self._scores(users))

    def _keep_histories(self, interactions: Interactions) -> None:
        self._update_parts(interactions)
        self._keep_past(interactions)

    @torch.no_grad()
    @in_float32()
    def score_histories(
        self,
        histories: Sequence[Tensor | Sequence[int]],
        timestamps: Sequence[Tensor | Sequence[int]] | None = None,
    ) -> Tensor:
        """Scores every item for people given by their histories, known to the models or not.

        Args:
            histories: B lists or tensors of item indices, each oldest first; may be empty.
            timestamps: B lists or tensors of seconds, for models that read the time.

        Returns:
            (B, n_items) float32 on the histories' device; for lists of numbers, on the model's.

        Raises:
            NotFittedError: before ``fit``.
            TypeError, IndexError: histories that are no lists of known items.
            ValueError: a model reads no histories, or timestamps that do not match them.
        """
        self._check_fitted()
        if not self.reads_histories:
            raise ValueError(self._no_histories())
        items, lengths = check_histories(histories, self.n_items, self.device)  # (E,), (B,)
        if timestamps is not None and [len(t) for t in timestamps] != lengths.tolist():
            raise ValueError("timestamps must have one entry for each item of each history")
        here = items.to(self.device)
        read = list(here.split(lengths.tolist()))
        scores = self._scores_of_histories(read, timestamps)
        answer = self._of_histories(scores, offsets(lengths.to(self.device)), here, timestamps)
        return answer.to(device=items.device, dtype=torch.float32)

    def _of_histories(
        self, scores: Sequence[Tensor], crow: Tensor, items: Tensor, timestamps: Sequence[Any] | None
    ) -> Tensor:
        """The answer (B, n_items) to histories, crow (B + 1,) and items (E,), from the models' scores."""
        return self._blended(scores)


def _with_share(shares: Sequence[float], place: int, share: float) -> list[float]:
    """One model's share set to a value, those of the others scaled to what is left."""
    rest = sum(shares) - shares[place]
    n = len(shares) - 1
    return [
        share if i == place else (1 - share) * (mine / rest if rest > 0 else 1 / n)
        for i, mine in enumerate(shares)
    ]
