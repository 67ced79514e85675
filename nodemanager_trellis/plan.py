"""wanted − actual → a plan: ordered steps, each with its reason. A value; printing it changes nothing."""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Iterable, Mapping

from nodemanager_trellis import units
from nodemanager_trellis.objects import KernelObject, Key

ORPHANS = "?"
"""Owner of objects that bear our mark and that no sliver on record has."""

NODE = ""
"""Owner of the node's own objects."""


class Action(enum.StrEnum):
    """What a step does."""

    REMOVE = "remove"
    CHANGE = "change"
    CREATE = "create"


@dataclasses.dataclass(frozen=True, slots=True)
class Step:
    """One object to make, change or take away."""

    action: Action
    object: KernelObject
    reason: str
    old: KernelObject | None = None
    """what is there now, for a change or a removal"""

    def __str__(self) -> str:
        sign = {Action.REMOVE: "-", Action.CHANGE: "~", Action.CREATE: "+"}[self.action]
        return f"{sign} {self.object.title}: {self.reason}"


@dataclasses.dataclass(frozen=True, slots=True)
class OwnerPlan:
    """The steps of one sliver (or of the node, or of orphans): removals first, then what builds up."""

    owner: str
    steps: tuple[Step, ...]

    @property
    def removals(self) -> tuple[Step, ...]:
        """In reverse order of dependence."""
        return tuple(s for s in self.steps if s.action is Action.REMOVE)

    @property
    def additions(self) -> tuple[Step, ...]:
        """In order of dependence."""
        return tuple(s for s in self.steps if s.action is not Action.REMOVE)


@dataclasses.dataclass(frozen=True, slots=True)
class Plan:
    """All owners that need something done: the node first, then slivers by name."""

    owners: tuple[OwnerPlan, ...]

    def __bool__(self) -> bool:
        return bool(self.owners)

    def of(self, owner: str) -> OwnerPlan | None:
        """The part of one owner; None when it needs nothing."""
        return next((p for p in self.owners if p.owner == owner), None)

    def render(self) -> str:
        """For people: one line a step under a line per owner; ``nothing to do`` for an empty plan."""
        if not self.owners:
            return "nothing to do"
        lines = []
        for part in self.owners:
            lines.append({NODE: "node", ORPHANS: "left over, of no sliver on record"}.get(part.owner, part.owner))
            lines += [f"  {step}" for step in part.steps]
        return "\n".join(lines)


def before(obj: KernelObject) -> tuple[Key, ...]:
    """Everything that comes before ``obj`` in a plan if it is there at all: its needs, and what it waits for."""
    return (*obj.needs, *getattr(obj, "after", ()))


def in_order(objects: Mapping[Key, KernelObject]) -> list[list[KernelObject]]:
    """Objects in levels: each level needs only earlier ones. Within a level sorted by kind and ident.

    :raises ValueError: needs form a circle
    """
    left = dict(objects)
    levels: list[list[KernelObject]] = []
    while left:
        ready = [o for o in left.values() if not any(k in left and k != o.key for k in before(o))]
        if not ready:
            raise ValueError(f"objects need each other in a circle: {sorted(left)[:4]}")
        levels.append(sorted(ready, key=lambda o: o.key))
        for obj in ready:
            del left[obj.key]
    return levels


def make(
    wanted: Mapping[str, Mapping[Key, KernelObject]],
    actual: Mapping[Key, KernelObject],
    owner_of: Mapping[Key, str],
    keep: Iterable[str] = (),
) -> Plan:
    """Compare what every owner wants with what exists.

    :param wanted: owner → its objects; an owner that is absent wants nothing
    :param actual: everything of ours that exists
    :param owner_of: who is on record for an existing object that nobody wants now
    :param keep: owners whose unwanted objects stay untouched (slivers this node leaves alone)
    """
    wanted_by = {key: owner for owner, objects in wanted.items() for key in objects}
    removals: dict[str, dict[Key, KernelObject]] = {}
    kept = set(keep)
    for key, obj in actual.items():
        owner = owner_of.get(key, ORPHANS)
        if key not in wanted_by and owner not in kept:
            removals.setdefault(owner, {})[key] = obj
    parts = []
    for owner in sorted({*wanted, *removals}, key=lambda o: (o == ORPHANS, o != NODE, o)):
        gone = owner not in wanted
        steps = [
            Step(Action.REMOVE, obj, "its sliver is gone" if gone and owner != ORPHANS else "no longer wanted", obj)
            for level in reversed(in_order(removals.get(owner, {})))
            for obj in level
        ]
        for level in in_order(wanted.get(owner, {})):
            for obj in level:
                there = actual.get(obj.key)
                if there is None:
                    steps.append(Step(Action.CREATE, obj, "missing"))
                elif there != obj:
                    steps.append(Step(Action.CHANGE, obj, difference(there, obj), there))
        if steps:
            parts.append(OwnerPlan(owner, tuple(steps)))
    return Plan(tuple(parts))


def difference(old: KernelObject, new: KernelObject) -> str:
    """What changes from ``old`` to ``new``, for people: ``ceil 10mbit → 20mbit``."""
    if type(old) is not type(new) or not dataclasses.is_dataclass(new):
        return f"{old!r} → {new!r}"
    words = []
    for field in dataclasses.fields(new):
        a, b = getattr(old, field.name), getattr(new, field.name)
        if not field.compare or a == b:
            continue
        if field.name.endswith("_bps"):
            words.append(f"{field.name.removesuffix('_bps')} {units.format_rate(a)} → {units.format_rate(b)}")
        elif field.name == "content":
            words.append(f"content {len(a)} → {len(b)} characters" if len(a) != len(b) else "other content")
        else:
            words.append(f"{field.name} {_short(a)} → {_short(b)}")
    return ", ".join(words)


def _short(value: object) -> str:
    if isinstance(value, tuple):
        return ",".join(str(v) for v in value) or "none"
    return str(value)
