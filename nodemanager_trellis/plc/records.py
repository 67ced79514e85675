"""Reading and writing records of any class: joined fields, lists of identifiers and tags look like columns."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from nodemanager_trellis.plc import store
from nodemanager_trellis.plc.classes import CLASSES, ObjectClass
from nodemanager_trellis.plc.faults import invalid
from nodemanager_trellis.plc.tagtypes import ACCESSORS
from nodemanager_trellis.plc.types import Type

Record = dict[str, Any]

#: Identifiers in one IN (...): well below the variables that any database takes.
_CHUNK = 500

TAG_VALUE = Type(str, "accessor tag", nullok=True)


@dataclass(frozen=True)
class View:
    """How a class is read.

    :param source: its table joined with those that its joined fields live in
    :param columns: field or tag name → SQL expression
    :param lists: field name → (relation, own key in it, value in it)
    """

    cls: ObjectClass
    table: sa.Table
    source: Any
    columns: dict[str, Any]
    lists: dict[str, tuple[Any, Any, Any] | None]

    @property
    def key(self) -> Any:
        """The identifier's column."""
        return self.table.c[self.cls.key]

    def type_of(self, name: str) -> Type | None:
        """Type of a field or accessor tag; None if there is none of that name."""
        field = self.cls.by_name.get(name)
        if field is not None:
            return None if field.secret or field.admin else field.type
        return TAG_VALUE if name in self.columns else None


@cache
def view(name: str) -> View:
    """The view of a class, by its name."""
    cls = CLASSES[name]
    table = store.tables[name]
    source: Any = table
    columns: dict[str, Any] = {}
    lists: dict[str, tuple[Any, Any, Any] | None] = {}
    joined: dict[str, sa.FromClause] = {}
    for field in cls.fields:
        if field.listed is not None:
            relation_name, own, value = field.listed
            if relation_name:
                relation = store.relation(relation_name)
                lists[field.name] = (relation, relation.c[own], relation.c[value])
            else:
                lists[field.name] = None
        elif field.joined is not None:
            own, other, column = field.joined
            if own not in joined:
                joined[own] = store.tables[other].alias()
                source = source.outerjoin(joined[own], table.c[own] == joined[own].c[CLASSES[other].key])
            columns[field.name] = joined[own].c[column]
        else:
            columns[field.name] = table.c[field.name]
    for tagname in ACCESSORS.get(name, {}):
        columns[tagname] = _tag_column(cls, table, tagname)
    return View(cls, table, source, columns, lists)


def _tag_column(cls: ObjectClass, table: sa.Table, tagname: str) -> Any:
    """The value of an object's own tag (not a sliver's, not a group's)."""
    tags, types = store.tables[cls.tags], store.tables["TagType"]
    of_object = [tags.c[cls.key] == table.c[cls.key], types.c.tagname == tagname]
    if cls.tags == "SliceTag":
        of_object += [tags.c.node_id.is_(None), tags.c.nodegroup_id.is_(None)]
    return (
        sa.select(sa.func.max(tags.c.value))
        .select_from(tags.join(types, types.c.tag_type_id == tags.c.tag_type_id))
        .where(*of_object)
        .correlate(table)
        .scalar_subquery()
    )


def default_fields(name: str, privileged: bool) -> list[str]:
    """Fields of an answer when the caller names none; ``privileged`` callers are admins."""
    return [f.name for f in CLASSES[name].fields if not (f.secret or f.on_request or (f.admin and not privileged))]


def select(
    connection: Connection,
    name: str,
    where: Iterable[Any] = (),
    fields: Sequence[str] | None = None,
    order: Sequence[Any] = (),
    limit: int | None = None,
    offset: int | None = None,
) -> list[Record]:
    """Records of a class, in the order of their identifiers unless told otherwise."""
    v = view(name)
    names = list(fields) if fields is not None else default_fields(name, False)
    scalars = [n for n in names if n in v.columns]
    wanted = [v.columns[n].label(f"f{i}") for i, n in enumerate(scalars)]
    query = sa.select(v.key.label("own_key"), *wanted).select_from(v.source).where(sa.true(), *where)
    query = query.order_by(*order, v.key)
    if limit is not None:
        query = query.limit(limit)
    if offset is not None:
        # SQLite knows no OFFSET without LIMIT; SQLAlchemy adds LIMIT -1 there.
        query = query.offset(offset)
    rows = connection.execute(query).all()
    records = {row[0]: dict(zip(scalars, row[1:], strict=True)) for row in rows}
    for n in names:
        if n in v.lists:
            _fill_list(connection, records, n, v.lists[n])
    return list(records.values())


