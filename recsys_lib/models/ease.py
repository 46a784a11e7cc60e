"""EASE: a linear model of items from items, in closed form."""

import warnings

import torch
from torch import Tensor
from torch.nn import functional

from recsys_lib.data import Interactions
from recsys_lib.data.ragged import offsets, row_of_each
from recsys_lib.devices import total_memory
from recsys_lib.models.core.histories import RecencyWeighted
from recsys_lib.models.core.options import learned, option

__all__ = ["EASE", "gram_inverse"]

_CELLS = 2**22  # of a block of co-occurrence counts
_CACHED = 2**20  # of a block that a core keeps near, 4 MB
_BYTES = 13  # a cell of n_items^2: P in float64, and beside it B in float32 or X'M in float64
_FEW_USERS = 0.6  # users for each item, below which their square matrix is the cheaper one to invert

# A product of sparse matrices takes one step for each pair of items in a history, a product with dense
# columns one for each item and event. The latter are vectorized, and this many times as fast.
_DENSE_IS_FASTER = 64


class EASE(RecencyWeighted):
    """Embarrassingly shallow autoencoder: every item predicted from the user's other items.

    Given the binary matrix X (users, items), find the item-item weights B that reproduce it best, when no
    item may predict itself:

        min_B |X - X B|^2 + l2 |B|^2,   diag(B) = 0

    Lagrange multipliers for the diagonal give, with P = (X'X + l2 I)^-1, the solution

        B_ij = -P_ij / P_jj for i != j,   B_ii = 0

    and the scores of a user are x B. With ``recency`` or ``half_life_days`` the x that is scored weighs
    recent events more; B is learned from all events alike (weighing them there as well gained nothing on
    validation data).

    A user without events scores zero everywhere: the model has no opinion. Fitting takes n_items^3 operations
    and 13 n_items^2 bytes, of which 4 n_items^2 are kept: a fraction of a second for 2,000 items, minutes and
    5 GB for 20,000. Where users are few it is less, where they are many little more. A catalog that cannot
    fit in memory is refused at once.

    A ``recency`` around 0.5 helps wherever taste drifts.

    Source: Steck 2019, "Embarrassingly Shallow Autoencoders for Sparse Data", eqs. 4 to 8.
    """

    # Above zero: items without events make X'X singular.
    l2: float = option("regularization, in the unit of item counts", default=200.0, above=0)

    item_weights: Tensor = learned("(n_items, n_items) float32, B")

    def _fit(self, interactions: Interactions, validation: Interactions | None, progress: bool) -> None:
        _refuse_too_many(self.n_items, interactions.items.device)
        events = self._keep_histories(interactions)
        P = _inverse(events.crow, events.items, self.n_items, self.l2)  # (I, I) up to a factor
        B = P.div_(-P.diagonal().clone())  # (I, I): column j divided by -P_jj
        B.fill_diagonal_(0.0)
        self._keep("item_weights", B.float())

    def _score_histories(self, crow: Tensor, items: Tensor, weights: Tensor) -> Tensor:
        # The sum of the rows of B that the history names, which is x B without the zeros of x.
        return functional.embedding_bag(
            items, self.item_weights, crow, mode="sum", per_sample_weights=weights, include_last_offset=True
        )  # (B, n_items)


def gram_inverse(crow: Tensor, items: Tensor, n_items: int, l2: float) -> Tensor:
    """P = (X'X + l2 I)^-1 of a binary matrix X: (n_items, n_items) float64 where the device has it.

    Args:
        crow: (n_users + 1,) int64, where each user's items begin.
        items: (E,) int64, each user's distinct items.
        n_items: size of the catalog.
        l2: above zero.

    Raises:
        MemoryError: it would not fit in memory.
    """
    _refuse_too_many(n_items, items.device)
    return _invert(_gram(crow, items, n_items), l2)


def _refuse_too_many(n_items: int, device: torch.device) -> None:
    """Raises MemoryError where the square matrices are larger than all of the device's memory."""
    needed, there = _BYTES * n_items**2, total_memory(device)
    if there is not None and needed > there:
        raise MemoryError(
            f"EASE needs {_BYTES} n_items^2 bytes, {needed / 1e9:,.1f} GB for {n_items:,} items, and this "
            f"machine has {there / 1e9:,.1f} GB; leave out rare items (recsys_lib.data.min_counts), or take "
            f"ItemKNN or MatrixFactorization, whose memory grows with n_items and not with its square"
        )


