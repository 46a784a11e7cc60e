"""An index of ten million vectors that are never in memory together: FAISS's IVF-PQ, built piece by piece.

The vectors have 64 numbers and length one. Each is drawn around one of 100,000 centers, which are themselves
drawn around 1,000, so that there are clusters of clusters as in a real catalog; a piece of 500,000 is made
from its seed whenever it is wanted. Queries are drawn in the same way from a seed of their own.

1. Centroids of the lists, and codes of the parts of a vector, are learned from a sample of all pieces.
2. Each piece is put into an empty copy of what was learned, and saved as a file. Killed in between, the run
   goes on with the pieces that are not there.
3. The lists of all files are joined on disk, and read from there: the joined lists are never in memory.
4. The nearest ten of each query are found by comparing with every vector, again piece by piece.

Recall is the share of these ten that a search finds, with its 95 % interval over queries. Queries a second
are those of one thread, all of them asked at once: the median over rounds, with the least and the greatest.
A search can also take a hundred candidates and compare these with their vectors, which lie in a file in
float16 (*ranked again*). Memory is the peak of
what the process held, pages of files that the system keeps for it included. The files of the pieces are also
searched as they are (``IndexShards``), which is how several machines would share them.
Usage::

    OMP_NUM_THREADS=1 python -m benchmarks.index_in_pieces [--pieces 20] [--size 500000] [--record FILE]
"""

import argparse
import itertools
import os
import platform
import statistics
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import faiss
import numpy as np
from faiss.contrib.ondisk import merge_ondisk
from numpy.typing import NDArray

from benchmarks.growth import forget_peak, peak_mb
from recsys_lib.chapter.runs import write_run
from recsys_lib.files import write_whole

COMMAND = "OMP_NUM_THREADS=1 python -m benchmarks.index_in_pieces --record book/recorded/index_in_pieces.json"
# What the values depend on.
CODE = tuple(
    f"benchmarks/index_in_pieces.py::{name}"
    for name in ("Plan", "assign", "build", "drawn", "exact", "learned", "ranked_again", "run", "searched")
)
K, DIM, CANDIDATES = 10, 64, 100
NOISE = (0.9, 1.2)  # of a center around the coarser one, and of a vector around its center
COMPARED = 50_000  # vectors that are compared with all queries at a time
VECTORS = "vectors.float16"
Vectors = NDArray[np.float32]


@dataclass(frozen=True)
class Plan:
    """How much of everything.

    Attributes:
        pieces: files.
        size: vectors in each.
        lists: of the inverted file.
        code_bytes: of a vector's code, each variant in turn.
        probes: lists that a search looks through.
        sample: vectors that the centroids are learned from.
        queries: asked.
        rounds: of timing.
        centers: coarse ones and fine ones.
    """

    pieces: int = 20
    size: int = 500_000
    lists: int = 4_096
    code_bytes: tuple[int, ...] = (16, 32)
    probes: tuple[int, ...] = (1, 4, 16, 64)
    sample: int = 200_000
    queries: int = 256
    rounds: int = 3
    centers: tuple[int, int] = (1_000, 100_000)


def drawn(plan: Plan, number: int, size: int) -> Vectors:
    """Piece ``number``, or the queries for -1: (size, 64) vectors of length one, from a seed."""
    base = np.random.default_rng(0)
    coarse = base.standard_normal((plan.centers[0], DIM), np.float32)
    around = base.integers(plan.centers[0], size=plan.centers[1])
    fine = coarse[around] + NOISE[0] * base.standard_normal((plan.centers[1], DIM), np.float32)
    own = np.random.default_rng(1 + (plan.pieces if number < 0 else number))
    x = fine[own.integers(plan.centers[1], size=size)]  # (size, 64)
    x += np.float32(NOISE[1]) * own.standard_normal((size, DIM), np.float32)
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def learned(plan: Plan) -> dict[int, Any]:
    """An empty index for each length of a code, with the same centroids."""
    share = plan.sample // plan.pieces
    # Copies: a view would keep the whole piece in memory.
    sample = np.concatenate([drawn(plan, number, plan.size)[:share].copy() for number in range(plan.pieces)])
    found: dict[int, Any] = {}
    for code_bytes in plan.code_bytes:
        coarse = next(iter(found.values())).quantizer if found else faiss.IndexFlatIP(DIM)
        index = faiss.IndexIVFPQ(coarse, DIM, plan.lists, code_bytes, 8, faiss.METRIC_INNER_PRODUCT)
        index.cp.spherical = True
        index.cp.niter = 8
        index.cp.seed = index.pq.cp.seed = 0
        index.cp.min_points_per_centroid = index.pq.cp.min_points_per_centroid = 1
        index.cp.max_points_per_centroid = plan.sample
        index.train(sample)
        found[code_bytes] = index
    return found


def assign(index: Any, x: Vectors) -> NDArray[np.int64]:
    """The list of each vector (N,): the expensive part, the same for every length of a code."""
    return index.quantizer.search(x, 1)[1].ravel()


