"""Rates → one HTB tree on the underlay: node → slice → link, out of the slice's reach (Trellis Decision 3).

Rates are wire rates: an inner frame counts with its 42 bytes of EGRE. The leaf's own guarantee is a small part of the
slice's, and it *borrows* up to the link's rate: a leaf that were guaranteed the link's whole rate would send it even
where the slice's ceiling is lower, since HTB asks parents only of a class that borrows (sch_htb.c, htb_class_mode).
"""

from __future__ import annotations

from collections.abc import Iterable

from nodemanager_trellis import units
from nodemanager_trellis.hooks import Plugin
from nodemanager_trellis.model import Node, Sliver, VirtualLink
from nodemanager_trellis.objects import HtbClass, HtbRoot, KernelObject

NODE_MINOR = 1
UNCAPPED_BPS = 100 * 10**9
"""The node class's rate where PLC gives no cap: above any underlay we know, so that only slices and links limit."""
QUEUE_MS = 20
"""Length of a leaf queue in time at the link's rate; latency under load stays near it."""
QUEUE_FLOOR_BYTES = 16 * 1514
QUANTUM_BYTES = 1600
"""A share of 1, as in PlanetLab's bwlimit."""
QUANTUM_MOST_BYTES = 60_000


def node_rate_bps(node: Node) -> int:
    """What the node may send in all."""
    return node.bwlimit_bps or UNCAPPED_BPS


def slice_rates_bps(sliver: Sliver, node: Node) -> tuple[int, int]:
    """(guaranteed, ceiling) of the slice on this node; the guarantee is at most a quarter of a capped node's rate."""
    most = node_rate_bps(node)
    if node.limits_off:
        return units.MIN_RATE_BPS, most
    low = max(sliver.limits.net_min_bps or 0, units.MIN_RATE_BPS)
    if node.bwlimit_bps:
        low = min(low, max(units.MIN_RATE_BPS, node.bwlimit_bps // 4))
    ceiling = min(most, sliver.limits.net_max_bps or most)
    return min(low, ceiling), max(ceiling, units.MIN_RATE_BPS)


def is_shaped(sliver: Sliver, link: VirtualLink, node: Node) -> bool:
    """Whether any limit applies to the link; one without any stays out of HTB altogether."""
    if link.rate_bps or node.bwlimit_bps:
        return True
    return not node.limits_off and bool(sliver.limits.net_max_bps or sliver.limits.net_min_bps)


def queue_limit(rate_bps: int) -> int:
    """Byte limit of a leaf queue."""
    return units.queue_bytes(rate_bps, QUEUE_MS, QUEUE_FLOOR_BYTES)


class Shaping(Plugin):
    """The classes of a slice and of each of its shaped links."""

    name = "shaping"
    priority = 40

    def node(self, node: Node) -> Iterable[KernelObject]:
        yield HtbRoot(node.underlay, node_rate_bps(node))

    def create(self, sliver: Sliver, node: Node) -> Iterable[KernelObject]:
        links = [link for link in sliver.links if is_shaped(sliver, link, node)]
        if not links:
            return
        guaranteed, ceiling = slice_rates_bps(sliver, node)
        quantum = max(QUANTUM_BYTES, min(QUANTUM_MOST_BYTES, QUANTUM_BYTES * sliver.limits.net_share))
        yield HtbClass(node.underlay, sliver.number, NODE_MINOR, guaranteed, ceiling, quantum, label=sliver.name)
        for link in links:
            most = link.rate_bps or ceiling
            least = max(units.MIN_RATE_BPS, min(most, guaranteed // len(links)))
            yield HtbClass(
                device=node.underlay,
                minor=link.number,
                parent=sliver.number,
                rate_bps=least,
                ceil_bps=most,
                quantum=quantum,
                queue_bytes=queue_limit(min(most, ceiling)),
                label=f"{sliver.name} {link.name}",
            )
