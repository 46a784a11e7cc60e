"""What people did since the model was fitted, kept so that no acknowledged event is lost."""

import json
import sqlite3
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

__all__ = ["Event", "EventStore"]

_SCHEMA = """
CREATE TABLE IF NOT EXISTS events (
    id INTEGER PRIMARY KEY,
    user TEXT NOT NULL,
    item TEXT NOT NULL,
    time INTEGER NOT NULL,
    event_key TEXT UNIQUE
);
CREATE INDEX IF NOT EXISTS events_of_a_user ON events (user, time, id);
"""
_BUSY_SECONDS = 5.0  # another process that writes is waited for


@dataclass(frozen=True)
class Event:
    """Someone chose something.

    Attributes:
        user: the caller's id, a whole number or a text.
        item: likewise.
        time: seconds since 1970-01-01 UTC.
        key: the caller's own name of the event; a second event of that name is the same event.
    """

    user: int | str
    item: int | str
    time: int
    key: str | None = None


class EventStore:
    """Events in an SQLite file, safe to use from several threads.

    The journal is a write-ahead log and every commit is flushed to the disk (``synchronous=FULL``): what
    ``add`` has returned for survives a killed process and a power cut. A file is readable by its owner alone.

    Args:
        path: of the file; made if missing.

    Raises:
        FileNotFoundError: its folder is not there.
        sqlite3.Error: the file is no database, or cannot be opened.
        OSError: the file system has no write-ahead logs, as network drives have not.
    """

    def __init__(self, path: str | Path) -> None:
        path = Path(path).expanduser()
        if not path.parent.is_dir():
            raise FileNotFoundError(f"there is no folder {path.parent} to keep events in")
        path.touch(mode=0o600)
        self._lock = threading.Lock()
        self._db = sqlite3.connect(path, timeout=_BUSY_SECONDS, check_same_thread=False, isolation_level=None)
        (mode,) = self._db.execute("PRAGMA journal_mode=WAL").fetchone()
        if mode != "wal":
            raise OSError(
                f"{path}: this file system keeps no write-ahead log (got {mode!r}); take a local one"
            )
        self._db.execute("PRAGMA synchronous=FULL")
        self._db.executescript(_SCHEMA)

    def add(self, events: Sequence[Event]) -> int:
        """Keeps events, all or none; returns how many were new.

        Raises:
            sqlite3.Error: they could not be written, for instance to a full disk. Then none is kept.
        """
        rows = [(_text(e.user), _text(e.item), e.time, e.key) for e in events]
        with self._lock:
            before = self._db.total_changes
            self._db.execute("BEGIN IMMEDIATE")
            try:
                self._db.executemany(
                    "INSERT INTO events (user, item, time, event_key) VALUES (?, ?, ?, ?) "
                    "ON CONFLICT (event_key) DO NOTHING",
                    rows,
                )
                self._db.execute("COMMIT")
            except BaseException:
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")
                raise
            return self._db.total_changes - before

    def of(self, user: int | str, most: int) -> list[Event]:
        """A user's events, oldest first; the most recent ``most`` of them."""
        with self._lock:
            rows = self._db.execute(
                "SELECT item, time, event_key FROM events WHERE user = ? ORDER BY time DESC, id DESC LIMIT ?",
                (_text(user), most),
            ).fetchall()
        return [Event(user, json.loads(item), time, key) for item, time, key in reversed(rows)]

    def __len__(self) -> int:
        with self._lock:
            (count,) = self._db.execute("SELECT COUNT(*) FROM events").fetchone()
        return int(count)

    def close(self) -> None:
        """Closes the file; what was added is in it."""
        with self._lock:
            self._db.close()


def _text(identifier: Any) -> str:
    """An id as text that tells 7 from "7"."""
    return json.dumps(identifier)