def _inverse(crow: Tensor, items: Tensor, n_items: int, l2: float) -> Tensor:
    """P = (X'X + l2 I)^-1 up to a factor, which B does not feel: (n_items, n_items).

    With fewer users than items the users' matrix is inverted in place of the items' (the identity of
    Woodbury, here exact up to rounding):

        (X'X + l2 I)^-1 = (I - X' (XX' + l2 I)^-1 X) / l2
    """
    device = items.device
    lengths = crow.diff()  # (n_users,)
    lengths = lengths[lengths > 0]  # (U,) a user without events has no part in X'X
    crow, n_users = offsets(lengths), len(lengths)
    # In float32, where a device has nothing better, the difference would lose too much.
    if n_users > _FEW_USERS * n_items or device.type == "mps":
        return _invert(_gram(crow, items, n_items), l2)
    users = row_of_each(crow)  # (E,)
    order = items.argsort(stable=True)  # (E,)
    by_item = offsets(torch.bincount(items, minlength=n_items))  # (I + 1,)
    M = _invert(_gram(by_item, users[order], n_users), l2)  # (U, U)
    matrix = torch.sparse_coo_tensor(
        torch.stack([items[order], users[order]]),
        torch.ones_like(items, dtype=M.dtype),
        (n_items, n_users),
        is_coalesced=True,
        check_invariants=False,
    )  # X' (I, U)
    half = torch.sparse.mm(matrix, M)  # X'M (I, U)
    del M
    P = torch.empty(n_items, n_items, dtype=half.dtype, device=device)  # (I, I)
    step = max(1, _CELLS // (2 * n_items))
    for start in range(0, n_items, step):
        rows = half[start : start + step]  # (b, U)
        P[:, start : start + step] = torch.sparse.mm(matrix, rows.mT.contiguous()).neg_()  # (I, b)
    P.diagonal().add_(1.0)
    return P


def _invert(gram: Tensor, l2: float) -> Tensor:
    """The inverse of gram + l2 I (n, n), which is written over."""
    gram.diagonal().add_(l2)
    # Symmetric and positive definite: Cholesky is twice as fast as a general inverse and more exact. LAPACK
    # goes by columns, so in the transposed view it makes no copy; the result is symmetric to the last bit.
    columns = gram.mT  # (n, n)
    torch.linalg.cholesky(columns, out=columns)
    torch.cholesky_inverse(columns, out=columns)
    return gram


def _width(rows: int, device: torch.device) -> int:
    """Columns of the dense blocks, of so many rows in all, that go into and come out of a sparse product.

    A CPU has it sooner where both stay in a core's cache: with half a million cells each, in half the time.
    Below 32 columns, what comes with every product costs more than that.
    """
    cells = max(_CACHED, 32 * rows) if device.type == "cpu" else _CELLS
    return max(1, min(cells, _CELLS) // rows)


def _gram(crow: Tensor, items: Tensor, n_items: int, dtype: torch.dtype | None = None) -> Tensor:
    """X'X (n_items, n_items) of a binary matrix X.

    It counts in float32, which is exact below 2^24 users with the same two items, a block of columns at a
    time. What is held beside the result grows neither with the users nor with the longest history squared.

    Args:
        crow: (n_users + 1,) int64, where each user's items begin.
        items: (E,) int64, each user's distinct items.
        n_items: size of the catalog.
        dtype: of the result; by default float64 where the device has it, since an inverse in float32 loses
            digits.
    """
    device = items.device
    mps = device.type == "mps"  # has neither float64 nor products of sparse matrices
    users = row_of_each(crow)  # (E,)
    order = items.argsort(stable=True)  # (E,)
    if mps:
        crow, items, users, order = crow.cpu(), items.cpu(), users.cpu(), order.cpu()
    users, items = users[order], items[order]  # (E,) by item
    n_users, lengths = len(crow) - 1, crow.diff()  # (n_users,)
    item_crow = offsets(torch.bincount(items, minlength=n_items))  # (n_items + 1,)
    ones = torch.ones(len(items), device=items.device)

    def sparse(rows: Tensor, columns: Tensor, size: tuple[int, int]) -> Tensor:
        return torch.sparse_coo_tensor(
            torch.stack([rows, columns]), ones[: len(rows)], size, check_invariants=False
        ).coalesce()

    dense = n_items * len(items) < _DENSE_IS_FASTER * int(lengths.square().sum())
    step = _width(n_items + n_users, device) if dense else max(1, _CELLS // n_items)  # items at a time
    if dtype is None:
        dtype = torch.float32 if mps else torch.float64
    gram = torch.zeros(n_items, n_items, dtype=dtype, device=items.device)
    if not dense:
        matrix = sparse(items, users, (n_items, n_users))  # X' (I, U)
    for start in range(0, n_items, step):
        stop = min(start + step, n_items)
        first, last = int(item_crow[start]), int(item_crow[stop])
        user, item = users[first:last], items[first:last] - start  # (E',), (E',)
        size = (n_users, stop - start)
        with warnings.catch_warnings():
            # What works here in the CSR format is long stable; torch says once that it is in beta.
            warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta")
            if not dense:
                gram[:, start:stop] = torch.sparse.mm(matrix, sparse(user, item, size)).to_dense()  # (I, b)
                continue
            block = torch.zeros(size, device=items.device)  # (U, b)
            block[user, item] = 1.0
            # The result is symmetric: the items before these have been counted with them.
            lower = torch.sparse_csr_tensor(
                item_crow[start:] - first,
                users[first:],
                ones[first:],
                (n_items - start, n_users),
                check_invariants=False,
            )
            counts = lower @ block  # (I - start, b)
            gram[start:, start:stop] = counts
            gram[start:stop, stop:] = counts[stop - start :].mT
    return gram.to(device)
