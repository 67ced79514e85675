"""A whole lab, nothing faked: three nodes, an operator's script, a slice that works, is changed, and goes.

The tests of this file share one lab and run in their order.
"""

from __future__ import annotations

import io
import os
import shutil
import subprocess
import sys

import pytest

from nodemanager_trellis.errors import Unsupported
from nodemanager_trellis.lab import control, demo, topology, underlay
from nodemanager_trellis.lab.control import Lab, Programs
from nodemanager_trellis.lab.demo import Demo, Pinger, link_address
from nodemanager_trellis.lab.progress import Progress

TOPO = topology.parse(
    {"name": "three", "nodes": ["n1", "n2", "n3"],
     "links": [{"a": "n1", "b": "n2", "rate": "50mbit"}, {"a": "n2", "b": "n3", "rate": "20mbit"}]}
)  # fmt: skip
SLICE = "vini_three"


def why_not():
    """What is missing for a lab on this machine; '' when nothing is."""
    if os.geteuid() != 0:
        return "needs root"
    missing = [name for name in ("lxc-start", "lxc-attach", "bird", "iperf3", "ping") if shutil.which(name) is None]
    if missing:
        return f"needs {', '.join(missing)}"
    try:
        Programs.find()
    except Unsupported as err:
        return str(err)
    return ""


pytestmark = [pytest.mark.lab, pytest.mark.skipif(bool(why_not()), reason=why_not())]


def mounts():
    with open("/proc/self/mountinfo", encoding="utf-8") as file:
        return {line.split()[4] for line in file}


@pytest.fixture(scope="module")
def show(tmp_path_factory):
    """A lab with its slice up, as a Demo: its tools look into slivers. Down at the end, with nothing left."""
    name = f"t{os.getpid() % 10**7}"
    made = Demo(Lab(name), TOPO, SLICE, tmp_path_factory.mktemp("report"), Progress(quiet=True), io.StringIO())
    mounts_before = mounts()
    made.up()
    slivers = []
    try:
        made.make_slice()
        slivers = [made.lab.node_status(node.name)["slivers"][SLICE]["container"] for node in made.record.nodes]
        yield made
    finally:
        if made.lab.exists():
            left = made.lab.down()
            assert left == []
    assert [name for name in os.listdir(underlay.NETNS_DIRECTORY) if name.startswith(made.lab.name)] == []
    assert [group for sliver in slivers for group in control.cgroups_of(sliver)] == []
    assert {point for point in mounts() - mounts_before if made.lab.name in point} == set()
    assert not made.lab.run_dir.exists()
    assert not made.lab.state_dir.exists()


def test_links_are_as_asked(show):
    """Both ends of both links, with the rates, names and key that the script wrote."""
    ends = show.ends()
    assert {pair: end["rate_bps"] for pair, end in ends.items()} == {
        ("n1", "n2"): 50_000_000,
        ("n2", "n1"): 50_000_000,
        ("n2", "n3"): 20_000_000,
        ("n3", "n2"): 20_000_000,
    }
    assert ends["n1", "n2"]["inner"] == "a1if2"
    assert ends["n3", "n2"]["inner"] == "a1if2"
    assert {end["key"] for end in ends.values()} == {1}


def test_ping_through_the_middle_sliver(show):
    """n1 reaches n3 by static routes over the sliver on n2, one hop lower."""
    a, b, c = (show.node(name).node_id for name in ("n1", "n2", "n3"))
    for here, far, via in (
        ("n1", link_address(c, b), link_address(b, a)),
        ("n3", link_address(a, b), link_address(b, c)),
    ):
        show.must(here, ["ip", "route", "replace", f"{far}/32", "via", via])
    show.must("n2", ["sh", "-c", "echo 1 >/proc/sys/net/ipv4/ip_forward"])
    output = show.must("n1", ["ping", "-n", "-c", "5", "-i", "0.2", "-W", "3", link_address(c, b)])
    assert "5 received" in output
    assert "ttl=63" in output


def test_exec_as_people_type_it(show):
    """``trellis lab exec`` passes output and exit status on."""
    command = [sys.executable, "-m", "nodemanager_trellis.lab.cli", "exec", "--name", show.lab.name, "n2", SLICE, "--"]
    done = subprocess.run([*command, "sh", "-c", "id -u; exit 7"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (7, "0\n")


def test_run_knows_plc(show):
    """``trellis lab run`` sets the operator's environment; the script finds its slice there and has nothing to do."""
    words = [
        "run",
        "--name",
        show.lab.name,
        "--",
        sys.executable,
        demo.example("change_rate.py"),
        SLICE,
        "n1",
        "n2",
        "50mbit",
    ]
    done = subprocess.run(
        [sys.executable, "-m", "nodemanager_trellis.lab.cli", *words], capture_output=True, text=True, check=False
    )
    assert "0 tags written" in done.stdout, done.stderr


def test_rate_changes_live(show):
    """Both ends follow, nothing is lost, and the new rate is what flows (the Demo's own promise)."""
    show.change_rate()


def test_managers_may_be_killed(show):
    """SIGKILL to all while a ping crosses the middle sliver: no loss, the same slivers afterwards."""
    target = link_address(show.node("n3").node_id, show.node("n2").node_id)
    source = link_address(show.node("n1").node_id, show.node("n2").node_id)
    before = show._inits()
    with Pinger(show.lab.sliver_command("n1", SLICE, Pinger.script(source, target))) as pinger:
        pinger.wait_answers(10)
        assert sorted(show.lab.kill()) == ["n1", "n2", "n3"]
        pinger.wait_answers(25)
        assert sorted(show.lab.restart()) == ["n1", "n2", "n3"]
        show.wait(show._missing_slivers, 30)
        pinger.wait_answers(10)
        _, lost = pinger.end()
    assert lost == []
    assert before == show._inits()


def test_map_of_the_living(show):
    """Every link once, nothing wrong with any, the counters can be read."""
    states = demo.links.states(show.lab, SLICE, 0.1)
    assert [(state.a, state.b, state.problem) for state in states] == [("n1", "n2", ""), ("n2", "n3", "")]
    assert all(state.used_bps is not None for state in states)


def test_down_without_a_working_purge(show):
    """The nodes' own purge fails: down still removes slivers, namespaces and cgroups by what it knows."""
    slivers = [show.lab.node_status(node.name)["slivers"][SLICE]["container"] for node in show.record.nodes]
    crippled = Lab(show.lab.name, Programs(Programs.find().plc, ("false",)))
    assert crippled.down() == []
    assert [group for sliver in slivers for group in control.cgroups_of(sliver)] == []
    assert [point for sliver in slivers for point in control.mounts_named(sliver)] == []
