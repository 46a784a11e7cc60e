"""BPR one positive at a time, as its paper has it, in a loop that numba compiles."""

import math
import time
import warnings
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from recsys_lib.data import Interactions
from recsys_lib.models.core.options import option, preset
from recsys_lib.models.factorization import BPR, Positives
from recsys_lib.training import EarlyStopping, Validation, batches, passes

__all__ = ["CompiledBPR"]

Rows = NDArray[np.floating[Any]]


class CompiledBPR(BPR):
    """``BPR`` with a step for each positive, in a compiled loop: sooner good on a CPU than any batch is.

    The objective is that of ``BPR`` with ``batch_size=1``: a positive (u, i), its K negatives j, and the
    penalty on whatever they touch. With c_j = sigma(s_uj - s_ui) / K and c_i = -sum_j c_j the gradient is

        dL/dp_u = sum_k c_k q_k + l2 p_u        dL/dq_k = c_k p_u + l2 q_k        dL/db_k = c_k + l2 b_k

    for k = i and all j. Adagrad takes the steps, with one sum for each vector: x falls by
    learning_rate g / sqrt(1 + the sum over its steps of the mean square of g). A vector that is met often so
    moves less each time, and one that is rare still moves; with a rate for each number instead, an epoch took
    three times as long and led to the same place.

    Every step reads what the one
    before has written, so the loop runs on one core of the CPU, wherever the model lives; on other devices it
    works on a copy, of which each epoch ends with one. A negative that is drawn twice for one positive takes
    two steps.

    Needs numba: ``pip install "recsys-lib[fast]"``; only ``fit`` does, a fitted model is loaded without. The
    first ``fit`` on a machine compiles the loop, a second or two, and numba keeps it beside the
    library or, where that cannot be written, in its own folder of the user.

    Source: Rendle, Freudenthaler, Gantner, Schmidt-Thieme 2009, "BPR: Bayesian Personalized Ranking from
    Implicit Feedback", figure 4; Duchi, Hazan, Singer 2011, "Adaptive Subgradient Methods for Online Learning
    and Stochastic Optimization", with one sum a vector.
    """

    learning_rate: float = option("of Adagrad", default=0.2, above=0)
    n_negatives: int = option(default=2)
    batch_size: int = option("positives whose negatives are drawn at once", default=32_768, at_least=1)
    gradient: str = preset(default="written")
    whole_users: bool = preset(default=False)

    def _place(self, interactions: Interactions) -> torch.device:
        return torch.device("cpu")

    @torch.no_grad()
    def _train(
        self, examples: Positives, generator: torch.Generator, look: Validation | None, progress: bool
    ) -> None:
        step_through = _compiled()
        if self._start is not None:
            if self._start.rates or self._start.frozen:
                raise ValueError(
                    "CompiledBPR moves all parts at one rate, so its start_from takes neither rates nor "
                    "frozen; BPR takes both"
                )
            self._start.copy_into(self, self.n_items, self.item_ids)
        name = type(self).__name__
        if not len(examples.users):
            warnings.warn(
                f"{name}: there is nothing to learn from, so the parameters keep their first values; "
                f"is there a user who does not have every item?",
                stacklevel=2,
            )
            self.stopped_by = "nothing to learn"
            return
        sums = [torch.ones(len(x), dtype=x.dtype, device="cpu").numpy() for x in self.parameters()]
        stopping = EarlyStopping(self.patience if look is None else look.patience)
        began, looked = time.monotonic(), 0
        self.log = []

        def looks(epoch: int) -> bool:
            """Looks at validation; True when training should stop."""
            nonlocal looked
            assert look is not None
            looked = epoch
            self.log[-1][look.name] = look.measure()
            return stopping.step(self.log[-1][look.name], epoch, self)

        self.stopped_by, epoch = "epochs", 0
        for epoch in passes(self.epochs, name, max_seconds=self.max_seconds, progress=progress):
            loss = self._epoch(step_through, examples, generator, sums)
            self.log.append({"epoch": float(epoch), "loss": loss})
            if not (math.isfinite(loss) and all(bool(x.isfinite().all()) for x in self.parameters())):
                raise FloatingPointError(
                    f"{name}: a parameter or the loss is not finite in epoch {epoch}: training has diverged; "
                    f"lower learning_rate={self.learning_rate:g}"
                )
            if look is not None and (epoch == self.epochs or epoch % look.every == 0) and looks(epoch):
                self.stopped_by = "patience"
                break
        if self.stopped_by == "epochs" and epoch < self.epochs:
            over = self.max_seconds is not None and time.monotonic() - began > self.max_seconds
            self.stopped_by = "time" if over else "interrupt"
            if look is not None and looked != epoch:
                looks(epoch)
        self.best_epoch = epoch
        if look is not None:
            stopping.restore(self)
            self.best_epoch = stopping.best_step

    def _epoch(
        self,
        step_through: Callable[..., float],
        examples: Positives,
        generator: torch.Generator,
        sums: list[Rows],
    ) -> float:
        """A step for each positive, in a new order; returns the mean loss, with its penalty."""
        parameters = list(self.parameters())
        arrays = [x.detach().cpu().contiguous().numpy() for x in parameters]
        real, total = arrays[0].dtype.type, 0.0
        rate, l2 = real(self.learning_rate), real(self.l2)
        for batch in batches(len(examples.users), self.batch_size, generator):
            users, items = examples.users[batch], examples.items[batch]  # (B,), (B,)
            others = examples.sampler.sample(users, self.n_negatives, generator)  # (B, K)
            pairs = torch.cat([items[:, None], others], dim=1)  # (B, 1 + K)
            total += step_through(*arrays, *sums, users.cpu().numpy(), pairs.cpu().numpy(), rate, l2)
            if self.negatives == "hard":  # which asks the model
                self._take(arrays)
        self._take(arrays)
        return total / len(examples.users)

    def _take(self, arrays: list[Rows]) -> None:
        """Gives the model what the steps have made; nothing is moved where it shares their memory."""
        for parameter, array in zip(self.parameters(), arrays, strict=True):
            parameter.copy_(torch.from_numpy(array))


