"""Work that several processes share: training, and embedding a catalog.

The processes are those of ``torchrun`` or ``accelerate launch``, and talk by ``torch.distributed``; the data
is cut by ``datasets``. Nothing here replaces these engines: it says what a recommender has to hand them.
"""

from recsys_lib.distributed.catalog import embed_catalog, missing_shards, shard_name
from recsys_lib.distributed.group import everyones, gpu_each, joined_sum, place, processes
from recsys_lib.distributed.models import SASRecInShares, TwoTowerInShares

__all__ = [
    "SASRecInShares",
    "TwoTowerInShares",
    "embed_catalog",
    "everyones",
    "gpu_each",
    "joined_sum",
    "missing_shards",
    "place",
    "processes",
    "shard_name",
]
