"""How a veth and a tunnel are joined: point-to-point links by a shortbridge (Trellis §3.3, Decision 5)."""

from __future__ import annotations

from collections.abc import Iterable

from nodemanager_trellis import names
from nodemanager_trellis.hooks import Plugin
from nodemanager_trellis.model import Node, Sliver
from nodemanager_trellis.objects import KernelObject, LinkUp, Shortbridge
from nodemanager_trellis.plugins.links import tunnel
from nodemanager_trellis.plugins.shaping import is_shaped


class Connectors(Plugin):
    """A shortbridge per link while the sliver exists; its root end is up only while the sliver runs."""

    name = "connectors"
    priority = 30

    def create(self, sliver: Sliver, node: Node) -> Iterable[KernelObject]:
        for link in sliver.links:
            yield Shortbridge(
                ifname=names.root_ifname(sliver.slice_id, link.name),
                tunnel=tunnel(link, node).key[1],
                minor=link.number if is_shaped(sliver, link, node) else 0,
                device=node.underlay,
            )

    def start(self, sliver: Sliver, node: Node) -> Iterable[KernelObject]:
        for link in sliver.links:
            yield LinkUp(names.root_ifname(sliver.slice_id, link.name))
