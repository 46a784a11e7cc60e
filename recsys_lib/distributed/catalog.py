"""Embedding a catalog: a folder of Parquet files that several workers fill, and none fills twice.

The texts are cut into a number of shards that has nothing to do with the number of workers. A shard's file
has its number in its name, and is written under another name until it is whole. So the names say what is
done; a worker that dies leaves no trace of the shard under its hands, and whoever comes next makes it.
"""

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor

from recsys_lib.files import write_whole

if TYPE_CHECKING:
    from datasets import Dataset

__all__ = ["embed_catalog", "missing_shards", "shard_name"]


def shard_name(number: int, n_shards: int) -> str:
    """The name of a shard's file, as the hub spells it."""
    return f"part-{number:05d}-of-{n_shards:05d}.parquet"


def missing_shards(folder: Path, n_shards: int) -> list[int]:
    """The numbers of the shards that are not there.

    Raises:
        ValueError: the folder holds shards of another cut; the two must not mix.
    """
    others = [
        file.name for file in folder.glob("part-*.parquet") if not file.stem.endswith(f"-of-{n_shards:05d}")
    ]
    if others:
        raise ValueError(
            f"{folder} holds {min(others)}, of another number of shards than {n_shards}; empty it, or name "
            f"another folder"
        )
    return [number for number in range(n_shards) if not (folder / shard_name(number, n_shards)).exists()]


def embed_catalog(
    items: "Dataset",
    encode: Callable[[list[str]], Tensor],
    folder: str | Path,
    *,
    n_shards: int,
    rank: int = 0,
    world: int = 1,
    batch_size: int = 1_000,
    text: str = "text",
) -> Iterator[tuple[int, int, float]]:
    """Makes the shards that are missing, of those that fall to this worker, one at a time.

    Shard s falls to worker s mod ``world``. A shard is ``datasets``' contiguous one, its vectors are made by
    ``map`` in batches, and its file has the items' other columns and a column ``vector``.

    Args:
        items: one row an item.
        encode: makes vectors (N, d) of N texts.
        folder: of the files; made where it is missing.
        n_shards: how many there are in all.
        rank: the number of this worker, from 0.
        world: how many workers there are.
        batch_size: texts that are encoded at a time.
        text: the column that is encoded.

    Yields:
        For each shard that was made: its number, its rows, and the seconds it took.

    Raises:
        ValueError: fewer items than shards, a worker that is not one of them, or a folder with another cut.
    """
    from datasets import Features, Sequence, Value

    if not 0 <= rank < world:
        raise ValueError(f"worker {rank} is not one of {world}, which are counted from 0")
    if not 1 <= n_shards <= len(items):
        raise ValueError(f"{len(items)} items cannot be cut into {n_shards} shards")

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)

    def with_vectors(batch: dict[str, list[str]]) -> dict[str, list[np.ndarray]]:
        return {"vector": list(encode(batch[text]).float().cpu().numpy())}

    width = encode(items[:1][text]).shape[1]
    features = Features({**items.features, "vector": Sequence(Value("float32"), length=width)})
    for number in missing_shards(folder, n_shards):
        if number % world != rank:
            continue
        start = time.perf_counter()
        shard = items.shard(n_shards, number, contiguous=True)
        made = shard.map(
            with_vectors,
            batched=True,
            batch_size=batch_size,
            features=features,
            load_from_cache_file=False,
            keep_in_memory=True,
            new_fingerprint=f"{items._fingerprint}-{number}",  # `encode` need not be one that can be hashed
        ).remove_columns(text)
        with write_whole(folder / shard_name(number, n_shards)) as part:
            made.to_parquet(part)
        yield number, len(made), time.perf_counter() - start
