"""Random lives of a node: whatever happens, the kernel ends up as wanted and nothing else is left."""

import pathlib
import shutil
import tempfile

import hypothesis.strategies as st
from fakes import FakeKernel
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from nodemanager_trellis import hooks
from nodemanager_trellis.model import Desired, Limits, Node, Presence, Sliver, VirtualLink
from nodemanager_trellis.reconcile import Reconciler
from nodemanager_trellis.store import Store

NODE = Node(1, "n", "198.51.100.1", instance="t", underlay="u0")
REGISTRY = hooks.load()


@st.composite
def slivers(draw):
    found = []
    for slice_id in draw(st.sets(st.integers(1, 4))):
        remotes = draw(st.sets(st.integers(2, 5), max_size=3))
        links = tuple(
            VirtualLink(f"n{r}", 10 + slice_id, r, f"198.51.100.{r}", f"a{slice_id}if{r}", (f"10.{slice_id}.{r}.1/30",),
                        rate_bps=draw(st.sampled_from([0, 10**6, 10**7])))
            for r in sorted(remotes)
        )  # fmt: skip
        presence = draw(st.sampled_from([Presence.RUN, Presence.RUN, Presence.STOP]))
        limits = Limits(net_max_bps=draw(st.sampled_from([None, 10**7])))
        found.append(
            Sliver(f"a_s{slice_id}", slice_id, presence, "plc-instantiated", 2**31 - 1, links=links, limits=limits)
        )
    return tuple(found)


class Life(RuleBasedStateMachine):
    """PLC says things, objects vanish, steps fail, the daemon is killed; then a quiet run must put all right."""

    def __init__(self):
        super().__init__()
        self.directory = pathlib.Path(tempfile.mkdtemp())
        self.kernel = FakeKernel()
        self.store = Store(self.directory / "store")
        self.desired = Desired(0, NODE)

    def teardown(self):
        self.store.close()
        shutil.rmtree(self.directory)

    def run_once(self):
        return Reconciler(self.kernel, REGISTRY, self.store).run(self.store.numbered(self.desired))

    @rule(found=slivers())
    def plc_says(self, found):
        self.desired = Desired(0, NODE, found)

    @rule()
    def run(self):
        self.run_once()

    @rule(data=st.data())
    def objects_vanish(self, data):
        links = sorted(ident for kind, ident in self.kernel.objects if kind == "veth")
        if links:
            ifname = data.draw(st.sampled_from(links))
            for kind in ("linkup", "shortbridge", "veth"):
                self.kernel.objects.pop((kind, ifname), None)

    @rule(data=st.data())
    def run_with_failures(self, data):
        keys = sorted(self.kernel.objects) or [("pair", "t.1")]
        self.kernel.fail = set(
            data.draw(st.lists(st.sampled_from([*keys, ("container", "t.2"), ("pair", "t.3")]), max_size=3))
        )
        self.kernel.fail_absent = set(data.draw(st.lists(st.sampled_from(keys), max_size=2)))
        self.run_once()
        self.kernel.fail, self.kernel.fail_absent = set(), set()

    @rule()
    def killed_and_started_again(self):
        self.store.close()
        self.store = Store(self.directory / "store")

    @rule()
    def quiet_run_puts_all_right(self):
        self.run_once()
        assert self.run_once().clean
        wanted = dict(REGISTRY.for_node(NODE, {}).objects)
        for sliver in self.store.numbered(self.desired).slivers:
            wanted |= REGISTRY.for_sliver(sliver, NODE, {}).objects
        assert wanted == self.kernel.objects
        calls = len(self.kernel.calls)
        assert not self.run_once().plan
        assert calls == len(self.kernel.calls)

    @invariant()
    def everything_needed_is_there(self):
        for obj in self.kernel.objects.values():
            if obj.kind not in ("shortbridge", "linkup", "veth"):
                assert all(key in self.kernel.objects for key in obj.needs), obj


TestLife = Life.TestCase
TestLife.settings = settings(max_examples=60, stateful_step_count=20, deadline=None)
