"""Values over draws: means, intervals and paired comparisons where the unit is the draw, not the person.

A draw may be a set of items taken out of training, or a seed. What it changes is common to all people, so an
interval over people would be too narrow; here intervals are over draws, by Student's t, and two models are
compared draw by draw.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

import pandas as pd
import torch

from recsys_lib.arguments import whole_number
from recsys_lib.evaluation import Comparison

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["DrawComparison", "Draws", "over_draws", "student_quantile", "student_tail"]


def student_tail(t: float, df: int) -> float:
    """P(|T| > t) for Student's t with a whole number of degrees of freedom: the two-sided p-value.

    With theta = atan(t / sqrt(df)), P(|T| <= t) is

        2/pi (theta + sin cos (1 + 2/3 cos^2 + 2/3 4/5 cos^4 + ...))    for odd df
        sin (1 + 1/2 cos^2 + 1/2 3/4 cos^4 + ...)                       for even df

    each series up to the power df - 3 or df - 2 of the cosine. Abramowitz and Stegun (1964), Handbook of
    Mathematical Functions, 26.7.3 and 26.7.4.

    Args:
        t: the statistic; its sign does not matter.
        df: degrees of freedom, 1 or more.
    """
    df = whole_number(df, "df", at_least=1)
    theta = math.atan2(abs(t), math.sqrt(df))
    sine, square = math.sin(theta), math.cos(theta) ** 2
    term, total = 1.0, 0.0
    first = 2 if df % 2 else 1  # the first numerator of the series' factors
    for power in range(df // 2):
        total += term
        term *= square * (first + 2 * power) / (first + 1 + 2 * power)
    within = 2 / math.pi * (theta + sine * math.cos(theta) * total) if df % 2 else sine * total
    return min(1.0, max(0.0, 1.0 - within))


def student_quantile(df: int, level: float = 0.95) -> float:
    """The t within which Student's t lies with probability ``level``: 2.365 for 7 degrees of freedom.

    Args:
        df: degrees of freedom, 1 or more.
        level: above 0 and below 1.
    """
    if not 0 < level < 1:
        raise ValueError(f"level must be above 0 and below 1, got {level}")
    low, high = 0.0, 1.0
    while student_tail(high, df) > 1 - level:
        high *= 2
    for _ in range(80):  # halving: to the last bit
        middle = (low + high) / 2
        low, high = (middle, high) if student_tail(middle, df) > 1 - level else (low, middle)
    return (low + high) / 2


class DrawComparison(Comparison):
    """A ``Comparison`` whose unit is the draw: ``n`` counts draws, interval and p are by Student's t."""

    __slots__ = ()

    def __repr__(self) -> str:
        return (
            f"difference {self.mean:+.4f} [{self.low:+.4f}, {self.high:+.4f}], p = {self.p_value:.4f}, "
            f"{self.n:,} draws"
        )


def over_draws(values: Iterable[float], level: float = 0.95) -> DrawComparison:
    """The mean of a value over draws, with its interval by Student's t: mean +- t s / sqrt(n).

    Args:
        values: (D,) one a draw; for a comparison in pairs, one model's minus the other's.
        level: the interval's coverage.

    Returns:
        A ``Comparison``. With one draw there is no interval, and its ends are NaN.

    Raises:
        ValueError: no value, or one that is not finite.
    """
    x = torch.as_tensor(list(values), dtype=torch.float64, device="cpu")  # (D,)
    n = len(x)
    if not n or not bool(x.isfinite().all()):
        raise ValueError(f"needs one finite value or more, one a draw; got {x.tolist()}")
    mean = float(x.mean())
    if n == 1:
        return DrawComparison(mean, math.nan, math.nan, math.nan, 1, math.nan)
    std = float(x.std())
    error = std / math.sqrt(n)
    half = student_quantile(n - 1, level) * error
    certain = 1.0 if mean == 0 else 0.0  # where all draws agree to the last bit
    p_value = student_tail(mean / error, n - 1) if error > 0 else certain
    return DrawComparison(mean, mean - half, mean + half, p_value, n, std)


