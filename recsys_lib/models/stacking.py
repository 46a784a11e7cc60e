"""A second stage that learns from several models at once: their scores of a candidate are its features."""

import warnings
from collections.abc import Sequence
from operator import itemgetter
from typing import Any

import torch
from torch import Tensor, nn

from recsys_lib.data import Interactions
from recsys_lib.data.ragged import offsets
from recsys_lib.devices import seed_generator
from recsys_lib.losses import sampled_softmax_loss
from recsys_lib.metrics import ndcg
from recsys_lib.models.blend import CUTOFF, Blend
from recsys_lib.models.core.histories import times_of
from recsys_lib.models.core.options import learned, option
from recsys_lib.models.core.pair_tables import (
    CANDIDATE_FEATURES,
    Moments,
    PairTables,
    blocks,
    prefixes,
    retrieval_features,
)
from recsys_lib.models.core.windows import shuffle_ties

__all__ = ["MODEL_FEATURES", "StackedLinear", "StackedNetwork"]

MODEL_FEATURES = (
    "score, standardized over the items not yet chosen",
    "minus the logarithm of its rank there",
    "logarithm of its softmax there",
)

_PENALTIES = (1e-3, 1e-2, 1e-1, 1.0)
_STEPS = 100  # of the optimizer, at most
_USERS_AT_ONCE = 512


