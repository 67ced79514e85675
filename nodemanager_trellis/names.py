"""Deterministic names: slice and link → device names, MAC addresses, container names, pin paths, VINI addresses.

Everything here can be computed again after a crash from the slice id and the link's name; nothing is random.
"""

from __future__ import annotations

import base64
import hashlib
import ipaddress
import re

IFNAMSIZ = 15
"""Longest device name (include/uapi/linux/if.h: 16 with the final NUL)."""

VINI_LARGEST_NODE_ID = 127
"""Above it VINI's address formula repeats itself or leaves 192.168/16 (vini_network.py)."""


def sliver_id(instance: str, slice_id: int) -> str:
    """Name of a sliver's container, namespaces and directory: ``trellis.37``.

    Made of the slice *id*: a slice deleted and made again under its old name is another one. ``instance`` tells the
    nodes of a lab on one machine apart, since cgroups and ``/run/netns`` are shared there.
    """
    return f"{instance}.{slice_id}"


def slice_id_of(instance: str, name: str) -> int | None:
    """The inverse of :func:`sliver_id`; None when ``name`` is not one of this instance's."""
    prefix, _, number = name.rpartition(".")
    return int(number) if prefix == instance and re.fullmatch(r"[1-9][0-9]{0,9}", number, re.ASCII) else None


def _short(text: str, length: int) -> str:
    digest = hashlib.sha256(text.encode()).digest()
    return base64.b32encode(digest).decode().lower()[:length]


def root_ifname(slice_id: int, link: str) -> str:
    """Name of the root context's end of a virtual link's veth pair, 12 characters: ``tr`` + 50 bits of a hash."""
    return "tr" + _short(f"{slice_id}/{link}", 10)


def altname(slice_name: str, link: str) -> str:
    """Alternative device name for people, at most 127 characters: ``trellis-princeton_iias-n39``."""
    return f"trellis-{slice_name}-{link}"[:127]


def vini_ifname(key: int, remote_node_id: int) -> str:
    """Sliver's end of a VINI link: ``a<KEY>if<INDEX>`` (vsys script setup-link); hashed if longer than 15."""
    name = f"a{key}if{remote_node_id}"
    return name if len(name) <= IFNAMSIZ else f"a{_short(name, 6)}if{remote_node_id}"[:IFNAMSIZ]


def link_mac(slice_id: int, node_id: int, link: str) -> str:
    """MAC address of the sliver's end: locally administered, unicast, 40 bits of a hash; the same every time."""
    digest = hashlib.sha256(f"mac/{slice_id}/{node_id}/{link}".encode()).digest()
    return ":".join(f"{b:02x}" for b in (0x02, *digest[:5]))


def vini_network(a: int, b: int) -> ipaddress.IPv4Network:
    """The /30 that VINI gives to the link between nodes ``a`` and ``b``, in 192.168.0.0/16; ``.1`` is the smaller id's.

    :raises ValueError: equal ids, or an id outside 1..127 (the formula is not unique beyond)
    """
    low, high = sorted((a, b))
    if not 1 <= low < high <= VINI_LARGEST_NODE_ID:
        raise ValueError(f"VINI addresses need two different node ids in 1..{VINI_LARGEST_NODE_ID}, got {a} and {b}")
    link = (low << 7) + high
    return ipaddress.IPv4Network(f"192.168.{link >> 6}.{(link & 63) << 2}/30")


def bpf_directory(instance: str) -> str:
    """Where one node's pins live below a bpffs: ``trellis/<instance>`` (ifindexes repeat across the nodes of a lab)."""
    return f"trellis/{instance}"
