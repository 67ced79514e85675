"""Hypothesis strategies, and the recorded answers that they start from."""

import copy
import functools
import json
import pathlib

from hypothesis import strategies as st

from nodemanager_trellis import names, units
from nodemanager_trellis.model import VirtualLink

FIXTURES = pathlib.Path(__file__).parent / "fixtures"
ANSWERS = sorted(path.stem for path in FIXTURES.glob("plcapi/*-????.json") if not path.stem.startswith("sequence"))


@functools.cache
def _recorded(name):
    return json.loads((FIXTURES / "plcapi" / f"{name}.json").read_text("utf-8"))


def recorded(name):
    """A fresh copy of one recorded answer, ``abilene-chic``."""
    return copy.deepcopy(_recorded(name))


def text(max_size=20):
    """Any text, lone surrogates included."""
    return st.text(st.characters(), max_size=max_size)


def plain(leaves=None):
    """Plain values: None, bool, int, float, text, lists and structs of them."""
    leaves = leaves or st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), text())
    return st.recursive(
        leaves, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(text(8), inner, max_size=4), max_leaves=12
    )


XML_TEXT = st.text(
    st.characters(exclude_categories=["Cs"], exclude_characters=[*map(chr, range(32)), "\ufffe", "\uffff"])
    | st.sampled_from("\t\n\r<>&'\""),
    max_size=20,
)
"""text that XML can carry"""

XMLRPC = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**31), 2**31 - 1) | XML_TEXT,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(XML_TEXT, inner, max_size=4),
    max_leaves=15,
)
"""what the default reader accepts"""

_INTERESTING = st.sampled_from(
    ["", "0", "-1", "1.5", "manual", "[]", "[(", "[(1,)]", "\x00", "a" * 70, "10mbit", None, True, 0, -1, 2**31, [], {}]
)


@st.composite
def mutated_answers(draw):
    """A recorded answer with one to four places replaced, removed or doubled."""
    answer = recorded(draw(st.sampled_from(ANSWERS)))
    for _ in range(draw(st.integers(1, 4))):
        places = [(container, key) for container in _containers(answer) for key in _keys(container)]
        container, key = places[draw(st.integers(0, len(places) - 1))]
        what = draw(st.sampled_from(["replace", "remove", "double", "swap"]))
        if what == "remove":
            del container[key]
        elif what == "double" and isinstance(container, list):
            container.append(copy.deepcopy(container[key]))
        elif what == "swap":
            other, other_key = places[draw(st.integers(0, len(places) - 1))]
            container[key] = copy.deepcopy(other.get(other_key) if isinstance(other, dict) else other[other_key])
        else:
            container[key] = draw(_INTERESTING | plain())
    return answer


def _keys(container):
    return list(container) if isinstance(container, dict) else list(range(len(container)))


def _containers(value):
    if isinstance(value, (dict, list)) and value:
        yield value
        for item in value.values() if isinstance(value, dict) else value:
            yield from _containers(item)


@st.composite
def vini_links(draw):
    """Links as VINI's aggregate makes them, from node 1 to other nodes, under one key."""
    key = draw(st.integers(0, 2**32 - 1))
    links = []
    for remote in draw(st.lists(st.integers(2, names.VINI_LARGEST_NODE_ID), unique=True, max_size=8)):
        net = names.vini_network(1, remote)
        links.append(
            VirtualLink(
                name=f"n{remote}",
                key=key,
                remote_node_id=remote,
                remote_ip=f"198.51.100.{remote}",
                ifname=names.vini_ifname(key, remote),
                addresses=(f"{net[1]}/30",),
                peer_addresses=(str(net[2]),),
                rate_bps=draw(st.integers(units.MIN_RATE_BPS, units.MAX_RATE_BPS)),
            )
        )
    return links
