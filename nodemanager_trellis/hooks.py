"""The plugin framework (DESIGN §3): hooks on sliver events that return wanted kernel objects, or do side work.

``create(sliver, node)`` returns what exists while the sliver exists, ``start(sliver, node)`` what exists while it runs,
``node(node)`` what exists always. These are pure: no I/O, no root; they are replayed at every restart. ``stop`` and
``destroy`` need no code: what nobody wants any more is taken away in reverse order. Side work goes into the ``after_*``
and ``before_stop`` hooks, which are called once the kernel matches.
"""

from __future__ import annotations

import dataclasses
import importlib.metadata
import importlib.util
import logging
import pathlib
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Protocol

from nodemanager_trellis.errors import PluginError
from nodemanager_trellis.model import Node, Presence, Sliver
from nodemanager_trellis.objects import KernelObject, Key

log = logging.getLogger(__name__)

ENTRY_POINT_GROUP = "nodemanager_trellis.plugins"


@dataclasses.dataclass(frozen=True, slots=True)
class CompletedRun:
    """What a command did, inside a sliver or outside."""

    returncode: int
    """exit status; negative: the signal that ended it"""
    stdout: bytes
    stderr: bytes
    timed_out: bool = False
    """it was killed because its time was over"""
    truncated: bool = False
    """more came than is kept of each stream (1 MiB)"""


class Host(Protocol):
    """What side work may do to a running sliver."""

    def run(
        self, sliver: Sliver, argv: Sequence[str], *, stdin: bytes | None = None, timeout_s: float = 10
    ) -> CompletedRun:
        """Run a command as root inside the sliver, in its namespaces and with its limits."""


class Plugin:
    """Base class. A subclass sets ``name`` and overrides what it needs; nothing else is required."""

    name: str = ""
    priority: int = 100
    """lower comes first; equal priorities keep their load order"""

    def node(self, node: Node) -> Iterable[KernelObject]:
        """Objects that exist as long as this node is managed. Pure."""
        return ()

    def create(self, sliver: Sliver, node: Node) -> Iterable[KernelObject]:
        """Objects that exist while the sliver exists. Pure."""
        return ()

    def start(self, sliver: Sliver, node: Node) -> Iterable[KernelObject]:
        """Objects that exist while the sliver runs. Pure."""
        return ()

    def after_create(self, sliver: Sliver, node: Node, host: Host) -> None:
        """The sliver's objects exist for the first time."""

    def after_start(self, sliver: Sliver, node: Node, host: Host) -> None:
        """The sliver has been started."""

    def after_update(self, old: Sliver, new: Sliver, node: Node, host: Host) -> None:
        """What PLC says of the sliver has changed, and the kernel matches."""

    def before_stop(self, sliver: Sliver, node: Node, host: Host) -> None:
        """The sliver is about to be stopped; it still runs."""

    def after_destroy(self, sliver: Sliver, node: Node, host: Host) -> None:
        """Nothing of the sliver is left."""


EVENTS = ("after_create", "after_start", "after_update", "before_stop", "after_destroy")


@dataclasses.dataclass(frozen=True, slots=True)
class Failure:
    """A plugin lost its turn for one sliver (or, with '' as slice, for the node)."""

    plugin: str
    hook: str
    message: str
    slice: str = ""


@dataclasses.dataclass(slots=True)
class Wanted:
    """What all plugins together want for one sliver: object by key, who wants it, and who failed."""

    objects: dict[Key, KernelObject] = dataclasses.field(default_factory=dict)
    plugin_of: dict[Key, str] = dataclasses.field(default_factory=dict)
    failures: list[Failure] = dataclasses.field(default_factory=list)


Remembered = Mapping[str, Sequence[KernelObject]]
"""plugin name → the objects it wanted at its last good turn"""


