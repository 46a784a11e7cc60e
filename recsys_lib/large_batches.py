"""Batches beyond one memory: vectors without what made them, and vectors made by several processes.

A contrastive loss needs all vectors of a batch at once, for every row is a negative of the others. It does
not need what the encoder computed on the way to them all at once, nor in one place.

Several processes are those of ``torch.distributed``, as ``torchrun`` or ``accelerate launch`` start them; the
program calls ``torch.distributed.init_process_group`` (or makes an ``Accelerator``) before ``fit``. All
processes then run the same program on the same data and seed, and end with the same model.
"""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

__all__ = ["Gathered", "any_process", "average_gradients", "in_chunks", "in_shares", "n_processes"]


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
    return torch.cat([checkpoint(encode, *part, use_reentrant=False) for part in parts])


def n_processes() -> int:
    """How many processes work together; 1 where ``torch.distributed`` was not started."""
    if not (distributed.is_available() and distributed.is_initialized()):
        return 1
    return distributed.get_world_size()


def in_shares(encode: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
    """Encodes a batch together: each process its share of the rows, and all get all vectors.

    So every row meets the whole batch as its negatives, of which a process encodes, and keeps activations
    for, a part. The loss is then computed on every process from the same vectors. Each gets the
    gradients of the vectors that it made from all of them (``Gathered``), so that the mean of the processes'
    gradients (``average_gradients``, which ``training.train`` calls) is the gradient of one process with the
    whole batch.

    One process, fewer rows than processes, or no gradient wanted: everything is encoded here, without a word
    to the others.

    Args:
        encode: makes vectors (b, d) of its arguments, each row from its own row.
        *inputs: (B, ...) each, the same on all processes.

    Returns:
        (B, d), the same on all processes.
    """
    n, world = len(inputs[0]), n_processes()
    if world == 1 or n < world or not torch.is_grad_enabled():
        return encode(*inputs)
    sizes = [len(part) for part in torch.empty(n, 0, device="cpu").tensor_split(world)]
    vectors = encode(*(x.tensor_split(world)[distributed.get_rank()] for x in inputs))  # (b, d)
    room = functional.pad(vectors, (0, 0) * (vectors.ndim - 1) + (0, max(sizes) - len(vectors)))
    rooms = Gathered.apply(room).split(max(sizes))  # what is sent must be of one size
    return torch.cat([part[:size] for part, size in zip(rooms, sizes, strict=True)])  # (B, d)


class Gathered(torch.autograd.Function):
    """The rows of all processes; going back, the sum of what all processes want of this one's rows."""

    @staticmethod
    def forward(ctx: Any, own: Tensor) -> Tensor:
        """Takes (b, ...), of one shape on all processes; gives (W b, ...)."""
        rooms = [torch.empty_like(own) for _ in range(n_processes())]
        distributed.all_gather(rooms, own.contiguous())
        return torch.cat(rooms)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        """Takes (W b, ...) of this process's loss; gives (b, ...) of the sum of all losses."""
        total = grad.clone(memory_format=torch.contiguous_format)
        distributed.all_reduce(total)
        return total.chunk(n_processes())[distributed.get_rank()]


@torch.no_grad()
def average_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Replaces each gradient by its mean over the processes; with one process it does nothing.

    Args:
        parameters: the same on all processes, and on each with a gradient or without one alike.
    """
    world = n_processes()
    if world == 1:
        return
    for parameter in parameters:
        if parameter.grad is not None:
            distributed.all_reduce(parameter.grad)
            parameter.grad /= world


def any_process(here: bool, device: torch.device) -> bool:
    """Whether something holds on any of the processes, so that all of them take the same turn.

    Args:
        here: whether it holds on this one.
        device: where processes talk to each other.
    """
    if n_processes() == 1:
        return here
    votes = torch.tensor(float(here), device=device)  # ()
    distributed.all_reduce(votes)
    return bool(votes > 0)
