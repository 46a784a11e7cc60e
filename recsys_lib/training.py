"""The one training loop, and its parts: batches, the log, early stopping."""

import copy
import math
import signal
import threading
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from recsys_lib.large_batches import any_process, average_gradients
from recsys_lib.progress import progress_bar

__all__ = ["EarlyStopping", "Training", "Validation", "batches", "passes", "train"]

Losses = Callable[[], Iterable[tuple[Tensor, int]]]
"""One epoch: for each batch its loss (), and the number of examples that it is the mean of."""


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
    if n:  # splitting nothing gives one empty part, whose mean is no number
        yield from order.split(batch_size)


class EarlyStopping:
    """Watches a figure that should grow, keeps the best state, says when to stop.

    Args:
        patience: checks without improvement after which to stop.

    Attributes:
        best: the best value so far; -inf before the first.
        best_step: the number given with it.
    """

    def __init__(self, patience: int = 5) -> None:
        if patience < 1:
            raise ValueError(f"patience must be 1 or more, got {patience}")
        self.patience = patience
        self.best, self.best_step, self.waited = -float("inf"), 0, 0
        self._state: dict[str, Any] | None = None

    def step(self, value: float, step: int, module: nn.Module) -> bool:
        """Takes one check's value; returns True when training should stop. NaN never counts as better."""
        if value > self.best:
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


@dataclass(frozen=True)
class Validation:
    """A figure that should grow, and when it is looked at.

    Attributes:
        name: of the figure, in the log.
        measure: gives it.
        every: epochs between two looks; the last epoch is always looked at.
        patience: looks without improvement before training stops.
    """

    name: str
    measure: Callable[[], float]
    every: int
    patience: int


@dataclass(frozen=True)
class Training:
    """What ``train`` did.

    Attributes:
        log: one dictionary an epoch: its number, the mean loss, and the validation's figure where it was
            looked at. The last one may be of an epoch that was cut short.
        best_epoch: the epoch whose state was kept.
        stopped_by: ``"epochs"``, ``"patience"``, ``"time"``, ``"interrupt"``, or ``"nothing to learn"``.
    """

    log: list[dict[str, float]]
    best_epoch: int
    stopped_by: str


