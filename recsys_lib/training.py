"""The one training loop, and its parts: batches, steps, the log, early stopping, checkpoints."""

import copy
import math
import pickle
import signal
import threading
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from recsys_lib.files import write_whole
from recsys_lib.large_batches import any_process, average_gradients
from recsys_lib.progress import progress_bar

__all__ = ["Checkpoints", "EarlyStopping", "Steps", "Training", "Validation", "batches", "passes", "train"]

Losses = Callable[..., Iterable[tuple[Tensor, int]]]
"""One epoch: for each batch its loss (), and the number of examples that it is the mean of.

Called without arguments; where ``train`` is given ``steps``, with the number of the epoch, from 1, and how
many of its batches are done already, by a run that was killed."""


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

    def state(self) -> dict[str, Any]:
        """All that it knows, for a checkpoint."""
        return {name: getattr(self, name) for name in self._KNOWN}

    def load_state(self, state: dict[str, Any]) -> None:
        """Goes on from what ``state`` gave."""
        for name in self._KNOWN:
            setattr(self, name, state[name])

    _KNOWN = ("best", "best_step", "waited", "_state")

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


@dataclass(frozen=True)
class Checkpoints:
    """Where a run leaves what it needs to go on after it was killed, and how often.

    A run that finds a checkpoint of its own goes on from it, and ends where it would have ended: parameters,
    the optimizer's moments, the log, the best state, and the random numbers of dropout are all in it. It is
    one file, which is there whole or not at all; a run that comes to its end removes it.

    Attributes:
        folder: where the file lies; made where it is missing.
        every: steps between two checkpoints. There is one after each epoch as well.
        key: what the run depends on, such as a hash of its options and data.
    """

    folder: Path
    every: int
    key: str

    @property
    def file(self) -> Path:
        """The one file."""
        return self.folder / "checkpoint.pt"

    def write(self, state: dict[str, Any]) -> None:
        """Replaces the checkpoint by this state, of tensors, numbers and texts."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with write_whole(self.file) as part:
            torch.save({"key": self.key, **state}, part)

    def read(self) -> dict[str, Any] | None:
        """The state to go on from, its tensors on the CPU; None where there is none.

        Raises:
            ValueError: the file is of a run with other options or data, or damaged.
        """
        if not self.file.is_file():
            return None
        advice = "remove it to start over, or name another folder"
        try:
            # Tensors and plain values only: a file cannot bring code along.
            state = torch.load(self.file, map_location="cpu", weights_only=True)
        except (RuntimeError, EOFError, OSError, ValueError, pickle.UnpicklingError) as error:
            raise ValueError(f"{self.file} is damaged ({error}); {advice}") from error
        if state.pop("key", None) != self.key:
            raise ValueError(
                f"{self.file} is the checkpoint of a run with other options or other data; {advice}"
            )
        return state

    def remove(self) -> None:
        """Forgets the run, which is over."""
        self.file.unlink(missing_ok=True)


@dataclass(frozen=True)
class Steps:
    """How steps are taken; the defaults are a step of Adam in float32 after each batch, at one rate.

    Attributes:
        precision: ``"float32"``, ``"bfloat16"`` or ``"float16"``: what products of matrices are computed in.
            Parameters and their gradients stay float32; with float16 the loss is scaled, so that small
            gradients do not vanish (Micikevicius et al. 2018, "Mixed Precision Training").
        accumulate: batches in a step. Its gradient is that of their examples as one batch.
        clip: the largest length of the gradient of all parameters together; a longer one is scaled down.
        warm_up: steps in which the rate grows from zero to its value.
        total: steps of the whole run. With it the rate falls after the warm-up, in a straight line to zero
            (Devlin et al. 2019, "BERT", appendix A.2); without it the rate stays.
        checkpoints: for runs that may be killed.
        own: the module takes its steps itself, while its losses are asked for. No optimizer is made, nothing
            is differentiated, and none of the above can be asked for.
    """

    precision: str = "float32"
    accumulate: int = 1
    clip: float | None = None
    warm_up: int = 0
    total: int | None = None
    checkpoints: Checkpoints | None = None
    own: bool = False

    def __post_init__(self) -> None:
        """Refuses what only an optimizer's steps can be asked for."""
        if self.own and replace(self, own=False) != Steps():
            raise ValueError(
                "a module that takes its own steps has no precision, accumulation, clipping, "
                "warm-up or checkpoints here; own=True stands alone"
            )

    def rate(self, step: int) -> float:
        """The share of the learning rate that step ``step``, from 0, is taken with."""
        if step < self.warm_up:
            return (step + 1) / self.warm_up
        if self.total is None:
            return 1.0
        return max(0.0, (self.total - step) / max(1, self.total - self.warm_up))


_PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class _Stepper:
    """Takes the steps of one run, as ``Steps`` says."""

    def __init__(self, groups: list[dict[str, Any]], device: torch.device, steps: Steps) -> None:
        if steps.precision not in _PRECISIONS:
            raise ValueError(f"precision={steps.precision!r} is not one of {', '.join(_PRECISIONS)}")
        if steps.accumulate < 1:
            raise ValueError(f"accumulate must be 1 or more, got {steps.accumulate}")
        self.steps, self.device = steps, device
        self.parameters = [parameter for group in groups for parameter in group["params"]]
        self.rates = [group["lr"] for group in groups]
        if not steps.own:
            self.optimizer = torch.optim.Adam(groups, fused=device.type != "mps")
        self.scaler = torch.amp.GradScaler(device.type, enabled=steps.precision == "float16")
        self.taken = self.waiting = self.examples = 0  # steps; batches and their examples since the last

    def losses(self, losses: Iterable[tuple[Tensor, int]]) -> Iterator[tuple[Tensor, int]]:
        """The losses, each computed in the precision that was asked for."""
        iterator, dtype = iter(losses), _PRECISIONS[self.steps.precision]
        while True:
            with torch.autocast(self.device.type, dtype, enabled=dtype != torch.float32):
                item = next(iterator, None)
            if item is None:
                return
            yield item

    def backward(self, loss: Tensor, n: int) -> None:
        """Adds the gradient of a batch's mean loss () over n examples, and steps when it is time to."""
        if self.steps.own:
            return
        if not self.waiting:
            self.optimizer.zero_grad(set_to_none=True)
        # Batches in a step may differ in size: summed over examples, and divided at the end.
        self.scaler.scale(loss if self.steps.accumulate == 1 else loss * n).backward()
        self.waiting += 1
        self.examples += n
        if self.waiting == self.steps.accumulate:
            self.step()

    def step(self) -> None:
        """Takes the step, of as many batches as there are."""
        if not self.waiting:
            return
        average_gradients(self.parameters)
        if self.steps.accumulate > 1 or self.steps.clip is not None:
            self.scaler.unscale_(self.optimizer)
        if self.steps.accumulate > 1:
            for parameter in self.parameters:
                if parameter.grad is not None:
                    parameter.grad /= self.examples
        if self.steps.clip is not None:
            nn.utils.clip_grad_norm_(self.parameters, self.steps.clip)
        if self.steps.warm_up or self.steps.total is not None:
            share = self.steps.rate(self.taken)
            for group, rate in zip(self.optimizer.param_groups, self.rates, strict=True):
                group["lr"] = rate * share
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.taken, self.waiting, self.examples = self.taken + 1, 0, 0

    def state(self) -> dict[str, Any]:
        """For a checkpoint; between two steps."""
        state = {
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "taken": self.taken,
            "rng": torch.get_rng_state(),
        }
        if self.device.type == "cuda":
            state["device_rng"] = torch.cuda.get_rng_state(self.device)
        return state

    def load_state(self, state: dict[str, Any]) -> None:
        """Goes on from what ``state`` gave."""
        self.optimizer.load_state_dict(state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])
        self.taken = state["taken"]
        torch.set_rng_state(state["rng"])
        if "device_rng" in state and self.device.type == "cuda":
            torch.cuda.set_rng_state(state["device_rng"], self.device)


