"""From the vectors of a text's tokens to one vector a text."""

from typing import Literal

import torch
from torch import Tensor

__all__ = ["Pooling", "check_pooling", "pool"]

Pooling = Literal["mean", "cls", "last"]


def pool(hidden: Tensor, present: Tensor, how: Pooling = "mean") -> Tensor:
    """One vector a text from the vectors of its tokens. Padding may be on either side.

    Args:
        hidden: (B, T, d) what the encoder gave.
        present: (B, T) True or 1 at a token, False or 0 at padding.
        how: "mean" of the tokens, special ones included; "cls", the first token; "last", the last one.

    Returns:
        (B, d), float32 or wider. A row without tokens is zero.
    """
    check_pooling(how)
    if present.shape != hidden.shape[:2]:
        raise ValueError(f"present has the shape {tuple(present.shape)}, hidden {tuple(hidden.shape)}")
    present = present.bool()
    hidden = hidden.to(torch.promote_types(hidden.dtype, torch.float32))
    hidden = hidden.masked_fill(~present.unsqueeze(-1), 0.0)  # (B, T, d)
    if how == "mean":
        return hidden.sum(1) / present.sum(1, keepdim=True).clamp(min=1)  # (B, d)
    order = torch.arange(1, present.shape[1] + 1, device=present.device)  # (T,) 1, 2, ...
    if how == "cls":
        order = order.flip(0)
    chosen = (order * present).argmax(1)  # (B,)
    return hidden.take_along_dim(chosen[:, None, None], 1).squeeze(1)  # (B, d)


def check_pooling(how: str) -> None:
    """Refuse what is no way of pooling.

    Raises:
        ValueError: It is none of those of ``Pooling``.
    """
    if how not in ("mean", "cls", "last"):
        raise ValueError(f"pooling={how!r} is not one of 'mean', 'cls', 'last'")
