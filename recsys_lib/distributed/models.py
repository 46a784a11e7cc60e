"""Two towers and SASRec that learn from shares of the data, each read by one process.

The examples are cut into ``shares`` by ``datasets.distributed.split_dataset_by_node``. A step takes
``batch_size`` examples of every share. With as many processes as shares, each reads one; one process reads
all, and the steps are the same: the number of processes changes how long it takes, not what is learned.
"""

import hashlib
import json
import os
import signal
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from recsys_lib.data import Interactions
from recsys_lib.data.ragged import offsets, row_of_each, within_rows
from recsys_lib.distributed.group import everyones, joined_sum, place
from recsys_lib.losses import in_batch_softmax_loss
from recsys_lib.models import SASRec, TwoTower
from recsys_lib.models.core.options import option, option_values
from recsys_lib.models.core.trained import TrainedRecommender
from recsys_lib.models.core.windows import kept_histories, rows_of
from recsys_lib.models.two_tower import UserItemPairs
from recsys_lib.training import Checkpoints, Steps, Validation, train

if TYPE_CHECKING:
    from datasets import Dataset

__all__ = ["InShares", "SASRecInShares", "TwoTowerInShares"]


class _WrittenByTheFirst(Checkpoints):
    """Checkpoints of several processes that are all in one state: the first writes, all read.

    The folder must be one that all see. The others have read before the first can take a step, since a step
    takes all of them; so nobody reads what is being replaced.
    """

    def write(self, state: dict[str, Any]) -> None:
        """By the first process alone."""
        if place()[0] == 0:
            super().write(state)

    def remove(self) -> None:
        """By the first process alone."""
        if place()[0] == 0:
            super().remove()


class InShares(TrainedRecommender[Any]):
    """What learning in shares adds to a model.

    Everything random of a step is drawn from a seed of its own, so that a run that was killed and goes on
    from its checkpoint ends where it would have ended.

    Attributes:
        curve: the loss of each step's joined batch, by the step's number.
    """

    shares: int = option(
        "parts that the examples are cut into; a multiple of the number of processes", default=2, at_least=1
    )

    def __post_init__(self) -> None:
        """Starts with an empty curve, and without checkpoints."""
        super().__post_init__()
        self.curve: dict[int, float] = {}
        self._folder: Path | None = None
        self._every = 50
        self._killed: tuple[int, int] | None = None

    def kept_in(self, folder: str | Path, every: int = 50) -> Self:
        """Where ``fit`` keeps a checkpoint, from which it goes on if it was killed.

        Args:
            folder: one that all processes see.
            every: steps between two checkpoints.

        Returns:
            The model itself, not yet fitted.
        """
        self._folder, self._every = Path(folder), every
        return self

    def killed_at(self, rank: int, step: int) -> Self:
        """Rehearses a failure: process ``rank`` kills itself before it takes step ``step``."""
        self._killed = rank, step
        return self

    @abstractmethod
    def rows(self, examples: Any) -> "Dataset":
        """What is learned from, a row an example; ``history`` is a list of items in each."""

    @abstractmethod
    def loss_of(
        self, rows: Sequence[pa.Table], examples: Any, generator: torch.Generator
    ) -> tuple[Tensor, int]:
        """The mean loss () of the batches of this process's shares, and of how many questions it is."""

    def _train(
        self, examples: Any, generator: torch.Generator, look: Validation | None, progress: bool
    ) -> None:
        from datasets.distributed import split_dataset_by_node

        rank, world = place()
        if self.shares % world:
            raise ValueError(
                f"shares={self.shares} cannot be dealt evenly to {world} processes; take a multiple"
            )

        data = self.rows(examples).with_format("arrow")
        own = {
            share: split_dataset_by_node(data, rank=share, world_size=self.shares)
            for share in range(rank, self.shares, world)
        }
        n_steps = len(data) // self.shares // self.batch_size  # in an epoch; all shares give as many
        if not n_steps:
            raise ValueError(
                f"a share has {len(data) // self.shares} examples, fewer than batch_size={self.batch_size}"
            )

        def losses(epoch: int, done: int) -> Iterator[tuple[Tensor, int]]:
            tables = [x[_shuffled(len(x), self.seed, epoch, share)] for share, x in own.items()]
            for step in range(done, n_steps):
                number = (epoch - 1) * n_steps + step
                if self._killed == (rank, number):
                    os.kill(os.getpid(), signal.SIGKILL)
                _seed_dropout(self.device, self.seed, number, rank)
                batch = [table.slice(step * self.batch_size, self.batch_size) for table in tables]
                loss, n = self.loss_of(batch, examples, generator)
                total = joined_sum(n, self.device)
                joined = joined_sum(float(loss.detach()) * n, self.device) / total
                self._note(number, joined)
                # The mean of the processes' gradients is to be that of all questions alike.
                yield loss * (n * world / total), n

        done = train(
            self,
            losses,
            epochs=self.epochs,
            learning_rate=self.learning_rate,
            slower=self.slower(),
            steps=Steps(checkpoints=self._checkpoints(len(data))),
            validation=look,
            max_seconds=self.max_seconds,
            name=type(self).__name__,
            progress=progress and rank == 0,
        )
        self.log, self.best_epoch, self.stopped_by = done.log, done.best_epoch, done.stopped_by

    def _checkpoints(self, n: int) -> Checkpoints | None:
        if self._folder is None:
            return None
        known = json.dumps([type(self).__name__, option_values(self), n], sort_keys=True)
        return _WrittenByTheFirst(self._folder, self._every, hashlib.sha256(known.encode()).hexdigest())

    def _note(self, number: int, loss: float) -> None:
        """Keeps the loss of a step, beside the checkpoint as well: a killed process tells nothing."""
        self.curve[number] = loss
        if self._folder is not None and place()[0] == 0:
            self._folder.mkdir(parents=True, exist_ok=True)
            with (self._folder / "curve.jsonl").open("a", encoding="utf8") as file:
                file.write(json.dumps({"step": number, "loss": loss}) + "\n")


