"""The EGRE terminator and the shortbridge, end to end, by real frames.

::

    netns sl0                netns n0                       netns n1                netns sl1
    c0 ═══════ veth ═══════ v0   u0 ═══════ veth ═══════ u0   v0 ═══════ veth ═══════ c0
    192.168.7.1            (root end)  10.9.0.1    10.9.0.2  (root end)            192.168.7.2
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import json
import os
import pathlib
import re
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import TypeVar

import pytest

from nodemanager_trellis.objects import EgreTunnel, Shortbridge, Underlay
from nodemanager_trellis.substrate import bpf, egre
from nodemanager_trellis.substrate.egre import Drop, Egre, LinkCounters
from nodemanager_trellis.substrate.netlink import Netlink
from nodemanager_trellis.substrate.netns import run_in
from nodemanager_trellis.substrate.settings import Settings

pytestmark = pytest.mark.kernel

T = TypeVar("T")
KEY = 0x00012345
MTU = 1458
ADDRESS = ("10.9.0.1", "10.9.0.2")
INNER = ("192.168.7.1", "192.168.7.2")
TUNNEL = (
    EgreTunnel("u0", ADDRESS[0], ADDRESS[1], KEY),
    EgreTunnel("u0", ADDRESS[1], ADDRESS[0], KEY),
)


def sh(*words: str, check: bool = True) -> str:
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if check and done.returncode:
        raise AssertionError(f"{' '.join(words)}: {done.stdout}{done.stderr}")
    return done.stdout


def until(fact: Callable[[], T], seconds: float = 10) -> T:
    """The first true value of ``fact``; polled."""
    deadline = time.monotonic() + seconds
    while True:
        value = fact()
        if value or time.monotonic() > deadline:
            assert value
            return value
        time.sleep(0.005)


@dataclasses.dataclass
class Node:
    """A substrate node: its netns, its drivers."""

    name: str
    path: str
    settings: Settings
    egre: Egre = dataclasses.field(init=False)

    def __post_init__(self) -> None:
        self.macs: dict[str, str] = {}
        self.egre = self.run(self.fresh)

    def fresh(self) -> Egre:
        """Drivers of a manager that has just begun."""
        return Egre(self.settings, Netlink(self.settings.link_group), self.macs.get)

    def run(self, function: Callable[[], T]) -> T:
        return run_in(self.path, function)

    def sh(self, *words: str, check: bool = True) -> str:
        return sh("nsenter", f"--net={self.path}", *words, check=check)

    def ensure(self, *objects: object) -> None:
        def work() -> None:
            for driver in self.egre.drivers:
                driver.ensure([o for o in objects if o.kind == driver.kind], {})  # type: ignore[attr-defined]

        self.run(work)

    def read(self) -> list[object]:
        return self.run(lambda: [o for driver in self.egre.drivers for o in driver.read()])

    def counters(self, ifname: str = "v0") -> LinkCounters:
        return self.run(self.egre.counters)[ifname]

    def drops(self) -> dict[int, int]:
        return self.run(self.egre.drops)

    def refresh(self) -> int:
        return self.run(self.egre.refresh_neighbours)

    def ready(self) -> bool:
        """Both ends know their next hop."""
        self.refresh()
        return all(tx.next_hop_mac != bytes(6) for tx in self.run(self.egre.transmit).values())


class Lab:
    """Two nodes, two slivers; more slivers on demand. Everything bears the test's pid."""

    def __init__(self) -> None:
        self.stamp = f"te{os.getpid()}"
        self.spaces: list[str] = []
        bpf.ensure_bpffs(pathlib.Path("/sys/fs/bpf"))
        self.bpffs = pathlib.Path("/sys/fs/bpf") / self.stamp
        bpf.ensure_bpffs(self.bpffs)
        self.slivers = [self.space("sl0"), self.space("sl1")]
        paths = [self.space("n0"), self.space("n1")]
        sh("ip", "link", "add", "u0", "netns", self.spaces[2], "type", "veth", "peer", "name", "u0",
           "netns", self.spaces[3])  # fmt: skip
        self.nodes = []
        for i, path in enumerate(paths):
            at = ("nsenter", f"--net={path}")
            sh(*at, "ip", "addr", "add", f"{ADDRESS[i]}/24", "dev", "u0")
            sh(*at, "ip", "link", "set", "u0", "up")
            run = pathlib.Path("/run") / self.stamp
            self.nodes.append(Node(f"n{i}", path, Settings(f"{self.stamp}n{i}", run, run, self.bpffs)))
        for i in range(2):
            self.veth(self.slivers[i], "c0", self.nodes[i], "v0", f"{INNER[i]}/24")

    def space(self, name: str) -> str:
        name = f"{self.stamp}{name}"
        sh("ip", "netns", "add", name)
        self.spaces.append(name)
        path = f"/run/netns/{name}"
        at = ("nsenter", f"--net={path}")
        sh(*at, "ip", "link", "set", "lo", "up")
        sh(*at, "sysctl", "-qw", "net.ipv4.conf.all.rp_filter=0", "net.ipv4.conf.default.rp_filter=0",
           "net.ipv6.conf.default.accept_dad=0", "net.ipv6.conf.default.router_solicitations=0")  # fmt: skip
        return path

    def veth(self, sliver: str, inner: str, node: Node, root: str, address: str, mtu: int = MTU) -> None:
        sh("ip", "link", "add", root, "netns", node.path.rpartition("/")[2], "mtu", str(mtu), "type", "veth", "peer",
           "name", inner, "netns", sliver.rpartition("/")[2], "mtu", str(mtu))  # fmt: skip
        node.sh("ip", "link", "set", root, "addrgenmode", "none")
        node.sh("ip", "link", "set", root, "up")
        self.inside(sliver, "ip", "addr", "add", address, "dev", inner)
        self.inside(sliver, "ip", "link", "set", inner, "up")
        node.macs[root] = json.loads(self.inside(sliver, "ip", "-j", "link", "show", inner))[0]["address"]

    def inside(self, sliver: str, *words: str, check: bool = True) -> str:
        return sh("nsenter", f"--net={sliver}", *words, check=check)

    def connect(self) -> None:
        for i, node in enumerate(self.nodes):
            node.ensure(
                Underlay("u0", ADDRESS[i]), TUNNEL[i], Shortbridge("v0", TUNNEL[i].key[1], device="u0")
            )
        for node in self.nodes:
            until(node.ready)

    def ping(self, *words: str, sliver: int = 0) -> int:
        """Answers."""
        out = self.inside(self.slivers[sliver], "ping", "-n", *words, check=False)
        found = re.search(r"(\d+) received", out)
        assert found, out
        return int(found[1])

    def close(self) -> None:
        for node in self.nodes:
            node.run(lambda n=node: n.egre.underlay.absent([Underlay("u0", "")]))  # type: ignore[misc]
        left = [str(p) for p in self.bpffs.rglob("*")]
        for name in self.spaces:
            sh("ip", "netns", "del", name, check=False)
        bpf.remove_tree(self.bpffs)
        assert left == []


