"""Data: events as tensors, ways to split them, and where to get some."""

from recsys_lib.data.catalogs import ids_at
from recsys_lib.data.descriptions import load_descriptions
from recsys_lib.data.download import DownloadError, cache_root
from recsys_lib.data.filters import k_core, min_counts
from recsys_lib.data.interactions import Interactions, check_same_catalog, merge
from recsys_lib.data.movielens import MovieLens, load_movielens
from recsys_lib.data.openmoji import OPENMOJI_ATTRIBUTION, OpenMoji, load_openmoji
from recsys_lib.data.splits import Split, cold_item_split, leave_last_out, random_split, temporal_split
from recsys_lib.data.times import check_seconds

__all__ = [
    "OPENMOJI_ATTRIBUTION",
    "DownloadError",
    "Interactions",
    "MovieLens",
    "OpenMoji",
    "Split",
    "cache_root",
    "check_same_catalog",
    "check_seconds",
    "cold_item_split",
    "ids_at",
    "k_core",
    "leave_last_out",
    "load_descriptions",
    "load_movielens",
    "load_openmoji",
    "merge",
    "min_counts",
    "random_split",
    "temporal_split",
]
