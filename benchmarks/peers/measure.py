"""What is measured, stage by stage; each takes the state of the run and returns values for the record."""

import itertools
import json
import math
import statistics
import subprocess
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.peers.harness import Bench, CellError, array, write_events
from benchmarks.peers.plan import OURS, Contender
from recsys_lib.data import Interactions, Split
from recsys_lib.evaluation import Report, compare, evaluate, mean_report
from recsys_lib.metrics import bootstrap_interval

K = 10
METRICS = ("ndcg", "recall", "mrr")
INNER = 3  # repetitions in a process, of what is quick
SLOW = 2.0  # seconds of a training from which on it is not quick
LONG = 60.0  # seconds of a process that serves from which on it is not repeated


class Matrix:
    """A model: a matrix of scores."""

    def __init__(self, scores: np.ndarray) -> None:
        self.scores, self.n_items = torch.from_numpy(scores), scores.shape[1]

    def score(self, users: Tensor) -> Tensor:
        """(B,) -> (B, n_items)."""
        return self.scores[users]  # (B, n_items)


def ndcg(scores: np.ndarray, test: Interactions, seen: Interactions) -> Report:
    """The report of a matrix of scores: NDCG@10."""
    return evaluate(Matrix(scores), test, seen=seen, k=K, metrics=["ndcg"], progress=False)


_BY_PAIRS = ("BPR", "CompiledBPR", "MatrixFactorization")  # that learn factors of pairs in epochs

# ------------------------------------------------------------------------------------------------- tuning


def grid(contender: Contender, budget: int) -> list[dict[str, Any]]:
    """The settings that are tried: all, or as many as the budget allows, drawn without replacement."""
    points = [
        dict(zip(contender.space, values, strict=True))
        for values in itertools.product(*contender.space.values())
    ]
    order = np.random.default_rng(0).permutation(len(points))[:budget]
    return [points[place] for place in sorted(order.tolist())]


def beyond(
    contender: Contender, tried: Sequence[Mapping[str, Any]], best: Mapping[str, Any], budget: int
) -> tuple[list[dict[str, Any]], list[str]]:
    """The second grid: further values of an option whose best is the least or greatest that was tried.

    Returns:
        The settings, and the names of the options whose best value lay at an end.
    """
    further: dict[str, list[Any]] = {}
    for option in contender.space:
        numbers = sorted({point[option] for point in tried})
        value = best[option]
        if len(numbers) < 2 or value not in (numbers[0], numbers[-1]):
            continue
        low, high = contender.limits.get(option, (-math.inf, math.inf))
        near = numbers[1] if value == numbers[0] else numbers[-2]
        if value == 0 or near == 0:
            continue  # zero is the end of what there is
        new = [value * (value / near) ** power for power in (1, 2)]
        if isinstance(value, int):
            new = [max(1, round(number)) for number in new]
        new = [number for number in new if low <= number <= high and number != value]
        if new:
            further[option] = list(dict.fromkeys(new))
    points = [
        {**best, option: values[step]}
        for step in (0, 1)
        for option, values in further.items()
        if step < len(values)
    ]
    return points[:budget], list(further)