def build(plan: Plan, folder: Path) -> dict[str, Any]:
    """Steps 1 to 3: the files of the pieces, and one index on disk for each length of a code."""
    forget_peak()
    start = time.process_time()
    empty = learned(plan)
    learning = time.process_time() - start
    for code_bytes, index in empty.items():
        with write_whole(folder / f"empty-{code_bytes}.index") as part:
            faiss.write_index(index, str(part))
    with (folder / VECTORS).open("ab") as file_of_all:
        file_of_all.truncate(2 * DIM * plan.pieces * plan.size)  # room for all of them
    assigning, encoding = 0.0, dict.fromkeys(plan.code_bytes, 0.0)
    for number in range(plan.pieces):
        files = {c: folder / f"piece-{number:04d}-{c}.index" for c in plan.code_bytes}
        if all(file.exists() for file in files.values()):
            continue  # done before this run was killed
        x = drawn(plan, number, plan.size)  # (size, 64)
        ids = np.arange(number * plan.size, (number + 1) * plan.size)  # (size,)
        start = time.process_time()
        lists = assign(empty[plan.code_bytes[0]], x)  # (size,)
        assigning += time.process_time() - start
        with (folder / VECTORS).open("r+b") as file_of_all:
            file_of_all.seek(2 * DIM * number * plan.size)
            file_of_all.write(x.astype(np.float16).tobytes())
        for code_bytes, file in files.items():
            start = time.process_time()
            index = faiss.read_index(str(folder / f"empty-{code_bytes}.index"))
            index.add_core(len(x), faiss.swig_ptr(x), faiss.swig_ptr(ids), faiss.swig_ptr(lists))
            with write_whole(file) as part:
                faiss.write_index(index, str(part))
            encoding[code_bytes] += time.process_time() - start
    indexes = []
    for code_bytes in plan.code_bytes:
        start = time.process_time()
        index = faiss.read_index(str(folder / f"empty-{code_bytes}.index"))
        lists_file = folder / f"lists-{code_bytes}"
        files = [str(folder / f"piece-{number:04d}-{code_bytes}.index") for number in range(plan.pieces)]
        merge_ondisk(index, files, str(lists_file))
        faiss.write_index(index, str(folder / f"whole-{code_bytes}.index"))
        indexes.append(
            {
                "code_bytes": code_bytes,
                "vectors": int(index.ntotal),
                "encoding_cpu_s": encoding[code_bytes],
                "joining_cpu_s": time.process_time() - start,
                "bytes_a_vector": lists_file.stat().st_size / index.ntotal,
                "head_mb": (folder / f"whole-{code_bytes}.index").stat().st_size / 2**20,
            }
        )
    return {
        "learning_cpu_s": learning,
        "assigning_cpu_s": assigning,
        "peak_mb": peak_mb(),
        "indexes": indexes,
    }


def exact(plan: Plan, queries: Vectors) -> NDArray[np.int64]:
    """Step 4: the ids of the ten nearest of every query, (B, 10), by comparing with every vector."""
    heap = faiss.ResultHeap(len(queries), K, keep_max=True)
    for number in range(plan.pieces):
        x = drawn(plan, number, plan.size)  # (size, 64)
        for begin in range(0, plan.size, COMPARED):
            scores = queries @ x[begin : begin + COMPARED].T  # (B, C)
            kept = min(K, scores.shape[1])
            best = np.argpartition(-scores, kept - 1, axis=1)[:, :kept].astype(np.int64)  # (B, 10)
            heap.add_result(np.take_along_axis(scores, best, axis=1), best + number * plan.size + begin)
    heap.finalize()
    return heap.I


def ranked_again(found: NDArray[np.int64], queries: Vectors, stored: Path) -> NDArray[np.int64]:
    """The best ten of candidates (B, C), -1 where there is none, by the vectors in a file: (B, 10)."""
    rows = np.unique(found[found >= 0])  # (U,) so the file is read from its beginning to its end
    wide = 2 * DIM  # bytes
    with stored.open("rb", buffering=0) as file:  # of what is read, nothing stays in memory
        read = b"".join(os.pread(file.fileno(), wide, wide * row) for row in rows.tolist())
    vectors = np.frombuffer(read, np.float16).reshape(len(rows), DIM).astype(np.float32)  # (U, 64)
    place = np.searchsorted(rows, found).clip(max=len(rows) - 1)  # (B, C)
    scores = np.einsum("bd,bcd->bc", queries, vectors[place])  # (B, C)
    scores[found < 0] = -np.inf
    best = np.argsort(-scores, axis=1, kind="stable")[:, :K]  # (B, 10)
    return np.take_along_axis(found, best, axis=1)


