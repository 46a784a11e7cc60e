"""What full-catalog evaluation costs beside the arithmetic that it cannot do without.

Both are run in one process on the same chunks of users, in turn:

- bare: ``(users @ items.T).topk(10)``, nothing else;
- evaluate: the same product as a model, plus seen items removed, scores checked, ties resolved, every default
  metric computed.

Then the whole problem is evaluated once in a process of its own, whose peak memory is reported. Usage::

    OMP_NUM_THREADS=2 python benchmarks/evaluation.py [--users 50000] [--items 20000] [--factors 64]
"""

import argparse
import multiprocessing
import resource
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from types import SimpleNamespace

import pandas as pd
import torch
from torch import Tensor

from recsys_lib.evaluation import evaluate

K = 10


class DotProduct:
    """The model: one product of factors."""

    def __init__(self, n_users: int, n_items: int, dim: int) -> None:
        generator = torch.Generator().manual_seed(0)
        self.users = torch.randn(n_users, dim, generator=generator)  # (U, d)
        self.items = torch.randn(n_items, dim, generator=generator)  # (N, d)
        self.n_items = n_items
        self.largest_batch = 0

    def score(self, users: Tensor) -> Tensor:
        """(B,) -> (B, N)."""
        self.largest_batch = max(self.largest_batch, len(users))
        return self.users[users] @ self.items.mT  # (B, N)


class IntegerScores(DotProduct):
    """The same product rounded to integers: ties in every list."""

    def score(self, users: Tensor) -> Tensor:
        """(B,) -> (B, N)."""
        return super().score(users).round_()  # (B, N)


def interactions(n_users: int, n_items: int, per_user: int, seed: int) -> SimpleNamespace:
    """What ``evaluate`` reads of Interactions, for random events."""
    generator = torch.Generator().manual_seed(seed)
    items = torch.randint(n_items, (n_users, per_user), generator=generator)  # (U, P)
    keys = (torch.arange(n_users)[:, None] * n_items + items).unique()  # (E,)
    crow = torch.searchsorted(keys, torch.arange(n_users + 1) * n_items)  # (U + 1,)
    counts = (keys % n_items).bincount(minlength=n_items)  # (N,)
    return SimpleNamespace(
        n_users=n_users,
        n_items=n_items,
        user_ids=pd.RangeIndex(n_users),
        item_ids=pd.RangeIndex(n_items),
        csr=lambda: (crow, keys % n_items),
        item_counts=lambda: counts,
    )


def bare(model: DotProduct, n_users: int, batch: int) -> None:
    for users in torch.arange(n_users).split(batch):
        model.score(users).topk(K)


def timed(function: Callable[[], object]) -> tuple[float, float]:
    """Seconds on the clock, and of processor time, which other processes on the machine disturb less."""
    start, start_cpu = time.perf_counter(), time.process_time()
    function()
    return time.perf_counter() - start, time.process_time() - start_cpu


def summary(ours: Sequence[float], theirs: Sequence[float]) -> str:
    low, middle, high = statistics.quantiles([a / b for a, b in zip(ours, theirs, strict=True)], n=4)
    return f"{middle:.2f} (quartiles {low:.2f} to {high:.2f}; fastest of each {min(ours) / min(theirs):.2f})"


def peak_mb() -> float:
    """Peak resident memory of this process in MB; Linux counts in kB, macOS in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


def whole(n_users: int, n_items: int, factors: int, n_seen: int) -> str:
    model = DotProduct(n_users, n_items, factors)
    test, seen = (interactions(n_users, n_items, n, seed) for n, seed in ((2, 1), (n_seen, 2)))
    before = peak_mb()
    report = evaluate(model, test, seen=seen, k=K, progress=False)
    return (
        f"{report.n:,} users in {report.seconds:.1f} s, peak memory {peak_mb():.0f} MB "
        f"({before:.0f} MB before evaluate)"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--users", type=int, default=50_000)
    parser.add_argument("--items", type=int, default=20_000)
    parser.add_argument("--factors", type=int, default=64)
    parser.add_argument("--seen", type=int, default=100, help="seen items of a user")
    parser.add_argument("--pair-users", type=int, default=2_000, help="users of each interleaved pair")
    parser.add_argument("--pairs", type=int, default=40)
    args = parser.parse_args()
    print(f"{args.items:,} items, {args.factors} factors, {torch.get_num_threads()} threads")

    n = args.pair_users
    test, seen = (interactions(n, args.items, per_user, seed) for per_user, seed in ((2, 1), (args.seen, 2)))
    for kind in (DotProduct, IntegerScores):
        model = kind(n, args.items, args.factors)
        evaluate(model, test, seen=seen, k=K, progress=False)  # warm up, and learn the default batch
        batch = model.largest_batch
        ours, theirs = [], []
        for _ in range(args.pairs):
            ours.append(timed(lambda model=model: evaluate(model, test, seen=seen, k=K, progress=False)))
            theirs.append(timed(lambda model=model, batch=batch: bare(model, n, batch)))
        print(f"{kind.__name__}: {args.pairs} pairs of {n:,} users in batches of {batch}; evaluate / bare is")
        (clock, cpu), (bare_clock, bare_cpu) = (zip(*times, strict=True) for times in (ours, theirs))
        print(f"  on the clock       {summary(clock, bare_clock)}")
        print(f"  in processor time  {summary(cpu, bare_cpu)}")

    # A process of its own, so that its peak memory is that of this run alone.
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        print("whole:", pool.submit(whole, args.users, args.items, args.factors, args.seen).result())


if __name__ == "__main__":
    main()
