"""Fit time and peak memory of every model, on a million events of 50,000 users and 20,000 items.

The events are made up: items are popular by a power law, histories have about 20 events, every event has a
time and a rating, and every item a text. Each model runs with its defaults, except that those that train in
epochs do one, in a process of its own, so that peak memory is its own; then 1,000 users are served with 10
items each. A model that needs more CPU seconds or more memory than the limits is stopped, and the table says
so: CPU seconds, since others may use the machine.

Memory is the peak of the process above what it held with the data loaded. Usage::

    OMP_NUM_THREADS=1 python benchmarks/scale.py [--small] [--limit 240] [--memory 8] [--only EASE ItemKNN]
"""

import argparse
import json
import math
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from recsys_lib.data import Interactions
from recsys_lib.models import (
    BPR,
    EASE,
    BERT4Rec,
    BiasedMF,
    ItemKNN,
    MarkovChain,
    MatrixFactorization,
    Popularity,
    Recommender,
    SASRec,
    TfidfContent,
    UserKNN,
)

SIZES = {"full": (50_000, 20_000, 1_000_000), "small": (2_000, 1_000, 40_000)}  # users, items, events
SERVED = 1_000
DAY = 86_400

MODELS: dict[str, Callable[[int], Recommender]] = {
    "Popularity": lambda n_items: Popularity(),
    "ItemKNN": lambda n_items: ItemKNN(),
    "UserKNN": lambda n_items: UserKNN(),
    "EASE": lambda n_items: EASE(),
    "MarkovChain": lambda n_items: MarkovChain(),
    "MarkovChain, no times": lambda n_items: MarkovChain(),
    "TfidfContent": lambda n_items: TfidfContent(texts(n_items)),
    "BiasedMF": lambda n_items: BiasedMF(epochs=1),
    "BPR": lambda n_items: BPR(epochs=1),
    "MF, bce": lambda n_items: MatrixFactorization(loss="bce", epochs=1),
    "MF, softmax": lambda n_items: MatrixFactorization(loss="softmax", batch_size=512, epochs=1),
    "SASRec, bce": lambda n_items: SASRec(loss="bce", epochs=1),
    "SASRec, gbce": lambda n_items: SASRec(loss="gbce", epochs=1),
    "SASRec, sampled softmax": lambda n_items: SASRec(loss="sampled_softmax", epochs=1),
    "SASRec, softmax": lambda n_items: SASRec(epochs=1),
    "BERT4Rec, gbce": lambda n_items: BERT4Rec(loss="gbce", epochs=1),
    "BERT4Rec, softmax": lambda n_items: BERT4Rec(epochs=1),
}


def events(n_users: int, n_items: int, n_events: int, seed: int = 0) -> Interactions:
    """Made-up events; item i has a share in proportion to 1 / (i + 10)."""
    rng = np.random.default_rng(seed)
    share = 1.0 / (np.arange(n_items) + 10.0)
    frame = pd.DataFrame(
        {
            "user_id": rng.integers(0, n_users, n_events),
            "item_id": rng.choice(n_items, n_events, p=share / share.sum()),
            "rating": rng.integers(1, 6, n_events).astype(np.float32),
            "timestamp": rng.integers(0, 1_000 * DAY, n_events),
        }
    )
    return Interactions.from_frame(frame, user_ids=range(n_users), item_ids=range(n_items))


def texts(n_items: int, n_words: int = 5_000, length: int = 30, seed: int = 0) -> list[str]:
    """Made-up texts of words that are frequent by a power law."""
    rng = np.random.default_rng(seed)
    share = 1.0 / (np.arange(n_words) + 10.0)
    words = rng.choice(n_words, (n_items, length), p=share / share.sum())
    return [" ".join(f"word{word}" for word in row) for row in words.tolist()]


def peak() -> float:
    """GB, the most that this process has held so far, or since ``forget_peak``."""
    status = Path("/proc/self/status")
    if status.exists():
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) * 1024 / 1e9
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9


