"""Bit/s, bytes and HTB's own numbers: parse, print, convert. The only place with a ×8.

Rate text is that of PlanetLab's ``bwlimit`` (and of the third member of ``topo_rspec``), see :func:`parse_rate`.
"""

from __future__ import annotations

import re
from fractions import Fraction

EGRE_OVERHEAD_BYTES = 42
"""What a link adds to an inner Ethernet frame: outer Ethernet 14 + IPv4 20 + GRE 4 + key 4 (RFC 2784, RFC 2890)."""

MAX_RATE_BPS = 10**12
"""1 Tbit/s; a larger rate is a slip of the pen."""

MIN_RATE_BPS = 8_000
"""The smallest link rate we accept: 1000 byte/s."""

_SUFFIX: dict[str, int] = {"": 1, "bit": 1}
for _i, _p in enumerate(("k", "m", "g", "t"), start=1):
    _SUFFIX[_p + "bit"] = 1000**_i
    _SUFFIX[_p + "ibit"] = 1024**_i
    _SUFFIX[_p + "bps"] = 8 * 1000**_i
    _SUFFIX[_p + "ibps"] = 8 * 1024**_i
_SUFFIX["bps"] = 8

_RATE = re.compile(r"([0-9]*\.[0-9]+|[0-9]+\.?)([a-z]*)", re.ASCII)


def parse_rate(text: str) -> int:
    """Rate text → bit/s.

    ``100mbit``, ``1.5mbit``, ``10mbps`` (bytes per second, ×8), ``1mibit``, a bare number is bit/s; case is ignored,
    blanks and signs are not allowed (bwlimit.py of plnode-utils 0.2).

    :raises ValueError: not a rate
    """
    match = _RATE.fullmatch(text.lower())
    if match is None or match[2] not in _SUFFIX:
        raise ValueError(f"{text[:40]!r} is not a rate such as 100mbit")
    return int(Fraction(match[1].rstrip(".") if match[1].endswith(".") else match[1]) * _SUFFIX[match[2]])


def format_rate(rate_bps: int) -> str:
    """bit/s → the shortest exact rate text (``parse_rate(format_rate(x)) == x``)."""
    for suffix, size in (("gbit", 10**9), ("mbit", 10**6), ("kbit", 1000)):
        if rate_bps and rate_bps % size == 0:
            return f"{rate_bps // size}{suffix}"
    return f"{rate_bps}bit"


def human_rate(rate_bps: float) -> str:
    """bit/s → text for people, three digits: ``92.8 Mbit/s``."""
    for suffix, size in (("Gbit/s", 1e9), ("Mbit/s", 1e6), ("kbit/s", 1e3)):
        if rate_bps >= size:
            return f"{rate_bps / size:.3g} {suffix}" if rate_bps < 999.5 * size else f"{rate_bps / size:.0f} {suffix}"
    return f"{rate_bps:.0f} bit/s"


def bytes_per_second(rate_bps: int) -> int:
    """bit/s → byte/s, what HTB counts in (``struct tc_ratespec``); rounds up so that a rate never becomes 0."""
    return -(-rate_bps // 8)


def queue_bytes(rate_bps: int, milliseconds: int, floor_bytes: int) -> int:
    """Length limit of a leaf queue that drains in ``milliseconds`` at ``rate_bps``, never below ``floor_bytes``."""
    return max(floor_bytes, rate_bps * milliseconds // 8000)


def psched_ticks(nanoseconds: int) -> int:
    """ns → the 64 ns ticks of ``psched`` that HTB's buffer fields are in (include/net/pkt_sched.h, PSCHED_SHIFT 6)."""
    return nanoseconds >> 6


def htb_buffer(burst_bytes: int, rate_bps: int) -> int:
    """Burst in bytes → HTB's ``buffer``: ticks that this burst takes at this rate."""
    return psched_ticks(burst_bytes * 8 * 10**9 // max(rate_bps, 1))
