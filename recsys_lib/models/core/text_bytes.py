"""Texts as a part of a model's state: bytes and where each text begins, saved and loaded with the weights."""

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor, nn

__all__ = ["TextBytes"]


class TextBytes(nn.Module):
    """One text an item, in UTF-8; so a loaded model needs no texts to be given again.

    Attributes:
        content: (E,) uint8, one text after another; or absent.
        crow: (n_items + 1,) int64 offsets.
    """

    content: Tensor
    crow: Tensor

    def __init__(self) -> None:
        super().__init__()
        self._texts: list[str] | None = None

    @property
    def filled(self) -> bool:
        """Whether there are texts."""
        return "content" in self._buffers

    def keep(self, texts: Sequence[str], n_items: int, name: str) -> None:
        """Takes one text an item; ``name`` is that of the argument, for messages.

        Raises:
            TypeError: something that is no text, with its position.
            ValueError: another number of texts than of items.
        """
        texts = list(texts)
        if len(texts) != n_items:
            raise ValueError(f"{name} must be one text an item: {n_items} items, {len(texts)} texts")
        for position, text in enumerate(texts):
            if not isinstance(text, str):
                raise TypeError(f"{name}[{position}] is {text!r:.60}, not a text; write an empty one instead")
        parts = [text.encode("utf-8", "replace") for text in texts]
        content = np.frombuffer(b"".join(parts), np.uint8).copy()
        crow = np.cumsum([0, *map(len, parts)])
        self.register_buffer("content", torch.as_tensor(content, device="cpu"))
        self.register_buffer("crow", torch.as_tensor(crow, device="cpu"))
        self._texts = None

    @property
    def texts(self) -> list[str]:
        """The texts, in the order of the item indices."""
        if self._texts is None:
            content, crow = self.content.cpu().numpy().tobytes(), self.crow.tolist()
            self._texts = [content[a:b].decode("utf-8") for a, b in pairwise(crow)]
        return self._texts
