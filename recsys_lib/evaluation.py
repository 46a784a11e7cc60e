"""How good is a model? One evaluator for all of them.

The protocol is *full ranking*: every item of the catalog that the user has not seen is scored and competes.
Nothing is sampled, and ties are broken fairly (``ranking.rank_topk``). Each metric is one value per user, so
that means come with intervals and two models are compared user by user.
"""

import html
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import NormalDist
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from recsys_lib import metrics as m
from recsys_lib.arguments import Indices, refuse_not_finite, whole_number
from recsys_lib.data.catalogs import difference_of_ids
from recsys_lib.ranking import (
    Fingerprint,
    HeldOut,
    LeftOut,
    Scorer,
    rank_topk,
    score_batches,
    seen_in,
)

if TYPE_CHECKING:
    from recsys_lib.data import Interactions

__all__ = [
    "Comparison",
    "Estimate",
    "Report",
    "Scorer",
    "compare",
    "evaluate",
    "mean_report",
    "paired",
    "sampled_evaluate",
    "users_needed",
]

METRICS = (*m.RANKING, "auc", *m.BEYOND_ACCURACY)


# ------------------------------------------------------------------------------------------------ reports


@dataclass(eq=False, repr=False)
class Report:
    """What ``evaluate`` measured.

    ``f"{report.of('ndcg@10'):.3f}"`` puts a metric with its interval into a sentence, and ``f"{report:.3f}"``
    the first one.

    Attributes:
        metrics: name to value: ``"ndcg@10"``, ``"coverage@10"``, ``"auc"``.
        per_user: name to (U,) float64 on the CPU, for every metric that is a mean over users.
        users: (U,) int64, ascending: the users who were ranked.
        n_relevant: (U,) int64, how many items each of them had to find.
        items: (U, k) int64 lists at the largest cutoff, ``-1`` where a user ran out of candidates; after
            ``mean_report`` (S, U, k), one layer a seed.
        seconds: wall-clock time of the evaluation.
        protocol: ``"full ranking"``, or what was done instead.
        n_seeds: how many reports were averaged.
        over: tells whether two reports are over the same test items and candidates. None in a report made by
            hand: then users and counts alone say it.
    """

    metrics: dict[str, float]
    per_user: dict[str, Tensor]
    users: Tensor
    n_relevant: Tensor
    items: Tensor
    seconds: float
    protocol: str
    n_seeds: int = 1
    over: Fingerprint | None = None
    _intervals: dict[tuple[str, float], tuple[float, float]] = field(default_factory=dict, init=False)

    @property
    def n(self) -> int:
        """Number of users that the means are over."""
        return len(self.users)

    def interval(self, name: str, level: float = 0.95) -> tuple[float, float]:
        """Bootstrap interval (low, high) of a metric's mean over users."""
        if (name, level) not in self._intervals:
            self._intervals[name, level] = m.bootstrap_interval(_per_user(self, name), level)
        return self._intervals[name, level]

    def of(self, name: str) -> "Estimate":
        """A metric with its 95 % interval; the ends are NaN where there is none.

        Args:
            name: of the metric, ``"ndcg@10"``. One of all lists together, as the coverage, has no interval.

        Raises:
            ValueError: no such metric.
        """
        if name not in self.metrics:
            raise ValueError(f"no metric {name!r}; there are {', '.join(self.metrics)}")
        values = self.per_user.get(name)
        known = values is not None and len(values) > 0 and bool(values.isfinite().all())
        return Estimate(self.metrics[name], *(self.interval(name) if known else (math.nan, math.nan)))

    def __format__(self, spec: str) -> str:
        """The first metric with its interval, ``f"{report:.3f}"``; without a format the whole report."""
        return format(self.of(next(iter(self.metrics))), spec) if spec else str(self)

    def to_frame(self) -> pd.DataFrame:
        """A row a metric: value, low, high. A metric of all lists together has no interval (NaN)."""
        rows = {name: self.of(name) for name in self.metrics}
        frame = pd.DataFrame.from_dict(rows, orient="index", columns=["value", "low", "high"], dtype=float)
        return frame.rename_axis("metric")

    def _title(self) -> str:
        seeds = f", mean of {self.n_seeds} seeds" if self.n_seeds > 1 else ""
        return f"{self.n:,} users, {self.protocol}{seeds}, {self.seconds:.2f} s, 95 % intervals over users"

    def __repr__(self) -> str:
        width = max(map(len, self.metrics), default=0)
        lines = [
            f"{name:<{width}}  {value:.4f}" + ("" if low != low else f"  [{low:.4f}, {high:.4f}]")
            for name, value, low, high in self.to_frame().itertuples()
        ]
        return "\n".join([f"Report: {self._title()}", *lines])

    def _repr_html_(self) -> str:
        rows = "".join(
            f"<tr><th>{html.escape(str(name))}</th><td>{value:.4f}</td>"
            + ("<td></td></tr>" if low != low else f"<td>[{low:.4f}, {high:.4f}]</td></tr>")
            for name, value, low, high in self.to_frame().itertuples()
        )
        return (
            f"<table><caption>{html.escape(self._title())}</caption>"
            f"<thead><tr><th>metric</th><th>value</th><th>interval</th></tr></thead><tbody>{rows}</tbody></table>"
        )


