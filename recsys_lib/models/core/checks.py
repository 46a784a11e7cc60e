"""What a model is asked about: users, items, histories, candidates. Each is checked once, here."""

import numbers
from collections.abc import Sequence

import pandas as pd
import torch
from torch import Tensor

from recsys_lib.data import Interactions
from recsys_lib.data.catalogs import difference_of_ids

__all__ = [
    "check_candidates",
    "check_catalog",
    "check_histories",
    "check_indices",
    "check_interactions",
    "check_length",
]


def check_indices(indices: Tensor, n: int, what: str, *, ndim: int = 1, padding: bool = False) -> Tensor:
    """Checks user or item indices and returns them as int64.

    Args:
        indices: (B,) integers, or of more dimensions.
        n: how many users or items the model knows.
        what: ``"user"`` or ``"item"``, for the message.
        ndim: dimensions expected.
        padding: -1 is allowed, and stands for nothing.

    Raises:
        TypeError: not a tensor of integers.
        ValueError: another number of dimensions.
        IndexError: an index that the model does not know.
    """
    if not isinstance(indices, Tensor):
        raise TypeError(
            f"{what}s must be a tensor of {what} indices, got {type(indices).__name__}; "
            f"wrap it in torch.tensor"
        )
    if indices.is_floating_point() or indices.is_complex() or indices.dtype == torch.bool:
        mask = "; a mask becomes indices by mask.nonzero().flatten()" if indices.dtype == torch.bool else ""
        raise TypeError(f"{what}s must be integer indices, got {indices.dtype}{mask}")
    if indices.ndim != ndim:
        form = "one-dimensional" if ndim == 1 else f"{ndim}-dimensional"
        raise ValueError(f"{what}s must be {form}, got shape {tuple(indices.shape)}")
    indices = indices.long()
    # A meta tensor has no values to check.
    if indices.numel() and not indices.is_meta:
        wrong = (indices < (-1 if padding else 0)) | (indices >= n)
        if bool(wrong.any()):
            raise IndexError(
                f"{what} {int(indices[wrong][0])} is unknown: "
                f"the model was fitted on {n} {what}s, 0 to {n - 1}"
            )
    return indices


def check_candidates(candidates: Tensor, n_rows: int, n_items: int, of: str = "user") -> Tensor:
    """Checks candidates, a row for each of those who are asked for, and returns them as int64.

    Args:
        candidates: (B, C) integer item indices; -1 pads a short row.
        n_rows: B.
        n_items: size of the catalog.
        of: what a row belongs to, for the message.

    Raises:
        TypeError, IndexError: as ``check_indices``.
        ValueError: a row too many or too few, or a row that names an item twice.
    """
    candidates = check_indices(candidates, n_items, "item", ndim=2, padding=True)
    if len(candidates) != n_rows:
        raise ValueError(f"candidates must have one row a {of}, {n_rows}, got {len(candidates)}")
    row, column = (candidates >= 0).nonzero(as_tuple=True)  # (N,), (N,)
    repeated = (row * n_items + candidates[row, column]).sort()[0]  # (N,)
    repeated = repeated[1:][repeated.diff() == 0]
    if len(repeated):
        place, item = divmod(int(repeated[0]), n_items)
        raise ValueError(f"candidates[{place}] names item {item} more than once")
    return candidates


def check_histories(
    histories: Sequence[Tensor | Sequence[int]], n_items: int, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Checks histories given as item indices and joins them.

    Args:
        histories: B lists or tensors, each (L_b,) integer item indices, oldest first; empty ones are allowed.
        n_items: size of the catalog.
        device: where the result lives if all histories are lists; else it is on the first tensor's.

    Returns:
        items (E,) int64, all histories one after another; lengths (B,) int64.

    Raises:
        TypeError: not a list of lists or tensors of integers.
        ValueError: no history at all, or one that is not one-dimensional.
        IndexError: an item that the model does not know.
    """
    if not isinstance(histories, Sequence):
        raise TypeError(
            f"histories must be a list with one history a user, itself a list or tensor of item indices; "
            f"got {type(histories).__name__}"
        )
    if not histories:
        raise ValueError("histories is empty; give at least one, which may itself be empty")
    device = next((history.device for history in histories if isinstance(history, Tensor)), device)
    checked = []
    for history in histories:
        try:
            indices = torch.as_tensor(history, device=device)
        except (TypeError, ValueError, RuntimeError) as error:
            raise TypeError(f"each history must be a list or tensor of item indices ({error})") from error
        # torch.tensor([]) is float, and an empty history has nothing to misread.
        empty = indices.ndim == 1 and not len(indices)
        checked.append(indices.long() if empty else check_indices(indices, n_items, "item"))
    lengths = torch.tensor([len(history) for history in checked], device=device)  # (B,)
    return torch.cat(checked), lengths


def check_interactions(interactions: object, where: str) -> None:
    """Refuses what is not ``Interactions``; ``where`` names the method that was called."""
    if not isinstance(interactions, Interactions):
        raise TypeError(
            f"{where} takes Interactions, got {type(interactions).__name__}; "
            f"make them with Interactions.from_frame(frame)"
        )


def check_catalog(
    interactions: Interactions,
    sizes: tuple[int, int],
    user_ids: pd.Index | None,
    item_ids: pd.Index | None,
    where: str,
) -> None:
    """Refuses events of other users or items than the model's, by their number and by their ids.

    Args:
        interactions: the events.
        sizes: users and items that the model knows.
        user_ids: its users' ids; None where it does not know them.
        item_ids: its items' ids, likewise.
        where: the method that was called.
    """
    given = (interactions.n_users, interactions.n_items)
    advice = "make them with the same user_ids and item_ids"
    if given != sizes:
        raise ValueError(
            f"{where}: the model was fitted on {sizes} users and items, the events count {given}; {advice}"
        )
    for role, known, found in (
        ("user", user_ids, interactions.user_ids),
        ("item", item_ids, interactions.item_ids),
    ):
        difference = "" if known is None else difference_of_ids(known, found, role)
        if difference:
            raise ValueError(
                f"{where}: the model (first) and the events (second) differ: {difference}; {advice}"
            )


def check_length(k: object, n_items: int) -> int:
    """The length of a list as a plain number, at most the catalog's.

    Raises:
        TypeError: not a whole number.
        ValueError: below 1 or above ``n_items``.
    """
    if isinstance(k, bool) or not isinstance(k, numbers.Integral):
        raise TypeError(f"k must be a whole number, got {k!r}")
    length = int(k)
    if not 1 <= length <= n_items:
        raise ValueError(f"k must lie between 1 and the catalog's {n_items} items, got {length}")
    return length
