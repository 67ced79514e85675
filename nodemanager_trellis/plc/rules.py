"""What each class asks of its values, and who may change which record. The texts are PLCAPI's."""

from __future__ import annotations

import base64
import binascii
import ipaddress
import re
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import sqlalchemy as sa

from nodemanager_trellis.plc import classes
from nodemanager_trellis.plc.auth import hash_password
from nodemanager_trellis.plc.calls import Context
from nodemanager_trellis.plc.classes import CLASSES
from nodemanager_trellis.plc.faults import denied, invalid
from nodemanager_trellis.plc.records import Record, find, view
from nodemanager_trellis.plc.store import tables

#: A slice expires two weeks after it was made or at most eight weeks after a renewal, in seconds.
FIRST_LIFETIME_S = 14 * 86400
LONGEST_RENEWAL_S = 8 * 7 * 86400

#: Public key algorithms of OpenSSH that ``authorized_keys`` takes. (A stock PLCAPI 7.1 knows the first two only.)
_SSH_KEYS = (
    "ssh-rsa",
    "ssh-dss",
    "ssh-ed25519",
    "ecdsa-sha2-nistp256",
    "ecdsa-sha2-nistp384",
    "ecdsa-sha2-nistp521",
    "sk-ssh-ed25519@openssh.com",
    "sk-ecdsa-sha2-nistp256@openssh.com",
)

_HOSTNAME = re.compile(r"(?=.{1,255}\Z)([a-zA-Z0-9]([a-zA-Z0-9-]{0,61}[a-zA-Z0-9])?\.)*[a-zA-Z0-9]([a-zA-Z0-9-]{0,61}[a-zA-Z0-9])?\Z")  # fmt: skip # noqa: E501


def _unused(ctx: Context, cls: str, value: str, old: Record | None, complaint: str) -> None:
    """No other record has this name."""
    key = CLASSES[cls].key
    other = find(ctx.connection, cls, value)
    if other is not None and (old is None or other[key] != old[key]):
        raise invalid(complaint)


# Values ---------------------------------------------------------------------------------------------------------


def slice_values(ctx: Context, values: Record, old: Record | None) -> Record:
    """Name (planetlab.md §2.4), instantiation, expiry."""
    if old is None:
        name = values.get("name")
        if not name or not re.fullmatch(r"[a-z0-9.]+_[a-zA-Z0-9_.]+", name):
            raise invalid("Invalid slice name")
        prefix = name.split("_")[0]
        site = find(ctx.connection, "Site", prefix)
        if site is None:
            raise invalid(f"Invalid slice prefix {prefix} in {name}")
        if not ctx.caller.is_admin and not ctx.caller.has_site(site["site_id"]):
            raise denied("Slice prefix must be the same as the login_base of one of your sites")
        if len(site["slice_ids"]) >= site["max_slices"]:
            count, most = len(site["slice_ids"]), site["max_slices"]
            raise invalid(f"Site {prefix} has reached ({count}) its maximum allowable slice count ({most})")
        _unused(ctx, "Slice", name, None, f"Slice name already in use, {name}")
        values |= {
            "site_id": site["site_id"],
            "creator_person_id": ctx.caller.record.get("person_id"),
            "expires": ctx.now + FIRST_LIFETIME_S,
        }
    if values.get("instantiation", "plc-instantiated") not in classes.INSTANTIATIONS:
        raise invalid("No such instantiation state")
    if old is not None and values.get("expires", old["expires"]) != old["expires"]:
        _renewal(ctx, values, old)
    return values


def _renewal(ctx: Context, values: Record, old: Record) -> None:
    expires = values["expires"]
    if expires is None or expires <= ctx.now:
        raise invalid("expires must be in the future")
    if expires > old["expires"]:
        site = find(ctx.connection, "Site", old["site_id"])
        if site is not None and site["max_slices"] < 0:
            raise invalid("Slice creation and renewal have been disabled for the site")
        if not ctx.caller.is_admin and expires > ctx.now + LONGEST_RENEWAL_S:
            raise invalid("Cannot renew a slice beyond 8 weeks from now")
        for field in ("description", "url"):
            if not (values.get(field, old[field]) or "").strip():
                raise invalid("Cannot renew a slice with an empty description or URL")