class TwoTowerInShares(InShares, TwoTower):
    """Two towers that learn in shares, with the batch's other items as negatives.

    With ``gather`` each row is held against the items of all shares. Without it a share knows its own alone:
    nothing is sent but gradients, and of ``shares`` shares a row has that much fewer negatives.

    The user tower is the mean of a history, the item tower the number.
    """

    gather: bool = option("rows are held against the items of all shares", default=True)
    batch_size: int = option("examples of each share in a step", default=256, at_least=1)
    max_history: int | None = option("most recent events that are read", default=100, at_least=1)

    def __post_init__(self) -> None:
        """Refuses what does not learn in shares."""
        super().__post_init__()
        fixed = {"user_tower": "history_mean", "item_tower": "id", "loss": "in_batch", "l2": 0.0}
        for name, value in fixed.items():
            if getattr(self, name) != value:
                raise ValueError(f"{type(self).__name__} learns with {name}={value!r} alone")

    def rows(self, examples: UserItemPairs) -> "Dataset":
        """An example a row: the item, and the items before it that are read."""
        lengths = examples.lengths.clamp(max=self._max_length).cpu()  # (N,)
        starts = (examples.starts + examples.lengths).cpu() - lengths  # (N,)
        crow = offsets(lengths)  # (N + 1,)
        read = examples.read.cpu()[starts[row_of_each(crow)] + within_rows(crow)]  # (E,)
        return _lists(crow, read, {"item": examples.items.cpu().numpy()})

    def loss_of(
        self, rows: Sequence[pa.Table], examples: UserItemPairs, generator: torch.Generator
    ) -> tuple[Tensor, int]:
        """Of the joined batch's rows those of this process, against its columns or everyone's."""
        table = pa.concat_tables(rows)
        history, lengths = _history(table, self.device)  # (E,), (b,)
        items = _column(table, "item", self.device)  # (b,)
        vectors = self.scaled(self.user(history, offsets(lengths)[:-1], lengths))  # (b, d)
        columns = self.scaled(self.item(items))  # (b, d)
        if self.gather:
            first = place()[0] * len(items)
            loss = self._held_against(vectors, everyones(columns), everyones(items), first, examples)
            return loss, len(items)
        shares = zip(*(x.split([len(part) for part in rows]) for x in (vectors, columns, items)), strict=True)
        found = [self._held_against(u, v, ids, 0, examples) for u, v, ids in shares]
        return torch.stack(found).mean(), len(items)

    def _held_against(
        self, vectors: Tensor, columns: Tensor, ids: Tensor, first: int, examples: UserItemPairs
    ) -> Tensor:
        """The loss () of rows (b, d), whose own columns of (C, d) begin at ``first``."""
        return in_batch_softmax_loss(
            vectors @ columns.mT / self.temperature,  # (b, C)
            None if self.masked == "nothing" else ids,
            None if self.log_q == "none" else examples.log_q[ids],
            targets=first + torch.arange(len(vectors), device=vectors.device),  # (b,)
            correct_positive=self.log_q == "all",
        )


