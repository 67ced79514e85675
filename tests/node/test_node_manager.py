"""The daemon as a whole, on one node: life, death, bad input, missing PLC."""

import copy
import os
import pathlib
import shutil
import signal
import subprocess
import sys

import pytest
from conftest_node import FIXTURES, MANAGER, wait_for

from nodemanager_trellis.names import root_ifname

pytestmark = [pytest.mark.container, pytest.mark.skipif(os.geteuid() != 0, reason="needs root")]

LINE3 = "princeton_line3"


def sliver_of(answer, name=LINE3):
    return next(s for s in answer["slivers"] if s["name"] == name)


def set_tag(answer, tagname, value, name=LINE3):
    attributes = sliver_of(answer, name)["attributes"]
    for attribute in attributes:
        if attribute["tagname"] == tagname:
            attribute["value"] = value
            return
    attributes.append({"tagname": tagname, "value": value})


def up(node):
    """The answer's sliver runs."""
    node.start()
    node.ready()
    wait_for(lambda: node.status()["slivers"].get(LINE3, {}).get("state") == "running", "line3 runs")
    return node.status()["slivers"][LINE3]


def init_pid(node, container):
    path = node.directory / "state" / "slivers"
    return node.run("lxc-info", "-P", str(path), "-n", container, "-p", "-H").strip()


def ceil_of(node, minor):
    return next(
        (line for line in node.run("tc", "class", "show", "dev", "u0").splitlines() if f"htb 1:{minor:x} " in line), ""
    )


def test_recorded_answer_becomes_a_running_sliver(node):
    """The recorded line3 answer for chic makes its sliver with both links, addresses, classes and keys."""
    sliver = up(node)
    addresses = node.inside(sliver["container"], "ip", "-br", "-4", "addr")

    assert {"n1", "n3"} == set(sliver["links"])
    assert "a1if1" in addresses and "192.168.2.10/30" in addresses and "192.168.4.13/30" in addresses
    assert "ceil 100Mbit" in ceil_of(node, sliver["links"]["n1"]["minor"])
    assert "ceil 50Mbit" in ceil_of(node, sliver["links"]["n3"]["minor"])
    assert 2 == node.inside(sliver["container"], "cat", "/root/.ssh/authorized_keys").count("ssh-rsa")
    assert "left" == node.status()["slivers"]["pl_sfacm"]["state"]


def test_plan_is_empty_after_a_run_and_tells_a_difference(node):
    """`trellis plan` has nothing to do on a settled node, and names what someone took away."""
    sliver = up(node)
    trellis = pathlib.Path(sys.executable).with_name("trellis")
    node.end()

    def plan():
        return subprocess.run(
            [trellis, "plan", "--config", node.config], capture_output=True, text=True, check=True
        ).stdout

    assert "nothing to do\n" == plan()
    ifname = sliver["links"]["n1"]["ifname"]
    node.run("ip", "link", "del", ifname)
    assert f"+ veth {ifname}" in plan()


def test_sigterm_leaves_slivers_and_a_new_manager_adopts_them(node):
    """SIGTERM ends the manager with status 0; the sliver runs on and the next manager changes nothing."""
    sliver = up(node)
    before = init_pid(node, sliver["container"])
    assert 0 == node.end()
    assert before == init_pid(node, sliver["container"])
    node.start()
    node.ready()

    assert before == init_pid(node, sliver["container"])
    assert "sliver started" not in node.log.read_text().rsplit("INFO daemon: started", 1)[-1]


def test_killed_manager_loses_nothing(node):
    """SIGKILL in the middle of its work: the next manager brings the node to the wanted state."""
    node.start()
    wait_for(lambda: list(pathlib.Path("/run/netns").glob(f"{node.instance}.*")), "the first namespaces exist")
    node.end(signal.SIGKILL)
    sliver = up(node)

    assert "192.168.2.10/30" in node.inside(sliver["container"], "ip", "-br", "-4", "addr")


def test_plc_away_at_start_uses_the_last_good_answer(node):
    """With PLC answering 503 a node with a stored answer brings its slivers up; one without waits quietly."""
    node.up = False
    node.start()
    wait_for(lambda: "PLC not usable" in node.log.read_text(), "the manager says that PLC is away")
    assert node.process.poll() is None
    node.up = True
    wait_for(lambda: (node.run_dir / "status.json").exists() and LINE3 in node.status()["slivers"], "PLC is back")
    node.end()
    subprocess.run([MANAGER, "--config", node.config, "--purge"], check=True)
    node.up = False

    assert "running" == up(node)["state"]