def train(
    module: nn.Module,
    losses: Losses,
    *,
    epochs: int,
    learning_rate: float,
    slower: Iterable[tuple[nn.Module, float]] = (),
    steps: Steps | None = None,
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
        steps: how steps are taken: mixed precision, accumulation, clipping, warm-up, checkpoints.
        validation: with it training stops early, and the state of the best look is restored.
        max_seconds: when to stop; a last look is taken then. None sets no limit.
        name: of what is trained, for the bar and the errors.
        progress: show a bar.

    Returns:
        A ``Training``. Without examples its log is empty, and there is a warning.

    Raises:
        FloatingPointError: the loss or a parameter is no longer finite.
        KeyboardInterrupt: Ctrl-C before the first step was done.
        ValueError: steps that cannot be taken so, or a checkpoint of another run.
    """
    parameters = list(module.parameters())
    device = parameters[0].device
    parts = [(list(part.parameters()), rate) for part, rate in slower]
    apart = {id(parameter) for part, _ in parts for parameter in part}
    parts.append(([p for p in parameters if id(p) not in apart], learning_rate))
    stepper = _Stepper([{"params": part, "lr": rate} for part, rate in parts], device, steps or Steps())
    checkpoints = stepper.steps.checkpoints
    stopping = EarlyStopping(1 if validation is None else validation.patience)
    deadline = math.inf if max_seconds is None else time.monotonic() + max_seconds
    log: list[dict[str, float]] = []
    stopped_by, epoch, first, done = "epochs", 0, 1, 0
    total, n_examples = torch.zeros((), device=device), 0

    def save(epoch: int, done: int, total: Tensor, n_examples: int) -> None:
        if checkpoints is not None:
            state = {"module": module.state_dict(), "stepper": stepper.state(), "stopping": stopping.state()}
            place = {"epoch": epoch, "done": done, "total": total, "n_examples": n_examples, "log": log}
            checkpoints.write({**state, **place, "stopped_by": stopped_by})

    state = None if checkpoints is None else checkpoints.read()
    if state is not None:
        module.load_state_dict(state["module"])
        stepper.load_state(state["stepper"])
        stopping.load_state(state["stopping"])
        first, done, log, stopped_by = state["epoch"], state["done"], state["log"], state["stopped_by"]
        total, n_examples = state["total"].to(device), state["n_examples"]
        epoch = first - 1
    remaining = range(first, epochs + 1) if stopped_by == "epochs" else ()
    for epoch in progress_bar(remaining, name, enabled=progress):
        if not done:
            total, n_examples = torch.zeros((), device=device), 0
        try:
            one_epoch = losses() if steps is None else losses(epoch, done)
            for loss, n in stepper.losses(one_epoch):
                stepper.backward(loss, n)
                total += loss.detach() * n
                n_examples += n
                done += 1
                if max_seconds is not None and any_process(time.monotonic() > deadline, device):
                    stopped_by = "time"
                    break
                if checkpoints is not None and not stepper.waiting and not stepper.taken % checkpoints.every:
                    save(epoch, done, total, n_examples)
            stepper.step()
        except KeyboardInterrupt:
            if not (log or n_examples):
                raise  # there is nothing to keep
            stopped_by = "interrupt"
        done = 0
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
        if stopped_by != "time":
            save(epoch + 1, 0, total, n_examples)
        if stopped_by != "epochs":
            break
    if stopped_by in ("time", "interrupt"):
        warnings.warn(
            f"{name}: stopped by {_STOPPED[stopped_by]} in epoch {epoch} of {epochs}; the best is kept",
            stacklevel=2,
        )
    elif checkpoints is not None:
        checkpoints.remove()
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
