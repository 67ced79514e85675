"""Containers: defined, changed while running, repaired, destroyed."""

from __future__ import annotations

import dataclasses
import os
import pathlib
import shutil

import pytest
from container_world import Running, SliverFile, World

from nodemanager_trellis.errors import InvalidInput, NotOurs, SubstrateError
from nodemanager_trellis.substrate.pairs import INCOMPLETE


def cgroup_value(name: str, controller: str, key: str) -> str:
    return pathlib.Path(f"/sys/fs/cgroup/{controller}/lxc.payload.{name}/{key}").read_text().strip()


v1 = pytest.mark.skipif(not os.path.isdir("/sys/fs/cgroup/memory"), reason="needs cgroup v1 controllers")


def test_containers_trio(world: World) -> None:
    """What read returns equals what ensure was given; ensure twice is ensure once; absent of nothing is success."""
    containers = [
        world.container(1),
        world.container(2, cpu_shares=7, cpu_quota_pct=30, memory_bytes=1 << 26, pids_max=99),
        world.container(3, sysctls=(("net.ipv4.ip_forward", "1"), ("net.ipv4.conf.all.rp_filter", "0"))),
    ]
    world.containers.absent(containers)
    world.define(*containers)
    assert containers == world.containers.read()
    world.containers.ensure(containers, {c.key: c for c in containers})
    assert containers == world.containers.read()
    world.containers.absent(containers[:1])
    assert containers[1:] == world.containers.read()


def test_container_changes_keep_its_files(world: World) -> None:
    """A changed limit, host name or sysctl does not touch what the user wrote."""
    world.define(world.container())
    note = world.host.directory(world.name(5)) / "rootfs/root/note"
    note.write_text("mine")
    changed = dataclasses.replace(world.container(), hostname="other", memory_bytes=1 << 27, pids_max=5)
    world.containers.ensure([changed], {})
    assert [changed] == world.containers.read()
    assert "mine" == note.read_text()


@v1
def test_limits_change_while_running(world: World) -> None:
    """New limits hold at once, without a restart, and after one."""
    name = world.sliver(memory_bytes=1 << 26, cpu_shares=512, pids_max=50)
    init = world.init_pid(name)
    assert str(1 << 26) == cgroup_value(name, "memory", "memory.limit_in_bytes")
    changed = world.container(memory_bytes=1 << 27, cpu_shares=256, cpu_quota_pct=50, pids_max=77)
    world.containers.ensure([changed], {})
    for _ in range(2):
        assert str(1 << 27) == cgroup_value(name, "memory", "memory.limit_in_bytes")
        assert "256" == cgroup_value(name, "cpu", "cpu.shares")
        assert "50000" == cgroup_value(name, "cpu", "cpu.cfs_quota_us")
        assert "77" == cgroup_value(name, "pids", "pids.max")
        if init:
            assert init == world.init_pid(name)
            init = 0
            world.running.absent([Running(name)])
            world.running.ensure([Running(name)], {})
    world.containers.ensure([world.container()], {})
    assert "-1" == cgroup_value(name, "cpu", "cpu.cfs_quota_us")
    assert int(cgroup_value(name, "memory", "memory.limit_in_bytes")) > 1 << 60


@v1
def test_worker_reads_and_sets_cgroup_items(world: World) -> None:
    """The worker's cgroup items are the container's; an unknown one is None."""
    name = world.sliver(memory_bytes=1 << 26)
    worker = world.host.worker
    assert str(1 << 26) == worker.get_cgroup_item(name, "memory.limit_in_bytes")
    assert worker.set_cgroup_item(name, "memory.limit_in_bytes", str(1 << 25))
    assert str(1 << 25) == worker.get_cgroup_item(name, "memory.limit_in_bytes")
    assert worker.get_cgroup_item(name, "no.such") is None


