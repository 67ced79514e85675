"""Whatever arrives, the intake answers with values or InvalidInput, and what it writes it reads back."""

import dataclasses
import itertools
import json
import os
import re

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from strategies import ANSWERS, XMLRPC, mutated_answers, plain, recorded, text, vini_links

from nodemanager_trellis import codec, units
from nodemanager_trellis.errors import InvalidInput
from nodemanager_trellis.intake import getslivers, schema, topo_rspec, xmlrpc
from nodemanager_trellis.model import Desired, Node

NOW = 1_800_000_000
# Repeatable by default; TRELLIS_EXAMPLES=5000 explores anew.
EXAMPLES = int(os.environ.get("TRELLIS_EXAMPLES", "0"))
LIVE = settings(
    max_examples=EXAMPLES or 100,
    derandomize=not EXAMPLES,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)
MARKUP = re.findall(
    r"\S+",
    """
    <methodCall> <methodResponse> <methodName> <params> <param> <value> <array> <data> <struct> <member> <name> <fault>
    <int> <i4> <boolean> <string> <nil/> <double> </value> </param> </params> </data> </array> </int> </methodResponse>
    </struct> </member> </name> </string> <value/> 1 x &amp; &x; <!-- --> <![CDATA[ ]]> <!DOCTYPE <?xml ?> >
    """,
)
READERS = (xmlrpc.loads, xmlrpc.loads_response)
BEFORE = {name: getslivers.parse(recorded(name), now=NOW) for name in ANSWERS}


def read(body, **limits):
    """Both readers, in turn, must end in values or one of their two errors."""
    for reader in READERS:
        try:
            reader(body, **limits)
        except (InvalidInput, xmlrpc.XmlRpcFault) as err:
            assert len(str(err)) < 1000


@LIVE
@given(st.binary(max_size=300))
def test_random_bytes(body):
    """Noise is refused, never more."""
    read(body)


@LIVE
@given(st.lists(st.sampled_from(MARKUP), max_size=40).map("".join))
def test_random_markup(body):
    """So are documents of the right words in the wrong order."""
    read(body.encode(), also=("double", "base64", "dateTime.iso8601"))


@LIVE
@given(XMLRPC, st.data())
def test_mutated_documents(value, data):
    """A good document with a few bytes changed is read or refused."""
    body = bytearray(xmlrpc.dumps_response(value))
    for _ in range(data.draw(st.integers(1, 4))):
        body[data.draw(st.integers(0, len(body) - 1))] = data.draw(st.integers(0, 255))
    read(bytes(body))


@LIVE
@given(XMLRPC)
def test_xmlrpc_round_trip(value):
    """What is written is read back equal, type by type."""
    assert repr(value) == repr(xmlrpc.loads_response(xmlrpc.dumps_response(value)))
    assert ((value, 1), "a.b") == xmlrpc.loads(xmlrpc.dumps_call("a.b", (value, 1)))


@LIVE
@given(st.floats(allow_nan=False, allow_infinity=False) | st.binary(max_size=50))
def test_optional_types_round_trip(value):
    """Floats and binary data survive exactly."""
    assert value == xmlrpc.loads_response(xmlrpc.dumps_response(value), also=("double", "base64"))


@LIVE
@given(text(60))
def test_any_text_can_be_sent(value):
    """Text arrives with the same length, at worst with question marks in it."""
    arrived = xmlrpc.loads_response(xmlrpc.dumps_response(value))

    assert len(value) == len(arrived)
    assert all(a in (b, "?") for a, b in zip(arrived, value, strict=True))


def parse(value, previous=None):
    """Parse, and check what must hold of every result."""
    try:
        desired = getslivers.parse(value, now=NOW, previous=previous)
    except InvalidInput as err:
        assert err.path.startswith("$")
        return None
    assert len(desired.slivers) == len({s.name for s in desired.slivers}) == len({s.slice_id for s in desired.slivers})
    pairs = [(link.remote_ip, link.key) for s in desired.slivers for link in s.links]
    assert len(pairs) == len(set(pairs))
    for sliver in desired.slivers:
        assert sliver.expires >= NOW
        assert len(sliver.links) == len({link.name for link in sliver.links})
        for link in sliver.links:
            assert link.remote_node_id != desired.node.node_id
            assert units.MIN_RATE_BPS <= link.rate_bps <= units.MAX_RATE_BPS
            assert len(link.ifname) <= 15
            assert 0 <= link.key < 2**32
        assert not [key for key in sliver.keys if not key.isprintable() and "\n" in key]
    for problem in desired.problems:
        assert problem.path.startswith("$")
        assert len(problem.message) < 400
        problem.message.encode()
    assert desired == codec.from_plain(Desired, json.loads(json.dumps(codec.to_plain(desired))))
    return desired


