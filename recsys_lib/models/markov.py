"""The next item from the last one alone: the bar for every model that claims to read a sequence."""

import math

import torch
from torch import Tensor

from recsys_lib.data import Interactions
from recsys_lib.data.ragged import offsets, row_of_each, run_starts, take_rows
from recsys_lib.models.core.histories import RecencyWeighted
from recsys_lib.models.core.options import learned, option, preset

__all__ = ["MarkovChain"]

_PAIRS = 2**23  # pairs of events counted at once


class MarkovChain(RecencyWeighted):
    """First-order Markov chain: the probability of the next item, given the last one.

    How often j came right after i, shrunk toward the popularity of j, since most pairs are too rare to tell:

        P(j | i) = (c_ij + shrink p_j) / (c_i + shrink)

    c_ij counts the times that j came right after i, and c_i is its sum over j; p_j is the share of events
    with j, one added to each item's count.

    Events of one user at one time have no order. What is counted is then the mean over all their orders: in a
    group of a events each ordered pair is adjacent with probability 1 / a, and each event of the group is
    next to each of the b events of the following group with probability 1 / (a b). For the same reason, a
    user whose last event is tied gets the mean of P over the tied items. So nothing depends on the order of
    rows or on how items are numbered. Without timestamps, each user's events are one such group.

    A user without events gets p.

    Source: the Dirichlet prior of MacKay and Peto 1995, "A Hierarchical Dirichlet Language Model", with
    popularity as its mean. Rendle, Freudenthaler, Schmidt-Thieme 2010, "Factorizing Personalized Markov
    Chains for Next-Basket Recommendation", section 4.1, for sets of events that have no order among them.
    """

    # Above zero: an item that nothing came after has no counts.
    shrink: float = option("weight of popularity, in transitions", default=50.0, above=0)
    # With an infinite exponent the last event, or tied group, weighs 1 and all before it 0.
    recency: float = preset(default=math.inf)
    half_life_days: float | None = preset(default=None)

    transition_crow: Tensor = learned("(n_items + 1,) int64 offsets")
    transition_items: Tensor = learned("(P,) int64, ascending within a row")
    transition_counts: Tensor = learned("(P,) float32, c_ij")
    popularity: Tensor = learned("(n_items,) float32, p")

    def _fit(self, interactions: Interactions, validation: Interactions | None, progress: bool) -> None:
        self._keep_histories(interactions)
        keys, counts = _transitions(interactions)
        rows = keys.div(self.n_items, rounding_mode="floor")  # (P,)
        per_row = torch.bincount(rows, minlength=self.n_items)  # (n_items,)
        self._keep("transition_crow", offsets(per_row))
        self._keep("transition_items", keys - rows * self.n_items)
        self._keep("transition_counts", counts)
        popularity = torch.bincount(interactions.items, minlength=self.n_items) + 1.0  # (n_items,)
        self._keep("popularity", popularity / popularity.sum())

    def _score_histories(self, crow: Tensor, items: Tensor, weights: Tensor) -> Tensor:
        n_rows, device = len(crow) - 1, items.device
        row = row_of_each(crow)  # (E,)
        final = weights > 0  # (E,) is it the last event, or of the last tied group?
        row, last = row[final], items[final]  # (F,)
        share = 1.0 / torch.bincount(row, minlength=n_rows)[row]  # (F,) one over the size of the group
        place, which = take_rows(self.transition_crow, last)  # (Q,) transitions out of them, and out of which
        counts = self.transition_counts[place]  # (Q,)
        left = torch.zeros(len(last), device=device).index_add_(0, which, counts)  # (F,) c_i
        per_count = share / (left + self.shrink)  # (F,)

        cell = row[which] * self.n_items + self.transition_items[place]  # (Q,)
        scores = torch.zeros(n_rows * self.n_items, device=device)  # (B n_items,)
        scores.index_add_(0, cell, counts * per_count[which])
        prior = torch.zeros(n_rows, device=device).index_add_(0, row, self.shrink * per_count)  # (B,)
        prior = prior.masked_fill(crow.diff() == 0, 1.0)  # without events popularity is all there is
        return scores.view(n_rows, self.n_items) + prior[:, None] * self.popularity  # (B, n_items)


def _transitions(interactions: Interactions) -> tuple[Tensor, Tensor]:
    """Expected numbers of transitions, over all orders of tied events.

    Returns:
        keys (P,) int64 ascending, from-item times n_items plus to-item; counts (P,) float32.
    """
    users, items = interactions.users, interactions.items  # (E,), by user and time
    opens = run_starts(users, interactions.timestamps)  # (E,) does a new user or time begin here?
    group = opens.cumsum(0) - 1  # (E,)
    size = torch.bincount(group)  # (G,)
    start = size.cumsum(0) - size  # (G,)
    owner = users[opens]  # (G,)
    following = torch.zeros_like(size)  # (G,) size of the same user's next group, 0 where there is none
    following[:-1] = size[1:].where(owner[1:] == owner[:-1], 0)

    # What may come right after an event: the others of its group, and the group that follows. The two lie
    # side by side, so they are one row of a CSR matrix: row 2 g, with the odd rows as the gaps between.
    crow = torch.stack([start, start + size + following], dim=1).flatten()  # (2 G,)
    pairs = (size + following)[group]  # (E,)
    chunk = pairs.cumsum(0).div(_PAIRS, rounding_mode="floor")  # (E,)
    keys, counts = items[:0], torch.zeros(0, device=items.device)
    for source in torch.arange(len(items), device=items.device).split(torch.bincount(chunk).tolist()):
        target, which = take_rows(crow, 2 * group[source])  # (Q,)
        other = target != source[which]  # (Q,) an event does not follow itself
        target, which = target[other], which[other]  # (Q,)
        g, h = group[source[which]], group[target]  # (Q,)
        weight = 1.0 / torch.where(g == h, size[g], size[g] * size[h])  # (Q,)
        new = items[source[which]] * interactions.n_items + items[target]  # (Q,)
        keys, place = torch.cat([keys, new]).unique(return_inverse=True)  # (P,)
        counts = torch.zeros(len(keys), device=items.device).index_add_(0, place, torch.cat([counts, weight]))
    return keys, counts
