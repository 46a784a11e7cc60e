"""What learns from a log: any model of clicks, and models of impressions, which know what was *not* clicked.

A model of clicks takes what was not shown for not liked. A model of impressions knows better: it divides
clicks by the chance that the item was looked at (position), or weighs each impression by one over the chance
that it was shown (selection), or both.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from recsys_lib.arguments import whole_number
from recsys_lib.devices import seed_generator
from recsys_lib.models.core.contract import Recommender
from recsys_lib.ranking import Scorer
from recsys_lib.simulation.log import Log

__all__ = ["ClickRate", "FromClicks", "ImpressionFactors", "InversePropensityRate", "Learner", "Sampling"]

CORRECTIONS = ("none", "position", "propensity")


class Learner(Protocol):
    """What a loop retrains."""

    def learn(self, log: Log) -> Scorer:
        """A model of everything logged so far; it must not depend on what was learned before."""


@runtime_checkable
class Sampling(Protocol):
    """A model that knows how sure it is."""

    def sample(self, users: Tensor, generator: torch.Generator) -> Tensor:
        """Scores (B, n_items) drawn from what it holds possible, for each of the users (B,) anew."""


@dataclass(frozen=True)
class FromClicks:
    """A model of implicit feedback that learns from the clicks alone.

    Attributes:
        make: its class, or a function that returns a new model.
    """

    make: Callable[[], Recommender]

    def learn(self, log: Log) -> Scorer:
        """The model, fitted on all clicks; before the first click one without an opinion."""
        if not bool(log.clicked.any()):
            return Table(torch.zeros(log.n_users, log.n_items))
        return self.make().fit(log.clicks(), progress=False)


class Table:
    """Scores that are written down.

    Args:
        scores: (n_users, n_items), or (n_items,) for everybody.
        n_users: needed where the scores are for everybody.
    """

    def __init__(self, scores: Tensor, n_users: int | None = None) -> None:
        self.scores = scores if n_users is None else scores.expand(n_users, -1)  # (n_users, n_items)
        self.n_items = scores.shape[-1]

    def score(self, users: Tensor) -> Tensor:
        """(B,) -> (B, n_items)."""
        return self.scores[users.to(self.scores.device)]


class _Rates(Table):
    """Click rates with Beta posteriors."""

    def __init__(self, a: Tensor, b: Tensor, n_users: int) -> None:
        super().__init__(a / (a + b), n_users)
        self.a, self.b = a, b

    def sample(self, users: Tensor, generator: torch.Generator) -> Tensor:
        """Rates of all items, drawn for each user anew: (B, n_items)."""
        with torch.random.fork_rng(devices=[]):  # torch's gamma numbers take no generator on every version
            torch.manual_seed(int(torch.randint(2**62, (1,), generator=generator, device=generator.device)))
            return torch.distributions.Beta(self.a, self.b).sample((len(users),))  # (B, n_items)


@dataclass(frozen=True)
class ClickRate:
    """Popularity as a rate: clicks on an item over looks at it, with a Beta prior.

        posterior of item i:  Beta(a + clicks_i,  b + looks_i - clicks_i)

    A model of popularity that counts clicks alone prefers what was shown often; a rate does not. Looks are
    the expected ones, the sum of examined_j over the places where it was shown, so that a low place is no
    reproach. As clicks may then outnumber looks, the second number stays at ``b`` or more. Without
    ``position`` every impression counts as a look.

    Source: Lagree, Vernade, Cappe 2016, "Multiple-Play Bandits in the Position-Based Model".

    Attributes:
        prior: a and b, both above 0. The score is (a + clicks) / (a + b + looks).
        position: count expected looks, not impressions.
    """

    prior: tuple[float, float] = (1.0, 9.0)
    position: bool = True

    def __post_init__(self) -> None:
        """Refuses a prior that is none."""
        if len(self.prior) != 2 or not min(self.prior) > 0:
            raise ValueError(f"the prior must be two numbers above 0, got {self.prior}")

    def learn(self, log: Log) -> _Rates:
        """The posterior of all items."""
        clicks = _by_item(log, log.clicked.double())  # (n_items,)
        looks = _by_item(log, log.examined if self.position else torch.ones_like(log.examined))  # (n_items,)
        a, b = self.prior
        return _Rates(a + clicks, b + (looks - clicks).clamp(min=0), log.n_users)


@dataclass(frozen=True)
class InversePropensityRate:
    """Popularity by inverse propensities: what clicks there would be if everybody looked at everything.

        rate_i = 1 / (number of lists) * sum over clicks on i of 1 / max(P(shown and looked at), 1 / clip)

    Its mean over all that chance could have shown is the item's mean appeal, whatever the policy preferred:
    a click that had one chance in fifty stands for fifty. Such a click is also what makes it noisy; ``clip``
    bounds its weight, at the price of a bias towards zero.

    Source: Schnabel, Swaminathan, Singh, Chandak, Joachims 2016, "Recommendations as Treatments: Debiasing
    Learning and Evaluation"; Saito, Yaginuma, Nishino, Sakata, Nakata 2020, "Unbiased Recommender Learning
    from Missing-Not-At-Random Implicit Feedback" (of clicks, and the clip).

    Attributes:
        clip: the largest weight of a click, above 0; infinity for none.
    """

    clip: float = 100.0

    def __post_init__(self) -> None:
        """Refuses a clip that would leave nothing."""
        if not self.clip > 0:
            raise ValueError(f"clip must be above 0, got {self.clip}")

    def learn(self, log: Log) -> Table:
        """The rates of all items."""
        _need(log.looked_at, "looked_at", "InversePropensityRate")
        weights = log.clicked / log.looked_at.clamp(min=1 / self.clip)  # (E,)
        n_lists = len((log.rounds * log.n_users + log.users).unique())
        return Table(_by_item(log, weights) / n_lists, log.n_users)


class _Factors(Table):
    """Scores with what the user vectors may be."""

    def __init__(self, scores: Tensor, roots: Tensor, items: Tensor, noise: float) -> None:
        super().__init__(scores)
        self.roots, self.items, self.noise = roots, items, noise  # (n_users, d, d), (n_items, d)

    def sample(self, users: Tensor, generator: torch.Generator) -> Tensor:
        """Scores of users (B,) with vectors drawn from their posterior: (B, n_items)."""
        shape = (len(users), self.items.shape[1], 1)
        z = torch.randn(shape, generator=generator, dtype=self.roots.dtype)  # (B, d, 1)
        step = torch.linalg.solve_triangular(self.roots[users].mT, z, upper=True)[:, :, 0]  # (B, d)
        return self.score(users) + self.noise * step @ self.items.mT


@dataclass(frozen=True)
class ImpressionFactors:
    """Matrix factorization of what was shown, clicked or not, by weighted least squares.

        min  sum over impressions  w (y - m - b_i - p_u . q_i)^2
             + l2 (sum_u |p_u|^2 + sum_i (b_i^2 + |q_i|^2))

    ``correct`` says what an impression is and what it weighs:

    - ``"none"``: y is the click, w = 1. A low place looks like a dislike.
    - ``"position"``: y = click / examined_j, whose mean is the appeal, and w = examined_j, since what few
      look at says little.
    - ``"propensity"``: the same times 1 / P(i at j), clipped: what the policy hardly shows counts more, as if
      everything had been shown alike. Weights are scaled to a mean of examined_j, so that ``l2`` keeps its
      meaning.

    b, then p and q in turn, each in closed form. Given q the vector of a user is a Bayesian linear regression
    with the posterior N(p_u, s^2 (sum w q q' + l2 I)^-1), s^2 the weighted mean squared residual: what
    ``sample`` draws from. It holds tables of n_users x n_items, so it is for small catalogs.

    Source: Schnabel et al. 2016, as above (the weights); Agrawal and Goyal 2013, "Thompson Sampling for
    Contextual Bandits with Linear Payoffs" (the posterior).

    Attributes:
        dim: length of the vectors.
        l2: above 0, in impressions.
        epochs: alternations.
        correct: see above.
        clip: the largest weight 1 / P.
        seed: of the vectors at the start.
    """

    dim: int = 4
    l2: float = 3.0
    epochs: int = 5
    correct: str = "position"
    clip: float = 20.0
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuses options that make no sense."""
        whole_number(self.dim, "dim", at_least=1)
        whole_number(self.epochs, "epochs", at_least=1)
        if not self.l2 > 0 or not self.clip > 0:
            raise ValueError(f"l2 and clip must be above 0, got {self.l2} and {self.clip}")
        if self.correct not in CORRECTIONS:
            raise ValueError(f"correct must be one of {', '.join(CORRECTIONS)}; got {self.correct!r}")

    def learn(self, log: Log) -> _Factors:
        """The factors of all impressions."""
        if not len(log):
            raise ValueError("nothing has been shown yet, so there is no impression to learn from")
        weights, targets = self._told(log)  # (E,), (E,)
        W = log.sums(weights)  # (n_users, n_items)
        total = float(W.sum())
        mean = float((weights * targets).sum()) / total
        R = log.sums(weights * (targets - mean))  # (n_users, n_items) weighted sums of what is left
        bias = R.sum(dim=0) / (W.sum(dim=0) + self.l2)  # (n_items,)
        R = R - W * bias  # (n_users, n_items)
        generator = seed_generator(self.seed)
        Q = torch.randn(log.n_items, self.dim, generator=generator, dtype=torch.float64) / self.dim**0.5
        for _ in range(self.epochs):
            P, _ = self._ridge(W, R, Q)  # (n_users, d)
            Q, _ = self._ridge(W.mT, R.mT, P)  # (n_items, d)
        P, roots = self._ridge(W, R, Q)  # (n_users, d), (n_users, d, d)
        scores = mean + bias + P @ Q.mT  # (n_users, n_items)
        residual = targets - scores[log.users, log.items]  # (E,)
        noise = float((weights * residual.square()).sum() / len(log)) ** 0.5
        return _Factors(scores, roots, Q, noise)

    def _told(self, log: Log) -> tuple[Tensor, Tensor]:
        """Weight (E,) and target (E,) of each impression."""
        clicked = log.clicked.double()  # (E,)
        if self.correct == "none":
            return torch.ones_like(clicked), clicked
        weights, targets = log.examined, clicked / log.examined
        if self.correct == "propensity":
            _need(log.at_place, "at_place", 'ImpressionFactors(correct="propensity")')
            inverse = (1 / log.at_place).clamp(max=self.clip)  # (E,)
            weights = weights * inverse * (weights.sum() / (weights * inverse).sum())
        return weights, targets

    def _ridge(self, W: Tensor, R: Tensor, others: Tensor) -> tuple[Tensor, Tensor]:
        """The best vectors of the rows, given those of the columns.

        Args:
            W: (n, m) weights.
            R: (n, m) weighted targets.
            others: (m, d).

        Returns:
            (n, d); and the triangular roots of their systems (n, d, d).
        """
        d = self.dim
        squares = (others[:, :, None] * others[:, None, :]).flatten(1)  # (m, d d)
        system = (W @ squares).view(-1, d, d) + self.l2 * torch.eye(d, dtype=W.dtype)  # (n, d, d)
        roots = torch.linalg.cholesky(system)  # (n, d, d)
        return torch.cholesky_solve((R @ others)[:, :, None], roots)[:, :, 0], roots


def _by_item(log: Log, values: Tensor) -> Tensor:
    """Values of impressions (E,), summed for each item: (n_items,) float64."""
    return torch.zeros(log.n_items, dtype=torch.float64).index_add_(0, log.items, values.double())


def _need(chances: Tensor, column: str, who: str) -> None:
    """Refuses a log without the chances that weights are made of."""
    missing = int((~(chances > 0)).sum())
    if missing:
        raise ValueError(
            f"{who} divides by the log's {column}, and {missing:,} of {len(chances):,} impressions have none "
            "above 0: log with a policy that has such chances, EpsilonGreedy or UniformLists"
        )
