"""GetSlivers answers become the model; what is wrong in them costs only itself and is told."""

import dataclasses
import json

import pytest
from strategies import ANSWERS, FIXTURES, recorded

from nodemanager_trellis import names, units
from nodemanager_trellis.errors import InvalidInput
from nodemanager_trellis.intake import getslivers, xmlrpc
from nodemanager_trellis.model import Limits, Node, Presence, Problem, Tag, VirtualLink

NOW = 1_800_000_000
RSPEC = "[(1, '198.51.100.14', '100mbit', '192.168.2.10', '192.168.2.9', '192.168.2.8/30')]"
TWO = RSPEC[:-1] + ", (3, '198.51.100.20', '50mbit', '192.168.4.13', '192.168.4.14', '192.168.4.12/30')]"
VINI = {"topo_rspec": TWO, "vini_topo": "manual", "egre_key": "10", "netns": "1"}
AT = "$.slivers[0].attributes"


def attributes(**tags):
    """Tags as PLC sends them; a list is several values of one name."""
    return [
        {"tagname": name, "value": value}
        for name, values in tags.items()
        for value in (values if isinstance(values, list) else [values])
    ]


def sliver(name="x_y", slice_id=7, tags=(), **members):
    return {
        "name": name,
        "slice_id": slice_id,
        "instantiation": "plc-instantiated",
        "expires": NOW + 1000,
        "keys": [],
        "attributes": attributes(**dict(tags)),
        "GetSliceFamily": "lxc-f35-x86_64",
    } | members


def answer(*slivers, **members):
    interface = {"is_primary": True, "ip": "198.51.100.16", "bwlimit": None}
    return {
        "timestamp": NOW,
        "node_id": 2,
        "hostname": "node1.chic.test",
        "groups": [],
        "interfaces": [interface],
        "initscripts": [{"name": "quagga", "script": "#!/bin/sh\n", "enabled": True}],
        "slivers": list(slivers),
    } | members


def parse(*slivers, previous=None, known_nodes=None, **members):
    return getslivers.parse(answer(*slivers, **members), now=NOW, previous=previous, known_nodes=known_nodes)


def problems(desired):
    return [(p.path, p.message, p.kept) for p in desired.problems]


def only(desired):
    assert 1 == len(desired.slivers)
    return desired.slivers[0]


class TestRecordedAnswers:
    """What a real PLCAPI sent."""

    @pytest.mark.parametrize("name", ANSWERS)
    def test_no_problems(self, name):
        """Every recorded answer is understood completely."""
        value = recorded(name)
        desired = getslivers.parse(value, now=value["timestamp"])

        assert () == desired.problems
        assert {s["name"] for s in value["slivers"]} == {s.name for s in desired.slivers}

    def test_answer_as_sent(self):
        """The XML of an answer goes through reader and intake."""
        body = (FIXTURES / "plcapi" / "getslivers-kans.xml").read_bytes()
        desired = getslivers.parse(xmlrpc.loads_response(body), now=0, expected_node_id=1)

        assert () == desired.problems
        assert 1 == desired.node.node_id

    def test_line3_chic(self):
        """The middle of the line has exactly its two links, and what else the tags say."""
        desired = getslivers.parse(recorded("line3-chic"), now=NOW)
        found = desired.sliver("princeton_line3")

        assert Node(2, "node1.chic.internet2.vini.test", "198.51.100.16") == desired.node
        assert (
            VirtualLink(
                "n1", 1, 1, "198.51.100.14", "a1if1", ("192.168.2.10/30",), ("192.168.2.9",), rate_bps=100_000_000
            ),
            VirtualLink(
                "n3", 1, 3, "198.51.100.20", "a1if3", ("192.168.4.13/30",), ("192.168.4.14",), rate_bps=50_000_000
            ),
        ) == found.links
        assert Presence.RUN is found.presence
        assert found.netns
        assert ("CAP_NET_ADMIN",) == found.capabilities
        assert "lxc-f35-x86_64" == found.image
        assert 2 == len(found.keys)
        assert ("setup-link", "setup-nat") == next(t.values for t in found.tags if t.name == "vsys")

    @pytest.mark.parametrize(
        ("kind", "name", "number", "key"),
        [("line3", "princeton_line3", 2, 1), ("abilene", "princeton_iias", 14, 10), ("abilene", "gt_mesh4", 6, 11)],
    )
    def test_both_ends_of_each_link_agree(self, kind, name, number, key):
        """Each link is seen from both ends with the same key, rate and network, and VINI's own addresses."""
        nodes = {}
        for file in ANSWERS:
            if file.startswith(kind):
                desired = getslivers.parse(recorded(file), now=NOW)
                nodes[desired.node.node_id] = desired
        ends = {
            (node_id, link.remote_node_id): link
            for node_id, desired in nodes.items()
            for found in desired.slivers
            if found.name == name
            for link in found.links
        }

        assert 2 * number == len(ends)
        for (near, far), link in ends.items():
            other = ends[far, near]
            net = names.vini_network(near, far)
            mine, theirs = (net[1], net[2]) if near < far else (net[2], net[1])
            assert key == link.key == other.key
            assert link.rate_bps == other.rate_bps > 0
            assert (f"{mine}/30",) == link.addresses
            assert (str(theirs),) == link.peer_addresses
            assert nodes[far].node.address == link.remote_ip
            assert f"a{key}if{far}" == link.ifname

    def test_abilene_rates(self):
        """Rates of all sorts of spellings are what the tags say."""
        found = getslivers.parse(recorded("abilene-atla"), now=NOW).sliver("princeton_iias")

        assert {"n38": 10_000_000, "n39": 622_080_000, "n41": 1_000_000_000} == {
            x.name: x.rate_bps for x in found.links
        }

    def test_node_caps(self):
        """The cap of the primary interface is in bit/s; null means none."""
        caps = {
            name: getslivers.parse(recorded(f"abilene-{name}"), now=NOW).node.bwlimit_bps
            for name in ("losa", "hous", "newy")
        }

        assert {"losa": 200_000_000, "hous": 1_000_000_000, "newy": None} == caps

    def test_groups(self):
        """Node groups are known to plugins."""
        assert ("Internet2",) == getslivers.parse(recorded("abilene-newy"), now=NOW).node.groups

    def test_presence(self):
        """Controller and default slices are left alone, others run."""
        desired = getslivers.parse(recorded("abilene-chic"), now=NOW)

        assert {
            "princeton_line3": Presence.RUN,
            "pl_default": Presence.LEAVE,
            "pl_sfacm": Presence.LEAVE,
            "princeton_iias": Presence.RUN,
            "gt_mesh4": Presence.RUN,
        } == {s.name: s.presence for s in desired.slivers}


