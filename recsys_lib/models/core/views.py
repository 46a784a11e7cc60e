"""Other views of a history: cropped, masked, reordered, thinned. What a contrastive loss holds to be one.

All take rows (B, T) int64 of items, oldest first, with their padding at the end, and lengths (B,) int64, one
or more; and return rows of the same width and their lengths. What stands at padding means nothing.

Source: Xie et al. 2022, "Contrastive Learning for Sequential Recommendation", section III.C (crop, mask,
reorder); dropping items as Wu et al. 2020, "CLEAR: Contrastive Learning for Sentence Representation", deletes
words.
"""

import torch
from torch import Tensor

from recsys_lib.attention import present_tokens

__all__ = ["cropped", "masked", "reordered", "thinned"]


def cropped(rows: Tensor, lengths: Tensor, share: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """A stretch of each history, from a random place: ``share`` of its events, at least one."""
    size = (share * lengths).long().clamp(min=1)  # (B,)
    start = _start(lengths, size, generator)  # (B,)
    place = start[:, None] + torch.arange(rows.shape[1], device=rows.device)  # (B, T)
    return rows.gather(1, place.clamp(max=rows.shape[1] - 1)), size


def masked(
    rows: Tensor, lengths: Tensor, share: float, mask: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Each event is hidden behind the token ``mask`` with probability ``share``."""
    draw = torch.rand(rows.shape, generator=generator, device=rows.device)  # (B, T)
    return rows.masked_fill((draw < share) & present_tokens(lengths, rows.shape[1]), mask), lengths


def reordered(
    rows: Tensor, lengths: Tensor, share: float, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """A stretch of each history, ``share`` of its events from a random place on, in random order."""
    size = (share * lengths).long().clamp(min=1)  # (B,)
    start = _start(lengths, size, generator)[:, None]  # (B, 1)
    place = torch.arange(rows.shape[1], device=rows.device).expand(rows.shape)  # (B, T)
    inside = (place >= start) & (place < start + size[:, None])  # (B, T)
    draw = torch.rand(rows.shape, generator=generator, device=rows.device)  # (B, T)
    # Inside, a random key between the stretch's first place and its last; outside, the place itself.
    key = torch.where(inside, start + draw * size[:, None], place.to(draw.dtype))  # (B, T)
    # A key that rounding lifts to the place behind the stretch still comes first: the sort is stable.
    return rows.gather(1, key.argsort(dim=1, stable=True)), lengths


def thinned(rows: Tensor, lengths: Tensor, share: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Each event is left out with probability ``share``; one always stays."""
    there = present_tokens(lengths, rows.shape[1])  # (B, T)
    draw = torch.rand(rows.shape, generator=generator, device=rows.device).masked_fill(~there, -1.0)  # (B, T)
    kept = ((draw >= share) | (draw == draw.amax(dim=1, keepdim=True))) & there  # (B, T)
    # Sorted by whether they are left out, what is kept comes first, in its order.
    return rows.gather(1, (~kept).to(torch.int8).argsort(dim=1, stable=True)), kept.sum(dim=1)


def _start(lengths: Tensor, size: Tensor, generator: torch.Generator) -> Tensor:
    """Where stretches of these sizes (B,) begin in rows of these lengths (B,): (B,) int64."""
    draw = torch.rand(len(lengths), generator=generator, device=lengths.device)  # (B,)
    return (draw * (lengths - size + 1)).long().minimum(lengths - size)
