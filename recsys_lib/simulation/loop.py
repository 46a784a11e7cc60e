"""The loop: show, click, log, retrain on the log, show again; measured against the truth at every round."""

from collections.abc import Callable, Mapping
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from recsys_lib.arguments import whole_number
from recsys_lib.devices import seed_generator
from recsys_lib.metrics import catalog_coverage, gini
from recsys_lib.models.core.contract import Recommender
from recsys_lib.progress import progress_bar
from recsys_lib.ranking import Scorer
from recsys_lib.simulation.learners import FromClicks, Learner, Sampling
from recsys_lib.simulation.log import Log
from recsys_lib.simulation.policies import Greedy, Policy, UniformLists
from recsys_lib.simulation.world import World

__all__ = ["FeedbackLoop", "overlap", "total_variation"]

MEASURES: Mapping[str, str] = {
    "clicks": "clicks a list, as they fell",
    "earned": "expected clicks of the lists that were shown, as a share of the best lists",
    "learned": "the same of the lists that the model holds best: what it knows",
    "coverage": "share of the catalog in at least one list",
    "gini": "how unequally the lists show the catalog",
    "overlap": "share of a list that another person's list holds as well, on average",
    "kept": "share of a person's list that was in the person's list of the visit before",
    "drift": "how far popularity by clicks is from popularity by appeal: total variation, 0 to 1",
}
"""What is measured at every round."""


class FeedbackLoop:
    """A recommender that learns from what it has shown.

    ::

        loop = FeedbackLoop(world, EASE, EpsilonGreedy(0.1), seed=0).run(20)
        loop.rounds  # a row a round
        loop.log  # every impression

    A round: everybody gets a list, clicks as the world says, and the model learns anew from the whole log.
    The first ``warm_up`` rounds show random lists. What a person has clicked is not shown again, so the best
    lists are those of what is left to the person.

    Two loops with the same seed in the same world start with the same random lists, and the same luck decides
    at a place whether an item of equal appeal is clicked: compare them in pairs.

    Args:
        world: the truth.
        learner: the class of a ``Recommender`` or a function that makes one, which learns from the clicks;
            or anything with ``learn(log)``, such as ``ClickRate()``.
        policy: makes lists of scores.
        k: places; those of the world by default.
        warm_up: rounds with random lists.
        visitors: people who come in each round, in turn; everybody by default.
        repeat: show what was clicked again.
        start: a log to begin with, as if it were what happened before.
        seed: of all chances.

    Attributes:
        log: every impression so far; None before the first.
        model: what was learned last.
        rounds: a row a round with its number and ``MEASURES``. In a round of random lists there is no model,
            and ``learned`` is NaN.

    Raises:
        TypeError: a learner that cannot learn.
        ValueError: lists that are longer than the catalog or the world's, or a log of another world.
    """

    def __init__(
        self,
        world: World,
        learner: Learner | Callable[[], Recommender],
        policy: Policy | None = None,
        *,
        k: int | None = None,
        warm_up: int = 1,
        visitors: int | None = None,
        repeat: bool = False,
        start: Log | None = None,
        seed: int = 0,
    ) -> None:
        self.world, self.policy = world, Greedy() if policy is None else policy
        self.learner = _learner(learner)
        self.k = world.k if k is None else whole_number(k, "k", at_least=1)
        if self.k > min(world.k, world.n_items):
            raise ValueError(f"k must be at most {min(world.k, world.n_items)}, got {self.k}")
        self.warm_up = whole_number(warm_up, "warm_up", at_least=0)
        self.visitors = world.n_users if visitors is None else whole_number(visitors, "visitors", at_least=1)
        if self.visitors > world.n_users:
            raise ValueError(f"there are {world.n_users} people, so {self.visitors} cannot come at once")
        if not self.warm_up and start is None:
            raise ValueError("with nothing to learn from, warm_up must be 1 or more; or give a log")
        if start is not None and (start.n_users, start.n_items) != (world.n_users, world.n_items):
            raise ValueError(
                f"the log is of {start.n_users} people and {start.n_items} items, "
                f"the world has {world.n_users} and {world.n_items}"
            )
        self.repeat, self.seed = bool(repeat), whole_number(seed, "seed")
        self.log, self.model = start, None if start is None else self.learner.learn(start)
        self._logs = [] if start is None else [start]
        self._rows: list[dict[str, float]] = []
        self._last = torch.full((world.n_users, self.k), -1)  # (n_users, k) each person's last list
        self._clicked = torch.zeros(world.n_users, world.n_items, dtype=torch.bool)  # (n_users, n_items)
        self._number = 0
        if start is not None and len(start):
            self._number = int(start.rounds.max()) + 1
            self._clicked[start.users[start.clicked], start.items[start.clicked]] = True
        fair = world.appeal.double().mean(dim=0).cpu()  # (n_items,)
        self._fair = fair / fair.sum().clamp(min=1e-12)

    def __repr__(self) -> str:
        return f"FeedbackLoop({self.learner}, {self.policy}, {len(self._rows)} rounds)"

    log: Log | None
    model: Scorer | None

    @property
    def rounds(self) -> pd.DataFrame:
        """A row a round."""
        return pd.DataFrame(self._rows, columns=["round", *MEASURES]).set_index("round")

    def run(self, rounds: int, *, progress: bool = True) -> "FeedbackLoop":
        """Goes on for so many rounds.

        Args:
            rounds: 1 or more; random ones count.
            progress: show a bar.

        Returns:
            The loop itself.

        Raises:
            TypeError: the policy wants samples, and the model has none.
            ValueError: a person has too few items left for a list.
        """
        rounds = whole_number(rounds, "rounds", at_least=1)
        for _ in progress_bar(range(rounds), "rounds", enabled=progress):
            self._round()
        return self

    def scores(self, users: Tensor, *, sample: bool = False) -> Tensor:
        """The model's scores of people, ``-inf`` for what they are not to be shown: (B, n_items).

        Args:
            users: (B,) int64.
            sample: draw them from what the model holds possible, by chances that belong to the round.
        """
        model = self.model
        if model is None:
            scores = torch.zeros(len(users), self.world.n_items)  # (B, n_items)
        elif sample:
            if not isinstance(model, Sampling):
                raise TypeError(
                    f"{self.policy} draws scores from what the model holds possible, and "
                    f"{type(model).__name__} has no sample(users, generator); "
                    "ClickRate and ImpressionFactors have"
                )
            scores = model.sample(users, self._generator(2))  # (B, n_items)
        else:
            scores = model.score(users)  # (B, n_items)
        scores = scores.to("cpu")
        return scores if self.repeat else scores.masked_fill(self._clicked[users], -torch.inf)

    def _generator(self, stream: int) -> torch.Generator:
        """Chances of this round: 0 of clicks, 1 of lists, 2 of samples."""
        return seed_generator((self.seed * 1_000_003 + self._number) * 3 + stream)

    def _round(self) -> None:
        world, number = self.world, self._number
        first = number * self.visitors
        users = torch.arange(first, first + self.visitors) % world.n_users  # (B,)
        random = len(self._rows) < self.warm_up
        policy = UniformLists() if random else self.policy
        scores = self.scores(users, sample=policy.wants_samples and not random)  # (B, n_items)
        shown = policy.show(scores, self.k, self._generator(1))
        clicked = world.click(users, shown.items, self._generator(0)).cpu()  # (B, k)
        examined = world.examined[: self.k]  # (k,)
        looked = policy.looked_at(scores, examined)  # (B, n_items)
        best = world.best(users, self.k, None if self.repeat else self._clicked[users])  # (B, k)
        possible = world.expected_clicks(users, best).sum()
        earned = float(world.expected_clicks(users, shown.items).sum() / possible)
        learned = earned
        if random:
            learned = torch.nan
        elif not isinstance(policy, Greedy):
            own = Greedy().show(self.scores(users), self.k, self._generator(1)).items  # (B, k)
            learned = float(world.expected_clicks(users, own).sum() / possible)

        self._logs.append(
            Log.of_lists(
                shown.items,
                clicked,
                examined,
                n_users=world.n_users,
                n_items=world.n_items,
                users=users,
                number=number,
                at_place=shown.at_place,
                looked_at=None if looked is None else looked.gather(1, shown.items.clamp(min=0)),
            )
        )
        self.log = Log.joined(self._logs)
        self._logs = [self.log]  # kept once
        before = self._last[users]  # (B, k)
        again = (shown.items[:, :, None] == before[:, None, :]) & (before[:, None, :] >= 0)  # (B, k, k)
        came = (before >= 0).any(dim=1)  # (B,)
        kept = again.any(dim=2)[came].double().mean()  # ()
        self._last[users] = shown.items
        there = clicked & (shown.items >= 0)  # (B, k)
        self._clicked[users[there.nonzero()[:, 0]], shown.items[there]] = True
        counts = torch.bincount(
            self.log.items[self.log.clicked], minlength=world.n_items
        ).double()  # (n_items,)
        self._rows.append(
            {
                "round": number,
                "clicks": float(there.sum()) / len(users),
                "earned": earned,
                "learned": learned,
                "coverage": catalog_coverage(shown.items, world.n_items),
                "gini": gini(shown.items, world.n_items),
                "overlap": overlap(shown.items, world.n_items),
                "kept": float(kept),
                "drift": total_variation(counts, self._fair),
            }
        )
        self._number += 1
        if len(self._rows) >= self.warm_up:
            self.model = self.learner.learn(self.log)