IN_OUR_UNITS = {
    "cpu_share": ("cpu_share", 1),
    "cpu_pct": ("cpu_pct", 1),
    "disk_max": ("disk_bytes", 1024),
    "net_min_rate": ("net_min_bps", 1000),
    "net_max_rate": ("net_max_bps", 1000),
    "net_share": ("net_share", 1),
    "net_i2_min_rate": ("net_i2_min_bps", 1000),
    "net_i2_max_rate": ("net_i2_max_bps", 1000),
    "net_i2_share": ("net_i2_share", 1),
    "net_max_kbyte": ("net_max_bytes", 1024),
    "net_thresh_kbyte": ("net_thresh_bytes", 1024),
    "net_i2_max_kbyte": ("net_i2_max_bytes", 1024),
    "net_i2_thresh_kbyte": ("net_i2_thresh_bytes", 1024),
}
DEFAULTS = json.loads((FIXTURES / "nodemanager" / "records-line3-chic.json").read_text())["pl_sfacm"]["rspec"]


class TestRecordsOfTheOriginal:
    """The original sliver manager made records of the same answers; ours say the same in our units."""

    def compare(self, desired, file):
        records = json.loads((FIXTURES / "nodemanager" / f"records-{file}.json").read_text())
        assert set(records) == {s.name for s in desired.slivers}
        for found in desired.slivers:
            record = records[found.name]
            rspec = record["rspec"]
            for name, (field, unit) in IN_OUR_UNITS.items():
                ours = getattr(found.limits, field)
                # Where no tag is set the original fills in a constant; ours stays open (None) for the node to decide.
                assert rspec[name] == (DEFAULTS[name] if ours is None else ours // unit)
                assert ours is None or ours % unit == 0
            assert found.tag("delegations") == (record["delegations"] or "")
            assert rspec["capabilities"] == ",".join(found.capabilities)
            assert record["keys"] == "\n".join(found.keys)
            assert record["vref"] == found.image
            for member in ("name", "slice_id", "instantiation", "expires", "initscript"):
                assert record[member] == getattr(found, member)
            assert record["timestamp"] == desired.timestamp
            # The original runs the default slice and controllers; this node leaves them alone, as DESIGN says.
            if found.presence is not Presence.LEAVE:
                assert (rspec["enabled"] > 0) == (found.presence is Presence.RUN)

    @pytest.mark.parametrize("name", ANSWERS)
    def test_same_numbers(self, name):
        """Limits, keys, script, image and capabilities are those of the original's record."""
        self.compare(getslivers.parse(recorded(name), now=NOW), name)

    def test_ticket(self):
        """The payload of a ticket is read for the node it was handed to."""
        current = getslivers.parse(recorded("line3-chic"), now=NOW)
        desired = getslivers.parse_ticket(recorded("ticket-payload"), now=NOW, current=current)

        assert current.node == desired.node
        assert () == desired.problems
        self.compare(desired, "ticket-payload")


class TestSequence:
    """Sixteen steps in the life of one slice on one node, each read with what was before."""

    @pytest.fixture
    def steps(self):
        desired, steps = None, []
        for step in json.loads((FIXTURES / "plcapi" / "sequence-chic.json").read_text()):
            desired = getslivers.parse(step["getslivers"], now=NOW, previous=desired)
            steps.append(desired)
        return steps

    def test_nothing_is_wrong(self, steps):
        """No step has a problem, and the other slice's links never change."""
        assert [()] * 16 == [step.problems for step in steps]
        assert 1 == len({step.sliver("princeton_line3").links for step in steps})

    def test_slice_comes_and_goes(self, steps):
        """The slice is there exactly while it is bound to the node."""
        assert [0, 13, 15] == [i for i, step in enumerate(steps) if step.sliver("princeton_seq") is None]

    def test_links_change_as_told(self, steps):
        """Key, rate and number of links follow the tags step by step."""
        seen = [
            {link.name: (link.key, link.rate_bps // 10**6) for link in found.links} if found else None
            for found in (step.sliver("princeton_seq") for step in steps)
        ]
        both = {"n3": (2, 20), "n1": (2, 1000)}
        rekeyed = {"n3": (7, 20), "n1": (7, 1000)}

        assert [
            None,
            {},
            {"n3": (2, 50)},
            {"n3": (2, 20)},
            both,
            both,
            both,
            both,
            rekeyed,
            rekeyed,
            rekeyed,
            rekeyed,
            {"n3": (7, 20)},
            None,
            {"n3": (7, 20)},
            None,
        ] == seen

    def test_other_changes(self, steps):
        """Shaping tags, enabled, keys, script and image are seen at their step."""
        found = [step.sliver("princeton_seq") for step in steps]

        assert (None, 10_000_000) == (found[4].limits.net_max_bps, found[5].limits.net_max_bps)
        assert (1, 4) == (found[4].limits.net_share, found[5].limits.net_share)
        assert [Presence.RUN, Presence.STOP, Presence.RUN] == [s.presence for s in found[5:8]]
        assert (2, 3) == (len(found[8].keys), len(found[9].keys))
        assert "" == found[9].initscript
        assert "zebra" in found[10].initscript
        assert ("lxc-f35-x86_64", "lxc-f29-x86_64") == (found[10].image, found[11].image)

    def test_order_of_attributes_does_not_matter(self):
        """PLC's order of slivers and attributes is accidental; what is understood stays equal."""
        value = answer(sliver(tags=VINI | {"vsys": ["a", "b"], "net_share": "3"}))
        other = answer(sliver(tags=VINI | {"vsys": ["a", "b"], "net_share": "3"}))
        other["slivers"][0]["attributes"].reverse()
        ours = only(getslivers.parse(value, now=NOW))
        theirs = only(getslivers.parse(other, now=NOW))

        assert parse(sliver("a_b", 8), sliver()) == parse(sliver(), sliver("a_b", 8))
        assert dataclasses.replace(ours, tags=()) == dataclasses.replace(theirs, tags=())
        assert [t.name for t in ours.tags] == [t.name for t in theirs.tags]


class TestWholeAnswer:
    """Only an answer that is broken as a whole is refused."""

    @pytest.mark.parametrize(
        ("value", "path", "message"),
        [
            (None, "$", "expected struct, got null"),
            ([], "$", "expected struct, got list"),
            ("x", "$", "expected struct, got text"),
            ({}, "$", "missing: node_id, slivers"),
            ({"node_id": 2}, "$", "missing: slivers"),
            ({"node_id": "2", "slivers": []}, "$.node_id", "expected integer, got text"),
            ({"node_id": 0, "slivers": []}, "$.node_id", "0 is not an id"),
            ({"node_id": 2, "slivers": None}, "$.slivers", "expected list, got null"),
            ({"node_id": 2, "slivers": [{"name": b"x"}]}, "$.slivers[0].name", "a bytes is not a plain value"),
        ],
    )
    def test_unusable_answers_are_refused(self, value, path, message):
        """Without node id and list of slivers nothing is changed."""
        with pytest.raises(InvalidInput) as caught:
            getslivers.parse(value, now=NOW)

        assert (path, message) == (caught.value.path, caught.value.message)

    def test_deep_answer_is_refused(self):
        """Depth is limited before anything recurses."""
        deep = []
        for _ in range(50_000):
            deep = [deep]
        with pytest.raises(InvalidInput, match="deeper than 16"):
            getslivers.parse(answer(hrn=deep), now=NOW)

    def test_answer_for_another_node_is_refused(self):
        """A node obeys only answers with its own id."""
        with pytest.raises(InvalidInput, match=r"\$.node_id: the answer is for node 2, this is node 3"):
            getslivers.parse(answer(), now=NOW, expected_node_id=3)
        assert 2 == getslivers.parse(answer(), now=NOW, expected_node_id=2).node.node_id

    def test_unknown_members_are_ignored(self):
        """PLCAPI may grow."""
        assert () == parse(sliver(new=1), also_new=[{"a": 1}]).problems

    def test_missing_optional_parts_are_told(self):
        """A bare answer gives a node without address, and says so."""
        desired = getslivers.parse({"node_id": 2, "slivers": []}, now=NOW)

        assert Node(2, "", "") == desired.node
        assert NOW == desired.timestamp
        assert [("$", "missing: hostname", ""), ("$.interfaces", "no primary interface", "")] == problems(desired)

    def test_bad_parts_of_the_node_keep_the_last_good_ones(self):
        """Host name, groups, address and time stay when the new ones are broken."""
        before = parse(groups=["b", "a"], interfaces=[{"is_primary": True, "ip": "198.51.100.16", "bwlimit": 10**8}])
        before = dataclasses.replace(before, node=dataclasses.replace(before.node, underlay="eth0", mtu=9000))
        after = parse(previous=before, groups=5, interfaces={}, hostname="a b", timestamp="x", initscripts=5)

        assert before.node == after.node
        assert ("a", "b") == after.node.groups
        assert NOW == after.timestamp
        assert [
            ("$.timestamp", "expected integer, got text", ""),
            ("$.hostname", "'a b' is not a host name", "node1.chic.test"),
            ("$.groups", "expected list, got integer", "the last groups"),
            ("$.interfaces", "expected list, got struct", "address 198.51.100.16"),
            ("$.initscripts", "expected list, got integer", ""),
        ] == problems(after)

    @pytest.mark.parametrize(
        ("interface", "path", "message"),
        [
            ({"is_primary": True, "ip": None}, ".ip", "None is not an IPv4 address"),
            ({"is_primary": True, "ip": "fe80::1"}, ".ip", "'fe80::1' is not an IPv4 address"),
            ({"is_primary": True, "ip": "0.0.0.0"}, ".ip", "0.0.0.0 is not a unicast IPv4 address"),
        ],
    )
    def test_bad_primary_address(self, interface, path, message):
        """An unusable primary address leaves the last one in force."""
        after = parse(previous=parse(), interfaces=[interface])

        assert "198.51.100.16" == after.node.address
        assert [(f"$.interfaces[0]{path}", message, "address 198.51.100.16")] == problems(after)

    def test_bad_interface_costs_only_itself(self):
        """A broken secondary interface does not hide the primary one."""
        good = {"is_primary": True, "ip": "198.51.100.9"}
        desired = parse(interfaces=[None, {"is_primary": False, "ip": "10.0.0.1"}, good])

        assert "198.51.100.9" == desired.node.address
        assert ["$.interfaces[0]"] == [p.path for p in desired.problems]

    def test_cap_below_the_smallest_rate_is_raised(self):
        """A cap of 0, which PLC accepts, does not cut the node off."""
        desired = parse(interfaces=[{"is_primary": True, "ip": "198.51.100.16", "bwlimit": 0}])

        assert units.MIN_RATE_BPS == desired.node.bwlimit_bps
        assert [("$.interfaces[0].bwlimit", "a cap of 0 bit/s is below 8kbit", "cap 8kbit")] == problems(desired)

    def test_older_plc_says_networks(self):
        """Before PLCAPI 5 the interfaces were called networks."""
        value = answer()
        value["networks"] = value.pop("interfaces")

        assert "198.51.100.16" == getslivers.parse(value, now=NOW).node.address

    def test_previous_of_another_node_is_not_used(self):
        """A lab that swaps nodes does not inherit links."""
        before = parse(sliver(tags=VINI))
        after = parse(sliver(tags=VINI | {"egre_key": "x"}), previous=before, node_id=5)

        assert () == only(after).links


class TestSlivers:
    """One bad sliver leaves the others, and itself, as they were."""

    @pytest.mark.parametrize(
        ("change", "path", "message"),
        [
            ({"name": 5}, ".name", "expected text, got integer"),
            ({"name": "no-hyphen"}, ".name", "'no-hyphen' is not a slice name"),
            ({"name": "x_" + "y" * 63}, ".name", f"'x_{'y' * 55}'… is not a slice name"),
            ({"expires": "soon"}, ".expires", "expected integer, got text"),
            ({"expires": None}, ".expires", "expected integer, got null"),
            ({"instantiation": "magic"}, ".instantiation", "'magic' is not an instantiation"),
            ({"attributes": {}}, ".attributes", "expected list, got struct"),
            ({"attributes": None}, ".attributes", "expected list, got null"),
        ],
    )
    def test_bad_sliver_stays_as_it_was(self, change, path, message):
        """What made no sense is told, and the sliver of before goes on."""
        before = parse(sliver(tags=VINI), sliver("a_b", 8))
        after = parse(sliver(tags=VINI) | change, sliver("a_b", 8), previous=before)

        assert set(before.slivers) == set(after.slivers)
        assert [(f"$.slivers[0]{path}", message, "the sliver as it was")] == problems(after)

    @pytest.mark.parametrize("member", ["name", "slice_id", "instantiation", "expires", "attributes"])
    def test_missing_member(self, member):
        """A sliver needs name, id, instantiation, expiry and attributes."""
        broken = sliver()
        del broken[member]

        after = parse(broken, previous=parse(sliver()))
        assert 1 == len(after.slivers)
        assert [("$.slivers[0]", f"missing: {member}", "the sliver as it was")] == problems(after)
        assert () == parse(broken).slivers

    @pytest.mark.parametrize("junk", [None, 5, "x", [], {}, {"name": 1, "slice_id": "x"}])
    def test_nameless_entry_removes_nothing(self, junk):
        """An entry that may be any sliver must not read as the removal of one."""
        before = parse(sliver(), sliver("a_b", 8))
        after = parse(sliver("a_b", 8), junk, previous=before)

        assert {"x_y", "a_b"} == {s.name for s in after.slivers}
        assert after.problems
        assert {"$.slivers[1]"} == {p.path[:12] for p in after.problems}

    def test_kept_sliver_still_expires(self):
        """A sliver in force only because of a broken entry ends at its own time."""
        before = parse(sliver())
        value = answer(sliver(attributes=None))

        assert () == getslivers.parse(value, now=NOW + 1001, previous=before).slivers

    def test_named_new_sliver_that_is_broken_keeps_nobody_else(self):
        """A broken entry with a name of its own does not hold back a removal."""
        after = parse(sliver("new_one", 9, attributes=None), previous=parse(sliver()))

        assert () == after.slivers
        assert [("$.slivers[0].attributes", "expected list, got null", "")] == problems(after)

    def test_broken_id_is_found_by_name(self):
        """If the id is unreadable, the name says which sliver stays."""
        after = parse(sliver(slice_id="7"), sliver("a_b", 8), previous=parse(sliver()))

        assert {"x_y", "a_b"} == {s.name for s in after.slivers}
        assert "x_y" == after.problems[0].slice

    def test_absent_sliver_goes(self):
        """A well-formed answer without a sliver removes it."""
        assert () == parse(previous=parse(sliver())).slivers

    def test_expired_sliver_goes(self):
        """PLC may go on listing an expired slice; the node checks by itself."""
        desired = parse(sliver(expires=NOW - 1), sliver("a_b", 8, expires=NOW))

        assert ["a_b"] == [s.name for s in desired.slivers]
        assert () == desired.problems

    @pytest.mark.parametrize("twin", [sliver("a_b", 7), sliver("x_y", 8), sliver("x_y", 7)])
    def test_repeated_sliver_is_refused(self, twin):
        """The first of two entries with one name or id stays."""
        desired = parse(sliver(tags={"net_share": "3"}), twin)

        assert 3 == only(desired).limits.net_share
        message = f"slice {twin['name']} (id {twin['slice_id']}) repeats x_y (id 7)"
        assert [("$.slivers[1]", message, "the first one")] == problems(desired)

    def test_recreated_slice_is_another_sliver(self):
        """The expired slice and its successor of the same name do not disturb each other."""
        before = parse(sliver(tags=VINI))
        after = parse(sliver(expires=NOW - 1), sliver(slice_id=99), previous=before)

        assert (99, ()) == (only(after).slice_id, only(after).links)
        assert () == after.problems

    @pytest.mark.parametrize("instantiation", ["delegated", "nm-controller", "not-instantiated"])
    def test_slices_nobody_asked_for_are_left(self, instantiation):
        """Delegated and controller slices are listed on every node; they are neither built nor destroyed."""
        assert Presence.LEAVE is only(parse(sliver(instantiation=instantiation))).presence

    @pytest.mark.parametrize(
        ("text", "presence"),
        [("1", "run"), ("2", "run"), ("0", "stop"), (" 0", "stop"), ("00", "stop"), ("-1", "stop"), ("٠", "stop")],
    )
    def test_enabled(self, text, presence):
        """Zero and below stop the sliver, however it is spelled."""
        desired = parse(sliver(tags={"enabled": text}))

        assert presence == only(desired).presence
        assert () == desired.problems

    @pytest.mark.parametrize("text", ["false", "no", "", "0.0", "0x0"])
    def test_enabled_that_is_no_number(self, text):
        """A word leaves the sliver as it was, and is told instead of being taken for yes."""
        new = parse(sliver(tags={"enabled": text}))
        stopped = parse(sliver(tags={"enabled": text}), previous=parse(sliver(tags={"enabled": "0"})))

        assert Presence.RUN is only(new).presence
        assert Presence.STOP is only(stopped).presence
        assert [(f"{AT}[0].value", f"{text!r} is not a whole number", "enabled 0")] == problems(stopped)

    def test_longest_name_with_every_legal_character(self):
        """A name of 64 bytes with dots, capitals, digits and underscores passes."""
        name = "abcdefghijklmnopqrstuvwxyz.0123456789_ABCDEFGHIJKLMNOPQRSTUVWXYZ"
        desired = parse(sliver(name, tags=VINI))

        assert 64 == len(name)
        assert name == only(desired).name
        assert 2 == len(only(desired).links)
        assert () == desired.problems

    @pytest.mark.parametrize("name", ["x_y\n", "x_é", "X_y", "xy", "_x", "x_", "x_y/z", "", "x_y\x00"])
    def test_illegal_names(self, name):
        """What PLC would not accept as a slice name is refused here too."""
        assert () == parse(sliver(name)).slivers


class TestAttributes:
    """One bad attribute costs itself."""

    def test_limits_in_our_units(self):
        """Every number of the reference table arrives in bit/s and bytes."""
        tags = {
            "cpu_share": "4",
            "cpu_pct": "25",
            "memlock_hard": "524288",
            "disk_max": "20000000",
            "net_min_rate": "1000",
            "net_max_rate": "100000",
            "net_share": "2",
            "net_i2_min_rate": "1",
            "net_i2_max_rate": "1000000",
            "net_i2_share": "3",
            "net_max_kbyte": "10546875",
            "net_thresh_kbyte": "9492187",
            "net_i2_max_kbyte": "31640625",
            "net_i2_thresh_kbyte": "28476562",
        }
        desired = parse(sliver(tags=tags))

        assert () == desired.problems
        assert (
            Limits(
                cpu_share=4,
                cpu_pct=25,
                memory_bytes=512 * 2**20,
                disk_bytes=20_480_000_000,
                net_min_bps=1_000_000,
                net_max_bps=100_000_000,
                net_share=2,
                net_i2_min_bps=1000,
                net_i2_max_bps=10**9,
                net_i2_share=3,
                net_max_bytes=10_800_000_000,
                net_thresh_bytes=9_719_999_488,
                net_i2_max_bytes=32_400_000_000,
                net_i2_thresh_bytes=29_159_999_488,
            )
            == only(desired).limits
        )

    def test_no_tags_no_limits(self):
        """Without tags nothing is set."""
        assert Limits() == only(parse(sliver())).limits

    @pytest.mark.parametrize("text", [" 5 ", "+5", "005", "٥", "\t5\n"])
    def test_whole_numbers_as_the_original_reads_them(self, text):
        """Blanks, a sign, leading zeros and any Unicode digits pass."""
        assert 5 == getslivers.whole_number(text)

    @pytest.mark.parametrize("text", ["", " ", "1.5", "1e6", "0x20", "10mbit", "five", "--1", "9" * 65, "9" * 5000])
    def test_other_texts_are_no_whole_numbers(self, text):
        """Everything else is refused with a short message."""
        with pytest.raises(ValueError, match="is not a whole number") as caught:
            getslivers.whole_number(text)

        assert len(str(caught.value)) < 100

    @pytest.mark.parametrize(
        ("name", "field", "good", "kept"),
        [
            ("net_max_rate", "net_max_bps", "100", "net_max_rate 100"),
            ("memlock_hard", "memory_bytes", "524288", "memlock_hard 524288"),
            ("net_share", "net_share", "3", "net_share 3"),
        ],
    )
    def test_number_that_is_none(self, name, field, good, kept):
        """Words leave the last good number, or the default, and are told."""
        before = parse(sliver(tags={name: good}))
        after = parse(sliver(tags={name: "10mbit"}), previous=before)

        assert getattr(only(before).limits, field) == getattr(only(after).limits, field)
        assert [(f"{AT}[0].value", "'10mbit' is not a whole number", kept)] == problems(after)
        assert getattr(Limits(), field) == getattr(only(parse(sliver(tags={name: "10mbit"}))).limits, field)

    @pytest.mark.parametrize(
        ("name", "text", "field", "used"),
        [
            ("net_max_rate", "0", "net_max_bps", 8000),
            ("net_max_rate", "-1", "net_max_bps", 8000),
            ("net_max_rate", "99999999999", "net_max_bps", 10**12),
            ("net_min_rate", "-5", "net_min_bps", 0),
            ("net_share", "0", "net_share", 1),
            ("cpu_share", "-3", "cpu_share", 1),
            ("cpu_pct", "-1", "cpu_pct", 0),
            ("memlock_hard", "64", "memory_bytes", 16 * 2**20),
        ],
    )
    def test_number_out_of_bounds_is_clamped(self, name, text, field, used):
        """As bwlimit does it, but told."""
        desired = parse(sliver(tags={name: text}))

        assert used == getattr(only(desired).limits, field)
        (problem,) = desired.problems
        assert f"{AT}[0].value" == problem.path
        assert f"{name} {text!r} is outside " in problem.message
        assert problem.kept.startswith(f"{name} ")

    @pytest.mark.parametrize(("name", "field"), [("disk_max", "disk_bytes"), ("memlock_hard", "memory_bytes")])
    def test_minus_one_is_no_limit(self, name, field):
        """-1 lifts a limit of memory or disk, as for rlimits."""
        desired = parse(sliver(tags={name: "-1"}), previous=parse(sliver(tags={name: "99999999"})))

        assert None is getattr(only(desired).limits, field)
        assert () == desired.problems

    def test_removed_tag_gives_the_default(self):
        """A tag taken away is not a fault: the limit is open again."""
        after = parse(
            sliver(), previous=parse(sliver(tags={"net_max_rate": "100", "netns": "1", "initscript": "quagga"}))
        )

        assert None is only(after).limits.net_max_bps
        assert not only(after).netns
        assert "" == only(after).initscript

    def test_duplicates_last_wins(self):
        """Of several values of a single-valued name the last counts, as in the original, and it is told."""
        desired = parse(sliver(tags={"net_share": ["2", "3"], "sysctl.net.ipv4.ip_forward": ["0", "1"]}))

        assert 3 == only(desired).limits.net_share
        assert (("net.ipv4.ip_forward", "1"),) == only(desired).sysctls
        assert [
            (f"{AT}[0].value", "net_share occurs 2 times with different values", "the last one"),
            (f"{AT}[2].value", "sysctl.net.ipv4.ip_forward occurs 2 times with different values", "the last one"),
        ] == problems(desired)

    def test_harmless_duplicates(self):
        """Equal values, and names that may occur several times, are no problem."""
        desired = parse(sliver(tags={"net_share": ["2", "2"], "vsys": ["a", "b"], "unknown": ["1", "2"]}))

        assert () == desired.problems
        assert (Tag("net_share", ("2", "2")), Tag("unknown", ("1", "2")), Tag("vsys", ("a", "b"))) == only(desired).tags

    @pytest.mark.parametrize(
        ("broken", "path", "message"),
        [
            (None, "", "expected struct, got null"),
            ({}, "", "missing: tagname, value"),
            ({"value": "x"}, "", "missing: tagname"),
            ({"tagname": 5, "value": "x"}, ".tagname", "expected text, got integer"),
            ({"tagname": "net_share", "value": 5}, ".value", "expected text, got integer"),
            ({"tagname": "net_share"}, "", "missing: value"),
            ({"tagname": "net_share", "value": None}, ".value", "expected text, got null"),
        ],
    )
    def test_broken_attribute_keeps_the_last_good_value(self, broken, path, message):
        """An attribute without a usable value is not the removal of that attribute."""
        before = parse(sliver(tags={"net_share": "3", "net_max_rate": "100"}))
        value = sliver(tags={"net_max_rate": "200"})
        value["attributes"].append(broken)
        after = parse(value, previous=before)

        assert (3, 200_000) == (only(after).limits.net_share, only(after).limits.net_max_bps)
        assert Tag("net_share", ("3",)) in only(after).tags
        assert [(f"{AT}[1]{path}", message)] == [p[:2] for p in problems(after)]

    def test_nameless_attribute_removes_nothing(self):
        """While one attribute is unreadable, everything that is not said stays as it was."""
        tags = VINI | {
            "capabilities": "NET_RAW",
            "initscript_code": "#!/bin/sh\n",
            "sysctl.net.a": "1",
            "vref": "x",
            "enabled": "0",
        }
        before, bare = sliver(tags=tags), sliver(attributes=[5])
        del before["GetSliceFamily"], bare["GetSliceFamily"]
        after = parse(bare, previous=parse(before))

        assert only(parse(before)) == only(after)
        assert "x" == only(after).image
        assert [(f"{AT}[0]", "expected struct, got integer", "")] == problems(after)

    @pytest.mark.parametrize(
        ("text", "names"),
        [
            ("CAP_NET_ADMIN", ("CAP_NET_ADMIN",)),
            ("CAP_NET_ADMIN,CAP_NET_RAW", ("CAP_NET_ADMIN", "CAP_NET_RAW")),
            (" net_admin ,, Cap_Net_Raw\n net_admin", ("CAP_NET_ADMIN", "CAP_NET_RAW")),
            ("", ()),
        ],
    )
    def test_capabilities(self, text, names):
        """Blanks, lower case and a missing CAP_ are what people write."""
        desired = parse(sliver(tags={"capabilities": text}))

        assert names == only(desired).capabilities
        assert () == desired.problems

    def test_unknown_capability(self):
        """An unknown name is left out and told."""
        desired = parse(sliver(tags={"capabilities": "NET_ADMIN,FLY"}))

        assert ("CAP_NET_ADMIN",) == only(desired).capabilities
        assert [(f"{AT}[0].value", "no such capability: 'FLY'", "the other ones")] == problems(desired)

    @pytest.mark.parametrize(("text", "on"), [("1", True), (" 1", True), ("0", False)])
    def test_netns(self, text, on):
        """1 is a private network stack, 0 none."""
        desired = parse(sliver(tags={"netns": text}))

        assert on is only(desired).netns
        assert () == desired.problems

    @pytest.mark.parametrize(
        ("text", "message"), [("2", "netns '2' is neither 0 nor 1"), ("yes", "'yes' is not a whole number")]
    )
    def test_bad_netns(self, text, message):
        """Another value leaves the stack as it was."""
        after = parse(sliver(tags={"netns": text}), previous=parse(sliver(tags={"netns": "1"})))

        assert only(after).netns
        assert [message] == [p.message for p in after.problems]
        assert not only(parse(sliver(tags={"netns": text}))).netns

    def test_sysctls(self):
        """Both spellings of sysctl tags are read, sorted by key."""
        desired = parse(sliver(tags={"vsys_sysctl.net.ipv4.ip_forward": " 1\n", "sysctl.net/core/rmem_max": "4 5\t6"}))

        assert (("net.ipv4.ip_forward", "1"), ("net/core/rmem_max", "4 5\t6")) == only(desired).sysctls

    @pytest.mark.parametrize(
        "key", ["", "..", "net", "net..x", "/etc/passwd", "net.ipv4/../x", "a b.c", "net." + "x" * 200]
    )
    def test_bad_sysctl_name(self, key):
        """A key that is no path below /proc/sys is refused."""
        desired = parse(sliver(tags={f"sysctl.{key}": "1"}))

        assert () == only(desired).sysctls
        assert "is not the name of a sysctl" in desired.problems[0].message

    @pytest.mark.parametrize("text", ["1\n2", "\x00", "x" * 257])
    def test_bad_sysctl_value(self, text):
        """A value must be one short line; the last good one stays."""
        before = parse(sliver(tags={"sysctl.net.a": "1"}))
        after = parse(sliver(tags={"sysctl.net.a": text}), previous=before)

        assert (("net.a", "1"),) == only(after).sysctls
        assert "net.a 1" == after.problems[0].kept
        assert () == only(parse(sliver(tags={"sysctl.net.a": text}))).sysctls

    def test_initscript_by_name(self):
        """A sliver names one of the PLC's scripts."""
        assert "#!/bin/sh\n" == only(parse(sliver(tags={"initscript": "quagga"}))).initscript

    def test_initscript_code_wins(self):
        """Text in the tag itself wins over a name; line ends become LF."""
        found = only(parse(sliver(tags={"initscript": "quagga", "initscript_code": "#!/bin/bash\r\ntrue\r\n"})))

        assert "#!/bin/bash\ntrue\n" == found.initscript

    @pytest.mark.parametrize(
        "scripts", [[], [{"name": "quagga", "script": "x", "enabled": False}], [None], [{"name": "quagga"}], None, "x"]
    )
    def test_unknown_initscript(self, scripts):
        """A name that leads nowhere keeps the last script."""
        before = parse(sliver(tags={"initscript": "quagga"}))
        after = parse(sliver(tags={"initscript": "quagga"}), previous=before, initscripts=scripts)

        assert "#!/bin/sh\n" == only(after).initscript
        assert (f"{AT}[0].value", "no such initscript: 'quagga'", "the last initscript") == problems(after)[-1]
        assert "" == only(parse(sliver(tags={"initscript": "nix"}))).initscript

    def test_initscript_with_control_characters(self):
        """A script with NUL in it is not installed."""
        after = parse(sliver(tags={"initscript_code": "a\x00"}), previous=parse(sliver(tags={"initscript": "quagga"})))

        assert "#!/bin/sh\n" == only(after).initscript
        assert "the script holds control characters" == after.problems[0].message

    def test_keys(self):
        """Keys are stripped, unique, in order; comments may be of any alphabet."""
        keys = ["ssh-rsa A a@b\n", " ssh-rsa B Zoë", "ssh-rsa A a@b", "", 'from="10.*" ssh-rsa C']
        desired = parse(sliver(keys=[{"key_type": "ssh", "key": key} for key in keys]))

        assert ("ssh-rsa A a@b", "ssh-rsa B Zoë", 'from="10.*" ssh-rsa C') == only(desired).keys
        assert () == desired.problems

    @pytest.mark.parametrize(
        ("bad", "path"),
        [
            ({"key": "ssh-rsa A\nssh-rsa B"}, ".key"),
            ({"key": "ssh-rsa\x00"}, ".key"),
            ({"key": "ssh-rsa\x85"}, ".key"),
            ({"key": 5}, ".key"),
            ({"key": "x" * 20_000}, ".key"),
            ({}, ""),
            (None, ""),
        ],
    )
    def test_bad_key(self, bad, path):
        """One bad key does not lock the others out."""
        desired = parse(sliver(keys=[bad, {"key": "ssh-rsa A"}]))

        assert ("ssh-rsa A",) == only(desired).keys
        assert [f"$.slivers[0].keys[0]{path}"] == [p.path for p in desired.problems]
        assert "the other keys" == desired.problems[0].kept

    @pytest.mark.parametrize("keys", [None, {}, "ssh-rsa"])
    def test_bad_list_of_keys(self, keys):
        """If there is no list of keys, nobody is locked out."""
        before = parse(sliver(keys=[{"key": "ssh-rsa A"}]))
        after = parse(sliver(keys=keys), previous=before)

        assert ("ssh-rsa A",) == only(after).keys
        assert "the last 1 keys" == after.problems[0].kept

    def test_missing_keys(self):
        """The same holds if the member is missing."""
        value = sliver()
        del value["keys"]
        after = parse(value, previous=parse(sliver(keys=[{"key": "ssh-rsa A"}])))

        assert ("ssh-rsa A",) == only(after).keys
        assert [("$.slivers[0].keys", "missing: keys", "the last 1 keys")] == problems(after)

    def test_image(self):
        """The slice family names the image; vref does where there is no family."""
        value = sliver(tags={"vref": "vini"})
        bare = sliver(tags={"vref": "vini"})
        del bare["GetSliceFamily"]
        neither = sliver()
        del neither["GetSliceFamily"]

        assert ["lxc-f35-x86_64", "vini", "default"] == [only(parse(s)).image for s in (value, bare, neither)]

    @pytest.mark.parametrize("name", ["../x", "", ".x", "a/b", "x" * 129, "a\n", 5])
    def test_bad_image(self, name):
        """An image is one path component; the last good one stays."""
        by_family = parse(sliver(GetSliceFamily=name), previous=parse(sliver()))

        assert "lxc-f35-x86_64" == only(by_family).image
        assert ["$.slivers[0].GetSliceFamily"] == [p.path for p in by_family.problems]
        if isinstance(name, str):
            bare = sliver(tags={"vref": name})
            del bare["GetSliceFamily"]
            assert "default" == only(parse(bare)).image
            assert 1 == len(parse(bare).problems)

    def test_tags_are_all_there(self):
        """Plugins see every attribute by name."""
        found = only(parse(sliver(tags={"b": ["2", "1"], "a": "é\n"})))

        assert (Tag("a", ("é\n",)), Tag("b", ("2", "1"))) == found.tags
        assert "1" == found.tag("b")
        assert "none" == found.tag("c", "none")

    @pytest.mark.parametrize(("value", "off"), [("-1", True), (" -1", True), ("500000", False), (["5", "-1"], True)])
    def test_plc_wide_override(self, value, off):
        """net_max_rate of -1 in the default slice switches limits off; it is not a limit of that slice."""
        desired = parse(sliver("pl_default", 34, tags={"net_max_rate": value}))

        assert off is desired.node.limits_off
        assert not [p for p in desired.problems if "outside" in p.message]
        assert not getslivers.parse(
            answer(sliver("pl_default", 34, tags={"net_max_rate": value})), now=NOW, slice_prefix="ple"
        ).node.limits_off

    @pytest.mark.parametrize(
        "attributes", [[{"tagname": "net_max_rate", "value": "x"}], [{"tagname": "net_max_rate"}], None]
    )
    def test_broken_override_stays(self, attributes):
        """A broken override neither sets nor lifts the limits."""
        before = parse(sliver("pl_default", 34, tags={"net_max_rate": "-1"}))

        assert parse(sliver("pl_default", 34, attributes=attributes), previous=before).node.limits_off
        assert not parse(sliver("pl_default", 34, attributes=attributes)).node.limits_off
        assert not parse(None, previous=before).node.limits_off


class TestLinks:
    """One bad link, or one bad member of it, costs itself."""

    def test_bad_member_has_its_exact_path(self):
        """The path leads to the member inside the tag's text."""
        after = parse(
            sliver(tags=VINI | {"topo_rspec": TWO.replace("'50mbit'", "'fast'")}), previous=parse(sliver(tags=VINI))
        )

        assert [Problem(f"{AT}[0].value[1][2]", "'fast' is not a rate such as 100mbit", "x_y", "rate 50mbit")] == list(
            after.problems
        )
        assert only(parse(sliver(tags=VINI))).links == only(after).links

    @pytest.mark.parametrize("text", ["", "manual", "[(1,", "__import__('os')", "[" * 70_000, "{1: 2}"])
    def test_tag_that_is_no_literal(self, text):
        """Text that cannot be read keeps the links of before."""
        before = parse(sliver(tags=VINI))
        after = parse(sliver(tags=VINI | {"topo_rspec": text}), previous=before)

        assert only(before).links == only(after).links
        assert [(f"{AT}[0].value", "the last 2 links")] == [(p.path, p.kept) for p in after.problems]
        assert () == only(parse(sliver(tags=VINI | {"topo_rspec": text}))).links

    def test_several_tags_are_joined(self):
        """Links may come one per tag, in a list or bare."""
        first, second = TWO[1:-1].split("), ")
        desired = parse(sliver(tags=VINI | {"topo_rspec": [f"[{first})]", second]}))

        assert ["n1", "n3"] == [link.name for link in only(desired).links]
        assert () == desired.problems

    def test_one_unreadable_tag_of_several_removes_nothing(self):
        """The links that an unreadable tag may have meant stay, with the slice's new key."""
        before = parse(sliver(tags=VINI))
        after = parse(sliver(tags=VINI | {"topo_rspec": [RSPEC, "[("], "egre_key": "11"}), previous=before)

        assert {"n1": (11, "a11if1"), "n3": (11, "a11if3")} == {x.name: (x.key, x.ifname) for x in only(after).links}
        assert 1 == len(after.problems)

    def test_unreadable_node_id_removes_nothing(self):
        """The link whose node cannot be read may be the old one."""
        after = parse(
            sliver(tags=VINI | {"topo_rspec": TWO.replace("(3,", "('3',")}), previous=parse(sliver(tags=VINI))
        )

        assert {"n1", "n3"} == {link.name for link in only(after).links}
        assert [f"{AT}[0].value[1][0]"] == [p.path for p in after.problems]

    def test_empty_list_removes_all_links(self):
        """An empty list is a good value, key or not."""
        after = parse(sliver(tags={"topo_rspec": "[]"}), previous=parse(sliver(tags=VINI)))

        assert () == only(after).links
        assert () == after.problems

    def test_removed_tag_removes_all_links(self):
        """So is no tag at all."""
        after = parse(sliver(tags={"egre_key": "x", "vini_topo": "magic"}), previous=parse(sliver(tags=VINI)))

        assert () == only(after).links
        assert () == after.problems

    @pytest.mark.parametrize(
        ("key", "message"),
        [
            ("x", "egre_key 'x' is not a whole number"),
            ("", "egre_key '' is not a whole number"),
            ("-1", "egre_key -1 is outside 0..4294967295"),
            ("4294967296", "egre_key 4294967296 is outside 0..4294967295"),
        ],
    )
    def test_bad_key(self, key, message):
        """A key that is none keeps the links of before."""
        before = parse(sliver(tags=VINI))
        after = parse(sliver(tags=VINI | {"egre_key": key}), previous=before)

        assert only(before).links == only(after).links
        assert [(f"{AT}[2].value", message, "the last 2 links")] == problems(after)

    def test_missing_key(self):
        """Links without any key are told at the attributes."""
        tags = {name: value for name, value in VINI.items() if name != "egre_key"}

        assert () == only(parse(sliver(tags=tags))).links
        assert [(AT, "the slice has links but no egre_key", "")] == problems(parse(sliver(tags=tags)))

    def test_lost_key(self):
        """A key whose value was lost in the answer is told once, and the links stay."""
        value = sliver(tags={name: text for name, text in VINI.items() if name != "egre_key"})
        value["attributes"].append({"tagname": "egre_key", "value": 10})
        before = parse(sliver(tags=VINI))
        after = parse(value, previous=before)

        assert only(before).links == only(after).links
        assert [(f"{AT}[3].value", "expected text, got integer", "the last good egre_key")] == problems(after)

    @pytest.mark.parametrize("key", ["0", "1", "256", "4294967295", " 7 "])
    def test_any_32_bit_key_is_good(self, key):
        """VINI's range of 1..255 is advice."""
        desired = parse(sliver(tags=VINI | {"egre_key": key}))

        assert {int(key)} == {link.key for link in only(desired).links}
        assert () == desired.problems

    @pytest.mark.parametrize("mode", ["auto", "", "Manual"])
    def test_other_modes_are_not_supported(self, mode):
        """Only manual topologies are understood; others keep the links."""
        before = parse(sliver(tags=VINI))
        after = parse(sliver(tags=VINI | {"vini_topo": mode}), previous=before)

        assert only(before).links == only(after).links
        message = f"vini_topo {mode!r} is not supported, only 'manual' is"
        assert [(f"{AT}[1].value", message, "the last 2 links")] == problems(after)

    def test_mode_may_be_absent(self):
        """The 2019 aggregate wrote no mode."""
        tags = {name: value for name, value in VINI.items() if name != "vini_topo"}

        assert 2 == len(only(parse(sliver(tags=tags))).links)

    def test_link_to_itself(self):
        """A link to this node is refused, by id and by address."""
        desired = parse(
            sliver(tags=VINI | {"topo_rspec": TWO.replace("(3,", "(2,").replace("198.51.100.14", "198.51.100.16")})
        )

        assert () == only(desired).links
        assert [
            (f"{AT}[0].value[0][1]", "198.51.100.16 is this node's own address", ""),
            (f"{AT}[0].value[1][0]", "node 2 is this node itself", ""),
        ] == problems(desired)

    def test_unknown_remote_node(self):
        """A link to a node that the caller does not know is refused."""
        desired = parse(sliver(tags=VINI), known_nodes={1, 2})

        assert ["n1"] == [link.name for link in only(desired).links]
        assert [(f"{AT}[0].value[1][0]", "no such node: 3", "")] == problems(desired)

    def test_same_key_and_address_of_two_slices(self):
        """The lower slice id gets the pair; the other is told, naming both."""
        desired = parse(sliver("b_b", 9, tags=VINI | {"topo_rspec": RSPEC}), sliver("a_a", 8, tags=VINI))

        assert [("a_a", ["n1", "n3"]), ("b_b", [])] == [(s.name, [x.name for x in s.links]) for s in desired.slivers]
        message = "slices a_a and b_b both want GRE key 10 to 198.51.100.14; a_a has it"
        assert [Problem(f"{AT}[0].value[0]", message, "b_b", "")] == list(desired.problems)

    def test_incumbent_keeps_its_pair(self):
        """Who had the pair before keeps it, whatever the ids."""
        before = parse(sliver("b_b", 9, tags=VINI))
        after = parse(sliver("b_b", 9, tags=VINI), sliver("a_a", 8, tags=VINI), previous=before)

        assert only(before).links == after.sliver("b_b").links
        assert () == after.sliver("a_a").links
        assert 2 == len(after.problems)
        assert {"a_a"} == {p.slice for p in after.problems}

    def test_loser_keeps_its_last_good_pair(self):
        """A slice that changes to a key in use keeps the links under its old key."""
        mine = VINI | {"egre_key": "20"}
        before = parse(sliver("a_a", 8, tags=VINI), sliver("b_b", 9, tags=mine))
        after = parse(sliver("a_a", 8, tags=VINI), sliver("b_b", 9, tags=VINI), previous=before)

        assert before.slivers == tuple(dataclasses.replace(s, tags=before.sliver(s.name).tags) for s in after.slivers)
        assert ["GRE key 20 to 198.51.100.14", "GRE key 20 to 198.51.100.20"] == [p.kept for p in after.problems]

    def test_loser_whose_old_pair_is_taken_has_none(self):
        """Nobody falls back on a pair that somebody else got."""
        mine = VINI | {"egre_key": "20"}
        before = parse(sliver("a_a", 8, tags=VINI), sliver("b_b", 9, tags=mine))
        after = parse(
            sliver("a_a", 8, tags=VINI),
            sliver("b_b", 9, tags=VINI),
            sliver("c_c", 10, tags=mine),
            previous=before,
        )

        assert () == after.sliver("b_b").links
        assert 2 == len(after.sliver("c_c").links)

    def test_slices_nobody_builds_come_last(self):
        """A delegated slice that does not run here takes no pair from one that does."""
        desired = parse(sliver("a_a", 8, tags=VINI, instantiation="delegated"), sliver("b_b", 9, tags=VINI))

        assert () == desired.sliver("a_a").links
        assert 2 == len(desired.sliver("b_b").links)

    def test_two_links_of_one_slice_to_one_address(self):
        """Two node ids with one address cannot be told apart under one key."""
        text = TWO.replace("198.51.100.20", "198.51.100.14")
        desired = parse(sliver(tags=VINI | {"topo_rspec": text}))

        assert ["n1"] == [link.name for link in only(desired).links]
        message = "links n1 and n3 both want GRE key 10 to 198.51.100.14; n1 has it"
        assert [(f"{AT}[0].value[1]", message, "")] == problems(desired)

    def test_same_key_to_different_nodes_is_fine(self):
        """A key may be used again towards another address."""
        one, three = (f"[{part}]" for part in (TWO[1:-1].split("), ")[0] + ")", TWO[1:-1].split("), ")[1]))
        desired = parse(
            sliver("a_a", 8, tags=VINI | {"topo_rspec": one}), sliver("b_b", 9, tags=VINI | {"topo_rspec": three})
        )

        assert () == desired.problems


class TestTicket:
    """A ticket carries a slice without the tags of a node."""

    def test_links_stay(self):
        """A ticket cannot say anything about links, so it changes none."""
        current = getslivers.parse(recorded("abilene-chic"), now=NOW)
        desired = getslivers.parse_ticket(recorded("ticket-payload"), now=NOW, current=current)

        assert current.sliver("princeton_iias").links == only(desired).links
        assert 2 == len(only(desired).links)

    @pytest.mark.parametrize("value", [None, [], {}, {"slivers": 5}])
    def test_unusable_ticket(self, value):
        """A ticket without slivers is refused."""
        with pytest.raises(InvalidInput):
            getslivers.parse_ticket(value, now=NOW, current=parse())

    def test_ticket_without_time(self):
        """The time of a ticket that has none is now."""
        desired = getslivers.parse_ticket({"slivers": [sliver(instantiation="delegated")]}, now=NOW, current=parse())

        assert NOW == desired.timestamp
        assert Presence.LEAVE is only(desired).presence
