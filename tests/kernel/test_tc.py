"""The HTB tree: the trio, live changes, marks, counters."""

from __future__ import annotations

import dataclasses
import errno
import os
import socket

import pytest

from nodemanager_trellis.errors import NotOurs, SubstrateError
from nodemanager_trellis.objects import HtbClass, HtbRoot
from nodemanager_trellis.substrate import netlink as nl
from nodemanager_trellis.substrate.tc import ClassStats, HtbClassDriver, HtbRootDriver, rate_and_buffer, rate_of

ROOT = HtbRoot("u0", 1_000_000_001)
SLICE = HtbClass("u0", 0x10, 1, 10_000_000, 1_000_000_001, 20_000)
LINK = HtbClass("u0", 0x11, 0x10, 8_003, 100_000_007, 3_000, 250_000, "a link")
FAST = HtbClass("u0", 0xFFFE, 0x10, 40_000_000_001, 100_000_000_003, 60_000, 10_000_000)


@pytest.fixture
def underlay(node_netns):
    """A veth whose far end answers nobody."""

    def make():
        assert os.system("ip link add u0 type veth peer name far && ip link set u0 up && ip link set far up") == 0
        assert os.system("ip address add 10.0.0.1/24 dev u0") == 0
        assert os.system("ip neigh replace 10.0.0.2 lladdr 02:00:00:00:00:01 dev u0") == 0

    node_netns.run(make)


@pytest.fixture
def roots(underlay, settings, netlink) -> HtbRootDriver:
    return HtbRootDriver(settings, netlink)


@pytest.fixture
def classes(roots, settings, netlink) -> HtbClassDriver:
    roots.ensure([ROOT], {})
    return HtbClassDriver(settings, netlink)


def test_root_trio(node_netns, roots, netlink):
    """Made, read, made again without a change, changed in place, removed, removed again."""
    assert roots.read() == []
    roots.ensure([ROOT], {})
    assert roots.read() == [ROOT]
    netlink.batch([nl.htb_class(netlink.link("u0").ifindex, 0x77, 1, 1000, 1000, 8, 8, 1500)])
    for rate in (ROOT.rate_bps, 8_000, 123_456_789, 10**12):
        roots.ensure([HtbRoot("u0", rate)], {ROOT.key: ROOT})
        assert roots.read() == [HtbRoot("u0", rate)]
    assert {c.minor for c in netlink.classes(netlink.link("u0").ifindex)} == {1, 0x77}
    roots.absent([ROOT, HtbRoot("nothing", 1)])
    roots.absent([ROOT])
    assert roots.read() == []


@pytest.mark.parametrize(
    "command",
    [
        "handle 1: htb default 0",
        "handle 1: htb r2q 32273 default 0",
        "handle 8001: pfifo",
        "handle 2: tbf rate 1mbit burst 10k latency 1s",
    ],
)
def test_foreign_root_is_not_touched(node_netns, roots, settings, netlink, command):
    """Another's qdisc, even an HTB 1:, is NotOurs; only handle, kind and mark together make it ours."""
    assert os.system(f"tc qdisc add dev u0 root {command}") == 0
    before = netlink.qdiscs()
    if "32273" in command:
        assert roots.read() == [HtbRoot("u0", 0)]
        roots.ensure([ROOT], {})
        assert roots.read() == [ROOT]
        return
    assert roots.read() == []
    with pytest.raises(NotOurs, match="HTB root of u0"):
        roots.ensure([ROOT], {})
    with pytest.raises(NotOurs):
        HtbClassDriver(settings, netlink).ensure([SLICE], {})
    roots.absent([ROOT])
    HtbClassDriver(settings, netlink).absent([SLICE])
    assert netlink.qdiscs() == before


def test_class_trio(node_netns, classes):
    """Children may be named before their parents, at making and at removing."""
    assert classes.read() == []
    wanted = [FAST, LINK, SLICE]
    classes.ensure(wanted, {})
    assert {c.key: c for c in classes.read()} == {c.key: c for c in wanted}
    classes.ensure(wanted, {})
    assert len(classes.read()) == 3
    classes.absent([SLICE, LINK, FAST])
    classes.absent([SLICE, LINK, FAST])
    assert classes.read() == []


