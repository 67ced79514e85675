"""topo_rspec text is read as a literal, checked link by link and part by part, and written back."""

import ast
import dataclasses

import pytest

from nodemanager_trellis.errors import InvalidInput
from nodemanager_trellis.intake import topo_rspec
from nodemanager_trellis.model import Node, VirtualLink

NODE = Node(2, "node1.chic.test", "198.51.100.16")
FIELDS = [1, "198.51.100.14", "100mbit", "192.168.2.10", "192.168.2.9", "192.168.2.8/30"]
LINK = VirtualLink(
    name="n1",
    key=10,
    remote_node_id=1,
    remote_ip="198.51.100.14",
    ifname="a10if1",
    addresses=("192.168.2.10/30",),
    peer_addresses=("192.168.2.9",),
    rate_bps=100_000_000,
)


def resolve(*fields, key=10, previous=(), known_nodes=None):
    raw = [topo_rspec.Member(f"$[{i}]", item) for i, item in enumerate(fields)]
    links, flaws, lost = topo_rspec.resolve(
        raw, key=key, node=NODE, previous={link.name: link for link in previous}, known_nodes=known_nodes
    )
    return [link for _, link in links], [(f.path, f.message, f.kept) for f in flaws], lost


def changed(**fields):
    return [fields.get(f"m{i}", value) for i, value in enumerate(FIELDS)]


@pytest.mark.parametrize(
    "text",
    [
        "[]",
        "()",
        "[(1, 'a', '100mbit', 'b', 'c', 'd'), (2, 'a', 5, 'b', 'c', 'd')]",
        '[[1, "a", "100mbit", "b", "c", "d"]]',
        "[(1, u'a', U\"b\",\n\t'',),]",
        "((1, -2, +3), [4],)",
        "(1, 2), (3, 4)",
        "[(1.5, 2.)]",
        " [ ( None , True , False ) ] ",
    ],
)
def test_literal_reads_what_python_reads(text):
    """Python literals of lists, tuples, numbers and plain strings give the values that Python gives them."""

    def lists(value):
        return [lists(item) for item in value] if isinstance(value, (list, tuple)) else value

    assert lists(ast.literal_eval(text.strip())) == topo_rspec.literal(text)


def test_literal_reads_python_2_and_json_words():
    """Long integers of Python 2 and the constants of JSON are understood."""
    assert [[1, None, True, False]] == topo_rspec.literal("[(1L, null, true, false)]")


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "empty text"),
        ("  \n", "empty text"),
        ("5", "not a list of tuples"),
        ("'a'", "not a list of tuples"),
        ("manual", "cannot read 'manual' at character 0"),
        ("[(1, 2)", "'[' is never closed"),
        ("[(1, 2]", "unmatched ']' at character 6"),
        ("[(1, 2)])", "unmatched ')' at character 8"),
        ("[(1 2)]", "',' is missing at character 4"),
        ("[(1, 2)(3, 4)]", "',' is missing at character 7"),
        ("[,]", "unexpected ',' at character 1"),
        ("[(1,,2)]", "unexpected ',' at character 4"),
        ("[(1, 'a)]", "cannot read"),
        (r"[(1, 'a\n')]", "cannot read"),
        ("[(1, 'a\n')]", "cannot read"),
        ("[(1, b'a')]", "cannot read"),
        ("[(1, 0x10)]", "cannot read"),
        ("[(1, 1e3)]", "cannot read"),
        ("[(1, 123456789012345678901)]", "cannot read"),
        ("[{1: 2}]", "cannot read"),
        ("[(1, '\N{SNOWMAN}' 'b')]", "',' is missing"),
        ("__import__('os').system('true')", 'cannot read "__import__'),
        ("[(lambda: 1)()]", "cannot read 'lambda"),
        ("[x for x in (1,)]", "cannot read 'x for"),
        ("[" * 9 + "]" * 9, "nested deeper than 8"),
        ("[" * 60_000, "nested deeper than 8"),
        ("(" * 65_537, "longer than 65536"),
        ("[" + "(1,2)," * 5000 + "]", "5000 links are more than 4096"),
    ],
)
def test_anything_else_is_refused(text, sentence):
    """What is not a literal list of tuples is InvalidInput with the place; nothing is evaluated."""
    with pytest.raises(InvalidInput) as caught:
        topo_rspec.members(text, "$.value")

    assert "$.value" == caught.value.path
    assert sentence in caught.value.message