def one_by_one(
    P: Rows,
    Q: Rows,
    b: Rows,
    sum_P: Rows,
    sum_Q: Rows,
    sum_b: Rows,
    users: NDArray[np.int64],
    pairs: NDArray[np.int64],
    rate: Any,
    l2: Any,
) -> float:
    """Takes a step for each row of pairs, in their order, in place; see ``CompiledBPR``.

    It is plain Python on arrays, which numba compiles: loops over the d numbers of a vector become a few
    instructions each.

    Args:
        P: (n_users, d) floats.
        Q: (n_items, d) of the same type.
        b: (n_items,) of the same type.
        sum_P: (n_users,) one and the squares so far; sum_Q and sum_b (n_items,) as well.
        sum_Q: see there.
        sum_b: see there.
        users: (B,) of the positives.
        pairs: (B, 1 + K) the chosen item and the K others.
        rate: a number of their type, as l2.
        l2: weight of the penalty.

    Returns:
        The loss with its penalty, summed over the rows, each before its step.
    """
    dim, width = P.shape[1], pairs.shape[1]
    slope = np.zeros(width, P.dtype)  # by the score of each item
    step = np.zeros(dim, P.dtype)  # the gradient by the user's vector
    none = rate - rate  # zero, of the arrays' type
    total = 0.0
    for row in range(len(users)):
        u = users[row]
        slope[0] = none
        for k in range(width):
            item = pairs[row, k]
            score, squares = b[item], b[item] * b[item]
            for f in range(dim):
                score += P[u, f] * Q[item, f]
                squares += Q[item, f] * Q[item, f]
            total += 0.5 * l2 * squares
            if k == 0:
                chosen = score
                continue
            behind = score - chosen
            total += (max(behind, 0.0) + math.log1p(math.exp(-abs(behind)))) / (width - 1)
            slope[k] = 1 / ((1 + math.exp(-behind)) * (width - 1))
            slope[0] -= slope[k]

        squares = none
        for f in range(dim):
            squares += P[u, f] * P[u, f]
            step[f] = l2 * P[u, f]
        total += 0.5 * l2 * squares
        for k in range(width):
            item, c = pairs[row, k], slope[k]
            squares = none
            for f in range(dim):
                step[f] += c * Q[item, f]
                g = c * P[u, f] + l2 * Q[item, f]
                squares += g * g
            sum_Q[item] += squares / dim
            share = P.dtype.type(rate / math.sqrt(sum_Q[item]))
            for f in range(dim):
                Q[item, f] -= share * (c * P[u, f] + l2 * Q[item, f])
            g = c + l2 * b[item]
            sum_b[item] += g * g
            b[item] -= rate * g / math.sqrt(sum_b[item])
        squares = none
        for f in range(dim):
            squares += step[f] * step[f]
        sum_P[u] += squares / dim
        share = P.dtype.type(rate / math.sqrt(sum_P[u]))
        for f in range(dim):
            P[u, f] -= share * step[f]
    return total


@cache
def _compiled() -> Callable[..., float]:
    """``one_by_one``, compiled when it is first called; numba is imported here and nowhere else."""
    try:
        import numba
    except ImportError as error:
        raise ImportError(
            'CompiledBPR needs numba, which is not installed: pip install "recsys-lib[fast]", or numba. '
            "BPR learns the same without it, in batches."
        ) from error
    # Sums may be taken in another order, several at a time; a number that is not finite stays one.
    options: dict[str, Any] = {"fastmath": {"reassoc", "contract", "nsz"}}
    try:
        return numba.njit(cache=True, **options)(one_by_one)
    except RuntimeError:  # there is no folder to keep it in: it is compiled anew in each process
        return numba.njit(**options)(one_by_one)