def site_values(ctx: Context, values: Record, old: Record | None) -> Record:
    """``login_base`` is lower case letters, digits and dots, and nobody else's."""
    if "login_base" in values:
        if not re.fullmatch(r"[a-z0-9.]+", values["login_base"] or ""):
            raise invalid("Login base must consist only of lowercase ASCII letters or numbers or dots")
        _unused(ctx, "Site", values["login_base"], old, "login_base already in use")
    return values


def node_values(ctx: Context, values: Record, old: Record | None) -> Record:
    """Host name (kept in lower case), boot state, node type."""
    if "hostname" in values:
        if not _HOSTNAME.match(values["hostname"] or ""):
            raise invalid("Invalid hostname")
        values["hostname"] = values["hostname"].lower()
        _unused(ctx, "Node", values["hostname"], old, "Hostname already in use")
    if values.get("boot_state", "boot") not in classes.BOOT_STATES:
        raise invalid(f"Invalid boot state {values['boot_state']!r}")
    if values.get("node_type", "regular") not in classes.NODE_TYPES:
        raise invalid(f"Invalid node type {values['node_type']!r}")
    if "site_id" in values:
        ctx.find("Site", values["site_id"], "No such site")
        if not ctx.caller.is_admin and not ctx.caller.has_site(values["site_id"]):
            raise denied("Not allowed to move a node to that site")
    if old is not None and {"key", "boot_nonce"} & values.keys() and not ctx.caller.is_admin:
        raise denied("Only admins may set the key of a node")
    return values


def person_values(ctx: Context, values: Record, old: Record | None) -> Record:
    """E-mail address (kept in lower case); the password is hashed."""
    if "email" in values:
        email = (values["email"] or "").lower()
        if not re.fullmatch(r"[^\s@]+@[a-z0-9.-]+", email):
            raise invalid("Invalid e-mail address")
        values["email"] = email
        _unused(ctx, "Person", email, old, "E-mail address already in use")
    if "enabled" in values and not ctx.caller.roles & {"admin", "pi"}:
        raise denied("Not allowed to enable an account")
    if values.get("password"):
        values["password"] = hash_password(values["password"])
    elif old is None:
        values["password"] = "!"  # fits no password
    return values


def key_values(ctx: Context, values: Record, old: Record | None) -> Record:
    """An OpenSSH public key: perhaps options, the algorithm, its base64, perhaps a comment."""
    if values.get("key_type", "ssh") not in classes.KEY_TYPES:
        raise invalid("Invalid key type")
    if "key" in values and not is_ssh_key(values["key"] or ""):
        raise invalid("Invalid SSH version 2 public key")
    return values


def is_ssh_key(text: str) -> bool:
    """Whether ``text`` is one line for ``authorized_keys`` whose blob names the algorithm that the line names."""
    line = text.strip()
    if "\n" in line or "\r" in line:
        return False
    words = line.split()
    for algorithm, blob in pairwise(words):
        if algorithm in _SSH_KEYS:
            try:
                raw = base64.b64decode(blob, validate=True)
            except (binascii.Error, ValueError):
                return False
            length = int.from_bytes(raw[:4], "big")
            return raw[4 : 4 + length] == algorithm.encode() and len(raw) > 4 + length
    return False


def _ipv4(values: Record, name: str) -> ipaddress.IPv4Address | None:
    text = values.get(name)
    if not text:
        return None
    try:
        return ipaddress.IPv4Address(text)
    except ValueError:
        raise invalid(f"Invalid IP address {text}") from None


