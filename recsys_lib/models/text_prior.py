"""Factors whose prior is what the text says: an item departs from its text as far as its events ask for."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from recsys_lib.data import Interactions
from recsys_lib.data.ragged import row_of_each
from recsys_lib.devices import in_float32
from recsys_lib.losses import softmax_loss
from recsys_lib.models.core.item_text import MINILM, ItemText, TextVectors, take_texts
from recsys_lib.models.core.options import data, learned, option
from recsys_lib.models.core.trained import TrainedRecommender
from recsys_lib.similarity import cosine
from recsys_lib.training import batches

__all__ = ["TextPriorMF"]


@dataclass(frozen=True)
class _Chosen:
    """Users (E,) and items (E,) that belong together, and the items (M,) that anybody chose."""

    users: Tensor
    items: Tensor
    known: Tensor


class TextPriorMF(TrainedRecommender[_Chosen]):
    """Matrix factorization for rankings in which an item's vector and bias start from its text.

        s_ui = p_u . (q_i + W t_i) + b_i + w . t_i

    with t_i the vector of i's text. Each part has a penalty of its own: in the words of a model with priors,
    the vector of i is normal around W t_i. An item with many events departs from its text, one with few stays
    close, and one without any *is* what its text says. With a large ``text_l2`` W vanishes, and the model is
    matrix factorization. Items that nobody has chosen yet want a smaller one than those that people know: the
    default is for the latter, 1 or 2 for the former.

    Learned by the softmax over the items that somebody chose (``losses.softmax_loss``). The others are no
    negatives: that nobody chose them says nothing while they are new. A user without events gets the ranking
    by bias, which is popularity and what texts say of it.

    For ratings ``BiasedMF(item_features=...)`` is this model, with the variances of its priors learned.

    Source: Agarwal and Chen 2009, "Regression-based Latent Factor Models" (the prior), here with the softmax
    in place of a rating's squared error.
    """

    dim: int = option("length of the vectors", default=64, at_least=1)
    l2: float = option("weight of the squared norms of p and q", default=0.2, at_least=0)
    bias_l2: float = option("weight of the squared b", default=0.01, at_least=0)
    text_l2: float = option("weight of the squared norms of W and w", default=20.0, at_least=0)
    text_learning_rate: float = option("of Adam, for W and w", default=0.003, above=0)
    init_scale: float = option("standard deviation of p and q at the start", default=0.1, above=0)
    text_model: str = option("name or folder of the text encoder", default=MINILM)
    text_dim: int | None = option("length of a text's vector; taken from the texts", default=None, at_least=1)
    epochs: int = option(default=16)
    learning_rate: float = option(default=0.003)
    batch_size: int = option(default=512)
    text: Tensor | Sequence[str] | None = data(
        "one text an item, or their vectors (n_items, D); kept with the learned state",
        default=None,
        kw_only=False,
    )
    encoder: TextVectors | None = data("turns texts into vectors in place of ``text_model``", default=None)

    item_text: ItemText = learned("what is known of the items' texts")
    user_factors: nn.Parameter = learned("(n_users, dim) p")
    item_factors: nn.Parameter = learned("(n_items, dim) q, what events add to the text")
    item_bias: nn.Parameter = learned("(n_items,) b")
    text_map: nn.Linear = learned("(D) to (dim + 1), W and w")

    def build(self) -> None:
        """Makes the vectors, and takes the texts or keeps those at hand."""
        text_dim = take_texts(self)
        self.user_factors = nn.Parameter(torch.zeros(self.n_users, self.dim))
        self.item_factors = nn.Parameter(torch.zeros(self.n_items, self.dim))
        self.item_bias = nn.Parameter(torch.zeros(self.n_items))
        self.text_map = nn.Linear(text_dim, self.dim + 1, bias=False)

    @torch.no_grad()
    def prepare(self, events: Interactions, generator: torch.Generator) -> _Chosen:
        """Small random vectors, a map of zeros; each distinct pair of the events is one example."""
        crow, items = events.csr()  # (n_users + 1,), (E,)
        self.user_factors.normal_(0.0, self.init_scale, generator=generator)
        self.item_factors.normal_(0.0, self.init_scale, generator=generator)
        self.text_map.weight.zero_()
        chosen = torch.bincount(items, minlength=self.n_items) > 0  # (n_items,)
        self.user_factors[crow.diff() == 0] = 0.0
        self.item_factors[~chosen] = 0.0
        return _Chosen(row_of_each(crow), items, chosen.nonzero().squeeze(1))

    def slower(self) -> list[tuple[nn.Module, float]]:
        """The map has a rate of its own: each of its weights moves all items at once."""
        return [(self.text_map, self.text_learning_rate)]

    def losses(self, examples: _Chosen, generator: torch.Generator) -> Iterator[tuple[Tensor, int]]:
        """One epoch over the events, shuffled."""
        known = examples.known  # (M,)
        column = known.new_zeros(self.n_items).scatter_(
            0, known, torch.arange(len(known), device=known.device)
        )
        for batch in batches(len(examples.users), self.batch_size, generator):
            p = functional.embedding(examples.users[batch], self.user_factors)  # (B, d)
            q, b = self.item_factors[known], self.item_bias[known]  # (M, d), (M,)
            vectors, bias = self._items(q, b, self.item_text.vectors[known])  # (M, d), (M,)
            loss = softmax_loss(p @ vectors.mT + bias, column[examples.items[batch]])
            penalty = self.l2 * (p.square().sum(dim=1).mean() + q.square().sum() / self.n_items)  # ()
            penalty = penalty + self.bias_l2 * b.square().sum() / self.n_items
            penalty = penalty + self.text_l2 * self.text_map.weight.square().sum() / self.n_items
            yield loss + 0.5 * penalty, len(batch)

    def _items(self, q: Tensor, b: Tensor, text: Tensor) -> tuple[Tensor, Tensor]:
        """Vectors (N, d) and biases (N,) of items, from their own (N, d), (N,) and their texts' (N, D)."""
        weight = self.text_map.weight
        told = self.text_map(text.to(weight.dtype) / text.shape[1] ** 0.5)  # (N, d + 1), of texts of length 1
        return q + told[:, :-1], b + told[:, -1]

    def _all_items(self) -> tuple[Tensor, Tensor]:
        return self._items(self.item_factors, self.item_bias, self.item_text.vectors)

    def _score(self, users: Tensor) -> Tensor:
        vectors, bias = self._all_items()  # (n_items, d), (n_items,)
        return (self.user_factors[users] @ vectors.mT).add_(bias)  # (B, n_items)

    def _similarities(self, items: Tensor) -> Tensor:
        vectors, _ = self._all_items()  # (n_items, d)
        return cosine(vectors[items], vectors)  # (B, n_items)

    @torch.no_grad()
    @in_float32()
    def score_texts(self, users: Tensor, texts: Tensor | Sequence[str]) -> Tensor:
        """Scores items that the catalog does not have, by their texts.

        Args:
            users: (B,) integer indices of users of ``fit``.
            texts: N texts; or (N, D) vectors of them, made as those of ``text`` were.

        Returns:
            (B, N) float32 on the model's device. They compare with the scores of the catalog.

        Raises:
            NotFittedError, TypeError, IndexError: as ``score``.
            ValueError: vectors of another width; or texts, where the encoder is not at hand.
        """
        users = self._check_users(users).to(self.device)  # (B,)
        if isinstance(texts, Tensor):
            read = self.item_text.of_vectors(texts)  # (N, D)
        else:
            read = self.item_text.of_texts(texts, self.encoder, self.text_model, tokens=False)  # (N, D)
        read = read.to(self.device)
        nothing = self.item_bias.new_zeros(len(read))  # (N,)
        vectors, bias = self._items(nothing[:, None], nothing, read)  # (N, d), (N,)
        return (self.user_factors[users] @ vectors.mT + bias).float()