def test_members_have_their_place():
    """Each raw link knows its JSON path; one bare tuple is a list of one."""
    two = topo_rspec.members("[(1, 'a'), (2, 'b')]", "$.value")

    assert [("$.value[0]", [1, "a"]), ("$.value[1]", [2, "b"])] == [(m.path, m.fields) for m in two]
    assert [topo_rspec.Member("$.value", [1, "a"])] == topo_rspec.members("(1, 'a')", "$.value")
    assert [] == topo_rspec.members("[]", "$.value")


def test_good_link_is_resolved():
    """Six good members make a link named after the remote node, its device after key and node (VINI)."""
    assert ([LINK], [], False) == resolve(FIELDS)


@pytest.mark.parametrize(
    ("rate", "rate_bps"), [(5_000_000, 5_000_000), ("1.5mbit", 1_500_000), ("10mbps", 80_000_000), ("8kbit", 8000)]
)
def test_rates_are_text_or_bits_per_second(rate, rate_bps):
    """A rate is bwlimit's text or a bare number of bit/s."""
    assert rate_bps == resolve(changed(m2=rate))[0][0].rate_bps


PARTS = [
    ({"m1": "300.1.1.1"}, "[1]", "'300.1.1.1' is not an IPv4 address"),
    ({"m1": "224.0.0.1"}, "[1]", "224.0.0.1 is not a unicast IPv4 address"),
    ({"m1": "0.0.0.0"}, "[1]", "0.0.0.0 is not a unicast IPv4 address"),
    ({"m1": "127.0.0.1"}, "[1]", "127.0.0.1 is not a unicast IPv4 address"),
    ({"m1": "255.255.255.255"}, "[1]", "255.255.255.255 is not a unicast IPv4 address"),
    ({"m1": "198.51.100.16"}, "[1]", "198.51.100.16 is this node's own address"),
    ({"m1": 5}, "[1]", "expected text, got integer"),
    ({"m2": "fast"}, "[2]", "'fast' is not a rate such as 100mbit"),
    ({"m2": ""}, "[2]", "'' is not a rate such as 100mbit"),
    ({"m2": "-1"}, "[2]", "'-1' is not a rate such as 100mbit"),
    ({"m2": "0bit"}, "[2]", "rate '0bit' is outside 8kbit..1000gbit"),
    ({"m2": 7999}, "[2]", "rate 7999 is outside 8kbit..1000gbit"),
    ({"m2": "2tbit"}, "[2]", "rate '2tbit' is outside 8kbit..1000gbit"),
    ({"m2": True}, "[2]", "expected text or integer, got boolean"),
    ({"m3": "192.168.256.1"}, "[3]", "'192.168.256.1' is not an IPv4 address"),
    ({"m3": "10.0.0.1"}, "[3]", "10.0.0.1 is not a host address of 192.168.2.8/30"),
    ({"m3": "192.168.2.8"}, "[3]", "192.168.2.8 is not a host address of 192.168.2.8/30"),
    ({"m4": "192.168.2.11"}, "[4]", "192.168.2.11 is not a host address of 192.168.2.8/30"),
    ({"m4": "192.168.2.10"}, "[4]", "both ends have the address 192.168.2.10"),
    ({"m3": "239.0.0.1", "m5": "239.0.0.0/24"}, "[3]", "239.0.0.1 is not a unicast IPv4 address"),
    ({"m5": "192.168.2.8/33"}, "[5]", "'192.168.2.8/33' is not an IPv4 network"),
    ({"m5": "net"}, "[5]", "'net' is not an IPv4 network"),
    ({"m5": "192.168.2.10"}, "[4]", "192.168.2.9 is not a host address of 192.168.2.10/32"),
]


@pytest.mark.parametrize(("change", "path", "message"), PARTS)
def test_bad_member_of_a_new_link_refuses_it(change, path, message):
    """A link that was never good is left out, with the path of the bad member."""
    assert ([], [(f"$[0]{path}", message, "")], False) == resolve(changed(**change))


