"""``trellis lab demo``: a slice on Abilene, from the operator's script to a proof that nothing is left.

Each line of the report is one promise, tried; the demo goes on after a line that fails and always takes the lab down.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import dataclasses
import itertools
import json
import os
import pathlib
import re
import select
import shutil
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TextIO

from nodemanager_trellis.errors import InvalidInput, TrellisError, Unsupported
from nodemanager_trellis.lab import control, links, processes, topology, underlay
from nodemanager_trellis.lab import map as drawing
from nodemanager_trellis.lab.control import Lab, NodeRecord, Record
from nodemanager_trellis.lab.map import LinkState
from nodemanager_trellis.lab.progress import Progress
from nodemanager_trellis.lab.topology import LabLink, Topology
from nodemanager_trellis.names import vini_network
from nodemanager_trellis.units import EGRE_OVERHEAD_BYTES, format_rate, human_rate

INNER_MTU = underlay.MTU - EGRE_OVERHEAD_BYTES
"""1458: what an EGRE link carries over an underlay of 1500 bytes (names of the bytes: units.py)"""
WIRE_BYTES = INNER_MTU + 14 + EGRE_OVERHEAD_BYTES
"""a full inner frame on the wire: 1514"""
TCP_SHARE = (INNER_MTU - 20 - 20 - 12) / WIRE_BYTES
"""payload of a full TCP segment (IPv4 20, TCP 20, timestamps 12) of its bytes on the wire: 1406/1514"""
UDP_BYTES = 1400
UDP_SHARE = UDP_BYTES / (UDP_BYTES + 8 + 20 + 14 + EGRE_OVERHEAD_BYTES)
TOLERANCE = 0.03
IN_FORCE_S = 1.0
"""a changed rate must be in force at both ends after this"""
_IPERF_S = 4
_ATTACH_PARALLEL = 4


class Failed(Exception):
    """A promise was not kept; the message says what was seen instead."""


@dataclasses.dataclass(slots=True)
class Line:
    """One line of the report."""

    ok: bool
    text: str
    reason: str = ""
    seconds: float = 0.0
    figures: dict[str, Any] = dataclasses.field(default_factory=dict)

    def __str__(self) -> str:
        text = f"ok   {self.text}" if self.ok else f"FAIL {self.text}: {self.reason}"
        return textwrap.fill(text, 116, subsequent_indent="     ", break_long_words=False, break_on_hyphens=False)


def loopback(node_id: int) -> str:
    """The sliver's own address, announced by its OSPF."""
    return f"10.255.0.{node_id}"


def link_address(node_id: int, remote_node_id: int) -> str:
    """VINI address of that end of the link."""
    network = vini_network(node_id, remote_node_id)
    return str(network[1 if node_id < remote_node_id else 2])


def bird_config(node_id: int) -> str:
    """OSPF on all virtual links, the sliver's loopback address announced."""
    own = loopback(node_id)
    return f"""log "/run/bird/bird.log" all;
router id {own};
protocol device {{ scan time 1; }}
protocol kernel {{
    ipv4 {{
        import none;
        export filter {{ krt_prefsrc = {own}; accept; }};
    }};
}}
protocol ospf v2 {{
    ipv4 {{ import all; export none; }};
    area 0 {{
        interface "a*" {{ type ptp; hello 1; dead 4; retransmit 2; }};
        interface "lo" {{ stub; }};
    }};
}}
"""


