"""One head over one reader of histories: clicks, rankings or ratings from what a person did, stars unseen."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from recsys_lib.calibration import log_loss
from recsys_lib.data import Interactions
from recsys_lib.data.ragged import offsets, row_of_each, take_rows
from recsys_lib.devices import in_float32, seed_generator
from recsys_lib.metrics import rmse
from recsys_lib.models.core.checks import check_catalog, check_histories, check_interactions
from recsys_lib.models.core.histories import HistoryReader
from recsys_lib.models.core.options import data, learned, option
from recsys_lib.models.core.sequence_encoder import SequenceEncoder
from recsys_lib.models.core.trained import TrainedRecommender
from recsys_lib.models.core.windows import kept_histories, rows_of
from recsys_lib.ranking import HeldOut
from recsys_lib.training import Validation, batches

__all__ = ["BagEncoder", "HistoryHead"]

_LIKED = 4.0  # stars from which on a rating counts as a click
_PEOPLE_AT_ONCE = 256


class BagEncoder(nn.Module):
    """A history to a vector whatever its order: tanh(sum_i A_i / sqrt(n) + a), as in ``MultDAE``.

    Args:
        n_rows: items, or features of an item.
        dim: d, features of a person.
    """

    def __init__(self, n_rows: int, dim: int) -> None:
        super().__init__()
        self.rows, self.bias = nn.Parameter(torch.empty(n_rows, dim)), nn.Parameter(torch.zeros(dim))
        nn.init.xavier_normal_(self.rows)

    def forward(self, items: Tensor, crow: Tensor, features: Tensor | None = None) -> Tensor:
        """Takes the items (E,) of B histories, offsets (B + 1,), and (n_items, D) features; gives (B, d)."""
        table = self.rows if features is None else features.to(self.rows.dtype) @ self.rows  # (n_items, d)
        share = crow.diff().clamp(min=1).to(table.dtype).rsqrt()  # (B,)
        weights = share[row_of_each(crow)]  # (E,)
        total = functional.embedding_bag(
            items, table, crow, mode="sum", per_sample_weights=weights, include_last_offset=True
        )  # (B, d)
        return torch.tanh(total + self.bias)


class _Head(nn.Module):
    """What a task makes of a person's vector: (B, d) to (B, d), to be multiplied with items', and (B,)."""

    def __init__(self, dim: int, scale: float) -> None:
        super().__init__()
        self.map, self.level = nn.Linear(dim, dim), nn.Linear(dim, 1)
        nn.init.eye_(self.map.weight)
        for tensor in (self.map.bias, self.level.weight, self.level.bias):
            nn.init.zeros_(tensor)
        with torch.no_grad():
            self.map.weight *= scale

    def forward(self, person: Tensor) -> tuple[Tensor, Tensor]:
        return self.map(person), self.level(person).squeeze(1)


@dataclass(frozen=True)
class LabelledPairs:
    """Labels, and what their people did.

    Attributes:
        users: (N,) int64 of the labelled pairs, ascending.
        items: (N,) int64.
        labels: (N,) float32: 0 or 1 of a click, the rating less its mean.
        pair: (N,) int64, the number of the pair among all distinct ones.
        read_users: (E,) int64 of the events, ascending; each person's oldest first.
        read_items: (E,) int64.
        read_pair: (E,) int64, as ``pair``.
        n_pairs: distinct pairs.
    """

    users: Tensor
    items: Tensor
    labels: Tensor
    pair: Tensor
    read_users: Tensor
    read_items: Tensor
    read_pair: Tensor
    n_pairs: int


class HistoryHead(TrainedRecommender[LabelledPairs], HistoryReader):
    """What a person did, read by an encoder; a small head for one task over it.

        p    = encoder(history)                             whatever the stars were
        s_ui = (W p + w) . Q_i + b_i + v . p + c            the head over a person's and an item's vector

    **Tasks.** ``"ranking"``: each event of ``fit`` against the whole catalog (``losses.softmax_loss``).
    ``"click"``: rated four stars or more, against less, by binary cross-entropy; the score is the log-odds,
    so ``predict(...).sigmoid()`` is the probability. ``"rating"``: squared error; the score is a rating.

    **Encoders.** ``"bag"`` is the first layer of an autoencoder (``MultDAE``). ``"transformer"`` looks both
    ways over the last ``max_length`` events (``BERT4Rec``), and a person's vector is what it makes of a mask
    behind them.

    **Parts** for ``start_from``: ``encoder``, ``items`` (Q), ``item_bias`` (b) and ``head`` (W, w, v, c). W
    is the identity at first where the task is ranking, so that a model whose scores are p . Q_i + b_i begins
    where it stood. For the other tasks such scores mean nothing, and W is zero: all pairs begin at the mean.

    **What is read.** ``behaviour`` holds what people did; its ratings are never looked at. No pair is asked
    while its own item is read: in each epoch a person's items are dealt into ``n_parts`` parts, and the
    labels of one are asked by what the others hold. So all labels are asked once an epoch.

    With ``text`` an item is not a number but its features, mapped: Q = T M, and in the bag as well. Parts
    then fit a model of other items, if their features mean the same.

    With a validation set training stops by NDCG@10, by minus the log-loss, or by minus the root mean squared
    error, according to the task. Memory: a step of ``"ranking"`` holds ``batch_size`` x n_items scores.
    """

    task: str = option("what is learned", default="ranking", choices=("ranking", "click", "rating"))
    reads: str = option("what reads a history", default="bag", choices=("bag", "transformer"))
    dim: int = option("features of a person and an item", default=64, at_least=1)
    n_layers: int = option("transformer blocks", default=1, at_least=1)
    n_heads: int = option("attention heads in each block", default=2, at_least=1)
    max_length: int = option("events that the transformer reads", default=50, at_least=1)
    dropout: float = option("share dropped in training by the transformer", default=0.1, at_least=0, below=1)
    n_parts: int = option("into which what a person did is dealt", default=2, at_least=2)
    l2: float = option(
        "weight of the squared entries of tables and maps, and of items' own levels", default=0.0, at_least=0
    )
    body_rate: float = option(
        "learning rate of ``encoder`` and ``items``, as a share of the head's", default=1.0, above=0
    )
    text_dim: int | None = option("features of an item; taken from ``text``", default=None, at_least=1)
    batch_size: int = option("people in a step", default=64, at_least=1)
    epochs: int = option(default=30)
    check_every: int = option(default=1)
    behaviour: Interactions | None = data(
        "what the people of ``fit`` did, ratings unread; the events of ``fit`` when not given", default=None
    )
    text: Tensor | None = data("(n_items, D) features in place of items' numbers", default=None)

    encoder: nn.Module = learned("reads a history")
    items: nn.Parameter = learned("(n_items, d) Q, or (D, d) M")
    item_bias: nn.Parameter = learned("(n_items,) b")
    head: nn.Module = learned("W, w, v and c")
    features: Tensor = learned("(n_items, D) float32, centered, of size one; absent without text")
    level: Tensor = learned("() float32, mean of the ratings, or log-odds of a click")
    rating_range: Tensor = learned("(2,) float32, lowest and highest rating seen")
    history_crow: Tensor = learned("(n_users + 1,) int64 offsets")
    history_items: Tensor = learned("(E,) int64, user after user, oldest first")

    def __post_init__(self) -> None:
        """Checks what concerns two options."""
        super().__post_init__()
        if self.reads == "transformer" and self.dim % self.n_heads:
            raise ValueError(f"dim={self.dim} cannot be shared evenly among n_heads={self.n_heads}")
        if self.reads == "transformer" and (self.text is not None or self.text_dim is not None):
            raise ValueError('text needs reads="bag": the transformer reads the numbers of items')

    def build(self) -> None:
        """Makes the parts."""
        if self.text is not None:
            self._keep_features(self.text)
        n_rows = self.text_dim or self.n_items
        if self.reads == "bag":
            self.encoder = BagEncoder(n_rows, self.dim)
        else:
            self.encoder = SequenceEncoder(
                self.n_items + 1,  # the mask
                self.dim,
                self.n_layers,
                self.n_heads,
                self.max_length + 1,
                dropout=self.dropout,
                causal=False,
                quick_dropout=True,
            )
        self.items = nn.Parameter(torch.empty(n_rows, self.dim))
        nn.init.xavier_normal_(self.items)
        self.item_bias, self.head = (
            nn.Parameter(torch.zeros(self.n_items)),
            _Head(self.dim, float(self.task == "ranking")),
        )

    def _keep_features(self, text: Tensor) -> None:
        if text.ndim != 2 or len(text) != self.n_items:
            raise ValueError(f"text must be ({self.n_items}, D), a row an item; got {tuple(text.shape)}")
        centered = text.float() - text.float().mean(dim=0)  # (n_items, D)
        size = centered.square().mean().sqrt().clamp(min=torch.finfo(torch.float32).tiny)  # ()
        self._keep("features", centered / size)
        self.text_dim = text.shape[1]

    # Reading.

    def person(self, items: Tensor, lengths: Tensor) -> Tensor:
        """The vectors of B histories that stand one after another, items (E,), lengths (B,): (B, d)."""
        if isinstance(self.encoder, BagEncoder):
            features = self.features if self.text_dim else None  # (n_items, D)
            return cast(Tensor, self.encoder(items, offsets(lengths), features))  # (B, d)
        read = lengths.clamp(max=self.max_length)  # (B,)
        padded = functional.pad(items, (0, 1), value=self.n_items)  # (E + 1,) there may be no event at all
        rows = functional.pad(rows_of(padded, lengths.cumsum(0) - read, read), (0, 1))  # (B, T + 1)
        rows = rows.scatter(1, read[:, None], self.n_items)  # (B, T + 1)
        last = torch.arange(rows.shape[1], device=rows.device) == read[:, None]  # (B, T + 1)
        return cast(Tensor, self.encoder(rows, read + 1, asked=last))  # (B, d)

    @property
    def item_vectors(self) -> Tensor:
        """Q: (n_items, d)."""
        return self.features.to(self.items.dtype) @ self.items if self.text_dim else self.items

    def pairs(self, person: Tensor, row: Tensor, items: Tensor) -> Tensor:
        """Scores, without their level, of items (N,) for row (N,) of the people's vectors (B, d): (N,)."""
        wanted, level = self.head(person)  # (B, d), (B,)
        vectors = self.item_vectors[items]  # (N, d)
        return (wanted[row] * vectors).sum(dim=1) + self.item_bias[items] + level[row]

    def catalog(self, person: Tensor) -> Tensor:
        """Scores of all items, without their level, for people's vectors (B, d): (B, n_items)."""
        wanted, level = self.head(person)  # (B, d), (B,)
        return wanted @ self.item_vectors.mT + self.item_bias + level[:, None]

    # Learning.

    def slower(self) -> list[tuple[nn.Module, float]]:
        """The body may learn more slowly than the head."""
        body = nn.ModuleList([self.encoder, nn.ParameterList([self.items])])
        return [] if self.body_rate == 1 else [(body, self.body_rate * self.learning_rate)]

    def prepare(self, events: Interactions, generator: torch.Generator) -> LabelledPairs:
        """Keeps the histories; the labels and the events are the examples."""
        self._keep_histories(self._read_of(events))
        labels = events.ratings.nan_to_num(_LIKED)  # (N,)
        self._keep("rating_range", torch.stack([labels.min(), labels.max()]))
        level = labels.new_zeros(())
        if self.task == "click":
            labels = (labels >= _LIKED).to(labels.dtype)
            share = (labels.sum() + 1) / (len(labels) + 2)  # ()
            level = torch.logit(share)
        elif self.task == "rating":
            level = labels.mean()
            labels = labels - level
        self._keep("level", level)
        read_users = row_of_each(self.history_crow)  # (E,)
        keys = torch.cat([events.users, read_users]) * self.n_items  # (N + E,)
        keys = keys + torch.cat([events.items, self.history_items])
        distinct, pair = keys.unique(return_inverse=True)  # (P,), (N + E,)
        of_labels, of_read = pair.split([len(labels), len(read_users)])
        return LabelledPairs(
            events.users,
            events.items,
            labels,
            of_labels,
            read_users,
            self.history_items,
            of_read,
            len(distinct),
        )

    def _read_of(self, events: Interactions) -> Interactions:
        if self.behaviour is None:
            return events
        where = f"{type(self).__name__}(behaviour=...)"
        check_interactions(self.behaviour, where)
        check_catalog(self.behaviour, (self.n_users, self.n_items), self.user_ids, self.item_ids, where)
        return self.behaviour.to(events.users.device)

    def losses(self, examples: LabelledPairs, generator: torch.Generator) -> Iterator[tuple[Tensor, int]]:
        """One epoch: each part of what people did is asked in turn."""
        device = examples.users.device
        part = torch.randint(self.n_parts, (examples.n_pairs,), generator=generator, device=device)  # (P,)
        for asked_part in range(self.n_parts):
            asked = (part[examples.pair] == asked_part).nonzero().squeeze(1)  # (n,)
            read = (part[examples.read_pair] != asked_part).nonzero().squeeze(1)  # (e,)
            n_asked = examples.users[asked].bincount(minlength=self.n_users)  # (n_users,)
            n_read = examples.read_users[read].bincount(minlength=self.n_users)  # (n_users,)
            asked_crow, read_crow = offsets(n_asked), offsets(n_read)
            people = n_asked.nonzero().squeeze(1)  # (U,)
            for batch in batches(len(people), self.batch_size, generator):
                chosen = people[batch]  # (B,)
                person = self.person(
                    examples.read_items[read[take_rows(read_crow, chosen)[0]]], n_read[chosen]
                )  # (B, d)
                place, row = take_rows(asked_crow, chosen)  # (n,), (n,)
                place = asked[place]
                loss = self.objective(person, row, examples.items[place], examples.labels[place])  # ()
                if self.l2:
                    shrunk = [self.item_bias, *(p for p in self.parameters() if p.ndim == 2)]
                    loss = loss + self.l2 * sum(p.square().sum() for p in shrunk)
                yield loss, len(row)

    def objective(self, person: Tensor, row: Tensor, items: Tensor, labels: Tensor) -> Tensor:
        """The loss of N pairs: people's vectors (B, d), row (N,) of them, items (N,), labels (N,): ()."""
        if self.task == "ranking":  # softmax_loss(scores[row], items), each person's softmax made once
            return -self.catalog(person).log_softmax(dim=1)[row, items].mean()
        scores = self.pairs(person, row, items)  # (N,)
        if self.task == "click":
            return functional.binary_cross_entropy_with_logits(scores + self.level, labels)
        return (scores - labels).square().mean()

    # When to stop.

    def _fit(self, interactions: Interactions, validation: Interactions | None, progress: bool) -> None:
        if self.task == "ranking" or validation is None:
            super()._fit(interactions, validation, progress)
            return
        generator = seed_generator(self.seed, interactions.items.device)
        examples = self.prepare(interactions, generator)
        measure = self._error_on(validation.to(interactions.items.device))
        name = "minus log-loss" if self.task == "click" else "minus rmse"
        self._train(examples, generator, Validation(name, measure, self.check_every, self.patience), progress)

    def figure(self, held_out: HeldOut, seen: Interactions) -> tuple[str, Callable[[], float]]:
        """NDCG@10 over all items but those that the person's history holds."""
        return super().figure(held_out, self._read_of(seen))

    def _error_on(self, validation: Interactions) -> Callable[[], float]:
        """Measures minus the log-loss, or minus the root mean squared error, on these pairs."""
        known = validation[~validation.ratings.isnan()]
        if not len(known):
            raise ValueError("the validation set has no ratings")

        @torch.no_grad()
        def measure() -> float:
            was = self.training
            scores = self.eval()._predict(known.users, known.items)  # (N,)
            self.train(was)
            if self.task == "rating":
                return -float(rmse(scores, known.ratings))
            return -float(log_loss(scores.sigmoid(), known.ratings >= _LIKED))

        return measure

    # Asking.

    def _keep_histories(self, interactions: Interactions) -> None:
        crow, items = kept_histories(interactions, self.seed)  # (n_users + 1,), (E,)
        self._keep("history_crow", crow)
        self._keep("history_items", items)

    def _vectors(self, items: Tensor, crow: Tensor, people: Tensor) -> Tensor:
        """The vectors of people (B,), of whom items (E,) with offsets ``crow`` tell: (B, d)."""
        vectors = self.item_bias.new_empty(len(people), self.dim)  # (B, d)
        for block in torch.arange(len(people), device=people.device).split(_PEOPLE_AT_ONCE):
            if len(block):
                place, _ = take_rows(crow, people[block])  # (e,)
                vectors[block] = self.person(items[place], crow.diff()[people[block]])
        return vectors

    def _score(self, users: Tensor) -> Tensor:
        return self.catalog(self._vectors(self.history_items, self.history_crow, users)) + self.level

    def _predict(self, users: Tensor, items: Tensor) -> Tensor:
        """Scores of the pairs; ratings within the range of those seen in ``fit``: (N,)."""
        distinct, row = users.unique(return_inverse=True)  # (U,), (N,)
        person = self._vectors(self.history_items, self.history_crow, distinct)  # (U, d)
        scores = self.pairs(person, row, items) + self.level  # (N,)
        return scores.clamp(*self.rating_range.tolist()) if self.task == "rating" else scores

    @torch.no_grad()
    @in_float32()
    def score_histories(self, histories: Sequence[Tensor | Sequence[int]]) -> Tensor:
        """Scores every item for people given by their histories, known to the model or not.

        Args:
            histories: B lists or tensors of item indices, each oldest first; may be empty.

        Returns:
            (B, n_items) float32 on the histories' device; for lists of numbers, on the model's.

        Raises:
            NotFittedError: before ``fit``.
            TypeError, ValueError, IndexError: histories that are no lists of known items.
        """
        person, device = self._encoded(histories)  # (B, d)
        return (self.catalog(person) + self.level).to(device, torch.float32)  # (B, n_items)

    @torch.no_grad()
    @in_float32()
    def encode(self, histories: Sequence[Tensor | Sequence[int]]) -> Tensor:
        """A person's vector, (B, d), from what the person did; see ``score_histories``."""
        person, device = self._encoded(histories)
        return person.to(device, torch.float32)

    def _encoded(self, histories: Sequence[Tensor | Sequence[int]]) -> tuple[Tensor, torch.device]:
        self._check_fitted()
        items, lengths = check_histories(histories, self.n_items, self.device)  # (E,), (B,)
        crow = offsets(lengths.to(self.device))  # (B + 1,)
        people = torch.arange(len(lengths), device=self.device)  # (B,)
        return self._vectors(items.to(self.device), crow, people), items.device
