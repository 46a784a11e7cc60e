"""What was shown to whom, where, with which chance, and whether it was clicked: the log of a recommender."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from recsys_lib.data import Interactions

__all__ = ["Log"]

_COLUMNS = ("rounds", "users", "items", "places", "clicked", "examined", "at_place", "looked_at")
_DAY, _FIRST = 86_400, 946_684_800  # a round is a day, from 2000-01-01 on


@dataclass(frozen=True, eq=False, repr=False)
class Log:
    """Impressions, one a place of a list that was shown.

    Attributes:
        rounds: (E,) int64, when.
        users: (E,) int64, to whom.
        items: (E,) int64, what.
        places: (E,) int64, where, from 0.
        clicked: (E,) bool.
        examined: (E,) real, the chance that the place is looked at.
        at_place: (E,) real, the chance that the item stood there; NaN where the policy knows none.
        looked_at: (E,) real, the chance that the item was shown *and* looked at, anywhere in the list; NaN
            where the policy knows none.
        n_users: people.
        n_items: items.
    """

    rounds: Tensor
    users: Tensor
    items: Tensor
    places: Tensor
    clicked: Tensor
    examined: Tensor
    at_place: Tensor
    looked_at: Tensor
    n_users: int
    n_items: int

    def __post_init__(self) -> None:
        """Refuses columns of different lengths."""
        lengths = {name: len(getattr(self, name)) for name in _COLUMNS}
        if len(set(lengths.values())) > 1:
            raise ValueError(f"every column needs one entry an impression; got {lengths}")
        for name, n in (("users", self.n_users), ("items", self.n_items)):
            column = getattr(self, name)
            if len(column) and (int(column.min()) < 0 or int(column.max()) >= n):
                found = f"{int(column.min())} to {int(column.max())}"
                raise IndexError(f"{name} must be from 0 to {n - 1}; got {found}")

    def __len__(self) -> int:
        """Number of impressions."""
        return len(self.users)

    def __repr__(self) -> str:
        n_rounds = len(self.rounds.unique())
        return f"Log({len(self):,} impressions, {int(self.clicked.sum()):,} clicks, {n_rounds} rounds)"

    def __getitem__(self, mask: Tensor) -> "Log":
        """The impressions of a boolean mask (E,), or of positions."""
        return replace(self, **{name: getattr(self, name)[mask] for name in _COLUMNS})

    @classmethod
    def of_lists(
        cls,
        lists: Tensor,
        clicked: Tensor,
        examined: Tensor,
        *,
        n_users: int,
        n_items: int,
        users: Tensor | None = None,
        number: int = 0,
        at_place: Tensor | None = None,
        looked_at: Tensor | None = None,
    ) -> "Log":
        """The log of lists that were shown in one round.

        Args:
            lists: (B, k) int64; a place with -1 is no impression.
            clicked: (B, k) bool.
            examined: (k,) the chance that each place is looked at.
            n_users: people.
            n_items: items.
            users: (B,) int64 who got them; the first ones by default.
            number: of the round.
            at_place: (B, k) chances of what stood there; see ``Shown``.
            looked_at: (B, k) chances that what stood there was shown and looked at.
        """
        if clicked.shape != lists.shape or len(examined) < lists.shape[1]:
            raise ValueError(
                f"clicks must have the shape of the lists, {tuple(lists.shape)}, and every place a chance to "
                f"be looked at; got {tuple(clicked.shape)} and {len(examined)} places"
            )
        there = lists >= 0  # (B, k)
        row, place = there.nonzero(as_tuple=True)  # (E,), (E,)
        who = row if users is None else users.to(row.device)[row]  # (E,)
        seen = examined.to(row.device)[place].double().cpu()  # (E,)
        unknown = torch.full((len(row),), torch.nan, dtype=torch.float64)  # (E,)
        chances = [
            unknown if given is None else given[there].double().cpu() for given in (at_place, looked_at)
        ]
        return cls(
            rounds=torch.full_like(row, number, device="cpu"),
            users=who.cpu(),
            items=lists[there].cpu(),
            places=place.cpu(),
            clicked=clicked[there].cpu(),
            examined=seen,
            at_place=chances[0],
            looked_at=chances[1],
            n_users=n_users,
            n_items=n_items,
        )

    @classmethod
    def joined(cls, logs: Sequence["Log"]) -> "Log":
        """Several logs as one, in their order."""
        if not logs:
            raise ValueError("there is no log to join")
        first = logs[0]
        if any((log.n_users, log.n_items) != (first.n_users, first.n_items) for log in logs):
            raise ValueError("the logs are of different people or items")
        columns: dict[str, Any] = {name: torch.cat([getattr(log, name) for log in logs]) for name in _COLUMNS}
        return replace(first, **columns)

    def clicks(self) -> Interactions:
        """The clicks as events, a round a day: what a model of implicit feedback learns from.

        Raises:
            ValueError: there is no click yet.
        """
        if not bool(self.clicked.any()):
            raise ValueError("nobody has clicked yet, so there is no event to learn from")
        chosen = self.clicked
        frame = pd.DataFrame(
            {
                "user_id": self.users[chosen].numpy(),
                "item_id": self.items[chosen].numpy(),
                "timestamp": (_FIRST + _DAY * self.rounds[chosen]).numpy(),
            }
        )
        return Interactions.from_frame(
            frame, user_ids=pd.RangeIndex(self.n_users), item_ids=pd.RangeIndex(self.n_items)
        )

    def sums(self, values: Tensor) -> Tensor:
        """Values of impressions (E,), summed for each person and item: (n_users, n_items) float64."""
        table = torch.zeros(self.n_users * self.n_items, dtype=torch.float64)  # (n_users n_items,)
        table.index_add_(0, self.users * self.n_items + self.items, values.double())
        return table.view(self.n_users, self.n_items)
