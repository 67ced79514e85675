"""Methods with a body of their own; the Get/Add/Update/Delete of the classes are made by ``crud``."""

from __future__ import annotations

import base64
import logging
import os
import secrets
from typing import TYPE_CHECKING, Any

from nodemanager_trellis.plc import rules, slivers
from nodemanager_trellis.plc.auth import delete_session, new_session
from nodemanager_trellis.plc.calls import ALL_PERSONS, Arg, Context, Registry
from nodemanager_trellis.plc.classes import CLASSES, INSTANTIATIONS, KEY_TYPES, PERSON_ROLES, ROLES
from nodemanager_trellis.plc.crud import check_initscript, handle_arg, handle_type
from nodemanager_trellis.plc.faults import Fault, denied, invalid, invalid_method
from nodemanager_trellis.plc.members import add_nodes, remove_nodes
from nodemanager_trellis.plc.records import (
    Record,
    absent_link,
    delete,
    ensure_link,
    handles,
    insert,
    linked,
    select,
    update,
    view,
)
from nodemanager_trellis.plc.types import ANYTHING, BOOL, INT, STR, Array, Mixed, Struct, Type, array, either, struct

if TYPE_CHECKING:
    from nodemanager_trellis.plc.service import Plc

log = logging.getLogger(__name__)

_declared = Registry()
_method = _declared.method

_EVERYBODY = (*ALL_PERSONS, "node")
_TECHS = ("admin", "pi", "tech")
_OWNERS = ("admin", "pi", "user")

#: A long poll lasts at most this long, in seconds.
LONGEST_WAIT_S = 300

_ROLE = Arg("role_id_or_name", either(Type(int, "role_id"), Type(str, "name")))


def declare(registry: Registry) -> None:
    """All methods of this module are in the registry."""
    for method in _declared.methods.values():
        registry.add(method)


# Sessions -------------------------------------------------------------------------------------------------------


@_method("AuthCheck", _EVERYBODY)
def _auth_check(ctx: Context) -> int:
    """Returns 1 if the user or node authenticated successfully, faults otherwise."""
    return 1


@_method("GetSession", _EVERYBODY, Arg("expires", Type(int, "seconds", least=1), True), returns=STR, write=True)
def _get_session(ctx: Context, expires: int | None = None) -> str:
    """Returns a new session key. A node's has no end; a person's lasts 24 hours, or the given number of seconds."""
    lifetime_s = min(expires or ctx.plc.settings.session_s, 366 * 86400)
    return new_session(ctx.connection, ctx.caller, ctx.now + lifetime_s, ctx.now)


@_method("DeleteSession", _EVERYBODY, Arg("session", STR), write=True)
def _delete_session(ctx: Context, session: str) -> int:
    """Makes the session void. Whoever holds a session may end it."""
    delete_session(ctx.connection, session)
    return 1


# Persons --------------------------------------------------------------------------------------------------------


def _role(handle: int | str, names: tuple[str, ...]) -> int:
    """A role's number, among ``names``."""
    for number, name in ROLES.items():
        if handle in (number, name) and name in names:
            return number
    raise invalid("Invalid role identifier or name")


def ensure_tag_role(ctx: Context, tag_type_id: int, role: int | str) -> None:
    """Holders of the role may write tags of the type."""
    role_id = _role(role, tuple(ROLES.values()))
    ensure_link(ctx.connection, "tag_type_role", tag_type_id=tag_type_id, role_id=role_id)


@_method("AddRoleToPerson", ("admin", "pi"), _ROLE, handle_arg("Person"), write=True)
def _add_role_to_person(ctx: Context, role: int | str, handle: int | str) -> int:
    """Grants the role to the person. PIs may grant the roles user and tech to people of their sites."""
    person, role_id = _person_of_role(ctx, role, handle)
    ensure_link(ctx.connection, "person_role", person_id=person["person_id"], role_id=role_id)
    ctx.touch("Person", person["person_id"])
    return 1


