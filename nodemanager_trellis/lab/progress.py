"""How far a long command is: a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from typing import TextIO

_WIDTH = 28


class Progress:
    """Tell people what goes on, on stderr: ``step("node managers ready", 7, 11)``."""

    def __init__(self, stream: TextIO | None = None, quiet: bool = False) -> None:
        self._stream = stream or sys.stderr
        self._quiet = quiet
        self._bar = self._stream.isatty()
        self._shown = ""
        self._start = time.monotonic()

    def step(self, what: str, done: int = 0, total: int = 0) -> None:
        """``what`` is now the matter; ``done`` of ``total`` parts of it are ready (0 of 0: it cannot be counted)."""
        if self._quiet:
            return
        count = f" {done}/{total}" if total else ""
        if not self._bar:
            line = f"{what}{count if not total or done == total else ''}"
            if line != self._shown and (not total or done in (0, total)):
                self._shown = line
                self._print(f"[{time.monotonic() - self._start:6.1f} s] {line}\n")
            return
        filled = _WIDTH * done // total if total else 0
        bar = f"[{'#' * filled}{'.' * (_WIDTH - filled)}] " if total else ""
        line = f"{bar}{what}{count}"
        self._print("\r" + line.ljust(len(self._shown)))
        self._shown = line

    def stage(self, what: str, done: int, total: int) -> None:
        """As :meth:`step`, on a terminal only: elsewhere the line that ends the stage says enough."""
        if self._bar:
            self.step(what, done, total)

    def clear(self) -> None:
        """The bar is gone, the cursor at the start of an empty line."""
        if self._bar and self._shown and not self._quiet:
            self._print("\r" + " " * len(self._shown) + "\r")
            self._shown = ""

    def _print(self, text: str) -> None:
        self._stream.write(text)
        self._stream.flush()
