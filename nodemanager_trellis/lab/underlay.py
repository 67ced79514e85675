"""The machines and the wire of a lab: a network namespace per node, and one with a bridge that joins them.

Each node has one device ``u0`` (veth, MTU 1500) with an address in 198.51.100.0/24 (a documentation network, RFC 5737);
PLC sits on the bridge itself, at 198.51.100.1. Everything goes through ``ip -batch``: one fork per namespace.

A namespace is ours when its name was claimed *and* its inode is the one we saw when we made it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import pathlib
import shutil
import subprocess
from collections.abc import Callable, Iterable, Mapping, Sequence

from nodemanager_trellis.errors import NotOurs, SubstrateError

DEVICE = "u0"
BRIDGE = "br0"
MTU = 1500
NETWORK = "198.51.100.0"
NETMASK = "255.255.255.0"
BROADCAST = "198.51.100.255"
PREFIX_LENGTH = 24
PLC_ADDRESS = "198.51.100.1"
_FIRST_HOST = 11
NETNS_DIRECTORY = pathlib.Path("/run/netns")


def underlay_netns(lab: str) -> str:
    """Name of the namespace with the bridge and PLC: ``lab.underlay`` (node names have no dot)."""
    return f"{lab}.underlay"


def node_netns(lab: str, node: str) -> str:
    """Name of the namespace that is a node's root context: ``lab-seat``."""
    return f"{lab}-{node}"


def node_address(index: int) -> str:
    """Underlay address of the ``index``-th node, counted from 0."""
    return f"198.51.100.{_FIRST_HOST + index}"


def node_mac(index: int) -> str:
    """MAC address of its ``u0``: locally administered, the address' last two bytes at the end."""
    return f"02:00:c6:33:64:{_FIRST_HOST + index:02x}"


def path(netns: str) -> str:
    """Where the namespace is bound: ``/run/netns/NAME``."""
    return str(NETNS_DIRECTORY / netns)


def inode(netns: str) -> int | None:
    """Inode of the namespace of that name; None when there is none (a bare file left behind counts as none)."""
    try:
        namespace, directory = os.stat(NETNS_DIRECTORY / netns), os.stat(NETNS_DIRECTORY)
    except FileNotFoundError:
        return None
    return namespace.st_ino if namespace.st_dev != directory.st_dev else None


def inside(netns: str, command: Sequence[str]) -> list[str]:
    """``command`` as one that runs in the namespace. Mounts stay the caller's (``ip netns exec`` would hide bpffs)."""
    return ["nsenter", f"--net={path(netns)}", "--", *command]