class Draws:
    """Values of several models on the same draws: what ``ColdItems`` measured, or what a record kept.

    Attributes:
        frame: (draws, models) float, a column a model and a row a draw.
        metric: what the values are.

    Args:
        values: (draws, models) a column a model, a row a draw, all finite; or a mapping of names to lists.
        metric: what the values are, ``"ndcg@10"``.

    Raises:
        ValueError: models with different numbers of draws, or a value that is missing.
    """

    def __init__(self, values: pd.DataFrame | Mapping[str, Sequence[float]], metric: str = "ndcg@10") -> None:
        if not isinstance(values, pd.DataFrame):
            lengths = {name: len(listed) for name, listed in values.items()}
            if len(set(lengths.values())) > 1:
                raise ValueError(f"every model needs a value of every draw; got {lengths}")
        self.frame, self.metric = pd.DataFrame(values).astype(float), metric
        broken = [str(name) for name, column in self.frame.items() if not column.map(math.isfinite).all()]
        if broken or self.frame.empty:
            raise ValueError(f"every model needs a finite value of every draw; not so: {broken or 'nothing'}")

    def _column(self, name: str) -> pd.Series:
        if name not in self.frame:
            raise KeyError(f"no model {name!r}; there are {', '.join(map(str, self.frame))}")
        return self.frame[name]

    def mean(self, name: str) -> DrawComparison:
        """A model's mean over the draws, with its interval."""
        return over_draws(self._column(name))

    def compare(self, a: str, b: str, level: float = 0.95) -> DrawComparison:
        """The mean difference of two models, a minus b, draw by draw: the draws' own level cancels.

        Args:
            a: the first model's name.
            b: the second's.
            level: the interval's coverage.
        """
        return over_draws(self._column(a) - self._column(b), level)

    def ranked(self) -> list[str]:
        """The models' names, best first."""
        return [str(name) for name in self.frame.mean().sort_values(ascending=False, kind="stable").index]

    def table(self, against: str | None = None) -> pd.DataFrame:
        """A row a model, best first: mean, low, high, and the lowest and highest draw.

        Args:
            against: a model whose value is subtracted, draw by draw, in three columns more.
        """
        rows = {}
        for name in self.ranked():
            mean, low, high, *_ = self.mean(name)
            of_draws = self._column(name)
            rows[name] = {self.metric: mean, "low": low, "high": high}
            rows[name] |= {"lowest draw": of_draws.min(), "highest draw": of_draws.max()}
            if against is not None:
                difference = self.compare(name, against)
                columns = (f"minus {against}", "from", "to")
                rows[name] |= dict(zip(columns, difference[:3], strict=True))
        return pd.DataFrame.from_dict(rows, orient="index").rename_axis(columns="new items")

    def spread(self, *names: str) -> pd.Series:
        """Standard deviations: of the draws' means, of the models' means, and of what neither explains.

        Each value is the sum of a mean, a draw's part, a model's part and a rest. Where the draws' part is
        larger than the models', the draw matters more than the model.

        Args:
            *names: of models to look at, two or more; all by default. Leave out the controls.

        Returns:
            ``draw``, ``model`` and ``rest``.

        Raises:
            ValueError: fewer than two draws or models.
        """
        chosen = self.frame[list(names)] if names else self.frame
        n_draws, n_models = chosen.shape
        if min(n_draws, n_models) < 2:
            raise ValueError(f"needs two draws and two models or more, got {n_draws} and {n_models}")
        by_draw, by_model = chosen.mean(axis=1), chosen.mean()
        rest = chosen.sub(by_draw, axis=0).sub(by_model, axis=1) + chosen.to_numpy().mean()
        left = (rest.to_numpy() ** 2).sum() / ((n_draws - 1) * (n_models - 1))
        return pd.Series({"draw": by_draw.std(), "model": by_model.std(), "rest": math.sqrt(left)})

    def plot(self, ax: "Axes | None" = None, names: Sequence[str] | None = None) -> "Axes":
        """A thin line for each draw through all models; the means with their intervals, best on top.

        Args:
            ax: to draw on; a new figure by default.
            names: the models shown, in the order given; all, best first, by default.
        """
        import matplotlib.pyplot as plt

        names = self.ranked() if names is None else list(names)
        if ax is None:
            _, ax = plt.subplots(figsize=(6.4, 0.9 + 0.38 * len(names)))
        places = list(range(len(names)))
        for number, (_, row) in enumerate(self.frame.iterrows()):
            label = "a draw" if number == 0 else None
            ax.plot(row[names], places, ".-", color="#999999", lw=0.6, ms=3, label=label, zorder=1)
        for place, name in enumerate(names):
            mean, low, high, *_ = self.mean(name)
            ax.plot([low, high], [place, place], color="C0", lw=3, solid_capstyle="butt", zorder=2)
            label = "mean, 95 % interval" if place == 0 else None
            ax.plot(mean, place, "o", color="#222222", ms=5, zorder=3, label=label)
        label, _, k = self.metric.partition("@")
        ax.set(yticks=places, yticklabels=names, xlabel=f"{label.upper()}@{k}" if k else label.upper())
        ax.invert_yaxis()
        ax.legend(loc="best", fontsize="small")
        return ax
