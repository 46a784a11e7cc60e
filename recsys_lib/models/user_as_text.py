"""A user is a text: the history written out, encoded, and compared with the items' texts."""

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor
from torch.nn import functional

from recsys_lib.data import Interactions
from recsys_lib.data.ragged import offsets
from recsys_lib.devices import in_float32
from recsys_lib.geometry import Whitening
from recsys_lib.models.core.checks import check_histories
from recsys_lib.models.core.histories import HistoryReader
from recsys_lib.models.core.item_text import MINILM, TextVectors, checked_vectors, text_encoder
from recsys_lib.models.core.options import data, learned, option
from recsys_lib.models.core.text_bytes import TextBytes
from recsys_lib.models.core.windows import kept_histories

__all__ = ["UserAsText"]


class UserAsText(HistoryReader):
    """Scores an item by the cosine of its text's vector and that of a sentence about the user.

        "A person who liked Heat (1995); Alien (1979)"  ->  u,    s_ui = cos(u, v_i)

    The sentence is ``template`` with the texts of the user's last ``max_history`` items in the place of
    ``{items}``. Nothing is learned. An encoder loses what is longer than it reads, without a word, so the
    newest stand first.

    A sentence about a user and an item's text are of two kinds, and encoders put each kind in a corner of its
    own: the cosines are all alike. With ``whitening`` the users' vectors lose the mean of all users of
    ``fit``, the items' that of all items, and both are mapped by the items' ``geometry.Whitening``.

    A user without events scores zero everywhere. Users are encoded when they are asked for; ``TextEncoder``
    keeps vectors on disk.

    Source: the recipe is folklore; Geng et al. 2022, "Recommendation as Language Processing (RLP): A Unified
    Pretrain, Personalized Prompt & Predict Paradigm (P5)", writes histories out as a prompt.
    """

    text: Sequence[str] | None = data(
        "one text an item, kept with the learned state", default=None, kw_only=False
    )
    template: str = option("the sentence; its {items} are the history", default="A person who liked {items}")
    separator: str = option("stands between two items", default="; ")
    max_history: int = option("most recent items that are written out", default=10, at_least=1)
    newest_first: bool = option("the order in which they stand", default=True)
    whitening: float | None = option(
        "how much the vectors' variance is evened out: 0 only centers them, None takes them as they are",
        default=None,
        at_least=0,
        at_most=1,
    )
    text_model: str = option("name or folder of the text encoder", default=MINILM)
    encoder: TextVectors | None = data("turns texts into vectors in place of ``text_model``", default=None)

    texts: TextBytes = learned("the items' texts")
    vectors: Tensor = learned("(n_items, k) float32, as they are compared")
    user_center: Tensor = learned("(D,) float32, what is taken out of users' vectors")
    to_compared: Tensor = learned("(D, k) float32, maps both")
    encoded: Tensor = learned("() bool, whether ``text_model`` made the vectors")
    history_crow: Tensor = learned("(n_users + 1,) int64 offsets")
    history_items: Tensor = learned("(E,) int64, user after user, oldest first")

    def __post_init__(self) -> None:
        """Refuses a sentence that does not name the items."""
        super().__post_init__()
        if "{items}" not in self.template:
            raise ValueError(f"template must have {{items}} where the history goes, got {self.template!r}")

    def build(self) -> None:
        """Makes room for the texts, or keeps those that were read with the model."""
        if "texts" not in self._modules:
            self.texts = TextBytes()

    def _fit(self, interactions: Interactions, validation: Interactions | None, progress: bool) -> None:
        if self.text is not None:
            if isinstance(self.text, str):
                raise TypeError("text must be one text an item, got a single text")
            self.texts.keep(self.text, self.n_items, "text")
            self.texts.to(interactions.items.device)
        if not self.texts.filled:
            raise ValueError("UserAsText needs the items' texts: UserAsText(texts)")
        self._keep_histories(interactions)
        device = interactions.items.device
        self._keep("encoded", torch.tensor(self.encoder is None, device=device))
        items = self._encode(self.texts.texts)  # (n_items, D)
        dim = items.shape[1]
        self._keep("user_center", torch.zeros(dim, device=device))
        self._keep("to_compared", torch.eye(dim, device=device))
        if self.whitening is not None:
            told = self.written(torch.arange(self.n_users, device=device))
            users = self._encode([sentence for sentence in told if sentence is not None])  # (U, D)
            self._keep("user_center", users.mean(dim=0))
            if self.whitening and len(items) > 1:
                found = Whitening.fit(items, self.whitening)
                self._keep("to_compared", (found.axes * found.factors).float())
            items = items - items.mean(dim=0)
        self._keep("vectors", functional.normalize(items @ self.to_compared, dim=1))

    def _keep_histories(self, interactions: Interactions) -> None:
        crow, items = kept_histories(interactions, seed=0)  # (n_users + 1,), (E,)
        self._keep("history_crow", crow)
        self._keep("history_items", items)

    def _encode(self, texts: list[str]) -> Tensor:
        """Vectors of texts by the encoder: (N, D) on the model's device."""
        if self.encoder is None and not bool(self.encoded):
            raise ValueError(
                "this model was given an encoder that is not saved with it, so it cannot read a user's "
                "history: set its attribute encoder"
            )
        vectors = (self.encoder or text_encoder(self.text_model)).encode(texts)
        return checked_vectors(vectors, len(texts)).to(self.history_crow.device)

    def written(self, users: Tensor | Sequence[Tensor | Sequence[int]]) -> list[str | None]:
        """What the encoder reads of users.

        Args:
            users: (B,) integer indices of users of ``fit``; or histories of anyone, lists of item indices,
                oldest first.

        Returns:
            B sentences; None for a user without events.
        """
        if isinstance(users, Tensor):
            crow, items = self.history_crow.tolist(), self.history_items
            histories: Sequence[Tensor | Sequence[int]] = [
                items[crow[u] : crow[u + 1]] for u in users.tolist()
            ]
        else:
            histories = users
        texts, sentences = self.texts.texts, list[str | None]()
        for history in histories:
            newest = list(dict.fromkeys(torch.as_tensor(history).tolist()[::-1]))[: self.max_history]
            order = newest if self.newest_first else newest[::-1]
            listed = self.separator.join(texts[item] for item in order)
            sentences.append(self.template.replace("{items}", listed) if newest else None)
        return sentences

    def _score(self, users: Tensor) -> Tensor:
        return self._score_sentences(self.written(users))

    def _score_sentences(self, sentences: Sequence[str | None]) -> Tensor:
        """The cosines (B, n_items) of sentences with the items' texts; 0 where there is no sentence."""
        told = [place for place, sentence in enumerate(sentences) if sentence is not None]
        scores = self.vectors.new_zeros(len(sentences), self.n_items, dtype=torch.float32)  # (B, n_items)
        if told:
            read = self._encode([sentence for sentence in sentences if sentence is not None])  # (U, D)
            users = (read - self.user_center.float()) @ self.to_compared.float()  # (U, k)
            scores[told] = functional.normalize(users, dim=1) @ self.vectors.float().mT
        return scores

    @torch.no_grad()
    @in_float32()
    def score_histories(self, histories: Sequence[Tensor | Sequence[int]]) -> Tensor:
        """Scores every item for users given by their histories, known to the model or not.

        Args:
            histories: B lists or tensors of item indices, each oldest first; may be empty.

        Returns:
            (B, n_items) float32 on the histories' device; for lists of numbers, on the model's.

        Raises:
            NotFittedError, TypeError, IndexError: as for ``HistoryReader``.
            ValueError: an encoder that is not saved with the model, and was not set again.
        """
        self._check_fitted()
        items, lengths = check_histories(histories, self.n_items, self.device)  # (E,), (B,)
        crow = offsets(lengths).tolist()
        read = [items[start:stop] for start, stop in pairwise(crow)]
        return self._score_sentences(self.written(read)).to(items.device)
