"""Types of arguments and their checks, with PLCAPI's wording (``Invalid value value: expected string, got int``)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from nodemanager_trellis.plc.faults import Fault, invalid

_XMLRPC_NAMES = {
    type(None): "nil",
    bool: "boolean",
    int: "int",
    float: "double",
    str: "string",
    list: "array",
    tuple: "array",
    dict: "struct",
    object: "mixed",
}


def xmlrpc_name(kind: type) -> str:
    """XML-RPC's word for a Python type."""
    return _XMLRPC_NAMES.get(kind, kind.__name__)


@dataclass(frozen=True)
class Type:
    """A scalar: ``bool``, ``int``, ``float`` or ``str``.

    :param longest: limit of a text, in bytes of UTF-8
    :param least: lower bound of a number
    """

    kind: type[Any] = str
    doc: str = ""
    nullok: bool = False
    longest: int | None = None
    least: int | None = None

    @property
    def name(self) -> str:
        """XML-RPC's word for it."""
        return xmlrpc_name(self.kind)

    def check(self, name: str, value: Any) -> None:
        """Return if ``value`` fits; raises fault 102 that names it."""
        if value is None and self.nullok:
            return
        if not isinstance(value, self.kind) or (self.kind is int and isinstance(value, bool)):
            raise invalid(f"expected {self.name}, got {xmlrpc_name(type(value))}", name)
        if self.longest is not None and len(str(value).encode()) > self.longest:
            raise invalid(f"{name} must be at most {self.longest} bytes long")
        if self.least is not None and value < self.least:
            raise invalid(f"{name} must be > {self.least}")


@dataclass(frozen=True)
class Array(Type):
    """A list whose items are all of one type."""

    kind: type[Any] = list
    item: Type = field(default_factory=Type)

    def check(self, name: str, value: Any) -> None:
        """The list, then each item."""
        super().check(name, value)
        for item in value or ():
            self.item.check(f"{name}[]", item)


@dataclass(frozen=True)
class Struct(Type):
    """A struct. Members that ``fields`` does not name pass; the method decides about them."""

    kind: type[Any] = dict
    fields: Mapping[str, Type] = field(default_factory=dict)
    required: tuple[str, ...] = ()

    def check(self, name: str, value: Any) -> None:
        """The struct, then each known member, then the presence of the required ones."""
        super().check(name, value)
        for key, member in (value or {}).items():
            if key in self.fields:
                self.fields[key].check(f"{name}['{key}']", member)
        for key in self.required:
            if value is not None and key not in value:
                raise invalid(f"'{key}' not specified", name)


@dataclass(frozen=True)
class Mixed(Type):
    """Any of several types; the complaint is that of the last one."""

    choices: tuple[Type, ...] = ()

    @property
    def name(self) -> str:
        """PLCAPI's word for it."""
        return "mixed"

    def check(self, name: str, value: Any) -> None:
        """Return if one of the choices fits."""
        if value is None and self.nullok:
            return
        complaint: Fault | None = None
        for choice in self.choices:
            try:
                return choice.check(name, value)
            except Fault as fault:
                complaint = fault
        assert complaint is not None
        raise complaint


def either(*choices: Type, nullok: bool = False, doc: str = "") -> Mixed:
    """One of ``choices``."""
    return Mixed(choices=choices, nullok=nullok, doc=doc)


def array(item: Type, doc: str = "", nullok: bool = False) -> Array:
    """A list of ``item``."""
    return Array(item=item, doc=doc, nullok=nullok)


def struct(fields: Mapping[str, Type], doc: str = "", required: tuple[str, ...] = (), nullok: bool = False) -> Struct:
    """A struct with these members."""
    return Struct(fields=fields, doc=doc, required=required, nullok=nullok)


ANYTHING = Type(object, "any value")
INT = Type(int)
STR = Type(str)
BOOL = Type(bool)
