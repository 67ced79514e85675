"""SQLite: the last good answer, the desired model, numbers, what was applied, status. The only memory on disk.

Versioned by ``PRAGMA user_version``. Written by one process (the daemon); others open it read-only.
"""

from __future__ import annotations

import dataclasses
import json
import pathlib
import sqlite3
import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from nodemanager_trellis import codec
from nodemanager_trellis.errors import TrellisError
from nodemanager_trellis.model import Desired, Sliver
from nodemanager_trellis.objects import KINDS, KernelObject, Key

SCHEMA_VERSION = 1
FIRST_NUMBER = 2
"""Class id minors 0 and 1 are HTB's root and the node's class."""
LAST_NUMBER = 65_000
"""16-bit class ids; also keeps ``100000 + number × 65536`` below 2³², the largest uid."""

_SCHEMA = """
CREATE TABLE value (name TEXT PRIMARY KEY, json TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE realised (owner TEXT PRIMARY KEY, json TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE number (name TEXT PRIMARY KEY, number INTEGER NOT NULL UNIQUE) WITHOUT ROWID;
CREATE TABLE applied (
    kind TEXT NOT NULL, ident TEXT NOT NULL, owner TEXT NOT NULL, plugin TEXT NOT NULL, json TEXT NOT NULL,
    PRIMARY KEY (kind, ident)) WITHOUT ROWID;
CREATE INDEX applied_owner ON applied (owner);
"""


class StoreError(TrellisError):
    """The store cannot be read or written. Nothing in the kernel was changed."""


@dataclasses.dataclass(frozen=True, slots=True)
class Applied:
    """An object as last wanted for its owner, and the plugin that wanted it."""

    owner: str
    plugin: str
    object: KernelObject