def test_sysctls_hold_inside_and_a_bad_one_costs_only_itself(world: World, caplog: pytest.LogCaptureFixture) -> None:
    """Sysctls are those of the sliver's own net namespace, change while it runs; a refused one is reported."""
    before = pathlib.Path("/proc/sys/net/ipv4/ip_default_ttl").read_text()
    name = world.sliver(sysctls=(("net.ipv4.ip_default_ttl", "77"), ("net.no.such", "1")))
    assert b"77\n" == world.sh(name, "cat /proc/sys/net/ipv4/ip_default_ttl").stdout
    assert "sysctl refused" in caplog.text
    world.containers.ensure([world.container(sysctls=(("net.ipv4.ip_default_ttl", "78"),))], {})
    assert b"78\n" == world.sh(name, "cat /proc/sys/net/ipv4/ip_default_ttl").stdout
    assert before == pathlib.Path("/proc/sys/net/ipv4/ip_default_ttl").read_text()


@pytest.mark.parametrize("key", ["kernel.panic", "net.../kernel", "net", "net./etc", "net.ipv4/../../kernel/panic"])
def test_sysctl_outside_net_is_refused(world: World, key: str) -> None:
    """Nothing but a net sysctl gets into a container."""
    with pytest.raises(InvalidInput):
        world.containers.ensure([world.container(sysctls=((key, "1"),))], {})
    assert [] == world.containers.read()


@pytest.mark.parametrize("fields", [{"hostname": "a\nlxc.cap.keep = all"}, {"image": "../../etc"}, {"hostname": ""}])
def test_container_that_would_smuggle_is_refused(world: World, fields: dict[str, str]) -> None:
    """Values that could mean more than themselves in a configuration or path are refused; nothing is made."""
    with pytest.raises(InvalidInput):
        world.containers.ensure([dataclasses.replace(world.container(), **fields)], {})
    assert [] == world.containers.read()


@pytest.mark.parametrize("stage", ["empty", "rootfs", "config"])
def test_container_half_made_is_seen_and_repaired(world: World, stage: str) -> None:
    """What a killed manager left is not equal to anything wanted; ensure makes it whole, absent removes it."""
    container = world.container()
    world.define(container)
    directory = world.host.directory(container.name)
    (directory / "trellis.json").unlink()
    if stage != "config":
        (directory / "config").unlink()
    if stage == "empty":
        shutil.rmtree(directory / "rootfs")
    assert [INCOMPLETE] == [c.uid_base for c in world.containers.read()]
    world.containers.ensure([container], {})
    assert [container] == world.containers.read()
    (directory / "trellis.json").unlink()
    world.containers.absent(world.containers.read())
    assert not directory.exists()


def test_container_of_somebody_else_is_left_alone(world: World) -> None:
    """A container under our name, without our mark, is neither read, changed nor destroyed."""
    directory = world.settings.slivers_dir / world.name(5)
    directory.mkdir()
    (directory / "config").write_text("lxc.uts.name = mine\n")
    assert [] == world.containers.read()
    for change in (
        lambda: world.containers.ensure([world.container()], {}),
        lambda: world.containers.absent([world.container()]),
    ):
        with pytest.raises(NotOurs):
            change()
    assert "lxc.uts.name = mine\n" == (directory / "config").read_text()
    shutil.rmtree(directory)


def test_image_that_is_missing_gives_the_default_one_and_a_warning(world: World) -> None:
    """A slice for an image we do not have runs all the same."""
    container = world.container(image="lxc-f35-x86_64")
    world.define(container)
    assert [container] == world.containers.read()
    assert "lxc-f35-x86_64" in world.containers.warnings[container.name]
    world.running.ensure([Running(container.name)], {})
    assert 0 == world.sh(container.name, "true").returncode


