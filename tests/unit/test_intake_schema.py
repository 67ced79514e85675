"""Schemas say in one sentence, with a JSON path, what is wrong with a document."""

import json

import jsonschema
import pytest
from strategies import ANSWERS, FIXTURES, recorded

from nodemanager_trellis.errors import InvalidInput
from nodemanager_trellis.intake import schema

LINK = [1, "198.51.100.14", "100mbit", "192.168.2.10", "192.168.2.9", "192.168.2.8/30"]


def answer(**sliver):
    base = {
        "name": "x_y",
        "slice_id": 1,
        "instantiation": "plc-instantiated",
        "expires": 1,
        "attributes": [],
    }
    return {"node_id": 1, "slivers": [base | sliver]}


@pytest.mark.parametrize("name", ANSWERS)
def test_recorded_answers_fit(name):
    """Every recorded answer of a real PLCAPI fits the schema."""
    assert [] == schema.validate("getslivers", recorded(name))


@pytest.mark.parametrize("name", ["getslivers", "topo_rspec"])
def test_schemas_are_valid_and_self_contained(name):
    """Each schema is a 2020-12 schema with an id, and refers only to itself."""
    text = (FIXTURES.parents[1] / "schemas" / f"{name}.schema.json").read_text("utf-8")
    content = json.loads(text)
    jsonschema.Draft202012Validator.check_schema(content)

    assert content["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    assert content["$id"]
    assert text.count('"$ref"') == text.count('"$ref": "#/$defs/')


@pytest.mark.parametrize(
    ("document", "errors"),
    [
        ([], [("$", "expected struct, got list")]),
        ({}, [("$", "missing: node_id, slivers")]),
        ({"node_id": 1.0, "slivers": []}, [("$.node_id", "expected integer, got number")]),
        ({"node_id": True, "slivers": []}, [("$.node_id", "expected integer, got boolean")]),
        ({"node_id": 0, "slivers": []}, [("$.node_id", "0 is not an id")]),
        ({"node_id": 1, "slivers": {}}, [("$.slivers", "expected list, got struct")]),
        (answer(), []),
        (answer(name="a_b" * 30), [("$.slivers[0].name", f"{('a_b' * 30)[:57]!r}… is not a slice name")]),
        (answer(name="x_y\n"), [("$.slivers[0].name", r"'x_y\n' is not a slice name")]),
        (answer(name="x-y"), [("$.slivers[0].name", "'x-y' is not a slice name")]),
        (answer(attributes=[1]), [("$.slivers[0].attributes[0]", "expected struct, got integer")]),
        (
            answer(attributes=[{"tagname": "a", "value": 5}]),
            [("$.slivers[0].attributes[0].value", "expected text, got integer")],
        ),
        (answer(instantiation="x"), [("$.slivers[0].instantiation", "'x' is not an instantiation")]),
        (answer(unknown=[[[1]]]), []),
    ],
)
def test_getslivers_errors_have_path_and_sentence(document, errors):
    """Each error is its path and a sentence without the path; unknown members are ignored."""
    assert errors == schema.validate("getslivers", document)


@pytest.mark.parametrize(
    ("links", "errors"),
    [
        ([LINK], []),
        ([], []),
        (
            [LINK, LINK[:5]],
            [("$[1]", "expected a link (remote_node_id, remote_ip, rate, local_vip, remote_vip, net), got 5 members")],
        ),
        ([["1", *LINK[1:]]], [("$[0][0]", "expected integer, got text")]),
        ([[1, "300.1.1.1", *LINK[2:]]], [("$[0][1]", "'300.1.1.1' is not an IPv4 address")]),
        ([[1, LINK[1], None, *LINK[3:]]], [("$[0][2]", "expected text or integer, got null")]),
        ([None], [("$[0]", "expected list, got null")]),
    ],
)
def test_topo_rspec_errors(links, errors):
    """A link is six members of their types."""
    assert errors == schema.validate("topo_rspec", links)


def test_errors_are_in_document_order():
    """Errors come as a reader meets them, index 10 after index 2."""
    bad = schema.validate("topo_rspec", [None if i in (2, 10) else LINK for i in range(12)])

    assert ["$[2]", "$[10]"] == [path for path, _ in bad]


def test_deep_documents_are_one_error():
    """Depth is checked first, without recursion."""
    deep = []
    for _ in range(100_000):
        deep = [deep]

    assert [("$", "values nested deeper than 16")] == schema.validate("getslivers", deep)


@pytest.mark.parametrize(
    ("bad", "path"),
    [({"a": [{1, 2}]}, "$.a[0]"), ({"a": {1: 2}}, "$.a"), ([2**64], "$[0]"), ([-(2**63) - 1], "$[0]"), (b"x", "$")],
)
def test_only_plain_values_pass(bad, path):
    """Values that no wire format of ours carries are refused with their path."""
    with pytest.raises(InvalidInput) as caught:
        schema.check_plain(bad)

    assert path == caught.value.path
    assert [(path, caught.value.message)] == schema.validate("getslivers", bad)


def test_unknown_schema_is_a_programming_error():
    """The name of a schema cannot lead out of the directory."""
    with pytest.raises(ValueError, match="not the name of a schema"):
        schema.validate("../getslivers", {})


@pytest.mark.parametrize(
    ("thing", "text"),
    [
        ("a" * 70, f"'{'a' * 57}'…"),
        ("\ud800é", r"'\ud800\xe9'"),
        (5, "5"),
        (None, "None"),
        ([], "a list"),
        ({}, "a struct"),
        (b"", "a bytes"),
    ],
)
def test_quote_is_short_and_printable(thing, text):
    """Values from outside appear short and escaped in messages."""
    assert text == schema.quote(thing)
