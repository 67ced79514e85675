"""Veth pairs of slivers, and whether their root ends are up.

**Whose is what.** The root end is ours and stays as we set it. The inner end is the sliver's: its root may re-address,
rename, lower, re-MAC it or move it to a netns of its own, and we do not fight that. So the truth of what we were asked
for the inner end is not its state but a *record* in the root end's alias, where the sliver cannot reach::

    trellis 4026532301 trellis.37 a1if2 02:8f:31:00:2b:9c 1458 65536 192.168.2.10/30

(inode of the pair's netns, pair, inner name, MAC, MTU, GSO limit, addresses; ``+`` before the last: has an altname).
``read`` returns the record, ``ensure`` applies the difference of record and wanted, and the record is written **last**:
a veth without one is half made and is made anew. The inode tells a pair that was dropped and made again (the veth
hangs in the old netns, which some process keeps alive) from an end that its sliver moved. Deleting its end takes the
root end with it: the watcher tells, and the veth is made anew. One consequence: reading needs no look into any sliver.

A netns of a sliver is prepared once, when it gets its first veth (sysctls, lo up); the mark is the alias of its lo.
"""

from __future__ import annotations

import contextlib
import errno
import ipaddress
import os
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

from nodemanager_trellis.errors import NotOurs, SubstrateError, TrellisError
from nodemanager_trellis.names import IFNAMSIZ
from nodemanager_trellis.objects import Key, LinkUp, Veth
from nodemanager_trellis.substrate import netlink as nl
from nodemanager_trellis.substrate.netlink import LinkInfo, Message, Netlink
from nodemanager_trellis.substrate.netns import run_in_each
from nodemanager_trellis.substrate.settings import Settings
from nodemanager_trellis.substrate.transport import BATCH_BYTES

_MARK = "trellis"
DOOMED = 0x80000000
"""Added to the group of devices that go away together, for the length of one system call."""

MIN_MTU, MAX_MTU = 68, 65535
"""a veth's (ETH_MIN_MTU, ETH_MAX_MTU)"""

GONE_DEADLINE_S = 20
PAIRS_AT_ONCE = 128
"""Each holds two descriptors while it is worked on; the usual soft limit is 1024."""

SLIVER_SYSCTLS: tuple[tuple[str, int], ...] = (
    # A new netns copies IPv4 values from the *host's*, whatever the host is; so all that matters is written.
    ("net.ipv4.ip_forward", 1),
    ("net.ipv4.conf.all.rp_filter", 0),
    ("net.ipv4.conf.default.rp_filter", 0),
    # Taking an address away must not take its subnet's others, which may be the user's.
    ("net.ipv4.conf.all.promote_secondaries", 1),
    ("net.ipv4.conf.default.promote_secondaries", 1),
    ("net.ipv6.conf.all.forwarding", 1),
    ("net.ipv6.conf.default.forwarding", 1),
    # MACs come from a hash; without this a link-local address is useless for 2 s (OSPFv3, RIPng).
    ("net.ipv6.conf.default.accept_dad", 0),
    # An experimenter fails a link by "ip link set … down"; when it comes up again its addresses are still there.
    ("net.ipv6.conf.default.keep_addr_on_down", 1),
)
"""A sliver is a router. Its own sysctls come later and win."""


class _Record(NamedTuple):
    """What was asked for, as the root end's alias keeps it."""

    inode: int
    pair: str
    inner: str
    mac: str
    mtu: int
    gso_max_bytes: int
    named: bool
    addresses: tuple[str, ...]

    def text(self) -> str:
        fields = [_MARK, self.inode, self.pair, self.inner, self.mac, self.mtu, self.gso_max_bytes]
        return " ".join(map(str, [*fields, *(["+"] if self.named else []), ",".join(self.addresses)])).rstrip()

    @classmethod
    def parse(cls, alias: str) -> _Record | None:
        fields = alias.split(" ")
        try:
            mark, inode, pair, inner, mac, mtu, gso, *rest = fields
            if mark != _MARK:
                return None
            named = rest[:1] == ["+"]
            addresses = tuple(a for a in "".join(rest[named:]).split(",") if a)
            return cls(int(inode), pair, inner, mac, int(mtu), int(gso), named, addresses)
        except ValueError:
            return None


