"""A user is what the items chosen say: profiles of text vectors, and nothing that is learned from others."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from recsys_lib.data import Interactions
from recsys_lib.data.ragged import distinct_events, offsets, row_blocks, row_of_each, take_rows
from recsys_lib.devices import in_float32
from recsys_lib.geometry import Whitening
from recsys_lib.models.core.checks import check_histories
from recsys_lib.models.core.histories import RecencyWeighted, recency_weights
from recsys_lib.models.core.item_text import MINILM, ItemText, TextVectors, take_texts
from recsys_lib.models.core.options import data, learned, option
from recsys_lib.similarity import normalize

__all__ = ["TextProfile"]

_CELLS = 2**24  # of a dense block of similarities, 64 MB


class TextProfile(RecencyWeighted):
    """Scores an item by how much its text's vector is like those of the user's items.

    With s_ij the cosine of the vectors of items i and j, or their dot product, and w_j the weight of an event
    by its age:

    - ``profile="mean"``: the similarity of i's vector with the weighted mean of the user's vectors;
    - ``"attention"``: sum_j a_ij s_ij with a_ij = softmax over the history of (s_ij / temperature + log w_j).
      What of the history counts is decided by the item that is scored. A low temperature hears the nearest
      item alone, a high one all alike;
    - ``"max"``: the nearest item of the history, max_j s_ij, whatever its age.

    Vectors of language models share directions, which makes all of them alike. ``whitening`` takes their mean
    out and evens out how much they vary (``geometry.Whitening``).

    Other users' events play no part: an item that nobody has chosen yet is scored like any other, and so is a
    text that the catalog does not have (``score_texts``). A user without events scores zero everywhere.

    Source: Lops, de Gemmis, Semeraro 2011, "Content-based Recommender Systems: State of the Art and Trends",
    section 3.3.1 (the mean); Zhou et al. 2018, "Deep Interest Network for Click-Through Rate Prediction",
    section 4.3 (the history is weighed anew for each item).
    """

    text: Tensor | Sequence[str] | None = data(
        "one text an item, or their vectors (n_items, D); kept with the learned state",
        default=None,
        kw_only=False,
    )
    profile: str = option(
        "how the history's vectors become one similarity",
        default="mean",
        choices=("mean", "attention", "max"),
    )
    similarity: str = option("of two vectors", default="cosine", choices=("cosine", "dot"))
    temperature: float = option("divides the similarities in the softmax of attention", default=1.0, above=0)
    whitening: float | None = option(
        "how much the vectors' variance is evened out: 0 only centers them, None takes them as they are",
        default=0.5,
        at_least=0,
        at_most=1,
    )
    text_model: str = option("name or folder of the text encoder", default=MINILM)
    text_dim: int | None = option("length of a text's vector; taken from the texts", default=None, at_least=1)
    encoder: TextVectors | None = data("turns texts into vectors in place of ``text_model``", default=None)

    item_text: ItemText = learned("what is known of the items' texts")
    vectors: Tensor = learned("(n_items, k) float32, as they are compared")
    to_compared: Tensor = learned("(D, k) float32, from the vectors of ``item_text`` to these")

    def __post_init__(self) -> None:
        """Refuses weights that would not be read."""
        super().__post_init__()
        if self.profile == "max" and (self.recency or self.half_life_days is not None):
            raise ValueError(
                'profile="max" takes the nearest item whatever its age, so recency and half_life_days would '
                'have no effect; take profile="attention" with a low temperature'
            )

    def build(self) -> None:
        """Takes the texts, or keeps those of an earlier fit or of a file."""
        take_texts(self)

    def _fit(self, interactions: Interactions, validation: Interactions | None, progress: bool) -> None:
        self._keep_histories(interactions)
        known = self.item_text.vectors.float()  # (n_items, D), centered
        axes = torch.eye(known.shape[1], device=known.device)  # (D, D)
        if self.whitening and len(known) > 1:  # with power 0, and with one item, centered is all there is
            found = Whitening.fit(known, self.whitening)
            axes = (found.axes * found.factors).float()  # (D, D)
        # The vectors at hand were divided by their size; what whitening has left of it is put back.
        self._keep("to_compared", axes * self.item_text.size.float() ** (1 - (self.whitening or 0.0)))
        self._keep("vectors", self._compared(known))

    def _compared(self, centered: Tensor) -> Tensor:
        """Vectors of texts as they are compared, (N, D) to (N, k)."""
        vectors = centered.float() @ self.to_compared.float()  # (N, k)
        if self.whitening is None:
            vectors = vectors + self.item_text.center.float()
        return normalize(vectors) if self.similarity == "cosine" else vectors

    def _score_histories(self, crow: Tensor, items: Tensor, weights: Tensor) -> Tensor:
        return self._against(crow, items, weights, self.vectors)

    def _against(self, crow: Tensor, items: Tensor, weights: Tensor, candidates: Tensor) -> Tensor:
        """Scores of candidates, vectors (N, k), for histories as ``_score_histories`` has them: (B, N)."""
        if self.profile == "mean":
            profiles = functional.embedding_bag(
                items, self.vectors, crow, mode="sum", per_sample_weights=weights, include_last_offset=True
            )  # (B, k)
            if self.similarity == "cosine":  # which does not see that this is a sum and no mean
                return normalize(profiles) @ candidates.mT  # (B, N)
            total = profiles.new_zeros(len(profiles)).index_add_(0, row_of_each(crow), weights)  # (B,)
            return profiles / total.clamp(min=1e-30)[:, None] @ candidates.mT
        scores = candidates.new_zeros(len(crow) - 1, len(candidates))  # (B, N)
        for block in row_blocks(crow.diff(), max(1, _CELLS // max(1, len(candidates)))):
            rows = torch.arange(block.start, block.stop, device=crow.device)  # (b,)
            place, row = take_rows(crow, rows)  # (e,), (e,)
            alike = self.vectors[items[place]] @ candidates.mT  # (e, N)
            found = self._pooled(alike, row, weights[place], len(rows))  # (b, N)
            told = crow.diff()[rows] > 0  # (b,)
            scores[rows[told]] = found[told]
        return scores

    def _pooled(self, alike: Tensor, row: Tensor, weights: Tensor, n_rows: int) -> Tensor:
        """One score of the similarities (e, N) of each history's items, ``row`` (e,) says whose: (b, N)."""
        whose = row[:, None].expand_as(alike)  # (e, N)
        lowest = alike.new_full((n_rows, alike.shape[1]), -torch.inf)  # (b, N)
        if self.profile == "max":
            return lowest.scatter_reduce(0, whose, alike, "amax")
        logits = alike / self.temperature + weights.log()[:, None]  # (e, N)
        top = lowest.scatter_reduce(0, whose, logits, "amax")  # (b, N)
        heard = (logits - top[row]).exp()  # (e, N)
        total = torch.zeros_like(lowest).index_add_(0, row, heard)  # (b, N)
        return torch.zeros_like(lowest).index_add_(0, row, heard * alike) / total

    @torch.no_grad()
    @in_float32()
    def score_texts(
        self, users: Tensor | Sequence[Tensor | Sequence[int]], texts: Tensor | Sequence[str]
    ) -> Tensor:
        """Scores items that the catalog does not have, by their texts.

        Args:
            users: (B,) integer indices of users of ``fit``; or histories of anyone, lists of item indices,
                oldest first.
            texts: N texts; or (N, D) vectors of them, made as those of ``text`` were.

        Returns:
            (B, N) float32, on the model's device. They compare with the scores of the catalog.

        Raises:
            NotFittedError, TypeError, IndexError: as ``score`` and ``score_histories``.
            ValueError: vectors of another width; or texts, where the encoder is not at hand.
        """
        self._check_fitted()
        if isinstance(texts, Tensor):
            read = self.item_text.of_vectors(texts)  # (N, D)
        else:
            read = self.item_text.of_texts(texts, self.encoder, self.text_model, tokens=False)  # (N, D)
        candidates = self._compared(read.to(self.device))  # (N, k)
        crow, items, weights = (
            self._of_users(users) if isinstance(users, Tensor) else self._of_histories(users)
        )
        return self._against(crow, items, weights, candidates)

    def _of_users(self, users: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The kept histories of users (B,): crow (B + 1,), items (E,) and weights (E,)."""
        users = self._check_users(users).to(self.device)  # (B,)
        place, _ = take_rows(self.history_crow, users)  # (E,)
        crow = offsets(self.history_crow.diff()[users])  # (B + 1,)
        return crow, self.history_items[place], self.history_weights[place]

    def _of_histories(self, histories: Sequence[Tensor | Sequence[int]]) -> tuple[Tensor, Tensor, Tensor]:
        """The same of histories that are given, whose order stands in for the time."""
        if self.half_life_days is not None:
            raise ValueError("with half_life_days a history needs its times; give users of fit in its place")
        items, lengths = check_histories(histories, self.n_items, self.device)  # (E,), (B,)
        row = row_of_each(offsets(lengths))  # (E,)
        times = torch.arange(len(items), device=items.device)  # (E,)
        events = distinct_events(row, items, times, len(lengths), self.n_items)
        weights = recency_weights(events, self.recency, None)  # (E',)
        return events.crow.to(self.device), events.items.to(self.device), weights.to(self.device)
