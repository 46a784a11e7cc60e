"""Ranking candidates by features of the user's moment and the item: a linear model, and a small network."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from recsys_lib.data import Interactions
from recsys_lib.data.ragged import distinct_events, offsets, row_of_each
from recsys_lib.devices import in_float32, seed_generator
from recsys_lib.losses import sampled_softmax_loss
from recsys_lib.models.core.checks import check_histories
from recsys_lib.models.core.histories import HistoryReader, recency_weights, times_of
from recsys_lib.models.core.lists import draw_lists
from recsys_lib.models.core.options import learned, option
from recsys_lib.models.core.pair_tables import (
    CANDIDATE_FEATURES,
    PAIR_SCALARS,
    Moments,
    PairTables,
    blocks,
    prefixes,
    retrieval_features,
)
from recsys_lib.models.core.trained import TrainedRecommender
from recsys_lib.models.core.windows import shuffle_ties, strictly_before
from recsys_lib.models.ease_before import EASEBefore
from recsys_lib.training import batches

__all__ = ["FeatureLists", "LinearListwise", "PairNetwork"]


@dataclass(frozen=True)
class FeatureLists:
    """What is learned from: moments, the item that came next, and what the retriever would have offered.

    Attributes:
        items: (N, C) int64, what the retriever offered, the target first, -1 where there are fewer.
        features: (N, C, F) float32.
        recent: (N, L) int64, newest first, -1 where there are fewer.
        withdrawn: (N, C) bool, items that the user chose later.
    """

    items: Tensor
    features: Tensor
    recent: Tensor
    withdrawn: Tensor


class PairRanker(TrainedRecommender[FeatureLists], HistoryReader):
    """A model of features of a user's moment and an item, beside the texts: a baseline for re-ranking.

    The features are those of ``pair_tables.CANDIDATE_FEATURES``: the score and rank that a retriever gives
    (EASE with recency), co-occurrence, popularity, popularity of late, time since the last event.

    **Training lists look like test lists.** An example is what the retriever would have offered before an
    event, ``n_candidates`` items, where the event's item is among them. The retriever is refitted without the
    user's events from the target on (``EASEBefore``, exactly), and these are taken out of co-occurrence and
    popularity as well; what is recent is what came before the moment. With ``leak=True`` none of this is
    done: features that know the answer, to see what that costs.

    **Scores.** What the retriever would not offer comes after all that it would, in its order: of such items
    the model has learned nothing. A user of whom nothing is known is scored by popularity alone.

    The loss is a softmax over the target and the others (``losses.sampled_softmax_loss``).
    """

    l2: float = option("of the retriever, EASE", default=400.0, above=0)
    recency: float = option(
        "of the retriever: the power law by which older events weigh less", default=0.5, at_least=0
    )
    n_candidates: int = option("that the retriever offers, the target among them", default=50, at_least=2)
    last: float | None = option(
        "the last events of a history that are targets, all as of the moment before the first of them: below "
        "1 a share, else a number; with None every event is one, as of its own moment",
        default=None,
        above=0,
    )
    n_history: int = option("most recent events that are held against each candidate", default=20, at_least=1)
    window_days: float = option("in which popularity counts as recent", default=30.0, above=0)
    max_examples: int | None = option("events learned from; all by default", default=None, at_least=1)
    leak: bool = option("learn from features that know the target, to see what it costs", default=False)
    epochs: int = option(default=10)
    learning_rate: float = option(default=0.02)
    batch_size: int = option(default=256)
    check_every: int = option(default=1)

    tables: PairTables = learned("counts")
    net: nn.Module = learned("from features to a score")
    item_weights: Tensor = learned("(n_items, n_items) float32, the retriever's B")
    center: Tensor = learned("(F,) float32, means of the features")
    size: Tensor = learned("(F,) float32, their standard deviations")
    now: Tensor = learned("() int64, the last moment of the training events")
    history_crow: Tensor = learned("(n_users + 1,) int64 offsets")
    history_items: Tensor = learned("(E,) int64, user after user, oldest first")
    history_times: Tensor = learned("(E,) int64")

    def build(self) -> None:
        """Makes a place for the counts, and the network."""
        for name in list(self._buffers):
            delattr(self, name)
        self.tables = PairTables()
        self.net = self.make()

    def make(self) -> nn.Module:
        """A module from features (B, C, F) and pair scalars (B, L, C, P) to scores (B, C)."""
        raise NotImplementedError

    # Learning.

    def prepare(self, events: Interactions, generator: torch.Generator) -> FeatureLists:
        """The lists that the retriever would have made, with their features."""
        order = self._keep_histories(events).cpu()  # (E,)
        device, events = events.items.device, events.to("cpu")
        before = strictly_before(events)  # (E,)
        told, before = self._targets(events, before)  # (E,), (E,)
        if not bool(told.any()):
            raise ValueError(
                f"no user has two events at different times, so there is no history from which "
                f"{type(self).__name__} could learn"
            )
        self.tables.cpu().fill(events, self.window_days)
        self._keep("now", events.timestamps.max())
        quick = EASEBefore(events, self.l2, self.recency)
        self._keep("item_weights", quick.item_weights().float().to(device))
        chosen = told.nonzero().squeeze(1)  # (N,)
        if self.max_examples is not None and self.max_examples < len(chosen):
            drawn = torch.randperm(len(chosen), generator=seed_generator(self.seed), device="cpu")
            chosen = chosen[drawn[: self.max_examples].sort()[0]]  # (N,)
        lists = [
            self._lists_of(events, order, quick, rows, before)
            for rows in chosen.split(events.users[chosen].unique_consecutive(return_counts=True)[1].tolist())
        ]
        examples = FeatureLists(*(torch.cat(parts) for parts in zip(*lists, strict=True)))
        kept = (examples.items[:, 0] >= 0) & (examples.items[:, 1:] >= 0).any(dim=1)  # (N,)
        examples = _map(examples, lambda x: x[kept].to(device))
        self.tables.to(device)
        present = examples.features[examples.items >= 0]  # (M, F)
        n_features = len(CANDIDATE_FEATURES)
        self._keep("center", present.mean(dim=0) if len(present) else torch.zeros(n_features, device=device))
        spread = present.std(dim=0, correction=0) if len(present) else torch.ones(n_features, device=device)
        self._keep("size", torch.where(spread > 1e-6, spread, 1.0))
        return examples

    def _targets(self, events: Interactions, before: Tensor) -> tuple[Tensor, Tensor]:
        """Which events are targets, (E,) bool, and how many events were before the moment of each."""
        if self.last is not None:
            counts = events.user_counts()  # (n_users,)
            n = (counts * self.last).ceil() if self.last < 1 else torch.full_like(counts, int(self.last))
            n = torch.minimum(n.long().clamp(min=1), counts)  # (n_users,)
            first = offsets(counts)  # (n_users + 1,)
            opens = before[(first[1:] - n)[events.users].clamp(min=0)]  # (E,) before the user's last n
            place = torch.arange(len(events), device="cpu") - first[events.users]  # (E,)
            return (opens > 0) & (place >= opens), opens
        return before > 0, before

    def _lists_of(
        self, events: Interactions, order: Tensor, quick: EASEBefore, rows: Tensor, before: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The fields of ``FeatureLists`` for some events (n,) of one user."""
        user, targets = int(events.users[rows[0]]), events.items[rows]  # (n,)
        start = quick.first[user]
        lengths, which = before[rows].unique(return_inverse=True)  # (T,), (n,)
        crow, place = prefixes(start.expand(len(lengths)), lengths)
        place = order[place]  # (E,)
        moments = self.tables.moments(
            crow, events.items[place], events.timestamps[place], self.n_history, self.now.cpu()
        )  # T of them
        own = quick.own[quick.crow[user] : quick.crow[user + 1]]  # (k,)
        if self.leak:
            past = distinct_events(
                row_of_each(crow), events.items[place], events.timestamps[place], len(lengths), self.n_items
            )
            scores = self._retrieved(past.crow, past.items, recency_weights(past, self.recency, None))
        else:
            moments.withdrawn[:, own] = ~moments.seen[:, own]
            scores = quick.scores(user, lengths)  # (T, I)
        open_scores = scores.masked_fill(moments.seen, -torch.inf)  # (T, I)
        best, offered = open_scores.topk(min(self.n_candidates, self.n_items), dim=1)  # (T, C)
        offered = offered.masked_fill(best == -torch.inf, -1)[which]  # (n, C)
        # A target that the retriever does not find is in no list that will be ranked. Put into one for
        # training it would stand below all others, and teach that low ranks are good.
        found = offered == targets[:, None]  # (n, C)
        first = (~found).long().argsort(dim=1, stable=True)  # (n, C) the target, then the others in order
        items = offered.gather(1, first)  # (n, C)
        items[:, 0] = items[:, 0].masked_fill(~found.any(dim=1), -1)
        # What the user chose later is no negative.
        chosen = torch.zeros(len(lengths), self.n_items, dtype=torch.bool, device="cpu")  # (T, I)
        chosen[:, own] = True
        later = chosen[which].gather(1, items.clamp(min=0))  # (n, C)
        items[:, 1:] = items[:, 1:].masked_fill(later[:, 1:], -1)
        items = functional.pad(items, (0, self.n_candidates - items.shape[1]), value=-1)  # (n, C)
        asked, mine = items.clamp(min=0), moments[which]
        parts = []
        for some in blocks(len(items), self.n_history * items.shape[1]):
            pairs = self.tables.pair_scalars(mine[some], asked[some])  # (b, L, C, P)
            retrieved = retrieval_features(scores[which[some]], mine.seen[some], asked[some])  # (b, C, 2)
            parts.append(self.tables.features(mine[some], asked[some], retrieved, pairs))
        return items, torch.cat(parts), mine.recent, mine.withdrawn.gather(1, asked)

    @property
    def n_drawn(self) -> int:
        """Others in an example, of those that there are."""
        return self.n_candidates - 1

    def losses(self, examples: FeatureLists, generator: torch.Generator) -> Iterator[tuple[Tensor, int]]:
        """One epoch over the examples, shuffled."""
        n_items = examples.items.shape[1]
        for batch in batches(len(examples.items), self.batch_size, generator):
            items, columns = (
                examples.items[batch],
                torch.arange(n_items, device=generator.device),
            )  # (B, C)
            if self.n_drawn < n_items - 1:
                places = columns[1:].expand(len(batch), -1).masked_fill(items[:, 1:] < 0, -1)  # (B, C - 1)
                drawn = draw_lists(places, torch.zeros_like(batch), self.n_drawn, generator)  # (B, K)
                columns = functional.pad(drawn, (1, 0), value=0)  # (B, 1 + K)
                there = columns >= 0  # (B, 1 + K)
                columns = columns.clamp(min=0)
            else:
                columns = columns.expand(len(batch), -1)  # (B, C)
                there = items >= 0  # (B, C)
            pairs = self._pairs_of(examples, batch, columns)  # (B, L, 1 + K, P)
            features = examples.features[batch[:, None], columns]  # (B, 1 + K, F)
            scores = self._out(features, pairs, examples.recent[batch] >= 0)  # (B, 1 + K)
            scores = scores.masked_fill(~there, -torch.inf)
            yield sampled_softmax_loss(scores[:, 0], scores[:, 1:]), len(batch)

    def _pairs_of(self, examples: FeatureLists, batch: Tensor, columns: Tensor) -> Tensor | None:
        """The pair scalars of a batch's columns, where the network reads them."""
        if not self.reads_pairs:
            return None
        items = examples.items[batch].gather(1, columns).clamp(min=0)  # (B, 1 + K)
        withdrawn = torch.zeros(len(batch), self.n_items, dtype=torch.bool, device=items.device)  # (B, I)
        withdrawn.scatter_(1, items, examples.withdrawn[batch].gather(1, columns))
        step = torch.zeros_like(batch)  # (B,) not read
        return self.tables.pair_scalars(Moments(examples.recent[batch], step, withdrawn, withdrawn), items)

    @property
    def reads_pairs(self) -> bool:
        """Whether the network reads pair scalars; else features alone."""
        return False

    def _out(self, features: Tensor, pairs: Tensor | None, present: Tensor) -> Tensor:
        """Scores (B, C) from features (B, C, F), pair scalars (B, L, C, P), and which are there, (B, L)."""
        dtype = next(self.net.parameters()).dtype
        features = ((features - self.center) / self.size).clamp(-10, 10).to(dtype)  # (B, C, F)
        return self.net(features, None if pairs is None else pairs.to(dtype), present).float()

    # Answering.

    def _retrieved(self, crow: Tensor, items: Tensor, weights: Tensor) -> Tensor:
        """The retriever's scores of weighted histories: (B, n_items) float32."""
        table = self.item_weights.to(items.device)
        return functional.embedding_bag(
            items, table, crow, mode="sum", per_sample_weights=weights, include_last_offset=True
        )

    def _of_histories(self, crow: Tensor, items: Tensor, times: Tensor) -> Tensor:
        """Scores (B, n_items) after histories, each oldest first."""
        everything = torch.arange(self.n_items, device=items.device)  # (I,)
        scores = torch.empty(len(crow) - 1, self.n_items, device=items.device)  # (B, I)
        for some in blocks(len(crow) - 1, self.n_history * self.n_items, items.device):
            lengths = crow.diff()[some]  # (b,)
            part_crow, place = prefixes(crow[some], lengths)
            part, when = items[place], times[place]  # (e,)
            past = distinct_events(row_of_each(part_crow), part, when, len(some), self.n_items)
            retrieved = self._retrieved(
                past.crow, past.items, recency_weights(past, self.recency, None)
            )  # (b, I)
            moments = self.tables.moments(part_crow, part, when, self.n_history, self.now)
            asked = everything.expand(len(some), -1)  # (b, I)
            pairs = self.tables.pair_scalars(moments, asked)  # (b, L, I, P)
            found = retrieval_features(retrieved, moments.seen, asked)  # (b, I, 2)
            features = self.tables.features(moments, asked, found, pairs)  # (b, I, F)
            out = self._out(features, pairs if self.reads_pairs else None, moments.recent >= 0)  # (b, I)
            # It has learned to order what the retriever offers. The rest stays behind, in its order.
            rank = -found[..., 1]  # (b, I) logarithms
            beyond = rank > math.log(self.n_candidates + 0.5)  # (b, I)
            least = out.masked_fill(beyond, torch.inf).amin(dim=1, keepdim=True)  # (b, 1)
            scores[some] = torch.where(beyond, least - rank, out)
        return scores

    def _score(self, users: Tensor) -> Tensor:
        lengths = self.history_crow.diff()[users]  # (B,)
        crow, place = prefixes(self.history_crow[users], lengths)
        return self._of_histories(crow, self.history_items[place], self.history_times[place])

    def _keep_histories(self, interactions: Interactions) -> Tensor:
        # On the CPU whatever the device is, so that the order of ties is the same on all.
        order = shuffle_ties(interactions, seed_generator(self.seed))  # (E,)
        self._keep("history_crow", offsets(interactions.user_counts()))
        self._keep("history_items", interactions.items[order])
        self._keep("history_times", interactions.timestamps[order])
        return order

    @torch.no_grad()
    @in_float32()
    def score_histories(
        self,
        histories: Sequence[Tensor | Sequence[int]],
        timestamps: Sequence[Tensor | Sequence[int]] | None = None,
    ) -> Tensor:
        """Scores every item for users given by their histories, known to the model or not.

        Args:
            histories: B lists or tensors of item indices, each oldest first; may be empty.
            timestamps: B lists or tensors of seconds, when the events happened. Without them the last one is
                at the last moment of the training events, and each is later than the one before it.

        Returns:
            (B, n_items) float32 on the histories' device; for lists of numbers, on the model's.

        Raises:
            NotFittedError: before ``fit``.
            TypeError, ValueError, IndexError: histories that are no lists of known items, or timestamps that
                do not match them.
        """
        self._check_fitted()
        items, lengths = check_histories(histories, self.n_items, self.device)  # (E,), (B,)
        crow, device = offsets(lengths), items.device  # (B + 1,)
        where = f"{type(self).__name__}.score_histories"
        times = times_of(items, lengths, timestamps, self.now, where)  # (E,)
        here = self.device
        scores = self._of_histories(crow.to(here), items.to(here), times.to(here))  # (B, n_items)
        return scores.to(device=device, dtype=torch.float32)


