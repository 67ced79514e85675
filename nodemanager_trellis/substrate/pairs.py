"""Pairs of a user namespace and a net namespace owned by it: client of the helper process, and the driver.

A sliver that has CAP_NET_ADMIN over a net namespace of the *initial* user namespace can delete devices of the root
context through it; so each sliver's net namespace is made inside the sliver's own user namespace.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import os
import pathlib
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from nodemanager_trellis import names
from nodemanager_trellis.errors import NotOurs, SubstrateError
from nodemanager_trellis.objects import Key, NamespacePair
from nodemanager_trellis.substrate.cgroups import Cgroups
from nodemanager_trellis.substrate.child import JsonChild
from nodemanager_trellis.substrate.settings import Settings

NS_GET_USERNS = 0xB701
NS_GET_NSTYPE = 0xB703
CLONE_NEWUSER = 0x10000000
CLONE_NEWNET = 0x40000000
"""include/uapi/linux/nsfs.h, sched.h"""

INCOMPLETE = -1
"""``uid_base`` of a pair that was found half made or half dropped: equal to no wanted one, so it is made anew."""

_USUAL_NETNS_DIR = pathlib.Path("/run/netns")
_MS_SHARED_REC = (1 << 20) | 16384
_MS_BIND_REC = 4096 | 16384


def raise_first(errors: Sequence[Exception]) -> None:
    """Raise the first of ``errors``, if any, telling of the others in its notes."""
    if errors:
        for other in errors[1:]:
            errors[0].add_note(f"also: {other}")
        raise errors[0]


def raise_all(sentence: str, errors: Sequence[Exception]) -> None:
    """Raise ``errors`` together, if any; a single one as itself."""
    if len(errors) == 1:
        raise errors[0]
    if errors:
        raise ExceptionGroup(sentence, list(errors))


class PairHelper:
    """Client of ``pair_helper.py``. Start it before any thread, in the node's own net and mount namespace."""

    def __init__(self, settings: Settings) -> None:
        self.user_dir = settings.run_dir / "user"
        self.netns_dir = settings.netns_dir
        for directory in (settings.run_dir, self.user_dir, self.netns_dir):
            directory.mkdir(mode=0o755, parents=True, exist_ok=True)
        _share_netns_dir(self.netns_dir)
        program = pathlib.Path(__file__).with_name("pair_helper.py")
        # -I -S: no environment, no site packages: 9 MiB instead of whatever the manager's Python loads.
        argv = [sys.executable, "-I", "-S", str(program), str(self.user_dir), str(self.netns_dir)]
        self._child = JsonChild(argv, "namespace helper")

    @property
    def pid(self) -> int:
        """Process id, 0 when it is not there."""
        return self._child.pid

    def _ask(self, message: dict[str, Any], timeout_s: float) -> dict[str, Any]:
        answer = self._child.request(message, timeout_s)
        if "failed" in answer:
            raise SubstrateError("namespace helper", message["op"], detail=str(answer["failed"]))
        return answer

    def make(self, pairs: Sequence[NamespacePair]) -> dict[str, tuple[int, str]]:
        """Make each pair anew; name → (errno, sentence) of those that failed."""
        request = {"op": "make", "pairs": [[p.name, p.uid_base] for p in pairs]}
        return {n: (int(e[0]), str(e[1])) for n, e in self._ask(request, 30 + 0.1 * len(pairs))["errors"].items()}

    def drop(self, pair_names: Sequence[str]) -> dict[str, tuple[int, str]]:
        """Drop each pair; name → (errno, sentence) of those that failed."""
        answer = self._ask({"op": "drop", "names": list(pair_names)}, 30 + 0.1 * len(pair_names))
        return {n: (int(e[0]), str(e[1])) for n, e in answer["errors"].items()}

    def probe(self, pair_names: Sequence[str]) -> dict[str, int | None]:
        """uid base of each pair as its user namespace itself says it."""
        answer: dict[str, int | None] = self._ask({"op": "probe", "names": list(pair_names)}, 30)["uid_base"]
        return answer

    def sysctl(self, name: str, items: Sequence[tuple[str, str]]) -> dict[str, tuple[int, str]]:
        """Write sysctls ``net/…`` in the pair's net namespace; path → (errno, sentence) of those that failed."""
        failed: dict[str, tuple[int, str]] = {}
        for start in range(0, len(items), 256):
            some = [list(item) for item in items[start : start + 256]]
            answer = self._ask({"op": "sysctl", "name": name, "items": some}, 15)
            failed |= {p: (int(e[0]), str(e[1])) for p, e in answer["errors"].items()}
        return failed

    def close(self) -> None:
        """Afterwards the helper is gone; the pairs stay."""
        self._child.close()


