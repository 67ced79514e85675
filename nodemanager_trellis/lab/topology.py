"""Which substrate nodes a lab has, and which virtual links its slice: built in (Abilene, line, ring, grid) or a file.

A file is JSON::

    {"name": "mynet",
     "nodes": ["a", {"name": "b", "hostname": "b.example.org", "place": "Berlin", "lat": 52.5, "lon": 13.4}],
     "links": [{"a": "a", "b": "b", "rate": "20mbit"}]}

Only ``nodes`` and ``links`` are required; ``x``/``y`` (to the right and up, any unit) may stand for ``lon``/``lat``.
"""

from __future__ import annotations

import collections
import dataclasses
import importlib.resources
import itertools
import json
import pathlib
import re
from typing import Any

from nodemanager_trellis.errors import InvalidInput
from nodemanager_trellis.names import VINI_LARGEST_NODE_ID
from nodemanager_trellis.units import MAX_RATE_BPS, MIN_RATE_BPS, format_rate, parse_rate

DEFAULT_RATE_BPS = 100_000_000
MAX_NODES = 100
"""Enough for one machine, and all their PLC node ids stay within what VINI's address formula can tell apart."""
DOMAIN = "vini.test"
_LONGEST_FILE = 1_000_000
_NODE_NAME = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,10}[a-z0-9])?", re.ASCII)
_HOSTNAME = re.compile(r"[a-z0-9](?:[a-z0-9-]*[a-z0-9])?(?:\.[a-z0-9](?:[a-z0-9-]*[a-z0-9])?)+", re.ASCII)
_RESERVED = frozenset({"bpf", "plc", "lab"})
"""Names of things that stand beside the nodes in the lab's directory."""

assert MAX_NODES <= VINI_LARGEST_NODE_ID


@dataclasses.dataclass(frozen=True, slots=True)
class LabNode:
    """One substrate node."""

    name: str
    """short, as people type it: ``seat``"""
    hostname: str
    """as PLC knows it: ``node1.seat.internet2.vini.test``"""
    place: str = ""
    """for the map: ``Seattle``"""
    position: tuple[float, float] | None = None
    """to the right and up (longitude and latitude); None: the map puts it on a circle"""


@dataclasses.dataclass(frozen=True, slots=True)
class LabLink:
    """One virtual link that the lab's slice asks for."""

    a: str
    b: str
    rate_bps: int = DEFAULT_RATE_BPS
    """bit/s on the wire, in each direction"""


@dataclasses.dataclass(frozen=True, slots=True)
class Topology:
    """Nodes, and the links between them."""

    name: str
    nodes: tuple[LabNode, ...]
    links: tuple[LabLink, ...]

    def node(self, name: str) -> LabNode:
        """The node of that short name.

        :raises KeyError: none
        """
        for node in self.nodes:
            if node.name == name:
                return node
        raise KeyError(name)

    def path(self, start: str, end: str) -> list[str]:
        """Node names of a way with the fewest links from ``start`` to ``end``, both included; [] if there is none."""
        before: dict[str, str] = {start: ""}
        queue = collections.deque([start])
        while queue and end not in before:
            here = queue.popleft()
            for there in self.neighbours(here):
                if there not in before:
                    before[there] = here
                    queue.append(there)
        if end not in before:
            return []
        way = [end]
        while before[way[-1]]:
            way.append(before[way[-1]])
        return way[::-1]

    def neighbours(self, name: str) -> list[str]:
        """Names of the nodes that share a link with ``name``."""
        return [link.b if link.a == name else link.a for link in self.links if name in (link.a, link.b)]

    def document(self) -> dict[str, Any]:
        """The JSON form; ``parse(t.document()) == t``."""
        nodes = []
        for node in self.nodes:
            entry: dict[str, Any] = {"name": node.name, "hostname": node.hostname}
            if node.place:
                entry["place"] = node.place
            if node.position:
                entry["x"], entry["y"] = node.position
            nodes.append(entry)
        links = [{"a": link.a, "b": link.b, "rate": format_rate(link.rate_bps)} for link in self.links]
        return {"name": self.name, "nodes": nodes, "links": links}


def _plain(name: str, positions: dict[str, tuple[float, float]], links: list[tuple[str, str]]) -> Topology:
    nodes = tuple(LabNode(node, f"{node}.{DOMAIN}", "", position) for node, position in positions.items())
    return Topology(name, nodes, tuple(LabLink(a, b) for a, b in links))


