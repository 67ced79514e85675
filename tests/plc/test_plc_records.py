"""Objects of all classes: made, read, filtered, changed, deleted; what they refuse."""

from __future__ import annotations

import xmlrpc.client
from typing import Any

import pytest
from plc_testbed import LATER, OP, ROOT, Bed

STATIC = {"method": "static", "ip": "192.0.2.10", "netmask": "255.255.255.0", "network": "192.0.2.0",
          "broadcast": "192.0.2.255", "gateway": "192.0.2.1", "dns1": "192.0.2.2", "mac": "2:0:C6:33:64:e",
          "is_primary": True}  # fmt: skip


@pytest.fixture
def api(empty: Bed) -> Any:
    """A PLC with one site ``x`` that may have slices, one node ``n.x.test`` and one slice ``x_s`` on it."""
    api = empty.proxy()
    api.AddSite(ROOT, {"name": "X", "abbreviated_name": "X", "login_base": "x", "max_slices": 3})
    api.AddNode(ROOT, "x", {"hostname": "N.x.test"})
    api.AddSlice(ROOT, {"name": "x_s"})
    api.AddSliceToNodes(ROOT, "x_s", ["n.x.test"])
    return api


def attributes(api: Any, name: str = "x_s", node: str = "n.x.test") -> dict[str, list[str]]:
    """The sliver's attributes as the node sees them, name → values."""
    found: dict[str, list[str]] = {}
    sliver = next(s for s in api.GetSlivers(ROOT, node)["slivers"] if s["name"] == name)
    for tag in sliver["attributes"]:
        found.setdefault(tag["tagname"], []).append(tag["value"])
    return found


def slivers(api: Any, node: str = "n.x.test") -> list[str]:
    """Names of the slices that the node is told of."""
    return sorted(s["name"] for s in api.GetSlivers(ROOT, node)["slivers"])


# Tags -----------------------------------------------------------------------------------------------------------


def test_node_tag_hides_group_tag_hides_slice_tag(api: Any) -> None:
    """Precedence of planetlab.md §2.9: the node's own value, else that of its group, else that of the slice."""
    api.AddTagType(ROOT, {"tagname": "zone", "category": "node/test"})
    api.AddNodeTag(ROOT, "n.x.test", "zone", "east")
    api.AddNodeGroup(ROOT, "East", "zone", "east")
    api.AddSliceTag(ROOT, "x_s", "net_max_rate", "1000")
    assert attributes(api)["net_max_rate"] == ["1000"]
    api.AddSliceTag(ROOT, "x_s", "net_max_rate", "2000", None, "East")
    assert attributes(api)["net_max_rate"] == ["2000"]
    own = api.AddSliceTag(ROOT, "x_s", "net_max_rate", "3000", "n.x.test")
    assert attributes(api)["net_max_rate"] == ["3000"]
    api.DeleteSliceTag(ROOT, own)
    api.UpdateNodeTag(ROOT, api.GetNodeTags(ROOT, {"tagname": "zone"})[0]["node_tag_id"], "west")
    assert attributes(api)["net_max_rate"] == ["1000"]


def test_many_values_of_one_name_are_replaced_as_a_whole(api: Any) -> None:
    """Two values of the slice are both seen; one of the node hides both."""
    for script in ("a", "b"):
        api.AddSliceTag(ROOT, "x_s", "vsys", script)
    assert attributes(api)["vsys"][-2:] == ["a", "b"]
    api.AddSliceTag(ROOT, "x_s", "vsys", "d", "n.x.test")
    assert attributes(api)["vsys"] == ["d"]


def test_tag_of_a_node_outlives_the_binding(api: Any) -> None:
    """Taking a slice off a node leaves the node's tags; they are in force again when it returns."""
    api.AddSliceTag(ROOT, "x_s", "net_share", "7", "n.x.test")
    api.DeleteSliceFromNodes(ROOT, "x_s", ["n.x.test"])
    assert slivers(api) == []
    api.AddSliceToNodes(ROOT, "x_s", ["n.x.test"])
    assert attributes(api)["net_share"] == ["7"]