@pytest.fixture
def lab() -> Iterator[Lab]:
    made = Lab()
    try:
        yield made
    finally:
        made.close()


@pytest.fixture
def joined(lab: Lab) -> Lab:
    lab.connect()
    return lab


@contextlib.contextmanager
def raw(path: str, ifname: str) -> Iterator[socket.socket]:
    """A packet socket inside a netns that sees every frame."""

    def make() -> socket.socket:
        sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
        sock.bind((ifname, 0))
        sock.setsockopt(263, 8, 1)  # SOL_PACKET, PACKET_AUXDATA: the VLAN tag that was taken off
        sock.settimeout(5)
        return sock

    sock = run_in(path, make)
    try:
        yield sock
    finally:
        sock.close()


def receive(sock: socket.socket, wanted: Callable[[bytes], bool]) -> bytes:
    """The first frame that ``wanted`` likes, its VLAN tag put back."""
    for _ in range(1000):
        data, ancillary, _, address = sock.recvmsg(70000, 200)
        if address[2] == 4:  # PACKET_OUTGOING
            continue
        for level, kind, value in ancillary:
            if (level, kind) == (263, 8):
                status, _, _, _, _, tci, tpid = struct.unpack("=IIIHHHH", value)
                if status & 16:  # TP_STATUS_VLAN_VALID
                    data = data[:12] + struct.pack("!HH", tpid, tci) + data[12:]
        if wanted(data):
            return data
    raise AssertionError("not seen in 1000 frames")


def test_objects_are_read_as_they_were_wanted(joined: Lab) -> None:
    node = joined.nodes[0]
    wanted = [Underlay("u0", ADDRESS[0]), TUNNEL[0], Shortbridge("v0", TUNNEL[0].key[1], 0, "u0")]

    assert wanted == node.read()
    node.egre = node.run(node.fresh)  # a manager that has just begun finds the same
    assert wanted == node.read()
    node.ensure(*wanted)
    assert wanted == node.read()


def test_ping(joined: Lab) -> None:
    assert joined.ping("-c3", "-i0.01", "-W2", INNER[1]) == 3
    counters = joined.nodes[0].counters()
    assert counters.tx_packets >= 4  # ARP too
    assert counters.rx_packets >= 4
    assert 0 <= time.monotonic_ns() - counters.last_rx_ns < 10**10


