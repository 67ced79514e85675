"""EGRE by BPF: the terminator on the underlay, tunnels, shortbridges, their neighbours and their counters.

The kernel side is ``kmod/bpf/egre.bpf.c``; its README draws the packet's way. Everything we know is in the pinned maps,
so a new manager finds it all: ``read`` rebuilds the objects from there.

Pins of one node, below ``<bpffs>/trellis/<instance>/``::

    map/trellis_rx …            entries: one a tunnel (rx), one a shortbridge (tx)
    prog/<hash>/trellis_strip … the build in force; two directories only while an upgrade goes on
    link/<ifindex>_strip        XDP on the underlay; <ifindex>_generic beside it when the driver cannot run it
    link/<ifindex>_deliver      tcx on the underlay (older kernels: a clsact filter instead)
"""

from __future__ import annotations

import contextlib
import dataclasses
import enum
import errno
import ipaddress
import logging
import pathlib
import socket
import struct
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from nodemanager_trellis import names
from nodemanager_trellis.errors import NotOurs, SubstrateError, TrellisError
from nodemanager_trellis.objects import EgreTunnel, Key, Shortbridge, Underlay
from nodemanager_trellis.substrate import bpf
from nodemanager_trellis.substrate import netlink as nl
from nodemanager_trellis.substrate.settings import Settings

log = logging.getLogger(__name__)

STRIP, JUMBO, DELIVER, ENCAP = "trellis_strip", "trellis_jumbo", "trellis_deliver", "trellis_encap"
PROGRAMS = (STRIP, JUMBO, DELIVER, ENCAP)
RX, TX, LOCAL, STATS, DROPS = "trellis_rx", "trellis_tx", "trellis_local", "trellis_stats", "trellis_drops"
MAPS = (RX, TX, LOCAL, STATS, DROPS)

FILTER_PRIO, FILTER_HANDLE = 1, 1
HTB_MAJOR = 1 << 16
TTL = 64
DONT_FRAGMENT = 0x4000
GRE_FLAGS, GRE_PROTO = 0x2000, 0x6558


class Drop(enum.IntEnum):
    """Why a frame went no further; ``enum trellis_drop`` of trellis_shared.h."""

    RX_UNKNOWN = 0
    RX_NO_LINK = 1
    RX_MALFORMED = 2
    RX_NO_ROOM = 3
    RX_OUTER_VLAN = 4
    TX_NO_LINK = 5
    TX_NO_NEIGHBOUR = 6
    TX_MTU = 7
    TX_VLAN = 8
    TX_GSO = 9
    TX_FAILED = 10

    @property
    def meaning(self) -> str:
        """For people."""
        return _MEANING[self]


_MEANING = {
    Drop.RX_UNKNOWN: "key, or source for this key, not known",
    Drop.RX_NO_LINK: "tunnel without a sliver's link",
    Drop.RX_MALFORMED: "lengths or checksum of the outer header wrong",
    Drop.RX_NO_ROOM: "driver gave no room for metadata",
    Drop.RX_OUTER_VLAN: "outer frame bore a VLAN tag",
    Drop.TX_NO_LINK: "root end without a tunnel",
    Drop.TX_NO_NEIGHBOUR: "next hop's MAC address not known",
    Drop.TX_MTU: "larger than the link's MTU",
    Drop.TX_VLAN: "more than two VLAN tags",
    Drop.TX_GSO: "aggregate that cannot be tunnelled",
    Drop.TX_FAILED: "no memory, or not a frame",
}

_COUNTERS = struct.Struct(f"=5Q{len(Drop)}Q")
_RX_VALUE = struct.Struct("=I6sH")
_TX_VALUE = struct.Struct("=IIIHH42s6x")
_U32 = struct.Struct("=I")
_READY = 1
_NO_MAC = bytes(6)
_FIXED = nl.NUD_PERMANENT | nl.NUD_NOARP
"""Neighbours that the operator entered: neither kept fresh nor removed by us."""