class LinearListwise(PairRanker):
    """A weight for each feature, learned by a softmax over whole lists.

        s(u, i) = w . features(u, i)

    Seven numbers: it learns what to add to the retriever's order, and from how little data.

    Source: Cao, Qin, Liu, Tsai, Li 2007, "Learning to Rank: From Pairwise Approach to Listwise Approach",
    section 4, with the target's probability alone.
    """

    def make(self) -> nn.Module:
        """The weights, from zero."""
        return _Linear(len(CANDIDATE_FEATURES))


class PairNetwork(PairRanker):
    """A small network over the newest items of the history, each held against the candidate.

    Of each history item and candidate it reads six numbers (``pair_tables.PAIR_SCALARS``). Four heads pool
    what it makes of them over the history, each with weights of its own, and a layer joins that with the
    features of the candidate. Its score is added to that of a linear model.
    """

    n_negatives: int = option(
        "other candidates in an example, drawn anew in each epoch", default=19, at_least=1
    )
    n_heads: int = option("ways of pooling a history", default=4, at_least=1)
    dim: int = option("features of a pair", default=32, at_least=1)
    epochs: int = option(default=3)
    learning_rate: float = option(default=0.005)

    def __post_init__(self) -> None:
        """Checks what concerns two options."""
        super().__post_init__()
        if self.dim % self.n_heads:
            raise ValueError(f"dim={self.dim} cannot be shared evenly among n_heads={self.n_heads}")

    def make(self) -> nn.Module:
        """The network."""
        return _Pooled(len(CANDIDATE_FEATURES), len(PAIR_SCALARS), self.dim, self.n_heads)

    @property
    def n_drawn(self) -> int:
        """As the option says."""
        return self.n_negatives

    @property
    def reads_pairs(self) -> bool:
        """It does."""
        return True