@pytest.mark.parametrize("value", ["", " x ", "a\nb", "<&>\"']]>", "Ünïcödé ☃", "x" * 5000])
def test_value_arrives_unchanged(api: Any, value: str) -> None:
    """Tag values are any text."""
    api.AddSliceTag(ROOT, "x_s", "net_share", value)

    assert attributes(api)["net_share"] == [value]


def test_too_long_value_is_refused(empty: Bed, api: Any) -> None:
    """More than 5000 bytes is fault 102."""
    assert empty.fault("AddSliceTag", ROOT, "x_s", "net_share", "ä" * 2501)[0] == 102


def test_existing_tag_type_cannot_be_added_again(empty: Bed, api: Any) -> None:
    """An operator's script that adds its types twice is told so, in fault 102."""
    api.AddTagType(ROOT, {"tagname": "topo_rspec", "description": "d", "category": "slice/vini"})

    assert empty.fault("AddTagType", ROOT, {"tagname": "topo_rspec"}) == (
        102,
        "person_id 1: AddTagType: Invalid argument: tag type name already in use",
    )


def test_tag_reads_and_writes_like_a_field(empty: Bed, api: Any) -> None:
    """Accessor tags: in Update, in return fields, in filters, and as Get/Set methods."""
    api.UpdateSlice(ROOT, "x_s", {"vref": "vini"})
    assert api.GetSlices(ROOT, {"vref": "vini"}, ["name", "vref"]) == [{"name": "x_s", "vref": "vini"}]
    assert api.GetSliceVref(ROOT, "x_s") == "vini"
    assert api.GetSliceFamily(ROOT, "x_s") == "vini-f35-x86_64"
    api.SetSliceVref(ROOT, "x_s", None)
    assert api.GetSliceVref(ROOT, "x_s") is None
    assert api.GetSliceFamily(ROOT, "x_s") == "lxc-f35-x86_64"
    assert empty.fault("UpdateSlice", ROOT, "x_s", {"initscript": "none"})[0] == 102


def test_new_objects_get_their_sfa_names(api: Any) -> None:
    """Site, node and slice have an hrn; the node's follows its host name."""
    assert api.GetSites(ROOT, ["x"], ["hrn"]) == [{"hrn": "planetlab.test.x"}]
    assert api.GetSlices(ROOT, ["x_s"], ["hrn"]) == [{"hrn": "planetlab.test.x.s"}]
    api.UpdateNode(ROOT, "n.x.test", {"hostname": "m.x.test"})
    assert api.GetSlivers(ROOT, "m.x.test")["hrn"] == "planetlab.test.x.m\\.x\\.test"


def test_second_tag_of_a_type_on_a_node_is_refused(empty: Bed, api: Any) -> None:
    """Nodes have one value per tag type."""
    tag = api.AddNodeTag(ROOT, "n.x.test", "arch", "i386")
    assert empty.fault("AddNodeTag", ROOT, "n.x.test", "arch", "x86_64")[0] == 102
    assert api.GetNodeFlavour(ROOT, "n.x.test")["nodefamily"] == "lxc-f35-i386"
    api.DeleteNodeTag(ROOT, tag)
    assert api.GetNodeFlavour(ROOT, "n.x.test")["nodefamily"] == "lxc-f35-x86_64"


# Slices ---------------------------------------------------------------------------------------------------------


def test_slice_lives_two_weeks_and_is_renewed(empty: Bed, api: Any) -> None:
    """Renewal needs a description and a URL; the past is refused."""
    made = api.GetSlices(ROOT, ["x_s"])[0]
    assert made["expires"] - made["created"] == 14 * 86400
    assert empty.fault("UpdateSlice", ROOT, "x_s", {"expires": LATER})[0] == 102
    assert api.UpdateSlice(ROOT, "x_s", {"expires": LATER, "url": "u", "description": "d"}) == 1
    assert empty.fault("UpdateSlice", ROOT, "x_s", {"expires": 1})[0] == 102