@LIVE
@given(plain())
def test_arbitrary_values(value):
    """No plain value makes the intake fail."""
    parse(value)
    parse({"node_id": 1, "slivers": value})
    parse({"node_id": 1, "slivers": [value, value]}, BEFORE["abilene-kans"])


@LIVE
@given(plain(), plain(), plain())
def test_arbitrary_parts(one, two, three):
    """Neither do arbitrary values in the places that it looks at."""
    sliver = {
        "name": "x_y",
        "slice_id": 5,
        "instantiation": "plc-instantiated",
        "expires": NOW,
        "keys": [one, {"key": two}],
        "attributes": [three, {"tagname": "topo_rspec", "value": one}, {"tagname": two, "value": "1"}],
        "GetSliceFamily": three,
    }
    answer = {"node_id": 1, "slivers": [sliver], "interfaces": [one, {"is_primary": True, "ip": two}]}
    parse(answer | {"initscripts": [two, {"name": one, "script": three}], "groups": [one], "timestamp": two})


@LIVE
@given(mutated_answers())
def test_mutated_answers(value):
    """A recorded answer with broken places gives a sound result, with and without a good one before."""
    parse(value)
    node_id = value.get("node_id")
    before = next((d for d in BEFORE.values() if d.node.node_id == node_id), None)
    parse(value, before)


NAMES = st.sampled_from(
    [
        "enabled",
        "egre_key",
        "netns",
        "vini_topo",
        "topo_rspec",
        "capabilities",
        "net_max_rate",
        "initscript",
        "sysctl.a.b",
    ]
)


@LIVE
@given(st.lists(st.tuples(NAMES, text() | st.sampled_from(["1", "manual", "[]", "-1", "x"])), max_size=6))
def test_arbitrary_tags(tags):
    """Any text in any tag leaves a sound sliver, its bad texts as problems at their own attribute."""
    sliver = recorded("line3-kans")["slivers"][0]
    sliver["attributes"] += [{"tagname": name, "value": value} for name, value in tags]
    desired = parse(recorded("line3-kans") | {"slivers": [sliver]}, BEFORE["line3-kans"])

    assert 1 == len(desired.slivers)
    for problem in desired.problems:
        assert problem.path.startswith("$.slivers[0].attributes")
        assert problem.slice == sliver["name"]


@pytest.mark.parametrize("name", ANSWERS)
def test_nothing_changes_when_nothing_changes(name):
    """Reading the same answer on top of itself gives the same result."""
    assert BEFORE[name] == getslivers.parse(recorded(name), now=NOW, previous=BEFORE[name])


@pytest.mark.parametrize("name", ["abilene-chic", "abilene-kans"])
def test_one_broken_sliver_costs_no_other(name):
    """Whichever sliver is replaced by junk, all others, and the sliver of before, stay equal."""
    for i, junk in itertools.product(range(len(recorded(name)["slivers"])), (None, {}, 5, [[]])):
        value = recorded(name)
        value["slivers"][i] = junk
        desired = parse(value, BEFORE[name])

        assert set(BEFORE[name].slivers) == set(desired.slivers)
        assert all(p.path.startswith(f"$.slivers[{i}]") for p in desired.problems)
        assert desired.problems


@pytest.mark.parametrize("name", ["abilene-chic", "line3-newy"])
def test_one_broken_attribute_costs_no_other(name):
    """Whichever attribute loses its value, the slivers stay as they were."""
    for i, sliver in enumerate(recorded(name)["slivers"]):
        for j in range(len(sliver["attributes"])):
            value = recorded(name)
            value["slivers"][i]["attributes"][j]["value"] = None
            desired = parse(value, BEFORE[name])

            assert set(BEFORE[name].slivers) == set(desired.slivers)
            assert [f"$.slivers[{i}].attributes[{j}].value"] == [p.path for p in desired.problems]


