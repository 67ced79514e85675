"""How much of native forwarding a virtual router keeps: figure 2 of the Trellis paper, on this machine.

::

    netns gen           netns node (root context)             netns sink
      g ──── veth ──── in ─ [ what is measured ] ─ out ──── veth ──── s
    XDP live frames    threaded NAPI on one CPU               XDP: count and drop

Each variant has its own three namespaces, made of the product's own programs and drivers. 60-byte frames (64 with the
FCS) come from ``BPF_PROG_TEST_RUN`` at several million a second, more than any variant can take. What counts is the
**CPU time per frame that arrived** (``/proc/PID/schedstat`` of the NAPI thread and of ksoftirqd on its CPU): other work
on the machine slows the frames down, but not this figure. Rounds of all variants are interleaved; the ratio is that of
one round; medians are shown.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import os
import pathlib
import platform
import signal
import socket
import statistics
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

from nodemanager_trellis.errors import SubstrateError, TrellisError, Unsupported
from nodemanager_trellis.objects import EgreTunnel, HtbClass, HtbRoot, Shortbridge, Underlay
from nodemanager_trellis.substrate import bpf, tc
from nodemanager_trellis.substrate.egre import Egre, mac_bytes, outer_header
from nodemanager_trellis.substrate.netlink import Netlink, write_sysctl
from nodemanager_trellis.substrate.netns import run_in
from nodemanager_trellis.substrate.settings import Settings

T = TypeVar("T")

PREFIX = "trellisbench"
NETNS = pathlib.Path("/run/netns")
BPFFS = pathlib.Path("/sys/fs/bpf")
GEN_IP, IN_IP, OUT_IP, SINK_IP = "10.0.0.1", "10.0.0.2", "10.0.1.2", "10.0.1.1"
SOURCE, TARGET = "172.16.0.1", "172.16.9.9"
NEXT_MAC = "02:00:00:00:01:01"
MTU = 1458
KEY_IN, KEY_OUT = 1001, 1002
MINOR = 0x10
LINE_BPS = 40 * 10**9
CHUNK = 1_000_000
"""frames a system call: each costs 25 ms besides"""
WORDS = 16


def _run(*words: str) -> str:
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SubstrateError(f"benchmark: {' '.join(words)}", "run", detail=(done.stderr or done.stdout).strip())
    return done.stdout


def _udp_frame(target: bytes, payload: int = 18) -> bytes:
    datagram = struct.pack("!HHHH", 1000, 9, 8 + payload, 0) + bytes(payload)
    addresses = socket.inet_aton(SOURCE) + socket.inet_aton(TARGET)
    ip = _checked(struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(datagram), 1, 0, 64, 17, 0) + addresses)
    return target + bytes.fromhex("020000000001") + b"\x08\x00" + ip + datagram


def _egre_frame(key: int, target: bytes, source: bytes, inner: bytes) -> bytes:
    header = outer_header(GEN_IP, IN_IP, key, source, target)
    ip = header[14:16] + struct.pack("!H", 28 + len(inner)) + header[18:34]
    return header[:14] + _checked(ip) + header[34:] + inner


def _checked(ip: bytes) -> bytes:
    total = sum(struct.unpack("!10H", ip))
    while total > 0xFFFF:
        total = (total & 0xFFFF) + (total >> 16)
    return ip[:10] + struct.pack("!H", ~total & 0xFFFF) + ip[12:]


class World:
    """Three namespaces of one variant; all of it is gone when the stack is closed."""

    def __init__(self, number: int, stack: contextlib.ExitStack) -> None:
        self.number = number
        self.stack = stack
        self.stamp = f"{PREFIX}{os.getpid()}n{number}"
        self.incoming, self.outgoing = f"t{number}in", f"t{number}out"
        self.gen, self.node, self.sink = (self.space(name) for name in ("gen", "node", "sink"))
        self.veth(self.gen, "g", self.node, self.incoming)
        self.veth(self.node, self.outgoing, self.sink, "s")
        self.inside(self.gen, "ip", "addr", "add", f"{GEN_IP}/24", "dev", "g")
        self.inside(self.node, "ip", "addr", "add", f"{IN_IP}/24", "dev", self.incoming)
        self.inside(self.node, "ip", "addr", "add", f"{OUT_IP}/24", "dev", self.outgoing)
        self.inside(self.sink, "ip", "addr", "add", f"{SINK_IP}/24", "dev", "s")
        self.sink_mac, self.gen_mac = self.mac(self.sink, "s"), self.mac(self.gen, "g")
        self.neighbour(self.node, SINK_IP, self.sink_mac, self.outgoing)
        self.neighbour(self.node, GEN_IP, self.gen_mac, self.incoming)
        self.netlink = stack.enter_context(contextlib.closing(self.run(self.node, lambda: Netlink(0))))
        self.run(self.node, lambda: self.netlink.set_gro(self.incoming, True))
        sink = bpf.load(bpf.OBJECTS / "sink.bpf.o")
        self.count = sink.maps["trellis_count"]
        link = self.run(self.sink, lambda: bpf.attach_xdp(sink.programs["trellis_sink"], self.index("s"), "s"))
        if link is None:
            raise Unsupported("this kernel has no XDP on veth devices (Linux 4.19)")
        stack.callback(link.close)
        self._thread_napi()

    # -- building ------------------------------------------------------------------------------------------------------

    def space(self, role: str) -> str:
        """A new netns; its name."""
        name = f"{self.stamp}{role}"
        _run("ip", "netns", "add", name)
        self.stack.callback(_run, "ip", "netns", "del", name)

        def quiet() -> None:
            for what in ("all", "default"):
                write_sysctl(f"net.ipv6.conf.{what}.disable_ipv6", 1)
                write_sysctl(f"net.ipv4.conf.{what}.rp_filter", 0)

        self.run(name, quiet)
        self.inside(name, "ip", "link", "set", "lo", "up")
        return name

    def run(self, space: str, function: Callable[[], T]) -> T:
        """``function()`` inside."""
        return run_in(NETNS / space, function)

    def inside(self, space: str, *words: str) -> str:
        """A command inside; mounts, and so bpffs, stay."""
        return _run("nsenter", f"--net={NETNS / space}", *words)

    def veth(self, one: str, a: str, other: str, b: str, mtu: int = 1500) -> None:
        """A pair, up, one queue."""
        queues = ("numtxqueues", "1", "numrxqueues", "1")
        _run("ip", "link", "add", a, *queues, "netns", one, "mtu", str(mtu), "type", "veth", "peer", "name", b, *queues,
             "netns", other, "mtu", str(mtu))  # fmt: skip
        self.inside(one, "ip", "link", "set", a, "up")
        self.inside(other, "ip", "link", "set", b, "up")

    def mac(self, space: str, ifname: str) -> str:
        return str(json.loads(self.inside(space, "ip", "-j", "link", "show", ifname))[0]["address"])

    def neighbour(self, space: str, ip: str, mac: str, ifname: str) -> None:
        self.inside(space, "ip", "neigh", "replace", ip, "lladdr", mac, "dev", ifname, "nud", "permanent")

    @staticmethod
    def index(ifname: str) -> int:
        return socket.if_nametoindex(ifname)

    def router(self, next_mac: str) -> tuple[str, str]:
        """A container that forwards from c0 to c1, root ends v0 and v1; its name and the address of c0."""
        name = self.space("router")
        for i in range(2):
            self.veth(name, f"c{i}", self.node, f"v{i}", MTU)
            self.inside(name, "ip", "addr", "add", f"192.168.{i}.2/24", "dev", f"c{i}")
        self.neighbour(name, "192.168.1.1", next_mac, "c1")
        self.inside(name, "ip", "route", "add", "default", "via", "192.168.1.1")
        self.run(name, lambda: write_sysctl("net.ipv4.ip_forward", 1))
        return name, self.mac(name, "c0")

    def _thread_napi(self) -> None:
        """The incoming device is polled by a kernel thread, so that all its work has one owner (Linux 5.12)."""
        path = f"/sys/class/net/{self.incoming}/threaded"
        # One of a device just deleted, of the same name, may still be about to end.
        others = set(_threads(f"napi/{self.incoming}-"))
        self.inside(self.node, "unshare", "-m", "sh", "-c", f"mount -t sysfs none /sys && echo 1 > {path}")
        self.workers = [pid for pid in _threads(f"napi/{self.incoming}-") if pid not in others]
        if not self.workers:
            raise Unsupported("this kernel has no threaded NAPI for veth devices")
        for pid in self.workers:
            os.sched_setaffinity(pid, {_cpus()[1]})
            with contextlib.suppress(OSError):
                os.setpriority(os.PRIO_PROCESS, pid, -15)

    # -- measuring -----------------------------------------------------------------------------------------------------

    def packets(self) -> int:
        """Frames at the sink so far."""
        value = self.count.get(bytes(4))
        assert value is not None
        return sum(struct.unpack_from("=Q", v)[0] for v in self.count.cpus(value))

    def measure(self, frame: bytes, seconds: float) -> dict[str, float]:
        """CPU ns per frame at the sink, and frames a second."""
        workers = [*self.workers, *_threads(f"ksoftirqd/{_cpus()[1]}")]
        with self._sending(frame):
            deadline = time.monotonic() + 5
            start = self.packets()
            while self.packets() == start:
                if time.monotonic() > deadline:
                    raise SubstrateError("benchmark", "measure", detail="no frame arrives at the sink")
                time.sleep(0.01)
            time.sleep(min(0.3, seconds))  # caches, page pool, CPU frequency
            before, cpu, began = self.packets(), _cpu_ns(workers), time.monotonic()
            time.sleep(seconds)
            after, spent, ended = self.packets(), _cpu_ns(workers) - cpu, time.monotonic()
        frames = after - before
        if not frames:
            raise SubstrateError("benchmark", "measure", detail="frames stopped arriving at the sink")
        return {"ns": spent / frames, "pps": frames / (ended - began)}

    @contextlib.contextmanager
    def _sending(self, frame: bytes) -> Iterator[None]:
        stop = threading.Event()
        trouble: list[Exception] = []

        def send() -> None:
            try:
                os.sched_setaffinity(0, {_cpus()[0]})  # of this thread
                source = bpf.load(bpf.OBJECTS / "gen.bpf.o")
                config = struct.pack("=II", self.index("g"), 1) + frame.ljust(8 * WORDS, b"\0")[: 8 * WORDS]
                source.maps["trellis_config"].update(bytes(4), config)
                while not stop.is_set():
                    source.programs["trellis_gen"].send_live(frame, CHUNK)
            except Exception as err:
                trouble.append(err)

        thread = threading.Thread(target=lambda: self.run(self.gen, send))
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()
        if trouble:
            raise trouble[0]


def _cpus() -> tuple[int, int]:
    """CPU of the generator, CPU of the device under test."""
    usable = sorted(os.sched_getaffinity(os.getpid()))
    return usable[0], usable[1 % len(usable)]


def _threads(prefix: str) -> list[int]:
    found = []
    for path in pathlib.Path("/proc").glob("[0-9]*/comm"):
        with contextlib.suppress(OSError):
            if path.read_text().strip().startswith(prefix):
                found.append(int(path.parent.name))
    return found


def _cpu_ns(pids: Sequence[int]) -> int:
    return sum(int(pathlib.Path(f"/proc/{pid}/schedstat").read_text().split()[0]) for pid in pids)


# ------------------------------------------------------------------------------------------------------------- variants


def _native(world: World) -> bytes:
    world.inside(world.node, "ip", "route", "add", "172.16.9.0/24", "via", SINK_IP)
    world.run(world.node, lambda: write_sysctl("net.ipv4.ip_forward", 1))
    return _udp_frame(mac_bytes(world.mac(world.node, world.incoming)))


def _bridge(world: World) -> bytes:
    _, mac = world.router(world.sink_mac)
    for i, port in enumerate((world.incoming, world.outgoing)):
        world.inside(world.node, "ip", "link", "add", f"br{i}", "type", "bridge", "mcast_snooping", "0")
        world.inside(world.node, "ip", "link", "set", f"br{i}", "up")
        for device in (port, f"v{i}"):
            world.inside(world.node, "ip", "link", "set", device, "master", f"br{i}")
    world.inside(world.node, "bridge", "fdb", "replace", mac, "dev", "v0", "master", "static")
    world.inside(world.node, "bridge", "fdb", "replace", world.sink_mac, "dev", world.outgoing, "master", "static")

    def no_filter() -> None:
        for family in ("iptables", "ip6tables", "arptables"):
            with contextlib.suppress(SubstrateError):
                write_sysctl(f"net.bridge.bridge-nf-call-{family}", 0)

    world.run(world.node, no_filter)
    return _udp_frame(mac_bytes(mac))


def _shortbridge(world: World, minor: int = 0) -> bytes:
    router, mac = world.router(NEXT_MAC)
    macs = {f"v{i}": world.mac(router, f"c{i}") for i in range(2)}
    bpf.ensure_bpffs(BPFFS)
    pins = BPFFS / world.stamp
    world.stack.callback(bpf.remove_tree, pins)
    settings = Settings(f"n{world.number}", pathlib.Path("/run"), pathlib.Path("/run"), pins)
    ends = ((world.incoming, IN_IP, GEN_IP, KEY_IN), (world.outgoing, OUT_IP, SINK_IP, KEY_OUT))
    tunnels = [EgreTunnel(device, local, remote, key) for device, local, remote, key in ends]

    def build() -> Egre:
        egre = Egre(settings, world.netlink, macs.get)
        egre.underlay.ensure([Underlay(device, local) for device, local, _, _ in ends], {})
        egre.tunnel.ensure(tunnels, {})
        if minor:
            device = world.outgoing
            tc.HtbRootDriver(settings, world.netlink).ensure([HtbRoot(device, LINE_BPS)], {})
            leaf = HtbClass(device, minor, 1, LINE_BPS, LINE_BPS, 60_000, 100_000_000)
            tc.HtbClassDriver(settings, world.netlink).ensure([leaf], {})
        classes = (0, minor)
        egre.shortbridge.ensure(
            [Shortbridge(f"v{i}", t.key[1], classes[i], t.device) for i, t in enumerate(tunnels)], {}
        )
        world.stack.callback(
            world.run, world.node, lambda: egre.underlay.absent([Underlay(device, "") for device, *_ in ends])
        )
        return egre

    world.run(world.node, build)
    own = mac_bytes(world.mac(world.node, world.incoming))
    return _egre_frame(KEY_IN, own, mac_bytes(world.gen_mac), _udp_frame(mac_bytes(mac)))


@dataclasses.dataclass(frozen=True, slots=True)
class Variant:
    """One way for a frame from ``in`` to ``out``."""

    name: str
    meaning: str
    build: Callable[[World], bytes]
    """sets the world up; returns the frame to send"""
    paper: str = ""
    """ratio in figure 2 of the paper, where it has one"""


VARIANTS = (
    Variant("native", "root context forwards", _native, "1.00"),
    Variant("bridge-no-tunnel", "container behind two Linux bridges, no tunnel", _bridge, "0.38"),
    Variant("shortbridge", "container between two EGRE shortbridges", _shortbridge, "0.67"),
    Variant("shortbridge-htb", "the same, sending through an HTB class", lambda w: _shortbridge(w, MINOR)),
)


# ------------------------------------------------------------------------------------------------------------------ run


def machine() -> dict[str, Any]:
    """What the figures were measured on."""
    model = ""
    with contextlib.suppress(OSError, StopIteration):
        lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
        model = next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return {
        "kernel": platform.release(),
        "arch": platform.machine(),
        "cpu": model,
        "cpus": os.cpu_count(),
        "load": [round(x, 2) for x in os.getloadavg()],
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        "underlay": "veth",
        "frame_bytes": 64,
    }


def run(
    rounds: int = 5,
    seconds: float = 1.0,
    progress: Callable[[str], None] = lambda text: None,
    variants: Sequence[Variant] = VARIANTS,
) -> dict[str, Any]:
    """Measure; everything that was made is gone afterwards.

    :param progress: told a line now and then
    :raises TrellisError: this machine cannot, or something went wrong
    """
    if os.geteuid():
        raise Unsupported("the forwarding benchmark makes network namespaces: run it as root")
    _sweep()
    taken: dict[str, list[dict[str, float]]] = {v.name: [] for v in variants}
    about = machine()
    with contextlib.ExitStack() as stack:
        worlds = []
        for number, variant in enumerate(variants):
            progress(f"building {variant.name}")
            world = World(number, stack)
            worlds.append((variant, world, variant.build(world)))
        for turn in range(rounds):
            for variant, world, frame in worlds:
                taken[variant.name].append(world.measure(frame, seconds))
                progress(f"round {turn + 1}/{rounds} {variant.name}: {taken[variant.name][-1]['ns']:.0f} ns")
    first = variants[0].name
    result: dict[str, Any] = {"variants": {}, "machine": about, "rounds": rounds, "seconds": seconds}
    for variant in variants:
        each = taken[variant.name]
        ratios = [base["ns"] / one["ns"] for base, one in zip(taken[first], each, strict=True)]
        result["variants"][variant.name] = {
            "meaning": variant.meaning,
            "ns_per_packet": round(statistics.median(one["ns"] for one in each), 1),
            "best_ns_per_packet": round(min(one["ns"] for one in each), 1),
            "ratio_to_native": round(statistics.median(ratios), 3),
            "pps": round(statistics.median(one["pps"] for one in each)),
            "rounds": [{"ns": round(one["ns"], 1), "pps": round(one["pps"])} for one in each],
        }
    return result


def _sweep() -> None:
    """Take away what a benchmark left that was killed."""
    for place in (NETNS, BPFFS):
        for path in sorted(place.glob(f"{PREFIX}[0-9]*")):
            pid = path.name.removeprefix(PREFIX).partition("n")[0]
            if not pid.isdigit() or pathlib.Path("/proc", pid).exists():
                continue
            if place == NETNS:
                _run("ip", "netns", "del", path.name)
            else:
                bpf.remove_tree(path)


def table(result: dict[str, Any]) -> str:
    """For people."""
    papers = {v.name: v.paper for v in VARIANTS}
    lines = [f"{'variant':<18} {'ns/packet':>9} {'best':>6} {'ratio':>6} {'paper':>6} {'kpps':>6}  what"]
    for name, row in result["variants"].items():
        lines.append(
            f"{name:<18} {row['ns_per_packet']:>9.0f} {row['best_ns_per_packet']:>6.0f} {row['ratio_to_native']:>6.2f} "
            f"{papers.get(name, ''):>6} {row['pps'] / 1000:>6.0f}  {row['meaning']}"
        )
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """``trellis bench forwarding``."""
    parser = argparse.ArgumentParser(prog="trellis bench forwarding", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=5, help="rounds of all variants (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=1.0, help="length of one measurement (default: %(default)s)")
    parser.add_argument("--json", metavar="FILE", help="also write the figures there")
    args = parser.parse_args(argv)
    if args.rounds < 1 or not 0 < args.seconds <= 60:
        parser.error("at least one round, of at most 60 seconds")

    def leave(*_: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, leave)
    try:
        result = run(args.rounds, args.seconds, lambda text: print(text, file=sys.stderr, flush=True))
    except TrellisError as err:
        print(f"trellis bench: {err}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("trellis bench: stopped; everything it made is gone", file=sys.stderr)
        return 130
    finally:
        signal.signal(signal.SIGTERM, before)
    print(table(result))
    if args.json:
        pathlib.Path(args.json).write_text(json.dumps(result, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