def test_expired_slice_is_gone_and_its_name_can_be_renewed(empty: Bed, api: Any) -> None:
    """After its time a slice is in no answer, at once; an admin can still bring it back."""
    clock = empty.plc.clock
    empty.plc.clock = lambda: clock() + 15 * 86400

    assert slivers(api) == []
    assert api.GetSlices(ROOT, ["x_s"]) == []
    api.UpdateSlice(ROOT, "x_s", {"expires": LATER, "url": "u", "description": "d"})
    assert slivers(api) == ["x_s"]


def test_system_and_controller_slices_are_on_every_node(api: Any) -> None:
    """Slices with system = 1, nm-controller and delegated ones are listed without being bound."""
    for name, kind in (("pl_a", "plc-instantiated"), ("pl_b", "nm-controller"), ("pl_c", "delegated")):
        api.AddSlice(ROOT, {"name": name, "instantiation": kind})
    assert slivers(api) == ["pl_b", "pl_c", "x_s"]
    tag = api.AddSliceTag(ROOT, "pl_a", "system", "1")
    assert slivers(api) == ["pl_a", "pl_b", "pl_c", "x_s"]
    api.UpdateSliceTag(ROOT, tag, "0")
    assert slivers(api) == ["pl_b", "pl_c", "x_s"]


def test_deleted_slice_takes_its_tags_and_its_number_with_it(api: Any) -> None:
    """A slice of the same name made later is another one."""
    old = api.GetSlices(ROOT, ["x_s"])[0]["slice_id"]
    api.AddSliceTag(ROOT, "x_s", "net_share", "7")
    api.DeleteSlice(ROOT, "x_s")
    new = api.AddSlice(ROOT, {"name": "x_s"})

    assert new > old
    assert api.GetSliceTags(ROOT, {"tagname": "net_share"}) == []


def test_update_slice_sets_nodes_and_persons(api: Any) -> None:
    """The lists become exactly those, by name or number."""
    other = api.AddNode(ROOT, "x", {"hostname": "o.x.test"})
    api.UpdateSlice(ROOT, "x_s", {"nodes": ["o.x.test"], "persons": [ROOT["Username"]]})
    assert api.GetSlices(ROOT, ["x_s"], ["node_ids", "person_ids"]) == [{"node_ids": [other], "person_ids": [1]}]
    api.UpdateSlice(ROOT, "x_s", {"persons": []})
    assert api.GetSlices(ROOT, ["x_s"], ["person_ids"]) == [{"person_ids": []}]


def test_site_has_a_limit_of_slices(empty: Bed, api: Any) -> None:
    """A fourth slice of three is refused."""
    for name in ("x_2", "x_3"):
        api.AddSlice(ROOT, {"name": name})

    assert empty.fault("AddSlice", ROOT, {"name": "x_4"})[0] == 102


@pytest.mark.parametrize("name", ["x-y", "x", "_x", "X_y", "x_y\n", "x_", "x_y z", f"x_{'y' * 63}", "x_é", 5, None])
def test_bad_slice_name_is_refused(empty: Bed, api: Any, name: Any) -> None:
    """What planetlab.md §2.4 does not allow is fault 102."""
    assert empty.fault("AddSlice", ROOT, {"name": name})[0] == 102


@pytest.mark.parametrize("name", ["x_Y.z_1", f"x_{'y' * 62}"])
def test_odd_but_legal_slice_name_is_taken(api: Any, name: str) -> None:
    """Dots, capitals, more underscores, 64 bytes."""
    assert api.AddSlice(ROOT, {"name": name}) > 0


# Nodes, interfaces, people, the rest ----------------------------------------------------------------------------


