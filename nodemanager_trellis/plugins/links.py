"""Virtual link → veth pair + EGRE tunnel, ended in the root context (Trellis §3.2, Decisions 2 and 3)."""

from __future__ import annotations

from collections.abc import Iterable

from nodemanager_trellis import names, units
from nodemanager_trellis.hooks import Plugin
from nodemanager_trellis.model import Node, Sliver, VirtualLink
from nodemanager_trellis.objects import EgreTunnel, KernelObject, Underlay, Veth
from nodemanager_trellis.plugins.shaping import queue_limit

SMALLEST_GSO_BYTES = 4096


def tunnel(link: VirtualLink, node: Node) -> EgreTunnel:
    """The EGRE tunnel of ``link``."""
    return EgreTunnel(node.underlay, node.address, link.remote_ip, link.key)


def gso_max_bytes(link: VirtualLink) -> int:
    """Largest aggregate the sliver may hand out: a quarter of the link's queue, so that TCP finds room in it."""
    if not link.rate_bps:
        return 65_536
    return min(65_536, max(SMALLEST_GSO_BYTES, queue_limit(link.rate_bps) // 4))


class Links(Plugin):
    """Each virtual link has one end in the sliver and one in the root context; between nodes it is EGRE."""

    name = "links"
    priority = 20

    def node(self, node: Node) -> Iterable[KernelObject]:
        yield Underlay(node.underlay, node.address)

    def create(self, sliver: Sliver, node: Node) -> Iterable[KernelObject]:
        for link in sliver.links:
            yield Veth(
                ifname=names.root_ifname(sliver.slice_id, link.name),
                pair=names.sliver_id(node.instance, sliver.slice_id),
                inner=link.ifname,
                mac=names.link_mac(sliver.slice_id, node.node_id, link.name),
                mtu=node.mtu - units.EGRE_OVERHEAD_BYTES,
                addresses=link.addresses,
                gso_max_bytes=gso_max_bytes(link),
                altname=names.altname(sliver.name, link.name),
            )
            yield tunnel(link, node)
