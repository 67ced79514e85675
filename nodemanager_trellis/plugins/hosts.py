"""Sliver → its namespaces and its container (Trellis §3.1, Decision 1)."""

from __future__ import annotations

from collections.abc import Iterable

from nodemanager_trellis import names
from nodemanager_trellis.hooks import Plugin
from nodemanager_trellis.model import Node, Sliver
from nodemanager_trellis.objects import Container, KernelObject, NamespacePair, Running

UID_BASE = 100_000
UIDS_PER_SLIVER = 65_536
PIDS_MAX = 4096


def uid_base(sliver: Sliver) -> int:
    """First host uid of the sliver's own range of 65536."""
    return UID_BASE + sliver.number * UIDS_PER_SLIVER


class Hosts(Plugin):
    """A virtual host: a user namespace, a net namespace owned by it, and an unprivileged container that joins both."""

    name = "hosts"
    priority = 10

    def create(self, sliver: Sliver, node: Node) -> Iterable[KernelObject]:
        name = names.sliver_id(node.instance, sliver.slice_id)
        yield NamespacePair(name, uid_base(sliver))
        yield Container(
            name=name,
            hostname=sliver.name,
            uid_base=uid_base(sliver),
            image=sliver.image,
            cpu_shares=min(262_144, 1024 * max(1, sliver.limits.cpu_share)),
            memory_bytes=sliver.limits.memory_bytes or 0,
            pids_max=PIDS_MAX,
            sysctls=sliver.sysctls,
        )

    def start(self, sliver: Sliver, node: Node) -> Iterable[KernelObject]:
        name = names.sliver_id(node.instance, sliver.slice_id)
        ups = tuple(("linkup", names.root_ifname(sliver.slice_id, link.name)) for link in sliver.links)
        files = (("file", f"{name}/authorized_keys"), ("file", f"{name}/initscript"))
        yield Running(name, after=ups + files)
