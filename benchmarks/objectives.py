"""One factorization under ten objectives, each by nine metrics: which loss serves which metric?

The split is the headline split of MovieLens-100K, the last fifth of each history of films liked with four
stars and more. ``ObjectiveMF`` is fitted on the training part with each of its losses; ``stars`` learns from
all ratings that a user gave before the first liked film of the validation part. Three things are asked of the
same scores:

- stars: the ratings that a user gave from the first liked film of the test part on. RMSE after a line from
  scores to stars, and the AUC of liked against disliked films, a mean over users.
- clicks: each liked film of the test part and eight drawn ones that the user never liked. Log-loss and
  expected calibration error of the probability that the loss means (the logistic function of the score; of
  the squared error the score itself, cut to [.001, .999]); the log-loss again after a logistic regression on
  the score; and the AUC, a mean over users.
- lists: NDCG@10, MRR@10 and coverage@10 in the full ranking.

Lines and logistic regressions on the score are fitted on the validation part. Every objective gets the same
grid of learning rates and penalties and the same looks at validation while it trains; for stars, clicks and
lists the trial and the epoch are chosen apart, by RMSE, fitted log-loss and NDCG@10. A choice that lies at an
end is followed beyond it, for every objective by the same rule: the next rate or penalty outside the grid, or
more epochs, ``BEYOND`` trials at most, until no neighbor on any side is better by ``LEAST``. The models are
not refit on validation. Values are means over the seeds, and intervals are over users: a bootstrap, for the
coverage a jackknife.

Usage::

    OMP_NUM_THREADS=1 python benchmarks/objectives.py [--seeds 3] [--grid FILE] [--record FILE]

``--grid`` takes what the grid chose from a record of the same grid, in place of searching it once more.
"""

import argparse
import itertools
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from recsys_lib import metrics as m
from recsys_lib.chapter.runs import write_run
from recsys_lib.data import Interactions, MovieLens, Split, leave_last_out, load_movielens
from recsys_lib.evaluation import evaluate
from recsys_lib.models.core.options import data as given
from recsys_lib.models.objectives import OBJECTIVES, ObjectiveMF
from recsys_lib.negatives import NegativeSampler
from recsys_lib.ranking import HeldOut

COMMAND = "OMP_NUM_THREADS=1 python benchmarks/objectives.py --record book/recorded/objectives.json"
CODE = (
    "benchmarks/objectives.py",
    "recsys_lib/models/objectives.py",
    "recsys_lib/list_losses.py",
    "recsys_lib/losses.py::gbce_loss",
    "recsys_lib/losses.py::sampled_softmax_loss",
    "recsys_lib/training.py",
)
RATES = (0.005, 0.03)
PENALTIES = (0.0003, 0.002, 0.01, 0.06, 0.3, 1.5)
EPOCHS, EVERY = 24, 4
BEYOND = 24  # trials of an objective beyond the grid, at most
LONGER, PATIENCE = 5, 3  # times the epochs of the grid; looks without anything better that end a trial there
LEAST = 0.0005  # what is better beyond the grid is better by this much: a smaller step could go on for ever
RATE_STEP, PENALTY_STEP = 3.0, 5.0  # from an end of the grid to the next value beyond it
PER_CHOSEN = 8  # drawn films for each liked one
N_BINS = 15
# Each metric: whether more is better, and by what the trial is chosen.
METRICS = {
    "RMSE": (False, "stars"),
    "AUC, disliked": (True, "stars"),
    "AUC, drawn": (True, "clicks"),
    "log-loss": (False, "clicks"),
    "log-loss, fitted": (False, "clicks"),
    "ECE": (False, "clicks"),
    "NDCG@10": (True, "lists"),
    "MRR@10": (True, "lists"),
    "coverage@10": (True, "lists"),
}
PURPOSES = ("stars", "clicks", "lists")


@dataclass(frozen=True)
class Pairs:
    """Users (N,), items (N,), and stars or labels (N,)."""

    users: Tensor
    items: Tensor
    values: Tensor


@dataclass(frozen=True)
class Part:
    """What is asked of scores on one part of the split: stars, clicks, and the split's own events."""

    stars: Pairs
    clicks: Pairs
    liked: Interactions
    seen: Interactions


def first_times(part: Interactions) -> Tensor:
    """When each user's part begins, (n_users,) int64; after everything for a user who has none."""
    never = torch.full((part.n_users,), torch.iinfo(torch.int64).max)
    return never.scatter_reduce(0, part.users, part.timestamps, "amin")


