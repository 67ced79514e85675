"""A GetSlivers answer (plain values) → :class:`~nodemanager_trellis.model.Desired`.

Only an answer that is broken as a whole is refused. Anything smaller (a sliver, an attribute, a link, one member of a
link) costs only itself: it becomes a :class:`Problem` with its JSON path, and what the previous answer said of it stays
in force. Nothing here may raise for one slice's fault, and no fault may read as "remove it".
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Collection, Iterable, Mapping
from typing import Any

from nodemanager_trellis import units
from nodemanager_trellis.errors import InvalidInput
from nodemanager_trellis.intake import schema, topo_rspec
from nodemanager_trellis.model import Desired, Limits, Node, Presence, Problem, Sliver, Tag, VirtualLink

_FATAL = ("$", "$.node_id", "$.slivers")
_OWNER = re.compile(
    r"\$\.slivers\[\d+\](\.(attributes|keys)\[\d+\]|\.keys(?!\[)|\.GetSliceFamily)?"
    r"|\$\.(interfaces|networks|initscripts)\[\d+\]"
    r"|\$\.\w+"
)
"""the smallest thing that a structure error costs"""

_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
_NOT_SCRIPT = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\ud800-\udfff]")
_SYSCTL = re.compile(r"[a-z0-9_]+([./][A-Za-z0-9_-]+){1,15}")

_CAPABILITIES = frozenset(
    re.findall(
        r"\w+",
        """
        CHOWN DAC_OVERRIDE DAC_READ_SEARCH FOWNER FSETID KILL SETGID SETUID SETPCAP LINUX_IMMUTABLE NET_BIND_SERVICE
        NET_BROADCAST NET_ADMIN NET_RAW IPC_LOCK IPC_OWNER SYS_MODULE SYS_RAWIO SYS_CHROOT SYS_PTRACE SYS_PACCT
        SYS_ADMIN SYS_BOOT SYS_NICE SYS_RESOURCE SYS_TIME SYS_TTY_CONFIG MKNOD LEASE AUDIT_WRITE AUDIT_CONTROL SETFCAP
        MAC_OVERRIDE MAC_ADMIN SYSLOG WAKE_ALARM BLOCK_SUSPEND AUDIT_READ PERFMON BPF CHECKPOINT_RESTORE
        """,
    )
)
"""include/uapi/linux/capability.h, without ``CAP_``"""


@dataclasses.dataclass(frozen=True, slots=True)
class _Quantity:
    """A number among the attributes: which field of Limits, in what unit, and its bounds in that unit."""

    field: str
    unit: int = 1
    low: int = 0
    high: int = 2**62
    unlimited: bool = False
    """-1 means no limit"""


_RATE_HIGH = units.MAX_RATE_BPS // 1000
_QUANTITIES = {
    "cpu_share": _Quantity("cpu_share", low=1, high=10_000),
    "cpu_pct": _Quantity("cpu_pct", high=100_000),
    "memlock_hard": _Quantity("memory_bytes", unit=1024, low=16 * 1024, high=2**40, unlimited=True),
    "disk_max": _Quantity("disk_bytes", unit=1024, low=1, high=2**50, unlimited=True),
    "net_min_rate": _Quantity("net_min_bps", unit=1000, high=_RATE_HIGH),
    "net_max_rate": _Quantity("net_max_bps", unit=1000, low=units.MIN_RATE_BPS // 1000, high=_RATE_HIGH),
    "net_share": _Quantity("net_share", low=1, high=10_000),
    "net_i2_min_rate": _Quantity("net_i2_min_bps", unit=1000, high=_RATE_HIGH),
    "net_i2_max_rate": _Quantity("net_i2_max_bps", unit=1000, low=units.MIN_RATE_BPS // 1000, high=_RATE_HIGH),
    "net_i2_share": _Quantity("net_i2_share", low=1, high=10_000),
    "net_max_kbyte": _Quantity("net_max_bytes", unit=1024, high=2**50),
    "net_thresh_kbyte": _Quantity("net_thresh_bytes", unit=1024, high=2**50),
    "net_i2_max_kbyte": _Quantity("net_i2_max_bytes", unit=1024, high=2**50),
    "net_i2_thresh_kbyte": _Quantity("net_i2_thresh_bytes", unit=1024, high=2**50),
}
_SINGLE = frozenset(_QUANTITIES) | {
    "enabled", "netns", "capabilities", "vini_topo", "egre_key", "initscript", "initscript_code", "vref", "delegations",
}  # fmt: skip
"""attributes of which one value counts: the last, as in the original"""


def whole_number(text: str) -> int:
    """Attribute text → int as the original converts it: blanks around, a sign and any Unicode digit pass.

    :raises ValueError: not a whole number (``1.5``, ``1e6``, ``0x20``, ``10mbit``, empty), or longer than 64 characters
    """
    try:
        return int(text if len(text) <= 64 else "")
    except ValueError:
        raise ValueError(f"{schema.quote(text)} is not a whole number") from None


def image_name(text: str) -> bool:
    """Whether ``text`` may name a root file system: one path component of at most 128 characters."""
    return re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,127}", text) is not None


def _sysctl_key(name: str) -> str | None:
    match = re.match(r"(?:vsys_)?sysctl\.", name)
    return name[match.end() :] if match else None


class _Reading:
    """One answer being read: its structure errors by the thing they cost, and the problems found so far."""

    def __init__(self, flaws: Iterable[tuple[str, str]]) -> None:
        self.problems: list[Problem] = []
        self._flaws: dict[str, list[tuple[str, str]]] = {}
        for path, message in flaws:
            owner = _OWNER.match(path)
            self._flaws.setdefault(owner[0] if owner else path, []).append((path, message))

    def add(self, path: str, message: str, slice_name: str = "", kept: str = "") -> None:
        """One more problem."""
        self.problems.append(Problem(path, message, slice_name, kept))

    def broken(self, path: str, slice_name: str = "", kept: str = "") -> bool:
        """Whether the structure at ``path`` is wrong; if so, that is now a problem."""
        flaws = self._flaws.get(path, ())
        for flaw_path, message in flaws:
            self.add(flaw_path, message, slice_name, kept)
        return bool(flaws)


class _Attributes:
    """The attributes of one sliver by name."""

    def __init__(self, reading: _Reading, path: str, raw: list[Any], name: str, previous: Sliver | None) -> None:
        self.path = path
        self.values: dict[str, list[tuple[str, str]]] = {}
        self._reading = reading
        self._slice = name
        self._spoiled: set[str] = set()
        self._some_lost = False
        for i, item in enumerate(raw):
            where = f"{path}[{i}]"
            label = item.get("tagname") if isinstance(item, dict) else None
            known = isinstance(label, str)
            if reading.broken(where, name, f"the last good {label}" if known and previous else ""):
                if isinstance(label, str):
                    self._spoiled.add(label)
                self._some_lost = self._some_lost or not known
            else:
                self.values.setdefault(item["tagname"], []).append((f"{where}.value", item["value"]))
        for label, found in self.values.items():
            if (label in _SINGLE or _sysctl_key(label)) and len({text for _, text in found}) > 1:
                message = f"{label} occurs {len(found)} times with different values"
                reading.add(found[0][0], message, name, "the last one")

    def spoiled(self, name: str) -> bool:
        """Whether the value of ``name`` was lost, or may have been, so that the last good one stays."""
        return name in self._spoiled or (self._some_lost and name not in self.values)

    def last(self, name: str) -> tuple[str, str] | None:
        """Path and text of the value that counts; None if the name is absent or its value was lost."""
        return None if self.spoiled(name) or name not in self.values else self.values[name][-1]

    def refuse(self, path: str, message: str, kept: str = "") -> None:
        """One more problem of this sliver."""
        self._reading.add(path, message, self._slice, kept)

    def number(self, name: str, last_good: int | None) -> int | None:
        """The value of ``name`` as int; ``last_good`` if it is not one; None if absent."""
        found = self.last(name)
        if found is None:
            return last_good if self.spoiled(name) else None
        try:
            return whole_number(found[1])
        except ValueError as err:
            self.refuse(found[0], str(err), "" if last_good is None else f"{name} {last_good}")
            return last_good

    def tags(self, previous: Sliver | None) -> tuple[Tag, ...]:
        """All attributes by name; lost ones as they were. Sorted, since PLC's own order is accidental."""
        tags = {name: tuple(text for _, text in found) for name, found in self.values.items()}
        for tag in previous.tags if previous else ():
            if self.spoiled(tag.name):
                tags[tag.name] = tag.values
        return tuple(Tag(name, values) for name, values in sorted(tags.items()))


