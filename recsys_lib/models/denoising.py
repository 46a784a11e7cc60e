"""Damaged histories restored: an encoder reads what is left, a decoder writes the history anew."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from recsys_lib.attention import CrossAttention, EncoderBlock, padding_mask, present_tokens
from recsys_lib.devices import in_float32
from recsys_lib.models.core.checks import check_histories
from recsys_lib.models.core.corruptions import cut_off, deleted, infilled, permuted
from recsys_lib.models.core.next_item import NextItemRecommender
from recsys_lib.models.core.options import learned, option
from recsys_lib.models.core.windows import by_length, rows_of

__all__ = ["DecoderBlock", "SequenceDenoiser"]

_EVENTS_AT_ONCE = 2**13


class DecoderBlock(nn.Module):
    """Look back, look over, think: each added to what came in (Vaswani et al. 2017, section 3.1).

    Args:
        dim: features of a token, of both sequences.
        n_heads: attention heads.
        dropout: share of each sublayer's output dropped in training.
    """

    def __init__(self, dim: int, n_heads: int, dropout: float) -> None:
        super().__init__()
        self.block = EncoderBlock(dim, n_heads, dropout=dropout, attention_dropout=0.0)
        self.cross = CrossAttention(dim, n_heads, dropout=dropout)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)

    def forward(self, x: Tensor, context: Tensor, mask: Tensor | None) -> Tensor:
        """Takes x (B, T, d), of which each token sees those before it, and context (B, S, d); gives x's."""
        b = self.block
        x = x + b.dropout(b.attention(b.attention_norm(x), None, None, True))  # (B, T, d)
        x = self.cross(x, context, mask)  # (B, T, d)
        return x + b.dropout(b.feed_forward(b.feed_forward_norm(x)))  # (B, T, d)