def line(length: int) -> Topology:
    """``n1 - n2 - … - nN``."""
    names = [f"n{i}" for i in range(1, length + 1)]
    positions = {n: (float(i), 0.0) for i, n in enumerate(names)}
    return _plain(f"line-{length}", positions, list(itertools.pairwise(names)))


def ring(length: int) -> Topology:
    """A line whose ends are joined. The map puts it on a circle."""
    names = [f"n{i}" for i in range(1, length + 1)]
    nodes = tuple(LabNode(n, f"{n}.{DOMAIN}") for n in names)
    links = tuple(LabLink(n, names[(i + 1) % length]) for i, n in enumerate(names))
    return Topology(f"ring-{length}", nodes, links)


def grid(rows: int, columns: int) -> Topology:
    """Node ``rYcX`` in row Y and column X, linked to the right and downwards."""
    positions = {f"r{r}c{c}": (float(c), float(-r)) for r in range(1, rows + 1) for c in range(1, columns + 1)}
    links = [(f"r{r}c{c}", f"r{r}c{c + 1}") for r in range(1, rows + 1) for c in range(1, columns)]
    links += [(f"r{r}c{c}", f"r{r + 1}c{c}") for r in range(1, rows) for c in range(1, columns + 1)]
    return _plain(f"grid-{rows}x{columns}", positions, links)


def abilene() -> Topology:
    """The research backbone of Internet2 around 2005: 11 nodes, 14 links; rates are ours."""
    return loads(importlib.resources.files(__package__).joinpath("abilene.json").read_text(encoding="utf-8"))


def resolve(spec: str) -> Topology:
    """What people type → topology: ``abilene``, ``line:N``, ``ring:N``, ``grid:RxC`` or the path of a file.

    :raises InvalidInput: none of these, or a wrong file
    """
    if spec == "abilene":
        return abilene()
    kind, colon, size = spec.partition(":")
    if colon and kind in ("line", "ring", "grid"):
        return _sized(kind, size, spec)
    path = pathlib.Path(spec)
    if not path.is_file():
        raise InvalidInput(f"{spec[:80]!r} is neither abilene, line:N, ring:N, grid:RxC nor a file")
    try:
        text = path.read_text(encoding="utf-8") if path.stat().st_size <= _LONGEST_FILE else None
    except (OSError, UnicodeDecodeError) as err:
        raise InvalidInput(f"cannot read {spec}: {err}") from err
    if text is None:
        raise InvalidInput(f"{spec} is longer than {_LONGEST_FILE} bytes")
    return loads(text, path.stem)


def _sized(kind: str, size: str, spec: str) -> Topology:
    wanted = r"([0-9]{1,3})x([0-9]{1,3})" if kind == "grid" else r"([0-9]{1,3})"
    match = re.fullmatch(wanted, size, re.ASCII)
    if match is None:
        raise InvalidInput(f"{spec[:80]!r}: expected {'grid:RxC' if kind == 'grid' else kind + ':N'}")
    numbers = [int(number) for number in match.groups()]
    count = numbers[0] * numbers[-1] if kind == "grid" else numbers[0]
    least = 3 if kind == "ring" else 2
    if not least <= count <= MAX_NODES:
        raise InvalidInput(f"{spec[:80]!r}: a {kind} has {least} to {MAX_NODES} nodes")
    if kind == "grid":
        return grid(*numbers)
    return line(count) if kind == "line" else ring(count)


def loads(text: str, name: str = "") -> Topology:
    """JSON text → topology.

    :param name: its name when the text gives none
    :raises InvalidInput: not JSON, or not a topology; with a JSON path
    """
    try:
        document = json.loads(text)
    except (ValueError, RecursionError) as err:
        raise InvalidInput(f"not JSON: {err}", "$") from err
    return parse(document, name)


