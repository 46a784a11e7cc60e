"""Pairs of texts as an encoder reads them: tokenized once, kept on disk by their content, joined as needed.

A text takes part in many pairs: an item with every user, a history with every candidate. Its tokens are made
once, and a pair is put together from the tokens of its two texts and the special ones that the tokenizer sets
around and between them. The numbers are those that the tokenizer itself gives for the pair.
"""

import contextlib
import hashlib
import json
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from recsys_lib.data.download import cache_root
from recsys_lib.data.ragged import offsets, row_of_each, within_rows
from recsys_lib.files import write_whole
from recsys_lib.text.pretrained import content_hash, load_tokenizer

__all__ = ["PairBatch", "PairTokenizer", "TokenTable", "kept_lengths"]

_FORMAT = 1  # raise it when the way from text to tokens changes
_TEXTS_AT_ONCE = 1000  # handed to the tokenizer in one call
_TEXTS_IN_A_BLOCK = 2**16  # written to disk in one piece


class PairBatch(NamedTuple):
    """N pairs of texts, padded on the right, on the CPU."""

    ids: Tensor
    """(N, T) int64 token numbers."""
    present: Tensor
    """(N, T) bool, True at a token."""
    segments: Tensor
    """(N, T) int64, which of the two texts a token is of, as the tokenizer counts them."""


class TokenTable:
    """The tokens of N texts, without special ones. Blocks may be views of a file that is mapped into memory.

    Args:
        blocks: for each the tokens of its texts one after another, (E,) int32, and (n + 1,) offsets of them.
    """

    def __init__(self, blocks: Sequence[tuple[NDArray[np.int32], NDArray[np.integer[Any]]]]) -> None:
        self._blocks = list(blocks)
        sizes = [len(crow) - 1 for _, crow in self._blocks]
        self._first = np.cumsum([0, *sizes])  # (blocks + 1,) the first text of each
        counts = [np.diff(crow).astype(np.int64) for _, crow in self._blocks]
        together = np.concatenate(counts) if counts else np.zeros(0, np.int64)
        self.lengths = torch.as_tensor(together, device="cpu")
        """(N,) int64, tokens of each text."""

    def __len__(self) -> int:
        return len(self.lengths)

    @classmethod
    def of_lists(cls, lists: Sequence[Sequence[int]]) -> "TokenTable":
        """From a list of token numbers a text."""
        crow = np.cumsum([0, *map(len, lists)])
        flat = np.fromiter((token for tokens in lists for token in tokens), np.int32, count=int(crow[-1]))
        return cls([(flat, crow)])

    def take(self, rows: Tensor, lengths: Tensor) -> Tensor:
        """The first tokens of some texts, one text after another.

        Args:
            rows: (B,) int64, which texts.
            lengths: (B,) int64, how many tokens of each, at most as many as it has.

        Returns:
            (E,) int64 on the CPU.
        """
        crow = offsets(lengths)  # (B + 1,)
        row, within = row_of_each(crow).numpy(), within_rows(crow).numpy()  # (E,)
        texts = rows.numpy()[row]  # (E,)
        taken = np.empty(len(row), np.int64)  # (E,)
        for number, (flat, starts) in enumerate(self._blocks):
            first, end = self._first[number], self._first[number + 1]
            here = slice(None) if len(self._blocks) == 1 else (first <= texts) & (texts < end)
            taken[here] = flat[starts[texts[here] - first] + within[here]]
        return torch.as_tensor(taken, device="cpu")


