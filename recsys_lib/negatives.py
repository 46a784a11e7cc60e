"""Items that a user did not choose, drawn to be ranked below those that were."""

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

from recsys_lib.data.ragged import row_of_each, take_rows

__all__ = ["HardestOf", "NegativeSampler", "Sampler", "known_columns", "other_items"]

# Weights of a non-uniform sampler are rounded to integers that sum to about this. Integers make the exclusion
# of positives exact; at 2**31 the rounding of a probability is below 5e-10, and keys of user times mass stay
# below 2**63 for four billion users.
_TOTAL_WEIGHT = 2**31

# Up to so many pairs of a user and an item, 16 MB at most, the answers of the binary search are made
# beforehand. In a table that no cache holds, looking up is no faster than searching.
_CELLS = 2**22


class Sampler(Protocol):
    """What draws negatives."""

    def sample(self, users: Tensor, k: int = 1, generator: torch.Generator | None = None) -> Tensor:
        """Draws ``k`` items for each of the users (B,): (B, k) int64 on the users' device."""


class NegativeSampler:
    """Draws items for users, never one that the user already has.

    Nothing is drawn twice and nothing is rejected, so the distribution is exact and the cost is known: two
    binary searches for each draw. Lay the catalog out on a line, item i taking w_i units (one each for
    uniform negatives). Cut out the user's own items; what is left has M_u units. Draw one of them, t, and
    find how many own items were cut out before it: own item p_j is, if what is left to the left of it is
    at most t,

        A_j = (sum of w_i over items before p_j) - (sum of w over own items before p_j) <= t

    A_j grows with j, so this is one binary search, in one array for all users when a user's number is put in
    front of A_j as the leading digit. Putting the cut-out units back gives the place on the full line.
    For uniform negatives from few users and items the answers are in a table, which is faster; the draws are
    the same.

    Args:
        crow: (n_users + 1,) int64, where each user's own items begin; as ``Interactions.csr()`` gives it.
        items: (E,) int64, each user's distinct own items in ascending order.
        n_items: size of the catalog.
        kind: ``"uniform"`` over the items that the user does not have, or ``"popularity"``: in proportion to
            (count + 1) ** exponent. The one keeps items without events in play: what is never drawn as a
            negative is never pushed down, and would float up the ranking.
        exponent: flattens popularity; 0.75 is word2vec's (Mikolov et al. 2013), 1 is plain, 0 is uniform.
        weights: (n_items,) positive weights of your own in place of the counts, raised to the exponent as
            they are.

    Raises:
        ValueError: arguments that do not describe a set of distinct sorted items for each user.
    """

    def __init__(
        self,
        crow: Tensor,
        items: Tensor,
        n_items: int,
        kind: str = "uniform",
        exponent: float = 0.75,
        weights: Tensor | None = None,
    ) -> None:
        if kind not in ("uniform", "popularity"):
            raise ValueError(f'kind must be "uniform" or "popularity", got {kind!r}')
        if weights is not None and kind == "uniform":
            raise ValueError('weights need kind="popularity"; uniform negatives have none')
        device = items.device
        self.n_users, self.n_items, self.kind = len(crow) - 1, int(n_items), kind
        self.crow, self.items = crow.to(device), items
        users = row_of_each(self.crow)  # (E,)
        keys = users * self.n_items + items  # (E,)
        if len(items) and (items.min() < 0 or items.max() >= n_items or (keys.diff() <= 0).any()):
            raise ValueError("each user's items must be distinct, ascending and below n_items")

        if kind == "uniform":
            weight = torch.ones(self.n_items, dtype=torch.int64, device=device)  # (n_items,)
        else:
            mass = (
                torch.bincount(items, minlength=self.n_items) + 1 if weights is None else weights.to(device)
            )
            if mass.shape != (self.n_items,) or not bool((mass > 0).all()):
                raise ValueError(f"weights must be ({self.n_items},) and above zero")
            # float64 does not exist on every device; the CPU has it, and this is done once.
            share = mass.cpu().double() ** exponent
            share = share / share.sum() * _TOTAL_WEIGHT
            weight = share.round().long().clamp(min=1).to(device)  # (n_items,)
        self._weight = weight
        self._upper = weight.cumsum(0)  # (n_items,) where each item's units end
        own = weight[items]  # (E,)
        before = own.cumsum(0) - own  # (E,) own units before this event, of all users so far
        start = torch.cat([before, own.sum()[None]])[self.crow]  # (n_users + 1,)
        self._removed = torch.cat([before, own.sum()[None]])  # (E + 1,)
        self._start = start
        self._left = self._upper[-1] - start.diff()  # (n_users,) units that remain, M_u
        a = (self._upper - weight)[items] - (before - start[users])  # (E,)
        self._digit = int(self._upper[-1]) + 1
        self._search = users * self._digit + a  # (E,)
        self._others: Tensor | None = None
        if kind == "uniform" and 0 < self.n_users * self.n_items <= _CELLS:
            other = torch.ones(self.n_users * self.n_items, dtype=torch.bool, device=device)  # (U I,)
            other[keys] = False
            # Each user's other items, one user after another: user u's begin at u n_items - crow[u].
            small = torch.int16 if self.n_items < 2**15 else torch.int32  # the smaller, the more is in cache
            self._others = (other.nonzero().squeeze(1) % self.n_items).to(small)  # (U I - E,)

    def sample(self, users: Tensor, k: int = 1, generator: torch.Generator | None = None) -> Tensor:
        """Draws ``k`` items for each user, with replacement, none of them the user's own.

        Args:
            users: (B,) int64.
            k: draws a user.
            generator: on the users' device; without one the global random state is used.

        Returns:
            (B, k) int64 on the users' device.

        Raises:
            ValueError: one of the users has every item of the catalog.
        """
        left = self._left[users]  # (B,)
        if bool((left == 0).any()):
            user = int(users[(left == 0).nonzero()[0, 0]])
            raise ValueError(f"user {user} has all {self.n_items} items, so there is no negative to draw")
        # The remainder of a 62-bit number is uniform to within 2**-30; a float could round up to M_u.
        draw = torch.randint(0, 2**62, (len(users), k), generator=generator, device=users.device)  # (B, k)
        t = draw % left[:, None]  # (B, k)
        if self._others is not None:
            first = users * self.n_items - self.crow[users]  # (B,)
            return self._others.take(t.add_(first[:, None])).long()
        found = torch.searchsorted(self._search, users[:, None] * self._digit + t, right=True)  # (B, k)
        if self.kind == "uniform":  # one unit an item: the place on the line is the item
            return t + (found - self.crow[users][:, None])
        place = t + (self._removed[found] - self._start[users][:, None])  # (B, k)
        return torch.searchsorted(self._upper, place, right=True)