def _limits(attributes: _Attributes, previous: Limits | None, is_default: bool) -> Limits:
    """The numbers among the attributes, clamped to their bounds as bwlimit does; a changed value is a problem."""
    values: dict[str, int | None] = {}
    defaults = Limits()
    for name, quantity in _QUANTITIES.items():
        default = getattr(defaults, quantity.field)
        stays = getattr(previous, quantity.field) if previous else default
        found = attributes.last(name)
        if found is None:
            values[quantity.field] = stays if attributes.spoiled(name) else default
            continue
        path, text = found
        try:
            number = whole_number(text)
        except ValueError as err:
            attributes.refuse(path, str(err), "" if stays is None else f"{name} {stays // quantity.unit}")
            values[quantity.field] = stays
            continue
        if number == -1 and (quantity.unlimited or (is_default and name == "net_max_rate")):
            values[quantity.field] = None
            continue
        used = min(max(number, quantity.low), quantity.high)
        if used != number:
            bounds = f"{name} {schema.quote(text)} is outside {quantity.low}..{quantity.high}"
            attributes.refuse(path, bounds, f"{name} {used}")
        values[quantity.field] = used * quantity.unit
    return Limits(**values)  # type: ignore[arg-type]


def _capabilities(attributes: _Attributes, previous: Sliver | None) -> tuple[str, ...]:
    found = attributes.last("capabilities")
    if found is None:
        return previous.capabilities if previous and attributes.spoiled("capabilities") else ()
    names: dict[str, None] = {}
    for word in re.split(r"[\s,]+", found[1].upper()):
        bare = word.removeprefix("CAP_")
        if bare in _CAPABILITIES:
            names[f"CAP_{bare}"] = None
        elif word:
            attributes.refuse(found[0], f"no such capability: {schema.quote(word)}", "the other ones")
    return tuple(names)