@pytest.mark.parametrize(
    "change",
    [
        {"rate_bps": 9_001},
        {"ceil_bps": 50_000_000_000},
        {"quantum": 1_514},
        {"queue_bytes": 3_000},
        {"queue_bytes": 0},
        {"rate_bps": 5_000_000, "ceil_bps": 5_000_000, "quantum": 9_000, "queue_bytes": 12_345},
    ],
)
def test_class_changes_in_place(node_netns, classes, change, send, netlink):
    """Counters go on, so it is the same class."""
    classes.ensure([SLICE, LINK], {})
    send(LINK.minor, 3, 100)
    wanted = dataclasses.replace(LINK, **change)
    classes.ensure([SLICE, wanted], {LINK.key: LINK})
    assert {c.key: c for c in classes.read()} == {c.key: c for c in (SLICE, wanted)}
    assert classes.statistics("u0")[LINK.minor].packets == 3


def test_quantum_of_a_class_with_children(node_netns, classes, settings, netlink):
    """The kernel keeps the old one; the driver that asked remembers, another asks again."""
    classes.ensure([SLICE, LINK], {})
    wanted = dataclasses.replace(SLICE, quantum=30_000)
    classes.ensure([wanted], {SLICE.key: SLICE})
    assert wanted in classes.read()
    restarted = HtbClassDriver(settings, netlink)
    assert SLICE in restarted.read()
    restarted.ensure([wanted], {SLICE.key: SLICE})
    assert wanted in restarted.read()


def test_class_moves_to_another_parent(node_netns, classes):
    other = dataclasses.replace(SLICE, minor=0x20)
    classes.ensure([SLICE, LINK, other], {})
    moved = dataclasses.replace(LINK, parent=0x20)
    classes.ensure([moved], {LINK.key: LINK})
    assert moved in classes.read()
    with pytest.raises(SubstrateError) as caught:
        classes.absent([other])
    assert caught.value.errno == errno.EBUSY
    assert caught.value.detail


def test_errors_name_the_class_and_spare_the_others(node_netns, classes, roots):
    bad = [
        dataclasses.replace(LINK, minor=0x30, parent=0x99),
        dataclasses.replace(LINK, minor=0xFFFF),
        dataclasses.replace(LINK, minor=1),
        dataclasses.replace(LINK, device="nothing"),
        dataclasses.replace(LINK, minor=0x31, rate_bps=0),
        dataclasses.replace(LINK, minor=0x32, parent=0x31),
    ]
    with pytest.raises(SubstrateError, match="HTB class 1:30 of a link") as caught:
        classes.ensure([*bad, SLICE, LINK], {})
    assert caught.value.detail == "no parent class 1:99 on u0"
    assert len(caught.value.__notes__) == len(bad) - 1
    assert {c.key for c in classes.read()} == {SLICE.key, LINK.key}
    roots.absent([ROOT])
    with pytest.raises(SubstrateError, match="no HTB on u0"):
        classes.ensure([SLICE], {})


@pytest.fixture
def send(underlay, node_netns):
    """``send(minor, count, size)``: UDP datagrams into a class."""

    def send(minor: int, count: int, size: int) -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_PRIORITY, 0x10000 | minor)
            for _ in range(count):
                sock.sendto(bytes(size), ("10.0.0.2", 9))

    return send


def test_statistics_count_wire_bytes_and_drops(node_netns, classes, send, wait_for):
    """14 + 20 + 8 bytes a frame come on top; what does not fit the leaf queue is dropped and counted there."""
    short = dataclasses.replace(LINK, rate_bps=8_000, ceil_bps=8_000, queue_bytes=3_000)
    classes.ensure([SLICE, short], {})
    send(short.minor, 2, 100)
    stats = wait_for(lambda: (s := classes.statistics("u0")[short.minor]).packets == 2 and s, "two frames counted")
    assert stats == ClassStats(284, 2, 0, 0, 0, 0)
    assert classes.statistics("u0")[1].bytes == 284
    send(short.minor, 20, 1000)
    stats = classes.statistics("u0")[short.minor]
    assert stats.drops > 10
    assert 0 < stats.backlog_bytes <= 3_000
    assert classes.statistics("nothing") == {}


@pytest.mark.parametrize("rate_bps", [1, 7, 8, 8_000, 8_001, 999_999_937, 34_359_738_367, 10**12 - 3, 10**12])
@pytest.mark.parametrize("mtu", [1500, 9000])
def test_rate_survives_the_kernels_units(rate_bps, mtu):
    """To the bit, in 32-bit ticks, with a burst of two frames and a millisecond."""
    rate, buffer = rate_and_buffer(rate_bps, mtu)
    assert rate_of(rate, buffer) == rate_bps
    assert 8 <= buffer < 2**32
    if rate_bps >= 8_000:
        assert (buffer + 8) * 64 * rate_bps >= 2 * mtu * 8 * 10**9
        assert (buffer + 8) * 64 >= 10**6
