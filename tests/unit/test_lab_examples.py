"""The operator's scripts: their pure parts, and their talk with a PLC that remembers."""

from __future__ import annotations

import ast
import importlib.util
import json
import pathlib
import threading
import xmlrpc.client

import pytest

from nodemanager_trellis import names
from nodemanager_trellis.lab import topology

ROOT = pathlib.Path(__file__).parents[2]


def load(path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


make_slice = load(ROOT / "examples" / "make_slice.py")
change_rate = load(ROOT / "examples" / "change_rate.py")
fake_plc = load(ROOT / "tests" / "lab" / "fake_plc.py")


@pytest.mark.parametrize(("a", "b"), [(1, 2), (2, 1), (2, 3), (1, 127), (126, 127), (39, 2)])
def test_addresses_are_those_of_the_node_manager(a, b):
    """The script and the node manager use one formula."""
    of_low, of_high, network = make_slice.addresses(a, b)
    expected = names.vini_network(a, b)
    assert (str(expected[1]), str(expected[2]), str(expected)) == (of_low, of_high, network)


def test_addresses_match_the_published_example():
    """Nodes 1 and 2: 192.168.2.8/30."""
    assert make_slice.addresses(1, 2) == ("192.168.2.9", "192.168.2.10", "192.168.2.8/30")


@pytest.mark.parametrize(("a", "b"), [(1, 1), (0, 1), (1, 128)])
def test_addresses_out_of_reach_are_refused(a, b):
    """The formula is not unique beyond 127."""
    with pytest.raises(ValueError, match="VINI"):
        make_slice.addresses(a, b)


def test_built_in_table_is_the_lab_topology():
    """Script and lab agree on Abilene."""
    links = topology.abilene().links
    assert [[x.a, x.b, f"{x.rate_bps // 10**6}mbit"] for x in links] == make_slice.ABILENE


def test_rspecs_have_both_ends():
    """Each end has its own address first; the tuples are literals."""
    nodes = [{"node_id": 5, "hostname": "n1.x.test"}, {"node_id": 3, "hostname": "n2.y.test"}]
    rspecs = make_slice.topo_rspecs([["x", "n2.y.test", "5mbit"]], nodes, {5: "198.51.100.5", 3: "198.51.100.3"})
    low, high, network = make_slice.addresses(3, 5)
    assert rspecs == {
        5: [(3, "198.51.100.3", "5mbit", high, low, network)],
        3: [(5, "198.51.100.5", "5mbit", low, high, network)],
    }
    assert rspecs[5] == ast.literal_eval(str(rspecs[5]))


def test_nodes_are_found_by_name_or_label():
    """A host name, else the only node with that label."""
    nodes = [{"hostname": "node1.seat.test", "node_id": 1}, {"hostname": "node1.losa.test", "node_id": 2}]
    assert make_slice.find_node(nodes, "seat")["node_id"] == 1
    assert make_slice.find_node(nodes, "node1.losa.test")["node_id"] == 2
    assert change_rate.find_node(nodes, "losa") == 2
    for name in ("node1", "chic"):
        with pytest.raises(SystemExit):
            make_slice.find_node(nodes, name)
        with pytest.raises(SystemExit):
            change_rate.find_node(nodes, name)


def test_lowest_free_key():
    """Words and other ranges do not count; all taken is an error."""
    assert make_slice.free_key([]) == "1"
    assert make_slice.free_key(["1", " 2", "4", "x", "1000"]) == "3"
    with pytest.raises(SystemExit):
        make_slice.free_key([str(i) for i in range(1, 256)])


@pytest.mark.parametrize(
    "text", ['[["a","b","1mbit"]]', '[{"a":"a","b":"b","rate":"1mbit"}]', '{"links":[["a","b","1mbit"]]}']
)
def test_topology_files(text):
    """Lists or objects, alone or in a lab's topology file."""
    assert make_slice.read_topology(text) == [["a", "b", "1mbit"]]


@pytest.mark.parametrize(
    "text", ["[(2, 'r', '1mbit', 'l', 'v', 'n'), [3, 'r', 5, 'l', 'v', 'n']]", "[(2,'r','9kbit','l','v','n')]"]
)
def test_only_the_rate_changes(text):
    """The other members and links stay as they are."""
    before, after = ast.literal_eval(text), ast.literal_eval(change_rate.with_rate(text, 2, "7mbit"))
    assert [(*x[:2], "7mbit" if x[0] == 2 else x[2], *x[3:]) for x in before] == after
    assert change_rate.with_rate(text, 99, "7mbit") is None


@pytest.fixture
def plc():
    """A PLC on loopback with Abilene's nodes; (the fake, its URL)."""
    fake = fake_plc.FakePlc()
    for i, node in enumerate(topology.abilene().nodes, 1):
        fake.do_AddNode(1, {"hostname": node.hostname})
        fake.do_AddInterface(i, {"ip": f"198.51.100.{10 + i}", "is_primary": True})
    server = fake_plc.server(fake)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    yield fake, f"http://127.0.0.1:{server.server_address[1]}/PLCAPI/"
    server.shutdown()
    server.server_close()
    thread.join()


def tags(fake, **wanted):
    return {t["node_id"]: t["value"] for t in fake.tags if all(t[k] == v for k, v in wanted.items())}


def test_slice_is_made_and_made_again(plc, monkeypatch, tmp_path, capsys):
    """Eleven slivers, fourteen links; a second run writes nothing; a third with another topology cleans up."""
    fake, url = plc
    monkeypatch.setenv("TRELLIS_PLC_PASSWORD", "secret")
    arguments = ["--url", url, "--user", "op@vini.test", "vini_abilene"]
    assert make_slice.main(arguments) == 0
    assert tags(fake, tagname="egre_key") == {None: "1"}
    assert tags(fake, tagname="vini_topo") == {None: "manual"}
    rspecs = {node: ast.literal_eval(value) for node, value in tags(fake, tagname="topo_rspec").items()}
    assert len(rspecs) == 11
    assert sum(map(len, rspecs.values())) == 28
    assert sorted(fake.slices[0]["node_ids"]) == list(range(1, 12))
    # Nodes first, then what holds for the slice, then each node's links: the order of the VINI aggregate.
    assert fake.calls.index("AddSliceToNodes") < fake.calls.index("AddSliceTag")
    assert {t["tagname"] for t in fake.types} == set(make_slice.TAG_TYPES)

    before = [dict(t) for t in fake.tags]
    assert make_slice.main(arguments) == 0
    assert before == fake.tags
    assert "0 tags written" in capsys.readouterr().out

    small = tmp_path / "links.json"
    small.write_text(json.dumps([["seat", "losa", "5mbit"]]))
    assert make_slice.main([*arguments, "--topology", str(small)]) == 0
    assert set(tags(fake, tagname="topo_rspec")) == {1, 3}

    assert make_slice.main(["--url", url, "vini_other", "--tag", "vref=frr"]) == 0
    assert tags(fake, tagname="egre_key", name="vini_other") == {None: "2"}
    assert tags(fake, tagname="vref", name="vini_other") == {None: "frr"}


def test_rate_is_changed_at_both_ends(plc):
    """Two tags are rewritten, nothing else; again: nothing; no such link: an error."""
    fake, url = plc
    make_slice.main(["--url", url, "vini_abilene"])
    before = tags(fake, tagname="topo_rspec")
    assert change_rate.main(["--url", url, "vini_abilene", "chic", "newy", "20mbit"]) == 0
    after = tags(fake, tagname="topo_rspec")
    assert {7, 11} == {node for node in before if before[node] != after[node]}
    assert "20mbit" == next(x for x in ast.literal_eval(after[7]) if x[0] == 11)[2]
    fake.calls.clear()
    assert change_rate.main(["--url", url, "vini_abilene", "chic", "newy", "20mbit"]) == 0
    assert "UpdateSliceTag" not in fake.calls
    with pytest.raises(SystemExit, match="no link"):
        change_rate.main(["--url", url, "vini_abilene", "seat", "newy", "20mbit"])


def test_faults_reach_the_operator(plc):
    """What PLC refuses is not swallowed."""
    _, url = plc
    client = make_slice.Plc(url, "op@vini.test", "secret")
    with pytest.raises(xmlrpc.client.Fault):
        client.NoSuchMethod()
