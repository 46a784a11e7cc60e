"""Click models: the probability that a user chooses, or likes, an item, from fields and their products."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from recsys_lib.calibration import log_loss
from recsys_lib.crosses import CrossNetwork, FactorizationMachine, InnerProducts, OuterProducts
from recsys_lib.data import Interactions, check_seconds
from recsys_lib.data.ragged import distinct_events
from recsys_lib.devices import in_float32, seed_generator
from recsys_lib.models.core.checks import check_indices
from recsys_lib.models.core.fields import Features, field_table, widths_of
from recsys_lib.models.core.options import data, learned, option
from recsys_lib.models.core.trained import TrainedRecommender
from recsys_lib.negatives import NegativeSampler
from recsys_lib.similarity import cosine
from recsys_lib.training import Validation, batches

__all__ = ["ClickModel"]

_PAIRS_AT_ONCE = 2**16
_HOURS = 24


@dataclass(frozen=True)
class _Pairs:
    """Users, items, labels float32, hours, (E,) each; where other items are drawn, with what."""

    users: Tensor
    items: Tensor
    labels: Tensor
    hours: Tensor
    sampler: NegativeSampler | None


class ClickModel(TrainedRecommender[_Pairs]):
    """The probability of a yes, from fields that meet in an interaction layer.

        e_f = the vector of field f: a table's row for a number, x_f E_f for features x_f
        s   = b + sum_f w_f . x_f + h(e_1, ..., e_F),      P(yes) = sigma(s)

    The fields are the user's number, the item's number, and what ``user_features`` and ``item_features``
    hold: a data frame, or matrices by name, vectors of an encoder included (scaled to a length of about 1).
    What h is:

    - ``"linear"``: nothing, so that no two fields meet: a logistic regression;
    - ``"fm"``: the sum of inner products, a factorization machine (``crosses.FactorizationMachine``). With
      no features it is matrix factorization with both biases;
    - ``"inner"``, ``"outer"``: a weight for each inner product, a matrix for each outer one
      (``crosses.InnerProducts``, ``OuterProducts``);
    - ``"cross"``: the cross layers of DCN V2 (``crosses.CrossNetwork``);
    - ``"mlp"``: a hidden layer on the vectors side by side.

    ``deep=True`` adds the hidden layer to any other; it reads the vectors and the products together. So
    ``"inner"`` is the product-based network of Qu et al., ``"cross"`` the stacked DCN.

    Labels come in two ways. ``"chosen"``: each event is a yes, ``n_negatives`` drawn other items are noes.
    ``"liked"``: an event rated ``threshold`` or more is a yes, one rated less a no, and what was not rated
    says nothing. ``predict`` gives the probability, and ``score`` s. With ``"chosen"`` the probability is
    that among one event and the items drawn with it, not that in the catalog.

    ``hour=True`` adds a field of the event: the hour of the day (UTC) at which it happened. A drawn item has
    the hour of the event that it is drawn for. ``predict`` is told it by ``timestamps``; without them, and in
    ``score``, the field's vector is the mean over the hours of the events that were learned from.

    A user without events has the vector zero in the field of numbers; the features still speak. So has an
    item without events, with ``"liked"``. With a validation set, training stops by the log-loss on its labels
    (``"liked"``), or by NDCG@10 (``"chosen"``).

    Source: Rendle 2010, "Factorization Machines"; Qu et al. 2016, "Product-based Neural Networks for User
    Response Prediction"; Wang et al. 2021, "DCN V2".
    """

    interaction: str = option(
        "how fields meet, see above", default="fm", choices=("linear", "fm", "inner", "outer", "cross", "mlp")
    )
    deep: bool = option("a hidden layer on vectors and products", default=False)
    hidden: int = option("its width", default=64, at_least=1)
    matrix_rank: int | None = option(
        "of the matrices of outer and cross; None for full ones", default=None, at_least=1
    )
    n_layers: int = option("cross layers", default=2, at_least=1)
    dim: int = option("length of a field's vector", default=16, at_least=1)
    labels: str = option("what a yes is, see above", default="chosen", choices=("chosen", "liked"))
    threshold: float = option("the rating from which an event is liked", default=4.0)
    n_negatives: int = option("items drawn for each event that is chosen", default=4, at_least=1)
    l2: float = option(
        "weight of the squared vectors and weights of a pair's fields", default=0.01, at_least=0
    )
    layer_l2: float = option("weight of the squared weights of the layers", default=1e-4, at_least=0)
    init_scale: float = option("standard deviation of the vectors at the start", default=0.1, above=0)
    learning_rate: float = option(default=0.01)
    hour: bool = option("a field for the hour of the day, see above", default=False)
    user_fields: str | None = option("widths by name, JSON; taken from the features", default=None)
    item_fields: str | None = option("widths by name, JSON; taken from the features", default=None)
    user_features: Features | None = data(
        "fields by name, a row a user; kept with the learned state", default=None
    )
    item_features: Features | None = data(
        "fields by name, a row an item; kept with the learned state", default=None
    )

    user_table: Tensor = learned("(n_users, V) float32, the features")
    item_table: Tensor = learned("(n_items, W) float32, the features")
    bias: nn.Parameter = learned("() b")
    user_vectors: nn.Parameter = learned("(n_users, 1 + dim), weight and vector of each number")
    item_vectors: nn.Parameter = learned("(n_items, 1 + dim)")
    user_feature_vectors: nn.Parameter = learned("(V, 1 + dim), weight and vector of each feature")
    item_feature_vectors: nn.Parameter = learned("(W, 1 + dim)")
    hour_vectors: nn.Parameter = learned("(24, 1 + dim), with ``hour``")
    hour_shares: Tensor = learned("(24,) float32, of the events that were learned from")
    interactions: FactorizationMachine | InnerProducts | OuterProducts | CrossNetwork = learned(
        "(B, F, dim) to (B, K)"
    )
    head: nn.Linear = learned("(B, K) to (B, 1); a factorization machine has none")
    network: nn.Sequential = learned("(B, F dim + K) to (B, 1), where there is a hidden layer")

    def build(self) -> None:
        """Takes the features, or keeps those at hand, and makes the tables and layers."""
        self._take_features("user", self.n_users)
        self._take_features("item", self.n_items)
        widths = widths_of(self.user_fields), widths_of(self.item_fields)
        d, n_fields = self.dim, 2 + len(widths[0]) + len(widths[1]) + self.hour
        self.bias = nn.Parameter(torch.zeros(()))
        self.user_vectors = nn.Parameter(torch.zeros(self.n_users, 1 + d))
        self.item_vectors = nn.Parameter(torch.zeros(self.n_items, 1 + d))
        self.user_feature_vectors = nn.Parameter(torch.zeros(sum(widths[0]), 1 + d))
        self.item_feature_vectors = nn.Parameter(torch.zeros(sum(widths[1]), 1 + d))
        if self.hour:
            self.hour_vectors = nn.Parameter(torch.zeros(_HOURS, 1 + d))
        for name in ("interactions", "head", "network"):
            self._modules.pop(name, None)
        k = 0  # products
        if self.interaction not in ("linear", "mlp"):
            self.interactions = self._layer(n_fields)
            k = self.interactions.n_outputs
            if self.interaction != "fm":
                self.head = nn.Linear(k, 1, bias=False)
        if self.interaction in ("inner", "outer"):
            nn.init.ones_(self.head.weight)  # where a factorization machine stands
        if self.deep or self.interaction == "mlp":
            self.network = nn.Sequential(
                nn.Linear(n_fields * d + k, self.hidden), nn.ReLU(), nn.Linear(self.hidden, 1)
            )

    def _layer(self, n_fields: int) -> FactorizationMachine | InnerProducts | OuterProducts | CrossNetwork:
        if self.interaction == "fm":
            return FactorizationMachine()
        if self.interaction == "inner":
            return InnerProducts(n_fields)
        if self.interaction == "outer":
            return OuterProducts(n_fields, self.dim, self.matrix_rank)
        return CrossNetwork(n_fields, self.dim, self.n_layers, self.matrix_rank)

    def _take_features(self, side: str, n: int) -> None:
        """Makes a buffer of one side's features; those of an earlier fit or of a file are kept."""
        given = getattr(self, f"{side}_features")
        if given is not None:
            table, fields = field_table(given, n, side)  # (n, V)
            self._keep(f"{side}_table", table)
            setattr(self, f"{side}_fields", fields)
            return
        kept = self._buffers.get(f"{side}_table")
        if kept is not None and len(kept) != n:
            raise ValueError(
                f"{side}_features hold {len(kept)} {side}s, and there are {n}; give those of the new catalog"
            )

    @torch.no_grad()
    def prepare(self, events: Interactions, generator: torch.Generator) -> _Pairs:
        """Small random vectors; the pairs with their labels, or what draws those that have none."""
        for side in ("user", "item"):
            if getattr(self, f"{side}_fields") is not None and f"{side}_table" not in self._buffers:
                raise ValueError(
                    f"{type(self).__name__} has {side}_fields but no features: give {side}_features"
                )
        tables = [
            self.user_vectors,
            self.item_vectors,
            self.user_feature_vectors,
            self.item_feature_vectors,
        ]
        for table in [*tables, self.hour_vectors] if self.hour else tables:
            table[:, 1:].normal_(0.0, self.init_scale, generator=generator)
        self.user_vectors[events.user_counts() == 0] = 0.0
        pairs = self._labelled(events)
        if self.hour:
            seen = torch.bincount(pairs.hours, minlength=_HOURS)  # (24,)
            self._keep("hour_shares", seen / seen.sum().clamp(min=1))
        return pairs

    def _labelled(self, events: Interactions) -> _Pairs:
        if self.labels == "liked":
            if missing := int(events.ratings.isnan().sum()):
                raise ValueError(
                    f'labels="liked" reads ratings, and {missing} of {len(events)} events have none; take '
                    f'the others, or labels="chosen"'
                )
            self.item_vectors[events.item_counts() == 0] = 0.0
            labels = (events.ratings >= self.threshold).float()  # (E,)
            return _Pairs(events.users, events.items, labels, _hours(events.timestamps), None)
        distinct = distinct_events(
            events.users, events.items, events.timestamps, events.n_users, events.n_items
        )
        crow, users, items = distinct.crow, distinct.users, distinct.items  # (n_users + 1,), (E,), (E,)
        trainable = crow.diff()[users] < self.n_items  # (E,) is there an item that the user has not?
        labels = torch.ones(len(users), device=users.device)  # (E,)
        sampler = NegativeSampler(crow, items, self.n_items)
        hours = _hours(distinct.timestamps)  # (E,)
        return _Pairs(users[trainable], items[trainable], labels[trainable], hours[trainable], sampler)

    def losses(self, examples: _Pairs, generator: torch.Generator) -> Iterator[tuple[Tensor, int]]:
        """One epoch over the pairs, shuffled; other items are drawn anew."""
        for batch in batches(len(examples.users), self.batch_size, generator):
            users, items = examples.users[batch], examples.items[batch]  # (B,), (B,)
            labels, hours = examples.labels[batch], examples.hours[batch]  # (B,), (B,)
            if examples.sampler is not None:
                others = examples.sampler.sample(users, self.n_negatives, generator)  # (B, K)
                labels = functional.pad(labels[:, None], (0, self.n_negatives)).flatten()  # (B (1 + K),)
                items = torch.cat([items[:, None], others], dim=1).flatten()  # (B (1 + K),)
                users = users.repeat_interleave(1 + self.n_negatives)  # (B (1 + K),)
                hours = hours.repeat_interleave(1 + self.n_negatives)  # (B (1 + K),)
            fields = self._pair_fields(users, items, hours)  # (B', F, 1 + d)
            loss = functional.binary_cross_entropy_with_logits(self._logits(fields), labels)
            yield loss + 0.5 * self._penalty(fields), len(batch)

    def _penalty(self, fields: Tensor) -> Tensor:
        """The squares of what the pairs touch, a mean over pairs, and of the layers: ()."""
        layers = (self._modules.get(name) for name in ("interactions", "head", "network"))
        squares = [p.square().sum() for layer in layers if layer is not None for p in layer.parameters()]
        return self.l2 * fields.square().sum() / len(fields) + self.layer_l2 * sum(
            squares, fields.new_zeros(())
        )

    def _fields(self, side: str, index: Tensor) -> Tensor:
        """Weight and vector of each field of users, or items, by number (N,): (N, F', 1 + dim)."""
        own = functional.embedding(index, getattr(self, f"{side}_vectors"))[:, None]  # (N, 1, 1 + d)
        widths = widths_of(getattr(self, f"{side}_fields"))
        if not widths:
            return own
        weights = getattr(self, f"{side}_feature_vectors").split(widths)  # each (V_f, 1 + d)
        x = getattr(self, f"{side}_table")[index].to(own.dtype).split(widths, dim=1)  # each (N, V_f)
        return torch.cat([own, *((a @ b)[:, None] for a, b in zip(x, weights, strict=True))], dim=1)

    def _hour_field(self, hours: Tensor | None) -> Tensor:
        """Weight and vector of hours (N,), or of an hour unknown: (N, 1, 1 + dim), or 1 for N."""
        if hours is None:
            return (self.hour_shares.to(self.hour_vectors.dtype) @ self.hour_vectors)[None, None]
        return functional.embedding(hours, self.hour_vectors)[:, None]

    def _pair_fields(self, users: Tensor, items: Tensor, hours: Tensor | None) -> Tensor:
        """Weight and vector of each field of N pairs: (N, F, 1 + dim)."""
        fields = [self._fields("user", users), self._fields("item", items)]
        if self.hour:
            fields.append(self._hour_field(hours).expand(len(users), -1, -1))
        return torch.cat(fields, dim=1)

    def _logits(self, fields: Tensor) -> Tensor:
        """The logit of pairs whose fields have these weights and vectors, (N, F, 1 + d): (N,)."""
        logits = self.bias + fields[:, :, 0].sum(dim=1)  # (N,)
        e, products = fields[:, :, 1:], None  # (N, F, d)
        if "interactions" in self._modules:
            products = self.interactions(e)  # (N, K)
            logits = logits + (self.head(products) if "head" in self._modules else products).squeeze(1)
        if "network" in self._modules:
            flat = e.flatten(1)  # (N, F d)
            read = flat if products is None else torch.cat([flat, products], dim=1)  # (N, F d + K)
            logits = logits + self.network(read).squeeze(1)
        return logits

    def _fit(self, interactions: Interactions, validation: Interactions | None, progress: bool) -> None:
        if self.labels == "chosen" or validation is None:
            super()._fit(interactions, validation, progress)
            return
        generator = seed_generator(self.seed, interactions.items.device)
        examples = self.prepare(interactions, generator)
        look = Validation("minus log-loss", self._minus_loss_on(validation), self.check_every, self.patience)
        self._train(examples, generator, look, progress)

    def _minus_loss_on(self, validation: Interactions) -> Callable[[], float]:
        """Measures minus the log-loss on these events' labels."""
        known = validation.to(self.bias.device)
        known = known[~known.ratings.isnan()]
        if not len(known):
            raise ValueError("the validation set has no ratings")

        @torch.no_grad()
        def measure() -> float:
            chance = self._chances(known.users, known.items, _hours(known.timestamps))  # (N,)
            return -float(log_loss(chance, known.ratings >= self.threshold))

        return measure

    @torch.no_grad()
    @in_float32()
    def predict(self, users: Tensor, items: Tensor, timestamps: Tensor | None = None) -> Tensor:
        """The probability of a yes for each pair.

        Args:
            users: (N,) integer indices.
            items: (N,) integer indices.
            timestamps: (N,) seconds since 1970-01-01 UTC, when it would happen; read with ``hour`` alone.

        Returns:
            (N,) float32 on the users' device.

        Raises:
            NotFittedError, TypeError, ValueError, IndexError: as ``score``, for users and for items.
            ValueError: another number of timestamps.
        """
        if timestamps is None or not self.hour:
            return super().predict(users, items)
        users = self._check_users(users)
        items = check_indices(items, self.n_items, "item")
        times = check_seconds(timestamps, f"{type(self).__name__}.predict")  # (N,)
        if not len(users) == len(items) == len(times):
            counts = f"{len(users)}, {len(items)} and {len(times)}"
            raise ValueError(f"users, items and timestamps must have one length, got {counts}")
        here = self.device
        found = self._chances(users.to(here), items.to(here), _hours(times.to(here)))  # (N,)
        return found.to(users.device)

    def _predict(self, users: Tensor, items: Tensor) -> Tensor:
        return self._chances(users, items, None)  # (N,)

    def _chances(self, users: Tensor, items: Tensor, hours: Tensor | None) -> Tensor:
        """The probability of a yes for each pair, at these hours or at an hour unknown: (N,) float32."""
        parts = torch.arange(len(users), device=users.device).split(_PAIRS_AT_ONCE)
        found = [
            self._logits(self._pair_fields(users[n], items[n], None if hours is None else hours[n]))
            for n in parts
        ]
        return torch.cat(found).float().sigmoid()

    def _score(self, users: Tensor) -> Tensor:
        every = torch.arange(self.n_items, device=users.device)  # (n_items,)
        items = self._fields("item", every)  # (n_items, F', 1 + d)
        if self.hour:
            items = torch.cat([items, self._hour_field(None).expand(self.n_items, -1, -1)], dim=1)
        rows = []
        for part in users.split(max(1, _PAIRS_AT_ONCE // self.n_items)):
            own = self._fields("user", part)[:, None].expand(-1, self.n_items, -1, -1)  # (b, n_items, F'', .)
            both = torch.cat([own, items.expand(len(part), -1, -1, -1)], dim=2)  # (b, n_items, F, 1 + d)
            rows.append(self._logits(both.flatten(0, 1)).view(len(part), self.n_items))
        return torch.cat(rows)  # (B, n_items)

    def _similarities(self, items: Tensor) -> Tensor:
        """The cosine of the sums of the items' vectors, their features' included."""
        every = torch.arange(self.n_items, device=items.device)  # (n_items,)
        vectors = self._fields("item", every)[:, :, 1:].sum(dim=1)  # (n_items, d)
        return cosine(vectors[items], vectors)  # (B, n_items)


def _hours(timestamps: Tensor) -> Tensor:
    """The hour of the day (UTC) of times in seconds, (E,) int64: (E,) int64 from 0 to 23."""
    return timestamps.div(3600, rounding_mode="floor") % _HOURS
