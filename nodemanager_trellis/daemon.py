"""``trellis-nm``: asks PLC, keeps the kernel in line, waits for changes. Can die at any moment without harm.

Threads: *main* reconciles and is the only one that changes the kernel; *plc* polls; *watch* listens to the kernel.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import fcntl
import json
import logging
import os
import pathlib
import random
import signal
import socket
import sys
import threading
import time
from collections.abc import Sequence
from typing import Any

from nodemanager_trellis import __version__, atomic, config, hooks, logs, names
from nodemanager_trellis.config import Config
from nodemanager_trellis.errors import InvalidInput, PlcError, TrellisError
from nodemanager_trellis.intake import getslivers
from nodemanager_trellis.model import Desired, Node, Presence, Sliver
from nodemanager_trellis.plcapi import PlcClient
from nodemanager_trellis.reconcile import Reconciler, Report
from nodemanager_trellis.store import Store
from nodemanager_trellis.substrate.kernel import LinuxKernel
from nodemanager_trellis.substrate.netns import enter
from nodemanager_trellis.substrate.settings import Settings

log = logging.getLogger(__name__)

AUDIT_S = 30
"""At least this often the kernel is compared with what is wanted, whatever nobody told us."""
RETRY_MOST_S = 60


def settings_of(conf: Config) -> Settings:
    """The substrate's part of the configuration."""
    return Settings(
        instance=conf.instance,
        state_dir=pathlib.Path(conf.state_dir),
        run_dir=pathlib.Path(conf.run_dir),
        bpffs=pathlib.Path(conf.bpffs),
        link_group=conf.link_group,
        start_parallel=conf.start_parallel,
    )


