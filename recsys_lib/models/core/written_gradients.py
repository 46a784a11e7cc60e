"""Objectives of factors with their gradients written out, in place of autograd."""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from recsys_lib.losses import bce_loss, bce_slope, bpr_loss, bpr_slope
from recsys_lib.similarity import pair_products

__all__ = ["PairwiseObjective", "RowsObjective"]

_AT_ONCE = 1024  # examples whose gradient is written at once


class PairwiseObjective(torch.autograd.Function):
    """The objective of a batch of pairs, with its gradient written out.

    With the slopes c_ui = dL/ds_ui of the loss by the scores s_ui = p_u . q_i + b_i, and the penalty
    l2 / (2 B) on whatever each pair touches, the chain rule gives, summed over the pairs of the batch,

        dL/dp_u = sum_i c_ui q_i + l2/B p_u
        dL/dq_i = sum_u c_ui p_u + l2/B q_i
        dL/db_i = sum_u c_ui     + l2/B b_i

    Only rows that the batch touches are read, some at a time, so that they stay in a CPU's cache.

    Source: Rendle et al. 2009, section 4.3.1, where a batch is one pair.
    """

    @staticmethod
    def forward(
        ctx: Any, P: Tensor, Q: Tensor, b: Tensor, users: Tensor, pairs: Tensor, loss: str, l2: float
    ) -> Tensor:
        """The loss () of users (B,) and items (B, 1 + K), the chosen one first; l2 is divided by B."""
        P, Q, b = P.detach(), Q.detach(), b.detach()
        value, slope = (bpr_loss, bpr_slope) if loss == "bpr" else (bce_loss, bce_slope)
        times_u = l2 * torch.bincount(users, minlength=len(P)).to(P.dtype)  # (n_users,)
        times_i = l2 * torch.bincount(pairs.flatten(), minlength=len(Q)).to(P.dtype)  # (n_items,)
        dP, dQ, db = P * times_u[:, None], Q * times_i[:, None], b * times_i  # as P, Q and b
        total = times_u @ P.square().sum(dim=1) + times_i @ (Q.square().sum(dim=1) + b.square())  # ()
        total = total / 2
        for user, pair in zip(users.split(_AT_ONCE), pairs.split(_AT_ONCE), strict=True):
            p = functional.embedding(user, P)  # (b, d)
            scores = pair_products(p, Q, pair) + b[pair]  # (b, 1 + K)
            chosen, others = scores[:, 0], scores[:, 1:]  # (b,), (b, K)
            share = len(user) / len(users)
            c = slope(chosen, others).mul_(share)  # (b, 1 + K)
            total += share * value(chosen, others)
            dP.index_add_(0, user, functional.embedding_bag(pair, Q, mode="sum", per_sample_weights=c))
            for k in range(pair.shape[1]):
                dQ.index_add_(0, pair[:, k], p * c[:, k, None])
            db.index_add_(0, pair.flatten(), c.flatten())
        ctx.save_for_backward(dP, dQ, db)
        return total

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        """The gradients that ``forward`` has made, times that of the loss ()."""
        return *(upstream * made for made in ctx.saved_tensors), None, None, None, None


class RowsObjective(torch.autograd.Function):
    """The softmax loss of whole users, with its gradient written out.

    User u has n_u of the E events, y_ui is 1 for the items of these, and Z_ui is the softmax of u's scores:

        A_ui = (n_u Z_ui - y_ui) / E        dL/dP = A Q        dL/dQ = A' P        dL/db = sum_u A_u

    to which the penalty adds l2 n_u / E p_u and l2 / n_items q_i.

    Source: Liang et al. 2018, "Variational Autoencoders for Collaborative Filtering", eq. 2.
    """

    @staticmethod
    def forward(
        ctx: Any, P: Tensor, Q: Tensor, b: Tensor, users: Tensor, row: Tensor, items: Tensor, l2: float
    ) -> Tensor:
        """The loss () of events, each with its row (E,) of users (B,) and its item (E,)."""
        P, Q, b = P.detach(), Q.detach(), b.detach()
        share = torch.bincount(row, minlength=len(users)).to(P.dtype) / len(items)  # (B,) n_u / E
        p = P[users]  # (B, d)
        scores = torch.addmm(b, p, Q.mT)  # (B, n_items)
        log_z = scores.logsumexp(dim=1)  # (B,)
        chosen = scores[row, items].mean()  # ()
        A = scores.sub_(log_z[:, None]).exp_().mul_(share[:, None])  # (B, n_items)
        A.index_put_((row, items), A.new_tensor(-1 / len(items)), accumulate=True)
        penalty = l2 * share[:, None] * p  # (B, d)
        dP = torch.zeros_like(P).index_copy_(0, users, torch.addmm(penalty, A, Q))  # (n_users, d)
        dQ = torch.addmm(Q, A.mT, p, beta=l2 / len(Q))  # (n_items, d)
        ctx.save_for_backward(dP, dQ, A.sum(dim=0))
        return share @ log_z - chosen + 0.5 * ((penalty * p).sum() + l2 / len(Q) * Q.square().sum())

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        """The gradients that ``forward`` has made, times that of the loss ()."""
        return *(upstream * made for made in ctx.saved_tensors), None, None, None, None
