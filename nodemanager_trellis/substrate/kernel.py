"""All drivers of one node behind one door: what the reconciler calls ``Kernel``.

Network kinds go through one netlink socket, one caller at a time; containers have their own workers and go in parallel.
"""

from __future__ import annotations

import contextlib
import logging
import shutil
import threading
from collections.abc import Iterator, Mapping, Sequence

from nodemanager_trellis.errors import InvalidInput, SubstrateError
from nodemanager_trellis.hooks import CompletedRun
from nodemanager_trellis.objects import KernelObject, Key
from nodemanager_trellis.substrate import Driver, lxc
from nodemanager_trellis.substrate.egre import Egre
from nodemanager_trellis.substrate.links import LinkUpDriver, VethDriver
from nodemanager_trellis.substrate.netlink import Netlink
from nodemanager_trellis.substrate.pairs import PairDriver, PairHelper
from nodemanager_trellis.substrate.settings import Settings
from nodemanager_trellis.substrate.tc import HtbClassDriver, HtbRootDriver
from nodemanager_trellis.substrate.watch import Watcher

log = logging.getLogger(__name__)


class LinuxKernel:
    """This machine, or one node of a lab: lives in the net namespace of the process that makes it.

    Make it before starting threads: its helper processes are started here.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._gate = threading.RLock()
        self._stack = contextlib.ExitStack()
        helper = self._stack.enter_context(contextlib.closing(PairHelper(settings)))
        self._lxc, containers, running, files = lxc.drivers(settings, helper)
        self._stack.callback(self._lxc.close)
        self._netlink = self._stack.enter_context(contextlib.closing(Netlink(settings.link_group)))
        self._macs: dict[str, str] = {}
        self._egre = Egre(settings, self._netlink, self._macs.get)
        network: list[Driver] = [
            *self._egre.drivers,
            HtbRootDriver(settings, self._netlink),
            HtbClassDriver(settings, self._netlink),
            VethDriver(settings, self._netlink),
            LinkUpDriver(settings, self._netlink),
        ]
        hosts: list[Driver] = [PairDriver(settings, helper), containers, running, files]
        self._network = {driver.kind for driver in network}
        self._drivers = {driver.kind: driver for driver in (*network, *hosts)}

    def close(self) -> None:
        """End the helpers and close the sockets. Slivers, links and limits stay as they are."""
        self._stack.close()

    # -- what the reconciler needs ------------------------------------------------------------------------------

    def read(self) -> dict[Key, KernelObject]:
        """Everything of ours that exists."""
        found: dict[Key, KernelObject] = {}
        for kind in self._drivers:
            with self._turn(kind):
                objects = self._drivers[kind].read()
            for obj in objects:
                found[obj.key] = obj
            if kind == "veth":
                self._macs.clear()
                self._macs.update({obj.ifname: obj.mac for obj in objects})
        return found

    def ensure(self, objects: Sequence[KernelObject], actual: Mapping[Key, KernelObject]) -> None:
        """Make or change objects of one kind."""
        kind = objects[0].kind
        with self._turn(kind):
            if kind == "veth":
                self._macs.update({obj.ifname: obj.mac for obj in objects})  # type: ignore[attr-defined]
            self._drivers[kind].ensure(objects, actual)

    def absent(self, objects: Sequence[KernelObject]) -> None:
        """Take away objects of one kind."""
        kind = objects[0].kind
        with self._turn(kind):
            self._drivers[kind].absent(objects)

    def run(self, container: str, argv: Sequence[str], stdin: bytes | None, timeout_s: float) -> CompletedRun:
        """Run a command as root inside a container."""
        return self._lxc.attach(container, argv, stdin, timeout_s)

    @contextlib.contextmanager
    def _turn(self, kind: str) -> Iterator[None]:
        if kind in self._network:
            with self._gate:
                yield
        else:
            yield

    # -- what the daemon needs ----------------------------------------------------------------------------------

    def underlay(self, address: str, device: str = "") -> tuple[str, int]:
        """(device, MTU) of the underlay: the named one, or the one that holds ``address``.

        :raises InvalidInput: there is none
        """
        with self._gate:
            link = self._netlink.link(device) if device else self._netlink.address_owner(address)
        if link is None:
            raise InvalidInput(
                f"no device {device}" if device else f"no device of this node holds its primary address {address}"
            )
        return link.ifname, link.mtu

    def refresh_neighbours(self) -> None:
        """Bring the tunnels' next-hop MAC addresses up to date with the kernel's neighbour table."""
        with self._gate:
            self._egre.refresh_neighbours()

    def watcher(self) -> Watcher:
        """Events of our devices, of neighbours and of the underlay."""
        return Watcher(self._settings.link_group)

    def forget(self) -> None:
        """After a purge: remove our directories.

        :raises SubstrateError: one of them cannot be removed
        """
        for path in (self._settings.slivers_dir, self._settings.run_dir / "user"):
            try:
                shutil.rmtree(path)
            except FileNotFoundError:
                continue
            except OSError as err:
                raise SubstrateError(f"directory {path}", "remove", err.errno or 0) from err
