"""What the kernel must hold: frozen values, the words of ``ip`` and ``tc``. Plugins want, the substrate makes them.

Each has a ``key`` (kind, ident), unique on a node, and the keys it ``needs``. An object that nobody wants any more is
taken away in reverse order. ``wanted == read()`` holds for each after ``ensure`` (style: the trio of convention 4).
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar, Protocol, runtime_checkable

Key = tuple[str, str]


@runtime_checkable
class KernelObject(Protocol):
    """Anything a plugin may want to exist."""

    kind: ClassVar[str]

    @property
    def key(self) -> Key:
        """(kind, ident)"""

    @property
    def needs(self) -> tuple[Key, ...]:
        """Keys of what must exist before."""

    @property
    def title(self) -> str:
        """The object as people know it, for plans, logs and errors."""


@dataclasses.dataclass(frozen=True, slots=True)
class Underlay:
    """The node's side of all tunnels: XDP strip and tc deliver on the underlay device, their maps, sysctls."""

    kind: ClassVar[str] = "underlay"
    device: str
    address: str

    @property
    def key(self) -> Key:
        return (self.kind, self.device)

    @property
    def needs(self) -> tuple[Key, ...]:
        return ()

    @property
    def title(self) -> str:
        return f"EGRE terminator on {self.device}"


@dataclasses.dataclass(frozen=True, slots=True)
class HtbRoot:
    """The one HTB tree of the underlay device: qdisc ``1:`` and the node's class ``1:1``."""

    kind: ClassVar[str] = "htb"
    device: str
    rate_bps: int
    """what the node may send, bit/s; the real capacity when there is no cap"""

    @property
    def key(self) -> Key:
        return (self.kind, self.device)

    @property
    def needs(self) -> tuple[Key, ...]:
        return ()

    @property
    def title(self) -> str:
        return f"HTB root of {self.device}"


@dataclasses.dataclass(frozen=True, slots=True)
class HtbClass:
    """One class ``1:<minor>`` of the underlay's HTB; with ``queue_bytes`` a leaf with a bfifo of that length."""

    kind: ClassVar[str] = "class"
    device: str
    minor: int
    """1 is the node's; a slice's and a link's come from the store"""
    parent: int
    rate_bps: int
    """guaranteed"""
    ceil_bps: int
    quantum: int
    """bytes a round when borrowing (weight)"""
    queue_bytes: int = 0
    label: str = dataclasses.field(default="", compare=False)
    """what it shapes, for people; not in the kernel"""

    @property
    def key(self) -> Key:
        return (self.kind, f"{self.device}/{self.minor:x}")

    @property
    def needs(self) -> tuple[Key, ...]:
        return (("htb", self.device),) if self.parent == 1 else (("class", f"{self.device}/{self.parent:x}"),)

    @property
    def title(self) -> str:
        return f"HTB class 1:{self.minor:x}" + (f" of {self.label}" if self.label else "")


@dataclasses.dataclass(frozen=True, slots=True)
class NamespacePair:
    """A user namespace and a net namespace owned by it, kept by bind mounts (lxc.md §3)."""

    kind: ClassVar[str] = "pair"
    name: str
    """sliver id, ``trellis.37``"""
    uid_base: int
    """first of 65536 uids and gids on the host"""

    @property
    def key(self) -> Key:
        return (self.kind, self.name)

    @property
    def needs(self) -> tuple[Key, ...]:
        return ()

    @property
    def title(self) -> str:
        return f"namespaces {self.name}"


@dataclasses.dataclass(frozen=True, slots=True)
class Container:
    """A defined LXC container: directory, configuration, root file system. Not running yet."""

    kind: ClassVar[str] = "container"
    name: str
    hostname: str
    """slice name, as uts name"""
    uid_base: int
    image: str = "default"
    cpu_shares: int = 1024
    """cgroup v1 ``cpu.shares``; v2 weight derived"""
    cpu_quota_pct: int = 0
    """percent of one core at most; 0: no quota"""
    memory_bytes: int = 0
    """0: no limit"""
    pids_max: int = 1024
    sysctls: tuple[tuple[str, str], ...] = ()
    """net.* sysctls of the sliver's own namespace"""

    @property
    def key(self) -> Key:
        return (self.kind, self.name)

    @property
    def needs(self) -> tuple[Key, ...]:
        return (("pair", self.name),)

    @property
    def title(self) -> str:
        return f"container {self.name}"