def _netns(attributes: _Attributes, previous: Sliver | None) -> bool:
    number = attributes.number("netns", int(previous.netns) if previous else 0)
    found = attributes.last("netns")
    if found and number not in (0, 1):
        attributes.refuse(found[0], f"netns {schema.quote(found[1])} is neither 0 nor 1")
        return previous.netns if previous else False
    return number == 1


def _sysctls(attributes: _Attributes, previous: Sliver | None) -> tuple[tuple[str, str], ...]:
    """``sysctl.<key>`` and ``vsys_sysctl.<key>``, by key."""
    old = dict(previous.sysctls) if previous else {}
    settings: dict[str, str] = {}
    for tag in previous.tags if previous else ():
        key = _sysctl_key(tag.name)
        if key in old and attributes.spoiled(tag.name):
            settings[key] = old[key]
    for name, found in attributes.values.items():
        key = _sysctl_key(name)
        if key is None or attributes.spoiled(name):
            continue
        path, text = found[-1]
        if not _SYSCTL.fullmatch(key) or len(key) > 128:
            attributes.refuse(path, f"{schema.quote(key)} is not the name of a sysctl")
        elif len(text) > 256 or _CONTROL.search(text.strip().replace("\t", " ")):
            kept = f"{key} {old[key]}" if key in old else ""
            attributes.refuse(path, f"{schema.quote(text)} is not the value of a sysctl", kept)
            settings.update({key: old[key]} if key in old else {})
        else:
            settings[key] = text.strip()
    return tuple(sorted(settings.items()))


def _initscript(attributes: _Attributes, scripts: Mapping[str, str], previous: Sliver | None) -> str:
    """``initscript_code`` wins over the script that ``initscript`` names."""
    stays = previous.initscript if previous else ""
    if attributes.spoiled("initscript_code"):
        return stays
    code, named = attributes.last("initscript_code"), attributes.last("initscript")
    if code is not None:
        path, text = code
    elif named is not None and named[1]:
        path, name = named
        if name not in scripts:
            attributes.refuse(path, f"no such initscript: {schema.quote(name)}", "the last initscript" if stays else "")
            return stays
        text = scripts[name]
    else:
        return stays if attributes.spoiled("initscript") else ""
    if _NOT_SCRIPT.search(text):
        attributes.refuse(path, "the script holds control characters", "the last initscript" if stays else "")
        return stays
    return text.replace("\r\n", "\n")


