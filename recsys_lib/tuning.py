"""Hyper-parameters, chosen on validation data with an equal budget for every model.

A comparison of models is only as fair as their tuning. ``tune`` gives each the same number of trials, starts
from the model's defaults, and never touches test data. ``tune_epochs`` finds the length of training by early
stopping, within each trial.
"""

import inspect
import itertools
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch

from recsys_lib.arguments import whole_number
from recsys_lib.evaluation import evaluate
from recsys_lib.metrics import RANKING
from recsys_lib.models.core.contract import Recommender
from recsys_lib.progress import progress_bar

if TYPE_CHECKING:
    from recsys_lib.data.splits import Split

__all__ = ["Tuning", "tune", "tune_epochs"]


@dataclass(eq=False, repr=False)
class Tuning:
    """What ``tune`` found.

    Attributes:
        best: hyper-parameters of the best trial, ``fixed`` ones included: ``make(**best)``.
        trials: one row a trial, in order, the defaults first: the hyper-parameters, the metric's value on
            validation, ``fit_seconds`` and ``evaluate_seconds``. A hyper-parameter left at a default that
            cannot be known is missing.
        metric: what was maximized.
        seconds: wall-clock time of it all.
    """

    best: dict[str, Any]
    trials: pd.DataFrame
    metric: str
    seconds: float

    def __repr__(self) -> str:
        values = self.trials[self.metric]
        return (
            f"Tuning: {self.metric} {values.max():.4f} on validation (defaults {values.iloc[0]:.4f}), "
            f"{len(values)} trials, {self.seconds:.1f} s, best {self.best}"
        )


def tune(
    make: Callable[..., Recommender],
    space: Mapping[str, Sequence[Any]],
    split: "Split",
    *,
    budget: int,
    metric: str = "ndcg@10",
    seed: int = 0,
    fixed: Mapping[str, Any] | None = None,
    device: str | torch.device = "auto",
    progress: bool = True,
) -> Tuning:
    """Random search over a grid, without replacement. Bergstra and Bengio (2012), Random search.

    The first trial is ``make(**fixed)``, the defaults, so tuning cannot do worse than they on validation. The
    others are drawn from the grid; a grid smaller than the budget is searched in full. Each trial is fitted
    on ``split.train`` and ranked on ``split.validation`` with the training items excluded. ``split.test`` is
    not touched. Of equal trials the earliest wins. The grid is never laid out, however large it is.

    Args:
        make: a model's class, or a function that returns a new model.
        space: for each hyper-parameter the values to try, a list or an array; a value that is listed twice
            counts once, and numbers of numpy become Python's.
        split: with ``train`` and ``validation``.
        budget: trials, the defaults included.
        metric: a ranking metric with its cutoff, ``"ndcg@10"``, or ``"auc"``; it is maximized.
        seed: chooses the trials, and breaks ties in the rankings. A model's own seed belongs in ``fixed``.
        fixed: hyper-parameters that every trial gets.
        device: where each trial is fitted, see ``Recommender.fit``.
        progress: show a bar.

    Returns:
        A ``Tuning``.

    Raises:
        TypeError: for a budget or a seed that is no whole number.
        ValueError: for a space, budget or metric that makes no sense.
        RuntimeError: where a trial fails, naming its hyper-parameters; the cause is attached.
    """
    started = time.perf_counter()
    fixed = dict(fixed or {})
    name, k = _metric(metric)
    seed = whole_number(seed, "seed", at_least=0)
    if (budget := whole_number(budget, "budget")) < 1:
        raise ValueError(f"budget must be at least 1 trial, got {budget}")
    grid = {parameter: _values(parameter, values) for parameter, values in space.items()}
    if both := sorted(space.keys() & fixed.keys()):
        raise ValueError(f"{', '.join(both)} cannot be both fixed and in the space")

    rows: list[dict[str, Any]] = []
    trials = list(_trials(grid, _defaults(make, grid), budget, seed))
    for number, chosen in enumerate(progress_bar(trials, "tuning", enabled=progress)):
        parameters = {**fixed, **chosen}
        try:
            fit_started = time.perf_counter()
            model = make(**parameters)
            # A model of one's own need not know where it runs.
            where: Any = {"device": device, "progress": False} if isinstance(model, Recommender) else {}
            model = model.fit(split.train, **where)
            if getattr(model, "stopped_by", "") == "interrupt":
                raise KeyboardInterrupt  # a trial cut short must not be judged as if it were whole
            fit_seconds = time.perf_counter() - fit_started
            report = evaluate(
                model, split.validation, seen=split.train, k=k, metrics=[name], seed=seed, progress=False
            )
        except Exception as error:
            raise RuntimeError(
                f"trial {number + 1} of {len(trials)} failed with {parameters or 'the defaults'}: {error!r}"
            ) from error
        seconds = {"fit_seconds": fit_seconds, "evaluate_seconds": report.seconds}
        rows.append({**chosen, metric: report.metrics[metric], **seconds})

    best = max(range(len(rows)), key=lambda i: rows[i][metric])  # the first of equals
    frame = pd.DataFrame(rows, columns=[*space, metric, "fit_seconds", "evaluate_seconds"])
    return Tuning({**fixed, **trials[best]}, frame, metric, time.perf_counter() - started)


