"""What another policy would have earned, from the log of the one that ran.

Each row is a list that was shown, each column a place, and a list earns the sum of its places. Give rewards
(N,) or (N, 1) where a row is a single choice, or a whole list with one weight.

A weight is how much more often the new policy does what was logged: P_new / P_logged. What "what was logged"
means is an assumption about clicks, and the coarser it is, the smaller the weights (Li, Abbasi-Yadkori,
Kveton, Muthukrishnan, Vinay, Wen 2018, "Offline Evaluation of Ranking Policies with Click Models"):

- the whole list: rewards (N,) of lists, weights ``list_weights``; assumes nothing;
- an item at its place: rewards (N, k) of places, weights P_new(i at j) / P_logged(i at j); assumes that a
  click depends on no other item;
- an item that is looked at: rewards (N, k), weights looked_at_new(i) / looked_at_logged(i); assumes the
  position-based model with its chances known.

Every estimator is unbiased, or says what it is.
"""

import math
from statistics import NormalDist
from typing import NamedTuple

from torch import Tensor

from recsys_lib.evaluation import Estimate

__all__ = ["PolicyValue", "doubly_robust", "ips", "list_weights", "naive", "replay", "snips"]


class PolicyValue(NamedTuple):
    """An estimate of what a policy earns a list.

    Attributes:
        value: the estimate.
        low: lower end of its 95 % interval, by the normal distribution.
        high: upper end.
        error: its standard error.
        n: lists behind it.
    """

    value: float
    low: float
    high: float
    error: float
    n: int

    def __format__(self, spec: str) -> str:
        """The value with its interval, as ``evaluation.Estimate`` writes it."""
        return format(Estimate(self.value, self.low, self.high), spec)


def naive(rewards: Tensor) -> PolicyValue:
    """What the logged lists earned: the value of the policy that ran, whatever is asked about another one.

    Args:
        rewards: (N,) or (N, k).
    """
    return _mean(_places(rewards, "rewards").sum(dim=1))


def replay(rewards: Tensor, agrees: Tensor) -> PolicyValue:
    """The mean over the logged lists that the new policy would have shown as well; the others do not count.

    Unbiased where lists were logged uniformly. Elsewhere it is about the cases in which the two agree.

    Source: Li, Chu, Langford, Wang 2011, "Unbiased Offline Evaluation of Contextual-Bandit-Based News Article
    Recommendation Algorithms".

    Args:
        rewards: (N,) or (N, k).
        agrees: (N,) bool; with (N, k) places are counted one by one: for each the mean over the lists that
            agree there.

    Raises:
        ValueError: they agree nowhere.
    """
    return snips(rewards, agrees.double())


def ips(rewards: Tensor, weights: Tensor, *, clip: float = math.inf) -> PolicyValue:
    """Inverse propensity scoring: mean of sum_j min(w_j, clip) r_j. Unbiased without a clip.

    It needs a logging policy that may do whatever the new one does; where it may not, the estimate is too
    low. With a clip it is biased, towards zero for rewards that are not negative, and steadier.

    Source: Horvitz and Thompson 1952; Swaminathan and Joachims 2015, "Counterfactual Risk Minimization"
    (the clip).

    Args:
        rewards: (N,) or (N, k).
        weights: of the same shape.
        clip: the largest weight.
    """
    r, w = _both(rewards, weights)  # (N, k), (N, k)
    if not clip > 0:
        raise ValueError(f"clip must be above 0, got {clip}")
    return _mean((w.clamp(max=clip) * r).sum(dim=1))


