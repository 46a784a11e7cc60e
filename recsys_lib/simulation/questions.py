"""What of a world is known, what is asked, and which items nobody has chosen yet: one rule for all."""

from dataclasses import dataclass

import torch
from torch import Tensor

from recsys_lib.arguments import whole_number
from recsys_lib.data import Interactions
from recsys_lib.devices import seed_generator
from recsys_lib.simulation.taste import TasteWorld

__all__ = ["Asked", "ask", "warm_and_cold"]


def warm_and_cold(n_available: int, n_items: int, n_cold: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Draws a catalog, and those of its items that stay new to every model.

    Args:
        n_available: how many items there are to draw from.
        n_items: how many are drawn.
        n_cold: how many of these are cold.
        seed: of both draws; each has a stream of its own.

    Returns:
        (n_items,) int64, ascending, which items are drawn; and (n_items,) bool, which of these are cold.

    Raises:
        ValueError: more items than there are, or no item that is warm.
    """
    n_items = whole_number(n_items, "n_items", at_least=1)
    n_cold, seed = whole_number(n_cold, "n_cold", at_least=0), whole_number(seed, "seed", at_least=0)
    if n_items > n_available:
        raise ValueError(f"n_items must be at most the {n_available} that there are, got {n_items}")
    if n_cold >= n_items:
        raise ValueError(f"n_cold must be below n_items={n_items}, so that some are warm, got {n_cold}")
    chosen = torch.randperm(n_available, generator=seed_generator(2 * seed))[:n_items].msort()  # (n_items,)
    cold = torch.zeros(n_items, dtype=torch.bool)  # (n_items,)
    cold[torch.randperm(n_items, generator=seed_generator(2 * seed + 1))[:n_cold]] = True
    return chosen, cold


@dataclass(frozen=True, eq=False)
class Asked:
    """What is known in a world, and what is asked.

    Attributes:
        world: with the truth.
        known: all that is known, and not asked for again.
        train: the part of it to learn from.
        stop: the part to stop by.
        warm: held-out choices of warm items.
        cold: all choices of cold items.
        items: (M,) int64, the cold items.
    """

    world: TasteWorld
    known: Interactions
    train: Interactions
    stop: Interactions
    warm: Interactions
    cold: Interactions
    items: Tensor

    def histories(self) -> list[Tensor]:
        """The items of ``train``, person by person: what people are known by whom no model was trained on."""
        counts = torch.bincount(self.train.users, minlength=self.train.n_users)  # (P,)
        order = self.train.users.argsort(stable=True)  # (E,)
        return list(self.train.items[order].split(counts.tolist()))


def ask(world: TasteWorld, cold: Tensor, known: int = 15, asked: int = 10) -> Asked:
    """Cuts a world: the first ``known`` warm choices of each person, the last ``asked``, and the cold ones.

    A fifth of what is known, and one choice at least, is for stopping. What is asked does not depend on how
    much is known.

    Args:
        world: in which each person has as many choices as every other.
        cold: (n_items,) bool, the items of which no choice is known.
        known: how many warm choices of each person.
        asked: how many others.

    Raises:
        ValueError: somebody has too few warm choices, or ``cold`` is of another length.
    """
    known, asked = whole_number(known, "known", at_least=2), whole_number(asked, "asked", at_least=1)
    events = world.interactions
    if cold.dtype != torch.bool or cold.shape != (events.n_items,):
        raise ValueError(f"cold must be ({events.n_items},) bool, got {tuple(cold.shape)} {cold.dtype}")
    warm = ~cold[events.items].view(events.n_users, -1)  # (P, E)
    place = (warm.cumsum(dim=1) - 1).flatten()  # (P E,) of an event among its person's warm ones
    left = (warm.flip(1).cumsum(dim=1).flip(1) - 1).flatten()  # (P E,) warm ones that come later
    if int(warm.sum(dim=1).min()) < known + asked:
        raise ValueError(f"somebody has fewer than {known} + {asked} warm choices; ask for fewer")
    warm = warm.flatten()  # (P E,)
    first, last = warm & (place < known), warm & (left < asked)
    stop = first & (place >= known - max(1, known // 5))
    known_of, train, stopping = events[first], events[first & ~stop], events[stop]
    return Asked(world, known_of, train, stopping, events[last], events[~warm], cold.nonzero().squeeze(1))
