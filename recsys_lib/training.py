"""What every training loop needs: batches and early stopping."""

import copy
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["EarlyStopping", "batches"]


def batches(n: int, batch_size: int, generator: torch.Generator | None = None) -> Iterator[Tensor]:
    """Index tensors that cover 0..n-1 once, each of ``batch_size`` entries, the last one perhaps shorter.

    Args:
        n: number of examples.
        batch_size: examples in a batch.
        generator: shuffles, and says on which device the indices live; without one the order is 0..n-1, on
            the CPU.

    Yields:
        (b,) int64 indices.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size must be 1 or more, got {batch_size}")
    if generator is None:
        order = torch.arange(n, device="cpu")  # (n,)
    else:
        order = torch.randperm(n, generator=generator, device=generator.device)  # (n,)
    yield from order.split(batch_size)


class EarlyStopping:
    """Watches a figure that should grow, keeps the best state, says when to stop.

    Args:
        patience: checks without improvement after which to stop.
        min_delta: what counts as an improvement.

    Attributes:
        best: the best value so far; -inf before the first.
        best_step: the number given with it.
    """

    def __init__(self, patience: int = 5, min_delta: float = 0.0) -> None:
        if patience < 1:
            raise ValueError(f"patience must be 1 or more, got {patience}")
        self.patience, self.min_delta = patience, min_delta
        self.best, self.best_step, self.waited = -float("inf"), 0, 0
        self._state: dict[str, Any] | None = None

    def step(self, value: float, step: int, module: nn.Module) -> bool:
        """Takes one check's value; returns True when training should stop. NaN never counts as better."""
        if value > self.best + self.min_delta:
            self.best, self.best_step, self.waited = value, step, 0
            # A copy: state_dict() alone would go on changing with the weights.
            self._state = {
                name: copy.deepcopy(tensor.detach()) for name, tensor in module.state_dict().items()
            }
            return False
        self.waited += 1
        return self.waited >= self.patience

    def restore(self, module: nn.Module) -> None:
        """Puts the best state back into the module.

        Raises:
            RuntimeError: no check gave a finite value, so there is no best state.
        """
        if self._state is None:
            raise RuntimeError("no check of the validation figure was above -inf: training has diverged")
        module.load_state_dict(self._state)
