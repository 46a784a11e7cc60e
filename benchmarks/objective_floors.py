"""What needs no training, by the metrics of ``benchmarks/objectives.py``: a constant, popularity, mean stars.

The same split, the same drawn films, the same lines and logistic regressions on the validation part:

- a constant: the share of liked films among those asked, for every pair; the mean of the validation's stars;
- popularity: log(1 + count) of a film in training;
- mean stars: a film's mean of what was rated before validation, pulled to the mean of all by five ratings.

Usage::

    OMP_NUM_THREADS=1 python benchmarks/objective_floors.py [--record FILE]
"""

import argparse
import importlib.util
import math
import sys
import time
import warnings
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from recsys_lib.chapter.runs import write_run
from recsys_lib.data import Interactions, MovieLens, leave_last_out, load_movielens
from recsys_lib.models.objectives import ObjectiveMF

COMMAND = (
    "OMP_NUM_THREADS=1 python benchmarks/objective_floors.py --record book/recorded/objective_floors.json"
)
CODE = ("benchmarks/objective_floors.py", "benchmarks/objectives.py")
PULL = 5  # ratings at the mean of all that a film is given


def _objectives() -> ModuleType:
    """The script beside this one; ``benchmarks`` is no package."""
    name = "benchmark_objectives"
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name("objectives.py"))
        assert spec is not None
        assert spec.loader is not None
        sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
    return sys.modules[name]


def scorer(events: Interactions, scores: Tensor, loss: str) -> ObjectiveMF:
    """A model that gives each film one score, (n_items,), and reads it as ``loss`` does."""
    model = ObjectiveMF(loss=loss, epochs=1, seed=0).fit(events[:1], device="cpu", progress=False)
    with torch.no_grad():
        for part in (model.mean, model.user_bias, model.user_factors, model.item_factors):
            part.zero_()
        model.item_bias.copy_(scores)
        if loss == "stars":
            model.rating_range.copy_(torch.tensor([-1e6, 1e6]))
    return model


def mean_stars(rated: Interactions) -> Tensor:
    """Each film's mean, pulled to that of all, (n_items,)."""
    total = torch.zeros(rated.n_items).index_add_(0, rated.items, rated.ratings)
    return (total + PULL * rated.ratings.mean()) / (rated.item_counts() + PULL)


def run(data: MovieLens | None = None) -> dict[str, Any]:
    """The whole measurement."""
    script = _objectives()
    data = data or load_movielens("100k")
    every = data.interactions
    liked = every.positives(4.0)
    split = leave_last_out(liked, n=0.2)
    parts = tuple(script.part_of(split, name, every, liked, 0) for name in ("validation", "test"))
    ends = torch.minimum(*map(script.first_times, (split.validation, split.test)))  # (n_users,)
    rated = every[every.timestamps < ends[every.users]]
    started = time.process_time()
    level = torch.full((every.n_items,), -math.log(script.PER_CHOSEN))  # the logit of 1 / (1 + 8)
    floors = {
        "a constant": (level, "BCE", ("RMSE", "log-loss", "log-loss, fitted", "ECE")),
        "popularity": (split.train.item_counts().float().log1p(), "stars", tuple(script.METRICS)),
        "mean stars": (mean_stars(rated), "stars", tuple(script.METRICS)),
    }
    found: dict[str, dict[str, list[Any]]] = {}
    for name, (scores, loss, wanted) in floors.items():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", np.exceptions.RankWarning)  # of a line through one score
            own = script.sums(scorer(rated, scores, loss), *parts)
        found[name] = {metric: [own[metric]] for metric in wanted if metric in own}
    cells = script.cells(found, every.n_users)
    for column in cells.values():
        for cell in column.values():
            del cell["behind"]  # the best of the floors is no best
            cell.pop("best", None)
    return {
        "inputs": {"ratings": data.sha256},
        "settings": {"threads": torch.get_num_threads()},
        "values": {"cpu_seconds": round(time.process_time() - started), "cells": cells},
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--record", type=Path, help="a file for the results, as JSON")
    arguments = parser.parse_args()
    found = run()
    for metric, column in found["values"]["cells"].items():
        print(metric, {name: cell["value"] for name, cell in column.items()})
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
