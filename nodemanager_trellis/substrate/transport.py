"""Netlink messages to the kernel, many per system call; errors come back by message, in the kernel's own words.

The time of a batch is the kernel's: one sendmsg carries up to 128 KiB, only its last message asks for an ack. A message
that fails answers anyway, and **the kernel goes on with the next**; so a failure names its message by number.
"""

from __future__ import annotations

import contextlib
import errno
import socket
import struct
import threading
from collections.abc import Sequence
from typing import NamedTuple

from nodemanager_trellis.errors import SubstrateError

SOL_NETLINK = 270
NETLINK_CAP_ACK = 10
NETLINK_EXT_ACK = 11
NETLINK_GET_STRICT_CHK = 12
SO_SNDBUFFORCE = 32
SO_RCVBUFFORCE = 33

NLM_F_REQUEST = 0x1
NLM_F_ACK = 0x4
NLM_F_DUMP_INTR = 0x10
NLM_F_CAPPED = 0x100
NLM_F_ACK_TLVS = 0x200
NLM_F_ROOT = 0x100
NLM_F_MATCH = 0x200
NLM_F_DUMP = NLM_F_ROOT | NLM_F_MATCH
NLM_F_REPLACE = 0x100
NLM_F_EXCL = 0x200
NLM_F_CREATE = 0x400

NLMSG_NOOP = 1
NLMSG_ERROR = 2
NLMSG_DONE = 3

NLMSGERR_ATTR_MSG = 1

BUFFER_BYTES = 2 << 20
BATCH_BYTES = 128 << 10
"""What one sendmsg carries at most: more gains nothing and asks the kernel for a large linear buffer."""

RECEIVE_BYTES = 64 << 10
"""A dump comes in pieces of at most 32 KiB (net/netlink/af_netlink.c, netlink_dump)."""

DUMP_TRIES = 10
TIMEOUT_S = 30
"""rtnetlink answers before sendmsg returns; a missing answer is a fault, not a wait."""

HEADER = struct.Struct("=IHHII")
"""struct nlmsghdr: length, type, flags, sequence, port"""
_FLAGS = struct.Struct("=H")
_SEQUENCE = struct.Struct("=I")
_ERRNO = struct.Struct("=i")
_NLA = struct.Struct("=HH")


class Failure(NamedTuple):
    """One message that the kernel refused."""

    place: int
    """in the list that was sent"""
    errno: int
    detail: str
    """the kernel's own sentence (extended ack), or ''"""


class Reply(NamedTuple):
    """One message of the kernel's: its type, the bytes it came in, and where its body lies there."""

    type: int
    data: bytes
    start: int
    """offset of the body, after struct nlmsghdr"""
    end: int


