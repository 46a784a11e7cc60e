"""The next item from the order of the last ones: SASRec and BERT4Rec on one transformer.

The two differ in who may look at whom, and in what they are asked. SASRec looks back only, and is asked at
every event for the next one. BERT4Rec looks both ways, and is asked for events that were hidden from it.
Everything else is the same code: the body, the windows of events, the batches, the loss. So a comparison of
the two compares this difference alone.

Shapes: B histories, T events in a row, N questions in a batch, K negatives for each, d features.
"""

import math
from abc import abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from typing import ClassVar, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from recsys_lib.attention import EncoderBlock, padding_mask, present_tokens
from recsys_lib.data import Interactions
from recsys_lib.devices import seed_generator
from recsys_lib.losses import bce_loss, gbce_loss, sampled_softmax_loss, softmax_loss
from recsys_lib.models.base import HistoryReader, check_histories, ragged
from recsys_lib.progress import progress_bar
from recsys_lib.training import EarlyStopping

__all__ = ["BERT4Rec", "SASRec", "SequenceEncoder", "SequentialRecommender"]

# Each loss, with the number of negatives that its paper takes.
_LOSSES = {"softmax": 0, "sampled_softmax": 256, "bce": 1, "gbce": 256}
_TIES = ("random", "item")

_STEPS = 16  # in an epoch, at least
_EVENTS_AT_ONCE = 2**13  # in a batch of scoring: enough to keep a processor busy, few enough for its cache


# --- the body ----------------------------------------------------------------------------------------------


class SequenceEncoder(nn.Module):
    """Items in their order to one vector an event: the body of both models.

        x_t = dropout(sqrt(d) (E[item_t] + P[number of events after t]))
        h   = LayerNorm(block_L(... block_1(x)))

    Positions are counted from the end. The most recent event has place 0 in a history of 5 events and in one
    of 100, and with whatever else is in the batch. Padding stands at the end of a row: a causal event never
    sees it, so that no mask is needed; for the other kind it is masked.

    Args:
        n_tokens: items, and whatever else has a vector.
        dim: d, features of an event.
        n_layers: L, number of blocks (``attention.EncoderBlock``, normalized before the sublayers).
        n_heads: attention heads in each block.
        max_length: the longest row.
        dropout: share dropped in training: of the embeddings and of each sublayer's output.
        positions: whether events have positions at all.
        causal: whether an event sees only itself and what came before it.

    Vectors of items and positions start from a normal distribution of standard deviation 0.02; linear maps as
    Glorot and Bengio 2010 propose, since 0.02 suits a width of 768 and leaves attention at this one nearly
    uniform for long.
    """

    def __init__(
        self,
        n_tokens: int,
        dim: int,
        n_layers: int,
        n_heads: int,
        max_length: int,
        *,
        dropout: float = 0.0,
        positions: bool = True,
        causal: bool = True,
    ) -> None:
        super().__init__()
        self.causal = causal
        self.item_embedding = nn.Embedding(n_tokens, dim)
        self.position_embedding: nn.Embedding | None = nn.Embedding(max_length, dim) if positions else None
        # Dropped attention weights gain nothing here, and cost the fused kernel.
        self.blocks = nn.ModuleList(
            EncoderBlock(dim, n_heads, dropout=dropout, attention_dropout=0.0) for _ in range(n_layers)
        )
        self.norm = nn.LayerNorm(dim)
        self.dropout = nn.Dropout(dropout)
        for module in self.modules():
            if isinstance(module, nn.Embedding):
                nn.init.normal_(module.weight, std=0.02)
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)

    def forward(self, items: Tensor, lengths: Tensor) -> Tensor:
        """Encodes a batch of rows.

        Args:
            items: (B, T) int64, oldest first; padding, any valid number, at the end of a row.
            lengths: (B,) int64, how many events each row has.

        Returns:
            (B, T, d); what stands at padding means nothing.
        """
        x, mask = self._embed(items, lengths)
        for block in self.blocks:
            x = block(x, mask, self.causal)  # (B, T, d)
        return self.norm(x)  # (B, T, d)

    def weights(self, items: Tensor, lengths: Tensor) -> Tensor:
        """Who looks at whom, (L, B, H, T, T), for the same arguments as :meth:`forward`."""
        x, mask = self._embed(items, lengths)
        weights = []
        for block in cast(Iterable[EncoderBlock], self.blocks):
            weights.append(block.weights(x, mask, self.causal))  # (B, H, T, T)
            x = block(x, mask, self.causal)  # (B, T, d)
        return torch.stack(weights)  # (L, B, H, T, T)

    def _embed(self, items: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor | None]:
        """What goes into the first block, (B, T, d), and the mask of padding where one is needed."""
        length = items.shape[1]
        x = self.item_embedding(items)  # (B, T, d)
        if self.position_embedding is not None:
            place = torch.arange(length, device=items.device)  # (T,)
            later = (lengths[:, None] - 1 - place).clamp(min=0)  # (B, T)
            x = x + self.position_embedding(later)  # (B, T, d)
        mask = None if self.causal else padding_mask(present_tokens(lengths, length))  # (B, 1, 1, T)
        return self.dropout(x * math.sqrt(x.shape[-1])), mask


