"""Nodes and persons of a slice."""

from __future__ import annotations

from nodemanager_trellis.plc.calls import Context
from nodemanager_trellis.plc.faults import invalid
from nodemanager_trellis.plc.records import Record, absent_link, ensure_link, handles, select


def add_nodes(ctx: Context, of_slice: Record, wanted: list[int | str]) -> None:
    """The slice is on these nodes too. Unknown nodes are passed over in silence, as PLCAPI does."""
    nodes = select(ctx.connection, "Node", [handles("Node", wanted)], ["node_id", "hostname", "slice_ids_whitelist"])
    for node in nodes:
        allowed = node["slice_ids_whitelist"]
        if allowed and of_slice["slice_id"] not in allowed:
            raise invalid(f"{of_slice['name']} is not on the whitelist of {node['hostname']}")
    for node in nodes:
        ensure_link(ctx.connection, "slice_node", slice_id=of_slice["slice_id"], node_id=node["node_id"])
    ctx.touch("Slice", of_slice["slice_id"])


def remove_nodes(ctx: Context, of_slice: Record, wanted: list[int | str]) -> None:
    """The slice is on none of these nodes. The slice's tags bound to them stay."""
    ctx.touch("Slice", of_slice["slice_id"])
    for node in select(ctx.connection, "Node", [handles("Node", wanted)], ["node_id"]):
        absent_link(ctx.connection, "slice_node", slice_id=of_slice["slice_id"], node_id=node["node_id"])


def set_members(ctx: Context, of_slice: Record, field: str, wanted: list[int | str]) -> None:
    """``nodes`` or ``persons`` of the slice are exactly those."""
    if field == "nodes":
        nodes = select(ctx.connection, "Node", [handles("Node", wanted)], ["node_id"])
        keep = {node["node_id"] for node in nodes}
        remove_nodes(ctx, of_slice, [node_id for node_id in of_slice["node_ids"] if node_id not in keep])
        add_nodes(ctx, of_slice, [node_id for node_id in sorted(keep) if node_id not in of_slice["node_ids"]])
        return
    persons = select(ctx.connection, "Person", [handles("Person", wanted)], ["person_id"])
    keep = {person["person_id"] for person in persons}
    for person_id in set(of_slice["person_ids"]) - keep:
        absent_link(ctx.connection, "slice_person", slice_id=of_slice["slice_id"], person_id=person_id)
    for person_id in keep:
        ensure_link(ctx.connection, "slice_person", slice_id=of_slice["slice_id"], person_id=person_id)
