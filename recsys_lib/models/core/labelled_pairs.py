"""Pairs of texts with a label: what a cross-encoder learns from where someone has judged."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from recsys_lib.data.ragged import offsets, row_of_each, run_starts, within_rows
from recsys_lib.models.core.lists import draw_lists
from recsys_lib.models.core.relevance import KeptStates
from recsys_lib.text.pairs import TokenTable

__all__ = ["LabelledPairs", "checked_labels", "checked_pairs"]

_ROWS_AT_ONCE = 1024  # whose lists are drawn together


@dataclass(frozen=True)
class LabelledPairs:
    """N pairs of texts, by query and label.

    Attributes:
        texts: the distinct texts.
        first: (N,) int64, which of them is the query; pairs of one query stand together.
        second: (N,) int64, which is the document.
        labels: (N,) float32, ascending within a query.
        start: (N,) int64, the first pair of the same query.
        below: (N,) int64, how many pairs of the same query, from ``start`` on, have a lower label.
        targets: (E,) int64, the pairs that are examples.
        kept: what the frozen layers make of the pairs.
    """

    texts: TokenTable
    first: Tensor
    second: Tensor
    labels: Tensor
    start: Tensor
    below: Tensor
    targets: Tensor
    kept: KeptStates | None = None

    @classmethod
    def of(
        cls, texts: TokenTable, first: Tensor, second: Tensor, labels: Tensor, *, by_list: bool
    ) -> "LabelledPairs":
        """Puts pairs in order.

        Args:
            texts: the distinct texts.
            first: (N,) int64.
            second: (N,) int64.
            labels: (N,) float32.
            by_list: whether a pair is an example together with those of a lower label; else by itself.

        Raises:
            ValueError: lists are wanted, and no query has pairs of two labels.
        """
        order = labels.argsort(stable=True)  # (N,)
        order = order[first[order].argsort(stable=True)]
        first, second, labels = first[order], second[order], labels[order]
        places = torch.arange(len(first), device="cpu")  # (N,)
        opens, rises = run_starts(first), run_starts(first, labels)  # (N,), (N,)
        start = places[opens][opens.cumsum(0) - 1]  # (N,)
        below = places[rises][rises.cumsum(0) - 1] - start  # (N,)
        targets = places[below > 0] if by_list else places  # (E,)
        if not len(targets):
            raise ValueError(
                "no query has documents of two different labels, so there is nothing to put in order; add "
                'others for the same query, or take loss="bce", which judges each pair by itself'
            )
        return cls(texts, first, second, labels, start, below, targets)

    def lists(self, examples: Tensor, n_lower: int, generator: torch.Generator) -> Tensor:
        """The pair and K others of its query with a lower label, of some examples.

        Args:
            examples: (B,) int64 places in ``targets``.
            n_lower: K.
            generator: on the CPU.

        Returns:
            (B, 1 + K) int64 numbers of pairs, -1 where there are fewer.
        """
        targets = self.targets[examples]  # (B,)
        if not n_lower:
            return targets[:, None]
        drawn = []
        for some in targets.split(_ROWS_AT_ONCE):
            crow = offsets(self.below[some])  # (b + 1,)
            row, within = row_of_each(crow), within_rows(crow)  # (E,)
            lower = torch.full((len(some), int(self.below[some].max())), -1, device="cpu")  # (b, C)
            lower[row, within] = self.start[some][row] + within
            drawn.append(draw_lists(lower, some, n_lower, generator))  # (b, K)
        return torch.cat([targets[:, None], torch.cat(drawn)], dim=1)  # (B, 1 + K)


def checked_pairs(pairs: Any) -> tuple[list[str], list[str]]:
    """The queries and the documents of pairs of texts.

    Raises:
        TypeError: something that is no pair of texts, with its position.
    """
    if isinstance(pairs, str):
        raise TypeError("pairs must be a list of (query, document), got a single text")
    listed = list(pairs)
    for position, pair in enumerate(listed):
        two = isinstance(pair, Sequence) and not isinstance(pair, str) and len(pair) == 2
        if not two or not all(isinstance(text, str) for text in pair):
            raise TypeError(f"pairs[{position}] must be two texts, (query, document), got {pair!r:.60}")
    return [pair[0] for pair in listed], [pair[1] for pair in listed]


def checked_labels(labels: Any, n: int, *, probabilities: bool) -> Tensor:
    """Labels of n pairs as (n,) float32 on the CPU.

    Args:
        labels: numbers; a larger one is better.
        n: how many there must be.
        probabilities: they must be from 0 to 1.

    Raises:
        TypeError: no numbers.
        ValueError: another number of them, one that is not finite, or one that is no probability.
    """
    try:
        found = torch.as_tensor(labels, dtype=torch.float32, device="cpu").detach()
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(f"labels must be numbers, one a pair ({error})") from error
    if found.shape != (n,):
        raise ValueError(f"labels must be one a pair, {n}; got shape {tuple(found.shape)}")
    if not bool(found.isfinite().all()):
        raise ValueError(f"labels[{int((~found.isfinite()).nonzero()[0])}] is not finite")
    if probabilities and bool(((found < 0) | (found > 1)).any()):
        wrong = int(((found < 0) | (found > 1)).nonzero()[0])
        raise ValueError(
            f'labels[{wrong}] is {float(found[wrong]):g}: loss="bce" takes labels from 0, irrelevant, to 1; '
            f"divide grades by the highest, or take a loss that only compares them"
        )
    return found
