"""Fakes: an in-memory kernel that obeys the same trio as the real substrate."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from nodemanager_trellis.errors import SubstrateError
from nodemanager_trellis.hooks import CompletedRun
from nodemanager_trellis.objects import KernelObject, Key


class FakeKernel:
    """Holds objects, checks that what they need is there, and fails where it is told to."""

    def __init__(self) -> None:
        self.objects: dict[Key, KernelObject] = {}
        self.fail: set[Key] = set()
        self.fail_absent: set[Key] = set()
        self.calls: list[tuple[str, Key]] = []
        self.runs: list[tuple[str, tuple[str, ...]]] = []

    def read(self) -> dict[Key, KernelObject]:
        return dict(self.objects)

    def ensure(self, objects: Sequence[KernelObject], actual: Mapping[Key, KernelObject]) -> None:
        assert len({o.kind for o in objects}) == 1
        for obj in objects:
            if obj.key in self.fail:
                raise SubstrateError(obj.title, "create", 1)
            missing = [key for key in obj.needs if key not in self.objects]
            assert not missing, f"{obj.title} was made before {missing}"
            self.objects[obj.key] = obj
            self.calls.append(("ensure", obj.key))

    def absent(self, objects: Sequence[KernelObject]) -> None:
        assert len({o.kind for o in objects}) == 1
        for obj in objects:
            if obj.key in self.fail_absent:
                raise SubstrateError(obj.title, "delete", 16)
            users = [o.title for o in self.objects.values() if obj.key in o.needs and o.key != obj.key]
            assert not users, f"{obj.title} was taken away under {users}"
            self.objects.pop(obj.key, None)
            self.calls.append(("absent", obj.key))

    def run(self, container: str, argv: Sequence[str], stdin: bytes | None, timeout_s: float) -> CompletedRun:
        self.runs.append((container, tuple(argv)))
        return CompletedRun(0, b"", b"")