@dataclasses.dataclass(frozen=True, slots=True)
class Underlay:
    """What one lab has under it."""

    lab: str
    nodes: tuple[str, ...]
    hold: tuple[int, ...] = ()
    """file descriptors (a lock) that the commands we run keep open: who waits for the lock waits for them too"""

    def namespaces(self) -> list[str]:
        """Names of all its namespaces."""
        return [underlay_netns(self.lab), *(node_netns(self.lab, node) for node in self.nodes)]

    def check_free(self) -> None:
        """Nothing on this machine has one of our names.

        :raises NotOurs: something has
        """
        for name in self.namespaces():
            if os.path.lexists(NETNS_DIRECTORY / name):
                raise NotOurs(f"a network namespace called {name} exists already; it is not this lab's")

    def ensure(self, owned: Mapping[str, int], made: Callable[[dict[str, int]], None]) -> None:
        """The namespaces, bridge, devices and addresses are there; what was there already stays as it is.

        :param owned: namespaces that are ours, with their inodes
        :param made: told the same, completed, as soon as all namespaces exist
        :raises NotOurs: a name is taken by somebody else; nothing was changed
        :raises SubstrateError: the kernel refused
        """
        inodes = {name: inode(name) for name in self.namespaces()}
        for name, number in inodes.items():
            if number is not None and owned.get(name) != number:
                raise NotOurs(f"a network namespace called {name} exists already; it is not this lab's")
        _batch(
            [],
            [f"netns add {name}" for name, number in inodes.items() if number is None],
            "the namespaces",
            hold=self.hold,
        )
        made({name: number for name in self.namespaces() if (number := inode(name)) is not None})
        self._ensure_bridge()
        self._ensure_nodes()

    def _ensure_bridge(self) -> None:
        here = underlay_netns(self.lab)
        present = _devices(here)
        lines = []
        if BRIDGE not in present:
            lines += [
                f"link add {BRIDGE} type bridge stp_state 0 forward_delay 0 mcast_snooping 0",
                f"link set {BRIDGE} addrgenmode none",
            ]
        for index, node in enumerate(self.nodes):
            port = f"p-{node}"
            if port not in present:
                lines += [
                    f"link add {port} mtu {MTU} type veth peer name {DEVICE} mtu {MTU} address {node_mac(index)}"
                    f" netns {node_netns(self.lab, node)}",
                    f"link set {port} addrgenmode none",
                ]
            lines.append(f"link set {port} master {BRIDGE} up")
        lines += [f"addr replace {PLC_ADDRESS}/{PREFIX_LENGTH} dev {BRIDGE}", f"link set {BRIDGE} up", "link set lo up"]
        _batch(inside(here, []), lines, f"the bridge of {here}", hold=self.hold)
        # bridge-nf-call-* is per namespace and 1 in every new one; it would send bridged frames through iptables.
        script = 'for f in /proc/sys/net/bridge/bridge-nf-call-*; do [ ! -e "$f" ] || echo 0 >"$f"; done'
        _run(inside(here, ["sh", "-c", script]), "", f"bridge-nf-call of {here}")

    def _ensure_nodes(self) -> None:
        has_ethtool = shutil.which("ethtool") is not None
        script = "ip -batch -" + (f" && ethtool -K {DEVICE} gro on" if has_ethtool else "")
        running = []
        for index, node in enumerate(self.nodes):
            lines = [
                f"link set {DEVICE} addrgenmode none",
                f"addr replace {node_address(index)}/{PREFIX_LENGTH} broadcast {BROADCAST} dev {DEVICE}",
                f"link set {DEVICE} up",
                "link set lo up",
                f"route replace default via {PLC_ADDRESS}",
            ]
            child = subprocess.Popen(
                inside(node_netns(self.lab, node), ["sh", "-c", script]),
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                text=True,
                pass_fds=self.hold,
            )
            running.append((node, child, "\n".join(lines) + "\n"))
        failures = [(node, said) for node, child, text in running if (said := _finish(child, text))]
        if failures:
            raise SubstrateError(f"{DEVICE} of node {failures[0][0]}", "create", 0, failures[0][1])


def _finish(child: subprocess.Popen[str], text: str) -> str:
    with child:
        _, said = child.communicate(text)
    return (said.strip() or f"exit {child.returncode}") if child.returncode else ""


def absent(owned: Mapping[str, int | None]) -> list[str]:
    """None of these namespaces is there any more; one of another inode is somebody else's and stays.

    :param owned: name → inode; None for a name that was claimed while nothing had it, and made by us perhaps
    :returns: names that stayed because they are not ours
    :raises SubstrateError: the kernel refused
    """
    foreign, doomed = [], []
    for name, number in owned.items():
        if not os.path.lexists(NETNS_DIRECTORY / name):
            continue
        now = inode(name)
        if number is not None and now is not None and now != number:
            foreign.append(name)
        else:
            doomed.append(name)
    if doomed:
        _batch([], [f"netns del {name}" for name in doomed], "the namespaces", "delete", go_on=True)
    return foreign


def members(inodes: Iterable[int]) -> dict[int, int]:
    """Processes living in any of these namespaces: pid → inode."""
    wanted, found = set(inodes), {}
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            with contextlib.suppress(OSError):
                number = os.stat(f"/proc/{entry}/ns/net").st_ino
                if number in wanted:
                    found[int(entry)] = number
    return found


def _devices(netns: str) -> set[str]:
    listing = _run(inside(netns, ["ip", "-br", "link", "show"]), "", f"the devices of {netns}", operation="list")
    return {line.split()[0].partition("@")[0] for line in listing.splitlines() if line.strip()}


def _batch(
    prefix: Sequence[str],
    lines: Sequence[str],
    what: str,
    operation: str = "create",
    go_on: bool = False,
    hold: tuple[int, ...] = (),
) -> None:
    if lines:
        command = [*prefix, "ip", *(["-force"] if go_on else []), "-batch", "-"]
        _run(command, "\n".join(lines) + "\n", what, operation, hold)


def _run(command: Sequence[str], text: str, what: str, operation: str = "create", hold: tuple[int, ...] = ()) -> str:
    try:
        done = subprocess.run(command, input=text, capture_output=True, text=True, check=False, pass_fds=hold)
    except OSError as err:
        raise SubstrateError(what, operation, err.errno or 0, f"cannot run {command[0]}") from err
    if done.returncode:
        raise SubstrateError(what, operation, 0, done.stderr.strip().replace("\n", "; ") or f"exit {done.returncode}")
    return done.stdout
