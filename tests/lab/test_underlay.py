"""The wire of a lab: three nodes in namespaces with this process' pid in their names, gone at the end."""

from __future__ import annotations

import os
import subprocess

import pytest

from nodemanager_trellis.errors import NotOurs
from nodemanager_trellis.lab import underlay
from nodemanager_trellis.lab.underlay import Underlay

pytestmark = [pytest.mark.kernel, pytest.mark.skipif(os.geteuid() != 0, reason="needs root")]


def links():
    """Devices of the namespace we are in."""
    return subprocess.run(["ip", "-br", "link"], capture_output=True, text=True, check=True).stdout


@pytest.fixture
def wire():
    """An underlay with three nodes, and what it made; removed afterwards, proven."""
    names_before = set(os.listdir(underlay.NETNS_DIRECTORY)) if underlay.NETNS_DIRECTORY.exists() else set()
    links_before = links()
    made = Underlay(f"u{os.getpid() % 10**7}", ("a", "b", "c"))
    owned = {}
    yield made, owned
    assert underlay.absent(owned) == []
    assert underlay.absent(owned) == []
    left = {n for n in set(os.listdir(underlay.NETNS_DIRECTORY)) - names_before if n.startswith(made.lab)}
    assert left == set()
    assert links_before == links()


def inside(netns, *command):
    return subprocess.run(underlay.inside(netns, command), capture_output=True, text=True, check=True).stdout


def test_nodes_reach_each_other_and_plc(wire):
    """Every node pings its neighbours and PLC's address, with full frames."""
    made, owned = wire
    made.check_free()
    made.ensure({}, owned.update)
    assert sorted(owned) == sorted(made.namespaces())
    for address in (underlay.PLC_ADDRESS, underlay.node_address(1), underlay.node_address(2)):
        inside(underlay.node_netns(made.lab, "a"), "ping", "-c", "1", "-W", "2", "-M", "do", "-s", "1472", address)


def test_ensure_twice_equals_once(wire):
    """A second time nothing changes; a device somebody removed is put back."""
    made, owned = wire
    made.ensure({}, owned.update)
    here = underlay.node_netns(made.lab, "b")
    before, inodes = inside(here, "ip", "-d", "addr"), dict(owned)
    made.ensure(owned, owned.update)
    assert (before, inodes) == (inside(here, "ip", "-d", "addr"), owned)
    inside(here, "ip", "link", "del", underlay.DEVICE)
    made.ensure(owned, owned.update)
    inside(here, "ping", "-c", "1", "-W", "2", underlay.PLC_ADDRESS)


def test_settings(wire):
    """MTU 1500, GRO on, no IPv6 chatter, no STP, bridged frames do not meet iptables."""
    made, owned = wire
    made.ensure({}, owned.update)
    here, there = underlay.node_netns(made.lab, "c"), underlay.underlay_netns(made.lab)
    assert "mtu 1500" in inside(here, "ip", "link", "show", underlay.DEVICE)
    assert "inet6" not in inside(here, "ip", "addr", "show", underlay.DEVICE)
    assert "generic-receive-offload: on" in inside(here, "ethtool", "-k", underlay.DEVICE)
    assert "stp_state 0" in inside(there, "ip", "-d", "link", "show", underlay.BRIDGE)
    if os.path.exists("/proc/sys/net/bridge"):
        assert inside(there, "cat", "/proc/sys/net/bridge/bridge-nf-call-iptables").strip() == "0"


def test_foreign_namespace_is_neither_used_nor_removed(wire):
    """One of our names is taken, or was taken after ours was deleted by hand: an error, and it stays."""
    made, owned = wire
    name = underlay.node_netns(made.lab, "b")
    subprocess.run(["ip", "netns", "add", name], check=True)
    theirs = underlay.inode(name)
    try:
        with pytest.raises(NotOurs, match=name):
            made.check_free()
        with pytest.raises(NotOurs, match=name):
            made.ensure({}, owned.update)
        assert owned == {}
        assert underlay.absent({name: theirs + 1}) == [name]
        assert theirs == underlay.inode(name)
    finally:
        subprocess.run(["ip", "netns", "del", name], check=True)


def test_members_are_found_by_inode(wire):
    """A process in one of our namespaces is seen, and only there."""
    made, owned = wire
    made.ensure({}, owned.update)
    name = underlay.node_netns(made.lab, "a")
    child = subprocess.Popen(
        underlay.inside(name, ["sh", "-c", "echo up; read line"]), stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    try:
        child.stdout.readline()
        assert underlay.members(owned.values()) == {child.pid: owned[name]}
    finally:
        child.communicate()