class Estimate(NamedTuple):
    """A metric's mean over users and how sure it is.

    Attributes:
        value: the mean.
        low: lower end of its bootstrap interval; NaN where there is none.
        high: upper end.
    """

    value: float
    low: float
    high: float

    def __format__(self, spec: str) -> str:
        """The value with its interval, as prose shows it: ``f"{ndcg:.3f}"`` is "0.165 [0.154, 0.176]".

        Minus signs are true ones, nothing reads -0.000, and no line breaks within.

        Args:
            spec: how each number is formatted; ``.4f`` by default.
        """
        return _with_interval(self.value, self.low, self.high, spec or ".4f")


class Comparison(NamedTuple):
    """A paired comparison of two models: the mean difference over users and how sure it is.

    ``f"{gap:.3f}"`` puts it into a sentence, and ``gap.says(...)`` chooses the words.

    Attributes:
        mean: first model minus second.
        low: lower end of its bootstrap interval.
        high: upper end.
        p_value: two-sided, from random sign flips.
        n: users.
        std: standard deviation of the users' differences, for ``users_needed``.
    """

    mean: float
    low: float
    high: float
    p_value: float
    n: int
    std: float

    @property
    def clear(self) -> bool:
        """Whether the interval leaves out zero, so that the data tell the two apart."""
        return self.low > 0 or self.high < 0

    def says(self, *, above: str, below: str, otherwise: str) -> str:
        """Chooses the words that the data support.

        ::

            gap.says(above="A is ahead", below="B is ahead", otherwise="the data cannot tell them apart")

        Args:
            above: for an interval above zero.
            below: for an interval below zero.
            otherwise: for one that holds zero.
        """
        if not self.clear:
            return otherwise
        return above if self.low > 0 else below

    def __format__(self, spec: str) -> str:
        """The difference with its interval, as prose shows it: ``f"{gap:.3f}"`` is "+0.012 [+0.006, +0.018]".

        Minus signs are true ones, nothing reads -0.000, and no line breaks within.

        Args:
            spec: how each number is formatted, always with its sign; ``.4f`` by default.
        """
        spec = spec or ".4f"
        spec = spec if spec.startswith("+") else f"+{spec}"
        return _with_interval(self.mean, self.low, self.high, spec)

    def __repr__(self) -> str:
        return (
            f"difference {self.mean:+.4f} [{self.low:+.4f}, {self.high:+.4f}], p = {self.p_value:.4f}, "
            f"{self.n:,} users"
        )


def _with_interval(value: float, low: float, high: float, spec: str) -> str:
    """A value and its interval in the typography of prose; where there is no interval, the value alone."""

    def number(x: float) -> str:
        text = format(x, spec)
        if not any(digit in text for digit in "123456789") and math.isfinite(x):
            text = format(0.0, spec)  # a small negative number would round to a zero with a sign
        return text.replace("-", "\N{MINUS SIGN}")

    if math.isnan(low) or math.isnan(high):
        return number(value)
    return f"{number(value)}\N{NO-BREAK SPACE}[{number(low)},\N{NO-BREAK SPACE}{number(high)}]"


# --------------------------------------------------------------------------------------------- evaluation


