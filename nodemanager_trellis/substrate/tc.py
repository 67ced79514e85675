"""One HTB tree on the underlay device: its root, its classes with byte-limited leaf queues, and what each class sent.

Marks: the root is ours if it is HTB ``1:`` **and** its r2q is our link group (r2q is used only for classes without a
quantum, and all of ours have one). Everything below an HTB root of ours is ours.

``read`` returns what ``ensure`` was given, to the bit, although the kernel counts in whole bytes per second: the up to
7 bit/s that rounding up adds stand in the low three bits of the class's burst, which is in 64 ns ticks, so it is off by
less than half a microsecond. One thing the kernel cannot keep: of a class with others below it a new quantum is not
taken over (htb_change_class), and has no meaning there either, since HTB shares by the leaves' quantums; the driver
remembers it, and after a restart of ours asks for it once more.
"""

from __future__ import annotations

import errno
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from nodemanager_trellis import units
from nodemanager_trellis.errors import NotOurs, SubstrateError, TrellisError
from nodemanager_trellis.objects import HtbClass, HtbRoot, Key
from nodemanager_trellis.substrate import netlink as nl
from nodemanager_trellis.substrate.netlink import ClassInfo, LinkInfo, Message, Netlink, QdiscInfo
from nodemanager_trellis.substrate.settings import Settings

ROOT_HANDLE = 0x10000
NODE_MINOR = 1
NODE_QUANTUM = 60_000
"""bytes; of a class that has others below it, where it means nothing, but 0 would make the kernel use r2q"""

BURST_FRAMES = 2
ETHERNET_BYTES = 18
"""header and one VLAN tag, which the MTU does not count"""
BURST_MS = 1
MAX_MINOR = 0xFFFE
"""leaf queues are ``minor:``, and ``ffff:`` is clsact's handle"""

_RESIDUE = 7
_MAX_TICKS = 0xFFFFFFF8


class ClassStats(NamedTuple):
    """What a class did since it was made, wire bytes."""

    bytes: int
    packets: int
    drops: int
    backlog_bytes: int
    backlog_packets: int
    overlimits: int


class _Tree(NamedTuple):
    """An HTB root of ours, as it is now."""

    link: LinkInfo
    classes: dict[int, ClassInfo]
    limits: dict[int, int]
    """minor → byte limit of its leaf queue"""