def tune_epochs(
    make: Callable[..., Recommender],
    space: Mapping[str, Sequence[Any]],
    split: "Split",
    *,
    budget: int,
    patience: int = 5,
    seed: int = 0,
    device: str | torch.device = "auto",
    progress: bool = True,
) -> Tuning:
    """Random search in which each trial finds its number of epochs by early stopping.

    A grid of epochs that ends too early favors models that learn fast. Here one training tries all lengths up
    to the last: validation is looked at after each number in ``space["epochs"]``, until ``patience`` looks in
    a row have brought nothing better, and the best look gives the number. The first trial is the first value
    of each option; the others are drawn from the grid without replacement.

    Args:
        make: a trained model's class, or a function that returns a new one; it is given ``epochs``,
            ``check_every``, ``patience`` and ``seed`` besides the options.
        space: for each option the values to try, and under ``"epochs"`` the evenly spaced looks, as
            ``range(10, 401, 10)``.
        split: with ``train`` and ``validation``.
        budget: trials.
        patience: looks without improvement after which a trial stops.
        seed: chooses the trials, and is every model's own.
        device: where each trial is fitted.
        progress: show a bar.

    Returns:
        A ``Tuning`` by the metric that the models watch, NDCG@10; ``best`` has ``epochs``.

    Raises:
        ValueError: for a budget below one trial, or looks that are missing or not evenly spaced.
        RuntimeError: where a trial never looked at validation.
    """
    started = time.perf_counter()
    seed = whole_number(seed, "seed", at_least=0)
    if (budget := whole_number(budget, "budget")) < 1:
        raise ValueError(f"budget must be at least 1 trial, got {budget}")
    grid = {name: _values(name, values) for name, values in space.items()}
    looks = grid.pop("epochs", [])
    if not looks or looks != list(range(looks[0], looks[-1] + 1, looks[0])):
        raise ValueError(
            f"space['epochs'] must be the looks at validation, evenly spaced from the first on, as in "
            f"range(10, 401, 10); got {looks or 'none'}"
        )
    first, *others = itertools.product(*grid.values())
    order = torch.randperm(len(others), generator=torch.Generator().manual_seed(seed)).tolist()
    trials = [first, *(others[place] for place in order[: budget - 1])]
    stopping = {"epochs": looks[-1], "check_every": looks[0], "patience": patience}
    rows: list[dict[str, Any]] = []
    for values in progress_bar(trials, "tuning", enabled=progress):
        point = dict(zip(grid, values, strict=True))
        model: Any = make(**point, **stopping, seed=seed)
        model.fit(split.train, split.validation, device=device, progress=False)
        if model.stopped_by == "interrupt":
            raise KeyboardInterrupt  # a trial cut short must not be judged as if it were whole
        found = [row["ndcg@10"] for row in model.log if "ndcg@10" in row]
        if not found:
            raise RuntimeError(f"the trial with {point or 'the defaults'} never looked at validation")
        found_after = {"epochs": model.best_epoch, "ndcg@10": max(found), "fit_seconds": model.fit_seconds}
        rows.append({**point, **found_after})
    best = max(rows, key=lambda row: row["ndcg@10"])  # the first of equals
    chosen = {name: best[name] for name in space}
    return Tuning(chosen, pd.DataFrame(rows), "ndcg@10", time.perf_counter() - started)


