"""What a sliver's root can and cannot do, tried by programs executed inside."""

from __future__ import annotations

import pathlib
import subprocess
import textwrap
from collections.abc import Iterator

import pytest
from container_world import Running, World, wait_for

SYSCALL = """
import ctypes, os, sys
libc = ctypes.CDLL(None, use_errno=True)
def call(*arguments):
    result = libc.syscall(*(ctypes.c_long(a) if isinstance(a, int) else a for a in arguments))
    return result, os.strerror(ctypes.get_errno()) if result < 0 else ""
"""


@pytest.mark.parametrize(
    "script",
    [
        "echo 1 > /proc/sys/kernel/panic",
        "mount -o remount,rw,bind /proc/sys; echo 1 > /proc/sys/kernel/panic",
        "mkdir /tmp/p && mount -t proc proc /tmp/p; echo 1 > /tmp/p/sys/kernel/panic",
        "mkdir /tmp/s && mount -t sysfs sysfs /tmp/s; echo 1 > /tmp/s/kernel/mm/ksm/run",
        "echo b > /proc/sysrq-trigger",
        "mknod /tmp/disk b 254 0",
        "mknod /tmp/mem c 1 1",
        "unshare --user true",
        "unshare --user --map-root-user true",
        "mount -o remount,rw,bind /usr; touch /usr/bin/mine",
        "mount -t cgroup -o memory c /mnt && echo -1 > /mnt/memory.limit_in_bytes",
        "mount -t cgroup2 c /mnt && echo 1 > /mnt/cgroup.freeze",
        "dmesg",
        "date -s 2020-01-01",
        "chroot /proc/1/root/../../.. true; ls /boot /lost+found 2>/dev/null | grep .",
        "ls /proc/1/root/boot",
        "mount -t debugfs d /mnt",
        "mount -t tracefs t /mnt",
        "mount -t bpf b /mnt && bpftool prog load x /mnt/x",
        "mount /dev/vda /mnt",
        "nsenter --net=/proc/1/root/run/netns/x true",
    ],
)
def test_sliver_cannot(shared: tuple[World, str], script: str) -> None:
    """None of these ends well inside, though it is root there."""
    world, name = shared
    done = world.sh(name, script)
    assert 0 != done.returncode, (done.stdout, done.stderr)


@pytest.mark.parametrize(
    ("what", "call"),
    [
        ("bpf", "call(321, 0, ctypes.create_string_buffer(128), 128)"),
        ("perf_event_open", "call(298, ctypes.create_string_buffer(128), 0, -1, -1, 0)"),
        ("userfaultfd", "call(323, 0)"),
        ("keyctl", "call(250, 0, -3, 1)"),
        ("add_key", "call(248, b'user', b'x', b'y', 1, -3)"),
        ("io_uring_setup", "call(425, 1, ctypes.create_string_buffer(128))"),
        ("open_by_handle_at", "call(304, -100, ctypes.create_string_buffer(128), 0)"),
        ("init_module", "call(175, None, 0, b'')"),
        ("kexec_load", "call(246, 0, 0, None, 0)"),
        ("kexec_file_load", "call(320, -1, -1, 0, None, 0)"),
        ("clone into a user namespace", "call(56, 0x10000000 | 17, 0, 0, 0, 0)"),
        ("clone3", "call(435, ctypes.create_string_buffer(88), 88)"),
    ],
)
def test_sliver_cannot_call(shared: tuple[World, str], what: str, call: str) -> None:
    """System calls that widen the way into the kernel are refused before the kernel looks at their arguments."""
    world, name = shared
    done = world.python(
        name,
        f"{SYSCALL}\nresult, error = {call}\nif result == 0 and 'clone' in {what!r}: os._exit(0)\nprint(result, error)",
    )
    assert done.stdout.decode().strip() in ("-1 Operation not permitted", "-1 Function not implemented"), done


def test_sliver_sees_only_its_own_processes(shared: tuple[World, str]) -> None:
    """No process but those of the sliver is in its /proc."""
    world, name = shared
    done = world.sh(name, "cat /proc/[0-9]*/comm")
    assert {"init", "init.lxc.static", "sleep", "cat", "bash"} >= set(done.stdout.decode().split()), done.stdout


