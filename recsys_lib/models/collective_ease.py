"""EASE that must also explain what the items say: a linear model of items from events and features."""

import torch
from torch import Tensor

from recsys_lib.data import Interactions
from recsys_lib.models.core.options import data, learned, option
from recsys_lib.models.ease import EASE, gram_inverse

__all__ = ["CollectiveEASE"]


class CollectiveEASE(EASE):
    """EASE with side information: the weights that reproduce events have to reproduce features, too.

    Beside the binary matrix X (users, items) stands a matrix F (items, features) of what is known of the
    items: counts of words, genres, or the vectors of an encoder. Each feature is one more row of X, a user
    who chose the items that have it, and counts ``weight`` times:

        min_B |X - X B|^2 + weight |F' - F' B|^2 + l2 |B|^2,   diag(B) = 0

    It has the solution of EASE with P = (X'X + weight F F' + l2 I)^-1, which a product of low rank makes of
    that of EASE (Woodbury):

        P - P F (I / weight + F' P F)^-1 F' P

    An item without events gets weights from what it says, so a new item is recommended beside items of like
    features. On MovieLens new items alone want an ``l2`` so large that nothing but this likeness is left.

    Features are read as they are given: center vectors of language models, and scale rows that should count
    alike. Without features, or with weight 0, the model is EASE.

    Source: Jeunen, Van Balen, Goethals 2020, "Closed-Form Models for Collaborative Filtering with
    Side-Information" (the collective form, with one weight for all features).
    """

    weight: float = option("how much a feature counts beside a user", default=1.0, at_least=0)
    item_features: Tensor | None = data(
        "(n_items, D) numbers, dense or sparse, kept with the learned state", default=None
    )

    item_weights: Tensor = learned("(n_items, n_items) float32, B")

    def __post_init__(self) -> None:
        """Makes the features a buffer, so that they are saved and moved with the model."""
        super().__post_init__()
        features = self.item_features
        del self.item_features
        if features is not None:
            features = torch.as_tensor(features).detach()
            features = (features if features.layout == torch.strided else features.to_dense()).float()
        self.register_buffer("item_features", features)

    def _fit(self, interactions: Interactions, validation: Interactions | None, progress: bool) -> None:
        F = self._checked_features()  # (I, D)
        events = self._keep_histories(interactions)
        P = gram_inverse(events.crow, events.items, self.n_items, self.l2)  # (I, I)
        if F is not None and self.weight > 0:
            P = _with_features(P, F.to(P.dtype), self.weight)  # (I, I)
        B = P.div_(-P.diagonal().clone())  # (I, I): column j divided by -P_jj
        B.fill_diagonal_(0.0)
        self._keep("item_weights", B.float())

    def _checked_features(self) -> Tensor | None:
        features = self.item_features
        if features is None:
            return None
        if features.ndim != 2 or len(features) != self.n_items:
            raise ValueError(
                f"item_features must be ({self.n_items}, D), one row an item, got {tuple(features.shape)}"
            )
        if not bool(features.isfinite().all()):
            row = int((~features.isfinite()).any(dim=1).nonzero()[0, 0])
            raise ValueError(f"item_features must be finite; those of item {row} are not")
        return features


def _with_features(P: Tensor, F: Tensor, weight: float) -> Tensor:
    """(P^-1 + weight F F')^-1 of a symmetric P (I, I) and F (I, D): (I, I)."""
    n_items, n_features = F.shape
    if n_features > n_items:  # what is solved is then of the size of P: (I + weight P F F')^-1 P
        system = weight * (P @ (F @ F.mT))  # (I, I)
        system.diagonal().add_(1.0)
        changed = torch.linalg.solve(system, P)  # (I, I)
        return (changed + changed.mT) / 2  # symmetric to the last bit, as it should be
    half = P @ F  # (I, D)
    inner = F.mT @ half  # (D, D)
    inner.diagonal().add_(1 / weight)
    # Symmetric and positive definite, as P is.
    return P - half @ torch.cholesky_solve(half.mT, torch.linalg.cholesky(inner))  # (I, I)
