"""Read actual → plan → apply → say what came of it. The only code that has the kernel changed.

A crash, a restart or a half-finished run is not a special case: the next run reads, compares and applies. One sliver's
failure stays its own, and within a sliver a failed object costs only what depends on it.
"""

from __future__ import annotations

import dataclasses
import logging
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import groupby
from typing import Protocol

from nodemanager_trellis import names, plan
from nodemanager_trellis.errors import TrellisError
from nodemanager_trellis.hooks import EVENTS, CompletedRun, Failure, Host, Registry, Wanted
from nodemanager_trellis.model import Desired, Node, Presence, Sliver
from nodemanager_trellis.objects import KernelObject, Key
from nodemanager_trellis.plan import Action, OwnerPlan, Plan, Step
from nodemanager_trellis.store import Store

log = logging.getLogger(__name__)

ROUNDS = 3
"""How often one run reads and applies: a re-made object can make others missing (a veth takes its filters along)."""


class Kernel(Protocol):
    """The substrate as seen from here."""

    def read(self) -> dict[Key, KernelObject]:
        """Everything of ours that exists."""

    def ensure(self, objects: Sequence[KernelObject], actual: Mapping[Key, KernelObject]) -> None:
        """Make or change objects of one kind."""

    def absent(self, objects: Sequence[KernelObject]) -> None:
        """Take away objects of one kind."""

    def run(self, container: str, argv: Sequence[str], stdin: bytes | None, timeout_s: float) -> CompletedRun:
        """Run a command as root inside a container."""


@dataclasses.dataclass(frozen=True, slots=True)
class StepFailure:
    """A step that did not succeed, and what was left out or undone because of it."""

    owner: str
    key: Key
    message: str


@dataclasses.dataclass(slots=True)
class Report:
    """What one run did."""

    plan: Plan = dataclasses.field(default_factory=lambda: Plan(()))
    """of the first round"""
    rounds: int = 0
    failures: list[StepFailure] = dataclasses.field(default_factory=list)
    plugin_failures: list[Failure] = dataclasses.field(default_factory=list)

    def trouble(self, sliver: Sliver | None) -> list[str]:
        """What went wrong for one sliver (None: for the node), one sentence each."""
        owner, name = (owner_of(sliver), sliver.name) if sliver else (plan.NODE, "")
        return [f.message for f in self.failures if f.owner == owner] + [
            f"plugin {f.plugin}, {f.hook}: {f.message}" for f in self.plugin_failures if f.slice == name
        ]

    @property
    def clean(self) -> bool:
        """Whether the kernel now matches what is wanted."""
        return not self.failures and not self.plugin_failures


@dataclasses.dataclass(slots=True)
class _Picture:
    """Everything that one comparison needs."""

    wanted: dict[str, Wanted]
    actual: dict[Key, KernelObject]
    owner_of: dict[Key, str]
    keep: list[str]

    def plan(self) -> Plan:
        return plan.make({o: w.objects for o, w in self.wanted.items()}, self.actual, self.owner_of, self.keep)