def searched(
    plan: Plan, index: Any, queries: Vectors, right: NDArray[np.int64], stored: Path
) -> list[dict[str, Any]]:
    """Recall and speed of one index at each number of lists looked through, ranked again or not."""
    rows = []
    for again, probes in itertools.product((False, True), plan.probes):
        options = faiss.SearchParametersIVF(nprobe=min(probes, plan.lists))
        speeds = []
        for _ in range(plan.rounds):
            start = time.process_time()
            if again:
                candidates = index.search(queries, CANDIDATES, params=options)[1]  # (B, 100)
                found = ranked_again(candidates, queries, stored)  # (B, 10)
            else:
                found = index.search(queries, K, params=options)[1]  # (B, 10)
            speeds.append(len(queries) / max(time.process_time() - start, 1e-9))
        hits = (found[:, :, None] == right[:, None, :]).any(axis=2).mean(axis=1)  # (B,)
        error = 1.96 * hits.std(ddof=1) / len(hits) ** 0.5
        mean = float(hits.mean())
        rows.append(
            {
                "probes": probes,
                "ranked_again": again,
                "recall": {"mean": mean, "low": max(0.0, mean - error), "high": min(1.0, mean + error)},
                "queries_a_second": {
                    "median": statistics.median(speeds),
                    "least": min(speeds),
                    "greatest": max(speeds),
                },
            }
        )
    return rows


def in_shards(plan: Plan, folder: Path, code_bytes: int) -> tuple[Any, list[Any]]:
    """The files of the pieces as one index, each searched by itself; and what must live as long as it."""
    shards = faiss.IndexShards(DIM, False, False)
    kept = []
    for number in range(plan.pieces):
        file = folder / f"piece-{number:04d}-{code_bytes}.index"
        kept.append(faiss.read_index(str(file), faiss.IO_FLAG_MMAP))
        kept[-1].nprobe = max(plan.probes)
        shards.add_shard(kept[-1])
    return shards, kept


def run(plan: Plan, folder: Path) -> dict[str, Any]:
    """Everything: the ``values``, and the ``settings`` and ``inputs`` behind them."""
    faiss.omp_set_num_threads(1)
    at_rest, begin = peak_mb(), time.process_time()
    built = build(plan, folder)
    queries = drawn(plan, -1, plan.queries)  # (B, 64)
    start = time.process_time()
    right = exact(plan, queries)  # (B, 10)
    compared = time.process_time() - start
    forget_peak()
    for row in built["indexes"]:
        index = faiss.read_index(str(folder / f"whole-{row['code_bytes']}.index"))
        row["searches"] = searched(plan, index, queries, right, folder / VECTORS)
        options = faiss.SearchParametersIVF(nprobe=max(plan.probes))
        whole = index.search(queries, K, params=options)
        shards, _kept = in_shards(plan, folder, row["code_bytes"])
        start = time.process_time()
        apart = shards.search(queries, K)
        row["shards_queries_a_second"] = len(queries) / max(time.process_time() - start, 1e-9)
        row["shards_largest_gap"] = float(np.abs(whole[0] - apart[0]).max())
    return {
        "inputs": {},
        "settings": {name: list(v) if isinstance(v, tuple) else v for name, v in asdict(plan).items()},
        "values": {
            "vectors": plan.pieces * plan.size,
            "float32_mb": plan.pieces * plan.size * DIM * 4 / 2**20,
            "at_rest_mb": at_rest,
            "search_peak_mb": peak_mb(),
            "exact_cpu_s": compared,
            "total_cpu_s": time.process_time() - begin,
            **built,
        },
    }


def table(values: dict[str, Any]) -> str:
    """The run as text."""
    lines = [
        f"{values['vectors']:,} vectors, {values['float32_mb']:,.0f} MB as float32; peak "
        f"{values['peak_mb']:,.0f} MB while building, {values['search_peak_mb']:,.0f} MB while searching; "
        f"{values['total_cpu_s']:,.0f} CPU seconds"
    ]
    for row in values["indexes"]:
        lines.append(
            f"codes of {row['code_bytes']} bytes, {row['bytes_a_vector']:.1f} bytes a vector on disk"
        )
        for search in row["searches"]:
            again = ", again" if search["ranked_again"] else ""
            lines.append(
                f"  {search['probes']:4} lists{again:7}: recall {search['recall']['mean']:.3f}, "
                f"{search['queries_a_second']['median']:,.0f} queries/s"
            )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pieces", type=int, default=Plan.pieces)
    parser.add_argument("--size", type=int, default=Plan.size)
    parser.add_argument("--folder", type=Path, help="where the files are kept; by default they are not")
    parser.add_argument("--record", type=Path, help="a file for the results, as JSON")
    arguments = parser.parse_args()
    plan = Plan(pieces=arguments.pieces, size=arguments.size)
    with tempfile.TemporaryDirectory() as temporary:
        found = run(plan, arguments.folder or Path(temporary))
    print(table(found["values"]))
    if arguments.record:
        write_run(
            arguments.record,
            about=__doc__ or "",
            command=COMMAND,
            device=f"cpu: one thread, {platform.machine()}, {os.cpu_count()} cores, {platform.system()}",
            versions=("numpy", "faiss-cpu"),
            code=CODE,
            **found,
        )


if __name__ == "__main__":
    main()
