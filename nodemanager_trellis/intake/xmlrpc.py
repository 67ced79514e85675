"""XML-RPC ↔ plain values, with limits that hold while parsing; the only XML reader of the project.

Own unmarshaller on defusedxml's expat: ``xmlrpc.client``'s has no limit on depth or number of values, lets duplicate
members and ``nan`` pass, and answers deep documents with a late ``RecursionError``. Importing this module also arms
``xmlrpc.client`` for code that still uses it (:func:`defusedxml.xmlrpc.monkey_patch`, process-wide).
"""

from __future__ import annotations

import base64
import binascii
import datetime
import math
import re
from collections.abc import Collection
from typing import Any, TypeAlias
from xml.parsers.expat import ExpatError

import defusedxml.xmlrpc
from defusedxml import DefusedXmlException

from nodemanager_trellis.errors import InvalidInput, TrellisError

defusedxml.xmlrpc.monkey_patch()

Value: TypeAlias = Any
"""None, str, int, bool, list or dict with str keys (and float, bytes, datetime where a caller allows them)"""

MAX_BYTES = 1 << 20
MAX_DEPTH = 16
MAX_VALUES = 100_000

_CHILDREN = {
    "": ("methodCall", "methodResponse"),
    "methodCall": ("methodName", "params"),
    "methodResponse": ("params", "fault"),
    "params": ("param",),
    "param": ("value",),
    "fault": ("value",),
    "value": ("nil", "string", "int", "i4", "boolean", "array", "struct", "double", "base64", "dateTime.iso8601"),
    "array": ("data",),
    "data": ("value",),
    "struct": ("member",),
    "member": ("name", "value"),
}
_SEQUENCE: dict[str, tuple[list[str], ...]] = {
    "methodCall": (["methodName"], ["methodName", "params"]),
    "methodResponse": (["params"], ["fault"]),
    "param": (["value"],),
    "fault": (["value"],),
    "array": (["data"],),
    "member": (["name", "value"],),
}
"""what must stand inside, exactly, where the number or order of children matters"""
_OPTIONAL = frozenset({"double", "base64", "dateTime.iso8601"})
_TEXT = frozenset({"value", "string", "int", "i4", "boolean", "name", "methodName"}) | _OPTIONAL
_BLANK = " \t\r\n"

_INT = re.compile(r"[+-]?[0-9]{1,12}")
_DOUBLE = re.compile(r"[+-]?([0-9]{1,400}\.?[0-9]{0,400}|\.[0-9]{1,400})([eE][+-]?[0-9]{1,4})?")
_METHOD = re.compile(r"[A-Za-z0-9_.:/]{1,128}")
_NOT_XML = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\ud800-\udfff\ufffe\uffff]")
"""what XML 1.0 §2.2 cannot carry"""


class XmlRpcFault(TrellisError):
    """The other side answered with a fault: it understood the call and refused it.

    :param code: ``faultCode``
    :param text: ``faultString``
    """

    def __init__(self, code: int, text: str) -> None:
        super().__init__(f"fault {code}: {text}")
        self.code = code
        self.text = text


class _Frame:
    """One open element."""

    __slots__ = ("items", "tag", "tags", "text")

    def __init__(self, tag: str) -> None:
        self.tag = tag
        self.tags: list[str] = []
        self.items: list[Any] = []
        self.text: list[str] = []


