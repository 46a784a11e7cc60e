"""The processes that work together: joining them, and what they tell each other."""

import datetime
import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, distributed

from recsys_lib.large_batches import Gathered, n_processes

__all__ = ["everyones", "gpu_each", "joined_sum", "place", "processes"]


def gpu_each() -> bool:
    """Whether each process that was started on this machine can have a GPU to itself."""
    here = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    return torch.cuda.is_available() and torch.cuda.device_count() >= here


@contextmanager
def processes(timeout: float = 600.0, device: str = "auto") -> Iterator[tuple[int, int]]:
    """Joins the processes that ``torchrun`` or ``accelerate launch`` has started, and leaves them at the end.

    ::

        with processes() as (rank, world):
            model.fit(events)

    They talk by NCCL where each has a GPU, and by Gloo elsewhere. A program that was started alone is one
    process of one, and nothing is joined.

    Args:
        timeout: seconds that one waits for the others before it gives up with an error.
        device: ``"cpu"``, ``"cuda"``, or ``"auto"``, which takes GPUs where each process can have its own
            (``gpu_each``): two processes that share one cannot talk by NCCL.

    Yields:
        The number of this process, from 0, and how many there are.

    Raises:
        ValueError: another device, or ``"cuda"`` with fewer GPUs than processes.
    """
    if device not in ("auto", "cpu", "cuda"):
        raise ValueError(f'device must be "auto", "cpu" or "cuda", got {device!r}')
    if device == "cuda" and not gpu_each():
        raise ValueError(
            f"device='cuda' needs a GPU for each process of this machine, and there are "
            f"{torch.cuda.device_count()}; start fewer processes, or take 'cpu'"
        )
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if world == 1 or distributed.is_initialized():
        yield place()
        return
    gpu = device != "cpu" and gpu_each()
    if gpu:
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    limit = datetime.timedelta(seconds=timeout)
    distributed.init_process_group("nccl" if gpu else "gloo", timeout=limit)
    try:
        yield place()
    finally:
        distributed.destroy_process_group()


def place() -> tuple[int, int]:
    """The number of this process, from 0, and how many there are; 0 of 1 where it is alone."""
    world = n_processes()
    return (distributed.get_rank() if world > 1 else 0), world


def everyones(own: Tensor) -> Tensor:
    """The rows of all processes, one process after another, with their gradients.

    Going back, a process gets for its rows the sum of the gradients from all. So where each process takes
    the mean loss of its own rows against everyone's, the mean of the processes' gradients is the gradient of
    the joined batch.

    Unlike ``large_batches.in_shares``, each process brings rows of its own, and compares these alone with
    everyone's: of W processes each holds 1 / W of the scores, not all of them.

    Args:
        own: (b, ...), of one shape on all processes.

    Returns:
        (W b, ...)
    """
    return own if n_processes() == 1 else Gathered.apply(own)


def joined_sum(value: float, device: torch.device) -> float:
    """The sum of a number over all processes.

    Args:
        value: of this process.
        device: where processes talk to each other.
    """
    if n_processes() == 1:
        return value
    dtype = torch.float32 if device.type == "mps" else torch.float64
    total = torch.tensor(value, dtype=dtype, device=device)  # ()
    distributed.all_reduce(total)
    return float(total)
