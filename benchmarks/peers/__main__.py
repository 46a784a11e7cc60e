"""Beside the peers: the book's models and other libraries on one machine, one split, one thread.

Each library runs in an environment of its own, made from a pinned file. Quality: each model gets the same
number of trials on validation, and a second grid where its best value lies at an end of the first; it is
then fitted on train and validation parts, and its scores go through this book's evaluator. Speed: seconds
of processor time, each library in turn and repeatedly, one process for each repetition. Memory is the most
that a process held. Every finished cell is kept, so a run that was killed goes on where it was. Usage::

    python -m benchmarks.peers [--only PART ...] [--skip PART ...] [--smoke] [--retry] [--record FILE]
"""

import argparse
import os
import sys
from pathlib import Path
from typing import Any

import torch

from benchmarks.peers import environments, measure
from benchmarks.peers.harness import ROOT, Bench
from benchmarks.peers.plan import OURS, Plan, full, smoke
from benchmarks.peers.shape import like_movielens
from recsys_lib.chapter.runs import write_run
from recsys_lib.data import Interactions, leave_last_out, load_movielens, random_split

COMMAND = "make bench-peers"
CODE = (
    *(f"benchmarks/peers/{name}.py" for name in ("harness", "measure", "plan", "shape")),
    *(
        f"benchmarks/peers/runners/{name}.py"
        for name in (
            "common",
            "run_cornac",
            "run_implicit",
            "run_lenskit",
            "run_metrics",
            "run_ours",
            "run_recbole",
            "run_rectools",
            "run_surprise",
        )
    ),
    *(
        f"recsys_lib/models/{name}"
        for name in (
            "als.py::ALS",
            "autoencoder.py::Autoencoder",
            "autoencoder.py::MultVAE",
            "biased_mf.py::BiasedMF",
            "compiled_bpr.py::CompiledBPR",
            "compiled_bpr.py::one_by_one",
            "ease.py::EASE",
            "ease.py::gram_inverse",
            "factorization.py::BPR",
            "factorization.py::MatrixFactorization",
            "knn.py::ItemKNN",
            "knn.py::UserKNN",
            "knn.py::_nearest",
            "popularity.py::Popularity",
            "rating_als.py::RatingALS",
            "sasrec.py::SASRec",
        )
    ),
    *(f"recsys_lib/evaluation.py::{name}" for name in ("compare", "evaluate", "mean_report")),
    "recsys_lib/training.py::train",
)
NOT_RUN = [
    {"library": "RecBole", "model": "SASRec", "why": "an epoch of it takes minutes of one thread"},
    {
        "library": "RecTools",
        "model": "ItemKNN, ALS, BPR",
        "why": "they are those of implicit, behind another interface",
    },
]


def tiny() -> Interactions:
    """Made-up events, with ratings and times."""
    return like_movielens(60, 40, 1_200, seed=0)


def run(bench: Bench, *, small: bool = False) -> dict[str, Any]:
    """All stages: inputs, settings and values for the record."""
    if small:
        events, digest, positives = tiny(), None, tiny()
        sizes, vectors = {"tiny": positives}, 100
    else:
        data = load_movielens("100k", progress=False)
        events, digest = data.interactions, data.sha256
        positives = events.positives(4.0)
        sizes = {"100K": events, "1M, made up": like_movielens(6_040, 3_700, 1_000_000, seed=0)}
        vectors = 20_000
    split = leave_last_out(positives, n=0.2)
    found = measure.quality(bench, split)
    tuning = found.pop("tuning")
    values: dict[str, Any] = {
        "environments": [
            {"name": made.name, "installed": int(made.python is not None), "problem": made.problem}
            for made in bench.environments.values()
        ],
        "quality": found["rows"],
        "ratings": measure.ratings(bench, random_split(events, (0.7, 0.1, 0.2), seed=0)),
        "evaluators": measure.evaluators(bench, split, bench.plan.repeats),
        "epoch_of_bpr": measure.epoch_of_bpr(bench, split),
        "bpr_to_levels": measure.bpr_to_levels(bench, split, tuning),
        "served": measure.served(bench, sizes),
        "ranking": measure.ranking(bench, vectors, 64),
        "faults": measure.faults(bench),
        "tuning": [
            {
                "contender": key,
                "best": of["best"],
                "trials": [
                    {
                        "options": trial["options"],
                        "values": [look["value"] for look in trial["looks"]],
                        "epochs": [look["epochs"] for look in trial["looks"]],
                    }
                    for trial in of["trials"]
                ],
            }
            for key, of in tuning.items()
        ],
        "not_run": [*NOT_RUN, *left_out(bench, found["rows"])],
        "failed": bench.failed(),
        "versions": versions(bench),
        **took(bench),
    }
    return {
        "inputs": {} if digest is None else {"ratings": digest},
        "settings": {
            "budget": bench.plan.budget,
            "second": bench.plan.second,
            "repeats": bench.plan.repeats,
            "limit_s": bench.plan.limit,
            "threads": 1,
            # Of a quarter of an hour before the end: above one, other work ran beside this.
            "load": round(os.getloadavg()[2], 1),
            "users": split.test.n_users,
            "items": split.test.n_items,
            "events": len(split.train),
        },
        "values": rounded(values),
    }


def took(bench: Bench) -> dict[str, float]:
    """How many cells gave a result, and their seconds: of processor time, and on the clock."""
    spent = [cell["result"]["process"] for cell in bench.cells.values() if cell.get("result")]
    return {
        "cells": len(spent),
        "cpu_seconds": sum(of["cpu_s"] for of in spent),
        "clock_seconds": sum(of["wall_s"] for of in spent),
    }


