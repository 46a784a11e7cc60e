"""Items in their order to vectors: the transformer that SASRec and BERT4Rec share."""

import math

import torch
from torch import Tensor, nn

from recsys_lib.attention import BlockStack, padding_mask, present_tokens

__all__ = ["SequenceEncoder"]


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
        self.blocks = BlockStack(n_layers, dim, n_heads, dropout=dropout, attention_dropout=0.0)
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
        x = self.embed(items, lengths)  # (B, T, d)
        return self.norm(self.blocks(x, self._mask(items, lengths), self.causal))  # (B, T, d)

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

    def _mask(self, items: Tensor, lengths: Tensor) -> Tensor | None:
        """The mask of padding, where one is needed: (B, 1, 1, T)."""
        return None if self.causal else padding_mask(present_tokens(lengths, items.shape[1]))
