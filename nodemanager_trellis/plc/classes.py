"""The object classes of PLCAPI as data: fields, types, what may be null, where a field's value comes from.

A new class, field or tag is a new line here; ``store`` makes the tables, ``records`` the reading and writing,
``methods`` the Get/Add/Update/Delete methods.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from nodemanager_trellis.plc.types import INT, Type, array

#: PLCAPI's roles and their numbers.
ROLES = {10: "admin", 20: "pi", 30: "user", 40: "tech", 50: "node"}

#: Roles that a person may have; ``node`` is for tag types only.
PERSON_ROLES = ("admin", "pi", "user", "tech")

INSTANTIATIONS = ("not-instantiated", "plc-instantiated", "delegated", "nm-controller")
BOOT_STATES = ("boot", "failboot", "safeboot", "install", "reinstall", "upgrade", "disabled")
NODE_TYPES = ("regular", "reservable")
NETWORK_METHODS = ("static", "dhcp", "proxy", "tap", "ipmi", "unknown")
NETWORK_TYPES = ("ipv4",)
KEY_TYPES = ("ssh",)


@dataclass(frozen=True)
class Field:
    """One field of a record.

    :param default: value of a new record; ``now`` stands for the time of the call
    :param references: class whose key a stored column holds
    :param joined: (own column, class, its column): the value lives in another record
    :param listed: (relation, own key in it, value in it): a list; without a relation it is always empty
    :param optional: a new record may lack it although it is not ``nullok`` in filters
    :param secret: never in an answer
    :param admin: in answers to admins only, and in no filter, since filters tell what they match
    :param on_request: in an answer only when asked for by name
    """

    name: str
    type: Type
    default: Any = None
    references: str = ""
    orphan: str = "CASCADE"
    joined: tuple[str, str, str] | None = None
    listed: tuple[str, str, str] | None = None
    optional: bool = False
    secret: bool = False
    admin: bool = False
    on_request: bool = False

    @property
    def stored(self) -> bool:
        """Whether it is a column of the class's own table."""
        return self.joined is None and self.listed is None


@dataclass(frozen=True)
class ObjectClass:
    """One class of PLCAPI records.

    :param key: name of the integer identifier
    :param natural: field by which people name a record, unique; '' if there is none
    :param noun: as in the fault ``No such <noun>``
    :param argument: stem of argument names (``slice`` → ``slice_filter``, ``slice_id_or_name``)
    :param add: fields that a caller may give to Add
    :param update: fields that a caller may give to Update
    :param tags: class of its tags
    """

    name: str
    table: str
    key: str
    fields: tuple[Field, ...]
    natural: str = ""
    noun: str = ""
    argument: str = ""
    add: tuple[str, ...] = ()
    update: tuple[str, ...] = ()
    tags: str = ""
    by_name: Mapping[str, Field] = field(init=False, default_factory=dict, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "by_name", {f.name: f for f in self.fields})

    @property
    def handle(self) -> str:
        """Name of the argument that says which record: ``slice_id_or_name``."""
        return f"{self.key}_or_{self.natural}" if self.natural else self.key


def _text(name: str, longest: int | None, doc: str, nullok: bool = False, **more: Any) -> Field:
    return Field(name, Type(str, doc, nullok, longest), **more)


def _int(name: str, doc: str, nullok: bool = False, **more: Any) -> Field:
    return Field(name, Type(int, doc, nullok), **more)


def _time(name: str, doc: str, default: Any = None) -> Field:
    """Seconds since 1970-01-01 UTC."""
    return Field(name, Type(int, f"{doc}, in seconds since UNIX epoch", True), default)


def _flag(name: str, doc: str, default: bool = False) -> Field:
    return Field(name, Type(bool, doc), default)


def _ids(name: str, relation: str, key: str, value: str, doc: str) -> Field:
    return Field(name, array(INT, doc), listed=(relation, key, value))


def _peer(key: str) -> tuple[Field, Field]:
    return (
        _int("peer_id", "Peer to which this object belongs", True),
        _int(f"peer_{key}", "Foreign identifier at peer", True),
    )