@dataclasses.dataclass(frozen=True, slots=True)
class LinkCounters:
    """What went over one virtual link since its shortbridge was made; bytes as on the wire, EGRE included."""

    tx_packets: int = 0
    tx_bytes: int = 0
    rx_packets: int = 0
    rx_bytes: int = 0
    drops: Mapping[int, int] = dataclasses.field(default_factory=dict)
    """by :class:`Drop`, only reasons that happened"""
    last_rx_ns: int = 0
    """when the peer was last heard, as :func:`time.monotonic_ns` (a few ms coarse); 0: never"""


# --------------------------------------------------------------------------------------------- bytes of the map entries


def rx_key(tunnel: EgreTunnel) -> bytes:
    """``struct trellis_rx_key``."""
    return struct.pack("!I", tunnel.gre_key) + socket.inet_aton(tunnel.remote) + socket.inet_aton(tunnel.local)


def outer_header(local: str, remote: str, key: int, local_mac: bytes, next_hop_mac: bytes) -> bytes:
    """The 42 bytes in front of the inner frame, total length and checksum still 0 (RFC 791, RFC 2784, RFC 2890)."""
    ethernet = next_hop_mac + local_mac + b"\x08\x00"
    addresses = socket.inet_aton(local) + socket.inet_aton(remote)
    ip = struct.pack("!BBHHHBBH", 0x45, 0, 0, 0, DONT_FRAGMENT, TTL, socket.IPPROTO_GRE, 0) + addresses
    return ethernet + ip + struct.pack("!HHI", GRE_FLAGS, GRE_PROTO, key)


def header_sum(header: bytes) -> int:
    """Ones' complement sum of the IPv4 header within, in this machine's byte order, folded, not inverted (RFC 1071)."""
    total = sum(struct.unpack("=10H", header[14:34]))
    while total > 0xFFFF:
        total = (total & 0xFFFF) + (total >> 16)
    return total


def parse_tunnel_ident(ident: str) -> tuple[str, str, int]:
    """``local>remote/key`` → its parts. :raises SubstrateError: not such an ident"""
    local, _, rest = ident.partition(">")
    remote, _, key = rest.partition("/")
    try:
        return str(ipaddress.IPv4Address(local)), str(ipaddress.IPv4Address(remote)), int(key)
    except ValueError as err:
        raise SubstrateError(f"EGRE tunnel {ident}", "parse", detail="not local>remote/key") from err


def mac_bytes(text: str) -> bytes:
    """``02:…`` → six bytes."""
    return bytes.fromhex(text.replace(":", ""))


@dataclasses.dataclass(frozen=True, slots=True)
class _Tx:
    """``struct trellis_tx``, understood."""

    underlay: int
    minor: int
    local: str
    remote: str
    key: int
    local_mac: bytes
    next_hop_mac: bytes

    def pack(self) -> bytes:
        header = outer_header(self.local, self.remote, self.key, self.local_mac, self.next_hop_mac)
        ready = _READY if self.next_hop_mac != _NO_MAC and self.local_mac != _NO_MAC else 0
        classid = HTB_MAJOR | self.minor if self.minor else 0
        return _TX_VALUE.pack(self.underlay, classid, ready, header_sum(header), 0, header)

    @classmethod
    def unpack(cls, value: bytes) -> _Tx:
        underlay, classid, _flags, _sum, _pad, header = _TX_VALUE.unpack(value)
        return cls(
            underlay=underlay,
            minor=classid & 0xFFFF,
            local=socket.inet_ntoa(header[26:30]),
            remote=socket.inet_ntoa(header[30:34]),
            key=int.from_bytes(header[38:42], "big"),
            local_mac=header[6:12],
            next_hop_mac=header[0:6],
        )

    @property
    def ident(self) -> str:
        return f"{self.local}>{self.remote}/{self.key}"

    @property
    def rx_key(self) -> bytes:
        return struct.pack("!I", self.key) + socket.inet_aton(self.remote) + socket.inet_aton(self.local)


def _tunnel_of(key: bytes, device: str) -> EgreTunnel:
    return EgreTunnel(
        device=device,
        local=socket.inet_ntoa(key[8:12]),
        remote=socket.inet_ntoa(key[4:8]),
        gre_key=int.from_bytes(key[:4], "big"),
    )


# ------------------------------------------------------------------------------------------------------- what is shared