def _keys(reading: _Reading, path: str, raw: Any, name: str, previous: Sliver | None) -> tuple[str, ...]:
    stays = previous.keys if previous else ()
    kept = f"the last {len(stays)} keys" if stays else ""
    if reading.broken(path, name, kept):
        return stays
    if raw is None:
        reading.add(path, "missing: keys", name, kept)
        return stays
    keys: dict[str, None] = {}
    for i, item in enumerate(raw):
        if reading.broken(f"{path}[{i}]", name, "the other keys"):
            continue
        line = item["key"].strip(" \t\r\n")
        if _CONTROL.search(line):
            reading.add(f"{path}[{i}].key", "a key must be one line without control characters", name, "the other keys")
        elif line:
            keys[line] = None
    return tuple(keys)


def _image(reading: _Reading, path: str, raw: Any, attributes: _Attributes, previous: Sliver | None, name: str) -> str:
    """``GetSliceFamily`` (into which PLC has worked the ``vref`` attribute), else ``vref``, else ``default``."""
    stays = previous.image if previous else "default"
    if reading.broken(path, name, f"image {stays}"):
        return stays
    found = attributes.last("vref")
    if raw:
        return str(raw)
    if found is None:
        return stays if attributes.spoiled("vref") else "default"
    if not image_name(found[1]):
        attributes.refuse(found[0], f"{schema.quote(found[1])} is not an image name", f"image {stays}")
        return stays
    return found[1]


def _links(
    attributes: _Attributes, node: Node, previous: Sliver | None, known_nodes: Collection[int] | None
) -> list[tuple[str, VirtualLink]]:
    """(path, link) of each link; a part that is wrong costs itself, and what was there stays."""
    old = {link.name: link for link in previous.links} if previous else {}
    kept = f"the last {len(old)} links" if old else ""
    unchanged = [(attributes.path, link) for link in old.values()]
    texts = attributes.values.get("topo_rspec", [])
    mode = attributes.last("vini_topo")
    if texts and mode is not None and mode[1].strip() != "manual":
        attributes.refuse(mode[0], f"vini_topo {schema.quote(mode[1])} is not supported, only 'manual' is", kept)
        return unchanged
    raw: list[topo_rspec.Member] = []
    lost = attributes.spoiled("topo_rspec")
    for path, text in texts:
        try:
            raw += topo_rspec.members(text, path)
        except InvalidInput as err:
            attributes.refuse(err.path, err.message, kept)
            lost = True
    if not raw:
        return unchanged if lost else []
    key = _egre_key(attributes, kept)
    if key is None:
        return unchanged
    links, flaws, vague = topo_rspec.resolve(raw, key=key, node=node, previous=old, known_nodes=known_nodes)
    for flaw in flaws:
        attributes.refuse(flaw.path, flaw.message, flaw.kept)
    if lost or vague:
        # Nobody can say which link the unreadable text meant, so no link of before goes away on its account.
        there = {link.name for _, link in links}
        links += [(path, topo_rspec.rekey(link, key)) for path, link in unchanged if link.name not in there]
    return links


def _egre_key(attributes: _Attributes, kept: str) -> int | None:
    """The GRE key of the slice's links; None, and a problem, if there is no usable one."""
    if attributes.spoiled("egre_key"):
        return None
    found = attributes.last("egre_key")
    if found is None:
        attributes.refuse(attributes.path, "the slice has links but no egre_key", kept)
        return None
    try:
        key = whole_number(found[1])
    except ValueError as err:
        attributes.refuse(found[0], f"egre_key {err}", kept)
        return None
    if not 0 <= key < 2**32:
        attributes.refuse(found[0], f"egre_key {key} is outside 0..4294967295", kept)
        return None
    return key