def train(
    module: nn.Module,
    losses: Losses,
    *,
    epochs: int,
    learning_rate: float,
    slower: Iterable[tuple[nn.Module, float]] = (),
    validation: Validation | None = None,
    max_seconds: float | None = None,
    name: str = "training",
    progress: bool = True,
) -> Training:
    """Minimizes a loss by Adam, epoch by epoch, and keeps the best state.

    Ctrl-C ends training as ``max_seconds`` does: after the step under way, with what was learned so far.

    Where several processes train together (``large_batches``), each step takes the mean of their gradients.

    Args:
        module: whose parameters are trained.
        losses: called once an epoch; its losses are taken one at a time, each after the step before.
        epochs: passes, at most.
        learning_rate: of Adam (Kingma and Ba 2015).
        slower: parts of the module with a learning rate of their own, such as one that was trained before.
        validation: with it training stops early, and the state of the best look is restored.
        max_seconds: when to stop; a last look is taken then. None sets no limit.
        name: of what is trained, for the bar and the errors.
        progress: show a bar.

    Returns:
        A ``Training``. Without examples its log is empty, and there is a warning.

    Raises:
        FloatingPointError: the loss or a parameter is no longer finite.
        KeyboardInterrupt: Ctrl-C before the first step was done.
    """
    parameters = list(module.parameters())
    device = parameters[0].device
    parts = [(list(part.parameters()), rate) for part, rate in slower]
    apart = {id(parameter) for part, _ in parts for parameter in part}
    parts.append(([p for p in parameters if id(p) not in apart], learning_rate))
    groups = [{"params": part, "lr": rate} for part, rate in parts]
    optimizer = torch.optim.Adam(groups, fused=device.type != "mps")
    stopping = EarlyStopping(1 if validation is None else validation.patience)
    deadline = math.inf if max_seconds is None else time.monotonic() + max_seconds
    log: list[dict[str, float]] = []
    stopped_by, epoch = "epochs", 0
    for epoch in progress_bar(range(1, epochs + 1), name, enabled=progress):
        total, n_examples = torch.zeros((), device=device), 0
        try:
            for loss, n in losses():
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                average_gradients(parameters)
                optimizer.step()
                total += loss.detach() * n
                n_examples += n
                if max_seconds is not None and any_process(time.monotonic() > deadline, device):
                    stopped_by = "time"
                    break
        except KeyboardInterrupt:
            if not (log or n_examples):
                raise  # there is nothing to keep
            stopped_by = "interrupt"
        if n_examples:
            entry = {"epoch": float(epoch), "loss": float(total) / n_examples}
            log.append(entry)
            _refuse_divergence(entry["loss"], parameters, epoch, name, learning_rate)
        elif stopped_by == "epochs":
            warnings.warn(
                f"{name}: there is nothing to learn from, so the parameters keep their first values; "
                f"is there a user who does not have every item?",
                stacklevel=2,
            )
            return Training([], 0, "nothing to learn")
        if stopped_by == "interrupt":
            break
        last = epoch == epochs or stopped_by == "time"
        if validation is not None and (last or epoch % validation.every == 0):
            try:
                entry[validation.name] = validation.measure()
            except KeyboardInterrupt:
                stopped_by = "interrupt"
                break
            if stopping.step(entry[validation.name], epoch, module):
                stopped_by = "patience"
        if stopped_by != "epochs":
            break
    if stopped_by in ("time", "interrupt"):
        warnings.warn(
            f"{name}: stopped by {_STOPPED[stopped_by]} in epoch {epoch} of {epochs}; the best is kept",
            stacklevel=2,
        )
    if stopping.best_step:
        stopping.restore(module)
        return Training(log, stopping.best_step, stopped_by)
    if validation is not None and stopped_by != "interrupt":
        stopping.restore(module)  # raises: no look gave a finite figure
    return Training(log, int(log[-1]["epoch"]), stopped_by)


_STOPPED = {"time": "max_seconds", "interrupt": "Ctrl-C"}


def passes(epochs: int, name: str, *, max_seconds: float | None, progress: bool) -> Iterator[int]:
    """The numbers 1 to ``epochs``, for learning that is not gradient descent; ends early when time is up.

    Ctrl-C during the second pass or a later one ends it as well, when the pass under way is done. During the
    first there is nothing to keep yet, and it is passed on.

    Args:
        epochs: passes, at most.
        name: of what is learned, for the bar and the warning.
        max_seconds: no further pass begins after this time; None sets no limit.
        progress: show a bar.
    """
    deadline = math.inf if max_seconds is None else time.monotonic() + max_seconds
    pressed: list[int] = []
    # Only the main thread hears of Ctrl-C, and only it may change who listens.
    listens = threading.current_thread() is threading.main_thread()
    former = signal.getsignal(signal.SIGINT) if listens else None
    try:
        for epoch in progress_bar(range(1, epochs + 1), name, enabled=progress):
            if listens and epoch == 2 and callable(former):
                signal.signal(signal.SIGINT, lambda number, frame: pressed.append(number))
            yield epoch
            if (time.monotonic() > deadline or pressed) and epoch < epochs:
                reason = _STOPPED["interrupt" if pressed else "time"]
                warnings.warn(
                    f"{name}: stopped by {reason} after epoch {epoch} of {epochs}; what it had is kept",
                    stacklevel=2,
                )
                return
    finally:
        if listens and callable(former):
            signal.signal(signal.SIGINT, former)


def _refuse_divergence(
    loss: float, parameters: list[nn.Parameter], epoch: int, name: str, learning_rate: float
) -> None:
    """A loss is measured before its step, so the parameters after the last one are looked at as well."""
    if math.isfinite(loss) and all(bool(p.detach().isfinite().all()) for p in parameters):
        return
    what = f"the loss is {loss}" if not math.isfinite(loss) else "a parameter is not finite"
    raise FloatingPointError(
        f"{name}: {what} in epoch {epoch}: training has diverged; lower learning_rate={learning_rate:g}"
    )
