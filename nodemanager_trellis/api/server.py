"""XML-RPC over HTTP/1.1 for callers we do not trust: everything that costs memory or a thread has a bound.

One thread per connection, at most ``Limits.connections`` of them; of these at most ``Limits.calls`` execute a call
at a time and at most ``Limits.waiting`` hold a long poll, so that neither slow readers nor waiters starve the rest.
The body's length is checked before a byte of it is read. The bytes are parsed and printed by ``intake.xmlrpc`` only.
"""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import socket
import ssl
import stat
import struct
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from email.utils import formatdate
from typing import Any

from nodemanager_trellis.errors import InvalidInput, TrellisError
from nodemanager_trellis.intake import xmlrpc

log = logging.getLogger(__name__)

#: Fault codes of malformed requests, from the "fault code interoperability" note of XML-RPC (Eastlake, 2001).
PARSE_ERROR, INVALID_REQUEST = -32700, -32600

_REASONS = {
    200: "OK",
    400: "Bad Request",
    404: "Not Found",
    405: "Method Not Allowed",
    408: "Request Timeout",
    411: "Length Required",
    413: "Content Too Large",
    415: "Unsupported Media Type",
    417: "Expectation Failed",
    431: "Request Header Fields Too Large",
    500: "Internal Server Error",
    501: "Not Implemented",
    503: "Service Unavailable",
    505: "HTTP Version Not Supported",
}


class Fault(Exception):
    """Raised by a handler: the caller gets this code and text as an XML-RPC fault; nothing is logged."""

    def __init__(self, code: int, text: str) -> None:
        super().__init__(f"{code}: {text}")
        self.code = code
        self.text = text


class CannotListen(TrellisError):
    """The address could not be bound. Nothing listens."""


@dataclass(frozen=True)
class Tcp:
    """Listen on ``host:port``; port 0 lets the kernel choose."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@dataclass(frozen=True)
class Unix:
    """Listen on a Unix stream socket at ``path`` with the given file mode."""

    path: str
    mode: int = 0o666

    def __str__(self) -> str:
        return self.path


@dataclass(frozen=True)
class Peer:
    """Who is at the other end: ``host`` for TCP; ``uid``, ``gid``, ``pid`` (SO_PEERCRED, unix(7)) for a Unix socket."""

    host: str = ""
    uid: int | None = None
    gid: int | None = None
    pid: int | None = None


@dataclass(frozen=True)
class Limits:
    """The bounds of one server. Sizes in bytes, times in seconds."""

    body_bytes: int = 1 << 20
    head_bytes: int = 16 << 10
    connections: int = 400
    calls: int = 16
    waiting: int = 256
    request_s: float = 20.0
    idle_s: float = 60.0
    send_s: float = 20.0


class _HttpError(Exception):
    """Answer with this status and close the connection."""

    def __init__(self, status: int, text: str, *headers: str) -> None:
        super().__init__(text)
        self.status = status
        self.text = text
        self.headers = headers


@dataclass(frozen=True)
class _Head:
    """A request's first line and the header fields that matter to us."""

    version: str
    length: int
    keep_alive: bool
    expect: bool


Call = Callable[[str, tuple[Any, ...], Peer], Any]


