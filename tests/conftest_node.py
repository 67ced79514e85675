"""One real ``trellis-nm`` process in a net namespace of its own, asking a stub PLC there; real kernel, real LXC."""

from __future__ import annotations

import json
import os
import pathlib
import select
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from stub_plc import StubPlc

from nodemanager_trellis.intake import xmlrpc
from nodemanager_trellis.substrate.netns import run_in

FIXTURES = pathlib.Path(__file__).parent / "fixtures" / "plcapi"
MANAGER = pathlib.Path(sys.executable).with_name("trellis-nm")


def wait_for(predicate: Callable[[], Any], sentence: str, timeout_s: float = 30) -> Any:
    """The predicate's first true value."""
    deadline = time.monotonic() + timeout_s
    value = predicate()
    while not value:
        assert time.monotonic() < deadline, f"not within {timeout_s} s: {sentence}; last seen: {value!r}"
        select.select([], [], [], 0.01)
        value = predicate()
    return value


class TestNode:
    """A node's root context and the manager in it."""

    __test__ = False

    def __init__(self, directory: pathlib.Path, serial: int) -> None:
        self.instance = f"tn{os.getpid()}"
        self.netns = f"trellis-{self.instance}"
        self.directory = directory
        self.run_dir = directory / "run"
        self.answer: Any = json.loads((FIXTURES / "line3-chic.json").read_text())
        self.up = True
        self.process: subprocess.Popen | None = None
        self.log = directory / "log"
        for command in (f"ip netns add {self.netns}", f"ip -n {self.netns} link set lo up"):
            subprocess.run(command.split(), check=True)
        self.make_underlay()
        listening = run_in(f"/run/netns/{self.netns}", lambda: socket.create_server(("127.0.0.1", 0)))
        self.plc = StubPlc(listening, self._serve)
        self.config = directory / "nm.conf"
        self.write_config()

    def make_underlay(self) -> None:
        """The device that carries the tunnels, with the node's address."""
        for command in (
            "link add u0 type veth peer name far",
            "address add 198.51.100.16/24 dev u0",
            "link set u0 up",
            "link set far up",
        ):
            subprocess.run(["ip", "-n", self.netns, *command.split()], check=True)

    def write_config(self, **more: Any) -> None:
        settings = {
            "plc_url": f"http://127.0.0.1:{self.plc.port}/PLCAPI/",
            "node_id": 2,
            "node_key": "k",
            "instance": self.instance,
            "state_dir": self.directory / "state",
            "run_dir": self.run_dir,
            "netns": f"/run/netns/{self.netns}",
            "plugin_dir": self.directory / "plugins",
            "long_poll_s": 0,
            "poll_period_s": 1,
            "poll_random_s": 0,
            "log_level": "DEBUG",
            **more,
        }
        self.config.write_text("[trellis-nm]\n" + "".join(f"{k} = {v}\n" for k, v in settings.items()))

    def _serve(self, method: str, params: tuple) -> tuple[int, bytes]:
        if not self.up:
            return 503, b""
        if method == "GetSession":
            return 200, xmlrpc.dumps_response("session")
        if method == "GetSlivers":
            body = self.answer if isinstance(self.answer, bytes) else xmlrpc.dumps_response(self.answer)
            return 200, body
        return 200, xmlrpc.dumps_fault(100, f"Invalid method {method}")

    def start(self) -> None:
        (self.run_dir / "ready").unlink(missing_ok=True)
        with self.log.open("ab") as log:
            self.process = subprocess.Popen([MANAGER, "--config", self.config], stderr=log, stdin=subprocess.DEVNULL)

    def ready(self) -> None:
        """The manager's first run is done."""
        wait_for(lambda: (self.run_dir / "ready").exists() or self.process.poll() is not None, "manager ready")
        assert self.process.poll() is None, self.log.read_text()[-3000:]

    def end(self, number: int = signal.SIGTERM) -> int:
        self.process.send_signal(number)
        return self.process.wait(20)

    def run(self, *command: str, check: bool = True) -> str:
        """A command in the node's root context."""
        done = subprocess.run(["nsenter", f"--net=/run/netns/{self.netns}", *command], capture_output=True, text=True)
        assert not check or done.returncode == 0, done.stderr
        return done.stdout

    def inside(self, container: str, *command: str) -> str:
        """A command in a sliver."""
        path = self.directory / "state" / "slivers"
        return self.run("lxc-attach", "-P", str(path), "-n", container, "--clear-env", "--", *command)

    def status(self) -> dict[str, Any]:
        return json.loads((self.run_dir / "status.json").read_text())

    def purge(self) -> subprocess.CompletedProcess:
        return subprocess.run([MANAGER, "--config", self.config, "--purge"], capture_output=True, text=True)

    def leftovers(self) -> list[str]:
        """Everything that bears our instance's name anywhere on the machine."""
        found = [str(p) for p in pathlib.Path("/run/netns").glob(f"{self.instance}.*")]
        found += [str(p) for p in pathlib.Path("/sys/fs/cgroup").glob(f"*/lxc.*.{self.instance}.*")]
        found += [str(p) for p in pathlib.Path("/sys/fs/bpf/trellis").glob(self.instance)]
        found += [line for line in pathlib.Path("/proc/mounts").read_text().splitlines() if str(self.directory) in line]
        found += [line for line in self.run("ip", "-br", "link", "show", "group", "32273").splitlines() if line]
        return found

    def close(self) -> None:
        if self.process and self.process.poll() is None:
            self.end(signal.SIGKILL)
        done = self.purge()
        log = self.log.read_text()[-3000:] if self.log.exists() else ""
        left = self.leftovers()
        self.plc.close()
        subprocess.run(["ip", "netns", "del", self.netns], check=True)
        shutil.rmtree(self.directory, ignore_errors=True)
        assert done.returncode == 0, done.stderr + log
        assert [] == left


@pytest.fixture
def node(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Iterator[TestNode]:
    # Not below tmp_path: its parents are closed to a sliver's user.
    directory = pathlib.Path("/var/lib", f"trellis-test-{os.getpid()}")
    directory.mkdir(mode=0o755)
    made = TestNode(directory, 1)
    yield made
    made.close()
