"""How well one number tells two groups of people apart: the area under the ROC curve, with its interval."""

import math
from statistics import NormalDist
from typing import NamedTuple

import torch
from torch import Tensor

from recsys_lib.arguments import refuse_not_finite
from recsys_lib.evaluation import Comparison, Estimate

__all__ = ["RocAuc", "placements", "roc_auc"]


class RocAuc(NamedTuple):
    """How often one of the group scores above one of the others.

    ``f"{auc:.2f}"`` reads "0.71 [0.66, 0.76]".

    Attributes:
        estimate: the area with its interval, cut to [0, 1].
        over_chance: the area minus one half, for ``says``.
    """

    estimate: Estimate
    over_chance: Comparison

    def __format__(self, spec: str) -> str:
        """The area with its interval, as prose shows it."""
        return format(self.estimate, spec)


def roc_auc(scores: Tensor, positive: Tensor, other: Tensor | None = None, level: float = 0.95) -> RocAuc:
    """The area under the ROC curve with DeLong's interval; no resampling.

        AUC = mean over i, j of psi(x_i, y_j),   psi = 1 if x > y, 1/2 if equal, else 0
        var = S_10 / m + S_01 / n

    S_10 and S_01 are the variances of what each x_i and each y_j has in the mean over the other group.

    Args:
        scores: (N,) real, one a person.
        positive: (N,) bool, who is of the group; two or more of each.
        other: (N,) another number of the same people. ``over_chance`` is then AUC minus the other's AUC, with
            the covariance of the two, in place of minus one half.
        level: the interval's coverage.

    Raises:
        ValueError: shapes that differ, values that are not finite, fewer than two in a group, or a level
            outside (0, 1).

    Source: DeLong, DeLong and Clarke-Pearson 1988, "Comparing the Areas under Two or More Correlated Receiver
    Operating Characteristic Curves".
    """
    if not 0 < level < 1:
        raise ValueError(f"level must be between 0 and 1, as in 0.95; got {level}")
    x, y = placements(scores, positive)  # (m,), (n,)
    value, z = float(x.mean()), NormalDist().inv_cdf((1 + level) / 2)
    error = _error(x, y)
    estimate = Estimate(value, max(0.0, value - z * error), min(1.0, value + z * error))
    if other is None:
        gap = value - 0.5
    else:
        x_other, y_other = placements(other, positive)
        x, y = x - x_other, y - y_other
        gap, error = float(x.mean()), _error(x, y)
    certain = 1.0 if gap == 0 else 0.0  # where the two groups do not overlap at all
    p_value = 2 * NormalDist().cdf(-abs(gap) / error) if error > 0 else certain
    n = len(scores)
    over = Comparison(gap, gap - z * error, gap + z * error, p_value, n, error * math.sqrt(n))
    return RocAuc(estimate, over)


def placements(scores: Tensor, positive: Tensor) -> tuple[Tensor, Tensor]:
    """For each one of the group, the share of others below; for each other, the share of the group above.

    Args:
        scores: (N,).
        positive: (N,) bool.

    Returns:
        (m,) and (n,) float64 on the CPU; a tie counts one half. Both have the mean AUC.
    """
    if scores.ndim != 1 or positive.shape != scores.shape or positive.dtype != torch.bool:
        raise ValueError(
            f"needs scores (N,) and positive (N,) bool, got {tuple(scores.shape)} and "
            f"{positive.dtype} {tuple(positive.shape)}"
        )
    refuse_not_finite(scores, "scores", row="person")
    values, mask = scores.detach().cpu().double(), positive.cpu()  # (N,), (N,)
    x, y = values[mask], values[~mask]  # (m,), (n,)
    if min(len(x), len(y)) < 2:
        raise ValueError(
            f"needs two or more of each group, got {len(x)} of the one and {len(y)} of the other"
        )
    return _share_below(x, y), 1 - _share_below(y, x)


def _share_below(a: Tensor, b: Tensor) -> Tensor:
    """The share of b (n,) below each a (m,), ties one half: (m,)."""
    ordered = b.sort().values  # (n,)
    below = torch.searchsorted(ordered, a) + torch.searchsorted(ordered, a, right=True)  # (m,)
    return below.double() / (2 * len(b))


def _error(x: Tensor, y: Tensor) -> float:
    """The standard error of the mean of all pairs: x (m,) and y (n,) are its two marginal means."""
    return math.sqrt(float(x.var()) / len(x) + float(y.var()) / len(y))
