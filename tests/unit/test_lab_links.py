"""What is read from tc."""

from __future__ import annotations

from nodemanager_trellis.lab import links

TC = """class htb 1:1 root rate 100Gbit ceil 100Gbit burst 12487500b cburst 12487500b 
 Sent 1376 bytes 8 pkt (dropped 0, overlimits 0 requeues 0) 
 backlog 0b 0p requeues 0
 lended: 0 borrowed: 0 giants: 0
 tokens: 15623 ctokens: 15623

class htb 1:1a parent 1:2 leaf 1a: prio 0 rate 500Kbit ceil 30500Kbit burst 3036b cburst 3746b 
 Sent 688 bytes 4 pkt (dropped 0, overlimits 0 requeues 0) 
 backlog 0b 0p requeues 0
"""  # noqa: W291


def test_classes_are_read():
    """Numbers are hexadecimal, rates have tc's suffixes, counters are bytes."""
    found = links.parse_classes(TC)
    assert found == [links.HtbClass(1, 1, 10**11, 1376), links.HtbClass(1, 0x1A, 30_500_000, 688)]
    assert links.class_of(found, 0x1A) is found[1]
    assert links.class_of(found, 2) is None
    assert links.parse_classes("") == []
