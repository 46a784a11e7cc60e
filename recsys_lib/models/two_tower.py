"""Two towers: a vector for the user, a vector for the item, and nothing between them but a dot product."""

import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from recsys_lib.attention import present_tokens
from recsys_lib.data import Interactions
from recsys_lib.data.ragged import offsets
from recsys_lib.large_batches import in_chunks, in_shares
from recsys_lib.losses import in_batch_softmax_loss, sampled_softmax_loss, softmax_loss
from recsys_lib.models.core.item_text import MINILM, ItemText, TextVectors, text_encoder
from recsys_lib.models.core.options import data, learned, option
from recsys_lib.models.core.towers import (
    EncoderTower,
    HistoryAttention,
    HistoryMean,
    IdTextTower,
    IdTower,
    TextTower,
)
from recsys_lib.models.core.two_sides import TwoSides
from recsys_lib.models.core.windows import cut_windows, rows_of, shuffle_ties, strictly_before
from recsys_lib.negatives import Sampler, known_columns, other_items
from recsys_lib.training import batches

__all__ = ["BatchLoss", "TwoTower", "UserItemPairs"]

BatchLoss = Callable[[Tensor, Tensor, Tensor, Tensor | None], Tensor]
"""A loss of a batch: scores (B, C), divided by the temperature, row b's own item in column b; the columns'
items (C,) and log q (C,); which columns are no negatives of a row, (B, C) bool, or None. Gives ()."""

_TEXTS_AT_ONCE = 512  # new texts encoded at a time
_ATTENTION_LENGTH = 100  # events that attention reads where no number is given


@dataclass(frozen=True)
class UserItemPairs:
    """What the towers learn from.

    Attributes:
        users: (N,) int64.
        items: (N,) int64, what each chose.
        starts: (N,) int64, where the part of the user's history begins that is read for this example.
        lengths: (N,) int64, its events. All of them came before the item that was chosen.
        read: (E,) int64, items that ``starts`` point into, by user and time.
        events: all events.
        log_q: (n_items,) float32, logarithm of each item's share of the examples.
        crow: (n_users + 1,) int64 offsets of ``own``.
        own: (E',) int64, each user's distinct items, ascending.
    """

    users: Tensor
    items: Tensor
    starts: Tensor
    lengths: Tensor
    read: Tensor
    events: Interactions
    log_q: Tensor
    crow: Tensor
    own: Tensor


