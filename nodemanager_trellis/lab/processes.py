"""Processes that the lab started: known again by pid *and* start time, signalled only through a pidfd.

A pid alone may belong to somebody else by now; the pair never does.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import pathlib
import select
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence


@dataclasses.dataclass(frozen=True, slots=True)
class Process:
    """One process of ours."""

    pid: int
    start: int
    """clock ticks between boot and its start (field 22 of ``/proc/PID/stat``, proc(5))"""


def _stat(pid: int) -> tuple[str, int] | None:
    """State letter and start time of a process, None when there is none."""
    try:
        text = pathlib.Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    fields = text.rpartition(")")[2].split()
    return fields[0], int(fields[19])


def identify(pid: int) -> Process | None:
    """The running process of that pid."""
    stat = _stat(pid)
    return None if stat is None or stat[0] in "ZX" else Process(pid, stat[1])


def alive(process: Process) -> bool:
    """Whether it still runs (a zombie does not)."""
    return identify(process.pid) == process


def command_line(pid: int) -> str:
    """Its words, joined by blanks; '' when it is gone or a kernel thread."""
    try:
        return pathlib.Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
    except OSError:
        return ""


def start(command: Sequence[str], log: pathlib.Path, environment: Mapping[str, str] | None = None) -> Process:
    """Start ``command`` in a session of its own, its output appended to ``log``; it outlives us.

    :raises OSError: it cannot be started
    """
    with open(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600), "ab") as output:
        child = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env=None if environment is None else dict(environment),
            cwd="/",
        )
    stat = _stat(child.pid)
    # We have not waited for the child, so its entry (perhaps a zombie's) is still there.
    assert stat is not None
    child.returncode = 0  # it is not Popen's to wait for: reaped in end(), or by init once we are gone
    return Process(child.pid, stat[1])


def _open(process: Process) -> int | None:
    try:
        fd = os.pidfd_open(process.pid)
    except ProcessLookupError:
        return None
    stat = _stat(process.pid)
    if stat is None or stat[1] != process.start:  # compared after the open: now the fd cannot mean another one
        os.close(fd)
        return None
    return fd


def end(running: Sequence[Process], signum: signal.Signals = signal.SIGTERM, timeout_s: float = 10.0) -> list[Process]:
    """Send ``signum`` to all, wait until they are gone, SIGKILL those that are not.

    :returns: those that had to be killed (none when ``signum`` is SIGKILL)
    """
    fds: dict[int, Process] = {}
    for process in running:
        fd = _open(process)
        if fd is not None:
            fds[fd] = process
    try:
        _send(fds, signum)
        late = _wait(fds, timeout_s)
        _send(late, signal.SIGKILL)
        _wait(late, 10.0)
        return [] if signum == signal.SIGKILL else [fds[fd] for fd in late]
    finally:
        for fd in fds:
            with contextlib.suppress(ChildProcessError):
                os.waitid(os.P_PIDFD, fd, os.WEXITED | os.WNOHANG)
            os.close(fd)


def _send(fds: Sequence[int] | dict[int, Process], signum: signal.Signals) -> None:
    for fd in fds:
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(fd, signum)


def _wait(fds: Sequence[int] | dict[int, Process], timeout_s: float) -> list[int]:
    """Wait until the processes behind ``fds`` are gone; those that are not, after ``timeout_s``."""
    poll = select.poll()
    left = set(fds)
    for fd in left:
        poll.register(fd, select.POLLIN)
    deadline = time.monotonic() + timeout_s
    while left and (remaining := deadline - time.monotonic()) > 0:
        for fd, _ in poll.poll(remaining * 1000):
            poll.unregister(fd)
            left.discard(fd)
    return sorted(left)