def left_out(bench: Bench, rows: list[dict[str, Any]]) -> list[dict[str, str]]:
    """Contenders of the plan without a result, though nothing of them failed."""
    there = {(row["library"], row["model"]) for row in rows}
    there |= {(library, model) for _, library, model in (name.split("/")[:3] for name in tried(bench))}
    return [
        {"library": of.library, "model": of.model, "why": "left out of this run"}
        for of in bench.plan.quality
        if (of.library, of.model) not in there and bench.python(bench.plan.libraries[of.library])
    ]


def tried(bench: Bench) -> list[str]:
    """The cells of tuning and testing that failed."""
    return [name for name in bench.failed() if name.startswith(("tune", "test"))]


def versions(bench: Bench) -> dict[str, str]:
    """Of every package that a cell reported, by library: what the page names."""
    found: dict[str, dict[str, str]] = {}
    for cell in bench.cells.values():
        for package, version in (cell.get("result") or {}).get("versions", {}).items():
            found.setdefault(package, {})[version] = version
    return {package: ", ".join(sorted(of)) for package, of in sorted(found.items())}


def rounded(value: Any) -> Any:
    """Numbers of five digits: what the record shows, and no more."""
    if isinstance(value, dict):
        return {str(name): rounded(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [rounded(part) for part in value]
    if isinstance(value, bool):
        return int(value)
    return float(f"{value:.5g}") if isinstance(value, float) else value


def table(values: dict[str, Any]) -> str:
    """The run as text."""
    lines = []
    for row in values["quality"]:
        of = row["ndcg@10"]
        gap = row.get("ours_minus_it")
        against = f"  ours - it {gap['mean']:+.4f} [{gap['low']:+.4f}, {gap['high']:+.4f}]" if gap else ""
        value = f"{of['value']:.4f} [{of['low']:.4f}, {of['high']:.4f}]"
        lines.append(f"{row['model']:12}{row['library']:10}{value}{against}")
    for row in values["ratings"]:
        lines.append(f"{row['model']:12}{row['library']:10}RMSE {row['rmse']['value']:.4f}")
    for row in values["evaluators"]["agreement"]:
        worst = max(row[metric] for metric in measure.METRICS)
        lines.append(f"metrics     {row['library']:12} largest difference of a user {worst:.1e}")
    for row in values["epoch_of_bpr"]:
        lines.append(f"epoch of BPR {row['library']:10}{row['cpu_s']['median']:.4f} s {row['options']}")
    for row in values["bpr_to_levels"]:
        reached = row["best"] >= row["level"]
        seconds = "not timed" if reached else f"never, at best {row['best']:.4f}"
        if "cpu_s" in row:
            seconds = f"{row['cpu_s']['median']:.3f} s"
        lines.append(f"BPR to {row['level']:.4f} {row['library']:10}{row['model']:10}{seconds}")
    for row in values["served"]:
        lines.append(
            f"{row['data']:12}{row['model']:10}{row['library']:10}fit {row['fit_cpu_s']['median']:.3f} s, "
            f"with lists {row['fit_and_lists_cpu_s']['median']:.3f} s, {row['above_mb']['median']:.0f} MB"
        )
    for row in values["ranking"]:
        lines.append(f"ranking {row['users']:,} {row['library']:10}{row['cpu_s']['median']:.2f} s")
    lines += [f"FAILED {name}: {why}" for name, why in values["failed"].items()]
    return "\n".join([*lines, f"{values['cpu_seconds']:.0f} s of processor time"])


def made(plan: Plan, home: Path = environments.HOME) -> dict[str, environments.Environment]:
    """The environments that the plan's libraries need."""
    names = dict.fromkeys(of.environment for of in plan.libraries.values() if of.environment)
    found = {name: environments.make(name, home) for name in names}
    for name, of in found.items():
        if of.python is None:
            print(f"no environment {name}: {of.problem}", flush=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--only", nargs="+", default=[], metavar="PART", help="cells whose name has this part"
    )
    parser.add_argument("--skip", nargs="+", default=[], metavar="PART", help="and cells that are not run")
    parser.add_argument("--smoke", action="store_true", help="tiny, with the book's own library alone")
    parser.add_argument("--retry", action="store_true", help="run failed cells again")
    parser.add_argument("--folder", type=Path, help="where the state is kept")
    parser.add_argument("--environments", type=Path, default=environments.HOME, help="where they lie")
    parser.add_argument("--record", type=Path, help="a file for the results, as JSON")
    arguments = parser.parse_args()
    plan = smoke() if arguments.smoke else full()
    folder = arguments.folder or ROOT / "_build" / ("peers-smoke" if arguments.smoke else "peers")
    torch.set_num_threads(1)
    try:
        bench = Bench(
            plan,
            folder.resolve(),
            made(plan, arguments.environments),
            arguments.only,
            arguments.skip,
            arguments.retry,
        )
    except BlockingIOError:
        sys.exit(f"another run is in {folder}; wait for it, or name another with --folder")
    found = run(bench, small=arguments.smoke)
    print(table(found["values"]))
    if arguments.record:
        write_run(
            arguments.record,
            about=__doc__ or "",
            command=COMMAND,
            versions=("torch", "numpy"),
            code=CODE,
            **found,
        )
    if any(name.partition("/")[2].startswith(OURS) for name in bench.failed()):
        sys.exit("a cell of the book's own library failed; see above")


if __name__ == "__main__":
    main()
