"""One factorization, every objective: what is learned differs by the loss alone."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from recsys_lib.data import Interactions
from recsys_lib.data.ragged import offsets, row_of_each, within_rows
from recsys_lib.list_losses import (
    lambdarank_loss,
    listmle_loss,
    listnet_loss,
    pairwise_hinge_loss,
    pairwise_logistic_loss,
)
from recsys_lib.losses import gbce_loss, sampled_softmax_loss
from recsys_lib.models.core.options import learned, option
from recsys_lib.models.core.trained import TrainedRecommender
from recsys_lib.negatives import NegativeSampler
from recsys_lib.similarity import cosine
from recsys_lib.training import batches

__all__ = ["OBJECTIVES", "ObjectiveMF"]

_GBCE_T = 0.75  # the calibration that the paper recommends


@dataclass(frozen=True)
class _Lists:
    """Lists of chosen and drawn items, with what a loss may ask of them.

    Attributes:
        scores: (B, L + K), chosen items first.
        gains: (B, L + K), 1 for a chosen item and 0 for a drawn one.
        present: (B, L + K) bool, False where a user has fewer chosen items left.
        n_chosen: L.
        n_items: size of the catalog.
        generator: of random orders.
    """

    scores: Tensor
    gains: Tensor
    present: Tensor
    n_chosen: int
    n_items: int
    generator: torch.Generator

    @property
    def n_drawn(self) -> int:
        """K; a small catalog has fewer other items, and some are drawn twice."""
        return self.scores.shape[1] - self.n_chosen

    def each_chosen(self) -> tuple[Tensor, Tensor]:
        """Scores of each chosen item, (N,), and of all that were drawn for its list, (N, K)."""
        row, place = self.present[:, : self.n_chosen].nonzero(as_tuple=True)  # (N,), (N,)
        return self.scores[row, place], self.scores[row, self.n_chosen :]


def _squared(lists: _Lists) -> Tensor:
    return (lists.scores - lists.gains)[lists.present].square().mean()


def _bce(lists: _Lists) -> Tensor:
    found, wanted = lists.scores[lists.present], lists.gains[lists.present]  # (N,), (N,)
    return functional.binary_cross_entropy_with_logits(found, wanted)


def _gbce(lists: _Lists) -> Tensor:
    return gbce_loss(*lists.each_chosen(), n_items=max(lists.n_items, lists.n_drawn + 1), t=_GBCE_T)


def _softmax(lists: _Lists) -> Tensor:
    return sampled_softmax_loss(*lists.each_chosen())


def _listmle(lists: _Lists) -> Tensor:
    chance = torch.rand(lists.scores.shape, generator=lists.generator, device=lists.scores.device)  # (B, C)
    key = (chance + lists.gains).masked_fill(~lists.present, -1.0)  # (B, C)
    order = key.argsort(dim=1, descending=True)  # (B, C) chosen items, drawn ones, padding
    return listmle_loss(lists.scores, order.masked_fill(~lists.present.gather(1, order), -1))


OBJECTIVES: dict[str, Callable[[_Lists], Tensor]] = {
    "squared error": _squared,
    "BCE": _bce,
    "gBCE": _gbce,
    "BPR": lambda lists: pairwise_logistic_loss(lists.scores, lists.gains, lists.present),
    "hinge": lambda lists: pairwise_hinge_loss(lists.scores, lists.gains, lists.present),
    "softmax": _softmax,
    "ListNet": lambda lists: listnet_loss(lists.scores, lists.gains, lists.present),
    "ListMLE": _listmle,
    "LambdaRank": lambda lists: lambdarank_loss(lists.scores, lists.gains, lists.present),
}
"""The losses of lists, by name. ``ObjectiveMF`` has one more, ``"stars"``."""

_COMPARING = ("BPR", "hinge", "softmax", "ListNet", "ListMLE", "LambdaRank")  # only differences count


@dataclass(frozen=True)
class _Chosen:
    """Offsets (n_users + 1,) and items (E,) of users' chosen items, what draws others; stars (E,) if any."""

    crow: Tensor
    items: Tensor
    sampler: NegativeSampler
    stars: Tensor | None


