"""Reconciling against a kernel in memory: order, isolation, undo, memory."""

import dataclasses

import pytest
from fakes import FakeKernel

from nodemanager_trellis import hooks, names
from nodemanager_trellis.hooks import Plugin
from nodemanager_trellis.model import Desired, Node, Presence, Sliver, VirtualLink
from nodemanager_trellis.objects import NamespacePair
from nodemanager_trellis.reconcile import Reconciler
from nodemanager_trellis.store import Store

NODE = Node(1, "node1.test", "198.51.100.1", instance="t", underlay="u0")


def link(n: int, rate_bps: int = 10_000_000) -> VirtualLink:
    return VirtualLink(f"n{n}", 10, n, f"198.51.100.{n}", f"a10if{n}", (f"192.168.{n}.1/30",), (), rate_bps)


def sliver(slice_id: int = 1, *links: VirtualLink, presence=Presence.RUN, **kwargs) -> Sliver:
    return Sliver(f"site_s{slice_id}", slice_id, presence, "plc-instantiated", 2_000_000_000, links=links, **kwargs)


class World:
    def __init__(self, path):
        self.kernel = FakeKernel()
        self.store = Store(path / "store.sqlite")
        self.registry = hooks.load()
        self.events = []

    def reconciler(self) -> Reconciler:
        return Reconciler(self.kernel, self.registry, self.store, hook_timeout_s=5)

    def run(self, *slivers: Sliver, node: Node = NODE):
        desired = self.store.numbered(Desired(0, node, slivers))
        return self.reconciler().run(desired, lambda name, what: self.events.append((name, what)))

    def kinds(self) -> list[str]:
        return sorted(kind for kind, _ in self.kernel.objects)


@pytest.fixture
def world(tmp_path):
    w = World(tmp_path)
    yield w
    w.store.close()


def test_second_run_changes_nothing(world):
    """Applying the same desired state twice does nothing the second time."""
    first = world.run(sliver(1, link(2), link(3)))
    calls = len(world.kernel.calls)
    second = world.run(sliver(1, link(2), link(3)))

    assert (True, True) == (bool(first.plan), first.clean)
    assert (False, 0, calls) == (bool(second.plan), second.rounds, len(world.kernel.calls))


def test_sliver_taken_off_the_node_leaves_only_the_nodes_objects(world):
    """Everything of a sliver that is no longer desired is taken away, in reverse order."""
    world.run(sliver(1, link(2)), sliver(2))
    world.run()

    assert ["htb", "underlay"] == world.kinds()
    assert ("site_s1#1", "gone") in world.events
    assert {} == world.store.realised()


def test_restart_adopts_what_runs(world):
    """A new process with the same store finds everything in place; one with an empty store adopts it too."""
    world.run(sliver(1, link(2)))
    calls = len(world.kernel.calls)

    report = world.reconciler().run(world.store.numbered(Desired(0, NODE, (sliver(1, link(2)),))))

    assert (False, calls) == (bool(report.plan), len(world.kernel.calls))


def test_rate_change_touches_only_that_links_class(world):
    """A new rate is one changed class (and the veth's aggregate size); nothing is made or removed."""
    world.run(sliver(1, link(2), link(3)))
    report = world.run(sliver(1, link(2, 20_000_000), link(3)))
    steps = [step for part in report.plan.owners for step in part.steps]

    assert {"change"} == {s.action.value for s in steps}
    assert {"class", "veth"} == {s.object.kind for s in steps}
    assert "ceil 10mbit → 20mbit" in " ".join(s.reason for s in steps)


