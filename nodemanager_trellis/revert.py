"""The undo stack: each step that made something pushes its undo at once; failure runs them newest first."""

from __future__ import annotations

import logging
from collections.abc import Callable
from types import TracebackType
from typing import Any

log = logging.getLogger(__name__)


class Reverter:
    """``with Reverter() as undo: …; undo.add(f, x); …; undo.success()``: without success, every undo runs.

    An undo that fails is logged and the others go on; the first error is the one that is raised.
    """

    def __init__(self) -> None:
        self._undos: list[tuple[Callable[..., Any], tuple[Any, ...]]] = []

    def add(self, undo: Callable[..., Any], *args: Any) -> None:
        """Run ``undo(*args)`` should the block fail."""
        self._undos.append((undo, args))

    def success(self) -> None:
        """Forget all undos."""
        self._undos.clear()

    def __enter__(self) -> Reverter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        while self._undos:
            undo, args = self._undos.pop()
            try:
                undo(*args)
            except Exception as err:
                log.error("undo failed", extra={"undo": getattr(undo, "__qualname__", str(undo)), "error": str(err)})
