"""Exact search: a matrix product and a top-k, a block at a time."""

from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from recsys_lib.devices import resolve_device
from recsys_lib.ranking import rank_candidates, rank_topk
from recsys_lib.retrieval.index import Excluded, Metric, StoredIndex

__all__ = ["ExactIndex"]

# Scores held at once and queries scored at once. 8 MB and 256 keep a CPU's product in its caches; a GPU
# wants larger ones.
_SCORES_CPU, _SCORES_GPU = 2**21, 2**26
_QUERIES_CPU, _QUERIES_GPU = 256, 4096
_GROUP = 64
_FEW = 16  # queries for which a CPU's product is faster with the vectors on the left


class ExactIndex(StoredIndex):
    """Compares a query with every vector, on the device where the vectors are.

    Its answer is right by construction, and it needs no training and no other package. Adding and removing
    move few vectors, but for a copy of all now and then as it grows. Memory: 4 d + 24 bytes a vector, at most
    a quarter more after ``add``; a search takes 8 MB for scores besides on a CPU, 256 MB on a GPU, whatever
    the number of queries.

    Args:
        metric: ``"dot"`` or ``"cosine"``.
    """

    def __init__(self, metric: Metric = "dot") -> None:
        super().__init__(metric)
        self._vectors = torch.zeros(0, 0, device="cpu")  # (capacity, d): the rows behind the last are free
        self._labels = torch.zeros(0, dtype=torch.int64, device="cpu")  # (capacity,) the id of each row

    @property
    def device(self) -> torch.device:
        """Where the vectors are, and where a search runs."""
        return self._vectors.device

    def _build(self, vectors: Tensor, ids: NDArray[np.int64]) -> None:
        self._vectors = vectors.clone(memory_format=torch.contiguous_format)
        self._labels = torch.from_numpy(ids).to(vectors.device, copy=True)

    def _add(self, vectors: Tensor, ids: NDArray[np.int64]) -> NDArray[np.int64]:
        n, m = len(self), len(vectors)
        if n + m > len(self._vectors):
            # Room for a quarter more: many small additions then cost a few copies of each vector in all.
            room = n + m + n // 4
            larger = self._vectors.new_empty(room, self._dim)
            larger[:n] = self._vectors[:n]
            labels = self._labels.new_empty(room)
            labels[:n] = self._labels[:n]
            self._vectors, self._labels = larger, labels
        self._vectors[n : n + m] = vectors.to(self.device)
        self._labels[n : n + m] = torch.from_numpy(ids).to(self.device)
        return np.arange(n, n + m)

    def _remove(self, ids: NDArray[np.int64], rows: NDArray[np.int64]) -> None:
        # The last rows move into the holes: the order of rows means nothing.
        n = len(self)  # that remain
        holes = rows[rows < n]
        last = np.setdiff1d(np.arange(n, n + len(rows)), rows)  # as many
        to, source = (torch.from_numpy(x).to(self.device) for x in (holes, last))
        self._vectors[to] = self._vectors[source]
        self._labels[to] = self._labels[source]
        self._ids.move(self._labels[to].cpu().numpy(), holes)

    def _search(
        self, queries: Tensor, k: int, excluded: Excluded, users: Tensor, seed: int
    ) -> tuple[Tensor, Tensor]:
        cpu = self.device.type == "cpu"
        queries, users = queries.to(self.device), users.to(self.device)
        batch = min(len(queries), _QUERIES_CPU if cpu else _QUERIES_GPU)
        width = max(1, (_SCORES_CPU if cpu else _SCORES_GPU) // batch)  # vectors of a block
        found = []
        for start in range(0, len(queries), batch):
            rows = slice(start, start + batch)
            inside = slice(*np.searchsorted(excluded.row, [start, start + batch]))
            pairs = (excluded.row[inside] - start, excluded.places[inside])
            found.append(self._search_batch(queries[rows], k, pairs, users[rows], seed, width))
        ids, scores = (torch.cat(parts) for parts in zip(*found, strict=True))
        return ids, scores

    def _search_batch(
        self,
        queries: Tensor,
        k: int,
        excluded: tuple[NDArray[np.int64], NDArray[np.int64]],
        users: Tensor,
        seed: int,
        width: int,
    ) -> tuple[Tensor, Tensor]:
        """(b, d) queries -> (b, k) ids and scores; excluded pairs are (E,) queries and (E,) rows."""
        n = len(self)
        order = np.argsort(excluded[1], kind="stable")
        row, place = (torch.from_numpy(part[order]).to(self.device) for part in excluded)  # (E,), (E,)
        starts = range(0, n, width)
        first = np.searchsorted(excluded[1][order], [*starts, n]).tolist()  # of each block, and the end
        lists: list[tuple[Tensor, Tensor]] = []
        for block, start in enumerate(starts):
            columns = slice(start, min(start + width, n))
            scores = _products(queries, self._vectors[columns])  # (b, c)
            here = slice(first[block], first[block + 1])
            scores[row[here], place[here] - start] = -torch.inf
            best = min(k, scores.shape[1])
            lists.append(rank_topk(scores, best, users=users, items=self._labels[columns], seed=seed))
            if sum(ids.shape[1] for ids, _ in lists) > max(width, 2 * k):
                lists = [_merge(lists, k, users, seed)]
        return _merge(lists, k, users, seed)

    def _options(self) -> dict[str, Any]:
        return {"metric": self.metric}

    def _state(self) -> dict[str, Tensor]:
        return {"vectors": self._vectors[: len(self)].cpu(), "ids": self._labels[: len(self)].cpu()}

    def _restore(self, state: dict[str, Tensor]) -> None:
        self._vectors, self._labels = state["vectors"], state["ids"]
        self._ids.add(self._labels.numpy(), np.arange(len(self._labels)))

    @classmethod
    def load(cls, path: str | Path, device: str | torch.device = "cpu") -> Self:
        """Reads an index that ``save`` wrote; see :meth:`Index.load`.

        Args:
            path: of the file.
            device: where to search.
        """
        index = super().load(path)
        where = resolve_device(device)
        index._vectors, index._labels = index._vectors.to(where), index._labels.to(where)
        return index


def _products(queries: Tensor, vectors: Tensor) -> Tensor:
    """(b, d), (c, d) -> (b, c) dot products."""
    if queries.device.type != "cpu" or len(queries) > _FEW:
        return queries @ vectors.mT  # (b, c)
    if len(queries) > 1:
        return (vectors @ queries.mT).mT.contiguous()  # (b, c)
    # Reading the vectors is all the work there is, and it goes fastest by groups.
    whole = len(vectors) - len(vectors) % _GROUP
    groups = vectors[:whole].view(-1, _GROUP, vectors.shape[1])  # (g, 64, d)
    scores = torch.bmm(groups, queries.mT.expand(len(groups), -1, 1))  # (g, 64, 1)
    return torch.cat([scores.view(1, -1), queries @ vectors[whole:].mT], dim=1)  # (1, c)


def _merge(lists: list[tuple[Tensor, Tensor]], k: int, users: Tensor, seed: int) -> tuple[Tensor, Tensor]:
    """The k best of several lists: ids (b, l) and scores (b, l) each."""
    if len(lists) == 1:
        return lists[0]
    ids, scores = (torch.cat(parts, dim=1) for parts in zip(*lists, strict=True))  # (b, L)
    ids, scores = rank_candidates(scores, ids, users=users, seed=seed)
    return ids[:, :k], scores[:, :k]