@pytest.mark.parametrize(("change", "path", "message"), PARTS)
def test_bad_member_of_an_old_link_costs_only_itself(change, path, message):
    """The last good value of the bad member stays; the other members and the key are the new ones."""
    old = dataclasses.replace(LINK, key=3, ifname="a3if1")
    links, flaws, lost = resolve(changed(**change), previous=[old])

    assert [LINK] == links
    assert [(f"$[0]{path}", message)] == [flaw[:2] for flaw in flaws]
    assert flaws[0][2] in ("remote address 198.51.100.14", "rate 100mbit", "addresses 192.168.2.10/30")
    assert not lost


def test_good_members_beside_a_bad_one_are_taken():
    """A new rate is in force although the address beside it is bad."""
    links, _, _ = resolve(changed(m1="x", m2="5mbit"), previous=[LINK])

    assert [dataclasses.replace(LINK, rate_bps=5_000_000)] == links


def test_31_bit_networks_have_two_hosts():
    """Both addresses of a /31 are host addresses (RFC 3021)."""
    links, flaws, _ = resolve(changed(m3="10.0.0.0", m4="10.0.0.1", m5="10.0.0.0/31"))

    assert ("10.0.0.0/31",) == links[0].addresses
    assert [] == flaws


@pytest.mark.parametrize("fields", [FIELDS[:5], [*FIELDS, "more"], [1]])
def test_wrong_arity_keeps_the_old_link(fields):
    """A tuple of five or seven members costs the whole link, which stays as it was if the node can be read."""
    message = "expected a link (remote_node_id, remote_ip, rate, local_vip, remote_vip, net), got"

    links, flaws, lost = resolve(fields, previous=[LINK])
    assert [LINK] == links
    assert [("$[0]", f"{message} {len(fields)} members", "link n1")] == flaws
    assert not lost
    assert [] == resolve(fields)[0]


@pytest.mark.parametrize(
    "fields", [None, 5, "x", [], ["1", *FIELDS[1:]], [0, *FIELDS[1:]], [True], [2**31, *FIELDS[1:]]]
)
def test_unreadable_node_is_reported_as_lost(fields):
    """When nobody can say which link was meant, the caller hears of it."""
    links, flaws, lost = resolve(fields, previous=[LINK])

    assert [] == links
    assert 1 == len(flaws)
    assert lost


def test_link_to_itself_is_refused():
    """A node has no link to itself."""
    assert ([], [("$[0][0]", "node 2 is this node itself", "")], False) == resolve(changed(m0=2))


def test_second_link_to_one_node_is_refused():
    """One key for all links of a slice leaves one link per remote node."""
    links, flaws, _ = resolve(FIELDS, changed(m2="5mbit"))

    assert [LINK] == links
    assert [("$[1]", "a second link to node 1", "the first")] == flaws


def test_unknown_node_is_refused_when_nodes_are_known():
    """With the set of nodes at hand, a link to another one is a problem; its last good form stays."""
    assert ([LINK], [], False) == resolve(FIELDS, known_nodes={1, 2, 3})
    assert ([], [("$[0][0]", "no such node: 1", "")], False) == resolve(FIELDS, known_nodes={2, 3})
    assert ([LINK], [("$[0][0]", "no such node: 1", "link n1")], False) == resolve(
        FIELDS, known_nodes=[2], previous=[LINK]
    )


def test_bad_link_does_not_touch_the_next_one():
    """Links are judged one by one."""
    links, flaws, _ = resolve(changed(m0=3, m2="fast"), FIELDS)

    assert [LINK] == links
    assert ["$[0][2]"] == [flaw[0] for flaw in flaws]


def test_render_gives_the_tag_that_was_read():
    """Rendering a link gives the text that VINI's aggregate writes."""
    text = "[(1, '198.51.100.14', '100mbit', '192.168.2.10', '192.168.2.9', '192.168.2.8/30')]"

    assert text == topo_rspec.render([LINK])
    assert [LINK] == resolve(*[m.fields for m in topo_rspec.members(text)])[0]
    assert "[]" == topo_rspec.render([])


def test_long_device_names_are_hashed():
    """A key of ten digits makes a device name that still fits."""
    link = topo_rspec.rekey(LINK, 4294967295)

    assert len(link.ifname) <= 15
    assert 4294967295 == link.key