def _share_netns_dir(directory: pathlib.Path) -> None:
    """Make the usual ``/run/netns`` a shared mount, as the first ``ip netns add`` would.

    Were it done later by ``ip``, over our mounts, each of ours would be there twice, one hidden below. Done as
    iproute2 does it (ip/ipnetns.c, create_netns_dir): under the same lock, and bound only where "make shared" says that
    it is no mount yet. A bind on top of a bind, in one peer group, doubles every mount below it each time.
    """
    if directory.resolve() != pathlib.Path("/run/netns"):
        return
    libc = ctypes.CDLL(None, use_errno=True)
    path = os.fsencode(directory)

    def mount(source: bytes, flags: int) -> int:
        return 0 if libc.mount(source, path, b"none", ctypes.c_ulong(flags), None) == 0 else ctypes.get_errno()

    lock = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        error = mount(b"", _MS_SHARED_REC)
        if error == errno.EINVAL:
            error = mount(path, _MS_BIND_REC) or mount(b"", _MS_SHARED_REC)
        if error:
            raise SubstrateError(str(directory), "mount", error)
    finally:
        os.close(lock)


class PairDriver:
    """Makes, drops and reads :class:`NamespacePair`."""

    kind = NamespacePair.kind

    def __init__(self, settings: Settings, helper: PairHelper, cgroups: Cgroups | None = None) -> None:
        self._settings = settings
        self._helper = helper
        self._cgroups = cgroups or Cgroups()

    def read(self) -> list[NamespacePair]:
        """All pairs of this instance. A half made one has ``uid_base`` :data:`INCOMPLETE`."""
        found = []
        unsure = []
        for name in self._names():
            state = self._inspect(name)
            if isinstance(state, int):
                found.append(NamespacePair(name, state))
            elif state == "unknown":
                unsure.append(name)
        if unsure:
            for name, base in self._helper.probe(unsure).items():
                found.append(NamespacePair(name, INCOMPLETE if base is None else base))
        return sorted(found, key=lambda pair: pair.name)

    def _names(self) -> list[str]:
        seen: set[str] = set()
        for directory in (self._helper.user_dir, self._helper.netns_dir):
            with contextlib.suppress(FileNotFoundError):
                seen.update(os.listdir(directory))
        return sorted(n for n in seen if names.slice_id_of(self._settings.instance, n) is not None)

    def _inspect(self, name: str) -> int | str:
        """The pair's uid base, INCOMPLETE, ``"unknown"`` (ask the kernel) or ``"foreign"``."""
        user_file = self._helper.user_dir / name
        user = _namespace(user_file)
        net = _namespace(self._helper.netns_dir / name)
        if net is not None and net[0] != CLONE_NEWNET:
            return "foreign"
        if user is None or net is None:
            # A bound net namespace without its user namespace was never ours: the helper binds that one first.
            return INCOMPLETE if net is None or user_file.exists() else "foreign"
        if user[0] != CLONE_NEWUSER or net[2] != user[1]:
            return INCOMPLETE
        try:
            base, user_inode, net_inode = (int(w) for w in (self._helper.user_dir / f"{name}.base").read_text().split())
        except (OSError, ValueError):
            return "unknown"
        return base if (user_inode, net_inode) == (user[1], net[1]) else "unknown"

    def ensure(self, wanted: Sequence[NamespacePair], actual: Mapping[Key, NamespacePair]) -> None:
        """Afterwards each pair exists; a pair with another uid range is made anew, unless processes live in it."""
        make = [pair for pair in wanted if self._inspect(pair.name) != pair.uid_base]
        for pair in make:
            if names.slice_id_of(self._settings.instance, pair.name) is None:
                raise NotOurs(f"{pair.title}: not a name of instance {self._settings.instance}")
            if self._inspect(pair.name) == "foreign":
                raise NotOurs(f"net namespace {pair.name} exists and was not made by us")
        unknown = [pair for pair in make if self._inspect(pair.name) == "unknown"]
        if unknown:
            bases = self._helper.probe([pair.name for pair in unknown])
            make = [pair for pair in make if bases.get(pair.name) != pair.uid_base]
        for pair in make:
            if self._cgroups.populated(pair.name):
                raise SubstrateError(pair.title, "create", errno.EBUSY, "its sliver runs with another uid range")
        failed = self._helper.make(make) if make else {}
        raise_first([SubstrateError(f"namespaces {n}", "create", *why) for n, why in failed.items()])

    def absent(self, objects: Sequence[NamespacePair]) -> None:
        """Afterwards none of the pairs is kept. Devices inside go with them, a moment later."""
        drop = [
            pair.name
            for pair in objects
            if names.slice_id_of(self._settings.instance, pair.name) is not None
            and self._inspect(pair.name) != "foreign"
        ]
        failed = self._helper.drop(drop) if drop else {}
        raise_all("dropping namespaces", [SubstrateError(f"namespaces {n}", "delete", *w) for n, w in failed.items()])


def _namespace(path: pathlib.Path) -> tuple[int, int, int] | None:
    """(type, inode, inode of the owning user namespace) of what is bound at ``path``; None if that is no namespace.

    The owner's inode is 0 where we may not see it.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return None
    try:
        kind = fcntl.ioctl(fd, NS_GET_NSTYPE)
        inode = os.fstat(fd).st_ino
        try:
            owner = fcntl.ioctl(fd, NS_GET_USERNS)
        except PermissionError:
            return kind, inode, 0
        try:
            return kind, inode, os.fstat(owner).st_ino
        finally:
            os.close(owner)
    except OSError:
        return None
    finally:
        os.close(fd)
