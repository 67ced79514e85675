"""How fast Python lays the network part of a ring of slivers: plain pyroute2, our templates, our drivers.

One root context and N slivers, each with two links: 2N veths born in the slivers' net namespaces, their addresses, both
ends up, 2N HTB leaves with a byte-limited queue, 2N clsact with a BPF filter. Needs root; works in namespaces of its
own that end with it. ``netlink_templates.py [SLIVERS [RUNS]]``
"""

from __future__ import annotations

import ctypes
import functools
import os
import pathlib
import resource
import statistics
import struct
import sys
import tempfile
import threading
import time
from collections.abc import Callable

from nodemanager_trellis.objects import HtbClass, HtbRoot, LinkUp, Veth
from nodemanager_trellis.substrate import netlink as nl
from nodemanager_trellis.substrate.links import LinkUpDriver, VethDriver
from nodemanager_trellis.substrate.netlink import Netlink
from nodemanager_trellis.substrate.netns import run_in_each
from nodemanager_trellis.substrate.settings import Settings
from nodemanager_trellis.substrate.tc import HtbClassDriver, HtbRootDriver, rate_and_buffer

CLONE_NEWNS, CLONE_NEWNET = 0x20000, 0x40000000
MS_BIND, MS_REC, MS_PRIVATE = 4096, 16384, 1 << 18
GROUP = 32273
UNDERLAY = "u0"
RATE_BPS = 100_000_000
QUEUE_BYTES = 250_000
libc = ctypes.CDLL(None, use_errno=True)


def check(result: int) -> None:
    """Raise what libc left in errno, if the call failed."""
    if result:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def own_world(names: list[str]) -> pathlib.Path:
    """This process is in a netns and a mount namespace of its own; one more netns a name is bound in the directory."""
    check(libc.unshare(CLONE_NEWNS | CLONE_NEWNET))
    check(libc.mount(None, b"/", None, ctypes.c_ulong(MS_REC | MS_PRIVATE), None))
    directory = pathlib.Path(tempfile.mkdtemp())
    check(libc.mount(b"tmpfs", os.fsencode(directory), b"tmpfs", ctypes.c_ulong(0), None))

    def make(path: pathlib.Path) -> None:
        check(libc.unshare(CLONE_NEWNET))
        path.touch()
        check(libc.mount(b"/proc/thread-self/ns/net", os.fsencode(path), None, ctypes.c_ulong(MS_BIND), None))

    for name in names:
        thread = threading.Thread(target=make, args=(directory / name,))
        thread.start()
        thread.join()
    return directory


def program() -> int:
    """A BPF program that does nothing; its descriptor."""
    code = ctypes.create_string_buffer(struct.pack("=BBhiBBhi", 0xB7, 0, 0, 0, 0x95, 0, 0, 0))
    licence = ctypes.create_string_buffer(b"GPL")
    attr = struct.pack("=IIQQ", 3, 2, ctypes.addressof(code), ctypes.addressof(licence)).ljust(128, b"\0")
    fd = libc.syscall(
        {"x86_64": 321, "aarch64": 280}[os.uname().machine], 5, ctypes.create_string_buffer(attr, 128), 128
    )
    if fd < 0:
        check(1)
    return fd


