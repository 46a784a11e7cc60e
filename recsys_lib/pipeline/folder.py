"""What a pipeline saves beside its parts: its index and its table of items."""

import json
from pathlib import Path
from typing import Any

import pandas as pd
from safetensors import SafetensorError, safe_open

from recsys_lib.files import write_whole
from recsys_lib.retrieval import ExactIndex, FaissIndex, Index

__all__ = ["INDEX_FILE", "ITEMS_FILE", "load_own", "save_own"]

INDEX_FILE, ITEMS_FILE = "index.safetensors", "items.parquet"


def save_own(folder: Path, index: Index | None, table: pd.DataFrame | None) -> None:
    """Writes a pipeline's index and table into its folder, which is there."""
    if index is not None:
        index.save(folder / INDEX_FILE)
    if table is not None:
        with write_whole(folder / ITEMS_FILE) as path:
            table.to_parquet(path)


def load_own(folder: Path, n_items: int) -> tuple[Index | None, pd.DataFrame | None]:
    """The index and the table that ``save_own`` wrote, None where there is none.

    Args:
        folder: of the pipeline.
        n_items: items that the pipeline has.

    Raises:
        ValueError: the index is damaged, or of another pipeline.
    """
    index, table = None, None
    if (folder / INDEX_FILE).is_file():
        index = _load_index(folder / INDEX_FILE)
        if len(index) != n_items:
            raise ValueError(f"{folder / INDEX_FILE} belongs to another pipeline")
    if (folder / ITEMS_FILE).is_file():
        table = pd.read_parquet(folder / ITEMS_FILE)
    return index, table


def _load_index(path: Path) -> Index:
    """An index of the library by what its file says it is."""
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            kind = json.loads((file.metadata() or {}).get("index", "{}")).get("class")
    except (SafetensorError, ValueError) as error:
        raise ValueError(f"{path} is damaged ({error}); save the pipeline again") from error
    known: dict[Any, Any] = {"ExactIndex": ExactIndex, "FaissIndex": FaissIndex}
    if kind not in known:
        raise ValueError(f"{path} holds no index of this library")
    index: Index = known[kind].load(path)
    return index
