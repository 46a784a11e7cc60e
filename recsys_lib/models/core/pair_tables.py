"""What counts say of a user's moment and an item, and of an item of the history and a candidate."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor, nn

from recsys_lib.data import Interactions
from recsys_lib.data.ragged import offsets, row_of_each

__all__ = [
    "CANDIDATE_FEATURES",
    "PAIR_SCALARS",
    "Moments",
    "PairTables",
    "blocks",
    "prefixes",
    "retrieval_features",
]

CANDIDATE_FEATURES = (
    "retriever's score, standardized over the items not yet chosen",
    "minus the logarithm of its rank",
    "mean cosine of co-occurrence with the history read",
    "largest cosine",
    "logarithm of popularity",
    "logarithm of popularity shortly before the moment",
    "minus the logarithm of the time since the last event",
)
PAIR_SCALARS = (
    "cosine of co-occurrence",
    "share of the history item's users who chose the candidate",
    "share of the candidate's users who chose the history item",
    "logarithm of the lift, damped",
    "logarithm of the count",
    "one over the root of the place in the history, newest first",
)

_DAY = 86_400
_STEPS = 4  # in a window: the grid of times is a quarter of a window wide
_CELLS = 2**23  # numbers of pair scalars at once, 32 MB
_LONGEST = 52  # steps since an item's last event that are told apart


@dataclass(frozen=True)
class Moments:
    """B moments, each with what its user had done.

    Attributes:
        recent: (B, L) int64, the newest items first, -1 where there are fewer.
        step: (B,) int64, the step of the grid of times in which the newest event is.
        seen: (B, n_items) bool, all that the user had chosen.
        withdrawn: (B, n_items) bool, what the user is known to have chosen later, and the counts know too.
    """

    recent: Tensor
    step: Tensor
    seen: Tensor
    withdrawn: Tensor

    def __getitem__(self, rows: Tensor) -> "Moments":
        return Moments(self.recent[rows], self.step[rows], self.seen[rows], self.withdrawn[rows])


class PairTables(nn.Module):
    """Counts over training events, from which features of a moment and an item are read.

    Counts of all users' events, later ones of others included, as they are known when the model is asked; but
    the user's own events count up to the moment alone. What is recent is what happened before the moment.

    Attributes:
        together: (n_items, n_items) float32, how many users chose both.
        users: (n_items,) float32, how many users chose it.
        before: (S + 1, n_items) float32, events before each step of the grid of times.
        last: (S + 1, n_items) float32, the last step before with an event; far back where there was none.
        grid: (2,) int64, the first time and the width of a step, in seconds.
        n_users: () float32, users with and without events.
    """

    together: Tensor
    users: Tensor
    before: Tensor
    last: Tensor
    grid: Tensor
    n_users: Tensor

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Moves, and converts nothing: counts gain nothing from another type."""
        kept = dict(self._buffers)
        super()._apply(fn, recurse)
        for name, before in kept.items():
            after = self._buffers[name]
            if before is not None and after is not None and after.dtype != before.dtype:
                self._buffers[name] = before.to(after.device)
        return self

    def fill(self, events: Interactions, window_days: float) -> None:
        """Counts events, on the CPU."""
        crow, own = events.csr()
        x = torch.sparse_coo_tensor(
            torch.stack([row_of_each(crow), own]),
            torch.ones(len(own), device="cpu"),
            (events.n_users, events.n_items),
            check_invariants=False,
        )  # (U, I)
        together = torch.sparse.mm(x.mT, x.to_dense())  # (I, I)
        self.register_buffer("together", together)
        self.register_buffer("users", together.diagonal().clone())
        start, width = int(events.timestamps.min()), max(1, round(window_days * _DAY / _STEPS))
        self.register_buffer("grid", torch.tensor([start, width], device="cpu"))
        self.register_buffer("n_users", torch.tensor(float(events.n_users), device="cpu"))
        step = self.steps(events.timestamps)  # (E,)
        n_steps = int(step.max()) + 1
        counts = torch.zeros(n_steps + 1, events.n_items, device="cpu")  # (S + 1, I)
        counts.index_put_((step + 1, events.items), torch.ones(len(step), device="cpu"), accumulate=True)
        when = torch.arange(-1, n_steps, device="cpu", dtype=torch.float32)[:, None]  # (S + 1, 1)
        last = torch.where(counts > 0, when, -float(_LONGEST))  # (S + 1, I)
        self.register_buffer("before", counts.cumsum(dim=0))
        self.register_buffer("last", last.cummax(dim=0).values)

    def steps(self, times: Tensor) -> Tensor:
        """The step of the grid that each time is in: (B,) int64."""
        start, width = self.grid.tolist()
        return (times - start).div(width, rounding_mode="floor").clamp(min=0)

    def moments(self, crow: Tensor, items: Tensor, times: Tensor, n_recent: int, now: Tensor) -> Moments:
        """Moments after histories.

        Args:
            crow: (B + 1,) int64 offsets.
            items: (E,) int64, each history oldest first.
            times: (E,) int64.
            n_recent: L.
            now: () int64, the moment of those without a history.
        """
        n, device = len(crow) - 1, items.device
        place = crow[1:, None] - 1 - torch.arange(n_recent, device=device)  # (B, L)
        there = place >= crow[:-1, None]  # (B, L)
        read = torch.cat([items, items.new_full((1,), -1)])  # (E + 1,)
        recent = read[place.masked_fill(~there, len(items))]  # (B, L)
        ends = torch.cat([times, now[None].to(times)])[
            (crow[1:] - 1).masked_fill(crow.diff() == 0, len(items))
        ]
        seen = torch.zeros(n, len(self.users), dtype=torch.bool, device=device)  # (B, I)
        seen[row_of_each(crow), items] = True
        step = self.steps(ends).clamp(max=len(self.before) - 1)  # (B,)
        return Moments(recent, step, seen, torch.zeros_like(seen))

    def pair_scalars(self, moments: Moments, items: Tensor) -> Tensor:
        """Of each history item and candidate, zero where there is no history item.

        Args:
            moments: B of them.
            items: (B, C) int64.

        Returns:
            (B, L, C, len(PAIR_SCALARS))
        """
        h, j = moments.recent.clamp(min=0)[:, :, None], items[:, None, :]  # (B, L, 1), (B, 1, C)
        own = moments.withdrawn.gather(1, items).float()[:, None, :]  # (B, 1, C)
        both = (self.together[h, j] - own).clamp(min=0)  # (B, L, C)
        n_h, n_j = self.users[h].clamp(min=1), (self.users[j] - own).clamp(min=1)  # (B, L, 1), (B, 1, C)
        lift = ((both + 1).log() - (n_h * n_j / self.n_users + 1).log()) / 3  # (B, L, C)
        place = torch.arange(1, h.shape[1] + 1, device=items.device).rsqrt()[:, None]  # (L, 1)
        scalars = [both / (n_h * n_j).sqrt(), both / n_h, both / n_j, lift, (both + 1).log() / 5, place]
        found = torch.stack([scalar.expand_as(both) for scalar in scalars], dim=-1)  # (B, L, C, 6)
        return found * (moments.recent >= 0)[:, :, None, None]

    def features(self, moments: Moments, items: Tensor, retrieved: Tensor, pairs: Tensor) -> Tensor:
        """Of each moment and item.

        Args:
            moments: B of them.
            items: (B, C) int64.
            retrieved: (B, C, 2), see ``retrieval_features``.
            pairs: (B, L, C, P), see ``pair_scalars``.

        Returns:
            (B, C, len(CANDIDATE_FEATURES))
        """
        cosine, read = pairs[..., 0], (moments.recent >= 0).sum(dim=1).clamp(min=1)  # (B, L, C), (B,)
        own = moments.withdrawn.gather(1, items).float()  # (B, C)
        step = moments.step[:, None]  # (B, 1)
        recent = self.before[step, items] - self.before[(step - _STEPS).clamp(min=0), items]  # (B, C)
        since = (step - self.last[step, items]).clamp(min=0, max=_LONGEST)  # (B, C)
        more = [
            cosine.sum(dim=1) / read[:, None],
            cosine.amax(dim=1),
            (self.users[items] - own).clamp(min=0).log1p(),
            recent.clamp(min=0).log1p(),
            -since.log1p(),
        ]
        return torch.cat([retrieved, torch.stack(more, dim=-1)], dim=-1)  # (B, C, 7)