class _Inner:
    """A sliver's netns, open for writing."""

    def __init__(self, netlink: Netlink) -> None:
        self.netlink = netlink
        self.messages: list[tuple[Veth, Message]] = []


class VethDriver:
    """Makes, changes, removes and reads :class:`Veth`. See the module for who owns what.

    In place: addresses, MTU, GSO limit, altname. Another pair, inner name or MAC: made anew.
    """

    kind = "veth"

    def __init__(self, settings: Settings, netlink: Netlink) -> None:
        self._settings = settings
        self._netlink = netlink

    # -- reading

    def read(self) -> list[Veth]:
        """All veths of ours. A half made one has no pair and no inner end, so it differs from any wanted one."""
        inodes: dict[str, int] = {}
        return [self._veth(link, inodes) for link in self._netlink.links(self._netlink.group) if link.kind == "veth"]

    def _veth(self, link: LinkInfo, inodes: dict[str, int]) -> Veth:
        altname = link.altnames[0] if link.altnames else ""
        record = _Record.parse(link.alias)
        if record is None:
            return Veth(link.ifname, "", "", "", link.mtu, altname=altname)
        if record.pair not in inodes:
            inodes[record.pair] = self._inode(record.pair)
        return Veth(
            link.ifname,
            record.pair if record.inode == inodes[record.pair] else "",
            record.inner,
            record.mac,
            link.mtu,
            record.addresses,
            record.gso_max_bytes,
            altname if record.named else "",
        )

    def inner_ends(self) -> dict[str, LinkInfo]:
        """Inner ends as their slivers have them now, by root end: for status, never for plans."""
        return self._netlink.peers([n for n in self._netlink.links(self._netlink.group) if n.kind == "veth"])

    def _inode(self, pair: str) -> int:
        try:
            return os.stat(self._settings.netns_dir / pair).st_ino
        except OSError:
            return 0

    # -- making

    def ensure(self, wanted: Sequence[Veth], actual: Mapping[Key, Veth]) -> None:
        """Each veth is as wanted; all of one netns in one system call. Others go on when one fails."""
        errors: dict[Key, Exception] = {}
        for veth in wanted:
            with _charge(errors, veth):
                self._check(veth)
        found = self._netlink.links_named([v.ifname for v in wanted if v.key not in errors])
        create: list[Veth] = []
        change: list[tuple[Veth, LinkInfo, _Record]] = []
        doomed: list[LinkInfo] = []
        for veth in wanted:
            if veth.key in errors:
                continue
            link = found.get(veth.ifname)
            if link is None:
                create.append(veth)
                continue
            if link.group != self._netlink.group or link.kind != "veth" or link.ifname != veth.ifname:
                errors[veth.key] = NotOurs(f"{veth.title}: a device of that name is not ours")
                continue
            record = _Record.parse(link.alias)
            if self._veth(link, {}) == veth:
                continue
            if record is None or self._anew(veth, link, record):
                doomed.append(link)
                create.append(veth)
            else:
                change.append((veth, link, record))
        try:
            self._delete(doomed)
            for some in _by_pair(create, change):
                self._work(some, {v.key for v in create}, {v.key: (n, r) for v, n, r in change}, errors)
        finally:
            nl.raise_first([errors[v.key] for v in wanted if v.key in errors])

    def _check(self, veth: Veth) -> None:
        """All that could be refused for its form, before anything is changed.

        :raises SubstrateError: with EINVAL, or ENOENT if the pair is not there
        """
        try:
            for address in veth.addresses:
                ipaddress.ip_interface(address)
            nl.mac_bytes(veth.mac)
            for name in (veth.ifname, veth.inner):
                if not 0 < len(name.encode()) <= IFNAMSIZ or any(c in " /:\0" for c in name):
                    raise ValueError(f"{name[:40]!r} is not a device name")
            if not MIN_MTU <= veth.mtu <= MAX_MTU:
                raise ValueError(f"mtu {veth.mtu} is not in {MIN_MTU}..{MAX_MTU}")
            if len(veth.altname.encode()) > nl.ALTNAME_BYTES:
                raise ValueError(f"altname is longer than {nl.ALTNAME_BYTES} bytes")
        except ValueError as err:
            raise SubstrateError(veth.title, "check", errno.EINVAL, str(err)) from err
        inode = self._inode(veth.pair)
        if not inode:
            raise SubstrateError(veth.title, "check", errno.ENOENT, f"no net namespace {veth.pair}")
        size = len(_record(veth, inode).text().encode())
        if size > nl.ALIAS_BYTES:
            detail = f"too many addresses: {size} bytes to remember, {nl.ALIAS_BYTES} possible"
            raise SubstrateError(veth.title, "check", errno.ENOSPC, detail)

    def _anew(self, veth: Veth, link: LinkInfo, record: _Record) -> bool:
        """Whether only a new pair will do: another netns, name or MAC, or the sliver moved its end out of our reach."""
        if (record.pair, record.inner, record.mac) != (veth.pair, veth.inner, veth.mac):
            return True
        if record.inode != self._inode(veth.pair):
            return True
        if not _differences(veth, link, record):
            return False
        with _netns_fd(self._settings, veth) as fd:
            return self._netlink.nsid(fd) != link.peer_netnsid

    def _work(
        self,
        veths: Sequence[Veth],
        create: set[Key],
        change: Mapping[Key, tuple[LinkInfo, _Record]],
        errors: dict[Key, Exception],
    ) -> None:
        """Creates and changes veths of at most PAIRS_AT_ONCE pairs."""
        with contextlib.ExitStack() as stack:
            inners = self._open(veths, errors, stack)
            new = [v for v in veths if v.key in create and v.key not in errors]
            self._born(new, errors, stack)
            links = self._netlink.links_named([v.ifname for v in new if v.key not in errors])
            root: list[tuple[Veth, Message]] = []
            for veth in veths:
                if veth.key in errors:
                    continue
                inner = inners[veth.pair]
                if veth.key in create:
                    link = links.get(veth.ifname)
                    if link is None:
                        errors[veth.key] = SubstrateError(veth.title, "create", errno.ENODEV, "vanished at once")
                        continue
                    root.append((veth, nl.link_quiet(link.ifindex, veth.title)))
                    inner.messages += _give(veth, link.peer_ifindex, veth.addresses)
                    inner.messages.append((veth, nl.link_flags(link.peer_ifindex, True, veth.title)))
                    root += self._altname(veth, link, had=False)
                else:
                    link, record = change[veth.key]
                    if link.mtu != veth.mtu:
                        # From below 1280 upwards IPv6 starts anew on it, so silence it again.
                        root.append((veth, nl.link_mtu(link.ifindex, veth.mtu, veth.title)))
                        root.append((veth, nl.link_quiet(link.ifindex, veth.title)))
                    root += self._altname(veth, link, had=record.named)
                    inner.messages += _differences(veth, link, record)
            for inner in inners.values():
                _send(inner.netlink, inner.messages, errors)
            _send(self._netlink, root, errors)
            links |= {v.ifname: change[v.key][0] for v in veths if v.key in change}
            _send(
                self._netlink,
                [
                    (v, nl.link_alias(links[v.ifname].ifindex, _record(v, self._inode(v.pair)).text(), v.title))
                    for v in veths
                    if v.key not in errors
                ],
                errors,
            )

    def _open(
        self, veths: Sequence[Veth], errors: dict[Key, Exception], stack: contextlib.ExitStack
    ) -> dict[str, _Inner]:
        """The netns of each pair, prepared; one thread visits them all."""
        pairs = list(dict.fromkeys(v.pair for v in veths))
        inners: dict[str, _Inner] = {}
        opened = run_in_each([self._settings.netns_dir / pair for pair in pairs], self._enter)
        for pair, result in zip(pairs, opened, strict=True):
            if isinstance(result, Netlink):
                stack.callback(result.close)
                inners[pair] = _Inner(result)
            else:
                errors.update({v.key: result for v in veths if v.pair == pair and v.key not in errors})
        return inners

    def _enter(self, _path: str) -> Netlink:
        """Runs in the thread that is in the sliver's netns."""
        netlink = Netlink(self._netlink.group)
        try:
            lo = netlink.link_by_index(1)
            if lo is None or lo.alias != _MARK:
                for name, value in SLIVER_SYSCTLS:
                    try:
                        nl.write_sysctl(name, value)
                    except SubstrateError as err:
                        if err.errno != errno.ENOENT:  # a kernel without IPv6
                            raise
                netlink.batch([nl.link_flags(1, True, "lo"), nl.link_alias(1, _MARK, "lo")])
        except BaseException:
            netlink.close()
            raise
        return netlink

    def _born(self, veths: Sequence[Veth], errors: dict[Key, Exception], stack: contextlib.ExitStack) -> None:
        """Pairs of devices, nothing more; the inner ends in their slivers' netns."""
        fds: dict[str, int] = {}
        messages = []
        for veth in veths:
            if veth.pair not in fds:
                fds[veth.pair] = stack.enter_context(_netns_fd(self._settings, veth))
            message = nl.veth_add(
                veth.ifname, veth.inner, fds[veth.pair], veth.mac, veth.mtu, self._netlink.group, veth.gso_max_bytes,
                what=veth.title,
            )  # fmt: skip
            messages.append((veth, message))
        _send(self._netlink, messages, errors)

    @staticmethod
    def _altname(veth: Veth, link: LinkInfo, had: bool) -> Iterator[tuple[Veth, Message]]:
        """Its name for people, in place of the one before; names that others added stay."""
        if had and link.altnames and link.altnames[0] != veth.altname:
            yield veth, nl.altname_del(link.ifindex, link.altnames[0], veth.title)
        if veth.altname and veth.altname not in link.altnames:
            yield veth, nl.altname_add(link.ifindex, veth.altname, veth.title)

    # -- removing

    def absent(self, objects: Sequence[Veth]) -> None:
        """None of the veths exists, nor its inner end. One of that name that is not ours is left alone."""
        found = self._netlink.links_named([v.ifname for v in objects])
        self._delete(
            [
                link
                for name, link in found.items()
                if link.ifname == name and link.group == self._netlink.group and link.kind == "veth"
            ]
        )

    def _delete(self, links: Sequence[LinkInfo]) -> None:
        """Devices gone, all in one grace period instead of 10-20 ms each: they get a group of their own that is deleted
        in the same system call, which the kernel finishes even when we are killed."""
        errors: list[SubstrateError] = []
        some_at_once = BATCH_BYTES // 64
        for start in range(0, len(links), some_at_once):
            some = links[start : start + some_at_once]
            doomed = self._netlink.group | DOOMED
            if len(some) > 1:
                messages = [
                    Message(m.data, m.what, m.operation, (errno.ENODEV,))
                    for m in (nl.link_group(link.ifindex, doomed, f"veth {link.ifname}") for link in some)
                ]
                failed = self._netlink.attempt([*messages, nl.group_del(doomed)])
            if len(some) == 1 or failed:
                failed = self._netlink.attempt([nl.link_del(link.ifindex, f"veth {link.ifname}") for link in some])
            errors += [f.error for f in failed]
        nl.raise_first(errors)
        self._wait_gone([link.ifname for link in links], {link.ifindex for link in links})

    def _wait_gone(self, ifnames: Sequence[str], ifindexes: set[int]) -> None:
        """The kernel says it itself; normally at the first question."""
        deadline = time.monotonic() + GONE_DEADLINE_S
        while left := [n for n in self._netlink.links_named(ifnames).values() if n.ifindex in ifindexes]:
            if time.monotonic() > deadline:
                raise SubstrateError(
                    f"veth {left[0].ifname}", "delete", errno.EBUSY, f"still there after {GONE_DEADLINE_S} s"
                )
            time.sleep(0.005)