@dataclasses.dataclass(frozen=True, slots=True)
class SliverFile:
    """A small file that the root context gives to a sliver: ``/etc/trellis/<filename>``, read-only inside."""

    kind: ClassVar[str] = "file"
    container: str
    filename: str
    """plain name, ``[a-z_][a-z0-9_.-]*``"""
    content: str
    mode: int = 0o644

    @property
    def key(self) -> Key:
        return (self.kind, f"{self.container}/{self.filename}")

    @property
    def needs(self) -> tuple[Key, ...]:
        return (("container", self.container),)

    @property
    def title(self) -> str:
        return f"file {self.filename} of {self.container}"


@dataclasses.dataclass(frozen=True, slots=True)
class Veth:
    """A veth pair whose inner end is born in the sliver's net namespace; the root end is made down and silent."""

    kind: ClassVar[str] = "veth"
    ifname: str
    """root end"""
    pair: str
    """NamespacePair that holds the inner end"""
    inner: str
    """inner end's name"""
    mac: str
    """inner end's address"""
    mtu: int
    """of both ends"""
    addresses: tuple[str, ...] = ()
    """of the inner end, with prefix length"""
    gso_max_bytes: int = 65536
    """largest aggregate the inner end may hand out (IFLA_GSO_MAX_SIZE), so that one fits a short leaf queue"""
    altname: str = ""
    """of the root end, for people"""

    @property
    def key(self) -> Key:
        return (self.kind, self.ifname)

    @property
    def needs(self) -> tuple[Key, ...]:
        return (("pair", self.pair),)

    @property
    def title(self) -> str:
        return f"veth {self.ifname} ({self.inner} in {self.pair})"


@dataclasses.dataclass(frozen=True, slots=True)
class EgreTunnel:
    """One EGRE tunnel ended in the root context: RFC 2784 + RFC 2890 key, protocol 0x6558."""

    kind: ClassVar[str] = "tunnel"
    device: str
    """underlay device"""
    local: str
    remote: str
    gre_key: int

    @property
    def key(self) -> Key:
        return (self.kind, f"{self.local}>{self.remote}/{self.gre_key}")

    @property
    def needs(self) -> tuple[Key, ...]:
        return (("underlay", self.device),)

    @property
    def title(self) -> str:
        return f"EGRE tunnel to {self.remote} key {self.gre_key}"


@dataclasses.dataclass(frozen=True, slots=True)
class Shortbridge:
    """A static coupling of one veth's root end with one tunnel: no MAC table, no copy (Trellis §3.3, Decision 5)."""

    kind: ClassVar[str] = "shortbridge"
    ifname: str
    """root end of the veth"""
    tunnel: str
    """ident of the EgreTunnel, ``local>remote/key``"""
    minor: int = 0
    """HTB class 1:minor that its frames are queued in; 0: none"""
    device: str = ""
    """underlay device, for the class's key"""

    @property
    def key(self) -> Key:
        return (self.kind, self.ifname)

    @property
    def needs(self) -> tuple[Key, ...]:
        shaped = (("class", f"{self.device}/{self.minor:x}"),) if self.minor else ()
        return (("veth", self.ifname), ("tunnel", self.tunnel), *shaped)

    @property
    def title(self) -> str:
        return f"shortbridge {self.ifname} ↔ {self.tunnel}"


@dataclasses.dataclass(frozen=True, slots=True)
class LinkUp:
    """The root end of a veth is up: frames flow. Wanted only while the sliver runs."""

    kind: ClassVar[str] = "linkup"
    ifname: str

    @property
    def key(self) -> Key:
        return (self.kind, self.ifname)

    @property
    def needs(self) -> tuple[Key, ...]:
        return (("veth", self.ifname), ("shortbridge", self.ifname))

    @property
    def title(self) -> str:
        return f"link {self.ifname} up"


@dataclasses.dataclass(frozen=True, slots=True)
class Running:
    """A container's init runs."""

    kind: ClassVar[str] = "running"
    name: str
    after: tuple[Key, ...] = dataclasses.field(default=(), compare=False)
    """what comes first if it is wanted at all: files, links. Its failure does not keep the sliver from running."""

    @property
    def key(self) -> Key:
        return (self.kind, self.name)

    @property
    def needs(self) -> tuple[Key, ...]:
        return (("container", self.name),)

    @property
    def title(self) -> str:
        return f"sliver {self.name} running"


KINDS: dict[str, type] = {
    c.kind: c
    for c in (
        Underlay,
        HtbRoot,
        HtbClass,
        NamespacePair,
        Container,
        SliverFile,
        Veth,
        EgreTunnel,
        Shortbridge,
        LinkUp,
        Running,
    )
}
"""kind → class, for reading stored objects back"""
