"""Which vectors of the items' texts are worth something? One table, for any catalog.

::

    vectors = {"MiniLM": item_vectors(texts, TextEncoder()), "tokens": item_vectors(texts, StaticEncoder())}
    found = compare_representations(chosen, vectors)
    found.table()

Each representation is ranked twice: on known items, by the events that are held out last, and on new items,
which have no event in training (``cold_items``). Popularity and random vectors of the same size stand beside
them. Only what beats the random vectors was read.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from recsys_lib.arguments import refuse_not_finite
from recsys_lib.cold_items import ColdItems, Draw
from recsys_lib.data import Interactions, leave_last_out
from recsys_lib.draws import Draws
from recsys_lib.evaluation import Comparison, Report, compare, evaluate
from recsys_lib.models import Popularity, Recommender, TextProfile
from recsys_lib.progress import progress_bar
from recsys_lib.text import TextVectors

__all__ = ["FoundRepresentations", "compare_representations", "item_vectors"]

CONTROL, COUNTED = "random vectors", "popularity"


def item_vectors(texts: Iterable[Any], encoder: TextVectors, *, progress: bool = False) -> Tensor:
    """One vector a text; an item without a text gets the mean of the others.

    An encoder makes a vector of an empty text as well, the same for all of them, so that items without a text
    would look alike. Their mean says nothing: models that center vectors read it as zero.

    Args:
        texts: one an item; missing (None, NaN) or blank where there is none.
        encoder: of ``recsys_lib.text``, or one of your own.
        progress: show a bar.

    Returns:
        (N, D) float32 on the CPU.

    Raises:
        TypeError: something that is no text.
        ValueError: no item has a text.
    """
    column = pd.Series(list(texts), dtype=object)
    for place, text in column.items():
        if not isinstance(text, str) and not (pd.api.types.is_scalar(text) and pd.isna(text)):
            raise TypeError(f"text {place} is a {type(text).__name__}, not a string: {text!r:.60}")
    there = column.map(lambda text: isinstance(text, str) and bool(text.strip())).to_numpy(bool)
    if not there.any():
        raise ValueError(f"none of the {len(column)} items has a text")
    read = encoder.encode(column[there].tolist(), progress=progress).float().cpu()  # (M, D)
    vectors = read.mean(dim=0).repeat(len(column), 1)  # (N, D)
    vectors[torch.from_numpy(there.nonzero()[0])] = read
    return vectors


@dataclass(frozen=True, eq=False)
class FoundRepresentations:
    """What ``compare_representations`` measured.

    Attributes:
        known: a report for each representation, for popularity and for random vectors, on held-out events.
        new: their values on new items, a column each and a row a draw.
        metric: of both.
    """

    known: dict[str, Report]
    new: Draws
    metric: str

    def gap(self, a: str, b: str = CONTROL, *, new: bool = True) -> Comparison:
        """The paired difference, a minus b.

        Args:
            a: a representation.
            b: another, or a control; the random vectors by default.
            new: on new items, draw by draw; False takes known items, person by person.
        """
        return self.new.compare(a, b) if new else compare(self.known[a], self.known[b], self.metric)

    def table(self) -> pd.DataFrame:
        """A row a representation, best on new items first: both values, each with its 95 % interval.

        Intervals on known items are over people, those on new items over draws.
        """
        rows = {}
        for name in self.new.ranked():
            mean, low, high, *_ = self.new.mean(name)
            value, below, above = self.known[name].of(self.metric)
            known = {"known items": value, "from": below, "to": above}
            rows[name] = {**known, "new items": mean, "low": low, "high": high}
        return pd.DataFrame.from_dict(rows, orient="index").rename_axis(columns=self.metric)


def compare_representations(
    positives: Interactions,
    vectors: Mapping[str, Tensor],
    model: Callable[[Tensor], Recommender] = TextProfile,
    *,
    n: int | float = 0.2,
    n_draws: int = 8,
    share: float = 0.2,
    seed: int = 0,
    metric: str = "ndcg@10",
    device: str | torch.device = "auto",
    progress: bool = False,
) -> FoundRepresentations:
    """Measures representations on known and on new items.

    Args:
        positives: all events that count as a choice.
        vectors: for each representation (n_items, D) vectors of the items, as ``item_vectors`` makes them.
        model: makes a model of vectors; ``TextProfile``, or what learns a map of them.
        n: events of each person that are held out last, or a share of them; see ``leave_last_out``.
        n_draws: draws of new items.
        share: of the items that is new in each.
        seed: of the draws and of the random vectors.
        metric: ``"ndcg@10"``.
        device: where models are fitted.
        progress: show a bar.

    Returns:
        What was found. The random vectors are as many and as wide as the widest representation.

    Raises:
        ValueError: no representation, a name that a control has, vectors of another number of items, or
            vectors that are not finite; the message names the representation.
        RuntimeError: a model fails; the message names the representation, and the cause is attached.
    """
    if not vectors:
        raise ValueError("needs one representation or more")
    for name, given in vectors.items():
        if name in (CONTROL, COUNTED):
            raise ValueError(f"the name {name!r} is that of a control; choose another one")
        if given.ndim != 2 or len(given) != positives.n_items:
            raise ValueError(f"{name!r} must be ({positives.n_items}, D), got {tuple(given.shape)}")
        refuse_not_finite(given, repr(name), "item")
    widest = max(given.shape[1] for given in vectors.values())
    generator = torch.Generator("cpu").manual_seed(seed)
    chance = torch.randn(positives.n_items, widest, generator=generator, device="cpu")  # (n_items, D)
    make: dict[str, Callable[[], Recommender]] = {
        name: partial(model, given) for name, given in [*vectors.items(), (CONTROL, chance)]
    }
    make[COUNTED] = Popularity

    split = leave_last_out(positives, n=n)
    name, _, k = metric.partition("@")
    known = {}
    for title, build in progress_bar(list(make.items()), "known items", enabled=progress):
        try:
            fitted = build().fit(split.history, device=device, progress=False)
            known[title] = evaluate(
                fitted, split.test, seen=split.history, k=int(k or 10), metrics=[name], progress=False
            )
        except Exception as error:
            raise RuntimeError(f"{title!r} failed on known items: {error!r}") from error
    cold = ColdItems(positives, n_draws, share, seed, metric=metric, device=device)
    for title, build in make.items():
        cold.add(title, partial(_made, build))
    return FoundRepresentations(known, cold.run(progress=progress).draws, metric)


def _made(build: Callable[[], Recommender], draw: Draw) -> Recommender:
    return build()
