"""Two towers whose vectors may be cut off: every prefix was trained as if it were the whole."""

import torch
from torch import Tensor

from recsys_lib.data import Interactions
from recsys_lib.models.core.options import option
from recsys_lib.models.two_tower import TwoTower, UserItemPairs
from recsys_lib.quantization import matryoshka_loss, prefix_widths

__all__ = ["MatryoshkaTwoTower"]


class MatryoshkaTwoTower(TwoTower):
    """Trains the first 8, 16, 32 ... numbers of the vectors together, by the mean of their losses.

        L = mean over w in W of loss(u[:w], v[:w])

    A system can then keep as many numbers of each vector as it can afford (``quantization.truncated``), and
    decide that after training, or search by a short prefix and rank what it found by the whole. The price
    is that the first numbers serve several masters, and one product of the vectors for each width.

    Source: Kusupati et al. 2022, "Matryoshka Representation Learning", eq. 1, with equal weights.
    """

    smallest: int = option(
        "the shortest prefix that is trained; each next one is twice as long, up to all of ``dim``",
        default=8,
        at_least=1,
    )

    def __post_init__(self) -> None:
        """Checks what concerns two options."""
        super().__post_init__()
        prefix_widths(self.dim, min(self.smallest, self.dim))
        self._width: int | None = None

    @property
    def widths(self) -> list[int]:
        """The prefixes that are trained; a ``smallest`` beyond ``dim`` leaves the whole alone."""
        return prefix_widths(self.dim, min(self.smallest, self.dim))

    def item_side(self, items: Tensor) -> Tensor:
        """The item tower on numbers (N,): (N, d), or as many as the loss looks at now."""
        return super().item_side(items)[:, : self._width]  # (N, w)

    def objective(
        self,
        vectors: Tensor,
        users: Tensor,
        items: Tensor,
        left_out: Tensor | None,
        examples: UserItemPairs,
        generator: torch.Generator,
    ) -> Tensor:
        """The mean over prefixes of the two-tower's loss; negatives that are drawn are drawn for each."""

        def of_prefix(width: int) -> Tensor:
            self._width = width
            return TwoTower.objective(self, vectors[:, :width], users, items, left_out, examples, generator)

        try:
            return matryoshka_loss(of_prefix, self.widths)
        finally:
            self._width = None

    def _fit(self, interactions: Interactions, validation: Interactions | None, progress: bool) -> None:
        self._width = None  # an epoch that was cut short may have left one
        super()._fit(interactions, validation, progress)
