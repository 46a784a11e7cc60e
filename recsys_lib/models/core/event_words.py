"""Models that hold what a person did, event by event, against an item, word by word."""

from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from recsys_lib.attention import present_tokens
from recsys_lib.data import Interactions
from recsys_lib.data.ragged import offsets, sort_by
from recsys_lib.devices import in_float32, seed_generator
from recsys_lib.losses import bce_loss, bpr_loss
from recsys_lib.models.core.checks import check_catalog, check_histories, check_interactions
from recsys_lib.models.core.histories import HistoryReader
from recsys_lib.models.core.options import data, learned, option
from recsys_lib.models.core.sequence_encoder import QuickDropout
from recsys_lib.models.core.trained import TrainedRecommender, validation_ndcg
from recsys_lib.models.core.windows import rows_of, shuffle_ties
from recsys_lib.negatives import NegativeSampler
from recsys_lib.ranking import HeldOut
from recsys_lib.text.words import TextWords
from recsys_lib.training import batches

__all__ = ["EventWords", "PastAndTarget", "Stretches", "Tokens", "masked_mean"]

_READS = ("words", "id", "id+words")
_CELLS = 2**21  # pairs of an event and a word that are held at a time where a catalog is scored


class Tokens(NamedTuple):
    """Sequences of vectors, padded at the end.

    Attributes:
        x: (..., T, d).
        present: (..., T) bool, False at padding.
    """

    x: Tensor
    present: Tensor


class Stretches(NamedTuple):
    """Histories as they are read.

    Attributes:
        items: (E,) int64, of all histories, each oldest first.
        actions: (E,) int64, what was done with them.
        ends: (B,) int64, where each history ends.
        lengths: (B,) int64, how many events come before that.
    """

    items: Tensor
    actions: Tensor
    ends: Tensor
    lengths: Tensor

    def of(self, rows: Tensor) -> "Stretches":
        """Some of the histories, (b,)."""
        return Stretches(self.items, self.actions, self.ends[rows], self.lengths[rows])


@dataclass(frozen=True)
class PastAndTarget:
    """What the model learns from: for each target what its user had done before.

    Attributes:
        users: (N,) int64.
        items: (N,) int64, the target.
        ratings: (N,) float32, what the user said of it.
        ends: (N,) int64, where the part of the kept events ends that came strictly before the target.
        lengths: (N,) int64, how many events that are, one or more.
        sampler: draws other items, by place in ``known``.
        known: (K,) int64, items with events, of which negatives are drawn: what nobody has seen yet is not
            pushed down for it.
    """

    users: Tensor
    items: Tensor
    ratings: Tensor
    ends: Tensor
    lengths: Tensor
    sampler: NegativeSampler
    known: Tensor