def test_plnode_txt_has_the_nodes_identity(api: Any) -> None:
    """The file of planetlab.md §8.4; a kept key stays, a regenerated one differs."""
    api.AddInterface(ROOT, "n.x.test", STATIC)
    text = api.GenerateNodeConfFile(ROOT, "n.x.test")
    values = {k: v.strip('"') for k, v in (line.split("=", 1) for line in text.splitlines())}

    assert api.GenerateNodeConfFile(ROOT, "n.x.test", False) == text
    assert api.GenerateNodeConfFile(ROOT, "n.x.test") != text
    assert len(values.pop("NODE_KEY")) >= 32
    assert values == {
        "NODE_ID": "1",
        "NET_DEVICE": "02:00:c6:33:64:0e",
        "IP_METHOD": "static",
        "IP_ADDRESS": "192.0.2.10",
        "IP_GATEWAY": "192.0.2.1",
        "IP_NETMASK": "255.255.255.0",
        "IP_NETADDR": "192.0.2.0",
        "IP_BROADCASTADDR": "192.0.2.255",
        "IP_DNS1": "192.0.2.2",
        "IP_DNS2": "",
        "HOST_NAME": "n",
        "DOMAIN_NAME": "x.test",
    }


@pytest.mark.parametrize(
    "change",
    [
        {"method": "magic"},
        {"ip": "192.0.2.300"},
        {"ip": "192.0.3.1"},
        {"ip": None},
        {"gateway": None},
        {"gateway": "192.0.3.1"},
        {"mac": "02:00"},
        {"bwlimit": -1},
        {"bwlimit": "1000"},
        {"is_primary": 1},
        {"hostname": "a b"},
        {"type": "ipv5"},
        {"colour": "red"},
    ],
)
def test_bad_interface_is_refused(empty: Bed, api: Any, change: dict[str, Any]) -> None:
    """Malformed or inconsistent addresses and values of a wrong type are fault 102."""
    assert empty.fault("AddInterface", ROOT, "n.x.test", STATIC | change)[0] == 102


def test_node_has_one_primary_interface(empty: Bed, api: Any) -> None:
    """A second primary one is refused, a secondary one is not, and the primary one can be updated."""
    first = api.AddInterface(ROOT, "n.x.test", STATIC)
    assert empty.fault("AddInterface", ROOT, "n.x.test", STATIC | {"ip": "192.0.2.11"})[0] == 102
    api.AddInterface(ROOT, "n.x.test", STATIC | {"ip": "192.0.2.11", "is_primary": False})
    assert api.UpdateInterface(ROOT, first, {"bwlimit": 200000000}) == 1
    assert api.GetInterfaces(ROOT, [first], ["bwlimit"]) == [{"bwlimit": 200000000}]
    assert api.DeleteInterface(ROOT, first) == 1


@pytest.mark.parametrize(
    ("method", "params"),
    [
        ("AddSite", ({"name": "Y", "abbreviated_name": "Y", "login_base": "x"},)),
        ("AddSite", ({"name": "Y", "abbreviated_name": "Y", "login_base": "Y-y"},)),
        ("AddSite", ({"login_base": "y"},)),
        ("AddNode", ("x", {"hostname": "n.x.test"})),
        ("AddNode", ("x", {"hostname": "no_name"})),
        ("AddNode", ("x", {"hostname": "o.x.test", "boot_state": "asleep"})),
        ("AddNode", ("nosuch", {"hostname": "o.x.test"})),
        ("AddPerson", ({"first_name": "a", "last_name": "b", "email": ROOT["Username"]},)),
        ("AddPerson", ({"first_name": "a", "last_name": "b", "email": "nonsense"},)),
        ("AddPerson", ({"email": "a@b.test"},)),
        ("AddRoleToPerson", ("king", 1)),
        ("AddRoleToPerson", ("node", 1)),
        ("AddPersonKey", (1, {"key_type": "ssh", "key": "ssh-rsa AAAA"})),
        ("AddPersonKey", (1, {"key_type": "gpg", "key": "x"})),
        ("AddPersonKey", (1, {"key": "x"})),
        ("AddSlice", ({"name": "x_t", "instantiation": "by-magic"},)),
        ("AddInitScript", ({"name": "s"},)),
        ("AddNodeGroup", ("G", "nosuch", "1")),
        ("UpdateSlice", ("x_s", {"slice_id": 9})),
        ("UpdateNode", ("n.x.test", {"hostname": None})),
        ("DeleteSlice", ("x_nosuch",)),
        ("DeleteSlice", (99,)),
        ("GetSlices", ({"slice_ids": [1]},)),
        ("GetNodes", ({"slice_ids": [1]},)),
        ("GetNodes", ({"|slice_ids": ["x"]},)),
        ("GetNodes", ({">node_id": "x"},)),
        ("GetNodes", ({"-LIMIT": -1},)),
        ("GetNodes", ({"-LIMIT": "x"},)),
        ("GetNodes", ({"-SORT": 5},)),
        ("GetNodes", ({"-SORT": ["slice_ids"]},)),
        ("GetNodes", ({"-MAGIC": 5},)),
        ("GetNodes", ({"": 5},)),
        ("GetNodes", ({"~<>": 5},)),
        ("GetNodes", (None, [5])),
        ("GetSession", (-5,)),
    ],
)
def test_bad_argument_is_fault_102(empty: Bed, api: Any, method: str, params: tuple[Any, ...]) -> None:
    """Whatever is wrong with an argument is told as such, and changes nothing."""
    before = api.WaitForChange(ROOT, -1, 0)

    assert empty.fault(method, ROOT, *params)[0] == 102
    assert before == api.WaitForChange(ROOT, -1, 0)