def test_reboot_without_plc_brings_slivers_back(node):
    """With everything that a reboot takes gone, and PLC away, the sliver comes up from the last good answer."""
    sliver = up(node)
    container = sliver["container"]
    node.inside(container, "touch", "/root/mine")
    node.end(signal.SIGKILL)
    node.up = False
    node.run("lxc-stop", "-k", "-P", str(node.directory / "state" / "slivers"), "-n", container)
    mounted = [line.split()[1] for line in pathlib.Path("/proc/mounts").read_text().splitlines()]
    for path in mounted:
        if path.startswith(str(node.run_dir)) or path == f"/run/netns/{container}":
            subprocess.run(["umount", "-l", path], check=True)
    os.unlink(f"/run/netns/{container}")
    node.run("ip", "link", "del", "u0")
    shutil.rmtree(f"/sys/fs/bpf/trellis/{node.instance}")
    shutil.rmtree(node.run_dir)
    node.make_underlay()
    again = up(node)

    assert "192.168.2.10/30" in node.inside(again["container"], "ip", "-br", "-4", "addr")
    assert "ceil 100Mbit" in ceil_of(node, again["links"]["n1"]["minor"])
    assert "/root/mine\n" == node.inside(container, "ls", "/root/mine")


@pytest.mark.parametrize(
    "body",
    [b"", b"<html>", b"<?xml version='1.0'?><!DOCTYPE x [<!ENTITY a 'b'>]><methodResponse/>", b"<value>" * 100_000],
    ids=["empty", "html", "entities", "deep"],
)
def test_rubbish_instead_of_an_answer_changes_nothing(node, body):
    """Malformed, hostile or deep XML from PLC leaves the last good answer in force."""
    sliver = up(node)
    before = init_pid(node, sliver["container"])
    node.answer = body
    calls = len(node.plc.calls)
    wait_for(lambda: len(node.plc.calls) >= calls + 2, "the manager asked again")
    wait_for(lambda: "PLC not usable" in node.log.read_text(), "the manager says so")

    assert before == init_pid(node, sliver["container"])


def test_bad_rate_costs_only_itself_and_is_told(node):
    """A rate that is none keeps the link's last good rate, names the JSON path, and everything else goes on."""
    up(node)
    answer = copy.deepcopy(node.answer)
    set_tag(
        answer,
        "topo_rspec",
        sliver_of(answer)["attributes"][0]["value"].replace("100mbit", "fast").replace("50mbit", "60mbit"),
    )
    node.answer = answer
    status = wait_for(lambda: (s := node.status()["slivers"][LINE3])["problems"] and s, "the problem is shown")

    assert "$.slivers[" in status["problems"][0] and "fast" in status["problems"][0]
    assert (100_000_000, 60_000_000) == (status["links"]["n1"]["rate_bps"], status["links"]["n3"]["rate_bps"])
    wait_for(lambda: "ceil 60Mbit" in ceil_of(node, status["links"]["n3"]["minor"]), "the good half is in force")
    assert "ceil 100Mbit" in ceil_of(node, status["links"]["n1"]["minor"])


def test_disabled_slice_stops_and_starts_again(node):
    """enabled=0 stops the sliver and takes its links down; enabled=1 starts it with everything in place."""
    sliver = up(node)
    set_tag(node.answer, "enabled", "0")
    wait_for(lambda: node.status()["slivers"][LINE3]["state"] == "stopped", "stopped")
    assert "UP" not in node.run("ip", "-br", "link", "show", sliver["links"]["n1"]["ifname"]).split()[1]
    set_tag(node.answer, "enabled", "1")
    wait_for(lambda: node.status()["slivers"][LINE3]["state"] == "running", "running")

    assert "192.168.2.10/30" in node.inside(sliver["container"], "ip", "-br", "-4", "addr")


def test_slice_removed_leaves_nothing_of_it(node):
    """A slice that is no longer in the answer is taken away completely."""
    sliver = up(node)
    node.answer["slivers"].remove(sliver_of(node.answer))
    wait_for(lambda: LINE3 not in node.status()["slivers"], "gone")

    assert [] == list(pathlib.Path("/run/netns").glob(sliver["container"]))
    assert not (node.directory / "state" / "slivers" / sliver["container"]).exists()
    assert "" == node.run("ip", "-br", "link", "show", "group", "32273")


def test_longest_slice_name_works(node):
    """A name of 64 bytes with every sort of legal character gets its sliver."""
    name = "prince.ton0_" + "Ab.z_9" * 8 + "Wxyz"
    assert 64 == len(name)
    sliver_of(node.answer)["name"] = name
    node.start()
    node.ready()
    wait_for(lambda: node.status()["slivers"].get(name, {}).get("state") == "running", "it runs")

    assert name == node.inside(node.status()["slivers"][name]["container"], "hostname").strip()


