"""AutoRec: ratings through a narrow code, learned from the squared error of those that were given."""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional

from recsys_lib.data import Interactions
from recsys_lib.data.ragged import offsets, sort_by, take_rows
from recsys_lib.devices import seed_generator
from recsys_lib.metrics import rmse
from recsys_lib.models.core.options import learned, option
from recsys_lib.models.core.trained import TrainedRecommender
from recsys_lib.similarity import cosine
from recsys_lib.training import Validation, batches

__all__ = ["AutoRec"]


class AutoRec(TrainedRecommender[Tensor]):
    """Predicts ratings by an autoencoder of each item's ratings, or of each user's.

        code(x)   = sigmoid(sum_j (r_xj - mu) A_j + a)          over the ratings that x has, x an item
        rating_xj = mu + O_j . code(x) + o_j                    for every user j, given or not
        L         = mean over the ratings given of (r_xj - rating_xj)^2 + l2 (|A|^2 + |O|^2)

    Only ratings that were given are asked for, so what is missing says nothing; as input it counts as the
    mean. With the items' vectors code(i) this is a factorization, mu + o_u + O_u . code(i), in which an
    item's vector is not a parameter but a function of its ratings. ``side="user"`` turns it round.

    From the paper: the architecture, the sigmoid, the loss, and that items are the better side. Unlike the
    paper ratings are centered, so that a missing one is no rating of zero, and Adam takes the place of its
    resilient propagation.

    With a validation set, training stops when the error on its ratings has not fallen. ``predict`` gives
    ratings within the range of those seen in ``fit``; ``score`` leaves them unbounded.

    Source: Sedhain, Menon, Sanner, Xie 2015, "AutoRec: Autoencoders Meet Collaborative Filtering", eqs. 1
    and 2.
    """

    dim: int = option("features of the code", default=64, at_least=1)
    side: str = option("whose ratings are encoded", default="item", choices=("item", "user"))
    l2: float = option("weight of the squared weights, biases left out", default=2e-4, at_least=0)
    batch_size: int = option("items, or users, in a step", default=128, at_least=1)
    epochs: int = option(default=40)

    crow: Tensor = learned("(n + 1,) int64 offsets, where the ratings of each item, or user, begin")
    others: Tensor = learned("(E,) int64, who gave each rating, or to what")
    ratings: Tensor = learned("(E,) float32, the mean taken out")
    mean: Tensor = learned("() float32")
    rating_range: Tensor = learned("(2,) float32, lowest and highest rating seen")
    rows: nn.Parameter = learned("(m, dim) A")
    code_bias: nn.Parameter = learned("(dim,) a")
    output: nn.Linear = learned("O and o, dim to m")

    def build(self) -> None:
        """Makes the two layers."""
        m = self.n_users if self.side == "item" else self.n_items
        self.rows = nn.Parameter(torch.empty(m, self.dim))
        self.code_bias = nn.Parameter(torch.zeros(self.dim))
        self.output = nn.Linear(self.dim, m)
        nn.init.xavier_normal_(self.rows)
        nn.init.xavier_normal_(self.output.weight)
        nn.init.zeros_(self.output.bias)

    def _fit(self, interactions: Interactions, validation: Interactions | None, progress: bool) -> None:
        generator = seed_generator(self.seed, interactions.items.device)
        examples, look = self.prepare(interactions, generator), None
        if validation is not None:
            look = Validation("minus rmse", self._error_on(validation), self.check_every, self.patience)
        self._train(examples, generator, look, progress)

    def prepare(self, events: Interactions, generator: torch.Generator) -> Tensor:
        """Keeps the ratings by item, or by user; the examples are those that have any."""
        if missing := int(events.ratings.isnan().sum()):
            raise ValueError(
                f"AutoRec learns from ratings, and {missing} of {len(events)} events have none; "
                f"take the others: interactions[~interactions.ratings.isnan()]"
            )
        one, other = events.items, events.users  # (E,), (E,)
        n = self.n_items
        if self.side == "user":
            one, other, n = other, one, self.n_users
        order = sort_by(one, other)  # (E,)
        mean = events.ratings.mean()  # ()
        self._keep("crow", offsets(torch.bincount(one, minlength=n)))
        self._keep("others", other[order])
        self._keep("ratings", events.ratings[order] - mean)
        self._keep("mean", mean)
        self._keep("rating_range", torch.stack([events.ratings.min(), events.ratings.max()]))
        return self.crow.diff().nonzero().squeeze(1)  # (N,)

    def losses(self, examples: Tensor, generator: torch.Generator) -> Iterator[tuple[Tensor, int]]:
        """One epoch over the items, or users, that have ratings, shuffled."""
        for batch in batches(len(examples), self.batch_size, generator):
            place, row = take_rows(self.crow, examples[batch])  # (E,), (E,)
            given, x = self.others[place], self.ratings[place]  # (E,), (E,)
            crow = offsets(self.crow.diff()[examples[batch]])  # (B + 1,)
            found = self.output(self._code(crow, given, x))  # (B, m)
            penalty = self.rows.square().sum() + self.output.weight.square().sum()  # ()
            yield (found[row, given] - x).square().mean() + self.l2 * penalty, len(x)

    def _code(self, crow: Tensor, given: Tensor, ratings: Tensor) -> Tensor:
        """Codes of B items, or users, whose ratings (E,) stand one after another: (B, dim)."""
        total = functional.embedding_bag(
            given,
            self.rows,
            crow,
            mode="sum",
            per_sample_weights=ratings.to(self.rows.dtype),
            include_last_offset=True,
        )  # (B, dim)
        return torch.sigmoid(total + self.code_bias)

    def encode(self, index: Tensor) -> Tensor:
        """Vectors of items, or users, by number (B,) int64, from the ratings they have: (B, dim)."""
        place, _ = take_rows(self.crow, index)  # (E,)
        return self._code(offsets(self.crow.diff()[index]), self.others[place], self.ratings[place])

    def _score(self, users: Tensor) -> Tensor:
        if self.side == "user":
            return self.mean + self.output(self.encode(users))  # (B, n_items)
        codes = self.encode(torch.arange(self.n_items, device=users.device))  # (n_items, dim)
        weight, bias = self.output.weight[users], self.output.bias[users]  # (B, dim), (B,)
        return self.mean + bias[:, None] + weight @ codes.mT  # (B, n_items)

    def _predict(self, users: Tensor, items: Tensor) -> Tensor:
        """The expected rating of each pair, within the range of ratings seen in ``fit``: (N,)."""
        one, other = (items, users) if self.side == "item" else (users, items)  # (N,), (N,)
        distinct, where = one.unique(return_inverse=True)  # (V,), (N,)
        product = (self.encode(distinct)[where] * self.output.weight[other]).sum(dim=1)  # (N,)
        rating = self.mean + self.output.bias[other] + product  # (N,)
        return rating.clamp(self.rating_range[0], self.rating_range[1])

    def _similarities(self, items: Tensor) -> Tensor:
        if self.side == "user":
            return cosine(self.output.weight[items], self.output.weight)  # (B, n_items)
        codes = self.encode(torch.arange(self.n_items, device=items.device))  # (n_items, dim)
        return cosine(codes[items], codes)  # (B, n_items)

    def _error_on(self, validation: Interactions) -> Callable[[], float]:
        """Measures minus the root mean squared error on these ratings."""
        known = validation.to(self.rows.device)
        known = known[~known.ratings.isnan()]
        if not len(known):
            raise ValueError("the validation set has no ratings")

        @torch.no_grad()
        def measure() -> float:
            return -float(rmse(self._predict(known.users, known.items), known.ratings))

        return measure