class Transport:
    """A netlink socket of the netns that the calling thread is in, or ``sock``, an open AF_NETLINK one. Thread safe."""

    def __init__(self, sock: socket.socket | None = None) -> None:
        if sock is None:
            sock = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, 0)
        self._sock = sock
        self._lock = threading.Lock()
        self._next = 1
        for option, plain in ((SO_SNDBUFFORCE, socket.SO_SNDBUF), (SO_RCVBUFFORCE, socket.SO_RCVBUF)):
            try:
                sock.setsockopt(socket.SOL_SOCKET, option, BUFFER_BYTES)
            except PermissionError:  # no CAP_NET_ADMIN (`trellis status` of a common user): what the limit allows
                sock.setsockopt(socket.SOL_SOCKET, plain, BUFFER_BYTES)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("ll", TIMEOUT_S, 0))
        sock.setsockopt(SOL_NETLINK, NETLINK_CAP_ACK, 1)
        sock.setsockopt(SOL_NETLINK, NETLINK_EXT_ACK, 1)
        with contextlib.suppress(OSError):  # Linux 4.20; before it a dump is not filtered, so readers filter again
            sock.setsockopt(SOL_NETLINK, NETLINK_GET_STRICT_CHK, 1)

    def fileno(self) -> int:
        """The descriptor; ioctls on it act in the socket's netns."""
        return self._sock.fileno()

    def close(self) -> None:
        self._sock.close()

    def __enter__(self) -> Transport:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def send(self, messages: Sequence[bytes | bytearray]) -> list[Failure]:
        """Each message was done, or is among the failures returned; the kernel went on after a failing one."""
        return self.exchange(messages)[1]

    def exchange(self, messages: Sequence[bytes | bytearray]) -> tuple[dict[int, Reply], list[Failure]]:
        """Like :meth:`send`, for requests that are answered by one message each: also the answers, by place."""
        replies: dict[int, Reply] = {}
        failures: list[Failure] = []
        with self._lock:
            start = 0
            while start < len(messages):
                stop, size = start, 0
                while stop < len(messages) and (stop == start or size + len(messages[stop]) <= BATCH_BYTES):
                    size += len(messages[stop]) + 3 & ~3
                    stop += 1
                self._round(messages[start:stop], start, replies, failures)
                start = stop
        failures.sort()
        return replies, failures

    def _round(
        self,
        messages: Sequence[bytes | bytearray],
        base: int,
        replies: dict[int, Reply],
        failures: list[Failure],
    ) -> None:
        """One sendmsg and all that it is answered."""
        first = self._numbers(len(messages))
        last = first + len(messages) - 1
        buffer = bytearray()
        for number, message in enumerate(messages, first):
            offset = len(buffer)
            buffer += message
            buffer += bytes(-len(message) & 3)
            _SEQUENCE.pack_into(buffer, offset + 8, number)
        flags = _FLAGS.unpack_from(buffer, offset + 6)[0]
        _FLAGS.pack_into(buffer, offset + 6, flags | NLM_F_REQUEST | NLM_F_ACK)
        try:
            self._sock.send(buffer)
        except OSError as err:
            raise SubstrateError("netlink", "send", err.errno or 0) from err
        while True:
            for reply, flags, number in self._receive():
                if not first <= number <= last:
                    continue  # of an exchange that an exception cut short
                if reply.type == NLMSG_ERROR:
                    code, detail = _error(reply, flags)
                    if code:
                        failures.append(Failure(base + number - first, code, detail))
                    if number == last:
                        return
                elif reply.type > NLMSG_DONE:
                    replies[base + number - first] = reply

    def dump(self, message: bytes | bytearray) -> list[Reply]:
        """All objects that a dump request asks for, in one consistent picture: repeated if a change cut into it.

        :raises SubstrateError: refused, or cut into ten times in a row (EINTR)
        """
        with self._lock:
            for _ in range(DUMP_TRIES):
                replies = self._dump(message)
                if replies is not None:
                    return replies
        raise SubstrateError("netlink", "read", errno.EINTR, f"changed under each of {DUMP_TRIES} readings")

    def _dump(self, message: bytes | bytearray) -> list[Reply] | None:
        number = self._numbers(1)
        buffer = bytearray(message)
        flags = _FLAGS.unpack_from(buffer, 6)[0]
        _FLAGS.pack_into(buffer, 6, flags | NLM_F_REQUEST | NLM_F_DUMP)
        _SEQUENCE.pack_into(buffer, 8, number)
        try:
            self._sock.send(buffer)
        except OSError as err:
            raise SubstrateError("netlink", "send", err.errno or 0) from err
        replies: list[Reply] = []
        interrupted = False
        while True:
            for reply, flags, of in self._receive():
                if of != number:
                    continue
                interrupted = interrupted or bool(flags & NLM_F_DUMP_INTR)
                if reply.type == NLMSG_ERROR:
                    code, detail = _error(reply, flags)
                    raise SubstrateError("netlink", "read", code, detail)
                if reply.type == NLMSG_DONE:
                    code = -_ERRNO.unpack_from(reply.data, reply.start)[0] if reply.end - reply.start >= 4 else 0
                    if code:
                        raise SubstrateError("netlink", "read", code)
                    return None if interrupted else replies
                replies.append(reply)

    def _numbers(self, count: int) -> int:
        """First of ``count`` unused sequence numbers in a row."""
        if self._next + count > 0xFFFFFFFF:
            self._next = 1
        first = self._next
        self._next += count
        return first

    def _receive(self) -> list[tuple[Reply, int, int]]:
        """Messages of one datagram, with flags and sequence number."""
        try:
            data = self._sock.recv(RECEIVE_BYTES)
        except OSError as err:
            raise SubstrateError("netlink", "receive", err.errno or 0) from err
        return list(split(data))


def split(data: bytes) -> list[tuple[Reply, int, int]]:
    """The messages in a datagram from the kernel: (message, flags, sequence number)."""
    messages = []
    offset = 0
    while offset + HEADER.size <= len(data):
        length, type_, flags, sequence, _port = HEADER.unpack_from(data, offset)
        if length < HEADER.size or offset + length > len(data):
            raise SubstrateError("netlink", "receive", errno.EMSGSIZE)
        if type_ != NLMSG_NOOP:
            messages.append((Reply(type_, data, offset + HEADER.size, offset + length), flags, sequence))
        offset += length + 3 & ~3
    return messages


def _error(reply: Reply, flags: int) -> tuple[int, str]:
    """(errno, sentence) of an NLMSG_ERROR; errno 0 is an ack."""
    code = -_ERRNO.unpack_from(reply.data, reply.start)[0]
    if not flags & NLM_F_ACK_TLVS:
        return code, ""
    echoed = 0 if flags & NLM_F_CAPPED else HEADER.unpack_from(reply.data, reply.start + 4)[0] - HEADER.size
    offset = reply.start + 4 + HEADER.size + (echoed + 3 & ~3)
    while offset + _NLA.size <= reply.end:
        length, type_ = _NLA.unpack_from(reply.data, offset)
        if type_ == NLMSGERR_ATTR_MSG and length >= _NLA.size:
            text = reply.data[offset + _NLA.size : min(offset + length, reply.end)]
            return code, text.rstrip(b"\0").decode(errors="replace")
        offset += max(length, _NLA.size) + 3 & ~3
    return code, ""