def evaluate(
    model: Scorer,
    test: "Interactions",
    *,
    seen: "Interactions | None" = None,
    k: int | Sequence[int] = 10,
    metrics: Sequence[str] | None = None,
    users: Indices | None = None,
    batch_size: int | None = None,
    seed: int = 0,
    progress: bool = True,
    item_features: Tensor | np.ndarray | None = None,
) -> Report:
    """Ranks the whole catalog for every test user and measures the lists.

    A user's *relevant* items are the distinct test items that are not in ``seen``; the *candidates* are all
    items that are not in ``seen``. A user without a relevant item is not ranked: nobody could find anything
    for them. So a user whose every test item was seen before does not count, and neither does one outside
    ``test``.

    Ties in scores are broken at random, reproducibly (see ``ranking.rank_topk``); the result does not depend
    on the batch size. A model in training mode is put in evaluation mode meanwhile.

    A list may be shorter than k, or empty. An empty one has a novelty and a diversity of 0; where all are
    empty the coverage is 0, and the Gini coefficient, which compares shares of what is shown, is NaN.

    Args:
        model: anything with ``score(users)`` and ``n_items``. A score of ``-inf`` declines to recommend the
            item; it is never in a list, and if relevant it is missed. Scores are a tensor or numpy's array.
        test: held-out events.
        seen: events whose items must not be recommended again to their user, as a rule all that the model
            was fitted on. ``None`` excludes nothing.
        k: cutoff or cutoffs of the lists.
        metrics: names out of ``"ndcg"``, ``"recall"``, ``"hit_rate"``, ``"precision"``, ``"mrr"``, ``"map"``,
            ``"auc"``, ``"coverage"``, ``"gini"``, ``"novelty"`` (needs ``seen``, where popularity is
            counted), ``"diversity"`` (needs ``item_features``). By default all that can be had except
            ``"auc"``, which sorts the whole catalog for each user and costs many times the rest.
        users: (V,) restricts the evaluation to these users: a tensor, a list or an array of whole numbers.
        batch_size: users scored at once; by default as many as make about 8 million scores on a CPU.
        seed: breaks ties.
        progress: show a bar.
        item_features: (n_items, d) one vector an item, for the diversity of lists.

    Returns:
        A ``Report``.

    Raises:
        TypeError: for a test set that is not ``Interactions``, for users (such as a boolean mask), a cutoff,
            a batch size or a seed that are no whole numbers, or for scores that are no tensor.
        ValueError: for data of different sizes or ids, no user to rank, a cutoff above the number of items,
            an unknown metric, scores that are not (B, n_items), NaN or ``+inf`` (naming the user), or
            features that are not finite (naming the item).
    """
    started = time.perf_counter()
    held_out = _held_out(model, test, seen, users)
    seed = whole_number(seed, "seed")
    cutoffs = _cutoffs(k, test.n_items)
    available = {"seen": seen is not None, "item_features": item_features is not None}
    names = _metric_names(metrics, available)
    features = None if item_features is None else _features(item_features, test.n_items)
    left_out = None if seen is None else seen_in(seen)
    lists, auc = _rank(model, held_out, left_out, cutoffs[-1], "auc" in names, batch_size, seed, progress)
    known = {
        "n_users": test.n_users,
        "item_counts": None if seen is None else seen.item_counts().cpu(),
        "item_features": features,
    }
    over = held_out.fingerprint(test, seen)
    return _report(held_out, names, cutoffs, lists, auc, known, started, "full ranking", over)


