"""What a model holds of its items' texts: a vector each, or the tokens, and how new texts become the same."""

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from recsys_lib.text import TextEncoder

__all__ = ["MINILM", "ItemText", "TextVectors", "checked_vectors", "take_texts", "text_encoder"]

MINILM = "all-MiniLM-L6-v2"  # the packaged encoder, under the name of its authors


class TextVectors(Protocol):
    """What turns texts into vectors, as ``TextEncoder`` does."""

    def encode(self, texts: Sequence[str]) -> Tensor:
        """N texts to (N, D)."""


def text_encoder(name: str) -> TextEncoder:
    """The encoder of a name or folder; MiniLM's is the packaged one."""
    return TextEncoder(None if name == MINILM else name)


class ItemText(nn.Module):
    """The items' texts as a model reads them; kept with its state, so that a loaded model needs no texts.

    Vectors are read with their mean over the catalog taken out, and scaled so that a feature is 1 in size:
    encoders give vectors that share a direction and whose features are small, and beside the constant of a
    linear map, which learns as fast, they would hardly count.

    Attributes:
        vectors: (n_items, D) float32, centered and scaled; or absent.
        center: (D,) float32, what was taken out.
        size: () float32, what was divided by.
        tokens: (n_items, T) int64, -1 at padding, or absent; for an encoder that learns along.
        encoded: () bool, whether the model's own encoder made the vectors, and so can make those of new
            texts.
    """

    vectors: Tensor
    center: Tensor
    size: Tensor
    tokens: Tensor
    encoded: Tensor

    def has(self, name: str) -> bool:
        """Whether a buffer is there."""
        return name in self._buffers

    def keep(
        self,
        text: Tensor | np.ndarray | Sequence[str],
        n_items: int,
        encoder: TextVectors | None,
        name: str,
        tokens: bool,
    ) -> None:
        """Takes one text or one vector an item.

        Args:
            text: n_items texts, or (n_items, D) vectors of them.
            n_items: size of the catalog.
            encoder: turns texts into vectors; None takes that of ``name``.
            name: of an encoder, or its folder.
            tokens: keep the tokens as well; needs texts.

        Raises:
            TypeError: one text in place of many, or something that is no text.
            ValueError: another number of texts than of items, vectors that are not finite, or vectors where
                tokens are wanted.
        """
        if isinstance(text, str):
            raise TypeError("text must be one text an item, or a matrix of vectors; got a single text")
        if len(text) != n_items:
            raise ValueError(f"text must be one an item: {n_items} items, {len(text)} texts")
        for buffer in list(self._buffers):
            delattr(self, buffer)
        if isinstance(text, Tensor | np.ndarray):
            if tokens:
                raise ValueError("fine_tune needs the texts themselves, got vectors")
            self._keep_vectors(checked_vectors(text, n_items), encoded=False)
            return
        texts = list(text)
        vectors = (encoder or text_encoder(name)).encode(texts)  # (n_items, D)
        self._keep_vectors(checked_vectors(vectors, n_items), encoded=encoder is None)
        if tokens:
            self.register_buffer("tokens", token_table(text_encoder(name), texts))

    def _keep_vectors(self, vectors: Tensor, *, encoded: bool) -> None:
        center = vectors.mean(dim=0)  # (D,)
        size = (vectors - center).square().mean().sqrt()  # ()
        # Where all vectors are equal, only rounding is left; scaled up it would look like something.
        least = vectors.square().mean().sqrt() * 1e-5  # ()
        size = torch.maximum(size, least).clamp(min=torch.finfo(torch.float32).tiny)
        self.register_buffer("vectors", (vectors - center) / size)  # (n_items, D)
        self.register_buffer("center", center)
        self.register_buffer("size", size)
        self.register_buffer("encoded", torch.tensor(encoded, device="cpu"))

    def of_vectors(self, vectors: Tensor) -> Tensor:
        """What a tower reads of vectors of texts that the catalog does not have: (N, D) to (N, D)."""
        given = checked_vectors(vectors, len(vectors), self.vectors.shape[1]).to(self.center.device)  # (N, D)
        return (given - self.center) / self.size

    def of_texts(self, texts: Sequence[str], encoder: TextVectors | None, name: str, tokens: bool) -> Tensor:
        """What a tower reads of texts that the catalog does not have: (N, D) vectors, or (N, T) tokens.

        Raises:
            TypeError: one text in place of many.
            ValueError: the vectors were made elsewhere, and there is no encoder to make more.
        """
        if isinstance(texts, str):
            raise TypeError("texts must be a list of texts, got a single one; write [text]")
        if tokens:
            return token_table(text_encoder(name), texts)
        if encoder is None and not bool(self.encoded):
            raise ValueError(
                "this model was given vectors, or an encoder that is not saved with it, so it cannot read a "
                "new text: set its attribute encoder, or give the text's vector"
            )
        return self.of_vectors((encoder or text_encoder(name)).encode(list(texts)))


def take_texts(model: Any) -> int:
    """Gives a model the vectors of its items' texts, in ``build``; or keeps those of an earlier fit.

    Args:
        model: with the options ``text``, ``encoder``, ``text_model`` and ``text_dim``; its ``item_text`` and
            ``text_dim`` are set. One that is loaded from a file gets an empty ``item_text``, to be filled.

    Returns:
        D, the length of a text's vector.

    Raises:
        ValueError: it has no texts, or as many as another catalog had; and as ``ItemText.keep``.
    """
    name = type(model).__name__
    if model.text is not None:
        model.item_text = ItemText()
        model.item_text.keep(model.text, model.n_items, model.encoder, model.text_model, tokens=False)
        model.text_dim = model.item_text.vectors.shape[1]
    elif model.text_dim is None:
        raise ValueError(
            f"{name} needs the items' texts: {name}(texts), one text an item or their vectors (n_items, D)"
        )
    elif "item_text" not in model._modules:
        model.item_text = ItemText()
    elif len(model.item_text.vectors) != model.n_items:
        raise ValueError(
            f"text must be one an item: {model.n_items} items, {len(model.item_text.vectors)} texts"
        )
    return int(model.text_dim)


def token_table(encoder: TextEncoder, texts: Sequence[str]) -> Tensor:
    """Token numbers of the texts, (N, T) int64 on the CPU, -1 at padding."""
    batch = encoder.tokenize(texts)
    return batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -1).cpu()


def checked_vectors(vectors: Any, n: int, dim: int | None = None) -> Tensor:
    """Vectors of n texts as (n, D) float32 on the CPU.

    Raises:
        ValueError: another shape, or a number that is not finite.
    """
    vectors = torch.as_tensor(vectors).detach().float().cpu()
    if vectors.ndim != 2 or len(vectors) != n or dim not in (None, vectors.shape[1]):
        raise ValueError(
            f"vectors of texts must be ({n}, {dim or 'D'}), one row an item, got {tuple(vectors.shape)}"
        )
    if not bool(vectors.isfinite().all()):
        row = int((~vectors.isfinite()).any(dim=1).nonzero()[0, 0])
        raise ValueError(f"vectors of texts must be finite; that of item {row} is not")
    return vectors
