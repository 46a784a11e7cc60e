"""Vectors on disk, by the hash of their text.

A store is a folder of safetensors files, each with three columns sorted by key: ``keys``, the hash of a text;
``sums``, a checksum of its vector; ``vectors``. The two narrow columns are the file's head, with a checksum
of their own in the file's metadata. A process reads the head when it first meets a file and holds it in
memory; of the vectors it reads those that are asked for, and checks each one every time. So a call costs what
its own texts cost, however many others are stored.
"""

import contextlib
import hashlib
import json
import threading
import uuid
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from io import BufferedReader, FileIO
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.numpy import save
from torch import Tensor

from recsys_lib.files import write_whole

__all__ = ["VectorStore", "text_key"]

T = TypeVar("T")

_KEY = np.dtype("S32")  # strings of bytes, which numpy can sort and search
_SUM = np.dtype("<i8")
_FEATURE = np.dtype("<f4")

# Bytes of heads that a process holds, all stores together; beyond that, the store used longest ago is read
# anew when it is used again. A head takes 40 bytes a text: this holds 6 million texts, whose vectors of 384
# features fill 10 GB on disk. The vectors are not held: the system keeps in memory what is often read.
_MOST_HELD = 256 << 20
_BUFFER = 8192  # bytes read at once: a few vectors, since those asked for seldom stand side by side

_held: dict[Path, dict[Path, "_VectorFile"]] = {}  # by store, the one used last at the end
_held_lock = threading.Lock()


def text_key(text: str) -> bytes:
    """What a text's vector is stored under: 32 bytes, its SHA-256."""
    return hashlib.sha256(text.encode()).digest()


class VectorStore:
    """Vectors by the hash of their text, in a folder of safetensors files.

    A file is written whole under another name and renamed, and is never changed. A new file takes in those
    that hold no more than itself, as a binary counter carries, so n calls leave about log n files. Processes
    may share the folder, and each call sees what others have added: at worst one computes what another has
    just stored.

    Args:
        folder: Where the files are; made when the first vector is stored.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def read(self, keys: Sequence[bytes]) -> tuple[list[bool], Tensor]:
        """Which keys are known, and (N, d) vectors, zero where unknown; (N, 0) where none is known."""
        wanted = np.frombuffer(b"".join(keys), _KEY)  # (N,)
        known = np.zeros(len(wanted), dtype=bool)
        vectors = torch.zeros(len(wanted), 0, device="cpu")
        for file in self._files():
            rows, found = file.find(wanted)
            found &= ~known
            if not found.any():
                continue
            stored = _attempt(file.path, partial(file.read, rows[found]))
            if stored is None:
                continue
            if not vectors.shape[1]:
                vectors = torch.zeros(len(wanted), stored.shape[1], device="cpu")
            vectors[torch.from_numpy(found)] = stored
            known |= found
        return known.tolist(), vectors

    def add(self, keys: Sequence[bytes], vectors: Tensor) -> None:
        """Store (N, d) vectors. Where that is impossible, say so and go on: a cache is a convenience."""
        if not keys:
            return
        all_keys = np.frombuffer(b"".join(keys), _KEY)
        taken_in = []
        for file in sorted(self._files(), key=lambda file: len(file.keys)):
            if len(file.keys) > len(all_keys):
                break
            # Two processes may have stored the same text, or a file once taken in could not be removed.
            new = np.flatnonzero(~np.isin(file.keys, all_keys))
            stored = _attempt(file.path, partial(file.read, new))
            if stored is None:
                continue
            all_keys = np.concatenate([all_keys, file.keys[new]])
            vectors = torch.cat([vectors, stored])
            taken_in.append(file.path)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with write_whole(self.folder / f"{uuid.uuid4().hex}.safetensors") as part:
                part.write_bytes(_file_content(all_keys, vectors))
            for path in taken_in:
                path.unlink(missing_ok=True)
        except OSError as error:
            warnings.warn(f"the vectors could not be kept in {self.folder}: {error}", stacklevel=2)

    def _files(self) -> list["_VectorFile"]:
        """The files that are there now and whole; of those that this process knows, no head is read again."""
        with _held_lock:
            before = _held.get(self.folder, {})
        files = {}
        for path in sorted(self.folder.glob("*.safetensors")):
            file = _attempt(path, partial(_current, path, before.get(path)))
            if file is not None:
                files[path] = file
        with _held_lock:
            _held.pop(self.folder, None)
            _held[self.folder] = files
            while sum(file.held_bytes for store in _held.values() for file in store.values()) > _MOST_HELD:
                del _held[next(iter(_held))]
        return list(files.values())


class _DamagedFileError(ValueError):
    """A file is not what was written, or nothing that this module writes."""


class _VectorFile:
    """One file of a store: its head in memory, its vectors on disk.

    Args:
        path: The file.

    Raises:
        OSError: It cannot be read.
        _DamagedFileError: Its length or its head's checksum is wrong, or it is another kind of file.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.stamp = path, _stamp(path)
        with _open(path) as file:
            try:
                self._read_head(file)
            except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
                raise _DamagedFileError(f"it is no store of vectors, or no longer ({error!r})") from error

    def _read_head(self, file: BufferedReader) -> None:
        """Reads what a safetensors file starts with, a length and a description in JSON, and both columns."""
        size, _ = self.stamp
        start = 8 + int.from_bytes(file.read(8), "little")
        if start > size:
            raise ValueError("cut short")
        header = json.loads(file.read(start - 8))
        metadata = header.pop("__metadata__")
        if start + max(column["data_offsets"][1] for column in header.values()) != size:
            raise ValueError("its length is wrong")
        columns = {}
        for name, dtype in (("keys", _KEY), ("sums", _SUM)):
            first, end = header[name]["data_offsets"]
            file.seek(start + first)
            columns[name] = np.frombuffer(file.read(end - first), dtype)
        self.keys, self.sums = columns["keys"], columns["sums"]  # (N,), (N,)
        n, self.dim = header["vectors"]["shape"]
        self.start = start + header["vectors"]["data_offsets"][0]
        if metadata["sha256"] != _head_checksum(self.keys, self.sums, self.dim) or n != len(self.keys):
            raise ValueError("the checksum of its head is wrong")

    @property
    def held_bytes(self) -> int:
        """The memory that this object takes, nearly."""
        return self.keys.nbytes + self.sums.nbytes

    def find(self, keys: NDArray[np.bytes_]) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """For each key, its row and whether it is here; where it is not, the row means nothing."""
        rows = np.searchsorted(self.keys, keys).clip(max=len(self.keys) - 1)  # (N,)
        return rows, self.keys[rows] == keys  # (N,), (N,)

    def read(self, rows: NDArray[np.int64]) -> Tensor:
        """The vectors of these rows, (N, d) float32, each checked.

        Raises:
            OSError: The file cannot be read, or is no longer there.
            _DamagedFileError: A vector is not the one that was stored.
        """
        width = self.dim * _FEATURE.itemsize
        content = bytearray(len(rows) * width)
        places = memoryview(content)
        if len(rows):
            with _open(self.path) as file:
                for place in np.argsort(rows).tolist():  # a disk likes to be read forwards
                    file.seek(self.start + int(rows[place]) * width)
                    file.readinto(places[place * width : (place + 1) * width])
        vectors = np.frombuffer(content, _FEATURE).reshape(len(rows), self.dim)
        if not np.array_equal(_sums(vectors), self.sums[rows]):
            raise _DamagedFileError("a vector is not the one that was stored")
        return torch.from_numpy(vectors)  # (N, d)