def part_of(split: Split, name: str, every: Interactions, liked: Interactions, seed: int) -> Part:
    """What is asked on ``validation`` or ``test``."""
    own = getattr(split, name)
    seen = split.train if name == "validation" else split.history
    begins = first_times(own)[every.users]  # (E,)
    ends = torch.full_like(begins, torch.iinfo(torch.int64).max)  # (E,)
    if name == "validation":
        ends = first_times(split.test)[every.users]  # (E,)
    rated = every[(every.timestamps >= begins) & (every.timestamps < ends)]
    crow, items = liked.csr()
    generator = torch.Generator().manual_seed(seed)
    drawn = NegativeSampler(crow, items, liked.n_items).sample(own.users, PER_CHOSEN, generator)  # (E, K)
    asked = torch.cat([own.items[:, None], drawn], dim=1)  # (E, 1 + K)
    label = torch.zeros(asked.shape)
    label[:, 0] = 1.0
    clicks = Pairs(own.users.repeat_interleave(1 + PER_CHOSEN), asked.flatten(), label.flatten())
    return Part(Pairs(rated.users, rated.items, rated.ratings), clicks, own, seen)


def line(scores: Tensor, stars: Tensor) -> Callable[[Tensor], Tensor]:
    """The least-squares line from scores to stars, cut to the range of stars."""
    slope, intercept = np.polyfit(scores.double().numpy(), stars.double().numpy(), 1)
    return lambda s: (slope * s + intercept).clamp(float(stars.min()), float(stars.max()))


def logistic(scores: Tensor, labels: Tensor) -> Callable[[Tensor], Tensor]:
    """The logistic regression on one score, by Newton's method: from scores to probabilities."""
    center, scale = scores.double().mean(), scores.double().std().clamp(min=1e-9)
    x = torch.stack([(scores.double() - center) / scale, torch.ones(len(scores), dtype=torch.float64)], dim=1)
    w = torch.zeros(2, dtype=torch.float64)
    for _ in range(25):
        p = (x @ w).sigmoid()  # (N,)
        curvature = (x.mT * (p * (1 - p))) @ x + 1e-6 * torch.eye(2, dtype=torch.float64)  # (2, 2)
        w = w + torch.linalg.solve(curvature, x.mT @ (labels.double() - p))
    return lambda s: ((s.double() - center) / scale * w[0] + w[1]).sigmoid()


def meant(loss: str, scores: Tensor) -> Tensor | None:
    """The probability of a yes that a loss means by its scores; of stars none."""
    if loss == "stars":
        return None
    return scores.double().clamp(0.001, 0.999) if loss == "squared error" else scores.double().sigmoid()


def surprise(chance: Tensor, labels: Tensor) -> Tensor:
    """The log-loss of each pair, (N,)."""
    return -torch.where(labels > 0, chance, 1 - chance).clamp(min=1e-12).log()


def per_user(pairs: Pairs, values: Tensor, n_users: int) -> Tensor:
    """Sums of values (N,) over each user's pairs: (n_users,) float64."""
    return torch.zeros(n_users, dtype=torch.float64).index_add_(0, pairs.users, values.double())


def user_aucs(pairs: Pairs, scores: Tensor, labels: Tensor, n_users: int) -> tuple[Tensor, Tensor]:
    """Each user's AUC, zero without both labels; and whether there is one: (n_users,) float64 each."""
    found, there = torch.zeros(2, n_users, dtype=torch.float64)
    order = pairs.users.argsort(stable=True)
    users, counts = pairs.users[order].unique_consecutive(return_counts=True)
    parts = zip(scores[order].split(counts.tolist()), labels[order].split(counts.tolist()), strict=True)
    for user, (s, y) in zip(users.tolist(), parts, strict=True):
        if 0 < int(y.sum()) < len(y):
            found[user] = m.auc(s[None], y[None] > 0)[0]
            there[user] = 1.0
    return found, there


def looked_at(model: ObjectiveMF, part: Part) -> dict[str, float]:
    """What trials are chosen by, each to be as large as possible."""
    stars, clicks = (model.predict(p.users, p.items) for p in (part.stars, part.clicks))
    fitted = logistic(clicks, part.clicks.values)(clicks)
    report = evaluate(model, part.liked, seen=part.seen, metrics=["ndcg"], progress=False)
    return {
        "stars": -float(m.rmse(line(stars, part.stars.values)(stars), part.stars.values)),
        "clicks": -float(surprise(fitted, part.clicks.values).mean()),
        "lists": report.metrics["ndcg@10"],
    }


