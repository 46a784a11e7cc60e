"""Histories by contrast: two views of one history should say the same, and others something else."""

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor, nn

from recsys_lib.data import Interactions
from recsys_lib.devices import in_float32
from recsys_lib.geometry import alignment, uniformity
from recsys_lib.losses import nt_xent_loss
from recsys_lib.models.core.checks import check_histories
from recsys_lib.models.core.options import learned, option
from recsys_lib.models.core.views import cropped, masked, reordered, thinned
from recsys_lib.models.core.windows import by_length, rows_of
from recsys_lib.models.sasrec import SASRec

__all__ = ["ContrastiveSASRec"]

_EVENTS_AT_ONCE = 2**13


class ContrastiveSASRec(SASRec):
    """SASRec that also learns which two views come from one history (CL4SRec).

        L = next_weight L_next  +  contrast_weight NT-Xent(h(view 1), h(view 2))

    h is what the transformer makes of the last event. The views are made anew each time: a stretch of the
    history (``"crop"``), some events hidden (``"mask"``), a stretch in random order (``"reorder"``), some
    events left out (``"drop"``); ``"any"`` draws one of the four for each side of each batch, where the paper
    draws for each history. The other histories of the batch are the negatives (``losses.nt_xent_loss``); of
    someone with a long history another stretch may be among them.

    With ``next_weight=0`` it is pre-training alone: nothing says which item comes next, so its lists mean
    little. What it has learned is a start for another model (``start_from``), or ``encode``.

    Two figures tell how it went, for each epoch in ``views_log``: ``alignment``, how far two views of one
    history are apart, and ``uniformity``, how evenly histories are spread. Without negatives the first would
    be perfect and the second gone.

    Source: Xie, Sun, Liu, Wu, Gao, Zhang, Ding, Cui 2022, "Contrastive Learning for Sequential
    Recommendation", section III; the loss after Chen et al. 2020, "A Simple Framework for Contrastive
    Learning of Visual Representations".
    """

    next_weight: float = option("weight of the loss of the next item", default=1.0, at_least=0)
    contrast_weight: float = option("weight of the contrastive loss", default=0.1, at_least=0)
    temperature: float = option("divides the cosines of two views", default=0.2, above=0)
    views: str = option(
        "how a view is made, see above", default="any", choices=("any", "crop", "mask", "reorder", "drop")
    )
    crop_share: float = option("of the events that a crop keeps", default=0.6, above=0, at_most=1)
    mask_share: float = option("of the events that are hidden", default=0.3, at_least=0, below=1)
    reorder_share: float = option("of the events whose order is lost", default=0.6, above=0, at_most=1)
    drop_share: float = option("of the events that are left out", default=0.3, at_least=0, below=1)

    views_log: list[dict[str, float]] = learned("one dictionary an epoch: alignment and uniformity")

    def __post_init__(self) -> None:
        """Starts with an empty log of views, and checks what concerns two options."""
        super().__post_init__()
        self.views_log = []
        if not self.next_weight and not self.contrast_weight:
            raise ValueError("next_weight and contrast_weight are both 0, so there is nothing to learn")

    def build(self) -> None:
        """As SASRec, with one token more: the mask."""
        super().build()
        self.encoder.item_embedding = nn.Embedding(self.n_items + 1, self.dim)
        nn.init.normal_(self.encoder.item_embedding.weight, std=0.02)

    def prepare(self, events: Interactions, generator: torch.Generator) -> Interactions:
        """As SASRec; the log of views begins anew."""
        self.views_log = []
        return super().prepare(events, generator)

    def losses(self, examples: Interactions, generator: torch.Generator) -> Iterator[tuple[Tensor, int]]:
        """One epoch over the windows, each asked for its next items and for its other view."""
        seen: list[tuple[Tensor, Tensor]] = []
        for windows, lengths in self._batches(examples, generator):
            loss, n = self.encoder.item_embedding.weight.new_zeros(()), len(windows)
            if self.next_weight:
                hidden, targets = self.questions(windows, lengths, generator)  # (N, d), (N,)
                loss, n = loss + self.next_weight * self.objective(hidden, targets, generator), len(targets)
            if self.contrast_weight:
                # The last event of a window is what its events before it are asked for.
                a, b = (self._last(*self.view(windows[:, :-1], lengths - 1, generator)) for _ in range(2))
                loss = loss + self.contrast_weight * self.contrast(a, b)
                seen.append((a.detach(), b.detach()))
            yield loss, n
        if seen:
            a, b = (torch.cat(side) for side in zip(*seen, strict=True))  # (M, d) each
            spread = uniformity(a) if len(a) > 1 else 0.0
            self.views_log.append({"alignment": alignment(a, b), "uniformity": spread})

    def contrast(self, a: Tensor, b: Tensor) -> Tensor:
        """The loss of B pairs of views, (B, d) each: ()."""
        return nt_xent_loss(a, b, self.temperature)

    def view(self, rows: Tensor, lengths: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Another view of histories (B, T) of lengths (B,), one or more."""
        kinds: dict[str, Callable[[], tuple[Tensor, Tensor]]] = {
            "crop": lambda: cropped(rows, lengths, self.crop_share, generator),
            "mask": lambda: masked(rows, lengths, self.mask_share, self.n_items, generator),
            "reorder": lambda: reordered(rows, lengths, self.reorder_share, generator),
            "drop": lambda: thinned(rows, lengths, self.drop_share, generator),
        }
        if self.views != "any":
            return kinds[self.views]()
        drawn = int(torch.randint(len(kinds), (), generator=generator, device=rows.device))
        return list(kinds.values())[drawn]()

    def _last(self, rows: Tensor, lengths: Tensor) -> Tensor:
        """What the transformer makes of the last event of rows (B, T): (B, d)."""
        place = torch.arange(rows.shape[1], device=rows.device)  # (T,)
        return self.encoder(rows, lengths, asked=place == lengths[:, None] - 1)  # (B, d)

    @torch.no_grad()
    @in_float32()
    def encode(self, histories: Sequence[Tensor | Sequence[int]]) -> Tensor:
        """A person's vector, from what the person did.

        Args:
            histories: B lists or tensors of item indices, each oldest first. Only the most recent
                ``max_length`` events are read; without events the vector is zero.

        Returns:
            (B, d) float32 on the histories' device; for lists of numbers, on the model's.

        Raises:
            NotFittedError: before ``fit``.
            TypeError, ValueError, IndexError: histories that are no lists of known items.
        """
        self._check_fitted()
        items, lengths = check_histories(histories, self.n_items, self.device)  # (E,), (B,)
        given, lengths = items.to(self.device), lengths.to(self.device)
        read = lengths.clamp(max=self.max_length)  # (B,)
        starts = lengths.cumsum(0) - read  # (B,)
        vectors = torch.zeros(len(read), self.dim, device=self.device)  # (B, d)
        known = read.nonzero().squeeze(1)  # (K,) the histories that are not empty
        for batch in by_length(read[known], _EVENTS_AT_ONCE):
            chosen = known[batch]  # (b,)
            rows = rows_of(given, starts[chosen], read[chosen])  # (b, T)
            vectors[chosen] = self._last(rows, read[chosen]).float()
        return vectors.to(items.device)
