"""A world whose truth is known: how much each person likes each item, and how far down a list they look.

Who looks at a place and likes what is there clicks on it. This is the position-based model:

    P(click on item i at place j) = examined_j * appeal_ui

Source: Craswell, Zoeter, Taylor, Ramsey 2008, "An Experimental Comparison of Click Position-Bias Models";
with examined_j = (1 / j) ** steepness as in the experiments of Joachims, Swaminathan, Schnabel 2017,
"Unbiased Learning-to-Rank with Biased Feedback".
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from recsys_lib.arguments import Indices, integer_indices, whole_number
from recsys_lib.devices import seed_generator
from recsys_lib.ranking import Scorer, score_batches

__all__ = ["World", "looks", "random_like"]


@dataclass(frozen=True, eq=False, repr=False)
class World:
    """People, items, and the truth about them.

    Attributes:
        appeal: (n_users, n_items) real, the chance that a person who looks at an item clicks on it.
        examined: (K,) real, the chance that each place of a list is looked at, first place first. A list has
            ``K`` places at most.

    Raises:
        TypeError: not tensors of real numbers.
        ValueError: another number of dimensions, or a chance outside [0, 1].
    """

    appeal: Tensor
    examined: Tensor

    def __post_init__(self) -> None:
        """Refuses what are no chances."""
        for name, dimensions in (("appeal", 2), ("examined", 1)):
            chances = getattr(self, name)
            if not isinstance(chances, Tensor) or not chances.is_floating_point():
                raise TypeError(f"{name} must be a tensor of real numbers, got {type(chances).__name__}")
            if chances.ndim != dimensions or not chances.numel():
                raise ValueError(
                    f"{name} must have {dimensions} dimensions and an entry; got shape {tuple(chances.shape)}"
                )
            if not bool(((chances >= 0) & (chances <= 1)).all()):
                raise ValueError(f"{name} holds chances, so all must be from 0 to 1")

    def __repr__(self) -> str:
        return (
            f"World({self.n_users:,} people, {self.n_items:,} items, {self.k} places, "
            f"mean appeal {float(self.appeal.mean()):.3f})"
        )

    @property
    def n_users(self) -> int:
        """People."""
        return self.appeal.shape[0]

    @property
    def n_items(self) -> int:
        """Items."""
        return self.appeal.shape[1]

    @property
    def k(self) -> int:
        """Places of a list, at most."""
        return len(self.examined)

    @classmethod
    def draw(
        cls,
        n_users: int,
        n_items: int,
        k: int = 10,
        *,
        dim: int = 4,
        taste: float = 1.5,
        fame: float = 1.0,
        rate: float = 0.1,
        steepness: float = 1.0,
        seed: int = 0,
    ) -> "World":
        """A random world: appeal is latent taste plus what an item has for everybody, through a sigmoid.

            appeal_ui = sigmoid(taste p_u . q_i / sqrt(dim) + fame b_i + c),   p, q, b standard normal

        Args:
            n_users: people.
            n_items: items.
            k: places of a list.
            dim: of taste.
            taste: weight of what a person likes.
            fame: weight of what everybody likes.
            rate: mean appeal; ``c`` follows from it.
            steepness: how fast attention falls, see ``looks``.
            seed: of the draw.

        Raises:
            TypeError, ValueError: counts that are no whole numbers from 1 on, a rate outside (0, 1), or no
                dimension of taste.
        """
        n_users = whole_number(n_users, "n_users", at_least=1)
        n_items = whole_number(n_items, "n_items", at_least=1)
        dim = whole_number(dim, "dim", at_least=1)
        generator = seed_generator(whole_number(seed, "seed"))
        p = torch.randn(n_users, dim, generator=generator, dtype=torch.float64)  # (n_users, d)
        q = torch.randn(n_items, dim, generator=generator, dtype=torch.float64)  # (n_items, d)
        b = torch.randn(n_items, generator=generator, dtype=torch.float64)  # (n_items,)
        logits = taste * (p @ q.mT) / dim**0.5 + fame * b  # (n_users, n_items)
        return cls(_with_rate(logits, rate).float(), looks(k, steepness))

    @classmethod
    def of(
        cls,
        model: Scorer,
        n_users: int,
        k: int = 10,
        *,
        sharpness: float = 1.0,
        rate: float = 0.1,
        steepness: float = 1.0,
        progress: bool = True,
    ) -> "World":
        """A world that a fitted model describes: its scores, standardized for each person, are the logits.

            appeal_ui = sigmoid(sharpness z_ui + c),   z_ui = (s_ui - mean of s_u) / deviation of s_u

        Such a world is as its model says, which favors models of that kind.

        Args:
            model: with finite scores.
            n_users: how many of its users, from the first on.
            k: places of a list.
            sharpness: how far apart the liked and the others are.
            rate: mean appeal; ``c`` follows from it.
            steepness: how fast attention falls, see ``looks``.
            progress: show a bar.

        Raises:
            ValueError: a score is not finite, or a rate outside (0, 1).
        """
        users = torch.arange(whole_number(n_users, "n_users", at_least=1))  # (n_users,)
        rows = [
            scores.to("cpu", copy=True) for _, scores in score_batches(model, users, progress=progress)
        ]  # (b, n_items) each
        scores = torch.cat(rows).double()  # (n_users, n_items)
        if not bool(scores.isfinite().all()):
            raise ValueError("the model's scores must be finite; one of them is not, so it has no appeal")
        spread = scores.std(dim=1, correction=0, keepdim=True)  # (n_users, 1)
        z = (scores - scores.mean(dim=1, keepdim=True)) / spread.clamp(min=1e-12)  # (n_users, n_items)
        return cls(_with_rate(sharpness * z, rate).float(), looks(k, steepness))

    # What the truth says of lists. In all of this -1 is no item.

    def of_lists(self, users: Indices, lists: Tensor) -> Tensor:
        """The appeal of the items of lists to those who get them: (B, k), zero where there is no item.

        Args:
            users: (B,) who gets them.
            lists: (B, k) int64 items.

        Raises:
            ValueError: lists of another number, or with more places than are looked at.
            IndexError: a person or an item that is not there.
        """
        users = self._people(users)
        if lists.ndim != 2 or len(lists) != len(users) or lists.shape[1] > self.k:
            raise ValueError(
                f"lists must be ({len(users)}, {self.k}) at most, a row for each person; "
                f"got shape {tuple(lists.shape)}"
            )
        lists = lists.to(self.appeal.device)
        if len(lists) and (int(lists.max()) >= self.n_items or int(lists.min()) < -1):
            raise IndexError(f"a list holds an item that is not among the {self.n_items} of this world")
        return self.appeal[users[:, None], lists.clamp(min=0)] * (lists >= 0)  # (B, k)

    def expected_clicks(self, users: Indices, lists: Tensor) -> Tensor:
        """Expected clicks on each list: (B,), the sum over places of examined_j appeal_ui.

        Arguments as for ``of_lists``.
        """
        appeal = self.of_lists(users, lists)  # (B, k)
        return appeal @ self.examined[: lists.shape[1]].to(appeal)

    def click(self, users: Indices, lists: Tensor, generator: torch.Generator) -> Tensor:
        """Who clicks on what: (B, k) bool.

        Arguments as for ``of_lists``, and

        Args:
            users: (B,).
            lists: (B, k) int64.
            generator: of the chances; one number is drawn for every place, so that two loops with equal
                generators differ by their lists alone.
        """
        chance = self.of_lists(users, lists) * self.examined[: lists.shape[1]]  # (B, k)
        return random_like(chance, generator) < chance

    def best(self, users: Indices, k: int | None = None, left_out: Tensor | None = None) -> Tensor:
        """The best lists that there are: the most appealing items, the best where most people look.

        Args:
            users: (B,) who gets them.
            k: places; all by default.
            left_out: (B, n_items) bool, what may not be in the lists.

        Returns:
            (B, k) int64; -1 where nothing is left.
        """
        users = self._people(users)
        k = self.k if k is None else whole_number(k, "k", at_least=1)
        if k > min(self.k, self.n_items):
            raise ValueError(f"k must be at most {min(self.k, self.n_items)}, places and items; got {k}")
        appeal = self.appeal[users]  # (B, n_items)
        if left_out is not None:
            appeal = appeal.masked_fill(left_out.to(appeal.device), -torch.inf)
        values, items = appeal.topk(k)  # (B, k), (B, k)
        items = items.masked_fill(values == -torch.inf, -1)
        seen_first = self.examined[:k].argsort(descending=True, stable=True)  # (k,)
        return torch.empty_like(items).index_copy_(1, seen_first, items)

    def _people(self, users: Indices) -> Tensor:
        users = integer_indices(users, "users").to(self.appeal.device)  # (B,)
        if len(users) and (int(users.max()) >= self.n_users or int(users.min()) < 0):
            raise IndexError(f"a person is not among the {self.n_users} of this world")
        return users


def looks(k: int, steepness: float = 1.0) -> Tensor:
    """The chance that each place of a list is looked at: (k,), (1 / j) ** steepness.

    Args:
        k: places.
        steepness: 0 looks at all alike, 1 is the usual choice.
    """
    k = whole_number(k, "k", at_least=1)
    if not steepness >= 0:
        raise ValueError(f"steepness must be 0 or more, got {steepness}")
    return torch.arange(1, k + 1, dtype=torch.float32) ** -steepness


def random_like(x: Tensor, generator: torch.Generator) -> Tensor:
    """Uniform numbers from 0 up to 1 in the shape and on the device of ``x``, drawn where the generator is.

    In float64 where that device has it: float32 has so few values near 1 that the tails would be cut.
    """
    dtype = torch.float32 if generator.device.type == "mps" else torch.float64
    drawn = torch.rand(x.shape, generator=generator, device=generator.device, dtype=dtype)
    return drawn.to(x.device, torch.float32) if x.device.type == "mps" else drawn.to(x.device)


def _with_rate(logits: Tensor, rate: float) -> Tensor:
    """sigmoid(logits + c) with the c for which its mean is ``rate``, found by halving."""
    if not 0 < rate < 1:
        raise ValueError(f"rate must be above 0 and below 1, as in 0.1; got {rate}")
    low, high = -50.0 - float(logits.max()), 50.0 - float(logits.min())
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if float((logits + middle).sigmoid().mean()) < rate else (low, middle)
    return (logits + (low + high) / 2).sigmoid()