class _Reader:
    """Target of the expat parser: checks the grammar and builds values bottom-up, without recursion."""

    def __init__(self, max_depth: int, max_values: int, also: Collection[str]) -> None:
        self._stack = [_Frame("")]
        self._depth = 0
        self._values = 0
        self._max_depth = max_depth
        self._max_values = max_values
        self._also = also

    @property
    def result(self) -> tuple[str, list[str], list[Any]]:
        """Root element, tags of its children, what they hold."""
        root = self._stack[0]
        tags, items = root.items[0]
        return root.tags[0], tags, items

    def path(self) -> str:
        """JSON path of the value being read: ``$[0].slivers[2].name``."""
        path = "$"
        for frame in self._stack:
            if frame.tag in ("params", "data"):
                path += f"[{len(frame.items)}]"
            elif frame.tag == "member" and frame.tags[:1] == ["name"]:
                path += f".{frame.items[0][:80]}" if frame.items else ""
        return path

    def _refuse(self, message: str) -> InvalidInput:
        return InvalidInput(message, self.path())

    def xml(self, encoding: object, standalone: object) -> None:
        """Called once by the parser's constructor; nothing to do."""

    def start(self, tag: str, attributes: object) -> None:
        """An element opens. Attributes have no meaning in XML-RPC and are ignored."""
        parent = self._stack[-1]
        if tag not in _CHILDREN.get(parent.tag, ()):
            where = f"inside <{parent.tag}>" if parent.tag else "as the document"
            raise self._refuse(f"unexpected element <{tag[:40]}> {where}")
        if tag in _OPTIONAL and tag not in self._also:
            raise self._refuse(f"type <{tag}> is not accepted here")
        if parent.tag == "value" and (parent.tags or "".join(parent.text).strip(_BLANK)):
            raise self._refuse("a value holds more than one thing")
        if tag == "value":
            self._depth += 1
            self._values += 1
            if self._depth > self._max_depth:
                raise self._refuse(f"values nested deeper than {self._max_depth}")
            if self._values > self._max_values:
                raise self._refuse(f"more than {self._max_values} values")
        parent.tags.append(tag)
        self._stack.append(_Frame(tag))

    def data(self, text: str) -> None:
        """Character data."""
        frame = self._stack[-1]
        if frame.tag in _TEXT and not frame.tags:
            frame.text.append(text)
        elif text.strip(_BLANK):
            raise self._refuse(f"unexpected text inside <{frame.tag}>")

    def end(self, tag: str) -> None:
        """An element closes: its value goes to its parent."""
        frame = self._stack[-1]
        if frame.tags not in _SEQUENCE.get(tag, (frame.tags,)):
            raise self._refuse(f"<{tag}> does not hold {' or '.join('+'.join(s) for s in _SEQUENCE[tag])}")
        item = self._build(frame)
        self._stack.pop()
        self._stack[-1].items.append(item)
        if tag == "value":
            self._depth -= 1

    def _build(self, frame: _Frame) -> Any:
        tag, items = frame.tag, frame.items
        if tag in ("methodCall", "methodResponse"):
            return frame.tags, items
        if tag == "value":
            return items[0] if items else "".join(frame.text)
        if tag in ("param", "fault", "array"):
            return items[0]
        if tag == "member":
            return items[0], items[1]
        if tag == "struct":
            members: dict[str, Any] = {}
            for name, item in items:
                if name in members:
                    raise self._refuse(f"member {name[:80]!r} stands twice in one struct")
                members[name] = item
            return members
        if tag in _TEXT:
            return self._scalar(tag, "".join(frame.text))
        return None if tag == "nil" else items

    def _scalar(self, tag: str, text: str) -> Any:
        if tag in ("string", "name"):
            return text
        word = text.strip(_BLANK)
        if tag == "methodName":
            if not _METHOD.fullmatch(word):
                raise self._refuse(f"{word[:40]!r} is not a method name")
            return word
        if tag in ("int", "i4"):
            if not _INT.fullmatch(word) or not -(2**31) <= int(word) < 2**31:
                raise self._refuse(f"{word[:40]!r} is not a 32-bit integer")
            return int(word)
        if tag == "boolean":
            if word not in ("0", "1"):
                raise self._refuse(f"{word[:40]!r} is not a boolean (0 or 1)")
            return word == "1"
        if tag == "double":
            if not _DOUBLE.fullmatch(word) or not math.isfinite(float(word)):
                raise self._refuse(f"{word[:40]!r} is not a finite number")
            return float(word)
        try:
            if tag == "base64":
                return base64.b64decode("".join(word.split()), validate=True)
            return datetime.datetime.strptime(word, "%Y%m%dT%H:%M:%S")
        except (binascii.Error, ValueError):
            raise self._refuse(f"{word[:40]!r} is not <{tag}>") from None


def _parse(
    body: bytes, max_bytes: int, max_depth: int, max_values: int, also: Collection[str]
) -> tuple[str, list[str], list[Any]]:
    if len(body) > max_bytes:
        raise InvalidInput(f"document of {len(body)} bytes is longer than {max_bytes}")
    reader = _Reader(max_depth, max_values, also)
    try:
        parser = defusedxml.xmlrpc.DefusedExpatParser(reader, forbid_dtd=True)
        parser.feed(body)
        parser.close()
    except DefusedXmlException as err:
        raise InvalidInput("a document type or entity declaration is not accepted") from err
    except ExpatError as err:
        raise InvalidInput(f"not well-formed XML: {err}", reader.path()) from err
    except (ValueError, LookupError, ImportError) as err:
        # Only the declared encoding leads here: expat asks Python for codecs it does not know itself.
        raise InvalidInput("unusable character encoding") from err
    return reader.result


def loads(
    body: bytes,
    *,
    max_bytes: int = MAX_BYTES,
    max_depth: int = MAX_DEPTH,
    max_values: int = MAX_VALUES,
    also: Collection[str] = (),
) -> tuple[tuple[Value, ...], str | None]:
    """A ``methodCall`` or ``methodResponse`` → its parameters and the method's name (None for a response).

    Values are None, str, int (32 bit), bool, list, dict; at most ``max_depth`` levels and ``max_values`` of them.

    :param also: more types to accept: ``double`` (float, finite), ``base64`` (bytes), ``dateTime.iso8601`` (datetime)
    :raises InvalidInput: anything else, a fault included
    """
    root, tags, items = _parse(body, max_bytes, max_depth, max_values, also)
    if root == "methodCall":
        return (tuple(items[1]) if len(items) > 1 else ()), items[0]
    if tags == ["fault"]:
        raise InvalidInput("a fault where a call was expected")
    return tuple(items[0]), None