class Egre:
    """One node's EGRE: the three drivers and what they share. Lives in the netns of the process that makes it.

    :param mac_of: root end's name → the sliver's own MAC address (its Veth's), None when not known
    """

    def __init__(
        self,
        settings: Settings,
        netlink: nl.Netlink,
        mac_of: Callable[[str], str | None],
        objects: pathlib.Path = bpf.OBJECTS,
    ) -> None:
        self.netlink = netlink
        self.mac_of = mac_of
        self.file = objects / "egre.bpf.o"
        # A dot in the name of a bpffs entry is refused by the kernel.
        self.directory = settings.bpffs / names.bpf_directory(settings.instance).replace(".", "_")
        self.lock = threading.RLock()
        self._maps: dict[str, bpf.Map] = {}
        self._managed: set[tuple[int, str]] = set()
        self.underlay = UnderlayDriver(self)
        self.tunnel = EgreTunnelDriver(self)
        self.shortbridge = ShortbridgeDriver(self)

    @property
    def drivers(self) -> tuple[UnderlayDriver, EgreTunnelDriver, ShortbridgeDriver]:
        """In order of dependence."""
        return (self.underlay, self.tunnel, self.shortbridge)

    # -- pins ----------------------------------------------------------------------------------------------------------

    def maps(self) -> dict[str, bpf.Map] | None:
        """The pinned maps by name; None while the underlay is not set up."""
        folder = self.directory / "map"
        if not (folder / MAPS[-1]).exists():
            self._maps = {}
            return None
        if not self._maps:
            self._maps = {name: bpf.Map.pinned(folder / name) for name in MAPS}
        return self._maps

    def need_maps(self, what: str) -> dict[str, bpf.Map]:
        """Like :meth:`maps`. :raises SubstrateError: not set up"""
        maps = self.maps()
        if maps is None:
            raise SubstrateError(what, "create", detail="the EGRE terminator is not set up")
        return maps

    def builds(self) -> list[str]:
        """Content hashes of the builds whose programs are pinned; one, or two while an upgrade goes on."""
        with contextlib.suppress(FileNotFoundError):
            return sorted(p.name for p in (self.directory / "prog").iterdir() if "_" not in p.name)
        return []

    def program(self, name: str, build: str | None = None) -> bpf.Program:
        """A pinned program of the build in force. :raises FileNotFoundError:"""
        return bpf.Program.pinned(self.directory / "prog" / (build or bpf.content_hash(self.file)) / name)

    def program_ids(self, name: str) -> set[int]:
        """Ids of that program in all builds that are pinned."""
        found = set()
        for build in self.builds():
            with contextlib.suppress(FileNotFoundError):
                found.add(self.program(name, build).id)
        return found

    # -- views ---------------------------------------------------------------------------------------------------------

    def locals(self) -> dict[str, int]:
        """Our underlay addresses → ifindex of their device."""
        maps = self.maps()
        if maps is None:
            return {}
        return {socket.inet_ntoa(k): _U32.unpack(v)[0] for k, v in maps[LOCAL].items()}

    def transmit(self) -> dict[int, _Tx]:
        """All shortbridges: root end's ifindex → its transmit entry."""
        maps = self.maps()
        if maps is None:
            return {}
        return {_U32.unpack(k)[0]: _Tx.unpack(v) for k, v in maps[TX].items()}

    def names(self) -> dict[int, str]:
        """Ifindex → device name, now."""
        return {link.ifindex: link.ifname for link in self.netlink.links()}

    def attach_encap(self, ifindexes: Sequence[int]) -> None:
        """Afterwards the encap program of the build in force filters what comes from these root ends; swapped in place.

        clsact, not tcx: a tcx attach waits 8-20 ms with the rtnl lock held, each.
        """
        if not ifindexes:
            return
        program = self.program(ENCAP)
        messages = [nl.clsact(i) for i in ifindexes]
        messages += [
            nl.bpf_filter(i, "ingress", program.fd, ENCAP, FILTER_PRIO, FILTER_HANDLE) for i in ifindexes
        ]
        self.netlink.batch(messages)

    # -- neighbours ----------------------------------------------------------------------------------------------------

    def next_hop(self, remote: str, device: int) -> str | None:
        """Who takes packets for ``remote`` on that device: a gateway, or itself. None: no route by that device."""
        try:
            route = self.netlink.route_get(remote)
        except SubstrateError:
            return None
        if route.ifindex != device:
            return None
        return route.gateway or remote

    def refresh_neighbours(self) -> int:
        """Afterwards every shortbridge sends to its next hop's present MAC address; returns how many entries changed.

        Also puts back managed neighbours that a link flap took away, follows routes and a change of the underlay's own
        address, and forgets root ends that are gone. Cheap; call it on every neighbour or link event.
        """
        with self.lock:
            maps = self.maps()
            if maps is None:
                return 0
            self.forget_gone()
            entries = self.transmit()
            pairs = {(key[4:8], key[8:12]) for key, _ in maps[RX].items()}
            self.keep_neighbours((socket.inet_ntoa(remote), socket.inet_ntoa(local)) for remote, local in pairs)
            changed = 0
            for ifindex, new in self.addressed(entries).items():
                if new != entries[ifindex]:
                    with contextlib.suppress(FileNotFoundError):  # gone meanwhile
                        maps[TX].update(_U32.pack(ifindex), new.pack(), bpf.EXIST)
                        changed += 1
            return changed

    def addressed(self, entries: Mapping[int, _Tx]) -> dict[int, _Tx]:
        """The entries with present devices and MAC addresses; all zero where not known."""
        locals_ = self.locals()
        hops = self.keep_neighbours((tx.remote, tx.local) for tx in entries.values())
        own: dict[int, bytes] = {}
        for device in set(locals_.values()):
            link = self.netlink.link_by_index(device)
            if link is not None:
                own[device] = mac_bytes(link.mac)
        return {
            ifindex: dataclasses.replace(
                tx,
                underlay=locals_.get(tx.local, tx.underlay),
                local_mac=own.get(locals_.get(tx.local, 0), _NO_MAC),
                next_hop_mac=hops.get((tx.remote, tx.local), _NO_MAC),
            )
            for ifindex, tx in entries.items()
        }

    def keep_neighbours(self, wanted: Iterable[tuple[str, str]]) -> dict[tuple[str, str], bytes]:
        """(remote, local) → MAC address of the next hop where it is known; the kernel keeps all of them fresh."""
        locals_ = self.locals()
        by_device: dict[int, dict[str, list[tuple[str, str]]]] = {}
        for remote, local in set(wanted):
            device = locals_.get(local)
            hop = self.next_hop(remote, device) if device is not None else None
            if device is not None and hop is not None:
                by_device.setdefault(device, {}).setdefault(hop, []).append((remote, local))
        found: dict[tuple[str, str], bytes] = {}
        for device, hops in by_device.items():
            known = {n.ip: n for n in self.netlink.neighbours(device)}
            for hop, pairs in hops.items():
                entry = known.get(hop)
                fixed = entry is not None and entry.state & _FIXED
                if not fixed and (entry is None or (device, hop) not in self._managed):
                    self._manage(device, hop)
                if entry is not None and entry.mac:
                    found.update((pair, mac_bytes(entry.mac)) for pair in pairs)
        return found

    def _manage(self, device: int, hop: str) -> None:
        """Have the kernel keep this neighbour fresh; a device that is down may refuse, and is asked again later."""
        try:
            self.netlink.neigh_managed(device, hop)
            self._managed.add((device, hop))
        except SubstrateError as err:
            log.debug("neighbour not kept", extra={"error": str(err)})

    def let_neighbour_go(self, device: int, hop: str) -> None:
        """The kernel need not keep it any more."""
        self._managed.discard((device, hop))
        with contextlib.suppress(SubstrateError):
            if not any(n.ip == hop and n.state & _FIXED for n in self.netlink.neighbours(device)):
                self.netlink.neigh_del(device, hop)

    def forget_gone(self) -> None:
        """Take away what belongs to root ends that are gone: their number may come back on somebody else's device."""
        maps = self.maps()
        if maps is None:
            return
        there = self.names()
        for key, _ in maps[TX].items():
            if _U32.unpack(key)[0] not in there:
                maps[TX].delete(key)
        for key, value in maps[RX].items():
            ifindex = _RX_VALUE.unpack(value)[0]
            if ifindex and ifindex not in there:
                maps[RX].update(key, _RX_VALUE.pack(0, _NO_MAC, 0))
        for key, _ in maps[STATS].items():
            if _U32.unpack(key)[0] not in there:
                maps[STATS].delete(key)

    # -- counters ------------------------------------------------------------------------------------------------------

    def counters(self) -> dict[str, LinkCounters]:
        """Per root end's name."""
        with self.lock:
            maps = self.maps()
            if maps is None:
                return {}
            there = self.names()
            result = {}
            for key, value in maps[STATS].items():
                ifname = there.get(_U32.unpack(key)[0])
                if ifname is None:
                    continue
                rows = [_COUNTERS.unpack(v) for v in maps[STATS].cpus(value)]
                sums = [sum(column) for column in zip(*rows, strict=True)]
                drops: dict[int, int] = {Drop(i): n for i, n in enumerate(sums[5:]) if n}
                last = max(row[4] for row in rows)
                result[ifname] = LinkCounters(sums[0], sums[1], sums[2], sums[3], drops, last)
            return result

    def drops(self) -> dict[int, int]:
        """Everything the node dropped since its maps were made, by :class:`Drop`; zeros too."""
        with self.lock:
            maps = self.maps()
            if maps is None:
                return {}
            result: dict[int, int] = {}
            for reason in Drop:
                value = maps[DROPS].get(_U32.pack(reason)) or b""
                result[reason] = sum(struct.unpack("=Q", v)[0] for v in maps[DROPS].cpus(value))
            return result


