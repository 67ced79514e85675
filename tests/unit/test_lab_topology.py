"""Topologies: built in, from files, and what is refused."""

from __future__ import annotations

import json

import pytest

from nodemanager_trellis.errors import InvalidInput
from nodemanager_trellis.lab import topology


def test_abilene_is_the_classic_one():
    """11 nodes with places and coordinates, 14 links, and the way across the country."""
    topo = topology.resolve("abilene")
    assert (11, 14) == (len(topo.nodes), len(topo.links))
    assert all(node.place and node.position for node in topo.nodes)
    assert topo.path("seat", "newy") == ["seat", "dnvr", "kans", "indi", "chic", "newy"]
    assert all(10_000_000 <= link.rate_bps <= 100_000_000 for link in topo.links)


@pytest.mark.parametrize(
    ("spec", "nodes", "links"),
    [("line:2", 2, 1), ("line:3", 3, 2), ("ring:3", 3, 3), ("ring:10", 10, 10), ("grid:2x3", 6, 7), ("grid:1x4", 4, 3)],
)
def test_sizes(spec, nodes, links):
    """line:N, ring:N and grid:RxC have as many nodes and links as their names say."""
    topo = topology.resolve(spec)
    assert (nodes, links) == (len(topo.nodes), len(topo.links))
    assert topo == topology.parse(topo.document())
    assert all(topo.path(topo.nodes[0].name, node.name) for node in topo.nodes)


@pytest.mark.parametrize(
    "spec",
    ["", "line", "line:", "line:1", "line:x", "ring:2", "grid:3", "grid:1x1", "grid:99x99", "line:101", "star:3"],
)
def test_wrong_names_are_refused(spec):
    """What is neither a built-in topology nor a file gets one sentence."""
    with pytest.raises(InvalidInput):
        topology.resolve(spec)


def test_file_is_read(tmp_path):
    """A file names nodes plainly or with all that is known; its own name serves if it gives none."""
    path = tmp_path / "mynet.json"
    document = {
        "nodes": ["a", {"name": "b", "hostname": "b.example.org", "place": "Berlin", "lat": 52.5, "lon": 13.4}],
        "links": [{"a": "a", "b": "b", "rate": "1.5mbit"}],
    }
    path.write_text(json.dumps(document))
    topo = topology.resolve(str(path))
    assert topo.name == "mynet"
    assert topo.node("a") == topology.LabNode("a", "a.vini.test")
    assert topo.node("b") == topology.LabNode("b", "b.example.org", "Berlin", (13.4, 52.5))
    assert topo.links == (topology.LabLink("a", "b", 1_500_000),)
    assert topo.path("b", "a") == ["b", "a"]


GOOD = {"nodes": ["a", "b"], "links": [{"a": "a", "b": "b"}]}


@pytest.mark.parametrize(
    ("change", "path"),
    [
        ([], "$"),
        ({"links": []}, "$.nodes"),
        ({**GOOD, "colour": 1}, "$.colour"),
        ({**GOOD, "nodes": {}}, "$.nodes"),
        ({**GOOD, "nodes": ["a"]}, "$.nodes"),
        ({**GOOD, "nodes": ["a", "b", "a"]}, "$.nodes[2].name"),
        ({**GOOD, "nodes": ["a", "B"]}, "$.nodes[1]"),
        ({**GOOD, "nodes": ["a", "b", "plc"]}, "$.nodes[2]"),
        ({**GOOD, "nodes": ["a", {"name": "b", "rate": 1}]}, "$.nodes[1].rate"),
        ({**GOOD, "nodes": ["a", {"name": "b", "lat": 1}]}, "$.nodes[1].lon"),
        ({**GOOD, "nodes": ["a", {"name": "b", "hostname": "b"}]}, "$.nodes[1].hostname"),
        ({**GOOD, "nodes": ["a", {"name": "b", "place": "\n"}]}, "$.nodes[1].place"),
        ({**GOOD, "links": [{"a": "a"}]}, "$.links[0].b"),
        ({**GOOD, "links": [{"a": "a", "b": "c"}]}, "$.links[0].b"),
        ({**GOOD, "links": [{"a": "a", "b": "a"}]}, "$.links[0]"),
        ({**GOOD, "links": [{"a": "a", "b": "b"}, {"a": "b", "b": "a"}]}, "$.links[1]"),
        ({**GOOD, "links": [{"a": "a", "b": "b", "rate": "fast"}]}, "$.links[0].rate"),
        ({**GOOD, "links": [{"a": "a", "b": "b", "rate": 10}]}, "$.links[0].rate"),
        ({**GOOD, "links": [{"a": "a", "b": "b", "rate": "1kbit"}]}, "$.links[0].rate"),
        ({**GOOD, "name": ""}, "$.name"),
    ],
)
def test_errors_name_the_place(change, path):
    """Each mistake is told with its JSON path."""
    with pytest.raises(InvalidInput) as caught:
        topology.parse(change)
    assert path == caught.value.path


@pytest.mark.parametrize("text", ["", "{", "[" * 100_000, "nan"])
def test_what_is_not_json_is_refused(text):
    """Not JSON, or too deep."""
    with pytest.raises(InvalidInput):
        topology.loads(text)


def test_path_between_strangers_is_empty():
    """Two parts of a network that no link joins."""
    topo = topology.parse({"nodes": ["a", "b", "c"], "links": [{"a": "a", "b": "b"}]})
    assert topo.path("a", "c") == []
    assert topo.path("a", "a") == ["a"]