def parse(document: Any, name: str = "") -> Topology:
    """JSON document → topology.

    :raises InvalidInput: with a JSON path
    """
    _fields(document, "$", required=("nodes", "links"), optional=("name", "description"))
    title = document.get("name", name or "topology")
    if not isinstance(title, str) or not title or len(title) > 64:
        raise InvalidInput("must be a text of 1 to 64 characters", "$.name")
    nodes = tuple(_node(entry, f"$.nodes[{i}]") for i, entry in enumerate(_list(document["nodes"], "$.nodes")))
    if not 2 <= len(nodes) <= MAX_NODES:
        raise InvalidInput(f"needs 2 to {MAX_NODES} nodes, has {len(nodes)}", "$.nodes")
    for field in ("name", "hostname"):
        seen: set[str] = set()
        for i, node in enumerate(nodes):
            if getattr(node, field) in seen:
                raise InvalidInput(f"{getattr(node, field)!r} is used twice", f"$.nodes[{i}].{field}")
            seen.add(getattr(node, field))
    return Topology(title, nodes, _links(document["links"], {node.name for node in nodes}))


def _list(value: Any, path: str) -> list[Any]:
    if not isinstance(value, list):
        raise InvalidInput("must be a list", path)
    return value


def _fields(value: Any, path: str, required: tuple[str, ...], optional: tuple[str, ...]) -> None:
    if not isinstance(value, dict):
        raise InvalidInput("must be an object", path)
    for field in value:
        if field not in required + optional:
            raise InvalidInput(f"no such field; known are {', '.join(required + optional)}", f"{path}.{field[:40]}")
    for field in required:
        if field not in value:
            raise InvalidInput("is missing", f"{path}.{field}")


def _node(entry: Any, path: str) -> LabNode:
    if isinstance(entry, str):
        entry, shown = {"name": entry}, path
    else:
        _fields(entry, path, required=("name",), optional=("hostname", "place", "lat", "lon", "x", "y"))
        shown = f"{path}.name"
    name = entry["name"]
    if not isinstance(name, str) or not _NODE_NAME.fullmatch(name):
        raise InvalidInput("must be 1 to 12 of a-z, 0-9 and '-', not at an end", shown)
    if name in _RESERVED:
        raise InvalidInput(f"{name!r} is a name that the lab needs itself", shown)
    hostname = entry.get("hostname", f"{name}.{DOMAIN}")
    if not isinstance(hostname, str) or len(hostname) > 253 or not _HOSTNAME.fullmatch(hostname):
        raise InvalidInput("must be a host name with a domain, in lower case", f"{path}.hostname")
    place = entry.get("place", "")
    if not isinstance(place, str) or len(place) > 40 or not (place.isprintable() or not place):
        raise InvalidInput("must be a text of at most 40 characters", f"{path}.place")
    return LabNode(name, hostname, place, _position(entry, path))


def _position(entry: dict[str, Any], path: str) -> tuple[float, float] | None:
    for right, up in (("lon", "lat"), ("x", "y")):
        if right not in entry and up not in entry:
            continue
        pair = []
        for field in (right, up):
            value = entry.get(field)
            if isinstance(value, bool) or not isinstance(value, int | float) or not -1e6 <= value <= 1e6:
                raise InvalidInput(f"must be a number; {right} and {up} come together", f"{path}.{field}")
            pair.append(float(value))
        return pair[0], pair[1]
    return None


def _links(value: Any, names: set[str]) -> tuple[LabLink, ...]:
    links: list[LabLink] = []
    pairs: set[frozenset[str]] = set()
    for i, entry in enumerate(_list(value, "$.links")):
        path = f"$.links[{i}]"
        _fields(entry, path, required=("a", "b"), optional=("rate",))
        for field in ("a", "b"):
            if not isinstance(entry[field], str) or entry[field] not in names:
                raise InvalidInput(f"no node is called {str(entry[field])[:40]!r}", f"{path}.{field}")
        pair = frozenset((entry["a"], entry["b"]))
        if len(pair) == 1:
            raise InvalidInput("a link needs two different nodes", path)
        if pair in pairs:
            raise InvalidInput(f"{entry['a']} and {entry['b']} are linked already; VINI has one link per pair", path)
        pairs.add(pair)
        links.append(LabLink(entry["a"], entry["b"], _rate(entry.get("rate", "100mbit"), f"{path}.rate")))
    return tuple(links)


def _rate(value: Any, path: str) -> int:
    try:
        rate_bps = parse_rate(value) if isinstance(value, str) else -1
    except ValueError as err:
        raise InvalidInput(str(err), path) from err
    if not MIN_RATE_BPS <= rate_bps <= MAX_RATE_BPS:
        raise InvalidInput("must be a text such as 100mbit, from 8kbit to 1000gbit", path)
    return rate_bps
