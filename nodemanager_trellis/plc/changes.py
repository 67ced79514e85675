"""Who is concerned by a change, and the revisions that a long poll waits for.

A change counts for a node when its ``GetSlivers`` answer may differ afterwards. Better one node too many than one too
few: a node that is woken for nothing asks once and finds nothing to do.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from nodemanager_trellis.plc.classes import CLASSES
from nodemanager_trellis.plc.store import Store, plc_state, relation, tables

#: Slices of these kinds are on every node's list (planetlab.md §2.3).
EVERYWHERE = ("nm-controller", "delegated")


@dataclass
class Concern:
    """A set of nodes, or all of them."""

    nodes: set[int] = field(default_factory=set)
    everyone: bool = False
    changed: bool = False

    def add(self, other: Concern) -> None:
        """The union; a change that concerns no node is still a change."""
        self.nodes |= other.nodes
        self.everyone |= other.everyone
        self.changed = True


def _column(connection: Connection, query: sa.Select) -> set[int]:
    return {row[0] for row in connection.execute(query)}


def is_everywhere(connection: Connection, slice_id: int) -> bool:
    """Whether every node lists the slice: nm-controller, delegated, or tag ``system`` = 1."""
    slices, tags, types = tables["Slice"], tables["SliceTag"], tables["TagType"]
    kind = connection.execute(sa.select(slices.c.instantiation).where(slices.c.slice_id == slice_id)).scalar()
    if kind in EVERYWHERE:
        return True
    system = (
        sa.select(tags.c.slice_tag_id)
        .select_from(tags.join(types, types.c.tag_type_id == tags.c.tag_type_id))
        .where(tags.c.slice_id == slice_id, types.c.tagname == "system", tags.c.value == "1")
    )
    return connection.execute(system.limit(1)).first() is not None


def _of_slice(connection: Connection, key: int) -> Concern:
    if is_everywhere(connection, key):
        return Concern(everyone=True)
    link = tables["slice_node"]
    return Concern(_column(connection, sa.select(link.c.node_id).where(link.c.slice_id == key)))


def _of_slice_tag(connection: Connection, key: int) -> Concern:
    tags, types = tables["SliceTag"], tables["TagType"]
    query = sa.select(tags.c.slice_id, tags.c.node_id, types.c.tagname).select_from(
        tags.join(types, types.c.tag_type_id == tags.c.tag_type_id)
    )
    row = connection.execute(query.where(tags.c.slice_tag_id == key)).first()
    if row is None:
        return Concern()
    if row.tagname == "system":
        return Concern(everyone=True)
    return Concern({row.node_id}) if row.node_id is not None else _of_slice(connection, row.slice_id)


def _of_person(connection: Connection, key: int) -> Concern:
    """Nodes of the person's slices (keys of the sliver) and sites (keys of root and site_admin)."""
    member, role, site = tables["slice_person"], relation("person_role_name"), tables["person_site"]
    if "admin" in {row[0] for row in connection.execute(sa.select(role.c.name).where(role.c.person_id == key))}:
        return Concern(everyone=True)
    concern = Concern()
    for slice_id in _column(connection, sa.select(member.c.slice_id).where(member.c.person_id == key)):
        concern.add(_of_slice(connection, slice_id))
    nodes = tables["Node"]
    at_sites = sa.select(site.c.site_id).where(site.c.person_id == key)
    concern.nodes |= _column(connection, sa.select(nodes.c.node_id).where(nodes.c.site_id.in_(at_sites)))
    return concern


def _of_node(connection: Connection, key: int) -> Concern:
    """The node itself, and those it shares a slice with: their links end here."""
    mine, theirs = tables["slice_node"], tables["slice_node"].alias()
    shared = sa.select(theirs.c.node_id).select_from(mine.join(theirs, mine.c.slice_id == theirs.c.slice_id))
    return Concern({key} | _column(connection, shared.where(mine.c.node_id == key)))


def _by_owner(cls: str, owner: str, rule: Callable[[Connection, int], Concern]) -> Callable[[Connection, int], Concern]:
    """The concern of the record that owns this one."""
    table, key_name = tables[cls], CLASSES[cls].key

    def concern(connection: Connection, key: int) -> Concern:
        found = connection.execute(sa.select(table.c[owner]).where(table.c[key_name] == key)).scalar()
        return Concern() if found is None else rule(connection, found)

    return concern


def _everyone(connection: Connection, key: int) -> Concern:
    return Concern(everyone=True)


_RULES: dict[str, Callable[[Connection, int], Concern]] = {
    "Slice": _of_slice,
    "SliceTag": _of_slice_tag,
    "Person": _of_person,
    "PersonTag": _by_owner("PersonTag", "person_id", _of_person),
    "Key": _by_owner("Key", "person_id", _of_person),
    "Node": _of_node,
    "NodeTag": _by_owner("NodeTag", "node_id", _of_node),
    "Interface": _by_owner("Interface", "node_id", _of_node),
    "InterfaceTag": _by_owner(
        "InterfaceTag", "interface_id", _by_owner("Interface", "node_id", _of_node)
    ),
}


def concerned(connection: Connection, cls: str, key: int) -> Concern:
    """The nodes whose answer depends on this record now; every node for classes without a rule (scripts, groups …)."""
    return _RULES.get(cls, _everyone)(connection, key)


class Revisions:
    """A counter of changes and, per node, the value at its last one.

    The counter is in the database, the per-node values are in memory only: after a restart every node counts as
    changed once. That costs one GetSlivers per node, and heals what was edited while no server ran.
    """

    def __init__(self, store: Store) -> None:
        self._changed = threading.Condition()
        self._closed = False
        self._nodes: dict[int, int] = {}
        with store.write() as connection:
            self._last = self.next(connection)
        self._everyone = self._last

    def next(self, connection: Connection) -> int:
        """The next revision, taken in the caller's writing transaction."""
        connection.execute(sa.update(plc_state).values(revision=plc_state.c.revision + 1))
        return int(connection.execute(sa.select(plc_state.c.revision)).scalar_one())

    def publish(self, revision: int, concern: Concern) -> None:
        """The transaction that took ``revision`` is committed: wake who waits for it."""
        with self._changed:
            self._last = max(self._last, revision)
            if concern.everyone:
                self._everyone = max(self._everyone, revision)
            for node_id in concern.nodes:
                self._nodes[node_id] = max(self._nodes.get(node_id, 0), revision)
            self._changed.notify_all()

    def current(self, node_id: int | None) -> int:
        """Revision that concerns the node, or of anything at all when ``node_id`` is None."""
        with self._changed:
            return self._current(node_id)

    def _current(self, node_id: int | None) -> int:
        return self._last if node_id is None else max(self._everyone, self._nodes.get(node_id, 0))

    def wait(self, node_id: int | None, known: int, timeout_s: float) -> int:
        """The current revision, as soon as it differs from ``known``, else after ``timeout_s``.

        A ``known`` from the future (the database was put back to an older state) differs too.
        """
        deadline = time.monotonic() + timeout_s
        with self._changed:
            while (
                not self._closed
                and self._current(node_id) <= known <= self._last
                and (left := deadline - time.monotonic()) > 0
            ):
                self._changed.wait(left)
            return self._current(node_id)

    def close(self) -> None:
        """Nobody waits any more."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