class SASRecInShares(InShares, SASRec):
    """SASRec that learns in shares: a row is a user's most recent ``max_length`` + 1 events.

    Each event is held against the whole catalog or items drawn for it, so that nothing needs to be gathered;
    the gradients are averaged over all events of all shares, however long their histories are.
    """

    batch_size: int = option("histories of each share in a step", default=32, at_least=1)

    def rows(self, examples: Interactions) -> "Dataset":
        """A history a row."""
        crow, items = kept_histories(examples, self.seed)  # (n_users + 1,), (E,)
        lengths = crow.diff()  # (n_users,)
        kept = (lengths > 1).nonzero().squeeze(1)  # (U,)
        read = lengths[kept].clamp(max=self.max_length + 1)  # (U,)
        starts, cut = crow[kept + 1] - read, offsets(read)  # (U,), (U + 1,)
        return _lists(cut.cpu(), items[starts[row_of_each(cut)] + within_rows(cut)].cpu(), {})

    def loss_of(
        self, rows: Sequence[pa.Table], examples: Interactions, generator: torch.Generator
    ) -> tuple[Tensor, int]:
        """Of every event that has a next one."""
        history, lengths = _history(pa.concat_tables(rows), self.device)  # (E,), (b,)
        windows = rows_of(history, offsets(lengths)[:-1], lengths)  # (b, T)
        hidden, targets = self.questions(windows, lengths, generator)  # (N, d), (N,)
        return self.objective(hidden, targets, generator), len(targets)


def _lists(crow: Tensor, values: Tensor, columns: dict[str, Any]) -> "Dataset":
    """A table whose ``history`` are the lists that offsets (N + 1,) cut values (E,) into."""
    from datasets import Dataset

    history = pa.LargeListArray.from_arrays(pa.array(crow.numpy()), pa.array(values.numpy().astype(np.int32)))
    return Dataset(pa.table({"history": history, **{name: pa.array(x) for name, x in columns.items()}}))


def _history(table: pa.Table, device: torch.device) -> tuple[Tensor, Tensor]:
    """The histories of a batch, one after another (E,), and their lengths (b,); int64 both."""
    lists = table["history"].combine_chunks()
    lengths = lists.value_lengths().to_numpy(zero_copy_only=False).astype(np.int64)  # (b,)
    values = lists.flatten().to_numpy(zero_copy_only=False).astype(np.int64)  # (E,)
    return torch.from_numpy(values).to(device), torch.from_numpy(lengths).to(device)


def _column(table: pa.Table, name: str, device: torch.device) -> Tensor:
    return torch.from_numpy(table[name].to_numpy().copy()).to(device)  # (b,)


def _shuffled(n: int, *seed: int) -> list[int]:
    """An order of 0 to n - 1, the same wherever it is made."""
    return np.random.default_rng(seed).permutation(n).tolist()


def _seed_dropout(device: torch.device, *seed: int) -> None:
    """Settles what is drawn from torch's global state."""
    number = int(np.random.default_rng(seed).integers(2**62))
    if device.type == "cpu":  # all devices, as below, would take some milliseconds
        torch.default_generator.manual_seed(number)
    else:
        torch.manual_seed(number)
