"""Models that read a history and a candidate as two texts at once: what they are, and how they answer."""

from collections.abc import Sequence
from typing import Any, TypeVar, overload

import torch
from torch import Tensor, nn

from recsys_lib.data import Interactions
from recsys_lib.data.ragged import offsets
from recsys_lib.devices import in_float32, isolated_rng, seed_generator
from recsys_lib.models.core.checks import check_candidates, check_histories
from recsys_lib.models.core.contract import NotFittedError
from recsys_lib.models.core.fine_tuned import FineTuned
from recsys_lib.models.core.histories import HistoryReader
from recsys_lib.models.core.item_text import MINILM
from recsys_lib.models.core.labelled_pairs import checked_pairs
from recsys_lib.models.core.options import data, learned, option
from recsys_lib.models.core.relevance import PairReader, Relevance
from recsys_lib.models.core.text_bytes import TextBytes
from recsys_lib.models.core.windows import shuffle_ties
from recsys_lib.ranking import rank_candidates
from recsys_lib.text import minilm_folder
from recsys_lib.text.pairs import PairTokenizer, TokenTable
from recsys_lib.text.pretrained import model_folder

__all__ = ["ReadsTextPairs"]

Examples = TypeVar("Examples")

_PAIRS_AT_ONCE = 2**16  # whose lengths are sorted together
_KNOWS_TEXTS_ALONE = (
    "this {} has learned from pairs of texts and knows no users and items; give fit_pairs interactions=, or "
    "call fit(interactions)"
)


