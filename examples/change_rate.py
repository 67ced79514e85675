#!/usr/bin/env python3
"""Change the rate of one virtual link, at both of its ends.

    change_rate.py --url https://plc.example.org/PLCAPI/ --user op@example.org vini_abilene chic newy 20mbit

The rate stands in the topo_rspec of either node; both are rewritten. URL, user and password may also come from the
environment (TRELLIS_PLC_URL, TRELLIS_PLC_USER, TRELLIS_PLC_PASSWORD). A node is named by its host name or by one of its
labels.
"""

import argparse
import ast
import os
import sys
import xmlrpc.client


def with_rate(topo_rspec, remote_node_id, rate):
    """The text of a topo_rspec with another rate for the link to remote_node_id; None if it has no such link."""
    links = [tuple(link) for link in ast.literal_eval(topo_rspec)]
    if not any(link[0] == remote_node_id for link in links):
        return None
    return str([(*link[:2], rate, *link[3:]) if link[0] == remote_node_id else link for link in links])


def find_node(nodes, name):
    """node_id of the node with that host name, or of the only one that has the name as a label."""
    found = [n for n in nodes if n["hostname"] == name] or [n for n in nodes if name in n["hostname"].split(".")]
    if len(found) != 1:
        raise SystemExit(f"{name}: {'no such node' if not found else 'several nodes have this label'} at PLC")
    return found[0]["node_id"]


def change_rate(plc, auth, slice_name, one, other, rate):
    """Rewrite both ends. Returns the number of tags changed."""
    nodes = plc.GetNodes(auth, {"peer_id": None}, ["node_id", "hostname"])
    a, b = find_node(nodes, one), find_node(nodes, other)
    tags = plc.GetSliceTags(auth, {"name": slice_name, "tagname": "topo_rspec"})
    updates = []
    for here, there in ((a, b), (b, a)):
        found = [
            (tag["slice_tag_id"], tag["value"], text)
            for tag in tags
            if tag["node_id"] == here and (text := with_rate(tag["value"], there, rate)) is not None
        ]
        if not found:
            raise SystemExit(f"{slice_name} has no link from node {here} to node {there}")
        updates += found
    changed = 0
    for slice_tag_id, old, new in updates:
        if old != new:
            plc.UpdateSliceTag(auth, slice_tag_id, new)
            changed += 1
    return changed


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("slice")
    parser.add_argument("node_a")
    parser.add_argument("node_b")
    parser.add_argument("rate", help="such as 20mbit")
    parser.add_argument("--url", default=os.environ.get("TRELLIS_PLC_URL", "https://localhost/PLCAPI/"))
    parser.add_argument("--user", default=os.environ.get("TRELLIS_PLC_USER", ""))
    parser.add_argument("--password-file", metavar="FILE", help="else the environment's TRELLIS_PLC_PASSWORD")
    arguments = parser.parse_args(argv)

    password = os.environ.get("TRELLIS_PLC_PASSWORD", "")
    if arguments.password_file:
        with open(arguments.password_file, encoding="utf-8") as file:
            password = file.read().strip()
    plc = xmlrpc.client.ServerProxy(arguments.url, allow_none=True)
    auth = {"AuthMethod": "password", "Username": arguments.user, "AuthString": password}
    changed = change_rate(plc, auth, arguments.slice, arguments.node_a, arguments.node_b, arguments.rate)
    print(f"{arguments.slice}: {arguments.node_a} - {arguments.node_b} {arguments.rate}, {changed} tags written")
    return 0


if __name__ == "__main__":
    sys.exit(main())