def _tag_class(of: str, table: str, key: str, natural: str, noun: str) -> ObjectClass:
    """Tags of sites, nodes, interfaces and persons: one value per object and tag type."""
    stem = of.lower()
    title = _joined(natural, key, of, natural) if natural else ()
    return ObjectClass(
        name=f"{of}Tag",
        table=f"{stem}_tags",
        key=f"{stem}_tag_id",
        noun=f"{noun} tag",
        argument=f"{stem}_tag",
        fields=(
            _int(f"{stem}_tag_id", "Tag identifier"),
            _int(key, f"{of} identifier", references=of),
            *title,
            _int("tag_type_id", "Tag type identifier", references="TagType"),
            *_joined("tagname", "tag_type_id", "TagType", "tagname"),
            *_joined("description", "tag_type_id", "TagType", "description"),
            *_joined("category", "tag_type_id", "TagType", "category"),
            _text("value", 5000, "Tag value", True),
        ),
    )


def _joined(name: str, own: str, of: str, column: str) -> tuple[Field]:
    return (Field(name, Type(str, f"{column} of the {of}"), joined=(own, of, column)),)


_SITE = ObjectClass(
    name="Site",
    table="sites",
    key="site_id",
    natural="login_base",
    noun="site",
    argument="site",
    tags="SiteTag",
    add=("name", "abbreviated_name", "login_base", "is_public", "latitude", "longitude", "url", "max_slices",
         "max_slivers", "enabled", "ext_consortium_id"),
    update=("name", "abbreviated_name", "login_base", "is_public", "latitude", "longitude", "url", "max_slices",
            "max_slivers", "enabled", "ext_consortium_id"),
    fields=(
        _int("site_id", "Site identifier"),
        _text("name", 254, "Full site name"),
        _text("abbreviated_name", 50, "Abbreviated site name"),
        _text("login_base", 32, "Site slice prefix"),
        _flag("is_public", "Publicly viewable site", True),
        _flag("enabled", "Has been enabled", True),
        Field("latitude", Type(float, "Decimal latitude of the site", True)),
        Field("longitude", Type(float, "Decimal longitude of the site", True)),
        _text("url", 254, "URL of a page that describes the site", True),
        _time("date_created", "Date and time when site entry was created", "now"),
        _time("last_updated", "Date and time when site entry was last updated", "now"),
        _int("max_slices", "Maximum number of slices that the site is able to create", default=0),
        _int("max_slivers", "Maximum number of slivers that the site is able to create", default=1000),
        _int("ext_consortium_id", "external consortium id", True),
        *_peer("site_id"),
        _ids("person_ids", "person_site", "site_id", "person_id", "List of account identifiers"),
        _ids("slice_ids", "slices", "site_id", "slice_id", "List of slice identifiers"),
        _ids("address_ids", "", "", "", "List of address identifiers"),
        _ids("pcu_ids", "", "", "", "List of PCU identifiers"),
        _ids("node_ids", "nodes", "site_id", "node_id", "List of site node identifiers"),
        _ids("site_tag_ids", "site_tags", "site_id", "site_tag_id", "List of tags attached to this site"),
    ),
)

_PERSON = ObjectClass(
    name="Person",
    table="persons",
    key="person_id",
    natural="email",
    noun="account",
    argument="person",
    tags="PersonTag",
    add=("first_name", "last_name", "title", "email", "password", "phone", "url", "bio"),
    update=("first_name", "last_name", "title", "email", "password", "phone", "url", "bio", "enabled"),
    fields=(
        _int("person_id", "User identifier"),
        _text("first_name", 128, "Given name"),
        _text("last_name", 128, "Surname"),
        _text("title", 128, "Title", True),
        _text("email", 254, "Primary e-mail address"),
        _text("phone", 64, "Telephone number", True),
        _text("url", 254, "Home page", True),
        _text("bio", 254, "Biography", True),
        _flag("enabled", "Has been enabled"),
        _text("password", 254, "Account password, in scrypt form", secret=True),
        _time("date_created", "Date and time when account was created", "now"),
        _time("last_updated", "Date and time of last update", "now"),
        *_peer("person_id"),
        _ids("role_ids", "person_role", "person_id", "role_id", "List of role identifiers"),
        Field("roles", array(Type(str), "List of roles"), listed=("person_role_name", "person_id", "name")),
        _ids("site_ids", "person_site", "person_id", "site_id", "List of site identifiers"),
        _ids("key_ids", "keys", "person_id", "key_id", "List of key identifiers"),
        _ids("slice_ids", "slice_person", "person_id", "slice_id", "List of slice identifiers"),
        _ids("person_tag_ids", "person_tags", "person_id", "person_tag_id", "List of tags attached to this person"),
    ),
)