def _current(path: Path, known: _VectorFile | None) -> _VectorFile:
    """The known file if it is still the one at this path, else the one that is."""
    return known if known is not None and known.stamp == _stamp(path) else _VectorFile(path)


def _stamp(path: Path) -> tuple[int, int]:
    """Length and time of change: what is at a path is the same while these are."""
    stat = path.stat()
    return stat.st_size, stat.st_mtime_ns


def _open(path: Path) -> BufferedReader:
    return BufferedReader(FileIO(path), _BUFFER)


def _attempt(path: Path, action: Callable[[], T]) -> T | None:
    """What an action on a file gives, or None where it cannot be read. A damaged file is removed."""
    try:
        return action()
    except FileNotFoundError:
        return None  # another process has just taken it in
    except OSError as error:
        warnings.warn(f"{path} cannot be read, its vectors are computed again: {error}", stacklevel=3)
    except _DamagedFileError as error:
        warnings.warn(f"{path} is damaged, its vectors are computed again: {error}", stacklevel=3)
        with contextlib.suppress(OSError):  # then it is reported again
            path.unlink(missing_ok=True)
    return None


def _file_content(keys: NDArray[np.bytes_], vectors: Tensor) -> bytes:
    """A whole file: (N,) keys and (N, d) vectors, sorted by key."""
    order = np.argsort(keys)
    keys, rows = keys[order], vectors.numpy().astype(_FEATURE, copy=False)[order]  # (N,), (N, d)
    sums = _sums(rows)
    columns: dict[str, NDArray[Any]] = {
        "keys": keys.view(np.uint8).reshape(len(keys), _KEY.itemsize),
        "sums": sums,
        "vectors": rows,
    }
    return save(columns, metadata={"sha256": _head_checksum(keys, sums, rows.shape[1])})


def _sums(vectors: NDArray[np.float32]) -> NDArray[np.int64]:
    """A checksum of each vector, (N,): as many bits as make an unnoticed accident as good as impossible."""
    size = _SUM.itemsize
    digests = (hashlib.blake2b(row.data, digest_size=size, usedforsecurity=False).digest() for row in vectors)
    return np.frombuffer(b"".join(digests), _SUM)


def _head_checksum(keys: NDArray[np.bytes_], sums: NDArray[np.int64], dim: int) -> str:
    """What a file's metadata says of its head, in hexadecimal."""
    digest = hashlib.sha256(json.dumps([len(keys), dim]).encode())
    for column in (keys, sums):
        digest.update(column.tobytes())
    return digest.hexdigest()