def test_sliver_has_no_power_outside_its_user_namespace(shared: tuple[World, str]) -> None:
    """Its init and whatever is attached run as the sliver's uids on the host, in its own namespaces, under seccomp."""
    world, name = shared
    pid = world.init_pid(name)
    status = pathlib.Path(f"/proc/{pid}/status").read_text()
    assert f"Uid:\t{world.pair().uid_base}\t" in status
    assert "Seccomp:\t2" in status
    for kind in ("user", "net", "mnt", "pid", "uts", "ipc", "cgroup"):
        here, there = (pathlib.Path(f"/proc/{p}/ns/{kind}").readlink() for p in ("self", pid))
        assert (here == there) == (kind == "cgroup" and here == there) or here != there
    attached = world.sh(
        name, "grep -E '^(Seccomp|CapEff|CapBnd):' /proc/self/status; cat /proc/self/uid_map"
    ).stdout.decode()
    assert "Seccomp:\t2" in attached
    assert str(world.pair().uid_base) in attached
    effective = int(attached.split("CapEff:")[1].split()[0], 16)
    for dropped in (16, 17, 25, 27, 34):  # sys_module, sys_rawio, sys_time, mknod, syslog
        assert not effective >> dropped & 1
    for kept in (12, 13, 21):  # net_admin, net_raw, sys_admin
        assert effective >> kept & 1


@pytest.fixture
def node(world: World) -> Iterator[tuple[str, str]]:
    """A root context of the test's own, joined to a sliver by a veth, as a link does: (sliver, ``nsenter`` prefix)."""
    name = world.sliver()
    holder = subprocess.Popen(["unshare", "--net", "sh", "-c", "echo ready; read line"], stdin=-1, stdout=-1)
    assert holder.stdout is not None and holder.stdin is not None
    assert b"ready\n" == holder.stdout.readline()
    enter = f"nsenter --net=/proc/{holder.pid}/ns/net"
    add = f"{enter} ip link add root0 type veth peer name e0 netns {world.settings.netns_dir}/{name}"
    subprocess.run(add.split(), check=True)
    subprocess.run(f"{enter} ip link set root0 up".split(), check=True)
    yield name, enter
    holder.communicate(b"\n")


NETLINK = """
import os, socket, struct
def attribute(kind, data):
    return struct.pack("=HH", 4 + len(data), kind) + data + bytes(-len(data) % 4)
def request(kind, flags, name, nsid, *more):
    s = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0)
    s.settimeout(5)
    body = struct.pack("=BxHiII", 0, 0, 0, 0, 0) + attribute(3, name + b"\\0") + b"".join(more)
    if nsid is not None:
        body += attribute(46, struct.pack("=i", nsid))
    s.send(struct.pack("=IHHII", 16 + len(body), kind, flags, 1, 0) + body)
    answer = s.recv(65536)
    number, = struct.unpack_from("=H", answer, 4)
    return os.strerror(-struct.unpack_from("=i", answer, 16)[0]) if number == 2 else "answered"
"""


def test_sliver_cannot_touch_links_of_the_root_context(world: World, node: tuple[str, str]) -> None:
    """Through the netns id that its own veth gives it, a sliver neither sees, deletes nor makes links outside."""
    name, enter = node
    script = NETLINK + textwrap.dedent(
        """
        print("own", request(18, 5, b"e0", None))
        for nsid in range(4):
            print("get", nsid, request(18, 1, b"root0", nsid))
            print("del", nsid, request(17, 5, b"root0", nsid))
            kind = attribute(18, attribute(1, b"bridge\\0"))
            print("new", nsid, request(16, 0x605, b"mine0", nsid, kind))
            print("push", nsid, request(16, 5, b"e0", None, attribute(37, struct.pack("=i", nsid))))
        """
    )
    lines = world.python(name, script).stdout.decode().splitlines()
    assert "own answered" == lines[0]
    for line in lines[1:]:
        assert not line.endswith(("answered", "Success")), lines
    links = subprocess.run(f"{enter} ip -br link".split(), check=True, capture_output=True, text=True).stdout
    assert "root0" in links and "mine0" not in links and "e0@" not in links


def test_sliver_keeps_its_end_of_a_link_over_crash_and_restart(world: World, node: tuple[str, str]) -> None:
    """The inner end of a veth belongs to the pair, not to the container."""
    name, enter = node
    world.sh(name, "ip addr add 10.7.0.1/24 dev e0; ip link set e0 up")
    world.running.absent([Running(name)])
    assert "root0" in subprocess.run(f"{enter} ip -br link".split(), capture_output=True, text=True, check=True).stdout
    world.running.ensure([Running(name)], {})
    assert b"10.7.0.1/24" in world.sh(name, "ip -br addr show e0").stdout


def test_memory_limit_bites(world: World) -> None:
    """More memory than allowed is death for who asks, not for the sliver."""
    name = world.sliver(memory_bytes=64 << 20)
    done = world.python(name, "x = bytearray(150 << 20); print(len(x))")
    assert b"" == done.stdout and done.returncode in (137, -9), done
    assert 0 == world.sh(name, "true").returncode