class SequenceDenoiser(NextItemRecommender):
    """BART for histories: damages a history, and learns to write down what it was.

        states = encoder(damaged history)                          looks both ways
        h_t    = decoder(begin, event 1, ..., event t - 1; states)  looks back, and at all states
        L      = mean over t of -log softmax(h_t . E)_(event t)

    A history is damaged in one of three ways: events are left out (``"delete"``), a stretch is put in random
    order (``"permute"``), or spans of events each give way to one mask (``"infill"``); ``"any"`` draws one
    for each batch. With ``"nothing"`` the history is whole, and the decoder could copy it. Masked events
    alone, each behind its own mask, need no decoder: that is ``BERT4Rec``.

    **As a recommender** it reads the whole history in the encoder and in the decoder, and what the decoder
    would write next is the next item. For that a share ``next_rate`` of the histories loses its end in
    training as well: the encoder reads the rest, and the decoder goes on from there.

    From the paper: the two stacks, the damage, the loss over the whole text, one table of vectors for all
    inputs and the output. Unlike it: the body is that of ``SASRec``, with positions counted from the end; the
    token that begins the decoder's row is the mask; a span is never empty; histories that lose their ends.

    Source: Lewis, Liu, Goyal, Ghazvininejad, Mohamed, Levy, Stoyanov, Zettlemoyer 2020, "BART: Denoising
    Sequence-to-Sequence Pre-training for Natural Language Generation, Translation, and Comprehension",
    section 2.
    """

    causal = False

    damage: str = option(
        "how a history is damaged, see above",
        default="any",
        choices=("any", "delete", "permute", "infill", "nothing"),
    )
    delete_share: float = option("of the events that are left out", default=0.3, at_least=0, below=1)
    permute_share: float = option("of the events whose order is lost", default=0.6, above=0, at_most=1)
    infill_share: float = option(
        "of the events that are in spans behind masks", default=0.3, above=0, below=1
    )
    span: float = option("events behind a mask, about", default=3.0, above=0)
    next_rate: float = option(
        "share of the histories that lose their ends", default=0.5, at_least=0, at_most=1
    )
    n_decoder_layers: int = option("blocks of the decoder", default=1, at_least=1)
    dropout: float = option(default=0.1)

    decoder: nn.ModuleList = learned("the decoder's blocks")
    decoder_norm: nn.LayerNorm = learned("the normalization behind them")

    def build(self) -> None:
        """Makes the encoder and the decoder."""
        super().build()
        blocks = (DecoderBlock(self.dim, self.n_heads, self.dropout) for _ in range(self.n_decoder_layers))
        self.decoder, self.decoder_norm = nn.ModuleList(blocks), nn.LayerNorm(self.dim)

    def questions(
        self, windows: Tensor, lengths: Tensor, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """At every event: what stood here, by the damaged history and the events before?"""
        damaged, left = self.damaged(windows, cut_off(lengths, self.next_rate, generator), generator)
        hidden = self.restore(damaged, left, windows[:, :-1], lengths)  # (B, T, d)
        asked = present_tokens(lengths, windows.shape[1])  # (B, T)
        return hidden[asked], windows[asked]

    def damaged(self, rows: Tensor, lengths: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Histories (B, T) of lengths (B,), one or more, with something wrong in them."""
        kinds: dict[str, Callable[[], tuple[Tensor, Tensor]]] = {
            "delete": lambda: deleted(rows, lengths, self.delete_share, generator),
            "permute": lambda: permuted(rows, lengths, self.permute_share, generator),
            "infill": lambda: infilled(rows, lengths, self.infill_share, self.span, self.n_items, generator),
        }
        if self.damage == "nothing":
            return rows, lengths
        if self.damage != "any":
            return kinds[self.damage]()
        drawn = int(torch.randint(len(kinds), (), generator=generator, device=rows.device))
        return list(kinds.values())[drawn]()

    def restore(self, rows: Tensor, lengths: Tensor, before: Tensor, written: Tensor) -> Tensor:
        """What the decoder says at each place of a history, by what it has written before that place.

        Args:
            rows: (B, S) what the encoder reads.
            lengths: (B,) of them.
            before: (B, T - 1) the events in front of the last place.
            written: (B,) how many places each has, of T.

        Returns:
            (B, T, d).
        """
        states = self.encoder(rows, lengths)  # (B, S, d)
        mask = padding_mask(present_tokens(lengths, rows.shape[1]))  # (B, 1, 1, S)
        x = self.encoder.embed(functional.pad(before, (1, 0), value=self.n_items), written)  # (B, T, d)
        for block in self.decoder:
            x = block(x, states, mask)  # (B, T, d)
        return self.decoder_norm(x)  # (B, T, d)

    def prompt(self, items: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """What the encoder reads: the history as it is."""
        return items, lengths

    @torch.no_grad()
    @in_float32()
    def encode(self, histories: Sequence[Tensor | Sequence[int]]) -> Tensor:
        """A person's vector: what the decoder would write behind the whole history.

        Args:
            histories: B lists or tensors of item indices, each oldest first. Only the most recent
                ``max_length`` events are read; without events the vector is zero.

        Returns:
            (B, d) float32 on the histories' device; for lists of numbers, on the model's. Its products with
            the items' vectors are the scores.

        Raises:
            NotFittedError: before ``fit``.
            TypeError, ValueError, IndexError: histories that are no lists of known items.
        """
        self._check_fitted()
        items, lengths = check_histories(histories, self.n_items, self.device)  # (E,), (B,)
        return self._ends(items.to(self.device), lengths.to(self.device)).to(items.device, torch.float32)

    def _ends(self, items: Tensor, lengths: Tensor) -> Tensor:
        """What the decoder says behind histories that stand one after another, (E,), (B,): (B, d)."""
        read = lengths.clamp(max=self.max_length)  # (B,)
        starts = lengths.cumsum(0) - read  # (B,)
        ends = self.encoder.item_embedding.weight.new_zeros(len(read), self.dim)  # (B, d)
        known = read.nonzero().squeeze(1)  # (K,) the histories that are not empty
        for batch in by_length(read[known], _EVENTS_AT_ONCE):
            chosen = known[batch]  # (b,)
            n = read[chosen]  # (b,)
            rows = rows_of(items, starts[chosen], n)  # (b, T)
            said = self.restore(rows, n, rows, n + 1)  # (b, T + 1, d)
            ends[chosen] = said[torch.arange(len(n), device=n.device), n]  # (b, d)
        return ends

    def _score_sequences(self, items: Tensor, lengths: Tensor) -> Tensor:
        vectors = self.encoder.item_embedding.weight[: self.n_items]  # (n_items, d)
        scores = (self._ends(items, lengths) @ vectors.mT).to(self.log_popularity.dtype)  # (B, n_items)
        return torch.where(lengths[:, None] > 0, scores, self.log_popularity)  # (B, n_items)
