"""The two autoencoders of histories and the neighbors of items, searched alike: which makes the better lists?

The split is the headline split of MovieLens-100K, the last fifth of each history of films liked with four
stars and more. Each option has a ladder of values, stated below before anything was fitted. A model gets
``BUDGET`` trials at most, by NDCG@10 on the validation part: a start, three points drawn from the inner part
of the ladders, and then a walk. The walk tries one step up and one step down of each option from the best
trial so far, and moves where it finds a better one, until no step is better: then the best lies inside on
every option. An end that no value can pass (nothing added to the denominator) counts as inside. The number
of epochs is found within each trial, by a look at validation after every fifth.

What was chosen is refit on train and validation with five seeds and ranked on the test part once, at the
end. Intervals are over people, of the mean of the seeds.

Usage::

    OMP_NUM_THREADS=1 python benchmarks/autoencoders.py [--trials FILE] [--record FILE]

``--trials`` keeps each trial in a file when it ends, so that a run that was stopped goes on.
"""

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from recsys_lib.chapter.runs import write_run
from recsys_lib.data import MovieLens, Split, leave_last_out, load_movielens
from recsys_lib.evaluation import Report, compare, evaluate, mean_report
from recsys_lib.models import ItemKNN, MultDAE, MultVAE
from recsys_lib.models.core.contract import Recommender

COMMAND = "OMP_NUM_THREADS=1 python benchmarks/autoencoders.py --record book/recorded/autoencoders.json"
CODE = ("benchmarks/autoencoders.py", "recsys_lib/models/autoencoder.py", "recsys_lib/models/knn.py")
BUDGET, DRAWN = 36, 4  # trials, and how many of them come before the walk
EPOCHS, EVERY, PATIENCE = 150, 5, 3  # at most; between looks at validation; looks without anything better
SEEDS = 5
Ladders = Mapping[str, Sequence[float]]
OUTER: Ladders = {
    "dropout": (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9),
    "learning_rate": (0.0005, 0.001, 0.002, 0.004, 0.008, 0.016),
    "dim": (25, 50, 100, 200, 400, 800),
}
SPACES: dict[str, tuple[type[Recommender], Ladders]] = {
    "MultVAE": (
        MultVAE,
        {
            "beta": (0.025, 0.05, 0.1, 0.2, 0.4, 0.8, 1.6, 3.2),
            **OUTER,
            "hidden": (64, 128, 256, 512, 1024, 2048),
        },
    ),
    "MultDAE": (MultDAE, {"l2": (3e-5, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2), **OUTER}),
    "item-kNN": (
        ItemKNN,
        {
            "k": (10, 20, 50, 100, 200, 400, 800, 1600),
            "shrink": (0.0, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0),
            "power": (0.0, 0.25, 0.5, 0.75, 1.0, 1.25, 1.5),
        },
    ),
}
START: dict[str, dict[str, float]] = {
    "MultVAE": {"beta": 0.2, "dropout": 0.5, "learning_rate": 0.002, "dim": 100, "hidden": 256},
    "MultDAE": {"l2": 1e-3, "dropout": 0.5, "learning_rate": 0.002, "dim": 200},
    "item-kNN": {"k": 50, "shrink": 10.0, "power": 1.0},
}
Place = tuple[int, ...]


def rung(ladder: Sequence[float], place: int) -> float:
    """A value of a ladder; beyond its ends it goes on in the ratio of the last two rungs."""
    if 0 <= place < len(ladder):
        return ladder[place]
    if place < 0:
        end, before, beyond = ladder[0], ladder[1], -place
    else:
        end, before, beyond = ladder[-1], ladder[-2], place - len(ladder) + 1
    value = end * (end / before) ** beyond
    return round(value) if isinstance(end, int) else float(f"{value:.6g}")


def searched(
    name: str, split: Split, budget: int = BUDGET, epochs: int = EPOCHS, kept: Path | None = None
) -> dict[str, Any]:
    """The trials of a model in their order, and what they chose; ``kept`` holds trials made before."""
    make, ladders = SPACES[name]
    trained = issubclass(make, MultDAE | MultVAE)
    tried: dict[Place, dict[str, float]] = {}
    lines = kept.read_text("utf8").splitlines() if kept and kept.exists() else []
    known = {json.dumps(key): found for key, found in map(json.loads, lines)}

    def options(place: Place) -> dict[str, float]:
        return {key: rung(ladder, i) for (key, ladder), i in zip(ladders.items(), place, strict=True)}

    def trial(place: Place) -> None:
        chosen: dict[str, Any] = options(place)
        key = [name, epochs, chosen]
        if json.dumps(key) in known:
            tried[place] = known[json.dumps(key)]
            return
        if trained:
            stops = {"epochs": epochs, "check_every": EVERY, "patience": PATIENCE, "seed": 0}
            model = make(**chosen, **stops).fit(split.train, split.validation, device="cpu", progress=False)
            looks = [row["ndcg@10"] for row in model.log if "ndcg@10" in row]  # type: ignore[attr-defined]
            found = {"epochs": model.best_epoch, "ndcg@10": max(looks)}  # type: ignore[attr-defined]
        else:
            model = make(**chosen).fit(split.train, device="cpu", progress=False)
            report = evaluate(model, split.validation, seen=split.train, metrics=["ndcg"], progress=False)
            found = {"ndcg@10": report.metrics["ndcg@10"]}
        tried[place] = found
        print(name, options(place), found, flush=True)
        if kept:
            with kept.open("a", encoding="utf8") as file:
                file.write(json.dumps([key, found]) + "\n")

    def best() -> Place:
        return max(tried, key=lambda place: tried[place]["ndcg@10"])  # the first of equals

    trial(tuple(ladder.index(START[name][key]) for key, ladder in ladders.items()))
    rng = np.random.default_rng(0)
    inner = [range(1, len(ladder) - 1) for ladder in ladders.values()]
    while len(tried) < min(DRAWN, budget):
        place = tuple(int(rng.choice(places)) for places in inner)
        if place not in tried:
            trial(place)
    while len(tried) < budget and (todo := [p for p in steps(best(), ladders) if p not in tried]):
        trial(todo[0])
    chosen = options(best())
    if trained:
        chosen["epochs"] = tried[best()]["epochs"]
    return {
        "trials": [{**options(place), **found} for place, found in tried.items()],
        "chosen": chosen,
        "validation": tried[best()]["ndcg@10"],
        "not_inside": not_inside(best(), set(tried), ladders),
    }