# --- what both models do -----------------------------------------------------------------------------------


class SequentialRecommender(HistoryReader):
    """A model that reads a user's history in its order; what SASRec and BERT4Rec share.

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

    **Padding.** Windows of similar length share a batch, so that little is padded.

    **Ties.** Events of a user at one time have no order. With ``ties="random"`` they get a new random one in
    each epoch; in the histories that are kept for ``score`` they get one, drawn once from ``seed``. In the
    order of their numbers, ``ties="item"``, the model would learn the numbering as if it were a habit of
    users, which helps with nothing that happens at another time; it is here to show that.

    **Scoring.** The most recent ``max_length`` events of a history are read. A user without events gets the
    logarithm of each item's share of the training events, one added to each count. Items without training
    events are allowed in histories, but nothing was learned about them.

    **Stopping.** With a validation set, training stops when NDCG@10 on it has not grown for ``patience``
    checks, and the best state is restored. ``best_epoch`` says when that was: the number of ``epochs`` for a
    refit on all data.

    **Memory.** Full softmax holds about three matrices of ``batch_size`` x n_items float32 in training: 40 MB
    for 1,700 items and 0.7 GB for 27,000, with the default batch. Where that is too much, make ``batch_size``
    smaller or sample: K negatives take ``batch_size`` x K x ``dim`` instead. Scoring B users holds
    (B, n_items).

    Args:
        dim: features of an event and an item.
        n_layers: transformer blocks.
        n_heads: attention heads in each block.
        max_length: events of a history that are read.
        loss: see above.
        n_negatives: negatives for each question; 1 with ``"bce"`` and 256 (or all others) with ``"gbce"`` and
            ``"sampled_softmax"`` when not given; without meaning for ``"softmax"``.
        calibration: t of ``losses.gbce_loss``; without meaning for other losses.
        dropout: see ``SequenceEncoder``.
        positions: False leaves positions out.
        ties: ``"random"`` or ``"item"``; see above.
        epochs: passes over the events, at most.
        learning_rate: of Adam.
        batch_size: events in a step, padding included; fewer where an epoch would otherwise have less than 16
            steps.
        patience: checks without improvement before training stops; used with a validation set.
        check_every: epochs between checks.
        seed: of everything random.
        device: ``"auto"``, or the name of a device.

    Attributes:
        history: one dictionary an epoch: epoch, loss (the mean over questions), and at each check NDCG@10.
        best_epoch: the epoch whose state was kept.
    """

    causal: ClassVar[bool]

    encoder: SequenceEncoder
    history_crow: Tensor  # (n_users + 1,) int64
    history_items: Tensor  # (E,) int64, user after user, oldest first
    log_popularity: Tensor  # (n_items,) float32

    def __init__(
        self,
        dim: int = 64,
        n_layers: int = 2,
        n_heads: int = 2,
        max_length: int = 100,
        loss: str = "softmax",
        n_negatives: int | None = None,
        calibration: float = 0.75,
        dropout: float = 0.2,
        positions: bool = True,
        ties: str = "random",
        epochs: int = 40,
        learning_rate: float = 0.001,
        batch_size: int = 2048,
        patience: int = 8,
        check_every: int = 2,
        seed: int = 0,
        device: str = "auto",
    ) -> None:
        super().__init__()
        whole = {
            "dim": dim, "n_layers": n_layers, "n_heads": n_heads, "max_length": max_length, "epochs": epochs,
            "batch_size": batch_size, "patience": patience, "check_every": check_every,
            "n_negatives": 1 if n_negatives is None else n_negatives,
        }  # fmt: skip
        for name, number in whole.items():
            if number < 1:
                raise ValueError(f"{name} must be 1 or more, got {number}")
        if dim % n_heads:
            raise ValueError(f"dim={dim} cannot be shared evenly among n_heads={n_heads}")
        if loss not in _LOSSES:
            raise ValueError(f"loss must be one of {', '.join(_LOSSES)}, got {loss!r}")
        if ties not in _TIES:
            raise ValueError(f"ties must be one of {', '.join(_TIES)}, got {ties!r}")
        if not 0 <= calibration <= 1:
            raise ValueError(f"calibration must lie between 0 and 1, got {calibration}")
        if not 0 <= dropout < 1:
            raise ValueError(f"dropout must be 0 or more and below 1, got {dropout}")
        if not learning_rate > 0:
            raise ValueError(f"learning_rate must be above zero, got {learning_rate}")
        self.dim, self.n_layers, self.n_heads, self.max_length = dim, n_layers, n_heads, max_length
        self.loss, self.n_negatives, self.calibration = loss, n_negatives, calibration
        self.dropout, self.positions, self.ties = dropout, positions, ties
        self.epochs, self.learning_rate, self.batch_size = epochs, learning_rate, batch_size
        self.patience, self.check_every, self.seed = patience, check_every, seed
        self.history: list[dict[str, float]] = []
        self.best_epoch = 0

    # What SASRec and BERT4Rec differ in, beside `causal`.

    @abstractmethod
    def _questions(
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
    def _prompt(self, items: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
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
        )

    def _fit(self, interactions: Interactions, validation: Interactions | None, progress: bool) -> None:
        if self.loss != "softmax" and self.n_items == 1:
            raise ValueError(
                f'loss="{self.loss}" needs other items as negatives, but there is one item; use "softmax"'
            )
        if self.loss == "gbce" and (self.n_negatives or 0) > self.n_items - 1:
            raise ValueError(
                f'loss="gbce" takes at most as many negatives as there are other items, {self.n_items - 1}; '
                f"got n_negatives={self.n_negatives}"
            )
        if not bool((interactions.user_counts() > 1).any()):
            raise ValueError(
                f"no user has two events, so there is no next item for {type(self).__name__} to learn from"
            )
        device = self._training_device(interactions)
        events = interactions.to(device)
        self.build()
        self.to(device)
        self._keep_histories(events)
        popularity = torch.bincount(events.items, minlength=self.n_items) + 1.0  # (n_items,)
        self._keep("log_popularity", (popularity / popularity.sum()).log())
        self._train(events, validation, progress)

    def _keep_histories(self, events: Interactions) -> None:
        """Keeps the histories that ``score`` reads."""
        counts = events.user_counts()  # (n_users,)
        # On the CPU whatever the device is, so that the order of ties is the same on all.
        order = _order(events, self.ties, seed_generator(self.seed))  # (E,)
        self._keep("history_crow", torch.cat([counts.new_zeros(1), counts.cumsum(0)]))
        self._keep("history_items", events.items[order])

    def _train(self, events: Interactions, validation: Interactions | None, progress: bool) -> None:
        device = events.items.device
        generator = seed_generator(self.seed, device)
        optimizer = torch.optim.Adam(self.parameters(), lr=self.learning_rate, fused=device.type != "mps")
        stopping = EarlyStopping(self.patience)
        self.history, self.best_epoch = [], self.epochs
        for epoch in progress_bar(range(1, self.epochs + 1), type(self).__name__, enabled=progress):
            total, n_questions = torch.zeros((), device=device), 0
            for windows, lengths in self._batches(events, generator):
                optimizer.zero_grad(set_to_none=True)
                hidden, targets = self._questions(windows, lengths, generator)  # (N, d), (N,)
                loss = self._loss(hidden, targets, generator)
                loss.backward()
                optimizer.step()
                total += loss.detach() * len(targets)
                n_questions += len(targets)
            entry = {"epoch": float(epoch), "loss": float(total) / n_questions}
            if not math.isfinite(entry["loss"]):
                raise FloatingPointError(
                    f"the loss is {entry['loss']} in epoch {epoch}: training has diverged; "
                    f"lower learning_rate={self.learning_rate}"
                )
            self.history.append(entry)
            if validation is not None and (epoch % self.check_every == 0 or epoch == self.epochs):
                entry["ndcg@10"] = self.validation_ndcg(validation, events)
                if stopping.step(entry["ndcg@10"], epoch, self):
                    break
        if validation is not None:
            stopping.restore(self)
            self.best_epoch = stopping.best_step

    def _batches(self, events: Interactions, generator: torch.Generator) -> Iterator[tuple[Tensor, Tensor]]:
        """One epoch: windows (B, T) of items, padded at the end, and their lengths (B,)."""
        items = events.items[_order(events, self.ties, generator)]  # (E,)
        starts, lengths = _windows(events, self.max_length, generator)  # (M,), (M,)
        shuffled = torch.randperm(len(starts), generator=generator, device=items.device)  # (M,)
        starts, lengths = starts[shuffled], lengths[shuffled]
        # Small data: smaller batches, rather than an epoch of one step that learns next to nothing.
        budget = min(self.batch_size, -(-int(lengths.sum()) // _STEPS))
        batches = _by_length(lengths, budget)
        for batch in torch.randperm(len(batches), generator=generator, device=items.device).tolist():
            rows = batches[batch]  # (B,)
            yield _rows(items, starts[rows], lengths[rows]), lengths[rows]

    def _loss(self, hidden: Tensor, targets: Tensor, generator: torch.Generator) -> Tensor:
        """The loss of N questions: hidden (N, d), targets (N,) -> ()."""
        vectors = self.encoder.item_embedding.weight[: self.n_items]  # (n_items, d)
        if self.loss == "softmax":
            return softmax_loss(hidden @ vectors.mT, targets)

        k = min(_LOSSES[self.loss], self.n_items - 1) if self.n_negatives is None else self.n_negatives
        negatives = _others(targets, k, self.n_items, generator)  # (N, K)
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

    # Scoring.

    @torch.no_grad()
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
        rows, lengths = self._prompt(recent, lengths.to(self.device).clamp(max=self.max_length))
        was_training = self.training
        weights = self.eval().encoder.weights(rows, lengths)[:, 0]  # (n_layers, n_heads, T, T)
        self.train(was_training)
        return weights.to(items.device)

    def _score(self, users: Tensor) -> Tensor:
        place, _ = ragged(self.history_crow, users)  # (E,)
        return self._score_sequences(self.history_items[place], self.history_crow.diff()[users])

    def _score_sequences(self, items: Tensor, lengths: Tensor) -> Tensor:
        """Scores histories that stand one after another: items (E,), lengths (B,) -> (B, n_items)."""
        read = lengths.clamp(max=self.max_length)  # (B,)
        starts = lengths.cumsum(0) - read  # (B,)
        vectors = self.encoder.item_embedding.weight[: self.n_items]  # (n_items, d)
        scores = self.log_popularity.repeat(len(lengths), 1)  # (B, n_items)
        known = read.nonzero().squeeze(1)  # the histories that are not empty
        for batch in _by_length(read[known], _EVENTS_AT_ONCE):
            chosen = known[batch]  # (b,)
            rows = _rows(items, starts[chosen], read[chosen])  # (b, T)
            rows, ends = self._prompt(rows, read[chosen])
            hidden = self.encoder(rows, ends)  # (b, T, d)
            last = hidden[torch.arange(len(ends), device=ends.device), ends - 1]  # (b, d)
            scores[chosen] = last @ vectors.mT  # (b, n_items)
        return scores


class SASRec(SequentialRecommender):
    """Self-attentive sequential recommendation: looks back only, and predicts the next item at every event.

        h_t = what the transformer makes of events 1 to t;   score of i after them: h_t . E_i

    From the paper: the causal transformer; one table of vectors for input and output, scaled by sqrt(d) on
    the way in; learned positions counted from the most recent event. The paper trains with ``loss="bce"`` and
    one negative. Unlike the paper: the blocks are ``attention.EncoderBlock`` (GELU and 4 d features inside
    the feed-forward layer, keys normalized as well as queries), and a long history is learned from as a
    whole.

    The arguments are those of ``SequentialRecommender``.

    Source: Kang and McAuley 2018, "Self-Attentive Sequential Recommendation". On the losses: Petrov and
    Macdonald 2023, "gSASRec: Reducing Overconfidence in Sequential Recommendation Trained with Negative
    Sampling"; Klenitskiy and Vasilev 2023, "Turning Dross Into Gold Loss: is BERT4Rec really better than
    SASRec?".
    """

    causal = True

    def _questions(
        self, windows: Tensor, lengths: Tensor, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        hidden = self.encoder(windows[:, :-1], lengths - 1)  # (B, T - 1, d)
        asked = present_tokens(lengths - 1, windows.shape[1] - 1)  # (B, T - 1), every event with a next one
        return hidden[asked], windows[:, 1:][asked]

    def _prompt(self, items: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        return items, lengths


class BERT4Rec(SequentialRecommender):
    """A cloze test: looks both ways, and fills in events that were hidden behind a mask.

    In training each event of a window is masked with probability ``mask_rate``. A share ``next_rate`` of the
    windows is instead cut off at a random place, and the last event before the cut is masked alone. To
    recommend, a mask is put behind the history: what the model would fill in is the next item. The cut
    windows ask just that; without them, the end of a history of unusual length is a place where little was
    learned.

    From the paper: the bidirectional transformer, the cloze task, one table of vectors for input and output.
    Unlike the paper: the body is that of ``SASRec`` (normalized before the sublayers; no extra layer and no
    item bias before the output), so that the two can be compared.

    Args:
        mask_rate: share of the events that are masked in training.
        next_rate: share of the windows that ask for a next event.
        **arguments: the others are those of ``SequentialRecommender``.

    Source: Sun et al. 2019, "BERT4Rec: Sequential Recommendation with Bidirectional Encoder Representations
    from Transformer".
    """

    causal = False

    # Written out, because the arguments of __init__ are what a saved model stores.
    def __init__(
        self,
        dim: int = 64,
        n_layers: int = 2,
        n_heads: int = 2,
        max_length: int = 100,
        mask_rate: float = 0.2,
        next_rate: float = 0.5,
        loss: str = "softmax",
        n_negatives: int | None = None,
        calibration: float = 0.75,
        dropout: float = 0.1,
        positions: bool = True,
        ties: str = "random",
        epochs: int = 100,
        learning_rate: float = 0.001,
        batch_size: int = 2048,
        patience: int = 8,
        check_every: int = 5,
        seed: int = 0,
        device: str = "auto",
    ) -> None:
        super().__init__(
            dim=dim,
            n_layers=n_layers,
            n_heads=n_heads,
            max_length=max_length,
            loss=loss,
            n_negatives=n_negatives,
            calibration=calibration,
            dropout=dropout,
            positions=positions,
            ties=ties,
            epochs=epochs,
            learning_rate=learning_rate,
            batch_size=batch_size,
            patience=patience,
            check_every=check_every,
            seed=seed,
            device=device,
        )
        if not 0 < mask_rate < 1:
            raise ValueError(f"mask_rate must lie between 0 and 1, got {mask_rate}")
        if not 0 <= next_rate <= 1:
            raise ValueError(f"next_rate must lie between 0 and 1, got {next_rate}")
        self.mask_rate, self.next_rate = mask_rate, next_rate

    def _questions(
        self, windows: Tensor, lengths: Tensor, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        device, (n_rows, length) = windows.device, windows.shape
        next_only = torch.rand(n_rows, generator=generator, device=device) < self.next_rate  # (B,)
        cut = torch.rand(n_rows, generator=generator, device=device)  # (B,)
        cut = (cut * (lengths - 1)).long() + 2  # (B,) events before the cut, 2 to all
        lengths = torch.where(next_only, cut, lengths)  # (B,)
        draw = torch.rand(n_rows, length, generator=generator, device=device)  # (B, T)
        asked = (draw < self.mask_rate) & present_tokens(lengths, length)  # (B, T)
        next_only |= ~asked.any(dim=1)
        last = torch.arange(length, device=device) == lengths[:, None] - 1  # (B, T)
        asked = torch.where(next_only[:, None], last, asked)  # (B, T)
        hidden = self.encoder(windows.masked_fill(asked, self.n_items), lengths)  # (B, T, d)
        return hidden[asked], windows[asked]

    def _prompt(self, items: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        room = functional.pad(items, (0, 1))  # (B, T + 1)
        return room.scatter(1, lengths[:, None], self.n_items), lengths + 1


# --- helpers -----------------------------------------------------------------------------------------------


def _order(events: Interactions, ties: str, generator: torch.Generator) -> Tensor:
    """An order of the events, (E,): by user and time, and among ties at random or as they stand, by item."""
    device = events.items.device
    if ties == "item":
        return torch.arange(len(events), device=device)
    opens = torch.ones_like(events.users, dtype=torch.bool)  # (E,) does a new user or time begin here?
    opens[1:] = (events.users.diff() != 0) | (events.timestamps.diff() != 0)
    group = opens.cumsum(0)  # (E,)
    shuffled = torch.randperm(len(group), generator=generator, device=generator.device).to(device)  # (E,)
    return shuffled[group[shuffled].argsort(stable=True)]


def _windows(events: Interactions, size: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Cuts the histories so that every event but a user's first is the next one of another in one window.

    A window has at most ``size`` + 1 events, and begins with the last one of the window before. In a longer
    history the first cut falls at random.

    Returns:
        starts (M,), the place of a window's first event; lengths (M,), two or more.
    """
    users, counts = events.users, events.user_counts()  # (E,), (n_users,)
    begin = counts.cumsum(0) - counts  # (n_users,)
    shift = torch.randint(size, counts.shape, generator=generator, device=counts.device)  # (n_users,)
    shift = shift.masked_fill(counts <= size + 1, 0)  # what fits is not cut
    number = torch.arange(len(users), device=users.device) - begin[users]  # (E,) of the event in its history
    opens = (number == 0) | ((number + shift[users]) % size == 0)  # (E,)
    opens &= number < counts[users] - 1  # a last event has no next one
    starts = opens.nonzero().squeeze(1)  # (M,)
    # A window ends with the first event of the next window, or with the user's last.
    ends = torch.cat([starts[1:], starts.new_full((1,), len(users))])  # (M,)
    ends = torch.minimum(ends, (begin + counts - 1)[users[starts]])  # (M,)
    return starts, ends - starts + 1


def _by_length(lengths: Tensor, budget: int) -> list[Tensor]:
    """Batches of rows of similar length, each of at most ``budget`` events with padding, or of a single row.

    Args:
        lengths: (M,) int64.
        budget: events in a batch.

    Returns:
        Indices into ``lengths``, each in one batch; rows of equal length keep their order.
    """
    if not len(lengths):
        return []
    order = lengths.argsort(stable=True)  # (M,) shortest first, so the newest row of a batch is its longest
    sizes, size = [], 0
    for length in lengths[order].tolist():
        if size and (size + 1) * length > budget:
            sizes.append(size)
            size = 0
        size += 1
    return list(order.split([*sizes, size]))


def _rows(items: Tensor, starts: Tensor, lengths: Tensor) -> Tensor:
    """Stretches of ``items`` (E,) as rows (B, T), T the longest; what follows a stretch is its padding."""
    place = starts[:, None] + torch.arange(int(lengths.max()), device=items.device)  # (B, T)
    return items[place.clamp(max=len(items) - 1)]  # (B, T)


def _others(targets: Tensor, k: int, n_items: int, generator: torch.Generator) -> Tensor:
    """Draws (N, K) items for targets (N,), uniformly from all items but the target, with replacement."""
    shape = (len(targets), k)
    drawn = torch.randint(n_items - 1, shape, generator=generator, device=targets.device)  # (N, K)
    return drawn + (drawn >= targets[:, None])  # drawn among one fewer, it steps over the target


def _scores_of(hidden: Tensor, vectors: Tensor, targets: Tensor, negatives: Tensor) -> tuple[Tensor, Tensor]:
    """Scores of the targets, (N,), and of the negatives, (N, K).

    With many negatives it is cheaper to score the catalog and pick than to gather N K vectors.

    Args:
        hidden: (N, d).
        vectors: (n_items, d).
        targets: (N,) int64.
        negatives: (N, K) int64.
    """
    items = torch.cat([targets[:, None], negatives], dim=1)  # (N, 1 + K)
    if 16 * items.shape[1] >= len(vectors):
        scores = (hidden @ vectors.mT).gather(1, items)  # (N, 1 + K)
    else:
        scores = (functional.embedding(items, vectors) @ hidden[:, :, None]).squeeze(2)  # (N, 1 + K)
    return scores[:, 0], scores[:, 1:]
