"""How good is a model? One evaluator for all of them.

The protocol is *full ranking*: every item of the catalog that the user has not seen is scored and competes.
Nothing is sampled, and ties are broken fairly (``metrics.rank_topk``). Each metric is one value per user, so
that means come with intervals and two models are compared user by user.
"""

import html
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from statistics import NormalDist
from typing import TYPE_CHECKING, NamedTuple, Protocol

import pandas as pd
import torch
from torch import Tensor, nn

from recsys_lib import metrics as m
from recsys_lib.progress import progress_bar

if TYPE_CHECKING:
    from recsys_lib.data import Interactions

__all__ = [
    "Comparison",
    "Report",
    "Scorer",
    "compare",
    "evaluate",
    "mean_report",
    "sampled_evaluate",
    "users_needed",
]

RANKING: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "ndcg": m.ndcg,
    "recall": m.recall,
    "hit_rate": m.hit_rate,
    "precision": m.precision,
    "mrr": m.mrr,
    "map": m.average_precision,
}
METRICS = (*RANKING, "auc", "coverage", "gini", "novelty", "diversity")

# Scores held at once, float32: 32 MB suit a CPU's caches and memory, 256 MB keep a GPU busy.
_CHUNK_CPU, _CHUNK_GPU = 2**23, 2**26


class Scorer(Protocol):
    """All that ``evaluate`` asks of a model. A module gets its users on its own device."""

    @property
    def n_items(self) -> int:
        """Size of the catalog."""

    def score(self, users: Tensor) -> Tensor:
        """(B,) int64 -> (B, n_items) real scores, higher is better."""


# ------------------------------------------------------------------------------------------------ reports


@dataclass(eq=False, repr=False)
class Report:
    """What ``evaluate`` measured.

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
    """

    metrics: dict[str, float]
    per_user: dict[str, Tensor]
    users: Tensor
    n_relevant: Tensor
    items: Tensor
    seconds: float
    protocol: str
    n_seeds: int = 1
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

    def to_frame(self) -> pd.DataFrame:
        """A row a metric: value, low, high. A metric of all lists together has no interval (NaN)."""
        nothing = (math.nan, math.nan)
        rows = {
            name: (value, *(self.interval(name) if name in self.per_user else nothing))
            for name, value in self.metrics.items()
        }
        frame = pd.DataFrame.from_dict(rows, orient="index", columns=["value", "low", "high"], dtype=float)
        return frame.rename_axis("metric")

    def _title(self) -> str:
        seeds = f", mean of {self.n_seeds} seeds" if self.n_seeds > 1 else ""
        return f"{self.n:,} users, {self.protocol}{seeds}, {self.seconds:.2f} s, 95 % intervals over users"

    def __repr__(self) -> str:
        width = max(map(len, self.metrics))
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


