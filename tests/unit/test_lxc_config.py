"""The configuration that LXC gets, and what guards it."""

from __future__ import annotations

import pathlib

import pytest

from nodemanager_trellis.errors import InvalidInput
from nodemanager_trellis.objects import Container
from nodemanager_trellis.substrate import images, lxc
from nodemanager_trellis.substrate.cgroups import Cgroups, Hierarchy, find_hierarchies
from nodemanager_trellis.substrate.settings import Settings

SETTINGS = Settings("trellis", pathlib.Path("/var/lib/trellis"), pathlib.Path("/run/trellis"))
ROOTFS = images.Rootfs("dir:/r", ("/usr usr none bind,ro 0 0",), "/usr/sbin/init.lxc.static")


def hierarchies(v1: str = "", v2: str | None = None) -> Cgroups:
    found = [Hierarchy(pathlib.Path("/cg", c), frozenset([c]), False) for c in v1.split()]
    if v2 is not None:
        found.append(Hierarchy(pathlib.Path("/cg"), frozenset(v2.split()), True))
    return Cgroups(tuple(found))


def config(container: Container, cgroups: Cgroups) -> list[str]:
    return lxc.render_config(container, SETTINGS, ROOTFS, cgroups).splitlines()


CONTAINER = Container("trellis.37", "x_y", 655360, memory_bytes=1 << 26, cpu_quota_pct=50, cpu_shares=512, pids_max=9)


def test_config_joins_the_pair_and_bears_the_mark() -> None:
    """User and net namespace come from the pair; the environment says whose it is."""
    lines = config(CONTAINER, hierarchies())
    for line in (
        "lxc.environment = TRELLIS_INSTANCE=trellis",
        "lxc.namespace.share.user = /run/trellis/user/trellis.37",
        "lxc.namespace.share.net = /run/netns/trellis.37",
        "lxc.idmap = u 0 655360 65536",
        "lxc.idmap = g 0 655360 65536",
        "lxc.uts.name = x_y",
        "lxc.mount.entry = /run/trellis/files/trellis.37 etc/trellis none bind,ro,create=dir 0 0",
    ):
        assert line in lines
    assert lines.index("lxc.mount.auto = ") + 1 == lines.index("lxc.mount.auto = proc:mixed sys:mixed")


@pytest.mark.parametrize(
    ("cgroups", "expected"),
    [
        (hierarchies(), []),
        (
            hierarchies("cpu memory pids freezer"),
            [
                "lxc.cgroup.cpu.shares = 512",
                "lxc.cgroup.cpu.cfs_period_us = 100000",
                "lxc.cgroup.cpu.cfs_quota_us = 50000",
                "lxc.cgroup.memory.limit_in_bytes = 67108864",
                "lxc.cgroup.pids.max = 9",
            ],
        ),
        (
            hierarchies("", "cpu memory pids hugetlb"),
            [
                "lxc.cgroup2.cpu.weight = 50",
                "lxc.cgroup2.cpu.max = 50000 100000",
                "lxc.cgroup2.memory.max = 67108864",
                "lxc.cgroup2.pids.max = 9",
            ],
        ),
        (hierarchies("pids", "memory"), ["lxc.cgroup2.memory.max = 67108864", "lxc.cgroup.pids.max = 9"]),
    ],
)
def test_config_limits_only_what_the_machine_can(cgroups: Cgroups, expected: list[str]) -> None:
    """A key whose controller is absent would make the start fail."""
    found = [line for line in config(CONTAINER, cgroups) if line.startswith("lxc.cgroup")]
    assert sorted(expected) == sorted(found)


def test_config_without_limits_says_so() -> None:
    """0 is no limit, not a limit of nothing."""
    lines = config(Container("trellis.1", "x", 65536), hierarchies("memory", "cpu"))
    assert "lxc.cgroup.memory.limit_in_bytes = -1" in lines and "lxc.cgroup2.cpu.max = max 100000" in lines


def test_config_takes_no_line_break() -> None:
    """One value is one line."""
    with pytest.raises(InvalidInput):
        config(Container("trellis.1", "x\nlxc.cap.keep = all", 65536), hierarchies())