@_method("DeleteRoleFromPerson", ("admin", "pi"), _ROLE, handle_arg("Person"), write=True)
def _delete_role_from_person(ctx: Context, role: int | str, handle: int | str) -> int:
    """Takes the role from the person. PIs may take the roles user and tech from people of their sites."""
    person, role_id = _person_of_role(ctx, role, handle)
    ctx.touch("Person", person["person_id"])
    absent_link(ctx.connection, "person_role", person_id=person["person_id"], role_id=role_id)
    return 1


def _person_of_role(ctx: Context, role: int | str, handle: int | str) -> tuple[Record, int]:
    role_id = _role(role, PERSON_ROLES)
    person = ctx.find("Person", handle, "No such account")
    rules.may_person(ctx, person)
    if not ctx.caller.is_admin and ROLES[role_id] in ("admin", "pi"):
        raise denied("Not allowed to grant or take that role")
    return person, role_id


@_method("AddPersonToSite", ("admin", "pi"), handle_arg("Person"), handle_arg("Site"), write=True)
def _add_person_to_site(ctx: Context, person: int | str, site: int | str) -> int:
    """Adds the person to the site. PIs may do so at their own sites."""
    keys = _person_and_site(ctx, person, site)
    ensure_link(ctx.connection, "person_site", **keys)
    ctx.touch("Person", keys["person_id"])
    return 1


@_method("DeletePersonFromSite", ("admin", "pi"), handle_arg("Person"), handle_arg("Site"), write=True)
def _delete_person_from_site(ctx: Context, person: int | str, site: int | str) -> int:
    """Takes the person off the site."""
    keys = _person_and_site(ctx, person, site)
    ctx.touch("Person", keys["person_id"])
    absent_link(ctx.connection, "person_site", **keys)
    return 1


def _person_and_site(ctx: Context, person: int | str, site: int | str) -> dict[str, int]:
    found = ctx.find("Person", person, "No such account")
    at = ctx.find("Site", site, "No such site")
    rules.may_site(ctx, at)
    return {"person_id": found["person_id"], "site_id": at["site_id"]}


_KEY_FIELDS = Arg(
    "key_fields",
    struct({name: CLASSES["Key"].by_name[name].type for name in ("key_type", "key")}, required=("key_type", "key")),
)


@_method("AddPersonKey", ALL_PERSONS, handle_arg("Person"), _KEY_FIELDS, write=True)
def _add_person_key(ctx: Context, handle: int | str, fields: Record) -> int:
    """Adds a public key to the person's account. Only admins may do so for others. Returns the new key_id (> 0)."""
    person = ctx.find("Person", handle, "No such account")
    if not ctx.caller.is_admin and person["person_id"] != ctx.caller.record["person_id"]:
        raise denied("You may only modify your own keys")
    rejected = {name: value for name, value in fields.items() if name not in CLASSES["Key"].add}
    if rejected:
        raise invalid(f"Cannot add Key with column(s) {rejected}")
    values = rules.key_values(ctx, dict(fields), None)
    key = insert(ctx.connection, "Key", values | {"person_id": person["person_id"]}, ctx.now)
    ctx.touch("Key", key)
    return key


@_method("AddKey", ALL_PERSONS, _KEY_FIELDS, write=True)
def _add_key(ctx: Context, fields: Record) -> int:
    """Adds a public key to the caller's own account. Returns the new key_id (> 0)."""
    return _add_person_key(ctx, ctx.caller.record["person_id"], fields)


# Nodes ----------------------------------------------------------------------------------------------------------


