"""The watcher tells what others did, and nothing twice."""

from __future__ import annotations

import os
import select
import threading

import pytest

from nodemanager_trellis.objects import LinkUp, Veth
from nodemanager_trellis.substrate import netlink as nl
from nodemanager_trellis.substrate.links import LinkUpDriver, VethDriver
from nodemanager_trellis.substrate.watch import Event, Watcher

A = Veth("tra", "trellis.1", "a1if2", "02:00:00:00:00:0a", 1458)
B = Veth("trb", "trellis.1", "a1if3", "02:00:00:00:00:0b", 1458)
DEADLINE_S = 20


@pytest.fixture
def watched(node_netns, netlink, settings, make_pairs):
    make_pairs("trellis.1")
    os_system = lambda command: node_netns.run(os.system, command)  # noqa: E731
    assert (
        os_system("ip link add u0 type veth peer name far && ip link set u0 up && ip address add 10.0.0.1/24 dev u0")
        == 0
    )
    driver = VethDriver(settings, netlink)
    driver.ensure([A, B], {})
    watcher = node_netns.run(Watcher, settings.link_group, ("u0",))
    yield watcher
    watcher.close()


def test_sliver_deletes_its_end(node_netns, watched, sliver, netlink):
    index = netlink.link("tra").ifindex
    sliver("trellis.1", lambda inner: inner.batch([nl.link_del(inner.link("a1if2").ifindex)]))
    assert watched.wait(DEADLINE_S) == [Event("link", "tra", index, gone=True)]
    assert watched.wait(0) == []


def test_slivers_carrier_is_its_own_business(node_netns, watched, sliver, settings, netlink):
    """Raising the root end is an event (once), lowering the inner end is none."""
    LinkUpDriver(settings, netlink).ensure([LinkUp("tra")], {})
    assert [(e.ifname, e.up) for e in watched.wait(DEADLINE_S)] == [("tra", True)]
    for up in (False, True, False, True):
        sliver("trellis.1", lambda inner, up=up: inner.batch([nl.link_flags(inner.link("a1if2").ifindex, up)]))
    assert watched.wait(0) == []


def test_our_own_work_is_no_news(node_netns, watched, settings, netlink):
    """Making and taking away several is silent."""
    driver = VethDriver(settings, netlink)
    driver.absent([A, B])
    driver.ensure([A, B], {})
    assert watched.wait(0) == []


def test_underlay_goes_down_and_comes_up(node_netns, watched):
    """Carrier counts; the many messages in between are one event; other devices are none."""
    os.system("ip link set far up")
    assert [(e.kind, e.ifname, e.up) for e in watched.wait(DEADLINE_S)][-1] == ("underlay", "u0", True)
    while watched.wait(0.2):
        pass
    os.system("ip link set u0 down; ip link add other type veth peer name other2")
    last = [e for e in watched.wait(DEADLINE_S) if e.kind == "underlay"][-1]
    assert (last.ifname, last.up, last.gone) == ("u0", False, False)


def test_neighbour_gets_another_mac(node_netns, watched, netlink):
    """New, changed and deleted are told; the same again is not."""
    index = netlink.link("u0").ifindex
    os.system("ip neigh replace 10.0.0.2 lladdr 02:00:00:00:00:02 dev u0")
    assert watched.wait(DEADLINE_S) == [Event("neighbour", "u0", index, False, True, "10.0.0.2", "02:00:00:00:00:02")]
    os.system("ip neigh replace 10.0.0.2 lladdr 02:00:00:00:00:02 dev u0 nud stale")
    assert watched.wait(0) == []
    for last in (3, 4):
        os.system(f"ip neigh replace 10.0.0.2 lladdr 02:00:00:00:00:0{last} dev u0")
    assert [e.mac for e in watched.wait(DEADLINE_S)][-1] == "02:00:00:00:00:04"
    os.system("ip neigh del 10.0.0.2 dev u0")
    assert [(e.gone, e.mac) for e in watched.wait(DEADLINE_S)][-1] == (True, None)


def test_loss_is_one_resync(node_netns, settings, netlink, wait_for):
    """More than the socket holds: one event, then it goes on as before."""
    with Watcher(settings.link_group, buffer_bytes=4096) as watcher:
        os.system("ip link add u0 type veth peer name far")
        index = netlink.link("u0").ifindex
        netlink.batch([nl.link_mtu(index, 1000 + i % 9) for i in range(2000)])
        assert Event("resync") in watcher.wait(DEADLINE_S)
        assert watcher.wait(0) == []
        netlink.batch([nl.link_mtu(index, 1400)])
        assert [e.ifname for e in watcher.wait(DEADLINE_S)] == ["u0"]


def test_waking_and_timeouts(node_netns, watched):
    assert watched.wait(0.01) == []
    thread = threading.Timer(0.05, watched.wake)
    thread.start()
    assert watched.wait(DEADLINE_S) == []
    thread.join()
    os.system("ip link set u0 mtu 1400")
    assert select.select([watched], [], [], DEADLINE_S)[0] == [watched]
    assert [e.kind for e in watched.wait(0)] == ["underlay"]
    watched.close()
    watched.wake()
