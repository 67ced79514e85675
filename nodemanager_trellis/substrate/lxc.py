"""Containers: define, start, stop, attach. LXC's library is asked through a worker process, LXC's commands do the rest.

Three sources of truth, each for what it knows best: ``trellis.json`` in the container's directory says what it was made
as; its cgroups say whether it runs, in whatever net namespace it was started; LXC says whether *we* can speak with it.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import errno
import fcntl
import json
import logging
import os
import pathlib
import re
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from nodemanager_trellis import atomic, codec, names
from nodemanager_trellis.errors import InvalidInput, NotOurs, SubstrateError, TrellisError, Unsupported
from nodemanager_trellis.objects import Container, Key, Running
from nodemanager_trellis.substrate import child, files, images
from nodemanager_trellis.substrate.cgroups import Cgroups
from nodemanager_trellis.substrate.child import CompletedRun
from nodemanager_trellis.substrate.pairs import INCOMPLETE, PairHelper, raise_all, raise_first
from nodemanager_trellis.substrate.settings import Settings

log = logging.getLogger(__name__)

MARK = "TRELLIS_INSTANCE"
"""Environment variable of every container of ours; its value is the instance."""

START_TIMEOUT_S = 30.0
STOP_TIMEOUT_S = 5
"""A clean shutdown by LXC's init takes 5 ms; after this many seconds the container is killed."""
STOP_GRACE_S = 5
"""Longer than that, ``lxc-stop`` itself hangs."""
WORKER_TIMEOUT_S = 10.0

COMMON_CONFIG = ("/usr/share/lxc/config/common.conf", "/usr/share/lxc/config/userns.conf")
SECCOMP = pathlib.Path(__file__).with_name("sliver.seccomp")

DROPPED_CAPABILITIES = (
    "audit_control audit_read block_suspend mac_admin mac_override mknod sys_module sys_rawio sys_time syslog "
    "wake_alarm"
)
"""Of no use within a user namespace; dropped so that a hole in the kernel's checks is no use either."""

_LOCK_DIR = pathlib.Path("/run/lxc/lock")
_ALIVE = frozenset({"RUNNING", "FROZEN", "FREEZING", "THAWED"})
_HOSTNAME = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9_.-]{0,63})", re.ASCII)
_SYSCTL = re.compile(r"net([./][A-Za-z0-9_-]+(:[0-9]+)?)+", re.ASCII)


class LxcWorker:
    """Client of ``lxc_worker.py``. Start it before any thread, in the node's own net namespace."""

    def __init__(self, settings: Settings) -> None:
        program = pathlib.Path(__file__).with_name("lxc_worker.py")
        # -I: else its own directory came first in the search path, and there is a lxc.py in it.
        self._child = child.JsonChild([sys.executable, "-I", str(program), str(settings.slivers_dir)], "LXC worker")
        try:
            self.version = str(self._ask({"op": "version"})["version"])
        except SubstrateError as err:
            self.close()
            raise Unsupported(f"LXC's Python library (python3-lxc) cannot be used: {err}") from err

    @property
    def pid(self) -> int:
        """Process id, 0 when it is not there."""
        return self._child.pid

    def _ask(self, message: dict[str, Any], extra_s: float = 0.0) -> dict[str, Any]:
        answer = self._child.request(message, WORKER_TIMEOUT_S + extra_s)
        if "failed" in answer:
            raise SubstrateError("LXC worker", message["op"], detail=str(answer["failed"]))
        return answer

    def states(self, container_names: Sequence[str]) -> dict[str, tuple[str, int]]:
        """LXC's state and init's pid (-1 when stopped) of each container, as seen from our net namespace."""
        answer = self._ask({"op": "states", "names": list(container_names)}, 0.01 * len(container_names))
        return {name: (str(state), int(pid)) for name, (state, pid) in answer["states"].items()}

    def get_cgroup_item(self, name: str, key: str) -> str | None:
        """A cgroup value of a running container; None when there is no such item."""
        value = self._ask({"op": "get", "name": name, "key": key})["value"]
        return None if value is None else str(value)

    def set_cgroup_item(self, name: str, key: str, value: str) -> bool:
        """Set a cgroup value of a running container; whether LXC did."""
        return bool(self._ask({"op": "set", "name": name, "key": key, "value": value})["done"])

    def close(self) -> None:
        """Afterwards the worker is gone; the containers run on."""
        self._child.close()