class Store:
    """One node's memory. Thread-safe."""

    def __init__(self, path: pathlib.Path, *, read_only: bool = False) -> None:
        """Open, or make, the store.

        :raises StoreError: not a store, made by a newer version, or not accessible
        """
        self._lock = threading.RLock()
        try:
            if read_only:
                self._db = sqlite3.connect(f"file:{path}?mode=ro", uri=True, check_same_thread=False)
            else:
                path.parent.mkdir(parents=True, exist_ok=True)
                self._db = sqlite3.connect(path, check_same_thread=False, isolation_level=None)
                self._db.execute("PRAGMA journal_mode = WAL")
                self._db.execute("PRAGMA synchronous = NORMAL")
            version = self._db.execute("PRAGMA user_version").fetchone()[0]
            if version == 0 and not read_only:
                self._db.executescript(f"BEGIN; {_SCHEMA} PRAGMA user_version = {SCHEMA_VERSION}; COMMIT;")
            elif version != SCHEMA_VERSION:
                raise StoreError(f"{path} is a store of version {version}, this program knows {SCHEMA_VERSION}")
        except sqlite3.Error as err:
            raise StoreError(f"cannot open the store {path}: {err}") from err

    def close(self) -> None:
        """Close the file."""
        self._db.close()

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        with self._lock:
            try:
                self._db.execute("BEGIN IMMEDIATE")
                try:
                    yield self._db
                except BaseException:
                    self._db.execute("ROLLBACK")
                    raise
                self._db.execute("COMMIT")
            except sqlite3.Error as err:
                raise StoreError(f"cannot write the store: {err}") from err

    def _rows(self, sql: str, *args: Any) -> list[Any]:
        with self._lock:
            try:
                return self._db.execute(sql, args).fetchall()
            except sqlite3.Error as err:
                raise StoreError(f"cannot read the store: {err}") from err

    # -- single values ------------------------------------------------------------------------------------------

    def value(self, name: str, default: Any = None) -> Any:
        """A plain JSON value kept under ``name``."""
        rows = self._rows("SELECT json FROM value WHERE name = ?", name)
        return json.loads(rows[0][0]) if rows else default

    def set_value(self, name: str, value: Any) -> None:
        """Keep a plain JSON value under ``name``; None forgets it."""
        with self._transaction() as db:
            if value is None:
                db.execute("DELETE FROM value WHERE name = ?", (name,))
            else:
                db.execute("INSERT OR REPLACE INTO value VALUES (?, ?)", (name, json.dumps(value)))

    def desired(self) -> Desired | None:
        """What is in force: the last good answer, understood and numbered."""
        plain = self.value("desired")
        return None if plain is None else codec.from_plain(Desired, plain)

    def put_in_force(self, desired: Desired, answer: Any = None) -> bool:
        """Number ``desired`` and put it in force, with the answer it was made of; False if it says nothing new.

        One step with :meth:`forget_numbers`, which another thread may be at: a number given here is not freed there.
        """
        with self._lock:
            before = self.desired()
            desired = self.numbered(desired)
            # The timestamp moves with each answer.
            if before is not None and dataclasses.replace(desired, timestamp=before.timestamp) == before:
                return False
            self.set_value("answer", answer)
            self.set_value("desired", codec.to_plain(desired))
            return True

    # -- numbers ------------------------------------------------------------------------------------------------

    def numbered(self, desired: Desired) -> Desired:
        """``desired`` with a number for each sliver and link: the one it had before, else a free one.

        :raises StoreError: all 64 999 numbers are in use
        """
        numbers = self._numbers(_number_names(desired))
        return dataclasses.replace(
            desired,
            slivers=tuple(
                dataclasses.replace(
                    sliver,
                    number=numbers[str(sliver.slice_id)],
                    links=tuple(
                        dataclasses.replace(link, number=numbers[f"{sliver.slice_id}/{link.name}"])
                        for link in sliver.links
                    ),
                )
                for sliver in desired.slivers
            ),
        )

    def _numbers(self, names: Iterable[str]) -> dict[str, int]:
        with self._lock:
            return self._give_numbers(names)

    def _give_numbers(self, names: Iterable[str]) -> dict[str, int]:
        known = dict(self._rows("SELECT name, number FROM number"))
        new = [name for name in names if name not in known]
        if not new:
            return known
        used = set(known.values())
        # Go on after the last one given, so that a number just freed (with counters or uids around) rests longest.
        at = int(self.value("last_number", FIRST_NUMBER - 1))
        with self._transaction() as db:
            for name in new:
                for _ in range(LAST_NUMBER):
                    at = at + 1 if at < LAST_NUMBER else FIRST_NUMBER
                    if at not in used:
                        break
                else:
                    raise StoreError("all class numbers are in use")
                used.add(at)
                known[name] = at
                db.execute("INSERT INTO number VALUES (?, ?)", (name, at))
            db.execute("INSERT OR REPLACE INTO value VALUES ('last_number', ?)", (str(at),))
        return known

    def forget_numbers(self, realised: Desired) -> None:
        """Free the numbers of slices and links that are neither in ``realised`` nor in what is in force now."""
        with self._lock:
            stay = set(_number_names(realised))
            if (now := self.desired()) is not None:
                stay.update(_number_names(now))
            gone = [(name,) for (name,) in self._rows("SELECT name FROM number") if name not in stay]
            if gone:
                with self._transaction() as db:
                    db.executemany("DELETE FROM number WHERE name = ?", gone)

    # -- what was applied ---------------------------------------------------------------------------------------

    def applied(self) -> dict[Key, Applied]:
        """Every object on record, by key. Rows of a kind this version does not know are left out."""
        found: dict[Key, Applied] = {}
        for kind, ident, owner, plugin, text in self._rows("SELECT kind, ident, owner, plugin, json FROM applied"):
            if kind in KINDS:
                found[kind, ident] = Applied(owner, plugin, codec.from_plain(KINDS[kind], json.loads(text)))
        return found

    def record(self, wanted: Mapping[str, Mapping[Key, KernelObject]], plugin_of: Mapping[Key, str]) -> None:
        """Put on record what each owner wants; called *before* the kernel is touched: a crash leaves no orphan."""
        rows = [
            (kind, ident, owner, plugin_of.get((kind, ident), ""), json.dumps(codec.to_plain(obj)))
            for owner, objects in wanted.items()
            for (kind, ident), obj in objects.items()
        ]
        with self._transaction() as db:
            db.executemany("INSERT OR REPLACE INTO applied VALUES (?, ?, ?, ?, ?)", rows)

    def forget(self, keys: Iterable[Key]) -> None:
        """These objects are gone."""
        with self._transaction() as db:
            db.executemany("DELETE FROM applied WHERE kind = ? AND ident = ?", list(keys))

    # -- what slivers looked like when the kernel last matched ----------------------------------------------------

    def realised(self) -> dict[str, Sliver]:
        """Owner → the sliver as it was when its hooks were last called."""
        return {
            owner: codec.from_plain(Sliver, json.loads(text)) for owner, text in self._rows("SELECT * FROM realised")
        }

    def set_realised(self, owner: str, sliver: Sliver | None) -> None:
        """Remember the sliver; None forgets it."""
        with self._transaction() as db:
            if sliver is None:
                db.execute("DELETE FROM realised WHERE owner = ?", (owner,))
            else:
                db.execute("INSERT OR REPLACE INTO realised VALUES (?, ?)", (owner, json.dumps(codec.to_plain(sliver))))


def _number_names(desired: Desired) -> list[str]:
    """What bears a number: ``37`` a slice by its id, ``37/n39`` one of its links."""
    return [
        name for s in desired.slivers for name in (str(s.slice_id), *(f"{s.slice_id}/{link.name}" for link in s.links))
    ]
