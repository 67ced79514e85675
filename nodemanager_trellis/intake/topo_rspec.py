"""``topo_rspec``: the VINI links of one sliver on one node, as text of a Python list of 6-tuples, and back.

Its originals ``eval`` the text. Here it is read by a small literal reader that knows lists, tuples, numbers and plain
strings (JSON or Python quoting, ``u''`` too), does not recurse and stops at fixed limits.
"""

from __future__ import annotations

import dataclasses
import ipaddress
import re
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any

from nodemanager_trellis import names, units
from nodemanager_trellis.errors import InvalidInput
from nodemanager_trellis.intake import schema
from nodemanager_trellis.model import Node, VirtualLink

MAX_CHARS = 65_536
MAX_NESTING = 8
MAX_LINKS = 4096

_TOKEN = re.compile(
    r"""
      (?P<open>[\[(])
    | (?P<close>[\])])
    | (?P<comma>,)
    | [uU]?(?P<quoted>'[^'\\\n]*'|"[^"\\\n]*")
    | (?P<number>[+-]?[0-9]{1,18}(?P<point>\.[0-9]{0,20})?)L?(?![\w.])
    | (?P<word>None|True|False|null|true|false)\b
    """,
    re.VERBOSE | re.ASCII,
)
_BLANK = re.compile(r"[ \t\r\n]*")
_WORDS = {"None": None, "null": None, "True": True, "true": True, "False": False, "false": False}
_PAIR = {"]": "[", ")": "("}


@dataclasses.dataclass(frozen=True, slots=True)
class Flaw:
    """One thing wrong with the links of a sliver, and what holds instead."""

    path: str
    """JSON path"""
    message: str
    kept: str = ""


@dataclasses.dataclass(frozen=True, slots=True)
class Member:
    """One raw link: where it stands, and the list of its (normally six) members."""

    path: str
    fields: Any


def literal(text: str) -> list[Any]:
    """Text of a list or tuple → nested lists of int, float, str, bool and None; nothing is evaluated.

    :raises InvalidInput: another thing, more than 64 KiB, or nested deeper than 8
    """
    if len(text) > MAX_CHARS:
        raise InvalidInput(f"text of {len(text)} characters is longer than {MAX_CHARS}")
    stack: list[list[Any]] = [[]]
    brackets: list[str] = []
    wants_item = True  # false right after an item, where only a comma or a closing bracket may stand
    position = _BLANK.match(text).end()  # type: ignore[union-attr]
    while position < len(text):
        token = _TOKEN.match(text, position)
        where = f"at character {position}"
        if token is None:
            raise InvalidInput(f"not a list of tuples: cannot read {schema.quote(text[position:])} {where}")
        if token["close"]:
            if not brackets or brackets.pop() != _PAIR[token["close"]]:
                raise InvalidInput(f"not a list of tuples: unmatched {token['close']!r} {where}")
            stack.pop()
            wants_item = False
        elif token["comma"]:
            if wants_item:
                raise InvalidInput(f"not a list of tuples: unexpected ',' {where}")
            wants_item = True
        elif not wants_item:
            raise InvalidInput(f"not a list of tuples: ',' is missing {where}")
        elif token["open"]:
            if len(brackets) >= MAX_NESTING:
                raise InvalidInput(f"nested deeper than {MAX_NESTING} {where}")
            brackets.append(token["open"])
            inner: list[Any] = []
            stack[-1].append(inner)
            stack.append(inner)
        else:
            stack[-1].append(_scalar(token))
            wants_item = False
        position = _BLANK.match(text, token.end()).end()  # type: ignore[union-attr]
    if brackets:
        raise InvalidInput(f"not a list of tuples: {brackets[-1]!r} is never closed")
    top = stack[0]
    # "(1, …), (2, …)" without a bracket around is a tuple of tuples to Python, too.
    if len(top) == 1 and isinstance(top[0], list) and not text.rstrip().endswith(","):
        return top[0]
    if not top or not all(isinstance(item, list) for item in top):
        raise InvalidInput("not a list of tuples" if top else "empty text where a list of tuples was expected")
    return top


