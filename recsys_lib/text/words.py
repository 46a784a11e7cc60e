"""The words of texts, each with its own vector, for attention to read one by one."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from recsys_lib.text.encoder import TextEncoder
from recsys_lib.text.strings import as_strings

__all__ = ["TextWords"]

_TEXTS_AT_ONCE = 128  # read by the encoder in one batch


@dataclass(frozen=True)
class TextWords:
    """Texts as rows of words, and a table of the words' vectors.

    ::

        words = TextWords.of(texts)
        words.vectors[words.rows[7]]  # (W, D), the words of text 7; where its row is -1 there is none

    A word is a token of the encoder: a common word, or a part of a rare one.

    Attributes:
        rows: (N, W) int64 into ``vectors``, -1 after the last word of a text.
        vectors: (V, D) float32.
        names: the V words as the tokenizer writes them; empty where nobody knows.
    """

    rows: Tensor
    vectors: Tensor
    names: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Checks that rows, vectors and names belong together.

        Raises:
            ValueError: a row that points nowhere, vectors that are not finite, or another number of names.
        """
        if self.rows.ndim != 2 or self.vectors.ndim != 2 or self.rows.is_floating_point():
            raise ValueError(
                f"words are rows (N, W) of whole numbers and vectors (V, D), got {tuple(self.rows.shape)} "
                f"of {self.rows.dtype} and {tuple(self.vectors.shape)}"
            )
        if self.rows.numel() and not -1 <= int(self.rows.min()) <= int(self.rows.max()) < len(self.vectors):
            raise ValueError(
                f"rows must point into the {len(self.vectors)} vectors, or be -1, got {int(self.rows.min())} "
                f"to {int(self.rows.max())}"
            )
        if not bool(self.vectors.isfinite().all()):
            row = int((~self.vectors.isfinite()).any(dim=1).nonzero()[0, 0])
            raise ValueError(f"vectors of words must be finite; vector {row} is not")
        if self.names and len(self.names) != len(self.vectors):
            raise ValueError(f"{len(self.vectors)} vectors, but {len(self.names)} names of words")

    def __len__(self) -> int:
        """The number of texts."""
        return len(self.rows)

    def named(self, text: int) -> list[str]:
        """The words of a text in their order, by name."""
        return [self.names[row] for row in self.rows[text].tolist() if row >= 0]

    def reduced(self, dim: int) -> "TextWords":
        """The same words in fewer features: the principal components of the vectors of all V words.

        Reading a word then costs less; what is lost is what the words differ in least.

        Args:
            dim: features to keep, at most those that there are.
        """
        if not 1 <= dim <= self.vectors.shape[1]:
            raise ValueError(f"dim must be 1 to {self.vectors.shape[1]}, got {dim}")
        centered = (self.vectors - self.vectors.mean(dim=0)).double()  # (V, D)
        _, axes = torch.linalg.eigh(centered.mT @ centered)  # ascending
        kept = axes[:, -dim:].flip(1)  # (D, dim)
        # An axis has no direction of its own: the largest entry is made positive, on every machine.
        sign = kept.gather(0, kept.abs().argmax(dim=0, keepdim=True)).sign()  # (1, dim)
        return TextWords(self.rows, (centered @ (kept * sign)).float(), self.names)

    @classmethod
    def of(
        cls,
        texts: Sequence[str],
        encoder: TextEncoder | None = None,
        *,
        contextual: bool = False,
        max_words: int = 32,
    ) -> "TextWords":
        """The words of texts with vectors of a published encoder.

        Args:
            texts: N texts.
            encoder: whose tokenizer and vectors; all-MiniLM-L6-v2 when not given.
            contextual: False takes a word's row of the encoder's own table, the same wherever it stands;
                True what the last layer makes of it in its text, so that each place has a vector of its own.
            max_words: of a text, special tokens not counted; what is longer loses its end.

        Returns:
            The words, on the CPU.

        Raises:
            TypeError: one text in place of many, or something that is no text.
        """
        strings, encoder = as_strings(texts), encoder or TextEncoder()
        if not strings:
            raise ValueError("there are no texts, so there are no words")
        special = set(encoder.tokenizer.all_special_ids)
        ids, vectors = [], []
        with torch.no_grad():
            for start in range(0, len(strings), _TEXTS_AT_ONCE):
                batch = encoder.tokenize(strings[start : start + _TEXTS_AT_ONCE])
                own = batch["attention_mask"].bool()  # (B, T) words, and no special token
                for token in special:
                    own &= batch["input_ids"] != token
                own &= own.cumsum(1) <= max_words
                ids += [
                    row[kept].tolist() for row, kept in zip(batch["input_ids"].cpu(), own.cpu(), strict=True)
                ]
                if contextual:
                    vectors.append(encoder.hidden(batch)[own].float().cpu())  # (n, D)
        used = sorted({token for row in ids for token in row})
        names = encoder.tokenizer.convert_ids_to_tokens(used)
        width = max(1, max(len(row) for row in ids))
        if contextual:
            name_of, place = dict(zip(used, names, strict=True)), iter(range(sum(map(len, ids))))
            rows = [[next(place) for _ in row] for row in ids]
            table = torch.cat(vectors)  # (V, D), a row for each word of each text
            names = [name_of[token] for row in ids for token in row]
        else:
            number = {token: n for n, token in enumerate(used)}
            rows = [[number[token] for token in row] for row in ids]
            table = encoder.token_vectors()[used].float().cpu()  # (V, D)
        padded = [row + [-1] * (width - len(row)) for row in rows]
        return cls(torch.tensor(padded, dtype=torch.int64, device="cpu"), table, tuple(names))
