"""Token vectors without a model: a text is the mean of its tokens' vectors, whatever stands around them.

WordLlama (D. Lee Miller, https://github.com/dleemiller/WordLlama) takes the token vectors of language models
with the vocabulary of Llama 2, Llama 2 70B among them, puts them side by side, and trains a projection to 256
features for the similarity of sentences. Its package is under the MIT License; the models it was made from
have terms of their own. The two files are read out of the package; its code is neither imported nor run.
"""

import hashlib
import importlib.util
import logging
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional

from recsys_lib.data.download import DownloadError, cache_root, fetch_from_package, file_hash
from recsys_lib.devices import resolve_device
from recsys_lib.files import write_whole
from recsys_lib.text.strings import as_strings

__all__ = ["StaticEncoder", "wordllama_folder"]

logger = logging.getLogger(__name__)

_PACKAGE = "wordllama==0.4.0.post1"
_WEIGHTS = "weights/l2_supercat_256.safetensors"
_TOKENIZER = "tokenizers/l2_supercat_tokenizer_config.json"
_FILES = {
    _WEIGHTS: "64b47a2dc493cb8e85944076601189739852d7b64e0e1eedcb1937a251cd9fd5",
    _TOKENIZER: "93248f2a9ec36c7b35f700a033d5f36228aae48db61aee31007fa49062cdeb68",
}
_CHUNK = 16_384  # texts tokenized at a time


def wordllama_folder() -> Path:
    """The folder that holds WordLlama's token vectors and tokenizer, both verified by their SHA-256.

    Looked for in the installed package, then in the cache. Where they are in neither, the package is fetched
    as a file, without being installed, and the two files are put into the cache.

    Raises:
        DownloadError: They could not be fetched; the message says how to place them by hand.
    """
    found = importlib.util.find_spec("wordllama")  # finds the package without running it
    places = (found.submodule_search_locations if found else None) or []
    cached = cache_root() / "models" / "wordllama"
    for folder in (*(Path(place) for place in places), cached):
        if _is_wordllama(folder):
            return folder
    cached.mkdir(parents=True, exist_ok=True)
    with FileLock(cached.with_name(cached.name + ".lock")):
        if _is_wordllama(cached):  # another process was faster
            return cached
        try:
            # There is a wheel for each platform and Python; the two files are the same in all.
            contents = fetch_from_package(_PACKAGE, [f"wordllama/{name}" for name in _FILES], None)
            for name, expected in _FILES.items():
                if hashlib.sha256(contents[f"wordllama/{name}"]).hexdigest() != expected:
                    raise DownloadError(f"{name} in {_PACKAGE} is not the file that was published")
        except DownloadError as error:
            raise DownloadError(
                f"WordLlama is not here and could not be fetched ({error}). Install {_PACKAGE} with pip, or "
                f"copy {' and '.join(_FILES)} out of the folder wordllama of its wheel to {cached}"
            ) from error
        for name in _FILES:
            (cached / name).parent.mkdir(parents=True, exist_ok=True)
            with write_whole(cached / name) as part:
                part.write_bytes(contents[f"wordllama/{name}"])
    return cached


def _is_wordllama(folder: Path) -> bool:
    for name, expected in _FILES.items():
        if not (folder / name).is_file():
            return False
        if file_hash(folder / name) != expected:
            logger.warning("%s is not the file that was published; it is not used", folder / name)
            return False
    return True


class StaticEncoder:
    """Turns texts into vectors with WordLlama's token vectors: a look-up and a mean, no model.

    Args:
        dim: Features of a vector, 1 to 256. The first ones hold the most: trained as Kusupati et al. (2022),
            "Matryoshka Representation Learning", the vectors may be cut off.
        normalize: Scale each vector to length one, so that a dot product is a cosine.
        device: "auto", "cpu", "cuda", "mps" or a ``torch.device``.

    Raises:
        ValueError: There are not that many features.
        DownloadError: The package is neither installed nor to be had.
    """

    name = "WordLlama"

    def __init__(self, dim: int = 256, normalize: bool = True, device: str | torch.device = "auto") -> None:
        import transformers

        folder = wordllama_folder()
        table = load_file(folder / _WEIGHTS)["embedding.weight"].float()  # (32000, 256)
        if not 1 <= dim <= table.shape[1]:
            raise ValueError(f"dim must be 1 to {table.shape[1]}, got {dim}")
        self.dim, self.normalize, self.device = dim, normalize, resolve_device(device)
        self.table = table[:, :dim].contiguous().to(self.device)  # (32000, dim)
        whole = transformers.PreTrainedTokenizerFast(tokenizer_file=str(folder / _TOKENIZER))
        self._tokenizer = whole.backend_tokenizer
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()

    def __repr__(self) -> str:
        return (
            f"StaticEncoder({self.name!r}, dim={self.dim}, normalize={self.normalize}, device={self.device})"
        )

    def tokens(self, texts: Iterable[Any]) -> list[list[int]]:
        """The token numbers of each text, without special tokens."""
        found = self._tokenizer.encode_batch(as_strings(texts), add_special_tokens=False)
        return [encoding.ids for encoding in found]

    def encode(self, texts: Iterable[Any], progress: bool = True) -> Tensor:
        """One vector a text: the mean of its tokens'. A text without tokens becomes a vector of zeros.

        Args:
            texts: Strings: a list, a column, any iterable. A missing one counts as empty, with a warning.
            progress: Taken for the sake of the other encoders; this takes no time.

        Returns:
            (N, dim) float32, in the order of the texts, on the encoder's device.

        Raises:
            TypeError: Something that is no text, see ``TextEncoder.encode``.
        """
        strings = as_strings(texts)
        vectors = torch.zeros(len(strings), self.dim, device=self.device)  # (N, dim)
        for start in range(0, len(strings), _CHUNK):
            lists = self.tokens(strings[start : start + _CHUNK])
            lengths = torch.tensor([len(ids) for ids in lists], device=self.device)  # (C,)
            flat = torch.tensor([i for ids in lists for i in ids], dtype=torch.int64, device=self.device)
            if len(flat):
                offsets = lengths.cumsum(0) - lengths  # (C,)
                means = functional.embedding_bag(flat, self.table, offsets, mode="mean")  # (C, dim)
                vectors[start : start + _CHUNK] = means
        return functional.normalize(vectors, dim=-1) if self.normalize else vectors  # (N, dim)