_KEY = ObjectClass(
    name="Key",
    table="keys",
    key="key_id",
    noun="key",
    argument="key",
    add=("key_type", "key"),
    update=("key_type", "key"),
    fields=(
        _int("key_id", "Key identifier"),
        _text("key_type", 20, "Key type"),
        _text("key", 4096, "Key value"),
        _int("person_id", "User to which this key belongs", True, references="Person"),
        *_peer("key_id"),
    ),
)

_NODE = ObjectClass(
    name="Node",
    table="nodes",
    key="node_id",
    natural="hostname",
    noun="node",
    argument="node",
    tags="NodeTag",
    add=("hostname", "node_type", "boot_state", "model", "version"),
    update=("hostname", "node_type", "boot_state", "model", "version", "key", "boot_nonce", "site_id"),
    fields=(
        _int("node_id", "Node identifier"),
        _text("node_type", 20, "Node type", default="regular"),
        _text("hostname", 255, "Fully qualified hostname"),
        _int("site_id", "Site at which this node is located", references="Site"),
        _text("boot_state", 20, "Boot state", default="reinstall"),
        _text("run_level", 20, "Run level", True),
        _text("model", 255, "Make and model of the actual machine", True),
        _text("boot_nonce", 128, "(Admin only) Random value generated by the node at last boot", True, admin=True),
        _text("version", 64, "Apparent Boot CD version", True),
        _text("key", 256, "(Admin only) Node key", True, admin=True, on_request=True),
        _flag("verified", "Whether the node configuration is verified correct"),
        _time("date_created", "Date and time when node entry was created", "now"),
        _time("last_updated", "Date and time when node entry was last updated", "now"),
        _time("last_contact", "Date and time when node last contacted plc"),
        _time("last_boot", "Date and time when node last booted"),
        _time("last_download", "Date and time when node boot image was created"),
        _time("last_pcu_reboot", "Date and time when PCU reboot was attempted"),
        _time("last_pcu_confirmation", "Date and time when PCU reboot was confirmed"),
        _int("last_time_spent_online", "Length of time the node was last online before shutdown/failure", True),
        _int("last_time_spent_offline", "Length of time the node was last offline before reboot", True),
        *_peer("node_id"),
        _ids("interface_ids", "interfaces", "node_id", "interface_id", "List of network interfaces of this node"),
        _ids("nodegroup_ids", "nodegroup_node", "node_id", "nodegroup_id", "List of node groups that this node is in"),
        _ids("slice_ids", "slice_node", "node_id", "slice_id", "List of slices on this node"),
        _ids("slice_ids_whitelist", "node_slice_whitelist", "node_id", "slice_id", "Slices allowed on this node"),
        _ids("conf_file_ids", "conf_file_node", "node_id", "conf_file_id", "List of configuration files of this node"),
        _ids("pcu_ids", "", "", "", "List of PCUs that control this node"),
        _ids("ports", "", "", "", "List of PCU ports that this node is connected to"),
        _ids("node_tag_ids", "node_tags", "node_id", "node_tag_id", "List of tags attached to this node"),
    ),
)  # fmt: skip

_INTERFACE_SETTABLE = ("method", "type", "ip", "mac", "gateway", "network", "broadcast", "netmask", "dns1", "dns2",
                       "bwlimit", "hostname", "is_primary")  # fmt: skip