def _metric(metric: str) -> tuple[str, int]:
    """Name and cutoff: "ndcg@10" is ("ndcg", 10). The AUC has no cutoff; lists of one item will do."""
    name, _, k = metric.partition("@")
    if metric == "auc":
        return name, 1
    if name not in RANKING or not k.isdecimal() or int(k) < 1:
        raise ValueError(
            f"metric must be 'auc', or one of {', '.join(RANKING)} with a cutoff, as in 'ndcg@10'; "
            f"got {metric!r}"
        )
    return name, int(k)


def _defaults(make: Callable[..., Recommender], space: Mapping[str, Sequence[Any]]) -> dict[str, Any]:
    """The defaults of the hyper-parameters in the space, as far as the signature tells them."""
    parameters = inspect.signature(make).parameters
    takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    if unknown := [name for name in space if name not in parameters and not takes_any]:
        name = getattr(make, "__name__", repr(make))  # a partial function has no name
        raise ValueError(f"{name} takes no {', '.join(unknown)}; it takes {', '.join(parameters)}")
    known = (parameters[name] for name in space if name in parameters)
    return {p.name: p.default for p in known if p.default is not p.empty}


def _values(parameter: str, values: Any) -> list[Any]:
    """The distinct values to try, in the order given."""
    arrays = (np.ndarray, pd.Series, pd.Index)
    listed = isinstance(values, (Sequence, *arrays)) and not isinstance(values, (str, bytes))
    if not listed or getattr(values, "ndim", 1) == 0 or not len(values):
        raise ValueError(f"space[{parameter!r}] must be a list of values to try, got {values!r}")
    distinct: list[Any] = []
    for value in values:
        plain = value.item() if isinstance(value, np.generic) else value
        if not any(_equal(plain, other) for other in distinct):
            distinct.append(plain)
    return distinct


def _equal(a: Any, b: Any) -> bool:
    """Whether two values to try are one; arrays and tensors are compared as a whole."""
    if a is b:
        return True
    if not (hasattr(a, "shape") or hasattr(b, "shape")):
        return bool(a == b)
    return type(a) is type(b) and a.shape == b.shape and bool((a == b).all())


def _trials(
    grid: Mapping[str, list[Any]], defaults: dict[str, Any], budget: int, seed: int
) -> Iterator[dict[str, Any]]:
    """The defaults, then points of the grid in random order, none twice, budget in all."""
    yield defaults
    left = budget - 1
    for places in _points([len(values) for values in grid.values()], budget, seed):
        point = {name: values[place] for (name, values), place in zip(grid.items(), places, strict=True)}
        known = point.keys() == defaults.keys() and all(_equal(point[x], defaults[x]) for x in point)
        if left and not known:
            yield point
            left -= 1


def _points(sizes: list[int], budget: int, seed: int) -> Iterator[tuple[int, ...]]:
    """Distinct points of a grid in random order, at most budget: the place of each value in its list."""
    rng, n_points = np.random.default_rng(seed), math.prod(sizes)
    if n_points <= np.iinfo(np.int64).max:
        for index in rng.choice(n_points, size=min(budget, n_points), replace=False).tolist():
            places = []
            for size in sizes:
                index, place = divmod(index, size)
                places.append(place)
            yield tuple(places)
        return
    # More points than an integer can number, each drawn place by place. None should ever come twice.
    met: set[tuple[int, ...]] = set()
    while len(met) < budget:
        drawn = tuple(rng.integers(sizes).tolist())
        if drawn not in met:
            met.add(drawn)
            yield drawn