def retrieval_features(scores: Tensor, seen: Tensor, items: Tensor) -> Tensor:
    """A retriever's score among the items not yet chosen, and minus the logarithm of its rank there.

    Args:
        scores: (B, n_items).
        seen: (B, n_items) bool.
        items: (B, C) int64.

    Returns:
        (B, C, 2) float32.
    """
    n = (~seen).sum(dim=1, keepdim=True).clamp(min=1)  # (B, 1)
    left = scores.masked_fill(seen, 0.0)  # (B, I)
    mean = left.sum(dim=1, keepdim=True) / n  # (B, 1)
    spread = ((left - mean).masked_fill(seen, 0.0).square().sum(dim=1, keepdim=True) / n).sqrt()  # (B, 1)
    asked = scores.gather(1, items)  # (B, C)
    standard = (asked - mean) / spread.clamp(min=1e-12)  # (B, C)
    # Above a score stand as many as the ascending row has to its right.
    ascending = scores.masked_fill(seen, -torch.inf).sort(dim=1)[0]  # (B, I)
    above = scores.shape[1] - torch.searchsorted(ascending, asked.contiguous(), right=True)  # (B, C)
    return torch.stack([standard.float(), -above.float().log1p()], dim=-1)


def prefixes(first: Tensor, before: Tensor) -> tuple[Tensor, Tensor]:
    """Stretches of flat events as offsets and places: starts (B,), lengths (B,) -> (B + 1,), (E,)."""
    crow = offsets(before)  # (B + 1,)
    row = row_of_each(crow)  # (E,)
    return crow, first[row] + torch.arange(len(row), device=row.device) - crow[row]


def blocks(n: int, cells: int, device: torch.device | str = "cpu") -> tuple[Tensor, ...]:
    """Rows 0..n-1 in blocks, so that a row's cells of pair scalars do not take too much memory."""
    step = max(1, _CELLS // (cells * len(PAIR_SCALARS)))
    return torch.arange(n, device=device).split(step) if n else ()
