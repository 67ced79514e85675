"""What happens in the root context without us: a sliver deleted its end, a next hop got a new MAC, underlay is back.

Only what someone must act on becomes an event. Of our own links that is: gone, raised or lowered, renamed, another MTU
or mark; *not* the carrier, which a sliver switches as it likes. Of neighbours: another MAC, or none; not the ageing of
an entry. When the kernel had more to tell than the socket holds, one ``resync`` event says: anything may be different.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import os
import select
import socket
import struct
import threading
import time

from nodemanager_trellis.errors import SubstrateError
from nodemanager_trellis.substrate import netlink as nl
from nodemanager_trellis.substrate.links import DOOMED
from nodemanager_trellis.substrate.netlink import LinkInfo, Netlink
from nodemanager_trellis.substrate.transport import BUFFER_BYTES, RECEIVE_BYTES, SO_RCVBUFFORCE, Reply, split

RTMGRP_LINK = 1
RTMGRP_NEIGH = 4
"""include/uapi/linux/rtnetlink.h"""

MAX_NEIGHBOURS = 65536
"""Remembered at most; then all are forgotten, which costs events, not truth."""


@dataclasses.dataclass(frozen=True, slots=True)
class Event:
    """Something changed."""

    kind: str
    """``link``: one of our devices; ``underlay``: another one; ``neighbour``; ``resync``: anything, read all anew"""
    ifname: str = ""
    ifindex: int = 0
    gone: bool = False
    """the device, or the neighbour's entry, does not exist any more"""
    up: bool = False
    """the device is up and, if it is not ours, has carrier"""
    ip: str = ""
    mac: str | None = None
    """of the neighbour; None: not known (any more)"""


class Watcher:
    """Listens in the netns that the creating thread is in. One thread waits; any may :meth:`wake` it.

    :param group: mark of our devices
    :param underlays: names of the devices whose changes are ``underlay`` events; empty: all that are not ours, but lo
    """

    def __init__(self, group: int, underlays: tuple[str, ...] = (), buffer_bytes: int = BUFFER_BYTES) -> None:
        self._group = group
        self._underlays = underlays
        self._links: dict[int, LinkInfo] = {}
        self._macs: dict[tuple[int, str], str | None] = {}
        self._lock = threading.Lock()
        with contextlib.ExitStack() as stack:
            self._sock = stack.enter_context(
                socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK, 0)
            )
            try:
                self._sock.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, buffer_bytes)
            except PermissionError:
                self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer_bytes)
            self._sock.bind((0, RTMGRP_LINK | RTMGRP_NEIGH))
            self._reader = stack.enter_context(Netlink(group))
            self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
            stack.callback(os.close, self._wake)
            self._look()  # after the bind: what happens meanwhile is told twice, not never
            self._stack = stack.pop_all()

    def __enter__(self) -> Watcher:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Nobody waits any more."""
        with self._lock:
            self._stack.close()
            self._wake = -1

    def fileno(self) -> int:
        """Readable when there may be an event; for a selector of one's own."""
        return self._sock.fileno()

    def wake(self) -> None:
        """A waiting thread returns at once, with no event."""
        with self._lock:
            if self._wake >= 0:
                os.eventfd_write(self._wake, 1)

    def wait(self, timeout_s: float) -> list[Event]:
        """Events so far, the last of each thing; waits for one at most ``timeout_s``. Empty: none, or woken.

        :raises SubstrateError: the socket does not work any more
        """
        poll = select.poll()
        poll.register(self._sock, select.POLLIN)
        poll.register(self._wake, select.POLLIN)
        end = time.monotonic() + timeout_s
        while True:
            ready = {fd for fd, _ in poll.poll(max(0, (end - time.monotonic()) * 1000))}
            if self._wake in ready:
                with contextlib.suppress(BlockingIOError):
                    os.eventfd_read(self._wake)
            events = self._drain()
            if events or self._wake in ready or time.monotonic() >= end:
                return events

    def _drain(self) -> list[Event]:
        """All that is there, the last event of each thing."""
        last: dict[tuple[str, int, str], Event] = {}
        while True:
            try:
                data = self._sock.recv(RECEIVE_BYTES)
            except BlockingIOError:
                return list(last.values())
            except OSError as err:
                if err.errno != errno.ENOBUFS:
                    raise SubstrateError("netlink", "watch", err.errno or 0) from err
                self._forget()
                return [Event("resync")]
            for reply, _flags, _sequence in split(data):
                event = self._event(reply)
                if event is not None:
                    key = (event.kind, event.ifindex, event.ip)
                    last.pop(key, None)
                    last[key] = event

    def _forget(self) -> None:
        """After a loss: what still waits is stale, what we remember too."""
        with contextlib.suppress(BlockingIOError):
            while True:
                try:
                    self._sock.recv(RECEIVE_BYTES)
                except OSError as err:
                    if err.errno != errno.ENOBUFS:
                        raise
        self._look()

    def _look(self) -> None:
        self._links = {link.ifindex: link for link in self._reader.links()}
        self._macs.clear()

    def _event(self, reply: Reply) -> Event | None:
        if reply.type in (nl.RTM_NEWLINK, nl.RTM_DELLINK):
            family = struct.unpack_from("=B", reply.data, reply.start)[0]
            # AF_BRIDGE: a port's state, told beside the device's own message.
            return self._link(nl.parse_link(reply), reply.type == nl.RTM_DELLINK) if family == 0 else None
        if reply.type in (nl.RTM_NEWNEIGH, nl.RTM_DELNEIGH):
            family = struct.unpack_from("=B", reply.data, reply.start)[0]
            return self._neighbour(reply) if family == socket.AF_INET else None
        return None

    def _link(self, link: LinkInfo, gone: bool) -> Event | None:
        before = self._links.pop(link.ifindex, None)
        if gone:
            for key in [k for k in self._macs if k[0] == link.ifindex]:
                del self._macs[key]
        else:
            self._links[link.ifindex] = link
        if link.group == self._group | DOOMED:
            return None  # we are taking it away ourselves
        ours = link.group == self._group or (before is not None and before.group == self._group)
        if ours:
            if gone or (before is not None and _essence(before) != _essence(link)):
                return Event("link", link.ifname, link.ifindex, gone, link.up)
            return None
        if link.ifname == "lo" or (self._underlays and link.ifname not in self._underlays):
            return None
        if gone or before is None or _wire(before) != _wire(link):
            return Event("underlay", link.ifname, link.ifindex, gone, link.up and link.carrier)
        return None

    def _neighbour(self, reply: Reply) -> Event | None:
        ifindex, entry = nl.parse_neighbour(reply)
        link = self._links.get(ifindex)
        if link is not None and link.group == self._group:
            return None  # nothing is resolved on root ends
        key = (ifindex, entry.ip)
        gone = reply.type == nl.RTM_DELNEIGH
        mac = None if gone else entry.mac
        if not gone and key in self._macs and self._macs[key] == mac:
            return None
        if gone:
            self._macs.pop(key, None)
        else:
            if len(self._macs) >= MAX_NEIGHBOURS:
                self._macs.clear()
            self._macs[key] = mac
        return Event("neighbour", link.ifname if link else "", ifindex, gone, bool(mac), entry.ip, mac)


def _essence(link: LinkInfo) -> tuple[object, ...]:
    """What we set on our devices, and so want to hear of."""
    return link.ifname, link.up, link.mtu, link.group


def _wire(link: LinkInfo) -> tuple[object, ...]:
    """What tunnels depend on."""
    return link.ifname, link.up, link.carrier, link.mtu, link.mac, link.group
