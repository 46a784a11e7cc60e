"""What one epoch of BPR costs, and how soon it is any good.

On the events of MovieLens-100K, 64 factors, in turn and repeatedly:

- ours: ``BPR`` with one negative for each positive (as in the paper) and with its default number;
- loop: one triple at a time in numpy, the algorithm as the paper prints it, on a part of the epoch;
- implicit: the BPR of the ``implicit`` library, where a Python that has it is named. It lives in an
  environment of its own, so that nothing it needs can touch this one.

All figures are seconds of processor time, on one thread, for one epoch scaled to 98,000 triples; on an idle
machine that is the time on the clock. Then the same until NDCG@10 on validation reaches .060. Usage::

    python benchmarks/bpr_epoch.py [--implicit-python PATH] [--repeats 5]
"""

import argparse
import json
import statistics
import subprocess
import sys
import time

import numpy as np
import torch

from recsys_lib.data import Interactions, leave_last_out, load_movielens
from recsys_lib.models import BPR
from recsys_lib.models.core.trained import validation_ndcg
from recsys_lib.ranking import HeldOut

TRIPLES = 98_000
DIM = 64

# Runs in the other environment: reads the events from standard input, writes seconds an epoch.
PEER = """
import json, os, sys, time
os.environ["OPENBLAS_NUM_THREADS"] = os.environ["OMP_NUM_THREADS"] = "1"
import numpy as np, scipy.sparse
from implicit.bpr import BayesianPersonalizedRanking
users, items = json.load(sys.stdin)
matrix = scipy.sparse.csr_matrix((np.ones(len(users), np.float32), (users, items)))
epochs = 5
factors = int(sys.argv[1]) - 1  # the library adds one for the bias
model = BayesianPersonalizedRanking(factors=factors, iterations=epochs, num_threads=1, random_state=0)
start = time.process_time()
model.fit(matrix, show_progress=False)
print((time.process_time() - start) / epochs)
"""


def ours(inter: Interactions, n_negatives: int, epochs: int = 3) -> float:
    model = BPR(dim=DIM, epochs=epochs, batch_size=2048, n_negatives=n_negatives)
    start = time.process_time()
    model.fit(inter, device="cpu", progress=False)
    return (time.process_time() - start) / epochs / len(inter) * TRIPLES


def loop(inter: Interactions, n: int = 5_000) -> float:
    """Rendle et al. 2009, figure 4, word for word; the negatives by trial and error."""
    rng = np.random.default_rng(0)
    p = 0.1 * rng.standard_normal((inter.n_users, DIM)).astype(np.float32)
    q = 0.1 * rng.standard_normal((inter.n_items, DIM)).astype(np.float32)
    b = np.zeros(inter.n_items, np.float32)
    users, items = inter.users.numpy(), inter.items.numpy()
    own = set(zip(users.tolist(), items.tolist(), strict=True))
    rate, l2 = 0.05, 0.01
    start = time.process_time()
    for event in rng.integers(len(users), size=n):
        u, i = users[event], items[event]
        j = rng.integers(inter.n_items)
        while (u, j) in own:
            j = rng.integers(inter.n_items)
        margin = p[u] @ (q[i] - q[j]) + b[i] - b[j]
        wrong = 1 / (1 + np.exp(margin))
        step_u, step_i, step_j = wrong * (q[i] - q[j]), wrong * p[u], -wrong * p[u]
        p[u] += rate * (step_u - l2 * p[u])
        q[i] += rate * (step_i - l2 * q[i])
        q[j] += rate * (step_j - l2 * q[j])
        b[i] += rate * (wrong - l2 * b[i])
        b[j] += rate * (-wrong - l2 * b[j])
    return (time.process_time() - start) / n * TRIPLES


def implicit(python: str, inter: Interactions) -> float:
    events = json.dumps([inter.users.tolist(), inter.items.tolist()])
    run = subprocess.run(
        [python, "-c", PEER, str(DIM)], input=events, capture_output=True, text=True, check=True
    )
    return float(run.stdout) / len(inter) * TRIPLES


def time_to(target: float, n_negatives: int) -> tuple[float, int, float]:
    """Seconds of training (checks not counted) and epochs until validation NDCG@10 is at least ``target``."""
    split = leave_last_out(load_movielens(progress=False).interactions.positives(4.0))
    for epochs in range(2, 100, 2):
        model = BPR(dim=DIM, epochs=epochs, n_negatives=n_negatives)
        start = time.process_time()
        model.fit(split.train, device="cpu", progress=False)
        seconds = time.process_time() - start
        held_out = HeldOut.of(split.validation, split.train)
        reached = validation_ndcg(model, held_out, split.train)
        if reached >= target:
            return seconds, epochs, reached
    raise SystemExit(f"{target} was not reached in 100 epochs")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--implicit-python", help="a Python that can import implicit")
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    torch.set_num_threads(1)

    inter = load_movielens(progress=False).interactions
    default = BPR().config["n_negatives"]
    runs = {
        "ours, 1 negative": lambda: ours(inter, 1),
        f"ours, {default} negatives": lambda: ours(inter, default),
        "loop in numpy": lambda: loop(inter),
    }
    if arguments.implicit_python:
        runs["implicit"] = lambda: implicit(arguments.implicit_python, inter)
    for run in runs.values():  # warm up
        run()
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(arguments.repeats):
        for name, run in runs.items():
            seconds[name].append(run())

    print(f"torch {torch.__version__}, {len(inter):,} events, {DIM} factors, one thread")
    print(f"seconds for {TRIPLES:,} triples: median (least, most) of {arguments.repeats}")
    reference = statistics.median(seconds["ours, 1 negative"])
    for name, values in seconds.items():
        median = statistics.median(values)
        print(
            f"  {name:20} {median:8.3f} ({min(values):.3f}, {max(values):.3f})  {median / reference:7.2f} x"
        )
    for n_negatives in (1, default):
        taken, epochs, reached = time_to(0.060, n_negatives)
        print(f"validation NDCG@10 {reached:.4f}, {n_negatives} negative(s): {taken:.2f} s, {epochs} epochs")


if __name__ == "__main__":
    sys.exit(main())