_INTERFACE = ObjectClass(
    name="Interface",
    table="interfaces",
    key="interface_id",
    natural="ip",
    noun="interface",
    argument="interface",
    tags="InterfaceTag",
    add=_INTERFACE_SETTABLE,
    update=_INTERFACE_SETTABLE,
    fields=(
        _int("interface_id", "Node interface identifier"),
        _int("node_id", "Node associated with this interface", references="Node"),
        _flag("is_primary", "Is the primary interface for this node"),
        _text("type", 20, "Address type (e.g., 'ipv4')", default="ipv4"),
        _text("method", 20, "Addressing method (e.g., 'static' or 'dhcp')"),
        _text("ip", None, "IP address", True),
        _text("mac", None, "MAC address", True),
        _text("gateway", None, "IP address of primary gateway", True),
        _text("network", None, "Subnet address", True),
        _text("broadcast", None, "Network broadcast address", True),
        _text("netmask", None, "Subnet mask", True),
        _text("dns1", None, "IP address of primary DNS server", True),
        _text("dns2", None, "IP address of secondary DNS server", True),
        Field("bwlimit", Type(int, "Bandwidth limit (bit/s)", True, least=0)),
        _text("hostname", 255, "(Optional) Hostname", True),
        _time("last_updated", "Date and time when interface entry was last updated"),
        _ids("interface_tag_ids", "interface_tags", "interface_id", "interface_tag_id", "List of interface settings"),
    ),
)

_SLICE = ObjectClass(
    name="Slice",
    table="slices",
    key="slice_id",
    natural="name",
    noun="slice",
    argument="slice",
    tags="SliceTag",
    add=("instantiation", "name", "url", "description", "max_nodes"),
    update=("instantiation", "url", "description", "max_nodes", "expires"),
    fields=(
        _int("slice_id", "Slice identifier"),
        _int("site_id", "Identifier of the site to which this slice belongs", references="Site"),
        _text("name", 64, "Slice name"),
        _text("instantiation", None, "Slice instantiation state", default="plc-instantiated"),
        _text("url", 254, "URL further describing this slice", True),
        _text("description", 2048, "Slice description", True),
        _int("max_nodes", "Maximum number of nodes that can be assigned to this slice", default=100),
        _int("creator_person_id", "Creator of this slice", references="Person", orphan="SET NULL", nullok=True),
        Field("created", Type(int, "Date and time when slice was created, in seconds since UNIX epoch"), "now"),
        Field("expires", Type(int, "Date and time when slice expires, in seconds since UNIX epoch")),
        *_peer("slice_id"),
        _ids("node_ids", "slice_node", "slice_id", "node_id", "List of nodes in this slice"),
        _ids("person_ids", "slice_person", "slice_id", "person_id", "List of accounts that can use this slice"),
        _ids("slice_tag_ids", "slice_tags", "slice_id", "slice_tag_id", "List of slice attributes"),
    ),
)

_SLICE_TAG = ObjectClass(
    name="SliceTag",
    table="slice_tags",
    key="slice_tag_id",
    noun="slice attribute",
    argument="slice_tag",
    fields=(
        _int("slice_tag_id", "Slice tag identifier"),
        _int("slice_id", "Slice identifier", references="Slice"),
        *_joined("name", "slice_id", "Slice", "name"),
        Field("node_id", Type(int, "Node identifier, if a sliver attribute"), optional=True, references="Node"),
        Field("nodegroup_id", Type(int, "Node group, if a sliver attribute"), optional=True, references="NodeGroup"),
        _int("tag_type_id", "Tag type identifier", references="TagType"),
        *_joined("tagname", "tag_type_id", "TagType", "tagname"),
        *_joined("description", "tag_type_id", "TagType", "description"),
        *_joined("category", "tag_type_id", "TagType", "category"),
        _text("value", 5000, "Slice attribute value"),
    ),
)

_TAG_TYPE = ObjectClass(
    name="TagType",
    table="tag_types",
    key="tag_type_id",
    natural="tagname",
    noun="tag type",
    argument="tag_type",
    add=("tagname", "description", "category"),
    update=("tagname", "description", "category"),
    fields=(
        _int("tag_type_id", "Node tag type identifier"),
        _text("tagname", 100, "Node tag type name"),
        _text("description", 254, "Node tag type description", default=""),
        _text("category", 64, "Node tag category", default="general"),
        _ids("role_ids", "tag_type_role", "tag_type_id", "role_id", "List of role identifiers"),
        Field("roles", array(Type(str), "List of roles"), listed=("tag_type_role_name", "tag_type_id", "name")),
    ),
)