def sampled_evaluate(
    model: Scorer,
    test: "Interactions",
    *,
    seen: "Interactions | None" = None,
    n_negatives: int = 99,
    k: int | Sequence[int] = 10,
    metrics: Sequence[str] | None = None,
    users: Indices | None = None,
    batch_size: int | None = None,
    seed: int = 0,
    progress: bool = True,
) -> Report:
    """The protocol *not* to use: relevant items compete with a few random ones instead of the catalog.

    Ranking a held-out item against 99 random ones was common because it is cheap. It is not a cheaper
    estimate of the same thing: the value is inflated, most of what decides it happens far below the top of
    the list, and two models can change places. Krichene and Rendle (2020), On Sampled Metrics for Item
    Recommendation, KDD. It is here to show that.

    Candidates of a user are the relevant items and ``n_negatives`` items drawn uniformly, without
    replacement, from those neither seen nor relevant (all of them, where they are fewer). Models evaluated
    with one seed meet the same candidates.

    Args:
        model: as for ``evaluate``, and so are the arguments not listed.
        test: held-out events.
        seen: events whose items are neither relevant nor drawn.
        n_negatives: random items for each user.
        k: cutoff or cutoffs of the lists.
        metrics: ranking metrics and ``"auc"``; by default the ranking metrics.
        users: (V,) restricts the evaluation to these users.
        batch_size: users scored at once.
        seed: draws the candidates and breaks ties.
        progress: show a bar.

    Returns:
        A ``Report`` whose ``protocol`` says what was done.

    Raises:
        TypeError, ValueError: as ``evaluate``; and for ``n_negatives`` out of range.
    """
    started = time.perf_counter()
    held_out = _held_out(model, test, seen, users)
    seed, n_negatives = whole_number(seed, "seed"), whole_number(n_negatives, "n_negatives")
    if not 1 <= n_negatives <= test.n_items:
        raise ValueError(f"n_negatives must be between 1 and {test.n_items} items; got {n_negatives}")
    cutoffs = _cutoffs(k, test.n_items)
    names = _metric_names(list(m.RANKING) if metrics is None else metrics, {})
    already = None if seen is None else seen_in(seen)

    def others(asked: Tensor) -> tuple[Tensor]:
        """(b, n_items) bool: what is no candidate. The fair order of equal scores is a uniform sample."""
        asked = asked.cpu()
        chance = torch.zeros(len(asked), test.n_items, device=asked.device)  # (b, n_items)
        if already is not None:
            chance[tuple(index.cpu() for index in already(asked))] = -torch.inf
        chance[held_out.pairs(asked)] = -torch.inf
        # The ties of the evaluation use `seed`. The draw must not: its winners would win those ties too.
        drawn, _ = rank_topk(chance, n_negatives, users=asked, seed=seed + 0x5EED)  # (b, n_negatives)
        in_play = torch.zeros(len(asked), test.n_items + 1, dtype=torch.bool, device=asked.device)
        in_play.scatter_(1, drawn % (test.n_items + 1), True)  # a -1, no item, lands in the last column
        in_play[held_out.pairs(asked)] = True
        return (~in_play[:, :-1],)

    lists, auc = _rank(model, held_out, others, cutoffs[-1], "auc" in names, batch_size, seed, progress)
    protocol = f"sampled ranking, {n_negatives} negatives"
    known = {"n_users": test.n_users}
    over = held_out.fingerprint(test, seen)._replace(sample=f"seed {seed}")
    return _report(held_out, names, cutoffs, lists, auc, known, started, protocol, over)


# ------------------------------------------------------------------------------------ comparing reports


def compare(
    a: Report, b: Report, name: str, *, same_items: bool = True, level: float = 0.95, seed: int = 0
) -> Comparison:
    """Is model a better than model b? The difference is taken user by user, so most of the noise cancels.

    Args:
        a: report of the first model.
        b: report of the second, over the same users and test items.
        name: a metric of both, such as ``"ndcg@10"``.
        same_items: False compares users who had other items to find in each, as where what is compared is
            not two models but two ways to hold out.
        level: the interval's coverage.
        seed: of the bootstrap and of the sign flips.

    Returns:
        A ``Comparison``; its mean is a minus b. See ``metrics.paired_test``.

    Raises:
        TypeError: a seed that is no whole number.
        ValueError: where the reports are not over the same users, test items, candidates and protocol; the
            message says what differs.
    """
    if same_items or a.protocol != b.protocol or not torch.equal(a.users, b.users):
        _refuse_different([a, b])
    return paired(_per_user(a, name) - _per_user(b, name), level=level, seed=seed)


def paired(differences: Tensor, *, level: float = 0.95, seed: int = 0) -> Comparison:
    """The mean of paired differences, with its interval; for figures that no report holds.

    Args:
        differences: (U,) one a user, such as a model's squared error minus another's.
        level: the interval's coverage.
        seed: of the bootstrap and of the sign flips.

    Raises:
        TypeError, ValueError: as ``metrics.paired_test``.
    """
    test, n = m.paired_test(differences, level, seed=seed), len(differences)
    return Comparison(*test, n=n, std=float(differences.std()) if n > 1 else math.nan)


