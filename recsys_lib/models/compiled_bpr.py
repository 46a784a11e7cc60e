"""BPR one positive at a time, as its paper has it, in a loop that numba compiles."""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from recsys_lib.data import Interactions
from recsys_lib.models.core.options import option, preset
from recsys_lib.models.factorization import BPR, Positives
from recsys_lib.training import Steps, batches

__all__ = ["CompiledBPR"]

Rows = NDArray[np.floating[Any]]


@dataclass(frozen=True)
class _Counted(Positives):
    """Positives, and for each parameter one and the squares so far of each of its rows."""

    sums: list[Rows]


class CompiledBPR(BPR):
    """``BPR`` with a step for each positive, in a compiled loop: sooner good on a CPU than any batch is.

    The objective is that of ``BPR`` with ``batch_size=1``: a positive (u, i), its K negatives j, and the
    penalty on whatever they touch. With c_j = sigma(s_uj - s_ui) / K and c_i = -sum_j c_j the gradient is

        dL/dp_u = sum_k c_k q_k + l2 p_u        dL/dq_k = c_k p_u + l2 q_k        dL/db_k = c_k + l2 b_k

    for k = i and all j. Adagrad takes the steps, with one sum for each vector: x falls by
    learning_rate g / sqrt(1 + the sum over its steps of the mean square of g). A vector that is met often so
    moves less each time, and one that is rare still moves; with a rate for each number instead, an epoch took
    three times as long and led to the same place.

    Every step reads what the one before has written, so the loop runs on one core of the CPU, wherever the
    model lives; on other devices it works on a copy, and each batch of positives ends with one. A negative
    that is drawn twice for one positive takes two steps.

    Needs numba: ``pip install "recsys-lib[fast]"``; only ``fit`` does, a fitted model is loaded without. The
    first ``fit`` on a machine compiles the loop, a second or two, and numba keeps it beside the library or,
    where that cannot be written, in its own folder of the user.

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

    def start_from(
        self,
        other: nn.Module,
        parts: Sequence[str] | Mapping[str, str],
        *,
        rates: Mapping[str, float] | None = None,
        frozen: Iterable[str] | Mapping[str, int | None] | None = None,
    ) -> Self:
        """As ``TrainedRecommender.start_from`` has it, without rates and frozen parts.

        Raises:
            ValueError: rates or frozen parts are given.
        """
        if rates or frozen:
            raise ValueError(
                "CompiledBPR moves all parts at one rate, so its start_from takes neither rates nor frozen; "
                "BPR takes both"
            )
        return super().start_from(other, parts)

    def prepare(self, events: Interactions, generator: torch.Generator) -> Positives:
        """As ``BPR`` does, once numba is found; each vector's sum of squares begins at one."""
        _compiled()
        found = super().prepare(events, generator)
        sums = [torch.ones(len(x), dtype=x.dtype, device="cpu").numpy() for x in self.parameters()]
        return _Counted(found.users, found.items, found.sampler, sums)

    def steps(self, examples: Positives) -> Steps:
        """They are taken in ``losses``."""
        return Steps(own=True)

    @torch.no_grad()
    def losses(self, examples: Positives, generator: torch.Generator) -> Iterator[tuple[Tensor, int]]:
        """Takes a step for each positive, in a new order; of each batch its mean loss, with the penalty."""
        assert isinstance(examples, _Counted)
        parameters = list(self.parameters())
        arrays = [x.detach().cpu().contiguous().numpy() for x in parameters]  # of a CPU the own memory
        real = arrays[0].dtype.type
        rate, l2 = real(self.learning_rate), real(self.l2)
        for batch in batches(len(examples.users), self.batch_size, generator):
            users, items = examples.users[batch], examples.items[batch]  # (B,), (B,)
            others = examples.sampler.sample(users, self.n_negatives, generator)  # (B, K)
            pairs = torch.cat([items[:, None], others], dim=1)  # (B, 1 + K)
            both = users.cpu().numpy(), pairs.cpu().numpy()
            total = _compiled()(*arrays, *examples.sums, *both, rate, l2)
            for parameter, array in zip(parameters, arrays, strict=True):
                parameter.copy_(torch.from_numpy(array))
            yield torch.tensor(total / len(batch), device=generator.device), len(batch)


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
