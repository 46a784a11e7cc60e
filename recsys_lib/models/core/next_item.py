"""Transformers over a history: what SASRec and BERT4Rec share.

The two differ in who may look at whom, and in what they are asked. SASRec looks back only, and is asked at
every event for the next one. BERT4Rec looks both ways, and is asked for events that were hidden from it.
Everything else is the same code: the body, the windows of events, the batches, the loss. So a comparison of
the two compares this difference alone.

Shapes: B histories, T events in a row, N questions in a batch, K negatives for each, d features.
"""

import math
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

from recsys_lib.data import Interactions
from recsys_lib.data.ragged import offsets, take_rows
from recsys_lib.devices import in_float32
from recsys_lib.losses import bce_loss, gbce_loss, sampled_softmax_loss
from recsys_lib.models.core.checks import check_histories
from recsys_lib.models.core.histories import HistoryReader
from recsys_lib.models.core.options import learned, option
from recsys_lib.models.core.sequence_encoder import SequenceEncoder
from recsys_lib.models.core.trained import TrainedRecommender
from recsys_lib.models.core.windows import by_length, cut_windows, kept_histories, rows_of, shuffle_ties
from recsys_lib.negatives import other_items

__all__ = ["NextItemRecommender"]

# Each loss, with the number of negatives that its paper takes.
_LOSSES = {"softmax": 0, "sampled_softmax": 256, "bce": 1, "gbce": 256}

_STEPS = 16  # in an epoch, at least
_MANY = 128  # scores a question, from which on their vectors are not held all at once
_GATHERED = 2**18  # numbers in the vectors that are: 1 MB, what a processor's cache holds
_COMPARED = 2**17  # scores of a whole catalog that are held at once: 0.5 MB; on a GPU 2**9 times as many
_EVENTS_AT_ONCE = 2**13  # in a batch of scoring: enough to keep a processor busy, few enough for its cache


