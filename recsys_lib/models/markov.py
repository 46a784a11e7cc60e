"""The next item from the last one alone: the bar for every model that claims to read a sequence."""

import math

import torch
from torch import Tensor

from recsys_lib.data import Interactions
from recsys_lib.data.ragged import offsets, row_blocks, row_of_each, run_starts, take_rows
from recsys_lib.models.core.histories import RecencyWeighted
from recsys_lib.models.core.options import learned, option, preset

__all__ = ["MarkovChain"]

_PAIRS = 2**20  # pairs of events, or transitions, looked at at once
_CELLS = 2**22  # of a dense block of scores

# Pairs that one tied group may be written out as. Above it the group itself is kept, and scoring does the sum
# over its pairs: memory is then linear in the events, whatever the ties.
_LARGE = 64**2


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
    rows or on how items are numbered. Without timestamps, each user's events are one such group: then the
    model counts who shares users with whom, as ``ItemKNN`` and ``EASE`` do better.

    A user without events gets p.

    **Memory.** A group of a events has a^2 pairs. Where it and the group that follows make more than 4,096
    they are not written out. The group's share of c_ij is a product of how often it has i and how often it,
    or its follower, has j; so its items are kept, and multiplied when scoring: the same numbers, in memory
    linear in the events.

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
    group_crow: Tensor = learned(
        "(2 S + 1,) int64 offsets of S large tied groups; odd rows are the groups that follow them"
    )
    group_items: Tensor = learned("(N,) int64")
    popularity: Tensor = learned("(n_items,) float32, p")

    def _fit(self, interactions: Interactions, validation: Interactions | None, progress: bool) -> None:
        self._keep_histories(interactions)
        keys, counts, group_crow, group_items = _transitions(interactions)
        rows = keys.div(self.n_items, rounding_mode="floor")  # (P,)
        per_row = torch.bincount(rows, minlength=self.n_items)  # (n_items,)
        self._keep("transition_crow", offsets(per_row))
        self._keep("transition_items", keys - rows * self.n_items)
        self._keep("transition_counts", counts)
        self._keep("group_crow", group_crow)
        self._keep("group_items", group_items)
        popularity = torch.bincount(interactions.items, minlength=self.n_items) + 1.0  # (n_items,)
        self._keep("popularity", popularity / popularity.sum())

    def _score_histories(self, crow: Tensor, items: Tensor, weights: Tensor) -> Tensor:
        n_rows, device = len(crow) - 1, items.device
        row = row_of_each(crow)  # (E,)
        final = weights > 0  # (E,) is it the last event, or of the last tied group?
        row, last = row[final], items[final]  # (F,)
        share = 1.0 / torch.bincount(row, minlength=n_rows)[row]  # (F,) one over the size of the group
        left = self._left_to_groups()[last]  # (F,) becomes c_i
        per_count = torch.empty_like(share)  # (F,)
        scores = torch.zeros(n_rows * self.n_items, device=device)  # (B n_items,)
        for block in row_blocks(self.transition_crow.diff()[last], _PAIRS):
            place, which = take_rows(self.transition_crow, last[block])  # (Q,) transitions, and out of which
            counts = self.transition_counts[place]  # (Q,)
            left[block].index_add_(0, which, counts)
            per_count[block] = share[block] / (left[block] + self.shrink)
            cell = row[block][which] * self.n_items + self.transition_items[place]  # (Q,)
            scores.index_add_(0, cell, counts * per_count[block][which])
        scores = scores.view(n_rows, self.n_items)  # (B, n_items)
        self._add_groups(scores, row, last, per_count)
        prior = torch.zeros(n_rows, device=device).index_add_(0, row, self.shrink * per_count)  # (B,)
        prior = prior.masked_fill(crow.diff() == 0, 1.0)  # without events popularity is all there is
        return scores.add_(prior[:, None] * self.popularity)  # (B, n_items)

    def _left_to_groups(self) -> Tensor:
        """The share of c_i that comes from large groups, (n_items,): what follows each of their events."""
        sizes = self.group_crow.diff().view(-1, 2)  # (S, 2)
        # One of a events is the last of its group, and what follows that one is the next group, if any.
        mass = 1.0 - (sizes[:, 1] == 0) / sizes[:, 0]  # (S,)
        row = row_of_each(self.group_crow)  # (N,)
        mass = mass[row // 2] * (row % 2 == 0)  # (N,) only the group's own events are followed
        return torch.zeros(self.n_items, device=row.device).index_add_(0, self.group_items, mass)

    def _add_groups(self, scores: Tensor, users: Tensor, items: Tensor, weights: Tensor) -> None:
        """Adds the transitions of large groups out of some items to the scores.

        With m_i and n_j how often a group of a events has i, and how often the b events after it have j,

            c_ij = m_i (m_j / a + n_j / (a b)) - [i = j] m_i / a

        since an event does not follow itself. So the sum over i comes first, one number a group.

        Args:
            scores: (B, n_items), added to.
            users: (F,) int64 ascending rows of ``scores``.
            items: (F,) int64 items that something follows.
            weights: (F,) float32 of each.
        """
        n_groups = len(self.group_crow) // 2
        if not n_groups:
            return
        sizes = self.group_crow.diff().view(-1, 2)  # (S, 2)
        row = row_of_each(self.group_crow)  # (N,)
        group, own = row // 2, row % 2 == 0  # (N,), (N,)
        among = 1.0 / sizes[:, 0]  # (S,)
        after = among / sizes[:, 1].clamp(min=1)  # (S,)
        leave = torch.sparse_coo_tensor(
            torch.stack([group[own], self.group_items[own]]),
            torch.ones_like(among).repeat_interleave(sizes[:, 0]),
            (n_groups, self.n_items),
            check_invariants=False,
        )  # m
        arrive = torch.sparse_coo_tensor(
            torch.stack([self.group_items, group]),
            torch.where(own, among[group], after[group]),
            (self.n_items, n_groups),
            check_invariants=False,
        )  # m / a + n / (a b)
        itself = torch.zeros_like(self.popularity)  # (n_items,) m_i / a, of all groups
        itself.index_add_(0, self.group_items[own], among[group[own]])
        step = max(1, _CELLS // (self.n_items + n_groups))
        for start in range(0, len(scores), step):
            block = scores[start : start + step]  # (b, n_items)
            inside = (users >= start) & (users < start + step)  # (F,)
            chosen = torch.zeros(self.n_items, len(block), device=scores.device)  # (n_items, b)
            chosen[items[inside], users[inside] - start] = weights[inside]
            found = torch.sparse.mm(arrive, torch.sparse.mm(leave, chosen))  # (n_items, b)
            found.sub_(chosen.mul_(itself[:, None])).clamp_(min=0)  # rounding may leave less than nothing
            block.add_(found.mT)


def _transitions(interactions: Interactions) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Expected numbers of transitions, over all orders of tied events.

    Returns:
        keys (P,) int64 ascending, from-item times n_items plus to-item; counts (P,) float32. What these leave
        out: crow (2 S + 1,) and items (N,) of the groups that are too large to be written out, each with the
        group that follows.
    """
    users, items = interactions.users, interactions.items  # (E,), by user and time
    opens = run_starts(users, interactions.timestamps)  # (E,) does a new user or time begin here?
    group = opens.cumsum(0) - 1  # (E,)
    size = torch.bincount(group)  # (G,)
    start = size.cumsum(0) - size  # (G,)
    owner = users[opens]  # (G,)
    following = torch.zeros_like(size)  # (G,) size of the same user's next group, 0 where there is none
    following[:-1] = size[1:].where(owner[1:] == owner[:-1], 0)
    large = size * (size + following) > _LARGE  # (G,)

    # What may come right after an event: the others of its group, and the group that follows. The two lie
    # side by side, so they are one row of a CSR matrix: row 2 g, with the odd rows as the gaps between.
    crow = torch.stack([start, start + size + following], dim=1).flatten()  # (2 G,)
    # From-item by from-item, so that a block is done with all its items but the last.
    sources = items.argsort(stable=True)  # (E,)
    sources = sources[~large[group[sources]]]
    keys, counts = [items[:0]], [torch.zeros(0, device=items.device)]
    for block in row_blocks((size + following)[group[sources]], _PAIRS):
        source = sources[block]  # (b,)
        target, which = take_rows(crow, 2 * group[source])  # (Q,)
        other = target != source[which]  # (Q,) an event does not follow itself
        target, which = target[other], which[other]  # (Q,)
        g, h = group[source[which]], group[target]  # (Q,)
        weight = 1.0 / torch.where(g == h, size[g], size[g] * size[h])  # (Q,)
        new = items[source[which]] * interactions.n_items + items[target]  # (Q,)
        found, place = torch.cat([keys.pop(), new]).unique(return_inverse=True)  # (P',)
        total = torch.zeros(len(found), device=items.device)  # (P',)
        total.index_add_(0, place, torch.cat([counts.pop(), weight]))
        unfinished = items[source[-1:]] * interactions.n_items  # (1,) the next block may go on with this item
        done = int(torch.searchsorted(found, unfinished))
        keys += [found[:done].clone(), found[done:].clone()]
        counts += [total[:done].clone(), total[done:].clone()]

    heads = large.nonzero().squeeze(1)  # (S,)
    place, _ = take_rows(crow, 2 * heads)  # (N,)
    sizes = torch.stack([size[heads], following[heads]], dim=1).flatten()  # (2 S,)
    return torch.cat(keys), torch.cat(counts), offsets(sizes), items[place]
