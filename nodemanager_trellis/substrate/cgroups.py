"""Cgroups of slivers, v1 and v2: who really runs, limits, leftovers.

LXC puts a container into ``lxc.payload.NAME`` and its monitor into ``lxc.monitor.NAME`` in every hierarchy; a name that
is taken by a stale directory gets the suffix ``-1``. Unlike LXC's command socket, cgroups are the same in every net
namespace.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import pathlib
import re
import time

from nodemanager_trellis.errors import SubstrateError
from nodemanager_trellis.objects import Container
from nodemanager_trellis.substrate.child import kill_process

PERIOD_US = 100_000
"""Length of a CPU quota's period (the kernel's default, Documentation/scheduler/sched-bwc)."""

_SCOPE = re.compile(r"lxc\.(payload|monitor)\.(.+?)(?:-[0-9]+)?", re.ASCII)


@dataclasses.dataclass(frozen=True, slots=True)
class Hierarchy:
    """One cgroup hierarchy, at the directory below which LXC makes its own."""

    path: pathlib.Path
    controllers: frozenset[str]
    unified: bool


@dataclasses.dataclass(frozen=True, slots=True)
class Limit:
    """One value of one controller."""

    unified: bool
    controller: str
    file: str
    """name of the cgroup file, which is the key of LXC too: ``memory.max``"""
    value: str


def _unescape(word: str) -> str:
    return re.sub(r"\\([0-7]{3})", lambda m: chr(int(m[1], 8)), word)


def find_hierarchies(proc: pathlib.Path = pathlib.Path("/proc")) -> tuple[Hierarchy, ...]:
    """The mounted hierarchies. LXC, run by root, works below the cgroup of pid 1, so do we."""
    base: dict[str, str] = {}
    for line in (proc / "1/cgroup").read_text().splitlines():
        _number, controllers, path = line.split(":", 2)
        for controller in controllers.split(","):
            base[controller] = path.removesuffix("/init.scope")
    found: dict[pathlib.Path, Hierarchy] = {}
    for line in (proc / "self/mountinfo").read_text().splitlines():
        left, _, right = line.partition(" - ")
        filesystem, _device, options = right.split(" ", 2)
        if filesystem not in ("cgroup", "cgroup2"):
            continue
        mount = pathlib.Path(_unescape(left.split(" ")[4]))
        unified = filesystem == "cgroup2"
        names = frozenset([""] if unified else options.split(","))
        path = next((base[n] for n in names if n in base), "/")
        root = mount / path.lstrip("/")
        root = root if root.is_dir() else mount
        if unified:
            try:
                names = frozenset((root / "cgroup.controllers").read_text().split())
            except OSError:
                names = frozenset()
        found.setdefault(root, Hierarchy(root, names, unified))
    return tuple(found.values())


class Cgroups:
    """What cgroups say about containers. Cheap to make; holds no state but where the hierarchies are."""

    def __init__(self, hierarchies: tuple[Hierarchy, ...] | None = None) -> None:
        self._hierarchies = find_hierarchies() if hierarchies is None else hierarchies

    def _scopes(self, kind: str, name: str) -> list[tuple[Hierarchy, pathlib.Path]]:
        """Cgroups ``lxc.KIND.NAME`` and ``lxc.KIND.NAME-N`` in all hierarchies."""
        prefix = f"lxc.{kind}.{name}"
        found = []
        for hierarchy in self._hierarchies:
            with contextlib.suppress(FileNotFoundError):
                for entry in os.listdir(hierarchy.path):
                    if entry.startswith(prefix) and re.fullmatch(r"(-[0-9]+)?", entry[len(prefix) :], re.ASCII):
                        found.append((hierarchy, hierarchy.path / entry))
        return found

    def processes(self, name: str, kind: str = "payload") -> set[int]:
        """Processes inside container ``name``, or, of kind ``monitor``, the one that watches over it."""
        return {pid for _h, path in self._scopes(kind, name) for pid in _processes(path)}

    def populated(self, name: str) -> bool:
        """Whether anything runs inside container ``name``, wherever it was started."""
        return any(_processes(path) for _h, path in self._scopes("payload", name))

    def running(self) -> set[str]:
        """Names of all containers that have processes."""
        found: set[str] = set()
        for hierarchy in self._hierarchies:
            with contextlib.suppress(FileNotFoundError):
                for entry in os.listdir(hierarchy.path):
                    match = _SCOPE.fullmatch(entry)
                    if match and match[1] == "payload" and match[2] not in found and _processes(hierarchy.path / entry):
                        found.add(match[2])
        return found

    def leftovers(self) -> set[str]:
        """Names of all containers of which any cgroup exists, a running one's included."""
        found: set[str] = set()
        for hierarchy in self._hierarchies:
            with contextlib.suppress(FileNotFoundError):
                found.update(m[2] for m in map(_SCOPE.fullmatch, os.listdir(hierarchy.path)) if m)
        return found

    def sweep(self, name: str, timeout_s: float = 2.0) -> bool:
        """Remove the stale cgroups of container ``name``; whether none is left.

        Only rmdir, which refuses one that has processes. The monitor ends a moment after the container, so it is tried
        until ``timeout_s`` have passed.
        """
        deadline = time.monotonic() + timeout_s
        pause_s = 0.0005
        while True:
            scopes = self._scopes("payload", name) + self._scopes("monitor", name)
            if not [path for _hierarchy, path in scopes if not _remove(path)]:
                return True
            if time.monotonic() > deadline:
                return False
            time.sleep(pause_s)
            pause_s = min(pause_s * 2, 0.05)

    def kill(self, name: str, kind: str = "payload", timeout_s: float = 5.0) -> bool:
        """SIGKILL all processes of container ``name``, each through its pidfd; whether none is left."""
        deadline = time.monotonic() + timeout_s
        pause_s = 0.001
        while True:
            pids = self.processes(name, kind)
            if not pids:
                return True
            for pid in sorted(pids):
                kill_process(pid, still=lambda pid: pid in self.processes(name, kind))
            if time.monotonic() > deadline:
                return not self.processes(name, kind)
            time.sleep(pause_s)
            pause_s = min(pause_s * 2, 0.05)

    def limits(self, container: Container) -> list[Limit]:
        """The container's limits for the controllers that this machine has.

        A v2 key whose controller is absent would make LXC's start fail.
        """
        quota_us = container.cpu_quota_pct * PERIOD_US // 100
        weight = min(max(container.cpu_shares * 100 // 1024, 1), 10_000)
        memory = str(container.memory_bytes) if container.memory_bytes else ""
        wanted = [
            Limit(False, "cpu", "cpu.shares", str(max(container.cpu_shares, 2))),
            Limit(False, "cpu", "cpu.cfs_period_us", str(PERIOD_US)),
            Limit(False, "cpu", "cpu.cfs_quota_us", str(quota_us or -1)),
            Limit(False, "memory", "memory.limit_in_bytes", memory or "-1"),
            Limit(False, "pids", "pids.max", str(container.pids_max)),
            Limit(True, "cpu", "cpu.weight", str(weight)),
            Limit(True, "cpu", "cpu.max", f"{quota_us or 'max'} {PERIOD_US}"),
            Limit(True, "memory", "memory.max", memory or "max"),
            Limit(True, "pids", "pids.max", str(container.pids_max)),
        ]
        have = {(h.unified, c) for h in self._hierarchies for c in h.controllers}
        return [limit for limit in wanted if (limit.unified, limit.controller) in have]

    def apply(self, container: Container) -> None:
        """Afterwards the running container has these limits; nothing happens when it does not run.

        :raises SubstrateError: the kernel refused one, such as less memory than it cannot give back
        """
        scopes = self._scopes("payload", container.name)
        for limit in self.limits(container):
            for hierarchy, path in scopes:
                if hierarchy.unified == limit.unified and limit.controller in hierarchy.controllers:
                    try:
                        (path / limit.file).write_text(limit.value)
                    except FileNotFoundError:
                        continue  # it stopped just now, or the controller is not delegated that far down
                    except OSError as err:
                        raise SubstrateError(container.title, f"set {limit.file} of", err.errno or 0) from err


def _processes(path: pathlib.Path) -> list[int]:
    """Processes of a cgroup and of those below it."""
    found: list[int] = []
    for directory, _subdirectories, _files in os.walk(path):
        with contextlib.suppress(OSError), open(os.path.join(directory, "cgroup.procs"), "rb") as file:
            found.extend(int(word) for word in file.read().split())
    return found


def _remove(path: pathlib.Path) -> bool:
    """rmdir a cgroup with those below it; False when it still has processes."""
    for directory, _subdirectories, _files in os.walk(path, topdown=False):
        try:
            os.rmdir(directory)
        except FileNotFoundError:
            continue
        except OSError:
            return False
    return True
