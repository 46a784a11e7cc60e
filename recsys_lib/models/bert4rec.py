"""BERT4Rec: events of a history from all the others, by a transformer that looks both ways."""

import torch
from torch import Tensor
from torch.nn import functional

from recsys_lib.attention import present_tokens
from recsys_lib.models.core.next_item import NextItemRecommender
from recsys_lib.models.core.options import option

__all__ = ["BERT4Rec"]


class BERT4Rec(NextItemRecommender):
    """A cloze test: looks both ways, and fills in events that were hidden behind a mask.

    In training each event of a window is masked with probability ``mask_rate``. A share ``next_rate`` of the
    windows is instead cut off at a random place, and the last event before the cut is masked alone. To
    recommend, a mask is put behind the history: what the model would fill in is the next item. The cut
    windows ask just that; without them, the end of a history of unusual length is a place where little was
    learned.

    From the paper: the bidirectional transformer, the cloze task, one table of vectors for input and output.
    Unlike the paper: the body is that of ``SASRec`` (normalized before the sublayers; no extra layer and no
    item bias before the output), so that the two can be compared. ``NextItemRecommender`` says what they
    share.

    Source: Sun et al. 2019, "BERT4Rec: Sequential Recommendation with Bidirectional Encoder Representations
    from Transformer".
    """

    causal = False

    mask_rate: float = option(
        "share of the events that are masked in training", default=0.2, above=0, below=1
    )
    next_rate: float = option(
        "share of the windows that ask for a next event", default=0.5, at_least=0, at_most=1
    )
    dropout: float = option(default=0.1)
    epochs: int = option(default=100)
    check_every: int = option(default=5)

    def questions(
        self, windows: Tensor, lengths: Tensor, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """Behind every mask: what stood here?"""
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
        hidden = self.encoder(windows.masked_fill(asked, self.n_items), lengths, asked=asked)  # (N, d)
        return hidden, windows[asked]

    def prompt(self, items: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """The history with a mask behind it."""
        room = functional.pad(items, (0, 1))  # (B, T + 1)
        return room.scatter(1, lengths[:, None], self.n_items), lengths + 1