def test_failed_tunnel_costs_only_its_link(world):
    """When one link's tunnel fails, nothing half-made of that link stays; the sliver runs with the other link."""
    bad = ("tunnel", "198.51.100.1>198.51.100.2/10")
    world.kernel.fail.add(bad)

    report = world.run(sliver(1, link(2), link(3)), sliver(2))
    left = {ident for kind, ident in world.kernel.objects if kind in ("veth", "shortbridge", "linkup")}

    assert {names.root_ifname(1, "n3")} == left
    assert ("running", "t.1") in world.kernel.objects
    assert ("running", "t.2") in world.kernel.objects
    assert 3 == len([k for k in world.kernel.objects if k[0] == "class"]) + 1
    assert any(f.key == bad for f in report.failures)
    assert report.trouble(sliver(1, link(2), link(3))) and not report.trouble(sliver(2))

    world.kernel.fail.clear()
    assert world.run(sliver(1, link(2), link(3)), sliver(2)).clean
    assert 2 == len([k for k in world.kernel.objects if k[0] == "veth"])


def test_failed_container_takes_back_the_namespaces(world):
    """A sliver whose container cannot be defined leaves nothing behind and harms no other."""
    world.kernel.fail.add(("container", "t.1"))
    world.run(sliver(1), sliver(2))

    assert {"t.2"} == {ident.split("/")[0] for kind, ident in world.kernel.objects if kind not in ("htb", "underlay")}


def test_failed_change_is_put_back(world):
    """A change that fails leaves the old value in force."""
    world.run(sliver(1, link(2)))
    before = dict(world.kernel.objects)
    minor = world.store.numbered(Desired(0, NODE, (sliver(1, link(2)),))).slivers[0].links[0].number
    world.kernel.fail.add(("class", f"u0/{minor:x}"))
    world.run(sliver(1, link(2, 20_000_000)))

    assert before["class", f"u0/{minor:x}"] == world.kernel.objects["class", f"u0/{minor:x}"]


def test_failed_removal_is_kept_on_record_and_tried_again(world):
    """What could not be taken away stays on record and goes the next time."""
    world.run(sliver(1))
    world.kernel.fail_absent.add(("container", "t.1"))
    report = world.run()

    assert not report.clean
    assert ("container", "t.1") in world.store.applied()
    world.kernel.fail_absent.clear()
    assert world.run().clean
    assert ["htb", "underlay"] == world.kinds()


def test_orphans_are_taken_away(world):
    """An object that bears our mark but is of no sliver on record is removed."""
    world.run()
    pair = NamespacePair("t.99", 1)
    world.kernel.objects[pair.key] = pair
    report = world.run()

    assert pair.key not in world.kernel.objects
    assert "left over" in report.plan.render()


def test_left_alone_sliver_is_neither_built_nor_destroyed(world):
    """A sliver that becomes 'leave' keeps what it has; one that never was built is not built."""
    world.run(sliver(1))
    calls = len(world.kernel.calls)
    world.run(sliver(1, presence=Presence.LEAVE), sliver(2, presence=Presence.LEAVE))

    assert calls == len(world.kernel.calls)


def test_stop_takes_down_links_and_keeps_the_rest(world):
    """Disabling a sliver stops it and its links; enabling starts them without re-creating anything."""
    world.run(sliver(1, link(2)))
    world.run(sliver(1, link(2), presence=Presence.STOP))
    assert {"running", "linkup"}.isdisjoint(world.kinds())
    assert "veth" in world.kinds()

    report = world.run(sliver(1, link(2)))
    assert {"running", "linkup"} == {s.object.kind for s in report.plan.owners[0].steps}


def test_vanished_object_is_made_again(world):
    """What disappears behind our back is made again, with what depends on it."""
    world.run(sliver(1, link(2)))
    ifname = names.root_ifname(1, "n2")
    for kind in ("linkup", "shortbridge", "veth"):
        del world.kernel.objects[kind, ifname]
    world.run(sliver(1, link(2)))

    assert ("linkup", ifname) in world.kernel.objects


def test_slice_made_again_under_its_name_is_another_sliver(world):
    """The same name with another slice id: the old sliver goes, a new one comes."""
    world.run(sliver(1))
    again = dataclasses.replace(sliver(5), name="site_s1")
    world.run(again)

    assert {"t.5"} == {ident for kind, ident in world.kernel.objects if kind == "container"}


