"""A small recommender that is learned from clipped noisy gradients, and can say its epsilon."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from recsys_lib.arguments import whole_number
from recsys_lib.data import Interactions
from recsys_lib.privacy.noise import subsampled_epsilon

__all__ = ["PrivateFactors"]


class PrivateFactors:
    """Items from items by two thin tables, trained so that nobody in the data can be told by them.

        h_u = x_u V / sqrt(n_u)        scores = h_u W' + b

    with x_u the person's n_u items; the loss is the mean of minus the log-softmax at these. What is given
    away is V, W and b alone: nobody has a vector, and a person's history stays with the person, as in EASE.
    A step draws people by independent coins, clips each one's gradient of all three tables together, adds
    noise to the sum (``noise.noisy_clipped_sum``, here without making a gradient a person: see ``losses``),
    and goes down by Adam, which sees nothing else.

    Args:
        dim: width of the tables.
        steps: how many.
        sample_rate: the chance of a person to take part in a step.
        clip: the longest gradient that a person may have.
        noise_multiplier: sigma in units of ``clip``; 0 for no privacy.
        learning_rate: of Adam.
        seed: of the start, the coins and the noise.

    Attributes:
        V: (n_items, dim), W: (n_items, dim), b: (n_items,), after ``fit``.

    Source: Abadi et al. 2016, "Deep Learning with Differential Privacy"; Goodfellow 2015, "Efficient
    Per-Example Gradient Computations", for the lengths of gradients that are outer products.
    """

    V: Tensor
    W: Tensor
    b: Tensor

    def __init__(
        self,
        dim: int = 8,
        steps: int = 200,
        sample_rate: float = 0.2,
        clip: float = 0.2,
        noise_multiplier: float = 0.0,
        learning_rate: float = 0.03,
        seed: int = 0,
    ) -> None:
        self.dim, self.steps = whole_number(dim, "dim", at_least=1), whole_number(steps, "steps", at_least=1)
        if not 0 < sample_rate <= 1:
            raise ValueError(f"sample_rate must be above 0 and at most 1, got {sample_rate}")
        if not clip > 0 or noise_multiplier < 0:
            raise ValueError(f"needs clip > 0 and noise_multiplier >= 0, got {clip} and {noise_multiplier}")
        self.sample_rate, self.clip, self.noise_multiplier = sample_rate, clip, noise_multiplier
        self.learning_rate, self.seed = learning_rate, whole_number(seed, "seed")

    def epsilon(self, delta: float) -> float:
        """What training gives away about a person at this ``delta``; infinite without noise."""
        if not self.noise_multiplier:
            return math.inf
        return subsampled_epsilon(self.noise_multiplier, self.sample_rate, self.steps, delta)

    def fit(self, interactions: Interactions) -> "PrivateFactors":
        """Learns the tables from people's distinct items, on the CPU."""
        self.X = interactions.to("cpu").matrix().to_dense().clamp(max=1.0)  # (n_users, n_items)
        generator = torch.Generator().manual_seed(self.seed)
        n_users, n_items = self.X.shape
        start = torch.randn(n_items, self.dim, generator=generator)  # (n_items, d)
        tables = [start / math.sqrt(self.dim), torch.zeros(n_items, self.dim), torch.zeros(n_items)]
        self.V, self.W, self.b = (table.requires_grad_() for table in tables)
        optimizer = torch.optim.Adam([self.V, self.W, self.b], lr=self.learning_rate)
        expected = self.sample_rate * n_users  # people in a step; a number that gives nobody away
        for _ in range(self.steps):
            drawn = torch.rand(n_users, generator=generator) < self.sample_rate  # (n_users,)
            for table, total in zip([self.V, self.W, self.b], self._sums(self.X[drawn]), strict=True):
                noise = torch.randn(total.shape, generator=generator) * self.noise_multiplier * self.clip
                table.grad = (total + noise) / expected
            optimizer.step()
        for table in (self.V, self.W, self.b):
            table.requires_grad_(False)
        return self

    @torch.no_grad()
    def _sums(self, X: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The sums of people's clipped gradients, as V, W and b; X is (B, n_items).

        A person's gradients are outer products, so their lengths need no gradient a person:

            a = softmax(scores) - x / n   dW = a h',  db = a,  dV = x (W' a)' / sqrt(n)
            |g|^2 = |a|^2 (|h|^2 + 1) + |W' a|^2
        """
        count = X.sum(dim=1, keepdim=True)  # (B, 1)
        X, count = X[count[:, 0] > 0], count[count[:, 0] > 0]
        h = X @ self.V / count.sqrt()  # (B, d)
        a = (h @ self.W.mT + self.b).softmax(dim=1) - X / count  # (B, n_items)
        back = a @ self.W  # (B, d)
        square = a.square().sum(1) * (h.square().sum(1) + 1) + back.square().sum(1)  # (B,)
        c = (self.clip / square.sqrt().clamp(min=1e-12)).clamp(max=1.0)[:, None]  # (B, 1)
        return (X / count.sqrt()).mT @ (c * back), (c * a).mT @ h, (c * a).sum(dim=0)

    @property
    def n_items(self) -> int:
        """Size of the catalog."""
        return len(self.b)

    def score(self, users: Tensor) -> Tensor:
        """Scores of people of ``fit``, who bring their own histories: (B,) -> (B, n_items)."""
        return self._score(self.X[users.cpu()])

    def score_histories(self, histories: Sequence[Tensor]) -> Tensor:
        """Scores for anyone: B tensors of item indices -> (B, n_items)."""
        X = torch.zeros(len(histories), self.n_items)  # (B, n_items)
        for row, history in zip(X, histories, strict=True):
            row[history.cpu()] = 1.0
        return self._score(X)

    def _score(self, X: Tensor) -> Tensor:
        h = X @ self.V / X.sum(dim=1, keepdim=True).clamp(min=1.0).sqrt()  # (B, d)
        return h @ self.W.mT + self.b  # (B, n_items)
