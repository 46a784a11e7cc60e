"""Histories with something wrong in them, for a model to restore: deletion, permutation, infilling.

All take rows (B, T) int64 of items, oldest first, with their padding at the end, and lengths (B,) int64, one
or more; and return rows of the same width and their lengths. What stands at padding means nothing. The first
two are what ``views`` calls thinning and reordering: a view of a history and a damaged history are the same
thing, put to another use.

Source: Lewis et al. 2020, "BART: Denoising Sequence-to-Sequence Pre-training for Natural Language Generation,
Translation, and Comprehension", section 2.2.
"""

import math

import torch
from torch import Tensor

from recsys_lib.attention import present_tokens
from recsys_lib.models.core.views import reordered as permuted
from recsys_lib.models.core.views import thinned as deleted

__all__ = ["cut_off", "deleted", "infilled", "permuted"]


def infilled(
    rows: Tensor, lengths: Tensor, share: float, span: float, mask: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Spans of events give way to one token ``mask`` each, so that nobody tells how many are missing.

    A span has a Poisson distributed number of events, one at least: the paper also puts masks where nothing
    is missing, which would make rows longer. Spans that touch are one.

    Args:
        rows: (B, T) int64.
        lengths: (B,) int64.
        share: of the events that are missing, on average; a little less near the beginning of a row.
        span: mean of the Poisson distribution, above 0.
        mask: the token.
        generator: on the rows' device.
    """
    mean = span + math.exp(-span)  # events of a span: a span of none counts as one of one
    there = present_tokens(lengths, rows.shape[1])  # (B, T)
    begins = torch.rand(rows.shape, generator=generator, device=rows.device) < -math.log1p(-share) / mean
    size = torch.full(rows.shape, float(span), device=rows.device)  # (B, T)
    size = torch.poisson(size, generator=generator).long().clamp(min=1)  # (B, T)
    place = torch.arange(rows.shape[1], device=rows.device)  # (T,)
    ends = torch.where(begins, place + size, 0).cummax(dim=1).values  # (B, T) of the spans begun so far
    missing = (ends > place) & there  # (B, T)
    first = missing.clone()  # (B, T) a missing event with none before it
    first[:, 1:] &= ~missing[:, :-1]
    kept = (~missing | first) & there  # (B, T)
    order = (~kept).to(torch.int8).argsort(dim=1, stable=True)  # (B, T) what is kept comes first
    return rows.masked_fill(first, mask).gather(1, order), kept.sum(dim=1)


def cut_off(lengths: Tensor, share: float, generator: torch.Generator) -> Tensor:
    """How much of each history is left when a ``share`` of them lose their ends: (B,) int64, one or more.

    Where a history ends is drawn evenly; the others keep all of their ``lengths`` (B,).
    """
    cut = torch.rand(len(lengths), generator=generator, device=lengths.device) < share  # (B,)
    draw = torch.rand(len(lengths), generator=generator, device=lengths.device)  # (B,)
    left = (draw * (lengths - 1)).long().clamp(min=0) + 1  # (B,) one to all but one
    return torch.where(cut, left, lengths)
