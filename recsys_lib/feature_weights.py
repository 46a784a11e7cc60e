"""How much each kind of item knowledge should count: weights of kernels, found on items left out in turn."""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import pandas as pd
import torch
from torch import Tensor

from recsys_lib.arguments import whole_number
from recsys_lib.data import Interactions
from recsys_lib.data.ragged import distinct_events
from recsys_lib.kernels import Features
from recsys_lib.metrics import ndcg
from recsys_lib.models.ease import _gram
from recsys_lib.models.item_feature_ridge import Shared
from recsys_lib.progress import progress_bar

__all__ = ["FeatureWeights", "find_weights"]

_CUTOFF = 10


@dataclass(frozen=True, eq=False)
class FeatureWeights:
    """What was found.

    Attributes:
        features: the kinds that have a weight, with it, for ``ItemFeatureRidge``.
        l2: the penalty that the weights go with.
        power: as given.
        value: NDCG@10 of items left out, which flatters: it was chosen by.
        trials: a row a trial: what was changed, the weight, the value and whether it was kept.
    """

    features: dict[str, Features]
    l2: float
    power: float
    value: float
    trials: pd.DataFrame

    @property
    def weights(self) -> dict[str, float]:
        """The weights by name."""
        return {name: kind.weight for name, kind in self.features.items()}


def find_weights(
    features: Mapping[str, Features],
    events: Interactions,
    *,
    items: Tensor | None = None,
    l2: float = 100.0,
    power: float = 1.0,
    changes: Sequence[float] = (0.0, 0.4, 2.5),
    first: float = 0.15,
    rounds: int = 2,
    least: float = 5e-4,
    group: int = 145,
    seed: int = 0,
    progress: bool = False,
) -> FeatureWeights:
    """Searches weights one kind after the other, by how well items left out are ranked.

    Each known item is scored in closed form as if it had no events (``ItemFeatureRidge``, ``leave_one_out``).
    The items are dealt into groups at random, and each group is ranked for everybody who chose one of it. A
    weight is multiplied by each of ``changes``; what gains at least ``least`` is kept. A kind of weight 0
    is tried with ``first`` times the largest weight. In each round the penalty is changed as well.

    Args:
        features: the kinds by name, with the weights to begin with, of which one is above 0.
        events: what is known. Leave out the events of items that are reported on.
        items: (N,) int64, items that are ranked; all that have events by default.
        l2: the penalty to begin with.
        power: of the model.
        changes: factors of a weight.
        first: share of the largest weight that a new kind is tried with.
        rounds: over all kinds; the search ends before where a round keeps nothing.
        least: gain that keeps a change.
        group: items that are ranked against each other.
        seed: of the groups.
        progress: show a bar.

    Raises:
        ValueError: no kind, or fewer than two items with events to rank.
    """
    group = whole_number(group, "group", at_least=2)
    rounds = whole_number(rounds, "rounds", at_least=1)
    if not features or not any(kind.weight > 0 for kind in features.values()):
        raise ValueError("needs one kind of features or more with a weight above 0 to begin with")
    judge = _Judge(features, events, items, power, group, seed)
    weights = {name: kind.weight for name, kind in features.items()}
    best = judge(weights, l2)
    rows: list[dict[str, object]] = [{"changed": "", "to": l2, "value": best, "kept": True}]
    names = ["l2", *features]
    for number in range(rounds):
        kept = False
        steps = itertools.product(names, changes)
        for name, change in progress_bar(list(steps), f"round {number + 1}", enabled=progress):
            new_weights, new_l2 = dict(weights), l2
            if name == "l2":
                new_l2 = l2 * change
            elif weights[name] > 0:
                new_weights[name] = weights[name] * change
            else:
                new_weights[name] = first * change * max(weights.values())
            changed = new_l2 if name == "l2" else new_weights[name]
            same = changed == (l2 if name == "l2" else weights[name])
            if same or new_l2 <= 0 or not any(new_weights.values()):
                continue
            value = judge(new_weights, new_l2)
            keep = value >= best + least
            rows.append({"changed": name, "to": changed, "value": value, "kept": keep})
            if keep:
                best, weights, l2, kept = value, new_weights, new_l2, True
        if not kept:
            break
    found = {name: replace(features[name], weight=weight) for name, weight in weights.items() if weight > 0}
    return FeatureWeights(found, l2, power, best, pd.DataFrame(rows))


class _Judge:
    """The value of weights: NDCG@10 of items left out, a mean over groups of items and their users."""

    def __init__(
        self,
        features: Mapping[str, Features],
        events: Interactions,
        items: Tensor | None,
        power: float,
        group: int,
        seed: int,
    ) -> None:
        events = events.to("cpu")
        distinct = distinct_events(
            events.users, events.items, events.timestamps, events.n_users, events.n_items
        )
        gram = _gram(distinct.crow, distinct.items, events.n_items).double()  # (I, I)
        known = gram.diagonal() > 0  # (I,)
        column = known.long().cumsum(0) - 1  # (I,)
        ranked = known.nonzero()[:, 0] if items is None else items.cpu()[known[items.cpu()]]  # (N,)
        if len(ranked) < 2:
            raise ValueError("needs two items with events or more to rank")
        self.power = power
        shared = Shared.of(gram[known][:, known], len(events.users.unique()))
        # A search needs no more digits than float32 has.
        self.shared = Shared(shared.strength.float(), shared.Q.float())
        kernels = {name: kind.kernel("cpu") for name, kind in features.items()}  # (I, I) each
        self.kernels = {name: K[known][:, known].float() for name, K in kernels.items()}  # (M, M) each
        self.all = torch.ones(int(known.sum()), dtype=torch.bool)  # (M,)
        self.chosen = torch.zeros(events.n_users, int(known.sum()))  # (U, M)
        self.chosen[distinct.users, column[distinct.items]] = 1.0
        generator = torch.Generator().manual_seed(seed)
        dealt = column[ranked][torch.randperm(len(ranked), generator=generator)]  # (N,)
        parts = max(1, round(len(dealt) / group))
        self.groups = list(dealt.tensor_split(parts))

    def __call__(self, weights: Mapping[str, float], l2: float) -> float:
        used = [weight * self.kernels[name] for name, weight in weights.items() if weight > 0]
        kernel = torch.stack(used).sum(dim=0) if len(used) > 1 else used[0]  # (M, M)
        B = self.shared.item_weights(kernel, self.all, l2, self.power, leave_one_out=True)  # (M, M)
        scores = self.chosen @ B  # (U, M)
        values = []
        for items in self.groups:
            relevant = self.chosen[:, items] > 0  # (U, G)
            asked = relevant.any(dim=1)  # (U,)
            first = scores[asked][:, items].topk(min(_CUTOFF, len(items)), dim=1).indices  # (u, k)
            hits = relevant[asked].gather(1, first)  # (u, k)
            values.append(ndcg(hits, relevant[asked].sum(dim=1)).mean())
        return float(torch.stack(values).mean())
