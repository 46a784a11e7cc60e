"""Embeds a catalog in one process or several, into a folder of Parquet files.

::

    torchrun --nproc_per_node 2 -m recsys_lib.distributed.embed --items items.parquet --folder vectors

Run it again after a failure, with any number of processes: what is there stays, what is missing is made. Each
worker prints a line of JSON at its end: its shards, its items, and the seconds that it worked.
"""

import argparse
import json
import os
import signal
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from recsys_lib.distributed.catalog import embed_catalog
from recsys_lib.text import StaticEncoder, TextEncoder

if TYPE_CHECKING:
    from datasets import Dataset

__all__ = ["made_up_items", "main"]

_WORDS = """
    red blue small large warm cold light heavy old new cotton wool steel glass wooden paper kitchen
    garden summer winter morning evening travel office music running dress chair table lamp book cup
    knife shirt shoes jacket bag watch phone camera bottle blanket pillow mirror basket
""".split()  # noqa: SIM905 - a list of words is easier to read as words


def made_up_items(n: int, seed: int = 0) -> "Dataset":
    """A catalog of n items, an ``item`` number and a ``text`` of twelve words drawn by Zipf's law each."""
    from datasets import Dataset

    chance = 1 / np.arange(1, len(_WORDS) + 1)
    rows = np.random.default_rng(seed).choice(len(_WORDS), size=(n, 12), p=chance / chance.sum())
    words = np.array(_WORDS)
    return Dataset.from_dict({"item": np.arange(n), "text": [" ".join(row) for row in words[rows]]})


def main(argv: list[str] | None = None) -> None:
    """The command line."""
    from datasets import Dataset, disable_progress_bars

    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--items", type=Path, help="a Parquet file with a column text")
    source.add_argument("--made-up", type=int, metavar="N", help="so many items, to try out")
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--shards", type=int, default=16)
    parser.add_argument("--encoder", choices=("static", "minilm"), default="static")
    parser.add_argument("--batch", type=int, default=1_000, help="texts encoded at a time")
    parser.add_argument(
        "--kill", type=int, nargs=2, metavar=("RANK", "SHARDS"), help="rehearse: it dies after so many shards"
    )
    arguments = parser.parse_args(argv)

    torch.set_num_threads(1)
    disable_progress_bars()
    # Workers do not talk: the shared folder is all that they have in common.
    rank, world = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    encoder = StaticEncoder(device="cpu") if arguments.encoder == "static" else TextEncoder()
    if arguments.items is not None:
        items = Dataset.from_parquet(str(arguments.items))
    else:
        items = made_up_items(arguments.made_up)
    made, rows, seconds = 0, 0, 0.0
    for _, n, took in embed_catalog(
        items,
        lambda texts: encoder.encode(texts, progress=False),
        arguments.folder,
        n_shards=arguments.shards,
        rank=rank,
        world=world,
        batch_size=arguments.batch,
    ):
        made, rows, seconds = made + 1, rows + n, seconds + took
        if arguments.kill == [rank, made]:
            os.kill(os.getpid(), signal.SIGKILL)
    print(json.dumps({"worker": rank, "shards": made, "items": rows, "seconds": seconds}), flush=True)


if __name__ == "__main__":
    main()