class HardestOf:
    """Hard negatives: of several drawn, the one that the model now scores highest.

    Args:
        sampler: draws the candidates.
        pool: candidates for each negative.
        score: the model's scores of users (B,) and items (B, C): (B, C). It is asked anew at each draw.

    Source: Zhang, Chen, Wang, Yu 2013, "Optimizing Top-N Collaborative Filtering via Dynamic Negative Item
    Sampling".
    """

    def __init__(self, sampler: Sampler, pool: int, score: Callable[[Tensor, Tensor], Tensor]) -> None:
        self.sampler, self.pool, self.score = sampler, pool, score

    @torch.no_grad()
    def sample(self, users: Tensor, k: int = 1, generator: torch.Generator | None = None) -> Tensor:
        """The hardest of ``pool`` candidates, ``k`` times for each of the users (B,): (B, k)."""
        candidates = self.sampler.sample(users, k * self.pool, generator)  # (B, k P)
        shape = (len(users), k, self.pool)
        best = self.score(users, candidates).view(shape).argmax(dim=2, keepdim=True)  # (B, k, 1)
        return candidates.view(shape).gather(2, best).squeeze(2)  # (B, k)


def other_items(targets: Tensor, k: int, n_items: int, generator: torch.Generator | None = None) -> Tensor:
    """Draws items uniformly from all but one, with replacement: negatives for a next item.

    Args:
        targets: (N,) int64, the item that is not to be drawn in each row.
        k: draws in a row.
        n_items: size of the catalog, two or more.
        generator: on the targets' device; without one the global random state is used.

    Returns:
        (N, k) int64.
    """
    drawn = torch.randint(
        n_items - 1, (len(targets), k), generator=generator, device=targets.device
    )  # (N, k)
    return drawn.add_(drawn >= targets[:, None])  # drawn among one fewer, it steps over the target


def known_columns(crow: Tensor, own: Tensor, users: Tensor, items: Tensor) -> Tensor:
    """Which columns of a batch hold an item that the row's user has, and so are no negatives.

    Args:
        crow: (n_users + 1,) int64 offsets.
        own: (E,) int64, each user's items.
        users: (B,) int64, of the rows.
        items: (C,) int64, of the columns.

    Returns:
        (B, C) bool
    """
    distinct, column = items.unique(return_inverse=True)  # (U,), (C,)
    place, row = take_rows(crow, users)  # (E',), (E',)
    found = torch.searchsorted(distinct, own[place]).clamp(max=len(distinct) - 1)  # (E',)
    hit = distinct[found] == own[place]  # (E',)
    known = torch.zeros(len(users), len(distinct), dtype=torch.bool, device=users.device)  # (B, U)
    known[row[hit], found[hit]] = True
    return known[:, column]  # (B, C)