class Watched(ObjectiveMF):
    """The model, whose looks at validation are written down by the one who asks."""

    watch: Any = given("called with the model at each look; returns the figure", default=None)

    def figure(self, held_out: HeldOut, seen: Interactions) -> tuple[str, Callable[[], float]]:
        """What is looked at."""
        return "watched", lambda: float(self.watch(self))


@dataclass
class Search:
    """What was tried for one objective, and what is best for each purpose so far."""

    loss: str
    events: Interactions
    split: Split
    validation: Part
    tried: dict[tuple[float, float], int]  # rate and penalty: epochs offered
    best: dict[str, dict[str, Any]]

    def trial(self, rate: float, penalty: float, epochs: int, patience: int, least: float = 0.0) -> None:
        """Fits a model with a look at validation after every fourth epoch; a gain is more than ``least``."""
        own: dict[str, float] = {}
        state = {"looks": 0, "gains": 0}

        def watch(model: Watched) -> float:
            """How often a look brought something better, so that a trial ends where nothing does."""
            state["looks"] += 1
            figures = looked_at(model, self.validation)
            better = [name for name, figure in figures.items() if figure > own.get(name, -np.inf) + least]
            state["gains"] += bool(better)
            for name in better:
                own[name] = figures[name]
                if name not in self.best or figures[name] > self.best[name]["validation"] + least:
                    self.best[name] = {
                        "validation": figures[name],
                        "learning_rate": rate,
                        "l2": penalty,
                        "epochs": min(EVERY * state["looks"], epochs),
                    }
            return float(state["gains"])

        options = {"learning_rate": rate, "l2": penalty, "epochs": epochs, "seed": 0}
        model = Watched(loss=self.loss, check_every=EVERY, patience=patience, watch=watch, **options)
        model.fit(self.events, self.split.validation, device="cpu", progress=False)
        self.tried[rate, penalty] = epochs

    def open_ends(self, chosen: Mapping[str, Any]) -> dict[str, tuple[float, float]]:
        """Options of a choice without a neighbor on some side, with the trial that would be next."""
        rate, penalty = chosen["learning_rate"], chosen["l2"]
        rates = [r for r, p in self.tried if p == penalty]
        penalties = [p for r, p in self.tried if r == rate]
        found = {}
        if rate in (min(rates), max(rates)):
            step = RATE_STEP if rate == max(rates) else 1 / RATE_STEP
            found["learning_rate"] = (round(rate * step, 8), penalty)
        if penalty in (min(penalties), max(penalties)):
            step = PENALTY_STEP if penalty == max(penalties) else 1 / PENALTY_STEP
            found["l2"] = (rate, round(penalty * step, 8))
        if chosen["epochs"] == self.tried[rate, penalty]:
            found["epochs"] = (rate, penalty)
        return found

    def beyond(self, epochs: int) -> int:
        """Follows choices beyond the ends at which they lie; returns the number of trials."""
        for number in range(BEYOND):
            ends = [end for chosen in self.best.values() for end in self.open_ends(chosen).values()]
            todo = [end for end in ends if self.tried.get(end, 0) < LONGER * epochs]
            if not todo:
                return number
            self.trial(*todo[0], LONGER * epochs, PATIENCE, LEAST)
        return BEYOND


