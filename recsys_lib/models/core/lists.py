"""Lists to learn a ranking from: a target and others, as the model will be asked to rank."""

import torch
from torch import Tensor

from recsys_lib.data import Interactions
from recsys_lib.models.core.checks import check_indices

__all__ = ["checked_candidates", "draw_lists"]


def checked_candidates(candidates: Tensor | None, events: Interactions, n_items: int) -> Tensor | None:
    """The candidates of each event, (E, C) int64 on the CPU.

    Raises:
        TypeError, IndexError: they are no item indices.
        ValueError: another number of rows than of events.
    """
    if candidates is None:
        return None
    found = check_indices(candidates, n_items, "item", ndim=2, padding=True).cpu()  # (E, C)
    if len(found) != len(events):
        raise ValueError(
            f"candidates must have one row for each of the {len(events):,} events of fit, got {len(found):,}"
        )
    return found


def draw_lists(candidates: Tensor, targets: Tensor, k: int, generator: torch.Generator) -> Tensor:
    """Draws negatives from each row's candidates, without replacement.

    Args:
        candidates: (N, C) int64, -1 at padding.
        targets: (N,) int64, which are no negatives.
        k: draws in a row.
        generator: on the candidates' device.

    Returns:
        (N, k) int64, -1 where a row has fewer.
    """
    keys = torch.rand(candidates.shape, generator=generator, device=candidates.device)  # (N, C)
    keys = keys.masked_fill((candidates < 0) | (candidates == targets[:, None]), -1.0)  # (N, C)
    best, place = keys.topk(min(k, candidates.shape[1]), dim=1)  # (N, k')
    drawn = candidates.gather(1, place).masked_fill(best < 0, -1)  # (N, k')
    return torch.nn.functional.pad(drawn, (0, k - drawn.shape[1]), value=-1)  # (N, k)
