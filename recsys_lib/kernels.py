"""How alike two items are by what is known of them: kernels of features, and sums of them."""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Features", "sum_of_kernels"]


@dataclass(frozen=True, eq=False)
class Features:
    """One kind of knowledge about items, and how it makes two of them alike.

        k(i, j) = x_i . x_j                                without a width
        k(i, j) = exp(-|x_i - x_j|^2 / (2 width^2))        with one: a Gaussian of the distance

    The kernel is then centered, as if the mean had been taken out of the features behind it, and divided by
    the mean of its diagonal. So weights of several kinds can be compared, whatever their units.

    Source: Schoelkopf, Smola, Mueller 1998, "Nonlinear Component Analysis as a Kernel Eigenvalue Problem",
    appendix B (centering).

    Attributes:
        rows: (n_items, D) a row an item, all finite; or (n_items,) of one feature.
        weight: of the kernel in a sum, 0 or more.
        unit: take the features' mean out and scale each row to length 1 first, as for vectors of texts.
            Otherwise they stay in their own units, such as years.
        width: of the Gaussian, in the unit of the distance; unit rows are 2 apart at most. None: no Gaussian.

    Raises:
        ValueError: features of another shape or not finite, or a weight or width out of range.
    """

    rows: Tensor
    weight: float = 1.0
    unit: bool = True
    width: float | None = None

    def __post_init__(self) -> None:
        """Checks it."""
        rows = torch.as_tensor(self.rows).detach()
        rows = rows[:, None] if rows.ndim == 1 else rows  # (n_items, D)
        if rows.ndim != 2 or not len(rows):
            raise ValueError(f"features must be (n_items, D), a row an item; got {tuple(rows.shape)}")
        if not bool(rows.isfinite().all()):
            row = int((~rows.isfinite()).any(dim=1).nonzero()[0, 0])
            raise ValueError(f"features must be finite; those of item {row} are not")
        if not 0 <= self.weight < float("inf"):
            raise ValueError(f"weight must be 0 or more and finite, got {self.weight}")
        if self.width is not None and not 0 < self.width < float("inf"):
            raise ValueError(f"width must be above 0 and finite, or None; got {self.width}")
        object.__setattr__(self, "rows", rows)

    def kernel(self, device: torch.device | str | None = None) -> Tensor:
        """How alike all pairs are, (n_items, n_items), without the weight; float64 where there is.

        All zeros where all rows are equal, which tells nothing.

        Args:
            device: where; that of the features by default.
        """
        device = self.rows.device if device is None else torch.device(device)
        real = torch.float32 if device.type == "mps" else torch.float64
        x = self.rows.to(device, real)  # (n_items, D)
        x = x - x.mean(dim=0)  # (n_items, D), which no distance feels
        tiny = torch.finfo(torch.float32).tiny
        if self.unit:
            x = x / x.norm(dim=1, keepdim=True).clamp(min=tiny)  # (n_items, D)
        alike = x @ x.mT  # (n_items, n_items)
        if self.width is not None:
            square = alike.diagonal()  # (n_items,)
            apart = (square[:, None] + square - 2 * alike).clamp(min=0)  # (n_items, n_items)
            alike = (apart / (-2 * self.width**2)).exp()  # (n_items, n_items)
        mean = alike.mean(dim=0)  # (n_items,)
        alike = alike - mean - mean[:, None] + mean.mean()  # (n_items, n_items)
        size = alike.diagonal().mean()  # ()
        # What rounding leaves of equal rows is no likeness.
        return alike / size if float(size) > 1e-10 else torch.zeros_like(alike)


def sum_of_kernels(features: Iterable[Features], device: torch.device | str | None = None) -> Tensor:
    """The weighted sum of several kernels: (n_items, n_items).

    Args:
        features: one kind or more, all of as many items.
        device: where.

    Raises:
        ValueError: none, kinds of different numbers of items, or all weights are 0.
    """
    listed = list(features)
    sizes = {len(kind.rows) for kind in listed}
    if len(sizes) != 1:
        raise ValueError(f"features must all be of the same items; got {sorted(sizes) or 'none'}")
    used = [kind for kind in listed if kind.weight > 0]
    if not used:
        raise ValueError("no kind of features has a weight above 0")
    total = used[0].weight * used[0].kernel(device)  # (n_items, n_items)
    for kind in used[1:]:
        total += kind.weight * kind.kernel(device)
    return total
