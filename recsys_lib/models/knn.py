"""Neighbors: items that share users, users that share items."""

import warnings
from collections.abc import Callable

import torch
from torch import Tensor

from recsys_lib.data import Interactions
from recsys_lib.data.ragged import distinct_events, offsets, row_blocks, row_of_each, take_rows
from recsys_lib.models.core.contract import Recommender
from recsys_lib.models.core.histories import RecencyWeighted
from recsys_lib.models.core.options import learned, option
from recsys_lib.models.ease import _CACHED, _DENSE_IS_FASTER, _gram, _width
from recsys_lib.progress import progress_bar

__all__ = ["ItemKNN", "UserKNN"]

_CELLS = 2**24  # of a dense block, 64 MB
_EVENTS = 2**20  # of neighbors, looked up at once
_COLUMNS = 32  # with fewer, a product with a sparse matrix may sum in another order


class ItemKNN(RecencyWeighted):
    """Scores an item by how similar it is to the items in the user's history.

        s_ij     = c_ij / ((c_i c_j) ** (power / 2) + shrink)     c: users who chose both, either
        score_ui = sum of s_ij over the items j of u's history that are among the k most similar to i

    With ``power=1`` and ``shrink=0`` that is the cosine between the columns of the binary matrix; with
    ``power=0`` and ``shrink=0`` the dot product, that is the count of shared users. ``shrink`` keeps two
    items that share one user out of two from looking alike.

    A user without events scores zero everywhere.

    Source: Sarwar, Karypis, Konstan, Riedl 2001, "Item-Based Collaborative Filtering Recommendation
    Algorithms"; the shrinkage after Bell and Koren 2007, "Improved Neighborhood-based Collaborative
    Filtering".
    """

    k: int = option("neighbors kept for each item", default=50, at_least=1)
    shrink: float = option("added to the denominator", default=10.0, at_least=0)
    power: float = option("how much of popularity the norm takes out", default=1.0, at_least=0)

    neighbors: Tensor = learned("(n_items, k) int64, most similar first")
    similarities: Tensor = learned("(n_items, k) float32, 0 where an item has fewer neighbors")

    def _fit(self, interactions: Interactions, validation: Interactions | None, progress: bool) -> None:
        events = self._keep_histories(interactions)
        neighbors, similarities = _nearest(
            events.items, events.users, self.n_items, self.n_users, self.k, self.shrink, self.power, progress
        )
        self._keep("neighbors", neighbors)
        self._keep("similarities", similarities)

    def _score_histories(self, crow: Tensor, items: Tensor, weights: Tensor) -> Tensor:
        n_rows, n_items, device = len(crow) - 1, self.n_items, items.device
        ends = torch.arange(n_items + 1, device=device) * self.neighbors.shape[1]  # (I + 1,)
        near = _csr(ends, self.neighbors.flatten(), self.similarities.flatten(), n_items)  # (I, I)
        row = row_of_each(crow)  # (E,)
        scores = torch.empty(n_rows, n_items, device=device)  # (B, I)
        step = max(_COLUMNS, _width(2 * n_items, device))
        for start in range(0, n_rows, step):
            stop = min(start + step, n_rows)
            part = slice(int(crow[start]), int(crow[stop]))
            profiles = torch.zeros(n_items, max(_COLUMNS, stop - start), device=device)  # (I, b)
            profiles[items[part], row[part] - start] = weights[part]
            scores[start:stop] = (near @ profiles)[:, : stop - start].mT  # (b, I)
        return scores