# -------------------------------------------------------------------------------------------------------------- drivers


class UnderlayDriver:
    """:class:`Underlay`: programs and maps pinned, strip and deliver attached to the device."""

    kind = Underlay.kind

    def __init__(self, egre: Egre) -> None:
        self._egre = egre

    def read(self) -> list[Underlay]:
        """One that is not complete, or of an older build, is read with an empty address, so that it is put right."""
        egre = self._egre
        with egre.lock:
            there = egre.names()
            current = egre.builds() == [bpf.content_hash(egre.file)]
            return [
                Underlay(there[ifindex], address if current and self._attached(ifindex) else "")
                for address, ifindex in egre.locals().items()
                if ifindex in there
            ]

    def _attached(self, ifindex: int) -> bool:
        egre = self._egre
        for role, name in (("strip", STRIP), ("deliver", DELIVER)):
            try:
                program, device = bpf.Link.pinned(self._pin(ifindex, role)).look()
            except FileNotFoundError:
                if role == "strip":
                    return False
                if not any(f.prog_id in egre.program_ids(DELIVER) for f in egre.netlink.filters(ifindex, "ingress")):
                    return False
                continue
            names_ = (STRIP, JUMBO) if role == "strip" else (name,)
            if device != ifindex or not any(program in egre.program_ids(n) for n in names_):
                return False
        return True

    def _pin(self, ifindex: int, role: str) -> pathlib.Path:
        return self._egre.directory / "link" / f"{ifindex}_{role}"

    def ensure(self, wanted: Sequence[Underlay], actual: Mapping[Key, Any]) -> None:
        """Load, pin, attach; an older build is replaced between two frames."""
        egre = self._egre
        with egre.lock:
            for underlay in wanted:
                if underlay.address:
                    self._ensure(underlay)

    def _ensure(self, underlay: Underlay) -> None:
        egre = self._egre
        link = egre.netlink.link(underlay.device)
        if link is None:
            raise SubstrateError(underlay.title, "create", errno.ENODEV)
        if link.xdp_prog_id and link.xdp_prog_id not in egre.program_ids(STRIP) | egre.program_ids(JUMBO):
            raise NotOurs(f"{underlay.device} has an XDP program that is not ours")
        bpf.ensure_bpffs(egre.directory)
        self._load(underlay)
        native = self._attach(link.ifindex, underlay.device)
        maps = egre.need_maps(underlay.title)
        maps[LOCAL].update(socket.inet_aton(underlay.address), _U32.pack(link.ifindex))
        there = egre.names()
        for address, ifindex in egre.locals().items():
            if address != underlay.address and (ifindex == link.ifindex or ifindex not in there):
                maps[LOCAL].delete(socket.inet_aton(address))
        # A generic XDP program runs after GRO, which would have joined outer frames; a native one before it.
        egre.netlink.set_gro(underlay.device, native)
        for family in ("iptables", "ip6tables", "arptables"):
            with contextlib.suppress(SubstrateError):  # br_netfilter is not there
                nl.write_sysctl(f"net.bridge.bridge-nf-call-{family}", "0")
        egre.attach_encap([i for i in egre.transmit() if i in there])
        for build in egre.builds():
            if build != bpf.content_hash(egre.file):
                bpf.remove_tree(egre.directory / "prog" / build)
        egre.refresh_neighbours()

    def _load(self, underlay: Underlay) -> None:
        """Programs of the present build and the maps are pinned; maps only once the programs are accepted."""
        egre = self._egre
        build = bpf.content_hash(egre.file)
        home = egre.directory / "prog" / build
        if home.is_dir() and egre.maps() is not None:
            return
        old = egre.maps() or {}
        try:
            loaded = bpf.load(egre.file, old)
        except bpf.OtherLayout:
            loaded = bpf.load(egre.file)
            log.warning("BPF maps have another layout now; all links are made anew", extra={"device": underlay.device})
            self._remove_all()
            bpf.ensure_bpffs(egre.directory)
            old = {}
        if not old:
            folder = egre.directory / "map"
            bpf.remove_tree(folder)
            folder.mkdir()
            for name in MAPS:
                loaded.maps[name].pin(folder / name)
        half = home.with_name(f"{build}_new")
        bpf.remove_tree(half)
        bpf.remove_tree(home)
        half.mkdir(parents=True)
        for name in PROGRAMS:
            loaded.programs[name].pin(half / name)
        half.rename(home)

    def _attach(self, ifindex: int, ifname: str) -> bool:
        """Deliver first: what strip has stripped must not reach the node's own stack."""
        egre = self._egre
        (egre.directory / "link").mkdir(exist_ok=True)
        deliver = egre.program(DELIVER)
        if not self._swap(ifindex, "deliver", (DELIVER,)):
            link = bpf.attach_tcx(deliver, ifindex, ifname)
            if link is not None:
                link.pin(self._pin(ifindex, "deliver"))
            else:
                place = nl.bpf_filter(ifindex, "ingress", deliver.fd, DELIVER, FILTER_PRIO, FILTER_HANDLE)
                egre.netlink.batch([nl.clsact(ifindex), place])
        if self._swap(ifindex, "strip", (STRIP, JUMBO)):
            return not self._pin(ifindex, "generic").exists()
        native = True
        link = bpf.attach_xdp(egre.program(STRIP), ifindex, ifname)
        link = link or bpf.attach_xdp(egre.program(JUMBO), ifindex, ifname)
        if link is None:
            native = False
            link = bpf.attach_xdp(egre.program(STRIP), ifindex, ifname, native)
            log.warning("the driver cannot run XDP itself, receiving is slower", extra={"device": ifname})
        assert link is not None
        link.pin(self._pin(ifindex, "strip"))
        if not native:
            link.pin(self._pin(ifindex, "generic"))
        return native

    def _swap(self, ifindex: int, role: str, programs: Sequence[str]) -> bool:
        """The pinned link has the present build of its program; False when none is alive (a dead one is unpinned)."""
        path = self._pin(ifindex, role)
        try:
            link = bpf.Link.pinned(path)
        except FileNotFoundError:
            return False
        now, device = link.look()
        name = next((n for n in programs if now in self._egre.program_ids(n)), programs[0])
        if device != ifindex:
            path.unlink()
            return False
        program = self._egre.program(name)
        if now != program.id:
            link.update(program)
        return True

    def absent(self, objects: Sequence[Underlay]) -> None:
        """Detach; the last device takes the node's pins with it."""
        egre = self._egre
        with egre.lock:
            there = {name: index for index, name in egre.names().items()}
            for underlay in objects:
                ifindex = there.get(underlay.device)
                maps = egre.maps()
                for address, index in egre.locals().items():
                    if maps is not None and (index == ifindex or index not in there.values()):
                        maps[LOCAL].delete(socket.inet_aton(address))
                if ifindex is not None:
                    self._detach(ifindex)
            if not egre.locals():
                self._remove_all()

    def _detach(self, ifindex: int) -> None:
        """Strip goes first, see :meth:`_attach`."""
        for role in ("strip", "generic", "deliver"):
            path = self._pin(ifindex, role)
            with contextlib.suppress(FileNotFoundError):
                link = bpf.Link.pinned(path)
                if role != "generic":
                    with contextlib.suppress(OSError):
                        link.detach()
                path.unlink()
        ours = self._egre.program_ids(DELIVER)
        with contextlib.suppress(SubstrateError):
            if any(f.prog_id in ours for f in self._egre.netlink.filters(ifindex, "ingress")):
                self._egre.netlink.batch([nl.filter_del(ifindex, "ingress", FILTER_PRIO, FILTER_HANDLE)])

    def _remove_all(self) -> None:
        egre = self._egre
        with contextlib.suppress(FileNotFoundError):
            for path in sorted((egre.directory / "link").iterdir(), key=lambda p: not p.name.endswith("_strip")):
                with contextlib.suppress(OSError):
                    bpf.Link.pinned(path).detach()
                path.unlink(missing_ok=True)
        egre._maps = {}
        bpf.remove_tree(egre.directory)
        with contextlib.suppress(OSError):  # other nodes of a lab
            egre.directory.parent.rmdir()


