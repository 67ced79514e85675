"""The HTTP side of the XML-RPC server: limits, refusals, peers, survival."""

from __future__ import annotations

import http.client
import logging
import os
import socket
import threading
import xmlrpc.client
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from nodemanager_trellis.api.server import CannotListen, Fault, Limits, Peer, Server, Tcp, Unix

CALL = xmlrpc.client.dumps((1,), "echo").encode()
DEADLINE_S = 30


class Handler:
    """Methods of the tested server."""

    def __init__(self) -> None:
        self.gate = threading.Event()
        self.entered = threading.Semaphore(0)
        self.peers: list[Peer] = []

    def __call__(self, method: str, params: tuple[Any, ...], peer: Peer) -> Any:
        self.peers.append(peer)
        if method == "echo":
            return params[0]
        if method == "fail":
            raise Fault(102, "told so")
        if method in ("block", "wait"):
            self.entered.release()
            assert self.gate.wait(DEADLINE_S)
            return 1
        raise RuntimeError("a secret of the implementation")


@pytest.fixture
def handler() -> Handler:
    return Handler()


@pytest.fixture
def serve(handler: Handler) -> Iterator[Callable[..., Tcp]]:
    """Starts a server with the given limits; stops it afterwards."""
    servers: list[Server] = []

    def start(**limits: Any) -> Tcp:
        server = Server(
            handler,
            Tcp("127.0.0.1", 0),
            ("/PLCAPI/",),
            long_calls=frozenset({"wait"}),
            limits=Limits(**limits),
        )
        servers.append(server)
        address = server.start()
        assert isinstance(address, Tcp)
        return address

    yield start
    handler.gate.set()
    for server in servers:
        server.stop()


def exchange(address: Tcp, data: bytes) -> bytes:
    """All that the server sends for ``data`` until it closes."""
    with socket.create_connection((address.host, address.port), timeout=DEADLINE_S) as connection:
        connection.sendall(data)
        chunks = []
        while chunk := connection.recv(65536):
            chunks.append(chunk)
        return b"".join(chunks)


def request(body: bytes = CALL, *fields: str, path: str = "/PLCAPI/", verb: str = "POST", length: bool = True) -> bytes:
    """A request that asks to close."""
    lines = [f"{verb} {path} HTTP/1.1", "Host: x", "Connection: close", *fields]
    if length:
        lines.append(f"Content-Length: {len(body)}")
    return "\r\n".join([*lines, "", ""]).encode() + body


def status(answer: bytes) -> int:
    """HTTP status of the first response in ``answer``."""
    return int(answer.split(b" ", 2)[1])


def proxy(address: Tcp) -> xmlrpc.client.ServerProxy:
    return xmlrpc.client.ServerProxy(f"http://{address}/PLCAPI/", allow_none=True)


@pytest.mark.parametrize("path", ["/PLCAPI/", "/PLCAPI", "//PLCAPI//", "/PLCAPI/?x=1"])
def test_server_answers_on_its_path_however_it_is_written(serve: Callable[..., Tcp], path: str) -> None:
    """Trailing and doubled slashes make no difference."""
    answer = exchange(serve(), request(path=path))

    assert status(answer) == 200
    assert b"<int>1</int>" in answer


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (request(path="/"), 404),
        (request(path="/PLCAPI/../x"), 404),
        (request(verb="GET"), 405),
        (request(verb="BREW"), 405),
        (request(length=False), 411),
        (request(b"", "Transfer-Encoding: chunked"), 411),
        (request(b"", "Content-Length: 1048577", length=False), 413),
        (request(b"", f"Content-Length: {'9' * 5000}", length=False), 413),
        (request(b"", "Content-Length: -1", length=False), 400),
        (request(b"", "Content-Length: \u0661", length=False), 400),
        (request(CALL, f"Content-Length: {len(CALL)}"), 400),
        (request(CALL, "Content-Encoding: gzip"), 415),
        (request(CALL, "Expect: the-unexpected"), 417),
        (request(CALL, f"X-Long: {'x' * 20000}"), 431),
        (request(CALL, "no colon"), 400),
        (request(CALL, " Folded: x"), 400),
        (b"POST /PLCAPI/ HTTP/3\r\n\r\n", 505),
        (b"\x16\x03\x01\x02\x00\x01\x00\r\n\r\n", 400),
        (b"POST\r\n\r\n", 400),
    ],
)
def test_bad_request_is_refused_and_the_server_lives_on(serve: Callable[..., Tcp], data: bytes, expected: int) -> None:
    """Each malformed or unsupported request gets its HTTP status; the next caller is served."""
    address = serve()

    assert expected == status(exchange(address, data))
    assert proxy(address).echo("still here") == "still here"


def test_too_long_body_is_refused_before_it_is_read(serve: Callable[..., Tcp]) -> None:
    """The head alone, with the length of a body that never comes, gets 413."""
    head = request(b"", "Content-Length: 2000000", length=False)

    assert status(exchange(serve(), head)) == 413


def test_slow_request_ends_at_its_deadline(serve: Callable[..., Tcp]) -> None:
    """A body that stays incomplete gets 408 instead of a thread for ever."""
    assert status(exchange(serve(request_s=0.2), request(CALL)[:-10])) == 408


def test_idle_connection_is_closed(serve: Callable[..., Tcp]) -> None:
    """A connection without a request is closed without an answer."""
    assert exchange(serve(idle_s=0.1), b"") == b""


