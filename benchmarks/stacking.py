"""Chapter 6's ranker over six models beside the blend of SASRec and EASE, with several seeds.

The split is the headline split of MovieLens-100K, the last fifth of each history; the measure is NDCG@10. For
each seed the models that start at random are fitted anew: SASRec, the two-tower and the factorization. Each
model is fitted twice, on the training part and on training and validation parts together, and its scores
serve all that is made of it. Per-user values are means over the seeds before they are compared; the interval
is over users.

Usage::

    OMP_NUM_THREADS=1 python benchmarks/stacking.py [--seeds 3] [--record FILE]
"""

import argparse
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from recsys_lib.chapter.runs import write_run
from recsys_lib.data import Interactions, MovieLens, Split, leave_last_out, load_movielens
from recsys_lib.evaluation import Comparison, Report, compare, evaluate, mean_report
from recsys_lib.models import (
    EASE,
    Blend,
    MatrixFactorization,
    Recommender,
    SASRec,
    StackedLinear,
    TfidfContent,
    TwoTower,
    UserKNN,
)
from recsys_lib.models.core.options import data as given
from recsys_lib.models.core.options import learned, option

COMMAND = "OMP_NUM_THREADS=1 python benchmarks/stacking.py --record book/recorded/stacking.json"
CODE = (
    *(f"benchmarks/stacking.py::{name}" for name in ("Kept", "models", "one_seed", "run")),
    *(f"recsys_lib/models/{name}.py" for name in ("blend", "ease", "knn", "stacking", "two_tower")),
    *(f"recsys_lib/models/core/{name}.py" for name in ("next_item", "pair_tables", "sequence_encoder")),
    "recsys_lib/training.py",
    "recsys_lib/evaluation.py",
)
BAR, BLENDED, RANKED = "SASRec + EASE", "all six, blended", "all six, ranked"
_PAIR = ("SASRec", "EASE, recency")


class Kept(Recommender):
    """A model's scores, from a store that several of these share."""

    name: str = option("of the model", default="")
    store: Any = given("gives the scores of a model fitted on events", default=None)
    scores: Tensor = learned("(n_users, n_items) float32")

    def _fit(self, interactions: Interactions, validation: Interactions | None, progress: bool) -> None:
        self._keep("scores", self.store(self.name, interactions, validation))

    def _score(self, users: Tensor) -> Tensor:
        return self.scores[users]


def models(data: MovieLens, seed: int, epochs: int) -> dict[str, Recommender]:
    """The six models of chapter 6, not fitted."""
    genres = [" ".join(names) for names in data.items["genres"]]
    short = min(epochs, 12)
    return {
        "SASRec": SASRec(epochs=epochs, check_every=5, patience=4, seed=seed),
        "EASE, recency": EASE(l2=400.0, recency=0.7),
        "two-tower": TwoTower(epochs=min(epochs, 8), seed=seed),
        "MF, softmax": MatrixFactorization(loss="softmax", l2=0.2, batch_size=512, epochs=short, seed=seed),
        "user-kNN": UserKNN(),
        "genres": TfidfContent(genres),
    }


def one_seed(data: MovieLens, split: Split, seed: int, epochs: int) -> dict[str, Report]:
    """The blend, and what is made of six models: a report each."""
    kept: dict[tuple[str, int], Tensor] = {}
    best: dict[str, int] = {}

    def store(name: str, events: Interactions, validation: Interactions | None) -> Tensor:
        key = name, len(events)
        if key not in kept:
            model: Any = models(data, seed, epochs)[name]
            held_out = validation if name == "SASRec" else None
            if name == "SASRec" and validation is None:
                model.epochs = best[name]
            model.fit(events, held_out, progress=False)
            best[name] = getattr(model, "best_epoch", 0)
            everyone = torch.arange(events.n_users, device="cpu").split(512)
            kept[key] = torch.cat([model.score(users).cpu() for users in everyone])
        return kept[key]

    made = {
        BAR: Blend([Kept(name=name, store=store) for name in _PAIR]),
        RANKED: StackedLinear([Kept(name=name, store=store) for name in models(data, seed, epochs)]),
    }
    for model in made.values():
        model.fit(split.train, split.validation, device="cpu", progress=False)
    asked = {BAR: made[BAR], BLENDED: made[RANKED].blend, RANKED: made[RANKED]}
    return {
        name: evaluate(model, split.test, seen=split.history, metrics=["ndcg"], progress=False)
        for name, model in asked.items()
    }


def run(seeds: int, epochs: int = 100) -> dict[str, Any]:
    """The whole measurement."""
    data = load_movielens("100k")
    split = leave_last_out(data.interactions.positives(4.0), n=0.2)
    started = time.process_time()
    found = [one_seed(data, split, seed, epochs) for seed in range(seeds)]
    means = {name: mean_report([of[name] for of in found]) for name in found[0]}

    def against(a: str, b: str) -> dict[str, Any]:
        return {
            "a": a,
            "b": b,
            **_interval(compare(means[a], means[b], "ndcg@10")),
            "by_seed": [_interval(compare(of[a], of[b], "ndcg@10")) for of in found],
        }

    return {
        "inputs": {"ratings": data.sha256},
        "settings": {"seeds": seeds, "epochs": epochs, "threads": torch.get_num_threads()},
        "values": {
            "cpu_seconds": round(time.process_time() - started),
            "ndcg@10": {name: [round(of[name].metrics["ndcg@10"], 5) for of in found] for name in means},
            "differences": [against(RANKED, BAR), against(BLENDED, BAR), against(RANKED, BLENDED)],
        },
    }


def _interval(gap: Comparison) -> dict[str, float]:
    return {"mean": round(gap.mean, 5), "low": round(gap.low, 5), "high": round(gap.high, 5)}


def table(found: dict[str, Any]) -> str:
    """The run as text."""
    values = found["values"]
    lines = [f"{name:20}" + "  ".join(f"{x:.4f}" for x in row) for name, row in values["ndcg@10"].items()]
    lines += [
        f"{gap['a']} - {gap['b']}: {gap['mean']:+.4f} [{gap['low']:+.4f}, {gap['high']:+.4f}]"
        for gap in values["differences"]
    ]
    return "\n".join([*lines, f"{values['cpu_seconds']} s of processor time"])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--record", type=Path, help="a file for the results, as JSON")
    arguments = parser.parse_args()
    found = run(arguments.seeds)
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
