"""The model is frozen data with two ways to look things up."""

import dataclasses

import pytest

from nodemanager_trellis.model import Desired, Limits, Node, Presence, Sliver, Tag

SLIVER = Sliver("x_y", 7, Presence.RUN, "plc-instantiated", 0, tags=(Tag("vsys", ("a", "b")), Tag("empty", ())))


def test_tag_gives_the_value_that_wins():
    """The last value of a name counts; an absent one gives the default."""
    assert ("b", "", "d") == (SLIVER.tag("vsys"), SLIVER.tag("empty"), SLIVER.tag("none", "d"))


def test_sliver_is_found_by_name():
    """A node has at most one sliver of a slice."""
    desired = Desired(0, Node(1, "h", "192.0.2.1"), (SLIVER,))

    assert SLIVER is desired.sliver("x_y")
    assert None is desired.sliver("x_z")


@pytest.mark.parametrize("value", [SLIVER, Limits(), Node(1, "h", ""), Desired(0, Node(1, "h", ""))])
def test_frozen(value):
    """Nobody changes the model in place."""
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(value, dataclasses.fields(value)[0].name, 1)


def test_unset_limits_are_open():
    """What no tag sets is None, shares are one."""
    limits = Limits()

    assert {None} == {getattr(limits, f.name) for f in dataclasses.fields(limits) if f.type == "int | None"}
    assert (1, 1, 1, 0) == (limits.cpu_share, limits.net_share, limits.net_i2_share, limits.cpu_pct)
