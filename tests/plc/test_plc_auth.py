"""Who may call: passwords, sessions, node keys, anonymous; roles of methods and of tag types."""

from __future__ import annotations

import pytest
from plc_testbed import ADA, BOB, OP, ROOT, Bed

from nodemanager_trellis.plc.auth import Passwords, hash_password, hmac_text, sign

CHIC = "node1.chic.internet2.vini.test"
LINE3 = "princeton_line3"


def test_hmac_text_flattens_and_sorts() -> None:
    """The signed text is that of planetlab.md §1.7: values of structs, items of lists, sorted, in brackets."""
    assert hmac_text(("b", [1, ["a"]], {"k": "v", "n": None})) == "[1Noneabv]"
    assert hmac_text(()) == "[]"


def test_hmac_is_sha1_in_hex() -> None:
    """The value that a node with this key sends for a call without arguments."""
    assert sign("key", ()) == "dffa127acc37a7b6956e1caeb4b4bc9cd731a98e"


def test_password_is_checked_and_remembered_per_hash() -> None:
    """The right password passes twice; a wrong one, or the old one after a change, does not."""
    passwords, first, second = Passwords(), hash_password("one"), hash_password("two")

    assert [passwords.check("one", first), passwords.check("one", first)] == [True, True]
    assert [passwords.check("two", first), passwords.check("one", second)] == [False, False]
    assert not passwords.check("", None)
    assert not passwords.check("!", "!")


def test_password_hashes_are_salted() -> None:
    """Two hashes of one password differ."""
    assert hash_password("x") != hash_password("x")


def test_node_gets_a_session_with_its_key_and_is_asked_nothing_else(bed: Bed) -> None:
    """A node key gives a session; with it GetSlivers needs no argument and answers for that node."""
    auth = bed.node_auth(CHIC)

    assert bed.proxy().GetSlivers(auth)["hostname"] == CHIC
    assert bed.proxy().AuthCheck(auth) == 1


def test_new_session_of_a_node_ends_the_old_one(bed: Bed) -> None:
    """A node has one session at a time."""
    old = bed.node_auth(CHIC)
    new = bed.node_auth(CHIC)

    assert bed.fault("AuthCheck", old)[0] == 103
    assert bed.proxy().AuthCheck(new) == 1


def test_node_may_not_ask_for_another_node(bed: Bed) -> None:
    """GetSlivers of a node for a second node is denied."""
    code, text = bed.fault("GetSlivers", bed.node_auth(CHIC), "node1.kans.internet2.vini.test")

    assert code == 108
    assert text.startswith("node_id 2: GetSlivers: Permission denied:")


def test_get_slivers_sets_last_contact(bed: Bed) -> None:
    """The operator sees when a node last called."""
    node = bed.node_auth(CHIC)
    timestamp = bed.proxy().GetSlivers(node)["timestamp"]

    assert timestamp == bed.proxy().GetNodes(OP, [CHIC], ["last_contact"])[0]["last_contact"]


def test_session_of_a_person_ends(bed: Bed) -> None:
    """A session is good until its time; then it is fault 103."""
    auth = {"AuthMethod": "session", "session": bed.proxy().GetSession(BOB, 100)}
    assert bed.proxy().AuthCheck(auth) == 1
    clock = bed.plc.clock
    bed.plc.clock = lambda: clock() + 101
    try:
        assert bed.fault("AuthCheck", auth) == (
            103,
            ": AuthCheck: Failed to authenticate call: SessionAuth: Invalid session",
        )
    finally:
        bed.plc.clock = clock


def test_deleted_session_is_void(bed: Bed) -> None:
    """DeleteSession ends a session."""
    session = bed.proxy().GetSession(BOB)
    bed.proxy().DeleteSession(BOB, session)

    assert bed.fault("AuthCheck", {"AuthMethod": "session", "session": session})[0] == 103


def test_missing_role_with_a_session_is_108(bed: Bed) -> None:
    """What is 103 with a password is 108 with a session."""
    auth = {"AuthMethod": "session", "session": bed.proxy().GetSession(BOB)}

    assert bed.fault("AddSite", auth, {})[0] == 108
    assert bed.fault("AddSite", BOB, {})[0] == 103


def test_disabled_account_cannot_log_in(empty: Bed) -> None:
    """A new account must be enabled first; an enabled one can be disabled again."""
    api = empty.proxy()
    person = {"first_name": "a", "last_name": "b", "email": "a@b.test", "password": "pw"}
    auth = {"AuthMethod": "password", "Username": "A@B.test", "AuthString": "pw"}
    api.AddPerson(ROOT, person)
    api.AddRoleToPerson(ROOT, "user", "a@b.test")
    assert empty.fault("AuthCheck", auth)[0] == 103
    api.UpdatePerson(ROOT, "a@b.test", {"enabled": True})
    assert api.AuthCheck(auth) == 1
    api.UpdatePerson(ROOT, "a@b.test", {"password": "new"})
    assert empty.fault("AuthCheck", auth)[0] == 103


@pytest.mark.parametrize("kind", ["capability", "gpg", "hmac_dummybox"])
def test_other_methods_of_authentication_are_refused(bed: Bed, kind: str) -> None:
    """What PLCAPI knows and we do not offer is fault 103, not a crash."""
    auth = {"AuthMethod": kind, "Username": "x", "AuthString": "x"}

    assert bed.fault("AuthCheck", auth)[0] == 103


