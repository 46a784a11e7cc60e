"""Items that are known by a number, a text and a picture at once: four ways to join the three."""

import copy
import json
from collections.abc import Iterator, Mapping
from typing import Self

import torch
from torch import Tensor, nn
from torch.nn import functional

from recsys_lib.data import Interactions
from recsys_lib.data.ragged import DistinctEvents, offsets, take_rows
from recsys_lib.devices import in_float32
from recsys_lib.losses import softmax_loss
from recsys_lib.models.core.checks import check_indices
from recsys_lib.models.core.fusions import FUSIONS, CrossFusion, GatedFusion
from recsys_lib.models.core.histories import RecencyWeighted
from recsys_lib.models.core.options import data, learned, option
from recsys_lib.models.core.trained import TrainedRecommender
from recsys_lib.training import batches

__all__ = ["MultimodalRecommender"]


class MultimodalRecommender(TrainedRecommender[DistinctEvents], RecencyWeighted):
    """An item is what its modalities say; a person is the mean of what the chosen items' modalities say.

        e_m(i) = W_m x_m(i)                      of the item; a learned vector where the modality is missing
        u_m    = mean of W'_m x_m(j) over the history's items j that have it
        s(u,i) = fusion(u_1 ... u_M, e_1 ... e_M)

    x_m is what a frozen encoder gives for a text or a picture; ``"id"`` is the item's number, whose vector is
    learned. ``fusion`` joins them, by ``LateFusion``, ``EarlyFusion``, ``GatedFusion`` or ``CrossFusion`` of
    ``models.core.fusions``.

    **People.** A history, not a number: people who were not in training are served at no cost, and what one
    person's choices say of a modality is learned for all. The order counts only through ``recency``.

    **What is missing.** A row of NaN, or False in ``present``, is an item without that modality; an item
    without events has no number. In its place stands a vector that all such items share. It is learned where
    something is missing in training: by nature, or by ``modality_dropout``, which hides each modality of each
    item for a step with this probability, but never all. Without either it stays zero. ``without`` asks what
    a fitted model makes of items that lack one; nothing is filled in unasked.

    **Learning.** An event's item against all items that have events (``losses.softmax_loss``), with the rest
    of its user's items as the history. These are no negatives: the model would learn that nobody wants what
    looks like the history. Nor are items without events: their kind would seem unwanted. A step reads the
    whole catalog, so that catalogs of some thousand items are what it is for.

    People of whom nothing is known get the logarithm of each item's share of the events as scores.

    Source: He and McAuley 2016, "VBPR: Visual Bayesian Personalized Ranking from Implicit Feedback" (late
    fusion of number and picture); Neverova, Wolf, Taylor, Nebout 2016, "ModDrop: Adaptive Multi-Modal Gesture
    Recognition" (modality drop-out); each fusion names its own.
    """

    fusion: str = option("how the modalities are joined, see above", default="late", choices=tuple(FUSIONS))
    dim: int = option("d, length of the vectors", default=32, at_least=1)
    n_heads: int = option("attention heads, of the fusions that have some", default=2, at_least=1)
    modality_dropout: float = option(
        "probability that a modality of an item is hidden in a step", default=0.0, at_least=0, below=1
    )
    l2: float = option("weight of the mean squared length of people and items", default=0.1, at_least=0)
    init_scale: float = option("standard deviation of vectors' features at the start", default=0.1, above=0)
    epochs: int = option(default=20)
    learning_rate: float = option(default=0.01)
    batch_size: int = option(default=512)
    check_every: int = option(default=1)
    layout: str | None = option("names with widths, JSON; taken from the modalities", default=None)
    modalities: Mapping[str, Tensor | None] | None = data(
        'vectors (n_items, D) by name, NaN in rows without one; None for ``"id"``; the number alone by '
        "default. Kept with the learned state",
        default=None,
        kw_only=False,
    )
    present: Mapping[str, Tensor] | None = data(
        "(n_items,) bool by name: False hides what is in the row", default=None
    )

    features: Tensor = learned("(n_items, D_1 + D_2 + ...) float32, centered and scaled; 0 where missing")
    there: Tensor = learned("(n_items, M) bool, which modalities an item has")
    center: Tensor = learned("(D_1 + D_2 + ...) float32, what was taken out")
    size: Tensor = learned("(D_1 + D_2 + ...) float32, what was divided by")
    known: Tensor = learned("(n_items,) bool, items with events")
    log_popularity: Tensor = learned("(n_items,) float32")
    of_items: nn.ParameterList = learned("W, (D_m, d) a modality and (n_items, d) for numbers, of items")
    of_histories: nn.ParameterList = learned("W', the same of histories")
    missing: nn.Parameter = learned("(M, d), what stands for a modality that an item lacks")
    fuse: nn.Module = learned("the fusion")

    def __post_init__(self) -> None:
        """Checks what concerns two options."""
        super().__post_init__()
        if self.fusion in ("early", "cross_attention") and self.dim % self.n_heads:
            raise ValueError(f"dim={self.dim} cannot be shared evenly among n_heads={self.n_heads}")

    # What it is.

    def build(self) -> None:
        """Takes the modalities, or keeps those at hand, and makes the maps."""
        if self.modalities is not None or self.layout is None:
            self._take({"id": None} if self.modalities is None else self.modalities)
        elif "features" in self._buffers and len(self.features) != self.n_items:
            raise ValueError(
                f"the modalities are those of {len(self.features)} items, and there are {self.n_items}; give "
                f"those of the new catalog"
            )
        self.of_items, self.of_histories = (self._maps() for _ in range(2))
        self.missing = nn.Parameter(torch.zeros(len(self.names), self.dim))
        self.fuse = FUSIONS[self.fusion](self.dim, len(self.names), self.n_heads)

    @property
    def names(self) -> list[str]:
        """The modalities, in the order of every axis M: alphabetical, whatever the order they came in."""
        return list(self._widths)

    @property
    def _widths(self) -> dict[str, int]:
        return {"id": 0} if self.layout is None else json.loads(self.layout)

    def _maps(self) -> nn.ParameterList:
        # A row of features has length 1 on average, so that all modalities start alike.
        rows = [width or self.n_items for width in self._widths.values()]
        return nn.ParameterList(torch.randn(n, self.dim) * self.init_scale for n in rows)

    def _columns(self, name: str) -> slice:
        widths = self._widths
        end = sum(width for other, width in widths.items() if other <= name)
        return slice(end - widths[name], end)

    def tokens(self, maps: nn.ParameterList, features: Tensor) -> Tensor:
        """What each modality says of all items, features (n_items, D_1 + ...): (n_items, M, d)."""
        features = features.to(self.missing.dtype)
        said = []
        for name, made in zip(self.names, maps, strict=True):
            said.append(made if name == "id" else features[:, self._columns(name)] @ made)  # (n_items, d)
        return torch.stack(said, dim=1)  # (n_items, M, d)

    def items_side(self, there: Tensor) -> Tensor:
        """The tokens of all items, (n_items, M, d); the shared ones where ``there`` (n_items, M) is False."""
        return torch.where(there[..., None], self.tokens(self.of_items, self.features), self.missing)

    def people_side(self, there: Tensor, crow: Tensor, items: Tensor, weights: Tensor) -> Tensor:
        """The mean of each modality over the items that have it: (B, M, d); zero where none has it.

        Args:
            there: (n_items, M) bool.
            crow: (B + 1,) int64 offsets of the histories.
            items: (E,) int64.
            weights: (E,) float32.
        """
        read = there.to(self.missing.dtype)  # (n_items, M)
        table = self.tokens(self.of_histories, self.features) * read[..., None]  # (n_items, M, d)
        rows = torch.cat([table.flatten(1), read], dim=1)  # (n_items, M d + M)
        total = functional.embedding_bag(
            items, rows, crow, mode="sum", per_sample_weights=weights.to(rows.dtype), include_last_offset=True
        )  # (B, M d + M)
        total, count = total.split([table[0].numel(), read.shape[1]], dim=1)  # (B, M d), (B, M)
        counted = torch.where(count > 0, count, 1)[..., None]  # (B, M, 1)
        return total.unflatten(1, (-1, self.dim)) / counted  # (B, M, d)

    # Learning.

    def prepare(self, events: Interactions, generator: torch.Generator) -> DistinctEvents:
        """Keeps the histories, which are the examples as well, and says whose numbers are known."""
        if "features" not in self._buffers:
            raise ValueError(
                f"{type(self).__name__} has a layout and nothing that fills it: give modalities, {self.names}"
            )
        counts = torch.bincount(events.items, minlength=self.n_items)  # (n_items,)
        self._keep("known", counts > 0)
        self._keep("log_popularity", ((counts + 1) / (counts + 1).sum()).log())
        if "id" in self.names:
            there = self.there.clone()
            there[:, self.names.index("id")] = self.known
            self._keep("there", there)
        found = self._keep_histories(events)
        if not bool((found.crow.diff() > 1).any()):
            raise ValueError(
                "no user has two events with different items, so there is no history to learn from"
            )
        return found

    def losses(self, examples: DistinctEvents, generator: torch.Generator) -> Iterator[tuple[Tensor, int]]:
        """One epoch over the events of users that have others, shuffled."""
        told = (examples.crow.diff()[examples.users] > 1).nonzero().squeeze(1)  # (E,)
        column = self.known.cumsum(0) - 1  # (n_items,) an item's place among those with events
        for batch in batches(len(told), self.batch_size, generator):
            users, own = examples.users[told[batch]], examples.items[told[batch]]  # (B,), (B,)
            place, row = take_rows(examples.crow, users)  # (E',), (E',)
            items = examples.items[place]  # (E',)
            weights = self.history_weights[place] * (items != own[row])  # (E',) the item itself is not read
            crow = offsets(examples.crow.diff()[users])  # (B + 1,)
            people = self.people_side(self._shown(generator), crow, items, weights)  # (B, M, d)
            shown = self._shown(generator)  # (n_items, M)
            tokens = self.items_side(shown)[self.known]  # (K, M, d)
            scores = self.fuse(people, tokens, shown[self.known])  # (B, K)
            others = torch.zeros_like(scores, dtype=torch.bool)  # (B, K)
            others[row, column[items]] = True
            others[torch.arange(len(own), device=own.device), column[own]] = False
            loss = softmax_loss(scores.masked_fill(others, -torch.inf), column[own])  # ()
            lengths = people.square().sum(dim=(1, 2)).mean() + tokens.square().sum(dim=(1, 2)).mean()  # ()
            yield loss + self.l2 * lengths, len(batch)

    def _shown(self, generator: torch.Generator) -> Tensor:
        """Which modalities are read in a step: (n_items, M) bool. Of an item that has some, one stays."""
        if not self.modality_dropout:
            return self.there
        luck = torch.rand(self.there.shape, generator=generator, device=self.there.device)  # (n_items, M)
        luck = luck.masked_fill(~self.there, -1.0)
        best = luck == luck.amax(dim=1, keepdim=True)  # (n_items, M)
        return self.there & ((luck >= self.modality_dropout) | best)

    # Asking.

    def _score_histories(self, crow: Tensor, items: Tensor, weights: Tensor) -> Tensor:
        people = self.people_side(self.there, crow, items, weights)  # (B, M, d)
        scores = self.fuse(people, self.items_side(self.there), self.there)  # (B, n_items)
        return torch.where(crow.diff()[:, None] > 0, scores, self.log_popularity.to(scores.dtype))

    @torch.no_grad()
    @in_float32()
    def gates(self, items: Tensor | None = None) -> Tensor:
        """How much each modality of an item counts, with ``fusion="gated"``.

        Args:
            items: (N,) integer indices; the catalog by default.

        Returns:
            (N, M) float32 on the model's device, in the order of ``names``. A row sums to one; what an item
            lacks has gate 0.

        Raises:
            NotFittedError, IndexError: as ``score``.
            ValueError: another fusion, which has no gates.
        """
        self._check_fitted()
        if not isinstance(self.fuse, GatedFusion):
            raise ValueError(f'fusion="{self.fusion}" has no gates; take fusion="gated"')
        found = self.fuse.gates(self.items_side(self.there), self.there)  # (n_items, M)
        return found if items is None else found[check_indices(items, self.n_items, "item").to(self.device)]

    @torch.no_grad()
    @in_float32()
    def attention(self, users: Tensor) -> Tensor:
        """Who looks at what, with ``fusion="cross_attention"``.

        Args:
            users: (B,) integer indices of users of ``fit``.

        Returns:
            (B, H, n_items, M) float32 on the model's device, in the order of ``names``; a row sums to one.

        Raises:
            NotFittedError, IndexError: as ``score``.
            ValueError: another fusion, in which nobody looks.
        """
        users = self._check_users(users).to(self.device)  # (B,)
        if not isinstance(self.fuse, CrossFusion):
            raise ValueError(f'fusion="{self.fusion}" has no such attention; take fusion="cross_attention"')
        place, _ = take_rows(self.history_crow, users)  # (E,)
        crow = offsets(self.history_crow.diff()[users])  # (B + 1,)
        people = self.people_side(self.there, crow, self.history_items[place], self.history_weights[place])
        looks = self.fuse.weights(people.sum(dim=1), self.items_side(self.there), self.there)  # (M, H, B, N)
        return looks.permute(2, 1, 3, 0)  # (B, H, n_items, M)

    def without(self, *names: str, items: Tensor | None = None) -> Self:
        """A copy that lacks modalities of some items, of the candidates and of the histories alike.

        Args:
            *names: which modalities.
            items: (n_items,) bool, whose; all by default.

        Returns:
            The copy, with what was learned. The content is taken out, not only hidden.

        Raises:
            NotFittedError: before ``fit``.
            KeyError: a modality that the model does not read.
            ValueError: another shape of ``items``.
        """
        self._check_fitted()
        whose = torch.ones(self.n_items, dtype=torch.bool, device=self.device) if items is None else items
        _check_mask(whose, self.n_items, "items")
        other = copy.deepcopy(self)
        other.modalities, other.present = None, None
        there, features = self.there.clone(), self.features.clone()
        for name in names:
            self._check_name(name)
            there[whose.to(self.device), self.names.index(name)] = False
            features[whose.to(self.device), self._columns(name)] = 0.0
        other._keep("there", there)
        other._keep("features", features)
        return other

    def with_content(self, **content: Tensor) -> Self:
        """A copy that reads other content of the same kind: a picture changed, or one put in another's place.

        Args:
            **content: (n_items, D) by modality, as given to the model; rows of NaN are missing.

        Returns:
            The copy, with what was learned.

        Raises:
            NotFittedError: before ``fit``.
            KeyError: a modality that the model does not read.
            ValueError: another shape, or numbers that are not finite; ``"id"``, which has no content.
        """
        self._check_fitted()
        other = copy.deepcopy(self)
        other.modalities, other.present = None, None
        there, features = self.there.clone(), self.features.clone()
        for name, given in content.items():
            self._check_name(name)
            vectors, rows = _content(name, given, self.n_items)  # (n_items, D), (n_items,)
            columns = self._columns(name)
            if vectors.shape[1] != self._widths[name]:
                raise ValueError(
                    f"{name!r} must be ({self.n_items}, {self._widths[name]}), got {tuple(vectors.shape)}"
                )
            vectors, rows = vectors.to(self.device), rows.to(self.device)
            scaled = (vectors - self.center[columns]) / self.size[columns]  # (n_items, D)
            features[:, columns] = scaled.masked_fill(~rows[:, None], 0.0)
            there[:, self.names.index(name)] = rows
        other._keep("there", there)
        other._keep("features", features)
        return other

    # What is given.

    def _check_name(self, name: str) -> None:
        if name not in self.names:
            raise KeyError(f"no modality {name!r}; there are {', '.join(self.names)}")

    def _take(self, modalities: Mapping[str, Tensor | None]) -> None:
        """Makes buffers of the modalities: centered, and so scaled that a row has length 1 on average.

        Adam moves every weight by as much, so that a long vector would learn faster than a short one.
        """
        if not modalities:
            raise ValueError('modalities are empty; give one or more, such as {"id": None}')
        hidden = dict(self.present or {})
        if unknown := sorted(hidden.keys() - (modalities.keys() - {"id"})):
            raise KeyError(f"present names {', '.join(unknown)}, which is no modality with vectors")
        widths, there, blocks, centers, sizes = {}, [], [], [], []
        for name in sorted(modalities):
            given = modalities[name]
            if (name == "id") != (given is None):
                raise ValueError('"id" is the number, and None; every other modality has vectors')
            if given is None:
                vectors, rows = torch.zeros(self.n_items, 0), torch.ones(self.n_items, dtype=torch.bool)
            else:
                vectors, rows = _content(name, given, self.n_items)  # (n_items, D), (n_items,)
            if name in hidden:
                _check_mask(hidden[name], self.n_items, f"present[{name!r}]")
                rows = rows & hidden[name].cpu()
            if not bool(rows.any()):
                raise ValueError(f"modality {name!r} is missing for every item; leave it out")
            center = vectors[rows].mean(dim=0)  # (D,)
            size = (vectors[rows] - center).square().sum(dim=1).mean().sqrt()  # ()
            # Where all rows are equal, only rounding is left; scaled up it would look like something.
            least = vectors[rows].square().sum(dim=1).mean().sqrt() * 1e-5  # ()
            size = torch.maximum(size, least).clamp(min=torch.finfo(torch.float32).tiny)
            blocks.append(((vectors - center) / size).masked_fill(~rows[:, None], 0.0))
            widths[name] = vectors.shape[1]
            there.append(rows)
            centers.append(center)
            sizes.append(size.expand(len(center)))
        self.layout = json.dumps(widths)
        self._keep("features", torch.cat(blocks, dim=1))
        self._keep("there", torch.stack(there, dim=1))
        self._keep("center", torch.cat(centers))
        self._keep("size", torch.cat(sizes))


def _content(name: str, given: Tensor | None, n_items: int) -> tuple[Tensor, Tensor]:
    """Vectors (n_items, D) float32 and the rows that are there, (n_items,) bool; both on the CPU."""
    if given is None:
        raise ValueError(f"modality {name!r} has no content that could be given")
    vectors = torch.as_tensor(given).detach().float().cpu()
    if vectors.ndim != 2 or len(vectors) != n_items or not vectors.shape[1]:
        raise ValueError(
            f"modality {name!r} must be ({n_items}, D), a row an item, got {tuple(vectors.shape)}"
        )
    gone = vectors.isnan().all(dim=1)  # (n_items,)
    vectors = vectors.masked_fill(gone[:, None], 0.0)
    if not bool(vectors.isfinite().all()):
        row = int((~vectors.isfinite()).any(dim=1).nonzero()[0, 0])
        raise ValueError(
            f"modality {name!r} is not finite for item {row}; an item without it has a whole row of NaN"
        )
    return vectors, ~gone


def _check_mask(mask: Tensor, n_items: int, name: str) -> None:
    if mask.dtype != torch.bool or mask.shape != (n_items,):
        raise ValueError(f"{name} must be ({n_items},) bool, got {tuple(mask.shape)} {mask.dtype}")
