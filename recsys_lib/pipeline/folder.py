"""The folder that a pipeline is saved in: its parts, its index and its table beside its own files."""

import json
import shutil
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from safetensors import SafetensorError, safe_open

from recsys_lib.files import write_whole
from recsys_lib.models.core.contract import Recommender
from recsys_lib.models.core.loading import load
from recsys_lib.models.core.saving import CONFIG_FILE
from recsys_lib.retrieval import ExactIndex, FaissIndex, Index

__all__ = ["load_parts", "put_in_place", "save_parts"]

_PARTS = ("retriever", "reranker")
_INDEX_FILE, _ITEMS_FILE = "index.safetensors", "items.parquet"


def save_parts(folder: Path, parts: dict[str, Any], index: Index | None, table: pd.DataFrame | None) -> None:
    """Writes what belongs to a pipeline into its folder.

    Args:
        folder: which is there.
        parts: "retriever" and "reranker", perhaps None.
        index: of the retriever's vectors.
        table: of the items.

    Raises:
        TypeError: a part that cannot be saved.
    """
    for name in _PARTS:
        part = parts[name]
        if part is None:
            continue
        if not isinstance(part, Recommender):
            raise TypeError(
                f"the {name}, {type(part).__name__}, is no Recommender and cannot be saved with the pipeline"
            )
        part.save_pretrained(folder / name)
    if index is not None:
        index.save(folder / _INDEX_FILE)
    if table is not None:
        with write_whole(folder / _ITEMS_FILE) as path:
            table.to_parquet(path)


def load_parts(
    folder: Path, sizes: tuple[int | None, int | None], device: str | torch.device
) -> dict[str, Any]:
    """What ``save_parts`` wrote: "retriever", "reranker", "index", "items", those that are there.

    Args:
        folder: of the pipeline.
        sizes: users and items that the pipeline has.
        device: of the parts.

    Raises:
        FileNotFoundError: there is no retriever.
        ValueError: a part is damaged, or of another pipeline.
    """
    found: dict[str, Any] = {}
    for name in _PARTS:
        if (folder / name).is_dir():
            part = load(folder / name, map_location=device)
            own = (part._n_users, part._n_items)
            if own != sizes:
                raise ValueError(f"{folder / name} holds a model of another pipeline, of {own}")
            found[name] = part
    if "retriever" not in found:
        raise FileNotFoundError(f"{folder} has no folder retriever: it is damaged; save it again")
    if (folder / _INDEX_FILE).is_file():
        found["index"] = _load_index(folder / _INDEX_FILE)
        if len(found["index"]) != sizes[1]:
            raise ValueError(f"{folder / _INDEX_FILE} belongs to another pipeline")
    if (folder / _ITEMS_FILE).is_file():
        found["items"] = pd.read_parquet(folder / _ITEMS_FILE)
    return found


def put_in_place(whole: Path, target: Path) -> None:
    """Puts a complete folder in place; the configuration, without which nothing is loaded, comes last."""
    if not target.exists():
        whole.replace(target)
        return
    (target / CONFIG_FILE).unlink(missing_ok=True)
    for name in (*_PARTS, _INDEX_FILE, _ITEMS_FILE):
        old = target / name
        if old.is_dir():
            shutil.rmtree(old)
        else:
            old.unlink(missing_ok=True)
    for path in sorted(whole.iterdir(), key=lambda path: path.name == CONFIG_FILE):
        path.replace(target / path.name)


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