def test_ping_ipv6(joined: Lab) -> None:
    for i in range(2):
        joined.inside(joined.slivers[i], "ip", "addr", "add", f"fd00:7::{i + 1}/64", "dev", "c0", "nodad")
    assert joined.ping("-c3", "-i0.01", "-W2", "fd00:7::2") == 3


def test_largest_frame_passes_and_no_larger(joined: Lab) -> None:
    assert joined.ping("-c1", "-W2", "-M", "do", "-s1430", INNER[1]) == 1
    assert joined.ping("-c1", "-W1", "-M", "do", "-s1431", INNER[1]) == 0


# ------------------------------------------------------------------------------------------------------------- frames

MACS = {"isis": "0180c2000014", "all": "ffffffffffff", "other": "02aabbccddee"}
SOURCE = "02000000aa01"
FRAMES = {
    "llc-multicast": MACS["isis"] + SOURCE + "0026" + "fefe0383" + "1b" * 34,
    "dot1q": MACS["all"] + SOURCE + "8100" + "6064" + "88b5" + "d1" * 60,
    "qinq": MACS["all"] + SOURCE + "88a8" + "2003" + "8100" + "e064" + "88b5" + "d2" * 60,
    "dot1q-short": MACS["all"] + SOURCE + "8100" + "0001" + "88b5" + "d3" * 18,
    "mpls": MACS["all"] + SOURCE + "8847" + "00064140" + "d4" * 70,
    "short": MACS["all"] + SOURCE + "88b5" + "d5" * 18,
    "no-payload": MACS["all"] + SOURCE + "88b5",
    "not-for-the-sliver": MACS["other"] + SOURCE + "88b5" + "d6" * 64,
    "full": MACS["all"] + SOURCE + "88b5" + "d7" * MTU,
}


def padded(frame: bytes) -> bytes:
    return frame.ljust(60, b"\0")


@pytest.mark.parametrize("kind", FRAMES)
def test_every_kind_of_frame_crosses(joined: Lab, kind: str) -> None:
    frame = bytes.fromhex(FRAMES[kind])
    with raw(joined.slivers[0], "c0") as out, raw(joined.slivers[1], "c0") as into:
        out.send(frame)
        got = receive(into, lambda data: data[6:12] == frame[6:12])

    assert padded(frame) == got


def test_frame_for_another_is_not_taken_as_own(joined: Lab) -> None:
    frame = bytes.fromhex(FRAMES["not-for-the-sliver"])
    with raw(joined.slivers[0], "c0") as out, raw(joined.slivers[1], "c0") as into:
        out.send(frame)
        while True:
            data, address = into.recvfrom(2000)
            if data[6:12] == frame[6:12]:
                break

    assert address[2] == socket.PACKET_OTHERHOST


def test_three_tags_are_too_many(joined: Lab) -> None:
    with raw(joined.slivers[0], "c0") as out:
        out.send(bytes.fromhex(MACS["all"] + SOURCE + "88a80001" + "81000002" + "81000003" + "88b5" + "00" * 60))
    until(lambda: joined.nodes[0].counters().drops.get(Drop.TX_VLAN) == 1)


def test_tagged_frame_above_the_mtu_is_dropped(joined: Lab) -> None:
    """A tag is inside the tunnel: it counts, or the outer frame would not fit the underlay."""
    with raw(joined.slivers[0], "c0") as out:
        out.send(bytes.fromhex(MACS["all"] + SOURCE + "8100" + "0001" + "88b5") + bytes(MTU))
    until(lambda: joined.nodes[0].counters().drops.get(Drop.TX_MTU) == 1)


def checksum(data: bytes) -> int:
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total > 0xFFFF:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def gretap(local_mac: bytes, peer_mac: bytes, source: str, target: str, key: int, inner: bytes) -> bytes:
    """What a keyed Linux gretap puts on the wire (RFC 791, RFC 2784, RFC 2890), made by hand."""
    gre = b"\x20\x00" + b"\x65\x58" + key.to_bytes(4, "big")
    total = 20 + len(gre) + len(inner)
    ip = b"\x45\x00" + total.to_bytes(2, "big") + b"\x00\x00" + b"\x40\x00" + b"\x40\x2f"
    addresses = socket.inet_aton(source) + socket.inet_aton(target)
    ip += checksum(ip + b"\0\0" + addresses).to_bytes(2, "big") + addresses
    return peer_mac + local_mac + b"\x08\x00" + ip + gre + inner


def mac(node: Node, ifname: str) -> bytes:
    found = node.run(lambda: node.egre.netlink.link(ifname))
    assert found is not None
    return egre.mac_bytes(found.mac)


