"""Child processes: bounded, replaced, never left."""

from __future__ import annotations

import errno
import os
import select
import signal
import sys

import pytest

from nodemanager_trellis.errors import SubstrateError
from nodemanager_trellis.substrate import child

ECHO = """
import json, os, signal, sys
for line in sys.stdin:
    message = json.loads(line)
    if message["op"] == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    if message["op"] == "hang":
        signal.pause()
    if message["op"] == "babble":
        print("not json", flush=True)
    print(json.dumps({"pid": os.getpid(), "size": len(line)}), flush=True)
"""


@pytest.fixture
def echo() -> object:
    made = child.JsonChild([sys.executable, "-c", ECHO], "echo")
    yield made
    made.close()


def test_run_gives_status_output_and_input() -> None:
    """Status and both streams; a signal is a negative status."""
    done = child.run(["sh", "-c", "cat; echo no >&2; exit 3"], stdin=b"x" * 300_000, timeout_s=10)
    assert (3, 300_000, b"no\n") == (done.returncode, len(done.stdout), done.stderr)
    assert -9 == child.run(["sh", "-c", "kill -9 $$"], timeout_s=10).returncode
    assert b"" == child.run(["cat"], timeout_s=10).stdout


def test_run_inherits_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither environment nor open files."""
    monkeypatch.setenv("SECRET", "1")
    done = child.run(["sh", "-c", "env; ls /proc/self/fd"], timeout_s=10)
    assert b"SECRET" not in done.stdout
    assert 4 == len([w for w in done.stdout.split() if w.isdigit()])


def test_run_kills_the_whole_group_when_time_is_over() -> None:
    """Neither the command nor what it started is left."""
    done = child.run(["sh", "-c", "echo $$; sleep 1000 & sleep 1000"], timeout_s=0.3)
    assert done.timed_out and -9 == done.returncode
    for pid in child.processes_of_group(int(done.stdout)):  # what is still listed is dead, and pid 1's to reap
        fd = os.pidfd_open(pid)
        assert select.select([fd], [], [], 10)[0]
        os.close(fd)


def test_run_of_nothing_is_an_error() -> None:
    """No such program."""
    with pytest.raises(SubstrateError) as caught:
        child.run(["/no/such"], timeout_s=1)
    assert errno.ENOENT == caught.value.errno


@pytest.mark.parametrize("pid", [-1, 0, 1])
def test_kill_never_means_everybody(pid: int) -> None:
    """What LXC says of a stopped container is not a process."""
    assert not child.kill_process(pid)
    child.kill_group(pid)


def test_child_answers(echo: child.JsonChild) -> None:
    """Line by line, long ones too."""
    assert echo.pid == echo.request({"op": "x"}, 10)["pid"]
    assert echo.request({"op": "x", "data": "y" * 500_000}, 10)["size"] > 500_000


def test_child_that_was_killed_is_replaced(echo: child.JsonChild) -> None:
    """The caller does not notice."""
    before = echo.pid
    os.kill(before, signal.SIGKILL)
    assert before != echo.request({"op": "x"}, 10)["pid"]


@pytest.mark.parametrize("operation", ["die", "babble"])
def test_child_that_dies_of_a_request_costs_an_error(echo: child.JsonChild, operation: str) -> None:
    """Twice is enough; the next request works."""
    with pytest.raises(SubstrateError):
        echo.request({"op": operation}, 10)
    assert echo.request({"op": "x"}, 10)["pid"]


def test_child_that_hangs_is_killed(echo: child.JsonChild) -> None:
    """The deadline is ours; no answer that comes late is taken for the next one."""
    before = echo.pid
    with pytest.raises(SubstrateError) as caught:
        echo.request({"op": "hang"}, 0.2)
    assert errno.ETIMEDOUT == caught.value.errno
    assert not os.path.exists(f"/proc/{before}")
    assert echo.request({"op": "x"}, 10)["pid"] not in (0, before)


def test_child_is_gone_after_close(echo: child.JsonChild) -> None:
    """No process, no zombie."""
    pid = echo.pid
    echo.close()
    assert 0 == echo.pid and not os.path.exists(f"/proc/{pid}")
    echo.close()