class StackedLinear(Blend):
    """A weight for every model's view of a candidate, learned by a softmax over whole lists.

        s(u, i) = w . [features of model 1, ..., features of model M, features of the moment](u, i)

    Where a blend gives each model one weight, this one can trust a model's first places more than its scores,
    and correct what all of them neglect: what is popular now, what goes with the latest items.

    **Candidates** are the ``n_candidates`` best items of the blend of the models that the user has not had
    (``Blend``; its weights are found first). Of each model a candidate has the features MODEL_FEATURES, of
    the moment those of ``pair_tables.CANDIDATE_FEATURES``, where the retriever is the blend. All other items
    come after the candidates, in the order of the blend.

    **Lists to learn from look like lists to rank.** As for the blend's weights, the models are fitted on the
    training events alone; each user's list has what the blend then offers, and targets are the validation
    events that are in it. The loss is a softmax over a target and all candidates that are none
    (``losses.sampled_softmax_loss``), with a penalty on the squared weights: the one with the best NDCG@10 on
    users left out, in turn one of ``n_folds`` parts. Then the models are fitted once more, on training and
    validation events, and the weights stay. With ``leak=True`` the models know the targets while it learns,
    to see what that costs.

    Source: Wolpert 1992, "Stacked Generalization", section 2; the loss after Cao, Qin, Liu, Tsai, Li 2007,
    "Learning to Rank: From Pairwise Approach to Listwise Approach", section 4.
    """

    n_candidates: int = option("items that are ranked anew", default=100, at_least=2)
    n_folds: int = option("parts of the users, of which each is left out once", default=5, at_least=2)
    penalty: float | None = option(
        "on the squared weights; None finds it on users left out", default=None, at_least=0
    )
    max_users: int = option("users that are learned from", default=10_000, at_least=1)
    n_history: int = option("most recent events that are held against each candidate", default=20, at_least=1)
    window_days: float = option("in which popularity counts as recent", default=14.0, above=0)
    leak: bool = option("learn from models that know the targets, to see what it costs", default=False)

    tables: PairTables = learned("counts")
    net: nn.Module = learned("from features to a score")
    center: Tensor = learned("(F,) float32, means of the features")
    size: Tensor = learned("(F,) float32, their standard deviations")
    now: Tensor = learned("() int64, the last moment of the training events")
    history_crow: Tensor = learned("(n_users + 1,) int64 offsets")
    history_items: Tensor = learned("(E,) int64, user after user, oldest first")
    history_times: Tensor = learned("(E,) int64")

    def build(self) -> None:
        """Makes a place for the counts, and the network."""
        self.tables = PairTables()
        self.net = self.make(self.n_features)

    @property
    def n_features(self) -> int:
        """How many features a candidate has: F."""
        return len(MODEL_FEATURES) * len(self._models) + len(CANDIDATE_FEATURES)

    def make(self, n_features: int) -> nn.Module:
        """A module from features (..., F) to scores (..., 1), which begins with the order of the blend."""
        return _Linear(n_features, len(MODEL_FEATURES) * len(self._models))

    @property
    def blend(self) -> Blend:
        """The blend that finds the candidates, of the same fitted models: the retriever of a ``Pipeline``."""
        self._check_fitted()
        blend = Blend(self._models, tune=self.tune, holdout=self.holdout, refit=self.refit)
        blend._n_users, blend._n_items = self._n_users, self._n_items
        blend.user_ids, blend.item_ids = self.user_ids, self.item_ids
        blend.fit_seconds = self.fit_seconds
        blend._keep("weights", self.weights)
        return blend.eval()

    # Learning.

    @property
    def learns(self) -> bool:
        """It does, from one model as well."""
        return True

    @property
    def knows_answers(self) -> bool:
        """As the option says."""
        return self.leak

    def _count(self, interactions: Interactions) -> None:
        self.tables.cpu().fill(interactions.to("cpu"), self.window_days)
        self.tables.to(interactions.items.device)
        self._keep("now", interactions.timestamps.max())

    def _keep_past(self, interactions: Interactions) -> None:
        # On the CPU whatever the device is, so that the order of ties is the same on all.
        order = shuffle_ties(interactions, seed_generator(0))  # (E,)
        self._keep("history_crow", offsets(interactions.user_counts()))
        self._keep("history_items", interactions.items[order])
        self._keep("history_times", interactions.timestamps[order])

    def learn(self, train: Interactions, held_out: Interactions) -> None:
        """Finds the weights of the blend, then those of the features."""
        super().learn(train, held_out)
        device = train.items.device
        self._keep("center", torch.zeros(self.n_features, device=device))
        self._keep("size", torch.ones(self.n_features, device=device))
        if (found := self._to_find(train, held_out)) is None:
            return
        self._keep_past(train)  # of what is to be found nothing counts as had
        chosen = torch.arange(len(found.users), device="cpu")  # (U,)
        if self.max_users < len(chosen):
            chosen = chosen[:: -(-len(chosen) // self.max_users)]
        lists = []
        with torch.no_grad():
            for users in found.users[chosen].to(device).split(_USERS_AT_ONCE):
                scores = self._scores(users)  # M of (b, I)
                lists.append(self._candidates(scores, self._blended(scores), self._moments(users)))
        items, features = (torch.cat(parts) for parts in zip(*lists, strict=True))  # (U, C), (U, C, F)
        keys = found.users[chosen][:, None] * self.n_items + items.cpu()  # (U, C)
        targets = (torch.isin(keys, found.relevant) & (items.cpu() >= 0)).to(device)  # (U, C)
        there = items >= 0  # (U, C)
        useful = targets.any(dim=1) & (there & ~targets).any(dim=1)  # (U,)
        if not bool(useful.any()):
            warnings.warn(
                f"{type(self).__name__}: no held-out item is among others in its user's candidates, so there "
                f"is nothing to learn from; the order stays that of the blend",
                stacklevel=4,
            )
            return
        features, there, targets = features[useful], there[useful], targets[useful]
        n_relevant = found.n_relevant[chosen].to(device)[useful]  # (U,)
        present = features[there]  # (N, F)
        self._keep("center", present.mean(dim=0))
        spread = present.std(dim=0, correction=0)  # (F,)
        self._keep("size", torch.where(spread > 1e-6, spread, 1.0))
        features = self._standard(features)  # (U, C, F)
        self.net = self._trained(
            features, there, targets, self._penalty(features, there, targets, n_relevant)
        )

    def _penalty(self, features: Tensor, there: Tensor, targets: Tensor, n_relevant: Tensor) -> float:
        """The penalty that is best for users left out."""
        if self.penalty is not None:
            return self.penalty
        fold = torch.arange(len(features), device=features.device) % self.n_folds  # (U,)
        if len(features) < 2 * self.n_folds:
            return max(_PENALTIES)  # too few to tell
        found = []
        for penalty in sorted(_PENALTIES, reverse=True):  # the strongest of equals
            total = 0.0
            for out in range(self.n_folds):
                kept, left = fold != out, fold == out
                net = self._trained(features[kept], there[kept], targets[kept], penalty)
                with torch.no_grad():
                    scores = net(features[left])[..., 0].masked_fill(~there[left], -torch.inf)  # (u, C)
                first = scores.sort(dim=1, descending=True, stable=True)[1][:, :CUTOFF]  # (u, k)
                total += float(ndcg(targets[left].gather(1, first), n_relevant[left]).sum())
            found.append((total, penalty))
        return max(found, key=itemgetter(0))[1]

    def _trained(self, features: Tensor, there: Tensor, targets: Tensor, penalty: float) -> nn.Module:
        """A network that has learned from lists: (U, C, F) standardized, (U, C) bool, (U, C) bool."""
        with torch.enable_grad():
            net = self.make(features.shape[2]).to(features.device)
            weights = list(net.parameters())
            steps = torch.optim.LBFGS(weights, max_iter=_STEPS, line_search_fn="strong_wolfe")

            def loss() -> Tensor:
                steps.zero_grad()
                total = _loss(net(features)[..., 0], there, targets)  # ()
                total = total + penalty * sum(weight.square().sum() for weight in weights)
                total.backward()
                return total

            steps.step(loss)
        return net

    # Features.

    def _moments(self, users: Tensor) -> Moments:
        """What users (B,) had done."""
        crow, place = prefixes(self.history_crow[users], self.history_crow.diff()[users])
        items, times = self.history_items[place], self.history_times[place]  # (E,), (E,)
        return self.tables.moments(crow, items, times, self.n_history, self.now)

    def _candidates(
        self, scores: Sequence[Tensor], blended: Tensor, moments: Moments
    ) -> tuple[Tensor, Tensor]:
        """The blend's best that are not had, and their features: (B, C) int64, -1 pads, and (B, C, F)."""
        best, items = blended.masked_fill(moments.seen, -torch.inf).topk(
            min(self.n_candidates, self.n_items), dim=1
        )  # (B, C)
        asked, parts = items.clamp(min=0), []  # (B, C)
        for one in scores:
            parts.append(retrieval_features(one, moments.seen, asked))  # (B, C, 2)
            share = one.masked_fill(moments.seen, -torch.inf).log_softmax(dim=1)  # (B, I)
            parts.append(share.gather(1, asked)[..., None])  # (B, C, 1)
        retrieved = retrieval_features(blended, moments.seen, asked)  # (B, C, 2)
        counted = []  # of (b, C, F')
        for rows in blocks(len(items), self.n_history * items.shape[1], items.device):
            mine, these = moments[rows], asked[rows]
            pairs = self.tables.pair_scalars(mine, these)  # (b, L, C, P)
            counted.append(self.tables.features(mine, these, retrieved[rows], pairs))
        features = torch.cat([*parts, torch.cat(counted)], dim=-1)  # (B, C, F)
        gone = best == -torch.inf  # (B, C)
        return items.masked_fill(gone, -1), features.masked_fill(gone[..., None], 0.0)

    def _standard(self, features: Tensor) -> Tensor:
        return ((features - self.center) / self.size).clamp(-10, 10)

    # Answering.

    def _ranked(self, scores: Sequence[Tensor], moments: Moments) -> Tensor:
        """The answer (B, n_items): the candidates by what was learned, all else behind them."""
        blended = self._blended(scores)  # (B, I)
        items, features = self._candidates(scores, blended, moments)  # (B, C), (B, C, F)
        dtype = next(self.net.parameters()).dtype
        out = self.net(self._standard(features).to(dtype))[..., 0].float()  # (B, C)
        row, column = (items >= 0).nonzero(as_tuple=True)  # (N,), (N,)
        beyond = torch.ones_like(blended, dtype=torch.bool)  # (B, I)
        beyond[row, items[row, column]] = False
        least = out.masked_fill(items < 0, torch.inf).amin(dim=1, keepdim=True)  # (B, 1)
        most = blended.masked_fill(~beyond, -torch.inf).amax(dim=1, keepdim=True)  # (B, 1)
        answer = blended + (least - most - 1).nan_to_num(posinf=0.0, neginf=0.0)  # (B, I)
        answer[row, items[row, column]] = out[row, column]
        return answer

    def _score(self, users: Tensor) -> Tensor:
        return self._ranked(self._scores(users), self._moments(users))

    def _of_histories(
        self, scores: Sequence[Tensor], crow: Tensor, items: Tensor, timestamps: Sequence[Any] | None
    ) -> Tensor:
        where = f"{type(self).__name__}.score_histories"
        times = times_of(items, crow.diff(), timestamps, self.now, where)  # (E,)
        return self._ranked(scores, self.tables.moments(crow, items, times, self.n_history, self.now))


class StackedNetwork(StackedLinear):
    """The same features, read by a small network: what one says can depend on what another does.

    Its score is added to that of a linear model.
    """

    dim: int = option("hidden units", default=24, at_least=1)
    seed: int = option("of the first weights", default=0)

    def make(self, n_features: int) -> nn.Module:
        """The network, the same first weights each time."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            return _Hidden(n_features, self.dim, len(MODEL_FEATURES) * len(self._models))


class _Linear(nn.Module):
    """A weight a feature; no constant, which no softmax over a list feels."""

    def __init__(self, n_features: int, first: int) -> None:
        super().__init__()
        self.weights = nn.Linear(n_features, 1, bias=False)
        nn.init.zeros_(self.weights.weight)
        with torch.no_grad():
            self.weights.weight[0, first] = 1.0

    def forward(self, features: Tensor) -> Tensor:
        """(..., F) to (..., 1)."""
        return self.weights(features)


class _Hidden(nn.Module):
    """See ``StackedNetwork``."""

    def __init__(self, n_features: int, dim: int, first: int) -> None:
        super().__init__()
        self.linear = _Linear(n_features, first)
        self.hidden = nn.Sequential(nn.Linear(n_features, dim), nn.GELU(), nn.Linear(dim, 1, bias=False))

    def forward(self, features: Tensor) -> Tensor:
        """(..., F) to (..., 1)."""
        return self.linear(features) + self.hidden(features)


def _loss(scores: Tensor, there: Tensor, targets: Tensor) -> Tensor:
    """Each target against the candidates that are none: scores (U, C), (U, C) bool, (U, C) bool to ()."""
    row, column = targets.nonzero(as_tuple=True)  # (N,), (N,)
    # A user's targets compete with the same others: one of the weight of all stands for them.
    others = scores.masked_fill(~there | targets, -torch.inf).logsumexp(dim=1, keepdim=True)  # (U, 1)
    return sampled_softmax_loss(scores[row, column], others[row])
