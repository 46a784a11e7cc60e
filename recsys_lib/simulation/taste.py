"""People whose true taste is known: what of an item they like, and so what can be learned about it.

An item has attributes, such as what its picture shows and what its name means. A person has a direction of
taste over one kind of them, and likes an item by how far it lies that way:

    appeal_ui = sharpness * z_ui,   z_u = (A t_u - mean) / deviation,   t_u standard normal

What a person chooses is drawn from softmax(appeal_u), one item after another, none twice. Since the truth is
known, so is the best that any model can do, ``TasteWorld.truth``, and every other one is a share of it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import pandas as pd
import torch
from torch import Tensor

from recsys_lib.arguments import whole_number
from recsys_lib.data import Interactions
from recsys_lib.devices import seed_generator
from recsys_lib.evaluation import Report, evaluate
from recsys_lib.models.blend import standardized

__all__ = ["About", "TasteWorld", "TrueTaste"]

About = Literal["looks", "meaning", "both", "neither"]
"""What taste is about."""

_TIMES = 1_000_000_000  # seconds since 1970, of the first choices


class TrueTaste:
    """Scores items by their true appeal: nobody can rank better who does not know the draws.

    Args:
        appeal: (P, N) float.
    """

    def __init__(self, appeal: Tensor) -> None:
        self.appeal, self.n_items = appeal, appeal.shape[1]

    def score(self, users: Tensor) -> Tensor:
        """(B,) to (B, N)."""
        return self.appeal[users.to(self.appeal.device)]  # (B, N)


@dataclass(frozen=True, eq=False, repr=False)
class TasteWorld:
    """People, items, what each person truly likes, and what they chose.

    Attributes:
        about: what taste is about.
        appeal: (P, N) float32, the logits of what each person chooses.
        interactions: the choices, ``events`` a person, of P people and all N items. They stand in random
            order, so that the last of them are like the first.
        tastes: (P, D) float32, each person's direction, over the columns of ``attributes``.
        attributes: (N, D) float32, what the items have, of which taste is made.
        parts: which columns of ``attributes`` are of one kind: one slice, or two of equal weight.
        sharpness: standard deviation of a person's appeal over the items.
    """

    about: About
    appeal: Tensor
    interactions: Interactions
    tastes: Tensor
    attributes: Tensor
    parts: tuple[slice, ...]
    sharpness: float

    def __repr__(self) -> str:
        people, items = self.appeal.shape
        counts = f"{people:,} people, {items:,} items, {len(self.interactions):,} choices"
        return f"TasteWorld(about {self.about}, {counts})"

    @classmethod
    def draw(
        cls,
        looks: Tensor,
        meanings: Tensor,
        n_people: int,
        *,
        about: About,
        events: int = 20,
        sharpness: float = 3.0,
        seed: int = 0,
    ) -> "TasteWorld":
        """A world of random people.

        - ``about="looks"``: taste is a direction over what pictures show, which a name does not tell;
        - ``"meaning"``: over what names mean;
        - ``"both"``: appeal is the sum of one of each, of equal weight;
        - ``"neither"``: over random attributes that no picture and no name has, so that what others chose is
          the only clue.

        In all four worlds a person's appeal has the same mean and deviation over the items. With fewer events
        the same people make a part of the same choices.

        Args:
            looks: (N, a) real attributes, such as ``data.openmoji.looks`` gives.
            meanings: (N, b) real attributes, such as ``data.openmoji.meanings`` gives.
            n_people: how many.
            about: what their taste is about.
            events: choices of each person; fewer than there are items.
            sharpness: how far the liked lie above the others. 0 is no taste at all.
            seed: of the people, their choices, and the attributes of nothing.

        Raises:
            ValueError: another ``about``, attributes of different numbers of items or that are not finite, as
                many events as items, or a negative sharpness.
            TypeError: counts that are no whole numbers.
        """
        if about not in get_args(About):
            raise ValueError(f"about must be one of {', '.join(get_args(About))}; got {about!r}")
        if looks.ndim != 2 or meanings.ndim != 2 or len(looks) != len(meanings):
            raise ValueError(
                "looks and meanings must be tables with a row for each item, got shapes "
                f"{tuple(looks.shape)} and {tuple(meanings.shape)}"
            )
        if not sharpness >= 0:
            raise ValueError(f"sharpness must be 0 or more, got {sharpness}")
        looks, meanings = looks.to("cpu", torch.float32), meanings.to("cpu", torch.float32)
        if not bool(looks.isfinite().all() and meanings.isfinite().all()):
            raise ValueError("looks and meanings must be finite")
        # The attributes of nothing have a stream of their own: the people are those of the other worlds.
        nothing = torch.randn(
            len(looks), meanings.shape[1], generator=seed_generator(_stream(seed, 0))
        )  # (N, b)
        parts = {"looks": [looks], "meaning": [meanings], "both": [looks, meanings], "neither": [nothing]}[
            about
        ]
        ends = torch.tensor([part.shape[1] for part in parts]).cumsum(0).tolist()
        slices = tuple(slice(end - part.shape[1], end) for part, end in zip(parts, ends, strict=True))
        return cls._of(about, torch.cat(parts, dim=1), slices, n_people, events, sharpness, seed)

    def more_people(self, n_people: int, *, events: int | None = None, seed: int) -> "TasteWorld":
        """Other people of the same world, whom no model was trained on.

        Args:
            n_people: how many.
            events: choices of each; as many as the people here by default.
            seed: of them and their choices; another than this world's gives other people.
        """
        events = len(self.interactions) // len(self.appeal) if events is None else events
        return TasteWorld._of(self.about, self.attributes, self.parts, n_people, events, self.sharpness, seed)

    @classmethod
    def _of(
        cls,
        about: About,
        attributes: Tensor,
        parts: tuple[slice, ...],
        n_people: int,
        events: int,
        sharpness: float,
        seed: int,
    ) -> "TasteWorld":
        n_people = whole_number(n_people, "n_people", at_least=1)
        events, n_items = whole_number(events, "events", at_least=1), len(attributes)
        if events >= n_items:
            raise ValueError(f"events must be fewer than the {n_items} items, got {events}")
        tastes = torch.randn(
            n_people, attributes.shape[1], generator=seed_generator(_stream(seed, 1))
        )  # (P, D)
        total = torch.zeros(n_people, n_items)  # (P, N)
        for part in parts:
            total += standardized(tastes[:, part] @ attributes[:, part].mT)  # (P, N)
        appeal = sharpness * standardized(total)  # (P, N)
        return cls(
            about=about,
            appeal=appeal,
            interactions=_choices(appeal, events, seed_generator(_stream(seed, 2))),
            tastes=tastes,
            attributes=attributes,
            parts=parts,
            sharpness=float(sharpness),
        )

    @property
    def truth(self) -> TrueTaste:
        """The best model that there is: ranks by true appeal. It goes wherever a model goes."""
        return TrueTaste(self.appeal)

    def best(
        self, test: Interactions, *, seen: Interactions | None = None, k: int | Sequence[int] = 10
    ) -> Report:
        """The best possible score on these held-out choices, by the evaluator that measures the models.

        It is below 1, since people do not always choose what they like best.

        Args:
            test: held-out choices of this world.
            seen: as for ``evaluate``.
            k: cutoff or cutoffs.
        """
        return evaluate(self.truth, test, seen=seen, k=k, progress=False)


def _stream(seed: int, number: int) -> int:
    """A seed of its own for each kind of draw."""
    return 3 * whole_number(seed, "seed", at_least=0) + number


def _choices(appeal: Tensor, events: int, generator: torch.Generator) -> Interactions:
    """``events`` choices of each person from softmax(appeal), without replacement, in random order.

    The items with the largest appeal + Gumbel noise are such a draw: Kool, van Hoof and Welling 2019,
    "Stochastic Beams and Where to Find Them", section 2.2.
    """
    n_people, n_items = appeal.shape
    noise = -torch.empty(n_people, n_items).exponential_(generator=generator).log()  # (P, N)
    chosen = (appeal + noise).topk(events, dim=1).indices  # (P, E)
    # topk gives the best liked first; an order that says so would tell the held-out from the others.
    order = torch.rand(n_people, n_items, generator=generator)[:, :events].argsort(dim=1)  # (P, E)
    items = chosen.gather(1, order).flatten()  # (P E,)
    users = torch.arange(n_people).repeat_interleave(events)  # (P E,)
    return Interactions(
        users=users,
        items=items,
        ratings=torch.ones(len(items)),
        timestamps=_TIMES + torch.arange(events).repeat(n_people),
        rows=torch.arange(len(items)),
        n_users=n_people,
        n_items=n_items,
        user_ids=pd.RangeIndex(n_people),
        item_ids=pd.RangeIndex(n_items),
    )
