"""Ridge regressions, one for each row of a sparse matrix: the half step of alternating least squares."""

import torch
from torch import Tensor

from recsys_lib.models.core.windows import by_length, rows_of

__all__ = ["solve_rows"]

_CELLS = 2**22  # numbers in the vectors of a block of rows, and in its square matrices: 16 MB


def solve_rows(
    crow: Tensor,
    others: Tensor,
    vectors: Tensor,
    penalty: Tensor,
    *,
    weights: Tensor | None = None,
    targets: Tensor | None = None,
    everywhere: Tensor | None = None,
) -> Tensor:
    """What explains each row best, given the vectors that its entries are with.

        x_r = (G + sum_e w_e v_e v_e' + diag(penalty_r))^-1 sum_e w_e y_e v_e

    over the entries e of row r, by Cholesky's method.

    Args:
        crow: (n + 1,) int64, where the entries of each row begin.
        others: (E,) int64, which of the vectors each entry is with.
        vectors: (m, d) v.
        penalty: (n, d) above zero.
        weights: (E,) w; one by default.
        targets: (E,) y; one by default.
        everywhere: (d, d) G, what is added to every system; nothing by default.

    Returns:
        (n, d); zeros for a row without entries.
    """
    lengths, dim = crow.diff(), vectors.shape[1]  # (n,)
    found = vectors.new_zeros(len(lengths), dim)  # (n, d)
    known = lengths.nonzero().squeeze(1)  # (r,)
    # Rows of like length are padded to one; a row of fewer than d entries costs its square matrix.
    size = lengths[known].clamp(min=dim)  # (r,)
    for batch in by_length(size, max(1, _CELLS // dim)):
        rows = known[batch]  # (b,)
        start, length = crow[rows], lengths[rows]  # (b,)
        there = torch.arange(int(length.max()), device=rows.device) < length[:, None]  # (b, T)
        w = there.to(vectors.dtype)  # (b, T)
        if weights is not None:
            w *= rows_of(weights, start, length)
        v = vectors[rows_of(others, start, length)]  # (b, T, d)
        weighted = v * w[:, :, None]  # (b, T, d)
        system = weighted.mT @ v  # (b, d, d)
        if everywhere is not None:
            system += everywhere
        system.diagonal(dim1=1, dim2=2).add_(penalty[rows])
        if targets is None:
            right = weighted.sum(dim=1)[:, :, None]  # (b, d, 1)
        else:
            right = weighted.mT @ rows_of(targets, start, length)[:, :, None]  # (b, d, 1)
        root = torch.linalg.cholesky(system)  # (b, d, d)
        found[rows] = torch.cholesky_solve(right, root).squeeze(2)  # (b, d)
    return found
