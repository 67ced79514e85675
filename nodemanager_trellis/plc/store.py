"""The PLC's database through SQLAlchemy Core: tables made from ``classes``, transactions, schema versions.

SQLite by default (WAL: readers never wait), any other database that SQLAlchemy speaks by URL. One process serves one
database; its writers take turns on a lock, so that no transaction is ever refused and revisions have an order.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
from collections.abc import Callable, Iterator
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection, Engine
from sqlalchemy.exc import SQLAlchemyError

from nodemanager_trellis.errors import InvalidInput
from nodemanager_trellis.plc.classes import CLASSES, LINKS, ROLES, Field, ObjectClass

log = logging.getLogger(__name__)

#: Version of the tables below. A change of them adds one to it and a step to ``MIGRATIONS``.
SCHEMA_VERSION = 1

#: version → what brings a database of that version to the next one.
MIGRATIONS: dict[int, Callable[[Connection], None]] = {}

metadata = sa.MetaData()

_COLUMN_TYPES: dict[type, Callable[[], Any]] = {int: sa.BigInteger, str: sa.Text, bool: sa.Boolean, float: sa.Float}


def _column(cls: ObjectClass, field: Field) -> sa.Column[Any]:
    """The column of a stored field."""
    if field.name == cls.key:
        return sa.Column(field.name, sa.Integer, primary_key=True, autoincrement=True)
    if field.references:
        target = CLASSES[field.references]
        key = sa.ForeignKey(f"{target.table}.{target.key}", ondelete=field.orphan)
        return sa.Column(field.name, sa.Integer, key, index=True)
    # An interface's address is a handle but several nodes may lack one, or overlap; all other handles are unique.
    unique = field.name == cls.natural and cls.name != "Interface"
    return sa.Column(field.name, _COLUMN_TYPES[field.type.kind](), unique=unique or None)


#: Table of each class, by class name; association tables and the rest by their own name.
tables: dict[str, sa.Table] = {
    cls.name: sa.Table(
        cls.table,
        metadata,
        *(_column(cls, field) for field in cls.fields if field.stored),
        sqlite_autoincrement=True,  # identifiers are never used twice
    )
    for cls in CLASSES.values()
}

roles = sa.Table("roles", metadata, sa.Column("role_id", sa.Integer, primary_key=True), sa.Column("name", sa.Text))

_TABLE_OF_KEY = {cls.key: cls.table for cls in CLASSES.values()} | {"role_id": "roles"}

for _name, _keys in LINKS.items():
    tables[_name] = sa.Table(
        _name,
        metadata,
        *(
            sa.Column(
                key,
                sa.Integer,
                sa.ForeignKey(f"{_TABLE_OF_KEY[key]}.{key}", ondelete="CASCADE"),
                primary_key=True,
                index=True,
                autoincrement=False,
            )
            for key in _keys
        ),
    )

#: Sessions are kept as SHA-256 of what the caller holds. ``expires`` is null for nodes.
sessions = sa.Table(
    "sessions",
    metadata,
    sa.Column("digest", sa.String(64), primary_key=True),
    sa.Column("person_id", sa.Integer, sa.ForeignKey("persons.person_id", ondelete="CASCADE"), index=True),
    sa.Column("node_id", sa.Integer, sa.ForeignKey("nodes.node_id", ondelete="CASCADE"), unique=True),
    sa.Column("expires", sa.BigInteger),
)

#: One row: the version of the schema and the last revision given out.
plc_state = sa.Table(
    "plc_state",
    metadata,
    sa.Column("only", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("schema_version", sa.Integer, nullable=False),
    sa.Column("revision", sa.BigInteger, nullable=False),
)

sa.Index("slice_tags_of", tables["SliceTag"].c.slice_id, tables["SliceTag"].c.tag_type_id)
sa.Index("node_tags_by_value", tables["NodeTag"].c.tag_type_id, tables["NodeTag"].c.node_id)


def relation(name: str) -> sa.FromClause:
    """A table or view that lists identifiers, by the name that ``classes`` uses for it."""
    if name == "nodegroup_node":
        groups, tags = tables["NodeGroup"], tables["NodeTag"]
        same = sa.and_(tags.c.tag_type_id == groups.c.tag_type_id, tags.c.value == groups.c.value)
        return sa.select(groups.c.nodegroup_id, tags.c.node_id).select_from(groups.join(tags, same)).subquery()
    if name in ("person_role_name", "tag_type_role_name"):
        link = tables[name.removesuffix("_name")]
        joined = link.join(roles, roles.c.role_id == link.c.role_id)
        return sa.select(next(iter(link.c)), roles.c.name).select_from(joined).subquery()
    return metadata.tables[name]


class Store:
    """A database and its transactions.

    :param url: SQLAlchemy URL, e.g. ``sqlite:////var/lib/trellis-plc/plc.db``
    :param durable: SQLite waits for the disk at each change. Without, a power failure may cost the last ones; the end
        of the process, however sudden, costs nothing either way
    """

    def __init__(self, url: str, durable: bool = True) -> None:
        try:
            parsed = sa.engine.make_url(url)
            options: dict[str, Any] = {"poolclass": sa.pool.QueuePool, "pool_size": 16, "max_overflow": 16}
            if parsed.get_backend_name() == "sqlite":
                if parsed.database in (None, "", ":memory:"):
                    raise InvalidInput("the PLC's threads cannot share an in-memory database; name a file", "db")
                options["connect_args"] = {"timeout": 30, "check_same_thread": False}
            else:
                options |= {"isolation_level": "REPEATABLE READ", "pool_pre_ping": True}
            self.engine: Engine = sa.create_engine(parsed, **options)
        except (SQLAlchemyError, ImportError) as err:
            raise InvalidInput(f"cannot use database {url!r}: {err}", "db") from err
        if self.engine.dialect.name == "sqlite":
            sa.event.listen(self.engine, "connect", _sqlite_connect)
            sa.event.listen(self.engine, "begin", _sqlite_begin)
        self._writer = threading.RLock()
        self._durable = durable
        self._file = parsed.database if self.engine.dialect.name == "sqlite" else None

    @contextlib.contextmanager
    def read(self) -> Iterator[Connection]:
        """A transaction that sees one state of the database."""
        with self.engine.connect() as connection, connection.begin():
            yield connection

    @contextlib.contextmanager
    def write(self, durable: bool = True) -> Iterator[Connection]:
        """The one writing transaction; committed unless an exception leaves it."""
        kind = "durable" if durable and self._durable else "quick"
        with self._writer, self.engine.connect() as connection:
            connection = connection.execution_options(trellis_write=kind)
            with connection.begin():
                yield connection

    def create(self) -> bool:
        """The tables exist and are of our version; whether they were made just now."""
        try:
            self._make_private()
            with self.write() as connection:
                fresh = not sa.inspect(connection).has_table("plc_state")
                if fresh:
                    metadata.create_all(connection)
                    connection.execute(sa.insert(roles), [{"role_id": i, "name": name} for i, name in ROLES.items()])
                    connection.execute(sa.insert(plc_state).values(only=0, schema_version=SCHEMA_VERSION, revision=0))
                else:
                    self._migrate(connection)
                return fresh
        except (SQLAlchemyError, OSError) as err:
            raise InvalidInput(f"cannot use the database: {err}", "db") from err

    def _make_private(self) -> None:
        """A new SQLite file is its owner's only, for it holds node keys; the log beside it follows its mode."""
        if self._file is not None:
            os.close(os.open(self._file, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600))

    def _migrate(self, connection: Connection) -> None:
        """Bring an older database to our version, step by step, in the caller's transaction."""
        version = connection.execute(sa.select(plc_state.c.schema_version)).scalar_one()
        if version > SCHEMA_VERSION:
            raise InvalidInput(f"made by a newer trellis-plc (schema {version}, this one knows {SCHEMA_VERSION})", "db")
        while version < SCHEMA_VERSION:
            MIGRATIONS[version](connection)
            version += 1
            connection.execute(sa.update(plc_state).values(schema_version=version))
            log.info("schema migrated", extra={"version": version})

    def close(self) -> None:
        """No connection is open any more."""
        self.engine.dispose()


def _sqlite_connect(connection: Any, _record: Any) -> None:
    """Foreign keys on, write-ahead log, and transactions begun by us, not by the driver."""
    connection.isolation_level = None
    cursor = connection.cursor()
    cursor.execute("PRAGMA foreign_keys = ON")
    cursor.execute("PRAGMA journal_mode = WAL")
    cursor.close()


def _sqlite_begin(connection: Connection) -> None:
    """Writers take SQLite's lock at once, so that they wait for other processes instead of failing later."""
    kind = connection.get_execution_options().get("trellis_write")
    if kind:
        connection.exec_driver_sql(f"PRAGMA synchronous = {'FULL' if kind == 'durable' else 'NORMAL'}")
    connection.exec_driver_sql("BEGIN IMMEDIATE" if kind else "BEGIN")