class PairTokenizer:
    """The tokenizer of a published model, for pairs of texts.

    Args:
        folder: The model's.
        name: What messages call the model.
        max_length: Longest pair in tokens, special ones included. What is longer loses the end of its longer
            text, as tokenizers cut with ``truncation="longest_first"``.

    Raises:
        ValueError: The tokenizer cannot be loaded, puts nothing between two texts, or ``max_length`` leaves
            fewer than one token of each.
    """

    def __init__(self, folder: Path, name: str, max_length: int) -> None:
        self.folder, self.name = folder, name
        self.tokenizer = load_tokenizer(folder, name)
        self._frame = _Frame.of(self.tokenizer, name)
        self.pad_id = int(self.tokenizer.pad_token_id or 0)
        self.max_length = max_length
        self.room = max_length - self._frame.n_special  # tokens of both texts together
        if self.room < 2:
            raise ValueError(
                f"max_length={max_length} leaves {max(0, self.room)} tokens for two texts; the smallest is "
                f"{max_length - self.room + 2}"
            )

    def table(self, texts: Sequence[str], *, keep: bool = False) -> TokenTable:
        """Tokenizes texts.

        Args:
            texts: N of them.
            keep: Leave the tokens on disk, under ``data.download.cache_root()``, by the content of the texts
                and of the model; a later call maps the file into memory in place of tokenizing.

        Raises:
            TypeError: Something that is no text, with its position.
        """
        for position, text in enumerate(texts):
            if not isinstance(text, str):
                raise TypeError(f"texts[{position}] is {text!r:.60}, not a text")
        if not texts or not keep:
            return TokenTable.of_lists(self._tokens(list(texts)))
        return _of_file(self._file(list(texts)))

    def _tokens(self, texts: list[str]) -> list[list[int]]:
        if not texts:
            return []
        # Half a surrogate pair, which a badly read file can hold, is no character to any tokenizer.
        readable = [text.encode("utf-8", "replace").decode("utf-8") for text in texts]
        # Whole, for which of two texts is cut, and where, depends on the other one.
        options = {"truncation": False, "add_special_tokens": False, "verbose": False}
        return self.tokenizer(readable, return_attention_mask=False, return_token_type_ids=False, **options)[
            "input_ids"
        ]

    def _file(self, texts: list[str]) -> Path:
        """The file that holds the tokens of these texts, an Arrow table; written if it is not there."""
        digest = hashlib.sha256(json.dumps([_FORMAT, content_hash(self.folder)]).encode())
        for text in texts:
            content = text.encode("utf-8", "replace")
            digest.update(len(content).to_bytes(8, "little") + content)
        file = cache_root() / "tokens" / f"{digest.hexdigest()[:32]}.arrow"
        if file.is_file():
            try:
                if len(_of_file(file)) == len(texts):
                    return file
                fault = "it holds another number of texts"
            except (OSError, ValueError) as error:  # Arrow's errors are ValueErrors
                fault = str(error)
            warnings.warn(f"{file} is damaged ({fault}); the texts are tokenized again", stacklevel=4)
        import datasets

        file.parent.mkdir(parents=True, exist_ok=True)
        features = datasets.Features({"tokens": datasets.List(datasets.Value("int32"))})
        with _no_bars(datasets), write_whole(file) as part:
            datasets.Dataset.from_dict({"text": texts}).map(
                lambda batch: {"tokens": self._tokens(batch["text"])},
                batched=True,
                batch_size=_TEXTS_AT_ONCE,
                writer_batch_size=_TEXTS_IN_A_BLOCK,
                remove_columns=["text"],
                features=features,
                cache_file_name=str(part),
                load_from_cache_file=False,
                new_fingerprint=digest.hexdigest()[:16],
            )
        return file

    def lengths(self, first: Tensor, second: Tensor) -> Tensor:
        """Tokens of pairs, special ones included: (N,), (N,) tokens of their texts -> (N,)."""
        a, b = kept_lengths(first, second, self.room)
        return a + b + self.max_length - self.room

    def join(self, first: TokenTable, i: Tensor, second: TokenTable, j: Tensor) -> PairBatch:
        """Pairs as the encoder reads them: text i of the first table with text j of the second.

        Args:
            first: texts that come first.
            i: (N,) int64 on the CPU.
            second: texts that come second; may be the same table.
            j: (N,) int64 on the CPU.
        """
        a, b = kept_lengths(first.lengths[i], second.lengths[j], self.room)  # (N,), (N,)
        length = self.max_length - self.room
        shape = (len(i), length + int((a + b).max()) if len(i) else 0)
        ids = torch.full(shape, self.pad_id, dtype=torch.int64, device="cpu")  # (N, T)
        segments = torch.zeros(shape, dtype=torch.int64, device="cpu")  # (N, T)
        row = torch.arange(len(i), device="cpu")  # (N,)
        filled = torch.zeros(len(i), dtype=torch.int64, device="cpu")  # (N,) how far each row is

        def put(special: list[tuple[int, int]]) -> None:
            nonlocal filled
            for token, segment in special:
                ids[row, filled], segments[row, filled] = token, segment
                filled = filled + 1

        def put_text(table: TokenTable, texts: Tensor, taken: Tensor, segment: int) -> None:
            nonlocal filled
            crow = offsets(taken)  # (N + 1,)
            of = row_of_each(crow)  # (E,)
            column = filled[of] + within_rows(crow)  # (E,)
            ids[of, column], segments[of, column] = table.take(texts, taken), segment
            filled = filled + taken

        put(self._frame.before)
        put_text(first, i, a, self._frame.first)
        put(self._frame.between)
        put_text(second, j, b, self._frame.second)
        put(self._frame.after)
        present = torch.arange(shape[1], device="cpu") < filled[:, None]  # (N, T)
        return PairBatch(ids, present, segments)


