"""Approximate search by FAISS: compare with a part of the vectors, or with a shorter form of them."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from recsys_lib.arguments import whole_number
from recsys_lib.ranking import rank_candidates
from recsys_lib.retrieval.index import Excluded, Metric, StoredIndex

__all__ = ["FaissIndex"]

Kind: TypeAlias = Literal["flat", "ivf", "hnsw", "pq"]

# The options of each kind, and their defaults; None is worked out from the vectors.
_OPTIONS: dict[str, dict[str, Any]] = {
    "flat": {},
    "ivf": {"n_lists": None, "n_probe": 16},
    "hnsw": {"m": 32, "ef_construction": 100, "ef_search": 64, "deterministic": True},
    "pq": {"n_lists": None, "n_probe": 16, "code_bytes": None},
}
_FETCHED = 2**22  # answers of FAISS held at once
_CODES = 256  # a byte's values: product quantization learns as many codes for each part of a vector
_WIDER = 4  # by how much a search that found too little is widened


class FaissIndex(StoredIndex):
    """A search that looks at less than all, by FAISS; ``ExactIndex`` is what to measure it against.

    - ``"flat"`` compares with every vector, as ``ExactIndex`` does.
    - ``"ivf"`` (an inverted file) sorts vectors into ``n_lists`` by their nearest centroid, and looks
      through the ``n_probe`` lists whose centroids are most like the query. Sivic and Zisserman (2003),
      Video Google.
    - ``"hnsw"`` links each vector to ``m`` that are like it, in a graph that a search walks towards the
      query. Malkov and Yashunin (2018), Efficient and robust approximate nearest neighbor search using
      hierarchical navigable small world graphs. Nothing can be taken out of the graph: ``remove`` only marks
      a vector, so that searches walk over it and never find it. Where more are marked than not, the graph
      is built anew of the rest, which takes as long as ``build``.
    - ``"pq"`` (product quantization) cuts a vector into ``code_bytes`` parts and keeps of each the nearest
      of 256 learned codes, a byte; in the lists of an inverted file, which may be one. Jégou, Douze and
      Schmid (2011), Product quantization for nearest neighbor search. Scores are those of the short forms.

    A query gets its k results wherever that many remain: a search that found fewer, for what it found is
    excluded or its lists are short, is made wider until it has them, in the end over everything. In the same
    way ties are fair among all that were looked at.

    FAISS runs on the CPU, with as many threads as it is set to; see ``faiss.omp_set_num_threads``.

    Args:
        kind: one of these four.
        metric: ``"dot"`` or ``"cosine"``.
        n_lists: of kinds ivf and pq: how many lists; by default about the root of the number of vectors.
            Learned by k-means in ``build``; ``add`` leaves the centroids as they are.
        n_probe: of kinds ivf and pq: lists that a search looks through. May be set between searches.
        m: of kind hnsw: links of a vector.
        ef_construction: of kind hnsw: candidates that are kept while links are chosen.
        ef_search: of kind hnsw: candidates that a search keeps. May be set between searches.
        deterministic: of kind hnsw: build the graph on one thread. On several it is built faster, and depends
            on which of them came first.
        code_bytes: of kind pq: bytes of a vector's short form; must divide d. By default a byte for four
            features, or for the next number that divides d.
        seed: of k-means.

    Raises:
        ImportError: FAISS is not installed.
        TypeError: an option that is no whole number.
        ValueError: an unknown kind, an option that the kind does not have, or one below 1.
    """

    def __init__(
        self,
        kind: Kind = "flat",
        metric: Metric = "dot",
        *,
        n_lists: int | None = None,
        n_probe: int | None = None,
        m: int | None = None,
        ef_construction: int | None = None,
        ef_search: int | None = None,
        deterministic: bool | None = None,
        code_bytes: int | None = None,
        seed: int = 0,
    ) -> None:
        _faiss()
        super().__init__(metric)
        if kind not in _OPTIONS:
            raise ValueError(f"kind must be one of {', '.join(_OPTIONS)}; got {kind!r}")
        self.kind = kind
        self.seed = whole_number(seed, "seed", at_least=0)
        self.n_lists, self.n_probe, self.code_bytes = n_lists, n_probe, code_bytes
        self.m, self.ef_construction, self.ef_search = m, ef_construction, ef_search
        self.deterministic = deterministic
        for name in sorted({name for options in _OPTIONS.values() for name in options}):
            value = getattr(self, name)
            if value is None:
                setattr(self, name, _OPTIONS[kind].get(name))
            elif name not in _OPTIONS[kind]:
                kinds = " and ".join(other for other in _OPTIONS if name in _OPTIONS[other])
                raise ValueError(f"{name} is an option of {kinds}; kind {kind!r} has none")
            elif name == "deterministic":
                if not isinstance(value, bool):
                    raise TypeError(f"deterministic must be True or False, got {value!r}")
            else:
                setattr(self, name, whole_number(value, name, at_least=1))
        self._index: Any = None
        self._labels = np.zeros(0, np.int64)  # of kind hnsw: (rows,) the id of each, -1 where it was removed

    # ------------------------------------------------------------------------------------------------ build

    def _build(self, vectors: Tensor, ids: NDArray[np.int64]) -> None:
        x = _rows(vectors)  # (N, d)
        index = self._made(*x.shape)
        if not index.is_trained:
            index.train(x)
        self._index, self._labels = index, np.zeros(0, np.int64)
        self._append(x, ids)

    def _made(self, n: int, dim: int) -> Any:
        """An empty index for n vectors to start with."""
        faiss = _faiss()
        product = faiss.METRIC_INNER_PRODUCT
        if self.kind == "flat":
            return faiss.IndexIDMap2(faiss.IndexFlat(dim, product))
        if self.kind == "hnsw":
            index = faiss.IndexHNSWFlat(dim, self.m, product)
            index.hnsw.efConstruction = self.ef_construction
            return index
        n_lists = min(max(1, math.isqrt(n)), max(1, n // 39)) if self.n_lists is None else self.n_lists
        if n_lists > n:
            raise ValueError(f"n_lists is {n_lists}, but there are only {n} vectors to make lists of")
        coarse = faiss.IndexFlat(dim, product)
        if self.kind == "ivf":
            index = faiss.IndexIVFFlat(coarse, dim, n_lists, product)
        else:
            width = max(x for x in range(1, max(1, dim // 4) + 1) if dim % x == 0)
            code_bytes = width if self.code_bytes is None else self.code_bytes
            if dim % code_bytes:
                fitting = ", ".join(str(x) for x in range(1, dim + 1) if dim % x == 0)
                raise ValueError(
                    f"code_bytes must divide the width of the vectors, {dim}: one of {fitting}; "
                    f"got {code_bytes}"
                )
            if n < _CODES:
                raise ValueError(
                    f'kind "pq" learns {_CODES} codes and needs as many vectors; there are {n}: use "flat"'
                )
            index = faiss.IndexIVFPQ(coarse, dim, n_lists, code_bytes, 8, product)
            index.pq.cp.seed = self.seed
            index.pq.cp.min_points_per_centroid = 1  # FAISS would print a warning
        index.own_fields = True  # of the centroids
        coarse.this.disown()
        # The lists are cut by direction: a centroid as long as its members would draw what is long.
        index.cp.spherical = True
        index.cp.seed = self.seed
        index.cp.min_points_per_centroid = 1
        return index

    def _add(self, vectors: Tensor, ids: NDArray[np.int64]) -> NDArray[np.int64]:
        before = self._index.ntotal
        self._append(_rows(vectors), ids)
        return np.arange(before, self._index.ntotal)  # means nothing but for hnsw

    def _append(self, x: NDArray[np.float32], ids: NDArray[np.int64]) -> None:
        if self.kind != "hnsw":
            self._index.add_with_ids(x, ids)
            return
        with _threads(1 if self.deterministic else None):
            self._index.add(x)
        self._labels = np.concatenate([self._labels, ids])

    def _remove(self, ids: NDArray[np.int64], rows: NDArray[np.int64]) -> None:
        if self.kind != "hnsw":
            self._index.remove_ids(ids)
            return
        self._labels[rows] = -1
        alive = self._labels >= 0
        if 2 * alive.sum() < len(alive):
            labels = self._labels[alive]
            x = self._index.storage.reconstruct_n(0, self._index.ntotal)[alive]  # (N, d)
            self._index, self._labels = self._made(*x.shape), np.zeros(0, np.int64)
            self._append(x, labels)
            self._ids.move(labels, np.arange(len(labels)))

    # ----------------------------------------------------------------------------------------------- search

    def _search(
        self, queries: Tensor, k: int, excluded: Excluded, users: Tensor, seed: int
    ) -> tuple[Tensor, Tensor]:
        x, users, n = torch.from_numpy(_rows(queries)), users.cpu(), len(self)  # (B, d), (B,)
        items = torch.full((len(x), k), -1, device="cpu")  # (B, k)
        values = torch.full((len(x), k), -torch.inf, device="cpu")  # (B, k)
        left = torch.arange(len(x), device="cpu")  # (R,) the queries that are not answered yet
        # One more than is needed shows a tie at the border. Sizes are rounded, so that few differ.
        count = excluded.counts(len(x))  # (B,)
        wanted = k + 1 + torch.where(count > 0, 2 ** count.clamp(min=1).double().log2().ceil(), 0).long()
        effort = 1
        while len(left):
            wanted = wanted.clamp(max=n)  # (R,)
            open_ = []
            for size in wanted.unique().tolist():
                for rows in left[wanted == size].split(max(1, _FETCHED // size)):
                    found, scores = self._fetch(x[rows], size, effort)  # (R', size)
                    last = scores[:, -1].clone()  # (R',) no better one was left out; -inf: none was
                    scores[excluded.among(rows, found)] = -torch.inf
                    found, scores = rank_candidates(scores, found, users=users[rows], seed=seed)
                    items[rows], values[rows] = found[:, :k], scores[:, :k]
                    over = (scores[:, k - 1] > last) | (size == n and self._looks_at_all(n, effort))
                    open_.append(rows[~over])
            again = torch.cat(open_)
            wanted = _WIDER * wanted[torch.isin(left, again)]
            left, effort = again.sort().values, effort * _WIDER
        return items, values

    def _fetch(self, x: Tensor, size: int, effort: int) -> tuple[Tensor, Tensor]:
        """(R, d) queries -> the ids and scores (R, size) that FAISS finds; -1 and ``-inf`` where none."""
        faiss = _faiss()
        index, options = self._index, None
        if self.kind in ("ivf", "pq"):
            options = faiss.SearchParametersIVF(nprobe=min(self._set("n_probe") * effort, index.nlist))
        elif self.kind == "hnsw":
            alive = self._labels >= 0
            here = (
                {} if alive.all() else {"sel": faiss.IDSelectorBitmap(np.packbits(alive, bitorder="little"))}
            )
            if self._looks_at_all(size, effort):
                index, options = faiss.downcast_index(index.storage), faiss.SearchParameters(**here)
            else:
                ef_search = max(self._set("ef_search") * effort, size)
                options = faiss.SearchParametersHNSW(efSearch=ef_search, **here)
        scores, found = index.search(x.numpy(), size, params=options)
        if self.kind == "hnsw":
            found = np.where(found < 0, -1, self._labels[found])
        scores[found < 0] = -np.inf  # FAISS writes the least number that is finite
        return torch.from_numpy(found), torch.from_numpy(scores)

    def _looks_at_all(self, size: int, effort: int) -> bool:
        """Whether a search this wide compares with every vector."""
        if self.kind in ("ivf", "pq"):
            return self._set("n_probe") * effort >= self._index.nlist
        # A walk need not come everywhere, so a wide one gives way to a scan of the vectors.
        return self.kind == "flat" or effort > 1 or 4 * size >= len(self)

    def _set(self, name: str) -> int:
        """An option that may be set between searches."""
        return whole_number(getattr(self, name), name, at_least=1)

    # ------------------------------------------------------------------------------------------ on the disk

    def _options(self) -> dict[str, Any]:
        own = {name: getattr(self, name) for name in _OPTIONS[self.kind]}
        return {"kind": self.kind, "metric": self.metric, **own, "seed": self.seed}

    def _state(self) -> dict[str, Tensor]:
        content = torch.from_numpy(_faiss().serialize_index(self._index))  # uint8
        ids, rows = torch.from_numpy(self._ids.sorted), torch.from_numpy(self._ids.rows)
        return {"faiss": content, "ids": ids, "rows": rows, "labels": torch.from_numpy(self._labels)}

    def _restore(self, state: dict[str, Tensor]) -> None:
        try:
            self._index = _faiss().deserialize_index(state["faiss"].numpy())
        except RuntimeError as error:
            raise ValueError(
                f"this version of FAISS, {_faiss().__version__}, cannot read the index: {error}"
            ) from error
        self._labels = state["labels"].numpy()
        self._ids.sorted, self._ids.rows = state["ids"].numpy(), state["rows"].numpy()


def _faiss() -> Any:
    """The package, imported when it is first needed."""
    try:
        import faiss
    except ImportError as error:
        raise ImportError(
            'FaissIndex needs FAISS, which is not installed: pip install "recsys-lib[search]", or '
            "faiss-cpu. ExactIndex does the same work without it."
        ) from error
    return faiss


def _rows(vectors: Tensor) -> NDArray[np.float32]:
    """(N, d) as FAISS takes them."""
    return np.ascontiguousarray(vectors.cpu().numpy())


@contextmanager
def _threads(n: int | None) -> Iterator[None]:
    """FAISS with n threads meanwhile, afterwards with as many as before; None changes nothing."""
    faiss = _faiss()
    before = faiss.omp_get_max_threads()
    try:
        if n is not None:
            faiss.omp_set_num_threads(n)
        yield
    finally:
        if n is not None:
            faiss.omp_set_num_threads(before)