class EgreTunnelDriver:
    """:class:`EgreTunnel`: a receive entry, no link behind it until a shortbridge comes; a managed neighbour."""

    kind = EgreTunnel.kind

    def __init__(self, egre: Egre) -> None:
        self._egre = egre

    def read(self) -> list[EgreTunnel]:
        """From the receive map."""
        egre = self._egre
        with egre.lock:
            maps = egre.maps()
            if maps is None:
                return []
            there = egre.names()
            devices = {socket.inet_aton(a): there[i] for a, i in egre.locals().items() if i in there}
            return [_tunnel_of(key, devices[key[8:12]]) for key, _ in maps[RX].items() if key[8:12] in devices]

    def ensure(self, wanted: Sequence[EgreTunnel], actual: Mapping[Key, Any]) -> None:
        """Reserve the receive entries; what a shortbridge already filled in stays."""
        egre = self._egre
        with egre.lock:
            locals_ = egre.locals()
            for tunnel in wanted:
                maps = egre.need_maps(tunnel.title)
                if tunnel.local not in locals_:
                    raise SubstrateError(tunnel.title, "create", detail=f"{tunnel.local} has no EGRE terminator")
                with contextlib.suppress(FileExistsError):
                    maps[RX].update(rx_key(tunnel), _RX_VALUE.pack(0, _NO_MAC, 0), bpf.NOEXIST)
            egre.keep_neighbours((tunnel.remote, tunnel.local) for tunnel in wanted)

    def absent(self, objects: Sequence[EgreTunnel]) -> None:
        """Frames for it are unknown from now on; a neighbour that no tunnel needs is let go."""
        egre = self._egre
        with egre.lock:
            maps = egre.maps()
            if maps is None:
                return
            before = self._hops_in_use(maps)
            for tunnel in objects:
                maps[RX].delete(rx_key(tunnel))
            for device, hop in before - self._hops_in_use(maps):
                egre.let_neighbour_go(device, hop)

    def _hops_in_use(self, maps: Mapping[str, bpf.Map]) -> set[tuple[int, str]]:
        locals_ = self._egre.locals()
        used = set()
        for remote, local in {(key[4:8], key[8:12]) for key, _ in maps[RX].items()}:
            device = locals_.get(socket.inet_ntoa(local))
            hop = self._egre.next_hop(socket.inet_ntoa(remote), device) if device is not None else None
            if device is not None and hop is not None:
                used.add((device, hop))
        return used


