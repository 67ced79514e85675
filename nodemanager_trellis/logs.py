"""Logs are events with fields: ``log.info("link up", extra={"slice": "x_y", "link": "n2"})``.

The message is a constant, the data are fields. Nothing from the wire is printed unescaped or beyond 200 characters.
"""

from __future__ import annotations

import json
import logging
import sys
import time
from typing import Any, TextIO

_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}
_LONGEST = 200


def clip(value: Any) -> str:
    """A value as one short, escaped word of a log line."""
    text = value if isinstance(value, str) else json.dumps(value, default=str)
    if len(text) > _LONGEST:
        text = text[:_LONGEST] + "…"
    return (
        text
        if text and text.isprintable() and not any(c in text for c in ' "=')
        else json.dumps(text, ensure_ascii=not text.isprintable())
    )


class EventFormatter(logging.Formatter):
    """``2026-11-25T10:41:29.123Z INFO reconcile: sliver started slice=x_y took_ms=16``"""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(name)s: %(message)s")

    def formatTime(self, record: logging.LogRecord, datefmt: str | None = None) -> str:
        """UTC with milliseconds."""
        return f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(record.created))}.{int(record.msecs):03d}Z"

    def formatMessage(self, record: logging.LogRecord) -> str:
        """The event, then its fields as ``key=value``."""
        record.name = record.name.removeprefix("nodemanager_trellis.")
        line = super().formatMessage(record)
        fields = [f"{k}={clip(v)}" for k, v in vars(record).items() if k not in _STANDARD]
        return " ".join([line, *fields])


def setup(level: str = "INFO", stream: TextIO | None = None) -> None:
    """Send all events to ``stream`` (default stderr), one a line. Call once, at the start of a program."""
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(EventFormatter())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