class _Slivers:
    """The ``slivers`` of one answer, read one after the other."""

    def __init__(
        self,
        reading: _Reading,
        node: Node,
        *,
        now: int,
        previous: Desired | None,
        default_slice: str,
        scripts: Mapping[str, str],
        known_nodes: Collection[int] | None,
    ) -> None:
        self._reading = reading
        self._node = node
        self._now = now
        self._default_slice = default_slice
        self._scripts = scripts
        self._known_nodes = known_nodes
        self._old = {sliver.slice_id: sliver for sliver in (previous.slivers if previous else ())}
        self.link_paths: dict[tuple[int, str], str] = {}

    def read(self, raw: list[Any]) -> list[Sliver]:
        """All slivers that this node has to know: good ones, and the last good form of broken ones."""
        by_id: dict[int, Sliver] = {}
        by_name: dict[str, Sliver] = {}
        broken: list[Sliver] = []
        mentioned: set[int] = set()
        some_lost = False
        for i, item in enumerate(raw):
            path = f"$.slivers[{i}]"
            old, label = self._identify(item)
            if self._reading.broken(path, label, "the sliver as it was" if old else ""):
                broken += [old] if old else []
                some_lost = some_lost or not label
                continue
            slice_id, name = item["slice_id"], item["name"]
            mentioned.add(slice_id)
            if item["expires"] < self._now:
                continue
            twin = by_id.get(slice_id) or by_name.get(name)
            if twin:
                message = f"slice {name} (id {slice_id}) repeats {twin.name} (id {twin.slice_id})"
                self._reading.add(path, message, name, "the first one")
                continue
            by_id[slice_id] = by_name[name] = self._sliver(path, item)
        if some_lost:
            # An entry that nobody can put a name to may be any sliver of before, so none of them goes away.
            broken += [sliver for slice_id, sliver in self._old.items() if slice_id not in mentioned]
        for sliver in broken:
            if sliver.slice_id not in by_id and sliver.name not in by_name and sliver.expires >= self._now:
                by_id[sliver.slice_id] = by_name[sliver.name] = sliver
        # PLC's order is accidental; a steady one lets answers be compared.
        return [by_id[slice_id] for slice_id in sorted(by_id)]

    def _identify(self, item: Any) -> tuple[Sliver | None, str]:
        """What an entry is about, by its id, else its name: the sliver of before, and a name ('' if nobody can say)."""
        slice_id, name = (item.get("slice_id"), item.get("name")) if isinstance(item, dict) else (None, None)
        label = name if isinstance(name, str) and len(name) <= 64 and name.isascii() and name.isprintable() else ""
        if type(slice_id) is int and slice_id > 0:
            old = self._old.get(slice_id)
            return old, label or (old.name if old else f"id {slice_id}")
        return next((sliver for sliver in self._old.values() if sliver.name == label), None), label

    def _sliver(self, path: str, item: dict[str, Any]) -> Sliver:
        name, slice_id = item["name"], item["slice_id"]
        old = self._old.get(slice_id)
        attributes = _Attributes(self._reading, f"{path}.attributes", item["attributes"], name, old)
        is_default = name == self._default_slice
        enabled = attributes.number("enabled", 0 if old and old.presence is Presence.STOP else 1)
        links = _links(attributes, self._node, old, self._known_nodes)
        self.link_paths.update({(slice_id, link.name): where for where, link in links})
        if item["instantiation"] != "plc-instantiated" or is_default:
            presence = Presence.LEAVE
        else:
            presence = Presence.STOP if enabled is not None and enabled <= 0 else Presence.RUN
        return Sliver(
            name=name,
            slice_id=slice_id,
            presence=presence,
            instantiation=item["instantiation"],
            expires=item["expires"],
            image=_image(self._reading, f"{path}.GetSliceFamily", item.get("GetSliceFamily"), attributes, old, name),
            keys=_keys(self._reading, f"{path}.keys", item.get("keys"), name, old),
            initscript=_initscript(attributes, self._scripts, old),
            netns=_netns(attributes, old),
            capabilities=_capabilities(attributes, old),
            limits=_limits(attributes, old.limits if old else None, is_default),
            links=tuple(link for _, link in links),
            sysctls=_sysctls(attributes, old),
            tags=attributes.tags(old),
        )


def _limits_off(slivers: list[Any], default_slice: str, previous: Node | None) -> bool:
    """Whether ``net_max_rate`` = -1 stands among the PLC-wide overrides; later duplicates win.

    What is wrong with them becomes a problem where that slice is read like any other one.
    """
    off = False
    stays = previous.limits_off if previous else False
    for sliver in slivers:
        if not isinstance(sliver, dict) or sliver.get("name") != default_slice:
            continue
        attributes = sliver.get("attributes")
        if not isinstance(attributes, list):
            return stays
        for item in attributes:
            if isinstance(item, dict) and item.get("tagname") == "net_max_rate":
                try:
                    off = whole_number(item["value"]) == -1
                except (ValueError, TypeError, KeyError):
                    off = stays
    return off


