"""What is pre-training worth? Behaviour without stars first, then one task with few labels.

::

    split = leave_last_out(ratings, n=0.2)  # all ratings: what people did, and what they said of it
    known = pretrain("masked", split.train, seed=seed)
    labels = few_labels(split, share=0.1, seed=seed)
    model = fine_tune("rating", labels, known, learning_rate=0.003, seed=seed)
    found = measure(model, "rating", split)

All pre-trainings end in one of two encoders, with a vector for every item, and the same head goes over them
(``models.HistoryHead``). What they cost is counted in events read.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from recsys_lib.data import Interactions, Split
from recsys_lib.devices import seed_generator
from recsys_lib.draws import student_quantile, student_tail
from recsys_lib.evaluation import Comparison, evaluate
from recsys_lib.metrics import auc
from recsys_lib.models import (
    BERT4Rec,
    ContrastiveSASRec,
    HistoryHead,
    HistoryReader,
    MultDAE,
    MultVAE,
    Recommender,
    SequenceDenoiser,
)
from recsys_lib.models.core.options import option
from recsys_lib.models.core.trained import TrainedRecommender

__all__ = [
    "PRETRAININGS",
    "TASKS",
    "ContrastiveBothWays",
    "FewLabels",
    "LinearVAE",
    "PerPerson",
    "Pretraining",
    "few_labels",
    "fine_tune",
    "measure",
    "over_people_and_seeds",
    "pretrain",
]

TASKS = {"click": "log-loss", "ranking": "NDCG@10", "rating": "RMSE"}
"""The tasks of ``HistoryHead``, with what is measured first; of the first and the last less is better."""

_LIKED = 4.0
_OF_A_RANKING = ("item_bias", "head")  # parts that a pre-training has made for its own question


class _MeanAndSpread(nn.Module):
    """M and m, V and v of ``LinearVAE``: (B, d) to (B, 2 d)."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.mean, self.spread = nn.Linear(dim, dim), nn.Linear(dim, dim)

    def forward(self, first: Tensor) -> Tensor:
        return torch.cat([self.mean(first), self.spread(first)], dim=1)


class LinearVAE(MultVAE):
    """``MultVAE`` without the layers beside its code, so that its encoder is that of ``MultDAE``.

    mu = M first + m,   log var = V first + v,   s = O z + o
    """

    def build(self) -> None:
        """Makes the outer layers and those of the code."""
        self.to_code = _MeanAndSpread(self.dim)  # type: ignore[assignment]
        self._make(self.dim, self.dim)

    def decode(self, code: Tensor) -> Tensor:
        """The code itself."""
        return code


class ContrastiveBothWays(ContrastiveSASRec):
    """``ContrastiveSASRec`` on the encoder of ``BERT4Rec``: a mask behind the history stands for all of it.

    An encoder that looks both ways cannot be asked for the next item, so there is the contrast alone.
    """

    causal = False

    next_weight: float = option(default=0.0)
    contrast_weight: float = option(default=1.0)

    def __post_init__(self) -> None:
        """Refuses the loss of the next item."""
        super().__post_init__()
        if self.next_weight:
            raise ValueError(f"next_weight={self.next_weight:g}: who looks both ways sees the next item")

    def _last(self, rows: Tensor, lengths: Tensor) -> Tensor:
        rows = functional.pad(rows, (0, 1)).scatter(1, lengths[:, None], self.n_items)  # (B, T + 1)
        return super()._last(rows, lengths + 1)


@dataclass(frozen=True)
class Pretraining:
    """One way to learn from behaviour alone.

    Attributes:
        make: its class.
        reads: the encoder that it ends in, see ``HistoryHead.reads``.
        parts: of ``HistoryHead``, with their names in the model.
        options: with which it is made.
    """

    make: type[TrainedRecommender[Any]]
    reads: str
    parts: Mapping[str, str]
    options: Mapping[str, Any]


_BAG = {
    "encoder.rows": "item_rows",
    "encoder.bias": "first_bias",
    "items": "output.weight",
    "item_bias": "output.bias",
}
_CODE = {"head.map.weight": "to_code.mean.weight", "head.map.bias": "to_code.mean.bias"}
_TRANSFORMER = {"encoder": "encoder", "items": "encoder.item_embedding.weight"}
_SHAPE = {"n_layers": 1, "max_length": 50, "learning_rate": 0.003}

