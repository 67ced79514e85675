"""The built-in plugins: model in, kernel objects out."""

import dataclasses

import pytest

from nodemanager_trellis import hooks, names
from nodemanager_trellis.model import Limits, Node, Presence, Sliver, VirtualLink
from nodemanager_trellis.objects import HtbClass, HtbRoot, KernelObject
from nodemanager_trellis.plan import in_order
from nodemanager_trellis.plugins import shaping

NODE = Node(1, "node1.kans.test", "198.51.100.14", instance="kans", underlay="u0", mtu=1500)
LINK = VirtualLink(
    "n2", 10, 2, "198.51.100.16", "a10if2", ("192.168.2.9/30",), ("192.168.2.10",), 100_000_000, number=3
)
SLIVER = Sliver(
    "princeton_iias", 37, Presence.RUN, "plc-instantiated", 2_000_000_000, keys=("ssh-rsa AAAA a@b",),
    initscript="#!/bin/sh\n", limits=Limits(net_min_bps=1_000_000, net_max_bps=100_000_000, net_share=2),
    links=(LINK,), number=2,
)  # fmt: skip


@pytest.fixture
def registry():
    return hooks.load()


def objects(registry, sliver=SLIVER, node=NODE) -> dict[str, list[KernelObject]]:
    found: dict[str, list[KernelObject]] = {}
    for obj in registry.for_sliver(sliver, node, {}).objects.values():
        found.setdefault(obj.kind, []).append(obj)
    return found


def test_load_finds_builtins_in_priority_order(registry):
    """The built-in plugins are found by entry point and run by priority."""
    assert ["hosts", "links", "connectors", "shaping", "accounts", "initscript"] == [p.name for p in registry.plugins]


def test_running_sliver_wants_one_of_each(registry):
    """A running sliver with one link wants its namespaces, container, files, link, classes, and to run."""
    kinds = {kind: len(found) for kind, found in objects(registry).items()}

    assert {
        "pair": 1, "container": 1, "running": 1, "veth": 1, "tunnel": 1, "shortbridge": 1, "linkup": 1, "class": 2,
        "file": 2,
    } == kinds  # fmt: skip


def test_stopped_sliver_keeps_its_links_down(registry):
    """A stopped sliver keeps what exists, and wants neither to run nor its links up."""
    kinds = objects(registry, dataclasses.replace(SLIVER, presence=Presence.STOP))

    assert "veth" in kinds
    assert not {"running", "linkup"} & set(kinds)


def test_left_sliver_wants_nothing(registry):
    """A sliver that the node leaves alone wants no object."""
    assert {} == objects(registry, dataclasses.replace(SLIVER, presence=Presence.LEAVE))


def test_link_objects_carry_the_links_parameters(registry):
    """Veth, tunnel and shortbridge of a link say key, addresses, MTU and class as the model has them."""
    found = objects(registry)
    ifname = names.root_ifname(37, "n2")
    veth, tunnel, bridge = found["veth"][0], found["tunnel"][0], found["shortbridge"][0]

    assert (ifname, "kans.37", "a10if2", 1458, ("192.168.2.9/30",)) == (
        veth.ifname, veth.pair, veth.inner, veth.mtu, veth.addresses,
    )  # fmt: skip
    assert ("u0", "198.51.100.14", "198.51.100.16", 10) == (tunnel.device, tunnel.local, tunnel.remote, tunnel.gre_key)
    assert (ifname, tunnel.key[1], 3) == (bridge.ifname, bridge.tunnel, bridge.minor)


def test_classes_form_slice_over_link(registry):
    """The slice's class has its minimum and maximum, the link's leaf borrows up to the link's rate."""
    by_minor = {c.minor: c for c in objects(registry)["class"]}

    assert HtbClass("u0", 2, 1, 1_000_000, 100_000_000, 3200) == by_minor[2]
    assert HtbClass("u0", 3, 2, 1_000_000, 100_000_000, 3200, queue_bytes=250_000) == by_minor[3]


