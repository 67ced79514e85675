"""Processes that we start: bounded in time and output, killed only through a pidfd, fed by pipes.

* :class:`JsonChild` — a long-lived child that answers one JSON line per JSON line; restarted when it died or hangs.
* :func:`run` — one command, in a process group of its own.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import select
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

from nodemanager_trellis.errors import SubstrateError
from nodemanager_trellis.hooks import CompletedRun

ENVIRONMENT = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C.UTF-8"}
"""All that our children inherit: nothing a daemon's environment holds is theirs."""

OUTPUT_LIMIT = 1 << 20
"""Bytes kept of each output stream of a command; the rest is read and thrown away."""

_CHUNK = 1 << 16
_REAP_S = 5.0


def kill_process(pid: int, still: Callable[[int], bool] | None = None) -> bool:
    """SIGKILL one process through a pidfd; False when it is gone.

    ``pid`` ≤ 1 is refused: LXC says -1 for a stopped container, which kill(2) understands as "everybody".

    :param still: asked once the pidfd is open, whether ``pid`` is still the process meant
    """
    if pid <= 1:
        return False
    try:
        fd = os.pidfd_open(pid)
    except OSError:
        return False
    try:
        if still is not None and not still(pid):
            return False
        signal.pidfd_send_signal(fd, signal.SIGKILL)
    except OSError:
        return False
    finally:
        os.close(fd)
    return True


def processes_of_group(group: int) -> list[int]:
    """Processes whose process group is ``group``, those in inner pid namespaces too."""
    found = []
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            with contextlib.suppress(OSError):
                if os.getpgid(int(entry)) == group:
                    found.append(int(entry))
    return found


def kill_group(group: int) -> None:
    """SIGKILL all processes of a process group that one of our children leads, each through its pidfd."""
    if group > 1 and group != os.getpgrp():
        for pid in processes_of_group(group):
            kill_process(pid, still=lambda pid: os.getpgid(pid) == group)


def wait_exit(process: subprocess.Popen[bytes], timeout_s: float) -> bool:
    """Whether ``process`` ended within ``timeout_s``; wakes up at once (``Popen.wait`` would poll every 50 ms)."""
    if process.poll() is not None:
        return True
    fd = os.pidfd_open(process.pid)
    try:
        poll = select.poll()
        poll.register(fd, select.POLLIN)
        poll.poll(max(timeout_s, 0) * 1000)
    finally:
        os.close(fd)
    return process.poll() is not None


def run(
    argv: Sequence[str],
    *,
    stdin: bytes | None = None,
    timeout_s: float,
    pass_fds: Sequence[int] = (),
    environment: dict[str, str] | None = None,
) -> CompletedRun:
    """Run one command in a process group of its own, at most ``timeout_s``.

    Returns as soon as the command itself ends, even if something it started in the background still holds its pipes.

    :raises SubstrateError: it cannot be executed at all
    """
    try:
        process = subprocess.Popen(
            argv,
            stdin=subprocess.DEVNULL if stdin is None else subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=ENVIRONMENT if environment is None else environment,
            process_group=0,
            pass_fds=pass_fds,
        )
    except OSError as err:
        raise SubstrateError(argv[0], "run", err.errno or 0) from err
    return _converse(process, stdin or b"", time.monotonic() + timeout_s)


def _converse(process: subprocess.Popen[bytes], stdin: bytes, deadline: float) -> CompletedRun:
    """Feed and read ``process`` until it ends or the deadline passes; then it is dead and its pipes are closed."""
    assert process.stdout is not None and process.stderr is not None
    output: dict[int, bytearray] = {process.stdout.fileno(): bytearray(), process.stderr.fileno(): bytearray()}
    truncated = False
    timed_out = False
    poll = select.poll()
    pidfd = os.pidfd_open(process.pid)
    poll.register(pidfd, select.POLLIN)
    for fd in output:
        os.set_blocking(fd, False)
        poll.register(fd, select.POLLIN)
    unsent = memoryview(stdin)
    if process.stdin is not None:
        os.set_blocking(process.stdin.fileno(), False)
        poll.register(process.stdin.fileno(), select.POLLOUT)

    def read(fd: int) -> bool:
        """Read what is there now; False at the end of the stream."""
        nonlocal truncated
        while True:
            try:
                data = os.read(fd, _CHUNK)
            except BlockingIOError:
                return True
            if not data:
                return False
            room = OUTPUT_LIMIT - len(output[fd])
            truncated |= len(data) > room
            output[fd] += data[: max(room, 0)]
            if len(data) < _CHUNK or time.monotonic() > deadline:
                return True

    try:
        ended = False
        while not ended:
            left = deadline - time.monotonic()
            if left <= 0:
                timed_out = True
                kill_group(process.pid)
                break
            for fd, _event in poll.poll(left * 1000):
                if fd == pidfd:
                    ended = True
                elif fd in output:
                    if not read(fd):
                        poll.unregister(fd)
                elif process.stdin is not None:
                    try:
                        unsent = unsent[os.write(fd, unsent[:_CHUNK]) :] if unsent else unsent
                    except BlockingIOError:
                        continue
                    except BrokenPipeError:
                        unsent = unsent[:0]
                    if not unsent:
                        poll.unregister(fd)
                        process.stdin.close()
                        process.stdin = None
        if not wait_exit(process, _REAP_S):
            raise SubstrateError(str(process.args), "kill", errno.ETIMEDOUT)
        for fd in output:
            read(fd)
    finally:
        os.close(pidfd)
        for pipe in (process.stdin, process.stdout, process.stderr):
            if pipe is not None:
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()
    out, err = output.values()
    return CompletedRun(process.returncode, bytes(out), bytes(err), timed_out, truncated)