def udp(payload: bytes, target: bytes = b"\xff" * 6) -> bytes:
    datagram = struct.pack("!HHHH", 7, 7, 8 + len(payload), 0) + payload
    ip = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(datagram), 0, 0x4000, 9, 17, 0)
    addresses = socket.inet_aton(INNER[0]) + socket.inet_aton(INNER[1])
    ip = ip[:10] + checksum(ip + addresses).to_bytes(2, "big") + addresses
    return target + bytes.fromhex(SOURCE) + b"\x08\x00" + ip + datagram


@pytest.mark.parametrize("kind", [*FRAMES, "ipv4"])
def test_wire_bytes_are_those_of_gretap(joined: Lab, kind: str) -> None:
    frame = udp(b"u" * 100) if kind == "ipv4" else bytes.fromhex(FRAMES[kind])
    node, peer = joined.nodes
    wanted = gretap(mac(node, "u0"), mac(peer, "u0"), *ADDRESS, KEY, padded(frame))
    with raw(joined.slivers[0], "c0") as out, raw(node.path, "u0") as wire:
        out.send(frame)
        while True:
            got, address = wire.recvfrom(2000)
            if address[2] == socket.PACKET_OUTGOING and got[42 + 6 : 42 + 12] == frame[6:12]:
                break

    assert wanted == got


def test_frame_of_a_gretap_is_taken(joined: Lab) -> None:
    """Made by hand, not padded, as another implementation would send it; the underlay's own padding is taken off."""
    node, peer = joined.nodes
    for inner in (bytes.fromhex(FRAMES["short"]), bytes.fromhex(FRAMES["no-payload"])):
        frame = gretap(mac(node, "u0"), mac(peer, "u0"), *ADDRESS, KEY, inner)
        with raw(node.path, "u0") as wire, raw(joined.slivers[1], "c0") as into:
            wire.send(frame.ljust(60, b"\xee"))
            got = receive(into, lambda data: data[6:12] == bytes.fromhex(SOURCE))
        assert inner == got


# ---------------------------------------------------------------------------------------------------------- isolation


def test_priority_from_inside_is_overwritten(joined: Lab) -> None:
    node = joined.nodes[0]
    tc = ("tc", "qdisc", "add", "dev", "u0", "root", "handle", "1:", "htb", "default", "30")
    node.sh(*tc)
    for minor in ("10", "20", "30"):
        node.sh("tc", "class", "add", "dev", "u0", "parent", "1:", "classid", f"1:{minor}", "htb", "rate", "1gbit")

    def packets(minor: int) -> int:
        classes = node.run(lambda: node.egre.netlink.classes(until(lambda: index)))
        return next(c.packets for c in classes if c.minor == minor)

    index = node.run(lambda: socket.if_nametoindex("u0"))
    sock = run_in(joined.slivers[0], lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_PRIORITY, 0x10020)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, 7)
    for minor, counted in ((0x10, 0x10), (0, 0x30)):
        node.ensure(Shortbridge("v0", TUNNEL[0].key[1], minor, "u0"))
        before = packets(counted), packets(0x20)
        for _ in range(50):
            sock.sendto(b"x", (INNER[1], 9))
        until(lambda counted=counted, before=before: packets(counted) >= before[0] + 50)  # type: ignore[misc]
        assert before[1] == packets(0x20)
    sock.close()


@pytest.mark.parametrize("wrong", ["key", "source"])
def test_unknown_key_or_source_is_counted_and_dropped(joined: Lab, wrong: str) -> None:
    node, peer = joined.nodes
    source = "10.9.0.77" if wrong == "source" else ADDRESS[0]
    key = KEY + 1 if wrong == "key" else KEY
    frame = gretap(mac(node, "u0"), mac(peer, "u0"), source, ADDRESS[1], key, bytes.fromhex(FRAMES["mpls"]))
    before = peer.drops()[Drop.RX_UNKNOWN]
    right = bytes.fromhex(FRAMES["llc-multicast"])
    with raw(node.path, "u0") as wire, raw(joined.slivers[1], "c0") as into:
        for _ in range(20):
            wire.send(frame)
        until(lambda: peer.drops()[Drop.RX_UNKNOWN] == before + 20)
        wire.send(gretap(mac(node, "u0"), mac(peer, "u0"), *ADDRESS, KEY, padded(right)))
        first = receive(into, lambda data: data[6:12] == bytes.fromhex(SOURCE))
    assert padded(right) == first


def test_tunnel_without_shortbridge_takes_nothing(joined: Lab) -> None:
    peer = joined.nodes[1]
    peer.run(lambda: peer.egre.shortbridge.absent([Shortbridge("v0", TUNNEL[1].key[1], 0, "u0")]))
    assert [Underlay("u0", ADDRESS[1]), TUNNEL[1]] == peer.read()
    assert joined.ping("-c3", "-i0.01", "-W1", INNER[1]) == 0
    until(lambda: peer.drops()[Drop.RX_NO_LINK] >= 1)
    joined.ping("-c1", "-W1", INNER[0], sliver=1)
    until(lambda: peer.drops()[Drop.TX_NO_LINK] >= 1)