class NextItemRecommender(TrainedRecommender[Interactions], HistoryReader):
    """A transformer that reads a user's history in its order.

    The score of item i is the dot product of its vector, the one that also stands for it in histories, with
    what the transformer makes of the history. Everything it knows of a user is the history, so a user never
    seen in training is served as well as any (``score_histories``).

    **Losses.** ``"softmax"`` compares the true item with the whole catalog (``losses.softmax_loss``).
    ``"sampled_softmax"`` (``losses.sampled_softmax_loss``), ``"bce"`` (``losses.bce_loss``; with one
    negative, as in the first papers) and ``"gbce"`` (``losses.gbce_loss``) compare it with ``n_negatives``
    others, drawn uniformly from all items but the true one.

    **Windows.** A history of more than ``max_length`` + 1 events is cut into windows of that size, each
    beginning with the last event of the one before, so that every event but the first is the next one
    somewhere. Where the cuts fall is drawn anew in each epoch. A user with one event has no next one and
    takes no part.

    **Batches.** Windows of similar length share a batch, so that little is padded. ``batch_size`` counts
    events, padding included; a batch holds fewer where an epoch would otherwise have less than 16 steps.

    **Ties.** Events of a user at one time have no order: they get a new random one in each epoch, and in the
    histories that are kept for ``score`` one that is drawn once from ``seed``. In the order of their numbers
    the model would learn the numbering as if it were a habit of users.

    **Scoring.** The most recent ``max_length`` events of a history are read. A user without events gets the
    logarithm of each item's share of the training events, one added to each count. Items without training
    events are allowed in histories, but nothing was learned about them.

    **Time and memory.** Full softmax compares every event with every item. With 20,000 items an epoch of a
    million events takes two and a half minutes on one core of a CPU, against one with 256 negatives
    (``"gbce"``, ``"sampled_softmax"``) and a half of one with ``"bce"``: from some thousands of items on,
    sample. In training full softmax holds scores of a block of questions at a time, 64 of them or 0.5 MB on a
    CPU and 256 MB on a GPU, and three matrices of the size of the items' vectors; K negatives take a few of
    ``batch_size`` x K. Scoring B users holds (B, n_items).
    """

    causal: ClassVar[bool]

    dim: int = option("features of an event and an item", default=64, at_least=1)
    n_layers: int = option("transformer blocks", default=2, at_least=1)
    n_heads: int = option("attention heads in each block", default=2, at_least=1)
    max_length: int = option("events of a history that are read", default=100, at_least=1)
    loss: str = option(
        "what the true item is held against, see above", default="softmax", choices=tuple(_LOSSES)
    )
    n_negatives: int | None = option(
        "negatives for each question; with None 1 for bce, else 256 or all others", default=None, at_least=1
    )
    calibration: float = option("t of ``losses.gbce_loss``", default=0.75, at_least=0, at_most=1)
    dropout: float = option(
        "share dropped in training, see ``SequenceEncoder``", default=0.2, at_least=0, below=1
    )
    positions: bool = option("False leaves positions out", default=True)
    epochs: int = option(default=40)
    patience: int = option(default=8)
    check_every: int = option(default=2)

    encoder: SequenceEncoder = learned("the transformer")
    history_crow: Tensor = learned("(n_users + 1,) int64 offsets")
    history_items: Tensor = learned("(E,) int64, user after user, oldest first")
    log_popularity: Tensor = learned("(n_items,) float32")

    def __post_init__(self) -> None:
        """Checks what concerns two options."""
        super().__post_init__()
        if self.dim % self.n_heads:
            raise ValueError(f"dim={self.dim} cannot be shared evenly among n_heads={self.n_heads}")

    # What the models differ in, beside `causal`.

    @abstractmethod
    def questions(
        self, windows: Tensor, lengths: Tensor, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """What a batch of windows asks.

        Args:
            windows: (B, T) int64 items, oldest first, padded at the end.
            lengths: (B,) int64, two or more.
            generator: of random choices, on the windows' device.

        Returns:
            hidden (N, d), what the transformer has to say at each question; targets (N,) int64, the true
            items.
        """

    @abstractmethod
    def prompt(self, items: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Turns histories (B, T), (B,) into rows whose last event answers "what comes next?"."""

    # Learning.

    def build(self) -> None:
        """Makes the transformer."""
        # The mask of BERT4Rec is a token, and takes a place at the end of a row.
        n_extra = 0 if self.causal else 1
        self.encoder = SequenceEncoder(
            self.n_items + n_extra,
            self.dim,
            self.n_layers,
            self.n_heads,
            self.max_length + n_extra,
            dropout=self.dropout,
            positions=self.positions,
            causal=self.causal,
            quick_dropout=True,
        )

    def prepare(self, events: Interactions, generator: torch.Generator) -> Interactions:
        """Refuses data with nothing to learn from, and keeps the histories; the examples are the events."""
        if self.loss != "softmax" and self.n_items == 1:
            raise ValueError(
                f'loss="{self.loss}" needs other items as negatives, but there is one item; use "softmax"'
            )
        if self.loss == "gbce" and (self.n_negatives or 0) > self.n_items - 1:
            raise ValueError(
                f'loss="gbce" takes at most as many negatives as there are other items, {self.n_items - 1}; '
                f"got n_negatives={self.n_negatives}"
            )
        if not bool((events.user_counts() > 1).any()):
            raise ValueError(
                f"no user has two events, so there is no next item for {type(self).__name__} to learn from"
            )
        self._keep_histories(events)
        popularity = torch.bincount(events.items, minlength=self.n_items) + 1.0  # (n_items,)
        self._keep("log_popularity", (popularity / popularity.sum()).log())
        return events

    def losses(self, examples: Interactions, generator: torch.Generator) -> Iterator[tuple[Tensor, int]]:
        """One epoch over the windows, cut and shuffled anew."""
        for windows, lengths in self._batches(examples, generator):
            hidden, targets = self.questions(windows, lengths, generator)  # (N, d), (N,)
            yield self.objective(hidden, targets, generator), len(targets)

    def objective(self, hidden: Tensor, targets: Tensor, generator: torch.Generator) -> Tensor:
        """The loss of N questions: hidden (N, d), targets (N,) -> ()."""
        vectors = self.encoder.item_embedding.weight[: self.n_items]  # (n_items, d)
        if self.loss == "softmax":
            return catalog_softmax(hidden, vectors, targets)  # softmax_loss(hidden @ vectors.mT, targets)

        k = min(_LOSSES[self.loss], self.n_items - 1) if self.n_negatives is None else self.n_negatives
        negatives = other_items(targets, k, self.n_items, generator)  # (N, K)
        positive, negative = _scores_of(hidden, vectors, targets, negatives)  # (N,), (N, K)
        if self.loss == "sampled_softmax":
            log_q = torch.full_like(negative, -math.log(self.n_items - 1))  # (N, K)
            return sampled_softmax_loss(positive, negative, log_q_negative=log_q)
        # Among K negatives a positive is rare: an item of no particular merit has odds of 1 to K, so that
        # is what a score of zero says here. Where zero means even odds, the vectors of all items first drift
        # far in one common direction, and with hundreds of negatives training stalls there.
        positive, negative = positive - math.log(k), negative - math.log(k)
        if self.loss == "gbce":
            return gbce_loss(positive, negative, self.n_items, self.calibration)
        return bce_loss(positive, negative)

    def _batches(self, events: Interactions, generator: torch.Generator) -> Iterator[tuple[Tensor, Tensor]]:
        """One epoch: windows (B, T) of items, padded at the end, and their lengths (B,)."""
        items = events.items[shuffle_ties(events, generator)]  # (E,)
        starts, lengths = cut_windows(events, self.max_length, generator)  # (M,), (M,)
        shuffled = torch.randperm(len(starts), generator=generator, device=items.device)  # (M,)
        starts, lengths = starts[shuffled], lengths[shuffled]
        # Small data: smaller batches, rather than an epoch of one step that learns next to nothing.
        budget = min(self.batch_size, -(-int(lengths.sum()) // _STEPS))
        batches = by_length(lengths, budget)
        for batch in torch.randperm(len(batches), generator=generator, device=items.device).tolist():
            rows = batches[batch]  # (B,)
            yield rows_of(items, starts[rows], lengths[rows]), lengths[rows]

    # Scoring.

    def _keep_histories(self, interactions: Interactions) -> None:
        crow, items = kept_histories(interactions, self.seed)  # (n_users + 1,), (E,)
        self._keep("history_crow", crow)
        self._keep("history_items", items)

    @torch.no_grad()
    @in_float32()
    def score_histories(self, histories: Sequence[Tensor | Sequence[int]]) -> Tensor:
        """Scores every item for users given by their histories, known to the model or not.

        Args:
            histories: B lists or tensors of item indices, each oldest first; may be empty. Only the most
                recent ``max_length`` events of each are read.

        Returns:
            (B, n_items) float32 on the histories' device; for lists of numbers, on the model's.

        Raises:
            NotFittedError: before ``fit``.
            TypeError: not a list of item indices each.
            ValueError: no history at all, or one that is not one-dimensional.
            IndexError: an item that the model does not know; the message names it.
        """
        self._check_fitted()
        items, lengths = check_histories(histories, self.n_items, self.device)  # (E,), (B,)
        scores = self._score_sequences(items.to(self.device), lengths.to(self.device))  # (B, n_items)
        return scores.to(device=items.device, dtype=torch.float32)

    @torch.no_grad()
    def attention(self, history: Tensor | Sequence[int]) -> Tensor:
        """What the model looks at when it reads a history, and last of all when it recommends.

        Args:
            history: (L,) item indices, oldest first; at least one.

        Returns:
            (n_layers, n_heads, T, T) float32 on the history's device: how much each of the T events read
            looks at each other; rows sum to one. The last row, ``[:, :, -1]``, is the one from which the next
            item is predicted. T is L, at most ``max_length``; with BERT4Rec one more, the mask at the end.

        Raises:
            ValueError: an empty history.
            NotFittedError, TypeError, IndexError: as ``score_histories``.
        """
        self._check_fitted()
        items, lengths = check_histories([history], self.n_items, self.device)  # (L,), (1,)
        if not len(items):
            raise ValueError("an empty history has no events to look at")
        recent = items[-self.max_length :].to(self.device)[None]  # (1, T)
        rows, lengths = self.prompt(recent, lengths.to(self.device).clamp(max=self.max_length))
        was_training = self.training
        weights = self.eval().encoder.weights(rows, lengths)[:, 0]  # (n_layers, n_heads, T, T)
        self.train(was_training)
        return weights.to(items.device)

    def _score(self, users: Tensor) -> Tensor:
        place, _ = take_rows(self.history_crow, users)  # (E,)
        return self._score_sequences(self.history_items[place], self.history_crow.diff()[users])

    def _score_sequences(self, items: Tensor, lengths: Tensor) -> Tensor:
        """Scores histories that stand one after another: items (E,), lengths (B,) -> (B, n_items)."""
        read = lengths.clamp(max=self.max_length)  # (B,)
        starts = lengths.cumsum(0) - read  # (B,)
        vectors = self.encoder.item_embedding.weight[: self.n_items]  # (n_items, d)
        scores = self.log_popularity.repeat(len(lengths), 1)  # (B, n_items)
        known = read.nonzero().squeeze(1)  # the histories that are not empty
        for batch in by_length(read[known], _EVENTS_AT_ONCE):
            chosen = known[batch]  # (b,)
            rows = rows_of(items, starts[chosen], read[chosen])  # (b, T)
            rows, ends = self.prompt(rows, read[chosen])
            is_last = torch.arange(rows.shape[1], device=ends.device) == ends[:, None] - 1  # (b, T)
            last = self.encoder(rows, ends, asked=is_last)  # (b, d)
            scores[chosen] = (last @ vectors.mT).to(scores.dtype)  # (b, n_items)
        return scores


def _questions_at_once(vectors: Tensor) -> int:
    """How many questions are compared with the whole catalog at a time: few on a CPU, for its cache."""
    return max(64, (_COMPARED if vectors.device.type == "cpu" else _COMPARED * 2**9) // len(vectors))


def catalog_softmax(hidden: Tensor, vectors: Tensor, targets: Tensor) -> Tensor:
    """``losses.softmax_loss(hidden @ vectors.mT, targets)``, without ever holding all scores: ().

    Args:
        hidden: (N, d).
        vectors: (n_items, d).
        targets: (N,) int64.
    """
    loss: Tensor = _CatalogSoftmax.apply(hidden, vectors, targets)
    return loss


class _CatalogSoftmax(torch.autograd.Function):
    """Full softmax, block by block of questions, with its gradients in the same pass.

    With p_n the softmax of question n's scores and e_n the vector that is one at its target:

        dL/dh_n = sum_i (p_n - e_n)_i v_i / N;   dL/dv_i = sum_n (p_n - e_n)_i h_n / N

    A block of scores stays in the processor's cache, and nothing of size (N, n_items) is kept for the way
    back.
    """

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, vectors: Tensor, targets: Tensor) -> Tensor:
        """Takes hidden (N, d), vectors (n_items, d), targets (N,) int64; gives ()."""
        wide = torch.promote_types(hidden.dtype, torch.float32)
        h, v = hidden.to(wide), vectors.to(wide)  # (N, d), (n_items, d)
        total, to_hidden, to_vectors = h.new_zeros(()), torch.empty_like(h), torch.zeros_like(v)
        step = _questions_at_once(v)
        room = h.new_empty(2, min(step, len(h)), len(v))  # taken once, not anew for each block
        for rows, asked, grad in zip(h.split(step), targets.split(step), to_hidden.split(step), strict=True):
            scores, slope = room[:, : len(rows)]  # (b, n_items) each
            torch.mm(rows, v.mT, out=scores)
            torch.softmax(scores, dim=1, out=slope)
            # -log p of the true item, by the largest score and its share p: that is never below 1 / n_items,
            # and a second pass of exponentials is saved.
            behind = scores.amax(dim=1) - scores.gather(1, asked[:, None]).squeeze(1)  # (b,)
            total += (behind - slope.amax(dim=1).log()).sum()
            slope[torch.arange(len(asked), device=asked.device), asked] -= 1
            torch.mm(slope, v, out=grad)  # (b, d)
            to_vectors.addmm_(slope.mT, rows)  # (n_items, d)
        ctx.save_for_backward((to_hidden / len(h)).to(hidden.dtype), (to_vectors / len(h)).to(vectors.dtype))
        return total / len(h)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        """Takes (); gives (N, d), (n_items, d)."""
        to_hidden, to_vectors = ctx.saved_tensors
        return grad * to_hidden, grad * to_vectors, None


def _scores_of(hidden: Tensor, vectors: Tensor, targets: Tensor, negatives: Tensor) -> tuple[Tensor, Tensor]:
    """Scores of the targets, (N,), and of the negatives, (N, K).

    Where the negatives are many for the catalog, it is cheaper to score the catalog and pick than to gather
    vectors.

    Args:
        hidden: (N, d).
        vectors: (n_items, d).
        targets: (N,) int64.
        negatives: (N, K) int64.
    """
    items = torch.cat([targets[:, None], negatives], dim=1)  # (N, 1 + K)
    if 16 * items.shape[1] >= len(vectors):
        scores = _PickedScores.apply(hidden, vectors, items)  # (N, 1 + K)
    elif items.shape[1] < _MANY:
        scores = (functional.embedding(items, vectors) @ hidden[:, :, None]).squeeze(2)  # (N, 1 + K)
    else:
        scores = _ManyScores.apply(hidden, vectors, items)  # (N, 1 + K)
    return scores[:, 0], scores[:, 1:]


class _PickedScores(torch.autograd.Function):
    """``(hidden @ vectors.mT).gather(1, items)``, block by block of questions; (N, n_items) is never held."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, vectors: Tensor, items: Tensor) -> Tensor:
        """Takes hidden (N, d), vectors (n_items, d), items (N, C) int64; gives (N, C)."""
        ctx.save_for_backward(hidden, vectors, items)
        step = _questions_at_once(vectors)
        blocks = zip(hidden.split(step), items.split(step), strict=True)  # (b, d), (b, C)
        return torch.cat([(rows @ vectors.mT).gather(1, picked) for rows, picked in blocks])  # (N, C)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        """Takes (N, C); gives (N, d), (n_items, d)."""
        hidden, vectors, items = ctx.saved_tensors
        step = _questions_at_once(vectors)
        to_hidden, to_vectors = torch.empty_like(hidden), torch.zeros_like(vectors)
        blocks = zip(*(x.split(step) for x in (hidden, items, grad, to_hidden)), strict=True)
        for rows, picked, slope, out in blocks:  # (b, d), (b, C), (b, C), (b, d)
            spread = slope.new_zeros(len(rows), len(vectors)).scatter_add_(1, picked, slope)  # (b, n_items)
            torch.mm(spread, vectors, out=out)
            to_vectors.addmm_(spread.mT, rows)
        return to_hidden, to_vectors, None


class _ManyScores(torch.autograd.Function):
    """Scores of many items a row, (N, C), without ever holding their vectors (N, C, d).

    With s_nc = h_n . v_(items_nc) and the gradients g_nc of the scores, both gradients are weighted sums of
    rows, of which ``embedding_bag`` never holds the terms:

        dL/dh_n = sum_c g_nc v_(items_nc);   dL/dv_i = sum of g_nc h_n over all (n, c) with items_nc = i
    """

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, vectors: Tensor, items: Tensor) -> Tensor:
        """Takes hidden (N, d), vectors (n_items, d), items (N, C) int64; gives (N, C)."""
        ctx.save_for_backward(hidden, vectors, items)
        step = max(1, _GATHERED // (items.shape[1] * hidden.shape[1]))
        blocks = zip(hidden.split(step), items.split(step), strict=True)  # (b, d), (b, C)
        scores = [functional.embedding(i, vectors).mul_(h[:, None]).sum(dim=2) for h, i in blocks]
        return torch.cat(scores)  # (N, C)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        """Takes (N, C); gives (N, d), (n_items, d)."""
        hidden, vectors, items = ctx.saved_tensors
        grad = grad.contiguous()  # (N, C)
        to_hidden = functional.embedding_bag(items, vectors, per_sample_weights=grad, mode="sum")  # (N, d)
        order = items.flatten().argsort(stable=True)  # (N C,) all that is asked of one item, item by item
        crow = offsets(torch.bincount(items.flatten(), minlength=len(vectors)))  # (n_items + 1,)
        row = order.div(items.shape[1], rounding_mode="floor")  # (N C,)
        to_vectors = functional.embedding_bag(
            row,
            hidden,
            crow,
            per_sample_weights=grad.flatten()[order],
            mode="sum",
            include_last_offset=True,
        )  # (n_items, d)
        return to_hidden, to_vectors, None