class ObjectiveMF(TrainedRecommender[_Chosen]):
    """A factorization whose loss is an option, and nothing else: s_ui = mu + b_u + b_i + p_u . q_i.

    Each example is a list: up to ``n_chosen`` items of one user, with gain 1, and ``n_drawn`` others with
    gain 0, drawn uniformly from those the user has not chosen. All losses see lists made in the same way:

    - of each item by itself: ``"squared error"`` of s and the gain, ``"BCE"``, and ``"gBCE"``
      (``losses.gbce_loss``, t = 0.75), in which each chosen item has all drawn ones as negatives;
    - of two items: ``"BPR"`` and ``"hinge"``, over all pairs of a list;
    - of the list: ``"softmax"`` of each chosen item and the drawn ones, ``"ListNet"``, ``"ListMLE"`` (items
      of one gain in a new random order in each epoch), ``"LambdaRank"``.

    One more learns from other data: ``"stars"``, the squared error of s and the ratings that were given, with
    nothing drawn. It is what rating prediction minimizes.

    ``predict`` gives the scores; with stars, within the range of those seen in ``fit``.

    Losses that compare items leave mu and b_u where they start, at zero. What a score means depends on the
    loss: a logit (BCE), a probability (squared error), stars, or nothing but an order.

    A user without events has the vector zero and gets the ranking by item bias. A user who has every item
    takes no part in training, except with ``"stars"``.

    Source: the losses name theirs; the factorization is Koren, Bell, Volinsky 2009, "Matrix Factorization
    Techniques for Recommender Systems", eq. 4.
    """

    dim: int = option("length of the vectors", default=32, at_least=1)
    loss: str = option("what is minimized, see above", default="BPR", choices=(*OBJECTIVES, "stars"))
    n_chosen: int = option("chosen items in a list, at most", default=4, at_least=1)
    n_drawn: int = option("other items in a list", default=32, at_least=1)
    l2: float = option("weight of the squared norm of what an example touches", default=0.01, at_least=0)
    init_scale: float = option("standard deviation of the vectors at the start", default=0.1, above=0)
    learning_rate: float = option(default=0.01)
    batch_size: int = option("chosen items in a step; with stars, ratings", default=1024, at_least=1)
    epochs: int = option(default=20)

    rating_range: Tensor = learned("(2,) float32, lowest and highest rating seen, with stars")
    mean: nn.Parameter = learned("() mu")
    user_bias: nn.Parameter = learned("(n_users,) b")
    item_bias: nn.Parameter = learned("(n_items,) b")
    user_factors: nn.Parameter = learned("(n_users, dim) p")
    item_factors: nn.Parameter = learned("(n_items, dim) q")

    def build(self) -> None:
        """Makes vectors and biases."""
        self.mean = nn.Parameter(torch.zeros(()))
        self.user_bias = nn.Parameter(torch.zeros(self.n_users))
        self.item_bias = nn.Parameter(torch.zeros(self.n_items))
        self.user_factors = nn.Parameter(torch.zeros(self.n_users, self.dim))
        self.item_factors = nn.Parameter(torch.zeros(self.n_items, self.dim))

    @torch.no_grad()
    def prepare(self, events: Interactions, generator: torch.Generator) -> _Chosen:
        """Small random vectors; each distinct pair is chosen once, each rating counts by itself."""
        self.user_factors.normal_(0.0, self.init_scale, generator=generator)
        self.item_factors.normal_(0.0, self.init_scale, generator=generator)
        self.user_factors[events.user_counts() == 0] = 0.0
        crow, items = events.csr()  # (n_users + 1,), (E,)
        sampler = NegativeSampler(crow, items, self.n_items)
        if self.loss != "stars":
            trainable = (crow.diff() < self.n_items)[row_of_each(crow)]  # (E,) is there an item to draw?
            n_chosen = torch.where(crow.diff() < self.n_items, crow.diff(), 0)  # (n_users,)
            return _Chosen(offsets(n_chosen), items[trainable], sampler, None)
        if missing := int(events.ratings.isnan().sum()):
            raise ValueError(
                f'loss="stars" learns from ratings, and {missing} of {len(events)} events have none; take '
                f"the others: interactions[~interactions.ratings.isnan()]"
            )
        self.mean.fill_(events.ratings.mean())
        self._keep("rating_range", torch.stack([events.ratings.min(), events.ratings.max()]))
        order = events.users.argsort(stable=True)  # (E,)
        return _Chosen(offsets(events.user_counts()), events.items[order], sampler, events.ratings[order])

    def losses(self, examples: _Chosen, generator: torch.Generator) -> Iterator[tuple[Tensor, int]]:
        """One epoch: the ratings, shuffled; or the chosen items, dealt anew into lists of one user each."""
        if examples.stars is not None:
            users = row_of_each(examples.crow)  # (E,)
            for batch in batches(len(users), self.batch_size, generator):
                scores, squares = self._look_up(users[batch], examples.items[batch, None])  # (B, 1), (B, 2)
                error = scores.squeeze(1) - examples.stars[batch]  # (B,)
                yield error.square().mean() + 0.5 * self.l2 * squares.sum() / len(batch), len(batch)
            return
        users, chosen = self._deal(examples, generator)  # (R,), (R, L)
        for batch in batches(len(users), max(1, self.batch_size // self.n_chosen), generator):
            drawn = examples.sampler.sample(users[batch], self.n_drawn, generator)  # (B, K)
            items = torch.cat([chosen[batch], drawn], dim=1)  # (B, L + K)
            present = items >= 0  # (B, L + K)
            gains = present.float()  # (B, L + K)
            gains[:, self.n_chosen :] = 0.0
            scores, squares = self._look_up(users[batch], items.clamp(min=0))  # (B, L + K), (B, 1 + L + K)
            squares = squares * functional.pad(present, (1, 0), value=True)  # (B, 1 + L + K)
            lists = _Lists(scores, gains, present, self.n_chosen, self.n_items, generator)
            n = int(gains.sum())
            yield OBJECTIVES[self.loss](lists) + 0.5 * self.l2 * squares.sum() / n, n

    def _deal(self, examples: _Chosen, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Chosen items in random order, cut into lists of one user: (R,), and (R, L) with -1 at the end."""
        crow, items = examples.crow, examples.items  # (n_users + 1,), (E,)
        users = row_of_each(crow)  # (E,)
        order = torch.rand(len(items), generator=generator, device=items.device).argsort()  # (E,)
        items = items[order[users[order].argsort(stable=True)]]  # (E,) user after user
        n_lists = (crow.diff() + self.n_chosen - 1) // self.n_chosen  # (n_users,)
        within = within_rows(crow)  # (E,)
        row = offsets(n_lists)[users] + within // self.n_chosen  # (E,)
        chosen = items.new_full((int(n_lists.sum()), self.n_chosen), -1)  # (R, L)
        chosen[row, within % self.n_chosen] = items
        return row_of_each(offsets(n_lists)), chosen

    def _look_up(self, users: Tensor, items: Tensor) -> tuple[Tensor, Tensor]:
        """Scores of users (B,) and items (B, C), and the squared lengths of what they touch.

        Returns:
            (B, C) and (B, 1 + C), the user's first.
        """
        p = functional.embedding(users, self.user_factors)[:, None]  # (B, 1, d)
        q = functional.embedding(items, self.item_factors)  # (B, C, d)
        own = functional.embedding(users, self.user_bias[:, None])  # (B, 1)
        bias = functional.embedding(items, self.item_bias[:, None]).squeeze(2)  # (B, C)
        level = self.mean + own  # (B, 1)
        if self.loss in _COMPARING:
            level = level.detach()  # its gradient is zero; Adam would take rounding errors for one
        squares = [p.square().sum(dim=2) + own.square(), q.square().sum(dim=2) + bias.square()]
        return level + bias + (q * p).sum(dim=2), torch.cat(squares, dim=1)

    def _predict(self, users: Tensor, items: Tensor) -> Tensor:
        scores = self._look_up(users, items[:, None])[0].squeeze(1)  # (N,)
        return scores.clamp(*self.rating_range) if self.loss == "stars" else scores

    def _score(self, users: Tensor) -> Tensor:
        own = self.mean + self.user_bias[users, None]  # (B, 1)
        return (self.user_factors[users] @ self.item_factors.mT).add_(own + self.item_bias)  # (B, n_items)

    def _similarities(self, items: Tensor) -> Tensor:
        return cosine(self.item_factors[items], self.item_factors)  # (B, n_items)
