"""Kernel tests bring their own world and prove that they left nothing of it.

* ``node_netns``: a throw-away netns in the part of a node's root context, named with our pid. A test that asks for it
  **runs inside it** (in a thread that did setns); fixtures run outside and use ``node_netns.run(function)``.
* ``netlink``: a :class:`Netlink` of that netns.
* ``settings``: where things live, all below the test's own directory.
* ``make_pairs(*names)``: userns + netns pairs bound below ``settings.netns_dir``, owned as those of slivers are.
* ``sliver(name, function)``: run ``function`` in the netns of such a pair.
* ``wait_for(predicate, sentence)``: the predicate's first true value; fails with the last one seen.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import itertools
import os
import pathlib
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from nodemanager_trellis.substrate.netlink import Netlink
from nodemanager_trellis.substrate.netns import run_in
from nodemanager_trellis.substrate.settings import Settings

GROUP = 32273
NETNS_DIR = pathlib.Path("/run/netns")
_serial = itertools.count(1)
_libc = ctypes.CDLL(None, use_errno=True)

_MAKE_PAIRS = """
import ctypes, os, sys
libc = ctypes.CDLL(None, use_errno=True)
def check(result):
    if result: raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
def bind(source, target):
    os.close(os.open(target, os.O_CREAT | os.O_EXCL, 0o444))
    check(libc.mount(source.encode(), target.encode(), None, ctypes.c_ulong(4096), None))
for number, target in enumerate(sys.argv[1:]):
    r1, w1 = os.pipe(); r2, w2 = os.pipe()
    pid = os.fork()
    if pid == 0:
        check(libc.unshare(0x10000000)); os.write(w1, b"u"); os.read(r2, 1)
        check(libc.unshare(0x40000000)); os.write(w1, b"n"); os.read(r2, 1)
        os._exit(0)
    assert os.read(r1, 1)
    for f in ("uid_map", "gid_map"):
        open(f"/proc/{pid}/{f}", "w").write(f"0 {1000000 + number * 65536} 65536")
    os.write(w2, b"m"); assert os.read(r1, 1)
    bind(f"/proc/{pid}/ns/net", target)
    bind(f"/proc/{pid}/ns/user", target + ".user")
    os.write(w2, b"x"); os.waitpid(pid, 0)
    for fd in (r1, w1, r2, w2): os.close(fd)
"""


class NodeNetns:
    """A net namespace of the test's own."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.path = NETNS_DIR / name

    def run(self, function: Callable[..., Any], *args: Any) -> Any:
        """``function(*args)`` inside."""
        return run_in(self.path, lambda: function(*args))


def _unmount(path: pathlib.Path) -> None:
    _libc.umount2(os.fsencode(path), 2)
    with contextlib.suppress(FileNotFoundError):
        path.unlink()


def _descriptors() -> dict[str, str]:
    found = {}
    for fd in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            found[fd] = os.readlink(f"/proc/self/fd/{fd}")
    return found


def _mounts() -> set[str]:
    return {line.split()[4] for line in pathlib.Path("/proc/self/mountinfo").read_text().splitlines()}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Everything here needs root; without it, say so."""
    here = pathlib.Path(__file__).parent
    for item in items:
        if here not in item.path.parents:
            continue
        item.add_marker(pytest.mark.kernel)
        if os.geteuid() != 0:
            item.add_marker(pytest.mark.skip(reason="needs root: makes network namespaces"))


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    """A test that has a node_netns runs inside it."""
    node = pyfuncitem.funcargs.get("node_netns")
    if not isinstance(node, NodeNetns):
        return None
    arguments = {name: pyfuncitem.funcargs[name] for name in pyfuncitem._fixtureinfo.argnames}
    node.run(lambda: pyfuncitem.obj(**arguments))
    return True


@pytest.fixture
def nothing_left(tmp_path: pathlib.Path) -> Iterator[None]:
    """No open file, device of our group here, netns with our pid or mount below our directory is left."""
    gc.collect()  # what earlier tests dropped without closing is not ours to notice
    before = _descriptors()
    yield
    mine = f"-{os.getpid()}-"
    assert [n for n in os.listdir(NETNS_DIR) if mine in n] == [], "net namespaces left"
    assert {m for m in _mounts() if mine in m or m.startswith(f"{tmp_path}/")} == set(), "mounts left"
    assert dict(_descriptors().items() - before.items()) == {}, "open files left"
    with Netlink(GROUP) as here:
        assert here.links(GROUP) == [], "devices left"


@pytest.fixture
def node_netns(nothing_left: None) -> Iterator[NodeNetns]:
    """A node's root context, thrown away afterwards."""
    node = NodeNetns(f"tnm-{os.getpid()}-{next(_serial)}")
    subprocess.run(["ip", "netns", "add", node.name], check=True)
    subprocess.run(["ip", "-n", node.name, "link", "set", "lo", "up"], check=True)
    yield node
    subprocess.run(["ip", "netns", "delete", node.name], check=True)


@pytest.fixture
def netlink(node_netns: NodeNetns) -> Iterator[Netlink]:
    """Netlink of the node's netns."""
    netlink = node_netns.run(Netlink, GROUP)
    yield netlink
    netlink.close()


@pytest.fixture
def settings(tmp_path: pathlib.Path) -> Settings:
    """Everything below the test's own directory."""
    found = Settings("trellis", tmp_path / "state", tmp_path / "run", netns_dir=tmp_path / "netns", link_group=GROUP)
    found.netns_dir.mkdir()
    return found


@pytest.fixture
def make_pairs(node_netns: NodeNetns, settings: Settings) -> Iterator[Callable[..., None]]:
    """Makes pairs by name; a process of its own, as forking from a threaded one is not safe."""
    made: list[pathlib.Path] = []

    def make(*names: str) -> None:
        paths = [settings.netns_dir / name for name in names]
        for path in paths:
            made.extend((path, pathlib.Path(f"{path}.user")))
        subprocess.run([sys.executable, "-I", "-S", "-c", _MAKE_PAIRS, *map(str, paths)], check=True)

    yield make
    for path in made:
        _unmount(path)


@pytest.fixture
def drop_pair(settings: Settings) -> Callable[[str], None]:
    """Takes a pair away; the netns lives on while somebody is in it."""

    def drop(name: str) -> None:
        for path in (settings.netns_dir / name, pathlib.Path(f"{settings.netns_dir / name}.user")):
            _unmount(path)

    return drop


@pytest.fixture
def sliver(settings: Settings) -> Callable[[str, Callable[[Netlink], Any]], Any]:
    """``sliver(pair, function)``: ``function(netlink)`` inside the pair's netns."""

    def inside(function: Callable[[Netlink], Any]) -> Any:
        with Netlink(GROUP) as netlink:
            return function(netlink)

    return lambda pair, function: run_in(settings.netns_dir / pair, lambda: inside(function))


@pytest.fixture
def wait_for() -> Callable[..., Any]:
    """``wait_for(predicate, sentence)``: the first true value of ``predicate()``."""

    def wait(predicate: Callable[[], Any], sentence: str, deadline_s: float = 20) -> Any:
        end = time.monotonic() + deadline_s
        while True:
            value = predicate()
            if value:
                return value
            if time.monotonic() > end:
                pytest.fail(f"not within {deadline_s} s: {sentence}; last seen {value!r}")
            time.sleep(0.005)

    return wait
