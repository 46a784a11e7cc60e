"""Recommendations in the caller's own words: ids and titles in, data frames and Parquet out."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from recsys_lib.data import Interactions
from recsys_lib.files import write_whole
from recsys_lib.models.core.checks import check_length
from recsys_lib.progress import progress_bar
from recsys_lib.ranking import LeftOut, only, rank_topk, seen_in

if TYPE_CHECKING:
    from recsys_lib.models.core.contract import Recommender
    from recsys_lib.models.core.histories import HistoryReader

__all__ = [
    "as_list",
    "histories_frame",
    "ids_of",
    "left_out_of",
    "lists_frame",
    "positions",
    "similar_frame",
    "users_frame",
    "write_parquet",
]

_USERS_AT_ONCE = 4096


def users_frame(
    model: "Recommender",
    users: Iterable[Any] | Any,
    k: int,
    *,
    items: pd.DataFrame | None,
    exclude: Interactions | None,
    allowed: Iterable[Any] | None,
    progress: bool,
) -> pd.DataFrame:
    """See ``Recommender.recommend_frame``."""
    ids = as_list(users, "users")
    indices = positions(model.user_ids, ids, "user", type(model).__name__)  # (B,)
    found, scores = model.recommend(indices, k, exclude, allowed=allowed, progress=progress)
    return lists_frame(
        pd.Index(ids, name="user_id"), found, scores, ids_of(model.item_ids, type(model).__name__), items
    )


def histories_frame(
    model: "HistoryReader",
    histories: Mapping[Any, Sequence[Any]] | Sequence[Sequence[Any]],
    k: int,
    *,
    items: pd.DataFrame | None,
    allowed: Iterable[Any] | None,
    repeat: bool,
) -> pd.DataFrame:
    """See ``HistoryReader.recommend_histories``."""
    if isinstance(histories, str) or not isinstance(histories, Mapping | Sequence):
        raise TypeError(
            f"histories must map a name to a list of item ids, or be a list of such lists; "
            f"got {type(histories).__name__}"
        )
    named = dict(histories) if isinstance(histories, Mapping) else dict(enumerate(histories))
    name = type(model).__name__
    read = [positions(model.item_ids, as_list(ids, "a history"), "item", name) for ids in named.values()]
    scores = model.score_histories(read)  # (B, n_items)

    def had(rows: Tensor) -> tuple[Tensor, Tensor]:
        row = torch.repeat_interleave(rows, torch.tensor([len(r) for r in read], device=rows.device))
        return row, torch.cat(read)

    rows = torch.arange(len(read), device=scores.device)  # (B,)
    left_out = _left_out(model, None if repeat else had, allowed)
    if left_out is not None:
        scores[tuple(index.to(scores.device) for index in left_out(rows))] = -torch.inf
    found, values = rank_topk(scores, check_length(k, model.n_items), users=rows)  # (B, k)
    return lists_frame(
        pd.Index(list(named), name="user_id"),
        found,
        values,
        ids_of(model.item_ids, type(model).__name__),
        items,
    )


def similar_frame(
    model: "Recommender",
    of: Iterable[Any] | Any,
    k: int,
    *,
    items: pd.DataFrame | None,
    allowed: Iterable[Any] | None,
) -> pd.DataFrame:
    """See ``Recommender.similar_items``."""
    ids = as_list(of, "items")
    known = ids_of(model.item_ids, type(model).__name__)
    indices = positions(known, ids, "item", type(model).__name__)  # (B,)
    with torch.no_grad():
        scores = model._similarities(indices.to(model.device)).to("cpu", torch.float32)  # (B, n_items)
    itself: LeftOut = lambda rows: (rows, indices[rows])  # noqa: E731
    left_out = _left_out(model, itself, allowed)
    rows = torch.arange(len(indices), device=scores.device)  # (B,)
    assert left_out is not None
    scores[left_out(rows)] = -torch.inf
    found, values = rank_topk(scores, check_length(k, model.n_items), users=indices)  # (B, k)
    return lists_frame(pd.Index(ids, name="item_id"), found, values, known, items, other="similar_id")


def write_parquet(
    model: "Recommender",
    path: str | Path,
    k: int,
    *,
    users: Iterable[Any] | None,
    exclude: Interactions | None,
    allowed: Iterable[Any] | None,
    progress: bool,
) -> Path:
    """See ``Recommender.recommend_to_parquet``."""
    path = Path(path)
    if not path.parent.is_dir():
        raise FileNotFoundError(f"there is no folder {path.parent} to write {path.name} into")
    name = type(model).__name__
    indices = (
        torch.arange(model.n_users, device="cpu")
        if users is None
        else positions(model.user_ids, as_list(users, "users"), "user", name)
    )  # (U,)
    if not len(indices):
        raise ValueError("there are no users to write lists for")
    catalog, items = ids_of(model.user_ids, name), ids_of(model.item_ids, name)
    with write_whole(path) as part:
        writer = None
        try:
            for asked in progress_bar(indices.split(_USERS_AT_ONCE), "recommending", enabled=progress):
                found, scores = model.recommend(asked, k, exclude, allowed=allowed, progress=False)
                owners = catalog.take(asked.numpy()).rename("user_id")
                frame = lists_frame(owners, found, scores, items, None)
                table = pa.Table.from_pandas(frame, preserve_index=False)
                if writer is None:
                    writer = pq.ParquetWriter(part, table.schema)
                writer.write_table(table.cast(writer.schema))
        finally:
            if writer is not None:
                writer.close()
    return path


def lists_frame(
    owners: pd.Index,
    found: Tensor,
    scores: Tensor,
    item_ids: pd.Index,
    items: pd.DataFrame | None,
    other: str = "item_id",
) -> pd.DataFrame:
    """Lists (B, k) as rows: owner, rank from 1, item, score; places that could not be filled are left out."""
    found, scores = found.cpu(), scores.cpu()
    row, place = (found >= 0).nonzero(as_tuple=True)  # (N,), (N,)
    listed = item_ids.take(found[row, place].numpy())
    frame = pd.DataFrame(
        {
            str(owners.name): owners.take(row.numpy()),
            "rank": (place + 1).numpy(),
            other: listed,
            "score": scores[row, place].numpy(),
        }
    )
    if items is None:
        return frame
    described = _described(items, item_ids, frame.columns).reindex(listed)
    return pd.concat([frame, described.reset_index(drop=True)], axis=1)


def _described(items: pd.DataFrame, item_ids: pd.Index, taken: pd.Index) -> pd.DataFrame:
    """The catalog's columns by item id: the ids are its column ``item_id``, or else its index."""
    if not isinstance(items, pd.DataFrame):
        raise TypeError(
            f"items must be a DataFrame with a row an item, its ids in the column item_id or in the index; "
            f"got {type(items).__name__}"
        )
    by_id = items.set_index("item_id") if "item_id" in items.columns else items
    if not by_id.index.is_unique:
        raise ValueError(f"items holds {_first(by_id.index[by_id.index.duplicated()])!r} more than once")
    if not by_id.index.isin(item_ids).any():
        raise ValueError(
            f"no row of items has an id that the model knows: it knows such as {_first(item_ids)!r}, items "
            f"has {_first(by_id.index)!r}; put the model's ids into a column item_id or into the index"
        )
    return by_id.drop(columns=[name for name in taken if name in by_id.columns])