def interface_values(ctx: Context, values: Record, old: Record | None) -> Record:
    """Addresses are well formed and consistent with the method; a node has one primary interface."""
    new = {**(old or {}), **values}
    if (method := new.get("method")) not in classes.NETWORK_METHODS:
        raise invalid(f"Invalid addressing method {method}")
    if new.get("type", "ipv4") not in classes.NETWORK_TYPES:
        raise invalid(f"Invalid address type {new['type']}")
    found = {n: _ipv4(new, n) for n in ("ip", "gateway", "network", "broadcast", "netmask", "dns1", "dns2")}
    if values.get("mac"):
        values["mac"] = _mac(values["mac"])
    if new.get("hostname") and not _HOSTNAME.match(new["hostname"]):
        raise invalid(f"Invalid hostname {new['hostname']}")
    if method in ("proxy", "tap"):
        if new.get("mac"):
            raise invalid(f"For {method} method, mac should not be specified")
        if method == "tap" and not found["gateway"]:
            raise invalid("For tap method, gateway is required and should be the IP address of the node that proxies")
    if method in ("proxy", "tap", "ipmi") and not found["ip"]:
        raise invalid(f"For {method} method, ip is required")
    if method == "static":
        _static(found, bool(new.get("is_primary")))
    if new.get("is_primary"):
        table = tables["Interface"]
        other = sa.select(table.c.interface_id).where(
            table.c.node_id == new["node_id"],
            table.c.is_primary.is_(True),
            table.c.interface_id != new.get("interface_id", 0),
        )
        if ctx.connection.execute(other.limit(1)).first() is not None:
            raise invalid("Can only set one primary interface per node")
    return values


def _static(found: dict[str, ipaddress.IPv4Address | None], primary: bool) -> None:
    """All needed addresses are there, and in one network."""
    if primary:
        for name in ("gateway", "dns1"):
            if found[name] is None:
                raise invalid(f"For static method primary network, {name} is required")
    for name in ("ip", "network", "broadcast", "netmask"):
        if found[name] is None:
            raise invalid(f"For static method, {name} is required")
    numbers = {name: int(address) for name, address in found.items() if address is not None}
    mask = numbers["netmask"]
    network, ip = found["network"], found["ip"]
    if numbers["ip"] & mask != numbers["network"] & mask:
        raise invalid(f"IP address {ip} is inconsistent with network {network}/{found['netmask']}")
    if numbers["broadcast"] & mask != numbers["network"] & mask:
        raise invalid(
            f"Broadcast address {found['broadcast']} is inconsistent with network {network}/{found['netmask']}"
        )
    if "gateway" in numbers and numbers["gateway"] & mask != numbers["ip"] & mask:
        raise invalid(f"Gateway {found['gateway']} is not reachable from {ip}/{found['netmask']}")


def _mac(text: str) -> str:
    """``2:0:C6:33:64:e`` → ``02:00:c6:33:64:0e``"""
    if not re.fullmatch(r"[0-9a-fA-F]{1,2}(:[0-9a-fA-F]{1,2}){5}", text):
        raise invalid(f"Invalid MAC address {text}")
    return ":".join(f"{int(byte, 16):02x}" for byte in text.split(":"))


def tag_type_values(ctx: Context, values: Record, old: Record | None) -> Record:
    """The name is there and nobody else's."""
    if old is None or "tagname" in values:
        if not values.get("tagname"):
            raise invalid("tag type name must be set")
        _unused(ctx, "TagType", values["tagname"], old, "tag type name already in use")
    return values


def node_group_values(ctx: Context, values: Record, old: Record | None) -> Record:
    """The name is there and nobody else's."""
    if old is None or "groupname" in values:
        if not values.get("groupname"):
            raise invalid("Invalid node group name")
        _unused(ctx, "NodeGroup", values["groupname"], old, "Node group name already in use")
    return values


def init_script_values(ctx: Context, values: Record, old: Record | None) -> Record:
    """The name is there and nobody else's; lines end in LF."""
    if old is None or "name" in values:
        if not values.get("name"):
            raise invalid("Initscript name must be specified")
        _unused(ctx, "InitScript", values["name"], old, "Initscript name already in use")
    if values.get("script"):
        values["script"] = values["script"].replace("\r\n", "\n")
    return values


