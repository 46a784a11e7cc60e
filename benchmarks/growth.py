"""How time and memory of fitting grow with users, items, events and factors, and what one machine holds.

The events are made up and shaped as MovieLens (``benchmarks/peers/shape.py``), from ten thousand to ten
million. One thing grows at a time: *events* with users in proportion and items with the square root, as in
the MovieLens data sets; *users* with as many events each; *items* with as many events in all; *factors* on
one data set. Models that train in epochs, or alternate, do one. A power law is fitted to the upper half of
the sizes, by least squares of logarithms.

Each model meets the sizes in rising order in a process of its own, one thread, until the next would take it
beyond its share of processor time or memory. Memory is the peak above what the process held with the data.
Usage::

    OMP_NUM_THREADS=1 python -m benchmarks.growth [--smoke] [--seconds 12] [--memory 8] [--record FILE]
"""

import argparse
import json
import math
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.peers.shape import like_movielens
from recsys_lib.chapter.runs import write_run
from recsys_lib.models import ALS, BPR, EASE, ItemKNN, Popularity, Recommender, SASRec

COMMAND = "OMP_NUM_THREADS=1 python -m benchmarks.growth --record book/recorded/growth.json"
CODE = (
    *(f"benchmarks/growth.py::{name}" for name in ("MODELS", "SIZES", "Size", "measure", "power_law", "run")),
    "benchmarks/peers/shape.py",
    *(
        f"recsys_lib/models/{name}"
        for name in (
            "als.py::ALS",
            "ease.py::EASE",
            "ease.py::_gram",
            "ease.py::gram_inverse",
            "factorization.py::BPR",
            "factorization.py::MatrixFactorization",
            "knn.py::ItemKNN",
            "knn.py::_nearest",
            "popularity.py::Popularity",
            "sasrec.py::SASRec",
        )
    ),
    "recsys_lib/training.py::train",
)

MODELS: dict[str, Callable[[int], Recommender]] = {
    "Popularity": lambda dim: Popularity(),
    "ItemKNN": lambda dim: ItemKNN(),
    "EASE": lambda dim: EASE(),
    "BPR": lambda dim: BPR(dim=dim, epochs=1),
    "ALS": lambda dim: ALS(dim=dim, epochs=1),
    "SASRec": lambda dim: SASRec(dim=dim, epochs=1),
}
WITH_FACTORS = ("BPR", "ALS", "SASRec")


@dataclass(frozen=True)
class Size:
    """How large a data set and a model are."""

    users: int
    items: int
    events: int
    factors: int = 64


def _natural(events: int) -> Size:
    """As the MovieLens data sets: a hundred events a user, items with the square root."""
    return Size(events // 100, round(1_682 * (events / 1e5) ** 0.5), events)


SIZES: dict[str, list[Size]] = {
    "events": [_natural(n) for n in (10_000, 30_000, 100_000, 300_000, 1_000_000, 3_000_000, 10_000_000)],
    "users": [Size(n, 2_000, 50 * n) for n in (500, 1_000, 2_000, 4_000, 8_000, 16_000)],
    "items": [Size(4_000, n, 200_000) for n in (500, 1_000, 2_000, 4_000, 8_000, 16_000)],
    "factors": [Size(1_000, 1_682, 100_000, n) for n in (16, 32, 64, 128, 256)],
}
SMALL: dict[str, list[Size]] = {
    "events": [Size(20, 30, 200), Size(40, 40, 400), Size(80, 50, 800), Size(160, 60, 1_600)],
    "factors": [Size(40, 40, 400, n) for n in (4, 8, 16)],
}


def peak_mb() -> float:
    """The most that this process has held since `forget_peak`, or ever."""
    status = Path("/proc/self/status")
    if status.exists():
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) / 1024
    unit = 2**20 if sys.platform == "darwin" else 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit


def forget_peak() -> None:
    """Counts the peak from now on, where the system can."""
    clear = Path("/proc/self/clear_refs")
    if clear.exists():
        clear.write_text("5")


def measure(model: str, sizes: Sequence[Size], seconds: float, memory: float) -> None:
    """Fits a model at rising sizes, and prints a line of JSON after each, and why it ends.

    Args:
        model: its name.
        sizes: in rising order.
        seconds: of processor time for all fits.
        memory: GB that a fit may add.
    """
    torch.set_num_threads(1)
    MODELS[model](sizes[0].factors).fit(like_movielens(20, 30, 200), device="cpu", progress=False)  # warm
    spent, last = 0.0, (0.0, 0.0)
    for place, size in enumerate(sizes):
        if place > 1 and (why := _too_much(sizes[place - 1], size, last, seconds - spent, memory)):
            print(json.dumps({"stopped": why}), flush=True)
            return
        events = like_movielens(size.users, size.items, size.events)
        forget_peak()
        before, start = peak_mb(), time.process_time()
        MODELS[model](size.factors).fit(events, device="cpu", progress=False)
        took = time.process_time() - start
        spent, last = spent + took, (took, peak_mb() - before)
        print(json.dumps({"size": vars(size), "cpu_s": took, "above_mb": last[1]}), flush=True)
    print(json.dumps({"stopped": ""}), flush=True)