def test_image_is_shared_and_private_changes_stay_private(world: World) -> None:
    """Two slivers of one image see its files as root's, write their own, and the image stays as it was."""
    image = world.settings.state_dir / "images/mini"
    for directory in ("bin", "dev", "etc", "lib", "lib64", "proc", "root", "run", "sbin", "sys", "tmp", "usr", "var"):
        (image / directory).mkdir(parents=True)
    (image / "etc/motd").write_text("welcome\n")
    for directory in ("bin", "sbin", "lib", "lib64"):
        (image / directory).rmdir()
        (image / directory).symlink_to(f"usr/{directory}")
    # The host's own programs, hard to get smaller: what a shell needs.
    for program in ("/usr/bin/bash", "/usr/bin/cat", "/usr/bin/stat", "/usr/bin/sleep"):
        for path in (program, *(w for line in os.popen(f"ldd {program}") for w in line.split() if w.startswith("/"))):
            target = image / os.path.realpath(path).lstrip("/")
            target.parent.mkdir(parents=True, exist_ok=True)
            if not target.exists():
                shutil.copy2(os.path.realpath(path), target)
            if path != os.path.realpath(path) and not path.startswith("/lib64"):
                link = image / "usr" / path.lstrip("/").removeprefix("usr/")
                link.parent.mkdir(parents=True, exist_ok=True)
                if not os.path.lexists(link):
                    shutil.copy2(os.path.realpath(path), link)
    loader = os.path.realpath("/lib64/ld-linux-x86-64.so.2")
    (image / "usr/lib64").mkdir(exist_ok=True)
    shutil.copy2(loader, image / "usr/lib64/ld-linux-x86-64.so.2")
    (image / "usr/sbin").mkdir(exist_ok=True)
    names = [world.sliver(n, image="mini") for n in (1, 2)]
    assert {} == world.containers.warnings
    for name in names:
        assert b"welcome\n0\n" == world.sh(name, "cat /etc/motd; stat -c %u /etc/motd").stdout
        assert 0 == world.sh(name, f"echo {name} > /etc/motd").returncode
    for name in names:
        assert f"{name}\n".encode() == world.sh(name, "cat /etc/motd").stdout
    assert "welcome\n" == (image / "etc/motd").read_text()
    world.running.absent([Running(n) for n in names])
    world.running.ensure([Running(n) for n in names], {})
    assert f"{names[0]}\n".encode() == world.sh(names[0], "cat /etc/motd").stdout
    world.containers.absent(world.containers.read())
    assert "welcome\n" == (image / "etc/motd").read_text()


def test_image_changes_only_while_stopped(world: World) -> None:
    """Another image makes the root file system anew, which a running sliver is safe from; its given files stay."""
    name = world.sliver()
    world.files.ensure([(file := SliverFile(name, "node", "x\n"))], {})
    other = world.container(image="other")
    with pytest.raises(SubstrateError, match="stopped"):
        world.containers.ensure([other], {})
    assert [world.container()] == world.containers.read()
    assert 0 == world.sh(name, "touch /root/old").returncode
    world.running.absent([Running(name)])
    world.containers.ensure([other], {})
    assert [other] == world.containers.read()
    assert [file] == world.files.read()
    world.running.ensure([Running(name)], {})
    assert 2 == world.sh(name, "ls /root/old; exit $?").returncode
    assert b"x\n" == world.sh(name, "cat /etc/trellis/node").stdout


def test_absent_stops_and_removes_a_deep_tree(world: World) -> None:
    """A sliver cannot keep its directory by making it deeper than a path can be long."""
    name = world.sliver()
    deep = "import os\nfor _ in range(3000):\n    os.mkdir('d' * 50)\n    os.chdir('d' * 50)\n"
    assert 0 == world.python(name, deep).returncode
    world.containers.absent([world.container()])
    assert [] == world.containers.read() and [] == world.running.read()


def test_tree_that_was_being_deleted_is_deleted_at_the_next_start(world: World) -> None:
    """What a manager killed while deleting left behind, the next one clears away."""
    gone = world.settings.slivers_dir / f".{world.name(5)}.gone"
    (gone / "rootfs/etc").mkdir(parents=True)
    other = World(world.settings)
    other.close()
    assert not gone.exists()