class Reconciler:
    """Brings the kernel in line with a :class:`Desired`."""

    def __init__(
        self, kernel: Kernel, registry: Registry, store: Store, *, parallel: int = 4, hook_timeout_s: float = 60
    ):
        self._kernel = kernel
        self._registry = registry
        self._store = store
        self._parallel = parallel
        self._hook_timeout_s = hook_timeout_s

    # -- what would be done -------------------------------------------------------------------------------------

    def plan(self, desired: Desired) -> Plan:
        """What :meth:`run` would do first. Changes nothing."""
        return self._picture(desired).plan()

    def _picture(self, desired: Desired) -> _Picture:
        applied = self._store.applied()
        remembered: dict[str, dict[str, list[KernelObject]]] = {}
        for entry in applied.values():
            remembered.setdefault(entry.owner, {}).setdefault(entry.plugin, []).append(entry.object)
        wanted = {plan.NODE: self._registry.for_node(desired.node, remembered.get(plan.NODE, {}))}
        keep = []
        for sliver in desired.slivers:
            if sliver.presence is Presence.LEAVE:
                keep.append(owner_of(sliver))
            else:
                owner = owner_of(sliver)
                wanted[owner] = self._registry.for_sliver(sliver, desired.node, remembered.get(owner, {}))
        return _Picture(wanted, self._kernel.read(), {key: entry.owner for key, entry in applied.items()}, keep)

    # -- doing it -----------------------------------------------------------------------------------------------

    def run(self, desired: Desired, progress: Callable[[str, str], None] = lambda slice_name, what: None) -> Report:
        """Make the kernel match. Never raises for one sliver's trouble; see the report.

        :param progress: called with (slice name, ``up``/``gone``/``failed``) as each sliver is done
        """
        report = Report()
        realised = self._store.realised()
        slivers = {owner_of(s): s for s in desired.slivers}
        for _ in range(ROUNDS):
            picture = self._picture(desired)
            todo = picture.plan()
            if report.rounds == 0:
                report.plan = todo
                for wanted in picture.wanted.values():
                    report.plugin_failures += wanted.failures
            # On record before the kernel is touched: whatever a crash leaves has an owner.
            busy = {part.owner for part in todo.owners}
            self._store.record(
                {o: w.objects for o, w in picture.wanted.items() if o in busy},
                {key: plugin for w in picture.wanted.values() for key, plugin in w.plugin_of.items()},
            )
            if not todo:
                break
            report.rounds += 1
            self._apply(todo, picture, slivers, realised, desired.node, report, progress)
            if report.failures:
                break
        self._after_updates(desired, realised, report)
        self._tidy(desired, report)
        return report

    def purge(self, node: Node) -> Report:
        """Take away everything of ours, the node's own objects included."""
        report = Report()
        realised = self._store.realised()
        for _ in range(ROUNDS):
            owners = {key: entry.owner for key, entry in self._store.applied().items()}
            picture = _Picture({}, self._kernel.read(), owners, [])
            todo = picture.plan()
            if not todo:
                break
            report.plan = report.plan or todo
            report.rounds += 1
            report.failures = []
            # Slivers first: the node's objects carry their links.
            for part in sorted(todo.owners, key=lambda p: p.owner == plan.NODE):
                self._apply(Plan((part,)), picture, {}, realised, node, report, lambda name, what: None)
        self._tidy(Desired(0, node), report)
        return report

    def _apply(
        self,
        todo: Plan,
        picture: _Picture,
        slivers: Mapping[str, Sliver],
        realised: dict[str, Sliver],
        node: Node,
        report: Report,
        progress: Callable[[str, str], None],
    ) -> None:
        gate = threading.Lock()
        node_failed: set[Key] = set()

        def take_down(part: OwnerPlan) -> None:
            sliver = slivers.get(part.owner) or realised.get(part.owner)
            if sliver and any(s.object.kind == "running" for s in part.removals):
                self._hooks("before_stop", sliver, node, report)
            failed = self._remove(part.removals)
            with gate:
                report.failures += [StepFailure(part.owner, key, text) for key, text in failed.items()]
            self._store.forget(s.object.key for s in part.removals if s.object.key not in failed)
            if part.owner in (plan.NODE, plan.ORPHANS) or part.owner in picture.wanted:
                return
            if not failed:
                if sliver:
                    self._hooks("after_destroy", sliver, node, report)
                realised.pop(part.owner, None)
                self._store.set_realised(part.owner, None)
                log.info("sliver gone", extra={"slice": part.owner})
            progress(part.owner, "failed" if failed else "gone")

        def build_up(part: OwnerPlan) -> None:
            failed = self._add(part.additions, picture.wanted[part.owner].objects, picture.actual, node_failed)
            with gate:
                report.failures += [StepFailure(part.owner, key, text) for key, text in failed.items()]
            sliver = slivers.get(part.owner)
            if sliver is None:
                node_failed.update(failed)
                return
            made = {s.object.kind for s in part.additions if s.action is Action.CREATE and s.object.key not in failed}
            if part.owner not in realised:
                realised[part.owner] = sliver
                self._store.set_realised(part.owner, sliver)
                self._hooks("after_create", sliver, node, report)
            if "running" in made:
                log.info("sliver started", extra={"slice": part.owner})
                self._hooks("after_start", sliver, node, report)
            progress(part.owner, "failed" if failed else "up")

        with ThreadPoolExecutor(self._parallel, "sliver") as pool:
            _drain(pool.map(take_down, [p for p in todo.owners if p.removals]))
            node_part = todo.of(plan.NODE)
            if node_part and node_part.additions:
                build_up(node_part)
            _drain(pool.map(build_up, [p for p in todo.owners if p.additions and p.owner != plan.NODE]))

    def _remove(self, steps: Sequence[Step]) -> dict[Key, str]:
        """Take away what it can; returns what it could not, with the reason."""
        failed: dict[Key, str] = {}
        standing: dict[Key, str] = {}
        for _, run in groupby(steps, key=lambda s: s.object.kind):
            objects = []
            for obj in (s.object for s in run):
                if obj.key in standing:
                    failed[obj.key] = f"{obj.title} not taken away: {standing[obj.key]} still stands on it"
                    standing.update(dict.fromkeys(obj.needs, obj.title))
                else:
                    objects.append(obj)
            for obj, err in self._each(objects, self._kernel.absent):
                failed[obj.key] = str(err)
                standing.update(dict.fromkeys(obj.needs, obj.title))
                log.error("removal failed", extra={"object": obj.title, "error": str(err)})
        return failed

    def _add(
        self,
        steps: Sequence[Step],
        wanted: Mapping[Key, KernelObject],
        actual: Mapping[Key, KernelObject],
        unmet: set[Key],
    ) -> dict[Key, str]:
        """Make and change in order. What fails takes along what needs it and what was made only for it."""
        failed: dict[Key, str] = {}
        done: list[Step] = []
        for _, run in groupby(steps, key=lambda s: s.object.kind):
            batch = []
            for step in run:
                missing = next((key for key in step.object.needs if key in failed or key in unmet), None)
                if missing is None:
                    batch.append(step)
                else:
                    failed[step.object.key] = (
                        f"{step.object.title} not made: it needs {' '.join(missing)}, which failed"
                    )
            errors = {
                obj.key: err
                for obj, err in self._each([s.object for s in batch], lambda objs: self._kernel.ensure(objs, actual))
            }
            for step in batch:
                err = errors.get(step.object.key)
                if err is None:
                    done.append(step)
                    continue
                failed[step.object.key] = str(err)
                log.error(
                    "step failed", extra={"object": step.object.title, "step": step.action.value, "error": str(err)}
                )
                self._put_back(step)
        if failed:
            self._undo(done, wanted, failed)
        return failed

    def _undo(self, done: Sequence[Step], wanted: Mapping[Key, KernelObject], failed: dict[Key, str]) -> None:
        """Take away what was made now and serves only what failed; put back what was changed only for it."""
        needed_by: dict[Key, list[Key]] = {}
        for obj in wanted.values():
            for key in obj.needs:
                needed_by.setdefault(key, []).append(obj.key)
        lost = set(failed)
        for step in reversed(done):
            users = needed_by.get(step.object.key, [])
            if users and all(user in lost for user in users):
                lost.add(step.object.key)
                failed[step.object.key] = f"{step.object.title} taken back: only what failed needed it"
                self._put_back(step)

    def _put_back(self, step: Step) -> None:
        try:
            if step.action is Action.CREATE:
                self._kernel.absent([step.object])
            elif step.old is not None:
                self._kernel.ensure([step.old], {step.object.key: step.object})
        except Exception as err:
            log.error("undo failed", extra={"object": step.object.title, "error": str(err)})

    def _each(
        self, objects: Sequence[KernelObject], action: Callable[[Sequence[KernelObject]], None]
    ) -> list[tuple[KernelObject, Exception]]:
        """``action`` on all at once; where that fails, one by one, to know which. Returns the failures."""
        if not objects:
            return []
        try:
            action(objects)
            return []
        except Exception as err:
            self._surprise(err)
            if len(objects) == 1:
                return [(objects[0], err)]
        failures = []
        for obj in objects:
            try:
                action([obj])
            except Exception as err:
                self._surprise(err)
                failures.append((obj, err))
        return failures

    @staticmethod
    def _surprise(err: Exception) -> None:
        if not isinstance(err, (TrellisError, ExceptionGroup)):
            log.error("unexpected error", exc_info=err)

    # -- side work ----------------------------------------------------------------------------------------------

    def _hooks(self, event: str, sliver: Sliver, node: Node, report: Report, old: Sliver | None = None) -> None:
        assert event in EVENTS
        host = _SliverHost(self._kernel, node)
        plugins: Iterable = self._registry.plugins
        if event in ("before_stop", "after_destroy"):
            plugins = reversed(self._registry.plugins)
        for plugin in plugins:
            hook = getattr(plugin, event)
            args = (old, sliver, node, host) if old is not None else (sliver, node, host)
            failure = self._bounded(hook, args)
            if failure is not None:
                log.error(
                    "plugin failed",
                    extra={"plugin": plugin.name, "hook": event, "slice": sliver.name, "error": failure},
                )
                report.plugin_failures.append(Failure(plugin.name, event, failure, sliver.name))

    def _bounded(self, hook: Callable[..., None], args: tuple) -> str | None:
        """Call a hook, at most ``hook_timeout_s``; returns what went wrong. One that hangs is left behind."""
        outcome: list[str] = []

        def call() -> None:
            try:
                hook(*args)
            except Exception as err:
                log.debug("plugin raised", exc_info=True)
                outcome.append(f"{type(err).__name__}: {err}")

        thread = threading.Thread(target=call, name="hook", daemon=True)
        thread.start()
        thread.join(self._hook_timeout_s)
        if thread.is_alive():
            return f"not done after {self._hook_timeout_s:g} s; left behind"
        return outcome[0] if outcome else None

    def _after_updates(self, desired: Desired, realised: dict[str, Sliver], report: Report) -> None:
        failed = {f.owner for f in report.failures}
        for sliver in desired.slivers:
            owner = owner_of(sliver)
            old = realised.get(owner)
            if old is None or old == sliver or owner in failed or sliver.presence is Presence.LEAVE:
                continue
            self._store.set_realised(owner, sliver)
            log.info("sliver updated", extra={"slice": sliver.name})
            if sliver.presence is Presence.RUN:
                self._hooks("after_update", sliver, desired.node, report, old=old)

    # -- memory -------------------------------------------------------------------------------------------------

    def _tidy(self, desired: Desired, report: Report) -> None:
        """Once everything matches, free the numbers of what is gone."""
        if report.failures:
            return
        self._store.forget_numbers(desired)


def owner_of(sliver: Sliver) -> str:
    """Owner of a sliver's objects: name and id, since a slice made again under its name is another one."""
    return f"{sliver.name}#{sliver.slice_id}"


def _drain(results: Iterable[None]) -> None:
    for _ in results:
        pass


class _SliverHost(Host):
    """What hooks get."""

    def __init__(self, kernel: Kernel, node: Node) -> None:
        self._kernel = kernel
        self._node = node

    def run(
        self, sliver: Sliver, argv: Sequence[str], *, stdin: bytes | None = None, timeout_s: float = 10
    ) -> CompletedRun:
        return self._kernel.run(names.sliver_id(self._node.instance, sliver.slice_id), argv, stdin, timeout_s)
