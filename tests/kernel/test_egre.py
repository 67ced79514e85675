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
