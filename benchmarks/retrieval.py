"""Recall against time: exact search, and FAISS's flat, IVF, HNSW and PQ, behind the library's interface.

On two sets of 64-d vectors, by dot product, with real users as queries:

- movielens: the items of MovieLens-100K from matrix factorization with full softmax, 63 factors and the bias
  of each; a query is a user's factors and a 1.
- million: a million vectors with the spectrum of these items. Each is drawn around an item q of MovieLens,
  x = mean + sqrt(1 - s^2) (q - mean) + s L z, with z standard normal and L L' the covariance of the items, so
  that the covariance of x is the same; s = 0.5. Noise alike in all directions would be harder to search than
  any real catalog: it has no clusters, and no few directions that matter most.

An index is built of 99 % of the vectors, and gets the rest by ``add``, a thousand at a time. Then all
settings answer the same queries, in turn, for some rounds: all queries at once, and some one by one. Times
are CPU seconds of one thread, medians over rounds with the least and the greatest; recall is the share of the
ten exact results that are found, with its 95 % interval over queries; memory is the size of the saved index.
Usage::

    OMP_NUM_THREADS=1 python benchmarks/retrieval.py [--vectors 1000000] [--rounds 5] [--record FILE]
"""

import argparse
import hashlib
import math
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import faiss
import torch
from torch import Tensor

from recsys_lib.chapter.runs import write_run
from recsys_lib.data import load_movielens
from recsys_lib.models import MatrixFactorization
from recsys_lib.retrieval import ExactIndex, FaissIndex, Index

COMMAND = "OMP_NUM_THREADS=1 python benchmarks/retrieval.py --rounds 4 --record book/recorded/retrieval.json"
# What the values depend on.
CODE = (
    *(f"benchmarks/retrieval.py::{name}" for name in ("Direct", "INDEXES", "measure", "movielens")),
    "benchmarks/retrieval.py::spread_around",
    *(f"recsys_lib/retrieval/{name}.py" for name in ("approximate", "exact", "index")),
)
K, DIM, SPREAD, ADDED = 10, 64, 0.5, 1000

# Indexes by name: the options, and what is set for a search in turn.
INDEXES: dict[str, tuple[dict[str, Any], str, tuple[int, ...]]] = {
    "exact": ({}, "", (0,)),
    "flat": ({}, "", (0,)),
    "ivf": ({}, "n_probe", (1, 4, 16, 64)),
    "hnsw": ({"m": 16, "ef_construction": 64}, "ef_search", (16, 64, 256)),
    "pq": ({"code_bytes": 16}, "n_probe", (4, 16, 64)),
}


class Direct:
    """FAISS's own flat index, called as its documentation says: what the interface costs shows beside it."""

    def __init__(self) -> None:
        self._index = faiss.IndexFlatIP(DIM)

    def build(self, vectors: Tensor) -> "Direct":  # noqa: D102
        self._index.add(vectors.numpy())
        return self

    def add(self, vectors: Tensor) -> None:  # noqa: D102
        self._index.add(vectors.numpy())

    def search(self, queries: Tensor, k: int) -> tuple[Tensor, Tensor]:  # noqa: D102
        scores, ids = self._index.search(queries.numpy(), k)
        return torch.from_numpy(ids), torch.from_numpy(scores)

    def save(self, path: Path) -> None:  # noqa: D102
        faiss.write_index(self._index, str(path))


def movielens(epochs: int) -> tuple[Tensor, Tensor]:
    """(n_items, 64) vectors of items and (n_users, 64) of users, whose products are the model's scores."""
    events = load_movielens("100k", progress=False).interactions.positives(4.0)
    model = MatrixFactorization(loss="softmax", dim=DIM - 1, epochs=epochs)
    model.fit(events, device="cpu", progress=False)
    with torch.no_grad():
        items = torch.cat([model.item_factors, model.item_bias[:, None]], dim=1)  # (n_items, 64)
        users = torch.cat([model.user_factors, torch.ones(events.n_users, 1)], dim=1)  # (n_users, 64)
    return items, users


def spread_around(items: Tensor, n: int, seed: int = 0) -> Tensor:
    """(n, 64) vectors around those of items, with the items' mean and covariance."""
    generator = torch.Generator().manual_seed(seed)
    mean = items.mean(dim=0)  # (64,)
    values, directions = torch.linalg.eigh(items.T.cov())  # (64,), (64, 64)
    root = directions * values.clamp(min=0).sqrt()  # (64, 64)
    around = torch.randint(len(items), (n,), generator=generator)  # (n,)
    noise = torch.randn(n, DIM, generator=generator) @ root.T  # (n, 64)
    return mean + math.sqrt(1 - SPREAD**2) * (items[around] - mean) + SPREAD * noise  # (n, 64)


def cpu_seconds(work: Callable[[], Any]) -> float:
    start = time.process_time()
    work()
    return time.process_time() - start