def test_unlimited_link_stays_out_of_htb(registry):
    """A link without any limit has no class and its shortbridge names none."""
    free = dataclasses.replace(SLIVER, limits=Limits(), links=(dataclasses.replace(LINK, rate_bps=0),))
    found = objects(registry, free)

    assert "class" not in found
    assert 0 == found["shortbridge"][0].minor
    assert 65_536 == found["veth"][0].gso_max_bytes


def test_node_cap_bounds_every_slice(registry):
    """A node's bwlimit is the tree's rate, every slice's ceiling at most that, its guarantee at most a quarter."""
    node = dataclasses.replace(NODE, bwlimit_bps=2_000_000)

    assert HtbRoot("u0", 2_000_000) in registry.for_node(node, {}).objects.values()
    assert (500_000, 2_000_000) == shaping.slice_rates_bps(SLIVER, node)
    assert shaping.is_shaped(SLIVER, dataclasses.replace(LINK, rate_bps=0), node)


def test_limits_off_lifts_slice_limits_only():
    """net_max_rate -1 in pl_default lifts the slices' limits, not a link's own rate."""
    node = dataclasses.replace(NODE, limits_off=True)

    assert shaping.UNCAPPED_BPS == shaping.slice_rates_bps(SLIVER, node)[1]
    assert not shaping.is_shaped(SLIVER, dataclasses.replace(LINK, rate_bps=0), node)
    assert shaping.is_shaped(SLIVER, LINK, node)


def test_slow_link_gets_small_aggregates_and_a_bounded_queue(registry):
    """A slow link's queue holds at least 16 full frames and its sliver hands out aggregates that fit in it."""
    slow = dataclasses.replace(SLIVER, links=(dataclasses.replace(LINK, rate_bps=1_000_000),))
    found = objects(registry, slow)
    leaf = next(c for c in found["class"] if c.minor == 3)

    assert 16 * 1514 == leaf.queue_bytes
    assert leaf.queue_bytes >= 4 * found["veth"][0].gso_max_bytes


def test_everything_needed_is_wanted_and_ordered(registry):
    """Each need of a sliver's objects is met by the sliver or the node, and the order has no circle."""
    wanted = registry.for_sliver(SLIVER, NODE, {}).objects
    everything = {**wanted, **registry.for_node(NODE, {}).objects}

    for obj in everything.values():
        assert all(key in everything for key in obj.needs), obj
    order = [o.kind for level in in_order(everything) for o in level]
    assert order.index("linkup") < order.index("running")


class RecordingHost:
    def __init__(self, returncode=0):
        self.returncode = returncode
        self.calls = []

    def run(self, sliver, argv, *, stdin=None, timeout_s=10):
        self.calls.append((sliver.name, list(argv)[-2:]))
        return hooks.CompletedRun(self.returncode, b"", b"")


def test_initscript_is_called_with_the_verb_of_the_event(registry, caplog):
    """The initscript is called start, restart (only when its text changed) and stop; a failing one is a warning."""
    plugin = next(p for p in registry.plugins if p.name == "initscript")
    host = RecordingHost(returncode=3)
    changed = dataclasses.replace(SLIVER, initscript="#!/bin/sh\ntrue\n")

    plugin.after_start(SLIVER, NODE, host)
    plugin.after_update(SLIVER, dataclasses.replace(SLIVER, keys=()), NODE, host)
    plugin.after_update(SLIVER, changed, NODE, host)
    plugin.before_stop(SLIVER, NODE, host)
    plugin.after_start(dataclasses.replace(SLIVER, initscript=""), NODE, host)

    assert [("princeton_iias", [verb, "princeton_iias"]) for verb in ("start", "restart", "stop")] == host.calls
    assert 3 == len([r for r in caplog.records if r.message == "initscript failed"])