def kept_lengths(first: Tensor, second: Tensor, room: int) -> tuple[Tensor, Tensor]:
    """How many tokens of two texts are read where both have to fit.

    The shorter text is read whole if it takes half the room or less; the longer one takes what is left.

    Args:
        first: (N,) int64, tokens of the first texts.
        second: (N,) int64, of the second.
        room: tokens that fit.

    Returns:
        (N,), (N,)
    """
    small, large = torch.minimum(first, second), torch.maximum(first, second)  # (N,), (N,)
    fits = small + large <= room  # (N,)
    small_kept = torch.where(fits, small, small.clamp(max=room // 2))  # (N,)
    large_kept = torch.where(fits, large, room - small_kept)  # (N,)
    first_is_large = first > second  # (N,)
    a = torch.where(first_is_large, large_kept, small_kept)  # (N,)
    return a, torch.where(first_is_large, small_kept, large_kept)


class _Frame(NamedTuple):
    """The special tokens around two texts, each with its segment, and the segments of the texts."""

    before: list[tuple[int, int]]
    between: list[tuple[int, int]]
    after: list[tuple[int, int]]
    first: int
    second: int

    @classmethod
    def of(cls, tokenizer: Any, name: str) -> "_Frame":
        """As the tokenizer sets them."""
        if not tokenizer.is_fast:
            raise ValueError(f"the tokenizer of {name} has no fast version, which says whose a token is")
        pair = tokenizer("a", "b", return_token_type_ids=True)
        tokens = list(zip(pair["input_ids"], pair["token_type_ids"], strict=True))
        whose = pair.sequence_ids(0)  # 0, 1, or None at a special token
        own = [[place for place, text in enumerate(whose) if text == n] for n in (0, 1)]
        if not all(own) or own[1][0] == own[0][-1] + 1:
            raise ValueError(
                f"the tokenizer of {name} puts nothing between two texts, so they cannot be told apart; take "
                f"a BERT or a RoBERTa"
            )
        (start, end), (start_2, end_2) = ((places[0], places[-1] + 1) for places in own)
        special = tokens[:start], tokens[end:start_2], tokens[end_2:]
        return cls(*special, tokens[start][1], tokens[start_2][1])

    @property
    def n_special(self) -> int:
        """Special tokens in a pair."""
        return len(self.before) + len(self.between) + len(self.after)


def _of_file(file: Path) -> TokenTable:
    """The tokens in an Arrow file, mapped into memory."""
    import datasets

    column = datasets.Dataset.from_file(str(file)).data.column("tokens")
    return TokenTable([(chunk.values.to_numpy(), chunk.offsets.to_numpy()) for chunk in column.chunks])


@contextlib.contextmanager
def _no_bars(datasets: Any) -> Iterator[None]:
    """Keeps ``datasets`` from showing bars of its own."""
    shown = datasets.is_progress_bar_enabled()
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        if shown:
            datasets.enable_progress_bars()
