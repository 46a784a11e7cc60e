"""Recommendation by what items say about themselves: TF-IDF vectors and the cosine."""

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import ClassVar

import torch
from torch import Tensor

from recsys_lib.data import Interactions
from recsys_lib.models.history import HistoryRecommender
from recsys_lib.similarity import tfidf

__all__ = ["TfidfContent", "term_counts", "tokenize"]

# Two or more letters, digits or underscores; the same words as scikit-learn's vectorizers find.
_WORD = re.compile(r"\b\w\w+\b")

_CELLS = 2**24  # of a dense block of profiles, 64 MB


def tokenize(text: str) -> list[str]:
    """The words of a text, in lower case, of two characters or more, in their order."""
    return _WORD.findall(text.lower())


def term_counts(texts: Iterable[str], min_count: int = 1) -> tuple[Tensor, list[str]]:
    """Counts the words of each text.

    Args:
        texts: N texts.
        min_count: leave out words that fewer texts have.

    Returns:
        counts (N, V), sparse COO float32, and the V words in alphabetical order, one a column.

    Raises:
        TypeError: something that is not text, with its position.
    """
    bags: list[Counter[str]] = []
    for position, text in enumerate(texts):
        if not isinstance(text, str):
            raise TypeError(
                f"texts[{position}] is {text!r}, not a text; write an empty one where there is none"
            )
        bags.append(Counter(tokenize(text)))
    spread = Counter(word for bag in bags for word in bag)
    words = sorted(word for word, n in spread.items() if n >= min_count)
    column = {word: position for position, word in enumerate(words)}
    cells = [
        (n, column[word], count)
        for n, bag in enumerate(bags)
        for word, count in bag.items()
        if word in column
    ]
    index = (
        torch.tensor([cell[:2] for cell in cells], dtype=torch.int64, device="cpu").view(-1, 2).mT
    )  # (2, E)
    values = torch.tensor([cell[2] for cell in cells], dtype=torch.float32, device="cpu")  # (E,)
    counts = torch.sparse_coo_tensor(index, values, (len(bags), len(words)), check_invariants=False)
    return counts.coalesce(), words


class TfidfContent(HistoryRecommender):
    """Scores an item by how much its text is like the texts of the user's items.

    Every item's text becomes a TF-IDF vector of length 1; a user's profile is the (weighted) mean of the
    vectors of the items in the history; the score is the cosine between the two, from 0 to 1. Other users'
    events play no part, so an item that nobody has chosen yet is scored like any other.

    A user without events has no profile and scores zero everywhere, as does an item without words.

    Args:
        texts: one text an item, in the order of the item indices. Used by ``fit`` only, and not saved: the
            vectors made from them are.
        min_count: leave out words that fewer texts have.
        recency: see ``HistoryRecommender``.
        half_life_days: see ``HistoryRecommender``.

    Source: Lops, de Gemmis, Semeraro 2011, "Content-based Recommender Systems: State of the Art and Trends",
    section 3.3.1.
    """

    state_arguments: ClassVar[tuple[str, ...]] = ("texts",)

    term_index: Tensor  # (2, E) int64: item and term of each weight
    term_weights: Tensor  # (E,) float32
    n_terms: Tensor  # () int64

    def __init__(
        self,
        texts: Sequence[str] | None = None,
        min_count: int = 1,
        recency: float = 0.0,
        half_life_days: float | None = None,
    ) -> None:
        super().__init__(recency, half_life_days)
        if isinstance(texts, str):
            raise TypeError("texts must be one text an item, got a single text")
        self._texts = None if texts is None else list(texts)
        self.min_count = min_count

    def _fit(self, interactions: Interactions, validation: Interactions | None, progress: bool) -> None:
        if self._texts is None:
            raise ValueError("TfidfContent needs the items' texts: TfidfContent(texts)")
        if len(self._texts) != self.n_items:
            raise ValueError(f"texts must be one an item: {self.n_items} items, {len(self._texts)} texts")
        self._keep_histories(interactions)
        counts, words = term_counts(self._texts, self.min_count)
        vectors = tfidf(counts)  # (n_items, V), rows of length 1
        device = interactions.items.device
        self._keep("term_index", vectors.indices().to(device))
        self._keep("term_weights", vectors.values().to(device))
        self._keep("n_terms", torch.tensor(len(words), device=device))

    def _score_histories(self, crow: Tensor, items: Tensor, weights: Tensor) -> Tensor:
        n_rows, n_terms = len(crow) - 1, int(self.n_terms)
        size = (self.n_items, n_terms)
        vectors = torch.sparse_coo_tensor(self.term_index, self.term_weights, size, check_invariants=False)
        row = torch.repeat_interleave(torch.arange(n_rows, device=items.device), crow.diff())  # (E,)
        step = max(1, _CELLS // max(n_terms, self.n_items))
        blocks = []
        for start in range(0, n_rows, step):
            stop = min(start + step, n_rows)
            part = slice(int(crow[start]), int(crow[stop]))
            chosen = torch.zeros(self.n_items, stop - start, device=items.device)  # (I, b)
            chosen[items[part], row[part] - start] = weights[part]
            # A sum in place of the mean: the cosine does not see the difference.
            profiles = torch.sparse.mm(vectors.mT, chosen)  # (V, b)
            length = profiles.norm(dim=0).clamp(min=torch.finfo(profiles.dtype).tiny)  # (b,)
            blocks.append(torch.sparse.mm(vectors, profiles / length).mT)  # (b, I)
        return torch.cat(blocks)
