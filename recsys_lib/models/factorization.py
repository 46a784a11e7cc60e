"""Matrix factorization for implicit feedback: one model, three losses; the pairwise one is BPR."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from recsys_lib.data import Interactions
from recsys_lib.data.ragged import offsets, row_blocks, row_of_each, take_rows
from recsys_lib.losses import bce_loss, bce_slope, bpr_loss, bpr_slope, softmax_loss
from recsys_lib.models.core.options import data, learned, option, preset
from recsys_lib.models.core.trained import TrainedRecommender
from recsys_lib.negatives import HardestOf, NegativeSampler, Sampler
from recsys_lib.similarity import cosine, pair_products
from recsys_lib.training import batches

__all__ = ["BPR", "MatrixFactorization", "Positives"]

_AT_ONCE = 1024  # examples whose gradient is written at once


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
            return _Pairwise.apply(*factors, users, pair, self.loss, self.l2 / max(1, len(users)))
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
        return _Rows.apply(self.user_factors, self.item_factors, self.item_bias, users, row, items, self.l2)

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


class _Pairwise(torch.autograd.Function):
    """The objective of a batch of pairs, with its gradient written out.

    With the slopes c_ui = dL/ds_ui of the loss by the scores s_ui = p_u . q_i + b_i, and the penalty
    l2 / (2 B) on whatever each pair touches, the chain rule gives, summed over the pairs of the batch,

        dL/dp_u = sum_i c_ui q_i + l2/B p_u
        dL/dq_i = sum_u c_ui p_u + l2/B q_i
        dL/db_i = sum_u c_ui     + l2/B b_i

    Only rows that the batch touches are read, some at a time, so that they stay in a CPU's cache.

    Source: Rendle et al. 2009, section 4.3.1, where a batch is one pair.
    """

    @staticmethod
    def forward(
        ctx: Any, P: Tensor, Q: Tensor, b: Tensor, users: Tensor, pairs: Tensor, loss: str, l2: float
    ) -> Tensor:
        """The loss () of users (B,) and items (B, 1 + K), the chosen one first; l2 is divided by B."""
        P, Q, b = P.detach(), Q.detach(), b.detach()
        value, slope = (bpr_loss, bpr_slope) if loss == "bpr" else (bce_loss, bce_slope)
        times_u = l2 * torch.bincount(users, minlength=len(P)).to(P.dtype)  # (n_users,)
        times_i = l2 * torch.bincount(pairs.flatten(), minlength=len(Q)).to(P.dtype)  # (n_items,)
        dP, dQ, db = P * times_u[:, None], Q * times_i[:, None], b * times_i  # as P, Q and b
        total = times_u @ P.square().sum(dim=1) + times_i @ (Q.square().sum(dim=1) + b.square())  # ()
        total = total / 2
        for user, pair in zip(users.split(_AT_ONCE), pairs.split(_AT_ONCE), strict=True):
            p = functional.embedding(user, P)  # (b, d)
            scores = pair_products(p, Q, pair) + b[pair]  # (b, 1 + K)
            chosen, others = scores[:, 0], scores[:, 1:]  # (b,), (b, K)
            share = len(user) / len(users)
            c = slope(chosen, others).mul_(share)  # (b, 1 + K)
            total += share * value(chosen, others)
            dP.index_add_(0, user, functional.embedding_bag(pair, Q, mode="sum", per_sample_weights=c))
            for k in range(pair.shape[1]):
                dQ.index_add_(0, pair[:, k], p * c[:, k, None])
            db.index_add_(0, pair.flatten(), c.flatten())
        ctx.save_for_backward(dP, dQ, db)
        return total

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        """The gradients that ``forward`` has made, times that of the loss ()."""
        return *(upstream * made for made in ctx.saved_tensors), None, None, None, None


class _Rows(torch.autograd.Function):
    """The softmax loss of whole users, with its gradient written out.

    User u has n_u of the E events, y_ui is 1 for the items of these, and Z_ui is the softmax of u's scores:

        A_ui = (n_u Z_ui - y_ui) / E        dL/dP = A Q        dL/dQ = A' P        dL/db = sum_u A_u

    to which the penalty adds l2 n_u / E p_u and l2 / n_items q_i.

    Source: Liang et al. 2018, "Variational Autoencoders for Collaborative Filtering", eq. 2.
    """

    @staticmethod
    def forward(
        ctx: Any, P: Tensor, Q: Tensor, b: Tensor, users: Tensor, row: Tensor, items: Tensor, l2: float
    ) -> Tensor:
        """The loss () of events, each with its row (E,) of users (B,) and its item (E,)."""
        P, Q, b = P.detach(), Q.detach(), b.detach()
        share = torch.bincount(row, minlength=len(users)).to(P.dtype) / len(items)  # (B,) n_u / E
        p = P[users]  # (B, d)
        scores = torch.addmm(b, p, Q.mT)  # (B, n_items)
        log_z = scores.logsumexp(dim=1)  # (B,)
        chosen = scores[row, items].mean()  # ()
        A = scores.sub_(log_z[:, None]).exp_().mul_(share[:, None])  # (B, n_items)
        A.index_put_((row, items), A.new_tensor(-1 / len(items)), accumulate=True)
        penalty = l2 * share[:, None] * p  # (B, d)
        dP = torch.zeros_like(P).index_copy_(0, users, torch.addmm(penalty, A, Q))  # (n_users, d)
        dQ = torch.addmm(Q, A.mT, p, beta=l2 / len(Q))  # (n_items, d)
        ctx.save_for_backward(dP, dQ, A.sum(dim=0))
        return share @ log_z - chosen + 0.5 * ((penalty * p).sum() + l2 / len(Q) * Q.square().sum())

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        """The gradients that ``forward`` has made, times that of the loss ()."""
        return *(upstream * made for made in ctx.saved_tensors), None, None, None, None


class BPR(MatrixFactorization):
    """Bayesian personalized ranking: matrix factorization learned from pairs of a chosen and another item.

    ``MatrixFactorization`` with ``loss="bpr"``. The paper draws one negative for each positive; four cost a
    little more time and score higher. Mini-batches and Adam take the place of its one triple at a time.

    Source: Rendle, Freudenthaler, Gantner, Schmidt-Thieme 2009, "BPR: Bayesian Personalized Ranking from
    Implicit Feedback".
    """

    loss: str = preset(default="bpr")
