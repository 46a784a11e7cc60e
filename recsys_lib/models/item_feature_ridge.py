"""From what is known of items to who likes them: ridge regression in closed form, new items included."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TypeAlias

import torch
from torch import Tensor
from torch.nn import functional

from recsys_lib.data import Interactions
from recsys_lib.devices import total_memory
from recsys_lib.kernels import Features, sum_of_kernels
from recsys_lib.models.core.histories import RecencyWeighted
from recsys_lib.models.core.item_text import MINILM, TextVectors, checked_vectors, text_encoder
from recsys_lib.models.core.options import data, learned, option
from recsys_lib.models.ease import _gram

__all__ = ["ItemFeatureRidge", "ItemKnowledge"]

ItemKnowledge: TypeAlias = Features | Tensor | Sequence[str]
"""One kind of knowledge of all items: features, vectors (n_items, D), or a text each."""

_BYTES = 60  # a cell of n_items^2: some matrices in float64, among them what the eigendecomposition works in


class ItemFeatureRidge(RecencyWeighted):
    """Predicts who likes an item from its features: the scores F of all users and known items at once.

        min_F |Y - F|^2 + l2 |F|^2_(G x K),        F = sum_k v_k v_k'Y (K + l2/g_k I)^-1 K

    Y is the binary matrix X (users, known items) less each user's mean; K the kernel of the items' features
    (``kernels.Features``, of which several kinds add up); G = (XX')^power says how alike users are, scaled
    so that X's part in a user is 1 on average, with eigenvalues g_k and vectors v_k. Another item's scores
    have its row of K in place of those of known items, so it needs no event.

    In words: a map from features to the factors of the matrix. What many users share, fame first of all, has
    a large g_k and is trusted more; what is one user's alone is shrunk. With ``power=0`` G is the identity:
    kernel ridge regression for each user, who learns nothing from the others. With one kind of features and
    no Gaussian that is the ridge regression of the vectors themselves (the representer theorem).

    As v_k is a combination of the columns of X, scores are x B with x a history and B of the items alone. So
    anybody's history is scored, and a user without events gets zeros. Known items are scored by their
    features like all others; where their own events should count, blend it with EASE.

    ``leave_one_out=True`` scores each known item as if its own column of Y had been left out, in closed form:
    (f_i - h_i y_i) / (1 - h_i) with h_i the leverage. That is for choosing l2 and weights, as
    ``feature_weights.find_weights`` does. The users' means and G stay those of all items, so it flatters.

    Two eigendecompositions of a matrix (known items)^2 in float64, and a few products: some seconds for 1,700
    items, with 8 n_items^2 bytes kept.

    Source: Stock, Pahikkala, Airola, De Baets, Waegeman 2018, "A Comparative Study of Pairwise Learning
    Methods Based on Kernel Ridge Regression" (Kronecker kernel ridge regression, leaving out); Gantner,
    Drumond, Freudenthaler, Rendle, Schmidt-Thieme 2010, "Learning Attribute-to-Feature Mappings for
    Cold-Start Recommendations" (from features to factors).
    """

    features: Mapping[str, ItemKnowledge] | ItemKnowledge | None = data(
        "what is known of the items: ``Features``, vectors (n_items, D), a text an item, or several of these "
        "by name",
        default=None,
        kw_only=False,
    )
    l2: float = option("penalty; doubling it equals halving all weights", default=100.0, above=0)
    power: float = option(
        "how much what users share counts for more; 0 learns for each user alone", default=1.0, at_least=0
    )
    leave_one_out: bool = option("score each known item as if it were new, to choose settings", default=False)
    text_model: str = option("name or folder of the text encoder", default=MINILM)
    encoder: TextVectors | None = data("turns texts into vectors in place of ``text_model``", default=None)

    kernel: Tensor = learned("(n_items, n_items) float32, K of all items; with it a loaded model is refitted")
    item_weights: Tensor = learned("(n_items, n_items) float32, B: from a history to scores")

    def _fit(self, interactions: Interactions, validation: Interactions | None, progress: bool) -> None:
        device = interactions.items.device
        needed, there = _BYTES * self.n_items**2, total_memory(device)
        if there is not None and needed > there:
            raise MemoryError(
                f"ItemFeatureRidge needs {_BYTES} n_items^2 bytes, {needed / 1e9:,.1f} GB for "
                f"{self.n_items:,} items, and this machine has {there / 1e9:,.1f} GB; leave out rare items "
                f"(recsys_lib.data.min_counts), or take TwoTower(item_tower='text')"
            )
        events = self._keep_histories(interactions)
        # Apple's GPUs have neither float64 nor eigenvalues.
        where = torch.device("cpu") if device.type == "mps" else device
        if self.features is not None or "kernel" not in self._buffers:
            made = sum_of_kernels(self._kinds().values(), where)  # (I, I)
            self._keep("kernel", made.to(device, torch.float32))
        if len(self.kernel) != self.n_items:
            raise ValueError(f"features must be of all items: {self.n_items} items, {len(self.kernel)} rows")
        kernel = self.kernel.to(where, torch.float64)  # (I, I)
        gram = _gram(events.crow, events.items, self.n_items).to(where, torch.float64)  # (I, I)
        known = gram.diagonal() > 0  # (I,)
        shared = Shared.of(gram[known][:, known], len(interactions.users.unique()))
        B = torch.zeros(self.n_items, self.n_items, device=where)  # (I, I)
        B[known] = shared.item_weights(kernel, known, self.l2, self.power, self.leave_one_out).float()
        self._keep("item_weights", B.to(device))

    def _kinds(self) -> dict[str, Features]:
        """The features by name, texts encoded."""
        given = self.features
        if given is None or isinstance(given, str):
            raise ValueError(
                f"{type(self).__name__} needs what is known of the items: {type(self).__name__}(features), "
                f"with vectors (n_items, D), one text an item, kernels.Features, or several of these by name"
            )
        kinds = given if isinstance(given, Mapping) else {"features": given}
        found = {}
        for name, kind in kinds.items():
            if isinstance(kind, Features):
                found[name] = kind
            elif isinstance(kind, Tensor):
                found[name] = Features(kind)
            else:
                vectors = (self.encoder or text_encoder(self.text_model)).encode(list(kind))  # (n_items, D)
                found[name] = Features(checked_vectors(vectors, len(kind)))
        return found

    def _score_histories(self, crow: Tensor, items: Tensor, weights: Tensor) -> Tensor:
        return functional.embedding_bag(
            items, self.item_weights, crow, mode="sum", per_sample_weights=weights, include_last_offset=True
        )  # (B, n_items)


@dataclasses.dataclass(frozen=True)
class Shared:
    """What users share, seen from the M known items: X'X = Q diag(g) Q'.

    Attributes:
        strength: (M,) g, scaled so that its sum is the number of users.
        Q: (M, M).
    """

    strength: Tensor
    Q: Tensor

    @classmethod
    def of(cls, gram: Tensor, n_users: int) -> "Shared":
        """Of X'X (M, M), with the number of users that have events."""
        strength, Q = torch.linalg.eigh(gram)  # (M,), (M, M)
        strength = strength.clamp(min=0)
        return cls(strength * (n_users / strength.sum()), Q)

    def item_weights(
        self,
        kernel: Tensor,
        known: Tensor,
        l2: float,
        power: float = 1.0,
        leave_one_out: bool = False,
        items: Tensor | None = None,
    ) -> Tensor:
        """The rows of B that belong to known items: (M, I), or (M, N) for some items.

        Args:
            kernel: (I, I) of all items.
            known: (I,) bool, M of them.
            l2: penalty.
            power: of ``strength``.
            leave_one_out: as for the model; needs all items.
            items: (N,) int64, those that are scored; all by default.
        """
        toward = kernel[known] if items is None else kernel[known][:, items]  # (M, N)
        size, U = torch.linalg.eigh(kernel[known][:, known])  # (M,), (M, M)
        size = size.clamp(min=0)  # (M,) below is rounding
        g = self.strength[:, None] ** power  # (M, 1)
        chosen = self.Q.mT - self.Q.mean(dim=0)[:, None]  # (M, M) v_k'Y, up to a factor
        shrunk = g / (size * g + l2)  # (M, M)
        B = ((chosen @ U) * shrunk) @ (U.mT @ toward)  # (M, N)
        if leave_one_out:
            leverage = (size * shrunk) @ U.square().mT  # (M, M)
            B[:, known] = (B[:, known] - leverage * chosen) / (1 - leverage)
        return self.Q @ B  # (M, N)