def plain(directory: pathlib.Path, veths: list[Veth], prog: int) -> None:
    """pyroute2 as its documentation has it: one request at a time."""
    import pyroute2

    # bfifo is unknown to it: without this its parent would become the root.
    from pyroute2.netlink.rtnl import tcmsg

    tcmsg.plugins["bfifo"] = tcmsg.plugins["pfifo"]
    with pyroute2.IPRoute() as ip:
        underlay = ip.link_lookup(ifname=UNDERLAY)[0]
        for number, veth in enumerate(veths):
            with open(directory / veth.pair) as netns:
                peer = {
                    "ifname": veth.inner, "address": veth.mac, "mtu": veth.mtu, "net_ns_fd": netns.fileno(),
                    "group": GROUP,
                }  # fmt: skip
                ip.link("add", ifname=veth.ifname, kind="veth", mtu=veth.mtu, group=GROUP, peer=peer)
            index = ip.link_lookup(ifname=veth.ifname)[0]
            minor = number + 0x100
            ip.tc(
                "add-class", "htb", underlay, 0x10000 | minor, parent=0x10001, rate=RATE_BPS // 8, ceil=RATE_BPS // 8,
                burst=12_500, quantum=1514,
            )  # fmt: skip
            ip.tc("add", "bfifo", underlay, minor << 16, parent=0x10000 | minor, limit=QUEUE_BYTES)
            ip.tc("add", "clsact", index)
            ip.tc(
                "add-filter", "bpf", index, 1, parent=nl.HOOKS["ingress"], prio=1, fd=prog, name="bench",
                direct_action=True,
            )  # fmt: skip

    def inner(path: str) -> None:
        with pyroute2.IPRoute() as ip:
            ip.link("set", index=1, state="up")
            for veth in by_pair[pathlib.Path(path).name]:
                index = ip.link_lookup(ifname=veth.inner)[0]
                ip.addr("add", index=index, address=veth.addresses[0].split("/")[0], prefixlen=30)
                ip.link("set", index=index, state="up")

    by_pair: dict[str, list[Veth]] = {}
    for veth in veths:
        by_pair.setdefault(veth.pair, []).append(veth)
    raise_any(run_in_each([directory / pair for pair in by_pair], inner))
    with pyroute2.IPRoute() as ip:
        for veth in veths:
            ip.link("set", index=ip.link_lookup(ifname=veth.ifname)[0], state="up")


def templates(directory: pathlib.Path, veths: list[Veth], prog: int) -> None:
    """The same by patched messages: one batch in the root context, one in each sliver, one more in the root context."""
    rate, buffer = rate_and_buffer(RATE_BPS, 1500)
    with Netlink(GROUP) as netlink:
        underlay = netlink.link(UNDERLAY).ifindex
        fds = {pair: os.open(directory / pair, os.O_RDONLY) for pair in {v.pair for v in veths}}
        messages = []
        for number, veth in enumerate(veths):
            minor = number + 0x100
            messages += [
                nl.veth_add(veth.ifname, veth.inner, fds[veth.pair], veth.mac, veth.mtu, GROUP, veth.gso_max_bytes),
                nl.htb_class(underlay, minor, 1, rate, rate, buffer, buffer, 1514),
                nl.bfifo(underlay, minor, QUEUE_BYTES),
            ]
        netlink.batch(messages)
        for fd in fds.values():
            os.close(fd)
        links = netlink.links_named([v.ifname for v in veths])
        by_pair: dict[str, list[Veth]] = {}
        for veth in veths:
            by_pair.setdefault(veth.pair, []).append(veth)

        def inner(path: str) -> None:
            with Netlink(GROUP) as inside:
                messages = [nl.link_flags(1, True)]
                for veth in by_pair[pathlib.Path(path).name]:
                    index = links[veth.ifname].peer_ifindex
                    messages += [nl.address_add(index, veth.addresses[0]), nl.link_flags(index, True)]
                inside.batch(messages)

        raise_any(run_in_each([directory / pair for pair in by_pair], inner))
        messages = []
        for veth in veths:
            index = links[veth.ifname].ifindex
            messages += [
                nl.clsact(index),
                nl.bpf_filter(index, "ingress", prog, "bench"),
                nl.link_flags(index, True),
            ]
        netlink.batch(messages)


def drivers(directory: pathlib.Path, veths: list[Veth], prog: int) -> None:
    """What the node manager does: the same and sysctls, silence, records, checks before and after."""
    settings = Settings("bench", directory, directory, netns_dir=directory, link_group=GROUP)
    with Netlink(GROUP) as netlink:
        VethDriver(settings, netlink).ensure(veths, {})
        classes = [
            HtbClass(UNDERLAY, number + 0x100, 1, RATE_BPS, RATE_BPS, 1514, QUEUE_BYTES) for number in range(len(veths))
        ]
        HtbClassDriver(settings, netlink).ensure(classes, {})
        links = netlink.links_named([v.ifname for v in veths])
        netlink.batch(
            [
                message
                for link in links.values()
                for message in (nl.clsact(link.ifindex), nl.bpf_filter(link.ifindex, "ingress", prog, "bench"))
            ]
        )
        LinkUpDriver(settings, netlink).ensure([LinkUp(v.ifname) for v in veths], {})


