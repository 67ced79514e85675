"""Who calls: passwords, sessions, HMAC of nodes, anonymous (planetlab.md §1.7, §5.1)."""

from __future__ import annotations

import hashlib
import hmac
import os
import secrets
import threading
from collections import OrderedDict
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from nodemanager_trellis.plc.calls import Caller, Method
from nodemanager_trellis.plc.faults import Fault, denied, invalid, not_authenticated
from nodemanager_trellis.plc.records import Record, find
from nodemanager_trellis.plc.store import sessions
from nodemanager_trellis.plc.types import INT, STR, Struct, struct

_METHODS = ("session", "password", "capability", "gpg", "hmac", "hmac_dummybox", "anonymous")

AUTH = struct({"AuthMethod": STR}, "API authentication structure", required=("AuthMethod",))

_STRUCTS: dict[str, Struct] = {
    "session": struct({"session": STR}, required=("session",)),
    "password": struct({"Username": STR, "AuthString": STR}, required=("Username", "AuthString")),
    "hmac": struct({"node_id": INT, "value": STR}, required=("node_id", "value")),
}

#: scrypt cost (RFC 7914): 2**14 blocks of 8 × 128 bytes = 16 MiB and about 50 ms.
_SCRYPT = {"n": 1 << 14, "r": 8, "p": 1}


def hash_password(password: str) -> str:
    """``scrypt$<salt>$<hash>``, both in hex."""
    salt = os.urandom(16)
    return f"scrypt${salt.hex()}${hashlib.scrypt(password.encode(), salt=salt, **_SCRYPT).hex()}"


class Passwords:
    """Checks passwords. Scripts send theirs with each call, so the last good ones are remembered, keyed, in memory."""

    _REMEMBERED = 256

    def __init__(self) -> None:
        self._key = os.urandom(32)
        self._good: OrderedDict[bytes, None] = OrderedDict()
        self._lock = threading.Lock()

    def check(self, password: str, stored: str | None) -> bool:
        """Whether ``password`` is the one that was hashed to ``stored``."""
        if not stored or not stored.startswith("scrypt$"):
            return False
        mark = hmac.digest(self._key, f"{stored}\0{password}".encode(), "sha256")
        with self._lock:
            if mark in self._good:
                self._good.move_to_end(mark)
                return True
        _, salt, wanted = stored.split("$")
        found = hashlib.scrypt(password.encode(), salt=bytes.fromhex(salt), **_SCRYPT)
        if not hmac.compare_digest(found, bytes.fromhex(wanted)):
            return False
        with self._lock:
            self._good[mark] = None
            if len(self._good) > self._REMEMBERED:
                self._good.popitem(last=False)
        return True


def hmac_text(params: tuple[Any, ...] | list[Any]) -> str:
    """The text a node signs: ``[``, its arguments (flat, of structs the values) as text, sorted, joined, ``]``."""

    def flatten(values: Any) -> list[str]:
        texts: list[str] = []
        for value in values:
            if isinstance(value, (list, tuple)):
                texts += flatten(value)
            elif isinstance(value, dict):
                texts += flatten(value.values())
            else:
                texts.append(str(value))
        return texts

    return "[" + "".join(sorted(flatten(params))) + "]"


def sign(key: str, params: tuple[Any, ...]) -> str:
    """Hex HMAC-SHA1 with the node key over :func:`hmac_text`."""
    return hmac.new(key.encode(), hmac_text(params).encode(), hashlib.sha1).hexdigest()


def check_struct(auth: Any) -> None:
    """The auth struct names a known method and has its members."""
    AUTH.check("auth", auth)
    kind = auth["AuthMethod"]
    if kind not in _METHODS:
        raise invalid("must be " + ", ".join(f"'{name}'" for name in _METHODS), "AuthMethod")
    if kind in _STRUCTS:
        _STRUCTS[kind].check("auth", auth)


