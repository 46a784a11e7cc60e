"""Models that go on training what was trained before: how steps are taken, and runs that may be killed."""

import hashlib
import json
import math
from abc import abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor

from recsys_lib.devices import seed_generator
from recsys_lib.models.core.options import data, option
from recsys_lib.models.core.trained import TrainedRecommender
from recsys_lib.training import Checkpoints, Steps

__all__ = ["FineTuned", "batches_of_like_length"]

Examples = TypeVar("Examples")

_BATCHES_IN_A_BUCKET = 32  # whose examples are sorted by length together


class FineTuned(TrainedRecommender[Examples]):
    """A trained model whose steps are taken as ``training.Steps`` says.

    Each epoch draws its random numbers from the seed and its number alone, so that a run that was killed can
    go on in the middle of one. A subclass implements ``epoch_losses`` in place of ``losses``, and says how
    many ``batches`` an epoch has and what the run depends on beside its options.
    """

    precision: str = option(
        "what products of matrices are computed in, in training",
        default="float32",
        choices=("float32", "bfloat16", "float16"),
    )
    accumulate: int = option("batches in a step", default=1, at_least=1)
    clip: float | None = option("longest gradient; a longer one is scaled down", default=1.0, above=0)
    warm_up: float = option(
        "share of all steps in which the learning rate grows from zero; it then falls to zero in a line",
        default=0.1,
        at_least=0,
        at_most=1,
    )
    checkpoint_every: int = option("steps between two checkpoints", default=100, at_least=1)
    checkpoints: str | Path | None = data(
        "a folder of this run's own, where it leaves what it needs to go on after it was killed; the same "
        "options and data go on from there",
        default=None,
    )

    @abstractmethod
    def n_batches(self, examples: Examples) -> int:
        """Batches in an epoch."""

    @abstractmethod
    def contents(self, examples: Examples) -> Iterator[bytes]:
        """What the run depends on beside its options: the data."""

    @abstractmethod
    def epoch_losses(self, examples: Examples, epoch: int, done: int) -> Iterator[tuple[Tensor, int]]:
        """The losses of an epoch, from 1, without its first ``done`` batches.

        They are functions of the parameters, of ``epoch_generator``, and of dropout.
        """

    def epoch_generator(self, epoch: int, purpose: str = "examples") -> torch.Generator:
        """Random numbers of an epoch, on the CPU: for its ``"examples"``, or for their ``"order"``."""
        return seed_generator(self.seed * 1_000_003 + 2 * epoch + (purpose == "order"))

    def losses(self, examples: Examples, generator: torch.Generator) -> Iterator[tuple[Tensor, int]]:
        """The first epoch."""
        yield from self.epoch_losses(examples, 1, 0)

    def losses_from(
        self, examples: Examples, generator: torch.Generator, epoch: int = 1, done: int = 0
    ) -> Iterator[tuple[Tensor, int]]:
        """The losses of an epoch, from one of its batches on."""
        return self.epoch_losses(examples, epoch, done)

    def steps(self, examples: Examples) -> Steps:
        """As the options say."""
        total = self.epochs * math.ceil(self.n_batches(examples) / self.accumulate)
        kept = None
        if self.checkpoints is not None:
            digest = hashlib.sha256(json.dumps(self.config, sort_keys=True).encode())
            for content in self.contents(examples):
                digest.update(content)
            if self._start is not None:
                digest.update(self._start.digest())
            kept = Checkpoints(Path(self.checkpoints), self.checkpoint_every, digest.hexdigest())
        return Steps(
            precision=self.precision,
            accumulate=self.accumulate,
            clip=self.clip,
            warm_up=round(self.warm_up * total),
            total=total,
            checkpoints=kept,
        )


def batches_of_like_length(lengths: Tensor, batch_size: int, generator: torch.Generator) -> list[Tensor]:
    """Batches in random order, each of examples of like length, though not always the same ones.

    Args:
        lengths: (N,) int64, on the CPU.
        batch_size: examples in a batch.
        generator: shuffles, on the CPU.

    Returns:
        Indices (b,) int64 that cover 0..N-1 once.
    """
    if not len(lengths):
        return []
    order = torch.randperm(len(lengths), generator=generator, device="cpu")  # (N,)
    parts = order.split(batch_size * _BATCHES_IN_A_BUCKET)
    ordered = [part[lengths[part].argsort(stable=True)] for part in parts]
    batches = [batch for part in ordered for batch in part.split(batch_size)]
    return [batches[k] for k in torch.randperm(len(batches), generator=generator, device="cpu").tolist()]
