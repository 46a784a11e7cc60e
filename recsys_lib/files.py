"""Writing a file so that it is either there and whole, or not there."""

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["write_whole"]


@contextmanager
def write_whole(path: Path) -> Iterator[Path]:
    """Gives an empty file beside ``path`` to fill, and renames it when the block ends well.

    ::

        with write_whole(folder / "config.json") as part:
            part.write_text(text, encoding="utf8")

    No reader meets half a file. The content is on the disk before the name is, so that a crash, too, leaves
    either the former file or the new one. Where anything fails, the former file stays and nothing else is
    left. Processes that write the same file at once do not meet: the last one to finish wins.

    Args:
        path: the file; its folder must exist.

    Raises:
        OSError: what the file system refused: a full disk, a folder that may not be written to.
    """
    part = path.with_name(f".{path.name}.{uuid.uuid4().hex}.part")
    try:
        part.touch()
        mode = part.stat().st_mode
        yield part
        part.chmod(mode)  # of any new file here; some writers make theirs private
        with part.open("r+b") as file:  # Windows refuses to flush what is open for reading
            os.fsync(file.fileno())
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
    if os.name == "posix":  # the new name, too; elsewhere a folder cannot be opened
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
