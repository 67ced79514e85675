"""Dataclasses become plain JSON values and come back equal."""

import dataclasses
import json

import pytest
from strategies import ANSWERS, recorded

from nodemanager_trellis import codec
from nodemanager_trellis.intake import getslivers
from nodemanager_trellis.model import Desired, Limits, Node, Presence, Sliver, Tag


@dataclasses.dataclass(frozen=True)
class Pair:
    both: tuple[int, str]
    word: str = "w"


@pytest.mark.parametrize("name", ANSWERS)
def test_understood_answers_survive_json(name):
    """What the intake makes of a recorded answer is the same after a trip through JSON text."""
    desired = getslivers.parse(recorded(name), now=0)

    assert desired == codec.from_plain(Desired, json.loads(json.dumps(codec.to_plain(desired))))


def test_plain_values():
    """Enums become their value, tuples and sets lists, keys text."""
    sliver = Sliver("x_y", 7, Presence.STOP, "delegated", 0, tags=(Tag("a", ("1",)),))

    assert "stop" == codec.to_plain(sliver)["presence"]
    assert [{"name": "a", "values": ["1"]}] == codec.to_plain(sliver)["tags"]
    assert {"1": [2]} == codec.to_plain({1: frozenset([2])})
    assert Limits is codec.to_plain(Limits)


def test_newer_and_older_files():
    """Unknown members are ignored, missing ones take their default."""
    assert Node(1, "h", "a") == codec.from_plain(Node, {"node_id": 1, "hostname": "h", "address": "a", "new": 1})
    assert Pair((1, "x")) == codec.from_plain(Pair, {"both": [1, "x"]})


@pytest.mark.parametrize(
    ("cls", "value"),
    [
        (Node, None),
        (Node, []),
        (Node, {"node_id": 1}),
        (Pair, {"both": [1]}),
        (Desired, {"timestamp": 0, "node": 5}),
        (Sliver, {"name": "x", "presence": "fly"}),
    ],
)
def test_wrong_shapes(cls, value):
    """A value that does not fit is a ValueError."""
    with pytest.raises(ValueError):
        codec.from_plain(cls, value)


def test_optional_members():
    """None stays None, another value is read by its type."""
    assert Limits(disk_bytes=5) == codec.from_plain(Limits, {"disk_bytes": 5, "memory_bytes": None})