def test_pids_limit_bites(world: World) -> None:
    """A fork bomb ends at the limit; the sliver can be stopped."""
    name = world.sliver(pids_max=40)
    script = "import os, time\nfor n in range(60):\n    if os.fork() == 0: time.sleep(100)\n    print(n, flush=True)"
    done = world.python(name, script)
    assert b"BlockingIOError" in done.stderr and len(done.stdout.split()) < 40
    assert len(world.host.cgroups.processes(name)) <= 40
    assert [name] == [r.name for r in world.running.read()]


def test_quota_bites(world: World) -> None:
    """A fifth of a core is what a busy loop gets, counted by the kernel over periods, not by our clock."""
    name = world.sliver(cpu_quota_pct=20)
    script = (
        "import time\nend = time.monotonic() + 1\nstart = time.process_time()\n"
        "while time.monotonic() < end: pass\nprint(time.process_time() - start)"
    )
    assert float(world.python(name, script).stdout) < 0.6


TUN = pathlib.Path("/dev/net/tun")
FOR_ALL = TUN.exists() and TUN.stat().st_mode & 0o666 == 0o666
"""As udev makes it. Where the host keeps the device to itself, so it stays for slivers."""
TAP = "test -c /dev/net/tun && " + ("" if FOR_ALL else "! ") + "ip tuntap add dev tap0 mode tap"


@pytest.mark.parametrize(
    "script",
    [
        "ip link add v0 type veth peer name v1 && ip addr add 10.0.0.1/24 dev v0 && ip link set v0 up mtu 1400",
        "ip link add v2 type veth peer name v3 && ip link set v2 up && ip addr add 10.2.0.1/24 dev v2"
        " && ip route add 10.99.0.0/16 via 10.2.0.2 && ip -6 addr add fd00::1/64 dev v2 nodad",
        "ip link add v4 type veth peer name v5 && tc qdisc add dev v4 root tbf rate 1mbit burst 10k latency 10ms",
        "ip link add br0 type bridge && ip link set br0 up",
        "iptables -A INPUT -s 10.77.0.0/16 -j DROP && iptables -S | grep 10.77",
        "nft add table ip mine && nft list tables | grep mine",
        "ping -c 1 127.0.0.1",
        "sysctl -w net.ipv4.ip_forward=1 && sysctl -w net.ipv4.conf.all.rp_filter=0",
        "unshare --net ip link",
        TAP if TUN.exists() else "! test -e /dev/net/tun",
        "mount -t tmpfs t /mnt && touch /mnt/x && umount /mnt",
        "touch /root/x /var/log/x /tmp/x /etc/x",
        "test $(id -u) = 0 && getent passwd frr bird sshd",
        "hostname new && hostname | grep new",
        "ip -br link show lo | grep UP",
    ],
)
def test_sliver_can(shared: tuple[World, str], script: str) -> None:
    """A slice's root has its own network stack, with everything on it."""
    world, name = shared
    done = world.sh(name, script)
    assert 0 == done.returncode, (done.stdout, done.stderr)


def test_sliver_can_capture_packets(shared: tuple[World, str]) -> None:
    """tcpdump sees what ping sends."""
    world, name = shared
    done = world.sh(
        name,
        "tcpdump -i lo -nn -c 1 icmp >/tmp/seen 2>/tmp/said & pid=$!; until grep -q listening /tmp/said; do :; done;"
        " ping -c 1 127.0.0.1 >/dev/null; wait $pid; cat /tmp/seen",
    )
    assert b"ICMP echo request" in done.stdout, done


@pytest.mark.skipif(not pathlib.Path("/usr/sbin/bird").exists(), reason="needs bird")
def test_sliver_runs_a_routing_daemon(shared: tuple[World, str]) -> None:
    """bird runs inside and puts a route into the sliver's own table."""
    world, name = shared
    config = (
        "log stderr all; router id 10.0.0.1; protocol device {} protocol kernel { ipv4 { export all; }; }"
        "protocol static { ipv4; route 10.55.0.0/16 blackhole; }"
    )
    assert 0 == world.sh(name, "cat > /etc/bird/bird.conf", stdin=config.encode()).returncode
    done = world.sh(name, "bird -c /etc/bird/bird.conf")
    assert 0 == done.returncode, done.stderr
    wait_for(lambda: b"10.55.0.0/16" in world.sh(name, "ip route").stdout, "bird's route")
    assert "10.55" not in subprocess.run(["ip", "route"], capture_output=True, text=True, check=True).stdout