def steps(place: Place, ladders: Ladders) -> list[Place]:
    """One step up and one down of each option, as far as there are values."""
    found = []
    for axis, (name, ladder) in enumerate(ladders.items()):
        for step in (1, -1):
            there = place[axis] + step
            if 0 <= there < len(ladder) or (name != "dropout" and (there > 0 or ladder[0] > 0)):
                found.append((*place[:axis], there, *place[axis + 1 :]))
    return found


def not_inside(place: Place, tried: set[Place], ladders: Ladders) -> list[str]:
    """Options of which a neighbor was not tried, or that stand at the end of a ladder that can go on."""
    found = []
    for axis, (name, ladder) in enumerate(ladders.items()):
        beside = {(*place[:axis], place[axis] + step, *place[axis + 1 :]) for step in (1, -1)}
        if place[axis] == 0 and ladder[0] == 0:  # nothing lies below none
            beside &= set(steps(place, ladders))
        if not beside <= tried:
            found.append(name)
    return found


def refit(name: str, chosen: Mapping[str, Any], split: Split, seeds: int) -> list[Report]:
    """Reports on the test part, one a seed."""
    make = SPACES[name][0]
    reports = []
    for seed in range(seeds if issubclass(make, MultDAE | MultVAE) else 1):
        own = {"seed": seed} if issubclass(make, MultDAE | MultVAE) else {}
        model = make(**chosen, **own).fit(split.history, device="cpu", progress=False)
        reports.append(evaluate(model, split.test, seen=split.history, metrics=["ndcg"], progress=False))
    return reports


def cell(reports: Sequence[Report]) -> dict[str, Any]:
    """The mean over the seeds with its interval over people, and the least and most of a seed."""
    mean = mean_report(reports)
    low, high = mean.interval("ndcg@10")
    each = [report.metrics["ndcg@10"] for report in reports]
    value = mean.metrics["ndcg@10"]
    return {
        "value": round(value, 5),
        "low": round(low, 5),
        "high": round(high, 5),
        "seeds": [round(one, 5) for one in each],
    }


def run(
    data: MovieLens | None = None,
    *,
    budget: int = BUDGET,
    epochs: int = EPOCHS,
    seeds: int = SEEDS,
    kept: Path | None = None,
) -> dict[str, Any]:
    """The whole measurement: every search first, the test part last."""
    data = data or load_movielens("100k")
    split = leave_last_out(data.interactions.positives(4.0), n=0.2)
    models = {name: searched(name, split, budget, epochs, kept) for name in SPACES}
    reports = {name: refit(name, found["chosen"], split, seeds) for name, found in models.items()}
    reports["item-kNN, defaults"] = refit("item-kNN", {}, split, seeds)
    gaps = {}
    for one in ("MultDAE", "MultVAE"):
        for other in ("item-kNN, defaults", "item-kNN"):
            gap = compare(mean_report(reports[one]), mean_report(reports[other]), "ndcg@10")
            gaps[f"{one} minus {other}"] = {
                "mean": round(gap.mean, 5),
                "low": round(gap.low, 5),
                "high": round(gap.high, 5),
            }
    return {
        "inputs": {"ratings": data.sha256},
        "settings": {
            "budget": budget,
            "drawn": DRAWN,
            "epochs": epochs,
            "check_every": EVERY,
            "patience": PATIENCE,
            "seeds": seeds,
            "ladders": {
                name: {key: list(ladder) for key, ladder in ladders.items()}
                for name, (_, ladders) in SPACES.items()
            },
        },
        "values": {
            "models": models,
            "test": {name: cell(found) for name, found in reports.items()},
            "gaps": gaps,
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--trials", type=Path, help="a file in which trials are kept")
    parser.add_argument("--record", type=Path, help="a file for the results, as JSON")
    arguments = parser.parse_args()
    found = run(kept=arguments.trials)
    for part in ("test", "gaps"):
        print(found["values"][part])
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
