"""Slivers start, stop, crash, and survive the death of everything around them."""

from __future__ import annotations

import os
import pathlib
import select
import signal
import subprocess

import pytest
from container_world import OtherManager, Running, World, traces, wait_for

from nodemanager_trellis.errors import SubstrateError
from nodemanager_trellis.substrate import lxc


def kill_through_pidfd(pid: int, sig: signal.Signals = signal.SIGKILL) -> None:
    assert pid > 1
    fd = os.pidfd_open(pid)
    signal.pidfd_send_signal(fd, sig)
    if sig == signal.SIGKILL:
        assert select.select([fd], [], [], 10)[0]
    os.close(fd)


def test_running_trio(world: World) -> None:
    """What read returns equals what ensure was given; ensure twice is ensure once; absent of nothing is success."""
    world.define(world.container())
    running = Running(world.name(5), after=(("file", "x"),))
    world.running.absent([running])
    assert [] == world.running.read()
    world.running.ensure([running], {})
    assert [running] == world.running.read()
    assert running.after == world.running.read()[0].after
    init = world.init_pid(running.name)
    world.running.ensure([running], {running.key: running})
    assert init == world.init_pid(running.name)
    world.running.absent([running])
    assert [] == world.running.read()
    assert -1 == world.init_pid(running.name)


def test_eight_slivers_start_at_once_and_stop(world: World) -> None:
    """Eight at a time: all run, each its own; all stop; no cgroup is left."""
    world.define(*(world.container(n) for n in range(1, 9)))
    wanted = [Running(world.name(n)) for n in range(1, 9)]
    world.running.ensure(wanted, {})
    assert wanted == world.running.read()
    hostnames = {world.sh(r.name, "cat /proc/sys/kernel/hostname").stdout for r in wanted}
    assert {f"test_{n}\n".encode() for n in range(1, 9)} == hostnames
    world.running.absent(wanted)
    assert [] == world.running.read()
    assert [] == traces(world.settings)["cgroups"]


def test_sliver_stops_cleanly(world: World) -> None:
    """A stop tells the programs inside; nobody is killed who ends in time."""
    name = world.sliver()
    script = "trap 'echo told > /root/told; exit 0' TERM; echo ready > /root/ready; while :; do sleep 0.05; done"
    world.sh(name, f"setsid bash -c '{script.replace(chr(39), chr(34))}' </dev/null >/dev/null 2>&1 &")
    root = world.host.directory(name) / "rootfs/root"
    wait_for((root / "ready").exists, "the program inside runs")
    world.running.absent([Running(name)])
    assert "told\n" == (root / "told").read_text()


def test_crash_of_init_keeps_interfaces_and_addresses(world: World) -> None:
    """A killed init leaves no Running; addresses and routes are there after the next start."""
    name = world.sliver()
    made = world.sh(
        name,
        "ip link add e0 type veth peer name e1 && ip addr add 10.1.2.3/24 dev e0 && ip link set e0 up"
        " && ip link set e1 up && ip route add 10.9.0.0/16 via 10.1.2.9",
    )
    assert 0 == made.returncode, made.stderr
    kill_through_pidfd(world.init_pid(name))
    wait_for(lambda: world.running.read() == [], "the crash is seen")
    world.running.ensure([Running(name)], {})
    assert [Running(name)] == world.running.read()
    assert b"10.9.0.0/16 via 10.1.2.9" in world.sh(name, "ip route").stdout
    assert b"10.1.2.3/24" in world.sh(name, "ip addr").stdout


def test_start_from_another_netns_is_refused(world: World) -> None:
    """LXC itself would start a second copy over the same files; we say so instead, and the first runs on."""
    name = world.sliver()
    init = world.init_pid(name)
    script = f"""
print('read', w.running.read())
try:
    w.running.ensure([Running({name!r})], {{}})
    print('STARTED')
except SubstrateError as err:
    print('refused', err)
w.close()
"""
    output = OtherManager(world.settings, script, ["unshare", "--net"]).output()
    assert "read []" in output and "another net namespace" in output and "STARTED" not in output
    assert init == world.init_pid(name)
    assert 0 == world.sh(name, "mkdir /root/works").returncode


