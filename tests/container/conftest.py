"""Tests with real slivers. Each brings its own world, under an instance name of its own, and proves it left nothing.

* ``world``: settings, helper, drivers; ``world.sliver(5)`` makes and starts one, ``world.sh(name, script)`` runs in it.
* ``shared``: one world and its one running sliver, for tests that only look.
"""

from __future__ import annotations

import importlib.util
import itertools
import os
import pathlib
import shutil
import tempfile
from collections.abc import Iterator

import pytest
from container_world import Settings, World, open_files, traces

_serial = itertools.count(1)


def _missing() -> str:
    if os.geteuid() != 0:
        return "needs root: makes containers"
    if not shutil.which("lxc-start") or not importlib.util.find_spec("lxc"):
        return "needs LXC and python3-lxc"
    if not pathlib.Path("/proc/self/ns/user").exists():
        return "needs user namespaces"
    return ""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Everything here needs root and LXC; without them, say so."""
    here = pathlib.Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            item.add_marker(pytest.mark.container)
            if _missing():
                item.add_marker(pytest.mark.skip(reason=_missing()))


def _new_settings() -> Settings:
    """A place and a name of its own. Not pytest's tmp_path, through which a sliver's root could not pass."""
    top = pathlib.Path(tempfile.mkdtemp(prefix="trellis-test-"))
    top.chmod(0o755)
    instance = f"t{os.getpid()}-{next(_serial)}"
    return Settings(instance, state_dir=top / "state", run_dir=top / "run", netns_dir=top / "netns")


def _forget(settings: Settings) -> None:
    shutil.rmtree(settings.state_dir.parent)
    locks = pathlib.Path(f"/run/lxc/lock{settings.slivers_dir}")
    while locks.name != "lock" and locks.is_dir() and not any(locks.iterdir()):
        locks.rmdir()  # LXC's own, one a path; no container of this path is left
        locks = locks.parent


def _ended(world: World) -> None:
    try:
        world.clear()
    finally:
        world.close()
    assert {kind: [] for kind in traces(world.settings)} == traces(world.settings)


@pytest.fixture
def settings() -> Iterator[Settings]:
    """Where things live."""
    found = _new_settings()
    yield found
    _forget(found)


@pytest.fixture
def world(settings: Settings) -> Iterator[World]:
    """A manager's substrate; afterwards nothing of it is left."""
    before = open_files()
    world = World(settings)
    yield world
    _ended(world)
    assert before == open_files()


@pytest.fixture(scope="module")
def shared() -> Iterator[tuple[World, str]]:
    """A world and its one running sliver."""
    world = World(_new_settings())
    try:
        yield world, world.sliver()
    finally:
        _ended(world)
    _forget(world.settings)
