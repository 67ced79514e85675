"""XML-RPC documents are read within limits, and written so that others can read them."""

import base64
import datetime
import xmlrpc.client

import defusedxml.xmlrpc
import pytest
from strategies import FIXTURES, recorded

from nodemanager_trellis.errors import InvalidInput
from nodemanager_trellis.intake import xmlrpc as codec


def response(inner):
    return f"<methodResponse><params><param>{inner}</param></params></methodResponse>".encode()


def value(inner):
    return response(f"<value>{inner}</value>")


def refused(body, **limits):
    with pytest.raises(InvalidInput) as caught:
        codec.loads(body, **limits)
    return str(caught.value)


def test_defusedxml_is_on():
    """Importing the module arms xmlrpc.client against entity bombs for the whole process."""
    assert xmlrpc.client.FastParser is defusedxml.xmlrpc.DefusedExpatParser


def test_recorded_answer_reads_as_xmlrpc_client_reads_it():
    """A real answer gives the same values as the standard library's reader."""
    body = (FIXTURES / "plcapi" / "getslivers-kans.xml").read_bytes()

    assert xmlrpc.client.loads(body)[0][0] == codec.loads_response(body)


@pytest.mark.parametrize("name", ["abilene-chic", "line3-newy", "api-answers", "faults"])
def test_recorded_values_survive_the_wire(name):
    """What was recorded is the same after writing and reading, by either library."""
    body = codec.dumps_response(recorded(name))

    assert recorded(name) == codec.loads_response(body) == xmlrpc.client.loads(body)[0][0]


def test_call_of_xmlrpc_client_is_understood():
    """A call as scripts send it gives its parameters and its method's name."""
    body = xmlrpc.client.dumps(({"AuthMethod": "session"}, ["x_y", None], True, -5), "AddSlice", allow_none=True)

    assert (({"AuthMethod": "session"}, ["x_y", None], True, -5), "AddSlice") == codec.loads(body.encode())


def test_call_without_params_element_has_no_parameters():
    """The params element of a call may be missing."""
    assert ((), "system.listMethods") == codec.loads(
        b"<methodCall><methodName>system.listMethods</methodName></methodCall>"
    )


def test_dumps_call_is_read_by_xmlrpc_client():
    """The standard library understands our calls."""
    body = codec.dumps_call("GetSlivers", [{"a": [1, None]}, "é<&>"])

    assert (({"a": [1, None]}, "é<&>"), "GetSlivers") == xmlrpc.client.loads(body)


def test_untyped_value_is_text():
    """A value without a type element is text, blanks included."""
    assert ((" a b ",), None) == codec.loads(value(" a b "))


def test_blanks_around_a_type_do_not_count():
    """Blanks between the tags of a value, and around a number, have no meaning."""
    assert ((7,), None) == codec.loads(value("\n <int> 7\n</int> \n"))


@pytest.mark.parametrize("tag", ["int", "i4"])
def test_integers_are_32_bit(tag):
    """The largest and smallest 32-bit integers pass, one more does not."""
    assert ((2**31 - 1,), None) == codec.loads(value(f"<{tag}>2147483647</{tag}>"))
    assert ((-(2**31),), None) == codec.loads(value(f"<{tag}>-2147483648</{tag}>"))
    assert "32-bit integer" in refused(value(f"<{tag}>2147483648</{tag}>"))
    assert "32-bit integer" in refused(value(f"<{tag}>-2147483649</{tag}>"))


@pytest.mark.parametrize("text", ["", "1.0", "0x10", "1e3", "1_0", "٣", "9" * 5000, "nan", "one"])
def test_other_integers_are_refused(text):
    """Only ASCII digits with a sign are an integer."""
    assert "32-bit integer" in refused(value(f"<int>{text}</int>"))


@pytest.mark.parametrize("text", ["", "true", "2", "01"])
def test_booleans_are_0_or_1(text):
    """A boolean is 0 or 1 and nothing else."""
    assert ((False, True), None) == codec.loads(
        b"<methodResponse><params><param><value><boolean>0</boolean></value></param>"
        b"<param><value><boolean>1</boolean></value></param></params></methodResponse>"
    )
    assert "not a boolean" in refused(value(f"<boolean>{text}</boolean>"))


@pytest.mark.parametrize(
    "inner",
    [
        "<double>1.5</double>",
        "<base64>YQ==</base64>",
        "<dateTime.iso8601>20261125T10:00:00</dateTime.iso8601>",
    ],
)
def test_optional_types_are_refused_unless_allowed(inner):
    """Floats, binary data and dates pass only where the caller wants them."""
    assert "not accepted here" in refused(value(inner))