def overlap(lists: Tensor, n_items: int) -> float:
    """Homogenization: the share of a list that another list holds as well, mean over all pairs of lists.

    With c_i lists that hold item i, sum_i c_i (c_i - 1) / ((B - 1) sum_i c_i). 1 if all are the same, 0 if no
    two share an item.

    Source: the Jaccard index of pairs in Chaney, Stewart, Engelhardt 2018, "How Algorithmic Confounding in
    Recommendation Systems Increases Homogeneity and Decreases Utility"; for lists of one length the share
    says the same.

    Args:
        lists: (B, k) int64, each without repeats; -1 is no item.
        n_items: size of the catalog.

    Returns:
        NaN for fewer than two lists.
    """
    counts = torch.bincount(lists[lists >= 0].flatten(), minlength=n_items).double()  # (n_items,)
    if len(lists) < 2 or not bool(counts.any()):
        return torch.nan
    return float((counts * (counts - 1)).sum() / ((len(lists) - 1) * counts.sum()))


def total_variation(a: Tensor, b: Tensor) -> float:
    """How far two distributions are apart: half the sum of |a - b|, each (n,) scaled to sum to one.

    0 if they are equal, 1 if they share nothing; NaN where one of them is zero everywhere.
    """
    a, b = a.double() / a.sum(), b.double() / b.sum()
    return float((a - b).abs().sum() / 2)


def _learner(given: Any) -> Learner:
    if callable(getattr(given, "learn", None)):
        return given
    if isinstance(given, Recommender):
        raise TypeError(
            "the loop fits a new model at every round: give a function that makes one, or the class "
            f"{type(given).__name__}, not a model"
        )
    if not callable(given):
        raise TypeError(f"a learner is a model's class, or has learn(log); got {type(given).__name__}")
    return FromClicks(given)