class TwoTower(TwoSides[UserItemPairs]):
    """A vector u of the user and a vector v of the item, each from a tower of its own; s_ui = u . v.

    The towers do not see each other, so that the vectors of all items are computed once, and the best items
    for a user are found by a search among them (``encode_users``, ``encode_items``).

    **What the user tower reads.** ``"id"``: who it is. ``"history_mean"``: the mean of vectors of the items
    chosen before. ``"history_attention"``: what a transformer makes of them in their order. ``"text"``: the
    mean of their texts' vectors, mapped. All but the first serve people who were not there in training
    (``score_histories``).

    **What the item tower reads.** ``"id"``: which it is. ``"text"``: the vector of its text, mapped; with
    ``fine_tune`` the encoder learns along, at a rate of its own. ``"id+text"``: the sum of both. The last two
    serve items that nobody has chosen yet. ``text`` gives the vectors, or the texts.

    **Losses.** ``"in_batch"`` (``losses.in_batch_softmax_loss``): the other rows of the batch are the
    negatives, corrected for popularity as ``log_q`` says; items of ``sampler``, such as hard ones, can be
    added as columns, corrected as if the batch had drawn them. ``"sampled_softmax"``
    (``losses.sampled_softmax_loss``): ``n_negatives`` others, drawn uniformly. ``"softmax"``
    (``losses.softmax_loss``): the whole catalog. ``batch_loss`` puts a function of one's own in their place.

    **No leak.** What is read of a history for an example are the user's events of strictly earlier times:
    neither the item itself, nor what came after it, nor what came in the same second, whose order nobody
    knows. An example without any earlier event teaches a history tower nothing and is left out.

    **Users and items of whom nothing is known.** A user without events (or an empty history) gets the
    logarithm of each item's share of the events as scores. With ``loss="in_batch"`` an item without events is
    never in a batch: its number's vector is zero, and so is its score where the tower reads nothing else.
    Asked for by name, such a vector is refused.

    **Attention** learns from windows of histories, all events of a window at once, as ``NextItemRecommender``
    does; ``batch_size`` counts events then. Rows of one user are no negatives of each other there, since a
    batch holds far more of a user's items than a fair sample would.

    **Large batches.** With ``cache_chunk`` towers are run on a part of the batch at a time, at the cost of
    running them twice (``large_batches.in_chunks``). Where several processes work together, each runs them on
    its share of the batch, and all rows are negatives of all (``large_batches.in_shares``). The attention of
    users is run on all windows by each.

    Source: Covington, Adams, Sargin 2016, "Deep Neural Networks for YouTube Recommendations", section 3 (the
    mean of a history); Yi et al. 2019, "Sampling-Bias-Corrected Neural Modeling for Large Corpus Item
    Recommendations" (the towers and the correction).
    """

    user_tower: str = option(
        "what is read of a user",
        default="history_mean",
        choices=("id", "history_mean", "history_attention", "text"),
    )
    item_tower: str = option("what is read of an item", default="id", choices=("id", "text", "id+text"))
    dim: int = option("length of the vectors", default=64, at_least=1)
    loss: str = option(
        "what a chosen item is held against",
        default="in_batch",
        choices=("in_batch", "sampled_softmax", "softmax"),
    )
    temperature: float = option("divides the scores in the loss", default=0.2, above=0)
    log_q: str = option(
        "which logits are corrected for popularity: all, those that are not the row's own, or none",
        default="all",
        choices=("all", "negatives", "none"),
    )
    masked: str = option(
        "columns that are no negatives: the row's own item again, all that its user is known to have chosen, "
        "or nothing",
        default="hits",
        choices=("hits", "known", "nothing"),
    )
    n_negatives: int = option("drawn for each row, where negatives are drawn", default=4, at_least=1)
    l2: float = option("weight of the mean squared length before normalizing", default=0.0, at_least=0)
    init_scale: float = option("standard deviation of numbers' vectors at the start", default=0.1, above=0)
    max_history: int | None = option(
        "most recent events that are read; with None all, and 100 by attention", default=None, at_least=1
    )
    n_layers: int = option("transformer blocks of attention", default=1, at_least=1)
    n_heads: int = option("attention heads in each block", default=2, at_least=1)
    dropout: float = option("share dropped in training, by attention", default=0.2, at_least=0, below=1)
    fine_tune: bool = option("the text encoder learns along, in the item tower", default=False)
    encoder_learning_rate: float = option("of Adam, for an encoder that learns along", default=2e-5, above=0)
    text_model: str = option("name or folder of the text encoder", default=MINILM)
    text_hidden: int = option(
        "features of a layer between a text's vector and the item's; 0 maps it linearly",
        default=0,
        at_least=0,
    )
    text_dim: int | None = option("length of a text's vector; taken from the texts", default=None, at_least=1)
    cache_chunk: int = option(
        "rows encoded at a time, for batches beyond memory (``large_batches.in_chunks``); 0 takes all",
        default=0,
        at_least=0,
    )
    epochs: int = option(default=6)
    learning_rate: float = option(default=0.01)
    batch_size: int = option(default=1024)
    check_every: int = option(default=1)
    text: Tensor | Sequence[str] | None = data(
        "one text an item, or their vectors (n_items, D); kept with the learned state", default=None
    )
    encoder: TextVectors | None = data("turns texts into vectors in place of ``text_model``", default=None)
    sampler: Sampler | None = data("draws negatives for the batch's users, to add to the batch", default=None)
    batch_loss: BatchLoss | None = data("takes the place of the loss, see ``BatchLoss``", default=None)

    user: nn.Module = learned("the user tower")
    item: nn.Module = learned("the item tower")
    item_text: ItemText = learned("what is known of the items' texts")

    def __post_init__(self) -> None:
        """Checks what concerns two options."""
        super().__post_init__()
        if self.user_tower == "history_attention" and self.dim % self.n_heads:
            raise ValueError(f"dim={self.dim} cannot be shared evenly among n_heads={self.n_heads}")
        if self.fine_tune and self.item_tower != "text":
            raise ValueError(f'fine_tune needs item_tower="text", got "{self.item_tower}"')

    # What they are.

    def build(self) -> None:
        """Makes the towers."""
        self.forget()
        if self._reads_text and self.text is not None:
            self.item_text = ItemText()
            self.item_text.keep(self.text, self.n_items, self.encoder, self.text_model, self.fine_tune)
            self.text_dim = self.item_text.vectors.shape[1]
        elif self._reads_text and self.text_dim is None:
            raise ValueError(
                f"TwoTower({self._towers}) reads the items' texts: give text=, one text an item or their "
                f"vectors (n_items, D)"
            )
        elif "item_text" not in self._modules:
            self.item_text = ItemText()

        def ids(n: int) -> IdTower:
            return IdTower(n, self.dim, self.init_scale)

        def text() -> TextTower:
            return TextTower(self.text_dim or 1, self.dim, self.text_hidden)

        if self.fine_tune:
            encoder = text_encoder(self.text_model)
            self.item = EncoderTower(encoder.model, encoder.pooling, self.dim)
        elif self.item_tower == "id":
            self.item = ids(self.n_items)
        else:
            self.item = text() if self.item_tower == "text" else IdTextTower(ids(self.n_items), text())
        if self.user_tower == "id":
            self.user = ids(self.n_users)
        elif self.user_tower == "history_attention":
            options = {name: getattr(self, name) for name in ("dim", "n_layers", "n_heads", "dropout")}
            self.user = HistoryAttention(self.n_items, self._max_length, **options)
        else:
            source = text() if self.user_tower == "text" else ids(self.n_items)
            self.user = HistoryMean(source, self.n_items)

    @property
    def _towers(self) -> str:
        return f'user_tower="{self.user_tower}", item_tower="{self.item_tower}"'

    @property
    def _reads_text(self) -> bool:
        return self.user_tower == "text" or self.item_tower != "id"

    @property
    def _max_length(self) -> int:
        if self.max_history is not None:
            return self.max_history
        return _ATTENTION_LENGTH if self.user_tower == "history_attention" else torch.iinfo(torch.int64).max

    @property
    def reads_histories(self) -> bool:
        """All user towers do, but that of numbers."""
        return self.user_tower != "id"

    @property
    def reads_texts(self) -> bool:
        """Item towers of texts do, where the encoder is at hand that made the vectors of the catalog's."""
        if self.item_tower == "id":
            return False
        return self.encoder is not None or self.fine_tune or bool(getattr(self.item_text, "encoded", False))

    def item_side(self, items: Tensor) -> Tensor:
        """The item tower on numbers (N,): (N, d)."""
        if self.item_tower == "id":
            return self.item(items)  # (N, d)
        if not self.fine_tune:
            return self._encoded(self.item, items, self.item_text.vectors[items])  # (N, d)
        # A batch holds what is popular many times; an encoder costs enough to read it once.
        distinct, place = items.unique(return_inverse=True)  # (U,), (N,)
        return self._encoded(self.item, distinct, self.item_text.tokens[distinct])[place]  # (N, d)

    def text_side(self, texts: Tensor | Sequence[str]) -> Tensor:
        """The item tower on texts, or on vectors of texts (N, D): (N, d)."""
        if self.item_tower == "id":
            raise ValueError('item_tower="id" reads no text; give indices of items that were in fit')
        if not isinstance(texts, Tensor):
            text = self.item_text.of_texts(
                texts, self.encoder, self.text_model, self.fine_tune
            )  # (N, T or D)
        elif self.fine_tune:
            raise ValueError("an encoder that learned along reads the texts themselves, got vectors")
        else:
            text = self.item_text.of_vectors(texts)  # (N, D)
        return in_chunks(partial(self.item, None), text.to(self.device), chunk=_TEXTS_AT_ONCE)  # (N, d)

    def user_side(self, users: Tensor) -> Tensor:
        """The user tower on numbers (B,): (B, d)."""
        return self.user(users)

    def history_side(self, items: Tensor, starts: Tensor, lengths: Tensor) -> Tensor:
        """The user tower on stretches of ``items`` (E,), starts (B,), lengths (B,): (B, d)."""
        text = self.item_text.vectors if self.user_tower == "text" else None  # (n_items, D)
        read = lengths.clamp(max=self._max_length)  # (B,)

        def encode(starts: Tensor, lengths: Tensor) -> Tensor:
            return self.user(items, starts, lengths, text)  # (b, d)

        return self._encoded(encode, starts + lengths - read, read)  # (B, d)

    def _encoded(self, encode: Callable[..., Tensor], *rows: Tensor) -> Tensor:
        """Each row of the batch by itself, a chunk at a time, shared among the processes: (B, d)."""
        return in_shares(partial(in_chunks, encode, chunk=self.cache_chunk), *rows)

    # Learning.

    def prepare(self, events: Interactions, generator: torch.Generator) -> UserItemPairs:
        """Each event is an example: its user, with what the user did strictly before, and its item."""
        if self._reads_text and not self.item_text.has("vectors"):
            raise ValueError(f"TwoTower({self._towers}) reads the items' texts, and has none: give text=")
        if self.n_items == 1 and self.loss == "sampled_softmax":
            raise ValueError('loss="sampled_softmax" needs other items as negatives, but there is one item')
        counts = torch.bincount(events.items, minlength=self.n_items)  # (n_items,)
        popularity = (counts + 1) / (counts + 1).sum()  # (n_items,)
        self._keep("log_popularity", popularity.log())
        self._keep("item_known", (counts > 0) | (self.loss != "in_batch") | (self.item_tower != "id"))
        never = counts == 0  # (n_items,)
        for module in self.modules():
            if isinstance(module, IdTower) and module is not self.user and self.loss == "in_batch":
                module.forget(never)
        if isinstance(self.user, IdTower):
            self._keep("user_known", events.user_counts() > 0)
            self.user.forget(~self.user_known)
        else:
            self._keep_histories(events)

        crow, own = events.csr()  # (n_users + 1,), (E',)
        examples = UserItemPairs(
            users=events.users,
            items=events.items,
            starts=offsets(events.user_counts())[events.users],
            lengths=strictly_before(events),
            read=events.items[shuffle_ties(events, generator)],
            events=events,
            log_q=(counts.clamp(min=1) / len(events)).log(),
            crow=crow,
            own=own,
        )
        return examples if isinstance(self.user, IdTower) else self._told(examples)

    def _told(self, examples: UserItemPairs) -> UserItemPairs:
        """The examples with something to read; their log q stays that of all events."""
        told = examples.lengths > 0  # (E,)
        if not bool(told.any()):
            raise ValueError(
                f"no user has two events at different times, so there is no history from which "
                f"TwoTower({self._towers}) could learn"
            )
        chosen = {x: getattr(examples, x)[told] for x in ("users", "items", "starts", "lengths")}
        return dataclasses.replace(examples, **chosen)

    def slower(self) -> list[tuple[nn.Module, float]]:
        """An encoder that learns along has learned before."""
        if isinstance(self.item, EncoderTower):
            return [(self.item.encoder, self.encoder_learning_rate)]
        return []

    def losses(self, examples: UserItemPairs, generator: torch.Generator) -> Iterator[tuple[Tensor, int]]:
        """One epoch over the examples, shuffled."""
        if isinstance(self.user, HistoryAttention):
            yield from self._losses_of_windows(self.user, examples, generator)
            return
        for batch in batches(len(examples.users), self.batch_size, generator):
            users, items = examples.users[batch], examples.items[batch]  # (B,), (B,)
            if self.reads_histories:
                vectors = self.history_side(examples.read, examples.starts[batch], examples.lengths[batch])
            else:
                vectors = self.user_side(users)  # (B, d)
            left_out = None
            if self.masked == "known":
                left_out = known_columns(examples.crow, examples.own, users, items)  # (B, B)
            yield self.objective(vectors, users, items, left_out, examples, generator), len(batch)

    def _losses_of_windows(
        self, tower: HistoryAttention, examples: UserItemPairs, generator: torch.Generator
    ) -> Iterator[tuple[Tensor, int]]:
        """One epoch over windows of histories: what the transformer made of the events before each event."""
        events = examples.events
        items = events.items[shuffle_ties(events, generator)]  # (E,)
        first = offsets(events.user_counts())[events.users] + strictly_before(events)  # (E,) of a tied group
        starts, lengths = cut_windows(events, self._max_length, generator)  # (M,), (M,)
        together = max(2, self.batch_size // max(1, int(lengths.float().mean())))  # windows in a batch
        for batch in batches(len(starts), together, generator):
            begin, length = starts[batch], lengths[batch]  # (W,), (W,)
            rows = rows_of(items, begin, length)  # (W, T + 1)
            hidden = in_chunks(
                tower.encoder, rows[:, :-1], length - 1, chunk=-(-self.cache_chunk // rows.shape[1])
            )  # (W, T, d)
            place = begin[:, None] + torch.arange(1, rows.shape[1], device=rows.device)  # (W, T) chosen
            last = first[place.clamp(max=len(items) - 1)] - begin[:, None] - 1  # (W, T) before it, in the row
            asked = present_tokens(length - 1, rows.shape[1] - 1) & (last >= 0)  # (W, T)
            row, column = asked.nonzero(as_tuple=True)  # (B,), (B,)
            if not len(row):
                continue
            users = events.users[begin][row]  # (B,)
            of_one = users[:, None] == users  # (B, B)
            vectors = hidden[row, last[row, column]]  # (B, d)
            chosen = rows[:, 1:][row, column]  # (B,)
            if self.masked == "known":
                of_one = of_one | known_columns(examples.crow, examples.own, users, chosen)  # (B, B)
            yield self.objective(vectors, users, chosen, of_one, examples, generator), len(row)

    def objective(
        self,
        vectors: Tensor,
        users: Tensor,
        items: Tensor,
        left_out: Tensor | None,
        examples: UserItemPairs,
        generator: torch.Generator,
    ) -> Tensor:
        """The loss of a batch, with its penalty.

        Args:
            vectors: (B, d) of the user tower, not normalized.
            users: (B,) int64.
            items: (B,) int64, what they chose.
            left_out: (B, B) bool, rows' items that are no negatives of a row, or None.
            examples: where the batch is from.
            generator: of random choices.

        Returns:
            ()
        """
        columns, own = items, None  # (C,)
        if self.batch_loss is None and self.loss == "softmax":
            columns = torch.arange(self.n_items, device=items.device)  # (n_items,)
        elif self.batch_loss is None and self.loss == "sampled_softmax":
            others = other_items(items, self.n_negatives, self.n_items, generator)  # (B, K)
            pair = torch.cat([items[:, None], others], dim=1)  # (B, 1 + K)
            columns, own = pair.unique(return_inverse=True)  # (C,), (B, 1 + K)
        elif self.sampler is not None:
            others = self.sampler.sample(users, self.n_negatives, generator).unique()  # (H,)
            columns = torch.cat([items, others])  # (C,)
            if left_out is not None:
                known = known_columns(examples.crow, examples.own, users, others)  # (B, H)
                left_out = torch.cat([left_out, known & (self.masked == "known")], dim=1)  # (B, C)
        candidates = self.item_side(columns)  # (C, d)
        scores = (self.scaled(vectors) / self.temperature) @ self.scaled(candidates).mT  # (B, C)
        if self.batch_loss is not None:
            loss = self.batch_loss(scores, columns, examples.log_q[columns], left_out)
        elif self.loss == "softmax":
            loss = softmax_loss(scores, items)
        elif own is not None:
            picked = scores.gather(1, own)  # (B, 1 + K)
            uniform = torch.full_like(picked[:, 1:], -math.log(self.n_items - 1))  # (B, K)
            loss = sampled_softmax_loss(picked[:, 0], picked[:, 1:], log_q_negative=uniform)
        else:
            loss = in_batch_softmax_loss(
                scores,
                None if self.masked == "nothing" else columns,
                None if self.log_q == "none" else examples.log_q[columns],
                left_out=left_out,
                correct_positive=self.log_q == "all",
            )
        if not self.l2:
            return loss
        lengths = vectors.square().sum(dim=1).mean() + candidates.square().sum(dim=1).mean()  # ()
        return loss + 0.5 * self.l2 * lengths