def test_optional_types_are_read_when_allowed():
    """Allowed optional types arrive as float, bytes and datetime."""
    also = ("double", "base64", "dateTime.iso8601")

    assert ((-1.5e3,), None) == codec.loads(value("<double>-1.5e3</double>"), also=also)
    assert ((b"abc",), None) == codec.loads(value("<base64>YW\nJj</base64>"), also=also)
    assert ((datetime.datetime(2026, 11, 25, 10, 0, 1),), None) == codec.loads(
        value("<dateTime.iso8601>20261125T10:00:01</dateTime.iso8601>"), also=also
    )


@pytest.mark.parametrize(
    ("tag", "text"),
    [
        ("double", "nan"),
        ("double", "inf"),
        ("double", "1e999"),
        ("double", ""),
        ("base64", "*"),
        ("base64", "YQ"),
        ("dateTime.iso8601", "20261325T10:00:00"),
        ("dateTime.iso8601", "yesterday"),
    ],
)
def test_bad_optional_values_are_refused(tag, text):
    """Allowing a type does not allow nonsense in it."""
    message = refused(value(f"<{tag}>{text}</{tag}>"), also=(tag,))

    assert message.startswith("$[0]: ")


@pytest.mark.parametrize("tag", ["i8", "i1", "ex:nil", "bigdecimal", "bigint", "serializable"])
def test_extension_types_are_refused(tag):
    """Types of other dialects are unknown elements."""
    assert "unexpected element" in refused(value(f"<{tag}>1</{tag}>"))


@pytest.mark.parametrize(
    ("body", "sentence"),
    [
        (b"", "no element found"),
        (b"not xml", "syntax error"),
        (b"<methodCall>", "no element found"),
        (b"<methodCall><methodName>x</methodName></methodCall><x/>", "junk after document"),
        (b"<html></html>", "unexpected element <html>"),
        (b"<methodResponse/>", "does not hold params or fault"),
        (b"<methodCall/>", "does not hold methodName"),
        (b"<methodCall><methodName>a b</methodName></methodCall>", "not a method name"),
        (b"<methodCall><params/><methodName>a</methodName></methodCall>", "does not hold methodName"),
        (b"<methodCall><methodName>a</methodName><params/><params/></methodCall>", "does not hold methodName"),
        (b"<methodResponse><params><param/></params></methodResponse>", "<param> does not hold value"),
        (b"<methodResponse>text<params/></methodResponse>", "unexpected text"),
        (b"<methodResponse><fault><value/></fault></methodResponse>", "a fault where a call was expected"),
        (value("<int>1</int><int>2</int>"), "more than one thing"),
        (value("a<int>1</int>"), "more than one thing"),
        (value("<int>1</int>a"), "unexpected text"),
        (value("<array/>"), "<array> does not hold data"),
        (value("<array><data><int>1</int></data></array>"), "unexpected element <int> inside <data>"),
        (value("<struct><member><name>a</name></member></struct>"), "<member> does not hold name+value"),
        (value("<struct><member><value/><name>a</name></member></struct>"), "<member> does not hold name+value"),
        (value("<int>&unknown;</int>"), "undefined entity"),
        (value("\x01"), "invalid token"),
        (b"<methodResponse><params><param><value>\xff</value></param></params></methodResponse>", "invalid token"),
    ],
)
def test_malformed_documents_are_refused(body, sentence):
    """Whatever does not follow the grammar is InvalidInput with a sentence that says what."""
    assert sentence in refused(body)


def test_error_names_the_path():
    """The message says where in the values the error is."""
    body = value(
        "<struct><member><name>slivers</name><value><array><data><value/>"
        "<value><struct><member><name>slice_id</name><value><int>x</int></value></member></struct></value>"
        "</data></array></value></member></struct>"
    )

    assert "$[0].slivers[1].slice_id: 'x' is not a 32-bit integer" == refused(body)


def test_duplicate_members_are_refused():
    """A struct must not name one member twice."""
    member = "<member><name>a</name><value/></member>"

    assert "stands twice" in refused(value(f"<struct>{member}{member}</struct>"))


def test_depth_is_limited_without_recursion():
    """Sixteen levels pass; a hundred thousand are refused at the seventeenth, without a RecursionError."""
    nested = "<array><data><value>" * 15 + "</value></data></array>" * 15

    assert None is codec.loads(value(nested))[1]
    assert "deeper than 16" in refused(value("<array><data><value>" * 16 + "</value></data></array>" * 16))
    assert "deeper than 16" in refused(value("<array><data><value>" * 100_000), max_bytes=1 << 24)


def test_number_of_values_is_limited():
    """Values are counted while reading."""
    many = "<array><data>" + "<value/>" * 9 + "</data></array>"

    assert [""] * 9 == codec.loads(value(many), max_values=10)[0][0]
    assert "more than 9 values" in refused(value(many), max_values=9)


def test_size_is_limited_before_parsing():
    """A body beyond the limit is not even looked at."""
    assert "is longer than 1048576" in refused(b"x" * (1 << 20) + b"x")
    assert ((), "a") == codec.loads(codec.dumps_call("a") + b" " * (1 << 20), max_bytes=1 << 21)