class Comparison(NamedTuple):
    """A paired comparison of two models: the mean difference over users and how sure it is.

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

    def __repr__(self) -> str:
        return (
            f"difference {self.mean:+.4f} [{self.low:+.4f}, {self.high:+.4f}], p = {self.p_value:.4f}, "
            f"{self.n:,} users"
        )


# --------------------------------------------------------------------------------------------- evaluation


def evaluate(
    model: Scorer,
    test: "Interactions",
    *,
    seen: "Interactions | None" = None,
    k: int | Sequence[int] = 10,
    metrics: Sequence[str] | None = None,
    users: Tensor | None = None,
    batch_size: int | None = None,
    seed: int = 0,
    progress: bool = False,
    item_features: Tensor | None = None,
) -> Report:
    """Ranks the whole catalog for every test user and measures the lists.

    A user's *relevant* items are the distinct test items that are not in ``seen``; the *candidates* are all
    items that are not in ``seen``. A user without a relevant item is not ranked: nobody could find anything
    for them. So a user whose every test item was seen before does not count, and neither does one outside
    ``test``.

    Ties in scores are broken at random, reproducibly (see ``metrics.rank_topk``); the result does not depend
    on the batch size. A model in training mode is put in evaluation mode meanwhile.

    Args:
        model: anything with ``score(users)`` and ``n_items``. A score of ``-inf`` declines to recommend the
            item; it is never in a list, and if relevant it is missed.
        test: held-out events.
        seen: events whose items must not be recommended again to their user, as a rule all that the model
            was fitted on. ``None`` excludes nothing.
        k: cutoff or cutoffs of the lists.
        metrics: names out of ``"ndcg"``, ``"recall"``, ``"hit_rate"``, ``"precision"``, ``"mrr"``, ``"map"``,
            ``"auc"``, ``"coverage"``, ``"gini"``, ``"novelty"`` (needs ``seen``, where popularity is
            counted), ``"diversity"`` (needs ``item_features``). By default all that can be had except
            ``"auc"``, which sorts the whole catalog for each user and costs many times the rest.
        users: (V,) restricts the evaluation to these users.
        batch_size: users scored at once; by default as many as make about 8 million scores on a CPU.
        seed: breaks ties.
        progress: show a bar.
        item_features: (n_items, d) one vector an item, for the diversity of lists.

    Returns:
        A ``Report``.

    Raises:
        ValueError: for data of different sizes, no user to rank, a cutoff above the number of items, an
            unknown metric, or scores that are not (B, n_items), NaN or ``+inf`` (naming the user).
    """
    started = time.perf_counter()
    cutoffs = _cutoffs(k, test.n_items)
    names = _metric_names(metrics, seen is not None, item_features is not None)
    task = _Task.make(model, test, seen, users)
    if item_features is not None and (item_features.ndim != 2 or len(item_features) != test.n_items):
        raise ValueError(f"item_features must be ({test.n_items}, d), got shape {tuple(item_features.shape)}")
    # (U, k) and (U,)
    lists, auc = _rank(model, task, task.seen_pairs, cutoffs[-1], "auc" in names, batch_size, seed, progress)
    return _report(task, names, cutoffs, lists, auc, item_features, started, "full ranking")


def sampled_evaluate(
    model: Scorer,
    test: "Interactions",
    seen: "Interactions | None" = None,
    n_negatives: int = 99,
    *,
    k: int | Sequence[int] = 10,
    metrics: Sequence[str] | None = None,
    users: Tensor | None = None,
    batch_size: int | None = None,
    seed: int = 0,
    progress: bool = False,
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
    """
    if not 1 <= n_negatives <= test.n_items:
        raise ValueError(f"n_negatives must be between 1 and {test.n_items} items; got {n_negatives}")
    started = time.perf_counter()
    cutoffs = _cutoffs(k, test.n_items)
    names = _metric_names(list(RANKING) if metrics is None else metrics, False, False)
    task = _Task.make(model, test, seen, users)

    def others(start: int, stop: int) -> tuple[Tensor]:
        """(b, n_items) bool: what is no candidate. The fair order of equal scores is a uniform sample."""
        chance = torch.zeros(stop - start, task.n_items, device=task.users.device)  # (b, n_items)
        chance[task.seen_pairs(start, stop)] = -torch.inf
        chance[task.relevant_pairs(start, stop)] = -torch.inf
        # The ties of the evaluation use `seed`. The draw must not: its winners would win those ties too.
        drawn, _ = m.rank_topk(chance, n_negatives, users=task.users[start:stop], seed=seed + 0x5EED)
        in_play = torch.zeros(stop - start, task.n_items + 1, dtype=torch.bool, device=drawn.device)
        in_play.scatter_(1, drawn % (task.n_items + 1), True)  # a -1, no item, lands in the last column
        in_play[task.relevant_pairs(start, stop)] = True
        return (~in_play[:, :-1],)

    lists, auc = _rank(model, task, others, cutoffs[-1], "auc" in names, batch_size, seed, progress)
    protocol = f"sampled ranking, {n_negatives} negatives"
    return _report(task, names, cutoffs, lists, auc, None, started, protocol)