def tcp(joined: Lab, source: str, target: str, address: str, size: int, seconds: float = 20) -> int:
    """Bytes that arrived, each checked; sent from one sliver to another."""
    import threading

    server = run_in(target, lambda: socket.create_server((address, 5001)))
    client = run_in(source, socket.socket)
    server.settimeout(seconds)
    client.settimeout(seconds)
    pattern = bytes(range(256)) * 256
    arrived = [0]

    def take() -> None:
        with contextlib.suppress(OSError):
            conn, _ = server.accept()
            conn.settimeout(seconds)
            with conn:
                while data := conn.recv(1 << 20):
                    start = arrived[0] % 256
                    wanted = (pattern * (len(data) // len(pattern) + 2))[start : start + len(data)]
                    if data != wanted:
                        arrived[0] = -1
                        return
                    arrived[0] += len(data)

    thread = threading.Thread(target=take)
    thread.start()
    with contextlib.suppress(OSError), client:
        client.connect((address, 5001))
        for _ in range(size // len(pattern)):
            client.sendall(pattern)
    thread.join()
    server.close()
    return arrived[0]


def test_tcp_between_slivers(joined: Lab) -> None:
    size = 32 << 20
    assert size == tcp(joined, joined.slivers[0], joined.slivers[1], INNER[1], size)
    counters = joined.nodes[0].counters()
    assert counters.tx_bytes > size
    assert counters.drops == {}


def test_raised_mtu_stays_bounded_on_the_wire(joined: Lab) -> None:
    for sliver in joined.slivers:
        joined.inside(sliver, "ip", "link", "set", "c0", "mtu", "1500")
    assert joined.ping("-c1", "-W1", "-M", "do", "-s1472", INNER[1]) == 0
    node = joined.nodes[0]
    with raw(node.path, "u0") as wire:
        wire.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 22)
        arrived = tcp(joined, joined.slivers[0], joined.slivers[1], INNER[1], 4 << 20, seconds=2)
        wire.settimeout(0.1)
        longest = 0
        with contextlib.suppress(TimeoutError):
            while True:
                longest = max(longest, len(wire.recv(70000)))

    assert arrived >= 0
    assert longest <= 1514
    assert node.counters().drops[Drop.TX_MTU] > 0


def aggregate(segment: int, count: int, tag: bytes) -> bytes:
    """A TCP aggregate that the kernel will cut into ``count`` segments, behind a struct virtio_net_hdr."""
    payload = bytes(segment * count)
    port = struct.pack("!HHIIBBHHH", 7, 7, 1, 0, 5 << 4, 0x10, 1000, 0, 0)
    addresses = socket.inet_aton(INNER[0]) + socket.inet_aton(INNER[1])
    pseudo = addresses + struct.pack("!BBH", 0, 6, len(port) + len(payload))
    port = port[:16] + struct.pack("!H", ~checksum(pseudo) & 0xFFFF) + port[18:]
    ip = struct.pack("!BBHHHBBH", 0x45, 0, 40 + len(payload), 0, 0x4000, 9, 6, 0)
    ip = ip[:10] + checksum(ip + addresses).to_bytes(2, "big") + addresses
    ethernet = b"\xff" * 6 + bytes.fromhex(SOURCE) + tag + b"\x08\x00"
    start = len(ethernet) + 20
    return struct.pack("=BBHHHH", 1, 1, start + 20, segment, start, 16) + ethernet + ip + port + payload


@pytest.mark.parametrize("tag", ["", "81006005", "88a8000181000002"], ids=["untagged", "dot1q", "qinq"])
def test_aggregates_keep_tags_and_stay_bounded_on_the_wire(joined: Lab, tag: str) -> None:
    """Segments bear the tag inside; those that the tag makes too long are dropped."""
    node, peer = joined.nodes
    raw_tag = bytes.fromhex(tag)
    largest = MTU - 40 - len(raw_tag)
    with raw(joined.slivers[0], "c0") as out, raw(node.path, "u0") as wire:
        out.setsockopt(263, 15, 1)  # SOL_PACKET, PACKET_VNET_HDR
        out.send(aggregate(largest + 1, 5, raw_tag))
        until(lambda: node.counters().drops.get(Drop.TX_MTU) == 1)
        out.send(aggregate(largest, 5, raw_tag))
        seen = []
        while len(seen) < 5:
            got, address = wire.recvfrom(70000)
            if address[2] == socket.PACKET_OUTGOING and got[42 + 6 : 42 + 12] == bytes.fromhex(SOURCE):
                seen.append(got)
    for number, got in enumerate(seen):
        assert 1514 == len(got)
        assert 1500 == int.from_bytes(got[16:18], "big")
        assert 0 == checksum(got[14:34])
        inner = got[42:]
        assert raw_tag + b"\x08\x00" == inner[12 : 14 + len(raw_tag)]
        packet = inner[14 + len(raw_tag) :]
        assert 0 == checksum(packet[:20])
        assert 1 + number * largest == int.from_bytes(packet[24:28], "big")
    assert gretap(mac(node, "u0"), mac(peer, "u0"), *ADDRESS, KEY, seen[0][42:]) == seen[0]
    before = node.counters()
    assert before.tx_packets >= 5


def test_tcp_through_a_router_sliver(joined: Lab) -> None:
    """sl0 → n0 → n1 → sl1 (router) → n1 → n0 → sl2: what one tunnel brought, the next takes, aggregated."""
    third = joined.space("sl2")
    joined.veth(joined.slivers[1], "c1", joined.nodes[1], "v1", "192.168.9.1/24")
    joined.veth(third, "c0", joined.nodes[0], "v1", "192.168.9.2/24")
    for i, node in enumerate(joined.nodes):
        second = dataclasses.replace(TUNNEL[i], gre_key=KEY + 1)
        node.ensure(second, Shortbridge("v1", second.key[1], 0, "u0"))
    joined.inside(joined.slivers[1], "sysctl", "-qw", "net.ipv4.ip_forward=1")
    joined.inside(joined.slivers[0], "ip", "route", "add", "192.168.9.0/24", "via", INNER[1])
    joined.inside(third, "ip", "route", "add", "default", "via", "192.168.9.1")
    assert joined.ping("-c2", "-i0.01", "-W2", "192.168.9.2") == 2
    size = 32 << 20
    assert size == tcp(joined, joined.slivers[0], third, "192.168.9.2", size)
    for node in joined.nodes:
        assert {"v0", "v1"} == set(node.run(node.egre.counters))
        assert sum(node.drops().values()) == 0


# ------------------------------------------------------------------------------------------------------------- change


@contextlib.contextmanager
def pinging(joined: Lab, count: int = 1000) -> Iterator[None]:
    """1000 echo requests at 500/s while the body runs; none may be lost."""
    words = ("nsenter", f"--net={joined.slivers[0]}", "ping", "-n", "-q", f"-c{count}", "-i0.002", "-W2", INNER[1])
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as process:
        yield
        out, _ = process.communicate(timeout=60)
    assert f"{count} received" in out, out


def builds(joined: Lab, tmp: pathlib.Path, number: int) -> pathlib.Path:
    """The same programs as another build: the file's hash differs."""
    folder = tmp / f"build{number}"
    folder.mkdir()
    (folder / "egre.bpf.o").write_bytes((bpf.OBJECTS / "egre.bpf.o").read_bytes() + bytes(number))
    return folder


def test_upgrade_loses_no_packet(joined: Lab, tmp_path: pathlib.Path) -> None:
    wanted = [Underlay("u0", ADDRESS[0]), TUNNEL[0], Shortbridge("v0", TUNNEL[0].key[1], 0, "u0")]
    node = joined.nodes[0]
    before = node.run(lambda: node.egre.program_ids(egre.ENCAP))
    with pinging(joined):
        for number in range(1, 21):
            folder = builds(joined, tmp_path, number)
            node.egre = node.run(lambda f=folder: Egre(node.settings, Netlink(1), node.macs.get, f))  # type: ignore[misc]
            assert Underlay("u0", "") in node.read()  # an older build: to be put right
            node.ensure(Underlay("u0", ADDRESS[0]))
            assert wanted == node.read()
    assert before.isdisjoint(node.run(lambda: node.egre.program_ids(egre.ENCAP)))
    assert len(node.egre.builds()) == 1


def test_change_of_class_loses_no_packet(joined: Lab) -> None:
    node = joined.nodes[0]
    with pinging(joined):
        for minor in range(1, 100):
            wanted = Shortbridge("v0", TUNNEL[0].key[1], minor, "u0")
            node.ensure(wanted)
            assert wanted in node.read()


def test_change_of_key(joined: Lab) -> None:
    for i, node in enumerate(joined.nodes):
        other = dataclasses.replace(TUNNEL[i], gre_key=0xFFFFFFFF)
        node.ensure(other, Shortbridge("v0", other.key[1], 0, "u0"))
        assert Shortbridge("v0", other.key[1], 0, "u0") in node.read()
        assert {TUNNEL[i], other} <= set(node.read())
        node.run(lambda n=node, i=i: n.egre.tunnel.absent([TUNNEL[i]]))  # type: ignore[misc]
        assert TUNNEL[i] not in node.read()
    assert joined.ping("-c2", "-i0.01", "-W2", INNER[1]) == 2


def test_death_of_the_manager_changes_nothing(lab: Lab) -> None:
    """A manager sets a node up, is killed, another finds everything."""
    code = f"""
import pathlib, sys, time
from nodemanager_trellis.objects import *
from nodemanager_trellis.substrate.egre import Egre
from nodemanager_trellis.substrate.netlink import Netlink
from nodemanager_trellis.substrate.settings import Settings
run = pathlib.Path("/run/{lab.stamp}")
egre = Egre(Settings("{lab.nodes[0].settings.instance}", run, run, pathlib.Path("{lab.bpffs}")), Netlink(1),
            {lab.nodes[0].macs!r}.get)
tunnel = EgreTunnel("u0", "{ADDRESS[0]}", "{ADDRESS[1]}", {KEY})
egre.underlay.ensure([Underlay("u0", "{ADDRESS[0]}")], {{}})
egre.tunnel.ensure([tunnel], {{}})
egre.shortbridge.ensure([Shortbridge("v0", tunnel.key[1], 0, "u0")], {{}})
for line in sys.stdin:
    egre.refresh_neighbours()
    print("ready" if all(any(t.next_hop_mac) for t in egre.transmit().values()) else "", flush=True)
"""
    peer = lab.nodes[1]
    peer.ensure(Underlay("u0", ADDRESS[1]), TUNNEL[1], Shortbridge("v0", TUNNEL[1].key[1], 0, "u0"))
    until(peer.ready)
    words = ("nsenter", f"--net={lab.nodes[0].path}", sys.executable, "-c", code)
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as manager:
        assert manager.stdin and manager.stdout

        def ready() -> bool:
            assert manager.stdin and manager.stdout
            print("ready?", file=manager.stdin, flush=True)
            return manager.stdout.readline().strip() == "ready"

        until(ready)
        with pinging(lab):
            manager.send_signal(signal.SIGKILL)
            manager.wait()
    node = lab.nodes[0]
    assert [Underlay("u0", ADDRESS[0]), TUNNEL[0], Shortbridge("v0", TUNNEL[0].key[1], 0, "u0")] == node.read()


def test_device_deleted_by_the_sliver_is_missed(joined: Lab) -> None:
    node = joined.nodes[0]
    joined.inside(joined.slivers[0], "ip", "link", "del", "c0")
    assert [Underlay("u0", ADDRESS[0]), TUNNEL[0]] == node.read()
    joined.veth(joined.slivers[0], "c0", node, "v0", f"{INNER[0]}/24")
    assert [Underlay("u0", ADDRESS[0]), TUNNEL[0]] == node.read()
    wanted = Shortbridge("v0", TUNNEL[0].key[1], 0, "u0")
    node.ensure(wanted)
    assert wanted in node.read()
    assert len(node.run(node.egre.transmit)) == 1
    joined.inside(joined.slivers[1], "ip", "neigh", "flush", "all")
    assert joined.ping("-c2", "-i0.01", "-W2", INNER[1]) == 2


def test_link_flap(joined: Lab) -> None:
    """It takes the managed neighbours away; they are put back."""
    node = joined.nodes[0]
    node.sh("ip", "link", "set", "u0", "down")
    node.refresh()
    node.sh("ip", "link", "set", "u0", "up")
    until(node.ready)
    assert joined.ping("-c2", "-i0.01", "-W2", INNER[1]) == 2


def test_peer_changes_its_mac_address(joined: Lab) -> None:
    node, peer = joined.nodes
    peer.sh("sysctl", "-qw", "net.ipv4.conf.all.arp_notify=1")
    node.sh("sysctl", "-qw", "net.ipv4.neigh.u0.locktime=0")
    peer.sh("ip", "link", "set", "u0", "address", "02:00:00:00:00:99")
    until(lambda: node.refresh() == 1)
    peer.refresh()  # its own address is in what it sends
    assert joined.ping("-c2", "-i0.01", "-W2", INNER[1]) == 2


def test_underlay_absent_leaves_nothing(joined: Lab) -> None:
    node = joined.nodes[0]
    node.run(lambda: node.egre.shortbridge.absent([Shortbridge("v0", TUNNEL[0].key[1], 0, "u0")]))
    node.run(lambda: node.egre.tunnel.absent([TUNNEL[0]]))
    assert [] == [n for n in node.run(lambda: node.egre.netlink.neighbours(socket.if_nametoindex("u0"))) if n.mac]
    for _ in range(2):
        node.run(lambda: node.egre.underlay.absent([Underlay("u0", ADDRESS[0])]))
        assert not node.egre.directory.exists()
        assert [] == node.read()
    assert "xdp" not in node.sh("ip", "link", "show", "u0")


def test_foreign_xdp_program_is_respected(lab: Lab) -> None:
    from nodemanager_trellis.errors import NotOurs

    node = lab.nodes[0]
    other = bpf.load(bpf.OBJECTS / "sink.bpf.o").programs["trellis_pass"]
    index = node.run(lambda: socket.if_nametoindex("u0"))
    held = node.run(lambda: bpf.attach_xdp(other, index, "u0"))
    assert held
    with pytest.raises(NotOurs):
        node.ensure(Underlay("u0", ADDRESS[0]))
    assert not node.egre.directory.exists()
    held.close()


def test_without_tcx(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    """Older kernels: deliver is a clsact filter."""
    monkeypatch.setattr(bpf, "attach_tcx", lambda *_: None)
    lab.connect()
    assert lab.ping("-c2", "-i0.01", "-W2", INNER[1]) == 2
    node = lab.nodes[0]
    assert Underlay("u0", ADDRESS[0]) in node.read()
    node.run(lambda: node.egre.underlay.absent([Underlay("u0", ADDRESS[0])]))
    assert [] == node.run(lambda: node.egre.netlink.filters(socket.if_nametoindex("u0"), "ingress"))


def test_without_native_xdp(lab: Lab) -> None:
    """The underlay is a device whose driver cannot run XDP: after GRO, slower, right."""
    for i, node in enumerate(lab.nodes):
        node.sh("ip", "link", "add", "br0", "type", "bridge")
        node.sh("ip", "link", "set", "u0", "master", "br0")
        node.sh("ip", "addr", "flush", "dev", "u0")
        node.sh("ip", "addr", "add", f"{ADDRESS[i]}/24", "dev", "br0")
        node.sh("ip", "link", "set", "br0", "up")
        tunnel = dataclasses.replace(TUNNEL[i], device="br0")
        node.ensure(Underlay("br0", ADDRESS[i]), tunnel, Shortbridge("v0", tunnel.key[1], device="br0"))
        assert [Underlay("br0", ADDRESS[i]), tunnel, Shortbridge("v0", tunnel.key[1], device="br0")] == node.read()
    for node in lab.nodes:
        until(node.ready)
    assert lab.ping("-c2", "-i0.01", "-W2", INNER[1]) == 2
    size = 8 << 20
    assert size == tcp(lab, lab.slivers[0], lab.slivers[1], INNER[1], size)
    for node in lab.nodes:
        node.run(lambda n=node: n.egre.underlay.absent([Underlay("br0", "")]))  # type: ignore[misc]


def test_jumbo_underlay(lab: Lab) -> None:
    """An MTU that no frame buffer holds."""
    for i, node in enumerate(lab.nodes):
        node.sh("ip", "link", "set", "u0", "mtu", "9000")
        node.sh("ip", "link", "set", "v0", "mtu", "8958")
        lab.inside(lab.slivers[i], "ip", "link", "set", "c0", "mtu", "8958")
    lab.connect()
    assert lab.ping("-c1", "-W2", "-M", "do", "-s8930", INNER[1]) == 1
    size = 8 << 20
    assert size == tcp(lab, lab.slivers[0], lab.slivers[1], INNER[1], size)


def test_maps_of_another_layout_are_replaced(joined: Lab, tmp_path: pathlib.Path) -> None:
    node = joined.nodes[0]
    pin = node.egre.directory / "map" / egre.TX
    pin.unlink()
    bpf.load(bpf.OBJECTS / "gen.bpf.o").maps["trellis_config"].pin(pin)
    folder = builds(joined, tmp_path, 1)
    node.egre = node.run(lambda: Egre(node.settings, Netlink(1), node.macs.get, folder))
    wanted = [Underlay("u0", ADDRESS[0]), TUNNEL[0], Shortbridge("v0", TUNNEL[0].key[1], 0, "u0")]
    node.ensure(*wanted)
    assert wanted == node.read()
    until(node.ready)
    assert joined.ping("-c2", "-i0.01", "-W2", INNER[1]) == 2


def test_tunnel_without_terminator_is_refused(lab: Lab) -> None:
    from nodemanager_trellis.errors import SubstrateError

    with pytest.raises(SubstrateError, match="not set up"):
        lab.nodes[0].ensure(TUNNEL[0])
    lab.nodes[0].ensure(Underlay("u0", ADDRESS[0]))
    with pytest.raises(SubstrateError, match="no EGRE terminator"):
        lab.nodes[0].ensure(dataclasses.replace(TUNNEL[0], local="10.9.0.9"))
    with pytest.raises(SubstrateError, match=os.strerror(errno.ENODEV)):
        lab.nodes[0].ensure(Shortbridge("nope", TUNNEL[0].key[1], 0, "u0"))
