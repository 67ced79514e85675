"""What the links of a running lab do: asked rates from the managers' status, what flows from the kernel's counters."""

from __future__ import annotations

import dataclasses
import itertools
import re
import subprocess
import time
from typing import Any

from nodemanager_trellis.errors import InvalidInput, SubstrateError
from nodemanager_trellis.lab import underlay
from nodemanager_trellis.lab.control import Lab, Record
from nodemanager_trellis.lab.map import LinkState
from nodemanager_trellis.units import parse_rate

_CLASS = re.compile(r"class htb [0-9a-f]*:[0-9a-f]+ ")


@dataclasses.dataclass(frozen=True, slots=True)
class HtbClass:
    """One HTB class as ``tc`` shows it."""

    major: int
    minor: int
    ceil_bps: int
    sent_bytes: int


def parse_classes(text: str) -> list[HtbClass]:
    """Output of ``tc -s class show`` (it prints text for classes even when asked for JSON)."""
    starts = [match.start() for match in _CLASS.finditer(text)]
    found = []
    for start, end in itertools.pairwise([*starts, len(text)]):
        piece = text[start:end]
        match = re.match(r"class htb ([0-9a-f]+):([0-9a-f]+) .*?\bceil (\S+)", piece)
        sent = re.search(r"^ *Sent ([0-9]+) bytes", piece, re.MULTILINE)
        if match is not None:
            rate_bps = parse_rate(match[3])
            found.append(HtbClass(int(match[1], 16), int(match[2], 16), rate_bps, int(sent[1]) if sent else 0))
    return found


def classes(netns: str) -> list[HtbClass]:
    """HTB classes of the node's underlay device.

    :raises SubstrateError: tc refused, or printed what we do not understand
    """
    command = underlay.inside(netns, ["tc", "-s", "class", "show", "dev", underlay.DEVICE])
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    what = f"classes of {underlay.DEVICE} in {netns}"
    if done.returncode:
        raise SubstrateError(what, "list", 0, done.stderr.strip())
    try:
        return parse_classes(done.stdout)
    except ValueError as err:
        raise SubstrateError(what, "list", 0, str(err)) from err


def class_of(found: list[HtbClass], minor: int) -> HtbClass | None:
    """The class with that minor number."""
    return next((entry for entry in found if entry.minor == minor), None)


def ends(lab: Lab, record: Record, slice_name: str) -> dict[tuple[str, str], dict[str, Any]]:
    """(node, remote node) → what the node's manager says about that end of the slice's link."""
    by_id = {node.node_id: node.name for node in record.nodes}
    found = {}
    for node in record.nodes:
        sliver = lab.node_status(node.name).get("slivers", {}).get(slice_name, {})
        for link in sliver.get("links", {}).values():
            remote = by_id.get(link["remote_node_id"])
            if remote is not None:
                found[node.name, remote] = link
    return found


def slices(lab: Lab, record: Record) -> list[str]:
    """Names of all slices that have a sliver in the lab."""
    names = {name for node in record.nodes for name in lab.node_status(node.name).get("slivers", {})}
    return sorted(names)


def states(lab: Lab, slice_name: str = "", interval_s: float = 1.0) -> list[LinkState]:
    """The links of one slice (default: the only one), or of the lab's topology when there is no slice.

    :param interval_s: how long the counters are watched; 0: not at all
    :raises InvalidInput: several slices and none named, or no such slice
    """
    record = lab.record()
    known = slices(lab, record)
    if not slice_name:
        if len(known) > 1:
            raise InvalidInput(f"the lab has several slices, name one: {', '.join(known)}")
        slice_name = known[0] if known else ""
    elif slice_name not in known:
        raise InvalidInput(f"the lab has no slice {slice_name[:64]!r}; it has {', '.join(known) or 'none'}")
    if not slice_name:
        return [LinkState(link.a, link.b, link.rate_bps, problem="no slice yet") for link in record.topology.links]
    both = ends(lab, record, slice_name)
    used = _used(record, both, interval_s) if interval_s else {}
    order = [node.name for node in record.nodes]
    result = []
    for a, b in sorted(
        {tuple(sorted(pair, key=order.index)) for pair in both}, key=lambda p: [order.index(n) for n in p]
    ):
        there, back = both.get((a, b)), both.get((b, a))
        asked = max(end["rate_bps"] for end in (there, back) if end is not None)
        problem = ""
        if there is None or back is None:
            problem = f"only {a if there else b} has it"
        elif there["rate_bps"] != back["rate_bps"]:
            problem = "the two ends ask for different rates"
        flows = [used[pair] for pair in ((a, b), (b, a)) if pair in used]
        result.append(LinkState(a, b, asked, max(flows) if flows else None, None, problem))
    return result


def _used(
    record: Record, both: dict[tuple[str, str], dict[str, Any]], interval_s: float
) -> dict[tuple[str, str], float]:
    def count() -> dict[tuple[str, str], tuple[float, int]]:
        result = {}
        for node in record.nodes:
            mine = {remote: end for (here, remote), end in both.items() if here == node.name}
            found = classes(node.netns) if mine else []
            now = time.monotonic()
            for remote, end in mine.items():
                entry = class_of(found, int(end["minor"]))
                if entry is not None:
                    result[node.name, remote] = now, entry.sent_bytes
        return result

    before = count()
    time.sleep(interval_s)
    after = count()
    return {
        pair: max(0, after[pair][1] - sent) * 8 / (after[pair][0] - then)
        for pair, (then, sent) in before.items()
        if pair in after
    }
