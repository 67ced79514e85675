"""The PLC itself: settings, dispatch of calls, defaults of new objects, and the server around it."""

from __future__ import annotations

import logging
import re
import secrets
import ssl
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy.exc import SQLAlchemyError

from nodemanager_trellis.api.server import Fault, Limits, Peer, Server, Tcp, Unix
from nodemanager_trellis.errors import InvalidInput
from nodemanager_trellis.plc import crud, faults, methods
from nodemanager_trellis.plc.auth import Passwords, authenticate, check_struct, hash_password
from nodemanager_trellis.plc.calls import Caller, Context, Method, Registry
from nodemanager_trellis.plc.changes import Revisions
from nodemanager_trellis.plc.records import Record, ensure_link, find, insert
from nodemanager_trellis.plc.store import Store, tables
from nodemanager_trellis.plc.tagtypes import STOCK

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Settings:
    """What an operator may set; the names of PLC's own configuration are in parentheses.

    :param name: name of the testbed (PLC_NAME)
    :param slice_prefix: login_base of the site of system slices (PLC_SLICE_PREFIX)
    :param hrn_root: first part of SFA names (PLC_HRN_ROOT)
    :param vsys_defaults: vsys tags of each new slice (PLC_VSYS_DEFAULTS)
    :param session_s: life of a person's session unless asked otherwise, seconds
    """

    name: str = "Trellis"
    slice_prefix: str = "pl"
    hrn_root: str = ""
    pldistro: str = "lxc"
    fcdistro: str = "f35"
    arch: str = "x86_64"
    vsys_defaults: tuple[str, ...] = ()
    reservation_policy: str = "none"
    lease_granularity_s: int = 3600
    session_s: int = 86400

    @property
    def root(self) -> str:
        """The SFA root, made of the testbed's name when none is set."""
        return self.hrn_root or re.sub(r"[^a-z0-9]+", "", self.name.lower()) or "trellis"