def render_config(container: Container, settings: Settings, rootfs: images.Rootfs, cgroups: Cgroups) -> str:
    """The LXC configuration of a sliver: unprivileged, joined to its pair of namespaces, limited."""
    directory = settings.slivers_dir / container.name
    items = [("lxc.include", path) for path in COMMON_CONFIG]
    items += [
        ("lxc.environment", f"{MARK}={settings.instance}"),
        ("lxc.idmap", f"u 0 {container.uid_base} 65536"),
        ("lxc.idmap", f"g 0 {container.uid_base} 65536"),
        ("lxc.namespace.share.user", str(settings.run_dir / "user" / container.name)),
        ("lxc.namespace.share.net", str(settings.netns_dir / container.name)),
        ("lxc.uts.name", container.hostname),
        ("lxc.cap.drop", DROPPED_CAPABILITIES),
        ("lxc.seccomp.profile", str(SECCOMP)),
        ("lxc.mount.auto", ""),
        ("lxc.mount.auto", "proc:mixed sys:mixed"),
        ("lxc.tty.max", "0"),
        ("lxc.rootfs.path", rootfs.path),
    ]
    if os.path.exists("/sys/module/apparmor"):
        items.append(("lxc.apparmor.profile", "unconfined"))
    items += [("lxc.mount.entry", entry) for entry in rootfs.mounts]
    items += [
        ("lxc.mount.entry", f"{files_mount(settings, container.name)} etc/trellis none bind,ro,create=dir 0 0"),
        ("lxc.mount.entry", "/dev/net/tun dev/net/tun none bind,optional,create=file 0 0"),
        ("lxc.init.cmd", f"{rootfs.init} --name {container.name} -- /usr/bin/sleep infinity"),
    ]
    for limit in cgroups.limits(container):
        items.append((f"lxc.cgroup{'2' if limit.unified else ''}.{limit.file}", limit.value))
    text = "".join(f"{key} = {value}\n" for key, value in items)
    if "\n" in "".join(value for _key, value in items):
        raise InvalidInput(f"{container.title}: a line break in its configuration")
    return f"# Written by trellis before every start of {directory.name}: do not edit.\n{text}"


def files_mount(settings: Settings, name: str) -> pathlib.Path:
    """Where a sliver's files are mounted read-only, for LXC to bind them into it."""
    return settings.run_dir / "files" / name