def test_numbers_stay_and_are_not_used_again_at_once(world):
    """A slice keeps its class number over runs; a freed number is not the next one given."""
    world.run(sliver(1, link(2)), sliver(2))
    numbers = {k: o.minor for k, o in world.kernel.objects.items() if k[0] == "class"}
    world.run(sliver(1, link(2)))
    world.run(sliver(1, link(2)), sliver(3, link(4)))
    later = {k: o.minor for k, o in world.kernel.objects.items() if k[0] == "class"}

    assert numbers.items() <= later.items()
    assert min(set(later.values()) - set(numbers.values())) > max(numbers.values())


class Recorder(Plugin):
    name = "recorder"

    def __init__(self):
        self.calls = []

    def after_create(self, sliver, node, host):
        self.calls.append(("create", sliver.name))

    def after_start(self, sliver, node, host):
        self.calls.append(("start", sliver.name))
        host.run(sliver, ["true"])

    def after_update(self, old, new, node, host):
        self.calls.append(("update", old.keys, new.keys))

    def before_stop(self, sliver, node, host):
        self.calls.append(("stop", sliver.name))

    def after_destroy(self, sliver, node, host):
        self.calls.append(("destroy", sliver.name))


def test_hooks_are_called_once_per_event(world):
    """Each sliver event calls its hook once, after the kernel matches; a run without change calls none."""
    recorder = Recorder()
    world.registry = hooks.Registry([*world.registry.plugins, recorder])
    world.run(sliver(1))
    world.run(sliver(1))
    world.run(sliver(1, keys=("k",)))
    world.run()

    assert [
        ("create", "site_s1"), ("start", "site_s1"), ("update", (), ("k",)), ("stop", "site_s1"),
        ("destroy", "site_s1"),
    ] == recorder.calls  # fmt: skip
    assert ("t.1", ("true",)) in world.kernel.runs


def test_raising_and_hanging_hooks_degrade_only_their_sliver(world):
    """A hook that raises, or does not come back in time, is reported with its plugin; the run goes on."""
    import threading

    release = threading.Event()

    class Bad(Plugin):
        name = "bad"

        def after_create(self, sliver, node, host):
            raise RuntimeError("boom")

        def after_start(self, sliver, node, host):
            release.wait()

    world.registry = hooks.Registry([*world.registry.plugins, Bad()])
    reconciler = Reconciler(world.kernel, world.registry, world.store, hook_timeout_s=0.05)
    report = reconciler.run(world.store.numbered(Desired(0, NODE, (sliver(1),))))
    release.set()

    messages = report.trouble(sliver(1))
    assert any("RuntimeError: boom" in m for m in messages)
    assert any("left behind" in m for m in messages)
    assert ("running", "t.1") in world.kernel.objects


def test_failing_node_object_is_reported_for_the_node(world):
    """When the underlay cannot be prepared, the node says so and slivers without links still run."""
    world.kernel.fail.add(("underlay", "u0"))
    report = world.run(sliver(1))

    assert report.trouble(None)
    assert ("running", "t.1") in world.kernel.objects


def test_plan_changes_nothing(world):
    """Asking for the plan touches neither kernel nor record."""
    text = world.reconciler().plan(world.store.numbered(Desired(0, NODE, (sliver(1),)))).render()

    assert "container t.1: missing" in text
    assert ([], {}) == (world.kernel.calls, world.store.applied())


def test_purge_takes_everything_away_the_nodes_own_objects_last(world):
    """After a purge nothing of ours is left; the hooks are called with the node's own name; failures are kept."""
    world.run(sliver(1, link(2), initscript="#!/bin/sh\n"), sliver(2))
    world.kernel.fail_absent.add(("container", "t.2"))
    assert not world.reconciler().purge(NODE).clean
    world.kernel.fail_absent.clear()

    assert world.reconciler().purge(NODE).clean
    assert {} == world.kernel.objects
    assert "t.1" == world.kernel.runs[-1][0]
    assert "stop" in world.kernel.runs[-1][1]
