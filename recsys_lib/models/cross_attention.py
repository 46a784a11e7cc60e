"""A person's events and an item's words in one attention: each looks at the other before both are pooled."""

from collections.abc import Iterable
from typing import cast

import torch
from torch import Tensor, nn

from recsys_lib.attention import BlockStack, CrossAttention, EncoderBlock, padding_mask
from recsys_lib.models.core.checks import check_indices
from recsys_lib.models.core.event_words import EventWords, Stretches, Tokens
from recsys_lib.models.core.options import learned, option

__all__ = ["CrossAttentionRecommender", "Pooling"]


class Pooling(nn.Module):
    """Tokens to one vector: their mean, their maximum, or a mean weighted by softmax_t(w . x_t).

    The weights of a mean are those of the tokens *before* they looked elsewhere. So a pooled sum of what they
    found needs no token of it (``attention.CrossAttention.pooled``).

    Args:
        dim: d, features of a token.
        kind: "mean", "max" or "attention".
    """

    def __init__(self, dim: int, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.weight = nn.Linear(dim, 1, bias=False) if kind == "attention" else None

    def forward(
        self, own: Tokens, cross: CrossAttention | None = None, other: Tokens | None = None
    ) -> Tensor:
        """Pools tokens (..., T, d), with what they find in others if there are any: (..., d).

        Where no token is, it is zero.
        """
        mask = None if other is None else padding_mask(other.present)
        if self.kind == "max":
            x = own.x if cross is None or other is None else cross(own.x, other.x, mask)  # (..., T, d)
            top = x.masked_fill(~own.present.unsqueeze(-1), -torch.inf).amax(dim=-2)  # (..., d)
            return top.masked_fill(~own.present.any(dim=-1, keepdim=True), 0.0)
        shares = self.shares(own)  # (..., T)
        if cross is None or other is None:
            return (shares[..., None, :] @ own.x).squeeze(-2)  # (..., d)
        return cross.pooled(own.x, other.x, shares, mask)  # (..., d)

    def shares(self, own: Tokens) -> Tensor:
        """The weights of a mean, (..., T): they sum to one, or to zero where no token is."""
        there = own.present.to(own.x.dtype)  # (..., T)
        if self.weight is not None:
            logits = self.weight(own.x).squeeze(-1)  # (..., T)
            logits = logits.masked_fill(~own.present, torch.finfo(logits.dtype).min)  # (..., T)
            there = logits.softmax(dim=-1) * there  # (..., T)
        return there / there.sum(dim=-1, keepdim=True).clamp(min=1e-6)


class CrossAttentionRecommender(EventWords):
    """A transformer over what a person did, another over an item's words, cross-attention, pooling, a score.

        h = events' blocks,  c = words' blocks
        h' = h + attention(h to c),  c' = c + attention(c to h)      ``direction`` says which
        s = head(pool(h'), pool(c'))

    **Direction.** ``"history"``: events look at words. ``"words"``: words look at events. ``"both"``, or
    ``"none"``: late fusion, in which two vectors meet after each side has said all it has to say.

    **Head.** ``"linear"`` is w . [h, c] + b. With late fusion it is a number for the user plus one for
    the item, so that everybody gets the same list; only cross-attention makes it personal. ``"mlp"`` has one
    hidden layer over [h, c, h * c]. ``"dot"`` is h . c / sqrt(d) + w . c: two towers.

    **Start.** The map of what is found starts at zero, so that the model starts as late fusion, and learns
    what to add. Started at random, it has to learn first that most of what it finds is noise.

    The events' blocks are an encoder: every event sees every other. ``causal`` hides the future of each, as a
    decoder does. Heads are concatenated and mixed by a linear map, as in Vaswani et al. 2017.

    Source: Vaswani et al. 2017, "Attention Is All You Need", section 3.2.3 (attention of one sequence to
    another); Goyal et al. 2017, "Accurate, Large Minibatch SGD: Training ImageNet in 1 Hour", section 5.1 (a
    residual branch that starts at zero). The arrangement is one that the literature draws in many forms.
    """

    direction: str = option("who looks at whom", default="both", choices=("history", "words", "both", "none"))
    pooling: str = option(
        "how tokens become one vector", default="mean", choices=("mean", "max", "attention")
    )
    head: str = option("what makes the score", default="mlp", choices=("linear", "mlp", "dot"))
    n_layers: int = option("transformer blocks over the events", default=1, at_least=0)
    word_layers: int = option("transformer blocks over the words", default=0, at_least=0)
    n_heads: int = option("attention heads", default=2, at_least=1)
    zero_start: bool = option("what is found counts nothing at first: late fusion is the start", default=True)
    causal: bool = option("an event sees only itself and what came before", default=False)

    blocks: BlockStack = learned("over the events")
    word_blocks: BlockStack = learned("over the words")
    to_words: CrossAttention = learned("events look at words")
    to_events: CrossAttention = learned("words look at events")
    pool_events: Pooling = learned("of the events")
    pool_words: Pooling = learned("of the words")
    top: nn.Module = learned("the head")

    def __post_init__(self) -> None:
        """Checks what concerns two options."""
        super().__post_init__()
        if self.dim % self.n_heads:
            raise ValueError(f"dim={self.dim} cannot be shared evenly among n_heads={self.n_heads}")

    def build(self) -> None:
        """Makes both sides, what is between them, and the head."""
        super().build()
        d = self.dim
        self.blocks, self.word_blocks = (
            BlockStack(n, d, self.n_heads, attention_dropout=0.0) for n in (self.n_layers, self.word_layers)
        )
        for block in cast(Iterable[EncoderBlock], [*self.blocks, *self.word_blocks]):
            block.dropout = self.dropped
        # What is found is not dropped: that would be drawn for each pair, at more than all else costs.
        self.to_words, self.to_events = (CrossAttention(d, self.n_heads, fused=False) for _ in range(2))
        if self.zero_start:
            for cross in (self.to_words, self.to_events):
                nn.init.zeros_(cross.attention.output.weight)
                nn.init.zeros_(cross.attention.output.bias)
        self.pool_events, self.pool_words = Pooling(d, self.pooling), Pooling(d, self.pooling)
        if self.head == "mlp":
            self.top = nn.Sequential(nn.Linear(3 * d, 2 * d), nn.GELU(), nn.Linear(2 * d, 1))
        else:
            self.top = nn.Linear(2 * d if self.head == "linear" else d, 1)

    def events_side(self, past: Stretches) -> Tokens:
        """The events after their blocks: x (B, T, d)."""
        events = super().events_side(past)  # (B, T, d)
        return Tokens(self.blocks(events.x, padding_mask(events.present), self.causal), events.present)

    def items_side(self, items: Tensor) -> Tokens:
        """The words after their blocks: x (N, W, d)."""
        words = super().items_side(items)  # (N, W, d)
        return Tokens(self.word_blocks(words.x, padding_mask(words.present)), words.present)

    def meet(self, events: Tokens, words: Tokens) -> Tensor:
        """Looks, pools, scores: events (B, 1, T, d) and words (B or 1, C, W, d) to (B, C)."""
        find = self.direction in ("history", "both"), self.direction in ("words", "both")
        h = self.pool_events(events, *((self.to_words, words) if find[0] else ()))  # (B, 1 or C, d)
        c = self.pool_words(words, *((self.to_events, events) if find[1] else ()))  # (B or 1, C, d)
        return self.fuse(h, c)  # (B, C)

    def fuse(self, h: Tensor, c: Tensor) -> Tensor:
        """The head, on pooled events (B, 1 or C, d) and pooled words (B or 1, C, d): (B, C)."""
        if self.head == "dot":
            return (h * c).sum(dim=-1) / self.dim**0.5 + self.top(c).squeeze(-1)
        h, c = torch.broadcast_tensors(h, c)  # (B, C, d) each
        parts = [h, c] if self.head == "linear" else [h, c, h * c]
        return self.top(torch.cat(parts, dim=-1)).squeeze(-1)

    @torch.no_grad()
    def attention(self, users: Tensor, items: Tensor) -> tuple[Tensor, Tensor]:
        """Who looked at whom, for pairs of users (N,) and items (N,).

        Returns:
            How much each of the T events looked at each of the W words, (N, H, T, W), and how much each word
            looked at each event, (N, H, W, T). A row sums to one, or to zero at padding and where
            ``direction`` lets nobody look. The words are those of ``items_side``: the number first, where it
            is read.

        Raises:
            NotFittedError, TypeError, ValueError, IndexError: as ``predict``; a user without events has
                nothing to look at.
        """
        users = self._check_users(users).to(self.device)  # (N,)
        items = check_indices(items, self.n_items, "item").to(self.device)  # (N,)
        past = self._of_users(users)
        if len(empty := users[past.lengths == 0]):
            raise ValueError(f"user {int(empty[0])} has no events to look at")
        events, words = self.events_side(past), self.items_side(items)  # (N, T, d), (N, W, d)
        both = padding_mask(words.present, events.present)  # (N, 1, T, W)
        looks = {"history": [True, False], "words": [False, True], "both": [True, True]}
        to_words, to_events = looks.get(self.direction, [False, False])
        return (
            self.to_words.weights(events.x, words.x, both & to_words),
            self.to_events.weights(words.x, events.x, both.mT & to_events),
        )