def test_sliver_started_elsewhere_can_be_stopped(world: World) -> None:
    """absent ends a sliver whose monitor it cannot reach, and leaves no cgroup."""
    world.define(world.container())
    name = world.name(5)
    output = OtherManager(
        world.settings, f"w.running.ensure([Running({name!r})], {{}}); print('up'); w.close()", ["unshare", "--net"]
    ).output()
    assert "up" in output, output
    assert [] == world.running.read()
    with pytest.raises(SubstrateError, match="another net namespace"):
        world.running.ensure([Running(name)], {})
    world.running.absent([Running(name)])
    assert [] == traces(world.settings)["cgroups"]
    world.running.ensure([Running(name)], {})
    assert [Running(name)] == world.running.read()


def test_monitor_killed_leaves_stale_cgroups_that_the_next_start_sweeps(world: World) -> None:
    """After kill -9 of the monitor, the next start uses the plain names again."""
    name = world.sliver()
    [monitor] = world.host.cgroups.processes(name, "monitor")
    kill_through_pidfd(monitor)
    wait_for(lambda: not world.host.cgroups.populated(name), "init dies with its monitor")
    assert [] == world.running.read()
    assert traces(world.settings)["cgroups"] != []
    world.running.ensure([Running(name)], {})
    assert [Running(name)] == world.running.read()
    assert [] == [c for c in traces(world.settings)["cgroups"] if c.endswith("-1")]