def _scalar(token: re.Match[str]) -> Any:
    if token["quoted"]:
        return token["quoted"][1:-1]
    if token["word"]:
        return _WORDS[token["word"]]
    return float(token["number"]) if token["point"] else int(token["number"])


def members(text: str, path: str = "$") -> list[Member]:
    """Text of one attribute → its raw links. One bare tuple counts as a list of one.

    :raises InvalidInput: the text is not a list of tuples
    """
    try:
        items = literal(text)
    except InvalidInput as err:
        raise InvalidInput(err.message, path) from err
    if items and not any(isinstance(item, list) for item in items):
        return [Member(path, items)]
    if len(items) > MAX_LINKS:
        raise InvalidInput(f"{len(items)} links are more than {MAX_LINKS}", path)
    return [Member(f"{path}[{i}]", item) for i, item in enumerate(items)]


def unicast(text: Any) -> str:
    """A unicast IPv4 address in its usual spelling.

    :raises ValueError: anything else
    """
    try:
        address = ipaddress.IPv4Address(text if isinstance(text, str) else "")
    except ValueError as err:
        raise ValueError(f"{schema.quote(text)} is not an IPv4 address") from err
    first = int(address) >> 24  # 0/8 "this network", 127/8 loopback, 224/4 multicast, 240/4 reserved and broadcast
    if first in (0, 127) or first >= 224:
        raise ValueError(f"{address} is not a unicast IPv4 address")
    return str(address)


def _remote_ip(fields: list[Any], node: Node) -> tuple[str]:
    try:
        address = unicast(fields[1])
    except ValueError as err:
        raise InvalidInput(str(err), "[1]") from err
    if address == node.address:
        raise InvalidInput(f"{address} is this node's own address", "[1]")
    return (address,)


def _rate_bps(fields: list[Any], node: Node) -> tuple[int]:
    try:
        rate_bps = fields[2] if isinstance(fields[2], int) else units.parse_rate(fields[2])
    except ValueError as err:
        raise InvalidInput(str(err), "[2]") from err
    if not units.MIN_RATE_BPS <= rate_bps <= units.MAX_RATE_BPS:
        span = f"{units.format_rate(units.MIN_RATE_BPS)}..{units.format_rate(units.MAX_RATE_BPS)}"
        raise InvalidInput(f"rate {schema.quote(fields[2])} is outside {span}", "[2]")
    return (rate_bps,)