@_method(
    "GenerateNodeConfFile",
    _TECHS,
    handle_arg("Node"),
    Arg("regenerate_node_key", BOOL, True),
    returns=STR,
    write=True,
)
def _generate_node_conf_file(ctx: Context, handle: int | str, regenerate: bool | None = True) -> str:
    """Returns the text of the node's plnode.txt, with a new node key unless regenerate_node_key is false."""
    node = ctx.find("Node", handle, "No such node")
    rules.may_node(ctx, node)
    where = [view("Interface").columns["node_id"] == node["node_id"], view("Interface").columns["is_primary"].is_(True)]
    primary = select(ctx.connection, "Interface", where)
    if not primary:
        raise invalid("No primary network configured")
    if regenerate is not False or not node["key"]:
        node["key"] = base64.b64encode(os.urandom(32)).decode().rstrip("=")
        update(ctx.connection, "Node", node["node_id"], {"key": node["key"]}, ctx.now)
    interface = primary[0]
    host, _, domain = node["hostname"].partition(".")
    lines = {
        "NODE_ID": node["node_id"],
        "NODE_KEY": node["key"],
        "NET_DEVICE": interface["mac"],
        "IP_METHOD": interface["method"],
    }
    if interface["method"] == "static":
        lines |= {
            "IP_ADDRESS": interface["ip"],
            "IP_GATEWAY": interface["gateway"],
            "IP_NETMASK": interface["netmask"],
            "IP_NETADDR": interface["network"],
            "IP_BROADCASTADDR": interface["broadcast"],
            "IP_DNS1": interface["dns1"],
            "IP_DNS2": interface["dns2"],
        }
    lines |= {"HOST_NAME": host, "DOMAIN_NAME": domain}
    return "".join(f'{name}="{"" if value is None else value}"\n' for name, value in lines.items())


@_method("GetNodeFlavour", _EVERYBODY, handle_arg("Node"), returns=struct({}))
def _get_node_flavour(ctx: Context, handle: int | str) -> Record:
    """Returns what the node is to run: its distribution, architecture and extensions."""
    node = ctx.find("Node", handle, "No such node")
    return slivers.node_flavour(ctx.connection, ctx.plc.settings, node["node_id"])


@_method("AddNodeGroup", ("admin",), Arg("groupname", CLASSES["NodeGroup"].by_name["groupname"].type),
         Arg("tag_type_id_or_tagname", handle_type("TagType")),
         Arg("value", CLASSES["NodeGroup"].by_name["value"].type), write=True)  # fmt: skip
def _add_node_group(ctx: Context, groupname: str, tag: int | str, value: str) -> int:
    """Adds a node group: the nodes whose tag of that type has that value. Returns the new nodegroup_id (> 0)."""
    tag_type = ctx.find("TagType", tag, f"No such tag type {tag!r}")
    values = {"groupname": groupname, "tag_type_id": tag_type["tag_type_id"], "value": value}
    key = insert(ctx.connection, "NodeGroup", rules.node_group_values(ctx, values, None), ctx.now)
    ctx.touch("NodeGroup", key)
    return key


def _declare_conf_file_link(cls: str, link: str) -> None:
    """A configuration file is for a node, or for a node group."""
    target = CLASSES[cls]
    file_arg = Arg("conf_file_id", INT)

    def keys(ctx: Context, conf_file: int, handle: int | str) -> dict[str, int]:
        file = ctx.find("ConfFile", conf_file, "No such configuration file")
        other = ctx.find(cls, handle, f"No such {target.noun}")
        ctx.touch("ConfFile", file["conf_file_id"])
        return {"conf_file_id": file["conf_file_id"], target.key: other[target.key]}

    @_method(f"AddConfFileTo{cls}", ("admin",), file_arg, handle_arg(cls), write=True)
    def add(ctx: Context, conf_file: int, handle: int | str) -> int:
        """Links the configuration file to the node or node group."""
        ensure_link(ctx.connection, link, **keys(ctx, conf_file, handle))
        return 1

    @_method(f"DeleteConfFileFrom{cls}", ("admin",), file_arg, handle_arg(cls), write=True)
    def remove(ctx: Context, conf_file: int, handle: int | str) -> int:
        """Unlinks the configuration file from the node or node group."""
        absent_link(ctx.connection, link, **keys(ctx, conf_file, handle))
        return 1


_declare_conf_file_link("Node", "conf_file_node")
_declare_conf_file_link("NodeGroup", "conf_file_nodegroup")


# Tag types ------------------------------------------------------------------------------------------------------


