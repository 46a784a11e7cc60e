"""Forgetting people: exact for EASE, by a low-rank change of the inverse that it is made of."""

import torch
from torch import Tensor

from recsys_lib.arguments import Indices, integer_indices
from recsys_lib.data.ragged import offsets, row_of_each, take_rows
from recsys_lib.models.ease import EASE

__all__ = ["ease_weights", "forget_in_ease", "without_rows"]


def without_rows(inverse: Tensor, rows: Tensor) -> Tensor:
    """The inverse of a regularized Gram matrix after some rows of X are gone, without inverting again.

    With P = (X'X + l2 I)^-1 and the rows R that go, the identity of Woodbury gives

        (X'X - R'R + l2 I)^-1 = P + P R' (I - R P R')^-1 R P

    in n^2 k operations where an inverse takes n^3.

    Args:
        inverse: (n, n) P, float64 for agreement with a refit to the last digits.
        rows: (k, n) R, the rows of X that are taken out.

    Returns:
        (n, n), a new tensor.

    Raises:
        ValueError: shapes that do not belong together, or rows that X cannot have held: what is left would
            not be positive definite.

    Source: Woodbury 1950, "Inverting Modified Matrices"; Hager 1989, "Updating the Inverse of a Matrix",
    eq. 2.
    """
    if inverse.ndim != 2 or rows.ndim != 2 or inverse.shape != (rows.shape[1], rows.shape[1]):
        raise ValueError(
            f"needs an inverse (n, n) and rows (k, n), got {tuple(inverse.shape)} and {tuple(rows.shape)}"
        )
    rows = rows.to(inverse.dtype)
    half = rows @ inverse  # R P (k, n)
    core = torch.eye(len(rows), dtype=inverse.dtype, device=inverse.device) - half @ rows.mT  # (k, k)
    factor, failed = torch.linalg.cholesky_ex(core)
    if failed:
        raise ValueError(
            "these rows are not among those that the inverse was made of: without them it would not be "
            "positive definite"
        )
    return inverse + half.mT @ torch.cholesky_solve(half, factor)


def ease_weights(inverse: Tensor) -> Tensor:
    """EASE's item weights from P: B_ij = -P_ij / P_jj, zero on the diagonal; (n, n) of P's type."""
    weights = -inverse / inverse.diagonal()  # (n, n): column j divided by P_jj
    return weights.fill_diagonal_(0.0)


@torch.no_grad()
def forget_in_ease(model: EASE, inverse: Tensor, users: Indices) -> Tensor:
    """Takes people out of a fitted EASE: their histories, and all that they did to the weights.

    The model is then the one that a fit without them would give, up to rounding.

    Args:
        model: fitted, and changed in place.
        inverse: (n_items, n_items) P = (X'X + l2 I)^-1 of the people that it still knows, with the model's
            ``l2``, as ``models.ease.gram_inverse`` makes it. Keep it beside the model: float64,
            8 n_items^2 bytes.
        users: (k,) who are to be forgotten.

    Returns:
        (n_items, n_items) P without them, for the next one who asks.

    Raises:
        NotFittedError, TypeError, IndexError, ValueError: as ``score`` and ``without_rows``.
    """
    gone = model._check_users(integer_indices(users, "users").to(model.device)).unique()  # (k,)
    crow, items, weights = model.history_crow, model.history_items, model.history_weights
    place, row = take_rows(crow, gone)  # (E',), (E',)
    rows = torch.zeros(len(gone), model.n_items, dtype=inverse.dtype, device=inverse.device)  # (k, n_items)
    rows[row.to(inverse.device), items[place].to(inverse.device)] = 1.0
    left = without_rows(inverse, rows)  # (n_items, n_items)
    stays = ~torch.isin(row_of_each(crow), gone)  # (E,)
    lengths = crow.diff()  # (n_users,)
    lengths[gone] = 0
    model._keep("history_crow", offsets(lengths))
    model._keep("history_items", items[stays])
    model._keep("history_weights", weights[stays])
    model._keep("item_weights", ease_weights(left).float().to(model.device))
    return left