def test_deleted_site_takes_all_with_it(api: Any) -> None:
    """Nodes, slices, tags of the site are gone."""
    api.DeleteSite(ROOT, "x")

    assert [api.GetNodes(ROOT), api.GetSlices(ROOT), api.GetNodeTags(ROOT), api.GetSliceTags(ROOT)] == [[]] * 4


def test_conf_file_of_a_node_wins(api: Any) -> None:
    """One file per destination: the node's over the group's over the one for all."""
    ids = [api.AddConfFile(ROOT, {"source": source, "dest": "/etc/x"}) for source in ("all", "own")]
    api.AddConfFileToNode(ROOT, ids[1], "n.x.test")
    assert [f["source"] for f in api.GetSlivers(ROOT, "n.x.test")["conf_files"]] == ["own"]
    api.DeleteConfFileFromNode(ROOT, ids[1], "n.x.test")
    api.DeleteConfFile(ROOT, ids[1])
    assert [f["source"] for f in api.GetSlivers(ROOT, "n.x.test")["conf_files"]] == ["all"]


def test_whitelist_keeps_other_slices_out(empty: Bed, api: Any) -> None:
    """A node with a whitelist takes only the slices on it."""
    api.AddSlice(ROOT, {"name": "x_t"})
    api.AddSliceToNodesWhitelist(ROOT, "x_s", ["n.x.test"])
    assert empty.fault("AddSliceToNodes", ROOT, "x_t", ["n.x.test"])[0] == 102
    api.DeleteSliceFromNodesWhitelist(ROOT, "x_s", ["n.x.test"])
    assert api.AddSliceToNodes(ROOT, "x_t", ["n.x.test"]) == 1


def test_initscript_reaches_nodes_with_plain_line_ends(api: Any) -> None:
    """CRLF becomes LF; a disabled script is not sent."""
    api.AddInitScript(ROOT, {"name": "s", "script": "#!/bin/sh\r\nexit\r\n"})
    sent = api.GetSlivers(ROOT, "n.x.test")["initscripts"]
    assert [(s["name"], s["script"]) for s in sent] == [("s", "#!/bin/sh\nexit\n")]
    api.UpdateInitScript(ROOT, "s", {"enabled": False})
    assert api.GetSlivers(ROOT, "n.x.test")["initscripts"] == []


def test_keys_of_enabled_members_reach_the_sliver(api: Any) -> None:
    """Each key once; none of a disabled member; options, comments and new lines survive."""
    blob = "AAAAC3NzaC1lZDI1NTE5AAAAIFNTU1NTU1NTU1NTU1NTU1NTU1NTU1NTU1NTU1NTU1NT"
    key = f'command="/bin/true",no-pty ssh-ed25519 {blob} ünï@cödé\n'
    api.AddPerson(ROOT, {"first_name": "a", "last_name": "b", "email": "a@b.test"})
    api.UpdatePerson(ROOT, "a@b.test", {"enabled": True})
    api.AddPersonKey(ROOT, "a@b.test", {"key_type": "ssh", "key": key})
    api.AddPersonToSlice(ROOT, "a@b.test", "x_s")
    assert api.GetSlivers(ROOT, "n.x.test")["slivers"][0]["keys"] == [{"key_type": "ssh", "key": key}]
    api.UpdatePerson(ROOT, "a@b.test", {"enabled": False})
    assert api.GetSlivers(ROOT, "n.x.test")["slivers"][0]["keys"] == []