def _fill_list(
    connection: Connection, records: dict[int, Record], name: str, source: tuple[Any, Any, Any] | None
) -> None:
    """Set the list field ``name`` of each record, sorted."""
    for record in records.values():
        record[name] = []
    if source is None:
        return
    relation, own, value = source
    keys = list(records)
    for start in range(0, len(keys), _CHUNK):
        chunk = keys[start : start + _CHUNK]
        query = sa.select(own, value).select_from(relation).where(own.in_(chunk)).order_by(own, value)
        for key, item in connection.execute(query):
            records[key][name].append(item)


def handles(name: str, values: Iterable[int | str]) -> Any:
    """The condition "identifier or name is one of ``values``"."""
    v = view(name)
    ints = [value for value in values if isinstance(value, int)]
    texts = [value for value in values if isinstance(value, str)]
    conditions = [v.key.in_(ints)]
    if v.cls.natural:
        conditions.append(v.columns[v.cls.natural].in_(texts))
    return sa.or_(*conditions)


def find(connection: Connection, name: str, handle: int | str, where: Iterable[Any] = ()) -> Record | None:
    """The record with that identifier or name; all fields, those too that answers hide."""
    fields = [f.name for f in CLASSES[name].fields]
    found = select(connection, name, [handles(name, [handle]), *where], fields)
    return found[0] if found else None


def insert(connection: Connection, name: str, values: Record, now: int) -> int:
    """A new record; returns its identifier. What has neither value nor default must be allowed to be null."""
    cls, row = CLASSES[name], {}
    for field in cls.fields:
        if not field.stored or field.name == cls.key:
            continue
        default = now if field.default == "now" else field.default
        row[field.name] = values.get(field.name, default)
        if row[field.name] is None and not (field.type.nullok or field.optional):
            raise invalid(f"{field.name} must be specified and cannot be unset")
    result = connection.execute(sa.insert(store.tables[name]).values(**row))
    return int((result.inserted_primary_key or (0,))[0])


def update(connection: Connection, name: str, key: int, values: Record, now: int) -> None:
    """The stored fields of ``values`` are in the record; ``last_updated`` follows if the class has it."""
    cls = CLASSES[name]
    row = {n: value for n, value in values.items() if n in cls.by_name and cls.by_name[n].stored}
    for n, value in row.items():
        if value is None and not (cls.by_name[n].type.nullok or cls.by_name[n].optional):
            raise invalid(f"{n} must be specified and cannot be unset")
    if row and "last_updated" in cls.by_name:
        row.setdefault("last_updated", now)
    if row:
        connection.execute(sa.update(store.tables[name]).where(view(name).key == key).values(**row))


def delete(connection: Connection, name: str, key: int) -> None:
    """The record is gone, and with it what belongs to it."""
    connection.execute(sa.delete(store.tables[name]).where(view(name).key == key))


def linked(connection: Connection, link: str, **keys: int) -> bool:
    """Whether the association exists."""
    table = store.tables[link]
    query = sa.select(sa.literal(1)).select_from(table).where(*(table.c[k] == value for k, value in keys.items()))
    return connection.execute(query.limit(1)).first() is not None


def ensure_link(connection: Connection, link: str, **keys: int) -> bool:
    """The association exists; whether it is new."""
    if linked(connection, link, **keys):
        return False
    connection.execute(sa.insert(store.tables[link]).values(**keys))
    return True


def absent_link(connection: Connection, link: str, **keys: int) -> bool:
    """The association does not exist; whether it did."""
    table = store.tables[link]
    query = sa.delete(table).where(*(table.c[k] == value for k, value in keys.items()))
    return bool(connection.execute(query).rowcount)
