"""Running a program inside a sliver: bounded in time and output, clean, killed when its time is over."""

from __future__ import annotations

import os
import pathlib

import pytest
from container_world import World, wait_for

from nodemanager_trellis.errors import NotOurs, SubstrateError
from nodemanager_trellis.substrate.child import OUTPUT_LIMIT


def inside(world: World, name: str) -> list[str]:
    """Commands of all processes of the sliver, init and its sleep left out."""
    found = []
    for pid in world.host.cgroups.processes(name):
        try:
            found.append(pathlib.Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode())
        except OSError:
            continue
    return [c for c in found if c.strip() and not c.startswith("init") and "sleep infinity" not in c]


def test_attach_gives_status_output_and_input(world: World) -> None:
    """Exit status, both streams and what was sent to it."""
    name = world.sliver()
    done = world.sh(name, "cat; echo err >&2; exit 7", stdin=b"hello\n")
    assert (7, b"hello\n", b"err\n", False) == (done.returncode, done.stdout, done.stderr, done.timed_out)
    big = os.urandom(3_000_000)
    assert b"3000000\n" == world.sh(name, "wc -c", stdin=big).stdout
    assert 0 == world.sh(name, "exec 0<&-; true", stdin=big).returncode


def test_attach_has_a_clean_environment_and_no_files_of_ours(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing of the manager's environment or open files gets inside."""
    monkeypatch.setenv("SECRET", "x")
    name = world.sliver()
    done = world.sh(name, "env; ls -l /proc/self/fd")
    assert b"SECRET" not in done.stdout
    assert b"container=lxc" in done.stdout and b"HOME=/root" in done.stdout
    assert 5 >= done.stdout.count(b" -> ")


def test_attach_kills_what_it_started_when_time_is_over(world: World) -> None:
    """After a time-out neither the program nor its children run on; the sliver does."""
    name = world.sliver()
    done = world.sh(name, "echo start; sleep 1000 & sleep 1001", timeout_s=0.5)
    assert done.timed_out and b"start\n" == done.stdout
    wait_for(lambda: not inside(world, name), "they are gone")
    assert 0 == world.sh(name, "true").returncode


def test_attach_returns_though_a_daemon_keeps_the_pipes(world: World) -> None:
    """A daemon that does not close its output holds nobody up, and lives."""
    name = world.sliver()
    done = world.sh(name, "setsid sleep 1000 & echo started", timeout_s=20)
    assert not done.timed_out and b"started\n" == done.stdout
    wait_for(lambda: ["sleep 1000"] == [c.strip() for c in inside(world, name)], "only the daemon is left")


def test_attach_keeps_at_most_a_mebibyte(world: World) -> None:
    """More output is read and thrown away."""
    name = world.sliver()
    done = world.sh(name, "head -c 5000000 /dev/zero; echo end >&2")
    assert (OUTPUT_LIMIT, True, b"end\n", 0) == (len(done.stdout), done.truncated, done.stderr, done.returncode)
    endless = world.sh(name, "cat /dev/zero", timeout_s=1)
    assert endless.timed_out and OUTPUT_LIMIT == len(endless.stdout)


def test_attach_needs_a_running_sliver_of_ours(world: World) -> None:
    """No sliver, no attach."""
    world.define(world.container())
    with pytest.raises(SubstrateError, match="does not run"):
        world.sh(world.name(5), "true")
    with pytest.raises(NotOurs):
        world.sh("somebody.5", "true")