# Filters --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wanted", "pops"),
    [
        ({"hostname": "NODE1.K*"}, "kans"),
        ({"hostname": "node1_k*"}, ""),
        ({"hostname": "%.hous.%"}, "hous"),
        ({"hostname": ["node1.kans.internet2.vini.test", "node1.hous.*"]}, "kans"),
        ({"<node_id": 3}, "kans chic"),
        ({"[node_id": 2, "]node_id": 2}, "chic"),
        ({">node_id": 1, "<node_id": 3}, "chic"),
        ({"~node_id": [], "[node_id": 2}, "kans chic"),
        ({"~peer_id": None}, ""),
        ({"peer_id": None, "-LIMIT": 2, "-OFFSET": 1}, "chic newy"),
        ({"-OFFSET": 9}, "atla wash"),
        ({"-OR": 1, "node_id": 1, "hostname": "*.chic.*"}, "kans chic"),
        ({"-AND": 1, "node_id": 1, "hostname": "*.chic.*"}, ""),
        ({"-SORT": ["-hostname"], "-LIMIT": 1}, "wash"),
        ({"-SORT": ["+boot_state", "-node_id"], "-LIMIT": 1}, "wash"),
        ({"|conf_file_ids": [1]}, ""),
        ({"|conf_file_ids": [], "node_id": 1}, "kans"),
        ({"&nodegroup_ids": [1], "node_id": 3}, "newy"),
        ({"~|nodegroup_ids": [1]}, ""),
        ({"|pcu_ids": [], "node_id": 1}, "kans"),
        ({"|pcu_ids": 5}, ""),
        ([1, "node1.chic.internet2.vini.test"], "kans chic"),
        (2, "chic"),
        ("node1.kans.internet2.vini.test", "kans"),
        ([], ""),
        ({"last_contact": None, "~hostname": "*.?*", "[node_id": 1}, "kans"),
    ],
)
def test_filter_finds(bed: Bed, wanted: Any, pops: str) -> None:
    """Every operator of planetlab.md §5.3, alone and combined, and the list and single forms."""
    found = bed.proxy().GetNodes(OP, wanted, ["hostname"])

    assert sorted(pops.split()) == sorted(n["hostname"].split(".")[1] for n in found)


def test_multicall_executes_each_and_reports_each(empty: Bed, api: Any) -> None:
    """Values in lists, faults as structs, in order; what was done stays done; no recursion, no waiting."""
    calls = xmlrpc.client.MultiCall(api)
    calls.AuthCheck(ROOT)
    calls.AddSlice(ROOT, {"name": "x_t"})
    calls.AddSlice(ROOT, {"name": "x_t"})
    calls.system.multicall([])
    calls.WaitForChange(ROOT, 0, 300)
    calls.NoSuch(ROOT)
    results = calls()

    assert results[0] == 1
    assert results[1] > 0
    for position, code in ((2, 102), (3, 102), (4, 102), (5, 100)):
        with pytest.raises(xmlrpc.client.Fault) as caught:
            results[position]
        assert caught.value.faultCode == code


def test_system_methods_describe_each_method(empty: Bed) -> None:
    """Help and signature exist for every method that is listed."""
    api = empty.proxy()
    names = api.system.listMethods()
    calls = xmlrpc.client.MultiCall(api)
    for name in names:
        calls.system.methodHelp(name)
        calls.system.methodSignature(name)
    answers = list(calls())

    assert len(answers) == 2 * len(names)
    assert all(name in text for name, text in zip(names, answers[::2], strict=True))
    assert api.system.methodSignature("GetSession") == [["string", "struct"], ["string", "struct", "int"]]
    assert empty.fault("system.methodHelp", "nope")[0] == 100