def sums(model: ObjectiveMF, validation: Part, test: Part) -> dict[str, Any]:
    """What a fitted model's metrics are made of: for each metric, sums over each user."""
    n, loss = model.n_users, model.loss
    ones = torch.ones_like
    found: dict[str, Any] = {}
    known = model.predict(validation.stars.users, validation.stars.items)
    scores = model.predict(test.stars.users, test.stars.items)
    error = (line(known, validation.stars.values)(scores) - test.stars.values).square()
    found["RMSE"] = (per_user(test.stars, error, n), per_user(test.stars, ones(error), n))
    found["AUC, disliked"] = user_aucs(test.stars, scores, test.stars.values >= 4, n)

    known = model.predict(validation.clicks.users, validation.clicks.items)
    scores = model.predict(test.clicks.users, test.clicks.items)
    labels = test.clicks.values
    found["AUC, drawn"] = user_aucs(test.clicks, scores, labels, n)
    count = per_user(test.clicks, ones(labels), n)
    fitted = logistic(known, validation.clicks.values)(scores)
    found["log-loss, fitted"] = (per_user(test.clicks, surprise(fitted, labels), n), count)
    if (chance := meant(loss, scores)) is not None:
        found["log-loss"] = (per_user(test.clicks, surprise(chance, labels), n), count)
        place = (chance * N_BINS).long().clamp(max=N_BINS - 1)  # (N,)
        gap = torch.zeros(n, N_BINS, dtype=torch.float64)
        gap.index_put_((test.clicks.users, place), labels.double() - chance, accumulate=True)
        found["ECE"] = (gap, count)

    report = evaluate(model, test.liked, seen=test.seen, metrics=["ndcg", "mrr"], progress=False)
    for name, metric in (("NDCG@10", "ndcg@10"), ("MRR@10", "mrr@10")):
        values, there = torch.zeros(2, n, dtype=torch.float64)
        values[report.users], there[report.users] = report.per_user[metric].double(), 1.0
        found[name] = (values, there)
    found["coverage@10"] = (report.items, model.n_items)
    return found


def value(name: str, parts: tuple[Any, Any], weight: Tensor) -> Tensor:
    """A metric with users weighted: weight (R, n_users) to (R,)."""
    top, bottom = weight @ parts[0], weight @ parts[1]
    if name == "ECE":
        return top.abs().sum(dim=1) / bottom
    ratio = top / bottom
    return ratio.sqrt() if name == "RMSE" else ratio


def coverage(items: Tensor, n_items: int) -> tuple[float, float]:
    """The share of the catalog that is in some list, and its standard error by a jackknife over users.

    A bootstrap would show fewer films than there are: a sample with repetition has fewer different lists.
    """
    rows = [row[row >= 0].unique() for row in items]
    times = torch.bincount(torch.cat(rows), minlength=n_items)  # (n_items,) lists that show it
    alone = torch.tensor([float((times[row] == 1).sum()) for row in rows])  # shown to this user only
    n, share = len(rows), -alone / n_items  # what the coverage loses without each user
    return float((times > 0).float().mean()), float((share.var(unbiased=False) * (n - 1)).sqrt())


def cells(found: Mapping[str, Mapping[str, list[Any]]], n_users: int, draws: int = 1000) -> dict[str, Any]:
    """Value and interval of each metric of each objective, and its difference from the metric's best.

    Args:
        found: objective to metric to what it is made of, one a seed.
        n_users: of the data.
        draws: of the bootstrap; each resamples the users for all objectives alike.
    """
    rng = np.random.default_rng(0)
    sampled = rng.multinomial(n_users, np.full(n_users, 1 / n_users), size=draws)
    weight = torch.cat([torch.ones(1, n_users), torch.from_numpy(sampled)]).double()  # (1 + R, n_users)
    table: dict[str, Any] = {}
    for name, (more, _) in METRICS.items():
        drawn: dict[str, Tensor] = {}
        for loss, parts in found.items():
            if name not in parts:
                continue
            if name == "coverage@10":
                both = np.array([coverage(*one) for one in parts[name]]).mean(axis=0)
                noise = torch.from_numpy(rng.normal(size=draws))
                drawn[loss] = both[0] + torch.cat([torch.zeros(1), noise]) * both[1]
            else:
                drawn[loss] = torch.stack([value(name, one, weight) for one in parts[name]]).mean(dim=0)
        best = (max if more else min)(drawn, key=lambda loss: float(drawn[loss][0]))
        table[name] = {
            loss: {**_interval(of), "behind": _interval(of - drawn[best])} for loss, of in drawn.items()
        }
        table[name][best]["best"] = True
    return table


def _interval(drawn: Tensor) -> dict[str, float]:
    """The first value, and the middle 95 % of the others."""
    low, high = np.percentile(drawn[1:].numpy(), [2.5, 97.5])
    mean = float(drawn[0])
    return {"value": round(mean, 5), "low": round(min(low, mean), 5), "high": round(max(high, mean), 5)}