@_method("AddRoleToTagType", ("admin",), _ROLE, handle_arg("TagType"), write=True)
def _add_role_to_tag_type(ctx: Context, role: int | str, handle: int | str) -> int:
    """Lets holders of the role write tags of the type."""
    tag_type = ctx.find("TagType", handle, f"No such tag type {handle!r}")
    ensure_tag_role(ctx, tag_type["tag_type_id"], role)
    return 1


@_method("DeleteRoleFromTagType", ("admin",), _ROLE, handle_arg("TagType"), write=True)
def _delete_role_from_tag_type(ctx: Context, role: int | str, handle: int | str) -> int:
    """Keeps holders of the role from writing tags of the type."""
    tag_type = ctx.find("TagType", handle, f"No such tag type {handle!r}")
    role_id = _role(role, tuple(ROLES.values()))
    absent_link(ctx.connection, "tag_type_role", tag_type_id=tag_type["tag_type_id"], role_id=role_id)
    return 1


# Slices ---------------------------------------------------------------------------------------------------------

_NODE_LIST = Arg("node_id_or_hostname_list", array(handle_type("Node")))


def _slice_to_change(ctx: Context, handle: int | str) -> Record:
    found = ctx.find("Slice", handle, f"No such slice {handle!r}")
    rules.may_slice(ctx, found)
    return found


@_method("AddSliceToNodes", _OWNERS, handle_arg("Slice"), _NODE_LIST, write=True)
def _add_slice_to_nodes(ctx: Context, handle: int | str, nodes: list[int | str]) -> int:
    """Adds the slice to the nodes. Nodes that do not exist are passed over."""
    add_nodes(ctx, _slice_to_change(ctx, handle), nodes)
    return 1


@_method("DeleteSliceFromNodes", _OWNERS, handle_arg("Slice"), _NODE_LIST, write=True)
def _delete_slice_from_nodes(ctx: Context, handle: int | str, nodes: list[int | str]) -> int:
    """Takes the slice off the nodes. Its tags for these nodes stay."""
    remove_nodes(ctx, _slice_to_change(ctx, handle), nodes)
    return 1


@_method("AddSliceToNodesWhitelist", ("admin",), handle_arg("Slice"), _NODE_LIST, write=True)
def _add_slice_to_nodes_whitelist(ctx: Context, handle: int | str, nodes: list[int | str]) -> int:
    """Lets the slice use the nodes. A node with a whitelist takes no other slices."""
    found = _slice_to_change(ctx, handle)
    for node in select(ctx.connection, "Node", [handles("Node", nodes)], ["node_id"]):
        ensure_link(ctx.connection, "node_slice_whitelist", slice_id=found["slice_id"], node_id=node["node_id"])
    return 1


@_method("DeleteSliceFromNodesWhitelist", ("admin",), handle_arg("Slice"), _NODE_LIST, write=True)
def _delete_slice_from_nodes_whitelist(ctx: Context, handle: int | str, nodes: list[int | str]) -> int:
    """Takes the slice off the whitelists of the nodes."""
    found = _slice_to_change(ctx, handle)
    for node in select(ctx.connection, "Node", [handles("Node", nodes)], ["node_id"]):
        absent_link(ctx.connection, "node_slice_whitelist", slice_id=found["slice_id"], node_id=node["node_id"])
    return 1


@_method("AddPersonToSlice", ("admin", "pi"), handle_arg("Person"), handle_arg("Slice"), write=True)
def _add_person_to_slice(ctx: Context, person: int | str, handle: int | str) -> int:
    """Adds the person to the slice."""
    member = ctx.find("Person", person, "No such account")
    found = _slice_to_change(ctx, handle)
    ensure_link(ctx.connection, "slice_person", slice_id=found["slice_id"], person_id=member["person_id"])
    ctx.touch("Slice", found["slice_id"])
    return 1