def over_rounds(values: list[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "least": min(values), "greatest": max(values)}


def made(name: str) -> Index | Direct:
    if name == "FAISS itself":
        return Direct()
    return ExactIndex() if name == "exact" else FaissIndex(name, **INDEXES[name][0])


def measure(vectors: Tensor, queries: Tensor, rounds: int, one_by_one: int) -> dict[str, Any]:
    """Every index on one set of vectors (N, 64) and queries (B, 64)."""
    n, start = len(vectors), math.ceil(0.99 * len(vectors))
    right, _ = ExactIndex().build(vectors).search(queries, K)  # (B, 10)
    indexes, settings = {}, []
    for name in ("exact", "FAISS itself", *list(INDEXES)[1:]):
        index = made(name)
        options, option, values = INDEXES.get(name, ({}, "", (0,)))
        built = cpu_seconds(lambda index=index: index.build(vectors[:start]))
        parts = vectors[start:].split(ADDED)
        added = cpu_seconds(lambda index=index, parts=parts: [index.add(part) for part in parts])
        with tempfile.TemporaryDirectory() as folder:
            index.save(Path(folder, "index"))
            size = Path(folder, "index").stat().st_size
        indexes[name] = {
            "options": options,
            "build_seconds": built,
            "add_seconds_a_thousand": 1000 * added / max(1, n - start),
            "bytes_a_vector": size / n,
        }
        settings += [(name, index, option, value) for value in values]

    together: dict[int, list[float]] = {i: [] for i in range(len(settings))}
    alone: dict[int, list[float]] = {i: [] for i in range(len(settings))}
    found: dict[int, Tensor] = {}
    for _ in range(rounds):
        for i, (_, index, option, value) in enumerate(settings):
            if option:
                setattr(index, option, value)
            together[i].append(
                cpu_seconds(lambda i=i, index=index: found.update({i: index.search(queries, K)[0]}))
            )
            single = queries[:one_by_one].split(1)
            took = cpu_seconds(
                lambda index=index, single=single: [index.search(query, K) for query in single]
            )
            alone[i].append(1000 * took / len(single))

    results = []
    for i, (name, _, option, value) in enumerate(settings):
        share = (found[i][:, :, None] == right[:, None]).any(dim=1).double().mean(dim=1)  # (B,)
        error = 1.96 * float(share.std()) / math.sqrt(len(share))
        mean = float(share.mean())
        results.append(
            {
                "index": name,
                **({option: value} if option else {}),
                "recall": {"mean": mean, "low": max(0.0, mean - error), "high": min(1.0, mean + error)},
                "queries_a_second": over_rounds([len(queries) / seconds for seconds in together[i]]),
                "ms_alone": over_rounds(alone[i]),
            }
        )
    spectrum = torch.linalg.eigvalsh(vectors.T.cov()).flip(0)  # (64,)
    lengths = vectors.norm(dim=1)[:: max(1, n // 100_000)].quantile(torch.tensor([0.05, 0.5, 0.95]))
    return {
        "vectors": n,
        "queries": len(queries),
        "shares_of_variance": (spectrum / spectrum.sum())[:8].tolist(),
        "lengths_5_50_95": lengths.tolist(),
        "indexes": indexes,
        "settings": results,
    }


def processor() -> str:
    """The CPU by name, where the system says it."""
    about = Path("/proc/cpuinfo")
    names = (
        [line for line in about.read_text().splitlines() if "model name" in line] if about.exists() else []
    )
    return names[0].partition(":")[2].strip() if names else platform.processor()


def run(vectors: int, rounds: int, queries: int, one_by_one: int, epochs: int) -> dict[str, Any]:
    """Both sets of vectors: the ``values``, and the ``settings`` and ``inputs`` behind them."""
    torch.set_num_threads(1)
    faiss.omp_set_num_threads(1)
    items, users = movielens(epochs)
    asked = users[torch.linspace(0, len(users) - 1, queries).long()]  # (B, 64)
    return {
        "inputs": {"item vectors": hashlib.sha256(items.numpy().tobytes()).hexdigest()},
        "settings": {"epochs": epochs, "rounds": rounds, "one_by_one": one_by_one, "k": K},
        "values": {
            "sets": {
                "movielens": measure(items, asked, rounds, one_by_one),
                "million": measure(spread_around(items, vectors), asked, rounds, one_by_one),
            }
        },
    }


def table(found: dict[str, Any]) -> str:
    """The run as text."""
    lines = []
    for name, measured in found["values"]["sets"].items():
        lines.append(f"\n{name}: {measured['vectors']:,} vectors, {measured['queries']} queries")
        lines.append(f"{'':14} {'':15} {'recall':>7} {'queries/s':>10} {'ms alone':>9}")
        for row in measured["settings"]:
            option = next((f"{key}={row[key]}" for key in ("n_probe", "ef_search") if key in row), "")
            speed, alone = row["queries_a_second"]["median"], row["ms_alone"]["median"]
            recall = row["recall"]["mean"]
            lines.append(f"{row['index']:14} {option:15} {recall:7.3f} {speed:10,.0f} {alone:9.3f}")
        lines.append(f"{'':14} {'build s':>15} {'s/1000':>7} {'bytes':>10}  a vector")
        lines += [
            f"{kind:14} {row['build_seconds']:15.1f} {row['add_seconds_a_thousand']:7.3f} "
            f"{row['bytes_a_vector']:10.0f}"
            for kind, row in measured["indexes"].items()
        ]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--vectors", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--queries", type=int, default=256)
    parser.add_argument("--one-by-one", type=int, default=32, help="queries that are also asked alone")
    parser.add_argument("--epochs", type=int, default=10, help="of the model whose vectors these are")
    parser.add_argument("--record", type=Path, help="a file for the results, as JSON")
    arguments = parser.parse_args()
    found = run(
        arguments.vectors, arguments.rounds, arguments.queries, arguments.one_by_one, arguments.epochs
    )
    print(table(found))
    if arguments.record:
        write_run(
            arguments.record,
            about=__doc__ or "",
            command=COMMAND,
            device=f"cpu: {processor()}, one thread, {os.cpu_count()} cores, {platform.system()}",
            versions=("torch", "numpy", "faiss-cpu"),
            code=CODE,
            **found,
        )


if __name__ == "__main__":
    main()