class LinkUpDriver:
    """Raises and lowers root ends."""

    kind = "linkup"

    def __init__(self, settings: Settings, netlink: Netlink) -> None:
        self._netlink = netlink

    def read(self) -> list[LinkUp]:
        """Root ends that are up, whatever their other end is."""
        return [
            LinkUp(link.ifname) for link in self._netlink.links(self._netlink.group) if link.up and link.kind == "veth"
        ]

    def ensure(self, wanted: Sequence[LinkUp], actual: Mapping[Key, LinkUp]) -> None:
        """Each root end is up."""
        found = self._netlink.links_named([w.ifname for w in wanted])
        errors: dict[Key, Exception] = {}
        messages = []
        for item in wanted:
            link = found.get(item.ifname)
            if link is None:
                errors[item.key] = SubstrateError(item.title, "raise", errno.ENODEV)
            elif link.group != self._netlink.group:
                errors[item.key] = NotOurs(f"{item.title}: a device of that name is not ours")
            elif not link.up:
                messages.append((item, nl.link_flags(link.ifindex, True, item.title)))
        _send(self._netlink, messages, errors)
        nl.raise_first([errors[w.key] for w in wanted if w.key in errors])

    def absent(self, objects: Sequence[LinkUp]) -> None:
        """Each root end is down, or does not exist: no frame flows."""
        found = self._netlink.links_named([o.ifname for o in objects])
        self._netlink.batch(
            [
                Message(m.data, m.what, m.operation, (errno.ENODEV,))
                for m in (
                    nl.link_flags(link.ifindex, False, f"link {name}")
                    for name, link in found.items()
                    if link.group == self._netlink.group and link.up
                )
            ]
        )


