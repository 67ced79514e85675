"""ssh keys → the sliver's ``authorized_keys``."""

from __future__ import annotations

from collections.abc import Iterable

from nodemanager_trellis import names
from nodemanager_trellis.hooks import Plugin
from nodemanager_trellis.model import Node, Sliver
from nodemanager_trellis.objects import KernelObject, SliverFile


class Accounts(Plugin):
    """The keys of everyone in the slice, and nobody else's, open the sliver's root account."""

    name = "accounts"
    priority = 50

    def create(self, sliver: Sliver, node: Node) -> Iterable[KernelObject]:
        text = "".join(f"{key}\n" for key in sliver.keys)
        yield SliverFile(names.sliver_id(node.instance, sliver.slice_id), "authorized_keys", text, 0o600)
