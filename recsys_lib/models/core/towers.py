"""Towers: what makes a vector of an item, and what makes one of a user.

An item is its number, its text, or both. A user is a number, or a history of items. Each tower is a module of
its own, so that any of one kind goes with any of the other.

Shapes: N items, B users, E events, d features of a vector, D features of a text's vector, T tokens or events
in a row.
"""

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from recsys_lib.data.ragged import offsets, row_of_each, within_rows
from recsys_lib.models.core.sequence_encoder import SequenceEncoder
from recsys_lib.models.core.windows import by_length, rows_of
from recsys_lib.text import pool
from recsys_lib.text.pooling import Pooling

__all__ = ["EncoderTower", "HistoryAttention", "HistoryMean", "IdTextTower", "IdTower", "TextTower"]

_EVENTS_AT_ONCE = 2**13  # read by attention in one go


class IdTower(nn.Module):
    """One learned vector for each number, of an item or of a user. It reads no text.

    Args:
        n: how many numbers there are.
        dim: d, length of the vectors.
        init_scale: their standard deviation at the start.
    """

    def __init__(self, n: int, dim: int, init_scale: float) -> None:
        super().__init__()
        self.table = nn.Embedding(n, dim)
        nn.init.normal_(self.table.weight, std=init_scale)

    def forward(self, ids: Tensor, text: Tensor | None = None) -> Tensor:
        """The vectors of the numbers (N,): (N, d)."""
        return self.table(ids)

    @torch.no_grad()
    def forget(self, which: Tensor) -> None:
        """Sets the vectors of some numbers, (n,) bool, to zero: what nothing is known of points nowhere."""
        self.table.weight[which] = 0.0


class TextTower(nn.Module):
    """A map of the vector that a frozen encoder makes of an item's text.

    Args:
        text_dim: D, length of the text's vector.
        dim: d, length of the item's.
        hidden: features of a layer between the two; 0 makes the map linear.
    """

    def __init__(self, text_dim: int, dim: int, hidden: int) -> None:
        super().__init__()
        self.projection = (
            nn.Sequential(nn.Linear(text_dim, hidden), nn.GELU(), nn.Linear(hidden, dim))
            if hidden
            else nn.Linear(text_dim, dim)
        )

    def forward(self, ids: Tensor | None, text: Tensor) -> Tensor:
        """Maps text (N, D) to (N, d); the numbers are not read."""
        return self.projection(text.to(next(self.projection.parameters()).dtype))


class IdTextTower(nn.Module):
    """The sum of both: what an item's text says, and what its number has learned beyond that.

    Args:
        ids: of the numbers.
        text: of the texts.
    """

    def __init__(self, ids: IdTower, text: TextTower) -> None:
        super().__init__()
        self.ids, self.text = ids, text

    def forward(self, ids: Tensor | None, text: Tensor) -> Tensor:
        """Takes numbers (N,) and text (N, D); without numbers the items are new, and their text is all."""
        vectors = self.text(None, text)  # (N, d)
        return vectors if ids is None else vectors + self.ids(ids)


class EncoderTower(nn.Module):
    """A text encoder that learns along, and a linear map of what it makes of an item's tokens.

    Args:
        encoder: a ``transformers`` model.
        pooling: how the tokens of a text become one vector.
        dim: d, length of the item's vector.
    """

    def __init__(self, encoder: Any, pooling: Pooling, dim: int) -> None:
        super().__init__()
        self.encoder, self.pooling = encoder.train(), pooling
        self.projection = nn.Linear(encoder.config.hidden_size, dim)

    def forward(self, ids: Tensor | None, text: Tensor) -> Tensor:
        """Maps text (N, T) int64, token numbers with -1 for padding, to (N, d)."""
        present = text >= 0  # (N, T)
        length = max(1, int(present.sum(dim=1).max())) if len(text) else 1
        present, text = present[:, :length], text[:, :length]
        hidden = self.encoder(text.clamp(min=0), attention_mask=present.long()).last_hidden_state  # (N, T, D)
        vectors = pool(hidden, present, self.pooling)  # (N, D)
        vectors = functional.normalize(vectors, dim=1) * math.sqrt(vectors.shape[1])  # features of size 1
        return self.projection(vectors.to(self.projection.weight.dtype))


class HistoryMean(nn.Module):
    """The mean of the vectors of a history's items.

    Args:
        source: the tower that makes them, of this mean alone: an item may say one thing of the one who chose
            it, and another of who will choose it next.
        n_items: size of the catalog.
    """

    def __init__(self, source: IdTower | TextTower, n_items: int) -> None:
        super().__init__()
        self.source, self.n_items = source, n_items

    def forward(self, items: Tensor, starts: Tensor, lengths: Tensor, text: Tensor | None = None) -> Tensor:
        """Reads stretches of ``items``.

        Args:
            items: (E,) int64.
            starts: (B,) int64, where each history begins.
            lengths: (B,) int64, one or more.
            text: (n_items, D) vectors of the texts of all items, where the source reads them.

        Returns:
            (B, d)
        """
        crow = offsets(lengths)  # (B + 1,)
        read = items[starts[row_of_each(crow)] + within_rows(crow)]  # (E',)
        # Each item is mapped once, however many histories have it.
        if len(read) < self.n_items:
            needed, place = read.unique(return_inverse=True)  # (N,), (E',)
        else:  # sorting what was read would cost more than mapping the whole catalog
            needed, place = torch.arange(self.n_items, device=items.device), read
        vectors = self.source(needed, None if text is None else text[needed])  # (N, d)
        return functional.embedding_bag(place, vectors, crow, mode="mean", include_last_offset=True)


class HistoryAttention(nn.Module):
    """What a transformer makes of a history, at its last event; the encoder of SASRec.

    Args:
        n_items: size of the catalog.
        max_length: the longest history.
        **options: of ``SequenceEncoder``.
    """

    def __init__(self, n_items: int, max_length: int, **options: Any) -> None:
        super().__init__()
        self.encoder = SequenceEncoder(n_items, max_length=max_length, causal=True, **options)

    def forward(self, items: Tensor, starts: Tensor, lengths: Tensor, text: Tensor | None = None) -> Tensor:
        """Reads stretches of at most ``max_length`` items, oldest first; arguments as for ``HistoryMean``."""
        table = self.encoder.item_embedding.weight
        vectors = table.new_zeros(len(starts), table.shape[1])  # (B, d)
        for batch in by_length(lengths, _EVENTS_AT_ONCE):
            rows = rows_of(items, starts[batch], lengths[batch])  # (b, T)
            hidden = self.encoder(rows, lengths[batch])  # (b, T, d)
            ends = torch.arange(len(rows), device=rows.device), lengths[batch] - 1
            vectors = vectors.index_put((batch,), hidden[ends])  # (B, d)
        return vectors
