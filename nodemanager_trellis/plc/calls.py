"""What a method is and what it gets: declarations, the caller, one call's context, and the registry."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from sqlalchemy.engine import Connection

from nodemanager_trellis.plc.changes import Concern, concerned
from nodemanager_trellis.plc.faults import invalid
from nodemanager_trellis.plc.records import Record, find
from nodemanager_trellis.plc.types import INT, Type

if TYPE_CHECKING:
    from nodemanager_trellis.plc.service import Plc

ALL_PERSONS = ("admin", "pi", "user", "tech")


@dataclass(frozen=True)
class Caller:
    """Who calls. A node has the one role ``node``; an anonymous caller has none and no record."""

    kind: str = "anonymous"
    record: Record = field(default_factory=dict)

    @property
    def roles(self) -> frozenset[str]:
        """Names of the roles."""
        return frozenset({"node"} if self.kind == "node" else self.record.get("roles", ()))

    @property
    def is_admin(self) -> bool:
        """Admins may do all that their methods can."""
        return "admin" in self.roles

    @property
    def label(self) -> str:
        """As faults begin: ``person_id 2``."""
        key = {"person": "person_id", "node": "node_id"}.get(self.kind)
        return f"{key} {self.record[key]}" if key else ""

    def has_site(self, site_id: int) -> bool:
        """Whether the person is at the site."""
        return site_id in self.record.get("site_ids", ())


@dataclass
class Context:
    """One call: its transaction, its caller, the time (seconds since 1970 UTC), and what it changed for whom."""

    plc: Plc
    connection: Connection
    caller: Caller
    now: int
    concern: Concern = field(default_factory=Concern)

    def touch(self, cls: str, key: int) -> None:
        """This record changes (call it before a change that takes links away, and after one that adds some)."""
        self.concern.add(concerned(self.connection, cls, key))

    def find(self, cls: str, handle: int | str, complaint: str) -> Record:
        """The record, or fault 102 with ``complaint``."""
        record = find(self.connection, cls, handle)
        if record is None:
            raise invalid(complaint)
        return record


@dataclass(frozen=True)
class Arg:
    """One argument after the auth struct."""

    name: str
    type: Type
    optional: bool = False


@dataclass(frozen=True)
class Method:
    """One method of the API.

    :param roles: who may call it; empty: anybody, and there is no auth struct
    :param call: gets the context and the arguments
    :param write: whether it needs the writing transaction
    :param waits: it waits outside any transaction, and is given a context with a closed one
    """

    name: str
    roles: tuple[str, ...]
    args: tuple[Arg, ...]
    call: Callable[..., Any]
    doc: str
    returns: Type = INT
    write: bool = False
    waits: bool = False

    @property
    def argument_names(self) -> list[str]:
        """All arguments, the auth struct first."""
        return [*(["auth"] if self.roles else []), *(arg.name for arg in self.args)]

    @property
    def argument_range(self) -> tuple[int, int]:
        """Least and greatest number of arguments."""
        most = len(self.argument_names)
        return most - sum(arg.optional for arg in self.args), most


class Registry:
    """The methods by name."""

    def __init__(self) -> None:
        self.methods: dict[str, Method] = {}

    def add(self, method: Method) -> None:
        """Declare one."""
        assert method.name not in self.methods, method.name
        self.methods[method.name] = method

    def method(
        self,
        name: str,
        roles: Iterable[str],
        *args: Arg,
        returns: Type = INT,
        write: bool = False,
        waits: bool = False,
    ) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
        """Decorator: the function is the method ``name``; its docstring is the method's help."""

        def declare(call: Callable[..., Any]) -> Callable[..., Any]:
            self.add(Method(name, tuple(roles), args, call, call.__doc__ or "", returns, write, waits))
            return call

        return declare
