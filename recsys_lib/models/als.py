"""Implicit feedback by alternating least squares: every cell of the matrix counts, in closed form."""

import torch
from torch import Tensor

from recsys_lib.data import Interactions
from recsys_lib.data.ragged import offsets, sort_by
from recsys_lib.devices import resolve_device, seed_generator
from recsys_lib.models.core.histories import RecencyWeighted
from recsys_lib.models.core.options import learned, option
from recsys_lib.models.core.ridge import solve_rows
from recsys_lib.similarity import cosine
from recsys_lib.training import passes

__all__ = ["ALS"]


class ALS(RecencyWeighted):
    """Matrix factorization by weighted least squares over all pairs of a user and an item (iALS).

    What was chosen should score one; everything, chosen or not, is drawn a little towards zero:

        min  sum_{(u,i) chosen} w_ui (1 - p_u . q_i)^2  +  alpha sum_{all u,i} (p_u . q_i)^2
             + l2 [ sum_u (n_u + alpha n_items)^nu |p_u|^2 + sum_i (n_i + alpha n_users)^nu |q_i|^2 ]

    n counts events. No negatives are sampled: the sum over all pairs is alpha p_u' (Q'Q) p_u, so it costs no
    more than what was chosen. Given Q the best p_u is a ridge regression, and the other way round:

        p_u = (alpha Q'Q + sum_i w_ui q_i q_i' + l2 (n_u + alpha n_items)^nu I)^-1 sum_i w_ui q_i

    Each half of an epoch solves one of these systems for every user, or item, by Cholesky's method.

    A user's vector follows from the history by that formula, whoever the user is: it is computed when it is
    asked for, so strangers and new events are served without training. A user without events scores zero
    everywhere. With ``recency`` or ``half_life_days`` older events weigh less, in learning too.

    Fitting takes (events + (n_users + n_items) dim) dim^2 operations an epoch and keeps n_items x dim
    numbers.

    Source: Hu, Koren, Volinsky 2008, "Collaborative Filtering for Implicit Feedback Datasets", eqs. 3 to 5
    (its confidence 1 + a r is, up to scale, a weight of 1 for what was chosen and an alpha of 1 / (a r)); the
    weights and the scaled penalty as Rendle, Krichene, Zhang, Koren 2022, "Revisiting the Performance of iALS
    on Item Recommendation Benchmarks", section 3.
    """

    dim: int = option("length of the vectors", default=64, at_least=1)
    epochs: int = option("alternations between users and items", default=10, at_least=1)
    alpha: float = option("weight of a pair that was not chosen, against 1", default=0.3, above=0)
    l2: float = option("weight of the squared vectors", default=0.01, above=0)
    nu: float = option(
        "how much more those with many events are shrunk: 0 shrinks all alike, 1 by their events",
        default=1.0,
        at_least=0,
        at_most=1,
    )
    init_scale: float = option(
        "standard deviation of a score at the start, of vectors of length one", default=0.1, above=0
    )
    seed: int = option("of the items' vectors at the start", default=0)

    item_factors: Tensor = learned("(n_items, dim) float32, Q")
    item_gram: Tensor = learned("(dim, dim) float32, Q'Q")

    def _fit(self, interactions: Interactions, validation: Interactions | None, progress: bool) -> None:
        events = self._keep_histories(interactions)
        device, weights = events.items.device, self.history_weights  # (E,)
        order = sort_by(events.items, events.users)  # (E,)
        by_item = offsets(torch.bincount(events.items, minlength=self.n_items))  # (n_items + 1,)
        generator = seed_generator(self.seed, device)
        Q = torch.randn(self.n_items, self.dim, generator=generator, device=device)  # (n_items, d)
        Q *= self.init_scale / self.dim**0.5
        for _ in passes(self.epochs, "ALS", max_seconds=self.max_seconds, progress=progress):
            P = self._solve(events.crow, events.items, weights, Q, Q.mT @ Q)  # (n_users, d)
            Q = self._solve(by_item, events.users[order], weights[order], P, P.mT @ P)  # (n_items, d)
        self._keep("item_factors", Q)
        self._keep("item_gram", Q.mT @ Q)

    def _solve(self, crow: Tensor, others: Tensor, weights: Tensor, factors: Tensor, gram: Tensor) -> Tensor:
        """The best vectors of one side, given those of the other.

        Args:
            crow: (n + 1,) int64, where the events of each row begin.
            others: (E,) int64, whom each event is with.
            weights: (E,) float32.
            factors: (m, d) vectors of the other side.
            gram: (d, d) their products, summed over all m.

        Returns:
            (n, d); zeros for a row without events.
        """
        n = crow.diff()  # (n,) events of each row
        penalty = self.l2 * (n + self.alpha * len(factors)).to(factors.dtype) ** self.nu  # (n,)
        penalty = penalty[:, None].expand(-1, self.dim)  # (n, d)
        return solve_rows(crow, others, factors, penalty, weights=weights, everywhere=self.alpha * gram)

    def _score_histories(self, crow: Tensor, items: Tensor, weights: Tensor) -> Tensor:
        Q, gram = self.item_factors.float(), self.item_gram.float()  # (n_items, d), (d, d)
        return self._solve(crow, items, weights.float(), Q, gram) @ Q.mT  # (B, n_items)

    def _similarities(self, items: Tensor) -> Tensor:
        return cosine(self.item_factors[items], self.item_factors)  # (B, n_items)

    def _place(self, interactions: Interactions) -> torch.device:
        return resolve_device("auto")