def notify_systemd(state: str) -> None:
    """sd_notify(3), when systemd started us."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if address:
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
            sock.sendto(state.encode(), "\0" + address[1:] if address.startswith("@") else address)


class NodeManager:
    """One node's manager: store, kernel, plugins and the threads between them."""

    def __init__(self, conf: Config, kernel: LinuxKernel, store: Store, registry: hooks.Registry) -> None:
        self._conf = conf
        self._kernel = kernel
        self._store = store
        self._reconciler = Reconciler(
            kernel, registry, store, parallel=conf.start_parallel, hook_timeout_s=conf.hook_timeout_s
        )
        self._wake = threading.Condition()
        self._due = True
        self._urgent = True
        self._stop = False
        self._revision = 0
        self._run_dir = pathlib.Path(conf.run_dir)

    # -- life ---------------------------------------------------------------------------------------------------

    def run(self) -> None:
        """Work until :meth:`stop`. Slivers keep running afterwards."""
        threads = [
            threading.Thread(target=self._fenced, args=(self._poll,), name="plc", daemon=True),
            threading.Thread(target=self._fenced, args=(self._watch,), name="watch", daemon=True),
        ]
        for thread in threads:
            thread.start()
        self._reconcile_loop()

    def stop(self) -> None:
        """End after the current run."""
        with self._wake:
            self._stop = True
            self._wake.notify_all()

    def kick(self, urgent: bool = True) -> None:
        """Compare and apply: at once, or (for what a sliver can cause as often as it likes) after a rest."""
        with self._wake:
            self._due = True
            self._urgent = self._urgent or urgent
            self._wake.notify_all()

    def _fenced(self, loop: Any) -> None:
        """A thread's loop must not end the daemon, nor end silently."""
        while not self._stop:
            try:
                loop()
            except Exception:
                log.error("thread failed, going on", extra={"thread": threading.current_thread().name}, exc_info=True)
                self._sleep(5)

    def _sleep(self, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        with self._wake:
            self._wake.wait_for(lambda: self._stop or time.monotonic() >= deadline, timeout=seconds)

    # -- PLC ----------------------------------------------------------------------------------------------------

    def _poll(self) -> None:
        client = PlcClient(self._conf)
        trouble = 0
        while not self._stop:
            try:
                revision = client.wait(-1) if self._conf.long_poll_s else None
                self.accept(client.slivers())
                if trouble:
                    log.info("PLC answers again")
                trouble = 0
                if revision is None:
                    self._sleep(self._conf.poll_period_s + random.uniform(0, self._conf.poll_random_s))
                    continue
                while not self._stop:
                    now = client.wait(revision)
                    if now is None or now > revision:
                        break
            except (PlcError, InvalidInput) as err:
                # The last good answer stays in force, whatever happens here.
                trouble += 1
                pause = min(RETRY_MOST_S, 2 ** min(trouble, 6) / 2) * random.uniform(0.5, 1)
                level = logging.WARNING if trouble == 1 else logging.DEBUG
                log.log(
                    level,
                    "PLC not usable, going on with the last good answer",
                    extra={"error": str(err), "retry_s": round(pause, 1)},
                )
                self._sleep(pause)

    def accept(self, answer: Any) -> None:
        """Take in one GetSlivers answer: understood, numbered and kept, it is in force from now on.

        :raises InvalidInput: the answer as a whole is unusable; the last good one stays in force
        """
        desired = getslivers.parse(
            answer,
            now=int(time.time()),
            previous=self._store.desired(),
            slice_prefix=self._conf.slice_prefix,
            expected_node_id=self._conf.node_id,
        )
        desired = self._with_facts(desired)
        if self._store.put_in_force(desired, answer):
            for problem in desired.problems:
                log.warning(
                    "input refused",
                    extra={
                        "slice": problem.slice,
                        "path": problem.path,
                        "error": problem.message,
                        "kept": problem.kept,
                    },
                )
            log.info("new answer in force", extra={"slivers": len(desired.slivers), "problems": len(desired.problems)})
            self.kick()

    def _with_facts(self, desired: Desired) -> Desired:
        device, mtu = self._kernel.underlay(desired.node.address, self._conf.underlay)
        node = dataclasses.replace(desired.node, instance=self._conf.instance, underlay=device, mtu=mtu)
        return dataclasses.replace(desired, node=node)

    # -- kernel -------------------------------------------------------------------------------------------------

    def _watch(self) -> None:
        with self._kernel.watcher() as watcher:
            while not self._stop:
                for event in watcher.wait(1.0):
                    if event.kind in ("neighbour", "underlay", "resync"):
                        self._kernel.refresh_neighbours()
                    if event.kind in ("link", "underlay", "resync"):
                        self.kick(urgent=False)

    def _reconcile_loop(self) -> None:
        failed = 0
        rest_s = 0.0
        while True:
            with self._wake:
                # A sliver that deletes its links in a loop gets a third of one core at most.
                self._wake.wait_for(lambda: self._stop or self._urgent, timeout=rest_s)
                pause = min(RETRY_MOST_S, 2 ** min(failed, 6)) if failed else AUDIT_S
                self._wake.wait_for(lambda: self._stop or self._due, timeout=pause)
                if self._stop:
                    return
                self._due = self._urgent = False
            began = time.monotonic()
            try:
                report = self.reconcile()
                failed = 0 if report is None or report.clean else failed + 1
            except TrellisError as err:
                failed += 1
                log.error("reconcile failed, will try again", extra={"error": str(err)})
            except Exception:
                failed += 1
                log.error("reconcile failed, will try again", exc_info=True)
            rest_s = 2 * (time.monotonic() - began)

    def reconcile(self) -> Report | None:
        """One run with what is in force now; None while there is nothing in force yet."""
        desired = self._store.desired()
        if desired is None:
            return None
        now = int(time.time())
        live = dataclasses.replace(desired, slivers=tuple(s for s in desired.slivers if s.expires > now))
        started = time.monotonic()
        report = self._reconciler.run(live)
        self._revision += 1
        if report.plan:
            took_ms = round((time.monotonic() - started) * 1000)
            log.info(
                "reconciled", extra={"slivers": len(live.slivers), "took_ms": took_ms, "failures": len(report.failures)}
            )
        self._kernel.refresh_neighbours()
        atomic.write_text(self._run_dir / "status.json", json.dumps(self._status(live, report), indent=1), 0o644)
        if self._revision == 1:
            atomic.write_text(self._run_dir / "ready", f"{os.getpid()}\n", 0o644)
            notify_systemd("READY=1")
        return report

    def _status(self, desired: Desired, report: Report) -> dict[str, Any]:
        return {
            "updated": time.time(),
            "timestamp": desired.timestamp,
            "revision": self._revision,
            "pid": os.getpid(),
            "node": {
                "node_id": desired.node.node_id,
                "hostname": desired.node.hostname,
                "address": desired.node.address,
            },
            "slivers": {s.name: self._sliver_status(s, desired, report) for s in desired.slivers},
            "problems": [dataclasses.asdict(p) for p in desired.problems if not p.slice]
            + [{"path": "", "message": text, "slice": "", "kept": ""} for text in report.trouble(None)],
        }

    def _sliver_status(self, sliver: Sliver, desired: Desired, report: Report) -> dict[str, Any]:
        trouble = report.trouble(sliver)
        problems = [
            f"{p.path}: {p.message}" + (f" (kept: {p.kept})" if p.kept else "")
            for p in desired.problems
            if p.slice == sliver.name
        ]
        states = {Presence.RUN: "running", Presence.STOP: "stopped", Presence.LEAVE: "left"}
        return {
            "state": "degraded" if trouble else states[sliver.presence],
            "slice_id": sliver.slice_id,
            "container": names.sliver_id(self._conf.instance, sliver.slice_id),
            "problems": trouble + problems,
            "links": {
                link.name: {
                    "ifname": names.root_ifname(sliver.slice_id, link.name),
                    "inner": link.ifname,
                    "key": link.key,
                    "remote_node_id": link.remote_node_id,
                    "remote_ip": link.remote_ip,
                    "rate_bps": link.rate_bps,
                    "minor": link.number,
                }
                for link in sliver.links
            },
        }

    def purge(self) -> Report:
        """Take away every sliver and everything else of ours on this node."""
        desired = self._store.desired()
        node = desired.node if desired else Node(self._conf.node_id, "", "", instance=self._conf.instance)
        report = self._reconciler.purge(node)
        if not report.failures:
            self._kernel.forget()
            for name in ("status.json", "ready"):
                (self._run_dir / name).unlink(missing_ok=True)
        return report


def hold_lock(run_dir: pathlib.Path) -> int:
    """Make sure that only one node manager works on this instance; the lock goes with the process.

    :raises TrellisError: another one holds it
    """
    run_dir.mkdir(parents=True, exist_ok=True)
    fd = os.open(run_dir / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as err:
        os.close(fd)
        raise TrellisError(f"another node manager holds {run_dir}/lock; nothing was changed") from err
    return fd


def prepare(conf: Config) -> None:
    """Enter the node's net namespace and check that we may work at all.

    :raises TrellisError: not root, or the namespace cannot be entered
    """
    if os.geteuid() != 0:
        raise TrellisError("must run as root: it makes namespaces, devices and containers; nothing was changed")
    if conf.netns:
        enter(conf.netns)


def main(argv: Sequence[str] | None = None) -> int:
    """The command ``trellis-nm``; returns its exit status."""
    parser = argparse.ArgumentParser(prog="trellis-nm", description="Node manager of a Trellis testbed.")
    parser.add_argument("-f", "--config", default=config.DEFAULT_PATH, help="configuration file (default: %(default)s)")
    parser.add_argument(
        "--purge", action="store_true", help="remove every sliver and everything else of ours, then end"
    )
    parser.add_argument("--version", action="version", version=f"trellis-nm {__version__}")
    args = parser.parse_args(argv)
    try:
        conf = config.load(args.config)
        logs.setup(conf.log_level)
        prepare(conf)
        lock = hold_lock(pathlib.Path(conf.run_dir))
    except TrellisError as err:
        print(f"trellis-nm: {err}", file=sys.stderr)
        return 1
    try:
        with (
            contextlib.closing(Store(conf.store_path)) as store,
            contextlib.closing(LinuxKernel(settings_of(conf))) as kernel,
        ):
            drop_in = pathlib.Path(conf.plugin_dir)
            manager = NodeManager(conf, kernel, store, hooks.load(conf.disabled_plugins, drop_in))
            if args.purge:
                report = manager.purge()
                for failure in report.failures:
                    print(f"trellis-nm: {failure.message}", file=sys.stderr)
                return 1 if report.failures else 0
            for number in (signal.SIGTERM, signal.SIGINT):
                signal.signal(number, lambda *_: manager.stop())
            signal.signal(signal.SIGHUP, lambda *_: manager.kick())
            log.info("started", extra={"version": __version__, "node_id": conf.node_id, "instance": conf.instance})
            manager.run()
            log.info("ended, slivers keep running")
        return 0
    except TrellisError as err:
        print(f"trellis-nm: {err}", file=sys.stderr)
        return 1
    finally:
        os.close(lock)


if __name__ == "__main__":
    sys.exit(main())