def _addresses(fields: list[Any], node: Node) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Address of this end with prefix length, address of the other end; the network's first and last are nobody's."""
    try:
        net = ipaddress.IPv4Interface(fields[5]).network
    except ValueError as err:
        raise InvalidInput(f"{schema.quote(fields[5])} is not an IPv4 network", "[5]") from err
    reserved = () if net.prefixlen >= 31 else (net.network_address, net.broadcast_address)
    ends = []
    for index in (3, 4):
        try:
            address = ipaddress.IPv4Address(unicast(fields[index]))
        except ValueError as err:
            raise InvalidInput(str(err), f"[{index}]") from err
        if address not in net or address in reserved:
            raise InvalidInput(f"{address} is not a host address of {net}", f"[{index}]")
        ends.append(address)
    if ends[0] == ends[1]:
        raise InvalidInput(f"both ends have the address {ends[0]}", "[4]")
    return (f"{ends[0]}/{net.prefixlen}",), (str(ends[1]),)


_PARTS: tuple[tuple[tuple[str, ...], tuple[str, ...], Callable[[list[Any], Node], tuple[Any, ...]]], ...] = (
    (("[1]",), ("remote_ip",), _remote_ip),
    (("[2]",), ("rate_bps",), _rate_bps),
    (("[3]", "[4]", "[5]"), ("addresses", "peer_addresses"), _addresses),
)
"""members of the tuple, fields of the link they make, how: each part can be refused without the others"""


def _link(
    member: Member, remote: int, key: int, node: Node, old: VirtualLink | None, flawed: Mapping[str, str]
) -> tuple[VirtualLink | None, list[Flaw]]:
    """One link of six members; None if a part is refused and ``old`` cannot help out."""
    values: dict[str, Any] = {}
    flaws: list[Flaw] = []
    for indices, fields, read in _PARTS:
        try:
            for index in indices:
                if index in flawed:
                    raise InvalidInput(flawed[index], index)
            values.update(zip(fields, read(member.fields, node), strict=True))
        except InvalidInput as err:
            kept = ""
            if old is not None:
                values.update((field, getattr(old, field)) for field in fields)
                kept = _kept(old, fields[0])
            flaws.append(Flaw(member.path + err.path, err.message, kept))
    if flaws and old is None:
        return None, flaws
    return VirtualLink(
        name=f"n{remote}", key=key, remote_node_id=remote, ifname=names.vini_ifname(key, remote), **values
    ), flaws


def _kept(old: VirtualLink, field: str) -> str:
    if field == "rate_bps":
        return f"rate {units.format_rate(old.rate_bps)}"
    return f"remote address {old.remote_ip}" if field == "remote_ip" else f"addresses {', '.join(old.addresses)}"


def rekey(link: VirtualLink, key: int) -> VirtualLink:
    """The same link under another GRE key: VINI names its device after the key."""
    return dataclasses.replace(link, key=key, ifname=names.vini_ifname(key, link.remote_node_id))


def _remote(member: Member, flawed: Mapping[str, str]) -> int | None:
    """The node a link leads to, as far as that can be read of a broken one."""
    fields = member.fields
    readable = isinstance(fields, list) and fields and type(fields[0]) is int and fields[0] >= 1
    return fields[0] if readable and "[0]" not in flawed else None


def resolve(
    raw: Iterable[Member],
    *,
    key: int,
    node: Node,
    previous: Mapping[str, VirtualLink],
    known_nodes: Collection[int] | None = None,
) -> tuple[list[tuple[str, VirtualLink]], list[Flaw], bool]:
    """Raw links → checked links, each with its path.

    A part of a link that is refused takes the value of ``previous`` (name → last good link), if that has the link;
    otherwise the link is left out. Two links to one node: the first stays.

    :param key: GRE key of all links of the slice
    :param known_nodes: ids of all nodes of the PLC, if the caller has them
    :return: links, flaws, and whether some link was so broken that nobody can say to which node it led
    """
    links: dict[str, tuple[str, VirtualLink]] = {}
    flaws: list[Flaw] = []
    lost = False
    for member in raw:
        shape = schema.validate("topo_rspec", [member.fields])
        flawed = {path.removeprefix("$[0]"): message for path, message in shape}
        remote = _remote(member, flawed)
        name = f"n{remote}"
        old = previous.get(name)
        link, found = None if old is None else rekey(old, key), []
        kept = "" if old is None else f"link {name}"
        if remote is None or "" in flawed:
            suffix, message = next(iter(flawed.items()))
            found = [Flaw(member.path + suffix, message, kept)]
            lost = lost or remote is None
        elif remote == node.node_id:
            link, found = None, [Flaw(f"{member.path}[0]", f"node {remote} is this node itself")]
        elif known_nodes is not None and remote not in known_nodes:
            found = [Flaw(f"{member.path}[0]", f"no such node: {remote}", kept)]
        elif name in links:
            found = [Flaw(member.path, f"a second link to node {remote}", "the first")]
        else:
            link, found = _link(member, remote, key, node, old, flawed)
        flaws += found
        if link is not None:
            links.setdefault(link.name, (member.path, link))
    return list(links.values()), flaws, lost


def render(links: Iterable[VirtualLink]) -> str:
    """VINI links → the text of a ``topo_rspec`` attribute: ``[(1, '198.51.100.14', '100mbit', …), …]``."""
    return repr(
        [
            (
                link.remote_node_id,
                link.remote_ip,
                units.format_rate(link.rate_bps),
                link.addresses[0].partition("/")[0],
                link.peer_addresses[0],
                str(ipaddress.IPv4Interface(link.addresses[0]).network),
            )
            for link in links
        ]
    )
