"""The store: numbers, records, versions."""

import sqlite3

import pytest

from nodemanager_trellis import store as store_module
from nodemanager_trellis.model import Desired, Node, Presence, Sliver, VirtualLink
from nodemanager_trellis.objects import NamespacePair
from nodemanager_trellis.store import Store, StoreError

NODE = Node(1, "n", "192.0.2.1")


def sliver(slice_id: int, *remotes: int) -> Sliver:
    links = tuple(VirtualLink(f"n{r}", 1, r, "192.0.2.9", "a1if1", ("10.0.0.1/30",)) for r in remotes)
    return Sliver(f"a_s{slice_id}", slice_id, Presence.RUN, "plc-instantiated", 5, links=links)


@pytest.fixture
def store(tmp_path):
    opened = Store(tmp_path / "deep" / "store.sqlite")
    yield opened
    opened.close()


def test_values_survive_reopening(tmp_path):
    """What was kept is there for the next process, also for one that only reads."""
    first = Store(tmp_path / "s")
    first.set_value("a", {"b": [1, None]})
    first.set_value("gone", 1)
    first.set_value("gone", None)
    first.put_in_force(Desired(3, NODE, (sliver(1, 2),)))
    first.close()
    again = Store(tmp_path / "s", read_only=True)

    assert ({"b": [1, None]}, "none") == (again.value("a"), again.value("gone", "none"))
    assert (3, 2, 3) == (
        (found := again.desired()).timestamp,
        found.slivers[0].number,
        found.slivers[0].links[0].number,
    )
    again.close()


def test_fresh_store_holds_nothing(store):
    """A new store has no desired state, no objects, no slivers."""
    assert (None, {}, {}) == (store.desired(), store.applied(), store.realised())


def test_numbers_are_stable_distinct_and_freed(store):
    """Slices and links share one space of numbers, keep theirs, and give them back when forgotten."""
    one = store.numbered(Desired(0, NODE, (sliver(1, 2, 3), sliver(2))))
    numbers = [n for s in one.slivers for n in (s.number, *(x.number for x in s.links))]
    two = store.numbered(Desired(0, NODE, (sliver(2), sliver(1, 3, 2))))

    assert len(set(numbers)) == 4 and min(numbers) == store_module.FIRST_NUMBER
    assert one.slivers[0].number == two.slivers[1].number
    assert one.slivers[0].links[0].number == two.slivers[1].links[1].number
    store.forget_numbers(Desired(0, NODE, (sliver(1, 2),)))
    assert numbers[:2] == [s.number for s in store.numbered(Desired(0, NODE, (sliver(1),))).slivers] + [numbers[1]]
    assert store.numbered(Desired(0, NODE, (sliver(2),))).slivers[0].number not in numbers


def test_numbers_run_out_with_an_error(store, monkeypatch):
    """When every number is taken the store says so and gives none twice."""
    monkeypatch.setattr(store_module, "LAST_NUMBER", 3)
    store.numbered(Desired(0, NODE, (sliver(1), sliver(2))))

    with pytest.raises(StoreError, match="in use"):
        store.numbered(Desired(0, NODE, (sliver(3),)))
    store.forget_numbers(Desired(0, NODE, (sliver(2),)))
    assert 2 == store.numbered(Desired(0, NODE, (sliver(3),))).slivers[0].number


def test_applied_objects_come_back_equal_and_unknown_kinds_are_left_out(store):
    """Recorded objects are read back with owner and plugin; rows of a later version do no harm."""
    pair = NamespacePair("t.1", 7)
    store.record({"a#1": {pair.key: pair}}, {pair.key: "hosts"})
    store._db.execute("INSERT INTO applied VALUES ('warpdrive', 'x', 'a', 'b', '{}')")
    found = store.applied()

    assert {pair.key: store_module.Applied("a#1", "hosts", pair)} == found
    store.forget([pair.key])
    assert {} == store.applied()


def test_realised_slivers_are_remembered_per_owner(store):
    """A sliver is remembered until it is forgotten."""
    store.set_realised("a#1", sliver(1, 2))
    assert {"a#1": sliver(1, 2)} == store.realised()
    store.set_realised("a#1", None)
    assert {} == store.realised()


def test_other_version_and_garbage_are_refused(tmp_path):
    """A store of another version, or a file that is none, is an error naming it; the file stays as it is."""
    db = sqlite3.connect(tmp_path / "newer")
    db.execute("PRAGMA user_version = 99")
    db.close()
    (tmp_path / "garbage").write_bytes(b"not a database at all" * 100)

    for name in ("newer", "garbage"):
        with pytest.raises(StoreError, match=name):
            Store(tmp_path / name)
    with pytest.raises(StoreError, match="absent"):
        Store(tmp_path / "absent", read_only=True)
    assert b"not a database at all" * 100 == (tmp_path / "garbage").read_bytes()


def test_failed_write_changes_nothing(store):
    """An error in the middle of a transaction rolls it back."""
    pair = NamespacePair("t.1", 7)
    with pytest.raises(TypeError):
        store.record({"a": {pair.key: pair, ("x", "y"): object()}}, {})
    assert {} == store.applied()
    store._db.execute("DROP TABLE realised")
    with pytest.raises(StoreError, match="read"):
        store.realised()
    with pytest.raises(StoreError, match="write"):
        store.set_realised("a", None)


def test_only_news_is_put_in_force(store):
    """An answer that differs in its timestamp alone is no news; any other difference is."""
    assert store.put_in_force(Desired(3, NODE, (sliver(1, 2),)), {"a": 1})
    assert not store.put_in_force(Desired(4, NODE, (sliver(1, 2),)), {"a": 2})
    assert ({"a": 1}, 3) == (store.value("answer"), store.desired().timestamp)
    assert store.put_in_force(Desired(5, NODE, (sliver(1, 2, 3),)))


def test_number_in_force_is_not_freed_by_a_run_with_an_older_picture(store):
    """A run that ends after a newer answer came leaves the newer slices their numbers."""
    store.put_in_force(Desired(1, NODE, (sliver(1), sliver(2))))
    store.forget_numbers(Desired(0, NODE, (sliver(1),)))
    three = store.numbered(Desired(2, NODE, (sliver(3),))).slivers[0].number

    assert three not in [s.number for s in store.desired().slivers]