@_method("DeletePersonFromSlice", ("admin", "pi"), handle_arg("Person"), handle_arg("Slice"), write=True)
def _delete_person_from_slice(ctx: Context, person: int | str, handle: int | str) -> int:
    """Takes the person off the slice."""
    member = ctx.find("Person", person, "No such account")
    found = _slice_to_change(ctx, handle)
    absent_link(ctx.connection, "slice_person", slice_id=found["slice_id"], person_id=member["person_id"])
    ctx.touch("Slice", found["slice_id"])
    return 1


@_method("GetSliceInstantiations", _EVERYBODY, returns=array(STR))
def _get_slice_instantiations(ctx: Context) -> list[str]:
    """Returns an array of all valid slice instantiation states."""
    return list(INSTANTIATIONS)


@_method("GetKeyTypes", _EVERYBODY, returns=array(STR))
def _get_key_types(ctx: Context) -> list[str]:
    """Returns an array of all valid key types."""
    return list(KEY_TYPES)


@_method("GetRoles", _EVERYBODY, returns=array(struct({})))
def _get_roles(ctx: Context) -> list[Record]:
    """Returns an array of structs containing details about all roles."""
    return [{"role_id": role_id, "name": name} for role_id, name in ROLES.items()]


@_method("GetSliceFamily", (*_OWNERS, "node"), handle_arg("Slice"), returns=STR)
def _get_slice_family(ctx: Context, handle: int | str) -> str:
    """Returns the name of the image that the slice wants: pldistro-fcdistro-arch."""
    found = ctx.find("Slice", handle, f"No such slice {handle!r}")
    return slivers.family_of(ctx.connection, ctx.plc.settings, found["slice_id"])


# Slice tags -----------------------------------------------------------------------------------------------------

_VALUE = Arg("value", CLASSES["SliceTag"].by_name["value"].type)


def _may_write_slice_tag(
    ctx: Context, of_slice: Record, tag_type: Record, node: int | None, nodegroup: int | None
) -> None:
    """Admins write all. Others need a role that the tag type has, and then: users be members, PIs be of the site,
    nodes write for themselves only; groups are for admins.
    """
    caller = ctx.caller
    if caller.is_admin:
        return
    reason = ""
    common = caller.roles & set(tag_type["roles"])
    if not common:
        reason = "caller may not access this tag type"
    elif nodegroup is not None:
        reason = "restricted to admins for node groups"
    elif caller.kind == "node":
        if node != caller.record["node_id"]:
            reason = "a node may write for itself only"
        elif of_slice["slice_id"] not in caller.record["slice_ids"] and not _is_system(ctx, of_slice["slice_id"]):
            reason = "the slice is not on this node"
    elif not (
        caller.record["person_id"] in of_slice["person_ids"]
        or ("pi" in common and caller.has_site(of_slice["site_id"]))
    ):
        reason = "caller is neither in the slice nor a PI of its site"
    if reason:
        raise denied(f"Cannot write slice tag {tag_type['tagname']} - {reason}")


def _system_slices(ctx: Context) -> list[int]:
    columns = view("SliceTag").columns
    found = select(ctx.connection, "SliceTag", [columns["tagname"] == "system", columns["value"] == "1"], ["slice_id"])
    return [tag["slice_id"] for tag in found]


def _is_system(ctx: Context, slice_id: int) -> bool:
    return slice_id in _system_slices(ctx)


