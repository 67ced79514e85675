"""Log lines are one event with escaped, short fields."""

import io
import logging

import pytest

from nodemanager_trellis import logs


@pytest.fixture
def stream():
    """A stream that gets all log lines; the root logger is as before afterwards."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    text = io.StringIO()
    logs.setup("debug", text)
    yield text
    root.handlers[:] = handlers
    root.setLevel(level)


def test_event_with_fields(stream):
    """The event, then its fields, each one word."""
    logging.getLogger("nodemanager_trellis.reconcile").info("sliver started", extra={"slice": "x_y", "took_ms": 16})

    line = stream.getvalue()
    assert line.endswith(" INFO reconcile: sliver started slice=x_y took_ms=16\n")
    assert "T" == line[10] and "Z" == line[23] and "." == line[19]


def test_lines_stay_lines(stream):
    """Line ends from the wire cannot forge a second line."""
    logging.getLogger("x").warning("refused", extra={"name_": "a\nERROR root: all is lost"})

    assert 1 == stream.getvalue().count("\n")
    assert r'name_="a\nERROR root: all is lost"' in stream.getvalue()


def test_traceback_is_kept(stream):
    """An exception's traceback follows its event."""
    try:
        raise ValueError("boom")
    except ValueError:
        logging.getLogger("x").exception("plugin raised", extra={"plugin": "p"})

    assert "plugin raised plugin=p\nTraceback" in stream.getvalue()
    assert "ValueError: boom" in stream.getvalue()


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("plain", "plain"),
        ("", '""'),
        ("two words", '"two words"'),
        ("a=b", '"a=b"'),
        ('"', r'"\""'),
        (5, "5"),
        (None, "null"),
        ([1, "a"], r'"[1, \"a\"]"'),
        ("x" * 500, "x" * 200 + "…"),
        ("\x1b[31m", r'"\u001b[31m"'),
    ],
)
def test_clip(value, text):
    """A value is one escaped word of at most 200 characters."""
    assert text == logs.clip(value)


def test_level_is_obeyed(stream):
    """Events below the level are not printed."""
    logs.setup("WARNING", stream)
    logging.getLogger("x").info("quiet")

    assert "" == stream.getvalue()
