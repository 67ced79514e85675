"""WaitForChange: who is woken by what."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest
from plc_testbed import BOB, OP, ROOT, Bed

from nodemanager_trellis.plc.changes import Revisions

CHIC, SEAT, KANS = (f"node1.{pop}.internet2.vini.test" for pop in ("chic", "seat", "kans"))
DEADLINE_S = 60
LINE3 = "princeton_line3"


class Waiter(threading.Thread):
    """One node in a long poll; ``answer`` is what it got."""

    def __init__(self, bed: Bed, auth: dict[str, Any], revision: int, timeout_s: int = 50) -> None:
        super().__init__(daemon=True)
        self.answer: Any = None
        self._call = lambda: bed.proxy(DEADLINE_S).WaitForChange(auth, revision, timeout_s)
        self.start()

    def run(self) -> None:
        self.answer = self._call()

    def result(self) -> Any:
        """The answer, once it is there."""
        self.join(DEADLINE_S)
        assert not self.is_alive(), "the long poll did not end"
        return self.answer


def tag_id(bed: Bed, slice_name: str, tagname: str, node: str | None = None) -> int:
    """Identifier of a tag of the slice, or of its sliver on the node."""
    node_id = bed.proxy().GetNodes(OP, [node], ["node_id"])[0]["node_id"] if node else None
    tags = bed.proxy().GetSliceTags(OP, {"name": slice_name, "tagname": tagname})
    return next(tag["slice_tag_id"] for tag in tags if tag["node_id"] == node_id)


def test_negative_revision_returns_at_once(bed: Bed) -> None:
    """A caller that knows nothing learns the current revision."""
    assert bed.proxy().WaitForChange(bed.node_auth(CHIC), -1, 300) > 0


def test_old_revision_returns_at_once(bed: Bed) -> None:
    """A change between two polls is not missed."""
    auth = bed.node_auth(CHIC)
    before = bed.proxy().WaitForChange(auth, -1, 0)
    bed.proxy().UpdateSliceTag(OP, tag_id(bed, LINE3, "egre_key"), "1")

    assert before < bed.proxy().WaitForChange(auth, before, 300)


def test_future_revision_returns_at_once(bed: Bed) -> None:
    """A revision from before the database was put back to an older state is answered, not waited for."""
    auth = bed.node_auth(CHIC)
    current = bed.proxy().WaitForChange(auth, -1, 0)

    assert current == bed.proxy().WaitForChange(auth, current + 1000, 300)


def test_without_change_the_poll_ends_with_the_same_revision(bed: Bed) -> None:
    """After its time the poll returns the revision that the caller knew; GetSlivers is no change."""
    auth = bed.node_auth(CHIC)
    current = bed.proxy().WaitForChange(auth, -1, 0)
    bed.proxy().GetSlivers(auth)

    assert current == bed.proxy().WaitForChange(auth, current, 0)


def test_fifty_waiters_are_released_by_one_change(bed: Bed) -> None:
    """One UpdateSliceTag ends fifty long polls, while ordinary calls go on."""
    auth = bed.node_auth(KANS)
    current = bed.proxy().WaitForChange(auth, -1, 0)
    waiters = [Waiter(bed, auth, current) for _ in range(50)]

    assert bed.proxy().AuthCheck(OP) == 1
    bed.proxy().UpdateSliceTag(OP, tag_id(bed, LINE3, "egre_key"), "1")

    answers = {waiter.result() for waiter in waiters}
    assert len(answers) == 1
    assert current < answers.pop()


Change = Callable[[Bed, Any], Any]

#: Change → whether it concerns chic and whether it concerns seat, which is in princeton_iias only.
CHANGES: dict[str, tuple[Change, bool, bool]] = {
    "slice tag": (lambda bed, api: api.UpdateSliceTag(OP, tag_id(bed, LINE3, "egre_key"), "1"), True, False),
    "sliver tag": (lambda bed, api: api.UpdateSliceTag(OP, tag_id(bed, LINE3, "topo_rspec", CHIC), "[]"), True, False),
    "sliver tag of another": (
        lambda bed, api: api.UpdateSliceTag(OP, tag_id(bed, LINE3, "topo_rspec", KANS), "[]"),
        False,
        False,
    ),
    "tag of a system slice": (
        lambda bed, api: api.UpdateSliceTag(OP, tag_id(bed, "pl_default", "net_max_rate"), "500000"),
        True,
        True,
    ),
    "slice": (lambda bed, api: api.UpdateSlice(OP, LINE3, {"max_nodes": 100}), True, False),
    "slice taken off": (lambda bed, api: api.DeleteSliceFromNodes(OP, LINE3, [CHIC]), True, False),
    "slice put on": (lambda bed, api: api.AddSliceToNodes(OP, LINE3, [CHIC]), True, False),
    "member disabled": (lambda bed, api: api.UpdatePerson(OP, BOB["Username"], {"enabled": True}), True, False),
    "member leaves": (lambda bed, api: api.DeletePersonFromSlice(OP, BOB["Username"], LINE3), True, False),
    "member joins": (lambda bed, api: api.AddPersonToSlice(OP, BOB["Username"], LINE3), True, False),
    "initscript": (lambda bed, api: api.UpdateInitScript(OP, "quagga", {"enabled": True}), True, True),
    "node tag": (lambda bed, api: api.SetNodeDeployment(OP, SEAT, "beta"), True, True),  # they share princeton_iias
    "interface": (
        lambda bed, api: api.UpdateInterface(OP, "198.51.100.16", {"bwlimit": 10**9}),
        True,
        True,
    ),
    "tag type": (lambda bed, api: api.UpdateTagType(OP, "hosts", {"description": "x"}), True, True),
    "new slice on no node": (lambda bed, api: api.AddSlice(OP, {"name": "princeton_nowhere"}), False, False),
    "new person": (
        lambda bed, api: api.AddPerson(OP, {"first_name": "x", "last_name": "y", "email": "x@y.test"}),
        False,
        False,
    ),
}


@pytest.mark.parametrize("what", CHANGES)
def test_change_moves_the_revision_of_those_it_concerns(bed: Bed, what: str) -> None:
    """A change moves the revision of the nodes whose answer may differ, of no other node, and of every person."""
    change, chic_concerned, seat_concerned = CHANGES[what]
    chic, seat = bed.node_auth(CHIC), bed.node_auth(SEAT)
    before = [bed.proxy().WaitForChange(auth, -1, 0) for auth in (chic, seat, OP)]
    change(bed, bed.proxy())
    after = [bed.proxy().WaitForChange(auth, -1, 0) for auth in (chic, seat, OP)]

    assert [chic_concerned, seat_concerned, True] == [old < new for old, new in zip(before, after, strict=True)]


def test_refused_change_moves_nothing(bed: Bed) -> None:
    """A call that gives a fault leaves the revision where it was."""
    before = bed.proxy().WaitForChange(OP, -1, 0)
    code, _ = bed.fault("UpdateSliceTag", OP, 999999, "x")

    assert code == 102
    assert before == bed.proxy().WaitForChange(OP, -1, 0)


def test_stopping_releases_waiters(empty: Bed) -> None:
    """When the PLC closes, a long poll ends with the revision it had."""
    current = empty.proxy().WaitForChange(ROOT, -1, 0)
    waiter = Waiter(empty, ROOT, current)
    empty.plc.revisions.close()

    assert current == waiter.result()


def test_revision_grows_over_a_restart(empty: Bed) -> None:
    """A second process on the same database starts above the first one's last revision."""
    empty.proxy().AddSite(ROOT, {"name": "x", "abbreviated_name": "x", "login_base": "x"})
    last = empty.proxy().WaitForChange(ROOT, -1, 0)

    assert last < Revisions(empty.plc.store).current(1)