_NODE_GROUP = ObjectClass(
    name="NodeGroup",
    table="nodegroups",
    key="nodegroup_id",
    natural="groupname",
    noun="nodegroup",
    argument="nodegroup",
    update=("groupname", "value"),
    fields=(
        _int("nodegroup_id", "Node group identifier"),
        _text("groupname", 50, "Node group name"),
        _int("tag_type_id", "Node tag type id", references="TagType"),
        *_joined("tagname", "tag_type_id", "TagType", "tagname"),
        _text("value", 5000, "value that the nodegroup definition is based upon"),
        _ids("conf_file_ids", "conf_file_nodegroup", "nodegroup_id", "conf_file_id", "List of configuration files"),
        _ids("node_ids", "nodegroup_node", "nodegroup_id", "node_id", "List of node_ids that belong to this nodegroup"),
    ),
)

_INIT_SCRIPT = ObjectClass(
    name="InitScript",
    table="initscripts",
    key="initscript_id",
    natural="name",
    noun="initscript",
    argument="initscript",
    add=("name", "enabled", "script"),
    update=("name", "enabled", "script"),
    fields=(
        _int("initscript_id", "Initscript identifier"),
        _text("name", 254, "Initscript name"),
        _flag("enabled", "Initscript is active", True),
        _text("script", None, "Initscript"),
    ),
)

_CONF_FILE_SETTABLE = ("enabled", "source", "dest", "file_permissions", "file_owner", "file_group", "preinstall_cmd",
                       "postinstall_cmd", "error_cmd", "ignore_cmd_errors", "always_update")  # fmt: skip

_CONF_FILE = ObjectClass(
    name="ConfFile",
    table="conf_files",
    key="conf_file_id",
    noun="configuration file",
    argument="conf_file",
    add=_CONF_FILE_SETTABLE,
    update=_CONF_FILE_SETTABLE,
    fields=(
        _int("conf_file_id", "Configuration file identifier"),
        _flag("enabled", "Configuration file is active", True),
        _text("source", 255, "Relative path on the boot server where file can be downloaded"),
        _text("dest", 255, "Absolute path where file should be installed"),
        _text("file_permissions", 20, "chmod(1) permissions", default="644"),
        _text("file_owner", 50, "chown(1) owner", default="root"),
        _text("file_group", 50, "chgrp(1) owner", default="root"),
        _text("preinstall_cmd", 1024, "Shell command to execute prior to installing", default=""),
        _text("postinstall_cmd", 1024, "Shell command to execute after installing", default=""),
        _text("error_cmd", 1024, "Shell command to execute if any error occurs", default=""),
        _flag("ignore_cmd_errors", "Install file anyway even if an error occurs"),
        _flag("always_update", "Always attempt to install file even if unchanged"),
        _ids("node_ids", "conf_file_node", "conf_file_id", "node_id", "List of nodes linked to this file"),
        _ids("nodegroup_ids", "conf_file_nodegroup", "conf_file_id", "nodegroup_id",
             "List of node groups linked to this file"),
    ),
)  # fmt: skip

CLASSES: dict[str, ObjectClass] = {
    cls.name: cls
    for cls in (
        _SITE,
        _PERSON,
        _KEY,
        _NODE,
        _INTERFACE,
        _TAG_TYPE,
        _NODE_GROUP,
        _SLICE,
        _SLICE_TAG,
        _INIT_SCRIPT,
        _CONF_FILE,
        _tag_class("Site", "site_tags", "site_id", "login_base", "site"),
        _tag_class("Person", "person_tags", "person_id", "email", "person"),
        _tag_class("Node", "node_tags", "node_id", "hostname", "node"),
        _tag_class("Interface", "interface_tags", "interface_id", "ip", "interface"),
    )
}

#: Association tables: name → its columns, each the key of a class or of ``roles``.
LINKS: dict[str, tuple[str, ...]] = {
    "person_role": ("person_id", "role_id"),
    "person_site": ("person_id", "site_id"),
    "tag_type_role": ("tag_type_id", "role_id"),
    "slice_node": ("slice_id", "node_id"),
    "slice_person": ("slice_id", "person_id"),
    "node_slice_whitelist": ("node_id", "slice_id"),
    "conf_file_node": ("conf_file_id", "node_id"),
    "conf_file_nodegroup": ("conf_file_id", "nodegroup_id"),
}
