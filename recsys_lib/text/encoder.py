"""The encoder: tokenizes texts, batches those of like length, runs a published model, pools its tokens."""

import hashlib
import json
import os
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from recsys_lib.data.download import cache_root
from recsys_lib.devices import resolve_device
from recsys_lib.progress import progress_bar
from recsys_lib.text.bert import from_bert_state
from recsys_lib.text.pooling import Pooling, check_pooling, pool
from recsys_lib.text.pretrained import (
    content_hash,
    load_transformers,
    longest_text,
    minilm_folder,
    model_folder,
)
from recsys_lib.text.strings import as_strings
from recsys_lib.text.vectors import VectorStore, text_key

__all__ = ["TextEncoder", "float_type"]

_CACHE_FORMAT = 2  # raise it when the way from text to vector changes, or the layout of the files
_CHUNK = 16_384  # texts tokenized at a time: enough to sort by length, few enough to hold
# Tokens in a batch when the caller names no batch size: what fits a CPU's caches, and fills an accelerator.
_TOKENS_PER_BATCH = {"cpu": 512}
_TOKENS_PER_BATCH_ELSEWHERE = 16_384


class TextEncoder:
    """Turns texts into vectors with a published encoder.

    Making one is cheap. The model is loaded when the first text comes that is not in the cache.

    Args:
        name_or_path: ``None`` for the packaged all-MiniLM-L6-v2; a folder that holds a model; or the name of
            a model on the Hugging Face hub ("bert-base-uncased", "roberta-base", "intfloat/e5-small-v2").
            Some models ask for a prefix before each text, E5 for "query: " or "passage: "; put it there
            yourself.
        pooling: How the tokens of a text become one vector, see ``pool``. Take what the model was trained
            with: "mean" for MiniLM and E5, "cls" for BGE, "last" for encoders made from causal models.
        normalize: Scale each vector to length one, so that a dot product is a cosine.
        device: "auto", "cpu", "cuda", "mps" or a ``torch.device``.
        dtype: The type that the model computes in: float32, bfloat16 or float16. Vectors are float32 always.
        max_length: Longest text in tokens, special tokens included; what is longer loses its end, without a
            warning. At least one more than the special tokens, of which BERT's tokenizer adds two. The
            model's own limit when not given (256 for MiniLM).
        cache: Keep vectors on disk, under ``data.download.cache_root()``.
        own: Compute with this library's own ``attention.TransformerEncoder`` in place of the model's own
            code, which gives the same numbers (``from_bert_state``). For a BERT or a RoBERTa.
        pool_special: Whether special tokens take part in the pooling. Without them "mean" and "last" are of
            the text's own tokens; Gemma, for one, needs its first token, which then says nothing of the text.
        instruction: A text put before each text as it stands, with its own blank or line break at the end:
            what the model is asked to do. Its tokens are read, and take no part in the mean. A token over
            the border of the two counts as the text's.

    Raises:
        ValueError: An option is not one of those above, or the model has no safetensors file.
        FileNotFoundError: The folder does not exist or holds no model, or the hub does not know the name.
        ConnectionError: The hub cannot be reached, and the model was not fetched before.
        DownloadError: The packaged model is neither installed nor to be had.
    """

    def __init__(
        self,
        name_or_path: str | os.PathLike[str] | None = None,
        pooling: Pooling = "mean",
        normalize: bool = True,
        device: str | torch.device = "auto",
        dtype: str | torch.dtype = torch.float32,
        max_length: int | None = None,
        cache: bool = True,
        own: bool = False,
        pool_special: bool = True,
        instruction: str = "",
    ) -> None:
        check_pooling(pooling)
        if pooling == "cls" and not pool_special:
            raise ValueError("pooling='cls' takes a special token; pool_special=False leaves none")
        if max_length is not None and max_length < 1:
            raise ValueError(f"max_length must be 1 or more, got {max_length}")
        self.name = "all-MiniLM-L6-v2" if name_or_path is None else str(name_or_path)
        self.pooling, self.normalize, self.cache = pooling, normalize, cache
        self.own, self.pool_special, self.instruction = own, pool_special, instruction
        self.device, self.dtype = resolve_device(device), float_type(dtype)
        self.folder = minilm_folder() if name_or_path is None else model_folder(name_or_path)
        self._asked_length = max_length
        self._loaded: tuple[Any, Any, int] | None = None

    def __repr__(self) -> str:
        options = f"pooling={self.pooling!r}, normalize={self.normalize}, device={self.device}, {self.dtype}"
        return f"TextEncoder({self.name!r}, {options})"

    @property
    def model(self) -> nn.Module:
        """The ``transformers`` model, or with ``own`` the library's encoder, in evaluation mode."""
        return self._load()[0]

    @property
    def tokenizer(self) -> Any:
        """The ``transformers`` tokenizer."""
        return self._load()[1]

    @property
    def max_length(self) -> int:
        """The longest text in tokens, special tokens included."""
        return self._load()[2]

    @property
    def dim(self) -> int:
        """The number of features of a vector."""
        model = self._load()[0]
        return int(model.token_embedding.embedding_dim if self.own else model.config.hidden_size)

    def tokenize(self, texts: Iterable[Any]) -> dict[str, Tensor]:
        """The model's input for these texts as one batch, padded on the right, on the encoder's device.

        Returns:
            "input_ids" and "attention_mask" (1 at a token, 0 at padding), (B, T) int64, and whatever else the
            tokenizer makes, such as BERT's "token_type_ids".
        """
        strings = as_strings(texts)
        if not strings:
            raise ValueError("a batch needs at least one text")
        tokens = self._tokens(strings)
        tokens.pop("pooled", None)
        return self._batch(tokens, range(len(tokens["input_ids"])))

    @torch.no_grad()
    def hidden(self, batch: dict[str, Tensor]) -> Tensor:
        """The last layer's vector of each token, for a batch of ``tokenize``: (B, T, d), no gradient."""
        return self._hidden(self.model, batch)

    @torch.no_grad()
    def token_vectors(self) -> Tensor:
        """The table that the first layer reads: (vocabulary, d), a vector a token wherever it stands."""
        table: Any = self.model.token_embedding if self.own else self.model.get_input_embeddings()  # type: ignore[operator]
        weight: Tensor = table.weight
        return weight.detach()

    def encode(
        self,
        texts: Iterable[Any],
        batch_size: int | None = None,
        progress: bool = True,
        cache: bool | None = None,
    ) -> Tensor:
        """One vector a text.

        Equal texts are computed once. Texts of like length share a batch, so that little padding is computed.
        A missing text (``None``, NaN) counts as empty, with a warning. A text without any token, which an
        empty one is to a tokenizer that adds no special tokens, becomes a vector of zeros.

        Args:
            texts: Strings: a list, a column, any iterable.
            batch_size: Texts in a batch; when not given, as many as make a good number of tokens.
            progress: Show a bar when it takes longer than a second.
            cache: Overrides the encoder's ``cache`` for this call.

        Returns:
            (N, d) float32, in the order of the texts, on the encoder's device.

        Raises:
            TypeError: One string instead of a list of them, a table, a mapping, a set, or something that is
                no text.
            ValueError: The model cannot be loaded, see ``TextEncoder``, or its numbers overflow ``dtype``.
        """
        if batch_size is not None and batch_size < 1:
            raise ValueError(f"batch_size must be 1 or more, got {batch_size}")
        strings = as_strings(texts)
        if not strings:
            return torch.empty(0, self.dim, device=self.device)
        place = {text: i for i, text in enumerate(dict.fromkeys(strings))}
        distinct = list(place)
        if self.cache if cache is None else cache:
            vectors = self._encode_cached(distinct, batch_size, progress)  # (U, d)
        else:
            vectors = self._encode(distinct, batch_size, progress)  # (U, d)
        if len(distinct) == len(strings):
            return vectors
        return vectors[torch.tensor([place[text] for text in strings], device=self.device)]  # (N, d)

    def _store(self) -> VectorStore:
        """Where the vectors are kept: a place of its own for all that a vector depends on beside its text."""
        settings = [
            _CACHE_FORMAT,
            content_hash(self.folder),
            self.pooling,
            bool(self.normalize),
            self._asked_length,
            str(self.dtype),
            # Said only where they are not the default, so that vectors kept before stay known.
            *(["own"] if self.own else []),
            *([] if self.pool_special else ["without special tokens"]),
            *(["after", self.instruction] if self.instruction else []),
        ]
        name = hashlib.sha256(json.dumps(settings).encode()).hexdigest()[:32]
        return VectorStore(cache_root() / "vectors" / name)

    def _encode_cached(self, texts: list[str], batch_size: int | None, progress: bool) -> Tensor:
        store = self._store()
        keys = [text_key(text) for text in texts]
        known, vectors = store.read(keys)
        missing = [i for i, is_known in enumerate(known) if not is_known]
        if not missing:
            return vectors.to(self.device)  # (U, d)
        computed = self._encode([texts[i] for i in missing], batch_size, progress)  # (M, d)
        store.add([keys[i] for i in missing], computed.cpu())
        if len(missing) == len(texts):
            return computed
        vectors = vectors.to(self.device)
        vectors[torch.tensor(missing, device=self.device)] = computed
        return vectors  # (U, d)

    @torch.no_grad()
    def _encode(self, texts: list[str], batch_size: int | None, progress: bool) -> Tensor:
        vectors = torch.zeros(len(texts), self.dim, device=self.device)  # (U, d)
        filled = self._fill(vectors, texts, batch_size)
        for _ in progress_bar(filled, "encoding texts", enabled=progress, total=len(texts)):
            pass
        if not vectors.isfinite().all():
            raise ValueError(f"{self.name} gives numbers beyond {self.dtype}; use bfloat16 or float32")
        return functional.normalize(vectors, dim=-1) if self.normalize else vectors  # (U, d)

    def _fill(self, vectors: Tensor, texts: list[str], batch_size: int | None) -> Iterator[int]:
        """Write the texts' vectors into their rows, (U, d), and give the number of each text that is done."""
        model = self.model
        by_length = sorted(range(len(texts)), key=lambda i: len(texts[i]), reverse=True)
        for start in range(0, len(texts), _CHUNK):
            chunk = by_length[start : start + _CHUNK]
            tokens = self._tokens([texts[i] for i in chunk])
            for rows in _batches([len(ids) for ids in tokens["input_ids"]], batch_size, self.device):
                batch, places = self._batch(tokens, rows), [chunk[row] for row in rows]
                present = batch.pop("pooled", batch["attention_mask"])  # (B, T)
                if batch["input_ids"].shape[1]:
                    vectors[places] = pool(self._hidden(model, batch), present, self.pooling)  # (B, d)
                yield from places

    def _hidden(self, model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        """(B, T, d): what the model gives for a batch."""
        if not self.own:
            hidden: Tensor = model(**batch).last_hidden_state
            return hidden
        own: Tensor = model(batch["input_ids"], batch["attention_mask"], batch.get("token_type_ids"))
        return own

    def _tokens(self, texts: list[str]) -> dict[str, list[list[int]]]:
        """Token numbers and what belongs to them, not padded; "pooled" where not all tokens are."""
        _, tokenizer, max_length = self._load()
        options = {"truncation": True, "max_length": max_length, "padding": False}
        without_instruction = bool(self.instruction) and self.pooling == "mean"
        options["return_special_tokens_mask"] = without_instruction or not self.pool_special
        options["return_offsets_mapping"] = without_instruction
        tokens = dict(
            tokenizer([self.instruction + text for text in texts], return_attention_mask=True, **options)
        )
        specials, ends = tokens.pop("special_tokens_mask", None), tokens.pop("offset_mapping", None)
        if specials is not None:
            start = len(self.instruction)
            tokens["pooled"] = [
                [
                    int(self.pool_special if special else ends is None or ends[row][i][1] > start)
                    for i, special in enumerate(marks)
                ]
                for row, marks in enumerate(specials)
            ]
        return tokens

    def _batch(self, tokens: dict[str, list[list[int]]], rows: Iterable[int]) -> dict[str, Tensor]:
        """These rows padded on the right, which no position encoding and no causal mask minds."""
        rows = list(rows)
        length = max((len(tokens["input_ids"][row]) for row in rows), default=0)
        tokenizer = self.tokenizer
        padding = {"input_ids": tokenizer.pad_token_id or 0, "token_type_ids": tokenizer.pad_token_type_id}
        batch = {}
        for name, lists in tokens.items():
            padded = [lists[row] + [padding.get(name, 0)] * (length - len(lists[row])) for row in rows]
            batch[name] = torch.tensor(padded, dtype=torch.int64, device=self.device).view(len(rows), length)
        return batch

    def _load(self) -> tuple[Any, Any, int]:
        """The model, its tokenizer and the longest text; loaded once, when first needed."""
        if self._loaded is None:
            model, tokenizer = load_transformers(self.folder, self.name)
            length = longest_text(model, tokenizer, self.folder, self._asked_length)
            if self.instruction:
                self._check_instruction(tokenizer, length)
            if self.own:
                model = from_bert_state(model.state_dict(), model.config.to_dict())
            self._loaded = model.eval().to(self.device, self.dtype), tokenizer, length
        return self._loaded

    def _check_instruction(self, tokenizer: Any, length: int) -> None:
        """Refuses an instruction that leaves a text no room, or cannot be told from a text."""
        if self.pooling == "mean" and not tokenizer.is_fast:
            raise ValueError(
                f"the tokenizer of {self.name} does not say which characters a token stands for, so that the "
                "mean cannot leave out the instruction; use pooling='last' or instruction=''"
            )
        if (taken := len(tokenizer(self.instruction)["input_ids"])) >= length:
            raise ValueError(
                f"the instruction takes {taken} tokens, special ones included, of the {length} that there "
                "may be, and leaves none to the text"
            )


def float_type(dtype: str | torch.dtype) -> torch.dtype:
    """The type that a name such as "bfloat16" stands for.

    Raises:
        ValueError: It is none of float32, bfloat16 and float16.
    """
    named = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
    found = named.get(str(dtype).removeprefix("torch."))
    if found is None:
        raise ValueError(f"dtype={dtype!r} is not one of {', '.join(named)}")
    return found


def _batches(lengths: list[int], batch_size: int | None, device: torch.device) -> Iterator[list[int]]:
    """Rows of like length, the longest first, so that a lack of memory shows at once."""
    rows = sorted(range(len(lengths)), key=lengths.__getitem__, reverse=True)
    n_tokens = _TOKENS_PER_BATCH.get(device.type, _TOKENS_PER_BATCH_ELSEWHERE)
    while rows:
        size = batch_size or max(1, n_tokens // max(1, lengths[rows[0]]))
        yield rows[:size]
        rows = rows[size:]
