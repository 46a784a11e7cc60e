"""Batches beyond memory: the vectors of a batch, without holding what made them.

A contrastive loss needs all vectors of a batch at once, for every row is a negative of the others. It does
not need what the encoder computed on the way to them all at once.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

__all__ = ["in_chunks"]


def in_chunks(encode: Callable[..., Tensor], *inputs: Tensor, chunk: int) -> Tensor:
    """Gradient caching: encodes rows a chunk at a time, twice, and holds one chunk's activations at a time.

    The first pass keeps nothing but the vectors. The loss is computed from all of them, and its gradient
    with respect to each vector is at hand. Then each chunk is encoded again, on the same random numbers, and
    handed the gradients of its own vectors. That is the gradient of the whole batch, by the chain rule and
    not by approximation, for one more forward pass.

    The two passes are ``torch.utils.checkpoint`` around each chunk; calling ``backward`` on the loss does the
    rest. Only random numbers from torch's global state (those of dropout) are drawn again alike; ``encode``
    must not take any from a generator of its own, nor keep statistics of a batch.

    Args:
        encode: makes vectors (b, d) of its arguments, each row from its own row.
        *inputs: (B, ...) each, cut alike.
        chunk: rows at a time; 0 takes all of them at once, in the plain way.

    Returns:
        (B, d)

    Raises:
        ValueError: a chunk below 0, or inputs of unequal length.

    Source: Gao, Zhang, Han, Callan 2021, "Scaling Deep Contrastive Learning Batch Size under Memory Limited
    Setup", section 3.
    """
    if chunk < 0:
        raise ValueError(f"chunk must be 0 or more, got {chunk}")
    if len({len(x) for x in inputs}) != 1:
        raise ValueError(f"inputs must have one length, got {[len(x) for x in inputs]}")
    if not 0 < chunk < len(inputs[0]):
        return encode(*inputs)
    parts = zip(*(x.split(chunk) for x in inputs), strict=True)
    # Tensors of the split go in as they are; what is closed over by encode is shared by all chunks.
    return torch.cat([checkpoint(encode, *part, use_reentrant=False) for part in parts])
