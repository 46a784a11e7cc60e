"""Histories as rows of a batch: an order of the events, windows, batches of like length."""

import torch
from torch import Tensor

from recsys_lib.data import Interactions
from recsys_lib.data.ragged import offsets, run_starts, within_rows
from recsys_lib.devices import seed_generator

__all__ = ["by_length", "cut_windows", "kept_histories", "rows_of", "shuffle_ties", "strictly_before"]


def shuffle_ties(events: Interactions, generator: torch.Generator) -> Tensor:
    """An order of the events, (E,) int64: by user and time, and at random among those of one time."""
    device = events.users.device
    group = run_starts(events.users, events.timestamps).cumsum(0)  # (E,)
    shuffled = torch.randperm(len(group), generator=generator, device=generator.device).to(device)  # (E,)
    return shuffled[group[shuffled].argsort(stable=True)]


def kept_histories(events: Interactions, seed: int) -> tuple[Tensor, Tensor]:
    """What a model keeps of every user's history, to read it when asked.

    Returns:
        ``crow`` (n_users + 1,) int64 offsets, and items (E,) int64, user after user, oldest first; those of
        one time in an order that ``seed`` decides.
    """
    # On the CPU whatever the device is, so that the order of ties is the same on all.
    order = shuffle_ties(events, seed_generator(seed))  # (E,)
    return offsets(events.user_counts()), events.items[order]


def strictly_before(events: Interactions) -> Tensor:
    """How many events of its user came before each event, (E,) int64; those of the same time did not."""
    opens = run_starts(events.users, events.timestamps)  # (E,) begins a tied group
    first = opens.nonzero().squeeze(1)[opens.cumsum(0) - 1]  # (E,) the place where the event's group begins
    return first - offsets(events.user_counts())[events.users]


def cut_windows(events: Interactions, size: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Cuts the histories so that every event but a user's first is the next one of another in one window.

    A window has at most ``size`` + 1 events, and begins with the last one of the window before. In a longer
    history the first cut falls at random.

    Args:
        events: E events, by user and time.
        size: events after which there is a cut.
        generator: on the events' device.

    Returns:
        starts (M,), the place of a window's first event; lengths (M,), two or more.
    """
    users, counts = events.users, events.user_counts()  # (E,), (n_users,)
    crow = offsets(counts)  # (n_users + 1,)
    shift = torch.randint(size, counts.shape, generator=generator, device=counts.device)  # (n_users,)
    shift = shift.masked_fill(counts <= size + 1, 0)  # what fits is not cut
    number = within_rows(crow)  # (E,) of the event in its history
    opens = (number == 0) | ((number + shift[users]) % size == 0)  # (E,)
    opens &= number < counts[users] - 1  # a last event has no next one
    starts = opens.nonzero().squeeze(1)  # (M,)
    # A window ends with the first event of the next window, or with the user's last.
    ends = torch.cat([starts[1:], starts.new_full((1,), len(users))])  # (M,)
    ends = torch.minimum(ends, (crow[1:] - 1)[users[starts]])  # (M,)
    return starts, ends - starts + 1


def by_length(lengths: Tensor, budget: int) -> list[Tensor]:
    """Batches of rows of similar length, each of at most ``budget`` events with padding, or of a single row.

    Args:
        lengths: (M,) int64.
        budget: events in a batch.

    Returns:
        Indices into ``lengths``, each in one batch; rows of equal length keep their order.
    """
    if not len(lengths):
        return []
    order = lengths.argsort(stable=True)  # (M,) shortest first, so the newest row of a batch is its longest
    sizes, size = [], 0
    for length in lengths[order].tolist():
        if size and (size + 1) * length > budget:
            sizes.append(size)
            size = 0
        size += 1
    return list(order.split([*sizes, size]))


def rows_of(items: Tensor, starts: Tensor, lengths: Tensor) -> Tensor:
    """Stretches of ``items`` (E,) as rows (B, T), T the longest; what follows a stretch is its padding."""
    place = starts[:, None] + torch.arange(int(lengths.max()), device=items.device)  # (B, T)
    return items[place.clamp(max=len(items) - 1)]  # (B, T)