class Server:
    """An XML-RPC server in this process; ``start`` binds and returns, ``stop`` ends every connection.

    :param call: executes ``(method, params, peer)``; returns a value or raises :class:`Fault`; anything else it raises
        becomes HTTP 500 with an incident number, and the traceback goes to the log under that number
    :param listen: where to listen
    :param paths: URL paths that are answered; doubled and trailing slashes make no difference
    :param long_calls: names of methods that wait; they have their own bound
    :param tls: speak HTTPS with this certificate
    :param also: XML-RPC types to accept beyond int, string, boolean, nil, array and struct (``intake.xmlrpc.loads``)
    """

    def __init__(
        self,
        call: Call,
        listen: Tcp | Unix,
        paths: tuple[str, ...] = ("/",),
        *,
        long_calls: frozenset[str] = frozenset(),
        limits: Limits | None = None,
        tls: ssl.SSLContext | None = None,
        also: frozenset[str] = frozenset(),
    ) -> None:
        self.limits = limits or Limits()
        self.address = listen
        self._call = call
        self._paths = frozenset(_plain_path(path) for path in paths)
        self._long_calls = long_calls
        self._tls = tls
        self._also = also
        self._calls = threading.BoundedSemaphore(self.limits.calls)
        self._waiting = threading.BoundedSemaphore(self.limits.waiting)
        self._lock = threading.Lock()  # guards _connections
        self._connections: dict[socket.socket, threading.Thread] = {}
        self._stopping = threading.Event()
        self._listener: socket.socket | None = None
        self._acceptor: threading.Thread | None = None

    def start(self) -> Tcp | Unix:
        """Listens from now on; returns the address with the port that was really bound."""
        self._listener = _bind(self.address)
        if isinstance(self.address, Tcp):
            self.address = Tcp(self.address.host, self._listener.getsockname()[1])
        self._acceptor = threading.Thread(target=self._accept, name=f"accept {self.address}", daemon=True)
        self._acceptor.start()
        return self.address

    def stop(self, timeout_s: float = 5.0) -> None:
        """Nothing listens any more; connections are cut and their threads joined, ``timeout_s`` in all."""
        self._stopping.set()
        if self._listener is not None:
            with contextlib.suppress(OSError):
                self._listener.shutdown(socket.SHUT_RDWR)
            self._listener.close()
        if isinstance(self.address, Unix):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self.address.path)
        with self._lock:
            threads = list(self._connections.values())
            for connection in self._connections:
                with contextlib.suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)
        deadline = time.monotonic() + timeout_s
        for thread in [*threads, *([self._acceptor] if self._acceptor else [])]:
            thread.join(max(0.0, deadline - time.monotonic()))

    def _accept(self) -> None:
        """Give each connection a thread, or HTTP 503 when there are too many."""
        assert self._listener is not None
        while not self._stopping.is_set():
            try:
                connection, address = self._listener.accept()
            except OSError as err:
                if self._stopping.is_set():
                    return
                log.warning("accept failed", extra={"error": str(err)})
                self._stopping.wait(0.1)
                continue
            if not self._adopt(connection, address):
                connection.settimeout(0)
                with contextlib.suppress(OSError):
                    connection.send(_response(503, b"too many connections\n", False, "Retry-After: 5"))
                connection.close()

    def _adopt(self, connection: socket.socket, address: Any) -> bool:
        """Whether there was a thread for the connection."""
        thread = threading.Thread(target=self._serve, args=(connection, address), name="connection", daemon=True)
        with self._lock:
            if len(self._connections) >= self.limits.connections:
                return False
            try:
                thread.start()
            except RuntimeError as err:
                log.warning("no thread for a connection", extra={"error": str(err)})
                return False
            self._connections[connection] = thread
            return True

    def _serve(self, raw: socket.socket, address: Any) -> None:
        """One connection from its first to its last request."""
        connection: socket.socket = raw
        try:
            connection.settimeout(self.limits.request_s)
            if connection.family != socket.AF_UNIX:
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if self._tls is not None:
                connection = self._tls.wrap_socket(connection, server_side=True)
            peer = _peer(raw, address)
            reader = _Reader(connection)
            while not self._stopping.is_set() and self._exchange(connection, reader, peer):
                pass
        except OSError:
            pass  # the peer went away, or never finished its TLS handshake
        except Exception:
            log.exception("connection failed")
        finally:
            with self._lock:
                self._connections.pop(raw, None)
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
            connection.close()

    def _exchange(self, connection: socket.socket, reader: _Reader, peer: Peer) -> bool:
        """Read one request and answer it; False when the connection is to be closed."""
        try:
            if not reader.wait(self.limits.idle_s):
                return False
            deadline = time.monotonic() + self.limits.request_s
            head = self._head(reader.until(b"\r\n\r\n", self.limits.head_bytes, deadline))
            if head.expect:
                connection.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
            body = reader.exactly(head.length, deadline)
            answer = self._answer(body, peer)
        except _HttpError as err:
            connection.settimeout(self.limits.send_s)
            connection.sendall(_response(err.status, err.text.encode() + b"\n", False, *err.headers))
            reader.drain()
            return False
        connection.settimeout(self.limits.send_s)
        connection.sendall(_response(200, answer, head.keep_alive))
        return head.keep_alive

    def _head(self, head: bytes) -> _Head:
        """Check first line and header fields; everything that we do not serve is refused here, before the body."""
        first, *lines = head.decode("latin-1").split("\r\n")
        words = first.split(" ")
        if len(words) != 3:
            raise _HttpError(400, "malformed request line")
        verb, target, version = words
        if version not in ("HTTP/1.0", "HTTP/1.1"):
            raise _HttpError(505, "HTTP/1.0 or HTTP/1.1 only")
        fields: dict[str, str] = {}
        for line in lines:
            name, colon, value = line.partition(":")
            if not colon or not name or name != name.strip():
                raise _HttpError(400, "malformed header field")
            if name.lower() == "content-length" and "content-length" in fields:
                raise _HttpError(400, "two Content-Length fields")
            fields[name.lower()] = value.strip(" \t")
        if _plain_path(target) not in self._paths:
            raise _HttpError(404, "no such path")
        if verb != "POST":
            raise _HttpError(405, "POST only", "Allow: POST")
        if "transfer-encoding" in fields or "content-length" not in fields:
            raise _HttpError(411, "Content-Length required")
        length = fields["content-length"]
        if not (length.isascii() and length.isdigit()):
            raise _HttpError(400, "malformed Content-Length")
        if len(length) > 18 or int(length) > self.limits.body_bytes:
            raise _HttpError(413, f"the body may have {self.limits.body_bytes} bytes")
        if fields.get("content-encoding", "identity").lower() != "identity":
            raise _HttpError(415, "no Content-Encoding is accepted", "Accept-Encoding: identity")
        expect = fields.get("expect", "").lower()
        if expect not in ("", "100-continue"):
            raise _HttpError(417, "unknown expectation")
        wish = fields.get("connection", "").lower()
        keep_alive = "close" not in wish and (version == "HTTP/1.1" or "keep-alive" in wish)
        return _Head(version, int(length), keep_alive, bool(expect))

    def _answer(self, body: bytes, peer: Peer) -> bytes:
        """The XML of the answer or of the fault."""
        try:
            with self._gate(self._calls, self.limits.request_s):
                params, method = xmlrpc.loads(body, max_bytes=self.limits.body_bytes, also=self._also)
        except InvalidInput as err:
            return xmlrpc.dumps_fault(PARSE_ERROR, f"parse error: {err}")
        if not method:
            return xmlrpc.dumps_fault(INVALID_REQUEST, "not a methodCall")
        long = method in self._long_calls
        with self._gate(self._waiting if long else self._calls, 0 if long else self.limits.request_s):
            try:
                return xmlrpc.dumps_response(self._call(method, params, peer))
            except Fault as fault:
                return xmlrpc.dumps_fault(fault.code, fault.text)
            except Exception as err:
                incident = secrets.token_hex(4)
                log.exception("call crashed", extra={"method": method[:100], "incident": incident})
                raise _HttpError(500, f"internal error, incident {incident}") from err

    @contextlib.contextmanager
    def _gate(self, gate: threading.BoundedSemaphore, timeout_s: float) -> Iterator[None]:
        """One of the places of ``gate``, or HTTP 503."""
        if not gate.acquire(timeout=timeout_s) if timeout_s else not gate.acquire(blocking=False):
            raise _HttpError(503, "too many calls at once", "Retry-After: 5")
        try:
            yield
        finally:
            gate.release()


