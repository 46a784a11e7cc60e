"""Trains two towers or SASRec in several processes, and writes down what came out.

::

    torchrun --nproc_per_node 2 -m recsys_lib.distributed.train --model two-tower --folder runs/two-tower
    accelerate launch --num_processes 2 -m recsys_lib.distributed.train --model sasrec --folder runs/sasrec

The folder, which all processes must see, gets ``result.json``: the loss of each step, NDCG@10 on the test
part with its interval and of each user, and the seconds of training. A run that was killed goes on from the
checkpoint in its folder when it is started again with the same arguments.
"""

import argparse
import hashlib
import json
import time
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from recsys_lib.data import Interactions, leave_last_out, load_movielens
from recsys_lib.distributed.group import gpu_each, processes
from recsys_lib.distributed.models import InShares, SASRecInShares, TwoTowerInShares
from recsys_lib.evaluation import evaluate
from recsys_lib.files import write_whole

__all__ = ["main", "run"]

_MODELS: dict[str, type[InShares]] = {"two-tower": TwoTowerInShares, "sasrec": SASRecInShares}


def made_up(n_users: int = 160, n_items: int = 40, n_events: int = 16) -> Interactions:
    """Histories that go round in circles, for trying out: each item leads to the next one but a few."""
    users = torch.arange(n_users).repeat_interleave(n_events)  # (E,)
    times = torch.arange(n_events).repeat(n_users)  # (E,)
    items = (7 * users + (1 + users % 3) * times) % n_items  # (E,)
    frame = pd.DataFrame({"user_id": users.numpy(), "item_id": items.numpy(), "timestamp": times.numpy()})
    return Interactions.from_frame(frame, timestamp="timestamp", item_ids=range(n_items))


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """Fits the model that the arguments describe, and measures it; on all processes alike."""
    torch.set_num_threads(1)
    device = "cuda" if arguments.device != "cpu" and gpu_each() else "cpu"
    if arguments.dataset == "made-up":
        events = made_up()
    else:
        events = load_movielens(arguments.dataset, progress=False).interactions.positives(4.0)
    split = leave_last_out(events, n=0.2)
    options: dict[str, Any] = {"shares": arguments.shares, "batch_size": arguments.batch}
    options |= {"epochs": arguments.epochs, "seed": arguments.seed, "dropout": arguments.dropout}
    if arguments.model == "two-tower":
        options["gather"] = not arguments.alone
    model = _MODELS[arguments.model](**options).kept_in(arguments.folder, arguments.every)
    if arguments.kill:
        model.killed_at(*arguments.kill)
    start = time.perf_counter()
    model.fit(split.history, device=device, progress=False)
    seconds = time.perf_counter() - start
    report = evaluate(model, split.test, seen=split.history, k=10, progress=False)
    low, high = report.interval("ndcg@10")
    weights = b"".join(p.detach().cpu().numpy().tobytes() for p in model.parameters())
    return {
        "ndcg@10": {"mean": report.metrics["ndcg@10"], "low": low, "high": high},
        "per_user": report.per_user["ndcg@10"].tolist(),
        "seconds": seconds,
        "first_step": min(model.curve),
        "curve": list(model.curve.values()),
        "weights_sha256": hashlib.sha256(weights).hexdigest(),
    }


def main(argv: list[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", choices=list(_MODELS), required=True)
    parser.add_argument("--folder", type=Path, required=True, help="for the checkpoint and the result")
    parser.add_argument("--dataset", default="100k", help='of MovieLens; or "made-up", to try out')
    parser.add_argument("--shares", type=int, default=2, help="parts that the data is cut into")
    parser.add_argument("--batch", type=int, default=256, help="examples of each share in a step")
    parser.add_argument("--alone", action="store_true", help="negatives are not gathered")
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--dropout", type=float, default=0.0, help="of SASRec")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--every", type=int, default=50, help="steps between two checkpoints")
    parser.add_argument(
        "--device", choices=("auto", "cpu", "cuda"), default="auto", help="auto: GPUs, if each can have one"
    )
    parser.add_argument("--timeout", type=float, default=600.0, help="seconds to wait for another process")
    parser.add_argument(
        "--kill", type=int, nargs=2, metavar=("RANK", "STEP"), help="rehearse a failure: this process dies"
    )
    arguments = parser.parse_args(argv)
    with processes(arguments.timeout, arguments.device) as (rank, world):
        result = run(arguments)
        if rank == 0:
            with write_whole(arguments.folder / "result.json") as part:
                part.write_text(json.dumps({"processes": world, **result}), encoding="utf8")
            print(f"{world} processes, {len(result['curve'])} steps, {result['seconds']:.1f} s", flush=True)


if __name__ == "__main__":
    main()
