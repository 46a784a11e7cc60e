"""What callers pass in, checked in one way: whole numbers, indices, vectors without holes."""

import numbers
from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

__all__ = ["Indices", "integer_indices", "refuse_not_finite", "whole_number"]

Indices: TypeAlias = Tensor | np.ndarray | Sequence[int]
"""Whole numbers (B,) that name users or items."""


def whole_number(value: Any, name: str, *, at_least: int | None = None) -> int:
    """The value as Python's int, if it is a whole number: of Python or of numpy, and no truth value.

    Args:
        value: what was passed.
        name: of the argument, for the message.
        at_least: the smallest value allowed.

    Raises:
        TypeError: 2.0, True, None, a text.
        ValueError: below ``at_least``.
    """
    # 2.0 is refused with 2.5: a size that was computed as a float is rounded where it was computed.
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        raise TypeError(f"{name} must be a whole number, got {value!r}")
    if at_least is not None and value < at_least:
        raise ValueError(f"{name} must be at least {at_least}, got {value}")
    return int(value)


def integer_indices(values: Any, name: str) -> Tensor:
    """Indices as a tensor.

    Args:
        values: (B,) whole numbers: a tensor, a list, or an array of numpy or pandas.
        name: of the argument, for the message.

    Returns:
        (B,) int64; a tensor stays on its device, all else comes to the CPU.

    Raises:
        TypeError: a boolean mask, real numbers, or what holds no numbers.
        ValueError: not one-dimensional.
    """
    array = values if isinstance(values, Tensor) else _array(values, name)
    kind = str(array.dtype).removeprefix("torch.")
    if kind == "bool":
        nonzero = "nonzero().flatten()" if isinstance(array, Tensor) else "nonzero()[0]"
        raise TypeError(f"{name} must be whole numbers, got a boolean mask; pass mask.{nonzero}")
    # An empty list has no integer type of its own.
    if 0 not in array.shape and not kind.removeprefix("u").startswith("int"):
        raise TypeError(f"{name} must be whole numbers, got {kind}")
    if array.ndim != 1:
        raise ValueError(f"{name} must be one-dimensional, got shape {tuple(array.shape)}")
    if isinstance(array, Tensor):
        return array.long()
    return torch.as_tensor(array.astype(np.int64), device="cpu")


def _array(values: Any, name: str) -> np.ndarray:
    """A list, or an array of another library, as numpy's."""
    listed = isinstance(values, Sequence) and not isinstance(values, (str, bytes))
    if not listed and not hasattr(values, "__array__"):
        raise TypeError(
            f"{name} must be a tensor, a list or an array of whole numbers, got {type(values).__name__}"
        )
    try:
        return np.asarray(values)
    except (TypeError, ValueError) as error:
        raise TypeError(f"{name} must be a list of whole numbers ({error})") from error


def refuse_not_finite(x: Tensor, name: str, row: str = "row") -> None:
    """Refuses NaN and infinity, naming the first row that holds one. A meta tensor has no values to check.

    Args:
        x: (N, ...) of any type.
        name: of the argument, for the message.
        row: what a row is.

    Raises:
        ValueError: an entry is not finite.
    """
    if x.is_meta or not x.is_floating_point():
        return
    # One pass, no temporary: what is not finite makes the sum so. So may an overflow, hence the second look.
    if bool(x.detach().sum().isfinite()):
        return
    wrong = (~x.detach().isfinite()).nonzero()  # (W, x.ndim)
    if len(wrong):
        place = tuple(wrong[0].tolist())
        found = "NaN" if bool(x[place].isnan()) else "infinity"
        raise ValueError(
            f"{row} {place[0]} of {name} holds {found}, and nothing can be compared with it. Look for a "
            "division by zero, a missing value or a training run that diverged."
        )