def authenticate(
    connection: Connection, passwords: Passwords, method: Method, params: tuple[Any, ...], now: int
) -> Caller:
    """The caller of ``method``, who has one of its roles; ``params`` begin with the auth struct."""
    auth = params[0]
    check_struct(auth)
    kind = auth["AuthMethod"]
    if kind == "anonymous":
        if "anonymous" not in method.roles:
            raise not_authenticated("AnonymousAuth: method cannot be called anonymously")
        return Caller()
    if kind == "session":
        return _by_session(connection, method, auth["session"], now)
    if kind == "password":
        return _by_password(connection, passwords, method, auth)
    if kind == "hmac":
        return _by_hmac(connection, method, auth, params[1:])
    raise not_authenticated(f"this PLC does not offer the method '{kind}'")


def _by_password(connection: Connection, passwords: Passwords, method: Method, auth: dict[str, Any]) -> Caller:
    person = find(connection, "Person", auth["Username"].lower())
    if person is None or not person["enabled"]:
        raise not_authenticated("PasswordAuth: No such account")
    if not passwords.check(auth["AuthString"], person["password"]):
        raise not_authenticated("PasswordAuth: Password verification failed")
    caller = Caller("person", person)
    if not caller.roles & set(method.roles):
        raise not_authenticated(f"PasswordAuth: {_missing(method, person)}")
    return caller


def _missing(method: Method, person: Record) -> str:
    return (
        f"missing role, method {method.name} has roles [{','.join(method.roles)}]"
        f" -- caller {person['email']} has roles [{','.join(person['roles'])}]"
    )


def _by_session(connection: Connection, method: Method, session: str, now: int) -> Caller:
    digest = _digest(session)
    row = connection.execute(sa.select(sessions).where(sessions.c.digest == digest)).first()
    if row is None:
        raise not_authenticated("SessionAuth: No such session")
    if row.node_id is not None:
        node = find(connection, "Node", row.node_id)
        assert node is not None  # its sessions would be gone with it
        return _node_caller(method, node, "SessionAuth")
    person = find(connection, "Person", row.person_id)
    fault: Fault | None = None
    if row.expires <= now:
        fault = not_authenticated("SessionAuth: Invalid session")
    elif person is None or not person["enabled"]:
        fault = not_authenticated("SessionAuth: No such account")
    if fault is not None:
        raise fault
    assert person is not None
    caller = Caller("person", person)
    if not caller.roles & set(method.roles):
        raise denied(f"SessionAuth: {_missing(method, person)}")
    return caller


def _by_hmac(connection: Connection, method: Method, auth: dict[str, Any], params: tuple[Any, ...]) -> Caller:
    """A stock PLCAPI 7.1 answers a wrong HMAC with HTTP 500, because its notification mail fails; we say 103."""
    node = find(connection, "Node", auth["node_id"])
    if node is None:
        raise not_authenticated("BootAuth: No such node")
    if not node["key"]:
        raise not_authenticated("BootAuth: No node key")
    if not hmac.compare_digest(sign(node["key"], params).encode(), auth["value"].lower().encode()):
        raise not_authenticated("BootAuth: Call could not be authenticated")
    return _node_caller(method, node, "BootAuth")


def _node_caller(method: Method, node: Record, kind: str) -> Caller:
    if "node" not in method.roles:
        raise not_authenticated(f"{kind}: Not allowed to call method {method.name}, missing 'node' role")
    return Caller("node", node)


def _digest(session: str) -> str:
    return hashlib.sha256(session.encode()).hexdigest()


def new_session(connection: Connection, caller: Caller, expires: int, now: int) -> str:
    """A new session. A node's replaces its last one and has no end; a person's ends at ``expires`` (seconds, UTC)."""
    session = secrets.token_urlsafe(32)
    connection.execute(sa.delete(sessions).where(sessions.c.expires < now))
    if caller.kind == "node":
        node_id = caller.record["node_id"]
        connection.execute(sa.delete(sessions).where(sessions.c.node_id == node_id))
        connection.execute(sa.insert(sessions).values(digest=_digest(session), node_id=node_id))
    else:
        person_id = caller.record["person_id"]
        connection.execute(sa.insert(sessions).values(digest=_digest(session), person_id=person_id, expires=expires))
    return session


def delete_session(connection: Connection, session: str) -> None:
    """The session is void."""
    connection.execute(sa.delete(sessions).where(sessions.c.digest == _digest(session)))
