"""Matrix factorization for implicit feedback: one model, three losses; the pairwise one is BPR."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from recsys_lib.data import Interactions
from recsys_lib.data.ragged import offsets, row_blocks, row_of_each, take_rows
from recsys_lib.losses import bce_loss, bpr_loss, softmax_loss
from recsys_lib.models.core.options import data, learned, option, preset
from recsys_lib.models.core.trained import TrainedRecommender
from recsys_lib.models.core.written_gradients import PairwiseObjective, RowsObjective
from recsys_lib.negatives import HardestOf, NegativeSampler, Sampler
from recsys_lib.similarity import cosine
from recsys_lib.training import batches

__all__ = ["BPR", "MatrixFactorization", "Positives"]


@dataclass(frozen=True)
class Positives:
    """What the factors are learned from: users (E,) and items (E,) that belong together, and the others."""

    users: Tensor
    items: Tensor
    sampler: Sampler


class MatrixFactorization(TrainedRecommender[Positives]):
    """A user is a vector, an item is a vector and a bias: s_ui = p_u . q_i + b_i.

    What the vectors learn is decided by the loss:

    - ``"bpr"``: a chosen item should outscore one that was not (``losses.bpr_loss``);
    - ``"bce"``: a chosen item is a one, a sampled other item a zero (``losses.bce_loss``);
    - ``"softmax"``: the chosen item against the whole catalog (``losses.softmax_loss``); needs no negatives.
      Every step then moves every item: ``l2=0.2, batch_size=512, epochs=12`` suit it better than the
      defaults. A step costs ``batch_size`` x n_items x ``dim``: with 20,000 items an epoch of a million
      events takes seven minutes on one core of a CPU, against six seconds with the other two. From some
      thousands of items on, take those, or ``whole_users``.

    With ``whole_users`` a step of softmax takes all events of its users: the catalog is then scored once for
    a user and not once for an event, which is the multinomial likelihood of a history, with its gradient
    written out. The epoch of seven minutes above takes 13 seconds. ``l2=0.3, learning_rate=0.05,
    batch_size=4096, epochs=12`` suit it.

    Negatives are never among the user's own positives. ``"uniform"`` draws any other item alike,
    ``"popularity"`` in proportion to (count + 1) ** 0.75 (``negatives.NegativeSampler``), ``"hard"`` takes
    the one of ``hard_pool`` uniform ones that the model now scores highest (``negatives.HardestOf``).

    With ``gradient="written"`` the losses of pairs take their gradient by the chain rule, on the rows that a
    batch touches, in place of autograd. It is the same up to rounding, the draws are the same, and with four
    negatives an epoch takes a half to two thirds of the time on a CPU.

    A user without events has the vector zero, so the answer is the ranking by item bias, which is close to
    popularity. A user who has every item has no negatives and takes no part in training, except with softmax.
    """

    dim: int = option("length of the vectors", default=64, at_least=1)
    learning_rate: float = option(default=0.01)
    l2: float = option("weight of the squared norm of what an example touches", default=0.01, at_least=0)
    init_scale: float = option("standard deviation of the vectors at the start", default=0.1, above=0)
    loss: str = option("what a chosen item is held against", default="bpr", choices=("bpr", "bce", "softmax"))
    negatives: str = option(
        "how they are drawn, see above", default="uniform", choices=("uniform", "popularity", "hard")
    )
    n_negatives: int = option("negatives drawn for each positive", default=4, at_least=1)
    hard_pool: int = option("candidates for each hard negative", default=8, at_least=1)
    gradient: str = option(
        "how the losses of pairs are differentiated, see above",
        default="autograd",
        choices=("autograd", "written"),
    )
    whole_users: bool = option("whether a step of softmax takes all events of its users", default=False)
    sampler: Sampler | None = data(
        "draws the negatives in place of one's own, as ``NegativeSampler`` does", default=None
    )

    user_factors: nn.Parameter = learned("(n_users, dim) p")
    item_factors: nn.Parameter = learned("(n_items, dim) q")
    item_bias: nn.Parameter = learned("(n_items,) b")

    def __post_init__(self) -> None:
        """Refuses options that go together with other losses alone."""
        super().__post_init__()
        if self.whole_users and self.loss != "softmax":
            raise ValueError(f'whole_users=True needs loss="softmax", and this is loss="{self.loss}"')
        if self.gradient == "written" and self.loss == "softmax":
            raise ValueError(
                'gradient="written" is for the losses of pairs, "bpr" and "bce"; softmax has a gradient '
                "written out with whole_users=True"
            )

    def build(self) -> None:
        """Makes the vectors."""
        self.user_factors = nn.Parameter(torch.zeros(self.n_users, self.dim))
        self.item_factors = nn.Parameter(torch.zeros(self.n_items, self.dim))
        self.item_bias = nn.Parameter(torch.zeros(self.n_items))

    @torch.no_grad()
    def prepare(self, events: Interactions, generator: torch.Generator) -> Positives:
        """Small random vectors; each distinct pair of the events is one positive."""
        crow, items = events.csr()  # (n_users + 1,), (E,)
        self.user_factors.normal_(0.0, self.init_scale, generator=generator)
        self.item_factors.normal_(0.0, self.init_scale, generator=generator)
        self.user_factors[crow.diff() == 0] = 0.0
        kind = "popularity" if self.negatives == "popularity" else "uniform"
        sampler: Sampler = self.sampler or NegativeSampler(crow, items, self.n_items, kind)
        if self.negatives == "hard":
            sampler = HardestOf(sampler, self.hard_pool, self._pair_scores)
        users = row_of_each(crow)  # (E,)
        if self.loss != "softmax":
            trainable = crow.diff()[users] < self.n_items  # (E,) is there an item that the user has not?
            users, items = users[trainable], items[trainable]
        return Positives(users, items, sampler)

    def losses(self, examples: Positives, generator: torch.Generator) -> Iterator[tuple[Tensor, int]]:
        """One epoch over the positives, shuffled."""
        if self.whole_users:
            yield from self._losses_of_users(examples, generator)
            return
        for batch in batches(len(examples.users), self.batch_size, generator):
            users, items = examples.users[batch], examples.items[batch]  # (B,), (B,)
            yield self.objective(users, items, examples.sampler, generator), len(batch)

    def objective(self, users: Tensor, items: Tensor, sampler: Sampler, generator: torch.Generator) -> Tensor:
        """The loss of a batch of positives, users (B,) and items (B,), with its penalty: ()."""
        p = functional.embedding(users, self.user_factors)  # (B, d)
        if self.loss == "softmax":
            scores = p @ self.item_factors.mT + self.item_bias  # (B, n_items)
            penalty = p.square().sum() + self.item_factors.square().sum() * (len(users) / self.n_items)
            return softmax_loss(scores, items) + 0.5 * self.l2 * penalty / len(users)
        others = sampler.sample(users, self.n_negatives, generator)  # (B, K)
        pair = torch.cat([items[:, None], others], dim=1)  # (B, 1 + K)
        if self.gradient == "written":
            factors = self.user_factors, self.item_factors, self.item_bias
            return PairwiseObjective.apply(*factors, users, pair, self.loss, self.l2 / max(1, len(users)))
        q = functional.embedding(pair, self.item_factors)  # (B, 1 + K, d)
        bias = functional.embedding(pair, self.item_bias[:, None]).squeeze(2)  # (B, 1 + K)
        scores = (q * p[:, None, :]).sum(dim=2) + bias  # (B, 1 + K); three times as fast as a batched matmul
        loss = (bpr_loss if self.loss == "bpr" else bce_loss)(scores[:, 0], scores[:, 1:])
        penalty = p.square().sum() + q.square().sum() + bias.square().sum()
        return loss + 0.5 * self.l2 * penalty / len(users)

    def _losses_of_users(
        self, examples: Positives, generator: torch.Generator
    ) -> Iterator[tuple[Tensor, int]]:
        """One epoch over the users with events, shuffled; in a step as many as have about a batch of them."""
        lengths = torch.bincount(examples.users, minlength=self.n_users)  # (n_users,)
        crow, known = offsets(lengths), lengths.nonzero().squeeze(1)  # (n_users + 1,), (U,)
        users = known[torch.randperm(len(known), generator=generator, device=generator.device)]  # (U,)
        for block in row_blocks(lengths[users], self.batch_size):
            place, row = take_rows(crow, users[block])  # (E,), (E,)
            yield self.objective_of_users(users[block], row, examples.items[place]), len(place)

    def objective_of_users(self, users: Tensor, row: Tensor, items: Tensor) -> Tensor:
        """The softmax loss of all events of some users, as ``objective`` has it, with its penalty: ().

        Args:
            users: (B,) int64.
            row: (E,) int64, which of the users each event is of.
            items: (E,) int64.
        """
        return RowsObjective.apply(
            self.user_factors, self.item_factors, self.item_bias, users, row, items, self.l2
        )

    def _pair_scores(self, users: Tensor, items: Tensor) -> Tensor:
        """Scores of users (B,) and items (B, C), without the rest of the catalog: (B, C)."""
        q = functional.embedding(items, self.item_factors)  # (B, C, d)
        return (q * self.user_factors[users][:, None, :]).sum(dim=2) + self.item_bias[items]

    def _predict(self, users: Tensor, items: Tensor) -> Tensor:
        return self._pair_scores(users, items[:, None]).squeeze(1)  # (N,)

    def _similarities(self, items: Tensor) -> Tensor:
        return cosine(self.item_factors[items], self.item_factors)  # (B, n_items)

    def _score(self, users: Tensor) -> Tensor:
        # Added in place: a second matrix of this size would double what scoring takes.
        return (self.user_factors[users] @ self.item_factors.mT).add_(self.item_bias)  # (B, n_items)


class BPR(MatrixFactorization):
    """Bayesian personalized ranking: matrix factorization learned from pairs of a chosen and another item.

    ``MatrixFactorization`` with ``loss="bpr"``. The paper draws one negative for each positive; four cost a
    little more time and score higher. Mini-batches and Adam take the place of its one triple at a time.

    Source: Rendle, Freudenthaler, Gantner, Schmidt-Thieme 2009, "BPR: Bayesian Personalized Ranking from
    Implicit Feedback".
    """

    loss: str = preset(default="bpr")