def _interface(reading: _Reading, value: dict[str, Any], previous: Node | None) -> tuple[str, int | None]:
    """Address and cap (bit/s) of the primary interface; before PLCAPI 5 the key was ``networks``."""
    name = "networks" if "networks" in value and "interfaces" not in value else "interfaces"
    path = f"$.{name}"
    old = (previous.address, previous.bwlimit_bps) if previous else ("", None)
    kept = f"address {old[0]}" if old[0] else ""
    if reading.broken(path, "", kept):
        return old
    for i, item in enumerate(value.get(name, [])):
        where = f"{path}[{i}]"
        if reading.broken(where, "", kept) or not item["is_primary"]:
            continue
        try:
            address = topo_rspec.unicast(item["ip"])
        except ValueError as err:
            reading.add(f"{where}.ip", str(err), "", kept)
            return old
        cap_bps = item.get("bwlimit")
        if cap_bps is not None and cap_bps < units.MIN_RATE_BPS:
            smallest = units.format_rate(units.MIN_RATE_BPS)
            reading.add(f"{where}.bwlimit", f"a cap of {cap_bps} bit/s is below {smallest}", "", f"cap {smallest}")
            cap_bps = units.MIN_RATE_BPS
        return address, cap_bps
    reading.add(path, "no primary interface", "", kept)
    return old


def _node(reading: _Reading, value: dict[str, Any], previous: Node | None, limits_off: bool) -> Node:
    hostname = value.get("hostname")
    if reading.broken("$.hostname", "", previous.hostname if previous else "") or hostname is None:
        if hostname is None:
            reading.add("$", "missing: hostname", "", previous.hostname if previous else "")
        hostname = previous.hostname if previous else ""
    groups: Iterable[str] = value.get("groups", [])
    if reading.broken("$.groups", "", "the last groups" if previous else ""):
        groups = previous.groups if previous else ()
    address, cap_bps = _interface(reading, value, previous)
    own = {f: getattr(previous, f) for f in ("instance", "underlay", "mtu")} if previous else {}
    return Node(
        node_id=value["node_id"],
        hostname=hostname,
        address=address,
        groups=tuple(sorted(set(groups))),
        bwlimit_bps=cap_bps,
        limits_off=limits_off,
        **own,
    )


def _initscripts(reading: _Reading, value: dict[str, Any]) -> dict[str, str]:
    """Enabled scripts of the PLC by name."""
    if reading.broken("$.initscripts"):
        return {}
    return {
        item["name"]: item["script"]
        for i, item in enumerate(value.get("initscripts", []))
        if not reading.broken(f"$.initscripts[{i}]") and item.get("enabled", True)
    }


def _untangle(
    reading: _Reading, slivers: list[Sliver], previous: Desired | None, paths: Mapping[tuple[int, str], str]
) -> tuple[Sliver, ...]:
    """No two links with the same remote address and GRE key: the kernel could not tell their frames apart.

    The link that had the pair before keeps it, else the lower slice id; slices nobody builds here come last. The loser
    keeps its last good link, if that is another pair which is still free.
    """
    before = {(s.slice_id, link.name): link for s in (previous.slivers if previous else ()) for link in s.links}

    def pair(link: VirtualLink) -> tuple[str, int]:
        return link.remote_ip, link.key

    def rank(entry: tuple[Sliver, VirtualLink]) -> tuple[bool, bool, int]:
        sliver, link = entry
        old = before.get((sliver.slice_id, link.name))
        return sliver.presence is Presence.LEAVE, old is None or pair(old) != pair(link), sliver.slice_id

    owners: dict[tuple[str, int], tuple[Sliver, str]] = {}
    kept: dict[tuple[int, str], VirtualLink] = {}
    losers: list[tuple[Sliver, VirtualLink]] = []
    for sliver, link in sorted(((s, link) for s in slivers for link in s.links), key=rank):
        if pair(link) not in owners:
            owners[pair(link)] = (sliver, link.name)
            kept[sliver.slice_id, link.name] = link
        else:
            losers.append((sliver, link))
    for sliver, link in losers:
        name = (sliver.slice_id, link.name)
        old = before.get(name)
        owner, its_link = owners[pair(link)]
        who = f"slices {owner.name} and {sliver.name}" if owner is not sliver else f"links {its_link} and {link.name}"
        has_it = owner.name if owner is not sliver else its_link
        message = f"{who} both want GRE key {link.key} to {link.remote_ip}; {has_it} has it"
        stays = ""
        if old is not None and pair(old) not in owners:
            owners[pair(old)] = (sliver, old.name)
            kept[name] = old
            stays = f"GRE key {old.key} to {old.remote_ip}"
        reading.add(paths.get(name, "$.slivers"), message, sliver.name, stays)
    return tuple(
        dataclasses.replace(
            s, links=tuple(kept[s.slice_id, link.name] for link in s.links if (s.slice_id, link.name) in kept)
        )
        for s in slivers
    )