def test_monitor_that_hangs_does_not_hold_up_a_stop(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stopped monitor: lxc-stop times out, the sliver is killed all the same."""
    monkeypatch.setattr(lxc, "STOP_TIMEOUT_S", 1)
    monkeypatch.setattr(lxc, "STOP_GRACE_S", 1)
    name = world.sliver()
    [monitor] = world.host.cgroups.processes(name, "monitor")
    kill_through_pidfd(monitor, signal.SIGSTOP)
    world.running.absent([Running(name)])
    assert [] == traces(world.settings)["cgroups"]


def test_program_that_ignores_the_stop_is_killed(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """A sliver does not live longer by catching signals."""
    monkeypatch.setattr(lxc, "STOP_TIMEOUT_S", 1)
    name = world.sliver()
    world.sh(name, "setsid bash -c 'trap : TERM HUP INT; while :; do sleep 1; done' </dev/null >/dev/null 2>&1 &")
    world.running.absent([Running(name)])
    assert [] == world.running.read()
    assert [] == traces(world.settings)["processes"][2:]  # the helper and the worker


def test_worker_killed_or_hanging_is_replaced(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """kill -9 of the worker is not even noticed; one that hangs costs one error."""
    name = world.sliver()
    kill_through_pidfd(world.host.worker.pid)
    assert [Running(name)] == world.running.read()
    monkeypatch.setattr(lxc, "WORKER_TIMEOUT_S", 0.3)
    kill_through_pidfd(world.host.worker.pid, signal.SIGSTOP)
    with pytest.raises(SubstrateError):
        world.running.read()
    monkeypatch.undo()
    assert [Running(name)] == world.running.read()


def test_failed_start_tells_why_and_leaves_nothing(world: World) -> None:
    """LXC's own reason is in the error; other slivers of the same call start."""
    world.define(world.container(1), world.container(2))
    world.pairs.absent([world.pair(1)])
    with pytest.raises(SubstrateError) as caught:
        world.running.ensure([Running(world.name(1)), Running(world.name(2))], {})
    assert str(world.settings.netns_dir) in str(caught.value) or "namespace" in str(caught.value)
    assert [Running(world.name(2))] == world.running.read()
    assert [] == [c for c in traces(world.settings)["cgroups"] if world.name(1) in c]


def test_start_of_what_is_not_defined_is_refused(world: World) -> None:
    """No container, no start."""
    with pytest.raises(SubstrateError, match="not defined"):
        world.running.ensure([Running(world.name(9))], {})


def test_another_process_that_starts_it_is_waited_for(world: World) -> None:
    """While somebody holds the lock of the directory, a start waits; afterwards it goes on."""
    world.define(world.container())
    directory = world.host.directory(world.name(5))
    holder = subprocess.Popen(
        ["flock", str(directory), "sh", "-c", "echo held; read line"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert holder.stdin is not None and holder.stdout is not None
    assert b"held\n" == holder.stdout.readline()
    other = OtherManager(
        world.settings, f"print('go'); w.running.ensure([Running({world.name(5)!r})], {{}}); print('up')"
    )
    assert other.process.stdout is not None
    assert "go\n" == other.process.stdout.readline()
    assert [] == world.running.read()
    holder.communicate(b"\n")
    assert "up\n" == other.process.stdout.readline()
    other.output()
    assert [Running(world.name(5))] == world.running.read()


def test_slivers_run_where_only_cgroup_v2_is_mounted(world: World) -> None:
    """Limits of absent controllers are left out, since LXC would not start with them; start, read and stop work."""
    name = world.name(5)
    script = f"""
container = w.container(memory_bytes=1 << 26, cpu_quota_pct=20)
w.define(container)
w.running.ensure([Running({name!r})], {{}})
print('read', [r.name for r in w.running.read()], w.containers.read() == [container])
print('inside', w.sh({name!r}, 'echo fine').stdout)
print('cgroups', [p.name for p in pathlib.Path('/sys/fs/cgroup').glob('lxc.*.' + {name!r})])
w.running.absent([Running({name!r})])
print('left', [p.name for p in pathlib.Path('/sys/fs/cgroup').glob('lxc.*.' + {name!r})], w.running.read())
w.close()
"""
    mounts = "umount -a -l -t cgroup,cgroup2; umount -l /sys/fs/cgroup; mount -t cgroup2 cgroup2 /sys/fs/cgroup"
    # The pairs' mounts would end with this private mount namespace, so it is the other's to take all away again.
    script += "w = World(settings)\nw.clear()\nw.close()\n"
    output = OtherManager(
        world.settings, script, ["unshare", "--mount", "sh", "-c", f'{mounts}; exec "$@"', "sh"]
    ).output()
    assert f"read ['{name}'] True" in output, output
    assert "inside b'fine\\n'" in output and f"lxc.payload.{name}" in output, output
    assert "left [] []" in output, output


@pytest.mark.parametrize("lines", [1, 3, 4, 6, 8, 9, 12])
def test_manager_killed_at_any_moment_leaves_what_the_next_one_understands(world: World, lines: int) -> None:
    """kill -9 after so many steps: what runs has all it needs, the rest is seen and made whole."""
    script = """
for n in range(1, 5):
    print('pair', n); w.pairs.ensure([w.pair(n)], {})
    print('container', n); w.containers.ensure([w.container(n)], {})
    print('start', n); w.running.ensure([Running(w.name(n))], {})
print('end')
"""
    other = OtherManager(world.settings, script)
    children = [pathlib.Path(f"/proc/{other.process.pid}/task/{other.process.pid}/children")]
    assert other.process.stdout is not None
    for _ in range(lines):
        assert other.process.stdout.readline()
    orphans = [int(pid) for pid in children[0].read_text().split()]
    other.process.kill()
    other.process.wait()
    other.process.stdout.close()
    for pid in orphans:
        wait_for(lambda pid=pid: not pathlib.Path(f"/proc/{pid}").exists(), "helper, worker and lxc-start end")
    pairs = {p.name: p for p in world.pairs.read()}
    containers = {c.name: c for c in world.containers.read()}
    for running in world.running.read():
        assert running.name in containers and running.name in pairs
        assert 0 == world.sh(running.name, "touch /root/lives").returncode
    everything = [world.container(n) for n in range(1, 5)]
    world.define(*everything)
    world.running.ensure([Running(c.name) for c in everything], {})
    assert everything == world.containers.read()
    assert [world.pair(n) for n in range(1, 5)] == world.pairs.read()
    assert [Running(c.name) for c in everything] == world.running.read()


def test_slivers_run_on_when_their_manager_is_gone(world: World) -> None:
    """The next manager finds them running, with the same init."""
    name = world.sliver()
    init = world.init_pid(name)
    world.close()
    other = World(world.settings)
    try:
        assert [Running(name)] == other.running.read()
        assert init == other.init_pid(name)
        assert [world.container()] == other.containers.read()
        assert [world.pair()] == other.pairs.read()
    finally:
        other.close()


def test_init_restarts_in_place_on_reboot_inside(world: World) -> None:
    """``reboot -f`` inside gives a new init and keeps the sliver Running."""
    name = world.sliver()
    init = world.init_pid(name)
    world.python(name, "import ctypes; ctypes.CDLL(None).reboot(0x1234567)")
    wait_for(lambda: world.init_pid(name) not in (-1, init), "a new init")
    assert [Running(name)] == world.running.read()


def test_pivot_cgroup_is_left_to_others(world: World) -> None:
    """LXC's shared cgroup is not ours to remove."""
    world.sliver()
    pivots = set(pathlib.Path("/sys/fs/cgroup").glob("*/lxc.pivot"))
    world.clear()
    assert pivots <= set(pathlib.Path("/sys/fs/cgroup").glob("*/lxc.pivot"))