def any_values(ctx: Context, values: Record, old: Record | None) -> Record:
    """Nothing beyond the types."""
    return values


Values = Callable[[Context, Record, "Record | None"], Record]

# Who may --------------------------------------------------------------------------------------------------------


def may_all(ctx: Context, record: Record) -> None:
    """The roles of the method say it all."""


def may_slice(ctx: Context, record: Record) -> None:
    """Members, PIs of its site, admins."""
    caller = ctx.caller
    if caller.is_admin or caller.record.get("person_id") in record["person_ids"]:
        return
    if "pi" not in caller.roles:
        raise denied("Not a member of the specified slice")
    if not caller.has_site(record["site_id"]):
        raise denied("Specified slice not associated with any of your sites")


def may_site(ctx: Context, record: Record) -> None:
    """PIs of the site, admins."""
    if not ctx.caller.is_admin and not ctx.caller.has_site(record["site_id"]):
        raise denied("Not allowed to modify specified site")


def may_node(ctx: Context, record: Record) -> None:
    """PIs and techs of its site, admins; a node itself."""
    if ctx.caller.kind == "node":
        if ctx.caller.record["node_id"] != record["node_id"]:
            raise denied("Not allowed to modify another node")
    elif not ctx.caller.is_admin and not ctx.caller.has_site(record["site_id"]):
        raise denied("Not allowed to modify specified node")


def may_interface(ctx: Context, record: Record) -> None:
    """Who may change its node."""
    may_node(ctx, ctx.find("Node", record["node_id"], "No such node"))


def may_person(ctx: Context, record: Record) -> None:
    """The person, PIs of a common site (not over other PIs and admins), admins."""
    caller = ctx.caller
    if caller.is_admin or caller.record.get("person_id") == record["person_id"]:
        return
    common = set(caller.record.get("site_ids", ())) & set(record["site_ids"])
    if "pi" not in caller.roles or not common or {"admin", "pi"} & set(record["roles"]):
        raise denied("Not allowed to update specified account")


def may_key(ctx: Context, record: Record) -> None:
    """Its owner, admins."""
    if not ctx.caller.is_admin and ctx.caller.record.get("person_id") != record["person_id"]:
        raise denied("Key must be associated with your account")


May = Callable[[Context, Record], None]

# Who sees -------------------------------------------------------------------------------------------------------


def sees_all(ctx: Context) -> list[Any]:
    """Every record."""
    return []


def sees_slices(ctx: Context) -> list[Any]:
    """Persons that are not admins: their slices and, for PIs, those of their sites. Nobody sees expired slices."""
    columns = view("Slice").columns
    conditions: list[Any] = [columns["expires"] > ctx.now]
    caller = ctx.caller
    if caller.kind == "person" and not caller.is_admin:
        mine = columns["slice_id"].in_(caller.record["slice_ids"])
        if "pi" in caller.roles:
            mine = sa.or_(mine, columns["site_id"].in_(caller.record["site_ids"]))
        conditions.append(mine)
    return conditions


def sees_persons(ctx: Context) -> list[Any]:
    """Persons that are not admins: themselves and, for PIs and techs, the people of their sites."""
    caller = ctx.caller
    if caller.kind != "person" or caller.is_admin:
        return []
    key = view("Person").key
    visible = key == caller.record["person_id"]
    if caller.roles & {"pi", "tech"}:
        link = tables["person_site"]
        of_sites = sa.select(link.c.person_id).where(link.c.site_id.in_(caller.record["site_ids"]))
        visible = sa.or_(visible, key.in_(of_sites))
    return [visible]


def sees_keys(ctx: Context) -> list[Any]:
    """Persons that are not admins: their own."""
    if ctx.caller.kind != "person" or ctx.caller.is_admin:
        return []
    return [view("Key").columns["person_id"] == ctx.caller.record["person_id"]]


Sees = Callable[[Context], "list[Any]"]