def raise_any(results: list[object]) -> None:
    """Raise the first exception among the results."""
    for result in results:
        if isinstance(result, Exception):
            raise result


def cpu_s() -> float:
    """What this process has used so far, in the kernel too."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def timed(function: Callable[[], object]) -> tuple[float, float]:
    """(wall, cpu) in ms."""
    cpu, wall = cpu_s(), time.perf_counter()
    function()
    return (time.perf_counter() - wall) * 1000, (cpu_s() - cpu) * 1000


def main() -> None:
    """Lay, measure, take away; several times in turn."""
    slivers = int(sys.argv[1]) if len(sys.argv) > 1 else 200
    runs = int(sys.argv[2]) if len(sys.argv) > 2 else 5
    names = [f"bench.{i}" for i in range(slivers)]
    directory = own_world(names)
    prog = program()
    veths = [
        Veth(
            f"tr{i}x{side}", names[i], f"if{side}", f"02:00:{i >> 8:02x}:{i & 255:02x}:00:{side:02x}", 1458,
            (f"10.{i >> 6}.{(i & 63) << 2}.{side + 1}/30" if side else f"11.{i >> 6}.{(i & 63) << 2}.2/30",), 20_000,
        )
        for i in range(slivers)
        for side in range(2)
    ]  # fmt: skip
    settings = Settings("bench", directory, directory, netns_dir=directory, link_group=GROUP)
    netlink = Netlink(GROUP)
    fd = os.open(directory / names[0], os.O_RDONLY)
    netlink.batch([nl.veth_add(UNDERLAY, "far", fd, "02:ff:00:00:00:01", 1500, 1, 65536)])
    os.close(fd)
    netlink.batch([nl.link_flags(netlink.link(UNDERLAY).ifindex, True)])
    root = HtbRoot(UNDERLAY, 10**10)
    results: dict[str, list[tuple[float, float]]] = {}

    def note(name: str, function: Callable[[], object]) -> None:
        results.setdefault(name, []).append(timed(function))

    nl.prepare()
    for _ in range(runs):
        for way in (plain, templates, drivers):
            HtbRootDriver(settings, netlink).ensure([root], {})
            note(way.__name__, lambda way=way: way(directory, veths, prog))
            if way is drivers:
                veth_driver, class_driver = VethDriver(settings, netlink), HtbClassDriver(settings, netlink)
                assert {v.ifname: v for v in veth_driver.read()} == {v.ifname: v for v in veths}
                note("  read veths", veth_driver.read)
                note("  read inner ends", veth_driver.inner_ends)
                note("  read classes", class_driver.read)
                note("  ensure again", functools.partial(veth_driver.ensure, veths, {}))
                note("  absent veths", functools.partial(veth_driver.absent, veths))
            HtbRootDriver(settings, netlink).absent([root])
            if netlink.links(GROUP):
                netlink.batch([nl.group_del(GROUP)])
    print(f"{slivers} slivers, {len(veths)} veths, {runs} runs; ms")
    print(f"{'':<18}{'wall min':>10}{'wall median':>13}{'cpu median':>12}{'to plain':>10}")
    base = statistics.median(c for _, c in results["plain"])
    for name, values in results.items():
        wall = [w for w, _ in values]
        cpu = statistics.median(c for _, c in values)
        print(f"{name:<18}{min(wall):>10.1f}{statistics.median(wall):>13.1f}{cpu:>12.1f}{base / max(cpu, 0.1):>9.1f}x")
    netlink.close()


if __name__ == "__main__":
    main()