class LxcHost:
    """All that the two drivers and ``attach`` share: directories, worker, locks. One per manager.

    :param helper: the helper of the pairs, which writes sysctls
    """

    def __init__(self, settings: Settings, helper: PairHelper, cgroups: Cgroups | None = None) -> None:
        self.settings = settings
        self.cgroups = cgroups or Cgroups()
        self._helper = helper
        for directory in (settings.state_dir, settings.slivers_dir, settings.run_dir):
            directory.mkdir(mode=0o755, parents=True, exist_ok=True)
            mode = directory.stat().st_mode & 0o7777
            if mode & 0o011 != 0o011:  # the sliver's root is nobody here, and must get through to its own files
                directory.chmod(mode | 0o011)
        self._locks: dict[str, threading.Lock] = {}
        self._locks_lock = threading.Lock()
        # Whoever calls, from however many threads: more starts at a time make none of them faster.
        self._starts = threading.BoundedSemaphore(settings.start_parallel)
        for entry in os.listdir(settings.slivers_dir):
            if re.fullmatch(r"\..+\.gone", entry) and self.is_ours(entry[1:-5]):
                images.remove_tree(settings.slivers_dir / entry)
        self.worker = LxcWorker(settings)

    def close(self) -> None:
        """Afterwards the worker is gone; the containers run on."""
        self.worker.close()

    def is_ours(self, name: str) -> bool:
        """Whether ``name`` is one that this instance gives."""
        return names.slice_id_of(self.settings.instance, name) is not None

    def directory(self, name: str) -> pathlib.Path:
        """A container's own directory."""
        if not self.is_ours(name):
            raise NotOurs(f"container {name}: not a name of instance {self.settings.instance}")
        return self.settings.slivers_dir / name

    def our_names(self) -> list[str]:
        """All containers of this instance that have a directory, half made ones too."""
        return sorted(name for name in os.listdir(self.settings.slivers_dir) if self.is_ours(name))

    @contextlib.contextmanager
    def locked(self, name: str) -> Iterator[None]:
        """One operation at a time on a container: LXC's own locks do not tell threads apart."""
        with self._locks_lock:
            lock = self._locks.setdefault(name, threading.Lock())
        with lock:
            yield

    def load(self, name: str) -> Container | None:
        """What the container was made as; None when it is foreign; ``uid_base`` :data:`INCOMPLETE` when half made."""
        directory = self.directory(name)
        try:
            plain = json.loads((directory / "trellis.json").read_text())
            if plain["instance"] == self.settings.instance:
                container = codec.from_plain(Container, plain["container"])
                return container if container.name == name else None
            return None
        except (OSError, ValueError, KeyError, TypeError):
            pass
        try:
            config = (directory / "config").read_text()
        except OSError:
            config = f"{MARK}={self.settings.instance}\n"  # none yet: we were interrupted
        marked = re.search(rf"^lxc\.environment *= *{MARK}={re.escape(self.settings.instance)}$", config, re.MULTILINE)
        return Container(name, "", INCOMPLETE) if marked or "lxc." not in config else None

    def define(self, container: Container) -> str:
        """Afterwards the container is defined as described; return a warning, or ''. Limits change while it runs."""
        if not _HOSTNAME.fullmatch(container.hostname):
            raise InvalidInput(f"{container.hostname[:80]!r} is not a host name")
        for key, _value in container.sysctls:
            _sysctl_path(key)
        images.find_image(self.images_dir, container.image)
        with self.locked(container.name):
            directory = self.directory(container.name)
            warning = ""
            before = self.load(container.name) if directory.exists() else None
            if before is None and directory.exists():
                raise NotOurs(f"{directory} exists and was not made by us")
            remade = before is None or (before.image, before.uid_base) != (container.image, container.uid_base)
            try:
                if before is not None and remade:
                    self._unmake(before, keep_files=before.uid_base != INCOMPLETE)
                if remade:
                    warning = self._make(directory, container)
                self._write_config(container)
                self.cgroups.apply(container)
                if before is None or before.sysctls != container.sysctls:
                    self._write_sysctls(container)
                plain = {"instance": self.settings.instance, "container": codec.to_plain(container)}
                atomic.write_text(directory / "trellis.json", json.dumps(plain) + "\n", 0o644)
            except OSError as err:
                raise SubstrateError(container.title, "define", err.errno or 0, str(err.filename or "")) from err
        if warning:
            log.warning("image missing", extra={"sliver": container.name, "reason": warning})
        return warning

    @property
    def images_dir(self) -> pathlib.Path:
        """Where images other than the default one lie."""
        return self.settings.state_dir / "images"

    def _make(self, directory: pathlib.Path, container: Container) -> str:
        directory.mkdir(mode=0o750, exist_ok=True)
        os.chown(directory, 0, container.uid_base)
        shared = directory / files.SUBDIRECTORY
        shared.mkdir(mode=0o755, exist_ok=True)
        for path in (shared, *shared.iterdir()):
            os.lchown(path, container.uid_base, container.uid_base)
        return images.create(directory, container, self.images_dir)

    def _unmake(self, container: Container, keep_files: bool) -> None:
        """Take away what :meth:`_make` made, so that it can be made anew."""
        if self.cgroups.populated(container.name):
            reason = "image and uid range change only while it is stopped"
            raise SubstrateError(container.title, "define", errno.EBUSY, reason)
        directory = self.directory(container.name)
        (directory / "trellis.json").unlink(missing_ok=True)  # first: from here on it is half made
        images.clean(container.name, self.settings.run_dir)
        for path in directory.iterdir():
            if not (keep_files and path.name == files.SUBDIRECTORY):
                images.remove_tree(path)

    def _write_config(self, container: Container) -> None:
        directory = self.directory(container.name)
        rootfs = images.describe(directory, container.name, self.settings.run_dir)
        text = render_config(container, self.settings, rootfs, self.cgroups)
        path = directory / "config"
        with contextlib.suppress(FileNotFoundError):
            if path.read_text() == text:
                return
        atomic.write_text(path, text, 0o644)

    def _write_sysctls(self, container: Container) -> None:
        """Write the container's sysctls into its net namespace. One that is refused costs itself only."""
        if not container.sysctls:
            return
        items = [(_sysctl_path(key), value) for key, value in container.sysctls]
        for path, (code, sentence) in self._helper.sysctl(container.name, items).items():
            fields = {"sliver": container.name, "sysctl": path, "errno": code, "reason": sentence}
            log.warning("sysctl refused", extra=fields)

    def destroy(self, name: str) -> None:
        """Afterwards the container is stopped and nothing of it is left: no cgroups, mounts, lock file of LXC."""
        directory = self.directory(name)
        if directory.exists() and self.load(name) is None:
            raise NotOurs(f"{directory} exists and was not made by us")
        self.stop(name)
        with self.locked(name):
            gone = self.settings.slivers_dir / f".{name}.gone"
            lock_file = pathlib.Path(f"{_LOCK_DIR}/{self.settings.slivers_dir}/.{name}")
            steps: tuple[Callable[[str], object], ...] = (
                lambda _: images.release(files_mount(self.settings, name)),
                lambda _: images.clean(name, self.settings.run_dir),
                lambda _: images.remove_tree(gone),
                lambda _: directory.rename(gone) if directory.exists() else None,  # whole, or not at all, to a reader
                lambda _: images.remove_tree(gone),
                lambda _: lock_file.unlink(missing_ok=True),
            )
            errors = [err for err in (_caught(step, name) for step in steps) if err]
            raise_all(f"deleting container {name}", errors)

    def start(self, name: str) -> None:
        """Afterwards the container's init runs.

        :raises SubstrateError: it does not start, with LXC's reasons; or it runs, started in another net namespace,
            where we cannot speak with it: a second start would give its files to two systems at once
        """
        with self.locked(name):
            container = self.load(name) if self.directory(name).exists() else None
            if container is None or container.uid_base == INCOMPLETE:
                raise SubstrateError(f"sliver {name}", "start", errno.ENOENT, "its container is not defined")
            with self._start_lock(name) as lock:
                if self.cgroups.populated(name):
                    if self.worker.states([name])[name][0] in _ALIVE:
                        return
                    reason = "it runs already (started from another net namespace)"
                    raise SubstrateError(f"sliver {name}", "start", errno.EALREADY, reason)
                if not self.cgroups.sweep(name):
                    raise SubstrateError(f"sliver {name}", "start", errno.EBUSY, "its old monitor does not end")
                self._start(container, lock)

    @contextlib.contextmanager
    def _start_lock(self, name: str) -> Iterator[int]:
        """A lock that all managers share, held also by ``lxc-start`` should we be killed meanwhile."""
        fd = os.open(self.directory(name), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            deadline = time.monotonic() + 10
            pause_s = 0.001
            while True:
                try:
                    fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError as err:
                    if time.monotonic() > deadline:
                        reason = "another process is starting it"
                        raise SubstrateError(f"sliver {name}", "start", errno.EBUSY, reason) from err
                    time.sleep(pause_s)
                    pause_s = min(pause_s * 2, 0.05)
            yield fd
        finally:
            os.close(fd)

    def _start(self, container: Container, lock: int) -> None:
        name = container.name
        settings = self.settings
        directory = self.directory(name)
        images.bind_readonly(directory / files.SUBDIRECTORY, files_mount(settings, name))
        images.prepare(directory, container, self.images_dir, settings.run_dir, settings.run_dir / "user" / name)
        self._write_config(container)  # again: the machine's cgroups, or we, may be other ones since
        self._write_sysctls(container)
        log_path = directory / "start.log"
        log_path.unlink(missing_ok=True)
        command = ["lxc-start", "-n", name, "-P", str(settings.slivers_dir), "-d", "-o", str(log_path), "-l", "WARN"]
        with self._starts:
            done = child.run(command, timeout_s=START_TIMEOUT_S, pass_fds=(lock,))
        if done.returncode == 0 and not done.timed_out:
            return
        self.cgroups.kill(name)
        self.cgroups.kill(name, "monitor")
        self.cgroups.sweep(name)
        reason = f"no answer in {START_TIMEOUT_S:.0f} s; " if done.timed_out else ""
        raise SubstrateError(f"sliver {name}", "start", 0, reason + _log_tail(log_path, done.stderr))

    def stop(self, name: str) -> None:
        """Afterwards nothing of the container runs and its cgroups are gone. Clean if it can, by force if it must."""
        directory = self.directory(name)
        with self.locked(name):
            if self.cgroups.populated(name):
                with contextlib.suppress(SubstrateError):
                    command = ["lxc-stop", "-n", name, "-P", str(directory.parent), "-t", str(STOP_TIMEOUT_S)]
                    child.run(command, timeout_s=STOP_TIMEOUT_S + STOP_GRACE_S)
                # What LXC could not end from here (its monitor hangs, or lives in another net namespace).
                if not self.cgroups.kill(name):
                    raise SubstrateError(f"sliver {name}", "stop", errno.EBUSY, "its processes do not die")
            if not self.cgroups.sweep(name):
                self.cgroups.kill(name, "monitor")
                if not self.cgroups.sweep(name):
                    raise SubstrateError(f"sliver {name}", "stop", errno.EBUSY, "its cgroups stay")

    def attach(
        self, name: str, argv: Sequence[str], stdin: bytes | None = None, timeout_s: float = 60.0
    ) -> CompletedRun:
        """Run a program inside a running sliver, as its root, in a clean environment; see :class:`CompletedRun`.

        :raises SubstrateError: the sliver does not run, or cannot be entered
        """
        directory = self.directory(name)
        if not self.cgroups.populated(name):
            raise SubstrateError(f"sliver {name}", "attach", errno.ESRCH, "it does not run")
        settings = ["--clear-env"]
        for key, value in {**child.ENVIRONMENT, "HOME": "/root", "USER": "root", MARK: self.settings.instance}.items():
            settings += ["-v", f"{key}={value}"]
        command = ["lxc-attach", "-n", name, "-P", str(directory.parent), *settings, "--", *argv]
        return child.run(command, stdin=stdin, timeout_s=timeout_s)

    def in_parallel(self, work: Callable[[str], object], container_names: Sequence[str]) -> list[Exception]:
        """Do ``work`` for each name, ``start_parallel`` at a time; what failed."""
        if len(container_names) == 1:
            return [err for err in [_caught(work, container_names[0])] if err]
        with concurrent.futures.ThreadPoolExecutor(self.settings.start_parallel, "lxc") as pool:
            return [err for err in pool.map(lambda name: _caught(work, name), container_names) if err]


def _caught(work: Callable[[str], object], name: str) -> Exception | None:
    try:
        work(name)
    except TrellisError as err:
        return err
    except ExceptionGroup as err:
        return err
    except OSError as err:
        return SubstrateError(f"sliver {name}", "change", err.errno or 0, str(err.filename or ""))
    return None


def _sysctl_path(key: str) -> str:
    """``net.ipv4.ip_forward`` → ``net/ipv4/ip_forward``.

    :raises InvalidInput: not a net sysctl
    """
    if len(key) > 200 or not _SYSCTL.fullmatch(key):
        raise InvalidInput(f"{key[:80]!r} is not a sysctl below net.")
    # sysctl(8): whichever separator comes first is the separator, the other one is part of names (eth0.5).
    return key if key[3] == "/" else key.replace("/", "\0").replace(".", "/").replace("\0", ".")


def _log_tail(path: pathlib.Path, stderr: bytes) -> str:
    """What LXC gave as reasons: the last few errors of its log, without time stamps."""
    try:
        lines = path.read_text(errors="replace").splitlines()
    except OSError:
        lines = []
    reasons = [line.split(" - ", 2)[-1] for line in lines if " ERROR " in line]
    if not reasons:
        reasons = stderr.decode(errors="replace").splitlines()[-3:]
    return "; ".join(reasons[:4])[:600] or "lxc-start failed without a word"


class ContainerDriver:
    """Defines, destroys and reads :class:`Container`."""

    kind = Container.kind

    def __init__(self, host: LxcHost) -> None:
        self._host = host
        self.warnings: dict[str, str] = {}
        """container name → what it has instead of what was asked, such as the default image for one that is missing"""

    def read(self) -> list[Container]:
        """All containers of this instance, from their directories. A half made one has ``uid_base`` -1."""
        found = (self._host.load(name) for name in self._host.our_names())
        return [container for container in found if container is not None]

    def ensure(self, wanted: Sequence[Container], actual: Mapping[Key, Container]) -> None:
        """Afterwards each container is defined. Limits and sysctls change while it runs, its host name at a start.

        Another image or uid range needs it stopped, and makes its root file system anew.
        """

        def define(name: str) -> None:
            warning = self._host.define(by_name[name])
            if warning:
                self.warnings[name] = warning

        by_name = {container.name: container for container in wanted}
        # One after another: it is all Python under one interpreter lock, threads would only add switches.
        raise_first([err for err in (_caught(define, name) for name in by_name) if err])

    def absent(self, objects: Sequence[Container]) -> None:
        """Afterwards nothing of the containers is left; one that runs is stopped."""
        for container in objects:
            self.warnings.pop(container.name, None)
        raise_all("deleting containers", self._host.in_parallel(self._host.destroy, [c.name for c in objects]))


class RunningDriver:
    """Starts, stops and reads :class:`Running`."""

    kind = Running.kind

    def __init__(self, host: LxcHost) -> None:
        self._host = host
        self._after: dict[str, tuple[Key, ...]] = {}

    def read(self) -> list[Running]:
        """All containers of this instance whose init runs: their cgroups say so and LXC agrees."""
        populated = self._host.cgroups.running()
        candidates = [name for name in self._host.our_names() if name in populated]
        if not candidates:
            return []
        states = self._host.worker.states(candidates)
        return [Running(n, self._after.get(n, ())) for n in candidates if states[n][0] in _ALIVE and states[n][1] > 1]

    def ensure(self, wanted: Sequence[Running], actual: Mapping[Key, Running]) -> None:
        """Afterwards each container runs; ``start_parallel`` start at a time, all are tried."""
        for running in wanted:
            self._after[running.name] = running.after
        raise_first(self._host.in_parallel(self._host.start, [running.name for running in wanted]))

    def absent(self, objects: Sequence[Running]) -> None:
        """Afterwards none of them runs and their cgroups are gone."""
        for running in objects:
            self._after.pop(running.name, None)
        raise_all("stopping slivers", self._host.in_parallel(self._host.stop, [running.name for running in objects]))


def drivers(settings: Settings, helper: PairHelper) -> tuple[LxcHost, ContainerDriver, RunningDriver, files.FileDriver]:
    """All that slivers need beside the pairs."""
    host = LxcHost(settings, helper)
    return host, ContainerDriver(host), RunningDriver(host), files.FileDriver(settings)