@LIVE
@given(text(80))
@example("[" * 70_000)
@example("(" * 9)
@example("1" * 5000)
@example("-")
@example("[1,(2,),'']")
def test_any_text_as_topo_rspec(value):
    """Any text is a list of raw links or InvalidInput."""
    try:
        members = topo_rspec.members(value, "$.v")
    except InvalidInput as err:
        assert err.path == "$.v"
    else:
        assert all(member.path.startswith("$.v") for member in members)


@LIVE
@example(f"[(1, {10**18})]")
@example(f"[(1, {2**64})]")
@given(st.lists(st.sampled_from([*"[](),'\"u1-. \nL", "None", "10mbit", "198.51.100.14"]), max_size=40).map("".join))
def test_almost_topo_rspec(value):
    """So is text of the right pieces; what is read is what the words say, resolved or refused without failing."""
    try:
        members = topo_rspec.members(value)
    except InvalidInput:
        return
    topo_rspec.resolve(members, key=1, node=Node(1, "h", "198.51.100.1"), previous={})


LITERALS = st.recursive(
    st.integers(1 - 10**18, 10**18 - 1) | st.none() | st.booleans() | st.text("ab. /0", max_size=8),
    lambda inner: st.lists(inner, max_size=4),
    max_leaves=10,
).filter(lambda value: isinstance(value, list) and (not value or isinstance(value[0], list)))


def depth(value):
    return 1 + max(map(depth, value), default=0) if isinstance(value, list) else 0


@LIVE
@given(LITERALS.filter(lambda value: depth(value) <= 8))
def test_literals_in_both_spellings(value):
    """Python's and JSON's spelling of a list read as that list."""
    assert value == topo_rspec.literal(repr(value)) == topo_rspec.literal(json.dumps(value))


@LIVE
@given(vini_links())
def test_topo_rspec_round_trip(links):
    """Rendered links are read back equal, without a flaw."""
    key = links[0].key if links else 1
    found, flaws, lost = topo_rspec.resolve(
        topo_rspec.members(topo_rspec.render(links)), key=key, node=Node(1, "h", "198.51.100.1"), previous={}
    )

    assert links == [link for _, link in found]
    assert ([], False) == (flaws, lost)


@LIVE
@given(vini_links(), st.data())
def test_broken_member_keeps_its_last_good_value(links, data):
    """Whichever member of whichever link is broken, nothing changes and one flaw is told at its place."""
    if not links:
        return
    members = topo_rspec.members(topo_rspec.render(links))
    i, j = data.draw(st.integers(0, len(links) - 1)), data.draw(st.integers(1, 5))
    members[i].fields[j] = data.draw(st.sampled_from([None, "", "x", 5.5, [], "0.0.0.0", "1e3"]))
    found, flaws, lost = topo_rspec.resolve(
        members,
        key=links[0].key,
        node=Node(1, "h", "198.51.100.1"),
        previous={link.name: dataclasses.replace(link, key=0) for link in links},
    )

    assert links == [link for _, link in found]
    assert 1 == len(flaws)
    assert flaws[0].path.startswith(f"$[{i}]")
    assert not lost


@LIVE
@given(st.integers(0, units.MAX_RATE_BPS))
def test_rate_round_trip(rate_bps):
    """The exact text of a rate reads back as that rate."""
    assert rate_bps == units.parse_rate(units.format_rate(rate_bps))


@LIVE
@given(text(30) | st.from_regex(r"[0-9]{0,5}\.?[0-9]{0,3}(k|m|g|t)?(i)?(bit|bps)?", fullmatch=True))
def test_any_text_as_rate(value):
    """Any text is a rate or a ValueError."""
    try:
        assert units.parse_rate(value) >= 0
    except ValueError as err:
        assert len(str(err)) < 300


@LIVE
@given(st.integers(1, 10**12), st.integers(1, 10**6))
def test_htb_numbers_are_positive(rate_bps, burst_bytes):
    """Conversions for HTB never give less than was asked for by more than their own step."""
    assert units.bytes_per_second(rate_bps) * 8 >= rate_bps
    assert units.htb_buffer(burst_bytes, rate_bps) * 64 <= burst_bytes * 8 * 10**9 // rate_bps


@LIVE
@given(plain())
def test_schema_never_fails(value):
    """Validation of anything gives a list of errors with short messages."""
    for name in ("getslivers", "topo_rspec"):
        for path, message in schema.validate(name, value):
            assert path.startswith("$")
            assert len(message) < 300