class Plc:
    """One PLC on one database.

    :param clock: seconds since 1970 UTC; tests give their own
    """

    def __init__(self, store: Store, settings: Settings | None = None, clock: Callable[[], float] = time.time) -> None:
        self.store = store
        self.settings = settings or Settings()
        self.clock = clock
        self.passwords = Passwords()
        self.registry = Registry()
        crud.declare(self.registry)
        methods.declare(self.registry)
        self.revisions = Revisions(store)

    # Calls ------------------------------------------------------------------------------------------------------

    def execute(self, name: str, params: tuple[Any, ...], peer: Peer | None = None) -> Any:
        """The value of a call, or a :class:`Fault` in PLCAPI's words."""
        method = self.registry.methods.get(name)
        if method is None:
            raise faults.invalid_method(name)
        caller = Caller()
        try:
            least, most = method.argument_range
            if not least <= len(params) <= most:
                raise faults.argument_count(len(params), least, most)
            if not method.roles:
                self._check(method, params)
                return method.call(self, *params)
            check_struct(params[0])
            now = int(self.clock())
            with self.store.read() as connection:
                caller = authenticate(connection, self.passwords, method, params, now)
                self._check(method, params[1:])
                ctx = Context(self, connection, caller, now)
                if not (method.write or method.waits):
                    return method.call(ctx, *params[1:])
            if method.waits:
                return method.call(ctx, *params[1:])
            return self._write(method, caller, now, params[1:])
        except Fault as fault:
            raise Fault(fault.code, f"{caller.label}: {name}: {fault.text}") from None
        except SQLAlchemyError as err:
            incident = secrets.token_hex(4)
            log.exception("database error", extra={"method": name, "incident": incident})
            raise Fault(106, f"{caller.label}: {name}: Database error: incident {incident}") from err

    @staticmethod
    def _check(method: Method, values: tuple[Any, ...]) -> None:
        """Types of the arguments after the auth struct; an optional one may be null."""
        for arg, value in zip(method.args, values, strict=False):
            if not (arg.optional and value is None):
                arg.type.check(arg.name, value)

    def _write(self, method: Method, caller: Caller, now: int, values: tuple[Any, ...]) -> Any:
        """Execute in the writing transaction; wake who is concerned once it is committed."""
        revision = 0
        with self.store.write() as connection:
            ctx = Context(self, connection, caller, now)
            result = method.call(ctx, *values)
            if ctx.concern.changed:
                revision = self.revisions.next(connection)
        if revision:
            self.revisions.publish(revision, ctx.concern)
        return result

    def note_contact(self, node_id: int, now: int) -> None:
        """The node's ``last_contact`` is ``now``; that is no change for anybody."""
        with self.store.write(durable=False) as connection:
            nodes = tables["Node"]
            connection.execute(sa.update(nodes).where(nodes.c.node_id == node_id).values(last_contact=now))

    # Defaults of new objects ------------------------------------------------------------------------------------

    def default_tags(self, ctx: Context, name: str, key: int) -> dict[str, str]:
        """Tags that a new site, node or slice has by itself: its SFA name."""
        record = find(ctx.connection, name, key) if name in ("Site", "Node", "Slice") else None
        if record is None:
            return {}
        if name == "Site":
            return {"hrn": f"{self.settings.root}.{record['login_base']}"}
        if name == "Slice":
            prefix, _, rest = record["name"].partition("_")
            return {"hrn": f"{self.settings.root}.{prefix}.{rest}"}
        site = find(ctx.connection, "Site", record["site_id"])
        assert site is not None
        host = record["hostname"].replace(".", "\\.")
        return {"hrn": f"{self.settings.root}.{site['login_base']}.{host}"}

    def initialise(self, admin_email: str = "", admin_password: str = "") -> bool:
        """A new database has the stock tag types, the site of system slices, and the admin; whether it was new.

        :raises InvalidInput: the database is new and no admin is named
        """
        now = int(self.clock())
        with self.store.write() as connection:
            if find(connection, "Site", self.settings.slice_prefix) is not None:
                return False
            if not admin_email or not admin_password:
                raise InvalidInput("a new PLC needs an admin's e-mail address and password")
            ctx = Context(self, connection, Caller(), now)
            self._stock_tag_types(ctx)
            site = {
                "name": f"{self.settings.name} Central",
                "abbreviated_name": self.settings.name[:50],
                "login_base": self.settings.slice_prefix,
                "is_public": False,
                "max_slices": 100,
            }
            site_id = crud.add_record(ctx, "Site", site, {})
            person = {
                "first_name": "Default",
                "last_name": "Administrator",
                "email": admin_email.lower(),
                "enabled": True,
                "password": hash_password(admin_password),
            }
            person_id = insert(connection, "Person", person, now)
            ensure_link(connection, "person_role", person_id=person_id, role_id=10)
            ensure_link(connection, "person_site", person_id=person_id, site_id=site_id)
        log.info("database initialised", extra={"site": self.settings.slice_prefix, "admin": admin_email})
        return True

    @staticmethod
    def _stock_tag_types(ctx: Context) -> None:
        for stock in STOCK:
            values: Record = {
                "tagname": stock.tagname,
                "category": stock.category,
                "description": stock.description,
            }
            key = insert(ctx.connection, "TagType", values, ctx.now)
            for role in stock.roles:
                methods.ensure_tag_role(ctx, key, role)

    # The server -------------------------------------------------------------------------------------------------

    def server(
        self,
        listen: Tcp | Unix,
        path: str = "/PLCAPI/",
        *,
        limits: Limits | None = None,
        tls: ssl.SSLContext | None = None,
    ) -> Server:
        """A server of this PLC, not yet started."""
        long_calls = frozenset(m.name for m in self.registry.methods.values() if m.waits)
        return Server(
            self.execute,
            listen,
            (path,),
            long_calls=long_calls,
            limits=limits,
            tls=tls,
            also=frozenset({"double"}),
        )

    def close(self) -> None:
        """Waiters are released and the database is closed."""
        self.revisions.close()
        self.store.close()