class _Reader:
    """Buffered reads from a socket, each with an absolute deadline, so that drop-by-drop senders gain nothing."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._buffer = bytearray()

    def wait(self, timeout_s: float) -> bool:
        """Whether a byte of the next request came within ``timeout_s``."""
        if self._buffer:
            return True
        self._connection.settimeout(timeout_s)
        try:
            data = self._connection.recv(65536)
        except TimeoutError:
            return False
        self._buffer += data
        return bool(data)

    def until(self, mark: bytes, limit: int, deadline: float) -> bytes:
        """The bytes before ``mark``, at most ``limit``; ``mark`` itself is consumed."""
        start = 0
        while (end := self._buffer.find(mark, start)) < 0:
            if len(self._buffer) > limit:
                raise _HttpError(431, f"the head may have {limit} bytes")
            start = max(0, len(self._buffer) - len(mark))
            self._fill(deadline)
        if end > limit:
            raise _HttpError(431, f"the head may have {limit} bytes")
        head = bytes(self._buffer[:end])
        del self._buffer[: end + len(mark)]
        return head

    def exactly(self, count: int, deadline: float) -> bytes:
        """Exactly ``count`` bytes."""
        while len(self._buffer) < count:
            self._fill(deadline)
        body = bytes(self._buffer[:count])
        del self._buffer[:count]
        return body

    def drain(self) -> None:
        """Take what is still on its way (at most 64 KiB, 200 ms), so that closing does not reset our last answer."""
        with contextlib.suppress(OSError):
            self._connection.shutdown(socket.SHUT_WR)
            self._connection.settimeout(0.2)
            left = 65536
            while left > 0 and (data := self._connection.recv(left)):
                left -= len(data)

    def _fill(self, deadline: float) -> None:
        left = deadline - time.monotonic()
        if left <= 0:
            raise _HttpError(408, "the request took too long")
        self._connection.settimeout(left)
        try:
            data = self._connection.recv(65536)
        except TimeoutError:
            raise _HttpError(408, "the request took too long") from None
        if not data:
            raise ConnectionResetError("closed in the middle of a request")
        self._buffer += data


def _plain_path(target: str) -> str:
    """``//PLCAPI//?x`` → ``PLCAPI``: clients of the original build the path with doubled slashes."""
    return "/".join(part for part in target.split("?", 1)[0].split("/") if part)