@_method(
    "AddSliceTag",
    (*_OWNERS, "node"),
    handle_arg("Slice"),
    handle_arg("TagType"),
    _VALUE,
    handle_arg("Node", optional=True),
    handle_arg("NodeGroup", optional=True),
    write=True,
)
def _add_slice_tag(
    ctx: Context,
    handle: int | str,
    tag: int | str,
    value: str,
    node: int | str | None = None,
    nodegroup: int | str | None = None,
) -> int:
    """Adds a tag to the slice; or to its sliver on one node; or, for admins, to its slivers on the nodes of a group.

    Returns the new slice_tag_id (> 0).
    """
    of_slice = ctx.find("Slice", handle, f"No such slice {handle!r}")
    tag_type = ctx.find("TagType", tag, f"No such tag type {tag!r}")
    host = ctx.find("Node", node, "No such node") if node is not None else None
    if host is None and ctx.caller.kind == "node" and nodegroup is None:
        host = ctx.caller.record
    group = ctx.find("NodeGroup", nodegroup, f"No such nodegroup {nodegroup!r}") if nodegroup is not None else None
    node_id = host["node_id"] if host else None
    group_id = group["nodegroup_id"] if group else None
    _may_write_slice_tag(ctx, of_slice, tag_type, node_id, group_id)
    if tag_type["tagname"] == "initscript":
        check_initscript(ctx, value)
    slice_id = of_slice["slice_id"]
    if host is not None and not linked(ctx.connection, "slice_node", slice_id=slice_id, node_id=host["node_id"]):
        systems = _system_slices(ctx)
        if slice_id not in systems:
            raise invalid(
                f"AddSliceTag: slice {of_slice['name']} not on specified node {host['hostname']}"
                f" nor is it a system slice ({systems})"
            )
    columns = view("SliceTag").columns
    same = [
        columns["slice_id"] == slice_id,
        columns["tag_type_id"] == tag_type["tag_type_id"],
        columns["value"] == value,
        columns["node_id"] == node_id if host else columns["node_id"].is_(None),
        columns["nodegroup_id"] == group_id if group else columns["nodegroup_id"].is_(None),
    ]
    if select(ctx.connection, "SliceTag", same, ["slice_tag_id"]):
        kind = "Sliver" if host else "Slice"
        raise invalid(f"{kind} attribute already exists" + (" for this nodegroup" if group else ""))
    values = {
        "slice_id": slice_id,
        "tag_type_id": tag_type["tag_type_id"],
        "value": value,
        "node_id": node_id,
        "nodegroup_id": group_id,
    }
    key = insert(ctx.connection, "SliceTag", values, ctx.now)
    ctx.touch("SliceTag", key)
    return key


def _tag_to_change(ctx: Context, slice_tag_id: int) -> Record:
    tag = ctx.find("SliceTag", slice_tag_id, "No such slice attribute")
    of_slice = ctx.find("Slice", tag["slice_id"], "No such slice")
    tag_type = ctx.find("TagType", tag["tag_type_id"], "No such tag type")
    _may_write_slice_tag(ctx, of_slice, tag_type, tag["node_id"], tag["nodegroup_id"])
    ctx.touch("SliceTag", slice_tag_id)
    return tag


@_method("UpdateSliceTag", (*_OWNERS, "node"), Arg("slice_tag_id", INT), _VALUE, write=True)
def _update_slice_tag(ctx: Context, slice_tag_id: int, value: str) -> int:
    """Updates the value of a slice or sliver attribute."""
    tag = _tag_to_change(ctx, slice_tag_id)
    if tag["tagname"] == "initscript":
        check_initscript(ctx, value)
    update(ctx.connection, "SliceTag", slice_tag_id, {"value": value}, ctx.now)
    return 1


@_method("DeleteSliceTag", (*_OWNERS, "tech", "node"), Arg("slice_tag_id", INT), write=True)
def _delete_slice_tag(ctx: Context, slice_tag_id: int) -> int:
    """Deletes a slice or sliver attribute."""
    _tag_to_change(ctx, slice_tag_id)
    delete(ctx.connection, "SliceTag", slice_tag_id)
    return 1


# What nodes ask -------------------------------------------------------------------------------------------------


@_method("GetSlivers", ("admin", "node"), handle_arg("Node", optional=True), returns=struct({}))
def _get_slivers(ctx: Context, handle: int | str | None = None) -> Record:
    """Returns what the node is to do: its interfaces, groups, accounts, initscripts and slivers."""
    if ctx.caller.kind == "node":
        node = ctx.caller.record
        if handle not in (None, node["node_id"], node["hostname"]):
            raise denied("A node may ask for itself only")
        ctx.plc.note_contact(node["node_id"], ctx.now)
    elif handle is None:
        raise invalid("'node_id_or_hostname' not specified")
    else:
        node = ctx.find("Node", handle, "No such node")
    return slivers.get_slivers(ctx.connection, ctx.plc.settings, node, ctx.now)