class UserKNN(Recommender):
    """Scores an item by how many users of similar taste chose it.

        s_uv     = c_uv / ((c_u c_v) ** (power / 2) + shrink)     c: items that both, either chose
        score_ui = sum of s_uv over the k users v most similar to u who chose i

    A user without events has no neighbors and scores zero everywhere.

    Source: Resnick et al. 1994, "GroupLens: An Open Architecture for Collaborative Filtering of Netnews",
    with the cosine of binary vectors in place of the correlation of ratings.
    """

    k: int = option("neighbors kept for each user", default=50, at_least=1)
    shrink: float = option("added to the denominator", default=10.0, at_least=0)
    power: float = option("1 is the cosine, 0 the dot product", default=0.8, at_least=0)

    history_crow: Tensor = learned("(n_users + 1,) int64 offsets")
    history_items: Tensor = learned("(E,) int64")
    neighbors: Tensor = learned("(n_users, k) int64, most similar first")
    similarities: Tensor = learned("(n_users, k) float32")

    def _fit(self, interactions: Interactions, validation: Interactions | None, progress: bool) -> None:
        events = distinct_events(
            interactions.users, interactions.items, interactions.timestamps, self.n_users, self.n_items
        )
        neighbors, similarities = _nearest(
            events.users, events.items, self.n_users, self.n_items, self.k, self.shrink, self.power, progress
        )
        self._keep("history_crow", events.crow)
        self._keep("history_items", events.items)
        self._keep("neighbors", neighbors)
        self._keep("similarities", similarities)

    def _score(self, users: Tensor) -> Tensor:
        neighbors, similarities = self.neighbors[users], self.similarities[users]  # (B, k), (B, k)
        n_rows, k = neighbors.shape
        scores = torch.zeros(n_rows, self.n_items, device=users.device)  # (B, I)
        events = self.history_crow.diff()[neighbors].sum(dim=1)  # (B,) of all neighbors of a user
        blocks = row_blocks(events, _EVENTS)
        if users.device.type == "cpu" and torch.backends.mkl.is_available():
            # The same sums in the same order, by a product of sparse matrices: five times as fast.
            ones = similarities.new_ones(len(self.history_items))  # (E,)
            histories = _csr(self.history_crow, self.history_items, ones, self.n_items)  # (U, I)
            for block in blocks:
                near, weights = neighbors[block], similarities[block].flatten()  # (b, k), (b k,)
                crow = torch.arange(len(near) + 1, device=users.device) * k  # (b + 1,)
                weighted = _csr(crow, near.flatten(), weights, len(self.history_crow) - 1)  # (b, U)
                scores[block] = (weighted @ histories).to_dense()  # (b, I)
            return scores
        for block in blocks:
            place, pair = take_rows(self.history_crow, neighbors[block].flatten())  # (E,), (E,)
            row = pair.div(k, rounding_mode="floor") + block.start  # (E,)
            cell = row * self.n_items + self.history_items[place]  # (E,)
            scores.view(-1).index_add_(0, cell, similarities[block].flatten()[pair])
        return scores