def _record(veth: Veth, inode: int) -> _Record:
    return _Record(
        inode, veth.pair, veth.inner, veth.mac, veth.mtu, veth.gso_max_bytes, bool(veth.altname), veth.addresses
    )


def _give(veth: Veth, ifindex: int, addresses: Iterable[str]) -> list[tuple[Veth, Message]]:
    return [(veth, nl.address_add(ifindex, address, veth.title)) for address in addresses]


def _differences(veth: Veth, link: LinkInfo, record: _Record) -> list[tuple[Veth, Message]]:
    """What to send into the sliver: only what is wanted otherwise than before; the user's own changes stay."""
    ifindex = link.peer_ifindex
    messages: list[tuple[Veth, Message]] = []
    if veth.mtu != record.mtu:
        messages.append((veth, nl.link_mtu(ifindex, veth.mtu, veth.title)))
    if veth.gso_max_bytes != record.gso_max_bytes:
        messages.append((veth, nl.link_gso(ifindex, veth.gso_max_bytes, veth.title)))
    if veth.addresses != record.addresses:
        new = [a for a in veth.addresses if a not in record.addresses]
        old = [a for a in record.addresses if a not in veth.addresses]
        # Twice: without promote_secondaries (the user's choice) an old primary takes the new one of its subnet along.
        messages += _give(veth, ifindex, new)
        messages += [(veth, nl.address_del(ifindex, address, veth.title)) for address in old]
        messages += _give(veth, ifindex, new if old else [])
    return messages