def _response(status: int, body: bytes, keep_alive: bool, *headers: str) -> bytes:
    """A whole HTTP response."""
    kind = "text/xml; charset=utf-8" if status == 200 else "text/plain; charset=utf-8"
    head = [
        f"HTTP/1.1 {status} {_REASONS[status]}",
        f"Date: {formatdate(usegmt=True)}",
        f"Content-Type: {kind}",
        f"Content-Length: {len(body)}",
        f"Connection: {'keep-alive' if keep_alive else 'close'}",
        *headers,
    ]
    return "\r\n".join([*head, "", ""]).encode("latin-1") + body


def _peer(connection: socket.socket, address: Any) -> Peer:
    """The other end's identity, as the kernel tells it."""
    if connection.family != socket.AF_UNIX:
        return Peer(host=str(address[0]))
    pid, uid, gid = struct.unpack("3i", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    return Peer(uid=uid, gid=gid, pid=pid)


def _bind(address: Tcp | Unix) -> socket.socket:
    """A listening socket. A Unix socket file that nobody listens on is replaced; anything else is in the way."""
    if isinstance(address, Tcp):
        try:
            info = socket.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
            listener = socket.socket(info[0], socket.SOCK_STREAM)
            try:
                listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                listener.bind(info[4])
                listener.listen(256)
            except OSError:
                listener.close()
                raise
        except OSError as err:
            raise CannotListen(f"cannot listen on {address}: {err.strerror or err}") from err
        return listener
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        if _is_stale(address.path):
            os.unlink(address.path)
        listener.bind(address.path)
        os.chmod(address.path, address.mode)
        listener.listen(256)
    except OSError as err:
        listener.close()
        raise CannotListen(f"cannot listen on {address}: {err.strerror or err}") from err
    return listener


def _is_stale(path: str) -> bool:
    """Whether ``path`` is a socket that refuses connections: the rest of a process that died."""
    try:
        if not stat.S_ISSOCK(os.lstat(path).st_mode):
            return False
    except FileNotFoundError:
        return False
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            return True
        except OSError:
            return False
    return False