class JsonChild:
    """A child process that answers each line of JSON on its stdin with one on its stdout, one at a time.

    It ends when our end of its pipe closes, so it never outlives us. Safe to use from several threads.

    :param argv: the command
    :param what: what it is, for errors
    """

    def __init__(self, argv: Sequence[str], what: str) -> None:
        self._argv = list(argv)
        self._what = what
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._unread = b""
        self._start()

    @property
    def pid(self) -> int:
        """Process id of the present child, 0 when there is none."""
        return self._process.pid if self._process is not None else 0

    def _start(self) -> None:
        try:
            # A session of its own: a Ctrl-C on our terminal is for us; the child ends when we close its pipe.
            self._process = subprocess.Popen(
                self._argv,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                env=ENVIRONMENT,
                cwd="/",
                start_new_session=True,
            )
        except OSError as err:
            raise SubstrateError(self._what, "start", err.errno or 0) from err
        assert self._process.stdin is not None and self._process.stdout is not None
        os.set_blocking(self._process.stdin.fileno(), False)
        os.set_blocking(self._process.stdout.fileno(), False)
        self._unread = b""

    def _stop(self) -> None:
        """Afterwards the child is dead and reaped."""
        process, self._process = self._process, None
        if process is None:
            return
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()
        if process.poll() is None:
            kill_process(process.pid)
        wait_exit(process, _REAP_S)

    def request(self, message: dict[str, Any], timeout_s: float) -> dict[str, Any]:
        """Send ``message``, return the answer. A child that died is started again and asked once more.

        So requests must be repeatable: "make it so", never "one more".

        :raises SubstrateError: no answer in time (the child is killed and replaced), or it died twice
        """
        with self._lock:
            for attempt in (1, 2):
                if self._process is None:
                    self._start()
                try:
                    return self._exchange(json.dumps(message).encode() + b"\n", time.monotonic() + timeout_s)
                except TimeoutError as err:
                    self._stop()
                    raise SubstrateError(self._what, str(message.get("op")), errno.ETIMEDOUT) from err
                except (OSError, ValueError) as err:
                    self._stop()
                    if attempt == 2:
                        raise SubstrateError(self._what, str(message.get("op")), detail=f"it died: {err}") from err
            raise AssertionError("unreachable")

    def _exchange(self, line: bytes, deadline: float) -> dict[str, Any]:
        assert self._process is not None and self._process.stdin is not None and self._process.stdout is not None
        stdin, stdout = self._process.stdin.fileno(), self._process.stdout.fileno()
        unsent = memoryview(line)
        while unsent:
            self._wait(stdin, select.POLLOUT, deadline)
            with contextlib.suppress(BlockingIOError):
                unsent = unsent[os.write(stdin, unsent[:4096]) :]
        while b"\n" not in self._unread:
            self._wait(stdout, select.POLLIN, deadline)
            data = os.read(stdout, _CHUNK)
            if not data:
                raise BrokenPipeError(errno.EPIPE, "end of its output")
            self._unread += data
        answer, _, self._unread = self._unread.partition(b"\n")
        value = json.loads(answer)
        if not isinstance(value, dict):
            raise ValueError("its answer is not an object")
        return value

    @staticmethod
    def _wait(fd: int, event: int, deadline: float) -> None:
        poll = select.poll()
        poll.register(fd, event)
        left = deadline - time.monotonic()
        if left <= 0 or not poll.poll(left * 1000):
            raise TimeoutError

    def close(self) -> None:
        """Afterwards no child is left."""
        with self._lock:
            self._stop()