def forget_peak() -> None:
    """Counts the peak from now on, where the system can: making the events takes more than they do."""
    clear = Path("/proc/self/clear_refs")
    if clear.exists():
        clear.write_text("5")


def measure(name: str, size: str, limit: float, memory: float) -> dict[str, float]:
    """What one model takes, in this process, which ends where it takes more than the limits."""
    n_users, n_items, n_events = SIZES[size]
    inter = events(n_users, n_items, n_events)
    if name.endswith("no times"):
        inter = Interactions.from_frame(
            inter.to_frame().drop(columns="timestamp"),
            timestamp=None,
            user_ids=range(n_users),
            item_ids=range(n_items),
        )
    model = MODELS[name](n_items)
    end = math.ceil(time.process_time() + limit)
    resource.setrlimit(resource.RLIMIT_CPU, (end, resource.RLIM_INFINITY))
    resource.setrlimit(resource.RLIMIT_DATA, (int(memory * 1e9), resource.RLIM_INFINITY))
    forget_peak()
    loaded, start, busy = peak(), time.perf_counter(), time.process_time()
    model.fit(inter, device="cpu", progress=False)
    fit = {
        "fit": time.perf_counter() - start,
        "fit_cpu": time.process_time() - busy,
        "fit_peak": peak() - loaded,
    }
    start = time.perf_counter()
    model.recommend(torch.arange(min(SERVED, n_users)), k=10, exclude=inter, progress=False)
    return fit | {"serve": time.perf_counter() - start, "peak": peak() - loaded}


def row(name: str, size: str, limit: float, memory: float) -> str:
    """A line of the table, from a process that runs this file."""
    command = [sys.executable, __file__, "--measure", name, "--size", size]
    command += ["--limit", str(limit), "--memory", str(memory)]
    run = subprocess.run(command, capture_output=True, text=True)
    if run.returncode == -signal.SIGXCPU:
        return f"{name:24} not done in {limit:,.0f} s"
    if run.returncode and ("can't allocate memory" in run.stderr or "MemoryError" in run.stderr):
        return f"{name:24} needs more than {memory:g} GB"
    if run.returncode:
        reason = (run.stderr.strip() or f"exit status {run.returncode}").splitlines()[-1]
        return f"{name:24} failed: {reason}"
    found = json.loads(run.stdout.splitlines()[-1])
    return (
        f"{name:24} {found['fit']:9.1f} {found['fit_cpu']:9.1f} {found['fit_peak']:9.2f} "
        f"{found['serve']:9.2f} {found['peak']:9.2f}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--small", action="store_true", help="2,000 users x 1,000 items, for a quick try")
    parser.add_argument("--limit", type=float, default=240.0, help="CPU seconds a model may take")
    parser.add_argument("--memory", type=float, default=8.0, help="GB that its process may hold")
    parser.add_argument("--only", nargs="+", choices=list(MODELS), default=list(MODELS), metavar="MODEL")
    parser.add_argument("--measure", choices=list(MODELS), help=argparse.SUPPRESS)
    parser.add_argument("--size", choices=list(SIZES), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        print(json.dumps(measure(arguments.measure, arguments.size, arguments.limit, arguments.memory)))
        return

    size = "small" if arguments.small else "full"
    n_users, n_items, n_events = SIZES[size]
    print(f"{n_events:,} events, {n_users:,} users x {n_items:,} items")
    limits = f"at most {arguments.limit:,.0f} s and {arguments.memory:g} GB"
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads; {limits}")
    print(f"{'':24} {'fit s':>9} {'CPU s':>9} {'fit GB':>9} {'serve s':>9} {'peak GB':>9}")
    for name in arguments.only:
        print(row(name, size, arguments.limit, arguments.memory), flush=True)


if __name__ == "__main__":
    sys.exit(main())
