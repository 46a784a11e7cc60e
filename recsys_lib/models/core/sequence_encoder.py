"""Items in their order to vectors: the transformer that SASRec and BERT4Rec share."""

import math
from collections.abc import Iterable
from typing import cast

import torch
from torch import Tensor, nn

from recsys_lib.attention import BlockStack, EncoderBlock, padding_mask, present_tokens

__all__ = ["QuickDropout", "SequenceEncoder"]

_LEVELS = 2**16  # shares that 16 random bits can tell apart


class QuickDropout(nn.Dropout):
    """``nn.Dropout`` that on a CPU draws 16 random bits for each entry, where torch draws a number.

    Torch's way takes a sixth of all training there, this one a third of that. The share is rounded to a
    multiple of 2**-16, and what is kept is scaled by just what makes up for it. Other devices draw as torch
    does.
    """

    def forward(self, x: Tensor) -> Tensor:
        """(...) to (...)."""
        if not self.training or not self.p or x.device.type != "cpu":
            return super().forward(x)
        dropped = min(round(self.p * _LEVELS), _LEVELS - 1)
        words = torch.empty(-(-x.numel() // 4), dtype=torch.int64, device="cpu")  # 64 bits each
        bits = words.random_(-(2**63), None).view(torch.int16)[: x.numel()].view(x.shape)  # (...)
        kept = (bits >= dropped - _LEVELS // 2).to(x.dtype)  # (...) zeros and ones
        return x * kept.mul_(_LEVELS / (_LEVELS - dropped))  # (...)


class SequenceEncoder(nn.Module):
    """Items in their order to one vector an event.

        x_t = dropout(sqrt(d) (E[item_t] + P[number of events after t]))
        h   = LayerNorm(block_L(... block_1(x)))

    Positions are counted from the end. The most recent event has place 0 in a history of 5 events and in one
    of 100, and with whatever else is in the batch. Padding stands at the end of a row: a causal event never
    sees it, so that no mask is needed; for the other kind it is masked.

    Vectors of items and positions start from a normal distribution of standard deviation 0.02; linear maps as
    Glorot and Bengio 2010 propose, since 0.02 suits a width of 768 and leaves attention at this one nearly
    uniform for long.

    Args:
        n_tokens: items, and whatever else has a vector.
        dim: d, features of an event.
        n_layers: L, number of blocks (``attention.BlockStack``, normalized before the sublayers).
        n_heads: attention heads in each block.
        max_length: the longest row.
        dropout: share dropped in training: of the embeddings and of each sublayer's output.
        positions: whether events have positions at all.
        causal: whether an event sees only itself and what came before it.
        quick_dropout: whether what is dropped is drawn by ``QuickDropout``.
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
        quick_dropout: bool = False,
    ) -> None:
        super().__init__()
        self.causal = causal
        self.item_embedding = nn.Embedding(n_tokens, dim)
        self.position_embedding: nn.Embedding | None = nn.Embedding(max_length, dim) if positions else None
        # Dropped attention weights gain nothing here, and cost the fused kernel.
        self.blocks = BlockStack(n_layers, dim, n_heads, dropout=dropout, attention_dropout=0.0)
        self.norm = nn.LayerNorm(dim)
        self.dropout = nn.Dropout(dropout)
        if quick_dropout:
            self.dropout = QuickDropout(dropout)
            for block in cast(Iterable[EncoderBlock], self.blocks):
                block.dropout = self.dropout
        for module in self.modules():
            if isinstance(module, nn.Embedding):
                nn.init.normal_(module.weight, std=0.02)
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)

    def forward(self, items: Tensor, lengths: Tensor, asked: Tensor | None = None) -> Tensor:
        """Encodes a batch of rows.

        Args:
            items: (B, T) int64, oldest first; padding, any valid number, at the end of a row.
            lengths: (B,) int64, how many events each row has.
            asked: (B, T) bool, the events whose vectors are wanted; all without it.

        Returns:
            (B, T, d); what stands at padding means nothing. With ``asked`` the N vectors that it names,
            (N, d), row by row.
        """
        x, mask = self.embed(items, lengths), self._mask(items, lengths)  # (B, T, d)
        if asked is None:
            return self.norm(self.blocks(x, mask, self.causal))  # (B, T, d)
        *before, last = cast(Iterable[EncoderBlock], self.blocks)
        for block in before:
            x = block(x, mask, self.causal)  # (B, T, d)
        return self.norm(self._finish(last, x, mask, asked))  # (N, d)

    def embed(self, items: Tensor, lengths: Tensor) -> Tensor:
        """What goes into the first block: each item's vector plus that of its place, (B, T, d)."""
        x = self.item_embedding(items)  # (B, T, d)
        if self.position_embedding is not None:
            place = torch.arange(items.shape[1], device=items.device)  # (T,)
            later = (lengths[:, None] - 1 - place).clamp(min=0)  # (B, T) events after this one
            x = x + self.position_embedding(later)  # (B, T, d)
        return self.dropout(x * math.sqrt(x.shape[-1]))  # (B, T, d)

    def weights(self, items: Tensor, lengths: Tensor) -> Tensor:
        """Who looks at whom, (L, B, H, T, T), for the same arguments as :meth:`forward`."""
        return self.blocks.trace(self.embed(items, lengths), self._mask(items, lengths), self.causal).weights

    def _finish(self, block: EncoderBlock, x: Tensor, mask: Tensor | None, asked: Tensor) -> Tensor:
        """The last block, which nobody looks at any more: it thinks at the events asked for alone, (N, d).

        What is dropped is drawn for all events, so that a seed gives the same model either way.
        """
        x = x + block.dropout(block.attention(block.attention_norm(x), None, mask, self.causal))  # (B, T, d)
        kept = block.dropout(torch.ones_like(x))[asked] if self.training else 1.0  # (N, d)
        x = x[asked]  # (N, d)
        return x + kept * block.feed_forward(block.feed_forward_norm(x))  # (N, d)

    def _mask(self, items: Tensor, lengths: Tensor) -> Tensor | None:
        """The mask of padding, where one is needed: (B, 1, 1, T)."""
        return None if self.causal else padding_mask(present_tokens(lengths, items.shape[1]))