def rate_and_buffer(rate_bps: int, mtu: int) -> tuple[int, int]:
    """bit/s → what HTB is told: (byte/s rounded up, burst in ticks with what was added in its low three bits).

    The burst is what goes out in a millisecond, at least two frames: less starves on timers, more is latency.
    """
    rate = units.bytes_per_second(rate_bps)
    burst = max(BURST_FRAMES * (mtu + ETHERNET_BYTES), rate_bps * BURST_MS // 8000)
    ticks = min(units.htb_buffer(burst, rate_bps) | _RESIDUE, _MAX_TICKS - 1) & ~_RESIDUE
    return rate, max(ticks, _RESIDUE + 1) | rate * 8 - rate_bps


def rate_of(rate: int, buffer: int) -> int:
    """The inverse of :func:`rate_and_buffer`: bit/s."""
    return rate * 8 - (buffer & _RESIDUE)


class _Htb:
    """What both drivers need to know of the kernel."""

    def __init__(self, settings: Settings, netlink: Netlink) -> None:
        self._mark = settings.link_group
        self._netlink = netlink

    def _is_ours(self, qdisc: QdiscInfo) -> bool:
        return (qdisc.kind, qdisc.handle, qdisc.parent, qdisc.r2q) == ("htb", ROOT_HANDLE, nl.TC_H_ROOT, self._mark)

    def _trees(self, ifindexes: Iterable[int] | None = None) -> list[_Tree]:
        """All trees of ours, or those on some devices."""
        qdiscs = self._netlink.qdiscs()
        trees = []
        for root in qdiscs:
            if not self._is_ours(root) or (ifindexes is not None and root.ifindex not in ifindexes):
                continue
            link = self._netlink.link_by_index(root.ifindex)
            if link is None:
                continue  # the device went away meanwhile, its tree too
            limits = {
                q.handle >> 16: q.limit
                for q in qdiscs
                if q.ifindex == root.ifindex and q.kind == "bfifo" and q.parent == ROOT_HANDLE | q.handle >> 16
            }
            trees.append(_Tree(link, {c.minor: c for c in self._netlink.classes(root.ifindex)}, limits))
        return trees

    def _root(self, link: LinkInfo, title: str) -> QdiscInfo | None:
        """Our root qdisc on a device; None if the kernel's own default is there.

        :raises NotOurs: somebody's qdisc is there
        """
        for qdisc in self._netlink.qdiscs(link.ifindex):
            if qdisc.parent == nl.TC_H_ROOT and self._is_ours(qdisc):
                return qdisc
            if qdisc.parent == nl.TC_H_ROOT and qdisc.handle:  # the kernel's defaults have no handle
                raise NotOurs(f"{title}: {qdisc.kind} {qdisc.handle >> 16:x}: is there and is not ours")
        return None


class HtbRootDriver(_Htb):
    """Makes, changes and removes the tree's root: qdisc ``1:`` and the node's class ``1:1``."""

    kind = "htb"

    def read(self) -> list[HtbRoot]:
        """All trees of ours; one without its node class reads as rate 0."""
        roots = []
        for tree in self._trees():
            node = tree.classes.get(NODE_MINOR)
            roots.append(HtbRoot(tree.link.ifname, rate_of(node.rate, node.buffer) if node else 0))
        return roots

    def ensure(self, wanted: Sequence[HtbRoot], actual: Mapping[Key, HtbRoot]) -> None:
        """Each tree has its root; a new rate is taken over in place, no packet is lost."""
        errors: list[Exception] = []
        for root in wanted:
            try:
                self._ensure(root)
            except TrellisError as err:
                errors.append(err)
        nl.raise_first(errors)

    def _ensure(self, root: HtbRoot) -> None:
        link = self._netlink.link(root.device)
        if link is None:
            raise SubstrateError(root.title, "create", errno.ENODEV)
        messages = []
        if self._root(link, root.title) is None:
            messages.append(nl.htb_qdisc(link.ifindex, self._mark, ROOT_HANDLE, root.title))
        rate, buffer = rate_and_buffer(root.rate_bps, link.mtu)
        messages.append(
            nl.htb_class(
                link.ifindex, NODE_MINOR, 0, rate, rate, buffer, buffer, NODE_QUANTUM, replace=True, what=root.title
            )
        )
        self._netlink.batch(messages)

    def absent(self, objects: Sequence[HtbRoot]) -> None:
        """No tree of ours on the devices; the kernel's default qdisc is back. A foreign root stays."""
        links = self._netlink.links_named([o.device for o in objects])
        ours = {q.ifindex for q in self._netlink.qdiscs() if self._is_ours(q)}
        self._netlink.batch(
            [
                nl.qdisc_del(links[o.device].ifindex, ROOT_HANDLE, what=o.title)
                for o in objects
                if o.device in links and links[o.device].ifindex in ours
            ]
        )


class HtbClassDriver(_Htb):
    """Makes, changes and removes classes; rate, ceil, quantum and queue length change in place."""

    kind = "class"

    def __init__(self, settings: Settings, netlink: Netlink) -> None:
        super().__init__(settings, netlink)
        self._quantums: dict[Key, int] = {}
        """asked for classes with others below them, which the kernel does not take over"""

    def read(self) -> list[HtbClass]:
        """All classes of our trees but the node's, which belongs to the root."""
        return [
            self._class(tree, info)
            for tree in self._trees()
            for info in tree.classes.values()
            if info.minor != NODE_MINOR
        ]

    def _class(self, tree: _Tree, info: ClassInfo) -> HtbClass:
        found = HtbClass(
            tree.link.ifname,
            info.minor,
            info.parent,
            rate_of(info.rate, info.buffer),
            rate_of(info.ceil, info.cbuffer),
            self._quantums.get(("class", f"{tree.link.ifname}/{info.minor:x}"), info.quantum)
            if info.level
            else info.quantum,
            tree.limits.get(info.minor, 0),
        )
        return found

    def statistics(self, device: str) -> dict[int, ClassStats]:
        """Counters of each class on a device by minor, the node's (1) included; none without a tree of ours."""
        link = self._netlink.link(device)
        trees = self._trees([link.ifindex]) if link else []
        return {
            c.minor: ClassStats(c.bytes, c.packets, c.drops, c.backlog, c.qlen, c.overlimits)
            for tree in trees
            for c in tree.classes.values()
        }

    def ensure(self, wanted: Sequence[HtbClass], actual: Mapping[Key, HtbClass]) -> None:
        """Each class is as wanted, parents made before children; all of one level in one system call.

        Another parent: the class is made anew (what waits in it is lost), EBUSY if others are below it.
        """
        errors: dict[Key, Exception] = {}
        trees = self._find(wanted, errors)
        now = {c.key: c for tree in trees.values() for c in (self._class(tree, i) for i in tree.classes.values())}
        # Level by level: below a parent that is not there the kernel would make the class at the *top*, out of reach of
        # the slice's limit, without a word.
        there = {(device, minor) for device, tree in trees.items() for minor in tree.classes}
        for level in _levels([w for w in wanted if w.key not in errors]):
            messages: list[tuple[HtbClass, Message]] = []
            for item in level:
                if (item.device, item.parent) not in there:
                    errors[item.key] = SubstrateError(
                        item.title, "create", errno.ENOENT, f"no parent class 1:{item.parent:x} on {item.device}"
                    )
                if item.key not in errors and item != now.get(item.key):
                    messages += [(item, m) for m in _messages(item, now.get(item.key), trees[item.device].link)]
            self._send(messages, errors)
            made = [item for item in level if item.key not in errors]
            there |= {(item.device, item.minor) for item in made}
            self._quantums.update({item.key: item.quantum for item in made})
        nl.raise_first([errors[w.key] for w in wanted if w.key in errors])

    def _find(self, wanted: Sequence[HtbClass], errors: dict[Key, Exception]) -> dict[str, _Tree]:
        """The trees that the classes go into; a class that cannot go anywhere gets an error."""
        links = self._netlink.links_named(list(dict.fromkeys(w.device for w in wanted)))
        trees = {t.link.ifname: t for t in self._trees([link.ifindex for link in links.values()])}
        for item in wanted:
            if not NODE_MINOR < item.minor <= MAX_MINOR:
                detail = f"class ids go from {NODE_MINOR + 1:x} to {MAX_MINOR:x}"
                errors[item.key] = SubstrateError(item.title, "create", errno.EINVAL, detail)
            elif item.device not in links:
                errors[item.key] = SubstrateError(item.title, "create", errno.ENODEV, f"no device {item.device}")
            elif item.device not in trees:
                try:
                    self._root(links[item.device], item.title)
                    detail = f"no HTB on {item.device}"
                    errors[item.key] = SubstrateError(item.title, "create", errno.ENOENT, detail)
                except NotOurs as err:
                    errors[item.key] = err
        return trees

    def absent(self, objects: Sequence[HtbClass]) -> None:
        """None of the classes exists, nor its queue; children go before parents."""
        links = self._netlink.links_named(list(dict.fromkeys(o.device for o in objects)))
        trees = {t.link.ifname: t for t in self._trees([link.ifindex for link in links.values()])}
        errors: dict[Key, Exception] = {}
        messages = [
            (item, nl.class_del(trees[item.device].link.ifindex, item.minor, item.title))
            for level in reversed(_levels(objects))
            for item in level
            if item.device in trees and item.minor in trees[item.device].classes and item.minor != NODE_MINOR
        ]
        self._send(messages, errors)
        for item in objects:
            self._quantums.pop(item.key, None)
        nl.raise_first(list(errors.values()))

    def _send(self, messages: Sequence[tuple[HtbClass, Message]], errors: dict[Key, Exception]) -> None:
        if messages:
            for failed in self._netlink.attempt([m for _, m in messages]):
                errors.setdefault(messages[failed.place][0].key, failed.error)


def _messages(item: HtbClass, now: HtbClass | None, link: LinkInfo) -> list[Message]:
    """What makes ``now`` to ``item``."""
    messages = []
    if now is not None and now.parent != item.parent:
        messages.append(nl.class_del(link.ifindex, item.minor, item.title))
        now = None
    rate, buffer = rate_and_buffer(item.rate_bps, link.mtu)
    ceil, cbuffer = rate_and_buffer(item.ceil_bps, link.mtu)
    messages.append(
        nl.htb_class(
            link.ifindex, item.minor, item.parent, rate, ceil, buffer, cbuffer, item.quantum,
            replace=now is not None, what=item.title,
        )
    )  # fmt: skip
    before = now.queue_bytes if now else 0
    if item.queue_bytes and item.queue_bytes != before:
        messages.append(nl.bfifo(link.ifindex, item.minor, item.queue_bytes, item.title))
    elif before and not item.queue_bytes:
        messages.append(nl.qdisc_del(link.ifindex, item.minor << 16, ROOT_HANDLE | item.minor, item.title))
    return messages


def _levels(classes: Sequence[HtbClass]) -> list[list[HtbClass]]:
    """The classes in levels, each behind that of its parent if that is among them."""
    above = {(c.device, c.minor): c.parent for c in classes}
    levels: dict[int, list[HtbClass]] = {}
    for item in classes:
        depth, minor = 0, item.parent
        while (item.device, minor) in above and depth < len(above):
            depth, minor = depth + 1, above[item.device, minor]
        levels.setdefault(depth, []).append(item)
    return [levels[depth] for depth in sorted(levels)]