def _too_much(done: Size, size: Size, last: tuple[float, float], seconds: float, memory: float) -> str:
    """Why the next size is not tried: at least as much more as the data grows, and for items its square."""
    growth = max(size.events / done.events, (size.items / done.items) ** 2, size.factors / done.factors)
    if growth * last[0] > seconds:
        return "would take more than its share of time"
    if growth * last[1] > 1_000 * memory:
        return "would take more than its share of memory"
    return ""


def power_law(x: Sequence[float], y: Sequence[float]) -> dict[str, float] | None:
    """The exponent of y = c x^a by least squares of logarithms, and its standard error.

    Returns:
        ``value`` and ``error``; None for fewer than three points, or for one that is not above zero.
    """
    if len(x) < 3 or min(*x, *y) <= 0:
        return None
    a, b = np.log(x), np.log(y)
    a = a - a.mean()
    slope = float(a @ b / (a @ a))
    rest = b - b.mean() - slope * a
    error = math.sqrt(float(rest @ rest) / (len(x) - 2) / float(a @ a))
    return {"value": slope, "error": error}


def run(sizes: Mapping[str, Sequence[Size]], seconds: float, memory: float) -> dict[str, Any]:
    """All models against all that grows."""
    rows: list[dict[str, Any]] = []
    exponents, largest = [], []
    for against, listed in sizes.items():
        for model in WITH_FACTORS if against == "factors" else MODELS:
            found, stopped = _child(model, against, seconds, memory, sizes is SMALL)
            rows += [{"model": model, "against": against, **row} for row in found]
            half = found[len(found) // 2 :] if len(found) >= 6 else found[-3:]
            x = [row["size"][against] for row in half]
            laws = {
                name: power_law(x, [row[of] for row in half])
                for name, of in (("time", "cpu_s"), ("memory", "above_mb"))
            }
            if found:
                ends = {"least": x[0], "most": x[-1]}
                exponents.append({"model": model, "against": against, **laws, **ends})
                if against == "events":
                    last = found[-1]
                    why = stopped or "there was none"
                    largest.append({"model": model, **last["size"], **last, "stopped": why})
            print(f"{model:12}{against:9}{len(found)} of {len(listed)} sizes {stopped}", flush=True)
    for row in largest:
        row.pop("size")
    return {
        "inputs": {},
        "settings": {"seconds": seconds, "memory_gb": memory, "threads": 1},
        "values": {"rows": rows, "exponents": exponents, "largest": largest},
    }


def _child(
    model: str, against: str, seconds: float, memory: float, small: bool
) -> tuple[list[dict[str, Any]], str]:
    """The sizes that a model was fitted at, and why it went no further."""
    command = [sys.executable, "-m", "benchmarks.growth", "--measure", model, "--against", against]
    command += ["--seconds", str(seconds), "--memory", str(memory), *(["--smoke"] if small else [])]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=20 * seconds + 120, cwd=Path(__file__).parents[1]
        )
    except subprocess.TimeoutExpired as error:
        said = error.stdout.decode() if isinstance(error.stdout, bytes) else error.stdout or ""
        return _rows(said), "took too long"
    stopped = [json.loads(line)["stopped"] for line in done.stdout.splitlines() if '"stopped"' in line]
    if stopped:
        return _rows(done.stdout), stopped[-1]
    return _rows(done.stdout), f"ended with status {done.returncode}"


def _rows(said: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in said.splitlines() if '"size"' in line]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--smoke", action="store_true", help="tiny sizes")
    parser.add_argument(
        "--seconds", type=float, default=12.0, help="of processor time, a model and what grows"
    )
    parser.add_argument("--memory", type=float, default=8.0, help="GB that a fit may add")
    parser.add_argument("--record", type=Path, help="a file for the results, as JSON")
    parser.add_argument("--measure", choices=list(MODELS), help=argparse.SUPPRESS)
    parser.add_argument("--against", choices=list(SIZES), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    sizes = SMALL if arguments.smoke else SIZES
    if arguments.measure:
        measure(arguments.measure, sizes[arguments.against], arguments.seconds, arguments.memory)
        return
    found = run(sizes, arguments.seconds, arguments.memory)
    for row in found["values"]["exponents"]:
        law = row["time"]
        print(
            f"{row['model']:12}{row['against']:9}time {law['value']:.2f} ± {law['error']:.2f}" if law else ""
        )
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