def _nearest(
    rows: Tensor,
    columns: Tensor,
    n_rows: int,
    n_columns: int,
    k: int,
    shrink: float,
    power: float,
    progress: bool,
) -> tuple[Tensor, Tensor]:
    """The k most similar other rows of each row of a binary matrix.

    The matrix of similarities is made a block of rows at a time and never held whole: what a block leaves
    behind is its k neighbors.

    Args:
        rows: (E,) row of each one in the matrix; no cell twice.
        columns: (E,) its column.
        n_rows: rows of the matrix.
        n_columns: columns of the matrix.
        k: neighbors wanted; fewer where there are fewer other rows.
        shrink: see ``ItemKNN``.
        power: see ``ItemKNN``.
        progress: show a bar.

    Returns:
        neighbors (n_rows, k') int64 and similarities (n_rows, k') float32, most similar first; equal ones in
        the order of their indices; 0 for rows that share nothing.
    """
    device = rows.device
    if n_rows == 1:  # no other row: one neighbor of similarity zero keeps the shapes plain
        return torch.zeros(1, 1, dtype=torch.int64, device=device), torch.zeros(1, 1, device=device)
    counts = torch.bincount(rows, minlength=n_rows).float()  # (R,)
    shared_by = _shared(rows, columns, n_rows, n_columns)
    size = max(1, _CELLS // (n_rows + n_columns))
    part = max(1, _CACHED // (2 * n_rows)) if device.type == "cpu" else size
    kept = min(k, n_rows - 1)
    # Made once: many small results between large ones that are freed would leave the heap full of holes.
    neighbors = torch.empty(n_rows, kept, dtype=torch.int64, device=device)  # (R, k')
    similarities = torch.empty(n_rows, kept, device=device)  # (R, k')
    starts = range(0, n_rows, size)
    for start in progress_bar(starts, "neighbors", enabled=progress):
        many = torch.arange(start, min(start + size, n_rows), device=device)  # (B,)
        for block, shared in zip(many.split(part), shared_by(many).split(part), strict=True):  # (b,), (b, R)
            similarity = (counts[block][:, None] * counts).pow_(power / 2).add_(shrink)  # (b, R) denominators
            torch.div(shared, similarity, out=similarity).masked_fill_(shared == 0, 0.0)
            similarity[torch.arange(len(block), device=device), block] = -1.0  # never its own neighbor
            neighbors[block] = _first_largest(similarity, kept)  # (b, k')
            similarities[block] = similarity.gather(1, neighbors[block])  # (b, k')
    return neighbors, similarities


def _shared(rows: Tensor, columns: Tensor, n_rows: int, n_columns: int) -> Callable[[Tensor], Tensor]:
    """What counts the columns that some rows of a binary matrix share with every row: (b,) -> (b, R) float32.

    Where all counts fit in a block they are made at once, which takes half the work since they are symmetric.
    """
    if n_rows**2 <= _CELLS:
        order = columns.argsort(stable=True)  # (E,)
        crow = offsets(torch.bincount(columns, minlength=n_columns))  # (C + 1,)
        return _gram(crow, rows[order], n_rows, torch.float32).__getitem__
    order = rows.argsort(stable=True)  # (E,)
    crow, columns = offsets(torch.bincount(rows, minlength=n_rows)), columns[order]  # (R + 1,), (E,)
    ones = torch.ones(len(columns), device=columns.device)
    steps = int(
        torch.bincount(columns, minlength=n_columns).square().sum()
    )  # of a product of sparse matrices
    sparse = n_rows * len(columns) > _DENSE_IS_FASTER * steps

    whole = _csr(crow, columns, ones, n_columns)  # (R, C)

    def shared(block: Tensor) -> Tensor:
        place, local = take_rows(crow, block)
        if sparse:
            part_crow = offsets(crow[block + 1] - crow[block])  # (b + 1,)
            part = _csr(part_crow, columns[place], ones[: len(place)], n_columns)  # (b, C)
            return (part @ whole.mT).to_dense()  # (b, R)
        dense = torch.zeros(n_columns, len(block), device=columns.device)  # (C, b)
        dense[columns[place], local] = 1.0
        return (whole @ dense).mT  # (b, R)

    return shared


def _csr(crow: Tensor, columns: Tensor, values: Tensor, n_columns: int) -> Tensor:
    """A sparse matrix (R, n_columns) by rows: crow (R + 1,), columns (E,), values (E,)."""
    with warnings.catch_warnings():
        # What works here in the CSR format is long stable; torch says once that it is in beta.
        warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta")
        return torch.sparse_csr_tensor(
            crow, columns, values, (len(crow) - 1, n_columns), check_invariants=False
        )


def _first_largest(values: Tensor, k: int) -> Tensor:
    """Places of the k largest values of each row, (B, N) float32 -> (B, k) int64, largest first.

    Equal values come in their order, and where they meet the border of the list the first ones are in: what
    a stable sort gives, and ``torch.topk`` by itself does not promise.

    Args:
        values: at least 0, or -1.
        k: how many.
    """
    # The bits of a float that is not negative, read as an integer, are in the order of the floats. With the
    # place, counted backwards, as further digits no two keys are equal.
    keys = values.contiguous().view(torch.int32).long()  # (B, N)
    keys.mul_(2**32).sub_(torch.arange(values.shape[1], device=values.device))
    return keys.topk(k, dim=1).indices  # (B, k)