def _send(netlink: Netlink, messages: Sequence[tuple[Veth | LinkUp, Message]], errors: dict[Key, Exception]) -> None:
    """One batch; the first failure of each object is charged to it."""
    if messages:
        for failed in netlink.attempt([m for _, m in messages]):
            errors.setdefault(messages[failed.place][0].key, failed.error)


@contextlib.contextmanager
def _charge(errors: dict[Key, Exception], veth: Veth) -> Iterator[None]:
    try:
        yield
    except TrellisError as err:
        errors.setdefault(veth.key, err)


@contextlib.contextmanager
def _netns_fd(settings: Settings, veth: Veth) -> Iterator[int]:
    try:
        fd = os.open(settings.netns_dir / veth.pair, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as err:
        raise SubstrateError(veth.title, "open netns of", err.errno or 0) from err
    try:
        yield fd
    finally:
        os.close(fd)


def _by_pair(create: Sequence[Veth], change: Sequence[tuple[Veth, LinkInfo, _Record]]) -> Iterator[list[Veth]]:
    """The veths in portions of at most PAIRS_AT_ONCE pairs."""
    groups: dict[str, list[Veth]] = {}
    for veth in [*create, *(v for v, _, _ in change)]:
        groups.setdefault(veth.pair, []).append(veth)
    portions = list(groups.values())
    for start in range(0, len(portions), PAIRS_AT_ONCE):
        yield [veth for portion in portions[start : start + PAIRS_AT_ONCE] for veth in portion]
