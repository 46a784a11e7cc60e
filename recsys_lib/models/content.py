"""Recommendation by what items say about themselves: TF-IDF vectors and the cosine."""

from collections.abc import Sequence

import torch
from torch import Tensor

from recsys_lib.data import Interactions
from recsys_lib.data.ragged import row_of_each
from recsys_lib.models.core.histories import RecencyWeighted
from recsys_lib.models.core.options import data, learned, option
from recsys_lib.similarity import tfidf
from recsys_lib.text.terms import term_counts, tokenize

__all__ = ["TfidfContent", "term_counts", "tokenize"]

_CELLS = 2**24  # of a dense block of profiles, 64 MB


class TfidfContent(RecencyWeighted):
    """Scores an item by how much its text is like the texts of the user's items.

    Every item's text becomes a TF-IDF vector of length 1; a user's profile is the (weighted) mean of the
    vectors of the items in the history; the score is the cosine between the two, from 0 to 1. Other users'
    events play no part, so an item that nobody has chosen yet is scored like any other.

    A user without events has no profile and scores zero everywhere, as does an item without words.

    Source: Lops, de Gemmis, Semeraro 2011, "Content-based Recommender Systems: State of the Art and Trends",
    section 3.3.1.
    """

    texts: Sequence[str] | None = data(
        "one text an item, in the order of the item indices, from which ``fit`` makes vectors",
        default=None,
        kw_only=False,
    )
    min_count: int = option("leave out words that fewer texts have", default=1, at_least=1)

    term_index: Tensor = learned("(2, E) int64, item and term of each weight")
    term_weights: Tensor = learned("(E,) float32")
    n_terms: Tensor = learned("() int64")

    def __post_init__(self) -> None:
        """Refuses one text in place of many."""
        super().__post_init__()
        if isinstance(self.texts, str):
            raise TypeError("texts must be one text an item, got a single text")
        self.texts = None if self.texts is None else list(self.texts)

    def _fit(self, interactions: Interactions, validation: Interactions | None, progress: bool) -> None:
        if self.texts is None:
            raise ValueError("TfidfContent needs the items' texts: TfidfContent(texts)")
        if len(self.texts) != self.n_items:
            raise ValueError(f"texts must be one an item: {self.n_items} items, {len(self.texts)} texts")
        self._keep_histories(interactions)
        counts, words = term_counts(self.texts, self.min_count)
        vectors = tfidf(counts)  # (n_items, V), rows of length 1
        device = interactions.items.device
        self._keep("term_index", vectors.indices().to(device))
        self._keep("term_weights", vectors.values().to(device))
        self._keep("n_terms", torch.tensor(len(words), device=device))

    def _score_histories(self, crow: Tensor, items: Tensor, weights: Tensor) -> Tensor:
        n_rows, n_terms = len(crow) - 1, int(self.n_terms)
        size = (self.n_items, n_terms)
        vectors = torch.sparse_coo_tensor(self.term_index, self.term_weights, size, check_invariants=False)
        row = row_of_each(crow)  # (E,)
        step = max(1, _CELLS // max(n_terms, self.n_items))
        scores = torch.empty(n_rows, self.n_items, device=items.device)  # (B, I)
        for start in range(0, n_rows, step):
            stop = min(start + step, n_rows)
            part = slice(int(crow[start]), int(crow[stop]))
            chosen = torch.zeros(self.n_items, stop - start, device=items.device)  # (I, b)
            chosen[items[part], row[part] - start] = weights[part]
            # A sum in place of the mean: the cosine does not see the difference.
            profiles = torch.sparse.mm(vectors.mT, chosen)  # (V, b)
            length = profiles.norm(dim=0).clamp(min=torch.finfo(profiles.dtype).tiny)  # (b,)
            scores[start:stop] = torch.sparse.mm(vectors, profiles / length).mT  # (b, I)
        return scores
