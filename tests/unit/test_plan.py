"""Plans: order, reasons, printing."""

import dataclasses

import pytest

from nodemanager_trellis import plan
from nodemanager_trellis.objects import Container, HtbClass, HtbRoot, NamespacePair, Running, SliverFile, Veth
from nodemanager_trellis.plan import Action

PAIR = NamespacePair("t.1", 100_000)
BOX = Container("t.1", "a_b", 100_000)
RUN = Running("t.1", after=(("file", "t.1/keys"),))
VETH = Veth("v", "p", "e", "02:00:00:00:00:01", 1458)
FILE = SliverFile("t.1", "keys", "one\n")


def by_key(*objects):
    return {o.key: o for o in objects}


def test_nothing_to_do():
    """Equal pictures give an empty plan that says so."""
    made = plan.make({"a": by_key(PAIR, BOX)}, by_key(PAIR, BOX), {})

    assert (False, "nothing to do") == (bool(made), made.render())
    assert made.of("a") is None


def test_additions_follow_needs_and_removals_reverse_them():
    """What is needed is made first and taken away last; 'after' orders without being a need."""
    everything = by_key(RUN, FILE, BOX, PAIR)
    up = plan.make({"a": everything}, {}, {}).of("a")
    down = plan.make({}, everything, dict.fromkeys(everything, "a")).of("a")

    assert ["pair", "container", "file", "running"] == [s.object.kind for s in up.additions]
    assert ["running", "file", "container", "pair"] == [s.object.kind for s in down.removals]
    assert {"its sliver is gone"} == {s.reason for s in down.steps}


def test_removals_come_before_additions():
    """In one owner's part, what goes comes first."""
    other = SliverFile("t.1", "other", "")
    steps = plan.make({"a": by_key(PAIR, BOX, other)}, by_key(PAIR, BOX, FILE), {FILE.key: "a"}).of("a").steps

    assert [(Action.REMOVE, FILE.key, "no longer wanted"), (Action.CREATE, other.key, "missing")] == [
        (s.action, s.object.key, s.reason) for s in steps
    ]


def test_change_names_what_differs_in_units_of_the_field():
    """A change's reason tells old and new value; what is not in the kernel does not count."""
    old = HtbClass("u0", 3, 2, 8000, 10_000_000, 1600, 30_000, label="x")
    new = dataclasses.replace(old, ceil_bps=20_000_000, label="y")
    step = plan.make({"a": by_key(new)}, by_key(old), {}).of("a").steps[0]

    assert (Action.CHANGE, "ceil 10mbit → 20mbit", old) == (step.action, step.reason, step.old)
    assert "~ HTB class 1:3 of y: ceil 10mbit → 20mbit" == str(step)
    assert not plan.make({"a": by_key(dataclasses.replace(old, label="z"))}, by_key(old), {})


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        (FILE, dataclasses.replace(FILE, content="two\n"), "other content"),
        (FILE, dataclasses.replace(FILE, content="three\n"), "content 4 → 6 characters"),
        (VETH, dataclasses.replace(VETH, addresses=("1.1.1.1/30",)), "addresses none → 1.1.1.1/30"),
        (PAIR, BOX, "→"),
    ],
)  # fmt: skip
def test_difference_is_readable(old, new, words):
    """Differences of each sort are told in words."""
    assert words in plan.difference(old, new)


def test_owner_without_record_is_left_over_and_kept_owner_is_not():
    """Marked objects of nobody go; objects of an owner to keep stay."""
    made = plan.make({}, by_key(PAIR, BOX), {BOX.key: "kept"}, keep=["kept"])

    assert [(plan.ORPHANS, (PAIR.key,))] == [(p.owner, tuple(s.object.key for s in p.steps)) for p in made.owners]
    assert "left over, of no sliver on record" in made.render()


def test_node_comes_first_and_leftovers_last():
    """The node's own part is first, then slivers by name, then what is left over."""
    made = plan.make({"b": by_key(PAIR), plan.NODE: by_key(HtbRoot("u0", 10)), "a": by_key(FILE)}, by_key(BOX), {})

    assert [plan.NODE, "a", "b", plan.ORPHANS] == [p.owner for p in made.owners]
    assert made.render().startswith("node\n  + HTB root of u0: missing")


def test_circle_is_an_error_not_a_hang():
    """Objects that need each other are refused."""

    @dataclasses.dataclass(frozen=True)
    class Odd:
        ident: str
        need: str
        kind = "odd"
        title = "odd"

        @property
        def key(self):
            return ("odd", self.ident)

        @property
        def needs(self):
            return (("odd", self.need),)

    with pytest.raises(ValueError, match="circle"):
        plan.in_order(by_key(Odd("a", "b"), Odd("b", "a")))