PRETRAININGS: dict[str, Pretraining] = {
    "DAE": Pretraining(MultDAE, "bag", _BAG, {"learning_rate": 0.003, "epochs": 40}),
    "VAE": Pretraining(LinearVAE, "bag", _BAG | _CODE, {"learning_rate": 0.003, "epochs": 40}),
    "contrast": Pretraining(
        ContrastiveBothWays, "transformer", _TRANSFORMER, _SHAPE | {"epochs": 20, "batch_size": 8192}
    ),
    "masked": Pretraining(BERT4Rec, "transformer", _TRANSFORMER, _SHAPE | {"epochs": 30}),
    "denoising": Pretraining(SequenceDenoiser, "transformer", _TRANSFORMER, _SHAPE | {"epochs": 10}),
}
"""The pre-trainings by name."""


def pretrain(
    name: str,
    behaviour: Interactions,
    *,
    dim: int = 64,
    seed: int = 0,
    device: str | torch.device = "auto",
    **options: Any,
) -> TrainedRecommender[Any]:
    """Learns from what people did; ratings are not looked at.

    Args:
        name: of ``PRETRAININGS``.
        behaviour: all events that may be read. What shall be ranked later must not be among them.
        dim: features of a person and an item.
        seed: of everything random.
        device: see ``Recommender.fit``.
        **options: of the model, in place of those of ``PRETRAININGS``.
    """
    if name not in PRETRAININGS:
        raise KeyError(f"no pre-training {name!r}; there are {', '.join(PRETRAININGS)}")
    chosen = PRETRAININGS[name]
    model = chosen.make(**{"dim": dim, "seed": seed, **chosen.options, **options})
    return model.fit(behaviour, device=device, progress=False)


@dataclass(frozen=True)
class FewLabels:
    """What a fine-tuning is given.

    Attributes:
        behaviour: what people did, to read; with ratings, which nobody looks at.
        labels: events whose ratings are known, to learn from.
        validation: later ones, to choose by.
    """

    behaviour: Interactions
    labels: Interactions
    validation: Interactions


def few_labels(split: Split, share: float, seed: int = 0) -> FewLabels:
    """Keeps the ratings of a share of the events, drawn at random; of a smaller share the same and fewer.

    The share is taken of what is learned from and of what is chosen by, since a choice needs labels as well.

    Args:
        split: of all ratings.
        share: of the events, above 0 and at most 1.
        seed: of the draw.
    """
    if not 0 < share <= 1:
        raise ValueError(f"share must be above 0 and at most 1, got {share}")

    def some(events: Interactions, salt: int) -> Interactions:
        generator = seed_generator(2 * seed + salt)
        order = torch.randperm(len(events), generator=generator, device="cpu")  # (E,)
        return events[order[: max(1, round(share * len(events)))].sort().values.to(events.users.device)]

    return FewLabels(split.train, some(split.train, 0), some(split.validation, 1))


def fine_tune(
    task: str,
    few: FewLabels,
    known: nn.Module | None = None,
    *,
    parts: Mapping[str, str] | Sequence[str] = ("encoder",),
    frozen: bool = False,
    device: str | torch.device = "auto",
    **options: Any,
) -> HistoryHead:
    """Learns one task from few labels, stopping by the few of validation.

    Args:
        task: of ``TASKS``.
        few: what is given.
        known: a model to start from; without one everything begins at random.
        parts: of it, see ``HistoryHead``. Its head and its items' levels are taken for a ranking alone.
        frozen: whether the encoder stays as it is.
        device: see ``Recommender.fit``.
        **options: of ``HistoryHead``.
    """
    model = HistoryHead(task=task, behaviour=few.behaviour, **options)
    labels, validation = few.labels, few.validation
    if task == "ranking":
        labels, validation = labels.positives(_LIKED), validation.positives(_LIKED)
    if known is not None:
        names = dict(parts) if isinstance(parts, Mapping) else {part: part for part in parts}
        if task != "ranking":  # how likely an item is to be chosen is no number of stars
            names = {here: there for here, there in names.items() if not here.startswith(_OF_A_RANKING)}
        model.start_from(known, names, frozen=["encoder"] if frozen else None)
    return model.fit(labels, validation, device=device, progress=False)


@dataclass(frozen=True)
class PerPerson:
    """A measure as sums over each person's events, so that people can be counted as the unit.

    Attributes:
        sums: (U,) float64, of all people; zero of whom nothing was asked.
        counts: (U,) float64, what they are sums over; one for a measure that is a person's own.
        root: whether the measure is the root of the mean.
    """

    sums: Tensor
    counts: Tensor
    root: bool = False

    @property
    def value(self) -> float:
        """The measure."""
        mean = float(self.sums.sum() / self.counts.sum())
        return math.sqrt(mean) if self.root else mean

    @property
    def influence(self) -> Tensor:
        """How much each person moves it, to first order: (U,), of mean zero.

        Of a ratio of sums a person's share is (sum - mean count) / mean of the counts; a root halves it and
        divides by itself (the delta method).
        """
        mean = self.sums.sum() / self.counts.sum()  # ()
        moved = (self.sums - mean * self.counts) / self.counts.mean()  # (U,)
        return moved / (2 * mean.sqrt()) if self.root else moved


