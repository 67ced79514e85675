"""The lab's own work, with daemons that do nothing: up, kill, restart, down, and what a crash leaves."""

from __future__ import annotations

import json
import os
import pathlib
import signal
import subprocess
import sys

import pytest

from nodemanager_trellis.errors import InvalidInput, NotOurs, SubstrateError
from nodemanager_trellis.lab import processes, topology, underlay
from nodemanager_trellis.lab.control import Lab, Programs, check_clean

HERE = pathlib.Path(__file__).parent
PROGRAMS = Programs(
    (sys.executable, str(HERE / "fake_plc.py")),
    (sys.executable, str(HERE / "fake_manager.py")),
)
LINE = topology.line(3)

pytestmark = [
    pytest.mark.kernel,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root"),
]


@pytest.fixture
def lab(monkeypatch):
    """A lab that is not yet up; taken down afterwards, with nothing left."""
    monkeypatch.setenv("PYTHONPATH", str(HERE.parent.parent))
    before = set(os.listdir(underlay.NETNS_DIRECTORY)) if underlay.NETNS_DIRECTORY.exists() else set()
    made = Lab(f"t{os.getpid() % 10**7}", PROGRAMS)
    yield made
    if made.exists():
        assert made.down() == []
    mine = [name for name in set(os.listdir(underlay.NETNS_DIRECTORY)) - before if name.startswith(made.name)]
    assert mine == []
    assert not made.run_dir.exists()
    assert not made.state_dir.exists()


def test_up_registers_and_starts_everything(lab):
    """Nodes are at PLC, their managers run with their keys, and the status says so."""
    record = lab.up(LINE)
    status = lab.status()
    assert [n.node_id for n in record.nodes] == [1, 2, 3]
    assert all(node["running"] for node in status["nodes"].values())
    assert status["plc"]["running"]
    assert "node_key = key2\n" in lab.config_file("n2").read_text()
    assert lab.config_file("n2").stat().st_mode & 0o777 == 0o600
    nodes = lab.plc().call("GetNodes", None, ["hostname"])
    assert [{"hostname": f"n{i}.vini.test"} for i in (1, 2, 3)] == nodes
    inner = subprocess.run(
        underlay.inside(f"{lab.name}-n1", ["ping", "-c", "1", "-W", "2", underlay.node_address(2)]),
        check=False,
        capture_output=True,
    )
    assert inner.returncode == 0


def test_second_up_is_refused_and_harms_nothing(lab):
    """A lab of that name exists: one error, and it runs on."""
    lab.up(LINE)
    with pytest.raises(NotOurs, match="exists already"):
        Lab(lab.name, PROGRAMS).up(LINE)
    assert all(node["running"] for node in lab.status()["nodes"].values())


def test_foreign_namespace_is_refused_and_stays(lab):
    """Somebody's namespace has a name of ours: nothing is made, nothing of theirs removed."""
    name = underlay.node_netns(lab.name, "n2")
    subprocess.run(["ip", "netns", "add", name], check=True)
    try:
        number = underlay.inode(name)
        with pytest.raises(NotOurs, match=name):
            lab.up(LINE)
        assert number == underlay.inode(name)
        assert not lab.run_dir.exists()
    finally:
        subprocess.run(["ip", "netns", "del", name], check=True)


def test_kill_and_restart(lab):
    """Killed managers are started again; the others keep their pids."""
    record = lab.up(LINE)
    first = {node.name: node.manager for node in record.nodes}
    assert lab.kill(["n2"]) == ["n2"]
    assert [processes.alive(first[n]) for n in ("n2", "n3")] == [False, True]
    assert lab.restart() == ["n2"]
    again = {node.name: node.manager for node in lab.record().nodes}
    assert (first["n1"], first["n3"]) == (again["n1"], again["n3"])
    assert processes.alive(again["n2"])
    assert {"n1", "n2", "n3"} == set(lab.kill())


def test_failed_up_leaves_nothing(lab, monkeypatch):
    """One manager does not come up: the error carries its words, and everything is gone."""
    monkeypatch.setenv("FAKE_MANAGER_FAILS", "3")
    with pytest.raises(SubstrateError, match="no kernel today"):
        lab.up(LINE)
    assert not lab.exists()


def test_down_after_the_command_was_killed(lab):
    """The process that brings a lab up dies by SIGKILL at some moment: down finds all that it made."""
    script = (
        "import sys, pathlib; from nodemanager_trellis.lab.control import Lab, Programs;"
        "from nodemanager_trellis.lab import topology;"
        f"Lab({lab.name!r}, Programs({PROGRAMS.plc!r}, {PROGRAMS.manager!r})).up(topology.line(3))"
    )
    for sign in ("lab.json", "plc.log", "plc.ready", "n1.conf", "n1.log", "n2.log"):
        child = subprocess.Popen([sys.executable, "-c", script])
        fd = os.pidfd_open(child.pid)
        try:
            while not (lab.run_dir / sign).exists():
                assert child.poll() is None, sign
            signal.pidfd_send_signal(fd, signal.SIGKILL)
        finally:
            child.wait()
            os.close(fd)
        record = lab.record()
        assert lab.down() == []
        assert check_clean(lab, record) == []


def test_sigterm_undoes_up(lab):
    """``up`` that gets SIGTERM takes away what it has made, and ends."""
    script = (
        "from nodemanager_trellis.lab.control import Lab, Programs, ended_by_sigterm;"
        "from nodemanager_trellis.lab import topology\n"
        "with ended_by_sigterm():"
        f" Lab({lab.name!r}, Programs({PROGRAMS.plc!r}, {PROGRAMS.manager!r})).up(topology.line(3))"
    )
    child = subprocess.Popen([sys.executable, "-c", script], stderr=subprocess.DEVNULL)
    while not (lab.run_dir / "n1.log").exists():
        assert child.poll() is None
    child.terminate()
    assert child.wait() != 0
    assert not lab.exists()


def test_purge_is_run_for_each_node(lab):
    """Each node is emptied by its own manager before it goes."""
    lab.up(LINE)
    seen = []
    original = lab._remove_directories

    def look_then_remove():
        seen.extend(lab.state_dir.glob("*/purged"))
        original()

    lab._remove_directories = look_then_remove
    assert lab.down() == []
    assert len(seen) == 3


def test_record_is_read_as_written(lab):
    """lab.json survives the round trip, and is JSON for others."""
    record = lab.up(LINE)
    assert record == lab.record()
    assert lab.name == json.loads((lab.run_dir / "lab.json").read_text())["name"]


def test_unknown_names_are_errors(lab):
    """No lab, no node, no sliver: a sentence each."""
    with pytest.raises(InvalidInput, match="no lab called"):
        lab.record()
    with pytest.raises(InvalidInput, match="no lab called"):
        lab.down()
    with pytest.raises(InvalidInput, match="not a lab's name"):
        Lab("Has Blanks")
    lab.up(LINE)
    with pytest.raises(InvalidInput, match="no node 'n9'"):
        lab.kill(["n9"])
    with pytest.raises(InvalidInput, match="no sliver"):
        lab.sliver_command("n1", "x_y", ["true"])
