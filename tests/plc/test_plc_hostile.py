"""Requests that nobody honest sends: the PLC answers with a fault or an HTTP error, and lives on."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from plc_testbed import OP, Bed

from nodemanager_trellis.intake import xmlrpc

VALUE = "<value><int>1</int></value>"


def call(inner: str, method: str = "GetSlices") -> bytes:
    """A methodCall with this text in its params."""
    head = f"<?xml version='1.0'?><methodCall><methodName>{method}</methodName>"
    return f"{head}<params>{inner}</params></methodCall>".encode()


def nested(depth: int) -> str:
    """Arrays in arrays."""
    return "<value><array><data>" * depth + VALUE + "</data></array></value>" * depth


BODIES = {
    "nothing": b"",
    "no XML": b"GET / HTTP/1.0",
    "no end": call("<param>"),
    "another document": b"<html/>",
    "a response": b"<methodResponse><params><param><value/></param></params></methodResponse>",
    "entity": b"<!DOCTYPE x [<!ENTITY e 'x'>]>" + call("<param><value>&e;</value></param>"),
    "doctype": b"<!DOCTYPE x>" + call(""),
    "100 levels": call(f"<param>{nested(100)}</param>"),
    "10000 levels": call(f"<param>{nested(10000)}</param>"),
    "many values": call("".join(f"<param>{VALUE}</param>" for _ in range(20000))),
    "big integer": call("<param><value><int>99999999999999999999</int></value></param>"),
    "not a number": call("<param><value><double>nan</double></value></param>"),
    "member twice": call(
        f"<param><value><struct>{'<member><name>a</name>' + VALUE + '</member>'}"
        f"{'<member><name>a</name>' + VALUE + '</member>'}</struct></value></param>"
    ),
    "odd types": call("<param><value><bigdecimal>1E+999999999</bigdecimal></value></param>"),
    "wrong encoding": call("").replace(b"'1.0'", b"'1.0' encoding='utf-16'"),
    "bytes that are no text": call("<param><value>\xff</value></param>".encode("latin-1").decode("latin-1")),
    "method of another kind": call("", "../../etc/passwd"),
    "method of the object": call("", "__init__"),
    "system method with the wrong type": call(f"<param>{VALUE}</param>", "system.methodHelp"),
    "multicall of nonsense": call(f"<param>{VALUE}</param>", "system.multicall"),
    "multicall without calls": call("<param><value><array><data/></array></value></param>", "system.multicall"),
}


@pytest.mark.parametrize("what", BODIES)
def test_hostile_body_gets_an_answer(bed: Bed, what: str) -> None:
    """A fault, an empty result, or an HTTP error; no traceback; the next caller is served."""
    status, answer = bed.post(BODIES[what])

    assert status in (200, 400, 413)
    assert b"Traceback" not in answer
    assert b".py" not in answer
    assert bed.proxy().AuthCheck(OP) == 1


def test_body_beyond_the_limit_is_refused_unread(bed: Bed) -> None:
    """A megabyte and a byte is 413, said before any of it is sent."""
    head = f"POST /PLCAPI/ HTTP/1.1\r\nHost: x\r\nContent-Length: {(1 << 20) + 1}\r\n\r\n"

    assert bed.raw(head.encode()).split(b"\r\n")[0].split()[1] == b"413"


def test_big_multicall_is_done_in_bounds(bed: Bed) -> None:
    """Thousands of calls in one body are executed or refused as one; the server answers."""
    calls = [{"methodName": "AuthCheck", "params": [{"AuthMethod": "anonymous"}]}] * 2000
    status, answer = bed.post(xmlrpc.dumps_call("system.multicall", (calls,)))

    assert status == 200
    assert answer.count(b"faultCode") in (1, 2000)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**31), 2**31 - 1) | st.text(max_size=8) | st.sampled_from("*%_"),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=6,
)
FIELDS = st.sampled_from(
    ["node_id", "hostname", "slice_ids", "peer_id", "verified", "arch", "key", "ports", "SORT", "LIMIT", "OFFSET", "OR"]
)
FILTERS = st.dictionaries(st.tuples(st.text("~<>[]-&|+", max_size=2), FIELDS).map("".join), JSON, max_size=4)


@settings(deadline=None, max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(wanted=FILTERS | JSON, fields=JSON)
def test_any_filter_is_answered_or_refused(bed: Bed, wanted: object, fields: object) -> None:
    """No filter and no list of fields, however odd, is anything but records or fault 102."""
    try:
        answer = bed.plc.execute("GetNodes", (OP, wanted, fields))
    except Exception as fault:
        assert getattr(fault, "code", None) == 102, repr(fault)
    else:
        xmlrpc.dumps_response(answer)


METHODS = st.sampled_from(
    [f"Add{cls}" for cls in ("Slice", "SliceTag", "Interface", "Node", "Person", "PersonKey", "NodeTag", "NodeGroup")]
    + [f"Update{cls}" for cls in ("Slice", "SliceTag", "Interface", "Node", "Person")]
    + ["AddTagType", "AddInitScript", "AddConfFile", "AddSliceToNodes", "DeleteSlice", "DeleteNode", "GetSession"]
    + ["AddRoleToPerson", "SetNodeArch", "GenerateNodeConfFile", "GetSlivers"]
)
ODD = st.sampled_from(
    [0, 99, -1, True, "nope", "", "princeton_odd", {}, {"name": "princeton_odd"}, {"ip": "1.2.3.4"}, ["x", 5], [], None]
)


@settings(deadline=None, max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(method=METHODS, params=st.lists(ODD | JSON, max_size=4))
def test_any_arguments_are_taken_or_refused(bed: Bed, method: str, params: list[object]) -> None:
    """Whatever the arguments are, the outcome is a value or a fault in PLCAPI's range, never a crash."""
    try:
        xmlrpc.dumps_response(bed.plc.execute(method, (OP, *params)))
    except Exception as fault:
        assert getattr(fault, "code", None) in (101, 102, 108), repr(fault)