@pytest.mark.parametrize(
    "head",
    [
        b"<!DOCTYPE methodCall>",
        b'<!DOCTYPE a [<!ENTITY b "c">]>',
        b'<!DOCTYPE a SYSTEM "file:///etc/passwd">',
        b'<!DOCTYPE a [<!ENTITY b "bbbbbbbbbb"><!ENTITY c "&b;&b;&b;&b;&b;&b;&b;&b;">]>',
    ],
)
def test_doctype_and_entities_are_refused(head):
    """No document type declaration is accepted, with or without entities."""
    body = head + b"<methodCall><methodName>&c;</methodName></methodCall>"

    assert "document type or entity" in refused(body)


@pytest.mark.parametrize("encoding", ["zip", "utf-7", "idna", "no-such", "big5", "rot13", "mbcs"])
def test_odd_encodings_are_refused(encoding):
    """An encoding that expat cannot use is InvalidInput, not a LookupError."""
    assert "encoding" in refused(f'<?xml version="1.0" encoding="{encoding}"?><methodCall/>'.encode())


def test_latin1_is_read():
    """Python 2 scripts may declare ISO-8859-1."""
    body = xmlrpc.client.dumps(("caf\xe9",), "x", encoding="iso-8859-1").encode("iso-8859-1")

    assert (("caf\xe9",), "x") == codec.loads(body)


def test_response_gives_its_value():
    """A response holds exactly one value; a call is not a response."""
    assert {"a": None} == codec.loads_response(codec.dumps_response({"a": None}))
    with pytest.raises(InvalidInput, match="0 values"):
        codec.loads_response(b"<methodResponse><params/></methodResponse>")
    with pytest.raises(InvalidInput, match="a call where a response"):
        codec.loads_response(codec.dumps_call("x"))


def test_fault_is_raised_with_code_and_text():
    """A fault arrives as XmlRpcFault."""
    with pytest.raises(codec.XmlRpcFault) as caught:
        codec.loads_response(codec.dumps_fault(102, "Invalid argument: <x>"))

    assert (102, "Invalid argument: <x>") == (caught.value.code, caught.value.text)
    assert "fault 102: Invalid argument: <x>" == str(caught.value)


@pytest.mark.parametrize("fault", [1, [], {}, {"faultCode": "1", "faultString": ""}, {"faultCode": True}])
def test_broken_fault_is_refused(fault):
    """A fault needs an integer code and a text."""
    inner = codec.dumps_response(fault).split(b"<param>")[1].split(b"</param>")[0]
    with pytest.raises(InvalidInput, match="without faultCode"):
        codec.loads_response(b"<methodResponse><fault>" + inner + b"</fault></methodResponse>")


def test_control_characters_are_written_as_question_marks():
    """What XML cannot carry becomes '?', as PLCAPI does it; tab, LF and CR stay."""
    body = codec.dumps_response("a\x00b\x1b\ud800\uffffc\t\n\r")

    assert "a?b???c\t\n\r" == codec.loads_response(body)


@pytest.mark.parametrize("number", [2**31, -(2**31) - 1, 10**400])
def test_larger_integers_are_not_sent(number):
    """An integer beyond 32 bit is refused with its path instead of sent as something else."""
    with pytest.raises(InvalidInput) as caught:
        codec.dumps_response({"a": [0, number]})

    assert "$[0].a[1]" == caught.value.path


@pytest.mark.parametrize("bad", [object(), {1: 2}, {"\x00": 1, "\x01": 2}, float("nan"), float("inf"), {1, 2}])
def test_unsendable_values_are_refused(bad):
    """Other types, and members that would not be unique, are InvalidInput."""
    with pytest.raises(InvalidInput):
        codec.dumps_response(bad)


def test_cyclic_values_are_refused():
    """Writing stops at the same depth as reading."""
    ring = []
    ring.append(ring)
    with pytest.raises(InvalidInput, match="deeper than 16"):
        codec.dumps_response(ring)


def test_floats_and_bytes_can_be_sent():
    """A float goes out as double and bytes as base64, as PLCAPI's own answers need."""
    body = codec.dumps_response([1.25, b"\x00\xff"])

    assert [1.25, b"\x00\xff"] == codec.loads_response(body, also=("double", "base64"))
    assert base64.b64encode(b"\x00\xff") in body


def test_method_name_is_checked_when_sent():
    """Nothing can be smuggled in through the method's name."""
    with pytest.raises(InvalidInput, match="not a method name"):
        codec.dumps_call("a</methodName>")


def test_large_answer_reads_with_raised_limits():
    """An answer of several MiB is read when the caller allows it."""
    answer = {"slivers": [recorded("abilene-chic")["slivers"][0]] * 300}
    body = codec.dumps_response(answer)

    assert "is longer than" in refused(body, max_bytes=1 << 19)
    assert answer == codec.loads_response(body, max_bytes=1 << 24)
