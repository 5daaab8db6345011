"""The sandbox's state survives a restart if it has a file to keep it in."""

import sqlite3
from collections.abc import Iterable
from typing import TypeVar

import msgspec
from msgspec import Struct

T = TypeVar("T", bound=Struct)

SCHEMA = """
CREATE TABLE IF NOT EXISTS kept (
    n INTEGER PRIMARY KEY AUTOINCREMENT, kind TEXT NOT NULL, key TEXT NOT NULL, body BLOB NOT NULL,
    UNIQUE (kind, key)
)
"""
SAVE = """
INSERT INTO kept (kind, key, body) VALUES (?, ?, ?)
ON CONFLICT (kind, key) DO UPDATE SET body = excluded.body
"""
LOAD = "SELECT body FROM kept WHERE kind = ? ORDER BY n"
DELETE = "DELETE FROM kept WHERE kind = ? AND key = ?"
CLEAR = "DELETE FROM kept WHERE kind = ?"


class Store:
    """One SQLite table of JSON, written as things change; without a path it keeps nothing."""

    def __init__(self, path: str) -> None:
        self._file: sqlite3.Connection | None = None
        if path:
            self._file = sqlite3.connect(path, isolation_level=None)
            self._file.execute("PRAGMA journal_mode = WAL")
            self._file.execute("PRAGMA synchronous = NORMAL")
            self._file.execute(SCHEMA)

    def save(self, kind: str, key: str, value: Struct) -> None:
        """Keep the thing as it is now."""
        if self._file is not None:
            self._file.execute(SAVE, (kind, key, msgspec.json.encode(value)))

    def delete(self, kind: str, key: str) -> None:
        """Forget one."""
        if self._file is not None:
            self._file.execute(DELETE, (kind, key))

    def clear(self, kinds: Iterable[str]) -> None:
        """Forget all of these kinds."""
        if self._file is not None:
            for kind in kinds:
                self._file.execute(CLEAR, (kind,))

    def load(self, kind: str, shape: type[T]) -> list[T]:
        """All of a kind, in the order they were first kept."""
        if self._file is None:
            return []
        decoder = msgspec.json.Decoder(shape)
        return [decoder.decode(body) for (body,) in self._file.execute(LOAD, (kind,))]

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()
            self._file = None
