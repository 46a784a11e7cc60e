"""EASE as it was before an event: refitted without a user's later events, exactly, by an update.

A model that re-ranks learns from lists that a retriever makes for past events. If the retriever was fitted on
the target as well, it knows the answer, and the lists are not those that it will make for a new event.
"""

import torch
from torch import Tensor

from recsys_lib.data import Interactions
from recsys_lib.data.ragged import distinct_events, offsets, row_of_each, within_rows
from recsys_lib.models.core.histories import recency_weights
from recsys_lib.models.ease import gram_inverse

__all__ = ["EASEBefore"]


class EASEBefore:
    """The scores that EASE would give if a user's events from some moment on had never been.

    Let x be the user's row of X, and p its part before the moment. Without the later events X'X changes by
    two terms of rank one, so the inverse P = (X'X + l2 I)^-1 does too (Sherman, Morrison, Woodbury). With
    U = [x, p]:

        X'X  ->  X'X - x x' + p p'
        P    ->  P - P U K^-1 U' P,    K = diag(-1, 1) + U' P U

    Of the new inverse only two things are needed, its product with the weighted history w and its diagonal:
    B_ij = -P_ij / P_jj off the diagonal, so the scores are w - (w P) / diag(P). That takes n_items steps for
    each item of a history and moment, in place of n_items^3.

    It computes on the CPU, in float64.

    Args:
        interactions: all training events.
        l2: as for ``EASE``.
        recency: as for ``EASE``.
        half_life_days: as for ``EASE``.

    Source: Steck 2019, "Embarrassingly Shallow Autoencoders for Sparse Data"; Hager 1989, "Updating the
    Inverse of a Matrix".
    """

    def __init__(
        self,
        interactions: Interactions,
        l2: float,
        recency: float = 0.0,
        half_life_days: float | None = None,
    ) -> None:
        self.events = interactions.to("cpu")
        self.recency, self.half_life_days = recency, half_life_days
        self.first = offsets(self.events.user_counts())  # (n_users + 1,)
        self.crow, self.own = self.events.csr()
        self.inverse = gram_inverse(self.crow, self.own, self.events.n_items, l2)  # (I, I) float64
        self.diagonal = self.inverse.diagonal().clone()  # (I,)

    def item_weights(self) -> Tensor:
        """B of all events, as ``EASE`` learns it: (n_items, n_items) float64."""
        weights = self.inverse / -self.diagonal  # (I, I)
        return weights.fill_diagonal_(0.0)

    def scores(self, user: int, before: Tensor) -> Tensor:
        """What EASE would have said of a user after the first events of the history.

        Args:
            user: a user of the events.
            before: (T,) int64, how many of the user's events there were, in their order.

        Returns:
            (T, n_items) float64 on the CPU.

        Raises:
            IndexError: more events than the user has.
        """
        start, end = int(self.first[user]), int(self.first[user + 1])
        if len(before) and int(before.max()) > end - start:
            raise IndexError(
                f"user {user} has {end - start} events, so there are no first {int(before.max())}"
            )
        own = self.own[self.crow[user] : self.crow[user + 1]]  # (n,) distinct, ascending
        crow = offsets(before)  # (T + 1,)
        place = start + within_rows(crow)  # (E,)
        past = distinct_events(
            row_of_each(crow), self.events.items[place], self.events.timestamps[place], len(before),
            self.events.n_items,
        )  # fmt: skip
        column = torch.searchsorted(own, past.items)  # (E',)
        p = torch.zeros(len(before), len(own), dtype=torch.float64, device="cpu")  # (T, n)
        w = torch.zeros_like(p)  # (T, n)
        p[past.users, column] = 1.0
        w[past.users, column] = recency_weights(past, self.recency, self.half_life_days).double()

        rows = self.inverse[own]  # (n, I)
        Px, Pp, Pw = rows.sum(dim=0), p @ rows, w @ rows  # (I,), (T, I), (T, I)
        xPx, xPp = Px[own].sum(), Pp[:, own].sum(dim=1)  # (), (T,)
        pPp = (Pp[:, own] * p).sum(dim=1)  # (T,)
        # K and its inverse are 2 x 2; the determinant is below zero, as x'Px < 1.
        k11, k22 = xPx - 1, pPp + 1  # (), (T,)
        det = k11 * k22 - xPp.square()  # (T,)
        a, b, d = (part[:, None] for part in (k22 / det, -xPp / det, k11 / det))  # (T, 1) of K^-1
        wPx, wPp = (Pw[:, own].sum(dim=1, keepdim=True), (Pw[:, own] * p).sum(dim=1, keepdim=True))  # (T, 1)
        # The history's product with the new inverse, and the new diagonal.
        product = Pw - (a * wPx + b * wPp) * Px - (b * wPx + d * wPp) * Pp  # (T, I)
        diagonal = self.diagonal - a * Px.square() - 2 * b * Px * Pp - d * Pp.square()  # (T, I)
        scores = product.div_(diagonal).neg_()  # (T, I)
        scores[:, own] += w
        return scores
