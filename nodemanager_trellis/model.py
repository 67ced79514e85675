"""What users want: frozen data, no I/O, the words of the paper (Trellis §2–§3) and of PlanetLab.

A :class:`Desired` is one PLC answer understood: the node, its slivers with their virtual links, and what was wrong.
"""

from __future__ import annotations

import dataclasses
import enum


class Presence(enum.StrEnum):
    """What the node does about a sliver."""

    RUN = "run"
    """build and run it"""
    STOP = "stop"
    """build it, do not run it (``enabled`` ≤ 0)"""
    LEAVE = "leave"
    """neither build nor destroy (delegated, controller and not-instantiated slices nobody asked for here)"""


@dataclasses.dataclass(frozen=True, slots=True)
class Problem:
    """Something in the input that was refused, and what holds instead."""

    path: str
    """JSON path in the answer, ``$.slivers[2].attributes[0].value[1][2]``"""
    message: str
    """what was wrong, one sentence"""
    slice: str = ""
    """name of the slice it belongs to, '' for the node"""
    kept: str = ""
    """what stays in force, e.g. ``rate 100mbit``; '' if nothing was there before"""


@dataclasses.dataclass(frozen=True, slots=True)
class VirtualLink:
    """One end of a virtual link as its sliver's node sees it (Trellis §3.2)."""

    name: str
    """unique within the sliver: ``n39`` for the VINI link to node 39"""
    key: int
    """GRE key, 32 bit (RFC 2890)"""
    remote_node_id: int
    remote_ip: str
    """underlay address of the other end, IPv4"""
    ifname: str
    """device name inside the sliver, ≤ 15 characters"""
    addresses: tuple[str, ...]
    """addresses of this end with prefix length: ``192.168.2.10/30``"""
    peer_addresses: tuple[str, ...] = ()
    """addresses of the other end, without prefix length"""
    rate_bps: int = 0
    """what this end may send, bit/s on the wire (incl. 42 bytes of EGRE a frame); 0: not limited"""
    number: int = 0
    """16-bit class id minor, given by the store; 0: not yet given"""


@dataclasses.dataclass(frozen=True, slots=True)
class Limits:
    """The sliver's share of the node: the PlanetLab "rspec" in the units we use. None: not set by any tag."""

    cpu_share: int = 1
    """proportional CPU weight"""
    cpu_pct: int = 0
    """reserved CPU, percent of one core; 0: none"""
    memory_bytes: int | None = None
    disk_bytes: int | None = None
    net_min_bps: int | None = None
    net_max_bps: int | None = None
    net_share: int = 1
    net_i2_min_bps: int | None = None
    net_i2_max_bps: int | None = None
    net_i2_share: int = 1
    net_max_bytes: int | None = None
    """bytes a day"""
    net_thresh_bytes: int | None = None
    net_i2_max_bytes: int | None = None
    net_i2_thresh_bytes: int | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class Tag:
    """All values of one attribute name that apply to a sliver on this node, in the order of the answer."""

    name: str
    values: tuple[str, ...]


@dataclasses.dataclass(frozen=True, slots=True)
class Sliver:
    """A slice's share of this node (a virtual host, Trellis §3.1)."""

    name: str
    """slice name, ``princeton_iias``; at most 64 bytes"""
    slice_id: int
    presence: Presence
    instantiation: str
    """``plc-instantiated``, ``delegated``, ``nm-controller``, ``not-instantiated``"""
    expires: int
    """seconds since 1970"""
    image: str = "default"
    """name of the root file system, from ``vref``/``GetSliceFamily``"""
    keys: tuple[str, ...] = ()
    """ssh public keys, one line each, no duplicates"""
    initscript: str = ""
    """text of the script to run at start; '' if none"""
    netns: bool = True
    capabilities: tuple[str, ...] = ()
    """extra capabilities asked for, normalised: ``CAP_NET_ADMIN``"""
    limits: Limits = Limits()
    links: tuple[VirtualLink, ...] = ()
    sysctls: tuple[tuple[str, str], ...] = ()
    tags: tuple[Tag, ...] = ()
    """every attribute, for plugins"""
    number: int = 0
    """16-bit number given by the store: class id minor of the slice and its uid range; 0: not yet given"""

    def tag(self, name: str, default: str = "") -> str:
        """The last value of attribute ``name`` (the one that wins), or ``default``."""
        return next((t.values[-1] for t in self.tags if t.name == name and t.values), default)


@dataclasses.dataclass(frozen=True, slots=True)
class Node:
    """This machine as PLC knows it, plus the facts that the daemon adds."""

    node_id: int
    hostname: str
    address: str
    """primary underlay address, IPv4"""
    groups: tuple[str, ...] = ()
    bwlimit_bps: int | None = None
    """cap of the primary interface; None: none"""
    limits_off: bool = False
    """``net_max_rate`` = -1 in ``<prefix>_default``: bandwidth limits of slices are off"""
    instance: str = "trellis"
    """prefix of everything we name; differs per node of a lab on one machine (daemon's own)"""
    underlay: str = ""
    """device that holds ``address`` (daemon's own)"""
    mtu: int = 1500
    """MTU of the underlay device (daemon's own)"""


@dataclasses.dataclass(frozen=True, slots=True)
class Desired:
    """One PLC answer, understood."""

    timestamp: int
    node: Node
    slivers: tuple[Sliver, ...] = ()
    problems: tuple[Problem, ...] = ()

    def sliver(self, name: str) -> Sliver | None:
        """The sliver of that slice name."""
        return next((s for s in self.slivers if s.name == name), None)