def one_objective(
    loss: str,
    events: Interactions,
    split: Split,
    parts: tuple[Part, Part],
    seeds: int,
    epochs: int,
    grid: Mapping[str, Any] | None = None,
) -> tuple[dict[str, Any], dict[str, list[Any]]]:
    """Chooses a trial and an epoch for each purpose; measures them with each seed.

    ``grid`` is what the grid chose for each purpose, if it was searched before.
    """
    search = Search(loss, events, split, parts[0], {}, {})
    for rate, penalty in itertools.product(RATES, PENALTIES):
        if grid is None:
            search.trial(rate, penalty, epochs, epochs)
        search.tried[rate, penalty] = epochs
    names = ("validation", "learning_rate", "l2", "epochs")
    if grid is not None:
        search.best = {purpose: {name: grid[purpose][name] for name in names} for purpose in PURPOSES}
    first = {purpose: dict(search.best[purpose]) for purpose in PURPOSES}
    trials = search.beyond(epochs)
    measured: dict[str, list[Any]] = {}
    for seed in range(seeds):
        for purpose in PURPOSES:
            options = {name: search.best[purpose][name] for name in names[1:]}
            model = ObjectiveMF(loss=loss, **options, seed=seed).fit(events, device="cpu", progress=False)
            own = sums(model, *parts)
            for name, (_, wanted) in METRICS.items():
                if wanted == purpose and name in own:
                    measured.setdefault(name, []).append(own[name])
    best: dict[str, Any] = {}
    for purpose in PURPOSES:
        best[purpose] = search.best[purpose]
        best[purpose]["at_edge"] = list(search.open_ends(best[purpose]))
        best[purpose]["in_the_grid"] = first[purpose]
        for one in (best[purpose], first[purpose]):
            one["validation"] = round(one["validation"], 5)
    best["trials_beyond"] = trials
    return best, measured


def run(
    seeds: int,
    epochs: int = EPOCHS,
    data: MovieLens | None = None,
    grid: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """The whole measurement; ``grid`` is what the grid chose, if it was searched before, by objective."""
    data = data or load_movielens("100k")
    every = data.interactions
    liked = every.positives(4.0)
    split = leave_last_out(liked, n=0.2)
    parts = tuple(part_of(split, name, every, liked, 0) for name in ("validation", "test"))
    rated = every[
        every.timestamps < torch.minimum(*map(first_times, (split.validation, split.test)))[every.users]
    ]
    started = time.process_time()
    chosen, found = {}, {}
    for loss in (*OBJECTIVES, "stars"):
        events = rated if loss == "stars" else split.train
        known = None if grid is None else grid[loss]
        chosen[loss], found[loss] = one_objective(loss, events, split, parts, seeds, epochs, known)
        print(loss, f"{time.process_time() - started:.0f} s", chosen[loss], flush=True)
    return {
        "inputs": {"ratings": data.sha256},
        "settings": {
            "seeds": seeds,
            "epochs": epochs,
            "learning_rates": list(RATES),
            "penalties": list(PENALTIES),
            "beyond": {"trials": BEYOND, "epochs": LONGER * epochs, "patience": PATIENCE, "least": LEAST},
            "threads": torch.get_num_threads(),
        },
        "values": {
            "cpu_seconds": round(time.process_time() - started),
            "n_users": len(split.test.users.unique()),
            "chosen": chosen,
            "cells": cells(found, every.n_users),
        },
    }


def table(found: dict[str, Any]) -> str:
    """The run as text."""
    values = found["values"]
    lines = []
    for name, column in values["cells"].items():
        lines.append(name)
        lines += [
            f"  {loss:14} {x['value']:.4f} [{x['low']:.4f}, {x['high']:.4f}]" for loss, x in column.items()
        ]
    lines += [f"{loss}: {best}" for loss, best in values["chosen"].items()]
    return "\n".join([*lines, f"{values['cpu_seconds']} s of processor time"])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--grid", type=Path, help="a record of the same grid, to begin from its choices")
    parser.add_argument("--record", type=Path, help="a file for the results, as JSON")
    arguments = parser.parse_args()
    grid = None
    if arguments.grid:
        known = json.loads(arguments.grid.read_text("utf8"))["values"]["chosen"]
        grid = {
            loss: {name: uses[name].get("in_the_grid", uses[name]) for name in PURPOSES}
            for loss, uses in known.items()
        }
    found = run(arguments.seeds, grid=grid)
    print(table(found))
    if arguments.record:
        write_run(
            arguments.record,
            about=__doc__ or "",
            command=COMMAND,
            versions=("torch", "numpy"),
            code=CODE,
            **found,
        )


if __name__ == "__main__":
    main()