def _allowed(model: "Recommender", ids: Iterable[Any] | None) -> Tensor | None:
    """Item ids that are allowed, as a mask (n_items,) bool on the CPU; None allows all.

    Raises:
        TypeError: a text, a number, or a mask.
        ValueError: none of them is in the catalog.
    """
    if ids is None:
        return None
    listed = as_list(ids, "allowed")
    if len(listed) and all(isinstance(x, bool | np.bool_) for x in listed):
        raise TypeError("allowed must be item ids, got a mask; take the ids where it is True")
    catalog = ids_of(model.item_ids, type(model).__name__)
    # Ids that the model does not know are no fault here: a shop's stock holds items that nobody bought yet.
    places = catalog.get_indexer(pd.Index(listed, tupleize_cols=False))
    places = places[places >= 0]
    if not len(places):
        raise ValueError(
            f"none of the {len(listed)} allowed ids is an item that the model knows "
            f"(such as {_first(catalog)!r})"
        )
    mask = torch.zeros(model.n_items, dtype=torch.bool, device="cpu")  # (n_items,)
    mask[torch.from_numpy(places.astype(np.int64))] = True
    return mask


def _left_out(
    model: "Recommender", left_out: LeftOut | None, allowed: Iterable[Any] | None
) -> LeftOut | None:
    mask = _allowed(model, allowed)
    return left_out if mask is None else only(mask, left_out)


def left_out_of(
    model: "Recommender", exclude: Interactions | None, allowed: Iterable[Any] | None
) -> LeftOut | None:
    """What may not be in the lists: what was seen, and what is not allowed."""
    return _left_out(model, None if exclude is None else seen_in(exclude), allowed)


def as_list(ids: Iterable[Any] | Any, what: str) -> list[Any]:
    """Ids as a list; one id alone counts as a list of one."""
    if isinstance(ids, Tensor):
        return list(ids.tolist()) if ids.ndim else [ids.item()]
    if isinstance(ids, str | bytes) or not isinstance(ids, Iterable):
        return [ids]
    if isinstance(ids, pd.DataFrame | Mapping):
        raise TypeError(f"{what} must be ids, got a {type(ids).__name__}; take one of its columns")
    return list(ids)


def ids_of(catalog: pd.Index | None, name: str) -> pd.Index:
    """The ids of a catalog.

    Raises:
        ValueError: the model ``name`` was saved without.
    """
    if catalog is None:
        raise ValueError(
            f"this {name} was saved without the ids of users and items; fit it again, or ask it by index"
        )
    return catalog


def _first(ids: pd.Index) -> Any:
    """An id as one would type it: 7, not np.int64(7)."""
    return ids[:1].tolist()[0]


def positions(catalog: pd.Index | None, ids: list[Any], role: str, name: str) -> Tensor:
    """Indices (B,) int64 of ids in a catalog.

    Raises:
        KeyError: ids that the model does not know; the message shows some, and one that it does know.
    """
    known = ids_of(catalog, name)
    places = known.get_indexer(pd.Index(ids, tupleize_cols=False)) if ids else np.zeros(0, dtype=np.int64)
    unknown = [ids[i] for i in np.flatnonzero(places < 0)[:3]]
    if unknown:
        n = int((places < 0).sum())
        listed = ", ".join(map(repr, unknown)) + (f" and {n - len(unknown)} more" if n > len(unknown) else "")
        hint = f"this {name} knows {len(known):,} {role}s, such as {_first(known)!r}"
        if role == "user":
            hint += "; for a person never seen, give a history (recommend_histories)"
        raise KeyError(f"unknown {role} id {listed}: {hint}")
    return torch.from_numpy(places.astype(np.int64, copy=False))
