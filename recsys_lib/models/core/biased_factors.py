"""Ratings as a mean, two biases and the product of two vectors: what is learned, and how it is asked."""

import torch
from torch import Tensor

from recsys_lib.data import Interactions
from recsys_lib.devices import resolve_device
from recsys_lib.models.core.contract import Recommender
from recsys_lib.models.core.options import learned
from recsys_lib.similarity import cosine

__all__ = ["BiasedFactors"]


class BiasedFactors(Recommender):
    """A model of ratings whose prediction is r_ui = mu + b_u + b_i + p_u . q_i.

    It declares the learned tensors and asks them; how they are learned is the subclass's, which keeps all six
    in ``_fit``. ``predict`` gives ratings within the range of those seen in ``fit``; ``score`` leaves them
    unbounded, so that a ranking tells apart what would all get the highest rating.

    Source: Koren, Bell, Volinsky 2009, "Matrix Factorization Techniques for Recommender Systems", eq. 4.
    """

    mean: Tensor = learned("() float32")
    rating_range: Tensor = learned("(2,) float32, lowest and highest rating seen")
    user_bias: Tensor = learned("(n_users,)")
    item_bias: Tensor = learned("(n_items,)")
    user_factors: Tensor = learned("(n_users, dim)")
    item_factors: Tensor = learned("(n_items, dim)")

    def _check_rated(self, events: Interactions) -> None:
        """That every event has a rating.

        Raises:
            ValueError: some have none; it says how many, and how to take the others.
        """
        if missing := int(events.ratings.isnan().sum()):
            raise ValueError(
                f"{type(self).__name__} learns from ratings, and {missing} of {len(events)} events have "
                f"none; take the others: interactions[~interactions.ratings.isnan()]"
            )

    def _keep_range(self, ratings: Tensor) -> None:
        """Keeps the lowest and the highest rating, of (E,)."""
        self._keep("rating_range", torch.stack([ratings.min(), ratings.max()]))

    def _score(self, users: Tensor) -> Tensor:
        # Added in place: a third matrix of this size would do no good.
        scores = self.mean + self.user_bias[users, None] + self.item_bias  # (B, n_items)
        return scores.add_(self.user_factors[users] @ self.item_factors.mT)

    def _predict(self, users: Tensor, items: Tensor) -> Tensor:
        """The expected rating of each pair, within the range of ratings seen in ``fit``: (N,)."""
        product = (self.user_factors[users] * self.item_factors[items]).sum(dim=1)  # (N,)
        rating = self.mean + self.user_bias[users] + self.item_bias[items] + product  # (N,)
        return rating.clamp(self.rating_range[0], self.rating_range[1])

    def _similarities(self, items: Tensor) -> Tensor:
        return cosine(self.item_factors[items], self.item_factors)  # (B, n_items)

    def _place(self, interactions: Interactions) -> torch.device:
        return resolve_device("auto")