class EventWords(TrainedRecommender[PastAndTarget], HistoryReader):
    """A person is a sequence of events, an item a sequence of words; a subclass says how the two meet.

    **The person's side.** An event is the item, what the person did with it, and its place from the end:

        x_t = E[item_t] + mean of M w over the item's words + A[action_t] + P[events after t]

    An action is a rating, or any other code in the place of a rating (1 for a click, 2 for a purchase):
    each distinct value of the events of ``fit`` is one. ``actions`` are all events of the users, such as
    dislikes, where ``fit`` is given likes alone. Of them those are read that came no later than the user's
    last event in ``fit``: what is held out, and what came after it, stays unread. Where something is held out
    that is not later, as with items that shall be new, leave its events out of ``actions``.

    **The item's side.** Its words, each the vector of a frozen encoder, mapped (``text``); its number, as one
    more word; or both. What is read of words is there for an item that nobody has chosen yet. The vector of
    such an item's number is zero.

    **Targets** are the events of ``fit``. What is read for a target are the user's events of strictly earlier
    times; a target without any is left out. Objectives: ``"bce"`` (``losses.bce_loss``) and ``"bpr"``
    (``losses.bpr_loss``) hold it against ``n_negatives`` others. ``"squared_error"`` fits the ratings of all
    events, ``actions`` included, and draws nothing; scores are then expected ratings.

    **Users of whom nothing is known** get the logarithm of each item's share of the events.

    **Cost.** A pair of user and item costs ``max_history`` x ``max_words`` steps and cannot be looked up, so
    the model ranks few candidates that another one has found. ``score`` takes a block of pairs at a time;
    its memory does not grow with the catalog, but for the result. Validation looks at ``check_users`` users.

    A subclass adds its parts in ``build`` and implements ``meet``.
    """

    item: str = option("what is read of an item", default="id+words", choices=_READS)
    event: str = option("what is read of an event's item", default="id+words", choices=_READS)
    action_types: bool = option("what the person did with an item is read", default=True)
    positions: bool = option("how long ago an event was is read", default=True)
    objective: str = option(
        "what a target is held against, see above", default="bce", choices=("bce", "bpr", "squared_error")
    )
    n_negatives: int = option("others drawn for each target", default=4, at_least=1)
    dim: int = option("features of an event and a word", default=32, at_least=1)
    dropout: float = option(
        "share dropped in training, of events and words", default=0.1, at_least=0, below=1
    )
    max_history: int = option("most recent events that are read", default=20, at_least=1)
    max_words: int = option("words that are read of a text", default=16, at_least=1)
    word_dim: int | None = option("length of a word's vector; taken from the texts", default=None, at_least=1)
    check_users: int = option("users that a check on validation looks at", default=200, at_least=1)
    epochs: int = option(default=8)
    learning_rate: float = option(default=0.003)
    batch_size: int = option(default=128)
    patience: int = option(default=2)
    check_every: int = option(default=1)
    text: Sequence[str] | TextWords | None = data(
        "one text an item, or their words; kept with the learned state", default=None
    )
    actions: Interactions | None = data(
        "all events of the users, dislikes included; those of ``fit`` when not given", default=None
    )

    word_rows: Tensor = learned("(n_items, W) int64, the words of each item, -1 where there is none")
    word_vectors: Tensor = learned("(V, D) float32, frozen, of mean 0 and size 1")
    item_known: Tensor = learned("(n_items,) bool, items with events")
    action_values: Tensor = learned("(A,) float32, the ratings that are told apart, ascending")
    usual_action: Tensor = learned("() int64, the action of an event of which nothing is said")
    rating_scale: Tensor = learned("(2,) float32, mean and deviation of the ratings")
    log_popularity: Tensor = learned("(n_items,) float32")
    history_crow: Tensor = learned("(n_users + 1,) int64 offsets")
    history_items: Tensor = learned("(E,) int64, user after user, oldest first")
    history_actions: Tensor = learned("(E,) int64, places in ``action_values``")
    word_map: nn.Linear = learned("M, a word's vector to d features")
    item_table: nn.Embedding = learned("(n_items, d), the number of an item")
    event_table: nn.Embedding = learned("(n_items, d) E, the number of an event's item")
    action_table: nn.Embedding = learned("(at most 16, d) A")
    place_table: nn.Embedding = learned("(max_history, d) P")
    dropped: QuickDropout = learned("what drops features of events and words")

    # How the two sides meet: a subclass.

    @abstractmethod
    def meet(self, events: Tokens, words: Tokens) -> Tensor:
        """The score of each pair.

        Args:
            events: of B users, x (B, 1, T, d).
            words: of items, x (B, C, W, d), or (1, C, W, d) where all users meet the same ones.

        Returns:
            (B, C)
        """

    # What they are made of.

    def build(self) -> None:
        """Makes the tables and the map of words; a subclass adds its own parts."""
        if self._reads_words and self.text is not None:
            self._keep_words()
        elif self._reads_words and self.word_dim is None:
            raise ValueError(
                f"{type(self).__name__} reads the items' words: give text=, one text an item, or leave words "
                f'out with item="id", event="id"'
            )

        def table(n: int) -> nn.Embedding:
            made = nn.Embedding(n, self.dim)
            nn.init.normal_(made.weight, std=0.1)
            return made

        self.word_map = nn.Linear(self.word_dim or 1, self.dim, bias=False)
        self.item_table, self.event_table = table(self.n_items), table(self.n_items)
        self.action_table, self.place_table = table(_MOST_ACTIONS), table(self.max_history)
        self.dropped = QuickDropout(self.dropout)

    @property
    def _reads_words(self) -> bool:
        return "words" in self.item or "words" in self.event

    def _keep_words(self) -> None:
        """Takes the texts' words, cut to those that are read, their vectors centered and scaled."""
        words = self.text
        if not isinstance(words, TextWords):
            if isinstance(words, str):
                raise TypeError("text must be one text an item, got a single text")
            words = TextWords.of(list(words or []), max_words=self.max_words)
        if len(words) != self.n_items:
            raise ValueError(f"text must be one an item: {self.n_items} items, {len(words)} texts")
        vectors = words.vectors.float()  # (V, D)
        if not len(vectors):  # texts without any word; a row is needed in whose place padding stands
            vectors = vectors.new_zeros(1, vectors.shape[1])
        vectors = vectors - vectors.mean(dim=0)
        size = vectors.square().mean().sqrt().clamp(min=torch.finfo(torch.float32).tiny)  # ()
        self._keep("word_rows", words.rows[:, : self.max_words])
        self._keep("word_vectors", vectors / size)
        self.word_dim = vectors.shape[1]

    def _words(self, items: Tensor) -> Tokens:
        """The mapped words of items (N,): x (N, W, d)."""
        rows = self.word_rows[items]  # (N, W)
        needed, place = rows.clamp(min=0).unique(return_inverse=True)  # (V',), (N, W)
        mapped = self.word_map(self.word_vectors[needed].to(self.word_map.weight.dtype))  # (V', d)
        return Tokens(functional.embedding(place, mapped), rows >= 0)

    def items_side(self, items: Tensor) -> Tokens:
        """What is read of items (N,) int64: x (N, W, d), the number first where it is read."""
        ids = self.item_table(items)[:, None]  # (N, 1, d)
        there = items.new_ones(len(items), 1, dtype=torch.bool)  # (N, 1)
        if self.item == "id":
            return Tokens(self.dropped(ids), there)
        words = self._words(items)  # (N, W, d)
        if self.item == "id+words":
            words = Tokens(torch.cat([ids, words.x], dim=1), torch.cat([there, words.present], dim=1))
        return Tokens(self.dropped(words.x), words.present)

    def events_side(self, past: Stretches) -> Tokens:
        """What is read of B histories of one event or more: x (B, T, d), the last ``max_history`` events."""
        read = past.lengths.clamp(max=self.max_history)  # (B,)
        rows, did = (rows_of(x, past.ends - read, read) for x in (past.items, past.actions))  # (B, T) each
        distinct, place = rows.unique(return_inverse=True)  # (N,), (B, T)
        table = torch.zeros_like(self.event_table(distinct))  # (N, d)
        if "id" in self.event:
            table = table + self.event_table(distinct)  # (N, d)
        if "words" in self.event:
            words = self._words(distinct)  # (N, W, d)
            table = table + masked_mean(words.x, words.present)  # (N, d)
        x = functional.embedding(place, table)  # (B, T, d)
        if self.action_types:
            x = x + self.action_table(did)  # (B, T, d)
        if self.positions:
            later = read[:, None] - 1 - torch.arange(rows.shape[1], device=rows.device)  # (B, T)
            x = x + self.place_table(later.clamp(min=0))  # (B, T, d)
        return Tokens(self.dropped(x), present_tokens(read, rows.shape[1]))

    # Learning.

    def prepare(self, events: Interactions, generator: torch.Generator) -> PastAndTarget:
        """Each event is a target, with what its user had done strictly before."""
        if self._reads_words and "word_rows" not in self._buffers:
            raise ValueError(f"{type(self).__name__} reads the items' words, and has none: give text=")
        counts = torch.bincount(events.items, minlength=self.n_items)  # (n_items,)
        share = (counts + 1) / (counts + 1).sum()  # (n_items,)
        self._keep("log_popularity", share.log())
        self._keep("item_known", counts > 0)
        with torch.no_grad():
            for table in (self.item_table, self.event_table):
                table.weight[counts == 0] = 0.0
        past = self._past(events)
        ratings = events.ratings.float()  # (E,)
        self._keep("action_values", _values(past.ratings.float()))
        self._keep("usual_action", self._actions_of(ratings).mode().values)
        self._keep_histories(past)
        aims = past if self.objective == "squared_error" else events
        mean, deviation = aims.ratings.float().mean(), aims.ratings.float().std(correction=0)  # (), ()
        self._keep("rating_scale", torch.stack([mean, deviation.clamp(min=1e-6)]))

        before = _strictly_before(past, aims)  # (E,)
        crow, own = events.csr()
        known = self.item_known.nonzero().squeeze(1)  # (K,)
        place = self.item_known.cumsum(0) - 1  # (n_items,)
        usable = before > 0  # (E,)
        if not bool(usable.any()):
            raise ValueError(
                f"no user has two events at different times, so there is no history from which "
                f"{type(self).__name__} could learn"
            )
        if self.objective != "squared_error":
            usable &= crow.diff()[aims.users] < len(known)  # is there another item?
        users = aims.users[usable]  # (N,)
        return PastAndTarget(
            users=users,
            items=aims.items[usable],
            ratings=aims.ratings.float()[usable],
            ends=self.history_crow[users] + before[usable],
            lengths=before[usable],
            sampler=NegativeSampler(crow, place[own], len(known)),
            known=known,
        )

    def _past(self, events: Interactions) -> Interactions:
        """The events that may be read: ``actions`` up to each user's last event of ``fit``, or these."""
        if self.actions is None:
            return events
        where = f"{type(self).__name__}(actions=...)"
        check_interactions(self.actions, where)
        check_catalog(self.actions, (self.n_users, self.n_items), self.user_ids, self.item_ids, where)
        given = self.actions.to(events.users.device)
        first = torch.iinfo(torch.int64).min
        last = torch.full((self.n_users,), first, dtype=torch.int64, device=events.users.device)  # (n_users,)
        last = last.scatter_reduce(0, events.users, events.timestamps, "amax")
        return given[given.timestamps <= last[given.users]]

    def losses(self, examples: PastAndTarget, generator: torch.Generator) -> Iterator[tuple[Tensor, int]]:
        """One epoch over the targets, shuffled."""
        for batch in batches(len(examples.users), self.batch_size, generator):
            past = Stretches(
                self.history_items, self.history_actions, examples.ends[batch], examples.lengths[batch]
            )
            events = self.events_side(past)  # (B, T, d)
            items = examples.items[batch, None]  # (B, 1)
            if self.objective != "squared_error":
                drawn = examples.sampler.sample(examples.users[batch], self.n_negatives, generator)  # (B, K)
                items = torch.cat([items, examples.known[drawn]], dim=1)  # (B, 1 + K)
            yield self.loss(self._meet_rows(events, items), examples.ratings[batch]), len(batch)

    def loss(self, scores: Tensor, ratings: Tensor) -> Tensor:
        """The objective (): of scores (B, 1 + K), the target's first, and the target's ratings (B,)."""
        if self.objective == "squared_error":
            mean, deviation = self.rating_scale
            return functional.mse_loss(scores[:, 0], (ratings - mean) / deviation)
        return (bpr_loss if self.objective == "bpr" else bce_loss)(scores[:, 0], scores[:, 1:])

    def _meet_rows(self, events: Tokens, items: Tensor) -> Tensor:
        """Scores of events (B, T, d) and a row of items each, (B, C): (B, C). Each item is read once."""
        distinct, place = items.unique(return_inverse=True)  # (N,), (B, C)
        words = self.items_side(distinct)  # (N, W, d)
        x = functional.embedding(place, words.x.flatten(1)).unflatten(-1, words.x.shape[1:])  # (B, C, W, d)
        return self.meet(_alone(events), Tokens(x, words.present[place]))  # (B, C)

    def figure(self, held_out: HeldOut, seen: Interactions) -> tuple[str, Callable[[], float]]:
        """NDCG@10 over the catalog, of some users."""
        rows = torch.randperm(len(held_out.users), generator=seed_generator(self.seed), device="cpu")
        rows = rows[: self.check_users].sort()[0].to(held_out.users.device)  # (U,)
        users = held_out.users[rows]  # (U,)
        relevant = held_out.relevant[torch.isin(held_out.relevant // self.n_items, users)]  # (R,)
        some = HeldOut(users, held_out.n_relevant[rows], relevant, self.n_items)
        return "ndcg@10", lambda: validation_ndcg(self, some, seen)

    # Scoring.

    def _keep_histories(self, interactions: Interactions) -> None:
        # On the CPU whatever the device is, so that the order of ties is the same on all.
        order = shuffle_ties(interactions, seed_generator(self.seed))  # (E,)
        self._keep("history_crow", offsets(interactions.user_counts()))
        self._keep("history_items", interactions.items[order])
        self._keep("history_actions", self._actions_of(interactions.ratings.float())[order])

    def _actions_of(self, ratings: Tensor) -> Tensor:
        """The action nearest to each rating: (E,) float32 to (E,) int64."""
        values = self.action_values.to(ratings.device)  # (A,)
        if len(values) == 1:
            return torch.zeros_like(ratings, dtype=torch.int64)
        return torch.bucketize(ratings, (values[1:] + values[:-1]) / 2)  # (E,)

    def _in_stars(self, scores: Tensor) -> Tensor:
        """Scores as they are given: with squared error expected ratings."""
        if self.objective != "squared_error":
            return scores
        mean, deviation = self.rating_scale
        return mean + deviation * scores.float()

    def _of_users(self, users: Tensor) -> Stretches:
        """What is read of users (B,)."""
        crow = self.history_crow
        return Stretches(self.history_items, self.history_actions, crow[users + 1], crow.diff()[users])

    def _score(self, users: Tensor) -> Tensor:
        return self._score_past(self._of_users(users))

    def _score_past(self, past: Stretches) -> Tensor:
        """Scores of all items for B histories: (B, n_items)."""
        scores = self.log_popularity.repeat(len(past.lengths), 1)  # (B, n_items)
        known = (past.lengths > 0).nonzero().squeeze(1)  # (U,)
        if not len(known):
            return scores
        everything = torch.arange(self.n_items, device=scores.device)  # (n_items,)
        cells = self.max_history * (1 + self.max_words)  # of a pair
        for block in everything.split(max(1, _CELLS // cells)):
            words = self.items_side(block)  # (C, W, d)
            words = Tokens(words.x[None], words.present[None])
            for rows in known.split(max(1, _CELLS // (cells * len(block)))):
                events = self.events_side(past.of(rows))  # (b, T, d)
                scores[rows[:, None], block] = self._in_stars(self.meet(_alone(events), words)).float()
        return scores

    def _predict_past(self, past: Stretches, row: Tensor, asked: Tensor) -> Tensor:
        """Scores of N pairs, history ``row`` (N,) and item ``asked`` (N,): (N,)."""
        scores = self.log_popularity[asked]  # (N,)
        known = (past.lengths[row] > 0).nonzero().squeeze(1)  # (M,)
        if not len(known):
            return scores
        cells = self.max_history * (1 + self.max_words)  # of a pair
        # Pairs of one history side by side, so that a block reads few histories.
        for pairs in known[row[known].argsort(stable=True)].split(max(1, _CELLS // cells)):
            mine, place = row[pairs].unique(return_inverse=True)  # (U,), (n,)
            events = self.events_side(past.of(mine))  # (U, T, d)
            events = Tokens(events.x[place], events.present[place])  # (n, T, d)
            found = self._meet_rows(events, asked[pairs, None])[:, 0]  # (n,)
            scores[pairs] = self._in_stars(found).float()
        return scores

    def _predict(self, users: Tensor, items: Tensor) -> Tensor:
        distinct, place = users.unique(return_inverse=True)  # (U,), (N,)
        return self._predict_past(self._of_users(distinct), place, items)

    def _told(
        self,
        histories: Sequence[Tensor | Sequence[int]],
        ratings: Sequence[Tensor | Sequence[float]] | None = None,
    ) -> tuple[Stretches, torch.device]:
        """Histories as they are read, and the device that they came from."""
        items, lengths = check_histories(histories, self.n_items, self.device)  # (E,), (B,)
        here = self.device
        if ratings is None:
            actions = self.usual_action.to(here).expand(len(items))  # (E,)
        else:
            if [len(row) for row in ratings] != lengths.tolist():
                raise ValueError("ratings must have one entry for each item of each history")
            said = [torch.as_tensor(row, dtype=torch.float32, device=here) for row in ratings]
            actions = self._actions_of(torch.cat(said))  # (E,)
        return Stretches(items.to(here), actions, lengths.cumsum(0).to(here), lengths.to(here)), items.device

    @torch.no_grad()
    @in_float32()
    def score_histories(
        self,
        histories: Sequence[Tensor | Sequence[int]],
        ratings: Sequence[Tensor | Sequence[float]] | None = None,
    ) -> Tensor:
        """Scores every item for users given by their histories, known to the model or not.

        Args:
            histories: B lists or tensors of item indices, each oldest first; may be empty. Only the most
                recent ``max_history`` events of each are read.
            ratings: B lists or tensors of what was done with each; the most frequent action without them.

        Returns:
            (B, n_items) float32 on the histories' device; for lists of numbers, on the model's.

        Raises:
            NotFittedError: before ``fit``.
            TypeError, ValueError, IndexError: histories that are no lists of known items, or ratings that do
                not match them.
        """
        self._check_fitted()
        told, device = self._told(histories, ratings)
        return self._score_past(told).to(device=device, dtype=torch.float32)

    def _predict_histories(
        self,
        histories: Sequence[Tensor | Sequence[int]],
        timestamps: Sequence[Tensor | Sequence[int]] | None,
        row: Tensor,
        items: Tensor,
    ) -> Tensor:
        return self._predict_past(self._told(histories)[0], row.to(self.device), items.to(self.device))


_MOST_ACTIONS = 16  # ratings of more values are told apart by sixteenths of the events


def _values(ratings: Tensor) -> Tensor:
    """The ratings that are told apart, ascending: all, or of many the middle of each sixteenth; (A,)."""
    values = ratings.unique()  # (A,)
    if len(values) <= _MOST_ACTIONS:
        return values
    shares = (torch.arange(_MOST_ACTIONS, device="cpu") + 0.5) / _MOST_ACTIONS  # (A,)
    ordered = ratings.sort()[0]  # (E,)
    return ordered[(shares * len(ordered)).long().to(ordered.device)].unique()


def _strictly_before(past: Interactions, targets: Interactions) -> Tensor:
    """How many of its user's past events came before each target, (E,) int64; those of its time did not."""
    n, m = len(targets), len(past)
    users, times = torch.cat([targets.users, past.users]), torch.cat([targets.timestamps, past.timestamps])
    is_past = torch.arange(n + m, device=users.device) >= n  # (E + P,)
    # A target stands before the past events of its own time, since these come second among equals.
    order = sort_by(users, times)  # (E + P,)
    count = is_past[order].cumsum(0)  # (E + P,) past events so far, of all users
    place = torch.empty_like(order).scatter_(0, order, count)  # (E + P,)
    return place[:n] - offsets(past.user_counts())[targets.users]  # (E,)


def _alone(events: Tokens) -> Tokens:
    """Events (B, T, d) with an axis for the items that they meet: (B, 1, T, d)."""
    return Tokens(events.x[:, None], events.present[:, None])


def masked_mean(x: Tensor, present: Tensor) -> Tensor:
    """The mean over tokens that are there: x (..., T, d), present (..., T) to (..., d); of none, zero."""
    weight = present.unsqueeze(-1).to(x.dtype)  # (..., T, 1)
    return (x * weight).sum(dim=-2) / weight.sum(dim=-2).clamp(min=1)  # (..., d)