def mean_report(reports: Sequence[Report]) -> Report:
    """One report out of several seeds of a model: each user's values are averaged over the seeds.

    Intervals of the result are over users. They do not grow with the number of seeds, and they say how far
    other users might differ, not other seeds.

    Args:
        reports: over the same users, test items, candidates, protocol and metrics.

    Raises:
        ValueError: no report, or reports that differ in one of these; the message says in which.
    """
    if not reports:
        raise ValueError("mean_report needs at least one report")
    _refuse_different(reports)
    first = reports[0]
    if any(r.metrics.keys() != first.metrics.keys() or r.items.shape != first.items.shape for r in reports):
        raise ValueError("the reports to average must have the same metrics and cutoffs")
    return Report(
        metrics={name: sum(r.metrics[name] for r in reports) / len(reports) for name in first.metrics},
        per_user={name: torch.stack([r.per_user[name] for r in reports]).mean(0) for name in first.per_user},
        users=first.users,
        n_relevant=first.n_relevant,
        items=torch.stack([r.items for r in reports]),  # (S, U, k)
        seconds=sum(r.seconds for r in reports),
        protocol=first.protocol,
        n_seeds=len(reports),
        over=first.over,
    )


def users_needed(difference_std: float, effect: float, power: float = 0.8, level: float = 0.95) -> int:
    """How many test users it takes to see a difference, by the normal approximation.

    n = ((z_{1 - alpha/2} + z_power) * std / effect)^2 with alpha = 1 - level: the number of users for which a
    two-sided paired test finds a true mean difference of ``effect`` with probability ``power``.

    Args:
        difference_std: standard deviation over users of the paired difference (``Comparison.std``).
        effect: the mean difference to be found, in the metric's units.
        power: the wanted probability of finding it.
        level: 1 minus the probability of finding a difference where there is none.
    """
    if not (difference_std > 0 and effect != 0 and 0 < power < 1 and 0 < level < 1):
        raise ValueError("needs a positive difference_std, an effect other than 0, power and level in (0, 1)")
    z = NormalDist().inv_cdf
    return math.ceil(((z((1 + level) / 2) + z(power)) * difference_std / effect) ** 2)


# ------------------------------------------------------------------------------------- behind evaluate


def _held_out(
    model: Scorer, test: "Interactions", seen: "Interactions | None", users: Indices | None
) -> HeldOut:
    """Who is ranked; refuses a model of another catalog."""
    if isinstance(model, type):
        raise TypeError(f"the model must be a fitted one, got the class {model.__name__} itself")
    held_out = HeldOut.of(test, seen, users)
    if model.n_items != test.n_items:
        raise ValueError(f"the model knows {model.n_items} items and the test set {test.n_items}")
    for role in ("user", "item"):  # a scorer of one's own need not know ids
        known, given = (getattr(thing, f"{role}_ids", None) for thing in (model, test))
        if known is None or given is None:
            continue
        if difference := difference_of_ids(known, given, role):
            raise ValueError(f"the model (first) and the test set (second) are of other data: {difference}")
    return held_out


def _features(features: Any, n_items: int) -> Tensor:
    """(n_items, d) vectors on the CPU, all of them finite."""
    if not isinstance(features, Tensor):
        try:
            features = torch.as_tensor(np.array(features), device="cpu")
        except (TypeError, ValueError) as error:
            raise TypeError(f"item_features must be a tensor or an array of numbers ({error})") from error
    if features.ndim != 2 or len(features) != n_items:
        raise ValueError(f"item_features must be ({n_items}, d), got shape {tuple(features.shape)}")
    refuse_not_finite(features, "item_features", "item")
    return features.cpu()


def _rank(
    model: Scorer,
    held_out: HeldOut,
    left_out: LeftOut | None,
    k: int,
    with_auc: bool,
    batch_size: int | None,
    seed: int,
    progress: bool,
) -> tuple[Tensor, Tensor | None]:
    """Lists (U, k) and, if asked for, AUC (U,), on the CPU."""
    lists, aucs = [], []
    for users, scores in score_batches(
        model, held_out.users, left_out, batch_size=batch_size, progress=progress
    ):
        items, values = rank_topk(scores, k, users=users, seed=seed)  # (b, k)
        if (infinite := values[:, 0] == torch.inf).any():
            raise ValueError(f"the scores of user {int(users[infinite.nonzero()[0, 0]])} contain +inf")
        if with_auc:
            candidate = torch.ones_like(scores, dtype=torch.bool)  # (b, N)
            if left_out is not None:
                candidate[tuple(index.to(scores.device) for index in left_out(users))] = False
            relevant = torch.zeros_like(candidate)  # (b, N)
            relevant[tuple(index.to(scores.device) for index in held_out.pairs(users))] = True
            aucs.append(m.auc(scores, relevant, candidate).cpu().double())
        lists.append(items.cpu())
    # Where all candidates are relevant there is nothing to tell apart: as good as chance.
    return torch.cat(lists), torch.cat(aucs).nan_to_num(0.5) if with_auc else None