class _Linear(nn.Module):
    """A weight a feature; no constant, which no softmax over a list feels."""

    def __init__(self, n_features: int) -> None:
        super().__init__()
        self.weights = nn.Linear(n_features, 1, bias=False)
        nn.init.zeros_(self.weights.weight)

    def forward(self, features: Tensor, pairs: Tensor | None, present: Tensor) -> Tensor:
        """(B, C, F) to (B, C)."""
        return self.weights(features).squeeze(-1)


class _Pooled(nn.Module):
    """See ``PairNetwork``."""

    def __init__(self, n_features: int, n_scalars: int, dim: int, n_heads: int) -> None:
        super().__init__()
        self.n_heads = n_heads
        self.pair = nn.Sequential(nn.Linear(n_scalars, dim), nn.GELU(), nn.Linear(dim, dim), nn.GELU())
        self.weight, self.value = nn.Linear(dim, n_heads), nn.Linear(dim, dim)
        self.join = nn.Sequential(nn.Linear(dim + n_features, 2 * dim), nn.GELU(), nn.Linear(2 * dim, 1))
        self.linear = _Linear(n_features)

    def forward(self, features: Tensor, pairs: Tensor, present: Tensor) -> Tensor:
        """(B, C, F), (B, L, C, P), (B, L) to (B, C)."""
        x = self.pair(pairs)  # (B, L, C, d)
        # A history without items is pooled evenly over its padding, where all is alike.
        gone = ~present & present.any(dim=1, keepdim=True)  # (B, L)
        logits = self.weight(x).masked_fill(gone[:, :, None, None], -torch.inf)  # (B, L, C, H)
        values = self.value(x).unflatten(-1, (self.n_heads, -1))  # (B, L, C, H, d/H)
        pooled = (logits.softmax(dim=1).unsqueeze(-1) * values).sum(dim=1).flatten(-2)  # (B, C, d)
        joined = self.join(torch.cat([pooled, features], dim=-1)).squeeze(-1)  # (B, C)
        return joined + self.linear(features, None, present)


def _map(examples: FeatureLists, change: Callable[[Tensor], Tensor]) -> FeatureLists:
    return FeatureLists(*(change(getattr(examples, name)) for name in FeatureLists.__dataclass_fields__))
