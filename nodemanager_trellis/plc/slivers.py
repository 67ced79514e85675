"""``GetSlivers``: what one node is to do, in the shape and with the precedences of PLCAPI 7.1 (planetlab.md §2)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from nodemanager_trellis.plc.changes import EVERYWHERE
from nodemanager_trellis.plc.records import Record, select, view
from nodemanager_trellis.plc.store import relation, tables

if TYPE_CHECKING:
    from nodemanager_trellis.plc.service import Settings

#: Tags that ``GetSliceFamily`` reads, and those of ``GetNodeFlavour``.
_FAMILY = ("vref", "pldistro", "fcdistro", "arch")
_FLAVOUR = ("pldistro", "fcdistro", "arch", "virt", "extensions", "plain-bootstrapfs")

#: XML-RPC integers have 32 bits.
_LAST_SECOND = 2**31 - 1


def slice_family(settings: Settings, tags: dict[str, str | None]) -> str:
    """``pldistro-fcdistro-arch``; the tag ``vref`` replaces the first part."""
    first = tags.get("vref") or tags.get("pldistro") or settings.pldistro
    return f"{first}-{tags.get('fcdistro') or settings.fcdistro}-{tags.get('arch') or settings.arch}"


def family_of(connection: Connection, settings: Settings, slice_id: int) -> str:
    """The family of one slice."""
    found = select(connection, "Slice", [view("Slice").key == slice_id], list(_FAMILY))
    return slice_family(settings, found[0])


def node_flavour(connection: Connection, settings: Settings, node_id: int) -> Record:
    """The struct that boot tools ask for."""
    tags = select(connection, "Node", [view("Node").key == node_id], list(_FLAVOUR))[0]
    pldistro, fcdistro = tags["pldistro"] or settings.pldistro, tags["fcdistro"] or settings.fcdistro
    arch = tags["arch"] or settings.arch
    return {
        "arch": arch,
        "pldistro": pldistro,
        "fcdistro": fcdistro,
        "nodefamily": f"{pldistro}-{fcdistro}-{arch}",
        "virt": tags["virt"] or "lxc",
        "extensions": (tags["extensions"] or "").split(),
        "plain": bool(tags["plain-bootstrapfs"]),
    }


def get_slivers(connection: Connection, settings: Settings, node: Record, now: int) -> Record:
    """The whole answer for one node."""
    node_id = node["node_id"]
    hrn = select(connection, "Node", [view("Node").key == node_id], ["hrn"])[0]["hrn"]
    groups = select(connection, "NodeGroup", [view("NodeGroup").key.in_(node["nodegroup_ids"])], ["groupname"])
    return {
        "timestamp": now,
        "node_id": node_id,
        "hostname": node["hostname"],
        "hrn": hrn or "",
        "interfaces": select(connection, "Interface", [view("Interface").columns["node_id"] == node_id]),
        "groups": [group["groupname"] for group in groups],
        "conf_files": _conf_files(connection, node),
        "initscripts": select(connection, "InitScript", [view("InitScript").columns["enabled"].is_(True)]),
        "accounts": _accounts(connection, node["site_id"]),
        "slivers": _slivers(connection, settings, node, now),
        "xmpp": {"server": None},
        "reservation_policy": settings.reservation_policy,
        "leases": [] if node["node_type"] == "reservable" else None,
        "lease_granularity": settings.lease_granularity_s,
    }


def _conf_files(connection: Connection, node: Record) -> list[Record]:
    """One entry per destination: the node's own over a node group's over the one for all."""
    chosen: dict[str, tuple[int, Record]] = {}
    for entry in select(connection, "ConfFile", [view("ConfFile").columns["enabled"].is_(True)]):
        if node["node_id"] in entry["node_ids"]:
            rank = 2
        elif set(node["nodegroup_ids"]) & set(entry["nodegroup_ids"]):
            rank = 1
        elif not entry["node_ids"] and not entry["nodegroup_ids"]:
            rank = 0
        else:
            continue
        if rank >= chosen.get(entry["dest"], (0, {}))[0]:
            chosen[entry["dest"]] = (rank, entry)
    return [entry for _, entry in chosen.values()]


def _keys(connection: Connection, person_ids: Any) -> list[str]:
    """SSH keys of enabled persons, each once."""
    keys, persons = tables["Key"], tables["Person"]
    query = (
        sa.select(keys.c.key)
        .select_from(keys.join(persons, persons.c.person_id == keys.c.person_id))
        .where(persons.c.enabled.is_(True), keys.c.key_type == "ssh", persons.c.person_id.in_(person_ids))
        .order_by(keys.c.key_id)
    )
    return list(dict.fromkeys(row[0] for row in connection.execute(query)))


def _accounts(connection: Connection, site_id: int) -> list[Record]:
    """``site_admin``: PIs and techs of the site. ``root``: admins, and people of the site tagged isrootonsite."""
    role, at_site = relation("person_role_name"), tables["person_site"]
    tags, types = tables["PersonTag"], tables["TagType"]
    of_site = sa.select(at_site.c.person_id).where(at_site.c.site_id == site_id)
    staff = sa.select(role.c.person_id).where(role.c.name.in_(("pi", "tech")), role.c.person_id.in_(of_site))
    admins = sa.select(role.c.person_id).where(role.c.name == "admin")
    trusted = (
        sa.select(tags.c.person_id)
        .select_from(tags.join(types, types.c.tag_type_id == tags.c.tag_type_id))
        .where(types.c.tagname == "isrootonsite", tags.c.person_id.in_(of_site))
    )
    return [
        {"name": "site_admin", "keys": _keys(connection, staff)},
        {"name": "root", "keys": _keys(connection, admins.union(trusted))},
    ]


def _listed_slices(connection: Connection, node_id: int, now: int) -> list[Any]:
    """Slices bound to the node, system slices, and all controllers and delegated ones; no expired ones."""
    slices, link = tables["Slice"], tables["slice_node"]
    tags, types = tables["SliceTag"], tables["TagType"]
    system = (
        sa.select(tags.c.slice_id)
        .select_from(tags.join(types, types.c.tag_type_id == tags.c.tag_type_id))
        .where(types.c.tagname == "system", tags.c.value == "1")
    )
    bound = sa.select(link.c.slice_id).where(link.c.node_id == node_id)
    query = (
        sa.select(slices.c.slice_id, slices.c.name, slices.c.instantiation, slices.c.expires)
        .where(
            slices.c.expires > now,
            sa.or_(
                slices.c.slice_id.in_(bound), slices.c.slice_id.in_(system), slices.c.instantiation.in_(EVERYWHERE)
            ),
        )
        .order_by(slices.c.slice_id)
    )
    return list(connection.execute(query))


def _slivers(connection: Connection, settings: Settings, node: Record, now: int) -> list[Record]:
    listed = _listed_slices(connection, node["node_id"], now)
    ids = [row.slice_id for row in listed]
    tags = _tags(connection, ids, node)
    keys = _slice_keys(connection, ids)
    slivers = []
    for row in listed:
        of_slice = tags.get(row.slice_id, [])
        wide = {tag.tagname: tag.value for tag in of_slice if tag.node_id is None and tag.nodegroup_id is None}
        slivers.append(
            {
                "name": row.name,
                "slice_id": row.slice_id,
                "instantiation": row.instantiation,
                "expires": min(row.expires, _LAST_SECOND),
                "keys": [{"key_type": "ssh", "key": key} for key in keys.get(row.slice_id, [])],
                "attributes": attributes(of_slice),
                "GetSliceFamily": slice_family(settings, wide),
            }
        )
    return slivers


def attributes(tags: Iterable[Any]) -> list[dict[str, str]]:
    """A sliver's tags: the node's own, then a node group's, then the slice's; a nearer level hides a name of a farther.

    Of several groups that set one name, the oldest group counts, with all its values. (PLCAPI 7.1 takes one row of any
    of them, by accident of their order.)
    """
    own: list[Any] = []
    grouped: list[Any] = []
    wide: list[Any] = []
    for tag in tags:
        (own if tag.node_id is not None else grouped if tag.nodegroup_id is not None else wide).append(tag)
    chosen = list(own)
    names = {tag.tagname for tag in own}
    groups: dict[str, int] = {}
    for tag in grouped:
        groups[tag.tagname] = min(groups.get(tag.tagname, tag.nodegroup_id), tag.nodegroup_id)
    chosen += [t for t in grouped if t.tagname not in names and t.nodegroup_id == groups[t.tagname]]
    names |= set(groups)
    chosen += [tag for tag in wide if tag.tagname not in names]
    return [{"tagname": tag.tagname, "value": tag.value} for tag in chosen]


def _tags(connection: Connection, slice_ids: list[int], node: Record) -> dict[int, list[Any]]:
    """Tags that reach this node, by slice, oldest first."""
    tags, types = tables["SliceTag"], tables["TagType"]
    own = tags.c.node_id == node["node_id"]
    grouped = sa.and_(tags.c.node_id.is_(None), tags.c.nodegroup_id.in_(node["nodegroup_ids"]))
    wide = sa.and_(tags.c.node_id.is_(None), tags.c.nodegroup_id.is_(None))
    query = (
        sa.select(tags.c.slice_id, tags.c.node_id, tags.c.nodegroup_id, tags.c.value, types.c.tagname)
        .select_from(tags.join(types, types.c.tag_type_id == tags.c.tag_type_id))
        .where(tags.c.slice_id.in_(slice_ids), sa.or_(own, grouped, wide))
        .order_by(tags.c.slice_tag_id)
    )
    found: dict[int, list[Any]] = {}
    for tag in connection.execute(query):
        found.setdefault(tag.slice_id, []).append(tag)
    return found


def _slice_keys(connection: Connection, slice_ids: list[int]) -> dict[int, list[str]]:
    """SSH keys of the enabled members, by slice."""
    member, keys, persons = tables["slice_person"], tables["Key"], tables["Person"]
    query = (
        sa.select(member.c.slice_id, keys.c.key)
        .select_from(
            member.join(keys, keys.c.person_id == member.c.person_id).join(
                persons, persons.c.person_id == member.c.person_id
            )
        )
        .where(member.c.slice_id.in_(slice_ids), persons.c.enabled.is_(True), keys.c.key_type == "ssh")
        .order_by(keys.c.key_id)
    )
    found: dict[int, list[str]] = {}
    for slice_id, key in connection.execute(query):
        found.setdefault(slice_id, []).append(key)
    return found