def _open(value: Any) -> _Reading:
    """Check the structure of a whole answer; only what makes all of it useless is raised."""
    schema.check_plain(value)
    flaws = schema.validate("getslivers", value)
    for path, message in flaws:
        if path in _FATAL:
            raise InvalidInput(message, path)
    return _Reading(flaws)


def parse(
    value: Any,
    *,
    now: int,
    previous: Desired | None = None,
    slice_prefix: str = "pl",
    expected_node_id: int | None = None,
    known_nodes: Collection[int] | None = None,
) -> Desired:
    """A GetSlivers answer, understood.

    :param now: seconds since 1970 by this node's clock; slivers that expired before are left out
    :param previous: what the last good answer said; stays in force where this one is wrong
    :param slice_prefix: the attributes of slice ``<prefix>_default`` are PLC-wide overrides
    :param expected_node_id: refuse an answer for another node
    :param known_nodes: ids of all nodes of the PLC if known; links to other ones are refused
    :raises InvalidInput: the answer as a whole is unusable (no struct, no node_id, no slivers, another node's)
    """
    reading = _open(value)
    if expected_node_id not in (None, value["node_id"]):
        raise InvalidInput(f"the answer is for node {value['node_id']}, this is node {expected_node_id}", "$.node_id")
    if previous is not None and previous.node.node_id != value["node_id"]:
        previous = None
    old_node = previous.node if previous else None
    default_slice = f"{slice_prefix}_default"
    timestamp = value.get("timestamp")
    if reading.broken("$.timestamp") or timestamp is None:
        timestamp = previous.timestamp if previous else now
    node = _node(reading, value, old_node, _limits_off(value["slivers"], default_slice, old_node))
    slivers = _Slivers(
        reading,
        node,
        now=now,
        previous=previous,
        default_slice=default_slice,
        scripts=_initscripts(reading, value),
        known_nodes=known_nodes,
    )
    untangled = _untangle(reading, slivers.read(value["slivers"]), previous, slivers.link_paths)
    return Desired(timestamp, node, untangled, tuple(reading.problems))


def parse_ticket(value: Any, *, now: int, current: Desired, slice_prefix: str = "pl") -> Desired:
    """The struct inside a slice ticket → its slivers only, for the node of ``current``.

    A ticket is made without a node: it lacks every tag of the node, ``topo_rspec`` above all. So the links that
    ``current`` has for the slice stay.

    :raises InvalidInput: the ticket as a whole is unusable
    """
    if not isinstance(value, dict):
        raise InvalidInput(f"expected struct, got {schema.kind(value)}", "$")
    reading = _open({**value, "node_id": current.node.node_id})
    slivers = _Slivers(
        reading,
        current.node,
        now=now,
        previous=current,
        default_slice=f"{slice_prefix}_default",
        scripts=_initscripts(reading, value),
        known_nodes=None,
    )
    links = {sliver.slice_id: sliver.links for sliver in current.slivers}
    found = tuple(dataclasses.replace(s, links=links.get(s.slice_id, ())) for s in slivers.read(value["slivers"]))
    timestamp = value.get("timestamp")
    if reading.broken("$.timestamp") or timestamp is None:
        timestamp = now
    return Desired(timestamp, current.node, found, tuple(reading.problems))