def chosen_links(topo: Topology) -> list[LabLink]:
    """Up to three links to be measured: the first of the lowest, of a middle and of the highest rate."""
    rates = sorted({link.rate_bps for link in topo.links})
    picked = sorted({rates[0], rates[len(rates) // 2], rates[-1]})
    found = [next(link for link in topo.links if link.rate_bps == rate) for rate in picked]
    return found + [link for link in topo.links if link not in found][: 3 - len(found)]


def farthest(topo: Topology) -> tuple[str, str]:
    """Two nodes with the most links between them; Abilene: Seattle and New York."""
    if topo.name == "abilene":
        return "seat", "newy"
    names = [node.name for node in topo.nodes]
    pairs = [(a, b) for i, a in enumerate(names) for b in names[i + 1 :]]
    return max(pairs, key=lambda pair: len(topo.path(*pair)))


def hops(output: str) -> list[str]:
    """Addresses in the output of ``traceroute -n -q 1``; ``*`` where nobody answered."""
    return re.findall(r"^ *[0-9]+ +([0-9.]+|\*)", output, re.MULTILINE)


def lost_pings(output: str) -> tuple[int, list[int]]:
    """(echo requests sent, sequence numbers never answered) of ping's output.

    The last request does not count when it is the one under way as ping was ended.
    """
    summary = re.search(r"([0-9]+) packets transmitted, ([0-9]+)", output)
    if summary is None:
        raise Failed(f"ping said: {output.strip()[-200:] or 'nothing'}")
    sent = int(summary[1])
    answered = {int(number) for number in re.findall(r"icmp_seq=([0-9]+) ttl=", output)}
    return sent, [number for number in range(1, sent + 1) if number not in answered and number != sent]


def example(name: str) -> str:
    """Path of a script of ``examples/``: in the source tree, else where the package was installed.

    :raises Unsupported: not there
    """
    share = pathlib.Path("share", "nodemanager_trellis", "examples")
    roots = [pathlib.Path(__file__).resolve().parents[2] / "examples", pathlib.Path(sys.prefix) / share, "/usr" / share]
    for root in roots:
        if (root / name).is_file():
            return str(root / name)
    raise Unsupported(f"examples/{name} is not installed")


# The two ends of the attack. They run inside slivers, with whatever Python the image has.
UDP_RECEIVER = """
import json, socket, sys, time
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
s.bind(('0.0.0.0', int(sys.argv[1])))
s.settimeout(20)
print('listening', flush=True)
seen = {}
while True:
    data = s.recv(2048)
    now = time.monotonic()
    if data[:1] == b'E':
        break
    phase = seen.setdefault(data[0], [now, now, 0])
    phase[2] += len(data) if phase[0] != now else 0
    phase[1] = now
print(json.dumps({chr(k): [v[1] - v[0], v[2]] for k, v in seen.items()}), flush=True)
"""
UDP_SENDER = """
import contextlib, socket, sys, time
host, port, size = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
rate, seconds = float(sys.argv[4]), float(sys.argv[5])
for i, priority in enumerate(sys.argv[6:]):
    s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    s.setsockopt(socket.SOL_SOCKET, socket.SO_PRIORITY, int(priority, 0))
    s.connect((host, port))
    data = bytes([ord('a') + i]) * size
    start, sent = time.monotonic(), 0
    while (now := time.monotonic()) - start < seconds:
        while sent < (now - start) * rate / 8:
            with contextlib.suppress(OSError):
                s.send(data)
            sent += size
        time.sleep(0.001)
for _ in range(20):
    time.sleep(0.05)
    with contextlib.suppress(OSError):
        s.send(b'E')
"""


class Pinger:
    """A ping inside a sliver that runs until it is ended, and knows how far it is."""

    def __init__(self, command: list[str]) -> None:
        self._child = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        self._text: list[str] = []
        self._changed = threading.Condition()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    @staticmethod
    def script(source: str, target: str, interval_s: float = 0.02) -> list[str]:
        """The command for the sliver: it ends with a newline on its stdin (or when that is closed)."""
        ping = f"ping -n -i {interval_s} -W 2 -I {source} {target}"
        return ["sh", "-c", f"{ping} & child=$!; read line; kill -INT $child; wait $child"]

    def _read(self) -> None:
        assert self._child.stdout is not None
        for line in self._child.stdout:
            with self._changed:
                self._text.append(line)
                self._changed.notify_all()

    def answers(self) -> int:
        """Replies so far."""
        with self._changed:
            return sum(" ttl=" in line for line in self._text)

    def wait_answers(self, count: int, timeout_s: float = 20.0) -> None:
        """``count`` further replies have come.

        :raises Failed: they have not
        """
        wanted = self.answers() + count
        with self._changed:
            enough = self._changed.wait_for(lambda: sum(" ttl=" in line for line in self._text) >= wanted, timeout_s)
            if not enough:
                raise Failed(
                    f"no {count} answers to ping within {timeout_s:.0f} s: {''.join(self._text)[-200:].strip()}"
                )

    def end(self) -> tuple[int, list[int]]:
        """Stop it: (requests sent, sequence numbers lost)."""
        assert self._child.stdin is not None
        with contextlib.suppress(OSError):
            self._child.stdin.write("\n")
            self._child.stdin.close()
        try:
            self._child.wait(10)
        except subprocess.TimeoutExpired:
            self._child.kill()
            self._child.wait()
        self._reader.join(5)
        return lost_pings("".join(self._text))

    def __enter__(self) -> Pinger:
        return self

    def __exit__(self, *_: object) -> None:
        """It has ended, whatever happened."""
        if self._child.poll() is None:
            with contextlib.suppress(Failed):
                self.end()


class Demo:
    """One run of the show."""

    def __init__(
        self, lab: Lab, topo: Topology, slice_name: str, report_dir: pathlib.Path, progress: Progress, out: TextIO
    ) -> None:
        self.lab = lab
        self.topo = topo
        self.slice = slice_name
        self.report_dir = report_dir
        self.progress = progress
        self.out = out
        self.lines: list[Line] = []
        self.measured: dict[frozenset[str], float] = {}
        """ends of a link → bit/s on the wire"""
        self._record: Record | None = None
        self._started = time.monotonic()
        self._total = 13

    # ------------------------------------------------------------ the frame

    @property
    def record(self) -> Record:
        """The lab that is up."""
        if self._record is None:
            raise Failed("the lab is not up")
        return self._record

    def node(self, name: str) -> NodeRecord:
        """A node of the lab that is up."""
        return self.record.node(name)

    def try_line(self, what: str, check: Callable[[], tuple[str, dict[str, Any]]]) -> bool:
        """Try one promise and write its line. Nothing that goes wrong in it gets past it, except Ctrl-C."""
        self.progress.stage(what, len(self.lines), self._total)
        start = time.monotonic()
        try:
            text, figures = check()
            line = Line(True, text, figures=figures)
        except (Failed, TrellisError, OSError, subprocess.SubprocessError, LookupError, ValueError, TypeError) as err:
            line = Line(
                False, what, f"{'' if isinstance(err, Failed | TrellisError) else type(err).__name__ + ' '}{err}"
            )
        line.seconds = round(time.monotonic() - start, 2)
        self.lines.append(line)
        self.progress.clear()
        print(line, file=self.out, flush=True)
        return line.ok

    def run(self, keep: bool) -> bool:
        """All of it. True when every line holds."""
        self.report_dir.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(self.report_dir / "logs", ignore_errors=True)  # of an earlier run that failed
        try:
            if self.try_line("the lab comes up", self.up) and self.try_line("the slice comes up", self.make_slice):
                self.checks()
        finally:
            if self._record is not None and not keep:
                self.try_line("the lab is taken down and nothing is left", self.down)
        return all(line.ok for line in self.lines)

    def checks(self) -> None:
        """What is tried on a slice that is up."""
        if self.try_line("OSPF (bird) finds every sliver from every sliver", self.routing):
            self.try_line("all ordered pairs ping", self.ping_pairs)
            self.try_line("traceroute shows the way", self.traceroute)
        for link in chosen_links(self.topo):
            self.try_line(f"{link.a} - {link.b} keeps its rate", lambda link=link: self.measure(link))  # type: ignore[misc]
        self.try_line("root in a sliver cannot lift its limit", self.attack)
        self.try_line("a changed rate is in force at both ends at once", self.change_rate)
        self.try_line("node managers die and come back, nobody notices", self.kill_all)
        self.try_line("the map is drawn", self.draw)

    # ------------------------------------------------------------ tools

    def inside(
        self, node: str, command: Sequence[str], text: str = "", timeout_s: float = 60.0
    ) -> subprocess.CompletedProcess[str]:
        """Run a command as root in the slice's sliver on a node."""
        full = self.lab.sliver_command(node, self.slice, command)
        return subprocess.run(full, input=text, capture_output=True, text=True, timeout=timeout_s, check=False)

    def must(self, node: str, command: Sequence[str], text: str = "", timeout_s: float = 60.0) -> str:
        """The same; its output.

        :raises Failed: it failed
        """
        done = self.inside(node, command, text, timeout_s)
        if done.returncode:
            said = (done.stderr or done.stdout).strip().replace("\n", "; ")[-300:]
            raise Failed(f"in the sliver on {node}, {command[0]} failed ({done.returncode}): {said}")
        return done.stdout

    @contextlib.contextmanager
    def serving(self, node: str, command: Sequence[str], sign: str) -> Iterator[subprocess.Popen[str]]:
        """A server in a sliver that has said ``sign``; ended at the end.

        :raises Failed: it did not say so within 10 s
        """
        child = subprocess.Popen(
            self.lab.sliver_command(node, self.slice, command),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            bufsize=1,
        )
        assert child.stdout is not None
        try:
            said, deadline = "", time.monotonic() + 10
            while sign not in said:
                ready, _, _ = select.select([child.stdout], [], [], max(0.0, deadline - time.monotonic()))
                piece = os.read(child.stdout.fileno(), 4096).decode(errors="replace") if ready else ""
                if not piece:
                    raise Failed(f"{command[0]} in the sliver on {node} does not serve: {said.strip()[-200:]}")
                said += piece
            yield child
        finally:
            if child.poll() is None:
                child.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.wait(5)
            if child.poll() is None:
                child.kill()
                child.wait()
            child.stdout.close()

    def script(self, *words: str) -> subprocess.CompletedProcess[str]:
        """Run one of the examples where the operator sits."""
        command = self.lab.outside_command([sys.executable, example(words[0]), *words[1:]])
        return subprocess.run(
            command, env=self.lab.environment(), capture_output=True, text=True, timeout=60, check=False
        )

    def wait(self, fact: Callable[[], str], timeout_s: float) -> float:
        """``fact()`` says '' (else what is missing) within the time. Returns the seconds it took.

        :raises Failed: with what was missing last
        """
        start = time.monotonic()
        while missing := fact():
            if time.monotonic() - start > timeout_s:
                raise Failed(f"after {timeout_s:.0f} s still: {missing}")
            time.sleep(0.02)
        return time.monotonic() - start

    def everywhere(self, work: Callable[[NodeRecord], Any]) -> list[Any]:
        """``work`` for every node, a few at a time; the first failure is raised."""
        with concurrent.futures.ThreadPoolExecutor(_ATTACH_PARALLEL) as pool:
            return list(pool.map(work, self.record.nodes))

    def ends(self) -> dict[tuple[str, str], dict[str, Any]]:
        """(node, remote node) → that end of the slice's link, as its manager reports it."""
        return links.ends(self.lab, self.record, self.slice)

    # ------------------------------------------------------------ the promises

    def up(self) -> tuple[str, dict[str, Any]]:
        """PLC, nodes and node managers run."""
        start = time.monotonic()
        self._record = self.lab.up(self.topo, self.progress)
        took = time.monotonic() - start
        count = len(self.topo.nodes)
        return f"lab up: {count} nodes, PLC and {count} node managers in {took:.1f} s", {"up_s": round(took, 2)}

    def _missing_slivers(self) -> str:
        missing = []
        for node in self.record.nodes:
            sliver = self.lab.node_status(node.name).get("slivers", {}).get(self.slice)
            wanted = len(self.topo.neighbours(node.name))
            if sliver is None:
                missing.append(f"{node.name} has none")
            elif sliver["state"] != "running":
                missing.append(f"{node.name} is {sliver['state']} ({'; '.join(sliver.get('problems', []))[:200]})")
            elif len(sliver["links"]) != wanted:
                missing.append(f"{node.name} has {len(sliver['links'])} links of {wanted}")
        return ", ".join(missing)

    def make_slice(self) -> tuple[str, dict[str, Any]]:
        """An operator's script makes the slice; all slivers run, with their links."""
        wanted = self.report_dir / "links.json"
        wanted.write_text(json.dumps([[x.a, x.b, format_rate(x.rate_bps)] for x in self.topo.links]), encoding="utf-8")
        words = ["make_slice.py", self.slice]
        if self.topo.name != "abilene":
            words += ["--topology", str(wanted.resolve())]
        start = time.monotonic()
        done = self.script(*words)
        if done.returncode:
            raise Failed(f"make_slice.py: {(done.stderr or done.stdout).strip()[-300:]}")
        script_s = time.monotonic() - start
        self.wait(self._missing_slivers, 90)
        took = time.monotonic() - start
        nodes, count = len(self.topo.nodes), len(self.topo.links)
        text = f"slice {self.slice}: {nodes} slivers and {count} links up {took:.1f} s after make_slice.py began"
        return f"{text} (it took {script_s:.1f} s)", {"slivers_s": round(took, 2), "script_s": round(script_s, 2)}

    def routing(self) -> tuple[str, dict[str, Any]]:
        """A bird in every sliver; every sliver has a route to every other's loopback address."""
        prepare = (
            "set -e; ip addr replace {own}/32 dev lo; ip link set lo up; echo 1 >/proc/sys/net/ipv4/ip_forward;"
            " mkdir -p /etc/bird /run/bird; cat >/etc/bird/bird.conf;"
            " bird -c /etc/bird/bird.conf -s /run/bird/bird.ctl -P /run/bird/bird.pid"
        )
        start = time.monotonic()
        self.everywhere(
            lambda node: self.must(
                node.name, ["sh", "-c", prepare.format(own=loopback(node.node_id))], bird_config(node.node_id)
            )
        )
        started = time.monotonic() - start
        others = len(self.record.nodes) - 1
        look = (
            f"i=0; until [ $(ip -4 route show proto bird | grep -c '^10\\.255\\.0\\.') -ge {others} ]; do i=$((i+1));"
            " [ $i -lt 300 ] || { ip -4 route show proto bird | grep -c '^10\\.255\\.0\\.'; exit 1; }; sleep 0.1; done"
        )
        watchers = [
            (node.name, subprocess.Popen(self.lab.sliver_command(node.name, self.slice, ["sh", "-c", look]),
                                         stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True))
            for node in self.record.nodes
        ]  # fmt: skip
        poor = []
        for name, child in watchers:
            output, _ = child.communicate(timeout=90)
            if child.returncode:
                poor.append(f"{name} has routes to {output.strip() or '?'} of {others}")
        if poor:
            raise Failed(", ".join(poor))
        took = time.monotonic() - start
        text = (
            f"OSPF: {others + 1} birds, every sliver has a route to every loopback {took:.1f} s after the first start"
        )
        return text, {"birds_started_s": round(started, 2), "converged_s": round(took, 2)}

    def ping_pairs(self) -> tuple[str, dict[str, Any]]:
        """Loopback to loopback, three echoes each."""
        nodes = self.record.nodes

        def from_one(node: NodeRecord) -> list[str]:
            targets = " ".join(loopback(other.node_id) for other in nodes if other is not node)
            own = loopback(node.node_id)
            script = (
                f"for t in {targets}; do (ping -n -q -c 3 -i 0.2 -W 3 -I {own} $t | grep -q ' 3 received' || echo $t) &"
                " done; wait"
            )
            names = {loopback(other.node_id): other.name for other in nodes}
            return [f"{node.name} to {names.get(t, t)}" for t in self.must(node.name, ["sh", "-c", script]).split()]

        silent = [pair for pairs in self.everywhere(from_one) for pair in pairs]
        count = len(nodes) * (len(nodes) - 1)
        if silent:
            raise Failed(f"{len(silent)} of {count} lost echoes: {', '.join(silent[:6])}")
        return f"all {count} ordered pairs ping, loopback to loopback, 0 of {3 * count} echoes lost", {"pairs": count}

    def traceroute(self) -> tuple[str, dict[str, Any]]:
        """The way between two far nodes, in names."""
        first, last = farthest(self.topo)
        source, target = (loopback(self.node(name).node_id) for name in (first, last))
        output = self.must(first, ["traceroute", "-n", "-q", "1", "-w", "3", "-m", "20", "-s", source, target])
        names = {loopback(node.node_id): node.name for node in self.record.nodes}
        for link in self.topo.links:
            for here, there in ((link.a, link.b), (link.b, link.a)):
                names[link_address(self.node(here).node_id, self.node(there).node_id)] = here
        way = [first, *(names.get(hop, hop) for hop in hops(output))]
        shown = [self.topo.node(name).place or name if name in names.values() else name for name in way]
        linked = all(b in self.topo.neighbours(a) for a, b in itertools.pairwise(way))
        if way[-1] != last or not linked or len(way) != len(self.topo.path(first, last)):
            raise Failed(" > ".join(shown))
        return f"traceroute: {' > '.join(shown)}", {"way": way}

    def iperf(self, here: str, there: str) -> float:
        """TCP payload per second over the link between two neighbours, bit/s as the receiver counted."""
        a, b = self.node(here).node_id, self.node(there).node_id
        target = link_address(b, a)
        with self.serving(there, ["iperf3", "-s", "-1", "-B", target, "--forceflush"], "listening"):
            command = ["iperf3", "-c", target, "-t", str(_IPERF_S), "-O", "1", "-J"]
            output = self.inside(here, command, timeout_s=_IPERF_S + 30).stdout
        answer = json.loads(output)
        if "error" in answer:
            raise Failed(f"iperf3: {answer['error']}")
        return float(answer["end"]["sum_received"]["bits_per_second"])

    def _compare(self, payload_bps: float, asked_bps: int) -> str:
        """Text of a measured TCP rate.

        :raises Failed: too far from what was asked
        """
        theory = asked_bps * TCP_SHARE
        off = payload_bps / theory - 1
        text = f"TCP {human_rate(payload_bps)}, theory {human_rate(theory)} ({off:+.1%})"
        if abs(off) > TOLERANCE:
            raise Failed(f"asked {human_rate(asked_bps)}, {text}")
        return text

    def measure(self, link: LabLink) -> tuple[str, dict[str, Any]]:
        """The link carries what was asked, not more, not less."""
        payload = self.iperf(link.a, link.b)
        self.measured[frozenset((link.a, link.b))] = payload / TCP_SHARE
        text = f"{link.a} - {link.b}: asked {human_rate(link.rate_bps)}, {self._compare(payload, link.rate_bps)}"
        return text, {
            "asked_bps": link.rate_bps,
            "tcp_bps": round(payload),
            "theory_bps": round(link.rate_bps * TCP_SHARE),
        }

    def _victim(self) -> LabLink:
        """A link of middle rate whose first end has another link too."""
        middle = chosen_links(self.topo)[len(chosen_links(self.topo)) // 2]
        for link in [middle, *self.topo.links]:
            for a, b in ((link.a, link.b), (link.b, link.a)):
                if len(self.topo.neighbours(a)) > 1 and link.rate_bps <= 200_000_000:
                    return LabLink(a, b, link.rate_bps)
        return middle

    def attack(self) -> tuple[str, dict[str, Any]]:
        """Root in a sliver deletes and adds qdiscs and sets priorities; the link's rate holds."""
        link = self._victim()
        ends = self.ends()
        mine = ends[link.a, link.b]
        device = str(mine["inner"])
        own_major, others = self._handles(link, ends)
        tricks = [
            f"tc qdisc add dev {device} root tbf rate 10gbit burst 1mb latency 10ms",
            f"tc qdisc del dev {device} root",
            f"tc qdisc add dev {device} root handle 1: htb default 1",
            f"tc class add dev {device} parent 1: classid 1:1 htb rate 10gbit",
            f"ip link set {device} txqueuelen 10000",
        ]
        done = self.inside(link.a, ["sh", "-c", "".join(f"{trick} && echo done;" for trick in tricks)])
        taken = done.stdout.count("done")
        try:
            priorities = [
                "0",
                "6",
                hex(own_major),
                hex(own_major | 1),
                *(hex(own_major | minor) for minor in others[:2]),
            ]
            rates = self._blast(link, priorities)
            payload = self.iperf(link.a, link.b)
        finally:
            self.inside(link.a, ["sh", "-c", f"tc qdisc del dev {device} root; ip link set {device} txqueuelen 1000"])
        theory = link.rate_bps * UDP_SHARE
        bad = [f"{p}: {human_rate(r)}" for p, r in rates.items() if not 0.9 <= r / theory <= 1 + TOLERANCE]
        if len(rates) < len(priorities):
            raise Failed(f"only {len(rates)} of {len(priorities)} priorities got anything through")
        if bad:
            raise Failed(f"UDP got {', '.join(bad)} where the limit is {human_rate(theory)}")
        tcp = self._compare(payload, link.rate_bps)
        low, high = (human_rate(f(rates.values())) for f in (min, max))
        text = (
            f"root in the sliver on {link.a} changed its qdiscs ({taken} of {len(tricks)} commands taken) and sent "
            f"with {len(rates)} priorities, another class's among them: UDP {low} to {high} of {human_rate(theory)}; "
            f"{tcp}"
        )
        return text, {"udp_bps": {p: round(r) for p, r in rates.items()}, "tcp_bps": round(payload)}

    def _handles(self, link: LabLink, ends: dict[tuple[str, str], dict[str, Any]]) -> tuple[int, list[int]]:
        """Major number (shifted) of the node's classes, and the minors of other links' classes there."""
        found = links.classes(self.node(link.a).netns)
        mine = links.class_of(found, int(ends[link.a, link.b]["minor"]))
        if mine is None:
            raise Failed(f"node {link.a} has no class for its link to {link.b}")
        others = [int(end["minor"]) for (a, b), end in ends.items() if a == link.a and b != link.b]
        return mine.major << 16, others

    def _blast(self, link: LabLink, priorities: list[str]) -> dict[str, float]:
        """UDP from one end to the other at twice the rate, a second for each priority → received payload, bit/s."""
        target = link_address(self.node(link.b).node_id, self.node(link.a).node_id)
        with self.serving(link.b, ["python3", "-c", UDP_RECEIVER, "5999"], "listening") as receiver:
            send = [
                "python3",
                "-c",
                UDP_SENDER,
                target,
                "5999",
                str(UDP_BYTES),
                str(2 * link.rate_bps),
                "1.0",
                *priorities,
            ]
            self.must(link.a, send)
            assert receiver.stdout is not None
            output = receiver.stdout.read()
        answer = json.loads(output.strip().splitlines()[-1])
        rates = {}
        for i, priority in enumerate(priorities):
            seconds, count = answer.get(chr(ord("a") + i), (0, 0))
            if seconds:
                rates[priority] = count * 8 / seconds
        return rates

    def change_rate(self) -> tuple[str, dict[str, Any]]:
        """The operator's second script; both ends follow within a second, a ping runs on."""
        link = next((x for x in self.topo.links if {x.a, x.b} == {"chic", "newy"}), self.topo.links[-1])
        new_bps = 20_000_000 if link.rate_bps != 20_000_000 else 30_000_000
        a, b = self.node(link.a), self.node(link.b)
        source, target = link_address(a.node_id, b.node_id), link_address(b.node_id, a.node_id)
        with Pinger(self.lab.sliver_command(link.a, self.slice, Pinger.script(source, target))) as pinger:
            pinger.wait_answers(25)
            began = time.monotonic()
            command = self.lab.outside_command(
                [sys.executable, example("change_rate.py"), self.slice, link.a, link.b, format_rate(new_bps)]
            )
            operator = subprocess.Popen(command, env=self.lab.environment(), stderr=subprocess.PIPE, text=True,
                                        stdout=subprocess.DEVNULL)  # fmt: skip
            ended = threading.Event()
            ended_at = [0.0]

            def wait_for_operator() -> None:
                operator.wait()
                ended_at[0] = time.monotonic()
                ended.set()

            threading.Thread(target=wait_for_operator, daemon=True).start()
            self.wait(lambda: self._other_rate(link, new_bps), 20)
            in_force = time.monotonic()
            ended.wait(30)
            if operator.returncode:
                raise Failed(f"change_rate.py: {operator.stderr.read().strip()[-200:] if operator.stderr else ''}")
            pinger.wait_answers(25)
            sent, lost = pinger.end()
        after = max(0.0, in_force - ended_at[0])
        whole = in_force - began
        if lost:
            raise Failed(f"{len(lost)} of {sent} pings lost meanwhile")
        if after > IN_FORCE_S:
            raise Failed(f"in force at both ends only {after:.2f} s after change_rate.py ended")
        payload = self.iperf(link.a, link.b)
        self.measured[frozenset((link.a, link.b))] = payload / TCP_SHARE
        text = (
            f"{link.a} - {link.b} changed from {human_rate(link.rate_bps)} to {human_rate(new_bps)}: in force at both "
            f"ends {whole:.2f} s after change_rate.py began, {after:.2f} s after it ended, 0 of {sent} pings lost; "
            f"{self._compare(payload, new_bps)}"
        )
        return text, {"since_begin_s": round(whole, 3), "since_end_s": round(after, 3), "pings": sent}

    def _other_rate(self, link: LabLink, rate_bps: int) -> str:
        """'' when status and kernel of both ends have the rate, else what they have."""
        ends = self.ends()
        for here, there in ((link.a, link.b), (link.b, link.a)):
            end = ends.get((here, there))
            if end is None or end["rate_bps"] != rate_bps:
                return f"{here} reports {end['rate_bps'] if end else 'no such link'}"
            entry = links.class_of(links.classes(self.node(here).netns), int(end["minor"]))
            if entry is None or entry.ceil_bps != rate_bps:
                return f"the kernel of {here} has {entry.ceil_bps if entry else 'no such class'}"
        return ""

    def _inits(self) -> dict[str, Any]:
        """Each sliver's first process, with its start time."""
        found = {}
        for node in self.record.nodes:
            container = str(self.lab.node_status(node.name)["slivers"][self.slice]["container"])
            pid = control.init_pid(container)
            found[node.name] = processes.identify(pid) if pid else None
        return found

    def kill_all(self) -> tuple[str, dict[str, Any]]:
        """SIGKILL to every node manager while a ping crosses the network; then they start again."""
        first, last = farthest(self.topo)
        source, target = (loopback(self.node(name).node_id) for name in (first, last))
        before = self._inits()
        gone = [name for name, process in before.items() if process is None]
        if gone:
            raise Failed(f"no sliver runs on {', '.join(gone)}")
        with Pinger(self.lab.sliver_command(first, self.slice, Pinger.script(source, target))) as pinger:
            pinger.wait_answers(25)
            killed = self.lab.kill()
            pinger.wait_answers(50)
            start = time.monotonic()
            started = self.lab.restart(progress=self.progress)
            took = time.monotonic() - start
            self.wait(self._missing_slivers, 30)
            pinger.wait_answers(25)
            sent, lost = pinger.end()
        self._record = self.lab.record()
        after = self._inits()
        changed = [name for name in before if before[name] != after[name]]
        if changed:
            raise Failed(f"slivers were started anew on {', '.join(changed)}")
        if lost:
            raise Failed(f"{len(lost)} of {sent} pings lost ({lost[:5]} …)")
        if len(killed) != len(self.record.nodes) or len(started) != len(killed):
            raise Failed(f"killed {len(killed)}, started {len(started)} of {len(self.record.nodes)} node managers")
        text = (
            f"all {len(killed)} node managers killed (SIGKILL), again ready in {took:.1f} s: 0 of {sent} pings "
            f"{first} - {last} lost, all slivers adopted (same first processes)"
        )
        return text, {"pings": sent, "restart_s": round(took, 2)}

    def draw(self) -> tuple[str, dict[str, Any]]:
        """SVG and text into the report's directory."""
        found = []
        for state in links.states(self.lab, self.slice, 0):
            wire = self.measured.get(frozenset((state.a, state.b)))
            found.append(LinkState(state.a, state.b, state.asked_bps, None, wire, state.problem))
        notes = (
            f"slice {self.slice}: {len(self.topo.nodes)} slivers, {len(found)} virtual links",
            "rates are those on the wire; measured ones by TCP (iperf3), with EGRE's and TCP's share added",
        )
        title = "Abilene" if self.topo.name == "abilene" else self.topo.name
        (self.report_dir / "map.svg").write_text(drawing.svg(self.topo, found, title, notes), encoding="utf-8")
        text = drawing.picture(self.topo) + "\n" + drawing.table(self.topo, found)
        (self.report_dir / "map.txt").write_text(text, encoding="utf-8")
        if any(state.problem for state in found):
            raise Failed("; ".join(f"{s.a} - {s.b}: {s.problem}" for s in found if s.problem))
        if len(found) != len(self.topo.links):
            raise Failed(f"{len(found)} of {len(self.topo.links)} links are there")
        return f"map of {len(found)} links in {self.report_dir}/map.svg and map.txt", {"links": len(found)}

    def down(self) -> tuple[str, dict[str, Any]]:
        """The lab goes, and with it everything."""
        self._keep_logs()
        start = time.monotonic()
        left = self.lab.down(self.progress)
        took = time.monotonic() - start
        self._record = None
        if left:
            raise Failed(f"{len(left)} things left: {'; '.join(left[:5])}")
        return f"lab down in {took:.1f} s, nothing left (namespaces, mounts, cgroups, pins, processes, directories)", {
            "down_s": round(took, 2)
        }

    def _keep_logs(self) -> None:
        """When something failed, the daemons' logs are worth more than a clean directory."""
        if all(line.ok for line in self.lines):
            return
        logs = self.report_dir / "logs"
        logs.mkdir(parents=True, exist_ok=True)
        for path in [self.lab.plc_log, *(self.lab.log_file(node.name) for node in self.record.nodes)]:
            with contextlib.suppress(OSError):
                (logs / path.name).write_bytes(path.read_bytes()[-1_000_000:])

    def document(self) -> dict[str, Any]:
        """The report as JSON."""
        return {
            "ok": bool(self.lines) and all(line.ok for line in self.lines),
            "topology": self.topo.name,
            "slice": self.slice,
            "seconds": round(time.monotonic() - self._started, 1),
            "lines": [dataclasses.asdict(line) for line in self.lines],
        }


def run(
    name: str, topology_spec: str, report_dir: pathlib.Path, keep: bool = False, json_file: str | None = None
) -> int:
    """The command: prints the report, returns the exit status."""
    topo = topology.resolve(topology_spec)
    lab = Lab(name)
    if lab.exists():
        raise InvalidInput(f"a lab called {name} exists already: trellis lab down --name {name}")
    for script in ("make_slice.py", "change_rate.py"):
        example(script)
    progress = Progress()
    slice_name = "vini_" + re.sub("[^a-z0-9]", "", topo.name.lower())
    demo = Demo(lab, topo, slice_name, report_dir, progress, sys.stdout)

    try:
        with control.ended_by_sigterm():  # the lab is taken down then too
            good = demo.run(keep)
    finally:
        progress.clear()
        document = demo.document()
        if json_file:
            pathlib.Path(json_file).write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    good = good and document["ok"]
    print()
    map_text = report_dir / "map.txt"
    if good and map_text.exists():
        print(map_text.read_text(encoding="utf-8"))
    failed = sum(not line.ok for line in demo.lines)
    print(f"{len(demo.lines)} lines, {failed} failed, {document['seconds']:.0f} s")
    if failed and (report_dir / "logs").exists():
        print(f"logs of the daemons: {report_dir}/logs")
    if keep and lab.exists():
        print(f"the lab is still up: trellis lab status, map, exec …; trellis lab down --name {name} ends it")
    return 0 if good else 1