def test_expect_continue_is_honoured(serve: Callable[..., Tcp]) -> None:
    """A client that asks first is told to go on."""
    answer = exchange(serve(), request(CALL, "Expect: 100-continue"))

    assert answer.startswith(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200")


def test_connection_is_kept_for_more_requests(serve: Callable[..., Tcp]) -> None:
    """Two requests on one connection get two answers."""
    address = serve()
    connection = http.client.HTTPConnection(address.host, address.port, timeout=DEADLINE_S)
    for _ in range(2):
        connection.request("POST", "/PLCAPI/", CALL)
        response = connection.getresponse()
        assert (response.status, b"<int>1</int>" in response.read()) == (200, True)
    connection.close()


def test_crash_gives_500_without_details_and_a_log_with_them(
    serve: Callable[..., Tcp], caplog: pytest.LogCaptureFixture
) -> None:
    """The caller gets an incident number; the traceback is in the log under it."""
    body = xmlrpc.client.dumps((), "crash").encode()
    with caplog.at_level(logging.ERROR):
        answer = exchange(serve(), request(body))

    assert status(answer) == 500
    assert b"secret" not in answer
    record = next(r for r in caplog.records if r.message == "call crashed")
    assert record.incident.encode() in answer  # type: ignore[attr-defined]
    assert record.exc_info is not None


def test_fault_is_an_answer(serve: Callable[..., Tcp]) -> None:
    """A fault raised by the method arrives as an XML-RPC fault."""
    with pytest.raises(xmlrpc.client.Fault) as caught:
        proxy(serve()).fail()

    assert (caught.value.faultCode, caught.value.faultString) == (102, "told so")


@pytest.mark.parametrize("body", [b"", b"<", b"<methodResponse/>", b"\xff\xfe", CALL + b"<x/>"])
def test_malformed_xml_is_a_parse_fault(serve: Callable[..., Tcp], body: bytes) -> None:
    """What is not a methodCall gets a fault of the XML-RPC range for it."""
    answer = exchange(serve(), request(body))

    assert status(answer) == 200
    with pytest.raises(xmlrpc.client.Fault) as caught:
        xmlrpc.client.loads(answer.split(b"\r\n\r\n", 1)[1])
    assert caught.value.faultCode in (-32700, -32600)


def test_waiting_calls_leave_room_for_others(serve: Callable[..., Tcp], handler: Handler) -> None:
    """With all places of long polls and more taken, ordinary calls are served; one long poll too many gets 503."""
    address = serve(waiting=3, calls=1)
    threads = [threading.Thread(target=lambda: proxy(address).wait()) for _ in range(3)]
    for thread in threads:
        thread.start()
    for _ in threads:
        assert handler.entered.acquire(timeout=DEADLINE_S)

    assert proxy(address).echo("x") == "x"
    assert status(exchange(address, request(xmlrpc.client.dumps((), "wait").encode()))) == 503

    handler.gate.set()
    for thread in threads:
        thread.join(DEADLINE_S)


def test_connections_beyond_the_bound_get_503(serve: Callable[..., Tcp], handler: Handler) -> None:
    """The third connection of two is told to come back; after the others ended, callers are served."""
    address = serve(connections=2, calls=2)
    threads = [threading.Thread(target=lambda: proxy(address).block()) for _ in range(2)]
    for thread in threads:
        thread.start()
    for _ in threads:
        assert handler.entered.acquire(timeout=DEADLINE_S)
    with socket.create_connection((address.host, address.port), timeout=DEADLINE_S) as third:
        answer = third.recv(65536)

    assert status(answer) == 503
    handler.gate.set()
    for thread in threads:
        thread.join(DEADLINE_S)


def test_unix_socket_tells_the_caller(tmp_path: Path, handler: Handler) -> None:
    """On a Unix socket the handler learns uid, gid and pid of the caller from the kernel."""
    path = tmp_path / "api"
    server = Server(handler, Unix(str(path), 0o600))
    server.start()
    try:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(DEADLINE_S)
            connection.connect(str(path))
            connection.sendall(request(path="/"))
            answer = connection.recv(65536)
        mode = path.stat().st_mode & 0o777
    finally:
        server.stop()

    assert status(answer) == 200
    assert handler.peers == [Peer(uid=os.getuid(), gid=os.getgid(), pid=os.getpid())]
    assert mode == 0o600
    assert not path.exists()


def test_unix_socket_of_a_dead_process_is_replaced(tmp_path: Path, handler: Handler) -> None:
    """A socket file that nobody listens on is no obstacle; one in use is."""
    path = str(tmp_path / "api")
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(path)
    server = Server(handler, Unix(path))
    server.start()
    try:
        with pytest.raises(CannotListen, match="api: Address already in use"):
            Server(handler, Unix(path)).start()
    finally:
        server.stop()


def test_port_in_use_is_one_clear_error(serve: Callable[..., Tcp], handler: Handler) -> None:
    """The error names the address and the port."""
    address = serve()
    with pytest.raises(CannotListen, match=f"127.0.0.1:{address.port}: Address already in use"):
        Server(handler, address).start()


def test_stop_ends_connections_and_frees_the_port(handler: Handler) -> None:
    """After stop an idle connection is closed and the port can be bound again."""
    server = Server(handler, Tcp("127.0.0.1", 0))
    address = server.start()
    assert isinstance(address, Tcp)
    with socket.create_connection((address.host, address.port), timeout=DEADLINE_S) as idle:
        idle.sendall(request(path="/").replace(b"close", b"keep-alive"))
        assert idle.recv(65536)
        server.stop()
        assert idle.recv(1) == b""
    again = Server(handler, address)
    assert address == again.start()
    again.stop()
