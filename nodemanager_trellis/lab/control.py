"""Take a lab up, look at it, kill its node managers, take it down and prove that nothing is left.

Everything about a lab stands in ``/run/trellis-lab/NAME/lab.json``, written before and after each thing is made; so a
``down`` finds its way after any crash. What is not written there is not touched.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import ctypes
import dataclasses
import fcntl
import http.client
import itertools
import json
import logging
import os
import pathlib
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import xmlrpc.client
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from nodemanager_trellis import atomic
from nodemanager_trellis.errors import InvalidInput, NotOurs, PlcError, SubstrateError, TrellisError, Unsupported
from nodemanager_trellis.lab import processes, topology, underlay
from nodemanager_trellis.lab.processes import Process
from nodemanager_trellis.lab.progress import Progress
from nodemanager_trellis.lab.topology import Topology
from nodemanager_trellis.names import bpf_directory

log = logging.getLogger(__name__)

DEFAULT_NAME = "lab"
RUN_ROOT = pathlib.Path("/run/trellis-lab")
STATE_ROOT = pathlib.Path("/var/lib/trellis-lab")
ADMIN = "operator@vini.test"
PLC_URL = f"http://{underlay.PLC_ADDRESS}/PLCAPI/"
_NAME = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,6}[a-z0-9])?", re.ASCII)
_LONGEST_INSTANCE = 16
"""As config.py has it."""
_CLONE_NEWNET = 0x40000000
"""include/uapi/linux/sched.h"""
_CGROUPS = pathlib.Path("/sys/fs/cgroup")
_PURGE_PARALLEL = 4
_LOCK_TIMEOUT_S = 10.0
_POLL_S = 0.02
"""Between two looks at a file that another process will write."""


@dataclasses.dataclass(frozen=True, slots=True)
class Programs:
    """The commands of the daemons, as argument lists."""

    plc: tuple[str, ...]
    manager: tuple[str, ...]

    @classmethod
    def find(cls) -> Programs:
        """Those beside our Python, else those in the PATH.

        :raises Unsupported: not installed
        """
        found = []
        for name in ("trellis-plc", "trellis-nm"):
            beside = pathlib.Path(sys.executable).with_name(name)
            path = str(beside) if beside.exists() else shutil.which(name)
            if path is None:
                raise Unsupported(f"{name} is not installed beside {sys.executable} and not in the PATH")
            found.append((path,))
        return cls(*found)


@dataclasses.dataclass(slots=True)
class NodeRecord:
    """One substrate node of a lab that is up."""

    name: str
    hostname: str
    address: str
    instance: str
    """prefix of everything its manager makes"""
    netns: str
    node_id: int = 0
    """0: not yet registered at PLC"""
    manager: Process | None = None


@dataclasses.dataclass(slots=True)
class Record:
    """What ``lab.json`` holds."""

    name: str
    boot_id: str
    topology: Topology
    nodes: list[NodeRecord]
    netns: dict[str, int | None]
    """namespaces claimed, with their inodes; None: perhaps not yet made"""
    plc: Process | None = None
    ready: bool = False
    """``up`` came to its end"""

    def node(self, name: str) -> NodeRecord:
        """The node of that name.

        :raises InvalidInput: none
        """
        for node in self.nodes:
            if node.name == name:
                return node
        raise InvalidInput(f"lab {self.name} has no node {name[:40]!r}; it has {', '.join(n.name for n in self.nodes)}")

    def dumps(self) -> str:
        """JSON text; ``Record.loads(r.dumps()) == r``."""
        document = dataclasses.asdict(self)
        document["topology"] = self.topology.document()
        return json.dumps(document, indent=1)

    @classmethod
    def loads(cls, text: str) -> Record:
        """The inverse of :meth:`dumps`.

        :raises InvalidInput: the file is damaged
        """

        def process(value: dict[str, int] | None) -> Process | None:
            return None if value is None else Process(**value)

        try:
            document = json.loads(text)
            document["topology"] = topology.parse(document["topology"])
            document["nodes"] = [NodeRecord(**{**n, "manager": process(n["manager"])}) for n in document["nodes"]]
            document["plc"] = process(document["plc"])
            return cls(**document)
        except (ValueError, KeyError, TypeError) as err:
            raise InvalidInput(f"lab.json is damaged: {err}") from err


class Lab:
    """One lab, by its name."""

    def __init__(self, name: str = DEFAULT_NAME, programs: Programs | None = None) -> None:
        """Names nothing on the machine yet.

        :raises InvalidInput: not a lab's name
        """
        if not _NAME.fullmatch(name):
            raise InvalidInput(f"{name[:40]!r} is not a lab's name: 1 to 8 of a-z, 0-9 and '-'")
        self.name = name
        self.run_dir = RUN_ROOT / name
        self.state_dir = STATE_ROOT / name
        self.bpffs = self.run_dir / "bpf"
        self.password_file = self.run_dir / "plc.password"
        self.plc_log = self.run_dir / "plc.log"
        self._record_file = self.run_dir / "lab.json"
        self._programs = programs

    # ---------------------------------------------------------------- paths

    def config_file(self, node: str) -> pathlib.Path:
        """The node manager's own file."""
        return self.run_dir / f"{node}.conf"

    def log_file(self, node: str) -> pathlib.Path:
        """What the node manager says."""
        return self.run_dir / f"{node}.log"

    def node_run_dir(self, node: str) -> pathlib.Path:
        """``ready``, ``status.json`` and sockets of a node."""
        return self.run_dir / node

    def node_state_dir(self, node: str) -> pathlib.Path:
        """Store and slivers of a node."""
        return self.state_dir / node

    # ---------------------------------------------------------------- record

    def exists(self) -> bool:
        """Whether there is a lab of this name, or what a crash left of one."""
        return self.run_dir.is_dir()

    def record(self) -> Record:
        """What is known about the lab.

        :raises InvalidInput: there is none, or its file is damaged
        """
        try:
            return Record.loads(self._record_file.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise InvalidInput(f"there is no lab called {self.name} (trellis lab up --name {self.name})") from None
        except PermissionError:
            raise Unsupported("a lab can be seen by root only") from None

    def _save(self, record: Record) -> None:
        atomic.write_text(self._record_file, record.dumps())

    @contextlib.contextmanager
    def _locked(self) -> Iterator[int]:
        """Nobody else takes this lab up or down, kills or restarts meanwhile.

        Yields the lock's descriptor. Short commands inherit it: when we are killed, the next one waits for their end.

        :raises InvalidInput: there is no such lab, or another command is at it
        """
        try:
            fd = os.open(self.run_dir, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except FileNotFoundError:
            raise InvalidInput(f"there is no lab called {self.name} (trellis lab up --name {self.name})") from None
        try:
            deadline = time.monotonic() + _LOCK_TIMEOUT_S
            while True:
                try:
                    fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if time.monotonic() > deadline:
                        raise InvalidInput(f"another command is working on lab {self.name}") from None
                    time.sleep(_POLL_S)
            if not self.run_dir.exists() or os.stat(self.run_dir).st_ino != os.fstat(fd).st_ino:
                raise InvalidInput(f"lab {self.name} was taken down just now")
            yield fd
        finally:
            os.close(fd)

    # ---------------------------------------------------------------- up

    def up(self, topo: Topology, progress: Progress | None = None) -> Record:
        """The lab runs: every node manager has applied its first answer of PLC. A failure leaves nothing behind.

        :raises TrellisError: what was in the way, in one sentence
        """
        progress = progress or Progress(quiet=True)
        require_root()
        programs = self._programs or Programs.find()
        record = self._plan(topo)
        RUN_ROOT.mkdir(mode=0o755, parents=True, exist_ok=True)
        try:
            # Passable, not readable: slivers' root (another uid) reaches what its node binds from below it.
            self.run_dir.mkdir(mode=0o711)
        except FileExistsError:
            raise NotOurs(
                f"a lab called {self.name} exists already: end it (trellis lab down --name {self.name})"
                " or choose another --name"
            ) from None
        with self._locked() as lock:
            wire = underlay.Underlay(self.name, tuple(node.name for node in topo.nodes), hold=(lock,))
            try:
                wire.check_free()
                self._forget_old_state()
                self.state_dir.mkdir(mode=0o711, parents=True)
            except (TrellisError, OSError):
                shutil.rmtree(self.run_dir)
                raise
            self._save(record)
            try:
                self._up(record, wire, programs, progress)
            except BaseException as err:
                log.debug("lab did not come up", extra={"lab": self.name, "error": str(err)})
                with contextlib.suppress(TrellisError, OSError):
                    self._down(record, programs, Progress(quiet=True), lock)
                raise
        return record

    def _plan(self, topo: Topology) -> Record:
        nodes = []
        for index, node in enumerate(topo.nodes):
            instance = node.name if self.name == DEFAULT_NAME else f"{self.name}-{node.name}"
            if len(instance) > _LONGEST_INSTANCE:
                raise InvalidInput(f"{instance!r} (lab and node) is longer than {_LONGEST_INSTANCE} characters")
            netns = underlay.node_netns(self.name, node.name)
            nodes.append(NodeRecord(node.name, node.hostname, underlay.node_address(index), instance, netns))
        claimed: dict[str, int | None] = dict.fromkeys([underlay.underlay_netns(self.name), *(n.netns for n in nodes)])
        return Record(self.name, boot_id(), topo, nodes, claimed)

    def _forget_old_state(self) -> None:
        """A reboot wipes /run but not /var/lib: what a lab of this name left there before it is of no use any more."""
        if not self.state_dir.exists():
            return
        if mounts_below(self.state_dir):
            raise NotOurs(f"{self.state_dir} is there, with mounts below it, but no lab called {self.name} is known")
        shutil.rmtree(self.state_dir)

    def _up(self, record: Record, wire: underlay.Underlay, programs: Programs, progress: Progress) -> None:
        def made(inodes: dict[str, int]) -> None:
            record.netns.update(inodes)
            self._save(record)

        progress.step(f"{len(record.nodes)} nodes and the wire between them")
        self._mount_bpffs(wire.hold)
        wire.ensure({}, made)
        progress.step("PLC")
        self._start_plc(record, programs)
        plc = self.plc()
        keys = self._register(plc, record, progress)
        for node in record.nodes:
            self._write_config(node, keys[node.name])
        self._save(record)
        self._start_managers(record, record.nodes, programs, progress)
        record.ready = True
        self._save(record)

    def _mount_bpffs(self, hold: tuple[int, ...]) -> None:
        self.bpffs.mkdir(mode=0o700)
        done = subprocess.run(
            ["mount", "-t", "bpf", "-o", "mode=0700", "trellis-lab", str(self.bpffs)],
            capture_output=True,
            text=True,
            check=False,
            pass_fds=hold,
        )
        if done.returncode:
            raise SubstrateError(f"bpffs on {self.bpffs}", "mount", 0, done.stderr.strip())

    def _start_plc(self, record: Record, programs: Programs) -> None:
        self.password_file.touch(mode=0o600)
        self.password_file.write_text(secrets.token_urlsafe(18) + "\n", encoding="utf-8")
        ready = self.run_dir / "plc.ready"
        command = [
            *programs.plc,
            "serve",
            *("--db", f"sqlite:///{self.state_dir / 'plc.sqlite'}"),
            *("--listen", f"{underlay.PLC_ADDRESS}:80"),
            *("--admin-email", ADMIN),
            *("--admin-password-file", str(self.password_file)),
            *("--ready-file", str(ready)),
            "--volatile",
        ]
        record.plc = processes.start(underlay.inside(underlay.underlay_netns(self.name), command), self.plc_log)
        self._save(record)
        self._wait_ready({"PLC": (record.plc, ready, self.plc_log)}, 60.0, lambda done: None)

    def plc(self) -> Plc:
        """PLC as the operator sees it.

        :raises InvalidInput: the lab has none
        """
        try:
            password = self.password_file.read_text(encoding="utf-8").strip()
        except OSError as err:
            raise InvalidInput(f"lab {self.name} has no PLC: {err}") from err
        return Plc(underlay.path(underlay.underlay_netns(self.name)), PLC_URL, ADMIN, password)

    def _register(self, plc: Plc, record: Record, progress: Progress) -> dict[str, str]:
        """Site, nodes and interfaces as an operator adds them. Returns each node's key."""
        keys = {}
        site = {
            "name": f"Lab {self.name}",
            "abbreviated_name": self.name,
            "login_base": "lab" + "".join(c for c in self.name if c.isalnum()),
            "url": "http://lab.vini.test/",
        }
        site_id = plc.call("AddSite", site)
        for index, node in enumerate(record.nodes):
            progress.step("nodes registered at PLC", index, len(record.nodes))
            fields = {"hostname": node.hostname, "model": "network namespace", "boot_state": "boot"}
            node.node_id = plc.call("AddNode", site_id, fields)
            plc.call("AddInterface", node.node_id, self._interface(node, index))
            text = plc.call("GenerateNodeConfFile", node.node_id)
            match = re.search(r'^NODE_KEY="([^"\n]+)"', text, re.MULTILINE)
            if match is None:
                raise PlcError(f"PLC's plnode.txt for {node.hostname} has no NODE_KEY")
            keys[node.name] = match[1]
        progress.step("nodes registered at PLC", len(record.nodes), len(record.nodes))
        return keys

    @staticmethod
    def _interface(node: NodeRecord, index: int) -> dict[str, Any]:
        return {
            "ip": node.address,
            "mac": underlay.node_mac(index),
            "type": "ipv4",
            "method": "static",
            "is_primary": True,
            "network": underlay.NETWORK,
            "netmask": underlay.NETMASK,
            "broadcast": underlay.BROADCAST,
            "gateway": underlay.PLC_ADDRESS,
            "dns1": underlay.PLC_ADDRESS,
        }

    def _write_config(self, node: NodeRecord, key: str) -> None:
        settings = {
            "plc_url": PLC_URL,
            "node_id": node.node_id,
            "node_key": key,
            "instance": node.instance,
            "state_dir": self.node_state_dir(node.name),
            "run_dir": self.node_run_dir(node.name),
            "bpffs": self.bpffs,
            "netns": underlay.path(node.netns),
            "underlay": underlay.DEVICE,
            "plugin_dir": self.run_dir / "plugins",
            "poll_period_s": 30,
            "poll_random_s": 5,
        }
        text = "[trellis-nm]\n" + "".join(f"{name} = {value}\n" for name, value in settings.items())
        atomic.write_text(self.config_file(node.name), text)
        self.node_state_dir(node.name).mkdir(mode=0o711, exist_ok=True)
        self.node_run_dir(node.name).mkdir(mode=0o755, exist_ok=True)

    def _start_managers(
        self, record: Record, nodes: Sequence[NodeRecord], programs: Programs, progress: Progress
    ) -> None:
        waiting = {}
        for node in nodes:
            ready = self.node_run_dir(node.name) / "ready"
            ready.unlink(missing_ok=True)
            command = [*programs.manager, "--config", str(self.config_file(node.name))]
            node.manager = processes.start(command, self.log_file(node.name))
            self._save(record)
            waiting[f"node manager of {node.name}"] = (node.manager, ready, self.log_file(node.name))
        self._wait_ready(
            waiting,
            60.0 + 5.0 * len(nodes),
            lambda done: progress.step("node managers ready", done, len(nodes)),
        )

    def _wait_ready(
        self,
        waiting: dict[str, tuple[Process, pathlib.Path, pathlib.Path]],
        timeout_s: float,
        tell: Callable[[int], None],
    ) -> None:
        """Every ``ready`` file is there.

        :raises SubstrateError: one of the processes ended, or is late; with the last line of its log
        """
        left = dict(waiting)
        deadline = time.monotonic() + timeout_s
        tell(0)
        while left:
            for what, (process, ready, output) in list(left.items()):
                if ready.exists():
                    del left[what]
                    tell(len(waiting) - len(left))
                elif not processes.alive(process):
                    raise SubstrateError(what, "start", 0, f"it ended: {last_lines(output)}")
                elif time.monotonic() > deadline:
                    raise SubstrateError(what, "start", 0, f"not ready after {timeout_s:.0f} s: {last_lines(output)}")
            if left:
                time.sleep(_POLL_S)

    # ---------------------------------------------------------------- look

    def status(self) -> dict[str, Any]:
        """Everything about the lab, as JSON."""
        record = self.record()
        nodes = {}
        for node in record.nodes:
            nodes[node.name] = {
                "hostname": node.hostname,
                "place": record.topology.node(node.name).place,
                "node_id": node.node_id,
                "address": node.address,
                "netns": underlay.path(node.netns),
                "running": node.manager is not None and processes.alive(node.manager),
                "pid": node.manager.pid if node.manager else None,
                "config": str(self.config_file(node.name)),
                "log": str(self.log_file(node.name)),
                "status": self.node_status(node.name),
            }
        return {
            "name": record.name,
            "topology": record.topology.document(),
            "ready": record.ready,
            "plc": {
                "url": PLC_URL,
                "user": ADMIN,
                "password_file": str(self.password_file),
                "running": record.plc is not None and processes.alive(record.plc),
                "log": str(self.plc_log),
            },
            "nodes": nodes,
        }

    def node_status(self, node: str) -> dict[str, Any]:
        """What the node manager last wrote about itself; {} when it has not yet."""
        try:
            status = json.loads((self.node_run_dir(node) / "status.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return status if isinstance(status, dict) else {}

    def sliver_command(self, node: str, slice_name: str, command: Sequence[str]) -> list[str]:
        """``command`` as one that runs in a sliver, as its root.

        :raises InvalidInput: no such node, or no such sliver on it
        """
        record = self.record().node(node)
        slivers = self.node_status(node).get("slivers", {})
        if slice_name not in slivers:
            known = ", ".join(slivers) or "none"
            raise InvalidInput(f"node {node} has no sliver of {slice_name[:64]!r}; it has {known}")
        container = str(slivers[slice_name]["container"])
        attach = ["lxc-attach", "-P", str(self.node_state_dir(node) / "slivers"), "-n", container, "--clear-env", "--"]
        return underlay.inside(record.netns, [*attach, *command])

    def outside_command(self, command: Sequence[str]) -> list[str]:
        """``command`` as one that runs in the underlay's namespace, where PLC can be reached."""
        return underlay.inside(underlay.underlay_netns(self.record().name), command)

    def environment(self) -> dict[str, str]:
        """Ours, and where and as whom PLC is reached."""
        password = self.password_file.read_text(encoding="utf-8").strip()
        return {
            **os.environ,
            "TRELLIS_PLC_URL": PLC_URL,
            "TRELLIS_PLC_USER": ADMIN,
            "TRELLIS_PLC_PASSWORD": password,
        }

    # ---------------------------------------------------------------- kill and restart

    def kill(self, nodes: Iterable[str] = ()) -> list[str]:
        """SIGKILL to the node managers of ``nodes`` (none given: of all). Returns the nodes whose manager ran."""
        require_root()
        with self._locked():
            record = self.record()
            chosen = [record.node(name) for name in nodes] or record.nodes
            running = {n.name: n.manager for n in chosen if n.manager is not None and processes.alive(n.manager)}
            processes.end(list(running.values()), signal.SIGKILL)
            return list(running)

    def restart(self, nodes: Iterable[str] = (), progress: Progress | None = None) -> list[str]:
        """Node managers that do not run are started again and have reconciled. Returns their nodes.

        :raises SubstrateError: one did not come up
        """
        require_root()
        with self._locked():
            record = self.record()
            chosen = [record.node(name) for name in nodes] or record.nodes
            dead = [node for node in chosen if node.manager is None or not processes.alive(node.manager)]
            programs = self._programs or Programs.find()
            self._start_managers(record, dead, programs, progress or Progress(quiet=True))
            return [node.name for node in dead]

    # ---------------------------------------------------------------- down

    def down(self, progress: Progress | None = None) -> list[str]:
        """Nothing of the lab is left. Goes on after every failure.

        :returns: what could not be removed, one sentence each
        :raises InvalidInput: there is no such lab
        """
        require_root()
        with self._locked() as lock:
            if not self._record_file.exists():  # a crash before the first thing was made
                shutil.rmtree(self.run_dir)
                return []
            return self._down(self.record(), self._programs, progress or Progress(quiet=True), lock)

    def _down(self, record: Record, programs: Programs | None, progress: Progress, lock: int) -> list[str]:
        same_boot = record.boot_id == boot_id()
        failures: list[str] = []
        slivers = self._sliver_names(record)
        if same_boot:
            progress.step("node managers end")
            managers = [node.manager for node in record.nodes if node.manager is not None]
            processes.end(managers, signal.SIGTERM, 30.0)
            processes.end(self._strays(record), signal.SIGKILL)
            failures += self._purge_all(record, programs, progress, lock)
            slivers |= self._sliver_names(record)
            self._sweep(record, slivers)
            progress.step("PLC ends")
            if record.plc is not None:
                processes.end([record.plc], signal.SIGTERM, 10.0)
        progress.step("nodes and directories go")
        for action in (self._remove_mounts, lambda: self._remove_namespaces(record), self._remove_directories):
            try:
                action()
            except (TrellisError, OSError) as err:
                failures.append(str(err))
        left = check_clean(self, record, slivers)
        return left + (failures if left else [])

    def _purge_all(self, record: Record, programs: Programs | None, progress: Progress, lock: int) -> list[str]:
        try:
            programs = programs or Programs.find()
        except Unsupported as err:
            return [str(err)]
        nodes = [node for node in record.nodes if self.config_file(node.name).exists() and self._was_used(node)]
        failures, done = [], 0
        with concurrent.futures.ThreadPoolExecutor(_PURGE_PARALLEL) as pool:
            futures = {pool.submit(self._purge, node, programs, lock): node for node in nodes}
            progress.step("nodes emptied", 0, len(nodes))
            for future in concurrent.futures.as_completed(futures):
                done += 1
                progress.step("nodes emptied", done, len(nodes))
                if failure := future.result():
                    failures.append(f"purge of node {futures[future].name}: {failure}")
        return failures

    def _was_used(self, node: NodeRecord) -> bool:
        """Whether its manager ever ran: it leaves at least its store."""
        directory = self.node_state_dir(node.name)
        return directory.is_dir() and any(directory.iterdir())

    def _purge(self, node: NodeRecord, programs: Programs, lock: int) -> str:
        command = [*programs.manager, "--config", str(self.config_file(node.name)), "--purge"]
        with self.log_file(node.name).open("ab") as output:
            try:
                done = subprocess.run(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                    timeout=180,
                    check=False,
                    pass_fds=(lock,),
                )
            except (OSError, subprocess.TimeoutExpired) as err:
                return str(err)
        return f"exit {done.returncode}: {last_lines(self.log_file(node.name))}" if done.returncode else ""

    def _sliver_names(self, record: Record) -> set[str]:
        """Containers of ours: what the nodes' directories hold and what their managers report."""
        names = set()
        for node in record.nodes:
            directory = self.node_state_dir(node.name) / "slivers"
            if directory.is_dir():
                names |= {entry.name for entry in directory.iterdir() if entry.name.startswith(node.instance + ".")}
            for sliver in self.node_status(node.name).get("slivers", {}).values():
                if str(sliver.get("container", "")).startswith(node.instance + "."):
                    names.add(sliver["container"])
        return names

    def _strays(self, record: Record) -> list[Process]:
        """Daemons started by a command of ours that died before it wrote their pids down: they bear our paths."""
        marks = {("--config", str(self.config_file(node.name))) for node in record.nodes}
        marks.add(("--ready-file", str(self.run_dir / "plc.ready")))
        found = []
        for pid in pids():
            if pid != os.getpid() and marks & set(itertools.pairwise(processes.command_line(pid).split())):
                process = processes.identify(pid)
                if process is not None and process != record.plc:
                    found.append(process)
        return found

    def _sweep(self, record: Record, slivers: set[str]) -> None:
        """What a purge should have removed and did not: monitors of our slivers, their namespaces and cgroups."""
        inodes = {number for name in record.netns if (number := underlay.inode(name)) is not None}
        monitors = []
        for pid in underlay.members(inodes):
            if any(f"{self.node_state_dir(n.name)}/slivers" in processes.command_line(pid) for n in record.nodes):
                process = processes.identify(pid)
                if process is not None:
                    monitors.append(process)
        if monitors:
            log.warning("slivers outlived their node's purge", extra={"lab": self.name, "monitors": len(monitors)})
        processes.end(monitors, signal.SIGKILL)
        for name in slivers:
            for point in mounts_named(name):
                subprocess.run(["umount", "-l", point], capture_output=True, check=False)
                with contextlib.suppress(OSError):
                    os.unlink(point)
            for group in cgroups_of(name):
                remove_cgroup(group)

    def _remove_mounts(self) -> None:
        for root in (self.state_dir, self.run_dir):
            for point in sorted(mounts_below(root), key=len, reverse=True):
                done = subprocess.run(["umount", "-l", point], capture_output=True, text=True, check=False)
                if done.returncode:
                    raise SubstrateError(point, "umount", 0, done.stderr.strip())

    def _remove_namespaces(self, record: Record) -> None:
        if record.boot_id == boot_id():
            for name in underlay.absent(record.netns):
                log.warning("a namespace of our name is not ours; left alone", extra={"netns": name})

    def _remove_directories(self) -> None:
        locks = pathlib.Path("/run/lxc/lock", *self.state_dir.parts[1:])
        for directory in (self.state_dir, locks):
            if directory.exists():
                if mounts_below(directory):
                    raise NotOurs(f"{directory} still has mounts below it; not removed")
                shutil.rmtree(directory)
        for parent in (locks.parent, self.state_dir.parent):
            with contextlib.suppress(OSError):
                parent.rmdir()
        if mounts_below(self.run_dir):
            raise NotOurs(f"{self.run_dir} still has mounts below it; not removed")
        shutil.rmtree(self.run_dir)  # last: with it goes what we know
        with contextlib.suppress(OSError):
            self.run_dir.parent.rmdir()


# -------------------------------------------------------------------- what is left


def check_clean(lab: Lab, record: Record, slivers: Iterable[str] = ()) -> list[str]:
    """What is still there of a lab that was taken down, one sentence each: [] is what we promise."""
    left = []
    names = set(slivers)
    for name, number in record.netns.items():
        now = underlay.inode(name)
        if now is not None and (number is None or now == number):
            left.append(f"network namespace {name}")
    left += [f"mount {point}" for root in (lab.run_dir, lab.state_dir) for point in mounts_below(root)]
    left += [f"mount {point}" for name in sorted(names) for point in mounts_named(name)]
    left += [f"network namespace {name}" for name in sorted(names) if os.path.lexists(underlay.NETNS_DIRECTORY / name)]
    left += [f"cgroup {group}" for name in sorted(names) for group in cgroups_of(name)]
    left += [f"directory {d}" for d in (lab.run_dir, lab.state_dir) if d.exists()]
    for node in record.nodes:
        for bpffs in {str(lab.bpffs), "/sys/fs/bpf"}:
            if (pins := pathlib.Path(bpffs, bpf_directory(node.instance))).exists():
                left.append(f"bpf pins {pins}")
    if record.boot_id == boot_id():
        daemons = [record.plc, *(node.manager for node in record.nodes)]
        left += [f"process {p.pid}: {processes.command_line(p.pid)}" for p in daemons if p and processes.alive(p)]
        inodes = [number for number in record.netns.values() if number is not None]
        for pid in underlay.members(inodes):
            left.append(f"process {pid} in a namespace of the lab: {processes.command_line(pid)[:80]}")
    left += [f"process {p.pid}: {processes.command_line(p.pid)[:80]}" for p in lab._strays(record)]
    return sorted(set(left))


def pids() -> list[int]:
    """Every process of this machine that we can see."""
    return [int(entry) for entry in os.listdir("/proc") if entry.isdigit()]


def _mount_points() -> list[str]:
    with open("/proc/self/mountinfo", encoding="utf-8", errors="replace") as file:
        points = [line.split()[4] for line in file]
    return [re.sub(r"\\([0-7]{3})", lambda m: chr(int(m[1], 8)), point) for point in points]


def mounts_below(directory: pathlib.Path) -> list[str]:
    """Mount points at or below ``directory``."""
    root = str(directory)
    return [point for point in _mount_points() if point == root or point.startswith(root + "/")]


def mounts_named(name: str) -> list[str]:
    """Mount points whose last component is ``name`` (a sliver's bound namespaces)."""
    return [point for point in _mount_points() if point.rpartition("/")[2] == name]


def cgroups_of(container: str) -> list[pathlib.Path]:
    """LXC's cgroups of that container, in every hierarchy, with the suffixes that LXC gives to second copies."""
    wanted = re.compile(rf"lxc\.(?:payload|monitor)\.{re.escape(container)}(?:-[0-9]+)?")
    tops = [_CGROUPS, *(top for top in (_CGROUPS.iterdir() if _CGROUPS.is_dir() else ()) if top.is_dir())]
    found = []
    for top in tops:
        with contextlib.suppress(OSError):
            found += [group for group in top.iterdir() if wanted.fullmatch(group.name) and not group.is_symlink()]
    return found


def remove_cgroup(group: pathlib.Path) -> None:
    """The empty cgroup and those below it are gone; one with processes stays (rmdir refuses it)."""
    for directory, _, _ in os.walk(group, topdown=False):
        with contextlib.suppress(OSError):
            os.rmdir(directory)


def init_pid(container: str) -> int | None:
    """Pid of a sliver's first process, as the machine sees it; None when it does not run."""
    for group in cgroups_of(container):
        if group.name != f"lxc.payload.{container}":
            continue
        with contextlib.suppress(OSError, ValueError):
            members = [int(pid) for pid in (group / "cgroup.procs").read_text().split()]
            if members:
                return min(members)
    return None


# -------------------------------------------------------------------- small things


def require_root() -> None:
    """We are root, and the commands that a lab is made with are installed.

    :raises Unsupported: one of it is not so
    """
    if os.geteuid() != 0:
        raise Unsupported("a lab makes network namespaces and containers: it needs root")
    for command in ("ip", "nsenter", "mount", "umount"):
        if shutil.which(command) is None:
            raise Unsupported(f"a lab needs the command {command}")


@contextlib.contextmanager
def ended_by_sigterm() -> Iterator[None]:
    """SIGTERM is like Ctrl-C meanwhile: what was begun is undone. For the main thread."""

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def boot_id() -> str:
    """Which boot of the machine this is: pids and namespaces of another one mean nothing."""
    return pathlib.Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()


def last_lines(path: pathlib.Path, count: int = 3) -> str:
    """The end of a log, as one line."""
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    except OSError as err:
        return str(err)
    return " | ".join(line.strip() for line in lines[-count:]) or f"nothing in {path}"


class _NamespaceConnection(http.client.HTTPConnection):
    """An HTTP connection whose socket was made in another network namespace (a socket stays where it was made)."""

    def __init__(self, host: str, netns: str) -> None:
        super().__init__(host, timeout=60)
        self._netns = netns

    def connect(self) -> None:
        result: list[socket.socket | OSError] = []

        def work() -> None:
            try:
                fd = os.open(self._netns, os.O_RDONLY | os.O_CLOEXEC)
                try:
                    libc = ctypes.CDLL(None, use_errno=True)
                    if libc.setns(fd, _CLONE_NEWNET):
                        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
                finally:
                    os.close(fd)
                result.append(socket.create_connection((self.host, self.port), self.timeout))
            except OSError as err:
                result.append(err)

        # setns moves one thread only; this one ends at once and takes the change with it.
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
        if isinstance(result[0], OSError):
            raise result[0]
        self.sock = result[0]
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


class _NamespaceTransport(xmlrpc.client.Transport):
    def __init__(self, netns: str) -> None:
        super().__init__()
        self._netns = netns

    def make_connection(self, host: Any) -> http.client.HTTPConnection:
        if self._connection and self._connection[0] == host and self._connection[1] is not None:
            return self._connection[1]
        connection = _NamespaceConnection(str(host), self._netns)
        self._connection = host, connection
        return connection


class Plc:
    """PLCAPI with the operator's password, reached from inside the underlay's namespace."""

    def __init__(self, netns: str, url: str, user: str, password: str) -> None:
        self._server = xmlrpc.client.ServerProxy(url, transport=_NamespaceTransport(netns), allow_none=True)
        self._auth = {"AuthMethod": "password", "Username": user, "AuthString": password}

    def call(self, method: str, *arguments: Any) -> Any:
        """The method's answer.

        :raises PlcError: no answer, or a fault
        """
        try:
            return getattr(self._server, method)(self._auth, *arguments)
        except xmlrpc.client.Fault as err:
            raise PlcError(f"{method}: {err.faultString}", err.faultCode) from err
        except (OSError, http.client.HTTPException, xmlrpc.client.Error) as err:
            raise PlcError(f"{method}: {err}", retry=True) from err