def loads_response(
    body: bytes,
    *,
    max_bytes: int = MAX_BYTES,
    max_depth: int = MAX_DEPTH,
    max_values: int = MAX_VALUES,
    also: Collection[str] = (),
) -> Value:
    """A ``methodResponse`` → its one value. Limits and ``also`` as in :func:`loads`; GetSlivers may need 16 MiB.

    :raises XmlRpcFault: the document is a fault
    :raises InvalidInput: anything that is not a response with one value
    """
    root, tags, items = _parse(body, max_bytes, max_depth, max_values, also)
    if root != "methodResponse":
        raise InvalidInput("a call where a response was expected")
    if tags == ["fault"]:
        fault = items[0]
        code, text = (fault.get("faultCode"), fault.get("faultString")) if isinstance(fault, dict) else (None, None)
        if type(code) is not int or not isinstance(text, str):
            raise InvalidInput("a fault without faultCode and faultString")
        raise XmlRpcFault(code, text)
    if len(items[0]) != 1:
        raise InvalidInput(f"a response with {len(items[0])} values instead of one")
    return items[0][0]


def _escape(text: str) -> str:
    """Markup escaped; what XML cannot carry becomes '?', as PLCAPI does; CR as reference so that it survives."""
    text = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;").replace("\r", "&#13;")
    return _NOT_XML.sub("?", text)


def _dump(value: Value, out: list[str], path: str, depth: int) -> None:
    if depth > MAX_DEPTH:
        raise InvalidInput(f"values nested deeper than {MAX_DEPTH}", path)
    if value is None:
        inner = "<nil/>"
    elif isinstance(value, bool):
        inner = f"<boolean>{value:d}</boolean>"
    elif isinstance(value, str):
        inner = f"<string>{_escape(value)}</string>"
    elif isinstance(value, int):
        if not -(2**31) <= value < 2**31:
            raise InvalidInput("does not fit into the 32 bits of an XML-RPC integer", path)
        inner = f"<int>{value:d}</int>"
    elif isinstance(value, float):
        if not math.isfinite(value):
            raise InvalidInput("is not a finite number", path)
        inner = f"<double>{value!r}</double>"
    elif isinstance(value, bytes):
        inner = f"<base64>{base64.b64encode(value).decode()}</base64>"
    elif isinstance(value, (list, tuple)):
        out.append("<value><array><data>\n")
        for i, item in enumerate(value):
            _dump(item, out, f"{path}[{i}]", depth + 1)
        out.append("</data></array></value>\n")
        return
    elif isinstance(value, dict):
        out.append("<value><struct>\n")
        seen = set()
        for name, item in value.items():
            label = _escape(name) if isinstance(name, str) else ""
            if not isinstance(name, str) or label in seen:
                raise InvalidInput(f"member {str(name)[:80]!r} is not a unique text", path)
            seen.add(label)
            out.append(f"<member><name>{label}</name>")
            _dump(item, out, f"{path}.{name[:80]}", depth + 1)
            out.append("</member>\n")
        out.append("</struct></value>\n")
        return
    else:
        raise InvalidInput(f"a {type(value).__name__} cannot be sent", path)
    out.append(f"<value>{inner}</value>\n")


def _document(root: str, head: str, params: Collection[Value]) -> bytes:
    out = [f"<?xml version='1.0'?>\n<{root}>\n{head}<params>\n"]
    for i, value in enumerate(params):
        out.append("<param>")
        _dump(value, out, f"$[{i}]", 1)
        out.append("</param>\n")
    out.append(f"</params>\n</{root}>\n")
    return "".join(out).encode()


def dumps_call(method: str, params: Collection[Value] = ()) -> bytes:
    """A ``methodCall`` document, UTF-8.

    :raises InvalidInput: a value that XML-RPC cannot carry (integers beyond 32 bit, other types, more than 16 levels)
    """
    if not _METHOD.fullmatch(method):
        raise InvalidInput(f"{method[:40]!r} is not a method name")
    return _document("methodCall", f"<methodName>{method}</methodName>\n", params)


def dumps_response(value: Value) -> bytes:
    """A ``methodResponse`` with one value; None is ``<nil/>``. Errors as in :func:`dumps_call`."""
    return _document("methodResponse", "", [value])


def dumps_fault(code: int, text: str) -> bytes:
    """A ``methodResponse`` with a fault."""
    out = ["<?xml version='1.0'?>\n<methodResponse>\n<fault>"]
    _dump({"faultCode": code, "faultString": text}, out, "$", 1)
    out.append("</fault>\n</methodResponse>\n")
    return "".join(out).encode()
