"""Processes are known by pid and start time; signals reach no other."""

from __future__ import annotations

import dataclasses
import signal
import sys

from nodemanager_trellis.lab import processes

WAIT = [sys.executable, "-c", "import signal; print('up', flush=True); signal.pause()"]
STUBBORN = [
    sys.executable,
    "-c",
    "import signal; signal.signal(15, signal.SIG_IGN); print('up', flush=True); signal.pause()",
]


def start(command, log):
    """Started, and so far that it has printed its line."""
    process = processes.start(command, log)
    while "up" not in log.read_text():
        assert processes.alive(process)
    return process


def test_end_by_sigterm(tmp_path):
    """It ends, is reaped, and is not alive any more; ending it again is nothing."""
    process = start(WAIT, tmp_path / "log")
    assert process == processes.identify(process.pid)
    assert "signal.pause" in processes.command_line(process.pid)
    assert processes.end([process]) == []
    assert not processes.alive(process)
    assert processes.identify(process.pid) is None
    assert processes.end([process]) == []


def test_a_stubborn_one_is_killed(tmp_path):
    """SIGTERM ignored: after the time is over, SIGKILL; it is named."""
    process = start(STUBBORN, tmp_path / "log")
    assert processes.end([process], timeout_s=0.1) == [process]
    assert not processes.alive(process)


def test_another_start_time_is_another_process(tmp_path):
    """A pid that now belongs to somebody else gets no signal."""
    process = start(WAIT, tmp_path / "log")
    stranger = dataclasses.replace(process, start=process.start - 1)
    assert not processes.alive(stranger)
    processes.end([stranger], signal.SIGKILL)
    assert processes.alive(process)
    processes.end([process], signal.SIGKILL)


def test_one_that_ended_by_itself(tmp_path):
    """It is not alive, though nobody has waited for it."""
    process = processes.start([sys.executable, "-c", "print('up')"], tmp_path / "log")
    while processes.alive(process):
        pass
    assert processes.end([process]) == []
