"""Texts as words: how often each occurs, and vectors that count a word for more where it is rare."""

import re
from collections import Counter
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from recsys_lib.devices import resolve_device
from recsys_lib.text.strings import as_strings

__all__ = ["TfidfEncoder", "term_counts", "tokenize"]

# Two or more letters, digits or underscores; the same words as scikit-learn's vectorizers find.
_WORD = re.compile(r"\b\w\w+\b")


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


class TfidfEncoder:
    """Vectors with a feature for each word: how often a text has it, times how rare it is.

        idf_t = ln((1 + N) / (1 + df_t)) + 1,   w_dt = tf_dt idf_t,   then each row is scaled to length 1

    The words and their rarity are those of the texts that it was made of; other texts are then seen through
    these, as with scikit-learn's ``TfidfVectorizer``. Spärck Jones (1972), A statistical interpretation of
    term specificity.

    Args:
        texts: N texts, of which the words and how many have each are taken. A missing one counts as empty.
        min_count: Leave out words that fewer texts have.
        sublinear: 1 + ln(tf) in place of tf.
        normalize: Scale each vector to length one, so that a dot product is a cosine.
        device: "auto", "cpu", "cuda", "mps" or a ``torch.device``: where the vectors go.

    Raises:
        TypeError: Something that is no text, see ``TextEncoder.encode``.
        ValueError: No word is left.
    """

    name = "TF-IDF"

    def __init__(
        self,
        texts: Iterable[Any],
        min_count: int = 1,
        sublinear: bool = False,
        normalize: bool = True,
        device: str | torch.device = "auto",
    ) -> None:
        strings = as_strings(texts)
        counts, self.words = term_counts(strings, min_count)  # (N, V)
        if not self.words:
            raise ValueError(f"none of the {len(strings)} texts has a word that {min_count} of them share")
        self.sublinear, self.normalize, self.device = sublinear, normalize, resolve_device(device)
        self._column = {word: position for position, word in enumerate(self.words)}
        df = counts.indices()[1].bincount(minlength=len(self.words))  # (V,)
        self.idf = (((1 + len(strings)) / (1 + df.double())).log() + 1).float()  # (V,)

    def __repr__(self) -> str:
        return f"TfidfEncoder({len(self.words):,} words)"

    @property
    def dim(self) -> int:
        """The number of features of a vector: the number of words."""
        return len(self.words)

    def encode(self, texts: Iterable[Any], progress: bool = True) -> Tensor:
        """One vector a text. A text without any of the words becomes a vector of zeros.

        Args:
            texts: Strings: a list, a column, any iterable. A missing one counts as empty, with a warning.
            progress: Taken for the sake of the other encoders; this takes no time.

        Returns:
            (N, V) float32, in the order of the texts, on the encoder's device.

        Raises:
            TypeError: Something that is no text, see ``TextEncoder.encode``.
        """
        strings = as_strings(texts)
        vectors = torch.zeros(len(strings), self.dim, device="cpu")  # (N, V)
        for row, text in enumerate(strings):
            for word, count in Counter(tokenize(text)).items():
                if (column := self._column.get(word)) is not None:
                    vectors[row, column] = count
        if self.sublinear:
            vectors = torch.where(vectors > 0, 1 + vectors.clamp(min=1).log(), 0.0)  # (N, V)
        vectors = vectors * self.idf  # (N, V)
        if self.normalize:
            vectors = torch.nn.functional.normalize(vectors, dim=-1)  # (N, V)
        return vectors.to(self.device)