def snips(rewards: Tensor, weights: Tensor, looks: Tensor | None = None) -> PolicyValue:
    """Self-normalized: sum_j (sum_n w r / sum_n w). Weights divide by what they sum to, not by N.

    Weights of looks have a mean of 1 over all places together, not at each: there it is

        (sum_j examined_j) (sum_n sum_j w r) / (sum_n sum_j w examined_j)

    Never beyond the rewards that were seen. Biased, by less and less as N grows. The standard error is that
    of a ratio of means.

    Source: Swaminathan and Joachims 2015, "The Self-Normalized Estimator for Counterfactual Learning".

    Args:
        rewards: (N,) or (N, k).
        weights: of the same shape.
        looks: (k,) examined, for weights of looks.

    Raises:
        ValueError: all weights of a place are zero: the log says nothing about the new policy.
    """
    r, w = _both(rewards, weights)  # (N, k), (N, k)
    if looks is not None:
        examined = looks.detach().cpu().double()  # (k,)
        if examined.shape != r.shape[1:]:
            raise ValueError(f"looks must be ({r.shape[1]},), one a place; got {tuple(looks.shape)}")
        all_looks = float(examined.sum())
        r, w = (w * r).sum(dim=1)[:, None], (w @ examined)[:, None] / all_looks  # (N, 1), (N, 1)
        r = r / w.masked_fill(w == 0, 1.0)  # (N, 1)
    total = w.sum(dim=0)  # (k,)
    if bool((total == 0).any()):
        place = int((total == 0).nonzero()[0, 0])
        raise ValueError(
            f"every weight at place {place} is zero: nothing that the new policy would show there was logged"
        )
    value = (w * r).sum(dim=0) / total  # (k,)
    return _mean((w * (r - value) / (total / len(r))).sum(dim=1), float(value.sum()))


def doubly_robust(rewards: Tensor, weights: Tensor, logged: Tensor, new: Tensor) -> PolicyValue:
    """A model's guess for the new policy, corrected by its weighted errors on the log.

        mean over n of  new_n + sum_j w_j (r_j - logged_j)

    Unbiased if the weights are right, whatever the model says; and if the model is right, whatever the
    weights are. The better the model, the less the weights have to correct.

    Source: Dudik, Langford, Li 2011, "Doubly Robust Policy Evaluation and Learning".

    Args:
        rewards: (N,) or (N, k).
        weights: of the same shape.
        logged: of the same shape, the model's expected reward of what was shown.
        new: (N,) the model's expected reward of the new policy's list, all places together.
    """
    r, w = _both(rewards, weights)  # (N, k), (N, k)
    model, target = _places(logged, "logged"), new.detach().cpu().double()  # (N, k), (N,)
    if model.shape != r.shape or target.shape != r.shape[:1]:
        raise ValueError(
            f"logged must be {tuple(r.shape)} and new ({len(r)},); "
            f"got {tuple(model.shape)} and {tuple(target.shape)}"
        )
    return _mean(target + (w * (r - model)).sum(dim=1))


def list_weights(new: Tensor, logged: Tensor) -> Tensor:
    """Weights of whole lists, the product over places: (N, k), (N, k) -> (N,).

    Args:
        new: chances of each item given those above, under the new policy; see ``Shown.given_above``.
        logged: the same under the policy that ran, all above 0.
    """
    if new.shape != logged.shape or not bool((logged > 0).all()):
        raise ValueError("the chances must have one shape, and those of what was logged must be above 0")
    return (new / logged).prod(dim=1)


def _mean(values: Tensor, value: float | None = None) -> PolicyValue:
    """Mean (or ``value``) with the standard error of what each list (N,) adds to it."""
    n = len(values)
    value = float(values.mean()) if value is None else value
    error = float(values.std()) / math.sqrt(n) if n > 1 else math.nan
    half = NormalDist().inv_cdf(0.975) * error
    return PolicyValue(value, value - half, value + half, error, n)


def _both(rewards: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    r, w = _places(rewards, "rewards"), _places(weights, "weights")
    if r.shape != w.shape:
        raise ValueError(f"every reward needs a weight; got shapes {tuple(r.shape)} and {tuple(w.shape)}")
    if not bool(w.isfinite().all()) or bool((w < 0).any()):
        raise ValueError("a weight is negative or not finite: was something logged that had no chance?")
    return r, w


def _places(x: Tensor, name: str) -> Tensor:
    """(N, k) float64 on the CPU; at least one row."""
    x = x.detach().cpu().double()
    x = x[:, None] if x.ndim == 1 else x
    if x.ndim != 2 or not len(x):
        raise ValueError(f"{name} must be (N,) or (N, k) with a row for each list; got {tuple(x.shape)}")
    return x