class ReadsTextPairs(FineTuned[Examples], HistoryReader):
    """A model whose score of a user and an item is that of two texts, a history and a candidate.

    It is asked about users and items, as any model is, or about texts. A subclass learns: it implements
    ``prepare``, ``epoch_losses`` and what belongs to them.

    The items' texts are kept with the weights. The tokenizer is not: a loaded model takes it from
    ``text_model``, which must still be there.
    """

    text_model: str = option("name or folder of a BERT or RoBERTa", default=MINILM)
    max_history: int = option("most recent events that are read", default=10, at_least=1)
    max_length: int = option("most tokens of a pair", default=128, at_least=5)
    separator: str = option("between two items of a history", default="; ")
    pooling: str = option("how tokens become one vector", default="mean", choices=("mean", "cls"))
    head: str = option(
        "a linear map, or one of BERT's pooler, a layer with tanh",
        default="linear",
        choices=("linear", "pooler"),
    )
    dropout: float = option("share dropped in training", default=0.1, at_least=0, below=1)
    frozen_layers: int = option("0, or the lowest blocks that stay as they are", default=0, at_least=0)
    encoder_learning_rate: float = option("of Adam, for the encoder", default=2e-5, above=0)
    text: Sequence[str] | None = data("one text an item; kept with the learned state", default=None)
    history_text: Sequence[str] | None = data(
        "one text an item as it is read in a history, such as the title alone; ``text`` by default",
        default=None,
    )

    scorer: Relevance = learned("the encoder and its head")
    item_text: TextBytes = learned("the items' texts")
    read_text: TextBytes = learned("the items' texts as they are read in a history")
    history_crow: Tensor = learned("(n_users + 1,) int64 offsets")
    history_items: Tensor = learned("(E,) int64, user after user, oldest first")

    _fewest = 0  # of a model that has learned from texts alone

    def __post_init__(self) -> None:
        """Refuses one text in place of many."""
        super().__post_init__()
        self._tokenizer: PairTokenizer | None = None
        self._catalog: TokenTable | None = None
        for name in ("text", "history_text"):
            if isinstance(getattr(self, name), str):
                raise TypeError(f"{name} must be one text an item, got a single text")

    def build(self) -> None:
        """Makes the encoder, its head, and a place for the texts."""
        self._tokenizer = self._catalog = None
        for name in ("history_crow", "history_items"):
            self._buffers.pop(name, None)
        self._build_scorer()
        for name, given in (("item_text", self.text), ("read_text", self.history_text)):
            if name not in self._modules or not self.n_items:
                setattr(self, name, TextBytes())
            if given is not None and self.n_items:
                getattr(self, name).keep(
                    given, self.n_items, name.replace("item_", "").replace("read", "history")
                )

    def _build_scorer(self) -> None:
        folder = minilm_folder() if self.text_model == MINILM else model_folder(self.text_model)
        self.scorer = Relevance.from_folder(
            folder,
            dropout=self.dropout,
            head=self.head,
            pooling=self.pooling,
            frozen_layers=self.frozen_layers,
        )

    def slower(self) -> list[tuple[nn.Module, float]]:
        """The encoder has learned before."""
        return [(self.scorer.encoder, self.encoder_learning_rate)]

    # Answering.

    def _reader(self) -> PairReader:
        """Scores pairs, with the model where it is now."""
        if self._tokenizer is None:
            folder = minilm_folder() if self.text_model == MINILM else model_folder(self.text_model)
            length = min(self.max_length, self.scorer.encoder.max_length)
            self._tokenizer = PairTokenizer(folder, self.text_model, length)
        return PairReader(self.scorer, self._tokenizer)

    def _items(self) -> TokenTable:
        """The tokens of the items' texts."""
        if not self.item_text.filled:
            raise NotFittedError(_KNOWS_TEXTS_ALONE.format(type(self).__name__))
        if self._catalog is None:
            self._catalog = self._reader().tokenizer.table(self.item_text.texts, keep=True)
        return self._catalog

    def _said(self, histories: Sequence[Sequence[int]]) -> list[str]:
        """Histories of item indices, each oldest first, as texts, the newest item first."""
        texts = (self.read_text if self.read_text.filled else self.item_text).texts
        return [self.separator.join(texts[item] for item in reversed(history)) for history in histories]

    def _of_users(self, users: Tensor) -> list[str]:
        """What is read of users, (B,)."""
        starts, ends = (self.history_crow[users + step].tolist() for step in (0, 1))
        recent = [
            self.history_items[max(start, end - self.max_history) : end].tolist()
            for start, end in zip(starts, ends, strict=True)
        ]
        return self._said(recent)

    def _pair_scores(self, said: list[str], i: Tensor, j: Tensor) -> Tensor:
        """Scores of texts, by their numbers (N,), with items (N,): (N,)."""
        reader, items = self._reader(), self._items()
        table = reader.tokenizer.table(said)
        parts = zip(i.cpu().split(_PAIRS_AT_ONCE), j.cpu().split(_PAIRS_AT_ONCE), strict=True)
        return torch.cat([reader.scores(table, some, items, others) for some, others in parts])  # (N,)

    def _catalog_scores(self, said: list[str]) -> Tensor:
        """Scores of all items, for what is read of B users: (B, n_items). Equal texts are read once."""
        place = {text: number for number, text in enumerate(dict.fromkeys(said))}
        everything = torch.arange(self.n_items, device="cpu")  # (n_items,)
        i = torch.arange(len(place), device="cpu").repeat_interleave(self.n_items)  # (U n_items,)
        scores = self._pair_scores(list(place), i, everything.repeat(len(place)))  # (U n_items,)
        row = torch.tensor([place[text] for text in said], device=scores.device)  # (B,)
        return scores.view(len(place), self.n_items)[row]

    def _check_users(self, users: Tensor) -> Tensor:
        if self.fitted and not self.n_users:
            raise NotFittedError(_KNOWS_TEXTS_ALONE.format(type(self).__name__))
        return super()._check_users(users)

    def _score(self, users: Tensor) -> Tensor:
        return self._catalog_scores(self._of_users(users))

    def _predict(self, users: Tensor, items: Tensor) -> Tensor:
        distinct, place = users.unique(return_inverse=True)  # (U,), (N,)
        return self._pair_scores(self._of_users(distinct), place, items)

    @overload
    def predict(self, users: Tensor, items: Tensor) -> Tensor: ...

    @overload
    def predict(self, users: Sequence[tuple[str, str]], items: None = None) -> Tensor: ...

    def predict(self, users: Any, items: Any = None) -> Tensor:
        """Scores of pairs: of users (N,) and items (N,), or of texts.

        Args:
            users: (N,) integer indices; or N pairs of texts, a query and a document each.
            items: (N,) integer indices, with users.

        Returns:
            (N,) float32, on the users' device; for texts, on the model's.

        Raises:
            NotFittedError: before ``fit``, unless texts are asked of a published cross-encoder.
            TypeError: neither indices nor pairs of texts.
            ValueError, IndexError: as for any model.
        """
        if items is not None or isinstance(users, Tensor):
            return super().predict(users, items)
        return self._text_scores(*checked_pairs(users))

    @overload
    def rank(self, users: Tensor, candidates: Tensor) -> tuple[Tensor, Tensor]: ...

    @overload
    def rank(self, users: str, candidates: Sequence[str]) -> tuple[Tensor, Tensor]: ...

    def rank(self, users: Any, candidates: Any) -> tuple[Tensor, Tensor]:
        """Puts candidates in order, best first: of users (B,) and items (B, C), or of a query and documents.

        Args:
            users: (B,) integer indices; or one text, the query.
            candidates: (B, C) integer item indices, -1 at padding; or N texts.

        Returns:
            Items (B, C) and their scores (B, C), as for any model; for texts, the documents' positions (N,)
            int64, best first, and their scores (N,), on the model's device.

        Raises:
            NotFittedError, TypeError, ValueError, IndexError: as ``predict``.
        """
        if not isinstance(users, str):
            return super().rank(users, candidates)
        if isinstance(candidates, str):
            raise TypeError("documents must be a list of texts, got a single one; write [text]")
        documents = list(candidates)
        scores = self._text_scores([users] * len(documents), documents)  # (N,)
        scores, order = scores.sort(descending=True, stable=True)  # (N,), (N,)
        return order, scores

    @torch.no_grad()
    @in_float32()
    def _text_scores(self, queries: list[str], documents: list[str]) -> Tensor:
        """(N,), each query with its document."""
        if not self.fitted:
            if "scorer" not in self._modules:
                with isolated_rng(self.seed):
                    self._build_scorer()
                self.scorer.eval()
            if not self.scorer.has_published_head:
                raise NotFittedError(
                    f"this {type(self).__name__} is not fitted, and {self.text_model} has no head to score "
                    f"with; call fit(interactions), or take a published cross-encoder with "
                    f'head="pooler", pooling="cls"'
                )
        reader = self._reader()
        table, i, j = self._distinct(queries, documents)
        return reader.scores(table, i, table, j)

    def _distinct(self, queries: list[str], documents: list[str]) -> tuple[TokenTable, Tensor, Tensor]:
        """The different texts among N queries and N documents, and which of them each is, (N,) and (N,)."""
        place = {text: number for number, text in enumerate(dict.fromkeys([*queries, *documents]))}
        i, j = (
            torch.tensor([place[text] for text in texts], dtype=torch.int64, device="cpu")
            for texts in (queries, documents)
        )
        return self._reader().tokenizer.table(list(place)), i, j

    # Histories.

    def _keep_histories(self, interactions: Interactions) -> Tensor:
        # On the CPU whatever the device is, so that the order of ties is the same on all.
        order = shuffle_ties(interactions, seed_generator(self.seed))  # (E,)
        self._keep("history_crow", offsets(interactions.user_counts()))
        self._keep("history_items", interactions.items[order])
        return order.cpu()

    @torch.no_grad()
    @in_float32()
    def score_histories(self, histories: Sequence[Tensor | Sequence[int]]) -> Tensor:
        """Scores every item for users given by their histories, known to the model or not.

        Args:
            histories: B lists or tensors of item indices, each oldest first; may be empty. Only the most
                recent ``max_history`` events of each are read.

        Returns:
            (B, n_items) float32 on the histories' device; for lists of numbers, on the model's.

        Raises:
            NotFittedError: before ``fit``.
            TypeError, ValueError, IndexError: histories that are no lists of known items.
        """
        self._check_fitted()
        said, device = self._told(histories)
        return self._catalog_scores(said).to(device=device, dtype=torch.float32)

    def _told(self, histories: Sequence[Tensor | Sequence[int]]) -> tuple[list[str], torch.device]:
        """What is read of histories, and the device that they are on."""
        items, lengths = check_histories(histories, self.n_items, self.device)  # (E,), (B,)
        recent = [part[-self.max_history :].tolist() for part in items.split(lengths.tolist())]
        return self._said(recent), items.device

    def _predict_histories(
        self,
        histories: Sequence[Tensor | Sequence[int]],
        timestamps: Sequence[Tensor | Sequence[int]] | None,
        row: Tensor,
        items: Tensor,
    ) -> Tensor:
        return self._pair_scores(self._told(histories)[0], row, items)

    # Texts in place of histories.

    @torch.no_grad()
    @in_float32()
    def score_texts(self, texts: Sequence[str]) -> Tensor:
        """Scores every item for texts, each read in place of a history.

        Args:
            texts: B of them, such as "a slow Japanese drama".

        Returns:
            (B, n_items) float32 on the model's device. A text costs a pass of the encoder for each item.

        Raises:
            NotFittedError: before ``fit``.
            TypeError: one text in place of many.
        """
        self._check_fitted()
        texts = _as_texts(texts)
        if not texts:
            return torch.zeros(0, self.n_items, device=self.device)
        return self._catalog_scores(texts).float()

    @torch.no_grad()
    @in_float32()
    def rank_texts(self, texts: Sequence[str], candidates: Tensor) -> tuple[Tensor, Tensor]:
        """Puts candidates in order for texts, each read in place of a history.

        Args:
            texts: B of them.
            candidates: (B, C) integer item indices, a row for each text; -1 pads a short row.

        Returns:
            Items (B, C) int64, best first, and their scores (B, C) float32, on the candidates' device;
            padding and ties as for ``rank``.

        Raises:
            NotFittedError, TypeError, ValueError, IndexError: as ``score_texts``, and as ``rank`` for the
                candidates.
        """
        self._check_fitted()
        texts = _as_texts(texts)
        candidates = check_candidates(candidates, len(texts), self.n_items, "text")  # (B, C)
        row, column = (candidates >= 0).nonzero(as_tuple=True)  # (N,), (N,)
        scores = torch.full(candidates.shape, -torch.inf, device=candidates.device)  # (B, C)
        if len(row):
            found = self._pair_scores(texts, row, candidates[row, column])  # (N,)
            scores[row, column] = found.to(candidates.device, torch.float32)
        return rank_candidates(scores, candidates, users=torch.arange(len(texts), device=candidates.device))


def _as_texts(texts: Sequence[str]) -> list[str]:
    """A list of texts.

    Raises:
        TypeError: one text in place of many, or something that is no text.
    """
    if isinstance(texts, str) or not all(isinstance(text, str) for text in texts):
        raise TypeError("texts must be a list of texts; write [text]")
    return list(texts)