@pytest.mark.parametrize(
    ("key", "path"),
    [
        ("net.ipv4.ip_forward", "net/ipv4/ip_forward"),
        ("net/ipv4/conf/eth0.5/rp_filter", "net/ipv4/conf/eth0.5/rp_filter"),
        ("net.ipv4.conf.eth0/5.rp_filter", "net/ipv4/conf/eth0.5/rp_filter"),
    ],
)
def test_sysctl_names_as_sysctl_reads_them(key: str, path: str) -> None:
    """sysctl(8): the first separator separates, the other stands for itself."""
    assert path == lxc._sysctl_path(key)


@pytest.mark.parametrize(
    "key", ["kernel.panic", "net", "net.", "net..x", "net./x", "net.a b", "net.x\n", "netx.y", "net.é"]
)
def test_sysctl_of_anything_else_is_refused(key: str) -> None:
    """Only net, only plain names."""
    with pytest.raises(InvalidInput):
        lxc._sysctl_path(key)


def test_seccomp_file_holds_the_distributions_rules_too() -> None:
    """Ours replaces common.seccomp, so every rule of that must be in it."""
    lines = lxc.SECCOMP.read_text().splitlines()
    for rule in (
        "reject_force_umount",
        "kexec_load errno 1",
        "open_by_handle_at errno 1",
        "init_module errno 1",
        "bpf errno 1",
    ):
        assert rule in lines
    assert ["2", "denylist"] == lines[:2]


@pytest.mark.parametrize(
    ("own", "mounts", "expected"),
    [
        ("0::/init.scope\n", "25 1 0:22 / {0} rw - cgroup2 cgroup2 rw\n", [("", {"cpu", "memory"}, True)]),
        (
            "3:cpu,cpuacct:/x\n2:memory:/\n1:name=systemd:/init.scope\n0::/\n",
            "25 1 0:22 / {0}/cpu rw shared:9 - cgroup cgroup rw,cpu,cpuacct\n"
            "26 1 0:23 / {0}/mem\\040ory rw - cgroup c rw,memory\n",
            [("cpu/x", {"rw", "cpu", "cpuacct"}, False), ("mem ory", {"rw", "memory"}, False)],
        ),
    ],
)
def test_hierarchies_are_found_below_pid_1(
    tmp_path: pathlib.Path, own: str, mounts: str, expected: list[tuple[str, set[str], bool]]
) -> None:
    """v1, v2, escaped blanks, and the cgroup of pid 1 that LXC works in."""
    (tmp_path / "1").mkdir()
    (tmp_path / "self").mkdir()
    (tmp_path / "cg/cpu/x").mkdir(parents=True)
    (tmp_path / "cg/mem ory").mkdir()
    (tmp_path / "cg/cgroup.controllers").write_text("cpu memory\n")
    (tmp_path / "1/cgroup").write_text(own)
    (tmp_path / "self/mountinfo").write_text(mounts.format(tmp_path / "cg"))
    found = find_hierarchies(tmp_path)
    assert [(tmp_path / "cg" / path, controllers, unified) for path, controllers, unified in expected] == [
        (h.path, h.controllers, h.unified) for h in found
    ]


def test_scopes_of_one_name_are_not_those_of_another(tmp_path: pathlib.Path) -> None:
    """trellis.3 is not trellis.37; a suffix -1 is LXC's."""
    for entry in (
        "lxc.payload.trellis.3",
        "lxc.payload.trellis.37",
        "lxc.payload.trellis.3-1",
        "lxc.monitor.trellis.3",
        "lxc.pivot",
    ):
        (tmp_path / entry).mkdir()
        (tmp_path / entry / "cgroup.procs").write_text("1234\n" if entry.endswith("37") else "")
    cgroups = Cgroups((Hierarchy(tmp_path, frozenset(), True),))
    assert {"trellis.37"} == cgroups.running()
    assert not cgroups.populated("trellis.3") and cgroups.populated("trellis.37")
    assert {"trellis.3", "trellis.37"} == cgroups.leftovers()
    for entry in tmp_path.iterdir():
        (entry / "cgroup.procs").unlink()
    assert cgroups.sweep("trellis.3", 0)
    assert {"lxc.payload.trellis.37", "lxc.pivot"} == {p.name for p in tmp_path.iterdir()}
