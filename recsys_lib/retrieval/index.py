"""What every index does, and what all of them check, keep and store alike."""

import hashlib
import json
from abc import abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, Protocol, Self, TypeAlias, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from recsys_lib.arguments import Indices, integer_indices, refuse_not_finite, whole_number
from recsys_lib.data import Interactions
from recsys_lib.files import write_whole
from recsys_lib.ranking import seen_in
from recsys_lib.similarity import normalize

__all__ = ["Exclude", "Excluded", "Index", "Metric", "StoredIndex"]

Metric: TypeAlias = Literal["dot", "cosine"]
Exclude: TypeAlias = Interactions | Sequence[Indices] | Tensor | np.ndarray
"""What a query may not find: the events of its user, or a list of ids a query; in a list, -1 is no id."""

_MOST_IDS = 2**31  # ids are below it: the hash that breaks ties has 31 bits
_LONGEST = 1e18  # of a vector: the dot product of two such is within float32, and so is each of its parts
_FORMAT = "1"


class Index(Protocol):
    """A set of vectors, each under the id of its item, that can be searched.

    Vectors and queries are float32 tensors of one width, on any device, and are not changed. An id is a whole
    number from 0 to 2^31 - 1, as a rule an item's index; ``Interactions.item_ids_at`` turns it into the
    caller's own id. Items of *exactly* equal score come in the order in which ``evaluate`` and ``recommend``
    have them, see ``ranking.rank_topk``.

    Attributes:
        metric: ``"dot"``, the inner product, or ``"cosine"``.
    """

    metric: Metric

    def build(self, vectors: Tensor, ids: Indices | None = None) -> Self:
        """Starts anew with these vectors.

        Args:
            vectors: (N, d) float32, N at least 1.
            ids: (N,) the id of each, all different; 0 to N - 1 by default.

        Returns:
            The index itself.

        Raises:
            TypeError: vectors that are no float32 tensor, ids that are no whole numbers.
            ValueError: no vectors; a vector that holds NaN or infinity, or is longer than 1e18; where the
                metric is the cosine, a zero vector, which has no direction; ids that are repeated, out of
                range or not N. Then the index is what it was.
        """

    def add(self, vectors: Tensor, ids: Indices | None = None) -> None:
        """Adds vectors to those that are there.

        Args:
            vectors: (M, d) float32.
            ids: (M,) the id of each, which the index does not hold; by default those that follow the greatest
                id that it ever held.

        Raises:
            TypeError, ValueError: as ``build``; also before ``build``, for another width than d, and for an
                id that the index holds: ``remove`` it first. Then nothing is added.
        """

    def remove(self, ids: Indices) -> None:
        """Takes vectors out. Their ids may be added again.

        Args:
            ids: (M,) ids that the index holds, all different.

        Raises:
            TypeError: they are no whole numbers.
            ValueError: an id that the index does not hold, or one that is repeated. Then nothing is removed.
        """

    def search(
        self,
        queries: Tensor,
        k: int,
        *,
        exclude: Exclude | None = None,
        users: Indices | None = None,
        seed: int = 0,
    ) -> tuple[Tensor, Tensor]:
        """The k best items of every query, best first.

        Args:
            queries: (B, d) float32.
            k: how many, from 1 to the number of vectors.
            exclude: what is not to be found: an ``Interactions``, of which the items of each query's user
                count, or B lists of ids. What the index does not hold is no error. The k best of what
                remains are found, not what remains of the k best.
            users: (B,) the user of each query, for ``exclude`` and for ties. By default the queries are those
                of users 0 to B - 1, for ties alone.
            seed: chooses among the equally fair orders of ties.

        Returns:
            ids: (B, k) int64, on the queries' device; -1 where fewer than k remain.
            scores: (B, k) float32; ``-inf`` where the id is -1.

        Raises:
            TypeError: queries that are no float32 tensor, a k or users that are no whole numbers.
            ValueError: an index without vectors; a k out of range; queries of another width, or that hold
                what ``build`` refuses; ``exclude`` or ``users`` that are not B, ``Interactions`` without
                ``users``, or users that it does not know.
        """

    def save(self, path: str | Path) -> None:
        """Writes the index to one file, which is there and whole or not there.

        Args:
            path: of the file; one that is there is replaced.

        Raises:
            ValueError: the index holds no vectors.
            FileNotFoundError: there is no such folder.
            OSError: what the file system refused. Then the former file stays.
        """

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Reads an index that ``save`` wrote. The file holds tensors and texts, and nothing that is executed.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: it is damaged, cut short or changed, or holds another kind of index.
        """

    def __len__(self) -> int:
        """How many vectors it holds."""


class StoredIndex(Index):
    """What the indexes of this library share: checks, ids, and the file.

    A subclass says how to keep and search vectors that are checked already, and that are of unit length where
    the metric is the cosine.

    The methods of the interface have its docstrings.

    Args:
        metric: ``"dot"`` or ``"cosine"``.
    """

    def __init__(self, metric: Metric = "dot") -> None:
        if metric not in get_args(Metric):
            raise ValueError(f'metric must be "dot" or "cosine", got {metric!r}')
        self.metric = metric
        self._dim = 0  # before build
        self._next_id = 0
        self._ids = Ids()

    def __len__(self) -> int:
        return len(self._ids.sorted)

    def __repr__(self) -> str:
        options = ", ".join(f"{name}={value!r}" for name, value in self._options().items())
        return f"{type(self).__name__}({options}) of {len(self):,} vectors"

    # ---------------------------------------------------------------------------------- what subclasses say

    @abstractmethod
    def _build(self, vectors: Tensor, ids: NDArray[np.int64]) -> None:
        """Keeps (N, d) vectors in rows 0 to N - 1 and nothing else."""

    @abstractmethod
    def _add(self, vectors: Tensor, ids: NDArray[np.int64]) -> NDArray[np.int64]:
        """Keeps (M, d) vectors more, and says in which rows: (M,)."""

    @abstractmethod
    def _remove(self, ids: NDArray[np.int64], rows: NDArray[np.int64]) -> None:
        """Forgets the vectors of (M,) ids in these rows; ``self._ids`` holds them no more."""

    @abstractmethod
    def _search(
        self, queries: Tensor, k: int, excluded: "Excluded", users: Tensor, seed: int
    ) -> tuple[Tensor, Tensor]:
        """(B, d) queries -> (B, k) ids and scores, on any device."""

    @abstractmethod
    def _options(self) -> dict[str, Any]:
        """The arguments of the constructor."""

    @abstractmethod
    def _state(self) -> dict[str, Tensor]:
        """What the file holds, on the CPU."""

    @abstractmethod
    def _restore(self, state: dict[str, Tensor]) -> None:
        """Takes up what ``_state`` gave; ``self._ids`` included."""

    # ------------------------------------------------------------------------------------- in and out of it

    def build(self, vectors: Tensor, ids: Indices | None = None) -> Self:  # noqa: D102
        vectors = self._checked(vectors, "vectors")  # (N, d)
        if not len(vectors) or not vectors.shape[1]:
            raise ValueError(f"there is nothing to search: vectors is {tuple(vectors.shape)}")
        new = _checked_ids(ids, len(vectors), start=0)  # (N,)
        self._build(vectors, new)
        self._ids = Ids()
        self._ids.add(new, np.arange(len(new)))
        self._dim, self._next_id = vectors.shape[1], int(new.max()) + 1
        return self

    def add(self, vectors: Tensor, ids: Indices | None = None) -> None:  # noqa: D102
        if not self._dim:
            raise ValueError("the index is empty, and of no width yet: build it first")
        vectors = self._checked(vectors, "vectors", self._dim)  # (M, d)
        new = _checked_ids(ids, len(vectors), start=self._next_id)  # (M,)
        held = new[self._ids.rows_of(new) >= 0]
        if len(held):
            raise ValueError(f"id {held[0]} is in the index already: remove it first, or give another")
        if len(new):
            self._ids.add(new, self._add(vectors, new))
            self._next_id = max(self._next_id, int(new.max()) + 1)

    def remove(self, ids: Indices) -> None:  # noqa: D102
        gone = integer_indices(ids, "ids").cpu().numpy()  # (M,)
        _refuse_repeated(gone)
        rows = self._ids.rows_of(gone)  # (M,)
        if (rows < 0).any():
            raise ValueError(f"id {gone[rows < 0][0]} is not in the index, so it cannot be removed")
        if len(gone):
            self._ids.remove(gone)
            self._remove(gone, rows)

    @torch.no_grad()
    def search(  # noqa: D102
        self,
        queries: Tensor,
        k: int,
        *,
        exclude: Exclude | None = None,
        users: Indices | None = None,
        seed: int = 0,
    ) -> tuple[Tensor, Tensor]:
        k, seed = whole_number(k, "k"), whole_number(seed, "seed")
        if not len(self):
            raise ValueError("the index is empty: build it, or add vectors to it")
        if not 1 <= k <= len(self):
            raise ValueError(f"k must be between 1 and the number of vectors, {len(self)}; got {k}")
        queries = self._checked(queries, "queries", self._dim)  # (B, d)
        excluded = self._excluded(exclude, users, len(queries))
        if users is None:
            asked = torch.arange(len(queries), device=queries.device)  # (B,)
        else:
            asked = integer_indices(users, "users").to(queries.device)  # (B,)
            if len(asked) != len(queries):
                raise ValueError(f"users must be one a query, {len(queries)}; got {len(asked)}")
        if not len(queries):
            nothing = queries.new_zeros(0, k)
            return nothing.long(), nothing
        ids, scores = self._search(queries, k, excluded, asked, seed)
        return ids.to(queries.device), scores.to(queries.device)

    def _checked(self, x: Any, name: str, dim: int | None = None) -> Tensor:
        """The vectors (N, d) if they are as they should be; for the cosine of unit length."""
        if not isinstance(x, Tensor):
            raise TypeError(f"{name} must be a tensor, got {type(x).__name__}; see torch.as_tensor")
        if x.dtype != torch.float32:
            raise TypeError(
                f"{name} must be float32, got {str(x.dtype).removeprefix('torch.')}; see .float()"
            )
        if x.ndim != 2 or (dim is not None and x.shape[1] != dim):
            wanted = "(N, d)" if dim is None else f"(N, {dim})"
            hint = "; a single vector is x[None]" if x.ndim == 1 else ""
            raise ValueError(f"{name} must be {wanted}, got shape {tuple(x.shape)}{hint}")
        x = x.detach()
        refuse_not_finite(x, name)
        if not x.numel():
            return x
        # A square that overflows makes a length infinite, and that is too long as well.
        length = torch.linalg.vector_norm(x, dim=1)  # (N,)
        if self.metric == "dot":
            if (too_long := length > _LONGEST).any():
                raise ValueError(
                    f"row {int(too_long.nonzero()[0])} of {name} is longer than {_LONGEST:g}: products of "
                    "such vectors are beyond float32. Look for a training run that diverged."
                )
            return x
        if (zero := (x == 0).all(dim=1)).any():
            raise ValueError(
                f"row {int(zero.nonzero()[0])} of {name} is zero: it has no direction, and so no cosine"
            )
        return normalize(x)  # (N, d)

    def _excluded(self, exclude: Exclude | None, users: Indices | None, n_queries: int) -> "Excluded":
        """What of the index each query may not find."""
        if exclude is None:
            row, ids = np.zeros(0, np.int64), np.zeros(0, np.int64)
        elif isinstance(exclude, Interactions):
            if users is None:
                raise ValueError("exclude is Interactions: say whose queries these are, with users=")
            asked = integer_indices(users, "users").cpu()  # (B,)
            unknown = asked[(asked < 0) | (asked >= exclude.n_users)]
            if len(unknown):
                raise ValueError(
                    f"users must be between 0 and {exclude.n_users - 1}, as exclude has them; "
                    f"got {int(unknown[0])}"
                )
            row, ids = (part.cpu().numpy() for part in seen_in(exclude)(asked))  # (E,), (E,)
        else:
            if not isinstance(exclude, (Sequence, Tensor, np.ndarray)):
                raise TypeError(
                    f"exclude must be Interactions or a list of ids a query, got {type(exclude).__name__}"
                )
            if len(exclude) != n_queries:
                raise ValueError(f"exclude must hold a list a query, {n_queries}; got {len(exclude)}")
            lists = [integer_indices(one, f"exclude[{i}]").cpu().numpy() for i, one in enumerate(exclude)]
            row = np.repeat(np.arange(n_queries), [len(one) for one in lists])  # (E,)
            ids = np.concatenate([*lists, np.zeros(0, np.int64)])  # (E,)
        keys = np.unique(row[ids >= 0] * _MOST_IDS + ids[ids >= 0])  # (E',): each pair once
        row, ids = keys // _MOST_IDS, keys % _MOST_IDS
        rows = self._ids.rows_of(ids)
        held = rows >= 0
        return Excluded(row[held], ids[held], rows[held])

    # ------------------------------------------------------------------------------------------ on the disk

    def save(self, path: str | Path) -> None:  # noqa: D102
        path = Path(path).expanduser()
        if not len(self):
            raise ValueError("the index is empty: there is nothing to save")
        if not path.parent.is_dir():
            raise FileNotFoundError(f"there is no folder {path.parent} to save {path.name} in")
        state = {name: tensor.contiguous() for name, tensor in self._state().items()}
        about = json.dumps(
            {
                "class": type(self).__name__,
                "format": _FORMAT,
                "options": self._options(),
                "dim": self._dim,
                "next_id": self._next_id,
            },
            sort_keys=True,
        )
        with write_whole(path) as part:
            save_file(state, part, metadata={"index": about, "sha256": _digest(about, state)})

    @classmethod
    def load(cls, path: str | Path) -> Self:  # noqa: D102
        path = Path(path).expanduser()
        about, state = _read(path)
        if about["class"] != cls.__name__:
            raise ValueError(f"{path} holds a {about['class']}, not a {cls.__name__}")
        index = cls(**about["options"])
        index._dim, index._next_id = about["dim"], about["next_id"]
        index._restore(state)
        return index


def _read(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """What a file says of its index, and the tensors, if they are those that were saved."""
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}; save makes one")
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            metadata = file.metadata() or {}
            # Copies: the file may be replaced or removed while the index lives.
            state = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(f"{path} is no saved index, or is damaged ({error}); save it again") from error
    if not {"index", "sha256"} <= set(metadata):
        raise ValueError(f"{path} is no saved index")
    if metadata["sha256"] != _digest(metadata["index"], state):
        raise ValueError(f"{path} is damaged: it is not what was saved, by its checksum; save it again")
    about = json.loads(metadata["index"])
    if about["format"] != _FORMAT:
        raise ValueError(f"{path} was saved by another version of the library; save it again with this one")
    return about, state


def _digest(about: str, state: dict[str, Tensor]) -> str:
    """A checksum of all that a file holds."""
    digest = hashlib.sha256(about.encode())
    for name, tensor in sorted(state.items()):
        digest.update(json.dumps([name, str(tensor.dtype), list(tensor.shape)]).encode())
        digest.update(tensor.numpy().data)
    return digest.hexdigest()


# --------------------------------------------------------------------------------------------------- ids


class Excluded:
    """Pairs of a query and what it may not find, sorted by query and then by id.

    Args:
        row: (E,) the query.
        ids: (E,) the id, which the index holds.
        places: (E,) the row of the index where the vector is.
    """

    def __init__(self, row: NDArray[np.int64], ids: NDArray[np.int64], places: NDArray[np.int64]) -> None:
        self.row, self.ids, self.places = row, ids, places
        self._keys = torch.from_numpy(row * _MOST_IDS + ids)  # (E,) ascending

    def counts(self, n_queries: int) -> Tensor:
        """How many each query may not find: (B,) int64."""
        return torch.from_numpy(np.bincount(self.row, minlength=n_queries))

    def among(self, row: Tensor, ids: Tensor) -> Tensor:
        """Which of the ids (R, L) that queries (R,) have found they may not find: (R, L) bool, on the CPU."""
        if not len(self._keys):
            return torch.zeros_like(ids, dtype=torch.bool)
        # An id of -1 reads as the greatest id of the query before; what is no id is left out already.
        keys = row[:, None] * _MOST_IDS + ids  # (R, L)
        place = torch.searchsorted(self._keys, keys).clamp(max=len(self._keys) - 1)  # (R, L)
        return self._keys[place] == keys


class Ids:
    """Which ids are held, and in which row. Numpy, since it inserts into a sorted array in one pass.

    Attributes:
        sorted: (N,) int64 ascending.
        rows: (N,) int64 where each is.
    """

    def __init__(self) -> None:
        self.sorted = np.zeros(0, np.int64)
        self.rows = np.zeros(0, np.int64)

    def rows_of(self, ids: NDArray[np.int64]) -> NDArray[np.int64]:
        """(M,) ids -> (M,) rows; -1 where an id is not held."""
        if not len(self.sorted):
            return np.full(len(ids), -1)
        place = np.searchsorted(self.sorted, ids).clip(max=len(self.sorted) - 1)  # (M,)
        return np.where(self.sorted[place] == ids, self.rows[place], -1)

    def add(self, ids: NDArray[np.int64], rows: NDArray[np.int64]) -> None:
        """Takes in (M,) ids that are not held."""
        order = np.argsort(ids, kind="stable")
        place = np.searchsorted(self.sorted, ids[order])  # (M,)
        self.sorted = np.insert(self.sorted, place, ids[order])
        self.rows = np.insert(self.rows, place, rows[order])

    def remove(self, ids: NDArray[np.int64]) -> None:
        """Forgets (M,) ids that are held."""
        place = np.searchsorted(self.sorted, ids)
        self.sorted, self.rows = np.delete(self.sorted, place), np.delete(self.rows, place)

    def move(self, ids: NDArray[np.int64], rows: NDArray[np.int64]) -> None:
        """Says that (M,) ids that are held are in other rows now."""
        self.rows[np.searchsorted(self.sorted, ids)] = rows


def _checked_ids(ids: Indices | None, n: int, *, start: int) -> NDArray[np.int64]:
    """(n,) ids that are different and in range; by default those from ``start``."""
    new = np.arange(start, start + n) if ids is None else integer_indices(ids, "ids").cpu().numpy()
    if len(new) != n:
        raise ValueError(f"ids must be one a vector, {n}; got {len(new)}")
    wrong = new[(new < 0) | (new >= _MOST_IDS)]
    if len(wrong):
        raise ValueError(
            f"ids must be between 0 and {_MOST_IDS - 1}, got {wrong[0]}: give the items' indices, and turn "
            "them into ids of your own with Interactions.item_ids_at"
        )
    _refuse_repeated(new)
    return new


def _refuse_repeated(ids: NDArray[np.int64]) -> None:
    different, count = np.unique(ids, return_counts=True)
    if (count > 1).any():
        raise ValueError(f"ids must be all different, but {different[count > 1][0]} is given more than once")
