"""What tests with real slivers share: a manager's substrate, another manager, what either left on the machine."""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

from nodemanager_trellis.objects import Container, NamespacePair, Running, SliverFile
from nodemanager_trellis.substrate.child import CompletedRun
from nodemanager_trellis.substrate.lxc import drivers
from nodemanager_trellis.substrate.pairs import PairDriver, PairHelper
from nodemanager_trellis.substrate.settings import Settings

UID_BASE = 0x4000_0000
CGROUPS = pathlib.Path("/sys/fs/cgroup")


def wait_for(predicate: Callable[[], Any], sentence: str, timeout_s: float = 20) -> Any:
    """The first true value of ``predicate``."""
    deadline = time.monotonic() + timeout_s
    while not (value := predicate()):
        assert time.monotonic() < deadline, f"waited {timeout_s} s for: {sentence}; last seen: {value!r}"
        time.sleep(0.005)
    return value


class World:
    """One manager's substrate, and short ways to use it."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.helper = PairHelper(settings)
        self.pairs = PairDriver(settings, self.helper)
        self.host, self.containers, self.running, self.files = drivers(settings, self.helper)

    def close(self) -> None:
        self.host.close()
        self.helper.close()

    def name(self, slice_id: int) -> str:
        return f"{self.settings.instance}.{slice_id}"

    def pair(self, slice_id: int = 5) -> NamespacePair:
        return NamespacePair(self.name(slice_id), UID_BASE + slice_id * 65536)

    def container(self, slice_id: int = 5, **fields: Any) -> Container:
        return Container(self.name(slice_id), f"test_{slice_id}", UID_BASE + slice_id * 65536, **fields)

    def define(self, *containers: Container) -> None:
        pairs = [NamespacePair(c.name, c.uid_base) for c in containers]
        self.pairs.ensure(pairs, {})
        self.containers.ensure(containers, {})

    def sliver(self, slice_id: int = 5, **fields: Any) -> str:
        """A new running sliver's name."""
        container = self.container(slice_id, **fields)
        self.define(container)
        self.running.ensure([Running(container.name)], {})
        return container.name

    def sh(self, name: str, script: str, timeout_s: float = 30, stdin: bytes | None = None) -> CompletedRun:
        return self.host.attach(name, ["/bin/bash", "-c", script], stdin, timeout_s)

    def python(self, name: str, script: str, timeout_s: float = 30) -> CompletedRun:
        return self.host.attach(name, ["/usr/bin/python3", "-"], script.encode(), timeout_s)

    def init_pid(self, name: str) -> int:
        return self.host.worker.states([name])[name][1]

    def clear(self) -> None:
        """Take everything away."""
        self.running.absent(self.running.read())
        self.files.absent(self.files.read())
        self.containers.absent(self.containers.read())
        self.pairs.absent(self.pairs.read())


def traces(settings: Settings) -> dict[str, list[str]]:
    """Everything of an instance that exists anywhere on the machine."""
    top = settings.state_dir.parent
    mounts = [line.split()[4] for line in pathlib.Path("/proc/self/mountinfo").read_text().splitlines()]
    processes = []
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            with contextlib.suppress(OSError):
                command = (
                    pathlib.Path(f"/proc/{entry}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                )
                if str(top) in command or f" {settings.instance}." in command:
                    processes.append(f"{entry} {command}")
    files = [str(p) for d in (settings.slivers_dir, settings.netns_dir, settings.run_dir) for p in d.glob("**/*")]
    return {
        "mounts": [m for m in mounts if m.startswith(f"{top}/")],
        "cgroups": [str(p) for p in CGROUPS.glob(f"*/lxc.*.{settings.instance}.*")],
        "locks": [str(p) for p in pathlib.Path(f"/run/lxc/lock{settings.slivers_dir}").glob(".*")],
        "processes": processes,
        "files": [p for p in files if not os.path.isdir(p)],
        "directories": [p.name for p in settings.slivers_dir.glob("*")],
    }


def open_files() -> dict[str, str]:
    found = {}
    for fd in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            found[fd] = os.readlink(f"/proc/self/fd/{fd}")
    return found


class OtherManager:
    """A second process that uses the same settings, perhaps elsewhere; runs ``script`` with ``w`` as its World."""

    def __init__(self, settings: Settings, script: str, before: Sequence[str] = ()) -> None:
        fields = {n: str(getattr(settings, n)) for n in ("instance", "state_dir", "run_dir", "netns_dir")}
        program = (
            "import json, pathlib, sys\n"
            f"sys.path[:0] = {[str(pathlib.Path(__file__).parent), str(pathlib.Path(__file__).parents[2])]!r}\n"
            "from container_world import *\n"
            "from nodemanager_trellis.errors import *\n"
            f"fields = json.loads({json.dumps(fields)!r})\n"
            "settings = Settings(fields.pop('instance'), **{k: pathlib.Path(v) for k, v in fields.items()})\n"
            "w = World(settings)\n"
            f"{script}\n"
        )
        self.process = subprocess.Popen(
            [*before, sys.executable, "-u", "-c", program], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )

    def output(self) -> str:
        """All that it prints until its end."""
        output, _ = self.process.communicate(timeout=60)
        return output


__all__ = [
    "Container",
    "NamespacePair",
    "OtherManager",
    "PairHelper",
    "Running",
    "Settings",
    "SliverFile",
    "World",
    "traces",
    "wait_for",
]