@_method("WaitForChange", _EVERYBODY, Arg("revision", INT), Arg("timeout_s", Type(int, "seconds", least=0)), waits=True)
def _wait_for_change(ctx: Context, revision: int, timeout_s: int) -> int:
    """Returns the current revision as soon as it differs from the given one, at the latest after timeout_s (at most
    300 seconds). For a node the revision moves when its GetSlivers answer may have changed, for a person at any change.
    A negative revision returns at once. This method is an extension; a stock PLCAPI does not have it.
    """
    node_id = ctx.caller.record["node_id"] if ctx.caller.kind == "node" else None
    return ctx.plc.revisions.wait(node_id, revision, min(timeout_s, LONGEST_WAIT_S))


# system.* -------------------------------------------------------------------------------------------------------


@_method("system.listMethods", (), returns=array(STR))
def _list_methods(plc: Plc) -> list[str]:
    """Returns the names of all methods."""
    return sorted(plc.registry.methods)


@_method("system.methodHelp", (), Arg("method", STR), returns=STR)
def _method_help(plc: Plc, name: str) -> str:
    """Returns a text about the method: what it does, who may call it, its arguments."""
    method = plc.registry.methods.get(name)
    if method is None:
        raise invalid_method(name)
    words = [f"{method.name}({', '.join(method.argument_names)}) -> {method.returns.name}", ""]
    words += ["Description:", "", *(f"  {line.strip()}" for line in method.doc.strip().splitlines()), ""]
    words += ["Allowed Roles:", "", "  " + (", ".join(method.roles) or "any"), "", "Parameters:", ""]
    if method.roles:
        words.append("  auth: struct, API authentication structure")
    for arg in method.args:
        doc = f", {arg.type.doc}" if arg.type.doc else ""
        words.append(f"  {arg.name}: {_type_text(arg.type)}{doc}{' (optional)' if arg.optional else ''}")
    return "\n".join([*words, ""])


def _type_text(kind: Type) -> str:
    if isinstance(kind, Mixed):
        return " or ".join(dict.fromkeys(_type_text(choice) for choice in kind.choices))
    if isinstance(kind, Array):
        return f"array of {_type_text(kind.item)}"
    if isinstance(kind, Struct) and kind.fields:
        return "struct of " + ", ".join(kind.fields)
    return kind.name


@_method("system.methodSignature", (), Arg("method", STR), returns=array(array(STR)))
def _method_signature(plc: Plc, name: str) -> list[list[str]]:
    """Returns the signatures of the method, one per number of arguments: type of the answer, types of the arguments."""
    method = plc.registry.methods.get(name)
    if method is None:
        raise invalid_method(name)
    kinds = [*(["struct"] if method.roles else []), *(arg.type.name for arg in method.args)]
    least, most = method.argument_range
    return [[method.returns.name, *kinds[:count]] for count in range(least, most + 1)]


_CALLS = Arg("calls", array(struct({"methodName": STR, "params": array(ANYTHING)}, required=("methodName", "params"))))


@_method("system.multicall", (), _CALLS, returns=array(ANYTHING))
def _multicall(plc: Plc, calls: list[Record]) -> list[Any]:
    """Executes the calls one after the other. For each, returns an array with its value, or a fault struct."""
    results: list[Any] = []
    for call in calls:
        name = call["methodName"]
        try:
            method = plc.registry.methods.get(name)
            if name == "system.multicall" or (method is not None and method.waits):
                raise invalid(f"{name} cannot be part of a multicall")
            results.append([plc.execute(name, tuple(call["params"]))])
        except Fault as fault:
            results.append({"faultCode": fault.code, "faultString": fault.text})
        except Exception:
            incident = secrets.token_hex(4)
            log.exception("call crashed", extra={"method": name[:100], "incident": incident})
            results.append({"faultCode": 111, "faultString": f"Internal API error: incident {incident}"})
    return results