def measure(model: Recommender, task: str, split: Split) -> dict[str, PerPerson]:
    """Asks a fitted model for the test part, with all that came before it as the history.

    Returns:
        ``"ndcg@10"`` over the whole catalog; ``"log-loss"`` of all test pairs and ``"auc"``, the mean over
        the people who liked some and not others; or ``"rmse"`` of all test pairs.
    """
    test = split.test
    if isinstance(model, HistoryReader):
        model.update_histories(split.history)
    n = test.n_users
    if task == "ranking":
        report = evaluate(model, test.positives(_LIKED), seen=split.history, metrics=["ndcg"], progress=False)
        return {"ndcg@10": _one_each(report.users.cpu(), report.per_user["ndcg@10"], n)}
    users, counts = test.users, test.user_counts().double()  # (N,), (n_users,)
    scores = model.predict(users, test.items).double()  # (N,)
    if task == "rating":
        squares = (scores - test.ratings.double()).square()  # (N,)
        return {"rmse": PerPerson(users.bincount(weights=squares, minlength=n), counts, root=True)}
    liked = test.ratings >= _LIKED  # (N,)
    losses = functional.binary_cross_entropy_with_logits(scores, liked.double(), reduction="none")  # (N,)
    said = torch.zeros(n, test.n_items, dtype=torch.float64, device=scores.device)  # (n_users, n_items)
    there, wanted = torch.zeros_like(said, dtype=torch.bool), torch.zeros_like(said, dtype=torch.bool)
    said[users, test.items], there[users, test.items], wanted[users, test.items] = scores, True, liked
    n_liked = wanted.sum(dim=1)  # (n_users,)
    both = ((n_liked > 0) & (n_liked < there.sum(dim=1))).nonzero().squeeze(1)  # (V,)
    return {
        "log-loss": PerPerson(users.bincount(weights=losses, minlength=n), counts),
        "auc": _one_each(both, auc(said[both], wanted[both], there[both]), n),
    }


def _one_each(people: Tensor, values: Tensor, n_users: int) -> PerPerson:
    """A measure of people (V,) that is their own, (V,)."""
    sums = torch.zeros(n_users, dtype=torch.float64, device=people.device)  # (n_users,)
    counts = sums.index_fill(0, people, 1.0)  # (n_users,)
    return PerPerson(sums.scatter(0, people, values.double().to(people.device)), counts)


def over_people_and_seeds(
    found: Iterable[PerPerson],
    against: Iterable[PerPerson] | None = None,
    *further: tuple[float, Iterable[PerPerson]],
    level: float = 0.95,
) -> Comparison:
    """The mean over seeds, or the mean difference seed by seed, with an interval over people and seeds.

    Other people would have given another value, and so would other seeds. The variance of the mean is the sum
    of both: that over people of what each moves, the mean over the seeds, and that over seeds of the whole.
    A little is counted twice, so the interval is on the safe side. Its degrees of freedom are those of Welch
    and Satterthwaite; with one seed it is over people alone.

    Args:
        found: one measure a seed, of the same people.
        against: what is subtracted, seed by seed; None for nothing.
        *further: weights, and what is added with them: for the difference of two differences.
        level: the interval's coverage.

    Source: Satterthwaite 1946, "An Approximate Distribution of Estimates of Variance Components".
    """
    terms = [(1.0, list(found)), *((weight, list(measures)) for weight, measures in further)]
    if against is not None:
        terms.append((-1.0, list(against)))
    by_seed = list(zip(*(measures for _, measures in terms), strict=True))
    weights = [weight for weight, _ in terms]
    values = [sum(w * m.value for w, m in zip(weights, row, strict=True)) for row in by_seed]
    moved = [sum(w * m.influence for w, m in zip(weights, row, strict=True)) for row in by_seed]
    each = torch.stack([torch.as_tensor(m) for m in moved]).mean(dim=0)  # (U,)
    mean, n, n_seeds = sum(values) / len(values), len(each), len(values)
    parts = [(float(each.var()) / n, n - 1)]
    if n_seeds > 1:
        parts.append((float(torch.tensor(values, dtype=torch.float64).var()) / n_seeds, n_seeds - 1))
    variance = sum(part for part, _ in parts)
    if not variance:
        return Comparison(mean, mean, mean, 1.0 if mean == 0 else 0.0, n, 0.0)
    df = max(1, int(variance**2 / sum(part**2 / d for part, d in parts)))
    error = math.sqrt(variance)
    half = student_quantile(df, level) * error
    return Comparison(mean, mean - half, mean + half, student_tail(mean / error, df), n, error * math.sqrt(n))