class ShortbridgeDriver:
    """:class:`Shortbridge`: a transmit entry, the link part of the receive entry, the encap filter on the root end."""

    kind = Shortbridge.kind

    def __init__(self, egre: Egre) -> None:
        self._egre = egre

    def read(self) -> list[Shortbridge]:
        """Only whole ones: both map entries agree, the sliver's address is right, the filter is ours."""
        egre = self._egre
        with egre.lock:
            maps = egre.maps()
            if maps is None:
                return []
            there = egre.names()
            receive = dict(maps[RX].items())
            ours = egre.program_ids(ENCAP)
            entries = {i: tx for i, tx in egre.transmit().items() if i in there and tx.underlay in there}
            filters = self._filters(list(entries))
            result = []
            for ifindex, tx in entries.items():
                ifname = there[ifindex]
                ready, mac, _ = _RX_VALUE.unpack(receive.get(tx.rx_key, bytes(_RX_VALUE.size)))
                known = egre.mac_of(ifname)
                if ready != ifindex or (known and mac_bytes(known) != mac) or filters.get(ifindex) not in ours:
                    continue
                result.append(Shortbridge(ifname, tx.ident, tx.minor, there[tx.underlay]))
            return result

    def _filters(self, ifindexes: Sequence[int]) -> dict[int, int]:
        """Root end's ifindex → id of the program that filters it."""
        found = {}
        for ifindex in ifindexes:
            for item in self._egre.netlink.filters(ifindex, "ingress"):
                found[ifindex] = item.prog_id
        return found

    def ensure(self, wanted: Sequence[Shortbridge], actual: Mapping[Key, Any]) -> None:
        """A change of class, key or remote is one map update: no frame is lost."""
        if not wanted:
            return
        egre = self._egre
        with egre.lock:
            maps = egre.need_maps(wanted[0].title)
            egre.forget_gone()
            locals_ = egre.locals()
            present = {name: index for index, name in egre.names().items()}
            entries: dict[int, _Tx] = {}
            macs: dict[int, bytes] = {}
            for bridge in wanted:
                local, remote, key = parse_tunnel_ident(bridge.tunnel)
                ifindex, mac = present.get(bridge.ifname), egre.mac_of(bridge.ifname)
                if ifindex is None:
                    raise SubstrateError(bridge.title, "create", errno.ENODEV)
                if mac is None:
                    raise SubstrateError(bridge.title, "create", detail="the sliver's MAC address is not known")
                if local not in locals_:
                    raise SubstrateError(bridge.title, "create", detail=f"{local} has no EGRE terminator")
                entries[ifindex] = _Tx(locals_[local], bridge.minor, local, remote, key, _NO_MAC, _NO_MAC)
                macs[ifindex] = mac_bytes(mac)
            entries = egre.addressed(entries)
            before = dict(maps[TX].items())
            for ifindex in entries:
                if _U32.pack(ifindex) not in before:  # a new device: its number may have had a former owner
                    maps[STATS].update(_U32.pack(ifindex), b"")
            maps[RX].update_many([(tx.rx_key, _RX_VALUE.pack(i, macs[i], 0)) for i, tx in entries.items()])
            maps[TX].update_many([(_U32.pack(i), tx.pack()) for i, tx in entries.items()])
            for rx, value in maps[RX].items():  # other tunnels that led here no longer do
                ifindex = _RX_VALUE.unpack(value)[0]
                if ifindex in entries and entries[ifindex].rx_key != rx:
                    maps[RX].update(rx, _RX_VALUE.pack(0, _NO_MAC, 0), bpf.EXIST)
            egre.attach_encap(list(entries))

    def absent(self, objects: Sequence[Shortbridge]) -> None:
        """The sliver's frames end at its root end, the tunnel's at the underlay."""
        egre = self._egre
        failures: list[TrellisError] = []
        with egre.lock:
            maps = egre.maps()
            present = egre.netlink.links_named([bridge.ifname for bridge in objects])
            for bridge in objects:
                link = present.get(bridge.ifname)
                if link is None or maps is None:
                    continue
                ifindex = link.ifindex
                value = maps[TX].get(_U32.pack(ifindex))
                if value is not None:
                    key = _Tx.unpack(value).rx_key
                    entry = maps[RX].get(key)
                    if entry is not None and _RX_VALUE.unpack(entry)[0] == ifindex:
                        maps[RX].update(key, _RX_VALUE.pack(0, _NO_MAC, 0))
                    maps[TX].delete(_U32.pack(ifindex))
                maps[STATS].delete(_U32.pack(ifindex))
                if link.up:  # a filter without an entry drops all: better than the sliver in the node's own stack
                    continue
                try:
                    egre.netlink.batch([nl.clsact_del(ifindex)])
                except SubstrateError as err:
                    failures.append(err)
            egre.forget_gone()
        if failures:
            raise failures[0]