# ------------------------------------------------------------------------------------ comparing reports


def compare(a: Report, b: Report, name: str, *, level: float = 0.95, seed: int = 0) -> Comparison:
    """Is model a better than model b? The difference is taken user by user, so most of the noise cancels.

    Args:
        a: report of the first model.
        b: report of the second, over the same users and test items.
        name: a metric of both, such as ``"ndcg@10"``.
        level: the interval's coverage.
        seed: of the bootstrap and of the sign flips.

    Returns:
        A ``Comparison``; its mean is a minus b. See ``metrics.paired_test``.

    Raises:
        ValueError: where the reports are not over the same users, test items and protocol.
    """
    _refuse_different([a, b])
    difference = _per_user(a, name) - _per_user(b, name)  # (U,)
    test = m.paired_test(difference, level, seed=seed)
    return Comparison(*test, n=a.n, std=float(difference.std()) if a.n > 1 else math.nan)


def mean_report(reports: Sequence[Report]) -> Report:
    """One report out of several seeds of a model: each user's values are averaged over the seeds.

    Intervals of the result are over users. They do not grow with the number of seeds, and they say how far
    other users might differ, not other seeds.

    Args:
        reports: over the same users, test items, protocol and metrics.
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


@dataclass(frozen=True)
class _Task:
    """Who is ranked and what they should find. A pair is a key, user * n_items + item; keys ascend."""

    users: Tensor  # (U,) ascending
    n_relevant: Tensor  # (U,)
    relevant: Tensor  # (R,) keys of the ranked users' relevant items
    seen: Tensor  # (S,) keys of all that was seen
    n_users: int
    n_items: int

    @classmethod
    def make(
        cls, model: Scorer, test: "Interactions", seen: "Interactions | None", users: Tensor | None
    ) -> "_Task":
        n_items = test.n_items
        if model.n_items != n_items:
            raise ValueError(f"the model knows {model.n_items} items and the test set {n_items}")
        if seen is not None and (seen.n_users, seen.n_items) != (test.n_users, n_items):
            raise ValueError(
                f"test and seen are not of one data set: {test.n_users} users and {n_items} items "
                f"against {seen.n_users} and {seen.n_items}"
            )
        relevant = _keys(test)  # (R,)
        seen_keys = relevant[:0] if seen is None else _keys(seen)  # (S,)
        relevant = relevant[~_among(relevant, seen_keys)]
        if users is not None:
            wanted = users.cpu().long().unique()
            if len(wanted) and not 0 <= int(wanted[0]) <= int(wanted[-1]) < test.n_users:
                raise ValueError(f"users must be between 0 and {test.n_users - 1}")
            relevant = relevant[_among(relevant // n_items, wanted)]
        if not len(relevant):
            raise ValueError(
                "there is no user to evaluate: none of those asked for has a test item outside of `seen`"
            )
        ranked, n_relevant = (relevant // n_items).unique_consecutive(return_counts=True)
        return cls(ranked, n_relevant, relevant, seen_keys, test.n_users, n_items)

    def relevant_pairs(self, start: int, stop: int) -> tuple[Tensor, Tensor]:
        """Row (counted from start) and item of what the users start to stop should find: (E,), (E,)."""
        return _between(*self._relevant_pairs, start, stop)

    def seen_pairs(self, start: int, stop: int) -> tuple[Tensor, Tensor]:
        """Row (counted from start) and item of what the users start to stop have seen: (E,), (E,)."""
        return _between(*self._seen_pairs, start, stop)

    # Decoded once, for all chunks: many small steps in each would cost more than one large one.

    @cached_property
    def _relevant_pairs(self) -> tuple[Tensor, Tensor]:
        return self._decode(self.relevant)

    @cached_property
    def _seen_pairs(self) -> tuple[Tensor, Tensor]:
        return self._decode(self.seen)

    def _decode(self, keys: Tensor) -> tuple[Tensor, Tensor]:
        """Keys of ranked users as places in ``users``, ascending, and items: (E,), (E,)."""
        user = keys // self.n_items
        ranked = _among(user, self.users)
        return torch.searchsorted(self.users, user[ranked]), keys[ranked] % self.n_items

    def hits(self, lists: Tensor) -> Tensor:
        """(U, k) lists -> (U, k) bool: is it relevant?"""
        keys = self.users[:, None] * self.n_items + lists  # (U, k)
        return _among(keys, self.relevant) & (lists >= 0)  # an item of -1 would be the previous user's last


def _between(row: Tensor, item: Tensor, start: int, stop: int) -> tuple[Tensor, Tensor]:
    """The pairs whose row is in start to stop, counted from start. Rows ascend."""
    first, last = torch.searchsorted(row, torch.tensor([start, stop], device=row.device)).tolist()
    return row[first:last] - start, item[first:last]


def _rank(
    model: Scorer,
    task: _Task,
    excluded: Callable[[int, int], tuple[Tensor, ...]],
    k: int,
    with_auc: bool,
    batch_size: int | None,
    seed: int,
    progress: bool,
) -> tuple[Tensor, Tensor | None]:
    """Lists (U, k) and, if asked for, AUC (U,), on the CPU. ``excluded`` gives an index into the scores."""
    device = _device(model)
    if batch_size is None:
        batch_size = max(1, (_CHUNK_CPU if device.type == "cpu" else _CHUNK_GPU) // task.n_items)
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}")
    starts = range(0, len(task.users), batch_size)
    lists, aucs, work = [], [], None
    with torch.no_grad(), _evaluation_mode(model):
        for start in progress_bar(starts, "ranking", enabled=progress):
            stop = min(start + batch_size, len(task.users))
            users = task.users[start:stop].to(device)  # (b,)
            scores = _checked_scores(model.score(users), users, task.n_items)  # (b, N)
            if work is None:
                work = torch.empty_like(scores, memory_format=torch.contiguous_format)
            # Written to below: a copy, for the model may have returned a view of its own state, and always in
            # the same memory, for fresh pages cost more than the copy itself.
            scores = work[: stop - start].copy_(scores)  # (b, N)
            out = tuple(index.to(scores.device) for index in excluded(start, stop))
            if with_auc:
                candidate = torch.ones_like(scores, dtype=torch.bool)  # (b, N)
                candidate[out] = False
                relevant = torch.zeros_like(candidate)  # (b, N)
                relevant[tuple(x.to(scores.device) for x in task.relevant_pairs(start, stop))] = True
                aucs.append(m.auc(scores, relevant, candidate).cpu().double())
            scores[out] = -torch.inf
            items, values = m.rank_topk(scores, k, users=users, seed=seed)  # (b, k)
            if (infinite := values[:, 0] == torch.inf).any():
                raise ValueError(f"the scores of user {int(users[infinite.nonzero()[0, 0]])} contain +inf")
            lists.append(items.cpu())
    # Where all candidates are relevant there is nothing to tell apart: as good as chance.
    return torch.cat(lists), torch.cat(aucs).nan_to_num(0.5) if with_auc else None


def _device(model: object) -> torch.device:
    """Where the model wants its users: its own say, else where its parameters are, else the CPU."""
    device = getattr(model, "device", None)
    if isinstance(device, torch.device):
        return device
    parameters = model.parameters() if isinstance(model, nn.Module) else ()
    return next((p.device for p in parameters), torch.device("cpu"))


def _checked_scores(scores: Tensor, users: Tensor, n_items: int) -> Tensor:
    """The scores, if they are what they should be."""
    if scores.shape != (len(users), n_items) or not scores.is_floating_point():
        raise ValueError(
            f"model.score must return ({len(users)}, {n_items}) real scores for {len(users)} users; "
            f"got {tuple(scores.shape)} {scores.dtype}"
        )
    return scores


def _report(
    task: _Task,
    names: list[str],
    cutoffs: list[int],
    lists: Tensor,
    auc: Tensor | None,
    item_features: Tensor | None,
    started: float,
    protocol: str,
) -> Report:
    """Measures the lists (U, k)."""
    hits = task.hits(lists)  # (U, k)

    def measure(name: str, k: int) -> Tensor | float:
        """A value for each user (U,), or one for all lists together."""
        top = lists[:, :k]  # (U, k)
        if name in RANKING:
            return RANKING[name](hits[:, :k], task.n_relevant)
        if name == "coverage":
            return m.catalog_coverage(top, task.n_items)
        if name == "gini":
            return m.gini(top, task.n_items)
        if name == "novelty":
            counts = (task.seen % task.n_items).bincount(minlength=task.n_items)  # (N,)
            return m.novelty(top, counts, task.n_users)
        assert item_features is not None, name  # "diversity"; the names were checked
        return m.intra_list_diversity(top, item_features.cpu())

    values: dict[str, Tensor | float] = {}
    for name in names:
        if name == "auc" and auc is not None:
            values[name] = auc
        else:
            values |= {f"{name}@{k}": measure(name, k) for k in cutoffs}
    return Report(
        metrics={name: float(v.mean()) if isinstance(v, Tensor) else v for name, v in values.items()},
        per_user={name: v for name, v in values.items() if isinstance(v, Tensor)},
        users=task.users,
        n_relevant=task.n_relevant,
        items=lists,
        seconds=time.perf_counter() - started,
        protocol=protocol,
    )


@contextmanager
def _evaluation_mode(model: object) -> Iterator[None]:
    """Dropout off meanwhile; afterwards exactly those modules train again that did before."""
    training = [x for x in model.modules() if x.training] if isinstance(model, nn.Module) else []
    try:
        for module in training:
            module.training = False
        yield
    finally:
        for module in training:
            module.training = True


def _keys(interactions: "Interactions") -> Tensor:
    """(E,) ascending keys user * n_items + item of the distinct pairs, on the CPU."""
    crow, items = (x.cpu() for x in interactions.csr())
    users = torch.arange(interactions.n_users, device=crow.device).repeat_interleave(crow.diff())  # (E,)
    return users * interactions.n_items + items


def _among(values: Tensor, table: Tensor) -> Tensor:
    """Which of the values are in an ascending table: bool, shaped like values."""
    if not len(table):
        return torch.zeros_like(values, dtype=torch.bool)
    return table[torch.searchsorted(table, values).clamp(max=len(table) - 1)] == values


def _cutoffs(k: int | Sequence[int], n_items: int) -> list[int]:
    """Ascending distinct cutoffs."""
    cutoffs = sorted(set(k) if isinstance(k, Sequence) else {k})
    if not cutoffs or cutoffs[0] < 1 or cutoffs[-1] > n_items:
        raise ValueError(f"k must be between 1 and the number of items, {n_items}; got {k}")
    return cutoffs


def _metric_names(names: Sequence[str] | None, has_seen: bool, has_features: bool) -> list[str]:
    """Checked names, in the order asked for; by default all that can be had but the AUC."""
    missing = {} if has_seen else {"novelty": "seen"}
    missing |= {} if has_features else {"diversity": "item_features"}
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
        if not torch.equal(a.users, b.users) or not torch.equal(a.n_relevant, b.n_relevant):
            raise ValueError(
                f"the reports are over different users or test items ({a.n} and {b.n} users): "
                "evaluate both with the same test, seen and users"
            )
        if a.protocol != b.protocol:
            raise ValueError(f"the reports are of different protocols: {a.protocol} and {b.protocol}")
