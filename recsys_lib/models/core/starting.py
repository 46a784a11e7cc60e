"""Starting a model from what another one has learned: which parts, how fast they go on, and from when on."""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn

from recsys_lib.arguments import whole_number
from recsys_lib.data.catalogs import difference_of_ids

__all__ = ["Start"]


@dataclass(frozen=True, eq=False)
class Start:
    """First values of some parts of a model, and how these are trained on.

    A part is a submodule or a parameter by its name, such as ``"encoder"`` or ``"encoder.item_embedding"``.

    Attributes:
        tensors: by their names in the model that is started; on the CPU.
        parts: the parts that they make up.
        n_items: items of the model that they come from; None where it is no recommender.
        item_ids: the ids of these items, where they are known.
        rates: of parts, as a share of the model's learning rate.
        frozen: of parts, for how many epochs they stay as they are; None for all.
    """

    tensors: dict[str, Tensor]
    parts: tuple[str, ...]
    n_items: int | None
    item_ids: pd.Index | None
    rates: dict[str, float]
    frozen: dict[str, int | None]

    @classmethod
    def of(
        cls,
        other: nn.Module,
        parts: Sequence[str] | Mapping[str, str],
        rates: Mapping[str, float] | None,
        frozen: Iterable[str] | Mapping[str, int | None] | None,
    ) -> "Start":
        """Takes a copy of the parts of a model; see ``TrainedRecommender.start_from``."""
        if isinstance(parts, str):
            raise TypeError(f"parts must be a list of names, or a mapping; write [{parts!r}]")
        if isinstance(frozen, str):
            raise TypeError(f"frozen must be a list of names, or a mapping; write [{frozen!r}]")
        names = dict(parts) if isinstance(parts, Mapping) else {part: part for part in parts}
        if not names:
            raise ValueError("no part is named, so there is nothing to start from")
        tensors = {}
        for here, there in names.items():
            for name, tensor in _tensors_of(other, there, "the model to start from").items():
                tensors[here + name.removeprefix(there)] = tensor.detach().cpu().clone()
        for part, share in (rates or {}).items():
            if not share > 0:
                raise ValueError(f"the rate of {part!r} must be above 0, got {share}; to keep it, freeze it")
        kept: dict[str, int | None] = {}
        for part in frozen or ():
            epochs = frozen[part] if isinstance(frozen, Mapping) else None
            kept[part] = None if epochs is None else whole_number(epochs, f"frozen[{part!r}]", at_least=1)
        return cls(
            tensors,
            tuple(names),
            getattr(other, "_n_items", None),
            getattr(other, "item_ids", None),
            {part: float(share) for part, share in (rates or {}).items()},
            kept,
        )

    @torch.no_grad()
    def copy_into(self, model: nn.Module, n_items: int, item_ids: pd.Index | None) -> None:
        """Gives the model these first values.

        Of a table with a row an item, the items' rows are copied; a further row, such as that of a mask,
        keeps its first value where only one of the models has it.

        Args:
            model: with its parameters made.
            n_items: its items.
            item_ids: their ids, where they are known.

        Raises:
            KeyError: the model has no such part.
            ValueError: a tensor of a part is in one model only, its shape is another one, or its rows are
                those of other items; the message names it.
        """
        for part in self.parts:
            mine = _tensors_of(model, part, type(model).__name__)
            given = {name: tensor for name, tensor in self.tensors.items() if _within(name, part)}
            if lacking := sorted(mine.keys() - given.keys()):
                raise ValueError(
                    f"part {part!r}: the model to start from has no {', '.join(lacking)}; name smaller parts"
                )
            if surplus := sorted(given.keys() - mine.keys()):
                raise ValueError(
                    f"part {part!r}: {type(model).__name__} has no {', '.join(surplus)}; name smaller parts"
                )
            for name, tensor in given.items():
                self._copy(name, mine[name], tensor, n_items, item_ids)

    def _copy(self, name: str, mine: Tensor, given: Tensor, n_items: int, item_ids: pd.Index | None) -> None:
        rows = (len(mine), len(given)) if mine.ndim and given.ndim else (0, 0)
        of_items = mine.ndim > 0 and self.n_items is not None and _is_table(rows, (n_items, self.n_items))
        if of_items:
            self._check_items(name, n_items, item_ids)
        fits = mine.shape[1:] == given.shape[1:] and (rows[0] == rows[1] or (of_items and mine.ndim > 1))
        if mine.ndim != given.ndim or not fits:
            raise ValueError(
                f"{name} is {tuple(given.shape)} in the model to start from and {tuple(mine.shape)} here; "
                f"give both the same options, or leave this part out"
            )
        if rows[0] != rows[1]:
            mine, given = mine[:n_items], given[:n_items]
        mine.copy_(given)

    def _check_items(self, name: str, n_items: int, item_ids: pd.Index | None) -> None:
        if self.item_ids is None or item_ids is None:
            return
        if difference := difference_of_ids(item_ids, self.item_ids, "item"):
            raise ValueError(
                f"{name} has a row an item, and here an item's number means another one: {difference}"
            )

    def groups(
        self, model: nn.Module, slower: Iterable[tuple[nn.Module, float]], learning_rate: float
    ) -> list[tuple[nn.Module, float]]:
        """Parts with a learning rate of their own; of two that hold a parameter the smaller one counts.

        Args:
            model: that is trained.
            slower: its own such parts; what is named here goes by what is said here.
            learning_rate: of the rest.
        """
        found: dict[str, list[nn.Parameter]] = {part: [] for part in self.rates}
        for part in found:
            _tensors_of(model, part, type(model).__name__)
        for name, parameter in model.named_parameters():
            holders = [part for part in found if _within(name, part)]
            if holders:
                found[max(holders, key=len)].append(parameter)
        taken = {id(parameter) for listed in found.values() for parameter in listed}
        groups: list[tuple[nn.Module, float]] = [
            (nn.ParameterList(listed), learning_rate * self.rates[part]) for part, listed in found.items()
        ]
        for module, rate in slower:
            rest = [parameter for parameter in module.parameters() if id(parameter) not in taken]
            groups.append((nn.ParameterList(rest), rate))
        return [(module, rate) for module, rate in groups if list(module.parameters())]

    def freeze(self, model: nn.Module, epoch: int) -> None:
        """Says which parameters learn in an epoch, from 1.

        Raises:
            KeyError: the model has no such part.
            ValueError: nothing is left to learn.
        """
        frozen = [part for part, epochs in self.frozen.items() if epochs is None or epoch <= epochs]
        for part in self.frozen:
            _tensors_of(model, part, type(model).__name__)
        learns = False
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(not any(_within(name, part) for part in frozen))
            learns |= parameter.requires_grad
        if not learns:
            raise ValueError(f"epoch {epoch}: every parameter is frozen, so there is nothing to learn")

    def digest(self) -> bytes:
        """Tells one start from another."""
        hashed = hashlib.sha256(repr((self.parts, self.rates, self.frozen)).encode())
        for name, tensor in self.tensors.items():
            hashed.update(name.encode())
            hashed.update(tensor.contiguous().view(torch.uint8).numpy().tobytes())
        return hashed.digest()


def _within(name: str, part: str) -> bool:
    """Whether a parameter is a part, or in it."""
    return name == part or name.startswith(f"{part}.")


def _is_table(rows: tuple[int, int], n_items: tuple[int, int]) -> bool:
    """Whether both tensors have a row an item of the same catalog, or one row more."""
    return n_items[0] == n_items[1] and all(n in (n_items[0], n_items[0] + 1) for n in rows)


def _tensors_of(model: nn.Module, part: str, whose: str) -> dict[str, Tensor]:
    """Parameters and buffers of a part, by their whole names."""
    everything: dict[str, Any] = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    found = {name: tensor for name, tensor in everything.items() if _within(name, part)}
    if not found:
        tops = sorted({name.partition(".")[0] for name in everything})
        raise KeyError(f"{whose} has no part {part!r}; at the top there are {', '.join(tops) or 'none'}")
    return found