def test_sliver_that_deletes_its_link_gets_it_back(node):
    """When root inside deletes a link's end it is made again, while the other link stays the same device."""
    sliver = up(node)

    def index_of_other():
        return node.run("ip", "-o", "link", "show", root_ifname(1, "n3")).split(":")[0]

    before = index_of_other()
    node.inside(sliver["container"], "ip", "link", "del", "a1if1")
    wait_for(lambda: "192.168.2.10/30" in node.inside(sliver["container"], "ip", "-br", "-4", "addr"), "a1if1 is back")

    assert before == index_of_other()


def test_initscript_runs_inside_at_start(node):
    """The slice's initscript is run in the sliver with 'start' and the slice's name."""
    set_tag(node.answer, "initscript_code", '#!/bin/sh\necho "$1 $2" > /var/tmp/initscript-ran\n')
    sliver = up(node)
    wait_for(
        lambda: "start" in node.inside(sliver["container"], "sh", "-c", "cat /var/tmp/initscript-ran || true"), "it ran"
    )

    assert f"start {LINE3}\n" == node.inside(sliver["container"], "cat", "/var/tmp/initscript-ran")


def test_dropped_in_plugin_that_raises_degrades_but_harms_nothing(node):
    """A plugin that raises in every hook leaves the sliver running and shown as degraded with the reason."""
    (node.directory / "plugins").mkdir()
    (node.directory / "plugins" / "bad.py").write_text(
        "from nodemanager_trellis.hooks import Plugin\n"
        "class Bad(Plugin):\n    name = 'bad'\n"
        "    def create(self, sliver, node):\n        raise RuntimeError('boom')\n"
    )
    node.start()
    node.ready()
    status = wait_for(lambda: (s := node.status()["slivers"].get(LINE3)) and s["state"] == "degraded" and s, "degraded")

    assert any("boom" in text for text in status["problems"])
    assert "192.168.2.10/30" in node.inside(status["container"], "ip", "-br", "-4", "addr")


def test_foreign_device_of_a_needed_name_is_not_touched(node):
    """A device of a link's name without our mark costs that link only, is told, and stays as it is."""
    ifname = root_ifname(1, "n1")
    node.run("ip", "link", "add", ifname, "type", "veth", "peer", "name", "foreign")
    node.start()
    node.ready()
    status = wait_for(lambda: (s := node.status()["slivers"].get(LINE3)) and s["state"] == "degraded" and s, "degraded")
    addresses = node.inside(status["container"], "ip", "-br", "-4", "addr")

    assert any(ifname in text for text in status["problems"])
    assert "192.168.4.13/30" in addresses and "192.168.2.10/30" not in addresses
    assert "foreign" in node.run("ip", "-br", "link")
    node.run("ip", "link", "del", ifname)


def test_second_manager_is_refused(node):
    """Only one manager works on an instance; the second says so and changes nothing."""
    up(node)
    second = subprocess.run([MANAGER, "--config", node.config], capture_output=True, text=True)

    assert (1, True) == (second.returncode, "another node manager" in second.stderr)


def test_without_root_it_says_so(node):
    """Started by a user, the manager says that it needs root and changes nothing."""
    command = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", MANAGER, "--config", node.config]
    done = subprocess.run(command, capture_output=True, text=True)

    assert (1, True) == (done.returncode, "must run as root" in done.stderr)


def test_missing_bpf_file_system_is_named(node):
    """Where BPF objects cannot be pinned the node says what is missing; slivers run without links."""
    node.write_config(bpffs="/proc/trellis-nowhere")
    node.start()
    node.ready()
    status = wait_for(lambda: node.status()["problems"] and node.status(), "the node tells")

    assert any("bpf" in p["message"].lower() or "nowhere" in p["message"] for p in status["problems"])
    assert "degraded" == status["slivers"][LINE3]["state"]
    assert "lo" in node.inside(status["slivers"][LINE3]["container"], "ip", "-br", "link")
    node.end()
    node.write_config()


def test_bad_configuration_is_one_clear_line(tmp_path):
    """A wrong setting ends the manager with one line that names it."""
    (tmp_path / "nm.conf").write_text("[trellis-nm]\nplc_url = http://x/\nnode_id = 1\nnode_key = k\nspeed = 9\n")
    done = subprocess.run([MANAGER, "--config", tmp_path / "nm.conf"], capture_output=True, text=True)

    assert (1, "trellis-nm: trellis-nm.speed: no such setting\n") == (done.returncode, done.stderr)
    assert FIXTURES.exists()