def _report(
    held_out: HeldOut,
    names: list[str],
    cutoffs: list[int],
    lists: Tensor,
    auc: Tensor | None,
    known: dict[str, Any],
    started: float,
    protocol: str,
    over: Fingerprint,
) -> Report:
    """Measures the lists (U, k)."""
    hits = held_out.hits(lists)  # (U, k)

    def measure(name: str, k: int) -> Tensor | float:
        """A value for each user (U,), or one for all lists together."""
        if name in m.RANKING:
            return m.RANKING[name](hits[:, :k], held_out.n_relevant)
        return m.BEYOND_ACCURACY[name].measure(m.Lists(lists[:, :k], held_out.n_items, **known))

    values: dict[str, Tensor | float] = {}
    for name in names:
        if name == "auc" and auc is not None:
            values[name] = auc
        else:
            values |= {f"{name}@{k}": measure(name, k) for k in cutoffs}
    return Report(
        metrics={name: float(v.mean()) if isinstance(v, Tensor) else v for name, v in values.items()},
        per_user={name: v for name, v in values.items() if isinstance(v, Tensor)},
        users=held_out.users,
        n_relevant=held_out.n_relevant,
        items=lists,
        seconds=time.perf_counter() - started,
        protocol=protocol,
        over=over,
    )


def _cutoffs(k: Any, n_items: int) -> list[int]:
    """Ascending distinct cutoffs, of one or of a list or an array of them."""
    listed = isinstance(k, Sequence) and not isinstance(k, (str, bytes))
    several = listed or (isinstance(k, np.ndarray) and k.ndim > 0)
    cutoffs = sorted({whole_number(cutoff, "k") for cutoff in (k if several else [k])})
    if not cutoffs or cutoffs[0] < 1 or cutoffs[-1] > n_items:
        raise ValueError(f"k must be between 1 and the number of items, {n_items}; got {k}")
    return cutoffs


def _metric_names(names: Sequence[str] | None, available: dict[str, bool]) -> list[str]:
    """Checked names, in the order asked for; by default all that can be had but the AUC."""
    needs = {name: metric.needs for name, metric in m.BEYOND_ACCURACY.items()}
    missing = {name: need for name, need in needs.items() if need and not available.get(need)}
    if names is None:
        return [name for name in METRICS if name != "auc" and name not in missing]
    names = [names] if isinstance(names, str) else list(names)
    for name in names:
        if name not in METRICS:
            raise ValueError(f"unknown metric {name!r}; there are {', '.join(METRICS)}; cutoffs go in k")
        if name in missing:
            raise ValueError(f"the metric {name!r} needs `{missing[name]}`")
    return list(dict.fromkeys(names))


def _per_user(report: Report, name: str) -> Tensor:
    if name not in report.per_user:
        raise ValueError(f"no per-user values of {name!r}; there are {', '.join(report.per_user)}")
    return report.per_user[name]


def _refuse_different(reports: Sequence[Report]) -> None:
    """Paired values must belong together."""
    a = reports[0]
    for b in reports[1:]:
        if a.protocol != b.protocol:
            raise ValueError(f"the reports are of different protocols: {a.protocol} and {b.protocol}")
        if difference := _difference(a, b):
            raise ValueError(
                f"the reports are over different users or test items: {difference}. Evaluate both with the "
                "same test, seen and users"
            )


def _difference(a: Report, b: Report) -> str:
    """In what two reports of one protocol differ, or nothing."""
    if not torch.equal(a.users, b.users):
        both = int(torch.isin(a.users, b.users).sum())
        return f"{a.n} and {b.n} users, of whom {both} are in both"
    if len(other := (a.n_relevant != b.n_relevant).nonzero().flatten()):
        counts = f"{int(a.n_relevant[other[0]])} and {int(b.n_relevant[other[0]])}"
        return f"user {int(a.users[other[0]])} has {counts} items to find"
    if a.over is None or b.over is None:
        return ""
    words = {
        "catalog": "the ids of their users or items are not the same",
        "relevant": "the users have as many items to find in both, but not the same ones",
        "seen": "`seen` was not the same, so other candidates competed",
        "sample": f"the random candidates were drawn with {a.over.sample} and {b.over.sample}",
    }
    return next((text for name, text in words.items() if getattr(a.over, name) != getattr(b.over, name)), "")