def tune(
    bench: Bench,
    contender: Contender,
    events: Path,
    shape: tuple[int, int],
    score: Callable[[np.ndarray], float],
) -> dict[str, Any] | None:
    """Chooses a contender's setting and number of epochs on validation: the greatest ``score``.

    Returns:
        The best trial under ``best``, all of them under ``trials``, and the ends that were met.
    """
    library = bench.plan.libraries.get(contender.library)
    if library is None:
        return None
    budget = contender.budget or bench.plan.budget
    points = grid(contender, budget)

    def tried(name: str, points: Sequence[Mapping[str, Any]], epochs: int) -> list[dict[str, Any]] | None:
        job = {
            "task": "fit",
            "model": contender.model,
            "events": str(events),
            "fits": [
                {
                    "options": {**contender.fixed, **point},
                    "seed": 0,
                    "epochs": epochs,
                    "every": contender.every,
                }
                for point in points
            ],
        }

        def judge(result: Mapping[str, Any], folder: Path) -> dict[str, Any]:
            if len(result["fits"]) != len(points):
                raise CellError(f"{len(result['fits'])} fits of {len(points)}")
            trials = []
            for number, (point, fit) in enumerate(zip(points, result["fits"], strict=True)):
                for place, look in enumerate(fit["looks"]):
                    look["value"] = score(array(folder / f"scores_{number}_{place}.npy", shape))
                trials.append({"options": dict(point), "looks": fit["looks"]})
            return {"trials": trials}

        found = bench.cell(name, library, job, judge, [events])
        return None if found is None else found["trials"]

    first = tried(f"tune/{contender.key}", points, contender.epochs)
    if first is None:
        return None
    trials, best = list(first), _best(first)
    more, edges = beyond(contender, points, best["options"], max(1, min(bench.plan.second, budget // 2)))
    epochs = contender.epochs
    if contender.every and contender.epochs > contender.every and best["epochs"] == contender.epochs:
        epochs, edges = 2 * contender.epochs, [*edges, "epochs"]
        more = [best["options"], *more][: max(1, min(bench.plan.second, budget // 2))]
    if more:
        second = tried(f"tune again/{contender.key}", more, epochs)
        if second is not None:
            trials += second
            best = _best(trials)
    return {"best": best, "trials": trials, "edges": edges}


def _best(trials: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """The first of the best looks of all trials."""
    return max(
        (
            {"options": trial["options"], "epochs": look["epochs"], "value": look["value"]}
            for trial in trials
            for look in trial["looks"]
        ),
        key=lambda found: found["value"],
    )


# ------------------------------------------------------------------------------------------------ quality


def quality(bench: Bench, split: Split) -> dict[str, Any]:
    """NDCG@10 of all contenders on the test part, tuned alike and fitted on train and validation."""
    train = write_events(bench.folder / "train.npz", split.train)
    history = write_events(bench.folder / "history.npz", split.history)
    shape = split.train.n_users, split.train.n_items
    reports: dict[str, Report] = {}
    rows, trials = [], {}

    def score(scores: np.ndarray) -> float:
        return ndcg(scores, split.validation, split.train).metrics["ndcg@10"]

    for contender in bench.plan.quality:
        found = tune(bench, contender, train, shape, score)
        if found is None:
            continue
        trials[contender.key] = found
        reported = _reported(bench, contender, found["best"], history, shape, split)
        if reported is None:
            continue
        report, kept = reported
        reports[contender.key] = report
        low, high = report.interval("ndcg@10")
        rows.append(
            {
                "library": contender.library,
                "model": contender.model,
                "ndcg@10": {"value": report.metrics["ndcg@10"], "low": low, "high": high},
                "by_seed": kept["by_seed"],
                "fit_cpu_s": kept["fit_cpu_s"],
                "peak_mb": kept["process"]["peak_mb"],
                "options": {**contender.fixed, **found["best"]["options"]},
                "epochs": found["best"]["epochs"],
                "validation": found["best"]["value"],
                "trials": len(found["trials"]),
                "edges": found["edges"],
            }
        )
    for row in rows:
        mine = reports.get(f"{OURS}/{row['model']}")
        if mine is not None and row["library"] != OURS:
            gap = compare(mine, reports[f"{row['library']}/{row['model']}"], "ndcg@10")
            row["ours_minus_it"] = {"mean": gap.mean, "low": gap.low, "high": gap.high}
    return {"rows": rows, "tuning": trials}


def _reported(
    bench: Bench,
    contender: Contender,
    best: Mapping[str, Any],
    history: Path,
    shape: tuple[int, int],
    split: Split,
) -> tuple[Report, dict[str, Any]] | None:
    """The report of a contender with its setting, the mean over seeds."""
    job = {
        "task": "fit",
        "model": contender.model,
        "events": str(history),
        "fits": [
            {
                "options": {**contender.fixed, **best["options"]},
                "seed": seed,
                "epochs": best["epochs"],
                "every": 0,
            }
            for seed in range(contender.seeds)
        ],
    }
    file = bench.folder / "reports" / f"{contender.key.replace('/', '-')}.npz"

    def judge(result: Mapping[str, Any], folder: Path) -> dict[str, Any]:
        reports = [
            ndcg(array(folder / f"scores_{seed}_0.npy", shape), split.test, split.history)
            for seed in range(contender.seeds)
        ]
        file.parent.mkdir(exist_ok=True)
        np.savez(
            file,
            values=np.stack([report.per_user["ndcg@10"].numpy() for report in reports]),
            items=reports[0].items.numpy(),
        )
        return {
            "by_seed": [report.metrics["ndcg@10"] for report in reports],
            "fit_cpu_s": [fit["fit"]["cpu_s"] for fit in result["fits"]],
        }

    kept = bench.cell(f"test/{contender.key}", bench.plan.libraries[contender.library], job, judge, [history])
    if kept is None or not file.is_file():
        return None
    # A report of no scores knows whom it is about; the values come from the file.
    blank = ndcg(np.zeros(shape, np.float32), split.test, split.history)
    with np.load(file, allow_pickle=False) as arrays:
        rows = arrays["values"]
    reports = []
    for values in rows:
        report = ndcg_like(blank, torch.from_numpy(values))
        reports.append(report)
    return mean_report(reports), kept


def ndcg_like(report: Report, values: Tensor) -> Report:
    """A report with other values of each user."""
    return Report(
        metrics={"ndcg@10": float(values.mean())},
        per_user={"ndcg@10": values},
        users=report.users,
        n_relevant=report.n_relevant,
        items=report.items,
        seconds=0.0,
        protocol=report.protocol,
        over=report.over,
    )


def ratings(bench: Bench, split: Split) -> list[dict[str, Any]]:
    """RMSE of the rating models on the random split, tuned alike."""
    train = write_events(bench.folder / "ratings_train.npz", split.train, binary=False)
    history = write_events(bench.folder / "ratings_history.npz", split.history, binary=False)
    pairs = {
        name: write_events(bench.folder / f"ratings_{name}.npz", part, binary=False)
        for name, part in (("validation", split.validation), ("test", split.test))
    }

    def errors(folder: Path, part: Interactions, number: int) -> np.ndarray:
        found = array(folder / f"predictions_{number}.npy", (len(part),))
        return (found.astype(np.float64) - part.ratings.numpy()) ** 2

    rows, squares = [], {}
    for contender in bench.plan.ratings:
        library = bench.plan.libraries.get(contender.library)
        if library is None:
            continue
        budget = contender.budget or bench.plan.budget

        def tried(name: str, points: Sequence[Mapping[str, Any]], contender: Contender = contender) -> Any:
            job = {
                "task": "predict",
                "model": contender.model,
                "events": str(train),
                "pairs": str(pairs["validation"]),
                "fits": [
                    {"options": {**contender.fixed, **point}, "seed": 0, "epochs": contender.epochs}
                    for point in points
                ],
            }

            def judge(result: Mapping[str, Any], folder: Path) -> dict[str, Any]:
                values = [
                    -math.sqrt(errors(folder, split.validation, number).mean())
                    for number in range(len(points))
                ]
                return {
                    "trials": [
                        {"options": dict(point), "looks": [{"epochs": contender.epochs, "value": value}]}
                        for point, value in zip(points, values, strict=True)
                    ]
                }

            found = bench.cell(name, bench.plan.libraries[contender.library], job, judge, [train])
            return None if found is None else list(found["trials"])

        points = grid(contender, budget)
        trials = tried(f"tune ratings/{contender.key}", points)
        if trials is None:
            continue
        more, edges = beyond(contender, points, _best(trials)["options"], bench.plan.second)
        if more and (second := tried(f"tune ratings again/{contender.key}", more)) is not None:
            trials += second
        best = _best(trials)
        job = {
            "task": "predict",
            "model": contender.model,
            "events": str(history),
            "pairs": str(pairs["test"]),
            "fits": [
                {
                    "options": {**contender.fixed, **best["options"]},
                    "seed": seed,
                    "epochs": contender.epochs,
                }
                for seed in range(contender.seeds)
            ],
        }
        file = bench.folder / "reports" / f"ratings-{contender.key.replace('/', '-')}.npz"

        def judge(
            result: Mapping[str, Any], folder: Path, contender: Contender = contender, file: Path = file
        ) -> dict[str, Any]:
            found = np.stack([errors(folder, split.test, seed) for seed in range(contender.seeds)])
            file.parent.mkdir(exist_ok=True)
            np.savez(file, values=found)
            return {
                "by_seed": np.sqrt(found.mean(axis=1)).tolist(),
                "fit_cpu_s": [fit["fit"]["cpu_s"] for fit in result["fits"]],
            }

        kept = bench.cell(f"test ratings/{contender.key}", library, job, judge, [history])
        if kept is None or not file.is_file():
            continue
        with np.load(file, allow_pickle=False) as arrays:
            squares[contender.key] = torch.from_numpy(arrays["values"].mean(axis=0))
        low, high = bootstrap_interval(squares[contender.key], 0.95)
        mean = float(squares[contender.key].mean())
        rows.append(
            {
                "library": contender.library,
                "model": contender.model,
                "rmse": {"value": math.sqrt(mean), "low": math.sqrt(low), "high": math.sqrt(high)},
                "by_seed": kept["by_seed"],
                "fit_cpu_s": kept["fit_cpu_s"],
                "peak_mb": kept["process"]["peak_mb"],
                "options": {**contender.fixed, **best["options"]},
                "epochs": contender.epochs,
                "validation": -best["value"],
                "trials": len(trials),
                "edges": edges,
            }
        )
    # Ours is the one that was better on validation.
    own = [row for row in rows if row["library"] == OURS]
    mine = min(own, key=lambda row: row["validation"], default=None)
    for row in rows:
        if mine is not None and row["library"] != OURS:
            a, b = (squares[f"{one['library']}/{one['model']}"] for one in (mine, row))
            low, high = bootstrap_interval(a - b, 0.95)
            row["ours_minus_it"] = {"mean": float((a - b).mean()), "low": low, "high": high}
    return rows


# --------------------------------------------------------------------------------------------- evaluators


def evaluators(bench: Bench, split: Split, repeats: int) -> dict[str, Any]:
    """Whether others compute the same of finished lists, each user's to 1e-6, and what it takes them."""
    history = split.history
    counts = history.item_counts().double()  # (n_items,)
    seen = torch.zeros(history.n_users, history.n_items, dtype=torch.bool)
    seen[history.users, history.items] = True
    # The lists: popularity with a little luck of each user's, so that lists differ and there is much to find.
    luck = torch.rand(seen.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    scores = ((counts + 1).log() + 2 * luck).masked_fill(seen, -math.inf)
    report = evaluate(
        Matrix(scores.float().numpy()), split.test, seen=history, k=K, metrics=list(METRICS), progress=False
    )
    test = split.test
    new = ~seen[test.users, test.items]
    pairs = torch.stack([test.users[new], test.items[new]]).unique(dim=1)  # (2, R)
    file = bench.folder / "lists.npz"
    np.savez(
        file,
        users=report.users.numpy(),
        items=report.items.numpy(),
        relevant_users=pairs[0].numpy(),
        relevant_items=pairs[1].numpy(),
        n_items=history.n_items,
    )
    large = _many_lists(bench.folder / "many_lists.npz", 20_000 if bench.plan.limit > 200 else 50)
    agree, times = [], []
    for name, task in bench.plan.evaluators.items():
        if name not in bench.plan.libraries:
            continue
        library = bench.plan.libraries[name]

        def judge(result: Mapping[str, Any], folder: Path) -> dict[str, Any]:
            found = {
                metric: float(
                    np.abs(
                        array(folder / f"{metric}.npy", (report.n,)) - report.per_user[f"{metric}@10"].numpy()
                    ).max()
                )
                for metric in METRICS
            }
            return {"differences": found, "times": result["times"]}

        small = bench.cell(
            f"evaluator/{name}",
            library,
            {"task": task, "lists": str(file), "repeats": repeats},
            judge,
            [file],
        )
        if small is None:
            continue
        agree.append({"library": name, "users": report.n, **small["differences"]})
        times.append({"library": name, "lists": report.n, "cpu_s": spread(small["times"])})
        many = bench.cell(
            f"evaluator, many lists/{name}",
            library,
            {"task": task, "lists": str(large), "repeats": min(3, repeats)},
            lambda result, folder: {"times": result["times"]},
            [large],
        )
        if many is not None:
            with np.load(large, allow_pickle=False) as arrays:
                n = len(arrays["users"])
            times.append({"library": name, "lists": n, "cpu_s": spread(many["times"])})
    return {"agreement": agree, "times": times}


def _many_lists(file: Path, n: int) -> Path:
    """Made-up lists of n users, ten of 20,000 items each, and twenty items to find."""
    rng = np.random.default_rng(0)
    n_items = 20_000
    items = np.argsort(rng.random((n, 200)), axis=1)[:, :30] + 200 * rng.integers(0, n_items // 200, (n, 1))
    found = np.concatenate([items[:, :5], items[:, 10:15]], axis=1)  # (n, 10) half are relevant
    np.savez(
        file,
        users=np.arange(n),
        items=found,
        relevant_users=np.repeat(np.arange(n), 10),
        relevant_items=items[:, :10].ravel(),
        n_items=n_items,
    )
    return file


# -------------------------------------------------------------------------------------------------- speed


def spread(times: Sequence[Mapping[str, float]], of: str = "cpu_s") -> dict[str, Any]:
    """All repetitions, their median, the least and the greatest."""
    values = [row[of] for row in times]
    return {"median": statistics.median(values), "low": min(values), "high": max(values), "all": values}


def epoch_of_bpr(bench: Bench, split: Split) -> list[dict[str, Any]]:
    """Seconds of processor time for an epoch of BPR, 64 factors, each library in turn and repeatedly.

    A process fits a short training twice and a longer one. What happens once a process, such as compiling,
    is in the first; the others' difference over their difference in epochs is what an epoch takes.
    """
    train = write_events(bench.folder / "train.npz", split.train)
    few, many = 3, 13
    found: dict[int, list[dict[str, float]]] = {}
    for repeat in range(bench.plan.repeats):
        for number, (name, options) in enumerate(bench.plan.epochs):
            if name not in bench.plan.libraries:
                continue
            options = dict(options)
            job = {
                "task": "fit",
                "model": options.pop("model", "BPR"),
                "events": str(train),
                "keep_scores": False,
                "repeat": repeat,
                "fits": [
                    {"options": options, "seed": repeat, "epochs": epochs, "every": 0}
                    for epochs in (few, *(few, many) * INNER)
                ],
            }

            def judge(result: Mapping[str, Any], folder: Path) -> dict[str, Any]:
                cold, *pairs = (fit["fit"] for fit in result["fits"])
                return {
                    "epochs": [
                        {of: max(0.0, (long[of] - short[of]) / (many - few)) for of in ("cpu_s", "wall_s")}
                        for short, long in zip(pairs[::2], pairs[1::2], strict=True)
                    ],
                    "once_s": max(0.0, cold["cpu_s"] - pairs[0]["cpu_s"]),
                    "above_mb": result["fits"][-1]["peak_mb"] - result["loaded_mb"],
                }

            kept = bench.cell(
                f"epoch/{number} {name}/{repeat}", bench.plan.libraries[name], job, judge, [train]
            )
            if kept is not None:
                rest = {"once_s": kept["once_s"], "above_mb": kept["above_mb"]}
                found.setdefault(number, []).extend({**epoch, **rest} for epoch in kept["epochs"])
    return [
        {
            "library": bench.plan.epochs[number][0],
            "options": dict(bench.plan.epochs[number][1]),
            "events": len(split.train),
            "cpu_s": spread(times),
            "wall_s": spread(times, "wall_s"),
            "once_s": spread(times, "once_s"),
            "above_mb": spread(times, "above_mb"),
        }
        for number, times in sorted(found.items())
    ]


def bpr_to_levels(bench: Bench, split: Split, tuned: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Seconds of training until NDCG@10 on validation reaches a level, with the setting that was first.

    The settings are those of the tuning. The one that was soonest at a level is trained again, to that number
    of epochs and no further, each library in turn and repeatedly; looks at validation are not in it, nor is
    what happens once a process: loading the library, reading the events into its own data set, and compiling
    or what else only a first fit does. These are reported apart, and with them the whole of a process that
    trains once.
    """
    train = write_events(bench.folder / "train.npz", split.train)
    shape = split.train.n_users, split.train.n_items
    contenders = [c for c in bench.plan.quality if c.model in _BY_PAIRS]
    contenders = [contender for contender in contenders if contender.key in tuned]
    rows: dict[tuple[str, float], dict[str, Any]] = {}
    chosen: dict[str, dict[float, dict[str, Any]]] = {}
    for contender, level in itertools.product(contenders, bench.plan.levels):
        looks = [
            {**look, "options": {**contender.fixed, **trial["options"]}}
            for trial in tuned[contender.key]["trials"]
            for look in trial["looks"]
        ]
        rows[contender.key, level] = {
            "library": contender.library,
            "model": contender.model,
            "level": level,
            "best": max(look["value"] for look in looks),
        }
        if reached := [look for look in looks if look["value"] >= level]:
            soonest = min(reached, key=lambda look: look["cpu_s"])
            chosen.setdefault(contender.key, {})[level] = soonest
    times: dict[tuple[str, float], list[dict[str, float]]] = {}
    for repeat, contender in itertools.product(range(bench.plan.repeats), contenders):
        levels = chosen.get(contender.key, {})
        order = [level for level, look in levels.items() for _ in range(INNER if look["cpu_s"] < SLOW else 1)]
        fits = [
            {"options": levels[level]["options"], "seed": 0, "epochs": levels[level]["epochs"], "every": 0}
            for level in order
        ]
        if not fits:
            continue
        fits = [{**fits[0], "epochs": 1}, *fits]  # the first one takes what happens once a process
        job = {"task": "fit", "model": contender.model, "events": str(train), "repeat": repeat, "fits": fits}

        def judge(result: Mapping[str, Any], folder: Path, n: int = len(fits)) -> dict[str, Any]:
            values = []
            for number in range(n):
                scores = array(folder / f"scores_{number}_0.npy", shape)
                values.append(ndcg(scores, split.validation, split.train).metrics["ndcg@10"])
            fits = [one["fit"] for one in result["fits"]]
            before = {"load_s": float(result["load_s"]), "prepare_s": float(result["prepare"]["cpu_s"])}
            return {"fits": fits, "values": values, **before}

        library = bench.plan.libraries[contender.library]
        kept = bench.cell(f"levels/{contender.key}/{repeat}", library, job, judge, [train])
        if kept is None:
            continue
        an_epoch = kept["fits"][1]["cpu_s"] / fits[1]["epochs"]
        once = max(0.0, kept["fits"][0]["cpu_s"] - an_epoch)
        for number, level in enumerate(order, 1):
            spent = kept["fits"][number]
            parts = {"load_s": kept["load_s"], "prepare_s": kept["prepare_s"], "once_s": once}
            whole = {"whole_s": sum(parts.values()) + spent["cpu_s"], "value": kept["values"][number]}
            times.setdefault((contender.key, level), []).append({**spent, **parts, **whole})
        for level, look in levels.items():
            rows[contender.key, level] |= {"epochs": look["epochs"], "options": look["options"]}
    for key, of in times.items():
        if min(one["value"] for one in of) < key[1]:
            continue  # it fell short where it was trained again, so its time is not that of the level
        names = ("cpu_s", "load_s", "prepare_s", "once_s", "whole_s")
        rows[key] |= {**{name: spread(of, name) for name in names}, "value": of[0]["value"]}
    return list(rows.values())


def served(bench: Bench, data: Mapping[str, Interactions]) -> list[dict[str, Any]]:
    """Seconds and memory of fitting, and of fitting and everyone's list, each library in turn."""
    found: dict[tuple[str, int], list[dict[str, float]]] = {}
    own: dict[tuple[str, int], bool] = {}
    long: set[tuple[str, int]] = set()
    for name, events in data.items():
        file = write_events(bench.folder / f"served_{name}.npz", events)
        repeats = bench.plan.repeats if len(events) < 200_000 else min(3, bench.plan.repeats)
        for repeat in range(repeats):
            for number, (library, model, options) in enumerate(bench.plan.served):
                if library not in bench.plan.libraries or (name, number) in long:
                    continue
                fit = {"options": dict(options), "seed": 0}
                job = {
                    "task": "serve",
                    "model": model,
                    "events": str(file),
                    "k": K,
                    "repeat": repeat,
                    "fits": [fit] * (1 if len(events) > 200_000 else INNER),
                }

                def judge(
                    result: Mapping[str, Any], folder: Path, events: Interactions = events
                ) -> dict[str, Any]:
                    for number in range(len(result["fits"])):
                        array(folder / f"lists_{number}.npy", (events.n_users, K))
                    first = result["fits"][0]
                    return {
                        "fits": [{"fit": one["fit"], "lists": one["lists"]} for one in result["fits"]],
                        "prepare": result["prepare"],
                        "own_lists": first["own_lists"],
                        "above_mb": first["peak_mb"] - result["loaded_mb"],
                    }

                kept = bench.cell(
                    f"served {name}/{library}/{model}/{repeat}",
                    bench.plan.libraries[library],
                    job,
                    judge,
                    [file],
                )
                if kept is not None:
                    if kept["process"]["cpu_s"] > LONG:
                        long.add((name, number))
                    own[name, number] = kept["own_lists"]
                    found.setdefault((name, number), []).extend(
                        {
                            "fit": one["fit"]["cpu_s"],
                            "both": one["fit"]["cpu_s"] + one["lists"]["cpu_s"],
                            "prepare": kept["prepare"]["cpu_s"],
                            "above_mb": kept["above_mb"],
                        }
                        for one in kept["fits"]
                    )
    return [
        {
            "data": name,
            "events": len(data[name]),
            "users": data[name].n_users,
            "items": data[name].n_items,
            "library": bench.plan.served[number][0],
            "model": bench.plan.served[number][1],
            "own_lists": own[name, number],
            "fit_cpu_s": spread(times, "fit"),
            "fit_and_lists_cpu_s": spread(times, "both"),
            "prepare_cpu_s": spread(times, "prepare"),
            "above_mb": spread(times, "above_mb"),
        }
        for (name, number), times in sorted(found.items())
    ]


def ranking(bench: Bench, n: int, dim: int) -> list[dict[str, Any]]:
    """Everyone's best ten of a large catalog from given vectors, what was seen left out."""
    rng = np.random.default_rng(0)
    vectors = bench.folder / "vectors.npz"
    np.savez(
        vectors,
        users=rng.standard_normal((n, dim)).astype(np.float32),
        items=rng.standard_normal((n, dim)).astype(np.float32),
    )

    def events(name: str, each: int) -> Path:
        file = bench.folder / f"vectors_{name}.npz"
        items = rng.integers(0, n // each, (n, each)) + np.arange(each) * (n // each)  # distinct in a row
        np.savez(
            file,
            users=np.repeat(np.arange(n), each),
            items=items.ravel(),
            ratings=np.ones(n * each, np.float32),
            timestamps=np.arange(n * each),
            n_users=n,
            n_items=n,
        )
        return file

    seen, test = events("seen", 20), events("test", 2)
    times: dict[str, list[dict[str, float]]] = {}
    for repeat in range(min(3, bench.plan.repeats)):
        for name in bench.plan.ranking:
            if name not in bench.plan.libraries:
                continue
            job = {
                "task": "ranking",
                "vectors": str(vectors),
                "events": str(seen),
                "test": str(test),
                "k": K,
                "repeat": repeat,
            }

            def judge(result: Mapping[str, Any], folder: Path) -> dict[str, Any]:
                return {"lists": result["lists"], "sum": int(array(folder / "lists.npy", (n, K)).sum())}

            kept = bench.cell(f"ranking/{name}/{repeat}", bench.plan.libraries[name], job, judge, [vectors])
            if kept is not None:
                times.setdefault(name, []).append(
                    {**kept["lists"], "peak_mb": kept["process"]["peak_mb"], "sum": kept["sum"]}
                )
    return [
        {
            "library": name,
            "users": n,
            "items": n,
            "factors": dim,
            "cpu_s": spread(rows),
            "peak_mb": spread(rows, "peak_mb"),
            "same_lists": rows[0]["sum"] == times[bench.plan.ranking[0]][0]["sum"]
            if bench.plan.ranking[0] in times
            else None,
        }
        for name, rows in times.items()
    ]


# ------------------------------------------------------------------------------------------------- faults


def faults(bench: Bench) -> list[dict[str, Any]]:
    """What the small scripts find in the peers that are here."""
    rows = []
    for name, script in bench.plan.faults.items():
        library = bench.plan.libraries.get(name)
        python = bench.python(library) if library else None
        if python is None:
            continue
        done = subprocess.run([python, script], capture_output=True, text=True, timeout=300)
        lines = done.stdout.strip().splitlines()
        if done.returncode or not lines:
            rows.append({"library": name, "script": script.name, "shown": 0, "said": "the script failed"})
            continue
        found = json.loads(lines[-1])
        rows.append(
            {
                "library": name,
                "script": script.name,
                "shown": int(found.pop("shown")),
                "said": "; ".join(f"{key} {value}" for key, value in found.items()),
            }
        )
    return rows