def test_anonymous_sees_nodes_and_nothing_secret(bed: Bed) -> None:
    """GetNodes answers anybody, without keys."""
    nodes = bed.proxy().GetNodes({"AuthMethod": "anonymous"})

    assert len(nodes) == 11
    assert all("key" not in node for node in nodes)
    assert bed.fault("GetNodes", {"AuthMethod": "anonymous"}, None, ["key"])[0] == 102


def test_passwords_are_in_no_answer(bed: Bed) -> None:
    """Neither by default nor by name nor by filter."""
    assert all("password" not in person for person in bed.proxy().GetPersons(OP))
    assert bed.fault("GetPersons", OP, None, ["password"])[0] == 102
    assert bed.fault("GetPersons", OP, {"password": "*"})[0] == 102
    assert bed.fault("GetPersons", OP, {"-SORT": "password"})[0] == 102


def test_node_key_is_neither_filter_nor_order(bed: Bed) -> None:
    """Nobody can guess a node's key by filtering or sorting."""
    anonymous = {"AuthMethod": "anonymous"}

    assert bed.fault("GetNodes", anonymous, {"key": "a*"})[0] == 102
    assert bed.fault("GetNodes", anonymous, {"-SORT": "key"})[0] == 102


def test_people_see_what_is_theirs(bed: Bed) -> None:
    """A user sees his slices and keys and himself; a PI the slices and people of her site; an admin all."""
    api = bed.proxy()

    def names(auth: dict[str, str]) -> list[str]:
        return sorted(s["name"] for s in api.GetSlices(auth, {"name": "*_*"}, ["name"]))

    assert names(BOB) == [LINE3]
    assert names(ADA) == ["gt_mesh4", "princeton_iias", LINE3]
    assert len(names(OP)) == 5
    assert [p["email"] for p in api.GetPersons(BOB)] == [BOB["Username"]]
    assert len(api.GetPersons(ADA)) == 2
    assert len(api.GetKeys(BOB)) == 3
    assert len(api.GetKeys(OP)) == 5


@pytest.mark.parametrize(
    ("auth", "method", "params"),
    [
        (BOB, "UpdateSlice", ("princeton_iias", {"url": "x"})),
        (BOB, "AddSliceToNodes", ("gt_mesh4", [CHIC])),
        (BOB, "DeleteSlice", ("gt_mesh4",)),
        (BOB, "AddSliceTag", ("princeton_iias", "vsys", "x")),
        (ADA, "UpdateNode", (CHIC, {"boot_state": "disabled"})),
        (ADA, "UpdateSite", ("gt", {"name": "x"})),
        (ADA, "AddRoleToPerson", ("admin", BOB["Username"])),
        (ADA, "UpdatePerson", (OP["Username"], {"password": "x"})),
        (BOB, "UpdatePerson", (BOB["Username"], {"enabled": False})),
        (BOB, "AddPersonKey", (ADA["Username"], {"key_type": "ssh", "key": "x"})),
        (ADA, "AddSlice", ({"name": "gt_mine"},)),
        (ADA, "AddPersonToSite", (BOB["Username"], "gt")),
        (BOB, "AddSliceTag", (LINE3, "vsys", "x", None, "Internet2")),
        (ADA, "SetNodeArch", (CHIC, "i386")),
    ],
)
def test_what_is_not_theirs_is_denied(bed: Bed, auth: dict[str, str], method: str, params: tuple) -> None:
    """Fault 108, and nothing is changed."""
    before = bed.proxy().WaitForChange(OP, -1, 0)

    assert bed.fault(method, auth, *params)[0] == 108
    assert before == bed.proxy().WaitForChange(OP, -1, 0)


def test_node_writes_tags_of_its_own_slivers_only(bed: Bed) -> None:
    """A tag type with the role node is open to a node for its sliver, not for others, not for whole slices."""
    node, api = bed.node_auth(CHIC), bed.proxy()
    api.AddTagType(OP, {"tagname": "seen", "description": "written by nodes", "category": "slice/test"})
    assert bed.fault("AddSliceTag", node, LINE3, "seen", "1", CHIC)[0] == 108
    api.AddRoleToTagType(OP, "node", "seen")
    tag = api.AddSliceTag(node, LINE3, "seen", "1")

    assert api.GetSliceTags(OP, [tag], ["node_id", "value"]) == [{"node_id": 2, "value": "1"}]
    assert bed.fault("AddSliceTag", node, LINE3, "seen", "1", "node1.kans.internet2.vini.test")[0] == 108
    assert api.UpdateSliceTag(node, tag, "2") == 1
    assert api.DeleteSliceTag(node, tag) == 1
    api.DeleteTagType(OP, "seen")


def test_role_of_a_tag_type_opens_it(bed: Bed) -> None:
    """A user writes a tag type of his slice once the type has his role, and no more when it is taken."""
    api = bed.proxy()
    api.AddRoleToTagType(OP, "user", "hosts")
    tag = api.AddSliceTag(BOB, LINE3, "hosts", "x")
    api.DeleteRoleFromTagType(OP, "user", "hosts")

    assert bed.fault("DeleteSliceTag", BOB, tag)[0] == 108
    assert api.DeleteSliceTag(OP, tag) == 1


def test_admin_only_fields_are_for_admins(bed: Bed) -> None:
    """A node's boot nonce is in an admin's answer, in no other; its key is in an admin's when asked for."""
    api = bed.proxy()
    bed.node_auth(CHIC)

    assert "boot_nonce" in api.GetNodes(OP, [CHIC])[0]
    assert "boot_nonce" not in api.GetNodes(ADA, [CHIC])[0]
    assert len(api.GetNodes(OP, [CHIC], ["key"])[0]["key"]) >= 32
    assert bed.fault("GetNodes", ADA, [CHIC], ["key"])[0] == 102
