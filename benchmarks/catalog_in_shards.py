"""How many texts a second workers embed into shards of Parquet, from 10,000 to a million texts.

Texts are made up, twelve words each; the encoder is WordLlama's token vectors. Workers are processes of one
thread each, started by ``torchrun``, that share a folder and do not talk to each other. The rate is the sum
of the workers' own: texts over the seconds in which they embedded and wrote. It is the median over rounds,
with the least and the greatest; starting Python and making the texts up is not counted. Usage::

    OMP_NUM_THREADS=1 python benchmarks/catalog_in_shards.py [--texts 10000 100000 1000000] [--record FILE]
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from recsys_lib.chapter.runs import write_run

COMMAND = (
    "OMP_NUM_THREADS=1 python benchmarks/catalog_in_shards.py --record book/recorded/catalog_in_shards.json"
)
CODE = (
    "benchmarks/catalog_in_shards.py::measure",
    "recsys_lib/distributed/catalog.py::embed_catalog",
    "recsys_lib/distributed/embed.py::made_up_items",
)


def measure(texts: int, workers: int, shards: int) -> list[dict[str, float]]:
    """What each worker says of one run."""
    with tempfile.TemporaryDirectory() as folder:
        start = ["torch.distributed.run", "--standalone", "--nproc_per_node", str(workers), "-m"]
        work = ["recsys_lib.distributed.embed", "--made-up", str(texts), "--shards", str(shards)]
        command = [sys.executable, "-m", *(start if workers > 1 else []), *work, "--folder", folder]
        done = subprocess.run(command, capture_output=True, text=True, timeout=1_200, check=True)
        made = len(list(Path(folder).glob("*.parquet")))
    said = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    if made != shards or sum(row["items"] for row in said) != texts:
        raise RuntimeError(f"{made} of {shards} shards were made:\n{done.stderr[-2000:]}")
    return said


def run(texts: list[int], workers: list[int], rounds: int) -> dict[str, Any]:
    """All sizes with all numbers of workers."""
    shards, rows = 20, []
    for n in texts:
        for count in workers:
            rates = [
                sum(w["items"] / max(w["seconds"], 1e-9) for w in measure(n, count, shards))
                for _ in range(rounds)
            ]
            rate = {"median": statistics.median(rates), "least": min(rates), "greatest": max(rates)}
            rows.append({"texts": n, "workers": count, "texts_a_second": rate})
            print(f"{n:,} texts, {count} workers: {rate['median']:,.0f} a second", flush=True)
    return {
        "inputs": {},
        "settings": {"shards": shards, "rounds": rounds, "encoder": "WordLlama, 256 numbers"},
        "values": {"rows": rows},
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--texts", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--record", type=Path, help="a file for the results, as JSON")
    arguments = parser.parse_args()
    found = run(arguments.texts, arguments.workers, arguments.rounds)
    if arguments.record:
        write_run(
            arguments.record,
            about=__doc__ or "",
            command=COMMAND,
            versions=("numpy", "torch", "datasets", "pyarrow"),
            code=CODE,
            **found,
        )


if __name__ == "__main__":
    main()
