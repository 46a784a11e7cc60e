"""The service under load, beside a bare FastAPI endpoint that reads as much and answers as much.

A pipeline of MovieLens-100K (EASE, the 100 best re-ranked by item-kNN) is served as ``make serve-api`` serves
it. Beside it, in a process of its own, runs an endpoint of FastAPI that parses the same JSON, without a
schema, and sends a fixed answer of the length of a real one. Both get the same 200 requests in turn, one by
one and twenty at a time, for some rounds; the client is one process on the same machine. Reported are p50 and
p99 of all requests of all rounds in milliseconds, as the client sees them, requests in a second, and how many
were answered otherwise than by 200. Of the pipeline alone, without HTTP, the same lists in one thread.
Usage::

    OMP_NUM_THREADS=1 python benchmarks/serve.py [--rounds 5] [--requests 200] [--record FILE]
"""

import argparse
import asyncio
import contextlib
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import torch

from recsys_lib.chapter.runs import write_run
from recsys_lib.data import leave_last_out, load_movielens
from recsys_lib.models import EASE, ItemKNN
from recsys_lib.pipeline import Pipeline

ROOT = Path(__file__).resolve().parents[1]
COMMAND = "OMP_NUM_THREADS=1 python benchmarks/serve.py --rounds 4 --record book/recorded/serve.json"
# What the values depend on most.
CODE = (
    *(f"benchmarks/serve.py::{name}" for name in ("AT_A_TIME", "BARE", "load", "run", "running")),
    *(f"recsys_lib/serve/{name}.py" for name in ("app", "engine", "schema", "store")),
    *(f"recsys_lib/pipeline/{name}.py" for name in ("asked", "candidates", "recommender")),
)
AT_A_TIME = (1, 20)
BARE = """
import json, sys, uvicorn
from fastapi import FastAPI, Request, Response
app, answer = FastAPI(), sys.argv[2].encode()

@app.post("/recommend")
async def recommend(request: Request) -> Response:
    json.loads(await request.body())
    return Response(answer, media_type="application/json")

@app.get("/health")
async def health():
    return {}

uvicorn.run(app, port=int(sys.argv[1]), access_log=False, log_level="warning")
"""


def free_port() -> int:
    """A port that nobody listens at."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port: int = found.getsockname()[1]
        return port


@contextlib.contextmanager
def running(*command: str, port: int) -> Iterator[str]:
    """A server as a process; its address, once it answers."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [sys.executable, *command], env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    address = f"http://127.0.0.1:{port}"
    try:
        for _ in range(600):
            with contextlib.suppress(httpx.TransportError):
                httpx.get(f"{address}/health")
                break
            if process.poll() is not None:
                raise RuntimeError(f"a server has ended with {process.returncode}")
            time.sleep(0.1)
        yield address
    finally:
        process.terminate()
        process.wait()


async def load(address: str, bodies: list[dict[str, Any]], at_a_time: int) -> tuple[list[float], float, int]:
    """Milliseconds of each request, seconds of all, and how many failed."""
    spent, failed, waiting = [], 0, iter(bodies)
    async with httpx.AsyncClient(base_url=address, timeout=60) as client:
        await client.post("/recommend", json=bodies[0])

        async def work() -> None:
            nonlocal failed
            for body in waiting:
                start = time.perf_counter()
                reply = await client.post("/recommend", json=body)
                spent.append(1000 * (time.perf_counter() - start))
                failed += reply.status_code != 200

        start = time.perf_counter()
        await asyncio.gather(*(work() for _ in range(at_a_time)))
    return spent, time.perf_counter() - start, failed


def run(rounds: int, requests: int) -> dict[str, Any]:
    """The whole measurement."""
    torch.set_num_threads(1)
    data = load_movielens("100k", progress=False)
    split = leave_last_out(data.interactions.positives(4.0), 0.2)
    pipeline = Pipeline(EASE(), reranker=ItemKNN(recency=0.5), items=data.items)
    pipeline.fit(split.history, progress=False)
    known = torch.linspace(0, pipeline.n_users - 1, requests).long()  # (B,)
    bodies = [{"user": int(given), "k": 10} for given in split.history.user_ids_at(known)]
    alone = []
    for user in known:
        start = time.perf_counter()
        pipeline.recommend(user[None], 10, split.history, progress=False)
        alone.append(1000 * (time.perf_counter() - start))

    with tempfile.TemporaryDirectory() as folder:
        pipeline.save_pretrained(Path(folder) / "pipeline")
        ports = free_port(), free_port()
        command = ("-m", "recsys_lib.serve", str(Path(folder) / "pipeline"), "--port", str(ports[0]))
        with running(*command, port=ports[0]) as ours:
            answer = httpx.post(f"{ours}/recommend", json=bodies[0]).text
            with running("-c", BARE, str(ports[1]), answer, port=ports[1]) as bare:
                rows = {(name, n): ([], [], 0) for name in ("service", "bare") for n in AT_A_TIME}
                for turn in range(rounds):
                    for n in AT_A_TIME:
                        pair = [("service", ours), ("bare", bare)]
                        for name, address in pair if turn % 2 else reversed(pair):
                            spent, seconds, failed = asyncio.run(load(address, bodies, n))
                            every, speeds, before = rows[name, n]
                            rows[name, n] = ([*every, *spent], [*speeds, requests / seconds], before + failed)
    return {
        "inputs": {"ratings": data.sha256},
        "settings": {"rounds": rounds, "requests": requests},
        "values": {
            "load_average": [round(load, 1) for load in os.getloadavg()],  # of the last 1, 5 and 15 minutes
            "answer_bytes": len(answer),
            "without_http": {"p50_ms": percentile(alone, 50), "p99_ms": percentile(alone, 99)},
            "rows": [
                {
                    "of": name,
                    "at_a_time": n,
                    "p50_ms": percentile(spent, 50),
                    "p99_ms": percentile(spent, 99),
                    "requests_a_second": round(float(np.median(speeds)), 1),
                    "failed": failed,
                }
                for (name, n), (spent, speeds, failed) in rows.items()
            ],
        },
    }


def percentile(values: list[float], q: int) -> float:
    """One of the percentiles, in hundredths of a millisecond."""
    return round(float(np.percentile(values, q)), 2)


def table(found: dict[str, Any]) -> str:
    """The run as text."""
    lines = [f"{'':10}{'at a time':>10}{'p50 ms':>10}{'p99 ms':>10}{'requests/s':>12}{'failed':>8}"]
    lines += [
        f"{row['of']:10}{row['at_a_time']:10}{row['p50_ms']:10.2f}{row['p99_ms']:10.2f}"
        f"{row['requests_a_second']:12.1f}{row['failed']:8}"
        for row in found["values"]["rows"]
    ]
    alone = found["values"]["without_http"]
    return "\n".join([*lines, f"without HTTP: p50 {alone['p50_ms']:.2f} ms, p99 {alone['p99_ms']:.2f} ms"])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--requests", type=int, default=200)
    parser.add_argument("--record", type=Path, help="a file for the results, as JSON")
    arguments = parser.parse_args()
    found = run(arguments.rounds, arguments.requests)
    print(table(found))
    if arguments.record:
        write_run(
            arguments.record,
            about=__doc__ or "",
            command=COMMAND,
            versions=("torch", "fastapi", "uvicorn", "pydantic", "httpx"),
            code=CODE,
            **found,
        )


if __name__ == "__main__":
    main()
