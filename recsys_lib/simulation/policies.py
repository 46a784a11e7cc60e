"""How scores become lists, and with which chance each list might have been another one.

A log of lists can correct for what its recommender chose to show, if that choice was in part a matter of
known chance. So a policy returns lists *and* the chances of what it put there, or says that it has none.

Scores are (B, n_items); ``-inf`` marks what may not be shown.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from recsys_lib.arguments import whole_number
from recsys_lib.ranking import rank_topk
from recsys_lib.simulation.world import random_like

__all__ = ["Boltzmann", "EpsilonGreedy", "Greedy", "Policy", "Shown", "ThompsonSampling", "UniformLists"]


@dataclass(frozen=True)
class Shown:
    """Lists, and the chances with which the policy put there what it did.

    Attributes:
        items: (B, k) int64; -1 where a person has no item left.
        at_place: (B, k) the chance that the item stands at its place, whatever stands above it; 1 where no
            item was left. None where the policy has no formula for it.
        given_above: (B, k) the chance that it does, given the items above. Their product is the chance of
            the whole list. None where the policy has no formula for it.
    """

    items: Tensor
    at_place: Tensor | None = None
    given_above: Tensor | None = None


class Policy(ABC):
    """Makes lists of scores. A subclass implements ``draw``, and the chances that it has.

    Attributes:
        wants_samples: whether the scores that it is given are to be drawn from what the model holds possible.
    """

    wants_samples = False

    def show(self, scores: Tensor, k: int, generator: torch.Generator) -> Shown:
        """Lists of ``k`` items with their chances.

        Args:
            scores: (B, n_items) real.
            k: places.
            generator: of the chances.

        Raises:
            TypeError, ValueError: a ``k`` that is no whole number or out of range, scores that are NaN, or
                fewer items than the policy needs; the message names the row.
        """
        items = self.draw(scores, _checked(scores, k), generator)  # (B, k)
        return Shown(items, self.at_place(scores, items), self.given_above(scores, items))

    @abstractmethod
    def draw(self, scores: Tensor, k: int, generator: torch.Generator) -> Tensor:
        """Lists (B, k) int64."""

    def at_place(self, scores: Tensor, lists: Tensor) -> Tensor | None:
        """The chance that each item of given lists (B, k) would stand at its place: (B, k), or None."""
        return None

    def given_above(self, scores: Tensor, lists: Tensor) -> Tensor | None:
        """The same given the items above, whose product is the chance of the list: (B, k), or None."""
        return None

    def looked_at(self, scores: Tensor, examined: Tensor) -> Tensor | None:
        """The chance that each item is shown and looked at: (B, n_items), or None.

        Args:
            scores: (B, n_items).
            examined: (k,) the chance that each place is looked at.
        """
        return None


class EpsilonGreedy(Policy):
    """The best items, but each place is given away with chance ``epsilon``, to an item outside the list.

    The places are decided one by one, independently; those given away get different items, drawn uniformly
    from the M that are not among the best. By symmetry

        P(i at j) = 1 - epsilon   if i is the best item of place j
                    epsilon / M   if i is outside the list
                    0             if i is the best item of another place

    So a log of it is blind for lists that have the best items in another order, if one asks place by place;
    every item, though, may be looked at somewhere, see ``looked_at``.

    Args:
        epsilon: from 0 to 1.
        seed: orders equal scores, see ``ranking.rank_topk``.
    """

    def __init__(self, epsilon: float, *, seed: int = 0) -> None:
        if not 0 <= epsilon <= 1:
            raise ValueError(f"epsilon must be from 0 to 1, got {epsilon}")
        self.epsilon, self.seed = float(epsilon), whole_number(seed, "seed")

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.epsilon:g})"

    def _best(self, scores: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """The best items (B, k), and which others may be shown (B, n_items) bool."""
        best, _ = rank_topk(scores, k, seed=self.seed)  # (B, k)
        outside = scores > -torch.inf  # (B, n_items)
        outside = outside.scatter(1, best.clamp(min=0), False)  # a -1 comes with nothing outside
        if self.epsilon and bool((short := outside.sum(dim=1) < k).any()):
            row = int(short.nonzero()[0, 0])
            raise ValueError(
                f"row {row} has {int(outside[row].sum())} items beside its best {k}, and {k} places could "
                "be given away: shorten the lists, or leave out fewer items"
            )
        return best, outside

    def draw(self, scores: Tensor, k: int, generator: torch.Generator) -> Tensor:
        """Lists (B, k)."""
        best, outside = self._best(scores, k)  # (B, k), (B, n_items)
        if not self.epsilon:
            return best
        order = random_like(scores, generator).masked_fill(~outside, -1.0)  # (B, n_items)
        others = order.topk(k).indices  # (B, k) different ones, in random order
        return torch.where(random_like(others, generator) < self.epsilon, others, best)

    def at_place(self, scores: Tensor, lists: Tensor) -> Tensor:
        """The chance that an item stands at its place: (B, k)."""
        best, outside = self._best(scores, lists.shape[1])  # (B, k), (B, n_items)
        other = outside.gather(1, lists.clamp(min=0)) & (lists >= 0)  # (B, k)
        share = self.epsilon / _real(outside.sum(dim=1, keepdim=True).clamp(min=1), scores)  # (B, 1)
        return _real(lists == best, scores) * (1.0 - self.epsilon) + other * share

    def given_above(self, scores: Tensor, lists: Tensor) -> Tensor:
        """The chance of each item given those above: of the other items one fewer is left each time."""
        best, outside = self._best(scores, lists.shape[1])  # (B, k), (B, n_items)
        other = outside.gather(1, lists.clamp(min=0)) & (lists >= 0)  # (B, k)
        taken = other.cumsum(dim=1) - other.long()  # (B, k) others above
        left = _real((outside.sum(dim=1, keepdim=True) - taken).clamp(min=1), scores)  # (B, k)
        found = _real(lists == best, scores) * (1.0 - self.epsilon) + other * (self.epsilon / left)  # (B, k)
        return found.masked_fill(_repeats(lists) & (lists >= 0), 0.0)

    def looked_at(self, scores: Tensor, examined: Tensor) -> Tensor:
        """The chance that each item is shown and looked at: (B, n_items)."""
        examined = _real(examined.to(scores.device), scores)  # (k,)
        best, outside = self._best(scores, len(examined))  # (B, k), (B, n_items)
        share = self.epsilon * examined.sum() / outside.sum(dim=1, keepdim=True).clamp(min=1)  # (B, 1)
        found = outside * share  # (B, n_items)
        there = (best >= 0) * ((1.0 - self.epsilon) * examined)  # (B, k)
        return found.scatter_add(1, best.clamp(min=0), there)


class Greedy(EpsilonGreedy):
    """The best items, always. Whatever it shows had the chance one, so its log can correct nothing.

    Args:
        seed: orders equal scores, see ``ranking.rank_topk``.
    """

    def __init__(self, *, seed: int = 0) -> None:
        super().__init__(0.0, seed=seed)

    def __repr__(self) -> str:
        return "Greedy()"


class UniformLists(Policy):
    """Any item that may be shown, whatever its score: the random lists that an experiment would show."""

    def __repr__(self) -> str:
        return "UniformLists()"

    def draw(self, scores: Tensor, k: int, generator: torch.Generator) -> Tensor:
        """Lists (B, k)."""
        values, items = random_like(scores, generator).masked_fill(scores == -torch.inf, -1.0).topk(k)
        return items.masked_fill(values < 0, -1)

    def at_place(self, scores: Tensor, lists: Tensor) -> Tensor:
        """One over the items that may be shown: (B, k)."""
        free = scores > -torch.inf  # (B, n_items)
        mine = free.gather(1, lists.clamp(min=0))  # (B, k)
        chance = mine / _real(free.sum(dim=1, keepdim=True).clamp(min=1), scores)  # (B, k)
        return chance.masked_fill(lists < 0, 1.0)

    def given_above(self, scores: Tensor, lists: Tensor) -> Tensor:
        """One over the items that are left: (B, k)."""
        free = scores > -torch.inf  # (B, n_items)
        mine = free.gather(1, lists.clamp(min=0)) & ~_repeats(lists)  # (B, k)
        above = torch.arange(lists.shape[1], device=lists.device)  # (k,)
        chance = mine / _real((free.sum(dim=1, keepdim=True) - above).clamp(min=1), scores)  # (B, k)
        return chance.masked_fill(lists < 0, 1.0)

    def looked_at(self, scores: Tensor, examined: Tensor) -> Tensor:
        """Each item alike: (B, n_items)."""
        free = scores > -torch.inf  # (B, n_items)
        n_free = free.sum(dim=1, keepdim=True)  # (B, 1)
        total = _real(
            torch.cat([torch.zeros_like(examined[:1]), examined.cumsum(0)]).to(scores.device), scores
        )
        return free * total[n_free.clamp(max=len(examined))] / n_free.clamp(min=1)


class Boltzmann(Policy):
    """Items in proportion to exp(score / temperature), place by place without replacement: Plackett-Luce.

        P(i at j | those above) = exp(s_i / t) / sum over items not above of exp(s / t)

    Drawn at once: add Gumbel noise to s / t and take the best k (Kool, van Hoof, Welling 2019, "Stochastic
    Beams and Where to Find Them"). At the first place that is the softmax; at later
    ones the chance whatever stands above is a sum over all orders, and has no formula to offer.

    Args:
        temperature: above 0; near 0 it is greedy, very high it is uniform.
    """

    def __init__(self, temperature: float) -> None:
        if not temperature > 0:
            raise ValueError(f"temperature must be above 0, got {temperature}; greedy lists are Greedy()")
        self.temperature = float(temperature)

    def __repr__(self) -> str:
        return f"Boltzmann({self.temperature:g})"

    def draw(self, scores: Tensor, k: int, generator: torch.Generator) -> Tensor:
        """Lists (B, k)."""
        uniform = random_like(scores, generator)  # (B, n_items)
        noise = -(-uniform.clamp(min=torch.finfo(uniform.dtype).tiny).log()).log()  # (B, n_items) Gumbel's
        values, items = (scores.to(noise) / self.temperature + noise).topk(k)  # (B, k), (B, k)
        return items.masked_fill(values == -torch.inf, -1)

    def at_place(self, scores: Tensor, lists: Tensor) -> Tensor | None:
        """The softmax, where a list has one place; None for longer lists."""
        return self.given_above(scores, lists) if lists.shape[1] == 1 else None

    def given_above(self, scores: Tensor, lists: Tensor) -> Tensor:
        """The chance of each item given those above: (B, k)."""
        logits = scores if scores.device.type == "mps" else scores.double()
        logits = (logits / self.temperature).clone()  # (B, n_items)
        found = []
        for place in range(lists.shape[1]):
            mine = lists[:, place, None].clamp(min=0)  # (B, 1)
            chance = logits.softmax(dim=1).nan_to_num(0.0).gather(1, mine)  # (B, 1)
            found.append(chance.masked_fill(lists[:, place, None] < 0, 1.0))
            logits.scatter_(1, mine, -torch.inf)
        return _real(torch.cat(found, dim=1), scores)  # (B, k)


class ThompsonSampling(Policy):
    """The best items by scores that are drawn anew from what the model holds possible, at every visit.

    What is uncertain is tried as often as it may be the best. The model must have ``sample``: the Beta
    posterior of ``ClickRate``, or the Gaussian one of ``ImpressionFactors``. The chance of a list is an
    integral over that posterior, so there are no propensities: a log of such lists cannot be weighted.

    Source: Thompson 1933; for lists with places, Komiyama, Honda, Nakagawa 2015, "Optimal Regret Analysis of
    Thompson Sampling in Stochastic Multi-armed Bandit Problem with Multiple Plays".

    Args:
        seed: orders equal scores.
    """

    wants_samples = True

    def __init__(self, *, seed: int = 0) -> None:
        self.seed = whole_number(seed, "seed")

    def __repr__(self) -> str:
        return "ThompsonSampling()"

    def draw(self, scores: Tensor, k: int, generator: torch.Generator) -> Tensor:
        """Lists (B, k)."""
        return rank_topk(scores, k, seed=self.seed)[0]


def _checked(scores: Tensor, k: int) -> int:
    """``k``, once scores and it are such that lists can be made."""
    if not isinstance(scores, Tensor) or scores.ndim != 2 or not scores.is_floating_point():
        raise ValueError("scores must be a tensor (B, n_items) of real numbers, a row for each person")
    k = whole_number(k, "k", at_least=1)
    if k > scores.shape[1]:
        raise ValueError(f"k must be at most the number of items, {scores.shape[1]}; got {k}")
    if bool((broken := scores.isnan().any(dim=1)).any()):
        raise ValueError(f"row {int(broken.nonzero()[0, 0])} of the scores holds NaN, which cannot be ranked")
    return k


def _repeats(lists: Tensor) -> Tensor:
    """Whether an item stands above in the same list: (B, k) bool."""
    same = lists[:, :, None] == lists[:, None, :]  # (B, k, k)
    return same.tril(diagonal=-1).any(dim=2)


def _real(chances: Tensor, scores: Tensor) -> Tensor:
    """Chances in float64 where the device of the scores has it."""
    return chances.to(torch.float32 if scores.device.type == "mps" else torch.float64)
