"""The PLC client against a server that answers what a real MyPLC answered."""

import pathlib

import pytest
from stub_plc import StubPlc

from nodemanager_trellis import plcapi
from nodemanager_trellis.config import Config
from nodemanager_trellis.errors import PlcError
from nodemanager_trellis.intake import getslivers, xmlrpc
from nodemanager_trellis.plcapi import PlcClient, node_hmac

FIXTURES = pathlib.Path(__file__).parents[1] / "fixtures" / "plcapi"


@pytest.fixture
def server():
    running = StubPlc()
    yield running
    running.close()


@pytest.fixture
def client(server, tmp_path):
    url = f"http://127.0.0.1:{server.port}/PLCAPI/"
    return PlcClient(Config(url, 1, "nodekey", state_dir=str(tmp_path), plc_timeout_s=5, long_poll_s=1))


SESSION = xmlrpc.dumps_response("S1")
REFUSED = xmlrpc.dumps_fault(103, ": GetSlivers: Failed to authenticate call: SessionAuth: No such session")


def test_hmac_is_over_the_sorted_argument_texts():
    """Lists are flattened, of structs only the values count, no argument at all gives the text []."""
    import hashlib
    import hmac

    def of(text):
        return hmac.new(b"k", text.encode(), hashlib.sha1).hexdigest()

    assert of("[]") == node_hmac("k")
    assert of("[1abc]") == node_hmac("k", ["c", "b"], {"x": "a", "y": 1})


def test_first_call_logs_in_by_hmac_and_keeps_the_session(client, server, tmp_path):
    """Without a session the node asks for one; the next client on the same state uses it again."""
    server.will(SESSION, (200, (FIXTURES / "getslivers-kans.xml").read_bytes()))
    answer = client.slivers()
    desired = getslivers.parse(answer, now=1_700_000_000)

    assert ("node1.kans.internet2.vini.test", 1) == (desired.node.hostname, desired.node.node_id)
    assert ("GetSession", {"AuthMethod": "hmac", "node_id": 1, "value": node_hmac("nodekey")}) == server.calls[0]
    assert ("GetSlivers", {"AuthMethod": "session", "session": "S1"}) == server.calls[1]
    assert ("S1", 0o600) == ((tmp_path / "session").read_text(), (tmp_path / "session").stat().st_mode & 0o777)

    server.will(xmlrpc.dumps_response([]))
    again = PlcClient(client._config)
    again.slivers()
    assert "GetSlivers" == server.calls[-1][0]


def test_lost_session_is_renewed_in_place(client, server, tmp_path):
    """Fault 103 on a session that once worked: one new session, one repetition."""
    (tmp_path / "session").write_text("old")
    client = PlcClient(client._config)
    server.will(REFUSED, SESSION, xmlrpc.dumps_response({"x": None}))

    assert {"x": None} == client.slivers()
    assert ["GetSlivers", "GetSession", "GetSlivers"] == [c[0] for c in server.calls]


def test_fresh_session_refused_is_an_error_not_a_loop(client, server):
    """A session refused right after it was given is reported."""
    server.will(SESSION, REFUSED)

    with pytest.raises(PlcError, match="No such session") as caught:
        client.slivers()
    assert (103, False) == (caught.value.code, caught.value.retry)


def test_http_500_means_later(client, server):
    """A wrong HMAC makes PLCAPI 7.1 answer 500; that is 'try later'."""
    server.will((500, b"oops"))

    with pytest.raises(PlcError, match="HTTP 500") as caught:
        client.slivers()
    assert caught.value.retry


@pytest.mark.parametrize("body", [b"", b"<html/>", b"<methodResponse>", xmlrpc.dumps_call("GetSlivers", ())])
def test_answer_that_is_not_xmlrpc_is_an_error(client, server, body):
    """Rubbish instead of an answer changes nothing and is told."""
    server.will(SESSION, body)

    with pytest.raises(PlcError, match="not XML-RPC"):
        client.slivers()


def test_session_of_another_type_is_an_error(client, server):
    """GetSession must answer a text."""
    server.will(xmlrpc.dumps_response(1))

    with pytest.raises(PlcError, match="GetSession"):
        client.slivers()


def test_answer_too_large_is_refused(client, server, monkeypatch):
    """No more than the limit is read."""
    monkeypatch.setattr(plcapi, "LARGEST_ANSWER_BYTES", 50)
    server.will((200, b"x" * 51))

    with pytest.raises(PlcError, match="larger than 50"):
        client.slivers()


def test_long_poll_answers_a_revision_or_that_there_is_none(client, server):
    """Ours answers a revision; a stock MyPLC has no such method; anything else is an error."""
    server.will(SESSION, xmlrpc.dumps_response(7), xmlrpc.dumps_fault(100, "Invalid method WaitForChange"))

    assert (7, None) == (client.wait(6), client.wait(7))
    server.will(xmlrpc.dumps_response("x"), xmlrpc.dumps_fault(111, "no"))
    for message in ("WaitForChange", "no"):
        with pytest.raises(PlcError, match=message):
            client.wait(1)


def test_unreachable_plc_and_missing_ca_are_told(tmp_path):
    """No server there, or no CA file: the error names the URL or the file."""
    with pytest.raises(PlcError, match=r"cannot ask PLC at http://127\.0\.0\.1:9/") as caught:
        PlcClient(Config("http://127.0.0.1:9/", 1, "k", state_dir=str(tmp_path))).slivers()
    assert caught.value.retry
    with pytest.raises(PlcError, match="no-such-ca"):
        PlcClient(Config("https://127.0.0.1:9/", 1, "k", state_dir=str(tmp_path), plc_ca_file="/no-such-ca")).slivers()
