"""Maps: SVG that is well-formed and says every number, and text."""

from __future__ import annotations

import xml.etree.ElementTree as ET

import pytest

from nodemanager_trellis.lab import map as drawing
from nodemanager_trellis.lab import topology
from nodemanager_trellis.lab.map import LinkState

SVG = "{http://www.w3.org/2000/svg}"


def states(topo):
    return [LinkState(link.a, link.b, link.rate_bps) for link in topo.links]


@pytest.mark.parametrize("spec", ["abilene", "line:2", "line:3", "ring:5", "grid:3x3"])
def test_svg_shows_every_node_and_link(spec):
    """A line per link, a circle and a name per node, everything within the picture."""
    topo = topology.resolve(spec)
    root = ET.fromstring(drawing.svg(topo, states(topo)))
    width, height = float(root.get("width")), float(root.get("height"))
    ends = [line for line in root.iter(f"{SVG}line") if line.get("stroke-linecap")]
    circles = list(root.iter(f"{SVG}circle"))
    assert len(topo.links) == len(ends)
    assert len(topo.nodes) == len(circles)
    assert all(0 < float(c.get("cx")) < width and 0 < float(c.get("cy")) < height for c in circles)
    texts = ["".join(text.itertext()) for text in root.iter(f"{SVG}text")]
    for node in topo.nodes:
        assert any(text.startswith(node.name) for text in texts)


def test_names_are_escaped():
    """A place called like markup is text."""
    topo = topology.parse({"nodes": [{"name": "a", "place": "<b>&"}, "b"], "links": [{"a": "a", "b": "b"}]})
    text = drawing.svg(topo, states(topo), 'Bob & "Eve" <x>', ["<note>"])
    assert "a<b>&" in ["".join(t.itertext()) for t in ET.fromstring(text).iter(f"{SVG}text")]


def test_west_is_left_and_north_is_up():
    """Seattle lies left of New York and above Los Angeles."""
    places = drawing.layout(topology.abilene().nodes, 100, 50)
    assert places["seat"][0] < places["newy"][0]
    assert places["seat"][1] < places["losa"][1]
    assert all(0 <= x <= 100 and 0 <= y <= 50 for x, y in places.values())


@pytest.mark.parametrize(
    ("state", "label", "colour"),
    [
        (LinkState("a", "b", 10**7), "10 Mbit/s", "#9aa5b1"),
        (LinkState("a", "b", 10**7, 0.0), "0 bit/s of 10 Mbit/s", "#9aa5b1"),
        (LinkState("a", "b", 10**7, 10**6), "1 Mbit/s".replace(" Mbit/s", "") + " of 10 Mbit/s", "#2b83ba"),
        (LinkState("a", "b", 10**7, 10**6, 9.98e6), "9.98 of 10 Mbit/s", "#d7191c"),
        (LinkState("a", "b", 10**7, None, 5e6), "5 of 10 Mbit/s", "#4dac26"),
        (LinkState("a", "b", 10**7, None, 8e6), "8 of 10 Mbit/s", "#e69f00"),
    ],
)
def test_labels_and_colours(state, label, colour):
    """What was measured counts before what flows; the colour follows the share."""
    assert label == state.label()
    assert colour == drawing.colour(state)


def test_table_has_a_line_per_link():
    """Ends, rates and problems."""
    topo = topology.line(3)
    text = drawing.table(topo, [LinkState("n1", "n2", 10**7, 5e6, 9.9e6, "peer silent"), LinkState("n2", "n3", 10**8)])
    assert text.splitlines()[1].split() == ["n1-n2", "n1.vini.test", "-", "n2.vini.test", "10", "Mbit/s", "5", "Mbit/s",
                                            "9.9", "Mbit/s", "peer", "silent"]  # fmt: skip
    assert len(text.splitlines()) == 3


@pytest.mark.parametrize("spec", ["abilene", "line:2", "ring:6", "grid:4x4", "line:20"])
def test_picture_has_every_node(spec):
    """Every name can be read, no line is too long."""
    topo = topology.resolve(spec)
    text = drawing.picture(topo)
    for name in (node.name for node in topo.nodes):
        if spec != "line:20":
            assert f"[{name}]" in text
    assert max(map(len, text.splitlines())) <= 78
