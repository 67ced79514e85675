"""The slice's initscript: installed in the sliver, run as ``initscript start|stop|restart SLICE``."""

from __future__ import annotations

import logging
from collections.abc import Iterable

from nodemanager_trellis import names
from nodemanager_trellis.hooks import Host, Plugin
from nodemanager_trellis.model import Node, Sliver
from nodemanager_trellis.objects import KernelObject, SliverFile

log = logging.getLogger(__name__)

START_TIMEOUT_S = 30
STOP_TIMEOUT_S = 5


class InitScript(Plugin):
    """Runs it when the sliver starts, stops, or when its text changes (planetlab.md §2.6)."""

    name = "initscript"
    priority = 60

    def create(self, sliver: Sliver, node: Node) -> Iterable[KernelObject]:
        if sliver.initscript:
            yield SliverFile(names.sliver_id(node.instance, sliver.slice_id), "initscript", sliver.initscript, 0o755)

    def after_start(self, sliver: Sliver, node: Node, host: Host) -> None:
        self._call(sliver, host, "start", START_TIMEOUT_S)

    def after_update(self, old: Sliver, new: Sliver, node: Node, host: Host) -> None:
        if old.initscript != new.initscript:
            self._call(new, host, "restart", START_TIMEOUT_S)

    def before_stop(self, sliver: Sliver, node: Node, host: Host) -> None:
        self._call(sliver, host, "stop", STOP_TIMEOUT_S)

    def _call(self, sliver: Sliver, host: Host, verb: str, timeout_s: float) -> None:
        if not sliver.initscript:
            return
        # Output goes to a file inside: a daemon that keeps our pipe open must not keep us waiting.
        command = 'exec /etc/trellis/initscript "$1" "$2" >>/var/log/initscript.log 2>&1 </dev/null'
        done = host.run(sliver, ["/bin/sh", "-c", command, "sh", verb, sliver.name], timeout_s=timeout_s)
        if done.returncode:
            status = "out of time" if done.timed_out else done.returncode
            log.warning("initscript failed", extra={"slice": sliver.name, "verb": verb, "status": status})