class Registry:
    """The loaded plugins in order, and the fence around each."""

    def __init__(self, plugins: Iterable[Plugin]) -> None:
        self.plugins: tuple[Plugin, ...] = tuple(sorted(plugins, key=lambda p: p.priority))

    def for_node(self, node: Node, remembered: Remembered) -> Wanted:
        """Everything that exists as long as the node is managed."""
        return self._collect("", remembered, lambda p: p.node(node), "node")

    def for_sliver(self, sliver: Sliver, node: Node, remembered: Remembered) -> Wanted:
        """Everything wanted for ``sliver``; a plugin that raises keeps what it wanted before (``remembered``)."""
        if sliver.presence is Presence.LEAVE:
            return Wanted()

        def turn(plugin: Plugin) -> Iterable[KernelObject]:
            objects = list(plugin.create(sliver, node))
            if sliver.presence is Presence.RUN:
                objects += plugin.start(sliver, node)
            return objects

        return self._collect(sliver.name, remembered, turn, "create/start")

    def _collect(self, slice_name: str, remembered: Remembered, turn: _Turn, hook: str) -> Wanted:
        wanted = Wanted()
        for plugin in self.plugins:
            try:
                objects = list(turn(plugin))
                for obj in objects:
                    if not isinstance(obj, KernelObject):
                        raise PluginError(f"returned a {type(obj).__name__}, not a kernel object")
                    if wanted.objects.get(obj.key, obj) != obj:
                        raise PluginError(f"{obj.title} is already wanted otherwise by {wanted.plugin_of[obj.key]}")
            except Exception as err:
                log.error(
                    "plugin failed",
                    extra={"plugin": plugin.name, "hook": hook, "slice": slice_name, "error": str(err)},
                    exc_info=not isinstance(err, PluginError),
                )
                wanted.failures.append(Failure(plugin.name, hook, f"{type(err).__name__}: {err}", slice_name))
                objects = [o for o in remembered.get(plugin.name, ()) if wanted.objects.get(o.key, o) == o]
            for obj in objects:
                wanted.objects[obj.key] = obj
                wanted.plugin_of.setdefault(obj.key, plugin.name)
        return wanted


class _Turn(Protocol):
    def __call__(self, plugin: Plugin, /) -> Iterable[KernelObject]: ...


def load(disabled: Iterable[str] = (), drop_in: pathlib.Path | None = None) -> Registry:
    """Find plugins: the entry-point group, then every ``*.py`` of the drop-in directory.

    A plugin that cannot be loaded is logged and skipped; a name met twice is used once, the first wins.
    """
    found: dict[str, Plugin] = {}
    off = set(disabled)

    def add(candidate: object, source: str) -> None:
        if isinstance(candidate, type) and issubclass(candidate, Plugin) and candidate is not Plugin:
            plugin = candidate()
            if not plugin.name:
                raise PluginError(f"{candidate.__name__} of {source} has no name")
            if plugin.name in found:
                log.warning("plugin name met twice", extra={"plugin": plugin.name, "source": source})
            elif plugin.name not in off:
                found[plugin.name] = plugin

    for point in sorted(importlib.metadata.entry_points(group=ENTRY_POINT_GROUP), key=lambda p: p.name):
        if point.name in off:
            continue
        try:
            add(point.load(), point.value)
        except Exception as err:
            log.error("plugin not loaded", extra={"plugin": point.name, "error": str(err)}, exc_info=True)
    for path in sorted(drop_in.glob("*.py")) if drop_in and drop_in.is_dir() else ():
        try:
            for candidate in vars(_import_file(path)).values():
                if getattr(candidate, "__module__", "") == _module_name(path):
                    add(candidate, str(path))
        except Exception as err:
            log.error("plugin not loaded", extra={"plugin": str(path), "error": str(err)}, exc_info=True)
    return Registry(found.values())


def _module_name(path: pathlib.Path) -> str:
    return f"trellis_plugin_{path.stem}"


def _import_file(path: pathlib.Path) -> object:
    name = _module_name(path)
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise PluginError(f"{path} is not a Python module")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module
