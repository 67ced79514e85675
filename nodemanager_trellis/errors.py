"""What may cross a room's door: the few exceptions of the project and what a caller may assume after each.

Library exceptions (pyroute2, lxc, xmlrpc, jsonschema, sqlite3 …) never leave the room that uses the library;
they are re-raised ``from`` as one of these.
"""

from __future__ import annotations

import os


class TrellisError(Exception):
    """Base of all; never raised itself."""


class InvalidInput(TrellisError):
    """Something from outside was refused. Nothing was changed.

    :param message: what was wrong, in one sentence, without the path
    :param path: JSON path of the thing (``$.slivers[2].attributes[0].value``), or '' if the whole document is meant
    """

    def __init__(self, message: str, path: str = "") -> None:
        super().__init__(f"{path}: {message}" if path else message)
        self.message = message
        self.path = path


class NotOurs(TrellisError):
    """An object of the wanted name exists but does not bear our mark. Nothing was changed."""


class Unsupported(TrellisError):
    """This kernel, or this machine, lacks a named feature. Nothing was changed."""


class SubstrateError(TrellisError):
    """The kernel or LXC refused an operation on one object; earlier operations on other objects stand.

    :param what: the object, as people know it (``veth tr4k2…``)
    :param operation: ``create``, ``delete``, ``start`` …
    :param errno: the errno, or 0 when there was none
    :param detail: the kernel's or LXC's own sentence, if it gave one
    """

    def __init__(self, what: str, operation: str, errno: int = 0, detail: str = "") -> None:
        reason = detail or (os.strerror(errno) if errno else "failed")
        if detail and errno:
            reason = f"{detail} ({os.strerror(errno)})"
        super().__init__(f"{operation} {what}: {reason}")
        self.what = what
        self.operation = operation
        self.errno = errno
        self.detail = detail


class PluginError(TrellisError):
    """A plugin raised. Its objects stay as they are; other plugins and slivers go on."""


class PlcError(TrellisError):
    """PLC could not be asked, or answered with a fault. The last good answer stays in force.

    :param code: PLCAPI fault code, or 0 when there was no answer at all
    :param retry: whether the same call may succeed later (network, 5xx)
    """

    def __init__(self, message: str, code: int = 0, retry: bool = False) -> None:
        super().__init__(message)
        self.code = code
        self.retry = retry
